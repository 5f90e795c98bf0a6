import ast
import json
import os
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from synthetic import NO_TORCH

from biasnb.config import ConfigError
from biasnb.records.places import CHECKOUT as ROOT
from biasnb.records.store import Store, write_atomic
from biasnb.suite import notebook, parameters
from biasnb.suite import reproduce as suite
from biasnb.suite.notebook import NotebookError
from biasnb.sweep import executor as workers
from biasnb.sweep.experiments import EXPERIMENTS

NAMES = list(EXPERIMENTS)
PARTS = {
    "00_start_here": ("parameters", "imports", "run", "table", "figure", "how to read it"),
    "01_inputs": ("parameters", "imports", "grid", "table", "figure", "how to read it"),
    "02_networks": ("parameters", "imports", "grid", "table", "figure", "how to read it"),
    "03_playground": ("parameters", "imports", "table", "figure", "how to read it"),
    "04_your_own_operator": ("parameters", "imports", "grid", "table", "figure", "run", "table", "figure", "how to read it"),
    "90_paper": ("parameters", "imports", "grid", "table", "figure", "how to read it"),
}


NO_CLAIM = ("00_start_here", "01_inputs", "10_one_run", "90_paper")


def source(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_an_experiment_and_the_other_way_round():
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_has_the_parts_in_their_order(name):
    text = [c.source for c in source(name).cells if c.cell_type == "markdown"]
    assert text[0].startswith(f"# {name[:2]} · ")
    assert "**Question" in text[0] and "**Answer in a sentence.**" in text[0]
    headings = [line[3:].lower() for cell in text for line in cell.splitlines() if line.startswith("## ")]
    at = -1
    for part in PARTS.get(name, ("parameters", "imports", "grid", "run", "table", "figure", "how to read it")):
        places = [i for i, heading in enumerate(headings) if part in heading and i >= at]
        assert places, f"{name}: no part {part!r} after {headings[:at]}"
        at = places[0]
    assert text[-1].startswith("## How to read it")
    assert "refute" in text[-1] or name in NO_CLAIM


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_thin_clean_and_parameterised_once(name):
    n = source(name)
    code = [c for c in n.cells if c.cell_type == "code"]
    lines = [line for c in code for line in c.source.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 80
    assert all(len(c.source.splitlines()) <= 15 for c in code)
    for c in code:
        nodes = list(ast.walk(ast.parse(c.source)))
        defined = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
        assert not defined or name == "04_your_own_operator"
        assert "sys.path" not in c.source and not c.source.lstrip().startswith(("%", "!"))
        assert c.outputs == [] and c.execution_count is None
    assert parameters.defaults(n, name)["profile"] == "quick"
    assert n.metadata.kernelspec.name == "python3"
    assert "papermill" not in n.metadata


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Every notebook executed at `smoke` by one `reproduce`, in a checkout whose path has a space and an umlaut."""
    top = tmp_path_factory.mktemp("eine Kopie ü")
    for name in ("notebooks", "biasnb", "results"):
        os.symlink(ROOT / name, top / name)
    env = {**os.environ, "BIASNB_ROOT": str(top), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "biasnb", "reproduce", "--profile", "smoke"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return top, env, done


def test_every_notebook_runs_at_smoke(smoke):
    top, _, done = smoke
    assert done.returncode == 0, done.stdout + done.stderr
    folder = top / "runs/smoke"
    assert sorted(p.stem for p in (folder / "notebooks").glob("*.ipynb")) == NAMES
    assert f"{len(NAMES)} of {len(NAMES)} notebooks" in (folder / "summary.md").read_text()
    assert (folder / "figures/20_trio-psnr.png").is_file()
    assert (folder / "tables/20_trio-trio.md").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_executed_notebook_has_no_error_and_shows_a_picture(smoke, name):
    executed = nbformat.read(smoke[0] / "runs/smoke/notebooks" / f"{name}.ipynb", as_version=4)
    outputs = [o for c in executed.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert [o for o in outputs if "image/png" in o.get("data", {})], "no picture"


@pytest.mark.fault("T12")
def test_executed_notebooks_hold_no_local_path(smoke):
    for path in (smoke[0] / "runs/smoke/notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert str(smoke[0]) not in text and str(ROOT) not in text and ".part" not in text, path.name


def test_plain_papermill_runs_a_notebook_with_its_defaults(smoke, tmp_path):
    _, env, _ = smoke
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks/20_trio.ipynb"), str(tmp_path / "out.ipynb"),
               "-p", "profile", "smoke", "-k", "python3", "--no-progress-bar"]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.ipynb").is_file()


def test_90_paper_imports_no_torch(smoke):
    """Up to Figure 1; that all figures are drawn without it, another test shows."""
    _, env, _ = smoke
    cells = [c.source for c in source("90_paper").cells if c.cell_type == "code"][:5]
    assert "40_reconstructions" in cells[-1]
    code = "\n".join(cells).replace('"quick"', '"smoke"')
    done = subprocess.run([sys.executable, "-c", NO_TORCH + code], env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "13 of 13 records" in done.stdout


@pytest.mark.fault("T1")
@pytest.mark.fault("F17")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["20_trio", "sede=3"], "sede: no such parameter (given '3'); did you mean 'seed'?"),
        (["20_trio", "profle=smoke"], "did you mean 'profile'?"),
        (["20_trio", "profile=smok"], "did you mean 'smoke'?"),
        (["20_tri"], "did you mean '20_trio'?"),
        (["20_trio", "depth=two"], "depth: 'two' is not a whole number"),
        (["20_trio", "steps=007"], "steps: '007' is not a whole number"),
        (["20_trio", "depth=0"], "depth: 0 is outside 1 to 64"),
        (["20_trio", "steps=1,2"], "steps: [1, 2] is a list"),
        (["20_trio", 'overrides={"detph": 2}'], "detph: no such field in overrides"),
        (["20_trio", "overrides=[1]"], "overrides: '[1]' is not a JSON dict"),
        (["90_paper", "steps=3"], "steps: no such parameter"),
        (["20_trio", "depth"], "'depth': not FIELD=VALUE"),
        (["20_trio", "seed=0,0"], "names a value twice"),
        (["00_start_here", "seed=0,1"], "this notebook varies nothing"),
        (["10_one_run", "depth=1,2"], "this notebook varies nothing"),
    ],
)
def test_strict_runner_refuses_before_a_kernel_starts(root, capsys, monkeypatch, words, message):
    from biasnb.suite.commands import main

    monkeypatch.setattr("papermill.execute_notebook", None)
    assert main(["notebook", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (root / "runs").exists()


def edited(root, monkeypatch, *cells, tag=True):
    n = nbformat.v4.new_notebook(metadata=source("20_trio").metadata)
    first = nbformat.v4.new_code_cell("profile = 'smoke'\noverrides = {}")
    first.metadata.tags = ["parameters"] if tag else []
    n.cells = [first, *[nbformat.v4.new_code_cell(c) for c in cells]]
    (root / "notebooks").mkdir()
    nbformat.write(n, root / "notebooks/20_trio.ipynb")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("import os; os._exit(0)", "the kernel was killed"),
        ("exit()", "did not run|records are missing"),
        ("x = 1", "13 of 13 records are missing"),
        ("raise ValueError('no')", "cell 3: ValueError: no|cell 2: ValueError: no"),
    ],
)
def test_success_means_the_promised_records(root, monkeypatch, cell, message):
    edited(root, monkeypatch, cell, "y = 2")
    good = Store("smoke").folder / "notebooks/20_trio.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("an earlier good copy")
    with pytest.raises(NotebookError, match=message) as caught:
        notebook.execute("20_trio", {"profile": "smoke"})
    assert notebook.state(Store("smoke"), "20_trio")[0] == caught.value.state
    assert good.read_text() == "an earlier good copy"
    assert sorted(p.name for p in good.parent.iterdir()) == ["20_trio.failed.ipynb", "20_trio.ipynb", "20_trio.state.json"]


def test_a_notebook_without_its_tag_is_refused(root, monkeypatch):
    edited(root, monkeypatch, tag=False)
    with pytest.raises(NotebookError, match="0 cells are tagged 'parameters'"):
        notebook.execute("20_trio", {"profile": "smoke"})


def test_parameters_must_be_literals():
    n = source("20_trio")
    cell = next(c for c in n.cells if "parameters" in c.metadata.get("tags", []))
    cell.source += "\nn = len('x')"
    with pytest.raises(NotebookError, match="not `name = literal`"):
        parameters.defaults(n, "20_trio")


def test_the_kernel_is_this_interpreter(root, monkeypatch):
    edited(root, monkeypatch, "import sys; open('which.txt', 'w').write(sys.executable)")
    with pytest.raises(NotebookError, match="missing"):
        notebook.execute("20_trio", {"profile": "smoke"})
    assert (root / "notebooks/which.txt").read_text() == sys.executable


def test_texts_are_typed_without_guessing():
    values = parameters.full("20_trio", {"profile": "smoke", "seed": "0,1", "lr": "1e-3", "depth": "[2]"})
    assert values["overrides"] == {"seed": [0, 1], "lr": 1e-3, "depth": [2]}
    with pytest.raises(ConfigError):
        parameters.parse("flag", "yes", bool)
    assert parameters.parse("flag", "false", bool) is False
    assert json.dumps(values)


@pytest.mark.parametrize(
    "words",
    [
        ["notebook", "20_trio", "--profile", "smoke", "seed=0,1"],
        ["notebook", "--profile", "smoke", "20_trio", "seed=0,1"],
        ["notebook", "20_trio", "seed=0,1", "--profile", "smoke"],
    ],
)
def test_options_and_settings_come_in_any_order(root, monkeypatch, capsys, words):
    from biasnb.suite.commands import main

    seen = []
    monkeypatch.setattr(notebook, "execute", lambda *given, cell_timeout: seen.append(given))
    assert main(words) == 0
    assert seen == [("20_trio", {"seed": "0,1", "profile": "smoke"})]


def test_an_unknown_option_is_refused(capsys):
    from biasnb.suite.commands import main

    with pytest.raises(SystemExit) as caught:
        main(["notebook", "20_trio", "--sede", "3"])
    assert caught.value.code == 2


def test_reproduce_passes_each_notebook_what_it_can_use(root, monkeypatch):
    def note(name, given, stream, kernel):
        path = root / "seen" / name
        write_atomic(path, json.dumps(given))
        return path

    monkeypatch.setattr(notebook, "execute", note)
    monkeypatch.setattr(suite, "render", lambda *given: [])
    trained = []
    monkeypatch.setattr(workers, "train", lambda configs, store: trained.extend(configs))
    old = Store("smoke").folder
    old.mkdir(parents=True)
    (old / "mine.txt").write_text("kept")
    suite.reproduce("smoke", {"seed": "3,4", "steps": "5"}, fresh=True)
    assert (old.with_name("smoke.old1") / "mine.txt").read_text() == "kept"
    seen = {path.name: json.loads(path.read_text()) for path in (root / "seen").iterdir()}
    assert seen["20_trio"] == {"profile": "smoke", "seed": [3, 4], "steps": 5}
    assert seen["10_one_run"] == seen["00_start_here"] == {"profile": "smoke", "seed": 3, "steps": 5}
    assert seen["90_paper"] == {"profile": "smoke"}
    assert {cfg.seed for cfg in trained} == {3, 4}
    assert {cfg.steps for cfg in trained} == {1, 5, 20}  # 24_geometry: also a quarter and four times
    assert {cfg.mixer for cfg in trained} >= {"convmixer", "attn", "static_softmax"}
    with pytest.raises(ConfigError, match="sede"):
        suite.reproduce("smoke", {"sede": "3"})


@pytest.mark.parametrize("settings", [{"input": "palette", "target": "palette", "colours": "8"}, {"input": "quantised"}])
def test_start_here_runs_with_every_input(root, monkeypatch, settings):
    """In this process, as a kernel would."""
    names = {"display": print}
    for i, cell in enumerate(c for c in source("00_start_here").cells if c.cell_type == "code"):
        exec(cell.source, names)
        if i == 0:
            names |= parameters.full("00_start_here", {"profile": "smoke", **settings})
    assert all(getattr(names["cfg"], name) == value for name, value in names["overrides"].items())
    assert names["overrides"].keys() == settings.keys() and np.isfinite(names["scores"]["ConvMixer (convolution)"])


def test_a_folder_of_images_gives_the_notebook_a_copy_of_its_own(root, tmp_path):
    from biasnb.sweep.experiments import plan

    labels = set()
    for name in ("", "cats", "dogs"):
        if name:
            (tmp_path / name).mkdir()
            (tmp_path / name / f"{name}.png").write_bytes(name.encode())
        values = parameters.full("05_your_own_images", {"profile": "smoke", "folder": name and str(tmp_path / name)})
        labels.add(plan("05_your_own_images", *parameters.request("05_your_own_images", values))[0].name)
    assert len(labels) == 3 and "05_your_own_images" in labels
    with pytest.raises(ConfigError, match="folder"):
        parameters.full("05_your_own_images", {"profile": "smoke", "folder": str(tmp_path / "nowhere")})


def test_a_download_folder_is_not_taken_for_images_of_ones_own(root):
    given = {"profile": "smoke", "data_dir": "downloads", "dataset": "cifar10"}
    assert parameters.accepted("05_your_own_images", given)["dataset"] == "cifar10"


def test_a_notebook_shows_trouble_in_one_line():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.user_ns["grid"] = lambda: parameters.full("20_trio", {"depht": 2})
    shown = []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)
    shell.run_cell("saved_sweep()")
    (line,) = shown
    assert line.startswith("ConfigError: depht: no such") and "\n" not in line
