"""Rank correlation: scipy's values, every order counted, and a pick that is not rewarded for a wrong sign."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from fgkd import stats
from fgkd.metrics import METRICS


def pair(n, *, ties, seed):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 4, n), rng.integers(0, 4, n)) if ties else (rng.normal(size=n), rng.normal(size=n))


def metric_rows(dataset="birds", strategy="FT", teachers="abc", **values):
    """A row a teacher; metrics that are not given are the same for all."""
    rows = [{"dataset": dataset, "teacher": t, "strategy": strategy} | dict.fromkeys(METRICS, 1.0) for t in teachers]
    for name, column in values.items():
        for row, value in zip(rows, column, strict=True):
            row[name] = value
    return pd.DataFrame(rows)


def student_rows(accuracies, *, dataset="birds", strategy="FT", student="small", baseline=None):
    rows = [{"dataset": dataset, "student": student, "strategy": strategy, "loss": "kd", "teacher": t, "accuracy": a} for t, a in accuracies.items()]
    if baseline is not None:
        rows.append({"dataset": dataset, "student": student, "strategy": "CE", "loss": "ce", "teacher": "none", "accuracy": baseline})
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
    assert stats.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("x, y, rho", [
    ([1, 2, 3], [1, 3, 2], 0.5), ([1, 2, 3], [3, 2, 1], -1), ([1, 2, 3, 4], [2, 1, 4, 3], 0.6), ([1, 2, 3, 4], [10, 1e6, 1e9, 1e12], 1),
    ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2), ([1, 2, math.inf], [0, 5, 9], 1)])
def test_rho_by_hand(x, y, rho):
    assert stats.spearman(x, y) == pytest.approx(rho, abs=1e-12)


def test_rho_depends_on_ranks_alone_and_is_symmetric():
    x, y = pair(9, ties=False, seed=1)
    assert stats.spearman(np.exp(x), 5 - 2 * y) == -stats.spearman(y, x)


@pytest.mark.parametrize("x, y", [
    ([], []), ([1], [2]), ([1, 2], [3, 4]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([1, math.nan, 3], [1, 2, 3])])
def test_too_few_constant_or_absent_values_have_neither_rho_nor_p_nor_strength(x, y):
    assert math.isnan(stats.spearman(x, y)) and math.isnan(stats.exact_p(x, y))
    assert stats.strength(stats.spearman(x, y)) == ""


@pytest.mark.parametrize("x, y", [([1, 2, 3], [1, 2]), ([[1, 2, 3]], [[1, 2, 3]])])
def test_values_of_unequal_length_are_refused(x, y):
    with pytest.raises(ValueError, match="expected two of the same length"):
        stats.spearman(x, y)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("n", [4, 5])
def test_p_equals_a_count_of_all_orders_by_scipy(n, ties):
    x, y = pair(n, ties=ties, seed=4)
    rhos = [abs(scipy.stats.spearmanr(x, order).statistic) for order in itertools.permutations(y)]
    expected = np.mean(np.array(rhos) >= abs(scipy.stats.spearmanr(x, y).statistic) - 1e-9)
    assert stats.exact_p(x, y) == pytest.approx(expected, abs=1e-12)


def test_p_by_hand():
    assert stats.exact_p([1, 2, 3], [4, 5, 6]) == stats.exact_p([1, 2, 3], [6, 5, 4]) == pytest.approx(2 / 6)
    assert stats.exact_p([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(2 / 24)
    assert stats.exact_p([1, 2, 3], [1, 3, 2]) == 1


def test_above_nine_points_p_is_sampled_by_seed_and_never_zero():
    x, y = pair(12, ties=False, seed=3)
    found = stats.exact_p(x, y, draws=4000)
    assert found == stats.exact_p(x, y, draws=4000)
    assert found == pytest.approx(scipy.stats.spearmanr(x, y).pvalue, abs=0.03)
    assert stats.exact_p(range(12), range(12), draws=1000) == pytest.approx(1 / 1001)


@pytest.mark.parametrize("rho, word", [
    (0, "weak"), (0.5, "weak"), (0.504, "weak"), (0.505, "modest"), (0.7, "modest"), (0.704, "modest"), (0.705, "strong"), (0.71, "strong"), (1, "strong")])
def test_strength_goes_by_the_size_rounded_half_up_to_two_decimals(rho, word):
    assert stats.strength(rho) == stats.strength(-rho) == word


def test_what_eight_unrelated_teachers_give():
    ranks = np.arange(8) - 3.5
    orders = np.array(list(itertools.permutations(ranks)))
    null = np.abs(orders @ ranks / (ranks @ ranks))
    assert null.mean() == pytest.approx(0.31, abs=0.005)
    assert stats.null_share(8) == pytest.approx((null > 0.705 + 1e-9).mean(), abs=1e-12)
    assert stats.null_share(8) == pytest.approx(0.058, abs=0.0005)


@pytest.mark.parametrize("order, rho, significant", [([3, 1, 2, 0, 5, 4, 7, 6], 0.738, True), ([2, 3, 0, 1, 6, 5, 4, 7], 0.714, False)])
def test_significance_at_eight_teachers(order, rho, significant):
    assert stats.spearman(range(8), order) == pytest.approx(rho, abs=5e-4)
    assert (stats.exact_p(range(8), order) < 0.05) == significant


def test_at_eight_teachers_p_below_5_percent_needs_0_738():
    ranks = np.arange(8) - 3.5
    null = np.abs(np.array(list(itertools.permutations(ranks))) @ ranks / (ranks @ ranks)).round(6)
    needed = min(rho for rho in np.unique(null) if (null >= rho).mean() < 0.05)
    assert needed == pytest.approx(0.738, abs=5e-4)


@pytest.mark.parametrize("n", [2, 10])
def test_a_null_share_that_cannot_be_counted_is_refused(n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        stats.null_share(n)


def test_three_unrelated_teachers_are_strong_in_a_third_of_groups():
    assert stats.null_share(3) == pytest.approx(1 / 3)


def test_correlations_by_hand(scene):
    found = stats.correlations(*scene).set_index("metric")
    assert len(found) == len(METRICS) and set(found.n) == {3}
    r12, tac, soft = found.loc["ratio12"], found.loc["tac"], found.loc["ratio12_softmax"]
    assert (r12.rho, r12.abs_rho, r12.direction, r12.agrees, r12.strength) == (1, 1, -1, -1, "strong")
    assert (tac.rho, tac.direction, tac.agrees) == (1, 1, 1) and tac.p == pytest.approx(1 / 3)
    assert (soft.rho, soft.agrees, soft.strength) == (-0.5, 0.5, "weak")
    assert math.isnan(found.loc["margin"].rho) and found.loc["margin"].strength == ""


def test_each_group_is_correlated_by_itself(scene):
    students, metrics = scene
    other = student_rows({"a": 0.9, "b": 0.2, "c": 0.1}, dataset="cars")
    both = stats.correlations(pd.concat([students, other]), pd.concat([metrics, metric_rows(dataset="cars", tac=[0.7, 0.8, 0.9])]))
    assert both[both.metric == "tac"].set_index("dataset").rho.to_dict() == {"birds": 1, "cars": -1}


def test_joining_keeps_every_distilled_student_and_no_baseline(scene):
    points = stats.joined(*scene)
    assert list(points.teacher) == ["a", "b", "c"] and list(points.tac) == [0.7, 0.8, 0.9]
    assert set(points.strategy) == {"FT"}


def test_joining_matches_the_strategy_and_not_the_teacher_alone(scene):
    students, metrics = scene
    points = stats.joined(students, pd.concat([metric_rows(strategy="FZ", tac=[0, 0, 0]), metrics]))
    assert list(points.tac) == [0.7, 0.8, 0.9]


def test_a_student_whose_teacher_has_no_metrics_is_named(scene):
    students, metrics = scene
    with pytest.raises(ValueError, match="1 students have no metrics.*'teacher': 'b'"):
        stats.joined(students, metrics[metrics.teacher != "b"])


def test_two_rows_of_metrics_for_one_teacher_are_refused(scene):
    students, metrics = scene
    with pytest.raises(pd.errors.MergeError):
        stats.joined(students, pd.concat([metrics, metrics]))


def test_a_pick_follows_the_claimed_sign_and_a_wrong_one_costs(scene):
    students, metrics = scene
    found = stats.picks(stats.joined(students, metrics), students).set_index("rule")
    assert found.loc["R12"].to_list() == pytest.approx([0.5, 0.2, 0])
    assert found.loc["TAC"].to_list() == pytest.approx([0.7, 0, 1])
    assert found.loc["best"].to_list() == pytest.approx([0.7, 0, 1])
    assert found.loc["random"].to_list() == pytest.approx([0.6, 0.1, 0])
    assert found.loc["no teacher"].to_list() == pytest.approx([0.55, 0.15, 0])
    assert found.loc["R12 of softmax"].accuracy == 0.6


def test_tied_teachers_share_a_pick_and_a_lost_metric_picks_nobody(scene):
    students, metrics = scene
    points = stats.joined(students, metrics.assign(entropy=[1, 2, 2], ssp=math.nan))
    found = stats.picks(points, students).set_index("rule")
    assert found.loc["margin"].accuracy == pytest.approx(0.6)
    assert found.loc["entropy"].accuracy == pytest.approx(0.65)
    assert "SSP" not in found.index


def test_picks_are_means_over_groups_best_first(scene):
    students, metrics = scene
    other = student_rows({"a": 0.9, "b": 0.2, "c": 0.1}, dataset="cars", baseline=0.5)
    students = pd.concat([students, other])
    points = stats.joined(students, pd.concat([metrics, metric_rows(dataset="cars", tac=[0.7, 0.8, 0.9])]))
    found = stats.picks(points, students)
    assert found.rule[0] == "best" and found.accuracy.is_monotonic_decreasing
    assert found.set_index("rule").loc["TAC"].to_list() == pytest.approx([0.4, 0.4, 0.5])


def test_without_a_baseline_there_is_no_such_rule(scene):
    students = scene[0][scene[0].strategy != "CE"]
    assert "no teacher" not in set(stats.picks(stats.joined(*scene), students).rule)


def test_the_headline_averages_over_groups_best_signed_first(scene):
    students, metrics = scene
    other = student_rows({"a": 0.9, "b": 0.1, "c": 0.2}, dataset="cars")
    table = stats.correlations(pd.concat([students, other]), pd.concat([metrics, metric_rows(dataset="cars", tac=[0.7, 0.8, 0.9])]))
    found = stats.headline(table).set_index("metric")
    tac = found.loc["tac"]
    assert (tac.groups, tac.teachers, tac.strong) == (2, 3, 0.5)
    assert (tac.mean_rho, tac.mean_abs_rho, tac.agrees) == (0.25, 0.75, 0.25)
    assert found.loc["ratio12"].agrees == -1 and found.loc["margin"].groups == 0
    assert found.agrees.dropna().is_monotonic_decreasing
