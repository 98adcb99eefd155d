"""The committed study on real photos, rebuilt from its records: no photo, weights or plugin is at hand."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from fgkd import study as studies

RUNS = studies.PROJECT / "runs"
JOBS = {"photos": 927, "photos-seeds": 234}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the records alone."""
    folder = tmp_path_factory.mktemp("runs")
    for study in JOBS:
        (folder / study).mkdir()
        shutil.copy(RUNS / study / "records.jsonl", folder / study)
    return folder


def call(runs, verb, study="photos"):
    environment = os.environ | {"FGKD_RUNS": str(runs), "FGKD_REALDATA": str(runs / "absent")}
    words = [sys.executable, "-m", "fgkd.cli", verb, str(RUNS / f"{study}.yaml")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_tables_are_those_of_its_records(runs):
    call(runs, "report")
    committed = {file.name: file.read_text() for file in (RUNS / "photos/tables").glob("*.csv")}
    committed.pop("rules.csv")  # by a benchmark, which has a test of its own
    rebuilt = {file.name: file.read_text() for file in (runs / "photos/tables").glob("*.csv")}
    assert committed.keys() == rebuilt.keys() and len(committed) > 10
    changed = [name for name in committed if committed[name] != rebuilt[name]]
    assert not changed, f"not as `fgkd report runs/photos.yaml` writes them: {changed}"


@pytest.mark.parametrize("study, jobs", JOBS.items())
def test_its_status_says_that_all_is_done(runs, study, jobs):
    lines = call(runs, "status", study).splitlines()
    assert len(studies.load(study).jobs()) == jobs
    assert sum(line.startswith("done") for line in lines) == jobs


def test_every_teacher_has_a_student_by_every_strategy_that_says_where_it_comes_from():
    students = pd.read_csv(RUNS / "photos/tables/students.csv")
    assert students[["run", "commit", "seed", "device"]].notna().all(axis=None)
    cells = students[students.strategy != "CE"][["dataset", "teacher", "strategy"]].drop_duplicates()
    assert len(cells) == 7 * 13 * 4
