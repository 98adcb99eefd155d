"""Cost estimates: passes are those that happen, hours those that went by; absurd throughputs are named."""

import json
from collections import Counter

import pytest
import torch

from fgkd import cli
from fgkd.analysis import records
from fgkd.distillation import stages
from fgkd.engine import cost
from fgkd.models import classifier
from fgkd.study import PROJECT, Job, StudyError, load

ALL = {
    "strategies": ["FZ", "FT", "CAL", "TGDA"],
    "recipes.CAL": {"epochs": 1, "batch_size": 12, "lr": 0.01, "maps": 2},
    "losses": {"pkt": {"strategies": ["TGDA"]}},
    "teachers": {"byobnet": {"model": "test_byobnet.r160_in1k", "weights": "pretext"}},
}


@pytest.mark.parametrize("change", [{}, {"online": True}], ids=["bank", "online"])
def test_every_image_that_passes_through_a_network_is_counted(make_study, monkeypatch, change):
    study = make_study(ALL | {"students.small.model": "test_resnet"} | change)
    passed = Counter()
    normalize = classifier.Classifier.normalize

    def count(model, images):  # a network normalises each batch that it is fed, once
        passed[
            {"ByobNet": "test_byobnet.r160_in1k", "ResNet": "test_resnet"}[type(model.net).__name__],
            "train" if torch.is_grad_enabled() else "forward",
        ] += len(images)
        return normalize(model, images)

    monkeypatch.setattr(classifier.Classifier, "normalize", count)
    for recipe in ("FZ", "FT", "CAL"):
        stages.bank(study, "birds", "byobnet", recipe)
    stages.study_tables(study)
    expected = sum((cost.passes(study, job) for job in study.jobs()), Counter())
    assert {k: n for k, n in expected.items() if k[1] == "train"} == {
        k: n for k, n in passed.items() if k[1] == "train"
    }
    checks = {
        "test_byobnet.r160_in1k": 4 + (6 if study.online else 0),
        "test_resnet": 2,
    }  # FZ looks at two images twice, a further loss at two for its widths
    assert {k: n + checks[k[0]] for k, n in expected.items() if k[1] == "forward"} == {
        k: n for k, n in passed.items() if k[1] == "forward"
    }


def test_passes_by_hand(make_study):
    study = make_study(ALL)  # 24 training and 16 test images; students: 2 epochs
    b = "test_byobnet.r160_in1k"
    jobs = {
        ("teacher", "FZ"): {(b, "forward"): 24 + 24 + 16},
        ("teacher", "FT"): {(b, "train"): 48, (b, "forward"): 24 + 16},
        ("teacher", "CAL"): {(b, "train"): 3 * 24, (b, "forward"): 24 + 9 * 16},
        ("bank", "FT"): {(b, "forward"): 48},
        ("bank", "CAL"): {(b, "forward"): 3 * 48},
        ("distill", "FT"): {("test_byobnet", "train"): 48, ("test_byobnet", "forward"): 16},
        ("distill", "TGDA"): {("test_byobnet", "train"): 2 * 3 * 48, ("test_byobnet", "forward"): 2 * 16},
    }
    for (stage, strategy), expected in jobs.items():
        assert cost.passes(study, Job(stage, "birds", "byobnet", strategy)) == expected, (stage, strategy)
    assert cost.passes(study, Job("distill", "birds", "none", "CE")) == jobs["distill", "FT"]
    searched = make_study(
        ALL
        | {
            "recipes.FT.lr": [0.1, 0.01],
            "recipes.CAL.lr": [0.1, 0.01],
            "recipes.student.lr": [0.1, 0.01, 0.001],
        }
    )  # 19 to train on, 5 held out
    assert cost.passes(searched, Job("teacher", "birds", "byobnet", "FT")) == {
        (b, "train"): 2 * (24 + 2 * 19),
        (b, "forward"): 24 + 16 + 2 * 5,
    }
    assert cost.passes(searched, Job("teacher", "birds", "byobnet", "CAL")) == {
        (b, "train"): 3 * (24 + 2 * 19),
        (b, "forward"): 24 + 9 * 16 + 8 * 2 * 5,
    }
    assert cost.passes(searched, Job("distill", "birds", "byobnet", "FT")) == {
        ("test_byobnet", "train"): 2 * (24 + 3 * 19),
        ("test_byobnet", "forward"): 16 + 3 * 5,
    }
    assert not cost.passes(study, Job("report")) and not cost.passes(study, Job("data", "birds"))


def test_a_finished_study_took_the_hours_that_went_by(finished):
    seconds = sum(
        r["provenance"]["seconds"] for c in finished.jobs() if c.row.table for r in records.of(finished, c)
    )
    estimate = cost.estimate(finished, [])
    assert estimate["hours"] == pytest.approx(seconds / 3600) and estimate["hours_left"] == 0
    assert estimate["device"] == "cpu" and estimate["without_throughput"] == []


