"""The key of a run: a hash of everything that decides its result, the data and a user-defined operator included."""

import contextlib
import contextvars
import dis
import functools
import hashlib
import importlib.util
import io
import json
import os
import pickle
import secrets
import site
import sys
import sysconfig
import time
import types
from dataclasses import asdict
from pathlib import Path
from stat import S_ISREG

from ..config import IMAGE_SUFFIXES, VERSIONS, ConfigError, is_hidden, split_folders
from ..operators import FAMILIES, MIXERS, USER
from . import places
from .files import StoreError, read_json, to_json, write_atomic

SPECIAL = {name for op in MIXERS.values() for name in op.reads}  # fields that only some operators read
TRAINING = {"augment", "batch", "budget", "clip", "lr", "optimizer", "precision", "steps", "warmup", "weight_decay"}
SNAPSHOT = contextvars.ContextVar("snapshot", default=None)
ALL = "."  # the class of images that are in none
HIDDEN, OTHER, LOOP = "hidden files or folders", "files of kinds that are not read", "links to a folder above"
BESIDE_SPLITS, BESIDE_CLASSES = "images beside train/ and test/", "images beside class folders"
TICK = 2 * 10**9  # nanoseconds, of the coarsest clock of a file system


# ---- keys -----------------------------------------------------------------------------------------------------------


def key_fields(cfg):
    """The fields that decide the result: everything but where the data lie, the device, and unread fields."""
    read = {"mask_rate": cfg.pretext == "bert", "hidden": cfg.pretext == "bert", "noise": cfg.pretext == "denoise",
            "colours": cfg.uses_palette, "target": cfg.predicts, "images": cfg.pretext != "supervised"}  # fmt: skip
    unread = {"data_dir", "device"} | SPECIAL - cfg.reads | {name for name, is_read in read.items() if not is_read}
    if cfg.pretext == "none":
        unread |= TRAINING
    return {name: value for name, value in sorted(asdict(cfg).items()) if name not in unread}


def digest(content, length=16):
    """First hexadecimal digits of the sha256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:length]


def key(cfg):
    """Name of the run: 16 hexadecimal digits, equal exactly for runs that must give the same result.

    It covers the version of the embedded data, the paths and contents of the images of a folder, and the code and entry of a
    user-defined operator, see `user_digest`: if one of them changes, it is another run."""
    return digest(key_fields(cfg) | data_identity(cfg) | operator_identity(cfg))


def baseline_fields(cfg):
    """The fields that decide the baselines."""
    return {name: getattr(cfg, name) for name in ("dataset", "image_size", "patch", "mask_rate", "permute", "labelled")}


def baseline_key(cfg):
    """Key of what data and masks alone decide: the untrained baselines and the raw-pixel probe."""
    return f"baseline-{digest(baseline_fields(cfg) | data_identity(cfg))}"


def init_fields(cfg):
    """The fields that decide the network at its initial weights and the images it is evaluated on: not its training, and of
    the pretext only how the future is hidden and whether the labelled images alone are trained on."""
    trained = TRAINING | {"pretext", "mask_rate", "noise", "target", "hidden"} | ({"colours"} if cfg.input == "rgb" else set())
    fields = {name: value for name, value in key_fields(cfg).items() if name not in trained}
    return fields | {"causal": cfg.causal, "supervised": cfg.pretext == "supervised"}


def init_key(cfg):
    """Key of the evaluation at random init, which all runs share that start from the same network on the same data."""
    return f"init-{digest(init_fields(cfg) | data_identity(cfg) | operator_identity(cfg))}"


def search_key(cfg):
    """Key of the search for a learning rate: of everything but the rate and the seed."""
    fields = {name: value for name, value in key_fields(cfg).items() if name not in ("lr", "seed")}
    return f"search-{digest(fields | data_identity(cfg) | operator_identity(cfg))}"


def data_identity(cfg):
    """What tells the data of a Config from other data of the same name, as far as it is known without decoding them."""
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
    outer = SNAPSHOT.get()
    token = SNAPSHOT.set({} if outer is None else outer)
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


def folder_signature(folder):
    """Digest of the images of a folder: of the paths of those that are read, and of their contents. Within a snapshot it is
    that of the folder as it was first seen there. Raises ConfigError if the folder is missing or cannot be read."""
    return _once(content_signature, Path(folder).expanduser())


def content_signature(top):
    """`folder_signature` of the folder as it is now."""
    if not top.is_dir():
        raise ConfigError(f"data_dir: {str(top)!r} is not a folder; set it to a folder of images, or of class folders of them")
    try:
        splits, _ = list_images(top)
        names = sorted(name for classes in splits.values() for names in classes.values() for name in names)
        return digest(content_digests(top, names))
    except OSError as error:
        raise ConfigError(f"data_dir: {error.filename}: {error.strerror}; repair or remove it") from None


def content_digests(top, names):
    """Name -> sha256 of the files of a folder. runs/cache keeps them, and a file is read again only if its number, size or time
    stamps are others. A file that has just changed is not kept, as it may change again within one tick of the clock."""
    cache = places.root() / "runs" / "cache" / f"folder-{digest(str(top.resolve()))}.contents"
    known, found, kept = {}, {}, {}
    with contextlib.suppress(StoreError):
        known = read_json(cache)
    for name in names:
        stat, now = os.stat(top / name), time.time_ns()
        stamp = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = known.get(name) if isinstance(known, dict) else None
        if isinstance(entry, list) and entry[:-1] == stamp:
            found[name] = entry[-1]
        elif S_ISREG(stat.st_mode):
            with open(top / name, "rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            found[name] = "not a file"  # opening a FIFO waits for ever
        if now - max(stamp[2:]) > TICK:
            kept[name] = [*stamp, found[name]]
    if kept != known:
        with contextlib.suppress(StoreError):  # the cache is read-only
            write_atomic(cache, to_json(kept))
    return found


def list_images(top):
    """What is read of a folder of images, and what is left out: ({split: {class: names of its images}}, {why: names}).

    Images are in `<class>/` or `<split>/<class>/` and in folders below these; split is "" where the folder has no train/ and
    test/, class is ALL where images are in no class folder. Names are paths below the folder, with `/`. Raises OSError for a
    folder that cannot be listed."""
    images, left_out = image_files(top)
    folders = split_folders(top) or {"": top}
    splits = {split: {} for split in folders}
    for split, folder in folders.items():
        classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and not is_hidden(d.name))
        splits[split] = {name: [] for name in classes or [ALL]}
    of_folder = {folder.name: split for split, folder in folders.items() if split}
    for path in images:
        split, inside = (of_folder.get(path.parts[0]), path.parts[1:]) if of_folder else ("", path.parts)
        name = inside[0] if len(inside) > 1 else ALL
        if split is None or not inside:
            left_out.setdefault(BESIDE_SPLITS, []).append(path.parts[0] + "/" * (len(path.parts) > 1))
        elif name not in splits[split]:
            left_out.setdefault(BESIDE_CLASSES, []).append(path.as_posix())
        else:
            splits[split][name].append(path.as_posix())
    return splits, left_out


def image_files(top):
    """The image files of a folder and of all below it, links followed, as sorted paths below it; and {why: names left out}."""
    images, left_out, above = [], {}, {str(top): ()}
    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=_raise):
        below, within = Path(folder).relative_to(top), (*above.pop(folder), os.path.realpath(folder))
        for name in sorted(subfolders):
            path = os.path.join(folder, name)
            if why := HIDDEN if is_hidden(name) else LOOP if os.path.realpath(path) in within else None:
                left_out.setdefault(why, []).append(f"{(below / name).as_posix()}/")
                subfolders.remove(name)
            above[path] = within
        for name in sorted(names):
            why = HIDDEN if is_hidden(name) else None if name.lower().endswith(IMAGE_SUFFIXES) else OTHER
            if why:
                left_out.setdefault(why, []).append((below / name).as_posix())
            else:
                images.append(below / name)
    return sorted(images), left_out


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
    keys, unique to this process: such an operator is trained again in every process unless `version` is set."""
    entry = MIXERS[mixer]
    if FAMILIES.get(entry.family, {}).get(mixer) == entry._replace(family=USER):
        return ""
    return entry.version or _once(_code_digest, mixer)


