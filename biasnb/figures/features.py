"""What trained networks do: images they fill in, their symmetry, spectrum, receptive fields, mixing and similar layers."""

import numpy as np
from matplotlib.ticker import NullFormatter

from ..config import CODED
from . import style
from .levels import METRICS, baseline_dashes, done_runs, numbers, percent
from .style import LABELS, canvas, caption, footer, interval_dots, legend, mixers, plain_log, traits

TIMES = {"random init": -0.15, "trained": 0.15}  # moved sideways by


def reconstructions(sweep):
    """Figure 1's arrangement: the original, the masked input, then one row per network of the first depth and seed."""
    records = [record for record in sweep.records() if record["psnr"]["test"] is not None]
    first = {name: records[0]["config"][name] for name in ("depth", "seed")} if records else {}
    records = [record for record in records if first.items() <= record["config"].items()]
    table = numbers(records, ["mixer", "depth", "seed", "psnr"], test_psnr)
    if not records:
        return None, table
    figure = image_rows(sweep, records, "reconstruction")
    footer(figure, f"{sweep.caption()}, depth {first['depth']}, seed {first['seed']}", "the test image of highest contrast in "
           "each tenth, the same masks for every network; dB: PSNR on the hidden pixels of the whole test split")  # fmt: skip
    return figure, table


def completions(sweep):
    """Autoregressive networks: lower halves filled in pixel by pixel, and images drawn from nothing; first seed."""
    wanted = {"pretext": "ar", "seed": sweep.runs[0]["seed"]}
    records = [record for record in sweep.records() if wanted.items() <= record["config"].items()]
    table = numbers(records, ["mixer", "seed", "psnr"], test_psnr)
    if not records:
        return None, table
    figure = image_rows(sweep, records, "reconstruction", "sample")
    footer(figure, sweep.caption(), "lower halves completed in raster order, each pixel given all before it (mean prediction, "
           "palette: samples); samples: drawn from nothing; dB: PSNR of one-step predictions on the test split")  # fmt: skip
    return figure, table


def test_psnr(record):
    return [{"psnr": record["psnr"]["test"]}]


def image_rows(sweep, records, *arrays):
    """Original and input of the first record, then the arrays of each."""
    first = sweep.store.arrays(records[0]["key"])
    rows = {"original": first["images"], "input": first["input"]}
    for name in arrays:
        for record in records:
            what = f"{record['psnr']['test']:.1f} dB" if name == "reconstruction" else name
            rows[f"{LABELS[record['config']['mixer']]}\n{what}"] = sweep.store.arrays(record["key"])[name]
    return style.pictures(rows)


def fields(sweep):
    """Effective receptive fields of the trained networks, averaged over seeds."""

    records, inits, panels = sweep.records(), sweep.inits(), {}

    def sizes(record):
        start = inits.get(record["init"])
        before = start["measures"]["receptive_field"]["distance"] if start else np.nan
        return [{**record["measures"]["receptive_field"], "init_distance": before}]

    table = numbers(records, ["mixer", "seed", "distance", "side50", "side99", "init_distance"], sizes)
    if not records:
        return None, table
    for mixer, part in table.groupby("mixer", sort=False):
        found = [sweep.store.arrays(r["key"])["receptive_field"] for r in records if r["config"]["mixer"] == mixer]
        panels[f"{mixer}  {traits(mixer)}\nhalf within {part.side50.median():g} px"] = np.mean(found, 0)
    figure = style.maps(panels, "", columns=4)
    words = "sensitivity of the centre token's last layer to every input pixel, each map over its own maximum; "
    caption(figure, sweep, words, spread="mean over")
    return figure, table


def measured(sweep, rows, *columns):
    """The frame of rows(measures) for every network of the sweep's first data set, at random init and trained."""

    inits = sweep.inits()

    def both(record):
        found = []
        for network, one in zip(TIMES, (inits.get(record["init"]), record), strict=True):
            found += [{"network": network} | row for row in rows(one["measures"])] if one else []
        return found

    records = [record for record in sweep.records() if record["config"]["dataset"] == sweep.runs[0]["dataset"]]
    return numbers(records, ["mixer", "seed", "network", *columns], both)


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
        where = {"layer": layer, "uniform": measures["uniform_distance"]}
        rows += [{**where, "head": head, "distance": value} for head, value in enumerate(heads)]
    return rows


def before_and_after(ax, sweep, table, column, size, **style):
    """Every network at random init (open) and trained (filled), beside one another."""
    for x, mixer in enumerate(mixers(sweep)):
        for network, shift in TIMES.items():
            values = table[(table.mixer == mixer) & (table.network == network)][column].dropna()
            interval_dots(ax, x + shift, values.tolist(), mixer, network == "trained", **style)
    ax.set_xticks(range(len(mixers(sweep))), [f"{mixer}\n{traits(mixer)}" for mixer in mixers(sweep)], fontsize=size)


