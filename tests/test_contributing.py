"""The walk-through of CONTRIBUTING.md is executed as it stands."""

import re

import pytest
from forked import python

from biasnb.config import BiasnbError
from biasnb.explore import checks
from biasnb.networks.mixing import Static
from biasnb.operators import MIXERS, Mixer
from biasnb.records.places import CHECKOUT as ROOT
from biasnb.sweep import manifest

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)


def test_the_example_operator_is_a_class_of_at_most_20_lines_and_one_entry():
    (code,) = [block for block in BLOCKS if "class Cross" in block]
    lines = code[code.index("class Cross") :].strip().splitlines()
    assert len(lines) <= 20
    assert sum(block.count("MIXERS[") for block in BLOCKS) == 1


def test_the_walk_through_runs_as_written_and_is_shown(tmp_path, cluster):
    assert "cross (row and column)" in python(tmp_path, "-c", "\n".join(BLOCKS), BIASNB_SCHEDULER=cluster)
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


def test_the_table_of_biases_says_what_of_an_entry_is_not_true(monkeypatch):
    class Broken(Static):
        def __init__(self, cfg, layer=0):
            super().__init__(cfg, layer)
            self.register_buffer("allowed", self.allowed[:1].expand_as(self.allowed), persistent=False)

    assert all(checks.agrees(checks.row(mixer)) == "yes" for mixer in ("conv", "mixer", "igpt", "attn"))
    monkeypatch.setitem(MIXERS, "own", Mixer("own", MIXERS["full"].operator, ("heads",), local=True, shared=True, dynamic=True))
    assert checks.agrees(checks.row("own")) == "shared, dynamic"
    monkeypatch.setitem(MIXERS, "own", Mixer("own", Broken, ("heads",)))
    with pytest.raises(BiasnbError, match=r"own: reads .* of the past, its `allowed` says"):
        checks.raster("own")
