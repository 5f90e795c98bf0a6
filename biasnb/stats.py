"""Statistics over seeds: the unit is the seed, and seeds are paired across networks."""

import numpy as np
from scipy import stats


def mean_interval(values, level=0.95):
    """(mean, half-width of the t interval, n); the half-width is NaN for n < 2. Missing values are left out."""
    x = np.asarray(values, float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return (float(x[0]) if len(x) else float("nan")), float("nan"), len(x)
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half), len(x)


def factorial(values):
    """Effects of a 2 x 2 x 2 design: {(a, b, c): value} over all truth values -> {factors: effect}, factors the indices of one
    (main effect), two or three (interaction). An effect is the mean where the product of signs is + less where it is -."""
    effects = {}
    for factors in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        signs = {cell: np.prod([1 if cell[i] else -1 for i in factors]) for cell in values}
        effects[factors] = float(sum(signs[cell] * value for cell, value in values.items()) / 4)
    return effects
