"""Image files and what they become: 8-bit RGB, cut and resized."""

import contextlib
import re
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from ..config import BiasnbError

MAX_PIXELS = 64_000_000  # of one image: a file of a few kB may declare gigabytes
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # by content, whatever a file is called
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "I;16", "I;16B", "I;16L", "I;16N", *TRANSPARENT)
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF file
MOVES = Image.Transpose
TURNS = {
    2: MOVES.FLIP_LEFT_RIGHT,
    3: MOVES.ROTATE_180,
    4: MOVES.FLIP_TOP_BOTTOM,
    5: MOVES.TRANSPOSE,
    6: MOVES.ROTATE_270,
    7: MOVES.TRANSVERSE,
    8: MOVES.ROTATE_90,
}  # EXIF orientation -> what undoes it
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # the last are bytes that are no UTF-8


def printable(text):
    """A text on one line that every terminal and file takes: a file name may hold anything."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class DataError(BiasnbError):
    """Images that are missing or cannot be used."""

    def __init__(self, message):
        super().__init__(printable(message))


def decode(file):
    """(h, w, 3) uint8 of an image file; see `read_image`."""
    return read_image(file)[0]


def read_image(file):
    """((h, w, 3) uint8, mode) of an image file, the mode as Pillow names it: "CMYK" is converted by Pillow's formula, all else
    is exact. Grey is repeated, a palette looked up, 16 bits are rounded to 8, an opaque alpha channel is dropped, and the
    orientation that EXIF notes is applied; a colour profile is not.

    Raises DataError naming the file for what cannot be decoded so. What is too large or of another kind is refused by its
    header, before it is decoded."""
    try:
        if not file.is_file():  # opening a FIFO waits for ever
            raise DataError(f"{file}: not a file, or a link to none; replace or remove it")
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{file}: {image.width}x{image.height} is more than {MAX_PIXELS:,} pixels; make it smaller")
            if getattr(image, "is_animated", False) and image.format != "MPO":  # a photograph, then a preview of it
                raise DataError(f"{file}: {image.n_frames} frames or pages; save the one that you mean")
            if why := unfaithful(image):
                raise DataError(f"{file}: {why}; convert it to 8-bit RGB or grey")
            mode, pixels = image.mode, sixteen_bit_png(file) if is_sixteen_bit_png(image) else eight_bits(image)
            if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
                raise DataError(f"{file}: mode {mode}, transparent; put it on a background, as 8-bit RGB or grey")
            return turned(pixels[..., :3], image), mode
    except DataError:
        raise
    except Exception as error:  # a damaged file makes decoders raise anything
        raise DataError(f"{file}: not readable as an image ({reason(error)}); replace or remove it") from None


def unfaithful(image):
    """Why Pillow does not give the values of an image that is open, or None."""
    channels = f"{len(image.getbands())} channels"
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, in some versions of Pillow
        return None
    if image.mode not in MODES:
        return f"mode {image.mode} ({channels})"
    if image.format == "TIFF":
        tags = image.tag_v2
        if set(tags.get(SAMPLE_FORMAT, (1,))) != {1}:
            return f"mode {image.mode} ({channels}, signed numbers)"
        if max(tags.get(BITS, (1,))) > 8 and (not image.mode.startswith("I;16") or tags.get(PHOTOMETRIC) != 1):
            return f"mode {image.mode} ({channels}, {max(tags[BITS])} bits) in a TIFF file"
    if is_sixteen_bit_png(image) and "transparency" in image.info:
        return f"mode {image.mode} ({channels}, transparent, 16 bits)"
    return None


def is_sixteen_bit_png(image):
    """Whether this is a PNG of 16 bits in several channels, of which Pillow gives the high bytes."""
    return image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and str(image.tile[0][3]).endswith(";16B")


def sixteen_bit_png(file):
    """(h, w, 3 or 4) uint8 of a PNG of 16 bits with colours, an alpha channel or both."""
    from torchvision.io import ImageReadMode, decode_image  # takes a while, and few images need it

    values = decode_image(str(file), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    channels = values.shape[2]
    colours = scaled(values[..., : channels - 1 + channels % 2])
    if colours.shape[2] == 1:
        colours = colours.repeat(3, 2)
    opaque = np.uint8(255) * (values[..., -1:] == 65535)
    return colours if channels % 2 else np.concatenate([colours, opaque], axis=2)


def scaled(values):
    """0 to 65535 -> 0 to 255, rounded to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def eight_bits(image):
    """(h, w, 3 or 4) uint8 of an image that is open."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return scaled(np.asarray(image))[..., None].repeat(3, 2)
    image.load()
    clear = image.mode in TRANSPARENT or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if clear else "RGB"))


def turned(pixels, image):
    """The pixels as EXIF says that they are to be seen; as they are where it cannot be read."""
    turn = None
    with contextlib.suppress(Exception):
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).transpose(turn)) if turn is not None else pixels


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
