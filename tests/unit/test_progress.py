"""Progress of a running job: a small file, written now and then, whose absence or fault changes nothing."""

import json

import pytest

from fgkd.analysis import records
from fgkd.distillation import progress, stages
from fgkd.distillation.progress import Progress
from fgkd.study import Job


@pytest.fixture
def clock(monkeypatch):
    """A list that holds the time which the writer sees."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_it_says_which_epoch_of_how_many_the_loss_and_the_seconds_an_epoch(tmp_path, clock):
    with Progress(tmp_path, "resnet FT", 10) as writer:
        writer.update(4.5)
        clock[0] += 3
        writer.update(5, loss=1.25)
        values = json.loads((tmp_path / "progress.json").read_text())
    assert values.pop("started") <= values.pop("updated")
    assert values == {"what": "resnet FT", "epoch": 5, "epochs": 10, "loss": 1.25, "seconds_per_epoch": 6.0}
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_every_few_seconds_however_often_it_is_updated(tmp_path, clock, monkeypatch):
    written = []
    monkeypatch.setattr(records, "write_json", lambda file, values: written.append(values))
    writer = Progress(tmp_path, "resnet FT", 100)
    for epoch in range(1, 41):
        clock[0] += 0.25
        writer.update(epoch, loss=1 / epoch)
    assert [values["epoch"] for values in written] == [1, 9, 17, 25, 33]
    assert [values["loss"] for values in written] == [1 / values["epoch"] for values in written]


@pytest.mark.fault("a full disk under a progress file")
def test_a_disk_that_is_full_stops_no_training(make_study, monkeypatch):
    def write_json(file, values):
        if file.name == progress.FILE:
            raise OSError(28, "No space left on device")
        return plain(file, values)

    plain = records.write_json
    monkeypatch.setattr(records, "write_json", write_json)
    study = make_study()
    assert stages.teacher(study, "birds", "resnet", "FT").rows.tac[0] >= 0


def test_trainings_and_banks_write_it_in_their_own_folders_and_delete_it(make_study, monkeypatch):
    written = []
    plain = records.write_json

    def write_json(file, values):
        plain(file, values)
        if file.name == progress.FILE:
            written.append((file.parent, values["what"], values["epoch"], values["epochs"]))

    monkeypatch.setattr(records, "write_json", write_json)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    study = make_study()
    stages.distill(study, "birds", "resnet", "FT")
    stages.bank(study, "birds", "resnet", "FT")
    distill = Job("distill", "birds", "resnet", "FT")
    assert {
        (study.path(Job("teacher", "birds", "resnet", "FT")), "resnet FT", 2, 2),
        (study.path(Job("bank", "birds", "resnet", "FT")), "views", 2, 2),
        (study.path(study.student_jobs(distill)[0]), "small from resnet FT kd", 2, 2),
    } <= set(written)
    assert not list(study.folder.rglob(progress.FILE))
