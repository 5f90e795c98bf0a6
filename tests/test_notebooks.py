"""The notebooks: their parts, all of them executed by one `reproduce` of profile smoke, and the ways to run one."""

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
import time

import nbformat
import numpy as np
import psutil
import pytest
from forked import environment, python
from synthetic import NO_TORCH, results, saved_sweep, write_notebook

from biasnb.config import PROFILES, ConfigError
from biasnb.records.places import CHECKOUT as ROOT
from biasnb.records.store import Store
from biasnb.suite import notebooks, reproduce, status
from biasnb.suite.commands import main
from biasnb.suite.notebooks import NotebookError
from biasnb.sweep import executor, manifest

NAMES = manifest.names()
STUDY = ("parameters", "imports", "runs", "training", "table", "figure", "how to read it")
PARTS = {
    "00_start_here": ("parameters", "imports", "run", "table", "figure", "how to read it"),
    "01_inputs": ("parameters", "imports", "table", "figure", "how to read it"),
    "02_networks": ("parameters", "imports", "table", "figure", "how to read it"),
    "03_playground": ("parameters", "imports", "table", "figure", "how to read it"),
    "04_your_own_operator": ("parameters", "imports", "table", "figure", "runs", "table", "figure", "how to read it"),
    "10_one_run": ("parameters", "imports", "runs", "table", "figure", "how to read it"),
    "40_reconstructions": ("parameters", "imports", "runs", "table", "figure", "how to read it"),
    "90_paper": ("parameters", "imports", "table", "figure", "how to read it"),
}
NO_CLAIM = ("00_start_here", "01_inputs", "10_one_run", "90_paper")


