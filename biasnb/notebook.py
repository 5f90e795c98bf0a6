"""A strict Papermill runner: parameters are checked before a kernel starts, and success is the promised records."""

import ast
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from .config import BiasnbError, ConfigError, check_names, fields_of, full_path, short
from .environment import environment
from .experiments import EXPERIMENTS, experiment, fitting, plan
from .files import StoreError, attempt_of, read_json, sweep, to_json, write_atomic
from .keys import digest
from .locks import place
from .processes import end_descendants
from .store import ROOT, Store

NOTEBOOKS = ROOT / "notebooks"
STOP_SECONDS = 5
PARAMETERS = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)}  # types that a parameter can have


class NotebookError(BiasnbError):
    """A notebook that cannot be run, or that ran and did not keep its promise; `state` is failed, killed or timeout."""

    def __init__(self, message, state="failed"):
        super().__init__(message)
        self.state = state


def read(name):
    """The notebook as nbformat's object. Raises ConfigError for an unknown name, NotebookError if it is broken or has lost
    its kernelspec, without which neither JupyterLab nor plain Papermill can run it."""
    import nbformat

    experiment(name)
    path = NOTEBOOKS / f"{name}.ipynb"
    try:
        found = nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise NotebookError(f"{path}: no such file; restore it with git checkout") from None
    except Exception as error:
        raise NotebookError(f"{path}: not a readable notebook ({str(error).splitlines()[0]})") from None
    spec = found.metadata.get("kernelspec")
    if not (isinstance(spec, dict) and spec.get("name")):
        raise NotebookError(f"{path}: has lost its kernelspec; restore it with git checkout or save it in JupyterLab")
    return found


def lint():
    """What is wrong with the committed notebooks, a line each: a lost tag or kernelspec, parameters that are not literals."""
    found = []
    for name in EXPERIMENTS:
        try:
            notebook = read(name)
            defaults(notebook, name)
            if notebook.metadata.kernelspec.name != "python3":
                found.append(f"{name}: kernelspec {notebook.metadata.kernelspec.name!r}, expected 'python3'")
        except NotebookError as error:
            found.append(str(error))
    return found


