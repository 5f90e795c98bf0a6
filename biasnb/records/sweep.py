"""A sweep: the runs that a notebook requests, their records as a data frame, and the choice of the probe's penalties."""

import math
import re
from dataclasses import dataclass

from ..config import fields_of
from .files import to_json, write_atomic

BASELINES = ("baseline_psnr", "baseline_probe", "baseline_val_psnr", "baseline_val_probe", "image_mean_psnr")


@dataclass(frozen=True)
class Sweep:
    """The runs that a notebook requests, saved in `<store>/sweeps/<name>.json`: {notebook, profile, data, changed, searches:
    keys of learning-rate searches, runs: [{key, baseline, init, and the key fields of the Config}], figures, tables: names}."""

    store: object  # the Store that holds its records
    name: str
    content: dict

    def save(self):
        """Write the file of the sweep. Raises StoreError."""
        write_atomic(self.store.folder / "sweeps" / f"{self.name}.json", to_json(self.content))

    @property
    def runs(self):
        return self.content["runs"]

    @property
    def searches(self):
        """The keys of the searches that determined the learning rates."""
        return self.content.get("searches", [])

    @property
    def keys(self):
        """The keys of all records of the sweep: first of the runs, then of their baselines and random initialisations."""
        return list(dict.fromkeys(run[name] for name in ("key", "baseline", "init") for run in self.runs))

    def missing(self):
        """Return the keys of the records that are missing."""
        return [key for key in self.keys if not self.store.has(key)]

    def factors(self):
        """Return the names of the fields, other than the seed, that vary between runs of one mixer; ["depth"] if none does. A
        learning rate found by search is not a factor, because it follows from the other fields."""
        no_factor = {"key", "baseline", "init", "seed"} | ({"lr"} if self.searches else set())
        levels = {}  # (field, mixer) -> its values
        for run in self.runs:
            for name in run.keys() - no_factor:
                levels.setdefault((name, run["mixer"]), set()).add(run[name])
        varied = {name for (name, _), values in levels.items() if len(values) > 1}
        return [name for name in fields_of() if name in varied] or ["depth"]

    def base(self):
        """Return {factor: level} of the reference configuration: the first level of each factor that was requested."""
        found = dict.fromkeys(self.factors())
        for run in self.runs:
            found |= {name: run.get(name) for name, level in found.items() if level is None}
        return found

    def frame(self):
        """Return a data frame with one row per requested run. A run without a record has the status 'failed' if it left an
        error message, else 'missing', and no metrics. Columns added to those of `frame`: baseline_psnr (dB, mean of visible
        neighbours) and baseline_probe (accuracy on raw pixels, 0 to 1), both also on the validation split, and
        image_mean_psnr (dB). Raises StoreError for a broken record."""
        import pandas as pd

        asked = pd.DataFrame(self.runs)
        baselines = self._baselines()
        for name in BASELINES:
            asked[name] = [baselines[run["baseline"]].get(name, math.nan) for run in self.runs]
        saved = {key for key in asked["key"] if self.store.has(key)}
        failed = {key for key in asked["key"] if key not in saved and self.store.status(key)[0] == "failed"}
        asked["status"] = ["failed" if key in failed else "missing" for key in asked["key"]]
        needed = [*saved, *(key for key in set(asked["init"]) if self.store.has(key))]
        found = frame([self.store.load(key) for key in needed])
        if found.empty:
            return asked
        rows = asked[["key"]].merge(found, on="key", how="left", validate="one_to_one")
        return rows.assign(status=rows["status"].fillna(asked["status"]), **asked.drop(columns="status"))

    def _baselines(self):
        """Return {key of a baseline record: its columns BASELINES}, with {} for a missing record. A record without a
        validation PSNR gets its test PSNR in that column."""
        found = {}
        for key in {run["baseline"] for run in self.runs}:
            found[key] = {}
            if self.store.has(key):
                record = self.store.load(key)
                psnr, val_psnr = record["psnr"], record.get("psnr_val", record["psnr"])
                accuracies = {name: pixel_accuracy(record, split) for name, split in (("", "test"), ("val_", "val"))}
                found[key] = {"baseline_psnr": psnr["neighbour_mean"], "baseline_val_psnr": val_psnr["neighbour_mean"],
                              "baseline_probe": accuracies[""], "baseline_val_probe": accuracies["val_"],
                              "image_mean_psnr": psnr["image_mean"]}  # fmt: skip
        return found

    def baseline(self):
        """Return the baseline record of the first run, or None if it is missing."""
        if self.runs and self.store.has(self.runs[0]["baseline"]):
            return self.store.load(self.runs[0]["baseline"])
        return None

    def records(self):
        """Return the records of the finished runs in the order of the requests."""
        found = [self.store.load(run["key"]) for run in self.runs if self.store.has(run["key"])]
        return [record for record in found if record["status"] == "done"]

    def inits(self):
        """Return {key: record} of the available evaluations at random initialisation."""
        return {key: self.store.load(key) for key in {run["init"] for run in self.runs} if self.store.has(key)}

    def caption(self, data=None):
        """Return one line that names the data (`data` replaces the name), the profile, shared settings and changed settings."""
        run, shared = self.runs[0], set(self.runs[0]) - set(self.factors())
        named = {"pretext": "pretext", "patch": "patch", "width": "width", "depth": "depth", "mask_rate": "mask rate"}
        said = {*named, "steps", "seed", "mixer", "dataset", "files", "image_size", "user_defined"}
        words = [
            f"{data or self.content['data']} {run['image_size']}×{run['image_size']}",
            f"profile {self.content['profile']}",
        ]
        if "files" in self.content["changed"]:  # other images of the same names are another sweep
            words[0] += f" (images {self.content['changed']['files'][:6]})"
        words += [f"{label} {run[name]}" for name, label in named.items() if name in shared]
        words += [f"{run['steps']} steps"] if "steps" in shared else []
        words += [f"{name} {value}" for name, value in self.content["changed"].items() if name not in said]
        return ", ".join(words)

    def protocol(self):
        """Return a description of the probe and k-NN protocol of the runs; "" without a finished run."""
        done = (self.store.load(run["key"]) for run in self.runs if self.store.has(run["key"]))
        return next((protocol(record["probe"]) for record in done if record["status"] == "done"), "")


