"""From records to evidence: paired contrasts of runs, the baselines that runs must beat, and hypotheses about them."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..records.sweep import Sweep, choices, with_columns
from . import stats

PAIRS = 5  # fewer decide nothing
LEVEL = 0.05
MARKS = {"supported": "✓", "contradicted": "✗", "undecided": "?", "not run": "–"}  # of verdicts


@dataclass(frozen=True)
class Metric:
    """What is compared: turned and scaled so that more is better, the baseline that a run must beat to count, and whether its
    tests read what was measured at random init."""

    name: str
    unit: str
    scale: float = 1.0
    baseline: str = ""
    start: bool = False


FEATURES = "probe above the same network at random init and above raw pixels"
PIXELS = "PSNR above the mean of visible neighbours (pretext bert)"
METRICS = {
    "psnr": Metric("PSNR", "dB", baseline=PIXELS),
    "loss": Metric("pretext loss, sign turned", "", -1.0, PIXELS),
    "probe": Metric("linear probe, mean over layers", "points", 100.0, FEATURES),
    "probe_best": Metric("linear probe, best layer", "points", 100.0, FEATURES),
    "roll_error": Metric("roll error", "", start=True),
    "lie_error": Metric("Lie error", "", baseline=PIXELS, start=True),
    "distance": Metric("mixing distance", "tokens", baseline=PIXELS, start=True),
    "spectrum": Metric("spectrum", "log amplitude", baseline=PIXELS),
    "rank": Metric("Kendall's tau", "", baseline=FEATURES),
}


class Absent(Exception):
    """A sweep that was not made for a claim: what it lacks."""


class Form(dict):
    """A weighted sum of runs per seed, {seed: {key: weight}}; a seed that a part lacks is left out."""

    def __add__(self, other):
        added = Form()
        for seed in self:
            if seed in other:
                keys = {**self[seed], **other[seed]}
                added[seed] = {key: self[seed].get(key, 0) + other[seed].get(key, 0) for key in keys}
        return added

    def __mul__(self, factor):
        scaled = Form()
        for seed, part in self.items():
            scaled[seed] = {key: factor * weight for key, weight in part.items()}
        return scaled

    __rmul__ = __mul__

    def __sub__(self, other):
        return self + -1 * other


def total(forms):
    first, *rest = forms
    return sum(rest, first)


def mean(forms):
    forms = list(forms)
    return total(forms) * (1 / len(forms))


def slope(x, forms):
    """The least-squares slope of forms on x."""
    return total(weight * form for weight, form in zip(stats.slope_weights(x), forms, strict=True))


@dataclass
class Test:
    """One hypothesis about one value per seed, and how it came out.

    The goal: the mean is "above" or "below" the margin; "not below" it (non-inferiority); "within" plus or minus it
    (equivalence); "differs" from 0 (contradicted: within the margin); or, without statistics, every value is "all above" or
    "all below" it."""

    label: str
    values: dict  # seed -> value, of runs above their baselines
    every: dict  # the same, of all finished runs
    goal: str
    margin: float
    unit: str
    decides: bool = True  # the verdict of the claim hangs on it
    p: tuple = ()  # (for, against) of a test that is not the paired t test
    images: np.ndarray | None = None  # (seeds, images): what each test image adds
    groups: np.ndarray | None = None  # (images,): equal for images that are not independent; None: all are
    adjusted: tuple = ()  # p for and against, after Holm
    verdict: str = "undecided"

    @property
    def n(self):
        return len(self.values)

    @property
    def effect(self):
        return stats.paired(list(self.values.values()))

    @property
    def hypothesis(self):
        words = {"within": "within ±", "differs": "differs from 0", "above": "above ", "below": "below ",
                 "not below": "not below ", "all above": "each above ", "all below": "each below "}[self.goal]  # fmt: skip
        return (words if self.goal == "differs" else f"{words}{self.margin:g}") + (f" {self.unit}" if self.unit else "")

    def p_values(self):
        """(p for the goal, p against it): two-sided for above, below and differs, 1 on the wrong side; one-sided for not below
        and within, as is usual there; NaN without pairs."""
        x, margin = list(self.values.values()), self.margin
        if self.p:
            return self.p
        if self.n < 2 or self.goal.startswith("all"):
            return np.nan, np.nan
        middle = float(np.mean(x))
        if self.goal in ("above", "below"):
            p = stats.paired(x, margin).p
            good = middle > margin if self.goal == "above" else middle < margin
            return (p, 1.0) if good else (1.0, p)
        if self.goal == "not below":
            return stats.not_inferior(x, -margin), stats.paired(x, margin).p if middle < margin else 1.0
        equal = stats.equivalent(x, margin) if margin else 1.0
        if self.goal == "differs":
            return stats.paired(x).p, equal
        return equal, stats.paired(x, np.copysign(margin, middle)).p if abs(middle) > margin else 1.0

    def judge(self, adjusted):
        """Take the verdict that the adjusted p values give."""
        self.adjusted = adjusted
        if self.goal.startswith("all"):
            above = self.goal == "all above"
            if not all(value > self.margin if above else value < self.margin for value in self.values.values()):
                self.verdict = "contradicted"
            else:
                self.verdict = "supported" if self.n >= PAIRS else "undecided"
        elif self.n >= PAIRS:
            good, bad = (p <= LEVEL for p in adjusted)
            self.verdict = "contradicted" if bad else "supported" if good else "undecided"


@dataclass
class Evidence:
    """What one sweep says with one metric. `of` names runs, `test` makes hypotheses of their weighted sums."""

    sweep: Sweep
    metric: str
    runs: pd.DataFrame  # the sweep's, by key
    records: dict = field(default_factory=dict)  # those that have been read, and what was made of them
    used: set = field(default_factory=set)

    def __post_init__(self):
        self.base = self.sweep.base()
        done = self.runs.index[self.runs.status == "done"]
        self.done = {key for key in done if not METRICS[self.metric].start or self.sweep.store.has(self.runs.at[key, "init"])}
        reasons = {run.key: self.excluded(run) for run in self.runs.itertuples()}
        self.out = {key: reason for key, reason in reasons.items() if reason}

    def excluded(self, run):
        """Why a run does not count, or ''."""
        baseline, pixels = METRICS[self.metric].baseline, run.pretext == "bert"
        if run.status != "done":
            return run.status
        if run.key not in self.done or (baseline == FEATURES and np.isnan(run.init_probe)):
            return "without the record of their random init"
        if self.metric in ("psnr", "loss") and np.isnan(getattr(run, self.metric)):
            return f"without a {self.metric} (pretext {run.pretext})"
        if np.isnan(run.baseline_probe) and (baseline == FEATURES or (baseline == PIXELS and pixels)):
            return "without the record of their baseline"
        best = self.metric == "probe_best"
        probe, start = (run.probe_best, run.init_probe_best) if best else (run.probe, run.init_probe)
        if baseline == FEATURES and not probe > max(start, run.baseline_probe):
            return "untrained: probe not above random init and raw pixels"
        if baseline == PIXELS and pixels and not run.psnr > run.baseline_psnr:
            return "untrained: PSNR not above the mean of visible neighbours"
        return ""

    def levels(self, name, least=1, most=None):
        """The levels of a field that were asked for, ascending, up to `most`. Raises Absent for fewer than `least`."""
        found = sorted({run[name] for run in self.sweep.runs if name in run and (most is None or run[name] <= most)})
        if len(found) < least:
            raise Absent(f"needs {least} levels of {name}" + (f" up to {most}" if most else "") + f", has {len(found)}")
        return found

    def of(self, **where):
        """The run of every seed with these fields, all other factors at their base level; a field that a run does not read
        has any level. Raises Absent."""
        fixed = {**self.base, **where}
        chosen = [run for run in self.sweep.runs if all(run.get(name, value) == value for name, value in fixed.items())]
        if not chosen:
            raise Absent("no run with " + ", ".join(f"{name} {value}" for name, value in where.items()))
        self.used |= {run["key"] for run in chosen}
        return Form({run["seed"]: {run["key"]: 1.0} for run in chosen})

    def record(self, key):
        if key not in self.records:
            self.records[key] = self.sweep.store.load(key)
        return self.records[key]

    def start(self, key):
        """The record at random init of a run."""
        return self.record(self.runs.at[key, "init"])

    def choice(self, key):
        """The penalties and the best layer of a finished run's probe, which all seeds of its setting share."""
        if "choices" not in self.records:
            done = self.runs.index[self.runs.status == "done"]
            self.records["choices"] = choices([self.record(key) for key in done], {})
        return self.records["choices"][key][0]

    def value(self, key):
        """The metric of a finished run, more is better."""
        return METRICS[self.metric].scale * self.runs.at[key, self.metric]

    def values(self, of, value=None, baselines=True):
        """{seed: weighted sum} of a Form over the seeds all of whose runs count; without `baselines`, all of whose runs are
        finished; or what a function (baselines) -> {seed: value} gives. `value` is the metric, another function of a key, or a
        column of the runs. A seed whose value is NaN, as of a metric that its runs do not have, is left out."""
        if isinstance(of, Form):
            counted, found = self.done - self.out.keys() if baselines else self.done, {}
            value = self.runs[value].get if isinstance(value, str) else value or self.value
            for seed, part in of.items():
                if counted.issuperset(part):
                    found[seed] = float(sum(weight * value(key) for key, weight in part.items()))
        else:
            found = of(baselines)
        return {seed: number for seed, number in found.items() if not np.isnan(number)}

    def combined(self, combine, parts, value=None):
        """The function (baselines) -> {seed: what `combine` makes of the list of the values of all parts}, for what is no
        weighted sum. A part is a Form or such a function."""

        def by_seed(baselines):
            found, results = [self.values(part, value, baselines) for part in parts], {}
            for seed in sorted(set.intersection(*map(set, found))):
                results[seed] = float(combine([values[seed] for values in found]))
            return results

        return by_seed

    def relative(self, change, whole):
        """The function (baselines) -> {seed: change in % of the whole} of two forms."""

        def percent(values):
            return 100 * values[0] / abs(values[1])

        return self.combined(percent, [change, whole])

    def correct(self, form):
        """(seeds, test images) weighted sum of the probes' correctness in points, for the seeds of `values`."""
        rows = []
        for seed in self.values(form):
            rows.append(sum(100.0 * weight * self.bits(key) for key, weight in form[seed].items()))
        return np.array(rows)

    def groups(self, form):
        """(test images,) which test images of these runs, equal for all, are not independent, by the record of a baseline; None
        if all are."""
        used = {key for part in form.values() for key in part}
        for baseline in sorted({run["baseline"] for run in self.sweep.runs if run["key"] in used}):
            if self.sweep.store.has(baseline) and "arrays" in self.sweep.store.load(baseline):
                return self.sweep.store.arrays(baseline).get("groups")
        return None

    def bits(self, key):
        """(test images,) how often the probe of a run is right at the penalties of its setting: over layers 1 to L, of
        "probe_best" at the best layer."""
        if (key, self.metric) not in self.records:
            correct, choice = self.sweep.store.arrays(key)["correct"], self.choice(key)
            layers = [choice.layer] if self.metric == "probe_best" else range(1, len(correct))
            right = [correct[layer] >> choice.penalties[layer] & 1 for layer in layers]
            self.records[key, self.metric] = np.mean(right, 0)
        return self.records[key, self.metric]

    def test(self, label, of, goal, margin=0.0, value=None, unit=None, **rest):
        """A Test of what `values` takes."""
        counted, every = (self.values(of, value, baselines) for baselines in (True, False))
        if isinstance(of, Form) and self.metric in ("probe", "probe_best") and value is None and len(counted) > 1:
            rest |= {"images": self.correct(of), "groups": self.groups(of)}
        return Test(label, counted, every, goal, margin, METRICS[self.metric].unit if unit is None else unit, **rest)


def runs_of(sweep):
    """The frame of a sweep by key, with the columns that baselines and metrics need; NaN for what a run does not have."""
    names = ("psnr", "loss", "probe", "probe_best", "init_probe", "init_probe_best", "knn")
    return with_columns(sweep.frame(), *names).astype(dict.fromkeys(names, float)).set_index("key", drop=False)
