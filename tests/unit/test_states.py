"""What is left to run: by content, and the same whatever the folder, the machine and the neighbours."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fgkd import study as studies
from fgkd.analysis import records
from fgkd.data import datasets, photos
from fgkd.distillation import stages, training
from fgkd.engine import run, states, terminal
from fgkd.study import Job, StudyError

PHOTOS = {
    "datasets": {"garden": {"kind": "folder", "root": "photos"}},
    "pretext": ...,
    "strategies": ["FT"],
    "recipes.FT.epochs": 1,
    "recipes.student.epochs": 1,
    "teachers": {"resnet": {"model": "test_resnet"}, "efficientnet": {"model": "test_efficientnet"}},
}
DISTILL = Job("distill", "birds", "resnet", "FT")


@pytest.fixture(autouse=True)
def look_anew():
    """A process looks at photos once; here they change within one."""
    stages._load_dataset.cache_clear()


def photograph(folder):
    """Two classes of six photos each, in train/ and test/."""
    rng = np.random.default_rng(0)
    for top, number in (("train", 4), ("test", 2)):
        for name in ("aster", "rose"):
            (folder / top / name).mkdir(parents=True)
            for i in range(number):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
                    folder / top / name / f"{i}.png"
                )


def finish(study):
    """Run all jobs and mark them as ended, as their notebooks do."""
    frames = stages.study_tables(study)
    for stage in ("intro", "correlation", "report"):
        stages.write_study_tables(study, stage, frames if stage == "correlation" else {})
    for job in study.jobs():
        records.mark_done(study, job)


def anew(study):
    """The study as another process reads it, and what is left of it."""
    study = studies.load(study.file)
    datasets.look(study)
    return {c.id: reason for c, reason in states.left(study).items()}


@pytest.fixture
def garden(make_study, tmp_path):
    """A finished study of photos."""
    photograph(tmp_path / "photos")
    study = make_study(PHOTOS)
    finish(study)
    assert anew(study) == {}
    return study


def test_photos_that_changed_make_their_cells_stale_and_are_counted(garden, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "train" / "rose" / "0.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "train" / "rose" / "new.png")
    reasons = anew(garden)
    assert reasons.pop("data/garden") == "of 13 photos 2 are new, moved or changed, and 1 of before are gone"
    assert set(reasons.values()) == {"an input is recomputed"} and len(reasons) == len(garden.jobs()) - 1


@pytest.mark.parametrize("job", [Job("correlation"), Job("teacher", "garden", "resnet", "FT")])
def test_a_record_that_is_cut_short_is_named_for_what_it_is(garden, job):
    file = garden.path(job) / "record.json"
    file.write_bytes(file.read_bytes()[:-20])
    assert anew(garden)[job.id] == "its record is not whole, or another version's"


def test_photos_that_swapped_their_classes_make_their_cells_stale(garden, tmp_path):
    train = tmp_path / "photos" / "train"
    for a, b in (("aster", "other"), ("rose", "aster"), ("other", "rose")):
        (train / a).rename(train / b)
    assert anew(garden)["data/garden"] == "of 12 photos 8 are new, moved or changed, and 8 of before are gone"


def test_a_copy_of_the_photos_in_another_folder_is_the_same_study(garden, make_study, tmp_path):
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "photos")
    for file in (tmp_path / "elsewhere").rglob("*.png"):
        os.utime(file, (1, 1))
    assert anew(make_study(PHOTOS | {"datasets": {"garden": {"kind": "folder", "root": "elsewhere"}}})) == {}


def test_a_study_without_its_photos_is_done_by_its_records(garden, tmp_path):
    before = records.collect(garden)
    shutil.rmtree(tmp_path / "photos")
    for file in garden.folder.rglob("*"):
        if file.is_file() and file.name not in ("record.json", "result.json"):
            file.unlink()
    assert anew(garden) == {}
    assert all(
        frame.equals(before[name]) for name, frame in records.collect(studies.load(garden.file)).items()
    )
    distill = Job("distill", "garden", "resnet", "FT")
    (garden.path(garden.student_jobs(distill)[0]) / "record.json").unlink()
    assert list(anew(garden)) == [
        "teacher/garden/FT/resnet",
        "bank/garden/FT/resnet",
        "distill/garden/FT/resnet",
    ]
    (garden.path(Job("report")) / "result.json").unlink()
    message = r"root '.*photos' is not a folder.*3 of the 4 notebooks that are left need these photos"
    with pytest.raises(StudyError, match=f"garden: {message}"):
        study = studies.load(garden.file)
        run.check_inputs(study, run.jobs_to_run(study))


def test_the_photos_are_read_once(garden, monkeypatch):
    monkeypatch.setattr(photos, "digest", lambda path: pytest.fail(f"{path} is read again"))
    assert anew(garden) == {}


def test_a_new_student_or_loss_runs_itself_and_the_banks_that_it_reads(finished, make_study):
    finish(finished)
    for bank in finished.folder.rglob("views"):
        shutil.rmtree(bank)
    for change, words in (
        ({"students.other": {"model": "test_resnet"}}, "student other with loss kd is new"),
        ({"losses": {"pkt": {"strategies": ["FT"]}}}, "student small with loss pkt is new"),
    ):
        study = make_study(change)
        left = {c.id: reason for c, reason in states.left(study).items()}
        where = "FT" if "losses" in change else ""
        banks = {c.id for c in study.jobs() if c.stage == "bank" and where in c.id}
        assert {
            k
            for k, reason in left.items()
            if "its views, deleted after their last student, are needed" in reason
        } == banks
        assert left["distill/birds/FT/resnet"] == words and not any(
            k.startswith(("data", "teacher")) for k in left
        )
    before = {f: f.stat().st_mtime_ns for f in finished.folder.rglob("record.json") if "students" in str(f)}
    result = stages.distill(study, "birds", "resnet", "FT")
    assert list(result.students) == [("small", "kd"), ("small", "pkt")]
    assert before == {f: f.stat().st_mtime_ns for f in before}


def test_another_learning_rate_of_the_students_repeats_them_and_no_teacher(finished, make_study):
    finish(finished)
    study = make_study({"recipes.student.lr": 0.002})
    stages_left = {job.stage for job in states.left(study)}
    assert "distill" in stages_left and not stages_left & {"data", "teacher", "bank"}


def test_tgda_beside_cal_leaves_cals_students_and_needs_crops_of_its_bank(make_study):
    cal = {
        "strategies": ["CAL"],
        "teachers": {"resnet": {"model": "test_resnet"}},
        "pretext": ...,
        "recipes.CAL": {"epochs": 1, "maps": 2},
    }
    finish(make_study(cal))
    left = {
        c.id: reason for c, reason in states.left(make_study(cal | {"strategies": ["CAL", "TGDA"]})).items()
    }
    assert left.pop("bank/birds/CAL/resnet") == "TGDA needs its crop and drop views"
    assert left.pop("distill/birds/TGDA/resnet") == "never ran" and set(left) == {
        "study/correlation",
        "study/report",
    }
    assert anew(make_study(cal)) == {}


def test_names_that_look_alike_share_no_folder(make_study):
    study = make_study(
        {
            "students": {"s": {"model": "test_resnet"}, "s-a": {"model": "test_byobnet"}},
            "losses": {"a-kd": {"loss": "pkt"}},
            "strategies": ["FT"],
            "recipes.student.epochs": 1,
        }
    )
    result = stages.distill(study, "birds", "resnet", "FT")
    assert len({r.folder for r in result.students.values()}) == len(result.students) == 4
    logits = result.logits()
    assert not np.array_equal(logits["s", "a-kd"], logits["s-a", "kd"])


def test_a_weights_file_with_another_time_is_the_same(make_study, tmp_path):
    (file := tmp_path / "a.safetensors").write_bytes(b"one")
    study = make_study({"teachers.resnet.weights": "a.safetensors"})
    before = [study.fingerprint(c) for c in study.jobs()]
    os.utime(file, (1, 1))
    assert before == [study.fingerprint(c) for c in study.jobs()]


def test_data_are_loaded_once_a_process(tiny, monkeypatch):
    loads, load = [], datasets.load
    monkeypatch.setattr(datasets, "load", lambda *given: (loads.append(given), load(*given))[1])
    stages.bank(tiny, "birds", "resnet", "FT")
    stages.distill(tiny, "birds", "resnet", "FT")
    assert len(loads) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_stages_that_compute_on_no_device_run_where_the_studys_gpu_is_absent(make_study):
    study = make_study({"device": "cuda"})
    stages.data(study, "birds")
    stages.write_study_tables(study, "intro", {})
    stages.write_study_tables(study, "correlation", {})
    assert records.record(study, Job("data", "birds"))["provenance"]["device"] == "cpu"
    with pytest.raises(StudyError, match="device is 'cuda', but PyTorch sees no GPU"):
        stages.teacher(study, "birds", "resnet", "FT")


@pytest.mark.fault("the baseline diverges")
def test_a_baseline_that_diverges_takes_no_teachers_students_along(finished, monkeypatch, capsys):
    result = stages.distill(finished, "birds", "none", "CE")
    assert stages.baseline(finished, "birds").to_dict() == result.rows.set_index("student").accuracy.to_dict()
    (result.students["small", "ce"].folder / "record.json").unlink()
    plain = training.cross_entropy

    def spoilt(labels):
        objective = plain(labels)
        return lambda *given: (objective(*given)[0], {"ce": objective(*given)[1]["ce"] * float("nan")})

    monkeypatch.setattr(training, "cross_entropy", spoilt)
    assert stages.baseline(finished, "birds").empty
    assert (
        "there is no student without a teacher to compare with: small from none CE ce diverged"
        in capsys.readouterr().out
    )


def test_an_online_study_has_the_banks_metrics_and_stores_a_few_views(make_study, monkeypatch):
    monkeypatch.setattr(stages, "SHOWN_VIEWS", 1)
    stored, online = make_study({}, "stored"), make_study({"online": True}, "online")
    (result, bank), (other, few) = (stages.bank(study, "birds", "resnet", "FT") for study in (stored, online))
    assert result.rows.equals(other.rows) and len(bank.files) == 2
    assert len(few.files) == 1 and few.logits(0).shape == (24, 4)
    assert torch.equal(few.logits(0), bank.logits(0))
    frames = stages.study_tables(online)
    assert len(frames["metrics"]) == 6 and not frames["correlations"].empty
    assert Job("bank", "birds", "resnet", "FT") in online.jobs() and online.before(DISTILL) == (
        Job("teacher", "birds", "resnet", "FT"),
    )


def test_students_see_no_more_views_than_they_ask_for_and_share_them(make_study, monkeypatch):
    study = make_study(
        {"recipes.student": {"epochs": 5, "batch_size": 8, "optimizer": "adamw", "lr": 0.001, "views": 2}}
    )
    drawn, epoch = [], training.Images.epoch
    monkeypatch.setattr(
        training.Images,
        "epoch",
        lambda self, seed, view: (drawn.append((seed, view)), epoch(self, seed, view))[1],
    )
    result = stages.distill(study, "birds", "resnet", "FT")
    seed = study.seed_for("student views", "birds")
    assert len(result.table("history")) == 5 and {view for s, view in drawn if s == seed} == {0, 1}
    assert [view for s, view in drawn if s == seed][-5:] == [0, 1, 0, 1, 0]


def test_kd_with_its_own_temperature_and_beta_is_what_a_study_of_these_gives(make_study):
    tuned = make_study({"losses": {"tuned": {"loss": "kd", "temperature": 4, "beta": 1}}}, "tuned")
    plain = make_study({"distillation": {"temperature": 4, "beta": 1}}, "plain")
    one, other = (
        stages.distill(tuned, "birds", "resnet", "FT"),
        stages.distill(plain, "birds", "resnet", "FT"),
    )
    assert np.array_equal(one.logits()["small", "tuned"], other.logits()["small", "kd"])
    assert not np.array_equal(one.logits()["small", "kd"], one.logits()["small", "tuned"])


def test_a_teacher_whose_weights_are_gone_is_named_before_it_trains_anew(finished, make_study, capsys):
    finish(finished)
    for file in (*finished.folder.rglob("model.safetensors"), *finished.folder.rglob("views/*")):
        file.unlink()
    for views in finished.folder.rglob("views"):
        views.rmdir()
    assert states.left(finished) == {}
    left = {
        c.id: reason
        for c, reason in states.left(make_study({"students.other": {"model": "test_resnet"}})).items()
    }
    assert (
        left["teacher/birds/FT/resnet"]
        == left["teacher/pretext/pretext/byobnet"]
        == "its record is here, but not its weights, which are needed now"
    )
    stages.teacher(finished, "birds", "resnet", "FT")
    assert (
        "teacher/birds/FT/resnet has its record, but not model.safetensors, needed now: it is computed anew"
        in capsys.readouterr().out
    )


def test_a_packed_study_is_done_elsewhere_and_what_runs_there_goes_before_it(
    finished, make_study, monkeypatch
):
    finish(finished)
    before = records.collect(finished)
    packed = records.pack(finished)
    lines = packed.read_text().splitlines()
    for path in finished.folder.iterdir():
        if path != packed:
            shutil.rmtree(path)
    assert records.pack(finished).read_text().splitlines() == lines == sorted(lines)
    assert states.left(finished) == {} and records.missing(finished) == []
    assert all(frame.equals(before[name]) for name, frame in records.collect(finished).items())
    study = make_study({"students.other": {"model": "test_resnet"}})
    left = {job.id for job in states.left(study)}
    assert "teacher/birds/FT/resnet" in left and "data/birds" not in left
    teacher = Job("teacher", "birds", "resnet", "FT")
    records.unpack(study, teacher)  # as before it runs
    assert states.state(study, teacher)["state"] == "waiting" and records.record(study, teacher)
    records.retract(study.path(teacher))  # as a run that is killed leaves it
    assert records.record(study, teacher) is None and states.left(make_study())[teacher]
    packed.write_text("\n".join([lines[0][:-9], "5", "[]", "null", *lines[1:]]))
    assert records.missing(study) and sum(record is not None for record in stored(finished)) == len(lines) - 2


def stored(study):
    return [records.find(study, part) for job in study.jobs() for part in records.record_jobs(study, job)]


TEXTS = ["5", '"x"', "[]", "{}", "null", "[" * 3000, "NaN", "9" * 5000, "", "\x00", '{"a": 1']
SHAPES = {
    "result.json": [{"fingerprint": 5}, {"fingerprint": [1], "rows": None}],
    "exit.json": [{"exit_status": None, "peak_memory_mb": 1}, {"exit_status": "x", "peak_memory_mb": []}],
    "progress.json": [{"what": 5}, {"epoch": "x", "epochs": None}, {"what": "x", "epoch": 1, "epochs": 2}],
    "03_teacher.ipynb": [
        {"metadata": None},
        {"metadata": {"papermill": 5}},
        {"metadata": {"papermill": {"exception": True, "end_time": 5, "duration": "x"}}, "cells": 5},
        {"metadata": {"papermill": {"exception": True}}, "cells": [None, {"outputs": 5}, {"outputs": [7]}]},
        {"metadata": {"papermill": {"exception": True}}, "cells": [{"outputs": [{"output_type": "error"}]}]},
    ],
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.fault("a job's file of another shape")
def test_a_file_of_any_shape_leaves_the_status_and_the_plan(finished, capsys, name):
    finish(finished)
    job = Job("teacher", "birds", "resnet", "FT")
    log = finished.path(job) / "03_teacher.ipynb"
    for value in (*TEXTS, *map(json.dumps, SHAPES[name])):
        if name == "exit.json":
            log.write_text(json.dumps({"metadata": {"papermill": {"exception": True}}}))
        (finished.path(job) / name).write_text(value)
        row = states.state(finished, job)
        states.why(finished, job, row)
        states.left(finished)
        terminal.show_status(finished, {job: row})
        assert states.running(finished, job) is None
        if row["state"] == "failed":
            terminal.show_failures({job: row})
    assert job.id in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cache/index.json", "photos.json"])
@pytest.mark.fault("a cache's file of another shape")
def test_a_cache_of_any_shape_is_built_anew(garden, name):
    file = garden.path(Job("data", "garden")) / name
    whole = json.loads(file.read_text())
    before = stages.data(garden, "garden").train
    texts = [*TEXTS, *(json.dumps(whole | {key: bad}) for key in whole for bad in (None, 5, "x", [[]], {}))]
    for text in texts:
        file.write_text(text)
        stages._load_dataset.cache_clear()
        found = stages.data(garden, "garden").train
        assert np.array_equal(found.images, before.images) and np.array_equal(found.labels, before.labels)
