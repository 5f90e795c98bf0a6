"""The speed benchmark: it compares with the same network from timm's parts, and writes its rows."""

import io

import bench
import pytest

from biasnb.config import configure
from biasnb.records.files import read_json
from biasnb.sweep.estimate import networks

SMALL = {"image_size": 8, "width": 8, "heads": 2, "kernel": 3, "batch": 16}


def small(**fields):
    return configure("smoke", **{**SMALL, **fields})


@pytest.fixture
def fast(monkeypatch):
    rates = bench.rates
    monkeypatch.setattr(bench, "rates", lambda steps, **_: rates(steps, windows=1, seconds=0.001))


@pytest.mark.parametrize("mixer", bench.TRIO)
def test_the_networks_from_timm_have_as_many_parameters_but_for_biases(mixer):
    cfg = small(mixer=mixer, depth=2)
    ours, timm = networks(cfg, "cpu", 20)[1][0], bench.Timm(cfg)
    count = sum(p.numel() for name, p in timm.named_parameters() if not name.endswith("bias"))
    assert count == pytest.approx(sum(p.numel() for p in ours.parameters()), rel=0.03)


def test_a_row_of_the_benchmark_compares_with_the_same_network_from_timm(fast):
    cfg = small(mixer="igpt", depth=2)
    parts = {name: bench.theirs(cfg, "cpu", loader=name == "loader") for name in ("timm", "loader")}
    for factor, precisions in ((0.01, ["fp32"]), (2.0, ["fp32", "bf16"])):
        ceiling = {"matmul fp32, GFLOP/s": 100.0, "matmul bf16, GFLOP/s": factor * 100.0, "copy, GB/s": 10.0}
        row = bench.measured(cfg, "cpu", ceiling, **parts)
        assert [name for name in ("fp32", "bf16") if f"{name}, images/s" in row] == precisions
        assert row["best"] in precisions and all(f"{name} / timm" in row for name in precisions) and "fp32 / loader" in row
        assert row["N"] == 16 and row["MFLOP/image"] > 0 and row["MB"] > 0


def test_a_ratio_is_of_windows_side_by_side_with_its_spread():
    assert bench.ratio([1.0, 4.0, 3.0], [2.0, 1.0, 1.0]) == "3.00 (0.50 to 4.00)"


def test_the_parts_of_a_run_are_timed(root, fast, monkeypatch):
    monkeypatch.setattr(bench, "TRIO", ("mixer",))
    (row,) = bench.run("cpu", {}, "smoke")
    parts = [float(row[name].split()[0]) for name in ("data", "steps", "loss and PSNR", "features", "measures", "saving")]
    assert sum(parts) <= row["all"] + 0.05 and row["steps of the run"] == configure("smoke").steps


def test_the_benchmark_prints_and_writes_its_rows(root, fast, monkeypatch, capsys):
    monkeypatch.setattr(bench, "TRIO", ("conv_dense",))
    monkeypatch.setattr(bench, "base", lambda **fields: small(**{**SMALL, **fields}))
    path = bench.bench(["seeds"], io.StringIO())
    found = read_json(path)
    assert [row["mixer"] for row in found["seeds"]] == ["conv_dense"] * 2
    assert found["seeds"][0].keys() >= {"3 seeds / one", "5 seeds / one"} and found["ceilings"]["copy, GB/s"] > 0
    assert bench.main(["seds"]) == 2 and "did you mean 'seeds'" in capsys.readouterr().err
