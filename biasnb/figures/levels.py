"""PSNR and probe at every level of what a study varied, and the runs that such a figure compares."""

import numpy as np
import pandas as pd

from ..records.sweep import with_columns
from .style import GREY, canvas, caption, faint_grid, legend, metric_dots, mixers

METRICS = {"psnr": "PSNR of predicted\npixels, dB", "probe": "linear probe, mean\nover layers, %"}  # as axes name them
FIELDS = {"skip": "skip connections", "images": "images without labels",
          "labelled": "labelled images", "permute": "permutation", "dataset": "data set", "steps": "steps"}  # fmt: skip
COLUMNS = ["seed", "status", "psnr", "probe", "init_probe", "accuracy"]


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


def numbers(records, columns, rows):
    """A frame of these columns, a row for each of the dicts rows(record), after the run's fields of the configuration."""
    found = []
    for record in records:
        run = {name: value for name, value in record["config"].items() if name in columns}
        found += [run | row for row in rows(record)]
    return pd.DataFrame(found, columns=columns)


def with_baseline(runs, metric):
    """The runs that the untrained baseline of a metric compares with: for PSNR those that fill in hidden pixels."""
    return runs[runs.pretext == "bert"] if metric == "psnr" else runs


def level_name(field, value):
    """A level as a tick label."""
    if pd.isna(value):
        return "—"
    if field in ("images", "labelled") and value == 0:
        return "all"
    words = f"{value:g}" if isinstance(value, int | float) else str(value)
    return f"{words} colours" if field == "colours" else words


def levels_asked(sweep, name):
    """The levels of a factor that were asked for with all others at their base; numbers ascend, 0 comes last."""
    others = {other: level for other, level in sweep.base().items() if other != name}
    asked = []
    for run in sweep.runs:
        at_base = all(run.get(other, level) == level for other, level in others.items())
        if name in run and at_base and run[name] not in asked:
            asked.append(run[name])
    if all(isinstance(level, int | float) for level in asked):
        asked.sort(key=lambda level: (level == 0, level))
    return asked


def levels(sweep):
    """One column of panels per factor, all others at their base level: PSNR above, probe below, baselines as dashes."""
    runs, columns = done_runs(sweep), {}
    for name in sweep.factors():
        rows = at_base(sweep, runs, name)
        asked = levels_asked(sweep, name)
        columns[field_name(name)] = [(level_name(name, level), rows[rows[name] == level]) for level in asked]
    return metric_panels(sweep, columns), runs[["mixer", *sweep.factors(), *COLUMNS]]


def combinations(sweep):
    """One column of panels over all combinations of the factors that were run."""
    factors, runs, groups = sweep.factors(), done_runs(sweep), []
    for combination in dict.fromkeys(tuple(run.get(factor) for factor in factors) for run in sweep.runs):
        chosen, words = np.ones(len(runs), bool), []
        for factor, level in zip(factors, combination, strict=True):
            unread = pd.isna(level)  # its operator does not read the factor
            chosen &= (runs[factor].isna() if unread else runs[factor] == level).to_numpy()
            words += [] if unread else [level_name(factor, level)]
        groups.append(("\n".join(words), runs[chosen]))
    title = ", ".join(field_name(factor) for factor in factors)
    return metric_panels(sweep, {title: groups}), runs[["mixer", *factors, *COLUMNS]]


def metric_panels(sweep, columns):
    """A figure of {title: [(level, its runs)]}: a column each of two panels, PSNR and probe, levels from left to right."""
    sizes = [1 + len(groups) for groups in columns.values()]
    figure, _ = canvas(min(13, max(7.2, 1.6 + 0.72 * sum(sizes))), 6.4, 0)
    axes = figure.subplots(2, len(columns), sharey="row", squeeze=False, width_ratios=sizes)
    for panels, (title, groups) in zip(axes.T, columns.items(), strict=True):
        for ax, metric in zip(panels, METRICS, strict=True):
            for x, (_, rows) in enumerate(groups):
                rows = percent(rows)
                for shift, mixer in zip(np.linspace(-0.3, 0.3, len(mixers(sweep))), mixers(sweep), strict=True):
                    metric_dots(ax, x + shift, rows, metric, mixer)
                baseline_dashes(ax, x, rows, metric, 0.4)
            ax.set_xticks(range(len(groups)), [name if metric == "probe" else "" for name, _ in groups])
            ax.set_xlim(-0.6, len(groups) - 0.4)
            faint_grid(ax)
        panels[1].set_xlabel(title)
    for ax, metric in zip(axes[:, 0], METRICS, strict=True):
        ax.set_ylabel(METRICS[metric])
    legend(figure, mixers(sweep))
    words = "dashes: visible-neighbour mean and raw pixels; open: the same network at random init; "
    if "pretext" in sweep.factors():
        words += "each pretext predicts other pixels, so PSNR compares operators within one; "
    caption(figure, sweep, words)
    return figure


def baseline_dashes(ax, x, rows, metric, half):
    """The untrained baselines of these runs, as dashes of this half-width around x."""
    values = with_baseline(rows, metric)[f"baseline_{metric}"].dropna().round(6)
    for value in sorted(set(values)):
        ax.plot([x - half, x + half], [value, value], "--", color=GREY, linewidth=1, zorder=1)
