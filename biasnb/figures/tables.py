"""Tables from records as pandas frames with the numbers of the paper, written as Markdown, CSV and LaTeX."""

import re
import tomllib
from itertools import combinations, product

import numpy as np
import pandas as pd

from ..config import fields_of, nearest
from ..evidence.stats import AXES, mean_interval
from ..operators import MIXERS
from ..records import places
from ..records.files import StoreError, write_atomic
from ..records.sweep import PROBED, pixel_accuracy, with_columns
from .effects import DIGITS, EFFECT_COLUMNS, POINTS, Absent, effect_table
from .lines import NAMES, depths_of, done_runs, level_name, of_first, percent
from .style import BASELINES, LABELS, mixers

COUNTED = "mean ± half-width of the 95 % interval (n seeds)"


def plus_minus(values, digits=None):
    """Return 'mean ± half-width (n)' of the 95 % interval, 'value (1)' for one value, or a dash for none. Numbers have `digits`
    decimals, or by default three significant digits (the half-width two)."""
    mean, half, n = mean_interval(values)
    if not n:
        return "—"
    of_mean, of_half = (".3g", ".2g") if digits is None else (f".{digits}f", f".{digits}f")
    return f"{mean:{of_mean}}" + (f" ± {half:{of_half}}" if n > 1 else "") + f" ({n})"


def number(value, digits):
    """Format a number that is not a mean over seeds; a dash for NaN."""
    return "—" if pd.isna(value) else f"{value:.{digits}f}"


def tidy(rows):
    """Return rows as a frame with empty cells for missing columns; integers stay integers."""
    return pd.DataFrame(rows, dtype=object).fillna("")


def by_network(sweep):
    """Return [(columns that identify a row, its runs)], one per network and level, in the order of the requests."""
    groups = []
    for (mixer, *levels), runs in sweep.frame().groupby(["mixer", *sweep.factors()], sort=False, dropna=False):
        names = {name: level_name(name, level) for name, level in zip(sweep.factors(), levels, strict=True)}
        groups.append(({"network": LABELS[mixer], **names}, runs))
    return groups


# ---- tables ---------------------------------------------------------------------------------------------------------


