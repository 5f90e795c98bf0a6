import pytest
import torch

from biasnb import store


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty checkout: everything the package writes goes there."""
    from biasnb import data, suite

    for module in (store, data, suite):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def images():
    """n random images: (n, S, S, 3) uint8."""

    def make(n, size, seed=0):
        g = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, size, size, 3), generator=g, dtype=torch.uint8)

    return make
