"""Records of runs: one tidy row a run, provenance, atomic writes, collection into the study's tables.

Each job's folder holds `record.json` (what was computed: fingerprint, rows, provenance; of a distill job
one a student and loss) and, once its notebook has ended, `result.json`, which the engine takes for done.
These files alone, without weights, banks and photos, are enough for all tables and figures, on any machine.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import platform
import resource
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd

from fgkd.analysis import groups
from fgkd.study import PROJECT, RECIPES, Job, Study

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "pillow")
PROVENANCE = ["run", "commit", "seed", "device", "seconds", "peak_memory_mb"]
TRAITS = ["pretraining", "norm"]
WORDS = ["family", "architecture"]
TRANSFER = ["logme", "leep", "nce"]
STAGE_TABLES = {"data": "data", "teachers": "teacher", "metrics": "bank", "students": "distill"}


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file whole or not at all.  Raises OSError naming the file, and for a full disk how to go on."""
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
    """An array as .npy, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(file, buffer.getvalue())


def disk_error(error: OSError, file: Path) -> OSError:
    """The same error with the file's name and what to do about it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = (
        "the disk or quota is full: free some space and start again, finished runs are kept"
        if full
        else "check that the folder can be written"
    )
    return OSError(error.errno, f"could not write '{file}' ({error.strerror}): {advice}")


def write_json(file: Path, value) -> None:
    write_bytes(file, json.dumps(value, indent=1, default=_plain).encode())


def read_json(file: Path) -> dict | None:
    """The file's value, or None where it is absent or was not written whole."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def write_table(frame: pd.DataFrame, file: Path) -> None:
    """A CSV with floats at 10 significant digits, so that the same study gives the same bytes."""
    write_bytes(file, frame.to_csv(index=False, float_format="%.10g").encode())


def record(study: Study, job: Job, known: dict | None = None) -> dict | None:
    """What the job computed, or None where it did not end or what it is a function of has changed since.

    Of a bank also None where its strategies need what it was written without: the crop and drop views that
    TGDA students see. known: fingerprints that were computed already, of use where many jobs are asked for.
    """
    found = read_json(study.path(job) / "record.json")
    if not found or found.get("fingerprint") != study.fingerprint(job, known):
        return None
    if (
        job.stage == "bank"
        and study.bank_contents(job.strategy)["augmented"]
        and "ratio12_crop" not in found["rows"][0]
    ):
        return None
    return found


def records(study: Study, job: Job, known: dict | None = None) -> list[dict]:
    """The job's record, or those of a distill job's students, as far as there are any."""
    return [found for part in record_jobs(study, job) if (found := record(study, part, known))]


def record_jobs(study: Study, job: Job) -> tuple[Job, ...]:
    """The jobs whose records make up this one's: the students of a distill job, else the job itself."""
    return study.student_jobs(job) if job.stage == "distill" else (job,)


def is_complete(study: Study, job: Job, known: dict | None = None) -> bool:
    """Whether all that the job computes is there."""
    return len(records(study, job, known)) == len(record_jobs(study, job))


def rows(study: Study, job: Job) -> list[dict]:
    """The rows of the job's records; of a bank one for each strategy whose students read it."""
    return [row for one in records(study, job) for row in _rows(study, job, one)]


def mark_done(study: Study, job: Job) -> None:
    """Mark a job's notebook as ended: the last thing that a notebook does."""
    if not is_complete(study, job):
        raise RuntimeError(f"{job.id} computed nothing that could be marked as done")
    value = {"cell": job.id, "fingerprint": study.fingerprint(job), "rows": len(rows(study, job))}
    write_json(study.path(job) / "result.json", value)


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
    """The study's tables from the records of its jobs: teachers, metrics, students, correlations, headline, of several seeds also seeds; epochs of the banks.

    Cells without a record are left out: `missing` names them.
    """
    found = {name: [] for name in STAGE_TABLES}
    epochs = []
    known = {}
    for job in study.jobs():
        name = next((n for n, stage in STAGE_TABLES.items() if stage == job.stage), None)
        for one in records(study, job, known) if name else ():
            found[name] += [
                row | {k: one["provenance"][k] for k in PROVENANCE} for row in _rows(study, job, one)
            ]
            names = {
                "dataset": job.dataset,
                "recipe": job.strategy,
                "teacher": job.teacher,
                "seed": study.seed_of(job),
            }
            epochs += [names | e for e in one.get("epochs", [])]
    frames = {name: pd.DataFrame(r) for name, r in found.items()}
    if not any(frame.empty for frame in frames.values()):
        measured = frames["students"], with_tac(frames["metrics"], frames["teachers"])
        frames["correlations"] = groups.correlations(*measured)
        frames["headline"] = groups.headline(frames["correlations"])
        if len(study.seeds) > 1 and len(frames["correlations"]):
            frames["seeds"] = groups.sensitivity(*measured)
    return frames | {"epochs": pd.DataFrame(epochs)}


def with_tac(metrics: pd.DataFrame, teachers: pd.DataFrame) -> pd.DataFrame:
    """The banks' metrics and beside them those of the teacher that each strategy learns from, TAC first among them, and its traits."""
    keys = ["dataset", "teacher", "recipe", "seed"]
    beside = teachers.reindex(columns=[*keys, "tac", "parameters", *TRAITS, *TRANSFER]).astype(
        dict.fromkeys(TRANSFER, float)
    )
    return (
        metrics.assign(recipe=metrics.strategy.map(RECIPES))
        .merge(beside, on=keys, how="left", validate="many_to_one")
        .drop(columns="recipe")
    )


def points(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The points of all groups as of `groups.join_students_with_metrics`, each teacher's TRAITS, and the study's WORDS for it."""
    joined = groups.join_students_with_metrics(
        frames["students"], with_tac(frames["metrics"], frames["teachers"])
    )
    traits = frames["teachers"].drop_duplicates("teacher").set_index("teacher")[[*TRAITS, *WORDS]]
    return joined.join(traits, on="teacher")


def per_strategy(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a teacher of a `recipe` -> a row for each `strategy` whose students learn from it."""
    return frame.merge(pd.DataFrame(RECIPES.items(), columns=["strategy", "recipe"]), on="recipe").drop(
        columns="recipe"
    )


def missing(study: Study) -> list[str]:
    """Ids of the jobs whose results the tables lack."""
    return [c.id for c in study.jobs() if c.stage in STAGE_TABLES.values() and not is_complete(study, c)]


def _rows(study: Study, job: Job, one: dict) -> list[dict]:
    if job.stage == "distill":
        return [row | _pilot(one.get("history", [])) for row in one["rows"]]
    if job.stage == "teacher":
        model = study.teacher(job.teacher)
        return [row | {word: getattr(model, word) for word in WORDS} for row in one["rows"]]
    if job.stage != "bank":
        return one["rows"]
    names = {"dataset": job.dataset, "teacher": job.teacher}
    return [
        names | {"strategy": strategy} | row
        for row in one["rows"]
        for strategy in study.strategies_using(job.strategy)
    ]


def _pilot(history: list[dict]) -> dict[str, float | None]:
    """A student's training accuracy after a tenth of its epochs, rounded up, and the share that this is.

    None where its record has no history.
    """
    if not history:
        return {"pilot": None, "pilot_cost": None}
    epochs = -(-len(history) // 10)
    return {"pilot": history[epochs - 1]["train_accuracy"], "pilot_cost": epochs / len(history)}


def _plain(value):
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
    git = ["git", "-C", str(PROJECT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


@functools.cache
def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
