"""Tables from records: pandas frames, written as Markdown, CSV and LaTeX. Imports no torch."""

import re
import tomllib
from itertools import combinations, product

import numpy as np
import pandas as pd

from ..config import fields_of, nearest
from ..evidence.stats import EFFECTS, mean_interval
from ..records import places
from ..records.files import StoreError, write_atomic
from ..records.sweep import with_columns
from .studies import cube_effects, shown, traits
from .style import BASELINES, LABELS, depths_of, mixers

COUNTED = "mean ± half-width of the 95 % interval (n seeds)"


def plus_minus(values, digits):
    """'mean ± half-width (n)' of the 95 % interval; 'value (1)' for one value, a dash for none."""
    mean, half, n = mean_interval(values)
    if not n:
        return "—"
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if n > 1 else "") + f" ({n})"


def number(value, digits):
    """A number that is not a mean over seeds; a dash for none."""
    return "—" if pd.isna(value) else f"{value:.{digits}f}"


def significant(values):
    """`plus_minus` for values of any size, by significant digits."""
    mean, half, n = mean_interval(values)
    return (f"{mean:.3g} ± {half:.2g}" if n > 1 else f"{mean:.3g}") + f" ({n})"


def by_network(sweep):
    """Groups of a sweep's frame, (mixer, *factors) -> rows, in the order they were asked for."""
    return sweep.frame().groupby(["mixer", *sweep.factors()], sort=False, dropna=False)


def baselines(sweep):
    """Rows of the untrained baselines; none if their record is missing."""
    baseline = sweep.baseline()
    return (
        [{"network": BASELINES[name], "masked PSNR, dB": f"{value:.2f}"} for name, value in baseline["psnr"].items()]
        if baseline
        else []
    )


def summary(sweep):
    """One row per network and level: mean ± 95 % interval over n seeds beside the baselines of the same data and masks;
    diverged, failed and missing runs are counted. What no run has is left out."""
    rows = []
    for (mixer, *levels), runs in by_network(sweep):
        wanted = ("psnr", "loss", "probe", "init_probe", "knn", "accuracy", "context_coverage", "bits_per_pixel")
        done = with_columns(runs[runs.status == "done"], *wanted)
        bert = "bert" in set(runs.pretext)
        rows.append(
            {
                "network": LABELS[mixer],
                **{name: shown(name, level) for name, level in zip(sweep.factors(), levels, strict=True)},
                "masked PSNR, dB" if bert else "PSNR, dB": plus_minus(done.psnr, 2),
                "neighbour mean, dB": number(runs.baseline_psnr.iloc[0], 2) if bert else "",
                "loss": plus_minus(done.loss, 3),
                "bits per pixel": plus_minus(done.bits_per_pixel, 3),
                "accuracy, %": plus_minus(100 * done.accuracy, 1),
                "probe, %": plus_minus(100 * done.probe, 1),
                "probe at random init, %": plus_minus(100 * done.init_probe, 1),
                "raw pixels, %": number(100 * runs.baseline_probe.iloc[0], 1),
                "k-NN, %": plus_minus(100 * done.knn, 1),
                "context read, %": plus_minus(100 * done.context_coverage, 1) if runs.pretext.iloc[0] == "ar" else "",
                "n": len(done),
                **{status: int((runs.status == status).sum()) for status in ("diverged", "failed", "missing")},
            }
        )
    table = tidy(rows)
    return table[[name for name in table if set(table[name]) - {"", "—"}]]


