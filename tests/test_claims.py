"""Claims are decided on records with an effect that is known, because it was planted there."""

import functools
import itertools
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import recompute
from synthetic import arrays_of, baseline_record, init_record, probe, record_of, saved_sweep, sweep_of

from biasnb.evidence import claims, hypotheses, stats, verdicts
from biasnb.evidence.claims import CLAIMS, SIMPLEX, STATIC, Claim
from biasnb.evidence.contrasts import METRICS, Absent, Evidence, Form, mean, runs_of, slope
from biasnb.evidence.hypotheses import MARKS, PAIRS
from biasnb.evidence.verdicts import find
from biasnb.operators import CUBE, MIXERS, TRIO
from biasnb.records import places
from biasnb.records.files import StoreError
from biasnb.records.keys import key_fields
from biasnb.records.store import Store
from biasnb.records.sweep import Sweep

SEEDS = [0, 1, 2, 3, 4]
CLAIM = {claim.id: claim for claim in CLAIMS}
TRUE, NONE, WRONG = 1, 0, -1
USUAL = {TRUE: "supported", NONE: "undecided", WRONG: "contradicted"}
SMALL = {**USUAL, NONE: "negligible"}  # of a claim with a margin
UNIT = {"loss": 0.01}  # what a shift of 1 is of a metric; of others 1 dB, 1 point
MEASURED = {"roll_error", "lie_error", "distance", "spectrum"}
DESIGN = ["P1a", "P1b", "P2", "P3", "P4", "F1", "F2", "F3", "F4", "F5", "S1", "S2", "S3", "S4", "S5",
          "L1", "L2", "L3", "L4", "L5a", "L5b", "D1", "D2", "D3", "D4", "N1", "O1"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """Records for a claim. `t` is 1 where it is true of them, 0 where they have no effect, -1 where it has the wrong sign."""

    notebook: str
    overrides: dict
    effects: Callable  # (t, metric) -> effects of the deciding tests
    shift: Callable = lambda cfg, t: 0.0  # by how much a run is better: dB, points, hundredths of the loss
    edit: Callable = lambda record, cfg, t: None  # of what a shift does not say
    merged: tuple = ({},)  # overrides of sweeps whose runs are put together
    verdicts: dict = field(default_factory=lambda: USUAL)  # by t, or by metric or row and t

    def verdict(self, finding, t):
        """The verdict that is due."""
        for name in (finding.metric, finding.row):
            if name in self.verdicts:
                return self.verdicts[name][t]
        return self.verdicts[t]


def scaled(*effects):
    """Effects as multiples of t, in the unit of the metric."""
    return lambda t, metric: [UNIT.get(metric, 1.0) * t * effect for effect in effects]


def sign(cfg, t):
    """t, or +1 and -1 in turn over seeds where there is no effect: 0.2 on average."""
    return t or (-1) ** cfg.seed


def alternating(*effects):
    return lambda t, metric: [(t or 0.2) * effect for effect in effects]


@functools.cache
def wobble(cfg):
    """Noise of 0.01 to 0.03 that differs between runs and whose mean over the five seeds is 0, so that means are as planted."""
    h = zlib.crc32(json.dumps({**key_fields(cfg), "seed": 0}, sort_keys=True).encode())
    return (0.01 + h % 997 / 997 / 50) * float(np.roll((1.0, -0.9, 0.6, -0.8, 0.1), h % 5)[cfg.seed % 5])


def rolls(record, cfg, t):
    equivariant = t == (TRUE if MIXERS[cfg.mixer].shared else WRONG)
    for one in (record, record["start"]):
        one["measures"]["roll_error"] = [0.0] + [1e-7 if equivariant else 0.5] * cfg.depth


def lies(record, cfg, t):
    start = record["start"]["measures"]["lie_error"]
    record["measures"]["lie_error"][-1] = start[-1] * float(np.exp(wobble(cfg) - t))


def reaches(record, cfg, t):
    """attn contracts by t in its first layer, and so does its content."""
    for name in ("mixing_distance", "content_distance"):
        for one, distance in ((record["start"], 2.0), (record, 2.0 - t * (cfg.mixer == "attn") + wobble(cfg))):
            one["measures"][name] = [[distance + part for part in (-0.1, 0.1)]] * cfg.depth


def spectra(record, cfg, t):
    change = wobble(cfg) + (-t if cfg.mixer == "igpt" else t)
    record["measures"]["mixing_spectrum"] = [0.5 + change] * cfg.depth
    record["start"]["measures"]["mixing_spectrum"] = [0.5] * cfg.depth


def layers(record, cfg, t):
    """The layer in the middle is chosen, the last is 2 t points worse."""
    table, middle = record["probe"], cfg.depth // 2
    table["val"][middle] = [value + 0.05 for value in table["val"][middle]]
    table["test"][-1] = [value - 0.02 * t + wobble(cfg) / 100 for value in table["test"][middle]]


def scrambled(cfg):
    """0 to 1 by setting, without any order."""
    return zlib.crc32(json.dumps({**key_fields(cfg), "seed": 0}, sort_keys=True).encode()) % 997 / 997


def ranks(record, cfg, t):
    """Larger networks of an operator have a lower loss and t times as good a probe; from one operator to the next it is -t."""
    size, place = np.log2(cfg.depth) + 2 * np.log2(cfg.width / 8), TRIO.index(cfg.mixer)
    record["loss"]["test"] = 0.2 - 0.02 * size - 0.001 * place
    better = t * (0.02 * size - 0.001 * place) if t else 0.05 * scrambled(cfg)
    record["probe"] = probe(cfg.depth, 0.75 + better + wobble(cfg) / 1000)


def neighbours(record, cfg, t):
    place = CUBE.index(cfg.mixer)
    record["probe"] = probe(cfg.depth, 0.7 + 0.01 * place + wobble(cfg) / 1000)
    record["probe"]["knn"] = [0.5 + (0.01 * place * t if t else 0.05 * scrambled(cfg))] * (cfg.depth + 1)


def numbers(record, cfg, t):
    record["data"] = {**record["data"], "pool": cfg.images or 256, "train": cfg.labelled}


def d1_shift(cfg, t):
    """A gap of 3 with 64 images, t smaller per doubling."""
    return 3 - t * np.log2((cfg.images or 256) / 64) if cfg.mixer == "convmixer" else 0


def s1_shift(cfg, t):
    closed = {TRUE: 0, NONE: 0, WRONG: -5}[t]
    return 0 if cfg.permute == "none" else closed if cfg.mixer in ("full", "attn") else -5 * t


def s1_effects(t, metric):
    shifts = [{WRONG: -5}.get(t, 0) if cell in ("full", "attn") else -5 * t for cell in CUBE]
    return [shift * (5 if metric == "loss" else 1) for shift in shifts]  # a hundredth is 5 % of the loss, .2


def n1_shift(cfg, t):
    """No change, one at the margin, a large one."""
    change = {"probe": {TRUE: 0, NONE: 1, WRONG: -5}[t], "loss": {TRUE: 0, NONE: 0.2, WRONG: -5}[t], "psnr": 0}
    return change if cfg.precision == "bf16" else 0


def d2_shift(cfg, t):
    plain = {"leaves": 1, "leaves_coded": -1, "digits": 1, "digits_coded": -1}
    return 2 * t * plain.get(cfg.dataset, 0) if MIXERS[cfg.mixer].shared else 0


def d3_shift(cfg, t):
    return (-2 * t * np.log2(cfg.depth) if cfg.mixer == "igpt" else 0) - 1 if cfg.skip == "none" else 0


BERT = {"pretext": "bert"}
STAR = {"depth": 1, "width": 8, "patch": 2, "kernel": 3, "mask_rate": 0.5, "budget": "steps"}  # nothing of 24_geometry varies
FREE = {name: value for name, value in STAR.items() if name not in ("patch", "budget")}
RATES = [0.25, 0.5, 0.75]
WHOLE_CUBE = {"kernel": [3], **BERT, "mixer": list(CUBE)}
EXACT = {TRUE: "supported", NONE: "supported", WRONG: "contradicted"}  # of what is left as it is
CASES = {
    "P1a": [Case("20_trio", {"depth": [1, 2]}, scaled(1), lambda cfg, t: -t * (cfg.mixer == "igpt"),
                 verdicts={"psnr": SMALL, "loss": USUAL})],
    "P1b": [Case("20_trio", {"depth": [1, 2]}, scaled(1), lambda cfg, t: -t * (cfg.mixer == "igpt"),
                 verdicts={"psnr": SMALL, "loss": USUAL})],
    "P2": [Case("20_trio", {"depth": [1, 2, 4]}, scaled(-1, -1),
                lambda cfg, t: (t * np.log2(cfg.depth) - 3) * (cfg.mixer == "igpt"))],
    "P3": [Case("21_cube", WHOLE_CUBE, scaled(*[2] * 7), lambda cfg, t: 2 * t * (cfg.mixer != "attn"))],
    "P4": [Case("22_representation", {}, scaled(-2), lambda cfg, t: -t * ("rgb", "quantised", "palette").index(cfg.input))],
    "F1": [Case("21_cube", WHOLE_CUBE, scaled(3, 0, 0, 0, 0, 0, 0),
                lambda cfg, t: 1.5 * t if MIXERS[cfg.mixer].local else -1.5 * t,
                verdicts={**dict.fromkeys((TRUE, NONE, WRONG), "negligible"),
                          "local": {TRUE: "supported", NONE: "negligible", WRONG: "supported"}})],  # no sign is wrong
    "F2": [Case("21_cube", {**BERT, "mixer": list(CUBE)}, scaled(2, 3),
                lambda cfg, t: 2 * t * MIXERS[cfg.mixer].dynamic + t * MIXERS[cfg.mixer].local)],
    "F3": [Case("21_cube", {**BERT, "mixer": [*SIMPLEX, *SIMPLEX.values()]}, scaled(2, 2),
                lambda cfg, t: 2 * t * (cfg.mixer in SIMPLEX), verdicts=SMALL)],
    "F4": [Case("21_cube", {**BERT, "mixer": ["lowrank"]}, lambda t, metric: [2 * t, 2 * t + 5],
                lambda cfg, t: {1: 0, 2: 2 * t, 4: -5}[cfg.rank], merged=({"rank": 1}, {"rank": 2}, {"rank": 4}))],
    "F5": [Case("21_cube", BERT, lambda t, metric: [{TRUE: 12.5, NONE: 0, WRONG: -7.5}[t]] * 4,  # training gains 25
                lambda cfg, t: {TRUE: 0, NONE: -12.5, WRONG: -20}[t] * MIXERS[cfg.mixer].frozen)],
    "S1": [Case("26_permutation", {**BERT, "permute": ["none", "patches"]}, s1_effects, s1_shift,
                verdicts={**USUAL, "full": EXACT, "attn": EXACT}),
           Case("26_permutation", {**BERT, "permute": ["none", "pixels"], "patch": 1}, s1_effects, s1_shift,
                verdicts={**USUAL, "full": EXACT, "attn": EXACT})],
    "S2": [Case("30_symmetry", {"dataset": "photographs"}, lambda t, metric: [1e-7 if t == one else 0.5 for one in (1, -1)],
                edit=rolls, verdicts={**USUAL, NONE: "contradicted"})],  # none commutes
    "S3": [Case("30_symmetry", {"dataset": "photographs"}, scaled(-1), edit=lies)],
    "S4": [Case("31_receptive_field", {}, scaled(-1, -1), edit=reaches)],
    "S5": [Case("20_trio", {"image_size": 16, "patch": 1}, scaled(-1, 1), edit=spectra),
           Case("24_geometry", {**STAR, "image_size": 16, "patch": [2, 1]}, scaled(-1, 1), edit=spectra)],
    "L1": [Case("20_trio", {"depth": [1, 4, 6]}, lambda t, metric: [2 * t, 1] * 3, edit=layers),
           Case("24_geometry", {**STAR, "depth": [1, 4]}, lambda t, metric: [2 * t, 1] * 3, edit=layers)],
    "L2": [Case("23_pretext", {"pretext": ["bert", "ar"]}, scaled(2, 2, 2), lambda cfg, t: 2 * t * (cfg.pretext == "ar"))],
    "L3": [Case("24_geometry", {**STAR, "depth": [1, 2], "width": [8, 16]}, lambda t, metric: [t, -t] if t else None,
                edit=ranks)],
    "L4": [Case("21_cube", {**BERT, "mixer": list(CUBE)}, lambda t, metric: [t] if t else None, edit=neighbours)],
    "L5a": [Case("24_geometry", {**STAR, "mask_rate": RATES, "patch": 1}, alternating(-1),
                 lambda cfg, t: -10 * cfg.mask_rate * sign(cfg, t))],
    "L5b": [Case("24_geometry", {**STAR, "mask_rate": RATES}, alternating(1),
                 lambda cfg, t: 10 * cfg.mask_rate * sign(cfg, t))],
    "D1": [Case("27_sample_size", {"images": [0, 64, 128]}, scaled(-1), d1_shift, numbers)],
    "D2": [Case("30_symmetry", {}, scaled(2, -2, 2, -2), d2_shift),
           Case("30_symmetry", {"fields": ["digits", "digits_coded"]}, scaled(2, -2, 2, -2), d2_shift),
           Case("30_symmetry", {"augment": "flip"}, scaled(2, -2, 2, -2), d2_shift)],
    "D3": [Case("25_skip", {"depth": [1, 2, 4], "skip": ["both", "none"]}, scaled(2), d3_shift)],
    "D4": [Case("24_geometry", FREE, scaled(2, 2), lambda cfg, t: 2 * t * (cfg.patch == 2 and cfg.steps == 4))],
    "N1": [Case("29_precision", {}, lambda t, metric: [{TRUE: 0, NONE: 1, WRONG: -25 if metric == "loss" else -5}[t]] * 3,
                n1_shift)],
    "O1": [Case("32_optimizer", {}, scaled(1, 2, 1),
                lambda cfg, t: -TRIO.index(cfg.mixer) * (t if cfg.optimizer == "muon" else 1))],
}  # fmt: skip
LACKS = {  # sweeps that were not made for a claim
    "P1a": [({"depth": [8]}, "depth up to 4, has 0"), ({"pretext": "ar"}, "pretext bert")],
    "P1b": [({"depth": [8]}, "depth up to 4, has 0"), ({"pretext": "ar"}, "pretext bert")],
    "P2": [({"depth": [2]}, "2 levels of depth, has 1"), ({"pretext": "supervised"}, "pretext bert")],
    "P3": [({"mixer": ["conv", "attn"]}, "mixer gconv")],
    "P4": [({"input": ["rgb", "palette"]}, "input quantised"), ({"target": ["palette"]}, "target rgb")],
    "F1": [({"mixer": ["conv", "attn"]}, "mixer gconv")],
    "F2": [({"mixer": ["conv", "attn"]}, "mixer lattn")],
    "F3": [({"mixer": ["attn", "full"]}, "mixer static_softmax")],
    "F4": [({}, "3 ranks of lowrank, has 2"), ({"mixer": ["conv"]}, "3 ranks of lowrank, has 0")],
    "F5": [({"mixer": list(CUBE)}, "mixer conv_frozen")],
    "S1": [({"permute": ["none"]}, "tokens are permuted"), ({"permute": ["none", "pixels"]}, "tokens are permuted"),
           ({"pretext": "ar"}, "pretext bert")],
    "S2": [({"padding": "zeros"}, "padding circular"), ({"position": "learned"}, "position none")],
    "S3": [({"input": "palette"}, "no Lie error")],
    "S4": [({"mixer": ["conv"]}, "mixer attn")],
    "S5": [({}, "16x16 tokens or more, this is 4x4")],
    "L1": [({}, "depth of 4 or more, has up to 2")],
    "L2": [({"pretext": ["bert"]}, "pretext ar")],
    "L3": [(STAR, "3 depths or widths")],
    "L4": [({"mixer": ["conv", "attn"]}, "mixer gconv")],
    "L5a": [({"patch": 2}, "patch 1, this is 2"), ({"patch": 1, "mask_rate": [0.05, 0.1, 0.5]}, "2 mask rates of 0.15")],
    "L5b": [({"mask_rate": RATES[:2], "patch": 2}, "3 levels of mask_rate, has 2"),
            ({"patch": 1}, "patch 2 or more, this is 1"), ({"pretext": "ar"}, "mask_rate, has 0")],
    "D1": [({"images": 64}, "2 levels of images")],
    "D2": [({"dataset": "leaves", "fields": []}, "dataset leaves, padding zeros"), ({"padding": "circular"}, "padding zeros")],
    "D3": [({}, "2 levels of depth, has 1")],
    "D4": [({"patch": 2}, "two budgets of equal FLOP")],
    "N1": [({"precision": ["fp32"]}, "precision bf16")],
    "O1": [({"optimizer": ["muon"]}, "both optimizers")],
}  # fmt: skip
MARGINS = {  # named beforehand; 0 where none is
    "P1a": {"psnr": {0.1}},
    "P1b": {"psnr": {0.1}},
    "F1": {"probe": {1.0}, "psnr": {0.1}},
    "S1": {"probe": {1.0, 0.0}, "loss": {2.0, 0.0}},
    "S2": {"roll_error": {1e-5, 0.01}},
    "L1": {"probe_best": {0.0, 0.5}},
    "N1": {"probe": {1.0}, "loss": {1.0}},
}
NEGLIGIBLE = {"P1a": {"psnr": {0.1}}, "P1b": {"psnr": {0.1}}, "F1": MARGINS["F1"], "F3": MARGINS["F1"]}
EVERY = [pytest.param(claim, case, id=f"{claim.id}-{i}") for claim in CLAIMS
         for i, case in enumerate(CASES.get(claim.id, [None]))]  # fmt: skip


@pytest.fixture(autouse=True)
def quick_writes(monkeypatch):
    """Thousands of records need not survive a power cut."""
    monkeypatch.setattr("os.fsync", lambda file: None)


@functools.cache
def needed(claim, case):
    """(content of the sweep of a case, {key: Config} of the runs that its claim reads, {key: baseline} of these)."""
    runs, configs = {}, {}
    for more in case.merged:
        sweep, asked = sweep_of(case.notebook, seed=SEEDS, **{**case.overrides, **more})
        runs |= {run["key"]: run for run in sweep.runs}
        configs |= {run["key"]: cfg for run, cfg in zip(sweep.runs, asked, strict=True)}
    found = replace(sweep, content={**sweep.content, "data": "photographs", "runs": list(runs.values())})
    e = Evidence(found, claim.metrics[0], runs_of(found))
    assert list(claim.tests(e))
    used = {key: configs[key] for key in runs if key in e.used}
    return found.content, used, {key: runs[key]["baseline"] for key in e.used}


def planted(claim, case, t=TRUE):
    """A Sweep with the records that the claim reads, each with its planted values, and the seed's, which are far larger."""
    content, used, baselines = needed(claim, case)
    bulk = {"history": []} | ({} if set(claim.metrics) & MEASURED else {"measures": {}})
    made, rng = Sweep(Store("smoke"), case.notebook, content), np.random.default_rng(0)
    for cfg in used.values():
        shift, seed = case.shift(cfg, t), 2.0 * (2 * cfg.seed % 5 - 2)
        of = {name: wobble(cfg) + (shift[name] if isinstance(shift, dict) else shift) for name in ("psnr", "loss", "probe")}
        record = record_of(cfg, psnr=32 + seed + of["psnr"], accuracy=0.75 + (seed + of["probe"]) / 100)
        record["start"] = init_record(cfg)
        record["loss"] = {"val": 0.0, "test": 0.2 - of["loss"] / 100}
        case.edit(record, cfg, t)
        start = record.pop("start") | ({"measures": bulk["measures"]} if "measures" in bulk else {})
        correct = {"correct": arrays_of(cfg, rng)["correct"]} if "probe" in claim.metrics else None
        made.store.save(record | bulk, correct)
        if not made.store.has(start["key"]):
            made.store.save(start, correct)
        if not made.store.has(baselines[record["key"]]):
            made.store.save(baseline_record(cfg))
    made.save()
    return made


def decided(claim, made):
    """The findings of a claim in a sweep, by metric or, of one that is decided row by row, by metric and row."""
    found = [f for metric in claim.metrics for f in find(claim, Evidence(made, metric, runs_of(made)))]
    return {(f.metric, f.row) if claim.rows else f.metric: f for f in found}


def deciding(*findings):
    return [test for finding in findings for test in finding.tests if test.decides]


def resave(made, key, **values):
    """Change a record in place: what a run must beat its baselines with, or what the baselines are."""
    record = made.store.load(key)
    if "init_probe" in values:
        resave(made, record["init"], probe=values.pop("init_probe"))
    for name, value in values.items():
        if name == "psnr":
            record["psnr"] = {"val": value, "test": value}
        elif name == "neighbours":
            record["psnr"]["neighbour_mean"] = value
        elif name == "neighbours_val":
            record["psnr_val"] = {**record["psnr"], "neighbour_mean": value}
        else:
            part = {"probe": "probe", "pixels": "pixel_probe"}[name]
            record[part] = probe(len(record[part]["test"]) - 1, value)
    made.store.path(key).write_text(json.dumps(record))


# ---- every claim --------------------------------------------------------------------------------------------------


def test_claims_are_those_of_the_design_and_name_what_exists():
    assert [claim.id for claim in CLAIMS] == DESIGN
    assert set(CASES) == set(LACKS) == set(DESIGN)
    for claim in CLAIMS:
        assert claim.notebooks and set(claim.notebooks) <= {path.stem for path in places.notebooks().glob("*.ipynb")}
        assert claim.metrics and set(claim.metrics) <= set(METRICS)
        assert {case.notebook for case in CASES[claim.id]} == set(claim.notebooks)
        assert claim.text.endswith(".") and claim.source and claim.rule and not claim.rule.endswith(".")


@pytest.mark.parametrize("t", [TRUE, NONE, WRONG], ids=["true", "none", "wrong"])
@pytest.mark.parametrize("claim, case", EVERY)
def test_a_planted_effect_gives_its_verdict_size_and_n(root, claim, case, t):
    assert case, f"no case for {claim.id}"
    found = claims.findings([planted(claim, case, t).store], [claim])
    assert [(f.metric, f.row) for f in found] == list(itertools.product(claim.metrics, claim.rows or ("",)))
    for metric in claim.metrics:
        of_metric = [f for f in found if f.metric == metric]
        effects = [test.effect.mean for test in deciding(*of_metric)]
        due = case.effects(t, metric)
        assert due is None or effects == pytest.approx(due, rel=2e-3, abs=2e-4), metric
        margins, small = ({getattr(test, name) for test in deciding(*of_metric)} for name in ("margin", "small"))
        assert margins == MARGINS.get(claim.id, {}).get(metric, {0.0})
        assert small == NEGLIGIBLE.get(claim.id, {}).get(metric, {0.0})
    for f in found:
        assert f.verdict == case.verdict(f, t), (f.metric, f.row, f.why, f.effect)
        assert {test.n for test in deciding(f)} == {f.n} == {PAIRS}
        assert t != TRUE or {test.verdict for test in deciding(f)} == {f.verdict}
        assert (f.evidence, f.profile, f.earlier) == (case.notebook, "smoke", f.verdict)
        assert "untrained" not in f.notes and "missing" not in f.notes and "diverged" not in f.notes


@pytest.mark.parametrize("claim, case", EVERY)
def test_a_true_claim_needs_five_pairs_in_any_order(root, claim, case):
    """Seeds are never mixed, and four are too few."""
    made = planted(claim, case)
    whole = decided(claim, made)
    assert all(f.verdict == case.verdict(f, TRUE) for f in whole.values())

    alike, shuffled, rng = {}, [], np.random.default_rng(1)
    for run in made.runs:
        alike.setdefault(json.dumps([run[k] for k in run if k not in ("key", "baseline", "init", "seed")]), []).append(run)
    for group in alike.values():
        shuffled += [group[i] for i in rng.permutation(len(group))]
    for name, f in decided(claim, replace(made, content={**made.content, "runs": shuffled})).items():
        for test, other in zip(f.tests, whole[name].tests, strict=True):
            assert (test.label, test.verdict, test.values) == (other.label, other.verdict, pytest.approx(other.values))
            assert test.adjusted == pytest.approx(other.adjusted, rel=1e-6, abs=1e-12, nan_ok=True)

    fewer = replace(made, content={**made.content, "runs": [run for run in made.runs if run["seed"] != 4]})
    for f in decided(claim, fewer).values():
        assert (f.verdict, f.n, f.why) == ("undecided", 4, "4 pairs, 5 needed"), (f.metric, f.row)


@pytest.mark.parametrize("claim, case", EVERY)
def test_no_verdict_says_anything_where_no_network_is_trained(root, claim, case):
    """The effects are shown all the same, and the earlier rule has no pair left."""
    made = planted(claim, case)
    for key in set(needed(claim, case)[2].values()):
        resave(made, key, neighbours=99.0, pixels=0.99)
    for f in decided(claim, made).values():
        if f.metric == "roll_error":
            assert (claim.id, f.verdict, f.n, f.notes) == ("S2", "supported", PAIRS, "")
        elif claim.id == "L2":  # autoregression has no floor of reconstruction, and its probes are below raw pixels
            assert f.verdict == "uninformative"
        else:
            assert (f.verdict, f.n, f.earlier) == ("uninformative", PAIRS, "undecided"), (f.metric, f.row, f.why)
            assert f.why.startswith("untrained: ") and "(5 of 5 seeds)" in f.why and "untrained: " in f.notes
            assert {test.earlier.n for test in deciding(f)} == {0} and "—" not in f.effect


@pytest.mark.parametrize("claim, case", EVERY)
def test_a_diverged_seed_counts_in_every_claim_and_is_named(root, claim, case):
    """With what its networks were at the start; the earlier rule drops its pair."""
    made = planted(claim, case)
    lost = [key for key, cfg in needed(claim, case)[1].items() if cfg.seed == 0 and cfg.pretext != "none"]
    for key in lost:
        made.store.save(record_of(needed(claim, case)[1][key], status="diverged"))
    for f in decided(claim, made).values():
        assert f"{len(lost)} of " in f.notes and "diverged, counted with their random init" in f.notes
        assert f.n == PAIRS - (f.metric == "rank"), "where all have diverged, nothing can be ranked"
        assert all(test.earlier.n < PAIRS for test in deciding(f))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_test_names_a_reference(root, claim, monkeypatch):
    """Only S2 says something of any weights."""
    given = []
    test = Evidence.test
    monkeypatch.setattr(
        Evidence, "test", lambda e, *a, **k: given.append(k.get("reference", a[4:5] or None)) or test(e, *a, **k)
    )
    needed.__wrapped__(claim, CASES[claim.id][0])
    assert given and (None in given) == (claim.id == "S2")


@pytest.mark.parametrize("claim, case", EVERY)
def test_a_sweep_without_records_says_so(root, claim, case):
    content, used, _ = needed(claim, case)
    Sweep(Store("smoke"), case.notebook, content).save()
    found = claims.findings([Store("smoke")], [claim])
    assert len(found) == len(claim.metrics) * max(1, len(claim.rows))
    for f in found:
        assert (f.verdict, f.n, f.effect, f.why) == ("not run", 0, "—", f"{len(used)} of {len(used)} runs missing")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_sweep_that_was_not_made_for_a_claim_says_what_it_lacks(root, claim):
    number = len(claim.metrics) * max(1, len(claim.rows))
    assert [f.why for f in claims.findings([Store("smoke")], [claim])] == [f"no run of {' or '.join(claim.notebooks)}"] * number
    for i, (overrides, words) in enumerate(LACKS[claim.id]):
        made, _ = sweep_of(claim.notebooks[-1], **{"seed": [0], **overrides})
        replace(made, store=Store(f"smoke-{i}")).save()
        for f in claims.findings([Store(f"smoke-{i}")], [claim]):
            assert (f.verdict, f.n, f.effect, f.tests) == ("not run", 0, "—", ())
            assert f.why.startswith(("needs ", "no ", "colour ")) and words in f.why, f.why


# ---- what counts --------------------------------------------------------------------------------------------------


def first(made, **where):
    return next(run["key"] for run in made.runs if all(run.get(name) == value for name, value in where.items()))


def test_failed_and_missing_runs_are_left_out_and_diverged_ones_count_with_their_start(root):
    made = planted(CLAIM["P1a"], CASES["P1a"][0])
    used = needed(CLAIM["P1a"], CASES["P1a"][0])[1]
    diverged, failed, missing = (first(made, mixer="igpt", depth=1, seed=seed) for seed in (0, 1, 2))
    made.store.save(record_of(used[diverged], status="diverged"))
    for key in (failed, missing):
        made.store.path(key).unlink()
    made.store.path(failed, ".error").write_text("OutOfMemoryError: no memory\n")
    f = decided(CLAIM["P1a"], made)["psnr"]
    assert (f.verdict, f.n) == ("undecided", 3) and list(f.tests[0].values) == [0, 3, 4]
    lost, *others = f.notes.split("; ")[2::-1]
    assert lost == "1 of 20 runs diverged, counted with their random init"
    assert sorted(others) == [f"1 of 20 runs {reason}" for reason in ("failed", "missing")]
    assert f.why == f"3 pairs, 5 needed ({'; '.join([*others[::-1], lost])})"

    values = runs_of(made)[["seed", "mixer", "depth", "psnr", "loss"]].set_index(["mixer", "depth", "seed"])
    assert values.psnr["igpt", 1, 0] == 17.0, "what the zero head of an untrained network reconstructs: the image mean"
    assert values.loss["igpt", 1, 0] == 1.0, "predicting nothing, in standardised colours"
    gaps = [values.psnr["convmixer", depth, 0] - values.psnr["igpt", depth, 0] for depth in (1, 2)]
    assert f.tests[0].values[0] == pytest.approx(np.mean(gaps))
    assert list(f.tests[0].earlier.values) == [3, 4], "the earlier rule drops it"


def test_a_diverged_run_has_the_probe_and_the_measures_of_its_start(root):
    made = planted(CLAIM["F5"], CASES["F5"][0])
    key = first(made, mixer="lc_frozen", seed=0)
    made.store.save(record_of(needed(CLAIM["F5"], CASES["F5"][0])[1][key], status="diverged"))
    resave(made, made.runs[[run["key"] for run in made.runs].index(key)]["init"], probe=0.55)
    correct = {"correct": arrays_of(needed(CLAIM["F5"], CASES["F5"][0])[1][key], np.random.default_rng(1))["correct"]}
    init = made.store.load(runs_of(made).at[key, "init"])
    made.store.save(init, correct)
    f = decided(CLAIM["F5"], made)["probe", "lc"]
    _, plain = f.tests
    trained = runs_of(made).at[first(made, mixer="lc", seed=0), "probe"]
    assert plain.values[0] == pytest.approx(100 * (0.55 - trained)) and f.n == PAIRS
    assert plain.images.shape == (PAIRS, 10)


def test_a_diverged_arm_shows_that_its_operator_is_worse(root):
    """Which dropping it would hide."""
    made = planted(CLAIM["P1a"], CASES["P1a"][0], NONE)
    for key, cfg in needed(CLAIM["P1a"], CASES["P1a"][0])[1].items():
        if cfg.mixer == "igpt":
            made.store.save(record_of(cfg, status="diverged"))
            assert made.store.load(key)["status"] == "diverged"
    for f in decided(CLAIM["P1a"], made).values():
        assert (f.verdict, f.n, f.earlier) == ("supported", PAIRS, "undecided")
        assert "10 of 20 runs diverged" in f.notes and "untrained: igpt, depth 1 (5 of 5 seeds)" in f.notes


def test_a_claim_whose_runs_all_diverged_is_uninformative(root):
    made = planted(CLAIM["S4"], CASES["S4"][0])
    for cfg in needed(CLAIM["S4"], CASES["S4"][0])[1].values():
        made.store.save(record_of(cfg, status="diverged"))
    f = decided(CLAIM["S4"], made)["distance", "the whole matrix"]
    assert (f.verdict, f.why, f.n) == ("uninformative", "untrained: attn (5 of 5 seeds)", PAIRS)
    assert f.tests[0].values == dict.fromkeys(SEEDS, 0.0), "what never left its start has not contracted"


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_broken_record_is_named(root, suffix):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    path = made.store.path(first(made, mixer="attn"), suffix)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=path.name):
        claims.findings([made.store])


