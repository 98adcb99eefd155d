"""Rank correlation: scipy's values, every order counted, and a pick that is not rewarded for a wrong sign."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from fgkd.analysis import correlation
from fgkd.metrics import METRICS


def pair(n, *, ties, seed):
    rng = np.random.default_rng(seed)
    return (
        (rng.integers(0, 4, n), rng.integers(0, 4, n)) if ties else (rng.normal(size=n), rng.normal(size=n))
    )


def metric_rows(dataset="birds", strategy="FT", teachers="abc", seed=0, **values):
    """A row a teacher; metrics that are not given are the same for all."""
    rows = [
        {"dataset": dataset, "teacher": t, "strategy": strategy, "seed": seed} | dict.fromkeys(METRICS, 1.0)
        for t in teachers
    ]
    for name, column in values.items():
        for row, value in zip(rows, column, strict=True):
            row[name] = value
    return pd.DataFrame(rows)


def student_rows(accuracies, *, dataset="birds", strategy="FT", student="small", seed=0, baseline=None):
    rows = [
        {
            "dataset": dataset,
            "student": student,
            "strategy": strategy,
            "loss": "kd",
            "teacher": t,
            "accuracy": a,
        }
        for t, a in accuracies.items()
    ]
    if baseline is not None:
        rows.append(
            {
                "dataset": dataset,
                "student": student,
                "strategy": "CE",
                "loss": "ce",
                "teacher": "none",
                "accuracy": baseline,
            }
        )
    return pd.DataFrame(rows, columns=[*correlation.GROUP, "teacher", "accuracy"]).assign(
        seed=seed, agreement=0.5
    )


def rhos(x, y):
    """Spearman's rho along the last axis, no ties."""
    n = x.shape[-1]
    x, y = (a.argsort(-1).argsort(-1) - (n - 1) / 2 for a in (x, y))
    return (x * y).sum(-1) / ((n**3 - n) / 12)


def study(rng, *, data_sets=8, n=8, r=0.0, rivals=1, shared=0.6):
    """Spearman's rhos (rivals, data sets, 16) of metrics that correlate with accuracy by r: groups of four strategies, of one metric each."""
    strategy = np.repeat(np.arange(4), 4)
    metric = (
        np.sqrt(0.5)
        * (rng.normal(size=(rivals, data_sets, 1, n)) + rng.normal(size=(rivals, data_sets, 4, n)))[
            :, :, strategy
        ]
    )
    noise = np.sqrt(shared) * rng.normal(size=(data_sets, 1, n)) + np.sqrt(1 - shared) * rng.normal(
        size=(data_sets, 16, n)
    )
    accuracy = r * metric.sum(0) + math.sqrt(1 - rivals * r**2) * noise
    return rhos(metric, accuracy)


