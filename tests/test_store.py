import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from synthetic import grid, run_record

from biasnb import store as stores
from biasnb import suite
from biasnb.config import configure
from biasnb.environment import environment
from biasnb.keys import key
from biasnb.store import Store, StoreError

CHECKOUT = stores.ROOT


def test_a_record_comes_back_as_it_was_saved(root):
    store = Store("smoke")
    record = store.save(run_record("mixer", 2, 0), {"correct": np.arange(3, dtype=np.uint8)})
    assert store.load(record["key"]) == record
    assert store.arrays(record["key"])["correct"].tolist() == [0, 1, 2]
    assert store.status(record["key"]) == ("done", "")


def test_frame_has_one_row_per_run_with_config_and_metrics(root):
    store = Store("smoke")
    for seed in range(3):
        store.save(run_record("mixer", 2, seed, psnr=20.0 + seed))
    frame = stores.load("smoke", "runs")
    assert sorted(frame.seed) == [0, 1, 2]
    assert sorted(frame.psnr) == [20.0, 21.0, 22.0]
    assert (frame.mixer == "mixer").all()
    store.save(run_record("igpt", 1, 0, accuracy=0.75, pretext="supervised"))
    frame = stores.load("smoke", "runs").set_index("mixer")
    assert frame.accuracy["igpt"] == 0.75 and np.isnan(frame.psnr["igpt"])
    assert frame.accuracy["mixer"].isna().all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r.pop("psnr"), "lacks psnr"),
        (lambda r: r.pop("measures"), "lacks measures"),
        (lambda r: r.update(schema=1), "schema 1, this version reads 2"),
        (lambda r: r.update(kind="walk"), "not a record"),
        (lambda r: r.update(status="finished"), "status 'finished'"),
        (lambda r: r.update(key="0" * 16), "holds the record of"),
    ],
)
def test_a_broken_record_is_refused_by_name(root, spoil, words):
    store = Store("smoke")
    record = store.save(run_record("mixer", 2, 0))
    path = store.path(record["key"])
    spoil(record)
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match=words):
        store.load(path.stem)


def test_a_torn_record_and_foreign_arrays_are_refused(root):
    store = Store("smoke")
    record = store.save(run_record("mixer", 2, 0), {"a": np.zeros(3)})
    path = store.path(record["key"])
    stores.write_arrays(path.with_suffix(".npz"), {"a": np.ones(3)})
    with pytest.raises(StoreError, match="digest"):
        store.arrays(record["key"])
    np.savez(path.with_suffix(".npz"), a=np.array([print], dtype=object))
    with pytest.raises(StoreError, match="not readable as arrays"):
        store.arrays(record["key"])
    path.write_text(path.read_text()[:100])
    with pytest.raises(StoreError, match="not readable as JSON"):
        store.load(record["key"])


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    stores.write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"a.json: cannot be written \(No space left"):
        stores.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_held_by_a_living_process_is_refused_and_a_dead_one_taken_over(root):
    store = Store("smoke")
    with store.claim("abc"):
        assert store.status("abc")[0] == "running"
        with pytest.raises(StoreError, match=f"process {os.getpid()}"), store.claim("abc"):
            pass
    assert store.status("abc")[0] == "missing"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    claim = {"host": stores.socket.gethostname(), "pid": int(dead.stdout), "start": 1}
    store.path("abc", ".claim").write_text(json.dumps(claim))
    with store.claim("abc"):
        assert store.status("abc")[0] == "running"
    assert [p.name for p in store.folder.iterdir()] == [".lock"]


def test_a_killed_process_that_nobody_has_waited_for_holds_nothing(root):
    """A notebook that ran out of memory, below a server that does not look."""
    script = "import time; from biasnb.store import Store\nwith Store('smoke').claim('abc'): print(flush=True); time.sleep(60)"
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        assert Store("smoke").status("abc")[0] == "running"
        owner.kill()
        owner.stdout.read()  # ends when the process has
        deadline = time.monotonic() + 10
        while Store("smoke").status("abc")[0] == "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        with Store("smoke").claim("abc"):
            pass
        assert owner.returncode is None


def test_of_many_processes_one_holds_the_claim(root):
    """Started together on a dead owner's claim: exactly one takes it over, however they interleave."""
    script = (
        "import sys, pathlib; from biasnb.store import Store, StoreError; print('ready', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): pass\n"
        "try:\n    with Store('smoke').claim('abc'): print('held', flush=True); sys.stdin.read()\n"
        "except StoreError: print('refused', flush=True)"
    )
    store = Store("smoke")
    store.folder.mkdir(parents=True)
    env = {**os.environ, "BIASNB_ROOT": str(root), "PYTHONPATH": str(CHECKOUT)}
    for attempt in range(3):
        claim = {"host": stores.socket.gethostname(), "pid": 2**22 + 1, "start": 1}
        store.path("abc", ".claim").write_text(json.dumps(claim))
        go = root / f"go{attempt}"
        words = [sys.executable, "-c", script, str(go)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(words, env=env, **pipes) for _ in range(4)]
        assert [p.stdout.readline() for p in processes] == ["ready\n"] * 4
        go.touch()
        assert sorted(p.stdout.readline() for p in processes) == ["held\n", *["refused\n"] * 3]
        for p in processes:
            p.communicate()


