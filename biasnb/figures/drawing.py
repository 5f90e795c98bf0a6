"""Figures from records, in one style, byte-identical when drawn again. Imports no torch."""

import hashlib
import io
import struct

import matplotlib
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ..records import places, store
from ..records.files import StoreError, read_json, to_json, write_atomic
from ..records.keys import digest
from ..records.provenance import code
from ..records.sweep import with_columns
from . import portraits, studies, trends
from .style import (
    BASELINES,
    COLOURS,
    LABELS,
    MARKERS,
    STYLE,
    canvas,
    caption,
    depths_of,
    footer,
    level,
    mixers,
    pictures,
    plain_log,
)
from .trends import across, depth_axis, loss_unit, percent


def psnr_by_depth(sweep):
    """Masked PSNR against depth, one line per network, the three untrained baselines as dashed levels."""
    figure, (ax,) = canvas(7.2, 4.4)
    runs = with_columns(sweep.frame(), "psnr")
    depth_axis(ax, sweep)
    for i, mixer in enumerate(mixers(sweep)):
        across(ax, runs[runs.mixer == mixer], "depth", "psnr", mixer, 0.05 * (i - 1), label=LABELS[mixer])
    baseline = sweep.baseline()
    if baseline:
        for name, value in baseline["psnr"].items():
            level(ax, value, BASELINES[name])
    ax.set_ylabel("PSNR on hidden pixels, dB")
    ax.set_title("Reconstruction of hidden pixels, higher is better", loc="left")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=min(3, len(mixers(sweep))), frameon=False)
    caption(figure, sweep)
    return figure, runs[["mixer", "depth", "seed", "status", "psnr"]]


def probe_by_depth(sweep):
    """Linear-probe accuracy against depth: trained (solid) and at random init (dotted), with raw pixels."""
    figure, axes = canvas(8.6, 4.2, len(mixers(sweep)))
    runs = with_columns(sweep.frame(), "probe", "init_probe")
    baseline = sweep.baseline()
    for i, (ax, mixer) in enumerate(zip(axes, mixers(sweep), strict=True)):
        depth_axis(ax, sweep)
        part = percent(runs[runs.mixer == mixer])
        across(ax, part, "depth", "probe", mixer, 0.04)
        across(ax, part, "depth", "init_probe", mixer, -0.04, linestyle=":", markerfacecolor="white")
        if baseline:
            level(ax, 100 * baseline["pixel_probe"]["test"], "raw pixels" if i == len(axes) - 1 else "")
        ax.set_title(LABELS[mixer], loc="left", color=COLOURS[mixer])
    axes[0].set_ylabel("linear probe, test accuracy, %")
    caption(figure, sweep, "filled: trained; open and dotted: the same network at random init; ")
    return figure, runs[["mixer", "depth", "seed", "status", "probe", "init_probe"]]


