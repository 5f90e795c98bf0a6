"""The committed reference: publication of records and networks, and comparison of measurements with them."""

import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

from tabulate import tabulate

from ..config import PROFILES, Config, ConfigError, describe
from ..operators import CUBE, TRIO
from ..records import places
from ..records.files import StoreError, array_bytes, arrays_digest, read_json, to_json, write_atomic
from ..records.store import LINES, PACKS, Store, pack, read_packed, shown
from ..records.sweep import choose

# ---- comparison -----------------------------------------------------------------------------------------------------


def of_test(name):
    """Return a function that reads a score of the test split from a record."""

    def score(record, reference):
        return record[name]["test"]

    return score


def probe(record, reference):
    """Return the mean probe accuracy of layers 1 to L at the penalties chosen by the validation accuracies of the reference.
    The penalties are the same for both records, so that a different choice between near ties does not count as a difference."""
    return choose([reference["probe"]]).mean(record["probe"])


def knn(record, reference):
    """Return the k-NN accuracy, averaged over layers 1 to L."""
    return sum(record["probe"]["knn"][1:]) / len(record["probe"]["knn"][1:])


@dataclass(frozen=True)
class Metric:
    """A number in records, in the unit of tables, and the allowed differences between two measurements of it."""

    name: str
    read: Callable  # (record, reference) -> the number, or None if the record has none
    factor: int  # unit of tables / unit of records
    decimals: int  # printed in tables
    evaluated: float | None  # allowed difference if the same weights are evaluated again; None: not measured again
    trained: float | None  # allowed difference if the run is trained on another machine; None: not compared
    kind: str = "run"  # kind of record

    def of(self, record, reference):
        """Return the value in the unit of tables, or None if the record has none."""
        found = self.read(record, reference)
        return None if found is None else self.factor * found


# If weights are evaluated again, a number may change by half a unit of its last decimal, and the probe by more, because of
# images on the border between two classes.
METRICS = (
    Metric("PSNR, dB", of_test("psnr"), 1, 2, 0.005, 0.1),
    Metric("loss", of_test("loss"), 1, 3, 0.0005, 0.01),
    Metric("accuracy, %", of_test("accuracy"), 100, 1, 0.05, None),
    Metric("probe, %", probe, 100, 1, 0.5, 2.0),
    Metric("k-NN, %", knn, 100, 1, 0.05, None),
    Metric("probe at init, %", probe, 100, 1, None, 2.0, "init"),
)
COLUMNS = ("network", "metric", "recorded", "measured", "allowed", "agrees")
SCORES = ("loss", "psnr", "accuracy", "probe")  # parts of a record that depend on the weights


def compare(record, measured, how="evaluated"):
    """Return rows (metric, recorded, measured, allowed, agrees) for the data and every metric of a record, as printed in
    tables. `how` says whether its weights were "evaluated" again or its run was "trained" again."""
    pixels, again = record["data"]["fingerprint"], measured["data"]["fingerprint"]
    rows = [("data", pixels, again, "equal", pixels == again)]
    for metric in METRICS:
        allowed = getattr(metric, how)
        if metric.kind == "run" and allowed is not None and metric.of(record, record) is not None:
            one, other = metric.of(record, record), metric.of(measured, record)
            printed = [f"{value:.{metric.decimals}f}" for value in (one, other)]
            rows.append((metric.name, *printed, f"± {allowed:g}", abs(one - other) <= allowed))
    return rows


