"""Numbers in prose are what the committed records say: REPRODUCIBILITY.md, and the first cells of notebooks."""

import csv
import json
import re
import shutil
from collections import Counter
from functools import partial
from string import Formatter

import pytest
from synthetic import run_record, saved_sweep

from biasnb.config import PROFILES, Config, configure
from biasnb.evidence import claims
from biasnb.evidence.claims import CLAIMS
from biasnb.evidence.verdicts import Finding
from biasnb.records import places
from biasnb.records.provenance import environment
from biasnb.records.store import Store, StoreError
from biasnb.records.sweep import Sweep
from biasnb.suite import sheet
from biasnb.sweep import manifest

ROOT = places.CHECKOUT
PAGE = (ROOT / sheet.PAGE).read_text(encoding="utf-8")


@pytest.fixture
def empty(root):
    """A checkout without records, with a template to write."""
    (root / "docs").mkdir()
    return root / sheet.TEMPLATE


def test_the_committed_page_is_what_the_committed_records_give():
    assert sheet.fill() == PAGE and not sheet.with_verdicts(), "run `biasnb sheet`"


def test_the_committed_gallery_shows_every_committed_figure():
    page = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    assert page == sheet.gallery(ROOT / "figures"), "run `biasnb figures`"
    pictures = {str(path.relative_to(ROOT / "figures")) for path in (ROOT / "figures").glob("*/*.png")}
    assert set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", page)) == pictures


def test_notebooks_and_pages_hold_no_number_of_a_record_that_no_command_puts_there():
    number = re.compile(r"\d (?:dB|%|points)|± ?\.?\d")
    for page in ("README.md", "docs/findings.md"):
        words = re.sub("95 %", "", sheet.VERDICTS.sub("", (ROOT / page).read_text(encoding="utf-8")))
        assert not number.search(words), (page, number.search(words))
    for name in manifest.names():
        for cell in manifest.read(name)["cells"]:
            words = re.sub(r"95 %|1 % of the loss|99 % side", "", sheet.VERDICTS.sub("", cell["source"]))
            assert cell["cell_type"] != "markdown" or not number.search(words), (name, number.search(words))


