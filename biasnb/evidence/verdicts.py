"""From tests to a verdict on a claim, and the findings as frames."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import stats
from .contrasts import METRICS, PAIRS


@dataclass(frozen=True)
class Finding:
    """What one sweep says about one claim with one metric."""

    claim: object
    profile: str
    metric: str
    verdict: str
    why: str
    evidence: str = ""  # name of the sweep
    tests: tuple = ()
    left_out: str = ""  # runs excluded, and why

    @property
    def n(self):
        return self.key_test.n if self.key_test else 0

    @property
    def key_test(self):
        """The test that the verdict hangs on most, among the deciding ones that came out as the claim did: the strongest where
        one is enough for the verdict, the weakest where all are needed; None if there is none."""
        deciding = [test for test in self.tests if test.decides]
        tests = [test for test in deciding if test.verdict == self.verdict] or deciding
        against = self.verdict == "contradicted"

        def strength(test):
            return test.n, -np.nan_to_num(test.adjusted[against], nan=1.0)

        pick = max if self.claim.any != against else min
        return pick(tests, key=strength, default=None)

    @property
    def effect(self):
        """'mean [95 % interval] unit' of the key test; of all finished runs, in brackets, if none is above its baseline."""
        test = self.key_test
        if not test or not test.every:
            return "—"
        if test.goal.startswith("all"):
            worst = max if test.goal == "all below" else min
            return f"{test.label}: {worst(test.every.values()):.2g} {test.unit}".strip()
        mean, low, high, n, *_ = stats.paired(list((test.values or test.every).values()))
        interval = f" [{signed(low)}, {signed(high)}]" if n > 1 else ""
        text = f"{test.label}: {signed(mean)}{interval} {test.unit}".strip()
        return text if test.values else f"({text})"


def signed(value):
    return f"{value:+.2g}".replace("-", "−") if abs(value) < 1 else f"{value:+.1f}".replace("-", "−")


def find(claim, evidence):
    """The Finding of a claim in a sweep. Raises Absent if the sweep was not made for it, StoreError for a broken record."""
    tests = tuple(claim.tests(evidence))
    deciding = [test for test in tests if test.decides]
    holds, against = (stats.holm([test.p_values()[i] for test in deciding]) for i in (0, 1))
    for test, adjusted in zip(deciding, zip(holds, against, strict=True), strict=True):
        test.judge(adjusted)
    for test in tests:
        if not test.decides:
            test.judge(test.p_values())
    used = [run for run in evidence.runs.itertuples() if run.key in evidence.used]
    reasons = pd.Series([evidence.out[run.key] for run in used if run.key in evidence.out], dtype=object).value_counts()
    left_out = "; ".join(f"{count} of {len(used)} runs {reason}" for reason, count in reasons.items())
    verdict, why = combine(claim, tests, left_out)
    if all(run.status in ("missing", "failed") for run in used):
        verdict, why = "not run", left_out
    profile = evidence.sweep.content["profile"]
    return Finding(claim, profile, evidence.metric, verdict, why, evidence.sweep.name, tests, left_out)


def combine(claim, tests, left_out):
    """(verdict, why) of a claim from its deciding tests: all must hold, or any where the claim says so."""
    deciding = [test for test in tests if test.decides]
    seen, n = [test.verdict for test in deciding], min(test.n for test in deciding)
    first, second = ("supported", "contradicted") if not claim.any else ("contradicted", "supported")
    if all(verdict == first for verdict in seen):
        return first, "every test" if len(seen) > 1 else "the test"
    if second in seen:
        return second, ", ".join(test.label for test in deciding if test.verdict == second)
    if n < PAIRS:
        return "undecided", f"{n} pair{'s' * (n != 1)}, {PAIRS} needed" + (f" ({left_out})" if left_out else "")
    return "undecided", "open: " + ", ".join(test.label for test in deciding if test.verdict == "undecided")


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
            x, every, effect = list(t.values.values()), list(t.every.values()), t.effect
            against = 0.0 if t.goal in ("within", "differs") else t.margin
            low, high = stats.bootstrap(t.images, groups=t.groups) if t.images is not None and t.n > 1 else (np.nan, np.nan)
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
