"""Claims are decided on records with an effect that is known, because it was planted there."""

import functools
import itertools
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
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
DESIGN = "P1a P1b P2 P3 P4 F1 F2 F3 F4 F5 S1 S2 S3 S4 S5 L1 L2 L3 L4 L5a L5b D1 D2 D3 D4 N1 O1".split()


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
    "S5": [Case("20_trio", {"image_size": 16, "patch": 1}, scaled(-1, 1), edit=spectra)],
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
           Case("30_symmetry", {"fields": ["digits", "digits_coded"]}, scaled(2, -2, 2, -2), d2_shift)],
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
    "F2": [({"mixer": ["conv", "attn"]}, "mixer gconv")],
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
    "L5b": [({"mask_rate": RATES[:2], "patch": 2}, "3 levels of mask_rate, has 2"), ({"patch": 1}, "patch 2 or more, this is 1"),
            ({"pretext": "ar"}, "mask_rate, has 0")],
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
        correct = {"correct": arrays_of(cfg, rng)["correct"]} if {"probe", "probe_best"} & set(claim.metrics) else None
        made.store.save(record | bulk, correct)
        if not made.store.has(start["key"]):
            made.store.save(start)
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
            record["psnr"]["test"] = value
        elif name == "neighbours":
            record["psnr"]["neighbour_mean"] = value
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


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_every_test_names_a_reference(root, claim, monkeypatch):
    """Only S2 says something of any weights."""
    given = []
    test = Evidence.test
    monkeypatch.setattr(Evidence, "test", lambda e, *a, **k: given.append(k.get("reference", a[4:5] or None)) or test(e, *a, **k))
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


def test_diverged_failed_and_missing_runs_are_left_out_and_counted(root):
    made = planted(CLAIM["P1"], CASES["P1"][0])
    used = needed(CLAIM["P1"], CASES["P1"][0])[1]
    diverged, failed, missing = (first(made, mixer="igpt", depth=1, seed=seed) for seed in (0, 1, 2))
    made.store.save(record_of(used[diverged], status="diverged"))
    for key in (failed, missing):
        made.store.path(key).unlink()
    made.store.path(failed, ".error").write_text("OutOfMemoryError: no memory\n")
    f = decided(CLAIM["P1"], made)["psnr"]
    assert (f.verdict, f.n) == ("undecided", 2) and list(f.tests[0].values) == list(f.tests[0].every) == [3, 4]
    assert sorted(f.left_out.split("; ")) == [f"1 of 30 runs {reason}" for reason in ("diverged", "failed", "missing")]
    assert f.why == f"2 pairs, 5 needed ({f.left_out})"


def test_a_claim_whose_runs_all_diverged_was_run(root):
    made = planted(CLAIM["S4"], CASES["S4"][0])
    for cfg in needed(CLAIM["S4"], CASES["S4"][0])[1].values():
        made.store.save(record_of(cfg, status="diverged"))
    f = decided(CLAIM["S4"], made)["distance"]
    assert (f.verdict, f.why, f.effect) == ("undecided", "0 pairs, 5 needed (5 of 5 runs diverged)", "—")


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
    for metric, f in decided(CLAIM["F3"], made).items():
        assert (f.verdict, f.n, f.left_out) == ("undecided", 0, "15 of 15 runs without the record of their baseline"), metric
    path.write_text(content[:50])
    with pytest.raises(StoreError, match=path.name):
        claims.findings([made.store], [CLAIM["F3"]])


@pytest.mark.parametrize("below", ["random init", "raw pixels"])
def test_both_baselines_of_a_probe_must_be_beaten(root, below):
    """Equal is not above."""
    made = planted(CLAIM["F3"], CASES["F3"][0])
    for key in {run["key"] for run in made.runs if run["mixer"] == "attn"}:
        accuracy = made.store.load(key)["probe"]["test"][-1][1]
        resave(made, key, **({"init_probe": accuracy} if below == "random init" else {"probe": 0.42, "init_probe": 0.1}))
    found = decided(CLAIM["F3"], made)
    assert (found["probe"].verdict, found["probe"].n) == ("undecided", 0)
    assert found["probe"].left_out == "5 of 15 runs untrained: probe not above random init and raw pixels"
    assert (found["psnr"].verdict, found["psnr"].n) == ("supported", PAIRS)


