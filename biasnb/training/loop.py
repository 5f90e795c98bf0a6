"""The training loop of one network, or of several seeds as one program: schedule, optimizer, and steps from batch to update."""

import contextlib
import math
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from ..config import BiasnbError, Config
from ..data.datasets import Data, augmentation, generator
from ..records.progress import Progress
from .checkpoint import Checkpoints, Interval, Monitor
from .pretext import draw, evaluate
from .seeds import Single, Stack

ROWS = 50  # per history
EARLIER = (8, 4, 2)  # PSNR is also measured after steps // 8, steps // 4 and steps // 2


class Diverged(BiasnbError):
    """Raised before the update when a loss or gradient is not finite."""

    def __init__(self, step, losses, history):
        self.step, self.last, self.history = step, losses[-1] if losses else None, history
        super().__init__(f"step {step}: loss or gradient not finite (last finite loss {self.last}); lower lr")


class Apart(BiasnbError):
    """Raised when networks cannot be trained as one program because their checkpoints are of different steps."""


@dataclass(frozen=True)
class Job:
    """A network to train on data.pool, and optionally its Checkpoints and its Monitor."""

    cfg: Config
    data: Data
    model: torch.nn.Module
    checkpoints: Checkpoints | None = None
    monitor: Monitor | None = None


@contextlib.contextmanager
def threads(count):
    """Within the block, let torch use `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learning_rate(cfg, step):
    """Return the learning rate of a step: linear warm-up, then cosine decay to 0 (image-GPT, section 3.4)."""
    warm = cfg.warmup * cfg.steps
    if step < warm:
        return cfg.lr * min(1.0, (step + 1) / warm)
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (cfg.steps - warm)))


def make_optimizer(model, cfg):
    """Return AdamW, or Muon for the weights of linear maps inside blocks with AdamW for all other parameters. Weight decay is
    not applied to gains, gates and embeddings."""
    linear = [part.weight for part in model.blocks.modules() if isinstance(part, nn.Linear)]
    matrices = {id(weight) for weight in linear} if cfg.optimizer == "muon" else set()
    groups = {"matrices": [], "decaying": [], "plain": []}
    for name, p in model.named_parameters():
        plain = "norm" in name or name.endswith("gate") or name.startswith("embed.")
        if p.requires_grad:
            groups["plain" if plain else "matrices" if id(p) in matrices else "decaying"].append(p)
    decaying = [{"params": groups[kind], "weight_decay": cfg.weight_decay} for kind in ("matrices", "decaying")]
    settings = {"lr": cfg.lr, "betas": (0.9, 0.95), "fused": True}
    if cfg.optimizer == "muon":
        return Muon([*decaying, {"params": groups["plain"], "weight_decay": 0.0}], **settings)
    return torch.optim.AdamW([decaying[1], {"params": groups["plain"], "weight_decay": 0.0}], **settings)


class Muon(torch.optim.AdamW):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon): the matrices of the first group are updated by
    orthogonalised Nesterov momentum, the parameters of all other groups by AdamW at the same learning rate.

    A matrix is (rows, columns), or (S, rows, columns) for S seeds. Its update is lr * sqrt(max(1, rows / columns)) times the
    orthogonalised momentum.

    # DEVIATION: torch.optim.Muon orthogonalises one matrix at a time in bfloat16. Here float32 keeps rounding errors small
    enough to repeat a run on another machine and is not slow on processors without bfloat16 instructions, and matrices of
    equal or transposed shapes are orthogonalised together."""

    MOMENTUM = 0.95

    def __setstate__(self, state):
        torch.optim.Optimizer.__setstate__(self, state)  # that of AdamW expects a step count for every parameter

    @torch.no_grad()
    def step(self):
        """Update all parameters, or none if `found_inf` is set (see `guard`)."""
        groups = self.param_groups
        self.update_matrices(groups[0])
        self.param_groups = groups[1:]
        super().step()
        self.param_groups = groups

    def update_matrices(self, group):
        lost = getattr(self, "found_inf", None)
        matrices = [p for p in group["params"] if p.grad is not None]
        for p in matrices:
            if p not in self.state:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta, gradients = [self.state[p]["momentum_buffer"] for p in matrices], [p.grad for p in matrices]
        replace(momenta, torch._foreach_lerp(momenta, gradients, 1 - self.MOMENTUM), lost)
        updates = orthogonalised(torch._foreach_lerp(gradients, momenta, self.MOMENTUM))
        updates = torch._foreach_mul(updates, [math.sqrt(max(1.0, p.shape[-2] / p.shape[-1])) for p in matrices])
        decayed = torch._foreach_mul(matrices, 1 - group["lr"] * group["weight_decay"])
        replace(matrices, torch._foreach_sub(decayed, updates, alpha=group["lr"]), lost)


