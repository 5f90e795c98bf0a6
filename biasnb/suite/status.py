"""How all runs of a profile stand: done, running and how far, failed, interrupted, missing. Reads files only."""

import re

import pandas as pd

from ..config import ConfigError, check_profile
from ..records.store import Store
from ..sweep.experiments import EXPERIMENTS, experiment, fitting, plan
from .notebook import states

COLUMNS = ("notebook", "key", "mixer", "depth", "seed", "state", "detail")
FIRST = ("running", "failed", "broken", "interrupted", "missing")  # of a short table, in this order
GOES_ON = ("running", "missing", "interrupted")


def asked(profile, given=None):
    """(sweeps that the notebooks ask for with these settings, a line for each notebook that cannot be run so)."""
    sweeps, troubles = [], []
    for name in EXPERIMENTS:
        try:
            sweeps.append(plan(name, profile, fitting(name, given or {}))[0])
        except ConfigError as error:
            troubles.append(f"{name:20} cannot be run so: {error}")
    return sweeps, troubles


def runs(profile, sweeps, name=None, done=None):
    """A row {notebook, key, mixer, depth, seed, state, detail} for each run of these sweeps, of what notebooks have asked for
    before, and for single ones; of one notebook if `name` is given. A run of several has one row. `done`, key -> row, is
    filled with rows that will not change, and taken from."""
    store, seen = Store(profile), set()
    done = {} if done is None else done
    for sweep in [*sweeps, *store.sweeps()]:
        for run in sweep.runs:
            if run["key"] not in seen and name in (None, sweep.content["notebook"]):
                seen.add(run["key"])
                yield done.get(run["key"]) or row(store, sweep.name, run["key"], run, done)
    for key in sorted(kept(store) - seen) if name is None else ():
        yield done.get(key) or row(store, "(single run)", key, {}, done)


def kept(store):
    """Keys of all runs of which there is something: a record, an error, how far it is, states."""
    files = (path for suffix in (".json", ".error", ".progress") for path in store.folder.glob(f"*{suffix}"))
    names = {path.stem for path in (*files, *store.folder.glob("checkpoints/*"))}
    names |= {path.stem for path in store.folder.glob("locks/*.lock") if store.busy(path.stem)}
    return {name for name in names if re.fullmatch("[0-9a-f]{16}", name)}


def row(store, notebook, key, run, done):
    state, detail = store.status(key)
    if not run and state in ("done", "diverged"):
        run = store.load(key)["config"]
    found = dict(zip(COLUMNS, (notebook, key, *(run.get(name, "") for name in COLUMNS[2:5]), state, detail), strict=True))
    if state in ("done", "diverged"):
        done[key] = found
    return found


def table(profile, name=None, given=None):
    """The rows of `runs` as a styled frame for a notebook, with the counts of states as its caption. Raises ConfigError."""
    check_profile(profile)
    if name is not None:
        experiment(name)
    rows = pd.DataFrame(list(runs(profile, asked(profile, given)[0], name)), columns=COLUMNS)
    return rows.style.hide(axis="index").set_caption(counts(rows.state))


def counts(kinds):
    """'12 done, 2 running'"""
    kinds = list(kinds)
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def line(row):
    network = f"{row['mixer']:11} depth {row['depth']:<3} seed {row['seed']:<3}" if row["mixer"] else ""
    return f"{row['notebook']:20} {row['key']}  {network} {row['state']} {row['detail']}".rstrip()


def notebooks(profile):
    return [f"{label:20} notebook {state} {detail}".rstrip() for label, (state, detail) in states(Store(profile)).items()]


def page(profile, given=None):
    """The lines of `biasnb status`: notebooks, runs, counts."""
    sweeps, troubles = asked(profile, given)
    rows = list(runs(profile, sweeps))
    return [*troubles, *notebooks(profile), *map(line, rows), counts(row["state"] for row in rows)]


class Screen:
    """`biasnb status --watch`: what is under way or not well, as much of it as a terminal holds."""

    def __init__(self, profile, given=None):
        self.profile, self.done = profile, {}
        self.sweeps, self.troubles = asked(profile, given)

    def page(self, columns, height):
        """(lines, whether something is left that could go on)."""
        rows = list(runs(self.profile, self.sweeps, done=self.done))
        open_ones = sorted((row for row in rows if row["state"] in FIRST), key=lambda row: FIRST.index(row["state"]))
        lines = [*map(line, open_ones), *self.troubles]
        lines += [text for text in notebooks(self.profile) if " notebook done" not in text]
        room = max(1, height - 4)
        more = [f"... {len(lines) - room} more"] if len(lines) > room else []
        shown = [*lines[:room], *more, counts(row["state"] for row in rows)]
        return [text[:columns] for text in shown], any(row["state"] in GOES_ON for row in rows)
