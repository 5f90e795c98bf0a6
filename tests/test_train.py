import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from biasnb.config import BiasnbError, configure
from biasnb.data.datasets import Data, Split, load
from biasnb.networks import model
from biasnb.records.keys import key
from biasnb.records.store import Store, StoreError
from biasnb.suite.commands import main
from biasnb.training import loop as train
from biasnb.training import pretext, run

SIZE = {"image_size": 8, "width": 8, "heads": 2, "kernel": 3, "local_heads": 1, "depth": 1, "colours": 8}
QUIET = {**SIZE, "steps": 12, "batch": 8, "mask_rate": 0.5}
PREDICTED = {"bert", "ar", "denoise"}


def tiny(images, n=64):
    labels = torch.arange(n) % 4
    split = Split(images(n, 8), labels)
    return Data("tiny", ("a", "b", "c", "d"), split, split, split, split, "fingerprint")


def trained(cfg, d):
    net = model.build(cfg, d.stats(), classes=len(d.classes))
    log = train.pretrain(cfg, d, net)
    return net.state_dict(), log["history"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_same_seed_same_tensors_and_other_seed_others(images):
    d, cfg = tiny(images), configure("smoke", **QUIET)
    one, other = trained(cfg, d), trained(cfg, d)
    assert equal(one[0], other[0])
    assert one[1] == other[1]
    assert not equal(one[0], trained(replace(cfg, seed=1), d)[0])


def test_the_loop_overfits_eight_images(images):
    x = torch.nn.functional.interpolate(images(8, 4).permute(0, 3, 1, 2), scale_factor=2).permute(0, 2, 3, 1).contiguous()
    split = Split(x, torch.arange(8) % 4)
    d = Data("eight", ("a", "b", "c", "d"), split, split, split, split, "fingerprint")
    cfg = configure("smoke", **{**QUIET, "steps": 600, "width": 48, "depth": 2, "mixer": "mixer", "lr": 5e-3, "mask_rate": 0.3})
    history = trained(cfg, d)[1]
    assert history[0]["loss"] > 0.9
    assert history[-1]["loss"] < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_falls_in_either_precision(root, precision):
    cfg = configure("smoke", steps=60, lr=5e-3, precision=precision)
    history = trained(cfg, load(cfg))[1]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


@pytest.mark.parametrize("steps", [4, 25, 100])
def test_the_rate_never_exceeds_its_peak(steps):
    """Also where warm-up is no whole number of steps: 0.4 and 2.5 here."""
    cfg = configure("smoke", steps=steps, warmup=0.1, lr=1.0)
    assert max(train.learning_rate(cfg, step) for step in range(steps)) == 1.0


def test_schedule_warms_up_and_ends_near_zero():
    cfg = configure("smoke", steps=100, warmup=0.1, lr=1.0)
    rates = [train.learning_rate(cfg, step) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-3
    assert train.learning_rate(configure("smoke", warmup=0.0), 0) == pytest.approx(configure("smoke").lr)


def test_every_image_is_seen_once_an_epoch(images, monkeypatch):
    seen = []
    d = tiny(images)
    codes = d.pool.images.flatten(1).float().sum(1)
    monkeypatch.setitem(pretext.LOSSES, "bert", lambda net, x, given: seen.extend(x.flatten(1).float().sum(1).tolist()) or
                        pretext.pixel_loss(net, x, given))  # fmt: skip
    trained(configure("smoke", **{**QUIET, "steps": 8}), d)
    assert sorted(seen) == sorted(codes.tolist())


def test_a_finished_run_is_loaded_not_trained(root, monkeypatch):
    cfg, store = configure("smoke"), Store("smoke")
    store.folder.mkdir(parents=True)
    store.path(key(cfg), ".progress").write_text("left by one that was killed")
    record = run.run(cfg, store)
    monkeypatch.setattr(run, "start", None)
    assert run.run(cfg, store) == record
    assert not list(store.folder.glob("checkpoints/*/*")) and not list(store.folder.glob("*.progress"))


SAID = {"bert": "masked PSNR  1", **dict.fromkeys(("ar", "denoise"), "PSNR         1"), "supervised": "accuracy     ",
        "none": "probe  "}  # fmt: skip


@pytest.mark.parametrize("task", SAID)
@pytest.mark.parametrize("target", ["rgb", "palette"])
def test_a_record_of_every_pretext_validates_and_holds_what_the_task_has_and_the_command_says_so(root, capsys, task, target):
    cfg, store = configure("smoke", pretext=task, target=target), Store("smoke")
    assert main(["run", "--profile", "smoke", f"pretext={task}", f"target={target}"]) == 0
    said, record, arrays = capsys.readouterr().out, store.load(key(cfg)), store.arrays(key(cfg))
    assert f"\n{SAID[task]}" in said and "\nprobe        " in said
    assert ("PSNR" in said, "accuracy" in said) == (task in PREDICTED, task == "supervised")
    assert record["status"] == "done"
    assert record["config"].get("target") == (target if task in PREDICTED else None)
    assert record["steps"] == (0 if task == "none" else cfg.steps)
    assert [row["step"] for row in record["history"]] == list(range(1, record["steps"] + 1))
    for part in ("val", "test"):
        has = {name: record[name][part] is not None for name in ("loss", "psnr", "accuracy")}
        assert has == {"loss": task != "none", "psnr": task in PREDICTED, "accuracy": task == "supervised"}
    assert {"images", "correct", "receptive_field"} <= set(arrays)
    assert (arrays["reconstruction"].shape == (10, 8, 8, 3)) if task in PREDICTED else "reconstruction" not in arrays
    assert ("input" in arrays) == (task in PREDICTED)
    assert (record["palette"] is not None) == (target == "palette" and task in PREDICTED)
    assert (record["probe"] == record["init_probe"]) == (record["measures"] == record["init_measures"]) == (task == "none")
    assert np.unpackbits(arrays["correct"], count=1000).mean() == pytest.approx(record["probe"]["chosen"]["test"])


@pytest.mark.parametrize(
    "fields",
    [{"dataset": "leaves_coded"}, {"dataset": "digits"}, {"permute": "pixels"}, {"images": 64}, {"mixer": "conv_frozen"}],
)
def test_a_run_of_other_data_or_shape_leaves_a_record_and_baselines(root, fields):
    cfg, store = configure("smoke", **fields), Store("smoke")
    record, baseline = run.run(cfg, store), run.baseline(cfg, store)
    assert store.load(record["key"]) == record and store.load(baseline["key"]) == baseline
    assert record["data"]["fingerprint"] == baseline["data"]["fingerprint"]
    assert record["data"]["pool"] == (64 if "images" in fields else 3087 if fields.get("dataset") == "digits" else 3000)
    groups = store.arrays(baseline["key"]).get("groups") if "arrays" in baseline else None
    assert np.array_equal(groups, load(cfg).groups) and (groups is None) == (fields.get("dataset") == "leaves_coded")


def test_an_equal_flop_budget_is_spent_by_fewer_steps(root):
    """As many FLOP in training as identity spends in cfg.steps."""
    cfg = configure("smoke", mixer="igpt", budget="flop", steps=200)
    data, net = run.prepare(cfg)
    steps = run.budgeted(cfg, net, data).steps
    plain = run.prepare(replace(cfg, mixer="identity"))[1]
    assert steps < 200
    assert steps * model.flop_per_image(net) == pytest.approx(200 * model.flop_per_image(plain), rel=0.1)
    few, store = replace(cfg, steps=8), Store("smoke")
    record = run.run(few, store)
    assert record["steps"] == len(record["history"]) == round(8 * steps / 200) < 8
    assert record["config"]["steps"] == 8
    assert run.budgeted(replace(cfg, budget="steps"), net, data).steps == 200


@pytest.mark.parametrize("fields", [{}, {"input": "palette", "mixer": "igpt"}, {"pretext": "supervised"}])
def test_restore_gives_back_the_trained_network(root, monkeypatch, fields):
    """Its features equal those at the end of `run`."""
    cfg, store, ends = configure("smoke", **fields), Store("smoke"), []

    def network(net, images):
        ends.append(model.features(net, images).detach())
        return measures_of(net, images)

    measures_of = run.measures.network
    monkeypatch.setattr(run.measures, "network", network)
    run.run(cfg, store)
    record, data, net = run.restore(key(cfg), store)
    images = data.test.images[:: len(data.test.labels) // run.MEASURED][: run.MEASURED]
    start, end = ends
    assert record == store.load(key(cfg))
    assert torch.equal(model.features(net, images), end)
    assert not torch.equal(start, end)
    store.path(key(cfg), ".safetensors").unlink()
    with pytest.raises(StoreError, match="weights cannot be read"):
        run.restore(key(cfg), store)


def test_the_weight_norm_in_the_history_is_that_of_all_weights(images):
    d, cfg = tiny(images), configure("smoke", **QUIET, lr=0.05)
    state, history = trained(cfg, d)
    start = model.build(cfg, d.stats()).state_dict()
    norms = [float(torch.cat([p.flatten() for p in weights.values()]).norm()) for weights in (start, state)]
    assert history[-1]["weight_norm"] == pytest.approx(norms[1], rel=1e-6)
    assert abs(norms[1] - norms[0]) > 1e-4 * norms[0]


def test_a_network_whose_measures_are_not_finite_has_diverged(root, monkeypatch):
    """And not a traceback from the JSON writer."""
    network, calls = run.measures.network, []

    def spoilt(model, images):
        measures, field = network(model, images)
        calls.append(None)
        return ({**measures, "roll_error": [float("nan")]} if len(calls) == 2 else measures), field

    monkeypatch.setattr(run.measures, "network", spoilt)
    cfg, store = configure("smoke"), Store("smoke")
    record = run.run(cfg, store)
    assert store.load(key(cfg)) == record
    assert (record["status"], record["steps"], len(record["history"])) == ("diverged", cfg.steps, cfg.steps)


def test_where_chance_hides_nothing_one_token_is_hidden(images):
    split = Split(images(5, 4), torch.zeros(5, dtype=torch.long))
    cfg = configure("smoke", image_size=4, patch=4, pretext="denoise", mask_rate=0.01)
    assert pretext.evaluation_masks(split, cfg, "test").sum() == 1


def test_a_set_too_small_to_judge_is_refused(images, monkeypatch):
    d = replace(tiny(images), test=Split(images(3, 8), torch.zeros(3, dtype=torch.long)))
    monkeypatch.setattr(run, "load", lambda cfg, device: d)
    with pytest.raises(BiasnbError, match="tiny: 3 test images, fewer than 4; add some"):
        run.prepare(configure("smoke"))
