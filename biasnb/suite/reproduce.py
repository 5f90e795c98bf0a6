"""The whole suite: train what all notebooks need, run every notebook, decide the claims, compare with the reference."""

import contextlib
import io
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ..config import BiasnbError, check_profile
from ..evidence import claims
from ..figures import board, write_figures, write_tables
from ..records import keys, places
from ..records.files import write_atomic
from ..records.progress import clock
from ..records.store import FROM_SCRATCH, Store
from ..sweep import executor, manifest
from . import notebooks, report
from .publish import agreement

AT_ONCE = 4  # notebooks
FEW = 4  # sweeps that are not worth starting processes for
OPENED_FIRST = ("20", "40", "90")  # numbers of the notebooks that the summary names


@dataclass(frozen=True)
class Step:
    """One part of `reproduce`: a notebook, or what comes before and after them."""

    name: str
    state: str  # done, failed, killed or timeout
    seconds: float
    paths: tuple = ()  # of what it wrote
    notebook: bool = False


def reproduce(profile, given=None, fresh=False, stream=None):
    """Train what you have not trained of the notebooks, run every notebook, decide the claims, write the report and compare
    with the committed reference. Whatever fails, the rest goes on; raises BiasnbError at the end, naming what failed.

    Notebooks that the profile leaves to saved records are run as they are and train nothing. `given` are settings for every
    other notebook that has a use for them; they are all checked before anything starts. `fresh` first sets earlier runs of the
    profile aside as runs/<profile>.old1, .old2, ..."""
    check_profile(profile)
    with notebooks.environment({FROM_SCRATCH: profile}):
        _reproduce(profile, given or {}, fresh, stream or sys.stdout)


def _reproduce(profile, given, fresh, stream):
    began, store, asked, sweeps = time.monotonic(), Store(profile), {}, {}
    with keys.snapshot():
        for name, taken in manifest.accepted({"profile": profile, **given}).items():
            asked[name], sweeps[name] = manifest.asked(name, taken)
        saved = {name: manifest.asked(name) for name in manifest.saved(profile)}
        asked = dict(sorted((asked | {name: values for name, (values, _) in saved.items()}).items()))
        if fresh:
            set_aside(store.folder)
    steps = []

    def step(name, make):
        steps.append(one_step(name, make, stream))

    configs = configs_by_key(sweeps.values())
    missing = [cfg for key, cfg in configs.items() if not store.has(key)]
    words = f"; {len(saved)} more show saved records" if saved else ""
    print(f"{len(configs)} runs for {len(sweeps)} notebooks, {len(missing)} to train{words}", file=stream, flush=True)
    with own_scheduler(missing):
        step("training", lambda: executor.train(list(configs.values()), store))
        for sweep in filter(None, sweeps.values()):
            sweep.save()
        for number, (done, text) in enumerate(run_notebooks(asked, profile), 1):
            heading = f"[{number}/{len(asked)}] {done.name}: {manifest.question(done.name)}"
            print(f"\n{heading}\n{text}", file=stream, flush=True)
            steps.append(done)
    shown = dict.fromkeys(sweep.store.profile for _, sweep in saved.values() if sweep)
    found = []
    step("claims", lambda: decide([store, *(Store(profile, "results") for profile in shown)], found))
    step("report", lambda: [report.write(store, found)])
    summary = summarise(profile, steps, time.monotonic() - began)
    write_atomic(store.folder / "summary.md", summary)
    print("\n" + summary, file=stream, flush=True)
    if trouble := failures(steps):
        raise BiasnbError(trouble)


def set_aside(folder):
    """Rename the folder of a profile, if there is one."""
    if folder.is_dir():
        names = (folder.with_name(f"{folder.name}.old{number}") for number in count(1))
        folder.rename(next(name for name in names if not name.exists()))


def configs_by_key(sweeps):
    """{key of a run: its Config} of all sweeps, every run once."""
    found = {}
    for sweep in filter(None, sweeps):
        found |= {run["key"]: cfg for run, cfg in zip(sweep.runs, sweep.configs, strict=True)}
    return found


@contextlib.contextmanager
def own_scheduler(missing):
    """Within the block training goes to one scheduler: that which the user has named or, if anything is missing, one of this
    machine, which notebooks use, too."""
    if not missing or os.environ.get(executor.SCHEDULER):
        yield
        return
    cluster = executor.cluster(executor.cores(), executor.gpus(missing))
    with cluster as address, notebooks.environment({executor.SCHEDULER: address}):
        yield


