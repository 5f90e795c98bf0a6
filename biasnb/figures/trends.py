"""Figures of how far a metric moves: with depth, mask rate, number of images, one more bias, or the loss. Imports no torch."""

import math

import numpy as np
import pandas as pd

from ..evidence.stats import AXES, kendall, mean_interval
from ..operators import CUBE, MIXERS
from ..records.sweep import with_columns
from .studies import FIELDS, NAMES, at_base, done_runs, shown, traits
from .style import COLOURS, LABELS, MARKERS, canvas, caption, depths_of, mixers

BASELINE = {"psnr": ("baseline_psnr", "visible-neighbour mean"), "probe": ("baseline_probe", "raw pixels")}
GAINS = {"psnr": "PSNR on predicted pixels, dB", "probe": "linear probe, points"}
SIZES = {"images": ("pool", "images to train on, without labels"), "labelled": ("train", "labelled images of the probe")}


# ---- parts ----------------------------------------------------------------------------------------------------------


def across(ax, rows, x, y, mixer, shift=0.0, **style):
    """Mean and 95 % interval over seeds of column y at each level of column x, with the seeds as dots, moved sideways by
    `shift`, on a log axis in octaves. Returns the last mean, NaN if there is none."""
    found = []
    for level, part in rows.dropna(subset=[y]).groupby(x):
        at, (mean, half, n) = level * 2**shift if ax.get_xscale() == "log" else level + shift, mean_interval(part[y])
        found.append((at, mean, 0 if n < 2 else half))
        ax.plot([at] * n, part[y], ".", color=COLOURS[mixer], alpha=0.35, markersize=5, zorder=2)
    points = zip(*found, strict=True) if found else ([], [], [])
    ax.errorbar(*points, color=COLOURS[mixer], marker=MARKERS[mixer], markersize=5.5, capsize=2.5, **style)
    return found[-1][1] if found else math.nan


def depth_axis(ax, sweep):
    depths = depths_of(sweep)
    ax.set_xscale("log", base=2)
    ax.set_xticks(depths, [str(d) for d in depths])
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
    line = 0.135 * (high - low) / (ax.figure.get_figheight() - 1.2)  # height of a line of text, in data units
    ends = sorted(end for end in ends if not math.isnan(end[0]))
    halves = [line * (text.count("\n") + 1.4) / 2 for _, text, *_ in ends]
    stacked = np.cumsum(halves) + np.cumsum([0, *halves])[:-1]  # centres of the names on top of one another, from 0
    if ends:
        from scipy.optimize import isotonic_regression  # takes a while

        moved = isotonic_regression([level - at for (level, *_), at in zip(ends, stacked, strict=True)]).x
        stacked += np.clip(moved, low, max(low, high - 2 * sum(halves)))
    for (_, text, colour, marker), place in zip(ends, stacked, strict=True):
        ax.plot(1.03, place, marker, color=colour, markersize=5.5, transform=ax.get_yaxis_transform(), clip_on=False)
        ax.annotate(text, (1.03, place), xycoords=ax.get_yaxis_transform(), xytext=(6, 0), textcoords="offset points",
                    va="center", fontsize=8, color=colour, annotation_clip=False)  # fmt: skip


def panel(ax, rows, x, metric, lines, apart, init=True):
    """One metric over column x: a line per (mixer, name, its rows), `apart` from one another, with the untrained baselines, all
    named at their ends; the mixer lends colour and marker."""
    ends, starts, (baseline, name) = [], [], BASELINE[metric]
    for i, (mixer, text, part) in enumerate(lines):
        shift = apart * (i - (len(lines) - 1) / 2)
        ends.append(end(across(ax, part, x, metric, mixer, shift), text, mixer))
        if init and metric == "probe":
            open_ = {"linestyle": ":", "markerfacecolor": "white", "linewidth": 1}
            starts.append(across(ax, part, x, "init_probe", mixer, shift, **open_))
    known = rows[rows.pretext == "bert"] if metric == "psnr" else rows
    level = known.dropna(subset=[baseline]).groupby(x)[baseline].first()
    ax.plot(level.index, level, linestyle=(0, (4, 3)), color="0.45", linewidth=1, zorder=1)
    ends += [end(value, name) for value in level[-1:]] + [end(mean_interval(starts)[0], "open: random init")]
    name_ends(ax, ends)
    ax.set_ylabel(NAMES[metric].replace("\n", " "))


