"""Learning-rate search per operator by the rule of image-GPT (section 3.4), on the validation split, coarse and then fine. The
middle of the plateau is chosen, so that a rate just below divergence is not."""

import math
from dataclasses import replace

from ..config import BiasnbError
from ..records.keys import key, key_fields, search_key
from . import executor

LADDER = (0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
LOWEST, HIGHEST = 1e-5, 1.0
PLATEAU = 1.02  # largest loss on the plateau over the lowest; 2 % of a squared error is about 0.1 dB
SEED = 1000  # seed of the runs of a search, used by no profile


def next_rate(losses):
    """Return the rate to try next, given {rate: final validation loss}, or None when the search is complete.

    The coarse search descends LADDER until the loss rises. The fine search multiplies or divides the best rate by sqrt(3) until
    both neighbours of the best rate are worse."""
    tried = [lr for lr in LADDER if lr in losses]
    risen = len(tried) > 1 and losses[tried[-1]] > losses[tried[-2]]
    if len(tried) < len(LADDER) and not risen:
        return LADDER[len(tried)]
    best = min(losses, key=losses.get)
    beside = [float(f"{rate:.2g}") for rate in (best * 3**0.5, best / 3**0.5) if LOWEST <= rate <= HIGHEST]
    return next((lr for lr in beside if not any(abs(math.log(lr / known)) < 0.1 for known in losses)), None)


def middle(losses):
    """Return the rate in the middle, on a log scale, of the plateau, given {rate: final validation loss}. The plateau
    is the best rate and the rates beside it whose losses are at most PLATEAU times the lowest. Of two, the lower is taken."""
    rates = sorted(losses)
    low = high = rates.index(min(losses, key=losses.get))
    limit = PLATEAU * losses[rates[low]]
    while low > 0 and losses[rates[low - 1]] <= limit:
        low -= 1
    while high < len(rates) - 1 and losses[rates[high + 1]] <= limit:
        high += 1
    centre = math.sqrt(rates[low] * rates[high])
    return min(rates[low : high + 1], key=lambda rate: round(abs(math.log(rate / centre)), 6))


def tune(configs, store):
    """Search the learning rate of every Config with the seed SEED, and return the records {config, rates: [{lr, loss, key}],
    chosen}, which are saved; saved searches are loaded. The runs of a search are saved like all others.

    Raises BiasnbError if all rates of a Config diverge."""
    searched = {search_key(cfg): replace(cfg, seed=SEED) for cfg in configs if cfg.pretext != "none"}
    losses = {k: {} for k in searched if not store.has(k)}
    while asked := {k: lr for k, found in losses.items() if (lr := next_rate(found))}:
        runs = {k: replace(searched[k], lr=lr) for k, lr in asked.items()}
        executor.train(list(runs.values()), store)
        for k, cfg in runs.items():
            record = store.load(key(cfg))
            losses[k][cfg.lr] = record["loss"]["val"] if record["status"] == "done" else math.inf
    for k, found in losses.items():
        cfg, chosen = searched[k], middle(found)
        if not math.isfinite(found[chosen]):
            raise BiasnbError(f"lr: every rate from {max(found)} to {min(found)} diverges for mixer {cfg.mixer!r}")
        rows = [{"lr": lr, "loss": loss if math.isfinite(loss) else None, "key": key(replace(cfg, lr=lr))}
                for lr, loss in sorted(found.items())]  # fmt: skip
        config = {name: value for name, value in key_fields(cfg).items() if name != "lr"}
        store.save({"kind": "search", "key": k, "config": config, "rates": rows, "chosen": chosen})
    return [store.load(k) for k in searched]
