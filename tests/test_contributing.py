"""The walk-through of CONTRIBUTING.md is executed as it stands."""

import os
import re
import subprocess
import sys

import pytest

from biasnb.config import BiasnbError
from biasnb.operators import MIXERS, Mixer
from biasnb.records.places import CHECKOUT as ROOT
from biasnb.sweep import manifest

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)


def test_the_example_operator_is_a_class_of_at_most_20_lines_and_one_entry():
    (code,) = [block for block in BLOCKS if "class Cross" in block]
    lines = code[code.index("class Cross") :].strip().splitlines()
    assert len(lines) <= 20
    assert sum(block.count("MIXERS[") for block in BLOCKS) == 1


def test_the_walk_through_runs_as_written_and_is_shown(tmp_path):
    env = {**os.environ, "BIASNB_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", "\n".join(BLOCKS)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cross (row and column)" in done.stdout
    (table,) = (tmp_path / "runs/smoke/tables").glob("20_trio-*-summary.md")
    assert "cross (row and column)" in table.read_text(encoding="utf-8")


def test_any_notebook_that_compares_operators_takes_another_one_in_its_list(root, monkeypatch):
    monkeypatch.setitem(MIXERS, "cross", Mixer("cross", MIXERS["full"].operator, ("heads",), shared=True))
    names = [name for name in manifest.names() if "mixers" in manifest.declared(name)]
    assert len(names) > 5
    for name in names:
        listed = [*(manifest.declared(name)["mixers"] or ["conv"]), "cross"]
        sweep = manifest.plan(name, manifest.parameters(name, {"profile": "smoke", "mixers": listed}))
        assert "cross" in {run["mixer"] for run in sweep.runs}, name


def test_the_example_of_a_study_is_that_of_its_notebook():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert any(f"```py\n{source}\n```" in text for source in manifest.tagged(manifest.read("33_channel_mlp"), "sweep"))


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
        asked = manifest.parameters("20_trio", {"profile": "smoke", "mixers": ["igpt", "cross"]})
        return (
            key(configure("smoke", mixer="cross")),
            manifest.plan("20_trio", asked).name,
            key(configure("smoke", mixer="igpt")),
        )
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
    from biasnb.explore import checks
    from biasnb.networks.mixing import Static
    from biasnb.operators import MIXERS, Mixer

    class Broken(Static):
        def __init__(self, cfg, layer=0):
            super().__init__(cfg, layer)
            self.register_buffer("allowed", self.allowed[:1].expand_as(self.allowed), persistent=False)

    assert all(checks.agrees(checks.row(mixer)) == "yes" for mixer in ("conv", "mixer", "igpt", "attn"))
    try:
        MIXERS["own"] = Mixer("own", MIXERS["full"].operator, ("heads",), local=True, shared=True, dynamic=True)
        assert checks.agrees(checks.row("own")) == "shared, dynamic"
        MIXERS["own"] = Mixer("own", Broken, ("heads",))
        with pytest.raises(BiasnbError, match=r"own: reads .* of the past, its `allowed` says"):
            checks.raster("own")
    finally:
        del MIXERS["own"]
