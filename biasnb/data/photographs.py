"""The embedded data set: crops of ten colour photographs that ship inside scikit-image and scikit-learn."""

import numpy as np
from PIL import Image

from ..config import PHOTOGRAPHS_VERSION

PHOTOGRAPHS = ("astronaut", "chelsea", "china", "coffee", "flower", "hubble", "immunohistochemistry", "motorcycle",
               "retina", "rocket")  # fmt: skip
SHORT_SIDE, TILE = 300, 60  # every photograph is reduced to this short side and cut into tiles of this side, pixels
CROPS = {"train": 300, "val": 50, "test": 100}  # per photograph


def crops(size):
    """Crops of ten colour photographs that ship inside scikit-image and scikit-learn, labelled by photograph.

    Train, val and test come from disjoint tiles (1/2, 1/6, 1/3 of them); a crop covers 24 to 60 pixels of the photograph.
    Random exposure and tint make the mean colour a weak clue. Near-uniform crops (black sky) are drawn again.
    Deterministic. Returns (classes, arrays).
    """
    arrays = {part: [] for part in CROPS}
    for label, name in enumerate(PHOTOGRAPHS):
        rng = np.random.default_rng([PHOTOGRAPHS_VERSION, label])
        photo = _photograph(name)
        scale = SHORT_SIDE / min(photo.shape[:2])
        photo = np.asarray(Image.fromarray(photo).resize(
            (round(photo.shape[1] * scale), round(photo.shape[0] * scale)), Image.Resampling.LANCZOS))  # fmt: skip
        tiles = [photo[y : y + TILE, x : x + TILE]
                 for y in range(0, photo.shape[0] - TILE + 1, TILE)
                 for x in range(0, photo.shape[1] - TILE + 1, TILE)]  # fmt: skip
        tiles = [tiles[i] for i in rng.permutation(len(tiles)) if tiles[i].std() > 12]
        parts = {"train": tiles[: len(tiles) // 2], "test": tiles[-(len(tiles) // 3) :]}
        parts["val"] = tiles[len(tiles) // 2 : -(len(tiles) // 3)]
        for part, count in CROPS.items():
            arrays[part] += [_crop(parts[part], size, rng) for _ in range(count)]
    labels = {f"{part}_labels": np.repeat(np.arange(len(PHOTOGRAPHS)), count) for part, count in CROPS.items()}
    return PHOTOGRAPHS, {part: np.stack(crops) for part, crops in arrays.items()} | labels


def _crop(tiles, size, rng):
    for _ in range(20):
        tile = tiles[rng.integers(len(tiles))]
        side = int(rng.integers(24, TILE + 1))
        y, x = rng.integers(0, TILE - side + 1, 2)
        crop = tile[y : y + side, x : x + side]
        if crop.std() > 8:
            break
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    small = Image.fromarray(crop).resize((size, size), Image.Resampling.BOX)
    light = rng.uniform(0.6, 1.25) * rng.uniform(0.8, 1.2, 3)
    return np.clip(np.asarray(small) * light, 0, 255).round().astype(np.uint8)


def _photograph(name):
    import skimage.data
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        return load_sample_image(f"{name}.jpg")
    if name == "motorcycle":
        return skimage.data.stereo_motorcycle()[0]
    return getattr(skimage.data, {"hubble": "hubble_deep_field"}.get(name, name))()
