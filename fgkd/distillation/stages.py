"""The stages of a study: each loads what its job computed before, or computes it now.

A stage also computes what it needs of earlier ones.  A notebook calls one and looks at the result: it
therefore runs by itself, and costs nothing twice when the engine runs it.  The test split has no part in any
choice that a stage makes.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fgkd import metrics
from fgkd.analysis import correlation, records
from fgkd.data import datasets
from fgkd.distillation import bank as banks
from fgkd.distillation import jobs, training
from fgkd.models import classifier
from fgkd.study import PRETEXT, RECIPES, Job, Recipe, Study, StudyError

PILOT = "pilot.json"  # a student's accuracy after some of its epochs, beside its checkpoint
SHOWN_VIEWS = 4  # stored of each image where students need no bank


@dataclass(frozen=True)
class StageResult:
    """What a job computed: its rows, its folder, and its record."""

    job: Job
    folder: Path
    rows: pd.DataFrame
    record: dict

    def table(self, name: str) -> pd.DataFrame:
        """Another table of the record: 'history' or 'search' of a training, 'epochs' of a bank."""
        return pd.DataFrame(self.record[name])

    def logits(self) -> np.ndarray:
        """Test logits (N, C) of a teacher or student."""
        return np.load(self.folder / "test.npy")


@dataclass(frozen=True)
class DistillResult:
    """The students of a distill job: one StageResult per student and loss."""

    job: Job
    students: dict[tuple[str, str], StageResult]

    @property
    def rows(self) -> pd.DataFrame:
        """One row per student and loss."""
        return pd.concat([result.rows for result in self.students.values()], ignore_index=True)

    def table(self, name: str) -> pd.DataFrame:
        """All students' tables of that name, with `student` and `loss`; empty where none has one."""
        rows = []
        for (student, loss), result in self.students.items():
            keys = {"student": student, "loss": loss}
            rows += [keys | row for row in result.record.get(name, [])]
        return pd.DataFrame(rows)

    def logits(self) -> dict[tuple[str, str], np.ndarray]:
        """Test logits (N, C) by student and loss, where they are here: a record may have come alone."""
        results = self.students.items()
        return {key: result.logits() for key, result in results if (result.folder / "test.npy").exists()}


@dataclass(frozen=True)
class FirstStep:
    """The first step of a student that learns from a teacher by KD, on the CPU.

    x: views (B, 3, S, S) in the order of the loop; labels: (B,); teacher: its logits (B, C).
    before, after: the student with its first weights, and after the step of `training.fit`.
    recipe: of one epoch of one batch.
    """

    x: Tensor
    labels: Tensor
    teacher: Tensor
    before: classifier.Classifier
    after: classifier.Classifier
    recipe: Recipe


def data(study: Study, key: str) -> datasets.Dataset:
    """The dataset, its images decoded and cached by the first call.

    A process looks at the photos once: later changes are seen by the next one.
    """
    job = Job("data", key)
    dataset = _load_dataset(study.data(key), study.path(job) / "cache")
    photos: tuple[str, ...] = ()
    if dataset.content:
        study.photos[key] = dataset.content
        photos = dataset.content.photos

    def compute(_):
        row = {
            "dataset": key,
            "classes": len(dataset.classes),
            "train": len(dataset.train),
            "test": len(dataset.test),
        }
        return {"rows": [row], "notes": list(dataset.notes), "photos": " ".join(photos)}

    _load_or_compute(study, job, compute)
    return dataset


