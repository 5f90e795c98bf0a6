"""Provenance of a record: software versions, commit and machine."""

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
CPUINFO = Path("/proc/cpuinfo")  # exists on Linux only


def environment(device="cpu", gpu=None, threads=None):
    """Return the versions, the commit and the machine as a dict. It contains no path and no host name."""
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
    """Return (commit, whether files differ from it) of the checkout. Both are None if the package is installed, or if the
    checkout is a copy inside another repository."""
    top = _git("rev-parse", "--show-toplevel")
    if places.CHECKOUT is None or not top or Path(top).resolve() != places.CHECKOUT:
        return None, None
    changed = _git("status", "--porcelain")
    return _git("rev-parse", "HEAD"), None if changed is None else bool(changed)


@functools.cache
def _git(*words):
    """Return the output of a git command in the folder of the package, or None if it fails. The variables that git sets for
    hooks are removed, because they name another repository."""
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
    """Return the names of the processor's instructions for bfloat16 products, or None if the system does not list them."""
    flags = _cpuinfo("flags|Features")
    return None if flags is None else [flag for flag in ("avx512_bf16", "amx_bf16", "bf16") if flag in flags.split()]


def _cpuinfo(names):
    """Return the first value in /proc/cpuinfo whose name matches the regular expression, or None."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"^(?:{names})\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE):
            return found[1].strip()
    return None
