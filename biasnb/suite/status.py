"""The states of all runs of a profile, read from files: done, diverged, running, failed, interrupted, missing or broken."""

import re
from collections import Counter

import pandas as pd

from ..config import BiasnbError, check_profile
from ..records import keys
from ..records.store import Store
from ..sweep import manifest

COLUMNS = ("notebook", "key", "mixer", "depth", "seed", "state", "detail")
ENDED = ("done", "diverged")
FIRST = ("running", "failed", "broken", "interrupted", "missing")  # order of states in the short list
GOES_ON = ("running", "interrupted", "missing")


def asked(profile, given=None):
    """Return (the sweeps that notebooks request with these settings, a line for each notebook that cannot run with them).
    Raises ConfigError for a setting that is unknown or has the wrong type."""
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
    """Yield a row of the COLUMNS for each run of these sweeps, of saved sweeps and for single runs, or only for those of the
    notebook `name`. A run in several sweeps has one row. `ended` is a cache {key: row} of runs that have ended, which are not
    read again."""
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
    """Return the keys of all runs that have a file: a record, an error, a progress file, a checkpoint or a lock."""
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
    """Return the rows of `runs` as a styled data frame with the counts of states in its caption. Raises ConfigError."""
    if name is not None:
        manifest.path_of(name)
    rows = pd.DataFrame(list(runs(profile, asked(profile, given)[0], name)), columns=COLUMNS)
    return rows.style.hide(axis="index").set_caption(counts(rows.state))


def counts(states):
    """Return the counts of states, e.g. '12 done, 2 running'."""
    return ", ".join(f"{n} {state}" for state, n in Counter(states).items())


def line(row):
    network = f"{row['mixer']:11} depth {row['depth']:<3} seed {row['seed']:<3}" if row["mixer"] else ""
    return f"{row['notebook']:20} {row['key']}  {network} {row['state']} {row['detail']}".rstrip()


def notebooks(profile):
    """Return a line for each notebook that was started."""
    from .notebooks import states

    return [f"{label:20} notebook {state} {detail}".rstrip() for label, (state, detail) in states(Store(profile)).items()]


def page(profile, given=None):
    """Return the lines of `biasnb status`: notebooks, runs, counts."""
    sweeps, troubles = asked(profile, given)
    rows = list(runs(profile, sweeps))
    return [*troubles, *notebooks(profile), *map(line, rows), counts(row["state"] for row in rows)]


class Screen:
    """The screen of `biasnb status --watch`: the unfinished runs and notebooks, as many as fit into the terminal."""

    def __init__(self, profile, given=None):
        self.profile, self.ended = profile, {}
        self.sweeps, self.troubles = asked(profile, given)

    def page(self, columns, height):
        """Return (lines, whether any run is running, interrupted or missing)."""
        rows = list(runs(self.profile, self.sweeps, ended=self.ended))
        unfinished = [row for row in rows if row["state"] in FIRST]
        unfinished.sort(key=lambda row: FIRST.index(row["state"]))
        lines = [*map(line, unfinished), *self.troubles]
        lines += [text for text in notebooks(self.profile) if " notebook done" not in text]
        room = max(1, height - 4)
        more = [f"... {len(lines) - room} more"] if len(lines) > room else []
        visible = [*lines[:room], *more, counts(row["state"] for row in rows)]
        return [text[:columns] for text in visible], any(row["state"] in GOES_ON for row in rows)
