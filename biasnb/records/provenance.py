"""The stamp on every record: what the numbers were made with."""

import contextlib
import functools
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

from . import places

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image", "pillow")
CPUINFO = Path("/proc/cpuinfo")  # of Linux


def environment(device="cpu", gpu=None, threads=None):
    """What the numbers were made with: versions, commit, machine. Holds no path and no host name."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changed := _git("status", "--porcelain")) is None else bool(changed),
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


@functools.cache  # as above
def _git(*words):
    try:
        done = subprocess.run(
            ("git", "--no-optional-locks", "-C", str(places.PACKAGE), *words), capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else None
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