def one_step(name, make, stream):
    """Do one part of the suite; what goes wrong is printed and ends only this part."""
    began, state, paths = time.monotonic(), "done", None
    try:
        paths = make()
    except Exception as error:  # of whatever kind
        state = "failed"
        kind = "" if isinstance(error, BiasnbError | OSError) else f"{type(error).__name__}: "
        print(f"error: {name}: {kind}{error}", file=stream, flush=True)
    return Step(name, state, time.monotonic() - began, tuple(paths or ()))


def decide(stores, found):
    """Write the board of the claims from these stores, beside the records of the first, and add the findings to `found`;
    returns the paths."""
    found += claims.findings(stores)
    return board.write(found, stores[0].folder / "claims")


# ---- notebooks ------------------------------------------------------------------------------------------------------


def run_notebooks(asked, profile):
    """Run notebooks with these parameters, several at once, each with its share of the cores, into the folder of a profile:
    yields for each its Step and what it printed, in their order. One that fails or is killed leaves the others alone."""
    at_once = min(executor.cores(), AT_ONCE, len(asked))
    share = {"OMP_NUM_THREADS": str(executor.cores() // at_once)}  # threads that wait for each other are slow
    pool = ThreadPoolExecutor(at_once)
    with (
        notebooks.this_interpreter() as kernel,
        notebooks.environment(share),
        contextlib.chdir(places.notebooks()),  # for all threads, as Papermill itself would do for each
    ):
        running = [pool.submit(run_notebook, name, values, kernel, profile) for name, values in asked.items()]
        try:
            for future in running:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # of a command that ends early


def run_notebook(name, values, kernel, profile):
    """(the Step that this notebook was, what it printed)"""
    began, stream, state, paths = time.monotonic(), io.StringIO(), "done", ()
    try:
        paths = (notebooks.execute(name, values, stream, kernel=kernel, profile=profile),)
    except BiasnbError as error:
        state = getattr(error, "state", "failed")
        print(f"error: {error}", file=stream)
    return Step(name, state, time.monotonic() - began, paths, notebook=True), stream.getvalue()


# ---- figures --------------------------------------------------------------------------------------------------------


def draw(stores, folder):
    """Draw the tables and figures of all sweeps of these stores, from records alone: those of your own runs into
    runs/<profile>/{figures,tables}, those of the committed records into <folder>/<profile>. Many are drawn side by side.
    Returns the paths."""
    sweeps = [sweep for store in stores for sweep in store.sweeps()]
    folders = [folder] * len(sweeps)
    if len(sweeps) <= FEW:
        drawn = list(map(draw_sweep, sweeps, folders))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(executor.cores(), mp_context=spawn, initializer=follow_parent) as pool:
            drawn = list(pool.map(draw_sweep, sweeps, folders))
    return [path for paths in drawn for path in paths]


def draw_sweep(sweep, folder):
    if sweep.store.base == "runs":
        top = sweep.store.folder
        return write_figures(sweep, top / "figures") + write_tables(sweep, top / "tables")
    return write_figures(sweep, folder / sweep.store.profile) + write_tables(sweep, folder / sweep.store.profile)


def follow_parent():
    """Let this process end when the one that started it is gone, however it went."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# ---- summary --------------------------------------------------------------------------------------------------------


def failures(steps):
    """What failed, notebooks and other steps apart, in words; "" if nothing did."""
    every = [step for step in steps if step.notebook]
    failed = [step.name for step in every if step.state != "done"]
    others = [step.name for step in steps if step.state != "done" and not step.notebook]
    words = [f"{len(failed)} of {len(every)} notebooks failed: {', '.join(failed)}"] if failed else []
    words += [f"other steps failed: {', '.join(others)}"] if others else []
    return "; ".join(words)


def summarise(profile, steps, seconds):
    """The closing page of `reproduce` as Markdown: what ran, how long, what to open, agreement with the reference."""
    every = [step for step in steps if step.notebook]
    done = sum(step.state == "done" for step in every)
    lines = [f"# {profile}: {done} of {len(every)} notebooks in {clock(seconds)}", ""]
    lines += ["| step | state | time |", "|---|---|---|"]
    lines += [f"| {step.name} | {step.state} | {clock(step.seconds)} |" for step in steps]
    lines += ["", "Open:", ""]
    written = [path for step in steps if not step.notebook for path in step.paths]
    opened = [path for path in written if path.suffix == ".html" or path.name == "claims.md"]
    opened += [path for step in every if step.name.startswith(OPENED_FIRST) for path in step.paths]
    opened += sorted((Store(profile).folder / "figures").glob("*.png"))
    lines += [f"- {relative_to_root(path)}" for path in opened]
    return "\n".join([*lines, "", *agreement(profile), ""])


def relative_to_root(path):
    return path.relative_to(places.root()) if Path(path).is_relative_to(places.root()) else path
