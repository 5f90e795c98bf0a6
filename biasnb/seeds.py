"""Seeds as a batch axis: networks that differ in their seed only, trained as one program."""

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .pretext import spoilt, targets


class Scored(nn.Module):
    """A network with its loss, for which every shape is known beforehand: what is hidden under 'bert' is gathered into a fixed
    number of places, more than are ever hidden, and those beyond it weigh nothing."""

    def __init__(self, net):
        super().__init__()
        self.net, cfg = net, net.cfg
        tokens, rate = cfg.batch * cfg.grid**2, cfg.mask_rate
        self.places = min(tokens, round(rate * tokens + 8 * (tokens * rate * (1 - rate)) ** 0.5) + 1)

    def forward(self, x, target, given):
        cfg = self.net.cfg
        if cfg.pretext == "supervised":
            return F.cross_entropy(self.net.head(self.net(x).mean((1, 2))).float(), target)
        vectors = self.net(x, given if cfg.pretext == "bert" else None).flatten(0, 2)
        weight = None
        if cfg.pretext == "bert":
            hidden = given.flatten()
            index = hidden.to(torch.uint8).argsort(descending=True, stable=True)[: self.places]
            vectors, target, weight = vectors[index], target[index], hidden[index].float()
        predicted = self.net.head(vectors).float()
        if cfg.target == "rgb":
            errors = (predicted - target).square().mean(1)
        else:
            logits = predicted.unflatten(1, (-1, cfg.colours))
            errors = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)
        return errors.mean() if weight is None else (errors * weight).sum() / weight.sum()


class Stack(nn.Module):
    """S networks of one shape as one: every parameter of `net` has the seeds as its first axis, under its own name."""

    def __init__(self, models, solvers):
        super().__init__()
        self.models, self.solvers = models, solvers
        self.scored = Scored(copy.deepcopy(models[0]))
        for name, p in self.net.named_parameters():
            p.data = torch.stack([model.get_parameter(name).data for model in models])

    @property
    def net(self):
        return self.scored.net

    def losses(self, views):
        """(S,) losses of the views [(images, given), ...], one per network."""
        with torch.no_grad():
            parts = [seen(model, *view) for model, view in zip(self.models, views, strict=True)]
            x, target, given = (None if part[0] is None else torch.stack(part) for part in zip(*parts, strict=True))
        axes = (0, 0, 0, None if given is None else 0)
        call = vmap(lambda p, *view: functional_call(self.scored, p, view), axes)
        plain = sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else contextlib.nullcontext()  # the fused has no rule
        with plain:
            return call(dict(self.scored.named_parameters()), x, target, given)

    def norms(self, tensors):
        """(S,) norms over all these tensors (S, ...)."""
        return torch.stack([x.flatten(1).norm(dim=1) for x in tensors]).norm(dim=0)

    def clip(self, most):
        """Scale the gradients of each network whose norm is above `most` down to it; returns the (S,) norms before."""
        found = [p.grad for p in self.parameters() if p.grad is not None]
        norms = self.norms(found)
        scale = (most / (norms + 1e-6)).clamp(max=1.0)
        for grad in found:
            grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
        return norms

    def gather(self, solver):
        """Give an optimiser of `net` the states of the networks' own; returns it."""
        for p, *own in zip(*map(trained, (solver, *self.solvers)), strict=True):
            states = [one.state[q] for one, q in zip(self.solvers, own, strict=True)]
            solver.state[p] = {name: value if name == "step" else torch.stack([state[name] for state in states])
                               for name, value in states[0].items()}  # fmt: skip
        return solver

    @torch.no_grad()
    def scatter(self, solver):
        """Give the networks their parameters back, and their optimisers the state of this one."""
        for name, p in self.net.named_parameters():
            for model, value in zip(self.models, p, strict=True):
                model.get_parameter(name).copy_(value)
        for p, *own in zip(*map(trained, (solver, *self.solvers)), strict=True):
            for i, (one, q) in enumerate(zip(self.solvers, own, strict=True)):
                one.state[q] = {name: value.clone() if name == "step" else value[i].clone()
                                for name, value in solver.state[p].items()}  # fmt: skip


def trained(solver):
    return [p for group in solver.param_groups for p in group["params"]]


def seen(model, images, given):
    """(what the network sees, what it must predict, what is hidden from it): images (B, S, S, 3) and what `pretext.draw`
    gave -> encoded images, (B * N, ...) targets or (B,) labels, the mask."""
    images = model.arrange(images)
    x = model.encode(spoilt(model, images, given))
    if model.cfg.pretext == "supervised":
        return x, given, None
    return x, targets(model, images).flatten(0, 2), given if model.cfg.pretext == "bert" else None
