"""The key of a run: a hash of everything that determines its result, including the data and a user-defined operator."""

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
ALL = "."  # class of the images of a folder without class folders
HIDDEN, OTHER, LOOP = "hidden files or folders", "files of kinds that are not read", "links to a folder above"
BESIDE_SPLITS, BESIDE_CLASSES = "images beside train/ and test/", "images beside class folders"
TICK = 2 * 10**9  # nanoseconds; the coarsest resolution of time stamps among file systems


# ---- keys -----------------------------------------------------------------------------------------------------------


def key_fields(cfg):
    """Return {name: value} of the fields that determine the result: all but data_dir, device and the fields not read."""
    read = {"mask_rate": cfg.pretext == "bert", "hidden": cfg.pretext == "bert", "noise": cfg.pretext == "denoise",
            "colours": cfg.uses_palette, "target": cfg.predicts, "images": cfg.pretext != "supervised"}  # fmt: skip
    unread = {"data_dir", "device"} | SPECIAL - cfg.reads | {name for name, is_read in read.items() if not is_read}
    if cfg.pretext == "none":
        unread |= TRAINING
    return {name: value for name, value in sorted(asdict(cfg).items()) if name not in unread}


def digest(content, length=16):
    """Return the first `length` hexadecimal digits of the SHA-256 of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:length]


def key(cfg):
    """Return the key of the run, 16 hexadecimal digits. Two keys are equal exactly if the runs must give the same result.

    The key covers the version of the embedded data, the paths and contents of the images in a folder, and the code and the
    table entry of a user-defined operator (see `user_digest`). A change of any of these gives a new key."""
    return digest(key_fields(cfg) | data_identity(cfg) | operator_identity(cfg))


def baseline_fields(cfg):
    return {name: getattr(cfg, name) for name in ("dataset", "image_size", "patch", "mask_rate", "permute", "labelled")}


def baseline_key(cfg):
    """Return the key of the baselines without a network and of the raw-pixel probe, which depend on data and masks only."""
    return f"baseline-{digest(baseline_fields(cfg) | data_identity(cfg))}"


def init_fields(cfg):
    """Return the fields that determine the network at random initialisation and the images on which it is evaluated. Training
    fields are left out. Of the pretext only causality and the use of labels (supervised) remain."""
    trained = TRAINING | {"pretext", "mask_rate", "noise", "target", "hidden"} | ({"colours"} if cfg.input == "rgb" else set())
    fields = {name: value for name, value in key_fields(cfg).items() if name not in trained}
    return fields | {"causal": cfg.causal, "supervised": cfg.pretext == "supervised"}


def init_key(cfg):
    """Return the key of the evaluation at random initialisation, shared by runs with the same initial network and data."""
    return f"init-{digest(init_fields(cfg) | data_identity(cfg) | operator_identity(cfg))}"


def search_key(cfg):
    """Return the key of a learning-rate search, which covers everything but the learning rate and the seed."""
    fields = {name: value for name, value in key_fields(cfg).items() if name not in ("lr", "seed")}
    return f"search-{digest(fields | data_identity(cfg) | operator_identity(cfg))}"


def data_identity(cfg):
    """Return what distinguishes the data from others of the same name (file digest or version), without decoding images."""
    if cfg.dataset == "folder":
        return {"files": folder_signature(cfg.data_dir)}
    return {"version": VERSIONS[cfg.dataset]} if cfg.dataset in VERSIONS else {}


def operator_identity(cfg):
    """Return the digest of a user-defined operator as a dict, which is empty for an operator of the suite."""
    mine = user_digest(cfg.mixer)
    return {"operator": mine} if mine else {}


@contextlib.contextmanager
def snapshot():
    """Within the block, list every image folder and read every user-defined operator only once for all keys. Outside of it
    both are read again for every key. A nested snapshot reuses the outer one."""
    outer = SNAPSHOT.get()
    token = SNAPSHOT.set({} if outer is None else outer)
    try:
        yield
    finally:
        SNAPSHOT.reset(token)


def _once(make, *given):
    """Return make(*given), computed only once within a snapshot."""
    made = SNAPSHOT.get()
    if made is None:
        return make(*given)
    if given not in made:
        made[given] = make(*given)
    return made[given]


# ---- folders of images ----------------------------------------------------------------------------------------------


def folder_signature(folder):
    """Return a digest of the paths and contents of the images that are read from a folder. Within a snapshot it is computed
    only once per folder. Raises ConfigError if the folder is missing or cannot be read."""
    return _once(content_signature, Path(folder).expanduser())


def content_signature(top):
    """Return the `folder_signature` of the folder in its current state. Raises ConfigError as that function does."""
    if not top.is_dir():
        raise ConfigError(f"data_dir: {str(top)!r} is not a folder; set it to a folder of images, or of class folders of them")
    try:
        splits, _ = list_images(top)
        names = sorted(name for classes in splits.values() for names in classes.values() for name in names)
        return digest(content_digests(top, names))
    except OSError as error:
        raise ConfigError(f"data_dir: {error.filename}: {error.strerror}; repair or remove it") from None


def content_digests(top, names):
    """Return {name: SHA-256} of files. Digests are cached in runs/cache; a file is read again only if its inode number, size
    or time stamps changed. A file changed within the last TICK is not cached: a second change might keep its time stamp."""
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
            found[name] = "not a file"  # opening a FIFO would block
        if now - max(stamp[2:]) > TICK:
            kept[name] = [*stamp, found[name]]
    if kept != known:
        with contextlib.suppress(StoreError):  # the cache is read-only
            write_atomic(cache, to_json(kept))
    return found


def list_images(top):
    """Return the images of a folder and the names that are not read: ({split: {class: image names}}, {reason: names}).

    Images are in `<class>/` or `<split>/<class>/` or in folders below these. The split is "" if the folder has neither train/
    nor test/; the class is ALL if there are no class folders. Names are relative paths with `/`. Raises OSError for a folder
    that cannot be listed."""
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
    """Return the sorted relative paths of all image files below a folder, following links, and {reason: names not read}."""
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
    """Return the digest of a user-defined operator, "" for an operator of the suite. The digest is the `version` of its table
    entry if that is set, and otherwise a hash of the entry and of the user's code.

    The hash covers every member of the class and of its base classes. For every function it covers the code, the defaults, the
    closure and the globals that it names: helper functions, constants, classes and modules. Objects from installed packages,
    Python or the suite contribute only their name. Comments, function docstrings, file names and line numbers do not count.
    A value that cannot be described (an open file, a lock, a compiled function) makes the digest, and thus the keys, unique to
    this process: such an operator is trained again in every process unless `version` is set."""
    entry = MIXERS[mixer]
    if FAMILIES.get(entry.family, {}).get(mixer) == entry._replace(family=USER):
        return ""
    return entry.version or _once(_code_digest, mixer)


def _code_digest(mixer):
    entry = MIXERS[mixer]
    package = str(getattr(entry.operator, "__module__", "")).partition(".")[0]
    description = Description(package if package not in ("biasnb", "torch") else "")
    try:
        return description.of((tuple(entry._replace(label="", operator="", family="")), entry.operator))[:16]
    except RecursionError:
        return digest(unreadable(entry.operator))


# Class attributes without influence on behaviour, or added by Python and libraries when the class is used.
SILENT = {"__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__dict__", "__weakref__",
          "__slotnames__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
          "__conditional_annotations__", "__type_params__", "__orig_bases__", "__parameters__", "_abc_impl",
          "_backward_cls"}  # fmt: skip
HAS_DOCSTRING = 0x4000000  # CO_HAS_DOCSTRING, a flag of code objects since Python 3.13
HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE, a flag of classes that are not compiled into Python
THIS_PROCESS = secrets.token_hex(16)
UNREADABLE = {}


class Description(pickle._Pickler):
    """Pickle any value, including code, to bytes that are the same in every process. The bytes are hashed, never unpickled.
    The module `package` counts as user code even if installed. The base class is the pickler written in Python, because the
    one written in C does not let a subclass choose what is memoised."""

    def __init__(self, package="", memo=None):
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, 4)
        self.package, self.memo = package, dict(memo or {})

    def of(self, value):
        self.dump(value)
        return hashlib.sha256(self.bytes.getvalue()).hexdigest()

    def save(self, value, *given):
        try:
            super().save(value, *given)
        except RecursionError:
            raise
        except Exception:  # pickling calls methods of the value, which may raise any exception
            super().save(unreadable(value))

    def memoize(self, value):
        if type(value) not in (str, bytes, complex, tuple, frozenset):  # Python may or may not share equal constants
            super().memoize(value)

    def save_global(self, value, name=None):
        """Save the value by its module and name. Raises ValueError if the module does not hold it under that name."""
        home = getattr(value, "__module__", type(value).__module__)
        if not isinstance(value, type | types.FunctionType | types.ModuleType) and not self.is_in(home, name, value):
            raise ValueError
        self.save(("name", home, name))

    def reducer_override(self, value):
        """Describe a value that pickle cannot save, as (a callable, its arguments, further content) or as a name."""
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
        if kind in (set, frozenset):  # the iteration order differs between processes
            return kind, (sorted(Description(self.package, self.memo).of(item) for item in value),)
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
        """Describe a function by its name, or by its code and the objects it uses. A wrapper that a library's decorator
        returns is described with its closure and defaults, because they may hold functions of the user."""
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
        return name.partition(".")[0] != self.package and installed(name)

    def is_in(self, module, name, value):
        """Return whether a module that does not belong to the user holds this value under this name."""
        found = sys.modules.get(module) if isinstance(module, str) and self.installed(module) else None
        for part in name.split("."):
            found = getattr(found, part, None)
        return found is value


def instructions(code):
    """Return (the instructions of a code object without docstrings, file names and line numbers; the names of the globals
    that it uses; the names of the modules that it imports)."""
    steps, names, imports = [], set(), set()
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME" and step.argval in ("__firstlineno__", "__static_attributes__"):
            steps.pop()  # the stored constant depends on the position of the class in its file
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
    """Describe a module that a function imports when called: by its name if it is installed, else by its source."""
    with contextlib.suppress(ImportError, ValueError, AttributeError, OSError):
        spec = importlib.util.find_spec(name)
        if spec and (installed(name) or not str(spec.origin).endswith(".py") or is_in_a_package(spec.origin)):
            return name
        if spec:
            return name, Path(spec.origin).read_bytes()
    return unreadable(name)


def modules_of_the_user(mixer):
    """Return the modules whose code a user-defined operator may use: the loaded modules that are not installed, and all
    loaded modules of its own package."""
    own = str(getattr(MIXERS[mixer].operator, "__module__", "")).partition(".")[0]
    found = []
    for name, module in list(sys.modules.items()):
        theirs = name.partition(".")[0] == own or not installed(name)
        if theirs and name != "__main__" and str(getattr(module, "__file__", "")).endswith(".py"):
            found.append(module)
    return found


def unreadable(value):
    """Return a placeholder for a value that cannot be described. It is unique to the object and to this process."""
    number, _ = UNREADABLE.setdefault(id(value), (len(UNREADABLE), value))
    return ["unreadable", THIS_PROCESS, os.getpid(), number]


def installed(name):
    """Return whether a module belongs to an installed package, to Python or to the suite, rather than to the user."""
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
