import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from scipy import stats as scipy_stats
from synthetic import NO_TORCH, grid, run_record

from biasnb import figures, stats, store, suite, tables
from biasnb.store import Store

CHECKOUT = store.ROOT


def test_mean_interval_agrees_with_scipy():
    x = [1.0, 2.5, 2.0, 4.0]
    mean, half, n = stats.mean_interval([*x, float("nan")])
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(x), scipy_stats.sem(x))
    assert (mean - half, mean + half, n) == pytest.approx((low, high, 4))
    assert stats.mean_interval([3.0])[::2] == (3.0, 1)
    assert stats.mean_interval([])[2] == 0


def test_trio_table_shows_mean_interval_n_and_floors(root):
    table = tables.trio(grid(Store("smoke"), seeds=3))
    assert table["n"].tolist()[:6] == [3] * 6
    assert table["masked PSNR, dB"].str.contains(r"^2\d\.\d\d ± \d\.\d\d$").sum() == 6
    assert "visible-neighbour mean" in table.network.tolist()
    assert table.loc[table.network == "raw pixels", "probe, %"].item() == "42.0"


def test_missing_and_diverged_runs_are_counted_and_never_averaged(root):
    g = grid(Store("smoke"), seeds=3)
    before = tables.trio(g)
    keys = [run["key"] for run in g.content["runs"] if run["mixer"] == "igpt" and run["depth"] == 1]
    g.store.path(keys[0]).unlink()
    g.store.save(run_record("igpt", 1, 1, status="diverged"))
    row = tables.trio(g).set_index(["network", "depth"]).loc[("iGPT (attention)", 1)]
    assert (row["n"], row["diverged"], row["missing"]) == (1, 1, 1)
    left = g.store.load(keys[2])["psnr"]["test"]
    assert row["masked PSNR, dB"] == f"{left:.2f}"
    assert before.set_index(["network", "depth"]).loc[("iGPT (attention)", 1), "n"] == 3


def test_differences_are_paired_by_seed(root):
    g = grid(Store("smoke"), seeds=3)
    frame = g.frame().pivot(index=["depth", "seed"], columns="mixer", values="psnr").loc[2]
    row = tables.differences(g).set_index(["difference", "depth"]).loc[("iGPT (attention) − ConvMixer (convolution)", 2)]
    assert row["masked PSNR, dB"] == tables.plus_minus(frame["igpt"] - frame["convmixer"], 2)
    assert row["n"] == 3
    assert len(tables.differences(g)) == 3 * 2


def test_a_grid_without_any_record_still_renders(root):
    g = grid(Store("smoke"), seeds=1)
    for path in g.store.folder.glob("*.json"):
        path.unlink()
    assert tables.trio(g)["missing"].tolist() == [1] * 6
    assert figures.write(g, root / "out")


def test_rendering_twice_gives_identical_bytes(root):
    for experiment in ("20_trio", "40_reconstructions"):
        g = grid(Store("smoke"), experiment=experiment, seeds=1 if experiment.startswith("40") else 3)
        g.save()
    one, other = suite.render(g.store, root / "one"), suite.render(g.store, root / "other")
    assert {p.suffix for p in one} == {".png", ".svg", ".pdf", ".md", ".csv"}
    assert [p.name for p in one] == [p.name for p in other]
    for a, b in zip(one, other, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_committed_figures_are_drawn_from_committed_records_fast_without_torch(tmp_path):
    """`figures/` shows what `results/` gives, drawn anew in another time zone and locale, in 20 s, with torch barred."""
    for name in ("results", "figures"):
        assert (CHECKOUT / name).is_dir()
    os.symlink(CHECKOUT / "results", tmp_path / "results")
    script = NO_TORCH + "from biasnb.__main__ import main; sys.exit(main(['figures']))"
    env = {**os.environ, "BIASNB_ROOT": str(tmp_path), "PYTHONPATH": str(CHECKOUT), "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 20
    drawn = {p.relative_to(tmp_path / "figures") for p in (tmp_path / "figures").rglob("*") if p.is_file()}
    committed = {p.relative_to(CHECKOUT / "figures") for p in (CHECKOUT / "figures").rglob("*") if p.is_file()}
    assert drawn and drawn == committed
    for path in drawn:
        one, other = tmp_path / "figures" / path, CHECKOUT / "figures" / path
        if path.suffix in (".md", ".csv"):
            assert one.read_bytes() == other.read_bytes(), path
        elif path.suffix == ".png":  # another matplotlib may set a few pixels otherwise
            a, b = (np.asarray(Image.open(p).convert("RGB"), int) for p in (one, other))
            assert a.shape == b.shape and (np.abs(a - b).max(2) > 32).mean() < 0.01, path


def test_committed_records_validate_and_hold_no_path():
    for folder in sorted((CHECKOUT / "results").glob("*")):
        reference = Store(folder.name, "results")
        assert reference.grids()
        for g in reference.grids():
            assert not g.missing(), g.name
            for key in g.keys:
                assert "arrays" not in reference.load(key) or reference.arrays(key)
        for path in folder.rglob("*.json"):
            assert '"/' not in path.read_text(), path


@pytest.mark.parametrize("words", [["--help"], ["list"], ["status", "--profile", "smoke"]])
def test_light_commands_import_no_torch(words, tmp_path):
    script = NO_TORCH + "from biasnb.__main__ import main; sys.exit(main(sys.argv[1:]))"
    env = {**os.environ, "BIASNB_ROOT": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", script, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