def test_a_broken_baseline_is_named_and_without_one_no_run_counts(root):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    path = made.store.path(made.runs[0]["baseline"])
    content = path.read_text()
    path.unlink()
    for f in decided(CLAIM["F3"], made).values():
        assert (f.verdict, f.n, f.notes) == ("undecided", 0, "20 of 20 runs without the record of their baseline")
    path.write_text(content[:50])
    with pytest.raises(StoreError, match=path.name):
        claims.findings([made.store], [CLAIM["F3"]])


@pytest.mark.parametrize("below", ["random init", "raw pixels", "visible neighbours"])
def test_a_reference_that_is_not_above_its_floors_says_nothing(root, below):
    """Equal is not above. The other arm may be below: then that is the finding."""
    made = planted(CLAIM["F3"], CASES["F3"][0], WRONG)
    keys = {mixer: [run["key"] for run in made.runs if run["mixer"] == mixer] for mixer in ("attn", "static_softmax")}
    metric = "psnr" if below == "visible neighbours" else "probe"
    change = {"random init": {"init_probe": 0.9}, "raw pixels": {"probe": 0.42, "init_probe": 0.1},
              "visible neighbours": {"psnr": 21.7}}[below]  # fmt: skip
    for key in keys["attn"]:
        resave(made, key, **change)
    f = decided(CLAIM["F3"], made)[metric, "attn − static_softmax"]
    assert (f.verdict, f.n, f.why) == ("uninformative", PAIRS, "untrained: attn (5 of 5 seeds)")
    assert (f.earlier, f.tests[0].earlier.n) == ("undecided", 0)
    other = decided(CLAIM["F3"], made)[metric, "gattn − static_softmax_shared"]
    assert (other.verdict, other.earlier) == ("contradicted", "contradicted") and other.n == PAIRS

    made = planted(CLAIM["F3"], CASES["F3"][0])
    for key in keys["attn"]:
        resave(made, key, init_probe=0.5)
    for key in keys["static_softmax"]:
        resave(made, key, **change)
    f = decided(CLAIM["F3"], made)[metric, "attn − static_softmax"]
    assert (f.verdict, f.n, f.earlier) == ("supported", PAIRS, "undecided")
    assert f.notes == "untrained: static_softmax (5 of 5 seeds)"


