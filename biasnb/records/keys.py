"""The key of a run: a hash of everything that decides its result, the data included."""

import functools
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from ..config import IMAGE_SUFFIXES, VERSIONS, ConfigError
from ..operators import MIXERS

SPECIAL = {name for op in MIXERS.values() for name in op.reads}  # fields that only some operators read
SAYS = ("__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__")  # of a class, not what it does
TRAINING = {"augment", "batch", "budget", "clip", "lr", "precision", "steps", "warmup", "weight_decay"}


def key_fields(cfg):
    """The fields that decide the result: everything but where the data lie, the device, and unread fields."""
    unread = {"data_dir", "device"} | SPECIAL - cfg.reads
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
    run. So is an operator of one's own whose class or entry has changed.
    """
    mine = own(cfg.mixer)
    return digest(key_fields(cfg) | data_identity(cfg) | ({"operator": mine} if mine else {}))


def own(mixer):
    """Digest of an operator of one's own: its entry, and what its class and those it inherits from do, as far as they are
    not the suite's; "" for an operator of the suite."""
    entry = MIXERS[mixer]
    if entry.family != "own" or isinstance(entry.operator, str):
        return ""
    kinds = [kind for kind in entry.operator.__mro__ if not kind.__module__.startswith(("biasnb.", "torch.", "builtins"))]
    members = [sorted((name, content(member)) for name, member in vars(kind).items() if name not in SAYS) for kind in kinds]
    return digest([str(entry._replace(operator="")), members])


def content(member):
    """What a member of a class does or is, as text that is the same in every process."""
    code = getattr(member, "__code__", member)
    if hasattr(code, "co_code"):
        return str((code.co_code.hex(), code.co_names, [content(constant) for constant in code.co_consts]))
    return repr(member) if isinstance(member, int | float | str | tuple | dict | None) else type(member).__name__


def data_identity(cfg):
    """What tells the data of a Config from other data of the same name, as far as it is known without reading them."""
    if cfg.dataset == "folder":
        return {"files": folder_signature(cfg.data_dir)}
    return {"version": VERSIONS[cfg.dataset]} if cfg.dataset in VERSIONS else {}


def baseline_fields(cfg):
    """The fields that decide the baselines."""
    return {name: getattr(cfg, name) for name in ("dataset", "image_size", "patch", "mask_rate", "permute", "labelled")}


def baseline_key(cfg):
    """Key of what data and masks alone decide: the untrained baselines and the raw-pixel probe."""
    return f"baseline-{digest(baseline_fields(cfg) | data_identity(cfg))}"


def search_key(cfg):
    """Key of the search for a learning rate: of everything but the rate and the seed."""
    fields = {name: value for name, value in key_fields(cfg).items() if name not in ("lr", "seed")}
    return f"search-{digest(fields | data_identity(cfg))}"


def folder_signature(folder, content=False):
    """Digest of the relative paths and sizes of all images below a folder; with `content` of their time stamps too, so
    that it also changes when a file is rewritten. Raises ConfigError if the folder is missing."""
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise ConfigError(f"data_dir: {folder!r} is not a folder; set it to a folder of images, or of class folders of them")
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
