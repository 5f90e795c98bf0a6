"""Paired contrasts of runs, computed from records, and checks that the compared networks are trained."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from ..records.sweep import Sweep, choices, knn, with_columns
from . import stats
from .hypotheses import LEVEL, PAIRS, Test


@dataclass(frozen=True)
class Metric:
    """A compared quantity, signed and scaled by `scale` so that higher is better. A trained network must exceed `baseline`;
    `start` says whether tests need the value at random initialisation."""

    name: str
    unit: str
    scale: float = 1.0
    baseline: str = ""
    start: bool = False


FEATURES = "probe above the same network at random init and above raw pixels"
PIXELS = "PSNR above the mean of visible neighbours (pretext bert)"
METRICS = {
    "psnr": Metric("PSNR", "dB", baseline=PIXELS),
    "loss": Metric("pretext loss, sign reversed", "", -1.0, PIXELS),
    "probe": Metric("linear probe, mean over layers", "points", 100.0, FEATURES),
    "probe_best": Metric("linear probe, best layer", "points", 100.0, FEATURES),
    "roll_error": Metric("roll error", "", start=True),
    "lie_error": Metric("Lie error", "", baseline=PIXELS, start=True),
    "distance": Metric("mixing distance", "tokens", baseline=PIXELS, start=True),
    "spectrum": Metric("spectrum", "log amplitude", baseline=PIXELS, start=True),
    "rank": Metric("Kendall's tau", "", baseline=FEATURES),
}


class Absent(Exception):
    """Raised if a sweep lacks the runs of a claim; the message says what is missing."""


class Form(dict):
    """A weighted sum of runs per seed, {seed: {key: weight}}. A sum keeps only the seeds that all its terms have."""

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
    """Return the least-squares slope of forms on x, as a Form."""
    return total(weight * form for weight, form in zip(stats.slope_weights(x), forms, strict=True))


@dataclass
class Evidence:
    """The evidence of one sweep in one metric. `of` selects runs, `test` builds hypotheses about their weighted sums.

    Every run that ended counts. A run that diverged has the values of its network at random initialisation. With `strict` (a
    sensitivity analysis), only runs whose test values exceed their baselines count, whatever the other runs of their arm."""

    sweep: Sweep
    metric: str
    runs: pd.DataFrame  # the frame of the sweep, indexed by key
    records: dict = field(default_factory=dict)  # cache of records and of values computed from them
    strict: bool = False
    used: set = field(default_factory=set)
    notes: list = field(default_factory=list)  # remarks for the reader

    def __post_init__(self):
        self.base = self.sweep.base()
        reasons = {run.key: self.excluded(run) for run in self.runs.itertuples()}
        self.out = {key: reason for key, reason in reasons.items() if reason}
        self.counted = set(self.runs.index) - self.out.keys()

    def strictly(self):
        """Return this Evidence restricted to the runs whose test values exceed their baselines."""
        return replace(self, strict=True, used=set(), notes=[])

    def excluded(self, run):
        """Return the reason why a run does not count, or ''."""
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

    # ---- selection of runs

    def levels(self, name, least=1, most=None):
        """Return the requested levels of a field, ascending, up to `most`. Raises Absent if there are fewer than `least`."""
        found = sorted({run[name] for run in self.sweep.runs if name in run and (most is None or run[name] <= most)})
        if len(found) < least:
            raise Absent(f"needs {least} levels of {name}" + (f" up to {most}" if most else "") + f", has {len(found)}")
        return found

    def of(self, **where):
        """Return the Form of the run of every seed with these field values and all other factors at their base level. Fields
        that a run does not read are ignored. Raises Absent."""
        fixed = {**self.base, **where}
        chosen = [run for run in self.sweep.runs if all(run.get(name, value) == value for name, value in fixed.items())]
        if not chosen:
            raise Absent("no run with " + ", ".join(f"{name} {value}" for name, value in where.items()))
        self.used |= {run["key"] for run in chosen}
        return Form({run["seed"]: {run["key"]: 1.0} for run in chosen})

    def arms(self, keys):
        """Group runs into arms, which differ only in the seed: {name, made of the factors that vary: keys}."""
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
        """Return the record of a run at random initialisation."""
        return self.record(self.runs.at[key, "init"])

    def diverged(self, key):
        return self.runs.at[key, "status"] == "diverged"

    def final(self, key):
        """Return the record with the measures and the probe of a run, which is that at random initialisation if it diverged."""
        return self.start(key) if self.diverged(key) else self.record(key)

    def choice(self, key):
        """Return the Choice (penalties and best layer) of the probe of a run, which all seeds of its arm share."""
        if "choices" not in self.records:
            ended = self.runs.index[self.runs.status.isin(("done", "diverged"))]
            inits = self.sweep.inits() if any(map(self.diverged, ended)) else {}
            self.records["choices"] = choices([self.record(key) for key in ended], inits)
        chosen, at_init = self.records["choices"][key]
        return chosen or at_init

    # ---- values

    def value(self, key):
        """Return the metric of a run; higher is better."""
        return METRICS[self.metric].scale * self.runs.at[key, self.metric]

    def values(self, of, value=None):
        """Return {seed: weighted sum} of a Form for the seeds whose runs all count; a plain dict is used as it is. `value` is a
        function of a key or a column of the runs, by default the metric. Seeds with a NaN value are left out."""
        found = of
        if isinstance(of, Form):
            value, found = self.runs[value].get if isinstance(value, str) else value or self.value, {}
            for seed, part in of.items():
                if self.counted.issuperset(part):
                    found[seed] = float(sum(weight * value(key) for key, weight in part.items()))
        return {seed: number for seed, number in found.items() if not np.isnan(number)}

    def combined(self, combine, parts, value=None):
        """Return {seed: combine(values of all parts)}, for quantities that are not weighted sums."""
        found, results = [self.values(part, value) for part in parts], {}
        for seed in sorted(set.intersection(*map(set, found))):
            results[seed] = float(combine([values[seed] for values in found]))
        return results

    def relative(self, change, whole):
        """Return {seed: change in % of whole} for two forms."""

        def percent(values):
            return 100 * values[0] / abs(values[1])

        return self.combined(percent, [change, whole])

    def correct(self, form):
        """Return the weighted sum of the probes' correctness in points, (seeds, test images), for the seeds of `values`."""
        rows = []
        for seed in self.values(form):
            rows.append(sum(100.0 * weight * self.bits(key) for key, weight in form[seed].items()))
        return np.array(rows)

    def groups(self, form):
        """Return the groups of dependent test images (test images,) from the record of a baseline, equal for all runs; None if
        all images are independent."""
        used = {key for part in form.values() for key in part}
        for baseline in sorted({run["baseline"] for run in self.sweep.runs if run["key"] in used}):
            if self.sweep.store.has(baseline) and "arrays" in self.sweep.store.load(baseline):
                return self.sweep.store.arrays(baseline).get("groups")
        return None

    def bits(self, key):
        """Return the fraction (test images,) of layers 1 to L at which the probe of a run is correct, with the penalties of its
        arm."""
        if (key, self.metric) not in self.records:
            correct, choice = self.sweep.store.arrays(self.final(key)["key"])["correct"], self.choice(key)
            right = [correct[layer] >> choice.penalties[layer] & 1 for layer in range(1, len(correct))]
            self.records[key, self.metric] = np.mean(right, 0)
        return self.records[key, self.metric]

    # ---- whether networks are trained, by validation values

    def trained(self, form):
        """Return whether the arms of a Form, averaged with its weights, are trained. For features, the gain over random
        initialisation is above 0 by a one-sided paired t test over seeds, and the mean exceeds raw pixels. For reconstructions,
        the mean PSNR exceeds that of the mean of visible neighbours."""
        above, gain = self.above_baselines(form)
        if above is None:
            return True
        if not above or not np.mean(list(above.values())) > 0:
            return False
        return gain is None or stats.greater(list(gain.values())) <= LEVEL

    def above_baselines(self, form):
        """Return (difference to the baseline, difference to random initialisation), each {seed: value} or None if undefined."""
        baseline, keys = METRICS[self.metric].baseline, {key for part in form.values() for key in part}
        if not baseline or (baseline == PIXELS and any(self.runs.at[key, "pretext"] != "bert" for key in keys)):
            return None, None
        if baseline == PIXELS:
            return self.values(form, "above_neighbours"), None
        best = "_best" if self.metric == "probe_best" else ""
        return self.values(form, f"above_pixels{best}"), self.values(form, f"above_init{best}")

    def untrained(self, keys):
        """Return descriptions of the untrained arms among these runs, with the number of seeds not above a baseline."""
        found = []
        for name, members in self.arms(keys).items():
            form = Form({self.runs.at[key, "seed"]: {key: 1.0} for key in members})
            above, gain = self.above_baselines(form)
            if above and not self.trained(form):
                low = [seed for seed in above if not above[seed] > 0 or (gain and not gain[seed] > 0)]
                if low or len(above) >= PAIRS:  # with few seeds, the t test alone is not sufficient
                    found.append(f"{name} ({len(low)} of {len(above)} seeds)")
        return tuple(found)

    # ---- hypotheses

    def test(self, label, of, goal, margin=0.0, reference=None, value=None, unit=None, small=None, **rest):
        """Return a Test of `of`, which is an argument of `values`. `reference` is the Form of the arms that must be trained for
        an informative test: those that are claimed to be better or are left unchanged. Effects within `small` of 0 are
        negligible; its default is the margin for above, below and differs, else 0."""
        features = isinstance(of, Form) and self.metric == "probe" and value is None
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
        """Return a Test of Kendall's tau between the probe and column `other` times `sign`, averaged over groups of forms. The
        means of the forms over seeds are ranked, and p comes from permutations within groups. The values of the Test, tau of
        all forms per seed, only give n."""

        def tau(probes, others):
            """Return (mean tau, p) of two lists over all forms."""
            found, at = [], 0
            for group in groups:
                members = slice(at, at := at + len(group))
                found.append((sign * np.array(others[members]), np.array(probes[members])))
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
    """Return the frame of a sweep by key with the columns that baselines and metrics need (NaN if a run has no value). A run
    that diverged has the values of its network at random initialisation, whose head is zero: the PSNR of the image mean, the
    loss of predicting zeros (1 in standardised colours, the logarithm of the number of colours of a palette), and the probe of
    the record at random initialisation."""
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
    """Return {key of a diverged run: columns at random initialisation}, without a probe if that record is missing."""
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
