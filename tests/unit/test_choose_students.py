"""Pilots: successive halving under a budget, on real trainings of a tiny study."""

import math
import types

import pandas as pd
import pytest
import yaml

from fgkd import study as studies
from fgkd.choose import students
from fgkd.choose.task import GENTLE_KD, PAPER_KD
from fgkd.distillation import stages

NAMES = ["byobnet", "efficientnet", "resnet"]


@pytest.fixture
def selection(write_study):
    """A study as `fgkd choose` writes it, with four epochs of the student."""
    file = write_study(
        {
            "students": {"student": {"model": "test_byobnet"}},
            "strategies": ["FZ"],
            "recipes.student.epochs": 4,
            "losses": {"gentle": {"loss": "kd"} | GENTLE_KD},
        },
        name="selection",
    )
    return studies.load(str(file))


@pytest.fixture
def task(tmp_path):
    """(minutes) -> what pilots ask of a task; what it says goes to `said`."""

    def make(minutes=10.0):
        said = []
        return types.SimpleNamespace(
            dataset="birds", recipe="FZ", minutes=minutes, say=said.append, said=said
        )

    return make


COSTS = pd.DataFrame({"teacher": NAMES, "minutes": 0.01})


def ranked(order=NAMES):
    return types.SimpleNamespace(order=list(order))


def test_pilots_halve_the_better_half_and_go_on_with_the_same_trainings(selection, task):
    asked = task()
    found = students.pilot(asked, selection, ranked(), COSTS)
    assert list(found.table.teacher) == [students.ALONE, "byobnet", "efficientnet"]
    assert set(found.table.epochs) == {1} and set(found.table.of) == {4}
    assert found.left == "" and found.distillation in (PAPER_KD, GENTLE_KD)
    better = found.table.iloc[1:].sort_values("accuracy", ascending=False, kind="stable").teacher.iloc[0]
    assert found.order[0] == better and sorted(found.order) == NAMES and found.order[2] == "resnet"
    assert len(asked.said) == 4 and "T 4 and beta 1" in asked.said[-1]
    again = students.pilot(task(0.001), selection, ranked(), COSTS)  # what was computed is free
    pd.testing.assert_frame_equal(again.table, found.table)
    assert (again.order, again.distillation) == (found.order, found.distillation)


def test_a_pilot_that_goes_on_ends_where_one_without_a_break_does(selection):
    job = selection.job("distill", "birds", "none", "CE")
    job = selection.student_jobs(job)[0]
    first, second = stages.pilot(selection, job, 2), stages.pilot(selection, job, 4)
    whole = stages.distill(selection, "birds", "none", "CE").rows.iloc[0]
    assert first["epochs"] == 2 and second["accuracy"] == whole.accuracy
    assert second["train_accuracy"] == whole.train_accuracy


def test_a_pilots_row_is_computed_again_when_its_recipe_changes(selection, tmp_path):
    job = selection.student_jobs(selection.job("distill", "birds", "none", "CE"))[0]
    stages.pilot(selection, job, 1)
    raw = yaml.safe_load((tmp_path / "selection.yaml").read_text())
    raw["recipes"]["student"]["lr"] = 0.5
    (tmp_path / "selection.yaml").write_text(yaml.safe_dump(raw))
    changed = studies.load(str(tmp_path / "selection.yaml"))
    assert stages.pilot(changed, job, 1)["seconds"] > 0
    stored = studies.load(str(tmp_path / "selection.yaml")).path(job) / stages.PILOT
    assert changed.fingerprint(job) in stored.read_text()


def test_without_time_the_order_is_the_rankings_and_it_says_so(selection, task):
    found = students.pilot(task(0.0), selection, ranked(["resnet", "byobnet", "efficientnet"]), COSTS)
    assert found.order == ["resnet", "byobnet", "efficientnet"] and not len(found.table)
    assert found.left == "No pilot was run: --minutes is 0." and found.distillation == PAPER_KD
    slow = students.pilot(task(0.5), selection, ranked(), COSTS.assign(minutes=60.0))
    assert slow.left == "No pilot was run: the first takes longer than 0.5 minutes; give more --minutes."


def test_what_time_did_not_allow_is_named(selection, task, monkeypatch):
    monkeypatch.setattr(students._Halving, "seconds", property(lambda halving: 30.0))
    costs = COSTS.assign(minutes=[0.01, 60.0, 60.0])
    found = students.pilot(task(0.5), selection, ranked(), costs)
    assert found.left == (
        "Time ran out after 0.5 minutes: 1 of 2 pilots of 1 epochs were left (efficientnet); "
        "the same command goes on."
    )
    assert found.order[0] == "byobnet"


def test_pilots_that_leave_no_time_to_search_are_not_called_left(selection, task, monkeypatch):
    left = iter([30.0, 30.0, 30.0, 0.0])
    monkeypatch.setattr(students._Halving, "seconds", property(lambda halving: next(left)))
    found = students.pilot(task(0.5), selection, ranked(), COSTS)
    assert len(found.table) == 3 and found.left == ""
    assert found.searched == "T 2 and beta 10 are the paper's; no time was left to search others."


def test_a_student_that_diverges_is_last(selection, task, monkeypatch):
    own = stages.pilot

    def pilot(study, job, epochs):
        if job.teacher == "byobnet":
            raise FloatingPointError("diverged")
        return own(study, job, epochs)

    monkeypatch.setattr(stages, "pilot", pilot)
    found = students.pilot(task(), selection, ranked(), COSTS)
    assert found.order == ["efficientnet", "resnet", "byobnet"]
    assert math.isnan(found.table.set_index("teacher").accuracy["byobnet"])


def test_rungs_double_from_a_tenth_until_one_candidate_is_left():
    assert students.epochs_of_rungs(100, 2) == [10]
    assert students.epochs_of_rungs(100, 16) == [10, 20, 40, 80]
    assert students.epochs_of_rungs(100, 64) == [10, 20, 40, 80, 100]