def correlation_rows(values):
    """A table as of `correlations`, of values (G,) by group key and metric: {(dataset, student, strategy, loss, metric): rho}."""
    rows = [
        dict(zip([*correlation.GROUP, "metric"], key))
        | {
            "n": 8,
            "rho": rho,
            "abs_rho": abs(rho),
            "agrees": -rho if key[-1] == "ratio12" else rho,
            "strength": correlation.strength(rho),
        }
        for key, rho in values.items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def scene():
    """R12 picks the worst teacher, TAC the best one; the margin cannot tell them apart."""
    students = student_rows({"a": 0.5, "b": 0.6, "c": 0.7}, baseline=0.55)
    return students, metric_rows(ratio12=[1.1, 1.2, 1.3], tac=[0.7, 0.8, 0.9], ratio12_softmax=[3, 1, 2])


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


def test_the_interval_of_a_mean_by_hand():
    values, blocks = [1.0, 2, 4, 8, 16, 32], list("abcdef")
    assert correlation.mean_interval(values, blocks) == (1, 32)
    means = sorted(
        np.mean(s) for size in range(1, 9) for s in itertools.combinations([*values, 64, 128], size)
    )
    assert correlation.mean_interval([*values, 64, 128], list("abcdefgh")) == (means[5], means[-6])


def test_blocks_are_whole_data_sets_of_any_size_and_what_is_absent_does_not_count():
    rng = np.random.default_rng(0)
    values, blocks = rng.normal(size=30), np.repeat(np.arange(8), [1, 2, 3, 4, 5, 5, 5, 5])
    found = correlation.mean_interval(values, blocks)
    assert found[0] < values.mean() < found[1]
    mixed = rng.permutation(30)
    assert correlation.mean_interval(values[mixed], blocks[mixed]) == pytest.approx(found)
    assert correlation.mean_interval([*values, math.nan], [*blocks, 99]) == found
    assert correlation.swap_p([*values, math.nan], [*blocks, 99]) == correlation.swap_p(values, blocks)


def test_fewer_than_six_blocks_have_no_interval_and_no_significant_p():
    assert all(math.isnan(v) for v in correlation.mean_interval([1, 2, 3, 4, 5], list("abcde")))
    assert (
        correlation.swap_p([1, 2, 3, 4, 5], list("abcde")) == 2 / 2**5
        and correlation.swap_p([3.0], ["a"]) == 1
    )
    assert math.isnan(correlation.swap_p([math.nan], ["a"])) and math.isnan(correlation.swap_p([], []))


def test_the_p_of_swapping_counts_every_swap_of_whole_blocks():
    rng = np.random.default_rng(3)
    differences, blocks = rng.normal(0.4, 1, 21), np.repeat(np.arange(7), 3)
    swaps = [
        abs((np.repeat(signs, 3) * differences).mean()) for signs in itertools.product([1, -1], repeat=7)
    ]
    assert correlation.swap_p(differences, blocks) == np.mean(
        np.array(swaps) >= abs(differences.mean()) - 1e-12
    )
    assert (
        correlation.swap_p(differences, blocks)
        == correlation.swap_p(-differences, blocks)
        != correlation.swap_p(differences, np.arange(21))
    )


def test_above_sixteen_blocks_swaps_are_drawn_by_seed():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.3, 1, 17)
    found = correlation.swap_p(differences, range(17))
    exact = scipy.stats.permutation_test(
        (differences,), lambda v, axis: v.mean(axis), permutation_type="samples", n_resamples=math.inf
    ).pvalue
    assert found == correlation.swap_p(differences, range(17)) == pytest.approx(exact, abs=0.005)
    low, high = correlation.mean_interval(differences, range(17))
    reach = scipy.stats.t.ppf(0.975, 16) * differences.std(ddof=1) / math.sqrt(17)
    assert (low, high) == pytest.approx(
        (differences.mean() - reach, differences.mean() + reach), abs=0.1 * reach
    )
    assert correlation.swap_p(np.ones(17), range(17)) >= 1 / 2**16


def test_zero_lies_in_the_interval_exactly_where_p_exceeds_5_percent():
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        values, blocks = rng.normal(0.5, 1, 24) + np.repeat(rng.normal(size=8), 3), np.repeat(np.arange(8), 3)
        low, high = correlation.mean_interval(values, blocks)
        assert (low <= 0 <= high) == (correlation.swap_p(values, blocks) > 0.05)
        outcomes.add(low <= 0 <= high)
    assert outcomes == {True, False}


def test_seven_data_sets_find_at_a_third_of_5_percent_what_is_above_0_in_all_of_them():
    found = correlation.detectable(0.2, 7, level=0.05 / 3)
    assert found == pytest.approx(0.2 * scipy.stats.norm.ppf(0.8 ** (1 / 7)), rel=0.04)
    assert correlation.detectable(0.2, 6, level=0.05 / 3) == math.inf


@pytest.mark.parametrize("datasets, level", [(7, 0.05 / 3), (8, 0.05), (12, 0.05 / 3)])
def test_the_test_finds_in_four_of_five_studies_what_is_said_to_be_detectable(datasets, level):
    rng, size = np.random.default_rng(1), correlation.detectable(1, datasets, level=level)
    studies = rng.normal(size, 1, size=(400, datasets))
    hits = [correlation.swap_p(study, range(datasets)) <= level and study.mean() > 0 for study in studies]
    assert 0.74 < np.mean(hits) < 0.86


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5, 0.9], [0.02, 0.02, 0.02], [0.3]])
def test_holm_by_the_definition(p):
    ordered = sorted(p)
    stepped = {v: max(min(1, (len(p) - j) * ordered[j]) for j in range(ordered.index(v) + 1)) for v in p}
    assert correlation.holm(p) == pytest.approx([stepped[v] for v in p])


