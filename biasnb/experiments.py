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
SHALLOW = 4  # blocks; "relatively shallow" in Figure 1 has no number that we know of


@dataclass(frozen=True)
class Experiment:
    question: str
    runs: callable  # (profile, overrides) -> list of Config
    varies: tuple = ()  # fields that take a list of values


def over(profile, overrides, **axes):
    """Configs over the product of the axes. An override of an axis (a value or a list) replaces it; any other holds
    for every run. Raises ConfigError."""
    fixed = {name: value for name, value in overrides.items() if name not in axes}
    for name, value in fixed.items():
        if isinstance(value, list | tuple):
            varied = f"varies only {', '.join(axes)}" if axes else "varies nothing"
            raise ConfigError(f"{name}: {value!r} is a list, but this notebook {varied}; give one value")
    for name in axes:
        given = overrides.get(name, axes[name])
        axes[name] = list(given) if isinstance(given, list | tuple) else [given]
        if not axes[name] or len(set(axes[name])) < len(axes[name]):
            raise ConfigError(f"{name}: {axes[name]!r} is empty or names a value twice; list each value once")
    points = (dict(zip(axes, point, strict=True)) for point in product(*axes.values()))
    return [configure(profile, **fixed, **point) for point in points]


def trio(profile, overrides, mixers=TRIO):
    sizes = check_profile(profile)
    return over(profile, overrides, seed=sizes["seeds"], depth=sizes["depths"], mixer=mixers)


def reconstructions(profile, overrides):
    """The trio and two controls, at the largest depth that is still shallow (at most 4 blocks) and the first seed."""
    runs = trio(profile, overrides, (*TRIO, "conv_dense", "identity"))
    depths = {cfg.depth for cfg in runs}
    depth = max((d for d in depths if d <= SHALLOW), default=min(depths))
    return [cfg for cfg in runs if cfg.depth == depth and cfg.seed == runs[0].seed]


def one_run(profile, overrides):
    """By default a run of the trio, so that it is shared."""
    sizes = check_profile(profile)
    return over(profile, {"seed": sizes["seeds"][0], "depth": sizes["depths"][0], "mixer": TRIO[0], **overrides})


def nothing(profile, overrides):
    """No run; the settings are checked all the same."""
    over(profile, overrides)
    return []


AXES = ("seed", "depth", "mixer")
EXPERIMENTS = {
    "00_start_here": Experiment("What does the whole pipeline do to a few images?", nothing),
    "01_inputs": Experiment("What does the network see: data, palette, quantisation error?", nothing),
    "02_networks": Experiment("Which positions does each operator mix, and what does it cost?", nothing),
    "10_one_run": Experiment("What does a single run record?", one_run),
    "20_trio": Experiment("Do shallow attention networks reconstruct worse than convolution and mixer?", trio, AXES),
    "40_reconstructions": Experiment("What do the reconstructions look like?", reconstructions, AXES),
    "90_paper": Experiment("Every table and figure, from records only.", nothing),
}


def experiment(name):
    """Raises ConfigError naming the nearest notebook."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"notebook: {name!r} is not one of {list(EXPERIMENTS)}; did you mean {nearest(name, EXPERIMENTS)!r}?")
    return EXPERIMENTS[name]


def plan(name, profile, overrides=None):
    """The Grid of an experiment: what it asks for and what of it exists. Trains nothing. Raises ConfigError."""
    overrides = dict(overrides or {})
    configs = experiment(name).runs(profile, overrides)
    changed = {field: value for field, value in overrides.items() if field not in ("data_dir", "device")}
    data = configs[0].dataset if configs else overrides.get("dataset")
    if data == "folder":
        folder = configs[0].data_dir if configs else overrides.get("data_dir", "")
        data = Path(folder).expanduser().resolve().name
        changed |= {"dataset": data, "files": folder_signature(folder)}
    label = "-".join([name, *([data] if data and changed else []), *([digest(changed, 6)] if changed else [])])
    content = {
        "experiment": name,
        "profile": profile,
        "data": data,
        "overrides": changed,
        "runs": [{"key": key(cfg), **relevant(cfg)} for cfg in configs],
        "floor": floor_key(configs[0]) if configs else None,
    }
    return Grid(Store(profile), label, content), configs


def run(name, profile, overrides=None):
    """Train what the experiment still lacks and return its Grid; everything is kept in runs/<profile>.

    Finished runs are loaded, interrupted ones go on. Raises BiasnbError."""
    grid, configs = plan(name, profile, overrides)
    grid.save()
    if grid.missing():
        from . import run as runs  # torch is needed only here

        runs.floor(configs[0], grid.store)
        for i, cfg in enumerate(configs, 1):
            runs.run(cfg, grid.store, f"run {i}/{len(configs)}: ")
    return grid
