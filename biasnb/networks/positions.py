"""Components of operators: masks of allowed positions, tables over positions, convolution, attention, identity weights."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def linear(inputs, outputs):
    """Return a linear map without bias, as in image-GPT."""
    return nn.Linear(inputs, outputs, bias=False)


def offsets(cfg):
    """Return the offsets p_j - p_i in tokens, (N, N, 2); on a torus the shorter of the two."""
    side = torch.arange(cfg.grid)
    p = torch.cartesian_prod(side, side)
    d = p[None] - p[:, None]
    return (d + cfg.grid // 2) % cfg.grid - cfg.grid // 2 if cfg.circular else d


def strict(cfg, layer):
    """Return whether a position may not read itself, as in the first block of an autoregressive network."""
    return cfg.causal == "entry" and layer == 0


def order(cfg, layer):
    """Return the mask (N, N) bool of the pairs (i, j) that the order allows: all, or if causal j <= i (j < i if `strict`)."""
    everything = torch.ones(cfg.grid**2, cfg.grid**2, dtype=torch.bool)
    return everything.tril(-1 if strict(cfg, layer) else 0) if cfg.causal else everything


def window(cfg):
    """Return the mask (N, N) bool of the window ||p_i - p_j||_inf <= h with kernel = 2h + 1."""
    return offsets(cfg).abs().amax(2) <= cfg.kernel // 2


def reach(cfg, layer, local):
    return order(cfg, layer) & window(cfg) if local else order(cfg, layer)


def convolve(x, weight, cfg, groups=1):
    """Convolve (B, H, W, D) with a kernel (D, D/groups, k, k); the border is padded with zeros or circularly."""
    h = [side // 2 for side in weight.shape[-2:]]
    x = x.permute(0, 3, 1, 2)
    if cfg.circular:
        x, h = F.pad(x, (h[1], h[1], h[0], h[0]), mode="circular"), [0, 0]
    if groups == 1 or x.device.type != "cpu":
        return F.conv2d(x, weight, padding=h, groups=groups).permute(0, 2, 3, 1)
    with torch.autocast("cpu", enabled=False):  # depthwise bf16 convolution is slower on a CPU; docs/performance.md
        return F.conv2d(wide(x), wide(weight), padding=h, groups=groups).permute(0, 2, 3, 1)


def wide(x):
    """Convert bf16 to fp32; leave other types unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x


def attend(q, k, v, bias=None):
    """Return softmax(q k^T / sqrt(d) + bias) v for q, k, v (B, G, N, d). A Boolean bias (..., N, N) is True where allowed.

    Fused bf16 attention is slow on a CPU (docs/performance.md). There, bf16 uses explicit products, for as many images at once
    as fit into the cache, and above 256 tokens, where products would need much memory, fused fp32 attention. The choice
    depends on the shape only, so that a resumed run computes the same numbers."""
    heads, n, d = q.shape[1:]
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    if n > 256:
        with torch.autocast("cpu", enabled=False):
            bias = bias if bias is None else wide(bias)
            return F.scaled_dot_product_attention(wide(q), wide(k), wide(v), attn_mask=bias)
    if bias is not None and not bias.is_floating_point():
        bias = torch.zeros(bias.shape, dtype=q.dtype).masked_fill(~bias, -math.inf)
    images, found = max(1, 2**20 // (heads * n * n)), []
    for some_q, some_k, some_v in zip((q * d**-0.5).split(images), k.split(images), v.split(images), strict=True):
        scores = some_q @ some_k.mT
        found.append((scores if bias is None else scores + bias).softmax(-1) @ some_v)
    return torch.cat(found)


def taps_of(cfg, layer):
    """Return the mask (k, k) of a kernel: all taps, or if causal those up to its centre, without the centre if `strict`
    (PixelCNN, arXiv 1601.06759)."""
    k = cfg.kernel
    mask = torch.ones(k * k)
    if cfg.causal:
        mask[k * k // 2 + (0 if strict(cfg, layer) else 1) :] = 0
    return mask.view(k, k)


class Table(nn.Module):
    """G matrices (G, N, N) with one parameter per offset p_j - p_i if shared, else one per position and tap.

    Entries outside the window are arbitrary; the caller must mask them."""

    def __init__(self, cfg, heads, local, shared, std):
        super().__init__()
        n, d = cfg.grid**2, offsets(cfg)
        side, middle = (cfg.kernel, cfg.kernel // 2) if local else (2 * cfg.grid - 1, cfg.grid - 1)
        if cfg.circular and not local:
            side, middle = cfg.grid, cfg.grid // 2
        if local or shared:
            taps = side**2
            address = ((d + middle) * torch.tensor([side, 1])).sum(2).clamp(0, taps - 1)
        else:
            taps, address = n, torch.arange(n)
        self.register_buffer("address", address.expand(n, n), persistent=False)
        self.weight = nn.Parameter(torch.empty(heads, 1 if shared else n, taps))
        self.scales = {"weight": std}

    def forward(self, weight=None):
        weight = self.weight if weight is None else weight
        n = len(self.address)
        return weight.expand(-1, n, -1).gather(2, self.address.expand(len(weight), n, n))

    @torch.no_grad()
    def favour_self(self, amount):
        """Add `amount` (N,) to A_ii; a shared table uses the first element only."""
        rows = torch.arange(self.weight.shape[1])
        self.weight[:, rows, self.address.diagonal()[rows]] += amount[rows]


def masked_softmax(scores, allowed):
    """Return the softmax over the allowed entries of each row; a row without allowed entries is zero."""
    empty = ~allowed.any(-1, keepdim=True)
    return scores.masked_fill(~(allowed | empty), -math.inf).softmax(-1) * ~empty


@torch.no_grad()
def add_identity(weight, amount=1.0):
    """Add I to W in place; for an MLP with hidden size 2 D or more add [I; -I], because gelu(x) - gelu(-x) = x."""
    rows, columns = weight.shape
    for sign, start in ((1, 0), (-1, min(weight.shape))):
        part = weight[start:] if rows > columns else weight[:, start:]
        if min(part.shape) == min(weight.shape):
            part.diagonal().add_(sign * amount)
