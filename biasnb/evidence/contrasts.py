"""From records to evidence: paired contrasts of runs, and whether the networks that they compare are trained."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from ..records.sweep import Sweep, choices, knn, with_columns
from . import stats
from .hypotheses import LEVEL, PAIRS, Test


@dataclass(frozen=True)
class Metric:
    """What is compared: turned and scaled so that more is better, what a trained network is above, and whether its tests read
    what was measured at random init."""

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
    "spectrum": Metric("spectrum", "log amplitude", baseline=PIXELS, start=True),
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
class Evidence:
    """What one sweep says with one metric. `of` names runs, `test` makes hypotheses of their weighted sums.

    Every run that ended counts; one that diverged, with the values of its network at random init. With `strict`, as in a
    sensitivity analysis, only the runs count that are above their floors by test values, whatever the others of their arm."""

    sweep: Sweep
    metric: str
    runs: pd.DataFrame  # the sweep's, by key
    records: dict = field(default_factory=dict)  # those that have been read, and what was made of them
    strict: bool = False
    used: set = field(default_factory=set)
    notes: list = field(default_factory=list)  # what a reader should know, in words

    def __post_init__(self):
        self.base = self.sweep.base()
        reasons = {run.key: self.excluded(run) for run in self.runs.itertuples()}
        self.out = {key: reason for key, reason in reasons.items() if reason}
        self.counted = set(self.runs.index) - self.out.keys()

    def strictly(self):
        """The same, of the runs that are above their floors by test values."""
        return replace(self, strict=True, used=set(), notes=[])

    def excluded(self, run):
        """Why a run does not count, or ''."""
        baseline, pixels = METRICS[self.metric].baseline, run.pretext == "bert"
        if run.status not in ("done", "diverged"):
            return run.status
        needs_start = METRICS[self.metric].start and not self.sweep.store.has(run.init)
        if needs_start or (np.isnan(run.init_probe) and (baseline == FEATURES or run.status == "diverged")):
            return "without the record of their random init"
        if self.metric in ("psnr", "loss") and np.isnan(getattr(run, self.metric)):
            return f"without a {self.metric} (pretext {run.pretext})"
        if np.isnan(run.baseline_probe) and (baseline == FEATURES or (baseline == PIXELS and pixels)):
            return "without the record of their baseline"
        if not self.strict:
            return ""
        best = self.metric == "probe_best"
        probe, start = (run.probe_best, run.init_probe_best) if best else (run.probe, run.init_probe)
        if run.status == "diverged":
            return "diverged"
        if baseline == FEATURES and not probe > max(start, run.baseline_probe):
            return "probe not above random init and raw pixels"
        if baseline == PIXELS and pixels and not run.psnr > run.baseline_psnr:
            return "PSNR not above the mean of visible neighbours"
        return ""

    # ---- which runs

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

    def arms(self, keys):
        """What runs are called -> their keys: those that are equal in everything but the seed, named by what varies."""
        runs, found = [run for run in self.sweep.runs if run["key"] in keys], {}
        varied = []
        for name in self.sweep.factors():
            if name != "mixer" and len({run[name] for run in runs if name in run}) > 1:
                varied.append(name)
        for run in runs:
            words = [f"{name} {run[name]}" for name in varied if name in run]
            found.setdefault(", ".join([run["mixer"], *words]), []).append(run["key"])
        return found

    # ---- records

    def record(self, key):
        if key not in self.records:
            self.records[key] = self.sweep.store.load(key)
        return self.records[key]

    def start(self, key):
        """The record at random init of a run."""
        return self.record(self.runs.at[key, "init"])

    def diverged(self, key):
        return self.runs.at[key, "status"] == "diverged"

    def final(self, key):
        """The record with the measures and the probe of a run: its own, or that of its random init if it diverged."""
        return self.start(key) if self.diverged(key) else self.record(key)

    def choice(self, key):
        """The penalties and the best layer of a run's probe, which all seeds of its setting share."""
        if "choices" not in self.records:
            ended = self.runs.index[self.runs.status.isin(("done", "diverged"))]
            inits = self.sweep.inits() if any(map(self.diverged, ended)) else {}
            self.records["choices"] = choices([self.record(key) for key in ended], inits)
        chosen, at_init = self.records["choices"][key]
        return chosen or at_init

    # ---- values

    def value(self, key):
        """The metric of a run, more is better."""
        return METRICS[self.metric].scale * self.runs.at[key, self.metric]

    def values(self, of, value=None):
        """{seed: weighted sum} of a Form over the seeds all of whose runs count, or a dict as it is. `value` is the metric,
        another function of a key, or a column of the runs. A seed whose value is NaN, as of a metric that its runs do not have,
        is left out."""
        found = of
        if isinstance(of, Form):
            value, found = self.runs[value].get if isinstance(value, str) else value or self.value, {}
            for seed, part in of.items():
                if self.counted.issuperset(part):
                    found[seed] = float(sum(weight * value(key) for key, weight in part.items()))
        return {seed: number for seed, number in found.items() if not np.isnan(number)}

    def combined(self, combine, parts, value=None):
        """{seed: what `combine` makes of the list of the values of all parts}, for what is no weighted sum."""
        found, results = [self.values(part, value) for part in parts], {}
        for seed in sorted(set.intersection(*map(set, found))):
            results[seed] = float(combine([values[seed] for values in found]))
        return results

    def relative(self, change, whole):
        """{seed: change in % of the whole} of two forms."""

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
            correct, choice = self.sweep.store.arrays(self.final(key)["key"])["correct"], self.choice(key)
            layers = [choice.layer] if self.metric == "probe_best" else range(1, len(correct))
            right = [correct[layer] >> choice.penalties[layer] & 1 for layer in layers]
            self.records[key, self.metric] = np.mean(right, 0)
        return self.records[key, self.metric]

    # ---- trained or not, by validation values

    def trained(self, form):
        """Whether the arms of a Form, averaged as it says, are trained. Of features: the gain over random init is above 0 by a
        one-sided paired t test over seeds, and the mean above raw pixels. Of reconstructions: the mean PSNR is above the
        mean of visible neighbours."""
        above, gain = self.floors(form)
        if above is None:
            return True
        if not above or not np.mean(list(above.values())) > 0:
            return False
        return gain is None or stats.greater(list(gain.values())) <= LEVEL

    def floors(self, form):
        """(per seed how far above its floor, per seed how far above random init), None for what has no such floor."""
        baseline, keys = METRICS[self.metric].baseline, {key for part in form.values() for key in part}
        if not baseline or (baseline == PIXELS and any(self.runs.at[key, "pretext"] != "bert" for key in keys)):
            return None, None
        if baseline == PIXELS:
            return self.values(form, "above_neighbours"), None
        best = "_best" if self.metric == "probe_best" else ""
        return self.values(form, f"above_pixels{best}"), self.values(form, f"above_init{best}")

    def untrained(self, keys):
        """The arms of these runs that are not trained, in words, with the number of seeds that are below a floor."""
        found = []
        for name, members in self.arms(keys).items():
            form = Form({self.runs.at[key, "seed"]: {key: 1.0} for key in members})
            above, gain = self.floors(form)
            if above and not self.trained(form):
                low = [seed for seed in above if not above[seed] > 0 or (gain and not gain[seed] > 0)]
                if low or len(above) >= PAIRS:  # few seeds show little
                    found.append(f"{name} ({len(low)} of {len(above)} seeds)")
        return tuple(found)

    # ---- hypotheses

    def test(self, label, of, goal, margin=0.0, reference=None, value=None, unit=None, small=None, **rest):
        """A Test of what `values` takes. `reference`: the Form of the arms that must be trained for it to say anything, those
        that are said to be better or are left as they are. `small`: up to where an effect is negligible; the margin of above
        and below unless given."""
        features = isinstance(of, Form) and self.metric in ("probe", "probe_best") and value is None
        if features and not self.strict and len(self.values(of)) > 1:
            rest |= {"images": self.correct(of), "groups": self.groups(of)}
        if reference is not None and not self.strict:
            rest |= {"trained": self.trained(reference)}
            if not rest["trained"]:
                rest["untrained"] = self.untrained({key for part in reference.values() for key in part})
        if small is None:
            small = abs(margin) if goal in ("above", "below", "differs") else 0.0
        unit = METRICS[self.metric].unit if unit is None else unit
        return Test(label, self.values(of, value), goal, margin, unit, small, **rest)

    def rank_test(self, label, groups, other, goal, reference, sign=1):
        """A Test of the mean over groups of forms of Kendall's tau between the probe and another column of the runs, its sign
        turned by -1. The forms' means over seeds are ranked; p by permuting them within groups. The values are the tau of all
        forms per seed, to be counted."""

        def tau(probes, others):
            """(mean tau, p) of two lists over all forms."""
            found, at = [], 0
            for group in groups:
                here = slice(at, at := at + len(group))
                found.append((sign * np.array(others[here]), np.array(probes[here])))
            return stats.mean_tau(found)

        forms = [form for group in groups for form in group]
        columns = [[self.values(form, column) for form in forms] for column in ("probe", other)]
        seeds, values = sorted(set.intersection(*(set(part) for column in columns for part in column))), {}
        for seed in seeds:
            probes, others = ([part[seed] for part in column] for column in columns)
            values[seed] = sign * stats.kendall(probes, others)[0]
        if not seeds:
            return self.test(label, {}, goal, reference=reference)
        middle, p = tau(*([np.mean(list(part.values())) for part in column] for column in columns))
        good = (p if middle > 0 else 1.0), (p if middle < 0 else 1.0)
        if goal == "at most":
            good = np.nan, good[0]
        return self.test(label, values, goal, reference=reference, estimate=middle, p=good)


