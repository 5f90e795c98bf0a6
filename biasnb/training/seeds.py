"""What is trained: one network, or networks that differ in their seed only as one program, with the seeds as a batch axis."""

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .pretext import LOSSES, classify, corrupted, targets, token_errors

COMPILED_STEPS = 2000  # fewer would not pay for the time that compiling takes


def compiled(function, steps, device):
    """A function of tensors on a GPU, whose kernels are fused by torch.compile if it will be called often enough; what cannot
    be compiled, forward or backward, stays as it is."""
    if device.type == "cpu" or steps < COMPILED_STEPS:
        return function
    torch._dynamo.reset()  # a process compiles but a few functions of one code, and trains many networks
    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.force_non_lazy_backward_lowering = True  # at the first call, where an error is suppressed
    return torch.compile(function, dynamic=False)


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
            return F.cross_entropy(classify(self.net, x), target)
        if cfg.pretext != "bert":
            return token_errors(self.net, self.net(x).flatten(0, 2), target).mean()
        vectors, hidden = self.net(x, given).flatten(0, 2), given.flatten()
        index = hidden.to(torch.uint8).argsort(descending=True, stable=True)[: self.places]
        weight = hidden[index].float()
        return (token_errors(self.net, vectors[index], target[index]) * weight).sum() / weight.sum()


class Single(nn.Module):
    """One network as it is trained. On a GPU its loss has shapes that are known beforehand, so that nothing waits for it."""

    def __init__(self, model, steps):
        super().__init__()
        self.model, device = model, model.mean.device
        self.score = None if device.type == "cpu" else compiled(Scored(model), steps, device)

    def losses(self, batches):
        """(1,) loss of the one batch (images, given)."""
        images, given = batches[0]
        if self.score is None:
            return LOSSES[self.model.cfg.pretext](self.model, images, given)[None]
        with torch.no_grad():
            encoded, target, mask = encoded_batch(self.model, images, given)
        return self.score(encoded, target, mask)[None]

    def norms(self, tensors):
        """(1,) norm over all these tensors."""
        return torch.stack(torch._foreach_norm(tensors)).norm()[None]

    def clip(self, most):
        """Scale the gradient down to a norm of `most`; returns the (1,) norm before."""
        found = [p.grad for p in self.parameters() if p.grad is not None]
        norms = self.norms(found)
        torch._foreach_mul_(found, (most / (norms[0] + 1e-6)).clamp(max=1.0))
        return norms

    def scatter(self, optimizer):
        """The network has its parameters already."""


class Stack(nn.Module):
    """S networks of one shape as one: every parameter of `net` has the seeds as its first axis, under its own name."""

    def __init__(self, models, optimizers, steps):
        super().__init__()
        self.models, self.optimizers = models, optimizers
        self.scored = scored = Scored(copy.deepcopy(models[0]))
        for name, p in self.net.named_parameters():
            p.data = torch.stack([model.get_parameter(name).data for model in models])

        def loss_of_one(parameters, encoded, target, mask):
            return functional_call(scored, parameters, (encoded, target, mask))

        axes = (0, 0, 0, 0 if models[0].cfg.pretext == "bert" else None)
        self.score = compiled(vmap(loss_of_one, axes), steps, models[0].mean.device)

    @property
    def net(self):
        return self.scored.net

    def losses(self, batches):
        """(S,) losses of S batches (images, given), one per network."""
        with torch.no_grad():
            parts = [encoded_batch(model, *batch) for model, batch in zip(self.models, batches, strict=True)]
            encoded, targets, masks = zip(*parts, strict=True)
            encoded, targets = torch.stack(encoded), torch.stack(targets)
            masks = None if masks[0] is None else torch.stack(masks)
        # On a CPU the fused attention has no rule for vmap.
        plain = sdpa_kernel(SDPBackend.MATH) if encoded.device.type == "cpu" else contextlib.nullcontext()
        with plain:
            return self.score(dict(self.scored.named_parameters()), encoded, targets, masks)

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

    def gather(self, optimizer):
        """Give an optimizer of `net` the states of the networks' own; returns it."""
        for stacked, own in self._correspondence(optimizer):
            states = [one.state[p] for one, p in zip(self.optimizers, own, strict=True)]
            for name, value in states[0].items():
                joined = value if name == "step" else torch.stack([state[name] for state in states])
                optimizer.state[stacked][name] = joined
        return optimizer

    @torch.no_grad()
    def scatter(self, optimizer):
        """Give the networks their parameters back, and their optimizers the state of this one."""
        for name, stacked in self.net.named_parameters():
            for model, value in zip(self.models, stacked, strict=True):
                model.get_parameter(name).copy_(value)
        for stacked, own in self._correspondence(optimizer):
            for i, (one, p) in enumerate(zip(self.optimizers, own, strict=True)):
                one.state[p] = {}
                for name, value in optimizer.state[stacked].items():
                    one.state[p][name] = value.clone() if name == "step" else value[i].clone()

    def _correspondence(self, optimizer):
        """Each parameter of an optimizer of `net` with the tuple of the networks' own that it stands for."""
        own = zip(*(trained(one) for one in self.optimizers), strict=True)
        return zip(trained(optimizer), own, strict=True)


def trained(optimizer):
    """The parameters of an optimizer, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def encoded_batch(model, images, given):
    """What a Scored takes, of images (B, S, S, 3) and what `pretext.draw` gave: encoded images, (B * N, ...) targets or (B,)
    labels, and under 'bert' the mask (B, H, W)."""
    images = model.arrange(images)
    encoded = model.encode(corrupted(model, images, given))
    if model.cfg.pretext == "supervised":
        return encoded, given, None
    return encoded, targets(model, images).flatten(0, 2), given if model.cfg.pretext == "bert" else None
