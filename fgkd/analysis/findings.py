"""What a study says beside how well metrics rank teachers.

Whether distillation paid at all, whether the answer depends on the temperature and weight of KD, whether R12
follows how far a teacher's training has come, and which teachers make its order.  As in `stats`, what is said
of a mean has an interval over data sets where there are six of them.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from fgkd.analysis import correlation
from fgkd.metrics.claims import METRICS
from fgkd.study import RECIPES, Study

PAPER = ("ratio12", "tac", "ssp")
GAINS = {"gain": "all teachers", "r12": "R12's pick", "best": "the best teacher in hindsight"}


def pay(points: pd.DataFrame, students: pd.DataFrame, data: pd.DataFrame) -> pd.DataFrame:
    """Did distillation pay?  What students gain over the same one without a teacher (CE), as a share of 1.

    A row for all groups and for each strategy, loss, data set and student (`by`, `value`): `alone`, the
    accuracy without a teacher; `gain`, that of a student less that, the mean over teachers; `r12`, of the
    teacher that R12 picks (equal ones share); `best`, of the best teacher, which the same test images name
    afterwards and is therefore too high.  No row where the study has no student without a teacher.

    Each with a 95 % interval (`_low`, `_high`), by `over`.  'data sets': `correlation.mean_interval`, what other
    data sets would give.  'test images', below six: what other images, and seeds where there are several,
    of these data sets would give.  A difference of two accuracies p and q on N images has the variance
    (p (1 - p) + q (1 - q)) / N, more than one on the same images has where students agree; the errors of
    teachers and groups of a data set, which share its images, add up as if they were one.

    points: as of `correlation.join_students_with_metrics`; students, data: as of `tables.collect`.
    """
    groups = _gains(points, students, data.set_index("dataset").test)
    rows = [_paid("all", "all", groups)] if len(groups) else []
    for by in ("strategy", "loss", "dataset", "student"):
        rows += [_paid(by, value, members) for value, members in groups.groupby(by, sort=True)]
    bounds = [name for kind in GAINS for name in (kind, f"{kind}_low", f"{kind}_high")]
    return pd.DataFrame(rows, columns=["by", "value", "groups", "datasets", "alone", *bounds, "over"])


def paid(table: pd.DataFrame) -> str:
    """The first row of a table of `pay` in a sentence, or why there is none."""
    if not len(table):
        lacking = "no student was trained without a teacher (`baseline: true`)"
        return f"Whether distillation paid it cannot say: {lacking}."
    row = table.iloc[0]
    verdict = (
        "Distillation paid"
        if row.gain_low > 0
        else "Distillation did harm"
        if row.gain_high < 0
        else "Whether distillation paid these data cannot tell"
    )
    parts = [
        f"{100 * row[kind]:+.1f} points from {words} "
        f"({100 * row[f'{kind}_low']:+.1f} to {100 * row[f'{kind}_high']:+.1f})"
        for kind, words in GAINS.items()
        if not math.isnan(row[kind])
    ]
    gains = ", ".join(parts)
    return f"{verdict}: against no teacher students have {gains}, with 95 % intervals over {row.over}."


def temperatures(correlations: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Does the answer depend on T and beta?  A row a loss that is KD with its own ones, and metric.

    loss, its temperature and beta; metric of the paper; groups and datasets that have both losses; `kd` and
    `own`: mean rho in the claimed direction with the study's T and beta, and with the loss's own;
    `difference`, own less kd, with its 95 % interval over data sets (low, high; NaN below six).  No row where
    no loss is such a one.
    """
    rows = []
    for name, loss in study.losses.items():
        for metric in PAPER if loss.loss == "kd" else ():
            values = correlations[correlations.metric == metric]
            wide = values.pivot(index=correlation.GROUP[:3], columns="loss", values="agrees")
            both = wide.reindex(columns=["kd", name]).dropna()
            sets, difference = both.index.get_level_values("dataset"), both[name] - both.kd
            low, high = correlation.mean_interval(difference, sets)
            how = study.kd(loss)
            names = (name, how.temperature, how.beta, metric, len(both), sets.nunique())
            rows.append((*names, both.kd.mean(), both[name].mean(), difference.mean(), low, high))
    columns = ["loss", "temperature", "beta", "metric", "groups", "datasets"]
    return pd.DataFrame(rows, columns=[*columns, "kd", "own", "difference", "low", "high"])


def depends(table: pd.DataFrame, study: Study) -> str:
    """What a table of `temperatures` says of R12, a sentence a loss; what lacks where it has no row."""
    if not len(table):
        return "Whether the answer depends on T and beta it cannot say: no loss is KD with its own ones."
    common, said = study.distillation, []
    for row in table[table.metric == "ratio12"].itertuples():
        if not row.groups:
            said.append(f"Of {row.loss} no group has a rho of R12 beside one of kd.")
            continue
        changed = (row.low > 0) | (row.high < 0)
        verdict = (
            "The answer depends on T and beta"
            if changed
            else "Cannot tell whether the answer depends on T and beta"
        )
        bounds = "" if math.isnan(row.low) else f", 95 % {row.low:+.2f} to {row.high:+.2f}"
        said.append(
            f"{verdict}: R12 agrees by {row.kd:+.2f} at T {common.temperature:g}, beta {common.beta:g} and "
            f"by {row.own:+.2f} at T {row.temperature:g}, beta {row.beta:g} ({row.difference:+.2f}{bounds}; "
            f"{row.datasets} data set{'s' * (row.datasets > 1)})."
        )
    return " ".join(said)


