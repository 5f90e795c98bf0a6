"""Prediction of the cost of runs on this machine before training: seconds (by a short calibration), bytes and FLOP."""

import functools
import statistics
import time
from dataclasses import asdict, replace
from itertools import count

import pandas as pd

from ..config import BiasnbError, Config
from ..records.keys import init_key, key
from ..records.progress import clock
from ..records.store import Store
from . import executor, manifest

CALIBRATION = 60  # seconds
GFLOP = 1.0  # approximate size of a timed step
OBJECTIVES = 300  # evaluations of the objective of the probe per layer, for all penalties together
EACH = 0.2  # seconds per run for everything else
NOTEBOOK = 4.0  # seconds per notebook whose records exist
SHOWN = 10
SIZES = {"cifar10": (50_000, 10_000), "cifar10_jpeg": (50_000, 10_000), "cifar100": (50_000, 10_000), "svhn": (73_257, 26_032),
         "stl10": (5_000, 8_000), "fashionmnist": (60_000, 10_000)}  # fmt: skip  # training and test images, labelled


# ---- measuring ----------------------------------------------------------------------------------------------------------


def networks(cfg, device, images, seeds=1):
    """Return (a data set of `images` random images, networks of `seeds` seeds with initial weights)."""
    import torch

    from ..data.datasets import Data, Split
    from ..data.palette import fit
    from ..networks.model import build

    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (images, cfg.image_size, cfg.image_size, 3), generator=rng, dtype=torch.uint8)
    split = Split(images.to(device), torch.arange(len(images), device=device) % 10)
    data = Data("noise", tuple("0123456789"), split, split, split, split, "noise")
    palette = fit(data.pool.images, cfg.colours) if cfg.uses_palette else None
    return data, [build(replace(cfg, seed=seed), data.stats(), palette, device, 10) for seed in range(seeds)]


def stepper(cfg, device, seeds=1):
    """Return a function that performs one step of `loop.pretrain_together`."""
    import torch

    from ..training import loop as train

    data, models = networks(cfg, device, 20 * cfg.batch, seeds)
    pools = [train.Batches(replace(cfg, seed=seed), data.pool) for seed in range(seeds)]
    optimizers = [train.make_optimizer(model, cfg) for model in models]
    (net, optimizer), numbers = train.program(cfg, models, optimizers), count()

    def step():
        number = next(numbers)
        found = torch.stack(train.gradients(net, cfg, [pool.at(number) for pool in pools]))
        if device == "cpu":
            found.tolist()
        optimizer.step()

    return step


def activations(cfg, model, images=4):
    """Return the bytes per image that the forward pass stores for the backward pass."""
    import torch

    from ..training.pretext import LOSSES, draw

    device, rng = model.mean.device, torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (images, cfg.image_size, cfg.image_size, 3), generator=rng).to(device, torch.uint8)
    given = draw(cfg, torch.zeros(images, dtype=torch.long, device=device), torch.Generator(device).manual_seed(0))
    known = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), x)  # x is kept alive, so that its address is not reused
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with hooks, torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        LOSSES[cfg.pretext](model, batch, given)
    return sum(size for size, _ in kept.values()) / images


def counted(cfg):
    """Return {"flop": FLOP computed in the forward pass of one image, "needed": FLOP required, "parameters": their number}."""
    from ..networks.model import flop_per_image, flop_per_image_dense

    _, (model,) = networks(cfg, "cpu", 20)
    flop = {"flop": flop_per_image_dense(model), "needed": flop_per_image(model)}
    return {**flop, "parameters": sum(p.numel() for p in model.parameters())}


def timed(cfg):
    """Return {"forward": seconds, "step": seconds, "bytes"} of a network per image, measured in steps of about one GFLOP."""
    import torch

    from ..networks.model import features, per_pass

    flop = counted(cfg)["flop"]
    device = "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"
    data, (model,) = networks(cfg, device, max(8, min(per_pass(cfg, device), round(GFLOP * 1e9 / flop))))
    with torch.no_grad():
        forward = seconds_of(lambda: features(model, data.pool.images)) / len(data.pool.images)
    if cfg.pretext == "none":
        return {"forward": forward, "step": 0.0, "bytes": 0}
    batch = max(2, min(cfg.batch, round(GFLOP * 1e9 / (3 * flop))))
    small = replace(cfg, batch=batch, mask_rate=max(cfg.mask_rate, min(0.95, 17 / (batch * cfg.grid**2))))
    return {"forward": forward, "step": seconds_of(stepper(small, device)) / batch, "bytes": activations(cfg, model)}


