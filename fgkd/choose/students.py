"""What students say of the candidates: pilots under a budget, then full trainings that verify the choice.

Pilots are successive halving (Jamieson and Talwalkar 2016): the better half by the rule is distilled for a
tenth of the student's epochs on four fifths of the training photos and measured on the others; the better
half of these for a fifth, and so on, each time the same training continued in the schedule of all epochs.  A
pilot sees the student, which no metric of a teacher does.  The same student without a teacher goes along.

The choice is made before it is verified, on the true splits: nothing there changes it.  Accuracies have 95 %
intervals for other test photos (Wilson); differences of two students, which see the same test photos, a
paired bootstrap of them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fgkd.analysis.blocks import exceeds
from fgkd.analysis.correlation import share_interval
from fgkd.choose import candidates
from fgkd.choose import task as tasks
from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Found
from fgkd.choose.ranking import Ranking
from fgkd.choose.task import FINETUNED, GENTLE_KD, GENTLE_LOSS, PAPER_KD, STUDENT, Task
from fgkd.distillation import stages
from fgkd.report.verdicts import points
from fgkd.study import Job, Study

ALONE = "no teacher"
TUNED = "pretrained, fine-tuned"  # the student's own network
PILOTS = ["epochs", "of", "teacher", "accuracy", "train_accuracy", "seconds"]
VERIFIED = ["student", "why", "accuracy", "low", "high", "gain", "gain_low", "gain_high", "teacher_accuracy"]
PLACES = ("the choice", "second", "third")
DRAWS = 4000
KD_WORDS = "T {temperature} and beta {beta}"


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
    def longest(self) -> pd.DataFrame:
        """The pilots of as many epochs as the choice's longest, by teacher; none that diverged."""
        measured = self.table[self.table.accuracy.notna()]
        epochs = measured.epochs[measured.teacher == self.order[0]].max()
        return measured[measured.epochs == epochs].set_index("teacher")


@dataclass(frozen=True)
class Verification:
    """Students trained to their end on all training photos.

    table: one row per student, the choice first: student ('from NAME', 'no teacher', or 'pretrained,
    fine-tuned'), why it is there, accuracy with its interval, gain over no teacher with its interval,
    teacher_accuracy on the test photos.
    photos: number of test photos.
    job: the distill job of the choice; None where its student was not trained, or diverged.
    """

    table: pd.DataFrame
    photos: int
    study: Study
    job: Job | None


