"""A study's records as they lie on disk: `record.json` in each job's folder, or all in `records.jsonl`.

A study is committed packed, a line a job, sorted by the jobs' names.  Where a job's folder has a record.json,
that alone counts: the job ran here, and what lies beside it is of that run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

RECORD = "record.json"
PACKED = "records.jsonl"


def read(folder: Path, job: str) -> dict | None:
    """What is recorded of a job in a study's folder, of whatever shape; None where nothing is."""
    own = folder / job / RECORD
    return read_json(own) if own.exists() else packed(folder).get(job)


def read_json(file: Path) -> dict | None:
    """The file's mapping; None where it is absent, cut short, or holds anything else."""
    try:
        return _mapping(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None


def packed(folder: Path) -> Mapping[str, dict]:
    """The records that are packed in a study's folder, by job; none without that file."""
    try:
        status = (folder / PACKED).stat()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return _packed(folder / PACKED, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=8)
def _packed(file: Path, size: int, *times: int) -> Mapping[str, dict]:
    lines = map(_mapping, file.read_bytes().decode(errors="replace").splitlines())
    return {str(record.get("cell")): record for record in lines if record}


def _mapping(text: str) -> dict | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
