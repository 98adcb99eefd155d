"""What choosing a teacher gains: the accuracy of each rule's pick, and how the teachers stand by name.

A rule is a metric that is known before a student is trained to its end, or one of: 'best', the best teacher
in hindsight; 'random', any teacher; 'no teacher', the CE baseline.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from fgkd.analysis.blocks import exceeds, mean_interval, shared_error
from fgkd.analysis.groups import GROUP
from fgkd.metrics.claims import METRICS, claims_in

OUTCOMES = [*GROUP, "rule", "teacher", "accuracy", "regret", "hit", "top3", "cost"]


def selection_outcomes(points: pd.DataFrame, students: pd.DataFrame) -> pd.DataFrame:
    """One row per group and rule: whom the rule picks, and what that student reaches.

    A metric picks its best teacher in the claimed direction; ties are shared: 'a = b', and '' where a rule
    picks nobody in particular.  Columns as those of picks.csv; cost is the share of the training of every
    teacher's student that the rule has to see: 0 where the choice is free of students, 1 for 'best'.

    points: as returned by `groups.join_students_with_metrics`
    students: one row per student, those without a teacher among them
    """
    alone = students[students.strategy == "CE"].groupby(["dataset", "student"]).accuracy.mean()
    rules = {name: claim for name, claim in claims_in(points).items() if not claim.afterwards}
    rows = []
    for key, group in points.groupby(GROUP, sort=True):
        names = dict(zip(GROUP, key, strict=True))
        accuracy = group.accuracy.to_numpy()
        best = accuracy.max()
        third = np.sort(accuracy)[-3:].min()
        scores = {claim.label: claim.direction * group[name].to_numpy() for name, claim in rules.items()}
        scores["best"] = accuracy
        scores["random"] = np.zeros_like(accuracy)  # all tie: each teacher is picked
        costs = {METRICS["pilot"].label: group.pilot_cost.mean(), "best": 1.0}
        for rule, score in scores.items():
            share = shares(score)
            reached = share @ accuracy
            rows.append(
                {
                    **names,
                    "rule": rule,
                    "teacher": "" if rule == "random" else " = ".join(group.teacher[share > 0]),
                    "accuracy": reached,
                    "regret": best - reached,
                    "hit": share @ (accuracy == best),
                    "top3": share @ (accuracy >= third),
                    "cost": costs.get(rule, 0.0),
                }
            )
        baseline = alone.get(key[:2], math.nan)
        no_teacher = {"rule": "no teacher", "teacher": "", "accuracy": baseline, "regret": best - baseline}
        rows.append(names | no_teacher | {"hit": 0.0, "top3": 0.0, "cost": 0.0})
    return pd.DataFrame(rows, columns=OUTCOMES)


def shares(scores: np.ndarray) -> np.ndarray:
    """How far the largest score picks each teacher: ties are shared, NaN where none is known."""
    picked = scores == np.fmax.reduce(scores)
    return picked / picked.sum() if picked.any() else np.full(len(picked), math.nan)


def with_errors(points: pd.DataFrame, data: pd.DataFrame) -> pd.DataFrame:
    """Points with the standard `error` of their accuracy, for other images and other seeds."""
    test_images = points.dataset.map(data.set_index("dataset").test)
    of_images = points.accuracy * (1 - points.accuracy) / test_images
    of_seeds = (points.accuracy_sd**2 / points.seeds).fillna(0)
    return points.assign(error=np.sqrt(of_images + of_seeds))


def selection_summary(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What choosing gains, means over groups, the most accurate rule first (picks.csv).

    Rules that cannot pick in every group are left out.

    outcomes: as returned by `selection_outcomes`
    """
    accuracy = outcomes.pivot(index=GROUP, columns="rule", values="accuracy")
    accuracy = accuracy.loc[:, accuracy.notna().all()]
    by_rule = outcomes[outcomes.rule.isin(accuracy.columns)].groupby("rule", sort=False)
    table = by_rule[["accuracy", "regret", "hit", "top3", "cost"]].mean()
    table.insert(0, "groups", by_rule.size())
    table.insert(0, "teacher", outcomes.groupby("rule").teacher.agg(_most_frequent))
    datasets = accuracy.index.get_level_values("dataset")
    for name, rule in {"gain_random": "random", "gain_tac": METRICS["tac"].label}.items():
        gains = accuracy.sub(accuracy.get(rule, math.nan), axis=0)
        bounds = [mean_interval(gains[row], datasets) for row in table.index]
        table[name] = gains.mean()
        table[f"{name}_low"] = [low for low, _ in bounds]
        table[f"{name}_high"] = [high for _, high in bounds]
    return table.sort_values("accuracy", ascending=False, kind="stable").reset_index()


def standings(points: pd.DataFrame, students: pd.DataFrame, data: pd.DataFrame) -> pd.DataFrame:
    """The teachers, the best first, then 'no teacher' and 'chance' (standings.csv).

    A teacher is `tied` with the best where the interval of their difference holds 0, over datasets where
    there are six (`mean_interval`), else from the errors of both.  While students are still missing, the
    means are over the groups that have all teachers; as long as there is none, each teacher's are over its
    own groups and do not compare.

    points: as returned by `groups.join_students_with_metrics`
    students: one row per student, those without a teacher among them
    data: one row per dataset with its `classes` and `test` images
    """
    of_group = points.groupby(GROUP).teacher.transform("nunique")
    if (of_group == points.teacher.nunique()).any():
        points = points[of_group == points.teacher.nunique()]
    by_teacher = with_errors(points, data).groupby("teacher", sort=False)
    table = by_teacher[["accuracy", "ratio12", "tac", "ssp", "ratio12_nonpositive"]].mean()
    table.insert(1, "error", [shared_error(rows.error, rows.dataset) for _, rows in by_teacher])
    table = table.sort_values("accuracy", ascending=False, kind="stable")
    table["groups"] = by_teacher.size()
    best = table.index[0]
    wide = points.pivot(index=GROUP, columns="teacher", values="accuracy")
    tied = [_is_tied(wide[best] - wide[name], table.error[[best, name]]) for name in table.index]
    table.insert(2, "tied", pd.Series(tied, table.index, dtype=object))
    groups = points[GROUP].drop_duplicates()
    alone = students[students.strategy == "CE"].groupby(["dataset", "student"]).accuracy.mean()
    baseline = groups.join(alone.rename("alone"), on=["dataset", "student"]).alone
    table.loc["no teacher", "accuracy"] = baseline.mean(skipna=False)
    table.loc["chance", "accuracy"] = (1 / groups.dataset.map(data.set_index("dataset").classes)).mean()
    return table.rename_axis("teacher").reset_index().dropna(subset="accuracy")


def _most_frequent(names: pd.Series) -> str:
    """The most frequent name, and in how many of several groups."""
    counts = names.value_counts()
    name = counts.index[0]
    return f"{name} ({counts.iloc[0]} of {len(names)})" if name and len(names) > 1 else name


def _is_tied(differences: pd.Series, errors: pd.Series) -> bool:
    """Whether the mean of a pair's differences, by group, may be 0."""
    low, high = mean_interval(differences, differences.index.get_level_values("dataset"))
    if math.isnan(low):
        return abs(differences.mean()) <= math.sqrt((errors**2).sum())
    return exceeds(low, high) is None
