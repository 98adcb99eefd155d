"""The tables of arXiv 2605.15689, and what can be recomputed from them alone: counts, what chance gives, intervals and p.

The paper counts and averages abs(rho), which a wrong sign raises as well.  Signed are only the one group whose points it shows
(`cub_group`) and the accuracies of picked teachers' students (`comparisons`), since a pick follows the claimed direction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fgkd.analysis import correlation
from fgkd.study import RECIPES

FOLDER = Path(__file__).with_name("published")
# 8 data sets x 3 students x 4 strategies x KD, and 8 data sets x 4 further losses for one student
GROUPS = {"all": 128, "CAL": 24, "TGDA": 24}
# what every study is to decide
REGISTERED = ("R12: mean signed rho", "R12 - SSP: mean signed rho", "R12 - TAC: mean signed rho")
LEVEL = 0.05 / len(REGISTERED)
# data sets without which no p can be small enough, or no interval made
NEEDED = {"registered": 7, "exploratory": 6}


def published(name: str) -> pd.DataFrame:
    """A published table as printed, percent or Spearman's rho: strength, correlation_by_dataset, lcnet035_tgda_accuracy,
    cub_resnet18_tgda or cal_teacher_accuracy."""
    known = sorted(file.stem for file in FOLDER.glob("*.csv"))
    if name not in known:
        raise ValueError(f"there is no published table {name!r}: expected one of {', '.join(known)}")
    return pd.read_csv(FOLDER / f"{name}.csv")


def strength_counts() -> pd.DataFrame:
    """How many groups the printed shares stand for: a row a scope and strength, its `groups`, the number of them for tac, ssp and
    ratio12, and `chance`, the number expected of 8 unrelated teachers.  Scope 'others' is all but CAL and TGDA: what these leave."""
    table = published("strength")
    metrics, table["groups"] = ["tac", "ssp", "ratio12"], table.scope.map(GROUPS)
    table[metrics] = table[metrics].mul(table.groups / 100, axis=0).round().astype(int)
    strong = table[table.strength == "strong"].set_index("scope")[["groups", *metrics]]
    others = 2 * strong.loc["all"] - strong.sum()
    table = pd.concat(
        [table, pd.DataFrame([{"scope": "others", "strength": "strong"} | others.to_dict()])],
        ignore_index=True,
    )
    return table[["scope", "strength", "groups", *metrics]].assign(
        chance=table.groups * table.strength.map(correlation.null_summary(8))
    )


def comparisons() -> pd.DataFrame:
    """R12 against TAC and SSP, a row a quantity and rival: on how many data sets it is better, equal and worse, and the mean difference
    with its interval, p of swapping the two on whole data sets, and Holm's p.

    Quantities: mean abs(rho) of a data set's groups, and accuracy in % of the LCNet-035 student (TGDA) whose teacher is picked.
    """
    parts = []
    for quantity, name in {
        "mean abs_rho": "correlation_by_dataset",
        "accuracy of the pick": "lcnet035_tgda_accuracy",
    }.items():
        table = published(name).set_index("dataset").drop("average")
        rows = []
        for rival in ("tac", "ssp"):
            difference = (table.ratio12 - table[rival]).round(9)
            low, high = correlation.mean_interval(difference, table.index)
            better, equal, worse = ((np.sign(difference) == sign).sum() for sign in (1, 0, -1))
            rows.append(
                {
                    "quantity": quantity,
                    "rival": rival,
                    "better": better,
                    "equal": equal,
                    "worse": worse,
                    "difference": difference.mean(),
                    "low": low,
                    "high": high,
                    "p": correlation.swap_p(difference, table.index),
                }
            )
        parts.append(pd.DataFrame(rows).assign(p_holm=lambda part: correlation.holm(part.p)))
    return pd.concat(parts, ignore_index=True)


def cub_group() -> pd.DataFrame:
    """The group whose points are published (CUB, ResNet-18, TGDA, 8 teachers): rho of R12 and of the CAL teachers' accuracy (tac), with
    interval, exact p and tau, a row a metric.

    Two students were read off the figure as equal, which leaves -0.862; the printed -0.905 is that of the order in which the claim
    holds for these two (row 'ratio12, untied').
    """
    points = published("cub_resnet18_tgda").merge(
        published("cal_teacher_accuracy"), on="teacher", validate="one_to_one"
    )
    reached, rows = points.student_accuracy, []
    for name, x, y in (
        ("ratio12", points.ratio12, reached),
        ("ratio12, untied", points.ratio12, reached - 1e-6 * points.ratio12),
        ("tac", points.cub, reached),
    ):
        rho = correlation.spearman(x, y)
        low, high = correlation.interval(rho, len(points))
        rows.append(
            {
                "metric": name,
                "n": len(points),
                "rho": rho,
                "low": low,
                "high": high,
                "p": correlation.exact_p(x, y),
                "tau": correlation.kendall(x, y),
            }
        )
    return pd.DataFrame(rows)


def claims(
    correlations: pd.DataFrame, choices: pd.DataFrame, students: pd.DataFrame, points: pd.DataFrame
) -> pd.DataFrame:
    """What the paper claims, and what a study says of it: a row a claim, a quantity that is above 0 where the claim holds.

    correlations, choices: tables as of `correlation.correlations` and `correlation.selection_outcomes`; students: the study's
    table of them, which names the `model` of each; points: as of `tables.points`, with the `family` of
    each teacher. Columns: `claim`, `family`, `published` (NaN where the paper prints no such number),
    `ours` with its 95 % interval over data sets (`low`, `high`), `groups`, `datasets`, the number of them
    that a verdict needs where there are fewer (`needed`), `p` of swapping whole data sets, `p_holm`,
    `verdict` and `detectable`: next to each registered `cannot tell` of enough data sets, the smallest
    true mean that four of five such studies would find (`correlation.detectable`, from the spread of the
    study's own data sets, at the level of the first of three claims by Holm;
    empty where that is more than there can be).

    Like is compared with like: the printed shares of strong groups of CAL and of TGDA are of students taught
    by KD alone (loss kd), and the printed accuracies of picks those of LCNet-035 with it.  So are ours; only
    a study in which no student's model is lcnet_035 takes all its students for the latter.

    Family `registered` is what was to be tested before any study ran: R12's sign, and R12 against either
    rival in signed rho, which a wrong sign does not raise.  Its p are corrected for their number (Holm 1979),
    and a claim holds or fails where `p_holm` is at most 5 %: among studies in which nothing is correlated, at
    most 5 % show a single verdict.  Three p need seven data sets for that, since the smallest p of D is
    2 / 2^D; with fifteen it would take ten, more than the paper has.

    The other rows are `exploratory`, each with its own interval: where that leaves 0 out a row `suggests so`
    or `suggests not`, which in one study out of two it does for some row by chance, so that it calls for
    further data sets and decides nothing.  Else the verdict is `cannot tell`, as always below six data sets.
    """
    quantities = _quantities(correlations, choices, students) + _sizes(correlations, points)
    table = pd.DataFrame([_claim(*row) for row in quantities])
    registered = table.claim.isin(REGISTERED)
    least = np.where(registered, NEEDED["registered"], NEEDED["exploratory"])
    table["needed"] = pd.Series(least).where(table.datasets < least)
    table["family"] = np.where(registered, "registered", "exploratory")
    table["p_holm"] = correlation.holm(table.p.where(registered))
    decided = np.where(registered, table.p_holm <= 0.05, (table.low > 0) | (table.high < 0))
    above = np.where(registered, "holds", "suggests so")
    below = np.where(registered, "fails", "suggests not")
    table["verdict"] = np.select(
        [decided & (table.ours > 0), decided & (table.ours < 0)], [above, below], "cannot tell"
    )
    unseen = registered & (table.verdict == "cannot tell") & table.needed.isna()
    table["detectable"] = [
        _seen(row.claim, row.spread, row.datasets) if sought else np.nan
        for row, sought in zip(table.itertuples(), unseen)
    ]
    found = ["published", "ours", "low", "high", "groups", "datasets", "needed", "p", "p_holm", "verdict"]
    return table[["claim", "family", *found, "detectable"]]


def power(correlations: pd.DataFrame) -> pd.DataFrame:
    """Which mean signed rho, or difference of two, could a study of so many data sets and teachers see?

    A row a registered claim, number of `datasets` and of `teachers` (the study's own, and twice as many):
    `detectable` as of `correlation.detectable`, at the level of the first of three claims by Holm.  `spread`:
    the standard deviation of the data sets' differences, by `source` the study's own, or 'chance' where
    it has fewer than three: that of one group of unrelated teachers, 1 / sqrt(n - 1), for a difference of
    two metrics sqrt(2) times that.  With twice the teachers it is taken to shrink as a rho's does, which
    is the best case.  Empty where it would have to be larger than a rho, or a difference of two, can be.
    No row where no group has a rho.
    """
    agrees = correlations.pivot(index=correlation.GROUP, columns="metric", values="agrees")
    teachers, rows = correlations.n.max(), []
    rivals = {name: agrees.ratio12 - agrees[rival] for name, rival in zip(REGISTERED[1:], ("ssp", "tac"))}
    for claim, values in ({REGISTERED[0]: agrees.ratio12} | rivals).items() if teachers >= 3 else ():
        own = values.groupby("dataset").mean().dropna()
        enough = len(own) >= 3
        chance = np.sqrt((1 if claim == REGISTERED[0] else 2) / (teachers - 1))
        spread = own.std() if enough else chance
        for n in (teachers, 2 * teachers):
            smaller = spread * np.sqrt((teachers - 1) / (n - 1))
            source = "this study" if enough else "chance"
            rows += [(claim, d, n, smaller, source, _seen(claim, smaller, d)) for d in (7, 8, 10, 14, 20)]
    return pd.DataFrame(rows, columns=["claim", "datasets", "teachers", "spread", "source", "detectable"])


def _seen(claim: str, spread: float, datasets: int) -> float:
    """What a study could see of a registered claim; NaN where that is more than a rho, or two, can differ
    by."""
    size = correlation.detectable(spread, datasets, level=LEVEL)
    return size if size <= (1 if claim == REGISTERED[0] else 2) else np.nan


def _quantities(
    correlations: pd.DataFrame, choices: pd.DataFrame, students: pd.DataFrame
) -> list[tuple[str, float, pd.Series]]:
    """Each claim, its printed value, and its quantity in each group of the study."""
    strong = published("strength").query("strength == 'strong'").set_index("scope")
    rho = published("correlation_by_dataset").set_index("dataset").loc["average"]
    picked = published("lcnet035_tgda_accuracy").set_index("dataset").loc["average"]
    measured = correlations.assign(
        strong=(correlations.strength == "strong").where(correlations.rho.notna()).astype(float)
    )
    by_metric = {
        value: measured.pivot(index=correlation.GROUP, columns="metric", values=value)
        for value in ("agrees", "abs_rho", "strong")
    }
    agrees, size, is_strong = by_metric.values()
    n = measured.set_index([*correlation.GROUP, "metric"]).n.xs("ratio12", level="metric")
    chance = n.map(lambda n: correlation.null_summary(n)["abs_rho"] if n >= 3 else np.nan)
    rows = [
        ("R12: mean signed rho", np.nan, agrees.ratio12),
        (
            "R12 - chance: mean |rho|",
            rho.ratio12 - correlation.null_summary(8)["abs_rho"],
            size.ratio12 - chance,
        ),
    ]
    for rival, name in {"ssp": "SSP", "tac": "TAC"}.items():
        share, ours = (strong.ratio12 - strong[rival]) / 100, is_strong.ratio12 - is_strong[rival]
        rows += [
            (f"R12 - {name}: mean |rho|", rho.ratio12 - rho[rival], size.ratio12 - size[rival]),
            (f"R12 - {name}: mean signed rho", np.nan, agrees.ratio12 - agrees[rival]),
            (f"R12 - {name}: share of strong groups", share["all"], ours),
        ]
        rows += [
            (
                f"R12 - {name}: share of strong groups, {scope}",
                share[scope],
                ours[_of(ours, {"strategy": [scope], "loss": ["kd"]})],
            )
            for scope in ("CAL", "TGDA")
        ]
        edge = agrees.ratio12 - agrees[rival]
        attentive, plain = (_by_student(edge, strategies) for strategies in (["CAL", "TGDA"], ["FZ", "FT"]))
        rows += [
            (f"R12 - {name}: mean signed rho, CAL and TGDA", np.nan, attentive),
            (f"R12 - {name}: signed rho, CAL, TGDA less FZ, FT", np.nan, attentive - plain),
        ]
    reached = choices.pivot(index=correlation.GROUP, columns="rule", values="accuracy").reindex(
        columns=["R12", "SSP", "TAC", "no teacher"]
    )
    rows += [
        (f"R12 - {rule}: accuracy of the pick", np.nan, reached["R12"] - reached[rule])
        for rule in reached.columns[1:]
    ]
    reached = reached[
        _of(reached, {"strategy": ["TGDA"], "loss": ["kd"], "student": _printed_students(students)})
    ]
    rows += [
        (
            f"R12 - {rule}: accuracy of the pick, TGDA",
            (picked.ratio12 - picked[column]) / 100,
            reached["R12"] - reached[rule],
        )
        for rule, column in {"SSP": "ssp", "TAC": "tac", "no teacher": "ce"}.items()
    ]
    return rows


def _sizes(correlations: pd.DataFrame, points: pd.DataFrame) -> list[tuple[str, float, pd.Series]]:
    """That smaller teachers teach better and have the smaller R12, of all teachers and inside families.

    Of R12 a value a data set and recipe, since the students of a teacher share it.
    """
    by_size = correlations[correlations.metric == "parameters"].set_index(correlation.GROUP).agrees
    related = points[points.family != ""]
    every, kin = (
        rows.assign(recipe=rows.strategy.map(RECIPES)).drop_duplicates(["dataset", "recipe", "teacher"])
        for rows in (points, related)
    )
    return [
        ("smaller teachers: rho with student accuracy", np.nan, -by_size),
        (
            "smaller teachers: rho of size and R12",
            np.nan,
            _rho(every, ["dataset", "recipe"], "ratio12", None),
        ),
        (
            "smaller of a family: rho with student accuracy",
            np.nan,
            -_rho(related, correlation.GROUP, "accuracy", "family"),
        ),
        (
            "smaller of a family: rho of size and R12",
            np.nan,
            _rho(kin, ["dataset", "recipe"], "ratio12", "family"),
        ),
    ]


def _rho(rows: pd.DataFrame, by: list[str], name: str, within: str | None) -> pd.Series:
    """Spearman's rho of `parameters` and `name` for each group of rows, inside the families of `within`."""
    found = {
        key: correlation.spearman(group.parameters, group[name])
        if within is None
        else correlation.spearman_within(group.parameters, group[name], group[within])
        for key, group in rows.groupby(by)
    }
    return pd.Series(
        found, pd.MultiIndex.from_arrays([*zip(*found)] or [[]] * len(by), names=by), dtype=float
    )


def _by_student(values: pd.Series, strategies: list[str]) -> pd.Series:
    """Means over these strategies, by data set and student, of students taught by KD alone."""
    chosen = values[_of(values, {"strategy": strategies, "loss": ["kd"]})]
    return chosen.groupby(["dataset", "student"]).mean()


def _printed_students(students: pd.DataFrame) -> list[str]:
    """The students whose model is LCNet-035; all where there is none."""
    printed = students.model.str.partition(".")[0] == "lcnet_035"
    return (students[printed] if printed.any() else students).student.unique().tolist()


def _of(values: pd.DataFrame | pd.Series, allowed: dict[str, list[str]]) -> np.ndarray:
    """Which groups of the index have an allowed value at every level that is named."""
    return np.all(
        [values.index.get_level_values(level).isin(names) for level, names in allowed.items()], axis=0
    )


def _claim(claim: str, printed: float, values: pd.Series) -> dict:
    values = values.dropna()
    sets = values.index.get_level_values("dataset")
    low, high = correlation.mean_interval(values, sets)
    p = np.nan if sets.nunique() < 6 else correlation.swap_p(values, sets)
    return {
        "claim": claim,
        "published": printed,
        "ours": values.mean(),
        "low": low,
        "high": high,
        "groups": len(values),
        "spread": values.groupby(sets).mean().std(),
        "datasets": sets.nunique(),
        "p": p,
    }