def test_trained_or_not_is_decided_by_validation_over_seeds(root):
    """One seed below its start does not make an arm untrained, nor do test values; all of the arm's seeds stay."""
    made = planted(CLAIM["F5"], CASES["F5"][0], WRONG)
    for key in [run["key"] for run in made.runs if run["mixer"] == "lc"]:
        record = made.store.load(key)
        record["probe"]["test"] = probe(len(record["probe"]["test"]) - 1, 0.3)["test"]  # by chance, below raw pixels
        made.store.path(key).write_text(json.dumps(record))
    f = decided(CLAIM["F5"], made)["probe", "lc"]
    assert f.n == PAIRS and f.tests[0].trained and f.tests[0].earlier.n == 0 and "untrained" not in f.notes

    made = planted(CLAIM["F5"], CASES["F5"][0], WRONG)
    seed = first(made, mixer="lc", seed=3)
    resave(made, seed, probe=0.49)
    f = decided(CLAIM["F5"], made)["probe", "lc"]
    assert f.tests[0].trained and list(f.tests[0].values) == SEEDS and list(f.tests[0].earlier.values) == [0, 1, 2, 4]
    for seed in (1, 2):  # three of five below: the gain is not shown
        resave(made, first(made, mixer="lc", seed=seed), probe=0.44)
    f = decided(CLAIM["F5"], made)["probe", "lc"]
    assert (f.verdict, f.why) == ("uninformative", "untrained: lc (3 of 5 seeds)")


