"""The stamp on every record: what the numbers were made with."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from . import places

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image", "pillow")
OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
CPUINFO = Path("/proc/cpuinfo")  # of Linux


def environment(device="cpu", gpu=None, threads=None):
    """What the numbers were made with: versions, commit, machine. Holds no path and no host name."""
    commit, dirty = _commit()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "device": device,
        "gpu": gpu,
        "threads": threads,
    }


@functools.cache
def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    """(commit, whether files differ from it) of the checkout; None for both where it has no commit of its own: the package is
    installed, or the checkout is a copy inside another repository."""
    top = _git("rev-parse", "--show-toplevel")
    if places.CHECKOUT is None or not top or Path(top).resolve() != places.CHECKOUT:
        return None, None
    changed = _git("status", "--porcelain")
    return _git("rev-parse", "HEAD"), None if changed is None else bool(changed)


@functools.cache
def _git(*words):
    """What git says of the folder that the package is in, whatever repository a hook works in; None if nothing."""
    surroundings = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    command = ("git", "--no-optional-locks", "-C", str(places.PACKAGE), *words)
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, env=surroundings)
        return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _cpu():
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def bf16_instructions():
    """Names of the processor's instructions for products in bfloat16, none if it has none; None if the system does not say."""
    flags = _cpuinfo("flags|Features")
    return None if flags is None else [flag for flag in ("avx512_bf16", "amx_bf16", "bf16") if flag in flags.split()]


def _cpuinfo(names):
    """What Linux says of the first processor under one of these names, a regular expression; None if it does not."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"^(?:{names})\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE):
            return found[1].strip()
    return None
