"""Records: one JSON file per run with small arrays beside it. Written atomically, validated, read without torch."""

import contextlib
import math
import re
import shutil
from dataclasses import dataclass

from ..config import ConfigError, check_profile, fields_of
from . import places
from .files import StoreError, arrays_digest, read_arrays, read_json, sweep, to_json, write_arrays, write_atomic
from .locks import Lock, place
from .progress import clock

SCHEMA = 2
REQUIRED = {
    "run": ("config", "status", "steps", "data", "environment", "history"),
    "search": ("config", "status", "rates", "chosen"),
    "baseline": ("config", "status", "data", "environment", "psnr", "pixel_probe"),
}
METRICS = ("parameters", "flop_per_image", "context_coverage", "images_per_second", "wall_seconds", "loss", "psnr", "accuracy",
           "probe", "init_probe", "measures", "init_measures")  # fmt: skip


def check(record, where="record"):
    """Return the record if it is complete. Raises StoreError naming what is missing or wrong."""
    if not isinstance(record, dict) or record.get("kind") not in REQUIRED:
        raise StoreError(f"{where}: not a record of this suite")
    if record.get("schema") != SCHEMA:
        raise StoreError(f"{where}: schema {record.get('schema')!r}, this version reads {SCHEMA}; delete it to make it anew")
    needed = REQUIRED[record["kind"]] + ("key",)
    if record["kind"] == "run" and record.get("status") == "done":
        needed += METRICS
    missing = [name for name in needed if name not in record]
    if missing:
        raise StoreError(f"{where}: lacks {', '.join(missing)}; delete it to make it anew")
    if record["kind"] == "run" and record["status"] == "done":
        for name in ("loss", "psnr", "accuracy", "probe", "init_probe"):
            score = record[name].get("chosen", record[name]) if isinstance(record[name], dict) else None
            if not isinstance(score, dict) or not isinstance(score.get("test", ""), int | float | None):
                raise StoreError(f"{where}: {name} holds no number for the test split; delete it to make it anew")
    if record["status"] not in ("done", "diverged"):
        raise StoreError(f"{where}: status {record['status']!r} is neither done nor diverged")
    return record


