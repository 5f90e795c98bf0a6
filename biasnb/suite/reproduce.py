"""The whole suite: run every notebook, draw what the records say, compare with the reference, publish."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from ..config import PROFILES, BiasnbError, check_profile
from ..evidence import claims
from ..figures import board as verdicts
from ..records import places
from ..records.files import StoreError, write_atomic
from ..records.progress import clock
from ..records.store import Store
from ..sweep import executor as workers
from ..sweep.experiments import EXPERIMENTS, plan
from . import parameters, report

AT_ONCE = 4  # notebooks
FEW = 4  # sweeps that are not worth starting processes for
# How far the same run may be off on another machine: metric -> (path in the record, band, unit).
BANDS = {
    "masked PSNR": (("psnr", "test"), 0.1, "dB"),
    "masked loss": (("loss", "test"), 0.01, ""),
    "probe": (("probe", "chosen", "test"), 0.02, ""),
    "probe at init": (("init_probe", "chosen", "test"), 0.02, ""),
}


def reproduce(profile, given=None, fresh=False, stream=sys.stdout):
    """Train what all notebooks need, draw it, run every notebook with the profile, draw what these have added, and compare.
    Returns the names that failed.

    `given` are parameters for every notebook, as for `notebook.execute`. `fresh` first sets earlier runs of the
    profile aside as runs/<profile>.old1, .old2, ..."""
    check_profile(profile)
    store = Store(profile)
    given = {"profile": profile, **(given or {})}
    asked = {name: parameters.accepted(name, given) for name in EXPERIMENTS}
    if fresh and store.folder.is_dir():
        aside = (store.folder.with_name(f"{profile}.old{n}") for n in count(1))
        store.folder.rename(next(folder for folder in aside if not folder.exists()))
    failed, start = [], time.monotonic()
    requests = {name: parameters.request(name, parameters.full(name, asked[name])) for name in EXPERIMENTS}
    plans = [plan(name, *request) for name, request in requests.items()]
    configs = [cfg for _, planned in plans for cfg in planned]
    print(f"{len(set(configs))} runs for {len(EXPERIMENTS)} notebooks", file=stream, flush=True)
    before = set(store.folder.glob("*.json"))
    try:
        workers.train(configs, store)
        state = "done"
    except BiasnbError as error:
        state = "failed"  # the notebooks that need what failed say so once more
        print(f"error: {error}", file=stream, flush=True)
    print(f"{len(set(store.folder.glob('*.json')) - before)} new records", file=stream, flush=True)
    rows, found = [("training", state, time.monotonic() - start, None)], []
    for sweep, planned in plans:
        if planned:
            sweep.save()
    paths = []

    def step(name, make):
        began, state = time.monotonic(), "done"
        try:
            paths.extend(path for path in make() if path not in paths)
        except (BiasnbError, BrokenExecutor, OSError) as error:
            failed.append(name)
            state = "failed"
            print(f"error: {error}", file=stream, flush=True)
        rows.append((name, state, time.monotonic() - began, None))

    def decided():
        found.extend(claims.findings([store]))
        return verdicts.write(found, store.folder / "claims")

    step("figures", lambda: render(store, [sweep for sweep, planned in plans if planned and not sweep.missing()]))
    for i, (name, state, seconds, path, text) in enumerate(notebooks(asked, {p.content["notebook"]: p for p, _ in plans}), 1):
        print(f"\n[{i}/{len(EXPERIMENTS)}] {name}: {EXPERIMENTS[name].question}\n{text}", file=stream, flush=True)
        rows.append((name, state, seconds, path))
        failed += [] if path else [name]
    step("further figures", lambda: render(store))
    step("claims", decided)
    step("report", lambda: [report.write(store, found)])
    summary = summarise(profile, rows, time.monotonic() - start, paths)
    write_atomic(store.folder / "summary.md", summary)
    print("\n" + summary, file=stream, flush=True)
    return failed


def notebooks(asked, sweeps):
    """Run all notebooks, several at once, each with its share of the cores: yields (name, state, seconds, path of the executed
    copy or None, what it printed). One that fails or is killed leaves the others alone; if this is stopped, all are."""
    from . import notebook

    side_by_side = min(workers.cores(), AT_ONCE)
    unfinished, threads = list(EXPERIMENTS), os.environ.get("OMP_NUM_THREADS")
    pool = ThreadPoolExecutor(side_by_side)
    with notebook.this_interpreter() as kernel, contextlib.chdir(places.notebooks()):
        os.environ["OMP_NUM_THREADS"] = str(workers.cores() // side_by_side)  # threads that wait for each other are slow
        try:
            running = {name: pool.submit(executed, name, asked[name], sweeps[name], kernel) for name in EXPERIMENTS}
            for name in EXPERIMENTS:
                done = running[name].result()
                unfinished.remove(name)
                yield done
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            notebook.end_descendants()
            pool.shutdown()
            for name in unfinished:
                if notebook.state(sweeps[name].store, sweeps[name].name)[0] == "killed":
                    notebook.note(sweeps[name].store, sweeps[name].name, "preempted")
            raise
        finally:
            notebook.set_environment({"OMP_NUM_THREADS": threads})


def executed(name, given, sweep, kernel):
    """Run one notebook, unless it has been run and nothing that it follows from has changed: (name, state, seconds, path of
    the executed copy or None, what it printed)."""
    from . import notebook

    began, stream, state = time.monotonic(), io.StringIO(), "done"
    path = None if sweep.missing() else notebook.made(name, given, sweep.store, sweep.name)
    if path:
        return name, state, time.monotonic() - began, path, "nothing has changed since it was run"
    try:
        path = notebook.execute(name, given, stream, kernel=kernel)
    except BiasnbError as error:
        state = getattr(error, "state", "failed")
        print(f"error: {error}", file=stream)
    return name, state, time.monotonic() - began, path, stream.getvalue()


def render(store, sweeps=None, folder=None):
    """Draw all tables and figures of a store's sweeps (None: all) into runs/<profile>/{figures,tables}; for the committed
    reference into figures/<profile>. Returns the paths. Reads records only; many sweeps are drawn side by side."""
    sweeps, draw = store.sweeps() if sweeps is None else sweeps, partial(render_sweep, folder=folder)
    if len(sweeps) <= FEW:
        paths = list(map(draw, sweeps))
    else:
        with ProcessPoolExecutor(initializer=alone, initargs=(os.getpid(),)) as pool:
            paths = list(pool.map(draw, sweeps))
    return [path for found in paths for path in found]


def alone(parent):
    """A process that draws: it goes with its parent, which sees to signals."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, args=(parent,), daemon=True).start()


