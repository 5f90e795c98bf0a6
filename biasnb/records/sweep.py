"""A sweep: the runs that one notebook asked for, and their records as a pandas frame; the choice of the probe's penalties."""

import math
import re
from dataclasses import dataclass

from ..config import fields_of
from .files import to_json, write_atomic

# Columns of `Sweep.frame`.
BASELINES = ("baseline_psnr", "baseline_probe", "baseline_val_psnr", "baseline_val_probe", "image_mean_psnr")


@dataclass(frozen=True)
class Sweep:
    """The runs that one notebook asked for, in `<store>/sweeps/<name>.json`: {notebook, profile, data, changed, searches: keys
    of learning-rate searches, runs: [{key, baseline, init, and the key fields of the Config}], figures, tables: names}."""

    store: object  # the Store that holds its records
    name: str
    content: dict

    def save(self):
        """Write what was asked for. Raises StoreError."""
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
        """Keys of all records it needs: of its runs, then of their baselines and of their random inits."""
        return list(dict.fromkeys(run[name] for name in ("key", "baseline", "init") for run in self.runs))

    def missing(self):
        """Keys of the records that it lacks."""
        return [key for key in self.keys if not self.store.has(key)]

    def factors(self):
        """Names of the fields beside the seed that vary between runs of one mixer; ["depth"] if none does. A searched learning
        rate follows from the other fields and is no factor."""
        no_factor = {"key", "baseline", "init", "seed"} | ({"lr"} if self.searches else set())
        levels = {}  # (field, mixer) -> its values
        for run in self.runs:
            for name in run.keys() - no_factor:
                levels.setdefault((name, run["mixer"]), set()).add(run[name])
        varied = {name for (name, _), values in levels.items() if len(values) > 1}
        return [name for name in fields_of() if name in varied] or ["depth"]

    def base(self):
        """Factor -> its level at the point that all else is varied around: the first that was asked for."""
        found = dict.fromkeys(self.factors())
        for run in self.runs:
            found |= {name: run.get(name) for name, level in found.items() if level is None}
        return found

    def frame(self):
        """One row per run that was asked for; a run without a record has the status 'failed' if it left an error, else
        'missing', and no metrics. The baselines' metrics are columns too: baseline_psnr (dB, visible-neighbour mean),
        baseline_probe (accuracy on raw pixels, 0 to 1), both again on the validation split, and image_mean_psnr; those of
        the same network at random init too, see `frame`. Raises StoreError for a broken record."""
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
        """Key of a baseline record -> the columns `BASELINES`, {} if it is missing. Where the record has no PSNR of the
        validation split, that of the test split stands for it."""
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
        """The baseline record of its first run, or None if it is missing."""
        if self.runs and self.store.has(self.runs[0]["baseline"]):
            return self.store.load(self.runs[0]["baseline"])
        return None

    def records(self):
        """The records of the finished runs, in the order they were asked for."""
        found = [self.store.load(run["key"]) for run in self.runs if self.store.has(run["key"])]
        return [record for record in found if record["status"] == "done"]

    def inits(self):
        """Key -> record of its networks at random init, of those that are there."""
        return {key: self.store.load(key) for key in {run["init"] for run in self.runs} if self.store.has(key)}

    def caption(self, data=None):
        """Data (another than the first run's), profile, the settings that all runs share, and what was changed."""
        run, shared = self.runs[0], set(self.runs[0]) - set(self.factors())
        named = {"pretext": "pretext", "patch": "patch", "width": "width", "depth": "depth", "mask_rate": "mask rate"}
        said = {*named, "steps", "seed", "mixer", "dataset", "files", "image_size", "user_defined"}
        words = [
            f"{data or self.content['data']} {run['image_size']}x{run['image_size']}",
            f"profile {self.content['profile']}",
        ]
        words += [f"{label} {run[name]}" for name, label in named.items() if name in shared]
        words += [f"{run['steps']} steps"] if "steps" in shared else []
        words += [f"{name} {value}" for name, value in self.content["changed"].items() if name not in said]
        return ", ".join(words)

    def protocol(self):
        """How the probe and k-NN of its runs were measured, in words; "" without a finished run."""
        done = (self.store.load(run["key"]) for run in self.runs if self.store.has(run["key"]))
        return next((protocol(record["probe"]) for record in done if record["status"] == "done"), "")


# ---- the probe's penalties and layer --------------------------------------------------------------------------------

