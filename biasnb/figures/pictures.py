"""Figures made of images: reconstructions in the arrangement of Figure 1, heat maps, palettes."""

import math

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from .style import Picture, footer, mixers, ranking, short, title

# ---- figures drawn directly by notebooks --------------------------------------------------------------------------------


def sheet(rows, width=10.5, below=()):
    """Draw rows of images {label: (n, S, S, 3) uint8} below each other with square pixels. `below` is {label: text per image of
    that row}."""
    columns, size = max(map(len, rows.values())), len(next(iter(rows.values()))[0])
    gap = max(1, size // 8)
    heights = [size + (size // 4 + 1 if label in below else gap) for label in rows]
    tops = np.cumsum([0, *heights])
    paper = np.full((tops[-1] - gap, columns * (size + gap) - gap, 3), 255, np.uint8)
    figure = Picture(figsize=(width, (width - 1.6) * paper.shape[0] / paper.shape[1] + 0.8), layout="compressed")
    ax = figure.subplots()
    for top, (label, images) in zip(tops, rows.items(), strict=False):
        for i, image in enumerate(images):
            left = i * (size + gap)
            paper[top : top + size, left : left + size] = image
            if label in below:
                ax.text(left + size / 2 - 0.5, top + size + size / 8, below[label][i], ha="center", va="center", fontsize=7)
    ax.imshow(paper, interpolation="none")  # SVG and PDF take the pixels as they are
    ax.set(xticks=[], frame_on=False)
    ax.set_yticks(tops[:-1] + (size - 1) / 2, rows, fontsize=8.5)
    ax.tick_params(length=0)
    return figure


def maps(panels, words="", columns=None, width=10.5):
    """Draw heat maps {label: (H, W) array}, each scaled to its own maximum; exact zeros are white."""
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    figure = Picture(figsize=(width, rows * (width / columns + 0.3) * 0.9 + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes:
        ax.set_axis_off()
    for ax, (label, values) in zip(axes, panels.items(), strict=False):
        image = ax.imshow(np.ma.masked_equal(values / max(values.max(), 1e-12), 0), cmap="viridis", vmin=0, vmax=1)
        ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False, color="0.6", linewidth=0.8))
        ax.set_title(label, fontsize=8.5 if columns < 6 else 7, loc="center")
    figure.colorbar(image, ax=figure.axes, shrink=0.75, label="share of the largest")
    if words:
        footer(figure, words)
    return figure


def swatches(palettes):
    """Draw palettes {label: (K, 3) array, 0 to 255} as strips of colours."""
    figure = Picture(figsize=(10.5, 0.45 * len(palettes) + 0.2), layout="constrained")
    for ax, (label, colours) in zip(figure.subplots(len(palettes), 1, squeeze=False)[:, 0], palettes.items(), strict=True):
        ax.imshow(np.asarray(colours)[None] / 255, aspect="auto", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure


# ---- figures of a sweep -------------------------------------------------------------------------------------------------


def reconstructions(sweep):
    """Draw images as in Figure 1, with their PSNR: originals, input of the network, mean of visible neighbours, a row per
    network at the smallest and then the greatest depth, for the first pretext and seed."""
    return filled_in(sweep, "psnr")


def absolute_errors(sweep):
    """Draw the absolute errors of the images of `reconstructions`, averaged over colours, with their mean over hidden
    pixels."""
    return filled_in(sweep, "error")


def filled_in(sweep, shown):
    """Return (figure, numbers) of the reconstructions, with their "psnr", or of their absolute "error"."""
    blocks, seed, table = networks_by_depth(sweep), sweep.runs[0]["seed"], []
    if not blocks:
        return None, pd.DataFrame(columns=["mixer", "depth", "seed", "image", shown])
    images, masked, hidden = inputs(sweep, blocks)
    measure, unit = {"psnr": (psnr, "dB"), "error": (errors, "%")}[shown]
    rows = {"mean of visible neighbours": neighbour_mean(images, hidden)}
    for depth, records in blocks.items():
        for mixer, record in records.items():
            rows[f"{short(mixer)}\ndepth {depth}"] = filled = sweep.store.arrays(record["key"])["reconstruction"]
            for i, value in enumerate(measure(images, filled, hidden)):
                table.append({"mixer": mixer, "depth": depth, "seed": seed, "image": i, shown: value})
    below = {label: [f"{value:.1f} {unit}" for value in measure(images, row, hidden)] for label, row in rows.items()}
    words, table = f"{len(images)} fixed test images, the same masks for every network; {unit}: ", pd.DataFrame(table)
    if shown == "psnr":
        figure, heading = sheet({"original": images, "masked": masked, **rows}, 9.6, below), "Mean PSNR"
        words += "PSNR of the hidden pixels of each image, in the title their mean"
    else:
        grey = {label: darkness(images, row) for label, row in rows.items()}
        figure, heading = sheet({"original": images, **grey}, 9.6, below), "Mean absolute error"
        words += "mean over the hidden pixels of each image, in % of the range, in the title their mean; "
        words += "white is 0, black half of the range or more"
    means = table.groupby(["depth", "mixer"], sort=False)[shown].mean()
    title(figure, f"{heading}, {'; '.join(f'depth {d}: ' + ranking(means[d].to_dict(), unit) for d in blocks)}")
    footer(figure, f"{sweep.caption()}, seed {seed}", words)
    return figure, table


def card(sweep):
    """Draw what the shallowest networks of a sweep fill in, with their mean PSNR, twice as wide as high, for the front page and
    for links to the repository. Returns None if the sweep has no reconstructions."""
    blocks = networks_by_depth(sweep)
    if not blocks:
        return None
    images, masked, hidden = inputs(sweep, blocks)
    depth, records = next(iter(blocks.items()))
    rows = {"original": images, "masked": masked}
    for mixer, record in records.items():
        filled = sweep.store.arrays(record["key"])["reconstruction"]
        rows[f"{short(mixer)}\n{np.mean(psnr(images, filled, hidden)):.1f} dB"] = filled
    figure = sheet(rows, 8.0)
    figure.set_size_inches(8, 4)
    title(figure, "On the Bias Against Inductive Biases: its claims decided from saved records")
    footer(figure, f"Hidden patches of test images, filled in by networks of {depth} blocks, and their mean PSNR")
    return figure


def inputs(sweep, blocks):
    """Return (originals, inputs with hidden pixels grey, mask of the hidden pixels) that the networks of `networks_by_depth`
    share; without hidden pixels the mask covers everything."""
    first = sweep.store.arrays(next(iter(next(iter(blocks.values())).values()))["key"])
    hidden = (first["input"] == 128).all(-1)
    return first["images"], first["input"], hidden if hidden.any() else np.ones_like(hidden)


def networks_by_depth(sweep):
    """Return {depth: {mixer: record}} at the smallest and greatest depth, for the networks that reconstruct pixels and exist at
    both depths, with the first pretext and seed."""
    first, found = sweep.runs[0], {}
    for record in sweep.records():
        cfg = record["config"]
        if record["psnr"]["test"] is not None and all(cfg[name] == first[name] for name in ("pretext", "seed")):
            found.setdefault(cfg["depth"], {}).setdefault(cfg["mixer"], record)
    ends = {depth: found[depth] for depth in sorted({min(found), max(found)})} if found else {}
    common = [mixer for mixer in mixers(sweep) if all(mixer in records for records in ends.values())]
    if not common:
        return dict(list(ends.items())[:1])
    return {depth: {mixer: records[mixer] for mixer in common} for depth, records in ends.items()}


def neighbour_mean(images, hidden):
    """Fill hidden pixels as `training.evaluation.neighbour_mean` does, without torch: images (n, S, S, 3) uint8 and mask
    (n, S, S) bool -> (n, S, S, 3) uint8."""
    from scipy.ndimage import uniform_filter  # slow to import

    filled, missing, seen = images.astype(float), hidden.copy(), (~hidden).astype(float)
    for reach in range(1, images.shape[1]):
        side = 2 * reach + 1
        count = uniform_filter(seen, (1, side, side), mode="constant")
        total = uniform_filter(images * seen[..., None], (1, side, side, 1), mode="constant")
        found = missing & (count > 1e-9)
        filled[found] = total[found] / count[found][:, None]
        missing &= ~found
    return filled.round().astype(np.uint8)


def psnr(images, filled, hidden):
    """Return the PSNR in dB of the hidden pixels of each image."""
    squares = (images.astype(float) - filled) ** 2
    return [10 * math.log10(255**2 / max(float(one[mask].mean()), 1e-12)) for one, mask in zip(squares, hidden, strict=True)]


def errors(images, filled, hidden):
    """Return the mean absolute error of the hidden pixels of each image, in % of the range."""
    changes = np.abs(images.astype(float) - filled) / 2.55
    return [float(one[mask].mean()) for one, mask in zip(changes, hidden, strict=True)]


def darkness(images, filled):
    """Return the absolute error averaged over colours as grey images: white is 0, black is half of the range or more."""
    grey = np.abs(images.astype(int) - filled).mean(-1, keepdims=True)
    return np.repeat(np.clip(255 - 2 * grey, 0, 255).astype(np.uint8), 3, -1)
