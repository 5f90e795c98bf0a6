"""Figures of the studies: a metric over the levels of what was varied, the cube and its effects, and measures of networks."""

import numpy as np
import pandas as pd

from .operators import CUBE, MIXERS
from .stats import factorial, mean_interval
from .style import COLOURS, LABELS, MARKERS, canvas, caption, maps, mixers, with_columns

AXES = ("local", "shared", "dynamic")
NAMES = {"psnr": "PSNR of predicted\npixels, dB", "probe": "linear probe, %", "accuracy": "test accuracy, %"}
FIELDS = {"mask_rate": "mask rate", "in_patch": "in patch", "skip": "skip connections", "images": "images without labels",
          "labelled": "labelled images", "input": "input", "permute": "permutation", "dataset": "data set"}  # fmt: skip
COLUMNS = ["seed", "status", "psnr", "probe", "init_probe", "accuracy"]
ALL = {"images": "all", "labelled": "all", "colours": "—"}


def traits(mixer):
    """'●○●': local, shared, dynamic."""
    return "".join("●" if getattr(MIXERS[mixer], name) else "○" for name in AXES)


def shown(field, value):
    """A level as a tick label."""
    if pd.isna(value):
        return "—"
    if field in ALL and value == 0:
        return ALL[field]
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def interval_dots(ax, x, values, mixer, filled=True, vertical=True, label=None):
    """Seeds as dots, their mean with its 95 % interval."""
    mean, half, n = mean_interval(values)
    if not n:
        return
    colour, face = COLOURS[mixer], COLOURS[mixer] if filled else "white"
    dots = (np.full(len(values), x), values) if vertical else (values, np.full(len(values), x))
    ax.plot(*dots, ".", color=colour, alpha=0.35, markersize=5, zorder=2)
    at, error = ((x, mean), {"yerr": half}) if vertical else ((mean, x), {"xerr": half})
    ax.errorbar(*at, **(error if n > 1 else {}), color=colour, marker=MARKERS[mixer], markerfacecolor=face, markersize=5.5,
                capsize=2, linestyle="", label=label, zorder=3)  # fmt: skip


def done_runs(grid):
    runs = with_columns(grid.frame(), "psnr", "probe", "init_probe", "accuracy")
    return runs[runs.status == "done"]


def base_of(grid, factors):
    """The level of each factor that most runs share: where the others are varied from."""
    return {name: pd.Series([run.get(name) for run in grid.runs]).mode().iloc[0] for name in factors}


def levels(grid):
    """One column of panels per factor, all others at their base level: PSNR above, probe below, untrained floors as dashes."""
    factors, runs = grid.factors(), done_runs(grid)
    base, columns = base_of(grid, factors), []
    for name in factors:
        others = [f for f in factors if f != name]
        rows = runs[np.logical_and.reduce([runs[f] == base[f] for f in others])] if others else runs
        asked = list(dict.fromkeys(run.get(name) for run in grid.runs))
        asked = sorted(asked, key=lambda v: (v == 0, v)) if all(isinstance(v, int | float) for v in asked) else asked
        columns.append((FIELDS.get(name, name), [(shown(name, v), rows[rows[name] == v]) for v in asked]))
    return panels(grid, columns), runs[["mixer", *factors, *COLUMNS]]


def combinations(grid):
    """One panel over all combinations of the factors that were run."""
    factors, runs = grid.factors(), done_runs(grid)
    asked = list(dict.fromkeys(tuple(run.get(f) for f in factors) for run in grid.runs))
    same = lambda v, w: v == w or (pd.isna(v) and pd.isna(w))  # noqa: E731
    groups = []
    for combination in asked:
        here = [all(same(row[f], v) for f, v in zip(factors, combination, strict=True)) for _, row in runs.iterrows()]
        words = [f"{shown(f, v)}" for f, v in zip(factors, combination, strict=True) if v is not None and not pd.isna(v)]
        groups.append(("\n".join(words), runs[np.array(here, bool)] if len(runs) else runs))
    title = ", ".join(FIELDS.get(f, f) for f in factors)
    return panels(grid, [(title, groups)]), runs[["mixer", *factors, *COLUMNS]]


