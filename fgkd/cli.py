"""The command line: what a study would run, running it, how far it is, its report.

fgkd plan runs/demo.yaml        how many trainings, banks, groups; images and hours; what is left to run
fgkd run runs/demo.yaml         run what is left, then build the report
fgkd status runs/demo.yaml      done, running, failed, waiting; seconds; where each log is
fgkd report runs/demo.yaml      build the report anew from what there is
fgkd data cub                   fetch, check and cache one of the paper's data sets; --list shows the eight
fgkd bank runs/demo.yaml        compare the banks that lie on disk with what their teachers say now
fgkd bench                      what distillation costs beside its alternatives, measured here
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from fgkd import records
from fgkd import study as studies
from fgkd.analysis import findings, groups, selection
from fgkd.data import datasets
from fgkd.engine import cost, kernels
from fgkd.engine.states import left, locked, state
from fgkd.study import PROJECT, Job, Model, Study, StudyError

POLL_SECONDS = 0.5
SHOWN_NOTES = 3
BANK_NOISE = 0.02  # of the largest logit: what another machine or device may differ by


def main(words: list[str] | None = None) -> int:
    """Entry point of `fgkd`; returns the exit status: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(words)
    try:
        status = options.command(studies.load(options.study) if "study" in options else None, options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (StudyError, ValueError, OSError) as error:
        print(f"fgkd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fgkd: interrupted: finished runs are kept, the same command continues", file=sys.stderr)
        return 130


def plan(study: Study, options) -> int:
    """Print what the study consists of, what it takes, and what is left to run and why."""
    lacking = _lacking(study)
    waiting = left(study)
    if not lacking:
        _check_weights(study, waiting)
    counts, takes = counted(study), cost.estimate(study, list(waiting), options.images_per_second)
    reasons = collections.Counter((c.notebook, reason) for c, reason in waiting.items())
    if options.json:
        shown = [
            {"notebook": notebook, "reason": reason, "number": number}
            for (notebook, reason), number in reasons.items()
        ]
        print(
            json.dumps(
                counts | {"notebooks_left": len(waiting), "left": shown, "lacking": lacking} | takes, indent=1
            )
        )
        return 0
    for name, value in counts.items():
        print(
            f"{name.replace('_', ' '):28} {f'{value / 1e6:,.1f} MB' if name.endswith('bytes') else f'{value:,}'}"
        )
    print("no more banks lie on disk at once than runs go on at once")
    _print_estimate(**takes)
    print(
        f"\n{counts['notebooks'] - len(waiting)} of {counts['notebooks']} notebooks are done"
        + ("; left to run:" if waiting else "")
    )
    for (notebook, reason), number in reasons.items():
        print(f"  {number:4} x {notebook:22} {reason}")
    if bare := [key for key, model in study.teachers.items() if model.weights == "none"]:
        print(f"teachers that start from random weights, having no 'weights:': {', '.join(bare)}")
    for sentence in lacking:
        print(f"lacking: {sentence}")
    return 0


def run(study: Study, options) -> int:
    """Run what is left through Snakemake and papermill, then build the report and print the table that matters."""
    status = 0
    if options.retry_failed and not _failed(study):
        print("nothing has failed")
    elif _left_of(study):
        with _only_driver(study) as lock:
            status = _engine(
                study, options.cores, lock, _failed(study) if options.retry_failed else (), options.profile
            )
    failed = _failed(study)
    for job in failed:
        found = state(study, job)
        print(f"\nfailed: {job.id}\n  {found['error']}\n  {found['log']}", file=sys.stderr)
    if status and not failed:
        print(
            f"the engine ended with exit status {status}; its log is {study.folder / 'engine.log'}",
            file=sys.stderr,
        )
    return report(study, options) or int(status != 0)


def status(study: Study, options) -> int:
    """Print one line a job: its state, seconds and log."""
    lacking, known = _lacking(study), {}
    rows = [{"cell": c.id} | state(study, c, known) for c in study.jobs()]
    counts = collections.Counter(r["state"] for r in rows)
    for row in rows:
        seconds = f"{row['seconds']:8.1f} s" if row["seconds"] is not None else " " * 10
        print(f"{row['state']:12}{seconds}  {row['cell']:44}{row['log'] or ''}")
        if row["error"]:
            print(textwrap.indent("\n".join([row["error"], *_last_lines(row["log"])]), " " * 24))
    for sentence in lacking:
        print(f"lacking: {sentence}")
    print(", ".join(f"{n} {name}" for name, n in counts.items()) + f"; results in {study.folder}")
    return int(counts["failed"] > 0)


def report(study: Study, options) -> int:
    """Build the report from the records there are; print its path and the table that matters."""
    from fgkd.report import pages

    index = pages.build(study, {c: state(study, c) for c in study.jobs()})
    frames = records.collect(study)
    lacks = groups.explain_missing_rho(frames.get("correlations", pd.DataFrame()))
    if "headline" in frames and len(points := records.points(frames)):
        standings = selection.standings(points, frames["students"], frames["data"])
        print("\n" + standings.round(4).to_string(index=False, na_rep=""))
        said = selection.describe_standings(
            standings, selection.selection_summary(points, frames["students"])
        )
        paid = findings.describe_gains(
            findings.distillation_gains(points, frames["students"], frames["data"])
        )
        print("\n" + "\n".join(textwrap.wrap(f"{said} {paid}", 110)))
    print("\n" + (lacks or frames["headline"].round(3).to_string(index=False)))
    found = pages.notes(study)
    for note in found[:SHOWN_NOTES]:
        print(f"note: {note}")
    if found[SHOWN_NOTES:]:
        print(f"note: {len(found) - SHOWN_NOTES} more are in the report")
    print(f"\nreport: {index}")
    return 0


def data(_, options) -> int:
    """Fetch, check and cache one of the paper's eight data sets, or list them."""
    from fgkd.data import fetching, official

    if options.list or options.key is None:
        print(_aligned(official.overview()))
        return 0
    if options.resize < 1:
        raise StudyError(f"--resize is {options.resize}: expected 1 or more")
    try:
        table = fetching.prepare(
            options.key, official.root_of(options.key, options.root), resize=options.resize
        )
    except KeyboardInterrupt:
        raise StudyError("interrupted: what was fetched is kept, the same command continues") from None
    print(_aligned(table))
    return int("wrong" in set(table.verdict))


def bank(study: Study, _) -> int:
    """Compare random views of each bank that lies on disk with what its teacher says of them now."""
    from fgkd import stages

    kept, differ = stages.kept_banks(study), 0
    for job in kept:
        apart = stages.check_bank(study.at(study.seed_of(job)), job)
        wrong = apart["logits"] > BANK_NOISE
        shown = ", ".join(f"{name} {share:.1%}" for name, share in apart.items())
        print(f"{'DIFFERS' if wrong else 'agrees':8} {job.id:44} largest difference: {shown}")
        differ += wrong
    if not kept:
        print(f"no bank of '{study.name}' lies on disk: each is deleted after its last student")
    return int(differ > 0)


def bench(_, options) -> int:
    """Measure what a student's step, views, metrics, banks, growth and a notebook cost beside others."""
    from fgkd.distillation import training

    sys.path.insert(0, str(PROJECT / "benchmarks"))
    import measure  # outside the package, as the notebooks are

    result = measure.measure(training.device(options.device), only=options.only)
    print(json.dumps(result, indent=1) if options.json else measure.table(result))
    return 0


def counted(study: Study) -> dict[str, int]:
    """How many runs and groups the study has, and the bytes of its banks."""
    jobs = study.jobs()
    per = collections.Counter(c.stage for c in jobs)
    pretext = sum(c.dataset == studies.PRETEXT and c.stage == "teacher" for c in jobs)
    trainings = {c: len(study.student_jobs(c)) for c in jobs if c.stage == "distill"}
    baselines = sum(n for c, n in trainings.items() if c.strategy == "CE")
    distillations = sum(trainings.values()) - baselines
    sizes = [cost.bank_bytes(study, c) for c in jobs if c.stage == "bank"]
    teachers = per["teacher"] - pretext
    return {
        "pretext_trainings": pretext,
        "teacher_trainings": teachers,
        "banks": per["bank"],
        "distillations": distillations,
        "runs": teachers + distillations,
        "ce_baselines": baselines,
        "groups": distillations // (len(study.teachers) * len(study.seeds)),
        "notebooks": len(jobs),
        "largest_bank_bytes": max(sizes, default=0),
        "bank_bytes": sum(sizes),
    }


def _failed(study: Study) -> list[Job]:
    return [c for c in study.jobs() if state(study, c)["state"] == "failed"]


def _engine(study: Study, cores: int, lock: int, only: Sequence[Job] = (), profile: str | None = None) -> int:
    """Snakemake in the process group that ends with this process, a progress bar over its finished jobs; its exit status.

    only: the jobs to run, with what they need; all unless given.  profile: a folder with Snakemake's settings for a cluster, whose nodes start
    plain kernels; without one the GPUs of this machine are shared out in slots.
    """
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(PROJECT / "Snakefile"),
        "--directory",
        str(study.folder),
        "--cores",
        str(cores),
        "--config",
        f"study={study.file}",
        "--keep-going",
        "--nolock",
        "--rerun-incomplete",
        "--rerun-triggers",
        "mtime",
        "--quiet",
        "progress",
        *(f"{study.path(c)}/result.json" for c in only),
    ]
    threads = str(study.threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "FGKD_RUNS": str(study.folder.parent.resolve()),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if os.environ.get("FGKD_DATA"):  # notebooks run in other folders
        environment["FGKD_DATA"] = os.path.abspath(os.environ["FGKD_DATA"])
    waiting = left(study)
    # What is there of them was made of something else, or was cut short: Snakemake is to make it anew.
    for job in waiting:
        (study.path(job) / "result.json").unlink(missing_ok=True)
    if profile:
        command += ["--profile", os.path.abspath(profile)]
    elif slots := _gpu_slots(study):
        command += ["--resources", f"gpu={len(slots)}"]
        environment["FGKD_GPUS"] = ",".join(slots)
    engine = contextlib.nullcontext((environment, None)) if profile else kernels.warm(environment, (lock,))
    with open(study.folder / "engine.log", "w") as log, engine as (environment, group):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=group,
            pass_fds=[lock],
        )
        _follow(study, process, waiting)
    return process.returncode


