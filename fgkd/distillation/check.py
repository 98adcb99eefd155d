"""Whether a study's records, weights, test logits, banks and caches belong together: `fgkd check`."""

from __future__ import annotations

import shutil
from collections import Counter

from fgkd.analysis import records
from fgkd.data import datasets
from fgkd.data.images import DataError
from fgkd.distillation import bank as banks
from fgkd.distillation import export, stages, training
from fgkd.study import Job, Study, StudyError

BANK_NOISE = 0.02  # of the largest logit: what another machine or device may differ by
COUNTED = {"data": "caches", "bank": "banks", "teacher": "trainings", "student": "trainings"}


def check(study: Study) -> tuple[dict[str, int], dict[Job, str]]:
    """Counts of records, caches, trainings and banks, and what does not fit of which job.

    Nothing is written or trained.  A record that is out of date is no fault; `fgkd plan` shows it.
    """
    counts = Counter(records=0, **dict.fromkeys(COUNTED.values(), 0))
    faults: dict[Job, str] = {}
    splits: dict[str, datasets.Dataset | None] = {}
    datasets.look(study)
    for job in study.jobs():
        if job.stage == "data":
            splits[job.dataset], words = _check_cache(study, job)
            counts["caches"] += splits[job.dataset] is not None or bool(words)
            faults |= {job: words} if words else {}
        for part in records.record_jobs(study, job):
            record = records.find(study, part)
            if record is None or part in faults:
                continue
            counts["records"] += 1
            words = records.fault(part, record) or ""
            dataset = splits.get(part.dataset)
            if not words and dataset is not None and part.stage in ("teacher", "student", "bank"):
                compare = _check_bank if part.stage == "bank" else _check_training
                is_here, words = compare(study.at(study.seed_of(part)), part, record, dataset, faults)
                counts[COUNTED[part.stage]] += is_here
            faults |= {part: words} if words else {}
    return dict(counts), faults


def repair(study: Study, faults: dict[Job, str]) -> None:
    """Remove the records of these jobs and what lies beside them: they are computed again."""
    for job in faults:
        folder = study.path(job)
        records.retract(folder)
        for name in (*records.KEPT, "cache/index.json"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "views", ignore_errors=True)


def _check_cache(study: Study, job: Job) -> tuple[datasets.Dataset | None, str]:
    """A dataset as its cache holds it, None without one, and what does not fit in it."""
    try:
        return datasets.faults(study.data(job.dataset), study.path(job) / "cache")
    except DataError:  # without its photos nothing says what it should hold
        return None, ""


def _check_training(
    study: Study, job: Job, record: dict, dataset: datasets.Dataset, faults: dict[Job, str]
) -> tuple[bool, str]:
    """Whether a training's weights are here, and what does not fit of them and its test logits."""
    is_here = any((study.path(job) / name).exists() for name in records.KEPT)
    spec = study.student(job.student) if job.stage == "student" else study.teacher(job.teacher)
    trained = export.Trained(study, job, spec, dataset, record)
    try:
        return is_here, export.fault(trained, predict="files" not in record and job.strategy != "CAL") or ""
    except StudyError as error:  # weights that cannot be read, or are of another network
        return is_here, str(error)


def _check_bank(
    study: Study, job: Job, record: dict, dataset: datasets.Dataset, faults: dict[Job, str]
) -> tuple[bool, str]:
    """Whether a bank is here, and what of it does not fit: random views, with its teacher's outputs."""
    (teacher,) = study.inputs(job)
    weights = study.path(teacher) / "model.safetensors"
    if not (study.path(job) / "views").is_dir():
        return False, ""
    bank = stages.read_bank(study, job)
    if bank is None:
        return True, "its bank is of another training, or not whole"
    if teacher in faults or not weights.exists() or records.find(study, teacher) is None:
        return True, ""
    images = training.Images(dataset.train, study.views, bank.device)
    model = stages.restore_teacher(study, teacher, len(dataset.classes))
    differences = banks.check(bank, model, images, views_seed=study.seed_for("student views", job.dataset))
    if differences["logits"] > BANK_NOISE:
        return (
            True,
            f"its bank differs from its teacher's outputs by {differences['logits']:.1%} of the largest",
        )
    return True, ""
