"""Recompute the p values and intervals of figures/claims.csv from the raw JSON of results/. Shares no code with the package,
only the names of fields and tests, and the rules that figures/claims.md states.

    python tests/recompute.py [folder of results] [claims.csv]

The columns of the sensitivity analysis (`_dropped`) are recomputed, too. The bootstrap, which draws at random, is left out."""

import copy
import functools
import itertools
import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

CUBE = {"conv": "ls", "gconv": "s", "lc": "l", "full": "", "lattn": "lsd", "gattn": "sd", "lattn_abs": "ld", "attn": "d"}
TRIO = ["convmixer", "mixer", "igpt"]
SIMPLEX = {"attn": "static_softmax", "gattn": "static_softmax_shared"}
TIE = 0.005 + 1e-9
NUMBERS = ["mean", "low", "high", "p", "p_against", "p_negligible", "p_adjusted", "p_against_adjusted", "p_sign_flip"]
DROPPED = {"mean_dropped": "mean", "p_dropped": "p"}  # columns of the sensitivity analysis, as those without it


# ---- records ------------------------------------------------------------------------------------------------------


@functools.cache
def records(folder):
    """Key -> record: a file each, or a line of records.jsonl."""
    lines = [path.read_text() for path in folder.glob("*.json")]
    if (folder / "records.jsonl").is_file():
        lines += (folder / "records.jsonl").read_text().splitlines()
    return {record["key"]: record for record in map(json.loads, lines)}


class Study:
    """One sweep: its runs with their records, and series over seeds of what they measured."""

    def __init__(self, folder, name):
        self.dropped, self.folder, self.content = set(), folder, json.loads((folder / "sweeps" / f"{name}.json").read_text())
        self.runs = [dict(run) for run in self.content["runs"]]
        for run in self.runs:
            run["record"], run["start"], run["floor"] = (self.read(run[part]) for part in ("key", "init", "baseline"))
        searched = {"lr"} if self.content.get("searches") else set()
        self.base = {}
        for name in {name for run in self.runs for name in run} - {
            "key",
            "init",
            "baseline",
            "seed",
            "record",
            "start",
            "floor",
        }:
            levels = {}
            for run in self.runs:
                if name in run and name not in searched:
                    levels.setdefault(run["mixer"], []).append(run[name])
            if any(len(set(found)) > 1 for found in levels.values()) and name != "mixer":
                self.base[name] = next(run[name] for run in self.runs if name in run)
        if not self.base:
            self.base = {"depth": self.runs[0]["depth"]}
        if len({run["mixer"] for run in self.runs}) == 1:
            self.base.setdefault("mixer", self.runs[0]["mixer"])

    def read(self, key):
        return records(self.folder).get(key)

    def levels(self, name, mixers=TRIO):
        return sorted({run[name] for run in self.runs if name in run and run["mixer"] in mixers})

    def at(self, **where):
        """{seed: run} with these fields, all else at its base."""
        wanted = {**self.base, **where}
        return {run["seed"]: run for run in self.runs if all(run.get(name, level) == level for name, level in wanted.items())}

    def series(self, of, **where):
        runs = {seed: run for seed, run in self.at(**where).items() if run["record"] and run["key"] not in self.dropped}
        return pd.Series({seed: of(run) for seed, run in runs.items()}, dtype=float).sort_index()

    def without_failures(self, metric):
        """The same without the runs that diverged or do not exceed their baselines on the test images."""
        other = copy.copy(self)
        other.dropped = {run["key"] for run in self.runs if run["record"] and self.failed(run, metric)}
        return other

    def failed(self, run, metric):
        if lost(run):
            return True
        if metric in ("probe", "probe_best", "rank"):
            floor = run["floor"]["pixel_probe"]
            row = np.array(floor["val"][0])
            pixels = floor["test"][0][max(np.flatnonzero(row >= row.max() - TIE))]
            found = []
            for start in (False, True):
                splits, layer = self.table(run, start)
                found.append(splits["test"][layer] if metric == "probe_best" else np.mean(splits["test"][1:]))
            return not found[0] > max(found[1], pixels)
        pixels = metric in ("psnr", "loss", "lie_error", "distance", "spectrum") and run["pretext"] == "bert"
        return pixels and not run["record"]["psnr"]["test"] > run["floor"]["psnr"]["neighbour_mean"]

    def table(self, run, start=False):
        """(accuracies of a probe by split and layer, at the penalties of its arm; the best layer)."""
        start = start or run["record"]["status"] == "diverged"
        alike = []
        for other in self.runs:
            same = other["record"] and settings(other["record"]) == settings(run["record"])
            if same and (start or other["record"]["status"] == "done"):
                alike.append((other["start"] if start else other["record"])["probe"]["val"])
        mean = np.mean(alike, axis=0)  # layers x penalties; what is within half a point of the best is as good
        place = [max(np.flatnonzero(row >= row.max() - TIE)) for row in mean]
        own = (run["start"] if start else run["record"])["probe"]
        splits = {split: [row[at] for row, at in zip(own[split], place, strict=True)] for split in ("val", "test")}
        by_layer = mean.max(axis=1)
        return splits, int(np.argmax(by_layer >= by_layer.max() - TIE))


