"""The tables of arXiv 2605.15689, and what can be recomputed from them alone: counts, what chance gives, intervals and p.

The paper counts and averages abs(rho), which a wrong sign raises as well.  Signed are only the one group whose points it shows
(`cub_group`) and the accuracies of picked teachers' students (`comparisons`), since a pick follows the claimed direction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fgkd import stats

FOLDER = Path(__file__).with_name("published")
# 8 data sets x 3 students x 4 strategies x KD, and 8 data sets x 4 further losses for one student
GROUPS = {"all": 128, "CAL": 24, "TGDA": 24}
# what every study is to decide
REGISTERED = ("R12: mean signed rho", "R12 - SSP: mean signed rho", "R12 - TAC: mean signed rho")


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
    table = pd.concat([table, pd.DataFrame([{"scope": "others", "strength": "strong"} | others.to_dict()])], ignore_index=True)
    return table[["scope", "strength", "groups", *metrics]].assign(chance=table.groups * table.strength.map(stats.by_chance(8)))


def comparisons() -> pd.DataFrame:
    """R12 against TAC and SSP, a row a quantity and rival: on how many data sets it is better, equal and worse, and the mean difference
    with its interval, p of swapping the two on whole data sets, and Holm's p.

    Quantities: mean abs(rho) of a data set's groups, and accuracy in % of the LCNet-035 student (TGDA) whose teacher is picked.
    """
    parts = []
    for quantity, name in {"mean abs_rho": "correlation_by_dataset", "accuracy of the pick": "lcnet035_tgda_accuracy"}.items():
        table = published(name).set_index("dataset").drop("average")
        rows = []
        for rival in ("tac", "ssp"):
            difference = (table.ratio12 - table[rival]).round(9)
            low, high = stats.mean_interval(difference, table.index)
            better, equal, worse = ((np.sign(difference) == sign).sum() for sign in (1, 0, -1))
            rows.append({"quantity": quantity, "rival": rival, "better": better, "equal": equal, "worse": worse, "difference": difference.mean(),
                         "low": low, "high": high, "p": stats.swap_p(difference, table.index)})
        parts.append(pd.DataFrame(rows).assign(p_holm=lambda part: stats.holm(part.p)))
    return pd.concat(parts, ignore_index=True)


def cub_group() -> pd.DataFrame:
    """The group whose points are published (CUB, ResNet-18, TGDA, 8 teachers): rho of R12 and of the CAL teachers' accuracy (tac), with
    interval, exact p and tau, a row a metric.

    Two students were read off the figure as equal, which leaves -0.862; the printed -0.905 is that of the order in which the claim
    holds for these two (row 'ratio12, untied').
    """
    points = published("cub_resnet18_tgda").merge(published("cal_teacher_accuracy"), on="teacher", validate="one_to_one")
    reached, rows = points.student_accuracy, []
    for name, x, y in (("ratio12", points.ratio12, reached), ("ratio12, untied", points.ratio12, reached - 1e-6 * points.ratio12), ("tac", points.cub, reached)):
        rho = stats.spearman(x, y)
        low, high = stats.interval(rho, len(points))
        rows.append({"metric": name, "n": len(points), "rho": rho, "low": low, "high": high, "p": stats.exact_p(x, y), "tau": stats.kendall(x, y)})
    return pd.DataFrame(rows)


def claims(correlations: pd.DataFrame, choices: pd.DataFrame, students: pd.DataFrame) -> pd.DataFrame:
    """What the paper claims, and what a study says of it: a row a claim, a quantity that is above 0 where the claim holds.

    correlations, choices: tables as of `stats.correlations` and `stats.choices`; students: the study's table
    of them, which names the `model` of each.  Columns: `claim`, `family`, `published` (NaN where the paper
    prints no such number), `ours` with its 95 % interval over data sets (`low`, `high`), `groups`,
    `datasets`, `p` of swapping whole data sets, `p_holm` and `verdict`.

    Like is compared with like: the printed shares of strong groups of CAL and of TGDA are of students taught
    by KD alone (loss kd), and the printed accuracies of picks those of LCNet-035 with it.  So are ours; only
    a study in which no student's model is lcnet_035 takes all its students for the latter.

    Family `registered` is what was to be tested before any study ran: R12's sign, and R12 against either
    rival in signed rho, which a wrong sign does not raise.  Its p are corrected for their number (Holm 1979),
    and a claim holds or fails where `p_holm` is at most 5 %: among studies in which nothing is correlated, at
    most 5 % show a single verdict.  Three p need seven data sets for that, since the smallest p of D is
    2 / 2^D; with fifteen it would take ten, more than the paper has.

    The other rows are `exploratory`, each with its own interval: where that leaves 0 out a row `suggests so`
    or `suggests not`, which in one study out of four it does for some row by chance, so that it calls for
    further data sets and decides nothing.  Else the verdict is `cannot tell`, as always below six data sets.
    """
    table = pd.DataFrame([_claim(*row) for row in _quantities(correlations, choices, students)])
    registered = table.claim.isin(REGISTERED)
    table["family"] = np.where(registered, "registered", "exploratory")
    table["p_holm"] = stats.holm(table.p.where(registered))
    decided = np.where(registered, table.p_holm <= 0.05, (table.low > 0) | (table.high < 0))
    above = np.where(registered, "holds", "suggests so")
    below = np.where(registered, "fails", "suggests not")
    table["verdict"] = np.select(
        [decided & (table.ours > 0), decided & (table.ours < 0)], [above, below], "cannot tell"
    )
    found = ["published", "ours", "low", "high", "groups", "datasets", "p", "p_holm", "verdict"]
    return table[["claim", "family", *found]]


def _quantities(
    correlations: pd.DataFrame, choices: pd.DataFrame, students: pd.DataFrame
) -> list[tuple[str, float, pd.Series]]:
    """Each claim, its printed value, and its quantity in each group of the study."""
    strong = published("strength").query("strength == 'strong'").set_index("scope")
    rho = published("correlation_by_dataset").set_index("dataset").loc["average"]
    picked = published("lcnet035_tgda_accuracy").set_index("dataset").loc["average"]
    measured = correlations.assign(strong=(correlations.strength == "strong").where(correlations.rho.notna()).astype(float))
    by_metric = {
        value: measured.pivot(index=stats.GROUP, columns="metric", values=value)
        for value in ("agrees", "abs_rho", "strong")
    }
    agrees, size, is_strong = by_metric.values()
    n = measured.set_index([*stats.GROUP, "metric"]).n.xs("ratio12", level="metric")
    chance = n.map(lambda n: stats.by_chance(n)["abs_rho"] if n >= 3 else np.nan)
    rows = [("R12: mean signed rho", np.nan, agrees.ratio12),
            ("R12 - chance: mean |rho|", rho.ratio12 - stats.by_chance(8)["abs_rho"], size.ratio12 - chance)]
    for rival, name in {"ssp": "SSP", "tac": "TAC"}.items():
        share, ours = (strong.ratio12 - strong[rival]) / 100, is_strong.ratio12 - is_strong[rival]
        rows += [(f"R12 - {name}: mean |rho|", rho.ratio12 - rho[rival], size.ratio12 - size[rival]),
                 (f"R12 - {name}: mean signed rho", np.nan, agrees.ratio12 - agrees[rival]),
                 (f"R12 - {name}: share of strong groups", share["all"], ours)]
        rows += [
            (
                f"R12 - {name}: share of strong groups, {scope}",
                share[scope],
                ours[_of(ours, {"strategy": [scope], "loss": ["kd"]})],
            )
            for scope in ("CAL", "TGDA")
        ]
    reached = choices.pivot(index=stats.GROUP, columns="rule", values="accuracy").reindex(
        columns=["R12", "SSP", "TAC", "no teacher"]
    )
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
    low, high = stats.mean_interval(values, sets)
    p = np.nan if sets.nunique() < 6 else stats.swap_p(values, sets)
    return {
        "claim": claim,
        "published": printed,
        "ours": values.mean(),
        "low": low,
        "high": high,
        "groups": len(values),
        "datasets": sets.nunique(),
        "p": p,
    }
