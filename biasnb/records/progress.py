"""Progress with rate and remaining time: a live line in JupyterLab and in a terminal, occasional lines in a log file."""

import html
import os
import sys
import time


def in_jupyterlab():
    """Return whether the code runs in a kernel of JupyterLab, where output can be updated; False under Papermill."""
    return "JPY_SESSION_NAME" in os.environ and "ipykernel" in sys.modules


class Progress:
    """Report how many of `total` steps (or another `unit`) are done. `done` counts the steps before an interruption, `every`
    is the interval between reports in seconds."""

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
        """Report `done` steps if a report is due. `rows`, one dict of text per running task, is shown as a table in JupyterLab.
        `left` is the remaining time in seconds; by default it is estimated from the rate."""
        if self.due() and done < self.total:
            now = self.last = time.monotonic()
            self._write(self.line(done, now, note, left), rows)

    def due(self):
        return time.monotonic() - self.last >= self.every

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
    """Return dicts of text with the same names as an HTML table; "" for an empty list."""
    if not rows:
        return ""
    lines = [_line_of_table("th", rows[0])] + [_line_of_table("td", row.values()) for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _line_of_table(kind, values):
    cells = [f"<{kind}>{html.escape(value)}</{kind}>" for value in values]
    return f"<tr>{''.join(cells)}</tr>"


def clock(seconds):
    """Format a duration in seconds as, for example, 8 s, 3:05 min or 2:10 h."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes}:{s:02d} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"
