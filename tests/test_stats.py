from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from biasnb import stats

CELLS = list(product((False, True), repeat=3))
TERMS = [factors for n in (1, 2, 3) for factors in combinations(range(3), n)]


def sign(cell, factors):
    return int(np.prod([1 if cell[i] else -1 for i in factors]))


def test_mean_interval_agrees_with_scipy():
    x = [1.0, 2.5, 2.0, 4.0]
    mean, half, n = stats.mean_interval([*x, float("nan")])
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(x), scipy_stats.sem(x))
    assert (mean - half, mean + half, n) == pytest.approx((low, high, 4))
    assert stats.mean_interval([3.0])[::2] == (3.0, 1)
    assert stats.mean_interval([])[2] == 0


def test_factorial_recovers_known_effects_and_interactions_exactly():
    """value = 10 + sum over terms of sign * effect / 2, effects that binary fractions hold exactly."""
    known = dict(zip(TERMS, (4.0, -2.0, 0.5, 0.25, 0.0, -8.0, 1.0), strict=True))
    values = {cell: 10 + sum(sign(cell, term) * effect / 2 for term, effect in known.items()) for cell in CELLS}
    assert stats.factorial(values) == known


def test_a_main_effect_is_the_mean_difference_over_the_other_factors():
    values = dict(zip(CELLS, np.random.default_rng(0).normal(size=8), strict=True))
    for i in range(3):
        of, off = ([v for cell, v in values.items() if cell[i] == level] for level in (True, False))
        assert stats.factorial(values)[i,] == pytest.approx(np.mean(of) - np.mean(off), abs=1e-12)


def test_an_interaction_is_half_the_difference_of_effects():
    """Of factor 0 with and without factor 1, and of that difference with and without factor 2."""
    v = dict(zip(CELLS, np.random.default_rng(1).normal(size=8), strict=True))
    effect = {(b, c): v[True, b, c] - v[False, b, c] for b in (False, True) for c in (False, True)}
    by_c = {c: effect[True, c] - effect[False, c] for c in (False, True)}
    found = stats.factorial(v)
    assert found[0, 1] == pytest.approx((by_c[True] + by_c[False]) / 4, abs=1e-12)
    assert found[0, 1, 2] == pytest.approx((by_c[True] - by_c[False]) / 4, abs=1e-12)


def test_factorial_agrees_with_least_squares():
    """Twice the coefficients of the saturated linear model on -1, +1."""
    values = dict(zip(CELLS, np.random.default_rng(2).normal(20, 3, size=8), strict=True))
    design = np.array([[1, *(sign(cell, term) for term in TERMS)] for cell in CELLS])
    coefficients = np.linalg.lstsq(design, np.array(list(values.values())), rcond=None)[0]
    found = stats.factorial(values)
    assert list(found) == TERMS
    assert list(found.values()) == pytest.approx((2 * coefficients[1:]).tolist(), abs=1e-10)


def test_the_order_of_the_cells_does_not_matter():
    values = dict(zip(CELLS, range(8), strict=True))
    assert stats.factorial(dict(reversed(values.items()))) == stats.factorial(values)