def symmetry(sweep):
    """Roll error and Lie error of the last layer, before and after training."""
    table = measured(sweep, last_errors, "roll_error", "lie_error")
    drawn = table.assign(**{name: table[name].clip(lower=1e-8) for name in ("roll_error", "lie_error")})
    figure, (roll, lie) = canvas(8.6, 4.0, 2, sharey=False)
    for ax, name, words in ((roll, "roll_error", "roll error"), (lie, "lie_error", "Lie error, per pixel²")):
        before_and_after(ax, sweep, drawn, name, 8)
        ax.set_ylabel(f"{words}, last layer")
    roll.set_yscale("log")
    roll.yaxis.set_minor_formatter(NullFormatter())
    plain_log(lie)
    caption(figure, sweep, "smaller: features move more exactly with the image; open: random init, filled: trained; "
            "●: local, shared, dynamic; the grid is a torus, without a border to see; an exact 0 stands at 1e-8; ")  # fmt: skip
    return figure, table


def switch(sweep):
    """Static cells where the translation prior is true and where it is false."""
    twin = next((run["dataset"] for run in sweep.runs if run["dataset"] in CODED), "leaves_coded")
    plain = CODED[twin]
    twins = {plain: f"{plain}\n(prior true)", twin: "twin with a code by place\n(prior false)"}
    runs = done_runs(sweep)
    asked = {run["mixer"] for run in sweep.runs if run["dataset"] == twin}
    runs = runs[runs.dataset.isin(twins) & runs.mixer.isin(asked) & (runs.padding != "circular")]
    table = runs[["mixer", "dataset", "seed", "psnr", "probe", "init_probe"]]
    if not any(run["dataset"] in twins for run in sweep.runs):
        return None, table
    figure, axes = canvas(8.6, 4.0, 2, sharey=False)
    names = [mixer for mixer in mixers(sweep) if mixer in set(runs.mixer)] or ["conv"]
    for ax, metric in zip(axes, METRICS, strict=True):
        for x, data in enumerate(twins):
            part = percent(runs[runs.dataset == data])
            for mixer, shift in zip(names, np.linspace(-0.2, 0.2, len(names)), strict=True):
                interval_dots(ax, x + shift, part[part.mixer == mixer][metric].dropna().tolist(), mixer)
            baseline_dashes(ax, x, part, metric, 0.35)
        ax.set_xticks(range(len(twins)), twins.values())
        ax.set_xlim(-0.5, 1.5)
        ax.set_ylabel(METRICS[metric].replace("\n", " "))
    legend(figure, names)
    caption(figure, sweep, "a data set and its twin; dashes: visible-neighbour mean, raw pixels; ", plain)
    return figure, table


def spectrum(sweep):
    """Log amplitude of the last layer's spectrum relative to frequency 0, along the half diagonal."""
    table = measured(sweep, last_spectrum, "frequency", "amplitude")
    figure, axes = canvas(8.6, 4.0, 2)
    for ax, network in zip(axes, TIMES, strict=True):
        for mixer in mixers(sweep):
            mean = table[(table.mixer == mixer) & (table.network == network)].groupby("frequency").amplitude.mean()
            ax.plot(mean.index, mean, color=style.COLOURS[mixer], marker=style.MARKERS[mixer], markersize=5)
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
            ax.axhline(table.uniform.iloc[0], color=style.GREY, linestyle="--", linewidth=1)
        ax.set_title(f"layer {layer}", loc="left")
    axes[0].set_ylabel("mean mixing distance, tokens")
    words = "small dots: heads and seeds; open: random init, filled: trained; dashes: uniform mixing; "
    caption(figure, sweep, words, spread="mean over heads and")
    return figure, table


def similarity(sweep):
    """CKA between the layers of each trained network, first seed."""

    def pairs(record):
        cells = np.ndenumerate(np.array(record["measures"]["cka"]))
        return [{"layer": layer, "other": other, "cka": value} for (layer, other), value in cells]

    seed = sweep.runs[0]["seed"]
    chosen = [record for record in sweep.records() if record["config"]["seed"] == seed]
    table = numbers(chosen, ["mixer", "seed", "layer", "other", "cka"], pairs)
    if table.empty:
        return None, table
    import seaborn as sns  # takes a while

    figure, axes = style.panels_of([f"{r['config']['mixer']}  {traits(r['config']['mixer'])}" for r in chosen], columns=4)
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
