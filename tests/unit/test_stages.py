"""Stages: computed once, the same numbers anywhere, and restored after lost files or a killed run."""

import dataclasses
import functools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fgkd import metrics
from fgkd.analysis import correlation, records
from fgkd.distillation import check, checkpoint, jobs, stages, training
from fgkd.metrics import transfer
from fgkd.study import PRETEXT, Job, StudyError

TIMES = ["seconds", "peak_memory_mb", "commit"]
PLUGIN = """
import timm
from timm.models import register_model

@register_model
def fgkd_student_net(pretrained=False, **options):
    return timm.create_model("test_byobnet", **options)
"""
LOSS_PLUGIN = """
import torch
from fgkd.distillation.losses import loss

@loss
def fgkd_cubic(student, teacher, labels, *, power=3.0):
    assert labels.shape == student.shape[:1] and student.shape == teacher.shape
    return (student - teacher).abs().pow(power).mean()

@loss
class FGKD_Scaled(torch.nn.Module):
    def __init__(self, student_width, teacher_width, labels, *, scale=1.0):
        super().__init__()
        self.projection = torch.nn.Linear(student_width, teacher_width)
        self.scale = scale * len(labels)

    def forward(self, student, teacher, index):
        assert self.projection(student).shape == teacher.shape and index.shape == student.shape[:1]
        return 0 * self.projection(student).sum() + self.scale
"""


def stamps(study):
    return {f: f.stat().st_mtime_ns for f in study.folder.rglob("*") if f.is_file() and f.name != ".lock"}


def weights(run, loss="kd"):
    return load_file(run.students["small", loss].folder / "model.safetensors")


def test_a_second_call_computes_and_writes_nothing(finished):
    before = stamps(finished)
    stages.study_tables(finished)
    stages.load_teacher(finished, "birds", "byobnet", "FZ")
    assert stamps(finished) == before


def test_the_same_study_in_another_folder_gives_the_same_tables(
    finished_folder, make_study, monkeypatch, tmp_path
):
    study = make_study({"name": "elsewhere"})
    here = stages.study_tables(study)
    monkeypatch.setenv("FGKD_RUNS", str(finished_folder))
    there = records.collect(study.model_copy(update={"name": "tiny"}))
    assert here.keys() == there.keys() and len(here) == 7
    for name, frame in here.items():
        pd.testing.assert_frame_equal(
            frame.drop(columns=TIMES, errors="ignore"),
            there[name].drop(columns=TIMES, errors="ignore"),
            check_exact=True,
        )


def test_calling_the_last_stage_computes_what_it_needs_and_no_more(make_study):
    study = make_study({"recipes.FT.epochs": 1})
    run = stages.distill(study, "birds", "byobnet", "FT")
    done = {c.id for c in study.jobs() if records.is_complete(study, c)}
    assert done == {
        "data/birds",
        "data/pretext",
        "teacher/pretext/pretext/byobnet",
        "teacher/birds/FT/byobnet",
        "bank/birds/FT/byobnet",
        "distill/birds/FT/byobnet",
    }
    assert run.logits()["small", "kd"].shape == (16, 4) and len(run.table("history")) == 2


def test_rows_say_what_the_files_hold(finished):
    labels = stages.data(finished, "birds").test.labels
    for stage, call in {"teacher": stages.teacher, "distill": stages.distill}.items():
        run = call(finished, "birds", "resnet", "FT")
        logits = run.logits() if stage == "teacher" else run.logits()["small", "kd"]
        assert (
            run.rows["tac" if stage == "teacher" else "accuracy"].item()
            == (logits.argmax(1) == labels).mean()
        )
    agreement = (
        logits.argmax(1) == stages.teacher(finished, "birds", "resnet", "FT").logits().argmax(1)
    ).mean()
    assert run.rows.agreement.item() == agreement


def test_a_loaded_teacher_is_frozen_and_gives_the_logits_of_its_row(finished):
    model = stages.load_teacher(finished, "birds", "byobnet", "FT")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    test = training.Images(stages.data(finished, "birds").test, finished.views, torch.device("cpu"))
    assert np.array_equal(
        training.predict(model, test), stages.teacher(finished, "birds", "byobnet", "FT").logits()
    )


