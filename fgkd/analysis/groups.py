"""Points and rank correlations of a study's groups, and what they show on average.

A group is one dataset, student, strategy and loss.  Its points are the teachers, each the mean over the
study's seeds: a teacher's metrics and the accuracy of its student.  Columns of tables that are written, here
and in `selection`, `findings` and `paper`, are explained in runs/COLUMNS.md.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pandas as pd

from fgkd.analysis.blocks import mean_interval
from fgkd.analysis.correlation import (
    STRENGTHS,
    exact_p,
    interval,
    kendall,
    null_summary,
    spearman,
    spearman_within,
    strength,
)
from fgkd.metrics.claims import claims_in

GROUP = ["dataset", "student", "strategy", "loss"]
CORRELATIONS = [
    *GROUP,
    *("metric", "n", "seeds", "rho", "abs_rho", "p", "strength", "direction", "agrees", "low", "high", "tau"),
]
CHANCE = ["abs_rho", *STRENGTHS]
SUMMARY = [
    *("groups", "datasets", "teachers", "mean_rho", "mean_abs_rho", "agrees", "strong", "low", "high"),
    *("chance_abs_rho", "chance_strong", "weak", "modest", "chance_weak", "chance_modest"),
]


def join_students_with_metrics(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The points of all groups, one row per teacher: means over seeds of metrics and student.

    A student goes with the teacher of its own seed.  A metric that is NaN for a seed is NaN.  Columns next to
    the group's, `teacher`, `accuracy` and the metrics: ratio12_nonpositive, the share of samples in which R12
    has no meaning; pilot_cost, the share of the student's epochs that the pilot takes; `seeds`, their number;
    and accuracy_sd, the standard deviation of `accuracy` over seeds, NaN for a single one.

    students: one row per student; rows of strategy CE have no teacher and are left out
    metrics: one row per bank, as returned by `records.with_tac`

    Raises ValueError where a student's teacher has no metrics.
    """
    claims = claims_in(metrics)
    of_student = [name for name, claim in claims.items() if claim.begun or claim.afterwards]
    of_teacher = [name for name in claims if name not in of_student]
    of_student.append("pilot_cost")
    of_teacher.append("ratio12_nonpositive")
    taught = students[students.strategy != "CE"]
    taught = taught.reindex(columns=[*GROUP, "teacher", "seed", "accuracy", *of_student])
    keys = ["dataset", "teacher", "strategy", "seed"]
    rows = taught.astype(dict.fromkeys(of_student, float)).merge(
        metrics.reindex(columns=[*keys, *of_teacher]).astype(dict.fromkeys(of_teacher, float)),
        on=keys,
        how="left",
        validate="many_to_one",
        indicator=True,
    )
    unmatched = rows[rows._merge == "left_only"]
    if len(unmatched):
        first = unmatched.iloc[0][[*GROUP, "teacher", "seed"]].to_dict()
        raise ValueError(f"{len(unmatched)} students have no metrics of their teacher, the first: {first}")
    values = ["accuracy", *claims, "ratio12_nonpositive", "pilot_cost"]
    by_teacher = rows.groupby([*GROUP, "teacher"], sort=False)
    seeds = by_teacher.size()
    complete = by_teacher[values].count().eq(seeds, axis=0)
    points = by_teacher[values].mean().where(complete)
    return points.assign(seeds=seeds, accuracy_sd=by_teacher.accuracy.std()).reset_index()


