"""The claims: what is claimed and by whom, the rule that decides it, and the tests that apply the rule to saved records.

The function below a claim takes the Evidence of a sweep and yields Tests. A run is named by its fields with `of`; sums and
differences of runs are taken per seed."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd

from ..config import CODED, SHALLOW
from ..operators import CUBE, MIXERS, TRIO
from . import stats
from .contrasts import METRICS, PAIRS, Absent, Evidence, mean, runs_of, slope, total
from .stats import EFFECTS
from .verdicts import Finding, find


@dataclass(frozen=True)
class Claim:
    id: str
    text: str
    source: str
    notebooks: tuple  # notebooks whose runs can decide it
    metrics: tuple
    rule: str
    tests: Callable = field(repr=False)  # Evidence -> iterable of Tests
    any: bool = False  # holds if any deciding test does, not all


PAPER, VIT, IGPT = "Cazenavette & Lucey, arXiv 2105.14077", "Park & Kim, arXiv 2202.06709", "Chen et al., image-GPT, 2020"
HOLM = "after Holm's correction"
CLOSED = ("full", "attn")  # closed under permutation of the tokens
STATIC = ("conv", "gconv", "lc", "full")
MARGIN = {"probe": 1.0, "psnr": 0.1}  # points, dB: smaller effects count as none
CLAIMS = []


def claim(*what, any=False):
    """List a Claim; the function below it yields its tests."""

    def listed(tests):
        CLAIMS.append(Claim(*what, tests, any))
        return tests

    return listed


# ---- P: what the paper claims -------------------------------------------------------------------------------------


def gap(e, other, depth):
    """What another network gains over attention at filling in hidden tokens, as in Figure 1."""
    return e.of(mixer=other, depth=depth, pretext="bert") - e.of(mixer="igpt", depth=depth, pretext="bert")


@claim("P1", "Shallow attention reconstructs hidden pixels worse than convolution and than the mixer.", f"{PAPER}, Figure 1",
       ("20_trio",), ("psnr", "loss"),
       f"averaged over depths up to {SHALLOW}, convolution − attention and mixer − attention are both above .1 dB (PSNR) or "
       f"0 (loss), {HOLM}")  # fmt: skip
def p1(e):
    depths, margin = e.levels("depth", most=SHALLOW), {"psnr": 0.1, "loss": 0.0}[e.metric]
    for other in ("convmixer", "mixer"):
        yield e.test(f"{other} − igpt", mean(gap(e, other, depth) for depth in depths), "above", margin)


@claim("P2", "The gap between attention and the others shrinks with depth.",
       f"{PAPER}, caption of Figure 1: relatively shallow", ("20_trio",), ("psnr", "loss"),
       f"both gaps are above 0 at the smallest depth and their slopes on log2 depth below 0, {HOLM}")  # fmt: skip
def p2(e):
    depths = e.levels("depth", least=2)
    for other in ("convmixer", "mixer"):
        gaps = [gap(e, other, depth) for depth in depths]
        unit = f"{METRICS[e.metric].unit} per doubling".strip()
        yield e.test(f"slope of {other} − igpt", slope(np.log2(depths), gaps), "below", unit=unit)
        yield e.test(f"{other} − igpt at depth {depths[0]}", gaps[0], "above")


@claim("P3", "Taking biases away is not always ideal: a cell with more biases has better features than attention.",
       f"{PAPER}, abstract", ("21_cube",), ("probe",),
       "the largest gain over attn, of the cells with enough pairs, is above 0 by sign-flip permutation of the maximum "
       "(Westfall & Young)")  # fmt: skip
def p3(e):
    gains = {cell: e.of(mixer=cell) - e.of(mixer="attn") for cell in CUBE if cell != "attn"}
    tests = {cell: e.test(f"{cell} − attn", gain, "above", decides=False) for cell, gain in gains.items()}
    most = max(test.n for test in tests.values())
    contest = {cell: gains[cell] for cell, test in tests.items() if test.n >= min(PAIRS, most)}  # others cannot decide
    every = 0 * total(contest.values())  # so that all are of the same seeds
    for cell, gain in contest.items():
        tests[cell] = e.test(f"{cell} − attn", gain + every, "above", decides=False)
    best, p = next(iter(contest)), np.nan
    if tests[best].n > 1:
        best, p = stats.strongest({cell: list(tests[cell].values.values()) for cell in contest})
    label, against = f"{best} − attn, the largest t of {len(contest)}", tests[best].p_values()[1]
    tests[best] = replace(tests[best], label=label, decides=True, p=(p, against))
    yield from tests.values()


@claim("P4", "One-hot colours are worse than RGB in small networks.", f"{PAPER}, abstract (the removal; the direction is ours)",
       ("22_representation",), ("probe", "psnr"), "one-hot − RGB, averaged over the trio with target rgb, is below 0; "
       "both steps, by quantised RGB, are shown")  # fmt: skip
def p4(e):
    def network(name):
        return mean(e.of(mixer=mixer, input=name, target="rgb") for mixer in TRIO)

    rgb, quantised, palette = network("rgb"), network("quantised"), network("palette")
    yield e.test("one-hot − RGB", palette - rgb, "below")
    yield e.test("one-hot − quantised", palette - quantised, "below", decides=False)
    yield e.test("quantised − RGB", quantised - rgb, "below", decides=False)


# ---- F: the factors -----------------------------------------------------------------------------------------------


def effect(e, *axes):
    """Main effect or interaction of the cube: the mean of the cells where the product of signs is + less that where it is -."""
    signs = {cell: np.prod([1 if getattr(MIXERS[cell], axis) else -1 for axis in axes]) for cell in CUBE}
    return total(float(sign) / 4 * e.of(mixer=cell) for cell, sign in signs.items())


@claim("F1", "Locality, weight sharing or input dependence changes the result, alone or together.", "this suite", ("21_cube",),
       ("probe", "psnr"),
       f"any of the 7 effects of the 2 x 2 x 2 design differs from 0, {HOLM} over 7; contradicted if all 7 lie within 1 "
       "point or .1 dB of 0", any=True)  # fmt: skip
def f1(e):
    for name in EFFECTS.values():
        yield e.test(name, effect(e, *name.split(" x ")), "differs", MARGIN[e.metric])


@claim("F2", "What makes attention good is data specificity, not long range.", VIT, ("21_cube",), ("probe",),
       "the main effect of input dependence less that of global reach is above 0")  # fmt: skip
def f2(e):
    yield e.test("input dependence − long range", effect(e, "dynamic") + effect(e, "local"), "above")
    yield e.test("input dependence", effect(e, "dynamic"), "above", decides=False)
    yield e.test("long range (not local)", -1 * effect(e, "local"), "above", decides=False)


@claim("F3", "The effect of input dependence survives the control with positive rows that sum to one.", "this suite",
       ("21_cube",), ("probe", "psnr"),
       "attn − static_softmax differs from 0; contradicted if it lies within 1 point or .1 dB of 0")  # fmt: skip
def f3(e):
    yield e.test("attn − static_softmax", e.of(mixer="attn") - e.of(mixer="static_softmax"), "differs", MARGIN[e.metric])
    yield e.test("attn − full", e.of(mixer="attn") - e.of(mixer="full"), "differs", MARGIN[e.metric], decides=False)


@claim("F4", "Between shared and free weights, an intermediate rank is better than both ends.",
       "Elsayed et al., arXiv 2002.02959", ("21_cube",), ("probe",),
       "the best interior rank of lowrank less the best of the lowest and highest, per seed, is above 0")  # fmt: skip
def f4(e):
    ranks = sorted({run["rank"] for run in e.sweep.runs if run["mixer"] == "lowrank"})
    if len(ranks) < 3:
        raise Absent(f"needs 3 ranks of lowrank, has {len(ranks)}")

    def gain(probes):
        return max(probes[1:-1]) - max(probes[0], probes[-1])

    gains = e.combined(gain, [e.of(mixer="lowrank", rank=rank) for rank in ranks])
    yield e.test(f"best of rank {ranks[1:-1]} − best of {[ranks[0], ranks[-1]]}", gains, "above")


@claim("F5", "Random frozen mixing of positions is nearly as good as trained.", "Cazenavette et al., arXiv 2503.16760",
       ("21_cube",), ("probe",),
       f"frozen − trained is not below −2 points (non-inferiority) for each of the four static cells, {HOLM}")  # fmt: skip
def f5(e):
    for cell in STATIC:
        yield e.test(f"{cell}_frozen − {cell}", e.of(mixer=f"{cell}_frozen") - e.of(mixer=cell), "not below", -2.0)


# ---- S: symmetry and space ----------------------------------------------------------------------------------------


def permutation(e):
    """How the tokens of a sweep are permuted; moved pixels are moved tokens only where a token is a pixel. Raises Absent."""
    kinds = {run["permute"] for run in e.sweep.runs}
    if "patches" in kinds:
        return "patches"
    if "pixels" in kinds and e.sweep.runs[0]["patch"] == 1:
        return "pixels"
    raise Absent("no run whose tokens are permuted")


@claim("S1", "Under BERT a fixed permutation of the tokens leaves full and attn as they are and harms the other six cells.",
       "this suite", ("26_permutation",), ("probe", "loss"),
       f"full and attn: within 1 point or 1 % of the loss (two one-sided tests); the others: below 0, {HOLM}")  # fmt: skip
def s1(e):
    moved = permutation(e)
    for cell in CUBE:
        plain, goal = e.of(mixer=cell, permute="none", pretext="bert"), "within" if cell in CLOSED else "below"
        change = e.of(mixer=cell, permute=moved, pretext="bert") - plain
        of, unit = (change, "points") if e.metric == "probe" else (e.relative(change, plain), "% of the loss")
        yield e.test(f"{cell}, permuted − not", of, goal, 1.0 if goal == "within" else 0.0, unit=unit)


@claim("S2", "On the torus the shared cells commute with shifts at any weights, the others do not.", "this suite",
       ("30_symmetry",), ("roll_error",),
       "every network, at init and trained, every layer: roll error below 1e-5 (shared) or above .01 (not shared)")  # fmt: skip
def s2(e):
    shared = [e.of(mixer=cell, padding="circular", position="none") for cell in CUBE if MIXERS[cell].shared]
    others = [e.of(mixer=cell, padding="circular") for cell in CUBE if not MIXERS[cell].shared]

    def error(pick, key):
        """The largest or smallest error of a run, at init or trained, in any layer."""
        return pick(pick(record["measures"]["roll_error"][1:]) for record in (e.start(key), e.record(key)))

    yield e.test("shared cells, largest", e.combined(max, shared, partial(error, max)), "all below", 1e-5)
    yield e.test("the others, smallest", e.combined(min, others, partial(error, min)), "all above", 0.01)


@claim("S3", "Training makes attention more equivariant.", "Gruver et al., arXiv 2210.02984", ("30_symmetry",), ("lie_error",),
       "the log ratio of attn's Lie error, trained over init, is below 0")  # fmt: skip
def s3(e):
    if any(run["input"] == "palette" for run in e.sweep.runs):
        raise Absent("colour indices have no Lie error")

    def growth(key):
        end, start = (record["measures"]["lie_error"] for record in (e.record(key), e.start(key)))
        return float(np.log(end[-1] / start[-1]))

    yield e.test("attn, log(end / init) of the last layer", e.of(mixer="attn"), "below", value=growth, unit="nats")


@claim("S4", "Attention learns locality.", "this suite", ("31_receptive_field",), ("distance",),
       "the mean mixing distance of attn's first layer less that of uniform mixing is below 0")  # fmt: skip
def s4(e):
    def reach(record):
        return float(np.mean(record["measures"]["mixing_distance"][0]))

    def beyond_uniform(key):
        return reach(e.record(key)) - e.record(key)["measures"]["uniform_distance"]

    def growth(key):
        return reach(e.record(key)) - reach(e.start(key))

    yield e.test("attn, layer 1 − uniform", e.of(mixer="attn"), "below", value=beyond_uniform)
    yield e.test("attn, layer 1, trained − init", e.of(mixer="attn"), "below", value=growth, decides=False)


@claim("S5", "Attention is low-pass, convolution high-pass.", VIT, ("20_trio",), ("spectrum",),
       f"from embedding to last layer the log amplitude at the highest frequency falls for igpt and rises for convmixer, "
       f"{HOLM}; 32x32 tokens only")  # fmt: skip
def s5(e):
    run = e.sweep.runs[0]
    side = run["image_size"] // run["patch"]
    if side != 32:
        raise Absent(f"needs a grid of 32x32 tokens, this is {side}x{side}")
    depths = e.levels("depth")

    def change(key):
        spectrum = e.record(key)["measures"]["spectrum"]
        return spectrum[-1][-1] - spectrum[0][-1]

    for mixer, goal in (("igpt", "below"), ("convmixer", "above")):
        runs = mean(e.of(mixer=mixer, depth=depth) for depth in depths)
        yield e.test(f"{mixer}, last layer − embedding", runs, goal, value=change)


# ---- L: what the literature says of layers, tasks and probes -------------------------------------------------------


def tau(e, forms, column, sign=1):
    """Kendall's tau per seed, over forms, between the probe and another column of the runs, its sign turned by -1."""

    def correlation(values):
        return stats.kendall(values[: len(forms)], values[len(forms) :])[0]

    others = [partial(e.values, sign * form, column) for form in forms]
    return e.combined(correlation, [*others, *(partial(e.values, form, "probe") for form in forms)])