def progress(measured: pd.DataFrame) -> pd.DataFrame:
    """Does R12 follow how far training has come?

    An undertrained teacher has a small one, being unsure of everything.

    measured: banks' metrics as of `tables.with_tac`.  A row a recipe and measure (`against`: train_accuracy
    on the students' views, or tac): `datasets` and `teachers` (the most), rho of R12 with it over the
    teachers of a data set, the mean over data sets with its 95 % interval (low, high; NaN below six),
    `median`: the same of R12's median.  Near +1, a small R12 says that a teacher is not yet trained.
    """
    rows = []
    for recipe, banks in trained(measured).groupby("recipe", sort=False):
        for against in ("train_accuracy", "tac"):
            found = {
                name: pd.Series(
                    {d: correlation.spearman(t[name], t[against]) for d, t in banks.groupby("dataset")}
                ).dropna()
                for name in ("ratio12", "ratio12_median")
            }
            rhos = found["ratio12"]
            bounds = correlation.mean_interval(rhos, rhos.index)
            most = banks.groupby("dataset").size().max()
            rows.append(
                (recipe, against, len(rhos), most, rhos.mean(), *bounds, found["ratio12_median"].mean())
            )
    return pd.DataFrame(
        rows, columns=["recipe", "against", "datasets", "teachers", "rho", "low", "high", "median"]
    )


def trained(measured: pd.DataFrame) -> pd.DataFrame:
    """The banks of `tables.with_tac`, a row a data set, recipe and teacher: means over seeds of all metrics.

    CAL and TGDA students learn from the same teacher, which is one row here.
    """
    before = [name for name, claim in METRICS.items() if not (claim.begun or claim.afterwards)]
    names, keys = [*before, "ratio12_nonpositive"], ["dataset", "recipe", "teacher"]
    rows = measured.assign(recipe=measured.strategy.map(RECIPES)).reindex(columns=[*keys, "seed", *names])
    return rows.drop_duplicates([*keys, "seed"]).groupby(keys, sort=False)[names].mean().reset_index()


def mixes(points: pd.DataFrame, traits: list[str]) -> pd.DataFrame:
    """Which teachers make the order?  A row for all, and a part of them that share a trait's value.

    points: as of `tables.points`.  trait, value, the number of `teachers`, their students' `accuracy`, R12's
    `median` and million `parameters`, means over groups; and for the paper's metrics the mean rho in the
    claimed direction among these teachers alone (NaN of fewer than three).  Where networks have several norms
    other than BatchNorm, 'without BatchNorm' is a part too.
    """
    parts = [("all", "all", points)]
    for trait in traits:
        known = points[points[trait].notna() & (points[trait] != "")]
        if known[trait].nunique() > 1:
            parts += [(trait, value, members) for value, members in known.groupby(trait, sort=True)]
        if trait == "norm" and (without := known[known.norm != "BatchNorm"]).norm.nunique() > 1:
            parts.append((trait, "without BatchNorm", without))
    rows = []
    for trait, value, part in parts:
        means = part[["accuracy", "ratio12_median", "parameters"]].mean()
        agrees = correlation.agreement(part)[list(PAPER)]
        size = means.parameters / 1e6
        rows.append(
            (trait, value, part.teacher.nunique(), means.accuracy, means.ratio12_median, size, *agrees)
        )
    return pd.DataFrame(
        rows, columns=["trait", "value", "teachers", "accuracy", "median", "parameters", *PAPER]
    )


def _gains(points: pd.DataFrame, students: pd.DataFrame, tests: pd.Series) -> pd.DataFrame:
    """A row a group that has a student without a teacher: `alone`, gains, and their standard errors."""
    alone = (
        students[students.strategy == "CE"]
        .groupby(["dataset", "student"])
        .accuracy.agg(["mean", "var", "size"])
    )
    rows = []
    for key, group in points.groupby(correlation.GROUP, sort=True):
        if key[:2] not in alone.index:
            continue
        without, spread, seeds = alone.loc[key[:2]]
        reached, images = group.accuracy.to_numpy(), tests[key[0]]
        luck = (group.accuracy_sd**2 / group.seeds).fillna(0).to_numpy() + np.nan_to_num(spread / seeds)
        errors = np.sqrt((reached * (1 - reached) + without * (1 - without)) / images + luck)
        smallest = (group.ratio12 == group.ratio12.min()).to_numpy()
        weights = {"gain": np.ones(len(group)), "r12": smallest, "best": reached == reached.max()}
        row = dict(zip(correlation.GROUP, key)) | {"alone": without}
        for kind, weight in weights.items():
            share = weight / weight.sum() if weight.any() else np.full(len(group), math.nan)
            row |= {kind: share @ reached - without, f"{kind}_error": share @ errors}
        rows.append(row)
    kinds = [name for kind in GAINS for name in (kind, f"{kind}_error")]
    return pd.DataFrame(rows, columns=[*correlation.GROUP, "alone", *kinds])


def _paid(by: str, value: str, groups: pd.DataFrame) -> dict:
    enough = groups.dataset.nunique() >= 6
    row = {
        "by": by,
        "value": value,
        "groups": len(groups),
        "datasets": groups.dataset.nunique(),
        "alone": groups.alone.mean(),
        "over": "data sets" if enough else "test images",
    }
    for kind in GAINS:
        known = groups[groups[kind].notna()]
        mean, (low, high) = known[kind].mean(), correlation.mean_interval(known[kind], known.dataset)
        if not enough and len(known):
            of_sets = known.groupby("dataset")[f"{kind}_error"].sum()
            reach = 1.959964 * math.sqrt((of_sets**2).sum()) / len(known)
            low, high = mean - reach, mean + reach
        row |= {kind: mean, f"{kind}_low": low, f"{kind}_high": high}
    return row
