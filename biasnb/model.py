"""Isotropic networks: an embedding, L equal blocks on the (B, H, W, D) grid, and a head."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .data import generator
from .embed import Embedding, PaletteContent, RGBContent
from .mixing import OPERATORS, linear
from .palette import dequantise, quantise

EPS = 1e-5


class Block(nn.Module):
    """Pre-norm residual block. The operator is the only part that differs between networks (image-GPT, section 3.1).

    # DEVIATION: the activation is GELU itself; image-GPT's x * sigmoid(1.702 x) approximates it and is slower here.
    """

    def __init__(self, mix, width, ratio):
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=EPS)
        self.mix = mix
        self.norm2 = nn.RMSNorm(width, eps=EPS)
        self.mlp = nn.Sequential()
        self.mlp.add_module("hidden", linear(width, ratio * width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("out", linear(ratio * width, width))

    def forward(self, x):  # (B, H, W, D)
        x = x + self.mix(self.norm1(x))  # across positions
        return x + self.mlp(self.norm2(x))  # across channels, the same in every network


class Isotropic(nn.Module):
    """The whole network. `encode` turns images into what the network sees; `forward` gives the last hidden grid;
    `head` maps hidden vectors to p*p*3 standardised colours or p*p*K logits."""

    def __init__(self, cfg, stats, palette=None):
        super().__init__()
        self.cfg, self.palette = cfg, palette
        self.register_buffer("mean", stats[0], persistent=False)
        self.register_buffer("std", stats[1], persistent=False)
        if cfg.input == "palette":
            content = PaletteContent(cfg.patch, cfg.width, cfg.colours)
        else:
            content = RGBContent(cfg.patch, cfg.width)
        self.embed = Embedding(content, cfg.grid, cfg.width)
        self.blocks = nn.ModuleList(Block(OPERATORS[cfg.mixer](cfg), cfg.width, cfg.mlp_ratio) for _ in range(cfg.depth))
        self.norm = nn.RMSNorm(cfg.width, eps=EPS)
        self.head = linear(cfg.width, cfg.patch**2 * (3 if cfg.target == "rgb" else cfg.colours))

    def standardise(self, pixels):
        """(..., 3) colours 0 to 255 -> zero mean and unit variance on the training images."""
        return (pixels.float() - self.mean) / self.std

    def encode(self, images):
        """(B, S, S, 3) uint8 -> standardised colours (B, S, S, 3), or palette indices (B, S, S) for input 'palette'."""
        if self.cfg.input == "rgb":
            return self.standardise(images)
        ids = quantise(images, self.palette)
        return ids if self.cfg.input == "palette" else self.standardise(dequantise(ids, self.palette))

    def forward(self, x, mask=None, out=None):
        """Encoded images and a mask (B, H, W), True where hidden -> (B, H, W, D). A dict given as `out` receives
        "layers": the L + 1 grids h^0 ... h^L."""
        h = self.embed(x, mask)
        layers = [h]
        for block in self.blocks:
            h = block(h)
            layers.append(h)
        if out is not None:
            out["layers"] = layers
        return self.norm(h)


def features(model, images):
    """(B, S, S, 3) uint8 -> (B, L + 1, D): token average of the normed hidden grid at every depth
    (image-GPT, section 3.3)."""
    out = {}
    model(model.encode(images), out=out)
    return torch.stack([F.rms_norm(h, h.shape[-1:]).mean((1, 2)) for h in out["layers"]], 1)


def build(cfg, stats, palette=None, device="cpu"):
    """A network with its initial weights. Every parameter is drawn from its own stream, named after it, so two
    networks of one seed start equal wherever they have the same part.

    # DEVIATION: image-GPT draws embedding and MLP with std .02 at D = 512; here every matrix has std
    # 1/sqrt(fan-in), so that small widths start alike; outputs of residual branches are divided by sqrt(L) as there,
    # and content to position keeps its ratio 2 to 1.
    """
    model = Isotropic(cfg, stats, palette)
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan_in = p[0].numel()
            if "norm" in name:
                p.fill_(1.0)
                continue
            if name.startswith("head"):
                p.zero_()
                continue
            if name == "embed.position":
                std = 0.5
            elif isinstance(model.embed.content, PaletteContent) and name.startswith("embed.content"):
                std = 1.0 / cfg.patch
            else:
                std = fan_in**-0.5 / (cfg.depth**0.5 if ".out." in name else 1.0)
            p.normal_(0.0, std, generator=generator("cpu", cfg.seed, "weights", name))
    return model.to(device)


def parameters_by_part(model):
    """Number of parameters that mix positions, that mix channels (MLPs and norms), and of embedding and head."""
    parts = {"mixing": 0, "channel": 0, "embedding": 0}
    for name, p in model.named_parameters():
        part = "embedding" if name.startswith(("embed.", "head.")) else "mixing" if ".mix." in name else "channel"
        parts[part] += p.numel()
    return parts


def flop_per_image(model):
    """FLOP of one forward pass of one image with the head on the hidden tokens only, 2 per multiply-add."""
    cfg, device = model.cfg, model.mean.device
    images = torch.zeros(1, cfg.image_size, cfg.image_size, 3, dtype=torch.uint8, device=device)
    x = model.encode(images)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    head = 2 * cfg.grid**2 * model.head.weight.numel() * cfg.mask_rate
    return int(counter.get_total_flops() + head)
