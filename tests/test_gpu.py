"""Several GPUs in one machine, as far as that can be seen without one: which devices are found, what each worker gets."""

import contextlib
import os

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


def visible():
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_box_with_two_gpus_has_a_worker_for_each_trains_seeds_together_and_names_a_setting_that_fails(root, monkeypatch):
    """The devices are names only: the workers compute on the processor, each in the belief that it has one GPU."""
    monkeypatch.delenv(executor.SCHEDULER, raising=False)
    monkeypatch.setattr(executor, "gpus", lambda configs: ["0", "1"])
    opened, seen = executor.client, []

    @contextlib.contextmanager
    def client(workers, devices):
        with opened(workers, devices) as dask:
            workers = dask.scheduler_info(n_workers=-1)["workers"].values()
            seen.extend([sorted(dask.run(visible).values()), [worker["resources"] for worker in workers]])
            yield dask

    monkeypatch.setattr(executor, "client", client)
    configs = [configure("smoke", steps=3, mixer=mixer, seed=seed) for mixer in ("conv", "lc") for seed in (0, 1)]
    store, bad = Store("smoke"), configure("smoke", steps=3, labelled=10**6)
    with pytest.raises(executor.BiasnbError, match=r"records failed: .*labelled: 1000000"):
        executor.train([bad, *configs], store)
    assert seen == [["0", "1"], [{executor.GPU: 1}] * 2]
    assert [store.load(key(cfg))["seeds_together"] for cfg in configs] == [2] * 4 and store.status(key(bad))[0] == "failed"
