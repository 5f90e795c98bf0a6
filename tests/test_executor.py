"""Runs on Dask: real processes, real signals, workers that share no folder."""

import contextlib
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from forked import BRIEF, environment, pictures, python, until, workers_of
from synthetic import results, run_record

from biasnb.config import BiasnbError, configure
from biasnb.networks import mixing
from biasnb.operators import MIXERS, Mixer
from biasnb.records.keys import baseline_key, init_key, key
from biasnb.records.store import Store
from biasnb.sweep import executor
from biasnb.training import run
from biasnb.training.loop import threads

SECONDS = 120  # that anything may take on a busy machine
# Trains Configs as the command line does, on a local cluster of two.
SCRIPT = """
import json, sys
from biasnb.config import Config
from biasnb.records.store import Store
from biasnb.sweep import executor
if __name__ == "__main__":
    executor.cores = lambda: 2
    executor.train([Config(**fields) for fields in json.loads(sys.argv[1])], Store("smoke"))
"""


def asked(folder, **fields):
    return configure("smoke", dataset="folder", data_dir=str(folder), labelled=0, device="cpu", **fields)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def made(tmp_path_factory, photographs, cluster):
    """What one call of `executor.train` leaves: (store, what it raised, Configs that can be run, and those that cannot).

    Of the latter one has too large a batch, and one an image that cannot be read."""
    root = tmp_path_factory.mktemp("made")
    for name in ("a/0.png", "b/0.png"):
        (root / "broken" / name).parent.mkdir(parents=True)
        (root / "broken" / name).write_bytes(b"no image")
    good = [asked(photographs, mixer=mixer, seed=seed) for mixer in ("convmixer", "igpt") for seed in (0, 1)]
    good.append(asked(photographs, pretext="supervised"))
    bad = [asked(photographs, batch=4096), asked(root / "broken")]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("BIASNB_ROOT", str(root))
        patch.setenv(executor.SCHEDULER, cluster)
        store = Store("smoke")
        with pytest.raises(BiasnbError) as caught:
            executor.train([*bad, *good, good[0]], store)
    said = [line for line in printed.getvalue().splitlines() if line.startswith("pictures: ")]
    assert len(said) == 1 and re.search(r"train, \d+ test images in \d class", said[0])
    return store, str(caught.value), good, bad


def test_a_run_that_fails_is_named_in_a_line_and_the_others_are_done(made):
    store, error, good, bad = made
    assert all(store.status(key(cfg))[0] == "done" for cfg in good) and store.has(baseline_key(good[0]))
    assert all(store.has(init_key(cfg)) for cfg in good)
    assert re.match(r"4 of 15 records failed: ", error) and "\n" not in error
    assert "batch: 4096 images, but pictures has" in error and "baselines of folder: " in error
    assert [store.status(key(cfg))[0] for cfg in bad] == ["failed", "failed"]
    assert "a/0.png: not readable as an image" in store.status(key(bad[1]))[1]


def test_what_is_saved_asks_no_scheduler(made, monkeypatch):
    store, _, good, _ = made
    monkeypatch.setattr(executor, "client", None)
    written = {path: path.stat().st_mtime_ns for path in store.folder.glob("*.json")}
    executor.train(good, store)
    assert {path: path.stat().st_mtime_ns for path in store.folder.glob("*.json")} == written


def test_the_cluster_of_this_machine_and_workers_in_separate_folders_make_equal_records(root, made, photographs, monkeypatch):
    """Started as a user would, with a scheduler file; each worker has a folder of its own, none that of the store."""
    store, _, good, _ = made
    file, processes = root / "scheduler.json", []
    words = f"dask scheduler --host 127.0.0.1 --port 0 --no-dashboard --scheduler-file {file}".split()
    try:
        command = [sys.executable, "-m", *words]
        processes.append(subprocess.Popen(command, env=environment(root), stderr=subprocess.DEVNULL))
        until(file.is_file)
        for name in ("one", "two"):
            (root / name).mkdir()
            words = f"dask worker --nthreads 1 --nworkers 1 --no-dashboard --host 127.0.0.1 --scheduler-file {file}".split()
            worker = [sys.executable, "-m", *words, "--local-directory", str(root / name), "--preload", BRIEF]
            env = environment(root / name)
            processes.append(subprocess.Popen(worker, env=env, cwd=root / name, stderr=subprocess.DEVNULL))
        monkeypatch.setenv(executor.SCHEDULER, str(file))
        executor.train(good, Store("smoke"))
    finally:
        for process in processes:
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            _, alive = psutil.wait_procs(family, 20)
            assert not alive
    trained = {name: {path.stem for path in (root / name / "runs/smoke").glob("*.npz")} for name in ("one", "two")}
    assert trained["one"] and trained["two"] and not trained["one"] & trained["two"]
    assert results(Store("smoke"), good) == results(store, good)


SPOILS = {
    "no record": lambda files: files | {".json": b"{"},
    "lacks config": lambda files: files | {".json": files[".json"].replace(b'"config"', b'"cfg"')},
    "another record": lambda files: files | {".json": files[".json"].replace(b'"key": "', b'"key": "0')},
    "do not match": lambda files: files | {".npz": files["other"]},
    "arrays": lambda files: {".json": files[".json"]},
}


