"""Records and tables: atomic files, a record only for the values it was made with, the same bytes."""

import errno
import fcntl
import getpass
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fgkd.analysis import groups, records
from fgkd.distillation import stages
from fgkd.engine import cost, states
from fgkd.metrics import METRICS
from fgkd.models import classifier
from fgkd.report import pages
from fgkd.study import STAGES, Job, StudyError

BANK = Job("bank", "birds", "resnet", "FT")
WRITERS = {
    "bytes": lambda f: records.write_bytes(f, b"new"),
    "array": lambda f: records.write_array(f, np.zeros(3)),
    "json": lambda f: records.write_json(f, {}),
    "table": lambda f: records.write_table(pd.DataFrame({"a": [1]}), f),
    "weights": lambda f: classifier.save(torch.nn.Linear(2, 2), f),
}
WRITERS = [pytest.param(write, id=name) for name, write in WRITERS.items()]
full_disk = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full"
)


def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path):
    records.write_bytes(tmp_path / "a" / "b" / "file.txt", b"one")
    records.write_bytes(tmp_path / "a" / "b" / "file.txt", b"two")
    assert [f.read_text() for f in (tmp_path / "a" / "b").iterdir()] == ["two"]


def test_an_array_reads_back(tmp_path):
    records.write_array(tmp_path / "a.npy", array := np.arange(6.0).reshape(2, 3))
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)


@full_disk
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.fault("a full disk under a table, weights or record")
def test_a_full_disk_leaves_the_old_file_and_says_how_to_go_on(tmp_path, write):
    (file := tmp_path / "file.txt").write_text("old")
    (tmp_path / f".file.txt.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(
        OSError,
        match=r"could not write '.*file.txt' .No space left.*free some space and start again, "
        "finished runs are kept",
    ):
        write(file)
    assert [f.name for f in tmp_path.iterdir()] == ["file.txt"] and file.read_text() == "old"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.fault("a rename that fails")
def test_a_failure_at_the_last_step_leaves_the_old_file(tmp_path, monkeypatch, write):
    (file := tmp_path / "file.txt").write_text("old")
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(
        PermissionError, match=r"file.txt' .Permission denied.: check that the folder can be written"
    ):
        write(file)
    assert [f.name for f in tmp_path.iterdir()] == ["file.txt"] and file.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError, match=r"could not write '.*a/b/file.txt'"):
        records.write_bytes(tmp_path / "a" / "b" / "file.txt", b"x")


def test_values_of_numpy_and_paths_become_json(tmp_path):
    value = {
        "a": np.float64(0.1),
        "b": np.int64(3),
        "c": Path("x"),
        "d": (1, 2),
        "e": None,
        "f": float("inf"),
    }
    records.write_json(tmp_path / "v.json", value)
    assert records.read_json(tmp_path / "v.json") == {
        "a": 0.1,
        "b": 3,
        "c": "x",
        "d": [1, 2],
        "e": None,
        "f": float("inf"),
    }


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\x00\xff\xfe"])
def test_json_that_is_absent_or_not_whole_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "v.json").write_bytes(content)
    assert records.read_json(tmp_path / "v.json") is None


def test_a_table_has_ten_digits_and_the_same_bytes_each_time(tmp_path):
    frame = pd.DataFrame(
        {
            "x": [1 / 3, 1e-12, 2.0, float("nan"), 0.1 + 0.2],
            "n": [1, 2, 3, 4, 5],
            "s": ["a", "b,c", "", None, "e"],
        }
    )
    records.write_table(frame, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == 'x,n,s\n0.3333333333,1,a\n1e-12,2,"b,c"\n2,3,\n,4,\n0.3,5,e\n'


def test_a_name_comes_back_from_a_table_as_it_was(tmp_path):
    names = ["NA", "null", "nan", "None", "1e5", "007", "True", "1:30", "n/a", "", "inf", "2019-01-01"]
    for column in ("teacher", "dataset", "student", "loss", "family"):
        frame = pd.DataFrame({column: names, "rho": [float("nan"), *range(len(names) - 1)], "n": 1})
        records.write_table(frame, tmp_path / "t.csv")
        pd.testing.assert_frame_equal(records.read_table(tmp_path / "t.csv"), frame, check_dtype=False)
    records.write_table(frame.astype({"rho": float})[:0], tmp_path / "t.csv")
    assert list(records.read_table(tmp_path / "t.csv")) == ["family", "rho", "n"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "=1+", "\uff1d", "-1+", "+1e"])
