"""The training loop: schedule, optimizer, one page from batch to update; of one network, or of several seeds as one."""

import math
import statistics
import time

import torch

from ..config import BiasnbError
from ..data.datasets import augmentation, generator
from ..records.interrupts import Interrupts
from ..records.progress import Progress
from .pretext import draw
from .seeds import Single, Stack


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


def make_optimizer(model, cfg):
    """AdamW; matrices decay, gains and embeddings do not, and what is frozen is left out."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    plain = [n for n in named if "norm" in n or n.endswith("gate") or n.startswith("embed.")]
    groups = [
        {"params": [p for n, p in named.items() if n not in plain], "weight_decay": cfg.weight_decay},
        {"params": [named[n] for n in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.95), fused=True)


class Apart(BiasnbError):
    """Networks that cannot be trained as one program, as they stand at different steps."""


class Views:
    """What a network is given at each step: a batch of its pool, augmented, and what its task needs beside it. Every random
    draw comes from a stream named by seed, purpose and step."""

    def __init__(self, cfg, pool):
        self.cfg, self.pool, self.epoch, self.order = cfg, pool, None, None

    def at(self, step):
        """((batch, S, S, 3) uint8 images, what `pretext.draw` gives)."""
        cfg, n, device = self.cfg, len(self.pool.labels), self.pool.images.device
        epoch, i = divmod(step, n // cfg.batch)
        if epoch != self.epoch:
            self.order = torch.randperm(n, generator=generator(device, cfg.seed, "order", epoch), device=device)
            self.epoch = epoch
        rng = generator(device, cfg.seed, "masks", step)
        chosen = self.order[i * cfg.batch : (i + 1) * cfg.batch]
        given = draw(cfg, self.pool.labels[chosen], rng)
        return augmentation(cfg.batch, cfg.image_size, cfg.augment, rng)(self.pool.images[chosen]), given


def program(cfg, models, optimizers):
    """(what is trained, its optimizer): of one network its own, of several a Stack and one for all."""
    if len(models) == 1:
        return Single(models[0], cfg.steps), optimizers[0]
    net = Stack(models, optimizers, cfg.steps)
    return net, net.gather(make_optimizer(net.net, cfg))


def gradients(net, cfg, views):
    """Forward and backward of a Single, or of a Stack of S: ((S,) losses, (S,) norms before clipping), on their device."""
    with torch.autocast(views[0][0].device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        losses = net.losses(views)
    net.zero_grad()
    losses.sum().backward()
    return losses.detach(), net.clip(cfg.clip)


def guard(optimizer, numbers):
    """Let an optimizer update nothing from now on if a number is not finite, without waiting for the numbers."""
    lost = (~numbers.isfinite()).any().float()
    optimizer.found_inf = lost.maximum(getattr(optimizer, "found_inf", lost))


def pretrain(cfg, data, model, checkpoints=None, label=None, monitor=None):
    """Train `model` in place on data.pool; a `progress.Monitor` shows others how far it is.

    A run goes on from a checkpoint exactly as if it had never stopped. Returns {"history": rows of {step, loss, lr,
    gradient_norm, weight_norm}, "speeds": images/s of each row's window, "seconds": of training}. Raises Diverged before
    an update that is not finite.
    """
    return pretrain_together([(cfg, data, model, checkpoints)], label, [monitor])[0]


def pretrain_together(jobs, label=None, monitors=None):
    """Train the networks of jobs (cfg, data, model, checkpoints) that differ in their seed only as one program, each as
    `pretrain` would alone, up to rounding. Returns a log for each. Raises Diverged if one of them does, Apart if their
    checkpoints are of different steps."""
    cfg, data, _, checkpoints = jobs[0]
    views = [Views(one, its.pool) for one, its, *_ in jobs]
    optimizers = [make_optimizer(net, one) for one, _, net, _ in jobs]
    found = [kept and kept.resume(net, optimizer) for (*_, net, kept), optimizer in zip(jobs, optimizers, strict=True)]
    steps, logs = zip(*(f or (0, {"history": [], "window": [], "speeds": [], "seconds": 0.0}) for f in found), strict=True)
    if len(set(steps)) > 1:
        raise Apart(f"checkpoints are of steps {sorted(set(steps))}")
    net, optimizer = program(cfg, [job[2] for job in jobs], optimizers)
    step, every, at_once = steps[0], max(1, cfg.steps // 50), data.pool.images.device.type == "cpu"
    recent = []  # (step, losses and norms that are still on the device)
    losses, norms = ([math.nan] * len(jobs) for _ in range(2))  # the last that were looked at

    def look():
        for at, numbers in recent:
            losses[:], norms[:] = numbers.tolist()
            for log, loss, norm in zip(logs, losses, norms, strict=True):
                log["window"].append(loss)
                if not math.isfinite(loss + norm):
                    before = [row["loss"] for row in log["history"][-1:]] + log["window"][:-1]
                    raise Diverged(at, before, log["history"])
        recent.clear()

    report = Progress(label or cfg.mixer, cfg.steps, step)
    monitors = monitors or [None] * len(jobs)
    mark, marked = time.perf_counter(), step
    with Interrupts() as interrupts:
        while step < cfg.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(cfg, step)
            recent.append((step, torch.stack(gradients(net, cfg, [view.at(step) for view in views]))))
            row = (step + 1) % every == 0 or step + 1 == cfg.steps
            if at_once or row:
                look()
            else:
                guard(optimizer, recent[-1][1])
            optimizer.step()

            step += 1
            now = time.perf_counter()
            if row:
                weights = net.norms([p.detach() for p in net.parameters()])
                for log, monitor, norm, size in zip(logs, monitors, norms, weights.tolist(), strict=True):
                    line = {"step": step, "loss": statistics.fmean(log["window"]), "lr": group["lr"]}
                    log["history"].append({**line, "gradient_norm": norm, "weight_norm": size})
                    if monitor:
                        monitor.row(log["history"][-1])
                    log["speeds"].append((step - marked) * cfg.batch / (now - mark))
                    log["window"].clear()
                    log["seconds"] += now - mark
                mark, marked = now, step
            report(step, f"loss {losses[0]:.4f}")
            for monitor, loss in zip(monitors, losses, strict=True):
                if monitor:
                    monitor(step, cfg.steps, loss)
            if checkpoints and (interrupts.caught or checkpoints.due(now) or step == cfg.steps):
                look()
                net.scatter(optimizer)
                for (*_, one, its), its_optimizer, log in zip(jobs, optimizers, logs, strict=True):
                    its.save(step, one, its_optimizer, log)
            interrupts.stop()
    net.scatter(optimizer)
    report.finish(f"loss {logs[0]['history'][-1]['loss']:.4f}, trained")
    return list(logs)
