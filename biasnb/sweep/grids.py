"""The grids: which runs each notebook needs, one function per notebook, (profile, overrides) -> list of Configs.

A study varies few things around one base point, the profile's `study`; equal Configs of several grids are one run."""

from dataclasses import replace
from itertools import product

from ..config import SHALLOW, ConfigError, check_profile, configure
from ..operators import MIXERS, TRIO, family


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
        if not axes[name] or any(value in axes[name][:i] for i, value in enumerate(axes[name])):
            raise ConfigError(f"{name}: {axes[name]!r} is empty or names a value twice; list each value once")
    points = (dict(zip(axes, point, strict=True)) for point in product(*axes.values()))
    return [configure(profile, **fixed, **point) for point in points]


def trio(profile, overrides, mixers=None):
    sizes = check_profile(profile)
    return over(profile, overrides, seed=sizes["seeds"], depth=sizes["depths"], mixer=mixers or family("trio"))


def reconstructions(profile, overrides):
    """The trio and two controls, at the largest depth that is still shallow (at most 4 blocks) and the first seed."""
    runs = trio(profile, overrides, (*family("trio"), "conv_dense", "identity"))
    depths = {cfg.depth for cfg in runs}
    depth = max((d for d in depths if d <= SHALLOW), default=min(depths))
    return [cfg for cfg in runs if cfg.depth == depth and cfg.seed == runs[0].seed]


def one_run(profile, overrides):
    """By default a run of the trio, so that it is shared."""
    sizes = check_profile(profile)
    return over(profile, {"seed": sizes["seeds"][0], "depth": sizes["depths"][0], "mixer": TRIO[0], **overrides})


def study(profile, overrides, **axes):
    """`over` around the base point of the profile's studies, over its seeds."""
    sizes = check_profile(profile)
    base = {name: value for name, value in sizes["study"].items() if name not in axes}
    return over(profile, {**base, **overrides}, seed=sizes["study_seeds"], **axes)


def star(profile, overrides, mixers, *factors):
    """The base point and every level of each factor, the others at their base. A list given for a factor replaces its
    levels; a single value moves the base and leaves the factor out."""
    levels = {**check_profile(profile)["levels"], "budget": ("steps", "flop")}
    lists = {name: overrides[name] for name in factors if isinstance(overrides.get(name), list | tuple)}
    fixed = {name: value for name, value in overrides.items() if name not in lists}
    configs = study(profile, fixed, mixer=mixers)
    for name in factors:
        if name not in fixed:
            configs += study(profile, fixed, **{name: lists.get(name, levels[name])}, mixer=mixers)
    return list(dict.fromkeys(configs))


def placed(configs, overrides):
    """Positions that go with the constraint, unless asked for others: none where A depends on offsets only, absolute ones
    where it need not, static or dynamic alike, so that input dependence is not mixed up with them. Operators that have no
    table of positions but ask with their content (hyena, attention with local heads) need absolute ones too."""
    absolute = {name for name, op in MIXERS.items() if not op.shared or (op.dynamic and not op.biased)}
    if "position" in overrides:
        return configs
    return [replace(cfg, position="learned" if cfg.mixer in absolute else "none") for cfg in configs]


def cube(profile, overrides):
    """The cells, their controls, and what lies between cells: low-rank sharing at several ranks, windows of several sizes."""
    levels = check_profile(profile)["levels"]
    axes = {"pretext": levels["cube_pretext"]}
    runs = study(profile, overrides, **axes, mixer=family("cell", "control", "between"))
    if "mixer" not in overrides:
        runs += study(profile, {"seed": levels["cube_seed"], **overrides}, **axes, mixer=family("cell"))
        for name, mixers in (("rank", ("lowrank",)), ("kernel", ("conv", "lattn"))):
            if name not in overrides:
                runs += study(profile, overrides, **axes, **{name: levels[name]}, mixer=mixers)
    return placed(list(dict.fromkeys(runs)), overrides)