def teacher(study: Study, dataset: str, key: str, recipe_name: str) -> StageResult:
    """Train a teacher and measure its accuracy (TAC) on the test split.

    FZ: its last layer on a frozen backbone; FT and pretext: all of it; CAL: with attention.
    """
    job = study.job("teacher", dataset, key, recipe_name)
    spec = study.teacher(key)
    images = data(study, dataset)

    def compute(folder):
        train, test = _both_splits(study, images)
        fit = functools.partial(jobs.train_teacher, study, job, train, len(images.classes))
        fit = functools.partial(fit, pretext_weights=_pretext_weights(study, job))
        recipe = study.recipe(recipe_name, spec)
        model, recipe, tables = jobs.train_at_best_rate(fit, study, job, train, recipe, folder)
        tac, logits = training.accuracy(model, test)
        tac_single = tac
        if recipe_name == "CAL":  # on one view instead of eight
            tac_single = metrics.accuracy(training.predict(model, test), images.test.labels)
        _save_model(folder, model, logits)
        row = {
            "dataset": dataset,
            "teacher": key,
            "recipe": recipe_name,
            "model": spec.model,
            "tac": tac,
            "tac_single": tac_single,
            "train_accuracy": tables["history"][-1]["train_accuracy"],
            "parameters": classifier.parameters(model),
            "pretraining": classifier.pretraining(spec),
            "norm": classifier.norm(model),
            "epochs": recipe.epochs,
            "lr": recipe.lr,
        } | jobs.transfer_scores(_pretrained(study, job), train)
        labelled = metrics.labelled_samples(logits, images.test.labels)
        on_test = metrics.summarize(logits) | metrics.summarize_labelled(labelled)
        return {"rows": [row], "on_test": on_test} | tables

    return _load_or_compute(study, job, compute, files=("model.safetensors", "test.npy"))


def load_teacher(study: Study, dataset: str, key: str, recipe_name: str) -> classifier.Classifier:
    """A trained teacher, frozen, in eval mode, on the study's device."""
    job = teacher(study, dataset, key, recipe_name).job
    return restore_teacher(study, job, len(data(study, dataset).classes))


def restore_teacher(study: Study, job: Job, classes: int) -> classifier.Classifier:
    """A teacher from its weights as they lie on disk; nothing is trained."""
    model = jobs.build_teacher(study, job, classes)
    classifier.restore(model, study.path(job) / "model.safetensors")
    return model.to(_device(study)).eval().requires_grad_(False)


def bank(study: Study, dataset: str, teacher: str, recipe_name: str) -> tuple[StageResult, banks.Bank]:
    """A teacher's metrics over all views of the training images, and its students' bank.

    Where a study is online, its students need no bank: the metrics are the same, and only the first few views
    are stored, to be looked at.
    """
    job = study.job("bank", dataset, teacher, recipe_name)
    images = data(study, dataset)
    folder = study.path(job) / "views"
    contents = study.bank_contents(recipe_name)
    stored = stored_views(study)
    read = functools.partial(read_bank, study, job)

    def compute(_):
        summary, epochs = banks.write(
            folder,
            load_teacher(study, dataset, teacher, recipe_name),
            training.Images(images.train, study.views, _device(study)),
            views=study.bank_views,
            keep=stored,
            views_seed=study.seed_for("student views", dataset),
            key=study.fingerprint(job),
            **contents,
        )
        row = {"samples": len(images.train), "views": study.bank_views} | summary
        claims = metrics.plugin_claims()
        return {"rows": [row], "epochs": epochs} | ({"claims": claims} if claims else {})

    result = _load_or_compute(study, job, compute, valid=lambda: read() is not None)
    stored_bank = read()
    if stored_bank is None:
        raise StudyError(f"the bank '{folder}' was changed while it was read: start again")
    return result, stored_bank


def stored_views(study: Study) -> int:
    """How many views of each image a bank of the study holds."""
    return min(SHOWN_VIEWS, study.bank_views) if study.online else study.bank_views


def read_bank(study: Study, job: Job) -> banks.Bank | None:
    """A bank as it lies on disk; None where it is another's, or not whole."""
    return banks.read(
        study.path(job) / "views",
        _device(study),
        views=stored_views(study),
        images=len(data(study, job.dataset).train),
        key=study.fingerprint(job),
        **study.bank_contents(job.strategy),
    )