def _code_digest(mixer):
    entry = MIXERS[mixer]
    package = str(getattr(entry.operator, "__module__", "")).partition(".")[0]
    own = Description(package if package not in ("biasnb", "torch") else "")
    try:
        return own.of((tuple(entry._replace(label="", operator="", family="")), entry.operator))[:16]
    except RecursionError:
        return digest(unreadable(entry.operator))


# Members of a class and its kind that say nothing of what it does, or that Python and libraries add when it is used.
SILENT = {"__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__dict__", "__weakref__",
          "__slotnames__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
          "__conditional_annotations__", "__type_params__", "__orig_bases__", "__parameters__", "_abc_impl",
          "_backward_cls"}  # fmt: skip
HAS_DOCSTRING = 0x4000000  # a flag of code objects from Python 3.13 on
HEAP_TYPE = 1 << 9  # a flag of classes that are not compiled into Python
THIS_PROCESS = secrets.token_hex(16)
UNREADABLE = {}


class Description(pickle._Pickler):
    """Pickles a value of any kind, code included, as bytes that are the same in every process; nobody unpickles them. The
    package `own` counts as the user's, installed or not. (The pickler written in C cannot be told what to memoize.)"""

    def __init__(self, own="", memo=None):
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, 4)
        self.own, self.memo = own, dict(memo or {})

    def of(self, value):
        self.dump(value)
        return hashlib.sha256(self.bytes.getvalue()).hexdigest()

    def save(self, value, *given):
        try:
            super().save(value, *given)
        except RecursionError:
            raise
        except Exception:  # code that is run to describe a value may raise anything
            super().save(unreadable(value))

    def memoize(self, value):
        if type(value) not in (str, bytes, complex, tuple, frozenset):  # equal constants may be one object or several
            super().memoize(value)

    def save_global(self, value, name=None):
        """What counts by its name in a module. Raises ValueError for a value that says so, but is not found there."""
        home = getattr(value, "__module__", type(value).__module__)
        if not isinstance(value, type | types.FunctionType | types.ModuleType) and not self.is_in(home, name, value):
            raise ValueError
        self.save(("name", home, name))

    def reducer_override(self, value):
        """How to describe what pickle cannot: (some callable, arguments, what else the value holds), or a name."""
        kind, torch = type(value), sys.modules.get("torch")
        if isinstance(value, type):
            if not value.__flags__ & HEAP_TYPE or self.is_in(value.__module__, value.__qualname__, value):
                return value.__qualname__
            members = {name: member for name, member in sorted(vars(value).items()) if name not in SILENT}
            return str, (value.__name__,), (kind, value.__bases__, members)
        if kind is types.FunctionType:
            return self.function(value)
        if isinstance(value, types.ModuleType):
            if self.installed(value.__name__):
                return value.__name__
            if not str(getattr(value, "__file__", ".py")).endswith(".py"):
                raise ValueError("compiled")
            return str, ("module",), {name: item for name, item in sorted(vars(value).items()) if not name.startswith("__")}
        if kind is types.CodeType:
            return str, ("code",), instructions(value)[0]
        if kind in (set, frozenset):  # the order differs between processes
            return kind, (sorted(Description(self.own, self.memo).of(item) for item in value),)
        if kind is types.MappingProxyType:
            return kind, (dict(value),)
        if kind in (staticmethod, classmethod):
            return kind, (value.__func__,)
        if kind is types.MethodType:
            return kind, (value.__func__, value.__self__)
        if isinstance(value, property):
            return kind, (value.fget, value.fset, value.fdel), getattr(value, "__dict__", None)
        if kind is functools.cached_property:
            return kind, (value.func,)
        if isinstance(value, functools._lru_cache_wrapper):
            return kind, (value.__wrapped__, value.cache_parameters())
        if kind is types.CellType:
            return kind, () if value == types.CellType() else (value.cell_contents,)
        if kind is types.GetSetDescriptorType:
            return kind, (value.__objclass__, value.__name__)
        if torch and isinstance(value, torch.Tensor):
            numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            return kind, (str(value.dtype), tuple(value.shape), value.requires_grad, numbers)
        return NotImplemented

    def function(self, function):
        """A function: its name, or its code and what it uses. A function that is made by one of a package, as decorators are,
        may hold functions of the user."""
        home = function.__globals__.get("__name__", "")
        if any(self.is_in(module, function.__qualname__, function) for module in (function.__module__, home)):
            return function.__qualname__
        held = (function.__defaults__, function.__kwdefaults__, function.__closure__, vars(function))
        if self.installed(home):
            return str, (home, function.__code__.co_qualname), held
        steps, names, imports = instructions(function.__code__)
        used = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
        return str, ("function",), (steps, used, [imported(name) for name in sorted(imports)], held)

    def installed(self, name):
        return name.partition(".")[0] != self.own and installed(name)

    def is_in(self, module, name, value):
        """Whether a module that is not the user's has this value under this name."""
        found = sys.modules.get(module) if isinstance(module, str) and self.installed(module) else None
        for part in name.split("."):
            found = getattr(found, part, None)
        return found is value


