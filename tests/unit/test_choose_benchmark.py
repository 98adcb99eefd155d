"""What choosing gains, as `benchmarks/choosing.py` reads it from a study's records."""

import choosing
import pytest

from fgkd.analysis.groups import GROUP
from fgkd.choose import evidence


def test_each_rules_regret_is_that_of_the_student_whom_it_picks(finished):
    found = choosing.regrets(finished)
    students, metrics = evidence.tables(finished)
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
    students, metrics = evidence.tables(finished)
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
