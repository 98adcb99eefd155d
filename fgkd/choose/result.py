"""What came out: the model, the answer, when not to trust it, ranking.csv and choose.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import timm

from fgkd.analysis import records
from fgkd.analysis.blocks import exceeds
from fgkd.analysis.correlation import MIN_SIGNIFICANT, difference_interval
from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Found
from fgkd.choose.ranking import Ranking
from fgkd.choose.students import ALONE, TUNED, Pilots, Verification, describe
from fgkd.choose.task import STUDENT, Task
from fgkd.distillation import export
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
    teacher, ranking = choice.teacher, choice.ranking
    table = ranking.table.set_index("teacher")
    photos = choice.audit.count("held out")
    pilots = choice.pilots.longest
    hits = (pilots.accuracy * photos).round().astype(int)
    rivals = sorted(set(hits.index) - {teacher, ALONE})
    pilot_of = pilots.to_dict("index")
    verified = {row["student"]: row for row in _rows(choice.verification.table)}
    taught, alone = verified.get(f"from {teacher}"), verified.get(ALONE)
    gains = exceeds(taught["gain_low"], taught["gain_high"]) if taught and alone else None
    size = classifier.parameters(timm.create_model(choice.task.student, num_classes=choice.audit.classes))
    text = export.render(
        "warnings.txt.j2",
        teacher=teacher,
        ranking=ranking,
        least=MIN_SIGNIFICANT,
        first=_rows(ranking.table)[0]["first"],
        stable=STABLE,
        undefined=sorted(table.index[table.ratio12_nonpositive > UNDEFINED]),
        limit=UNDEFINED,
        kinds=sorted({candidate.pretraining for candidate in choice.found.candidates}),
        photos=photos,
        tied=[name for name in rivals if difference_interval(hits[teacher], hits[name], photos)[0] <= 0],
        left=choice.pilots.left,
        size=size,
        smaller=sorted(table.index[table.parameters < size]),
        taught=taught,
        alone=alone,
        tuned=verified.get(TUNED),
        gains=gains,
        pilot=pilot_of.get(teacher),
        pilot_alone=pilot_of.get(ALONE),
    )
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def _answer(choice: Choice) -> list[str]:
    """The answer in sentences, the choice first."""
    ranking, pilots = choice.ranking, choice.pilots
    how = f"it is the first by {ranking.rule.label}"
    own = pilots.table[pilots.table.teacher == choice.teacher]
    if len(own):
        row = own.iloc[-1]
        how = f"its pilot names {row.accuracy:.1%} of held-out photos rightly after {row.epochs} of {row.of} "
        rivals = pilots.longest.accuracy.drop([choice.teacher, ALONE], errors="ignore")
        how += f"epochs, the best of the others {rivals.max():.1%}" if len(rivals) else "epochs"
    order = ranking.compare()
    first = ranking.table["first"].iloc[0]
    if not math.isnan(first):
        order += f" {ranking.order[0]} is its first in {first:.0%} of bootstrap samples."
    take = f"Take {choice.teacher} as the teacher of {choice.task.student}: {how}."
    sentences = [take, order, describe(choice.verification), pilots.searched, pilots.left]
    return [sentence for sentence in sentences if sentence]


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


def _rows(table: pd.DataFrame) -> list[dict]:
    """A table's rows for JSON, which knows no NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