def seconds_of(call):
    """Return the median seconds of a call over at least 0.2 s, after a warm-up."""
    from torch.utils.benchmark import Timer

    return Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=0.2).median


def probe_rate():
    """Return the FLOP/s of the linear probe, measured on evaluations of its objective."""
    import torch

    from ..training.evaluation import PENALTIES, penalised_entropy

    x, y, start = torch.randn(1000, 65, dtype=torch.float64), torch.arange(1000) % 10, torch.zeros(650, dtype=torch.float64)
    objective = penalised_entropy(x, y, 10, PENALTIES[0], torch.ones(65, dtype=torch.float64))
    return probe_flop(1, 1000, 64, 10) / (OBJECTIVES * seconds_of(functools.partial(objective, start.numpy())))


def probe_flop(layers, n, width, classes):
    return OBJECTIVES * 4 * layers * n * (width + 1) * classes


# ---- predicting -----------------------------------------------------------------------------------------------------------


def shape(cfg, depth, **fields):
    """Return the Config to time in place of `cfg`: `depth` blocks, and defaults for fields that do not affect a step's time."""
    names = "seed dataset data_dir images labelled steps lr warmup weight_decay clip budget permute hidden noise"
    same = {name: Config.__dataclass_fields__[name].default for name in names.split()}
    return replace(cfg, **same, depth=depth, **fields)


def identity(cfg):
    return {"mixer": "identity", "position": "none" if cfg.position == "relative" else cfg.position}


def calibrate(configs, seconds=CALIBRATION):
    """Measure Configs on the workers that would train them, the smallest first, for `seconds`. Returns {Config: results of
    `counted` and, if it was reached, `timed`; None: FLOP/s of the probe}. Raises BiasnbError if a network cannot be timed."""
    found = {cfg: counted(cfg) for cfg in configs}
    workers = min(executor.cores(), len(configs))
    with executor.client(workers, executor.gpus(configs)) as dask:
        probe = dask.submit(on_worker, None, priority=1e30)
        smallest_first = sorted(found, key=lambda cfg: found[cfg]["flop"])
        asked = {cfg: dask.submit(on_worker, asdict(cfg), priority=-found[cfg]["flop"]) for cfg in smallest_first}
        found[None] = probe.result()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not all(future.done() for future in asked.values()):
            time.sleep(executor.LOOK)
        for cfg, future in asked.items():
            if future.status == "error":
                raise BiasnbError(f"calibration: mixer {cfg.mixer!r} cannot be timed ({future.exception()})")
            if future.status == "finished":
                found[cfg] |= future.result()
    return found


def on_worker(fields):
    """Return `timed` of a Config, or the FLOP/s of the probe for None, with a single thread as in training."""
    import torch

    from ..training.run import keep_memory

    torch.set_num_threads(1)
    keep_memory()
    return probe_rate() if fields is None else timed(Config(**fields))


class Predictor:
    """Predicts seconds, FLOP and bytes of runs from a calibration. Networks that were not timed get the rates of the mixer."""

    def __init__(self, found):
        self.probe, self.found = found.pop(None), found
        self.timed = sum("step" in one for one in found.values())
        timed = pd.DataFrame(
            [{"mixer": cfg.mixer, "precision": cfg.precision, **one} for cfg, one in found.items() if "step" in one]
        )
        rates = timed[["step", "forward", "bytes"]].div(timed["flop"], axis=0)
        of_mixer = rates.groupby([timed["mixer"], timed["precision"]]).median()
        for cfg, one in found.items():
            if "step" not in one:
                kind = cfg.mixer, cfg.precision
                rate = of_mixer.loc[kind] if kind in of_mixer.index else rates.median()
                one |= (rate * one["flop"]).to_dict()

    def of(self, cfg, **fields):
        """Return the calibrated values of a Config, extrapolated linearly in depth from depths 1 and 2."""
        one, two = (self.found[shape(cfg, depth, **fields)] for depth in (1, 2))
        return {name: one[name] + (cfg.depth - 1) * (two[name] - one[name]) for name in one}

    def run(self, cfg):
        """Return {"training": seconds, "evaluation": seconds of features and probe, which the evaluation at random init takes
        as well, "seconds": total, "flop", "bytes"} of a run."""
        from ..training.pretext import RECONSTRUCTED

        one = self.of(cfg)
        train, val, test, classes = sizes(cfg.dataset, data_dir=cfg.data_dir, image_size=cfg.image_size, patch=cfg.patch)
        steps = 0 if cfg.pretext == "none" else cfg.steps
        if cfg.budget == "flop":
            steps = max(1, round(steps * self.of(cfg, **identity(cfg))["needed"] / one["needed"]))
        labelled = cfg.labelled or train
        evaluated = labelled + val + test
        reconstructed = 4 * min(test, RECONSTRUCTED) + min(val, RECONSTRUCTED)  # test PSNR is measured four times
        passes = evaluated + (0 if not steps else reconstructed if cfg.predicts else val + test)
        passes += 1.5 * SHOWN * cfg.grid**2 if cfg.pretext == "ar" else 0
        neighbours = 2 * (cfg.depth + 1) * test * labelled * cfg.width
        probes = probe_flop(cfg.depth + 1, labelled, cfg.width, classes) + neighbours
        training = steps * cfg.batch * one["step"]
        return {
            "training": training,
            "evaluation": evaluated * one["forward"] + probes / self.probe,
            "seconds": training + passes * one["forward"] + probes / self.probe + EACH,
            "flop": (3 * steps * cfg.batch + passes) * one["flop"] + probes,
            "bytes": 16 * one["parameters"] + cfg.batch * one["bytes"],
        }


