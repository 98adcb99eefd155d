"""The rule that ranks, its order, and how stable that is."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scenes import metric_rows, student_rows

from fgkd.choose import evidence, ranking
from fgkd.choose.evidence import Rule
from fgkd.study import PROJECT, load

TAC = Rule("tac", "of the test")
R12 = Rule("ratio12", "of the test")


def tables(datasets, *, teachers="abcdef", lost=()):
    """A study in which TAC ranks the students exactly and R12 the wrong way round."""
    quality = np.arange(len(teachers)) / 10
    students, metrics = [], []
    for dataset in datasets:
        shown = [t for t in teachers if (dataset, t) not in lost]
        accuracies = {t: 0.3 + q for t, q in zip(teachers, quality) if t in shown}
        students.append(student_rows(accuracies, dataset=dataset))
        metrics.append(metric_rows(dataset, teachers=teachers, tac=quality, ratio12=1 + quality, nll=quality))
    return pd.concat(students), pd.concat(metrics)


def test_the_rule_is_the_metric_of_the_largest_mean_rho_once_six_datasets_are_complete():
    support = evidence.support(*tables("123456"))
    by_metric = support.set_index("metric")
    assert support.metric.iloc[0] == "tac" and by_metric.rho["tac"] == pytest.approx(1)
    assert by_metric.rho["ratio12"] == pytest.approx(-1) and (support.datasets == 6).all()
    rule = evidence.decide(support, 7)
    assert rule.metric == "tac" and "on 6 sets of real photos" in rule.reason
    assert "that of the paper's R12 is -1.00" in rule.reason


def test_below_six_complete_datasets_the_rule_is_the_papers():
    rule = evidence.decide(evidence.support(*tables("123456", lost={("3", "a")})), 7)
    assert rule.metric == "ratio12" and "5 of 7 data sets are complete" in rule.reason
    assert evidence.decide(evidence.support(pd.DataFrame(), pd.DataFrame()), 7).metric == "ratio12"


def test_the_rule_is_picked_on_the_students_of_the_recipe_where_six_datasets_have_them():
    students, metrics = tables("123456")
    reverse = students.assign(strategy="FT", accuracy=1 - students.accuracy)
    students = pd.concat([students.assign(strategy="FZ"), reverse])
    metrics = pd.concat([metrics.assign(strategy="FZ"), metrics.assign(strategy="FT")])
    study = load("photos")

    def best(recipe, students):
        return evidence.support_of(recipe, study, students, metrics).set_index("metric").rho

    assert best("FZ", students)["tac"] == 1 and best("FZ", students)["ratio12"] == -1
    assert best("FT", students)["tac"] == -1 and best("FT", students)["ratio12"] == 1
    assert best("CAL", students)["tac"] == 0 and best("CAL", students)["ratio12"] == 0
    few = students[(students.strategy == "FZ") | (students.dataset < "3")]
    assert best("FT", few)["tac"] == pytest.approx(4 / 6)


def test_metrics_that_see_the_student_are_no_rule():
    students, metrics = tables("123456")
    seen = students.assign(pilot=students.accuracy, agreement=students.accuracy)
    support = evidence.support(seen, metrics)
    assert not {"pilot", "agreement"} & set(support.metric)


def test_the_committed_records_are_read_wherever_results_of_this_run_go(monkeypatch, tmp_path):
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    rule = evidence.rule("FZ")
    assert rule.direction in (1, -1) and rule.reason
    with evidence._beside_the_file():
        assert load("photos").folder == PROJECT / "runs" / "photos"


def samples(**correct):
    """Values of single photos, of which `correct` matters."""
    values = {name: np.array(array, float) for name, array in correct.items()}
    return {name: {"correct": array, "ratio12": 1 + array} for name, array in values.items()}


def test_ranks_follow_the_claimed_direction_and_ties_the_names():
    assert list(ranking._ranks(pd.Series([0.3, 0.5, 0.3]), 1)) == [2, 1, 3]
    assert list(ranking._ranks(pd.Series([1.5, 1.2, np.nan]), -1)) == [2, 1, 3]


def test_how_often_a_candidate_is_the_first_agrees_with_the_binomial_distribution():
    """b differs from a in 5 photos of 40, right on 3, wrong on 2: how often is it the first of the two?"""
    a = np.repeat([1, 0], [20, 20])
    b = a.copy()
    b[:2] = 0
    b[-3:] = 1
    ranks = ranking._resample(samples(a=a, b=b), TAC)
    wins = sum(
        scipy.stats.multinomial.pmf([x, y, 40 - x - y], 40, [3 / 40, 2 / 40, 35 / 40])
        for x in range(41)
        for y in range(41 - x)
        if x >= y
    )
    assert (ranks.b == 1).mean() == pytest.approx(wins, abs=0.04)
    assert ((ranks.a == 1) & (ranks.b == 1)).any()  # equal ones share the better rank


def test_stability_does_not_depend_on_the_order_of_the_list():
    rng = np.random.default_rng(1)
    values = samples(**{name: rng.random(50) < share for name, share in zip("abc", (0.5, 0.6, 0.4))})
    forward = ranking._stability(ranking._resample(values, R12))
    backward = ranking._stability(ranking._resample(dict(reversed(values.items())), R12))
    pd.testing.assert_frame_equal(forward, backward.loc[["a", "b", "c"]])


def test_a_rule_that_is_no_function_of_the_logits_has_no_stability():
    assert ranking._resample(samples(a=[1, 0], b=[0, 0]), Rule("logme", "")).empty
    assert ranking._stability(pd.DataFrame()).empty