def test_a_frozen_twin_that_learns_nothing_contradicts_f5(root):
    """Though all of its runs are below their floors: that it does not learn is what the claim denies."""
    made = planted(CLAIM["F5"], CASES["F5"][0])
    for key in [run["key"] for run in made.runs if run["mixer"] == "lc_frozen"]:
        resave(made, key, probe=0.4)
    found = decided(CLAIM["F5"], made)
    f = found["probe", "lc"]
    assert (f.verdict, f.n, f.earlier) == ("contradicted", PAIRS, "undecided")
    assert "untrained: lc_frozen (5 of 5 seeds)" in f.notes
    assert [found["probe", cell].verdict for cell in STATIC if cell != "lc"] == ["supported"] * 3


def test_psnr_has_a_floor_under_bert_only_and_by_validation_where_there_is_one(root):
    made = saved_sweep(Store("smoke"), "21_cube", pretext="ar", seed=[0], mixer=["attn"])
    e = Evidence(made, "psnr", runs_of(made))
    assert e.trained(e.of(mixer="attn")) and e.above_baselines(e.of(mixer="attn")) == (None, None)
    made = saved_sweep(Store("smoke"), "21_cube", pretext="bert", seed=[0], mixer=["attn"])
    for record, trained in (({"neighbours": 24.5}, False), ({"neighbours_val": 20.0}, True), ({"neighbours_val": 24.5}, False)):
        resave(made, made.runs[0]["baseline"], **record)
        e = Evidence(made, "psnr", runs_of(made))
        assert e.trained(e.of(mixer="attn")) == trained
        assert e.out == {} and e.strictly().out == {
            made.runs[0]["key"]: "PSNR not above the mean of visible neighbours"}  # fmt: skip