class Store:
    """The records of one profile in one folder: `runs/<profile>` (yours) or `results/<profile>` (reference)."""

    def __init__(self, profile, base="runs"):
        self.profile, self.base = profile, base
        self.folder = (places.results() if base == "results" else places.root() / base) / profile

    def path(self, key, suffix=".json"):
        """Where a record, or what belongs to it, is kept. Raises StoreError for a key that is none."""
        if not re.fullmatch(r"([a-z]+-)?[\w-]+", key, re.ASCII):
            raise StoreError(f"key: {key!r} is not the key of a record; `biasnb status` lists them")
        return self.folder / f"{key}{suffix}"

    def lock(self, name):
        return Lock(self.folder / "locks", name)

    def checkpoints(self, key):
        """The folder of the states of a run."""
        return self.folder / "checkpoints" / key

    def has(self, key):
        return self.path(key).is_file()

    def save(self, record, arrays=None):
        """Arrays first, then the record that names their digest: a record that exists is complete."""
        record = {"schema": SCHEMA, "status": "done", **record}
        if arrays:
            write_arrays(self.path(record["key"], ".npz"), arrays)
            record["arrays"] = arrays_digest(arrays)
        write_atomic(self.path(record["key"]), to_json(check(record)))
        self.path(record["key"], ".error").unlink(missing_ok=True)
        return record

    def load(self, key):
        """The validated record of a run. Raises StoreError."""
        record = check(read_json(self.path(key)), self.path(key))
        if record["key"] != key:
            raise StoreError(f"{self.path(key)}: holds the record of {record['key']}")
        return record

    def arrays(self, key):
        """The arrays beside a record, checked against its digest. Raises StoreError."""
        arrays = read_arrays(self.path(key, ".npz"))
        if arrays_digest(arrays) != self.load(key).get("arrays"):
            raise StoreError(f"{self.path(key, '.npz')}: does not match the digest in its record; delete both")
        return arrays

    def sweeps(self):
        """What notebooks asked for, one Sweep per file in `sweeps/`, in the order of their names."""
        found = []
        for path in sorted((self.folder / "sweeps").glob("*.json"), key=lambda path: path.stem):
            content = read_json(path)
            if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
                raise StoreError(f"{path}: not what a notebook asked for; delete it and run the notebook again")
            found.append(Sweep(self, path.stem, content))
        return found

    def status(self, key):
        """(state, detail): done, diverged, running, failed, preempted (by a signal or the time limit), killed or missing."""
        if self.has(key):
            try:
                return self.load(key)["status"], ""
            except StoreError as error:
                return "broken", str(error)
        owner, killed = self.lock(key).state()
        if owner:
            return "running", ", ".join(filter(None, [f"on {place(owner)}", *self.progress(key).values()]))
        steps = [int(path.name.partition("-")[0]) for path in self.checkpoints(key).glob("[0-9]*-*.safetensors")]
        at = f"at step {max(steps)}, goes on from there" if steps else "before a first state"
        why = read_text(self.path(key, ".error"))
        if killed:
            return "killed", at
        if why.startswith(("Stopped", "KeyboardInterrupt")):
            return "preempted", at
        if steps and not why:
            return "killed", at
        return ("failed", why) if why else ("missing", "")

    def progress(self, key):
        """How far a run that is being trained is, in words: {"step", "loss", "left"}; {} before its first second."""
        try:
            found = read_json(self.path(key, ".progress"))
            loss = "" if found["loss"] is None else f"loss {found['loss']:.4f}"
            left = f"{clock(found['seconds_left'])} left"
            return {"step": f"step {found['step']} of {found['steps']}", "loss": loss, "left": left}
        except (StoreError, KeyError, TypeError, ValueError):
            return {}

    @contextlib.contextmanager
    def claim(self, key):
        """Hold a run for this process, so that no other trains it too; yields its Lock. Raises Held naming the owner."""
        with self.lock(key) as lock:
            sweep(self.folder, key)
            yield lock
        if self.has(key):
            lock.remove()

    def tidy(self):
        """Remove what processes that were killed left beside records that are complete, and torn attempts at files."""
        for folder in [self.folder, *(path for path in self.folder.glob("*") if path.is_dir())]:
            sweep(folder)
        complete = {path.stem for path in self.folder.glob("*.json")}
        for name in ("checkpoints", "locks"):
            for path in (self.folder / name).glob("*"):
                if path.name in complete and not self.lock(path.name).owner():
                    shutil.rmtree(path, ignore_errors=True)


