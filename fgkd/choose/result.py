"""What came out: the answer, when not to trust it, the model, ranking.csv and choose.json."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import timm

from fgkd import export, records
from fgkd.analysis.correlation import MIN_SIGNIFICANT, difference_interval
from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Found
from fgkd.choose.ranking import Ranking
from fgkd.choose.students import ALONE, TUNED, Pilots, Verification, describe
from fgkd.choose.task import STUDENT, Task
from fgkd.metrics.claims import UNDEFINED
from fgkd.models import classifier
from fgkd.study import StudyError

STABLE = 0.8  # share of bootstrap samples in which a stable first is the first


@dataclass(frozen=True)
class Choice:
    """All that was found for a task.

    handed_over: where the model lies, as `hand_over` says it.
    """

    task: Task
    audit: Audit
    found: Found
    ranking: Ranking
    costs: pd.DataFrame
    pilots: Pilots
    verification: Verification
    handed_over: str

    @property
    def teacher(self) -> str:
        """The name of the choice."""
        return self.pilots.order[0]


@dataclass(frozen=True)
class Result:
    """The answer in sentences, when not to trust it, and one row per candidate."""

    answer: list[str]
    warnings: list[str]
    table: pd.DataFrame


def hand_over(task: Task, verification: Verification) -> str:
    """Hand over the student of the choice to `student/`; say in a sentence where it is."""
    folder = task.folder / "student"
    if verification.job is None:
        lacking = "There is no model yet"
        if folder.is_dir():
            lacking = "`student/` is that of an earlier run, whose choice may have been another"
        return f"{lacking}: --verify 1 trains the student of the choice on all training photos."
    try:
        export.hand_over(verification.study, verification.job, STUDENT, "kd", folder)
    except StudyError as error:
        return f"The student is trained, and not handed over: {error}. `fgkd export` does it later."
    return (
        "The student lies in `student/`: its README.md says what it is, timm loads it by `local-dir:`, "
        "`model.onnx` needs no PyTorch, and `predict.py` names the class of a photo."
    )


def conclude(choice: Choice) -> Result:
    """Put together what was found, and write ranking.csv and choose.json."""
    task, ranking, pilots = choice.task, choice.ranking, choice.pilots
    result = Result(_answer(choice), warn(choice), _table(choice))
    counts = choice.audit.photos.use.value_counts().drop("", errors="ignore")
    values = {
        "choice": choice.teacher,
        "student": task.student,
        "photos": {"classes": choice.audit.classes} | counts.to_dict(),
        "rule": {"metric": ranking.rule.metric, "reason": ranking.rule.reason},
        "r12_pick": ranking.r12_pick,
        "tac_pick": ranking.tac_pick,
        "distillation": pilots.distillation,
        "answer": result.answer,
        "warnings": result.warnings,
        "handed over": choice.handed_over,
        "audit": choice.audit.findings(),
        "left out": choice.found.left_out | ranking.left_out,
        "verified": _rows(choice.verification.table),
        "pilots": _rows(pilots.table.drop(columns="seconds")),
    }
    records.write_table(result.table, task.folder / "ranking.csv")
    records.write_json(task.folder / "choose.json", values)
    return result


def warn(choice: Choice) -> list[str]:
    """When not to trust the choice, a sentence each; none where nothing speaks against it."""
    ranking = choice.ranking
    table = ranking.table.set_index("teacher")
    sentences = []
    if len(table) < MIN_SIGNIFICANT:
        sentences.append(
            f"Few candidates: among {len(table)} even a perfect order may be chance; with "
            f"{MIN_SIGNIFICANT} it is below 5 %."
        )
    first = ranking.table["first"].iloc[0]
    if math.isnan(first):
        sentences.append(f"How stable the order is was not measured: {ranking.rule.label} needs features.")
    elif first < STABLE and len(table) > 1:
        sentences.append(
            f"An unstable order: {ranking.order[0]} is the first of {ranking.rule.label} in {first:.0%} of "
            "bootstrap samples of the held-out photos only."
        )
    undefined = table.index[table.ratio12_nonpositive > UNDEFINED]
    if len(undefined):
        sentences.append(
            f"R12 means nothing where a second logit is 0 or negative, as in more than {UNDEFINED:.0%} of "
            f"the photos of {', '.join(sorted(undefined))}."
        )
    kinds = sorted({candidate.pretraining for candidate in choice.found.candidates})
    if len(kinds) > 1:
        sentences.append(
            f"Mixed pretraining ({', '.join(kinds)}): metrics of logits may order the pretraining sets more "
            "than the teachers."
        )
    sentences += _warn_of_pilots(choice) + _warn_of_student(choice)
    return sentences + _warn_of_head_start(choice) + _warn_of_finetuned(choice)


def _warn_of_pilots(choice: Choice) -> list[str]:
    """Warn where the choice's pilot leads others of its length by no more than chance."""
    longest, own = _longest_pilots(choice)
    photos = choice.audit.count("held out")
    tied = []
    for name, accuracy in longest.items():
        low, _ = difference_interval(round(own * photos), round(accuracy * photos), photos)
        if low <= 0:
            tied.append(name)
    if not tied:
        return []
    longer = "; more --minutes make pilots longer" if choice.pilots.left else ""
    return [
        f"Pilots that tell little: on {photos} held-out photos the lead of {choice.teacher} over "
        f"{', '.join(sorted(tied))} may be chance{longer}."
    ]


