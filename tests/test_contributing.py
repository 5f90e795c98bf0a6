"""The walk-through of CONTRIBUTING.md is executed as it stands."""

import os
import re
import subprocess
import sys

import pytest

from biasnb.config import BiasnbError
from biasnb.records.places import CHECKOUT as ROOT
from biasnb.sweep.experiments import plan

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)


def test_the_example_operator_is_a_class_of_at_most_20_lines_and_one_entry():
    (code,) = [block for block in BLOCKS if "class Cross" in block]
    lines = code[code.index("class Cross") :].strip().splitlines()
    assert len(lines) <= 20
    assert sum(block.count("MIXERS[") for block in BLOCKS) == 1


def test_the_walk_through_runs_as_written_and_every_study_shows_the_operator(tmp_path):
    shown = """
from biasnb.figures import drawing as figures, studies
from biasnb.sweep import grids
from biasnb.suite import reproduce as suite
from biasnb.sweep.experiments import EXPERIMENTS, plan
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


def defined(body, reads=("heads", "padding")):
    """The key of a run of an operator that was defined as text in a module of its own, as a notebook does."""
    from biasnb.config import configure
    from biasnb.networks.mixing import Static
    from biasnb.operators import MIXERS, Mixer
    from biasnb.records.keys import key

    names = {"Static": Static, "__name__": "__main__"}
    code = (
        f"class Cross(Static):\n    def __init__(self, cfg, layer=0):\n        super().__init__(cfg, layer)\n        {body}\n"
    )
    exec(code, names)
    try:
        MIXERS["cross"] = Mixer("cross", names["Cross"], reads=reads, shared=True)
        return key(configure("smoke", mixer="cross")), plan("20_trio", "smoke")[0].name, key(configure("smoke", mixer="igpt"))
    finally:
        del MIXERS["cross"]


def test_another_class_of_the_same_name_is_another_run_and_other_runs_stay_the_same():
    from biasnb.config import configure
    from biasnb.records.keys import key

    one, again = defined("self.scale = self.scale * 2"), defined("self.scale = self.scale * 2")
    other, entry = defined("self.scale = self.scale * 3"), defined("self.scale = self.scale * 2", reads=("heads", "mlp_ratio"))
    assert one == again and len({one[0], other[0], entry[0]}) == 3 and len({one[1], other[1], entry[1]}) == 3
    assert {found[2] for found in (one, other, entry)} == {key(configure("smoke", mixer="igpt"))}


def test_the_table_of_biases_says_what_of_an_entry_is_not_true():
    from biasnb.explore import checks as proof
    from biasnb.networks.mixing import Static
    from biasnb.operators import MIXERS, Mixer

    class Broken(Static):
        def __init__(self, cfg, layer=0):
            super().__init__(cfg, layer)
            self.register_buffer("allowed", self.allowed[:1].expand_as(self.allowed), persistent=False)

    assert all(proof.agrees(proof.row(mixer)) == "yes" for mixer in ("conv", "mixer", "igpt", "attn"))
    try:
        MIXERS["own"] = Mixer("own", MIXERS["full"].operator, ("heads",), local=True, shared=True, dynamic=True)
        assert proof.agrees(proof.row("own")) == "shared, dynamic"
        MIXERS["own"] = Mixer("own", Broken, ("heads",))
        with pytest.raises(BiasnbError, match=r"own: reads .* of the past, its `allowed` says"):
            proof.raster("own")
    finally:
        del MIXERS["own"]


def test_operators_of_ones_own_are_trained_here_and_the_others_by_workers(root, monkeypatch):
    from biasnb.networks.mixing import Static
    from biasnb.operators import MIXERS, Mixer
    from biasnb.sweep import executor as workers

    class Mine(Static):
        pass

    seen = {}
    monkeypatch.setattr(
        workers, "side_by_side", lambda count, missing, store: seen.update(apart=[c.mixer for c in missing.values()])
    )
    monkeypatch.setattr(workers, "here", lambda groups, store: seen.update(here=[c.mixer for g in groups for c in g]))
    try:
        MIXERS["mine"] = Mixer("mine", Mine, ("heads",))
        grid, configs = plan("20_trio", "smoke", {"depth": 1, "seed": 0})
        workers.train(configs, grid.store)
    finally:
        del MIXERS["mine"]
    assert seen == {"apart": ["convmixer", "mixer", "igpt"], "here": ["mine"]}
