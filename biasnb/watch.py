"""How all runs of a profile stand: done, running and how far, failed, preempted, killed, missing. Reads files only."""

import pandas as pd

from .config import ConfigError
from .experiments import EXPERIMENTS, fitting, plan
from .notebook import states
from .store import Store

COLUMNS = ("notebook", "key", "mixer", "depth", "seed", "state", "detail")
FIRST = ("running", "failed", "broken", "killed", "preempted", "missing")  # of a short table, in this order
SINGLE = "(single run)"


def asked(profile, given=None):
    """(grids that the notebooks ask for with these settings, a line for each notebook that cannot be run so)."""
    grids, troubles = [], []
    for name in EXPERIMENTS:
        try:
            grids.append(plan(name, profile, fitting(name, given or {}))[0])
        except ConfigError as error:
            troubles.append(f"{name:20} cannot be run so: {error}")
    return grids, troubles


def runs(profile, given=None, name=None):
    """A row {notebook, key, mixer, depth, seed, state, detail} for each run that a notebook, or `name` alone, asks for or has
    asked for, and for single ones. A run that several notebooks ask for has one row."""
    store, seen = Store(profile), set()
    for grid in [*asked(profile, given)[0], *store.grids()]:
        for run in grid.runs:
            if run["key"] not in seen and name in (None, grid.content["experiment"]):
                seen.add(run["key"])
                yield row(store, grid.name, run["key"], run)
    for path in sorted(store.folder.glob("*.json")):
        if name is None and path.stem not in seen and "-" not in path.stem:
            yield row(store, SINGLE, path.stem, {})


def row(store, notebook, key, run):
    state, detail = store.status(key)
    if not run and state in ("done", "diverged"):
        run = store.load(key)["config"]
    return dict(zip(COLUMNS, (notebook, key, *(run.get(name, "") for name in COLUMNS[2:5]), state, detail), strict=True))


def table(profile, given=None, name=None):
    """The rows of `runs` as a frame, and its counts of states as the frame's caption in a notebook."""
    rows = pd.DataFrame(list(runs(profile, given, name)), columns=COLUMNS)
    return rows.style.hide(axis="index").set_caption(counts(rows.state))


def counts(kinds):
    """'12 done, 2 running'"""
    kinds = list(kinds)
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def line(row):
    network = f"{row['mixer']:11} depth {row['depth']:<3} seed {row['seed']:<3}" if row["mixer"] else ""
    return f"{row['notebook']:20} {row['key']}  {network} {row['state']} {row['detail']}".rstrip()


def page(profile, given=None, short=None):
    """The lines of `biasnb status`: notebooks, runs, counts. `short`: only so many runs, those that are under way or not well
    first, as a screen holds."""
    rows, troubles = list(runs(profile, given)), asked(profile, given)[1]
    lines = [f"{label:20} notebook {state} {detail}".rstrip() for label, (state, detail) in states(Store(profile)).items()]
    if short is not None:
        chosen = sorted((row for row in rows if row["state"] in FIRST), key=lambda row: FIRST.index(row["state"]))
        lines = [text for text in lines if " notebook done" not in text]
        more = len(chosen) + len(lines) - short
        lines = [*map(line, chosen), *lines][:short] + ([f"... {more} more"] if more > 0 else [])
    else:
        lines += map(line, rows)
    return [*troubles, *lines, counts(row["state"] for row in rows)]
