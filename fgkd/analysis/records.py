"""Records of jobs, with their provenance; atomic writes; the study's tables from its records.

Each job's folder holds `record.json` (what was computed: fingerprint, rows, provenance; of a distill job one
per student and loss) and, once its notebook has ended, `result.json`, by which the engine knows that it is
done.  The records alone, without weights, banks and photos, are enough for all tables and figures, on any
machine; packed in one file they are committed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import platform
import resource
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgkd.analysis import groups
from fgkd.metrics.claims import Claim, register_claims
from fgkd.study import PROJECT, RECIPES, STAGES, Job, Study, StudyError, contents
from fgkd.study import stored as on_disk
from fgkd.study.stored import PACKED, RECORD, packed, read

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "pillow")
PROVENANCE = ["run", "commit", "seed", "device", "seconds", "peak_memory_mb"]
TRAITS = ["pretraining", "norm"]  # of a teacher, by its record
WORDS = ["family", "architecture"]  # of a teacher, by the study file
TRANSFER = ["logme", "leep", "nce"]
NAMES = {  # columns of text, whatever a name looks like: NA, 1e5, 007
    *("architecture", "by", "commit", "dataset", "device", "family", "licence", "loss", "model", "norm"),
    *("one", "other", "pretraining", "recipe", "run", "strategy", "student", "teacher", "tied", "value"),
}
# what a spreadsheet takes for a formula, and is no number
FORMULA = r"^(?=[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20])(?![+-]?[\d.]+(e[+-]?\d+)?%?$)"
read_json = on_disk.read_json
SILENT_SECONDS = 10  # to wait for another process before it is said
KEPT = ("model.safetensors", "test.npy")  # of a training, beside its record, which holds their digests

# What a stage's only row has.  Of another shape, a record is another version's, and counts as absent.
COLUMNS = {
    "data": {"dataset", "classes", "train", "test"},
    "teacher": {*("dataset", "teacher", "recipe", "tac", "parameters", "lr"), *TRAITS, *TRANSFER},
    "bank": {"samples", "views", "ratio12"},
    "student": {*("dataset", "teacher", "student", "strategy", "loss", "accuracy", "agreement", "lr")},
}
TEXTS = {*("dataset", "teacher", "student", "strategy", "recipe", "loss", "model"), *TRAITS}
COUNTS = {"classes", "train", "test", "parameters", "epochs", "samples", "views"}
SHARES = {*("accuracy", "tac", "tac_single", "train_accuracy", "validation_accuracy", "agreement", "ece")}
OPTIONAL = {"agreement", *TRANSFER}  # None where there is no teacher, or no pretrained network
Int = Annotated[int, Field(gt=-(2**63), lt=2**63)]
STRICT = ConfigDict(strict=True)
Rows = list[dict[str, str | Int | float | bool | None]]


class Provenance(BaseModel):
    """Where a record comes from: see `provenance`."""

    model_config = STRICT

    run: str
    commit: str
    seed: Int
    device: str
    seconds: float
    peak_memory_mb: float
    python: str
    threads: Int
    packages: dict[str, str]
    parameters: dict[str, Any]


class Record(BaseModel):
    """The shape of a record; files: the digests of those of KEPT that it was written with."""

    model_config = STRICT

    fingerprint: str
    contents: dict[str, str | None]
    rows: Rows
    provenance: Provenance
    files: dict[str, str] = {}
    history: Rows = []
    search: Rows = []
    epochs: Rows = []
    on_test: dict[str, float | None] = {}
    notes: list[str] = []
    photos: str = ""
    claims: dict[str, Claim] = {}


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file atomically, and its folders.

    Raises OSError naming the file, and for a full disk how to go on.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise disk_error(error, file) from error


def write_array(file: Path, array: np.ndarray) -> None:
    """Write an array as .npy, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(file, buffer.getvalue())


def write_json(file: Path, value) -> None:
    """Write a value as JSON, atomically; numpy's and paths become plain ones."""
    write_bytes(file, json.dumps(value, indent=1, default=_to_plain).encode())


def write_table(frame: pd.DataFrame, file: Path) -> None:
    """Write a CSV with floats at 10 significant digits: the same study, the same bytes.

    A text that a spreadsheet would take for a formula gets a ' before it, which it keeps when it is read.
    """
    texts = {r"\r\n?": "\n"}, {FORMULA: "'"}  # csv does not quote a carriage return, which ends a row
    names = pd.Series(frame.columns.astype(str))
    for changes in texts:
        frame = frame.replace(changes, regex=True)
        names = names.replace(changes, regex=True)
    data = frame.to_csv(index=False, float_format="%.10g", header=list(names))
    write_bytes(file, data.encode())


