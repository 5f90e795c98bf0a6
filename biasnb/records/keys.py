"""The key of a run: a hash of everything that decides its result, the data and a user-defined operator included."""

import contextlib
import contextvars
import dis
import functools
import hashlib
import json
import os
import secrets
import site
import sys
import sysconfig
import types
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..config import IMAGE_SUFFIXES, VERSIONS, ConfigError
from ..operators import FAMILIES, MIXERS, USER

SPECIAL = {name for op in MIXERS.values() for name in op.reads}  # fields that only some operators read
TRAINING = {"augment", "batch", "budget", "clip", "lr", "precision", "steps", "warmup", "weight_decay"}
SNAPSHOT = contextvars.ContextVar("snapshot", default=None)


# ---- keys -----------------------------------------------------------------------------------------------------------


def key_fields(cfg):
    """The fields that decide the result: everything but where the data lie, the device, and unread fields."""
    unread = {"data_dir", "device"} | SPECIAL - cfg.reads
    if cfg.pretext != "bert":
        unread.add("mask_rate")
    if cfg.pretext != "denoise":
        unread.add("noise")
    if not cfg.uses_palette:
        unread.add("colours")
    if not cfg.predicts:
        unread.add("target")
    if cfg.pretext == "supervised":  # trains on the labelled images
        unread.add("images")
    if cfg.pretext == "none":
        unread |= TRAINING
    return {name: value for name, value in sorted(asdict(cfg).items()) if name not in unread}


