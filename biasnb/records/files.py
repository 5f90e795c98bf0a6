"""Files that are whole at any moment: written beside their name and then renamed, and read with a check."""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ..config import BiasnbError
from .processes import host, lives, myself

PATIENCE = 1  # seconds of waiting for a lock before a line says so
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EROFS)  # what a file system without locks answers


class StoreError(BiasnbError):
    """A record, array or other file of the suite that is missing, cannot be written or does not validate."""


def attempt_of(path):
    """Where this process writes what will be called `path`."""
    me = myself()
    return path.with_name(f".{path.name}.{me['start']}-{me['pid']}@{me['host'].replace('/', '-')}.part")


def write_atomic(path, content):
    """Write bytes or text so that the final name holds the old content or the new, never a part of it."""
    path = Path(path)
    attempt = attempt_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(attempt, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(attempt, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            attempt.unlink(missing_ok=True)


def sweep(folder, start=""):
    """Remove what writers that were killed left of the files in a folder whose names begin with `start`."""
    for attempt in folder.glob(f".{glob.escape(start)}*.part"):
        process, _, place = attempt.name.removesuffix(".part").rpartition("@")
        began, _, pid = process.rpartition(".")[2].partition("-")
        here = place == host().replace("/", "-") and pid.isdigit()
        if here and not lives({"pid": int(pid), "start": int(began) if began.isdigit() else None}):
            with contextlib.suppress(OSError):
                shutil.rmtree(attempt) if attempt.is_dir() else attempt.unlink()


@contextlib.contextmanager
def locked(path, waiting):
    """Hold the lock file `path` within the block. While another process holds it this one waits, and prints the line `waiting`
    once; the system releases the lock when its owner dies.

    Yields whether the lock is held: on a file system without locks the block runs without one. Raises StoreError if the file
    cannot be made."""
    lock = FileLock(path, fallback_to_soft=False)
    held = _acquire(lock, path, waiting)
    try:
        yield held
    finally:
        if held:
            lock.release()


def _acquire(lock, path, waiting):
    """Whether the lock is now held; False on a file system without locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            print(waiting, flush=True)
            lock.acquire()
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return False
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
    return True


def to_json(content):
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_json(path):
    """Parse a JSON file, in which all numbers are finite. Raises StoreError naming the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); delete it to make it anew") from None


def _no_number(word):
    raise ValueError(f"{word} is no number")


def write_arrays(path, arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def read_arrays(path):
    """Arrays of an .npz file as a dict; pickled content is refused. Raises StoreError naming the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise StoreError(f"{path}: not readable as arrays ({error}); delete it to make it anew") from None


def arrays_digest(arrays):
    """sha256 over names, shapes, types and content."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        h.update(f"{name}{a.dtype.str}{a.shape}".encode())
        h.update(a.tobytes())
    return h.hexdigest()
