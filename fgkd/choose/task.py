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

from fgkd.analysis.records import write_bytes
from fgkd.choose import LOG, candidates
from fgkd.choose.audit import Audit
from fgkd.choose.candidates import Candidate, Found
from fgkd.data import birds
from fgkd.distillation import export, training
from fgkd.models import classifier
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
HEADER = """# Written by `fgkd choose`, which continues what is here; `fgkd run` runs it like any study.
# {what}
"""

# The drawn birds of the default run
SPECIES = 6
LOOK: dict[str, Any] = {"family_size": 3, "size": 0.75}
DRAWN = {"train": 12, "test": 24}  # photos of each species
PIXELS = 56


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
        return min(candidates.resolution(self.student) if self.device.type == "cuda" else CPU_SIZE, crop)

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
    gentle = {"losses": {GENTLE_LOSS: {"loss": "kd"} | GENTLE_KD}}
    own = _teachers(found) | {"distillation": PAPER_KD} | gentle
    return _write(task, audit, "selection", what, own)


def study(task: Task, audit: Audit, found: Found, distillation: dict[str, float]) -> Study:
    """Write and load the study on the true splits.

    distillation: temperature and beta.
    """
    what = "The photos' true splits, all candidates: what of it was verified is done already."
    return _write(task, audit, "study", what, _teachers(found) | {"distillation": distillation})


def finetuned(task: Task, audit: Audit, candidate: Candidate) -> Study:
    """Write and load the study that fine-tunes the student's own pretrained network."""
    what = "The student's own pretrained network, fine-tuned: a row to compare with."
    entry = candidate.section() | {"resolution": task.student_size(audit.sizes[1])}
    return _write(task, audit, FINETUNED, what, {"teachers": {FINETUNED: entry}})


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
    write_bytes(folder / LOG, b"")
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


def _teachers(found: Found) -> dict[str, Any]:
    return {"teachers": {candidate.name: candidate.section() for candidate in found.candidates}}


def _write(task: Task, audit: Audit, name: str, what: str, own: dict[str, Any]) -> Study:
    """Write a study file into the folder of the results, and load it.

    own: its keys beside those that all of a task's studies have.
    """
    resize, crop = audit.sizes
    smallest = audit.photos[audit.photos.use == "train"].label.value_counts().min()
    text = export.render(
        "choice.yaml.j2",
        task=task,
        name=name,
        resize=resize,
        crop=crop,
        size=task.student_size(crop),
        images=audit.count("train", "held out"),
        searched=smallest >= 3,  # a search of rates holds out a fifth of a class again
        threads=torch.get_num_threads(),  # all cores, or OMP_NUM_THREADS
    )
    raw = yaml.safe_load(text) | ({"plugins": list(task.plugins)} if task.plugins else {}) | own
    body = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=100)
    file = task.folder / f"{name}.yaml"
    write_bytes(file, (HEADER.format(what=what) + body).encode())
    try:
        return load(str(file))
    except StudyError as error:
        raise StudyError(f"{file.name}, which this command wrote, cannot be used: {error}") from error
