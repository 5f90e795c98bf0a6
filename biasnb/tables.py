"""Tables from records: pandas frames, written as Markdown and CSV. Imports no torch."""

from itertools import combinations, product

import numpy as np
import pandas as pd

from .stats import mean_interval
from .store import write_atomic
from .studies import EFFECTS, cube_effects, shown, traits
from .style import FLOORS, LABELS, depths_of, mixers, with_columns


def plus_minus(values, digits):
    """'mean ± half-width' of the 95 % interval; the bare mean for one value, a dash for none."""
    mean, half, n = mean_interval(values)
    if not n:
        return "—"
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if n > 1 else "")


def by_network(grid):
    """Groups of a grid's frame, (mixer, *factors) -> rows, in the order they were asked for."""
    return grid.frame().groupby(["mixer", *grid.factors()], sort=False, dropna=False)


def baselines(grid):
    """Rows of the untrained baselines; none if their record is missing."""
    floor = grid.floor()
    return (
        [{"network": FLOORS[name], "masked PSNR, dB": f"{value:.2f}"} for name, value in floor["psnr"].items()] if floor else []
    )


def summary(grid):
    """One row per network and level: mean ± 95 % interval over n seeds beside the floors of the same data and masks; missing
    and diverged runs are counted. What no run has is left out."""
    rows = []
    for (mixer, *levels), runs in by_network(grid):
        wanted = ("psnr", "loss", "probe", "init_probe", "knn", "accuracy", "context_coverage", "bits_per_pixel")
        done = with_columns(runs[runs.status == "done"], *wanted)
        bert = "bert" in set(runs.pretext)
        rows.append(
            {
                "network": LABELS[mixer],
                **{name: shown(name, level) for name, level in zip(grid.factors(), levels, strict=True)},
                "masked PSNR, dB" if bert else "PSNR, dB": plus_minus(done.psnr, 2),
                "neighbour mean, dB": plus_minus(runs.floor_psnr.iloc[:1], 2) if bert else "",
                "loss": plus_minus(done.loss, 3),
                "bits per pixel": plus_minus(done.bits_per_pixel, 3),
                "accuracy, %": plus_minus(100 * done.accuracy, 1),
                "probe, %": plus_minus(100 * done.probe, 1),
                "probe at random init, %": plus_minus(100 * done.init_probe, 1),
                "raw pixels, %": plus_minus(100 * runs.floor_probe.iloc[:1], 1),
                "k-NN, %": plus_minus(100 * done.knn, 1),
                "context read, %": plus_minus(100 * done.context_coverage, 1) if runs.pretext.iloc[0] == "ar" else "",
                "n": len(done),
                "diverged": int((runs.status == "diverged").sum()),
                "missing": int((runs.status == "missing").sum()),
            }
        )
    table = tidy(rows)
    return table[[name for name in table if set(table[name]) - {"", "—"}]]


def differences(grid):
    """Paired by seed: every two networks at the same depth, mean ± 95 % interval of the difference over n pairs."""
    done = with_columns(grid.frame(), "psnr", "probe")
    done = done[done.status == "done"]
    rows = []
    for other, mixer in combinations(mixers(grid), 2):
        for depth in depths_of(grid):
            one, base = (done[(done.mixer == m) & (done.depth == depth)].set_index("seed") for m in (mixer, other))
            psnr, probe = one.psnr - base.psnr, 100 * (one.probe - base.probe)
            rows.append(
                {
                    "difference": f"{LABELS[mixer]} − {LABELS[other]}",
                    "depth": depth,
                    "masked PSNR, dB": plus_minus(psnr, 2),
                    "probe, points": plus_minus(probe, 1),
                    "n": int(probe.notna().sum()),
                }
            )
    return tidy(rows)


def cost(grid):
    """Parameters by part, FLOP of a forward pass and measured speed, per network and level."""
    rows = []
    for (mixer, *levels), runs in by_network(grid):
        done = runs[runs.status == "done"]
        row = {"network": LABELS[mixer]}
        row |= {name: shown(name, level) for name, level in zip(grid.factors(), levels, strict=True)}
        if len(done):
            parts = ("mixing", "channel", "embedding")
            row |= {f"{part} parameters": int(done[f"parameters_{part}"].iloc[0]) for part in parts}
            row["MFLOP per image"] = round(done.flop_per_image.iloc[0] / 1e6, 2)
            row["images/s in training"] = round(done.images_per_second.median())
        rows.append({**row, "n": len(done)})
    return tidy(rows)


