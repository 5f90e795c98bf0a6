"""Dot plots: PSNR against probe, loss against probe, and measures of each network before and after training."""

import math

import numpy as np

from ..evidence.stats import kendall, mean_interval
from ..records.sweep import with_columns
from .lines import DASHES, METRICS, at_base, base_words, done_runs, numbers, of_first, percent
from .style import HUES, KEY, LABELS, canvas, caption, hue, look, mixers, name_ends, plain_log, short, span, title

NETWORKS = ("random init", "trained")
SAME_TASK = ("depth", "width", "kernel")  # factors across which pretext losses are comparable

# ---- one metric against another -----------------------------------------------------------------------------------------


def psnr_probe(sweep):
    """Draw PSNR against probe at the base level of all factors, a labelled dot per operator with intervals over seeds; where
    some operators are below a baseline, the others are drawn again in a panel of their own, which spreads them."""
    runs = at_base(sweep, done_runs(sweep))
    table, rows = runs[["mixer", "seed", "psnr", "probe"]], percent(runs).dropna(subset=["psnr", "probe"])
    if rows.empty:
        return None, table[:0]
    dots, counts = {}, rows.groupby("mixer").seed.nunique()
    for mixer, part in rows.groupby("mixer", sort=False):
        dots[mixer] = mean_interval(part.psnr), mean_interval(part.probe)
    places = {mixer: (x[0], y[0]) for mixer, (x, y) in dots.items()}
    neighbours = rows.baseline_psnr.iloc[0] if rows.pretext.iloc[0] == "bert" else -math.inf
    pixels = rows.baseline_probe.iloc[0]
    above = {mixer: place for mixer, place in places.items() if place[0] > neighbours and place[1] > pixels}
    panels = [places, above] if 1 < len(above) < len(places) else [places]
    figure, axes = canvas(6.2 * len(panels) + 1.8, 6.2, 1, len(panels), width_ratios=[1, 1.5][: len(panels)])
    for ax, drawn in zip(axes[0], panels, strict=True):
        draw_dots(ax, {mixer: dots[mixer] for mixer in drawn})
        if drawn is places:
            ax.axhline(pixels, **DASHES)
            if math.isfinite(neighbours):
                ax.axvline(neighbours, **DASHES)
    axes[0, 0].set_ylabel(METRICS["probe"])
    for name in [name for name in HUES if HUES[name] in set(map(hue, places))]:
        axes[0, 0].plot([], [], color=HUES[name], linewidth=4, label=name)
    axes[0, 0].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(HUES), frameon=False)
    most = [mixer for mixer in places if counts[mixer] == counts.max()]
    best = [max(most, key=lambda mixer: places[mixer][i]) for i in (0, 1)]
    words = [f"{short(mixer)} ({places[mixer][i]:.1f} {('dB', '%')[i]})" for i, mixer in enumerate(best)]
    seeds = f"{counts.max()} seeds" if counts.max() > 1 else "one seed"
    title(figure, f"Best of the {len(most)} operators with {seeds}: PSNR {words[0]}, probe {words[1]}")
    words = f"{base_words(sweep, runs)}{KEY}; dashes: visible-neighbour mean and raw pixels; "
    words += "right: the operators above both, enlarged; " if len(panels) > 1 else ""
    caption(figure, sweep, f"{words}mean and 95 % t interval over n = {span(counts)} seeds", spread="")
    label_dots(axes[0, 0], places, unnamed=above if len(panels) > 1 else ())
    if len(panels) > 1:
        label_dots(axes[0, 1], above)
    return figure, table


def draw_dots(ax, dots):
    """Draw a dot per operator with its intervals; `dots` are mixer -> (mean, half-width, n) of PSNR and of the probe."""
    for mixer, ((x, wide, n), (y, tall, _)) in dots.items():
        bars = {"xerr": wide, "yerr": tall} if n > 1 else {}
        ax.errorbar(x, y, **bars, color=hue(mixer), elinewidth=0.8, zorder=3)
        ax.plot(x, y, **look(mixer, 7), zorder=6)
    ax.grid(visible=True, color="0.94", linewidth=0.8)
    ax.margins(0.1)
    ax.set_xlabel(METRICS["psnr"])