@pytest.mark.parametrize("pretext", ["supervised", "none"])
def test_a_pretext_without_a_metric_decides_nothing_by_it(root, pretext):
    for notebook in ("21_cube", "24_geometry", "27_sample_size"):
        made = saved_sweep(Store("smoke"), notebook, pretext=pretext, seed=[0, 1])
        made.save()
    found = {(f.claim.id, f.metric, f.row): f for f in claims.findings([made.store])}
    f = found["F1", "psnr", "local"]
    assert (f.verdict, f.n, f.effect) == ("undecided", 0, "—")
    words = f"20 of 20 runs without a psnr (pretext {pretext})"
    assert words in f.notes and words in f.why
    assert all(f.verdict in ("undecided", "not run") for f in found.values())


def test_several_sweeps_are_each_decided_and_one_that_fits_silences_those_that_do_not(root):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    replace(made, name="21_cube-again").save()
    replace(sweep_of("21_cube", mixer=["conv"])[0], name="21_cube-less").save()
    found = claims.findings([made.store], [CLAIM["F3"]])
    rows = CLAIM["F3"].rows
    asked = itertools.product(("probe", "psnr"), ("21_cube", "21_cube-again"), rows)
    assert [(f.metric, f.evidence, f.row) for f in found] == list(asked)


# ---- statistics ---------------------------------------------------------------------------------------------------


def by_hand(root, *tests, **more):
    """The Finding of a claim of hand-made tests."""
    made = planted(CLAIM["S4"], CASES["S4"][0])

    def given(e):
        e.of(mixer="attn")
        return [replace(test) for test in tests]

    claim = Claim("X1", "x.", "x", ("31_receptive_field",), ("distance",), "x", given, **more)
    (found,) = find(claim, Evidence(made, "distance", runs_of(made)))
    return found


def hand(values=(1.0,) * 5, goal="above", margin=0.0, label="x", unit="", **rest):
    return hypotheses.Test(label, dict(enumerate(values)), goal, margin, unit, **rest)


def of_p(p, against=1.0, **rest):
    return hand(p=(p, against), **rest)


def test_where_all_tests_must_hold_none_is_corrected(root):
    """Holm's correction would cost power for nothing: all have to be below the level."""
    f = by_hand(root, of_p(0.03), of_p(0.04))
    assert (f.verdict, [test.adjusted[0] for test in f.tests]) == ("supported", [0.03, 0.04])
    assert by_hand(root, of_p(0.03), of_p(0.06)).verdict == "undecided"


def test_where_any_test_suffices_they_are_corrected_over_all_that_were_planned(root):
    f = by_hand(root, of_p(0.03), of_p(0.04), any=True)
    assert (f.verdict, [test.adjusted[0] for test in f.tests]) == ("undecided", pytest.approx([0.06, 0.06]))
    without = [hand((), label="no data") for _ in range(3)]
    f = by_hand(root, of_p(0.015), *without, any=True)
    assert (f.verdict, f.tests[0].adjusted[0]) == ("undecided", pytest.approx(0.06))
    assert by_hand(root, of_p(0.012), *without, any=True).verdict == "supported"
    beside = by_hand(root, of_p(0.04), of_p(0.9, decides=False), any=True)
    assert (beside.verdict, beside.tests[0].adjusted[0]) == ("supported", 0.04)


def test_one_test_of_many_that_fails_is_corrected_for_their_number(root):
    """A claim that needs all its tests is contradicted by any one."""
    f = by_hand(root, of_p(1.0, 0.03), of_p(0.5))
    assert (f.verdict, f.tests[0].adjusted) == ("undecided", (1.0, pytest.approx(0.06)))
    assert by_hand(root, of_p(1.0, 0.02), of_p(0.5)).verdict == "contradicted"
    assert by_hand(root, of_p(1.0, 0.03), of_p(1.0, 0.04), any=True).verdict == "contradicted"


NOISE = np.array([0.02, -0.01, 0.0, 0.01, -0.02])


@pytest.mark.parametrize(
    "goal, margin, small, mean, verdict",
    [
        ("above", 0.1, 0, 0.2, "supported"), ("above", 0.1, 0, 0.1, "undecided"), ("above", 0.1, 0, 0.05, "contradicted"),
        ("above", 0.1, 0.1, 0.05, "negligible"), ("above", 0.1, 0.1, -0.05, "negligible"),
        ("above", 0.1, 0.1, -0.2, "contradicted"), ("above", 0.1, 0.1, 0.2, "supported"),
        ("above", 0.0, 0.1, 0.05, "negligible"), ("above", 0.0, 0.1, 0.2, "supported"),
        ("below", 0.0, 0, -0.1, "supported"), ("below", 0.0, 0, 0.0, "undecided"), ("below", 0.0, 0, 0.1, "contradicted"),
        ("not below", -2.0, 0, -1.0, "supported"), ("not below", -2.0, 0, -2.0, "undecided"),
        ("not below", -2.0, 0, -3.0, "contradicted"), ("not below", 0.0, 0, 0.1, "supported"),
        ("within", 0.1, 0, 0.0, "supported"), ("within", 0.1, 0, 0.05, "supported"), ("within", 0.1, 0, 0.1, "undecided"),
        ("within", 0.1, 0, 0.2, "contradicted"), ("within", 0.1, 0, -0.2, "contradicted"),
        ("differs", 0.1, 0.1, 0.3, "supported"), ("differs", 0.1, 0.1, -0.3, "supported"),
        ("differs", 0.1, 0.1, 0.0, "negligible"), ("differs", 0.0, 0, 0.0, "undecided"),
        ("differs", 0.1, 0.1, 0.05, "negligible"),  # surely not 0, and surely small: it counts as none
        ("differs", 0.1, 0.1, 0.1, "undecided"),
        ("all above", 0.1, 0, 0.2, "supported"), ("all above", 0.1, 0, 0.11, "contradicted"),
        ("all below", 0.1, 0, 0.0, "supported"), ("all below", 0.1, 0, 0.2, "contradicted"),
        ("at most", 0.0, 0, -0.1, "supported"), ("at most", 0.0, 0, 0.1, "undecided"),
    ],
)  # fmt: skip
def test_each_goal_is_judged_by_where_the_values_lie(goal, margin, small, mean, verdict):
    test = hand(mean + NOISE, goal, margin, small=small)
    test.judge(test.p_values())
    assert test.verdict == verdict
    few = hand(mean + NOISE[:4], goal, margin, small=small)
    few.judge(few.p_values())
    assert few.verdict == ("contradicted" if goal.startswith("all") and verdict == "contradicted" else "undecided")
    untrained = hand(mean + NOISE, goal, margin, small=small, trained=False)
    untrained.judge(untrained.p_values())
    violated = goal.startswith("all") and verdict == "contradicted"
    assert untrained.verdict == ("contradicted" if violated else "uninformative")


def test_p_values_are_those_of_the_t_tests():
    x = 0.3 + 10 * NOISE
    assert hand(x, "above", 0.1).p_values() == (stats.paired(x, 0.1).p, 1.0)
    assert hand(x, "below", 0.1).p_values() == (1.0, stats.paired(x, 0.1).p), "p against is not hidden"
    assert hand(x, "within", 0.5).p_values() == (stats.equivalent(x, 0.5), 1.0)
    assert hand(x, "within", 0.2).p_values() == (stats.equivalent(x, 0.2), stats.paired(x, 0.2).p)
    assert hand(-x, "within", 0.2).p_values()[1] == pytest.approx(stats.paired(x, 0.2).p)
    assert hand(x, "not below", -0.1).p_values() == (stats.greater(x, -0.1), 1.0)
    assert hand(-x, "not below", -0.1).p_values() == (stats.greater(-x, -0.1), stats.paired(-x, -0.1).p)
    assert hand(x, "differs", 0.2).p_values() == (stats.paired(x, 0.2).p, 1.0)
    assert hand(-x, "differs", 0.2).p_values() == (pytest.approx(stats.paired(x, 0.2).p), 1.0)
    assert hand(x, "differs", 0.5).p_values() == (1.0, 1.0) and hand(x, "differs").p_values()[0] == stats.paired(x).p
    assert hand(x, small=0.5).p_negligible() == stats.equivalent(x, 0.5) and np.isnan(hand(x).p_negligible())
    assert np.isnan(hand(x[:1]).p_values()).all() and np.isnan(hand(x, "all above").p_values()).all()


