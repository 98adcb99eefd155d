"""How well a metric ranks teachers: Spearman's rank correlation, its exact permutation p, its strength.

A group is one data set, student, strategy and loss; its points are the teachers.  At n = 8 and no correlation at all, abs(rho)
averages 0.31 and exceeds 0.705 in 5.8 % of groups, so a rho is never shown without its n and p.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from fgkd.metrics import METRICS

GROUP = ["dataset", "student", "strategy", "loss"]
STRENGTHS = ("weak", "modest", "strong")


def spearman(x, y) -> float:
    """Spearman's rho of x (n,) and y (n,), ties at their mean rank; NaN where n < 3 or either is constant.

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8
    """
    x, y = _pair(x, y)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    rx, ry = _standard(_ranks(x)), _standard(_ranks(y))
    return float(np.clip(rx @ ry, -1, 1).round(12))


def exact_p(x, y, *, draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided permutation p of Spearman's rho: the share of orders of y with an abs(rho) at least as large.

    Every order is counted up to n = 9 (362,880); above, `draws` orders sampled with `seed` and the observed one
    (Phipson and Smyth 2010).  NaN where rho is.
    """
    x, y = _pair(x, y)
    rho = spearman(x, y)
    if math.isnan(rho):
        return math.nan
    rx, ry = _standard(_ranks(x)), _standard(_ranks(y))
    n = len(x)
    if n <= 9:
        null = ry[_orders(n)] @ rx
    else:
        rng = np.random.default_rng(seed)
        null = np.append(rng.permuted(np.tile(ry, (draws, 1)), axis=1) @ rx, rho)
    return float((np.abs(null) >= abs(rho) - 1e-9).mean())


def strength(rho: float) -> str:
    """weak, modest or strong: abs(rho) rounded to 2 decimals is at most 0.5, at most 0.7, above; '' for NaN.

    >>> [strength(r) for r in (0.5, -0.505, 0.704, -0.71)]
    ['weak', 'modest', 'modest', 'strong']
    """
    if math.isnan(rho):
        return ""
    size = math.floor(abs(rho) * 100 + 0.5 + 1e-9) / 100
    return "weak" if size <= 0.5 else "modest" if size <= 0.7 else "strong"


def null_share(n: int, above: float = 0.705) -> float:
    """Share of groups of n teachers whose abs(rho) exceeds `above` when nothing is correlated (every order, 3 <= n <= 9)."""
    if not 3 <= n <= 9:
        raise ValueError(f"n is {n}: all orders are counted for 3 to 9 teachers only")
    ranks = _standard(np.arange(n, dtype=float))
    return float((np.abs(ranks[_orders(n)] @ ranks) > above + 1e-9).mean())


def correlations(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row a group and metric: n, rho, abs_rho, p, strength, the claimed direction and `agrees`, rho times that direction.

    students: a row a student with its group, `teacher` and `accuracy` (rows of strategy CE have no teacher and are left out);
    metrics: a row a bank with `dataset`, `teacher`, `strategy` and the metrics' columns, TAC among them.
    """
    points, rows = joined(students, metrics), []
    for group, members in points.groupby(GROUP, sort=True):
        for name, claim in METRICS.items():
            rho = spearman(members[name], members.accuracy)
            rows.append(dict(zip(GROUP, group)) | {
                "metric": name, "n": len(members), "rho": rho, "abs_rho": abs(rho), "p": exact_p(members[name], members.accuracy),
                "strength": strength(rho), "direction": claim.direction, "agrees": rho * claim.direction})
    columns = [*GROUP, "metric", "n", "rho", "abs_rho", "p", "strength", "direction", "agrees"]
    return pd.DataFrame(rows, columns=columns)


def joined(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The points of all groups: each distilled student's row with its teacher's metrics; ValueError where a teacher has none."""
    students = students[students.strategy != "CE"]
    keys = ["dataset", "teacher", "strategy"]
    points = students[[*GROUP, "teacher", "accuracy"]].merge(metrics[[*keys, *METRICS]], on=keys, how="left", validate="many_to_one", indicator=True)
    if len(lost := points[points._merge == "left_only"]):
        raise ValueError(f"{len(lost)} students have no metrics of their teacher, the first: {lost.iloc[0][GROUP + ['teacher']].to_dict()}")
    return points.drop(columns="_merge")


def picks(points: pd.DataFrame, students: pd.DataFrame) -> pd.DataFrame:
    """What choosing gains: one row a rule, its pick's student accuracy, regret and hits, each a mean over groups; best first.

    A rule is a metric (its best teacher in the claimed direction; ties are shared), 'best', 'random' (the mean over teachers) and
    'no teacher' (the CE baseline, where there is one).  regret: points below the best teacher's student, as a share of 1.
    """
    rules: dict[str, list] = {}
    alone = students[students.strategy == "CE"].groupby(["dataset", "student"]).accuracy.mean()
    for (dataset, student, *_), group in points.groupby(GROUP, sort=True):
        best = group.accuracy.max()
        picked = {claim.label: group.accuracy[(score := group[name] * claim.direction) == score.max()].mean() for name, claim in METRICS.items()}
        for rule, value in (picked | {"best": best, "random": group.accuracy.mean(), "no teacher": alone.get((dataset, student), math.nan)}).items():
            rules.setdefault(rule, []).append((value, best - value, value == best))
    rows = [{"rule": rule} | dict(zip(("accuracy", "regret", "hit"), np.mean(np.array(values, float), axis=0))) for rule, values in rules.items()]
    return pd.DataFrame(rows).dropna().sort_values("accuracy", ascending=False, kind="stable").reset_index(drop=True)


def answer(picks: pd.DataFrame) -> str:
    """What choosing gains in one sentence."""
    by = picks.set_index("rule").accuracy
    rules = {"R12": "picked by R12", "TAC": "by TAC", "SSP": "by SSP", "random": "at random", "best": "by the best teacher"}
    parts = [f"{text} {by[rule]:.1%}" for rule, text in rules.items() if rule in by]
    return "Mean accuracy of the student whose teacher is " + ", ".join(parts) + "."


def headline(correlations: pd.DataFrame) -> pd.DataFrame:
    """One row a metric over all groups: groups, mean signed and absolute rho, share of strong groups; best signed first."""
    strong = (correlations.strength == "strong").astype(float).where(correlations.rho.notna())
    table = correlations.assign(strong=strong).groupby("metric").agg(
        groups=("rho", "count"), teachers=("n", "max"), mean_rho=("rho", "mean"), mean_abs_rho=("abs_rho", "mean"),
        agrees=("agrees", "mean"), strong=("strong", "mean"))
    return table.sort_values("agrees", ascending=False).reset_index()


def _pair(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}: expected two of the same length")
    if np.isnan(x).any() or np.isnan(y).any():
        return x[:0], y[:0]
    return x, y


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean."""
    return pd.Series(values).rank().to_numpy()


def _standard(ranks: np.ndarray) -> np.ndarray:
    centred = ranks - ranks.mean()
    return centred / np.sqrt(centred @ centred)


def _orders(n: int) -> np.ndarray:
    """All orders of n: (n!, n)."""
    return np.array(list(itertools.permutations(range(n))), dtype=np.int8)
