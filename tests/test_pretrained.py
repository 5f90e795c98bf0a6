"""Published weights: what is copied, what is refused, and what their check finds."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from synthetic import probe

import biasnb
from biasnb.config import configure
from biasnb.data.datasets import DataError
from biasnb.networks import pretrained
from biasnb.networks.model import features
from biasnb.operators import CUBE, TRIO
from biasnb.records import places
from biasnb.records.keys import key
from biasnb.records.store import Store, StoreError
from biasnb.records.sweep import Sweep
from biasnb.suite import publish
from biasnb.sweep import manifest
from biasnb.sweep.study import asked_of
from biasnb.training import run
from biasnb.training.pretext import evaluate

CHECKOUT, WEIGHTS = places.CHECKOUT, "model.safetensors"
SUPERVISED = {"loss", "accuracy, %", "probe, %", "k-NN, %"}
RUNS = {"20_trio": ({"mixer": "igpt"}, {"mixer": "igpt", "seed": 1}), "21_cube": ({"mixer": "conv"}, {"mixer": "lc"})}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, decoded):
    """A root where the networks of two small grids are trained and their records, but no weights, published."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(decoded, root / "runs" / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIASNB_ROOT", str(root))
        here = Store("smoke")
        for name, wanted in RUNS.items():
            configs = [configure("smoke", **fields) for fields in wanted]
            asked = [asked_of(cfg) for cfg in configs]
            Sweep(here, name, {"changed": {}, "runs": asked}).save()
            for cfg in configs:
                run.run(cfg, here)
        shutil.copytree(here.folder, root / "results" / "smoke", ignore=shutil.ignore_patterns("*.safetensors"))
    return root


@pytest.fixture
def made(trained, root):
    shutil.copytree(trained, root, dirs_exist_ok=True)
    return root


def off(rows):
    return {(row["network"], row["metric"]) for row in rows if not row["agrees"]}


def test_a_profile_publishes_the_deepest_of_each_preset_and_every_cell(root):
    with pytest.raises(StoreError, match="holds no sweep to publish"):
        publish.networks(Store("smoke"))
    runs = {}
    for name in ("20_trio", "21_cube", "24_geometry", "26_permutation"):
        sweep = manifest.plan(name, manifest.parameters(name, {"profile": "smoke"}))
        sweep.save()
        runs |= {key(cfg): cfg for cfg in sweep.configs}
    chosen = {mixer: runs[k] for mixer, k in publish.networks(Store("smoke")).items()}
    assert list(chosen) == [*TRIO, *CUBE]
    assert all((cfg.mixer, cfg.seed, cfg.pretext) == (mixer, 0, "bert") for mixer, cfg in chosen.items())
    assert [chosen[mixer].depth for mixer in (*TRIO, *CUBE)] == [2] * 3 + [1] * 8
    assert chosen["lattn"].kernel == configure("smoke").kernel
    assert list(publish.networks(Store("smoke"), ["21_cube"])) == list(CUBE)


def test_published_weights_give_the_recorded_numbers_again(made):
    assert publish.publish_networks("smoke") == ["igpt", "conv", "lc"]
    log = io.StringIO()
    threads = torch.get_num_threads()
    rows = publish.verify("smoke", log)
    assert off(rows) == set()
    assert {row["metric"] for row in rows} == {"data", "PSNR, dB", "loss", "probe, %", "k-NN, %"}
    assert log.getvalue().split("\n")[:3] == ["[1/3] conv", "[2/3] igpt", "[3/3] lc"]
    assert torch.get_num_threads() == threads
    record, _, model = publish.loaded("smoke", "igpt")
    assert (record["key"], model.cfg.seed) == (key(configure("smoke", mixer="igpt")), 0)
    about = json.loads((made / "results/smoke/networks/igpt/config.json").read_text())
    assert about == {**record["config"], "key": record["key"], "profile": "smoke",
                     "mean": model.mean.tolist(), "std": model.std.tolist()}  # fmt: skip


def test_a_weight_changed_by_hand_is_found_by_the_metrics_that_moved(made):
    publish.publish_networks("smoke")
    path = pretrained.folder("smoke") / "conv" / "model.safetensors"
    tensors = load(path.read_bytes())
    tensors["head.weight"][0] += 1.0
    path.write_bytes(save(tensors))
    assert off(publish.verify("smoke", io.StringIO())) == {("conv", "PSNR, dB"), ("conv", "loss")}


def test_values_agree_up_to_what_is_allowed_and_not_beyond():
    record = {"data": {"fingerprint": "a"}, "loss": {"test": 1.0}, "psnr": {"test": None}, "accuracy": {"test": 0.5}}
    record["probe"] = probe(2, 0.5)
    near = {**record, "loss": {"test": 1.0004}, "probe": {**probe(2, 0.5045), "knn": [0.0, 0.5, 0.5008]}}
    far = {**record, "loss": {"test": float("nan")}, "accuracy": {"test": 0.501}, "data": {"fingerprint": "b"}}
    far["probe"] = probe(2, 0.506)
    assert {row[0]: row[-1] for row in publish.compare(record, near)} == dict.fromkeys(["data", *SUPERVISED], True)
    assert {row[0]: row[-1] for row in publish.compare(record, far)} == dict.fromkeys(["data", *SUPERVISED], False)


