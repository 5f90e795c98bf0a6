"""The training loop: schedule, optimiser, one page from batch to update."""

import math
import statistics
import time

import torch

from .config import BiasnbError
from .data import augmentation, generator
from .interrupts import Interrupts
from .pretext import LOSSES, draw
from .progress import Progress


class Diverged(BiasnbError):
    """A loss or gradient that is not finite; raised before the update."""

    def __init__(self, step, losses, history):
        self.step, self.last, self.history = step, losses[-1] if losses else None, history
        super().__init__(f"step {step}: loss or gradient not finite (last finite loss {self.last}); lower lr")


def learning_rate(cfg, step):
    """Linear warm-up, then cosine to 0 (image-GPT, section 3.4)."""
    warm = cfg.warmup * cfg.steps
    if step < warm:
        return cfg.lr * min(1.0, (step + 1) / warm)
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (cfg.steps - warm)))


def optimiser(model, cfg):
    """AdamW; matrices decay, gains and embeddings do not, and what is frozen is left out."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    plain = [n for n in named if "norm" in n or n.endswith("gate") or n.startswith("embed.")]
    groups = [
        {"params": [p for n, p in named.items() if n not in plain], "weight_decay": cfg.weight_decay},
        {"params": [named[n] for n in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.95), fused=True)


def pretrain(cfg, data, model, checkpoints=None, label=None):
    """Train `model` in place on data.pool.

    Every random draw comes from a stream named by seed, purpose and step, so a run goes on from a checkpoint exactly
    as if it had never stopped. Returns {"history": rows of {step, loss, lr, gradient_norm, weight_norm},
    "speeds": images/s of each row's window, "seconds": of training}. Raises Diverged before an update that is not finite.
    """
    device, pool = data.pool.images.device, data.pool
    solver = optimiser(model, cfg)
    step, log = 0, {"history": [], "window": [], "speeds": [], "seconds": 0.0}
    if checkpoints:
        step, log = checkpoints.resume(model, solver) or (step, log)
    n, per_epoch = len(pool.labels), len(pool.labels) // cfg.batch
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
            chosen = order[i * cfg.batch : (i + 1) * cfg.batch]
            given = draw(cfg, pool.labels[chosen], rng)
            images = pool.images[chosen]
            images = augmentation(cfg.batch, cfg.image_size, cfg.augment, rng)(images)

            for group in solver.param_groups:
                group["lr"] = learning_rate(cfg, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
                loss = LOSSES[cfg.pretext](model, images, given)
            solver.zero_grad()
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip))
            loss = loss.item()
            log["window"].append(loss)
            if not math.isfinite(loss + norm):
                raise Diverged(step, [row["loss"] for row in log["history"][-1:]] + log["window"][:-1], log["history"])
            solver.step()

            step += 1
            now = time.perf_counter()
            if step % every == 0 or step == cfg.steps:
                mean = statistics.fmean(log["window"])
                size = float(torch.stack(torch._foreach_norm([p.detach() for p in model.parameters()])).norm())
                row = {"step": step, "loss": mean, "lr": group["lr"], "gradient_norm": norm, "weight_norm": size}
                log["history"].append(row)
                log["speeds"].append((step - marked) * cfg.batch / (now - mark))
                log["window"].clear()
                log["seconds"] += now - mark
                mark, marked = now, step
            report(step, f"loss {loss:.4f}")
            if checkpoints and (interrupts.caught or checkpoints.due(now) or step == cfg.steps):
                checkpoints.save(step, model, solver, log)
            interrupts.stop()
    report.finish(f"loss {log['history'][-1]['loss']:.4f}, trained")
    return log
