"""A run that is being trained can be watched: in a terminal, in a notebook, in TensorBoard."""

import json
import math
import subprocess
import sys
import time
from unittest import mock

import pytest
from forked import environment
from synthetic import sweep_of

import biasnb
from biasnb.config import ConfigError, configure
from biasnb.records import progress
from biasnb.records.keys import key
from biasnb.records.progress import Progress
from biasnb.records.store import Store, StoreError, load
from biasnb.suite import status
from biasnb.suite.commands import main
from biasnb.sweep import executor, manifest
from biasnb.training import checkpoint, run
from biasnb.training.checkpoint import Monitor

pytestmark = pytest.mark.usefixtures("brief")
CFG = configure("smoke", steps=10)


def test_a_monitor_writes_once_a_second_how_far_a_run_is(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    path = tmp_path / "k.progress"
    seen = Monitor(path, tmp_path / "events")
    for step, later in ((10, 0), (20, 0.4), (30, 0.7), (40, 0.2), (50, 1.1)):
        now[0] += later
        seen(step, 100, 1 / step)
        found = json.loads(path.read_text()) if path.is_file() else None
        assert (found or {}).get("step") == {10: None, 20: None, 30: 30, 40: 30, 50: 50}[step]
    assert found == {"step": 50, "steps": 100, "loss": 0.02, "seconds_left": pytest.approx(50 * 2.4 / 40)}
    seen.close()
    assert not path.exists() and not (tmp_path / "events").exists()


def test_a_file_that_cannot_be_written_stops_no_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BIASNB_TENSORBOARD", "1")
    seen = Monitor(tmp_path / "file" / "k.progress", tmp_path / "file" / "events")
    seen(1, 9, 0.5)
    seen.written -= 5
    seen(2, 9, 0.5)
    seen.row({"step": 2, "loss": 0.5})
    seen.close()


def test_a_loss_that_is_not_known_yet_is_left_out(root):
    """Off the CPU none is before the first row of the history."""
    store = Store("smoke")
    store.folder.mkdir(parents=True)
    seen = Monitor(store.path("k", ".progress"), root)
    seen(1, 9, math.nan)
    seen.written -= 5
    seen(2, 9, math.nan)
    assert store.progress("k")["step"] == "step 2 of 9" and store.progress("k")["loss"] == ""


def test_a_running_run_is_shown_with_its_step_loss_and_time_left(root):
    store = Store("smoke")
    with store.lock(key(CFG)):
        assert store.status(key(CFG)) == ("running", "")  # not a second yet
        store.path(key(CFG), ".progress").write_text('{"step": 3, "steps": 10, "loss": 0.5, "seconds_left": 70}')
        assert store.status(key(CFG)) == ("running", "step 3 of 10, loss 0.5000, 70 s left")
        for broken in ("", "[]", '{"step": 3}', '{"step": 3, "steps": 10, "loss": "x", "seconds_left": null}'):
            store.path(key(CFG), ".progress").write_text(broken)
            assert store.status(key(CFG)) == ("running", "")


def test_the_page_for_a_screen_has_what_runs_and_what_went_wrong_first(root):
    sweep, configs = sweep_of("20_trio")
    store = sweep.store
    run.run(configs[0], store)
    store.path(key(configs[2]), ".error").write_text("ValueError: odd")
    with store.lock(key(configs[1])):
        screen, whole = status.Screen("smoke"), status.page("smoke")
        lines, goes_on = screen.page(110, 8)
        frame = status.table("smoke", "20_trio").data
    assert key(configs[1]) in lines[0] and "running" in lines[0] and goes_on
    assert "failed ValueError:" in lines[1] and "missing" in lines[2]
    assert lines[-2].startswith("... ") and len(lines) == 6 and max(map(len, lines)) <= 110
    assert lines[-1] == whole[-1][:110] and "1 done" in whole[-1] and "1 running" in whole[-1] and "1 failed" in whole[-1]
    assert len(whole) > 150 and sum(line.endswith(" done") for line in whole[:-1]) == 1
    assert len(frame) == len(sweep.runs) and set(frame.state) == {"done", "running", "failed", "missing"}
    assert list(screen.ended) == [key(configs[0])]
    store.path(key(configs[0])).write_text("not read again")
    assert "1 done" in screen.page(200, 8)[0][-1]


def test_single_runs_are_shown_while_they_train_and_after_they_failed(root):
    store, failed = Store("smoke"), configure("smoke", steps=11)
    store.folder.mkdir(parents=True)
    store.path(key(failed), ".error").write_text("ValueError: odd")
    with store.lock(key(CFG)):
        lines = status.page("smoke")
        rows = [row for row in status.runs("smoke", []) if row["notebook"] == "(single run)"]
    assert {row["key"]: row["state"] for row in rows} == {key(CFG): "running", key(failed): "failed"}
    assert "1 running" in lines[-1] and "1 failed" in lines[-1]


def test_unknown_names_are_refused_in_python_too(root):
    for call in (lambda: status.table("qick"), lambda: status.table("smoke", "20_tri"), lambda: load("qick"),
                 lambda: load("smoke", "run"), lambda: biasnb.load("conv", "qick")):  # fmt: skip
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(StoreError, match=r"no published networks|neither published"):
        biasnb.load(3, "smoke")


def test_settings_that_are_wrong_are_refused_and_impossible_ones_named_by_notebook(root):
    for given in ({"depht": 2}, {"depth": "two"}):
        with pytest.raises(ConfigError, match="depth"):
            status.page("smoke", given)
    lines = status.page("smoke", {"pretext": "ar", "padding": "circular"})
    impossible = [line for line in lines if "impossible with these settings: padding: 'circular'" in line]
    assert impossible and all(line.split()[0] in manifest.names() for line in impossible)


def test_status_watch_goes_on_until_nothing_is_left_to_do(root, capsys, monkeypatch):
    monkeypatch.setattr(manifest, "names", lambda: ["10_one_run"])
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        run.run(sweep_of("10_one_run")[1][0], Store("smoke"))

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["status", "--profile", "smoke", "--watch"]) == 0
    out = capsys.readouterr().out
    assert slept == [2, 0] and out.index("1 missing") < out.index("1 done")


