"""Tables of arXiv 2605.15689, and what a study says of the paper's claims.

The paper counts and averages abs(rho), which a wrong sign raises as well.  Notebook 07 shows what
follows from its tables alone.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from fgkd.analysis import blocks, correlation
from fgkd.analysis.groups import GROUP, rhos
from fgkd.study import RECIPES

FOLDER = Path(__file__).with_name("published")
# what was to be tested before any study ran
REGISTERED = ("R12: mean signed rho", "R12 - SSP: mean signed rho", "R12 - TAC: mean signed rho")
LEVEL = 0.05 / len(REGISTERED)
# above 0, and below
VERDICTS = {"registered": ("holds", "fails"), "exploratory": ("suggests so", "suggests not")}
UNDECIDED = "cannot tell"
# datasets below which no p can be small enough, or no interval made
NEEDED = {"registered": 7, "exploratory": blocks.MIN_DATASETS}
DESIGNS = (7, 8, 10, 14, 20)  # numbers of datasets that `power` looks at
POWER = ["claim", "datasets", "teachers", "spread", "source", "detectable"]
CLAIMS = [
    *("claim", "family", "published", "ours", "low", "high", "groups", "datasets", "needed", "p", "p_holm"),
    *("verdict", "detectable"),
]


def published(name: str) -> pd.DataFrame:
    """A published table as printed, in percent or as Spearman's rho.

    name: strength, correlation_by_dataset, lcnet035_tgda_accuracy, cub_resnet18_tgda or cal_teacher_accuracy
    """
    known = sorted(file.stem for file in FOLDER.glob("*.csv"))
    if name not in known:
        raise ValueError(f"there is no published table {name!r}: expected one of {', '.join(known)}")
    return pd.read_csv(FOLDER / f"{name}.csv")


def claims(
    correlations: pd.DataFrame, choices: pd.DataFrame, students: pd.DataFrame, points: pd.DataFrame
) -> pd.DataFrame:
    """The paper's claims in a study, quantities above 0 where they hold (claims.csv).

    Like is compared with like: the printed shares of strong groups of CAL and of TGDA are of students taught
    by KD alone (loss kd), and the printed accuracies of picks are those of LCNet-035 with it.  So are ours;
    only a study in which no student's model is lcnet_035 takes all its students for the latter.

    Family `registered` is what was to be tested before any study ran: R12's sign, and R12 against either
    rival in signed rho, which a wrong sign does not raise.  Its p are corrected for their number (Holm 1979),
    and a claim holds or fails where `p_holm` is at most 5 %: among studies in which nothing is correlated, at
    most 5 % show a single verdict.  Three p need seven datasets for that, since the smallest p of D is 2 /
    2^D; with fifteen it would take ten, more than the paper has.

    The other rows are `exploratory`, each with its own interval: where that leaves 0 out a row `suggests so`
    or `suggests not`, which under the null some row does in one study out of two, so that it calls for
    further datasets and decides nothing.  Else the verdict is `cannot tell`, as always below six datasets.

    correlations: as returned by `groups.correlations`
    choices: as returned by `selection.selection_outcomes`
    students: one row per student, with its `model`
    points: as returned by `records.points`, with the `family` of each teacher
    """
    quantities = _rho_claims(correlations) | _pick_claims(choices, students)
    quantities |= _size_claims(correlations, points)
    rows = [_test_claim(claim, printed, values) for claim, (printed, values) in quantities.items()]
    table = pd.DataFrame(rows)
    registered = table.claim.isin(REGISTERED)
    table["family"] = np.where(registered, "registered", "exploratory")
    needed = table.family.map(NEEDED)
    table["needed"] = needed.where(table.datasets < needed)
    table["p_holm"] = blocks.holm(table.p.where(registered))
    excludes_0 = [blocks.exceeds(row.low, row.high) is not None for row in table.itertuples()]
    decided = np.where(registered, table.p_holm <= 0.05, excludes_0)
    words = table.family.map(VERDICTS)
    verdicts = [words.str[0], words.str[1]]
    table["verdict"] = np.select(
        [decided & (table.ours > 0), decided & (table.ours < 0)], verdicts, UNDECIDED
    )
    undecided = registered & (table.verdict == UNDECIDED) & table.needed.isna()
    table["detectable"] = [
        _detectable(row.claim, row.spread, row.datasets) if undecided[row.Index] else np.nan
        for row in table.itertuples()
    ]
    return table[CLAIMS]


def strategies_of(claim: str) -> tuple[str, ...]:
    """The strategies whose students a claim of `claims` is about; none for all of a study.

    >>> strategies_of("R12 - SSP: share of strong groups, CAL"), strategies_of("R12: mean signed rho")
    (('CAL',), ())
    """
    scope = claim.rpartition(", ")[2]
    return {"CAL": ("CAL",), "TGDA": ("TGDA",), "CAL and TGDA": ("CAL", "TGDA")}.get(scope, ())


def power(correlations: pd.DataFrame) -> pd.DataFrame:
    """Smallest mean signed rho, or difference, that other designs could see (power.csv).

    `detectable` is that of `blocks.detectable`, at the level of the first of three claims by Holm.  The
    spread of chance is that of one group of unrelated teachers, 1 / sqrt(n - 1), for a difference of two
    metrics sqrt(2) times that.  No row where no group has a rho.

    correlations: as returned by `groups.correlations`
    """
    agrees = correlations.pivot(index=GROUP, columns="metric", values="agrees")
    teachers = correlations.n.max()
    if not teachers >= 3:
        return pd.DataFrame(columns=POWER)
    rows = []
    for claim, rival in zip(REGISTERED, (None, "ssp", "tac"), strict=True):
        values = agrees.ratio12 - agrees[rival] if rival else agrees.ratio12
        own = values.groupby("dataset").mean().dropna()
        source = "this study" if len(own) >= 3 else "chance"
        spread = own.std() if len(own) >= 3 else np.sqrt((2 if rival else 1) / (teachers - 1))
        for n, datasets in itertools.product((teachers, 2 * teachers), DESIGNS):
            shrunk = spread * np.sqrt((teachers - 1) / (n - 1))
            rows.append([claim, datasets, n, shrunk, source, _detectable(claim, shrunk, datasets)])
    return pd.DataFrame(rows, columns=POWER)


def _detectable(claim: str, spread: float, datasets: int) -> float:
    """`blocks.detectable` of a registered claim; NaN where no rho, or difference, is so large."""
    size = blocks.detectable(spread, datasets, level=LEVEL)
    return size if size <= (1 if claim == REGISTERED[0] else 2) else np.nan


Quantities = dict[str, tuple[float, pd.Series]]  # by claim: the printed value, and ours in each group


def _rho_claims(correlations: pd.DataFrame) -> Quantities:
    """Claims about signed rho, abs(rho) and shares of strong groups."""
    shares = published("strength").query("strength == 'strong'").set_index("scope")
    printed = published("correlation_by_dataset").set_index("dataset").loc["average"]
    indexed = correlations.set_index([*GROUP, "metric"])
    agrees = indexed.agrees.unstack()
    size = indexed.abs_rho.unstack()
    strong = (indexed.strength == "strong").where(indexed.rho.notna()).astype(float).unstack()
    n = indexed.n.xs("ratio12", level="metric")
    chance = n.map(lambda n: correlation.null_summary(n)["abs_rho"] if n >= 3 else np.nan)
    printed_chance = correlation.null_summary(8)["abs_rho"]
    claims = {
        "R12: mean signed rho": (np.nan, agrees.ratio12),
        "R12 - chance: mean |rho|": (printed.ratio12 - printed_chance, size.ratio12 - chance),
    }
    for rival in ("ssp", "tac"):
        prefix = f"R12 - {rival.upper()}"
        edge = agrees.ratio12 - agrees[rival]
        more_strong = strong.ratio12 - strong[rival]
        share = (shares.ratio12 - shares[rival]) / 100
        claims[f"{prefix}: mean |rho|"] = printed.ratio12 - printed[rival], size.ratio12 - size[rival]
        claims[f"{prefix}: mean signed rho"] = np.nan, edge
        claims[f"{prefix}: share of strong groups"] = share["all"], more_strong
        for scope in ("CAL", "TGDA"):
            in_scope = _select(more_strong, strategy=[scope], loss=["kd"])
            claims[f"{prefix}: share of strong groups, {scope}"] = share[scope], in_scope
        attentive = _mean_by_student(edge, ["CAL", "TGDA"])
        plain = _mean_by_student(edge, ["FZ", "FT"])
        claims[f"{prefix}: mean signed rho, CAL and TGDA"] = np.nan, attentive
        claims[f"{prefix}: signed rho, CAL, TGDA less FZ, FT"] = np.nan, attentive - plain
    return claims


def _pick_claims(choices: pd.DataFrame, students: pd.DataFrame) -> Quantities:
    """Claims about the accuracy of the student whose teacher is picked."""
    printed = published("lcnet035_tgda_accuracy").set_index("dataset").loc["average"]
    printed_students = _printed_students(students)
    rivals = {"SSP": "ssp", "TAC": "tac", "no teacher": "ce"}
    accuracy = choices.pivot(index=GROUP, columns="rule", values="accuracy").reindex(columns=["R12", *rivals])
    gains = {rule: accuracy["R12"] - accuracy[rule] for rule in rivals}
    claims = {}
    for rule, gain in gains.items():
        claims[f"R12 - {rule}: accuracy of the pick"] = np.nan, gain
    for rule, column in rivals.items():
        in_scope = _select(gains[rule], strategy=["TGDA"], loss=["kd"], student=printed_students)
        difference = (printed.ratio12 - printed[column]) / 100
        claims[f"R12 - {rule}: accuracy of the pick, TGDA"] = difference, in_scope
    return claims


def _size_claims(correlations: pd.DataFrame, points: pd.DataFrame) -> Quantities:
    """Smaller teachers teach better and have the smaller R12: among all and inside families.

    Of R12 one value per dataset and recipe, since the students of a teacher share it.
    """
    by_size = correlations[correlations.metric == "parameters"].set_index(GROUP).agrees
    keys = ["dataset", "recipe"]
    teachers = points.assign(recipe=points.strategy.map(RECIPES)).drop_duplicates([*keys, "teacher"])
    related = teachers[teachers.family != ""]
    taught = points[points.family != ""]
    inside = rhos(taught, GROUP, "parameters", "accuracy", within="family")
    inside_r12 = rhos(related, keys, "parameters", "ratio12", within="family")
    quantities = {
        "smaller teachers: rho with student accuracy": -by_size,
        "smaller teachers: rho of size and R12": rhos(teachers, keys, "parameters", "ratio12"),
        "smaller of a family: rho with student accuracy": -inside,
        "smaller of a family: rho of size and R12": inside_r12,
    }
    return {claim: (np.nan, values) for claim, values in quantities.items()}


def _mean_by_student(values: pd.Series, strategies: list[str]) -> pd.Series:
    """Means over these strategies, by dataset and student, of students taught by KD alone."""
    return _select(values, strategy=strategies, loss=["kd"]).groupby(["dataset", "student"]).mean()


def _printed_students(students: pd.DataFrame) -> list[str]:
    """The students whose model is LCNet-035; all where there is none."""
    printed = students[students.model.str.partition(".")[0] == "lcnet_035"]
    return (printed if len(printed) else students).student.unique().tolist()


def _select(values: pd.Series, **allowed: list[str]) -> pd.Series:
    """The groups that have an allowed value at every level of the index that is named."""
    selected = np.ones(len(values), bool)
    for level, names in allowed.items():
        selected &= values.index.get_level_values(level).isin(names)
    return values[selected]


def _test_claim(claim: str, printed: float, values: pd.Series) -> dict:
    """The row of a claim, of its values in each group."""
    values = values.dropna()
    datasets = values.index.get_level_values("dataset")
    low, high, p = blocks.mean_test(values, datasets)
    return {
        "claim": claim,
        "published": printed,
        "ours": values.mean(),
        "low": low,
        "high": high,
        "groups": len(values),
        "spread": values.groupby(datasets).mean().std(),
        "datasets": datasets.nunique(),
        "p": p,
    }
