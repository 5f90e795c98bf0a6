"""What trained networks do: images they fill in, their symmetry, spectrum, receptive fields, mixing and similar layers."""

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from ..records.sweep import with_columns
from .levels import METRICS, baseline_dashes, done_runs, percent
from .style import (
    COLOURS,
    GREY,
    LABELS,
    MARKERS,
    canvas,
    caption,
    footer,
    interval_dots,
    legend,
    maps,
    mixers,
    panels_of,
    pictures,
    plain_log,
    traits,
)

TIMES = {"random init": ("init_measures", -0.15), "trained": ("measures", 0.15)}  # in the record; moved sideways by
TWINS = {"leaves": "leaves\n(prior true)", "leaves_coded": "column-coded twin\n(prior false)"}


# ---- images ---------------------------------------------------------------------------------------------------------


def reconstructions(sweep):
    """Figure 1's arrangement: the original, the masked input, then one row per network of the first depth and seed."""
    records = [record for record in sweep.records() if record["psnr"]["test"] is not None]
    if not records:
        return None, pd.DataFrame(columns=["mixer", "depth", "seed", "psnr"])
    depth, seed = records[0]["config"]["depth"], records[0]["config"]["seed"]
    records = [record for record in records if (record["config"]["depth"], record["config"]["seed"]) == (depth, seed)]
    figure = image_rows(sweep, records, "reconstruction")
    footer(figure, f"{sweep.caption()}, depth {depth}, seed {seed}", "the test image of highest contrast in each tenth, "
           "the same masks for every network; dB: PSNR on the hidden pixels of the whole test split")  # fmt: skip
    table = [{"mixer": r["config"]["mixer"], "depth": depth, "seed": seed, "psnr": r["psnr"]["test"]} for r in records]
    return figure, pd.DataFrame(table)


def completions(sweep):
    """Autoregressive networks: lower halves filled in pixel by pixel, and images drawn from nothing; first seed."""
    wanted = {"pretext": "ar", "seed": sweep.runs[0]["seed"]}
    records = [record for record in sweep.records() if wanted.items() <= record["config"].items()]
    rows = [{"mixer": r["config"]["mixer"], "seed": r["config"]["seed"], "psnr": r["psnr"]["test"]} for r in records]
    table = pd.DataFrame(rows, columns=["mixer", "seed", "psnr"])
    if not records:
        return None, table
    figure = image_rows(sweep, records, "reconstruction", "sample")
    footer(figure, sweep.caption(), "lower halves completed in raster order, each pixel given all before it (mean prediction, "
           "palette: samples); samples: drawn from nothing; dB: PSNR of one-step predictions on the test split")  # fmt: skip
    return figure, table


def image_rows(sweep, records, *arrays):
    """Original and input of the first record, then the arrays of each."""
    first = sweep.store.arrays(records[0]["key"])
    rows = {"original": first["images"], "input": first["input"]}
    for name in arrays:
        for record in records:
            what = f"{record['psnr']['test']:.1f} dB" if name == "reconstruction" else name
            rows[f"{LABELS[record['config']['mixer']]}\n{what}"] = sweep.store.arrays(record["key"])[name]
    return pictures(rows)


def fields(sweep):
    """Effective receptive fields of the trained networks, averaged over seeds."""
    arrays, table = {}, []
    for record in sweep.records():
        mixer = record["config"]["mixer"]
        arrays.setdefault(mixer, []).append(sweep.store.arrays(record["key"])["receptive_field"])
        table.append({"mixer": mixer, "seed": record["config"]["seed"], **record["measures"]["receptive_field"],
                      "init_distance": record["init_measures"]["receptive_field"]["distance"]})  # fmt: skip
    table = with_columns(pd.DataFrame(table), "mixer", "seed", "side50", "side99", "distance", "init_distance")
    if not arrays:
        return None, table
    panels = {}
    for mixer, found in arrays.items():
        side = table[table.mixer == mixer].side50.median()
        panels[f"{mixer}  {traits(mixer)}\nhalf within {side:g} px"] = np.mean(found, 0)
    figure = maps(panels, "", columns=4)
    words = "sensitivity of the centre token's last layer to every input pixel, each map over its own maximum; "
    caption(figure, sweep, words, spread="mean over")
    return figure, table


# ---- measures -------------------------------------------------------------------------------------------------------


def measured(sweep, rows, *columns):
    """The frame of rows(measures) for every network of the sweep's first data set, at random init and trained."""
    found = []
    for record in sweep.records():
        cfg = record["config"]
        if cfg["dataset"] == sweep.runs[0]["dataset"]:
            for network, (part, _) in TIMES.items():
                run = {"mixer": cfg["mixer"], "seed": cfg["seed"], "network": network}
                found += [run | row for row in rows(record[part])]
    return with_columns(pd.DataFrame(found), "mixer", "seed", "network", *columns)


def last_errors(measures):
    """The errors of the last layer; no Lie error where the input is colour indices."""
    lie = measures["lie_error"]
    return [{"roll_error": measures["roll_error"][-1], "lie_error": lie[-1] if lie else np.nan}]


def last_spectrum(measures):
    """The spectrum of the last layer, by frequency from 0 to the highest, 1."""
    values = measures["spectrum"][-1]
    return [{"frequency": i / (len(values) - 1), "amplitude": value} for i, value in enumerate(values)]


