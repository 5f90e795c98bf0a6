"""The cube of local x shared x dynamic: its cells and controls, the effects of the design, and their interactions."""

import pandas as pd

from ..evidence.stats import AXES, EFFECTS, factorial
from ..operators import CUBE, MIXERS
from ..records.sweep import with_columns
from .curves import base_words, metric_lines, with_values
from .levels import METRICS, at_base, done_runs, percent
from .style import GREY, LABELS, canvas, caption, faint_grid, interval_dots, metric_dots, mixers, place, span, traits

EFFECT_ON = {"psnr": "effect on PSNR, dB", "probe": "effect on the probe, points"}


def task_panels(sweep, margin, height):
    """A figure with a row of two panels per pretext, of this height and margin in inches, and [(pretext, metric, axes)]."""
    tasks = list(dict.fromkeys(run["pretext"] for run in sweep.runs))
    figure, _ = canvas(9.2, margin + height * len(tasks), 0)
    panels = []
    for task, line in zip(tasks, figure.subplots(len(tasks), 2, sharey=True, squeeze=False), strict=True):
        for metric, ax in zip(METRICS, line, strict=True):
            faint_grid(ax, "x")
            ax.set_title(f"pretext {task}" if len(tasks) > 1 else "", loc="left")
            panels.append((task, metric, ax))
    return figure, panels


def cells_asked(sweep, factors):
    """[(mixer, {factor: level})]: the rows of the figure, cells first; only factors that the mixer varies."""
    levels = {}
    for run in sweep.runs:
        for name in factors:
            levels.setdefault((run["mixer"], name), set()).add(run.get(name))
    rows = []
    for run in sweep.runs:
        varied = {name: run[name] for name in factors if len(levels[run["mixer"], name]) > 1}
        if (run["mixer"], varied) not in rows:
            rows.append((run["mixer"], varied))
    return sorted(rows, key=lambda row: (place(row[0]), *row[1].values()))


def cube(sweep):
    """Every cell and control, one row each: PSNR and probe."""
    factors = [name for name in sweep.factors() if name != "pretext"]
    runs, rows = with_columns(done_runs(sweep), *factors), cells_asked(sweep, factors)
    labels = []
    for mixer, levels in rows:
        words = [LABELS[mixer], *(f"{name} {level}" for name, level in levels.items())]
        labels.append(f"{', '.join(words)}  {traits(mixer)}")
    figure, panels = task_panels(sweep, 1.4, 0.3 * len(rows))
    for task, metric, ax in panels:
        part = percent(runs[runs.pretext == task])
        for y, (mixer, levels) in enumerate(rows):
            cell = part
            for name, level in levels.items():
                cell = cell[cell[name] == level]
            metric_dots(ax, y, cell, metric, mixer, vertical=False)
        if len(part) and (metric == "probe" or task == "bert"):
            ax.axvline(part[f"baseline_{metric}"].iloc[0], color=GREY, linestyle="--", linewidth=1)
        ax.set_yticks(range(len(rows)), labels)
        ax.axhline(sum(mixer in CUBE for mixer, _ in rows) - 0.5, color="0.8", linewidth=0.8)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel(METRICS[metric].replace("\n", " "))
    caption(figure, sweep, "●: local, shared, dynamic, in this order; above the line the cells of the cube, below it controls "
            "and operators between cells; dashes: visible-neighbour mean, raw pixels; open: random init; ")  # fmt: skip
    return figure, runs[["mixer", *factors, "pretext", "seed", "status", "psnr", "probe", "init_probe"]]


def cube_effects(sweep):
    """Rows {pretext, metric, effect, seed, value} of the 2 x 2 x 2 design, one per seed that has all eight cells."""
    rows, runs = [], done_runs(sweep)
    runs = percent(at_base(sweep, runs[runs.mixer.isin(CUBE)], "pretext"))
    for (task, seed), part in runs.groupby(["pretext", "seed"], sort=False):
        for metric in METRICS:
            axes = [tuple(getattr(MIXERS[mixer], axis) for axis in AXES) for mixer in part.mixer]
            cells = dict(zip(axes, part[metric], strict=True))
            if len(cells) == 8 and not any(pd.isna(value) for value in cells.values()):
                rows += [(task, metric, EFFECTS[factors], seed, value) for factors, value in factorial(cells).items()]
    return pd.DataFrame(rows, columns=["pretext", "metric", "effect", "seed", "value"])


def effects(sweep):
    """Main effects and interactions as a forest plot, PSNR and probe."""
    table, names = cube_effects(sweep), list(EFFECTS.values())
    if not set(CUBE) & set(mixers(sweep)):
        return None, table
    figure, panels = task_panels(sweep, 1.2, 2.4)
    for task, metric, ax in panels:
        part = table[(table.pretext == task) & (table.metric == metric)]
        for y, name in enumerate(names):
            values = part[part.effect == name].value.tolist()
            interval_dots(ax, y, values, "attn" if " x " in name else "conv", vertical=False)
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel(EFFECT_ON[metric])
    caption(figure, sweep, "right of 0: having the bias, or for an interaction having both or neither, is better; ")
    return figure, table


def interactions(sweep):
    """The cube under its first pretext: static against dynamic, a line per combination of locality and weight sharing."""
    runs = at_base(sweep, done_runs(sweep))
    runs = runs[runs.mixer.isin(CUBE)]
    rows = percent(runs).assign(dynamic=[float(MIXERS[mixer].dynamic) for mixer in runs.mixer])
    metrics, table, lines = with_values(rows), runs[["mixer", "seed", "psnr", "probe"]], []
    cells = [mixer for mixer in mixers(sweep) if mixer in CUBE]
    by_traits = {traits(mixer): mixer for mixer in cells}
    for static in cells:
        dynamic = by_traits.get(traits(static)[:2] + "●")
        if dynamic not in (None, static):
            words = ", ".join(name for name in AXES[:2] if getattr(MIXERS[static], name)) or "neither"
            look = dynamic if static == "full" else static  # full's own colour is too pale
            name = f"{traits(static)[:2]} {words}\n{static} → {dynamic}"
            lines.append((look, name, rows[rows.mixer.isin((static, dynamic))]))
    if not (lines and metrics):
        return None, table[:0]
    figure, axes = canvas(1.2 + 4.2 * len(metrics), 4.2, len(metrics), sharey=False)
    for ax, metric in zip(axes, metrics, strict=True):
        metric_lines(ax, rows, "dynamic", metric, lines, 0.02, init=False)
        ax.set_xticks((0, 1), ("static", "dynamic"))
        ax.set_xlim(-0.2, 1.2)
        ax.set_xlabel("mixing matrix: learned, or computed")
    words = "parallel lines: no interaction of input dependence with locality or weight sharing; " + base_words(sweep, rows)
    n = span(rows.groupby("mixer").seed.nunique())
    caption(figure, sweep, f"{words}mean and 95 % t interval over n = {n} paired seeds", spread="")
    return figure, table