def depths(sweep):
    """One row per metric and network, one column per depth: mean ± 95 % interval over n seeds, with the untrained baselines."""
    runs, baseline, levels = with_columns(sweep.frame(), "psnr", "probe", "init_probe"), sweep.baseline(), depths_of(sweep)
    done, bert = runs[runs.status == "done"], sweep.runs[0]["pretext"] == "bert"
    untrained = {"psnr": {BASELINES[name]: baseline["psnr"][name] if baseline else np.nan for name in BASELINES if bert},
                 "probe": {"raw pixels": 100 * baseline["pixel_probe"]["test"] if baseline else np.nan}}  # fmt: skip
    rows = []
    for column, metric, scale, digits in (
        ("psnr", "masked PSNR, dB" if bert else "PSNR, dB", 1, 2),
        ("probe", "probe, %", 100, 1),
        ("init_probe", "probe at random init, %", 100, 1),
    ):
        for mixer in mixers(sweep):
            parts = (done[(done.mixer == mixer) & (done.depth == depth)][column].dropna() for depth in levels)
            rows.append((LABELS[mixer], metric, [plus_minus(scale * part, digits) for part in parts]))
        rows += [(name, metric, [number(value, digits)] * len(levels)) for name, value in untrained.get(column, {}).items()]
    heads = [f"depth {depth}" for depth in levels]
    return tidy([{"network": name, "metric": metric, **dict(zip(heads, cells, strict=True))} for name, metric, cells in rows])


def differences(sweep):
    """Paired by seed: every two networks at the same depth, mean ± 95 % interval of the difference over n pairs."""
    done = with_columns(sweep.frame(), "psnr", "probe")
    done = done[done.status == "done"]
    rows = []
    for other, mixer in combinations(mixers(sweep), 2):
        for depth in depths_of(sweep):
            one, base = (done[(done.mixer == m) & (done.depth == depth)].set_index("seed") for m in (mixer, other))
            psnr, probe = one.psnr - base.psnr, 100 * (one.probe - base.probe)
            rows.append(
                {
                    "difference": f"{LABELS[mixer]} − {LABELS[other]}",
                    "depth": depth,
                    "masked PSNR, dB": plus_minus(psnr, 2),
                    "probe, points": plus_minus(probe, 1),
                    "n": int(probe.notna().sum()),
                }
            )
    return tidy(rows)


def cost(sweep):
    """Parameters by part, FLOP of a forward pass and measured speed, per network and level."""
    rows = []
    for (mixer, *levels), runs in by_network(sweep):
        done = runs[runs.status == "done"]
        row = {"network": LABELS[mixer]}
        row |= {name: shown(name, level) for name, level in zip(sweep.factors(), levels, strict=True)}
        if len(done):
            parts = ("mixing", "channel", "embedding")
            row |= {f"{part} parameters": int(done[f"parameters_{part}"].iloc[0]) for part in parts}
            row["MFLOP per image"] = round(done.flop_per_image.iloc[0] / 1e6, 2)
            row["images/s in training"] = round(done.images_per_second.median())
        rows.append({**row, "n": len(done)})
    return tidy(rows)


def effects(sweep):
    """Main effects and interactions of the cube, paired by seed: mean ± 95 % interval over n seeds."""
    found = cube_effects(sweep)
    rows = []
    for task, effect in product(dict.fromkeys(run["pretext"] for run in sweep.runs), EFFECTS.values()):
        part = found[(found.pretext == task) & (found.effect == effect)]
        psnr, probe = (part[part.metric == metric].value for metric in ("psnr", "probe"))
        rows.append({"pretext": task, "effect": effect, "PSNR, dB": plus_minus(psnr, 2), "probe, points": plus_minus(probe, 1),
                     "n": len(probe)})  # fmt: skip
    return tidy(rows)


