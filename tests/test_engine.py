"""Two strategies of the smoke study through the real engine: Snakemake, papermill, kernels, report."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch

from fgkd import study as studies
from fgkd.distillation import stages
from fgkd.metrics import METRICS

TIMES = ["commit", "seconds", "peak_memory_mb"]
BOTH = ("strategies: [FZ, FT, CAL, TGDA]", "strategies: [FT, TGDA]")
FT = (
    ("strategies: [FT, TGDA]", "strategies: [FT]"),
    ("hint: {strategies: [TGDA]}", "hint: {strategies: [FT]}"),
)


def write(file, *changes):
    """Write smoke's study file by FT and TGDA, with each text changed to another; returns its path."""
    text = (studies.PROJECT / "runs" / "smoke.yaml").read_text()
    for old, new in (BOTH, *changes):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return str(file)


def fgkd(*words, runs, python=sys.executable, cwd=None, **variables):
    environment = os.environ | {"FGKD_RUNS": str(runs)} | variables
    command = [python, "-m", "fgkd.cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    runs = tmp_path_factory.mktemp("engine")
    done = fgkd("run", write(runs / "smoke.yaml"), runs=runs)
    assert done.returncode == 0, done.stderr[-3000:] + (runs / "smoke" / "engine.log").read_text()[-3000:]
    return runs, done


@pytest.fixture(scope="module")
def study(smoke):
    return studies.load(str(smoke[0] / "smoke.yaml"))


def test_every_cell_ends_with_its_notebook_result_and_a_row(smoke, study):
    runs, done = smoke
    for job in study.jobs():
        folder = runs / "smoke" / job.id
        assert (folder / "result.json").exists() and (folder / f"{job.notebook}.ipynb").exists(), job.id
    tables = {f.stem: pd.read_csv(f) for f in (runs / "smoke" / "tables").glob("*.csv")}
    rows = {"teachers": 9, "metrics": 6, "students": 10, "correlations": 3 * len(METRICS)}
    assert {name: len(tables[name]) for name in rows} == rows
    assert str(runs / "smoke" / "report" / "index.html") in done.stdout and "ratio12" in done.stdout


def test_the_engine_gives_the_same_tables_as_a_plain_call_in_another_folder(
    smoke, study, tmp_path, monkeypatch
):
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    frames = stages.study_tables(study)
    stages.write_study_tables(study, "correlation", frames)
    for name in ("teachers", "metrics", "students", "correlations", "epochs"):
        engine, plain = (
            pd.read_csv(folder / "smoke" / "tables" / f"{name}.csv").drop(columns=TIMES, errors="ignore")
            for folder in (smoke[0], tmp_path)
        )
        pd.testing.assert_frame_equal(engine, plain, check_exact=True)


def test_banks_are_gone_once_their_last_student_is_done(smoke):
    assert not list((smoke[0] / "smoke" / "bank").rglob("views"))


def test_no_more_banks_lie_on_disk_at_once_than_runs_go_on_at_once(smoke, study):
    events = []
    for job in (c for c in study.jobs() if c.stage == "bank"):
        readers = [c for c in study.jobs() if c.stage == "distill" and job in study.before(c)]
        when = [
            (smoke[0] / "smoke" / c.id / name).stat().st_mtime
            for c, name in ((job, "record.json"), *((c, "result.json") for c in readers))
        ]
        events += [(when[0], 1), (max(when[1:]), -1)]
    assert max(itertools.accumulate(step for _, step in sorted(events))) <= os.cpu_count()


def test_a_second_run_by_another_name_of_the_interpreter_runs_nothing(smoke, study):
    runs, _ = smoke
    results = {f: f.stat().st_mtime_ns for f in (runs / "smoke").rglob("result.json")}
    names = sorted(Path(sys.executable).parent.glob("python3*"))
    python = next(name for name in names if name.name != Path(sys.executable).name)
    done = fgkd("run", study.file, runs=runs, python=str(python))
    assert done.returncode == 0, done.stderr
    assert results == {f: f.stat().st_mtime_ns for f in (runs / "smoke").rglob("result.json")}


def test_status_and_plan_say_that_all_is_done(smoke, study):
    runs, _ = smoke
    jobs = len(study.jobs())
    said = fgkd("status", study.file, runs=runs).stdout.splitlines()[-1]
    assert said == f"{jobs} done; results in {runs / 'smoke'}"
    assert f"{jobs} of {jobs} notebooks are done" in fgkd("plan", study.file, runs=runs).stdout


def test_records_alone_make_the_study_done_in_another_clone_and_give_its_tables_and_figures(
    smoke, study, tmp_path
):
    clone, runs = tmp_path / "clone", tmp_path / "runs"
    for name in ("fgkd", "notebooks", "runs"):
        ignored = shutil.ignore_patterns("__pycache__", "smoke", "demo", "lesson")
        shutil.copytree(studies.PROJECT / name, clone / name, ignore=ignored)
    shutil.copy(studies.PROJECT / "Snakefile", clone)
    for file in (f for name in ("record.json", "result.json") for f in smoke[0].rglob(name)):
        (to := runs / file.relative_to(smoke[0])).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    before = sorted(runs.rglob("*"))
    for command, said in (("status", f"{len(study.jobs())} done"), ("run", "report: ")):
        done = fgkd(command, study.file, runs=runs, cwd=clone, PYTHONPATH=str(clone))
        assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith(said), done.stderr
    new = {f.relative_to(runs / "smoke").parts[0] for f in set(runs.rglob("*")) - set(before)}
    assert new == {"tables", "figures", "report"}
    for file in (smoke[0] / "smoke" / "tables").glob("*.csv"):
        assert (runs / "smoke" / "tables" / file.name).read_bytes() == file.read_bytes(), file.name
    figures = {f.name for f in (smoke[0] / "smoke" / "figures").iterdir()}
    assert len(figures) == 20 and {f.name for f in (runs / "smoke" / "figures").iterdir()} == figures
    assert sum(f.stat().st_size for f in before if f.is_file()) < 700_000


def test_a_further_student_runs_itself_and_the_bar_counts_what_runs(smoke, tmp_path):
    shutil.copytree(smoke[0] / "smoke", tmp_path / "smoke")
    further = "students:\n  small: {model: test_resnet, recipe: {epochs: 1}}\n"
    file = write(tmp_path / "smoke.yaml", ("students:\n", further), *FT)
    records = {f: f.read_bytes() for f in (tmp_path / "smoke").rglob("record.json") if "students" in f.parts}
    planned = json.loads(fgkd("plan", file, "--json", runs=tmp_path).stdout)
    done = fgkd("run", file, runs=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    left = planned["notebooks_left"]
    assert left == 3 + 4 + 2 and f"{left}/{left}" in done.stderr
    assert all(f.read_bytes() == before for f, before in records.items())
    assert not list((tmp_path / "smoke" / "bank").rglob("views"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.fault("no GPU where one is asked for")
def test_a_study_for_a_gpu_reads_its_data_where_there_is_none_and_says_what_lacks(tmp_path):
    file = write(tmp_path / "far.yaml", ("seed: 0\n", "seed: 0\ndevice: cuda\n"), *FT)
    done = fgkd("run", file, runs=tmp_path)
    assert done.returncode == 1 and "device is 'cuda', but PyTorch sees no GPU" in done.stderr
    assert {f.relative_to(tmp_path / "far").parts[0] for f in tmp_path.rglob("result.json")} == {"data"}


def test_the_report_loads_nothing_from_elsewhere_and_its_links_lead_somewhere(smoke, study):
    class Links(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.tags = [], set()

        def handle_starttag(self, tag, attributes):
            self.tags.add(tag)
            self.found += [(tag, v) for k, v in attributes if k in ("href", "src")]

    report = smoke[0] / "smoke" / "report"
    pages = list(report.rglob("*.html"))
    assert len(pages) == len(study.jobs()) + 2  # the index, and the claims
    for page in pages:
        links = Links()
        links.feed(page.read_text())
        assert "script" not in links.tags
        for tag, address in links.found:
            assert not address.startswith(("http:", "https:", "//")) or tag == "a", (page, address)
            if not address.startswith(("#", "data:", "http")):
                assert (page.parent / address.split("#")[0]).exists(), (page, address)
    assert "<math" in (report / "study" / "intro.html").read_text()


@pytest.mark.fault("a mistyped parameter")
def test_a_mistyped_papermill_parameter_fails_by_name(tmp_path):
    command = [
        sys.executable,
        "-m",
        "papermill",
        "-k",
        "python3",
        "--no-progress-bar",
        str(studies.PROJECT / "notebooks" / "02_data.ipynb"),
        str(tmp_path / "out.ipynb"),
        "-p",
        "study",
        "smoke",
        "-p",
        "datset",
        "birds",
    ]
    done = subprocess.run(
        command, env=os.environ | {"FGKD_RUNS": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "parameter 'datset' is unknown (did you mean 'dataset'?)" in done.stderr


def test_a_further_seed_reaches_its_notebook_and_a_folder_of_its_own(smoke, tmp_path):
    shutil.copytree(smoke[0] / "smoke", tmp_path / "smoke")
    study = studies.load(write(tmp_path / "smoke.yaml", ("seed: 0", "seed: [0, 1]")))
    job, first = (plan.job("teacher", "pretext", "byobnet", "pretext") for plan in (study.at(1), study))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(studies.PROJECT / "Snakefile"),
        "--cores",
        "1",
        "--nolock",
        "--rerun-triggers",
        "params",
        "--config",
        f"study={study.file}",
        "--",
        f"{job.id}/result.json",
    ]
    environment = os.environ | {"FGKD_RUNS": str(tmp_path), "PYTHONPATH": str(studies.PROJECT)}
    before = (tmp_path / "smoke" / first.id / "record.json").read_bytes()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "smoke" / job.id / "record.json").read_text())["provenance"]["seed"] == 1
    assert (tmp_path / "smoke" / first.id / "record.json").read_bytes() == before


@pytest.mark.fault("one teacher of a study diverges")
def test_one_failing_teacher_is_named_and_the_others_go_on(tmp_path):
    diverging = "weights: pretext, recipe: {lr: 1.0e+12, clip: 1.0e+30}"
    file = write(tmp_path / "broken.yaml", ("weights: pretext, recipe: {lr: 0.02}", diverging), *FT)
    done = fgkd("run", file, runs=tmp_path)
    assert done.returncode == 1
    assert "failed: teacher/pretext/pretext/vit" in done.stderr and "diverged in epoch" in done.stderr
    study = studies.load(file)
    states = {
        c: json.loads((tmp_path / "broken" / c.id / "result.json").read_text())
        for c in study.jobs()
        if (tmp_path / "broken" / c.id / "result.json").exists()
    }
    assert {c.teacher for c in states if c.stage == "distill"} == {"byobnet", "efficientnet", "none"}
    index = (tmp_path / "broken" / "report" / "index.html").read_text()
    assert "runs are missing" in index and "diverged in epoch" in index
    assert (
        'src="figures/against.svg"' in index and "teachers 2" in index
    )  # what there is is shown, with its n
    said = fgkd("status", file, runs=tmp_path).stdout
    assert re.search(r"failed .* teacher/pretext/pretext/vit .*\n +FloatingPointError: .*\n", said)
    shown = fgkd("plan", file, runs=tmp_path).stdout
    assert re.search(r"1 x 03_teacher +failed: FloatingPointError: .*diverged", shown) and re.search(
        r"1 x 03_teacher +never ran", shown
    )
    (tmp_path / "broken" / "data" / "birds" / "result.json").unlink()
    done = fgkd("run", file, "--retry-failed", runs=tmp_path)
    assert done.returncode == 1 and "failed: teacher/pretext/pretext/vit" in done.stderr
    assert not (tmp_path / "broken" / "data" / "birds" / "result.json").exists()  # nothing else was run
