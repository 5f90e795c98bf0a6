"""One hypothesis about one value per seed: what would support it, what would contradict it, and how it came out."""

from dataclasses import dataclass

import numpy as np

from . import stats

PAIRS = 5  # fewer decide nothing
LEVEL = 0.05
MARKS = {"supported": "✓", "contradicted": "✗", "negligible": "≈", "undecided": "?", "uninformative": "∅", "not run": "–"}
WORDS = {"within": "within ±", "differs": "beyond ±", "above": "above ", "below": "below ", "not below": "not below ",
         "at most": "at most ", "all above": "each above ", "all below": "each below "}  # fmt: skip


@dataclass
class Test:
    """A hypothesis about one value per seed.

    The goal: the mean is "above" or "below" the margin; "not below" it (non-inferiority); "within" plus or minus it
    (equivalence); it "differs" from 0 by more than the margin, on either side; or, without statistics, the estimate is "at
    most" the margin, or every value is "all above" or "all below" it.

    Contradicted is what is shown to lie on the other side of the margin. An effect that is shown to lie within plus or minus
    `small` of 0 is negligible, whatever its sign."""

    label: str
    values: dict  # seed -> value, over the seeds all of whose runs count
    goal: str
    margin: float
    unit: str
    small: float = 0.0  # 0: no effect is negligible
    decides: bool = True  # the verdict of the claim hangs on it
    row: str = ""  # of a claim that is decided row by row
    trained: bool = True  # whether the arms of the reference are
    untrained: tuple = ()  # those of them that are not, in words
    estimate: float | None = None  # in place of the mean of the values, without an interval
    p: tuple = ()  # (for, against) of a test that is not the paired t test
    lacks: str = ""  # what records would need for it
    images: np.ndarray | None = None  # (seeds, images): what each test image adds
    groups: np.ndarray | None = None  # (images,): equal for images that are not independent; None: all are
    adjusted: tuple = ()  # p for and against, after Holm
    verdict: str = "undecided"
    earlier: "Test | None" = None  # the same of the runs that are above their floors by test values

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
        """(p for the goal, p against it): two-sided for above, below and differs, 1 on the wrong side; one-sided for not below
        and within, as is usual there; NaN without pairs."""
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
        """p that the effect is negligible, by two one-sided tests; NaN where no effect is."""
        return stats.equivalent(list(self.values.values()), self.small) if self.small and self.n > 1 else np.nan

    def seeds_needed(self):
        """The number of pairs that would show, with a power of .8, that an effect of the size found lies on its side of the
        margin."""
        within = self.goal in ("within", "differs")
        apart = abs(self.effect.mean) - self.margin if within else self.effect.mean - self.margin
        return stats.seeds_needed(apart / self.effect.sd)

    def judge(self, adjusted):
        """Take the verdict that the adjusted p values give."""
        self.adjusted = adjusted
        if self.goal.startswith("all"):
            above = self.goal == "all above"
            holds = all(value > self.margin if above else value < self.margin for value in self.values.values())
            if not holds:  # one is enough
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