def label_dots(ax, places, unnamed=()):
    """Write the name of every operator but the `unnamed` at the free position nearest to its dot, with a leader line if it is
    not adjacent. Fixes the axis limits."""
    figure = ax.figure
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    figure.draw_without_rendering()
    panel = ax.get_window_extent()
    dots = {mixer: ax.transData.transform(place) for mixer, place in places.items()}
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in dots.values()]
    angles = [0, math.pi, *np.linspace(0.25, 2 * math.pi - 0.25, 15)]
    for mixer in sorted(dots.keys() - set(unnamed), key=lambda mixer: -dots[mixer][1]):
        text = ax.text(0, 0, LABELS[mixer], fontsize=7.5)
        width, height = text.get_window_extent().size
        text.remove()
        places_around = []
        for distance in (13, 20, 30, 44, 62, 88):
            for angle in angles:
                x, y = dots[mixer] + distance * np.array((math.cos(angle), math.sin(angle)))
                left = x - width if math.cos(angle) < 0 else x
                places_around.append((left - 3, y - height / 2, left + width + 3, y + height / 2))
        best = min(places_around, key=lambda box: (overlap(box, taken, panel), places_around.index(box)))
        taken.append(best)
        right = best[0] + best[2] > 2 * dots[mixer][0]
        end = np.array((best[0] if right else best[2], (best[1] + best[3]) / 2)) - dots[mixer]
        leader = {"arrowstyle": "-", "color": hue(mixer), "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
        ax.annotate(LABELS[mixer], places[mixer], end * 72 / figure.dpi, textcoords="offset points", fontsize=7.5, va="center",
                    ha="left" if right else "right", color=hue(mixer), arrowprops=leader if math.hypot(*end) > 13 else None,
                    bbox={"facecolor": "white", "alpha": 0.92, "edgecolor": "none", "pad": 0.3}, zorder=5)  # fmt: skip


def overlap(box, taken, panel):
    """Return the area of a box (left, low, right, high), in pixels², that overlaps others or lies outside the panel."""
    left, low, right, high = box
    area = sum(max(0, min(right, r) - max(left, x)) * max(0, min(high, h) - max(low, y)) for x, y, r, h in taken)
    inside = max(0, min(right, panel.x1) - max(left, panel.x0)) * max(0, min(high, panel.y1) - max(low, panel.y0))
    return round(area + (right - left) * (high - low) - inside)


def loss_probe(sweep):
    """Draw pretext loss against probe over depths, widths and windows, which share one task; one marker per run."""
    runs = with_columns(at_base(sweep, done_runs(sweep), *SAME_TASK), "loss", *SAME_TASK).dropna(subset=["loss", "probe"])
    table, ends, taus = runs[["mixer", *SAME_TASK, "seed", "loss", "probe"]], [], []
    if table.empty:
        return None, table
    figure, ((ax,),) = canvas(8.2, 4.6)
    for mixer in mixers(sweep):
        part = table[table.mixer == mixer].sort_values("loss")
        ax.plot(part.loss, 100 * part.probe, linestyle="", **look(mixer))
        if len(part):
            tau, low, high, n = kendall(-part.loss, part.probe)
            taus.append(tau)
            interval = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
            words = f"τ = {tau:.2f}{interval}, n = {n} runs".replace("-", "−")
            ends.append((part.loss.iloc[0], 100 * part.probe.iloc[0], f"{LABELS[mixer]}\n{words}", hue(mixer)))
    ax.invert_xaxis()
    unit = "nats per pixel" if sweep.runs[0].get("target") == "palette" else "squared error / variance"
    ax.set_xlabel(f"pretext loss on the test split, {unit}, lower to the right")
    ax.set_ylabel(METRICS["probe"])
    name_ends(ax, ends)
    title(figure, f"Lower loss goes with a better probe (τ > 0) within {sum(tau > 0 for tau in taus)} of {len(taus)} operators")
    words = f"{base_words(sweep, runs, *SAME_TASK)}one marker per run, over {', '.join(SAME_TASK)}; "
    tau = "τ: Kendall's rank correlation of lower loss with better probe, from ten runs on with its 95 % interval"
    caption(figure, sweep, words + tau, spread="")
    return figure, table


# ---- before and after training ------------------------------------------------------------------------------------------


def measured(sweep, rows, *columns):
    """Return the frame of rows(measures) for every network with the first data set and padding, random init and trained."""
    inits = sweep.inits()

    def both(record):
        found = []
        for network, one in zip(NETWORKS, (inits.get(record["init"]), record), strict=True):
            found += [{"network": network} | row for row in rows(one["measures"])] if one else []
        return found

    return numbers(of_first(sweep), ["mixer", "seed", "network", *columns], both)


def before_and_after(ax, names, table, column):
    """Draw a row per network: a bar at random init, a line to the marker of the trained network, and small dots for heads and
    seeds. Returns {mixer: (mean at random init, mean trained)}."""
    found = {}
    for y, mixer in enumerate(names):
        own = table[table.mixer == mixer]
        start, end = (own[own.network == network][column].dropna() for network in NETWORKS)
        if start.empty or end.empty:
            continue
        found[mixer] = start.mean(), end.mean()
        ax.plot([start.mean(), end.mean()], [y, y], "-", color=hue(mixer), linewidth=1.2)
        ax.plot(start.mean(), y, "|", color=hue(mixer), markersize=11, markeredgewidth=1.6)
        if len(end) > 1:
            ax.plot(end, [y + 0.24] * len(end), ".", color=hue(mixer), alpha=0.45, markersize=4)
        ax.plot(end.mean(), y, **look(mixer, 7), zorder=3)
    ax.set_yticks(range(len(names)), [LABELS[mixer] for mixer in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(visible=False)
    ax.grid(visible=True, axis="x", color="0.92", linewidth=0.8)
    return found


def head_distances(measures):
    """Return rows of the mean mixing distance of every head of every layer, and of uniform mixing, in tokens."""
    rows = []
    for layer, heads in enumerate(measures["mixing_distance"], 1):
        where = {"layer": layer, "uniform": measures["uniform_distance"]}
        rows += [{**where, "head": head, "distance": value} for head, value in enumerate(heads)]
    return rows


def distance(sweep):
    """Draw the mean mixing distance per layer, from random init to trained, and that of uniform mixing."""
    table = measured(sweep, head_distances, "layer", "head", "distance", "uniform")
    if table.empty:
        return None, table
    names, last, changes = [mixer for mixer in mixers(sweep) if mixer in set(table.mixer)], int(table.layer.max()), {}
    figure, (axes,) = canvas(2.6 + 3.4 * last, 1.6 + 0.34 * len(names), 1, last, sharex=True, sharey=True)
    for layer, ax in enumerate(axes, 1):
        changes[layer] = before_and_after(ax, names, table[table.layer == layer], "distance")
        ax.axvline(table.uniform.iloc[0], **DASHES)
        ax.set_title(f"layer {layer}")
        ax.set_xlabel("mean mixing distance, tokens")
    falls = {mixer: start - end for mixer, (start, end) in changes[1].items()}
    if falls:
        most, count = max(falls, key=falls.get), sum(fall > 0 for fall in falls.values())
        ends = " to ".join(f"{value:.1f}" for value in changes[1][most])
        said = f"Layer 1: training shortens the mixing distance of {count} of {len(falls)} networks"
        title(figure, f"{said}, most of {short(most)}, from {ends} tokens")
    words = f"bar: random init, marker: trained; small dots: its heads and seeds; dashes: uniform mixing; {KEY}; "
    caption(figure, sweep, words, spread="mean over heads and")
    return figure, table


def last_errors(measures):
    """Return the errors of the last layer; the Lie error is NaN for palette input."""
    lie = measures["lie_error"]
    return [{"roll_error": measures["roll_error"][-1], "lie_error": lie[-1] if lie else np.nan}]


def symmetry(sweep):
    """Draw roll error and Lie error of the last layer, from random init to trained."""
    table = measured(sweep, last_errors, "roll_error", "lie_error")
    if table.empty:
        return None, table
    names = [mixer for mixer in mixers(sweep) if mixer in set(table.mixer)]
    drawn = table.assign(**{name: table[name].astype(float).clip(lower=1e-8) for name in ("roll_error", "lie_error")})
    figure, (axes,) = canvas(9.6, 1.6 + 0.34 * len(names), 1, 2, sharey=True)
    for ax, name, words in zip(axes, ("roll_error", "lie_error"), ("roll error", "Lie error, per pixel²"), strict=True):
        ax.set_xscale("log")
        changes = before_and_after(ax, names, drawn, name)
        ax.set_xlabel(f"{words}, last layer")
    if changes:
        plain_log(axes[1].xaxis)
    fell = sum(end < start for start, end in changes.values())
    title(figure, f"Training lowers the Lie error of {fell} of {len(changes)} networks")
    words = "bar: random init, marker: trained; further left: features move more exactly with the image; the grid is a torus, "
    caption(figure, sweep, f"{words}without a border to see; an exact 0 stands at 1e-8; {KEY}; ", spread="mean over")
    return figure, table