def test_an_absent_p_is_not_corrected_for():
    assert correlation.holm([0.02, math.nan, 0.03]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)


@pytest.mark.parametrize("r", [0.0, 0.5])
def test_the_paired_test_keeps_its_size_where_groups_as_blocks_do_not(r):
    """Both metrics are equally good; groups of a data set share teachers, metrics and images."""
    rng, found = np.random.default_rng(7), []
    for _ in range(400):
        first, second = study(rng, r=r, rivals=2).reshape(2, -1)
        naive = abs((first - second).mean()) / (first - second).std() * math.sqrt(128) > 1.96
        found.append(
            [
                correlation.swap_p(v, np.repeat(np.arange(8), 16)) <= 0.05
                for v in (first - second, abs(first) - abs(second))
            ]
            + [naive]
        )
    signed, absolute, naive = np.mean(found, axis=0)
    assert 0.02 < signed < 0.085 and 0.02 < absolute < 0.085 and naive > 0.15


def test_the_paired_test_finds_a_planted_difference():
    rng = np.random.default_rng(8)
    found = [
        correlation.swap_p((study(rng, r=0.7) - study(rng, r=0.3)).ravel(), np.repeat(np.arange(8), 16))
        <= 0.05
        for _ in range(200)
    ]
    assert np.mean(found) > 0.8


@pytest.mark.parametrize("r", [0.0, 0.6])
def test_the_interval_of_a_study_of_128_groups_covers_their_true_mean(r):
    rng = np.random.default_rng(9)
    true = np.mean([study(rng, data_sets=100, r=r).mean() for _ in range(40)])
    blocks, covered, naive = np.repeat(np.arange(8), 16), [], []
    for _ in range(500):
        values = study(rng, r=r).ravel()
        low, high = correlation.mean_interval(values, blocks)
        covered.append(low <= true <= high)
        naive.append(abs(values.mean() - true) < 1.96 * values.std() / math.sqrt(128))
    assert 0.915 < np.mean(covered) < 0.98 and np.mean(naive) < 0.8


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
            sum(c for rho, c in zip(values, counts) if correlation.strength(rho) == word) / counts.sum()
        )
    assert found["strong"] == pytest.approx(correlation.null_share(n))


def test_correlations_end_with_their_interval_and_tau(scene):
    found = correlation.correlations(*scene)
    assert list(found.columns[-3:]) == ["low", "high", "tau"]
    found = found.set_index("metric")
    assert found.loc["ratio12_softmax", ["low", "high", "tau"]].to_list() == pytest.approx([-1, 1, -1 / 3])
    assert found.loc["margin", ["low", "high", "tau"]].isna().all()


def test_a_summary_by_strategy_by_hand():
    groups = {
        ("birds", "small", "FZ", "kd"): 0.8,
        ("birds", "small", "FT", "kd"): -0.6,
        ("cars", "small", "FZ", "kd"): 0.4,
        ("cars", "small", "FT", "kd"): math.nan,
    }
    table = correlation_rows({(*group, "ratio12"): rho for group, rho in groups.items()})
    found = correlation.summary(table, "strategy").set_index("strategy")
    frozen, tuned = found.loc["FZ"], found.loc["FT"]
    assert (frozen.groups, frozen.mean_rho, frozen.agrees, frozen.mean_abs_rho) == pytest.approx(
        (2, 0.6, -0.6, 0.6)
    )
    assert (frozen.weak, frozen.modest, frozen.strong, frozen.datasets) == (0.5, 0, 0.5, 2)
    assert (tuned.groups, tuned.mean_rho, tuned.agrees, tuned.modest, tuned.datasets) == (1, -0.6, 0.6, 1, 1)
    assert frozen[
        ["chance_abs_rho", "chance_weak", "chance_modest", "chance_strong"]
    ].to_list() == pytest.approx(list(correlation.null_summary(8).values()))
    assert math.isnan(frozen.low) and math.isnan(frozen.high)
    assert list(correlation.summary(table, ["dataset", "strategy"]).groups) == [1, 1, 0, 1]


