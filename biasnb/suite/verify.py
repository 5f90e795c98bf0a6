"""Published weights: a folder per network in results/<profile>/networks, and whether they give the recorded numbers again."""

import sys

from ..config import Config, ConfigError
from ..data.datasets import DataError
from ..networks.pretrained import description, folder, from_file, load_weights, published
from ..operators import CUBE, TRIO
from ..records.files import StoreError, read_json, to_json, write_atomic
from ..records.store import Store
from ..training.evaluation import probe_network
from ..training.loop import threads
from ..training.pretext import evaluate
from ..training.run import prepare

SWEEPS = {"20_trio": TRIO, "21_cube": CUBE}  # whose networks are published
COLUMNS = ("network", "metric", "recorded", "measured", "allowed", "agrees")
SCORES = ("loss", "psnr", "accuracy", "probe")
# What is measured again: metric -> (path in the record, factor, decimals that tables print, allowed difference), by default
# half a unit of the last decimal. The probe's optimizer ends elsewhere on another processor: seen up to 0.4 points.
METRICS = {
    "PSNR, dB": (("psnr", "test"), 1, 2, 0.005),
    "loss": (("loss", "test"), 1, 3, 0.0005),
    "accuracy, %": (("accuracy", "test"), 100, 1, 0.05),
    "probe, %": (("probe", "chosen", "test"), 100, 1, 1.0),
    "k-NN, %": (("probe", "chosen", "knn"), 100, 1, 0.05),
}


def networks(store):
    """{mixer: key} of the networks that a profile publishes: for each preset of the trio and each cell of the cube the first
    run with pretext 'bert' at the sweep's largest depth and first seed. Raises StoreError if no such run was asked for."""
    sweeps, found = {sweep.name: sweep.runs for sweep in store.sweeps()}, {}
    for name, mixers in SWEEPS.items():
        runs = [run for run in sweeps.get(name, ()) if run["mixer"] in mixers and run["pretext"] == "bert"]
        for run in runs:
            if run["depth"] == max(r["depth"] for r in runs) and run["seed"] == runs[0]["seed"]:
                found.setdefault(run["mixer"], run["key"])
    if not found:
        asked = f"run `biasnb reproduce --profile {store.profile}` first"
        raise StoreError(f"{store.folder}: neither {' nor '.join(SWEEPS)} asks for a network to publish; {asked}")
    return found


def publish(profile, data_dir=""):
    """Copy the weights of `networks` from runs/<profile> to results/<profile>/networks/<mixer>/{config.json,
    model.safetensors}, the layout that Hugging Face's hub reads; diverged runs have none. Returns the names.

    Everything is read and checked before anything is written. Raises StoreError if weights are missing or do not fit, or
    if a published record is missing or has other scores than the run."""
    here, there = Store(profile), Store(profile, "results")
    chosen = {mixer: key for mixer, key in networks(here).items() if here.status(key)[0] != "diverged"}
    missing = [key for key in chosen.values() if not here.path(key, ".safetensors").is_file()]
    if missing:
        raise StoreError(f"{here.path(missing[0], '.safetensors')}: no such file, weights of {len(missing)} of {len(chosen)} "
                         f"networks are missing; run `biasnb reproduce --profile {profile}` first")  # fmt: skip
    files = {}
    for mixer, key in chosen.items():
        own, record, weights = here.load(key), there.load(key), here.path(key, ".safetensors")
        other = [name for name in SCORES if own[name] != record.get(name)]
        if other:
            raise StoreError(f"{there.path(key)}: another {', '.join(other)} than {here.path(key)}; publish the records first")
        model = prepare(Config(**record["config"], data_dir=data_dir))[1]
        load_weights(model, weights)
        files[f"{mixer}/model.safetensors"] = weights.read_bytes()
        files[f"{mixer}/config.json"] = to_json(description(model, key, profile))
    for name, content in files.items():
        write_atomic(folder(profile) / name, content)
    return list(chosen)


def loaded(profile, mixer, data_dir=""):
    """(record, data, network with its trained weights) of a published network; `data_dir` is where its data lie.

    Raises StoreError for files that are missing, broken or do not belong together, BiasnbError as `prepare` does."""
    if mixer not in published(profile):
        raise StoreError(f"network: {mixer!r} is not published in {folder(profile)}; there are {', '.join(published(profile))}")
    path = folder(profile) / mixer / "config.json"
    said = read_json(path)
    if not isinstance(said, dict) or not isinstance(said.get("key"), str):
        raise StoreError(f"{path}: lacks the key of the run; publish the network again")
    store = Store(profile, "results")
    record = store.load(said["key"])
    if {name: said.get(name) for name in record["config"]} != record["config"]:
        raise StoreError(f"{path}: another config than {store.path(said['key'])}; publish the network again")
    data, start = prepare(Config(**record["config"], data_dir=data_dir))
    return record, data, from_file(said, path.with_name("model.safetensors")).to(start.mean.device)


def verify(profile, stream=sys.stdout, data_dir=""):
    """Measure every published network again, on the test split and with the threads of its record, and compare.

    Returns rows {network, metric, recorded, measured, allowed, agrees}, values as tables print them; `agrees` is None where
    the data are not here. Raises StoreError for files as `loaded` does."""
    rows, names = [], published(profile)
    for i, mixer in enumerate(names, 1):
        print(f"[{i}/{len(names)}] {mixer}", file=stream, flush=True)
        try:
            record, data, model = loaded(profile, mixer, data_dir)
            with threads(record["environment"]["threads"]):
                scores = {name: {"test": score} for name, score in evaluate(model, data.test, "test").items()}
                found = compare(record, {**scores, "probe": probe_network(model, data), "data": data.summary()})
        except (DataError, ConfigError) as error:
            print(f"data not here: {error}", file=stream, flush=True)
            found = [("data", "", "data not here; give data_dir", "", None)]
        rows += [dict(zip(COLUMNS, (mixer, *row), strict=True)) for row in found]
    return rows


def compare(record, measured):
    """(metric, recorded, measured, allowed, agrees): whether the data are the same, and every metric that the record has."""
    pixels = [one["data"]["fingerprint"] for one in (record, measured)]
    rows = [("data", *pixels, "equal", pixels[0] == pixels[1])]
    for name, (path, factor, digits, allowed) in METRICS.items():
        one, other = record, measured
        for part in path:
            one, other = one[part], other[part]
        if one is not None:
            printed = [f"{factor * value:.{digits}f}" for value in (one, other)]
            rows.append((name, *printed, f"± {allowed:g}", factor * abs(one - other) <= allowed))
    return rows