def test_noise_decides_nothing_either_way():
    for goal, margin in (("above", 0.1), ("below", 0.1), ("not below", -0.1), ("within", 0.1), ("differs", 0.1)):
        test = hand(100 * NOISE, goal, margin, small=0.1)
        test.judge(test.p_values())
        assert test.verdict == "undecided", goal


def test_all_tests_must_hold_or_any_and_the_one_that_decides_is_shown(root):
    good, undecided, bad, few, silent, small = (
        lambda label=label, p=p, n=n, more=more: hand((1.0,) * n, p=p, label=label, **more)
        for label, p, n, more in (("good", (1e-3, 1), 5, {}), ("open", (0.5, 1), 5, {}), ("bad", (1, 1e-3), 5, {}),
                                  ("few", (1e-3, 1), 3, {}), ("silent", (1e-3, 1), 5, {"trained": False}),
                                  ("small", (1, 1), 5, {"small": 2.0}))
    )  # fmt: skip
    expected = {
        (good, good): ("supported", "supported", "good"),
        (good, undecided): ("undecided", "supported", "open"),
        (good, bad): ("contradicted", "supported", "bad"),
        (undecided, bad): ("contradicted", "undecided", "bad"),
        (few, bad): ("contradicted", "undecided", "bad"),
        (bad, bad): ("contradicted", "contradicted", "bad"),
        (good, few): ("undecided", "supported", "few"),
        (good, silent): ("uninformative", "supported", "silent"),
        (silent, bad): ("contradicted", "uninformative", "bad"),
        (silent, undecided): ("uninformative", "undecided", "silent"),
        (silent, silent): ("uninformative", "uninformative", "silent"),
        (good, small): ("negligible", "supported", "small"),
        (small, undecided): ("negligible", "undecided", "small"),
    }
    for tests, (of_all, of_any, shown) in expected.items():
        f, other = (by_hand(root, *(make() for make in tests), any=one) for one in (False, True))
        assert (f.verdict, other.verdict) == (of_all, of_any), shown
        assert f.key_test.label == shown and f.effect.startswith(shown) and f.n == f.key_test.n
        assert other.verdict != "supported" or other.key_test.label == "good"


def test_what_records_do_not_have_was_not_run(root):
    f = by_hand(root, hand((), lacks="records without it"))
    assert (f.verdict, f.why, f.effect) == ("not run", "records without it", "—")


def test_only_p3_holds_by_any_of_its_tests_and_only_f1_corrects_over_rows():
    assert [claim.id for claim in CLAIMS if claim.any] == ["P3"]
    assert [claim.id for claim in CLAIMS if claim.holm] == ["F1"] and len(CLAIM["F1"].rows) == 7


def test_claims_say_which_attention_they_mean():
    for claim in CLAIMS:
        for word in re.findall(r"[Aa]ttention\b( \(\w[\w, ]+\))?", claim.text):
            assert word in (" (igpt)", " (attn)", " (attn, gattn)"), claim.id
    assert all("(igpt)" in claim.text for claim in CLAIMS if claim.id in ("P1a", "P1b", "P2", "S5", "D3"))


# ---- the signs of the claims --------------------------------------------------------------------------------------


def shifted(claim_id, shift, i=0):
    """The findings of a claim in records with these shifts."""
    case = replace(CASES[claim_id][i], shift=lambda cfg, t: shift(cfg))
    return decided(CLAIM[claim_id], planted(CLAIM[claim_id], case))


def test_an_interaction_alone_supports_its_row_of_f1(root):
    def interaction(cfg):
        return 1.5 * float(np.prod([1 if getattr(MIXERS[cfg.mixer], axis) else -1 for axis in ("shared", "dynamic")]))

    found = shifted("F1", interaction)
    assert (found["probe", "shared x dynamic"].verdict, found["probe", "shared x dynamic"].why) == ("supported", "helps")
    assert {f.verdict for (metric, row), f in found.items() if row != "shared x dynamic"} == {"negligible"}


def test_an_effect_inside_the_margin_does_not_count_for_f1(root):
    """.05 dB and half a point, far above their noise."""
    for factor, verdict in ((0.05, "negligible"), (-0.05, "negligible"), (-3, "supported")):
        found = shifted("F1", lambda cfg, f=factor: (0.5 if MIXERS[cfg.mixer].local else -0.5) * f)
        assert found["psnr", "local"].verdict == verdict
    assert found["psnr", "local"].why == "harms"


def test_f1_shows_input_dependence_by_pair_and_against_static_softmax(root):
    """A mean of 0 may hide a crossing, and positive rows that sum to one may be all that is gained."""
    shift = {"lattn": 1.0, "gattn": 1.0, "lattn_abs": -1.0, "attn": -1.0, "static_softmax": 2.0, "static_softmax_shared": 3.0}
    case = replace(CASES["F1"][0], overrides={**WHOLE_CUBE, "mixer": [*CUBE, *SIMPLEX.values()]},
                   shift=lambda cfg, t: shift.get(cfg.mixer, 0.0))  # fmt: skip
    found = decided(CLAIM["F1"], planted(CLAIM["F1"], case))
    f = found["psnr", "dynamic"]
    means = {test.label.removeprefix("input dependence, "): test.effect.mean for test in f.tests if not test.decides}
    assert f.verdict == "negligible"
    assert [means[f"{a} − {b}"] for a, b in claims.PAIRS_OF_CELLS] == pytest.approx([1, 1, -1, -1], abs=1e-6)
    assert means["attn − static_softmax"] == pytest.approx(-3) and means["gattn − static_softmax_shared"] == pytest.approx(-2)
    assert means["softmax alone, static_softmax − full"] == pytest.approx(2)
    assert means["softmax alone, static_softmax_shared − gconv"] == pytest.approx(3)


def test_f2_is_not_supported_by_two_negative_effects(root):
    """Input dependence harms by 1, long range by 3."""
    f = shifted("F2", lambda cfg: 3 * MIXERS[cfg.mixer].local - MIXERS[cfg.mixer].dynamic)["probe"]
    by_label = {test.label: test.effect.mean for test in f.tests}
    assert by_label["input dependence − long range"] == pytest.approx(2) and f.verdict == "contradicted"


def test_f3_is_contradicted_by_a_negative_effect_in_the_row_that_has_it(root):
    found = shifted("F3", lambda cfg: {"attn": -2, "gattn": 2}.get(cfg.mixer, 0))
    assert [f.verdict for f in found.values()] == ["contradicted", "supported"] * 2


def test_f4_chooses_the_rank_on_other_seeds(root):
    """Each of two ranks is better in some seeds: the best per seed would win by 2, and neither does."""
    case = replace(CASES["F4"][0], merged=tuple({"rank": rank} for rank in (1, 2, 3, 4)),
                   shift=lambda cfg, t: {1: 0, 4: -1}.get(cfg.rank, 2 * (-1) ** (cfg.seed + cfg.rank)))  # fmt: skip
    f = decided(CLAIM["F4"], planted(CLAIM["F4"], case))["probe"]
    assert f.verdict != "supported" and f.tests[0].label == "best of rank [2, 3] − rank 1"
    assert min(f.tests[0].values.values()) < -1, "chosen on the seed itself it would always be above 0"


def test_l1_asks_that_the_best_layer_is_inside(root):
    """The embedding is best: the last layer loses, but by no layer inside."""

    def embedding(record, cfg, t):
        table = record["probe"]
        for name in ("val", "test"):
            table[name][0] = [value + 0.1 for value in table[name][0]]

    made = planted(CLAIM["L1"], replace(CASES["L1"][0], edit=embedding))
    for f in decided(CLAIM["L1"], made).values():
        loses, inside = f.tests
        assert (loses.verdict, inside.verdict, f.verdict) == ("supported", "contradicted", "contradicted")


def test_s4_is_about_what_training_changes(root):
    """Attention that was local at its start and widens has not learned locality, though it stays below uniform mixing."""

    def widens(record, cfg, t):
        for one, distance in ((record["start"], 1.0), (record, 1.5 + wobble(cfg))):
            one["measures"]["mixing_distance"] = [[distance, distance]] * cfg.depth
            del one["measures"]["content_distance"]

    made = planted(CLAIM["S4"], replace(CASES["S4"][0], edit=widens))
    found = decided(CLAIM["S4"], made)
    whole, content = found["distance", "the whole matrix"], found["distance", "its content alone"]
    assert whole.verdict == "contradicted" and whole.tests[0].effect.mean == pytest.approx(0.5)
    assert (content.verdict, content.why) == ("not run", "records without content_distance")
    beside = {test.label: test.effect.mean for test in whole.tests if not test.decides}
    assert beside["attn − full, layer 1, trained − init"] == pytest.approx(0, abs=1e-6), "full contracts as much"


