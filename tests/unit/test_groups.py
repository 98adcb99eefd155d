"""Points, correlations and summaries of a study's groups."""

import math

import pandas as pd
import pytest
from scenes import correlation_rows, metric_rows, student_rows

from fgkd.analysis import correlation, groups
from fgkd.report import verdicts


@pytest.fixture
def scene():
    """R12 picks the worst teacher, TAC the best one; the margin cannot tell them apart."""
    students = student_rows({"a": 0.5, "b": 0.6, "c": 0.7}, baseline=0.55)
    return students, metric_rows(ratio12=[1.1, 1.2, 1.3], tac=[0.7, 0.8, 0.9], ratio12_softmax=[3, 1, 2])


def test_correlations_end_with_their_interval_and_tau(scene):
    found = groups.correlations(*scene)
    assert list(found.columns[-3:]) == ["low", "high", "tau"]
    found = found.set_index("metric")
    assert found.loc["ratio12_softmax", ["low", "high", "tau"]].to_list() == pytest.approx([-1, 1, -1 / 3])
    assert found.loc["margin", ["low", "high", "tau"]].isna().all()


def test_a_summary_by_strategy_by_hand():
    rhos = {
        ("birds", "small", "FZ", "kd"): 0.8,
        ("birds", "small", "FT", "kd"): -0.6,
        ("cars", "small", "FZ", "kd"): 0.4,
        ("cars", "small", "FT", "kd"): math.nan,
    }
    table = correlation_rows({(*group, "ratio12"): rho for group, rho in rhos.items()})
    found = groups.summary(table, "strategy").set_index("strategy")
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
    assert list(groups.summary(table, ["dataset", "strategy"]).groups) == [1, 1, 0, 1]


def test_chance_is_that_of_the_groups_sizes():
    table = correlation_rows({("birds", s, "FZ", "kd", "tac"): 0.5 for s in "ab"})
    both = (correlation.null_share(8) + correlation.null_share(3)) / 2
    assert groups.summary(table.assign(n=[8, 3])).chance_strong[0] == pytest.approx(both)
    many = (correlation.null_share(8) + correlation.null_share(12)) / 2
    assert groups.summary(table.assign(n=[8, 12])).chance_strong[0] == pytest.approx(many)


def test_a_confound_that_makes_a_metric_look_good_is_gone_inside_families():
    names, accuracies = "abcdef", [0.1, 0.2, 0.3, 0.6, 0.7, 0.8]
    metrics = metric_rows(teachers=names, ratio12=[7, 8, 9, 1, 2, 3])
    points = groups.join_students_with_metrics(
        student_rows(dict(zip(names, accuracies, strict=True))), metrics
    ).assign(norm=list("bbblll"))
    assert groups.agreement(points).ratio12 > 0.5
    assert groups.agreement(points, within="norm").ratio12 == -1


def test_two_ways_to_teach_are_compared_by_the_order_of_their_teachers():
    """Only of the birds, whose groups have three teachers in common, is the order of FZ and FT known."""
    accuracies = {
        ("birds", "FZ", "kd"): {"a": 0.1, "b": 0.2, "c": 0.3},
        ("birds", "FT", "kd"): {"a": 0.1, "b": 0.3, "c": 0.2},
        ("cars", "FZ", "kd"): {"a": 0.1, "b": 0.2, "c": 0.3},
        ("cars", "FT", "kd"): {"a": 0.3, "b": 0.2},
        ("cars", "FT", "soft"): {"a": 0.3, "b": 0.2, "c": 0.1},
    }
    rows = [
        {"dataset": d, "student": "small", "strategy": s, "loss": loss, "teacher": t, "accuracy": accuracy}
        for (d, s, loss), students in accuracies.items()
        for t, accuracy in students.items()
    ]
    found = groups.orders(pd.DataFrame(rows)).set_index(["one", "other"])
    assert found.rho.dropna().to_dict() == pytest.approx({("FZ kd", "FT kd"): 0.5, ("FZ kd", "FT soft"): -1})
    assert found.groups.to_dict() == {
        ("FZ kd", "FT kd"): 1,
        ("FZ kd", "FT soft"): 1,
        ("FT kd", "FT soft"): 0,
    }
    assert found.low.isna().all()


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
    found = groups.ranking_stability(pd.DataFrame(rows))
    assert (
        found.views.to_list() == [1, 2, 3]
        and found.rho.to_list() == pytest.approx([0, 1, 1])
        and found.lowest.to_list() == found.rho.to_list()
    )
    other = pd.DataFrame(rows).assign(seed=1, ratio12=lambda r: r.teacher.map({"a": 1.0, "b": 2.0, "c": 3.0}))
    both = groups.ranking_stability(pd.concat([pd.DataFrame(rows), other]))
    assert both.rho.to_list() == pytest.approx([0.5, 1, 1]) and both.lowest.to_list() == pytest.approx(
        [0, 1, 1]
    )


def test_the_breakdown_is_the_summary_of_the_groups_with_that_value():
    keys = [
        (d, "small", s, "kd", m)
        for d in ("birds", "cars")
        for s in ("FT", "TGDA")
        for m in ("ratio12", "tac")
    ]
    table = correlation_rows({key: i / 10 for i, key in enumerate(keys)})
    found = groups.breakdown(table)
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
    pd.testing.assert_frame_equal(tgda, groups.summary(table[table.strategy == "TGDA"]))


def test_what_keeps_a_study_from_being_read_is_said_in_a_sentence():
    two = groups.correlations(student_rows({"a": 0.3, "b": 0.2}), metric_rows(teachers="ab", ratio12=[1, 2]))
    alike = groups.correlations(student_rows(dict.fromkeys("abc", 0.3)), metric_rows(ratio12=[1, 2, 3]))
    three = groups.correlations(student_rows({"a": 0.3, "b": 0.2, "c": 0.1}), metric_rows(ratio12=[1, 2, 3]))
    none = groups.correlations(student_rows({}, baseline=0.5), metric_rows())
    assert verdicts.explain_missing_rho(none) == "Not computed yet: no student of any teacher has ended."
    assert (
        verdicts.explain_missing_rho(two)
        == "A rank correlation needs three teachers: no group has more than 2 yet."
    )
    assert "are alike" in verdicts.explain_missing_rho(alike) and verdicts.explain_missing_rho(three) == ""


def test_a_point_says_in_how_many_samples_r12_has_no_meaning():
    metrics = pd.concat(
        [metric_rows(seed=s).assign(ratio12_nonpositive=share) for s, share in enumerate((0.0, 0.04))]
    )
    students = pd.concat([student_rows({"a": 0.3, "b": 0.2, "c": 0.1}, seed=s) for s in (0, 1)])
    assert groups.join_students_with_metrics(students, metrics).ratio12_nonpositive.to_list() == [0.02] * 3
