"""What is asked for, and the studies that a choice computes: in its folder, and runnable by `fgkd run`.

    selection.yaml   the training photos alone, a part of them held out: for the ranking and the pilots
    study.yaml       the very study, on the photos' true splits
    finetuned.yaml   the student's own pretrained network, fine-tuned; its results lie with study.yaml's

Recipes are those of the study on real photos (runs/photos.yaml): a linear head on frozen features of few
views, students from scratch by AdamW.  A GPU takes more views, and more epochs of the student.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from fgkd.choose import LOG, candidates
from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Candidate, Found
from fgkd.data import birds
from fgkd.distillation import training
from fgkd.models import classifier
from fgkd.records import write_bytes
from fgkd.study import PRETEXT, PROJECT, Study, StudyError, contents, load
from fgkd.study.config import MAX_NAME
from fgkd.study.errors import expected

RECIPES = {"fz": "FZ", "ft": "FT", "cal": "CAL"}
CPU_SIZE = 96  # pixels that a student sees on a CPU
PAPER_KD: dict[str, float] = {"temperature": 2, "beta": 10}
GENTLE_KD: dict[str, float] = {"temperature": 4, "beta": 1}  # of which the pilots on birds gained more
GENTLE_LOSS = "gentle"
STUDENT = "student"  # the student's name in the studies
FINETUNED = "finetuned"  # and that of its own network, pretrained
BATCH = 32
STEPS = 1200  # of a student at least
MOST_EPOCHS = 200
RATES = [0.3, 0.1, 0.03, 0.01]
HEADER = """# Written by `fgkd choose`, which continues what is here; `fgkd run` runs it like any study.
# {what}
"""

# The drawn birds of the default run
SPECIES = 6
LOOK: dict[str, Any] = {"family_size": 3, "size": 0.75}
DRAWN = {"train": 12, "test": 24}  # photos of each species
PIXELS = 56
DEMO_EPOCHS = 40
DEMO_BATCH = 12  # steps enough in a tenth of them for BatchNorm's running means


@dataclass(frozen=True)
class Task:
    """A choice to make."""

    photos: Path  # their folder
    student: str  # its timm name
    teachers: tuple[str, ...]  # names that limit the candidates, empty for all
    weights: Path | None  # a folder of weights files
    plugins: tuple[str, ...]  # absolute paths
    recipe: str  # FZ, FT or CAL
    minutes: float  # for pilots
    verify: int  # how many of the ranking are verified
    size: int  # side in pixels that the student sees, 0 by default
    folder: Path  # of the results
    device: torch.device
    is_demo: bool  # whether the photos are drawn birds

    @property
    def dataset(self) -> str:
        """The photos' name in the studies."""
        name = "".join(letter for letter in self.photos.name if letter.isalnum() or letter in "._-")
        is_name = name.isascii() and name[:1].isalnum() and name.casefold() != PRETEXT
        return name[:MAX_NAME] if is_name else "photos"

    def student_size(self, crop: int) -> int:
        """Side in pixels that the student sees of views of `crop` pixels.

        By default its own input size, on a CPU 96, and never more than the views have.
        """
        if self.size:
            return self.size
        own = candidates.resolution(self.student) if self.device.type == "cuda" else CPU_SIZE
        return min(own, crop)

    def say(self, line: str) -> None:
        """Append a line to progress.log, which `fgkd choose` shows as it grows."""
        with open(self.folder / LOG, "a") as log:
            log.write(f"{line}\n")


def set_up(
    *,
    photos: str,
    student: str,
    teachers: str = "",
    weights: str = "",
    plugins: str = "",
    recipe: str = "fz",
    minutes: float = 30.0,
    verify: int = 2,
    size: int = 0,
    device: str = "auto",
    out: str = "",
) -> Task:
    """Check what is asked for and make the folder of the results; lists are separated by commas.

    The results of the studies in that folder lie in it: FGKD_RUNS of this process is set to it.

    photos: '' draws birds into the folder of the results, for a look at the tool.
    out: '' is `choose` in FGKD_RUNS, or beside the studies of this project.
    Raises StudyError naming the value, what was expected and what to do.
    """
    files = tuple(contents.absolute(plugin) for plugin in _split(plugins))
    for file in files:
        if not os.path.isfile(file):
            raise StudyError(f"--plugins names '{file}', which does not exist: check the path")
    classifier.load_plugins(files)
    classifier.check_name(student)
    if recipe not in RECIPES:
        raise StudyError(f"--recipe is '{recipe}'{expected(recipe, RECIPES)}")
    for name, number in {"minutes": minutes, "verify": verify, "size": size}.items():
        if not (math.isfinite(number) and number >= 0):
            raise StudyError(f"--{name} is {number}: expected 0 or more")
    source, folder = _folders(photos, out)
    os.environ["FGKD_RUNS"] = str(folder)
    return Task(
        photos=source,
        student=student,
        teachers=_split(teachers),
        weights=Path(contents.absolute(weights)) if weights else None,
        plugins=files,
        recipe=RECIPES[recipe],
        minutes=minutes,
        verify=verify,
        size=size,
        folder=folder,
        device=training.device(device),
        is_demo=not photos,
    )


