"""A batch run: one driver, its events as they happen, and what the terminal makes of them."""

import errno
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from traces import ERROR, notebook, result

from fgkd import cli
from fgkd import study as studies
from fgkd.analysis import records
from fgkd.engine import events, live, run, states, terminal
from fgkd.engine.events import Event
from fgkd.study import PROJECT, Job, StudyError

TEACHER = Job("teacher", "birds", "resnet", "FT")
DISTILL = Job("distill", "birds", "resnet", "FT")


@pytest.mark.fault("two drivers at once")
def test_a_second_driver_is_refused_and_the_lock_ends_with_the_first(tiny, capsys):
    with run.driver_lock(tiny):
        assert cli.main(["run", tiny.file]) == 2
        error = capsys.readouterr().err
        assert "study 'tiny' is being run already: wait for it" in error and len(error.splitlines()) == 1
    with run.driver_lock(tiny):
        pass


@pytest.mark.fault("a file system without locks")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_run_says_so_and_a_status_does_without(tiny, monkeypatch, capsys, number):
    def no_locks(*given):
        raise OSError(number, os.strerror(number))

    notebook(tiny, TEACHER, duration=None, end_time=None, exception=None)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert cli.main(["run", tiny.file]) == 2
    error = capsys.readouterr().err
    assert f"'{tiny.folder / '.driver'}'" in error and error.count("\n") == 1
    assert "has no locks: set FGKD_RUNS to a folder" in error
    assert states.state(tiny, TEACHER)["state"] == "interrupted"


LIVES_ON = """
import sys
from pathlib import Path
from fgkd.engine import states
held = states.lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read(1)
"""


@pytest.mark.fault("a cluster's engine that outlives its driver")
def test_a_driver_waits_for_the_engine_that_a_killed_one_left(tiny, capsys):
    tiny.folder.mkdir()
    command = [sys.executable, "-c", LIVES_ON, str(tiny.folder / states.ENGINE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        assert engine.stdout.readline() == b"locked\n"
        threading.Timer(0.2, engine.stdin.close).start()
        with run.driver_lock(tiny):
            assert engine.wait(timeout=5) == 0
    assert capsys.readouterr().err == "waiting for the processes of a run that was killed to end\n"
    with run.driver_lock(tiny):
        assert capsys.readouterr().err == ""


def test_the_driver_of_another_study_is_no_hindrance(tiny, make_study):
    with run.driver_lock(tiny), run.driver_lock(make_study(name="other")):
        pass


def test_asking_for_the_state_does_not_keep_a_driver_out(tiny):
    notebook(tiny, TEACHER, duration=None, end_time=None, exception=None)
    for _ in range(3):
        states.state(tiny, TEACHER)
        with run.driver_lock(tiny):
            pass


@pytest.mark.parametrize(
    "visible, slots", [(None, ["0", "0", "1", "1"]), ("3,GPU-7", ["3", "3", "GPU-7", "GPU-7"])]
)
def test_every_gpu_has_as_many_slots_as_runs_may_share_it(make_study, monkeypatch, visible, slots):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert run.gpu_slots(make_study({"device": "auto", "runs_per_gpu": 2})) == slots
    assert run.gpu_slots(make_study({"device": "cpu", "runs_per_gpu": 2})) == []


def test_two_study_files_of_one_name_do_not_share_a_folder(tiny, tmp_path):
    with run.driver_lock(tiny):
        pass
    (tmp_path / "other").mkdir()
    (other := tmp_path / "other" / "tiny.yaml").write_text("# another\n" + Path(tiny.file).read_text())
    message = f"'{tiny.folder}' holds the results of '{tiny.file}': give this study another name"
    with pytest.raises(StudyError, match=message), run.driver_lock(studies.load(str(other))):
        pass
    Path(tiny.file).unlink()
    with run.driver_lock(studies.load(str(other))):
        pass


def test_a_study_file_that_has_changed_or_moved_keeps_its_folder_and_a_copy_of_that_is_free(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    with run.driver_lock(tiny):
        pass
    note = tiny.folder / ".study"
    assert str(tmp_path) not in note.read_text() and "~/tiny.yaml" in note.read_text()
    text = Path(tiny.file).read_text()
    Path(tiny.file).write_text(f"# changed\n{text}")
    (moved := tmp_path / "moved" / "tiny.yaml").parent.mkdir()
    with run.driver_lock(tiny):
        pass
    Path(tiny.file).rename(moved)
    with run.driver_lock(studies.load(str(moved))):
        pass
    shutil.copytree(tiny.folder, tmp_path / "copy" / "tiny")
    Path(tiny.file).write_text(text)
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path / "copy"))
    with run.driver_lock(studies.load(tiny.file)):
        pass
    for broken in ("{}", "5", "{"):
        note.write_text(broken)
        with run.driver_lock(tiny):
            pass


def play(study, *steps):
    """The events of a run of which one step is taken before each look: lines of Snakemake's, or others."""
    steps = list(steps)
    writer = events.Writer(study.folder / events.FILE)
    jobs = list(study.jobs())

    def say(event, job):
        number = "job_id" if event == "job_finished" else "jobid"
        values = {"event": event, number: jobs.index(job), "wildcards": {"id": job.id}}
        writer.handle(logging.makeLogRecord(values))

    def goes_on():
        if steps:
            step = steps.pop(0)
            step() if callable(step) else say(*step)
        return bool(steps)

    with run.driver_lock(study):
        events.begin(study, jobs)
        writer.handle(logging.makeLogRecord({"msg": "Execute...", "event": "job_started"}))
        return list(events.follow(study, goes_on))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)


