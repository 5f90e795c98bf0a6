"""One process at a time, without file locks of the system, which network file systems get wrong.

A lock is a folder of numbered files. Whoever makes the next number first holds the lock, and a number is never used twice:
nobody who thinks that an owner is dead can take the lock from the one who took it over."""

import contextlib
import json
import os
import shutil
import threading
import time

from .files import StoreError, attempt_of, sweep
from .processes import host, lives, myself

BEAT = 15  # seconds between renewals
PATIENCE = 120  # an owner on another machine that has not renewed its lock for so many seconds is dead


class Held(StoreError):
    """Something that another living process does, or has taken over from this one."""


class Lock:
    """The lock of one named thing. `with lock:` holds it and renews it; raises Held naming the owner if another has it."""

    def __init__(self, folder, name):
        self.folder, self.name = folder / name, name

    def newest(self):
        """The highest number there is; 0 for none."""
        numbers = [int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()]
        n = max(numbers, default=0)
        while (self.folder / str(n + 1)).exists():  # a listing may be old where the name itself is not
            n += 1
        return n

    def state(self):
        """(living owner or None, whether its owner left without a word): what the newest number says."""
        n = self.newest()
        path = self.folder / str(n)
        try:
            if not (text := path.read_text(encoding="utf-8")):
                return None, False
            owner = json.loads(text)
            living = lives(owner) if owner["host"] == host() else self._now() - path.stat().st_mtime < PATIENCE
            return (owner, False) if living else (None, True)
        except (OSError, ValueError, KeyError, TypeError):
            return None, False

    def owner(self):
        """The living owner as {host, pid, start}, or None."""
        return self.state()[0]

    def _now(self):
        """The time by the clock of the file system."""
        probe = attempt_of(self.folder / "now")
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def __enter__(self):
        while True:
            n = self.newest() + 1
            if owner := self.owner():
                raise Held(f"{self.name}: already running on {place(owner)}; wait for it or stop it")
            if self._make(n):
                break
        self.number, self.left = n, threading.Event()
        sweep(self.folder)
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def _make(self, n):
        """Whether this process made number n: complete at once, or not at all."""
        attempt, path = attempt_of(self.folder / str(n)), self.folder / str(n)
        try:
            if self.folder.is_file():
                raise NotADirectoryError(20, "its folder is a file")
            self.folder.mkdir(parents=True, exist_ok=True)
            attempt.write_text(json.dumps(myself()), encoding="utf-8")
            os.link(attempt, path)
            return True
        except FileExistsError:
            return False
        except FileNotFoundError:  # the folder has just been removed: what was locked is done
            return False
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
        finally:
            with contextlib.suppress(OSError):
                attempt.unlink(missing_ok=True)

    def _renew(self):
        while not self.left.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.folder / str(self.number))

    def check(self):
        """Raises Held if another has taken the lock over, as this process seemed dead: it must write nothing more."""
        if self.newest() != self.number:  # a smaller one: whoever took it over has finished and forgotten it
            raise Held(f"{self.name}: taken over by another process, which goes on with it")

    def __exit__(self, *_):
        self.left.set()
        if self.newest() == self.number:
            with contextlib.suppress(OSError):
                os.truncate(self.folder / str(self.number), 0)  # which a full disk allows

    def remove(self):
        """Forget all about what is done and will not be locked again."""
        shutil.rmtree(self.folder, ignore_errors=True)


def place(owner):
    return f"{owner['host'].partition('/')[0]}, process {owner['pid']}"