def test_a_pretext_teacher_starts_from_its_pretext_backbone(finished):
    before = load_file(finished.path(Job("teacher", "pretext", "byobnet", "pretext")) / "model.safetensors")
    after = load_file(finished.path(Job("teacher", "birds", "byobnet", "FZ")) / "model.safetensors")
    differ = {k for k in before if before[k].shape != after[k].shape or not torch.equal(before[k], after[k])}
    assert differ == {"net.head.fc.weight", "net.head.fc.bias"}


def test_students_differ_in_their_teacher_and_in_nothing_else(finished, monkeypatch):
    """Same first weights, order and views: with a KD term of no weight, two teachers give one student."""
    kd = finished.distillation.model_copy(update={"beta": 0.0})
    study = finished.model_copy(update={"distillation": kd})
    a, b = (weights(stages.distill(study, "birds", t, "FT")) for t in ("resnet", "efficientnet"))
    alone = weights(stages.distill(finished, "birds", "none", "CE"), "ce")
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], alone[k]) for k in a)


def test_a_further_seed_gives_what_a_study_of_that_seed_alone_gives(make_study):
    """Bit for bit, from the pretext training on; and not what the first seed gives."""
    both, alone = (
        make_study({"seed": [0, 1], "recipes.CAL": {"epochs": 1}}, "both"),
        make_study({"seed": 1, "recipes.CAL": {"epochs": 1}}, "alone"),
    )
    runs = [stages.distill(study, "birds", "byobnet", "FT") for study in (both.at(1), alone, both)]
    states = [weights(run) for run in runs]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0]) and not torch.equal(
        *(states[i]["net.head.fc.weight"] for i in (0, 2))
    )
    assert runs[0].rows.equals(runs[1].rows) and [
        run.students["small", "kd"].record["provenance"]["seed"] for run in runs
    ] == [1, 1, 0]
    done = {c.base_id for c in both.jobs() if c.seed == 1 and records.is_complete(both, c)}
    assert done == {
        "teacher/pretext/pretext/byobnet",
        "teacher/birds/FT/byobnet",
        "bank/birds/FT/byobnet",
        "distill/birds/FT/byobnet",
    }


def test_teachers_and_students_see_different_crops(finished):
    assert finished.seed_for("teacher views", "birds") != finished.seed_for("student views", "birds")
    images = training.Images(stages.data(finished, "birds").train, finished.views, torch.device("cpu"))
    seeds = [finished.seed_for(f"{who} views", "birds") for who in ("student", "student", "teacher")]
    crops = [images.batch(torch.tensor([3]), images.epoch(seeds[i], i % 2)) for i in range(3)]
    assert not any(torch.equal(crops[i], crops[i - 1]) for i in range(3))


@pytest.mark.fault("a kill between weights and record, then the old value again")
def test_a_kill_and_the_old_value_leave_no_record_beside_anothers_files(finished, make_study, in_child):
    """Killed at each file that a teacher, then its bank, then its student put in place."""
    places = {"teacher": ("model.safetensors", "test.npy", "record.json"), "bank": ("views", "record.json")}
    places["distill"] = places["teacher"]
    before = contents(finished)

    def run(stage, place):
        replace = os.replace

        def kill(source, target):
            if Path(target).name == place:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = kill
        changed = {"recipes.FT.lr": 0.5, "recipes.student.lr": 0.5}
        getattr(stages, stage)(make_study(changed), "birds", "resnet", "FT")

    steps = [(stage, place) for stage, files in places.items() for place in (*files, "")]
    for stage, place in steps:
        status = in_child(functools.partial(run, stage, place))
        assert status == (-signal.SIGKILL if place else 0)
        study = make_study()
        assert check.check(study)[1] == {}
        teacher = records.find(study, Job("teacher", "birds", "resnet", "FT"))
        assert teacher is None or contents(study)["teacher"] == before["teacher"]
    stages.distill(study, "birds", "resnet", "FT")
    assert contents(study) == before and not list(study.folder.rglob(".*.[0-9]*"))


def contents(study):
    """What a teacher, its bank and its student left, but for their records."""
    folders = {
        name: study.path(Job(name, "birds", "resnet", "FT")) for name in ("teacher", "bank", "distill")
    }
    return {
        name: {
            f.name: f.read_bytes() for f in sorted(folder.rglob("*.npy")) + sorted(folder.rglob("*.safe*"))
        }
        for name, folder in folders.items()
    }


