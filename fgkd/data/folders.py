"""Data sets: image folders, the built-in birds and the paper's eight (`official`), their counts and checks, and the image cache.

Every picture is decoded once, squashed to a square of `resize` pixels (bicubic, as the paper's "resize 300 x 300") and
kept as uint8 in a memory map (N, R, R, 3). Cropping, flipping and normalising happen later, on the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import fcntl
import hashlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from fgkd.study import contents
from fgkd.data import birds
from fgkd.records import write_json
from fgkd.study import OFFICIAL, PRETEXT, DataSpec, Job, Study

SPLITS = ("train", "test")
SHOWN = 20  # problems listed by name in one message
FORMAT = 1  # raise it when decode() or the cache files change, so that old caches are rebuilt


class DataError(ValueError):
    """A data set that cannot be used as asked; the message names the value, what was expected and what to do."""


class UnreadableImages(DataError):
    """Images that cannot be decoded; failures: why, one of each."""

    def __init__(self, message: str, failures: list[str]):
        super().__init__(message)
        self.failures = failures


@dataclass(frozen=True, eq=False)
class Split:
    """One split. images: (N, R, R, 3) uint8; labels: (N,) int64; names: N relative paths, or 'species 3, picture 7'.

    boxes: (N, 4) int64 or None. digests: N SHA-1 sums of the decoded pixels, equal for copies of a picture.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    boxes: np.ndarray | None = None
    digests: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Both splits. families: the family of each class (birds) or None; notes: sentences that a reader should
    see.

    fingerprint: of what the images were decoded from; content: of the photos, None for birds.
    """

    key: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    families: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    content: Content | None = None


@dataclass(frozen=True)
class Content:
    """What a data set consists of before anything is decoded.

    digest: of its classes and of each photo's place, label and bytes; photos: a mark of each photo's place,
    label and bytes, in order of the splits; classes, counts: images of each split.
    """

    digest: str
    photos: tuple[str, ...]
    classes: tuple[str, ...]
    counts: dict[str, int]


def content(spec: DataSpec, cache: Path) -> Content:
    """What is there of a data set, its photos' bytes read once: their digests are kept in the cache by path,
    size and time.

    Raises DataError for folders or classes that cannot be used.
    """
    source = _source(spec)
    return _content(source, _place(source, cache))


def look(study: Study) -> dict[str, DataError]:
    """Note in `study.photos` what is there of each of its data sets; returns what is wrong with those that
    cannot be used.

    A study whose photos are elsewhere is left with what its records say of them.
    """
    wrong = {}
    for key in (*study.datasets, *([PRETEXT] if study.pretext else [])):
        if study.data(key).kind == "birds":
            continue
        try:
            study.photos[key] = content(study.data(key), study.path(Job("data", key)) / "cache")
        except DataError as error:
            wrong[key] = error
    return wrong


def load(spec: DataSpec, cache: Path, *, progress: bool = True) -> Dataset:
    """The data set of `spec`, its images memory-mapped read-only from the folder `cache`.

    The cache is built first where it is absent, unfinished, damaged or made from other inputs (`fingerprint`:
    the options, and each photo's place, label and content). A second process that wants it meanwhile waits,
    then reads. One of the paper's eight has its cache beside its images, for all studies (`shared_cache`);
    the folder `cache` serves it only where its root is read-only and holds none. Raises DataError for
    folders, classes or images that cannot be used, and for a full disk.
    """
    source = _source(spec)
    if source.files is not None:
        found = _content(source, _place(source, cache))
        source = dataclasses.replace(
            source, fingerprint=_fingerprint(spec.resize, found.digest), content=found
        )
    if source.shared:
        if dataset := _read(spec, source, source.shared):
            return dataset
        cache = _place(source, cache)
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dataset = _read(spec, source, cache)
        if dataset is None:
            _build(spec, source, cache, progress)
            dataset = _read(spec, source, cache)
    if dataset is None:
        raise DataError(
            f"{str(cache)!r}: the cache just written does not read back; check its disk, then run again"
        )
    return dataset


def shared_cache(root: Path, resize: int) -> Path:
    """Where the images of one of the paper's eight sets are cached."""
    return root / f"cache-{resize}"


def check(dataset: Dataset) -> pd.DataFrame:
    """One row a split: images, classes, smallest and largest class, unreadable images and images in both splits.

    unreadable is 0, since `load` refuses a set with unreadable images; smallest_class is 0 where a class is absent.
    """
    rows = []
    for name, split, other in (("train", dataset.train, dataset.test), ("test", dataset.test, dataset.train)):
        counts = np.bincount(split.labels, minlength=len(dataset.classes))
        shared = np.isin(split.digests, other.digests)
        rows.append(
            {
                "split": name,
                "images": len(split),
                "classes": int((counts > 0).sum()),
                "smallest_class": int(counts.min()),
                "largest_class": int(counts.max()),
                "unreadable": 0,
                "in_both_splits": int(shared.sum()),
            }
        )
    return pd.DataFrame(rows)


def decode(path: Path, resize: int) -> np.ndarray:
    """The picture in file `path` as (R, R, 3) uint8 RGB: turned as its EXIF says, squashed to R = `resize`, bicubic.

    Transparency is laid over white. Grey of 16 bits is scaled by 1/257; grey of 32 bits (I, F) by the smallest of the
    ranges 0..1 (F only), 0..255 and 0..65535 that holds all its values, else by its own minimum and maximum.
    Of an animation, the first picture. Raises DataError for a file that is missing, truncated or no image.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
        if image.mode[0] in "IF":
            image = _eight_bit(image)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB").resize((resize, resize), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble on
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image that Pillow can read" if os.path.getsize(path) else "empty file"
        raise DataError(f"{str(path)!r} cannot be decoded: {reason}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as mode L, by the rule in decode()."""
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise DataError("pixels that are NaN or infinite")
    ranges = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is not None:
        low, high = 0, top
    return Image.fromarray(np.rint((values - low) * (255 / ((high - low) or 1))).astype(np.uint8))


@dataclass(frozen=True)
class _Source:
    """What a cache is made from; files: (path below `root`, label) of each image, None for birds."""

    classes: tuple[str, ...]
    families: tuple[str, ...] | None
    counts: dict[str, int]
    files: dict[str, list[tuple[str, int]]] | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    root: Path = Path()
    shared: Path | None = None
    content: Content | None = None


def _source(spec: DataSpec) -> _Source:
    return ({"birds": _birds, "folder": _folder} | dict.fromkeys(OFFICIAL, _official))[spec.kind](spec)


def _place(source: _Source, cache: Path) -> Path:
    """The folder of the cache: beside the images of an official set, unless that cannot be written."""
    return source.shared if source.shared and os.access(source.root, os.W_OK) else cache


def _content(source: _Source, cache: Path) -> Content:
    """The content of photos; digests of those whose size and time are as they were come from 'photos.json'
    beside the cache."""
    digests = cache.parent / "photos.json"
    try:
        known = json.loads(digests.read_text())
    except (OSError, ValueError):
        known = {}
    paths = sorted({path for top in SPLITS for path, _ in source.files[top]})
    stats = {path: _stat(source.root / path) for path in paths}
    new = [path for path in paths if known.get(path, [])[:2] != list(stats[path])]
    found = {path: [*stats[path], known[path][2]] for path in paths if path not in set(new)}
    with (
        ThreadPoolExecutor(4) as pool,
        tqdm(total=len(new), desc="reading photos", unit="image", delay=2, disable=None) as bar,
    ):
        for path, digest in zip(new, pool.map(lambda path: _digest(source.root / path), new)):
            found[path] = [*stats[path], digest]
            bar.update()
    if found != known:
        with contextlib.suppress(OSError):  # another's folder, a full disk: they are read again
            write_json(digests, found)
    listed = {top: [(path, label, found[path][2]) for path, label in source.files[top]] for top in SPLITS}
    marks = tuple(contents.of_text(json.dumps([top, *entry]))[:10] for top in SPLITS for entry in listed[top])
    return Content(
        contents.of_text(json.dumps([source.classes, listed])), marks, source.classes, source.counts
    )


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[: contents.LENGTH]
    except OSError:  # decoding reports it together with all other bad files
        return "unreadable"


def _birds(spec: DataSpec) -> _Source:
    kinds = birds.species(spec.species, seed=spec.seed, family_size=spec.family_size)
    counts = {"train": spec.species * spec.train, "test": spec.species * spec.test}
    options = [spec.species, spec.family_size, spec.train, spec.test, spec.seed, spec.resize, spec.size]
    fingerprint = _fingerprint("birds", options, inspect.getsource(birds))
    return _Source(
        tuple(k.name for k in kinds), tuple(str(k.family) for k in kinds), counts, None, fingerprint
    )


def _folder(spec: DataSpec) -> _Source:
    """The images below root/train/<class> and root/test/<class>, or below root/<class> with a seeded split."""
    root = Path(spec.root or "")
    if not spec.root or not root.is_dir():
        raise DataError(
            f"{spec.key}: root {spec.root!r} is not a folder; name one that holds a folder per class, "
            "or train/ and test/ with a folder per class in each"
        )
    tops = _tops(spec, root)
    folders = {top: _subfolders(root / top) for top in tops}
    classes = _chosen(spec, sorted(set().union(*folders.values())))
    alone = [
        f"{top}/{name}"
        for top, other in zip(tops, tops[::-1])
        for name in classes
        if name not in folders[other]
    ]
    if alone:
        raise DataError(
            f"{spec.key}: {_some(alone)} without counterpart; a class needs images in train/ and test/"
        )
    skipped: Counter[str] = Counter()
    found = {
        top: {name: _images(root, f"{top}/{name}".lstrip("/"), skipped) for name in classes} for top in tops
    }
    empty = [f"{top}/{name}".lstrip("/") for top in tops for name in classes if not found[top][name]]
    if empty:
        raise DataError(
            f"{spec.key}: no image in {_some(empty)} of {str(root)!r}; add images or remove the folders"
        )
    split = found if len(tops) == 2 else _seeded_split(spec, found[""])
    files = {
        top: [(path, label) for label, name in enumerate(classes) for path in split[top][name]]
        for top in SPLITS
    }
    kinds = ", ".join(f"{count} {'*' + ending!r}" for ending, count in sorted(skipped.items()))
    others = [name for name in _subfolders(root) if len(tops) == 2 and name not in tops]
    notes = (f"left out, since Pillow opens no such images: {kinds}",) if kinds else ()
    notes += (f"left out, since only train/ and test/ are used: {_some(others)}",) if others else ()
    return _photos(spec, root, classes, files, notes)


def _official(spec: DataSpec) -> _Source:
    """The images that the official files of one of the paper's eight sets list."""
    from fgkd.data import official  # which builds on this module

    kind, root = spec.kind, official.root_of(spec.kind, spec.root)
    found, note = official.listing(kind, root), official.SETS[kind].note
    wrong = ", ".join(
        f"{r.found:,} {r.check} (expected {r.expected:,})"
        for r in official.checks(kind, found).itertuples()
        if r.verdict == "wrong"
    )
    if wrong and spec.check_counts:
        raise DataError(
            f"{spec.key}: {str(root)!r} has {wrong}; complete it ('fgkd data {kind}'), or set check_counts: false to use a part on purpose"
        )
    notes = (f"not the whole set, as the study allows: {wrong}",) if wrong else ()
    source = _photos(spec, root, found.classes, found.files, notes + ((note,) if note else ()))
    return dataclasses.replace(source, shared=shared_cache(root, spec.resize))


def _photos(
    spec: DataSpec,
    root: Path,
    classes: tuple[str, ...],
    files: dict[str, list[tuple[str, int]]],
    notes: tuple[str, ...],
) -> _Source:
    return _Source(classes, None, {top: len(files[top]) for top in SPLITS}, files, "", notes, root)


def _tops(spec: DataSpec, root: Path) -> tuple[str, ...]:
    """('train', 'test') for a folder that is split already, ('',) for one folder per class."""
    names = _subfolders(root)
    if set(SPLITS) <= set(names):
        return SPLITS
    usual = {"train", "training", "test", "testing", "val", "valid", "validation"}
    if names and all(name.casefold() in usual for name in names):
        raise DataError(
            f"{spec.key}: {str(root)!r} holds {_some(names)}; expected both 'train' and 'test', spelt so"
        )
    return ("",)


def _chosen(spec: DataSpec, available: list[str]) -> tuple[str, ...]:
    """The class folders to use, sorted."""
    if not available:
        raise DataError(
            f"{spec.key}: no class folders in {spec.root!r}; put the images of each class in a folder"
        )
    absent = sorted(set(spec.classes) - set(available))
    if absent:
        close = {name: difflib.get_close_matches(name, available, n=1) for name in absent}
        hints = "".join(
            f"; did you mean {match[0]!r} for {name!r}?" for name, match in close.items() if match
        )
        raise DataError(
            f"{spec.key}: classes {_some(absent)} not found in {spec.root!r}, which has "
            f"{_some(available)}{hints}"
        )
    classes = tuple(sorted(set(spec.classes) or available))
    if len(classes) < 2:
        raise DataError(
            f"{spec.key}: {classes[0]!r} is the only class in {spec.root!r}; at least two are needed"
        )
    return classes


def _seeded_split(spec: DataSpec, found: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Each class in the order of its paths' hashes, the first part for test: a new image moves no other across."""
    single = [name for name, paths in found.items() if len(paths) < 2]
    if single:
        raise DataError(
            f"{spec.key}: only one image of {_some(single)}; a class needs one for train and one for test"
        )
    split: dict[str, dict[str, list[str]]] = {top: {} for top in SPLITS}
    for name, paths in found.items():
        order = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(f"{spec.seed}/{path}")).digest())
        count = min(max(round(len(paths) * spec.test_fraction), 1), len(paths) - 1)
        split["test"][name], split["train"][name] = sorted(order[:count]), sorted(order[count:])
    return split


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )


