"""Figures of the studies: a metric over the levels of what was varied, the cube and its effects. Imports no torch."""

import numpy as np
import pandas as pd

from ..evidence.stats import AXES, EFFECTS, factorial, mean_interval
from ..operators import CUBE, MIXERS
from ..records.sweep import with_columns
from .style import COLOURS, LABELS, MARKERS, canvas, caption, mixers

NAMES = {"psnr": "PSNR of predicted\npixels, dB", "probe": "linear probe, %"}
FIELDS = {"mask_rate": "mask rate", "skip": "skip connections", "images": "images without labels",
          "labelled": "labelled images", "permute": "permutation", "dataset": "data set", "steps": "steps"}  # fmt: skip
COLUMNS = ["seed", "status", "psnr", "probe", "init_probe", "accuracy"]
ALL = ("images", "labelled")  # 0 stands for all
UNITS = {"colours": "colours"}


def traits(mixer):
    """'●○●': local, shared, dynamic; nothing of an operator that was defined elsewhere."""
    return "".join("●" if getattr(MIXERS[mixer], name) else "○" for name in AXES) if mixer in MIXERS else ""


def shown(field, value):
    """A level as a tick label."""
    if pd.isna(value):
        return "—"
    if field in ALL and value == 0:
        return "all"
    if field in UNITS:
        return f"{value:g} {UNITS[field]}"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def interval_dots(ax, x, values, mixer, filled=True, vertical=True, spread=True):
    """Seeds as dots, their mean with its 95 % interval; without `spread` the mean and dots alone."""
    mean, half, n = mean_interval(values)
    if not n:
        return
    colour, face = COLOURS[mixer], COLOURS[mixer] if filled else "white"
    dots = (np.full(len(values), x), values) if vertical else (values, np.full(len(values), x))
    ax.plot(*dots, ".", color=colour, alpha=0.35, markersize=5, zorder=2)
    at, error = ((x, mean), {"yerr": half}) if vertical else ((mean, x), {"xerr": half})
    ax.errorbar(*at, **(error if n > 1 and spread else {}), color=colour, marker=MARKERS[mixer], markerfacecolor=face,
                markersize=5.5, capsize=2, linestyle="", zorder=3)  # fmt: skip


def done_runs(sweep):
    runs = with_columns(sweep.frame(), "psnr", "probe", "init_probe", "accuracy")
    return runs[runs.status == "done"]


def at_base(sweep, runs, *free):
    """The runs for the panel of some factors: every other one at its base level, or not read by the operator."""
    keep = np.ones(len(runs), bool)
    for name, base in sweep.base().items():
        if name not in free:
            keep &= ((runs[name] == base) | runs[name].isna()).to_numpy()
    return runs[keep]


def levels(sweep):
    """One column of panels per factor, all others at their base level: PSNR above, probe below, baselines as dashes."""
    factors, runs, base = sweep.factors(), done_runs(sweep), sweep.base()
    columns = []
    for name in factors:
        rows, others = at_base(sweep, runs, name), [factor for factor in factors if factor != name]
        asked = list(dict.fromkeys(run[name] for run in sweep.runs if name in run
                                   and all(run.get(other, base[other]) == base[other] for other in others)))  # fmt: skip
        asked = sorted(asked, key=lambda v: (v == 0, v)) if all(isinstance(v, int | float) for v in asked) else asked
        columns.append((FIELDS.get(name, name), [(shown(name, v), rows[rows[name] == v]) for v in asked]))
    return panels(sweep, columns), runs[["mixer", *factors, *COLUMNS]]


def every_combination(sweep):
    """One panel over all combinations of the factors that were run."""
    factors, runs = sweep.factors(), done_runs(sweep)
    asked = list(dict.fromkeys(tuple(run.get(f) for f in factors) for run in sweep.runs))
    same = lambda v, w: v == w or (pd.isna(v) and pd.isna(w))  # noqa: E731
    groups = []
    for combination in asked:
        here = [all(same(row[f], v) for f, v in zip(factors, combination, strict=True)) for _, row in runs.iterrows()]
        words = [f"{shown(f, v)}" for f, v in zip(factors, combination, strict=True) if v is not None and not pd.isna(v)]
        groups.append(("\n".join(words), runs[np.array(here, bool)] if len(runs) else runs))
    title = ", ".join(FIELDS.get(f, f) for f in factors)
    return panels(sweep, [(title, groups)]), runs[["mixer", *factors, *COLUMNS]]


