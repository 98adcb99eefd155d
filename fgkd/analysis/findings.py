"""What a study says next to how well metrics rank teachers.

Whether distillation paid at all, whether the answer depends on the temperature and weight of KD, whether R12
follows how far a teacher's training has come, and which teachers make its ranking.  As in `blocks`, a mean
has an interval over datasets where there are six of them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from fgkd.analysis.blocks import MIN_DATASETS, mean_interval, shared_error
from fgkd.analysis.groups import GROUP, rhos
from fgkd.analysis.selection import shares, with_errors
from fgkd.metrics.claims import METRICS, claims_in
from fgkd.study import RECIPES, Study

PAPER = ("ratio12", "tac", "ssp")
GAINS = {"gain": "all teachers", "r12": "R12's pick", "best": "the best teacher in hindsight"}
PAY = ["by", "value", "groups", "datasets", "alone"]
PAY += [*itertools.chain(*((kind, f"{kind}_low", f"{kind}_high") for kind in GAINS)), "over"]
TEMPERATURES = [
    *("loss", "temperature", "beta", "metric", "groups", "datasets", "kd", "own", "difference", "low", "high")
]
PROGRESS = ["recipe", "against", "datasets", "teachers", "rho", "low", "high", "median"]


def distillation_gains(points: pd.DataFrame, students: pd.DataFrame, data: pd.DataFrame) -> pd.DataFrame:
    """What students gain over the same one without a teacher, CE (pay.csv).

    Intervals are `blocks.mean_interval` over datasets, what other datasets would give; below six they say
    what other images, and seeds where there are several, of these datasets would give.  A difference of two
    accuracies p and q on N images has the variance (p (1 - p) + q (1 - q)) / N, more than one on the same
    images has where students agree; the errors of teachers and groups of a dataset add up as one.

    points: as returned by `groups.join_students_with_metrics`
    students, data: as returned by `records.collect`
    """
    gains = _group_gains(with_errors(points, data), students, data.set_index("dataset").test)
    rows = [_summarize_gains("all", "all", gains)] if len(gains) else []
    for by in ("strategy", "loss", "dataset", "student"):
        rows += [_summarize_gains(by, value, part) for value, part in gains.groupby(by, sort=True)]
    return pd.DataFrame(rows, columns=PAY)


def temperatures(correlations: pd.DataFrame, study: Study) -> pd.DataFrame:
    """R12, TAC and SSP under T and beta other than the study's (temperatures.csv).

    No row where no loss is KD with its own.

    correlations: as returned by `groups.correlations`
    """
    rows = []
    for name, loss in study.losses.items():
        if loss.loss != "kd":
            continue
        kd = study.kd(loss)
        for metric in PAPER:
            values = correlations[correlations.metric == metric]
            wide = values.pivot(index=GROUP[:3], columns="loss", values="agrees")
            both = wide.reindex(columns=["kd", name]).dropna()
            datasets = both.index.get_level_values("dataset")
            difference = both[name] - both.kd
            bounds = mean_interval(difference, datasets)
            means = [both.kd.mean(), both[name].mean(), difference.mean()]
            own = [name, kd.temperature, kd.beta, metric, len(both), datasets.nunique()]
            rows.append([*own, *means, *bounds])
    return pd.DataFrame(rows, columns=TEMPERATURES)


def training_progress(metrics: pd.DataFrame) -> pd.DataFrame:
    """Does R12 follow how far training has come (progress.csv)?

    An undertrained teacher has a small R12, being unsure of everything.

    metrics: as returned by `records.with_tac`
    """
    rows = []
    for recipe, banks in teacher_means(metrics).groupby("recipe", sort=False):
        for against in ("train_accuracy", "tac"):
            known = rhos(banks, ["dataset"], "ratio12", against).dropna()
            bounds = mean_interval(known, known.index.get_level_values("dataset"))
            of_median = rhos(banks, ["dataset"], "ratio12_median", against).mean()
            teachers = banks.dataset.value_counts().max()
            rows.append([recipe, against, len(known), teachers, known.mean(), *bounds, of_median])
    return pd.DataFrame(rows, columns=PROGRESS)


def teacher_means(metrics: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of all metrics: one row per dataset, recipe and teacher.

    CAL and TGDA students learn from the same teacher, which is one row here.

    metrics: as returned by `records.with_tac`
    """
    keys = ["dataset", "recipe", "teacher"]
    claims = claims_in(metrics)
    names = [name for name, claim in claims.items() if not (claim.begun or claim.afterwards)]
    names.append("ratio12_nonpositive")
    rows = metrics.reindex(columns=["dataset", "strategy", "teacher", "seed", *names])
    rows = rows.assign(recipe=rows.strategy.map(RECIPES)).drop_duplicates([*keys, "seed"])
    return rows.groupby(keys, sort=False)[names].mean().reset_index()


