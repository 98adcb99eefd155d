"""A batch run: check what the jobs need, keep other drivers out, and start Snakemake."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fgkd import study as studies
from fgkd.analysis import records
from fgkd.data import datasets
from fgkd.engine import events, kernels, states
from fgkd.engine.events import Event, follow
from fgkd.study import PROJECT, STAGES, Job, Study, StudyError, contents

LOG = "engine.log"
LOCK_SECONDS = 1.0  # to wait for one that only asks whether the study is being run

Show = Callable[[Study, list[Job], Iterable[Event]], None]


def run_left(study: Study, show: Show, *, retry_failed: bool, cores: int, profile: str | None) -> int:
    """Run the jobs that are left; returns the engine's exit status, 0 where nothing is left.

    show: (study, jobs, events) shows these as they happen, until there are no more.
    retry_failed: run only the jobs that failed, with what these need.
    cores, profile: see `start_engine`.
    Raises StudyError, before anything runs, for inputs that are missing or do not fit.
    """
    jobs = jobs_to_run(study, retry_failed=retry_failed)
    if not jobs:
        return 0
    check_inputs(study, jobs)
    with driver_lock(study):
        # Again: processes of a killed run may have finished some of them meanwhile.
        jobs = jobs_to_run(study, retry_failed=retry_failed)
        with start_engine(study, jobs, cores=cores, profile=profile) as process:
            show(study, jobs, follow(study, lambda: process.poll() is None))
    return process.returncode


def jobs_to_run(study: Study, *, retry_failed: bool = False) -> list[Job]:
    """The jobs left, each after those it waits for; or the failed ones with what they need."""
    datasets.look(study)
    rows = states.rows(study)
    left = states.left(study, rows)
    wanted = set(states.failed(rows) if retry_failed else left)
    for job in reversed(study.jobs()):
        if job in wanted:
            wanted.update(study.before(job))
    return [job for job in left if job in wanted]


def build_report(study: Study, folder: Path | None = None) -> Path:
    """Build the report from what there is; returns its first page.

    folder: where it goes; the study's unless given.
    """
    os.environ |= kernels.homes(folder or study.folder)  # matplotlib keeps a cache there
    from fgkd.report import pages

    return pages.build(study, states.rows(study), folder)


def missing_inputs(study: Study) -> list[str]:
    """Photos, plugins and weights that the study names and that are not there.

    Results that are there stay valid without them.
    """
    missing = [str(error) for error in datasets.look(study).values()]
    for plugin in study.plugins:
        if not os.path.isfile(plugin):
            advice = "check the path, which is relative to the study's folder"
            missing.append(f"plugin '{plugin}' does not exist: {advice}")
    for model in (*study.teachers.values(), *study.students.values()):
        try:
            studies.check_weights(model)
        except StudyError as error:
            missing.append(str(error))
    return missing


def check_inputs(study: Study, jobs: Iterable[Job]) -> None:
    """Raise StudyError unless the photos, networks and weights of the jobs are there and fit."""
    errors = datasets.look(study)
    needed = [job.dataset for job in jobs]
    for key in dict.fromkeys(needed):
        if key in errors:
            number = f"{needed.count(key)} of the {len(needed)} notebooks that are left"
            raise StudyError(f"{errors[key]}. {number} need these photos")
    check_models(study, jobs)
    check_weights(study, jobs)


def check_models(study: Study, jobs: Iterable[Job]) -> None:
    """Raise StudyError unless networks exist of the names in the study, where a job runs one."""
    if not any(job.row.networks for job in jobs):
        return
    from fgkd.models import classifier

    classifier.load_plugins(study.plugins)
    for model in (*study.teachers.values(), *study.students.values()):
        classifier.check_name(model.model)


def check_weights(study: Study, jobs: Iterable[Job]) -> None:
    """Raise StudyError unless the files that the jobs take weights from are there, and fit."""
    models = {}
    for job in jobs:
        if job.stage == "teacher":
            models[job.teacher] = study.teacher(job.teacher)
        for part in study.student_jobs(job) if job.stage == "distill" else ():
            if records.find(study, part) is None:
                models[part.student] = study.student(part.student)
    from_files = [model for model in models.values() if model.file]
    if from_files:
        from fgkd.models import classifier

        classifier.load_plugins(study.plugins)
        for model in from_files:
            classifier.build(model, None, crop=study.views.crop, seed=0)


@contextlib.contextmanager
def driver_lock(study: Study) -> Iterator[None]:
    """Keep other drivers of the study out, and wait for the engine of one that was killed.

    Raises StudyError where another driver runs, or the folder is taken.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    driver = states.lock(study.folder / states.DRIVER, LOCK_SECONDS)
    if driver is None:
        advice = f"wait for it, or see 'fgkd status --watch {study.file}'"
        raise StudyError(f"study '{study.name}' is being run already: {advice}")
    with driver:
        _claim_folder(study)
        (study.folder / events.FILE).unlink(missing_ok=True)
        engine = states.lock(study.folder / states.ENGINE)
        if engine is None:
            print("waiting for the processes of a run that was killed to end", file=sys.stderr)
            engine = states.lock(study.folder / states.ENGINE, -1)
        with engine or contextlib.nullcontext():
            pass  # the engine takes it
        yield


