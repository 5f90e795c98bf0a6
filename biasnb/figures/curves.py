"""Lines: loss against step, accuracy against layer, metrics against depth, mask rate, number of images, and loss."""

import math

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ..evidence.stats import kendall, mean_interval
from ..records.sweep import choices, pixel_accuracy, with_columns
from .levels import METRICS, at_base, done_runs, field_name, level_name, numbers, percent, with_baseline
from .style import BASELINES, COLOURS, GREY, LABELS, MARKERS, canvas, caption, depths_of, footer, mixers, plain_log, top_legend

BASELINE_NAMES = {"psnr": "visible-neighbour mean", "probe": "raw pixels"}
GAINS = {"psnr": "PSNR on predicted pixels, dB", "probe": "linear probe, points"}
SIZES = {"images": ("pool", "images to train on, without labels"), "labelled": ("train", "labelled images of the probe")}
OPEN = "open, dotted: the same network at random init; dashes: untrained baselines; "
PROBE = "linear probe, test accuracy, %"
SAME_TASK = ("depth", "width", "kernel")  # factors that leave the pretext loss comparable


def across(ax, rows, x, y, mixer, shift=0.0, **style):
    """Mean and 95 % interval over seeds of column y at each level of column x, with the seeds as dots, moved sideways by
    `shift`, on a log axis in octaves. Returns the last mean, NaN if there is none."""
    places, means, halves = [], [], []
    for level, part in rows.dropna(subset=[y]).groupby(x):
        place = level * 2**shift if ax.get_xscale() == "log" else level + shift
        mean, half, n = mean_interval(part[y])
        places.append(place)
        means.append(mean)
        halves.append(0 if n < 2 else half)
        ax.plot([place] * n, part[y], ".", color=COLOURS[mixer], alpha=0.35, markersize=5, zorder=2)
    ax.errorbar(places, means, halves, color=COLOURS[mixer], marker=MARKERS[mixer], markersize=5.5, capsize=2.5, **style)
    return means[-1] if means else math.nan


def depth_axis(ax, sweep):
    depths = depths_of(sweep)
    ax.set_xscale("log", base=2)
    ax.set_xticks(depths, [str(depth) for depth in depths])
    ax.minorticks_off()
    ax.set_xlim(depths[0] / 1.35, depths[-1] * 1.35)
    ax.set_xlabel("depth L, blocks")


def loss_unit(sweep):
    return "nats per pixel" if sweep.runs[0].get("target") == "palette" else "squared error / variance"


def end(level, text, mixer=None):
    """What `name_ends` shows of a line that ends at this level: in the colour and with the marker of a mixer, or grey."""
    return level, text.replace(" (", "\n("), COLOURS[mixer] if mixer else "0.35", MARKERS[mixer] if mixer else ""