def changed(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_network_whose_config_is_not_that_of_its_record_is_refused(made):
    with pytest.raises(StoreError, match="no published networks"):
        publish.verify("smoke")
    publish.publish_networks("smoke")
    path = pretrained.folder("smoke") / "lc" / "config.json"
    changed(path, mixer="conv")
    with pytest.raises(StoreError, match=r"lc/config\.json: another config than"):
        publish.loaded("smoke", "lc")
    path.write_text("[]")
    with pytest.raises(StoreError, match=r"lc/config\.json: lacks the key"):
        publish.loaded("smoke", "lc")
    with pytest.raises(StoreError, match=r"'hyena' is not published in .*; there are conv, igpt, lc"):
        publish.loaded("smoke", "hyena")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda own, there: changed(there.with_suffix(".json"), psnr={"test": 1.0, "val": 1.0}), "another psnr than"),
        (lambda own, there: there.with_suffix(".json").unlink(), "no such file"),
        (lambda own, there: own.with_suffix(".safetensors").unlink(), "weights of 1 of 3 networks are missing"),
        (lambda own, there: own.with_suffix(".safetensors").write_bytes(b"none"), "not readable as safetensors"),
    ],
    ids=["other record", "no record", "no weights", "broken weights"],
)
def test_what_does_not_belong_together_is_not_published(made, spoil, reason):
    k = key(configure("smoke", **RUNS["21_cube"][1]))
    spoil(*(made / base / "smoke" / k for base in ("runs", "results")))
    with pytest.raises(StoreError, match=reason) as caught:
        publish.publish_networks("smoke")
    assert k in str(caught.value) and "\n" not in str(caught.value)
    assert not pretrained.folder("smoke").exists()


def test_a_diverged_network_has_no_weights_to_publish(made):
    changed(made / "runs" / "smoke" / f"{key(configure('smoke', mixer='igpt'))}.json", status="diverged")
    assert publish.publish_networks("smoke") == ["conv", "lc"]


def test_data_that_are_not_here_are_said_to_be_missing(made, monkeypatch):
    publish.publish_networks("smoke")

    def prepare(cfg):
        raise DataError(f"no data in {cfg.data_dir}")

    monkeypatch.setattr(run, "prepare", prepare)
    log = io.StringIO()
    rows = publish.verify("smoke", log, "elsewhere")
    assert [(row["network"], row["agrees"]) for row in rows] == [("conv", None), ("igpt", None), ("lc", None)]
    assert "data not here" in rows[0]["measured"] and f"no data in {Path('elsewhere').absolute()}" in log.getvalue()


def test_committed_networks_are_small_and_those_of_committed_records_that_would_be_published():
    reference = Store("quick", "results")
    paths = reference.folder.glob("networks/*/config.json")
    written = {path.parent.name: json.loads(path.read_text())["key"] for path in paths}
    assert publish.networks(reference) == written
    for networks in CHECKOUT.glob("results/*/networks"):
        files = [path for path in networks.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 2_000_000, networks
        for about in networks.glob("*/config.json"):
            content = json.loads(about.read_text())
            assert Store(content["profile"], "results").load(content["key"])["config"].items() <= content.items()


def test_a_network_is_loaded_in_one_line_and_by_the_hubs_own_way_without_a_network_connection(made, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    publish.publish_networks("smoke")
    _, data, model = publish.loaded("smoke", "igpt")
    one = biasnb.load("igpt", "smoke")
    other = pretrained.Pretrained.from_pretrained(pretrained.folder("smoke") / "igpt")
    images = data.test.images[:4]
    for network in (one, other):
        assert network.cfg == model.cfg and not network.training and network.key == key(model.cfg)
        assert torch.equal(features(network, images), features(model, images))
    one.save_pretrained(made / "mine")
    assert {path.name for path in (made / "mine").iterdir()} >= {"config.json", "model.safetensors"}
    mine = biasnb.load(str(made / "mine"))
    assert torch.equal(features(mine, images), features(model, images)) and mine.cfg == model.cfg


def test_a_network_of_palette_colours_and_one_of_labels_come_back_whole(root):
    for fields in ({"input": "palette", "target": "palette"}, {"pretext": "supervised"}):
        cfg = configure("smoke", **fields)
        data, model = run.prepare(cfg)
        torch.nn.init.normal_(model.head.weight)
        settings = pretrained.description(model, "k", "smoke")
        network = pretrained.Pretrained(**settings)
        network.load_state_dict(model.state_dict())
        network.save_pretrained(root / cfg.pretext)
        again = biasnb.load(str(root / cfg.pretext))
        assert [evaluate(net, data.test, "test") for net in (again, network)] == 2 * [evaluate(model, data.test, "test")]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "'conv' is neither published .* nor a folder"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: not a description"),
        (lambda folder: changed(folder / "config.json", mean=[[1.0], [1.0, 2.0]]), "not one of this suite"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: changed(folder / "config.json", depht=2), "not one of this suite .*depht"),
        (lambda folder: changed(folder / "config.json", width=16), "weights of another network"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "not readable as safetensors"),
        (lambda folder: (folder / WEIGHTS).write_bytes(save({"x": torch.zeros(3)})), "holds the weights of another network"),
        (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    ],
    ids=["no config", "a list", "ragged", "broken", "unknown field", "other weights", "truncated", "foreign", "no weights"],
)
def test_a_broken_folder_of_a_network_is_named_in_one_line(made, spoil, message):
    publish.publish_networks("smoke")
    spoil(pretrained.folder("smoke") / "conv")
    with pytest.raises(StoreError, match=message) as caught:
        biasnb.load("conv", "smoke")
    assert "\n" not in str(caught.value)
    if (pretrained.folder("smoke") / "conv/config.json").exists():
        with pytest.raises(StoreError) as caught:
            publish.verify("smoke", io.StringIO())
        assert str(caught.value).startswith(str(pretrained.folder("smoke") / "conv")) and "\n" not in str(caught.value)
