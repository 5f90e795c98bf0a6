"""Statistics over seeds. The unit is the seed, and seeds are paired across networks. Seeds, blocks or pairs with missing values
are left out. A result is NaN if fewer than two remain, unless another number is stated."""

import bisect
import functools
import itertools
from typing import NamedTuple

import numpy as np
from scipy import special

AXES = ("local", "shared", "dynamic")  # factors of the 2 x 2 x 2 design (the cube)
EFFECTS = {factors: " x ".join(AXES[i] for i in factors) for n in (1, 2, 3) for factors in itertools.combinations(range(3), n)}


def present(values):
    """Return the values, or rows of values, as an array without those that are or contain NaN."""
    x = np.asarray(values, float)
    missing = np.isnan(x)
    return x[~(missing.any(axis=1) if x.ndim > 1 else missing)]


def mean_interval(values):
    """Return (mean, half-width of its 95 % t interval, n)."""
    x = present(values)
    if len(x) < 2:
        return (float(x[0]) if len(x) else np.nan), np.nan, len(x)
    half = special.stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half), len(x)


def factorial(values):
    """Return the effects {factors: effect} of a 2 x 2 x 2 design {(a, b, c): value} over all truth values. `factors` are the
    indices of one (main effect), two or three factors (interaction). An effect is the mean over cells whose product of signs is
    positive minus the mean over the others."""
    effects = {}
    for factors in EFFECTS:
        signs = {cell: np.prod([1 if cell[i] else -1 for i in factors]) for cell in values}
        effects[factors] = float(sum(signs[cell] * value for cell, value in values.items()) / 4)
    return effects


class Paired(NamedTuple):
    """Per-seed differences: mean, limits of its 95 % t interval, n, standard deviation and two-sided p."""

    mean: float
    low: float
    high: float
    n: int
    sd: float
    p: float


def _t(values, against):
    """Return (t, mean, standard deviation, n). Deviations are computed relative to the first value, so that equal values have a
    standard deviation of exactly 0; t is then infinite, or 0 if they equal `against`."""
    x = present(values)
    n = len(x)
    if n < 2:
        return np.nan, float(x[0]) if n else np.nan, np.nan, n
    mean, sd = float(x[0] + (x - x[0]).mean()), float((x - x[0]).std(ddof=1))
    excess = mean - against
    t = excess * n**0.5 / sd if sd else float(np.sign(excess)) * np.inf if excess else 0.0
    return t, mean, sd, n


def paired(values, against=0.0):
    """Return the paired t test of per-seed differences with H0: mean = against, and their 95 % interval. Without variance the
    interval has length 0 and p is 0, or 1 if the mean equals `against`."""
    t, mean, sd, n = _t(values, against)
    half = special.stdtrit(n - 1, 0.975) * sd / np.sqrt(n) if n > 1 else np.nan
    return Paired(mean, float(mean - half), float(mean + half), n, sd, float(2 * special.stdtr(n - 1, -abs(t))))


def _flipped_sums(x, exact):
    """Return sums over the seeds (first axis of x) under sign flips of whole seeds, the unflipped sum first: all 2^n flips for
    n <= exact, else 10 000 random ones, including the unflipped one (Phipson and Smyth 2010)."""
    if len(x) > exact:
        flips = np.random.default_rng(0).choice((-1.0, 1.0), (10_000, len(x)))
        flips[0] = 1
        return flips @ x
    sums = np.zeros((1, *x.shape[1:]))
    for seed in x:
        sums = np.concatenate((sums + seed, sums - seed))
    return sums


def sign_flip(values, against=0.0):
    """Return the two-sided p of Fisher's randomisation test of H0: per-seed differences are symmetric about `against`. p is the
    fraction of sign flips whose mean is at least as far away: exact (so at least 2 / 2^n) up to 20 seeds, from 10 000 random
    flips for more. One seed suffices."""
    x = present(values) - against
    if not len(x):
        return np.nan
    far = np.abs(_flipped_sums(x, exact=20))
    return float(np.mean(far >= far[0] - 1e-9 * np.abs(x).sum()))  # tolerance for rounding errors of equal sums


def holm(ps):
    """Return p values adjusted by Holm's step-down method (1979), in the given order. A NaN (a planned test without data) stays
    NaN and counts as a test."""
    # multipletests of statsmodels runs the garbage collector on every call, which takes 0.1 s
    adjusted = np.array(ps, float)
    order = np.argsort(adjusted)[: np.count_nonzero(~np.isnan(adjusted))]
    steps = np.arange(len(adjusted), len(adjusted) - len(order), -1)
    adjusted[order] = np.maximum.accumulate(adjusted[order] * steps).clip(max=1)
    return adjusted


def greater(values, against=0.0):
    """Return p of H0: mean of the per-seed differences <= against, by a one-sided paired t test."""
    t, *_, n = _t(values, against)
    return float(special.stdtr(n - 1, -t))


def equivalent(values, margin):
    """Return p of H0: |mean of the per-seed differences| >= margin, the larger p of two one-sided paired t tests (TOST,
    Schuirmann 1987). Raises ValueError unless margin > 0."""
    if not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    return max(greater(values, -margin), greater(-np.asarray(values, float), -margin))