def measures(sweep):
    """Measures of every network of the first data set, at random init → after training, means over seeds."""
    rows, first = [], sweep.runs[0]["dataset"]
    found = {run["mixer"]: [] for run in sweep.runs if run["dataset"] == first}
    growth = {mixer: [] for mixer in found}
    for record in sweep.records():
        if record["config"]["dataset"] == first:
            found[record["config"]["mixer"]].append((record["init_measures"], record["measures"]))
            growth[record["config"]["mixer"]].append(record["history"])
    wanted = {
        "roll error, last layer": lambda m: m["roll_error"][-1],
        "Lie error, last layer": lambda m: (m["lie_error"] or [np.nan])[-1],
        "receptive field, 50 % side, px": lambda m: m["receptive_field"]["side50"],
        "receptive field, 99 % side, px": lambda m: m["receptive_field"]["side99"],
        "mixing distance, layer 1, tokens": lambda m: np.mean(m["mixing_distance"][0]),
        "mixing distance, last layer, tokens": lambda m: np.mean(m["mixing_distance"][-1]),
    }
    for mixer, pairs in found.items():
        row = {"network": LABELS[mixer], "local, shared, dynamic": traits(mixer)}
        for name, value in wanted.items():
            row[name] = " → ".join(significant([value(pair[i]) for pair in pairs]) for i in (0, 1)) if pairs else "—"
        norms = [history[-1]["weight_norm"] / history[0]["weight_norm"] for history in growth[mixer] if history]
        rows.append({**row, "growth of the weights' norm": f"{np.mean(norms):.2f}x" if norms else "", "n": len(pairs)})
    return tidy(rows)


def reconstruction(sweep):
    """PSNR of the pictured networks beside the three baselines."""
    runs = with_columns(sweep.frame(), "psnr")
    rows = [{"network": LABELS[r.mixer], "depth": r.depth, "masked PSNR, dB": plus_minus([r.psnr], 2)}
            for r in runs.itertuples()]  # fmt: skip
    return tidy(rows + baselines(sweep))


def tidy(rows):
    """Rows as a frame, empty where a row has no such column; whole numbers stay whole."""
    return pd.DataFrame(rows, dtype=object).fillna("")


SUMMARY = {"summary": summary}
TABLES = {
    "10_one_run": {"run": summary},
    "20_trio": {"trio": summary, "depths": depths, "differences": differences, "cost": cost},
    "21_cube": {"summary": summary, "effect_sizes": effects, "cost": cost},
    **dict.fromkeys(("22_representation", "23_pretext", "24_geometry", "26_permutation", "27_sample_size",
                     "28_position", "29_precision"), SUMMARY),
    "25_skip": {"summary": summary, "cost": cost},
    "30_symmetry": {"summary": summary, "measures": measures},
    "31_receptive_field": {"measures": measures},
    "40_reconstructions": {"psnr": reconstruction},
}  # fmt: skip


# ---- the paper's numbers ------------------------------------------------------------------------------------------------

ENTRY = {"table": str, "row": dict, "value": str, "source": str}
KINDS = {str: "text", dict: 'columns of the table, e.g. { network = "iGPT (attention)" }'}


def reported():
    """[(where, entry)]: the paper's numbers that a reader has entered in results/reported.toml. Raises StoreError."""
    path = places.results() / "reported.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise StoreError(f"{path}: not readable as TOML ({error})") from None
    known(f"{path}: key", content, ("reported",))
    found = content.get("reported", [])
    if not (isinstance(found, list) and all(isinstance(entry, dict) for entry in found)):
        raise StoreError(f"{path}: reported: not a list of entries; begin each with [[reported]]")
    found = [(f"{path}: entry {i}", entry) for i, entry in enumerate(found, 1)]
    for where, entry in found:
        known(f"{where}: key", entry, ENTRY)
        for name, kind in ENTRY.items():
            if not (isinstance(entry.get(name), kind) and entry[name]):
                raise StoreError(f"{where}: {name}: {entry.get(name)!r}, expected {KINDS[kind]}")
        names = {f"{experiment}-{name}": (f"{experiment}-", f"-{name}") for experiment in TABLES for name in TABLES[experiment]}
        if not any(entry["table"].startswith(start) and entry["table"].endswith(stop) for start, stop in names.values()):
            known(f"{where}: table", [entry["table"]], names)
    return found