def effects(grid):
    """Main effects and interactions of the cube, paired by seed: mean ± 95 % interval over n seeds."""
    found = cube_effects(grid)
    rows = []
    for task, effect in product(dict.fromkeys(run["pretext"] for run in grid.runs), EFFECTS.values()):
        part = found[(found.pretext == task) & (found.effect == effect)]
        psnr, probe = (part[part.metric == metric].value for metric in ("psnr", "probe"))
        rows.append({"pretext": task, "effect": effect, "PSNR, dB": plus_minus(psnr, 2), "probe, points": plus_minus(probe, 1),
                     "n": len(probe)})  # fmt: skip
    return tidy(rows)


def measures(grid):
    """Measures of every network of the first data set, at random init → after training, means over seeds."""
    rows, first = [], grid.runs[0]["dataset"]
    found = {run["mixer"]: [] for run in grid.runs if run["dataset"] == first}
    growth = {mixer: [] for mixer in found}
    for record in grid.records():
        if record["config"]["dataset"] == first:
            found[record["config"]["mixer"]].append((record["init_measures"], record["measures"]))
            growth[record["config"]["mixer"]].append(record["history"])
    wanted = {
        "roll error, last layer": lambda m: m["roll_error"][-1],
        "Lie error, last layer": lambda m: (m["lie_error"] or [np.nan])[-1],
        "receptive field, 50 % side, px": lambda m: m["receptive_field"]["side50"],
        "receptive field, 99 % side, px": lambda m: m["receptive_field"]["side99"],
        "mixing distance, layer 1, tokens": lambda m: np.mean(m["mixing_distance"][0]),
        "mixing distance, last layer, tokens": lambda m: np.mean(m["mixing_distance"][-1]),
    }
    for mixer, pairs in found.items():
        row = {"network": LABELS[mixer], "local, shared, dynamic": traits(mixer)}
        for name, value in wanted.items():
            means = (np.mean([value(pair[i]) for pair in pairs]) for i in (0, 1)) if pairs else ()
            row[name] = " → ".join(f"{mean:.3g}" for mean in means) or "—"
        norms = [history[-1]["weight_norm"] / history[0]["weight_norm"] for history in growth[mixer] if history]
        rows.append({**row, "growth of the weights' norm": f"{np.mean(norms):.2f}x" if norms else "", "n": len(pairs)})
    return tidy(rows)


def reconstruction(grid):
    """PSNR of the pictured networks beside the three baselines."""
    runs = with_columns(grid.frame(), "psnr")
    rows = [{"network": LABELS[r.mixer], "depth": r.depth, "masked PSNR, dB": plus_minus([r.psnr], 2)}
            for r in runs.itertuples()]  # fmt: skip
    return tidy(rows + baselines(grid))


def tidy(rows):
    """Rows as a frame, empty where a row has no such column; whole numbers stay whole."""
    return pd.DataFrame(rows, dtype=object).fillna("")


SUMMARY = {"summary": summary}
TABLES = {
    "10_one_run": {"run": summary},
    "20_trio": {"trio": summary, "differences": differences, "cost": cost},
    "21_cube": {"summary": summary, "effect_sizes": effects, "cost": cost},
    **dict.fromkeys(("22_representation", "23_pretext", "24_geometry", "25_skip", "26_permutation", "27_sample_size",
                     "28_position"), SUMMARY),
    "30_symmetry": {"summary": summary, "measures": measures},
    "31_receptive_field": {"measures": measures},
    "40_reconstructions": {"psnr": reconstruction},
}  # fmt: skip


def write(grid, folder):
    """Write every table of a grid as Markdown and CSV to a folder. Returns the paths."""
    paths = []
    for name, make in TABLES.get(grid.content["experiment"], {}).items():
        table = make(grid)
        markdown = f"{grid.caption()}\n\n{table.to_markdown(index=False)}\n"
        for suffix, content in ((".md", markdown), (".csv", table.to_csv(index=False, lineterminator="\n"))):
            paths.append(folder / f"{grid.name}-{name}{suffix}")
            write_atomic(paths[-1], content)
    return paths