def panels(sweep, columns):
    """Columns (title, [(level, its runs)]) of two panels each."""
    sizes = [1 + len(groups) for _, groups in columns]
    figure, _ = canvas(min(13, max(7.2, 1.6 + 0.72 * sum(sizes))), 6.4, 0)
    axes = figure.subplots(2, len(columns), sharey="row", squeeze=False, width_ratios=sizes)
    shift = dict(zip(mixers(sweep), np.linspace(-0.3, 0.3, len(mixers(sweep))), strict=True))
    for j, (title, groups) in enumerate(columns):
        for i, (metric, scale, baseline) in enumerate((("psnr", 1, "baseline_psnr"), ("probe", 100, "baseline_probe"))):
            ax = axes[i, j]
            for x, (_, rows) in enumerate(groups):
                for mixer in mixers(sweep):
                    part = rows[rows.mixer == mixer]
                    interval_dots(ax, x + shift[mixer], (scale * part[metric].dropna()).tolist(), mixer)
                    if metric == "probe":
                        init = (100 * part["init_probe"].dropna()).tolist()
                        interval_dots(ax, x + shift[mixer], init, mixer, filled=False, spread=False)
                bert = rows[rows.pretext == "bert"] if metric == "psnr" else rows
                for value in set((scale * bert[baseline].dropna()).round(6)):
                    ax.plot([x - 0.4, x + 0.4], [value, value], "--", color="0.45", linewidth=1, zorder=1)
            ax.set_xticks(range(len(groups)), [name for name, _ in groups] if i else [""] * len(groups))
            ax.set_xlim(-0.6, len(groups) - 0.4)
            ax.grid(axis="y", color="0.92", linewidth=0.8)
            if not j:
                ax.set_ylabel(NAMES[metric])
        axes[1, j].set_xlabel(title)
    legend(figure, mixers(sweep))
    words = (
        "each pretext predicts other pixels, so PSNR compares operators within one; " if "pretext" in sweep.factors() else ""
    )
    caption(figure, sweep, f"dashes: visible-neighbour mean and raw pixels; open: the same network at random init; {words}")
    return figure


def legend(figure, names):
    marks = [figure.axes[0].errorbar([], [], color=COLOURS[m], marker=MARKERS[m], linestyle="", markersize=5.5) for m in names]
    labels = [LABELS[m] for m in names]
    figure.legend(marks, labels, loc="outside upper left", ncols=min(len(names), 4 if len(names) % 3 else 3), frameon=False)


# ---- the cube -----------------------------------------------------------------------------------------------------