def follow(parent):
    """End this process once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def render_sweep(sweep, folder=None):
    from ..figures import write_figures, write_tables

    own = sweep.store.folder
    return write_figures(sweep, folder or own / "figures") + write_tables(sweep, folder or own / "tables")


def newest(profile):
    """The store to show: your own runs of the profile if there are any, else the committed reference."""
    own = Store(profile)
    return own if own.sweeps() else Store(profile, "results")


def published(*asked):
    """The profiles that have committed records. Raises StoreError if one asked for (None: none) is not among them."""
    found = [profile for profile in PROFILES if (places.results() / profile).is_dir()]
    for profile in sorted(set(asked) - {None, *found}):
        raise StoreError(f"profile: {profile!r} has no records in results/; published are {found}")
    return found


def render_reference(profiles=None):
    """Draw figures/<profile> from results/<profile> for every published profile, and figures/claims.* from all of them.
    Returns the paths. Raises StoreError for a profile that is not published."""
    found = published(*(profiles or ()))
    stores = {profile: Store(profile, "results") for profile in found}
    folder = places.root() / "figures"
    paths = [path for profile in profiles or found for path in render(stores[profile], folder=folder / profile)]
    return paths + verdicts.write(claims.findings(list(stores.values())), folder)


def summarise(profile, rows, seconds, paths):
    """The closing page of `reproduce` as Markdown: what ran, how long, what to open, agreement with the reference."""
    done = sum(state == "done" for name, state, *_ in rows if name in EXPERIMENTS)
    lines = [f"# {profile}: {done} of {len(EXPERIMENTS)} notebooks in {clock(seconds)}", ""]
    lines += ["| step | state | time |", "|---|---|---|"]
    lines += [f"| {name} | {state} | {clock(took)} |" for name, state, took, _ in rows]
    lines += ["", "Open:", ""]
    opened = [path for path in paths if path.suffix == ".html" or path.name == "claims.md"]
    opened += [path for name, _, _, path in rows if path and name.startswith(("20", "40", "90"))]
    opened += [path for path in paths if path.suffix == ".png"]
    lines += [f"- {shown(path)}" for path in opened]
    lines += ["", *agreement(profile), ""]
    return "\n".join(lines)


def shown(path):
    return path.relative_to(places.root()) if Path(path).is_relative_to(places.root()) else path


def agreement(profile):
    """This machine against results/<profile>, metric by metric, over the runs that both have: lines of Markdown."""
    here, there = Store(profile), Store(profile, "results")
    keys = [p.stem for p in sorted(there.folder.glob("*.json")) if here.has(p.stem) and "-" not in p.stem]
    if not keys:
        return [f"No committed reference for these runs in results/{profile}; nothing to compare."]
    broken = [key for key in keys if "broken" in (here.status(key)[0], there.status(key)[0])]
    pairs = [(here.load(key), there.load(key)) for key in keys if key not in broken]
    other = [a["key"] for a, b in pairs if a["status"] != b["status"]]
    pairs = [(a, b) for a, b in pairs if a["status"] == b["status"] == "done"]
    moved = sum(a["data"]["fingerprint"] != b["data"]["fingerprint"] for a, b in pairs)
    lines = [f"Against the reference in results/{profile}, {len(keys)} runs:", ""]
    lines += ["| metric | band | median difference | largest | within the band |", "|---|---|---|---|---|"]
    for name, (path, band, unit) in BANDS.items():
        both = [(value(a, path), value(b, path)) for a, b in pairs]
        off = sorted(abs(x - y) for x, y in both if None not in (x, y))
        if off:
            inside = sum(x <= band for x in off)
            verdict = "yes" if inside == len(off) else f"NO, {inside} of {len(off)}"
            lines.append(f"| {name} | ± {band:g} {unit} | {off[len(off) // 2]:.2g} | {off[-1]:.2g} | {verdict} |")
    if broken:
        lines += ["", f"Broken records, see `biasnb status`: {', '.join(broken)}"]
    if other:
        lines += ["", f"Ended otherwise than in the reference: {', '.join(other)}"]
    if moved:
        lines += ["", f"{moved} runs read other pixels than the reference: an image library decodes or resizes otherwise."]
    return lines


def value(record, path):
    for name in path:
        record = record[name]
    return record


def publish(profile, names=()):
    """Promote the validated records of runs/<profile> that its sweeps ask for to results/<profile>: of the sweeps named,
    or of all with the profile's own settings. Everything is read and checked before anything is written; what was
    published before stays. Raises StoreError if a record is missing or broken.

    Returns (number of records, sweeps left out, records made from uncommitted code)."""
    here, there = Store(profile), Store(profile, "results")
    known = {sweep.name: sweep for sweep in here.sweeps() if sweep.keys}
    for name in names:
        if name not in known:
            raise StoreError(f"{name}: no such sweep in {here.folder}; there are {', '.join(known) or 'none'}")
    chosen = [sweep for sweep in known.values() if sweep.name in names or not (names or sweep.content["changed"])]
    if not chosen:
        raise StoreError(f"{here.folder}: holds no sweep to publish; run `biasnb reproduce --profile {profile}` first")
    missing = [(sweep.name, key) for sweep in chosen for key in sweep.missing()]
    if missing:
        raise StoreError(f"{missing[0][0]}: {len(missing)} records are missing, first {missing[0][1]}; finish the run first")
    files, dirty = {}, 0
    for key in dict.fromkeys(key for sweep in chosen for key in (*sweep.keys, *sweep.searches)):
        record = here.load(key)
        dirty += bool(record.get("environment", {}).get("dirty"))
        files[f"{key}.json"] = here.path(key).read_bytes()
        if "arrays" in record:
            here.arrays(key)
            files[f"{key}.npz"] = here.path(key, ".npz").read_bytes()
    for name, content in files.items():
        write_atomic(there.folder / name, content)
    for sweep in chosen:
        replace(sweep, store=there).save()
    return sum(name.endswith(".json") for name in files), sorted(set(known) - {sweep.name for sweep in chosen}), dirty
