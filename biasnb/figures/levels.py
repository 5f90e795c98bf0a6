"""PSNR and probe at every level of what a study varied, and the runs that such a figure compares."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from ..records.sweep import with_columns
from .style import GREY, canvas, caption, faint_grid, interval_dots, legend, mixers

METRICS = {"psnr": "PSNR of predicted\npixels, dB", "probe": "linear probe, %"}  # as axes name them
FIELDS = {"skip": "skip connections", "images": "images without labels",
          "labelled": "labelled images", "permute": "permutation", "dataset": "data set", "steps": "steps"}  # fmt: skip
COLUMNS = ["seed", "status", "psnr", "probe", "init_probe", "accuracy"]
ZERO_IS_ALL = ("images", "labelled")


class Column(NamedTuple):
    """Two panels under one another, PSNR and probe: their title, and [(level, its runs)] from left to right."""

    title: str
    groups: list


# ---- runs -----------------------------------------------------------------------------------------------------------


def field_name(name):
    """How figures call a Config field."""
    return FIELDS.get(name, name.replace("_", " "))


def done_runs(sweep):
    """The frame of the finished runs, with a column for every metric."""
    runs = with_columns(sweep.frame(), "psnr", "probe", "init_probe", "accuracy")
    return runs[runs.status == "done"]


def at_base(sweep, runs, *free):
    """The runs at the base level of every factor but the `free` ones, or whose operator does not read the factor."""
    keep = np.ones(len(runs), bool)
    for name, base in sweep.base().items():
        if name not in free:
            keep &= ((runs[name] == base) | runs[name].isna()).to_numpy()
    return runs[keep]


def percent(runs):
    """The runs with probes in % instead of fractions."""
    return runs.assign(**{name: 100 * runs[name] for name in ("probe", "init_probe", "baseline_probe")})


def with_baseline(runs, metric):
    """The runs that the untrained baseline of a metric compares with: for PSNR those that fill in hidden pixels."""
    return runs[runs.pretext == "bert"] if metric == "psnr" else runs


def level_name(field, value):
    """A level as a tick label."""
    if pd.isna(value):
        return "—"
    if field in ZERO_IS_ALL and value == 0:
        return "all"
    if field == "colours":
        return f"{value:g} colours"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def levels_asked(sweep, name):
    """The levels of a factor that were asked for with all others at their base; numbers ascend, 0 comes last."""
    base, asked = sweep.base(), []
    for run in sweep.runs:
        elsewhere = [other for other in base if other != name and run.get(other, base[other]) != base[other]]
        if name in run and not elsewhere and run[name] not in asked:
            asked.append(run[name])
    if all(isinstance(level, int | float) for level in asked):
        asked.sort(key=lambda level: (level == 0, level))
    return asked


# ---- figures --------------------------------------------------------------------------------------------------------


def levels(sweep):
    """One column of panels per factor, all others at their base level: PSNR above, probe below, baselines as dashes."""
    runs, columns = done_runs(sweep), []
    for name in sweep.factors():
        rows = at_base(sweep, runs, name)
        groups = [(level_name(name, level), rows[rows[name] == level]) for level in levels_asked(sweep, name)]
        columns.append(Column(field_name(name), groups))
    return metric_panels(sweep, columns), runs[["mixer", *sweep.factors(), *COLUMNS]]


def combinations(sweep):
    """One column of panels over all combinations of the factors that were run."""
    factors, runs, groups = sweep.factors(), done_runs(sweep), []
    for combination in dict.fromkeys(tuple(run.get(factor) for factor in factors) for run in sweep.runs):
        chosen, words = np.ones(len(runs), bool), []
        for factor, level in zip(factors, combination, strict=True):
            if pd.isna(level):  # its operator does not read the factor
                chosen &= runs[factor].isna().to_numpy()
            else:
                chosen &= (runs[factor] == level).to_numpy()
                words.append(level_name(factor, level))
        groups.append(("\n".join(words), runs[chosen]))
    title = ", ".join(field_name(factor) for factor in factors)
    return metric_panels(sweep, [Column(title, groups)]), runs[["mixer", *factors, *COLUMNS]]


def metric_panels(sweep, columns):
    """A figure of these Columns."""
    sizes = [1 + len(column.groups) for column in columns]
    figure, _ = canvas(min(13, max(7.2, 1.6 + 0.72 * sum(sizes))), 6.4, 0)
    axes = figure.subplots(2, len(columns), sharey="row", squeeze=False, width_ratios=sizes)
    for j, column in enumerate(columns):
        for ax, metric in zip(axes[:, j], METRICS, strict=True):
            for x, (_, rows) in enumerate(column.groups):
                level_dots(ax, x, percent(rows), metric, mixers(sweep))
            ax.set_xticks(range(len(column.groups)), [name if metric == "probe" else "" for name, _ in column.groups])
            ax.set_xlim(-0.6, len(column.groups) - 0.4)
            faint_grid(ax)
            if j == 0:
                ax.set_ylabel(METRICS[metric])
        axes[1, j].set_xlabel(column.title)
    legend(figure, mixers(sweep))
    words = "dashes: visible-neighbour mean and raw pixels; open: the same network at random init; "
    if "pretext" in sweep.factors():
        words += "each pretext predicts other pixels, so PSNR compares operators within one; "
    caption(figure, sweep, words)
    return figure


def level_dots(ax, x, rows, metric, names):
    """The runs at one level: networks beside one another, and the untrained baselines as dashes."""
    for shift, mixer in zip(np.linspace(-0.3, 0.3, len(names)), names, strict=True):
        part = rows[rows.mixer == mixer]
        interval_dots(ax, x + shift, part[metric].dropna().tolist(), mixer)
        if metric == "probe":
            interval_dots(ax, x + shift, part.init_probe.dropna().tolist(), mixer, filled=False, spread=False)
    baseline_dashes(ax, x, rows, metric, 0.4)


def baseline_dashes(ax, x, rows, metric, half):
    """The untrained baselines of these runs, as dashes of this half-width around x."""
    values = with_baseline(rows, metric)[f"baseline_{metric}"].dropna().round(6)
    for value in sorted(set(values)):
        ax.plot([x - half, x + half], [value, value], "--", color=GREY, linewidth=1, zorder=1)