def progress_of(study, job, **values):
    value = {"what": "resnet FT", "epoch": 2.5, "epochs": 10, "loss": 1.25, "seconds_per_epoch": 8.0}
    times = {"started": 1.0, "updated": 2.0}
    records.write_json(study.path(job) / "progress.json", value | times | values)


def test_a_run_says_what_starts_how_far_it_is_and_how_it_ends(tiny):
    (training,) = tiny.student_jobs(DISTILL)

    def fail():
        notebook(tiny, DISTILL, ERROR, end_time="now", duration=3.0, exception=True)
        (tiny.path(training) / "progress.json").unlink()

    seen = play(
        tiny,
        ("job_info", TEACHER),
        lambda: notebook(tiny, TEACHER, end_time=None),
        lambda: progress_of(tiny, TEACHER),
        lambda: (result(tiny, TEACHER), notebook(tiny, TEACHER, end_time="now", duration=12.5)),
        ("job_finished", TEACHER),
        ("job_info", DISTILL),
        lambda: (notebook(tiny, DISTILL, end_time=None), progress_of(tiny, training, epoch=1)),
        fail,
        ("job_error", DISTILL),
    )
    assert [(event.kind, event.job) for event in seen] == [
        ("running", TEACHER),
        ("progress", TEACHER),
        ("done", TEACHER),
        ("running", DISTILL),
        ("progress", DISTILL),
        ("failed", DISTILL),
    ]
    assert seen[1].values["epoch"] == 2.5 and seen[4].values["parts"] == 1
    assert seen[2].values == {"seconds": 12.5, "result": "TAC 25.0%"}
    assert seen[5].values["error"] == "ValueError: no bank"


def test_what_is_said_last_is_heard_after_the_engine_has_ended(tiny):
    result(tiny, TEACHER)
    seen = play(tiny, ("job_info", TEACHER), ("job_finished", TEACHER))
    assert [event.kind for event in seen] == ["done"]


def test_a_failed_job_that_is_tried_again_is_announced_again_and_one_in_a_queue_does_not_run(tiny):
    seen = play(
        tiny,
        ("job_info", TEACHER),
        ("job_info", DISTILL),
        lambda: notebook(tiny, TEACHER, ERROR, end_time="now", exception=True),
        ("job_error", TEACHER),
        ("job_info", TEACHER),
        lambda: (result(tiny, TEACHER), notebook(tiny, TEACHER, end_time="now")),
        ("job_finished", TEACHER),
        ("job_error", DISTILL),
    )
    assert [event.kind for event in seen] == ["running", "failed", "running", "done", "failed"]
    assert "its notebook did not run: see" in seen[-1].values["error"]


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """(program) -> the words of a command that runs it in place of Snakemake, its kernels elsewhere."""
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").touch()

    def replace(program):
        monkeypatch.setattr(run, "_command", lambda cores: [sys.executable, "-c", program])
        return ["--profile", str(tmp_path / "profile")]

    return replace


