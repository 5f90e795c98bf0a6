"""The experiments: one per notebook, each a question and the list of runs it needs."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from .config import (
    ConfigError,
    check_profile,
    configure,
    digest,
    floor_key,
    folder_signature,
    key,
    nearest,
    relevant,
)
from .store import Grid, Store

TRIO = ("convmixer", "mixer", "igpt")


@dataclass(frozen=True)
class Experiment:
    question: str
    runs: callable  # (profile, overrides) -> list of Config


def over(profile, overrides, **axes):
    """Configs over the product of the axes. An override of an axis (a value or a list) replaces it; any other holds
    for every run. Raises ConfigError."""
    fixed = {name: value for name, value in overrides.items() if name not in axes}
    for name, value in fixed.items():
        if isinstance(value, list | tuple):
            raise ConfigError(f"{name}: {value!r} is a list, but this notebook varies only {list(axes)}; give one value")
    for name in axes:
        given = overrides.get(name, axes[name])
        axes[name] = list(given) if isinstance(given, list | tuple) else [given]
        if not axes[name]:
            raise ConfigError(f"{name}: an empty list; give at least one value")
    points = (dict(zip(axes, point, strict=True)) for point in product(*axes.values()))
    return [configure(profile, **fixed, **point) for point in points]


def trio(profile, overrides, mixers=TRIO):
    sizes = check_profile(profile)
    return over(profile, overrides, seed=sizes["seeds"], depth=sizes["depths"], mixer=mixers)


def reconstructions(profile, overrides):
    """The trio and two controls, at the smallest depth and the first seed."""
    runs = trio(profile, overrides, (*TRIO, "conv_dense", "identity"))
    return [cfg for cfg in runs if cfg.depth == min(c.depth for c in runs) and cfg.seed == runs[0].seed]


def one_run(profile, overrides):
    sizes = check_profile(profile)
    return over(profile, overrides, seed=sizes["seeds"][:1], depth=sizes["depths"][:1], mixer=TRIO[:1])[:1]


def nothing(profile, overrides):
    over(profile, overrides, seed=[0], depth=[1], mixer=TRIO[:1])
    return []


EXPERIMENTS = {
    "00_start_here": Experiment("What does the whole pipeline do to one image?", nothing),
    "01_inputs": Experiment("What does the network see: data, palette, quantisation error?", nothing),
    "02_networks": Experiment("Which positions does each operator mix, and what does it cost?", nothing),
    "10_one_run": Experiment("What does a single run record?", one_run),
    "20_trio": Experiment("Do shallow attention networks reconstruct worse than convolution and mixer?", trio),
    "40_reconstructions": Experiment("What do the reconstructions look like?", reconstructions),
    "90_paper": Experiment("Every table and figure, from records only.", nothing),
}


def experiment(name):
    """Raises ConfigError naming the nearest notebook."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"notebook: {name!r} is not one of {list(EXPERIMENTS)}; did you mean {nearest(name, EXPERIMENTS)!r}?")
    return EXPERIMENTS[name]


def plan(name, profile, overrides=None, base="runs"):
    """The Grid of an experiment: what it asks for and what of it exists. Trains nothing. Raises ConfigError."""
    overrides = dict(overrides or {})
    configs = experiment(name).runs(profile, overrides)
    store = Store(profile, base)
    changed = {field: value for field, value in overrides.items() if field not in ("data_dir", "device")}
    label = name
    data = None
    if configs:
        data = configs[0].dataset
        if data == "folder":
            data = Path(configs[0].data_dir).expanduser().resolve().name
            changed |= {"dataset": data, "files": folder_signature(configs[0].data_dir)}
        if changed:
            label = f"{name}-{data}-{digest(changed, 6)}"
    content = {
        "experiment": name,
        "profile": profile,
        "data": data,
        "overrides": changed,
        "runs": [{"key": key(cfg), **relevant(cfg)} for cfg in configs],
        "floor": floor_key(configs[0]) if configs else None,
    }
    return Grid(store, label, content), configs


def run(name, profile, overrides=None):
    """Train what the experiment still lacks and return its Grid; everything is kept in runs/<profile>.

    Finished runs are loaded, interrupted ones go on. Raises BiasnbError."""
    grid, configs = plan(name, profile, overrides)
    grid.save()
    if grid.missing():
        from . import train  # torch is needed only here

        train.floor(configs[0], grid.store)
        for i, cfg in enumerate(configs, 1):
            train.run(cfg, grid.store, f"run {i}/{len(configs)}: ")
    return grid