def test_no_text_of_a_table_is_a_formula_to_a_spreadsheet(start, tmp_path):
    text = f"{start}cmd|' /C calc'!A0"
    numbers = [-0.5, 1e-9, float("-inf")]
    frame = pd.DataFrame({text: numbers, "text": [text, "a=b", None], "number": ["-0.5", "+3", "-1e-5"]})
    records.write_table(frame, tmp_path / "t.csv")
    read = pd.read_csv(tmp_path / "t.csv", dtype={"number": str})
    harmless = "'" + text.replace("\r", "\n")
    assert list(read) == [harmless, "text", "number"] and list(read[harmless]) == numbers
    assert list(read.text[:2]) == [harmless, "a=b"] and list(read.number) == list(frame.number)


def test_a_record_counts_only_for_the_values_it_was_made_with(finished, make_study):
    assert records.record(finished, BANK)["cell"] == BANK.id
    assert records.record(make_study({"question": "Another?"}), BANK)
    assert records.record(make_study({"recipes.FT.lr": 0.5}), BANK) is None
    assert records.record(make_study({"recipes.FZ.lr": 0.5}), BANK)


@pytest.mark.fault("a record cut short")
def test_a_record_that_was_cut_short_counts_as_none(finished):
    file = finished.path(BANK) / "record.json"
    file.write_text(file.read_text()[:-20])
    assert records.record(finished, BANK) is None


def test_finishing_writes_a_result_of_the_records_fingerprint(finished):
    records.mark_done(finished, BANK)
    assert json.loads((finished.path(BANK) / "result.json").read_text()) == {
        "cell": BANK.id,
        "fingerprint": finished.fingerprint(BANK),
        "rows": 1,
    }


def test_finishing_what_computed_nothing_is_an_error(tiny):
    with pytest.raises(RuntimeError, match="bank/birds/FT/resnet computed nothing"):
        records.mark_done(tiny, BANK)
    assert not tiny.path(BANK).exists()


def test_provenance_says_what_a_result_came_from(finished):
    found = records.record(finished, BANK)["provenance"]
    assert set(records.PROVENANCE) <= set(found) and found["run"] == BANK.id and found["device"] == "cpu"
    assert found["parameters"] == json.loads(json.dumps(finished.values(BANK)))
    assert found["packages"]["torch"] and found["peak_memory_mb"] > 0 and found["seconds"] >= 0


def test_a_finished_study_fills_every_table(finished):
    frames = records.collect(finished)
    rows = {
        "data": 2,
        "teachers": 7,
        "metrics": 6,
        "students": 7,
        "correlations": 2 * len(METRICS),
        "headline": len(METRICS),
        "epochs": 12,
    }
    assert {name: len(frame) for name, frame in frames.items()} == rows
    assert records.missing(finished) == []
    for name in ("teachers", "metrics", "students"):
        assert frames[name][records.PROVENANCE].notna().all(axis=None)
    measured = groups.join_students_with_metrics(
        frames["students"], records.with_tac(frames["metrics"], frames["teachers"])
    )
    pretrained = measured.teacher.map(lambda t: finished.teacher(t).weights != "none")
    assert set(pretrained) == {True, False} and measured[
        [m for m in METRICS if m not in records.TRANSFER]
    ].notna().all(axis=None)
    assert all((measured[name].notna() == pretrained).all() for name in records.TRANSFER)
    assert set(frames["correlations"].n) == {3}
    assert frames["students"][frames["students"].strategy == "CE"].teacher.to_list() == ["none"]


