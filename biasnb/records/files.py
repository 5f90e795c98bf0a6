"""Files that are whole at any moment, written beside their name and then renamed, and locks that die with their owner."""

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
except ImportError:  # Windows, where it is not shown who holds a lock
    fcntl = None

HOUR = 3600  # seconds after which an attempt at a file belongs to a process that was killed
PATIENCE = 1  # seconds of waiting for a lock before a line says so
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EROFS)  # what a file system without locks answers


class StoreError(BiasnbError):
    """A record, array or other file of the suite that is missing, cannot be written or does not validate."""


def attempt_of(path):
    """A name beside `path` that nobody else uses, for what will be called `path` once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def write_atomic(path, content):
    """Write bytes or text so that the final name holds the old content or the new, never a part of it.

    Raises StoreError naming the file."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    for attempts_left in (2, 1, 0):
        try:
            return _write_and_rename(path, data)
        except OSError as error:
            if attempts_left and isinstance(error, FileNotFoundError):
                continue  # another process has removed the folder meanwhile, as the run that it belongs to is done
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
    """Remove what writers that were killed left in a folder: attempts at files whose names are `start` or begin with it and a
    dot, last changed more than `age` seconds ago. Without an age only whoever holds the lock of these files may ask for it."""
    pattern = f".{glob.escape(start)}.*.part" if start else ".*.part"
    for attempt in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - attempt.stat().st_mtime >= age:
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


def is_locked(path):
    """Whether some process, this one included, holds the lock file `path`. Asking disturbs nobody."""
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
    """JSON with sorted names and a line for each, ending in a newline; numbers that are not finite raise ValueError."""
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
    """Write named arrays as a compressed .npz file, whole or not at all. Raises StoreError naming the file."""
    write_atomic(path, array_bytes(arrays))


def array_bytes(arrays):
    """Named arrays as the content of a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def read_arrays(path):
    """Arrays of an .npz file as a dict; pickled content is refused. Raises StoreError naming the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise StoreError(f"{path}: not readable as arrays ({error}); delete it to make it anew") from None


def arrays_digest(arrays):
    """sha256 over names, shapes, types and content."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name}{array.dtype.str}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