def correlations(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """How well each metric ranks each group's teachers (correlations.csv).

    students, metrics: as of `join_students_with_metrics`
    """
    points = join_students_with_metrics(students, metrics)
    claims = claims_in(points)
    rows = []
    for group, members in points.groupby(GROUP, sort=True):
        n = len(members)
        for name, claim in claims.items():
            rho = spearman(members[name], members.accuracy)
            low, high = interval(rho, n)
            rows.append(
                {
                    **dict(zip(GROUP, group, strict=True)),
                    "metric": name,
                    "n": n,
                    "seeds": members.seeds.min(),
                    "rho": rho,
                    "abs_rho": abs(rho),
                    "p": exact_p(members[name], members.accuracy),
                    "strength": strength(rho),
                    "direction": claim.direction,
                    "agrees": rho * claim.direction + 0.0,
                    "low": low,
                    "high": high,
                    "tau": kendall(members[name], members.accuracy),
                }
            )
    return pd.DataFrame(rows, columns=CORRELATIONS)


def example(points: pd.DataFrame) -> pd.DataFrame:
    """The points of the first dataset, student and loss: one group per strategy."""
    names = points[["dataset", "student", "loss"]]
    return points[(names == names.iloc[0]).all(axis=1)]


def agreement(points: pd.DataFrame, within: str | None = None) -> pd.Series:
    """Each metric's rho in the claimed direction, the mean over groups that have one.

    points: as returned by `join_students_with_metrics`
    within: a column of `points` such as the teachers' norm; rho is then `spearman_within` its values
    """

    means = {}
    for name, claim in claims_in(points).items():
        means[name] = (claim.direction * rhos(points, GROUP, name, "accuracy", within)).mean()
    return pd.Series(means)


def rhos(points: pd.DataFrame, by: list[str], x: str, y: str, within: str | None = None) -> pd.Series:
    """Spearman's rho of two columns in each group of points, indexed by `by`.

    within: a column; rho is then `spearman_within` its values
    """
    found = {}
    for key, group in points.groupby(by):
        if within is None:
            found[key] = spearman(group[x], group[y])
        else:
            found[key] = spearman_within(group[x], group[y], group[within])
    keys = pd.MultiIndex.from_frame(pd.DataFrame(list(found), columns=by))
    return pd.Series(list(found.values()), keys, dtype=float)


def sensitivity(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """How far the ranking depends on the seed: one row per metric, its mean `agrees` by seed.

    Columns: each seed alone ('seed 0', ...) and the mean over seeds ('all').  The last row, 'other seed',
    ranks the teachers of each seed by their students of another: a mean rho r over groups and pairs of seeds.
    It bounds what can be asked of a metric: one that knew the expected accuracy of each teacher's students
    would reach about sqrt(r) with a single seed and sqrt(k r / (1 + (k - 1) r)) with the mean over k
    (Spearman 1904; Brown 1910); only one that sees the luck of the seed's own teacher can do better.

    students, metrics: as of `join_students_with_metrics`
    """
    taught = students[students.strategy != "CE"]
    columns = {}
    for seed, rows in taught.groupby("seed"):
        columns[f"seed {seed}"] = agreement(join_students_with_metrics(rows, metrics))
    columns["all"] = agreement(join_students_with_metrics(taught, metrics))
    table = pd.DataFrame(columns)
    accuracy = taught.pivot(index=[*GROUP, "teacher"], columns="seed", values="accuracy")
    off_diagonal = ~np.eye(len(accuracy.columns), dtype=bool)
    pairs = [group.corr(spearman).where(off_diagonal) for _, group in accuracy.groupby(GROUP)]
    other_seed = pd.concat(pairs).mean()
    table.loc["other seed"] = [*other_seed, other_seed.mean()]
    return table.rename_axis("metric").reset_index()


def orders(points: pd.DataFrame) -> pd.DataFrame:
    """How far two ways to teach put the same teachers in one order (orders.csv).

    One seed's luck lies in rho, and what the ways really differ in.

    points: as returned by `join_students_with_metrics`
    """
    ways = points.strategy + " " + points.loss
    wide = points.assign(way=ways).pivot(index=[*GROUP[:2], "teacher"], columns="way", values="accuracy")
    rows = []
    for one, other in itertools.combinations(dict.fromkeys(ways), 2):
        known = rhos(wide[[one, other]].dropna(), GROUP[:2], one, other).dropna()
        names = known.index.get_level_values("dataset")
        low, high = mean_interval(known, names)
        rows.append([one, other, len(known), names.nunique(), known.mean(), low, high])
    return pd.DataFrame(rows, columns=["one", "other", "groups", "datasets", "rho", "low", "high"])


def ranking_stability(epochs: pd.DataFrame, metric: str = "ratio12") -> pd.DataFrame:
    """How many views a metric's ranking of teachers takes: one row per number of `views`.

    Views of each image.  rho is between the ranking by the mean over so many and that over all: its mean and
    its lowest over datasets, recipes and seeds.

    epochs: one row per bank and view, as returned by `records.collect`
    metric: a column of it
    """
    wide = epochs.pivot(index=["dataset", "recipe", "seed", "teacher"], columns="epoch", values=metric)
    running = wide.T.expanding().mean().T
    rows = []
    for view in running:
        known = rhos(running, ["dataset", "recipe", "seed"], view, running.columns[-1])
        rows.append({"views": view + 1, "rho": known.mean(), "lowest": known.min()})
    return pd.DataFrame(rows)


def summary(correlations: pd.DataFrame, by=()) -> pd.DataFrame:
    """Means over groups, a row per metric for each value of `by` (headline.csv).

    correlations: as returned by the function of that name
    by: one or more of dataset, student, strategy and loss
    """
    by = [by] if isinstance(by, str) else list(by)
    null = functools.cache(null_summary)
    rows = []
    for key, members in correlations.groupby([*by, "metric"], sort=True):
        defined = members[members.rho.notna()]
        chance = pd.DataFrame([null(n) for n in defined.n], columns=CHANCE, dtype=float).mean()
        low, high = mean_interval(defined.agrees, defined.dataset)
        rows.append(
            {
                **dict(zip([*by, "metric"], key, strict=True)),
                "groups": len(defined),
                "datasets": defined.dataset.nunique(),
                "teachers": members.n.max(),
                "mean_rho": defined.rho.mean(),
                "mean_abs_rho": defined.abs_rho.mean(),
                "agrees": defined.agrees.mean(),
                "low": low,
                "high": high,
                **{name: (defined.strength == name).mean() for name in STRENGTHS},
                **chance.add_prefix("chance_"),
            }
        )
    return pd.DataFrame(rows, columns=[*by, "metric", *SUMMARY])


def breakdown(correlations: pd.DataFrame) -> pd.DataFrame:
    """The `summary` by dataset, student, strategy and loss in turn, named by `by` and `value`."""
    tables = []
    for by in GROUP:
        table = summary(correlations, by).rename(columns={by: "value"})
        table.insert(0, "by", by)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def headline(correlations: pd.DataFrame) -> pd.DataFrame:
    """The `summary` over all groups, without shares of weak and modest, best signed rho first."""
    table = summary(correlations).loc[:, :"chance_strong"]
    return table.sort_values("agrees", ascending=False, kind="stable").reset_index(drop=True)