def runs_of(sweep):
    """The frame of a sweep by key, with the columns that floors and metrics need; NaN for what a run does not have. A run that
    diverged has what its network has at random init, where the head is zero: the PSNR of the image mean, the loss of
    predicting nothing (1 in standardised colours, the logarithm of the number of colours of a palette), and the probe of the
    record of its random init."""
    probes = [f"{split}probe{best}" for split in ("", "val_") for best in ("", "_best")]
    names = ["psnr", "val_psnr", "loss", "knn", *probes, *(f"init_{name}" for name in probes)]
    runs = with_columns(sweep.frame(), *names).astype(dict.fromkeys(names, float)).set_index("key", drop=False)
    for key, start in starts_of_diverged(sweep, runs).items():
        for name, value in start.items():
            runs.at[key, name] = value
    for best in ("", "_best"):
        runs[f"above_init{best}"] = runs[f"val_probe{best}"] - runs[f"init_val_probe{best}"]
        runs[f"above_pixels{best}"] = runs[f"val_probe{best}"] - runs.baseline_val_probe
    runs["above_neighbours"] = runs.val_psnr - runs.baseline_val_psnr
    return runs


def starts_of_diverged(sweep, runs):
    """Key of a run that diverged -> its columns at random init; no probe where the record of its random init is missing."""
    lost = runs[runs.status == "diverged"]
    if not len(lost):
        return {}
    ended = runs.index[runs.status.isin(("done", "diverged"))]
    inits = sweep.inits()
    chosen, found = choices([sweep.store.load(key) for key in ended], inits), {}
    for run in lost.itertuples():
        found[run.key] = {}
        if run.pretext in ("bert", "ar", "denoise"):
            nothing = float(np.log(run.colours)) if getattr(run, "target", "") == "palette" else 1.0
            found[run.key] = {"psnr": run.image_mean_psnr, "val_psnr": run.image_mean_psnr, "loss": nothing}
        if run.init in inits:
            probe, at_init = inits[run.init]["probe"], chosen[run.key][1]
            found[run.key] |= at_init.columns(probe) | at_init.columns(probe, "init_") | {"knn": knn(probe)}
    return found
