"""The paper's eight datasets: their facts, their images as the official files list them, and their counts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from fgkd.data import folders, layouts
from fgkd.data.images import SPLITS, DataError, Files, Listing
from fgkd.study import DataSpec, contents

SPLIT_FILE = "split.csv"  # in Moe's folder: the split of its images, as of the paper's authors


@dataclass(frozen=True)
class Layout:
    """A way in which a set lies on disk.

    reader: the function of `layouts` that reads its lists.
    needs: what must be in the set's folder, as glob patterns.
    folders: those below its root that may hold it; the root itself always may.
    """

    reader: str
    needs: tuple[str, ...]
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A file that the set's owner gives out.

    gives: the name in the set's folder that is there once the file is in place.
    url: empty where it has to be fetched by hand.
    checksum: 'md5:...' or 'sha256:...'; empty where none is known for certain.
    """

    name: str
    gives: str
    url: str = ""
    checksum: str = ""


@dataclass(frozen=True)
class Official:
    """A set's facts, from official.yaml; note: what a reader of its results should know."""

    name: str
    classes: int
    train: int
    test: int
    licence: str
    home: str
    layouts: tuple[Layout, ...]
    files: tuple[File, ...] = ()
    note: str = ""


def root_of(kind: str, root: str | None) -> Path:
    """Return the folder of a set: `root`, or the set's own in the folder FGKD_DATA."""
    if root or os.environ.get("FGKD_DATA"):
        return Path(contents.absolute(root or Path(os.environ["FGKD_DATA"], kind)))
    raise DataError(
        f"{kind}: neither a root is given nor FGKD_DATA set: name the root (in the study file, or with "
        f"--root), or set FGKD_DATA to the folder that holds {kind}/"
    )


def shared_cache(root: Path, resize: int) -> Path:
    """Return the folder in which all studies find the decoded images of a set."""
    return root / f"cache-{resize}"


def list_images(spec: DataSpec) -> Listing:
    """List the images of one of the eight sets, and check their number.

    Raises DataError where the set is absent, cannot be parsed, or is incomplete and `check_counts` is set.
    """
    root = root_of(spec.kind, spec.root)
    images = listing(spec.kind, root)
    _, base, _ = locate(spec.kind, root)
    file = Path(spec.split) if spec.split else base / SPLIT_FILE
    if own := spec.kind == "moe" and (bool(spec.split) or file.is_file()):
        images = folders.list_images(spec.model_copy(update={"root": str(base), "split": str(file)}))
    wrong = []
    for row in checks(spec.kind, images).itertuples():
        if row.verdict == "wrong":
            wrong.append(f"{row.found:,} {row.check} (expected {row.expected:,})")
    if wrong and spec.check_counts:
        raise DataError(
            f"{spec.key}: {str(root)!r} has {', '.join(wrong)}; complete it ('fgkd data {spec.kind}'), "
            "or set check_counts: false to use a part on purpose"
        )
    notes = [*images.notes]
    if wrong:
        notes.append(f"not the whole set, as the study allows: {', '.join(wrong)}")
    if SETS[spec.kind].note and not own:
        notes.append(SETS[spec.kind].note)
    return replace(images, notes=tuple(notes), shared_cache=shared_cache(root, spec.resize))


