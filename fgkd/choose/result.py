"""What came out: the answer, when not to trust it, the model, ranking.csv and choose.json."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import timm

from fgkd import export, records
from fgkd.analysis.blocks import exceeds
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


def conclude(choice: Choice) -> dict[str, Any]:
    """Put together what was found; write and return choose.json, and write ranking.csv.

    Of its values `answer` and `warnings` are sentences: the answer, and when not to trust it.
    """
    task, ranking, pilots = choice.task, choice.ranking, choice.pilots
    counts = choice.audit.photos.use.value_counts().drop("", errors="ignore")
    values = {
        "choice": choice.teacher,
        "student": task.student,
        "photos": {"classes": choice.audit.classes} | counts.to_dict(),
        "rule": {"metric": ranking.rule.metric, "reason": ranking.rule.reason},
        "r12_pick": ranking.r12_pick,
        "tac_pick": ranking.tac_pick,
        "distillation": pilots.distillation,
        "answer": _answer(choice),
        "warnings": warn(choice),
        "handed over": choice.handed_over,
        "audit": choice.audit.findings(),
        "left out": choice.found.left_out | ranking.left_out,
        "verified": _rows(choice.verification.table),
        "pilots": _rows(pilots.table.drop(columns="seconds")),
    }
    records.write_table(_table(choice), task.folder / "ranking.csv")
    records.write_json(task.folder / "choose.json", values)
    return values


def warn(choice: Choice) -> list[str]:
    """When not to trust the choice, a sentence each; none where nothing speaks against it."""
    return [*_doubt_ranking(choice), *_doubt_pilots(choice), *_doubt_student(choice)]


def _doubt_ranking(choice: Choice) -> Iterator[str]:
    """Warn of few candidates, an unstable order, and what makes R12 or any metric meaningless."""
    ranking = choice.ranking
    table = ranking.table
    if len(table) < MIN_SIGNIFICANT:
        yield (
            f"Few candidates: among {len(table)} even a perfect order may be chance; with "
            f"{MIN_SIGNIFICANT} it is below 5 %."
        )
    first = table["first"].iloc[0]
    if math.isnan(first):
        yield f"How stable the order is was not measured: {ranking.rule.label} needs features."
    elif first < STABLE and len(table) > 1:
        yield (
            f"An unstable order: {ranking.order[0]} is the first of {ranking.rule.label} in {first:.0%} of "
            "bootstrap samples of the held-out photos only."
        )
    undefined = table.teacher[table.ratio12_nonpositive > UNDEFINED]
    if len(undefined):
        yield (
            f"R12 means nothing where a second logit is 0 or negative, as in more than {UNDEFINED:.0%} of "
            f"the photos of {', '.join(sorted(undefined))}."
        )
    kinds = sorted({candidate.pretraining for candidate in choice.found.candidates})
    if len(kinds) > 1:
        yield (
            f"Mixed pretraining ({', '.join(kinds)}): metrics of logits may order the pretraining sets more "
            "than the teachers."
        )


def _doubt_pilots(choice: Choice) -> Iterator[str]:
    """Warn where the choice's pilot leads others of its length by no more than chance."""
    pilots = choice.pilots.longest.drop(ALONE, errors="ignore")
    photos = choice.audit.count("held out")
    hits = (pilots * photos).round().astype(int)
    tied = []
    for name in sorted(hits.index.drop(choice.teacher, errors="ignore")):
        low, _ = difference_interval(hits[choice.teacher], hits[name], photos)
        if low <= 0:
            tied.append(name)
    if tied:
        longer = "; more --minutes make pilots longer" if choice.pilots.left else ""
        yield (
            f"Pilots that tell little: on {photos} held-out photos the lead of {choice.teacher} over "
            f"{', '.join(tied)} may be chance{longer}."
        )


def _doubt_student(choice: Choice) -> Iterator[str]:
    """Warn of a large student, of a teacher without a head start, and of a better way to train it."""
    teacher = choice.teacher
    table = choice.ranking.table
    size = classifier.parameters(timm.create_model(choice.task.student, num_classes=choice.audit.classes))
    smaller = list(table.teacher[table.parameters < size])
    if smaller:
        which = "all candidates" if len(smaller) == len(table) else ", ".join(sorted(smaller))
        more = "; the choice is one of them" if teacher in smaller else ""
        yield f"The student ({size / 1e6:.2f} million weights) is larger than {which}{more}."
    rows = choice.verification.table.set_index("student")
    taught = rows.loc[f"from {teacher}"] if f"from {teacher}" in rows.index else None
    pilots = choice.pilots.longest
    if taught is not None and ALONE in rows.index:
        alone = rows.loc[ALONE]
        if taught.teacher_accuracy <= alone.high:
            yield (
                f"No head start: {teacher} itself names {taught.teacher_accuracy:.1%} of the test photos "
                f"rightly, the student without a teacher {alone.accuracy:.1%}."
            )
        gains = exceeds(taught.gain_low, taught.gain_high)
        if gains is False:
            yield "The teacher does harm: without it the student is better."
        elif gains is None:
            yield "The gain over no teacher may be chance: its interval contains 0."
    elif {teacher, ALONE} <= set(pilots.index) and pilots[teacher] <= pilots[ALONE]:
        yield (
            f"No head start: after {choice.pilots.epochs} epochs the student without a teacher is as "
            f"accurate ({pilots[ALONE]:.1%}) as the one of {teacher} ({pilots[teacher]:.1%})."
        )
    if taught is not None and TUNED in rows.index and rows.accuracy[TUNED] > taught.accuracy:
        yield (
            "The student's own pretrained network, fine-tuned, is "
            f"{100 * (rows.accuracy[TUNED] - taught.accuracy):.1f} points better: finetuned.yaml has it, and "
            "`fgkd export` hands it over."
        )


def _table(choice: Choice) -> pd.DataFrame:
    """One row per candidate, the choice first: see runs/COLUMNS.md for the columns."""
    table = choice.ranking.table.merge(choice.costs, on="teacher")
    known = {candidate.name: candidate for candidate in choice.found.candidates}
    for name in ("model", "resolution", "pretraining", "licence", "megabytes"):
        table[name] = [getattr(known[teacher], name) for teacher in table.teacher]
    own = choice.pilots.table.drop_duplicates("teacher", keep="last").set_index("teacher")
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
        rivals = pilots.longest.drop([choice.teacher, ALONE], errors="ignore")
        how += f"epochs, the best of the others {rivals.max():.1%}" if len(rivals) else "epochs"
    order = ranking.compare()
    first = ranking.table["first"].iloc[0]
    if not math.isnan(first):
        order += f" {ranking.order[0]} is its first in {first:.0%} of bootstrap samples."
    take = f"Take {choice.teacher} as the teacher of {choice.task.student}: {how}."
    sentences = [take, order, describe(choice.verification), pilots.searched, pilots.left]
    return [sentence for sentence in sentences if sentence]


def _rows(table: pd.DataFrame) -> list[dict]:
    """A table's rows for JSON, which knows no NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
