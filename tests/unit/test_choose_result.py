"""What `fgkd choose` concludes, when it warns, and what it refuses before it begins."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fgkd.choose import page, result, students
from fgkd.choose import task as tasks
from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Candidate, Found
from fgkd.choose.ranking import Ranking, Rule
from fgkd.choose.result import Choice
from fgkd.choose.students import ALONE, TUNED, VERIFIED, Pilots, Verification
from fgkd.choose.task import PAPER_KD, Task
from fgkd.study import StudyError

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def choose(tmp_path):
    """(changes) -> a choice of five candidates in which nothing speaks against the first, but for changes."""

    def make(
        names=NAMES,
        first=0.95,
        nonpositive=0.0,
        pretraining="in1k",
        parameters=10**7,
        verified=None,
        rival=0.1,
    ):
        metrics = dict.fromkeys(("tac", "ratio12", "ssp", "nll", "logme"), 0.5)
        rows = []
        for number, name in enumerate(names, 1):
            row = {"rank": number, "teacher": name, "r12_rank": number, "low": number, "high": number}
            row |= {"first": first if number == 1 else 0.0, "parameters": parameters}
            rows.append(row | {"ratio12_nonpositive": nonpositive} | metrics)
        mixed = {"a": "in21k"} if pretraining == "mixed" else {}
        found = Found(
            tuple(
                Candidate(name, name, "timm", 224, mixed.get(name, "in1k"), "mit", 40.0, parameters)
                for name in names
            ),
            {},
        )
        accuracy = {"from a": 0.6, ALONE: 0.4} if verified is None else verified
        table = [
            {"student": student, "why": "it", "accuracy": share, "low": share - 0.02, "high": share + 0.02}
            | {"gain": share - accuracy[ALONE], "gain_low": share - accuracy[ALONE] - 0.04}
            | {"gain_high": share - accuracy[ALONE] + 0.04, "teacher_accuracy": 0.8 if share != 0.4 else None}
            for student, share in accuracy.items()
        ]
        pilots = pd.DataFrame(
            {"epochs": 4, "of": 40, "teacher": [ALONE, "a", "b"], "accuracy": [0.1, 0.3, rival]}
        ).assign(train_accuracy=0.2, seconds=1.0)
        photos = pd.DataFrame(
            {"label": ["x", "y"] * 52, "use": ["train"] * 2 + ["held out"] * 100 + ["test"] * 2}
        ).assign(error="", path="p", name="x/p", digest=range(104), group=range(104), side=64)
        task = Task(
            Path("garden"), "lcnet_035", (), None, (), "FZ", 1.0, 1, 0, tmp_path, torch.device("cpu"), False
        )
        return Choice(
            task,
            Audit(Path("garden"), photos, True),
            found,
            Ranking(pd.DataFrame(rows), pd.DataFrame(), Rule("ratio12", "the paper's rule")),
            pd.DataFrame({"teacher": names, "images_per_second": 100.0, "minutes": 2.0}),
            Pilots(pilots, list(names), PAPER_KD, "", "T 2 and beta 10 are the paper's."),
            Verification(pd.DataFrame(table, columns=VERIFIED), 100, None, object()),
            "The student lies in `student/`.",
        )

    return make


def test_where_nothing_speaks_against_the_choice_nothing_is_said(choose):
    assert result.warn(choose()) == []


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"names": NAMES[:4]}, "Few candidates: among 4 even a perfect order may be chance; with 5"),
        ({"first": 0.5}, "An unstable order: a is the first of R12 in 50% of bootstrap samples"),
        ({"first": np.nan}, "How stable the order is was not measured"),
        (
            {"nonpositive": 0.02},
            "R12 means nothing where a second logit is 0 or negative, as in more than 1% of",
        ),
        ({"pretraining": "mixed"}, "Mixed pretraining (in1k, in21k)"),
        ({"rival": 0.25}, "on 100 held-out photos the lead of a over b may be chance"),
        ({"parameters": 1000}, "million weights) is larger than all candidates; the choice is one of them."),
        (
            {"verified": {"from a": 0.6, ALONE: 0.79}},
            "No head start: a itself names 80.0% of the test photos",
        ),
        ({"verified": {"from a": 0.42, ALONE: 0.4}}, "The gain over no teacher may be chance"),
        ({"verified": {"from a": 0.3, ALONE: 0.4}}, "The teacher does harm"),
        ({"verified": {"from a": 0.6, ALONE: 0.4, TUNED: 0.7}}, "fine-tuned, is 10.0 points better"),
    ],
)
def test_each_reason_not_to_trust_it_is_said(choose, changes, sentence):
    assert sum(sentence in warning for warning in result.warn(choose(**changes))) == 1


def test_a_student_is_compared_with_candidates_by_heads_for_the_photos_classes(choose):
    """With a head for ImageNet's classes lcnet_035 has 1.64 million weights, for two classes 0.37."""
    assert result.warn(choose(parameters=400_000)) == []
    assert "The student (0.37 million weights)" in result.warn(choose(parameters=360_000))[-1]