def source(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_of(name):
    return [cell.source for cell in source(name).cells if cell.cell_type == "code"]


# ---- sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_notebook_has_the_parts_in_their_order(name):
    text = [c.source for c in source(name).cells if c.cell_type == "markdown"]
    assert text[0].startswith(f"# {name[:2]} · ")
    assert "**Question" in text[0] and "**Answer in a sentence.**" in text[0]
    headings = [line[3:].lower() for cell in text for line in cell.splitlines() if line.startswith("## ")]
    at = -1
    for part in PARTS.get(name, STUDY):
        found = [i for i, heading in enumerate(headings) if part in heading and i >= at]
        assert found, f"{name}: no part {part!r} after {headings[:at]}"
        at = found[0]
    assert text[-1].startswith("## How to read it")
    assert "refute" in text[-1] or name in NO_CLAIM


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_thin_clean_and_parameterised_once(name):
    code = [cell for cell in source(name).cells if cell.cell_type == "code"]
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 80
    assert all(len(cell.source.splitlines()) <= 15 for cell in code)
    for cell in code:
        nodes = list(ast.walk(ast.parse(cell.source)))
        defined = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
        assert not defined or name == "04_your_own_operator"
        assert "sys.path" not in cell.source and not cell.source.lstrip().startswith(("%", "!"))
        assert cell.outputs == [] and cell.execution_count is None
    studied = {"90_paper", *(sweep.name for sweep in Store("cifar10", "results").sweeps())}
    assert manifest.declared(name)["profile"] == ("cifar10" if name in studied else "quick")


# ---- all of them, executed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, cluster):
    """Every notebook executed at `smoke` by one `reproduce`, in a checkout whose path has a space and an umlaut."""
    top = tmp_path_factory.mktemp("eine Kopie ü")
    for name in ("notebooks", "results"):
        os.symlink(ROOT / name, top / name)
    command = [sys.executable, "-m", "biasnb", "reproduce", "--profile", "smoke", "--scheduler", cluster]
    done = subprocess.run(command, env=environment(top), capture_output=True, text=True)
    return top, done


def test_every_notebook_runs_at_smoke(smoke):
    top, done = smoke
    assert done.returncode == 0, done.stdout + done.stderr
    folder = top / "runs/smoke"
    assert sorted(p.stem for p in (folder / "notebooks").glob("*.ipynb")) == NAMES
    assert f"{len(NAMES)} of {len(NAMES)} notebooks" in (folder / "summary.md").read_text()
    assert (folder / "figures/20_trio-depth.png").is_file() and (folder / "tables/20_trio-summary.md").is_file()


def test_runs_that_several_notebooks_ask_for_are_counted_once(smoke, root):
    sweeps = [manifest.plan(name, manifest.parameters(name, {"profile": "smoke"})) for name in NAMES]
    runs = [run["key"] for sweep in sweeps if sweep for run in sweep.runs]
    assert len(set(runs)) < len(runs)
    assert f"{len(set(runs))} runs for {len(NAMES)} notebooks, {len(set(runs))} to train\n" in smoke[1].stdout


@pytest.mark.parametrize("name", NAMES)
def test_executed_notebook_has_no_error_and_shows_a_picture_or_says_why_not(smoke, name):
    executed = nbformat.read(smoke[0] / "runs/smoke/notebooks" / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures or any("one seed cannot tell" in str(output.get("data")) for output in outputs), "no picture"
    assert all(output.metadata["image/png"]["alt"] for output in pictures)


@pytest.mark.fault("T12")
def test_executed_notebooks_hold_no_local_path(smoke):
    for path in (smoke[0] / "runs/smoke/notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert str(smoke[0]) not in text and str(ROOT) not in text and ".part" not in text, path.name


def test_90_paper_imports_no_torch(smoke):
    cells = code_of("90_paper")[:5]
    code = "\n".join(["display = print", *cells]).replace('"cifar10"', '"smoke"')
    assert "13 of 13 records" in python(smoke[0], "-c", NO_TORCH + code)


# ---- three ways to run one ------------------------------------------------------------------------------------------


GEOMETRY = {"depths": [1, 2], "widths": [8], "patches": [2], "kernels": [3], "mask_rates": [0.5], "seeds": [0]}


@pytest.mark.parametrize(("name", "given", "records"), [
    ("20_trio", {"depths": [1, 2], "seeds": [0]}, 13),
    pytest.param("24_geometry", GEOMETRY, 16, marks=pytest.mark.campaign),
])  # fmt: skip
def test_plain_papermill_the_strict_runner_and_a_kernels_own_run_make_equal_records(
    tmp_path, cluster, monkeypatch, name, given, records
):
    """With factors as flat parameters. In a kernel all cells are run one after another, as JupyterLab's Run All does."""
    notebook, found, executed = str(ROOT / "notebooks" / f"{name}.ipynb"), {}, source(name)
    words = [word for parameter, levels in given.items() for word in ("-y", f"{parameter}: {levels}")]
    parameters = next(cell for cell in executed.cells if "parameters" in cell.metadata.get("tags", []))
    more = [f"{parameter} = {levels}" for parameter, levels in given.items()]
    parameters.source += "\n".join(["", 'profile = "smoke"', *more])
    edited, listed = tmp_path / f"{name}.ipynb", [f"{key}={','.join(map(str, levels))}" for key, levels in given.items()]
    nbformat.write(executed, edited)
    out, options = str(tmp_path / "out.ipynb"), ["-p", "profile", "smoke", "-k", "python3", "--no-progress-bar"]
    commands = {
        "papermill": ["papermill", notebook, out, *options, *words],
        "strict": ["biasnb", "notebook", name, "--profile", "smoke", *listed],
        "kernel": ["nbconvert", "--to", "notebook", "--execute", "--output", str(tmp_path / "run.ipynb"), str(edited)],
    }
    for way, command in commands.items():
        (tmp_path / way).mkdir()
        python(tmp_path / way, "-m", *command, BIASNB_SCHEDULER=cluster)
        monkeypatch.setenv("BIASNB_ROOT", str(tmp_path / way))
        found[way] = results(Store("smoke"))
    assert len(found["strict"]) == records and found["papermill"] == found["strict"] == found["kernel"]


@pytest.mark.parametrize(
    ("name", "given", "tag", "says"),
    [
        ("20_trio", ["-p", "seed", "3"], "parameters", "seed: no such parameter (given 3); did you mean 'seeds'?"),
        ("20_trio", ["-p", "overrides", "{'steps': 2}"], "parameters", "overrides: no such parameter"),
        ("20_trio", ["-y", "settings: {sede: 3}"], "parameters", "sede: no such setting (given 3); did you mean 'seed'?"),
        ("20_trio", ["-p", "depths", "1"], "parameters", "depth: 1 is not a list of levels; give e.g. [1]"),
        ("20_trio", ["-y", "seeds: [0]"], "", "20_trio: what was given stands before the parameters; tag"),
        ("90_paper", ["-p", "depths", "1"], "parameters", "depths: no such parameter (given 1)"),
    ],
)
def test_what_plain_papermill_is_given_counts_or_is_refused_in_a_line_before_training(tmp_path, name, given, tag, says):
    notebook = source(name)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = [tag] if tag else []
    nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = ["papermill", f"{name}.ipynb", "out.ipynb", "-k", "python3", "--no-progress-bar", "-p", "profile", "smoke"]
    env = environment(tmp_path / "root")
    done = subprocess.run([sys.executable, "-m", *command, *given], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"ConfigError: {says}"), done.stderr
    assert not (tmp_path / "root").exists()


def test_every_notebook_refuses_unknown_parameters():
    for name in NAMES:
        code = "".join(cell.source for cell in source(name).cells if cell.cell_type == "code")
        assert f'Study("{name}"' in code or f'manifest.in_force("{name}")' in code, name


def test_papermill_lists_the_factors_with_their_comments():
    notebook = str(ROOT / "notebooks/20_trio.ipynb")
    said = python(ROOT, "-m", "papermill", "--help-notebook", notebook)
    assert all(f"  {name}: " in said for name in manifest.declared("20_trio")) and "Unknown type" not in said
    assert "numbers of blocks; None: the levels of the profile" in " ".join(said.split())


# ---- the strict runner ----------------------------------------------------------------------------------------------


@pytest.mark.fault("T1")
@pytest.mark.fault("F17")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["20_trio", "sede=3"], "sede: no such parameter (given '3'); did you mean 'seed"),
        (["20_trio", "profle=smoke"], "did you mean 'profile'?"),
        (["20_trio", "profile=smok"], "did you mean 'smoke'?"),
        (["20_tri"], "did you mean '20_trio'?"),
        (["20_trio", "depths=two"], "depth: 'two' is not a whole number"),
        (["20_trio", "steps=007"], "steps: '007' is not a whole number"),
        (["20_trio", "depth=0"], "depth: 0 is outside 1 to 64"),
        (["20_trio", "steps="], "steps: '' is not a whole number"),
        (["20_trio", "depth="], "depth: [] is empty"),
        (["20_trio", "mixer=Mixer"], "the nearest is 'mixer'"),
        (["20_trio", "steps=1,2"], "steps: '1,2' is not a whole number"),
        (["20_trio", 'settings={"detph": 2}'], "detph: no such setting"),
        (["20_trio", "settings=[1]"], "settings: '[1]' is not a JSON dict"),
        (["20_trio", 'settings={"width": {}}'], "width: "),
        (["20_trio", 'settings={"data_dir": 1}'], "data_dir: "),
        (["20_trio", 'settings={"kernel": [[], []]}'], "settings: kernel: "),
        (["20_trio", 'settings={"lr": "x"}'], "lr: "),
        (["20_trio", 'settings={"seed": 1}', "seeds=0"], "settings: seed is a factor of this notebook"),
        (["20_trio", "mixer=igpt", "heads=3"], "heads: 3 does not divide width 64"),
        (["90_paper", "steps=3"], "steps: no such parameter"),
        (["20_trio", "depth"], "'depth': not FIELD=VALUE"),
        (["20_trio", "seed=0,0"], "names a level twice"),
        (["20_trio", "--sede", "3"], "--sede: no such option of `biasnb notebook`; did you mean --"),
        (["20_trio", "--scheduler-file", "nowhere"], "scheduler_file: 'nowhere' is no file"),
    ],
)
def test_strict_runner_refuses_before_a_kernel_starts(root, capsys, monkeypatch, words, message):
    monkeypatch.setattr("papermill.execute_notebook", None)
    assert main(["notebook", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (root / "runs").exists()


RUNS = """from biasnb.sweep import Study
study = Study("20_trio", profile, settings)
sweep = study.plan(study.every_combination(mixer=["conv", "attn"]))"""


@pytest.mark.parametrize(
    ("cell", "message"), [("exit()", "did not run|records are missing"), ("x = 1", "5 of 5 records are missing")]
)
def test_success_means_the_promised_records(root, cell, message):
    write_notebook(root, "20_trio", cell, "y = 2", sweep=RUNS)
    good = Store("smoke").folder / "notebooks/20_trio.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("an earlier good copy")
    with pytest.raises(NotebookError, match=message) as caught:
        notebooks.execute("20_trio", {"profile": "smoke"}, io.StringIO())
    assert caught.value.state == "failed" and notebooks.states(Store("smoke"))["20_trio"][0] == "failed"
    assert re.search(message, notebooks.states(Store("smoke"))["20_trio"][1])
    assert good.read_text() == "an earlier good copy"
    assert sorted(path.name for path in good.parent.iterdir()) == ["20_trio.failed.ipynb", "20_trio.ipynb"]


def test_a_good_copy_takes_the_place_of_one_that_failed(root, scheduler):
    write_notebook(root, "20_trio", "sweep.train()", sweep=RUNS)
    failed = Store("smoke").folder / "notebooks/20_trio.failed.ipynb"
    failed.parent.mkdir(parents=True)
    failed.write_text("{}")
    assert notebooks.execute("20_trio", {}, io.StringIO()).is_file() and not failed.exists()
    assert notebooks.states(Store("smoke")) == {"20_trio": ("done", "")}


def test_what_a_notebook_without_runs_was_given_names_its_copy():
    values = manifest.parameters("00_start_here", {"profile": "smoke"})
    assert notebooks.label_of("00_start_here", values) == "00_start_here"
    changed = manifest.parameters("00_start_here", {"profile": "smoke", "steps": "5"})
    assert notebooks.label_of("00_start_here", changed).startswith("00_start_here-")


@pytest.mark.parametrize(
    "words",
    [
        ["notebook", "20_trio", "--profile", "smoke", "seed=0,1"],
        ["notebook", "--profile", "smoke", "20_trio", "seed=0,1"],
        ["notebook", "20_trio", "seed=0,1", "--profile", "smoke"],
    ],
)
def test_options_and_settings_come_in_any_order(monkeypatch, words):
    seen = []
    monkeypatch.setattr(notebooks, "execute", lambda *given, cell_timeout: seen.append(given))
    assert main(words) == 0
    assert seen == [("20_trio", {"seed": "0,1", "profile": "smoke"})]


def test_a_scheduler_is_passed_on_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "execute", lambda *given, cell_timeout: seen.append(os.environ[executor.SCHEDULER]))
    monkeypatch.setenv(executor.SCHEDULER, "")
    seen, file = [], tmp_path / "scheduler.json"
    file.write_text("{}")
    assert main(["notebook", "20_trio", "--scheduler", "tcp://10.0.0.1:8786"]) == 0
    assert main(["notebook", "20_trio", "--scheduler-file", str(file)]) == 0
    assert seen == ["tcp://10.0.0.1:8786", str(file)]


# ---- reproduce ------------------------------------------------------------------------------------------------------


@pytest.fixture
def traced(root, monkeypatch):
    """What `reproduce` would train and which notebooks it would run with what; it does neither."""
    seen = {"trained": [], "executed": {}}

    def execute(name, given, stream, kernel, profile):
        seen["executed"][name] = given
        if name == seen.get("fails"):
            raise NotebookError(f"{name}: no luck")
        return root / f"{name}.ipynb"

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(executor, "train", lambda configs, store: seen["trained"].extend(configs))
    monkeypatch.setattr(executor, "cluster", lambda *given: contextlib.nullcontext("nowhere"))
    monkeypatch.setattr(reproduce.report, "write", lambda store, findings: store.folder / "report.html")
    return seen


def test_reproduce_passes_each_notebook_what_it_can_use(root, traced):
    old = Store("smoke").folder
    old.mkdir(parents=True)
    (old / "mine.txt").write_text("kept")
    reproduce.reproduce("smoke", {"seed": "3,4", "steps": "5"}, fresh=True)
    assert (old.with_name("smoke.old1") / "mine.txt").read_text() == "kept"
    seen, trained = traced["executed"], traced["trained"]
    assert (seen["20_trio"]["seeds"], seen["20_trio"]["settings"]) == ([3, 4], {"steps": 5})
    assert seen["10_one_run"]["settings"] == seen["00_start_here"]["settings"] == {"seed": 3, "steps": 5}
    assert seen["90_paper"] == {"profile": "smoke"}
    assert {cfg.seed for cfg in trained} == {3, 4} and {cfg.steps for cfg in trained} >= {5}
    assert {cfg.mixer for cfg in trained} >= {"convmixer", "attn", "static_softmax"}
    with pytest.raises(ConfigError, match="sede"):
        reproduce.reproduce("smoke", {"sede": "3"})


def test_notebooks_that_a_profile_leaves_to_saved_records_run_as_they_are_and_train_nothing(root, traced, monkeypatch, capsys):
    monkeypatch.setitem(PROFILES["smoke"], "saved", ["22_representation", "90_paper"])
    own = manifest.parameters("22_representation")
    stores = []
    monkeypatch.setattr(reproduce, "decide", lambda given, found: stores.extend(given))
    reproduce.reproduce("smoke", {"steps": "5", "seed": "3"})
    assert traced["executed"]["22_representation"] == own and list(traced["executed"]) == sorted(traced["executed"])
    assert traced["executed"]["21_cube"]["settings"] == {"steps": 5}
    assert {cfg.input for cfg in traced["trained"]} == {"rgb"}, "no run of 22_representation"
    assert [(store.base, store.profile) for store in stores] == [("runs", "smoke"), ("results", own["profile"])]
    assert f"for {len(NAMES) - 2} notebooks" in (said := capsys.readouterr().out) and "2 more show saved records" in said
    assert set(NAMES) - {sweep.content["notebook"] for sweep in status.asked("smoke")[0]} >= {"22_representation"}


def test_a_profile_among_the_settings_of_reproduce_is_refused(root, traced, capsys):
    assert main(["reproduce", "profile=smoke"]) == 2
    assert capsys.readouterr().err == "error: profile: give it as --profile smoke, not as profile=smoke\n"
    assert not traced["trained"] and not (root / "runs").exists()


def test_whatever_fails_the_rest_goes_on_and_is_counted_apart(root, traced, monkeypatch, capsys):
    def broken(*given):
        raise ZeroDivisionError("while drawing")

    monkeypatch.setattr(reproduce.board, "write", broken)
    traced["fails"] = "21_cube"
    assert main(["reproduce", "--profile", "smoke"]) == 1
    out, error = capsys.readouterr()
    assert error == f"error: 1 of {len(NAMES)} notebooks failed: 21_cube; other steps failed: claims\n"
    assert len(traced["executed"]) == len(NAMES)
    assert "error: claims: ZeroDivisionError: while drawing" in out and "| report | done |" in out


# ---- figures --------------------------------------------------------------------------------------------------------

DRAWN = ("20_trio", "25_skip", "26_permutation", "28_position", "29_precision", "33_channel_mlp")


def test_many_sweeps_are_drawn_side_by_side_without_torch_by_processes_that_end_with_their_parent(root):
    for name in DRAWN:
        saved_sweep(Store("smoke"), name, seed=[0, 1]).save()
    (root / "barred").mkdir()
    (root / "barred/torch.py").write_text("raise ImportError('torch is barred')")
    path = os.pathsep.join([str(root / "barred"), str(ROOT)])
    words = ["-m", "biasnb", "figures", "--runs", "--profile", "smoke"]
    process = subprocess.Popen([sys.executable, *words], env=environment(root, PYTHONPATH=path), stdout=subprocess.DEVNULL)
    while not (started := psutil.Process(process.pid).children(recursive=True)) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert started and not psutil.wait_procs(started, 10)[1]
    python(root, *words, PYTHONPATH=path)
    for name in DRAWN:
        assert list((root / "runs/smoke/figures").glob(f"{name}-*.png")), name
        assert (root / "runs/smoke/tables" / f"{name}-summary.md").is_file()


# ---- in a kernel ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"input": "palette", "target": "palette", "colours": "8"}, {"input": "quantised"}])
def test_start_here_runs_with_every_input(root, decoded, settings):
    """In this process, as a kernel would."""
    (root / "runs").mkdir()
    (root / "runs/cache").symlink_to(decoded)
    names = {"display": print}
    for i, cell in enumerate(code_of("00_start_here")):
        exec(cell, names)
        if i == 0:
            names |= manifest.parameters("00_start_here", {"profile": "smoke", **settings})
    assert all(getattr(names["cfg"], name) == value for name, value in names["settings"].items())
    assert names["settings"].keys() == settings.keys() and np.isfinite(names["scores"]["convolution (convmixer)"])


def test_a_folder_of_images_gives_the_notebook_a_copy_of_its_own(root, tmp_path, monkeypatch):
    labels = set()
    monkeypatch.chdir(tmp_path)  # a relative path is that of where the user stands
    for name in ("", "cats", "dogs"):
        if name:
            (tmp_path / name).mkdir()
            (tmp_path / name / f"{name}.png").write_bytes(name.encode())
        values = manifest.parameters("05_your_own_images", {"profile": "smoke", "folder": name})
        assert values["folder"] == (name and str(tmp_path / name))
        labels.add(manifest.plan("05_your_own_images", values).name)
    assert len(labels) == 3 and "05_your_own_images" in labels
    with pytest.raises(ConfigError, match="folder"):
        manifest.parameters("05_your_own_images", {"profile": "smoke", "folder": str(tmp_path / "nowhere")})


def test_a_notebook_shows_trouble_in_one_line():
    from IPython.core.interactiveshell import InteractiveShell

    import biasnb  # noqa: F401  which tells IPython how

    shell = InteractiveShell()
    shell.user_ns["planned"] = lambda: manifest.parameters("20_trio", {"depht": 2})
    shown = []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)
    shell.run_cell("planned()")
    (line,) = shown
    assert line.startswith("ConfigError: depht: no such") and "\n" not in line
