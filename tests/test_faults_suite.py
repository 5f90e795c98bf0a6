"""Faults of the suite around the runs: Papermill's traps, signals to notebooks and the whole suite, full and read-only disks,
gaps, other surroundings, hostile names. Real processes, real signals and, where this may mount, real full disks."""

import contextlib
import ctypes
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
import synthetic
from forked import BRIEF, CHECKOUT, environment, until
from synthetic import PARAMETERS, PYTHON, write_notebook

from biasnb.config import ConfigError
from biasnb.records.store import Store
from biasnb.suite import notebooks as runner
from biasnb.suite.commands import main
from biasnb.sweep import manifest

TIMES = 90  # seconds that anything may take on a busy machine
STOP_SECONDS = 5  # in which kernels and workers notice that nobody is there for them
SLEEP = "import time; time.sleep(1000)"


def start(folder, *words, **more):
    """`biasnb WORDS` in a checkout of its own. A variable that is None is taken away."""
    env = environment(folder, **{"BIASNB_CHECKPOINT_SECONDS": "0.05", **more})
    return subprocess.Popen([sys.executable, "-m", "biasnb", *words], env=env, cwd=folder, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip


def finish(process, seconds=TIMES):
    """(exit code, stdout, stderr); an orphan that holds a pipe makes this time out."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for one in [psutil.Process(process.pid), *descendants(process)]:
            one.kill()
        raise
    return process.returncode, out, err


def biasnb(folder, *words, **given):
    return finish(start(folder, *words, **given))


def here(capsys, *words):
    """`biasnb WORDS` in this process: (exit code, stdout, stderr)."""
    code = main(list(words))
    return code, *capsys.readouterr()


def descendants(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def stop(process, number):
    """Signal a process: (exit code, stdout, stderr, processes that outlived it by some seconds)."""
    family = descendants(process)
    process.send_signal(number)
    code = process.wait(2)
    _, alive = psutil.wait_procs(family, STOP_SECONDS)
    return code, *finish(process, STOP_SECONDS)[1:], [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def store_of(folder, profile="smoke"):
    store = Store(profile)
    store.folder = folder / "runs" / profile
    return store


def states_of(folder):
    """Label -> state of the notebooks that were started."""
    return {label: state for label, (state, _) in runner.states(store_of(folder)).items()}


def files(folder, *patterns):
    """Path -> content of the files under a folder."""
    found = (path for pattern in patterns or ("**/*",) for path in folder.glob(pattern))
    return {path.relative_to(folder): path.read_bytes() for path in found if path.is_file()}


def one_line(text):
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


@pytest.fixture
def notebooks(root):
    """Some committed notebooks, to be damaged."""
    (root / "notebooks").mkdir()
    for name in ("02_networks", "20_trio", "21_cube"):
        shutil.copy(CHECKOUT / "notebooks" / f"{name}.ipynb", root / "notebooks")
    return root


# ---- parameters -----------------------------------------------------------------------------------------------------


ANNOTATED = """profile: str = 'smoke'
flag: bool = True
rate: float = 0.5
y: list[int] = [3]
depths: "Optional[list[int]]" = None
settings: dict = {}"""


@pytest.fixture
def annotated(root):
    write_notebook(root, "20_trio", parameters=[ANNOTATED])


@pytest.mark.fault("T2")
def test_annotated_parameters_are_read_without_running_the_cell(annotated):
    assert manifest.declared("20_trio") == {
        "profile": "smoke", "flag": True, "rate": 0.5, "y": [3], "depths": None, "settings": {}}  # fmt: skip
    values = manifest.parameters("20_trio", {"rate": "1e-3", "y": "[1, 2]", "depths": "1,2", "seed": "4"})
    assert (values["rate"], values["y"], values["depths"], values["settings"]) == (1e-3, [1, 2], [1, 2], {"seed": 4})
    assert manifest.parameters("20_trio", {"depth": "null"})["depths"] is None
    for name, text in (("flag", "null"), ("rate", "null"), ("y", "3"), ("depths", "x"), ("z", "1")):
        with pytest.raises(ConfigError, match=r"^(depth|z|flag|rate|y): "):
            manifest.parameters("20_trio", {name: text})


@pytest.mark.fault("T3")
def test_texts_are_typed_by_the_declaration_and_never_guessed(annotated, capsys):
    assert manifest.parameters("20_trio", {"flag": "false"})["flag"] is False
    assert manifest.parameters("20_trio", {"flag": "True"})["flag"] is True
    for name, text in (("flag", "0"), ("flag", "no"), ("flag", ""), ("seed", "007"), ("steps", "007"), ("seed", "0x7"),
                       ("seed", "1_0"), ("seed", "٣"), ("seed", "true"), ("rate", "1,5"), ("rate", "1_0")):  # fmt: skip
        code, _, error = here(capsys, "notebook", "20_trio", f"{name}={text}")
        assert code == 2 and f"{name}: {text!r} is not " in one_line(error)


# ---- notebooks that cannot be run -----------------------------------------------------------------------------------

CELLS = {"x: int": "", "x = None": "x = None has a default of no known type", "x: int | None = None": "", "x = y = 1": "",
         "x, y = 1, 2": "", "x += 1": "", "x = f(1)": "'x = f(1)' is not `name = literal`", "x = 1 +": "line 3",
         "%matplotlib inline": "", "x = (1, 2)": "", "x = 1j": "", "a.b = 1": ""}  # fmt: skip
REFUSED = {cell: ({"parameters": [f"{PARAMETERS}\n{cell}"]}, f"parameters cell: {said}") for cell, said in CELLS.items()}
REFUSED |= {
    "no tag": ({"parameters": []}, "21_cube: 0 cells are tagged 'parameters', needs exactly one"),
    "two tags": ({"parameters": [PARAMETERS] * 2}, "21_cube: 2 cells are tagged 'parameters', needs exactly one"),
    "no kernelspec": ({"kernelspec": None}, "21_cube.ipynb: has lost its kernelspec"),
    "odd kernelspec": ({"kernelspec": "python3"}, "21_cube.ipynb: has lost its kernelspec"),
    "cut": ({}, "21_cube.ipynb: not a readable notebook"),
}
UNTIDY = {
    "another kernel": ({"kernelspec": {"name": "julia", "display_name": "?"}}, "kernelspec 'julia', expected 'python3'"),
    "no question": ({"question": "# Mine"}, "its first cell has no question"),
    "another study": ({"sweep": 'study = Study("98_other", profile)'}, "its study is called '98_other'"),
    "no literal": ({"sweep": "show_figure(name, sweep)"}, "its first argument is no literal name"),
}


@pytest.mark.fault("F18")
@pytest.mark.fault("T2")
@pytest.mark.fault("T4")
@pytest.mark.parametrize("how", REFUSED | UNTIDY)
def test_a_notebook_that_cannot_be_run_with_parameters_fails_lint_and_is_refused(notebooks, monkeypatch, capsys, how):
    monkeypatch.setattr(runner, "this_interpreter", None)
    assert here(capsys, "lint")[0] == 0
    given, said = (REFUSED | UNTIDY)[how]
    write_notebook(notebooks, "21_cube", **given)
    path = notebooks / "notebooks/21_cube.ipynb"
    path.write_bytes(path.read_bytes()[: 100 if how == "cut" else None])
    code, out, error = here(capsys, "lint")
    assert code == 1 and said in out and out.count("\n") == 1
    assert "1 of 3 notebooks" in one_line(error)
    for words in (["notebook", "21_cube"], ["reproduce"]) if how in REFUSED else []:
        code, _, error = here(capsys, *words, "--profile", "smoke")
        assert code == 1 and said in one_line(error)
    assert not (notebooks / "runs").exists()


def test_a_notebook_that_is_gone_is_unknown(notebooks, capsys):
    (notebooks / "notebooks/21_cube.ipynb").unlink()
    code, _, error = here(capsys, "notebook", "21_cube")
    assert code == 2 and "notebook: '21_cube' is not one of ['02_networks', '20_trio']" in one_line(error)


@pytest.mark.fault("T12")
def test_lint_refuses_sources_that_papermill_has_left_its_mark_on(tmp_path):
    words = next(line for line in (CHECKOUT / "Makefile").read_text().splitlines() if "nbstripout" in line)
    options = re.findall(r'--[\w-]+(?: "[^"]*")?', words.partition("nbstripout")[2])
    options = [part.strip('"') for option in options for part in option.split(" ", 1)]
    verify = [sys.executable, "-m", "nbstripout", *options]
    clean, marked = tmp_path / "clean.ipynb", tmp_path / "marked.ipynb"
    shutil.copy(CHECKOUT / "notebooks/20_trio.ipynb", clean)
    n = nbformat.read(clean, as_version=4)
    n.metadata.papermill = {"input_path": "/home/me/20_trio.ipynb"}
    nbformat.write(n, marked)
    assert subprocess.run([*verify, *sorted((CHECKOUT / "notebooks").glob("*.ipynb")), clean]).returncode == 0
    assert subprocess.run([*verify, marked], capture_output=True).returncode == 1


# ---- notebooks that go wrong ----------------------------------------------------------------------------------------

FOUR = ("00_start_here", "01_inputs", "02_networks", "90_paper")
GOOD = """import sys
print("kernel", sys.executable)
from biasnb.records.progress import Progress
report = Progress("training", 3, every=1e-9)
report(1, "loss 2")
report(2, "loss 1")
report.finish("loss 0")"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """`reproduce` of four notebooks of which only the last is good, on a machine with other kernels of their names, called from
    JupyterLab: (folder, exit code, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("python3", "biasnb"):
        spec = {"argv": ["/bin/false"], "display_name": name, "language": "python"}
        (folder / "jupyter/kernels" / name).mkdir(parents=True)
        (folder / "jupyter/kernels" / name / "kernel.json").write_text(json.dumps(spec))
    write_notebook(folder, "00_start_here", "import sys\nsys.exit(0)", "late = 1")
    write_notebook(folder, "01_inputs", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "late = 1")
    write_notebook(folder, "02_networks", "raise ValueError('no such\\nluck')", "late = 1")
    write_notebook(folder, "90_paper", GOOD, kernelspec=PYTHON | {"name": "ir"})
    environment = {"JUPYTER_PATH": str(folder / "jupyter"), "JPY_SESSION_NAME": "lab"}
    return folder, *biasnb(folder, "reproduce", "--profile", "smoke", **environment)


@pytest.mark.fault("T5")
@pytest.mark.fault("F19")
def test_a_cell_that_leaves_the_kernel_half_way_has_failed(hostile):
    folder, _, out, _ = hostile
    state, detail = runner.states(store_of(folder))["00_start_here"]
    assert state == "failed" and "did not run" in detail and f"error: 00_start_here: {detail}" in out
    assert "00_start_here.failed.ipynb" in out and not (folder / "runs/smoke/notebooks/00_start_here.ipynb").exists()


@pytest.mark.fault("F9")
def test_a_killed_kernel_is_named_and_the_other_notebooks_go_on(hostile):
    folder, code, out, error = hostile
    assert code == 1 and "3 of 4 notebooks failed: 00_start_here, 01_inputs, 02_networks\n" in one_line(error)
    assert states_of(folder) == dict(zip(FOUR, ["failed", "failed", "failed", "done"], strict=True))
    assert "error: 01_inputs: the kernel was killed" in out
    assert re.search(r"\| 01_inputs \| killed \|", (folder / "runs/smoke/summary.md").read_text())
    copies = {path.name for path in (folder / "runs/smoke/notebooks").glob("*.ipynb")}
    assert copies == {"90_paper.ipynb", *(f"{name}.failed.ipynb" for name in FOUR[:3])}


@pytest.mark.fault("F9")
def test_status_lists_the_notebooks_that_were_started(hostile):
    code, out, _ = biasnb(hostile[0], "status", "--profile", "smoke")
    lines = [line.split(" ", 1) for line in out.splitlines() if " notebook " in line]
    assert code == 0 and [name for name, _ in lines] == list(FOUR)
    assert [rest.split()[1] for _, rest in lines] == ["failed", "failed", "failed", "done"]
    assert lines[2][1].endswith("ValueError: no such")


@pytest.mark.fault("T10")
def test_the_kernel_is_this_interpreter_whatever_the_machine_has_under_its_name(hostile):
    folder, _, out, _ = hostile
    assert f"kernel {sys.executable}" in out
    executed = nbformat.read(folder / "runs/smoke/notebooks/90_paper.ipynb", as_version=4)
    assert executed.metadata.kernelspec.name == "biasnb" or executed.metadata.kernelspec.name == "ir"


@pytest.mark.fault("T11")
def test_progress_in_a_notebook_run_is_plain_lines_in_log_and_copy(hostile):
    folder, _, out, _ = hostile
    lines = [line for line in out.splitlines() if line.startswith("training: ")]
    assert len(lines) == 3 and "2/3 steps, 66 %" in lines[1] and "\x1b" not in out and "\r" not in out
    executed = nbformat.read(folder / "runs/smoke/notebooks/90_paper.ipynb", as_version=4)
    assert "".join(o.text for o in executed.cells[-1].outputs if o.output_type == "stream").count("training: ") == 3


@pytest.mark.fault("T12")
def test_executed_copies_hold_no_local_path(hostile):
    folder, *_ = hostile
    copies = sorted((folder / "runs/smoke/notebooks").glob("*.ipynb"))
    assert len(copies) == 4
    for path in copies:
        executed = nbformat.read(path, as_version=4)
        assert "parameters" in executed.metadata.papermill
        for cell in executed.cells:
            cell.outputs = []  # what a cell prints, such as a traceback, is its own
        assert str(folder) not in json.dumps(executed) and ".part" not in json.dumps(executed)


@pytest.mark.fault("T6")
@pytest.mark.fault("F19")
def test_a_cell_that_takes_too_long_has_failed_and_is_never_completed(root, capsys):
    write_notebook(root, "90_paper", SLEEP, "late = 1")
    code, _, error = here(capsys, "notebook", "90_paper", "--profile", "smoke", "--cell-timeout", "2")
    assert code == 1 and "90_paper: a cell took longer than the cell timeout" in one_line(error)
    assert states_of(root) == {"90_paper": "failed"}
    assert "90_paper             notebook failed a cell took longer" in here(capsys, "status", "--profile", "smoke")[1]
    assert [path.name for path in Store("smoke").folder.glob("notebooks/*.ipynb")] == ["90_paper.failed.ipynb"]


# ---- signals --------------------------------------------------------------------------------------------------------

GATE = """import pathlib, time
pathlib.Path("started-{}").write_text("")
while not pathlib.Path("go").exists():
    time.sleep(0.05)"""
SMOKE = ("--profile", "smoke")


@pytest.mark.fault("T8")
@pytest.mark.fault("F8")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_kernel_ends_with_whoever_runs_it_however_that_ends(tmp_path, number):
    """Also below a process that takes in orphans, as the init of a container or of a desktop does."""
    write_notebook(tmp_path, "90_paper", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)", GATE.format("90"))
    good = tmp_path / "runs/smoke/notebooks/90_paper.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("an earlier good copy")
    with orphans_come_here():
        process = start(tmp_path, "notebook", "90_paper", *SMOKE)
        until((tmp_path / "notebooks/started-90").exists)
        assert states_of(tmp_path) == {"90_paper": "running"}
        code, _, error, alive = stop(process, number)
    assert code == -number and not error and not alive
    assert good.read_text() == "an earlier good copy" and states_of(tmp_path) == {"90_paper": "done"}


@pytest.mark.fault("T8")
def test_a_kernel_whose_parent_died_while_it_was_starting_ends(tmp_path):
    write_notebook(tmp_path, "90_paper", GATE.format("90"))
    with orphans_come_here():
        process = start(tmp_path, "notebook", "90_paper", *SMOKE)
        until(lambda: descendants(process) or process.poll() is not None)
        _, _, _, alive = stop(process, signal.SIGKILL)
    assert not alive and not (tmp_path / "notebooks/started-90").exists()


@contextlib.contextmanager
def orphans_come_here():
    """Within the block this process is the parent of what its children leave, if the system knows such a thing."""
    prctl = getattr(ctypes.CDLL(None), "prctl", lambda *given: None)
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    try:
        yield
    finally:
        prctl(36, 0, 0, 0, 0)


@pytest.mark.fault("T9")
def test_a_second_run_of_the_same_notebook_waits_for_the_first(tmp_path):
    write_notebook(tmp_path, "90_paper", GATE.format("90"))
    first = start(tmp_path, "notebook", "90_paper", *SMOKE)
    until((tmp_path / "notebooks/started-90").exists)
    second = start(tmp_path, "notebook", "90_paper", *SMOKE)
    assert second.stdout.readline() == "90_paper: another process runs it; waiting for that\n"
    (tmp_path / "notebooks/go").write_text("")
    assert finish(first)[0] == finish(second)[0] == 0
    assert states_of(tmp_path) == {"90_paper": "done"}


def test_a_closed_pipe_ends_a_command_as_the_system_does(root):
    for words in ("list", "run --profile smoke steps=3", "--help"):
        process = start(root, *words.split(), PYTHONUNBUFFERED="1")
        process.stdout.close()
        process.stdout = None
        code, _, error = finish(process)
        assert (code, error) == (-signal.SIGPIPE, ""), words
    assert not list(root.glob("runs/smoke/*.error"))


# ---- the suite, stopped and started again ---------------------------------------------------------------------------

TWO = ("29_precision", "90_paper")
SWEEP = """from biasnb.figures import show_figure, show_table
from biasnb.sweep import Study
study = Study("29_precision", profile, settings, mixer=mixers)
sweep = study.plan(study.every_combination("mixer"))"""


def marks(folder):
    """Name -> inode and time of every record: another if it was written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder / "runs/smoke").glob("*.json")}


@pytest.fixture(scope="module")
def story(tmp_path_factory, decoded):
    """`reproduce` stopped while it trains, interrupted while notebooks run, then left alone, then called again."""
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree(decoded, folder / "runs/cache")
    parameters = "profile = 'smoke'\nmixers = ['mixer', 'igpt']\nsettings = {}"
    shown = "sweep.train()", 'show_table("summary", sweep)', 'show_figure("curves", sweep)'
    write_notebook(folder, TWO[0], *shown, GATE.format(TWO[0]), parameters=[parameters], sweep=SWEEP)
    write_notebook(folder, TWO[1], GATE.format(TWO[1]))
    words, store = ("reproduce", *SMOKE, "steps=300"), store_of(folder)
    found = {"folder": folder}

    def begun_to_train():
        return any(store.folder.glob("checkpoints/*/*.safetensors"))

    def all_in_notebooks():
        return all((folder / f"notebooks/started-{name}").exists() for name in TWO)

    for name, number, ready in (
        ("training", signal.SIGTERM, begun_to_train),
        ("notebooks", signal.SIGINT, all_in_notebooks),
    ):
        process = start(folder, *words, BIASNB_SCHEDULER=None)
        until(lambda ready=ready, process=process: ready() or process.poll() is not None)
        before, stopped = marks(folder), stop(process, number)
        runs = {key: store.status(key)[0] for key in {p.parent.name for p in store.folder.glob("checkpoints/*/*")}}
        found[name] = {"stopped": stopped, "before": before, "after": marks(folder), "runs": runs, "states": states_of(folder)}
    (folder / "notebooks/go").write_text("")
    for name in ("done", "again"):
        found[name] = biasnb(folder, *words, BIASNB_SCHEDULER=None), marks(folder), drawn(store.folder)
    return found


def drawn(folder):
    return files(folder, "figures/*", "tables/*", "claims/*")


@pytest.mark.fault("F8")
@pytest.mark.parametrize(("when", "number"), [("training", signal.SIGTERM), ("notebooks", signal.SIGINT)])
def test_a_signal_ends_the_suite_at_once_and_leaves_no_process(story, when, number):
    code, _, _, alive = story[when]["stopped"]
    assert code == -number and not alive
    assert "running" not in {*story[when]["runs"].values(), *story[when]["states"].values()}


@pytest.mark.fault("F8")
def test_what_was_trained_before_a_signal_is_not_trained_again(story):
    assert "interrupted" in story["training"]["runs"].values()
    last = story["training"]["after"]
    assert len(story["notebooks"]["before"]) == 5
    for marked in (story["notebooks"]["before"], story["notebooks"]["after"]):
        assert last.items() <= marked.items()
        last = marked
    (code, out, error), marked, _ = story["done"]
    assert code == 0, out + error
    assert last == marked and "2 runs for 2 notebooks, 0 to train" in out and "2 of 2 notebooks" in out
    assert not [p for p in story["folder"].glob("runs/**/*") if p.name.endswith((".part", ".error"))]


@pytest.mark.fault("F20")
def test_a_finished_suite_called_again_trains_nothing_and_draws_the_same(story):
    (code, out, error), marked, pictures = story["again"]
    assert code == 0, out + error
    assert "trained" not in out and marked == story["done"][1]
    assert pictures == story["done"][2] and {path.suffix for path in pictures} >= {".png", ".md"}


def test_two_suites_at_once_both_succeed_and_leave_what_one_does(tmp_path, decoded):
    shutil.copytree(decoded, tmp_path / "runs/cache")
    parameters = "profile = 'smoke'\nmixers = ['mixer']\nsettings = {}"
    write_notebook(tmp_path, TWO[0], "sweep.train()", 'show_table("summary", sweep)', parameters=[parameters], sweep=SWEEP)
    write_notebook(tmp_path, TWO[1], "print(1)")
    both = [start(tmp_path, "reproduce", *SMOKE, "steps=5", BIASNB_SCHEDULER=None) for _ in range(2)]
    for process in both:
        code, out, error = finish(process, 2 * TIMES)
        assert code == 0 and error == "" and "2 of 2 notebooks" in out, out + error
    store = store_of(tmp_path)
    assert len(list(store)) == 3 and all(store.load(key) for key in store)
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.name.endswith((".part", ".error"))]


# ---- a full disk ----------------------------------------------------------------------------------------------------

# A process that may mount: it is root, or becomes it in a namespace of its own.
SPACES = [["unshare", "-m"], ["unshare", "-rm"]]


def mounting():
    """The words that start a process which may mount, or None."""
    for words in SPACES if shutil.which("unshare") else []:
        probe = [*words, "sh", "-c", "mount -t tmpfs -o size=64k none /mnt && mount -o remount,ro,bind /mnt"]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return words
    return None


def driven(function, folder, *words, before=()):
    """What a function of this file returns when it runs in a process of its own, with `folder` as its checkout."""
    code = "import json, sys, test_faults_suite as t\n"
    code += f"print(json.dumps(t.{function.__name__}(t.Path(sys.argv[1]), *sys.argv[2:])))"
    path = os.pathsep.join([str(CHECKOUT), str(Path(__file__).parent)])
    env = {**os.environ, "BIASNB_ROOT": str(folder), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [*before, sys.executable, "-c", code, str(folder), *words]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=2 * TIMES)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def apart(words, prepare=lambda: None):
    """`biasnb WORDS` in a fork of this process: [exit code, stderr]."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        error, code = io.StringIO(), 99
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            try:
                prepare()
                code = main(words)
            except BaseException as trouble:
                error.write(f"Traceback {trouble!r}")
        os.write(writer, json.dumps([code, error.getvalue()]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def digests(folder):
    hashed = {str(p): hashlib.sha256(content).hexdigest() for p, content in files(folder).items()}
    return {name: digest for name, digest in hashed.items() if not name.startswith("filler")}


# Bytes that are free, or that a file may have: for the lock, the checkpoint, the arrays; for pictures.
SIZES = {"disk": {"run": (0, 2**13, 2**15), "figures": (0, 2**14, 2**16)}, "limit": {"run": (2**13,), "figures": (2**14,)}}


def full_disk(folder, way):
    """Run, draw and execute a notebook with little room on a disk, or few bytes that a file may have: for each kind
    [[exit code, stderr, files that changed, leftovers], ...]."""
    import torch

    from biasnb.training import run  # noqa: F401  in the parent of the forks

    torch.set_num_threads(1)
    exec(BRIEF)
    runs, top = folder / "runs", folder / "runs/smoke"
    if way == "disk":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", runs], check=True)
    shutil.copytree(folder / "cache", runs / "cache")
    found = {}

    def limit(size):
        if way == "disk":
            (runs / "filler").write_bytes(b"")
            free = os.statvfs(runs)
            os.truncate(runs / "filler", 0)
            with open(runs / "filler", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_bsize - size))
        return (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 1), -1))) if way == "limit" else (lambda: None)

    def tried(words, size):
        before = digests(runs)
        code, error = apart(words, limit(size))
        (runs / "filler").unlink(missing_ok=True)
        after = digests(runs)
        changed = [name for name, digest in before.items() if after.get(name) != digest]
        left = [str(path) for path in runs.glob("**/.*") if path.name.endswith(".part")]
        return code, error, changed, left

    earlier = synthetic.run_record("mixer", 4, 7)
    Store("smoke").save(earlier)
    words = ["run", "--profile", "smoke", "steps=3"]
    found["run"] = [tried(words, size) for size in SIZES[way]["run"]]
    found["room"] = apart(words)
    synthetic.saved_sweep(Store("smoke"), "10_one_run").save()
    assert apart(["figures", "--runs", "--profile", "smoke"])[0] == 0
    good = digests(top / "figures") | digests(top / "tables")
    for path in [*(top / "figures").iterdir(), *(top / "tables").iterdir()]:
        path.write_text("earlier")
    found["figures"] = [tried(["figures", "--runs", "--profile", "smoke"], size) for size in SIZES[way]["figures"]]
    whole = {hashlib.sha256(b"earlier").hexdigest(), *good.values()}
    found["torn figures"] = [n for d in ("figures", "tables") for n, h in digests(top / d).items() if h not in whole]
    fill = f"with open({str(runs / 'filler')!r}, 'ab', 0) as file:\n    while file.write(b'0' * 4096) == 4096: pass"
    fill = f"import contextlib\nwith contextlib.suppress(OSError), {fill[5:]}" if way == "disk" else "pass"
    write_notebook(folder, "90_paper", fill, "print('x' * 100_000)")
    (top / "notebooks").mkdir(exist_ok=True)
    (top / "notebooks/90_paper.ipynb").write_text("an earlier good copy")
    words = ["notebook", "90_paper", "--profile", "smoke"]
    size = {"disk": 2**20, "limit": 2**15}[way]
    found["notebook"] = [tried(words, size)]
    found["notebook states"] = states_of(folder)
    return found


