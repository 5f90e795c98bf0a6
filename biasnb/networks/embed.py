"""The embedding of pixels as a grid of tokens: permutations, patches, RGB or palette content, hidden tokens, positions."""

import torch
from torch import nn

from ..data.datasets import generator


def patchify(x, p):
    """Cut images (B, S, S, C) into tokens (B, H, W, p*p*C), H = W = S/p. A token lists its pixels row by row."""
    b, s, _, c = x.shape
    return x.reshape(b, s // p, p, s // p, p, c).transpose(2, 3).reshape(b, s // p, s // p, p * p * c)


def unpatchify(x, p):
    """Invert `patchify`: tokens (B, H, W, p*p*C) -> images (B, S, S, C)."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, p, p, c // (p * p)).transpose(2, 3).reshape(b, h * p, w * p, c // (p * p))


def pixel_order(cfg):
    """Return the fixed pixel order (S*S,) of cfg.permute: all pixels, whole patches, or equally inside every patch; or None."""
    size, p = cfg.image_size, cfg.patch
    rng = generator("cpu", 0, "permutation", cfg.permute)
    if cfg.permute == "none":
        return None
    if cfg.permute == "pixels":
        return torch.randperm(size * size, generator=rng)
    tokens = patchify(torch.arange(size * size).view(1, size, size, 1), p).view(-1, p * p)
    if cfg.permute == "patches":
        tokens = tokens[torch.randperm(len(tokens), generator=rng)]
    else:
        tokens = tokens[:, torch.randperm(p * p, generator=rng)]
    return unpatchify(tokens.view(1, size // p, size // p, p * p), p).flatten()


def arrange(images, order):
    """Permute the pixels of (B, S, S, ...) by a fixed order; None leaves them unchanged."""
    return images if order is None else images.flatten(1, 2)[:, order].view_as(images)


class RGBContent(nn.Module):
    """Linear map of the standardised colours of the p*p pixels of a token to D channels."""

    def __init__(self, patch, width):
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, patch * patch * 3))

    def forward(self, pixels):  # (B, S, S, 3) float -> (B, H, W, D)
        return patchify(pixels, self.patch) @ self.weight.T


class PaletteContent(nn.Module):
    """Sum over the p*p pixels of a token of a learned vector per pixel position and colour (image-GPT for p = 1)."""

    def __init__(self, patch, width, colours):
        super().__init__()
        self.patch, self.colours = patch, colours
        self.weight = nn.Parameter(torch.empty(patch * patch * colours, width))

    def forward(self, ids):  # (B, S, S) int -> (B, H, W, D)
        slots = torch.arange(self.patch**2, device=ids.device) * self.colours
        return nn.functional.embedding(patchify(ids.long()[..., None], self.patch) + slots, self.weight).sum(3)


def sinusoids(grid, width):
    """Return (H, W, D) sines and cosines of row and column at D/4 wavelengths each, root mean square 1 (arXiv 2104.02057)."""
    rates = 10_000.0 ** -(torch.arange((width + 3) // 4) / ((width + 3) // 4))
    angles = torch.arange(grid)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1) * 2**0.5
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], 2)[..., :width]


class Embedding(nn.Module):
    """Content (B, H, W, D) of the tokens, and a position embedding (H, W, D) that is learned (image-GPT, section 3.1),
    sinusoidal or zero. `forward` returns both; their sum enters the first block.

    # DEVIATION: one learned vector replaces the content of hidden tokens (BERT, arXiv 1810.04805; MAE, arXiv 2111.06377).
    image-GPT multiplies their content by 0 (Config: hidden "zero"). Without absolute positions the query of a hidden token is
    then 0, so the first attention at the tokens to be predicted cannot depend on content."""

    def __init__(self, content, cfg):
        super().__init__()
        self.content = content
        if cfg.position == "learned":
            self.position = nn.Parameter(torch.empty(cfg.grid, cfg.grid, cfg.width))
        else:
            waves = 0.5 * sinusoids(cfg.grid, cfg.width) if cfg.position == "sinusoid" else torch.zeros(1, 1, cfg.width)
            self.register_buffer("position", waves, persistent=False)
        learned = cfg.pretext == "bert" and cfg.hidden == "vector"
        self.hidden = nn.Parameter(torch.empty(cfg.width)) if learned else None
        self.start = nn.Parameter(torch.empty(cfg.width)) if cfg.causal == "shift" else None

    def forward(self, x, mask=None):  # mask (B, H, W) bool, True where hidden
        tokens = self.content(x)
        if mask is not None:
            tokens = tokens * ~mask[..., None]
            if self.hidden is not None:
                tokens = torch.addcmul(tokens, mask[..., None].to(tokens.dtype), self.hidden)
        if self.start is not None:  # position i holds pixel i - 1 (image-GPT, section 3.1)
            first = self.start.expand(len(tokens), 1, -1)
            tokens = torch.cat([first, tokens.flatten(1, 2)[:, :-1]], 1).view_as(tokens)
        return tokens, self.position
