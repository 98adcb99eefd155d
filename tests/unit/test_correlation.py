"""Rank correlation: scipy's values, every permutation counted, intervals that cover the true rho."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scenes import rhos

from fgkd.analysis import correlation


def pair(n, *, ties, seed):
    rng = np.random.default_rng(seed)
    return (
        (rng.integers(0, 4, n), rng.integers(0, 4, n)) if ties else (rng.normal(size=n), rng.normal(size=n))
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("n", [3, 8, 30])
def test_rho_equals_scipy(n, ties, seed):
    x, y = pair(n, ties=ties, seed=seed)
    if len(set(x)) == 1 or len(set(y)) == 1:
        pytest.skip("a constant has no rho")
    assert correlation.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize(
    "x, y, rho",
    [
        ([1, 2, 3], [1, 3, 2], 0.5),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([1, 2, 3, 4], [10, 1e6, 1e9, 1e12], 1),
        ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),
        ([1, 2, math.inf], [0, 5, 9], 1),
    ],
)
def test_rho_by_hand(x, y, rho):
    assert correlation.spearman(x, y) == pytest.approx(rho, abs=1e-12)


def test_rho_depends_on_ranks_alone_and_is_symmetric():
    x, y = pair(9, ties=False, seed=1)
    assert correlation.spearman(np.exp(x), 5 - 2 * y) == -correlation.spearman(y, x)


@pytest.mark.parametrize(
    "x, y",
    [
        ([], []),
        ([1], [2]),
        ([1, 2], [3, 4]),
        ([1, 1, 1], [1, 2, 3]),
        ([1, 2, 3], [5, 5, 5]),
        ([1, math.nan, 3], [1, 2, 3]),
    ],
)
def test_too_few_constant_or_absent_values_have_neither_rho_nor_p_nor_strength(x, y):
    assert math.isnan(correlation.spearman(x, y)) and math.isnan(correlation.exact_p(x, y))
    assert correlation.strength(correlation.spearman(x, y)) == ""


@pytest.mark.parametrize("x, y", [([1, 2, 3], [1, 2]), ([[1, 2, 3]], [[1, 2, 3]])])
def test_values_of_unequal_length_are_refused(x, y):
    with pytest.raises(ValueError, match="expected two of the same length"):
        correlation.spearman(x, y)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("n", [4, 5])
def test_p_equals_a_count_of_all_orders_by_scipy(n, ties):
    x, y = pair(n, ties=ties, seed=4)
    rhos = [abs(scipy.stats.spearmanr(x, order).statistic) for order in itertools.permutations(y)]
    expected = np.mean(np.array(rhos) >= abs(scipy.stats.spearmanr(x, y).statistic) - 1e-9)
    assert correlation.exact_p(x, y) == pytest.approx(expected, abs=1e-12)


def test_p_by_hand():
    assert (
        correlation.exact_p([1, 2, 3], [4, 5, 6])
        == correlation.exact_p([1, 2, 3], [6, 5, 4])
        == pytest.approx(2 / 6)
    )
    assert correlation.exact_p([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(2 / 24)
    assert correlation.exact_p([1, 2, 3], [1, 3, 2]) == 1


def test_above_nine_points_p_is_sampled_by_seed_and_never_zero():
    x, y = pair(12, ties=False, seed=3)
    found = correlation.exact_p(x, y, draws=4000)
    assert found == correlation.exact_p(x, y, draws=4000)
    assert found == pytest.approx(scipy.stats.spearmanr(x, y).pvalue, abs=0.03)
    assert correlation.exact_p(range(12), range(12), draws=1000) == pytest.approx(1 / 1001)


@pytest.mark.parametrize(
    "rho, word",
    [
        (0, "weak"),
        (0.5, "weak"),
        (0.504, "weak"),
        (0.505, "modest"),
        (0.7, "modest"),
        (0.704, "modest"),
        (0.705, "strong"),
        (0.71, "strong"),
        (1, "strong"),
    ],
)
def test_strength_goes_by_the_size_rounded_half_up_to_two_decimals(rho, word):
    assert correlation.strength(rho) == correlation.strength(-rho) == word


def test_what_eight_unrelated_teachers_give():
    ranks = np.arange(8) - 3.5
    orders = np.array(list(itertools.permutations(ranks)))
    null = np.abs(orders @ ranks / (ranks @ ranks))
    assert null.mean() == pytest.approx(0.31, abs=0.005)
    assert correlation.null_share(8) == pytest.approx((null > 0.705 + 1e-9).mean(), abs=1e-12)
    assert correlation.null_share(8) == pytest.approx(0.058, abs=0.0005)


@pytest.mark.parametrize(
    "order, rho, significant",
    [([3, 1, 2, 0, 5, 4, 7, 6], 0.738, True), ([2, 3, 0, 1, 6, 5, 4, 7], 0.714, False)],
)
def test_significance_at_eight_teachers(order, rho, significant):
    assert correlation.spearman(range(8), order) == pytest.approx(rho, abs=5e-4)
    assert (correlation.exact_p(range(8), order) < 0.05) == significant


def test_at_eight_teachers_p_below_5_percent_needs_0_738():
    ranks = np.arange(8) - 3.5
    null = np.abs(np.array(list(itertools.permutations(ranks))) @ ranks / (ranks @ ranks)).round(6)
    needed = min(rho for rho in np.unique(null) if (null >= rho).mean() < 0.05)
    assert needed == pytest.approx(0.738, abs=5e-4)


def test_two_teachers_have_no_null_share():
    with pytest.raises(ValueError, match="n is 2: expected 3 teachers or more"):
        correlation.null_share(2)


def test_what_thirteen_unrelated_teachers_give_is_sampled():
    """rho of n unrelated teachers has the standard deviation 1 / sqrt(n - 1), and is almost normal at 13."""
    found = correlation.null_summary(13)
    assert found["abs_rho"] == pytest.approx(math.sqrt(2 / math.pi / 12), abs=0.005)
    assert found["strong"] == pytest.approx(
        scipy.stats.t.sf(0.705 * math.sqrt(11 / (1 - 0.705**2)), 11) * 2, abs=0.002
    )
    assert found["strong"] == correlation.null_share(13) < correlation.null_share(9)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_the_p_of_thirteen_teachers_is_near_that_of_scipys_approximation(ties):
    x, y = pair(13, ties=ties, seed=3)
    assert correlation.exact_p(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).pvalue, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("n", [3, 8, 30])
def test_tau_equals_scipy(n, ties, seed):
    x, y = pair(n, ties=ties, seed=seed)
    assert correlation.kendall(x, y) == pytest.approx(
        scipy.stats.kendalltau(x, y).statistic, abs=1e-12, nan_ok=True
    )


def test_tau_is_undefined_where_rho_is_and_takes_infinity_for_a_rank():
    assert math.isnan(correlation.kendall([1, 2], [1, 2])) and math.isnan(
        correlation.kendall([1, 1, 1], [1, 2, 3])
    )
    assert correlation.kendall([1, 2, math.inf, math.inf], [1, 2, 3, 4]) == pytest.approx(5 / math.sqrt(30))


@pytest.mark.parametrize("rho, n", [(-0.905, 8), (0.3, 6), (0.0, 12)])
def test_an_interval_is_that_of_bonett_and_wright(rho, n):
    reach = scipy.stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    assert correlation.interval(rho, n) == pytest.approx(
        np.tanh(np.arctanh(rho) + np.array([-reach, reach])), abs=1e-6
    )


def test_the_interval_of_a_perfect_order_holds_it_and_has_a_width():
    low, high = correlation.interval(1, 8)
    assert 0.8 < low < 0.95 and high == 1 and correlation.interval(-1, 8) == (-1, -low)
    assert correlation.interval(1, 3) == (-1, 1) and all(
        math.isnan(v) for v in correlation.interval(math.nan, 8)
    )


@pytest.mark.parametrize("r", [0, 0.6, 0.9])
@pytest.mark.parametrize("n", [6, 8])
def test_intervals_cover_the_rho_of_all_teachers(n, r):
    rng = np.random.default_rng(n)
    x, noise = rng.normal(size=(2, 8000, n))
    found, counts = np.unique(rhos(x, r * x + math.sqrt(1 - r * r) * noise).round(9), return_counts=True)
    true = 6 / math.pi * math.asin(r / 2)
    covers = [low <= true <= high for low, high in (correlation.interval(rho, n) for rho in found)]
    assert 0.93 < covers @ counts / 8000 < 0.99


@pytest.mark.parametrize("n", [3, 6, 9])
def test_what_chance_gives_is_a_count_of_all_orders_by_their_strength(n):
    ranks = np.arange(n) - (n - 1) / 2
    values, counts = np.unique(
        (np.array(list(itertools.permutations(ranks))) @ ranks / (ranks @ ranks)).round(9), return_counts=True
    )
    found = correlation.null_summary(n)
    assert found["abs_rho"] == pytest.approx(np.abs(values) @ counts / counts.sum())
    for word in correlation.STRENGTHS:
        assert found[word] == pytest.approx(
            sum(c for rho, c in zip(values, counts, strict=True) if correlation.strength(rho) == word)
            / counts.sum()
        )
    assert found["strong"] == pytest.approx(correlation.null_share(n))


def test_rho_inside_families_is_the_partial_rank_correlation_given_the_family():
    rng = np.random.default_rng(0)
    for family in (list("aabbccdd"), list("aaaabbbc"), list("abcdeeee")):
        x, y = rng.normal(size=(2, 8))
        kinds = pd.get_dummies(pd.Series(family)).to_numpy(float)
        left = [
            r - kinds @ np.linalg.lstsq(kinds, r, rcond=None)[0]
            for r in (scipy.stats.rankdata(x), scipy.stats.rankdata(y))
        ]
        assert correlation.spearman_within(x, y, family) == pytest.approx(np.corrcoef(*left)[0, 1])
    assert correlation.spearman_within(x, y, ["one"] * 8) == pytest.approx(correlation.spearman(x, y))


@pytest.mark.parametrize("family", ["abcd", "aabc"])
def test_families_of_one_say_nothing(family):
    assert math.isnan(correlation.spearman_within([1, 2, 3, 4], [1, 3, 2, 4], list(family)))


@pytest.mark.parametrize("n", [4, 5, 8])
def test_no_order_is_called_strong_where_not_even_a_perfect_one_is_significant(n):
    possible = correlation.exact_p(range(n), range(n)) < 0.05
    assert correlation.describe_rho(0.8, n) == f"+0.80{', strong' if possible else ''} (n = {n})"
    assert ("strong" in correlation.describe_rho(-1.0, n)) == possible


def test_an_undefined_rho_is_said_to_be():
    assert correlation.describe_rho(math.nan, 2) == "undefined (n = 2)"


@pytest.mark.parametrize("hits, n", [(0, 20), (15, 60), (60, 60)])
def test_the_interval_of_a_share_is_wilsons(hits, n):
    expected = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert correlation.share_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_no_images_have_no_share():
    assert np.isnan(correlation.share_interval(0, 0)).all()


def test_the_interval_of_a_difference_covers_it_in_nineteen_of_twenty_samples():
    rng = np.random.default_rng(0)
    hits = rng.binomial(60, (0.5, 0.3), (2000, 2))
    bounds = np.array([correlation.difference_interval(*pair, 60) for pair in hits])
    assert 0.93 < ((bounds[:, 0] <= 0.2) & (bounds[:, 1] >= 0.2)).mean() < 0.97
    assert np.isnan(correlation.difference_interval(0, 0, 0)).all()
