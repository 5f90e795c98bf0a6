"""The strict Papermill runner: parameters are checked before a kernel starts, and success is the promised records."""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from ..records import places
from ..records.files import StoreError, attempt_of, is_locked, locked, remove_attempts, write_atomic
from ..records.keys import digest
from ..records.store import Store
from ..sweep import manifest
from ..sweep.manifest import NotebookError

SHOWN = re.compile(r"""show_figure\(\s*["'](\w+)["']""")
NOTE = "biasnb"  # in the metadata of a failed copy: why it failed


def execute(name, given=None, stream=None, cell_timeout=None, kernel=None, profile=None):
    """Run a notebook through Papermill. Returns the path of the executed copy, `runs/<profile>/notebooks/<name>.ipynb`
    (with changed settings, `<name>-<data>-<digest>.ipynb`), where `profile` is the notebook's own unless another is given.

    The copy appears there only if every cell ran, each within `cell_timeout` seconds, and every record that the parameters
    ask for exists and validates; otherwise it is kept as `<name>.failed.ipynb` and NotebookError says what went wrong. An
    earlier good copy stays. While another process runs the same, this one waits. `kernel` is what `this_interpreter` gave,
    where several notebooks run at once."""
    values, sweep = manifest.asked(name, given)
    label = sweep.name if sweep else label_of(name, values)
    folder = Store(profile or values["profile"]).folder / "notebooks"
    final, failed, attempt = folder / f"{label}.ipynb", folder / f"{label}.failed.ipynb", attempt_of(folder / label)
    with locked(lock_of(folder, label), f"{label}: another process runs it; waiting for that"):
        remove_attempts(folder, label)
        try:
            attempt.mkdir(parents=True)
            with contextlib.nullcontext(kernel) if kernel else this_interpreter() as own:
                run_papermill(name, attempt / "executed.ipynb", values, stream or sys.stdout, cell_timeout, own)
            trouble, state = broken_promise(attempt / "executed.ipynb", sweep), "failed"
        except NotebookError as error:
            trouble, state = str(error), error.state
        except StoreError as error:
            trouble, state = str(error), "failed"
        except OSError as error:
            trouble, state = f"{error.filename or attempt}: {error.strerror or error}", "failed"
        lost = keep(attempt, failed if trouble else final, trouble)
        if trouble or lost:
            raise NotebookError(f"{name}: {trouble or lost}" + (f"; see {failed}" if not lost else ""), state)
        failed.unlink(missing_ok=True)
    return final


def label_of(name, values):
    """The name of the executed copy of a notebook that has no list of runs."""
    defaults = manifest.declared(name)
    changed = {field: value for field, value in values.items() if field != "profile" and value != defaults[field]}
    return f"{name}-{digest(changed, 6)}" if changed else name


def lock_of(folder, label):
    """The lock file of a notebook that is being run."""
    return folder.parent / "locks" / f"notebook-{label}.lock"


def states(store):
    """Label -> (state, detail) of every notebook that has been started with a profile, in the order of their names: running,
    failed and why, done, or pending where it was killed."""
    folder = store.folder / "notebooks"
    labels = {path.name.removesuffix(".ipynb").removesuffix(".failed") for path in folder.glob("*.ipynb")}
    labels |= {path.stem.removeprefix("notebook-") for path in lock_of(folder, "").parent.glob("notebook-*.lock")}
    return {label: state(folder, label) for label in sorted(labels)}


def state(folder, label):
    failed = folder / f"{label}.failed.ipynb"
    if is_locked(lock_of(folder, label)):
        return "running", ""
    if failed.is_file():
        with contextlib.suppress(OSError, ValueError, KeyError):
            return "failed", json.loads(failed.read_text(encoding="utf-8"))["metadata"][NOTE]
        return "failed", ""
    return ("done", "") if (folder / f"{label}.ipynb").is_file() else ("pending", "")


# ---- the kernel -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def this_interpreter():
    """A kernel named `biasnb` that is this Python, whatever kernels the machine has or the notebook names, that needs no home
    folder and that ends with this process, however that ends."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "biasnb"
        spec.mkdir(parents=True)
        start = "from biasnb.suite.notebooks import serve; serve()"
        command = [sys.executable, "-c", start, "-f", "{connection_file}", "--log-level=CRITICAL"]
        (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "biasnb", "language": "python"}))
        own = {
            "JUPYTER_PATH": before_others(folder, "JUPYTER_PATH"),
            "JUPYTER_RUNTIME_DIR": f"{folder}/runtime",
            "IPYTHONDIR": f"{folder}/ipython",
            "PYTHONPATH": before_others(places.PACKAGE.parent, "PYTHONPATH"),
            "BIASNB_ROOT": str(places.root()),
            "JPY_SESSION_NAME": None,  # progress is for a log, also when called from JupyterLab
        }
        with environment(own):
            yield "biasnb"


def before_others(folder, variable):
    """The value of a path variable with this folder in front."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