def panels(grid, columns):
    """Columns (title, [(level, its runs)]) of two panels each."""
    sizes = [1 + len(groups) for _, groups in columns]
    figure, _ = canvas(max(7.2, 1.6 + 0.72 * sum(sizes)), 6.4, 0)
    axes = figure.subplots(2, len(columns), sharey="row", squeeze=False, width_ratios=sizes)
    shift = dict(zip(mixers(grid), np.linspace(-0.3, 0.3, len(mixers(grid))), strict=True))
    for j, (title, groups) in enumerate(columns):
        for i, (metric, scale, floor) in enumerate((("psnr", 1, "floor_psnr"), ("probe", 100, "floor_probe"))):
            ax = axes[i, j]
            for x, (_, rows) in enumerate(groups):
                for mixer in mixers(grid):
                    part = rows[rows.mixer == mixer]
                    interval_dots(ax, x + shift[mixer], (scale * part[metric].dropna()).tolist(), mixer)
                    if metric == "probe":
                        interval_dots(ax, x + shift[mixer], (100 * part["init_probe"].dropna()).tolist(), mixer, filled=False)
                bert = rows[rows.pretext == "bert"] if metric == "psnr" else rows
                for value in set((scale * bert[floor].dropna()).round(6)):
                    ax.plot([x - 0.4, x + 0.4], [value, value], "--", color="0.45", linewidth=1, zorder=1)
            ax.set_xticks(range(len(groups)), [name for name, _ in groups] if i else [""] * len(groups))
            ax.set_xlim(-0.6, len(groups) - 0.4)
            ax.grid(axis="y", color="0.92", linewidth=0.8)
            if not j:
                ax.set_ylabel(NAMES[metric])
        axes[1, j].set_xlabel(title)
    legend(figure, mixers(grid))
    caption(figure, grid, "dashes: visible-neighbour mean and raw pixels; open: the same network at random init; ")
    return figure


def legend(figure, names):
    marks = [figure.axes[0].errorbar([], [], color=COLOURS[m], marker=MARKERS[m], linestyle="", markersize=5.5) for m in names]
    labels = [LABELS[m] for m in names]
    figure.legend(marks, labels, loc="outside upper left", ncols=min(len(names), 4 if len(names) != 6 else 3), frameon=False)


# ---- the cube -----------------------------------------------------------------------------------------------------


def cube(grid):
    """Every cell and control, one row each: PSNR and probe."""
    runs, names = done_runs(grid), mixers(grid)
    tasks = list(dict.fromkeys(run["pretext"] for run in grid.runs))
    figure, _ = canvas(9.2, 1.4 + 0.3 * len(names) * len(tasks), 0)
    axes = figure.subplots(len(tasks), 2, sharey=True, squeeze=False)
    for line, task in zip(axes, tasks, strict=True):
        for ax, (metric, scale, floor) in zip(line, (("psnr", 1, "floor_psnr"), ("probe", 100, "floor_probe")), strict=True):
            part = runs[runs.pretext == task]
            for y, mixer in enumerate(names):
                rows = part[part.mixer == mixer]
                interval_dots(ax, y, (scale * rows[metric].dropna()).tolist(), mixer, vertical=False)
                if metric == "probe":
                    interval_dots(ax, y, (100 * rows.init_probe.dropna()).tolist(), mixer, filled=False, vertical=False)
            if len(part) and (metric == "probe" or task == "bert"):
                ax.axvline(scale * part[floor].iloc[0], color="0.45", linestyle="--", linewidth=1)
            ax.set_yticks(range(len(names)), [f"{LABELS[m]}  {traits(m)}" for m in names])
            ax.axhline(sum(m in CUBE for m in names) - 0.5, color="0.8", linewidth=0.8)
            ax.set_ylim(len(names) - 0.4, -0.6)
            ax.grid(axis="x", color="0.92", linewidth=0.8)
            ax.set_title(f"pretext {task}" if len(tasks) > 1 else "", loc="left")
            ax.set_xlabel(NAMES[metric].replace("\n", " "))
    caption(figure, grid, "●: local, shared, dynamic, in this order; above the line the cells of the cube, below the controls; "
            "dashes: visible-neighbour mean, raw pixels; open: random init; ")  # fmt: skip
    return figure, runs[["mixer", "pretext", "seed", "status", "psnr", "probe", "init_probe"]]


def cube_effects(grid):
    """Rows {pretext, metric, effect, seed, value} of the 2 x 2 x 2 design, one per seed that has all eight cells."""
    rows, runs = [], done_runs(grid)
    for (task, seed), part in runs[runs.mixer.isin(CUBE)].groupby(["pretext", "seed"], sort=False):
        for metric, scale in (("psnr", 1), ("probe", 100)):
            cells = {tuple(getattr(MIXERS[m], t) for t in AXES): scale * v
                     for m, v in zip(part.mixer, part[metric], strict=True)}  # fmt: skip
            if len(cells) == 8 and not any(pd.isna(v) for v in cells.values()):
                for factors, value in factorial(cells).items():
                    name = " x ".join(AXES[i] for i in factors)
                    rows.append({"pretext": task, "metric": metric, "effect": name, "seed": seed, "value": value})
    return with_columns(pd.DataFrame(rows), "pretext", "metric", "effect", "seed", "value")