def replace(tensors, values, lost):
    """Assign new values to tensors in place, unless the scalar tensor `lost` is above 0."""
    if lost is not None:
        values = [torch.where(lost > 0, tensor, value) for tensor, value in zip(tensors, values, strict=True)]
    torch._foreach_copy_(tensors, values)


def orthogonalised(matrices):
    """Return matrices (..., rows, columns) whose singular values a Newton-Schulz iteration has moved close to 1 (.7 to 1.2).
    Matrices of equal or transposed shapes are stacked."""
    stacks, found = {}, [None] * len(matrices)
    for i, matrix in enumerate(matrices):
        wide = matrix.mT if is_tall(matrix) else matrix
        stacks.setdefault(wide.shape[-2:], []).append((i, wide.reshape(-1, *wide.shape[-2:])))
    for members in stacks.values():
        parts = [part for _, part in members]
        joined = newton_schulz(torch.cat(parts)).split([len(part) for part in parts])
        for (i, _), part in zip(members, joined, strict=True):
            part = part.mT if is_tall(matrices[i]) else part
            found[i] = part.reshape(matrices[i].shape)
    return found


def is_tall(matrix):
    return matrix.shape[-2] > matrix.shape[-1]


def newton_schulz(x):
    """Move the singular values of (n, rows, columns), rows <= columns, close to 1, with the coefficients and the number of
    iterations of torch.optim.Muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Batches:
    """The augmented batches of a network and the masks, noise or labels of its pretext. Every random number comes from a CPU
    stream named after seed, purpose and step, so that a GPU receives the same batches."""

    def __init__(self, cfg, pool):
        self.cfg, self.pool, self.epoch, self.order = cfg, pool, None, None
        self.labels = pool.labels.cpu()

    def at(self, step):
        """Return ((batch, S, S, 3) uint8 images, the result of `pretext.draw`) on the device of the pool."""
        cfg, n, device = self.cfg, len(self.labels), self.pool.images.device
        epoch, i = divmod(step, n // cfg.batch)
        if epoch != self.epoch:
            self.order = torch.randperm(n, generator=generator("cpu", cfg.seed, "order", epoch))
            self.epoch = epoch
        chosen = self.order[i * cfg.batch : (i + 1) * cfg.batch]
        purpose = "noise" if cfg.pretext == "denoise" else "masks"
        given = draw(cfg, self.labels[chosen], generator("cpu", cfg.seed, purpose, step))
        given = given if given is None else given.to(device, non_blocking=True)
        view = augmentation(cfg.batch, cfg.image_size, cfg.augment, generator("cpu", cfg.seed, "flips", step), device)
        return view(self.pool.images[chosen.to(device, non_blocking=True)]), given


class Journal:
    """The losses and gradient norms of the networks of a program, and the rows of their histories.

    logs: one {"history": rows, "window": losses since the last row, "speeds": images/s, "seconds"} per network. Numbers stay
    on their device until `look` reads them, because reading waits for the GPU."""

    def __init__(self, logs, step):
        self.logs, self.recent = logs, []  # recent: (step, (2, S) numbers) that are not yet read
        self.losses, self.norms = [math.nan] * len(logs), [math.nan] * len(logs)  # of the last step that was read
        self.row_step, self.row_time = step, time.perf_counter()

    def note(self, step, numbers):
        self.recent.append((step, numbers))

    def look(self):
        """Read the recent numbers. Raises Diverged for the first step with a number that is not finite."""
        for step, numbers in self.recent:
            self.losses, self.norms = numbers.tolist()
            for log, loss, norm in zip(self.logs, self.losses, self.norms, strict=True):
                log["window"].append(loss)
                if not math.isfinite(loss + norm):
                    before = [row["loss"] for row in log["history"][-1:]] + log["window"][:-1]
                    raise Diverged(step, before, log["history"])
        self.recent.clear()

    def add_row(self, cfg, step, rate, weight_norms):
        """Add a row to each history from the numbers that were read since the last row."""
        now = time.perf_counter()
        seconds = now - self.row_time
        for log, gradient_norm, weight_norm in zip(self.logs, self.norms, weight_norms, strict=True):
            row = {"step": step, "loss": statistics.fmean(log["window"]), "lr": rate}
            log["history"].append({**row, "gradient_norm": gradient_norm, "weight_norm": weight_norm})
            log["speeds"].append((step - self.row_step) * cfg.batch / seconds)
            log["seconds"] += seconds
            log["window"].clear()
        self.row_step, self.row_time = step, now


def program(cfg, models, optimizers):
    """Return (Single, its optimizer) for one network, or (Stack, one optimizer for all) for several."""
    if len(models) == 1:
        return Single(models[0], cfg.steps), optimizers[0]
    net = Stack(models, optimizers, cfg.steps)
    return net, net.gather(make_optimizer(net.net, cfg))


def gradients(net, cfg, batches):
    """Run forward and backward passes of a Single (S = 1) or a Stack on one batch per network. Returns ((S,) losses, (S,)
    gradient norms before clipping) on their device."""
    with torch.autocast(batches[0][0].device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        losses = net.losses(batches)
    net.zero_grad()
    losses.sum().backward()
    return losses.detach(), net.clip(cfg.clip)


def guard(optimizer, numbers):
    """Disable all further updates of an optimizer if a number is not finite, without waiting for the GPU."""
    lost = (~numbers.isfinite()).any().float()
    optimizer.found_inf = lost.maximum(getattr(optimizer, "found_inf", lost))


def resume(jobs, optimizers):
    """Load the newest checkpoints, if there are any, and return (step, one log per job). Raises Apart if the checkpoints are of
    different steps, and StoreError as `Checkpoints.resume` does."""
    steps, logs = [], []
    for job, optimizer in zip(jobs, optimizers, strict=True):
        found = job.checkpoints.resume(job.model, optimizer) if job.checkpoints else None
        step, log = found or (0, {"history": [], "psnr_by_step": [], "window": [], "speeds": [], "seconds": 0.0})
        steps.append(step)
        logs.append(log)
    if len(set(steps)) > 1:
        raise Apart(f"checkpoints are of steps {sorted(set(steps))}")
    return steps[0], logs


def pretrain(cfg, data, model, checkpoints=None, label=None, monitor=None):
    """Train `model` in place on data.pool. A run that resumes from a checkpoint gives the same result as an uninterrupted one.

    Returns {"history": rows of {step, loss, lr, gradient_norm, weight_norm}, "psnr_by_step": rows of {step, psnr in dB on the
    test split} after 1/8, 1/4 and 1/2 of the steps if the task predicts pixels, "speeds": images/s of the window of each row,
    "seconds": of training}. Raises Diverged before an update that is not finite, and StoreError for checkpoints that cannot be
    read or written."""
    return pretrain_together([Job(cfg, data, model, checkpoints, monitor)], label)[0]


def pretrain_together(jobs, label=None):
    """Train the networks of Jobs that differ only in the seed as one program, with the results of `pretrain` up to rounding.
    Returns a log per network. Raises as `pretrain` does, and Apart if the checkpoints are of different steps."""
    cfg = jobs[0].cfg
    pools = [Batches(job.cfg, job.data.pool) for job in jobs]
    optimizers = [make_optimizer(job.model, job.cfg) for job in jobs]
    step, logs = resume(jobs, optimizers)
    net, optimizer = program(cfg, [job.model for job in jobs], optimizers)
    journal, interval, report = Journal(logs, step), Interval(), Progress(label or cfg.mixer, cfg.steps, step)
    on_cpu, row_every = jobs[0].data.pool.images.device.type == "cpu", max(1, cfg.steps // ROWS)
    earlier = {cfg.steps // part for part in EARLIER} - {0, cfg.steps} if cfg.predicts else set()

    while step < cfg.steps:
        rate = learning_rate(cfg, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        numbers = torch.stack(gradients(net, cfg, [pool.at(step) for pool in pools]))  # (2, S): losses, gradient norms
        journal.note(step, numbers)
        ends_row = (step + 1) % row_every == 0 or step + 1 == cfg.steps
        if on_cpu or ends_row:
            journal.look()
        else:
            guard(optimizer, numbers)
        optimizer.step()
        step += 1

        if ends_row:
            journal.add_row(cfg, step, rate, net.norms([p.detach() for p in net.parameters()]).tolist())
        report(step, f"loss {journal.losses[0]:.4f}")
        tell(jobs, journal, step, ends_row)
        if step in earlier:
            began = time.perf_counter()
            net.scatter(optimizer)
            for job, log in zip(jobs, logs, strict=True):
                log["psnr_by_step"].append({"step": step, "psnr": evaluate(job.model, job.data.test, "test")["psnr"]})
            journal.row_time += time.perf_counter() - began  # does not count as training time
        if jobs[0].checkpoints and (interval.due() or step == cfg.steps):
            journal.look()
            net.scatter(optimizer)
            with interval.saving():
                for job, one, log in zip(jobs, optimizers, logs, strict=True):
                    job.checkpoints.save(step, job.model, one, log)
    net.scatter(optimizer)
    report.finish(f"loss {logs[0]['history'][-1]['loss']:.4f}, trained")
    return logs


def tell(jobs, journal, step, new_row):
    """Report the progress to the Monitors of the jobs."""
    for job, log, loss in zip(jobs, journal.logs, journal.losses, strict=True):
        if job.monitor:
            if new_row:
                job.monitor.row(log["history"][-1])
            job.monitor(step, job.cfg.steps, loss)
