"""One run from its Config to its record, or several that differ in their seed: prepare, start, train, evaluate, save."""

import contextlib
import ctypes
import json
import math
import os
import statistics
import time
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save as save_tensors

from ..config import BiasnbError, Config, describe
from ..data import palette as palettes
from ..data.datasets import Data, load
from ..networks.model import Isotropic, build, context_coverage, flop_per_image, flop_per_image_dense, parameters_by_part
from ..networks.pretrained import description, load_weights
from ..records.files import StoreError, write_atomic
from ..records.keys import baseline_fields, baseline_key, init_fields, init_key, key, key_fields
from ..records.provenance import environment
from ..records.store import PROTOCOL, Store
from . import measures
from .checkpoint import Checkpoints, Monitor
from .evaluation import baseline_psnr, palette_psnr, probe_network, probe_pixels
from .loop import Apart, Diverged, Job, pretrain_together
from .pretext import evaluate, evaluation_draw, examples, sample, spread

OTHERS = "its data or its operator are others now; delete it to make it anew"
PICTURED = 10  # test images whose reconstructions are kept
MEASURED = 512  # test images that measures run on: CKA on all, the others on few of them
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


# ---- what a run is made of ----------------------------------------------------------------------------------------------


def pick_device(cfg):
    """The torch device of a Config. Raises BiasnbError if a GPU is asked for and there is none."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise BiasnbError("device: 'cuda', but torch sees no GPU; choose 'cpu' or 'auto'")
    if cfg.device == "cpu" or not torch.cuda.is_available():
        keep_memory()
        return "cpu"
    repeatable()
    return "cuda"


def keep_memory():
    """Have glibc keep freed memory for the next step. It learns to, unless it is told a threshold, as Dask tells its workers
    (64 KiB): every large tensor is then made of pages that the system clears anew, which takes as long as the training."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**29)


def repeatable():
    """Have GPUs compute float32 as a CPU does, not in TF32, and the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def stamp(device):
    """What the numbers of a record are made with on a torch device, as JSON takes it."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return environment(device, gpu, torch.get_num_threads())


def prepare(cfg):
    """(data, network at its initial weights) of a Config, on its device. Raises BiasnbError."""
    device = pick_device(cfg)
    data = load(cfg, device)
    labelled = int((data.train.labels >= 0).sum())
    for what, count, least in (("test", len(data.test.labels), 4), ("labelled", labelled, 2)):
        if count < least:
            raise BiasnbError(f"{data.name}: {count} {what} images, fewer than {least}; add some")
    palette = palettes.fit(data.pool.images, cfg.colours) if cfg.uses_palette else None
    return data, build(cfg, data.stats(), palette, device, len(data.classes))


def restore(name, store, data_dir=""):
    """(record, data, network with its trained weights) of a finished run by its key; `data_dir` is where its data lie.

    Raises StoreError for weights that are missing or do not fit, BiasnbError as `prepare` does and if the data or the operator
    are others than those of the record."""
    record = store.load(name)
    cfg = Config(**record["config"], data_dir=data_dir)
    if key(cfg) != name:
        raise BiasnbError(f"{name}: {OTHERS}")
    data, model = prepare(cfg)
    load_weights(model, store.path(name, ".safetensors"))
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


def pictured(split):
    """(PICTURED,) indices of the images whose reconstructions are kept: of each of the first classes the one of highest
    contrast, and where there are fewer classes of each equal part of the split; fewer of a split that is smaller."""
    contrast = split.images.flatten(1).float().std(1)
    every = torch.arange(len(contrast), device=contrast.device)
    parts = [every[split.labels == label] for label in range(PICTURED)]
    if not all(map(len, parts)):
        parts = [part for part in every.tensor_split(PICTURED) if len(part)]
    return torch.stack([part[contrast[part].argmax()] for part in parts])


def measured(split):
    """(MEASURED, S, S, 3) images that measures run on, evenly spread over the split; all of a smaller one."""
    return spread(split.images, MEASURED)


def transfer_config(cfg, **data):
    """The Config of all images of another data set, by its dataset and data_dir, for a network of `cfg`."""
    return replace(cfg, **{"data_dir": "", **data}, images=0, permute="none", augment="none")