def _images(root: Path, folder: str, skipped: Counter[str]) -> list[str]:
    """Paths below root of the images in root/folder and all folders in it; other files are counted in `skipped`."""
    formats = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    paths = []
    for entry in os.scandir(root / folder):
        path, ending = f"{folder}/{entry.name}", os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):  # a link could lead round in circles
            paths += _images(root, path, skipped)
        elif ending in formats:
            paths.append(path)
        else:
            skipped[ending] += 1
    return sorted(paths)


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a broken link: decoding it reports it together with all other bad files
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)


def _fingerprint(*inputs: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *inputs]).encode()).hexdigest()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _read(spec: DataSpec, source: _Source, cache: Path) -> Dataset | None:
    """The data set in the cache; None where the cache is absent, unfinished, damaged or of another source."""
    splits = {}
    try:
        index = json.loads((cache / "index.json").read_text())
        if index["fingerprint"] != source.fingerprint:
            return None
        for name in SPLITS:
            images, entry = np.load(cache / f"{name}.npy", mmap_mode="r"), index[name]
            expected = (source.counts[name], spec.resize, spec.resize, 3)
            if images.shape != expected or images.dtype != np.uint8 or len(entry["labels"]) != expected[0]:
                return None
            boxes = (
                None if entry["boxes"] is None else np.array(entry["boxes"], dtype=np.int64).reshape(-1, 4)
            )
            labels = np.array(entry["labels"], dtype=np.int64)
            splits[name] = Split(images, labels, tuple(entry["names"]), boxes, tuple(entry["digests"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    train, test = splits["train"], splits["test"]
    notes = source.notes + _copies(train, test)
    return Dataset(
        spec.key, source.classes, train, test, source.families, source.fingerprint, notes, source.content
    )


def _copies(train: Split, test: Split) -> tuple[str, ...]:
    """A note on the test pictures that are also in train, with the first three pairs."""
    known = dict(zip(train.digests, train.names))
    pairs = [f"{known[d]!r} = {name!r}" for d, name in zip(test.digests, test.names) if d in known]
    note = f"{len(pairs)} of {len(test)} test images are also in train, which flatters accuracy: {'; '.join(pairs[:3])}"
    return (note,) if pairs else ()


def _build(spec: DataSpec, source: _Source, cache: Path, progress: bool) -> None:
    """Write the cache: everything under temporary names, then moved into place, index.json last."""
    files = [f"{split}.npy" for split in SPLITS] + ["index.json"]
    index = {
        "fingerprint": source.fingerprint,
        "classes": source.classes,
        "families": source.families,
        "counts": source.counts,
    }
    failures: list[str] = []
    try:
        for split in SPLITS:
            if source.files is None:
                images, index[split] = _drawn(spec, split)
            else:
                paths = [path for path, _ in source.files[split]]
                images = _decoded(spec, source.root, paths, failures, progress)
                index[split] = {
                    "labels": [label for _, label in source.files[split]],
                    "names": paths,
                    "boxes": None,
                }
            shape = (source.counts[split], spec.resize, spec.resize, 3)
            index[split]["digests"] = _write(cache / f"{split}.npy.part", images, shape)
        if failures:
            more = f"\n  and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
            raise UnreadableImages(
                f"{spec.key}: {len(failures)} of {sum(source.counts.values())} images cannot be decoded; "
                "replace or remove them:\n  " + "\n  ".join(failures[:SHOWN]) + more,
                failures,
            )
        (cache / "index.json.part").write_text(json.dumps(index))
        (cache / "index.json").unlink(missing_ok=True)
        for name in files:
            os.replace(cache / f"{name}.part", cache / name)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = sum(source.counts.values()) * spec.resize**2 * 3
        raise DataError(
            f"{spec.key}: no space left for the cache {str(cache)!r}, which takes {needed:,} bytes; "
            "free some, choose another folder or a smaller resize"
        ) from error
    finally:
        for name in files:
            (cache / f"{name}.part").unlink(missing_ok=True)


def _write(path: Path, images: Iterable[np.ndarray], shape: tuple[int, ...]) -> list[str]:
    """Write images, each (R, R, 3) uint8, as one .npy file of `shape`; returns their SHA-1 sums.

    Plain writes, because a full disk under a writable memory map kills the process instead of raising.
    """
    digests = []
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for image in images:
            data = image.tobytes()
            digests.append(hashlib.sha1(data).hexdigest())
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digests


def _drawn(spec: DataSpec, split: str) -> tuple[np.ndarray, dict]:
    """The birds of a split, (N, R, R, 3), and their part of the index."""
    per_species = {"train": spec.train, "test": spec.test}[split]
    flock = birds.draw(
        spec.species,
        per_species,
        pixels=spec.resize,
        seed=spec.seed,
        split=split,
        family_size=spec.family_size,
        size=spec.size,
    )
    seen: Counter[int] = Counter()
    names = []
    for label in flock.labels.tolist():
        names.append(f"species {label}, picture {seen[label]}")
        seen[label] += 1
    return flock.images, {"labels": flock.labels.tolist(), "names": names, "boxes": flock.boxes.tolist()}


def _decoded(
    spec: DataSpec, root: Path, paths: list[str], failures: list[str], progress: bool
) -> Iterator[np.ndarray]:
    """The decoded images in order; those that fail are left out and described in `failures`."""

    def attempt(path: str) -> np.ndarray | DataError:
        try:
            return decode(root / path, spec.resize)
        except DataError as error:
            return error

    cores = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    bar = tqdm(
        total=len(paths),
        desc=f"decoding {spec.key}",
        unit="image",
        delay=2,
        disable=None if progress else True,
    )
    with ThreadPoolExecutor(cores) as pool, bar:
        for start in range(0, len(paths), 256):  # in batches, so that a slow disk does not fill the memory
            for image in pool.map(attempt, paths[start : start + 256]):
                bar.update()
                if isinstance(image, DataError):
                    failures.append(str(image))
                else:
                    yield image