def head_distances(measures):
    """The mean mixing distance of every head of every layer, and of uniform mixing."""
    rows = []
    for layer, heads in enumerate(measures["mixing_distance"], 1):
        for head, value in enumerate(heads):
            rows.append({"layer": layer, "head": head, "distance": value, "uniform": measures["uniform_distance"]})
    return rows


def before_and_after(ax, sweep, table, column, size, **style):
    """Every network at random init (open) and trained (filled), beside one another."""
    for x, mixer in enumerate(mixers(sweep)):
        for network, (_, shift) in TIMES.items():
            values = table[(table.mixer == mixer) & (table.network == network)][column].dropna()
            interval_dots(ax, x + shift, values.tolist(), mixer, network == "trained", **style)
    ax.set_xticks(range(len(mixers(sweep))), [f"{mixer}\n{traits(mixer)}" for mixer in mixers(sweep)], fontsize=size)


def symmetry(sweep):
    """Roll error and Lie error of the last layer, before and after training."""
    table = measured(sweep, last_errors, "roll_error", "lie_error")
    drawn = table.assign(**{name: table[name].clip(lower=1e-8) for name in ("roll_error", "lie_error")})
    figure, (roll, lie) = canvas(8.6, 4.0, 2, sharey=False)
    before_and_after(roll, sweep, drawn, "roll_error", 8)
    roll.set_yscale("log")
    roll.yaxis.set_minor_formatter(NullFormatter())
    roll.set_ylabel("roll error, last layer")
    before_and_after(lie, sweep, drawn, "lie_error", 8)
    plain_log(lie)
    lie.set_ylabel("Lie error, per pixel², last layer")
    caption(figure, sweep, "smaller: features move more exactly with the image; open: random init, filled: trained; "
            "●: local, shared, dynamic; the grid is a torus, without a border to see; an exact 0 stands at 1e-8; ")  # fmt: skip
    return figure, table


def switch(sweep):
    """Static cells where the translation prior is true and where it is false."""
    runs = done_runs(sweep)
    runs = runs[runs.dataset.isin(TWINS)]
    table = runs[["mixer", "dataset", "seed", "psnr", "probe", "init_probe"]]
    if not any(run["dataset"] in TWINS for run in sweep.runs):
        return None, table
    figure, axes = canvas(8.6, 4.0, 2, sharey=False)
    names = [mixer for mixer in mixers(sweep) if mixer in set(runs.mixer)] or ["conv"]
    for ax, metric in zip(axes, METRICS, strict=True):
        for x, data in enumerate(TWINS):
            part = percent(runs[runs.dataset == data])
            for mixer, shift in zip(names, np.linspace(-0.2, 0.2, len(names)), strict=True):
                interval_dots(ax, x + shift, part[part.mixer == mixer][metric].dropna().tolist(), mixer)
            baseline_dashes(ax, x, part, metric, 0.35)
        ax.set_xticks(range(len(TWINS)), TWINS.values())
        ax.set_xlim(-0.5, 1.5)
        ax.set_ylabel(METRICS[metric].replace("\n", " "))
    legend(figure, names)
    caption(figure, sweep, "the generated field and its twin; dashes: visible-neighbour mean, raw pixels; ", "dead leaves")
    return figure, table


def spectrum(sweep):
    """Log amplitude of the last layer's spectrum relative to frequency 0, along the half diagonal."""
    table = measured(sweep, last_spectrum, "frequency", "amplitude")
    figure, axes = canvas(8.6, 4.0, 2)
    for ax, network in zip(axes, TIMES, strict=True):
        for mixer in mixers(sweep):
            mean = table[(table.mixer == mixer) & (table.network == network)].groupby("frequency").amplitude.mean()
            ax.plot(mean.index, mean, color=COLOURS[mixer], marker=MARKERS[mixer], markersize=5)
        ax.set_title(network, loc="left")
        ax.set_xlabel("frequency along the half diagonal, of the highest")
    axes[0].set_ylabel("log amplitude over that at frequency 0")
    legend(figure, mixers(sweep))
    caption(figure, sweep, "curve of the last layer; lower is smoother; ", spread="mean over")
    return figure, table


def distance(sweep):
    """Mean mixing distance of every head and layer, before and after training, with that of uniform mixing."""
    table = measured(sweep, head_distances, "layer", "head", "distance", "uniform")
    last = int(table.layer.max()) if len(table) else 1
    figure, axes = canvas(1.6 + 3.6 * last, 4.0, last)
    for layer, ax in enumerate(axes, 1):
        before_and_after(ax, sweep, table[table.layer == layer], "distance", 7.5, spread=False)
        if len(table):
            ax.axhline(table.uniform.iloc[0], color=GREY, linestyle="--", linewidth=1)
        ax.set_title(f"layer {layer}", loc="left")
    axes[0].set_ylabel("mean mixing distance, tokens")
    words = "small dots: heads and seeds; open: random init, filled: trained; dashes: uniform mixing; "
    caption(figure, sweep, words, spread="mean over heads and")
    return figure, table


def similarity(sweep):
    """CKA between the layers of each trained network, first seed."""
    seed, table = sweep.runs[0]["seed"], []
    chosen = [record for record in sweep.records() if record["config"]["seed"] == seed]
    for record in chosen:
        for (layer, other), value in np.ndenumerate(np.array(record["measures"]["cka"])):
            table.append({"mixer": record["config"]["mixer"], "seed": seed, "layer": layer, "other": other, "cka": value})
    table = with_columns(pd.DataFrame(table), "mixer", "seed", "layer", "other", "cka")
    if table.empty:
        return None, table
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
    return figure, table
