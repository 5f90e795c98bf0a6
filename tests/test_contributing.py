"""The walk-through of CONTRIBUTING.md is executed as it stands."""

import os
import re
import subprocess
import sys

from biasnb.store import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)


def test_the_example_operator_is_a_class_of_at_most_20_lines_and_one_entry():
    (code,) = [block for block in BLOCKS if "class Cross" in block]
    lines = code[code.index("class Cross") :].strip().splitlines()
    assert len(lines) <= 20
    assert sum(block.count("MIXERS[") for block in BLOCKS) == 1


def test_the_walk_through_runs_as_written_and_every_study_shows_the_operator(tmp_path):
    shown = """
from biasnb import figures, grids, studies, suite
from biasnb.experiments import EXPERIMENTS, plan
for name in EXPERIMENTS:
    runs = plan(name, "smoke")[0].runs
    assert not runs or name in ("10_one_run", "28_position") or "cross" in {run["mixer"] for run in runs}, name
paths = suite.render(grid.store)
assert any(path.suffix == ".png" for path in paths)
"""
    env = {**os.environ, "BIASNB_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", "\n".join(BLOCKS) + shown], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cross (row and column)" in done.stdout
    assert "cross (row and column)" in (tmp_path / "runs/smoke/tables").joinpath("20_trio-" + label(tmp_path)).read_text()


def label(root):
    (path,) = (root / "runs/smoke/tables").glob("20_trio-*-trio.md")
    return path.name.removeprefix("20_trio-")