@pytest.mark.parametrize("epochs, read", [(1, 0), (6, 0), (10, 0), (11, 1), (40, 3)])
def test_a_pilot_is_read_after_a_tenth_of_the_epochs_rounded_up(finished, epochs, read):
    """From the record alone, as no training looks at a pilot."""
    part = records.record_jobs(finished, Job("distill", "birds", "resnet", "FT"))[0]
    file = finished.path(part) / "record.json"
    record = records.read_json(file)
    history = [{"epoch": e, "train_accuracy": e / 100} for e in range(epochs)]
    records.write_json(file, record | {"history": history})
    students = records.collect(finished)["students"].set_index(["strategy", "teacher"])
    assert students.loc[("FT", "resnet"), ["pilot", "pilot_cost"]].to_list() == [
        read / 100,
        (read + 1) / epochs,
    ]
    records.write_json(file, {k: v for k, v in record.items() if k != "history"})
    students = records.collect(finished)["students"].set_index(["strategy", "teacher"])
    assert students.pilot.isna().to_list() == [key == ("FT", "resnet") for key in students.index]


def test_a_banks_row_is_the_mean_of_its_epochs(finished):
    frames = records.collect(finished)
    keys = ["dataset", "strategy", "teacher"]
    means = (
        records.per_strategy(frames["epochs"]).query("strategy in ['FZ', 'FT']").groupby(keys).ratio13.mean()
    )
    pd.testing.assert_series_equal(
        frames["metrics"].set_index(keys).ratio13.sort_index(), means.sort_index(), rtol=1e-9
    )


def test_points_say_what_each_teacher_is_by_its_record_and_by_the_studys_words(finished, make_study):
    points = records.points(records.collect(make_study({"teachers.resnet.family": "plain"})))
    assert dict(zip(points.teacher, points.family, strict=True)) == {
        "byobnet": "",
        "resnet": "plain",
        "efficientnet": "",
    }
    assert (
        set(points.norm) == {"BatchNorm"}
        and dict(zip(points.teacher, points.pretraining, strict=True))["byobnet"] == "pretext"
    )
    frames = records.collect(finished)
    bare = groups.join_students_with_metrics(
        frames["students"], records.with_tac(frames["metrics"], frames["teachers"])
    )
    pd.testing.assert_frame_equal(points[bare.columns], bare)


def test_tac_is_that_of_the_strategys_own_teacher(finished):
    frames = records.collect(finished)
    found = records.with_tac(frames["metrics"], frames["teachers"]).set_index(["strategy", "teacher"]).tac
    expected = frames["teachers"].set_index(["recipe", "teacher"]).tac
    assert found.to_dict() == {key: value for key, value in expected.to_dict().items() if key[0] != "pretext"}


