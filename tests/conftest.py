import contextlib
import shutil

import pytest
import torch
from faults import Table
from forked import BRIEF, zygote  # noqa: F401  a fixture


def pytest_addoption(parser, pluginmanager):
    pluginmanager.register(Table())
    parser.addoption("--campaign", action="store_true", help="kills and races as often as `make faults` repeats them")
    parser.addoption("--slurm", action="store_true", help="run the tests that start a Slurm (root, slurm-wlm, munge)")


# Files that take long, longest first: then processes that share the files (--dist loadfile) end at about the same time.
LONG = ("test_notebooks", "test_faults_suite", "test_faults_runs", "test_lab", "test_rendering", "test_executor", "test_chaos")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("campaign"):
        left_out = [item for item in items if item.get_closest_marker("campaign")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def campaign(request):
    """Whether kills and races are repeated as often as `make faults` does, rather than a few times."""
    return request.config.getoption("campaign")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty checkout: everything the package writes goes there."""
    monkeypatch.setenv("BIASNB_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def decoded(tmp_path_factory):
    """A folder to copy to runs/cache of a new root: the photographs of profile smoke, which take seconds to decode."""
    from biasnb.config import configure
    from biasnb.data import datasets

    folder = tmp_path_factory.mktemp("decoded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIASNB_ROOT", str(folder))
        datasets._arrays.cache_clear()  # an earlier test may have read them from elsewhere
        datasets.load(configure("smoke"))
    return folder / "runs" / "cache"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory, decoded):
    """The address of a scheduler with two workers, whose folder no test knows and whose probe searches briefly."""
    from distributed import Client

    from biasnb.sweep import executor

    folder = tmp_path_factory.mktemp("workers")
    shutil.copytree(decoded, folder / "runs" / "cache")
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BIASNB_ROOT", str(folder))
            address = stack.enter_context(executor.cluster(2))
        with Client(address, set_as_default=False) as client:
            client.run(exec, BRIEF)
        yield address


@pytest.fixture
def brief(monkeypatch):
    """The probe of this process searches briefly."""
    from biasnb.training import evaluation

    for name in ("EVALUATIONS", "STEEP"):
        monkeypatch.setattr(evaluation, name, getattr(evaluation, name))  # as before at the end
    exec(BRIEF)


@pytest.fixture
def scheduler(cluster, monkeypatch):
    """What is trained in the test is trained by the workers of `cluster`."""
    monkeypatch.setenv("BIASNB_SCHEDULER", cluster)


@pytest.fixture(scope="session")
def images():
    """n random images: (n, S, S, 3) uint8."""

    def make(n, size, seed=0):
        g = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, size, size, 3), generator=g, dtype=torch.uint8)

    return make