def test_psnr_has_a_baseline_under_bert_only(root):
    made = saved_sweep(Store("smoke"), "21_cube", pretext="ar", seed=[0], mixer=["attn"])
    assert Evidence(made, "psnr", runs_of(made)).out == {}
    made = saved_sweep(Store("smoke"), "21_cube", pretext="bert", seed=[0], mixer=["attn"])
    resave(made, made.runs[0]["baseline"], neighbours=24.5)
    e = Evidence(made, "psnr", runs_of(made))
    assert e.out == {made.runs[0]["key"]: "untrained: PSNR not above the mean of visible neighbours"}


@pytest.mark.parametrize("pretext", ["supervised", "none"])
def test_a_pretext_without_a_metric_decides_nothing_by_it(root, pretext):
    for notebook in ("21_cube", "24_geometry", "27_sample_size"):
        made = saved_sweep(Store("smoke"), notebook, pretext=pretext, seed=[0, 1])
        made.save()
    found = {(f.claim.id, f.metric): f for f in claims.findings([made.store])}
    f = found["F1", "psnr"]
    assert (f.verdict, f.n, f.effect) == ("undecided", 0, "—")
    assert f.left_out == f"16 of 16 runs without a psnr (pretext {pretext})" and f.left_out in f.why
    assert all(f.verdict in ("undecided", "not run") for f in found.values())


def test_several_sweeps_are_each_decided_and_one_that_fits_silences_those_that_do_not(root):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    replace(made, name="21_cube-again").save()
    replace(sweep_of("21_cube", mixer=["conv"])[0], name="21_cube-less").save()
    found = claims.findings([made.store], [CLAIM["F3"]])
    assert [(f.metric, f.evidence) for f in found] == list(itertools.product(("probe", "psnr"), ("21_cube", "21_cube-again")))


# ---- statistics ---------------------------------------------------------------------------------------------------


def by_hand(root, *tests, any=False):
    """The Finding of a claim of hand-made tests."""
    made = planted(CLAIM["S4"], CASES["S4"][0])

    def given(e):
        e.of(mixer="attn")
        return tests

    claim = Claim("X1", "x.", "x", ("31_receptive_field",), ("distance",), "x", given, any)
    return find(claim, Evidence(made, "distance", runs_of(made)))


def hand(values=(1.0,) * 5, goal="above", margin=0.0, label="x", unit="", **rest):
    values = dict(enumerate(values))
    return evidence.Test(label, values, values, goal, margin, unit, **rest)


def test_holm_makes_two_tests_harder_than_each_alone(root):
    def of(p, **rest):
        return hand(p=(p, 1.0), **rest)

    both = by_hand(root, of(0.03), of(0.04))
    assert [test.adjusted[0] for test in both.tests] == pytest.approx([0.06, 0.06])
    assert both.verdict == by_hand(root, of(0.03), of(0.04), any=True).verdict == "undecided"
    assert by_hand(root, of(0.03)).verdict == by_hand(root, of(0.04)).verdict == "supported"
    beside = by_hand(root, of(0.04), of(0.9, decides=False))
    assert (beside.verdict, beside.tests[0].adjusted[0], beside.tests[1].adjusted[0]) == ("supported", 0.04, 0.9)


NOISE = np.array([0.02, -0.01, 0.0, 0.01, -0.02])


@pytest.mark.parametrize(
    "goal, margin, mean, verdict",
    [
        ("above", 0.1, 0.2, "supported"), ("above", 0.1, 0.1, "undecided"), ("above", 0.1, 0.05, "contradicted"),
        ("below", 0.0, -0.1, "supported"), ("below", 0.0, 0.0, "undecided"), ("below", 0.0, 0.1, "contradicted"),
        ("not below", -2.0, -1.0, "supported"), ("not below", -2.0, -2.0, "undecided"),
        ("not below", -2.0, -3.0, "contradicted"),
        ("within", 0.1, 0.0, "supported"), ("within", 0.1, 0.05, "supported"), ("within", 0.1, 0.1, "undecided"),
        ("within", 0.1, 0.2, "contradicted"), ("within", 0.1, -0.2, "contradicted"),
        ("differs", 0.1, 0.3, "supported"), ("differs", 0.1, -0.3, "supported"), ("differs", 0.1, 0.0, "contradicted"),
        ("differs", 0.0, 0.0, "undecided"),
        ("differs", 0.1, 0.05, "contradicted"),  # surely not 0, and surely small: it counts as none
        ("all above", 0.1, 0.2, "supported"), ("all above", 0.1, 0.11, "contradicted"), ("all below", 0.1, 0.0, "supported"),
        ("all below", 0.1, 0.2, "contradicted"),
    ],
)  # fmt: skip
def test_each_goal_is_judged_by_where_the_values_lie(goal, margin, mean, verdict):
    test = hand(mean + NOISE, goal, margin)
    test.judge(test.p_values())
    assert test.verdict == verdict
    few = hand(mean + NOISE[:4], goal, margin)
    few.judge(few.p_values())
    assert few.verdict == ("contradicted" if goal.startswith("all") and verdict == "contradicted" else "undecided")


