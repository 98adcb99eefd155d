"""What choosing gains: picks, their price, and how the teachers stand."""

import math

import pandas as pd
import pytest
from scenes import metric_rows, student_rows

from fgkd.analysis import groups, selection
from fgkd.report import verdicts


def picks(points, students):
    return selection.selection_summary(selection.selection_outcomes(points, students))


def test_agreement_is_a_metric_but_no_rule_since_it_needs_the_student():
    metrics = metric_rows(ratio12=[1, 2, 3])
    students = student_rows({"a": 0.3, "b": 0.2, "c": 0.1}).assign(agreement=[0.9, 0.8, 0.7])
    points = groups.join_students_with_metrics(students, metrics)
    assert groups.correlations(students, metrics).set_index("metric").rho["agreement"] == 1
    assert "agreement" not in set(selection.selection_outcomes(points, students).rule)


def test_a_pilot_picks_by_the_begun_student_and_its_price_stands_beside_it():
    students = student_rows({"a": 0.3, "b": 0.2, "c": 0.1}).assign(pilot=[0.01, 0.03, 0.02], pilot_cost=0.25)
    points = groups.join_students_with_metrics(students, metric_rows(ratio12=[1, 2, 3]))
    assert groups.correlations(students, metric_rows()).set_index("metric").agrees["pilot"] == -0.5
    found = picks(points, students).set_index("rule")
    assert found.loc["pilot", ["teacher", "accuracy", "cost"]].to_list() == ["b", 0.2, 0.25]
    assert found.cost[["R12", "TAC", "random", "best"]].to_list() == [0, 0, 0, 1]


def test_students_of_which_no_history_is_known_have_no_pilot():
    students = student_rows({"a": 0.3, "b": 0.2, "c": 0.1}).assign(pilot=None, pilot_cost=None)
    points = groups.join_students_with_metrics(students, metric_rows(ratio12=[1, 2, 3]))
    assert "pilot" not in set(picks(points, students).rule)
    assert math.isnan(groups.correlations(students, metric_rows()).set_index("metric").rho["pilot"])


def standings(accuracies, tests=200, teachers="abc", **columns):
    """`selection.standings` of these accuracies by dataset, a baseline of .2 and 4 classes."""
    accuracies = [
        {teacher: value for teacher, value in zip(teachers, values, strict=False) if value is not None}
        for values in accuracies
    ]
    students = pd.concat(
        [student_rows(group, dataset=f"d{i}", baseline=0.2) for i, group in enumerate(accuracies)]
    )
    metrics = pd.concat([metric_rows(f"d{i}", teachers=teachers, **columns) for i in range(len(accuracies))])
    data = pd.DataFrame({"dataset": students.dataset.unique(), "classes": 4, "test": tests})
    points = groups.join_students_with_metrics(students, metrics.assign(ratio12_nonpositive=0.0))
    return selection.standings(points, students, data), selection.selection_summary(
        selection.selection_outcomes(points, students)
    )


def test_teachers_stand_by_name_with_the_error_of_their_test_images():
    table, picks = standings([[0.5, 0.4, 0.1]], ratio12=[3, 2, 1], tac=[0.5, 0.9, 0.7], ssp=[1, 2, 3])
    assert table.teacher.to_list() == ["a", "b", "c", "no teacher", "chance"]
    assert table.accuracy.to_list() == [0.5, 0.4, 0.1, 0.2, 0.25]
    assert table.error[:3].to_list() == pytest.approx(
        [1.959964 * (p * (1 - p) / 200) ** 0.5 for p in (0.5, 0.4, 0.1)]
    )
    assert table.tied[:3].to_list() == [True, False, False]
    text = verdicts.describe_standings(table, picks)
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


def test_groups_of_one_dataset_share_their_images_and_so_the_error_of_their_teacher():
    """Two students of a teacher on the same images are as uncertain as one, on other images less so."""
    metrics = pd.concat([metric_rows(d, ratio12=[1, 2, 3]) for d in ("d0", "d1")])
    metrics = metrics.assign(ratio12_nonpositive=0.0)
    data = pd.DataFrame({"dataset": ["d0", "d1"], "classes": 4, "test": 200})
    accuracies = {"a": 0.5, "b": 0.4, "c": 0.1}
    places = {
        "one": [("d0", "small")],
        "two students": [("d0", "small"), ("d0", "large")],
        "two datasets": [("d0", "small"), ("d1", "small")],
    }
    errors = {}
    for name, groups_of in places.items():
        students = pd.concat([student_rows(accuracies, dataset=d, student=s) for d, s in groups_of])
        points = groups.join_students_with_metrics(students, metrics)
        errors[name] = selection.standings(points, students, data).error[:3].to_numpy()
    assert errors["two students"] == pytest.approx(errors["one"])
    assert errors["two datasets"] == pytest.approx(errors["one"] / math.sqrt(2))


def test_teachers_are_compared_on_the_groups_that_have_all_of_them():
    table, picks = standings([[0.1, 0.2, 0.3], [0.9, 0.5]], tests=100)
    accuracies = table.set_index("teacher").accuracy
    assert accuracies[["c", "b", "a"]].to_list() == [0.3, 0.2, 0.1] and set(table.groups[:3]) == {1}
    assert "still missing" not in verdicts.describe_standings(table, picks)


def test_an_answer_says_that_means_over_different_groups_do_not_compare():
    table, picks = standings([[0.1, 0.2], [0.9, 0.5], [0.1, None, 0.3]], tests=100)
    assert table.set_index("teacher").groups[["a", "b", "c"]].to_list() == [3, 2, 1]
    assert "over different groups and do not compare" in verdicts.describe_standings(table, picks)


def test_whom_a_rule_picks_is_named_with_the_number_of_its_groups():
    _, picks = standings([[0.5, 0.4, 0.1], [0.1, 0.4, 0.2]], ratio12=[1, 2, 3])
    named = picks.set_index("rule").teacher
    assert named["R12"] == "a (2 of 2)" and named["best"] == "a (1 of 2)" and named["random"] == ""
