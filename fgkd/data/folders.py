"""Folders of photos: which images are there, of which classes, in which split."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from pathlib import Path

from PIL import Image

from fgkd.data.images import SPLITS, DataError, Files, Listing, quote_some
from fgkd.study import DataSpec


def list_images(spec: DataSpec) -> Listing:
    """List the images below root/train/<class> and root/test/<class>, or below root/<class>.

    Without train/ and test/ each class is split by the hashes of its paths and the seed.

    Raises DataError for a root or classes that cannot be used.
    """
    root = Path(spec.root or "")
    if not spec.root or not root.is_dir():
        raise DataError(
            f"{spec.key}: root {spec.root!r} is not a folder; name one that holds a folder per class, "
            "or train/ and test/ with a folder per class in each"
        )
    tops = _top_folders(spec, root)
    folders = {top: _subfolders(root / top) for top in tops}
    classes = _choose_classes(spec, sorted(set().union(*folders.values())))
    _check_counterparts(spec, folders, classes)
    skipped: Counter[str] = Counter()
    paths = {}
    for top in tops:
        for name in classes:
            paths[top, name] = _image_paths(root, f"{top}/{name}".lstrip("/"), skipped)
    empty = [f"{top}/{name}".lstrip("/") for (top, name), images in paths.items() if not images]
    if empty:
        raise DataError(
            f"{spec.key}: no image in {quote_some(empty)} of {str(root)!r}; add images or remove the folders"
        )
    if tops != SPLITS:
        paths = _split(spec, {name: paths["", name] for name in classes})
    files: Files = {split: [] for split in SPLITS}
    for split in SPLITS:
        for label, name in enumerate(classes):
            files[split] += [(path, label) for path in paths[split, name]]
    return Listing(classes, root, files, _notes(root, tops, skipped))


def _top_folders(spec: DataSpec, root: Path) -> tuple[str, ...]:
    """Return ('train', 'test') for a folder that is split, ('',) for one folder per class."""
    names = _subfolders(root)
    if set(SPLITS) <= set(names):
        return SPLITS
    usual = {"train", "training", "test", "testing", "val", "valid", "validation"}
    if names and all(name.casefold() in usual for name in names):
        raise DataError(
            f"{spec.key}: {str(root)!r} holds {quote_some(names)}; expected both 'train' and 'test', spelt so"
        )
    return ("",)


def _choose_classes(spec: DataSpec, available: list[str]) -> tuple[str, ...]:
    """Return the class folders to use, sorted."""
    if not available:
        raise DataError(
            f"{spec.key}: no class folders in {spec.root!r}; put the images of each class in a folder"
        )
    absent = sorted(set(spec.classes) - set(available))
    if absent:
        hints = ""
        for name in absent:
            for close in difflib.get_close_matches(name, available, n=1):
                hints += f"; did you mean {close!r} for {name!r}?"
        raise DataError(
            f"{spec.key}: classes {quote_some(absent)} not found in {spec.root!r}, which has "
            f"{quote_some(available)}{hints}"
        )
    classes = tuple(sorted(set(spec.classes) or available))
    if len(classes) < 2:
        raise DataError(
            f"{spec.key}: {classes[0]!r} is the only class in {spec.root!r}; at least two are needed"
        )
    return classes


def _check_counterparts(spec: DataSpec, folders: dict[str, list[str]], classes: tuple[str, ...]) -> None:
    """Raise DataError for classes that are in one of train/ and test/ only."""
    alone = []
    for top, names in folders.items():
        alone += [f"{top}/{name}" for name in classes if name in names and _is_lacking(folders, name)]
    if alone:
        raise DataError(
            f"{spec.key}: {quote_some(alone)} without counterpart; a class needs images in train/ and test/"
        )


def _is_lacking(folders: dict[str, list[str]], name: str) -> bool:
    return any(name not in names for names in folders.values())


def _image_paths(root: Path, folder: str, skipped: Counter[str]) -> list[str]:
    """List the images in root/folder and all folders in it, as paths below root.

    skipped: counts the other files by ending, in place.
    """
    formats = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    paths = []
    for entry in os.scandir(root / folder):
        path = f"{folder}/{entry.name}"
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):  # a link could lead round in circles
            paths += _image_paths(root, path, skipped)
        elif ending in formats:
            paths.append(path)
        else:
            skipped[ending] += 1
    return sorted(paths)


def _split(spec: DataSpec, paths: dict[str, list[str]]) -> dict[tuple[str, str], list[str]]:
    """Order each class by its paths' hashes and take the first part for test.

    A new image thus moves at most one other to the other split.
    """
    single = [name for name, images in paths.items() if len(images) < 2]
    if single:
        raise DataError(
            f"{spec.key}: only one image of {quote_some(single)}; a class needs one for train "
            "and one for test"
        )
    splits = {}
    for name, images in paths.items():
        order = sorted(images, key=lambda path: hashlib.sha256(os.fsencode(f"{spec.seed}/{path}")).digest())
        count = min(max(round(len(images) * spec.test_fraction), 1), len(images) - 1)
        splits["test", name] = sorted(order[:count])
        splits["train", name] = sorted(order[count:])
    return splits


def _notes(root: Path, tops: tuple[str, ...], skipped: Counter[str]) -> tuple[str, ...]:
    """Say which files and folders are left out, and why."""
    notes = []
    if skipped:
        kinds = ", ".join(f"{count} {'*' + ending!r}" for ending, count in sorted(skipped.items()))
        notes.append(f"left out, since Pillow opens no such images: {kinds}")
    others = [name for name in _subfolders(root) if tops == SPLITS and name not in tops]
    if others:
        notes.append(f"left out, since only train/ and test/ are used: {quote_some(others)}")
    return tuple(notes)


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )
