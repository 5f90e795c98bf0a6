"""Line plots of loss, PSNR and probe against step, layer, depth and levels of factors, and the selection of their runs."""

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ..config import CODED
from ..evidence.stats import mean_interval
from ..records.sweep import choices, pixel_accuracy, with_columns
from .style import BASELINES, GREY, KEY, LABELS, canvas, caption, hue, look, mixers, name_ends, plain_log, ranking, short, title

METRICS = {"psnr": "PSNR of hidden pixels, dB", "probe": "linear probe, mean over layers, %"}  # axis labels
NAMES = {"psnr": "PSNR", "probe": "probe"}  # in titles
BASELINE_NAMES = {"psnr": "visible-neighbour mean", "probe": "raw pixels"}
UNITS = {"psnr": "dB", "probe": "%"}
FIELDS = {"skip": "skip connections", "images": "images without labels",
          "labelled": "labelled images", "permute": "permutation", "dataset": "data set", "steps": "steps"}  # fmt: skip
COLUMNS = ["seed", "status", "psnr", "probe", "init_probe", "accuracy"]
DASHES = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 1, "zorder": 1}
START = "networks of one level side by side; dotted: random init; dashes: untrained baselines; "
FEW_LEVELS = 5  # at most this many are named in a title
ONE_SEED = "Not drawn: one seed cannot tell networks from seeds; the table has the numbers."

# ---- the runs that a figure compares ------------------------------------------------------------------------------------


def field_name(name):
    """Return the name of a Config field in figures."""
    return FIELDS.get(name, name.replace("_", " "))


def level_name(field, value):
    """Return the tick label of a level."""
    if pd.isna(value):
        return "—"
    if field in ("images", "labelled") and value == 0:
        return "all"
    words = f"{value:g}" if isinstance(value, int | float) else str(value)
    return f"{words} colours" if field == "colours" else words


def depths_of(sweep):
    """Return the requested depths, ascending."""
    return sorted({run["depth"] for run in sweep.runs})


def done_runs(sweep):
    """Return the frame of the finished runs, with a column for every metric."""
    runs = with_columns(sweep.frame(), "psnr", "probe", "init_probe", "accuracy")
    return runs[runs.status == "done"]


def at_base(sweep, runs, *free):
    """Return the runs that have, or do not read, the base level of every factor except the `free` ones."""
    keep = np.ones(len(runs), bool)
    for name, base in sweep.base().items():
        if name not in free:
            keep &= ((runs[name] == base) | runs[name].isna()).to_numpy()
    return runs[keep]


def percent(runs):
    """Return the runs with probes in % instead of fractions, and PSNR as float."""
    shares = {name: 100 * runs[name] for name in ("probe", "init_probe", "baseline_probe")}
    return runs.assign(psnr=runs.psnr.astype(float), **shares)


def with_values(table):
    """Return the metrics (PSNR, probe) for which the table has values."""
    return [metric for metric in METRICS if table[metric].notna().any()]


def numbers(records, columns, rows):
    """Return a frame with these columns and a row per dict in rows(record), completed by the Config fields of the run."""
    found = []
    for record in records:
        run = {name: value for name, value in record["config"].items() if name in columns}
        found += [run | row for row in rows(record)]
    return pd.DataFrame(found, columns=columns)


def of_first(sweep):
    """Return the records with the data set and padding of the first run."""
    first = {name: sweep.runs[0].get(name) for name in ("dataset", "padding")}
    configs = ((record, record["config"]) for record in sweep.records())
    return [record for record, cfg in configs if all(cfg.get(name, value) == value for name, value in first.items())]


def base_words(sweep, rows, *free):
    """Return the base level of every factor that these rows read, except the `free` ones, e.g. 'depth 2, width 32; '."""
    words = []
    for name, value in sweep.base().items():
        if name not in free and rows[name].notna().any():
            words.append(f"{field_name(name)} {level_name(name, value)}")
    return ", ".join(words) + "; " if words else ""


# ---- lines --------------------------------------------------------------------------------------------------------------


def line(ax, rows, x, y, mixer, shift=0.0, **style):
    """Draw mean and 95 % interval over seeds of column y at each level of column x, and the seeds as dots, shifted horizontally
    by `shift` (octaves on a log axis). Returns the last point (x, y), NaN if there is none."""
    places, means, halves = [], [], []
    for level, part in rows.dropna(subset=[y]).groupby(x):
        place = level * 2**shift if ax.get_xscale() == "log" else level + shift
        mean, half, n = mean_interval(part[y])
        places.append(place)
        means.append(mean)
        halves.append(0 if n < 2 else half)
        if n > 1:
            ax.plot([place] * n, part[y], ".", color=hue(mixer), alpha=0.3, markersize=4, zorder=2)
    ax.errorbar(places, means, halves, capsize=2.5, **{**look(mixer), "linewidth": 1.3, **style})
    return (places[-1], means[-1]) if means else (np.nan, np.nan)


def metric_lines(ax, rows, x, metric, names, shift):
    """Draw a metric over column x: a line per network, `shift` apart, and the untrained baselines, with labels at the ends."""
    ends = []
    for i, mixer in enumerate(names):
        part, moved = rows[rows.mixer == mixer], shift * (i - (len(names) - 1) / 2)
        ends.append((*line(ax, part, x, metric, mixer, moved), LABELS[mixer], hue(mixer)))
        if metric == "probe":
            start = part.dropna(subset=["init_probe"]).groupby(x).init_probe.mean()
            ax.plot(start.index, start, ":_", color=hue(mixer), linewidth=1)
    compared = rows[rows.pretext == "bert"] if metric == "psnr" else rows
    baseline = compared.dropna(subset=[f"baseline_{metric}"]).groupby(x)[f"baseline_{metric}"].first()
    if len(baseline):
        ax.plot(baseline.index, baseline, marker="_", markersize=14, **DASHES)
        ends.append((baseline.index[-1], baseline.iloc[-1], BASELINE_NAMES[metric], GREY))
    ax.set_ylabel(METRICS[metric])
    name_ends(ax, ends)


def means_of(table, metric):
    """Return {mixer: mean over its rows} for the mixers that have values."""
    return table.astype({metric: float}).dropna(subset=[metric]).groupby("mixer", sort=False)[metric].mean().to_dict()


def depth_panels(sweep, table, draw, height, xlabel, ylabel):
    """Return a figure of this height with a panel per depth, and [(axes, ends of lines)]. draw(ax, mixer, rows of the mixer)
    draws a line and returns its last point."""
    depths = depths_of(sweep)
    figure, (axes,) = canvas(1.6 + 3.9 * len(depths), height, 1, len(depths), sharey=True)
    ends = []
    for depth, ax in zip(depths, axes, strict=True):
        part, found = table[table.depth == depth], []
        for mixer in mixers(sweep):
            found.append((*draw(ax, mixer, part[part.mixer == mixer]), LABELS[mixer], hue(mixer)))
        ends.append(found)
        ax.set_title(f"depth {depth}")
        ax.set_xlabel(xlabel)
    axes[0].set_ylabel(ylabel)
    return figure, list(zip(axes, ends, strict=True))


# ---- against step and layer -----------------------------------------------------------------------------------------


def learning_curves(sweep):
    """Draw the training loss against step, one panel per depth and one line per seed."""

    def history(record):
        return record["history"]

    def draw(ax, mixer, rows):
        last = (np.nan, np.nan)
        for _, run in rows.groupby("seed"):
            ax.plot(run.step, run.loss, color=hue(mixer), alpha=0.7, linewidth=1.2)
            last = run.step.iloc[-1], run.loss.iloc[-1]
        return last

    table = numbers(sweep.records(), ["mixer", "depth", "seed", "step", "loss"], history)
    if table.empty:
        return None, table
    unit = "nats per pixel" if sweep.runs[0].get("target") == "palette" else "squared error / variance"
    figure, panels = depth_panels(sweep, table, draw, 4.0, "training step", f"loss on hidden tokens,\n{unit}")
    for ax, _ in panels:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    for ax, ends in panels:
        name_ends(ax, ends)
    title(figure, f"Loss at the last step: {ranking(means_of(table[table.step == table.step.max()], 'loss'), '', 3)}")
    caption(figure, sweep, "each point averages the steps since the last; ", spread="a line for each of")
    return figure, table


def psnr_by_step(sweep):
    """Draw the PSNR of hidden test pixels against training steps and the untrained baselines, one panel per depth."""
    records = sweep.records()
    known = [record for record in records if record.get("psnr_by_step")]
    table = numbers(known, ["mixer", "depth", "seed", "step", "psnr"], lambda record: record["psnr_by_step"])
    if table.empty:
        return "Not drawn: no record has the PSNR by step; records made before it was kept lack it.", table

    def draw(ax, mixer, rows):
        ax.set_xscale("log", base=2)
        return line(ax, rows, "step", "psnr", mixer)

    figure, panels = depth_panels(sweep, table, draw, 4.3, "training steps", METRICS["psnr"])
    steps, baseline = sorted(set(table.step)), sweep.baseline() if sweep.runs[0]["pretext"] == "bert" else None
    levels = {BASELINES[name]: value for name, value in baseline["psnr"].items()} if baseline else {}
    for ax, ends in panels:
        ax.set_xticks(steps, [str(step) for step in steps])
        ax.minorticks_off()
        for value in levels.values():
            ax.axhline(value, **DASHES)
        name_ends(ax, [*ends, *((steps[-1], value, words, GREY) for words, value in levels.items())])
    orders = [sorted(means, key=means.get)[::-1] for means in (means_of(table[table.step == s], "psnr") for s in steps)]
    first, last = (" > ".join(map(short, order)) for order in (orders[0], orders[-1]))
    since = steps[max((i + 1 for i, order in enumerate(orders) if order != orders[-1]), default=0)]
    title(
        figure,
        f"PSNR at every budget: {last}" if since == steps[0] else f"PSNR at {steps[0]} steps: {first}; from {since} on: {last}",
    )
    left = len(records) - len(known)
    caption(figure, sweep, f"{left} of {len(records)} runs have no PSNR by step and are left out; " if left else "")
    return figure, table


def probe_by_layer(sweep):
    """Draw the accuracy of the linear probe per layer with the penalties of its arm, trained and at random init, by depth."""
    records, inits = sweep.records(), sweep.inits()
    chosen = choices(records, inits)

    def accuracies(record):
        choice, at_init = chosen[record["key"]]
        by_network = {"trained": choice.by_layer(record["probe"])}
        if at_init:
            by_network["random init"] = at_init.by_layer(inits[record["init"]]["probe"])
        rows = []
        for network, values in by_network.items():
            rows += [{"network": network, "layer": layer, "accuracy": 100 * value} for layer, value in enumerate(values)]
        return rows

    def draw(ax, mixer, rows):
        shift = 0.02 * rows.layer.max() * mixers(sweep).index(mixer)
        start = rows[rows.network == "random init"].groupby("layer").accuracy.mean()
        ax.plot(start.index, start, ":", color=hue(mixer), linewidth=1)
        return line(ax, rows[rows.network == "trained"], "layer", "accuracy", mixer, shift)

    table = numbers(records, ["mixer", "depth", "seed", "network", "layer", "accuracy"], accuracies)
    if table.empty:
        return None, table
    figure, panels = depth_panels(sweep, table, draw, 4.3, "layer (0: embedding)", "linear probe, test accuracy, %")
    baseline = sweep.baseline()
    pixels = 100 * pixel_accuracy(baseline) if baseline else np.nan
    for ax, ends in panels:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.axhline(pixels, **DASHES)
        name_ends(ax, [*ends, (ax.get_xlim()[1], pixels, BASELINE_NAMES["probe"], GREY)])
    deepest = table.depth.max()
    best = {record["config"]["mixer"]: chosen[record["key"]][0] for record in records if record["config"]["depth"] == deepest}
    layers = "; ".join(f"{short(mixer)} {choice.layer}" for mixer, choice in best.items() if choice)
    title(figure, f"Best layer at depth {deepest}, by validation accuracy: {layers}")
    words = "best layer: the earliest within half a point of the highest validation accuracy, averaged over seeds; "
    caption(figure, sweep, words + "solid: trained; dotted: random init; dashes: raw pixels; ")
    return figure, table


# ---- against depth --------------------------------------------------------------------------------------------------


def by_depth(sweep):
    """Draw PSNR and probe against depth, trained and (probe only) at random init, and the untrained baselines."""
    runs = with_columns(sweep.frame(), "psnr", "probe", "init_probe")
    table = runs[["mixer", "depth", "seed", "status", "psnr", "probe", "init_probe"]]
    rows, depths = percent(runs), depths_of(sweep)
    metrics = with_values(rows)
    if not metrics:
        return None, table[:0]
    figure, (axes,) = canvas(1.0 + 5.0 * len(metrics), 4.3, 1, len(metrics))
    for ax, metric in zip(axes, metrics, strict=True):
        ax.set_xscale("log", base=2)
        ax.set_xticks(depths, [str(depth) for depth in depths])
        ax.minorticks_off()
        ax.set(xlim=(depths[0] / 1.25, depths[-1] * 1.25), xlabel="depth, blocks")
        metric_lines(ax, rows, "depth", metric, mixers(sweep), 0.05)
    deepest = rows[rows.depth == max(depths)]
    words = [ranking(means_of(deepest, metric), UNITS[metric]) for metric in metrics]
    title(figure, f"Depth {max(depths)}: {'; probe: '.join(words)}")
    caption(figure, sweep, START)
    return figure, table


