"""The real engine under faults: the same command goes on to the tables of an undisturbed run.

A minute and a half.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import psutil
import pytest

from fgkd.distillation import stages

SMALL = {"teachers.efficientnet": ..., "strategies": ["FT"], "recipes.FZ": ...}


@pytest.fixture
def start():
    """(study) -> `fgkd run` as a terminal starts it: the leader of a process group."""
    drivers = []

    def started(study):
        command = [sys.executable, "-m", "fgkd.cli", "run", study.file]
        drivers.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
        )
        return drivers[-1]

    yield started
    for driver in drivers:
        driver.kill()
        driver.wait()
        driver.stdout.close()


@pytest.mark.fault("a terminal closed, or a scheduler's end of time")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_any_signal_that_ends_a_run_says_that_the_same_command_goes_on(
    start, make_study, monkeypatch, wait_for, request, number
):
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    study = make_study(SMALL)
    driver = start(study)
    assert wait_for(lambda: kernels(study.folder), 120)
    driver.send_signal(number)
    output = driver.communicate(timeout=20)[0]
    assert driver.returncode == 128 + number
    assert output == "fgkd: interrupted: finished runs are kept, the same command continues\n"
    assert wait_for(lambda: not processes(study.folder), 5) and not list(temporary.iterdir())


def results(folder):
    return {f.parent for f in folder.rglob("result.json")}


def processes(folder):
    """The driver and all that it started, which have its FGKD_RUNS."""
    matches = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another user's, or it has ended
            if (
                process.environ().get("FGKD_RUNS") == str(folder.parent)
                and process.status() != psutil.STATUS_ZOMBIE
                and process.pid != os.getpid()
            ):
                matches.add(process)
    return matches


def kernels(folder):
    """Those forks of the forkserver that lead a session of their own."""
    matches = set()
    for process in processes(folder):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if "forkserver" in " ".join(process.cmdline()) and os.getsid(process.pid) == process.pid:
                matches.add(process)
    return matches


@pytest.mark.fault("a kernel killed, Ctrl-C and kill -9 in one study")
def test_a_run_that_loses_a_kernel_is_interrupted_and_killed_ends_with_the_tables_of_an_undisturbed_one(
    start, make_study, tmp_path, monkeypatch, wait_for
):
    study = make_study(SMALL)
    folder = study.folder

    driver = start(study)
    assert wait_for(lambda: folder / "data" / "birds" in results(folder), 120)
    before, known = results(folder), kernels(folder)
    wait_for(lambda: kernels(folder) - known, 60).pop().kill()
    output = driver.communicate(timeout=300)[0]
    assert (
        driver.returncode == 1
        and output.count("failed: ") == 1
        and "its kernel ended without an error message: it was killed" in output
    )
    assert before < results(folder) and wait_for(lambda: not processes(folder), 5)

    before = results(folder)
    driver = start(study)
    assert wait_for(lambda: before < results(folder), 120)
    os.killpg(driver.pid, signal.SIGINT)
    output = driver.communicate(timeout=10)[0]
    assert (
        driver.returncode == 130
        and "interrupted: finished runs are kept, the same command continues" in output
        and "Traceback" not in output
    )
    assert wait_for(lambda: not processes(folder), 5)

    before = results(folder)
    driver = start(study)
    assert wait_for(lambda: before < results(folder) and kernels(folder), 120)
    orphans = processes(folder)
    driver.kill()
    driver.communicate()
    driver = start(study)
    assert wait_for(lambda: not orphans & processes(folder), 5)
    output = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0, output + (folder / "engine.log").read_text()
    assert before < results(folder) and wait_for(lambda: not processes(folder), 5)

    monkeypatch.setenv("FGKD_RUNS", str(tmp_path / "undisturbed"))
    stages.write_study_tables(study, "correlation", stages.study_tables(study))
    for name in ("teachers", "metrics", "students", "correlations", "epochs"):
        tables = [
            pd.read_csv(f / "tables" / f"{name}.csv").drop(
                columns=["commit", "seconds", "peak_memory_mb"], errors="ignore"
            )
            for f in (folder, study.folder)
        ]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