def test_a_study_of_two_seeds_has_a_row_for_each_and_one_point_a_teacher(make_study):
    study = make_study(
        {
            "seed": [0, 1],
            "strategies": ["FT"],
            "teachers.byobnet.weights": "none",
            "recipes.student.epochs": 1,
        }
    )
    frames = stages.study_tables(study)
    rows = {
        "data": 1,
        "teachers": 6,
        "metrics": 6,
        "students": 8,
        "correlations": len(METRICS),
        "headline": len(METRICS),
        "seeds": len(METRICS) + 1,
        "epochs": 6,
    }
    assert {name: len(frame) for name, frame in frames.items()} == rows and records.missing(study) == []
    for name in ("teachers", "metrics", "students", "epochs"):
        assert frames[name].seed.to_list() == sorted(frames[name].seed) and set(
            frames[name].seed.value_counts()
        ) == {rows[name] // 2}
    assert set(frames["correlations"].n) == {3} and set(frames["correlations"].seeds) == {2}
    points = groups.join_students_with_metrics(
        frames["students"], records.with_tac(frames["metrics"], frames["teachers"])
    ).set_index("teacher")
    for name, column in {"students": "accuracy", "metrics": "ratio12", "teachers": "tac"}.items():
        assert points[column].to_dict() == pytest.approx(
            frames[name][frames[name].teacher != "none"].groupby("teacher")[column].mean().to_dict()
        )
    for kept, columns in (
        ((0, 1), ["metric", "seed 0", "seed 1", "all"]),
        ((0,), ["metric", "seed 0", "all"]),
        ((), []),
    ):
        for job in study.jobs():
            if job.stage == "distill" and job.strategy != "CE" and study.seed_of(job) not in kept:
                for part in records.record_jobs(study, job):
                    (study.path(part) / "record.json").unlink(missing_ok=True)
        assert list(records.collect(study).get("seeds", [])) == columns


def test_missing_names_the_cells_without_a_record(tiny, finished):
    (finished.path(BANK) / "record.json").unlink()
    assert records.missing(finished) == [BANK.id]
    fresh = tiny.model_copy(update={"name": "fresh"})
    assert len(records.missing(fresh)) == 2 + 7 + 6 + 7


@pytest.mark.parametrize(
    "kept", [(), ("teacher",), ("bank",), ("teacher", "bank"), ("distill",), ("bank", "distill")]
)
def test_a_study_under_way_has_the_tables_of_what_is_done(finished, kept):
    for job in finished.jobs():
        if job.stage not in kept:
            for part in records.record_jobs(finished, job):
                (finished.path(part) / "record.json").unlink(missing_ok=True)
    frames = records.collect(finished)
    for name, row in STAGES.items():
        assert not row.table or (name in kept) == bool(len(frames[row.table]))
    assert "correlations" not in frames


def test_tgda_students_are_joined_with_the_accuracy_of_the_cal_teacher():
    metrics = pd.DataFrame(
        [
            {"dataset": "d", "teacher": "t", "strategy": s, "seed": 0, "ratio12": 1.5}
            for s in ("FT", "CAL", "TGDA")
        ]
    )
    teachers = pd.DataFrame(
        [
            {"dataset": "d", "teacher": "t", "recipe": r, "seed": 0, "tac": tac, "parameters": 9}
            for r, tac in (("FT", 0.4), ("CAL", 0.6), ("FZ", 0.1))
        ]
    )
    assert records.with_tac(metrics, teachers).set_index("strategy").tac.to_dict() == {
        "FT": 0.4,
        "CAL": 0.6,
        "TGDA": 0.6,
    }


def test_records_and_analysis_load_neither_torch_nor_scipys_statistics():
    names = ("metrics", "analysis.records", "analysis.findings", "analysis.paper", "analysis.selection")
    modules = ", ".join(f"fgkd.{name}" for name in names)
    check = f"import sys, {modules}; print({{'torch', 'timm', 'scipy.stats'}} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"


FILES = {
    "data": Job("data", "birds"),
    "teacher": Job("teacher", "birds", "resnet", "FT"),
    "bank": BANK,
    "student": Job("student", "birds", "resnet", "FT", student="small", loss="kd"),
    "correlation": Job("correlation"),
}
NUMBERS = [
    ("teacher", "tac", 5.0, "'tac' is 5.0: expected a share from 0 to 1"),
    ("teacher", "tac", "0.5", "'tac' is '0.5': expected a number"),
    ("teacher", "lr", None, "'lr' is None: expected a number"),
    ("teacher", "parameters", 10**400, None),
    ("teacher", "parameters", 1.5, "'parameters' is 1.5: expected a count of 1 or more"),
    ("student", "accuracy", -1, "'accuracy' is -1: expected a share from 0 to 1"),
    ("student", "accuracy", float("nan"), "'accuracy' is nan: expected a share from 0 to 1"),
    ("student", "accuracy", True, "'accuracy' is True: expected a number"),
    ("student", "teacher", "byobnet", "'teacher' is 'byobnet': expected 'resnet'"),
    ("bank", "views", 3, "its record has 2 rows of epochs: expected 3"),
    ("bank", "ratio12", [1], None),
    ("data", "train", 0, "'train' is 0: expected a count of 1 or more"),
    ("data", "dataset", None, "'dataset' is None: expected 'birds'"),
    ("student", "rows", 2, "its record has 2 rows: expected 1"),
    ("student", "rows", 0, "its record has 0 rows: expected 1"),
    ("student", "history", 7, "'train_accuracy' in row 1 of its history is 7: expected a share from 0 to 1"),
]


@pytest.mark.parametrize("stage, column, value, words", NUMBERS)
@pytest.mark.fault("a record's number out of range")
def test_a_number_that_cannot_be_is_refused_by_name_and_repaired(
    finished, capsys, stage, column, value, words
):
    job = {
        "data": Job("data", "birds"),
        "student": Job("student", "birds", "resnet", "FT", student="small", loss="kd"),
    }.get(stage, Job(stage, "birds", "resnet", "FT"))
    file = finished.path(job) / "record.json"
    stored = records.read_json(file)
    if column == "rows":
        stored["rows"] *= value
    elif column == "history":
        stored["history"][0]["train_accuracy"] = value
    else:
        stored["rows"][0][column] = value
    file.write_text(json.dumps(stored))
    if words is None:  # of another shape: it counts as absent
        assert job.id in records.missing(finished)
        return
    assert records.missing(finished) == []
    with pytest.raises(StudyError, match=f"^{re.escape(job.id)}: .*{re.escape(words)}; 'fgkd check "):
        records.collect(finished)


def test_a_record_names_no_user_host_or_path(finished):
    texts = [file.read_text() for file in finished.folder.rglob("*.json")]
    words = {getpass.getuser(), platform.node(), str(Path.home()), str(finished.folder.parent)} - {"root"}
    assert len(texts) > 20 and not [word for word in words for text in texts if word in text]


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
@pytest.mark.fault("a file system without locks")
def test_a_file_system_without_locks_is_named_and_nothing_hangs(tmp_path, monkeypatch, code):
    number = getattr(errno, code)
    (tmp_path / ".lock").write_text("of an earlier run")

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    message = r"\.lock' .*: its file system has no locks: set FGKD_RUNS to"
    with pytest.raises(OSError, match=message), records.locked(tmp_path):
        pytest.fail("it is not locked")


def test_a_lock_removes_what_killed_processes_left_half_written(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    (dead := tmp_path / f".model.safetensors.{process.pid}").write_text("half")
    (alive := tmp_path / f".test.npy.{os.getpid()}").write_text("half")
    (other := tmp_path / ".hidden.name").write_text("")
    with records.locked(tmp_path):
        assert not dead.exists() and alive.exists() and other.exists()


ABSENT = {
    "cut": "{",
    "number": "5",
    "text": '"x"',
    "list": "[]",
    "empty": "{}",
    "null": "null",
    "deep": "[" * 3000,
    "deep mapping": '{"a":' * 3000 + "1" + "}" * 3000,
    "NaN": "NaN",
    "huge": "9" * 5000,
    "binary": b"\xff\xfe\x00",
    "nothing": "",
}


def spoilt(value, path=""):
    """(path, value with that part of it absent, or of another type)."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield f"{path}.{key}", {name: other for name, other in value.items() if name != key}
        for other in (None, "x", [[]], {"a": None}, 10**400):
            yield f"{path}.{key}", value | {key: other}
        if isinstance(inner, dict):
            yield from ((name, value | {key: other}) for name, other in spoilt(inner, f"{path}.{key}"))
        if isinstance(inner, list) and inner:
            yield from ((name, value | {key: [other]}) for name, other in spoilt(inner[0], f"{path}.{key}"))


@pytest.mark.parametrize("stage", FILES)
@pytest.mark.fault("a record of another shape")
def test_a_record_of_any_shape_is_absent_valid_or_refused_by_name(finished, stage):
    """Some thousand contents of the file: what no sentence says is an error here."""
    job = FILES[stage]
    file = finished.path(job) / "record.json"
    whole = records.read_json(file)
    texts = [("", text) for text in ABSENT.values()]
    texts += [(path, json.dumps(value)) for path, value in spoilt(whole)]
    read_through = set()
    assert len(texts) > 100
    owner = Job("distill", "birds", "resnet", "FT") if stage == "student" else job
    for path, text in texts:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        states.why(finished, owner, states.state(finished, owner))
        stored = records.find(finished, job)
        if stored is None:
            assert not records.is_complete(finished, owner)
        elif records.fault(job, stored) is None and path not in read_through:
            read_through.add(path)
            for read in (records.collect, pages.notes, pages._facts):
                read(finished)
            cost.estimate(finished, [owner])