@claim("L1", "The best probe layer lies inside, the last one loses.", IGPT, ("20_trio", "24_geometry"), ("probe_best",),
       f"best layer − last layer is above 0 for each of the trio, at depths of {SHALLOW} and more, {HOLM}")  # fmt: skip
def l1(e):
    depths = [depth for depth in e.levels("depth") if depth >= SHALLOW]
    if not depths:
        raise Absent(f"needs a depth of {SHALLOW} or more, has up to {max(e.levels('depth'))}")

    def lost(key):
        accuracies = e.choice(key).by_layer(e.record(key)["probe"])
        return 100 * (accuracies[e.choice(key).layer] - accuracies[-1])

    def inside(key):
        choice = e.choice(key)
        return float(0 < choice.layer < len(choice.penalties) - 1)

    forms = {mixer: mean(e.of(mixer=mixer, depth=depth) for depth in depths) for mixer in TRIO}
    for mixer, form in forms.items():
        yield e.test(f"{mixer}, best − last layer", form, "above", value=lost)
    label = "share of runs whose best layer is inside"
    yield e.test(label, mean(forms.values()), "above", 0.5, value=inside, unit="", decides=False)


@claim("L2", "Autoregression gives better features than BERT.", IGPT, ("23_pretext",), ("probe", "probe_best"),
       f"ar − bert is above 0 for each of the trio, {HOLM}; the interaction with the operator is shown")  # fmt: skip