def settings(record):
    return {name: value for name, value in record["config"].items() if name != "seed"}


def lost(run):
    return run["record"]["status"] == "diverged"


def last(run):
    """The record that has the measures and the probe of a run."""
    return run["start"] if lost(run) else run["record"]


def psnr(run):
    value = run["floor"]["psnr"]["image_mean"] if lost(run) else run["record"]["psnr"]["test"]
    return math.nan if value is None else value


def loss(run):
    if lost(run):
        return -math.log(run["colours"]) if run.get("target") == "palette" else -1.0
    return -run["record"]["loss"]["test"] if run["record"]["loss"]["test"] is not None else math.nan


def change(measure, number):
    """What training changed in a number of a measure."""

    def of(run):
        return number(last(run)["measures"][measure]) - number(run["start"]["measures"][measure])

    return of


# ---- statistics ---------------------------------------------------------------------------------------------------


def one_sided(x, margin, side):
    if x.std() == 0:
        return 0.5 if x.mean() == margin else float((x.mean() < margin) == (side == "greater"))
    return stats.ttest_1samp(x, margin, alternative=side).pvalue


def two_sided(x, margin):
    return min(1.0, 2 * min(one_sided(x, margin, side) for side in ("greater", "less")))


def within(x, margin):
    return max(one_sided(x, -margin, "greater"), one_sided(x, margin, "less"))


def numbers(x, goal, margin, small):
    """The columns of a test of these values."""
    x = x.dropna().to_numpy()
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    row = {"mean": x.mean(), "low": x.mean() - half, "high": x.mean() + half}
    middle, about = x.mean(), margin
    above, below = ((two_sided(x, margin) if right else 1.0) for right in (middle > margin, middle < margin))
    if goal in ("beyond", "within", "differs"):
        about = 0.0
        beyond = two_sided(x, math.copysign(margin, middle)) if abs(middle) > margin else 1.0
        good, bad = (within(x, margin), beyond) if goal == "within" else (beyond, 1.0)
    else:
        good, bad = (above, below) if goal == "above" else (below, above)
        if goal == "not below":
            good, bad = one_sided(x, margin, "greater"), below
    if not goal.startswith("each"):
        row |= {"p": good, "p_against": bad}
    if small:
        row["p_negligible"] = within(x, small)
    flips = np.array(list(itertools.product((1, -1), repeat=len(x)))) @ (x - about)
    return row | {"p_sign_flip": np.mean(np.abs(flips) >= abs(flips[0]) - 1e-9 * np.abs(x - about).sum())}


def holm(ps):
    """By the definition: the largest of (number - rank) p so far."""
    adjusted, most = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(sorted((i for i in range(len(ps)) if not math.isnan(ps[i])), key=lambda i: ps[i])):
        most = max(most, (len(ps) - rank) * ps[i])
        adjusted[i] = min(1.0, most)
    return adjusted


def inversions(n):
    """{tau: chance} of a random order of n without ties, by the number of inversions."""
    counts = [1]
    for i in range(2, n + 1):
        counts = [sum(counts[max(0, k - i + 1) : k + 1]) for k in range(len(counts) + i - 1)]
    most = n * (n - 1) // 2
    return {Fraction(most - 2 * k, most): Fraction(count, math.factorial(n)) for k, count in enumerate(counts)}


