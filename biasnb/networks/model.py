"""Isotropic networks: an embedding, L blocks of equal shape on the token grid (B, H, W, D), and a head."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.datasets import generator
from ..data.palette import dequantise, quantise
from .embed import Embedding, PaletteContent, RGBContent, arrange, pixel_order
from .mixing import add_identity, linear, operator
from .positions import wide

EPS = 1e-5
NOISE = 0.1  # scale of the random weights that are added to the identity in a branch without skip connection


class Normalised(torch.autograd.Function):
    """Return x / sqrt(mean(x^2) + EPS) * gain over the last axis, and the scale (..., 1) of x. The gradient uses the layer-norm
    kernel for a mean of 0, which is fast on a CPU; the mean that this kernel subtracts from the gradient is added again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, gain):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).pow_(2).div_(x.shape[-1]).add_(EPS).rsqrt_()
        return (x * scale).mul_(gain), scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx, grad, _):
        x, gain, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is required
            return torch.autograd.grad(F.rms_norm(x, x.shape[-1:], gain, EPS), (x, gain), grad, create_graph=True)
        norm_backward = torch.ops.aten.native_layer_norm_backward
        of_x, of_gain, _ = norm_backward(grad, x, x.shape[-1:], torch.zeros_like(scale), scale, gain, None, [True, True, False])
        return of_x.add_((grad @ gain).unsqueeze(-1).mul_(scale).div_(x.shape[-1])), of_gain


class Norm(nn.RMSNorm):
    """RMSNorm, with an implementation for CPUs that is faster to train."""

    def __init__(self, width):
        super().__init__(width, eps=EPS)

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        normalise = Normalised.apply if torch.is_grad_enabled() else Normalised.forward
        return normalise(wide(x), self.weight)[0]


