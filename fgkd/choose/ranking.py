"""The candidates in the order of a metric on held-out training photos, and how stable that order is.

Every candidate is trained by the task's recipe on four fifths of the training photos (a stage of the
selection study, so it is computed once) and measured on the others.  The test photos have no part in it.
The metric is the one that ranked teachers best in the committed study on real photos.  Stability is that of
the order over bootstrap samples of the held-out photos: other photos, the same teachers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from fgkd import metrics
from fgkd.analysis import records
from fgkd.analysis.correlation import spearman
from fgkd.choose import LOG, candidates
from fgkd.choose.task import Task
from fgkd.distillation import stages
from fgkd.metrics.claims import METRICS
from fgkd.study import PROJECT, Model, Study, StudyError

RULES = PROJECT / "runs" / "photos" / "tables" / "rules.csv"  # by benchmarks/choosing.py
PAPER_RULE = "ratio12"
DRAWS = 1000


@dataclass(frozen=True)
class Rule:
    """The metric that ranks, and why, in a sentence."""

    metric: str
    reason: str

    @property
    def label(self) -> str:
        """The metric's short name."""
        return METRICS[self.metric].label


@dataclass(frozen=True)
class Ranking:
    """The candidates, the first of the rule at the top.

    table: one row per candidate: teacher, rank and r12_rank from 1, the metrics of held-out photos, LogME,
    LEEP and NCE of the training photos, parameters, and the stability of its rank: first (share of bootstrap
    samples in which it is the first), low and high (95 % of its ranks lie between).
    ranks: (draws, candidates) rank in each sample; without a draw where the rule is no function of the
    held-out photos' logits.
    left_out: why candidates could not be trained by the recipe, by name.
    """

    table: pd.DataFrame
    ranks: pd.DataFrame
    rule: Rule
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def order(self) -> list[str]:
        """Names, the first of the rule at the top."""
        return list(self.table.teacher)

    @property
    def r12_pick(self) -> str:
        """Whom the paper's R12 picks."""
        return self.table.set_index("teacher").r12_rank.idxmin()

    @property
    def tac_pick(self) -> str:
        """The most accurate candidate on held-out photos."""
        return self.table.sort_values("teacher").set_index("teacher").tac.idxmax()

    def stability(self, places: int = 3) -> pd.DataFrame:
        """Share of bootstrap samples in which each candidate has each of the first places, if any."""
        shares = {place: (self.ranks == place).mean() for place in range(1, places + 1)}
        return pd.DataFrame(shares).dropna().rename_axis("teacher").reset_index()

    def compare(self) -> str:
        """Say in a sentence how the rule and the paper's R12 agree."""
        if self.rule.metric == PAPER_RULE:
            return f"Ranked by R12, smaller first ({self.rule.reason})."
        rho = spearman(self.table["rank"], self.table.r12_rank)
        agrees = "agrees" if self.r12_pick == self.order[0] else f"picks {self.r12_pick} instead"
        orders = "" if np.isnan(rho) else f"; the rank correlation of the two orders is {rho:+.2f}"
        return f"Ranked by {self.rule.label} ({self.rule.reason}). R12 {agrees}{orders}."


def rule(recipe: str) -> Rule:
    """The metric of the largest mean rho in the committed study, by recipe: FZ, FT or CAL."""
    support = pd.read_csv(RULES)
    support = support[support.recipe == recipe].set_index("metric")
    found = {name: f"{row.rho:+.2f} ({row.low:+.2f} to {row.high:+.2f})" for name, row in support.iterrows()}
    best = support.index[0]
    reason = (
        f"on {support.datasets.max()} sets of real photos its mean rank correlation with the students' "
        f"accuracy, in the claimed direction, is {found[best]}, the largest of {len(support)} metrics on the "
        "very data that it was picked by"
    )
    if best == PAPER_RULE:
        return Rule(best, f"the paper's rule; {reason}")
    return Rule(best, f"{reason}; that of the paper's R12 is {found[PAPER_RULE]}")


