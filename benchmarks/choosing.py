"""What choosing by `fgkd choose` gains, from the records of a study in which all teachers taught.

    python benchmarks/choosing.py photos                          the study's records alone
    python benchmarks/choosing.py photos FOLDER [FOLDER ...]      and choices that `fgkd choose` made
    python benchmarks/choosing.py photos --rules FILE             what ranks teachers best, for `fgkd choose`

The first table has a row per rule: mean regret in points of student accuracy against the best teacher, over
the datasets that are complete, with its 95 % interval from six of them on, and the share of all teachers'
students' training that it sees.  The rule of the study itself is picked, for the teachers' recipe, on the
other datasets alone, each left out in turn.  Pilots are successive halving on the students' training
accuracies, which the records hold for every epoch; `fgkd choose` measures its own on held-out photos, which
are fewer.  The second table compares choices with the study: a folder's dataset has the name of its photos,
teachers are matched by the files of their weights.

The file of rules, runs/photos/tables/rules.csv, has a row per recipe of teachers and metric, the best first:
the mean over datasets of Spearman's rho of its ranking of the teachers with their students' accuracies, in
the claimed direction.  Teachers are compared on photos that they were not trained on, there as by `fgkd
choose`: the metrics are those of their test logits.  Metrics that see the student have no part in it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd

from fgkd import study as studies
from fgkd.analysis import records
from fgkd.analysis.blocks import MIN_DATASETS, mean_interval
from fgkd.analysis.correlation import spearman
from fgkd.analysis.groups import GROUP, agreement, join_students_with_metrics
from fgkd.choose.students import epochs_of_rungs
from fgkd.metrics.claims import METRICS
from fgkd.study import RECIPES, Study

SUPPORT = ["metric", "rho", "low", "high", "datasets"]
SHOWN = ("ratio12", "ratio12_median", "ssp", "tac", "nll", "logme")


def rules(study: Study) -> pd.DataFrame:
    """The rows of `support_of` for each recipe of the study's teachers."""
    students, metrics = tables(study)
    recipes = dict.fromkeys(RECIPES[name] for name in study.strategies)
    frames = [support_of(recipe, study, students, metrics).assign(recipe=recipe) for recipe in recipes]
    return pd.concat(frames)[["recipe", *SUPPORT]]