def percent(runs):
    """The runs with probes in % instead of fractions."""
    return runs.assign(**{name: 100 * runs[name] for name in ("probe", "init_probe", "baseline_probe")})


def with_values(table):
    """The metrics among PSNR and probe that the table has values of."""
    return [metric for metric in BASELINE if table[metric].notna().any()]


def elsewhere(sweep, rows, *free):
    """'depth 2, width 32; ': the base level of every factor that these rows read, but for some."""
    base = [f"{FIELDS.get(name, name)} {shown(name, value)}" for name, value in sweep.base().items()
            if name not in free and rows[name].notna().any()]  # fmt: skip
    return ", ".join(base) + "; " if base else ""


def per_network(sweep, rows):
    return [(mixer, LABELS[mixer], rows[rows.mixer == mixer]) for mixer in mixers(sweep)]


# ---- figures --------------------------------------------------------------------------------------------------------


def gap(sweep, base="igpt"):
    """What every other network gains over attention of the same seed, in PSNR and probe, against depth."""
    columns = ["mixer", "depth", "seed", "psnr", "probe"]
    runs = percent(done_runs(sweep)).set_index(["depth", "seed"]).astype({"psnr": float})
    one = {mixer: runs[runs.mixer == mixer][["psnr", "probe"]] for mixer in mixers(sweep)}
    others = [mixer for mixer in one if base in one and mixer != base]
    found = [(one[mixer] - one[base]).dropna(how="all").assign(mixer=mixer).reset_index() for mixer in others]
    table = pd.concat([part for part in found if len(part)] or [with_columns(pd.DataFrame(), *columns)])[columns]
    metrics = with_values(table)
    if not metrics:
        return None, table
    figure, axes = canvas(1.2 + 4.2 * len(metrics), 3.9, len(metrics), sharey=False)
    for ax, metric in zip(axes, metrics, strict=True):
        depth_axis(ax, sweep)
        ax.axhline(0, color=COLOURS[base], linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
        ends = [end(0.0, LABELS[base], base)]
        for i, mixer in enumerate(others):
            ends.append(end(across(ax, table[table.mixer == mixer], "depth", metric, mixer, 0.04 * i), LABELS[mixer], mixer))
        name_ends(ax, ends)
        ax.set_ylabel(f"gain over {LABELS[base]},\n{GAINS[metric]}")
    caption(figure, sweep, f"difference to {LABELS[base]} of the same depth and seed; above the dashes: better than it; ")
    return figure, table


def interactions(sweep):
    """The cube under its first pretext: static against dynamic, a line per combination of locality and weight sharing."""
    runs = at_base(sweep, done_runs(sweep))
    rows = percent(runs[runs.mixer.isin(CUBE)]).assign(place=lambda rows: [float(MIXERS[m].dynamic) for m in rows.mixer])
    cells = [mixer for mixer in mixers(sweep) if mixer in CUBE]
    pairs = [(m, n) for m in cells for n in cells if traits(n) == traits(m)[:2] + "●" != traits(m)]
    metrics, table = with_values(rows), runs[runs.mixer.isin(CUBE)][["mixer", "seed", "psnr", "probe"]]
    if not (pairs and metrics):
        return None, table[:0]
    lines = []
    for m, n in pairs:
        words = ", ".join(name for name in AXES[:2] if getattr(MIXERS[m], name)) or "neither"
        look = n if m == "full" else m  # full's own colour is too pale
        lines.append((look, f"{traits(m)[:2]} {words}\n{m} → {n}", rows[rows.mixer.isin((m, n))]))
    figure, axes = canvas(1.2 + 4.2 * len(metrics), 4.2, len(metrics), sharey=False)
    for ax, metric in zip(axes, metrics, strict=True):
        panel(ax, rows, "place", metric, lines, 0.02, init=False)
        ax.set_xticks((0, 1), ("static", "dynamic"))
        ax.set_xlim(-0.2, 1.2)
        ax.set_xlabel("mixing matrix: learned, or computed")
    counts = sorted(set(rows.groupby("mixer").seed.nunique()))
    n = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    words = "parallel lines: no interaction of input dependence with locality or weight sharing; " + elsewhere(sweep, rows)
    caption(figure, sweep, f"{words}mean and 95 % t interval over n = {n} paired seeds", spread="")
    return figure, table


def mask_rate(sweep):
    """PSNR and probe against the mask rate, all else at its base."""
    runs = at_base(sweep, done_runs(sweep), "mask_rate")
    table, rows = with_columns(runs, "mask_rate")[["mixer", "mask_rate", "seed", "psnr", "probe", "init_probe"]], percent(runs)
    metrics = with_values(rows)
    if "mask_rate" not in sweep.factors() or not metrics:
        return None, table[:0]
    figure, axes = canvas(1.2 + 4.2 * len(metrics), 4.2, len(metrics), sharey=False)
    for ax, metric in zip(axes, metrics, strict=True):
        panel(ax, rows, "mask_rate", metric, per_network(sweep, rows), 0.006)
        ax.set_xticks(sorted(set(rows.mask_rate)))
        ax.set_xlabel("mask rate, share of tokens hidden")
    words = "open, dotted: the same network at random init; dashes: untrained baselines; " + elsewhere(sweep, rows, "mask_rate")
    caption(figure, sweep, words)
    return figure, table


def sample_size(sweep):
    """PSNR and probe against the number of images to train on, and the probe against that of labelled images."""
    counts = {record["key"]: record["data"] for record in sweep.records()}
    runs = with_columns(done_runs(sweep), *SIZES)
    for name, (part, _) in SIZES.items():
        runs[f"n_{name}"] = [counts[key][part] for key in runs.key]
    table = runs[["mixer", *(f"n_{name}" for name in SIZES), "seed", "psnr", "probe", "init_probe"]]
    parts = {name: percent(at_base(sweep, runs, name)).drop_duplicates(["mixer", f"n_{name}", "seed"])
             for name in SIZES if name in sweep.factors()}  # fmt: skip
    chosen = [(name, metric) for name in parts for metric in with_values(parts[name]) if (name, metric) != ("labelled", "psnr")]
    if not chosen:
        return None, table[:0]
    figure, axes = canvas(1.2 + 3.7 * len(chosen), 4.2, len(chosen), sharey=False)
    for ax, (name, metric) in zip(axes, chosen, strict=True):
        rows, x = parts[name], f"n_{name}"
        ax.set_xscale("log")
        panel(ax, rows, x, metric, per_network(sweep, rows), 0.05)
        every = {n: bool((rows[rows[x] == n][name] == 0).any()) for n in sorted(set(rows[x]))}
        ax.set_xticks(list(every), [f"{n}\n(all)" if whole else str(n) for n, whole in every.items()])
        ax.minorticks_off()
        ax.set_xlabel(SIZES[name][1])
    words = "open, dotted: the same network at random init; dashes: untrained baselines; where not varied: "
    caption(figure, sweep, words + elsewhere(sweep, runs))
    return figure, table


def loss_probe(sweep, free=("depth", "width", "kernel")):
    """Pretext loss against probe over depths, widths and windows, where losses are of the same task; one marker per run."""
    runs = with_columns(at_base(sweep, done_runs(sweep), *free), "loss", *free).dropna(subset=["loss", "probe"])
    table = runs[["mixer", *free, "seed", "loss", "probe"]]
    if table.empty:
        return None, table
    figure, (ax,) = canvas(7.2, 4.4)
    ends = []
    for mixer in mixers(sweep):
        part = table[table.mixer == mixer].sort_values("loss")
        ax.plot(part.loss, 100 * part.probe, MARKERS[mixer], color=COLOURS[mixer], markersize=6, alpha=0.8)
        if len(part):
            tau, low, high, n = kendall(-part.loss, part.probe)
            words = f"τ = {tau:.2f}" + ("" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]") + f"\nn = {n} runs"
            ends.append(end(100 * part.probe.iloc[0], LABELS[mixer] + "\n" + words.replace("-", "−"), mixer))
    ax.invert_xaxis()
    ax.set_title("up and right is better", loc="left")
    ax.set_xlabel(f"pretext loss on the test split, {loss_unit(sweep)}, lower to the right")
    ax.set_ylabel(NAMES["probe"])
    name_ends(ax, ends)
    caption(figure, sweep, f"{elsewhere(sweep, runs, *free)}one marker per run, over {', '.join(free)}; τ: Kendall's rank "
            "correlation of lower loss with better probe and its 95 % interval", spread="")  # fmt: skip
    return figure, table
