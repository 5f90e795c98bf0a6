"""The strict Papermill runner. It checks parameters before a kernel starts, and requires that all requested records exist."""

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
NOTE = "biasnb"  # metadata entry of a failed copy that holds the error message


def execute(name, given=None, stream=None, cell_timeout=None, kernel=None, profile=None):
    """Execute a notebook with Papermill. Returns the path of the executed copy, `runs/<profile>/notebooks/<name>.ipynb` (with
    changed settings `<name>-<data>-<digest>.ipynb`); `profile` is by default that of the notebook.

    The copy is written only if every cell ran, each within `cell_timeout` seconds, and every requested record exists and is
    valid. Otherwise it is saved as `<name>.failed.ipynb`, NotebookError is raised, and an earlier successful copy is kept. If
    another process executes the same notebook, this one waits. If several notebooks run at once, they share a `kernel` from
    `this_interpreter`."""
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
    """Return the name of the executed copy of a notebook without a sweep."""
    defaults = manifest.declared(name)
    changed = {field: value for field, value in values.items() if field != "profile" and value != defaults[field]}
    return f"{name}-{digest(changed, 6)}" if changed else name


def lock_of(folder, label):
    """Return the lock file of a notebook, which is held while it runs."""
    return folder.parent / "locks" / f"notebook-{label}.lock"


def states(store):
    """Return {label: (state, detail)} of every notebook that was started, sorted by label. The state is running, failed
    (detail: error message), done, or pending if the process was killed."""
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
    """Provide a kernel `biasnb` that runs this Python, independently of installed kernels and of the kernelspec of notebooks.
    It needs no home folder, and it ends when this process ends or is killed."""
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
            "JPY_SESSION_NAME": None,  # print progress as for a log file, even if JupyterLab started this process
        }
        with environment(own):
            yield "biasnb"


def before_others(folder, variable):
    """Return the value of a path variable with this folder in front."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


@contextlib.contextmanager
def environment(values):
    """Within the block, set environment variables to these values; None removes a variable."""
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
    """Run a kernel that ends with its parent. ipykernel also watches its parent, but determines it only after its imports, so
    that a kernel whose parent is killed before that would not end."""
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
    """Execute a notebook to `path` with Papermill. It runs in a separate thread, because in the main thread it would handle the
    signals that end this process. Raises NotebookError and OSError."""
    import papermill
    from jupyter_core.utils import ensure_event_loop

    logging.getLogger("papermill").addHandler(logging.NullHandler())  # `explained` reports the errors instead
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
            ensure_event_loop().close()  # nothing else closes the event loop of this thread

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if outcome:
        raise explained(outcome[0]) from None


def explained(error):
    """Convert an exception of Papermill to a NotebookError with a one-line message; an OSError is returned unchanged."""
    kind = type(error).__name__
    if kind == "PapermillExecutionError":
        return NotebookError(f"cell {error.exec_count}: {error.ename}: {first_line(error.evalue)}")
    if kind == "DeadKernelError":
        return NotebookError("the kernel was killed (out of memory?)", "killed")
    if kind == "CellTimeoutError":  # a subclass of OSError
        return NotebookError("a cell took longer than the cell timeout", "timeout")
    return error if isinstance(error, OSError) else NotebookError(f"{kind}: {first_line(error)}")


def first_line(text):
    return (str(text).strip() or "no message").splitlines()[0]


def broken_promise(path, sweep):
    """Return a message if a cell of an executed notebook did not run or a requested record is missing, else None. Raises
    StoreError for an invalid record."""
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
    """Move the executed notebook from the folder `attempt` to `path`, with the error message `trouble` and without the local
    paths that Papermill records, and remove the folder. Returns a message if that fails, else None."""
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
    except Exception as error:  # the file is missing or incomplete
        return f"no executed copy ({type(error).__name__})"
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    return None


def describe_pictures(executed):
    """Add an alternative text to the images of an executed notebook that have none: the preceding heading and the name of the
    figure."""
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