def test_hours_are_passes_over_throughputs_and_unknown_where_one_is_missing(make_study, tmp_path):
    study = make_study()
    none = cost.estimate(study, study.jobs())
    assert (
        none["device"] is None
        and none["hours"] == 0
        and len(none["without_throughput"]) == len(none["networks"]) == 4
    )
    images = {row["model"]: row["train"] + row["forward"] for row in none["networks"]}
    assert cost.estimate(study, [], "50")["hours"] == pytest.approx(sum(images.values()) / 50 / 3600)
    (tmp_path / "mine.json").write_text(
        json.dumps({"device": "A100", "test_resnet": 10, "test_efficientnet": {"train": 5}})
    )
    some = cost.estimate(study, study.jobs(), str(tmp_path / "mine.json"))
    assert some["device"] == "A100" and some["hours"] == some["hours_left"] == pytest.approx(
        images["test_resnet"] / 10 / 3600
    )
    assert set(some["without_throughput"]) == set(images) - {"test_resnet"}


def test_what_is_given_counts_before_what_was_measured(finished, tmp_path):
    (tmp_path / "mine.yaml").write_text("test_resnet: {train: 1}")
    rows = {
        name: {r["model"]: r for r in cost.estimate(finished, [], given)["networks"]}
        for name, given in (("measured", None), ("given", str(tmp_path / "mine.yaml")))
    }
    assert rows["given"]["test_resnet"]["train_per_second"] == 1
    assert (
        rows["given"]["test_resnet"]["forward_per_second"]
        == rows["measured"]["test_resnet"]["forward_per_second"]
    )
    assert (
        cost.estimate(finished, [], str(tmp_path / "mine.yaml"))["device"]
        == "the device of mine.yaml, else measured on cpu"
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("0", "--images-per-second is 0.0: expected more than 0"),
        ("nan", "expected more than 0"),
        ("inf", "expected more than 0"),
        ("fast", "is 'fast': expected a number, or a YAML"),
        ("a: [", "expected a number, or a YAML"),
        ("- 3", "holds list: expected '<model>: <images a second>'"),
        ("resnet18: much", "train of resnet18 is 'much': expected more"),
        ("resnet18: true", "train of resnet18 is True"),
        ("resnet18: {backward: 3}", "'backward' of resnet18 is unknown: expected train or forward"),
        ("resnet18: {train: -1}", "train of resnet18 is -1: expected more than 0 images a second"),
    ],
)
def test_a_throughput_that_makes_no_sense_is_refused(tiny, tmp_path, text, message):
    (file := tmp_path / "rates.yaml").write_text(text)
    with pytest.raises(StudyError, match=message):
        cost.estimate(tiny, [], text if text.isalnum() else str(file))


def test_a_folder_that_was_not_read_yet_is_said_not_to_be_counted(make_study, capsys):
    study = make_study({"datasets.mine": {"kind": "folder", "root": "photos"}})
    assert cost.estimate(study, [])["not_counted"] == ["mine"]
    assert cli.main(["plan", study.file, "--images-per-second", "100"]) == 0
    shown = capsys.readouterr().out
    assert (
        "not counted: mine, whose photos are not there" in shown
        and "time of a device of 100 images a second: " in shown
    )


def test_a_plan_without_any_throughput_shows_images_and_no_hours(tiny, capsys):
    assert cli.main(["plan", tiny.file]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("test_resnet")).split()
    assert (
        row == ["test_resnet", "48", "152", "-", "/", "-", "-", "-"]
        and "no throughput is known of these" in shown
        and "time of" not in shown
    )


@pytest.mark.parametrize("card, gigabytes", [("rtx3090", 936), ("h100", 3350), ("h200", 4800)])
def test_a_card_s_file_names_all_of_the_paper_s_networks_but_van_and_is_the_published_one_by_its_memory(
    card, gigabytes
):
    folder, study = PROJECT / "benchmarks", load("paper-fast")
    published, rates = (
        cost.given_rates(str(folder / f"{name}.yaml"), study)[0] for name in ("rtx3090", card)
    )
    networks = {model.model for model in (*study.teachers.values(), *study.students.values())}
    assert {model for model, _ in rates} == networks - {"van_b3"} and len(rates) == 2 * (len(networks) - 1)
    assert rates == {key: pytest.approx(rate * gigabytes / 936, rel=0.005) for key, rate in published.items()}


def test_a_search_at_a_fifth_of_the_epochs_takes_a_fifth_of_its_passes(make_study):
    recipe = {"epochs": 10, "lr": [0.1, 0.01], "batch_size": 8}
    whole = make_study({"recipes.FT": recipe})
    fifth = make_study({"recipes.FT": recipe | {"search_epochs": 2}})
    images = [
        cost.passes(s, Job("teacher", "birds", "resnet", "FT"))["test_resnet", "train"]
        for s in (whole, fifth)
    ]
    assert images == [10 * 24 + 10 * 2 * 19, 10 * 24 + 2 * 2 * 19]