def agreement(profile):
    """Compare the user's runs with results/<profile>, per metric over the runs that both have. Returns lines of Markdown."""
    local, committed = Store(profile), Store(profile, "results")
    shared = [key for key in committed if local.has(key)]
    keys = [key for key in shared if "-" not in key]
    if not keys:
        return [f"No committed reference for these runs in results/{profile}; nothing to compare."]
    broken = [key for key in keys if "broken" in (local.status(key)[0], committed.status(key)[0])]
    pairs = [(local.load(key), committed.load(key)) for key in keys if key not in broken]
    other_end = [own["key"] for own, reference in pairs if own["status"] != reference["status"]]
    pairs = [(own, reference) for own, reference in pairs if own["status"] == reference["status"] == "done"]
    inits = [key for key in shared if key.startswith("init-")]
    broken += [key for key in inits if "broken" in (local.status(key)[0], committed.status(key)[0])]
    compared = {"run": pairs, "init": [(local.load(key), committed.load(key)) for key in inits if key not in broken]}
    lines = [f"Against the reference in results/{profile}, {len(keys)} runs:", ""]
    lines += ["| metric | allowed difference | median | largest | all within |", "|---|---|---|---|---|"]
    for metric in METRICS:
        values = [(metric.of(own, reference), metric.of(reference, reference)) for own, reference in compared[metric.kind]]
        apart = sorted(abs(own - reference) for own, reference in values if None not in (own, reference))
        if metric.trained is not None and apart:
            within = sum(difference <= metric.trained for difference in apart)
            verdict = "yes" if within == len(apart) else f"NO, {within} of {len(apart)}"
            middle = apart[len(apart) // 2]
            lines.append(f"| {metric.name} | ± {metric.trained:g} | {middle:.2g} | {apart[-1]:.2g} | {verdict} |")
    if broken:
        lines += ["", f"Broken records, see `biasnb status`: {', '.join(broken)}"]
    if other_end:
        lines += ["", f"Diverged here or in the reference, not in both: {', '.join(other_end)}"]
    if moved := sum(own["data"]["fingerprint"] != reference["data"]["fingerprint"] for own, reference in pairs):
        lines += ["", f"{moved} runs read other pixels than the reference: an image library decodes or resizes differently."]
    return lines


# ---- records --------------------------------------------------------------------------------------------------------


def published(*asked):
    """Return the profiles that have committed records. Raises StoreError if a profile in `asked` (None is ignored) has none."""
    found = [profile for profile in PROFILES if (places.results() / profile).is_dir()]
    for profile in sorted(set(asked) - {None, *found}):
        raise StoreError(f"profile: {profile!r} has no records in results/; published are {found}")
    return found


def newest(profile):
    """Return the store of notebooks if the user ran any with the profile, else the committed reference."""
    store = shown(profile)
    return store if store.sweeps() else Store(profile, "results")


def reference(profile):
    """Return the store to publish to. Raises StoreError if it is inside an installed package."""
    store = Store(profile, "results")
    if places.CHECKOUT is None and store.folder.is_relative_to(places.PACKAGE):
        what = "publish from a clone of the repository, or make a folder results here first"
        raise StoreError(f"{places.results()}: belongs to the installed package; {what}")
    return store


def chosen_sweeps(store, names=()):
    """Return (the sweeps with these names, by default all with unchanged settings; names of the others). Raises StoreError for
    an unknown name, and if there is no sweep."""
    known = {sweep.name: sweep for sweep in store.sweeps() if sweep.keys}
    for name in names:
        if name not in known:
            raise StoreError(f"{name}: no such sweep in {store.folder}; there are {', '.join(known) or 'none'}")
    chosen = [sweep for sweep in known.values() if (sweep.name in names if names else not sweep.content["changed"])]
    if not chosen:
        raise StoreError(f"{store.folder}: holds no sweep to publish; run `biasnb reproduce --profile {store.profile}` first")
    return chosen, sorted(set(known) - {sweep.name for sweep in chosen})


KEPT = ("correct", "receptive_field", "groups")  # arrays published for every record; only first seeds also have images
DIGITS = 6  # significant digits of published histories


def publish(profile, names=()):
    """Copy the records of `chosen_sweeps` from runs/<profile> to results/<profile>, except those that exist only there. All
    records are read and checked before anything is written, and earlier published records are kept. Raises StoreError if a
    record is missing or broken. Histories are rounded, and `correct` is 0 for the embedding, so that the folder stays small.

    Returns (number of records, sweeps left out, number of records made from uncommitted code)."""
    local, committed = shown(profile), reference(profile)
    chosen, left_out = chosen_sweeps(local, names)
    records, packs, packed = {}, {}, committed.packs()
    for sweep in chosen:
        if missing := sweep.missing():
            raise StoreError(f"{sweep.name}: {len(missing)} records are missing, first {missing[0]}; finish the run first")
        first = sweep.runs[0]["seed"]
        for key in (*sweep.keys, *sweep.searches):
            if key in records or not local.own(key):
                continue
            record = local.load(key)
            if "history" in record:
                record["history"] = rounded(record["history"])
            records[key] = record
            if "arrays" in record:
                arrays = local.arrays(key)
                if record["config"].get("seed", first) != first:
                    arrays = {name: array for name, array in arrays.items() if name in KEPT}
                if len(arrays.get("correct", ())) > 1:
                    arrays["correct"][0] = 0  # of the embedding, which no claim reads
                records[key] = record | {"arrays": arrays_digest(arrays)}
                pack_of_key = packed.get(key, committed.folder / PACKS / f"{sweep.name}.zip")
                packs.setdefault(pack_of_key, {})[f"{key}.npz"] = array_bytes(arrays)
    for path, files in packs.items():
        old = {f"{key}.npz": read_packed(path, f"{key}.npz") for key, other in packed.items() if other == path}
        pack(path, old | files)
    lines = committed.lines() | {key: json.dumps(record, sort_keys=True, allow_nan=False) for key, record in records.items()}
    write_atomic(committed.folder / LINES, "".join(f"{lines[key]}\n" for key in sorted(lines)))
    for sweep in chosen:
        replace(sweep, store=committed).save()
    write_atomic(committed.folder / "README.md", contents(committed))
    return len(records), left_out, sum(bool(record.get("environment", {}).get("dirty")) for record in records.values())


def rounded(history):
    """Return the rows of a history with DIGITS significant digits."""
    return [{name: float(f"{value:.{DIGITS}g}") if name != "step" else value for name, value in row.items()} for row in history]


def contents(store):
    """Return the Markdown page of a folder of committed records, which maps runs to keys."""
    lines = [f"# The committed records of profile {store.profile}", ""]
    lines += [f"{len(list(store))} records, one per line of [{LINES}]({LINES}), made by `biasnb publish`. "
              f"`biasnb.records.store.load({store.profile!r})` reads their metrics as a table, "
              f"[docs/records.md](../../docs/records.md) explains the fields.", ""]  # fmt: skip
    for sweep in store.sweeps():
        factors = [name for name in sweep.factors() if name != "mixer"]
        rows = [[run["mixer"], *(run.get(name, "") for name in factors), run["seed"], f"`{run['key']}`"] for run in sweep.runs]
        lines += [f"## {sweep.name}", "", tabulate(rows, ["operator", *factors, "seed", "key"], "pipe"), ""]
    return "\n".join(lines)


# ---- networks -------------------------------------------------------------------------------------------------------


def networks(store, names=()):
    """Return {mixer: key} of the networks to publish. For the trio, and for the cube, these are the deepest runs with pretext
    'bert' and the first seed, in the first of `chosen_sweeps` that trains the most of their operators. Raises StoreError if no
    sweep trains such a network."""
    found = {}
    sweeps, _ = chosen_sweeps(store, names)
    for mixers in (TRIO, CUBE):
        runs = []
        for sweep in sweeps:
            trained = [run for run in sweep.runs if run["mixer"] in mixers and run["pretext"] == "bert"]
            if len({run["mixer"] for run in trained}) > len({run["mixer"] for run in runs}):
                runs = trained
        for run in runs:
            if run["depth"] == max(other["depth"] for other in runs) and run["seed"] == runs[0]["seed"]:
                found.setdefault(run["mixer"], run["key"])
    if not found:
        wanted = ", ".join((*TRIO, *CUBE))
        raise StoreError(f"{store.folder}: its sweeps train none of {wanted} with pretext 'bert'; name others")
    return found


def publish_networks(profile, names=(), data_dir=""):
    """Copy the weights of `networks` from runs/<profile> to results/<profile>/networks/<mixer>/{config.json,
    model.safetensors}, the layout of the Hugging Face Hub. Diverged runs are left out. Returns the mixers.

    Raises StoreError, before anything is written, if weights or a published record are missing or do not match the run."""
    from ..networks.pretrained import description, folder, load_weights
    from ..training.run import prepare

    local, committed = Store(profile), reference(profile)
    chosen = {mixer: key for mixer, key in networks(local, names).items() if local.status(key)[0] != "diverged"}
    missing = [key for key in chosen.values() if not local.path(key, ".safetensors").is_file()]
    if missing:
        raise StoreError(f"{local.path(missing[0], '.safetensors')}: no such file, weights of {len(missing)} of {len(chosen)} "
                         f"networks are missing; run `biasnb reproduce --profile {profile}` first")  # fmt: skip
    files = {}
    for mixer, key in chosen.items():
        own, record, weights = local.load(key), committed.load(key), local.path(key, ".safetensors")
        other = ", ".join(name for name in SCORES if own[name] != record.get(name))
        if other:
            raise StoreError(f"{committed.path(key)}: another {other} than {local.path(key)}; publish the records first")
        model = prepare(Config(**record["config"], data_dir=data_dir))[1]
        load_weights(model, weights)
        files[f"{mixer}/model.safetensors"] = weights.read_bytes()
        files[f"{mixer}/config.json"] = to_json(description(model, key, profile))
    for name, content in files.items():
        write_atomic(folder(profile) / name, content)
    return list(chosen)


def loaded(profile, mixer, data_dir=""):
    """Return (record, data, trained network) of a published network; `data_dir` is the folder of its data.

    Raises StoreError for files that are missing, broken or inconsistent, and BiasnbError as `prepare` does."""
    from ..networks import pretrained
    from ..training.run import prepare

    folder, names = pretrained.folder(profile), pretrained.published(profile)
    if mixer not in names:
        raise StoreError(f"network: {mixer!r} is not published in {folder}; there are {', '.join(names)}")
    path = folder / mixer / "config.json"
    about = read_json(path)
    if not isinstance(about, dict) or not isinstance(about.get("key"), str):
        raise StoreError(f"{path}: lacks the key of the run; publish the network again")
    store = Store(profile, "results")
    record = store.load(about["key"])
    if {name: about.get(name) for name in record["config"]} != record["config"]:
        raise StoreError(f"{path}: another config than {store.path(about['key'])}; publish the network again")
    data, start = prepare(Config(**record["config"], data_dir=data_dir))
    return record, data, pretrained.from_file(about, path.with_name("model.safetensors")).to(start.mean.device)


def verify(profile, stream=sys.stdout, data_dir=""):
    """Evaluate every published network again with the number of threads in its record. Returns rows of the COLUMNS (see
    `compare`); `agrees` is None if the data are not available. Raises StoreError as `loaded` does."""
    from ..data.datasets import DataError
    from ..networks import pretrained

    rows, names = [], pretrained.published(profile)
    for i, mixer in enumerate(names, 1):
        print(f"[{i}/{len(names)}] {mixer}", file=stream, flush=True)
        try:
            record, data, model = loaded(profile, mixer, data_dir)
            found = compare(record, measure(model, data, record["environment"]["threads"]))
        except (DataError, ConfigError) as error:
            print(f"data not here: {error}", file=stream, flush=True)
            found = [("data", "", "data not here; give data_dir", "", None)]
        rows += [dict(zip(COLUMNS, (mixer, *row), strict=True)) for row in found]
    return rows


def check(profile, count, seed=None, data_dir="", stream=sys.stdout):
    """Train `count` randomly chosen committed runs of a profile again, each with the number of threads in its record and in a
    separate folder. Returns rows of the COLUMNS (see `compare`); the last row of a run says whether loss, PSNR, accuracy, probe
    and history are identical. Raises BiasnbError as `run.run` does, and StoreError for a profile without records."""
    from ..training import run
    from ..training.loop import threads

    published(profile)
    store, rows = Store(profile, "results"), []
    runs = [store.load(key) for key in store if "-" not in key]
    finished = [record for record in runs if record["status"] == "done"]
    chosen = random.Random(seed).sample(finished, min(count, len(finished)))
    for i, record in enumerate(chosen, 1):
        cfg = Config(**record["config"], data_dir=data_dir)
        print(f"[{i}/{len(chosen)}] {record['key']}: {describe(cfg)}", file=stream, flush=True)
        with tempfile.TemporaryDirectory() as folder, threads(record["environment"]["threads"]):
            again = run.run(cfg, Store(profile, folder))
        same = all(again[name] == record[name] for name in SCORES)
        same = same and rounded(again["history"]) == rounded(record["history"])
        found = [*compare(record, again, "trained"), ("bits", "", "equal" if same else "others", "", same or None)]
        rows += [dict(zip(COLUMNS, (record["key"], *row), strict=True)) for row in found]
    return rows


def measure(model, data, count):
    """Return the parts of a record that concern the test split, measured with `count` threads."""
    from ..training.evaluation import probe_network
    from ..training.loop import threads
    from ..training.pretext import evaluate

    with threads(count):
        scores = {name: {"test": score} for name, score in evaluate(model, data.test, "test").items()}
        return {**scores, "probe": probe_network(model, data)[0], "data": data.summary()}