def rank(task: Task, study: Study, rule: Rule) -> Ranking:
    """Train and measure all candidates of the selection study, and order them by a rule.

    Ties go by the name: the order of the list has no part in it.
    """
    names = sorted(study.teachers)
    labels = torch.from_numpy(stages.data(study, task.dataset).test.labels)
    rows = []
    samples = {}
    left_out: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        try:
            result = stages.teacher(study, task.dataset, name, task.recipe)
        except (FloatingPointError, StudyError) as error:
            left_out[name] = str(error)
            task.say(f"teacher {number} of {len(names)}: {name} is left out: {error}")
            continue
        samples[name] = metrics.all_samples(torch.from_numpy(result.logits()), labels)
        row = result.rows.iloc[0]
        on_test = {key: value for key, value in result.record["on_test"].items() if key != "train_accuracy"}
        own = row[["tac", "logme", "leep", "nce", "parameters", "norm", "lr"]].to_dict()
        rows.append({"teacher": name} | on_test | own)
        task.say(
            f"teacher {number} of {len(names)}: {name}, TAC {row.tac:.1%}, R12 {on_test['ratio12']:.3f} on "
            f"held-out photos ({result.record['provenance']['seconds']:.0f} s)"
        )
    if not rows:
        raise StudyError(f"no teacher is left that could be trained; {LOG} says why of each")
    table = pd.DataFrame(rows)
    if table[rule.metric].isna().any():
        lacking = f"{rule.label} is not defined for all candidates on these photos"
        rule = Rule(PAPER_RULE, f"the paper's rule, since {lacking}")
    table["rank"] = _ranks(table[rule.metric], rule.metric)
    table["r12_rank"] = _ranks(table[PAPER_RULE], PAPER_RULE)
    ranks = _resample(samples, rule.metric)
    table = table.join(_stability(ranks), on="teacher").sort_values("rank", ignore_index=True)
    first = ["rank", "teacher", "r12_rank", "first", "low", "high"]
    table = table[[*first, *(name for name in table if name not in first)]]
    return Ranking(table, ranks[list(table.teacher)], rule, left_out)


def costs(task: Task, study: Study, ranking: Ranking) -> pd.DataFrame:
    """What each candidate costs here: images a second, and minutes to distil from it.

    images_per_second: passes forward of that network.  minutes: of its views in the bank, and of all of the
    student's epochs, on all training photos.  Speeds are measured once and kept in speeds.json.
    """
    images = stages.data(study, task.dataset)
    number = len(images.train) + len(images.test)  # of the selection study: all training photos
    file = task.folder / "speeds.json"
    known = records.read_json(file) or {}

    def speed(spec: Model, *, train: bool = False) -> float:
        key = f"{task.device} {study.views.crop} {spec.resolution} {spec.model} {train}"
        if key not in known:
            known[key] = candidates.images_per_second(
                spec, len(images.classes), task.device, crop=study.views.crop, train=train
            )
        return known[key]

    (student,) = study.students.values()
    recipe = study.recipe("student", student)
    epochs = recipe.epochs / speed(student, train=True)
    rows = []
    for name in ranking.order:
        own = speed(study.teacher(name))
        minutes = number * (recipe.n_views / own + epochs) / 60
        rows.append({"teacher": name, "images_per_second": own, "minutes": minutes})
    records.write_json(file, known)
    return pd.DataFrame(rows)


def _ranks(values: pd.Series, metric: str) -> pd.Series:
    """Ranks from 1, the best in the claimed direction first; ties in the order of the rows."""
    return (values * -METRICS[metric].direction).rank(method="first", na_option="bottom").astype(int)


def _resample(samples: dict[str, dict[str, torch.Tensor]], metric: str, seed: int = 0) -> pd.DataFrame:
    """Ranks (draws, candidates) by means over bootstrap samples; equal ones share the better.

    samples: `metrics.all_samples` of each candidate; a metric that is not among them has no draws.
    """
    column = "correct" if metric == "tac" else metric
    first = next(iter(samples.values()))
    if column not in first:
        return pd.DataFrame(columns=list(samples), dtype=float)
    values = np.stack([of_photos[column].double().numpy() for of_photos in samples.values()])
    number = values.shape[1]
    rng = np.random.default_rng(seed)
    means = [np.nanmean(values[:, rng.integers(number, size=number)], axis=1) for _ in range(DRAWS)]
    scores = pd.DataFrame(means, columns=list(samples)) * -METRICS[metric].direction
    return scores.rank(axis=1, method="min", na_option="bottom").astype(int)


def _stability(ranks: pd.DataFrame) -> pd.DataFrame:
    """first, low and high of each candidate; NaN where nothing was resampled."""
    low = ranks.quantile(0.025, interpolation="lower")
    high = ranks.quantile(0.975, interpolation="higher")
    return pd.DataFrame({"first": (ranks == 1).mean(), "low": low, "high": high})
