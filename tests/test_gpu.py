"""GPUs, as far as that can be seen without one: which are found, what each worker gets, the program that measures one."""

import contextlib
import os
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from biasnb.config import configure
from biasnb.records.keys import key
from biasnb.records.store import Store
from biasnb.sweep import executor


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_every_gpu_is_used_and_none_where_runs_ask_for_the_cpu(two_gpus, monkeypatch):
    auto, cpu = configure("smoke"), configure("smoke", device="cpu")
    assert executor.gpus([cpu, auto]) == ["0", "1"] and executor.gpus([cpu]) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f")
    assert executor.gpus([auto]) == ["3", "GPU-5f"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert executor.gpus([auto]) == [], "torch sees none, whatever tools the machine has"


def visible():
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_box_with_two_gpus_has_a_worker_for_each_and_one_without_and_trains_seeds_together(root, monkeypatch):
    """The devices are names only: the workers compute on the processor, each in the belief that it has one GPU."""
    monkeypatch.delenv(executor.SCHEDULER, raising=False)
    monkeypatch.setattr(executor, "gpus", lambda configs: ["0", "1"])
    opened, seen, asked = executor.client, [], []

    @contextlib.contextmanager
    def client(workers, devices):
        with opened(workers, devices) as dask:
            devices, workers = dask.run(visible), dask.scheduler_info(n_workers=-1)["workers"]
            seen.extend(sorted(((devices[name], worker["resources"]) for name, worker in workers.items()), key=str))
            submit = dask.submit
            dask.submit = lambda *given, **named: asked.append((given[1], named["resources"])) or submit(*given, **named)
            yield dask

    monkeypatch.setattr(executor, "client", client)
    configs = [configure("smoke", steps=3, mixer=mixer, seed=seed) for mixer in ("conv", "lc") for seed in (0, 1)]
    store, bad = Store("smoke"), configure("smoke", steps=3, labelled=10**6)
    with pytest.raises(executor.BiasnbError, match=r"records failed: .*labelled: 1000000"):
        executor.train([bad, *configs], store)
    assert seen == [("", {executor.CPU: 1}), ("0", {executor.GPU: 1}), ("1", {executor.GPU: 1})]
    assert {kind: need for kind, need in asked} == {
        "run": {executor.GPU: 1}, "init": {executor.GPU: 1}, "baseline": {executor.CPU: 1}}  # fmt: skip
    assert [store.load(key(cfg))["seeds_together"] for cfg in configs] == [2] * 4 and store.status(key(bad))[0] == "failed"


def test_the_program_for_a_gpu_runs_on_the_cpu_at_toy_size_and_leaves_a_report_and_records(root, tmp_path, brief):
    parts, mixers = ["right", "speed", "runs"], ("igpt", "attn")
    found = gpu.measure(tmp_path, parts, "smoke", ["10_one_run"], minutes=2, workers=1, mixers=mixers, seconds=0.01)
    assert len(found["agreement"]) == 2 * 2 * 4 and all(row["passed"] for row in found["agreement"]), found["agreement"]
    assert len(found["behaviour"]) == 8 and all(row["passed"] for row in found["behaviour"]), found["behaviour"]
    assert {row["operator"] for row in found["speed"]} >= {"igpt", "attn", "igpt, timm"}
    assert not any(row["error"] for row in found["runs"])
    assert found["records"] == len(list(Store("smoke").folder.glob("*.json"))) == 3
    page = (tmp_path / "gpu.md").read_text()
    assert "16 of 16 comparisons agree" in page and "3 records in" in page
    with tarfile.open(tmp_path / "records-1.tar.gz") as packed:
        assert {Path(name).suffix for name in packed.getnames()} == {".json", ".npz", ".safetensors"}


def test_a_wrong_operator_is_found_and_runs_end_with_the_time(root, tmp_path, monkeypatch):
    def wrong(cfg, device, count):
        rows = gradients(cfg, device, count)
        return [(loss, gradient * (1 + (cfg.precision == "bf16"))) for loss, gradient in rows]

    gradients = gpu.gradients
    monkeypatch.setattr(gpu, "gradients", wrong)
    rows = list(gpu.agreement("cpu", ("conv",)))
    assert [row["passed"] for row in rows] == [True, True, False, False] * 2
    todo = gpu.tasks("smoke", ["20_trio"], lambda key: False)
    assert not list(gpu.train(todo, "smoke", 1, end=0)) and not list(Store("smoke").folder.glob("*.json"))
