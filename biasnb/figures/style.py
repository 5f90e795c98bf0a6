"""One style for all pictures, and the parts that they are made of."""

import io
import textwrap

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure

from ..evidence.stats import AXES, mean_interval
from ..operators import MIXERS

# seaborn's "colorblind" palette, without the second that it takes to import it
PALETTE = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"]
SHAPES = "os^DvP*X"
GREY = "0.45"  # of baselines
BASELINES = {"image_mean": "image mean", "neighbour_mean": "visible-neighbour mean", "nearest_visible": "nearest visible pixel"}
STYLE = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), ".15"),
    "axes.axisbelow": True,
    "grid.color": ".8",
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "w",
    "patch.force_edgecolor": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "svg.hashsalt": "biasnb",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


def place(mixer):
    """Where a mixer stands in the order of MIXERS; behind all others if this process does not know it."""
    return list(MIXERS).index(mixer) if mixer in MIXERS else len(MIXERS)


class Labels(dict):
    """Mixer -> its name in figures, also of an operator that was added later, or that this process does not know."""

    def __missing__(self, mixer):
        return MIXERS[mixer].label if mixer in MIXERS else mixer


class ByPlace(dict):
    """Mixer -> one of these looks, by its place."""

    def __init__(self, looks):
        self.looks = looks

    def __missing__(self, mixer):
        return self.looks[place(mixer) % len(self.looks)]


LABELS, COLOURS, MARKERS = Labels(), ByPlace(PALETTE), ByPlace(SHAPES)


def traits(mixer):
    """'●○●': local, shared, dynamic; nothing of an operator that this process does not know."""
    return "".join("●" if getattr(MIXERS[mixer], name) else "○" for name in AXES) if mixer in MIXERS else ""


def mixers(sweep):
    """Mixers in the order they were asked for."""
    return list(dict.fromkeys(run["mixer"] for run in sweep.runs))


def depths_of(sweep):
    """Depths that were asked for, ascending."""
    return sorted({run["depth"] for run in sweep.runs})


class Picture(Figure):
    """A figure that a notebook shows by itself; no pyplot, no global state."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def canvas(width, height, panels=1, sharey=True):
    """A figure and its axes in a row, in the suite's style; no axes yet for 0 panels."""
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, sharey=sharey, squeeze=False)[0] if panels else []
    for ax in axes:
        faint_grid(ax)
    return figure, axes


def faint_grid(ax, axis="y"):
    ax.grid(axis=axis, color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)


def caption(figure, sweep, words="", data=None, spread="mean and 95 % t interval over"):
    """Small print: what was run, how to read the marks, and over how many seeds; `spread` says what is drawn of them."""
    counts = pd.DataFrame(sweep.runs).groupby(["mixer", *sweep.factors()], dropna=False).size()
    seeds = f"{spread} n = {span(counts)} paired seeds" if max(counts) > 1 else f"one seed ({sweep.runs[0]['seed']})"
    footer(figure, sweep.caption(data), words + (seeds if spread else ""))


def span(counts):
    """'5', or '3 to 5' where counts differ."""
    return " to ".join(dict.fromkeys((str(min(counts)), str(max(counts)))))


def footer(figure, *lines):
    """Small print below a figure, each line wrapped to its width."""
    per_line = int(14.5 * figure.get_figwidth())
    text = "\n".join(textwrap.fill(line, per_line) for line in lines)
    figure.supxlabel(text, fontsize=7.5, color="0.35", x=0.01, ha="left")


def legend(figure, names):
    """A legend of networks above all panels: each with its marker and colour."""
    dots = {"linestyle": "", "markersize": 5.5}
    marks = [figure.axes[0].errorbar([], [], color=COLOURS[name], marker=MARKERS[name], **dots) for name in names]
    top_legend(figure, marks, [LABELS[name] for name in names], min(len(names), 4 if len(names) % 3 else 3))