def test_the_answer_the_table_and_the_page_name_the_choice_and_its_costs(choose, tmp_path):
    choice = choose()
    concluded = result.conclude(choice)
    assert concluded["answer"][0].startswith(
        "Take a as the teacher of lcnet_035: its pilot names 30.0% of held-out"
    )
    assert "The student from a names 60.0% of 100 test photos" in concluded["answer"][2]
    assert "+20.0 points (+16.0 to +24.0): the choice paid" in concluded["answer"][2]
    table = pd.read_csv(tmp_path / "ranking.csv")
    assert list(table.teacher) == NAMES and list(table.place) == [1, 2, 3, 4, 5]
    assert table.student_accuracy[0] == 0.6 and table.student_accuracy[1:].isna().all()
    assert {"licence", "megabytes", "images_per_second", "minutes", "first", "pilot_accuracy"} <= set(table)
    values = json.loads((tmp_path / "choose.json").read_text())
    assert values["choice"] == "a" and values["verified"][1]["teacher_accuracy"] is None
    text = page.write(tmp_path).read_text()
    assert "Take a as the teacher" in text and "<script" not in text
    assert "The student lies in <code>student/</code>." in text


def test_without_verification_there_is_no_model_and_it_says_how_to_get_one(choose):
    choice = choose(verified={ALONE: 0.4})
    empty = Verification(pd.DataFrame(columns=VERIFIED), 100, None, None)
    assert "--verify 1" in students.describe(empty)
    assert result.hand_over(choice.task, empty).startswith("There is no model yet: --verify 1")


def test_the_interval_of_a_difference_is_that_of_the_photos_that_differ():
    first = np.repeat([True, True, False, False], [50, 20, 10, 20])
    second = np.repeat([True, False, True, False], [50, 20, 10, 20])
    low, high = students.paired_interval(first, second)
    error = 1.96 * np.sqrt((0.3 - 0.1**2) / 100)
    assert (low, high) == pytest.approx((0.1 - error, 0.1 + error), abs=0.02)
    assert students.paired_interval(first, first) == (0, 0)


# What is refused before anything is computed


def set_up(tmp_path, **changes):
    photos = tmp_path / "garden"
    (photos / "a").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(photos / "a/x.png")
    values = {"photos": str(photos), "student": "lcnet_035", "out": str(tmp_path / "out"), "device": "cpu"}
    return tasks.set_up(**values | changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"photos": "nowhere"},
            "'nowhere' is not a folder: expected one that holds a folder of photos per class",
        ),
        ({"student": "lcnet_0355"}, "model 'lcnet_0355' is not known to timm"),
        ({"recipe": "fzz"}, "--recipe is 'fzz'"),
        ({"minutes": -1.0}, "--minutes is -1.0: expected 0 or more"),
        ({"minutes": float("nan")}, "--minutes is nan"),
        ({"verify": -1}, "--verify is -1"),
        ({"plugins": "absent.py"}, "absent.py', which does not exist"),
        ({"out": "garden/out"}, "inside the photos: name a folder elsewhere"),
    ],
)
def test_a_wrong_wish_is_refused_in_one_sentence(tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError) as caught:
        set_up(tmp_path, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_student_sees_96_pixels_on_a_cpu_and_no_more_than_the_photos_have(tmp_path, monkeypatch):
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    task = set_up(tmp_path)
    assert (task.student_size(224), task.student_size(56)) == (96, 56)
    assert set_up(tmp_path, size=128).student_size(56) == 128
    assert task.dataset == "garden"


def test_a_file_as_the_folder_of_the_results_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises((StudyError, OSError), match="file"):
        set_up(tmp_path, out=str(tmp_path / "file"))
