"""The studies that `fgkd choose` writes: what they hold, whatever the order of the candidates."""

import numpy as np
import pytest
import yaml
from PIL import Image

from fgkd.choose import audit as audits
from fgkd.choose import task as tasks
from fgkd.choose.candidates import Candidate, Found
from fgkd.study import Job

TEACHERS = tuple(
    Candidate(name, f"test_{name}", "timm", 160, "in1k", "mit", 1.0, 10)
    for name in ("byobnet", "resnet", "vit")
)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """(task, audit) of three classes of five photos."""
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    rng = np.random.default_rng(0)
    for name in "abc":
        for i in range(5):
            file = tmp_path / "garden" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (140, 128, 3), dtype=np.uint8)).save(file)
    task = tasks.set_up(
        photos=str(tmp_path / "garden"), student="lcnet_035", device="cpu", out=str(tmp_path / "out")
    )
    audit = audits.look(task.photos, task.folder / "audit.json")
    audits.link(audit, task.folder)
    return task, audit


def test_the_selection_study_sees_the_training_photos_alone(asked):
    task, audit = asked
    study = tasks.selection(task, audit, Found(TEACHERS, {}))
    assert study.folder == task.folder / "selection" and list(study.teachers) == ["byobnet", "resnet", "vit"]
    assert (study.views.resize, study.views.crop) == (128, 112)
    assert study.student("student").resolution == 96
    assert {teacher.resolution for teacher in study.teachers.values()} == {160}
    names = {path.resolve() for path in (task.folder / "selection_photos").rglob("*.png")}
    tested = {path.resolve() for path in (task.folder / "photos/test").rglob("*.png")}
    assert len(names) == 12 and len(tested) == 3 and not names & tested
    assert study.kd(study.losses["gentle"]).temperature == 4


def test_a_teachers_result_does_not_depend_on_the_other_candidates_or_their_order(asked):
    task, audit = asked
    job = Job("teacher", "garden", "resnet", "FZ")
    prints = set()
    for teachers in (TEACHERS, TEACHERS[::-1], TEACHERS[1:2]):
        prints.add(tasks.selection(task, audit, Found(teachers, {})).fingerprint(job))
    assert len(prints) == 1


def test_students_of_small_sets_take_1200_steps_up_to_200_epochs(asked):
    task, audit = asked
    recipe = tasks.study(task, audit, Found(TEACHERS, {}), tasks.PAPER_KD).recipes["student"]
    assert recipe.epochs == 200 and recipe.warmup_steps == 20  # a step an epoch
    audit.photos.loc[:, "use"] = "train"
    many = audits.Audit(audit.root, audit.photos.loc[audit.photos.index.repeat(100)], False)
    recipe = tasks.study(task, many, Found(TEACHERS, {}), tasks.PAPER_KD).recipes["student"]
    assert recipe.epochs == 40 and recipe.warmup_steps == 100  # 47 steps an epoch would do with 26


def test_the_students_own_pretrained_network_is_tuned_at_the_students_size_beside_the_study(asked):
    task, audit = asked
    own = Candidate("lcnet", "lcnet_050", "timm", 224, "in1k")
    study = tasks.study(task, audit, Found(TEACHERS, {}), tasks.GENTLE_KD)
    tuned = tasks.finetuned(task, audit, own)
    assert tuned.folder == study.folder and tuned.teacher(tasks.FINETUNED).resolution == 96
    assert tuned.strategies == ("FT",) and study.distillation.temperature == 4
    assert tuned.fingerprint(Job("data", "garden")) == study.fingerprint(Job("data", "garden"))


def test_each_file_says_what_wrote_it_and_is_plain_yaml(asked):
    task, audit = asked
    study = tasks.study(task, audit, Found(TEACHERS, {}), tasks.PAPER_KD)
    with open(study.file) as file:
        text = file.read()
    assert text.startswith("# Written by `fgkd choose`") and str(task.folder) not in text
    assert yaml.safe_load(text)["datasets"] == {"garden": {"kind": "folder", "root": "photos"}}