def read_table(file: Path) -> pd.DataFrame:
    """A CSV that `write_table` wrote: an empty cell is NaN in a column of numbers alone."""
    columns = set(pd.read_csv(file, nrows=0).columns)
    texts = dict.fromkeys(columns & NAMES, str)
    return pd.read_csv(
        file, dtype=texts, keep_default_na=False, na_values={name: [""] for name in columns - NAMES}
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made; one that is in it is waited for.

    A wait of more than ten seconds is said.
    What processes that were killed in it left half written is removed.
    Raises OSError for a folder that cannot be written, and a file system that has no locks.
    """
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=SILENT_SECONDS)
        except Timeout:
            print(f"waiting for another process that works in {folder.name}")
            lock.acquire()
    except OSError as error:
        raise disk_error(error, folder / ".lock") from error
    try:
        for path in leftovers(folder):
            path.unlink()
        yield
    finally:
        lock.release()


def leftovers(folder: Path, name: str = "") -> list[Path]:
    """What killed processes left half written in a folder, of one name or all: '.NAME.PROCESS'."""
    found = []
    for path in folder.glob(".*.*"):
        start, _, process = path.name.removeprefix(".").rpartition(".")
        if process.isdecimal() and name in ("", start) and not _is_alive(int(process)):
            found.append(path)
    return found


def disk_error(error: OSError, file: Path) -> OSError:
    """The same error with the file's name and what to do about it."""
    advice = "check that the folder can be written; FGKD_RUNS names another one for results"
    if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        advice = "its file system has no locks: set FGKD_RUNS to a folder on another one"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "the disk or quota is full: free some space and start again, finished runs are kept"
    return OSError(error.errno, f"could not write '{file}' ({error.strerror}): {advice}")


def record(study: Study, job: Job, known: dict | None = None) -> dict | None:
    """The job's record, as `find` finds it.  Raises StudyError where a number in it cannot be."""
    stored = find(study, job, known)
    if stored and (words := fault(job, stored)):
        raise StudyError(
            f"{job.id}: {words}; 'fgkd check {study.file} --repair' removes such records, and "
            "'fgkd run' then runs their jobs again"
        )
    return stored


def find(study: Study, job: Job, known: dict | None = None) -> dict | None:
    """The job's record; None without one of this shape, or where an input has changed since.

    Of a bank also None where its strategies need what it was written without: the crop and drop views that
    TGDA students see.  The claims of plugins' metrics in a bank's record are added to METRICS.

    known: fingerprints computed so far, of use where many jobs are looked up
    """
    stored = read_record(study, job)
    if not stored or stored["fingerprint"] != study.fingerprint(job, known):
        return None
    if job.stage == "bank":
        augmented = study.bank_contents(job.strategy)["augmented"]
        if augmented and not all("ratio12_crop" in row for row in stored["rows"]):
            return None
        register_claims(stored.get("claims", {}))
    return stored


def read_record(study: Study, job: Job) -> dict | None:
    """The job's record, of whatever inputs; None where there is none of this version's shape."""
    stored = read(study.folder, job.id)
    if stored is None:
        return None
    try:
        Record.model_validate(stored)
    except (ValidationError, RecursionError):
        return None
    columns = COLUMNS.get(job.stage, set())
    whole = all(columns <= row.keys() for row in stored["rows"])
    whole &= all("train_accuracy" in row for row in stored.get("history", []))
    return stored if whole and (job.stage != "teacher" or "on_test" in stored) else None


def retract(folder: Path) -> None:
    """Empty a job's record, before the first of the files that it speaks of is replaced.

    A process that is killed in between leaves files without a record, and never another's.
    """
    write_json(folder / RECORD, {})


def pack(study: Study) -> Path:
    """Write the records of a study's jobs to one file, as it is committed; returns its path."""
    parts = {part.id: part for job in study.jobs() for part in record_jobs(study, job)}
    found = [read_record(study, parts[name]) for name in sorted(parts)]
    lines = [json.dumps(record) + "\n" for record in found if record]
    write_bytes(study.folder / PACKED, "".join(lines).encode())
    return study.folder / PACKED


def unpack(study: Study, job: Job) -> None:
    """Put the packed records of a job that is about to run into its folder."""
    for part in record_jobs(study, job):
        if is_packed(study, part):
            write_json(study.path(part) / RECORD, packed(study.folder)[part.id])


def is_packed(study: Study, job: Job) -> bool:
    """Whether all records of a job came packed, and it has not run here."""
    found = packed(study.folder)
    parts = record_jobs(study, job) if found else ()
    return any(parts) and all(p.id in found and not (study.path(p) / RECORD).exists() for p in parts)


def digests(folder: Path) -> dict[str, str]:
    """The digests of those of KEPT that a job's folder holds."""
    found = {name: contents.of_file(folder / name) for name in KEPT}
    return {name: digest for name, digest in found.items() if digest}


def lost(folder: Path, stored: dict, names: tuple[str, ...] = KEPT) -> list[str]:
    """Those of a record's files that are absent, or others than it was written with."""
    known = stored.get("files", {})
    found = digests(folder)
    return [name for name in names if name not in found or found[name] != known.get(name, found[name])]


def fault(job: Job, stored: dict) -> str | None:
    """What in a record of this shape cannot be, in a few words; None where all can."""
    if job.stage not in COLUMNS:
        return None
    if len(stored["rows"]) != 1:
        return f"its record has {len(stored['rows'])} rows: expected 1"
    (row,) = stored["rows"]
    recipe = {"recipe": job.strategy} if job.stage == "teacher" else {"strategy": job.strategy}
    own = dataclasses.asdict(job) | recipe
    for column, value in row.items():
        if words := _misfit(column, value, own):
            return f"'{column}' is {value!r}: expected {words}"
    epochs = stored.get("epochs", [])
    if job.stage == "bank" and epochs and len(epochs) != row["views"]:
        return f"its record has {len(epochs)} rows of epochs: expected {row['views']}"
    for part in ("history", "search", "epochs"):
        for number, row in enumerate(stored.get(part, []), 1):
            for column in (name for name in SHARES & row.keys() if row[name] is not None):
                if words := _misfit(column, row[column], own):
                    return f"'{column}' in row {number} of its {part} is {row[column]!r}: expected {words}"
    return None


def of(study: Study, job: Job, known: dict | None = None) -> list[dict]:
    """The records of `record_jobs`, as far as there are any."""
    return [stored for part in record_jobs(study, job) if (stored := record(study, part, known))]


def record_jobs(study: Study, job: Job) -> tuple[Job, ...]:
    """The jobs whose records make up this one's: a distill job's students, or itself."""
    return study.student_jobs(job) if job.stage == "distill" else (job,)


def is_complete(study: Study, job: Job, known: dict | None = None) -> bool:
    """Whether all records of the job are there."""
    return all(find(study, part, known) for part in record_jobs(study, job))


def rows(study: Study, job: Job, known: dict | None = None) -> list[dict]:
    """The rows of the job's records; of a bank one for each strategy whose students read it."""
    return [row for stored in of(study, job, known) for row in _rows(study, job, stored)]


def mark_done(study: Study, job: Job) -> None:
    """Mark a job's notebook as ended: the last thing that a notebook does.

    Raises RuntimeError where a record is missing.
    """
    if not is_complete(study, job):
        raise RuntimeError(f"{job.id} computed nothing that could be marked as done")
    result = {"cell": job.id, "fingerprint": study.fingerprint(job), "rows": len(rows(study, job))}
    write_json(study.path(job) / "result.json", result)


def provenance(study: Study, job: Job, device: str, seconds: float) -> dict:
    """What a result came from: code, packages, machine, seed, cost."""
    return {
        "run": job.id,
        "commit": _commit(),
        "seed": study.seed_of(job),
        "device": device,
        "seconds": round(seconds, 2),
        "peak_memory_mb": round(_peak_mb(device)),
        "python": platform.python_version(),
        "threads": study.threads,
        "packages": _packages(),
        "parameters": study.values(job),
    }


def collect(study: Study) -> dict[str, pd.DataFrame]:
    """The study's tables from its records, by name; jobs without one are left out.

    See `missing`.  Names: data, teachers, metrics, students, epochs (each view of a bank) and, once the first
    four have rows, correlations, headline and for several seeds also seeds.
    """
    tables: dict[str, list[dict]] = {row.table: [] for row in STAGES.values() if row.table}
    epochs: list[dict] = []
    known: dict[Job, str] = {}
    for job in study.jobs():
        if not job.row.table:
            continue
        for stored in of(study, job, known):
            source = {key: stored["provenance"][key] for key in PROVENANCE}
            tables[job.row.table] += [row | source for row in _rows(study, job, stored)]
            place = {
                "dataset": job.dataset,
                "recipe": job.strategy,
                "teacher": job.teacher,
                "seed": study.seed_of(job),
            }
            epochs += [place | epoch for epoch in stored.get("epochs", [])]
    frames = {name: pd.DataFrame(table) for name, table in tables.items()}
    if all(len(frame) for frame in frames.values()):
        students = frames["students"]
        metrics = with_tac(frames["metrics"], frames["teachers"])
        frames["correlations"] = groups.correlations(students, metrics)
        frames["headline"] = groups.headline(frames["correlations"])
        if len(study.seeds) > 1 and len(frames["correlations"]):
            frames["seeds"] = groups.sensitivity(students, metrics)
    return frames | {"epochs": pd.DataFrame(epochs)}


def committed_tables(name: str) -> dict[str, pd.DataFrame]:
    """The tables of a study in the repository, by name: `runs/<name>/tables/*.csv`.

    Raises StudyError where there is none.
    """
    files = sorted((PROJECT / "runs" / name / "tables").glob("*.csv"))
    if not files:
        raise StudyError(
            f"study '{name}' has no tables in '{PROJECT / 'runs' / name}': build them by `fgkd report {name}`"
        )
    return {file.stem: read_table(file) for file in files}


def with_tac(metrics: pd.DataFrame, teachers: pd.DataFrame) -> pd.DataFrame:
    """Join each bank's metrics with its teacher's TAC, size, traits and transfer scores.

    metrics, teachers: tables of `collect`
    """
    keys = ["dataset", "teacher", "recipe", "seed"]
    own = teachers.reindex(columns=[*keys, "tac", "parameters", *TRAITS, *TRANSFER])
    own = own.astype(dict.fromkeys(TRANSFER, float))
    banks = metrics.assign(recipe=metrics.strategy.map(RECIPES))
    return banks.merge(own, on=keys, how="left", validate="many_to_one").drop(columns="recipe")


def points(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The points of all groups, with each teacher's TRAITS and WORDS.

    frames: as returned by `collect`
    """
    metrics = with_tac(frames["metrics"], frames["teachers"])
    traits = frames["teachers"].drop_duplicates("teacher").set_index("teacher")[[*TRAITS, *WORDS]]
    return groups.join_students_with_metrics(frames["students"], metrics).join(traits, on="teacher")


def per_strategy(frame: pd.DataFrame) -> pd.DataFrame:
    """Repeat each row of a `recipe` for each `strategy` whose students learn from its teacher."""
    strategies = pd.DataFrame(RECIPES.items(), columns=["strategy", "recipe"])
    return frame.merge(strategies, on="recipe").drop(columns="recipe")


def duration(hours: float | None) -> str:
    """Hours in a reader's unit: 12.3 h, 34 min, 5 s; '-' where they are not known."""
    if hours is None:
        return "-"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def missing(study: Study) -> list[str]:
    """Ids of the jobs whose results the tables lack."""
    known: dict[Job, str] = {}
    return [job.id for job in study.jobs() if job.row.table and not is_complete(study, job, known)]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _misfit(column: str, value: Any, own: Mapping[str, Any]) -> str | None:
    """What was expected in a column; None where the value is one of these.

    own: the columns whose values the job names.
    """
    if value is None and column in OPTIONAL:
        return None
    if column in TEXTS:
        fits = isinstance(value, str) and value == own.get(column, value)
        return None if fits else repr(own.get(column, "text"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a number"
    if column in COUNTS:
        return None if isinstance(value, int) and value > 0 else "a count of 1 or more"
    if column in SHARES:
        return None if 0 <= value <= 1 else "a share from 0 to 1"
    return None


def _rows(study: Study, job: Job, stored: dict) -> list[dict]:
    """The rows of a record, with what follows from the study file and the training's history."""
    match job.stage:
        case "distill":
            pilot = _pilot(stored.get("history", []))
            return [row | pilot for row in stored["rows"]]
        case "teacher":
            model = study.teacher(job.teacher)
            words = {word: getattr(model, word) for word in WORDS}
            return [row | words for row in stored["rows"]]
        case "bank":
            names = {"dataset": job.dataset, "teacher": job.teacher}
            strategies = study.strategies_using(job.strategy)
            return [names | {"strategy": name} | row for row in stored["rows"] for name in strategies]
    return stored["rows"]


def _pilot(history: list[dict]) -> dict[str, float | None]:
    """Training accuracy after a tenth of a student's epochs, rounded up, and that share.

    None where its record has no history.
    """
    if not history:
        return {"pilot": None, "pilot_cost": None}
    epochs = -(-len(history) // 10)
    return {"pilot": history[epochs - 1]["train_accuracy"], "pilot_cost": epochs / len(history)}


def _to_plain(value):
    """numpy and path values for JSON."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else list(value)


def _peak_mb(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


@functools.cache
def _commit() -> str:
    """The checkout's commit, '+' where files were changed since; 'unknown' outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


@functools.cache
def _packages() -> dict[str, str]:
    """The version of each of PACKAGES, or 'absent'."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions
