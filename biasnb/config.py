"""One flat, frozen, validated configuration per run; the profiles as plain data; the key of a run."""

import difflib
import functools
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

# Each mixing operator and the fields that only it reads (they leave the key of every other operator alone).
MIXERS = {
    "convmixer": ("kernel",),
    "mixer": ("token_ratio",),
    "igpt": ("heads",),
    "conv_dense": ("kernel",),
    "identity": (),
}
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
        "config": {"batch": 32, "steps": 400, "lr": 5e-3, "mlp_ratio": 2},
        "depths": (1, 3),
        "seeds": (0, 1, 2),
    },
    "laptop": {
        "about": "CIFAR-10, hours on a CPU",
        "config": {"dataset": "cifar10", "image_size": 32, "width": 128, "augment": "flip", "mask_rate": 0.75,
                   "steps": 10_000, "batch": 128, "lr": 1e-3, "precision": "bf16"},
        "depths": (2, 4, 8),
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
    unread = {"data_dir", "device"} | {name for uses in MIXERS.values() for name in uses} - set(MIXERS[cfg.mixer])
    if not cfg.uses_palette:
        unread.add("colours")
    return {name: value for name, value in sorted(asdict(cfg).items()) if name not in unread}


def digest(content, length=16):
    """First hexadecimal digits of the sha256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:length]


def key(cfg):
    """Name of the run: 16 hexadecimal digits, equal exactly for runs that must give the same result.

    For a folder of images the key also covers the paths and sizes of the files, so changed data is another run.
    """
    content = relevant(cfg)
    if cfg.dataset == "folder":
        content["files"] = folder_signature(cfg.data_dir)
    return digest(content)


def floor_fields(cfg):
    """The fields that decide the floors."""
    return {name: getattr(cfg, name) for name in ("dataset", "image_size", "patch", "mask_rate")}


def floor_key(cfg):
    """Key of what data and masks alone decide: the untrained baselines and the raw-pixel probe."""
    files = {"files": folder_signature(cfg.data_dir)} if cfg.dataset == "folder" else {}
    return f"floor-{digest(floor_fields(cfg) | files)}"


def folder_signature(folder):
    """Digest of the relative paths and sizes of all files below a folder. Raises ConfigError if it is missing."""
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise ConfigError(f"data_dir: {folder!r} is not a folder; set it to a folder of class folders of images")
    stamps = tuple((d, os.stat(d).st_mtime_ns) for d, _, _ in _walk(top, levels=2))
    return _signature(str(top), stamps)


@functools.lru_cache(maxsize=8)
def _signature(top, stamps):
    """Cached on the time stamps of the folders: a file added or removed is noticed without listing them all."""
    files = [(os.path.relpath(os.path.join(d, n), top), os.path.getsize(os.path.join(d, n)))
             for d, _, names in os.walk(top) for n in names]  # fmt: skip
    return digest(sorted((path.replace(os.sep, "/"), size) for path, size in files))


def _walk(top, levels):
    for d, subfolders, names in os.walk(top):
        if len(Path(d).relative_to(top).parts) >= levels:
            subfolders.clear()
        yield d, subfolders, names
