"""Several GPUs in one machine, as far as that can be seen without one: which devices are found, what each worker gets."""

from dataclasses import replace

import pytest
import torch

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


def test_on_a_gpu_the_seeds_of_a_setting_are_one_task_and_elsewhere_each_is_one():
    configs = [configure("smoke", mixer=mixer, seed=seed) for mixer in ("conv", "attn") for seed in (0, 1)]
    wanted = {key(cfg): ("run", cfg) for cfg in configs}
    together = executor.grouped(wanted, by_seed=True)
    assert [[cfg.seed for cfg in task.configs] for task in together] == [[0, 1], [0, 1]]
    assert len(executor.grouped(wanted, by_seed=False)) == 4


def visible():
    import os

    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_box_with_two_gpus_has_a_worker_for_each_and_trains_seeds_together(root, monkeypatch):
    """The devices are names only: the workers compute on the processor, each in the belief that it has one GPU."""
    monkeypatch.delenv(executor.SCHEDULER, raising=False)
    monkeypatch.setattr(executor, "gpus", lambda configs: ["0", "1"])
    base = configure("smoke", steps=3)
    with executor.client(2, ["0", "1"]) as dask:
        assert sorted(dask.run(visible).values()) == ["0", "1"]
        resources = [worker["resources"] for worker in dask.scheduler_info(n_workers=-1)["workers"].values()]
        assert resources == [{executor.GPU: 1}] * 2
    configs = [replace(base, mixer=mixer, seed=seed) for mixer in ("conv", "lc") for seed in (0, 1)]
    executor.train(configs, Store("smoke"))
    records = [Store("smoke").load(key(cfg)) for cfg in configs]
    assert [record["seeds_together"] for record in records] == [2, 2, 2, 2]


def test_a_setting_that_fails_on_a_gpu_is_named_and_the_others_are_trained(root, monkeypatch):
    monkeypatch.delenv(executor.SCHEDULER, raising=False)
    monkeypatch.setattr(executor, "gpus", lambda configs: ["0"])
    good, bad = configure("smoke", steps=3), configure("smoke", steps=3, labelled=10**6)
    with pytest.raises(executor.BiasnbError, match=r"runs failed: .*labelled: 1000000"):
        executor.train([bad, good], Store("smoke"))
    assert Store("smoke").has(key(good)) and Store("smoke").status(key(bad))[0] == "failed"
