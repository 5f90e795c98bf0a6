"""Who runs: a process known by more than its number, whether it lives, and the end of all that it started."""

import contextlib
import functools
import os
import signal
import socket
import threading
import time
from pathlib import Path


@functools.cache
def host():
    """This machine, and where its process numbers count: a container has its own."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def myself():
    """This process as {host, pid, start}."""
    return {"host": host(), "pid": os.getpid(), "start": started(os.getpid())}


def started(pid):
    """Start time of a process in clock ticks, so that a reused number is not taken for it; None if unknown, or if it has
    ended and its parent has not noticed."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) if fields[0] not in "ZX" else None


def lives(process):
    """Whether a process of this machine, as `myself` gave it, still runs."""
    try:
        os.kill(process["pid"], 0)
    except PermissionError:  # it is somebody else's
        pass
    except OSError:
        return False
    return process["start"] == started(process["pid"])


def follow_parent(parent):
    """End this process by SIGTERM, in a thread that watches, once its parent `parent` is gone."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end_descendants(seconds):
    """SIGTERM to all that this process started and what those started, then SIGKILL to what still runs after `seconds`."""
    import psutil

    family = psutil.Process().children(recursive=True)
    for action in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                action(process)
        _, family = psutil.wait_procs(family, seconds)


@contextlib.contextmanager
def threads(count):
    """In this block torch computes with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
