"""The paper's matrix as a study file: it is the published one, and every value says where it is from.

It loads on a machine with neither data nor weights.
"""

import json
import math
import re

import pytest
import timm
import torch
from timm.layers import DropPath

from fgkd import cli
from fgkd import study as studies
from fgkd.analysis import paper
from fgkd.models import classifier

FILES = ["paper", "paper-fast"]


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A machine with neither data nor weights nor results."""
    for name in ("FGKD_DATA", "FGKD_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))


def load(name):
    return studies.load(str(studies.PROJECT / "runs" / f"{name}.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_it_is_the_paper_s_1216_runs_in_128_groups_of_8(name, capsys):
    assert cli.main(["plan", "--json", str(studies.PROJECT / "runs" / f"{name}.yaml")]) == 0
    counts = json.loads(capsys.readouterr().out)
    expected = {
        "pretext_trainings": 0,
        "teacher_trainings": 192,
        "distillations": 1024,
        "runs": 1216,
        "groups": 128,
        "ce_baselines": 24,
    }
    assert {key: counts[key] for key in expected} == expected
    assert counts["not_counted"] == [] and len(counts["networks"]) == 11
    if name == "paper":
        text = (studies.PROJECT / "runs" / "PAPER.md").read_text()
        rows = {
            f"| {row['train'] / 1e6:.1f} million | {row['forward'] / 1e6:.1f} million |"
            for row in counts["networks"]
        }
        assert all(row in text for row in rows) and all(
            f"{counts[key] / 1e9:.{digits}f} GB" in text
            for key, digits in (("largest_bank_bytes", 1), ("bank_bytes", 0))
        )


@pytest.mark.parametrize("name", FILES)
def test_its_networks_are_known_and_its_data_sets_and_teachers_are_those_of_the_published_tables(name):
    study = load(name)
    for model in (*study.teachers.values(), *study.students.values()):
        classifier.check_name(model.model)
        assert model.key == model.model.partition(".")[0]
    assert list(study.teachers) == paper.published("cal_teacher_accuracy").teacher.tolist()
    assert list(study.datasets) == paper.published("correlation_by_dataset").dataset.drop(8).tolist()
    assert [spec.kind for spec in study.datasets.values()] == list(study.datasets)
    assert {m.weights for m in study.students.values()} == {"none"} and study.students[
        "levit_128s"
    ].options == {"distilled": False}


def test_no_teacher_trains_with_stochastic_depth():
    """As in the released code; timm's Swin would drop blocks at rates of up to 0.1."""

    def active(model, options):
        with torch.device("meta"):
            net = timm.create_model(model, **options)
        return [part.drop_prob for part in net.modules() if isinstance(part, DropPath) and part.drop_prob]

    teachers = load("paper").teachers
    assert [key for key, spec in teachers.items() if active(spec.model, spec.options)] == []
    swin = teachers["swin_base_patch4_window7_224"]
    assert active(swin.model, {}) and not active(swin.model, swin.options)


def test_only_one_weights_file_is_to_be_provided_and_its_absence_is_said(capsys):
    assert [m.key for m in load("paper").teachers.values() if m.weights != "timm"] == ["van_b3"]
    assert cli.main(["plan", "paper"]) == 0
    assert re.search(
        r"lacking: weights '.*\$FGKD_WEIGHTS/.*' of 'van_b3' do not exist: "
        "a variable in it is not set: export it",
        capsys.readouterr().out,
    )
    assert cli.main(["run", "paper"]) == 2
    assert "FGKD_DATA" in capsys.readouterr().err  # a run asks for photos before weights


def test_its_recipes_are_those_of_the_paper():
    study = load("paper")
    teacher = {
        "epochs": 50,
        "batch_size": 8,
        "optimizer": "sgd",
        "weight_decay": 0,
        "momentum": 0.9,
        "warmup_steps": 500,
        "min_lr": 1e-5,
        "clip": 1,
        "maps": 32,
    }
    for name, grid in {
        "FT": (0.03, 0.01, 0.003, 0.001),
        "CAL": (0.03, 0.01, 0.003, 0.001),
        "FZ": (0.3, 0.1, 0.03, 0.01, 0.003),
    }.items():
        recipe = vars(study.recipes[name])
        assert {key: recipe[key] for key in teacher} == teacher and recipe["lr"] == grid
    student = study.recipes["student"]
    assert (student.optimizer, student.lr, student.weight_decay, student.epochs, student.batch_size) == (
        "adamw",
        0.005,
        0.05,
        50,
        8,
    )
    assert (
        study.views.resize,
        study.views.crop,
        study.distillation.temperature,
        study.distillation.beta,
    ) == (300, 224, 2, 10)
    assert list(study.losses) == ["dkd", "rkd", "pkt", "hint"]
    for loss in study.losses.values():
        settings = (loss.applies_to, loss.weight, loss.students, loss.strategies)
        assert settings == ("logits", 1.0, ("lcnet_035",), ("TGDA",))


def test_the_fast_one_differs_in_batch_size_rates_views_and_epochs_of_the_search_alone():
    slow, fast = load("paper"), load("paper-fast")
    assert {k for k, v in vars(fast).items() if v != vars(slow)[k]} == {"name", "file", "recipes"}
    for name, recipe in fast.recipes.items():
        before, factor = slow.recipes[name], 8 if recipe.optimizer == "sgd" else math.sqrt(8)
        assert {k for k, v in vars(recipe).items() if v != vars(before)[k]} - {"views", "search_epochs"} == {
            "batch_size",
            "lr",
            "warmup_steps",
            "min_lr",
        }
        searched = {"FT": 10, "CAL": 10}  # FZ searches on features that it computes once
        assert recipe.search_epochs == searched.get(name, 0) and recipe.views == (
            0 if name in searched else 10
        )
        assert recipe.batch_size == 8 * before.batch_size and recipe.warmup_steps == math.ceil(
            before.warmup_steps / 8
        )
        assert recipe.rates == pytest.approx(
            [factor * rate for rate in before.rates], rel=0.02
        ) and recipe.min_lr == pytest.approx(factor * before.min_lr, rel=0.02)


@pytest.mark.parametrize("name", FILES)
def test_every_value_says_whether_it_is_published_of_the_released_code_or_ours_and_why(name):
    for line in (studies.PROJECT / "runs" / f"{name}.yaml").read_text().splitlines():
        value, _, comment = line.partition("#")
        if value.strip() and not re.fullmatch(r"\s*[\w-]+:( &\w+)?\s*", value):  # a value, no heading
            assert re.match(r" (published|released code|ours: \w.*)", comment), line
