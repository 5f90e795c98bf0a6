"""A hypothesis about one value per seed: its goal, its p values and its verdict."""

from dataclasses import dataclass

import numpy as np

from . import stats

PAIRS = 5  # the fewest pairs for a verdict
LEVEL = 0.05
MARKS = {"supported": "✓", "contradicted": "✗", "negligible": "≈", "undecided": "?", "uninformative": "∅", "not run": "–"}
WORDS = {"within": "within ±", "differs": "beyond ±", "above": "above ", "below": "below ", "not below": "not below ",
         "at most": "at most ", "all above": "each above ", "all below": "each below "}  # fmt: skip


@dataclass
class Test:
    """A hypothesis about one value per seed.

    The goal is that the mean is "above" or "below" the margin; "not below" it (non-inferiority); "within" plus or minus it
    (equivalence); or "differs" from 0 by more than the margin, in either direction. Two kinds of goal use no statistics: the
    estimate is "at most" the margin, or every value is above it ("all above") or below it ("all below").

    A hypothesis is contradicted if the effect is shown to lie on the other side of the margin. An effect shown to lie within
    plus or minus `small` of 0 is negligible, whatever its sign."""

    label: str
    values: dict  # {seed: value} for the seeds whose runs all count
    goal: str
    margin: float
    unit: str
    small: float = 0.0  # 0: no effect is negligible
    decides: bool = True  # whether the verdict of the claim depends on this test
    row: str = ""  # row of a claim that is decided row by row
    trained: bool = True  # whether the arms of the reference are trained
    untrained: tuple = ()  # descriptions of the arms of the reference that are not trained
    estimate: float | None = None  # replaces the mean of the values; it has no interval
    p: tuple = ()  # (p for, p against) of a test other than the paired t test
    lacks: str = ""  # what the records lack for this test
    images: np.ndarray | None = None  # (seeds, images): contribution of each test image
    groups: np.ndarray | None = None  # (images,): group of each dependent test image; None: all are independent
    adjusted: tuple = ()  # (p for, p against) after Holm's correction
    verdict: str = "undecided"
    earlier: "Test | None" = None  # the same test for the runs whose test values exceed their baselines

    @property
    def n(self):
        return len(self.values)

    @property
    def effect(self):
        if self.estimate is not None:
            return stats.Paired(self.estimate, np.nan, np.nan, self.n, np.nan, np.nan)
        return stats.paired(list(self.values.values()))

    @property
    def hypothesis(self):
        words = "differs from 0" if self.goal == "differs" and not self.margin else f"{WORDS[self.goal]}{self.margin:g}"
        return f"{words} {self.unit}".strip()

    @property
    def direction(self):
        return "helps" if self.effect.mean > 0 else "harms"

    def p_values(self):
        """Return (p for the goal, p against it). For above, below and differs, p is two-sided, or 1 if the mean is on the wrong
        side. For not below and within, p for the goal is one-sided, as is usual. Both are NaN without pairs."""
        x, margin = list(self.values.values()), self.margin
        if self.p:
            return self.p
        if self.n < 2 or self.goal == "at most" or self.goal.startswith("all"):
            return np.nan, np.nan
        middle = self.effect.mean
        beyond = stats.paired(x, np.copysign(margin, middle)).p if abs(middle) > margin else 1.0
        if self.goal == "differs":
            return beyond, 1.0
        if self.goal == "within":
            return stats.equivalent(x, margin), beyond
        p = stats.paired(x, margin).p
        above, below = (p if middle > margin else 1.0), (p if middle < margin else 1.0)
        if self.goal == "not below":
            return stats.greater(x, margin), below
        return (above, below) if self.goal == "above" else (below, above)

    def p_negligible(self):
        """Return the p value of two one-sided tests that the effect is negligible; NaN if `small` is 0."""
        return stats.equivalent(list(self.values.values()), self.small) if self.small and self.n > 1 else np.nan

    def seeds_needed(self):
        """Return the number of pairs that would show with a power of .8 that an effect of the observed size lies on its side of
        the margin."""
        within = self.goal in ("within", "differs")
        apart = abs(self.effect.mean) - self.margin if within else self.effect.mean - self.margin
        return stats.seeds_needed(apart / self.effect.sd)

    def judge(self, adjusted):
        """Set the verdict from the adjusted p values."""
        self.adjusted = adjusted
        if self.goal.startswith("all"):
            above = self.goal == "all above"
            holds = all(value > self.margin if above else value < self.margin for value in self.values.values())
            if not holds:  # one violation is sufficient, whatever n
                self.verdict = "contradicted"
                return
        if self.n < PAIRS:
            return
        if not self.trained:
            self.verdict = "uninformative"
        elif self.goal.startswith("all"):
            self.verdict = "supported"
        elif self.p_negligible() <= LEVEL:
            self.verdict = "negligible"
        elif adjusted[1] <= LEVEL:
            self.verdict = "contradicted"
        elif adjusted[0] <= LEVEL or (self.goal == "at most" and self.effect.mean <= self.margin):
            self.verdict = "supported"