TIE = 0.005 + 1e-9  # accuracies that differ by no more are equal: five of a thousand images


@dataclass(frozen=True)
class Choice:
    """What the runs of one arm are read at: a place among the penalties for every layer, and the best layer."""

    penalties: tuple
    layer: int

    def by_layer(self, probe, split="test"):
        """The accuracies of a probe's table at these penalties, 0 to 1, layers 0 to L."""
        return [row[place] for row, place in zip(probe[split], self.penalties, strict=True)]

    def mean(self, probe, split="test"):
        """The mean accuracy over layers 1 to L; that of the test split is what contrasts compare."""
        accuracies = self.by_layer(probe, split)[1:]
        return sum(accuracies) / len(accuracies)

    def best(self, probe, split="test"):
        """The accuracy at the best layer."""
        return self.by_layer(probe, split)[self.layer]

    def columns(self, probe, prefix=""):
        """The columns that `frame` has of a probe's table."""
        found = {}
        for name, split in (("", "test"), ("val_", "val")):
            found[f"{prefix}{name}probe"] = self.mean(probe, split)
            found[f"{prefix}{name}probe_best"] = self.best(probe, split)
        return found


def choose(probes):
    """The Choice for probe tables of one arm: by validation accuracy, averaged over them, the best penalty of every layer and
    the best layer. Of those within TIE of the best the strongest penalty and the earliest layer are taken, as weak penalties
    are as good as none."""
    penalties, accuracies = [], []
    for rows in zip(*(probe["val"] for probe in probes), strict=True):
        means = [sum(values) / len(values) for values in zip(*rows, strict=True)]
        accuracies.append(max(means))
        penalties.append(max(place for place, value in enumerate(means) if value >= max(means) - TIE))
    best = max(accuracies)
    return Choice(tuple(penalties), next(layer for layer, value in enumerate(accuracies) if value >= best - TIE))


def choices(records, inits):
    """Key of a run that ended -> (its Choice, None if it diverged; that of its random init, None where the record is missing).
    An arm is the runs that are equal in everything but the seed; `inits` has the records at random init by key."""
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


PROBED = re.compile(r"\bprobe|k-NN")  # in tables that show such accuracies


def protocol(probe):
    """How the accuracies of a probe's table were measured, in words."""
    weakest, strongest = min(probe["penalties"]), max(probe["penalties"])
    return (f"Probe: multinomial logistic regression on frozen features averaged over tokens; in each layer the best of "
            f"{len(probe['penalties'])} penalties from {weakest:g} to {strongest:g} by validation accuracy over the seeds; "
            f"mean of the test accuracies of layers 1 to L. k-NN: k = {probe['neighbours']}, cosine similarity, votes weighted "
            f"by exp(similarity / {probe['temperature']:g}); mean over layers 1 to L.")  # fmt: skip


def pixel_accuracy(baseline, split="test"):
    """The accuracy of the probe on raw pixels, 0 to 1, at the penalty of its own validation accuracy."""
    return choose([baseline["pixel_probe"]]).best(baseline["pixel_probe"], split)


# ---- frames ---------------------------------------------------------------------------------------------------------


def frame(records):
    """Records of runs as a pandas frame: config fields, then metrics. PSNR in dB; bits_per_pixel of networks that predict
    palette indices. The columns of the probe are test accuracies, 0 to 1, at the penalties and the layer that `choose` takes
    for each arm: `probe` is the mean over layers 1 to L, `probe_best` the best layer, `probe_layer`; `init_probe` and
    `init_probe_best` the same of the records at random init, where they are among the records; `val_probe`,
    `init_val_probe` and so on are validation accuracies; `knn` the mean of k-nearest neighbours over layers 1 to L."""
    import pandas as pd  # takes a while, and nothing that trains needs it

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
    """The columns of the probe of a run; none of one that diverged."""
    choice, at_init = chosen[record["key"]]
    if not choice:
        return {}
    row = choice.columns(record["probe"]) | {"probe_layer": choice.layer}
    if at_init:
        row |= at_init.columns(inits[record["init"]]["probe"], "init_")
    return row | {"knn": knn(record["probe"])}


def knn(probe):
    """The mean accuracy of k-nearest neighbours over layers 1 to L."""
    return sum(probe["knn"][1:]) / len(probe["knn"][1:])


def with_columns(table, *names):
    """The frame with these columns, empty where it lacks them."""
    missing = [name for name in names if name not in table.columns]
    return table.reindex(columns=[*table.columns, *missing])