def _gpu_slots(study: Study) -> list[str]:
    """This machine's GPUs by name, each as often as runs share it; none where the study runs on the CPU."""
    import torch

    count = 0 if study.device == "cpu" else torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    return [name for name in names for _ in range(study.runs_per_gpu)]


def _follow(study: Study, process: subprocess.Popen, jobs: Iterable[Job]) -> None:
    """A bar over the jobs that run, a line for each that ended, until the engine has ended."""
    waiting, told, begun = list(jobs), set(), time.time()
    with tqdm(total=len(waiting), unit="notebook", desc=study.name, disable=not waiting) as bar:
        while waiting:
            ended = process.poll() is not None
            for job in [
                c
                for c in waiting
                if (study.path(c) / "result.json").exists() and state(study, c)["state"] == "done"
            ]:
                waiting.remove(job)
                bar.write(f"  {job.id:44} {_summary(study, job)}")
                bar.update()
            for job in [c for c in waiting if c not in told and _touched(study, c) > begun]:
                if (found := state(study, job))["state"] == "failed":
                    told.add(job)
                    bar.write(f"  {job.id:44} FAILED: {found['error']}")
            if ended:
                break
            time.sleep(POLL_SECONDS)
    process.wait()


def _touched(study: Study, job: Job) -> float:
    """When the kernel of a job's notebook last ended; 0 where none has."""
    try:
        return (study.path(job) / "exit.json").stat().st_mtime
    except OSError:
        return 0.0


