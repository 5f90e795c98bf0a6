import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from forked import pictures
from synthetic import init_record, record_of

from biasnb.config import BiasnbError, configure
from biasnb.data.datasets import Data, Split, load
from biasnb.networks import model
from biasnb.records.keys import baseline_key, init_key, key
from biasnb.records.store import Store, StoreError
from biasnb.suite.commands import main
from biasnb.training import loop as train
from biasnb.training import pretext, run

pytestmark = pytest.mark.usefixtures("brief")
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


def test_networks_of_one_seed_see_the_same_flips_whatever_their_patch_and_task(images):
    pool = tiny(images).pool
    tasks = [{"pretext": task, "patch": patch} for task in ("bert", "ar", "denoise", "supervised") for patch in (1, 2)]
    for augment in ("flip", "crop"):
        plain = configure("smoke", **QUIET, augment=augment)
        views = [train.Batches(replace(plain, **task), pool).at(3)[0] for task in tasks]
        assert all(torch.equal(view, views[0]) for view in views)
        still, masks = train.Batches(replace(plain, augment="none"), pool).at(3)
        assert not torch.equal(still, views[0])
        assert torch.equal(masks, train.Batches(plain, pool).at(3)[1]), "the masks do not depend on the flips"


SAID = {"bert": "masked PSNR  1", **dict.fromkeys(("ar", "denoise"), "PSNR         1"), "supervised": "accuracy     ",
        "none": "probe  "}  # fmt: skip


@pytest.mark.parametrize("task", SAID)
@pytest.mark.parametrize("target", ["rgb", "palette"])
def test_a_record_of_every_pretext_validates_and_holds_what_the_task_has_and_the_command_says_so(root, capsys, task, target):
    cfg, store = configure("smoke", pretext=task, target=target), Store("smoke")
    with train.threads(2):
        assert main(["run", "--profile", "smoke", f"pretext={task}", f"target={target}"]) == 0
    said, record, arrays = capsys.readouterr().out, store.load(key(cfg)), store.arrays(key(cfg))
    assert f"\n{SAID[task]}" in said and "\nprobe        " in said and "\nk-NN         " in said and "k = 20" in said
    assert ("PSNR" in said, "\naccuracy" in said) == (task in PREDICTED, task == "supervised")
    assert record["status"] == "done" and record["environment"]["threads"] == 1
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
    start = store.load(record["init"])
    assert (record["probe"] == start["probe"]) == (record["measures"] == start["measures"]) == (task == "none")
    right = arrays["correct"] >> 3 & 1
    assert right.mean(1) == pytest.approx([row[3] for row in record["probe"]["test"]])
    assert len(record["probe"]["knn"]) == cfg.depth + 1


@pytest.mark.parametrize(
    "fields",
    [{"dataset": "leaves_coded"}, {"dataset": "digits"}, {"permute": "pixels"}, {"images": 64}, {"mixer": "conv_frozen"}],
)
def test_a_run_of_other_data_or_shape_leaves_a_record_and_baselines(root, fields):
    cfg, store = configure("smoke", **fields), Store("smoke")
    record, baseline = run.run(cfg, store), run.baseline(cfg, store)
    assert store.load(record["key"]) == record and store.load(baseline["key"]) == baseline
    start = run.init(cfg, store)
    assert start["key"] == record["init"] and store.load(record["init"]) == start
    assert record["data"]["fingerprint"] == baseline["data"]["fingerprint"] == start["data"]["fingerprint"]
    assert record["data"]["pool"] == (64 if "images" in fields else 3087 if fields.get("dataset") == "digits" else 3000)
    groups = store.arrays(baseline["key"])["groups"] if "arrays" in baseline else None
    assert np.array_equal(groups, load(cfg).groups) and (groups is None) == (fields.get("dataset") == "leaves_coded")


def test_psnr_is_measured_at_fractions_of_the_steps_and_changes_no_update(root, monkeypatch):
    cfg, store = configure("smoke", steps=16), Store("smoke")
    record = run.run(cfg, store)
    assert [row["step"] for row in record["psnr_by_step"]] == [2, 4, 8, 16]
    assert record["psnr_by_step"][-1]["psnr"] == record["psnr"]["test"]
    assert len({row["psnr"] for row in record["psnr_by_step"]}) == 4
    monkeypatch.setattr(train, "EARLIER", ())
    assert run.run(cfg, Store("ends"))["psnr"] == record["psnr"]
    assert run.run(configure("smoke", pretext="supervised"), store)["psnr_by_step"] == []


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


def test_the_pictured_images_are_those_of_highest_contrast_of_each_class_or_part():
    images = torch.zeros(40, 4, 4, 3, dtype=torch.uint8)
    images[:, :2] = torch.arange(40, dtype=torch.uint8)[:, None, None, None]
    labels = torch.arange(40) % 10
    assert run.pictured(Split(images, labels)).tolist() == list(range(30, 40))
    assert run.pictured(Split(images, labels % 9)).tolist() == list(range(3, 40, 4)), "nine classes: parts"
    assert run.pictured(Split(images[:3], labels[:3])).tolist() == [0, 1, 2]


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
    images = run.measured(data.test)
    (end,) = ends
    start = model.features(run.prepare(cfg)[1], images).detach()
    assert record == store.load(key(cfg))
    assert torch.equal(model.features(net, images), end)
    assert not torch.equal(start, end)
    store.path(key(cfg), ".safetensors").unlink()
    with pytest.raises(StoreError, match="weights cannot be read"):
        run.restore(key(cfg), store)


