"""The command line: counts, states from files alone, one driver, and mistakes in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.text import Text
from traces import ERROR, notebook, result

from fgkd import cli
from fgkd import study as studies
from fgkd.analysis import records
from fgkd.engine import cost, run, states, terminal
from fgkd.study import Job

CELL = Job("teacher", "birds", "resnet", "FT")


def test_the_counts_of_smoke(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    assert cli.main(["plan", "--json", str(studies.PROJECT / "runs" / "smoke.yaml")]) == 0
    counts = json.loads(capsys.readouterr().out)
    expected = {
        "pretext_trainings": 3,
        "teacher_trainings": 9,
        "banks": 9,
        "distillations": 15,
        "ce_baselines": 1,
        "groups": 5,
        "notebooks": 39,
    }
    assert {name: counts[name] for name in expected} == expected
    plain, tgda = (studies.load("smoke").bank_views * 6 * 16 * 2 * view for view in (6, 3 * 6 + 4 + 2 * 2))
    assert counts["largest_bank_bytes"] == tgda and counts["bank_bytes"] == 6 * plain + 3 * tgda


@pytest.mark.parametrize("seed", [0, [0, 1, 2]])
def test_a_group_is_a_data_set_a_student_and_a_strategy_of_all_seeds(make_study, seed):
    study = make_study(
        {
            "seed": seed,
            "datasets": {f"d{i}": {"species": 4} for i in range(8)},
            "teachers": {f"t{i}": {"model": "test_resnet"} for i in range(8)},
            "students": {f"s{i}": {"model": "test_resnet"} for i in range(4)},
        }
    )
    counts = cost.counts(study)
    repeats = len(study.seeds)
    assert (
        counts["teacher_trainings"],
        counts["distillations"],
        counts["groups"],
        counts["ce_baselines"],
    ) == (128 * repeats, 512 * repeats, 64, 32 * repeats)


def test_the_bytes_of_a_bank_are_those_on_disk(finished):
    sizes = [f.stat().st_size for f in finished.folder.rglob("view-*.safetensors")]
    counts = cost.counts(finished)
    assert len(sizes) == 2 * counts["banks"] and 0 < sum(sizes) - counts["bank_bytes"] <= 512 * len(sizes)


def test_a_plan_writes_nothing_and_says_what_is_left(tiny, capsys):
    assert cli.main(["plan", tiny.file]) == 0
    shown = capsys.readouterr().out
    assert "0 of 25 notebooks are done; left to run:" in shown and "7 x 05_distillation" in shown
    assert not tiny.folder.exists()


def test_status_of_a_study_that_never_ran(tiny, capsys):
    assert cli.main(["status", tiny.file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 26
        and lines[-1].startswith("25 waiting; results in ")
        and all(line.startswith("waiting") for line in lines[:-1])
    )
    assert not tiny.folder.exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["status", "smok"], "study 'smok' is unknown (did you mean 'smoke'?)"),
        (["plan", "absent.yaml"], "study file 'absent.yaml' does not exist"),
        (["run", "broken.yaml"], "broken.yaml is not YAML"),
        (["plan", "."], "study '.' is unknown"),
    ],
)
def test_a_study_that_cannot_be_read_ends_with_status_2_and_one_line(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [")
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1
    assert shown.err.startswith("fgkd: ") and message in shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_mistyped_model_or_plugin_is_found_before_anything_runs(write_study, tmp_path, capsys, command):
    (tmp_path / "bad.py").write_text("import no_such_module")
    for change, message in (
        ({"students.small.model": "test_resnte"}, "did you mean test_resnet"),
        ({"plugins": ["bad.py"]}, "no_such_module"),
    ):
        assert cli.main([command, str(write_study(change))]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly", "smoke"],
        ["plan"],
        ["run", "smoke", "--cores", "many"],
        ["run", "smoke", "--cores", "0"],
        ["run", "smoke", "--cores", "-1"],
    ],
)
def test_words_that_are_no_command_end_with_status_2_and_the_usage(capsys, words):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2 and "usage: fgkd" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["choose", "~nosuchuser/photos", "--student", "lcnet_035"],
            "nosuchuser/photos' begins with '~', but",
        ),
        (["choose", ".", "--student", "lcnet_035", "--out", "file"], "file', which is a file: name a folder"),
        (["data", "cub", "--root", "~nosuchuser/x"], "'~nosuchuser/x' begins with '~', but"),
        (["plan", "~nosuchuser/x.yaml"], "does not exist"),
        (["plan", "deep.yaml"], "deep.yaml is nested too deeply"),
        (["export", "smoke", "teacher/birds/FT/x", "--out", "."], "is not in the study"),
    ],
)
def test_odd_words_end_with_status_2_and_one_sentence(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    (tmp_path / "deep.yaml").write_text("a: " + 1200 * "[" + 1200 * "]")
    (tmp_path / "file").touch()
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("fgkd: ") and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "error, status, message",
    [
        (RuntimeError("odd"), 1, "fgkd: RuntimeError: odd. This should not happen: FGKD_DEBUG=1 shows where"),
        (PermissionError(13, "Permission denied", "/x"), 2, "fgkd: '/x' cannot be used (Permission denied)"),
        (ValueError("\x1b]0;PWNED\x07a\u202eb\x9b"), 2, "fgkd: ]0;PWNEDab\n"),
    ],
)
def test_any_error_is_a_sentence_and_none_steers_the_terminal(monkeypatch, capsys, error, status, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(studies, "load", fail)
    assert cli.main(["status", "smoke"]) == status
    assert message in capsys.readouterr().err
    monkeypatch.setenv("FGKD_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["status", "smoke"])


def test_closed_outputs_are_written_to_no_more(tiny):
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        words = f"{sys.executable} -m fgkd.cli status {tiny.file} {closed}"
        done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == ""


def test_names_and_notes_do_not_steer_the_terminal(capsys, monkeypatch):
    evil = "\x1b]0;PWNED\x07a\x1b[2Jb\x9bc"
    terminal.show(evil, Text(evil), terminal.frame_table(pd.DataFrame({"x": [evil]})))
    assert not {"\x1b", "\x07", "\x9b"} & set(capsys.readouterr().out)
    monkeypatch.setattr(terminal.PlainConsole, "is_terminal", True)
    terminal.show(Text(evil, "red"))
    assert "]0;" not in capsys.readouterr().out.replace("]0;PWNEDa[2Jbc", "")


@pytest.mark.parametrize("command", ["plan", "status"])
def test_a_reader_that_has_seen_enough_ends_the_output_silently(tiny, command):
    process = subprocess.Popen(
        [sys.executable, "-m", "fgkd.cli", command, tiny.file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 0)
    process.stderr.close()


def test_a_cell_that_never_ran_waits(tiny):
    assert states.state(tiny, CELL) == {"state": "waiting", "seconds": None, "log": None, "error": None}


def test_a_cell_with_its_result_is_done(tiny):
    log = notebook(tiny, CELL, duration=12.5, end_time="2026-01-01T00:00:12")
    result(tiny, CELL)
    assert states.state(tiny, CELL) == {"state": "done", "seconds": 12.5, "log": log, "error": None}


def test_a_result_of_other_values_is_stale(tiny, make_study):
    result(tiny, CELL)
    assert states.state(tiny, CELL)["state"] == "done"
    assert states.state(make_study({"recipes.FT.lr": 0.5}), CELL)["state"] == "stale"
    assert states.state(make_study({"recipes.FZ.lr": 0.5}), CELL)["state"] == "done"


def test_a_notebook_that_raised_is_failed_with_its_error(tiny):
    log = notebook(
        tiny,
        CELL,
        {"cell_type": "markdown"},
        ERROR,
        duration=3.0,
        end_time="2026-01-01T00:00:03",
        exception=True,
    )
    assert states.state(tiny, CELL) == {
        "state": "failed",
        "seconds": 3.0,
        "log": log,
        "error": "ValueError: no bank",
    }


@pytest.mark.fault("a notebook without result or error")
def test_a_notebook_that_ended_without_result_or_error_lost_its_kernel(tiny):
    notebook(tiny, CELL, duration=3.0, end_time="2026-01-01T00:00:03", exception=None)
    row = states.state(tiny, CELL)
    assert row["state"] == "failed" and "killed, or ran out of memory" in row["error"]


@pytest.mark.fault("a notebook without an end")
def test_a_notebook_without_an_end_is_running_under_a_driver_and_interrupted_without(tiny):
    notebook(tiny, CELL, duration=None, end_time=None, exception=None)
    assert states.state(tiny, CELL)["state"] == "interrupted"
    with run.driver_lock(tiny):
        assert states.state(tiny, CELL)["state"] == "running"
    assert states.state(tiny, CELL)["state"] == "interrupted"


@pytest.mark.parametrize(
    "content", [json.dumps({"cells": [], "metadata": {"papermill": {"end_time": None}}}), '{"jobs']
)
@pytest.mark.fault("a notebook cut short")
def test_a_result_whose_notebook_was_cut_short_is_not_done(tiny, content):
    log = Path(notebook(tiny, CELL))
    result(tiny, CELL)
    log.write_text(content)
    assert states.state(tiny, CELL)["state"] == "interrupted"
    log.unlink()
    assert states.state(tiny, CELL)["state"] == "done"


@pytest.mark.parametrize(
    "name, content",
    [("03_teacher.ipynb", "{"), ("03_teacher.ipynb", "{}"), ("result.json", "{"), ("result.json", "")],
)
@pytest.mark.fault("a result or notebook half written")
def test_files_that_are_being_written_are_no_state(tiny, name, content):
    tiny.path(CELL).mkdir(parents=True)
    (tiny.path(CELL) / name).write_text(content)
    assert states.state(tiny, CELL)["state"] == "waiting"
    with run.driver_lock(tiny):
        assert states.state(tiny, CELL)["state"] == ("running" if name.endswith("ipynb") else "waiting")


def test_status_shows_failures_with_their_log_and_ends_with_status_1(tiny, capsys):
    log = notebook(tiny, CELL, ERROR, duration=3.0, end_time="2026-01-01T00:00:03", exception=True)
    result(tiny, done := Job("data", "birds"))
    assert cli.main(["status", tiny.file]) == 1
    lines = capsys.readouterr().out.splitlines()
    position = next(i for i, line in enumerate(lines) if CELL.id in line)
    assert (
        lines[position].startswith("failed") and "3.0 s" in lines[position] and lines[position].endswith(log)
    )
    assert lines[position + 1].strip() == "ValueError: no bank"
    assert next(line for line in lines if done.id in line).startswith("done")
    assert {"1 done", "1 failed", "23 waiting"} == set(lines[-1].partition(";")[0].split(", "))


def reasons(study, after):
    """id -> why each job that is not done in `after` will run, where all jobs of `study` are done."""
    for job in study.jobs():
        result(study, job)
    return {c.id: reason for c, reason in states.left(after).items()}


def test_a_plan_says_which_setting_changed_and_what_follows_from_it(finished, make_study):
    changes = reasons(finished, make_study({"teachers.resnet.recipe": {"lr": 0.5}}))
    assert changes.pop("teacher/birds/FT/resnet") == "recipe.lr 0.01 -> 0.5"
    assert changes.pop("teacher/birds/FZ/resnet") == "recipe.lr 0.1 -> 0.5"
    assert set(changes) == {
        f"{stage}/birds/{r}/resnet" for stage in ("bank", "distill") for r in ("FZ", "FT")
    } | {"study/correlation", "study/report"}
    assert set(changes.values()) == {"an input is recomputed"}


def test_a_comment_in_the_study_file_runs_nothing(finished, make_study):
    Path(finished.file).write_text("# a comment\n" + Path(finished.file).read_text())
    assert reasons(finished, studies.load(finished.file)) == {}


def test_a_plan_groups_what_is_left_by_reason(finished, capsys):
    for job in finished.jobs():
        result(finished, job)
    study = finished
    (study.path(CELL) / "result.json").unlink()
    notebook(study, CELL, ERROR, end_time="now")
    for name in ("result.json", "record.json"):
        (study.path(Job("intro")) / name).unlink()
    assert cli.main(["plan", study.file]) == 0
    shown = capsys.readouterr().out
    assert "23 of 25 notebooks are done; left to run:" in shown
    assert (
        "   1 x 03_teacher             failed: ValueError: no bank\n" in shown
        and "   1 x 01_what_is_ratio12     never ran\n" in shown
    )


def test_how_a_kernel_ended_stands_beside_the_error_and_what_it_printed(tiny, capsys):
    notebook(
        tiny,
        CELL,
        {
            "cell_type": "code",
            "outputs": [{"output_type": "stream", "text": ["one\ntwo\n", "10%\r50%\n", "three\n"]}],
        },
        end_time="now",
    )
    records.write_json(tiny.path(CELL) / "exit.json", {"exit_status": -9, "peak_memory_mb": 2048})
    row = states.state(tiny, CELL)
    message = "its kernel ended without an error message: it was killed, or ran out of memory"
    assert row["error"] == f"{message} (signal 9, peak memory 2,048 MB)"
    assert cli.main(["status", tiny.file]) == 1
    assert (
        "peak memory 2,048 MB)\n" + "".join(" " * 24 + f"{line}\n" for line in ("two", "50%", "three"))
        in capsys.readouterr().out
    )


def test_where_nothing_has_failed_there_is_nothing_to_retry(tiny, capsys):
    assert cli.main(["run", tiny.file, "--retry-failed"]) == 0
    assert "nothing has failed" in capsys.readouterr().out and not list(tiny.folder.rglob("result.json"))


def test_a_profile_that_is_none_is_refused(tiny, capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", tiny.file, "--profile", "profiles"])
    assert (
        "'profiles' has no config.yaml: expected a folder such as profiles/slurm" in capsys.readouterr().err
    )


def imported(program):
    """The modules that a program has imported in the end."""
    program += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_and_the_engine_s_states_load_without_torch():
    assert not {"torch", "timm"} & imported("import fgkd.cli, fgkd.engine.states, fgkd.engine.terminal")


def test_the_help_loads_no_other_module_of_the_package_and_no_library():
    modules = imported("import fgkd.cli; fgkd.cli._parser().format_help()")
    assert {name for name in modules if name.startswith("fgkd")} == {"fgkd", "fgkd.cli"}
    assert not {"numpy", "pandas", "yaml", "pydantic", "rich"} & modules


def test_a_status_waits_for_no_torch(tiny):
    modules = imported(f"import fgkd.cli; fgkd.cli.main(['status', {tiny.file!r}])")
    assert not {"torch", "timm"} & modules


@pytest.mark.parametrize("command", ["plan", "run", "status", "report", "pack", "data", "check", "bench"])
def test_every_command_has_a_help_of_whole_sentences(capsys, command):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0 and re.search(r"\n\n[A-Z][^.]+\.\n", capsys.readouterr().out)


def test_a_dataset_that_is_none_of_the_papers_is_refused_with_their_names(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "cubs"])
    assert (
        end.value.code == 2 and "'cubs' is unknown: expected one of aircraft, cars" in capsys.readouterr().err
    )


def test_a_status_as_json_has_all_that_the_lines_have(tiny, capsys):
    log = notebook(tiny, CELL, ERROR, duration=3.0, end_time="2026-01-01T00:00:03", exception=True)
    assert cli.main(["status", "--json", tiny.file]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["counts"] == {"waiting": 24, "failed": 1} and value["folder"] == str(tiny.folder)
    assert value["study"] == "tiny" and value["lacking"] == []
    (row,) = [row for row in value["jobs"] if row["job"] == CELL.id]
    assert row == {
        "job": CELL.id,
        "state": "failed",
        "seconds": 3.0,
        "log": log,
        "error": "ValueError: no bank",
        "progress": None,
    }


def test_to_watch_a_study_that_is_not_run_is_to_see_its_states(tiny, capsys):
    assert cli.main(["status", "--watch", tiny.file]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("25 waiting; results in ")