def ranked(groups, goal):
    """Of [(x, y)] of arm means: the mean tau, and its p by permutation within groups."""
    taus = [stats.kendalltau(x, y).statistic for x, y in groups]
    spread = {Fraction(0): Fraction(1)}
    for x, _ in groups:
        wider = {}
        for (total, chance), (tau, more) in itertools.product(spread.items(), inversions(len(x)).items()):
            wider[total + tau] = wider.get(total + tau, 0) + chance * more
        spread = wider
    p = float(sum(chance for total, chance in spread.items() if abs(total) >= abs(sum(taus)) - 1e-9))
    tau = np.mean(taus)
    up, down = (p if tau > 0 else 1.0), (p if tau < 0 else 1.0)
    return {"mean": tau, "p_against": up} if goal == "at most" else {"mean": tau, "p": up, "p_against": down}


# ---- the tests of each claim --------------------------------------------------------------------------------------


def slope(x, columns):
    x = np.array(x, float) - np.mean(x)
    return sum(weight * column for weight, column in zip(x / (x @ x), columns, strict=True))


def mean(columns):
    columns = list(columns)
    return sum(columns) / len(columns)


def values(g, claim, metric):
    """{label of a test: series over seeds, or groups of arm means}."""
    found, by_layer = {}, {}

    def probe(run):
        return 100 * np.mean(g.table(run)[0]["test"][1:])

    def start(run):
        return 100 * np.mean(g.table(run, start=True)[0]["test"][1:])

    def validation(run):
        return np.mean(g.table(run)[0]["val"][1:])

    def knn(run):
        return np.mean(last(run)["probe"]["knn"][1:])

    def v(of=None, **where):
        return g.series(of or {"psnr": psnr, "loss": loss}.get(metric, probe), **where)

    if claim in ("P1a", "P1b"):
        other, depths = {"P1a": "convmixer", "P1b": "mixer"}[claim], [d for d in g.levels("depth") if d <= 4]

        def gap(of=None):
            here = {"pretext": "bert"}
            return mean(v(of, mixer=other, depth=d, **here) - v(of, mixer="igpt", depth=d, **here) for d in depths)

        found[f"{other} − igpt"] = gap()
        for words, part in {"1/8": 8, "1/4": 4, "1/2": 2}.items():

            def early(run, part=part):
                rows = {row["step"]: row["psnr"] for row in run["record"].get("psnr_by_step", [])}
                return psnr(run) if lost(run) else rows.get(run["record"]["steps"] // part, math.nan)

            found[f"{other} − igpt at {words} of the steps"] = gap(early)
    if claim == "P2":
        depths = g.levels("depth")
        for other in ("convmixer", "mixer"):
            here = {"pretext": "bert"}
            gaps = [v(mixer=other, depth=d, **here) - v(mixer="igpt", depth=d, **here) for d in depths]
            found |= {f"slope of {other} − igpt": slope(np.log2(depths), gaps), f"{other} − igpt at depth {depths[0]}": gaps[0]}
    if claim == "P3":
        found = {f"{cell} − attn": v(mixer=cell) - v(mixer="attn") for cell in CUBE}
    if claim == "P4":
        colours = {name: mean(v(mixer=m, input=name, target="rgb") for m in TRIO) for name in ("rgb", "quantised", "palette")}
        found = {"one-hot − RGB": colours["palette"] - colours["rgb"],
                 "one-hot − quantised": colours["palette"] - colours["quantised"],
                 "quantised − RGB": colours["quantised"] - colours["rgb"]}  # fmt: skip
    if claim in ("F1", "F2"):
        cell = {name: v(mixer=name) for name in CUBE}
        names = {"l": "local", "s": "shared", "d": "dynamic"}
        for n in (1, 2, 3):
            for axes in itertools.combinations("lsd", n):
                plus = [name for name, has in CUBE.items() if sum(axis not in has for axis in axes) % 2 == 0]
                minus = [name for name in CUBE if name not in plus]
                label = " x ".join(names[axis] for axis in axes)
                found[label] = mean(cell[name] for name in plus) - mean(cell[name] for name in minus)
        if claim == "F2":
            found = {"input dependence": found["dynamic"], "long range (not local)": -found["local"],
                     "input dependence − long range": found["dynamic"] + found["local"]}  # fmt: skip
        else:
            for one, other in (("lattn", "conv"), ("gattn", "gconv"), ("lattn_abs", "lc"), ("attn", "full")):
                found[f"input dependence, {one} − {other}"] = cell[one] - cell[other]
            if {run["mixer"] for run in g.runs} >= set(SIMPLEX.values()):
                for (one, soft), other in zip(SIMPLEX.items(), ("full", "gconv"), strict=True):
                    found[f"input dependence, {one} − {soft}"] = cell[one] - v(mixer=soft)
                    found[f"softmax alone, {soft} − {other}"] = v(mixer=soft) - cell[other]
    if claim == "F3":
        found = {f"{cell} − {soft}": v(mixer=cell) - v(mixer=soft) for cell, soft in SIMPLEX.items()}
    if claim == "F4":
        ranks = g.levels("rank", ["lowrank"])
        test, val = ({rank: v(of, mixer="lowrank", rank=rank) for rank in ranks} for of in (None, validation))
        chosen = {}
        for seed in test[ranks[0]].index:
            chosen[seed] = test[max(ranks[1:-1], key=lambda rank: val[rank].drop(seed).mean())][seed]
        for end in (ranks[0], ranks[-1]):
            found[f"best of rank {ranks[1:-1]} − rank {end}"] = pd.Series(chosen) - test[end]
    if claim == "F5":
        for cell in ("conv", "gconv", "lc", "full"):
            frozen, trained = v(mixer=f"{cell}_frozen"), v(mixer=cell)
            found[f"{cell}_frozen − {cell}"] = frozen - trained
            less = (trained + v(start, mixer=cell)) / 2
            found[f"{cell}_frozen − {cell}, plus half of the gain from training"] = frozen - less
    if claim == "S1":
        moved = "patches" if any(run["permute"] == "patches" for run in g.runs) else "pixels"
        for cell in CUBE:
            plain, after = (v(mixer=cell, permute=kind, pretext="bert") for kind in ("none", moved))
            found[f"{cell}, permuted − not"] = after - plain if metric == "probe" else 100 * (after - plain) / plain.abs()
    if claim == "S2":
        here = {"padding": "circular"}
        for label, pick, has in (("shared cells, largest", max, True), ("the others, smallest", min, False)):

            def error(run, pick=pick):
                return pick(pick(record["measures"]["roll_error"][1:]) for record in (run["start"], last(run)))

            cells = [cell for cell in CUBE if ("s" in CUBE[cell]) == has]
            more = {"position": "none"} if has else {}
            frame = pd.concat([v(error, mixer=cell, **here, **more) for cell in cells], axis=1)
            found[label] = frame.max(axis=1) if has else frame.min(axis=1)
    if claim == "S3":

        def growth(run):
            return math.log(last(run)["measures"]["lie_error"][-1] / run["start"]["measures"]["lie_error"][-1])

        found["attn, log(end / init) of the last layer"] = v(growth, mixer="attn")
    if claim == "S4":
        first = {cell: v(change("mixing_distance", lambda rows: np.mean(rows[0])), mixer=cell) for cell in ("attn", "full")}
        found = {f"{cell}, layer 1, trained − init": column for cell, column in first.items()}
        found["attn − full, layer 1, trained − init"] = first["attn"] - first["full"]
        if all("content_distance" in last(run)["measures"] for run in g.at(mixer="attn").values() if run["record"]):
            of = change("content_distance", lambda rows: np.mean(rows[0]))
            found["content of attn, layer 1, trained − init"] = v(of, mixer="attn")
    if claim == "S5":
        patch = max(p for p in g.levels("patch") if g.runs[0]["image_size"] // p >= 16)
        depths = sorted({run["depth"] for run in g.runs if run["patch"] == patch})
        for mixer in ("igpt", "convmixer"):
            of = {"last layer − embedding": change("spectrum", lambda rows: rows[-1][-1] - rows[0][-1])}
            if all("mixing_spectrum" in last(run)["measures"] for run in g.runs if run["record"]):
                of["mean over mixing sub-blocks"] = change("mixing_spectrum", np.mean)
            for words, number in of.items():
                found[f"{mixer}, {words}, trained − init"] = mean(v(number, mixer=mixer, depth=d, patch=patch) for d in depths)
    if claim == "L1":

        def loses(run):
            splits, layer = g.table(run)
            return 100 * (splits["test"][layer] - splits["test"][-1])

        def inside(run):
            splits, layer = g.table(run)
            return float(0 < layer < len(splits["test"]) - 1)

        for mixer in TRIO:
            for words, of in (("best − last layer", loses), ("share of depths whose best layer is inside", inside)):
                found[f"{mixer}, {words}"] = mean(v(of, mixer=mixer, depth=d) for d in g.levels("depth") if d >= 4)
    if claim == "L2":
        gains = {mixer: v(mixer=mixer, pretext="ar") - v(mixer=mixer, pretext="bert") for mixer in TRIO}
        found = {f"{mixer}, ar − bert": gain for mixer, gain in gains.items()}
        found |= {f"gain of igpt − gain of {mixer}": gains["igpt"] - gains[mixer] for mixer in TRIO[:2]}
    if claim == "L3":
        for mixer in TRIO:
            arms = [{}]
            for name in ("depth", "width", "kernel"):
                arms += [{name: level} for level in g.levels(name, [mixer]) if level != g.base.get(name, level)]
            by_layer[mixer] = [(v(loss, mixer=mixer, **arm).mean(), v(probe, mixer=mixer, **arm).mean()) for arm in arms]
        across = [list(arms) for arms in zip(*by_layer.values(), strict=False)]
        for label, groups in (("within an operator", by_layer.values()), ("across operators", across)):
            found[f"tau {label}"] = [tuple(zip(*group, strict=True)) for group in groups]
    if claim == "L4":
        pairs = [(v(knn, mixer=cell).mean(), v(probe, mixer=cell).mean()) for cell in CUBE]
        found["tau of k-NN and linear probe over the cells"] = [tuple(zip(*pairs, strict=True))]
    if claim in ("L5a", "L5b"):
        rates = [rate for rate in g.levels("mask_rate") if rate >= (0.15 if claim == "L5a" else 0)]
        label = f"slope of the probe over mask rates {rates[0]:g} to {rates[-1]:g}"
        found[label] = slope(rates, [mean(v(mixer=m, mask_rate=rate) for m in TRIO) for rate in rates]) / 10
    if claim == "D1":
        for name, part in (("images", "pool"), ("labelled", "train")):
            whole = [run["record"]["data"][part] for run in g.runs if run.get(name) == 0 and run["record"]]
            sizes = sorted((level or whole[0], level) for level in g.levels(name))
            if len(sizes) > 1 and (name, metric) != ("labelled", "psnr"):
                gaps = [v(mixer="convmixer", **{name: level}) - v(mixer="igpt", **{name: level}) for _, level in sizes]
                found[f"slope of convmixer − igpt over {name}"] = slope(np.log2([size for size, _ in sizes]), gaps)
                found[f"convmixer − igpt with the fewest {name}"] = gaps[0]
    if claim == "D2":
        twin = next(run["dataset"] for run in g.runs if run["dataset"].endswith("_coded"))
        for one, other in (("conv", "lc"), ("gconv", "full")):
            gain = {}
            for data in (twin.removesuffix("_coded"), twin):
                here = {"dataset": data, "padding": "zeros", "augment": "none"}
                gain[data] = v(mixer=one, **here) - v(mixer=other, **here)
            true, false = gain.values()
            found |= {f"{one} − {other} where the prior is true": true, f"{one} − {other} where it is false": false,
                      f"{one} − {other}, true − false": true - false}  # fmt: skip
    if claim == "D3":
        depths, harm = g.levels("depth"), {}
        for mixer in ("igpt", "convmixer"):
            harm[mixer] = [v(mixer=mixer, depth=d, skip="both") - v(mixer=mixer, depth=d, skip="none") for d in depths]
        extra = [one - other for one, other in zip(harm["igpt"], harm["convmixer"], strict=True)]
        label = "harm to igpt − harm to convmixer"
        found = {f"slope of {label}": slope(np.log2(depths), extra), label: mean(extra)}
    if claim == "D4":
        steps = g.base["steps"]

        def trio(patch, more):
            return mean(v(mixer=m, patch=patch, steps=more) for m in TRIO)

        low, high = trio(2, steps // 4) - trio(4, steps), trio(2, steps) - trio(4, 4 * steps)
        found = {"four times the FLOP − once": high - low, "at four times the FLOP": high, "at once the FLOP": low,
                 "at equal steps": trio(2, steps) - trio(4, steps)}  # fmt: skip
        found = {f"gain of patch 2{',' * label.startswith('four')} {label}": column for label, column in found.items()}
    if claim == "N1":
        for mixer in TRIO:
            low, full = v(mixer=mixer, precision="bf16"), v(mixer=mixer, precision="fp32")
            found[f"{mixer}, bf16 − fp32"] = low - full if metric == "probe" else 100 * (low - full) / full.abs()
    if claim == "O1":
        rates = {run["optimizer"]: run["lr"] for run in g.runs}
        for one, other in itertools.combinations(TRIO, 2):
            gap = {}
            for name, lr in rates.items():
                here = {"optimizer": name, "lr": lr, "pretext": "bert"}
                gap[name] = v(mixer=one, **here) - v(mixer=other, **here)
                found[f"{one} − {other}, {name}"] = gap[name]
            found[f"{one} − {other} under Muon, signed so that the order under AdamW is positive"] = (gap["muon"], gap["adamw"])
    return found


def both(muon, adamw):
    """A difference that must be seen under both optimizers: the larger of the two p."""
    sign = -1.0 if adamw.mean() < 0 else 1.0
    row = numbers(sign * muon + 0 * adamw, "above", 0.0, 0.0)
    p = max(two_sided(column.dropna().to_numpy(), 0.0) for column in (muon, adamw))
    return row | dict(zip(("p", "p_against"), (p, 1.0) if sign * muon.mean() > 0 else (1.0, p), strict=True))


GOALS = ("each above", "each below", "not below", "at most", "beyond ±", "within ±", "differs from", "above", "below")


def recomputed(row, series):
    """The columns of one row of the table. Its hypothesis says the goal and the margin."""
    goal = next(goal for goal in GOALS if row.hypothesis.startswith(goal))
    margin = float(row.hypothesis[len(goal) :].split()[0])
    small = margin if goal in ("above", "below", "beyond ±") else 0.0
    if row.claim == "F3":
        small = {"probe": 1.0, "psnr": 0.1}[row.metric]
    if row.claim == "L1":
        small = 0.0
    if isinstance(series, list):
        return ranked(series, goal)
    if isinstance(series, tuple):
        return both(*series)
    return numbers(series, goal.removesuffix(" ±").removesuffix(" from"), margin, small)


def compare(folder, table):
    """(number of rows compared, what differs in words) of a frame like claims.csv and the records of a folder of profiles, or
    of the one profile that the folder is."""
    table, studies, series, differs = table.copy().fillna({"row": ""}), {}, {}, []
    table = table[table.n > 1].reset_index(drop=True)
    rows = []
    for row in table.itertuples():
        name, of = (row.profile, row.sweep), (row.profile, row.sweep, row.claim, row.metric)
        if name not in studies:
            inner = folder / row.profile
            studies[name] = Study(inner if inner.is_dir() else folder, row.sweep)
        if of not in series:
            study = studies[name]
            series[of] = [values(g, row.claim, row.metric) for g in (study, study.without_failures(row.metric))]
        whole, rest = (found[row.test] for found in series[of])
        left = recomputed(row, rest) if row.n_dropped > 1 else {}
        rows.append(recomputed(row, whole) | {name: left.get(same, math.nan) for name, same in DROPPED.items()})
    mine = pd.DataFrame(rows, columns=[*NUMBERS, *DROPPED], dtype=float)
    deciding = table[table.decides.astype(bool)]
    for (claim, *_), part in deciding.groupby(["claim", "metric", "profile", "sweep"]):
        mine.loc[part.index, "p_adjusted"] = holm(list(mine.p[part.index])) if claim in ("P3", "F1") else mine.p[part.index]
        for _, same_row in part.groupby("row"):
            against = mine.p_against[same_row.index]
            mine.loc[same_row.index, "p_against_adjusted"] = against if claim == "P3" else holm(list(against))
    for row, own in zip(table.itertuples(), mine.itertuples(), strict=True):
        for name in [*NUMBERS, *(DROPPED if row.n_dropped > 1 else ())]:
            theirs, value = getattr(row, name), getattr(own, name)
            if not (np.isnan(theirs) and np.isnan(value)) and not np.isclose(theirs, value, rtol=1e-4, atol=1e-7):
                differs.append(
                    f"{row.profile} {row.sweep} {row.claim} {row.metric}, {row.test}: {name} {theirs:.6g}, not {value:.6g}"
                )
    return len(table), differs


def main(results="results", csv="figures/claims.csv"):
    number, differs = compare(Path(results), pd.read_csv(csv))
    print("\n".join([*differs, f"{number} tests, {len(differs)} numbers differ"]))
    return bool(differs)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