@pytest.fixture(scope="module")
def full(tmp_path_factory, decoded):
    """What `full_disk` found on a small disk of its own or, where none can be mounted, with a limit on the size of files."""
    before = mounting()
    folder = tmp_path_factory.mktemp("full disk")
    shutil.copytree(decoded, folder / "cache")
    (folder / "runs").mkdir()
    return folder, driven(full_disk, folder, "disk" if before else "limit", before=before or ())


@pytest.mark.fault("F10")
@pytest.mark.parametrize("kind", ["run", "figures"])
def test_a_full_disk_is_named_in_one_line_and_harms_no_earlier_file(full, kind):
    folder, found = full
    assert found["room"] == [0, ""]
    for code, error, changed, left in found[kind]:
        assert code == 1 and str(folder / "runs/smoke") in one_line(error)
        assert "No space left" in error or "File too large" in error
        own = ("locks/", "checkpoints/", *(("figures/", "tables/") if kind == "figures" else ()))
        others = [name for name in changed if not name.removeprefix("smoke/").startswith(own) and not name.endswith(".error")]
        assert left == others == []
    assert found["torn figures"] == []


@pytest.mark.fault("F10")
@pytest.mark.fault("T7")
def test_a_full_disk_leaves_the_earlier_executed_copy_as_it_was(full):
    folder, found = full
    ((code, error, changed, left),) = found["notebook"]
    assert code == 1 and str(folder / "runs/smoke/notebooks") in one_line(error)
    assert "smoke/notebooks/90_paper.ipynb" not in changed and left == []
    assert found["notebook states"]["90_paper"] in ("failed", "done")  # of the earlier copy, where none of this one is left


