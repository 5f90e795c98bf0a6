"""What each claim says of the records: one function per claim, Evidence -> the tests that decide it. Imports no torch.

A run is named by its fields with `of`; sums and differences of runs are taken per seed. Rules in words: claims.py."""

from dataclasses import replace

import numpy as np

from ..config import SHALLOW
from ..operators import CUBE, MIXERS, TRIO
from . import stats
from .contrasts import METRICS, PAIRS, Absent, mean, slope, total
from .stats import EFFECTS

CLOSED = ("full", "attn")  # closed under permutation of the tokens
STATIC = ("conv", "gconv", "lc", "full")
MARGIN = {"probe": 1.0, "psnr": 0.1}  # points, dB: smaller effects count as none


# ---- P: what the paper claims -------------------------------------------------------------------------------------


def hidden(e, mixer, depth):
    """The runs that fill in hidden tokens, as in Figure 1."""
    return e.of(mixer=mixer, depth=depth, pretext="bert")


def p1(e):
    depths, margin = e.levels("depth", most=SHALLOW), {"psnr": 0.1, "loss": 0.0}[e.metric]
    for other in ("convmixer", "mixer"):
        gap = mean(hidden(e, other, d) - hidden(e, "igpt", d) for d in depths)
        yield e.test(f"{other} − igpt", gap, "above", margin)


def p2(e):
    depths = e.levels("depth", least=2)
    for other in ("convmixer", "mixer"):
        gaps = [hidden(e, other, d) - hidden(e, "igpt", d) for d in depths]
        unit = f"{METRICS[e.metric].unit} per doubling".strip()
        yield e.test(f"slope of {other} − igpt", slope(np.log2(depths), gaps), "below", unit=unit)
        yield e.test(f"{other} − igpt at depth {depths[0]}", gaps[0], "above")


def p3(e):
    gains = {cell: e.of(mixer=cell) - e.of(mixer="attn") for cell in CUBE if cell != "attn"}
    tests = {cell: e.test(f"{cell} − attn", gain, "above", decides=False) for cell, gain in gains.items()}
    most = max(test.n for test in tests.values())
    contest = {cell: gains[cell] for cell, test in tests.items() if test.n >= min(PAIRS, most)}  # others cannot decide
    every = 0 * total(contest.values())  # so that all are of the same seeds
    contest = {cell: e.test(f"{cell} − attn", gain + every, "above", decides=False) for cell, gain in contest.items()}
    values = {cell: list(test.values.values()) for cell, test in contest.items()}
    first = next(iter(contest))
    best, p = stats.strongest(values) if contest[first].n > 1 else (first, np.nan)
    label, against = f"{best} − attn, the largest t of {len(contest)}", contest[best].p_values()[1]
    yield from (tests | contest | {best: replace(contest[best], label=label, decides=True, p=(p, against))}).values()


def p4(e):
    inputs = {name: mean(e.of(mixer=m, input=name, target="rgb") for m in TRIO) for name in ("rgb", "quantised", "palette")}
    yield e.test("one-hot − RGB", inputs["palette"] - inputs["rgb"], "below")
    yield e.test("one-hot − quantised", inputs["palette"] - inputs["quantised"], "below", decides=False)
    yield e.test("quantised − RGB", inputs["quantised"] - inputs["rgb"], "below", decides=False)


# ---- F: the factors -----------------------------------------------------------------------------------------------


def effect(e, *axes):
    """Main effect or interaction of the cube: the mean of the cells where the product of signs is + less that where it is -."""
    signs = {cell: np.prod([1 if getattr(MIXERS[cell], axis) else -1 for axis in axes]) for cell in CUBE}
    return total(float(sign) / 4 * e.of(mixer=cell) for cell, sign in signs.items())


def f1(e):
    for name in EFFECTS.values():
        yield e.test(name, effect(e, *name.split(" x ")), "differs", MARGIN[e.metric])


def f2(e):
    yield e.test("input dependence − long range", effect(e, "dynamic") + effect(e, "local"), "above")
    yield e.test("input dependence", effect(e, "dynamic"), "above", decides=False)
    yield e.test("long range (not local)", -1 * effect(e, "local"), "above", decides=False)


