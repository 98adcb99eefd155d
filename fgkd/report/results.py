"""The tables and figures of a study's report, which notebooks 06 and 07 and the index show alike."""

from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from fgkd.analysis import correlation, findings, groups, paper, records, selection
from fgkd.metrics.claims import METRICS
from fgkd.report import plots
from fgkd.study import Study

REGISTERED = ("ratio12", "ssp", "tac")  # the metrics that the paper compares
RULES = ("R12", "R12, median", "SSP", "TAC", "NLL", "LogME", "pilot", "random", "no teacher")
CAPTIONS = {
    "against": "Student accuracy against each metric, one point per teacher. "
    "The claim: falling for R12, rising for SSP and TAC. Dashed: the student without a teacher.",
    "ranks": "The teachers ranked by each metric, and by their students: "
    "level lines are a metric that ranks them right.",
    "accuracies": "Accuracy of every student, one column per strategy and auxiliary loss, one mark per "
    "teacher, with its range over seeds; dashed: the student without a teacher.",
    "picks": "What choosing by each metric gains: mean accuracy of the student whose teacher it picks; "
    "in another colour the rules that see students first.",
    "regret": "What each rule's pick loses against the best teacher of a group: "
    "one dot per group, in black their mean, with its 95 % interval where there are six datasets.",
    "agreements": "Spearman's rho in the claimed direction, a mark per data set; black: the mean over "
    "groups, with its 95 % interval over data sets where there are six. Below the paper's three the "
    "other metrics that see no student, the best first.",
    "heat": "The same in each group: blue agrees with the claim, red contradicts it. "
    "A pilot sees a tenth of each student's epochs (rounded up), agreement the whole student.",
    "strengths": "Share of groups by strength of |rho|, which forgives a wrong sign; "
    "dashed: the share that would be strong under the null.",
    "progress": "R12 against how far the teacher's training has come: "
    "rising, a small R12 is that of a teacher not yet trained.",
    "capacity": "The teacher's size against its R12 and against its students' accuracy.",
}
Tables = Mapping[str, pd.DataFrame]


def conclude(study: Study, tables: Tables) -> dict[str, pd.DataFrame]:
    """The tables that the report adds; none while no student of any teacher has ended.

    tables: as returned by `records.collect`
    """
    if "headline" not in tables or tables["correlations"].empty:
        return {}
    points = records.points(tables)
    correlations = tables["correlations"]
    students = tables["students"]
    outcomes = selection.selection_outcomes(points, students)
    return {
        "picks": selection.selection_summary(outcomes),
        "standings": selection.standings(points, students, tables["data"]),
        "breakdown": groups.breakdown(correlations),
        "claims": paper.claims(correlations, outcomes, students, points),
        "power": paper.power(correlations),
        "pay": findings.distillation_gains(points, students, tables["data"]),
        "temperatures": findings.temperatures(correlations, study),
        "progress": findings.training_progress(records.with_tac(tables["metrics"], tables["teachers"])),
        "orders": groups.orders(points),
        "mixes": findings.mixes(points, [*records.TRAITS, *records.WORDS]),
    }


def figures(study: Study, tables: Tables) -> dict[str, Callable[[], Figure]]:
    """What draws each figure of the report, by its name in CAPTIONS.

    tables: as returned by `records.collect`, with those of `conclude`
    """
    points = records.points(tables)
    students = tables["students"]
    correlations = tables["correlations"]
    teachers = study.teachers
    example = groups.example(points)
    alone = _alone(example, students)
    blind = _without_students(tables["headline"])
    outcomes = selection.selection_outcomes(points, students)
    rules = [rule for rule in RULES if rule in set(outcomes.rule)]
    strong = ["ratio12", "ratio12_median", "ssp", "tac"]
    null = correlation.null_share(len(teachers)) if len(teachers) >= 3 else None
    trained = findings.teacher_means(records.with_tac(tables["metrics"], tables["teachers"]))
    return {
        "against": partial(plots.metric_scatter, example, REGISTERED, teachers, alone=alone),
        "ranks": partial(plots.ranks, example, REGISTERED, teachers),
        "accuracies": partial(plots.accuracies, students, teachers),
        "picks": partial(plots.selection_chart, tables["picks"]),
        "regret": partial(plots.regret, outcomes, rules),
        "agreements": partial(plots.agreements, correlations, blind),
        "heat": partial(plots.rho_heatmap, correlations),
        "strengths": partial(plots.strengths, correlations, strong, null),
        "progress": partial(plots.training_progress, trained, teachers),
        "capacity": partial(plots.capacity, points, "ratio12", teachers),
    }


def _without_students(headline: pd.DataFrame) -> list[str]:
    """The registered metrics, then those others that see no student, in the order of the headline."""
    seeing = {name for name, claim in METRICS.items() if claim.begun or claim.afterwards}
    return list(dict.fromkeys([*REGISTERED, *(name for name in headline.metric if name not in seeing)]))


def _alone(example: pd.DataFrame, students: pd.DataFrame) -> float | None:
    """The mean accuracy of the example's student without a teacher; None where there is none."""
    first = example.iloc[0]
    of_student = (students.dataset == first.dataset) & (students.student == first.student)
    alone = students[of_student & (students.strategy == "CE")]
    return None if alone.empty else float(alone.accuracy.mean())