@functools.cache
def sizes(dataset, **fields):
    """Return the numbers of training, validation and test images, and of classes."""
    if dataset in SIZES:
        train, test = SIZES[dataset]
        return train - train // 10, train // 10, test, 100 if dataset == "cifar100" else 10
    from ..data.datasets import load

    data = load(Config(dataset=dataset, pretext="none", **fields))
    return len(data.train.labels), len(data.val.labels), len(data.test.labels), len(data.classes)


def predict(profile, given):
    """Predict the remaining cost of each notebook of a profile on this machine: (rows of a table, lines of text)."""
    store, plans = Store(profile), {}
    for name, taken in manifest.accepted({"profile": profile, **given}).items():
        _, sweep = manifest.asked(name, taken)
        plans[name] = {key(cfg): cfg for cfg in sweep.configs} if sweep else {}
    asked = {k: cfg for configs in plans.values() for k, cfg in configs.items()}
    shapes = {}
    for cfg in asked.values():
        for depth in (1, 2):
            shapes[shape(cfg, depth)] = None
            if cfg.budget == "flop":
                shapes[shape(cfg, depth, **identity(cfg))] = None
    predictor = Predictor(calibrate(list(shapes)))
    costs = {k: predictor.run(cfg) for k, cfg in asked.items()}
    workers = len(executor.gpus(asked.values())) or executor.cores()
    missing = {k for k in asked if not store.has(k)}
    starts = {k: init_key(cfg) for k, cfg in asked.items()}
    rows, seconds, left, begun = [], [], set(missing), {start for start in starts.values() if store.has(start)}
    for name, configs in plans.items():
        own = [costs[k] for k in configs if k in left]
        left -= configs.keys()
        inits = {starts[k]: costs[k]["evaluation"] for k in configs if starts[k] not in begun}
        begun |= inits.keys()
        seconds.append((sum(cost["seconds"] for cost in own) + sum(inits.values()) + NOTEBOOK) / workers)
        rows.append(
            {
                "notebook": name,
                "runs": len(configs),
                "to train": len(own),
                "time": clock(seconds[-1]),
                "TFLOP": f"{sum(cost['flop'] for cost in own) / 1e12:.3g}",
                "GB, largest run": f"{max((cost['bytes'] for cost in own), default=0) / 1e9:.2g}",
            }
        )
    memory = workers * max((costs[k]["bytes"] for k in missing), default=0) / 1e9
    lines = [f"{len(missing)} runs to train by {workers} at once: {clock(sum(seconds))}, up to {memory:.2g} GB beside what "
             f"Python itself takes; {predictor.timed} of {len(predictor.found)} shapes of networks were timed"]  # fmt: skip
    slow = executor.slow_bf16([asked[k] for k in missing])
    if slow and not executor.gpus(asked.values()):
        lines.append(slow)
    done = [(costs[k]["training"], store.load(k)) for k in asked if k not in missing]
    off = [cost / record["wall_seconds"] for cost, record in done if record["status"] == "done" and record["wall_seconds"]]
    if len(off) > 1:
        (low, *_, high), middle = statistics.quantiles(off, n=10), statistics.median(off)
        lines.append(f"Of {len(off)} runs that are done here, training was predicted at {middle:.2f} times what it took "
                     f"(median; 80 % between {low:.2f} and {high:.2f})")  # fmt: skip
    return rows, lines
