"""The committed reference: which records are copied there, and what the comparison with it says."""

from dataclasses import replace

import pytest
from synthetic import run_record, saved_sweep

from biasnb.records import places
from biasnb.records.store import Store, StoreError
from biasnb.suite import publish


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
