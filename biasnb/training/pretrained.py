"""Published weights: a folder per network in results/<profile>/networks, and whether they give the recorded numbers again."""

import json
import sys
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError, safe_open

from ..config import Config, ConfigError, check_profile, nearest
from ..data.datasets import DataError
from ..data.palette import Palette
from ..networks.model import Isotropic
from ..operators import CUBE, TRIO
from ..records.files import StoreError, read_json, to_json, write_atomic
from ..records.processes import threads
from ..records.store import Store
from .pretext import evaluate
from .probe import probe_network
from .run import description, fill, prepare

GRIDS = {"20_trio": TRIO, "21_cube": CUBE}  # whose networks are published
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


class Pretrained(Isotropic, PyTorchModelHubMixin, library_name="biasnb"):
    """A trained network in the layout of Hugging Face's hub, a folder with config.json and model.safetensors:
    `Pretrained.from_pretrained(folder)` reads it without a network connection, `save_pretrained(folder)` writes it.

    `settings` are Config fields. mean, std: of the training pixels per channel, 0 to 255; palette: its colours (K, 3); key and
    profile: of the record that says what the network is worth. It needs no data, so that it has no folder of them either."""

    def __init__(self, *, mean, std, palette=None, classes=0, key="", profile="", **settings):
        cfg = Config(**{**settings, **({"data_dir": "."} if settings.get("dataset") == "folder" else {})})
        colours = palette and Palette(torch.tensor(palette))
        super().__init__(cfg, (torch.tensor(mean), torch.tensor(std)), colours, classes)
        self.key, self.profile = key, profile

    @classmethod
    def _from_pretrained(cls, *, model_id, revision, cache_dir, force_download, local_files_only, token, **about):
        if not Path(model_id).is_dir():
            where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
            return super()._from_pretrained(model_id=model_id, force_download=force_download, **where, **about)
        return built(about, Path(model_id) / "model.safetensors")


def built(about, path):
    """The network of a `run.description`, with the weights in a file. Raises StoreError naming the file."""
    try:
        model = Pretrained(**about)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        why = f"its network is not one of this suite ({error})"
        raise StoreError(f"{path}: {why}; publish or train it again") from None
    fill(model, path)
    return model.eval()


def network(name, profile="quick"):
    """A trained network, ready to use, without its data: a published one by its name, one of your own runs in runs/<profile>
    by its key, or that of a folder with config.json and model.safetensors. Raises StoreError if there is none, or if its
    files are broken."""
    check_profile(profile)
    name = str(name)
    places = folder(profile) / name, Path(name).expanduser()
    own = Store(profile).folder / f"{name}.safetensors"
    if not (places[0] / "config.json").is_file() and own.is_file():
        return built(said_of(own), own)
    for place in places:
        if (place / "config.json").is_file():
            about = read_json(place / "config.json")
            if not isinstance(about, dict):
                raise StoreError(f"{place / 'config.json'}: not what is said of a network; publish the network again")
            return built(about, place / "model.safetensors")
    names = published(profile)
    what = f"network: {name!r} is neither published in profile {profile!r} nor the key of a run of it nor a folder of a network"
    raise StoreError(f"{what}; did you mean {nearest(name, names)!r}? There are {', '.join(names)}")


def said_of(path):
    """What the weights of a run say of their network. Raises StoreError."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["about"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: does not say of which network it is ({type(error).__name__}); train the run again") from None


def networks(store):
    """{mixer: key} of the networks that a profile publishes: for each preset of the trio and each cell of the cube the first
    run with pretext 'bert' at the grid's largest depth and first seed. Raises StoreError if no such run was asked for."""
    grids, found = {grid.name: grid.runs for grid in store.grids()}, {}
    for name, mixers in GRIDS.items():
        runs = [run for run in grids.get(name, ()) if run["mixer"] in mixers and run["pretext"] == "bert"]
        for run in runs:
            if run["depth"] == max(r["depth"] for r in runs) and run["seed"] == runs[0]["seed"]:
                found.setdefault(run["mixer"], run["key"])
    if not found:
        asked = f"run `biasnb reproduce --profile {store.profile}` first"
        raise StoreError(f"{store.folder}: neither {' nor '.join(GRIDS)} asks for a network to publish; {asked}")
    return found


def folder(profile):
    return Store(profile, "results").folder / "networks"


def published(profile):
    """Names of the published networks of a profile. Raises StoreError if there are none."""
    names = sorted(path.name for path in folder(profile).glob("*") if path.is_dir())
    if not names:
        raise StoreError(f"{folder(profile)}: no published networks; choose another profile or run `biasnb publish` first")
    return names


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
        fill(model, weights)
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
    return record, data, built(said, path.with_name("model.safetensors")).to(start.mean.device)


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