def l2(e):
    gains = {mixer: e.of(mixer=mixer, pretext="ar") - e.of(mixer=mixer, pretext="bert") for mixer in TRIO}
    for mixer, gain in gains.items():
        yield e.test(f"{mixer}, ar − bert", gain, "above")
    for mixer in ("convmixer", "mixer"):
        yield e.test(f"gain of igpt − gain of {mixer}", gains["igpt"] - gains[mixer], "differs", 1.0, decides=False)


@claim("L3", "A lower pretext loss means better features within an operator, not across operators.", "this suite",
       ("24_geometry",), ("rank",),
       f"Kendall's tau of loss (sign turned) and probe is above 0 within an operator and below 0 across, {HOLM}")  # fmt: skip
def l3(e):
    """Over runs whose losses can be compared: the levels of depth, width and kernel at the base of everything else."""
    points = {mixer: [e.of(mixer=mixer)] for mixer in TRIO}
    for name in ("depth", "width", "kernel"):
        for mixer in TRIO:
            asked = {run[name] for run in e.sweep.runs if run["mixer"] == mixer and name in run}
            others = sorted(level for level in asked if level != e.base.get(name, level))
            points[mixer] += [e.of(mixer=mixer, **{name: level}) for level in others]
    if min(map(len, points.values())) < 3:
        raise Absent("needs 3 depths or widths")

    within, across = points.values(), zip(*points.values(), strict=False)  # up to the fewest levels
    for where, groups, goal in (("within an operator", within, "above"), ("across operators", across, "below")):
        taus = [tau(e, forms, "loss", sign=-1) for forms in groups]
        yield e.test(f"tau {where}", e.combined(np.mean, taus), goal)


