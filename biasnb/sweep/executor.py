"""Several runs at once: on a CPU small networks train faster side by side, one thread each, than one after the other.

`python -m biasnb.sweep.executor PROFILE` is one worker: it reads Configs as one line of JSON, trains each that nobody else has
under way, and ends when its parent is gone."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, replace
from functools import partial

from ..config import BiasnbError, Config, describe
from ..operators import MIXERS
from ..records import places
from ..records.keys import baseline_key, key
from ..records.progress import Progress
from ..records.store import Store

AT_MOST = 16
STOP_SECONDS = 6


def train(configs, store):
    """Make the records that are missing: by one worker per core, so that every run has one thread wherever it is trained, or
    here on a GPU and for operators that only this process knows. Raises BiasnbError for the first that failed; an interrupt
    stops all workers, and their runs go on from their checkpoints the next time."""
    store.tidy()
    needed = {(key(cfg), baseline_key(cfg)): cfg for cfg in dict.fromkeys(configs)}
    missing = {keys: cfg for keys, cfg in needed.items() if lacks(keys, store)}
    if not missing:
        return
    if on_gpu(configs):
        return here(seeds_of(missing.values()), store)
    apart = {keys: cfg for keys, cfg in missing.items() if isinstance(MIXERS[cfg.mixer].operator, str)}
    if apart:
        side_by_side(min(cores(), len(apart), AT_MOST), apart, store)
    if len(apart) < len(missing):
        from ..training.loop import threads

        with threads(1):  # as a worker has, so that a run is the same wherever it is trained
            here([[cfg] for keys, cfg in missing.items() if keys not in apart], store)


def here(groups, store):
    """Train lists of Configs that differ in their seed only, one list after the other, in this process."""
    from ..training import run as runs  # torch is needed only here

    done, every = 0, sum(map(len, groups))
    for group in groups:
        runs.baseline(group[0], store)
        runs.run_together(group, store, f"run {done + 1}/{every}: ")
        done += len(group)


def seeds_of(configs):
    """Lists of Configs that differ in their seed only."""
    groups = {}
    for cfg in configs:
        groups.setdefault(replace(cfg, seed=0), []).append(cfg)
    return list(groups.values())


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def lacks(keys, store):
    """Whether a record is missing: of a run or of its baselines."""
    return not all(store.has(k) for k in keys)


def on_gpu(configs):
    """Whether these runs would use a GPU; imports torch only where a driver is installed."""
    if all(cfg.device == "cpu" for cfg in configs) or not shutil.which("nvidia-smi"):
        return False
    import torch

    return torch.cuda.is_available()


def side_by_side(count, missing, store):
    """Train by workers; those that were killed are replaced as long as that brings records."""
    report, left = Progress(f"{count} workers", len(missing), unit="runs"), len(missing)
    while killed := work(count, missing, store, report):
        before, left = left, sum(lacks(keys, store) for keys in missing)
        if not left or left == before:
            break
        print(f"{killed} workers were killed; {left} runs go on with new ones", flush=True)
    left = [k for keys in missing for k in keys if not store.has(k)]
    if left:
        states = {k: store.status(k) for k in left}
        k = next((k for k in left if states[k][0] != "missing"), left[0])
        state, detail = states[k]
        undone = sum(lacks(keys, store) for keys in missing)
        why = detail or f"see {store.folder / 'workers.log'}"
        raise BiasnbError(f"{k}: {state}, {why} ({undone} of {len(missing)} runs not done)")
    report.finish(f"{len(missing)} runs trained")


def work(count, missing, store, report):
    """Let `count` workers train what is still missing; returns how many of them were killed."""
    command = [sys.executable, "-m", "biasnb.sweep.executor", store.profile]
    path = os.pathsep.join(filter(None, [str(places.PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    workers, left = [], {keys for keys in missing if lacks(keys, store)}
    asked = json.dumps([asdict(cfg) for keys, cfg in missing.items() if keys in left]) + "\n"
    store.folder.mkdir(parents=True, exist_ok=True)
    with open(store.folder / "workers.log", "a") as log, stopping(workers):
        log.truncate(0)
        for _ in range(min(count, len(left))):
            workers.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE,
                                            stdout=log, stderr=log, text=True))  # fmt: skip
            with contextlib.suppress(BrokenPipeError):  # it died at once: what is not done is said below
                workers[-1].stdin.write(asked)
                workers[-1].stdin.flush()
        while any(worker.poll() is None for worker in workers):
            time.sleep(0.2)
            left = {keys for keys in left if lacks(keys, store)}
            report(len(missing) - len(left), latest(log.name), partial(under_way, left, missing, store))
    return sum(worker.returncode < 0 for worker in workers)


def under_way(left, missing, store):
    """{run, step, loss, left} in words for each run that is being trained and for a second has been."""
    found = [(cfg, keys[0], store.progress(keys[0])) for keys, cfg in missing.items() if keys in left]
    return [{"run": describe(cfg), **seen} for cfg, key, seen in found if seen and store.busy(key)]


def latest(path):
    """The last line that a worker wrote: which run, how far, how long it takes."""
    with open(path, "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - 400))
        return (log.read().decode(errors="replace").strip().splitlines() or ["starting"])[-1]


@contextlib.contextmanager
def stopping(workers):
    """Whatever ends the block, no worker outlives it."""
    try:
        yield
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.stdin.close()
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def main(profile):
    """One worker; the exit code says whether a run failed."""
    configs = [Config(**fields) for fields in json.loads(sys.stdin.readline())]
    threading.Thread(target=stop_with_parent, daemon=True).start()
    return train_in_turn(configs, Store(profile))


def train_in_turn(configs, store):
    import torch

    from ..training import run as runs

    torch.set_num_threads(1)
    code, began = 0, time.time()
    for cfg in configs:
        error = store.path(key(cfg), ".error")
        if error.is_file() and error.stat().st_mtime > began:  # another worker has just tried
            continue
        try:
            if not store.busy(key(cfg)):  # else another worker trains it
                runs.run(cfg, store)
            runs.baseline(cfg, store)
        except BiasnbError as error:
            print(f"error: {error}", flush=True)
            code = 1
        except Exception:  # of any kind: the other runs go on
            traceback.print_exc()
            code = 1
    return code


def stop_with_parent():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