def f3(e):
    yield e.test("attn − static_softmax", e.of(mixer="attn") - e.of(mixer="static_softmax"), "differs", MARGIN[e.metric])
    yield e.test("attn − full", e.of(mixer="attn") - e.of(mixer="full"), "differs", MARGIN[e.metric], decides=False)


def f4(e):
    ranks = sorted({run["rank"] for run in e.sweep.runs if run["mixer"] == "lowrank"})
    if len(ranks) < 3:
        raise Absent(f"needs 3 ranks of lowrank, has {len(ranks)}")
    forms = {rank: e.of(mixer="lowrank", rank=rank) for rank in ranks}

    def gain(baselines):
        found = {rank: e.values(form, baselines=baselines) for rank, form in forms.items()}
        inside, ends = ranks[1:-1], (ranks[0], ranks[-1])
        return {s: max(found[r][s] for r in inside) - max(found[r][s] for r in ends)
                for s in set.intersection(*map(set, found.values()))}  # fmt: skip

    yield e.test(f"best of rank {ranks[1:-1]} − best of {[ranks[0], ranks[-1]]}", gain, "above")


def f5(e):
    for cell in STATIC:
        yield e.test(f"{cell}_frozen − {cell}", e.of(mixer=f"{cell}_frozen") - e.of(mixer=cell), "not below", -2.0)


# ---- S: symmetry and space ----------------------------------------------------------------------------------------


def s1(e):
    moved = next((kind for kind in ("patches", "pixels") if any(run["permute"] == kind for run in e.sweep.runs)
                  and not (kind == "pixels" and e.sweep.runs[0]["patch"] > 1)), None)  # fmt: skip
    if not moved:
        raise Absent("no run whose tokens are permuted")
    for cell in CUBE:
        plain, goal = e.of(mixer=cell, permute="none", pretext="bert"), "within" if cell in CLOSED else "below"
        change = e.of(mixer=cell, permute=moved, pretext="bert") - plain
        of, unit = (change, "points") if e.metric == "probe" else (e.relative(change, plain), "% of the loss")
        yield e.test(f"{cell}, permuted − not", of, goal, 1.0 if goal == "within" else 0.0, unit=unit)


def s2(e):
    place = {True: {"padding": "circular", "position": "none"}, False: {"padding": "circular"}}
    cells = {shared: [e.of(mixer=cell, **place[shared]) for cell in CUBE if MIXERS[cell].shared is shared] for shared in place}

    def worst(shared, baselines):
        pick = max if shared else min
        error = lambda key: pick(pick(e.record(key)[m]["roll_error"][1:]) for m in ("init_measures", "measures"))  # noqa: E731
        found = [e.values(form, error, baselines) for form in cells[shared]]
        return {seed: pick(v[seed] for v in found) for seed in set.intersection(*map(set, found))}

    yield e.test("shared cells, largest", lambda baselines: worst(True, baselines), "all below", 1e-5)
    yield e.test("the others, smallest", lambda baselines: worst(False, baselines), "all above", 0.01)


def s3(e):
    if any(run["input"] == "palette" for run in e.sweep.runs):
        raise Absent("colour indices have no Lie error")

    def growth(key):
        end, start = (e.record(key)[m]["lie_error"] for m in ("measures", "init_measures"))
        return float(np.log(end[-1] / start[-1]))

    yield e.test("attn, log(end / init) of the last layer", e.of(mixer="attn"), "below", value=growth, unit="nats")


def s4(e):
    def reach(key, of="measures"):
        return float(np.mean(e.record(key)[of]["mixing_distance"][0]))

    beyond = lambda key: reach(key) - e.record(key)["measures"]["uniform_distance"]  # noqa: E731
    growth = lambda key: reach(key) - reach(key, "init_measures")  # noqa: E731
    yield e.test("attn, layer 1 − uniform", e.of(mixer="attn"), "below", value=beyond)
    yield e.test("attn, layer 1, trained − init", e.of(mixer="attn"), "below", value=growth, decides=False)