def pilot(task: Task, study: Study, ranking: Ranking, costs: pd.DataFrame) -> Pilots:
    """Run pilots until one candidate is left, or the task's minutes are over.

    costs: as returned by `ranking.costs`
    """
    halving = _Halving(task, study, costs.set_index("teacher").minutes)
    survivors = _half(ranking.order)
    left = ""
    for rung in epochs_of_rungs(halving.epochs, len(survivors)):
        lacking = [name for name in (ALONE, *survivors) if halving.train(name, rung) is None]
        if lacking:
            left = _describe_left(halving, rung, survivors, lacking)
            break
        survivors = _half(sorted(survivors, key=lambda name: -halving.last[name][1]))  # ties keep the order
    order = sorted(ranking.order, key=lambda name: halving.last.get(name, (0, 0.0)), reverse=True)
    table = pd.DataFrame(halving.rows, columns=PILOTS)
    distillation, searched = _search(halving, order[0])
    return Pilots(table, order, distillation, left, searched)


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
    """Trains pilots while there is time, and keeps their rows; what an earlier run computed is free.

    last: epochs and accuracy of each teacher's last pilot, (-1, -1) where it diverged.
    """

    def __init__(self, task: Task, study: Study, minutes: pd.Series):
        self.task = task
        self.study = study
        self.epochs = study.recipe("student", study.student(STUDENT)).epochs
        self.minutes = minutes
        self.end = time.monotonic() + 60 * task.minutes
        self.rows: list[dict] = []
        self.last: dict[str, tuple[int, float]] = {}
        self.is_over = False

    @property
    def seconds(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def train(self, name: str, epochs: int, loss: str = "kd") -> dict | None:
        """The pilot's row; None where it would take longer than the time that is left."""
        job = self.study.job("distill", self.task.dataset, *_pair(self.task, name))
        job = replace(job, stage="student", student=STUDENT, loss="ce" if name == ALONE else loss)
        minutes = self.minutes.min() if name == ALONE else self.minutes[name]
        too_long = 60 * minutes * epochs / self.epochs > self.seconds
        if self.is_over or (too_long and str(epochs) not in stages.pilots(self.study, job)):
            self.is_over = True
            return None
        row: dict = {"epochs": epochs, "of": self.epochs, "teacher": name}
        try:
            row |= stages.pilot(self.study, job, epochs)
        except FloatingPointError as error:
            self.task.say(f"pilot of {name} diverged: {error}")
            row |= {"accuracy": math.nan, "train_accuracy": math.nan, "seconds": 0.0}
        if loss == "kd":
            self.rows.append(row)
            self.last[name] = (-1, -1.0) if math.isnan(row["accuracy"]) else (epochs, row["accuracy"])
        with_loss = "" if loss == "kd" else f", {KD_WORDS.format(**GENTLE_KD)}"
        self.task.say(
            f"pilot, {epochs} of {self.epochs} epochs: {name}{with_loss}, {row['accuracy']:.1%} of held-out "
            f"photos ({row['seconds']:.0f} s)"
        )
        return row


def _half(names: list[str]) -> list[str]:
    return names[: math.ceil(len(names) / 2)]


def _pair(task: Task, name: str) -> tuple[str, str]:
    """The teacher and strategy of a student's job."""
    return ("none", "CE") if name == ALONE else (name, task.recipe)


def _describe_left(halving: _Halving, rung: int, survivors: list[str], lacking: list[str]) -> str:
    """Say what pilots were not run for lack of time."""
    minutes = halving.task.minutes
    if not halving.rows and not minutes:
        return "No pilot was run: --minutes is 0."
    if not halving.rows:
        return f"No pilot was run: the first takes longer than {minutes:g} minutes; give more --minutes."
    left = [name for name in lacking if name != ALONE]
    return (
        f"Time ran out after {minutes:g} minutes: {len(left)} of {len(survivors)} pilots of {rung} epochs "
        f"were left ({', '.join(left)}); the same command goes on."
    )


def _search(halving: _Halving, name: str) -> tuple[dict[str, float], str]:
    """The better temperature and beta of two for the first candidate, at its longest pilot, and how."""
    own = [row for row in halving.rows if row["teacher"] == name]
    halving.is_over = False
    row = halving.train(name, own[-1]["epochs"], GENTLE_LOSS) if own else None
    if row is None:
        lacking = "no time was left" if own else "there was no pilot"
        return PAPER_KD, f"{KD_WORDS.format(**PAPER_KD)} are the paper's; {lacking} to search others."
    tried = [(own[-1]["accuracy"], PAPER_KD), (row["accuracy"], GENTLE_KD)]
    tried.sort(key=lambda pair: -pair[0])  # of equal ones the paper's stays first
    (share, chosen), (other_share, other) = tried
    return chosen, (
        f"{KD_WORDS.format(**chosen)} ({share:.1%} of held-out photos after {row['epochs']} epochs from "
        f"{name}) rather than {KD_WORDS.format(**other)} ({other_share:.1%})."
    )


def verify(task: Task, audit: Audit, found: Found, ranking: Ranking, pilots: Pilots) -> Verification:
    """Train the students of the first candidates, of the most accurate one, and of R12's pick.

    With them the student without a teacher and, where its network has pretrained weights, that, fine-tuned.
    """
    study = tasks.study(task, audit, found, pilots.distillation)
    labels = stages.data(study, task.dataset).test.labels
    correct: dict[str, np.ndarray] = {}
    rows: list[dict] = []

    def measure(student: str, why: str, result: stages.StageResult, teacher: float | None = None) -> None:
        correct[student] = result.logits().argmax(1) == labels
        rows.append({"student": student, "why": why, "teacher_accuracy": teacher})
        task.say(f"student {student}: {correct[student].mean():.1%} of {len(labels)} test photos")

    for name, why in (_reasons(task, ranking, pilots) if task.verify else {}).items():
        pair = _pair(task, name)
        try:
            (result,) = stages.distill(study, task.dataset, *pair).students.values()
        except FloatingPointError as error:
            task.say(f"student of {name} diverged and is left out: {error}")
            continue
        if name == ALONE:
            measure(ALONE, why, result)
        else:
            measure(f"from {name}", why, result, stages.teacher(study, task.dataset, *pair).rows.tac.iloc[0])
    if task.verify and (own := candidates.pretrained(task.student, task.weights, task.plugins)):
        tuned = stages.teacher(tasks.finetuned(task, audit, own), task.dataset, FINETUNED, "FT")
        measure(TUNED, f"its own weights ({own.name})", tuned)
    for row in rows:
        row |= _measure(correct[row["student"]], correct.get(ALONE))
    choice = pilots.order[0]
    job = study.job("distill", task.dataset, choice, task.recipe) if f"from {choice}" in correct else None
    return Verification(pd.DataFrame(rows, columns=VERIFIED), len(labels), study, job)


def _reasons(task: Task, ranking: Ranking, pilots: Pilots) -> dict[str, str]:
    """Whose students are trained, and why, the choice first."""
    reasons: dict[str, list[str]] = {}
    for place, name in enumerate(pilots.order[: task.verify]):
        reasons[name] = [PLACES[place] if place < len(PLACES) else f"number {place + 1}"]
    reasons.setdefault(ranking.tac_pick, []).append("most accurate teacher")
    reasons.setdefault(ranking.r12_pick, []).append("R12's pick")
    return {name: ", ".join(words) for name, words in reasons.items()} | {ALONE: "to compare with"}


def _measure(correct: np.ndarray, alone: np.ndarray | None) -> dict[str, float]:
    """Accuracy and gain over no teacher, with their intervals."""
    low, high = share_interval(int(correct.sum()), len(correct))
    values = {"accuracy": correct.mean(), "low": low, "high": high}
    if alone is None:
        return values
    gain_low, gain_high = paired_interval(correct, alone)
    return values | {"gain": correct.mean() - alone.mean(), "gain_low": gain_low, "gain_high": gain_high}


def paired_interval(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same photos, by a bootstrap.

    first, second: (N,) whether each photo's class was named rightly.
    """
    counts = [np.sum(first & ~second), np.sum(~first & second)]
    number = len(first)
    shares = [*(count / number for count in counts), 1 - sum(counts) / number]
    draws = np.random.default_rng(seed).multinomial(number, shares, size=DRAWS)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / number, [0.025, 0.975])
    return float(low), float(high)


def describe(verification: Verification) -> str:
    """Say in a few sentences whether the choice paid."""
    table = verification.table
    if not len(table) or verification.job is None:
        return "Nothing was verified: --verify 1 trains the student of the choice on all training photos."
    choice = table.iloc[0]
    parts = [
        f"The student {choice.student} names {choice.accuracy:.1%} of {verification.photos} test photos "
        f"rightly (95 %: {choice.low:.1%} to {choice.high:.1%})"
    ]
    if not math.isnan(choice.gain):
        interval = (choice.gain_low, choice.gain_high)
        words = {True: "paid", False: "did harm", None: "may or may not have paid"}[exceeds(*interval)]
        parts.append(f"Against no teacher that is {points(choice.gain, interval)}: the choice {words}")
    others = [f"{row.student}, {row.why}: {row.accuracy:.1%}" for row in table.iloc[1:].itertuples()]
    if others:
        parts.append(f"Beside it, {'; '.join(others)}")
    return ". ".join(parts) + "."
