"""What a notebook is asked for: its parameters, read from its one tagged cell, typed and checked before a kernel starts."""

import ast
import json
import re
import sys

from ..config import BiasnbError, ConfigError, check_names, fields_of, full_path, short
from ..records import places
from ..sweep.experiments import EXPERIMENTS, experiment, fitting, images_of, plan

KINDS = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)}  # types that a parameter can have


class NotebookError(BiasnbError):
    """A notebook that cannot be run, or that ran and did not keep its promise; `state` is failed, killed or timeout."""

    def __init__(self, message, state="failed"):
        super().__init__(message)
        self.state = state


def import_nbformat():
    """The module nbformat without the grammars of international addresses, which notebooks do not have and which take
    jsonschema a second to compile as it is imported: it does without that package where there is none."""
    grammars = "rfc3987_syntax"
    absent = sys.modules.setdefault(grammars, None) is None
    try:
        import nbformat
    finally:
        if absent:
            del sys.modules[grammars]
    return nbformat


def read(name):
    """The notebook as nbformat's object. Raises ConfigError for an unknown name, NotebookError if it is broken or has lost
    its kernelspec, without which neither JupyterLab nor plain Papermill can run it."""
    nbformat = import_nbformat()
    experiment(name)
    path = places.notebooks() / f"{name}.ipynb"
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
        return KINDS[type(value).__name__], False
    words = re.findall(r"\w+", ast.unparse(annotation))
    kind = KINDS[next((word for word in words if word in KINDS), "")]
    optional = "None" in words or "Optional" in words
    if type(value) is not kind and not (optional and value is None):
        raise TypeError
    return kind, optional


def defaults(notebook, name):
    """The parameters of a notebook and their default values. Raises NotebookError, see `declared`."""
    return {field: value for field, (value, _, _) in declared(notebook, name).items()}


def full(name, given):
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
        if "data_dir" in values["overrides"]:
            values["overrides"]["data_dir"] = parse_field("data_dir", values["overrides"]["data_dir"])
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
    full(name, taken)
    return taken


def request(name, values):
    """(profile, overrides) that a notebook's parameters ask for; checked by making the Configs. A parameter `folder` that is
    not empty asks for the images in it. Raises ConfigError."""
    own = {k: v for k, v in values.items() if k in fields_of()} | images_of(values.get("folder", ""))
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