def test_p_values_are_those_of_the_t_tests():
    x = 0.3 + 10 * NOISE
    assert hand(x, "above", 0.1).p_values() == (stats.paired(x, 0.1).p, 1.0)
    assert hand(x, "below", 0.1).p_values() == (1.0, stats.paired(x, 0.1).p)
    assert hand(x, "within", 0.5).p_values() == (stats.equivalent(x, 0.5), 1.0)
    assert hand(x, "within", 0.2).p_values() == (stats.equivalent(x, 0.2), stats.paired(x, 0.2).p)
    assert hand(-x, "within", 0.2).p_values()[1] == pytest.approx(stats.paired(x, 0.2).p)
    assert hand(x, "not below", -0.1).p_values() == (stats.not_inferior(x, 0.1), 1.0)
    assert hand(-x, "not below", -0.1).p_values() == (stats.not_inferior(-x, 0.1), stats.paired(-x, -0.1).p)
    assert hand(x, "differs", 0.5).p_values() == (stats.paired(x).p, stats.equivalent(x, 0.5))
    assert np.isnan(hand(x[:1]).p_values()).all() and np.isnan(hand(x, "all above").p_values()).all()


def test_noise_decides_nothing_either_way():
    for goal, margin in (("above", 0.1), ("below", 0.1), ("not below", -0.1), ("within", 0.1), ("differs", 0.1)):
        test = hand(100 * NOISE, goal, margin)
        test.judge(test.p_values())
        assert test.verdict == "undecided", goal


def test_all_tests_must_hold_or_any_and_the_one_that_decides_is_shown(root):
    good, undecided, bad, few = (
        lambda label=label, p=p, n=n: hand((1.0,) * n, p=p, label=label)
        for label, p, n in (("good", (1e-3, 1), 5), ("open", (0.5, 1), 5), ("bad", (1, 1e-3), 5), ("few", (1e-3, 1), 3))
    )
    expected = {
        (good, good): ("supported", "supported", "good"),
        (good, undecided): ("undecided", "supported", "open"),
        (good, bad): ("contradicted", "supported", "bad"),
        (undecided, bad): ("contradicted", "undecided", "bad"),
        (few, bad): ("contradicted", "undecided", "bad"),
        (bad, bad): ("contradicted", "contradicted", "bad"),
        (good, few): ("undecided", "supported", "few"),
    }
    for tests, (of_all, of_any, shown) in expected.items():
        f, other = (by_hand(root, *(make() for make in tests), any=one) for one in (False, True))
        assert (f.verdict, other.verdict) == (of_all, of_any)
        assert f.key_test.label == shown and f.effect.startswith(shown) and f.n == f.key_test.n
        assert other.verdict != "supported" or other.key_test.label == "good"


def test_f1_holds_by_any_of_its_effects_and_fails_by_all():
    assert [claim.id for claim in CLAIMS if claim.any] == ["F1"]


def test_an_interaction_alone_supports_f1(root):
    case = replace(CASES["F1"][0], shift=lambda cfg, t: float(np.prod([1 if getattr(MIXERS[cfg.mixer], axis) else -1
                                                                      for axis in ("shared", "dynamic")])))  # fmt: skip
    f = decided(CLAIM["F1"], planted(CLAIM["F1"], case))["probe"]
    assert (f.verdict, f.why, f.key_test.label) == ("supported", "shared x dynamic", "shared x dynamic")


def test_effects_of_the_cube_are_those_of_the_design(root):
    made = planted(CLAIM["F1"], CASES["F1"][0])
    e = Evidence(made, "psnr", runs_of(made))
    axes, values = ("local", "shared", "dynamic"), runs_of(made).set_index(["seed", "mixer"]).psnr
    for seed in SEEDS:
        cells = {tuple(getattr(MIXERS[cell], axis) for axis in axes): values[seed, cell] for cell in CUBE}
        known = {" x ".join(axes[i] for i in factors): effect for factors, effect in stats.factorial(cells).items()}
        assert {test.label: test.values[seed] for test in CLAIM["F1"].tests(e)} == pytest.approx(known)