def distill(study: Study, dataset: str, teacher: str, strategy: str) -> DistillResult:
    """Train every student of the study with each of its losses from one teacher, and measure it.

    Students that have a record are read, the others trained.

    teacher: 'none' for the CE baseline.
    """
    job = study.job("distill", dataset, teacher, strategy)
    images = data(study, dataset)
    sources = functools.cache(functools.partial(_student_sources, study, job))

    def compute(student_job, folder):
        spec = study.student(student_job.student)
        train, test, teacher_outputs, teacher_logits = sources()
        given = study, student_job, train, len(images.classes), teacher_outputs
        fit = functools.partial(jobs.train_student, *given)
        recipe = study.recipe("student", spec)
        model, recipe, tables = jobs.train_at_best_rate(fit, study, student_job, train, recipe, folder)
        accuracy, logits = training.accuracy(model, test)
        _save_model(folder, model, logits)
        agreement = None
        if teacher_logits is not None:
            agreement = float((logits.numpy().argmax(1) == teacher_logits.argmax(1)).mean())
        row = {
            "dataset": dataset,
            "student": student_job.student,
            "strategy": strategy,
            "loss": student_job.loss,
            "teacher": teacher,
            "model": spec.model,
            "accuracy": accuracy,
            "train_accuracy": tables["history"][-1]["train_accuracy"],
            "agreement": agreement,
            "parameters": classifier.parameters(model),
            "lr": recipe.lr,
        }
        return {"rows": [row]} | tables

    students = {}
    for student_job in study.student_jobs(job):
        result = _load_or_compute(study, student_job, functools.partial(compute, student_job))
        students[student_job.student, student_job.loss] = result
    return DistillResult(job, students)


