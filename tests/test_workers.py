"""Runs side by side: real processes and real signals."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from biasnb.config import BiasnbError, configure
from biasnb.networks import mixing
from biasnb.operators import MIXERS, Mixer
from biasnb.records import places
from biasnb.records.keys import baseline_key, key
from biasnb.records.store import Store
from biasnb.sweep import executor as workers
from biasnb.training import run

CHECKOUT = places.CHECKOUT


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def two_cores(monkeypatch):
    """As on a machine with two cores and no GPU."""
    use_two_cores(monkeypatch)


def use_two_cores(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(workers, "on_gpu", lambda configs: False)


@pytest.fixture
def no_worker(monkeypatch):
    """Call it, and from then on no worker can be started."""
    popen = subprocess.Popen

    def checked(command, *words, **more):
        assert "biasnb.sweep.executor" not in command, "a worker was started"
        return popen(command, *words, **more)

    return lambda: monkeypatch.setattr(subprocess, "Popen", checked)


def folder(root):
    """80 images of four classes, 8 x 8, in root/pictures."""
    rng = np.random.default_rng(0)
    for i in range(80):
        path = root / "pictures" / "abcd"[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return root / "pictures"


def asked(folder, **fields):
    return configure("smoke", dataset="folder", data_dir=str(folder), labelled=0, device="cpu", **fields)


def results(configs, here):
    records = [here.load(key(cfg)) for cfg in configs]
    return {record["key"]: (record["psnr"], record["probe"]) for record in records}


def alone(configs):
    """The results of one run after another in this process."""
    apart = Store("alone")
    for cfg in configs:
        run.run(cfg, apart)
    return results(configs, apart)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What one call of `workers.train` leaves: (store, what it raised, Configs that can be run, and those that cannot).

    Of the latter one has too large a batch, one an image that cannot be read, and two, one for each worker, have a file with
    the name and digest of a state that is none."""
    root = tmp_path_factory.mktemp("made")
    pictures, broken = folder(root), root / "broken"
    for name in ("a/0.png", "b/0.png"):
        (broken / name).parent.mkdir(parents=True)
        (broken / name).write_bytes(b"no image")
    good = [asked(pictures, mixer=mixer, seed=seed) for mixer in ("convmixer", "igpt") for seed in (0, 1)]
    good += [asked(pictures, pretext="supervised"), asked(pictures, pretext="none")]
    bad = [asked(pictures, batch=4096), asked(broken), asked(pictures, seed=7), asked(pictures, seed=8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIASNB_ROOT", str(root))
        use_two_cores(patch)
        here, junk = Store("smoke"), b"no tensors"
        for cfg in bad[2:]:
            path = here.folder / "checkpoints" / key(cfg) / f"00000001-{hashlib.sha256(junk).hexdigest()[:16]}.safetensors"
            path.parent.mkdir(parents=True)
            path.write_bytes(junk)
        with pytest.raises(BiasnbError) as caught:
            workers.train([*bad, *good, good[0]], here)
    return here, str(caught.value), good, bad


def test_workers_make_every_record_once_and_equal_to_those_of_one_process(root, made, one_thread):
    here, _, good, _ = made
    assert results(good, here) == alone(good)
    assert here.has(baseline_key(good[0]))
    log = (here.folder / "workers.log").read_text()
    assert sorted(re.findall(r"^(.*): loss .* trained in", log, re.M)) == sorted(map(run.describe, good[:-1]))
    assert log.count("baselines of pictures") == 1
    assert {here.load(key(cfg))["environment"]["threads"] for cfg in good} == {1}
    assert not any((here.folder / "locks" / f"{key(cfg)}.lock").exists() for cfg in good)


def test_finished_runs_start_no_worker_and_stay_as_they_are(made, two_cores, no_worker):
    here, _, good, _ = made
    written = {path: path.stat().st_mtime_ns for path in here.folder.iterdir()}
    no_worker()
    workers.train(good, here)
    assert {path: path.stat().st_mtime_ns for path in here.folder.iterdir()} == written


def test_a_run_that_fails_is_named_in_a_line_and_the_others_finish(made):
    here, error, good, bad = made
    assert all(here.status(key(cfg))[0] == "done" for cfg in good)
    assert error.startswith(f"{key(bad[0])}: failed, DataError: batch: 4096 images, but pictures has ")
    assert error.endswith("(4 of 10 runs not done)")
    assert "\n" not in error
    for cfg, reason in zip(bad[1:], ("a/0.png: not readable as a JPEG", "no state of a run", "no state of a run"), strict=True):
        state, detail = here.status(key(cfg))
        assert state == "failed" and reason in detail


class Parent:
    """A process that calls `workers.train` as the command line does; its workers save a state every 50 ms."""

    SCRIPT = """
import json, subprocess, sys
from biasnb.sweep import executor as workers
from biasnb.config import Config
from biasnb.records.store import Store
class Popen(subprocess.Popen):
    def __init__(self, *words, **more):
        super().__init__(*words, **more)
        print(self.pid, flush=True)
subprocess.Popen = Popen
workers.os.sched_getaffinity = lambda _: {0, 1}
workers.train([Config(**fields) for fields in json.loads(sys.argv[1])], Store("smoke"))
"""

    def __init__(self, root, runs):
        self.began = time.time()
        command = [sys.executable, "-c", self.SCRIPT, json.dumps([asdict(cfg) for cfg in runs])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "BIASNB_CHECKPOINT_SECONDS": "0.05"}
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
        here = Store("smoke")
        self.workers = [int(self.process.stdout.readline()) for cfg in runs if workers.lacks((key(cfg),), here)]

    def wait_for_state(self, folder):
        while not any(p.stat().st_mtime > self.began for p in folder.glob("checkpoints/*/*-*.safetensors") if p.exists()):
            assert self.process.poll() is None, (folder / "workers.log").read_text()
            time.sleep(0.01)


def alive(pid):
    """Whether a process runs; one that has ended may wait for its parent to notice."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()


@pytest.mark.fault("F6")
def test_whatever_ends_the_parent_ends_its_workers_and_the_runs_go_on_to_equal_results(root, one_thread, two_cores):
    """SIGTERM; SIGINT to all of them, as from a terminal; SIGKILL, which the parent cannot act on."""
    pictures, here = folder(root), Store("smoke")
    runs = [asked(pictures, seed=seed, steps=200, augment="crop") for seed in (0, 1)]
    for number, code in ((signal.SIGTERM, -15), (signal.SIGINT, -2), (signal.SIGKILL, -9)):
        if all(here.has(key(cfg)) for cfg in runs):  # one that is asked to stop has seconds to come to its end
            break
        parent = Parent(root, runs)
        parent.wait_for_state(here.folder)
        (os.killpg if number == signal.SIGINT else os.kill)(parent.process.pid, number)
        assert parent.process.wait(60) == code
        deadline = time.monotonic() + 20
        while any(map(alive, parent.workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, parent.workers)), number
        found = {here.status(key(cfg))[0] for cfg in runs}
        assert found & {"interrupted", "done"} and "running" not in found, number
    workers.train(runs, here)
    assert results(runs, here) == alone(runs)


@pytest.mark.fault("F14")
def test_a_worker_that_was_killed_is_replaced_and_its_run_goes_on(root, one_thread):
    pictures, here = folder(root), Store("smoke")
    runs = [asked(pictures, seed=seed, steps=steps, augment="crop") for seed, steps in ((0, 600), (1, 4))]
    parent = Parent(root, runs)
    while not (list(here.checkpoints(key(runs[0])).glob("*.safetensors")) and sum(map(alive, parent.workers)) == 1):
        assert parent.process.poll() is None, (here.folder / "workers.log").read_text()
        time.sleep(0.01)
    (victim,) = filter(alive, parent.workers)
    os.kill(victim, signal.SIGKILL)
    said = parent.process.communicate(timeout=120)[0]
    assert parent.process.returncode == 0
    assert "1 workers were killed; 1 runs go on with new ones" in said
    assert results(runs, here) == alone(runs)
    assert not any(map(alive, parent.workers)) and not list(here.folder.glob("locks/*"))


def test_an_operator_that_only_this_process_knows_is_trained_here(root, monkeypatch, two_cores, no_worker):
    class Mine(mixing.Identity):
        pass

    monkeypatch.setitem(MIXERS, "mine", Mixer("mine", Mine, local=True, shared=True))
    pictures, here = folder(root), Store("smoke")
    runs = [asked(pictures, mixer="mine", seed=seed) for seed in (0, 1)]
    no_worker()
    workers.train(runs, here)
    assert [here.load(key(cfg))["config"]["mixer"] for cfg in runs] == ["mine", "mine"]