def selection(task: Task, audit: Audit, found: Found) -> Study:
    """Write and load the study of the training photos alone."""
    task.say(
        f"{audit.count('train', 'held out')} training photos of {audit.classes} classes, "
        f"{audit.count('test')} test photos, {len(found.candidates)} candidates"
    )
    what = "The training photos alone: a fifth of them, held out, is its test split."
    raw = _common(task, audit, "selection_photos", task.recipe) | {"teachers": _teachers(found)}
    raw |= {"distillation": PAPER_KD, "losses": {GENTLE_LOSS: {"loss": "kd"} | GENTLE_KD}}
    return _write(task, "selection", what, raw)


def study(task: Task, audit: Audit, found: Found, distillation: dict[str, float]) -> Study:
    """Write and load the study on the true splits.

    distillation: temperature and beta.
    """
    what = "The photos' true splits, all candidates: what of it was verified is done already."
    raw = _common(task, audit, "photos", task.recipe) | {"teachers": _teachers(found)}
    return _write(task, "study", what, raw | {"distillation": distillation})


def finetuned(task: Task, audit: Audit, candidate: Candidate) -> Study:
    """Write and load the study that fine-tunes the student's own pretrained network."""
    what = "The student's own pretrained network, fine-tuned: a row to compare with."
    entry = candidate.section() | {"resolution": task.student_size(audit.sizes[1])}
    raw = {"name": "study"} | _common(task, audit, "photos", "FT") | {"teachers": {FINETUNED: entry}}
    return _write(task, "finetuned", what, raw)


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _folders(photos: str, out: str) -> tuple[Path, Path]:
    """The photos' folder, with birds drawn into it where none is named, and that of the results."""
    root = Path(os.environ.get("FGKD_RUNS") or PROJECT / "runs")
    folder = Path(contents.absolute(out or root / "choose"))
    source = Path(contents.absolute(photos)) if photos else folder / "birds"
    if folder.resolve().is_relative_to(source.resolve()):
        raise StudyError(f"--out is '{folder}', inside the photos: name a folder elsewhere")
    if photos and not source.is_dir():
        raise StudyError(
            f"'{photos}' is not a folder: expected one that holds a folder of photos per class, or train/ "
            "and test/ with a folder per class in each"
        )
    try:
        write_bytes(folder / LOG, b"")
    except NotADirectoryError as error:
        raise StudyError(f"--out is '{folder}', which is a file: name a folder") from error
    if not photos:
        _draw(source)
    return source, folder


def _draw(folder: Path) -> None:
    """Draw birds as photos, train/<species>/* and test/<species>/*, unless they are there."""
    species = birds.species(SPECIES, seed=0, family_size=LOOK["family_size"])
    for split, number in DRAWN.items():
        flock = birds.draw(SPECIES, number, pixels=PIXELS, seed=0, split=split, **LOOK)
        for i, (pixels, label) in enumerate(zip(flock.images, flock.labels.tolist(), strict=True)):
            file = folder / split / species[label].name / f"{i % number:03}.png"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)


def _common(task: Task, audit: Audit, root: str, recipe: str) -> dict[str, Any]:
    """What the studies have in common."""
    resize, crop = audit.sizes
    size = task.student_size(crop)
    recipes = _recipes(task, audit)
    raw: dict[str, Any] = {
        "question": f"Which teacher for {task.student} on the photos of {task.dataset}?",
        "seed": 0,
        "device": task.device.type,
        "threads": torch.get_num_threads(),  # all cores, or OMP_NUM_THREADS
        "views": {"resize": resize, "crop": crop},
        "datasets": {task.dataset: {"kind": "folder", "root": root}},
        "students": {STUDENT: {"model": task.student} | ({} if size == crop else {"resolution": size})},
        "strategies": [recipe],
        "recipes": {recipe: recipes[recipe], "student": recipes["student"]},
    }
    if task.plugins:
        raw["plugins"] = list(task.plugins)
    if task.is_demo:
        raw["pretext"] = {"species": 24, "train": 24, "test": 8, "seed": 1000} | LOOK
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
    return {
        "FZ": {"epochs": 30, "batch_size": BATCH, "views": 2, "lr": RATES if searched else 0.1},
        "FT": full,
        "CAL": full,
        "student": {
            "epochs": epochs,
            "batch_size": DEMO_BATCH if task.is_demo else BATCH,
            "views": min(20 if on_gpu else 5, epochs),
            "optimizer": "adamw",
            "lr": 0.005,
            "weight_decay": 0.05,
            "warmup_steps": min(100, steps * epochs // 10),
        },
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