@claim("L4", "k-NN and the linear probe rank operators alike.", "this suite", ("21_cube",), ("rank",),
       "Kendall's tau of the two over the eight cells, per seed, is above .5")  # fmt: skip
def l4(e):
    cells = [e.of(mixer=cell) for cell in CUBE]
    yield e.test("tau of k-NN and linear probe over the cells", tau(e, cells, "knn"), "above", 0.5)


@claim("L5", "More hidden tokens make better features where a token is a patch, worse where it is a pixel.",
       f"{IGPT}; He et al., arXiv 2111.06377", ("24_geometry",), ("probe",),
       "Page's trend test of the probe over mask rates: rising for patches, falling for pixels")  # fmt: skip
def l5(e):
    rates, patch = e.levels("mask_rate", least=3), e.sweep.runs[0]["patch"]
    forms = [mean(e.of(mixer=mixer, mask_rate=rate) for mixer in TRIO) for rate in rates]
    rows = pd.DataFrame([e.values(form) for form in forms]).T.to_numpy()
    label, goal = f"slope of the probe over the mask rate, patch {patch}", "above" if patch > 1 else "below"
    test = e.test(label, 0.1 * slope(rates, forms), goal, unit="points per .1 of mask rate")
    if test.n > 1:
        rising = test.effect.mean > 0  # Page's ranks count where the slope goes the same way
        p = stats.page(rows if rising else -rows)
        test.p = (p, 1.0) if rising == (patch > 1) else (1.0, p)
    yield test