@contextlib.contextmanager
def start_engine(
    study: Study, jobs: list[Job], *, cores: int, profile: str | None = None
) -> Iterator[subprocess.Popen]:
    """Start Snakemake on the jobs, in a group that ends with this process; yields its process.

    profile: a folder with Snakemake's settings for a cluster, whose nodes start kernels of their own; without
    one the GPUs of this machine are shared out in slots.
    """
    for job in jobs:
        records.unpack(study, job)
        # The notebook of an earlier run says nothing of this one.
        states.log_of(study, job).unlink(missing_ok=True)
    command = _command(cores)
    environment = _environment(study)
    events.begin(study, jobs)
    if profile:
        command += ["--profile", os.path.abspath(profile)]
    elif slots := gpu_slots(study):
        command += ["--resources", f"gpu={len(slots)}"]
        environment["FGKD_GPUS"] = ",".join(slots)
    with kernels.started(command, study.folder / LOG, environment, outlives=bool(profile)) as process:
        yield process
    if not profile:  # Snakemake's own log and notes, of no use any more
        shutil.rmtree(study.folder / ".snakemake", ignore_errors=True)


def gpu_slots(study: Study) -> list[str]:
    """This machine's GPUs by name, each as often as runs share it; none for a CPU study."""
    if study.device == "cpu":
        return []
    import torch

    count = torch.cuda.device_count()
    all_gpus = ",".join(map(str, range(count)))
    names = os.environ.get("CUDA_VISIBLE_DEVICES", all_gpus).split(",")[:count]
    return [name for name in names for _ in range(study.runs_per_gpu)]


def _command(cores: int) -> list[str]:
    return [
        *(sys.executable, "-m", "snakemake"),
        *("--snakefile", str(PROJECT / "Snakefile")),
        *("--cores", str(cores)),
        *("--forcerun", *STAGES),  # all that it is given is left
        *("--rerun-triggers", "mtime"),
        *("--quiet", "host"),
        "--keep-going",
        "--nolock",  # a killed run would leave its lock
        "--force-use-threads",
        "--rerun-incomplete",
    ]


def _environment(study: Study) -> dict[str, str]:
    """The environment of notebooks, which run in other folders."""
    environment = kernels.homes(study.folder) | {
        "OMP_NUM_THREADS": str(study.threads),
        "MKL_NUM_THREADS": str(study.threads),
        "FGKD_RUNS": str(study.folder.parent.resolve()),
        "FGKD_STUDY": study.file,
        "FGKD_RUN": "1",
    }
    if os.environ.get("FGKD_DATA"):
        environment["FGKD_DATA"] = os.path.abspath(os.environ["FGKD_DATA"])
    return environment


def _claim_folder(study: Study) -> None:
    """Note in the study's folder whose results it holds, without saying who runs it.

    Raises StudyError where another file of the same name, which is still there, has its results here; a copy
    of the folder is free.
    """
    note = study.folder / ".study"
    folder = study.folder.resolve()
    home = Path.home() if os.path.isabs(os.path.expanduser("~")) else folder
    is_below = Path(study.file).is_relative_to(home)
    file = f"~/{os.path.relpath(study.file, home)}" if is_below else os.path.relpath(study.file, folder)
    here = {"file": file, "folder": contents.of_text(str(folder))}
    before = records.read_json(note) or {}
    other = Path(os.path.normpath(folder / os.path.expanduser(before.get("file", file))))
    is_other = other.is_file() and other.read_bytes() != Path(study.file).read_bytes()
    if before.get("folder") == here["folder"] and is_other:
        raise StudyError(
            f"'{study.folder}' holds the results of '{other}': give this study another name "
            "('name:'), or set FGKD_RUNS to another folder"
        )
    records.write_json(note, here)