def test_chance_is_that_of_the_groups_sizes():
    table = correlation_rows({("birds", s, "FZ", "kd", "tac"): 0.5 for s in "ab"})
    both = (correlation.null_share(8) + correlation.null_share(3)) / 2
    assert correlation.summary(table.assign(n=[8, 3])).chance_strong[0] == pytest.approx(both)
    many = (correlation.null_share(8) + correlation.null_share(12)) / 2
    assert correlation.summary(table.assign(n=[8, 12])).chance_strong[0] == pytest.approx(many)


def test_metrics_are_compared_over_data_sets():
    rng = np.random.default_rng(2)
    groups = [
        (f"d{d}", s, "FT", loss, m)
        for d in range(8)
        for s in "abcd"
        for loss in "wxyz"
        for m in ("ratio12", "ssp", "tac")
    ]
    table = correlation_rows(
        {key: rng.uniform(-0.9, -0.2) if key[-1] == "ratio12" else rng.uniform(-0.3, 0.9) for key in groups}
    )
    found = correlation.compare(table).set_index("rival")
    wide = table.pivot(index=correlation.GROUP, columns="metric", values="rho")
    expected = (-wide.ratio12 - wide.ssp).groupby("dataset").mean()
    assert set(found.datasets) == {8} and set(found.groups) == {128}
    assert found.loc["ssp", "difference"] == pytest.approx(expected.mean())
    assert found.loc["ssp", "p"] == correlation.swap_p(expected, range(8)) and (found.p_holm >= found.p).all()
    assert found.loc["ssp", ["low", "high"]].to_list() == pytest.approx(
        correlation.mean_interval(expected, range(8))
    )
    absolute = correlation.compare(table, others=["tac"], value="abs_rho")
    assert (
        absolute.difference[0] == pytest.approx((wide.ratio12.abs() - wide.tac.abs()).mean())
        and absolute.p_holm[0] == absolute.p[0]
    )
    few = correlation.compare(table[table.dataset < "d5"])
    assert few[["low", "high", "p", "p_holm"]].isna().all(axis=None) and few.difference.notna().all()


def test_a_group_without_one_of_two_rhos_is_not_compared():
    table = correlation_rows(
        {("birds", s, "FT", "kd", m): rho for s, rho in zip("ab", (0.5, 0.7)) for m in ("ratio12", "tac")}
    )
    table.loc[(table.student == "b") & (table.metric == "tac"), "agrees"] = math.nan
    found = correlation.compare(table, others=["tac"]).iloc[0]
    assert (found.groups, found.difference) == (1, -1)


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


def test_a_confound_that_makes_a_metric_look_good_is_gone_inside_families():
    names, accuracies = "abcdef", [0.1, 0.2, 0.3, 0.6, 0.7, 0.8]
    metrics = metric_rows(teachers=names, ratio12=[7, 8, 9, 1, 2, 3])
    points = correlation.join_students_with_metrics(
        student_rows(dict(zip(names, accuracies))), metrics
    ).assign(norm=list("bbblll"))
    assert correlation.agreement(points).ratio12 > 0.5
    assert correlation.agreement(points, within="norm").ratio12 == -1


def test_settling_by_hand():
    values = {
        "a": [1.0, 3.0, 1.0],
        "b": [2.0, 4.0, 4.0],
        "c": [3.0, 1.0, 1.0],
    }  # means: a 1, 2, 5/3; b 2, 3, 10/3; c 3, 2, 5/3
    rows = [
        {"dataset": "birds", "recipe": "FT", "seed": 0, "teacher": t, "epoch": e, "ratio12": v}
        for t, column in values.items()
        for e, v in enumerate(column)
    ]
    found = correlation.ranking_stability(pd.DataFrame(rows))
    assert (
        found.views.to_list() == [1, 2, 3]
        and found.rho.to_list() == pytest.approx([0, 1, 1])
        and found.lowest.to_list() == found.rho.to_list()
    )
    other = pd.DataFrame(rows).assign(seed=1, ratio12=lambda r: r.teacher.map({"a": 1.0, "b": 2.0, "c": 3.0}))
    both = correlation.ranking_stability(pd.concat([pd.DataFrame(rows), other]))
    assert both.rho.to_list() == pytest.approx([0.5, 1, 1]) and both.lowest.to_list() == pytest.approx(
        [0, 1, 1]
    )


