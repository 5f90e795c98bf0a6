"""The claims: what is claimed and by whom, the rule that decides it, and the tests that apply the rule to saved records.

The function below a claim takes the Evidence of a sweep and yields Tests. A run is named by its fields with `of`; sums and
differences of runs are taken per seed. `reference` names the networks that must be trained for a test to say anything."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..config import CODED, SHALLOW
from ..operators import CUBE, MIXERS, TRIO
from .contrasts import METRICS, Absent, Evidence, Form, mean, runs_of, slope, total
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
    any: bool = False  # holds if any deciding test does, after Holm's correction; else all must hold, without one
    rows: tuple = ()  # parts that have a verdict each
    holm: bool = False  # Holm's correction over all rows


PAPER, VIT, IGPT = "Cazenavette & Lucey, arXiv 2105.14077", "Park & Kim, arXiv 2202.06709", "Chen et al., image-GPT, 2020"
CLOSED = ("full", "attn")  # closed under permutation of the tokens
STATIC = ("conv", "gconv", "lc", "full")
PAIRS_OF_CELLS = (("lattn", "conv"), ("gattn", "gconv"), ("lattn_abs", "lc"), ("attn", "full"))  # dynamic, static
SIMPLEX = {"attn": "static_softmax", "gattn": "static_softmax_shared"}  # the control without content
MARGIN = {"probe": 1.0, "psnr": 0.1}  # points, dB: smaller effects are negligible
CLAIMS = []


def claim(*what, **more):
    """List a Claim; the function below it yields its tests."""

    def listed(tests):
        CLAIMS.append(Claim(*what, tests, **more))
        return tests

    return listed


# ---- P: what the paper claims -------------------------------------------------------------------------------------

FRACTIONS = {"1/8": 8, "1/4": 4, "1/2": 2}  # of the steps


def over_igpt(e, other):
    """Tests of what another network of the trio gains over igpt in filling in hidden tokens, averaged over shallow depths, at
    the end and, where records have it, earlier in the same runs."""
    depths, margin = e.levels("depth", most=SHALLOW), {"psnr": 0.1, "loss": 0.0}[e.metric]
    better = mean(e.of(mixer=other, depth=depth, pretext="bert") for depth in depths)
    gap = better - mean(e.of(mixer="igpt", depth=depth, pretext="bert") for depth in depths)
    end = e.test(f"{other} − igpt", gap, "above", margin, better)
    yield end
    if e.metric != "psnr":
        return
    done = [key for part in gap.values() for key in part if e.runs.at[key, "status"] == "done"]
    if not any("psnr_by_step" in e.record(key) for key in done):
        e.notes += ["records without PSNR at 1/8, 1/4 and 1/2 of the steps (psnr_by_step)"] if done else []
        return
    turned = []
    for words, part in FRACTIONS.items():
        early = partial(psnr_at, e, part)
        test = e.test(f"{other} − igpt at {words} of the steps", gap, "above", margin, better, early, decides=False)
        if test.effect.mean * end.effect.mean < 0:
            turned.append(words)
        yield test
    if turned:
        e.notes.append(f"{other} − igpt has the opposite sign at {', '.join(turned)} of the steps")


def psnr_at(e, part, key):
    """The PSNR of a run after one part-th of its steps, NaN if its record does not have it."""
    if e.diverged(key):
        return e.value(key)
    record = e.record(key)
    rows = {row["step"]: row["psnr"] for row in record.get("psnr_by_step", ())}
    return rows.get(record["steps"] // part, np.nan)


SHALLOWER = f"averaged over depths up to {SHALLOW}"


@claim("P1a", "Shallow attention (igpt) reconstructs hidden pixels worse than convolution (convmixer).", f"{PAPER}, Figure 1",
       ("20_trio",), ("psnr", "loss"), f"{SHALLOWER}, convmixer − igpt is above .1 dB, or above 0 in the loss; PSNR at 1/8, "
       "1/4 and 1/2 of the steps is shown")  # fmt: skip
def p1a(e):
    yield from over_igpt(e, "convmixer")


@claim("P1b", "Shallow attention (igpt) reconstructs hidden pixels worse than the mixer.", f"{PAPER}, Figure 1",
       ("20_trio",), ("psnr", "loss"), f"{SHALLOWER}, mixer − igpt is above .1 dB, or above 0 in the loss; PSNR at 1/8, 1/4 "
       "and 1/2 of the steps is shown, as the two may cross")  # fmt: skip
def p1b(e):
    yield from over_igpt(e, "mixer")


@claim("P2", "The gap between attention (igpt) and the others shrinks with depth.",
       f"{PAPER}, caption of Figure 1: relatively shallow", ("20_trio",), ("psnr", "loss"),
       "the slope of each gap on log2 depth is below 0, one row each; the gap at the smallest depth is shown",
       rows=("convmixer − igpt", "mixer − igpt"))  # fmt: skip
def p2(e):
    depths, unit = e.levels("depth", least=2), f"{METRICS[e.metric].unit} per doubling".strip()
    for other in ("convmixer", "mixer"):
        others = [e.of(mixer=other, depth=depth, pretext="bert") for depth in depths]
        gaps = [form - e.of(mixer="igpt", depth=depth, pretext="bert") for form, depth in zip(others, depths, strict=True)]
        given = {"reference": mean(others), "row": f"{other} − igpt"}
        yield e.test(f"slope of {other} − igpt", slope(np.log2(depths), gaps), "below", unit=unit, **given)
        yield e.test(f"{other} − igpt at depth {depths[0]}", gaps[0], "above", decides=False, **given)


@claim("P3", "Taking biases away is not always ideal: a cell with more biases has better features than attn.",
       f"{PAPER}, abstract", ("21_cube",), ("probe",),
       "any of the seven other cells less attn is above 0, after Holm's correction over seven", any=True)  # fmt: skip
def p3(e):
    for cell in CUBE:
        if cell != "attn":
            better = e.of(mixer=cell)
            yield e.test(f"{cell} − attn", better - e.of(mixer="attn"), "above", reference=better)


@claim("P4", "One-hot colours are worse than RGB in small networks.", f"{PAPER}, abstract (the removal; the direction is ours)",
       ("22_representation",), ("probe", "psnr"), "one-hot − RGB, averaged over the trio with target rgb, is below 0; "
       "both steps, by quantised RGB, are shown")  # fmt: skip
def p4(e):
    def network(name):
        return mean(e.of(mixer=mixer, input=name, target="rgb") for mixer in TRIO)

    rgb, quantised, palette = network("rgb"), network("quantised"), network("palette")
    yield e.test("one-hot − RGB", palette - rgb, "below", reference=rgb)
    yield e.test("one-hot − quantised", palette - quantised, "below", reference=quantised, decides=False)
    yield e.test("quantised − RGB", quantised - rgb, "below", reference=rgb, decides=False)


# ---- F: the factors -----------------------------------------------------------------------------------------------


def effect(e, *axes):
    """Main effect or interaction of the cube: the mean of the cells where the product of signs is + less that where it is -."""
    signs = {cell: np.prod([1 if getattr(MIXERS[cell], axis) else -1 for axis in axes]) for cell in CUBE}
    return total(float(sign) / 4 * e.of(mixer=cell) for cell, sign in signs.items())


@claim("F1", "Locality, weight sharing and input dependence help or harm, alone or together.", "this suite", ("21_cube",),
       ("probe", "psnr"),
       "each of the 7 effects of the 2 x 2 x 2 design helps or harms by more than 1 point or .1 dB, after Holm's correction "
       "over 7, or is negligible, within that of 0; input dependence is shown by pair of cells, and in the global cells also "
       "against static weights with attention's softmax", rows=tuple(EFFECTS.values()), holm=True)  # fmt: skip
def f1(e):
    cells = mean(e.of(mixer=cell) for cell in CUBE)
    for name in EFFECTS.values():
        yield e.test(name, effect(e, *name.split(" x ")), "differs", MARGIN[e.metric], cells, row=name)
    shown = {"reference": cells, "row": "dynamic", "decides": False}
    for dynamic, static in PAIRS_OF_CELLS:
        gain = e.of(mixer=dynamic) - e.of(mixer=static)
        yield e.test(f"input dependence, {dynamic} − {static}", gain, "differs", MARGIN[e.metric], **shown)
    if {run["mixer"] for run in e.sweep.runs}.issuperset(SIMPLEX.values()):
        static = dict(PAIRS_OF_CELLS)
        for dynamic, softmax in SIMPLEX.items():
            gain, control = e.of(mixer=dynamic) - e.of(mixer=softmax), e.of(mixer=softmax) - e.of(mixer=static[dynamic])
            yield e.test(f"input dependence, {dynamic} − {softmax}", gain, "differs", MARGIN[e.metric], **shown)
            yield e.test(f"softmax alone, {softmax} − {static[dynamic]}", control, "differs", MARGIN[e.metric], **shown)


@claim("F2", "Input dependence improves the features of the cells, and by more than global reach does.", VIT, ("21_cube",),
       ("probe",), "the main effect of input dependence is above 0 and above that of global reach")  # fmt: skip
def f2(e):
    attention = mean(e.of(mixer=cell) for cell in CUBE if MIXERS[cell].dynamic)
    yield e.test("input dependence", effect(e, "dynamic"), "above", reference=attention)
    yield e.test("input dependence − long range", effect(e, "dynamic") + effect(e, "local"), "above", reference=attention)
    yield e.test("long range (not local)", -1 * effect(e, "local"), "above", reference=attention, decides=False)


@claim("F3", "Attention (attn, gattn) is better than static mixing with the same softmax normalisation.", "this suite",
       ("21_cube",), ("probe", "psnr"),
       "attn − static_softmax and gattn − static_softmax_shared are above 0, one row each; negligible if within 1 point or "
       ".1 dB of 0", rows=tuple(f"{cell} − {control}" for cell, control in SIMPLEX.items()))  # fmt: skip
def f3(e):
    for cell, control in SIMPLEX.items():
        better, row = e.of(mixer=cell), f"{cell} − {control}"
        yield e.test(row, better - e.of(mixer=control), "above", reference=better, small=MARGIN[e.metric], row=row)


@claim("F4", "Between shared and free weights, an intermediate rank is better than both ends.",
       "Elsayed et al., arXiv 2002.02959", ("21_cube",), ("probe",),
       "the interior rank of lowrank that is best in the validation of the other seeds, less the lowest and less the highest, "
       "is above 0, both")  # fmt: skip
def f4(e):
    ranks = sorted({run["rank"] for run in e.sweep.runs if run["mixer"] == "lowrank"})
    if len(ranks) < 3:
        raise Absent(f"needs 3 ranks of lowrank, has {len(ranks)}")
    forms = {rank: e.of(mixer="lowrank", rank=rank) for rank in ranks}
    validation = {rank: e.values(forms[rank], "val_probe") for rank in ranks[1:-1]}
    seeds, interior = set.intersection(*map(set, validation.values())), Form()
    for seed in sorted(seeds) if len(seeds) > 1 else ():
        means = {rank: np.mean([found[other] for other in seeds - {seed}]) for rank, found in validation.items()}
        interior[seed] = forms[max(means, key=means.get)][seed]
    for end in (ranks[0], ranks[-1]):
        yield e.test(f"best of rank {ranks[1:-1]} − rank {end}", interior - forms[end], "above", reference=interior)


@claim("F5", "Random frozen mixing of positions is nearly as good as trained.", "Cazenavette et al., arXiv 2503.16760",
       ("21_cube",), ("probe",),
       "frozen − trained is not below half of what training gains, −½ (trained − random init), by a one-sided test "
       "(non-inferiority), one row per static cell", rows=STATIC)  # fmt: skip
def f5(e):
    def start(key):
        return METRICS[e.metric].scale * e.runs.at[key, "init_probe"]

    def kept(values):
        frozen, trained, init = values
        return frozen - trained + (trained - init) / 2

    for cell in STATIC:
        frozen, trained = e.of(mixer=f"{cell}_frozen"), e.of(mixer=cell)
        beyond = e.combined(kept, [frozen, trained, e.values(trained, start)])
        label = f"{cell}_frozen − {cell}, plus half of the gain from training"
        yield e.test(label, beyond, "not below", reference=trained, row=cell)
        yield e.test(f"{cell}_frozen − {cell}", frozen - trained, "above", reference=trained, decides=False, row=cell)


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
       "permuted − not: of full and attn within 1 point or 2 % of the loss (two one-sided tests), of the others below 0; one "
       "row each", rows=CUBE)  # fmt: skip
def s1(e):
    moved, margin = permutation(e), {"probe": 1.0, "loss": 2.0}[e.metric]
    for cell in CUBE:
        plain, goal = e.of(mixer=cell, permute="none", pretext="bert"), "within" if cell in CLOSED else "below"
        change = e.of(mixer=cell, permute=moved, pretext="bert") - plain
        of, unit = (change, "points") if e.metric == "probe" else (e.relative(change, plain), "% of the loss")
        yield e.test(f"{cell}, permuted − not", of, goal, margin if goal == "within" else 0.0, plain, unit=unit, row=cell)


@claim("S2", "With circular padding the cells that share weights are exactly shift-equivariant; the others are not.",
       "this suite", ("30_symmetry",), ("roll_error",),
       "every network, at init and trained, every layer: roll error below 1e-5 (shared) or above .01 (not shared)")  # fmt: skip
def s2(e):
    shared = [e.of(mixer=cell, padding="circular", position="none") for cell in CUBE if MIXERS[cell].shared]
    others = [e.of(mixer=cell, padding="circular") for cell in CUBE if not MIXERS[cell].shared]

    def error(pick, key):
        """The largest or smallest error of a run, at init or trained, in any layer."""
        return pick(pick(record["measures"]["roll_error"][1:]) for record in (e.start(key), e.final(key)))

    yield e.test("shared cells, largest", e.combined(max, shared, partial(error, max)), "all below", 1e-5)
    yield e.test("the others, smallest", e.combined(min, others, partial(error, min)), "all above", 0.01)


@claim("S3", "Training makes attention (attn) more equivariant.", "Gruver et al., arXiv 2210.02984", ("30_symmetry",),
       ("lie_error",), "the log ratio of attn's Lie error, trained over init, is below 0")  # fmt: skip
def s3(e):
    if any(run["input"] == "palette" for run in e.sweep.runs):
        raise Absent("colour indices have no Lie error")

    def growth(key):
        end, start = (record["measures"]["lie_error"] for record in (e.final(key), e.start(key)))
        return float(np.log(end[-1] / start[-1]))

    attn = e.of(mixer="attn")
    yield e.test("attn, log(end / init) of the last layer", attn, "below", reference=attn, value=growth, unit="nats")


def change_of(e, measure, number, key):
    """The number that a function makes of a measure of a run, trained less at init; NaN if records lack the measure."""
    end, start = (record["measures"].get(measure) for record in (e.final(key), e.start(key)))
    return np.nan if end is None or start is None else float(number(end) - number(start))


def lacking(e, form, measure):
    """What the records of a form lack if they do not have a measure, in words."""
    keys = sorted({key for part in form.values() for key in part} & e.counted)
    return f"records without {measure}" if keys and measure not in e.final(keys[0])["measures"] else ""


@claim("S4", "Attention (attn) learns locality.", "this suite", ("31_receptive_field",), ("distance",),
       "the mean mixing distance of attn's first layer, trained − init, is below 0: of the whole matrix, and of its content "
       "alone, without the table of positions; one row each, full beside it",
       rows=("the whole matrix", "its content alone"))  # fmt: skip
def s4(e):
    def first_layer(distances):
        return np.mean(distances[0])

    attn, full = e.of(mixer="attn"), e.of(mixer="full")
    change, whole = partial(change_of, e, "mixing_distance", first_layer), {"reference": attn, "row": "the whole matrix"}
    yield e.test("attn, layer 1, trained − init", attn, "below", value=change, **whole)
    yield e.test("full, layer 1, trained − init", full, "below", value=change, decides=False, **whole)
    yield e.test("attn − full, layer 1, trained − init", attn - full, "below", value=change, decides=False, **whole)
    content = partial(change_of, e, "content_distance", first_layer)
    yield e.test("content of attn, layer 1, trained − init", attn, "below", reference=attn, value=content,
                 row="its content alone", lacks=lacking(e, attn, "content_distance"))  # fmt: skip


@claim("S5", "Attention (igpt) is low-pass, convolution (convmixer) high-pass.", VIT, ("20_trio", "24_geometry"),
       ("spectrum",),
       "over the mixing sub-blocks the log amplitude at the highest frequency falls for igpt and rises for convmixer, trained "
       "− init, both; grids of 16x16 tokens or more; whole networks are shown")  # fmt: skip
def s5(e):
    size = e.sweep.runs[0]["image_size"]
    fine = [patch for patch in e.levels("patch") if size // patch >= 16]
    if not fine:
        side = size // min(e.levels("patch"))
        raise Absent(f"needs a grid of 16x16 tokens or more, this is {side}x{side}")
    patch = max(fine)
    depths = sorted({run["depth"] for run in e.sweep.runs if run["patch"] == patch})

    def highest(spectrum):
        return spectrum[-1][-1] - spectrum[0][-1]

    for mixer, goal in (("igpt", "below"), ("convmixer", "above")):
        runs = mean(e.of(mixer=mixer, depth=depth, patch=patch) for depth in depths)
        yield e.test(f"{mixer}, mean over mixing sub-blocks, trained − init", runs, goal, reference=runs,
                     value=partial(change_of, e, "mixing_spectrum", np.mean),
                     lacks=lacking(e, runs, "mixing_spectrum"))  # fmt: skip
        yield e.test(f"{mixer}, last layer − embedding, trained − init", runs, goal, reference=runs,
                     value=partial(change_of, e, "spectrum", highest), decides=False)  # fmt: skip


# ---- L: what the literature says of layers, tasks and probes -------------------------------------------------------


@claim("L1", "An intermediate layer has better features than the last.", IGPT, ("20_trio", "24_geometry"), ("probe_best",),
       f"at every depth of {SHALLOW} and more the best layer, by validation accuracy averaged over seeds, is neither the "
       "embedding nor the last, and best − last is above 0; one row per network", rows=TRIO)  # fmt: skip
def l1(e):
    depths = [depth for depth in e.levels("depth") if depth >= SHALLOW]
    if not depths:
        raise Absent(f"needs a depth of {SHALLOW} or more, has up to {max(e.levels('depth'))}")

    def lost(key):
        accuracies = e.choice(key).by_layer(e.final(key)["probe"])
        return 100 * (accuracies[e.choice(key).layer] - accuracies[-1])

    def inside(key):
        choice = e.choice(key)
        return float(0 < choice.layer < len(choice.penalties) - 1)

    for mixer in TRIO:
        runs = mean(e.of(mixer=mixer, depth=depth) for depth in depths)
        yield e.test(f"{mixer}, best − last layer", runs, "above", reference=runs, value=lost, row=mixer)
        # All seeds of an arm share one layer: the values do not vary, and the test says yes or no.
        yield e.test(f"{mixer}, share of depths whose best layer is inside", runs, "above", 0.5, runs, inside, "", small=0.0,
                     row=mixer)  # fmt: skip


@claim("L2", "Autoregression gives better features than BERT.", IGPT, ("23_pretext",), ("probe",),
       "ar − bert is above 0, one row per network; the interaction with the operator is shown", rows=TRIO)  # fmt: skip
def l2(e):
    better = {mixer: e.of(mixer=mixer, pretext="ar") for mixer in TRIO}
    gains = {mixer: better[mixer] - e.of(mixer=mixer, pretext="bert") for mixer in TRIO}
    for mixer, gain in gains.items():
        yield e.test(f"{mixer}, ar − bert", gain, "above", reference=better[mixer], row=mixer)
    for mixer in ("convmixer", "mixer"):
        label, more = f"gain of igpt − gain of {mixer}", gains["igpt"] - gains[mixer]
        yield e.test(label, more, "differs", reference=better["igpt"], decides=False, row="igpt")


@claim("L3", "A lower pretext loss means better features within an operator, not across operators.", "this suite",
       ("24_geometry",), ("rank",),
       "Kendall's tau of loss (sign turned) and probe, of the means over seeds, is above 0 within an operator, by permutation, "
       "and at most 0 across operators; both")  # fmt: skip
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

    within, across = list(points.values()), list(zip(*points.values(), strict=False))  # up to the fewest levels
    everything = mean(form for forms in within for form in forms)
    yield e.rank_test("tau within an operator", within, "loss", "above", everything, sign=-1)
    yield e.rank_test("tau across operators", across, "loss", "at most", everything, sign=-1)


@claim("L4", "k-NN and the linear probe rank operators alike.", "this suite", ("21_cube",), ("rank",),
       "Kendall's tau of the two over the eight cells, of the means over seeds, is above 0 by permutation")  # fmt: skip
def l4(e):
    cells = [e.of(mixer=cell) for cell in CUBE]
    yield e.rank_test("tau of k-NN and linear probe over the cells", [cells], "knn", "above", mean(cells))


def over_rates(e, least, goal):
    """The test of the probe's slope over mask rates from `least` on, averaged over the trio."""
    rates = [rate for rate in e.levels("mask_rate", least=3) if rate >= least]
    if len(rates) < 2:
        raise Absent(f"needs 2 mask rates of {least} or more")
    forms = [mean(e.of(mixer=mixer, mask_rate=rate) for mixer in TRIO) for rate in rates]
    label, better = f"slope of the probe over mask rates {rates[0]:g} to {rates[-1]:g}", forms[0 if goal == "below" else -1]
    yield e.test(label, 0.1 * slope(rates, forms), goal, reference=better, unit="points per .1 of mask rate")