def test_l5_is_tested_for_pixels_and_for_patches_two_sided(root):
    for claim_id in ("L5a", "L5b"):
        (test,) = decided(CLAIM[claim_id], planted(CLAIM[claim_id], CASES[claim_id][0]))["probe"].tests
        assert test.p_values()[0] == stats.paired(list(test.values.values())).p
    assert LACKS["L5a"][0][1] == "patch 1, this is 2" and LACKS["L5b"][1][1] == "patch 2 or more, this is 1"


def test_d2_needs_both_signs_in_a_pair_of_cells(root):
    """Sharing helps less on the twin, but does not harm."""
    found = shifted("D2", lambda cfg: MIXERS[cfg.mixer].shared * {"digits": 2, "digits_coded": 1}.get(cfg.dataset, 0))
    assert {f.verdict for f in found.values()} == {"contradicted"}


def steps_of(made, gaps):
    """Give records PSNR by step; attention is behind by these gaps at 1/4, 1/2 and all of 4 steps, 1/8 having none."""
    for run in made.runs:
        if made.store.has(run["key"]):
            record = made.store.load(run["key"])
            behind = gaps if run["mixer"] == "igpt" else (0, 0)
            rows = [{"step": step, "psnr": record["psnr"]["test"] - gap} for step, gap in zip((1, 2), behind, strict=True)]
            made.store.path(run["key"]).write_text(json.dumps({**record, "psnr_by_step": rows}))


def test_p1_shows_earlier_steps_where_records_have_them_and_says_so_where_not(root):
    made = planted(CLAIM["P1b"], CASES["P1b"][0])
    f = decided(CLAIM["P1b"], made)["psnr"]
    assert len(f.tests) == 1 and "records without PSNR at 1/8, 1/4 and 1/2 of the steps (psnr_by_step)" in f.notes
    steps_of(made, (-3, 1))
    f = decided(CLAIM["P1b"], made)["psnr"]
    means = {test.label: test.effect.mean for test in f.tests if test.n}
    assert means == pytest.approx({"mixer − igpt": 1, "mixer − igpt at 1/4 of the steps": -2,
                                   "mixer − igpt at 1/2 of the steps": 2}, rel=1e-3)  # fmt: skip
    assert (f.verdict, f.notes) == ("supported", "mixer − igpt has the opposite sign at 1/4 of the steps")
    assert [test.verdict for test in f.tests if test.n] == ["supported", "contradicted", "supported"]


def test_effects_of_the_cube_are_those_of_the_design(root):
    made = planted(CLAIM["F1"], CASES["F1"][0])
    e = Evidence(made, "psnr", runs_of(made))
    axes, values = ("local", "shared", "dynamic"), runs_of(made).set_index(["seed", "mixer"]).psnr
    for seed in SEEDS:
        cells = {tuple(getattr(MIXERS[cell], axis) for axis in axes): values[seed, cell] for cell in CUBE}
        known = {" x ".join(axes[i] for i in factors): effect for factors, effect in stats.factorial(cells).items()}
        found = {test.label: test.values[seed] for test in CLAIM["F1"].tests(e) if test.decides}
        assert found == pytest.approx(known)


def test_p3_is_decided_over_all_seven_cells_whatever_their_runs(root):
    """Two cells that have a run below their floors take part: no contrast is left out by the outcome it is to decide."""
    made = planted(CLAIM["P3"], replace(CASES["P3"][0], shift=lambda cfg, t: 2 * (cfg.mixer == "gconv")))
    f = decided(CLAIM["P3"], made)["probe"]
    assert (f.verdict, f.key_test.label, len(deciding(f))) == ("supported", "gconv − attn", 7)
    best = f.key_test
    assert best.p_values()[0] == stats.paired(list(best.values.values())).p
    assert best.adjusted[0] == pytest.approx(7 * best.p_values()[0])
    for mixer in ("full", "lc"):
        resave(made, first(made, mixer=mixer, seed=3), probe=0.1)
    again = decided(CLAIM["P3"], made)["probe"]
    assert len(deciding(again)) == 7 and again.key_test.adjusted[0] == pytest.approx(best.adjusted[0])
    assert {test.n for test in again.tests} == {5} and {test.label: test.earlier.n for test in again.tests}["lc − attn"] == 4


def test_p3_with_five_seeds_can_reach_the_level(root):
    """A sign-flip test of the maximum cannot fall below 1/32 one-sided, 1/16 two-sided."""
    f = decided(CLAIM["P3"], planted(CLAIM["P3"], CASES["P3"][0]))["probe"]
    assert f.verdict == "supported" and max(test.adjusted[0] for test in f.tests) < 0.05 / 10


@pytest.mark.parametrize("when", ["init", "key"])
def test_one_layer_at_one_time_contradicts_s2(root, when):
    made = planted(CLAIM["S2"], CASES["S2"][0])
    used = needed(CLAIM["S2"], CASES["S2"][0])[1]
    for mixer, error, shown in (("gconv", 2e-5, "shared cells, largest: 2e-05"), ("lc", 0.009, "the others, smallest: 0.009")):
        run = next(run for run in made.runs if (run["mixer"], run["seed"]) == (mixer, 3) and run["key"] in used)
        path = made.store.path(run[when])
        record, before = json.loads(path.read_text()), path.read_text()
        record["measures"]["roll_error"][1] = error
        path.write_text(json.dumps(record))
        f = decided(CLAIM["S2"], made)["roll_error"]
        assert (f.verdict, f.effect, f.n) == ("contradicted", shown, PAIRS)
        path.write_text(before)


def test_pairing_finds_what_seeds_drown(root):
    """An effect of 1 dB, seeds 3 dB apart: lost without the pairs, and lost where they are mixed up."""
    made = planted(CLAIM["P1a"], CASES["P1a"][0])
    values = runs_of(made)[["seed", "mixer", "depth", "psnr"]]
    conv, attention = (values[(values.mixer == name) & (values.depth == 1)].psnr.to_numpy() for name in ("convmixer", "igpt"))
    assert conv.std(ddof=1) > 2.5 and stats.paired(conv - attention).p < 1e-6
    assert stats.paired(conv - np.roll(attention, 1)).p > 0.5
    assert decided(CLAIM["P1a"], made)["psnr"].verdict == "supported"


def test_d1_takes_the_number_of_all_images_from_a_run_that_has_them(root):
    """256 unlabelled ones, not the 200 labelled ones: doublings, so that the slope is exact."""
    made = planted(CLAIM["D1"], CASES["D1"][0])
    f = decided(CLAIM["D1"], made)["probe"]
    assert f.tests[0].effect.mean == pytest.approx(-1, rel=1e-3) and f.tests[0].unit == "points per doubling"
    assert [test.decides for test in f.tests] == [True, False, False, False]
    one = {**made.content, "runs": [run for run in made.runs if run["labelled"] == 200]}
    assert len(decided(CLAIM["D1"], replace(made, content=one))["probe"].tests) == 2


# ---- Evidence -----------------------------------------------------------------------------------------------------


def test_of_holds_other_factors_at_their_base(root):
    made, _ = sweep_of("24_geometry", seed=SEEDS)
    e = Evidence(made, "probe", runs_of(made))
    fields = {run["key"]: run for run in made.runs}
    form = e.of(mixer="igpt", depth=2)
    (keys,) = zip(*form.values(), strict=True)
    assert list(form) == SEEDS and [fields[key]["seed"] for key in keys] == SEEDS
    base = {"mixer": "igpt", "depth": 2, "width": 8, "patch": 2, "mask_rate": 0.5, "steps": 4, "budget": "steps"}
    assert all(fields[key].items() >= base.items() for key in keys)
    assert e.of(mixer="igpt", kernel=99) == e.of(mixer="igpt"), "attention reads no kernel"
    assert e.used == {key for part in (form, e.of(mixer="igpt")) for at in part.values() for key in at}
    for where, words in ((dict(mixer="attn"), "mixer attn"), (dict(mixer="igpt", depth=2, width=16), "depth 2, width 16")):
        with pytest.raises(Absent, match=words):
            e.of(**where)
    assert e.levels("depth") == [1, 2] and e.levels("depth", most=1) == [1]
    with pytest.raises(Absent, match="needs 3 levels of depth up to 2, has 2"):
        e.levels("depth", least=3, most=2)


def test_forms_are_added_by_weight_over_common_seeds():
    a, b = Form({0: {"a0": 1.0}, 1: {"a1": 1.0}}), Form({1: {"b1": 1.0, "a1": 0.5}, 2: {"b2": 1.0}})
    assert a + b == {1: {"a1": 1.5, "b1": 1.0}}
    assert a - b == {1: {"a1": 0.5, "b1": -1.0}}
    assert 2 * a == a * 2 == {0: {"a0": 2.0}, 1: {"a1": 2.0}}
    assert a - a == {0: {"a0": 0.0}, 1: {"a1": 0.0}}
    assert mean([a, b]) == {1: {"a1": 0.75, "b1": 0.5}}
    assert a == {0: {"a0": 1.0}, 1: {"a1": 1.0}}, "left as it was"


