"""A strict Papermill runner: parameters are checked before a kernel starts, and success is the promised records."""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from ..records import places
from ..records.files import StoreError, attempt_of, read_json, remove_attempts, to_json, write_atomic
from ..records.keys import digest
from ..records.provenance import code, environment
from ..records.store import Store
from ..sweep.experiments import plan
from . import parameters
from .parameters import NotebookError


@contextlib.contextmanager
def this_interpreter():
    """A kernel named `biasnb` that is this Python, whatever kernels the machine has or the notebook names, and that needs
    no home folder."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "biasnb"
        spec.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "biasnb", "language": "python"}))
        front = lambda path, name: os.pathsep.join(filter(None, [path, os.environ.get(name)]))  # noqa: E731
        own = {"JUPYTER_PATH": front(folder, "JUPYTER_PATH"), "JUPYTER_RUNTIME_DIR": f"{folder}/runtime",
               "IPYTHONDIR": f"{folder}/ipython", "PYTHONPATH": front(str(places.PACKAGE.parent), "PYTHONPATH"),
               "JPY_SESSION_NAME": None}  # fmt: skip  # progress is for a log, also when called from JupyterLab
        before = {name: os.environ.get(name) for name in own}
        set_environment(own)
        try:
            yield "biasnb"
        finally:
            set_environment(before)


def set_environment(values):
    """Set variables of the environment, or remove those that are None."""
    for name, value in values.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def execute(name, given=None, stream=sys.stdout, cell_timeout=None, kernel=None):
    """Run a notebook through Papermill. Returns the path of the executed copy, `runs/<profile>/notebooks/<name>.ipynb`
    (with changed settings, `<name>-<data>-<digest>.ipynb`).

    The copy appears there only if every cell ran, each within `cell_timeout` seconds, and every record that the parameters
    ask for exists and validates; otherwise it is kept as `<name>.failed.ipynb` and NotebookError says what went wrong. An
    earlier good copy stays. While another process runs the same, this one waits. `kernel` is what `this_interpreter` gave,
    where several notebooks run at once."""
    values = parameters.full(name, given or {})
    profile, overrides = parameters.request(name, values)
    store, label = Store(profile), plan(name, profile, overrides)[0].name
    folder = store.folder / "notebooks"
    final, failed, attempt = folder / f"{label}.ipynb", folder / f"{label}.failed.ipynb", attempt_of(folder / label)
    with store.lock(f"notebook-{label}"):
        remove_attempts(folder, label)
        note(store, label, "running")
        try:
            attempt.mkdir()
            _run(name, attempt / "executed.ipynb", values, stream, cell_timeout, kernel)
            trouble, ended = broken_promise(attempt / "executed.ipynb", name, profile, overrides), "failed"
        except NotebookError as error:
            trouble, ended = str(error), error.state
        except OSError as error:
            trouble, ended = f"{error.filename or attempt}: {error.strerror or error}", "failed"
        except (KeyboardInterrupt, SystemExit) as stop:
            note(store, label, "preempted", f"{type(stop).__name__}: {stop}")
            raise
        finally:
            lost = keep(attempt, failed)
        if trouble or lost:
            with contextlib.suppress(StoreError):  # what went wrong is told, even if it cannot be written down
                note(store, label, ended, trouble or lost)
            raise NotebookError(f"{name}: {trouble or lost}" + (f"; see {failed}" if not lost else ""), ended)
        os.replace(failed, final)
        note(store, label, "done", made_of=made_of(name, values, store))
    return final


def made_of(name, values, store):
    """Digest of what an executed copy follows from: the notebook, its parameters, the code, the packages and its records; all
    there are where it asks for none of its own."""
    sweep, _ = plan(name, *parameters.request(name, values))
    paths = map(store.path, sweep.keys) if sweep.keys else store.folder.glob("*.json")
    records = sorted((path.name, path.stat().st_mtime_ns) for path in paths if path.exists())
    text = (places.notebooks() / f"{name}.ipynb").read_text(encoding="utf-8")
    return digest([values, records, environment()["packages"], text, code()])


def made(name, given, store, label):
    """The executed copy of a notebook, if what it follows from has not changed since and it is done; else None."""
    path = store.folder / "notebooks" / f"{label}.ipynb"
    with contextlib.suppress(StoreError, AttributeError):
        found = read_json(path.with_suffix(".state.json"))
        if found.get("made_of") == made_of(name, parameters.full(name, given), store) and path.is_file():
            return path


def keep(attempt, path):
    """Move what has been executed so far to `path`, without the local paths that Papermill notes, and remove the folder it was
    written in. Returns why that could not be done, or None."""
    import nbformat

    try:
        executed = nbformat.read(attempt / "executed.ipynb", as_version=4)
        for name in ("input_path", "output_path"):
            executed.metadata.get("papermill", {}).pop(name, None)
        write_atomic(path, nbformat.writes(executed) + "\n")
    except StoreError as error:
        return str(error)
    except Exception as error:  # none was written, or a part of one
        return f"no executed copy ({type(error).__name__})"
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def note(store, label, state, detail="", **more):
    """Write down how a notebook stands."""
    write_atomic(store.folder / "notebooks" / f"{label}.state.json", to_json({"state": state, "detail": detail, **more}))


def state(store, label):
    """(state, detail) of a notebook: pending, running, done, failed, killed, timeout or preempted."""
    if store.busy(f"notebook-{label}"):
        return "running", ""
    try:
        found = read_json(store.folder / "notebooks" / f"{label}.state.json")
        return ("killed", "") if found["state"] == "running" else (found["state"], found["detail"])
    except (StoreError, KeyError, TypeError):
        return "pending", ""


def states(store):
    """Label -> (state, detail) of every notebook that has been started with a profile, in the order of their names."""
    labels = sorted(path.name.removesuffix(".state.json") for path in (store.folder / "notebooks").glob("*.state.json"))
    return {label: state(store, label) for label in labels}


def _run(name, path, values, stream, cell_timeout, kernel):
    """Execute a notebook to `path` with Papermill in a thread, so that signals come here and not to its event loop: then its
    kernel and all that this started are ended. Raises NotebookError, OSError."""
    import papermill
    from jupyter_core.utils import ensure_event_loop

    logging.getLogger("papermill").addHandler(logging.NullHandler())  # what it would say is in `explained`
    ended, outcome = threading.Event(), []

    def work():
        try:
            papermill.execute_notebook(
                str(places.notebooks() / f"{name}.ipynb"), str(path), values, kernel_name=kernel, language="python",
                progress_bar=False, stdout_file=stream, stderr_file=stream, cwd=str(places.notebooks()),
                execution_timeout=cell_timeout,
            )  # fmt: skip
        except BaseException as error:
            outcome.append(error)
        finally:
            ensure_event_loop().close()  # of this thread, which nobody else closes
            ended.set()

    with contextlib.nullcontext(kernel) if kernel else this_interpreter() as kernel:
        threading.Thread(target=work, daemon=True).start()
        try:
            ended.wait()
        except (KeyboardInterrupt, SystemExit):
            end_descendants()
            ended.wait(1)
            raise
    if outcome:
        raise explained(outcome[0]) from None


def end_descendants():
    """End all processes that this one started, and those that they did."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def explained(error):
    """What ended Papermill as a NotebookError of one line, or the OSError it is."""
    kind, first = type(error).__name__, lambda text: (str(text).strip() or "no message").splitlines()[0]
    if kind == "PapermillExecutionError":
        return NotebookError(f"cell {error.exec_count}: {error.ename}: {first(error.evalue)}")
    if kind == "DeadKernelError":
        return NotebookError("the kernel was killed (out of memory?)", "killed")
    if kind == "CellTimeoutError":  # an OSError, too
        return NotebookError("a cell took longer than the cell timeout", "timeout")
    return error if isinstance(error, OSError) else NotebookError(f"{kind}: {first(error)}")


def broken_promise(path, name, profile, overrides):
    """What an executed notebook lacks, in words, or None: a cell that did not run, a missing or invalid record."""
    import nbformat

    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    idle = [i for i, cell in enumerate(cells, 1) if cell.execution_count is None]
    if idle:
        return f"code cell {idle[0]} of {len(cells)} did not run (did an earlier cell leave the kernel?)"
    sweep, _ = plan(name, profile, overrides)
    if sweep.missing():
        return f"{len(sweep.missing())} of {len(sweep.keys)} records are missing, first {sweep.missing()[0]}"
    for key in sweep.keys:
        sweep.store.load(key)