def test_what_waits_for_its_turn_is_shown_neither_as_failed_nor_as_running(tiny, engine):
    other = Job("teacher", "birds", "efficientnet", "FT")
    notebook(tiny, TEACHER, ERROR, end_time="now", exception=True)
    notebook(tiny, other, end_time=None)
    profile = engine("pass")[1]
    jobs = [TEACHER, other]
    with run.driver_lock(tiny), run.start_engine(tiny, jobs, cores=1, profile=profile):
        assert {states.state(tiny, job)["state"] for job in jobs} == {"waiting"}


def test_a_notebook_that_did_not_run_failed_of_what_kept_it(tiny):
    notebook(tiny, TEACHER, end_time="now", exception=None)
    ending = {"exit_status": 0, "peak_memory_mb": 0}
    records.write_json(tiny.path(TEACHER) / "exit.json", ending)
    assert states.state(tiny, TEACHER)["state"] == "waiting"
    records.write_json(tiny.path(TEACHER) / "exit.json", ending | {"error": "no sockets"})
    row = states.state(tiny, TEACHER)
    assert (row["state"], row["error"]) == ("failed", "no sockets")


def test_to_retry_takes_what_failed_and_what_it_waits_for_alone(finished):
    for job in finished.jobs():
        result(finished, job)
    for job in (TEACHER, Job("teacher", "birds", "efficientnet", "FT"), Job("intro")):
        (finished.path(job) / "result.json").unlink()
    (finished.path(DISTILL) / "result.json").unlink()
    notebook(finished, DISTILL, ERROR, end_time="now", exception=True)
    jobs = run.jobs_to_run(finished, retry_failed=True)
    assert jobs == [TEACHER, DISTILL] and len(run.jobs_to_run(finished)) == 4


def test_a_run_as_json_is_a_line_for_each_event_and_says_how_it_ended(tiny, engine, capsys):
    words = engine("import sys; print('no disk left'); sys.exit(3)")
    assert cli.main(["run", tiny.file, "--json", *words]) == 1
    shown = capsys.readouterr()
    start, end = map(json.loads, shown.out.splitlines())
    assert start["event"] == "start" and start["study"] == "tiny" and len(start["jobs"]) == 25
    assert end == {
        "event": "end",
        "status": 1,
        "failed": [],
        "report": str(tiny.folder / "report" / "index.html"),
    }
    assert "the engine ended with exit status 3; its log is" in shown.err and "  no disk left\n" in shown.err
    assert shown.err.endswith("the same command goes on from what is finished\n")


def test_the_engine_is_told_its_jobs_in_a_file_however_many_they_are(tiny, engine):
    words = engine("import os; print(open('.run').read(), os.environ['FGKD_STUDY'])")
    with (
        run.driver_lock(tiny),
        run.start_engine(tiny, [TEACHER], cores=1, profile=words[1]) as process,
    ):
        assert process.wait() == 0
    log = (tiny.folder / "engine.log").read_text()
    assert TEACHER.id in log and DISTILL.id not in log and tiny.file in log
    assert events.jobs(tiny) == [TEACHER]


def test_a_bank_of_an_earlier_run_is_not_computed_again_and_goes_after_its_last_student(finished):
    for job in finished.jobs():
        result(finished, job)
    for file in finished.path(DISTILL).rglob("record.json"):
        file.unlink()
    command = [*run._command(1), "--dry-run", "--config", f"study={finished.file}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rule distill:" in done.stdout and "rule bank:" not in done.stdout
    assert "Would remove temporary output bank/birds/FT/resnet/views" in done.stdout


def test_a_run_without_a_terminal_is_a_line_for_each_job_that_ended(tiny, capsys):
    happened = [
        Event("running", TEACHER),
        Event("done", TEACHER, {"seconds": 1.0, "result": "TAC 34.2%"}),
        Event("failed", DISTILL, {"error": "ValueError: [no] bank", "log": "x"}),
    ]
    live.show(tiny, [TEACHER, DISTILL], happened)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split() for line in lines] == [
        ["1/2", TEACHER.id, "TAC", "34.2%"],
        ["FAILED:", DISTILL.id, "ValueError:", "[no]", "bank"],
    ]


