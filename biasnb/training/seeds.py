"""The trained module: one network, or networks that differ only in the seed as one program with a leading axis of seeds."""

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .pretext import LOSSES, classify, corrupted, targets, token_errors

COMPILED_STEPS = 2000  # for fewer steps, compilation takes longer than it saves


def compiled(function, steps, device):
    """Fuse the GPU kernels of a function with torch.compile if it is called often enough. A forward or backward pass that
    cannot be compiled is left unchanged."""
    if device.type == "cpu" or steps < COMPILED_STEPS:
        return function
    torch._dynamo.reset()  # dynamo limits the compilations per function, and a process trains many networks
    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.force_non_lazy_backward_lowering = True  # compile it in the first call, where errors are suppressed
    return torch.compile(function, dynamic=False)


class Scored(nn.Module):
    """A network with its loss, in which all shapes are static: for 'bert', hidden tokens are gathered into a fixed number of
    slots, more than are ever hidden, and unused slots have weight 0."""

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
    """One network in training. On a GPU its loss has static shapes, so that the CPU never waits for the GPU."""

    def __init__(self, model, steps):
        super().__init__()
        self.model, device = model, model.mean.device
        self.score = None if device.type == "cpu" else compiled(Scored(model), steps, device)

    def losses(self, batches):
        """Return the loss (1,) of the only batch (images, given)."""
        images, given = batches[0]
        if self.score is None:
            return LOSSES[self.model.cfg.pretext](self.model, images, given)[None]
        with torch.no_grad():
            encoded, target, mask = encoded_batch(self.model, images, given)
        return self.score(encoded, target, mask)[None]

    def norms(self, tensors):
        """Return the norm (1,) over all tensors."""
        return torch.stack(torch._foreach_norm(tensors)).norm()[None]

    def clip(self, most):
        """Clip the norm of the gradient to `most` and return the norm (1,) before clipping."""
        found = [p.grad for p in self.parameters() if p.grad is not None]
        norms = self.norms(found)
        torch._foreach_mul_(found, (most / (norms[0] + 1e-6)).clamp(max=1.0))
        return norms

    def scatter(self, optimizer):
        """Do nothing, because the network holds its own parameters."""


class Stack(nn.Module):
    """S networks of equal shape as one network `net`. Its parameters keep their names and have a leading axis of seeds."""

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
        """Return the losses (S,) of S batches (images, given), one per network."""
        with torch.no_grad():
            parts = [encoded_batch(model, *batch) for model, batch in zip(self.models, batches, strict=True)]
            encoded, targets, masks = zip(*parts, strict=True)
            encoded, targets = torch.stack(encoded), torch.stack(targets)
            masks = None if masks[0] is None else torch.stack(masks)
        # fused attention on a CPU does not support vmap
        plain = sdpa_kernel(SDPBackend.MATH) if encoded.device.type == "cpu" else contextlib.nullcontext()
        with plain:
            return self.score(dict(self.scored.named_parameters()), encoded, targets, masks)

    def norms(self, tensors):
        """Return the norms (S,) over all tensors (S, ...)."""
        return torch.stack([x.flatten(1).norm(dim=1) for x in tensors]).norm(dim=0)

    def clip(self, most):
        """Clip the norm of the gradient of each network to `most` and return the norms (S,) before clipping."""
        found = [p.grad for p in self.parameters() if p.grad is not None]
        norms = self.norms(found)
        scale = (most / (norms + 1e-6)).clamp(max=1.0)
        for grad in found:
            grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
        return norms

    def gather(self, optimizer):
        """Stack the states of the networks' optimizers into an optimizer of `net`, and return it."""
        for stacked, own in self._correspondence(optimizer):
            states = [one.state[p] for one, p in zip(self.optimizers, own, strict=True)]
            for name, value in states[0].items():
                joined = value if name == "step" else torch.stack([state[name] for state in states])
                optimizer.state[stacked][name] = joined
        return optimizer

    @torch.no_grad()
    def scatter(self, optimizer):
        """Copy the parameters to the networks, and the state of `optimizer` to their optimizers."""
        for name, stacked in self.net.named_parameters():
            for model, value in zip(self.models, stacked, strict=True):
                model.get_parameter(name).copy_(value)
        for stacked, own in self._correspondence(optimizer):
            for i, (one, p) in enumerate(zip(self.optimizers, own, strict=True)):
                one.state[p] = {}
                for name, value in optimizer.state[stacked].items():
                    one.state[p][name] = value.clone() if name == "step" else value[i].clone()

    def _correspondence(self, optimizer):
        """Pair each parameter of an optimizer of `net` with the tuple of the corresponding parameters of the networks."""
        own = zip(*(trained(one) for one in self.optimizers), strict=True)
        return zip(trained(optimizer), own, strict=True)


def trained(optimizer):
    """Return the parameters of an optimizer, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def encoded_batch(model, images, given):
    """Return the arguments of a Scored for images (B, S, S, 3) and the result of `pretext.draw`: encoded images, targets
    (B * N, ...) or labels (B,), and for 'bert' the mask (B, H, W), else None."""
    images = model.arrange(images)
    encoded = model.encode(corrupted(model, images, given))
    if model.cfg.pretext == "supervised":
        return encoded, given, None
    return encoded, targets(model, images).flatten(0, 2), given if model.cfg.pretext == "bert" else None
