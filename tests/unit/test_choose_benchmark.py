"""What choosing gains, as `benchmarks/choosing.py` reads it from a study's records."""

import choosing
import numpy as np
import pandas as pd
import pytest
from scenes import metric_rows, student_rows

from fgkd.analysis import records
from fgkd.analysis.groups import GROUP
from fgkd.study import PROJECT, load


def test_each_rules_regret_is_that_of_the_student_whom_it_picks(finished):
    found = choosing.regrets(finished)
    students, metrics = choosing.tables(finished)
    assert set(found.strategy) == {"FZ", "FT"} and set(found.dataset) == {"birds"}
    for (_, _, strategy, _), group in found.groupby(GROUP):
        taught = students[students.strategy == strategy].set_index("teacher").accuracy
        on_test = metrics[metrics.strategy == strategy].set_index("teacher").sort_index()
        regret = group.set_index("rule").regret
        for label, pick in {"R12": on_test.ratio12.idxmin(), "TAC": on_test.tac.idxmax()}.items():
            assert regret[label] == pytest.approx(100 * (taught.max() - taught[pick]))
        assert regret["random"] == pytest.approx(100 * (taught.max() - taught.mean()))


def test_pilots_pick_by_what_the_students_histories_say_and_cost_what_they_train(finished):
    found = choosing.regrets(finished).set_index(["strategy", "rule"])
    seen = choosing.histories(finished)
    students, metrics = choosing.tables(finished)
    for strategy in ("FZ", "FT"):
        on_test = metrics[metrics.strategy == strategy].set_index("teacher").sort_index()
        half = list(on_test.ratio12.sort_values(kind="stable").index[:2])
        after = seen[(seen.strategy == strategy) & (seen.epochs == 1)].set_index("teacher").accuracy
        pick = max(half, key=lambda name: after[name])
        taught = students[students.strategy == strategy].set_index("teacher").accuracy
        row = found.loc[strategy, "pilots, half by R12"]
        assert row.regret == pytest.approx(100 * (taught.max() - taught[pick]))
        assert row.cost == pytest.approx(2 * 1 / (2 * 3))  # two of three students, one epoch of two


def test_a_group_that_lacks_a_teacher_is_left_out_and_the_summary_is_sorted(finished):
    (finished.folder / "distill/birds/FT/resnet/students/small/kd/record.json").unlink()
    found = choosing.regrets(finished)
    assert set(found.strategy) == {"FZ"}
    summary = choosing.summarize(found)
    assert summary.regret.is_monotonic_increasing and summary.low.isna().all()
    assert choosing.summarize(found.iloc[:0]).empty


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


def test_the_support_of_a_metric_is_its_mean_rho_over_complete_datasets():
    support = choosing.support(*tables("123456"))
    by_metric = support.set_index("metric")
    assert support.metric.iloc[0] == "tac" and by_metric.rho["tac"] == pytest.approx(1)
    assert by_metric.rho["ratio12"] == pytest.approx(-1) and (support.datasets == 6).all()
    assert (choosing.support(*tables("123456", lost={("3", "a")})).datasets == 5).all()
    assert choosing.support(pd.DataFrame(), pd.DataFrame()).empty


def test_the_rule_is_picked_on_the_students_of_the_recipe_where_six_datasets_have_them():
    students, metrics = tables("123456")
    reverse = students.assign(strategy="FT", accuracy=1 - students.accuracy)
    students = pd.concat([students.assign(strategy="FZ"), reverse])
    metrics = pd.concat([metrics.assign(strategy="FZ"), metrics.assign(strategy="FT")])
    study = load("photos")

    def best(recipe, students):
        return choosing.support_of(recipe, study, students, metrics).set_index("metric").rho

    assert best("FZ", students)["tac"] == 1 and best("FZ", students)["ratio12"] == -1
    assert best("FT", students)["tac"] == -1 and best("FT", students)["ratio12"] == 1
    assert best("CAL", students)["tac"] == 0 and best("CAL", students)["ratio12"] == 0
    few = students[(students.strategy == "FZ") | (students.dataset < "3")]
    assert best("FT", few)["tac"] == pytest.approx(4 / 6)


def test_metrics_that_see_the_student_are_no_rule():
    students, metrics = tables("123456")
    seen = students.assign(pilot=students.accuracy, agreement=students.accuracy)
    support = choosing.support(seen, metrics)
    assert not {"pilot", "agreement"} & set(support.metric)


def test_the_committed_rules_are_those_of_the_records(monkeypatch, tmp_path):
    monkeypatch.delenv("FGKD_RUNS", raising=False)
    records.write_table(choosing.rules(load("photos")), tmp_path / "rules.csv")
    assert (tmp_path / "rules.csv").read_text() == (PROJECT / "runs/photos/tables/rules.csv").read_text()
