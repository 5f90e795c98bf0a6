import json
import os
import socket
from dataclasses import replace

import numpy as np
import pytest
from synthetic import run_record, saved_sweep

from biasnb.config import configure
from biasnb.records import files
from biasnb.records import store as stores
from biasnb.records.keys import key
from biasnb.records.locks import Held, place
from biasnb.records.processes import myself
from biasnb.records.provenance import environment
from biasnb.records.store import Store, StoreError
from biasnb.suite import reproduce as suite


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


def test_a_run_is_held_by_one_and_its_lock_forgotten_with_its_record(root):
    store, record = Store("smoke"), run_record("mixer", 2, 0)
    with store.claim(record["key"]):
        assert store.status(record["key"]) == ("running", f"on {place(myself())}")
        with (
            pytest.raises(Held, match=f"{record['key']}: already running on .*, process {os.getpid()};"),
            store.claim(record["key"]),
        ):
            pass
    assert store.status(record["key"]) == ("missing", "")
    with store.claim(record["key"]):
        store.save(record)
    assert not list(store.folder.glob("locks/*"))


@pytest.mark.parametrize(
    ("error", "killed", "state"),
    [
        ("Stopped: SIGTERM", False, "preempted"),
        ("KeyboardInterrupt: ", False, "preempted"),
        ("", True, "killed"),
        ("Stopped: the time limit", True, "killed"),
        ("DataError: no such thing", False, "failed"),
    ],
)
def test_the_status_says_how_a_run_ended_and_from_where_it_goes_on(root, error, killed, state):
    store = Store("smoke")
    with store.claim("abc") as lock:
        if error:
            store.path("abc", ".error").write_text(error)
    if killed:
        (lock.folder / "2").write_text(json.dumps(myself() | {"start": 1}))
    assert store.status("abc") == (state, error if state == "failed" else "before a first state")
    folder = store.checkpoints("abc")
    folder.mkdir(parents=True)
    for step in (7, 12):
        (folder / f"{step:08d}-{'0' * 16}.safetensors").touch()
    assert store.status("abc") == (state, error if state == "failed" else "at step 12, goes on from there")


def test_tidying_removes_what_is_beside_complete_records_and_torn_files_of_the_dead(root):
    store, record = Store("smoke"), run_record("mixer", 2, 0)
    store.save(record)
    with store.claim("other"):
        pass
    dead = files.attempt_of(store.path("abc")).name.replace(f"-{os.getpid()}@", f"-{2**22 + 1}@")
    kept, gone = store.folder / files.attempt_of(store.path("abc")).name, store.folder / dead
    for path in (kept, gone, store.checkpoints(record["key"]) / "1", store.checkpoints("other") / "1",
                 store.lock(record["key"]).folder / "1"):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    store.tidy()
    assert kept.exists() and not gone.exists()
    assert [path.name for folder in ("checkpoints", "locks") for path in store.folder.glob(f"{folder}/*")] == ["other", "other"]


def test_tidying_takes_any_name_that_a_folder_of_images_gives_a_notebook(root):
    store = Store("smoke")
    with store.lock("notebook-20_trio-my [pets] ü-123456"):
        store.tidy()


def test_a_broken_record_shows_in_the_status_and_does_not_end_it(root, capsys):
    from biasnb.suite.commands import main

    store = Store("smoke")
    record = store.save(run_record("mixer", 2, 0))
    store.path(record["key"]).write_text("{")
    store.save(run_record("convmixer", 7, 0))
    assert main(["status", "--profile", "smoke"]) == 0
    said = capsys.readouterr().out
    assert f"{record['key']}  mixer       depth 2   seed 0   broken" in said
    assert "(single run)" in said and "depth 7" in said


def test_grid_shows_missing_runs_as_missing(root):
    g = saved_sweep(Store("smoke"), seed=[0, 1, 2])
    g.store.path(g.content["runs"][0]["key"]).unlink()
    frame = g.frame()
    assert frame.status.tolist()[0] == "missing"
    assert (frame.status == "done").sum() == len(frame) - 1
    assert g.missing() == [g.content["runs"][0]["key"]]


def test_a_grid_needs_the_baselines_of_its_runs_too(root):
    g = saved_sweep(Store("smoke"), "30_symmetry")
    baselines = [run["baseline"] for run in g.runs]
    assert len(set(baselines)) == 3 and set(baselines) < set(g.keys)
    assert sorted(set(g.frame().baseline_psnr)) == [21.7] and sorted(set(g.frame().baseline_probe)) == [0.42]
    g.store.path(baselines[0]).unlink()
    assert g.missing() == [baselines[0]]
    assert g.frame().baseline_psnr.isna().tolist() == [baseline == baselines[0] for baseline in baselines]
    assert g.frame().status.unique().tolist() == ["done"]
    assert g.baseline() is None


def test_publish_promotes_complete_valid_records_only(root):
    here = Store("smoke")
    g = saved_sweep(here)
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
    assert [x.frame().equals(g.frame()) for x in there.sweeps()] == [True]
    assert suite.newest("smoke").base == "runs"


def test_publish_leaves_out_grids_with_other_settings_unless_named(root):
    g = saved_sweep(Store("smoke"), seed=[0])
    g.save()
    side = replace(g, name="20_trio-side", content={**g.content, "overrides": {"lr": 1.0}, "runs": g.runs[:1]})
    side.save()
    assert suite.publish("smoke")[1] == ["20_trio-side"]
    assert [x.name for x in Store("smoke", "results").sweeps()] == ["20_trio"]
    suite.publish("smoke", ["20_trio-side"])
    assert [x.name for x in Store("smoke", "results").sweeps()] == ["20_trio", "20_trio-side"]
    with pytest.raises(StoreError, match="no such sweep"):
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
    assert str(root) not in stamp and socket.gethostname() not in stamp


def test_status_of_an_untouched_run_is_missing(root):
    assert Store("smoke").status(key(configure("smoke"))) == ("missing", "")