def test_p3_is_the_permutation_of_the_largest_contrast_of_cells_with_enough_pairs(root):
    made = planted(CLAIM["P3"], CASES["P3"][0])
    values = runs_of(made).set_index(["seed", "mixer"]).probe
    gains = 100 * np.array([[values[seed, cell] - values[seed, "attn"] for cell in CUBE if cell != "attn"] for seed in SEEDS])

    def t(x):
        return x.mean(0) / (x.std(0, ddof=1) / len(x) ** 0.5)

    largest = [t(gains * np.array(signs)[:, None]).max() for signs in itertools.product((1, -1), repeat=5)]
    f = decided(CLAIM["P3"], made)["probe"]
    (test,) = deciding(f)
    assert test.p[0] == test.adjusted[0] == np.mean(np.array(largest) >= largest[0] - 1e-9) == 1 / 32
    best = [cell for cell in CUBE if cell != "attn"][t(gains).argmax()]
    assert test.label == f"{best} − attn, the largest t of 7" and len(f.tests) == 7
    resave(made, first(made, mixer="full", seed=3), probe=0.1)
    f = decided(CLAIM["P3"], made)["probe"]
    assert f.verdict == "supported" and deciding(f)[0].label.endswith("the largest t of 6")
    assert {test.label: test.n for test in f.tests}["full − attn"] == 4
    resave(made, first(made, mixer="attn", seed=3), probe=0.1)
    f = decided(CLAIM["P3"], made)["probe"]
    assert {tuple(test.values) for test in f.tests} == {(0, 1, 2, 4)} and f.verdict == "undecided"


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
    made = planted(CLAIM["P1"], CASES["P1"][0])
    values = runs_of(made)[["seed", "mixer", "depth", "psnr"]]
    conv, attention = (values[(values.mixer == name) & (values.depth == 1)].psnr.to_numpy() for name in ("convmixer", "igpt"))
    assert conv.std(ddof=1) > 2.5 and stats.paired(conv - attention).p < 1e-6
    assert stats.paired(conv - np.roll(attention, 1)).p > 0.5
    assert decided(CLAIM["P1"], made)["psnr"].verdict == "supported"


def test_d1_takes_the_number_of_all_images_from_a_run_that_has_them(root):
    """256 unlabelled ones, not the 200 labelled ones: doublings, so that the slope is exact."""
    made = planted(CLAIM["D1"], CASES["D1"][0])
    f = decided(CLAIM["D1"], made)["probe"]
    assert f.tests[0].effect.mean == pytest.approx(-1, rel=1e-3) and f.tests[0].unit == "points per doubling"
    assert [test.decides for test in f.tests] == [True, True, False, False]
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
    resave(made, first(made, mixer="attn", seed=1), probe=0.2)
    e = Evidence(made, "probe", runs_of(made))
    difference = e.of(mixer="attn") - 0.5 * e.of(mixer="full")

    def accuracy(mixer, seed):
        """At the second penalty, which is the best, over all layers but the embedding."""
        return np.mean([row[1] for row in made.store.load(first(made, mixer=mixer, seed=seed))["probe"]["test"][1:]])

    known = {seed: 100 * (accuracy("attn", seed) - 0.5 * accuracy("full", seed)) for seed in SEEDS}
    assert e.values(difference, baselines=False) == pytest.approx(known)
    assert e.values(difference) == pytest.approx({seed: value for seed, value in known.items() if seed != 1})
    test = e.test("x", difference, "above")
    assert (list(test.values), list(test.every), test.unit, len(test.images)) == ([0, 2, 3, 4], SEEDS, "points", 4)


def test_the_loss_is_turned_and_its_change_is_relative(root):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    e = Evidence(made, "loss", runs_of(made))

    def loss(mixer, seed):
        return made.store.load(first(made, mixer=mixer, seed=seed))["loss"]["test"]

    attention, plain = e.of(mixer="attn"), e.of(mixer="full")
    assert e.values(attention) == pytest.approx({seed: -loss("attn", seed) for seed in SEEDS})
    known = {seed: 100 * (loss("full", seed) - loss("attn", seed)) / loss("full", seed) for seed in SEEDS}
    assert e.relative(attention - plain, plain)(True) == pytest.approx(known)
    assert all(value > 0 for value in known.values()), "a lower loss is better"