@claim("L5a", "Where a token is a pixel, hiding more than .15 makes features worse.", IGPT, ("24_geometry",), ("probe",),
       "the slope of the probe over mask rates of .15 and more, averaged over the trio, is below 0; patch 1")  # fmt: skip
def l5a(e):
    if e.sweep.runs[0]["patch"] > 1:
        raise Absent(f"needs patch 1, this is {e.sweep.runs[0]['patch']}")
    yield from over_rates(e, 0.15, "below")


@claim("L5b", "Where a token is a patch, hiding more makes features better.", "He et al., arXiv 2111.06377", ("24_geometry",),
       ("probe",), "the slope of the probe over mask rates, averaged over the trio, is above 0; patch 2 or more")  # fmt: skip
def l5b(e):
    if e.sweep.runs[0]["patch"] == 1:
        raise Absent("needs patch 2 or more, this is 1")
    yield from over_rates(e, 0.0, "above")


# ---- D: data and compute; N: numerics -----------------------------------------------------------------------------


def sizes(e, name):
    """(numbers of images, levels) of a field whose 0 stands for all, ascending; the number of all is read from a record of a
    run that has all."""
    whole = [run["key"] for run in e.sweep.runs if run.get(name) == 0 and e.sweep.store.has(run["key"])]
    every = e.record(whole[0])["data"]["pool" if name == "images" else "train"] if whole else 10**9
    pairs = sorted((level or every, level) for level in e.levels(name, least=2))
    return [number for number, _ in pairs], [level for _, level in pairs]


