"""Reading of image files as 8-bit RGB, cropping and resizing."""

import contextlib
import re
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from ..config import BiasnbError

MAX_PIXELS = 64_000_000  # per image, because a file of a few kB may declare gigabytes
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # detected from the content, not from the file name
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
}  # EXIF orientation -> transposition that undoes it
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # the last range stands for bytes that are not UTF-8


def printable(text):
    """Return a text with control characters escaped, because file names may contain line breaks and invalid bytes."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class DataError(BiasnbError):
    """Raised for images that are missing or cannot be used."""

    def __init__(self, message):
        super().__init__(printable(message))


def decode(file):
    """Return an image file as (h, w, 3) uint8; see `read_image`."""
    return read_image(file)[0]


def read_image(file):
    """Return ((h, w, 3) uint8, Pillow's mode) of an image file. CMYK is converted by Pillow's formula; other conversions are
    exact. Grey is repeated in three channels, a palette is looked up, 16 bits are rounded to 8, an opaque alpha channel is
    dropped, and the EXIF orientation is applied. Colour profiles are ignored.

    Raises DataError naming the file if it cannot be converted in this way. Images that are too large or of an unsupported kind
    are refused from their header, before decoding."""
    try:
        if not file.is_file():  # opening a FIFO would block
            raise DataError(f"{file}: not a file, or a link to none; replace or remove it")
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{file}: {image.width}x{image.height} is more than {MAX_PIXELS:,} pixels; make it smaller")
            if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photograph followed by its preview
                raise DataError(f"{file}: {image.n_frames} frames or pages; save the one that you mean")
            if why := unfaithful(image):
                raise DataError(f"{file}: {why}; convert it to 8-bit RGB or grey")
            mode, pixels = image.mode, sixteen_bit_png(file) if is_sixteen_bit_png(image) else eight_bits(image)
            if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
                raise DataError(f"{file}: mode {mode}, transparent; put it on a background, as 8-bit RGB or grey")
            return turned(pixels[..., :3], image), mode
    except DataError:
        raise
    except Exception as error:  # decoders may raise any exception for a damaged file
        raise DataError(f"{file}: not readable as an image ({reason(error)}); replace or remove it") from None


def unfaithful(image):
    """Return the reason why Pillow cannot read the values of an open image exactly, or None."""
    channels = f"{len(image.getbands())} channels"
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # a 16-bit image in some versions of Pillow
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
    """Return whether an image is a 16-bit PNG with several channels, of which Pillow returns only the high bytes."""
    return image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and str(image.tile[0][3]).endswith(";16B")


def sixteen_bit_png(file):
    """Read a 16-bit PNG with colours, an alpha channel or both as (h, w, 3 or 4) uint8."""
    from torchvision.io import ImageReadMode, decode_image  # slow to import, and few images need it

    values = decode_image(str(file), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    channels = values.shape[2]
    colours = scaled(values[..., : channels - 1 + channels % 2])
    if colours.shape[2] == 1:
        colours = colours.repeat(3, 2)
    opaque = np.uint8(255) * (values[..., -1:] == 65535)
    return colours if channels % 2 else np.concatenate([colours, opaque], axis=2)


def scaled(values):
    """Map 0 to 65535 to 0 to 255, rounded to the nearest integer."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def eight_bits(image):
    """Return an open image as (h, w, 3 or 4) uint8."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return scaled(np.asarray(image))[..., None].repeat(3, 2)
    image.load()
    clear = image.mode in TRANSPARENT or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if clear else "RGB"))


def turned(pixels, image):
    """Apply the EXIF orientation to the pixels. They are returned unchanged if the EXIF data cannot be read."""
    turn = None
    with contextlib.suppress(Exception):
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).transpose(turn)) if turn is not None else pixels


def reason(error):
    return " ".join(str(error).split()) or type(error).__name__


def resize(images, size):
    """Crop (n, h, w, 3) uint8 to the central square and resize it to (n, size, size, 3), bilinear with antialiasing."""
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
