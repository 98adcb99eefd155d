"""The smoke study through the real engine: Snakemake, papermill, kernels, report.  Six minutes."""

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


def fgkd(*words, runs, **options):
    environment = os.environ | {"FGKD_RUNS": str(runs)}
    return subprocess.run(
        [sys.executable, "-m", "fgkd.cli", *words], env=environment, capture_output=True, text=True, **options
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    runs = tmp_path_factory.mktemp("engine")
    done = fgkd("run", "smoke", runs=runs)
    assert done.returncode == 0, done.stderr[-3000:] + (runs / "smoke" / "engine.log").read_text()[-3000:]
    return runs, done


def test_every_cell_ends_with_its_notebook_result_and_a_row(smoke):
    runs, done = smoke
    study = studies.load("smoke")
    for job in study.jobs():
        folder = runs / "smoke" / job.id
        assert (folder / "result.json").exists() and (folder / f"{job.notebook}.ipynb").exists(), job.id
    tables = {f.stem: pd.read_csv(f) for f in (runs / "smoke" / "tables").glob("*.csv")}
    rows = {"teachers": 12, "metrics": 12, "students": 16, "correlations": 5 * len(METRICS)}
    assert {name: len(tables[name]) for name in rows} == rows
    assert str(runs / "smoke" / "report" / "index.html") in done.stdout and "ratio12" in done.stdout


def test_the_engine_gives_the_same_tables_as_a_plain_call_in_another_folder(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    study = studies.load("smoke")
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


def test_no_more_banks_lie_on_disk_at_once_than_runs_go_on_at_once(smoke):
    study, events = studies.load("smoke"), []
    for job in (c for c in study.jobs() if c.stage == "bank"):
        readers = [c for c in study.jobs() if c.stage == "distill" and job in study.before(c)]
        when = [
            (smoke[0] / "smoke" / c.id / name).stat().st_mtime
            for c, name in ((job, "record.json"), *((c, "result.json") for c in readers))
        ]
        events += [(when[0], 1), (max(when[1:]), -1)]
    assert max(itertools.accumulate(step for _, step in sorted(events))) <= os.cpu_count()


def test_a_second_run_runs_nothing(smoke):
    runs, _ = smoke
    results = {f: f.stat().st_mtime_ns for f in (runs / "smoke").rglob("result.json")}
    assert fgkd("run", "smoke", runs=runs).returncode == 0
    assert results == {f: f.stat().st_mtime_ns for f in (runs / "smoke").rglob("result.json")}


def test_status_and_plan_say_that_all_is_done(smoke):
    runs, _ = smoke
    jobs = len(studies.load("smoke").jobs())
    assert (
        fgkd("status", "smoke", runs=runs).stdout.splitlines()[-1]
        == f"{jobs} done; results in {runs / 'smoke'}"
    )
    assert f"{jobs} of {jobs} notebooks are done" in fgkd("plan", "smoke", runs=runs).stdout


def test_records_alone_make_the_study_done_in_another_clone_and_give_its_tables_and_figures(smoke, tmp_path):
    clone, runs = tmp_path / "clone", tmp_path / "runs"
    for name in ("fgkd", "notebooks", "runs"):
        shutil.copytree(
            studies.PROJECT / name,
            clone / name,
            ignore=shutil.ignore_patterns("__pycache__", "smoke", "demo", "lesson"),
        )
    shutil.copy(studies.PROJECT / "Snakefile", clone)
    for file in (f for name in ("record.json", "result.json") for f in smoke[0].rglob(name)):
        (to := runs / file.relative_to(smoke[0])).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    before = sorted(runs.rglob("*"))
    for command, said in (("status", f"{len(studies.load('smoke').jobs())} done"), ("run", "report: ")):
        done = subprocess.run(
            [sys.executable, "-m", "fgkd.cli", command, "smoke"],
            cwd=clone,
            capture_output=True,
            text=True,
            env=os.environ | {"FGKD_RUNS": str(runs), "PYTHONPATH": str(clone)},
        )
        assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith(said), done.stderr
    new = {f.relative_to(runs / "smoke").parts[0] for f in set(runs.rglob("*")) - set(before)}
    assert new == {"tables", "figures", "report"}
    for file in (smoke[0] / "smoke" / "tables").glob("*.csv"):
        assert (runs / "smoke" / "tables" / file.name).read_bytes() == file.read_bytes(), file.name
    figures = {f.name for f in (smoke[0] / "smoke" / "figures").iterdir()}
    assert len(figures) == 20 and {f.name for f in (runs / "smoke" / "figures").iterdir()} == figures
    assert sum(f.stat().st_size for f in before if f.is_file()) < 700_000


def test_another_name_of_the_interpreter_runs_nothing_that_is_done(smoke, tmp_path):
    shutil.copytree(smoke[0] / "smoke", tmp_path / "smoke")
    results = {f: f.stat().st_mtime_ns for f in (tmp_path / "smoke").rglob("result.json")}
    (tmp_path / "smoke" / "study" / "report" / "result.json").unlink()
    python = next(
        p for p in sorted(Path(sys.executable).parent.glob("python3*")) if p.name != Path(sys.executable).name
    )
    done = subprocess.run(
        [str(python), "-m", "fgkd.cli", "run", "smoke"],
        env=os.environ | {"FGKD_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    changed = [f for f, stamp in results.items() if f.stat().st_mtime_ns != stamp]
    assert changed == [tmp_path / "smoke" / "study" / "report" / "result.json"]


def test_a_further_student_runs_itself_and_the_bar_counts_what_runs(smoke, tmp_path):
    shutil.copytree(smoke[0] / "smoke", tmp_path / "smoke")
    text = (studies.PROJECT / "runs" / "smoke.yaml").read_text()
    changed = text.replace("students:\n", "students:\n  small: {model: test_resnet, recipe: {epochs: 1}}\n")
    (tmp_path / "smoke.yaml").write_text(
        changed.replace("strategies: [FZ, FT, CAL, TGDA]", "strategies: [FT]").replace(
            "strategies: [TGDA]", "strategies: [FT]"
        )
    )
    records = {f: f.read_bytes() for f in (tmp_path / "smoke").rglob("record.json") if "students" in f.parts}
    planned = json.loads(fgkd("plan", str(tmp_path / "smoke.yaml"), "--json", runs=tmp_path).stdout)
    done = fgkd("run", str(tmp_path / "smoke.yaml"), runs=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        planned["notebooks_left"] == 3 + 4 + 3
        and f"{planned['notebooks_left']}/{planned['notebooks_left']}" in done.stderr
    )
    assert all(f.read_bytes() == before for f, before in records.items())
    assert not list((tmp_path / "smoke" / "bank").rglob("views"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.fault("no GPU where one is asked for")
def test_a_study_for_a_gpu_reads_its_data_where_there_is_none_and_says_what_lacks(tmp_path):
    text = (studies.PROJECT / "runs" / "smoke.yaml").read_text()
    (tmp_path / "far.yaml").write_text(
        "device: cuda\n"
        + text.replace("strategies: [FZ, FT, CAL, TGDA]", "strategies: [FT]").replace("[TGDA]", "[FT]")
    )
    done = fgkd("run", str(tmp_path / "far.yaml"), runs=tmp_path)
    assert done.returncode == 1 and "device is 'cuda', but PyTorch sees no GPU" in done.stderr
    assert {f.relative_to(tmp_path / "far").parts[0] for f in tmp_path.rglob("result.json")} == {"data"}


def test_another_learning_rate_for_the_student_repeats_students_and_no_teacher(smoke, tmp_path):
    shutil.copytree(smoke[0] / "smoke", tmp_path / "smoke")
    text = (studies.PROJECT / "runs" / "smoke.yaml").read_text()
    changed = text.replace(
        "student: {epochs: 4, batch_size: 16, lr: 0.2}", "student: {epochs: 1, batch_size: 16, lr: 0.1}"
    )
    assert changed != text
    (tmp_path / "smoke.yaml").write_text(changed)
    before = {f: f.read_text() for f in (tmp_path / "smoke").rglob("record.json")}
    done = fgkd("run", str(tmp_path / "smoke.yaml"), runs=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    touched = {
        f.relative_to(tmp_path / "smoke").parts[0] for f, old in before.items() if f.read_text() != old
    }
    assert touched == {"distill", "bank", "study"}


def test_the_report_loads_nothing_from_elsewhere_and_its_links_lead_somewhere(smoke):
    class Links(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.tags = [], set()

        def handle_starttag(self, tag, attributes):
            self.tags.add(tag)
            self.found += [(tag, v) for k, v in attributes if k in ("href", "src")]

    report = smoke[0] / "smoke" / "report"
    pages = list(report.rglob("*.html"))
    assert len(pages) == len(studies.load("smoke").jobs()) + 2  # the index, and the claims
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
    (tmp_path / "smoke.yaml").write_text(
        (studies.PROJECT / "runs" / "smoke.yaml").read_text().replace("seed: 0", "seed: [0, 1]")
    )
    study = studies.load(str(tmp_path / "smoke.yaml"))
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
    text = (studies.PROJECT / "runs" / "smoke.yaml").read_text()
    broken = (
        text.replace(
            "weights: pretext, recipe: {lr: 0.02}", "weights: pretext, recipe: {lr: 1.0e+12, clip: 1.0e+30}"
        )
        .replace("strategies: [FZ, FT, CAL, TGDA]", "strategies: [FT]")
        .replace("  hint: {strategies: [TGDA]}", "  hint: {strategies: [FT]}")
    )
    assert broken.count("1.0e+12") == 1
    (tmp_path / "broken.yaml").write_text(broken)
    done = fgkd("run", str(tmp_path / "broken.yaml"), runs=tmp_path)
    assert done.returncode == 1
    assert "failed: teacher/pretext/pretext/vit" in done.stderr and "diverged in epoch" in done.stderr
    study = studies.load(str(tmp_path / "broken.yaml"))
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
    said = fgkd("status", str(tmp_path / "broken.yaml"), runs=tmp_path).stdout
    assert re.search(r"failed .* teacher/pretext/pretext/vit .*\n +FloatingPointError: .*\n", said)
    shown = fgkd("plan", str(tmp_path / "broken.yaml"), runs=tmp_path).stdout
    assert re.search(r"1 x 03_teacher +failed: FloatingPointError: .*diverged", shown) and re.search(
        r"1 x 03_teacher +never ran", shown
    )
    (tmp_path / "broken" / "data" / "birds" / "result.json").unlink()
    done = fgkd("run", str(tmp_path / "broken.yaml"), "--retry-failed", runs=tmp_path)
    assert done.returncode == 1 and "failed: teacher/pretext/pretext/vit" in done.stderr
    assert not (tmp_path / "broken" / "data" / "birds" / "result.json").exists()  # nothing else was run
