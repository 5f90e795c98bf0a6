"""Figures of what trained networks are: their symmetry, spectrum, receptive fields, mixing and features. Imports no torch."""

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from ..records.sweep import with_columns
from .studies import NAMES, done_runs, interval_dots, legend, traits
from .style import COLOURS, MARKERS, canvas, caption, maps, mixers, panels_of, plain_log


def measured(sweep, rows):
    """Records of the sweep's first data set, flattened: rows(record, measures) for init and trained networks."""
    first = sweep.runs[0]["dataset"]
    found = [{"mixer": r["config"]["mixer"], "seed": r["config"]["seed"], "network": name, **row}
             for r in sweep.records() if r["config"]["dataset"] == first
             for name, part in (("random init", r["init_measures"]), ("trained", r["measures"]))
             for row in rows(part)]  # fmt: skip
    return pd.DataFrame(found)


def symmetry(sweep):
    """Roll error and Lie error of the last layer, before and after training."""
    table = measured(
        sweep, lambda m: [{"roll_error": m["roll_error"][-1], "lie_error": (m["lie_error"] or [float("nan")])[-1]}]
    )
    table = with_columns(table, "mixer", "seed", "network", "roll_error", "lie_error")
    figure, axes = canvas(8.6, 4.0, 2, sharey=False)
    words = {"roll_error": "roll error", "lie_error": "Lie error, per pixel²"}
    for ax, (metric, label) in zip(axes, words.items(), strict=True):
        for x, mixer in enumerate(mixers(sweep)):
            for name, filled, shift in (("random init", False, -0.15), ("trained", True, 0.15)):
                values = table[(table.mixer == mixer) & (table.network == name)][metric].dropna().clip(lower=1e-8)
                interval_dots(ax, x + shift, values.tolist(), mixer, filled)
        if metric == "roll_error":
            ax.set_yscale("log")
            ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            plain_log(ax)
        ax.set_xticks(range(len(mixers(sweep))), [f"{m}\n{traits(m)}" for m in mixers(sweep)], fontsize=8)
        ax.set_ylabel(f"{label}, last layer")
    caption(figure, sweep, "smaller: features move more exactly with the image; open: random init, filled: trained; "
            "●: local, shared, dynamic; the grid is a torus, without a border to see; an exact 0 stands at 1e-8; ")  # fmt: skip
    return figure, table


def switch(sweep):
    """Static cells where the translation prior is true and where it is false."""
    runs = done_runs(sweep)
    runs = runs[runs.dataset.isin(("leaves", "leaves_coded"))]
    table = runs[["mixer", "dataset", "seed", "psnr", "probe", "init_probe"]]
    figure, axes = canvas(8.6, 4.0, 2, sharey=False)
    names = [m for m in mixers(sweep) if m in set(runs.mixer)] or ["conv"]
    for ax, (metric, scale, baseline) in zip(
        axes, (("psnr", 1, "baseline_psnr"), ("probe", 100, "baseline_probe")), strict=True
    ):
        for x, data in enumerate(("leaves", "leaves_coded")):
            part = runs[runs.dataset == data]
            for mixer, shift in zip(names, np.linspace(-0.2, 0.2, len(names)), strict=True):
                interval_dots(ax, x + shift, (scale * part[part.mixer == mixer][metric].dropna()).tolist(), mixer)
            for value in set((scale * part[baseline].dropna()).round(6)):
                ax.plot([x - 0.35, x + 0.35], [value, value], "--", color="0.45", linewidth=1)
        ax.set_xticks((0, 1), ("leaves\n(prior true)", "column-coded twin\n(prior false)"))
        ax.set_xlim(-0.5, 1.5)
        ax.set_ylabel(NAMES[metric].replace("\n", " "))
    legend(figure, names)
    caption(figure, sweep, "the generated field and its twin; dashes: visible-neighbour mean, raw pixels; ", "dead leaves")
    return figure, table


def spectrum(sweep):
    """Log amplitude of the last layer's spectrum relative to frequency 0, along the half diagonal."""
    table = measured(sweep, lambda m: [{"frequency": i / (len(m["spectrum"][-1]) - 1), "amplitude": value}
                                      for i, value in enumerate(m["spectrum"][-1])])  # fmt: skip
    table = with_columns(table, "mixer", "seed", "network", "frequency", "amplitude")
    figure, axes = canvas(8.6, 4.0, 2)
    for ax, network in zip(axes, ("random init", "trained"), strict=True):
        for mixer in mixers(sweep):
            mean = table[(table.mixer == mixer) & (table.network == network)].groupby("frequency").amplitude.mean()
            ax.plot(mean.index, mean, color=COLOURS[mixer], marker=MARKERS[mixer], markersize=5)
        ax.set_title(network, loc="left")
        ax.set_xlabel("frequency along the half diagonal, of the highest")
    axes[0].set_ylabel("log amplitude over that at frequency 0")
    legend(figure, mixers(sweep))
    caption(figure, sweep, "curve of the last layer; lower is smoother; ", spread="mean over")
    return figure, table