def test_jupyterlab_shows_every_run_that_is_under_way_below_the_line(monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "in_jupyterlab", lambda: True)
    monkeypatch.setattr("IPython.display.DisplayHandle.display", lambda *args, **more: None)
    monkeypatch.setattr("IPython.display.DisplayHandle.update", lambda self, data, raw: shown.append(data))
    report = Progress("2 workers", 5, every=1e-9, unit="runs")
    report(1, "", [{"run": "<igpt>", "step": "step 3"}])
    report.finish("done")
    assert "20 %" in shown[0]["text/plain"] and shown[0]["text/plain"].endswith("\n<igpt> step 3")
    assert "<td>&lt;igpt&gt;</td><td>step 3</td>" in shown[0]["text/html"]
    assert "<table>" not in shown[1]["text/html"]


def test_the_runs_that_workers_are_at_are_named_with_their_steps(root):
    store, tasks = Store("smoke"), executor.grouped({key(CFG): ("run", CFG)}, by_seed=False)
    future = mock.Mock(key=tasks[0].key)
    dask = mock.Mock(**{"processing.return_value": {"worker": [future.key, "of another client"]}})
    store.folder.mkdir(parents=True)
    store.path(key(CFG), ".progress").write_text('{"step": 3, "steps": 10, "loss": 0.5, "seconds_left": 70}')
    (row,) = executor.running(dask, {future: tasks[0]}, [future], store)
    assert (row["run"], row["step"], row["loss"]) == ("convmixer, depth 1, seed 0", "step 3 of 10", "loss 0.5000")
    assert (row["left"], row["share"]) == ("70 s left", 0.3)


def events(folder):
    """{name: [(step, value)]} of a run's events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_gets_every_row_of_the_history_also_of_a_run_that_was_killed(root, monkeypatch):
    words = ["run", "--profile", "smoke", "steps=60", "--tensorboard"]
    kill = f"""
import os
from biasnb.training import loop as train
from biasnb.suite.commands import main
real = train.learning_rate
train.learning_rate = lambda cfg, step: os._exit(9) if step == 40 else real(cfg, step)
main({words!r})
"""
    env = environment(root, BIASNB_CHECKPOINT_SECONDS="0")
    killed = subprocess.run([sys.executable, "-c", kill], env=env, capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    time.sleep(1.1)  # names of files of events are seconds
    monkeypatch.setenv("BIASNB_TENSORBOARD", "")  # is put back at the end
    assert main(words) == 0
    record = Store("smoke").load(key(configure("smoke", steps=60)))
    found = events(root / "runs/smoke/tensorboard" / record["key"])
    assert set(found) == {"loss", "lr", "gradient_norm", "weight_norm"}
    for name, points in found.items():
        assert points == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in record["history"]], name


def test_without_the_option_nothing_is_written_and_without_the_package_it_is_refused(root, capsys, monkeypatch):
    run.run(CFG, Store("smoke"))
    assert not (root / "runs/smoke/tensorboard").exists()
    monkeypatch.setenv("BIASNB_TENSORBOARD", "0")
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    assert main(["run", "--profile", "smoke", "steps=12", "--tensorboard"]) == 1
    assert capsys.readouterr().err == "error: tensorboard: is not installed; pip install tensorboard, or go on without\n"
    assert not Store("smoke").has(key(configure("smoke", steps=12)))
