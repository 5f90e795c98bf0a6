import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from biasnb import checkpoint, model, run, train
from biasnb.config import MIXERS, BiasnbError, configure, key
from biasnb.data import Data, Split, load
from biasnb.store import ROOT, Store, StoreError

QUIET = {
    "steps": 12,
    "batch": 8,
    "image_size": 8,
    "width": 8,
    "heads": 2,
    "kernel": 3,
    "depth": 1,
    "colours": 8,
    "mask_rate": 0.5,
}


def tiny(images, n=64):
    labels = torch.arange(n) % 4
    split = Split(images(n, 8), labels)
    return Data("tiny", ("a", "b", "c", "d"), split, split, split, "fingerprint")


def trained(cfg, d, folder=None, stop=None):
    from biasnb import palette as palettes

    palette = palettes.fit(d.train.images, cfg.colours) if cfg.uses_palette else None
    net = model.build(cfg, d.stats(), palette)
    checkpoints = checkpoint.Checkpoints(folder, {"key": key(cfg)}, seconds=0) if folder else None
    if stop:
        due = checkpoints.due
        checkpoints.due = lambda now: due(now) and not stop(checkpoints)
    log = train.pretrain(cfg, d, net, checkpoints)
    return net.state_dict(), log["history"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_same_seed_same_tensors_and_other_seed_others(images):
    d, cfg = tiny(images), configure("smoke", **QUIET)
    one, other = trained(cfg, d), trained(cfg, d)
    assert equal(one[0], other[0])
    assert one[1] == other[1]
    assert not equal(one[0], trained(replace(cfg, seed=1), d)[0])


@pytest.mark.parametrize("mixer", list(MIXERS))
@pytest.mark.parametrize(("seen", "target", "augment"), [("rgb", "rgb", "crop"), ("palette", "palette", "flip")])
def test_interrupted_anywhere_and_resumed_is_equal(images, tmp_path, monkeypatch, mixer, seen, target, augment):
    d = tiny(images)
    cfg = configure("smoke", **QUIET, mixer=mixer, input=seen, target=target, augment=augment)
    whole = trained(cfg, d)

    class Stopped(Exception):
        pass

    save = checkpoint.Checkpoints.save
    for step in (3, 7, 11):

        def saved(self, at, *rest, step=step):
            save(self, at, *rest)
            if at == step:
                raise Stopped

        monkeypatch.setattr(checkpoint.Checkpoints, "save", saved)
        with pytest.raises(Stopped):
            trained(cfg, d, tmp_path)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    resumed = trained(cfg, d, tmp_path)
    assert equal(whole[0], resumed[0])
    assert whole[1] == resumed[1]


def test_the_loop_overfits_eight_images(images):
    x = torch.nn.functional.interpolate(images(8, 4).permute(0, 3, 1, 2), scale_factor=2).permute(0, 2, 3, 1).contiguous()
    split = Split(x, torch.arange(8) % 4)
    d = Data("eight", ("a", "b", "c", "d"), split, split, split, "fingerprint")
    cfg = configure("smoke", **{**QUIET, "steps": 600, "width": 48, "depth": 2, "mixer": "mixer", "lr": 5e-3, "mask_rate": 0.3})
    history = trained(cfg, d)[1]
    assert history[0]["loss"] > 0.9
    assert history[-1]["loss"] < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_falls_in_either_precision(root, precision):
    cfg = configure("smoke", steps=60, lr=5e-3, precision=precision)
    history = trained(cfg, load(cfg))[1]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


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
    codes = d.train.images.flatten(1).float().sum(1)
    monkeypatch.setitem(train.LOSSES, "bert", lambda net, x, mask: seen.extend(x.flatten(1).float().sum(1).tolist()) or
                        train_loss(net, x, mask))  # fmt: skip
    trained(configure("smoke", **{**QUIET, "steps": 8}), d)
    assert sorted(seen) == sorted(codes.tolist())


def train_loss(net, x, mask):
    from biasnb.pretext import bert_loss

    return bert_loss(net, x, mask)


def test_a_loss_that_is_not_finite_stops_before_the_update(images, monkeypatch):
    d, cfg = tiny(images), configure("smoke", **QUIET)
    calls, weights = [], []

    def loss(net, x, mask):
        calls.append(None)
        weights.append({n: p.detach().clone() for n, p in net.named_parameters()})
        return train_loss(net, x, mask) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setitem(train.LOSSES, "bert", loss)
    net = model.build(cfg, d.stats())
    with pytest.raises(train.Diverged, match="step 4") as caught:
        train.pretrain(cfg, d, net)
    assert np.isfinite(caught.value.last)
    assert all(torch.equal(p, weights[-1][n]) for n, p in net.named_parameters())


def test_a_diverged_run_is_recorded_and_not_trained_again(root, monkeypatch):
    cfg = configure("smoke", lr=10.0, clip=1e6, steps=30, warmup=0.0)
    monkeypatch.setitem(train.LOSSES, "bert", lambda *a: train_loss(*a) * torch.tensor(float("inf")))
    store = Store("smoke")
    record = run.run(cfg, store)
    assert (record["status"], record["steps"]) == ("diverged", 0)
    assert store.status(key(cfg))[0] == "diverged"
    monkeypatch.setattr(run, "_run", None)
    assert run.run(cfg, store)["status"] == "diverged"


def test_a_finished_run_is_loaded_not_trained(root, monkeypatch):
    cfg, store = configure("smoke"), Store("smoke")
    record = run.run(cfg, store)
    monkeypatch.setattr(run, "_run", None)
    assert run.run(cfg, store) == record
    arrays = store.arrays(record["key"])
    assert arrays["reconstruction"].shape == (10, 8, 8, 3)
    correct = np.unpackbits(arrays["correct"], count=1000)
    assert correct.mean() == pytest.approx(record["probe"]["chosen"]["test"])
    assert not list((store.folder / "checkpoints").glob("*/*"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(images, tmp_path, capsys):
    d, cfg = tiny(images), configure("smoke", **QUIET)
    whole = trained(cfg, d)
    trained(cfg, d, tmp_path)
    newest, older = checkpoint.Checkpoints(tmp_path, {}).found()
    for spoil in (lambda b: b[:-5], lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:]):
        content = newest.read_bytes()
        newest.write_bytes(spoil(content))
        resumed = trained(cfg, d, tmp_path, stop=lambda c: True)
        assert newest.name in capsys.readouterr().out
        assert equal(whole[0], resumed[0])
        newest.write_bytes(content)
    newest.write_bytes(b"")
    older.write_bytes(b"")
    with pytest.raises(StoreError, match="no intact checkpoint"):
        trained(cfg, d, tmp_path)


def test_a_checkpoint_of_other_settings_is_refused_naming_them(images, tmp_path):
    d, cfg = tiny(images), configure("smoke", **QUIET)
    net = model.build(cfg, d.stats())
    train.pretrain(cfg, d, net, checkpoint.Checkpoints(tmp_path, {"lr": 1.0, "depth": 1}, seconds=0))
    with pytest.raises(StoreError, match="another lr;"):
        train.pretrain(cfg, d, net, checkpoint.Checkpoints(tmp_path, {"lr": 2.0, "depth": 1}, seconds=0))


def test_a_gpu_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BiasnbError, match="device: 'cuda'"):
        run.pick_device(configure("smoke", device="cuda"))


class Runs:
    """`biasnb run` in a process of its own, with a checkpoint every 50 ms."""

    SETTINGS = ("steps=300", "seed=3", "augment=crop")
    SCRIPT = (
        "import sys; from biasnb import checkpoint; checkpoint.Checkpoints.__init__.__defaults__ = (0.05, None);"
        "from biasnb.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )

    def __init__(self, root):
        self.folder = root / "runs" / "smoke"
        self.env = {**os.environ, "BIASNB_ROOT": str(root), "PYTHONPATH": str(ROOT)}

    def start(self, command="run"):
        words = [sys.executable, "-c", self.SCRIPT, command, "--profile", "smoke", *self.SETTINGS]
        return subprocess.Popen(words, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def records(self):
        return [path for path in self.folder.glob("*.json") if not path.name.startswith("floor-")]

    def result(self):
        process = self.start()
        output = process.communicate()[0]
        assert process.returncode == 0, output
        (path,) = self.records()
        record = json.loads(path.read_text())
        return record["history"], record["probe"], record["psnr"], path.with_suffix(".safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("undisturbed")).result()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_killed_process_goes_on_and_ends_equal(tmp_path, undisturbed, number, code):
    """Real processes, real signals: record and weights equal those of an undisturbed run."""
    runs = Runs(tmp_path)
    process = runs.start()
    while not list(runs.folder.glob("checkpoints/*/*.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not runs.records()
    assert "interrupted at step" in runs.start("status").communicate()[0]
    assert runs.result() == undisturbed
