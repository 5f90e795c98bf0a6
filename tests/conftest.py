import numpy as np
import pytest
import torch
from faults import Table

from biasnb.records import store


def pytest_addoption(parser, pluginmanager):
    pluginmanager.register(Table())


# Files that take long, longest first: then processes that share the files (--dist loadfile) end at about the same time.
LONG = ("test_notebooks", "test_faults_suite", "test_faults_runs", "test_lab", "test_rendering", "test_workers", "test_chaos")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty checkout: everything the package writes goes there."""
    monkeypatch.setenv("BIASNB_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def decoded(tmp_path_factory):
    """A folder to copy to runs/cache of a new root: the photographs of profile smoke, which take seconds to decode."""
    from biasnb.config import VERSIONS
    from biasnb.data import datasets as data

    folder = tmp_path_factory.mktemp("decoded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIASNB_ROOT", str(folder))
        _, classes, arrays, _ = data._arrays("photographs", "", 8, "")
    store.write_arrays(
        folder / "cache" / f"photographs-{VERSIONS['photographs']}-8.npz", {**arrays, "classes": np.array(classes)}
    )
    return folder / "cache"


@pytest.fixture(scope="session")
def images():
    """n random images: (n, S, S, 3) uint8."""

    def make(n, size, seed=0):
        g = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, size, size, 3), generator=g, dtype=torch.uint8)

    return make