def s5(e):
    run = e.sweep.runs[0]
    side = run["image_size"] // run["patch"]
    if side != 32:
        raise Absent(f"needs a grid of 32x32 tokens, this is {side}x{side}")
    change = lambda key: e.record(key)["measures"]["spectrum"][-1][-1] - e.record(key)["measures"]["spectrum"][0][-1]  # noqa: E731
    depths = e.levels("depth")
    yield e.test("igpt, last layer − embedding", mean(e.of(mixer="igpt", depth=d) for d in depths), "below", value=change)
    yield e.test("convmixer, last layer − embedding", mean(e.of(mixer="convmixer", depth=d) for d in depths), "above",
                 value=change)  # fmt: skip


# ---- L: what the literature says of layers, tasks and probes -------------------------------------------------------


def l1(e):
    depths = [depth for depth in e.levels("depth") if depth >= SHALLOW]
    if not depths:
        raise Absent(f"needs a depth of {SHALLOW} or more, has up to {max(e.levels('depth'))}")

    def lost(key):
        probe = e.record(key)["probe"]
        return 100 * (probe["chosen"]["test"] - probe["layers"][-1]["test"])

    def inside(key):
        probe = e.record(key)["probe"]
        return float(0 < probe["chosen"]["layer"] < len(probe["layers"]) - 1)

    forms = {mixer: mean(e.of(mixer=mixer, depth=d) for d in depths) for mixer in TRIO}
    for mixer, form in forms.items():
        yield e.test(f"{mixer}, best − last layer", form, "above", value=lost)
    yield e.test("share of runs whose best layer is inside", mean(forms.values()), "above", 0.5, value=inside, unit="",
                 decides=False)  # fmt: skip


def l2(e):
    gains = {mixer: e.of(mixer=mixer, pretext="ar") - e.of(mixer=mixer, pretext="bert") for mixer in TRIO}
    for mixer, gain in gains.items():
        yield e.test(f"{mixer}, ar − bert", gain, "above")
    for mixer in ("convmixer", "mixer"):
        yield e.test(f"gain of igpt − gain of {mixer}", gains["igpt"] - gains[mixer], "differs", 1.0, decides=False)


def l3(e):
    """Over runs whose losses can be compared: the levels of depth, width and kernel at the base of everything else."""
    points = {mixer: [e.of(mixer=mixer)] for mixer in TRIO}
    for name in ("depth", "width", "kernel"):
        for mixer in TRIO:
            asked = {run[name] for run in e.sweep.runs if run["mixer"] == mixer and name in run}
            points[mixer] += [e.of(mixer=mixer, **{name: v}) for v in sorted(asked) if v != e.base.get(name, v)]
    if min(map(len, points.values())) < 3:
        raise Absent("needs 3 depths or widths")

    def taus(groups, baselines):
        """seed -> mean of Kendall's tau between loss (sign turned) and probe over groups of forms."""
        loss = lambda key: -e.runs.at[key, "loss"]  # noqa: E731
        probe = lambda key: e.runs.at[key, "probe"]  # noqa: E731
        found = {}
        for seed in points["igpt"][0]:
            each = []
            for forms in groups:
                pairs = [[e.values(f, v, baselines).get(seed, np.nan) for f in forms] for v in (loss, probe)]
                each.append(np.nan if np.isnan(pairs).any() else stats.kendall(*pairs)[0])
            if not np.isnan(each).any():
                found[seed] = float(np.mean(each))
        return found

    across = [[points[m][i] for m in TRIO] for i in range(min(map(len, points.values())))]
    yield e.test("tau within an operator", lambda baselines: taus(list(points.values()), baselines), "above")
    yield e.test("tau across operators", lambda baselines: taus(across, baselines), "below")


def l4(e):
    forms = [e.of(mixer=cell) for cell in CUBE]

    def tau(baselines):
        found = {name: [e.values(form, lambda key, name=name: e.runs.at[key, name], baselines) for form in forms]
                 for name in ("knn", "probe")}  # fmt: skip
        seeds = set.intersection(*(set(v) for v in found["knn"]))
        return {s: float(stats.kendall(*([v[s] for v in found[name]] for name in ("knn", "probe")))[0]) for s in seeds}

    yield e.test("tau of k-NN and linear probe over the cells", tau, "above", 0.5)