# ---- the probe's penalties and layer --------------------------------------------------------------------------------

TIE = 0.005 + 1e-9  # accuracies that differ by at most this, five of a thousand images, count as equal


@dataclass(frozen=True)
class Choice:
    """The probe setting at which the runs of an arm are reported: a penalty (by its index) for every layer, the best layer."""

    penalties: tuple
    layer: int

    def by_layer(self, probe, split="test"):
        """Return the accuracies (0 to 1) of layers 0 to L at these penalties."""
        return [row[place] for row, place in zip(probe[split], self.penalties, strict=True)]

    def mean(self, probe, split="test"):
        """Return the mean accuracy over layers 1 to L. Contrasts compare it on the test split."""
        accuracies = self.by_layer(probe, split)[1:]
        return sum(accuracies) / len(accuracies)

    def best(self, probe, split="test"):
        return self.by_layer(probe, split)[self.layer]

    def columns(self, probe, prefix=""):
        """Return the columns of `frame` that come from the table of a probe."""
        found = {}
        for name, split in (("", "test"), ("val_", "val")):
            found[f"{prefix}{name}probe"] = self.mean(probe, split)
            found[f"{prefix}{name}probe_best"] = self.best(probe, split)
        return found


def choose(probes):
    """Return the Choice for the probe tables of one arm: the best penalty of every layer and the best layer by validation
    accuracy, averaged over the tables. Among those within TIE of the best, the strongest penalty and the earliest layer are
    taken, because weak penalties have almost no effect."""
    penalties, accuracies = [], []
    for rows in zip(*(probe["val"] for probe in probes), strict=True):
        means = [sum(values) / len(values) for values in zip(*rows, strict=True)]
        accuracies.append(max(means))
        penalties.append(max(place for place, value in enumerate(means) if value >= max(means) - TIE))
    best = max(accuracies)
    return Choice(tuple(penalties), next(layer for layer, value in enumerate(accuracies) if value >= best - TIE))