def read_text(path):
    """The text of a small file; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Sweep:
    """The runs that one notebook asked for: {experiment, profile, data, overrides, runs: [{key, baseline, fields}]}."""

    store: Store
    name: str
    content: dict

    def save(self):
        write_atomic(self.store.folder / "sweeps" / f"{self.name}.json", to_json(self.content))

    @property
    def runs(self):
        return self.content["runs"]

    @property
    def searches(self):
        """Keys of the searches that gave its learning rates."""
        return self.content.get("searches", [])

    @property
    def keys(self):
        """Keys of all records it needs, the baselines' too."""
        return list(dict.fromkeys([run["key"] for run in self.runs] + [run["baseline"] for run in self.runs]))

    def missing(self):
        return [key for key in self.keys if not self.store.has(key)]

    def factors(self):
        """The fields beside the seed that vary between runs of one mixer; the depth if none does. A searched rate follows from
        the others and is none."""
        values, follows = {}, {"key", "baseline", "seed", *(["lr"] if self.searches else [])}
        for run in self.runs:
            for name, value in run.items():
                values.setdefault(name, {}).setdefault(run["mixer"], set()).add(value)
        varied = [name for name, seen in values.items() if name not in follows
                  and any(len(levels) > 1 for levels in seen.values())]  # fmt: skip
        return [name for name in fields_of() if name in varied] or ["depth"]

    def base(self):
        """Factor -> its level at the point that all else is varied around: the first that was asked for."""
        return {name: next((run[name] for run in self.runs if run.get(name) is not None), None) for name in self.factors()}

    def frame(self):
        """One row per run that was asked for; a run without a record has the status 'failed' if it left an error, else
        'missing', and no metrics. The baselines' metrics are columns too: baseline_psnr (visible-neighbour mean) and
        baseline_probe (raw pixels)."""
        import pandas as pd

        found = frame([self.store.load(run["key"]) for run in self.runs if self.store.has(run["key"])])
        asked = pd.DataFrame(self.runs)
        baselines = {key: self.store.load(key) for key in set(asked.get("baseline", ())) if self.store.has(key)}
        values = {
            key: (baseline["psnr"]["neighbour_mean"], baseline["pixel_probe"]["test"]) for key, baseline in baselines.items()
        }
        for i, name in enumerate(("baseline_psnr", "baseline_probe")):
            asked[name] = [values.get(key, (float("nan"),) * 2)[i] for key in asked.get("baseline", ())]
        failed = {key for key in self.missing() if self.store.status(key)[0] == "failed"}  # a record is read once, above
        asked["status"] = ["failed" if run["key"] in failed else "missing" for run in self.runs]
        if found.empty:
            return asked
        rows = asked[["key"]].merge(found, on="key", how="left", validate="one_to_one")
        return rows.assign(status=rows["status"].fillna(asked["status"]), **asked.drop(columns="status"))

    def baseline(self):
        """The baseline record of its first run, or None if it is missing."""
        return self.store.load(self.runs[0]["baseline"]) if self.runs and self.store.has(self.runs[0]["baseline"]) else None

    def records(self):
        """The records of the finished runs, in the order they were asked for."""
        found = [self.store.load(run["key"]) for run in self.runs if self.store.has(run["key"])]
        return [record for record in found if record["status"] == "done"]

    def caption(self, data=None):
        """Data (another than the first run's), profile, the settings that all runs share, and what was changed."""
        run, shared = self.runs[0], set(self.runs[0]) - set(self.factors())
        changed = {k: v for k, v in self.content["changed"].items() if k not in ("dataset", "files", "image_size", "own")}
        words = [
            f"{data or self.content['data']} {run['image_size']}x{run['image_size']}",
            f"profile {self.content['profile']}",
        ]
        named = {"pretext": "pretext", "patch": "patch", "width": "width", "depth": "depth", "mask_rate": "mask rate"}
        words += [f"{named[name]} {run[name]}" for name in named if name in shared]
        words += [f"{run['steps']} steps"] if "steps" in shared else []
        return ", ".join(words + [f"{k} {v}" for k, v in changed.items() if k not in (*named, "steps", "seed", "mixer")])


def load(profile, base="results"):
    """All run records of a profile as a pandas frame: `base` is "results" (reference) or "runs" (yours). See `frame`.

    Raises StoreError for a broken record, ConfigError for an unknown profile or base."""
    check_profile(profile)
    if base not in ("results", "runs"):
        raise ConfigError(f"base: {base!r} is neither 'results' (the reference) nor 'runs' (yours)")
    store = Store(profile, base)
    return frame([store.load(path.stem) for path in sorted(store.folder.glob("*.json"))])


def frame(records):
    """Runs as a pandas frame: config fields, then metrics. Probe columns are test accuracies at the chosen layer."""
    import pandas as pd  # takes a while, and nothing that trains needs it

    rows = []
    for r in records:
        if r["kind"] != "run":
            continue
        row = {"key": r["key"], "data": r["data"]["name"], "fingerprint": r["data"]["fingerprint"], **r["config"]}
        row |= {"status": r["status"]}
        if r["status"] == "done":
            row |= {name: r[name] for name in ("flop_per_image", "images_per_second", "wall_seconds")}
            row |= {"loss": r["loss"]["test"], "val_loss": r["loss"]["val"], "psnr": r["psnr"]["test"]}
            if r["config"].get("target") == "palette":
                row["bits_per_pixel"] = r["loss"]["test"] / math.log(2)
            row |= {"accuracy": r["accuracy"]["test"], "context_coverage": r["context_coverage"]}
            row |= {f"parameters_{part}": n for part, n in r["parameters"].items()}
            row |= {"probe": r["probe"]["chosen"]["test"], "probe_layer": r["probe"]["chosen"]["layer"]}
            row |= {"init_probe": r["init_probe"]["chosen"]["test"], "knn": r["probe"]["chosen"]["knn"]}
        rows.append(row)
    return pd.DataFrame(rows)


def with_columns(table, *names):
    """The frame with these columns, empty where it lacks them."""
    return table.reindex(columns=[*table.columns, *[name for name in names if name not in table.columns]])