def effects(grid):
    """Main effects and interactions as a forest plot, PSNR and probe."""
    table = cube_effects(grid)
    tasks = list(dict.fromkeys(run["pretext"] for run in grid.runs))
    figure, _ = canvas(9.2, 1.2 + 2.4 * len(tasks), 0)
    axes = figure.subplots(len(tasks), 2, sharey=True, squeeze=False)
    for line, task in zip(axes, tasks, strict=True):
        for ax, metric in zip(line, ("psnr", "probe"), strict=True):
            part = table[(table.pretext == task) & (table.metric == metric)]
            names = list(dict.fromkeys(part.effect))
            for y, name in enumerate(names):
                values = part[part.effect == name].value.tolist()
                interval_dots(ax, y, values, "full" if " x " in name else "conv", vertical=False)
            ax.axvline(0, color="0.3", linewidth=0.8)
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.grid(axis="x", color="0.92", linewidth=0.8)
            ax.set_title(f"pretext {task}" if len(tasks) > 1 else "", loc="left")
            ax.set_xlabel("effect on " + {"psnr": "PSNR, dB", "probe": "the probe, points"}[metric])
    caption(figure, grid, "right of 0: having the bias, or having both or neither, is better; average over the other factors; ")
    return figure, table


# ---- measures -----------------------------------------------------------------------------------------------------


def measured(grid, rows, cells=True):
    """Records of the grid's first data set, flattened: rows(record, measures) for init and trained networks."""
    first = grid.runs[0]["dataset"]
    found = [{"mixer": r["config"]["mixer"], "seed": r["config"]["seed"], "network": name, **row}
             for r in grid.records() if r["config"]["dataset"] == first
             for name, part in (("random init", r["init_measures"]), ("trained", r["measures"]))
             for row in rows(part)]  # fmt: skip
    return pd.DataFrame(found)


def symmetry(grid):
    """Roll error and Lie error of the last layer, before and after training."""
    table = measured(grid, lambda m: [{"roll_error": m["roll_error"][-1], "lie_error": (m["lie_error"] or [float("nan")])[-1]}])
    table = with_columns(table, "mixer", "seed", "network", "roll_error", "lie_error")
    figure, axes = canvas(8.6, 4.0, 2, sharey=False)
    words = {"roll_error": "roll error", "lie_error": "Lie error, per pixel²"}
    for ax, (metric, label) in zip(axes, words.items(), strict=True):
        for x, mixer in enumerate(m for m in mixers(grid)):
            for name, filled, shift in (("random init", False, -0.15), ("trained", True, 0.15)):
                values = table[(table.mixer == mixer) & (table.network == name)][metric].dropna().clip(lower=1e-7)
                interval_dots(ax, x + shift, values.tolist(), mixer, filled)
        ax.set_yscale("log")
        ax.set_xticks(range(len(mixers(grid))), [f"{m}\n{traits(m)}" for m in mixers(grid)], fontsize=8)
        ax.set_ylabel(f"{label}, last layer")
    caption(figure, grid, "0: features move exactly with the image; open: random init, filled: trained; "
            "●: local, shared, dynamic; zero padding lets even shared cells see the border; ")  # fmt: skip
    return figure, table


def switch(grid):
    """Static cells where the translation prior is true and where it is false."""
    runs = done_runs(grid)
    runs = runs[runs.dataset.isin(("leaves", "leaves_coded"))]
    table = runs[["mixer", "dataset", "seed", "psnr", "probe", "init_probe"]]
    figure, axes = canvas(8.6, 4.0, 2, sharey=False)
    names = [m for m in mixers(grid) if m in set(runs.mixer)] or ["conv"]
    for ax, (metric, scale, floor) in zip(axes, (("psnr", 1, "floor_psnr"), ("probe", 100, "floor_probe")), strict=True):
        for x, data in enumerate(("leaves", "leaves_coded")):
            part = runs[runs.dataset == data]
            for mixer, shift in zip(names, np.linspace(-0.2, 0.2, len(names)), strict=True):
                interval_dots(ax, x + shift, (scale * part[part.mixer == mixer][metric].dropna()).tolist(), mixer)
            for value in set((scale * part[floor].dropna()).round(6)):
                ax.plot([x - 0.35, x + 0.35], [value, value], "--", color="0.45", linewidth=1)
        ax.set_xticks((0, 1), ("leaves\n(prior true)", "column-coded twin\n(prior false)"))
        ax.set_xlim(-0.5, 1.5)
        ax.set_ylabel(NAMES[metric].replace("\n", " "))
    legend(figure, names)
    caption(figure, grid, "generated dead leaves; dashes: visible-neighbour mean, raw pixels; ")
    return figure, table


