"""The claims, as data: what is claimed, by whom, and the rule that decides it from saved records. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..config import SHALLOW
from . import hypotheses as h
from . import stats
from .contrasts import METRICS, Absent, Evidence, Finding, find, runs_of


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
CLAIMS = (
    Claim("P1", "Shallow attention reconstructs hidden pixels worse than convolution and than the mixer.", f"{PAPER}, Figure 1",
          ("20_trio",), ("psnr", "loss"),
          f"averaged over depths up to {SHALLOW}, convolution − attention and mixer − attention are both above .1 dB (PSNR) or "
          f"0 (loss), {HOLM}", h.p1),
    Claim("P2", "The gap between attention and the others shrinks with depth.",
          f"{PAPER}, caption of Figure 1: relatively shallow", ("20_trio",), ("psnr", "loss"),
          f"both gaps are above 0 at the smallest depth and their slopes on log2 depth below 0, {HOLM}", h.p2),
    Claim("P3", "Taking biases away is not always ideal: a cell with more biases has better features than attention.",
          f"{PAPER}, abstract", ("21_cube",), ("probe",),
          "the largest gain over attn, of the cells with enough pairs, is above 0 by sign-flip permutation of the maximum "
          "(Westfall & Young)", h.p3),
    Claim("P4", "One-hot colours are worse than RGB in small networks.",
          f"{PAPER}, abstract (the removal; the direction is ours)", ("22_representation",), ("probe", "psnr"),
          "one-hot − RGB, averaged over the trio with target rgb, is below 0; both steps, by quantised RGB, are shown", h.p4),
    Claim("F1", "Locality, weight sharing or input dependence changes the result, alone or together.", "this suite",
          ("21_cube",), ("probe", "psnr"),
          f"any of the 7 effects of the 2 x 2 x 2 design differs from 0, {HOLM} over 7; contradicted if all 7 lie within 1 "
          "point or .1 dB of 0", h.f1, any=True),
    Claim("F2", "What makes attention good is data specificity, not long range.", VIT, ("21_cube",), ("probe",),
          "the main effect of input dependence less that of global reach is above 0", h.f2),
    Claim("F3", "The effect of input dependence survives the control with positive rows that sum to one.", "this suite",
          ("21_cube",), ("probe", "psnr"),
          "attn − static_softmax differs from 0; contradicted if it lies within 1 point or .1 dB of 0", h.f3),
    Claim("F4", "Between shared and free weights, an intermediate rank is better than both ends.",
          "Elsayed et al., arXiv 2002.02959", ("21_cube",), ("probe",),
          "the best interior rank of lowrank less the best of the lowest and highest, per seed, is above 0", h.f4),
    Claim("F5", "Random frozen mixing of positions is nearly as good as trained.", "Cazenavette et al., arXiv 2503.16760",
          ("21_cube",), ("probe",),
          f"frozen − trained is not below −2 points (non-inferiority) for each of the four static cells, {HOLM}", h.f5),
    Claim("S1", "Under BERT a fixed permutation of the tokens leaves full and attn as they are and harms the other six cells.",
          "this suite", ("26_permutation",), ("probe", "loss"),
          f"full and attn: within 1 point or 1 % of the loss (two one-sided tests); the others: below 0, {HOLM}", h.s1),
    Claim("S2", "On the torus the shared cells commute with shifts at any weights, the others do not.", "this suite",
          ("30_symmetry",), ("roll_error",),
          "every network, at init and trained, every layer: roll error below 1e-5 (shared) or above .01 (not shared)", h.s2),
    Claim("S3", "Training makes attention more equivariant.", "Gruver et al., arXiv 2210.02984", ("30_symmetry",),
          ("lie_error",),
          "the log ratio of attn's Lie error, trained over init, is below 0", h.s3),
    Claim("S4", "Attention learns locality.", "this suite", ("31_receptive_field",), ("distance",),
          "the mean mixing distance of attn's first layer less that of uniform mixing is below 0", h.s4),
    Claim("S5", "Attention is low-pass, convolution high-pass.", VIT, ("20_trio",), ("spectrum",),
          f"from embedding to last layer the log amplitude at the highest frequency falls for igpt and rises for convmixer, "
          f"{HOLM}; 32x32 tokens only", h.s5),
    Claim("L1", "The best probe layer lies inside, the last one loses.", IGPT, ("20_trio", "24_geometry"), ("probe",),
          f"chosen layer − last layer is above 0 for each of the trio, at depths of {SHALLOW} and more, {HOLM}", h.l1),
    Claim("L2", "Autoregression gives better features than BERT.", IGPT, ("23_pretext",), ("probe", "probe_mean"),
          f"ar − bert is above 0 for each of the trio, {HOLM}; the interaction with the operator is shown", h.l2),
    Claim("L3", "A lower pretext loss means better features within an operator, not across operators.", "this suite",
          ("24_geometry",), ("rank",),
          f"Kendall's tau of loss (sign turned) and probe is above 0 within an operator and below 0 across, {HOLM}", h.l3),
    Claim("L4", "k-NN and the linear probe rank operators alike.", "this suite", ("21_cube",), ("rank",),
          "Kendall's tau of the two over the eight cells, per seed, is above .5", h.l4),
    Claim("L5", "More hidden tokens make better features where a token is a patch, worse where it is a pixel.",
          f"{IGPT}; He et al., arXiv 2111.06377", ("24_geometry",), ("probe",),
          "Page's trend test of the probe over mask rates: rising for patches, falling for pixels", h.l5),
    Claim("D1", "A bias helps more when data are fewer.", "this suite", ("27_sample_size",), ("probe", "psnr"),
          f"convmixer − igpt is above 0 with the fewest unlabelled images, its slope on log2 of their number below 0, {HOLM};"
          " labelled ones are shown", h.d1),
    Claim("D2", "Where the translation prior is false, weight sharing harms.", "this suite", ("30_symmetry",),
          ("probe", "psnr"),
          f"shared − free static cells is above 0 on leaves and below 0 on their column-coded twin, {HOLM}", h.d2),
    Claim("D3", "The deeper, the more does taking skip connections away harm attention rather than convolution.", "this suite",
          ("25_skip",), ("probe",), "the slope on log2 depth of harm to igpt less harm to convmixer is above 0", h.d3),
    Claim("D4", "Smaller patches help only with enough compute.", "this suite", ("24_geometry",), ("probe",),
          "at about equal FLOP, patch 2 − patch 4 is larger at four times the FLOP than at once, and above 0 there", h.d4),
    Claim("N1", "Results do not depend on the arithmetic.", "this suite", ("29_precision",), ("probe", "loss"),
          f"bf16 − fp32 within .5 points, or 1 % of the loss, for each of the trio (two one-sided tests), {HOLM}", h.n1),
)  # fmt: skip


# ---- all of them --------------------------------------------------------------------------------------------------


def findings(stores, claims=CLAIMS):
    """What the sweeps of these stores say: a Finding per claim, metric and sweep, or one that says why there is none. Raises
    StoreError for a broken record."""
    found = []
    for store in stores:
        sweeps = [sweep for sweep in store.sweeps() if sweep.runs]
        read = {sweep.name: (runs_of(sweep), {}) for sweep in sweeps}
        for claim, metric in ((one, metric) for one in claims for metric in one.metrics):
            own = [sweep for sweep in sweeps if sweep.content["notebook"] in claim.notebooks]
            here, lacks = [], "" if own else f"no run of {' or '.join(claim.notebooks)}"
            for sweep in own:
                try:
                    here.append(find(claim, Evidence(sweep, metric, *read[sweep.name])))
                except Absent as reason:
                    lacks = str(reason)
            found += here or [Finding(claim, store.profile, metric, "not run", lacks)]
    return found


def summary(found):
    """One row per finding, as a frame of words."""
    rows = [{"claim": f.claim.id, "statement": f.claim.text, "metric": METRICS[f.metric].name, "profile": f.profile,
             "verdict": f.verdict, "effect and 95 % interval": f.effect, "n": f.n, "why": f.why} for f in found]  # fmt: skip
    return pd.DataFrame(rows, dtype=object)


def tests(found):
    """One row per test of every finding, with all its numbers."""
    rows = []
    for f in found:
        for t in f.tests:
            x, every = list(t.values.values()), list(t.every.values())
            effect = t.effect
            against = 0.0 if t.goal in ("within", "differs") else t.margin
            low, high = stats.bootstrap(t.images) if t.images is not None and t.n > 1 else (np.nan, np.nan)
            verdict, adjusted = (t.verdict, t.adjusted[0]) if t.decides else ("", np.nan)
            row = {"claim": f.claim.id, "metric": f.metric, "profile": f.profile, "sweep": f.evidence, "test": t.label,
                   "hypothesis": t.hypothesis, "decides": t.decides, "verdict": verdict, "mean": effect.mean,
                   "low": effect.low, "high": effect.high, "unit": t.unit, "n": t.n, "p": t.p_values()[0],
                   "p_adjusted": adjusted, "p_sign_flip": stats.sign_flip(x, against) if t.n > 1 else np.nan,
                   "bootstrap_low": low, "bootstrap_high": high,
                   "detectable": stats.detectable(t.n) * effect.sd if t.n > 1 else np.nan,
                   "mean_all_runs": float(np.mean(every)) if every else np.nan, "n_all_runs": len(every)}  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)