# ---- records that are made once --------------------------------------------------------------------------------------------


def run(cfg, store):
    """The record of one run: loaded if there is one, otherwise trained, evaluated, probed and saved. While another process
    trains it, this one waits for its record.

    A process that dies leaves a checkpoint, from which the next call goes on to the same result. Raises BiasnbError for data,
    settings or files that do not do; what is raised is also left in `<key>.error`, for `biasnb status`."""
    return once(key(cfg), make_record, cfg, store)


def run_together(configs, store):
    """The records of Configs that differ in their seed only, those that are missing trained as one program: each as `run`
    would make it, up to rounding, with "seeds_together" in it. Raises as `run` does."""
    wanted = {key(cfg): cfg for cfg in configs if cfg.pretext != "none" and not store.has(key(cfg))}
    if len(wanted) > 1:
        with contextlib.ExitStack() as locks:
            for k in sorted(wanted):  # in one order everywhere, so that no two processes wait for each other
                locks.enter_context(store.lock(k))
            missing = {k: cfg for k, cfg in wanted.items() if not store.has(k)}
            if len(missing) > 1:
                with noting_errors(store, list(missing), configs[0]):
                    make_records_together(list(missing.values()), store)
    return [run(cfg, store) for cfg in configs]


def baseline(cfg, store):
    """The record of the baselines that every network must beat, made once per data set and masks. Raises as `run` does."""
    return once(baseline_key(cfg), make_baseline, cfg, store)


def init(cfg, store):
    """The record of the network at its initial weights, made once for all runs that start from it. Raises as `run` does."""
    return once(init_key(cfg), make_init, cfg, store)


def once(k, make, cfg, store):
    """The record of this key, loaded or made."""
    if not store.has(k):
        with store.lock(k):
            if not store.has(k):
                with noting_errors(store, [k], cfg):
                    return make(cfg, store)
    return store.load(k)


def make_baseline(cfg, store):
    """Compute and save the record of the baselines."""
    device = pick_device(cfg)
    data = load(replace(cfg, seed=0, images=0, pretext="none"), device)  # the training mean is that of all images
    print(f"baselines of {data.name}: reconstructions that train nothing, and a probe on raw pixels", flush=True)
    probe, _ = probe_pixels(data)
    record = {
        "kind": "baseline",
        "key": baseline_key(cfg),
        "config": baseline_fields(cfg),
        "data": data.summary(),
        "environment": stamp(device),
        "psnr": baseline_psnr(data, cfg, "test"),
        "psnr_val": baseline_psnr(data, cfg, "val"),
        "pixel_probe": probe,
    }
    return store.save(record, None if data.groups is None else {"groups": data.groups})


def make_init(cfg, store):
    """Probe and measure a network at its initial weights, and save the record."""
    data, model = prepare(cfg)
    probe, _ = probe_network(model, data)
    record = {
        "kind": "init",
        "key": init_key(cfg),
        "config": init_fields(cfg),
        "data": data.summary(),
        "environment": stamp(model.mean.device.type),
        "probe": probe,
        "measures": measures.network(model, measured(data.test))[0],
    }
    return store.save(record)


@contextlib.contextmanager
def noting_errors(store, keys, cfg):
    """Leave what goes wrong in the block in `<key>.error` of each of these runs, and nothing else: an interrupt is no
    error, and neither is a reader of the output who has gone."""
    for k in keys:
        store.path(k, ".error").unlink(missing_ok=True)  # of an earlier call
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        error = explained(error, cfg)
        for k in keys:
            with contextlib.suppress(StoreError):
                write_atomic(store.path(k, ".error"), f"{type(error).__name__}: {error}\n")
        raise error from None


def explained(error, cfg):
    """The error itself, or for want of memory one that says what to lower."""
    text = str(error)
    of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    of_allocator = isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate" in text)
    if of_memory or of_allocator:
        tokens = f"{cfg.batch} images of {cfg.grid**2} tokens at width {cfg.width}"
        return BiasnbError(f"batch: {tokens} do not fit into memory; lower batch, width or image_size, or raise patch")
    return error


