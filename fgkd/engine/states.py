"""How far a study is, from its files alone: each job's state, and what is left to run and why.

`left` is what `fgkd run` runs and `fgkd plan` shows: jobs that are not done, the banks that their students
learn from, and teachers whose weights are needed and absent, as in a study of which only the records came.
"""

from __future__ import annotations

import contextlib
import json
from itertools import chain
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from fgkd.analysis import records
from fgkd.distillation import progress
from fgkd.study import Job, Study

DRIVER = ".driver"  # the file that an `fgkd run` locks
ENGINE = ".engine"  # and its Snakemake, which a cluster's profile lets live on when that is killed
REASONS = 3  # named of a job or a record that has more


def state(study: Study, job: Job, known: dict | None = None) -> dict:
    """A job's state (done, running, failed, interrupted, stale, waiting), time, log and error.

    known: fingerprints that were computed already, of use where many jobs are asked for.
    """
    folder = study.path(job)
    log = log_of(study, job)
    row = {"state": "waiting", "seconds": None, "log": str(log) if log.exists() else None, "error": None}
    notebook = records.read_json(log) or {}
    meta = _mapping(_mapping(notebook.get("metadata")).get("papermill"))
    seconds = meta.get("duration") if isinstance(meta.get("duration"), int | float) else None
    result = records.read_json(folder / "result.json")
    if result is None and not row["log"] and records.is_packed(study, job):
        result = {"fingerprint": study.fingerprint(job, known)}
    # papermill may be killed after the notebook wrote its result.
    ended = meta.get("end_time") or meta.get("exception")
    if result and (ended or not log.exists()):
        same = result.get("fingerprint") == study.fingerprint(job, known)
        valid = same and records.is_complete(study, job, known)
        return row | {"state": "done" if valid else "stale", "seconds": seconds}
    if not (result or meta):  # papermill writes its notebook in place
        return row | {"state": "running" if row["log"] and is_driven(study) else "waiting"}
    if not ended:
        return row | {"state": "running" if is_driven(study) else "interrupted"}
    ending = ending_of(folder)
    error = first_error(notebook) or (ending or {}).get("error")
    if error is None and ending and ending["exit_status"] == 0:
        return row  # it ended well once; an input has changed since, and it waits for its turn
    error = error or "its kernel ended without an error message: it was killed, or ran out of memory"
    return row | {"state": "failed", "seconds": seconds, "error": error + _ending(ending)}


def rows(study: Study) -> dict[Job, dict]:
    """The state of each job."""
    known: dict[Job, str] = {}
    return {job: state(study, job, known) for job in study.jobs()}


def failed(rows: dict[Job, dict]) -> list[Job]:
    """The jobs whose last run failed; rows: as returned by `rows`."""
    return [job for job, row in rows.items() if row["state"] == "failed"]


def log_of(study: Study, job: Job) -> Path:
    """The notebook that a job executes, whether it is there or not."""
    return study.path(job) / f"{job.notebook}.ipynb"


def left(study: Study, found: dict[Job, dict] | None = None) -> dict[Job, str]:
    """The jobs that will run and why, each after those that must have ended before it.

    found: their states, where they are known already.
    """
    jobs = study.jobs()
    known: dict[Job, str] = {}
    reasons: dict[Job, str] = {}
    for job, row in (found or rows(study)).items():
        if row["state"] != "done":
            reasons[job] = why(study, job, row, known)
    for job in reversed(jobs):
        if job not in reasons:
            continue
        for bank in study.banks_of(job) if wants_bank(study, job, known) else ():
            if not any((study.path(bank) / "views").glob("view-*")):
                lost = "its views, deleted after their last student, are needed by new students"
                reasons.setdefault(bank, lost)
        for teacher in _teachers(study, job, known):
            if not (study.path(teacher) / "model.safetensors").exists():
                reasons.setdefault(teacher, "its record is here, but not its weights, which are needed now")
    return {job: reasons[job] for job in jobs if job in reasons}


def wants_bank(study: Study, job: Job, known: dict | None = None) -> bool:
    """Whether a job reads its teacher's bank: some of its students are not trained yet."""
    reads = job.stage == "distill" and job.strategy != "CE" and not study.online
    return reads and not records.is_complete(study, job, known)


def why(study: Study, job: Job, row: dict, known: dict | None = None) -> str:
    """Say why an unfinished job will run: its state, changed settings, or a recomputed input.

    row: as returned by `state`.
    """
    match row["state"]:
        case "failed":
            return f"failed: {row['error']}"
        case "interrupted":
            return "was interrupted"
        case "running":
            return "is running"
    changes = [_changed(study, job, part, known) for part in records.record_jobs(study, job)]
    return _listed(list(dict.fromkeys(filter(None, changes))), "; ") or "its notebook will run again"


