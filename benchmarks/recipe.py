"""The pilot that chose the recipe of the profiles, and its table in docs/recipe.md.

    python benchmarks/recipe.py              # train what is missing, write docs/recipe.csv and the table
    python benchmarks/recipe.py --only-table

Every arm is trained at the sizes of profile `cifar10` on 9 600 images, by both optimizers at three rates, in batches of 16
and 32. The seeds are not evaluated anywhere else."""

import argparse
from pathlib import Path

import pandas as pd

from biasnb.operators import CUBE, TRIO
from biasnb.records.files import write_atomic
from biasnb.records.keys import init_key, key
from biasnb.records.store import Store
from biasnb.records.sweep import frame
from biasnb.sweep import Study, executor

IMAGES = 9600  # that every run is trained on, counted as often as they are seen
SEEDS = (1000, 1001, 1002)
RATES = {"adamw": (0.0075, 0.015, 0.03), "muon": (0.015, 0.03, 0.06)}  # half, once and twice the best of a first trial
BATCHES = {16: (TRIO, CUBE), 32: (TRIO,)}  # batch -> groups of operators
PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"
ROWS = PAGE.with_suffix(".csv")  # a row per run
BEGIN, END = "<!-- table: python benchmarks/recipe.py -->", "<!-- end of the table -->"


def arms():
    """The Configs of the pilot."""
    found = []
    for batch, groups in BATCHES.items():
        for mixers in groups:
            for optimizer, rates in RATES.items():
                levels = {"mixer": mixers, "optimizer": [optimizer], "lr": rates, "seed": SEEDS}
                study = Study("recipe", "cifar10", {"batch": batch, "steps": IMAGES // batch}, **levels)
                runs = study.every_combination("mixer", "lr", "seed")
                found += study.with_positions(runs) if mixers is CUBE else runs
    return found


def collected(store):
    """One row per run: those of docs/recipe.csv, and those that the store has beside them, which are added to it. The probe of
    a run is chosen by its own validation images."""
    rows = pd.read_csv(ROWS).to_dict("records") if ROWS.is_file() else []
    known = {row["key"] for row in rows}
    for cfg in arms():
        if key(cfg) not in known and store.has(key(cfg)) and store.has(init_key(cfg)):
            (run,) = frame([store.load(key(cfg)), store.load(init_key(cfg))]).itertuples()
            rows.append(
                {
                    "key": run.key,
                    "batch": run.batch,
                    "operator": run.mixer,
                    "optimizer": run.optimizer,
                    "rate": run.lr,
                    "seed": run.seed,
                    "PSNR, dB": round(run.psnr, 3),
                    "probe at random init, %": round(100 * run.init_probe, 2),
                    "probe, %": round(100 * run.probe, 2),
                    "seconds": round(run.wall_seconds, 1),
                }
            )
    write_atomic(ROWS, pd.DataFrame(rows).to_csv(index=False))
    return pd.DataFrame(rows)


def table(rows):
    """One row per arm: means over its seeds, and how far its PSNR is below that of the operator's best rate."""
    arm = ["batch", "operator", "optimizer", "rate"]
    found = rows.groupby(arm, sort=False)[["PSNR, dB", "probe at random init, %", "probe, %", "seconds"]].mean()
    best = found["PSNR, dB"].groupby(arm[:3]).transform("max")
    found.insert(1, "below its best rate, dB", best - found["PSNR, dB"])
    return found.assign(seeds=rows.groupby(arm, sort=False).size()).reset_index()


def sentences(found):
    """What the table says of single rates, one line per batch and optimizer."""
    loss, lines = "below its best rate, dB", []
    for (batch, optimizer), part in found.groupby(["batch", "optimizer"], sort=False):
        most = part.groupby("rate")[loss].max()
        worst = part[part.rate == most.idxmin()].nlargest(1, loss).iloc[0]
        lines.append(
            f"* Batches of {batch}, {optimizer}: the best single rate for all operators is {most.idxmin():g}; it loses at most "
            f"{worst[loss]:.2f} dB against the best rate of an operator ({worst.operator})."
        )
    best = found.groupby(["batch", "operator", "optimizer"])["PSNR, dB"].max().unstack()
    gain = (best.muon - best.adamw).groupby("batch")
    for batch, low, high in zip(gain.min().index, gain.min(), gain.max(), strict=True):
        lines.append(f"* Batches of {batch}: Muon at its best rate is {low:.2f} to {high:.2f} dB above AdamW at its best rate.")
    return lines


def write(found):
    """Put the table and what it says into their place in docs/recipe.md."""
    digits = (".0f", "", "", "g", ".2f", ".2f", ".1f", ".1f", ".0f", ".0f")  # of each column
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = "\n".join([found.to_markdown(index=False, floatfmt=digits), "", *sentences(found)])
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="The pilot that chose the recipe of the profiles.")
    parser.add_argument("--only-table", action="store_true", help="write the table of what is saved, train nothing")
    store = Store("recipe")
    if not parser.parse_args().only_table:
        for seed in SEEDS:
            known = set(collected(store)["key"])
            executor.train([cfg for cfg in arms() if cfg.seed == seed and key(cfg) not in known], store)
    write(table(collected(store)))


if __name__ == "__main__":
    main()
