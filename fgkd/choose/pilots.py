"""Pilots under a budget: students of the better candidates, trained a part of the way.

Successive halving (Jamieson and Talwalkar 2016): the better half by the rule is distilled for a tenth of the
student's epochs on four fifths of the training photos and measured on the others; the better half of these
for a fifth, and so on, each time the same training continued in the schedule of all epochs.  A pilot sees the
student, which no metric of a teacher does.  The same student without a teacher goes along.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import pandas as pd

from fgkd import records, stages
from fgkd.choose.ranking import Ranking
from fgkd.choose.task import GENTLE_KD, GENTLE_LOSS, PAPER_KD, STUDENT, Task
from fgkd.study import Job, Study

ALONE = "no teacher"
COLUMNS = ["epochs", "of", "teacher", "accuracy", "train_accuracy", "seconds"]


@dataclass(frozen=True)
class Pilots:
    """What pilots found.

    table: one row per pilot: epochs, of (all that a full training has), teacher, accuracy (of held-out
    photos), train_accuracy, seconds.
    order: the candidates, those whose pilots went on longest first, then the more accurate.
    distillation: temperature and beta that were better for the first of them.
    left: what was not done, in a sentence; '' where all was.
    searched: how temperature and beta were chosen, in a sentence.
    """

    table: pd.DataFrame
    order: list[str]
    distillation: dict[str, float]
    left: str
    searched: str

    @property
    def final(self) -> pd.DataFrame:
        """The last pilot of each teacher, in the order of the table's accuracies."""
        last = self.table.sort_values("epochs").drop_duplicates("teacher", keep="last")
        return last.sort_values(["epochs", "accuracy"], ascending=False, ignore_index=True)


class Clock:
    """Minutes that this run may still take; what was computed by an earlier one is free."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    @property
    def seconds(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()


def run(task: Task, study: Study, ranking: Ranking, costs: pd.DataFrame) -> Pilots:
    """Run pilots until one candidate is left, or the task's minutes are over.

    costs: as returned by `ranking.costs`
    """
    number = len(ranking.order)
    epochs = study.recipe("student", study.student(STUDENT)).epochs
    halving = _Halving(task, study, epochs, costs.set_index("teacher").minutes, Clock(task.minutes))
    survivors = ranking.order[: math.ceil(number / 2)]
    planned = epochs_of_rungs(epochs, len(survivors))
    for rung in planned:
        halving.train(ALONE, rung)
        for name in survivors:
            halving.train(name, rung)
        if halving.is_over:
            break
        survivors = sorted(survivors, key=lambda name: -halving.accuracy(name))  # stable: ties keep the order
        survivors = survivors[: math.ceil(len(survivors) / 2)]
    table = pd.DataFrame(halving.rows, columns=COLUMNS)
    order = _order(table, ranking.order)
    distillation, searched = _search(halving, order[0], table)
    return Pilots(table, order, distillation, _describe_left(task, halving, planned, survivors), searched)


def epochs_of_rungs(epochs: int, candidates: int) -> list[int]:
    """Epochs after which pilots are compared: a tenth of all, rounded up, then twice as many.

    As many as it takes until one of the candidates is left, and one for a single one.

    >>> epochs_of_rungs(40, 7), epochs_of_rungs(5, 7), epochs_of_rungs(40, 1)
    ([4, 8, 16], [1, 2, 4], [4])
    """
    rungs = max(1, math.ceil(math.log2(max(candidates, 1))))
    first = math.ceil(epochs / 10)
    return sorted({min(epochs, first * 2**rung) for rung in range(rungs)})


class _Halving:
    """Trains pilots while there is time, and keeps their rows."""

    def __init__(self, task: Task, study: Study, epochs: int, minutes: pd.Series, clock: Clock):
        self.task = task
        self.study = study
        self.epochs = epochs
        self.minutes = minutes
        self.clock = clock
        self.rows: list[dict] = []
        self.is_over = False

    def train(self, name: str, epochs: int, loss: str = "kd") -> dict | None:
        """The pilot's row; None where it would take longer than the time that is left."""
        job = self.job(name, loss)
        if self.is_over or (
            not self._is_known(job, epochs) and self._seconds(name, epochs) > self.clock.seconds
        ):
            self.is_over = True
            return None
        words = {"epochs": epochs, "of": self.epochs, "teacher": name}
        try:
            row = words | stages.pilot(self.study, job, epochs)
        except FloatingPointError as error:
            self.task.say(f"pilot of {name} diverged: {error}")
            row = words | {"accuracy": math.nan, "train_accuracy": math.nan, "seconds": 0.0}
        if loss == "kd":
            self.rows.append(row)
        with_loss = "" if loss == "kd" else f", T {GENTLE_KD['temperature']} and beta {GENTLE_KD['beta']}"
        self.task.say(
            f"pilot, {epochs} of {self.epochs} epochs: {name}{with_loss}, {row['accuracy']:.1%} of held-out "
            f"photos ({row['seconds']:.0f} s)"
        )
        return row

    def job(self, name: str, loss: str) -> Job:
        """The student job of a teacher, or of none."""
        pair = ("none", "CE") if name == ALONE else (name, self.task.recipe)
        job = self.study.job("distill", self.task.dataset, *pair)
        return replace(job, stage="student", student=STUDENT, loss="ce" if name == ALONE else loss)

    def accuracy(self, name: str) -> float:
        """Of the last pilot of a teacher; -1 where it diverged."""
        value = next(row["accuracy"] for row in reversed(self.rows) if row["teacher"] == name)
        return -1.0 if math.isnan(value) else value

    def _is_known(self, job: Job, epochs: int) -> bool:
        stored = records.read_json(self.study.path(job) / stages.PILOT)
        if stored is None or stored["fingerprint"] != self.study.fingerprint(job):
            return False
        return str(epochs) in stored["rows"]

    def _seconds(self, name: str, epochs: int) -> float:
        """What a pilot takes at most, by the speeds measured."""
        minutes = self.minutes.min() if name == ALONE else self.minutes[name]
        return 60 * minutes * epochs / self.epochs


