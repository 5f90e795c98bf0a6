"""The store of records. A record is a JSON file per run with an .npz file of small arrays, written atomically and validated
when read. Committed records are lines of `records.jsonl`; their arrays are in `arrays/<notebook>.zip`, one file per run."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import zipfile

from ..config import ConfigError, check_profile
from . import places
from .files import (
    HOUR,
    StoreError,
    arrays_digest,
    is_locked,
    locked,
    read_arrays,
    read_json,
    remove_attempts,
    to_json,
    write_arrays,
    write_atomic,
)
from .progress import clock
from .sweep import Sweep, frame

FROM_SCRATCH = "BIASNB_FROM_SCRATCH"
LINES, PACKS = "records.jsonl", "arrays"  # file and folder of committed records
SCHEMA = 3
PROTOCOL = 1  # of the evaluation; increase it when the probe or a measure changes, then run `biasnb evaluate`
REQUIRED = {
    "run": ("config", "status", "steps", "data", "environment", "history", "init", "protocol"),
    "init": ("config", "status", "data", "environment", "probe", "measures", "protocol"),
    "search": ("config", "status", "rates", "chosen"),
    "baseline": ("config", "status", "data", "environment", "psnr", "pixel_probe", "protocol"),
}
METRICS = ("parameters", "flop_per_image", "flop_per_image_dense", "context_coverage", "images_per_second", "wall_seconds",
           "evaluation_seconds", "loss", "psnr", "accuracy", "probe", "measures")  # fmt: skip
TABLE = ("penalties", "train", "val", "test", "knn")  # lists that the table of a probe holds


def check(record, where="record", outdated=False):
    """Return the record if it is complete. With `outdated`, a record of an older protocol is accepted too, and its metrics are
    not checked. Raises StoreError naming what is missing or wrong."""
    if not isinstance(record, dict) or record.get("kind") not in REQUIRED:
        raise StoreError(f"{where}: not a record of this suite")
    if record.get("schema") != SCHEMA:
        raise StoreError(f"{where}: schema {record.get('schema')!r}, this version reads {SCHEMA}; delete it to make it anew")
    needed = REQUIRED[record["kind"]] + ("key",)
    current = record.get("protocol", PROTOCOL) == PROTOCOL
    if record["kind"] == "run" and record.get("status") == "done" and current:
        needed += METRICS
    missing = [name for name in needed if name not in record]
    if missing:
        raise StoreError(f"{where}: lacks {', '.join(missing)}; delete it to make it anew")
    if record["status"] not in ("done", "diverged"):
        raise StoreError(f"{where}: status {record['status']!r} is neither done nor diverged")
    if not current and not outdated:
        profile = f" --profile {where.parent.name}" if isinstance(where, os.PathLike) else ""
        raise StoreError(f"{where}: evaluated by protocol {record['protocol']!r}, this version reads {PROTOCOL}; "
                         f"run `biasnb evaluate{profile}` to evaluate it again")  # fmt: skip
    if record["status"] == "done" and current:
        for name in ("loss", "psnr", "accuracy") if record["kind"] == "run" else ():
            score = record[name]
            if not isinstance(score, dict) or not isinstance(score.get("test", ""), int | float | None):
                raise StoreError(f"{where}: {name} holds no number for the test split; delete it to make it anew")
        for name in {"run": ["probe"], "init": ["probe"], "baseline": ["pixel_probe"]}.get(record["kind"], []):
            table = record[name] if isinstance(record[name], dict) else {}
            known = all(isinstance(table.get(part), int | float) for part in ("neighbours", "temperature"))
            if not known or not all(isinstance(table.get(part), list) for part in TABLE):
                raise StoreError(f"{where}: {name} is no table of layers and penalties; delete it to make it anew")
    return record


class Store:
    """The records of one profile in one folder: `runs/<profile>` (the user's) or `results/<profile>` (the committed ones). A
    record that is missing there is read from the Store `behind`, if one is given."""

    def __init__(self, profile, base="runs", behind=None):
        self.profile, self.base, self.behind = profile, base, behind
        self.folder = (places.results() if base == "results" else places.root() / base) / profile

    def path(self, key, suffix=".json"):
        """Return the path of a record, or of a file that belongs to it. Raises StoreError for a malformed key."""
        if not re.fullmatch(r"([a-z]+-)?[\w-]+", key, re.ASCII):
            raise StoreError(f"key: {key!r} is not the key of a record; `biasnb status` lists them")
        return self.folder / f"{key}{suffix}"

    @contextlib.contextmanager
    def lock(self, key):
        """Lock a run within the block, so that no other process trains it. If another process holds it, print a line and wait.

        The lock ends with its process. On a file system without locks the block runs unlocked; two processes that train the
        same run then write the same files. Raises StoreError if the lock file cannot be created."""
        path = self._lock(key)
        with locked(path, f"{key}: another process has it under way; waiting for that") as held:
            if held:  # temporary files that exist now were left by a process that was killed
                remove_attempts(self.folder, key)
                remove_attempts(self.checkpoints(key))
            yield
            if (self.folder / f"{key}.json").is_file():  # a process that still waits for the lock file finds the record
                path.unlink(missing_ok=True)

    def busy(self, key):
        """Return whether a process holds the lock of a run."""
        return is_locked(self._lock(key))

    def _lock(self, key):
        return self.folder / "locks" / f"{key}.lock"

    def checkpoints(self, key):
        """Return the folder of the checkpoints of a run."""
        return self.folder / "checkpoints" / key

    def own(self, key):
        """Return whether this folder has the record."""
        return self.path(key).is_file() or key in self.lines()

    def __iter__(self):
        """Iterate over the sorted keys of all records of this folder."""
        return iter(sorted({path.stem for path in self.folder.glob("*.json")} | self.lines().keys()))

    def lines(self):
        """Return {key: line} of records.jsonl, {} without that file. Raises StoreError if the file is malformed."""
        path = self.folder / LINES
        return read_lines(path, stamp(path)) if path.is_file() else {}

    def packs(self):
        """Return {key: zip file that holds its arrays}. Raises StoreError if a zip file is malformed."""
        found = {}
        for path in sorted((self.folder / PACKS).glob("*.zip")):
            found |= dict.fromkeys(read_names(path, stamp(path)), path)
        return found

    def has(self, key):
        """Return whether this Store or the one behind it has the record."""
        return self.own(key) or (self.behind is not None and self.behind.has(key))

    def save(self, record, arrays=None):
        """Write the arrays, then the record with their digest, so that an existing record is complete. Raises StoreError."""
        evaluated = {} if record["kind"] == "search" else {"protocol": PROTOCOL}
        record = {"schema": SCHEMA, **evaluated, "status": "done", **record}
        if arrays:
            write_arrays(self.path(record["key"], ".npz"), arrays)
            record["arrays"] = arrays_digest(arrays)
        write_atomic(self.path(record["key"]), to_json(check(record)))
        self.path(record["key"], ".error").unlink(missing_ok=True)
        return record

    def receive(self, key, files):
        """Write the files {suffix: bytes} of a record that was made elsewhere. Raises StoreError and writes nothing if they are
        not the valid record of this key and the arrays that it names."""
        try:
            record = check(json.loads(files[".json"]), f"{key}, as it was received")
        except (KeyError, ValueError):
            raise StoreError(f"{key}: what was received is no record") from None
        arrays = read_arrays(io.BytesIO(files[".npz"])) if ".npz" in files else None
        if record.get("key") != key or record.get("arrays") != (arrays and arrays_digest(arrays)):
            raise StoreError(f"{key}: what was received is another record, or its arrays do not match the digest in it")
        for suffix in sorted(files, key=".json".__eq__):  # the record last, so that an existing record is complete
            write_atomic(self.path(key, suffix), files[suffix])

    def holder(self, key):
        """Return the Store from which a record is read: this one, or one behind it if only that one has the record."""
        return self.behind.holder(key) if self.behind and not self.own(key) and self.behind.has(key) else self

    def load(self, key, outdated=False):
        """Return the validated record of a key (see `check`). Raises StoreError."""
        if (other := self.holder(key)) is not self:
            return other.load(key, outdated)
        if not self.path(key).is_file() and (line := self.lines().get(key)):
            return check(json.loads(line), self.path(key), outdated)
        record = check(read_json(self.path(key)), self.path(key), outdated)
        if record["key"] != key:
            raise StoreError(f"{self.path(key)}: holds the record of {record['key']}")
        return record

    def arrays(self, key):
        """Return {name: array} of a record. Raises StoreError if they do not match the digest in the record."""
        if (other := self.holder(key)) is not self:
            return other.arrays(key)
        path = self.path(key, ".npz")
        if not path.is_file() and (packed := self.packs().get(key)):
            path, arrays = packed, read_arrays(io.BytesIO(read_packed(packed, f"{key}.npz")))
        else:
            arrays = read_arrays(path)
        if arrays_digest(arrays) != self.load(key).get("arrays"):
            raise StoreError(f"{path}: {key}.npz does not match the digest in its record; delete both")
        return arrays

    def sweeps(self):
        """Return the runs that notebooks requested, one Sweep per file in `sweeps/`, sorted by name. Raises StoreError."""
        found = []
        for path in sorted((self.folder / "sweeps").glob("*.json"), key=lambda path: path.stem):
            content = read_json(path)
            runs = content.get("runs") if isinstance(content, dict) else None
            if not isinstance(runs, list) or not all({"key", "baseline", "init"} <= run.keys() for run in runs):
                raise StoreError(f"{path}: not what a notebook asked for; delete it and run the notebook again")
            found.append(Sweep(self, path.stem, content))
        return found

    def status(self, key):
        """Return (state, detail) of a run. The state is done, diverged, running (detail: progress), failed (error message),
        interrupted (step from which it resumes), missing, or broken (error message)."""
        if self.has(key):
            try:
                return self.load(key)["status"], ""
            except StoreError as error:
                return "broken", str(error)
        if self.busy(key):
            return "running", ", ".join(filter(None, self.progress(key).values()))
        if error := read_text(self.path(key, ".error")):
            return "failed", error
        if steps := self._steps(key):
            return "interrupted", f"goes on from step {max(steps)}"
        if self.path(key, ".progress").exists():
            return "interrupted", "starts anew"
        return "missing", ""

    def _steps(self, key):
        """Return the steps of the existing checkpoints."""
        try:
            names = os.listdir(self.checkpoints(key))
        except OSError:  # no checkpoints, or the run has just finished
            return []
        return [int(name.partition("-")[0]) for name in names if re.fullmatch(r"\d+-\w+\.safetensors", name)]

    def progress(self, key):
        """Return the progress of a running run in words, {"step", "loss", "left"}; {} before its first report."""
        try:
            found = read_json(self.path(key, ".progress"))
            loss = "" if found["loss"] is None else f"loss {found['loss']:.4f}"
            left = f"{clock(found['seconds_left'])} left"
            return {"step": f"step {found['step']} of {found['steps']}", "loss": loss, "left": left}
        except (StoreError, KeyError, TypeError, ValueError):
            return {}

    def tidy(self):
        """Remove what killed processes left: temporary files, and checkpoints and progress files of completed runs."""
        for folder in [self.folder, *(path for path in self.folder.glob("*") if path.is_dir())]:
            remove_attempts(folder, age=HOUR)
        for path in self.folder.glob("*.json"):
            if not self.busy(path.stem):
                self.forget(path.stem)

    def forget(self, key):
        """Remove the files of a completed run other than its record, arrays and weights."""
        shutil.rmtree(self.checkpoints(key), ignore_errors=True)
        for path in (self.path(key, ".error"), self.path(key, ".progress"), self._lock(key)):
            path.unlink(missing_ok=True)


def stamp(path):
    """Return (modification time in nanoseconds, size in bytes) of a file, which identify its content in a cache."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=8)
def read_lines(path, stamp):
    """Return {key: line} of a file of records. Raises StoreError for a line that is no record."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            found[json.loads(line)["key"]] = line
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{path}: line {number} is no record; check the file out again") from None
    return found


@functools.lru_cache(maxsize=64)
def read_names(path, stamp):
    """Return the names, without suffix, of the files in a zip file. Raises StoreError."""
    try:
        with zipfile.ZipFile(path) as packed:
            return [name.partition(".")[0] for name in packed.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: not readable as a zip file ({error}); check it out again") from None


def read_packed(path, name):
    """Return the bytes of one file in a zip file. Raises StoreError."""
    try:
        with zipfile.ZipFile(path) as packed:
            return packed.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: {name} cannot be read ({error}); check it out again") from None


def pack(path, files):
    """Write {name: content} as a zip file whose bytes depend on nothing else. Raises StoreError."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in sorted(files):
            packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name])
    write_atomic(path, buffer.getvalue())


def read_text(path):
    """Return the text of a small file, "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def shown(profile):
    """Return the Store that notebooks read: the user's records of a profile and, where one is missing, the committed record.
    With the environment variable BIASNB_FROM_SCRATCH=<profile> committed records are ignored, so that all runs are trained."""
    return Store(profile, behind=None if os.environ.get(FROM_SCRATCH) == profile else Store(profile, "results"))


def load(profile, base="results"):
    """Return all run records of a profile as a data frame (see `frame`). `base` is "results" (committed) or "runs" (the
    user's). Raises StoreError for a broken record and ConfigError for an unknown profile or base."""
    check_profile(profile)
    if base not in ("results", "runs"):
        raise ConfigError(f"base: {base!r} is neither 'results' (the reference) nor 'runs' (yours)")
    store = Store(profile, base)
    return frame([store.load(key) for key in store])
