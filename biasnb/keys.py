"""The key of a run: a hash of everything that decides its result, the data included."""

import functools
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from .config import IMAGE_SUFFIXES, VERSIONS, ConfigError
from .operators import MIXERS

TRAINING = {"augment", "batch", "budget", "clip", "lr", "precision", "steps", "warmup", "weight_decay"}


def relevant(cfg):
    """The fields that decide the result: everything but where the data lie, the device, and unread fields."""
    unread = {"data_dir", "device"} | {name for m in MIXERS.values() for name in m.reads} - cfg.reads
    unread |= {name for name, pretext in (("mask_rate", "bert"), ("noise", "denoise")) if cfg.pretext != pretext}
    if not cfg.uses_palette:
        unread.add("colours")
    if not cfg.predicts:
        unread.add("target")
    if cfg.pretext == "supervised":  # trains on the labelled images
        unread.add("images")
    if cfg.pretext == "none":
        unread |= TRAINING
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
    return {"version": VERSIONS[cfg.dataset]} if cfg.dataset in VERSIONS else {}


def floor_fields(cfg):
    """The fields that decide the floors."""
    return {name: getattr(cfg, name) for name in ("dataset", "image_size", "patch", "mask_rate", "permute", "labelled")}


def floor_key(cfg):
    """Key of what data and masks alone decide: the untrained baselines and the raw-pixel probe."""
    return f"floor-{digest(floor_fields(cfg) | data_identity(cfg))}"


def rate_key(cfg):
    """Key of the search for a learning rate: of everything but the rate and the seed."""
    fields = {name: value for name, value in relevant(cfg).items() if name not in ("lr", "seed")}
    return f"rate-{digest(fields | data_identity(cfg))}"


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