def _summary(study: Study, job: Job) -> str:
    """What came out of a job, in a line: a number a student, where it has several."""
    texts = {"tac": "TAC {:.1%}", "ratio12": "R12 {:.3f}", "accuracy": "{student} {:.1%}"}
    found = []
    for row in records.rows(study, job):
        name = (
            row.get("student", "")
            + (f" {row['loss']}" if len(study.losses_of(row["student"], job.strategy)) > 1 else "")
            if "student" in row
            else ""
        )
        found += [text.format(row[key], student=name) for key, text in texts.items() if key in row]
    return "  ".join(dict.fromkeys(found))


def _last_lines(log: str, number: int = 3) -> list[str]:
    """The last lines that a notebook printed."""
    outputs = [
        o
        for cell in records.read_json(Path(log))["cells"]
        for o in cell.get("outputs", [])
        if o["output_type"] == "stream"
    ]
    return [
        line.rpartition("\r")[2]
        for line in "".join("".join(o["text"]) for o in outputs).split("\n")
        if line.strip()
    ][-number:]


@contextlib.contextmanager
def _only_driver(study: Study):
    """Refuse a second driver of the same study, and wait for what one that was killed left; yields a lock for the processes that are started.

    A lock ends with the last process that holds it, however that ends.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with open(study.folder / ".driver", "w") as driver, open(study.folder / ".engine", "w") as engine:
        if not locked(driver):
            raise StudyError(
                f"study '{study.name}' is being run already: wait for it, or see 'fgkd status {study.file}'"
            )
        _claim(study)
        if not locked(engine):
            print("waiting for the processes of a run that was killed to end", file=sys.stderr)
            fcntl.flock(engine, fcntl.LOCK_EX)
        yield engine.fileno()


def _claim(study: Study) -> None:
    """Note in the study's folder whose results it holds.

    Raises StudyError where another file of the same name, which is still there, has its results here; a copy
    of the folder is free.
    """
    note, here = study.folder / ".study", {"file": study.file, "folder": str(study.folder.resolve())}
    before = records.read_json(note) or here
    other = Path(before["file"])
    if (
        before["folder"] == here["folder"]
        and other.is_file()
        and other.read_bytes() != Path(study.file).read_bytes()
    ):
        raise StudyError(
            f"'{study.folder}' holds the results of '{other}': give this study another name "
            "('name:'), or set FGKD_RUNS to another folder"
        )
    records.write_json(note, here)


def _left_of(study: Study) -> bool:
    """Whether anything is left to run; raises StudyError where something lacks that it needs, before anything
    runs."""
    wrong = datasets.look(study)
    waiting = left(study)
    for key in dict.fromkeys(c.dataset for c in waiting if c.dataset in wrong):
        raise StudyError(
            f"{wrong[key]}. {sum(c.dataset == key for c in waiting)} of the {len(waiting)} notebooks that "
            "are left need these photos"
        )
    if any(c.stage in ("teacher", "bank", "distill") for c in waiting):
        _check_models(study)
        _check_weights(study, waiting)
    return bool(waiting)


def _check_weights(study: Study, jobs: Iterable[Job]) -> None:
    """Raise StudyError unless the files are there and fit that jobs which are to run take their weights
    from."""
    from fgkd.models import classifier

    for model in {
        model.key: model for job in jobs for model in _models_of(study, job) if model.file
    }.values():
        classifier.build(model, None, crop=study.views.crop, seed=0)


def _models_of(study: Study, job: Job) -> list[Model]:
    """The models whose weights a job that is to run loads from a file."""
    if job.stage == "teacher":
        return [study.teacher(job.teacher)]
    if job.stage == "distill":
        return [study.student(c.student) for c in study.student_jobs(job) if records.record(study, c) is None]
    return []


def _check_models(study: Study) -> None:
    """Find unknown model names before anything runs."""
    from fgkd.models import classifier

    classifier.load_plugins(study.plugins)
    for model in (*study.teachers.values(), *study.students.values()):
        classifier.check_name(model.model)


def _lacking(study: Study) -> list[str]:
    """What the study names and is not there; looks at the photos on the way.  Results that are there stay
    valid without it."""
    found = [str(error) for error in datasets.look(study).values()]
    absent = [plugin for plugin in study.plugins if not os.path.isfile(plugin)]
    found += [
        f"plugin '{plugin}' does not exist: check the path, which is relative to the study's folder"
        for plugin in absent
    ]
    if not absent:
        _check_models(study)
    for model in (*study.teachers.values(), *study.students.values()):
        try:
            studies.check_weights(model)
        except StudyError as error:
            found.append(str(error))
    return found


def _print_estimate(
    device: str | None,
    hours: float,
    hours_left: float,
    without_throughput: list[str],
    not_counted: list[str],
    networks: list[dict],
) -> None:
    def shown(value, digits=0):
        return "-" if value is None else f"{value:,.{digits}f}"

    print(
        f"\n{'images through each network':40}{'forward+backward':>18}{'forward':>16}"
        f"{'images a second':>20}{'time':>10}{'left':>10}"
    )
    for row in networks:
        rate = f"{shown(row['train_per_second'])} / {shown(row['forward_per_second'])}"
        print(
            f"{row['model']:40}{row['train']:18,}{row['forward']:16,}{rate:>20}"
            f"{_time(row['hours']):>10}{_time(row['hours_left']):>10}"
        )
    if device:
        print(
            f"time of {device}: {'at least ' if without_throughput else ''}{_time(hours)}, of which "
            f"{_time(hours_left)} is left; "
            "passes through networks only: decoding, metrics and the start of notebooks come on top"
        )
    if without_throughput:
        names = ", ".join(without_throughput) if device else "these"
        print(f"no throughput is known of {names}: run some of their jobs, or give --images-per-second")
    if not_counted:
        print(f"not counted: {', '.join(not_counted)}, whose photos are not there")


def _time(hours: float | None) -> str:
    """Hours in a reader's unit: 12.3 h, 34 min, 5 s; '-' where they are not known."""
    if hours is None:
        return "-"
    return (
        f"{hours:,.1f} h"
        if hours >= 1
        else f"{60 * hours:.0f} min"
        if hours >= 1 / 60
        else f"{3600 * hours:.0f} s"
    )