@claim("D1", "A bias helps more when data are fewer.", "this suite", ("27_sample_size",), ("probe", "psnr"),
       "the slope of convmixer − igpt on log2 of the number of unlabelled images is below 0; the gap with the fewest, and "
       "labelled images, are shown")  # fmt: skip
def d1(e):
    e.levels("images", least=2)
    unit = f"{METRICS[e.metric].unit} per doubling"
    for name in ("images", "labelled"):
        if len(e.levels(name)) < 2:
            continue
        numbers, levels = sizes(e, name)
        better = [e.of(mixer="convmixer", **{name: level}) for level in levels]
        gaps = [form - e.of(mixer="igpt", **{name: level}) for form, level in zip(better, levels, strict=True)]
        if name == "labelled" and e.metric == "psnr":
            continue  # labels do not enter the pretraining
        trend, few = slope(np.log2(numbers), gaps), better[0]
        yield e.test(f"slope of convmixer − igpt over {name}", trend, "below", reference=few, unit=unit,
                     decides=name == "images")  # fmt: skip
        yield e.test(f"convmixer − igpt with the fewest {name}", gaps[0], "above", reference=few, decides=False)


@claim("D2", "Where the translation prior is false, weight sharing harms.", "this suite", ("30_symmetry",), ("probe", "psnr"),
       "shared − free is above 0 on a data set and below 0 on its twin with a code by place, both; one row for local and one "
       "for global static cells", rows=("conv − lc", "gconv − full"))  # fmt: skip
