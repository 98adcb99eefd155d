"""Which metric ranks teachers best, by what the committed study on real photos has found.

Teachers are compared on photos that they were not trained on, here and there: of that study's records the
metrics of the teachers' test logits count, and how well each ranks them by their students, as the mean over
its datasets of Spearman's rho in the claimed direction.  Metrics that see the student have no part in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from fgkd import records
from fgkd.analysis.blocks import MIN_DATASETS, mean_interval
from fgkd.analysis.groups import GROUP, agreement, join_students_with_metrics
from fgkd.metrics.claims import METRICS
from fgkd.study import PROJECT, Study, load

STUDY = "photos"
PAPER_RULE = "ratio12"  # the paper's rule


@dataclass(frozen=True)
class Rule:
    """The metric that ranks, and why, in a sentence."""

    metric: str
    reason: str

    @property
    def label(self) -> str:
        """The metric's short name."""
        return METRICS[self.metric].label

    @property
    def direction(self) -> int:
        """+1 where larger is better, -1 where smaller is."""
        return METRICS[self.metric].direction


def rule(recipe: str) -> Rule:
    """The rule that the committed study supports best; the paper's R12 where it cannot tell yet.

    recipe: of the teachers, FZ, FT or CAL; where too few datasets have its students, all recipes count.
    """
    file = PROJECT / "runs" / f"{STUDY}.yaml"
    if not file.is_file():
        return Rule(PAPER_RULE, "the paper's, since the study on real photos is not beside this package")
    study = load(str(file))
    with _beside_the_file():
        students, metrics = tables(study)
    return decide(support_of(recipe, study, students, metrics), len(study.datasets))


def support_of(recipe: str, study: Study, students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """`support` by the students of one recipe's teachers; by all, below six datasets of these."""
    if len(students):
        own = support(students[students.strategy.isin(study.strategies_using(recipe))], metrics)
        if len(own) and own.datasets.max() >= MIN_DATASETS:
            return own
    return support(students, metrics)


def decide(support: pd.DataFrame, planned: int) -> Rule:
    """The rule of the largest mean rho, where there are six datasets or more; else R12.

    support: as returned by the function of that name; planned: datasets of the study.
    """
    datasets = int(support.datasets.max()) if len(support) else 0
    if datasets < MIN_DATASETS:
        found = f"of the study on real photos {datasets} of {planned} data sets are complete"
        return Rule(PAPER_RULE, f"the paper's rule: {found}, {MIN_DATASETS} would tell which rule is better")
    best = support.iloc[0]
    paper = support.set_index("metric").loc[PAPER_RULE]
    reason = (
        f"on {datasets} sets of real photos its mean rank correlation with the students' accuracy, in the "
        f"claimed direction, is {_interval(best)}, the largest of {len(support)} metrics on the very data "
        "that it was picked by"
    )
    if best.metric == PAPER_RULE:
        return Rule(PAPER_RULE, f"the paper's rule; {reason}")
    return Rule(best.metric, f"{reason}; that of the paper's R12 is {_interval(paper)}")


def support(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per metric, the best first: mean over datasets of its rho, in the claimed way.

    Columns: metric, rho, low and high (its 95 % interval over datasets), datasets.  A group counts once
    all teachers have students in it; a metric that lacks one of them is left out.

    students, metrics: as returned by `tables`
    """
    rows = []
    if len(students):
        points = join_students_with_metrics(students, metrics)
        complete = points.groupby(GROUP).teacher.transform("nunique") == metrics.teacher.nunique()
        points = points[complete]
        by_dataset = {dataset: agreement(part) for dataset, part in points.groupby("dataset")}
        for name, values in pd.DataFrame(by_dataset).iterrows():
            claim = METRICS[name]
            if claim.begun or claim.afterwards or claim.plugin or values.isna().any() or not len(values):
                continue
            low, high = mean_interval(values, values.index)
            rows.append(
                {"metric": name, "rho": values.mean(), "low": low, "high": high, "datasets": len(values)}
            )
    frame = pd.DataFrame(rows, columns=["metric", "rho", "low", "high", "datasets"])
    return frame.sort_values(["rho", "metric"], ascending=[False, True], ignore_index=True)


def tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The students of a study, and its teachers' metrics on test images, from records alone.

    Metrics have a row per dataset, teacher, strategy and seed, with TAC, size and transfer scores.
    """
    known: dict = {}
    students: list[dict] = []
    metrics: list[dict] = []
    for job in study.jobs():
        seed = {"seed": study.seed_of(job)}
        for stored in records.records(study, job, known) if job.stage in ("teacher", "distill") else ():
            if job.stage == "distill":
                students += [row | seed for row in stored["rows"]]
                continue
            on_test = {name: value for name, value in stored["on_test"].items() if name != "train_accuracy"}
            own = {name: stored["rows"][0].get(name) for name in ("tac", "parameters", *records.TRANSFER)}
            for strategy in study.strategies_using(job.strategy):
                keys = {"dataset": job.dataset, "teacher": job.teacher, "strategy": strategy}
                metrics.append(keys | seed | on_test | own)
    taught = [row for row in students if row["strategy"] != "CE"]
    known_teachers = {(row["dataset"], row["teacher"], row["strategy"], row["seed"]) for row in metrics}
    taught = [
        row
        for row in taught
        if (row["dataset"], row["teacher"], row["strategy"], row["seed"]) in known_teachers
    ]
    frame = pd.DataFrame(metrics)
    for name in records.TRANSFER if len(frame) else ():
        frame[name] = frame[name].astype(float)
    return pd.DataFrame(taught), frame


@contextlib.contextmanager
def _beside_the_file() -> Iterator[None]:
    """Look for results beside study files, as they are committed, wherever FGKD_RUNS points."""
    folder = os.environ.pop("FGKD_RUNS", None)
    try:
        yield
    finally:
        if folder is not None:
            os.environ["FGKD_RUNS"] = folder


def _interval(row: pd.Series) -> str:
    return f"{row.rho:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