# ---- from start to record --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A run that is about to be trained. record: what is known of it before; budget: its Config with the steps that it may
    take."""

    cfg: Config
    store: Store
    data: Data
    model: Isotropic
    budget: Config
    record: dict


def make_record(cfg, store):
    """Train, evaluate and save one run; returns its record."""
    started = start(cfg, store)
    log = {"history": [], "psnr_by_step": [], "speeds": [], "seconds": 0.0}
    try:
        if cfg.pretext != "none":
            (log,) = train([started], describe(cfg))
        return finish(started, log)
    except Diverged as error:
        return save_diverged(started, error)


def make_records_together(configs, store):
    """Train, evaluate and save runs as one program; none is saved if they cannot be trained so."""
    started = [start(cfg, store) for cfg in configs]
    try:
        logs = train(started, f"{describe(configs[0])} ff.")
    except (Diverged, Apart) as error:
        print(f"{describe(configs[0])}: one after the other, as {error}", flush=True)
        return
    for one, log in zip(started, logs, strict=True):
        try:
            finish(one, log, len(started))
        except Diverged as error:
            save_diverged(one, error)


def start(cfg, store):
    """Prepare a run: its data, its network at random init, and what its record says before it is trained."""
    data, model = prepare(cfg)
    device, palette = model.mean.device.type, model.palette
    record = {
        "kind": "run",
        "key": key(cfg),
        "init": init_key(cfg),
        "config": key_fields(cfg),
        "data": data.summary(),
        "palette": palette and {"hash": palette.hash, "psnr": palette_psnr(data.test.images, palette)},
        "environment": stamp(device),
        "parameters": parameters_by_part(model),
        "flop_per_image": flop_per_image(model),
        "flop_per_image_dense": flop_per_image_dense(model),
        "context_coverage": context_coverage(model),
    }
    return Started(cfg, store, data, model, budgeted(cfg, model, data), record)


def train(runs, label):
    """The logs of runs that are trained as one program, see `loop.pretrain_together`, which says what is raised."""
    jobs = []
    with contextlib.ExitStack() as monitors:
        for one in runs:
            k, store, palette = one.record["key"], one.store, one.model.palette
            about = {"data": one.data.fingerprint, "palette": palette and palette.hash, "device": one.model.mean.device.type}
            checkpoints = Checkpoints(store.checkpoints(k), key_fields(one.cfg) | about)
            monitor = Monitor(store.path(k, ".progress"), store.folder / "tensorboard" / k)
            monitors.callback(monitor.close)
            jobs.append(Job(one.budget, one.data, one.model, checkpoints, monitor))
        return pretrain_together(jobs, label)


def finish(started, log, together=1):
    """Evaluate a trained network and save its weights, arrays and record, which is returned. `together`: with how many seeds
    it was trained. Raises Diverged for a network whose numbers are not finite."""
    found, arrays = evaluated(started, log["history"])
    store, last = started.store, {"step": started.budget.steps, "psnr": found["psnr"]["test"]}
    record = started.record | {
        "status": "done",
        "steps": started.budget.steps if started.cfg.pretext != "none" else 0,
        "history": log["history"],
        "psnr_by_step": [*log["psnr_by_step"], last] if started.cfg.predicts else [],
        **found,
        "images_per_second": statistics.median(log["speeds"][1:] or log["speeds"] or [0.0]),
        "wall_seconds": log["seconds"],
    }
    if together > 1:
        record["seeds_together"] = together
    save_weights(started.model, record["key"], store)
    record = store.save(record, arrays)
    store.forget(record["key"])
    return record


def evaluated(started, history):
    """(what the record says of the trained network, arrays). Raises Diverged for a network whose numbers are not finite."""
    cfg, data, model, began = started.cfg, started.data, started.model, time.perf_counter()
    scores = {part: {"loss": None, "psnr": None, "accuracy": None} for part in ("val", "test")}
    if cfg.pretext != "none":
        scores = {part: evaluate(model, getattr(data, part), part) for part in scores}
    check_finite(scores, started, history)
    probe, correct = probe_network(model, data)
    measures_found, field = measures.network(model, measured(data.test))
    check_finite(measures_found, started, history)
    found = {name: {part: score[name] for part, score in scores.items()} for name in ("loss", "psnr", "accuracy")}
    arrays = pictures(started, scores) | {"correct": correct, "receptive_field": field}
    found |= {"probe": probe, "measures": measures_found, "evaluation_seconds": time.perf_counter() - began}
    return found, arrays


def save_diverged(started, error):
    """Save the record of a run that diverged, which is returned."""
    key = started.record["key"]
    print(f"{key}: {error}", flush=True)
    lost = {"status": "diverged", "steps": error.step, "last_loss": error.last, "history": error.history}
    record = started.store.save(started.record | lost)
    started.store.forget(key)
    return record


def check_finite(numbers, started, history):
    """Raises Diverged if a number in nested dicts and lists is not finite."""
    if not finite(numbers):
        raise Diverged(started.budget.steps, [row["loss"] for row in history[-1:]], history)


def finite(value):
    """Whether all numbers in nested dicts and lists are finite."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)