def d2(e):
    twin = next((name for name in e.levels("dataset") if name in CODED), "leaves_coded")
    true = CODED[twin]

    def cell(mixer, dataset):
        return e.of(mixer=mixer, dataset=dataset, padding="zeros", augment="none")

    for shared, free in (("conv", "lc"), ("gconv", "full")):
        row, gains = f"{shared} − {free}", {data: cell(shared, data) - cell(free, data) for data in (true, twin)}
        best_there, best_here = cell(shared, true), cell(free, twin)
        yield e.test(f"{row} where the prior is true", gains[true], "above", reference=best_there, row=row)
        yield e.test(f"{row} where it is false", gains[twin], "below", reference=best_here, row=row)
        yield e.test(f"{row}, true − false", gains[true] - gains[twin], "above", reference=best_there, decides=False, row=row)


@claim("D3", "Removing skip connections harms attention (igpt) more than convolution (convmixer), and increasingly with depth.",
       "this suite", ("25_skip",), ("probe",),
       "the slope on log2 depth of harm to igpt less harm to convmixer is above 0; their mean difference is shown")  # fmt: skip
def d3(e):
    depths = e.levels("depth", least=2)
    whole = {mixer: [e.of(mixer=mixer, depth=depth, skip="both") for depth in depths] for mixer in ("igpt", "convmixer")}

    def harm(mixer, i):
        return whole[mixer][i] - e.of(mixer=mixer, depth=depths[i], skip="none")

    extra = [harm("igpt", i) - harm("convmixer", i) for i in range(len(depths))]
    trend, unchanged = slope(np.log2(depths), extra), mean([*whole["igpt"], *whole["convmixer"]])
    label = "slope of harm to igpt − harm to convmixer"
    yield e.test(label, trend, "above", reference=unchanged, unit="points per doubling")
    yield e.test("harm to igpt − harm to convmixer", mean(extra), "above", reference=unchanged, decides=False)