def support_of(recipe: str, study: Study, students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """`support` by the students of one recipe's teachers; by all, below six datasets of these."""
    if len(students):
        own = support(students[students.strategy.isin(study.strategies_using(recipe))], metrics)
        if len(own) and own.datasets.max() >= MIN_DATASETS:
            return own
    return support(students, metrics)


def support(students: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per metric, the best first: mean over datasets of its rho, in the claimed way.

    Columns: metric, rho, low and high (its 95 % interval over datasets), datasets.  A group counts once
    all teachers have students in it; a metric that lacks one of them is left out.

    students, metrics: as returned by `tables`
    """
    rows = []
    if len(students):
        points = join_students_with_metrics(students, metrics)
        complete = points.groupby(GROUP).teacher.transform("nunique") == metrics.teacher.nunique()
        points = points[complete]
        by_dataset = {dataset: agreement(part) for dataset, part in points.groupby("dataset")}
        for name, values in pd.DataFrame(by_dataset).iterrows():
            claim = METRICS[name]
            if claim.begun or claim.afterwards or claim.plugin or values.isna().any() or not len(values):
                continue
            low, high = mean_interval(values, values.index)
            rows.append(
                {"metric": name, "rho": values.mean(), "low": low, "high": high, "datasets": len(values)}
            )
    frame = pd.DataFrame(rows, columns=SUPPORT)
    return frame.sort_values(["rho", "metric"], ascending=[False, True], ignore_index=True)


def tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The students of a study, and its teachers' metrics on test images, from records alone.

    Metrics have a row per dataset, teacher, strategy and seed, with TAC, size and transfer scores.
    """
    known: dict = {}
    students: list[dict] = []
    metrics: list[dict] = []
    for job in study.jobs():
        seed = {"seed": study.seed_of(job)}
        for stored in records.of(study, job, known) if job.stage in ("teacher", "distill") else ():
            if job.stage == "distill":
                students += [row | seed for row in stored["rows"]]
                continue
            on_test = {name: value for name, value in stored["on_test"].items() if name != "train_accuracy"}
            own = {name: stored["rows"][0].get(name) for name in ("tac", "parameters", *records.TRANSFER)}
            for strategy in study.strategies_using(job.strategy):
                keys = {"dataset": job.dataset, "teacher": job.teacher, "strategy": strategy}
                metrics.append(keys | seed | on_test | own)
    taught = [row for row in students if row["strategy"] != "CE"]
    known_teachers = {(row["dataset"], row["teacher"], row["strategy"], row["seed"]) for row in metrics}
    taught = [
        row
        for row in taught
        if (row["dataset"], row["teacher"], row["strategy"], row["seed"]) in known_teachers
    ]
    frame = pd.DataFrame(metrics)
    for name in records.TRANSFER if len(frame) else ():
        frame[name] = frame[name].astype(float)
    return pd.DataFrame(taught), frame


def histories(study: Study) -> pd.DataFrame:
    """Training accuracy of every student after every epoch: one row each, with the group's keys."""
    rows = []
    known: dict = {}
    for job in study.jobs():
        for stored in records.of(study, job, known) if job.stage == "distill" else ():
            row = stored["rows"][0]
            keys = {key: row[key] for key in (*GROUP, "teacher")}
            for epoch in stored.get("history", []):
                rows.append(keys | {"epochs": epoch["epoch"] + 1, "accuracy": epoch["train_accuracy"]})
    return pd.DataFrame(rows)


def regrets(study: Study) -> pd.DataFrame:
    """One row per complete group and rule: regret in points, cost as a share of all students' training."""
    students, metrics = tables(study)
    points = join_students_with_metrics(students, metrics)
    complete = points.groupby(GROUP).teacher.transform("nunique") == metrics.teacher.nunique()
    points = points[complete]
    seen = histories(study).set_index([*GROUP, "teacher", "epochs"]).accuracy.sort_index()
    rows = []
    for key, group in points.groupby(GROUP):
        group = group.sort_values("teacher").reset_index(drop=True)
        others = students[students.dataset != key[0]]
        recipe = RECIPES[key[2]]
        support = support_of(recipe, study, others, metrics[metrics.dataset != key[0]])
        picks: dict[str, tuple[str | None, float]]
        picks = {METRICS[name].label: (_pick(group, name), 0.0) for name in SHOWN}
        picks["random"] = (None, 0.0)
        halves = {METRICS[name].label: name for name in ("ratio12", "tac")}
        if len(support):
            halves["the study's rule"] = support.metric.iloc[0]
            picks["the study's rule"] = (_pick(group, halves["the study's rule"]), 0.0)
        for label, name in halves.items():
            picks[f"pilots, half by {label}"] = _halve(group, name, seen.loc[key])
        for rule, (pick, cost) in picks.items():
            reached = group.accuracy.mean() if pick is None else group.accuracy[group.teacher == pick].item()
            regret = 100 * (group.accuracy.max() - reached)
            rows.append(dict(zip(GROUP, key, strict=True)) | {"rule": rule, "regret": regret, "cost": cost})
    return pd.DataFrame(rows, columns=[*GROUP, "rule", "regret", "cost"])


def summarize(regrets: pd.DataFrame) -> pd.DataFrame:
    """One row per rule, the smallest mean regret first, with its interval over datasets."""
    rows = []
    for rule, part in regrets.groupby("rule"):
        low, high = mean_interval(part.regret, part.dataset)
        means = {"regret": part.regret.mean(), "low": low, "high": high, "cost": part.cost.mean()}
        rows.append({"rule": rule} | means | {"groups": len(part), "datasets": part.dataset.nunique()})
    columns = ["rule", "regret", "low", "high", "cost", "groups", "datasets"]
    return pd.DataFrame(rows, columns=columns).sort_values("regret", ignore_index=True)


def compare(study: Study, folder: Path) -> list[dict]:
    """One row per group of the folder's dataset: how a choice made there agrees with the study's students.

    rho: of the ranking's order, and of R12's and TAC's on held-out photos, with the students' accuracy in the
    study; regret in points of whom the choice, its ranking, R12 and TAC pick.
    """
    table = records.read_table(folder / "ranking.csv")
    own = studies.load(str(folder / "selection.yaml"))
    names = {Path(teacher.file).name: key for key, teacher in study.teachers.items() if teacher.file}
    files = {key: Path(teacher.file).name for key, teacher in own.teachers.items() if teacher.file}
    table["teacher"] = [names.get(files.get(name, "")) for name in table.teacher]
    students, _ = tables(study)
    dataset = next(iter(own.datasets))
    rows = []
    for key, group in students[students.dataset == dataset].groupby(GROUP):
        joined = table.merge(group[["teacher", "accuracy"]], on="teacher")
        if len(joined) < 3:
            continue
        best = joined.accuracy.max()
        picks = {
            "choice": joined.place.idxmin(),
            "ranking": joined["rank"].idxmin(),
            "R12": joined.r12_rank.idxmin(),
            "TAC": joined.tac.idxmax(),
        }
        rows.append(
            dict(zip(GROUP, key, strict=True))
            | {"teachers": len(joined), "rho": spearman(-joined["rank"], joined.accuracy)}
            | {
                "rho R12": spearman(-joined.ratio12, joined.accuracy),
                "rho TAC": spearman(joined.tac, joined.accuracy),
            }
            | {f"regret, {name}": 100 * (best - joined.accuracy[row]) for name, row in picks.items()}
            | {"regret, random": 100 * (best - joined.accuracy.mean())}
        )
    return rows


def _pick(group: pd.DataFrame, metric: str) -> str:
    """The teacher that a metric picks, of equal ones the first by name."""
    return group.teacher[(group[metric] * METRICS[metric].direction).idxmax()]


def _halve(group: pd.DataFrame, metric: str, seen: pd.Series) -> tuple[str, float]:
    """The pick of successive halving after the better half by a metric, and its cost.

    seen: training accuracy by teacher and epochs.
    """
    order = group.teacher[(-METRICS[metric].direction * group[metric]).argsort(kind="stable")].tolist()
    epochs = int(seen.index.get_level_values("epochs").max())
    survivors = order[: math.ceil(len(order) / 2)]
    trained: dict[str, int] = {}
    for rung in epochs_of_rungs(epochs, len(survivors)):
        trained |= dict.fromkeys(survivors, rung)
        survivors = sorted(survivors, key=lambda name: -seen[name, rung])[: math.ceil(len(survivors) / 2)]
    return survivors[0], sum(trained.values()) / (epochs * len(order))


def main() -> None:
    """Print both tables, as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", help="a study with records, by its name in runs/ or its file")
    parser.add_argument("folders", nargs="*", type=Path, help="results of `fgkd choose`")
    parser.add_argument("--rules", type=Path, help="write there what ranks teachers best, and nothing else")
    options = parser.parse_args()
    study = studies.load(options.study)
    if options.rules:
        records.write_table(rules(study), options.rules)
        return
    print(summarize(regrets(study)).round(2).to_string(index=False))
    rows = [row for folder in options.folders for row in compare(study, folder)]
    if rows:
        print(pd.DataFrame(rows).round(2).T.to_string())
        shown = pd.DataFrame(rows).select_dtypes(np.number).mean().round(2)
        print(f"means over {len(rows)} groups:\n{shown.to_string()}")


if __name__ == "__main__":
    main()
