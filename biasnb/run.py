"""One run from its Config to its record: data, network, training, evaluation, probe."""

import contextlib
import json
import statistics
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from . import palette as palettes
from .checkpoint import Checkpoints
from .config import BiasnbError, floor_fields, floor_key, key, relevant
from .data import load
from .environment import environment
from .model import build, flop_per_image, parameters_by_part
from .pretext import baseline_psnr, evaluate, evaluation_masks, palette_psnr, reconstruct
from .probe import probe_network, probe_pixels
from .store import StoreError, write_atomic
from .train import Diverged, pretrain

SHOWN = 10


def pick_device(cfg):
    """The torch device of a Config. Raises BiasnbError if a GPU is asked for and there is none."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise BiasnbError("device: 'cuda', but torch sees no GPU; choose 'cpu' or 'auto'")
    return "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"


def floor(cfg, store):
    """The record of the floors every network must beat, computed once per data set and masks."""
    k = floor_key(cfg)
    if store.has(k):
        return store.load(k)
    device = pick_device(cfg)
    with store.claim(k):
        if store.has(k):
            return store.load(k)
        data = load(replace(cfg, seed=0), device)
        print(f"floors of {data.name}: baselines and raw-pixel probe", flush=True)
        record = {
            "kind": "floor",
            "key": k,
            "config": floor_fields(cfg),
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
    palette = palettes.fit(data.train.images, cfg.colours) if cfg.uses_palette else None
    return data, build(cfg, data.stats(), palette, device)


def run(cfg, store, prefix=""):
    """The record of one run: loaded if it exists, otherwise trained, evaluated, probed and saved.

    Interrupted, it leaves a checkpoint and the next call goes on. Raises BiasnbError for bad data or a run that
    another process holds; any failure is left in `<key>.error` for `biasnb status`.
    """
    k = key(cfg)
    if store.has(k):
        return store.load(k)
    with store.claim(k) as beat:
        if store.has(k):
            return store.load(k)
        try:
            return _run(cfg, k, store, prefix, beat)
        except Exception as error:
            with contextlib.suppress(StoreError):
                write_atomic(store.path(k, ".error"), f"{type(error).__name__}: {error}\n")
            raise


def shown(split):
    """Indices of the images whose reconstructions are kept: the one of highest contrast in each tenth of the split."""
    contrast = split.images.flatten(1).float().std(1)
    tenths = torch.arange(len(contrast), device=contrast.device).tensor_split(SHOWN)
    return torch.stack([tenth[contrast[tenth].argmax()] for tenth in tenths if len(tenth)])


def _run(cfg, k, store, prefix, beat):
    data, model = prepare(cfg)
    palette, device = model.palette, model.mean.device
    about = {"data": data.fingerprint, "palette": palette.hash if palette else None, "device": device.type}
    checkpoints = Checkpoints(store.folder / "checkpoints" / k, relevant(cfg) | about, beat=beat)
    record = {
        "kind": "run",
        "key": k,
        "config": relevant(cfg),
        "data": data.summary(),
        "palette": palette and {"hash": palette.hash, "psnr": palette_psnr(data.test.images, palette)},
        "environment": stamp(device.type),
        "parameters": parameters_by_part(model),
        "flop_per_image": flop_per_image(model),
    }
    init_probe = probe_network(model, data)
    try:
        log = pretrain(cfg, data, model, checkpoints, f"{prefix}{cfg.mixer}, depth {cfg.depth}, seed {cfg.seed}")
    except Diverged as error:
        print(f"{k}: {error}", flush=True)
        record |= {"status": "diverged", "steps": error.step, "last_loss": error.last, "history": error.history}
    else:
        scores = {part: evaluate(model, getattr(data, part), part) for part in ("val", "test")}
        probe = probe_network(model, data)
        index = shown(data.test)
        images, mask = data.test.images[index], evaluation_masks(data.test, cfg, "test")[index]
        arrays = {
            "images": images.cpu().numpy(),
            "mask": mask.cpu().numpy(),
            "reconstruction": reconstruct(model, images, mask).round().byte().cpu().numpy(),
            "correct": np.packbits(probe.pop("correct").cpu().numpy()),
        }
        init_probe.pop("correct")
        record |= {
            "status": "done",
            "steps": cfg.steps,
            "history": log["history"],
            "loss": {part: score["loss"] for part, score in scores.items()},
            "psnr": {part: score["psnr"] for part, score in scores.items()},
            "probe": probe,
            "init_probe": init_probe,
            "images_per_second": statistics.median(log["speeds"][1:] or log["speeds"]),
            "wall_seconds": log["seconds"],
        }
        weights = {name: p.cpu().contiguous() for name, p in model.state_dict().items()}
        write_atomic(store.path(k, ".safetensors"), save_tensors(weights, {"config": json.dumps(relevant(cfg))}))
    record = store.save(record, arrays if record["status"] == "done" else None)
    checkpoints.clear()
    return record