# ---- gaps -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gaps(root):
    """The trio with three seeds, of whose attention at depth 1 one run is missing, one failed and one diverged."""
    sweep = synthetic.saved_sweep(Store("smoke"), seed=[0, 1, 2])
    sweep.save()
    runs = [run for run in sweep.runs if (run["mixer"], run["depth"]) == ("igpt", 1)]
    for run in runs:
        sweep.store.path(run["key"]).unlink()
    sweep.store.path(runs[1]["key"], ".error").write_text("MemoryError: too large\n")
    sweep.store.save(synthetic.run_record("igpt", 1, 2, status="diverged"))
    return sweep


@pytest.mark.fault("F21")
@pytest.mark.fault("F11")
def test_figures_and_tables_of_incomplete_records_show_the_gap_and_exit_with_3(gaps, root, capsys):
    code, out, error = here(capsys, "figures", "--runs", "--profile", "smoke")
    assert code == 3 and "1 sweeps lack records" in one_line(error)
    assert out.splitlines()[-1] == "runs/smoke 20_trio: 2 of 37 records are missing"
    heads, _, *rows = (line.strip("|").split("|") for line in (root / "runs/smoke/tables/20_trio-summary.md").read_text()
                       .splitlines() if line.startswith("|"))  # fmt: skip
    table = [dict(zip(map(str.strip, heads), map(str.strip, row), strict=True)) for row in rows]
    row = next(row for row in table if (row["network"], row["depth"]) == ("attention (igpt)", "1"))
    assert [row[name] for name in ("n", "diverged", "failed", "missing", "masked PSNR, dB", "probe, %")] == [
        "0", "1", "1", "1", "—", "—"]  # fmt: skip
    assert all(other["n"] == "3" and other["masked PSNR, dB"].endswith(" (3)") for other in table if other is not row)
    points = (root / "runs/smoke/figures/20_trio-depth-numbers.csv").read_text().splitlines()
    assert [",".join(line.split(",")[:4]) for line in points if line.startswith("igpt,1,")] == [
        "igpt,1,0,missing", "igpt,1,1,failed", "igpt,1,2,diverged"]  # fmt: skip
    assert all(line.split(",")[4] == line.split(",")[5] == "" for line in points if line.startswith("igpt,1,"))


@pytest.mark.fault("F21")
def test_claims_from_incomplete_records_exit_with_3_and_from_whole_ones_with_0(gaps, root, capsys):
    code, out, error = here(capsys, "claims", "--runs", "--profile", "smoke")
    assert code == 3 and "2 of 37 records are missing" in out and one_line(error)
    assert (root / "runs/smoke/claims/claims.md").is_file()
    synthetic.saved_sweep(Store("smoke"), seed=[0, 1, 2])
    code, out, error = here(capsys, "claims", "--runs", "--profile", "smoke")
    assert (code, error) == (0, "") and "missing" not in out.splitlines()[-1]


# ---- other surroundings ---------------------------------------------------------------------------------------------


def loopback():
    """A namespace without network still has itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS: IFF_UP


def read_only(folder):
    """Commands where only runs/ can be written, without network and home: name -> [exit code, stdout, stderr]."""
    loopback()
    mount = lambda *words: subprocess.run(["mount", *words], check=True)  # noqa: E731
    for place in (folder, folder / "runs", CHECKOUT):
        mount("--bind", place, place)
    for place in (folder, CHECKOUT):
        mount("-o", "remount,ro,bind", place)
    networks = {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}
    smoke = ("--profile", "smoke")
    both = {
        "figures": start(folder, "figures", "--runs", *smoke, HOME=None),
        "notebook": start(folder, "notebook", "90_paper", *smoke, HOME="/proc/none"),
    }
    found = {name: finish(process) for name, process in both.items()}
    mount("-o", "remount,ro,bind", folder / "runs")
    both = {
        "run": start(folder, "run", *smoke, "steps=3", HOME="/proc/none"),
        "reproduce": start(folder, "reproduce", *smoke, HOME=None),
        "status": start(folder, "status", *smoke, HOME=None),
    }
    writable = [str(p) for p in (folder, folder / "results", CHECKOUT, CHECKOUT / "results") if os.access(p, os.W_OK)]
    return found | {name: finish(process) for name, process in both.items()} | {"net": sorted(networks), "writable": writable}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    before = mounting()
    if not before or subprocess.run([*before, "-n", "true"], capture_output=True).returncode:
        pytest.skip("may not make a read-only file system without network here")
    folder = tmp_path_factory.mktemp("bare")
    for name in ("notebooks", "results"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("quick", "cifar10"))
    store = store_of(folder)
    synthetic.saved_sweep(store, "10_one_run").save()
    return folder, driven(read_only, folder, before=[*before, "-n"])


@pytest.mark.fault("F23")
@pytest.mark.parametrize("command", ["figures", "notebook"])
def test_figures_and_figure_notebooks_need_only_runs_to_be_writable_no_network_and_no_home(bare, command):
    folder, found = bare
    assert found["net"] == ["lo"] and found["writable"] == []
    code, out, error = found[command]
    if command == "figures":
        assert code == 0 and "10_one_run-summary.md" in out, error
        assert (folder / "runs/smoke/figures/10_one_run-curves.png").is_file()
    else:
        assert code == 0, error
        assert (folder / "runs/smoke/notebooks/90_paper.ipynb").is_file()


@pytest.mark.fault("F23")
def test_training_into_a_read_only_folder_says_in_one_line_what_it_needs(bare):
    folder, found = bare
    for command in ("run", "reproduce"):
        code, _, error = found[command]
        assert code == 1, error
        assert str(folder / "runs") in one_line(error) and "Read-only file system" in error
    assert found["status"][0] == 0 and "notebook done" in found["status"][1]


@pytest.mark.fault("F23")
def test_a_gpu_that_is_not_there_is_named_with_what_to_choose(root, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, error = here(capsys, "run", "--profile", "smoke", "device=cuda")
    assert code == 1 and "device: 'cuda', but torch sees no GPU; choose 'cpu' or 'auto'" in one_line(error)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SURROUNDINGS = {
    "plain": {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"},
    "mit Leerzeichen, Ümläut und 像": {"LC_ALL": "de_DE.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "12345"},
    "only ascii ü": {**ASCII, "TZ": "America/St_Johns", "PYTHONHASHSEED": "7"},
}


@pytest.mark.fault("F25")
def test_locale_time_zone_path_and_hash_seed_change_neither_key_nor_result(tmp_path, decoded):
    found = []
    for name in SURROUNDINGS:
        shutil.copytree(decoded, tmp_path / name / "runs/cache")
    words = ("run", "--profile", "smoke", "steps=3", "device=cpu")
    processes = [start(tmp_path / name, *words, **environment) for name, environment in SURROUNDINGS.items()]
    for name, process in zip(SURROUNDINGS, processes, strict=True):
        code, _, error = finish(process)
        assert code == 0, error
        store = store_of(tmp_path / name)
        (path,) = (path for path in store.folder.glob("*.json") if "-" not in path.stem)
        record = store.load(path.stem)
        found.append(
            {
                k: v
                for k, v in record.items()
                if k not in ("wall_seconds", "images_per_second", "evaluation_seconds", "environment")
            }
        )
    assert found[0] == found[1] == found[2] and len(found[0]["history"]) == 3


def test_a_notebook_is_given_a_path_with_any_sign_whatever_the_locale_and_none_that_is_not_utf8(tmp_path):
    """And when it is refused, it is before anything runs."""
    write_notebook(
        tmp_path, "01_inputs", "print('folder:', settings['data_dir'])", parameters=["profile = 'smoke'\nsettings = {}"]
    )
    (tmp_path / "Bilder ü 像").mkdir()
    words = ("notebook", "01_inputs", *SMOKE, "dataset=folder")
    for locale in (ASCII, {"LC_ALL": "C.UTF-8"}):
        code, out, error = biasnb(tmp_path, *words, "data_dir=Bilder ü 像", **locale)
        assert code == 0, error
        assert f"folder: {tmp_path}/Bilder ü 像" in out and len(list((tmp_path / "runs/smoke/notebooks").glob("*"))) == 1
    shutil.rmtree(tmp_path / "runs")
    code, out, error = biasnb(tmp_path, *words, os.fsdecode(b"data_dir=\xff"))
    assert code == 2 and "settings: " in one_line(error) and "is not UTF-8, which a notebook takes; rename it" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("F25")
def test_a_terminal_that_knows_only_ascii_gets_every_word(tmp_path):
    synthetic.saved_sweep(store_of(tmp_path), "10_one_run").save()
    words = ["claims", "--runs", "--profile", "smoke"]
    code, out, error = biasnb(tmp_path, *words, PYTHONIOENCODING="ascii", **ASCII)
    assert (code, error) == (0, "") and out.isascii() and "not run" in out


# ---- hostile names --------------------------------------------------------------------------------------------------

TOUCHED = []  # paths that this process opens, lists, makes or removes while it is not None-terminated
WATCHING = False
OUT = ("../x", "../../x", "/tmp/x", "..", ".", "smoke/../../x", "x\x00y", "smoke/", "x" * 300, "")
COMMANDS = (
    ("reproduce",), ("run",), ("notebook", "20_trio"), ("notebook", "90_paper"), ("tune", "20_trio"), ("measure", "k"),
    ("figures",), ("figures", "--runs"), ("publish",), ("claims",), ("claims", "--runs"), ("report",), ("verify",), ("status",),
)  # fmt: skip


def watch(event, arguments):
    if WATCHING and event.split(".")[0] in ("open", "os", "shutil", "glob") and arguments:
        TOUCHED.extend(str(os.fsdecode(a)) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike))


@pytest.fixture
def decoys(root, monkeypatch):
    """Places that a name with dots would lead to, full of valid records; checks that nothing of them was opened or changed."""
    global WATCHING
    store = Store("smoke")
    (root / "runs/smoke").mkdir(parents=True)
    monkeypatch.setattr(store, "folder", root / "x")
    sweep = synthetic.saved_sweep(store, "10_one_run")
    sweep.save()
    record = store.path(sweep.keys[0]).read_text()
    for place in (root / "runs", root, root.parent):
        (place / "x.json").write_text(record)
    shutil.copytree(root / "x", root / "runs/x")
    before = files(root.parent, "**/x/**/*", "**/x.json")
    everything = {path for path in root.rglob("*")}
    if not hasattr(sys, "watched_by_this_test"):
        sys.addaudithook(watch)
        sys.watched_by_this_test = True
    TOUCHED.clear()
    WATCHING = True
    yield root
    WATCHING = False
    places = [place / "x" for place in (root / "runs", root, root.parent)]
    for path in map(os.path.realpath, (t for t in TOUCHED if "\0" not in t)):
        assert not any(path == f"{place}.json" or Path(path).is_relative_to(place) for place in map(str, places)), path
    assert files(root.parent, "**/x/**/*", "**/x.json") == before
    assert {path for path in root.rglob("*")} == everything


def test_no_name_leads_out_of_its_folder_in_any_command(decoys, capsys):
    for name, command in itertools.product(OUT, COMMANDS):
        code, out, error = here(capsys, *command, f"--profile={name}")
        assert code == 2 and "profile: " in one_line(error) and out == "", (name, command)
    for name, command in itertools.product(OUT, ("measure", "notebook", "tune", "publish")):
        code, out, error = here(capsys, command, name, "--profile", "smoke")
        assert code in (1, 2) and one_line(error) and out == "", (name, command)
    for name in OUT:
        code, out, error = here(capsys, "notebook", "20_trio", f"profile={name}")
        assert code == 2 and one_line(error) and out == "", name


def test_a_sweep_cannot_name_records_outside_its_folder(root, capsys):
    sweep = synthetic.saved_sweep(Store("smoke"), "10_one_run")
    shutil.move(sweep.store.path(sweep.keys[0]), root / "x.json")
    sweep.content["runs"][0]["key"] = "../../x"
    sweep.save()
    for words in (["figures", "--runs"], ["claims", "--runs"], ["publish"], ["status"]):
        code, _, error = here(capsys, *words, "--profile", "smoke")
        assert code == 1 and "key: '../../x' is not the key of a record" in one_line(error), words
    assert not (root / "results").exists()
