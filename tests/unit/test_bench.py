"""The benchmark at a tiny size: parts compare what they say, the peer computes our loss, nothing is left."""

import json
import os

import measure
import pytest
import torch

from fgkd import cli
from fgkd.distillation import losses, training
from fgkd.study import Sizes, StudyError

CPU = torch.device("cpu")
TINY = measure.Size(
    images=8,
    classes=4,
    views=Sizes(resize=36, crop=32),
    batch=4,
    epochs=1,
    small="test_resnet",
    large="test_byobnet",
    unmeasured=0,
    turns=2,
    long_turns=1,
    photos=8,
    photo_views=Sizes(resize=40, crop=32),
    logits=(1000, 20),
    view=(300, 20),
    growth=4,
)


@pytest.fixture(scope="module")
def found():
    """All parts, measured once, and the environment's results folder before and after."""
    before = os.environ["FGKD_RUNS"]
    return measure.measure(CPU, size=TINY), before, os.environ["FGKD_RUNS"]


def test_every_part_has_rows_of_positive_numbers_in_order(found):
    rows, numbers = found[0]["rows"], ("taken", "beside", "ratio", "low", "high")
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(measure.PARTS)
    assert all(row[name] > 0 for row in rows for name in numbers)
    assert all(row["low"] <= row["ratio"] <= row["high"] and row["what"] != row["against"] for row in rows)


def test_the_goals_are_those_of_steps_views_metrics_and_growth(found):
    goals = {(row["part"], row["goal"].partition(";")[0]) for row in found[0]["rows"] if row["goal"]}
    assert goals == {
        ("step", "at most 1.10"),
        ("views", "at least 10"),
        ("metrics", "at most 4"),
        ("metrics", "at most 100 MB"),
        ("growth", "at most 4"),
    }
    growth = [row["what"] for row in found[0]["rows"] if row["part"] == "growth"]
    assert growth == [
        f"4 times the {kind}" for kind in ("images", "classes", "epochs", "teachers", "students")
    ]


def test_the_table_has_a_line_a_row_and_names_machine_and_load(found):
    lines = measure.table(found[0]).splitlines()
    assert f"torch {torch.__version__}" in lines[0] and "load " in lines[0]
    assert [line.count("|") for line in lines[2:]] == [9] * (2 + len(found[0]["rows"]))


def test_the_user_s_results_folder_is_in_force_again(found):
    assert found[1] == found[2]


def test_works_take_turns_and_a_ratio_is_the_median_of_those_of_the_turns(tmp_path):
    told = []
    with measure.tqdm(disable=True) as bar:
        place = measure.Bench(CPU, measure.Size(unmeasured=1), tmp_path, bar)
        seconds = place.turns({name: lambda name=name: told.append(name) for name in "ab"}, 2)
    assert told == ["a", "b"] * 3 and all(values.shape == (2,) for values in seconds.values())
    row = place.row(
        {"a": torch.tensor([2.0, 9.0, 4.0]).numpy(), "b": torch.tensor([1.0, 1.0, 4.0]).numpy()}, "a", "b"
    )
    assert (row.taken, row.beside, row.ratio, row.low, row.high) == (4, 1, 2, 1.5, 5.5)


def test_timm_s_task_minimises_what_our_students_do(tmp_path, monkeypatch):
    sums = []

    def fit(model, images, objective, *_, **options):
        index = torch.arange(4)
        x = images.batch(index, images.epoch(1, 0))
        sums.append(sum(objective(model.eval(), x, 0, index)[1].values()).item())

    monkeypatch.setattr(training, "fit_images", fit)
    with measure.tqdm(disable=True) as bar:
        place = measure.Bench(CPU, TINY, tmp_path, bar)
        images, teacher = place.pictures(8), place.teacher("test_resnet")
        measure._peer(place, "test_byobnet", teacher, images)()
        ours = training.distillation(images.labels, measure._asked(teacher), measure.KD)
        place.training(place.network("test_byobnet"), images, ours)()
    assert sums[0] == pytest.approx(sums[1], rel=1e-5) and losses.kd.__name__ == "kd"


def test_the_command_prints_json_of_one_part_and_refuses_an_unknown_one(monkeypatch, capsys):
    monkeypatch.setattr(measure.measure, "__kwdefaults__", measure.measure.__kwdefaults__ | {"size": TINY})
    assert cli.main(["bench", "--device", "cpu", "--only", "bank", "--json"]) == 0
    assert {row["part"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"bank"}
    assert cli.main(["bench", "--device", "cpu", "--only", "speed"]) == 2
    assert "part 'speed' is unknown: expected one of step, student, views" in capsys.readouterr().err
    with pytest.raises(StudyError, match="unknown"):
        measure.measure(CPU, only="speed")