def pictures(started, scores):
    """The images that figures show of a network, (n, S, S, 3) uint8: "images", and of one that predicts pixels "input",
    "reconstruction" and, under 'ar', "sample"."""
    cfg, model, split = started.cfg, started.model, started.data.test
    index = pictured(split)
    images = split.images[index]
    found = {"images": images.cpu().numpy()}
    if cfg.predicts:
        given = evaluation_draw(cfg, split, "test")
        found |= examples(model, images, given if given is None else given[index])
    if cfg.pretext == "ar":
        found["sample"] = sample(model, len(images), scores["val"]["loss"])
    return found


def save_weights(model, key, store):
    """Write the weights of a run, and beside them what its network is built from. Raises StoreError."""
    weights = {name: p.cpu().contiguous() for name, p in model.state_dict().items()}
    about = json.dumps(description(model, key, store.profile))
    write_atomic(store.path(key, ".safetensors"), save_tensors(weights, {"about": about}))


# ---- evaluated again -------------------------------------------------------------------------------------------------------


def evaluate_again(keys, store, data_dir=""):
    """Evaluate records of an older protocol again, those of these keys or, without any, of the store: runs from their kept
    weights, with their training as it was; their baselines and random inits anew. Yields a line per record that says what
    became of it. `data_dir` is where the data lie, if they are a folder. Raises BiasnbError as `prepare` does."""
    names, records = keys or list(store), []
    for name in names:
        try:
            records.append(store.load(name, outdated=True))
        except StoreError as error:
            yield str(error)
    for record in records:
        if record["kind"] == "run":
            yield f"{record['key']}: {evaluate_run(record, store, data_dir)}"
            cfg = Config(**record["config"], data_dir=data_dir)
            for k, make in ((init_key(cfg), make_init), (baseline_key(cfg), make_baseline)):
                if store.has(k) and store.load(k, outdated=True)["protocol"] != PROTOCOL:
                    with store.lock(k):
                        make(cfg, store)
                    yield f"{k}: computed again"
    for record in records:
        if record["kind"] in ("init", "baseline") and store.load(record["key"], outdated=True)["protocol"] != PROTOCOL:
            yield f"{record['key']}: belongs to none of these runs; delete it"


def evaluate_run(record, store, data_dir=""):
    """Evaluate one run again if its record is of an older protocol, and save the record; returns what was done in words."""
    if record["protocol"] == PROTOCOL:
        return "up to date"
    k, cfg = record["key"], Config(**record["config"], data_dir=data_dir)
    if key(cfg) != k:
        return OTHERS
    if record["status"] == "diverged":
        store.save(record | {"protocol": PROTOCOL})
        return "diverged, nothing to evaluate"
    if not store.path(k, ".safetensors").is_file():
        return f"its weights are missing ({store.path(k, '.safetensors')}); delete the record to train it anew"
    with store.lock(k):
        started = start(cfg, store)
        load_weights(started.model, store.path(k, ".safetensors"))
        found, arrays = evaluated(started, record["history"])
        stamps = {"environment": record["environment"], "evaluated": started.record["environment"], "protocol": PROTOCOL}
        store.save(record | started.record | found | stamps, arrays)
    return "evaluated again from its weights"