def test_slope_is_exact_on_a_line():
    x = [1.0, 2.0, 4.0, 8.0]
    form = slope(x, [Form({0: {f"r{i}": 1.0}}) for i in range(4)])
    assert sum(weight * (3 - 0.5 * x[int(key[1])]) for key, weight in form[0].items()) == pytest.approx(-0.5)
    assert sum(form[0].values()) == pytest.approx(0)


def test_values_are_weighted_sums_of_runs_that_count(root):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    resave(made, first(made, mixer="attn", seed=1), probe=0.45)
    e = Evidence(made, "probe", runs_of(made))
    difference = e.of(mixer="attn") - 0.5 * e.of(mixer="static_softmax")

    def accuracy(mixer, seed):
        """At the second penalty, which is the best, over all layers but the embedding."""
        return np.mean([row[1] for row in made.store.load(first(made, mixer=mixer, seed=seed))["probe"]["test"][1:]])

    known = {seed: 100 * (accuracy("attn", seed) - 0.5 * accuracy("static_softmax", seed)) for seed in SEEDS}
    assert e.values(difference) == pytest.approx(known), "every run that ended"
    strict = e.strictly()
    assert strict.values(difference) == pytest.approx({seed: value for seed, value in known.items() if seed != 1})
    test = e.test("x", difference, "above", reference=e.of(mixer="attn"))
    assert (list(test.values), test.unit, len(test.images), test.trained) == (SEEDS, "points", 5, True)
    test = strict.test("x", difference, "above")
    assert (list(test.values), test.images) == ([0, 2, 3, 4], None)


def test_the_loss_is_turned_and_its_change_is_relative(root):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    e = Evidence(made, "loss", runs_of(made))

    def loss(mixer, seed):
        return made.store.load(first(made, mixer=mixer, seed=seed))["loss"]["test"]

    attention, plain = e.of(mixer="attn"), e.of(mixer="static_softmax")
    assert e.values(attention) == pytest.approx({seed: -loss("attn", seed) for seed in SEEDS})
    known = {seed: 100 * (loss("static_softmax", seed) - loss("attn", seed)) / loss("static_softmax", seed) for seed in SEEDS}
    assert e.relative(attention - plain, plain) == pytest.approx(known)
    assert all(value > 0 for value in known.values()), "a lower loss is better"


@pytest.mark.parametrize("metric", ["probe", "probe_best"])
def test_correct_equals_the_loop_over_images(root, metric):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    resave(made, first(made, mixer="attn", seed=1), probe=0.2)
    e = Evidence(made, metric, runs_of(made))
    form, rows = e.of(mixer="attn") - e.of(mixer="static_softmax"), []
    for seed in SEEDS:
        rows.append([])
        for image in range(10):
            right = []
            for mixer in ("attn", "static_softmax"):
                correct = made.store.arrays(first(made, mixer=mixer, seed=seed))["correct"]
                layers = range(1, len(correct)) if metric == "probe" else [1]  # the earliest of equals is the best layer
                right.append(np.mean([bool(correct[layer, image] & 0b010) for layer in layers]))  # at the second penalty
            rows[-1].append(100.0 * (right[0] - right[1]))
    assert np.allclose(e.correct(form), rows) and np.any(rows)


def test_the_bootstrap_takes_whole_groups_where_the_baselines_record_has_them(root):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    alone = verdicts.tests(claims.findings([made.store], [CLAIM["F3"]]))
    e = Evidence(made, "probe", runs_of(made))
    assert e.groups(e.of(mixer="attn")) is None
    (baseline,) = {run["baseline"] for run in made.runs}
    groups = np.array([0, 0, 0, 0, 0, 7, 7, 7, 9, 9])
    made.store.save(made.store.load(baseline), {"groups": groups})
    together = verdicts.tests(claims.findings([made.store], [CLAIM["F3"]]))
    e = Evidence(made, "probe", runs_of(made))
    form = e.of(mixer="attn") - e.of(mixer="static_softmax")
    assert e.groups(form).tolist() == groups.tolist()
    row = together[(together.metric == "probe") & (together.test == "attn − static_softmax")].iloc[0]
    assert (row.bootstrap_low, row.bootstrap_high) == stats.bootstrap(e.correct(form), groups=groups)
    assert (row.bootstrap_low, row.bootstrap_high) != stats.bootstrap(e.correct(form))
    same = [name for name in alone if not name.startswith("bootstrap")]
    assert alone[same].equals(together[same]), "the seed is the unit of every test"


# ---- tables -------------------------------------------------------------------------------------------------------


def test_tables_have_a_row_per_finding_and_per_test_in_whole_words(root):
    for claim_id, t in (("P3", WRONG), ("S5", TRUE), ("S1", NONE), ("P1a", NONE), ("F3", TRUE)):
        made = planted(CLAIM[claim_id], CASES[claim_id][0], t)
        replace(made, name=f"{made.name}-{claim_id}").save()
    for key in {
        run["key"] for g in made.store.sweeps() for run in g.runs if run["mixer"] == "gattn" and made.store.has(run["key"])
    }:
        resave(made, key, probe=0.3)
    found = claims.findings([made.store])
    assert {f.verdict for f in found} == set(MARKS)
    summary, tests = verdicts.summary(found), verdicts.tests(found)
    assert len(summary) == len(found) >= sum(len(claim.metrics) * max(1, len(claim.rows)) for claim in CLAIMS)
    assert len(tests) == sum(len(f.tests) for f in found) and len(verdicts.tests([])) == 0
    for frame, words in ((summary, list(summary)), (tests, [name for name in tests if tests[name].dtype == object])):
        for name in words:
            assert frame[name].notna().all() and not frame[name].astype(str).str.contains(r"\b(?:nan|inf|None)\b").any(), name
    assert list(summary.verdict) == [f.verdict for f in found] and (summary.why != "").all()
    row = tests[(tests.claim == "F3") & (tests.metric == "psnr") & (tests.sweep == "21_cube-F3")].iloc[0]
    assert (row.hypothesis, row.unit, row.n, row.decides, row.verdict) == ("above 0 dB", "dB", 5, True, "supported")
    assert (row.test, row.row, row.reference) == ("attn − static_softmax",) * 2 + ("trained",)
    assert row["mean"] == pytest.approx(2) and row.low < 2 < row.high and row.p == row.p_adjusted < row.p_sign_flip == 1 / 16
    assert (row.p_against, row.n_dropped, row.verdict_dropped) == (1.0, 5, "supported") and row.p_negligible > 0.99
    row = tests[(tests.claim == "F3") & (tests.metric == "probe") & (tests.row == "gattn − static_softmax_shared")].iloc[0]
    assert (row.verdict, row.reference, row.n, row.n_dropped) == ("uninformative", "untrained", 5, 0)


def test_signs_are_flipped_about_what_the_goal_is_tested_against(root):
    x = [0.3, -0.1, 0.02, 0.2, 0.05]
    f = by_hand(root, *(hand(x, goal, 0.1) for goal in ("above", "below", "differs", "within")), hand(x, "not below", -0.1))
    zero, margin, minus = stats.sign_flip(x), stats.sign_flip(x, 0.1), stats.sign_flip(x, -0.1)
    assert zero != margin and list(verdicts.tests([f]).p_sign_flip) == [margin, margin, zero, zero, minus]


def test_an_effect_is_written_with_its_interval_and_unit(root):
    assert by_hand(root, hand(2.5 + 10 * NOISE, unit="dB")).effect == "x: +2.5 [+2.3, +2.7] dB"
    assert by_hand(root, hand(-0.25 + NOISE, unit="dB")).effect == "x: −0.25 [−0.27, −0.23] dB"
    assert by_hand(root, hand((-1.25,))).effect == "x: −1.2"
    assert by_hand(root, hand(())).effect == "—"
    assert by_hand(root, hand(estimate=0.5, p=(0.1, 1))).effect == "x: +0.5", "a rank has no interval"
    assert by_hand(root, hand(goal="all above", margin=2), hand((3e-7, 1e-7), "all below", 1e-8)).effect == "x: 1"
    assert by_hand(root, hand(goal="all above"), hand((3e-7, 1e-7), "all below", 1e-8)).effect == "x: 3e-07"


# ---- the same numbers by other code -------------------------------------------------------------------------------


@pytest.mark.parametrize("claim, case", EVERY)
def test_p_values_and_intervals_are_those_of_a_script_that_shares_no_code(root, claim, case):
    made = planted(claim, case, NONE)
    if claim.id == "P1a":
        steps_of(made, (2.5, 1))
    diverged = next(cfg for cfg in needed(claim, case)[1].values() if cfg.seed == 3)
    record = record_of(diverged, status="diverged")
    made.store.save(record | {"data": made.store.load(record["key"])["data"]})
    path = root / "claims.csv"
    verdicts.tests(claims.findings([made.store], [claim])).to_csv(path, index=False, float_format="%.6g")
    table = pd.read_csv(path)
    number, differs = recompute.compare(made.store.folder, table)
    assert number == len(table[table.n > 1]) > 0 and differs == []
    assert table.n.max() == PAIRS
    table.loc[table.n > 1, "mean"] += 0.01
    assert len(recompute.compare(made.store.folder, table)[1]) == number


def test_the_committed_numbers_are_those_of_the_committed_records(capsys):
    assert recompute.main(places.CHECKOUT / "results", places.CHECKOUT / "figures" / "claims.csv") == 0, capsys.readouterr().out
