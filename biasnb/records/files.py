"""Atomic file writes (temporary file, then rename) and file locks that the system releases when their process dies."""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import secrets
import shutil
import time
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ..config import BiasnbError

try:
    import fcntl
except ImportError:  # Windows has no fcntl; `is_locked` then always answers False
    fcntl = None

HOUR = 3600  # seconds; a temporary file older than this was left by a process that was killed
PATIENCE = 1  # seconds to wait for a lock before a message is printed
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EROFS)  # errors of file systems without locks


class StoreError(BiasnbError):
    """A record, array or other file of the suite that is missing, cannot be written or does not validate."""


def attempt_of(path):
    """Return a unique temporary name in the folder of `path`; the complete file is later renamed to `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def write_atomic(path, content):
    """Write bytes or text so that `path` always holds either the complete old or the complete new content.

    Raises StoreError naming the file."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    for attempts_left in (2, 1, 0):
        try:
            return _write_and_rename(path, data)
        except OSError as error:
            if attempts_left and isinstance(error, FileNotFoundError):
                continue  # another process finished the run and removed its folder
            raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error


def _write_and_rename(path, data):
    attempt = attempt_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(attempt, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(attempt, path)
    finally:
        with contextlib.suppress(OSError):
            attempt.unlink(missing_ok=True)


def remove_attempts(folder, start="", age=0):
    """Remove temporary files that killed processes left in a folder: those of files named `start` or `start.*` (all files if
    `start` is empty) that are at least `age` seconds old. The caller must hold the lock of these files if `age` is 0."""
    pattern = f".{glob.escape(start)}.*.part" if start else ".*.part"
    for attempt in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - attempt.stat().st_mtime >= age:
                shutil.rmtree(attempt) if attempt.is_dir() else attempt.unlink()


@contextlib.contextmanager
def locked(path, waiting):
    """Hold the lock file `path` within the block. If another process holds it, wait and print the line `waiting` once. The
    system releases the lock when its process dies.

    Yields True if the lock is held, and False on a file system without locks, where the block runs without it. Raises
    StoreError if the lock file cannot be created."""
    lock = FileLock(path, fallback_to_soft=False)
    held = _acquire(lock, path, waiting)
    try:
        yield held
    finally:
        if held:
            lock.release()


def _acquire(lock, path, waiting):
    """Acquire the lock. Returns False on a file system without locks."""
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


def is_locked(path):
    """Return whether any process, including this one, holds the lock file `path`. The check does not block other processes."""
    if fcntl is None:
        return False
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks
        return False
    return False


def to_json(content):
    """Serialise to JSON with sorted names, one per line, and a final newline. Raises ValueError for non-finite numbers."""
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_json(path):
    """Parse a JSON file. Raises StoreError naming the file if it is missing, malformed or holds a non-finite number."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); delete it to make it anew") from None


def _no_number(word):
    raise ValueError(f"{word} is no number")


def write_arrays(path, arrays):
    """Write named arrays atomically as a compressed .npz file. Raises StoreError naming the file."""
    write_atomic(path, array_bytes(arrays))


def array_bytes(arrays):
    """Return the bytes of a compressed .npz file of the named arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def read_arrays(path):
    """Return {name: array} of an .npz file. Raises StoreError naming the file, also for pickled content."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise StoreError(f"{path}: not readable as arrays ({error}); delete it to make it anew") from None


def arrays_digest(arrays):
    """Return the SHA-256 of the names, types, shapes and contents of the arrays."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name}{array.dtype.str}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
