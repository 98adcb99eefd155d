"""What is asked for: the photos, the student, the budget, and the folder of everything that comes out."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fgkd.choose import LOG, candidates
from fgkd.data import birds
from fgkd.distillation import training
from fgkd.models import classifier
from fgkd.records import write_bytes
from fgkd.study import PRETEXT, PROJECT, StudyError
from fgkd.study.errors import expected

RECIPES = {"fz": "FZ", "ft": "FT", "cal": "CAL"}
CPU_SIZE = 96  # pixels that a student sees on a CPU
SPECIES = 6  # of the drawn birds of the default run
FAMILY = 3  # of them in a family
BIRD_SIZE = 0.75
DRAWN = {"train": 12, "test": 24}  # photos of each species
PIXELS = 56


@dataclass(frozen=True)
class Task:
    """A choice to make.

    photos: their folder.
    teachers: names that limit the candidates, empty for all.
    weights: a folder of weights files; plugins: absolute paths.
    recipe: FZ, FT or CAL.
    minutes: for pilots; verify: how many of the ranking are verified.
    size: side in pixels that the student sees, 0 by default.
    folder: of the results.
    is_demo: whether the photos are drawn birds.
    """

    photos: Path
    student: str
    teachers: tuple[str, ...]
    weights: Path | None
    plugins: tuple[str, ...]
    recipe: str
    minutes: float
    verify: int
    size: int
    folder: Path
    device: torch.device
    is_demo: bool

    @property
    def dataset(self) -> str:
        """The photos' name in the studies."""
        name = "".join(letter for letter in self.photos.resolve().name if letter.isalnum() or letter in "._-")
        return name if name.isascii() and name[:1].isalnum() and name != PRETEXT else "photos"

    def student_size(self, crop: int) -> int:
        """Side in pixels that the student sees of views of `crop` pixels.

        By default its own input size, on a CPU 96, and never more than the views have.
        """
        if self.size:
            return self.size
        own = candidates.resolution(self.student) if self.device.type == "cuda" else CPU_SIZE
        return min(own, crop)

    @property
    def threads(self) -> int:
        """CPU threads of a training: as many as PyTorch takes, all cores or OMP_NUM_THREADS."""
        return torch.get_num_threads()

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
    files = _plugin_files(plugins)
    classifier.load_plugins(files)
    classifier.check_name(student)
    if recipe not in RECIPES:
        raise StudyError(f"--recipe is '{recipe}'{expected(recipe, RECIPES)}")
    for name, number in {"minutes": minutes, "verify": verify, "size": size}.items():
        if not (math.isfinite(number) and number >= 0):
            raise StudyError(f"--{name} is {number}: expected 0 or more")
    root = Path(os.environ.get("FGKD_RUNS") or PROJECT / "runs")
    folder = (Path(out).expanduser() if out else root / "choose").resolve()
    source = Path(photos).expanduser().resolve() if photos else folder / "birds"
    if folder == source or folder.is_relative_to(source):
        raise StudyError(f"--out is '{folder}', inside the photos: name a folder elsewhere")
    if photos and not source.is_dir():
        raise StudyError(
            f"'{photos}' is not a folder: expected one that holds a folder of photos per class, or train/ "
            "and test/ with a folder per class in each"
        )
    _make_folder(folder)
    if not photos:
        _draw(source)
    os.environ["FGKD_RUNS"] = str(folder)
    return Task(
        photos=source,
        student=student,
        teachers=tuple(_split(teachers)),
        weights=Path(weights).expanduser().resolve() if weights else None,
        plugins=files,
        recipe=RECIPES[recipe],
        minutes=minutes,
        verify=verify,
        size=size,
        folder=folder,
        device=training.device(device),
        is_demo=not photos,
    )


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _plugin_files(plugins: str) -> tuple[str, ...]:
    """Absolute paths of the plugins.  Raises StudyError for one that does not exist."""
    files = tuple(str(Path(plugin).expanduser().resolve()) for plugin in _split(plugins))
    for file in files:
        if not os.path.isfile(file):
            raise StudyError(f"--plugins names '{file}', which does not exist: check the path")
    return files


def _make_folder(folder: Path) -> None:
    try:
        write_bytes(folder / LOG, b"")
    except NotADirectoryError as error:
        raise StudyError(f"--out is '{folder}', which is a file: name a folder") from error


def _draw(folder: Path) -> None:
    """Draw birds as photos, train/<species>/* and test/<species>/*, unless they are there."""
    species = birds.species(SPECIES, seed=0, family_size=FAMILY)
    for split, number in DRAWN.items():
        flock = birds.draw(
            SPECIES,
            number,
            pixels=PIXELS,
            seed=0,
            split=split,
            family_size=FAMILY,
            size=BIRD_SIZE,
        )
        for i, (pixels, label) in enumerate(zip(flock.images, flock.labels.tolist(), strict=True)):
            file = folder / split / species[label].name / f"{i % number:03}.png"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
