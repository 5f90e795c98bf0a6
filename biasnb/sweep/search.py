"""The learning rate of every operator by image-GPT's rule (section 3.4), on the validation split, coarse and then fine."""

import math
from dataclasses import replace

from ..config import BiasnbError
from ..records.keys import key, key_fields, search_key
from . import executor

LADDER = (0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
LOWEST, HIGHEST = 1e-5, 1.0
SEED = 1000  # of the runs of a search: no profile evaluates it


def next_rate(losses):
    """The rate to try next, given {rate: final validation loss}; None when the search is over.

    Coarse: down the ladder until the loss rises. Fine: by factors of sqrt(3) until the best has a worse one on either side."""
    tried = [lr for lr in LADDER if lr in losses]
    risen = len(tried) > 1 and losses[tried[-1]] > losses[tried[-2]]
    if len(tried) < len(LADDER) and not risen:
        return LADDER[len(tried)]
    best = min(losses, key=losses.get)
    beside = [float(f"{rate:.2g}") for rate in (best * 3**0.5, best / 3**0.5) if LOWEST <= rate <= HIGHEST]
    return next((lr for lr in beside if not any(abs(math.log(lr / known)) < 0.1 for known in losses)), None)


def tune(configs, store):
    """Search the rate of every Config, on a seed of its own, and save each as a record {config, rates: [{lr, loss, key}],
    chosen}; searches that are saved are loaded. The runs are ordinary ones, kept like all others. Returns the records.

    Raises BiasnbError if all rates of one diverge."""
    searched = {search_key(cfg): replace(cfg, seed=SEED) for cfg in configs if cfg.pretext != "none"}
    losses = {k: {} for k in searched if not store.has(k)}
    while asked := {k: lr for k, found in losses.items() if (lr := next_rate(found))}:
        runs = {k: replace(searched[k], lr=lr) for k, lr in asked.items()}
        executor.train(list(runs.values()), store)
        for k, cfg in runs.items():
            record = store.load(key(cfg))
            losses[k][cfg.lr] = record["loss"]["val"] if record["status"] == "done" else math.inf
    for k, found in losses.items():
        cfg, chosen = searched[k], min(found, key=found.get)
        if not math.isfinite(found[chosen]):
            raise BiasnbError(f"lr: every rate from {max(found)} to {min(found)} diverges for mixer {cfg.mixer!r}")
        rows = [{"lr": lr, "loss": loss if math.isfinite(loss) else None, "key": key(replace(cfg, lr=lr))}
                for lr, loss in sorted(found.items())]  # fmt: skip
        config = {name: value for name, value in key_fields(cfg).items() if name != "lr"}
        store.save({"kind": "search", "key": k, "config": config, "rates": rows, "chosen": chosen})
    return [store.load(k) for k in searched]