def instructions(code):
    """(what code does, without docstrings, names of files and numbers of lines; the names of globals that it uses; those of
    modules that it imports)."""
    steps, names, imports = [], set(), set()
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME" and step.argval in ("__firstlineno__", "__static_attributes__"):
            steps.pop()  # the constant that is stored depends on where the class stands in its file
        elif isinstance(step.argval, types.CodeType):
            inner, inner_names, inner_imports = instructions(step.argval)
            steps.append((step.opname, inner))
            names |= inner_names
            imports |= inner_imports
        elif step.opname != "EXTENDED_ARG":
            steps.append((step.opname, step.argval))
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") and step.argval != "__name__":
            names.add(step.argval)
        if step.opname == "IMPORT_NAME":
            imports.add(step.argval)
    form = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~HAS_DOCSTRING,
            code.co_varnames, code.co_freevars, code.co_exceptiontable)  # fmt: skip
    return (form, steps), names, imports


def imported(name):
    """What a module that a function imports when it is called counts by: its name, if it is installed, else its source."""
    with contextlib.suppress(ImportError, ValueError, AttributeError, OSError):
        spec = importlib.util.find_spec(name)
        if spec and (installed(name) or not str(spec.origin).endswith(".py") or is_in_a_package(spec.origin)):
            return name
        if spec:
            return name, Path(spec.origin).read_bytes()
    return unreadable(name)


def modules_of_the_user(mixer):
    """The modules from which a user-defined operator may take code: those that are loaded and not installed, and all of its
    own package."""
    own = str(getattr(MIXERS[mixer].operator, "__module__", "")).partition(".")[0]
    found = []
    for name, module in list(sys.modules.items()):
        theirs = name.partition(".")[0] == own or not installed(name)
        if theirs and name != "__main__" and str(getattr(module, "__file__", "")).endswith(".py"):
            found.append(module)
    return found


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
    return is_in_a_package(file) if file else top in sys.stdlib_module_names


@functools.cache
def is_in_a_package(file):
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return any(Path(file).resolve().is_relative_to(Path(folder).resolve()) for folder in folders)
