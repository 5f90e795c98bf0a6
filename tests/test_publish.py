"""The committed reference: which records are copied there, and what the comparison with it says."""

import shutil
from dataclasses import replace

import pytest
from synthetic import run_record, saved_sweep

from biasnb.records import places
from biasnb.records.keys import key
from biasnb.records.store import FROM_SCRATCH, Store, StoreError
from biasnb.suite import publish
from biasnb.suite.commands import main
from biasnb.sweep import Study, executor
from biasnb.training import run


def test_publish_promotes_complete_valid_records_only(root):
    here = Store("smoke")
    sweep = saved_sweep(here)
    sweep.save()
    victim = here.path(sweep.keys[0])
    content = victim.read_text()
    victim.unlink()
    with pytest.raises(StoreError, match="missing"):
        publish.publish("smoke")
    victim.write_text(content.replace('"psnr"', '"snr"'))
    with pytest.raises(StoreError, match="lacks psnr"):
        publish.publish("smoke")
    assert not (root / "results").exists()
    victim.write_text(content)
    assert publish.publish("smoke") == (len(sweep.keys), [], 0)
    there = Store("smoke", "results")
    assert [x.frame().equals(sweep.frame()) for x in there.sweeps()] == [True]
    assert publish.newest("smoke").base == "runs"


def test_what_is_committed_is_shown_and_only_what_is_not_is_trained_or_published(root, monkeypatch):
    made = saved_sweep(Store("smoke"), seed=[0])
    made.save()
    publish.publish("smoke")
    psnr = made.frame().psnr
    shutil.rmtree(root / "runs")
    study = Study("20_trio", "smoke", seed=[0], depth=None, mixer=["convmixer", "mixer", "igpt"])
    sweep, asked = study.plan(study.every_combination("seed", "depth", "mixer")), []
    monkeypatch.setattr(executor, "train", lambda configs, store: asked.extend(store.has(key(cfg)) for cfg in configs))
    assert not sweep.missing() and sweep.frame().psnr.equals(psnr)
    sweep.train()
    assert not asked, "nothing is missing"
    image = next(record["key"] for record in sweep.records() if "arrays" in record)
    assert sweep.store.arrays(image).keys() == Store("smoke", "results").arrays(image).keys()
    assert publish.newest("smoke").sweeps()[0].frame().psnr.notna().all(), "drawn from what is committed"
    assert publish.publish("smoke") == (0, [], 0)

    changed = Study("20_trio", "smoke", seed=[0], depth=[1, 3], mixer=["convmixer"])
    changed.plan(changed.every_combination("seed", "depth", "mixer")).train()
    assert asked == [True, False]
    assert len(study.plan(study.every_combination("seed"), weights=True).missing()) == 3, "weights are not committed"
    monkeypatch.setenv(FROM_SCRATCH, "quick")
    assert not study.plan(study.every_combination("seed", "depth", "mixer")).missing(), "of another profile"
    monkeypatch.setenv(FROM_SCRATCH, "smoke")
    assert study.plan(study.every_combination("seed", "depth", "mixer")).missing() == sweep.keys


def test_committed_runs_picked_at_random_are_trained_again_bit_for_bit(root, capsys, monkeypatch):
    study = Study("20_trio", "smoke", mixer=["conv"], depth=[1], seed=[0, 1])
    sweep = study.plan(study.every_combination("seed", "depth", "mixer"))
    for cfg in sweep.configs:
        for make in (run.baseline, run.init, run.run):
            make(cfg, sweep.store)
    sweep.save()
    publish.publish("smoke", [sweep.name])
    committed, key = Store("smoke", "results"), sweep.keys[0]
    for row, whole in zip(committed.load(key)["history"], sweep.store.load(key)["history"], strict=True):
        assert row["step"] == whole["step"] and row["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert len(str(row["loss"]).replace(".", "").lstrip("0")) <= publish.DIGITS
    one, whole = committed.arrays(key)["correct"], sweep.store.arrays(key)["correct"]
    assert not one[0].any() and whole[0].any() and (one[1:] == whole[1:]).all()
    assert main(["check", "1", "--profile", "smoke", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "agrees to the digit" in said and said.split()[-1] == "agrees" and "equal" in said
    evaluate = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda *given: evaluate(*given) | {"psnr": 3.0})
    assert main(["check", "5", "--profile", "smoke"]) == 1
    said, error = capsys.readouterr()
    assert "DIFFERS" in said and "others" in said and "2 of 10 numbers differ" in error
    assert main(["check", "1", "--profile", "cifar10"]) == 1 and "has no records in results/" in capsys.readouterr().err


def test_publish_leaves_out_sweeps_with_other_settings_unless_named(root):
    sweep = saved_sweep(Store("smoke"), seed=[0])
    sweep.save()
    side = replace(sweep, name="20_trio-side", content={**sweep.content, "changed": {"lr": 1.0}, "runs": sweep.runs[:1]})
    side.save()
    assert publish.publish("smoke")[1] == ["20_trio-side"]
    assert [x.name for x in Store("smoke", "results").sweeps()] == ["20_trio"]
    publish.publish("smoke", ["20_trio-side"])
    assert [x.name for x in Store("smoke", "results").sweeps()] == ["20_trio", "20_trio-side"]
    with pytest.raises(StoreError, match="no such sweep"):
        publish.publish("smoke", ["21_trio"])


def test_an_installed_package_is_not_published_to(root, monkeypatch):
    saved_sweep(Store("smoke"), seed=[0]).save()
    monkeypatch.setattr(places, "CHECKOUT", None)
    monkeypatch.delenv("BIASNB_ROOT")
    monkeypatch.chdir(root)
    for call in (publish.publish, publish.publish_networks):
        with pytest.raises(StoreError, match="belongs to the installed package"):
            call("smoke")
    assert places.results().is_relative_to(places.PACKAGE) and not places.results().exists()
    (root / "results").mkdir()
    assert publish.publish("smoke")[0] and (root / "results" / "smoke").is_dir()


def test_agreement_reports_each_metric_and_what_is_outside(root):
    here, there = Store("smoke"), Store("smoke", "results")
    assert "nothing to compare" in publish.agreement("smoke")[0]
    for seed in range(3):
        there.save(run_record("mixer", 2, seed))
        here.save(run_record("mixer", 2, seed, psnr=22.0625 if seed else 27.0))
    for store in (here, there):
        store.save(run_record("mixer", 2, 0, pretext="supervised"))  # has no PSNR
    text = "\n".join(publish.agreement("smoke"))
    assert "4 runs" in text
    assert "PSNR, dB | ± 0.1 | 0.062 | 5 | NO, 2 of 3" in text
    assert "probe, % | ± 2 | 0 | 0 | yes" in text
    there.save(run_record("mixer", 2, 1, status="diverged"))
    here.path(run_record("mixer", 2, 2)["key"]).write_text("{")
    text = "\n".join(publish.agreement("smoke"))
    assert f"Broken records, see `biasnb status`: {run_record('mixer', 2, 2)['key']}" in text
    assert f"Diverged here or in the reference, not in both: {run_record('mixer', 2, 1)['key']}" in text