def digest(content, length=16):
    """First hexadecimal digits of the sha256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:length]


def key(cfg):
    """Name of the run: 16 hexadecimal digits, equal exactly for runs that must give the same result.

    It covers the version of the embedded data, and of a folder the paths and sizes of its images: changed data is another
    run. So is a user-defined operator whose code or entry has changed; see `user_digest`.
    """
    return digest(key_fields(cfg) | data_identity(cfg) | operator_identity(cfg))


def baseline_fields(cfg):
    """The fields that decide the baselines."""
    return {name: getattr(cfg, name) for name in ("dataset", "image_size", "patch", "mask_rate", "permute", "labelled")}


def baseline_key(cfg):
    """Key of what data and masks alone decide: the untrained baselines and the raw-pixel probe."""
    return f"baseline-{digest(baseline_fields(cfg) | data_identity(cfg))}"


def search_key(cfg):
    """Key of the search for a learning rate: of everything but the rate and the seed."""
    fields = {name: value for name, value in key_fields(cfg).items() if name not in ("lr", "seed")}
    return f"search-{digest(fields | data_identity(cfg) | operator_identity(cfg))}"


def data_identity(cfg):
    """What tells the data of a Config from other data of the same name, as far as it is known without reading them."""
    if cfg.dataset == "folder":
        return {"files": folder_signature(cfg.data_dir)}
    return {"version": VERSIONS[cfg.dataset]} if cfg.dataset in VERSIONS else {}


def operator_identity(cfg):
    """What tells a user-defined operator from others of the same name; nothing for an operator of the suite."""
    mine = user_digest(cfg.mixer)
    return {"operator": mine} if mine else {}


@contextlib.contextmanager
def snapshot():
    """Within the block every folder of images is listed once, and every user-defined operator is read once, for all keys;
    outside of it this is done anew for every key. An outer snapshot stays in force within an inner one."""
    if SNAPSHOT.get() is not None:
        yield
        return
    token = SNAPSHOT.set({})
    try:
        yield
    finally:
        SNAPSHOT.reset(token)


def _once(make, *given):
    """make(*given), within a snapshot as it was made there first."""
    made = SNAPSHOT.get()
    if made is None:
        return make(*given)
    if given not in made:
        made[given] = make(*given)
    return made[given]


# ---- folders of images ----------------------------------------------------------------------------------------------


def folder_signature(folder, content=False):
    """Digest of the relative paths and sizes of all images below a folder; with `content` of their time stamps too, always
    from a new listing, so that it also changes when a file is rewritten. Raises ConfigError if the folder is missing or
    cannot be listed."""
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise ConfigError(f"data_dir: {folder!r} is not a folder; set it to a folder of images, or of class folders of them")
    try:
        if content:
            return digest(_image_files(top))
        return digest([(path, size) for path, size, _ in _once(_image_files, top)])
    except OSError as error:
        raise ConfigError(f"data_dir: {error.filename}: {error.strerror}; repair or remove it") from None


def _image_files(top):
    """(path below top, bytes, time stamp) of all images of a folder, of its splits and of their class folders."""
    found = []
    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=_raise):
        below = Path(folder).relative_to(top)
        if len(below.parts) >= 2:
            subfolders.clear()
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES):
                stat = os.stat(os.path.join(folder, name))
                found.append(((below / name).as_posix(), stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def _raise(error):
    raise error


# ---- user-defined operators -----------------------------------------------------------------------------------------


def user_digest(mixer):
    """Digest of a user-defined operator, "" for an operator of the suite: its entry's `version` where that is set, else what
    its entry and its class do, as far as that is the user's own code.

    That is every member of the class and of those it inherits from; of every function the code, defaults, closure and the
    globals it names: helper functions, constants, classes, modules. What comes from an installed package, from Python or
    from the suite counts by its name. Comments, docstrings of functions, names of files and numbers of lines do not count.
    A value that cannot be read in this way (an open file, a lock, a compiled function) makes the digest, and with it the
    keys, unique to this process: such an operator is trained again in every process unless `version` is set.
    """
    entry = MIXERS[mixer]
    if FAMILIES.get(entry.family, {}).get(mixer) == entry._replace(family=USER):
        return ""
    return entry.version or _once(_code_digest, mixer)


def _code_digest(mixer):
    entry = MIXERS[mixer]
    package = str(getattr(entry.operator, "__module__", "")).partition(".")[0]
    own = Description(package if package not in ("biasnb", "torch") else "")
    try:
        return digest(own.of((tuple(entry._replace(label="", operator="", family="")), entry.operator)))
    except RecursionError:
        return digest(unreadable(entry.operator))


# Members of a class and its kind that say nothing of what it does, or that Python and libraries add when it is used.
SILENT = {"__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__dict__", "__weakref__",
          "__slotnames__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
          "__conditional_annotations__", "__type_params__", "__orig_bases__", "__parameters__", "_abc_impl",
          "_backward_cls"}  # fmt: skip
ATOMS = (type(None), type(...), type(NotImplemented), bool, float, complex, str, bytes)
BY_NAME = (types.BuiltinFunctionType, types.MethodWrapperType, types.MethodDescriptorType, types.WrapperDescriptorType,
           types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType)  # fmt: skip
HAS_DOCSTRING = 0x4000000  # a flag of code objects from Python 3.13 on
HEAP_TYPE = 1 << 9  # a flag of classes that are not compiled into Python
THIS_PROCESS = secrets.token_hex(16)
UNREADABLE = {}


class Description:
    """Describes values of any kind, code included, by nested lists of text that are the same in every process. The package
    `own` counts as the user's, installed or not."""

    def __init__(self, own="", seen=()):
        self.own = own
        self.seen = dict(seen)  # address -> (number, value), which is kept so that no address is used twice

    def of(self, value):
        kind = type(value)
        if kind in ATOMS:
            return [kind.__name__, repr(value)]
        if kind is int:  # its decimal digits may be too many
            return ["int", hex(value)]
        if kind is tuple:
            return ["tuple", *map(self.of, value)]
        if kind in (set, frozenset):  # the order differs between processes
            return [kind.__name__, *sorted(digest(Description(self.own, self.seen).of(item), 64) for item in value)]
        if kind is types.CodeType:
            return self.code(value, {})
        if id(value) in self.seen:
            return ["seen", self.seen[id(value)][0]]
        self.seen[id(value)] = (len(self.seen), value)
        try:
            return self.one(value)
        except RecursionError:
            raise
        except Exception:  # code that is run to describe a value may raise anything
            return unreadable(value)

    def one(self, value):
        """Describe a value that may hold itself."""
        kind = type(value)
        if isinstance(value, type):
            return self.kind(value)
        if kind is types.FunctionType:
            return self.function(value)
        if kind is types.ModuleType:
            return self.module(value)
        if kind is list:
            return ["list", *map(self.of, value)]
        if kind in (dict, types.MappingProxyType):
            return ["dict", *([self.of(name), self.of(item)] for name, item in value.items())]
        if kind in (staticmethod, classmethod):
            return [kind.__name__, self.of(value.__func__)]
        if isinstance(value, property):
            held = (value.fget, value.fset, value.fdel, getattr(value, "__dict__", {}))
            return [self.of(kind), self.of(held)]
        if kind is functools.cached_property:
            return [self.of(kind), self.of(value.func)]
        if isinstance(value, functools._lru_cache_wrapper):
            return ["cache", self.of(value.__wrapped__), self.of(value.cache_parameters())]
        if kind is types.MethodType:
            return ["method", self.of(value.__func__), self.of(value.__self__)]
        if kind is types.CellType:
            return ["cell", self.of(value.cell_contents)] if value != types.CellType() else ["empty cell"]
        if kind in BY_NAME:
            owner = getattr(value, "__self__", None)
            bound_to = [] if isinstance(owner, types.ModuleType | type) else self.of(owner)
            return ["name", str(getattr(value, "__module__", "")), value.__qualname__, bound_to]
        if isinstance(value, np.ndarray | np.generic):
            numbers = value.tolist() if value.dtype.hasobject else value.tobytes()
            return [self.of(kind), str(value.dtype), self.of(value.shape), self.of(numbers)]
        torch = sys.modules.get("torch")
        if torch and isinstance(value, torch.Tensor):
            numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            return [self.of(kind), str(value.dtype), self.of(tuple(value.shape)), value.requires_grad, self.of(numbers)]
        return self.instance(value)

    def kind(self, kind):
        """A class: by its name, or by its bases and members where it is the user's own."""
        if not kind.__flags__ & HEAP_TYPE or self.installed_as(kind, kind.__module__):
            return ["name", kind.__module__, kind.__qualname__]
        members = [[name, self.of(member)] for name, member in sorted(vars(kind).items()) if name not in SILENT]
        return ["class", kind.__name__, self.of(type(kind)), self.of(kind.__bases__), members]

    def function(self, function):
        """A function: by its name, or by its code and what it uses. A function that is made by one of a package, as
        decorators are, may hold functions of the user."""
        home = function.__globals__.get("__name__", "")
        if self.installed_as(function, function.__module__) or self.installed_as(function, home):
            return ["name", function.__module__, function.__qualname__]
        held = (function.__defaults__, function.__kwdefaults__, function.__closure__, vars(function))
        if self.installed(home):
            return ["made by", home, function.__code__.co_qualname, self.of(held)]
        return ["function", self.code(function.__code__, function.__globals__), self.of(held)]

    def code(self, code, names):
        """Code: its instructions with the constants and names that they refer to, and the globals behind these names."""
        steps, used = [], set()
        for step in dis.get_instructions(code):
            if step.opname == "STORE_NAME" and step.argval in ("__firstlineno__", "__static_attributes__"):
                steps.pop()  # the constant that is stored depends on where the class stands in its file
            elif isinstance(step.argval, types.CodeType):
                steps.append([step.opname, self.code(step.argval, names)])
            elif step.opname != "EXTENDED_ARG":
                steps.append([step.opname, self.of(step.argval)])
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") and step.argval != "__name__":
                used.add(step.argval)
        form = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~HAS_DOCSTRING,
                code.co_varnames, code.co_freevars, code.co_exceptiontable.hex())  # fmt: skip
        found = [[name, self.of(names[name])] for name in sorted(used) if name in names]
        return [self.of(form), steps, found]

    def module(self, module):
        """A module: by its name, or by all that it holds where it is the user's own, as it was when it was imported."""
        if self.installed(module.__name__):
            return ["module", module.__name__]
        if not str(getattr(module, "__file__", ".py")).endswith(".py"):  # compiled
            return unreadable(module)
        return ["module", *([name, self.of(item)] for name, item in sorted(vars(module).items()) if not name.startswith("__"))]

    def instance(self, value):
        """Any other value, by what would be needed to make it again."""
        how = value.__reduce_ex__(4)
        if isinstance(how, str):  # a name in its module
            home = type(value).__module__
            same = self.installed(home) and getattr(sys.modules.get(home), how, None) is value
            return ["name", home, how] if same else unreadable(value)
        make, given, state, items, pairs = (*how[:5], *[None] * (5 - len(how)))
        return ["instance", *map(self.of, (make, given, state, list(items or ()), list(pairs or ())))]

    def installed(self, name):
        return name.partition(".")[0] != self.own and installed(name)

    def installed_as(self, value, module):
        """Whether a module that is not the user's has this class or function under its name."""
        found = sys.modules.get(module) if isinstance(module, str) and self.installed(module) else None
        for name in value.__qualname__.split("."):
            found = getattr(found, name, None)
        return found is value


def unreadable(value):
    """Stands for a value that cannot be described: the same for this object in this process, different for all others."""
    number, _ = UNREADABLE.setdefault(id(value), (len(UNREADABLE), value))
    return ["unreadable", THIS_PROCESS, os.getpid(), number]


def installed(name):
    """Whether a module belongs to an installed package, to Python or to the suite, and not to the user."""
    top = name.partition(".")[0]
    if top in ("biasnb", "__main__"):
        return top == "biasnb"
    file = getattr(sys.modules.get(name), "__file__", None) or getattr(sys.modules.get(top), "__file__", None)
    return _in_a_package(file) if file else top in sys.stdlib_module_names


@functools.cache
def _in_a_package(file):
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return any(Path(file).resolve().is_relative_to(Path(folder).resolve()) for folder in folders)