@pytest.mark.parametrize("metric", ["probe", "probe_best"])
def test_correct_equals_the_loop_over_images(root, metric):
    made = planted(CLAIM["F3"], CASES["F3"][0])
    resave(made, first(made, mixer="attn", seed=1), probe=0.2)
    e = Evidence(made, metric, runs_of(made))
    form, rows = e.of(mixer="attn") - e.of(mixer="full"), []
    for seed in (0, 2, 3, 4):
        rows.append([])
        for image in range(10):
            right = []
            for mixer in ("attn", "full"):
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
    form = e.of(mixer="attn") - e.of(mixer="full")
    assert e.groups(form).tolist() == groups.tolist()
    row = together[(together.metric == "probe") & (together.test == "attn − full")].iloc[0]
    assert (row.bootstrap_low, row.bootstrap_high) == stats.bootstrap(e.correct(form), groups=groups)
    assert (row.bootstrap_low, row.bootstrap_high) != stats.bootstrap(e.correct(form))
    same = [name for name in alone if not name.startswith("bootstrap")]
    assert alone[same].equals(together[same]), "the seed is the unit of every test"


# ---- tables -------------------------------------------------------------------------------------------------------


def test_tables_have_a_row_per_finding_and_per_test_in_whole_words(root):
    for claim_id, t in (("P3", WRONG), ("S5", TRUE), ("S1", NONE), ("P1", TRUE), ("F3", TRUE)):
        made = planted(CLAIM[claim_id], CASES[claim_id][0], t)
        replace(made, name=f"{made.name}-{claim_id}").save()
    made = next(g for g in made.store.sweeps() if g.name == "20_trio")
    for seed in (1, 2, 3, 4):
        resave(made, first(made, mixer="igpt", depth=1, seed=seed), psnr=1.0)
    found = claims.findings([made.store])
    assert {f.verdict for f in found} == set(MARKS)
    summary, tests = verdicts.summary(found), verdicts.tests(found)
    assert len(summary) == len(found) >= sum(len(claim.metrics) for claim in CLAIMS)
    assert len(tests) == sum(len(f.tests) for f in found) and len(verdicts.tests([])) == 0
    for frame, words in ((summary, list(summary)), (tests, [name for name in tests if tests[name].dtype == object])):
        for name in words:
            assert frame[name].notna().all() and not frame[name].astype(str).str.contains(r"\b(?:nan|inf|None)\b").any(), name
    assert list(summary.verdict) == [f.verdict for f in found] and (summary.why != "").all()
    one = tests[(tests.claim == "P1") & (tests.metric == "psnr")].iloc[0]
    assert one.n == 1 and np.isnan(one.low) and np.isnan(one.p) and one.n_all_runs == 5
    row = tests[(tests.claim == "F3") & (tests.metric == "psnr")].iloc[0]
    assert (row.hypothesis, row.unit, row.n, row.decides, row.verdict) == ("differs from 0 dB", "dB", 5, True, "supported")
    assert row["mean"] == pytest.approx(2) and row.low < 2 < row.high and row.p == row.p_adjusted < row.p_sign_flip == 1 / 16


def test_signs_are_flipped_about_what_the_goal_is_tested_against(root):
    x = [0.3, -0.1, 0.02, 0.2, 0.05]
    f = by_hand(root, *(hand(x, goal, 0.1) for goal in ("above", "below", "differs", "within")), hand(x, "not below", -0.1))
    zero, margin, minus = stats.sign_flip(x), stats.sign_flip(x, 0.1), stats.sign_flip(x, -0.1)
    assert zero != margin and list(verdicts.tests([f]).p_sign_flip) == [margin, margin, zero, zero, minus]


def test_an_effect_is_written_with_its_interval_unit_and_brackets_where_no_run_counts(root):
    f = by_hand(root, hand(2.5 + 10 * NOISE, unit="dB"))
    assert f.effect == "x: +2.5 [+2.3, +2.7] dB"
    assert by_hand(root, hand(-0.25 + NOISE, unit="dB")).effect == "x: −0.25 [−0.27, −0.23] dB"
    assert by_hand(root, hand((-1.25,))).effect == "x: −1.2"
    assert by_hand(root, replace(f.tests[0], values={})).effect == "(x: +2.5 [+2.3, +2.7] dB)"
    assert by_hand(root, replace(f.tests[0], values={}, every={})).effect == "—"
    assert by_hand(root, hand(goal="all above", margin=2), hand((3e-7, 1e-7), "all below", 1e-8)).effect == "x: 1"
    assert by_hand(root, hand(goal="all above"), hand((3e-7, 1e-7), "all below", 1e-8)).effect == "x: 3e-07"
