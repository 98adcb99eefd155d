"""How well a metric ranks teachers, and whether it does so better than another: rank correlations, their p, intervals and means.

A group is one data set, student, strategy and loss; its points are the teachers, each the mean over the study's seeds.  At n = 8 and
no correlation at all, abs(rho) averages 0.31 and exceeds 0.705 in 5.8 % of groups, so a rho is never shown without its n and p.

Groups of one data set share teachers, metrics and images.  What is said of a mean over groups therefore takes whole data sets as
its *blocks*, which alone count as independent, and has neither interval nor p below six of them: taking the groups of one data set
instead covers 30 to 60 % in simulations, and finds p < .05 in a quarter or more of null studies.  What is said is what other data sets
would give with the same teachers, never what other teachers would.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pandas as pd

from fgkd.metrics.claims import METRICS

GROUP = ["dataset", "student", "strategy", "loss"]
STRENGTHS = ("weak", "modest", "strong")
SURE = 5  # teachers of which at least a perfect order has p < 0.05
COUNTED = 9  # teachers whose orders are all counted; of more they are sampled


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

    Every order is counted up to n = COUNTED (362,880); above, `draws` orders sampled with `seed` and the
    observed one (Phipson and Smyth 2010).  NaN where rho is.
    """
    x, y = _pair(x, y)
    rho = spearman(x, y)
    if math.isnan(rho):
        return math.nan
    rx, ry = _standard(_ranks(x)), _standard(_ranks(y))
    n = len(x)
    if len(set(rx)) == len(set(ry)) == n:
        null = _null(n) if n <= COUNTED else np.append(_sampled(n, draws, seed), rho)
    elif n > COUNTED:
        null = np.append(_permuted(ry, draws, seed) @ rx, rho)
    else:
        null = ry[_orders(n)] @ rx
    return float((np.abs(null) >= abs(rho) - 1e-9).mean())


def spearman_within(x, y, families) -> float:
    """Spearman's rho of x (n,) and y (n,) inside families (n,): Pearson's correlation of the ranks less the mean rank of each family.

    It is the partial rank correlation given the family: what is left where two families differ in both x and y, as networks of two kinds
    of normalisation may.  A family of one says nothing.  NaN where fewer than 3 teachers have company or nothing differs inside families.

    >>> spearman_within([1, 2, 3, 7, 8, 9], [3, 2, 1, 9, 8, 7], list("aaabbb"))
    -1.0
    """
    x, y = _pair(x, y)
    _, family, size = np.unique(np.asarray(families), return_inverse=True, return_counts=True)
    if not len(x) or (size[family] > 1).sum() < 3:
        return math.nan
    rx, ry = (r - (np.bincount(family, r) / size)[family] for r in (_ranks(x), _ranks(y)))
    scale = math.sqrt((rx @ rx) * (ry @ ry))
    return float(np.clip(rx @ ry / scale, -1, 1).round(12)) if scale > 1e-9 else math.nan


def kendall(x, y) -> float:
    """Kendall's tau-b of x (n,) and y (n,): pairs in the same order less pairs in the opposite one, as a share; NaN where rho is.

    >>> round(kendall([1, 2, 3, 4], [10, 20, 40, 30]), 4)
    0.6667
    """
    x, y = _pair(x, y)
    if math.isnan(spearman(x, y)):
        return math.nan
    signs_x, signs_y = (np.sign(r[:, None] - r) for r in (_ranks(x), _ranks(y)))
    return float((signs_x * signs_y).sum() / math.sqrt((signs_x**2).sum() * (signs_y**2).sum()))


