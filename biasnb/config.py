"""One flat, frozen, validated configuration per run; the profiles as plain data; the key of a run."""

import difflib
import functools
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple


class Mixer(NamedTuple):
    """A mixing operator: how figures name it, and the fields that only some operators read, this one among them."""

    label: str
    reads: tuple = ()


MIXERS = {
    "convmixer": Mixer("ConvMixer (convolution)", ("kernel",)),
    "mixer": Mixer("Mixer (token MLP)", ("token_ratio",)),
    "igpt": Mixer("iGPT (attention)", ("heads",)),
    "conv_dense": Mixer("dense convolution", ("kernel",)),
    "identity": Mixer("identity (no mixing)"),
}
PHOTOGRAPHS_VERSION = 1  # part of the key: raise it when the embedded data change
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
DATASETS = ("photographs", "cifar10", "cifar100", "svhn", "stl10", "fashionmnist", "folder")


class BiasnbError(Exception):
    """Something the user can mend; the message is one line that names what, the value and what to do."""


class ConfigError(BiasnbError, ValueError):
    """A configuration that cannot be run."""


def _field(default, meaning, choices=None, low=None, high=None):
    return field(default=default, metadata={"meaning": meaning, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides the result of one run. Immutable; vary it with `dataclasses.replace`.

    Raises ConfigError at construction for an unknown field, a wrong type, a value out of range, and for
    combinations that cannot work (patch and image_size, heads and width, an even kernel).
    """

    dataset: str = _field("photographs", "data set, 'folder' for class folders of images", DATASETS)
    data_dir: str = _field("", "the image folder, or where downloads go (default: data/ in the checkout)")
    image_size: int = _field(16, "side of the square images, pixels", low=4, high=256)
    augment: str = _field("none", "augmentation of training images", ("none", "flip", "crop"))
    input: str = _field("rgb", "what the network sees", ("rgb", "quantised", "palette"))
    target: str = _field("rgb", "squared error on RGB, or cross-entropy on palette colours", ("rgb", "palette"))
    colours: int = _field(64, "palette size K, colours", low=2, high=4096)
    patch: int = _field(2, "side of a token, pixels", (1, 2, 4))
    mixer: str = _field("convmixer", "operator that mixes positions", tuple(MIXERS))
    depth: int = _field(4, "blocks L", low=1, high=64)
    width: int = _field(64, "channels D", low=4, high=4096)
    heads: int = _field(4, "attention heads G (igpt)", low=1, high=64)
    kernel: int = _field(5, "side of the convolution kernel, tokens (convmixer, conv_dense)", low=1, high=31)
    token_ratio: int = _field(2, "hidden size of the token MLP over N (mixer)", low=1, high=16)
    mlp_ratio: int = _field(4, "hidden size of the channel MLP over D", low=1, high=16)
    pretext: str = _field("bert", "label-free task", ("bert",))
    mask_rate: float = _field(0.5, "probability that a token is hidden", low=0.01, high=0.95)
    steps: int = _field(400, "training steps", low=1, high=10_000_000)
    batch: int = _field(64, "images per step", low=1, high=65_536)
    lr: float = _field(2e-3, "peak learning rate", low=1e-8, high=10.0)
    warmup: float = _field(0.1, "fraction of the steps in linear warm-up", low=0.0, high=0.9)
    weight_decay: float = _field(0.01, "AdamW weight decay of the matrices", low=0.0, high=10.0)
    clip: float = _field(1.0, "gradient norm above which it is scaled down", low=1e-6, high=1e6)
    precision: str = _field("fp32", "arithmetic of matrix products", ("fp32", "bf16"))
    seed: int = _field(0, "seed of initial weights, image order and masks", low=0, high=2**31 - 1)
    device: str = _field("auto", "where to compute", ("auto", "cpu", "cuda"))

    def __new__(cls, **given):
        check_names(given, [f.name for f in fields(cls)])
        return super().__new__(cls)

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if self.image_size % self.patch:
            fits = [p for p in (1, 2, 4) if self.image_size % p == 0]
            raise ConfigError(f"patch: {self.patch} does not divide image_size {self.image_size}; choose from {fits}")
        if self.mixer == "igpt" and self.width % self.heads:
            fits = [g for g in range(1, self.heads + 1) if self.width % g == 0]
            raise ConfigError(f"heads: {self.heads} does not divide width {self.width}; the nearest is {fits[-1]}")
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel: {self.kernel} has no centre; choose an odd number, e.g. {self.kernel + 1}")
        hidden = self.batch * self.grid**2 * self.mask_rate
        if hidden < 16:
            raise ConfigError(f"mask_rate: {self.mask_rate} hides {hidden:.2g} tokens of a batch on average, fewer than 16; "
                              f"raise it, batch or image_size")  # fmt: skip
        if self.dataset == "folder" and not self.data_dir:
            raise ConfigError("data_dir: empty, and dataset is 'folder'; set it to a folder of class folders")

    @property
    def grid(self):
        """Side of the token grid, H = W = S / p."""
        return self.image_size // self.patch

    @property
    def uses_palette(self):
        return self.input != "rgb" or self.target == "palette"


def fields_of():
    """Field name -> type of every Config field."""
    return {f.name: f.type for f in fields(Config)}


def nearest(word, words):
    """The word most like the given one."""
    return max(words, key=lambda w: difflib.SequenceMatcher(None, str(word).lower(), str(w).lower()).ratio())


def check_names(given, known, what="field"):
    """Refuse a name that is not known. Raises ConfigError naming the nearest one."""
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{name}: no such {what} (given {value!r}); did you mean {nearest(name, known)!r}?")


def _checked(f, value):
    meta = f.metadata
    if f.type is float and type(value) is int:
        value = float(value)
    if type(value) is not f.type:
        kind = {int: "a whole number", float: "a number", str: "text"}[f.type]
        raise ConfigError(f"{f.name}: {value!r} is {type(value).__name__}, expected {kind}, e.g. {f.default!r}")
    if f.type is float and not math.isfinite(value):
        raise ConfigError(f"{f.name}: {value!r} is not a finite number; e.g. {f.default!r}")
    if meta["choices"] and value not in meta["choices"]:
        near = (nearest if f.type is str else lambda v, c: min(c, key=lambda x: abs(x - v)))(value, meta["choices"])
        raise ConfigError(f"{f.name}: {value!r} is not one of {list(meta['choices'])}; the nearest is {near!r}")
    if meta["low"] is not None and not meta["low"] <= value <= meta["high"]:
        near = min(max(value, meta["low"]), meta["high"])
        raise ConfigError(f"{f.name}: {value!r} is outside {meta['low']} to {meta['high']}; the nearest is {near!r}")
    return value


# A profile is a set of Config fields and the sizes of its grids.
PROFILES = {
    "smoke": {
        "about": "seconds, for tests",
        "config": {"image_size": 8, "depth": 1, "width": 8, "heads": 2, "kernel": 3, "steps": 4, "batch": 16},
        "depths": (1, 2),
        "seeds": (0, 1),
    },
    "quick": {
        "about": "embedded photographs, minutes on two CPU cores",
        "config": {"mlp_ratio": 2, "batch": 32, "steps": 400, "lr": 8e-3},
        "depths": (1, 3),
        "seeds": (0, 1, 2),
    },
    "laptop": {
        "about": "CIFAR-10 at 16x16, a few hours on two CPU cores",
        "config": {"dataset": "cifar10", "augment": "flip", "mlp_ratio": 2, "steps": 4000, "lr": 3e-3},
        "depths": (2, 4),
        "seeds": (0, 1, 2, 3, 4),
    },
    "paper": {
        "about": "CIFAR-10 at 32x32, one GPU",
        "config": {"dataset": "cifar10", "image_size": 32, "patch": 1, "width": 256, "heads": 8, "augment": "flip",
                   "mask_rate": 0.15, "steps": 35_000, "batch": 128, "lr": 1e-3, "precision": "bf16"},
        "depths": (2, 4, 8, 16),
        "seeds": (0, 1, 2, 3, 4),
    },
}  # fmt: skip


def check_profile(name):
    """Return the profile's data. Raises ConfigError naming the nearest profile."""
    if name not in PROFILES:
        raise ConfigError(f"profile: {name!r} is not one of {list(PROFILES)}; did you mean {nearest(name, PROFILES)!r}?")
    return PROFILES[name]


def configure(profile, **overrides):
    """The profile's Config with some fields changed. Raises ConfigError."""
    return Config(**{**check_profile(profile)["config"], **overrides})


def relevant(cfg):
    """The fields that decide the result: everything but where the data lie, the device, and unread fields."""
    unread = {"data_dir", "device"} | {name for m in MIXERS.values() for name in m.reads} - set(MIXERS[cfg.mixer].reads)
    if not cfg.uses_palette:
        unread.add("colours")
    return {name: value for name, value in sorted(asdict(cfg).items()) if name not in unread}


def digest(content, length=16):
    """First hexadecimal digits of the sha256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:length]


def key(cfg):
    """Name of the run: 16 hexadecimal digits, equal exactly for runs that must give the same result.

    It covers the version of the embedded data, and of a folder the paths and sizes of its images: changed data is another
    run.
    """
    return digest(relevant(cfg) | data_identity(cfg))


def data_identity(cfg):
    """What tells the data of a Config from other data of the same name, as far as it is known without reading them."""
    if cfg.dataset == "folder":
        return {"files": folder_signature(cfg.data_dir)}
    return {"version": PHOTOGRAPHS_VERSION} if cfg.dataset == "photographs" else {}


def floor_fields(cfg):
    """The fields that decide the floors."""
    return {name: getattr(cfg, name) for name in ("dataset", "image_size", "patch", "mask_rate")}


def floor_key(cfg):
    """Key of what data and masks alone decide: the untrained baselines and the raw-pixel probe."""
    return f"floor-{digest(floor_fields(cfg) | data_identity(cfg))}"


def folder_signature(folder, content=False):
    """Digest of the relative paths and sizes of all images below a folder; with `content` of their time stamps too, so
    that it also changes when a file is rewritten. Raises ConfigError if the folder is missing."""
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise ConfigError(f"data_dir: {folder!r} is not a folder; set it to a folder of class folders of images")
    if content:
        return digest(_files(top, True))
    return _quick_signature(str(top), tuple((d, os.stat(d).st_mtime_ns) for d, _, _ in _walk(top)))


@functools.lru_cache(maxsize=8)
def _quick_signature(top, stamps):
    """Cached on the time stamps of the folders: a file added or removed is noticed without listing all of them."""
    return digest(_files(Path(top), False))


def _files(top, content):
    found = []
    for d, _, names in _walk(top):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES):
                stat = os.stat(os.path.join(d, name))
                path = os.path.relpath(os.path.join(d, name), top).replace(os.sep, "/")
                found.append((path, stat.st_size, stat.st_mtime_ns) if content else (path, stat.st_size))
    return sorted(found)


def _walk(top):
    """os.walk over top, its splits and their class folders, links included."""
    for d, subfolders, names in os.walk(top, followlinks=True):
        if len(Path(d).relative_to(top).parts) >= 2:
            subfolders.clear()
        yield d, subfolders, names