def test_a_broken_record_shows_in_the_status_and_does_not_end_it(root, capsys):
    from biasnb.__main__ import main

    store = Store("smoke")
    record = store.save(run_record("mixer", 2, 0))
    store.path(record["key"]).write_text("{")
    store.save(run_record("convmixer", 7, 0))
    assert main(["status", "--profile", "smoke"]) == 0
    said = capsys.readouterr().out
    assert f"{record['key']}  mixer       depth 2   seed 0   broken" in said
    assert "(single run)" in said and "depth 7" in said


def test_failed_runs_say_why(root):
    store = Store("smoke")
    store.folder.mkdir(parents=True)
    store.path("abc", ".error").write_text("DataError: no such thing\n")
    assert store.status("abc") == ("failed", "DataError: no such thing")


def test_grid_shows_missing_runs_as_missing(root):
    g = grid(Store("smoke"), seed=[0, 1, 2])
    g.store.path(g.content["runs"][0]["key"]).unlink()
    frame = g.frame()
    assert frame.status.tolist()[0] == "missing"
    assert (frame.status == "done").sum() == len(frame) - 1
    assert g.missing() == [g.content["runs"][0]["key"]]


def test_a_grid_needs_the_floors_of_its_runs_too(root):
    g = grid(Store("smoke"), "30_symmetry")
    floors = [run["floor"] for run in g.runs]
    assert len(set(floors)) == 3 and set(floors) < set(g.keys)
    assert sorted(set(g.frame().floor_psnr)) == [21.7] and sorted(set(g.frame().floor_probe)) == [0.42]
    g.store.path(floors[0]).unlink()
    assert g.missing() == [floors[0]]
    assert g.frame().floor_psnr.isna().tolist() == [floor == floors[0] for floor in floors]
    assert g.frame().status.unique().tolist() == ["done"]
    assert g.floor() is None


def test_publish_promotes_complete_valid_records_only(root):
    here = Store("smoke")
    g = grid(here)
    g.save()
    victim = here.path(g.keys[0])
    content = victim.read_text()
    victim.unlink()
    with pytest.raises(StoreError, match="missing"):
        suite.publish("smoke")
    victim.write_text(content.replace('"psnr"', '"snr"'))
    with pytest.raises(StoreError, match="lacks psnr"):
        suite.publish("smoke")
    assert not (root / "results").exists()
    victim.write_text(content)
    assert suite.publish("smoke") == (len(g.keys), [], 0)
    there = Store("smoke", "results")
    assert [x.frame().equals(g.frame()) for x in there.grids()] == [True]
    assert suite.newest("smoke").base == "runs"


def test_publish_leaves_out_grids_with_other_settings_unless_named(root):
    g = grid(Store("smoke"), seed=[0])
    g.save()
    side = replace(g, name="20_trio-side", content={**g.content, "overrides": {"lr": 1.0}, "runs": g.runs[:1]})
    side.save()
    assert suite.publish("smoke")[1] == ["20_trio-side"]
    assert [x.name for x in Store("smoke", "results").grids()] == ["20_trio"]
    suite.publish("smoke", ["20_trio-side"])
    assert [x.name for x in Store("smoke", "results").grids()] == ["20_trio", "20_trio-side"]
    with pytest.raises(StoreError, match="no such grid"):
        suite.publish("smoke", ["21_trio"])


def test_agreement_reports_each_metric_and_what_is_outside(root):
    here, there = Store("smoke"), Store("smoke", "results")
    assert "nothing to compare" in suite.agreement("smoke")[0]
    for seed in range(3):
        there.save(run_record("mixer", 2, seed))
        here.save(run_record("mixer", 2, seed, psnr=22.0625 if seed else 27.0))
    for store in (here, there):
        store.save(run_record("mixer", 2, 0, pretext="supervised"))  # has no PSNR
    text = "\n".join(suite.agreement("smoke"))
    assert "4 runs" in text
    assert "masked PSNR | ± 0.1 dB | 0.062 | 5 | NO, 2 of 3" in text
    assert "probe | ± 0.02  | 0 | 0 | yes" in text


def test_environment_names_versions_and_machine_but_no_path(root):
    stamp = json.dumps(environment("cpu", None, 2))
    assert "torch" in stamp and "commit" in stamp
    assert str(root) not in stamp and stores.socket.gethostname() not in stamp


def test_status_of_an_untouched_run_is_missing(root):
    assert Store("smoke").status(key(configure("smoke"))) == ("missing", "")
