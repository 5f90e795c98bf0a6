"""The embedded and generated data sets: crops of ten photographs, handwritten digits and dead leaves, the last two also with a
colour code that depends on position. All are deterministic and need no download.

A data set is (classes, arrays). The arrays are images (n, size, size, 3) uint8 and labels (n,) int64 of "train", "val" and
"test". If test images are dependent, "test_groups" (n,) int64 is equal for images that show the same object."""

from functools import cache, partial
from itertools import permutations, product
from math import pi, sqrt

import numpy as np
from PIL import Image

from ..config import DIGITS_VERSION, LEAVES_VERSION, MAX_SIZE, PHOTOGRAPHS_VERSION

# ---- photographs --------------------------------------------------------------------------------------------------

PHOTOGRAPHS = ("astronaut", "chelsea", "china", "coffee", "flower", "hubble", "immunohistochemistry", "motorcycle",
               "retina", "rocket")  # fmt: skip
SHORT_SIDE, TILE = 300, 60  # pixels; shorter side of a resized photograph, side of the tiles that it is cut into
CROPS = {"train": 300, "val": 50, "test": 100}  # per photograph


def photograph_crops(size):
    """Return (classes, arrays) of crops of ten colour photographs from scikit-image and scikit-learn, labelled by photograph.

    Train, val and test come from disjoint tiles (1/2, 1/6 and 1/3 of them). The side of a crop is 24 to 60 pixels of the
    photograph. Random exposure and tint make the mean colour a weak cue. Near-uniform crops (black sky) are drawn again.
    "test_groups" identifies the tile of a test image."""
    crops, groups = {part: [] for part in CROPS}, []
    for label, name in enumerate(PHOTOGRAPHS):
        rng = np.random.default_rng([PHOTOGRAPHS_VERSION, label])
        tiles = _tiles(_photograph(name))
        tiles = [tiles[i] for i in rng.permutation(len(tiles)) if tiles[i].std() > 12]
        half, third = len(tiles) // 2, len(tiles) // 3
        parts = {"train": tiles[:half], "val": tiles[half:-third], "test": tiles[-third:]}
        for part, count in CROPS.items():
            for _ in range(count):
                crop, tile = _crop(parts[part], size, rng)
                crops[part].append(crop)
                if part == "test":
                    groups.append(1000 * label + tile)
    arrays = {}
    for part, count in CROPS.items():
        arrays[part] = np.stack(crops[part])
        arrays[f"{part}_labels"] = np.repeat(np.arange(len(PHOTOGRAPHS)), count)
    return PHOTOGRAPHS, arrays | {"test_groups": np.array(groups, np.int64)}


