"""A strict Papermill runner: parameters are checked before a kernel starts, and success is the promised records."""

import ast
import contextlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from .config import BiasnbError, ConfigError, check_names, fields_of
from .experiments import experiment, fitting, plan
from .store import ROOT, Store

NOTEBOOKS = ROOT / "notebooks"


class NotebookError(BiasnbError):
    """A notebook that cannot be run, or that ran and did not keep its promise."""


def read(name):
    """The notebook as nbformat's object. Raises ConfigError for an unknown name, NotebookError if it is broken."""
    import nbformat

    experiment(name)
    path = NOTEBOOKS / f"{name}.ipynb"
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise NotebookError(f"{path}: no such file; restore it with git checkout") from None
    except Exception as error:
        raise NotebookError(f"{path}: not a readable notebook ({str(error).splitlines()[0]})") from None


def defaults(notebook, name):
    """The parameters of a notebook and their default values, from its one cell tagged `parameters`.

    Raises NotebookError unless there is exactly one such cell and it holds only `name = literal`."""
    cells = [c.source for c in notebook.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{name}: {len(cells)} cells are tagged 'parameters', needs exactly one")
    found = {}
    for statement in ast.parse(cells[0]).body:
        try:
            (target,) = statement.targets
            found[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            raise NotebookError(f"{name}: parameters cell: {ast.unparse(statement)!r} is not `name = literal`") from None
    return found


def parameters(name, given):
    """The full, typed parameters of a run from a notebook's defaults and given texts or values.

    A name that is no parameter of the notebook but a Config field goes into its `overrides`; a comma-separated or
    JSON list gives several values. Raises ConfigError for an unknown, misspelt or mistyped one.
    """
    known = defaults(read(name), name)
    values, overrides = dict(known), dict(known.get("overrides", {}))
    for field, value in given.items():
        if field not in known and field in fields_of() and "overrides" in known:
            overrides[field] = parse_field(field, value)
            continue
        check_names({field: value}, [*known, *(fields_of() if "overrides" in known else [])], "parameter")
        values[field] = parse(field, value, type(known[field]))
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
    """Text as a value of a Config field, or a list of values. Raises ConfigError."""
    if not isinstance(value, str) or field == "data_dir" or (field, value) == ("lr", "tuned"):
        return value
    many = [parse(field, part.strip(), fields_of()[field]) for part in value.strip("[]").split(",")]
    return many if len(many) > 1 or value.startswith("[") else many[0]


def parse(field, value, kind):
    """Text as a value of a type, without guessing; a value that is not text must have the type. Raises ConfigError."""
    if not isinstance(value, str) or kind is str:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"{field}: {value!r} is {type(value).__name__}, expected {kind.__name__}")
        return value
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        if kind is int:
            if not re.fullmatch(r"[+-]?(0|[1-9]\d*)", value):
                raise ValueError
            return int(value)
        if kind is float:
            return float(value)
        return parse(field, json.loads(value), kind)
    except (ValueError, KeyError):
        form = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, f"a JSON {kind.__name__}")
        raise ConfigError(f"{field}: {value!r} is not {form}") from None


@contextlib.contextmanager
def this_interpreter():
    """A kernel named `biasnb` that is this Python, whatever kernels the machine has or the notebook names."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "biasnb"
        spec.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        content = {"argv": command, "display_name": "biasnb", "language": "python", "env": {"PYTHONPATH": str(ROOT)}}
        (spec / "kernel.json").write_text(json.dumps(content))
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = os.pathsep.join([folder, before] if before else [folder])
        try:
            yield "biasnb"
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


def execute(name, given=None, stream=sys.stdout):
    """Run a notebook through Papermill. Returns the path of the executed copy, `runs/<profile>/notebooks/<name>.ipynb`
    (with changed settings, `<name>-<data>-<digest>.ipynb`).

    The copy appears there only if every cell ran and every record that the parameters ask for exists and validates;
    otherwise it is kept as `<name>.failed.ipynb` and NotebookError says what went wrong. An earlier good copy stays.
    """
    values = parameters(name, given or {})
    profile, overrides = request(name, values)
    import nbformat
    import papermill

    label = plan(name, profile, overrides)[0].name
    folder = Store(profile).folder / "notebooks"
    attempt, failed, final = (folder / f for f in (f".{label}.{os.getpid()}.ipynb", f"{label}.failed.ipynb", f"{label}.ipynb"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotebookError(f"{folder}: cannot be made ({error.strerror})") from None
    try:
        with this_interpreter() as kernel:
            papermill.execute_notebook(
                str(NOTEBOOKS / f"{name}.ipynb"), str(attempt), values, kernel_name=kernel, language="python",
                progress_bar=False, stdout_file=stream, stderr_file=stream, cwd=str(NOTEBOOKS),
            )  # fmt: skip
        trouble = broken_promise(nbformat.read(attempt, as_version=4), name, profile, overrides)
        if not trouble:
            os.replace(attempt, final)
    except papermill.PapermillExecutionError as error:
        trouble = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    except Exception as error:
        trouble = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    finally:
        if attempt.is_file():
            os.replace(attempt, failed)
    if trouble:
        raise NotebookError(f"{name}: {trouble}; see {failed}")
    failed.unlink(missing_ok=True)
    return final


def broken_promise(executed, name, profile, overrides):
    """What an executed notebook lacks, in words, or None: a cell that did not run, a missing or invalid record."""
    cells = [c for c in executed.cells if c.cell_type == "code" and c.source.strip()]
    idle = [i for i, cell in enumerate(cells, 1) if cell.execution_count is None]
    if idle:
        return f"code cell {idle[0]} of {len(cells)} did not run (did an earlier cell leave the kernel?)"
    grid, _ = plan(name, profile, overrides)
    if grid.missing():
        return f"{len(grid.missing())} of {len(grid.keys)} records are missing, first {grid.missing()[0]}"
    for key in grid.keys:
        grid.store.load(key)