def running(study: Study, job: Job) -> dict | None:
    """The progress of the training or bank that a running job is at (`progress.Progress`).

    part, parts: which of the job's trainings it is, of how many.
    """
    parts = records.record_jobs(study, job)
    for number, part in enumerate(parts, 1):
        values = progress.read(study.path(part))
        if values:
            return values | {"part": number, "parts": len(parts)}
    return None


def is_driven(study: Study) -> bool:
    """Whether an `fgkd run` of the study goes on."""
    file = study.folder / DRIVER
    with contextlib.suppress(OSError):
        if file.exists():
            held = lock(file)
            with held or contextlib.nullcontext():
                return held is None
    return False


def lock(file: Path, seconds: float = 0) -> AcquireReturnProxy | None:
    """Lock a file until a `with` or this process ends; None where another process holds it.

    seconds: how long that one is waited for, -1 without end.
    Raises OSError where the file system has no locks.
    """
    try:
        return FileLock(file, timeout=seconds, fallback_to_soft=False).acquire()
    except Timeout:
        return None
    except OSError as error:
        raise records.disk_error(error, file) from None


def first_error(notebook: dict) -> str | None:
    """The first error that a notebook holds, as 'Name: message'; None where there is none."""
    for output in outputs(notebook):
        if output.get("output_type") == "error":
            return f"{output.get('ename')}: {output.get('evalue')}"
    return None


def outputs(notebook: dict) -> list[dict]:
    """All outputs of a notebook, as far as it is one."""
    cells = [_mapping(cell) for cell in _list(notebook.get("cells"))]
    return [_mapping(output) for output in chain.from_iterable(_list(cell.get("outputs")) for cell in cells)]


def ending_of(folder: Path) -> dict | None:
    """The exit status and peak memory of a job's last kernel, None where they are not known."""
    ending = records.read_json(folder / "exit.json") or {}
    known = all(isinstance(ending.get(name), int) for name in ("exit_status", "peak_memory_mb"))
    return ending if known else None


def _teachers(study: Study, job: Job, known: dict) -> list[Job]:
    """The teachers whose weights and test logits a job that will run reads."""
    if job.stage not in ("bank", "distill", "teacher"):
        return []
    teachers: dict[Job, None] = {}
    for part in records.record_jobs(study, job):
        if job.stage != "distill" or records.find(study, part, known) is None:
            teachers |= dict.fromkeys(c for c in study.inputs(part) if c.stage == "teacher")
    return list(teachers)


def _changed(study: Study, job: Job, part: Job, known: dict | None) -> str:
    """What has changed since a part of a job was computed; '' where nothing has."""
    record = records.read_record(study, part)
    if record is None:
        if (study.path(part) / records.RECORD).exists():
            return "its record is not whole, or another version's"
        others = [p for p in records.record_jobs(study, job) if records.read_record(study, p)]
        return f"student {part.student} with loss {part.loss} is new" if others else "never ran"
    if record["fingerprint"] == study.fingerprint(part, known):
        return "" if records.find(study, part, known) else "TGDA needs its crop and drop views"
    before = _flat(record["provenance"]["parameters"])
    now = _flat(json.loads(json.dumps(study.values(part), default=str)))
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changes = [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys]
    for name, digest in study.contents(part).items():
        if (digest or "") != (record["contents"].get(name) or ""):
            changes.append(_changed_content(name, study, part, record))
    return _listed(changes, ", ") or "an input is recomputed"


def _changed_content(name: str, study: Study, part: Job, record: dict) -> str:
    """What became of a file that a job starts from."""
    files = {
        "weights": "the file of its weights",
        "config": "config.json beside its weights",
        "network": "the plugin that registers its network",
        "metrics": "the plugin that registers metrics",
        "loss": "the plugin that defines its loss",
    }
    if name in files:
        return f"{files[name]} has another content"
    before = set(record.get("photos", "").split())
    now = set(study.photos[part.dataset].photos)
    changed = f"{len(now - before)} are new, moved or changed"
    return f"of {len(now)} photos {changed}, and {len(before - now)} of before are gone"


def _listed(reasons: list[str], separator: str) -> str:
    """The first few reasons, and the number of the others."""
    text = separator.join(reasons[:REASONS])
    return f"{text} and {len(reasons) - REASONS} more" if reasons[REASONS:] else text


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list:
    return value if isinstance(value, list) else []


def _flat(value, name: str = "") -> dict[str, object]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    if not isinstance(value, dict):
        return {name: value}
    leaves: dict[str, object] = {}
    for key, inner in value.items():
        leaves |= _flat(inner, f"{name}.{key}" if name else str(key))
    return leaves


def _ending(ending: dict | None) -> str:
    """How a kernel ended and its peak memory, where they are known and say something."""
    if ending is None or ending["exit_status"] == 0:
        return ""
    status = ending["exit_status"]
    word = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f" ({word}, peak memory {ending['peak_memory_mb']:,} MB)"
