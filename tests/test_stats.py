from itertools import combinations, permutations, product
from math import atanh, comb, isnan, nan, sqrt, tanh

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from biasnb.evidence import stats

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
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


def test_factorial_agrees_with_least_squares():
    """Twice the coefficients of the saturated linear model on -1, +1."""
    values = dict(zip(CELLS, np.random.default_rng(2).normal(20, 3, size=8), strict=True))
    design = np.array([[1, *(sign(cell, term) for term in TERMS)] for cell in CELLS])
    coefficients = np.linalg.lstsq(design, np.array(list(values.values())), rcond=None)[0]
    found = stats.factorial(values)
    assert list(found) == TERMS and stats.factorial(dict(reversed(values.items()))) == pytest.approx(found)
    assert list(found.values()) == pytest.approx((2 * coefficients[1:]).tolist(), abs=1e-10)


def test_paired_agrees_with_scipys_paired_test():
    a, b = np.random.default_rng(3).normal((1, 0), 2, (6, 2)).T
    found, expected = stats.paired([*(a - b), nan]), scipy_stats.ttest_rel(a, b)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.mean, found.sd, found.p) == pytest.approx((a.mean() - b.mean(), np.std(a - b, ddof=1), expected.pvalue))
    assert found.n == 6
    assert stats.paired(a, 0.7).p == pytest.approx(DescrStatsW(a).ttest_mean(0.7)[1])


def test_paired_without_variance_is_certain():
    """Also where the mean of equal values rounds to another one."""
    assert np.mean([0.1] * 3) != 0.1
    assert stats.paired([0.1] * 3) == (0.1, 0.1, 0.1, 3, 0, 0)
    assert stats.paired([0.1] * 3, 0.1) == (0.1, 0.1, 0.1, 3, 0, 1)
    assert stats.paired([0.0, 0.0]).p == 1


@pytest.mark.parametrize("values", ([], [nan], [2.0], [2.0, nan]))
def test_paired_needs_two_seeds(values):
    mean, low, high, n, sd, p = stats.paired(values)
    assert n == sum(not isnan(v) for v in values)
    assert mean == 2 if n else isnan(mean)
    assert np.isnan([low, high, sd, p]).all()


@pytest.mark.parametrize(
    "values", ([3, 1, -2, 5], [2, 2, -2, 0, 1], [-4, -1, -7, -3, -2], [-8, 7, -9, 1], [0, 0], [5], range(1, 11))
)
def test_sign_flip_counts_every_flip(values):
    """Of integers, with ties and zeros; and of their tenths, where equal sums round differently."""
    flips = list(product((-1, 1), repeat=len(values)))
    p = sum(abs(np.dot(flip, values)) >= abs(sum(values)) for flip in flips) / len(flips)
    assert stats.sign_flip(values) == p
    assert stats.sign_flip([v / 10 for v in values]) == p
    assert stats.sign_flip([*(v / 10 + 20.3 for v in values), nan], 20.3) == p
    assert isnan(stats.sign_flip([])) and isnan(stats.sign_flip([nan]))


def test_sign_flip_of_equal_sizes_is_the_binomial_test():
    """Exact at 20 seeds, near above."""
    assert stats.sign_flip([1] * 14 + [-1] * 6) == pytest.approx(scipy_stats.binomtest(14, 20).pvalue, abs=1e-12)
    p = scipy_stats.binomtest(18, 26).pvalue
    assert stats.sign_flip([1] * 18 + [-1] * 8) == pytest.approx(p, abs=4 * sqrt(p * (1 - p) / 10_000))
    assert stats.sign_flip([1] * 40) == 1 / 10_000


def test_equivalent_agrees_with_statsmodels_tost():
    a, b = np.random.default_rng(6).normal(0, 1, (2, 8))
    expected = ttost_paired(a, b, -0.8, 0.8)[0]
    assert 0.001 < expected < 0.9
    assert stats.equivalent([nan, *(a - b)], 0.8) == pytest.approx(expected)