def name_ends(ax, ends):
    """Names at the right edge, moved apart as little as keeps them legible. Fixes the limits."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    ends = sorted(end for end in ends if not math.isnan(end[0]))
    if not ends:
        return
    from scipy.optimize import isotonic_regression  # takes a while

    line = 0.135 * (high - low) / (ax.figure.get_figheight() - 1.2)  # height of a line of text, in data units
    levels = np.array([end[0] for end in ends])
    halves = np.array([line * (end[1].count("\n") + 1.4) / 2 for end in ends])
    stacked = np.cumsum(halves) + np.cumsum([0, *halves])[:-1]  # centres of the names on top of one another, from 0
    moved = isotonic_regression(levels - stacked).x
    stacked += np.clip(moved, low, max(low, high - 2 * sum(halves)))
    right = ax.get_yaxis_transform()
    for (_, text, colour, marker), place in zip(ends, stacked, strict=True):
        ax.plot(1.03, place, marker, color=colour, markersize=5.5, transform=right, clip_on=False)
        ax.annotate(text, (1.03, place), xycoords=right, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8,
                    color=colour, annotation_clip=False)  # fmt: skip


def metric_lines(ax, rows, x, metric, lines, apart, init=True):
    """One metric over column x: a line per (mixer, name, its rows), `apart` from one another, with the untrained baselines, all
    named at their ends; the mixer lends colour and marker."""
    ends, starts = [], []
    for i, (mixer, text, part) in enumerate(lines):
        shift = apart * (i - (len(lines) - 1) / 2)
        ends.append(end(across(ax, part, x, metric, mixer, shift), text, mixer))
        if init and metric == "probe":
            dotted = {"linestyle": ":", "markerfacecolor": "white", "linewidth": 1}
            starts.append(across(ax, part, x, "init_probe", mixer, shift, **dotted))
    baseline = f"baseline_{metric}"
    level = with_baseline(rows, metric).dropna(subset=[baseline]).groupby(x)[baseline].first()
    ax.plot(level.index, level, linestyle=(0, (4, 3)), color=GREY, linewidth=1, zorder=1)
    if len(level):
        ends.append(end(level.iloc[-1], BASELINE_NAMES[metric]))
    name_ends(ax, [*ends, end(mean_interval(starts)[0], "open: random init")])
    ax.set_ylabel(METRICS[metric].replace("\n", " "))


def with_values(table):
    """The metrics among PSNR and probe that the table has values of."""
    return [metric for metric in METRICS if table[metric].notna().any()]


def base_words(sweep, rows, *free):
    """'depth 2, width 32; ': the base level of every factor that these rows read, but for the `free` ones."""
    words = []
    for name, value in sweep.base().items():
        if name not in free and rows[name].notna().any():
            words.append(f"{field_name(name)} {level_name(name, value)}")
    return ", ".join(words) + "; " if words else ""


def per_network(sweep, rows):
    return [(mixer, LABELS[mixer], rows[rows.mixer == mixer]) for mixer in mixers(sweep)]


def depth_panels(sweep, height, table, draw, xlabel, ylabel):
    """A figure of this height with a panel per depth, in which draw(ax, mixer, its rows of the table) shows each mixer."""
    depths = depths_of(sweep)
    figure, axes = canvas(1.2 + 3.6 * len(depths), height, len(depths))
    for depth, ax in zip(depths, axes, strict=True):
        for mixer in mixers(sweep):
            draw(ax, mixer, table[(table.mixer == mixer) & (table.depth == depth)])
        ax.set_title(f"depth {depth}", loc="left")
        ax.set_xlabel(xlabel)
    axes[0].set_ylabel(ylabel)
    top_legend(figure, *axes[0].get_legend_handles_labels())
    return figure, axes


def baseline_line(ax, value, text):
    """A dashed horizontal line, named at its right end."""
    ax.axhline(value, color=GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    ax.annotate(text, (1.0, value), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8, color="0.35", annotation_clip=False)  # fmt: skip


def raw_pixels(sweep, axes):
    """The accuracy of the probe on raw pixels as a line in every panel, named in the last; none without its record."""
    if baseline := sweep.baseline():
        for ax in axes:
            baseline_line(ax, 100 * pixel_accuracy(baseline), "raw pixels" if ax is axes[-1] else "")


# ---- against step and layer -----------------------------------------------------------------------------------------


def learning_curves(sweep):
    """Training loss against step, one panel per depth, every seed a line."""

    def history(record):
        return record["history"]

    def draw(ax, mixer, rows):
        for i, (_, run) in enumerate(rows.groupby("seed")):
            label = LABELS[mixer] if i == 0 else None
            ax.plot(run.step, run.loss, color=COLOURS[mixer], alpha=0.7, linewidth=1.2, label=label)

    table = numbers(sweep.records(), ["mixer", "depth", "seed", "step", "loss"], history)
    loss = f"loss on hidden tokens,\n{loss_unit(sweep)}"
    figure, axes = depth_panels(sweep, 4.0, table, draw, "training step", loss)
    for ax in axes:
        plain_log(ax)
    seeds = len({run["seed"] for run in sweep.runs})
    footer(figure, sweep.caption(), f"one line per seed, n = {seeds}; each point averages the steps since the last")
    return figure, table


def probe_by_layer(sweep):
    """Accuracy of the linear probe at every layer at the penalties of its setting, one panel per depth, trained and at random
    init."""
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
        trained = {"linestyle": "-", "markerfacecolor": COLOURS[mixer], "label": LABELS[mixer]}
        layer_lines(ax, rows[rows.network == "trained"], mixer, **trained)
        layer_lines(ax, rows[rows.network == "random init"], mixer, linestyle=":", markerfacecolor="white")

    table = numbers(records, ["mixer", "depth", "seed", "network", "layer", "accuracy"], accuracies)
    figure, axes = depth_panels(sweep, 4.2, table, draw, "layer l (0: embedding)", PROBE)
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    raw_pixels(sweep, axes)
    seeds = len({run["seed"] for run in sweep.runs})
    each = f"thick: mean, thin: each of n = {seeds} seeds" if seeds > 1 else "one seed"
    footer(figure, sweep.caption(), f"solid: trained; dotted: random init; {each}")
    return figure, table


def layer_lines(ax, rows, mixer, linestyle, **style):
    """Accuracy over layers: the mean over seeds, and each seed thinly."""
    mean = rows.groupby("layer").accuracy.mean()
    ax.plot(mean.index, mean, linestyle, color=COLOURS[mixer], marker=MARKERS[mixer], markersize=5, **style)
    for _, run in rows.groupby("seed"):
        ax.plot(run.layer, run.accuracy, linestyle, color=COLOURS[mixer], alpha=0.22, linewidth=0.8)


# ---- against depth --------------------------------------------------------------------------------------------------


def psnr_by_depth(sweep):
    """Masked PSNR against depth, one line per network, the three untrained baselines as dashed levels."""
    figure, (ax,) = canvas(7.2, 4.4)
    runs = with_columns(sweep.frame(), "psnr")
    depth_axis(ax, sweep)
    for i, (mixer, label, part) in enumerate(per_network(sweep, runs)):
        across(ax, part, "depth", "psnr", mixer, 0.05 * (i - 1), label=label)
    if baseline := sweep.baseline():
        for name, value in baseline["psnr"].items():
            baseline_line(ax, value, BASELINES[name])
    ax.set_ylabel("PSNR on hidden pixels, dB")
    ax.set_title("Reconstruction of hidden pixels, higher is better", loc="left")
    top_legend(figure, *ax.get_legend_handles_labels(), columns=min(3, len(mixers(sweep))))
    caption(figure, sweep)
    return figure, runs[["mixer", "depth", "seed", "status", "psnr"]]


def probe_by_depth(sweep):
    """Linear-probe accuracy against depth: trained (solid) and at random init (dotted), with raw pixels."""
    figure, axes = canvas(8.6, 4.2, len(mixers(sweep)))
    runs = with_columns(sweep.frame(), "probe", "init_probe")
    for ax, (mixer, label, part) in zip(axes, per_network(sweep, percent(runs)), strict=True):
        depth_axis(ax, sweep)
        across(ax, part, "depth", "probe", mixer, 0.04)
        across(ax, part, "depth", "init_probe", mixer, -0.04, linestyle=":", markerfacecolor="white")
        ax.set_title(label, loc="left", color=COLOURS[mixer])
    raw_pixels(sweep, axes)
    axes[0].set_ylabel(METRICS["probe"])
    caption(figure, sweep, "filled: trained; open and dotted: the same network at random init; ")
    return figure, runs[["mixer", "depth", "seed", "status", "probe", "init_probe"]]


def gap(sweep, base="igpt"):
    """What every other network gains over attention of the same seed, in PSNR and probe, against depth."""
    columns = ["mixer", "depth", "seed", "psnr", "probe"]
    runs = percent(done_runs(sweep)).set_index(["depth", "seed"]).astype({"psnr": float})
    scores = {mixer: runs[runs.mixer == mixer][["psnr", "probe"]] for mixer in mixers(sweep)}
    others, gains = [mixer for mixer in scores if base in scores and mixer != base], []
    for mixer in others:
        gain = (scores[mixer] - scores[base]).dropna(how="all").assign(mixer=mixer).reset_index()
        gains += [gain] if len(gain) else []
    table = pd.concat(gains)[columns] if gains else pd.DataFrame(columns=columns)
    metrics = with_values(table)
    if not metrics:
        return None, table
    figure, axes = canvas(1.2 + 4.2 * len(metrics), 3.9, len(metrics), sharey=False)
    for ax, metric in zip(axes, metrics, strict=True):
        depth_axis(ax, sweep)
        ax.axhline(0, color=COLOURS[base], linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
        ends = [end(0.0, LABELS[base], base)]
        for i, mixer in enumerate(others):
            last = across(ax, table[table.mixer == mixer], "depth", metric, mixer, 0.04 * i)
            ends.append(end(last, LABELS[mixer], mixer))
        name_ends(ax, ends)
        ax.set_ylabel(f"gain over {LABELS[base]},\n{GAINS[metric]}")
    caption(figure, sweep, f"difference to {LABELS[base]} of the same depth and seed; above the dashes: better than it; ")
    return figure, table


# ---- against another quantity ---------------------------------------------------------------------------------------


def mask_rate(sweep):
    """PSNR and probe against the mask rate, all else at its base."""
    runs = at_base(sweep, done_runs(sweep), "mask_rate")
    table, rows = with_columns(runs, "mask_rate")[["mixer", "mask_rate", "seed", "psnr", "probe", "init_probe"]], percent(runs)
    metrics = with_values(rows)
    if "mask_rate" not in sweep.factors() or not metrics:
        return None, table[:0]
    figure, axes = canvas(1.2 + 4.2 * len(metrics), 4.2, len(metrics), sharey=False)
    for ax, metric in zip(axes, metrics, strict=True):
        metric_lines(ax, rows, "mask_rate", metric, per_network(sweep, rows), 0.006)
        ax.set_xticks(sorted(set(rows.mask_rate)))
        ax.set_xlabel("mask rate, share of tokens hidden")
    caption(figure, sweep, OPEN + base_words(sweep, rows, "mask_rate"))
    return figure, table


def sample_size(sweep):
    """PSNR and probe against the number of images to train on, and the probe against that of labelled images."""
    counts = {record["key"]: record["data"] for record in sweep.records()}
    runs = with_columns(done_runs(sweep), *SIZES)
    for name, (split, _) in SIZES.items():
        runs[f"n_{name}"] = [counts[key][split] for key in runs.key]
    table = runs[["mixer", "n_images", "n_labelled", "seed", "psnr", "probe", "init_probe"]]
    panels = []
    for name in SIZES:
        if name in sweep.factors():
            rows = percent(at_base(sweep, runs, name)).drop_duplicates(["mixer", f"n_{name}", "seed"])
            metrics = with_values(rows) if name == "images" else [metric for metric in with_values(rows) if metric == "probe"]
            panels += [(name, metric, rows) for metric in metrics]
    if not panels:
        return None, table[:0]
    figure, axes = canvas(1.2 + 3.7 * len(panels), 4.2, len(panels), sharey=False)
    for ax, (name, metric, rows) in zip(axes, panels, strict=True):
        number = f"n_{name}"
        ax.set_xscale("log")
        metric_lines(ax, rows, number, metric, per_network(sweep, rows), 0.05)
        sizes, whole = sorted(set(rows[number])), set(rows[rows[name] == 0][number])
        ax.set_xticks(sizes, [f"{n}\n(all)" if n in whole else str(n) for n in sizes])
        ax.minorticks_off()
        ax.set_xlabel(SIZES[name][1])
    caption(figure, sweep, f"{OPEN}where not varied: {base_words(sweep, runs)}")
    return figure, table


def loss_probe(sweep):
    """Pretext loss against probe over depths, widths and windows, where losses are of the same task; one marker per run."""
    runs = with_columns(at_base(sweep, done_runs(sweep), *SAME_TASK), "loss", *SAME_TASK).dropna(subset=["loss", "probe"])
    table, ends = runs[["mixer", *SAME_TASK, "seed", "loss", "probe"]], []
    if table.empty:
        return None, table
    figure, (ax,) = canvas(7.2, 4.4)
    for mixer in mixers(sweep):
        part = table[table.mixer == mixer].sort_values("loss")
        ax.plot(part.loss, 100 * part.probe, MARKERS[mixer], color=COLOURS[mixer], markersize=6, alpha=0.8)
        if len(part):
            tau, low, high, n = kendall(-part.loss, part.probe)
            interval = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
            words = f"τ = {tau:.2f}{interval}\nn = {n} runs".replace("-", "−")
            ends.append(end(100 * part.probe.iloc[0], f"{LABELS[mixer]}\n{words}", mixer))
    ax.invert_xaxis()
    ax.set_title("up and right is better", loc="left")
    ax.set_xlabel(f"pretext loss on the test split, {loss_unit(sweep)}, lower to the right")
    ax.set_ylabel(METRICS["probe"])
    name_ends(ax, ends)
    words = f"{base_words(sweep, runs, *SAME_TASK)}one marker per run, over {', '.join(SAME_TASK)}; "
    tau = "τ: Kendall's rank correlation of lower loss with better probe, from ten runs on with its 95 % interval"
    caption(figure, sweep, words + tau, spread="")
    return figure, table
