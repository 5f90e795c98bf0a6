"""SIGINT, SIGTERM and the time limit: out within ten seconds from wherever the program is, with a state to go on from."""

import contextlib
import math
import os
import signal
import threading

from ..config import ConfigError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)  # the last is the time limit's
GRACE = 7  # seconds from a signal to the end of whatever has not left by itself
TIME_UP = 75  # exit code: "temporary failure, try again" (sysexits.h)


class Stopped(SystemExit):
    """SIGTERM or the end of the time limit: no error, as the same command goes on where it stopped."""

    def __init__(self, number):
        super().__init__(exit_code(number))
        self.number = number

    def __str__(self):
        return "the time limit" if self.number == signal.SIGALRM else signal.Signals(self.number).name


def exit_code(number):
    return TIME_UP if number == signal.SIGALRM else 128 + number


def stop(number):
    """Act on a signal: KeyboardInterrupt for SIGINT, as Python and JupyterLab do, else Stopped."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number)


def seconds_of(text):
    """A time limit as seconds. Raises ConfigError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e8:
        raise ConfigError(f"time-limit: {text!r} is not a positive number of seconds; e.g. 3600")
    return value


@contextlib.contextmanager
def watched(limit=None):
    """In this block the first SIGINT, SIGTERM or the end of `limit` seconds raises; further ones wait for it. A process that
    has not left GRACE seconds later, in a call that takes long, ends all the same: files are whole at any moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = []

    def first(number, frame):
        seen.append(number)
        if len(seen) == 1:
            stop(number)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    left = threading.Event()
    threading.Thread(target=_end, args=(reader, left), daemon=True).start()
    handlers = {number: signal.signal(number, first) for number in STOPPING}
    fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to at once, whatever the main thread does
    if limit:
        signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(fd)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        left.set()
        os.close(writer)


def _end(reader, left):
    """Wait for a signal, then for the block to be left; else end the process."""
    with open(reader, "rb", buffering=0) as numbers:
        while (number := numbers.read(1)) and number[0] not in STOPPING:
            pass
    if number and not left.wait(GRACE):
        os._exit(exit_code(number[0]))


# A forked process writes its signals into no pipe of its parent.
os.register_at_fork(after_in_child=lambda: threading.current_thread() is threading.main_thread() and signal.set_wakeup_fd(-1))


class Interrupts:
    """In this block signals are kept until `stop` is called, at the end of a step; then they act."""

    def __enter__(self):
        self.caught, self.previous = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self.previous[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number, frame):
        self.caught = self.caught or number

    def stop(self):
        if self.caught:
            stop(self.caught)

    def __exit__(self, kind, error, _):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            self.stop()
