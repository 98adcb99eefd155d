"""What came out: the answer, when not to trust it, ranking.csv, choose.json, and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fgkd import records
from fgkd.analysis.correlation import MIN_SIGNIFICANT
from fgkd.choose import verification as verifications
from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Found
from fgkd.choose.pilots import ALONE, Pilots
from fgkd.choose.ranking import Ranking
from fgkd.choose.task import Task
from fgkd.choose.verification import Verification
from fgkd.metrics.claims import UNDEFINED
from fgkd.models import classifier

STABLE = 0.8  # share of bootstrap samples in which a stable first is the first
NOTEBOOK = "08_choose_your_teacher"


@dataclass(frozen=True)
class Result:
    """The answer in sentences, the warnings, and one row per candidate."""

    answer: list[str]
    warnings: list[str]
    table: pd.DataFrame


def conclude(
    task: Task,
    audit: Audit,
    found: Found,
    ranking: Ranking,
    costs: pd.DataFrame,
    pilots: Pilots,
    verification: Verification,
) -> Result:
    """Put together what was found, and write ranking.csv and choose.json."""
    table = _table(found, ranking, costs, pilots, verification)
    answer = _answer(task, ranking, pilots, verification)
    warnings = warn(task, found, ranking, pilots, verification)
    result = Result(answer, warnings, table)
    verified = verification.table.round(4).to_dict("records")
    values = {
        "choice": pilots.order[0],
        "student": task.student,
        "photos": {"classes": audit.classes}
        | audit.photos.use.value_counts().drop("", errors="ignore").to_dict(),
        "rule": {"metric": ranking.rule.metric, "reason": ranking.rule.reason},
        "r12_pick": ranking.r12_pick,
        "tac_pick": ranking.tac_pick,
        "distillation": pilots.distillation,
        "answer": answer,
        "warnings": warnings,
        "audit": audit.findings(),
        "left out": found.left_out,
        "verified": [{key: _none(value) for key, value in row.items()} for row in verified],
        "pilots": pilots.table.drop(columns="seconds").to_dict("records"),
    }
    records.write_table(table, task.folder / "ranking.csv")
    records.write_json(task.folder / "choose.json", values)
    return result


def warn(task: Task, found: Found, ranking: Ranking, pilots: Pilots, verification: Verification) -> list[str]:
    """When not to trust the choice, a sentence each; none where nothing speaks against it."""
    table = ranking.table.set_index("teacher")
    chosen = pilots.order[0]
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
    kinds = sorted({candidate.pretraining for candidate in found.candidates})
    if len(kinds) > 1:
        sentences.append(
            f"Mixed pretraining ({', '.join(kinds)}): metrics of logits may order the pretraining sets more "
            "than the teachers."
        )
    sentences += _warn_of_student(task, found, chosen)
    sentences += _warn_of_head_start(ranking, pilots, verification)
    return sentences


def _warn_of_student(task: Task, found: Found, chosen: str) -> list[str]:
    """Warn of a student that is larger than its teacher."""
    import timm

    size = classifier.parameters(timm.create_model(task.student))
    smaller = [candidate.name for candidate in found.candidates if candidate.parameters < size]
    if not smaller:
        return []
    which = "all candidates" if len(smaller) == len(found.candidates) else ", ".join(smaller)
    more = "; the choice is one of them" if chosen in smaller else ""
    return [f"The student ({size / 1e6:.2f} million weights) is larger than {which}{more}."]


def _warn_of_head_start(ranking: Ranking, pilots: Pilots, verification: Verification) -> list[str]:
    """Warn where the chosen teacher, or its student, is not ahead of the student without a teacher."""
    sentences = []
    chosen = pilots.order[0]
    rows = verification.table.set_index("student") if len(verification.table) else pd.DataFrame()
    name = f"from {chosen}"
    if name in rows.index and ALONE in rows.index:
        alone = rows.loc[ALONE]
        if rows.loc[name, "teacher_accuracy"] <= alone.high:
            sentences.append(
                f"No head start: {chosen} itself names {rows.loc[name, 'teacher_accuracy']:.1%} of the test "
                f"photos rightly, the student without a teacher {alone.accuracy:.1%}."
            )
        if rows.loc[name, "gain_low"] <= 0:
            sentences.append(
                "The gain over no teacher may be chance: its interval holds 0."
                if rows.loc[name, "gain_high"] >= 0
                else "The teacher does harm: without it the student is better."
            )
    elif len(pilots.table):
        final = pilots.final.set_index("teacher")
        if chosen in final.index and ALONE in final.index:
            same = pilots.table[pilots.table.epochs == final.epochs[chosen]].set_index("teacher").accuracy
            if ALONE in same.index and same[chosen] <= same[ALONE]:
                sentences.append(
                    f"No head start: after {final.epochs[chosen]} epochs the student without a teacher is as "
                    f"accurate ({same[ALONE]:.1%}) as the one of {chosen} ({same[chosen]:.1%})."
                )
    finetuned = "pretrained, fine-tuned"
    if name in rows.index and finetuned in rows.index:
        better = rows.loc[finetuned, "accuracy"] - rows.loc[name, "accuracy"]
        if better > 0:
            sentences.append(
                f"The student's own pretrained network, fine-tuned, is {100 * better:.1f} points better: "
                "finetuned.yaml has it, and `fgkd export` hands it over."
            )
    return sentences


def _table(
    found: Found, ranking: Ranking, costs: pd.DataFrame, pilots: Pilots, verification: Verification
) -> pd.DataFrame:
    """One row per candidate, the choice first: see runs/README.md for the columns."""
    table = ranking.table.merge(costs, on="teacher")
    known = {candidate.name: candidate for candidate in found.candidates}
    for name in ("model", "resolution", "pretraining", "licence", "megabytes"):
        table[name] = [getattr(known[teacher], name) for teacher in table.teacher]
    own = pilots.final.set_index("teacher")
    table["pilot_epochs"] = table.teacher.map(own.epochs)
    table["pilot_accuracy"] = table.teacher.map(own.accuracy)
    rows = verification.table.set_index("student")
    students = "from " + table.teacher
    for column in ("accuracy", "low", "high"):
        table[f"student_{column}"] = students.map(rows[column]).astype(float)
    places = {name: place for place, name in enumerate(pilots.order, 1)}
    table.insert(0, "place", table.teacher.map(places))
    return table.sort_values("place", ignore_index=True)


def _answer(task: Task, ranking: Ranking, pilots: Pilots, verification: Verification) -> list[str]:
    """The answer in sentences, the choice first."""
    chosen = pilots.order[0]
    final = pilots.final.set_index("teacher") if len(pilots.table) else pd.DataFrame()
    if chosen in final.index:
        row = final.loc[chosen]
        how = (
            f"its student names {row.accuracy:.1%} of held-out photos rightly after {row.epochs} of {row.of} "
            f"epochs, the most of those that pilots trained so long"
        )
    else:
        how = f"it is the first by {ranking.rule.label}"
    first = ranking.table["first"].iloc[0]
    stable = (
        "" if math.isnan(first) else f", which {ranking.order[0]} leads in {first:.0%} of bootstrap samples"
    )
    sentences = [
        f"Take {chosen} as the teacher of {task.student}: {how}.",
        f"{ranking.compare()[:-1]}{stable}.",
        verifications.describe(verification),
        pilots.searched,
    ]
    return [sentence for sentence in [*sentences, pilots.left] if sentence]


def _none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def write_page(folder: Path, notebook: Path | None = None) -> Path:
    """Write index.html from choose.json and ranking.csv in a folder; returns its path.

    notebook: the executed notebook, which becomes a page of its own.
    """
    from fgkd.report.site import Entry, Site, Table, write

    values = records.read_json(folder / "choose.json") or {}
    table = pd.read_csv(folder / "ranking.csv")
    entries = []
    if notebook is not None:
        entries.append(Entry("The notebook", "every step", notebook, "notebook.html", "done"))
    shown = _shown(table)
    verified = pd.DataFrame(values["verified"])
    tables = [Table("verified", verified)] if len(verified) else []
    tables += [Table("pilots", pd.DataFrame(values["pilots"]))] if values["pilots"] else []
    notes = [*values["warnings"], *(f"Photos: {finding}." for finding in values["audit"])]
    notes += [f"Left out: {name}: {reason}" for name, reason in values["left out"].items()]
    figures = [(file, caption) for file, caption in _figures(folder).items() if file.exists()]
    site = Site(
        title="Which teacher for these photos?",
        question=f"{values['student']}, {values['photos']['classes']} classes",
        answer=values["answer"],
        entries=entries,
        standings=Table("ranking", table, "The candidates, the choice first.", shown, limit=15),
        notes=notes,
        figures=figures,
        tables=tables,
        facts=_facts(folder, values),
    )
    return write(site, folder)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The candidates in a reader's words."""
    shown = pd.DataFrame({"teacher": table.teacher, "rank": table["rank"]})
    shown["first in"] = [f"{share:.0%}" for share in table["first"].fillna(0)]
    shown["TAC"] = [f"{tac:.1%}" for tac in table.tac]
    shown["R12"] = table.ratio12.round(3)
    shown["pilot"] = [_percent(share) for share in table.pilot_accuracy]
    shown["student, test"] = [_percent(share) for share in table.student_accuracy]
    shown["M weights"] = (table.parameters / 1e6).round(2)
    shown["MB"] = table.megabytes.round(1)
    shown["images/s"] = table.images_per_second.round(0).astype(int)
    shown["minutes"] = table.minutes.round(1)
    shown["licence"] = table.licence
    return shown


def _percent(share: float) -> str:
    return "\u2013" if math.isnan(share) else f"{share:.1%}"


def _figures(folder: Path) -> dict[Path, str]:
    return {
        folder
        / "plots"
        / "places.png": "How often each candidate has which place, over bootstrap samples of the "
        "held-out photos.",
        folder / "plots" / "pilots.png": "Pilots: accuracy on held-out photos by epochs of the student.",
    }


def _facts(folder: Path, values: Mapping[str, Any]) -> dict[str, str]:
    counts = {name: number for name, number in values["photos"].items() if name != "classes"}
    return {
        "photos": ", ".join(f"{name} {number}" for name, number in counts.items()),
        "rule": f"{values['rule']['metric']}: {values['rule']['reason']}",
        "temperature, beta": ", ".join(str(value) for value in values["distillation"].values()),
        "student, to deploy": "student/" if (folder / "student").is_dir() else "none: nothing was verified",
        "studies": "selection.yaml, study.yaml",
    }