def interval(rho: float, n: int) -> tuple[float, float]:
    """95 % interval of a rho over n teachers: Fisher's z with the variance (1 + rho^2/2) / (n - 3) (Bonett and Wright 2000).

    z is infinite at a perfect order, which therefore counts as half a step short of it.  In simulations of normal, heavy-tailed and
    clustered teachers (n = 6 to 8) it covers 92 to 98 %; a percentile or BCa bootstrap over teachers is wider and falls to 61 %
    near rho = 1.  n = 3 leaves (-1, 1); NaN where rho is.

    >>> [round(bound, 2) for bound in interval(-0.905, 8)]
    [-0.99, -0.43]
    """
    if math.isnan(rho):
        return math.nan, math.nan
    most = 1 - 6 / (n**3 - n)
    size = min(max(rho, -most), most)
    reach = 1.959964 * math.sqrt((1 + size**2 / 2) / (n - 3)) if n > 3 else math.inf
    return min(rho, math.tanh(math.atanh(size) - reach)), max(rho, math.tanh(math.atanh(size) + reach))


def mean_interval(values, blocks, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of values (G,) in independent blocks (G,): quantiles of the means over all sets of whole blocks.

    These are Hartigan's typical values (1969): exact where the blocks' errors are symmetric, and 0 lies within exactly where `swap_p`
    exceeds 0.05.  With 8 data sets it covers 94 to 96 % (skewed ones 90 %), the percentile bootstrap of them 88 %.  NaN below 6 blocks, of
    which no such interval can be made; above 16 blocks 65,536 sets are drawn with `seed`.  NaN values are left out.
    """
    sums, counts = _by_block(values, blocks)
    if len(sums) < 6:
        return math.nan, math.nan
    chosen = _sets(len(sums), seed)
    sizes = chosen @ counts
    means = np.sort((chosen @ sums)[sizes > 0] / sizes[sizes > 0])
    tail = int(0.025 * len(chosen))
    return float(means[tail - 1]), float(means[-tail])


def swap_p(differences, blocks, *, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences (G,): which of a pair is which is swapped for a whole block (G,) at a time.

    All 2^D swaps are counted up to 16 blocks, above it 65,536 are drawn with `seed`, the observed one among them.  The smallest p is
    2 / 2^D, so fewer than 6 blocks never reach 0.05.  NaN differences are left out; NaN where none is left.
    """
    sums, _ = _by_block(differences, blocks)
    if not len(sums):
        return math.nan
    null = np.abs((1 - 2 * _sets(len(sums), seed)) @ sums)
    return float((null >= null[0] - 1e-9).mean())


def detectable(
    spread: float, datasets: int, *, level: float, power: float = 0.8, draws: int = 2000, seed: int = 0
) -> float:
    """The smallest true mean difference that `swap_p` finds, by its sign, in a share `power` of studies.

    It finds a difference where its p is at most `level`.  Of `draws` simulated studies: the difference of
    each of their data sets is the true mean plus a normal error of standard deviation `spread`,
    independent of the others.  Take `spread` from the differences of a study's own data sets: it holds
    what teachers, images and the number of groups leave open there.  As far as it comes from the number n
    of teachers it is proportional to 1 / sqrt(n - 1), as a rho's is.

    Where the mean is positive, p is (2 + 2 c) / 2^D for c sets of the D data sets whose own mean is not above
    0: a study finds what exceeds the lowest mean but c of such sets of its errors.  Above 10 data sets 4,096
    sets are drawn.  Infinite where no difference is enough, since 2 / 2^D exceeds `level`.

    >>> detectable(0.2, 6, level=0.05 / 3)
    inf
    """
    return spread * _detectable(datasets, level, power, draws, seed)


def holm(p) -> np.ndarray:
    """p values (k,) corrected for their number (Holm 1979): (k,); NaN stays and is not counted.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, float)
    corrected, order = np.full(p.shape, math.nan), np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def strength(rho: float) -> str:
    """weak, modest or strong: abs(rho) rounded to 2 decimals is at most 0.5, at most 0.7, above; '' for NaN.

    >>> [strength(r) for r in (0.5, -0.505, 0.704, -0.71)]
    ['weak', 'modest', 'modest', 'strong']
    """
    return "" if math.isnan(rho) else STRENGTHS[int(_grade(rho))]


def described(rho: float, n: int) -> str:
    """A rho of n teachers in words, with its strength from 5 on, of which a perfect order is significant.

    >>> described(-0.8, 8), described(0.8, 4), described(math.nan, 2)
    ('-0.80, strong (n = 8)', '+0.80 (n = 4)', 'undefined (n = 2)')
    """
    if math.isnan(rho):
        return f"undefined (n = {n})"
    return f"{rho:+.2f}{f', {strength(rho)}' if n >= SURE else ''} (n = {n})"


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of the share that `hits` of n independent images are a sample of (Wilson 1927).

    NaN for no images.

    >>> [round(bound, 3) for bound in share_interval(15, 60)]
    [0.158, 0.372]
    """
    if n == 0:
        return math.nan, math.nan
    z2, share = 1.959964**2 / n, hits / n
    middle, reach = share + z2 / 2, math.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    return (middle - reach) / (1 + z2), (middle + reach) / (1 + z2)


def null_share(n: int, above: float = 0.705) -> float:
    """Share of groups of n >= 3 teachers whose abs(rho) exceeds `above` when nothing is correlated.

    Of every order up to COUNTED teachers, above of 100,000 sampled ones.
    """
    return float((_null(n) > above + 1e-9).mean())


def null_summary(n: int) -> dict[str, float]:
    """What n >= 3 unrelated teachers give: the mean abs_rho, the shares of weak, modest and strong groups.

    Of every order up to COUNTED teachers, above of 100,000 sampled ones.

    >>> {name: round(value, 3) for name, value in null_summary(8).items()}
    {'abs_rho': 0.31, 'weak': 0.803, 'modest': 0.139, 'strong': 0.058}
    """
    null = _null(n)
    return {"abs_rho": float(null.mean())} | dict(
        zip(STRENGTHS, (np.bincount(_grade(null), minlength=3) / len(null)).tolist())
    )


def correlations(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row a group and metric: n, the seeds that a point is the mean of (the fewest), rho, abs_rho, p, strength, the claimed direction
    and `agrees`, rho times that direction; low and high, rho's 95 % interval, and Kendall's tau.

    students: a row a student with its group, `teacher`, `seed` and `accuracy` (rows of strategy CE have no teacher and are left out);
    metrics: a row a bank with `dataset`, `teacher`, `strategy`, `seed` and the metrics' columns, TAC among them.
    """
    points, rows = join_students_with_metrics(students, metrics), []
    for group, members in points.groupby(GROUP, sort=True):
        for name, claim in METRICS.items():
            rho = spearman(members[name], members.accuracy)
            rows.append(
                dict(zip(GROUP, group))
                | {
                    "metric": name,
                    "n": len(members),
                    "seeds": members.seeds.min(),
                    "rho": rho,
                    "abs_rho": abs(rho),
                    "p": exact_p(members[name], members.accuracy),
                    "strength": strength(rho),
                    "direction": claim.direction,
                    "agrees": rho * claim.direction,
                    **dict(zip(("low", "high"), interval(rho, len(members)))),
                    "tau": kendall(members[name], members.accuracy),
                }
            )
    columns = [
        *GROUP,
        "metric",
        "n",
        "seeds",
        "rho",
        "abs_rho",
        "p",
        "strength",
        "direction",
        "agrees",
        "low",
        "high",
        "tau",
    ]
    return pd.DataFrame(rows, columns=columns)


def join_students_with_metrics(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The points of all groups, one a teacher: the mean over `seeds` (a number) of its metrics, of
    ratio12_nonpositive (the share of samples in which R12 has no meaning), and of its student's `accuracy`,
    `agreement`, `pilot` and pilot_cost (the share of the student's epochs that the pilot takes); and
    accuracy_sd, the standard deviation of `accuracy` over seeds, NaN for a single one.

    A student goes with the teacher of its own seed; ValueError where that one has no metrics.  A metric that is NaN for a seed is NaN.
    """
    students = students[students.strategy != "CE"]
    keys = ["dataset", "teacher", "strategy", "seed"]
    seen = [name for name, claim in METRICS.items() if claim.begun or claim.afterwards]
    before = [name for name in METRICS if name not in seen] + ["ratio12_nonpositive"]
    seen.append("pilot_cost")
    own = students.reindex(columns=[*GROUP, "teacher", "seed", "accuracy", *seen])
    rows = own.astype(dict.fromkeys(seen, float)).merge(
        metrics.reindex(columns=[*keys, *before]), on=keys, how="left", validate="many_to_one", indicator=True
    )
    if len(lost := rows[rows._merge == "left_only"]):
        raise ValueError(
            f"{len(lost)} students have no metrics of their teacher, the first: {lost.iloc[0][GROUP + ['teacher', 'seed']].to_dict()}"
        )
    teachers, values = (
        rows.groupby([*GROUP, "teacher"], sort=False),
        ["accuracy", *METRICS, "ratio12_nonpositive", "pilot_cost"],
    )
    points = teachers[values].mean().where(teachers[values].count().eq(teachers.size(), axis=0))
    return points.assign(seeds=teachers.size(), accuracy_sd=teachers.accuracy.std()).reset_index()


def example(points: pd.DataFrame) -> pd.DataFrame:
    """The points of one data set, student and loss, the first there are: a group a strategy."""
    return points[
        (points[["dataset", "student", "loss"]] == points[["dataset", "student", "loss"]].iloc[0]).all(axis=1)
    ]


def sensitivity(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """How much of the ranking is the seed's: a row a metric, the mean of its `agrees` over groups with each seed alone ('seed 0', ...) and
    with the mean over them ('all').

    The last row, 'other seed', ranks the teachers of each seed by their students of another: a mean rho r over groups and pairs of seeds.
    It bounds what can be asked of a metric: one that knew the expected accuracy of each teacher's students would reach about sqrt(r) with a
    single seed and sqrt(k r / (1 + (k - 1) r)) with the mean over k (Spearman 1904; Brown 1910); only one that sees the luck of the seed's
    own teacher can do better.
    """
    taught = students[students.strategy != "CE"]
    reached = taught.pivot(index=[*GROUP, "teacher"], columns="seed", values="accuracy")
    table = pd.DataFrame(
        {
            f"seed {seed}": agreement(join_students_with_metrics(rows, metrics))
            for seed, rows in taught.groupby("seed")
        }
        | {"all": agreement(join_students_with_metrics(taught, metrics))}
    )
    other = pd.concat(
        [
            group.corr(spearman).where(~np.eye(len(reached.columns), dtype=bool))
            for _, group in reached.groupby(GROUP)
        ]
    ).mean()
    table.loc["other seed"] = [*other, other.mean()]
    return table.rename_axis("metric").reset_index()


def agreement(points: pd.DataFrame, within: str | None = None) -> pd.Series:
    """Each metric's rho in the claimed direction, the mean over groups that have one; within: a column of `points` such as the teachers' norm,
    inside whose families alone the order then counts (`spearman_within`)."""

    def rho(group, name):
        return (
            spearman(group[name], group.accuracy)
            if within is None
            else spearman_within(group[name], group.accuracy, group[within])
        )

    groups = [group for _, group in points.groupby(GROUP)]
    return pd.Series(
        {
            name: pd.Series([claim.direction * rho(g, name) for g in groups]).mean()
            for name, claim in METRICS.items()
        }
    )


def ranking_stability(epochs: pd.DataFrame, metric: str = "ratio12") -> pd.DataFrame:
    """How many views of each image a metric's order of teachers takes: a row a number of `views`, with the rho between the order by the mean
    over so many and that over all, its mean and its lowest over data sets, recipes and seeds.

    epochs: a row a bank and view, as of `tables.collect`.
    """
    wide = epochs.pivot(index=["dataset", "recipe", "seed", "teacher"], columns="epoch", values=metric)
    running = wide.T.expanding().mean().T
    rhos = pd.DataFrame(
        [
            {v + 1: spearman(group[v], group.iloc[:, -1]) for v in group}
            for _, group in running.groupby(["dataset", "recipe", "seed"])
        ]
    )
    return pd.DataFrame(
        {"views": rhos.columns, "rho": rhos.mean().to_numpy(), "lowest": rhos.min().to_numpy()}
    )


def selection_outcomes(points: pd.DataFrame, students: pd.DataFrame) -> pd.DataFrame:
    """One row a group and rule: the accuracy of its pick's student, its regret, and whether it is the best (hit) or among the best three.

    A rule is a metric that is known before a student is trained to its end (its best teacher in the
    claimed direction; ties are shared), 'best', 'random' (all teachers share) and 'no teacher' (the CE
    baseline, where there is one).  teacher: whom it picks, 'a = b' of equal ones, empty where it picks
    nobody in particular.  regret: points below the best teacher's student, as a share of 1.  cost: the
    share of the training of every teacher's student that the rule has to see: 0 where the choice is free
    of students, 1 for 'best'.
    """
    rows = []
    alone = students[students.strategy == "CE"].groupby(["dataset", "student"]).accuracy.mean()
    for key, group in points.groupby(GROUP, sort=True):
        reached, baseline = group.accuracy.to_numpy(), alone.get(key[:2], math.nan)
        best, third = reached.max(), np.sort(reached)[-3:].min()
        scores = {
            claim.label: group[name].to_numpy() * claim.direction
            for name, claim in METRICS.items()
            if not claim.afterwards
        }
        scores |= {"best": reached, "random": 0 * reached}
        costs = {METRICS["pilot"].label: group.pilot_cost.mean(), "best": 1.0}
        for rule, score in scores.items():
            picked = score == np.fmax.reduce(score)
            share = picked / picked.sum() if picked.any() else picked * math.nan
            names = "" if rule == "random" else " = ".join(group.teacher[picked])
            picked_accuracy, hit, top3 = (
                share @ reached,
                share @ (reached == best),
                share @ (reached >= third),
            )
            values = (picked_accuracy, best - picked_accuracy, hit, top3, costs.get(rule, 0.0))
            rows.append((*key, rule, names, *values))
        rows.append((*key, "no teacher", "", baseline, best - baseline, 0.0, 0.0, 0.0))
    columns = [*GROUP, "rule", "teacher", "accuracy", "regret", "hit", "top3", "cost"]
    return pd.DataFrame(rows, columns=columns)


def selection_summary(points: pd.DataFrame, students: pd.DataFrame) -> pd.DataFrame:
    """What choosing gains: one row a rule of `choices`, means over groups, best first; rules that cannot pick in every group are left out.

    teacher: whom it picks most often, with the number of groups where there are several.  cost: as of
    `choices`. gain_random and gain_tac: accuracy above that of a random teacher's student and of the most
    accurate teacher's, as a share of 1, each with its 95 % interval over data sets (low, high; see
    `mean_interval`).
    """
    found = selection_outcomes(points, students)
    reached = found.pivot(index=GROUP, columns="rule", values="accuracy")
    reached = reached.loc[:, reached.notna().all()]
    per = found[found.rule.isin(reached.columns)].groupby("rule", sort=False)
    table = per[["accuracy", "regret", "hit", "top3", "cost"]].mean()
    table.insert(0, "teacher", found.groupby("rule").teacher.agg(_most_often))
    blocks = reached.index.get_level_values("dataset")
    for name, rule in {"gain_random": "random", "gain_tac": METRICS["tac"].label}.items():
        gains = reached.sub(reached.get(rule, math.nan), axis=0)
        bounds = [mean_interval(gains[r], blocks) for r in table.index]
        table = table.assign(
            **{
                name: gains.mean(),
                f"{name}_low": [low for low, _ in bounds],
                f"{name}_high": [high for _, high in bounds],
            }
        )
    return table.sort_values("accuracy", ascending=False, kind="stable").reset_index()


def standings(points: pd.DataFrame, students: pd.DataFrame, data: pd.DataFrame) -> pd.DataFrame:
    """Which teacher, in names: a row a teacher, the best first, then 'no teacher' and 'chance'; means over
    all groups.

    points: as of `joined`; students: the table of them; data: a row a data set with its `classes` and `test`
    images. accuracy: of its students; error: half the width of its 95 % interval for other test images, and
    for other seeds where the study has several: sqrt(sum of p (1 - p) / test images + variance over seeds /
    seeds) 1.96 / groups.  tied: whether it cannot be told apart from the best: the interval of their
    difference holds 0, over data sets where there are six (`mean_interval`), else from both errors.  Then
    R12, TAC, SSP and the share of views in which R12 means nothing.
    """
    sizes, groups = data.set_index("dataset"), points[GROUP].drop_duplicates()
    reached = points.accuracy
    noise = reached * (1 - reached) / points.dataset.map(sizes.test) + (
        points.accuracy_sd**2 / points.seeds
    ).fillna(0)
    per = points.assign(variance=noise).groupby("teacher", sort=False)
    table = per[["accuracy", "ratio12", "tac", "ssp", "ratio12_nonpositive"]].mean()
    table.insert(1, "error", 1.959964 * per.variance.sum().pow(0.5) / per.size())
    table = table.sort_values("accuracy", ascending=False, kind="stable")
    wide = points.pivot(index=GROUP, columns="teacher", values="accuracy")
    best = table.index[0]
    tied = [_tied(wide[best] - wide[name], table.error[[best, name]]) for name in table.index]
    table.insert(2, "tied", pd.Series(tied, table.index, dtype=object))
    alone = students[students.strategy == "CE"].groupby(["dataset", "student"]).accuracy.mean()
    baseline = groups.merge(
        alone.rename("alone"), left_on=["dataset", "student"], right_index=True, how="left"
    ).alone
    table.loc["no teacher", "accuracy"] = baseline.mean(skipna=False)
    table.loc["chance", "accuracy"] = (1 / groups.dataset.map(sizes.classes)).mean()
    return table.rename_axis("teacher").reset_index().dropna(subset="accuracy")


def said(table: pd.DataFrame, picks: pd.DataFrame) -> str:
    """Which teacher in a few sentences, from `standings` and `picks`: the best, who is not worse, whom each
    rule picks, what it gains."""
    teachers, others = table[table.tied.notna()], table[table.tied.isna()].set_index("teacher").accuracy
    best, tied = teachers.iloc[0], teachers.teacher[1:][teachers.tied[1:].astype(bool)]
    text = f"The students of {best.teacher} are the most accurate: {best.accuracy:.1%} +- {best.error:.1%}"
    text += (
        "".join(f", {name} {others[name]:.1%}" for name in ("no teacher", "chance") if name in others) + "."
    )
    if len(tied):
        text += f" {_listed(tied)} cannot be told apart from it."
    named = picks[picks.rule.isin(["R12", "TAC", "SSP"])]
    text += (
        " "
        + "; ".join(f"{row.rule} picks {row.teacher}, {row.accuracy:.1%}" for row in named.itertuples())
        + "."
    )
    return f"{text} To pick by TAC takes labelled test images." if "TAC" in set(named.rule) else text


def lacking(correlations: pd.DataFrame) -> str:
    """Why a table of `correlations` has no rho to read, in one sentence; empty where it has one."""
    if not len(correlations):
        return "Not computed yet: no student of any teacher has ended."
    if correlations.rho.notna().any():
        return ""
    if (most := correlations.n.max()) < 3:
        return f"A rank correlation needs three teachers: no group has more than {most} yet."
    return "No rank correlation is defined: in every group all students, or all teachers' metrics, are alike."


def answer(picks: pd.DataFrame) -> str:
    """What choosing gains in one sentence, or that no student has a teacher yet."""
    if not len(picks):
        return "Not computed yet: no student of any teacher has ended."
    by = picks.set_index("rule").accuracy
    rules = {
        "R12": "picked by R12",
        "TAC": "by TAC",
        "SSP": "by SSP",
        "random": "at random",
        "best": "by the best teacher",
    }
    parts = [f"{text} {by[rule]:.1%}" for rule, text in rules.items() if rule in by]
    return "Mean accuracy of the student whose teacher is " + ", ".join(parts) + "."


def summary(correlations: pd.DataFrame, by=()) -> pd.DataFrame:
    """One row a metric, for each value of `by` (one or more of dataset, student, strategy and loss): what its groups show on average.

    groups, their datasets (a number), teachers (n), mean_rho, mean_abs_rho, agrees with its interval over
    data sets (low, high); shares of weak, modest and strong groups; and the same by chance.
    """
    by, rows = [by] if isinstance(by, str) else list(by), []
    for key, members in correlations.groupby([*by, "metric"], sort=True):
        defined = members[members.rho.notna()]
        low, high = mean_interval(defined.agrees, defined.dataset)
        known = {n: null_summary(n) for n in set(defined.n)}
        chance = pd.DataFrame(
            [known[n] for n in defined.n], columns=["abs_rho", *STRENGTHS], dtype=float
        ).mean()
        weak, modest, strong = ((defined.strength == name).mean() for name in STRENGTHS)
        rows.append(
            [
                *key,
                len(defined),
                defined.dataset.nunique(),
                members.n.max(),
                defined.rho.mean(),
                defined.abs_rho.mean(),
                defined.agrees.mean(),
                strong,
                low,
                high,
                chance.abs_rho,
                chance.strong,
                weak,
                modest,
                chance.weak,
                chance.modest,
            ]
        )
    return pd.DataFrame(
        rows,
        columns=[
            *by,
            "metric",
            "groups",
            "datasets",
            "teachers",
            "mean_rho",
            "mean_abs_rho",
            "agrees",
            "strong",
            "low",
            "high",
            "chance_abs_rho",
            "chance_strong",
            "weak",
            "modest",
            "chance_weak",
            "chance_modest",
        ],
    )


def breakdown(correlations: pd.DataFrame) -> pd.DataFrame:
    """The `summary` for each data set, student, strategy and loss in turn: columns `by`, `value`, then its own."""
    parts = [summary(correlations, by).rename(columns={by: "value"}) for by in GROUP]
    return (
        pd.concat([part.assign(by=by) for by, part in zip(GROUP, parts)], ignore_index=True)
        .set_index(["by", "value"])
        .reset_index()
    )


def headline(correlations: pd.DataFrame) -> pd.DataFrame:
    """The `summary` over all groups without its shares of weak and modest ones: a row a metric, best signed first."""
    table = summary(correlations).loc[:, :"chance_strong"]
    return table.sort_values("agrees", ascending=False, kind="stable").reset_index(drop=True)


def compare(
    correlations: pd.DataFrame, first: str = "ratio12", others=("ssp", "tac"), *, value: str = "agrees"
) -> pd.DataFrame:
    """Does `first` rank teachers better than each of the others?  One row a rival, over the groups in which both have a rho.

    difference: mean of first's `value` (agrees or abs_rho) less the rival's, with its interval (low, high) and the p of swapping the
    two metrics, both over data sets, NaN below six of them; p_holm corrects for the number of rivals.
    """
    wide = correlations.pivot(index=GROUP, columns="metric", values=value)
    rows = []
    for rival in others:
        differences = (wide[first] - wide[rival]).dropna()
        sets = differences.index.get_level_values("dataset")
        low, high = mean_interval(differences, sets)
        rows.append(
            {
                "metric": first,
                "rival": rival,
                "groups": len(differences),
                "datasets": sets.nunique(),
                "difference": differences.mean(),
                "low": low,
                "high": high,
                "p": math.nan if sets.nunique() < 6 else swap_p(differences, sets),
            }
        )
    return pd.DataFrame(rows).assign(p_holm=lambda table: holm(table.p))


def _most_often(names: pd.Series) -> str:
    """The most frequent name, and in how many of several groups."""
    counts = names.value_counts()
    return (
        f"{counts.index[0]} ({counts.iloc[0]} of {len(names)})"
        if len(names) > 1 and counts.index[0]
        else counts.index[0]
    )


def _tied(differences: pd.Series, errors: pd.Series) -> bool:
    """Whether the mean of a pair's differences, by group, may be 0."""
    low, high = mean_interval(differences, differences.index.get_level_values("dataset"))
    if math.isnan(low):
        return abs(differences.mean()) <= math.sqrt((errors**2).sum())
    return low <= 0 <= high


def _listed(names) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _pair(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}: expected two of the same length")
    if np.isnan(x).any() or np.isnan(y).any():
        return x[:0], y[:0]
    return x, y


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean."""
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(ties) - (ties - 1) / 2)[place]


def _standard(ranks: np.ndarray) -> np.ndarray:
    centred = ranks - ranks.mean()
    return centred / np.sqrt(centred @ centred)


def _grade(rho) -> np.ndarray:
    """0 weak, 1 modest, 2 strong."""
    size = np.floor(np.abs(rho) * 100 + 0.5 + 1e-9) / 100
    return np.searchsorted([0.5, 0.7], size)


@functools.cache
def _null(n: int) -> np.ndarray:
    """abs(rho) of orders of n teachers without ties: of all (n!,), or of 100,000 sampled ones."""
    if n < 3:
        raise ValueError(f"n is {n}: expected 3 teachers or more, of fewer there is no rho")
    if n > COUNTED:
        return np.abs(_sampled(n, 100_000, 0))
    ranks = _standard(np.arange(n, dtype=float))
    return np.abs(ranks[_orders(n)] @ ranks)


@functools.cache
def _detectable(datasets: int, level: float, power: float, draws: int, seed: int) -> float:
    """`detectable` in units of the spread."""
    rng = np.random.default_rng(seed)
    sets = _sets(datasets, seed) if datasets <= 10 else rng.integers(0, 2, (2**12, datasets)).astype(float)
    sets = sets[sets.any(1)]
    spared = math.floor(level * (len(sets) + 1) / 2 - 1 + 1e-9)
    if spared < 0:
        return math.inf
    means = (rng.normal(size=(draws, datasets)) @ sets.T) / sets.sum(1)
    needed = -np.partition(means, spared, axis=1)[:, spared]
    return max(0.0, float(np.quantile(needed, power)))


@functools.lru_cache(maxsize=4)
def _sampled(n: int, draws: int, seed: int) -> np.ndarray:
    """rho of sampled orders of n teachers without ties: (draws,)."""
    ranks = _standard(np.arange(n, dtype=float))
    return _permuted(ranks, draws, seed) @ ranks


def _permuted(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Sampled orders of values (n,): (draws, n)."""
    return np.random.default_rng(seed).permuted(np.tile(values, (draws, 1)), axis=1)


@functools.cache
def _orders(n: int) -> np.ndarray:
    """All orders of n: (n!, n)."""
    return np.array(list(itertools.permutations(range(n))), dtype=np.int8)


def _by_block(values, blocks) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values in each block, NaN left out: (D,), (D,)."""
    values = np.asarray(values, float)
    there = ~np.isnan(values)
    _, index = np.unique(np.asarray(blocks)[there], return_inverse=True)
    return np.bincount(index, values[there]), np.bincount(index)


@functools.lru_cache(maxsize=4)
def _sets(blocks: int, seed: int) -> np.ndarray:
    """Sets of blocks as rows of 0 and 1, the empty one first: all 2^D (2^D, D), or 65,536 drawn where there are more."""
    if blocks <= 16:
        return (np.arange(2**blocks)[:, None] >> np.arange(blocks) & 1).astype(float)
    return np.vstack([np.zeros(blocks), np.random.default_rng(seed).integers(0, 2, (2**16 - 1, blocks))])