def test_agreement_is_a_metric_but_no_rule_since_it_needs_the_student():
    metrics = metric_rows(ratio12=[1, 2, 3])
    students = student_rows({"a": 0.3, "b": 0.2, "c": 0.1}).assign(agreement=[0.9, 0.8, 0.7])
    points = correlation.join_students_with_metrics(students, metrics)
    assert correlation.correlations(students, metrics).set_index("metric").rho["agreement"] == 1
    assert "agreement" not in set(correlation.selection_outcomes(points, students).rule)


def test_a_pilot_picks_by_the_begun_student_and_its_price_stands_beside_it():
    students = student_rows({"a": 0.3, "b": 0.2, "c": 0.1}).assign(pilot=[0.01, 0.03, 0.02], pilot_cost=0.25)
    points = correlation.join_students_with_metrics(students, metric_rows(ratio12=[1, 2, 3]))
    assert correlation.correlations(students, metric_rows()).set_index("metric").agrees["pilot"] == -0.5
    found = correlation.selection_summary(points, students).set_index("rule")
    assert found.loc["pilot", ["teacher", "accuracy", "cost"]].to_list() == ["b", 0.2, 0.25]
    assert found.cost[["R12", "TAC", "random", "best"]].to_list() == [0, 0, 0, 1]


def test_students_of_which_no_history_is_known_have_no_pilot():
    students = student_rows({"a": 0.3, "b": 0.2, "c": 0.1}).assign(pilot=None, pilot_cost=None)
    points = correlation.join_students_with_metrics(students, metric_rows(ratio12=[1, 2, 3]))
    assert "pilot" not in set(correlation.selection_summary(points, students).rule)
    assert math.isnan(correlation.correlations(students, metric_rows()).set_index("metric").rho["pilot"])


