"""The pilot that chose the recipe of the profiles, and its table in docs/recipe.md.

    python benchmarks/recipe.py              # train what is missing in runs/recipe, then write the table
    python benchmarks/recipe.py --only-table

Every arm is trained at the sizes of profile `cifar10` on 9 600 images, by both optimizers at three rates, in batches of 16
and 32. The seeds are not evaluated anywhere else."""

import argparse
from pathlib import Path

import pandas as pd

from biasnb.operators import CUBE, TRIO
from biasnb.records.keys import init_key, key
from biasnb.records.store import Store
from biasnb.records.sweep import frame
from biasnb.sweep import Study, executor

IMAGES = 9600  # that every run is trained on, counted as often as they are seen
SEEDS = (1000, 1001, 1002)
RATES = {"adamw": (0.0075, 0.015, 0.03), "muon": (0.015, 0.03, 0.06)}  # half, once and twice the best of a first trial
BATCHES = {16: (TRIO, CUBE), 32: (TRIO,)}  # batch -> groups of operators
PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"
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


def table(store):
    """One row per arm: means over its seeds, and how far its PSNR is below that of the operator's best rate."""
    saved = [cfg for cfg in arms() if store.has(key(cfg)) and store.has(init_key(cfg))]
    runs = frame([store.load(k) for cfg in saved for k in (key(cfg), init_key(cfg))])
    rows = []
    for (batch, mixer, optimizer, lr), arm in runs.groupby(["batch", "mixer", "optimizer", "lr"], sort=False):
        rows.append(
            {
                "batch": batch,
                "operator": mixer,
                "optimizer": optimizer,
                "rate": lr,
                "PSNR, dB": arm.psnr.mean(),
                "probe at random init, %": 100 * arm.init_probe.mean(),
                "probe, %": 100 * arm.probe.mean(),
                "seconds": arm.wall_seconds.median(),
                "seeds": len(arm),
            }
        )
    found = pd.DataFrame(rows)
    best = found.groupby(["batch", "operator", "optimizer"])["PSNR, dB"].transform("max")
    found.insert(5, "below its best rate, dB", best - found["PSNR, dB"])
    return found


def write(found):
    """Put the table into its place in docs/recipe.md."""
    digits = (".0f", "", "", "g", ".2f", ".2f", ".1f", ".1f", ".0f", ".0f")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = found.to_markdown(index=False, floatfmt=digits)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="The pilot that chose the recipe of the profiles.")
    parser.add_argument("--only-table", action="store_true", help="write the table of what is saved, train nothing")
    store = Store("recipe")
    if not parser.parse_args().only_table:
        for seed in SEEDS:
            executor.train([cfg for cfg in arms() if cfg.seed == seed], store)
    write(table(store))


if __name__ == "__main__":
    main()
