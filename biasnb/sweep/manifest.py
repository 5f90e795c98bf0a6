"""The manifest of a notebook: its question, its parameters, its runs, and the tables and figures that it shows.

All are read from the notebook file. The cell tagged `parameters` holds literals. The cells tagged `sweep` build the list of
runs; they are executed here, without a kernel, to find the runs that a notebook needs with given parameters."""

import ast
import json
import re
import sys
from pathlib import Path

from ..config import (
    BiasnbError,
    ConfigError,
    check_names,
    check_profile,
    check_settings,
    configure,
    fields_of,
    full_path,
    nearest,
    short,
)
from ..records import places

KINDS = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)}  # types that a parameter can have
INJECTED = "# Parameters\n"  # start of the cell that Papermill inserts after the parameters cell, or at the top without one
SHOWN = {"show_figure": "figures", "show_table": "tables"}


class NotebookError(BiasnbError):
    """Raised for a notebook that cannot be run or whose run failed; `state` is failed, killed or timeout."""

    def __init__(self, message, state="failed"):
        super().__init__(message)
        self.state = state


# ---- reading --------------------------------------------------------------------------------------------------------


def names():
    """Return the sorted names of all notebooks."""
    return sorted(path.stem for path in places.notebooks().glob("*.ipynb"))


def path_of(name):
    """Return the path of a notebook. Raises ConfigError, suggesting the most similar name, for an unknown one."""
    if name not in names():
        raise ConfigError(f"notebook: {name!r} is not one of {names()}; did you mean {nearest(name, names())!r}?")
    return places.notebooks() / f"{name}.ipynb"