def test_the_pilot_in_the_findings_is_that_of_its_runs():
    text, pixels, neighbours = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8"), 35.9, 18.72
    with open(ROOT / "docs" / "recipe.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["batch"], row["optimizer"], row["rate"]) == ("16", "muon", "0.03")]
    assert len(rows) == 11
    for row in rows:
        psnr, start, probe = (float(row[name]) for name in ("PSNR, dB", "probe at random init, %", "probe, %"))
        assert f"| `{row['operator']}` | {psnr:.2f} | {start:.1f} | {probe:.1f} |" in text
        assert psnr > neighbours and probe > start and (probe > pixels) == (row["operator"] != "mixer")


def test_what_the_findings_say_in_words_is_what_the_records_show():
    """README.md and docs/findings.md: shares, tenths of a decibel, who is ahead of whom."""
    store = Store("cifar10", "results")
    tests = {(f.claim.id, f.metric, t.label): t.effect for f in claims.findings([store]) for t in f.tests}
    frames = {sweep.name: sweep.frame() for sweep in store.sweeps()}
    for metric in ("psnr", "probe"):
        fewer, all_in = (tests["P4", metric, f"{label} − RGB"].mean for label in ("quantised", "one-hot"))
        assert 1 / 4 - 0.02 < fewer / all_in < 1 / 3 + 0.02, "a quarter to a third of the loss is due to the fewer colours"
    gap = tests["P1a", "psnr", "convmixer − igpt"]
    assert -tests["P4", "psnr", "one-hot − RGB"].high > gap.high > 0, "colours cost more than attention for convolution"
    assert -0.15 < tests["F1", "psnr", "local"].mean < -0.1, "little more than a tenth of a decibel"
    softmax, whole = (tests["F1", "psnr", label].mean for label in (
        "softmax alone, static_softmax − full", "input dependence, attn − full"))  # fmt: skip
    assert 0.75 < softmax / whole < 1, "the softmax alone explains most of the gain"
    assert tests["F1", "probe", "softmax alone, static_softmax − full"].mean < 0.5, "but none of that of features"
    pools = frames["27_sample_size"].images.replace(0, 45_000)
    assert 75 < pools.max() / pools.min() < 100, "almost a hundredfold"

    def means(study, by, metric="psnr", **where):
        frame = frames[study]
        for name, value in where.items():
            frame = frame[frame[name] == value]
        return frame.astype({metric: float}).groupby(by)[metric].mean()

    by_task = means("23_pretext", ["pretext", "mixer"])
    behind = {task: by_task[task, "convmixer"] - by_task[task, "igpt"] for task in ("bert", "ar", "denoise")}
    assert behind["bert"] > 0.1 > abs(behind["ar"]) and behind["denoise"] < 0
    labels = means("23_pretext", ["mixer"], "accuracy", pretext="supervised")
    assert labels.idxmin() == "igpt" and labels["convmixer"] - labels["mixer"] > 0.02, "and convolution best by far"
    vector = means("34_hidden_tokens", ["hidden", "mixer"])
    gain = vector["vector"] - vector["zero"]
    assert (gain > 0).all() and gain["gconv"] >= gain["gattn"], "global convolution gains as much as attention"
    frozen = means("21_cube", ["mixer"])["gconv_frozen"]
    assert frozen < store.load(store.sweeps()[0].runs[0]["baseline"])["psnr"]["neighbour_mean"], "worse than the neighbours"


def test_the_verdicts_of_a_notebook_are_replaced_and_nothing_else(root, monkeypatch):
    saved_sweep(Store("smoke", "results"), seed=[0, 1, 2]).save()
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    path = root / "notebooks" / "20_trio.ipynb"
    changed = sheet.with_verdicts()
    assert path in changed and path.read_text() == (ROOT / "notebooks" / path.name).read_text(), "nothing is written yet"
    path.write_text(changed[path])
    before, after = (cells(folder / path.name) for folder in (ROOT / "notebooks", root / "notebooks"))
    assert before[1:] == after[1:] and sheet.VERDICTS.sub("", before[0]) == sheet.VERDICTS.sub("", after[0])
    assert "| PSNR | ? undecided | convmixer − igpt: +4." in after[0] and path not in sheet.with_verdicts()


def cells(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def test_every_departure_that_the_code_marks_is_listed():
    sources = {path: path.read_text(encoding="utf-8") for path in places.PACKAGE.rglob("*.py")}
    marked = {path: text.count("# DEVIATION: ") for path, text in sources.items() if path.name != "sheet.py"}
    listed = re.findall(r"\]\(biasnb/(.+?)\)", sheet.deviations([]))
    assert {path.relative_to(places.PACKAGE).as_posix(): n for path, n in marked.items() if n} == Counter(listed)


def test_the_template_uses_every_number_that_is_computed():
    used = {name for _, name, _, _ in Formatter().parse((ROOT / sheet.TEMPLATE).read_text(encoding="utf-8"))}
    computed = {name for name, field in sheet.FIELDS.items() if not isinstance(field, partial)}
    assert computed <= used


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{compote}", "no such field 'compote'; did you mean 'compute'?"),
        ("{compute", "expected '}' before end of string; write {name} for a field and {{ for a brace"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_in_a_line(empty, text, reason):
    if text:
        empty.write_text(text)
    with pytest.raises(StoreError) as caught:
        sheet.write()
    assert str(caught.value).startswith(f"{empty}: {reason}") and "\n" not in str(caught.value)
    assert not (empty.parents[1] / sheet.PAGE).exists()


def test_numbers_are_those_of_the_records_that_sweeps_ask_for(empty):
    there = Store("smoke", "results")
    records = [run_record(mixer, 1, seed) for mixer in ("igpt", "conv") for seed in (0, 1)]
    records += [run_record("mixer", 1, 0, status="diverged"), run_record("lc", 1, 0), run_record("full", 1, 0)]
    asked, absent = records[:-1], records[-2]
    runs = [{"key": record["key"], "baseline": "baseline-0", "init": "init-0", **record["config"]} for record in asked]
    for record in records:
        if record is not absent:
            there.save({**record, "environment": environment(threads=1)})
    tried = [{"lr": 0.1, "loss": 0.5, "key": asked[0]["key"]}, {"lr": 0.03, "loss": None, "key": "0" * 16}]
    there.save({"kind": "search", "key": "search-0", "config": {"mixer": "igpt"}, "rates": tried, "chosen": 0.1})
    content = {"changed": {"files": "f" * 16, "mixer": ["igpt", "conv"], "steps": 4}, "runs": runs, "searches": ["search-0"]}
    Sweep(there, "20_trio-0", {"notebook": "20_trio", **content}).save()
    Sweep(there, "90_paper", {"notebook": "90_paper", "changed": {}, "runs": []}).save()

    def row(field):
        empty.write_text(f"{{{field}}}")
        return [cell.strip() for cell in sheet.fill().splitlines()[2].split("|")[1:-1]]

    flop = 3 * 12345 * 4 * configure("smoke").batch * 4
    assert row("compute")[1:6] == ["5", "0, 1", "4", "60", "0.0"]
    assert row("compute")[6:] == [f"{flop / 1e12:.0f}", "0.00", "100", "1", "1"]
    assert row("sweeps")[2:] == ["6", "1 to 2", "1", "1", "mixer igpt/conv, steps 4"]
    assert row("searches")[1:] == ["1", "2", "1", "0.03, 0.1", "igpt 0.1"]
    assert row("data")[1:] == ["photographs", f"`{'f' * 16}`", "40", "40", "5", "10"]
    assert row("machines")[2] == "1"
    empty.write_text("{networks}; {idle}")
    assert sheet.fill().startswith("no | none are published; `quick`, `cifar10`, `full`")
    weights = there.folder / "networks" / "igpt" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(1_500_000))
    assert sheet.fill().startswith("yes | 1 networks, 1.5 MB, in [results/smoke/networks](results/smoke/networks)")


def test_settings_show_what_studies_change(monkeypatch):
    sizes = {"config": {"width": 64, "batch": 32}, "trio": {"depth": [1, 3], "seed": [0, 1]}}
    for profile in sheet.COLUMNS:
        monkeypatch.setitem(PROFILES, profile, {**sizes, "study": {"width": 32, "seed": [0, 1]}})
    assert sheet.setting("width", []) == " | ".join(["64; studies 32"] * 3)
    assert sheet.setting("batch", []) == "32 | 32 | 32"
    assert sheet.setting("depth", []) == " | ".join([f"1/3; studies {Config().depth}"] * 3)
    assert sheet.setting("seed", []) == "0/1 | 0/1 | 0/1"


def test_the_front_table_shows_what_every_profile_says_of_a_claim():
    p3, f1, f5, l2 = (next(claim for claim in CLAIMS if claim.id == wanted) for wanted in ("P3", "F1", "F5", "L2"))
    many = [("cifar10", f1, "undecided" if i else "supported", row) for i, row in enumerate(f1.rows)]
    said = [("quick", p3, "supported", ""), ("cifar10", p3, "contradicted", ""), ("quick", l2, "undecided", "")]
    said += [("cifar10", f5, "supported", "conv"), ("cifar10", f5, "contradicted", "lc"), ("cifar10", f5, "undecided", "full")]
    found = [Finding(claim, profile, "probe", verdict, "", row=row) for profile, claim, verdict, row in said + many]
    d1 = next(claim for claim in CLAIMS if claim.id == "D1")
    found += [Finding(d1, "cifar10", metric, "contradicted", "") for metric in d1.metrics]
    text = sheet.findings(found)
    head, _, one, seven, three, both, _, last = text.splitlines()
    assert "| linear probe: ✗ **contradicted** —, n = 0<br>PSNR: ✗ **contradicted** —, n = 0 | " in both
    assert "| cifar10 | quick |" in head
    assert "linear probe: ✗ **contradicted** —, n = 0 | linear probe: ✓ **supported** —, n = 0 |" in one
    assert "linear probe: ✓ supported: local; ? undecided: the others | — |" in seven
    assert "linear probe: ✓ supported: conv —; ✗ contradicted: lc —; ? undecided: full —, n = 0 | — |" in three, "with effects"
    assert "L2" in last and "P3" not in last
