"""A batch run: check what the jobs need, keep other drivers out, start Snakemake, and follow its jobs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fgkd import records
from fgkd import study as studies
from fgkd.data import datasets
from fgkd.engine import kernels, states
from fgkd.metrics.claims import UNDEFINED
from fgkd.study import PROJECT, Job, Study, StudyError, contents

POLL_SECONDS = 0.5
LOG = "engine.log"
JOBS = ".jobs"  # the ids of those that the engine runs


Reporter = Callable[[Study, list[Job]], contextlib.AbstractContextManager[Callable[["Event"], None]]]


@dataclass(frozen=True)
class Event:
    """What happened to a job: 'running', 'done', 'failed', or 'progress' of its training.

    values: of a done job `seconds` and `result`, of a failed one `error` and `log`, of progress its file.
    """

    kind: str
    job: Job
    values: dict = field(default_factory=dict)


def run_left(study: Study, reporter: Reporter, *, retry_failed: bool, cores: int, profile: str | None) -> int:
    """Run the jobs that are left; returns the engine's exit status, 0 where nothing is left.

    reporter: (study, jobs) -> a context manager that gives what is called with each event.
    retry_failed: run only the jobs that failed, with what these need.
    cores, profile: see `start_engine`.
    Raises StudyError, before anything runs, for inputs that are missing or do not fit.
    """
    jobs = jobs_to_run(study, retry_failed=retry_failed)
    if not jobs:
        return 0
    check_inputs(study, jobs)
    with driver_lock(study) as lock:
        # Again: processes of a killed run may have finished some of them meanwhile.
        jobs = jobs_to_run(study, retry_failed=retry_failed)
        with (
            reporter(study, jobs) as show,
            start_engine(study, jobs, lock, cores=cores, profile=profile) as process,
        ):
            for event in follow(study, jobs, lambda: process.poll() is None):
                show(event)
    return process.returncode


def jobs_to_run(study: Study, *, retry_failed: bool = False) -> list[Job]:
    """The jobs left, each after those it waits for; or the failed ones with what they need."""
    datasets.look(study)
    left = states.left(study)
    wanted = set(states.failed(study) if retry_failed else left)
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

    known: dict[Job, str] = {}
    return pages.build(study, {job: states.state(study, job, known) for job in study.jobs()}, folder)


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
def driver_lock(study: Study) -> Iterator[int]:
    """Keep other drivers of the study out; yields a lock's descriptor to hand on.

    Waits for the processes that a killed driver left: the second lock, which they inherit, ends with the
    last of them, however that ends.  Raises StudyError where another driver runs, or the folder is taken.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with open(study.folder / ".driver", "w") as driver, open(study.folder / ".engine", "w") as engine:
        if not states.try_lock(driver):
            advice = f"wait for it, or see 'fgkd status --watch {study.file}'"
            raise StudyError(f"study '{study.name}' is being run already: {advice}")
        _claim_folder(study)
        if not states.try_lock(engine):
            print("waiting for the processes of a run that was killed to end", file=sys.stderr)
            fcntl.flock(engine, fcntl.LOCK_EX)
        yield engine.fileno()


@contextlib.contextmanager
def start_engine(
    study: Study, jobs: Iterable[Job], lock: int, *, cores: int, profile: str | None = None
) -> Iterator[subprocess.Popen]:
    """Start Snakemake on the jobs, in a group that ends with this process; yields its process.

    lock: the descriptor of a lock that its kernels hold, too.
    profile: a folder with Snakemake's settings for a cluster, whose nodes start kernels of their own; without
    one the GPUs of this machine are shared out in slots.
    """
    records.write_json(study.folder / JOBS, [job.id for job in jobs])  # too many for a command line
    for job in jobs:
        # A result that is there is outdated: without it, Snakemake runs the job.
        (study.path(job) / "result.json").unlink(missing_ok=True)
        records.unpack(study, job)
        # A notebook of an earlier run that did not end well says nothing of this one.
        row = states.state(study, job)
        if row["state"] in ("failed", "running"):
            Path(row["log"]).unlink()
    command = _command(cores)
    environment = _environment(study)
    if profile:
        command += ["--profile", os.path.abspath(profile)]
    elif slots := gpu_slots(study):
        command += ["--resources", f"gpu={len(slots)}"]
        environment["FGKD_GPUS"] = ",".join(slots)
    log = study.folder / LOG
    with kernels.started(command, log, environment, lock, outlives=bool(profile)) as process:
        yield process
    if not profile:  # Snakemake's own log and notes, of no use any more
        shutil.rmtree(study.folder / ".snakemake", ignore_errors=True)