def test_the_breakdown_is_the_summary_of_the_groups_with_that_value():
    keys = [
        (d, "small", s, "kd", m)
        for d in ("birds", "cars")
        for s in ("FT", "TGDA")
        for m in ("ratio12", "tac")
    ]
    table = correlation_rows({key: i / 10 for i, key in enumerate(keys)})
    found = correlation.breakdown(table)
    assert found.groupby("by").value.unique().map(list).to_dict() == {
        "dataset": ["birds", "cars"],
        "loss": ["kd"],
        "strategy": ["FT", "TGDA"],
        "student": ["small"],
    }
    tgda = (
        found[(found.by == "strategy") & (found.value == "TGDA")]
        .drop(columns=["by", "value"])
        .reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(tgda, correlation.summary(table[table.strategy == "TGDA"]))


@pytest.mark.parametrize("n", [4, 5, 8])
def test_no_order_is_called_strong_where_not_even_a_perfect_one_is_significant(n):
    possible = correlation.exact_p(range(n), range(n)) < 0.05
    assert correlation.described(0.8, n) == f"+0.80{', strong' if possible else ''} (n = {n})"
    assert ("strong" in correlation.described(-1.0, n)) == possible


def test_an_undefined_rho_is_said_to_be():
    assert correlation.described(math.nan, 2) == "undefined (n = 2)"


def test_what_keeps_a_study_from_being_read_is_said_in_a_sentence():
    two = correlation.correlations(
        student_rows({"a": 0.3, "b": 0.2}), metric_rows(teachers="ab", ratio12=[1, 2])
    )
    alike = correlation.correlations(student_rows(dict.fromkeys("abc", 0.3)), metric_rows(ratio12=[1, 2, 3]))
    three = correlation.correlations(
        student_rows({"a": 0.3, "b": 0.2, "c": 0.1}), metric_rows(ratio12=[1, 2, 3])
    )
    none = correlation.correlations(student_rows({}, baseline=0.5), metric_rows())
    assert correlation.lacking(none) == "Not computed yet: no student of any teacher has ended."
    assert (
        correlation.lacking(two) == "A rank correlation needs three teachers: no group has more than 2 yet."
    )
    assert "are alike" in correlation.lacking(alike) and correlation.lacking(three) == ""


def test_an_answer_without_students_says_that_there_are_none():
    students = student_rows({}, baseline=0.5)
    assert correlation.answer(
        correlation.selection_summary(
            correlation.join_students_with_metrics(students, metric_rows()), students
        )
    ).startswith("Not computed yet")
    students = student_rows({"a": 0.25, "b": 0.5})
    found = correlation.answer(
        correlation.selection_summary(
            correlation.join_students_with_metrics(students, metric_rows(teachers="ab", ratio12=[1, 2])),
            students,
        )
    )
    assert "picked by R12 25.0%" in found and "by the best teacher 50.0%" in found


@pytest.mark.parametrize("hits, n", [(0, 20), (15, 60), (60, 60)])
def test_the_interval_of_a_share_is_wilsons(hits, n):
    expected = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert correlation.share_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_no_images_have_no_share():
    assert np.isnan(correlation.share_interval(0, 0)).all()


def test_a_point_says_in_how_many_samples_r12_has_no_meaning():
    metrics = pd.concat(
        [metric_rows(seed=s).assign(ratio12_nonpositive=share) for s, share in enumerate((0.0, 0.04))]
    )
    students = pd.concat([student_rows({"a": 0.3, "b": 0.2, "c": 0.1}, seed=s) for s in (0, 1)])
    assert (
        correlation.join_students_with_metrics(students, metrics).ratio12_nonpositive.to_list() == [0.02] * 3
    )


def standings(accuracies, tests=200, teachers="abc", **columns):
    """`correlation.standings` of students of these accuracies by data set, of a study with a baseline of .2 and 4 classes."""
    groups = [dict(zip(teachers, values)) for values in accuracies]
    students = pd.concat(
        [student_rows(group, dataset=f"d{i}", baseline=0.2) for i, group in enumerate(groups)]
    )
    metrics = pd.concat([metric_rows(f"d{i}", teachers=teachers, **columns) for i in range(len(groups))])
    data = pd.DataFrame({"dataset": students.dataset.unique(), "classes": 4, "test": tests})
    points = correlation.join_students_with_metrics(students, metrics.assign(ratio12_nonpositive=0.0))
    return correlation.standings(points, students, data), correlation.selection_summary(points, students)


def test_teachers_stand_by_name_with_the_error_of_their_test_images():
    table, picks = standings([[0.5, 0.4, 0.1]], ratio12=[3, 2, 1], tac=[0.5, 0.9, 0.7], ssp=[1, 2, 3])
    assert table.teacher.to_list() == ["a", "b", "c", "no teacher", "chance"]
    assert table.accuracy.to_list() == [0.5, 0.4, 0.1, 0.2, 0.25]
    assert table.error[:3].to_list() == pytest.approx(
        [1.959964 * (p * (1 - p) / 200) ** 0.5 for p in (0.5, 0.4, 0.1)]
    )
    assert table.tied[:3].to_list() == [True, False, False]
    text = correlation.said(table, picks)
    assert text.startswith(
        "The students of a are the most accurate: 50.0% +- 6.9%, no teacher 20.0%, chance 25.0%."
    )
    assert "R12 picks c, 10.0%" in text and "TAC picks b, 40.0%" in text and "SSP picks c, 10.0%" in text


def test_more_test_images_tell_teachers_apart_and_six_data_sets_by_their_own_differences():
    few, many = (standings([[0.5, 0.45, 0.1]], tests=n)[0].set_index("teacher").tied for n in (100, 10_000))
    assert few[["a", "b", "c"]].to_list() == [True, True, False] and many[["a", "b", "c"]].to_list() == [
        True,
        False,
        False,
    ]
    steady, mixed = (
        [[0.5, 0.5 - d, 0.1] for d in steps]
        for steps in ([0.01] * 6, [0.05, -0.04, 0.05, -0.04, 0.05, -0.04])
    )
    assert standings(steady, tests=100)[0].set_index("teacher").tied[["a", "b"]].to_list() == [True, False]
    assert standings(mixed, tests=100)[0].set_index("teacher").tied[["a", "b"]].to_list() == [True, True]


def test_whom_a_rule_picks_is_named_with_the_number_of_its_groups():
    _, picks = standings([[0.5, 0.4, 0.1], [0.1, 0.4, 0.2]], ratio12=[1, 2, 3])
    named = picks.set_index("rule").teacher
    assert named["R12"] == "a (2 of 2)" and named["best"] == "a (1 of 2)" and named["random"] == ""