def listing(kind: str, root: Path) -> Listing:
    """Read classes and images of the set in `root` from its official files.

    Labels follow the class ids. No image is opened but Moe's headers.

    Raises DataError where the set is absent, lacks a file, or has one that cannot be parsed.
    """
    layout, base, missing = locate(kind, root)
    if len(missing) == len(layout.needs):
        raise DataError(
            f"{kind}: {SETS[kind].name} is not in {str(root)!r}: expected {describe_layouts(kind)}. "
            f"'fgkd data {kind}' fetches it or says how"
        )
    if missing:
        raise DataError(
            f"{kind}: {', '.join(map(repr, missing))} missing in {str(base)!r}: expected "
            f"{', '.join(layout.needs)}; put it back, or remove the folder, and run 'fgkd data {kind}'"
        )
    try:
        names, images = getattr(layouts, layout.reader)(base)
    except DataError as error:
        raise DataError(f"{kind}: {error}") from None
    except Exception as error:  # torchvision and scipy raise whatever their parsers stumble on
        raise DataError(
            f"{kind}: the files in {str(base)!r} cannot be parsed ({type(error).__name__}: {error}); "
            "fetch them anew"
        ) from error
    for split in SPLITS:
        if split not in {place for place, _, _ in images}:
            raise DataError(f"{kind}: no {split} image is listed in {str(base)!r}; fetch the set anew")
    ids = sorted({number for _, _, number in images})
    if nameless := [number for number in ids if number not in names]:
        raise DataError(
            f"{kind}: class {nameless[0]} has images in {str(base)!r}, but no name; fetch the set anew"
        )
    below = "" if base == root else f"{base.relative_to(root).as_posix()}/"
    labels = {number: label for label, number in enumerate(ids)}
    files: Files = {split: [] for split in SPLITS}
    for split, path, number in images:
        files[split].append((below + path, labels[number]))
    return Listing(tuple(names[number] for number in ids), root, files)


def checks(kind: str, images: Listing) -> pd.DataFrame:
    """Compare the counts of a listing with the official ones, one row per count."""
    facts = SETS[kind]
    train, test = ([path for path, _ in images.files[split]] for split in SPLITS)
    twice = sorted(set(train) & set(test))
    rows = [
        check_row("classes", facts.classes, len(images.classes)),
        check_row("training images", facts.train, len(train)),
        check_row("test images", facts.test, len(test)),
        check_row("images listed in both splits", 0, len(twice), ", ".join(twice[:3])),
    ]
    return pd.DataFrame(rows)


def check_row(check: str, expected: int, found: int, detail: str = "") -> dict:
    """Return a row of `checks`; its verdict is ok or wrong."""
    verdict = "ok" if found == expected else "wrong"
    return {"check": check, "expected": expected, "found": found, "verdict": verdict, "detail": detail}


def overview() -> pd.DataFrame:
    """List the eight sets with their counts, terms and state in FGKD_DATA, one row per set."""
    columns = ["name", "classes", "train", "test", "licence"]
    rows = [
        [kind, *(getattr(facts, column) for column in columns), _state(kind)] for kind, facts in SETS.items()
    ]
    return pd.DataFrame(rows, columns=["key", *columns, "state"])


def locate(kind: str, root: Path) -> tuple[Layout, Path, list[str]]:
    """Find the layout of which `root` holds most, the set's folder in it, and what it lacks."""
    candidates = []
    for layout in SETS[kind].layouts:
        doubled = [f"{folder}/{Path(folder).name}" for folder in layout.folders]  # unpacked in its own folder
        for base in (root / folder for folder in (*layout.folders, "", *doubled)):
            missing = [need for need in layout.needs if not any(base.glob(need))]
            candidates.append((layout, base, missing))
    return min(candidates, key=lambda candidate: len(candidate[2]) / len(candidate[0].needs))


def describe_layouts(kind: str) -> str:
    """Say what a set's root has to hold."""
    descriptions = []
    for layout in SETS[kind].layouts:
        places = " or ".join(f"{folder}/" for folder in layout.folders)
        descriptions.append(f"{places} with " * bool(places) + ", ".join(layout.needs))
    return ", or ".join(descriptions)


def _state(kind: str) -> str:
    if not os.environ.get("FGKD_DATA"):
        return "FGKD_DATA is not set"
    root = root_of(kind, None)
    layout, _, missing = locate(kind, root)
    if len(missing) == len(layout.needs):
        return "absent"
    try:
        table = checks(kind, listing(kind, root))
    except DataError as error:
        return str(error).removeprefix(f"{kind}: ")
    wrong = table[table.verdict == "wrong"].itertuples()
    if counts := ", ".join(f"{row.found} of {row.expected} {row.check}" for row in wrong):
        return counts
    sizes = [index.parent.name.removeprefix("cache-") for index in sorted(root.glob("cache-*/index.json"))]
    return f"ready at {', '.join(sizes)} pixels" if sizes else "complete, not cached"


SETS = TypeAdapter(dict[str, Official]).validate_python(
    yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
)