def top_legend(figure, marks, texts, columns=3):
    figure.legend(marks, texts, loc="outside upper left", ncols=columns, frameon=False)


def interval_dots(ax, x, values, mixer, filled=True, vertical=True, spread=True):
    """Seeds as dots, their mean with its 95 % interval; without `spread` the mean and dots alone."""
    mean, half, n = mean_interval(values)
    if not n:
        return
    at, dots, colour = (x, mean), (np.full(len(values), x), values), COLOURS[mixer]
    bars = {"yerr" if vertical else "xerr": half} if n > 1 and spread else {}
    if not vertical:
        at, dots = at[::-1], dots[::-1]
    ax.plot(*dots, ".", color=colour, alpha=0.35, markersize=5, zorder=2)
    ax.errorbar(*at, **bars, color=colour, marker=MARKERS[mixer], markerfacecolor=colour if filled else "white",
                markersize=5.5, capsize=2, linestyle="", zorder=3)  # fmt: skip


def metric_dots(ax, x, rows, metric, mixer, vertical=True):
    """`interval_dots` of the runs of a mixer, with those of a probe at random init open."""
    part = rows[rows.mixer == mixer]
    interval_dots(ax, x, part[metric].dropna().tolist(), mixer, vertical=vertical)
    if metric == "probe":
        interval_dots(ax, x, part.init_probe.dropna().tolist(), mixer, filled=False, vertical=vertical, spread=False)


def plain_log(ax):
    """A logarithmic y axis over few decades, with plain numbers at 1, 2 and 5."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))


def pictures(rows, width=10.5):
    """Rows of images under one another: label -> (n, S, S, 3) uint8, every pixel a square."""
    columns, size = max(map(len, rows.values())), next(iter(rows.values())).shape[1]
    step = size + max(1, size // 8)
    sheet = np.full((len(rows) * step, columns * step, 3), 255, np.uint8)
    for i, images in enumerate(rows.values()):
        for j, image in enumerate(images):
            sheet[i * step : i * step + size, j * step : j * step + size] = image
    figure = Picture(figsize=(width, width / (columns + 2.2) * len(rows) + 0.6), layout="compressed")
    ax = figure.subplots()
    ax.imshow(sheet[: size - step, : size - step], interpolation="nearest")
    ax.set(xticks=[], frame_on=False)
    ax.set_yticks([i * step + (size - 1) / 2 for i in range(len(rows))], rows, fontsize=9)
    ax.tick_params(length=0)
    return figure


def panels_of(labels, columns=None, width=10.5):
    """A figure with a square panel under each label, in rows of so many columns, and its axes."""
    columns = min(columns or len(labels), len(labels))
    rows = -(-len(labels) // columns)
    figure = Picture(figsize=(width, rows * (width / columns + (0.3 if rows > 1 else 0)) * 0.9 + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, label in zip(axes, labels, strict=False):
        ax.set_title(label, fontsize=9 if columns < 6 else 7.5)
    for ax in axes[len(labels) :]:
        ax.set_axis_off()
    return figure, axes[: len(labels)]


def maps(panels, title, columns=None):
    """Heat maps: label -> (H, W) array, each scaled to its own maximum; exact zeros stay white."""
    figure, axes = panels_of(panels, columns)
    for ax, values in zip(axes, panels.values(), strict=True):
        image = ax.imshow(np.ma.masked_equal(values / max(values.max(), 1e-12), 0), cmap="viridis", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=figure.axes, shrink=0.75, label="share of the largest")
    if title:
        footer(figure, title)
    return figure


def swatches(palettes):
    """Palettes as strips of colour: label -> (K, 3) array, 0 to 255."""
    figure = Picture(figsize=(10.5, 0.45 * len(palettes) + 0.2), layout="constrained")
    for ax, (label, colours) in zip(figure.subplots(len(palettes), 1, squeeze=False)[:, 0], palettes.items(), strict=True):
        ax.imshow(np.asarray(colours)[None] / 255, aspect="auto", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure
