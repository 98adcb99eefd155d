"""Students, metrics and correlations of made-up studies."""

import pandas as pd

from fgkd.analysis import correlation, groups
from fgkd.metrics import METRICS


def metric_rows(dataset="birds", strategy="FT", teachers="abc", seed=0, **values):
    """A row a teacher; metrics that are not given are the same for all."""
    rows = [
        {"dataset": dataset, "teacher": t, "strategy": strategy, "seed": seed} | dict.fromkeys(METRICS, 1.0)
        for t in teachers
    ]
    for name, column in values.items():
        for row, value in zip(rows, column, strict=True):
            row[name] = value
    return pd.DataFrame(rows)


def student_rows(accuracies, *, dataset="birds", strategy="FT", student="small", seed=0, baseline=None):
    rows = [
        {
            "dataset": dataset,
            "student": student,
            "strategy": strategy,
            "loss": "kd",
            "teacher": t,
            "accuracy": a,
        }
        for t, a in accuracies.items()
    ]
    if baseline is not None:
        rows.append(
            {
                "dataset": dataset,
                "student": student,
                "strategy": "CE",
                "loss": "ce",
                "teacher": "none",
                "accuracy": baseline,
            }
        )
    return pd.DataFrame(rows, columns=[*groups.GROUP, "teacher", "accuracy"]).assign(seed=seed, agreement=0.5)


def rhos(x, y):
    """Spearman's rho along the last axis, no ties."""
    n = x.shape[-1]
    x, y = (a.argsort(-1).argsort(-1) - (n - 1) / 2 for a in (x, y))
    return (x * y).sum(-1) / ((n**3 - n) / 12)


def correlation_rows(values):
    """Rows as of `groups.correlations`, of {(dataset, student, strategy, loss, metric): rho}."""
    rows = [
        dict(zip([*groups.GROUP, "metric"], key, strict=True))
        | {
            "n": 8,
            "rho": rho,
            "abs_rho": abs(rho),
            "agrees": -rho if key[-1] == "ratio12" else rho,
            "strength": correlation.strength(rho),
        }
        for key, rho in values.items()
    ]
    return pd.DataFrame(rows)
