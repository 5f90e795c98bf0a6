"""Tables from records: pandas frames, written as Markdown and CSV. Imports no torch."""

from itertools import combinations

import pandas as pd

from .figures import FLOORS, LABELS, depths_of, mixers, with_columns
from .stats import mean_interval
from .store import write_atomic


def plus_minus(values, digits):
    """'mean ± half-width' of the 95 % interval; the bare mean for one value, a dash for none."""
    mean, half, n = mean_interval(values)
    if not n:
        return "—"
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if n > 1 else "")


def by_network(grid):
    """Groups of a grid's frame, (mixer, depth) -> rows, in the order they were asked for."""
    return grid.frame().groupby(["mixer", "depth"], sort=False)


def baselines(grid):
    """Rows of the untrained baselines; none if their record is missing."""
    floor = grid.floor()
    return (
        [{"network": FLOORS[name], "masked PSNR, dB": f"{value:.2f}"} for name, value in floor["psnr"].items()] if floor else []
    )


def trio(grid):
    """One row per network and depth: mean ± 95 % interval over n seeds; missing and diverged runs are counted."""
    rows = []
    for (mixer, depth), runs in by_network(grid):
        done = with_columns(runs[runs.status == "done"], "psnr", "loss", "probe", "init_probe", "knn")
        rows.append(
            {
                "network": LABELS[mixer],
                "depth": depth,
                "masked PSNR, dB": plus_minus(done.psnr, 2),
                "masked loss": plus_minus(done.loss, 3),
                "probe, %": plus_minus(100 * done.probe, 1),
                "probe at random init, %": plus_minus(100 * done.init_probe, 1),
                "k-NN, %": plus_minus(100 * done.knn, 1),
                "n": len(done),
                "diverged": int((runs.status == "diverged").sum()),
                "missing": int((runs.status == "missing").sum()),
            }
        )
    rows += baselines(grid)
    floor = grid.floor()
    if floor:
        rows.append({"network": "raw pixels", "probe, %": f"{100 * floor['pixel_probe']['test']:.1f}"})
    return tidy(rows)


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
                    "n": int(psnr.notna().sum()),
                }
            )
    return tidy(rows)


def cost(grid):
    """Parameters by part, FLOP of a forward pass and measured speed, per network and depth."""
    rows = []
    for (mixer, depth), runs in by_network(grid):
        done = runs[runs.status == "done"]
        if done.empty:
            continue
        parts = {part: int(done[f"parameters_{part}"].iloc[0]) for part in ("mixing", "channel", "embedding")}
        rows.append(
            {
                "network": LABELS[mixer],
                "depth": depth,
                **{f"{part} parameters": n for part, n in parts.items()},
                "MFLOP per image": round(done.flop_per_image.iloc[0] / 1e6, 2),
                "images/s in training": round(done.images_per_second.median()),
            }
        )
    return tidy(rows)


def reconstruction(grid):
    """PSNR of the pictured networks beside the three baselines."""
    rows = [{"network": LABELS[r["config"]["mixer"]], "depth": r["config"]["depth"],
             "masked PSNR, dB": f"{r['psnr']['test']:.2f}"} for r in grid.records()]  # fmt: skip
    return tidy(rows + baselines(grid))


def tidy(rows):
    """Rows as a frame, empty where a row has no such column; whole numbers stay whole."""
    return pd.DataFrame(rows, dtype=object).fillna("")


TABLES = {
    "10_one_run": {"run": trio},
    "20_trio": {"trio": trio, "differences": differences, "cost": cost},
    "40_reconstructions": {"psnr": reconstruction},
}


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