def bootstrap(differences, draws=2000, seed=0, level=0.95, groups=None):
    """Return the percentile interval (low, high) of the mean of per-image differences (n seeds, images) between two networks.
    Each draw samples seeds and images, the same images for all seeds, with replacement (pigeonhole bootstrap, Owen 2007). The
    interval is too wide if seeds disagree image by image, and too narrow for few seeds (coverage of 85 % for 5 seeds that
    differ equally in all images). `groups` (images,) marks dependent images; whole groups are then sampled."""
    x = present(differences)
    n, images = x.shape
    if n < 2 or not images:
        return np.nan, np.nan
    if groups is None:
        groups = np.arange(images)
    _, group = np.unique(groups, return_inverse=True)  # index of the group of every image
    sums, sizes = np.array([np.bincount(group, row) for row in x]), np.bincount(group)
    taken, state = resamples(len(sizes), draws, seed)
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    by_seed = taken @ sums.T / (taken @ sizes)[:, None]
    means = (rng.multinomial(n, np.full(n, 1 / n), draws) * by_seed).sum(axis=1) / n
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


@functools.lru_cache(maxsize=2)  # drawing takes longer than all else in a bootstrap
def resamples(count, draws, seed):
    """Return (how often each of `count` groups is drawn: (draws, count), the state of the generator after that)."""
    rng = np.random.default_rng(seed)
    taken = [np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(draws)]
    return np.array(taken, float), rng.bit_generator.state


def slope_weights(x):
    """Return the weights w (levels,) of a linear contrast: sum(w * y) is the least-squares slope of y on x. Raises ValueError
    if x has fewer than two distinct values, or a missing one."""
    x = np.asarray(x, float)
    if len(x) < 2 or not np.ptp(x) > 0:
        raise ValueError(f"a slope needs two different values of x and none missing, got {x.tolist()}")
    centred = x - x.mean()
    return centred / (centred @ centred)


def kendall(x, y):
    """Return (tau, low, high, n), Kendall's tau-b with a 95 % interval by Fisher's z with variance 0.437 / (n - 4) (Fieller,
    Hartley and Pearson 1957). For z, tau is clipped to half a step of tau, 2 / (n (n - 1)), inside of -1 and 1; the interval
    is widened to contain tau. The interval needs ten pairs. tau is also NaN if x or y does not vary."""
    from scipy import stats

    x, y = present(np.array([x, y], float).T).T
    n = len(x)
    tau = float(stats.kendalltau(x, y).statistic) if n > 1 else np.nan
    if n < 10 or np.isnan(tau):
        return tau, np.nan, np.nan, n
    most = 1 - 2 / (n * (n - 1))
    z, half = np.arctanh(np.clip(tau, -most, most)), special.ndtri(0.975) * np.sqrt(0.437 / (n - 4))
    low, high = np.tanh((z - half, z + half))
    return tau, float(min(low, tau)), float(max(high, tau)), n


def mean_tau(groups):
    """Return (tau, p) for groups [(x, y), ...]: the mean over groups of Kendall's tau-b, and its two-sided p from all
    permutations of y within groups. Both are NaN if there is no group, or if a variable of a group does not vary."""
    taus, spread = [], {0.0: 1.0}  # {value of the sum: its probability under permutation}
    for x, y in groups:
        pairs = list(itertools.combinations(range(len(x)), 2))
        first, second = np.array(pairs, int).reshape(-1, 2).T
        of_x = np.sign(np.subtract.outer(x, x))[first, second]
        of_y = np.sign(np.subtract.outer(y, y))
        length = np.sqrt(np.abs(of_x).sum() * np.abs(of_y[first, second]).sum())
        if not length:
            return np.nan, np.nan
        orders = np.array(list(itertools.permutations(range(len(x)))))
        sums = np.zeros(len(orders))
        for sign, i, j in zip(of_x, first, second, strict=True):
            sums += sign * of_y[orders[:, i], orders[:, j]]
        taus.append(sums[0] / length)  # the first order is the one given
        values, counts = np.unique((sums / length).round(9), return_counts=True)
        wider = {}
        for (sum_before, chance), (value, count) in itertools.product(spread.items(), zip(values, counts, strict=True)):
            total = round(float(sum_before + value), 6)
            wider[total] = wider.get(total, 0.0) + chance * count / len(orders)
        spread = wider
    if not taus:
        return np.nan, np.nan
    far = sum(chance for value, chance in spread.items() if abs(value) >= abs(sum(taus)) - 1e-5)
    return float(np.mean(taus)), float(min(1.0, far))


def detectable(n, power=0.8, level=0.05):
    """Return the smallest mean of n paired differences, in units of their standard deviation, that a two-sided t test at this
    level detects with this power. Raises ValueError unless 0 < level < power < 1."""
    from scipy import optimize, stats

    if not 0 < level < power < 1:
        raise ValueError(f"needs 0 < level < power < 1, got level {level}, power {power}")
    if n < 2:
        return np.nan
    critical = stats.f.isf(level, 1, n - 1)

    def surplus(effect):
        return stats.ncf.sf(critical, 1, n - 1, n * effect**2) - power  # F = t²; nct of scipy is NaN in the far tail

    high = 1.0
    while surplus(high) < 0:
        high *= 2
    return float(optimize.brentq(surplus, 0, high))


MANY = 1000  # upper limit; more seeds are not feasible


def seeds_needed(effect, power=0.8, level=0.05):
    """Return the smallest number of paired differences for which a two-sided t test detects a mean of `effect` standard
    deviations with this power; MANY if fewer do not suffice."""
    return bisect.bisect_left(range(MANY), -abs(effect), lo=2, key=lambda n: -detectable(n, power, level))
