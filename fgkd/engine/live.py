"""The live view of a run: what runs now, what failed, and when all ends.

Where standard error is no terminal, a run is a line for each job that ended.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from statistics import mean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fgkd.analysis.records import duration
from fgkd.engine import states
from fgkd.engine.events import Event
from fgkd.engine.terminal import COLOURS, console_for, table_of
from fgkd.study import Job, Study

REFRESHES = 2  # a second


def show(study: Study, jobs: list[Job], events: Iterable[Event], *, as_json: bool = False) -> None:
    """Show a run's events: in a live view, as a line for each job that ended, or as JSON."""
    if as_json:
        print_json("start", study=study.name, jobs=[job.id for job in jobs])
        for event in events:
            print_json(event.kind, job=event.job.id, **event.values)
        return
    view = RunView(study, jobs, console_for(sys.stderr))
    live = Live(view, console=view.console, refresh_per_second=REFRESHES, transient=True)
    with live if view.console.is_terminal else contextlib.nullcontext():
        for event in events:
            view.update(event)


def print_json(event: str, **values) -> None:
    """Print an event as a line of JSON."""
    print(json.dumps({"event": event} | values), flush=True)


class RunView:
    """The state of a run of `jobs`, drawn by rich; a job that ends is printed above it."""

    def __init__(self, study: Study, jobs: list[Job], console: Console):
        self.study = study
        self.jobs = jobs
        self.console = console
        self.last: dict[Job, Event] = {}
        self.progress: dict[Job, dict] = {}
        self.durations: dict[str, list[float]] = defaultdict(list)  # of the jobs that are done, by stage
        known: dict[Job, str] = {}
        for job in study.jobs():
            if job.row.networks and job not in jobs:
                self._add_duration(job, states.state(study, job, known)["seconds"])

    def update(self, event: Event) -> None:
        """Take in what happened, and print a line where a job ended."""
        job = event.job
        if event.kind == "progress":
            self.progress[job] = event.values
            return
        self.last[job] = event
        self.progress.pop(job, None)
        if event.kind == "done":
            self._add_duration(job, event.values["seconds"])
            self._print(f"{len(self._of('done'))}/{len(self.jobs)}", job, event.values["result"])
        elif event.kind == "failed":
            self._print("FAILED:", job, event.values["error"], "red")

    def seconds_left(self) -> tuple[float, bool]:
        """Seconds until all jobs have ended, and whether they are a lower bound.

        A job takes what those of its stage took on average, and as many run at a time as run now.
        """
        seconds = 0.0
        is_bound = False
        for job in self.jobs:
            last = self.last.get(job)
            if (last and last.kind != "running") or not job.row.networks:
                continue
            training = training_seconds_left(self.progress.get(job)) or 0.0
            if self.durations[job.stage]:
                spent = time.time() - last.at if last else 0.0
                seconds += max(mean(self.durations[job.stage]) - spent, training)
            else:
                seconds += training
                is_bound = True
        return seconds / max(1, len(self._of("running"))), is_bound

    def __rich__(self) -> RenderableType:
        done, running, failed = (self._of(kind) for kind in ("done", "running", "failed"))
        counts = Text.assemble(
            (self.study.name, "bold"),
            (f"  {len(done)}/{len(self.jobs)} done", COLOURS["done"]),
            (f"  {len(running)} running", COLOURS["running"]),
            (f"  {len(failed)} failed", COLOURS["failed"] if failed else ""),
            f"  {len(self.jobs) - len(self.last)} waiting",
        )
        bar = Table.grid(expand=True, padding=(0, 2))
        bar.add_row(ProgressBar(total=len(self.jobs), completed=len(done)), self._end())
        parts: list[RenderableType] = [counts, bar]
        if running:
            parts.append(self._running_table(running))
        for event in failed:
            text = f"failed: {event.job.id}  {event.values['error']}"
            parts.append(Text(text, COLOURS["failed"], no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _running_table(self, running: list[Event]) -> Table:
        """One row per running job: its training, epoch, loss, seconds an epoch, and when that ends."""
        names = ("running now", "epoch", "loss", "s/epoch", "ends in")
        table = table_of(*names, right=names[1:])
        for column in table.columns[1:]:
            column.no_wrap = True
        for event in running:
            values = self.progress.get(event.job)
            if values is None:
                spent = duration((time.time() - event.at) / 3600)
                table.add_row(Text.assemble(event.job.id, (f"  for {spent}", "dim")))
                continue
            part = f" ({values['part']} of {values['parts']})" if values["parts"] > 1 else ""
            seconds = values["seconds_per_epoch"]
            left = training_seconds_left(values)
            table.add_row(
                Text.assemble(event.job.id, (f"  {values['what']}{part}", "dim")),
                f"{min(int(values['epoch']) + 1, values['epochs'])}/{values['epochs']}",
                "" if values["loss"] is None else f"{values['loss']:.3f}",
                "" if seconds is None else f"{seconds:,.1f}",
                "" if left is None else duration(left / 3600),
            )
        return table

    def _end(self) -> str:
        """When all jobs will have ended."""
        seconds, is_bound = self.seconds_left()
        if not seconds:
            return ""
        at = time.localtime(time.time() + seconds)
        clock = time.strftime("%H:%M" if seconds < 12 * 3600 else "%a %H:%M", at)
        return f"ends in {'at least' if is_bound else 'about'} {duration(seconds / 3600)}, at {clock}"

    def _of(self, kind: str) -> list[Event]:
        return [event for event in self.last.values() if event.kind == kind]

    def _add_duration(self, job: Job, seconds: float | None) -> None:
        if seconds is not None:
            self.durations[job.stage].append(seconds)

    def _print(self, word: str, job: Job, text: str, style: str = "") -> None:
        self.console.print(Text(f"{word:>9}  {job.id:44} {text}", style), soft_wrap=True)


def training_seconds_left(values: dict | None) -> float | None:
    """Seconds until a training ends, from its progress file; None while not known."""
    if values is None or values["seconds_per_epoch"] is None:
        return None
    return (values["epochs"] - values["epoch"]) * values["seconds_per_epoch"]