def _longest_pilots(choice: Choice) -> tuple[pd.Series, float]:
    """Accuracies of other teachers' pilots as long as the choice's, and its own; NaN without one."""
    table = choice.pilots.table
    table = table[(table.teacher != ALONE) & table.accuracy.notna()]
    epochs = table.epochs[table.teacher == choice.teacher].max()
    longest = table[table.epochs == epochs].set_index("teacher").accuracy
    return longest.drop(choice.teacher, errors="ignore"), longest.get(choice.teacher, math.nan)


def _warn_of_student(choice: Choice) -> list[str]:
    """Warn of a student that is larger than a candidate, both with a head for the photos' classes."""
    table = choice.ranking.table
    size = classifier.parameters(timm.create_model(choice.task.student, num_classes=choice.audit.classes))
    smaller = list(table.teacher[table.parameters < size])
    if not smaller:
        return []
    which = "all candidates" if len(smaller) == len(table) else ", ".join(sorted(smaller))
    more = "; the choice is one of them" if choice.teacher in smaller else ""
    return [f"The student ({size / 1e6:.2f} million weights) is larger than {which}{more}."]


def _warn_of_head_start(choice: Choice) -> list[str]:
    """Warn where the chosen teacher, or its student, is not ahead of the student without a teacher."""
    teacher = choice.teacher
    rows = choice.verification.table.set_index("student")
    if {f"from {teacher}", ALONE} <= set(rows.index):
        taught = rows.loc[f"from {teacher}"]
        alone = rows.loc[ALONE]
        sentences = []
        if taught.teacher_accuracy <= alone.high:
            sentences.append(
                f"No head start: {teacher} itself names {taught.teacher_accuracy:.1%} of the test photos "
                f"rightly, the student without a teacher {alone.accuracy:.1%}."
            )
        if taught.gain_high < 0:
            sentences.append("The teacher does harm: without it the student is better.")
        elif taught.gain_low <= 0:
            sentences.append("The gain over no teacher may be chance: its interval contains 0.")
        return sentences
    table = choice.pilots.table
    epochs = table.epochs[table.teacher == teacher].max()
    same = table[table.epochs == epochs].set_index("teacher").accuracy
    if {teacher, ALONE} <= set(same.index) and same[teacher] <= same[ALONE]:
        return [
            f"No head start: after {epochs} epochs the student without a teacher is as accurate "
            f"({same[ALONE]:.1%}) as the one of {teacher} ({same[teacher]:.1%})."
        ]
    return []


def _warn_of_finetuned(choice: Choice) -> list[str]:
    """Warn where the student's own pretrained network, fine-tuned, is better than the taught student."""
    rows = choice.verification.table.set_index("student").accuracy
    name = f"from {choice.teacher}"
    if not {name, TUNED} <= set(rows.index) or rows[TUNED] <= rows[name]:
        return []
    return [
        f"The student's own pretrained network, fine-tuned, is {100 * (rows[TUNED] - rows[name]):.1f} points "
        "better: finetuned.yaml has it, and `fgkd export` hands it over."
    ]


def _table(choice: Choice) -> pd.DataFrame:
    """One row per candidate, the choice first: see runs/README.md for the columns."""
    table = choice.ranking.table.merge(choice.costs, on="teacher")
    known = {candidate.name: candidate for candidate in choice.found.candidates}
    for name in ("model", "resolution", "pretraining", "licence", "megabytes"):
        table[name] = [getattr(known[teacher], name) for teacher in table.teacher]
    own = choice.pilots.final.set_index("teacher")
    table["pilot_epochs"] = table.teacher.map(own.epochs)
    table["pilot_accuracy"] = table.teacher.map(own.accuracy)
    rows = choice.verification.table.set_index("student")
    students = "from " + table.teacher
    for column in ("accuracy", "low", "high"):
        table[f"student_{column}"] = students.map(rows[column]).astype(float)
    places = {name: place for place, name in enumerate(choice.pilots.order, 1)}
    table.insert(0, "place", table.teacher.map(places))
    return table.sort_values("place", ignore_index=True)


def _answer(choice: Choice) -> list[str]:
    """The answer in sentences, the choice first."""
    ranking, pilots = choice.ranking, choice.pilots
    how = f"it is the first by {ranking.rule.label}"
    own = pilots.table[pilots.table.teacher == choice.teacher]
    if len(own):
        row = own.iloc[-1]
        how = f"its pilot names {row.accuracy:.1%} of held-out photos rightly after {row.epochs} of {row.of} "
        how += "epochs"
        rivals, _ = _longest_pilots(choice)
        if len(rivals):
            how += f", the best of the others {rivals.max():.1%}"
    first = ranking.table["first"].iloc[0]
    share = (
        "" if math.isnan(first) else f" {ranking.order[0]} is its first in {first:.0%} of bootstrap samples."
    )
    sentences = [
        f"Take {choice.teacher} as the teacher of {choice.task.student}: {how}.",
        f"{ranking.compare()}{share}",
        describe(choice.verification),
        pilots.searched,
        pilots.left,
    ]
    return [sentence for sentence in sentences if sentence]


def _rows(table: pd.DataFrame) -> list[dict]:
    """A table's rows for JSON, which knows no NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
