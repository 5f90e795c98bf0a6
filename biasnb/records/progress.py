"""Progress with rate and time left: a live line in JupyterLab and in a terminal, a plain line now and then in a log; and what
others can see of a run while it trains."""

import contextlib
import html
import math
import os
import sys
import time
from importlib.util import find_spec

from ..config import BiasnbError
from .files import StoreError, to_json, write_atomic


def in_jupyterlab():
    """Whether this is a kernel with a live front end: JupyterLab, not Papermill."""
    return "JPY_SESSION_NAME" in os.environ and "ipykernel" in sys.modules


class Progress:
    """Report steps (or another `unit`) done out of `total`; `done` counts those done before an interruption."""

    def __init__(self, label, total, done=0, every=None, stream=None, unit="steps"):
        self.label, self.total, self.first, self.unit = label, total, done, unit
        self.stream = stream or sys.stdout
        self.lab = None
        if in_jupyterlab():
            from IPython.display import DisplayHandle

            self.lab = DisplayHandle()
            self.lab.display({"text/plain": f"{label}: starting"}, raw=True)
        self.live = bool(self.lab) or self.stream.isatty()
        self.every = every or (0.5 if self.live else 10.0)
        self.start = self.last = time.monotonic()

    def __call__(self, done, note="", rows=(), left=None):
        """`rows` are dicts of text, one for each part that is under way, which JupyterLab shows as a table; `left` are the
        seconds that are left where they are known better than by the rate."""
        now = time.monotonic()
        if now - self.last >= self.every and done < self.total:
            self.last = now
            self._write(self.line(done, now, note, left), rows)

    def line(self, done, now, note, left=None):
        rate = (done - self.first) / max(now - self.start, 1e-9)
        left = left if left is not None else (self.total - done) / rate if rate else float("inf")
        share = 100 * done // self.total
        return f"{self.label}: {done}/{self.total} {self.unit}, {share} %, {rate:.1f} {self.unit}/s, {clock(left)} left, {note}"

    def finish(self, note):
        self._write(f"{self.label}: {note} in {clock(time.monotonic() - self.start)}", last=True)

    def _write(self, text, rows=(), last=False):
        if self.lab:
            lines = [" ".join(row.values()) for row in rows]
            self.lab.update({"text/plain": "\n".join([text, *lines]), "text/html": html.escape(text) + table(rows)}, raw=True)
        elif self.live:
            self.stream.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
            self.stream.flush()
        else:
            print(text, file=self.stream, flush=True)


def table(rows):
    """Dicts of text with the same names as an HTML table; nothing for none."""
    if not rows:
        return ""
    cells = lambda kind, values: "".join(f"<{kind}>{html.escape(value)}</{kind}>" for value in values)  # noqa: E731
    lines = "".join(f"<tr>{cells('td', row.values())}</tr>" for row in rows)
    return f"<table><tr>{cells('th', rows[0])}</tr>{lines}</table>"


class Monitor:
    """What others can see of a run while it trains: {step, steps, loss, seconds_left} as JSON in `path`, once a second, and
    TensorBoard's events in `folder` if they are asked for. Nothing that goes wrong while a run trains stops it."""

    def __init__(self, path, folder):
        self.path, self.folder, self.events, self.first = path, folder if tensorboard() else None, None, None
        self.close()  # what a killed run left

    def __call__(self, step, steps, loss):
        """`loss`: the last that is known; not finite if none is."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.start, self.written = step, now, now
        elif now - self.written >= 1:
            self.written = now
            left = (steps - step) * (now - self.start) / (step - self.first)
            seen = {"step": step, "steps": steps, "loss": loss if math.isfinite(loss) else None, "seconds_left": left}
            with contextlib.suppress(StoreError, OSError):
                write_atomic(self.path, to_json(seen))

    def row(self, row):
        """A row of a run's history, see `train.pretrain`."""
        if self.folder:
            with contextlib.suppress(OSError):
                self._add(row)

    def _add(self, row):
        if not self.events:
            from torch.utils.tensorboard import SummaryWriter

            # what a killed run wrote after its last state is purged
            self.events = SummaryWriter(self.folder, purge_step=row["step"])
        for name in row.keys() - {"step"}:
            self.events.add_scalar(name, row[name], row["step"])

    def close(self):
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self.events:
            with contextlib.suppress(OSError):
                self.events.close()


def tensorboard():
    """Whether events for TensorBoard are asked for, by `--tensorboard` or BIASNB_TENSORBOARD=1. Raises BiasnbError if its
    package is missing."""
    if os.environ.get("BIASNB_TENSORBOARD", "0") in ("", "0"):
        return False
    if not find_spec("tensorboard"):
        raise BiasnbError("tensorboard: is not installed; pip install tensorboard, or go on without")
    return True


def clock(seconds):
    """Seconds as people read them: 8 s, 3:05 min, 2:10 h."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes}:{s:02d} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"