def known(what, given, names):
    """Refuse what is not among the names. Raises StoreError naming the nearest."""
    for name in given:
        if name not in names:
            raise StoreError(f"{what}: {name!r} is not known; did you mean {nearest(name, names)!r}?")


def paper(table, name):
    """'value (source)' for each row of the table of this file name, a dash where nothing is entered. A level that this profile
    does not vary is passed over. Raises StoreError for a column or row that no profile can have, or that is not one row."""
    cells = [[] for _ in range(len(table))]
    for where, entry in reported():
        if entry["table"] != name:
            continue
        levels = {column for column in entry["row"] if column in fields_of()}
        known(f"{where}: column", entry["row"].keys() - levels, list(table))
        for column in entry["row"].keys() - levels:
            known(f"{where}: {column}", [str(entry["row"][column])], table[column].astype(str).tolist())
        if levels - set(table):
            continue
        at = np.flatnonzero(np.all([table[column].astype(str) == str(value) for column, value in entry["row"].items()], axis=0))
        if len(at) > 1:
            raise StoreError(f"{where}: row: fits {len(at)} rows of {name}; name more of its columns {list(table)}")
        for i in at:
            cells[i].append(f"{entry['value']} ({entry['source']})")
    return ["; ".join(cell) or "—" for cell in cells]


# ---- pages --------------------------------------------------------------------------------------------------------------


def make(name, sweep):
    """A table of a sweep by its name, with what is entered of the paper as its last column. Raises StoreError."""
    table = TABLES[sweep.content["notebook"]][name](sweep)
    return table.assign(paper=paper(table, f"{sweep.name}-{name}"))


def heading(sweep, table):
    """What was run, and how the cells read if they are means over seeds."""
    counted = table.astype(str).stack().str.contains(r"\d \(\d+\)$").any()
    return sweep.caption() + (f"; {COUNTED}" if counted else "")


class Latex(dict):
    """Character -> LaTeX in ASCII."""

    def __missing__(self, code):
        return chr(code) if code < 128 else f"\\symbol{{{code}}}"


LATEX = Latex(str.maketrans({
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    "±": r"$\pm$", "−": "$-$", "●": r"$\bullet$", "○": r"$\circ$", "→": r"$\to$", "×": r"$\times$", "·": r"$\cdot$",
    "°": r"$^\circ$", "²": "$^2$", "τ": r"$\tau$", "—": "---",
}))  # fmt: skip


def sides(table):
    """'right' for each column of numbers, 'left' for the others."""
    return ["right" if re.fullmatch(r"[-\d.± ()—]*", "".join(map(str, table[column]))) else "left" for column in table]


def latex(table, caption, label):
    """The table in LaTeX with the rules of booktabs, in ASCII."""
    write = lambda value: re.sub(r"(?<![\w-])-(?=\d)", "−", str(value)).translate(LATEX)  # noqa: E731
    rows = [" & ".join(map(write, row)) + r" \\" for row in (table.columns, *table.to_numpy())]
    columns = "".join(side[0] for side in sides(table))
    return "\n".join([
        r"% needs \usepackage{booktabs}", r"\begin{table}", rf"\caption{{{write(caption)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', label)}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0],
        r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def write(sweep, folder):
    """Write every table of a sweep as Markdown, CSV and LaTeX to a folder. Returns the paths."""
    paths = []
    for name in TABLES.get(sweep.content["notebook"], {}):
        table, stem = make(name, sweep), f"{sweep.name}-{name}"
        words = heading(sweep, table)
        for suffix, content in (
            (".md", f"{words}\n\n{table.to_markdown(index=False, disable_numparse=True, colalign=sides(table))}\n"),
            (".csv", table.to_csv(index=False, lineterminator="\n")),
            (".tex", latex(table, words, stem)),
        ):
            paths.append(folder / f"{stem}{suffix}")
            write_atomic(paths[-1], content)
    return paths