def fields(sweep):
    """Effective receptive fields of the trained networks, averaged over seeds."""
    found, table = {}, []
    for record in sweep.records():
        mixer, field = record["config"]["mixer"], record["measures"]["receptive_field"]
        found.setdefault(mixer, []).append((sweep.store.arrays(record["key"])["receptive_field"], field["side50"]))
        table.append({"mixer": mixer, "seed": record["config"]["seed"], **field,
                      "init_distance": record["init_measures"]["receptive_field"]["distance"]})  # fmt: skip
    if not found:
        return None, pd.DataFrame(columns=["mixer", "seed", "side50", "side99", "distance", "init_distance"])
    found = {m: ([a for a, _ in runs], np.median([side for _, side in runs])) for m, runs in found.items()}
    labels = {f"{m}  {traits(m)}\nhalf within {side:g} px": np.mean(arrays, 0) for m, (arrays, side) in found.items()}
    figure = maps(labels, "", columns=4)
    caption(
        figure,
        sweep,
        "sensitivity of the centre token's last layer to every input pixel, each map over its own maximum; ",
        spread="mean over",
    )
    return figure, pd.DataFrame(table)


def distance(sweep):
    """Mean mixing distance of every head and layer, before and after training, with that of uniform mixing."""
    table = measured(sweep, lambda m: [{"layer": i, "head": g, "distance": distance, "uniform": m["uniform_distance"]}
                                      for i, heads in enumerate(m["mixing_distance"], 1)
                                      for g, distance in enumerate(heads)])  # fmt: skip
    table = with_columns(table, "mixer", "seed", "network", "layer", "head", "distance", "uniform")
    last = int(table.layer.max()) if len(table) else 1
    figure, axes = canvas(1.6 + 3.6 * last, 4.0, last)
    for ax, layer in zip(axes, range(1, last + 1), strict=True):
        for x, mixer in enumerate(mixers(sweep)):
            for name, filled, shift in (("random init", False, -0.15), ("trained", True, 0.15)):
                part = table[(table.mixer == mixer) & (table.network == name) & (table.layer == layer)]
                interval_dots(ax, x + shift, part.distance.tolist(), mixer, filled, spread=False)
        if len(table):
            ax.axhline(table.uniform.iloc[0], color="0.45", linestyle="--", linewidth=1)
        ax.set_xticks(range(len(mixers(sweep))), [f"{m}\n{traits(m)}" for m in mixers(sweep)], fontsize=7.5)
        ax.set_title(f"layer {layer}", loc="left")
    axes[0].set_ylabel("mean mixing distance, tokens")
    caption(
        figure,
        sweep,
        "small dots: heads and seeds; open: random init, filled: trained; dashes: uniform mixing; ",
        spread="mean over heads and",
    )
    return figure, table


def similarity(sweep):
    """CKA between the layers of each trained network, first seed."""
    seed = sweep.runs[0]["seed"]
    chosen = [r for r in sweep.records() if r["config"]["seed"] == seed]
    table = [{"mixer": r["config"]["mixer"], "seed": seed, "layer": i, "other": j, "cka": value}
             for r in chosen for i, row in enumerate(r["measures"]["cka"]) for j, value in enumerate(row)]  # fmt: skip
    if not table:
        return None, pd.DataFrame(columns=["mixer", "seed", "layer", "other", "cka"])
    import seaborn as sns  # takes a while

    figure, axes = panels_of([f"{r['config']['mixer']}  {traits(r['config']['mixer'])}" for r in chosen], columns=4)
    for ax, record in zip(axes, chosen, strict=True):
        values = np.array(record["measures"]["cka"])
        sns.heatmap(values, vmin=0, vmax=1, cmap="viridis", square=True, cbar=False, ax=ax,
                    annot=len(values) <= 6, fmt=".2f", annot_kws={"size": 7.5})  # fmt: skip
        ax.set_xlabel("layer", fontsize=8)
        ax.tick_params("y", rotation=0)
    figure.colorbar(ax.collections[0], ax=figure.axes, shrink=0.75, label="0: unrelated, 1: the same")
    words = f"linear CKA of token-averaged features between layers 0 (embedding, top left) and L; seed {seed}"
    caption(figure, sweep, words, spread="")
    return figure, pd.DataFrame(table)
