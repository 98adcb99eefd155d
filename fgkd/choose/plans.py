"""The studies that a choice computes: written to its folder, and runnable by `fgkd run`.

    selection.yaml   the training photos alone, a part of them held out: for the ranking and the pilots
    study.yaml       the very study, on the photos' true splits
    finetuned.yaml   the student's own pretrained network, fine-tuned; its results lie with study.yaml's

Recipes are those of the study on real photos (runs/photos.yaml): a linear head on frozen features of few
views, students from scratch by AdamW.  A GPU takes more views, and more epochs of the student.
"""

from __future__ import annotations

import math
from typing import Any

import yaml

from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Candidate, Found
from fgkd.choose.task import BIRD_SIZE, FAMILY, Task
from fgkd.records import write_bytes
from fgkd.study import Study, StudyError, load

PAPER_KD: dict[str, float] = {"temperature": 2, "beta": 10}
GENTLE_KD: dict[str, float] = {"temperature": 4, "beta": 1}  # of which the pilots on birds gained more
GENTLE_LOSS = "gentle"
STUDENT = "student"  # the student's name in the studies
FINETUNED = "finetuned"  # and that of its own network, pretrained
BATCH = 32
STEPS = 1200  # of a student at least
MOST_EPOCHS = 200
DEMO_EPOCHS = 40
DEMO_BATCH = 12  # steps enough in a tenth of them for BatchNorm's running means
RATES = [0.3, 0.1, 0.03, 0.01]
HEADER = """# Written by `fgkd choose`, which continues what is here; `fgkd run` runs it like any study.
# {what}
"""


def selection(task: Task, audit: Audit, found: Found) -> Study:
    """Write and load the study of the training photos alone."""
    what = "The training photos alone: a fifth of them, held out, is its test split."
    task.say(
        f"{audit.count('train', 'held out')} training photos of {audit.classes} classes, "
        f"{audit.count('test')} test photos, {len(found.candidates)} candidates"
    )
    raw = _common(task, audit, "selection_photos") | {"teachers": _teachers(found)}
    raw |= {"distillation": PAPER_KD, "losses": {GENTLE_LOSS: {"loss": "kd"} | GENTLE_KD}}
    return _write(task, "selection", what, raw)


def study(task: Task, audit: Audit, found: Found, distillation: dict[str, float]) -> Study:
    """Write and load the study on the true splits.

    distillation: temperature and beta.
    """
    what = "The photos' true splits, all candidates: what of it was verified is done already."
    raw = _common(task, audit, "photos") | {"teachers": _teachers(found), "distillation": distillation}
    return _write(task, "study", what, raw)


def finetuned(task: Task, audit: Audit, candidate: Candidate) -> Study:
    """Write and load the study that fine-tunes the student's own pretrained network."""
    what = "The student's own pretrained network, fine-tuned: a row to compare with."
    size = task.student_size(audit.sizes[1])
    entry = candidate.section() | {"resolution": size}
    raw = {"name": "study"} | _common(task, audit, "photos")
    raw |= {"teachers": {FINETUNED: entry}, "strategies": ["FT"]}
    raw["recipes"] = {"FT": _recipes(task, audit)["FT"], "student": raw["recipes"]["student"]}
    return _write(task, "finetuned", what, raw)


def _common(task: Task, audit: Audit, root: str) -> dict[str, Any]:
    """What the studies have in common."""
    resize, crop = audit.sizes
    size = task.student_size(crop)
    student_entry = {"model": task.student} | ({} if size == crop else {"resolution": size})
    recipes = _recipes(task, audit)
    needed = {task.recipe: recipes[task.recipe], "student": recipes["student"]}
    raw: dict[str, Any] = {
        "question": f"Which teacher for {task.student} on the photos of {task.dataset}?",
        "seed": 0,
        "device": task.device.type,
        "threads": task.threads,
        "views": {"resize": resize, "crop": crop},
        "datasets": {task.dataset: {"kind": "folder", "root": root}},
        "students": {STUDENT: student_entry},
        "strategies": [task.recipe],
        "recipes": needed,
    }
    if task.plugins:
        raw["plugins"] = list(task.plugins)
    if task.is_demo:
        raw["pretext"] = {"species": 24, "train": 24, "test": 8, "seed": 1000}
        raw["pretext"] |= {"family_size": FAMILY, "size": BIRD_SIZE}
        raw["recipes"]["pretext"] = {"epochs": 8, "batch_size": 24, "lr": 0.1}
    return raw


def _teachers(found: Found) -> dict[str, Any]:
    return {candidate.name: candidate.section() for candidate in found.candidates}


def _recipes(task: Task, audit: Audit) -> dict[str, Any]:
    """How teachers and the student are trained.

    A student takes 1,200 steps or more, as those of the study on real photos: small sets have more epochs.
    """
    on_gpu = task.device.type == "cuda"
    counts = audit.photos[audit.photos.use == "train"].label.value_counts()
    searched = counts.min() >= 3  # a search holds out a fifth of a class again
    images = audit.count("train", "held out")
    full = {"epochs": 12, "batch_size": 16, "lr": [0.1, 0.03] if searched else 0.03}
    full |= {"warmup_steps": min(100, 12 * images // 160)} | ({"search_epochs": 4} if searched else {})
    steps = math.ceil(images / BATCH)
    epochs = min(MOST_EPOCHS, max(100 if on_gpu else 40, math.ceil(STEPS / steps)))
    epochs = DEMO_EPOCHS if task.is_demo else epochs
    student: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": DEMO_BATCH if task.is_demo else BATCH,
        "views": min(20 if on_gpu else 5, epochs),
    }
    student |= {"optimizer": "adamw", "lr": 0.005, "weight_decay": 0.05}
    student["warmup_steps"] = min(100, steps * epochs // 10)
    return {
        "FZ": {"epochs": 30, "batch_size": BATCH, "views": 2, "lr": RATES if searched else 0.1},
        "FT": full,
        "CAL": full,
        "student": student,
    }


def _write(task: Task, name: str, what: str, raw: dict[str, Any]) -> Study:
    """Write a study file into the folder of the results, and load it."""
    file = task.folder / f"{name}.yaml"
    body = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=100)
    write_bytes(file, (HEADER.format(what=what) + body).encode())
    try:
        return load(str(file))
    except StudyError as error:
        raise StudyError(f"{file.name}, which this command wrote, cannot be used: {error}") from error