def probe_by_layer(sweep):
    """Accuracy of the linear probe at every layer, one panel per depth, trained and at random init."""
    depths = depths_of(sweep)
    rows = [{"mixer": r["config"]["mixer"], "depth": r["config"]["depth"], "seed": r["config"]["seed"], "network": name,
             "layer": row["layer"], "accuracy": 100 * row["test"]}
            for r in sweep.records() for name, part in (("trained", r["probe"]), ("random init", r["init_probe"]))
            for row in part["layers"]]  # fmt: skip
    table = with_columns(pd.DataFrame(rows), "mixer", "depth", "seed", "network", "layer", "accuracy")
    figure, axes = canvas(1.2 + 3.6 * len(depths), 4.2, len(depths))
    for ax, depth in zip(axes, depths, strict=True):
        for mixer in mixers(sweep):
            for network, line in (("trained", "-"), ("random init", ":")):
                part = table[(table.mixer == mixer) & (table.depth == depth) & (table.network == network)]
                mean = part.groupby("layer").accuracy.mean()
                label = LABELS[mixer] if network == "trained" else None
                face = COLOURS[mixer] if network == "trained" else "white"
                ax.plot(mean.index, mean, line, color=COLOURS[mixer], marker=MARKERS[mixer], markersize=5, label=label,
                        markerfacecolor=face)  # fmt: skip
                for _, run in part.groupby("seed"):
                    ax.plot(run.layer, run.accuracy, line, color=COLOURS[mixer], alpha=0.22, linewidth=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("layer l (0: embedding)")
        ax.set_title(f"depth {depth}", loc="left")
        baseline = sweep.baseline()
        if baseline:
            level(ax, 100 * baseline["pixel_probe"]["test"], "raw pixels" if depth == depths[-1] else "")
    axes[0].set_ylabel("linear probe, test accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    seeds = len({run["seed"] for run in sweep.runs})
    each = f"thick: mean, thin: each of n = {seeds} seeds" if seeds > 1 else "one seed"
    footer(figure, sweep.caption(), f"solid: trained; dotted: random init; {each}")
    return figure, table


def learning_curves(sweep):
    """Training loss against step, one panel per depth, every seed a line."""
    depths = depths_of(sweep)
    rows = [{"mixer": r["config"]["mixer"], "depth": r["config"]["depth"], "seed": r["config"]["seed"],
             "step": row["step"], "loss": row["loss"]} for r in sweep.records() for row in r["history"]]  # fmt: skip
    table = with_columns(pd.DataFrame(rows), "mixer", "depth", "seed", "step", "loss")
    figure, axes = canvas(1.2 + 3.6 * len(depths), 4.0, len(depths))
    for ax, depth in zip(axes, depths, strict=True):
        for mixer in mixers(sweep):
            part = table[(table.mixer == mixer) & (table.depth == depth)]
            for seed, run in part.groupby("seed"):
                first = seed == part.seed.min()
                ax.plot(run.step, run.loss, color=COLOURS[mixer], alpha=0.7, linewidth=1.2,
                        label=LABELS[mixer] if first else None)  # fmt: skip
        plain_log(ax)
        ax.set_xlabel("training step")
        ax.set_title(f"depth {depth}", loc="left")
    axes[0].set_ylabel(f"loss on hidden tokens,\n{loss_unit(sweep)}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    seeds = len({run["seed"] for run in sweep.runs})
    footer(figure, sweep.caption(), f"one line per seed, n = {seeds}; each point averages the steps since the last")
    return figure, table


def reconstructions(sweep):
    """Figure 1's arrangement: the original, the masked input, then one row per network."""
    records = sweep.records()
    if not records:
        return None, pd.DataFrame(columns=["mixer", "depth", "seed", "psnr"])
    depth, seed = (records[0]["config"][name] for name in ("depth", "seed"))
    figure = rows_of(sweep, records, "reconstruction")
    footer(figure, f"{sweep.caption()}, depth {depth}, seed {seed}", "the test image of highest contrast in each tenth, "
           "the same masks for every network; dB: PSNR on the hidden pixels of the whole test split")  # fmt: skip
    table = [{"mixer": r["config"]["mixer"], "depth": depth, "seed": seed, "psnr": r["psnr"]["test"]} for r in records]
    return figure, pd.DataFrame(table)


def completions(sweep):
    """Autoregressive networks: lower halves filled in pixel by pixel, and images drawn from nothing; first seed."""
    records = [r for r in sweep.records() if r["config"]["pretext"] == "ar" and r["config"]["seed"] == sweep.runs[0]["seed"]]
    table = pd.DataFrame([{"mixer": r["config"]["mixer"], "seed": r["config"]["seed"], "psnr": r["psnr"]["test"]}
                          for r in records], columns=["mixer", "seed", "psnr"])  # fmt: skip
    if not records:
        return None, table
    figure = rows_of(sweep, records, "reconstruction", "sample")
    footer(figure, sweep.caption(), "lower halves completed in raster order, each pixel given all before it (mean prediction, "
           "palette: samples); samples: drawn from nothing; dB: PSNR of one-step predictions on the test split")  # fmt: skip
    return figure, table


def rows_of(sweep, records, *arrays):
    """Original and input of the first record, then the arrays of each."""
    first = sweep.store.arrays(records[0]["key"])
    rows = {"original": first["images"], "input": first["input"]}
    for name in arrays:
        for record in records:
            what = f"{record['psnr']['test']:.1f} dB" if name == "reconstruction" else name
            rows[f"{LABELS[record['config']['mixer']]}\n{what}"] = sweep.store.arrays(record["key"])[name]
    return pictures(rows)


LEVELS = {"levels": studies.levels}
FIGURES = {
    "10_one_run": {"curves": learning_curves, "layers": probe_by_layer},
    "20_trio": {
        "psnr": psnr_by_depth,
        "gap": trends.gap,
        "probe": probe_by_depth,
        "layers": probe_by_layer,
        "curves": learning_curves,
    },
    "21_cube": {"cube": studies.cube, "effects": studies.effects, "interactions": trends.interactions},
    "22_representation": {"levels": studies.every_combination},
    "23_pretext": {**LEVELS, "completions": completions},
    "24_geometry": {**LEVELS, "mask_rate": trends.mask_rate, "loss_probe": trends.loss_probe},
    "25_skip": LEVELS,
    "26_permutation": LEVELS,
    "27_sample_size": {**LEVELS, "sample_size": trends.sample_size},
    "28_position": {"levels": studies.every_combination},
    "29_precision": LEVELS,
    "30_symmetry": {"symmetry": portraits.symmetry, "switch": portraits.switch, "spectrum": portraits.spectrum},
    "31_receptive_field": {"fields": portraits.fields, "distance": portraits.distance, "similarity": portraits.similarity},
    "40_reconstructions": {"rows": reconstructions},
}


def draw(name, sweep):
    """One figure of a sweep by name, for display. Returns a matplotlib Figure, or None if it has no records."""
    with matplotlib.rc_context(STYLE):
        figure, _ = FIGURES[sweep.content["notebook"]][name](sweep)
        if figure:
            figure.draw_without_rendering()
            figure.set_layout_engine(None)  # laid out once, also where it is shown
    return figure


def show(name, sweep):
    """One figure of a sweep by name, for display: the picture that there is of it, or drawn now if its records are others."""
    path = sweep.store.folder / "figures" / f"{sweep.name}-{name}.png"
    return shown(path) if path in drawn(sweep) else draw(name, sweep)


def shown(path):
    """A saved picture, as large as `draw` shows it."""
    from IPython.display import Image

    data = path.read_bytes()
    (width,) = struct.unpack(">I", data[16:20])  # of a PNG
    return Image(data, width=round(width * STYLE["figure.dpi"] / STYLE["savefig.dpi"]))


def source(sweep):
    """Digest of what the pictures and tables of a sweep follow from: what was asked for, its records, the paper's numbers that
    were entered, and the code. None while it lacks records, and for operators of one's own, which only some processes know."""
    if sweep.missing() or "own" in sweep.content["changed"]:
        return None
    try:
        records = [hashlib.sha256(sweep.store.path(key).read_bytes()).hexdigest() for key in sweep.keys]
    except OSError:  # who draws it says why
        return None
    entered = store.read_text(places.results() / "reported.toml")
    return digest([sweep.content, records, entered, code(), matplotlib.__version__, pd.__version__])


def note(sweep):
    """The file that says what the pictures and tables of a sweep were made of."""
    return sweep.store.folder / "sweeps" / f"{sweep.name}.drawn"


def write_note(sweep, made_of, paths):
    """Write down what the pictures and tables of a sweep were made of."""
    names = [str(path.relative_to(sweep.store.folder)) for path in paths]
    write_atomic(note(sweep), to_json({"source": made_of, "paths": names}))


def drawn(sweep):
    """The pictures and tables that there are of a sweep as it is now; none if one is missing or any record has changed."""
    try:
        found = read_json(note(sweep))
        paths = [sweep.store.folder / name for name in found["paths"]]
        return paths if found["source"] == source(sweep) and all(path.is_file() for path in paths) else []
    except (StoreError, KeyError, TypeError):
        return []


def save(figure, stem):
    """Write a figure as PNG, SVG and PDF; returns the paths. To be called within the suite's style."""
    paths = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None}), (".pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        figure.set_layout_engine(None)  # laid out once, for all formats
        paths.append(stem.with_name(stem.name + suffix))
        write_atomic(paths[-1], buffer.getvalue())
    return paths


def write(sweep, folder):
    """Write every figure of a sweep as PNG, SVG and PDF, with its numbers as CSV. Returns the paths."""
    paths = []
    for name, make in FIGURES.get(sweep.content["notebook"], {}).items():
        with matplotlib.rc_context(STYLE):
            figure, table = make(sweep)
            if figure is None:
                continue
            stem = folder / f"{sweep.name}-{name}"
            paths += save(figure, stem)
        paths.append(stem.with_name(f"{stem.name}.csv"))
        write_atomic(paths[-1], table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    return paths