@claim(
    "D4",
    "Smaller patches help only with enough compute.",
    "this suite",
    ("24_geometry",),
    ("probe",),
    "at about equal FLOP, patch 2 − patch 4 is larger at four times the FLOP than at once, and above 0 there; both",
)
def d4(e):
    """Patch 2 trained for s/4 and s steps against patch 4 for s and 4s, which cost about the same."""
    steps = e.base.get("steps")
    if not steps:
        raise Absent("needs patches 2 and 4 at two budgets of equal FLOP")

    def trio(patch, **budget):
        return mean(e.of(mixer=mixer, patch=patch, **budget) for mixer in TRIO)

    better = trio(2, steps=steps)
    low, high = trio(2, steps=steps // 4) - trio(4, steps=steps), better - trio(4, steps=4 * steps)
    yield e.test("gain of patch 2, four times the FLOP − once", high - low, "above", reference=better)
    yield e.test("gain of patch 2 at four times the FLOP", high, "above", reference=better)
    yield e.test("gain of patch 2 at once the FLOP", low, "above", reference=better, decides=False)
    yield e.test("gain of patch 2 at equal steps", trio(2) - trio(4), "above", reference=better, decides=False)


@claim("N1", "Results do not depend on the arithmetic.", "this suite", ("29_precision",), ("probe", "loss"),
       "bf16 − fp32 within 1 point, or 1 % of the loss, for each of the trio (two one-sided tests)")  # fmt: skip
def n1(e):
    for mixer in TRIO:
        plain = e.of(mixer=mixer, precision="fp32")
        change = e.of(mixer=mixer, precision="bf16") - plain
        of, unit = (change, None) if e.metric == "probe" else (e.relative(change, plain), "% of the loss")
        yield e.test(f"{mixer}, bf16 − fp32", of, "within", 1.0, plain, unit=unit)


@claim("O1", "The order of the operators does not depend on the optimizer.", "this suite", ("32_optimizer",),
       ("psnr", "probe"),
       "for every pair of the trio the difference has the same sign under AdamW and Muon, each at its own rate, and a t test "
       "shows it under both; contradicted if both show opposite signs")  # fmt: skip
def o1(e):
    rates = {run["optimizer"]: run["lr"] for run in e.sweep.runs}
    if set(rates) != {"adamw", "muon"}:
        raise Absent("needs runs of both optimizers")
    for one, other in itertools.combinations(TRIO, 2):
        gaps, found, arms = {}, {}, []
        for optimizer, lr in rates.items():
            with_it = {"optimizer": optimizer, "lr": lr, "pretext": "bert"}
            arms += [e.of(mixer=one, **with_it), e.of(mixer=other, **with_it)]
            gaps[optimizer] = arms[-2] - arms[-1]
            test = e.test(f"{one} − {other}, {optimizer}", gaps[optimizer], "differs", reference=mean(arms[-2:]), decides=False)
            found[optimizer] = test.effect
            yield test
        sign, p = -1.0 if found["adamw"].mean < 0 else 1.0, max(found["adamw"].p, found["muon"].p)
        alike = sign * found["muon"].mean > 0
        of_both = sign * gaps["muon"] + 0 * gaps["adamw"]  # a seed counts if it has the runs of both
        label = f"{one} − {other} under Muon, signed so that the order under AdamW is positive"
        both = e.test(label, of_both, "above", reference=mean(arms))
        yield replace(both, p=(p, 1.0) if alike else (1.0, p))


# ---- all of them --------------------------------------------------------------------------------------------------


def findings(stores, claims=CLAIMS):
    """What the sweeps of these stores say: a Finding per claim or row of it, metric and sweep, or one that says why there is
    none. Raises StoreError for a broken record."""
    found = []
    for store in stores:
        made = [(sweep, runs_of(sweep), {}) for sweep in store.sweeps() if sweep.runs]
        for claim in claims:
            own = [given for given in made if given[0].content["notebook"] in claim.notebooks]
            for metric in claim.metrics:
                decided, lacks = [], f"no run of {' or '.join(claim.notebooks)}"
                for sweep, runs, records in own:
                    try:
                        decided += find(claim, Evidence(sweep, metric, runs, records))
                    except Absent as reason:
                        lacks = str(reason)
                rows = claim.rows or ("",)
                found += decided or [Finding(claim, store.profile, metric, "not run", lacks, row=row) for row in rows]
    return found