def first_step(study: Study, dataset: str, teacher: str, strategy: str, *, number: int = 8) -> FirstStep:
    """Take the study's first student through one step, on the first views of a few images.

    Raises ValueError for a strategy that is not KD of a view alone.
    """
    if strategy not in ("FZ", "FT", "CAL"):
        raise ValueError(
            f"strategy is {strategy!r}: expected FZ, FT or CAL, whose students learn by KD alone"
        )
    spec = next(iter(study.students.values()))
    classifier.load_plugins(study.plugins)
    split = data(study, dataset)
    images = training.Images(split.train, study.views, torch.device("cpu"))
    chosen = torch.linspace(0, len(images) - 1, min(number, len(images))).long()
    x = images.batch(chosen, images.epoch(study.seed_for("student views", dataset), 0))
    labels = images.labels[chosen]
    model = load_teacher(study, dataset, teacher, RECIPES[strategy]).cpu()
    with torch.no_grad():
        told = model(x)
    recipe = study.recipe("student", spec).model_copy(update={"epochs": 1, "batch_size": len(chosen)})
    objective = training.distillation(
        labels, lambda _, epoch, index: {"logits": told[index]}, study.distillation
    )
    options: dict[str, Any] = {"crop": study.views.crop, "seed": study.seed_for("student", dataset, spec.key)}
    before, after = (classifier.build(spec, len(split.classes), **options) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint"
        training.fit(after, lambda epoch, index: x[index], labels, objective, recipe, seed=0, checkpoint=file)
    batches = training.shuffled_batches(
        torch.arange(len(chosen)), 1, seed=0, epoch=0, devices=(labels.device,)
    )
    ((order,),) = batches
    return FirstStep(x[order], labels[order], told[order], before, after, recipe)


def pilot(study: Study, job: Job, epochs: int) -> dict:
    """Train a student for its first `epochs` epochs, and measure it then on the test split.

    The learning rate follows the schedule of all epochs.  Later calls with more epochs go on from there; what
    was measured before is read.  Returns epochs, accuracy, train_accuracy, and the seconds that it took, with
    the teacher and the bank where these were not there.

    job: of stage student, with one learning rate.
    Raises FloatingPointError where the training diverges.
    """
    folder = study.path(job)
    images = data(study, job.dataset)
    fingerprint = study.fingerprint(job)
    with records.locked(folder):
        rows = pilots(study, job)
        row = rows.get(str(epochs))
        if row is None:
            start = time.monotonic()
            distill_job = dataclasses.replace(job, stage="distill", student="", loss="")
            train, test, teacher_outputs, _ = _student_sources(study, distill_job)
            recipe = study.recipe("student", study.student(job.student))
            checkpoint = folder / f"checkpoint-pilot-{fingerprint}.pt"
            given = study, job, train, len(images.classes), teacher_outputs, recipe, checkpoint
            model, history = jobs.train_student(*given, stop=epochs)
            row = {
                "epochs": epochs,
                "accuracy": training.accuracy(model, test)[0],
                "train_accuracy": history[-1]["train_accuracy"],
                "seconds": time.monotonic() - start,
            }
            rows[str(epochs)] = row
            records.write_json(folder / PILOT, {"fingerprint": fingerprint, "rows": rows})
    return row


def pilots(study: Study, job: Job) -> dict[str, dict]:
    """What `pilot` returned for a student so far, by epochs; none where an input has changed."""
    stored = records.read_json(study.path(job) / PILOT) or {}
    rows = stored.get("rows")
    if stored.get("fingerprint") != study.fingerprint(job) or not isinstance(rows, dict):
        return {}
    return {epochs: row for epochs, row in rows.items() if _is_pilot(row)}


def baseline(study: Study, dataset: str) -> pd.Series:
    """Accuracy of each student without a teacher, trained now if it was not yet.

    Empty where the study has no baseline, or where its training diverged: the accuracies of a teacher's
    students hold without it.
    """
    if study.baseline:
        try:
            return distill(study, dataset, "none", "CE").rows.set_index("student").accuracy
        except FloatingPointError as error:
            print(f"there is no student without a teacher to compare with: {error}")
    return pd.Series(dtype=float)


def gains(study: Study, dataset: str, teacher: str, strategy: str) -> pd.DataFrame:
    """What a teacher's students have above the same ones without it: a row a student and loss.

    `alone` and `taught` are test accuracies; `gain` is taught less alone, with its 95 % interval over test
    images (`low`, `high`).  NaN where the study has no baseline.
    """
    n = len(data(study, dataset).test)
    alone = baseline(study, dataset)
    rows = []
    for row in distill(study, dataset, teacher, strategy).rows.itertuples():
        without = float(alone.get(row.student, np.nan))
        low = high = np.nan
        if not np.isnan(without):
            hits = round(row.accuracy * n), round(without * n)
            low, high = correlation.difference_interval(*hits, n)
        rows.append(
            {
                "student": row.student,
                "loss": row.loss,
                "alone": without,
                "taught": row.accuracy,
                "gain": row.accuracy - without,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def study_tables(study: Study) -> dict[str, pd.DataFrame]:
    """All tables of the study; jobs that have not run yet run here, one after the other."""
    datasets.look(study)
    for job in study.jobs():
        if job.stage not in ("bank", "distill") or records.is_complete(study, job):
            continue
        run = bank if job.stage == "bank" else distill
        run(study.at(study.seed_of(job)), job.dataset, job.teacher, job.strategy)
    return records.collect(study)


def on_test(study: Study) -> pd.DataFrame:
    """The metrics of every trained teacher's logits on the test images.

    One row per dataset, teacher, recipe and seed.  A CAL teacher's logits are means over views.
    """
    rows = []
    for job in study.jobs():
        if job.stage != "teacher" or job.dataset == PRETEXT:
            continue
        seed = study.seed_of(job)
        record = records.record(study, job)
        if record is None:
            record = teacher(study.at(seed), job.dataset, job.teacher, job.strategy).record
        keys = {"dataset": job.dataset, "teacher": job.teacher, "recipe": job.strategy, "seed": seed}
        rows.append(keys | record["on_test"])
    return pd.DataFrame(rows)


def write_study_tables(study: Study, stage: str, frames: dict[str, pd.DataFrame]) -> StageResult:
    """Write the study's tables and the record of its 'correlation' or 'report' job."""
    for name, frame in frames.items():
        records.write_table(frame, study.folder / "tables" / f"{name}.csv")
    job = Job(stage)
    records.retract(study.path(job))
    rows = [{"table": name, "rows": len(frame)} for name, frame in frames.items()]
    return _load_or_compute(study, job, lambda _: {"rows": rows})


def _both_splits(study: Study, dataset: datasets.Dataset) -> tuple[training.Images, training.Images]:
    """The training and test images on the study's device."""
    device = _device(study)
    train = training.Images(dataset.train, study.views, device)
    test = training.Images(dataset.test, study.views, device)
    return train, test


def _save_model(folder: Path, model: classifier.Classifier, logits: Tensor) -> None:
    """Remove an earlier record; then write a model's weights and its test logits (N, C)."""
    records.retract(folder)
    classifier.save(model, folder / "model.safetensors")
    records.write_array(folder / "test.npy", logits.numpy())


def _student_sources(study: Study, job: Job):
    """The training and test images, teacher outputs and teacher's test logits of a distill job.

    The last two are None for the CE baseline.
    """
    classifier.load_plugins(study.plugins)
    train, test = _both_splits(study, data(study, job.dataset))
    if job.strategy == "CE":
        return train, test, None, None
    source = (job.dataset, job.teacher, RECIPES[job.strategy])
    logits = teacher(study, *source).logits()
    if not study.online:
        stored = bank(study, *source)[1]
        return train, test, lambda x, view, index: stored.outputs(view, index), logits
    model = load_teacher(study, *source)
    views_seed = study.seed_for("student views", job.dataset)
    contents = study.bank_contents(RECIPES[job.strategy])
    return train, test, banks.online_outputs(model, train, views_seed=views_seed, **contents), logits


def _is_pilot(row: object) -> bool:
    names = ("epochs", "accuracy", "train_accuracy", "seconds")
    return isinstance(row, dict) and all(isinstance(row.get(name), int | float) for name in names)


def _pretrained(study: Study, job: Job) -> classifier.Classifier | None:
    """The network that a teacher's training starts from; None for random weights."""
    spec = study.teacher(job.teacher)
    if spec.weights == "none" or job.dataset == PRETEXT:
        return None
    if spec.weights == "pretext":
        return load_teacher(study, PRETEXT, job.teacher, PRETEXT)
    return classifier.build(spec, None, crop=study.views.crop, seed=0).to(_device(study)).eval()


def _pretext_weights(study: Study, job: Job) -> Path | None:
    """The file of the teacher's network trained on the pretext set, where it starts from that."""
    if study.teacher(job.teacher).weights != "pretext" or job.dataset == PRETEXT:
        return None
    return teacher(study, PRETEXT, job.teacher, PRETEXT).folder / "model.safetensors"


def _load_or_compute(
    study: Study,
    job: Job,
    compute: Callable[[Path], dict],
    *,
    files: tuple[str, ...] = (),
    valid: Callable[[], bool] = lambda: True,
) -> StageResult:
    """Load the job's record, or compute it where it is absent or stale, or lacks its files.

    A lock on the job's folder keeps two processes, one of them perhaps an orphan, from computing it at once:
    the second waits.  What is whole is read without one, from a folder that need not be one's own.
    """
    folder = study.path(job)
    record = _look(study, job, files, valid)
    if record is None:
        with records.locked(folder):
            # Again, because another process may have computed it while this one waited.
            record = _look(study, job, files, valid, say=True) or _compute(study, job, compute, folder)
    return StageResult(job, folder, pd.DataFrame(record["rows"]), record)


def _look(
    study: Study, job: Job, files: tuple[str, ...], valid: Callable[[], bool], *, say: bool = False
) -> dict | None:
    """The job's record; None where it is absent, stale, or without the files that are needed."""
    record = records.record(study, job)
    lost = records.lost(study.path(job), record, files) if record else []
    if lost and say:
        words = f"{job.id} has its record, but not {' and '.join(lost)}, needed now"
        print(f"{words}: it is computed anew")
    return record if record and not lost and valid() else None


def _compute(study: Study, job: Job, compute: Callable[[Path], dict], folder: Path) -> dict:
    """Compute a job and write its record, last of its files."""
    start = time.monotonic()
    record = {
        "cell": job.id,
        "fingerprint": study.fingerprint(job),
        "contents": study.contents(job),
        **compute(folder),  # after the fingerprint, which is of what was there when it began
    }
    if files := records.digests(folder):
        record["files"] = files
    uses_device = job.stage in ("teacher", "bank", "student")
    device = str(training.device(study.device)) if uses_device else "cpu"
    record["provenance"] = records.provenance(study, job, device, time.monotonic() - start)
    records.write_json(folder / records.RECORD, record)
    for checkpoint in folder.glob("checkpoint-*"):
        checkpoint.unlink()
    return record


@functools.lru_cache(maxsize=8)
def _load_dataset(spec: datasets.DataSpec, cache: Path) -> datasets.Dataset:
    return datasets.load(spec, cache)


def _device(study: Study) -> torch.device:
    torch.set_num_threads(study.threads)
    return training.device(study.device)