def spectrum(grid):
    """Log amplitude of the last layer's spectrum relative to frequency 0, along the half diagonal."""
    table = measured(grid, lambda m: [{"frequency": i / (len(m["spectrum"][-1]) - 1), "amplitude": value}
                                      for i, value in enumerate(m["spectrum"][-1])])  # fmt: skip
    table = with_columns(table, "mixer", "seed", "network", "frequency", "amplitude")
    figure, axes = canvas(8.6, 4.0, 2)
    for ax, network in zip(axes, ("random init", "trained"), strict=True):
        for mixer in mixers(grid):
            mean = table[(table.mixer == mixer) & (table.network == network)].groupby("frequency").amplitude.mean()
            ax.plot(mean.index, mean, color=COLOURS[mixer], marker=MARKERS[mixer], markersize=5)
        ax.set_title(network, loc="left")
        ax.set_xlabel("frequency along the half diagonal, of the highest")
    axes[0].set_ylabel("log amplitude over that at frequency 0")
    legend(figure, mixers(grid))
    caption(figure, grid, "mean curve of the last layer; lower is smoother; ")
    return figure, table


def fields(grid):
    """Effective receptive fields of the trained networks, averaged over seeds."""
    found, table = {}, []
    for record in grid.records():
        mixer, field = record["config"]["mixer"], record["measures"]["receptive_field"]
        found.setdefault(mixer, []).append((grid.store.arrays(record["key"])["receptive_field"], field["side50"]))
        table.append({"mixer": mixer, "seed": record["config"]["seed"], **field,
                      "init_distance": record["init_measures"]["receptive_field"]["distance"]})  # fmt: skip
    if not found:
        return None, pd.DataFrame(columns=["mixer", "seed", "side50", "side99", "distance", "init_distance"])
    found = {m: ([a for a, _ in runs], np.median([side for _, side in runs])) for m, runs in found.items()}
    labels = {f"{m}  {traits(m)}\nhalf within {side:g} px": np.mean(arrays, 0) for m, (arrays, side) in found.items()}
    figure = maps(labels, "", columns=4)
    caption(figure, grid, "sensitivity of the centre token's last layer to every input pixel, each map over its own maximum; ")
    return figure, pd.DataFrame(table)


def distance(grid):
    """Mean mixing distance of every head and layer, before and after training, with that of uniform mixing."""
    table = measured(grid, lambda m: [{"layer": i, "head": g, "distance": distance, "uniform": m["uniform_distance"]}
                                      for i, heads in enumerate(m["mixing_distance"], 1)
                                      for g, distance in enumerate(heads)])  # fmt: skip
    table = with_columns(table, "mixer", "seed", "network", "layer", "head", "distance", "uniform")
    last = int(table.layer.max()) if len(table) else 1
    figure, axes = canvas(1.6 + 3.6 * last, 4.0, last)
    for ax, layer in zip(axes, range(1, last + 1), strict=True):
        for x, mixer in enumerate(mixers(grid)):
            for name, filled, shift in (("random init", False, -0.15), ("trained", True, 0.15)):
                part = table[(table.mixer == mixer) & (table.network == name) & (table.layer == layer)]
                interval_dots(ax, x + shift, part.distance.tolist(), mixer, filled)
        if len(table):
            ax.axhline(table.uniform.iloc[0], color="0.45", linestyle="--", linewidth=1)
        ax.set_xticks(range(len(mixers(grid))), [f"{m}\n{traits(m)}" for m in mixers(grid)], fontsize=7.5)
        ax.set_title(f"layer {layer}", loc="left")
    axes[0].set_ylabel("mean mixing distance, tokens")
    caption(figure, grid, "small dots: heads and seeds; open: random init, filled: trained; dashes: uniform mixing; ")
    return figure, table


def similarity(grid):
    """CKA between the layers of each trained network, first seed."""
    seed = grid.runs[0]["seed"]
    chosen = [r for r in grid.records() if r["config"]["seed"] == seed]
    table = [{"mixer": r["config"]["mixer"], "seed": seed, "layer": i, "other": j, "cka": value}
             for r in chosen for i, row in enumerate(r["measures"]["cka"]) for j, value in enumerate(row)]  # fmt: skip
    if not table:
        return None, pd.DataFrame(columns=["mixer", "seed", "layer", "other", "cka"])
    labels = {f"{r['config']['mixer']}  {traits(r['config']['mixer'])}": np.array(r["measures"]["cka"]) for r in chosen}
    figure = maps(labels, "", columns=4, own=False, ticks="layer")
    caption(figure, grid, f"linear CKA of token-averaged features between layers 0 (embedding, top left) and L; seed {seed}; ")
    return figure, pd.DataFrame(table)