@pytest.mark.parametrize("said", SPOILS)
def test_what_a_worker_returns_is_written_only_if_it_is_valid(root, said):
    theirs, store = Store("smoke", "theirs"), Store("smoke")
    record = theirs.save(run_record("mixer", 2, 0), {"correct": np.arange(3, dtype=np.uint8)})
    files = {suffix: theirs.path(record["key"], suffix).read_bytes() for suffix in (".npz", ".json")}
    theirs.save(run_record("mixer", 2, 1), {"correct": np.arange(4, dtype=np.uint8)})
    other = next(path.read_bytes() for path in theirs.folder.glob("*.npz") if path.stem != record["key"])
    spoilt = {suffix: content for suffix, content in SPOILS[said](files | {"other": other}).items() if suffix != "other"}
    task = executor.Task("run", (record["key"],), (configure("smoke"),))

    def returned(files):
        found = {f"{record['key']}{suffix}": content for suffix, content in files.items()}
        result = {"files": found, "error": None, "worker": "w"}
        return SimpleNamespace(status="finished", result=lambda: result, release=lambda: None)

    assert said in executor.saved(returned(spoilt), task, store) and not list(store.folder.glob("*.*"))
    assert executor.saved(returned(files), task, store) is None and store.load(record["key"]) == record


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tls://127.0.0.1:1", "pigeon://127.0.0.1:1"])
def test_a_scheduler_that_cannot_be_reached_is_named(root, monkeypatch, address):
    monkeypatch.setenv(executor.SCHEDULER, address)
    monkeypatch.setattr(executor, "REACH", "1s")
    with pytest.raises(BiasnbError, match=rf"^scheduler: {address} cannot be reached .* leave --scheduler out$"):
        executor.train([configure("smoke")], Store("smoke"))


def test_a_user_defined_operator_trains_on_workers_under_the_key_that_it_has_here(root, scheduler, photographs, monkeypatch):
    """An edit outside its class, of a constant that a helper reads, makes another run."""
    store, found = Store("smoke"), {}

    def train(gain):
        def helper(x):
            return gain * x

        class Mine(mixing.Identity):
            def forward(self, x, query=None):
                return helper(super().forward(x, query))

        monkeypatch.setitem(MIXERS, "mine", Mixer("mine", Mine, local=True, shared=True))
        cfg = asked(photographs, mixer="mine")
        executor.train([cfg], store)
        found[key(cfg)] = store.load(key(cfg))["psnr"]["test"]

    for gain in (1.0, 1e-9, 1.0):
        train(gain)
    assert len(set(found.values())) == len(found) == 2
    assert not (store.folder / "workers.log").exists()  # nothing was trained here


# ---- signals --------------------------------------------------------------------------------------------------------


def start(root, runs):
    command = [sys.executable, root / "asks.py", json.dumps([asdict(cfg) for cfg in runs])]
    (root / "asks.py").write_text(SCRIPT)
    env = environment(root, BIASNB_CHECKPOINT_SECONDS="0.05", BIASNB_SCHEDULER=None)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def owner(store, cfg, processes):
    """The process that holds the lock of a run."""
    path = os.fspath(store.folder / "locks" / f"{key(cfg)}.lock")
    return next(process for process in processes if path in [file.path for file in process.open_files()])


FRESH_PAGES = """
import resource, torch
from biasnb.config import Config
from biasnb.training import run
run.pick_device(Config())
for _ in range(2):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds of glibc's malloc")
def test_large_tensors_use_memory_again_whatever_trim_threshold_dask_gives_its_workers(root):
    faults = int(python(root, "-c", FRESH_PAGES, MALLOC_TRIM_THRESHOLD_="65536"))  # as a nanny of Dask gives
    assert faults < 1024  # one tensor has 1024 pages, 50 fresh ones 51 200


@pytest.mark.fault("F14")
def test_a_worker_that_is_killed_has_its_run_done_by_another(root, photographs, monkeypatch):
    store = Store("smoke")
    runs = [asked(photographs, seed=seed, steps=steps, augment="crop") for seed, steps in ((0, 800), (1, 4))]
    process = start(root, runs)
    until(lambda: any(store.checkpoints(key(runs[0])).glob("*.safetensors")) or process.poll() is not None)
    owner(store, runs[0], workers_of(psutil.Process(process.pid))).kill()
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, said
    log = (store.folder / "workers.log").read_text()
    assert log.count("trained in") == 2
    monkeypatch.setenv("BIASNB_ROOT", str(root / "undisturbed"))
    undisturbed = Store("smoke")
    with threads(1):  # as a worker has
        for cfg in runs:
            run.run(cfg, undisturbed)
    assert results(store, runs) == results(undisturbed, runs)


@pytest.mark.fault("F8")
def test_whatever_ends_who_asked_leaves_no_process(root, photographs):
    """Here without a chance to do anything about it; SIGTERM and SIGINT are in test_faults_suite."""
    store, runs = Store("smoke"), [asked(photographs, seed=seed, steps=100_000) for seed in (0, 1)]
    process = start(root, runs)
    until(lambda: all(any(store.checkpoints(key(cfg)).glob("*.safetensors")) for cfg in runs) or process.poll() is not None)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, 5)
    assert not alive
    assert {store.status(key(cfg))[0] for cfg in runs} == {"interrupted"}
