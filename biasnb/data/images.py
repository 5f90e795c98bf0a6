"""Image files and what they become: 8-bit RGB, cut and resized."""

import re
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..config import BiasnbError

MAX_PIXELS = 64_000_000  # of one image: a file of a few kB may declare gigabytes
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # the last are bytes that are no UTF-8


def printable(text):
    """A text on one line that every terminal and file takes: a file name may hold anything."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class DataError(BiasnbError):
    """Images that are missing or cannot be used."""

    def __init__(self, message):
        super().__init__(printable(message))


def decode(file):
    """(h, w, 3) uint8. What is too large or of another kind is refused by its header, before it is decoded."""
    try:
        if not file.is_file():  # opening a FIFO waits for ever
            raise DataError(f"{file}: not a file, or a link to none; replace or remove it")
        ignore = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with ignore, Image.open(file, formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{file}: {image.width}x{image.height} is more than {MAX_PIXELS:,} pixels; make it smaller")
            clear = ", transparent" if "transparency" in image.info else ""
            if clear or image.mode not in ("RGB", "L", "P"):
                channels = len(image.getbands())
                raise DataError(f"{file}: mode {image.mode} ({channels} channels{clear}); convert it to 8-bit RGB or grey")
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # a damaged file makes decoders raise anything
        raise DataError(f"{file}: not readable as a JPEG or PNG image ({reason(error)}); replace or remove it") from None


def reason(error):
    return " ".join(str(error).split()) or type(error).__name__


def resize(images, size):
    """(n, h, w, 3) uint8 -> (n, size, size, 3) uint8: central square, bilinear with antialiasing."""
    h, w = images.shape[1:3]
    side = min(h, w)
    images = images[:, (h - side) // 2 :, (w - side) // 2 :][:, :side, :side]
    if side == size:
        return np.ascontiguousarray(images)
    out = []
    for chunk in np.array_split(images, max(1, len(images) * side * side // 4_000_000)):
        x = torch.from_numpy(np.array(chunk)).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        out.append(x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(np.concatenate(out))
