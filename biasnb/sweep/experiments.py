"""The experiments: one per notebook, each a question and the list of runs it needs."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..config import ConfigError, full_path, nearest
from ..records.keys import baseline_key, digest, folder_signature, key, key_fields, search_key, user_digest
from ..records.store import Store, Sweep
from . import executor as workers
from . import grids


@dataclass(frozen=True)
class Experiment:
    question: str
    runs: callable  # (profile, overrides) -> list of Config
    varies: tuple = ()  # fields that take a list of values


AXES = ("seed", "depth", "mixer")
EXPERIMENTS = {
    "00_start_here": Experiment("What does the whole pipeline do to a few images?", grids.nothing),
    "01_inputs": Experiment("What does the network see: data, palette, quantisation error?", grids.nothing),
    "02_networks": Experiment("Which positions does each operator mix, and what does it cost?", grids.nothing),
    "03_playground": Experiment("What does a network make of any image under any mask?", grids.nothing),
    "04_your_own_operator": Experiment("How does a mixing operator of your own compare?", grids.of_the_trio, AXES),
    "05_your_own_images": Experiment("What does the trio make of your own images?", grids.of_the_trio, AXES),
    "10_one_run": Experiment("What does a single run record?", grids.one_run),
    "20_trio": Experiment("Do shallow attention networks reconstruct worse than convolution and mixer?", grids.trio, AXES),
    "21_cube": Experiment("What do locality, weight sharing and input dependence do, one by one and together?", grids.cube,
                          ("seed", "mixer", "pretext")),
    "22_representation": Experiment("What does it cost to see and to predict colours as one-hot indices?", grids.representation,
                                    ("seed", "mixer", "input", "target")),
    "23_pretext": Experiment("Does the training task change which operator is best?", grids.pretext,
                             ("seed", "mixer", "pretext")),
    "24_geometry": Experiment("How do depth, width, patch, window, mask rate and budget move the operators?", grids.geometry,
                              ("seed", "mixer", "depth", "width", "patch", "kernel", "mask_rate", "budget")),
    "25_skip": Experiment("Which operators need their skip connections, and blocks of their own?", grids.skip,
                          ("seed", "mixer", "depth", "skip")),
    "26_permutation": Experiment("Which operators notice that the pixels of all images were permuted?", grids.permutation,
                                 ("seed", "mixer", "permute")),
    "27_sample_size": Experiment("Does a bias help more when images are few?", grids.sample_size,
                                 ("seed", "mixer", "images", "labelled")),
    "28_position": Experiment("Where do tokens need to get their place from?", grids.position, ("seed",)),
    "29_precision": Experiment("Do the results depend on the arithmetic they were computed in?", grids.precision,
                               ("seed", "mixer", "precision")),
    "30_symmetry": Experiment("How equivariant to shifts are the networks, and when does that help?", grids.symmetry,
                              ("seed",)),
    "31_receptive_field": Experiment("From how far do the networks read, before and after training?", grids.cells,
                                     ("seed", "mixer")),
    "40_reconstructions": Experiment("What do the reconstructions look like?", grids.reconstructions, AXES),
    "90_paper": Experiment("What do all records say of the claims, in the order of the paper?", grids.nothing),
}  # fmt: skip


def experiment(name):
    """Raises ConfigError naming the nearest notebook."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"notebook: {name!r} is not one of {list(EXPERIMENTS)}; did you mean {nearest(name, EXPERIMENTS)!r}?")
    return EXPERIMENTS[name]


def fitting(name, given):
    """Settings as an experiment can use them: a list goes in whole where the experiment varies that field; where only
    others vary it, its first value."""
    varied = {field for e in EXPERIMENTS.values() for field in e.varies}
    first = lambda field, value: isinstance(value, list) and field in varied and field not in experiment(name).varies  # noqa: E731
    return {field: value[0] if first(field, value) else value for field, value in given.items()}


def images_of(folder):
    """The settings that a folder of images of one's own asks for, all of them labelled; none for ""."""
    return {"dataset": "folder", "data_dir": str(full_path(folder)), "labelled": 0} if folder else {}


def configs_of(name, profile, overrides):
    """The Configs of an experiment; lr 'tuned' takes each one's rate from the searches of `biasnb tune`. Raises
    ConfigError, also for a rate that has not been searched."""
    if overrides.get("lr") != "tuned":
        return experiment(name).runs(profile, overrides)
    store = Store(profile)
    configs = experiment(name).runs(profile, {field: value for field, value in overrides.items() if field != "lr"})
    for cfg in configs:
        if cfg.pretext != "none" and not store.has(search_key(cfg)):
            raise ConfigError(f"lr: 'tuned', but mixer {cfg.mixer!r} has no searched rate; run `biasnb tune {name}` first")
    return [cfg if cfg.pretext == "none" else replace(cfg, lr=store.load(search_key(cfg))["chosen"]) for cfg in configs]


def plan(name, profile, overrides=None):
    """The Sweep of an experiment: what it asks for and what of it exists. Trains nothing. Raises ConfigError."""
    overrides = dict(overrides or {})
    configs = list({key(cfg): cfg for cfg in configs_of(name, profile, overrides)}.values())
    changed = {field: value for field, value in overrides.items() if field not in ("data_dir", "device")}
    data = configs[0].dataset if configs else overrides.get("dataset")
    if data == "folder":
        folder = configs[0].data_dir if configs else overrides.get("data_dir", "")
        data = Path(folder).expanduser().resolve().name
        changed |= {"dataset": data, "files": folder_signature(folder)}
    if mine := {cfg.mixer: user_digest(cfg.mixer) for cfg in configs if user_digest(cfg.mixer)}:
        changed["own"] = mine
    label = "-".join([name, *([data] if data and changed else []), *([digest(changed, 6)] if changed else [])])
    content = {
        "notebook": name,
        "profile": profile,
        "data": data,
        "changed": changed,
        "searches": sorted({search_key(cfg) for cfg in configs if cfg.pretext != "none"})
        if overrides.get("lr") == "tuned"
        else [],
        "runs": [{"key": key(cfg), "baseline": baseline_key(cfg), **key_fields(cfg)} for cfg in configs],
    }
    return Sweep(Store(profile), label, content), configs


def run(name, profile, overrides=None):
    """Train what the experiment still lacks and return its Sweep; everything is kept in runs/<profile>.

    Finished runs are loaded, interrupted ones go on. Raises BiasnbError."""
    grid, configs = plan(name, profile, overrides)
    grid.save()
    if grid.missing():
        workers.train(configs, grid.store)
    return grid
