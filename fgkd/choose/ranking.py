"""The candidates in the order of a metric on held-out training photos, and how stable that order is.

Every candidate is trained by the task's recipe on four fifths of the training photos (a stage of the
selection study, so it is computed once) and measured on the others.  The test photos have no part in it.
The metric is the one that ranked teachers best in the committed study on real photos.  Stability is that of
the order over bootstrap samples of the held-out photos: other photos, the same teachers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from fgkd import metrics, records, stages
from fgkd.analysis.blocks import MIN_DATASETS
from fgkd.analysis.correlation import spearman
from fgkd.choose import LOG, candidates
from fgkd.choose.task import Task
from fgkd.metrics.claims import METRICS
from fgkd.study import PROJECT, Study, StudyError

RULES = PROJECT / "runs" / "photos" / "tables" / "rules.csv"  # by benchmarks/choosing.py
PAPER_RULE = "ratio12"
DRAWS = 1000
RESAMPLED = ("nonpositive", "correct", "confidence")  # values of single photos that are no metric


@dataclass(frozen=True)
class Rule:
    """The metric that ranks, and why, in a sentence."""

    metric: str
    reason: str

    @property
    def label(self) -> str:
        """The metric's short name."""
        return METRICS[self.metric].label

    @property
    def direction(self) -> int:
        """+1 where larger is better, -1 where smaller is."""
        return METRICS[self.metric].direction


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
        best = self.table.sort_values(["tac", "teacher"], ascending=[False, True])
        return best.teacher.iloc[0]

    def stability(self, places: int = 3) -> pd.DataFrame:
        """Share of bootstrap samples in which each candidate has each of the first places, if any."""
        shares = {place: (self.ranks == place).mean() for place in range(1, places + 1)}
        return pd.DataFrame(shares).dropna().rename_axis("teacher").reset_index()

    def compare(self) -> str:
        """Say in a sentence how the rule and the paper's R12 agree."""
        first = self.order[0]
        if self.rule.metric == PAPER_RULE:
            return f"Ranked by R12, smaller first ({self.rule.reason})."
        rho = spearman(self.table["rank"], self.table.r12_rank)
        agrees = "agrees" if self.r12_pick == first else f"picks {self.r12_pick} instead"
        orders = "" if np.isnan(rho) else f"; the rank correlation of the two orders is {rho:+.2f}"
        return f"Ranked by {self.rule.label} ({self.rule.reason}). R12 {agrees}{orders}."


def rule(recipe: str) -> Rule:
    """The rule that the committed study supports best for teachers of a recipe: FZ, FT or CAL."""
    if not RULES.is_file():
        return Rule(PAPER_RULE, "the paper's, since the study on real photos is not beside this package")
    support = pd.read_csv(RULES)
    return decide(support[support.recipe == recipe])


def decide(support: pd.DataFrame) -> Rule:
    """The metric of the largest mean rho, or the paper's R12 below six datasets.

    support: one row per metric, the best first: its mean rho with the students' accuracy over `datasets`, in
    the claimed direction, with its 95 % interval, low and high.
    """
    datasets = int(support.datasets.max()) if len(support) else 0
    if datasets < MIN_DATASETS:
        complete = f"of the study on real photos {datasets} data sets are complete"
        return Rule(
            PAPER_RULE, f"the paper's rule: {complete}, {MIN_DATASETS} would tell which rule is better"
        )
    found = {
        row.metric: f"{row.rho:+.2f} ({row.low:+.2f} to {row.high:+.2f})" for row in support.itertuples()
    }
    best = support.metric.iloc[0]
    reason = (
        f"on {datasets} sets of real photos its mean rank correlation with the students' accuracy, in the "
        f"claimed direction, is {found[best]}, the largest of {len(support)} metrics on the very data that "
        "it was picked by"
    )
    if best == PAPER_RULE:
        return Rule(PAPER_RULE, f"the paper's rule; {reason}")
    return Rule(best, f"{reason}; that of the paper's R12 is {found[PAPER_RULE]}")


def rank(task: Task, study: Study, rule: Rule) -> Ranking:
    """Train and measure all candidates of the selection study, and order them by a rule.

    Ties go by the name: the order of the list has no part in it.
    """
    names = sorted(study.teachers)
    labels = stages.data(study, task.dataset).test.labels
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
        of_photos = metrics.all_samples(torch.from_numpy(result.logits()), torch.from_numpy(labels))
        samples[name] = {key: values.double().numpy() for key, values in of_photos.items()}
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
    table["rank"] = _ranks(table[rule.metric], rule.direction)
    table["r12_rank"] = _ranks(table[PAPER_RULE], METRICS[PAPER_RULE].direction)
    ranks = _resample(samples, rule)
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
    (student,) = study.students.values()
    recipe = study.recipe("student", student)
    specs = {name: study.teacher(name) for name in ranking.order} | {"": student}
    file = task.folder / "speeds.json"
    known = records.read_json(file) or {}
    speeds = {}
    for name, spec in specs.items():
        key = f"{task.device} {study.views.crop} {spec.resolution} {spec.model} {name == ''}"
        if key not in known:
            known[key] = candidates.images_per_second(
                spec, len(images.classes), task.device, crop=study.views.crop, train=name == ""
            )
        speeds[name] = known[key]
    records.write_json(file, known)
    rows = []
    for name in ranking.order:
        seconds = number * (recipe.n_views / speeds[name] + recipe.epochs / speeds[""])
        rows.append({"teacher": name, "images_per_second": speeds[name], "minutes": seconds / 60})
    return pd.DataFrame(rows)


def _ranks(values: pd.Series, direction: int) -> pd.Series:
    """Ranks from 1, the best in the claimed direction first; ties in the order of the rows."""
    return (values * -direction).rank(method="first", na_option="bottom").astype(int)


def _resample(samples: dict[str, dict[str, np.ndarray]], rule: Rule, seed: int = 0) -> pd.DataFrame:
    """Ranks (draws, candidates) by the rule over bootstrap samples; equal ones share the better."""
    summarize = _summary(rule.metric, list(samples.values()))
    if summarize is None:
        return pd.DataFrame(columns=list(samples), dtype=float)
    number = len(next(iter(samples.values()))["correct"])
    rng = np.random.default_rng(seed)
    scores = pd.DataFrame(
        [summarize(rng.integers(number, size=number)) for _ in range(DRAWS)], columns=list(samples)
    )
    return (-rule.direction * scores).rank(axis=1, method="min", na_option="bottom").astype(int)


def _summary(metric: str, values: list[dict[str, np.ndarray]]) -> Callable | None:
    """A function from indices of photos to the metric of every candidate on these photos, (candidates,)."""
    if metric == "ece":
        return lambda index: [
            metrics.calibration_error(of["confidence"][index], of["correct"][index] > 0) for of in values
        ]
    column = {"tac": "correct", "ratio12_median": "ratio12"}.get(metric, metric)
    if column not in values[0] or metric in RESAMPLED:
        return None
    array = np.stack([of[column] for of in values])
    mean = np.nanmedian if metric == "ratio12_median" else np.nanmean
    return lambda index: mean(array[:, index], axis=1)


def _stability(ranks: pd.DataFrame) -> pd.DataFrame:
    """first, low and high of each candidate; NaN where nothing was resampled."""
    low = ranks.quantile(0.025, interpolation="lower")
    high = ranks.quantile(0.975, interpolation="higher")
    return pd.DataFrame({"first": (ranks == 1).mean(), "low": low, "high": high})
