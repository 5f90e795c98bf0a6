import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from faults import FAULTS
from forked import environment, python
from synthetic import NO_TORCH

from biasnb.records.places import CHECKOUT as ROOT
from biasnb.sweep import manifest

LIGHT = ("figures", "evidence", "records", "config", "operators", "suite", "sweep")  # parts that start without torch


# Names on PyPI -> on conda-forge, where they differ.
CONDA_FORGE = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + project["optional-dependencies"]["dev"], project


def test_conda_environment_equals_pyproject():
    needed, project = requirements()
    given = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = [d for d in given if isinstance(d, str)] + [d for d in given[-1]["pip"] if not d.startswith("--")]
    expected = {f"python{project['requires-python']}", "pip"}
    for requirement in needed:
        name, version = requirement.split(">=")
        expected.add(f"{CONDA_FORGE.get(name, name)}>={version}")
    assert sorted(listed) == sorted(expected)


def test_constraints_pin_every_requirement_by_name_and_version_only():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) and re.fullmatch(r"[0-9][A-Za-z0-9.]*", v) for name, v in pins.items())
    for requirement in requirements()[0]:
        name, baseline = requirement.split(">=")
        assert name in pins, f"{name} is not pinned"
        assert [int(x) for x in pins[name].split(".")[:2]] >= [int(x) for x in baseline.split(".")[:2]]


def test_rooms_are_small_and_every_one_says_what_it_holds():
    rooms = sorted(path.parent for path in (ROOT / "biasnb").glob("*/__init__.py"))
    assert len(rooms) <= 9
    for room in rooms:
        files = list(room.glob("*.py"))
        assert len(files) <= 8, f"{room.name} has {len(files)} files"
        assert "mports" in ast.get_docstring(ast.parse((room / "__init__.py").read_text())), room.name


def test_imports_go_from_room_to_room_as_the_contract_says():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, env=environment(ROOT), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_needs_no_torch_starts_without_it():
    modules = [f"biasnb.{part}" for part in LIGHT]
    modules += [f"biasnb.{part}.{path.stem}" for part in LIGHT for path in (ROOT / "biasnb" / part).glob("*.py")]
    script = NO_TORCH + "".join(f"import {name}\n" for name in modules if not name.endswith("__init__"))
    python(ROOT, "-c", script)


def marked():
    """(fault, file::test) of every test marked `fault`, read from the syntax tree."""
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for mark in map(ast.unparse, getattr(node, "decorator_list", ())):
                if mark.startswith("pytest.mark.fault("):
                    yield mark.split("'")[1], f"{path.name}::{node.name}"


def test_the_page_of_faults_has_every_fault_and_every_test_of_it_and_none_failed():
    """docs/faults.md is made by `make faults`."""
    shown, fault = set(), None
    for line in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines():
        if "::" in line:
            first, _, _, test, result = (cell.strip(" `") for cell in line.split("|")[1:-1])
            fault = first or fault
            shown.add((fault, test))
            assert re.fullmatch(r"(\d+ passed(, )?)?(skipped: .+)?", result), line
    assert shown == set(marked())
    assert {fault for fault, _ in shown} == set(FAULTS)


def test_tracked_files_are_small_and_name_no_place():
    try:
        names = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file():
            most = 20_000_000 if name.startswith("results/") else 500_000  # bytes
            assert path.stat().st_size < most, f"{name} is too large"
            if path.suffix in (".py", ".md", ".txt", ".toml", ".yml", ".yaml", ".ipynb", ".json"):
                assert str(ROOT) + "/" not in path.read_text(encoding="utf-8"), name
    for profile in (ROOT / "results").iterdir():
        assert sum(path.stat().st_size for path in profile.rglob("*") if path.is_file()) < 25_000_000, profile


def test_version_is_one():
    from biasnb import __version__

    assert __version__ == requirements()[1]["version"] == metadata.version("biasnb")
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()


def test_every_relative_link_of_every_page_and_notebook_leads_somewhere():
    pages = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if not path.name.endswith(".in.md")]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"]
        texts[path] = "\n".join("".join(cell["source"]) for cell in cells)
    links, broken = 0, []
    for page, text in texts.items():
        headings = re.findall(r"^#+ (.*)", text, re.M)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
        for path, heading in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)[^)]*\)", text):
            links += 1
            if "://" not in path and not ((page.parent / path).exists() if path else heading in anchors):
                broken.append((page.name, path or heading))
    assert links > 100 and not broken


def test_the_table_of_notebooks_in_the_readme_has_their_own_questions():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/\w+\.ipynb\) \| (.*) \|$", text, re.M)
    assert rows == [(name, manifest.question(name)) for name in manifest.names()]


def test_an_installed_package_has_its_notebooks_and_records_and_writes_to_the_working_directory(tmp_path):
    """A wheel of a copy of the tracked files, unpacked."""
    source, site, work = (tmp_path / name for name in ("source", "site", "work"))
    names = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        if name.startswith(("biasnb/", "notebooks/", "results/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*make, str(source)], check=True, capture_output=True, timeout=300)
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), site, "zip")
    work.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "BIASNB_ROOT"} | {"PYTHONPATH": str(site)}
    script = "from biasnb.records import places; from biasnb.records.store import Store; from biasnb.sweep import manifest\n"
    script += "print(places.root(), Store('quick').folder, len(manifest.names()), len(Store('quick', 'results').sweeps()))"
    shown = subprocess.run([sys.executable, "-c", script], env=env, cwd=work, capture_output=True, text=True)
    committed = len(list((ROOT / "results" / "quick" / "sweeps").iterdir()))
    expected = [str(work), str(work / "runs" / "quick"), str(len(manifest.names())), str(committed)]
    assert shown.stdout.split() == expected, shown.stderr
    assert not any(work.iterdir())
