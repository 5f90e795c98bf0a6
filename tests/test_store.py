import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from synthetic import init_record, record_of, run_record, saved_sweep

from biasnb.config import configure
from biasnb.records import files
from biasnb.records import store as stores
from biasnb.records.keys import init_key, key
from biasnb.records.places import CHECKOUT
from biasnb.records.provenance import environment
from biasnb.records.store import Store, StoreError
from biasnb.records.sweep import Choice, choices, choose


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
        (lambda r: r.update(schema=1), "schema 1, this version reads 3"),
        (lambda r: r.update(protocol=0), "protocol 0, this version reads 1; run `biasnb evaluate --profile smoke`"),
        (lambda r: r["probe"].pop("knn"), "probe is no table"),
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


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    path, real, calls = tmp_path / "checkpoints" / "a", os.replace, []

    def replaced(attempt, final):
        calls.append(1)
        if len(calls) == 1:
            shutil.rmtree(path.parent)
        real(attempt, final)

    monkeypatch.setattr(os, "replace", replaced)
    stores.write_atomic(path, "whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_a_run_is_held_by_one_and_its_lock_forgotten_with_its_record(root):
    store, record = Store("smoke"), run_record("mixer", 2, 0)
    with store.lock(record["key"]):
        assert store.busy(record["key"]) and store.status(record["key"]) == ("running", "")
        assert not store.busy("abc")
    assert not store.busy(record["key"]) and store.status(record["key"]) == ("missing", "")
    with store.lock(record["key"]):
        store.save(record)
    assert not list(store.folder.glob("locks/*"))


def test_who_waits_says_so_once_and_gets_the_lock_when_it_is_free(root, capsys, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    store, order = Store("smoke"), []

    def wait():
        with store.lock("abc"):
            order.append("second")

    with store.lock("abc"):
        other = threading.Thread(target=wait)
        other.start()
        other.join(0.3)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"] and capsys.readouterr().out.count("abc: another process has it under way") == 1


def test_asking_who_is_busy_disturbs_nobody(root):
    """However often one asks, whoever wants the lock gets it, and two who ask do not take each other for its owner."""
    store, seen, ended = Store("smoke"), [], threading.Event()
    with store.lock("abc"):
        pass

    def ask():
        while not ended.is_set():
            seen.append(store.busy("abc"))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    time.sleep(0.2)
    assert not any(seen) and len(seen) > 50
    with store.lock("abc"):
        pass
    ended.set()
    for asker in askers:
        asker.join()


NO_LOCKS = [NotImplementedError(), *(OSError(number, "no") for number in files.WITHOUT_LOCKS)]


@pytest.mark.parametrize("error", NO_LOCKS, ids=repr)
def test_a_file_system_without_locks_keeps_nobody_out(root, monkeypatch, error):
    """And what another process is just writing is left alone there."""

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    store = Store("smoke")
    attempt = store.folder / files.attempt_of(store.path("abc")).name
    attempt.parent.mkdir(parents=True)
    attempt.touch()
    with store.lock("abc"), store.lock("abc"):
        assert attempt.exists() and not store.busy("abc")


def test_a_lock_file_that_cannot_be_made_is_named(root):
    store = Store("smoke")
    store.folder.mkdir(parents=True)
    (store.folder / "locks").write_text("")
    with pytest.raises(StoreError, match=r"locks/abc.lock: cannot be written"), store.lock("abc"):
        pass


@pytest.mark.parametrize(
    ("suffix", "content", "state", "detail"),
    [
        (".progress", "{}", "interrupted", "starts anew"),
        (".error", "DataError: no such thing", "failed", "DataError: no such thing"),
        ("", "", "missing", ""),
    ],
)
def test_the_status_says_how_a_run_ended_and_from_where_it_goes_on(root, suffix, content, state, detail):
    store = Store("smoke")
    with store.lock("abc"):
        if suffix:
            store.path("abc", suffix).write_text(content)
        assert store.status("abc") == ("running", "")
    assert store.status("abc") == (state, detail)
    folder = store.checkpoints("abc")
    folder.mkdir(parents=True)
    for step in (7, 12):
        (folder / f"{step:08d}-{'0' * 16}.safetensors").touch()
    assert store.status("abc") == (("failed", detail) if state == "failed" else ("interrupted", "goes on from step 12"))


def test_whoever_holds_a_run_removes_what_killed_writers_left_of_it(root):
    store = Store("smoke")
    own = [files.attempt_of(store.path("abc")), files.attempt_of(store.path("abc", ".npz"))]
    own.append(files.attempt_of(store.checkpoints("abc") / "1.safetensors"))
    others = [files.attempt_of(store.path("abcd")), files.attempt_of(store.checkpoints("other") / "1.safetensors")]
    for path in (*own, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with store.lock("abc"):
        assert not any(path.exists() for path in own) and all(path.exists() for path in others)


def test_tidying_removes_what_is_beside_complete_records_and_attempts_that_are_old(root):
    store, record = Store("smoke"), run_record("mixer", 2, 0)
    store.save(record)
    for name in (record["key"], "other"):
        for path in (store.checkpoints(name) / "1", store.path(name, ".error"), store.path(name, ".progress")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with store.lock("other"):
        pass
    new, old = (store.folder / files.attempt_of(store.path(name)).name for name in ("new", "old"))
    for path, hours in ((new, 0.9), (old, 1.1)):
        path.touch()
        os.utime(path, (time.time() - hours * files.HOUR,) * 2)
    store.tidy()
    assert new.exists() and not old.exists()
    left = {path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if path.is_file()} - {new.name}
    assert left == {f"{record['key']}.json", "other.error", "other.progress", "checkpoints/other/1", "locks/other.lock"}


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


def test_a_grid_needs_the_random_inits_of_its_runs_too(root):
    g = saved_sweep(Store("smoke"), "20_trio", depth=[1, 2])
    inits = [run["init"] for run in g.runs]
    assert set(inits) < set(g.keys) and set(g.frame().init_probe) == {0.5}
    g.store.path(inits[0]).unlink()
    assert g.missing() == [inits[0]]
    frame = g.frame()
    for column in ("init_probe", "init_probe_best"):
        assert frame[column].isna().tolist() == [init == inits[0] for init in inits]
    assert frame.probe.notna().all()


def table(*layers):
    """A probe whose validation accuracies are these, a row per layer, and whose test accuracies are half as high."""
    return {"val": [list(row) for row in layers], "test": [[value / 2 for value in row] for row in layers]}


def test_penalties_and_layer_are_chosen_on_the_mean_over_seeds():
    """Alone each seed would take other penalties than both together."""
    one, other = table((0.2, 0.1, 0.1), (0.9, 0.7, 0.4)), table((0.2, 0.1, 0.1), (0.4, 0.7, 0.9))
    assert [choose([seed]).penalties for seed in (one, other)] == [(0, 0), (0, 2)]
    choice = choose([one, other])
    assert choice == choose([other, one]) == Choice((0, 1), 1)
    assert (choice.by_layer(one), choice.mean(one), choice.best(one)) == ([0.1, 0.35], 0.35, 0.35)


def test_ties_go_to_the_strongest_penalty_and_the_earlier_layer():
    """A difference of half a point or less is a tie."""
    assert choose([table((0.1, 0.2, 0.2, 0.1), (0.2, 0.1, 0.1, 0.1), (0.2, 0.2, 0.2, 0.2))]) == Choice((2, 0, 3), 0)
    assert choose([table((0.3049, 0.3), (0.3051, 0.3))]) == Choice((1, 0), 0)
    assert choose([table((0.3001, 0.3), (0.3052, 0.3))]) == Choice((1, 0), 1)


def test_runs_that_differ_in_more_than_the_seed_have_choices_of_their_own(root):
    store, configs = Store("smoke"), [configure("smoke", seed=seed, lr=lr) for seed in (0, 1) for lr in (0.1, 0.2)]
    inits = {init_key(cfg): init_record(cfg) for cfg in configs}
    assert len(inits) == 2, "the rate does not change the start"
    for cfg in configs:
        record = record_of(cfg)
        for row in record["probe"]["val"]:
            row[2] += 0.05 * (cfg.lr == 0.2) * (1 + cfg.seed)
        store.save(record)
    records = [store.load(key(cfg)) for cfg in configs]
    chosen = [choices(records, inits)[record["key"]] for record in records]
    assert [(choice.penalties[1], start.penalties[1]) for choice, start in chosen] == [(1, 1), (2, 1), (1, 1), (2, 1)]
    frame = stores.load("smoke", "runs").set_index("key")
    assert frame.probe[key(configs[0])] == pytest.approx(0.6) and frame.probe[key(configs[1])] == pytest.approx(0.59)
    assert "init_probe" not in frame
    for start in inits.values():
        store.save(start)
    assert stores.load("smoke", "runs").init_probe.tolist() == pytest.approx([0.5] * 4)


def test_environment_names_versions_and_machine_but_no_path(root):
    stamp = json.dumps(environment("cpu", None, 2))
    assert "torch" in stamp and "commit" in stamp
    assert str(root) not in stamp and socket.gethostname() not in stamp


def committed(folder):
    """Make a folder a repository with everything in it; returns its commit."""
    git = ["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e@e"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "all"]):
        subprocess.run([*git, *words], check=True, env=without_git())
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True, env=without_git())
    return done.stdout.strip()


def without_git():
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def test_a_commit_counts_only_if_it_is_the_checkouts_own(tmp_path):
    outer = tmp_path / "other repository ü"
    copy = outer / "biasnb-main"
    for name in ("biasnb", "notebooks"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (outer / ".gitignore").write_text("__pycache__")
    (copy / ".gitignore").write_text("__pycache__")
    script = "from biasnb.records.provenance import _commit; print(*_commit())"

    def stamp(folder=copy, **variables):
        env = without_git() | {"PYTHONPATH": str(folder), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run([sys.executable, "-c", script], env=env | variables, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert stamp() == ["None", "None"]
    other = committed(outer)
    assert stamp() == ["None", "None"]
    own = committed(copy)
    assert own != other and stamp() == [own, "False"]
    assert stamp(GIT_DIR=str(outer / ".git"), GIT_WORK_TREE=str(outer)) == [own, "False"]  # in a hook of the other
    (copy / "notebooks/mine.ipynb").write_text("")
    assert stamp() == [own, "True"]
    site = copy / ".venv/site-packages"
    shutil.copytree(copy / "biasnb", site / "biasnb")
    assert stamp(site) == ["None", "None"]  # installed inside a checkout