@pytest.fixture
def view(tiny):
    """The view of a run of all jobs in which one training runs."""
    view = live.RunView(tiny, list(tiny.jobs()), Console(file=StringIO()))
    view.update(Event("running", TEACHER))
    values = {"what": "resnet FT", "epoch": 2.5, "epochs": 10, "loss": 1.25, "seconds_per_epoch": 8.0}
    view.update(Event("progress", TEACHER, values | {"part": 2, "parts": 3}))
    return view


def drawn(view, width):
    console = Console(file=StringIO(), width=width)
    console.print(view)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_the_view_says_what_runs_now_what_failed_and_when_it_ends_in_any_terminal(view, width):
    view.update(Event("failed", DISTILL, {"error": "ValueError: " + "no bank " * 30, "log": "x"}))
    text = drawn(view, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for words in ("tiny", "0/25 done", "1 running", "1 failed", "23 waiting", TEACHER.id, "3/10", "1.250"):
        assert words in text
    assert "resnet FT (2 of 3)" in text and "1 min" in text and "ends in at least 1 min, at" in text
    assert f"failed: {DISTILL.id}  ValueError: no bank" in text and text.count("no bank") < 20


def test_when_all_ends_follows_from_what_jobs_of_each_stage_took(tiny, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    teachers = [job for job in tiny.jobs() if job.stage == "teacher"]
    view = live.RunView(tiny, teachers, Console(file=StringIO()))
    assert view.seconds_left() == (0, True)
    for job in teachers[:2]:
        view.update(Event("running", job))
    now[0] += 10
    view.update(Event("done", teachers[0], {"seconds": 10.0, "result": ""}))
    assert len(teachers) == 7 and view.seconds_left() == (0 + 5 * 10, False)
    view.update(Event("running", teachers[2]))
    now[0] += 5
    assert view.seconds_left() == ((0 + 5 + 4 * 10) / 2, False)
    values = {"epoch": 1, "epochs": 5, "seconds_per_epoch": 3.0}
    view.update(Event("progress", teachers[1], values))
    assert view.seconds_left() == ((4 * 3 + 5 + 4 * 10) / 2, False)


def test_tables_wrap_in_a_terminal_and_nowhere_else(monkeypatch, capsys, tiny):
    log = notebook(tiny, TEACHER, ERROR, end_time="now", exception=True)
    rows = {job: states.state(tiny, job) for job in tiny.jobs()}
    terminal.show_status(tiny, rows)
    assert any(line.endswith(log) for line in capsys.readouterr().out.splitlines())
    monkeypatch.setattr(
        terminal,
        "console_for",
        lambda file: Console(file=file, width=60, force_terminal=True, color_system=None),
    )
    terminal.show_status(tiny, rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["state", "seconds", "job", "notebook"] and len(lines) < 40
    assert max(map(len, lines[:-1])) <= 60 and "ValueError: no bank" in "\n".join(lines)


def test_a_table_of_numbers_has_the_leading_columns_that_fit_and_a_table_of_texts_wraps():
    frame = pd.DataFrame({"metric": ["ratio12", "tac"], "rho": [0.12345, float("nan")], "groups": [3, 12]})
    table = terminal.frame_table(frame, digits=2, width=len("ratio12  0.12"))
    assert [column.header for column in table.columns] == ["metric", "rho"]
    assert list(table.columns[1].cells) == ["0.12", ""]
    assert len(terminal.frame_table(frame).columns) == 3


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_to_watch_a_study_is_to_see_what_a_run_does_until_it_ends(tiny, monkeypatch, capsys, words):
    notebook(tiny, TEACHER, ERROR, end_time="now", exception=True)
    play(tiny, ("job_info", TEACHER), ("job_error", TEACHER))
    driven = iter([True, True, True])
    monkeypatch.setattr(states, "is_driven", lambda study: next(driven, False))
    assert cli.main(["status", "--watch", tiny.file, *words]) == 1
    shown = capsys.readouterr()
    if words:
        failed, status = map(json.loads, shown.out.splitlines()[1:])
        assert failed["event"] == "failed" and failed["job"] == TEACHER.id
        assert status["event"] == "status" and status["counts"] == {"waiting": 24, "failed": 1}
    else:
        assert f"FAILED:  {TEACHER.id}" in shown.err and shown.out.count("ValueError: no bank") == 1