def test_a_record_of_a_folder_counts_only_for_the_images_it_was_made_from(root, tmp_path):
    """Others of the same names, sizes and time stamps are another run, and no network is restored for them."""
    top = pictures(tmp_path / "pets")
    files = [top / "a/0.png", top / "b/1.png"]
    cfg, store = configure("smoke", dataset="folder", data_dir=str(top), labelled=0, steps=2), Store("smoke")
    before = run.run(cfg, store)
    assert run.restore(key(cfg), store, cfg.data_dir)[0] == before
    contents, stamps = [file.read_bytes() for file in files], [file.stat() for file in files]
    assert len(contents[0]) == len(contents[1])
    for file, content, stamp in zip(files, reversed(contents), stamps, strict=True):
        file.write_bytes(content)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(BiasnbError, match=f"{before['key']}: its data or its operator are others now"):
        run.restore(before["key"], store, cfg.data_dir)
    after = run.run(cfg, store)
    assert after["key"] != before["key"] and after["data"]["fingerprint"] != before["data"]["fingerprint"]


def test_the_weight_norm_in_the_history_is_that_of_all_weights(images):
    d, cfg = tiny(images), configure("smoke", **QUIET, lr=0.05)
    state, history = trained(cfg, d)
    start = model.build(cfg, d.stats()).state_dict()
    norms = [float(torch.cat([p.flatten() for p in weights.values()]).norm()) for weights in (start, state)]
    assert history[-1]["weight_norm"] == pytest.approx(norms[1], rel=1e-6)
    assert abs(norms[1] - norms[0]) > 1e-4 * norms[0]


def test_a_network_whose_measures_are_not_finite_has_diverged(root, monkeypatch):
    """And not a traceback from the JSON writer."""
    network = run.measures.network

    def spoilt(model, images):
        measures, field = network(model, images)
        return {**measures, "roll_error": [float("nan")]}, field

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


# ---- random init and records of an older protocol -----------------------------------------------------------------------


def test_runs_that_start_alike_share_the_record_at_random_init(root, monkeypatch):
    store = Store("smoke")
    start = run.init(configure("smoke", mask_rate=0.25, lr=0.1), store)
    monkeypatch.setattr(run, "make_init", None)
    assert run.init(configure("smoke"), store) == start
    assert run.init(configure("smoke", pretext="denoise", steps=2), store) == start


@pytest.mark.parametrize("fields", [{"pretext": "none"}, {"pretext": "denoise"}, {"target": "palette"}, {"augment": "flip"}])
def test_a_network_whose_key_at_random_init_is_equal_has_equal_features(root, fields):
    one, other = configure("smoke"), configure("smoke", **fields)
    (data, first), (again, second) = run.prepare(one), run.prepare(other)
    assert init_key(one) == init_key(other) and key(one) != key(other)
    assert torch.equal(model.features(first, data.test.images), model.features(second, again.test.images))


def outdate(store, k):
    record = json.loads(store.path(k).read_text())
    store.path(k).write_text(json.dumps(record | {"protocol": 0, "probe": {}, "measures": {}}))


def test_a_record_of_an_older_protocol_is_evaluated_again_from_its_weights(root, capsys):
    """To the numbers that it had; nothing is trained, and what came with training stays."""
    cfg, store = configure("smoke"), Store("smoke")
    assert main(["run", "--profile", "smoke"]) == 0
    names = key(cfg), init_key(cfg), baseline_key(cfg)
    before, arrays = {name: store.load(name) for name in names}, store.arrays(key(cfg))
    assert list(run.evaluate_again((), store)) == [f"{key(cfg)}: up to date"]
    for name in names:
        outdate(store, name)
    assert main(["run", "--profile", "smoke"]) == 1
    assert "evaluated by protocol 0, this version reads 1; run `biasnb evaluate --profile smoke`" in capsys.readouterr().err
    assert store.status(key(cfg))[0] == "broken" and "biasnb evaluate" in store.status(key(cfg))[1]
    assert main(["evaluate", "--profile", "smoke"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("baselines of ")]
    assert said == [f"{key(cfg)}: evaluated again from its weights", *(f"{name}: computed again" for name in names[1:])]
    after = store.load(key(cfg))
    assert after.pop("evaluated") and after.pop("evaluation_seconds") > 0
    assert after == {name: value for name, value in before[key(cfg)].items() if name != "evaluation_seconds"}
    assert [store.load(name)["measures"] for name in names[:2]] == [before[name]["measures"] for name in names[:2]]
    assert all(np.array_equal(store.arrays(key(cfg))[name], array) for name, array in arrays.items())


def test_what_cannot_be_evaluated_again_is_named(root):
    lost, other = configure("smoke"), configure("smoke", seed=1)
    store = Store("smoke")
    for cfg in (lost, other):
        store.save(record_of(cfg, status="done" if cfg == lost else "diverged"))
        outdate(store, key(cfg))
    store.save(init_record(configure("smoke", depth=3)))
    orphan = init_key(configure("smoke", depth=3))
    outdate(store, orphan)
    said = dict(line.split(": ", 1) for line in run.evaluate_again((), store))
    assert said[key(lost)].startswith("its weights are missing (") and said[key(lost)].endswith("to train it anew")
    assert said[key(other)] == "diverged, nothing to evaluate" and store.load(key(other))["status"] == "diverged"
    assert said[orphan] == "belongs to none of these runs; delete it"
