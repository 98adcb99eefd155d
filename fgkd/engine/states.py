"""How far a study is, from its files alone: the state of each job, what is left to run, and why.

`left` is what `fgkd run` runs and `fgkd plan` shows: jobs that are not done, the banks that their students
learn from, and teachers whose weights these need and which are not there, as in a study of which only the
records came.
"""

from __future__ import annotations

import contextlib
import fcntl
import json

from fgkd import records
from fgkd.study import Job, Study


def state(study: Study, job: Job, known: dict | None = None) -> dict:
    """A job's state (done, running, failed, interrupted, stale, waiting), seconds, log and error.

    known: fingerprints that were computed already, of use where many jobs are asked for.
    """
    folder = study.path(job)
    log = folder / f"{job.notebook}.ipynb"
    found = {"state": "waiting", "seconds": None, "log": str(log) if log.exists() else None, "error": None}
    notebook = records.read_json(log) or {}
    meta = notebook.get("metadata", {}).get("papermill", {})
    result = records.read_json(folder / "result.json")
    # papermill may be killed after the notebook wrote its result.
    ended = meta.get("end_time") or meta.get("exception")
    if result and (ended or not log.exists()):
        valid = result.get("fingerprint") == study.fingerprint(job, known) and records.is_complete(
            study, job, known
        )
        return found | {"state": "done" if valid else "stale", "seconds": meta.get("duration")}
    if not (result or meta):
        return found
    if not ended:
        return found | {"state": "running" if driven(study) else "interrupted"}
    error, exit_ = _error(notebook), records.read_json(folder / "exit.json")
    if error is None and exit_ and exit_["exit_status"] == 0:
        return found  # it ended well once; what it is a function of has changed, and it waits for its turn
    error = error or "its kernel ended without an error message: it was killed, or ran out of memory"
    return found | {"state": "failed", "seconds": meta.get("duration"), "error": error + _ending(exit_)}


def left(study: Study) -> dict[Job, str]:
    """The jobs that are to run and why, each after those that must have ended before it."""
    known: dict[Job, str] = {}
    jobs = study.jobs()
    reasons = {
        job: why(study, job, found, known)
        for job in jobs
        if (found := state(study, job, known))["state"] != "done"
    }
    for job in reversed(jobs):
        if job not in reasons:
            continue
        for bank in study.banks_of(job) if job.stage == "distill" and wants_bank(study, job, known) else ():
            if not (study.path(bank) / "views" / "logits.npy").exists():
                reasons.setdefault(
                    bank, "its views, deleted after their last student, are needed by new students"
                )
        if job.stage in ("bank", "distill", "teacher"):
            for teacher in _teachers(study, job, known):
                if not (study.path(teacher) / "model.safetensors").exists():
                    reasons.setdefault(
                        teacher, "its record is here, but not its weights, which are needed now"
                    )
    return {job: reasons[job] for job in jobs if job in reasons}


def wants_bank(study: Study, job: Job, known: dict | None = None) -> bool:
    """Whether a distill job reads its teacher's bank: some of its students are not trained yet."""
    return job.strategy != "CE" and not study.online and not records.is_complete(study, job, known)


def why(study: Study, job: Job, found: dict, known: dict | None = None) -> str:
    """Why a job of the state `found` is to run: what became of it, what changed, or that something which it
    reads is made anew."""
    if found["state"] == "failed":
        return f"failed: {found['error']}"
    if found["state"] == "interrupted":
        return "was interrupted"
    if found["state"] == "running":
        return "is running"
    reasons = list(
        dict.fromkeys(
            r for part in records.record_jobs(study, job) if (r := _changed(study, job, part, known))
        )
    )
    if not reasons:
        return "its notebook is to run again"
    return "; ".join(reasons[:3]) + (f" and {len(reasons) - 3} more" if reasons[3:] else "")


def driven(study: Study) -> bool:
    """Whether an `fgkd run` of the study goes on."""
    with contextlib.suppress(FileNotFoundError), open(study.folder / ".driver") as driver:
        return not locked(driver, fcntl.LOCK_SH)
    return False


def locked(file, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether the file could be locked at once."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    return False


def _teachers(study: Study, job: Job, known: dict) -> tuple[Job, ...]:
    """The teachers whose weights and test logits a job that is to run reads."""
    trained = [
        part
        for part in records.record_jobs(study, job)
        if job.stage != "distill" or records.record(study, part, known) is None
    ]
    return tuple(dict.fromkeys(c for part in trained for c in study.inputs(part) if c.stage == "teacher"))


def _changed(study: Study, job: Job, part: Job, known: dict | None) -> str:
    """What has changed since a part of a job was computed; '' where nothing has."""
    record = records.read_json(study.path(part) / "record.json")
    if record is None:
        if part is job:
            return "never ran"
        others = any((study.path(p) / "record.json").exists() for p in records.record_jobs(study, job))
        return f"student {part.student} with loss {part.loss} is new" if others else "never ran"
    if record["fingerprint"] == study.fingerprint(part, known):
        return "" if records.record(study, part, known) else "TGDA needs its crop and drop views"
    before, now = (
        _flat(json.loads(json.dumps(v, default=str)))
        for v in (record["provenance"]["parameters"], study.values(part))
    )
    found = [
        f"{key} {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    found += [
        _content(name, study, part, record)
        for name, digest in study.contents(part).items()
        if (digest or "") != (record["contents"].get(name) or "")
    ]
    return (
        ", ".join(found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
        or "what it reads is made anew"
    )


def _content(name: str, study: Study, part: Job, record: dict) -> str:
    """What became of a file that a job starts from."""
    if name != "photos":
        what = {
            "weights": "the file of its weights",
            "network": "the plugin that registers its network",
            "metrics": "the plugin that registers metrics",
            "loss": "the plugin that defines its loss",
        }[name]
        return f"{what} has another content"
    before, now = set(record["photos"].split()), set(study.photos[part.dataset].photos)
    new, gone = len(now - before), len(before - now)
    return f"of {len(now)} photos {new} are new, moved or changed, and {gone} of before are gone"


def _flat(value, name: str = "") -> dict:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: leaf
        for k, v in value.items()
        for key, leaf in _flat(v, f"{name}.{k}" if name else str(k)).items()
    }


def _error(notebook: dict) -> str | None:
    """The error that a notebook holds."""
    for cell in notebook.get("cells", []):
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                return f"{output['ename']}: {output['evalue']}"
    return None


def _ending(found: dict | None) -> str:
    """How a kernel ended and its peak memory, where they are known and say something."""
    if found is None or found["exit_status"] == 0:
        return ""
    ended = (
        f"signal {-found['exit_status']}"
        if found["exit_status"] < 0
        else f"exit status {found['exit_status']}"
    )
    return f" ({ended}, peak memory {found['peak_memory_mb']:,} MB)"