def _photograph(name):
    """Return a photograph, (h, w, 3) uint8, whose shorter side is SHORT_SIDE."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        photo = load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        photo = skimage.data.stereo_motorcycle()[0]
    else:
        photo = getattr(skimage.data, {"hubble": "hubble_deep_field"}.get(name, name))()
    height, width = photo.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    size = round(width * scale), round(height * scale)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def _tiles(photo):
    corners = product(*(range(0, side - TILE + 1, TILE) for side in photo.shape[:2]))
    return [photo[y : y + TILE, x : x + TILE] for y, x in corners]


def _crop(tiles, size, rng):
    """Return (a random crop, (size, size, 3) uint8; the index of its tile)."""
    for _ in range(20):
        index = int(rng.integers(len(tiles)))
        tile = tiles[index]
        side = int(rng.integers(24, TILE + 1))
        y, x = rng.integers(0, TILE - side + 1, 2)
        crop = tile[y : y + side, x : x + side]
        if crop.std() > 8:
            break
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    small = Image.fromarray(crop).resize((size, size), Image.Resampling.BOX)
    light = rng.uniform(0.6, 1.25) * rng.uniform(0.8, 1.2, 3)
    return np.clip(np.asarray(small) * light, 0, 255).round().astype(np.uint8), index


# ---- handwritten digits -------------------------------------------------------------------------------------------

# Split -> (first index, index after the last, copies per digit) in scikit-learn's file. The file keeps the order of writing.
# Every writer copied the same form, and both borders between splits lie where the text of the form begins again.
DIGITS = {"train": (0, 1029, 3), "val": (1029, 1287, 4), "test": (1287, 1797, 4)}
INK = 16  # the largest value in the file


def handwritten_digits(size, coded):
    """Return (classes, arrays) of the 1797 handwritten digits in scikit-learn, light grey on black, sorted by class. With
    `coded`, the images are recoloured by position (see `recolour`).

    The digits are the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), 8x8 pixels,
    enlarged to 3/4 of the side of the image. Each is placed several times, at distinct random positions. Train, val and test
    contain different digits by different writers. "test_groups" (n,) is the index of the digit in the file."""
    from sklearn.datasets import load_digits

    file, arrays = load_digits(), {}
    bitmaps = enlarge(file.images.astype(np.int64), 3 * size // 4)
    side = bitmaps.shape[1]
    room = size - side + 1
    for index, (part, (first, last, copies)) in enumerate(DIGITS.items()):
        rng = np.random.default_rng([DIGITS_VERSION, index])
        by_class = first + np.argsort(file.target[first:last], kind="stable")
        places = rng.random((last - first, room**2)).argsort(axis=1)[:, :copies]  # positions without repetition
        digits = by_class.repeat(copies)
        images = np.zeros((len(digits), size, size, 3), np.uint8)
        for image, digit, place in zip(images, digits, places.flat, strict=True):
            y, x = divmod(int(place), room)
            image[y : y + side, x : x + side] = bitmaps[digit, :, :, None]
        arrays[part], arrays[f"{part}_labels"] = recolour(images) if coded else images, file.target[digits].astype(np.int64)
    return tuple("0123456789"), arrays | {"test_groups": digits.astype(np.int64)}


def enlarge(bitmaps, side):
    """Resize (n, s, s) integers from 0 to INK to (n, side, side) uint8 from 0 to 255. The result equals antialiased bilinear
    `torch.nn.functional.interpolate`, computed with integers so that every platform rounds identically."""
    s = bitmaps.shape[1]
    centre, source = (2 * np.arange(side)[:, None] + 1) * s, (2 * np.arange(s) + 1) * side  # in units of 1 / (2 s side)
    weights = np.maximum(2 * max(s, side) - abs(centre - source), 0)
    total = weights.sum(axis=1)
    part, whole = 255 * (weights @ bitmaps @ weights.T), INK * np.outer(total, total)
    return ((2 * part + whole) // (2 * whole)).astype(np.uint8)  # round half up


# ---- dead leaves --------------------------------------------------------------------------------------------------

SHAPES = {  # each has area pi and is symmetric under x -> -x; x and y (downwards) from the centre, in radii
    "disc": lambda x, y: x * x + y * y < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < sqrt(pi / 4),
    "diamond": lambda x, y: abs(x) + abs(y) < sqrt(pi / 2),
    "triangle": lambda x, y: (abs(y) < sqrt(pi / 2)) & (2 * abs(x) < y + sqrt(pi / 2)),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < sqrt(pi / 20)) & (np.maximum(abs(x), abs(y)) < 3 * sqrt(pi / 20)),
    "bar": lambda x, y: (abs(x) < sqrt(3 * pi / 4)) & (abs(y) < sqrt(pi / 12)),
}
REACH = sqrt(3 * pi / 4)  # radii; largest extent of a shape along x or y
SMALLEST, LARGEST = 8, 3  # radii lie between 1/8 and 1/3 of the side of the image
COUNTS = {"train": 3000, "val": 500, "test": 1000}


def dead_leaves(size, coded):
    """Return (classes, arrays) of dead-leaves images, labelled by the shape that all leaves of an image share. With `coded`,
    the images are recoloured by position (see `recolour`).

    Opaque leaves fall until they cover the image (Matheron 1968). Their radii have density r^-3 between two cut-offs (Lee,
    Mumford & Huang 2001, Occlusion Models for Natural Images) and their colours are uniform in RGB. Their centres are uniform
    over the image and a margin as wide as the reach of the largest leaf, which is equivalent to the whole plane, so the
    distribution of the images is invariant to translation (without being periodic). All shapes have equal area, so that colour
    is hardly informative, and are their own mirror images. Pixels are sampled at their centres."""
    arrays = {}
    for index, (part, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng([LEAVES_VERSION, index])
        labels = np.arange(count, dtype=np.int64) * len(SHAPES) // count
        per_shape = zip(SHAPES.values(), np.bincount(labels), strict=True)
        images = np.concatenate([cover(inside, n, size, rng) for inside, n in per_shape])
        arrays[part], arrays[f"{part}_labels"] = recolour(images) if coded else images, labels
    return tuple(SHAPES), arrays


def cover(inside, n, size, rng):
    """Return n images covered by leaves of one shape, (n, size, size, 3) uint8. Leaves are added from the top downwards: a
    pixel keeps its first leaf, which samples the stationary distribution exactly (Kendall & Thönnes 1999)."""
    images = np.empty((n, size, size, 3), np.uint8)
    image, y, x = np.indices((n, size, size)).reshape(3, -1)  # indices of the pixels that are not yet covered
    while len(image):
        cx, cy, radius, colour = draw(n, size, rng)
        hit = inside((x + 0.5 - cx[image]) / radius[image], (y + 0.5 - cy[image]) / radius[image])
        images[image[hit], y[hit], x[hit]] = colour[image[hit]]
        image, y, x = image[~hit], y[~hit], x[~hit]
    return images


def draw(n, size, rng):
    """Draw a leaf for each of n images: centre x, y and radius in pixels, each (n,), and colour (n, 3) uint8. All operations
    are correctly rounded under IEEE 754, so that every platform draws the same leaves."""
    margin = REACH * size / LARGEST
    cx, cy = rng.random((2, n)) * (size + 2 * margin) - margin
    radius = size / np.sqrt(LARGEST**2 + (SMALLEST**2 - LARGEST**2) * rng.random(n))  # r^-2 uniform: r has density r^-3
    return cx, cy, radius, rng.integers(0, 256, (n, 3), np.uint8)


# ---- the colour code by position ----------------------------------------------------------------------------------


def recolour(images, inverse=False):
    """Apply a fixed bijection of colours at every position of (..., H, W, 3) uint8 images, or its inverse.

    The bijection permutes the channels and inverts some of them (v -> 255 - v), see `codes`. No information is lost, and a
    uniform colour distribution stays uniform, but the relation of neighbouring pixels depends on position, also for grey."""
    height, width = images.shape[-3:-1]
    code = codes()[:height, :width]
    order = np.array(list(permutations(range(3))))[code // 8]  # (H, W, 3)
    inverted = np.where(code[..., None] >> np.arange(3) & 1, 255, 0).astype(np.uint8)  # v ^ 255 = 255 - v
    y, x = np.arange(height)[:, None, None], np.arange(width)[:, None]
    images = (images ^ inverted)[..., y, x, order.argsort(-1)] if inverse else images[..., y, x, order] ^ inverted
    return np.ascontiguousarray(images)


@cache
def codes():
    """Return the code of every position, (MAX_SIZE, MAX_SIZE) from 0 to 47: 8 * (index of a permutation of the channels) +
    (bits of the inverted channels). Vertical and horizontal neighbours differ in the inverted channels, because a permutation
    alone does not change grey. Increase the versions of both coded data sets when this function changes."""
    rng = np.random.default_rng(2)
    code = rng.integers(0, 48, (MAX_SIZE, MAX_SIZE))
    while True:
        inverted, alike = code % 8, np.zeros(code.shape, bool)
        alike[1:] |= inverted[1:] == inverted[:-1]
        alike[:, 1:] |= inverted[:, 1:] == inverted[:, :-1]
        if not alike.any():
            return code
        code[alike] = rng.integers(0, 48, alike.sum())


EMBEDDED = {  # name -> function from the side of the images to (classes, arrays)
    "photographs": photograph_crops,
    "digits": partial(handwritten_digits, coded=False),
    "digits_coded": partial(handwritten_digits, coded=True),
    "leaves": partial(dead_leaves, coded=False),
    "leaves_coded": partial(dead_leaves, coded=True),
}
