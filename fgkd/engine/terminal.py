"""Tables for a terminal: a study's plan, its states, its results.

Where the output is no terminal, they have no colours and are as wide as what they hold.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from fgkd.analysis import records
from fgkd.analysis.records import duration
from fgkd.engine import kernels, states
from fgkd.study import Job, Study
from fgkd.study.errors import printable

if TYPE_CHECKING:  # loaded by the commands that need it alone
    import pandas as pd

UNLIMITED = 10_000  # columns, where no terminal limits them
GAP = 2  # between the columns of a table
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "stale": "yellow"}
LOG_LINES = 3  # the last ones that a failed notebook printed
NOTES = 3  # of a study that has more


class PlainConsole(Console):
    """A console that data cannot steer, such as notes that hold a terminal's commands."""

    def render(self, renderable, options=None):
        """The segments of an item, their texts without control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def console_for(file: TextIO) -> Console:
    """A console as wide as the terminal, or without limit where `file` is none."""
    console = PlainConsole(file=file, highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else PlainConsole(file=file, width=UNLIMITED, highlight=False)


def show(*items: RenderableType) -> None:
    """Print to standard output: a `str` as one line, texts and tables wrapped.

    Written as one text, so that a closed pipe is the caller's to handle, and not rich's.
    """
    console = console_for(sys.stdout)
    with console.capture() as capture:
        for item in items:
            console.print(item, soft_wrap=isinstance(item, str), markup=False)
    text = capture.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    sys.stdout.write(text)


def show_choice(folder: Path, index: Path) -> None:
    """Print the answer of `fgkd choose`, when not to trust it, and where all of it lies."""
    values = records.read_json(folder / "choose.json") or {}
    show(*values["answer"], *(f"Beware: {sentence}" for sentence in values["warnings"]))
    show(f"{values['handed over']} All of it: {index}")


def show_json(value: dict) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1))


def table_of(*names: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table with these columns; right: those whose values stand to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, justify="right" if name in right else "left")
    return table


def frame_table(frame: pd.DataFrame, digits: int = 4, width: int = UNLIMITED) -> Table:
    """A table of a DataFrame's leading columns.

    digits: of its floats, of which NaN are left empty.
    width: of the table at most; without it all columns are there, and wrapped where they do not fit.
    """
    texts = frame.map(lambda value: _text(value, digits))
    table = table_of()
    end = 0
    for name in texts:
        end += max(len(name), texts[name].str.len().max()) + GAP
        if end - GAP <= width:
            table.add_column(name)
    for row in texts.iloc[:, : len(table.columns)].itertuples(index=False):
        table.add_row(*row)
    return table


def reasons_json(left: dict[Job, str]) -> dict:
    """The number of jobs that are left, and their reasons, for `fgkd plan --json`."""
    rows = []
    for (notebook, reason), number in _grouped(left).items():
        rows.append({"notebook": notebook, "reason": reason, "number": number})
    return {"notebooks_left": len(left), "left": rows}


def status_json(study: Study, rows: dict[Job, dict]) -> dict:
    """All of a status, and the progress of what runs, for `fgkd status --json`."""
    jobs = []
    for job, row in rows.items():
        progress = states.running(study, job) if row["state"] == "running" else None
        jobs.append({"job": job.id} | row | {"progress": progress})
    counts = Counter(row["state"] for row in rows.values())
    return {"study": study.name, "folder": str(study.folder), "counts": counts, "jobs": jobs}


def show_plan(study: Study, counts: dict, estimate: dict, left: dict[Job, str], missing: list[str]) -> None:
    """Print what a study consists of, what it takes and lacks, and what is left to run and why."""
    numbers = Table.grid(padding=(0, 2))
    for name, value in counts.items():
        text = f"{value / 1e6:,.1f} MB" if name.endswith("bytes") else f"{value:,}"
        numbers.add_row(name.replace("_", " "), text)
    show(numbers, "no more banks lie on disk at once than runs go on at once\n")
    show(*_estimate_items(estimate))
    reasons = Table.grid(padding=(0, 1))
    for (notebook, reason), number in _grouped(left).items():
        reasons.add_row(f"{number:6} x {notebook:22}", reason)
    done = f"\n{counts['notebooks'] - len(left)} of {counts['notebooks']} notebooks are done"
    show(done + ("; left to run:" if left else ""), *([reasons] if left else []))
    if bare := [key for key, model in study.teachers.items() if model.weights == "none"]:
        show(f"teachers that start from random weights, having no 'weights:': {', '.join(bare)}")
    show(f"results in {study.folder}", *(f"lacking: {sentence}" for sentence in missing))


def show_status(study: Study, rows: dict[Job, dict], missing: Iterable[str] = ()) -> None:
    """Print one line per job: state, seconds, log; of a failed one its error and last output.

    rows: as returned by `states.rows`; missing: what the study lacks.
    """
    table = table_of("state", "seconds", "job", "notebook", right=("seconds",))
    is_terminal = console_for(sys.stdout).is_terminal
    for job, row in rows.items():
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f} s"
        details = [row["error"], *_last_lines(Path(row["log"]))] if row["error"] else []
        if is_terminal:
            state = Text(row["state"], COLOURS.get(row["state"], ""))
            log = [row["log"]] if details else []
            table.add_row(state, seconds, "\n".join([job.id, *details, *log]), row["log"] and job.notebook)
        else:
            print(f"{row['state']:12}{seconds:>10}  {job.id:44}{row['log'] or ''}".rstrip())
            for line in details:
                print(" " * 24 + printable(line))
    counts = Counter(row["state"] for row in rows.values())
    totals = ", ".join(f"{number} {state}" for state, number in counts.items())
    show(*([table] if is_terminal else []), f"{totals}; results in {study.folder}")
    show(*(f"lacking: {sentence}" for sentence in missing))


def show_failures(rows: dict[Job, dict]) -> list[Job]:
    """Print each failed job with its error and log to standard error; returns the jobs."""
    jobs = states.failed(rows)
    for job in jobs:
        row = rows[job]
        print(f"\nfailed: {job.id}\n  {printable(row['error'])}\n  {row['log']}", file=sys.stderr)
    return jobs


def show_engine_log(log: Path, status: int) -> None:
    """Print how the engine ended where no job failed, to standard error."""
    print(
        f"the engine ended with exit status {status}; its log is {log}, which ends with\n"
        f"{kernels.last_lines(log)}\nMend what it names; the same command goes on from what is finished",
        file=sys.stderr,
    )


def show_results(study: Study, index: Path) -> None:
    """Print the tables that matter, what a reader should know of them, and where the report is."""
    import pandas as pd

    from fgkd.report import pages, results, verdicts

    width = console_for(sys.stdout).width
    frames = records.collect(study)
    frames |= results.conclude(study, frames)
    if "standings" in frames:
        standings = frames["standings"]
        answer = verdicts.describe_standings(standings, frames["picks"])
        gains = verdicts.describe_gains(frames["pay"])
        counted = standings.assign(groups=standings.groups.map("{:.0f}".format, na_action="ignore"))
        show("", frame_table(counted, 4, width), "", Text(f"{answer} {gains}"))
    lacks = verdicts.explain_missing_rho(frames.get("correlations", pd.DataFrame()))
    show("", lacks or frame_table(frames["headline"], 3, width))
    if width < UNLIMITED and not lacks:
        show(f"all columns: {index.parents[1] / 'tables'}")
    notes = pages.notes(study)
    show(*(Text(f"note: {note}") for note in notes[:NOTES]))
    if notes[NOTES:]:
        show(f"note: {len(notes) - NOTES} more are in the report")
    show("", f"report: {index}")


def _grouped(left: dict[Job, str]) -> Counter[tuple[str, str]]:
    """How many jobs of each notebook are left for each reason."""
    return Counter((job.notebook, reason) for job, reason in left.items())


def _estimate_items(estimate: dict) -> list[RenderableType]:
    """Images through each network, its throughput and time; estimate: as returned by `cost.estimate`."""
    names = ("images through", "forward+backward", "forward", "images a second", "time", "left")
    table = table_of(*names, right=names[1:])
    for row in estimate["networks"]:
        rates = (row["train_per_second"], row["forward_per_second"])
        table.add_row(
            row["model"],
            f"{row['train']:,}",
            f"{row['forward']:,}",
            " / ".join("-" if rate is None else f"{rate:,.0f}" for rate in rates),
            duration(row["hours"]),
            duration(row["hours_left"]),
        )
    device = estimate["device"]
    unknown = ", ".join(estimate["without_throughput"])
    sentences = []
    if device:
        least = "at least " if unknown else ""
        left = duration(estimate["hours_left"])
        sentences.append(
            f"time of {device}: {least}{duration(estimate['hours'])}, of which {left} is left; "
            "passes through networks only: decoding, metrics and the start of notebooks come on top"
        )
    if unknown:
        advice = "run some of their jobs, or give --images-per-second"
        sentences.append(f"no throughput is known of {unknown if device else 'these'}: {advice}")
    if estimate["not_counted"]:
        sentences.append(f"not counted: {', '.join(estimate['not_counted'])}, whose photos are not there")
    return [table, *map(Text, sentences)]


def _text(value, digits: int) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.{digits}f}"
    return "" if value is None else str(value)


def _last_lines(log: Path) -> list[str]:
    """The last lines that a notebook printed."""
    text = ""
    for output in states.outputs(records.read_json(log) or {}):
        if output.get("output_type") == "stream":
            text += "".join(map(str, output.get("text") or ""))
    lines = [line.rpartition("\r")[2] for line in text.split("\n") if line.strip()]
    return lines[-LOG_LINES:]
