"""One run from its Config to its record: data, network, training, evaluation, probe."""

import contextlib
import json
import math
import statistics
from dataclasses import replace

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..config import BiasnbError, Config, describe
from ..data import palette as palettes
from ..data.datasets import load
from ..networks.model import build, context_coverage, flop_per_image, parameters_by_part
from ..records.files import StoreError, write_atomic
from ..records.keys import baseline_fields, baseline_key, key, key_fields
from ..records.locks import Held
from ..records.progress import Monitor
from ..records.provenance import environment
from . import measures as measure
from .baselines import baseline_psnr, palette_psnr
from .checkpoint import Checkpoints
from .loop import Apart, Diverged, pretrain, pretrain_together
from .pretext import evaluate, evaluation_draw, examples, sample
from .probe import probe_network, probe_pixels

SHOWN = 10  # images whose reconstructions are kept
WATCHED = 32  # images that measures run on


def pick_device(cfg):
    """The torch device of a Config. Raises BiasnbError if a GPU is asked for and there is none."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise BiasnbError("device: 'cuda', but torch sees no GPU; choose 'cpu' or 'auto'")
    return "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"


def baseline(cfg, store):
    """The record of the baselines every network must beat, computed once per data set and masks."""
    k = baseline_key(cfg)
    if store.has(k):
        return store.load(k)
    device = pick_device(cfg)
    with store.claim(k):
        if store.has(k):
            return store.load(k)
        data = load(replace(cfg, seed=0), device)
        print(f"baselines of {data.name}: baselines and raw-pixel probe", flush=True)
        record = {
            "kind": "baseline",
            "key": k,
            "config": baseline_fields(cfg),
            "data": data.summary(),
            "environment": stamp(device),
            "psnr": baseline_psnr(data.test, cfg, "test"),
            "pixel_probe": probe_pixels(data),
        }
        return store.save(record)


def stamp(device):
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return environment(device, gpu, torch.get_num_threads())


def prepare(cfg):
    """(data, network at its initial weights) of a Config, on its device. Raises BiasnbError."""
    device = pick_device(cfg)
    data = load(cfg, device)
    for what, count, least in (("test", len(data.test.labels), 4), ("labelled", int((data.train.labels >= 0).sum()), 2)):
        if count < least:
            raise BiasnbError(f"{data.name}: {count} {what} images, fewer than {least}; add some")
    palette = palettes.fit(data.pool.images, cfg.colours) if cfg.uses_palette else None
    return data, build(cfg, data.stats(), palette, device, len(data.classes))


def fill(model, path):
    """Load the weights in a file into a network. Raises StoreError naming the file."""
    try:
        model.load_state_dict(load_tensors(path.read_bytes()))
    except OSError as error:
        raise StoreError(f"{path}: weights cannot be read ({error.strerror}); train the run again to have them") from None
    except SafetensorError as error:
        raise StoreError(f"{path}: not readable as safetensors ({error}); train the run again") from None
    except RuntimeError:
        raise StoreError(f"{path}: holds the weights of another network; train the run again") from None


def description(model, key, profile):
    """What a network must say of itself beside its weights to be built without its data, as JSON takes it."""
    cfg, palette = model.cfg, model.palette
    more = {"palette": palette.colours.tolist()} if palette else {}
    more |= {"classes": model.head.out_features} if cfg.pretext == "supervised" else {}
    return {**key_fields(cfg), "mean": model.mean.tolist(), "std": model.std.tolist(), **more, "key": key, "profile": profile}


def restore(key, store, data_dir=""):
    """(record, data, network with its trained weights) of a finished run; `data_dir` is where its data lie.

    Raises StoreError for weights that are missing or do not fit, BiasnbError as `prepare` does."""
    record = store.load(key)
    data, model = prepare(Config(**record["config"], data_dir=data_dir))
    fill(model, store.path(key, ".safetensors"))
    return record, data, model


def budgeted(cfg, model, data):
    """The Config with its number of steps: under an equal-FLOP budget as many as cost what `steps` steps of `identity`,
    with everything else the same, cost."""
    if cfg.budget == "steps" or cfg.pretext == "none":
        return cfg
    position = "none" if cfg.position == "relative" else cfg.position
    plain = replace(cfg, mixer="identity", position=position)
    identity = build(plain, data.stats(), model.palette, model.mean.device, len(data.classes))
    return replace(cfg, steps=max(1, round(cfg.steps * flop_per_image(identity) / flop_per_image(model))))


def run(cfg, store, prefix=""):
    """The record of one run: loaded if it exists, otherwise trained, evaluated, probed and saved.

    Interrupted, it leaves a checkpoint and the next call goes on. Raises BiasnbError for bad data or a run that
    another process holds; any failure is left in `<key>.error` for `biasnb status`.
    """
    k = key(cfg)
    if store.has(k):
        return store.load(k)
    with store.claim(k) as lock:
        if store.has(k):
            return store.load(k)
        with noting_errors(store, cfg):
            steps = _run(cfg, store, lock)
            job = next(steps)
            try:
                with monitored(store, cfg) as monitor:
                    outcome = pretrain(*job, f"{prefix}{describe(cfg)}", monitor) if job else None
            except Diverged as error:
                outcome = error
            return finish(steps, outcome)


@contextlib.contextmanager
def monitored(store, cfg):
    """A Monitor of a run, closed at its end."""
    monitor = Monitor(store.path(key(cfg), ".progress"), store.folder / "tensorboard" / key(cfg))
    try:
        yield monitor
    finally:
        monitor.close()


def run_together(configs, store, prefix=""):
    """The records of Configs that differ in their seed only, those that are missing trained as one program: each as `run`
    would make it, up to rounding, with "seeds_together" in it. Raises as `run` does."""
    wanted = [cfg for cfg in configs if cfg.pretext != "none" and not store.has(key(cfg))]
    with contextlib.ExitStack() as stack:
        claimed = {cfg: stack.enter_context(store.claim(key(cfg))) for cfg in wanted if len(wanted) > 1}
        missing = [cfg for cfg in claimed if not store.has(key(cfg))]
        for cfg in missing:
            stack.enter_context(noting_errors(store, cfg))
        if len(missing) > 1:
            runs = [_run(cfg, store, claimed[cfg], len(missing)) for cfg in missing]
            jobs = [next(steps) for steps in runs]
            monitors = [stack.enter_context(monitored(store, cfg)) for cfg in missing]
            try:
                logs = pretrain_together(jobs, f"{prefix}{describe(missing[0])} ff.", monitors)
                for steps, log in zip(runs, logs, strict=True):
                    finish(steps, log)
            except (Diverged, Apart) as error:
                print(f"{describe(missing[0])}: one after the other, as {error}", flush=True)
    return [run(cfg, store, prefix) for cfg in configs]


@contextlib.contextmanager
def noting_errors(store, cfg):
    """Leave what goes wrong with a run in `<key>.error`."""
    try:
        yield
    except Held:  # what becomes of the run is another's to say
        raise
    except BaseException as error:
        error = explained(error, cfg)
        with contextlib.suppress(StoreError):
            write_atomic(store.path(key(cfg), ".error"), f"{type(error).__name__}: {error}\n")
        raise error from None


def finish(steps, outcome):
    """Go on with a run whose training left this log, or raised this error; returns its record."""
    try:
        steps.throw(outcome) if isinstance(outcome, Diverged) else steps.send(outcome)
    except StopIteration as end:
        return end.value


def explained(error, cfg):
    """The error itself, or for want of memory one that says what to lower."""
    text = str(error)
    short = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if short or (isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate" in text)):
        tokens = f"{cfg.batch} images of {cfg.grid**2} tokens at width {cfg.width}"
        return BiasnbError(f"batch: {tokens} do not fit into memory; lower batch, width or image_size, or raise patch")
    return error


def shown(split):
    """Indices of the images whose reconstructions are kept: the one of highest contrast in each tenth of the split."""
    contrast = split.images.flatten(1).float().std(1)
    tenths = torch.arange(len(contrast), device=contrast.device).tensor_split(SHOWN)
    return torch.stack([tenth[contrast[tenth].argmax()] for tenth in tenths if len(tenth)])


def watched(split):
    """Images for measures, evenly spread over the split."""
    return split.images[:: max(1, len(split.labels) // WATCHED)][:WATCHED]


def second(cfg, **data):
    """The Config of another data set for a network of `cfg`: dataset and data_dir."""
    return replace(cfg, **{"data_dir": "", **data}, images=0, permute="none", augment="none")


def _run(cfg, store, lock, together=1):
    """The steps of a run: yields what `pretrain` takes, or None if there is nothing to train, is sent its log or thrown its
    Diverged, and returns the record."""
    k = key(cfg)
    data, model = prepare(cfg)
    palette, device = model.palette, model.mean.device
    about = {"data": data.fingerprint, "palette": palette.hash if palette else None, "device": device.type}
    checkpoints = Checkpoints(store.checkpoints(k), key_fields(cfg) | about, lock.check)
    index = shown(data.test)
    images, seen = data.test.images[index], watched(data.test)
    init_probe = probe_network(model, data)
    init_measures, _ = measure.network(model, seen)
    record = {
        "kind": "run",
        "key": k,
        "config": key_fields(cfg),
        "data": data.summary(),
        "palette": palette and {"hash": palette.hash, "psnr": palette_psnr(data.test.images, palette)},
        "environment": stamp(device.type),
        "parameters": parameters_by_part(model),
        "flop_per_image": flop_per_image(model),
        "context_coverage": context_coverage(model),
        "init_measures": init_measures,
    }
    planned = budgeted(cfg, model, data)
    scores = {part: {"loss": None, "psnr": None, "accuracy": None} for part in ("val", "test")}
    log = {"history": [], "speeds": [], "seconds": 0.0}
    try:
        if cfg.pretext == "none":
            yield None
        else:
            log = yield planned, data, model, checkpoints
            scores = {part: evaluate(model, getattr(data, part), part) for part in scores}
        lost = Diverged(planned.steps, [row["loss"] for row in log["history"][-1:]], log["history"])
        if not finite(scores):
            raise lost
        probe = probe_network(model, data) if cfg.pretext != "none" else dict(init_probe)
        measures, field = measure.network(model, seen)
        if not finite([probe, measures]):
            raise lost
    except Diverged as error:
        print(f"{k}: {error}", flush=True)
        record |= {"status": "diverged", "steps": error.step, "last_loss": error.last, "history": error.history}
        arrays = None
    else:
        arrays = {"images": images.cpu().numpy(), "correct": np.packbits(probe.pop("correct").cpu().numpy()),
                  "receptive_field": field}  # fmt: skip
        if cfg.predicts:
            given = evaluation_draw(cfg, data.test, "test")
            arrays |= examples(model, images, given if given is None else given[index])
            if cfg.pretext == "ar":
                arrays["sample"] = sample(model, len(images), scores["val"]["loss"])
        init_probe.pop("correct")
        record |= {
            "status": "done",
            "steps": planned.steps if cfg.pretext != "none" else 0,
            "history": log["history"],
            **{name: {part: score[name] for part, score in scores.items()} for name in ("loss", "psnr", "accuracy")},
            "probe": probe,
            "init_probe": init_probe,
            "measures": measures,
            "images_per_second": statistics.median(log["speeds"][1:] or log["speeds"] or [0.0]),
            "wall_seconds": log["seconds"],
        }
        if together > 1:
            record["seeds_together"] = together
        lock.check()
        weights = {name: p.cpu().contiguous() for name, p in model.state_dict().items()}
        said = json.dumps(description(model, k, store.profile))
        write_atomic(store.path(k, ".safetensors"), save_tensors(weights, {"about": said}))
    lock.check()
    record = store.save(record, arrays)
    checkpoints.clear()
    return record


def finite(value):
    """Whether all numbers in nested dicts and lists are finite."""
    if isinstance(value, dict | list | tuple):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