# ---- D: data and compute; N: numerics -----------------------------------------------------------------------------


def sizes(e, name):
    """(numbers of images, levels) of a field whose 0 stands for all, ascending; the number of all is read from a record of a
    run that has all."""
    whole = [run["key"] for run in e.sweep.runs if run.get(name) == 0 and e.sweep.store.has(run["key"])]
    every = e.record(whole[0])["data"]["pool" if name == "images" else "train"] if whole else 10**9
    pairs = sorted((level or every, level) for level in e.levels(name, least=2))
    return [number for number, _ in pairs], [level for _, level in pairs]


@claim("D1", "A bias helps more when data are fewer.", "this suite", ("27_sample_size",), ("probe", "psnr"),
       f"convmixer − igpt is above 0 with the fewest unlabelled images, its slope on log2 of their number below 0, {HOLM};"
       " labelled ones are shown")  # fmt: skip
def d1(e):
    e.levels("images", least=2)
    unit = f"{METRICS[e.metric].unit} per doubling"
    for name in ("images", "labelled"):
        if len(e.levels(name)) < 2:
            continue
        numbers, levels = sizes(e, name)
        gaps = [e.of(mixer="convmixer", **{name: level}) - e.of(mixer="igpt", **{name: level}) for level in levels]
        decides, trend = name == "images", slope(np.log2(numbers), gaps)
        yield e.test(f"slope of convmixer − igpt over {name}", trend, "below", unit=unit, decides=decides)
        yield e.test(f"convmixer − igpt with the fewest {name}", gaps[0], "above", decides=decides)


@claim("D2", "Where the translation prior is false, weight sharing harms.", "this suite", ("30_symmetry",), ("probe", "psnr"),
       f"shared − free static cells is above 0 on a data set and below 0 on its twin with a code by place, {HOLM}")  # fmt: skip
def d2(e):
    twin = next((name for name in e.levels("dataset") if name in CODED), "leaves_coded")

    def sharing(data):
        """What sharing weights gains on a data set."""
        conv, gconv, lc, full = (e.of(mixer=mixer, dataset=data, padding="zeros") for mixer in ("conv", "gconv", "lc", "full"))
        return mean([conv, gconv]) - mean([lc, full])

    true, false = sharing(CODED[twin]), sharing(twin)
    yield e.test("sharing where the prior is true", true, "above")
    yield e.test("sharing where it is false", false, "below")
    yield e.test("true − false", true - false, "above", decides=False)


@claim("D3", "Removing skip connections harms attention more than convolution, and the difference grows with depth.",
       "this suite", ("25_skip",), ("probe",),
       "the slope on log2 depth of harm to igpt less harm to convmixer is above 0")  # fmt: skip
def d3(e):
    depths = e.levels("depth", least=2)

    def harm(mixer, depth):
        return e.of(mixer=mixer, depth=depth, skip="both") - e.of(mixer=mixer, depth=depth, skip="none")

    extra = [harm("igpt", depth) - harm("convmixer", depth) for depth in depths]
    trend = slope(np.log2(depths), extra)
    yield e.test("slope of harm to igpt − harm to convmixer", trend, "above", unit="points per doubling")
    yield e.test("harm to igpt − harm to convmixer", mean(extra), "above", decides=False)


