"""The common style of figures (colour: family, fill: dynamic or static, shape: local or global), titles, captions, labels."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from ..operators import MIXERS, USER

HUES = {
    "convolution": "#0072b2",
    "attention": "#d55e00",
    "attention, not shared": "#8c2d04",
    "free": "#009e73",
    "token MLP": "#8f4fa8",
    "control": "#6e6e6e",
    "user-defined": "#000000",
}
OTHERWISE = {"mixer": "token MLP", "hyena": "convolution"}  # exceptions to the family given by the traits
KEY = "hue: family; open: static, filled: dynamic; circle: local, square: global"
GREY = "0.4"  # colour of baselines
BASELINES = {"image_mean": "image mean", "neighbour_mean": "visible-neighbour mean", "nearest_visible": "nearest visible pixel"}
STYLE = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), ".15"),
    "axes.axisbelow": True,
    "lines.solid_capstyle": "round",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "svg.hashsalt": "biasnb",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


class Labels(dict):
    """Map a mixer to its name in figures, also for operators that are added later or unknown to this process."""

    def __missing__(self, mixer):
        return MIXERS[mixer].label if mixer in MIXERS else mixer


LABELS = Labels()


def hue(mixer):
    """Return the colour of the family of an operator."""
    op = MIXERS.get(mixer)
    if op is None or op.family == USER:
        return HUES["user-defined"]
    if op.family == "control":
        return HUES["control"]
    by_sharing = ("attention, not shared", "attention") if op.dynamic else ("free", "convolution")
    return HUES[OTHERWISE.get(mixer, by_sharing[op.shared])]


def look(mixer, size=6.0):
    """Return the marker of an operator as keyword arguments of matplotlib."""
    op, colour = MIXERS.get(mixer), hue(mixer)
    return {"color": colour, "marker": "o" if op and op.local else "s", "markersize": size, "markeredgewidth": 1.3,
            "markerfacecolor": colour if op and op.dynamic else "white"}  # fmt: skip


def mixers(sweep):
    """Return the mixers of a sweep in the order of the requests."""
    return list(dict.fromkeys(run["mixer"] for run in sweep.runs))


class Picture(Figure):
    """A figure that a notebook displays, with its title as alternative text, without pyplot and without global state."""

    def png(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()

    def heading(self):
        """Return the title in one line, "" without one."""
        return " ".join(self.get_suptitle().split())

    def _repr_png_(self):
        return self.png(), {"alt": self.heading()} if self.heading() else {}


def canvas(width, height, rows=1, columns=1, **more):
    """Return a figure of this size in inches and its axes (rows, columns), with faint horizontal grid lines."""
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    for ax in axes.flat:
        ax.grid(axis="y", color="0.92", linewidth=0.8)
    return figure, axes


def title(figure, words):
    """Set the title of a figure, which states what it shows."""
    figure.suptitle(wrapped(words, figure.get_figwidth() - 0.3, 11), fontsize=11, x=0.01, ha="left")


def wrapped(words, width, size):
    """Break words into lines of at most `width` inches in a font of `size` points."""
    font, lines, room = FontProperties(size=size), [], 0.0
    for word in words.split():
        needed, *_ = text_to_path.get_text_width_height_descent(f"{word} ", font, ismath=False)  # points
        if needed > room:
            lines.append([])
            room = 72 * width
        lines[-1].append(word)
        room -= needed
    return "\n".join(map(" ".join, lines))


def caption(figure, sweep, words="", data=None, spread="mean and 95 % t interval over"):
    """Add a caption: the runs, the meaning of the marks, and the number of seeds; `spread` says how seeds are summarised."""
    counts = pd.DataFrame(sweep.runs).groupby(["mixer", *sweep.factors()], dropna=False).size()
    seeds = f"{spread} n = {span(counts)} paired seeds" if max(counts) > 1 else f"one seed ({sweep.runs[0]['seed']})"
    footer(figure, sweep.caption(data), words + (seeds if spread else ""))


def span(counts):
    """Return '5', or '3 to 5' if the counts differ."""
    return " to ".join(dict.fromkeys((str(min(counts)), str(max(counts)))))


def footer(figure, *lines):
    """Write small text below a figure, each line wrapped to its width."""
    text = "\n".join(wrapped(line, figure.get_figwidth() - 0.3, 7.5) for line in lines)
    figure.supxlabel(text, fontsize=7.5, color="0.35", x=0.01, ha="left")


def signed(value, digits=1):
    """Format a number as '+1.2' or '−0.3'."""
    return f"{value:+.{digits}f}".replace("-", "−")


def short(mixer):
    """Return the name of a mixer in titles, e.g. 'convolution' for convmixer."""
    return LABELS[mixer].partition(" (")[0]


def ranking(means, unit, digits=1):
    """Return the order of {mixer: mean} from highest to lowest, e.g. 'convolution 21.0 > attention 19.1 dB'."""
    order = sorted((mixer for mixer in means if not np.isnan(means[mixer])), key=means.get, reverse=True)
    return " > ".join(f"{short(mixer)} {means[mixer]:.{digits}f}" for mixer in order) + f" {unit}"


def name_ends(ax, ends):
    """Label the ends (x, y, text, colour) of lines at the right edge, with leader lines. Labels are moved apart as little as
    legibility needs. Fixes the axis limits."""
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    ends = sorted((end for end in ends if np.isfinite(end[1])), key=lambda end: end[1])
    if not ends:
        return
    from scipy.optimize import isotonic_regression  # slow to import

    scale = ax.yaxis.get_transform().transform
    low, high = scale(ax.get_ylim())
    levels = (scale([y for _, y, _, _ in ends]) - low) / (high - low)
    inches = (ax.figure.get_figheight() - 1.3) / ax.get_subplotspec().get_gridspec().nrows - 0.2  # approximate panel height
    halves = np.array([0.075 * (text.count("\n") + 1.15) / inches for _, _, text, _ in ends])
    stacked = np.cumsum(halves) + np.cumsum([0, *halves])[:-1]  # centres of the texts if stacked from 0
    stacked += np.clip(isotonic_regression(levels - stacked).x, 0, max(0, 1 - 2 * sum(halves)))
    line = {"arrowstyle": "-", "linewidth": 0.6, "alpha": 0.7, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    for (x, y, text, colour), place in zip(ends, stacked, strict=True):
        ax.annotate(text, (x, y), (1.05, place), textcoords="axes fraction", va="center", fontsize=8, color=colour,
                    arrowprops={"color": colour, **line}, annotation_clip=False)  # fmt: skip


def plain_log(axis):
    """Label a logarithmic axis over few decades with plain numbers at 1, 2 and 5."""
    ticker = mpl.ticker
    axis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())