@contextlib.contextmanager
def environment(values):
    """Within the block variables of the environment have these values; those that are None are absent."""
    before = {name: os.environ.get(name) for name in values}
    set_environment(values)
    try:
        yield
    finally:
        set_environment(before)


def set_environment(values):
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def serve():
    """What the process of a kernel runs. ipykernel asks for its parent, too, but takes for its parent whoever is it once all
    is imported: with a parent killed before that, it would stay."""
    parent = int(os.environ["JPY_PARENT_PID"])
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    if sys.path[0] == "":
        del sys.path[0]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


def end_with_parent(parent):
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


# ---- Papermill ------------------------------------------------------------------------------------------------------


def run_papermill(name, path, values, stream, cell_timeout, kernel):
    """Execute a notebook to `path` with Papermill. It has a thread of its own: in the main thread it would take over the
    signals that end this process. Raises NotebookError, OSError."""
    import papermill
    from jupyter_core.utils import ensure_event_loop

    logging.getLogger("papermill").addHandler(logging.NullHandler())  # what it would say is in `explained`
    source, folder = places.notebooks() / f"{name}.ipynb", str(places.notebooks())
    outcome = []

    def work():
        try:
            papermill.execute_notebook(
                str(source),
                str(path),
                values,
                kernel_name=kernel,
                language="python",
                progress_bar=False,
                stdout_file=stream,
                stderr_file=stream,
                cwd=folder,
                execution_timeout=cell_timeout,
            )
        except BaseException as error:
            outcome.append(error)
        finally:
            ensure_event_loop().close()  # of this thread, which nobody else closes

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if outcome:
        raise explained(outcome[0]) from None


def explained(error):
    """What ended Papermill as a NotebookError of one line, or the OSError it is."""
    kind = type(error).__name__
    if kind == "PapermillExecutionError":
        return NotebookError(f"cell {error.exec_count}: {error.ename}: {first_line(error.evalue)}")
    if kind == "DeadKernelError":
        return NotebookError("the kernel was killed (out of memory?)", "killed")
    if kind == "CellTimeoutError":  # an OSError, too
        return NotebookError("a cell took longer than the cell timeout", "timeout")
    return error if isinstance(error, OSError) else NotebookError(f"{kind}: {first_line(error)}")


def first_line(text):
    return (str(text).strip() or "no message").splitlines()[0]


def broken_promise(path, sweep):
    """What an executed notebook lacks, in words, or None: a cell that did not run, a missing record. Raises StoreError for a
    record that does not validate."""
    import nbformat

    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    idle = [i for i, cell in enumerate(cells, 1) if cell.execution_count is None]
    if idle:
        return f"code cell {idle[0]} of {len(cells)} did not run (did an earlier cell leave the kernel?)"
    if sweep and sweep.missing():
        return f"{len(sweep.missing())} of {len(sweep.keys)} records are missing, first {sweep.missing()[0]}"
    for key in sweep.keys if sweep else ():
        sweep.store.load(key)
    return None


def keep(attempt, path, trouble):
    """Move what has been executed so far to `path`, with a note of the trouble that ended it and without the local paths that
    Papermill notes, and remove the folder it was written in. Returns why that could not be done, or None."""
    import nbformat

    try:
        executed = nbformat.read(attempt / "executed.ipynb", as_version=4)
        for name in ("input_path", "output_path"):
            executed.metadata.get("papermill", {}).pop(name, None)
        describe_pictures(executed)
        if trouble:
            executed.metadata[NOTE] = trouble
        write_atomic(path, nbformat.writes(executed) + "\n")
    except StoreError as error:
        return str(error)
    except Exception as error:  # none was written, or a part of one
        return f"no executed copy ({type(error).__name__})"
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    return None


def describe_pictures(executed):
    """Give the pictures of an executed notebook an alternative text where they have none: the heading that they stand under and
    the name of the figure."""
    heading = ""
    for cell in executed.cells:
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^#+ +(.*)", cell.source, re.MULTILINE)][-1]
            continue
        named = SHOWN.search(cell.source)
        text = f"{heading} ({named[1]})" if named else heading
        for output in cell.get("outputs", ()):
            for kind in ("image/png", "image/jpeg"):
                if kind in output.get("data", {}):
                    output.metadata.setdefault(kind, {}).setdefault("alt", text)