# ---- against the levels of a study ----------------------------------------------------------------------------------


def levels(sweep, only=()):
    """Draw PSNR and probe at every requested combination of factors, or at the levels of each factor in `only` with all others
    at their base level. Sweeps with a single seed are not drawn."""
    runs, free = done_runs(sweep), [(name,) for name in only if name in sweep.factors()] if only else [tuple(sweep.factors())]
    table = runs[["mixer", *sweep.factors(), *COLUMNS]]
    panels = []
    for factors in free:
        at = {name: level for name, level in sweep.base().items() if name not in factors}
        asked = [run for run in sweep.runs if all(run.get(name, level) == level for name, level in at.items())]
        if len(factors) == 1:
            asked.sort(key=lambda run: numeric(run.get(factors[0])))
        names = list(dict.fromkeys(combination(run, factors) for run in asked))
        rows = percent(at_base(sweep, runs, *factors))
        rows = rows.assign(x=[names.index(combination(row, factors)) for row in rows.to_dict("records")])
        panels += [(factors, names, rows, metric) for metric in with_values(rows) if len(names) > 1]
    if not panels:
        return None, table[:0]
    if max(rows.groupby(["mixer", "x"]).seed.nunique().max() for _, _, rows, _ in panels) < 2:
        return ONE_SEED, table
    widths = [3.4 + 0.9 * len(names) for _, names, _, _ in panels]
    figure, (axes,) = canvas(min(16, sum(widths)), 4.5, 1, len(panels), width_ratios=widths)
    for ax, (factors, names, rows, metric) in zip(axes, panels, strict=True):
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.4, len(names) - 0.6)
        metric_lines(ax, rows, "x", metric, mixers(sweep), 0.3 / len(mixers(sweep)))
        ax.set_xlabel(", ".join(map(field_name, factors)))
    best = [best_by_level(rows, metric, names) for factors, names, rows, metric in panels if factors == panels[0][0]]
    title(figure, f"Highest {'; highest '.join(best)}")
    words = "PSNR compares operators within a pretext; " if "pretext" in sweep.factors() else ""
    caption(figure, sweep, words + (base_words(sweep, runs, *only) if only else "") + f"{START}{KEY}; ")
    return figure, table


def combination(run, factors):
    """Return the tick label of the levels of a run, without the factors that its operator does not read."""
    return "\n".join(level_name(name, run.get(name)) for name in factors if not pd.isna(run.get(name)))


def numeric(level):
    """Return a sort key: numbers ascend, 0 (all) comes last, and other levels keep the order of the requests."""
    return (level == 0, level) if isinstance(level, int | float) else (False, 0)


def switch(sweep):
    """Draw the cells on a data set for which the translation prior is true and on its recoloured version, where it is false."""
    coded = [run for run in sweep.runs if run["dataset"] in CODED]
    cells, pair = {run["mixer"] for run in coded}, {CODED[run["dataset"]] for run in coded} | {run["dataset"] for run in coded}
    asked = [run for run in sweep.runs if run["mixer"] in cells and run["dataset"] in pair]
    runs = [run for run in asked if run.get("padding") != "circular"]
    if not runs:
        return None, pd.DataFrame(columns=["mixer", "dataset", *COLUMNS])
    data = " and ".join(dict.fromkeys(run["dataset"] for run in runs))
    return levels(replace(sweep, content={**sweep.content, "runs": runs, "data": data}), ("dataset",))


def best_by_level(rows, metric, names):
    """Return words that name the network with the highest value at every level that several have, or at how many of these
    levels each has it."""
    shorts = [short(mixer) for mixer in rows.mixer.unique()]
    named = {mixer: short(mixer) if shorts.count(short(mixer)) == 1 else mixer for mixer in rows.mixer.unique()}
    means = rows.groupby(["x", "mixer"], sort=False)[metric].mean().dropna()
    compared = means[means.groupby("x").transform("size") > 1]
    best = (compared if len(compared) else means).groupby("x").idxmax()
    found = {}
    for x, (_, mixer) in best.items():
        found.setdefault(named[mixer], []).append(names[int(x)].replace("\n", ", "))
    if len(found) == 1:
        words = f"{next(iter(found))} at every level"
    elif len(best) <= FEW_LEVELS:
        words = "; ".join(f"{network} ({'; '.join(levels)})" for network, levels in found.items())
    else:
        words = ", ".join(f"{network} at {len(levels)} of {len(best)} levels" for network, levels in found.items())
    return f"{NAMES[metric]}: {words}"