def mixes(points: pd.DataFrame, traits: list[str]) -> pd.DataFrame:
    """Which teachers make the ranking: all, and each part with a common trait (mixes.csv)?

    Where networks have several norms other than BatchNorm, 'without BatchNorm' is a part too.

    points: as returned by `records.points`
    traits: columns of it
    """
    rows = [_describe_part("all", "all", points)]
    for trait in traits:
        known = points[points[trait].notna() & (points[trait] != "")]
        if known[trait].nunique() > 1:
            rows += [_describe_part(trait, value, part) for value, part in known.groupby(trait, sort=True)]
        if trait == "norm":
            without = known[known.norm != "BatchNorm"]
            if without.norm.nunique() > 1:
                rows.append(_describe_part(trait, "without BatchNorm", without))
    return pd.DataFrame(rows)


def _group_gains(points: pd.DataFrame, students: pd.DataFrame, test_images: pd.Series) -> pd.DataFrame:
    """One row per group that has a baseline: `alone`, gains, and their standard errors."""
    without_teacher = students[students.strategy == "CE"].groupby(["dataset", "student"]).accuracy
    alone = without_teacher.agg(["mean", "var", "size"])
    rows = []
    for key, group in points.groupby(GROUP, sort=True):
        if key[:2] not in alone.index:
            continue
        baseline, variance, seeds = alone.loc[key[:2]]
        of_baseline = baseline * (1 - baseline) / test_images[key[0]]
        of_baseline += np.nan_to_num(variance / seeds)
        errors = np.sqrt(group.error**2 + of_baseline)
        row = dict(zip(GROUP, key, strict=True)) | {"alone": baseline}
        scores = {"gain": 0 * group.accuracy, "r12": -group.ratio12, "best": group.accuracy}
        for kind, score in scores.items():
            share = shares(score.to_numpy())
            row |= {kind: share @ group.accuracy - baseline, f"{kind}_error": share @ errors}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*GROUP, "alone", *GAINS, *(f"{kind}_error" for kind in GAINS)])


def _summarize_gains(by: str, value: str, gains: pd.DataFrame) -> dict:
    """A row of `distillation_gains`, of the rows of some groups."""
    datasets = gains.dataset.nunique()
    row = {"by": by, "value": value, "groups": len(gains), "datasets": datasets, "alone": gains.alone.mean()}
    row["over"] = "data sets" if datasets >= MIN_DATASETS else "test images"
    for kind in GAINS:
        defined = gains[gains[kind].notna()]
        mean = defined[kind].mean()
        low, high = mean_interval(defined[kind], defined.dataset)
        if datasets < MIN_DATASETS and len(defined):
            reach = shared_error(defined[f"{kind}_error"], defined.dataset)
            low, high = mean - reach, mean + reach
        row |= {kind: mean, f"{kind}_low": low, f"{kind}_high": high}
    return row


def _describe_part(trait: str, value: str, points: pd.DataFrame) -> dict:
    """A row of `mixes`, of the points of some teachers."""
    agrees = {name: METRICS[name].direction * rhos(points, GROUP, name, "accuracy") for name in PAPER}
    return {
        "trait": trait,
        "value": value,
        "teachers": points.teacher.nunique(),
        "accuracy": points.accuracy.mean(),
        "median": points.ratio12_median.mean(),
        "parameters": points.parameters.mean() / 1e6,
        **{name: values.mean() for name, values in agrees.items()},
    }
