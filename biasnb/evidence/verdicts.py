"""Verdicts on claims from their tests, and findings as data frames."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import stats
from .contrasts import METRICS
from .hypotheses import PAIRS


@dataclass(frozen=True)
class Finding:
    """The verdict of one sweep on one claim, or one row of a claim, in one metric."""

    claim: object
    profile: str
    metric: str
    verdict: str
    why: str
    evidence: str = ""  # name of the sweep
    tests: tuple = ()
    row: str = ""
    notes: str = ""  # missing or diverged runs, untrained networks, what records lack
    earlier: str = ""  # the verdict without the runs whose test values do not exceed their baselines
    dropped: str = ""  # these runs, by network

    @property
    def n(self):
        return self.key_test.n if self.key_test else 0

    @property
    def key_test(self):
        """The deciding test on which the verdict depends most, among those with the verdict of the claim: the strongest if one
        test suffices for the verdict, the weakest if all are needed. None without a deciding test."""
        deciding = [test for test in self.tests if test.decides]
        tests = [test for test in deciding if test.verdict == self.verdict] or deciding
        against = self.verdict == "contradicted"

        def strength(test):
            return test.n, -np.nan_to_num(test.adjusted[against], nan=1.0)

        pick = max if self.claim.any != against else min
        return pick(tests, key=strength, default=None)

    @property
    def sensitivity(self):
        """The verdict without the runs below their baselines and, if it is another one, these runs."""
        return self.earlier + (f" (without {self.dropped})" if self.earlier != self.verdict and self.dropped else "")

    @property
    def effect(self):
        """The key test as 'label: mean [95 % interval] unit'."""
        test = self.key_test
        if not test or not test.values:
            return "—"
        if test.goal.startswith("all"):
            worst = max if test.goal == "all below" else min
            return f"{test.label}: {worst(test.values.values()):.2g} {test.unit}".strip()
        mean, low, high, *_ = test.effect
        interval = "" if np.isnan(low) else f" [{signed(low)}, {signed(high)}]"
        return f"{test.label}: {signed(mean)}{interval} {test.unit}".strip()


def signed(value):
    return f"{value:+.2g}".replace("-", "−") if abs(value) < 1 else f"{value:+.1f}".replace("-", "−")


STRICTLY = "without runs below their baselines"  # head of the column of the sensitivity analysis
WORST = ("supported", "negligible", "not run", "uninformative", "undecided", "contradicted")  # from best to worst


def worst(findings):
    """Return the finding that is least favourable to the claim."""
    return max(findings, key=lambda one: WORST.index(one.verdict))


def find(claim, evidence):
    """Return the Findings of a claim in a sweep, one per row of the claim. Raises Absent if the sweep lacks runs of the claim,
    and StoreError for a broken record."""
    strictly = evidence.strictly()
    tests, earlier = judged(claim, evidence), judged(claim, strictly)
    for test, same in zip(tests, earlier, strict=True):
        test.earlier = same
    used = [run for run in evidence.runs.itertuples() if run.key in evidence.used]
    absent = absent_runs(evidence, used)
    notes = "; ".join([*absent, *untrained_arms(evidence), *evidence.notes])
    nothing, dropped = all(run.status in ("missing", "failed") for run in used), dropped_runs(evidence, strictly)
    found = []
    for row in claim.rows or ("",):
        part = tuple(test for test in tests if test.row == row)
        before = tuple(test for test in earlier if test.row == row)
        verdict, why = ("not run", "; ".join(absent)) if nothing else combine(claim, part, "; ".join(absent))
        strict = "not run" if nothing else combine(claim, before, "")[0]
        profile = evidence.sweep.content["profile"]
        given = (claim, profile, evidence.metric, verdict, why, evidence.sweep.name, part, row, notes, strict, dropped)
        found.append(Finding(*given))
    return found


def judged(claim, evidence):
    """Return the tests of a claim with their verdicts. If a single test suffices for a verdict, p values are adjusted by Holm's
    method for the planned number of tests: p for a claim that any test can support, p against one that any can contradict."""
    tests = tuple(claim.tests(evidence))
    for test in tests:
        test.adjusted = test.p_values()
    deciding = [test for test in tests if test.decides]
    if claim.any or claim.holm:
        for test, p in zip(deciding, stats.holm([test.adjusted[0] for test in deciding]), strict=True):
            test.adjusted = (float(p), test.adjusted[1])
    for row in claim.rows or ("",):
        part = [test for test in deciding if test.row == row and not claim.any]
        for test, p in zip(part, stats.holm([test.adjusted[1] for test in part]), strict=True):
            test.adjusted = (test.adjusted[0], float(p))
    for test in tests:
        test.judge(test.adjusted)
    return tests


def absent_runs(evidence, used):
    """Return descriptions of how many of the used runs do not count, and of how many diverged."""
    reasons = pd.Series([evidence.out[run.key] for run in used if run.key in evidence.out], dtype=object).value_counts()
    words = [f"{count} of {len(used)} runs {reason}" for reason, count in reasons.items()]
    lost = sum(run.status == "diverged" and run.key in evidence.counted for run in used)
    return words + ([f"{lost} of {len(used)} runs diverged, counted with their random init"] if lost else [])


def dropped_runs(evidence, strictly):
    """Return how many of the used runs of each network count in `evidence` but not in `strictly`, e.g. 'lc_frozen 5 of 5'."""
    used = strictly.runs[strictly.runs.index.isin(strictly.used)]
    words = []
    for mixer, runs in used.groupby("mixer", sort=False):
        count = sum(key in strictly.out and key not in evidence.out for key in runs.index)
        words += [f"{mixer} {count} of {len(runs)}"] if count else []
    return ", ".join(words)


def untrained_arms(evidence):
    """Return a description of the used networks that are not trained, in a list; [] if there are none."""
    found = evidence.untrained(evidence.used)
    return ["untrained: " + ", ".join(found)] if found else []


def combine(claim, tests, absent):
    """Return (verdict, reason) of a claim from its deciding tests. All must hold, or any one if `claim.any`."""
    deciding = [test for test in tests if test.decides]
    seen, n = [test.verdict for test in deciding], min(test.n for test in deciding)
    of = {verdict: ", ".join(test.label for test in deciding if test.verdict == verdict) for verdict in seen}
    all_or_one = "every test" if len(seen) > 1 else "the test"
    if all(test.lacks for test in deciding):
        return "not run", deciding[0].lacks
    if all(verdict == "supported" for verdict in seen):
        directions = {test.direction for test in deciding if test.goal == "differs" and test.margin}
        return "supported", " and ".join(directions) or all_or_one
    if claim.any and "supported" in seen:
        return "supported", of["supported"]
    for verdict in ("contradicted", "negligible"):
        if verdict in seen and (not claim.any or set(seen) <= {"contradicted", "negligible"}):
            return verdict, of[verdict] if len(set(seen)) > 1 else all_or_one
    if n < PAIRS:
        return "undecided", f"{n} pair{'s' * (n != 1)}, {PAIRS} needed" + (f" ({absent})" if absent else "")
    if "uninformative" in seen and not (claim.any and "undecided" in seen):
        arms = dict.fromkeys(arm for test in deciding for arm in test.untrained)
        return "uninformative", "untrained: " + (", ".join(arms) or "the reference as a whole")
    undecided = [in_words(test) for test in deciding if test.verdict == "undecided"]
    return "undecided", f"open: {', '.join(undecided)}"


def in_words(test):
    """Return the label of an undecided test, with the number of seeds that would show an effect of the observed size."""
    if test.estimate is not None or test.goal.startswith("all") or not test.effect.sd > 0:
        return test.label
    seeds = test.seeds_needed()
    return f"{test.label} ({'more than' if seeds == stats.MANY else 'about'} {seeds} seeds)"


def summary(found):
    """Return a data frame of text with one row per finding."""
    rows = [{"claim": f.claim.id, "statement": f.claim.text, "row": f.row, "metric": METRICS[f.metric].name,
             "profile": f.profile, "verdict": f.verdict, "effect and 95 % interval": f.effect, "n": f.n, "why": f.why,
             STRICTLY: f.sensitivity} for f in found]  # fmt: skip
    return pd.DataFrame(rows, dtype=object)


def tests(found):
    """Return a data frame with one row per test of every finding, with all its numbers."""
    rows = []
    for f in found:
        for t in f.tests:
            x, effect, same = list(t.values.values()), t.effect, t.earlier
            against = 0.0 if t.goal in ("within", "differs") else t.margin
            low, high = stats.bootstrap(t.images, groups=t.groups) if t.images is not None and t.n > 1 else (np.nan, np.nan)
            flips = t.n > 1 and t.estimate is None
            verdict, adjusted = (t.verdict, t.adjusted) if t.decides else ("", (np.nan, np.nan))
            row = {"claim": f.claim.id, "row": f.row, "metric": f.metric, "profile": f.profile, "sweep": f.evidence,
                   "test": t.label, "hypothesis": t.hypothesis, "decides": t.decides, "verdict": verdict,
                   "mean": effect.mean, "low": effect.low, "high": effect.high, "unit": t.unit, "n": t.n,
                   "p": t.p_values()[0], "p_against": t.p_values()[1], "p_negligible": t.p_negligible(),
                   "p_adjusted": adjusted[0], "p_against_adjusted": adjusted[1],
                   "p_sign_flip": stats.sign_flip(x, against) if flips else np.nan,
                   "bootstrap_low": low, "bootstrap_high": high,
                   "detectable": stats.detectable(t.n) * effect.sd if flips else np.nan,
                   "reference": "trained" if t.trained else "untrained",
                   "mean_dropped": same.effect.mean, "n_dropped": same.n, "p_dropped": same.p_values()[0],
                   "verdict_dropped": same.verdict if t.decides else ""}  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)