def choices(records, inits):
    """Return {key of a run: (Choice, None if the run diverged; Choice at random initialisation, None if that record is
    missing)}. An arm is the set of runs that differ only in the seed. `inits` is {key: record} at random initialisation."""
    arms = {}
    for record in records:
        settings = {name: value for name, value in record["config"].items() if name != "seed"}
        arms.setdefault((record["data"]["fingerprint"], str(sorted(settings.items()))), []).append(record)
    found = {}
    for arm in arms.values():
        starts = {record["init"]: inits[record["init"]]["probe"] for record in arm if record["init"] in inits}
        finished = [record["probe"] for record in arm if record["status"] == "done"]
        chosen = choose(finished) if finished else None
        at_init = choose(list(starts.values())) if starts else None
        for record in arm:
            done, started = record["status"] == "done", record["init"] in starts
            found[record["key"]] = (chosen if done else None, at_init if started else None)
    return found


PROBED = re.compile(r"\bprobe|k-NN")  # occurs in tables that show probe accuracies


def protocol(probe):
    """Return a description of how the accuracies in the table of a probe were measured."""
    weakest, strongest = min(probe["penalties"]), max(probe["penalties"])
    return (f"Probe: multinomial logistic regression on frozen features averaged over tokens; in each layer the best of "
            f"{len(probe['penalties'])} penalties from {weakest:g} to {strongest:g} by validation accuracy over the seeds; "
            f"mean of the test accuracies of layers 1 to L. k-NN: k = {probe['neighbours']}, cosine similarity, votes weighted "
            f"by exp(similarity / {probe['temperature']:g}); mean over layers 1 to L.")  # fmt: skip


def pixel_accuracy(baseline, split="test"):
    """Return the accuracy (0 to 1) of the probe on raw pixels, with the penalty chosen by its own validation accuracy."""
    return choose([baseline["pixel_probe"]]).best(baseline["pixel_probe"], split)


# ---- frames ---------------------------------------------------------------------------------------------------------


def frame(records):
    """Return run records as a data frame: Config fields, then metrics. PSNR is in dB; bits_per_pixel exists for networks that
    predict palette indices. Probe columns are test accuracies (0 to 1) at the penalties and the layer that `choose` selects per
    arm: `probe` is the mean over layers 1 to L, `probe_best` the accuracy at the best layer, `probe_layer`. `init_probe` and
    `init_probe_best` are the same at random initialisation, if those records are given. `val_probe`, `init_val_probe` etc. are
    validation accuracies. `knn` is the mean accuracy of k-nearest neighbours over layers 1 to L."""
    import pandas as pd  # slow to import, and training does not need it

    runs = [record for record in records if record["kind"] == "run"]
    inits = {record["key"]: record for record in records if record["kind"] == "init"}
    chosen = choices(runs, inits)
    return pd.DataFrame([_row(record) | _probes(record, inits, chosen) for record in runs])


def _row(record):
    data = {"key": record["key"], "data": record["data"]["name"], "fingerprint": record["data"]["fingerprint"]}
    row = {**data, **record["config"], "status": record["status"]}
    if record["status"] != "done":
        return row
    row |= {name: record[name] for name in ("flop_per_image", "flop_per_image_dense", "images_per_second", "wall_seconds")}
    row |= {"loss": record["loss"]["test"], "val_loss": record["loss"]["val"], "psnr": record["psnr"]["test"]}
    row["val_psnr"] = record["psnr"]["val"]
    if record["config"].get("target") == "palette":
        row["bits_per_pixel"] = record["loss"]["test"] / math.log(2)
    row |= {"accuracy": record["accuracy"]["test"], "context_coverage": record["context_coverage"]}
    return row | {f"parameters_{part}": count for part, count in record["parameters"].items()}


def _probes(record, inits, chosen):
    """Return the probe columns of a run, {} if it diverged."""
    choice, at_init = chosen[record["key"]]
    if not choice:
        return {}
    row = choice.columns(record["probe"]) | {"probe_layer": choice.layer}
    if at_init:
        row |= at_init.columns(inits[record["init"]]["probe"], "init_")
    return row | {"knn": knn(record["probe"])}


def knn(probe):
    """Return the mean accuracy of k-nearest neighbours over layers 1 to L."""
    return sum(probe["knn"][1:]) / len(probe["knn"][1:])


def with_columns(table, *names):
    """Return the frame with these columns; columns that it lacks are added empty."""
    missing = [name for name in names if name not in table.columns]
    return table.reindex(columns=[*table.columns, *missing])
