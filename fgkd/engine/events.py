"""What happens to a run's jobs: Snakemake's logger writes it to a file, which the views of a run follow.

The file's first line holds the ids of the run's jobs, each further line an event.  `fgkd run` and `fgkd
status --watch` read the same lines; how far a training is comes from its `progress.json` while it runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fgkd.analysis import records
from fgkd.engine import states
from fgkd.metrics.claims import UNDEFINED
from fgkd.study import Job, Study

FILE = ".run"  # in the study's folder
KINDS = {"job_info": "given", "job_finished": "done", "job_error": "failed"}  # of Snakemake's events
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Event:
    """What happened to a job: 'running', 'done', 'failed', or 'progress' of its training.

    values: of a done job `seconds` and `result`, of a failed one `error` and `log`, of progress its file.
    at: when it was given to this machine or a cluster, ended or failed, by `time.time`.
    """

    kind: str
    job: Job
    values: dict = field(default_factory=dict)
    at: float = field(default_factory=lambda: time.time())


class Writer(logging.Handler):
    """A handler of Snakemake's logger that adds what it says of jobs to a run's file."""

    def __init__(self, file: Path):
        super().__init__()
        self.file = file
        self.ids: dict[int, str] = {}  # Snakemake's number of a job -> its id

    def emit(self, record: logging.LogRecord) -> None:
        """Write an event's line; other messages are left to Snakemake's own handler."""
        values = vars(record)
        kind = KINDS.get(values.get("event", ""))
        number = values.get("jobid", values.get("job_id", 0))
        if kind == "given" and (wildcards := values["wildcards"]):
            self.ids[number] = wildcards["id"]
        if kind and number in self.ids:
            line = json.dumps({"kind": kind, "id": self.ids[number], "at": values["created"]})
            with contextlib.suppress(OSError), open(self.file, "a") as lines:  # a full disk: the run goes on
                lines.write(line + "\n")


def begin(study: Study, jobs: list[Job]) -> None:
    """Begin the file of a run of these jobs."""
    (study.folder / FILE).write_text(json.dumps([job.id for job in jobs]) + "\n")


def jobs(study: Study) -> list[Job]:
    """The jobs of the study's run; none where there is none yet."""
    ids = set()
    with contextlib.suppress(FileNotFoundError), open(study.folder / FILE) as lines:
        ids = set(json.loads(lines.readline() or "[]"))
    return [job for job in study.jobs() if job.id in ids]


def follow(study: Study, goes_on: Callable[[], bool]) -> Iterator[Event]:
    """The events of the study's run from its beginning, until nothing goes on any more."""
    by_id = {job.id: job for job in study.jobs()}
    known: dict[Job, str] = {}
    given: dict[Job, float] = {}  # and not begun, as those that wait in a cluster's queue
    progress: dict[Job, dict | None] = {}  # of what runs
    for line in tail(study.folder / FILE, goes_on):
        if line.startswith("{"):
            said = json.loads(line)
            job = by_id[said["id"]]
            given.pop(job, None)
            progress.pop(job, None)
            if said["kind"] == "given":
                given[job] = said["at"]
            else:
                row = states.state(study, job, known)
                yield Event(said["kind"], job, _values(study, job, said["kind"], row, known), said["at"])
            continue
        for job in [job for job in given if states.log_of(study, job).exists()]:
            progress[job] = None
            yield Event("running", job, at=given.pop(job))
        for job, before in progress.items():
            values = states.running(study, job)
            if values and values != before:
                progress[job] = values
                yield Event("progress", job, values)


def tail(file: Path, goes_on: Callable[[], bool]) -> Iterator[str]:
    """Whole lines of a file as it grows, and '' after each look, until nothing goes on any more."""
    position = 0
    has_ended = False
    while not has_ended:
        has_ended = not goes_on()
        with contextlib.suppress(FileNotFoundError), open(file, "rb") as lines:
            lines.seek(position)
            for line in lines:
                if line.endswith(b"\n"):
                    position += len(line)
                    yield line.decode().rstrip("\n")
        yield ""
        if not has_ended:
            time.sleep(LOOK_SECONDS)


def summary(study: Study, job: Job, known: dict | None = None) -> str:
    """A job's result in a line, with a number for each student and loss."""
    texts = []
    for row in records.rows(study, job, known):
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


def _values(study: Study, job: Job, kind: str, row: dict, known: dict) -> dict:
    if kind == "done":
        return {"seconds": row["seconds"], "result": summary(study, job, known)}
    unknown = f"its notebook did not run: see {study.folder / 'engine.log'}"
    return {"error": row["error"] or unknown, "log": row["log"]}
