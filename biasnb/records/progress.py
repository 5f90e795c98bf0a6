"""Progress with rate and time left: a live line in JupyterLab and in a terminal, a plain line now and then in a log."""

import html
import os
import sys
import time


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
        if self.due() and done < self.total:
            now = self.last = time.monotonic()
            self._write(self.line(done, now, note, left), rows)

    def due(self):
        """Whether it is time for another line."""
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
    """Dicts of text with the same names as an HTML table; nothing for none."""
    if not rows:
        return ""
    lines = [_line_of_table("th", rows[0])] + [_line_of_table("td", row.values()) for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _line_of_table(kind, values):
    cells = [f"<{kind}>{html.escape(value)}</{kind}>" for value in values]
    return f"<tr>{''.join(cells)}</tr>"


def clock(seconds):
    """Seconds as people read them: 8 s, 3:05 min, 2:10 h."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes}:{s:02d} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"
