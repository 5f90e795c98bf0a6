"""What runs cost: predicted."""

import pytest
from synthetic import record_of

from biasnb.config import configure
from biasnb.records import provenance
from biasnb.records.keys import key
from biasnb.records.store import Store
from biasnb.suite.commands import main
from biasnb.sweep import estimate as cost
from biasnb.sweep import executor, manifest

SMALL = {"image_size": 8, "width": 8, "heads": 2, "kernel": 3, "batch": 16}


def planned(name, profile="smoke"):
    """The Configs that a notebook asks for."""
    sweep = manifest.plan(name, manifest.parameters(name, {"profile": profile}))
    return sweep.configs if sweep else ()


def small(**fields):
    return configure("smoke", **{**SMALL, **fields})


@pytest.mark.parametrize("mixer", ["conv", "full", "igpt", "mixer"])
def test_what_is_kept_for_the_backward_pass_grows_with_every_block_alike(mixer):
    kept = []
    for depth in (1, 2, 3):
        cfg = small(mixer=mixer, depth=depth)
        kept.append(cost.activations(cfg, cost.networks(cfg, "cpu", 20)[1][0]))
    assert kept[2] - kept[1] == kept[1] - kept[0] > 4 * cfg.grid**2 * cfg.width * 4  # bytes; four tokens and more


def calibration(configs, seconds=None):
    """As if an image took a second per GFLOP to train on, and a tenth to look at."""
    found = {None: 1e9}
    for cfg in configs:
        flop = 1_000_000 * (cfg.depth + 1)
        found[cfg] = {"flop": flop, "needed": flop // 2, "parameters": 100 * cfg.depth, "step": flop / 1e9,
                      "forward": flop / 1e10, "bytes": flop}  # fmt: skip
    return found


def test_a_prediction_is_linear_in_depth_steps_and_batch():
    asked = [small(mixer="conv", depth=depth, steps=steps, batch=batch)
             for depth, steps, batch in ((1, 100, 16), (4, 100, 16), (4, 200, 16), (4, 200, 32))]  # fmt: skip
    shapes = {cost.shape(cfg, depth) for cfg in asked for depth in (1, 2)}
    predictor = cost.Predictor(calibration(shapes))
    assert [predictor.run(cfg)["training"] for cfg in asked] == pytest.approx([3.2, 8.0, 16.0, 32.0])
    assert predictor.run(asked[3])["bytes"] == 16 * 400 + 32 * 5_000_000


def test_what_was_not_timed_takes_the_rate_of_its_mixer():
    one, two = (cost.shape(small(mixer="conv", width=width), 1) for width in (8, 16))
    other = cost.shape(small(mixer="full"), 1)
    found = {one: {"flop": 10, "parameters": 1, "step": 5.0, "forward": 1.0, "bytes": 20}, None: 1.0,
             two: {"flop": 30, "parameters": 1}, other: {"flop": 20, "parameters": 1}}  # fmt: skip
    predictor = cost.Predictor(found)
    assert (predictor.found[two]["step"], predictor.found[other]["bytes"]) == (15.0, 40)


def test_a_run_under_an_equal_budget_has_the_steps_that_it_affords():
    cfg = small(mixer="igpt", budget="flop", steps=100)
    shapes = [cost.shape(cfg, depth, **fields) for depth in (1, 2) for fields in ({}, cost.identity(cfg))]
    found = calibration(shapes)
    for shape in shapes[0], shapes[2]:
        found[shape]["needed"] *= 4
    assert cost.Predictor(found).run(cfg)["training"] == pytest.approx(25 * 16 * 2e-3)


def test_a_plan_lists_every_notebook_counts_a_run_once_and_says_how_far_off_it_was(root, monkeypatch, capsys):
    monkeypatch.setattr(cost, "calibrate", calibration)
    assert main(["plan", "--profile", "smoke"]) == 0
    first = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in first.splitlines() if line.split()[0] in manifest.names()}
    assert list(rows) == manifest.names()
    every = {key(cfg) for name in manifest.names() for cfg in planned(name)}
    assert sum(int(row[2]) for row in rows.values()) == len(every)
    assert rows["20_trio"][1] == "12" and "times what it took" not in first
    for cfg in planned("20_trio"):
        record = record_of(cfg)
        Store("smoke").save(record | {"wall_seconds": 2 * cfg.steps * cfg.batch * 1e-3 * (cfg.depth + 1)})
    assert main(["plan", "--profile", "smoke", "depth=1,2"]) == 0
    again = capsys.readouterr().out
    assert "Of 12 runs that are done here, training was predicted at 0.50 times" in again


def test_calibration_measures_on_the_workers_that_train(scheduler):
    configs = [cost.shape(small(mixer=mixer, pretext=pretext), 1) for mixer, pretext in (("conv", "bert"), ("igpt", "none"))]
    found = cost.calibrate(configs, seconds=60)
    assert found.keys() == {None, *configs} and found[None] > 1e6
    assert found[configs[0]]["step"] > 0 and found[configs[1]]["step"] == 0
    assert all(one["forward"] > 0 and one["flop"] > 0 for cfg, one in found.items() if cfg)


def test_sizes_of_downloaded_sets_are_known_without_the_data_and_large_images_keep_their_patch(root, monkeypatch):
    def no_data(*_):
        raise AssertionError("the data are read")

    monkeypatch.setattr("biasnb.data.datasets.load", no_data)
    for dataset in ("cifar10", "cifar10_jpeg", "cifar100", "svhn", "stl10", "fashionmnist"):
        train, val, test, classes = cost.sizes(dataset)
        assert train > 4 * val and test > 5000 and classes in (10, 100)
    assert cost.sizes("cifar10", image_size=128, patch=4) == (45_000, 5_000, 10_000, 10)


@pytest.mark.parametrize(
    ("flags", "instructions"),
    [("fpu avx512f avx512_bf16", ["avx512_bf16"]), ("fpu avx2", []), ("amx_bf16 avx512_bf16", ["avx512_bf16", "amx_bf16"])],
)
def test_runs_in_bf16_are_said_to_be_slow_where_the_processor_has_no_instructions_for_it(
    flags, instructions, tmp_path, monkeypatch
):
    (tmp_path / "cpuinfo").write_text(f"model name\t: A\nflags\t\t: {flags}\nmodel name\t: B\n")
    monkeypatch.setattr(provenance, "CPUINFO", tmp_path / "cpuinfo")
    assert provenance.environment()["cpu"] == "A" and provenance.bf16_instructions() == instructions
    fp32, bf16 = configure("smoke"), configure("smoke", precision="bf16")
    line = executor.slow_bf16([fp32, bf16, bf16])
    assert line is None if instructions else "2 runs" in line and "10 times as long as in fp32" in line
    assert executor.slow_bf16([fp32, configure("smoke", precision="bf16", pretext="none")]) is None


def test_where_the_system_does_not_say_what_the_processor_has_nothing_is_said(monkeypatch):
    monkeypatch.setattr(provenance, "CPUINFO", provenance.Path("none"))
    assert provenance.bf16_instructions() is None and provenance.environment()["cpu"]
    assert executor.slow_bf16([configure("smoke", precision="bf16")]) is None