class Block(nn.Module):
    """Pre-norm residual block (image-GPT, section 3.1). The operator is the only part that differs between networks.

    # DEVIATION: the activation is the exact GELU; image-GPT approximates it by x * sigmoid(1.702 x), which is slower here."""

    def __init__(self, mix, cfg):
        super().__init__()
        self.skips = cfg.skip in ("both", "spatial"), cfg.skip in ("both", "channel")
        self.norm1 = Norm(cfg.width)
        self.mix = mix
        self.norm2 = Norm(cfg.width)
        hidden = cfg.mlp_ratio * cfg.width
        parts = {"hidden": linear(cfg.width, hidden), "act": nn.GELU(), "out": linear(hidden, cfg.width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x, entry=None):
        """Map (B, H, W, D) to (B, H, W, D). In the first block of an autoregressive network, `entry` is x without the pixels;
        it replaces x in the skip connection and in the queries, where a token would otherwise read itself."""
        if entry is None:
            own, y = x, self.mix(self.norm1(x))  # across positions
        else:
            own, y = entry, self.mix(self.norm1(x), self.norm1(entry))
        x = own + y if self.skips[0] else y
        y = self.mlp(self.norm2(x))  # across channels, the same in every network
        return x + y if self.skips[1] else y

    @torch.no_grad()
    def favour_self(self):
        """Initialise branches without skip connection as the identity plus noise; otherwise they cannot be trained."""
        if not self.skips[0]:
            for p in self.mix.parameters():
                p.mul_(NOISE)
            self.mix.favour_self()
        if not self.skips[1]:
            for weight in (self.mlp.hidden.weight, self.mlp.out.weight):
                add_identity(weight.mul_(NOISE))


class Isotropic(nn.Module):
    """The whole network. `encode` maps images to the input of the network, `forward` returns the last hidden grid, and `head`
    maps hidden vectors to p*p*3 standardised colours, p*p*K logits, or C classes."""

    def __init__(self, cfg, stats, palette=None, classes=0):
        super().__init__()
        self.cfg, self.palette = cfg, palette
        self.register_buffer("mean", stats[0], persistent=False)
        self.register_buffer("std", stats[1], persistent=False)
        self.register_buffer("order", pixel_order(cfg), persistent=False)
        if cfg.input == "palette":
            content = PaletteContent(cfg.patch, cfg.width, cfg.colours)
        else:
            content = RGBContent(cfg.patch, cfg.width)
        self.embed = Embedding(content, cfg)
        different = cfg.depth if cfg.blocks == "separate" else 1
        self.blocks = nn.ModuleList(Block(operator(cfg, layer), cfg) for layer in range(different))
        self.streams = 2 if cfg.mixer == "conv_two_stream" else 1
        self.norm = Norm(cfg.width)
        pixels = cfg.patch**2 * (cfg.colours if cfg.predicts and cfg.target == "palette" else 3)
        self.head = linear(cfg.width, classes if cfg.pretext == "supervised" else pixels)

    @property
    def stack(self):
        """The L blocks in order; with blocks 'repeated', the same block L times."""
        return [self.blocks[i % len(self.blocks)] for i in range(self.cfg.depth)]

    def standardise(self, pixels):
        """Standardise (..., 3) colours (0 to 255) to zero mean and unit variance on the training images."""
        return (pixels.float() - self.mean) / self.std

    def arrange(self, images):
        """Permute the pixels of (B, S, S, ...) as cfg.permute says."""
        return arrange(images, self.order)

    def restore(self, images):
        """Invert `arrange`."""
        return images if self.order is None else arrange(images, self.order.argsort())

    def encode(self, images):
        """Map arranged images (B, S, S, 3) to standardised colours (B, S, S, 3), or to palette indices (B, S, S) for input
        'palette'."""
        if self.cfg.input == "rgb":
            return self.standardise(images)
        ids = quantise(images, self.palette)
        return ids if self.cfg.input == "palette" else self.standardise(dequantise(ids, self.palette))

    def forward(self, x, mask=None, out=None):
        """Map encoded images and a mask (B, H, W), True where hidden, to (B, H, W, D). If a dict `out` is given, its entry
        "layers" is set to the L + 1 grids h^0 ... h^L."""
        content, position = self.embed(x, mask)
        h = content + position
        entry = position.expand_as(h) if self.cfg.causal == "entry" else None
        if self.streams == 2:
            entry = None if entry is None else torch.cat([h, entry])
            h = torch.cat([h, h])
        layers = [h]
        for i, block in enumerate(self.stack):
            h = block(h, entry if i == 0 else None)
            layers.append(h)
        if out is not None:
            out["layers"] = [h.chunk(self.streams)[-1] for h in layers]
        return self.norm(h.chunk(self.streams)[-1])


def context_coverage(model):
    """Return the fraction of the permitted pairs (i, j), all pairs or j before i if causal, for which position i reads j
    through all layers. The result is exact: it is a Boolean product of the reads of the layers."""
    cfg, n = model.cfg, model.cfg.grid**2
    may = torch.ones(n, n).tril(-1) if cfg.causal else torch.ones(n, n)
    seen = torch.diag(torch.ones(n - 1), -1) if cfg.causal == "shift" else torch.eye(n)
    seen = seen.repeat(model.streams, 1)
    for layer, block in enumerate(model.stack):
        reads = block.mix.allowed.cpu()
        reads = (reads.any(0) if reads.dim() == 3 else reads).float()  # windows may differ between heads
        if block.skips[0]:
            itself = torch.ones(len(reads))
            if cfg.causal == "entry" and layer == 0:
                itself[-n:] = 0
            reads = reads + itself.diag()
        seen = (reads @ seen > 0).float()
    return float((seen[-n:] * may).sum() / may.sum())


def per_pass(cfg, device):
    """Return the batch size of passes without gradient; on a CPU the activations of such a batch fit into the cache."""
    numbers = 2**18 if torch.device(device).type == "cpu" else 2**24
    return max(16, numbers // (cfg.grid**2 * cfg.width))


def features(model, images):
    """Map (B, S, S, 3) uint8 to features (B, L + 1, D), the token average of the normalised hidden grid at every depth
    (image-GPT, section 3.3)."""
    out = {}
    model(model.encode(model.arrange(images)), out=out)
    return torch.stack([F.rms_norm(h, h.shape[-1:]).mean((1, 2)) for h in out["layers"]], 1)


def build(cfg, stats, palette=None, device="cpu", classes=0):
    """Return a network with initial weights. Every parameter is drawn from a random stream named after it, so two networks
    with the same seed have equal weights in the parts that they share.

    # DEVIATION: image-GPT draws embedding and MLP with std .02 at D = 512. Here every matrix has std 1/sqrt(fan-in), so that
    small widths start alike. As there, outputs of residual branches are divided by sqrt(L), and the ratio of content to
    position is 2 to 1."""
    model = Isotropic(cfg, stats, palette, classes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith(".gate"):
                p.fill_(1.0)
            elif name.startswith("head"):
                p.zero_()
            else:
                p.normal_(0.0, initial_std(model, name, p), generator=generator("cpu", cfg.seed, "weights", name))
        for block in model.blocks:
            block.favour_self()
    return model.to(device)


def initial_std(model, name, parameter):
    """Return the standard deviation of the initial values of a parameter: from `scales` of its module, or from the fan-in."""
    owner, _, own = name.rpartition(".")
    scales = getattr(model.get_submodule(owner), "scales", {})
    if name in ("embed.position", "embed.start", "embed.hidden"):
        return 0.5
    if own in scales:
        return scales[own]
    if isinstance(model.embed.content, PaletteContent) and name.startswith("embed.content"):
        return 1.0 / model.cfg.patch
    return parameter[0].numel() ** -0.5 / (model.cfg.depth**0.5 if ".out." in name else 1.0)


def parameters_by_part(model):
    """Return the number of parameters that mix positions, that mix channels (MLPs and norms), and of embedding and head."""
    parts = {"mixing": 0, "channel": 0, "embedding": 0}
    for name, p in model.named_parameters():
        part = "mixing" if ".mix." in name else "channel"
        parts["embedding" if name.startswith(("embed.", "head.")) else part] += p.numel()
    return parts


def flop_per_image(model):
    """Return the FLOP (2 per multiply-add) that a forward pass of one image requires, with the head on predicted tokens only.
    Products over positions count for the allowed pairs only, even if the implementation computes all pairs."""
    idle = sum(block.mix.idle() for block in model.stack if hasattr(block.mix, "idle"))
    return flop_per_image_dense(model) - 2 * idle


def flop_per_image_dense(model):
    """Return the FLOP that the implementation computes, including excluded pairs (compare `flop_per_image`)."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    cfg, device = model.cfg, model.mean.device
    images = torch.zeros(1, cfg.image_size, cfg.image_size, 3, dtype=torch.uint8, device=device)
    x = model.encode(images)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    vectors = {"bert": cfg.mask_rate * cfg.grid**2, "supervised": 1, "none": 0}.get(cfg.pretext, cfg.grid**2)
    head = 2 * vectors * model.head.weight.numel()
    return int(counter.get_total_flops() + head)
