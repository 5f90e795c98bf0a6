"""How all runs of a profile stand: done, diverged, running and how far, failed, interrupted, missing, or broken. Reads files
only."""

import re
from collections import Counter

import pandas as pd

from ..config import BiasnbError, check_profile
from ..records import keys
from ..records.store import Store
from ..sweep import manifest

COLUMNS = ("notebook", "key", "mixer", "depth", "seed", "state", "detail")
ENDED = ("done", "diverged")
FIRST = ("running", "failed", "broken", "interrupted", "missing")  # the order of a short list
GOES_ON = ("running", "interrupted", "missing")


def asked(profile, given=None):
    """(the sweeps that notebooks ask for with these settings, a line for each notebook that they make impossible). Raises
    ConfigError for a setting that is unknown or mistyped."""
    check_profile(profile)
    sweeps, troubles = [], []
    with keys.snapshot():
        for name, settings in manifest.accepted({"profile": profile, **(given or {})}).items():
            try:
                _, sweep = manifest.asked(name, settings)
                sweeps += [sweep] if sweep else []
            except BiasnbError as error:
                troubles.append(f"{name:20} impossible with these settings: {error}")
    return sweeps, troubles


def runs(profile, sweeps, name=None, ended=None):
    """A row of the COLUMNS for each run of these sweeps, of what notebooks have asked for before, and for single ones; of one
    notebook if `name` is given. A run that several ask for has one row. `ended`, key -> row, collects the rows of runs that
    have ended, which are not read again."""
    store, seen = Store(profile), set()
    ended = {} if ended is None else ended
    for sweep in [*sweeps, *store.sweeps()]:
        for run in sweep.runs:
            if run["key"] not in seen and name in (None, sweep.content["notebook"]):
                seen.add(run["key"])
                yield ended.get(run["key"]) or row(store, sweep.name, run["key"], run, ended)
    for key in sorted(traces(store) - seen) if name is None else ():
        yield ended.get(key) or row(store, "(single run)", key, {}, ended)


def traces(store):
    """Keys of all runs of which there is something: a record, an error, a note of progress, states, a lock."""
    paths = []
    for pattern in ("*.json", "*.error", "*.progress", "checkpoints/*", "locks/*"):
        paths += store.folder.glob(pattern)
    return {path.stem for path in paths if re.fullmatch("[0-9a-f]{16}", path.stem)}


def row(store, notebook, key, run, ended):
    state, detail = store.status(key)
    if not run and state in ENDED:
        run = store.load(key)["config"]
    settings = {name: run.get(name, "") for name in ("mixer", "depth", "seed")}
    found = {"notebook": notebook, "key": key, **settings, "state": state, "detail": detail}
    if state in ENDED:
        ended[key] = found
    return found


def table(profile, name=None, given=None):
    """The rows of `runs` as a styled frame for a notebook, with the counts of states as its caption. Raises ConfigError."""
    if name is not None:
        manifest.path_of(name)
    rows = pd.DataFrame(list(runs(profile, asked(profile, given)[0], name)), columns=COLUMNS)
    return rows.style.hide(axis="index").set_caption(counts(rows.state))


def counts(states):
    """'12 done, 2 running'"""
    return ", ".join(f"{n} {state}" for state, n in Counter(states).items())


def line(row):
    network = f"{row['mixer']:11} depth {row['depth']:<3} seed {row['seed']:<3}" if row["mixer"] else ""
    return f"{row['notebook']:20} {row['key']}  {network} {row['state']} {row['detail']}".rstrip()


def notebooks(profile):
    """A line for each notebook that has been started."""
    from .notebooks import states

    return [f"{label:20} notebook {state} {detail}".rstrip() for label, (state, detail) in states(Store(profile)).items()]


def page(profile, given=None):
    """The lines of `biasnb status`: notebooks, runs, counts."""
    sweeps, troubles = asked(profile, given)
    rows = list(runs(profile, sweeps))
    return [*troubles, *notebooks(profile), *map(line, rows), counts(row["state"] for row in rows)]


class Screen:
    """`biasnb status --watch`: what is under way or not well, as much of it as a terminal holds."""

    def __init__(self, profile, given=None):
        self.profile, self.ended = profile, {}
        self.sweeps, self.troubles = asked(profile, given)

    def page(self, columns, height):
        """(lines, whether something is left that could go on)."""
        rows = list(runs(self.profile, self.sweeps, ended=self.ended))
        unfinished = [row for row in rows if row["state"] in FIRST]
        unfinished.sort(key=lambda row: FIRST.index(row["state"]))
        lines = [*map(line, unfinished), *self.troubles]
        lines += [text for text in notebooks(self.profile) if " notebook done" not in text]
        room = max(1, height - 4)
        more = [f"... {len(lines) - room} more"] if len(lines) > room else []
        shown = [*lines[:room], *more, counts(row["state"] for row in rows)]
        return [text[:columns] for text in shown], any(row["state"] in GOES_ON for row in rows)
