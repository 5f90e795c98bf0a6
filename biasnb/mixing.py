"""Operators that mix positions. Each maps tokens (B, H, W, D) to (B, H, W, D) and is all that differs between networks."""

import torch.nn.functional as F
from torch import nn


def linear(inputs, outputs):
    """Biases are left out everywhere, as in image-GPT."""
    return nn.Linear(inputs, outputs, bias=False)


class ConvMixer(nn.Module):
    """Local, shared, fixed: depthwise k x k convolution, activation, pointwise (Trockman & Kolter, arXiv 2201.09792).

    # DEVIATION: stands in the common pre-norm block with its channel MLP; the original has batch norm and none.
    """

    def __init__(self, cfg):
        super().__init__()
        self.depthwise = nn.Conv2d(cfg.width, cfg.width, cfg.kernel, padding="same", groups=cfg.width, bias=False)
        self.act = nn.GELU()
        self.out = linear(cfg.width, cfg.width)

    def forward(self, x):
        return self.out(self.act(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))


class TokenMLP(nn.Module):
    """Global, not shared, fixed: W2 act(W1 x) across positions, one for all channels (MLP-Mixer, arXiv 2105.01601)."""

    def __init__(self, cfg):
        super().__init__()
        n = cfg.grid**2
        self.hidden = linear(n, cfg.token_ratio * n)
        self.act = nn.GELU()
        self.out = linear(cfg.token_ratio * n, n)

    def forward(self, x):
        tokens = x.flatten(1, 2).transpose(1, 2)  # (B, D, N)
        return self.out(self.act(self.hidden(tokens))).transpose(1, 2).reshape(x.shape)


class Attention(nn.Module):
    """Global, input-dependent: softmax attention with G heads, no position of its own (image-GPT, section 3.1)."""

    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg.heads
        self.qkv = linear(cfg.width, 3 * cfg.width)
        self.out = linear(cfg.width, cfg.width)

    def forward(self, x):
        b, h, w, d = x.shape
        q, k, v = self.qkv(x).view(b, h * w, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, G, N, D/G)
        return self.out(y.transpose(1, 2).reshape(b, h, w, d))


class DenseConv(nn.Module):
    """Local, shared, fixed: k x k convolution over all channels."""

    def __init__(self, cfg):
        super().__init__()
        self.out = nn.Conv2d(cfg.width, cfg.width, cfg.kernel, padding="same", bias=False)

    def forward(self, x):
        return self.out(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Identity(nn.Module):
    """No mixing, the floor: every position keeps to itself (A = I)."""

    def __init__(self, cfg):
        super().__init__()
        self.out = linear(cfg.width, cfg.width)

    def forward(self, x):
        return self.out(x)


OPERATORS = {
    "convmixer": ConvMixer,
    "mixer": TokenMLP,
    "igpt": Attention,
    "conv_dense": DenseConv,
    "identity": Identity,
}
