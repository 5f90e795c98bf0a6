"""Pixels to a grid of tokens and back: patches, RGB or palette content, hidden tokens, learned absolute positions."""

import torch
from torch import nn


def patchify(x, p):
    """(B, S, S, C) -> (B, H, W, p*p*C), H = W = S/p; inside a token row by row."""
    b, s, _, c = x.shape
    return x.reshape(b, s // p, p, s // p, p, c).transpose(2, 3).reshape(b, s // p, s // p, p * p * c)


def unpatchify(x, p):
    """(B, H, W, p*p*C) -> (B, S, S, C), the inverse of `patchify`."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, p, p, c // (p * p)).transpose(2, 3).reshape(b, h * p, w * p, c // (p * p))


class RGBContent(nn.Module):
    """Standardised colours of a token's p*p pixels, mapped linearly to D channels."""

    def __init__(self, patch, width):
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, patch * patch * 3))

    def forward(self, pixels):  # (B, S, S, 3) float -> (B, H, W, D)
        return patchify(pixels, self.patch) @ self.weight.T


class PaletteContent(nn.Module):
    """One-hot colours: the sum over a token's p*p slots of an embedding per slot and colour (image-GPT for p = 1)."""

    def __init__(self, patch, width, colours):
        super().__init__()
        self.patch, self.colours = patch, colours
        self.weight = nn.Parameter(torch.empty(patch * patch * colours, width))

    def forward(self, ids):  # (B, S, S) int -> (B, H, W, D)
        slots = torch.arange(self.patch**2, device=ids.device) * self.colours
        return nn.functional.embedding(patchify(ids.long()[..., None], self.patch) + slots, self.weight).sum(3)


class Embedding(nn.Module):
    """Content, with hidden tokens multiplied by 0, plus a learned vector per position (image-GPT, section 3.1)."""

    def __init__(self, content, grid, width):
        super().__init__()
        self.content = content
        self.position = nn.Parameter(torch.empty(grid, grid, width))

    def forward(self, x, mask=None):  # mask (B, H, W) bool, True where hidden
        tokens = self.content(x)
        if mask is not None:
            tokens = tokens * ~mask[..., None]
        return tokens + self.position