def declared(notebook, name):
    """The parameters of a notebook from its one cell tagged `parameters`: name -> (default, type, whether it may be None). The
    cell is read, not run.

    Raises NotebookError unless there is exactly one such cell and it holds only `name = literal` or `name: type = literal`."""
    cells = [c.source for c in notebook.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{name}: {len(cells)} cells are tagged 'parameters', needs exactly one")
    try:
        statements = ast.parse(cells[0]).body
    except SyntaxError as error:
        raise NotebookError(f"{name}: parameters cell: line {error.lineno}: {error.msg}") from None
    found = {}
    for statement in statements:
        try:
            (target,) = [statement.target] if isinstance(statement, ast.AnnAssign) else statement.targets
            value = ast.literal_eval(statement.value)
            found[target.id] = (value, *kind_of(value, getattr(statement, "annotation", None)))
        except (AttributeError, ValueError, TypeError, KeyError):
            text = short(ast.unparse(statement))
            raise NotebookError(f"{name}: parameters cell: {text} is not `name = literal` or `name: type = literal`") from None
    return found


def kind_of(value, annotation):
    """(type, whether it may be None) of a parameter, by its annotation, such as `int | None`, else by its default. Raises
    KeyError if neither tells the type."""
    if annotation is None:
        return PARAMETERS[type(value).__name__], False
    words = re.findall(r"\w+", ast.unparse(annotation))
    kind = PARAMETERS[next((word for word in words if word in PARAMETERS), "")]
    optional = "None" in words or "Optional" in words
    if type(value) is not kind and not (optional and value is None):
        raise TypeError
    return kind, optional


def defaults(notebook, name):
    """The parameters of a notebook and their default values. Raises NotebookError, see `declared`."""
    return {field: value for field, (value, _, _) in declared(notebook, name).items()}


def parameters(name, given):
    """The full, typed parameters of a run from a notebook's defaults and given texts or values.

    A name that is no parameter of the notebook but a Config field goes into its `overrides`; a comma-separated or
    JSON list gives several values. Raises ConfigError for an unknown, misspelt or mistyped one.
    """
    known = declared(read(name), name)
    values = {field: default for field, (default, _, _) in known.items()}
    overrides = dict(values.get("overrides", {}))
    for field, value in given.items():
        if field not in known and field in fields_of() and "overrides" in known:
            overrides[field] = parse_field(field, value)
            continue
        check_names({field: value}, [*known, *(fields_of() if "overrides" in known else [])], "parameter")
        _, kind, optional = known[field]
        values[field] = None if optional and value in (None, "None", "null") else parse(field, value, kind)
    if "overrides" in known:
        check_names(values["overrides"], fields_of(), "field in overrides")
        values["overrides"] = {**values["overrides"], **overrides}
        if values["overrides"].get("data_dir"):
            values["overrides"]["data_dir"] = str(Path(values["overrides"]["data_dir"]).expanduser().resolve())
    request(name, values)
    return values


def accepted(name, given):
    """The part of the settings that a notebook has a use for, checked; one without `overrides` takes no Config field.

    A list goes in whole where the notebook varies that field, elsewhere its first value. Raises ConfigError, also for
    a setting that no notebook knows."""
    known = defaults(read(name), name)
    check_names(given, [*known, *fields_of()], "parameter")
    taken = {field: value for field, value in given.items() if field in known}
    if "overrides" in known:
        taken |= fitting(name, {field: parse_field(field, value) for field, value in given.items() if field not in known})
    parameters(name, taken)
    return taken


def request(name, values):
    """(profile, overrides) that a notebook's parameters ask for; checked by making the Configs. Raises ConfigError."""
    own = {k: v for k, v in values.items() if k in fields_of()}
    asked = values["profile"], {**own, **values.get("overrides", {})}
    plan(name, *asked)
    return asked


def parse_field(field, value):
    """Text as a value of a Config field, or a list of values; a folder as its path from the root. Raises ConfigError."""
    if field == "data_dir" and value != "":
        return str(full_path(value))
    if not isinstance(value, str) or field == "data_dir" or (field, value) == ("lr", "tuned"):
        return value
    listed = value.startswith("[") and value.endswith("]")
    many = [parse(field, part.strip(), fields_of()[field]) for part in (value[1:-1] if listed else value).split(",")]
    return many if len(many) > 1 or listed else many[0]


def parse(field, value, kind):
    """Text as a value of a type, without guessing; a value that is not text must have the type. Raises ConfigError."""
    if not isinstance(value, str) or kind is str:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"{field}: {short(value)} is {type(value).__name__}, expected {kind.__name__}")
        return value
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        if kind in (int, float):
            if not re.fullmatch(r"[+-]?(0|[1-9][0-9]*)" if kind is int else r"[+-]?[0-9a-z.+-]+", value, re.I | re.A):
                raise ValueError
            return kind(value)
        found = json.loads(value)
        if type(found) is not kind:
            raise ValueError
        return found
    except (ValueError, KeyError, RecursionError):
        form = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, f"a JSON {kind.__name__}")
        raise ConfigError(f"{field}: {short(value)} is not {form}") from None


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
               "IPYTHONDIR": f"{folder}/ipython", "PYTHONPATH": front(str(Path(__file__).parents[1]), "PYTHONPATH"),
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
    earlier good copy stays. Raises Held if another process runs the same. `kernel` is what `this_interpreter` gave, where
    several notebooks run at once."""
    values = parameters(name, given or {})
    profile, overrides = request(name, values)
    store, label = Store(profile), plan(name, profile, overrides)[0].name
    folder = store.folder / "notebooks"
    final, failed, attempt = folder / f"{label}.ipynb", folder / f"{label}.failed.ipynb", attempt_of(folder / label)
    with store.lock(f"notebook-{label}"):
        sweep(folder, label)
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
    """Digest of what an executed copy follows from: the notebook, its parameters, the code and the packages; and all records
    there are where it asks for none of its own."""
    grid, _ = plan(name, *request(name, values))
    records = [] if grid.keys else sorted((path.name, path.stat().st_mtime_ns) for path in store.folder.glob("*.json"))
    files = [NOTEBOOKS / f"{name}.ipynb", *sorted(Path(__file__).parent.glob("*.py"))]
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return digest([values, records, environment()["packages"], code])


def made(name, given, store, label):
    """The executed copy of a notebook, if what it follows from has not changed since and it is done; else None."""
    path = store.folder / "notebooks" / f"{label}.ipynb"
    with contextlib.suppress(StoreError, AttributeError):
        found = read_json(path.with_suffix(".state.json"))
        if found.get("made_of") == made_of(name, parameters(name, given), store) and path.is_file():
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
    owner, killed = store.lock(f"notebook-{label}").state()
    if owner:
        return "running", f"on {place(owner)}"
    try:
        found = read_json(store.folder / "notebooks" / f"{label}.state.json")
        return ("killed", "") if killed or found["state"] == "running" else (found["state"], found["detail"])
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

    logging.getLogger("papermill").addHandler(logging.NullHandler())  # what it would say is in `explained`
    ended, outcome = threading.Event(), []

    def work():
        try:
            papermill.execute_notebook(
                str(NOTEBOOKS / f"{name}.ipynb"), str(path), values, kernel_name=kernel, language="python",
                progress_bar=False, stdout_file=stream, stderr_file=stream, cwd=str(NOTEBOOKS),
                execution_timeout=cell_timeout,
            )  # fmt: skip
        except BaseException as error:
            outcome.append(error)
        ended.set()

    with contextlib.nullcontext(kernel) if kernel else this_interpreter() as kernel:
        threading.Thread(target=work, daemon=True).start()
        try:
            ended.wait()
        except (KeyboardInterrupt, SystemExit):
            end_descendants(STOP_SECONDS)
            ended.wait(1)
            raise
    if outcome:
        raise explained(outcome[0]) from None


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
    grid, _ = plan(name, profile, overrides)
    if grid.missing():
        return f"{len(grid.missing())} of {len(grid.keys)} records are missing, first {grid.missing()[0]}"
    for key in grid.keys:
        grid.store.load(key)