def test_greater_agrees_with_scipys_one_sided_test():
    x = np.random.default_rng(8).normal(size=7)
    assert stats.greater(x, -0.5) == pytest.approx(scipy_stats.ttest_1samp(x, -0.5, alternative="greater").pvalue)
    assert stats.greater(x + 100, -0.5) < 1e-9
    assert stats.equivalent(x + 100, 0.5) > 0.99


def test_margins_without_variance_or_seeds():
    assert [stats.equivalent([x] * 3, 0.1) for x in (0.0, 0.1, 0.2)] == [0, 0.5, 1]
    assert [stats.greater([x] * 3, -0.1) for x in (-0.2, -0.1, 0.0)] == [1, 0.5, 0]
    assert all(isnan(test(x, 0.1)) for test in (stats.equivalent, stats.greater) for x in ([], [1.0], [1.0, nan]))


@pytest.mark.parametrize("margin", (0, -0.25, nan))
def test_a_margin_is_above_0(margin):
    with pytest.raises(ValueError, match=f"^margin must be above 0, got {margin}$"):
        stats.equivalent([1.0, 2.0], margin)


def test_bootstrap_matches_the_slow_loop():
    x = np.random.default_rng(12).normal(0.2, 1, (4, 20)) + np.random.default_rng(13).normal(size=(4, 1))
    rng, means = np.random.default_rng(14), []
    for _ in range(5000):
        seeds, images = rng.integers(4, size=4), rng.integers(20, size=20)
        means.append(np.mean([[x[s, i] for i in images] for s in seeds]))
    for level in (0.5, 0.95):
        expected = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
        assert stats.bootstrap(x, 5000, level=level) == pytest.approx(expected, abs=0.1 * np.std(means))


def test_bootstrap_of_groups_matches_the_slow_loop():
    """Seven groups of one to six images, whose numbers are neither in order nor without gaps."""
    groups = np.random.default_rng(20).permutation(np.repeat([40, 3, 11, 12, 90, 5, 7], [1, 6, 2, 3, 3, 5, 4]))
    x = np.random.default_rng(21).normal(0.2, 0.5, (4, 24)) + np.random.default_rng(22).normal(size=91)[groups]
    rng, means = np.random.default_rng(23), []
    for _ in range(5000):
        seeds, taken = rng.integers(4, size=4), rng.choice(np.unique(groups), 7)
        images = [i for group in taken for i in range(24) if groups[i] == group]
        means.append(np.mean([[x[s, i] for i in images] for s in seeds]))
    low, high = stats.bootstrap(x, 5000, groups=groups)
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.1 * np.std(means))
    narrow = stats.bootstrap(x, 5000)
    assert high - low > 1.5 * (narrow[1] - narrow[0]), "images of a group are not independent"


def test_groups_of_identical_images_count_as_one_image_each():
    x = np.random.default_rng(24).normal(size=(5, 30))
    groups = np.tile(np.arange(30), 4)
    assert stats.bootstrap(np.tile(x, 4), groups=groups) == pytest.approx(stats.bootstrap(x), abs=1e-12)
    assert stats.bootstrap(x.repeat(4, axis=1), groups=groups.reshape(4, 30).T.ravel()) == pytest.approx(stats.bootstrap(x))


def test_groups_of_one_image_are_no_groups():
    x = np.random.default_rng(25).normal(size=(5, 30))
    assert stats.bootstrap(x, groups=np.arange(30)) == stats.bootstrap(x) == stats.bootstrap(x, groups=np.arange(30) + 100)


def test_a_bootstrap_interval_covers_seeds_and_images():
    """Of 12 seeds and 60 images, both of which differ. One level alone is too narrow."""
    rng, hits = np.random.default_rng(15), []
    for seed in range(200):
        x = rng.normal(size=(12, 1)) + rng.normal(size=60) * 2.2 + rng.normal(size=(12, 60))
        seeds, images = (scipy_stats.t.interval(0.95, len(m) - 1, m.mean(), scipy_stats.sem(m)) for m in (x.mean(1), x.mean(0)))
        hits.append([low < 0 < high for low, high in (stats.bootstrap(x, 200, seed), seeds, images)])
    both, *single = np.mean(hits, axis=0)
    assert 0.88 < both < 0.99
    assert max(single) < 0.88