@pytest.mark.parametrize("file", ["model.safetensors", "test.npy", "record.json"])
@pytest.mark.fault("a teacher's file deleted")
def test_a_teacher_that_lost_a_file_is_trained_again_to_the_same_weights(finished, file):
    folder = finished.path(Job("teacher", "birds", "resnet", "FT"))
    before = load_file(folder / "model.safetensors")
    (folder / file).unlink()
    stages.teacher(finished, "birds", "resnet", "FT")
    after = load_file(folder / "model.safetensors")
    assert (folder / file).exists() and all(torch.equal(before[k], after[k]) for k in before)


def test_a_teachers_spoilt_weights_are_an_error_that_names_the_file_and_the_remedy(finished):
    folder = finished.path(Job("teacher", "birds", "resnet", "FT"))
    file, whole = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    file.write_bytes(whole[:5000])
    stages.load_teacher(finished, "birds", "resnet", "FT")  # by its digest it is seen to be another's
    assert file.read_bytes() == whole
    file.write_bytes(whole[:5000])
    without_digests(folder)
    with pytest.raises(
        StudyError, match=r"model.safetensors' cannot be read.*Delete the file to train it anew"
    ):
        stages.load_teacher(finished, "birds", "resnet", "FT")
    file.unlink()
    stages.load_teacher(finished, "birds", "resnet", "FT")


@pytest.mark.fault("a student's file deleted")
def test_a_student_that_lost_its_logits_keeps_its_row_and_one_that_lost_its_record_is_trained_again(finished):
    folder = stages.distill(finished, "birds", "none", "CE").students["small", "ce"].folder
    before, row = (folder / "test.npy").read_bytes(), stages.distill(finished, "birds", "none", "CE").rows
    (folder / "test.npy").unlink()
    run = stages.distill(finished, "birds", "none", "CE")
    assert run.logits() == {} and run.rows.equals(row)
    (folder / "record.json").unlink()
    assert stages.distill(finished, "birds", "none", "CE").logits()["small", "ce"].shape == (16, 4)
    assert (folder / "test.npy").read_bytes() == before


@pytest.mark.parametrize(
    "spoil", [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-1])], ids=["lost", "cut short"]
)
@pytest.mark.fault("a bank spoilt before its students")
def test_a_bank_that_is_not_whole_is_written_again(finished, spoil):
    file = finished.path(Job("bank", "birds", "resnet", "FT")) / "views" / "view-0001.safetensors"
    before = file.read_bytes()
    spoil(file)
    assert stages.bank(finished, "birds", "resnet", "FT")[1] is not None
    assert file.read_bytes() == before


def test_a_changed_value_is_computed_anew_and_its_neighbours_are_not(finished, make_study):
    before = stamps(finished)
    study = make_study({"students.small.recipe": {"lr": 0.5}})
    stages.distill(study, "birds", "resnet", "FT")
    touched = {f.parent for f, stamp in stamps(study).items() if before.get(f) != stamp}
    assert touched == {study.path(Job("distill", "birds", "resnet", "FT")) / "students" / "small" / "kd"}