def summary(sweep):
    """Return one row per network and level: mean ± 95 % interval over n seeds, baselines for the same data and masks, and the
    numbers of diverged, failed and missing runs. Columns without values are left out."""
    rows = []
    for names, runs in by_network(sweep):
        wanted = ("psnr", "loss", "probe", "probe_best", "init_probe", "knn", "accuracy", "context_coverage", "bits_per_pixel")
        done = with_columns(runs[runs.status == "done"], *wanted)
        bert = "bert" in set(runs.pretext)
        rows.append(
            {
                **names,
                "masked PSNR, dB" if bert else "PSNR, dB": plus_minus(done.psnr, 2),
                "neighbour mean, dB": number(runs.baseline_psnr.iloc[0], 2) if bert else "",
                "loss": plus_minus(done.loss, 3),
                "bits per pixel": plus_minus(done.bits_per_pixel, 3),
                "accuracy, %": plus_minus(100 * done.accuracy, 1),
                "probe, %": plus_minus(100 * done.probe, 1),
                "probe, best layer, %": plus_minus(100 * done.probe_best, 1),
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
    """Return one row per metric and network or untrained baseline, one column per depth: mean ± 95 % interval over n seeds."""
    done, bert, rows = percent(done_runs(sweep)), sweep.runs[0]["pretext"] == "bert", []
    baseline = sweep.baseline()
    pixels = 100 * pixel_accuracy(baseline) if baseline else np.nan
    psnr = {words: baseline and baseline["psnr"][name] for name, words in BASELINES.items()} if bert else {}
    for column, metric, digits, untrained in (
        ("psnr", "masked PSNR, dB" if bert else "PSNR, dB", 2, psnr),
        ("probe", "probe, %", 1, {"raw pixels": pixels}),
        ("init_probe", "probe at random init, %", 1, {}),
    ):
        for mixer in mixers(sweep):
            values = done[done.mixer == mixer].set_index("depth")[column].dropna()
            cells = {f"depth {depth}": plus_minus(values[values.index == depth], digits) for depth in depths_of(sweep)}
            rows.append({"network": LABELS[mixer], "metric": metric, **cells})
        for name, value in untrained.items():
            cells = {f"depth {depth}": number(value, digits) for depth in depths_of(sweep)}
            rows.append({"network": name, "metric": metric, **cells})
    return tidy(rows)


def differences(sweep):
    """Return differences between every two networks at the same depth, paired by seed: mean ± 95 % interval over n pairs."""
    rows, done = [], done_runs(sweep).set_index("seed")
    for (other, mixer), depth in product(combinations(mixers(sweep), 2), depths_of(sweep)):
        one, base = (done[(done.mixer == name) & (done.depth == depth)] for name in (mixer, other))
        psnr, probe = one.psnr - base.psnr, 100 * (one.probe - base.probe)
        rows.append({"difference": f"{LABELS[mixer]} − {LABELS[other]}", "depth": depth, "masked PSNR, dB": plus_minus(psnr, 2),
                     "probe, points": plus_minus(probe, 1), "n": int(probe.notna().sum())})  # fmt: skip
    return tidy(rows)


def cost(sweep):
    """Return parameters by part, FLOP required and FLOP computed in a forward pass, and speed, per network and level."""
    rows = []
    for row, runs in by_network(sweep):
        done = runs[runs.status == "done"]
        if len(done):
            for part in ("mixing", "channel", "embedding"):
                row[f"{part} parameters"] = int(done[f"parameters_{part}"].iloc[0])
            row["MFLOP per image"] = round(done.flop_per_image.iloc[0] / 1e6, 2)
            row["MFLOP computed"] = round(done.flop_per_image_dense.iloc[0] / 1e6, 2)
            row["images/s in training"] = round(done.images_per_second.median())
        rows.append({**row, "n": len(done)})
    return tidy(rows)


def effects(sweep):
    """Return effects of the cube and their controls: mean ± half-width of the 95 % interval (n seeds); empty without a cube."""
    try:
        found = effect_table(sweep)
    except Absent:
        found = pd.DataFrame(columns=EFFECT_COLUMNS)
    rows = {}
    for test in found.itertuples():
        digits, label = DIGITS[test.metric], f"{NAMES[test.metric]}, {POINTS[test.metric]}"
        half = f" ± {test.high - test.mean:.{digits}f}" if test.n > 1 else ""
        cells = rows.setdefault(test.effect, {"effect": test.effect})
        cells[label] = f"{test.mean:.{digits}f}{half} ({test.n})" if test.n else "—"
    return tidy(list(rows.values()))


MEASURES = {  # column -> its value from the measures of a network
    "roll error, last layer": lambda found: found["roll_error"][-1],
    "Lie error, last layer": lambda found: (found["lie_error"] or [np.nan])[-1],
    "receptive field, 50 % side, px": lambda found: found["receptive_field"]["side50"],
    "receptive field, 99 % side, px": lambda found: found["receptive_field"]["side99"],
    "mixing distance, layer 1, tokens": lambda found: np.mean(found["mixing_distance"][0]),
    "mixing distance, last layer, tokens": lambda found: np.mean(found["mixing_distance"][-1]),
}


def measures(sweep):
    """Return measures of every network with the first data set and padding, at random init → trained, means over seeds."""
    rows, records, inits = [], of_first(sweep), sweep.inits()
    for mixer in mixers(sweep):
        own = [record for record in records if record["config"]["mixer"] == mixer]
        traits = [getattr(MIXERS[mixer], name) for name in AXES] if mixer in MIXERS else []
        row = {"network": LABELS[mixer], "local, shared, dynamic": "".join("●" if has else "○" for has in traits)}
        for name, value in MEASURES.items():
            start = [value(inits[record["init"]]["measures"]) for record in own if record["init"] in inits]
            end = [value(record["measures"]) for record in own]
            row[name] = f"{plus_minus(start)} → {plus_minus(end)}" if own else "—"
        histories = [record["history"] for record in own if record["history"]]
        growth = [history[-1]["weight_norm"] / history[0]["weight_norm"] for history in histories]
        row["growth of the weights' norm"] = f"{np.mean(growth):.2f}x" if growth else ""
        rows.append({**row, "n": len(own)})
    return tidy(rows)


TABLES = {
    "summary": summary,
    "depths": depths,
    "differences": differences,
    "cost": cost,
    "effects": effects,
    "measures": measures,
}


# ---- the paper's numbers ------------------------------------------------------------------------------------------------

ENTRY = {"table": str, "row": dict, "value": str, "source": str}
KINDS = {str: "text", dict: 'columns of the table, e.g. { network = "attention (igpt)" }'}


def reported():
    """Return [(where, entry)], the numbers of the paper that a reader entered in results/reported.toml. Raises StoreError."""
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
        check_table(f"{where}: table", entry["table"])
    return found


def check_table(where, table):
    """Raise StoreError, suggesting the most similar name, unless `table` is SWEEP-NAME for a notebook's sweep and TABLES."""
    notebooks = sorted(path.stem for path in places.notebooks().glob("*.ipynb"))
    if not (table.startswith(tuple(f"{name}-" for name in notebooks)) and table.endswith(tuple(f"-{name}" for name in TABLES))):
        known(where, [table], [f"{notebook}-{name}" for notebook in notebooks for name in TABLES])


def known(what, given, names):
    """Raise StoreError, suggesting the most similar name, for a name that is not among `names`."""
    for name in given:
        if name not in names:
            raise StoreError(f"{what}: {name!r} is not known; did you mean {nearest(name, names)!r}?")


def paper(table, name):
    """Return 'value (source)' for each row of the table `name`, a dash without an entry. Entries with a level that this profile
    does not vary are ignored. Raises StoreError if the column or row of an entry cannot exist, or if it fits several rows."""
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


# ---- pages ----------------------------------------------------------------------------------------------------------


def make(name, sweep):
    """Return a table of a sweep by its name, with numbers of the paper as its last column. Raises StoreError for a name that is
    not in TABLES, a broken record or a wrong entry."""
    known("table", [name], TABLES)
    table = TABLES[name](sweep)
    return table.assign(paper=paper(table, f"{sweep.name}-{name}"))


def heading(sweep, table):
    """Return a line that describes the runs and, if the table shows them, means over seeds and the protocol of the probe."""
    words = table.astype(str)
    counted = words.stack().str.contains(r"\d \(\d+\)$").any()
    probed = any(PROBED.search(text) for text in (*table.columns, *words.get("metric", ())))
    protocol = sweep.protocol() if probed else ""
    return sweep.caption() + (f"; {COUNTED}" if counted else "") + (f". {protocol}" if protocol else "")


class Latex(dict):
    """Map a character to LaTeX in ASCII."""

    def __missing__(self, code):
        return chr(code) if code < 128 else f"\\symbol{{{code}}}"


LATEX = Latex(str.maketrans({
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    "±": r"$\pm$", "−": "$-$", "●": r"$\bullet$", "○": r"$\circ$", "→": r"$\to$", "×": r"$\times$", "·": r"$\cdot$",
    "°": r"$^\circ$", "²": "$^2$", "τ": r"$\tau$", "—": "---",
}))  # fmt: skip


def latex_text(value):
    """Return a cell in LaTeX, in ASCII and with a minus sign before negative numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", str(value)).translate(LATEX)


def sides(table):
    """Return 'right' for each column of numbers and 'left' for the others."""
    return ["right" if re.fullmatch(r"[-\d.± ()—]*", "".join(map(str, table[column]))) else "left" for column in table]


def latex(table, caption, label):
    """Return the table in LaTeX with the rules of booktabs, in ASCII."""
    rows = [" & ".join(map(latex_text, row)) + r" \\" for row in (table.columns, *table.to_numpy())]
    columns = "".join(side[0] for side in sides(table))
    return "\n".join([
        r"% needs \usepackage{booktabs}", r"\begin{table}", rf"\caption{{{latex_text(caption)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', label)}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0],
        r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def markdown(sweep, table):
    """Return the heading and the table as Markdown."""
    rows = table.to_markdown(index=False, disable_numparse=True, colalign=sides(table))
    return f"{heading(sweep, table)}\n\n{rows}\n"


def write_tables(sweep, folder):
    """Write the tables that a sweep names to a folder as Markdown, CSV and LaTeX. Returns the paths. Raises StoreError for a
    name that is not in TABLES, a broken record or a wrong entry."""
    paths = []
    for name in sweep.content.get("tables", ()):
        table, stem = make(name, sweep), f"{sweep.name}-{name}"
        csv, tex = table.to_csv(index=False, lineterminator="\n"), latex(table, heading(sweep, table), stem)
        paths += write(folder / stem, {".md": markdown(sweep, table), ".csv": csv, ".tex": tex})
    return paths


def write(stem, contents):
    """Write {suffix: content} to the files `stem` + suffix. Returns the paths."""
    paths = [stem.with_name(stem.name + suffix) for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomic(path, content)
    return paths