def test_bootstrap_repeats_by_seed_and_leaves_missing_seeds_out():
    x = np.random.default_rng(16).normal(size=(5, 30))
    gap = np.full((1, 30), 3.0)
    gap[0, 7] = nan
    assert stats.bootstrap(x, 100) == stats.bootstrap(x, 100) == stats.bootstrap(np.concatenate((gap, x)), 100)
    assert stats.bootstrap(x, 100) != stats.bootstrap(x, 100, seed=1)


@pytest.mark.parametrize("shape", ((0, 9), (1, 9), (3, 0)))
def test_bootstrap_needs_two_seeds_and_an_image(shape):
    assert np.isnan(stats.bootstrap(np.ones(shape))).all()


@pytest.mark.parametrize("x", ([1, 2, 4, 8], [3, 3, 7], [0.1, -5]))
def test_slope_weights_give_the_least_squares_slope(x):
    y = np.random.default_rng(17).normal(size=(len(x), 3))
    assert stats.slope_weights(x) @ y == pytest.approx(np.polyfit(x, y, 1)[0])


@pytest.mark.parametrize("x", ([], [2.0], [0.1] * 3, [1.0, nan, 2.0]))
def test_a_slope_needs_two_values(x):
    with pytest.raises(ValueError, match="two different values"):
        stats.slope_weights(x)


def test_kendall_counts_pairs_with_ties():
    x, y = [1, 2, 2, 3, 4, 5, 5, 6, 8, 7], [2, 1, 3, 3, 3, 6, 4, 9, 7, 7]
    pairs = list(combinations(zip(x, y, strict=True), 2))
    s = sum(np.sign((a - c) * (b - d)) for (a, b), (c, d) in pairs)
    tau = s / sqrt(sum(a != c for (a, _), (c, _) in pairs) * sum(b != d for (_, b), (_, d) in pairs))
    half = 1.959964 * sqrt(0.437 / 6)
    expected = tau, tanh(atanh(tau) - half), tanh(atanh(tau) + half), 10
    assert stats.kendall(x, y) == pytest.approx(expected, abs=1e-6)
    assert stats.kendall([*x, nan, 0], [*y, 0, nan]) == stats.kendall(x, y)
    tau, low, high, n = expected
    assert stats.kendall(x, np.negative(y)) == pytest.approx((-tau, -high, -low, n), abs=1e-6)


@pytest.mark.parametrize("n", (10, 12))
def test_kendall_of_perfect_order_has_a_finite_interval(n):
    """From a tau half a pair's worth below 1, and up to 1."""
    tau, low, high, _ = stats.kendall(range(n), range(n))
    assert low == pytest.approx(tanh(atanh(1 - 1 / comb(n, 2)) - 1.959964 * sqrt(0.437 / (n - 4))), abs=1e-6)
    assert tau == high == pytest.approx(1)
    assert stats.kendall(range(n), range(n, 0, -1))[:3] == pytest.approx((-1, -1, -low))


def test_kendall_is_missing_where_it_is_undefined():
    assert stats.kendall(range(4), (0, 2, 1, 3)) == pytest.approx((2 / 3, nan, nan, 4), nan_ok=True)
    assert stats.kendall(range(9), range(9)) == pytest.approx((1, nan, nan, 9), nan_ok=True), "too few for an interval"
    for x, n in (([], 0), ([1], 1), ([1] * 6, 6), ([nan] * 6, 0)):
        assert stats.kendall(x, range(len(x))) == pytest.approx((nan, nan, nan, n), nan_ok=True)


@pytest.mark.parametrize("rho", (0, 0.7))
def test_a_kendall_interval_covers_tau(rho):
    """2 / pi asin(rho) of a bivariate normal distribution, 12 points."""
    tau, rng = 2 / np.pi * np.arcsin(rho), np.random.default_rng(18)
    points = rng.multivariate_normal((0, 0), ((1, rho), (rho, 1)), size=(400, 12))
    hits = [low <= tau <= high for _, low, high, _ in (stats.kendall(*p.T) for p in points)]
    assert 0.91 < np.mean(hits) < 0.98