def l5(e):
    rates, patch = e.levels("mask_rate", least=3), e.sweep.runs[0]["patch"]
    forms = [mean(e.of(mixer=mixer, mask_rate=rate) for mixer in TRIO) for rate in rates]
    values = [e.values(form) for form in forms]
    rows = np.array([[v[seed] for v in values] for seed in sorted(set.intersection(*map(set, values)))])
    test = e.test(f"slope of the probe over the mask rate, patch {patch}", 0.1 * slope(rates, forms),
                  "above" if patch > 1 else "below", unit="points per .1 of mask rate")  # fmt: skip
    if test.n > 1:
        rising = test.effect.mean > 0  # Page's ranks count where the slope goes the same way
        p = stats.page(rows if rising else -rows)
        test.p = (p, 1.0) if rising == (patch > 1) else (1.0, p)
    yield test


# ---- D: data and compute; N: numerics -----------------------------------------------------------------------------


def counts(e, name):
    """(numbers of images, levels) of a field whose 0 stands for all, ascending; the number of all is read from a record of a
    run that has all."""
    whole = [run["key"] for run in e.sweep.runs if run.get(name) == 0 and e.sweep.store.has(run["key"])]
    every = e.record(whole[0])["data"]["pool" if name == "images" else "train"] if whole else 10**9
    return zip(*sorted((level or every, level) for level in e.levels(name, least=2)), strict=True)


def d1(e):
    e.levels("images", least=2)
    for name in [name for name in ("images", "labelled") if len(e.levels(name)) > 1]:
        numbers, levels = counts(e, name)
        gaps = [e.of(mixer="convmixer", **{name: level}) - e.of(mixer="igpt", **{name: level}) for level in levels]
        unit = f"{METRICS[e.metric].unit} per doubling"
        yield e.test(f"slope of convmixer − igpt over {name}", slope(np.log2(numbers), gaps), "below", unit=unit,
                     decides=name == "images")  # fmt: skip
        yield e.test(f"convmixer − igpt with the fewest {name}", gaps[0], "above", decides=name == "images")


def d2(e):
    cell = lambda mixer, data: e.of(mixer=mixer, dataset=data, padding="zeros")  # noqa: E731
    sharing = {data: mean(cell(m, data) for m in ("conv", "gconv")) - mean(cell(m, data) for m in ("lc", "full"))
               for data in ("leaves", "leaves_coded")}  # fmt: skip
    yield e.test("sharing where the prior is true", sharing["leaves"], "above")
    yield e.test("sharing where it is false", sharing["leaves_coded"], "below")
    yield e.test("true − false", sharing["leaves"] - sharing["leaves_coded"], "above", decides=False)


def d3(e):
    depths = e.levels("depth", least=2)
    harm = lambda mixer, d: e.of(mixer=mixer, depth=d, skip="both") - e.of(mixer=mixer, depth=d, skip="none")  # noqa: E731
    extra = [harm("igpt", d) - harm("convmixer", d) for d in depths]
    yield e.test("slope of harm to igpt − harm to convmixer", slope(np.log2(depths), extra), "above",
                 unit="points per doubling")  # fmt: skip
    yield e.test("harm to igpt − harm to convmixer", mean(extra), "above", decides=False)


def d4(e):
    """Patch 2 trained for s/4 and s steps against patch 4 for s and 4s, which cost about the same."""
    steps = e.base.get("steps")
    if not steps:
        raise Absent("needs patches 2 and 4 at two budgets of equal FLOP")
    low, high = (mean(e.of(mixer=m, patch=2, steps=s // 4) - e.of(mixer=m, patch=4, steps=s) for m in TRIO)
                 for s in (steps, 4 * steps))  # fmt: skip
    yield e.test("gain of patch 2, four times the FLOP − once", high - low, "above")
    yield e.test("gain of patch 2 at four times the FLOP", high, "above")
    yield e.test("gain of patch 2 at once the FLOP", low, "above", decides=False)
    same = mean(e.of(mixer=m, patch=2) - e.of(mixer=m, patch=4) for m in TRIO)
    yield e.test("gain of patch 2 at equal steps", same, "above", decides=False)


def n1(e):
    for mixer in TRIO:
        plain = e.of(mixer=mixer, precision="fp32")
        change = e.of(mixer=mixer, precision="bf16") - plain
        if e.metric == "probe":
            yield e.test(f"{mixer}, bf16 − fp32", change, "within", 0.5)
        else:
            yield e.test(f"{mixer}, bf16 − fp32", e.relative(change, plain), "within", 1.0, unit="% of the loss")