def read(name):
    """Return a notebook as a dict in which the source of every cell is one string. Raises ConfigError for an unknown name, and
    NotebookError if it is broken or lacks a kernelspec, which JupyterLab and plain Papermill need to run it."""
    path = path_of(name)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for cell in found["cells"]:
            cell["source"] = "".join(cell["source"])
            cell["tags"] = cell["metadata"].get("tags", [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotebookError(f"{path}: not a readable notebook ({type(error).__name__}: {error})") from None
    spec = found.get("metadata", {}).get("kernelspec")
    if not (isinstance(spec, dict) and spec.get("name")):
        raise NotebookError(f"{path}: has lost its kernelspec; restore it with git checkout or save it in JupyterLab")
    return found


def tagged(notebook, tag):
    """Return the sources of the code cells with a tag."""
    return [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code" and tag in cell["tags"]]


def question(name):
    """Return the sentence after **Question.** in the first cell of a notebook. Raises NotebookError without one."""
    found = re.search(r"\*\*Question\.\*\*\s+([^?]*\?)", read(name)["cells"][0]["source"])
    if not found:
        raise NotebookError(f"{name}: its first cell has no question; begin a paragraph there with **Question.**")
    return " ".join(found[1].split())


def shown(name):
    """Return {"figures": names, "tables": names} that a notebook shows; empty lists for a notebook that does not exist."""
    found = {"figures": [], "tables": []}
    for cell in read(name)["cells"] if name in names() else ():
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SHOWN:
                first = node.args[0]
                if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
                    raise NotebookError(f"{name}: {ast.unparse(node)}: its first argument is no literal name; write it out")
                found[SHOWN[node.func.id]].append(first.value)
    return {kind: list(dict.fromkeys(listed)) for kind, listed in found.items()}


def declared(name, notebook=None):
    """Return {parameter: default value} of a notebook, parsed from its cell tagged `parameters` without executing it.

    Raises NotebookError unless there is exactly one such cell and it holds only statements `name = literal`."""
    cells = tagged(notebook or read(name), "parameters")
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
            found[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError, TypeError):
            text = short(ast.unparse(statement))
            raise NotebookError(f"{name}: parameters cell: {text} is not `name = literal`") from None
        value = found[target.id]
        if not (factor_of(target.id) and isinstance(value, list | None)) and type(value).__name__ not in KINDS:
            raise NotebookError(f"{name}: parameters cell: {target.id} = {value!r} has a default of no known type; give one")
    return found


def factor_of(parameter):
    """Return the factor whose levels a parameter lists, or None. The name of such a parameter is a Config field or its plural
    (`depths`, `patches`), or one of these after a word and an underscore (`cell_seeds`)."""
    for factor in (parameter, parameter.removesuffix("s"), parameter.removesuffix("es")):
        if field_of(factor):
            return factor
    return None


def field_of(factor):
    """Return the Config field that a factor varies, or None."""
    return next((field for field in (factor, factor.rpartition("_")[2]) if field in fields_of()), None)


def factors_of(values):
    """Return {parameter: factor} of the parameters that list levels."""
    return {name: factor_of(name) for name, value in values.items() if isinstance(value, list | None) and factor_of(name)}


def default_levels(name):
    """Return {factor: levels} of a notebook, None for the levels of the profile; {} if the notebook does not exist."""
    if name not in names():
        return {}
    listed = {parameter: value for parameter, value in declared(name).items() if isinstance(value, list | None)}
    return {factor_of(parameter) or parameter.removesuffix("s"): value for parameter, value in listed.items()}


def lint():
    """Return a line per fault of the notebooks: a missing tag, question or kernelspec, parameters that are not literals, or a
    study whose name differs from that of the file."""
    found = []
    for name in names():
        try:
            notebook = read(name)
            declared(name, notebook)
            question(name)
            shown(name)
            if notebook["metadata"]["kernelspec"]["name"] != "python3":
                found.append(f"{name}: kernelspec {notebook['metadata']['kernelspec']['name']!r}, expected 'python3'")
            for other in re.findall(r"\bStudy\(\s*[\"'](\w+)[\"']", "\n".join(tagged(notebook, "sweep"))):
                if other != name:
                    found.append(f"{name}: its study is called {other!r}; give it the name of the file")
        except NotebookError as error:
            found.append(str(error))
    return found


# ---- parameters -----------------------------------------------------------------------------------------------------


def asked(name, given=None):
    """Return (checked and typed parameters of a notebook, from its defaults and the given strings or values; the sweep that
    they request, see `plan`).

    A given Config field replaces the parameter that lists its levels, if there is one, and is put into `settings` otherwise.
    Raises ConfigError for a name that is unknown or given twice, and for a value of the wrong type or an impossible one."""
    values, taken = declared(name), set()
    if "settings" in values:
        values["settings"] = dict(values["settings"])
    factors = factors_of(values)
    for field, value in (given or {}).items():
        listing = [field] if field in factors else [name for name, factor in factors.items() if field == field_of(factor)]
        for parameter in listing:
            if parameter in taken:
                raise ConfigError(f"{field}: {parameter} is given twice; give one of the two")
            taken.add(parameter)
            values[parameter] = levels_of(factors[parameter], value)
        if listing:
            continue
        if field == "settings" and "settings" in values:
            values["settings"] |= parse(field, value, dict)
        elif field in values:
            values[field] = parse(field, value, type(values[field]))
        else:
            known = [*values, *(fields_of() if "settings" in values else [])]
            check_names({field: value}, known, "parameter")
            values["settings"][field] = setting(field, value)
    if values.get("folder"):
        values["folder"] = str(full_path(values["folder"]))
    if "networks" in values:
        values["networks"] = [str(full_path(network)) if Path(network).is_dir() else network for network in values["networks"]]
    if "data_dir" in values.get("settings", {}):
        values["settings"]["data_dir"] = setting("data_dir", values["settings"]["data_dir"])
    check_names(values.get("settings", {}), fields_of(), "setting")
    for parameter, value in values.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{parameter}: {short(value)} is not UTF-8, which a notebook takes; rename it") from None
    return values, plan(name, values)


def parameters(name, given=None):
    """Return the parameters of a notebook (see `asked`)."""
    return asked(name, given)[0]


def this_shell():
    """Return the shell of the kernel in which this runs, None elsewhere."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def check_injected(name):
    """Check the parameters that plain Papermill injected into this notebook, running in this kernel. Raises ConfigError for a
    name that is not a parameter, and if the parameters cell lacks its tag, so that its defaults override the given values."""
    shell = this_shell()
    cells = [source for source in shell.user_ns.get("In", ()) if source] if shell else []
    injected = [source for source in cells if source.startswith(INJECTED)]
    if not injected:
        return
    if cells[0] == injected[0]:
        raise ConfigError(f"{name}: what was given stands before the parameters; tag their cell `parameters`, as it was")
    for statement in ast.parse(injected[-1]).body:
        for target in getattr(statement, "targets", ()):
            check_names({ast.unparse(target): shell.user_ns.get(ast.unparse(target))}, declared(name), "parameter")


def in_force(name):
    """Check what plain Papermill injected (see `check_injected`) and print the parameters of this notebook."""
    check_injected(name)
    if shell := this_shell():
        print(f"{name}: " + ", ".join(f"{parameter} {shell.user_ns[parameter]!r}" for parameter in declared(name)))


def saved(profile):
    """Return the notebooks whose runs a profile does not train; they show records of the profile in their own parameters."""
    return check_profile(profile).get("saved", [])


def accepted(given):
    """Return {notebook: the given settings that it accepts}, without the notebooks that the given profile leaves to saved
    records. A list is passed to notebooks that vary the field; if only other notebooks vary it, its first value is passed.
    Raises ConfigError for a setting that no notebook accepts."""
    left = saved(given["profile"]) if "profile" in given else ()
    every = {name: declared(name) for name in names()}
    varied = {name: {field_of(factor) for factor in factors_of(values).values()} for name, values in every.items()}
    by_any = set().union(*varied.values())
    check_names(given, [*fields_of(), *(parameter for values in every.values() for parameter in values)], "parameter")
    found = {}
    for name, values in every.items():
        if name in left:
            continue
        found[name] = {}
        for field, value in given.items():
            if field in values or field in varied[name]:
                found[name][field] = value
            elif "settings" in values and field in fields_of():
                levels = levels_of(field, value) if field in by_any else None
                found[name][field] = levels[0] if levels else value
    return found


def levels_of(field, value):
    """Convert strings or values to a list of levels of a field; None stays None. Raises ConfigError."""
    if value is None or value in ("None", "null"):
        return None
    if isinstance(value, str):
        listed = value.startswith("[") and value.endswith("]")
        value = [part.strip().strip("\"'") for part in (value[1:-1] if listed else value).split(",") if part.strip()]
    elif not isinstance(value, list | tuple):
        value = [value]
    kind = fields_of()[field_of(field)]
    return [parse(field, one, kind) for one in value]


def setting(field, value):
    """Convert a string to a value of a Config field; data_dir becomes an absolute path. Raises ConfigError."""
    if field == "data_dir" and value != "":
        return str(full_path(value))
    if not isinstance(value, str) or field == "data_dir" or (field, value) == ("lr", "tuned"):
        return value
    return parse(field, value, fields_of()[field])


def parse(field, value, kind):
    """Convert a string strictly to a value of a type; other values must already have the type. Raises ConfigError."""
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


# ---- runs -----------------------------------------------------------------------------------------------------------


def plan(name, values=None):
    """Execute the sweep cells of a notebook with these parameters (None: its defaults) and return the sweep, without training.
    For a notebook without a sweep, check its settings and return None. Raises ConfigError and NotebookError."""
    notebook = read(name)
    cells = tagged(notebook, "sweep")
    namespace = {"__name__": "__main__", **declared(name, notebook), **(values or {})}
    if not cells:
        settings = check_settings(namespace.get("settings"))
        settings = {field: value for field, value in settings.items() if value != "tuned"}
        profile = namespace.get("profile", "quick")
        configure(profile, settings)
        for parameter, factor in factors_of(namespace).items():
            for level in namespace[parameter] or ():
                configure(profile, settings, **{field_of(factor): level})
        return None
    try:
        for source in cells:
            exec(compile(source, f"{name}.ipynb", "exec"), namespace)
        sweep = namespace["sweep"]
        own = sweep.content["notebook"]
    except BiasnbError:
        raise
    except Exception as error:
        raise NotebookError(f"{name}: its list of runs cannot be made: {type(error).__name__}: {error}") from None
    if own != name:
        raise NotebookError(f"{name}: its study is called {own!r}; give it the name of the file")
    return sweep