def test_the_mean_of_taus_is_permuted_within_groups():
    """Against every order of every group, with ties and without."""
    groups = [([1, 2, 3], [2, 1, 5]), ([1, 2, 2, 4], [4, 3, 3, 1]), ([3, 1], [2, 9])]

    def mean(ys):
        return np.mean([scipy_stats.kendalltau(x, y).statistic for (x, _), y in zip(groups, ys, strict=True)])

    observed = mean([y for _, y in groups])
    found = [abs(mean(ys)) >= abs(observed) - 1e-9 for ys in product(*(permutations(y) for _, y in groups))]
    assert stats.mean_tau(groups) == pytest.approx((observed, np.mean(found)))


def test_one_tau_without_ties_agrees_with_scipys_exact_test():
    y = [3, 1, 2, 5, 4, 7, 6, 8]
    expected = scipy_stats.kendalltau(range(8), y, method="exact")
    assert stats.mean_tau([(range(8), y)]) == pytest.approx((expected.statistic, expected.pvalue))
    assert stats.mean_tau([(range(8), y[::-1])])[1] == pytest.approx(scipy_stats.kendalltau(range(8), y[::-1]).pvalue)
    assert np.isnan(stats.mean_tau([])).all() and np.isnan(stats.mean_tau([([1, 1], [1, 2])])).all()


def test_detectable_effects_are_large_with_few_seeds():
    assert [round(stats.detectable(n), 1) for n in (3, 5, 8, 10)] == [3.3, 1.7, 1.2, 1.0]
    assert isnan(stats.detectable(1)) and isnan(stats.detectable(0))


@pytest.mark.parametrize(("n", "power", "level"), ((2, 0.8, 0.05), (2, 0.99, 0.05), (3, 0.8, 0.001), (5, 0.5, 0.05)))
def test_a_detectable_effect_is_found_that_often(n, power, level):
    """Also where statsmodels and scipy's nct fail: two or three pairs, strict levels."""
    x = np.random.default_rng(19).normal(stats.detectable(n, power, level), 1, (40_000, n))
    found = np.mean(scipy_stats.ttest_1samp(x, 0, axis=1).pvalue < level)
    assert found == pytest.approx(power, abs=4 * sqrt(power * (1 - power) / 40_000))


@pytest.mark.parametrize("n", (10, 40))
def test_detectable_agrees_with_statsmodels(n):
    assert stats.detectable(n, 0.9, 0.01) == pytest.approx(TTestPower().solve_power(nobs=n, power=0.9, alpha=0.01), abs=1e-4)


@pytest.mark.parametrize("effect", (0.1, 0.5, -1.0, 3.0))
def test_the_seeds_needed_are_the_fewest_that_detect_the_effect(effect):
    n = stats.seeds_needed(effect)
    assert stats.detectable(n) <= abs(effect) < stats.detectable(n - 1)
    assert stats.seeds_needed(0.001) == stats.seeds_needed(0) == stats.MANY and stats.seeds_needed(1e9) == 2


@pytest.mark.parametrize(("power", "level"), ((0.05, 0.05), (1, 0.05), (0.8, 0), (1.2, 0.05)))
def test_power_lies_between_level_and_1(power, level):
    with pytest.raises(ValueError, match=f"got level {level}, power {power}$"):
        stats.detectable(5, power, level)


def test_holm_agrees_with_statsmodels():
    rng = np.random.default_rng(11)
    for n in (1, 2, 3, 7, 12):
        p = rng.random(n).round(1) ** 3
        assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert stats.holm([]).tolist() == []


def test_holm_counts_planned_tests_without_data():
    """As if their p were 1."""
    expected = multipletests([0.01, 1, 0.02, 1], method="holm")[1]
    assert stats.holm([0.01, nan, 0.02, nan]) == pytest.approx([expected[0], nan, expected[2], nan], nan_ok=True)