def follow(study: Study, jobs: Iterable[Job], goes_on: Callable[[], bool]) -> Iterator[Event]:
    """Events of the jobs, until all are done or nothing goes on any more."""
    waiting = list(jobs)
    stamps: dict[Job, tuple] = {}
    kinds: dict[Job, str] = {}
    progress: dict[Job, dict] = {}
    while waiting:
        last_look = not goes_on()
        for job in list(waiting):
            stamp = _stamp(study, job)
            if stamp != stamps.get(job):
                stamps[job] = stamp
                row = states.state(study, job)
                if row["state"] in ("running", "done", "failed") and row["state"] != kinds.get(job):
                    yield _event(study, job, row)
                kinds[job] = row["state"]
                if row["state"] == "done":
                    waiting.remove(job)
            if kinds[job] == "running":
                values = states.running(study, job)
                if values and values != progress.get(job):
                    progress[job] = values
                    yield Event("progress", job, values)
        if last_look:
            break
        time.sleep(POLL_SECONDS)


def gpu_slots(study: Study) -> list[str]:
    """This machine's GPUs by name, each as often as runs share it; none for a CPU study."""
    if study.device == "cpu":
        return []
    import torch

    count = torch.cuda.device_count()
    all_gpus = ",".join(map(str, range(count)))
    names = os.environ.get("CUDA_VISIBLE_DEVICES", all_gpus).split(",")[:count]
    return [name for name in names for _ in range(study.runs_per_gpu)]


def summary(study: Study, job: Job) -> str:
    """A job's result in a line, with a number for each student and loss."""
    texts = []
    for row in records.rows(study, job):
        if "tac" in row:
            texts.append(f"TAC {row['tac']:.1%}")
        if "ratio12" in row:
            share = row.get("ratio12_nonpositive", 0)
            warning = f", second logit <= 0 in {share:.0%} of views" if share > UNDEFINED else ""
            texts.append(f"R12 {row['ratio12']:.3f}{warning}")
        if "accuracy" in row:
            several = len(study.losses_of(row["student"], job.strategy)) > 1
            loss = f" {row['loss']}" if several else ""
            texts.append(f"{row['student']}{loss} {row['accuracy']:.1%}")
    return "  ".join(dict.fromkeys(texts))


def _event(study: Study, job: Job, row: dict) -> Event:
    match row["state"]:
        case "done":
            return Event("done", job, {"seconds": row["seconds"], "result": summary(study, job)})
        case "failed":
            return Event("failed", job, {"error": row["error"], "log": row["log"]})
    return Event("running", job)


def _stamp(study: Study, job: Job) -> tuple:
    """When the files that a job's state is read from were written."""
    times: list[int | None] = []
    for name in (f"{job.notebook}.ipynb", "exit.json", "result.json"):
        try:
            times.append((study.path(job) / name).stat().st_mtime_ns)
        except OSError:
            times.append(None)
    return tuple(times)


def _command(cores: int) -> list[str]:
    return [
        *(sys.executable, "-m", "snakemake"),
        *("--snakefile", str(PROJECT / "Snakefile")),
        *("--cores", str(cores)),
        *("--rerun-triggers", "mtime"),
        *("--quiet", "progress", "host"),
        "--keep-going",
        "--nolock",
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
        "FGKD_JOBS": str((study.folder / JOBS).resolve()),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
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