@pytest.mark.fault("a teacher killed")
def test_a_killed_teacher_goes_on_from_its_checkpoint_to_the_same_weights(make_study, monkeypatch):
    whole, broken = (make_study({"name": name, "recipes.FT.epochs": 4}) for name in ("whole", "broken"))
    stages.teacher(whole, "birds", "resnet", "FT")
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1)
    drawn, epoch = [], training.Images.epoch

    def killed(self, seed, number):
        drawn.append(number)
        if drawn == [0, 1, 2]:
            raise KeyboardInterrupt
        return epoch(self, seed, number)

    monkeypatch.setattr(training.Images, "epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.teacher(broken, "birds", "resnet", "FT")
    assert records.record(broken, Job("teacher", "birds", "resnet", "FT")) is None
    folder = stages.teacher(broken, "birds", "resnet", "FT").folder
    assert drawn == [0, 1, 2, 2, 3] and not list(folder.glob("checkpoint-*"))
    files = [
        study.path(Job("teacher", "birds", "resnet", "FT")) / "model.safetensors" for study in (whole, broken)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def without_digests(folder):
    """The record as earlier versions wrote it."""
    stored = records.read_json(folder / "record.json")
    records.write_json(folder / "record.json", {k: v for k, v in stored.items() if k != "files"})


def searched(study, recipe):
    """A teacher's candidates, its row and its weights."""
    run = stages.teacher(study, "birds", "resnet", recipe)
    return run.table("search"), run.rows.iloc[0], load_file(run.folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("recipe", ["FZ", "FT", "CAL"])
def test_the_best_rate_on_held_out_images_trains_the_teacher_as_if_it_had_been_given(make_study, recipe):
    values = {
        "strategies": [recipe],
        "recipes.CAL": {"epochs": 2, "maps": 4, "batch_size": 8},
        "datasets.birds.train": 8,
    }
    study = make_study(values | {f"recipes.{recipe}.lr": [1e-9, 0.1, 0.02]}, "searched")
    table, row, weights = searched(study, recipe)
    assert list(table.lr) == [1e-9, 0.1, 0.02] and table.validation_accuracy.mul(8).to_list() == list(
        table.validation_accuracy.mul(8).round()
    )
    best = table[table.validation_accuracy == table.validation_accuracy.max()]
    assert row.lr == best.lr.min() and not list(
        study.path(Job("teacher", "birds", "resnet", recipe)).glob("checkpoint-*")
    )
    given = stages.teacher(
        make_study(values | {f"recipes.{recipe}.lr": float(row.lr)}, "given"), "birds", "resnet", recipe
    )
    assert (
        same(load_file(given.folder / "model.safetensors"), weights)
        and given.rows.lr.item() == row.lr
        and "search" not in given.record
    )


def test_a_search_may_take_fewer_epochs_than_the_training(make_study, monkeypatch):
    lengths, fit = [], training.fit
    monkeypatch.setattr(
        training,
        "fit",
        lambda *given, **options: (lengths.append(given[4].epochs), fit(*given, **options))[1],
    )
    _, row, _ = searched(
        make_study({"recipes.FT.lr": [0.1, 0.02], "recipes.FT.epochs": 4, "recipes.FT.search_epochs": 1}),
        "FT",
    )
    assert lengths == [1, 1, 4] and row.epochs == 4


def test_of_equal_rates_the_smallest_is_taken(make_study):
    table, row, _ = searched(make_study({"recipes.FT.lr": [2e-12, 1e-12, 3e-12]}), "FT")
    assert table.validation_accuracy.nunique() == 1 and row.lr == 1e-12


@pytest.mark.parametrize("recipe", ["FT", "CAL"])
def test_a_search_never_looks_at_the_test_split(make_study, monkeypatch, recipe):
    changes = {
        "strategies": [recipe],
        "recipes.CAL": {"epochs": 2, "maps": 4},
        f"recipes.{recipe}.lr": [0.1, 0.001],
        "datasets.birds.train": 15,
    }
    honest, spoilt = (make_study(changes, name) for name in ("honest", "spoilt"))
    expected = searched(honest, recipe)
    load = stages.data

    def spoil(study, dataset):
        found = load(study, dataset)
        test = dataclasses.replace(
            found.test, images=255 - found.test.images[::-1], labels=(found.test.labels + 1) % 4
        )
        return dataclasses.replace(found, test=test)

    monkeypatch.setattr(stages, "data", spoil)
    table, row, weights = searched(spoilt, recipe)
    pd.testing.assert_frame_equal(table, expected[0], check_exact=True)
    assert row.lr == expected[1].lr and same(weights, expected[2])
    assert not np.array_equal(
        *(np.load(s.path(Job("teacher", "birds", "resnet", recipe)) / "test.npy") for s in (honest, spoilt))
    )


def test_held_out_images_have_no_part_in_a_candidates_training(make_study, monkeypatch):
    changes = {"recipes.FT.lr": [0.1, 0.001], "datasets.birds.train": 15}
    expected, study, load = (
        searched(make_study(changes, "honest"), "FT")[0],
        make_study(changes, "spoilt"),
        stages.data,
    )

    def spoil(study, dataset):
        found = load(study, dataset)
        held, images = (
            jobs.hold_out(torch.from_numpy(found.train.labels), study.seed_for("search", "birds"))[1],
            np.array(found.train.images),
        )
        images[held] = 255 - images[held]
        return dataclasses.replace(found, train=dataclasses.replace(found.train, images=images))

    monkeypatch.setattr(stages, "data", spoil)
    table = searched(study, "FT")[0]
    assert list(table.train_accuracy) == list(expected.train_accuracy) and list(
        table.validation_accuracy
    ) != list(expected.validation_accuracy)


@pytest.mark.fault("a search for a learning rate killed")
def test_a_killed_search_goes_on_with_the_candidate_it_was_at(make_study, monkeypatch):
    whole, broken = (make_study({"recipes.FT.lr": [0.1, 0.02]}, name) for name in ("whole", "broken"))
    expected = searched(whole, "FT")
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1)
    drawn, epoch = [], training.Images.epoch

    def killed(self, seed, number):
        drawn.append(number)
        if drawn == [0, 1, 0, 1]:
            raise KeyboardInterrupt
        return epoch(self, seed, number)

    monkeypatch.setattr(training.Images, "epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.teacher(broken, "birds", "resnet", "FT")
    table, row, weights = searched(broken, "FT")
    assert drawn == [0, 1, 0, 1, 1, 0, 1] and row.lr == expected[1].lr and same(weights, expected[2])
    pd.testing.assert_frame_equal(table, expected[0], check_exact=True)
    assert not list(broken.folder.rglob("checkpoint-*"))


def test_a_rate_that_diverges_is_not_chosen_and_all_that_do_are_an_error(make_study):
    table, row, _ = searched(make_study({"recipes.FT.lr": [1e30, 0.01], "recipes.FT.clip": 1e30}), "FT")
    assert table.validation_accuracy.isna().to_list() == [True, False] and row.lr == 0.01
    with pytest.raises(
        FloatingPointError,
        match=r"teacher/birds/FT/resnet: every learning rate of .* diverged: add lower ones",
    ):
        stages.teacher(
            make_study({"recipes.FT.lr": [1e30, 1e31], "recipes.FT.clip": 1e30}), "birds", "resnet", "FT"
        )


def test_a_students_rate_is_searched_for_with_each_of_its_losses(make_study):
    values = {"losses": {"crd": {"options": {"negatives": 4, "width": 8}}}, "datasets.birds.train": 8}
    run = stages.distill(make_study(values | {"recipes.student.lr": [1e-9, 0.003]}), "birds", "resnet", "FT")
    table, found = run.table("search"), {loss: weights(run, loss) for loss in ("kd", "crd")}
    assert list(zip(table.student, table.loss, table.lr, strict=True)) == [
        ("small", loss, lr) for loss in ("kd", "crd") for lr in (1e-9, 0.003)
    ]
    for row, (_, candidates) in zip(run.rows.itertuples(), table.groupby("loss", sort=False), strict=True):
        assert (
            row.lr
            == candidates[candidates.validation_accuracy == candidates.validation_accuracy.max()].lr.min()
        )
        given = stages.distill(make_study(values | {"recipes.student.lr": row.lr}), "birds", "resnet", "FT")
        assert same(found[row.loss], weights(given, row.loss))


def test_a_checkpoint_of_other_values_is_not_continued(make_study, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(training, "accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stages.teacher(make_study(), "birds", "resnet", "FT")
    monkeypatch.undo()
    study = make_study({"recipes.FT.lr": 0.02})
    monkeypatch.setenv("FGKD_RUNS", str(study.file.rpartition("/")[0]))
    history = stages.teacher(study, "birds", "resnet", "FT").table("history")
    assert list(history.epoch) == [0, 1]
    assert not list(study.folder.rglob("checkpoint-*"))


def test_two_processes_at_once_compute_once(tiny, tmp_path, monkeypatch):
    stages.data(tiny, "birds")

    def slow(model, train, objective, how, **options):
        with open(tmp_path / "log", "a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return [{"epoch": 0, "train_accuracy": 0.0}]

    monkeypatch.setattr(training, "fit_images", slow)
    children = []
    for _ in range(2):
        if (pid := os.fork()) == 0:
            try:
                os._exit(len(stages.teacher(tiny, "birds", "resnet", "FT").rows) - 1)
            finally:
                os._exit(9)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert len((tmp_path / "log").read_text().split()) == 1


@pytest.mark.fault("a stale lock of a job")
def test_the_lock_of_a_process_that_died_does_not_last(tiny, in_child):
    job = Job("data", "birds")

    def die():
        with records.locked(tiny.path(job)):
            os._exit(7)

    tiny.path(job).mkdir(parents=True)
    assert in_child(die) == 7
    stages.data(tiny, "birds")


def test_a_plugins_model_can_be_a_student_without_a_teacher(make_study, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    study = make_study(
        {
            "plugins": ["mine.py"],
            "students": {"mine": {"model": "fgkd_student_net"}},
            "recipes.student.epochs": 1,
        }
    )
    assert stages.distill(study, "birds", "none", "CE").rows.model.item() == "fgkd_student_net"


@pytest.mark.parametrize("online", [False, True])
def test_a_plugin_adds_a_network_and_a_loss_that_a_student_is_trained_with(make_study, tmp_path, online):
    """One loss is a function of logits, the other a module of features, that returns its option."""
    cubic, scaled, network = (f"fgkd_{name}_{int(online)}" for name in ("cubic", "scaled", "net"))
    source = (PLUGIN + LOSS_PLUGIN).replace("fgkd_student_net", network)
    (tmp_path / "own.py").write_text(source.replace("fgkd_cubic", cubic).replace("FGKD_Scaled", scaled))
    changes = {
        "plugins": ["own.py"],
        "students": {"mine": {"model": network}},
        "losses": {cubic: {"weight": 0.5, "options": {"power": 1.0}}, scaled: {"on": "features"}},
        "recipes.student": {"epochs": 1, "batch_size": 24, "lr": 1e-12},
        "online": online,
    }
    study = make_study(changes)
    history = stages.distill(study, "birds", "resnet", "FT").table("history").set_index("loss")
    assert history.further.isna().to_dict() == {"kd": True, cubic: False, scaled: False}
    assert history.further[scaled] == 1.0 * 24
    twice = make_study(changes | {f"losses.{cubic}.weight": 1.0}, "twice")
    again = stages.distill(twice, "birds", "resnet", "FT").table("history").set_index("loss")
    assert again.further[cubic] == pytest.approx(2 * history.further[cubic], rel=1e-6)


def test_the_conclusion_writes_every_table_and_its_own_record(finished):
    frames = records.collect(finished)
    run = stages.write_study_tables(finished, "report", frames)
    assert dict(zip(run.rows.table, run.rows.rows, strict=True)) == {
        name: len(frame) for name, frame in frames.items()
    }
    for name, frame in frames.items():
        assert len(pd.read_csv(finished.folder / "tables" / f"{name}.csv")) == len(frame)


def test_concluding_twice_writes_the_same_bytes(finished):
    before = {f.name: f.read_bytes() for f in (finished.folder / "tables").iterdir()}
    stages.write_study_tables(finished, "correlation", records.collect(finished))
    assert (
        before == {f.name: f.read_bytes() for f in (finished.folder / "tables").iterdir()}
        and len(before) == 7
    )


def test_a_teacher_that_is_not_in_the_study_is_refused_before_anything_is_written(tiny):
    with pytest.raises(StudyError, match="teacher 'resnt' is not in the study"):
        stages.teacher(tiny, "birds", "resnt", "FT")
    assert not tiny.folder.exists()


def test_transfer_is_measured_on_the_pretrained_network_before_the_teachers_training(finished):
    pretext = stages.load_teacher(finished, PRETEXT, "byobnet", PRETEXT)
    train = stages.data(finished, "birds").train
    pixels = torch.from_numpy(np.array(train.images)).permute(0, 3, 1, 2)[:, :, 2:34, 2:34]
    with torch.no_grad():
        features, logits = pretext.features_and_logits(pixels)
    row = stages.teacher(finished, "birds", "byobnet", "FT").rows.iloc[0]
    assert row.logme == pytest.approx(transfer.logme(features, train.labels), abs=1e-4)
    assert row.leep == pytest.approx(transfer.leep(logits.softmax(1), train.labels), abs=1e-4)
    assert row.nce == transfer.nce(logits.argmax(1), train.labels)
    assert (row.pretraining, row.norm) == ("pretext", "BatchNorm")
    bare = stages.teacher(finished, "birds", "resnet", "FT").rows.iloc[0]
    assert bare[["logme", "leep", "nce"]].isna().all() and bare.pretraining == "none"


def test_metrics_on_test_images_are_those_of_the_stored_logits(finished):
    table = stages.on_test(finished)
    assert len(table) == 6 and set(table.recipe) == {"FZ", "FT"}
    row = table[(table.teacher == "resnet") & (table.recipe == "FT")].iloc[0]
    run = stages.teacher(finished, "birds", "resnet", "FT")
    assert (
        row.ratio12_median == metrics.summarize(run.logits())["ratio12_median"]
        and row.train_accuracy == run.rows.tac[0]
    )
    assert set(records.per_strategy(table.assign(recipe="CAL")).strategy) == {"CAL", "TGDA"}


@pytest.mark.fault("a distillation of several students killed")
def test_a_killed_distillation_does_not_repeat_its_finished_students(make_study, monkeypatch):
    study = make_study({"students.other": {"model": "test_resnet"}, "strategies": ["FT"]})
    stages.bank(study, "birds", "resnet", "FT")
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1)
    measure, measured = training.accuracy, []

    def killed(*given):
        measured.append(given)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(training, "accuracy", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.distill(study, "birds", "resnet", "FT")
    drawn, epoch = [], training.Images.epoch
    monkeypatch.setattr(
        training.Images,
        "epoch",
        lambda self, seed, number: (drawn.append(number), epoch(self, seed, number))[1],
    )
    rows = stages.distill(study, "birds", "resnet", "FT").rows
    assert (
        not drawn and len(rows) == 2 and len(measured) == 3 and not list(study.folder.rglob("checkpoint-*"))
    )


@pytest.mark.skipif(
    os.environ.get("FGKD_TEST_COMPILE") != "1", reason="compiles for a minute: FGKD_TEST_COMPILE=1"
)
def test_a_compiled_study_learns_the_same_within_rounding(make_study):
    """On a CPU through the compiler that a GPU has, without CUDA graphs."""
    quick = {"recipes.student.epochs": 1}
    plain, compiled = make_study(quick, "plain"), make_study(quick | {"compile": True}, "compiled")
    states = [weights(stages.distill(study, "birds", "none", "CE"), "ce") for study in (plain, compiled)]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert states[0].keys() == states[1].keys()
    assert all(torch.allclose(states[0][k].float(), states[1][k].float(), atol=1e-3) for k in states[0])


def test_gains_are_taught_less_alone_with_an_interval_over_test_images(finished):
    found = stages.gains(finished, "birds", "resnet", "FT")
    alone = stages.baseline(finished, "birds")["small"]
    taught = stages.distill(finished, "birds", "resnet", "FT").rows.accuracy[0]
    n = len(stages.data(finished, "birds").test)
    assert found[["student", "loss"]].to_numpy().tolist() == [["small", "kd"]]
    assert found.gain[0] == pytest.approx(taught - alone) and found.alone[0] == alone
    expected = correlation.difference_interval(round(taught * n), round(alone * n), n)
    assert found[["low", "high"]].to_numpy()[0] == pytest.approx(expected)


def test_gains_without_a_baseline_are_empty(make_study):
    study = make_study({"baseline": False, "strategies": ["FT"]})
    assert (
        stages.gains(study, "birds", "resnet", "FT")[["alone", "gain", "low", "high"]].isna().all(axis=None)
    )


def test_the_first_step_is_kd_and_cross_entropy_on_the_students_own_views(finished):
    """By hand, from the bank, with the optimizer of torch."""
    step = stages.first_step(finished, "birds", "resnet", "FT", number=5)
    assert step.x.shape == (5, 3, 32, 32) and step.recipe.batch_size == 5
    stored = stages.bank(finished, "birds", "resnet", "FT")[1].outputs(0, torch.arange(24))["logits"]
    found = (stored[:, None] - step.teacher).abs().amax(2).argmin(0)
    labels = torch.from_numpy(stages.data(finished, "birds").train.labels)
    assert torch.equal(labels[found], step.labels)
    weights = list(step.before.parameters())
    log_p = (step.before.train()(step.x) / 2).log_softmax(1)
    kl = torch.nn.functional.kl_div(log_p, (step.teacher / 2).softmax(1), reduction="batchmean")
    ce = -(2 * log_p).log_softmax(1)[torch.arange(5), step.labels].mean()
    (ce + 10 * 4 * kl).backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    torch.optim.AdamW(weights, lr=0.001, weight_decay=0).step()
    for ours, theirs in zip(weights, step.after.parameters()):
        clear = ours.grad.abs() > 1e-5  # AdamW goes a whole step in a direction that rounding may choose
        assert torch.allclose(ours[clear], theirs[clear], atol=1e-5)


def test_a_first_step_trains_its_teacher_where_none_is_there(make_study):
    study = make_study({"strategies": ["FT"]})
    assert stages.first_step(study, "birds", "resnet", "FT", number=4).teacher.shape[0] == 4


def test_only_plain_kd_has_a_first_step(finished):
    with pytest.raises(ValueError, match="strategy is 'TGDA': expected FZ, FT or CAL"):
        stages.first_step(finished, "birds", "resnet", "TGDA")