def representation(profile, overrides):
    """Input x target, and palettes of other sizes."""
    levels = check_profile(profile)["levels"]
    runs = study(profile, overrides, input=("rgb", "quantised", "palette"), target=("rgb", "palette"), mixer=family("trio"))
    if not {"input", "target", "colours"} & set(overrides):
        palette = {"input": "palette", "target": "palette", **overrides}
        runs += study(profile, palette, colours=levels["colours"], mixer=family("trio"))
    return list(dict.fromkeys(runs))


def pretext(profile, overrides):
    """Five tasks for the trio; under 'ar' also convolution with and without a blind spot."""
    runs = study(profile, overrides, pretext=("bert", "ar", "denoise", "supervised", "none"), mixer=family("trio"))
    if not {"pretext", "mixer"} & set(overrides):
        runs += study(profile, {"pretext": "ar", **overrides}, mixer=("conv", "conv_two_stream"))
    return runs


def geometry(profile, overrides):
    """A star, and patch 2 trained for a quarter of the steps beside patch 4 trained for four times as many: patches 2 and 4 at
    two budgets of about equal FLOP."""
    factors = ("depth", "width", "patch", "kernel", "mask_rate", "budget")
    runs = star(profile, overrides, family("trio"), *factors)
    if not {"patch", "budget"} & set(overrides):
        fixed = {name: value for name, value in overrides.items() if name not in factors or not isinstance(value, list | tuple)}
        steps = runs[0].steps
        for patch, budget in ((2, max(1, steps // 4)), (2, steps), (4, steps), (4, 4 * steps)):
            runs += study(profile, {**fixed, "patch": patch, "steps": budget}, mixer=family("trio"))
    return list(dict.fromkeys(runs))


def skip(profile, overrides):
    """Skip connections x depth, and one block repeated."""
    depths = check_profile(profile)["levels"]["skip_depth"]
    runs = study(profile, overrides, skip=("both", "spatial", "channel", "none"), depth=depths, mixer=family("trio"))
    if not {"skip", "blocks"} & set(overrides):
        runs += study(profile, {"blocks": "repeated", **overrides}, depth=depths, mixer=family("trio"))
    return runs


def permutation(profile, overrides):
    """The same cells on images and on images whose pixels are all moved in one fixed way; not augmented, as a mirrored
    image would be another permutation."""
    kinds = check_profile(profile)["levels"]["permute"]
    return placed(study(profile, {"augment": "none", **overrides}, permute=kinds, mixer=family("cell")), overrides)


def sample_size(profile, overrides):
    return star(profile, overrides, family("trio"), "images", "labelled")


def position(profile, overrides):
    """Where attention, mixer and convolution get positions from; convolution also on the torus, without a border."""
    runs = study(profile, overrides, position=("none", "learned", "sinusoid", "relative"), mixer=("igpt",))
    runs += study(profile, overrides, position=("none", "learned"), mixer=("mixer",))
    runs += study(profile, overrides, position=("none", "learned"), padding=("zeros", "circular"), mixer=("convmixer",))
    return list(dict.fromkeys(runs))


def precision(profile, overrides):
    """The same networks in both arithmetics."""
    return study(profile, overrides, precision=("fp32", "bf16"), mixer=family("trio"))


def cells(profile, overrides):
    """The cube's cells, without its controls and under its first pretext, so that they are shared."""
    pretexts = check_profile(profile)["levels"]["cube_pretext"]
    return placed(study(profile, {"pretext": pretexts[0], **overrides}, mixer=family("cell")), overrides)


def symmetry(profile, overrides):
    """The cells on the torus, and the static ones on a field where the translation prior is true and on its twin, where it
    is false."""
    twins = () if "dataset" in overrides else ("leaves", "leaves_coded")
    runs = cells(profile, {"padding": "circular", **overrides})
    if twins:
        fields = {**overrides, "augment": "none"}  # on both twins, as the coded one takes no other
        runs += placed(study(profile, fields, dataset=twins, mixer=("conv", "gconv", "lc", "full")), overrides)
    return runs


def of_the_trio(profile, overrides):
    """No run of its own: the notebook asks for the trio's grids."""
    trio(profile, overrides)
    return []


def nothing(profile, overrides):
    """No run; the settings are checked all the same."""
    over(profile, overrides)
    return []
