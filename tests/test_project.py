import re
import subprocess
import tomllib
from importlib import metadata

import yaml

from biasnb.store import ROOT


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + project["optional-dependencies"]["dev"], project


def test_conda_environment_equals_pyproject():
    needed, project = requirements()
    listed = [d for d in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"] if isinstance(d, str)]
    expected = {f"python{project['requires-python']}", "pip", *(d.replace("torch>", "pytorch>") for d in needed)}
    assert sorted(listed) == sorted(expected)


def test_constraints_pin_every_requirement_by_name_and_version_only():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) and re.fullmatch(r"[0-9][A-Za-z0-9.]*", v) for name, v in pins.items())
    for requirement in requirements()[0]:
        name, floor = requirement.split(">=")
        assert name in pins, f"{name} is not pinned"
        assert [int(x) for x in pins[name].split(".")[:2]] >= [int(x) for x in floor.split(".")[:2]]


def test_imports_go_one_way():
    """Each module imports only from those before it, and what renders imports no torch at the top."""
    order = ["config", "store", "environment", "photographs", "data", "palette", "embed", "mixing", "model", "pretext", "probe",
             "measure", "progress", "checkpoint", "train", "run", "stats", "figures", "tables", "experiments", "notebook",
             "suite", "__main__"]  # fmt: skip
    assert sorted(p.stem for p in (ROOT / "biasnb").glob("*.py")) == sorted([*order, "__init__"])
    for name in order:
        text = (ROOT / "biasnb" / f"{name}.py").read_text()
        for line in re.findall(r"^from \.(\w*) import (.*)", text, re.M):
            used = [line[0]] if line[0] else [w.strip().split(" as ")[0] for w in line[1].split(",")]
            assert all(order.index(u) < order.index(name) for u in used), f"{name} imports {used}"
        if order.index(name) >= order.index("stats"):
            assert not re.search(r"^(import|from) torch", text, re.M), name


def test_tracked_files_are_small_and_name_no_place():
    try:
        names = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        import pytest

        pytest.skip("not a git checkout")
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file():
            assert path.stat().st_size < 500_000, f"{name} is too large"
            if path.suffix in (".py", ".md", ".txt", ".toml", ".yml", ".yaml", ".ipynb", ".json"):
                assert str(ROOT) + "/" not in path.read_text(encoding="utf-8"), name


def test_version_is_one():
    from biasnb import __version__

    assert __version__ == requirements()[1]["version"] == metadata.version("biasnb")
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
