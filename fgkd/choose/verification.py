"""Did the choice pay?  Full trainings on the true splits, compared on the test photos.

The choice is made before: nothing here changes it.  Accuracies have 95 % intervals for other test photos
(Wilson); differences of two students, which see the same test photos, a paired bootstrap of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fgkd import stages
from fgkd.analysis.correlation import share_interval
from fgkd.choose import candidates
from fgkd.choose import task as tasks
from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Found
from fgkd.choose.pilots import ALONE, Pilots
from fgkd.choose.ranking import Ranking
from fgkd.choose.task import FINETUNED, Task
from fgkd.study import Job, Study

DRAWS = 4000
TUNED = "pretrained, fine-tuned"  # the student's own network
PLACES = ("first", "second", "third")
COLUMNS = ["student", "why", "accuracy", "low", "high", "gain", "gain_low", "gain_high", "teacher_accuracy"]


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


def verify(task: Task, audit: Audit, found: Found, ranking: Ranking, pilots: Pilots) -> Verification:
    """Train the students of the first candidates, of the most accurate one, and of R12's pick.

    With them the student without a teacher and, where its network has pretrained weights, that, fine-tuned.
    """
    study = tasks.study(task, audit, found, pilots.distillation)
    images = stages.data(study, task.dataset)
    labels = images.test.labels
    reasons = _reasons(task, ranking, pilots) if task.verify else {}
    correct = {}
    rows = []
    job = None
    for name, why in reasons.items():
        pair = ("none", "CE") if name == ALONE else (name, task.recipe)
        try:
            result = next(iter(stages.distill(study, task.dataset, *pair).students.values()))
        except FloatingPointError as error:
            task.say(f"student of {name} diverged and is left out: {error}")
            continue
        if name == pilots.order[0]:
            job = study.job("distill", task.dataset, *pair)
        teacher = None if name == ALONE else stages.teacher(study, task.dataset, *pair).rows.tac.iloc[0]
        student = ALONE if name == ALONE else f"from {name}"
        correct[student] = result.logits().argmax(1) == labels
        rows.append({"student": student, "why": why, "teacher_accuracy": teacher})
        task.say(f"student {student}: {correct[student].mean():.1%} of {len(labels)} test photos")
    if task.verify and (own := candidates.pretrained(task.student, task.weights, task.plugins)):
        student = TUNED
        tuned = tasks.finetuned(task, audit, own)
        result = stages.teacher(tuned, task.dataset, FINETUNED, "FT")
        correct[student] = result.logits().argmax(1) == labels
        rows.append({"student": student, "why": f"its own weights ({own.name})", "teacher_accuracy": None})
        task.say(f"student {student}: {correct[student].mean():.1%} of {len(labels)} test photos")
    for row in rows:
        row |= _measure(correct[str(row["student"])], correct.get(ALONE))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return Verification(table, len(labels), study, job)


def _reasons(task: Task, ranking: Ranking, pilots: Pilots) -> dict[str, str]:
    """Whose students are trained, and why, the choice first."""
    reasons: dict[str, list[str]] = {}
    for place, name in enumerate(pilots.order[: task.verify]):
        word = PLACES[place] if place < len(PLACES) else f"number {place + 1}"
        reasons[name] = ["the choice" if place == 0 else word]
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
    rows = table.set_index("student")
    choice = table.iloc[0]
    parts = [
        f"The student {choice.student} names {choice.accuracy:.1%} of {verification.photos} test photos "
        f"rightly (95 %: {choice.low:.1%} to {choice.high:.1%})"
    ]
    if ALONE in rows.index and not math.isnan(choice.gain):
        word = (
            "paid"
            if choice.gain_low > 0
            else "did harm"
            if choice.gain_high < 0
            else "may or may not have paid"
        )
        parts.append(
            f"Against no teacher that is {100 * choice.gain:+.1f} points ({100 * choice.gain_low:+.1f} to "
            f"{100 * choice.gain_high:+.1f}): the choice {word}"
        )
    others = [f"{row.student}, {row.why}: {row.accuracy:.1%}" for row in table.iloc[1:].itertuples()]
    if others:
        parts.append(f"Beside it, {'; '.join(others)}")
    return ". ".join(parts) + "."
