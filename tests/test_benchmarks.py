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
    row = bench.measured(cfg, "cpu", bench.ceilings("cpu"), **parts)
    assert row["best"] in ("fp32", "bf16") and row["best / timm"] > 0 and row["best / loader"] > 0
    assert row["N"] == 16 and row["MFLOP/image"] > 0 and row["MB"] > 0


def test_the_benchmark_prints_and_writes_its_rows(root, fast, monkeypatch, capsys):
    monkeypatch.setattr(bench, "TRIO", ("conv_dense",))
    monkeypatch.setattr(bench, "base", lambda **fields: small(**{**SMALL, **fields}))
    path = bench.bench(["seeds"], io.StringIO())
    found = read_json(path)
    assert [row["mixer"] for row in found["seeds"]] == ["conv_dense"] * 2
    assert found["seeds"][0].keys() >= {"3 seeds / one", "5 seeds / one"} and found["ceilings"]["copy, GB/s"] > 0
    assert bench.main(["seds"]) == 2 and "did you mean 'seeds'" in capsys.readouterr().err