def cube(sweep):
    """Every cell and control, one row each: PSNR and probe."""
    factors = [name for name in sweep.factors() if name != "pretext"]
    runs = with_columns(done_runs(sweep), *factors)
    varied = {(run["mixer"], name) for run in sweep.runs for name in factors
              if len({r.get(name) for r in sweep.runs if r["mixer"] == run["mixer"]}) > 1}  # fmt: skip
    rows = [(run["mixer"], *((name, run[name]) for name in factors if (run["mixer"], name) in varied)) for run in sweep.runs]
    rows = sorted(dict.fromkeys(rows), key=lambda row: (list(MIXERS).index(row[0]), *(level for _, level in row[1:])))
    tasks = list(dict.fromkeys(run["pretext"] for run in sweep.runs))
    figure, _ = canvas(9.2, 1.4 + 0.3 * len(rows) * len(tasks), 0)
    axes = figure.subplots(len(tasks), 2, sharey=True, squeeze=False)
    for line, task in zip(axes, tasks, strict=True):
        for ax, (metric, scale, baseline) in zip(
            line, (("psnr", 1, "baseline_psnr"), ("probe", 100, "baseline_probe")), strict=True
        ):
            part = runs[runs.pretext == task]
            for y, (mixer, *levels) in enumerate(rows):
                here = part[part.mixer == mixer]
                for name, level in levels:
                    here = here[here[name] == level]
                interval_dots(ax, y, (scale * here[metric].dropna()).tolist(), mixer, vertical=False)
                if metric == "probe":
                    init = (100 * here.init_probe.dropna()).tolist()
                    interval_dots(ax, y, init, mixer, filled=False, vertical=False, spread=False)
            if len(part) and (metric == "probe" or task == "bert"):
                ax.axvline(scale * part[baseline].iloc[0], color="0.45", linestyle="--", linewidth=1)
            labels = [", ".join([LABELS[m], *(f"{name} {level}" for name, level in at)]) + f"  {traits(m)}" for m, *at in rows]
            ax.set_yticks(range(len(rows)), labels)
            ax.axhline(sum(row[0] in CUBE for row in rows) - 0.5, color="0.8", linewidth=0.8)
            ax.set_ylim(len(rows) - 0.4, -0.6)
            ax.grid(axis="x", color="0.92", linewidth=0.8)
            ax.set_title(f"pretext {task}" if len(tasks) > 1 else "", loc="left")
            ax.set_xlabel(NAMES[metric].replace("\n", " "))
    caption(figure, sweep, "●: local, shared, dynamic, in this order; above the line the cells of the cube, below it controls "
            "and operators between cells; dashes: visible-neighbour mean, raw pixels; open: random init; ")  # fmt: skip
    return figure, runs[["mixer", *factors, "pretext", "seed", "status", "psnr", "probe", "init_probe"]]


def cube_effects(sweep):
    """Rows {pretext, metric, effect, seed, value} of the 2 x 2 x 2 design, one per seed that has all eight cells."""
    rows, runs = [], done_runs(sweep)
    for (task, seed), part in at_base(sweep, runs[runs.mixer.isin(CUBE)], "pretext").groupby(["pretext", "seed"], sort=False):
        for metric, scale in (("psnr", 1), ("probe", 100)):
            cells = {tuple(getattr(MIXERS[m], t) for t in AXES): scale * v
                     for m, v in zip(part.mixer, part[metric], strict=True)}  # fmt: skip
            if len(cells) == 8 and not any(pd.isna(v) for v in cells.values()):
                for factors, value in factorial(cells).items():
                    rows.append({"pretext": task, "metric": metric, "effect": EFFECTS[factors], "seed": seed, "value": value})
    return with_columns(pd.DataFrame(rows), "pretext", "metric", "effect", "seed", "value")


def effects(sweep):
    """Main effects and interactions as a forest plot, PSNR and probe."""
    table = cube_effects(sweep)
    tasks = list(dict.fromkeys(run["pretext"] for run in sweep.runs))
    figure, _ = canvas(9.2, 1.2 + 2.4 * len(tasks), 0)
    axes = figure.subplots(len(tasks), 2, sharey=True, squeeze=False)
    for line, task in zip(axes, tasks, strict=True):
        for ax, metric in zip(line, ("psnr", "probe"), strict=True):
            part = table[(table.pretext == task) & (table.metric == metric)]
            names = list(EFFECTS.values())
            for y, name in enumerate(names):
                values = part[part.effect == name].value.tolist()
                interval_dots(ax, y, values, "attn" if " x " in name else "conv", vertical=False)
            ax.axvline(0, color="0.3", linewidth=0.8)
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.grid(axis="x", color="0.92", linewidth=0.8)
            ax.set_title(f"pretext {task}" if len(tasks) > 1 else "", loc="left")
            ax.set_xlabel("effect on " + {"psnr": "PSNR, dB", "probe": "the probe, points"}[metric])
    caption(figure, sweep, "right of 0: having the bias, or for an interaction having both or neither, is better; ")
    return figure, table