def _aligned(table) -> str:
    """A table of text, its columns to the left."""
    return (
        table.astype(str)
        .apply(lambda column: column.str.ljust(column.str.len().max()))
        .to_string(index=False, justify="left")
    )


def _profile(folder: str) -> str:
    if not (Path(folder) / "config.yaml").is_file():
        raise argparse.ArgumentTypeError(
            f"'{folder}' has no config.yaml: expected a folder such as profiles/slurm"
        )
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fgkd", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (plan, run, status, report, bank):
        sub = commands.add_parser(
            command.__name__, help=command.__doc__.split("\n")[0], description=command.__doc__
        )
        sub.add_argument("study", help="a study's YAML file, or the name of one in runs/")
        sub.set_defaults(command=command)
        if command is plan:
            sub.add_argument("--json", action="store_true", help="all of it as JSON")
            sub.add_argument(
                "--images-per-second",
                metavar="NUMBER_OR_FILE",
                help="throughput of all networks on one device, or a YAML or JSON file by "
                "timm name: 'model: 700' or 'model: {train: 700, forward: 2000}', and 'device: name' (default: as this study measured)",
            )
        if command is run:
            sub.add_argument(
                "--retry-failed",
                action="store_true",
                help="run again what failed, with what it needs, and nothing else (default: all that is left)",
            )
            sub.add_argument(
                "--profile",
                type=_profile,
                metavar="FOLDER",
                help="Snakemake's settings for a cluster, such as profiles/slurm",
            )
            sub.add_argument(
                "--cores", type=int, default=os.cpu_count(), help="CPU cores to use (default: all)"
            )
    sub = commands.add_parser("data", help=data.__doc__, description=data.__doc__)
    sub.add_argument(
        "key",
        nargs="?",
        choices=studies.OFFICIAL,
        metavar="KEY",
        help=f"one of {', '.join(studies.OFFICIAL)}",
    )
    sub.add_argument(
        "--list",
        action="store_true",
        help="the eight sets, their counts and terms, and what there is of them",
    )
    sub.add_argument("--root", help="where the set lies or is to lie (default: FGKD_DATA/KEY)")
    sub.add_argument(
        "--resize",
        type=int,
        default=300,
        help="pixels of the cached square images (default: 300, the paper's)",
    )
    sub.set_defaults(command=data)
    sub = commands.add_parser("bench", help=bench.__doc__, description=bench.__doc__)
    sub.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where networks run (default: a GPU where there is one)",
    )
    sub.add_argument(
        "--only",
        metavar="PART",
        help="step, student, views, metrics, bank, growth or notebook (default: all)",
    )
    sub.add_argument("--json", action="store_true", help="all of it as JSON (default: a table in Markdown)")
    sub.set_defaults(command=bench)
    return parser


if __name__ == "__main__":
    sys.exit(main())
