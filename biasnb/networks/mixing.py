"""Operators that mix positions: first those defined by one mixing matrix A per head (`Mix` and its subclasses), then presets.

An operator maps tokens (B, H, W, D) to (B, H, W, D) and is the only part that differs between networks. The first block of an
autoregressive network passes `query`, the tokens without the content of their own pixels, to operators that compute queries.
The buffer `allowed` is True where output i (row) may read input j (column). `idle` returns the multiply-adds per image that
the implementation computes for pairs that `allowed` excludes: outside the window or the border, or later in the sequence."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from .. import operators
from .positions import Table, add_identity, attend, convolve, linear, masked_softmax, offsets, order, reach, taps_of, window


def operator(cfg, layer=0):
    """Return the operator that a Config names, for block `layer`."""
    made = operators.MIXERS[cfg.mixer].operator
    if isinstance(made, str):  # a class or function of this module
        made = globals()[made]
    return made(cfg, layer)


# ---- one mixing matrix per head -----------------------------------------------------------------------------------


class Mix(nn.Module):
    """Y = concat_g(A^g V^g) W_O with V = X W_V. The dense product with `matrix` defines every operator below."""

    products = 1  # that the implementation computes per pair of positions and head, each over D/G channels

    def __init__(self, cfg, layer=0):
        super().__init__()
        self.heads, self.causal, self.traits = cfg.heads, bool(cfg.causal), operators.MIXERS[cfg.mixer]
        self.value, self.out = linear(cfg.width, cfg.width), linear(cfg.width, cfg.width)
        self.register_buffer("allowed", reach(cfg, layer, self.traits.local), persistent=False)

    def matrix(self, x, query=None):
        """Return A of normalised tokens (B, H, W, D): (B, G, N, N), or (1, G, N, N) if it does not depend on them."""
        raise NotImplementedError

    def forward(self, x, query=None):
        return self.join(self.apply_matrix(x, query), x)

    def apply_matrix(self, x, query=None):
        a, v = self.matrix(x, query), self.split(self.value(x))
        return torch.einsum("gij,bgjc->bgic", a[0].to(v.dtype), v) if len(a) == 1 else a.to(v.dtype) @ v

    def split(self, x):
        """(B, H, W, D) -> (B, G, N, D/G)"""
        return x.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def join(self, y, x):
        """Concatenate the heads, (B, G, N, D/G) -> (B, H, W, D), and apply W_O."""
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def idle(self):
        if type(self).__module__ != __name__:  # the implementation of a user-defined operator is not known
            return 0
        n = self.allowed.shape[-1]
        excluded = int((~self.allowed).expand(self.heads, n, n).sum())
        return self.products * excluded * self.value.out_features // self.heads

    def favour_self(self):
        """Add the identity map to the initial weights, for blocks without a skip connection."""
        for weights in (self.value, self.out):
            add_identity(weights.weight)


class Identity(Mix):
    """The baseline without mixing, A = I."""

    products = 0

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        self.allowed, self.heads = torch.eye(cfg.grid**2, dtype=torch.bool) & order(cfg, layer), 1

    def matrix(self, x, query=None):
        return self.allowed.to(x.dtype)[None, None]

    def forward(self, x, query=None):
        return self.out(self.value(x)) * self.allowed.any()


class WindowMean(Mix):
    """The uniform average over the window: A is local and shared, and has no parameters."""

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        self.heads = 1

    def matrix(self, x, query=None):
        return (self.allowed / self.allowed.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)[None, None]


class Static(Mix):
    """The operators `conv`, `gconv`, `lc` and `full`, and their frozen versions: A_ij is a table entry where allowed, else 0.

    If the table is causal and not shared, each row is scaled by sqrt(taps / allowed taps), which preserves its variance."""

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        self.cfg, op = cfg, self.traits
        taps = cfg.kernel**2 if op.local else cfg.grid**2
        self.table = Table(cfg, cfg.heads, op.local, op.shared, taps**-0.5).requires_grad_(not op.frozen)
        free = self.allowed.sum(1, keepdim=True).clamp(min=1)
        scale = self.allowed * (taps / free).sqrt() if cfg.causal and not op.shared else self.allowed.float()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("taps", taps_of(cfg, layer), persistent=False)

    def matrix(self, x, query=None):
        return (self.table() * self.scale)[None]

    def apply_matrix(self, x, query=None):
        """Apply A to the values: by a depthwise convolution if A is local and shared, else by the product with `matrix`."""
        if not (self.traits.local and self.traits.shared):
            return super().apply_matrix(x, query)
        v = self.value(x)
        kernel = self.table.weight.view(-1, 1, *self.taps.shape) * self.taps
        return self.split(convolve(v, kernel.repeat_interleave(v.shape[-1] // self.heads, 0), self.cfg, v.shape[-1]))

    def idle(self):
        if self.traits.local and self.traits.shared:
            return excluded_taps(self.allowed, self.taps) * self.value.out_features
        return super().idle()

    def favour_self(self):
        super().favour_self()
        own = self.scale.diagonal()  # 0 in the first block of an autoregressive network, where no token may read itself
        self.table.favour_self(torch.where(own > 0, 1 / own, 0.0))


class StaticSoftmax(Static):
    """Attention without content, A = softmax(b), as a control: rows are non-negative and sum to one."""

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        self.table.scales = {"weight": 1.0}

    def matrix(self, x, query=None):
        return masked_softmax(self.table(), self.allowed)[None]

    def favour_self(self):
        Mix.favour_self(self)
        self.table.favour_self(torch.full((len(self.allowed),), 2 * math.log(len(self.allowed))))


class LowRank(Static):
    """Low-rank weight sharing (Elsayed et al., arXiv 2002.02959): every position combines K kernels,
    A_ij = sum_r softmax(c_i)_r b_r(p_j - p_i). K = 1 equals `conv`; K = N with one-hot combinations equals `lc`."""

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        self.table.weight = nn.Parameter(torch.empty(cfg.heads, cfg.rank, cfg.kernel**2))
        self.combination = nn.Parameter(torch.empty(cfg.heads, cfg.grid**2, cfg.rank))
        self.scales = {"combination": 1.0}
        shrink = math.e / (cfg.rank + math.e - 1)  # variance of a softmax average of K kernels relative to one kernel
        self.table.scales = {"weight": (cfg.kernel**2 * shrink) ** -0.5}
        self.scale = self.allowed.float()

    def matrix(self, x, query=None):
        return (self.table(self.combination.softmax(2) @ self.table.weight) * self.scale)[None]

    def favour_self(self):
        Mix.favour_self(self)
        with torch.no_grad():
            self.table.weight[:, :, self.table.address[0, 0]] += 1.0


class Attention(Mix):
    """The operators `lattn`, `gattn`, `lattn_abs` and `attn`: A = softmax(q_i . k_j / sqrt(d) + table_ij) over the allowed j.
    Without a table this is the attention of image-GPT (section 3.1)."""

    products = 2

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        self.query, self.key = linear(cfg.width, cfg.width), linear(cfg.width, cfg.width)
        tabled = self.traits.biased or cfg.position == "relative"
        self.table = Table(cfg, cfg.heads, self.traits.local, self.traits.shared, 0.02) if tabled else None
        self.masks = not self.allowed.all()

    def content(self, x, query=None):
        """Return the scores q_i . k_j / sqrt(d), (B, G, N, N)."""
        q = self.split(self.query(x if query is None else query))
        k = self.split(self.key(x))
        return q @ k.mT / math.sqrt(q.shape[-1])

    def matrix(self, x, query=None):
        scores = self.content(x, query)
        return masked_softmax(scores if self.table is None else scores + self.table(), self.allowed)

    def apply_matrix(self, x, query=None):
        """Apply A to the values by fused attention, without computing `matrix`."""
        if query is None:
            weights = torch.cat([part.weight for part in (self.query, self.key, self.value)])
            q, k, v = (self.split(part) for part in F.linear(x, weights).chunk(3, -1))
        else:
            q, k, v = self.split(self.query(query)), self.split(self.key(x)), self.split(self.value(x))
        empty = ~self.allowed.any(-1, keepdim=True)  # a softmax needs at least one allowed entry per row
        bias = None if self.table is None else self.table().to(q.dtype)
        if self.masks:
            readable = self.allowed | empty
            bias = readable if bias is None else bias.masked_fill(~readable, -math.inf)
        y = attend(q, k, v, bias)
        return y * ~empty if self.causal else y

    def favour_self(self):
        super().favour_self()
        for weights in (self.query, self.key):
            add_identity(weights.weight, math.sqrt(2))


class LocalHeads(Attention):
    """Attention in which some heads are restricted to a local window (Raganato et al., arXiv 2002.10260)."""

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        is_local = (torch.arange(cfg.heads) < cfg.local_heads)[:, None, None]
        self.allowed, self.masks = order(cfg, layer) & (window(cfg) | ~is_local), True


class GatedAttention(Attention):
    """ConViT (d'Ascoli et al., arXiv 2103.10697): A = (1 - sigmoid(gate)) softmax(content) + sigmoid(gate) softmax(b).

    # DEVIATION: b is a free table over offsets; in ConViT it is a quadratic form of the offset."""

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        self.gate = nn.Parameter(torch.empty(cfg.heads, 1, 1))
        self.table.scales = {"weight": 1.0}

    def matrix(self, x, query=None):
        content = masked_softmax(self.content(x, query), self.allowed)
        place, gate = masked_softmax(self.table(), self.allowed), self.gate.sigmoid()
        return torch.lerp(content, place.to(content.dtype), gate.to(content.dtype))

    apply_matrix = Mix.apply_matrix


class Hyena(Static):
    """Y = Q * gconv(K * V), a global convolution between two gates (Hyena, Poli et al., arXiv 2302.10866).

    # DEVIATION: the filter is a free table, and there are no short convolutions."""

    def __init__(self, cfg, layer=0):
        super().__init__(cfg, layer)
        self.query, self.key = linear(cfg.width, cfg.width), linear(cfg.width, cfg.width)

    def forward(self, x, query=None):
        y = torch.einsum("gij,bgjc->bgic", self.matrix(x)[0], self.split(self.key(x) * self.value(x)))
        return self.join(y * self.split(self.query(x if query is None else query)), x)


def hyena_hybrid(cfg, layer=0):
    """Return Hyena in the first half of the blocks and attention in the second half (Hyena N-D, arXiv 2309.13600)."""
    first = layer < (cfg.depth + 1) // 2
    return Hyena(replace(cfg, mixer="hyena"), layer) if first else Attention(replace(cfg, mixer="igpt"), layer)


def excluded_taps(allowed, taps):
    """Return the number of taps of a window, summed over all N positions, that `allowed` excludes."""
    return len(allowed) * taps.numel() - int(allowed.sum())


# ---- presets ------------------------------------------------------------------------------------------------------


class Convolution(nn.Module):
    """A k x k convolution with weight (D, D/groups, k, k), masked if the network is causal."""

    def __init__(self, cfg, layer, groups):
        super().__init__()
        self.cfg, self.groups = cfg, groups
        self.weight = nn.Parameter(torch.empty(cfg.width, cfg.width // groups, cfg.kernel, cfg.kernel))
        self.register_buffer("taps", taps_of(cfg, layer), persistent=False)

    def forward(self, x):
        return convolve(x, self.weight * self.taps if self.cfg.causal else self.weight, self.cfg, self.groups)


class ConvMixer(nn.Module):
    """Local, shared, static: depthwise k x k convolution, GELU, pointwise convolution (Trockman & Kolter, arXiv 2201.09792).

    # DEVIATION: it is used in the common pre-norm block with a channel MLP; the original has batch norm and no MLP."""

    def __init__(self, cfg, layer=0):
        super().__init__()
        self.depthwise = Convolution(cfg, layer, cfg.width)
        self.act = nn.GELU()
        self.out = linear(cfg.width, cfg.width)
        self.register_buffer("allowed", reach(cfg, layer, True), persistent=False)

    def forward(self, x, query=None):
        return self.out(self.act(self.depthwise(x)))

    def idle(self):
        return excluded_taps(self.allowed, self.depthwise.taps) * len(self.depthwise.weight)

    @torch.no_grad()
    def favour_self(self):
        k = self.depthwise.taps.shape[0]
        self.depthwise.weight[:, :, k // 2, k // 2] += 1.0
        add_identity(self.out.weight)


class DenseConv(nn.Module):
    """Local, shared, static: k x k convolution over all channels."""

    def __init__(self, cfg, layer=0):
        super().__init__()
        self.out = Convolution(cfg, layer, 1)
        self.register_buffer("allowed", reach(cfg, layer, True), persistent=False)

    def forward(self, x, query=None):
        return self.out(x)

    def idle(self):
        return excluded_taps(self.allowed, self.out.taps) * len(self.out.weight) ** 2

    def favour_self(self):
        k = self.out.taps.shape[0]
        add_identity(self.out.weight[:, :, k // 2, k // 2])


class TokenMLP(nn.Module):
    """Global, not shared, static: W2 act(W1 x) across positions, equal for all channels (MLP-Mixer, arXiv 2105.01601).

    The causal form uses the masks of MADE (Germain et al., arXiv 1502.03509). Hidden unit m has degree m // ratio, reads
    positions up to its degree (below it if `strict`) and is read by positions from its degree on. Rows keep their variance."""

    def __init__(self, cfg, layer=0):
        super().__init__()
        n, ratio = cfg.grid**2, cfg.token_ratio
        self.hidden, self.act, self.out = linear(n, ratio * n), nn.GELU(), linear(ratio * n, n)
        self.register_buffer("allowed", order(cfg, layer), persistent=False)
        self.causal, self.width = bool(cfg.causal), cfg.width
        if self.causal:
            strict = 0 if self.allowed[0, 0] else 1
            degree, position = torch.arange(n).repeat_interleave(ratio), torch.arange(n)
            self.register_buffer("reads", scaled(position <= degree[:, None] - strict), persistent=False)
            self.register_buffer("read_by", scaled(degree <= position[:, None]), persistent=False)

    def forward(self, x, query=None):
        hidden, out = self.hidden.weight, self.out.weight
        if self.causal:
            hidden, out = hidden * self.reads, out * self.read_by
        tokens = x.flatten(1, 2).transpose(1, 2)  # (B, D, N)
        return F.linear(self.act(F.linear(tokens, hidden)), out).transpose(1, 2).reshape(x.shape)

    def idle(self):
        masks = (self.reads, self.read_by) if self.causal else ()
        return self.width * sum(int((mask == 0).sum()) for mask in masks)

    @torch.no_grad()
    def favour_self(self):
        n = self.out.weight.shape[0]
        hidden, out = self.hidden.weight.view(n, -1, n), self.out.weight.view(n, n, -1)  # units by degree
        reads = read_by = torch.ones(n)
        if self.causal:  # compensate the scale of the masks
            reads, read_by = (mask.amax(1).view(n, -1)[:, 0] for mask in (self.reads, self.read_by))
        for unit, sign in zip(range(hidden.shape[1]), (1.0, -1.0), strict=False):  # gelu(x) - gelu(-x) = x
            hidden[:, unit].diagonal().add_(sign / reads.clamp(min=1))
            out[:, :, unit].diagonal().add_(sign / read_by.clamp(min=1))


def scaled(mask):
    """Scale a mask (rows, columns) so that each row keeps the variance of a sum over all columns."""
    return mask * (mask.shape[1] / mask.sum(1, keepdim=True).clamp(min=1)).sqrt()


class TwoStream(nn.Module):
    """Causal convolution without a blind spot (Gated PixelCNN, van den Oord et al., arXiv 1606.05328), a control for it.

    The input (2B, H, W, D) holds two streams. The vertical stream reads complete rows up to the current one. The horizontal
    stream reads earlier tokens of the current row, and the vertical stream one row above."""

    def __init__(self, cfg, layer=0):
        super().__init__()
        self.cfg, k, d = cfg, cfg.kernel, cfg.width
        self.vertical = nn.Parameter(torch.empty(d, 1, k, k))
        self.horizontal = nn.Parameter(torch.empty(d, 1, 1, k))
        self.down, self.out = linear(d, d), linear(d, d)
        self.register_buffer("rows", (torch.arange(k) <= k // 2).float()[:, None], persistent=False)
        own = layer > 0 or cfg.causal == "shift"
        self.register_buffer("past", (torch.arange(k) < k // 2 + own).float(), persistent=False)
        dy, near = offsets(cfg)[..., 0], window(cfg)
        rows, own_row = near & (dy <= 0), near & (dy == 0) & order(cfg, layer)
        row_above = torch.cat([torch.zeros(cfg.grid, cfg.grid**2, dtype=torch.bool), rows[: -cfg.grid]])
        vertical, horizontal = torch.cat([rows, torch.zeros_like(near)], 1), torch.cat([row_above, own_row], 1)
        self.register_buffer("allowed", torch.cat([vertical, horizontal]), persistent=False)  # (2N, 2N), vertical first

    def forward(self, x, query=None):
        vertical, horizontal = x.chunk(2)
        v = convolve(vertical, self.vertical * self.rows, self.cfg, self.cfg.width)
        h = convolve(horizontal, self.horizontal * self.past, self.cfg, self.cfg.width)
        above = F.pad(self.down(v), (0, 0, 0, 0, 1, 0))[:, :-1]
        return torch.cat([self.out(v), self.out(h) + above])

    def idle(self):
        n = self.cfg.grid**2
        vertical = excluded_taps(self.allowed[:n, :n], self.vertical[0, 0])
        return (vertical + excluded_taps(self.allowed[n:, n:], self.horizontal[0, 0])) * self.cfg.width

    @torch.no_grad()
    def favour_self(self):
        k = self.horizontal.shape[3]
        self.vertical[:, :, k // 2, k // 2] += 1.0
        self.horizontal[..., k // 2] += 1.0
        add_identity(self.out.weight)