def _order(table: pd.DataFrame, ranked: list[str]) -> list[str]:
    """The candidates by their longest pilot, then its accuracy, then the ranking."""
    last = {row.teacher: (row.epochs, row.accuracy) for row in table.itertuples()}

    def key(name: str) -> tuple:
        epochs, accuracy = last.get(name, (0, 0.0))
        return (-1, 0.0) if math.isnan(accuracy) else (epochs, accuracy)

    return sorted(ranked, key=key, reverse=True) if len(table) else list(ranked)


def _search(halving: _Halving, name: str, table: pd.DataFrame) -> tuple[dict[str, float], str]:
    """The better temperature and beta of two for the first candidate, at its longest pilot, and how."""
    own = table[table.teacher == name]
    words = "T {temperature} and beta {beta}"
    if not len(own):
        return PAPER_KD, f"{words.format(**PAPER_KD)} are the paper's; there was no pilot to search others."
    epochs = int(own.epochs.max())
    halving.is_over = False
    row = halving.train(name, epochs, GENTLE_LOSS)
    if row is None:
        return PAPER_KD, f"{words.format(**PAPER_KD)} are the paper's; no time was left to search others."
    best = own.accuracy.iloc[-1]
    tried = [(best, PAPER_KD), (row["accuracy"], GENTLE_KD)]
    tried.sort(key=lambda pair: -pair[0])  # of equal ones the paper's stays first
    (share, chosen), (other_share, other) = tried
    return chosen, (
        f"{words.format(**chosen)} ({share:.1%} of held-out photos after {epochs} epochs from {name}) rather "
        f"than {words.format(**other)} ({other_share:.1%})."
    )


def _describe_left(task: Task, halving: _Halving, planned: list[int], survivors: list[str]) -> str:
    """Say what pilots were not run for lack of time."""
    if not task.minutes and not halving.rows:
        return "No pilot was run: --minutes is 0."
    done = {(row["teacher"], row["epochs"]) for row in halving.rows}
    rung = next((rung for rung in planned if any((name, rung) not in done for name in survivors)), None)
    if not halving.is_over and rung is None:
        return ""
    if not halving.rows:
        return f"No pilot was run: the first takes longer than {task.minutes:g} minutes; give more --minutes."
    left = [name for name in survivors if (name, rung) not in done]
    return (
        f"Time ran out after {task.minutes:g} minutes: {len(left)} of {len(survivors)} pilots of {rung} "
        f"epochs were left ({', '.join(left)}); the same command goes on."
    )
