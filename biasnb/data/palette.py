"""A palette of K colours, fitted by k-means, that maps pixels to indices and back (image-GPT, section 3)."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from ..config import BiasnbError
from .datasets import stream

SAMPLE = 30_000  # training pixels used by k-means
AT_ONCE = {"cpu": 2**20, "cuda": 2**26}  # distances computed at once; on a CPU as many as fit into its cache


class PaletteError(BiasnbError):
    """Raised for a palette that cannot be fitted."""


@dataclass(frozen=True)
class Palette:
    colours: torch.Tensor  # (K, 3) float32, 0 to 255

    def to(self, device):
        return Palette(self.colours.to(device))

    @property
    def hash(self):
        return hashlib.sha256(self.colours.cpu().numpy().tobytes()).hexdigest()[:16]


def fit(images, colours):
    """Fit a Palette of `colours` colours, sorted by luminance, to (n, S, S, 3) uint8 images by k-means. Equal images give an
    equal palette on one machine. Raises PaletteError if the images have fewer distinct colours."""
    from sklearn.cluster import KMeans

    pixels = images.reshape(-1, 3).cpu().numpy()
    rng = np.random.default_rng(stream(0, "palette"))
    sample = pixels[np.sort(rng.integers(len(pixels), size=SAMPLE))].astype(np.float32)
    if len(np.unique(sample, axis=0)) < colours:
        sample = np.unique(pixels, axis=0).astype(np.float32)
        if len(sample) < colours:
            raise PaletteError(f"colours: {colours}, but the images have {len(sample)} distinct colours; choose at most that")
    centres = KMeans(colours, n_init=1, max_iter=50, random_state=0).fit(sample).cluster_centers_
    order = np.argsort(centres @ [0.299, 0.587, 0.114])
    return Palette(torch.tensor(centres[order], dtype=torch.float32, device=images.device))


def quantise(images, palette):
    """Map (..., 3) uint8 to the (...) int16 index of the nearest colour in squared distance; ties go to the lower index."""
    c = palette.colours
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 is too coarse for the distances
        parts = images.reshape(-1, 3).split(max(1, AT_ONCE[images.device.type] // len(c)))
        ids = [torch.addmm((c * c).sum(1), part.float(), -2 * c.T).argmin(1).short() for part in parts]
    return torch.cat(ids).reshape(images.shape[:-1])


def dequantise(ids, palette):
    """Map (...) indices to (..., 3) float32 colours, 0 to 255."""
    return palette.colours[ids.long()]
