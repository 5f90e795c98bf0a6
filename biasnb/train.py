"""One run from its Config to its record: seeds, schedule, the loop, checkpoints, resume, evaluation."""

import contextlib
import hashlib
import json
import math
import signal
import statistics
import threading
import time
from dataclasses import replace

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from . import palette as palettes
from .config import BiasnbError, floor_fields, floor_key, key, relevant
from .data import augmentation, generator, load
from .model import build, flop_per_image, parameters_by_part
from .pretext import LOSSES, baseline_psnr, draw_mask, evaluate, evaluation_masks, palette_psnr, reconstruct
from .probe import probe_network, probe_pixels
from .progress import Progress
from .store import StoreError, environment, write_atomic

CHECKPOINT_SECONDS = 15
SHOWN = 10


class Diverged(BiasnbError):
    """A loss or gradient that is not finite; raised before the update."""

    def __init__(self, step, losses, history):
        self.step, self.last, self.history = step, losses[-1] if losses else None, history
        super().__init__(f"step {step}: loss or gradient not finite (last finite loss {self.last}); lower lr")


def pick_device(cfg):
    """The torch device of a Config. Raises BiasnbError if a GPU is asked for and there is none."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise BiasnbError("device: 'cuda', but torch sees no GPU; choose 'cpu' or 'auto'")
    return "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"


def learning_rate(cfg, step):
    """Linear warm-up, then cosine to 0 (image-GPT, section 3.4)."""
    warm = cfg.warmup * cfg.steps
    if step < warm:
        return cfg.lr * (step + 1) / warm
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (cfg.steps - warm)))


def optimiser(model, cfg):
    """AdamW; matrices decay, gains and embeddings do not."""
    plain = [n for n, p in model.named_parameters() if "norm" in n or n.startswith("embed.")]
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if n not in plain], "weight_decay": cfg.weight_decay},
        {"params": [named[n] for n in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.95), fused=True)


def pretrain(cfg, data, model, checkpoints=None, label=None):
    """Train `model` in place on data.train.

    Every random draw comes from a stream named by seed, purpose and step, so a run goes on from a checkpoint exactly
    as if it had never stopped. Returns {"history": rows of {step, loss, lr, gradient_norm}, "speeds": images/s of
    each row's window, "seconds": of training}. Raises Diverged before an update that is not finite.
    """
    device = data.train.images.device
    solver = optimiser(model, cfg)
    step, log = 0, {"history": [], "window": [], "speeds": [], "seconds": 0.0}
    if checkpoints:
        step, log = checkpoints.resume(model, solver) or (step, log)
    n, per_epoch = len(data.train.labels), len(data.train.labels) // cfg.batch
    every = max(1, cfg.steps // 50)
    report = Progress(label or cfg.mixer, cfg.steps, step)
    order = order_epoch = None
    mark, marked = time.perf_counter(), step
    with Interrupts() as interrupts:
        while step < cfg.steps:
            epoch, i = divmod(step, per_epoch)
            if epoch != order_epoch:
                order = torch.randperm(n, generator=generator(device, cfg.seed, "order", epoch), device=device)
                order_epoch = epoch
            rng = generator(device, cfg.seed, "masks", step)
            mask = draw_mask(cfg.batch, cfg.grid, cfg.mask_rate, rng)
            images = data.train.images[order[i * cfg.batch : (i + 1) * cfg.batch]]
            images = augmentation(cfg.batch, cfg.image_size, cfg.augment, rng)(images)

            for group in solver.param_groups:
                group["lr"] = learning_rate(cfg, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
                loss = LOSSES[cfg.pretext](model, images, mask)
            solver.zero_grad()
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip))
            log["window"].append(loss.item())
            if not math.isfinite(log["window"][-1] + norm):
                raise Diverged(step, [row["loss"] for row in log["history"][-1:]] + log["window"][:-1], log["history"])
            solver.step()

            step += 1
            now = time.perf_counter()
            if step % every == 0 or step == cfg.steps:
                loss = statistics.fmean(log["window"])
                log["history"].append({"step": step, "loss": loss, "lr": group["lr"], "gradient_norm": norm})
                log["speeds"].append((step - marked) * cfg.batch / (now - mark))
                log["window"].clear()
                log["seconds"] += now - mark
                mark, marked = now, step
                report(step, f"loss {loss:.4f}")
            if checkpoints and (interrupts.caught or checkpoints.due(now)):
                checkpoints.save(step, model, solver, log)
            interrupts.stop()
    report.finish(f"loss {log['history'][-1]['loss']:.4f}, trained")
    return log


class Interrupts:
    """Inside the loop SIGINT and SIGTERM are kept until the step is complete; `stop` then acts on them."""

    def __enter__(self):
        self.caught, self.previous = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number, frame):
        self.caught = number

    def stop(self):
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught:
            raise SystemExit(128 + self.caught)

    def __exit__(self, kind, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if kind is None:
            self.stop()


class Checkpoints:
    """The last two states of a run as `<step>-<sha256>.safetensors`: network, optimiser, rows so far.

    A state is written under its final name at once or not at all, and read only if its content has its digest.
    """

    def __init__(self, folder, about, seconds=CHECKPOINT_SECONDS):
        self.folder, self.about, self.seconds = folder, about, seconds
        self.saved = time.perf_counter()

    def due(self, now):
        return now - self.saved >= self.seconds

    def save(self, step, model, solver, log):
        tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
        for i, state in solver.state_dict()["state"].items():
            tensors |= {f"solver.{i}.{name}": value for name, value in state.items()}
        content = save_tensors({n: t.contiguous() for n, t in tensors.items()},
                               {"step": str(step), "log": json.dumps(log), "about": json.dumps(self.about)})  # fmt: skip
        name = f"{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        write_atomic(self.folder / name, content)
        for old in self.found()[2:]:
            old.unlink()
        self.saved = time.perf_counter()

    def found(self):
        """Checkpoint files, newest first."""
        return sorted(self.folder.glob("*-*.safetensors"), reverse=True)

    def resume(self, model, solver):
        """Load the newest intact state; returns (step, log), or None if there is none to go on from.

        Raises StoreError if there are states but none is intact, or if they are of other data or settings."""
        damaged = []
        for path in self.found():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != path.stem.split("-")[1]:
                damaged.append(path.name)
                print(f"{path.name}: does not match its digest; trying the checkpoint before it", flush=True)
                continue
            with safe_open(path, "pt") as file:
                meta = file.metadata()
            about = json.loads(meta["about"])
            if about != self.about:
                other = sorted(name for name in about | self.about if about.get(name) != self.about.get(name))
                raise StoreError(f"{path}: made with another {', '.join(other)}; delete {self.folder} to start anew")
            tensors = load_tensors(content)
            model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
            state = solver.state_dict()
            state["state"] = {}
            for name, tensor in tensors.items():
                if name.startswith("solver."):
                    _, i, part = name.split(".")
                    state["state"].setdefault(int(i), {})[part] = tensor
            solver.load_state_dict(state)
            return int(meta["step"]), json.loads(meta["log"])
        if damaged:
            raise StoreError(f"{self.folder}: no intact checkpoint ({', '.join(damaged)}); delete the folder to start anew")

    def clear(self):
        for path in self.found():
            path.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()


def floor(cfg, store):
    """The record of the floors every network must beat, computed once per data set and masks."""
    k = floor_key(cfg)
    if store.has(k):
        return store.load(k)
    device = pick_device(cfg)
    with store.claim(k):
        print(f"floors of {cfg.dataset}: baselines and raw-pixel probe", flush=True)
        data = load(replace(cfg, seed=0), device)
        record = {
            "kind": "floor",
            "key": k,
            "config": floor_fields(cfg),
            "data": data.summary(),
            "environment": stamp(device),
            "psnr": baseline_psnr(data.test, cfg, "test"),
            "pixel_probe": probe_pixels(data),
            "chance": float(torch.bincount(data.test.labels[data.test.labels >= 0]).max() / len(data.test.labels)),
        }
        return store.save(record)


def stamp(device):
    return environment(device, torch.cuda.get_device_name() if device == "cuda" else None, torch.get_num_threads())


def run(cfg, store, prefix=""):
    """The record of one run: loaded if it exists, otherwise trained, evaluated, probed and saved.

    Interrupted, it leaves a checkpoint and the next call goes on. Raises BiasnbError for bad data or a run that
    another process holds; any failure is left in `<key>.error` for `biasnb status`.
    """
    k = key(cfg)
    if store.has(k):
        return store.load(k)
    with store.claim(k):
        try:
            return _run(cfg, k, store, prefix)
        except Exception as error:
            with contextlib.suppress(StoreError):
                write_atomic(store.path(k, ".error"), f"{type(error).__name__}: {error}\n")
            raise


def shown(split):
    """Indices of the images whose reconstructions are kept: the one of highest contrast in each tenth of the split."""
    contrast = split.images.flatten(1).float().std(1)
    tenths = torch.arange(len(contrast), device=contrast.device).tensor_split(SHOWN)
    return torch.stack([tenth[contrast[tenth].argmax()] for tenth in tenths if len(tenth)])


def _run(cfg, k, store, prefix):
    device = pick_device(cfg)
    data = load(cfg, device)
    palette = palettes.fit(data.train.images, cfg.colours) if cfg.uses_palette else None
    model = build(cfg, data.stats(), palette, device)
    about = relevant(cfg) | {"data": data.fingerprint, "palette": palette.hash if palette else None}
    checkpoints = Checkpoints(store.folder / "checkpoints" / k, about)
    record = {
        "kind": "run",
        "key": k,
        "config": relevant(cfg),
        "data": data.summary(),
        "palette": palette and {"hash": palette.hash, "psnr": palette_psnr(data.test.images, palette)},
        "environment": stamp(device),
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