@claim("D4", "Smaller patches help only with enough compute.", "this suite", ("24_geometry",), ("probe",),
       "at about equal FLOP, patch 2 − patch 4 is larger at four times the FLOP than at once, and above 0 there")  # fmt: skip
def d4(e):
    """Patch 2 trained for s/4 and s steps against patch 4 for s and 4s, which cost about the same."""
    steps = e.base.get("steps")
    if not steps:
        raise Absent("needs patches 2 and 4 at two budgets of equal FLOP")

    def gain(fine, coarse):
        """Of patch 2 over patch 4, with these settings of each."""
        return mean(e.of(mixer=mixer, patch=2, **fine) - e.of(mixer=mixer, patch=4, **coarse) for mixer in TRIO)

    low, high = gain({"steps": steps // 4}, {"steps": steps}), gain({"steps": steps}, {"steps": 4 * steps})
    yield e.test("gain of patch 2, four times the FLOP − once", high - low, "above")
    yield e.test("gain of patch 2 at four times the FLOP", high, "above")
    yield e.test("gain of patch 2 at once the FLOP", low, "above", decides=False)
    yield e.test("gain of patch 2 at equal steps", gain({}, {}), "above", decides=False)


@claim("N1", "Results do not depend on the arithmetic.", "this suite", ("29_precision",), ("probe", "loss"),
       f"bf16 − fp32 within .5 points, or 1 % of the loss, for each of the trio (two one-sided tests), {HOLM}")  # fmt: skip
def n1(e):
    for mixer in TRIO:
        plain = e.of(mixer=mixer, precision="fp32")
        change = e.of(mixer=mixer, precision="bf16") - plain
        of, margin, unit = (change, 0.5, None) if e.metric == "probe" else (e.relative(change, plain), 1.0, "% of the loss")
        yield e.test(f"{mixer}, bf16 − fp32", of, "within", margin, unit=unit)


@claim("O1", "The order of the operators does not depend on the optimizer.", "this suite", ("32_optimizer",),
       ("psnr", "probe"),
       "for every pair of the trio the difference has the same sign under AdamW and Muon, each at its own rate, and a t test "
       "shows it under both; contradicted if both show opposite signs")  # fmt: skip
def o1(e):
    rates = {run["optimizer"]: run["lr"] for run in e.sweep.runs}
    if set(rates) != {"adamw", "muon"}:
        raise Absent("needs runs of both optimizers")
    for one, other in itertools.combinations(TRIO, 2):
        gaps, found = {}, {}
        for optimizer, lr in rates.items():
            with_it = {"optimizer": optimizer, "lr": lr, "pretext": "bert"}
            gaps[optimizer] = e.of(mixer=one, **with_it) - e.of(mixer=other, **with_it)
            test = e.test(f"{one} − {other}, {optimizer}", gaps[optimizer], "differs", decides=False)
            found[optimizer] = test.effect
            yield test
        sign, p = -1.0 if found["adamw"].mean < 0 else 1.0, max(found["adamw"].p, found["muon"].p)
        alike = sign * found["muon"].mean > 0
        of_both = sign * gaps["muon"] + 0 * gaps["adamw"]  # a seed counts if it has the runs of both
        both = e.test(f"{one} − {other} under muon, in the direction of adamw", of_both, "above")
        yield replace(both, p=(p, 1.0) if alike else (1.0, p))


# ---- all of them --------------------------------------------------------------------------------------------------


def findings(stores, claims=CLAIMS):
    """What the sweeps of these stores say: a Finding per claim, metric and sweep, or one that says why there is none. Raises
    StoreError for a broken record."""
    found = []
    for store in stores:
        made = [(sweep, runs_of(sweep), {}) for sweep in store.sweeps() if sweep.runs]
        for claim in claims:
            own = [given for given in made if given[0].content["notebook"] in claim.notebooks]
            for metric in claim.metrics:
                decided, lacks = [], f"no run of {' or '.join(claim.notebooks)}"
                for sweep, runs, records in own:
                    try:
                        decided.append(find(claim, Evidence(sweep, metric, runs, records)))
                    except Absent as reason:
                        lacks = str(reason)
                found += decided or [Finding(claim, store.profile, metric, "not run", lacks)]
    return found
