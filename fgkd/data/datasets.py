"""Datasets, decoded once: every image as uint8 in a memory map (N, R, R, 3) that later calls read.

An image is squashed to a square of `resize` pixels (bicubic, as the paper's "resize 300 x 300"). Cropping,
flipping and normalising happen later, on the device. `birds`, `folders` and `official` say which images a
dataset has.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from fgkd.analysis.records import locked, read_json
from fgkd.data import birds, folders, official, photos
from fgkd.data.images import SHOWN, SPLITS, DataError, Listing, decode
from fgkd.study import PRETEXT, DataSpec, Job, Study, contents

FORMAT = 1  # raise it when decode() or the cache files change, so that old caches are rebuilt


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a dataset.

    images: (N, R, R, 3) uint8; labels: (N,) int64.
    names: N relative paths, or 'species 3, picture 7'.
    boxes: (N, 4) int64 or None.
    digests: N SHA-1 sums of the decoded pixels, equal for copies of an image.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    boxes: np.ndarray | None = None
    digests: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Content:
    """What a dataset consists of before anything is decoded.

    digest: of its classes and of each photo's path, label and bytes.
    photos: a short digest of each photo's path, label and bytes, in the order of the splits.
    counts: images per split.
    """

    digest: str
    photos: tuple[str, ...]
    classes: tuple[str, ...]
    counts: dict[str, int]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Both splits of a dataset.

    families: the family of each class (birds) or None.
    fingerprint: digest of what the images were decoded from.
    notes: sentences that a reader of the results should see.
    content: of the photos, None for birds.
    """

    key: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    families: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    content: Content | None = None


class UnreadableImages(DataError):
    """Images that are not there or cannot be decoded.

    failures: one reason per image that cannot be decoded.
    absent: how many are not there; where: the first of them, and what was found elsewhere.
    """

    def __init__(self, key: str, listing: Listing, errors: list[DataError]):
        gone = [e.__cause__ for e in errors if isinstance(e.__cause__, FileNotFoundError)]
        self.failures = [str(e) for e in errors if not isinstance(e.__cause__, FileNotFoundError)]
        self.absent = len(gone)
        self.where = _find_absent(listing.root, [os.path.relpath(e.filename, listing.root) for e in gone])
        total = sum(map(len, listing.files.values()))
        sentences = []
        if gone:
            sentences.append(f"{self.absent} of {total} listed images are not there, {self.where}")
        if number := len(self.failures):
            more = [f"and {number - SHOWN} more"] if number > SHOWN else []
            count = f"{number} of {total} images cannot be decoded; replace or remove them:"
            sentences.append("\n  ".join([count, *self.failures[:SHOWN], *more]))
        super().__init__(f"{key}: {'; '.join(sentences)}")


def content(spec: DataSpec, cache: Path) -> Content | None:
    """Digest the photos of a dataset; each is read once, digests are kept next to the cache.

    Raises DataError for folders or classes that cannot be used.
    """
    return _source(spec, cache).content


def look(study: Study) -> dict[str, DataError]:
    """Note the content of each dataset in `study.photos`; return the errors of those that fail.

    Without its photos a study keeps what its records say of them.
    """
    errors = {}
    for key in (*study.datasets, *([PRETEXT] if study.pretext else [])):
        if study.data(key).kind == "birds":
            continue
        try:
            study.photos[key] = content(study.data(key), study.path(Job("data", key)) / "cache")
        except DataError as error:
            errors[key] = error
    return errors


def load(spec: DataSpec, cache: Path, *, progress: bool = True) -> Dataset:
    """Return the dataset of `spec`, its images memory-mapped read-only from the folder `cache`.

    The cache is built first where it is absent, unfinished, damaged or made from other inputs: the options,
    and each photo's path, label and content. A second process that wants it meanwhile waits, then reads.
    One of the paper's eight has its cache next to its images, for all studies; the folder `cache` serves it
    only where its root is read-only and holds none.

    Raises DataError for folders, classes or images that cannot be used, and for a full disk.
    """
    source = _source(spec, cache)
    if dataset := _read_any(source, cache):
        return dataset
    own, *_ = _places(source.listing, cache)
    with locked(own):
        dataset = _read(source, own)
        if dataset is None:
            _build(source, own, progress)
            dataset = _read(source, own)
    if dataset is None:
        raise DataError(
            f"{str(own)!r}: the cache just written does not read back; check its disk, then run again"
        )
    return dataset


def faults(spec: DataSpec, cache: Path) -> tuple[Dataset | None, str]:
    """The dataset as its cache holds it, and what in that does not fit, '' where all does.

    (None, '') without a cache.  Every pixel is read; nothing is built.
    Raises DataError as `load` does.
    """
    source = _source(spec, cache)
    dataset = _read_any(source, cache)
    if dataset is None:
        lies = (cache / "index.json").exists()
        return None, f"its cache '{cache}' is damaged, or of other photos" if lies else ""
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        digests = np.array([hashlib.sha1(image.tobytes()).hexdigest() for image in split.images])
        (other,) = np.nonzero(digests != np.array(split.digests))
        if len(other):
            first = f"the first is {split.names[other[0]]!r}"
            return dataset, f"{len(other)} of {len(split)} {name} images in its cache are changed, {first}"
    return dataset, ""


def check(dataset: Dataset) -> pd.DataFrame:
    """Count images, classes and images in both splits, one row per split.

    unreadable is 0, since `load` refuses unreadable images; smallest_class is 0 where a class is absent.
    """
    rows = []
    for name, split, other in (("train", dataset.train, dataset.test), ("test", dataset.test, dataset.train)):
        counts = np.bincount(split.labels, minlength=len(dataset.classes))
        row = {"split": name, "images": len(split), "classes": (counts > 0).sum()}
        row |= {"smallest_class": counts.min(), "largest_class": counts.max(), "unreadable": 0}
        rows.append(row | {"in_both_splits": np.isin(split.digests, other.digests).sum()})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Source:
    """What a cache is built from; families: of birds; content: of photos."""

    spec: DataSpec
    listing: Listing
    fingerprint: str
    families: tuple[str, ...] | None = None
    content: Content | None = None


def _places(listing: Listing, cache: Path) -> tuple[Path, ...]:
    """The folders that may hold a cache, first the one to write to.

    An official set's lies next to its images, if that can be written.
    """
    if listing.shared_cache is None:
        return (cache,)
    if os.access(listing.root, os.W_OK):
        return listing.shared_cache, cache
    return cache, listing.shared_cache


def _source(spec: DataSpec, cache: Path) -> _Source:
    return _draw_source(spec) if spec.kind == "birds" else _photo_source(spec, cache)


def _photo_source(spec: DataSpec, cache: Path) -> _Source:
    """List and digest the photos; 'photos.json' next to the cache keeps their digests."""
    listing = folders.list_images(spec) if spec.kind == "folder" else official.list_images(spec)
    paths = {path for split in SPLITS for path, _ in listing.files[split]}
    memory = _places(listing, cache)[0].parent / "photos.json"
    digests = photos.remember(memory, listing.root, paths, photos.digest)
    listed = {split: [(*entry, digests[entry[0]]) for entry in listing.files[split]] for split in SPLITS}
    marks = []
    for split in SPLITS:
        marks += [contents.of_text(json.dumps([split, *entry]))[:10] for entry in listed[split]]
    found = Content(
        digest=contents.of_text(json.dumps([listing.classes, listed])),
        photos=tuple(marks),
        classes=listing.classes,
        counts={split: len(listing.files[split]) for split in SPLITS},
    )
    return _Source(spec, listing, _fingerprint(spec.resize, found.digest), content=found)


def _draw_source(spec: DataSpec) -> _Source:
    species = birds.species(spec.species, seed=spec.seed, family_size=spec.family_size)
    files = {}
    for split in SPLITS:
        pictures = product(range(spec.species), range(getattr(spec, split)))
        files[split] = [(f"species {label}, picture {i}", label) for label, i in pictures]
    listing = Listing(tuple(bird.name for bird in species), Path(), files)
    options = [spec.species, spec.family_size, spec.train, spec.test, spec.seed, spec.resize, spec.size]
    fingerprint = _fingerprint("birds", options, inspect.getsource(birds), birds.TEXT)
    return _Source(spec, listing, fingerprint, families=tuple(bird.family for bird in species))


def _fingerprint(*inputs: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *inputs]).encode()).hexdigest()


def _read_any(source: _Source, cache: Path) -> Dataset | None:
    return next(filter(None, (_read(source, place) for place in _places(source.listing, cache))), None)


def _read(source: _Source, cache: Path) -> Dataset | None:
    """Read the cache; None where it is absent, damaged or made from another source."""
    try:
        index = read_json(cache / "index.json") or {}
        if index.get("fingerprint") != source.fingerprint:
            return None
        train, test = (_read_split(source, cache, split, index[split]) for split in SPLITS)
        copies = _note_same(train, test)
    except (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError):
        return None
    said = index.get("notes", [])
    if not isinstance(said, list) or not all(isinstance(note, str) for note in said):
        return None
    if read_json(cache / "index.json") != index:  # it was built anew meanwhile
        return None
    return Dataset(
        key=source.spec.key,
        classes=source.listing.classes,
        train=train,
        test=test,
        families=source.families,
        fingerprint=source.fingerprint,
        notes=(*source.listing.notes, *said, *copies),
        content=source.content,
    )


def _read_split(source: _Source, cache: Path, split: str, entry: dict) -> Split:
    """Read a split; raises ValueError where its array is not the source's."""
    images = np.load(cache / f"{split}.npy", mmap_mode="r")
    names, labels = zip(*source.listing.files[split], strict=True)
    digests = tuple(entry["digests"])
    shape = (len(names), source.spec.resize, source.spec.resize, 3)
    if images.shape != shape or images.dtype != np.uint8 or len(digests) != len(names):
        raise ValueError(f"{split}.npy is not what the index says")
    boxes = None if entry["boxes"] is None else np.array(entry["boxes"], dtype=np.int64).reshape(-1, 4)
    return Split(images, np.array(labels, np.int64), names, boxes, digests)


def _note_same(train: Split, test: Split) -> list[str]:
    known = dict(zip(train.digests, train.names, strict=True))
    pairs = []
    for digest, name in zip(test.digests, test.names, strict=True):
        if digest in known:
            pairs.append(f"{known[digest]!r} = {name!r}")
    return _note_pairs(pairs, len(test), "also in train")


def _note_near(listing: Listing, index: dict[str, Any], hashes: dict[str, str]) -> list[str]:
    """Note the test images that are near copies of training images, but not the very same."""
    train, test = ([name for name, _ in listing.files[split]] for split in SPLITS)
    same = set(index["train"]["digests"])
    names = [name for name, own in zip(test, index["test"]["digests"], strict=True) if own not in same]
    pairs: dict[str, str] = {}
    for i, j in photos.near_pairs([hashes[name] for name in names], [hashes[name] for name in train]):
        pairs.setdefault(names[i], f"{train[j]!r} ~ {names[i]!r}")
    return _note_pairs([*pairs.values()], len(test), "near copies of images in train")


def _note_aside(aside: list[str]) -> list[str]:
    more = [f"and {len(aside) - 3} more"] if len(aside) > 3 else []
    some = "; ".join([*sorted(aside)[:3], *more])
    return [f"metadata that cannot be read are left aside: {some}"] if aside else []


def _note_pairs(pairs: list[str], total: int, are: str) -> list[str]:
    count = f"{len(pairs)} of {total} test images are {are}"
    return [f"{count}, which flatters accuracy: {'; '.join(pairs[:3])}"] if pairs else []


def _build(source: _Source, cache: Path, progress: bool) -> None:
    """Write the cache under temporary names, then move it into place, index.json last."""
    files = [f"{split}.npy" for split in SPLITS] + ["index.json"]
    try:
        index = _write_parts(source, cache, progress)
        (cache / "index.json.part").write_text(json.dumps(index))
        (cache / "index.json").unlink(missing_ok=True)
        for name in files:
            os.replace(cache / f"{name}.part", cache / name)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{source.spec.key}: no space left for the cache {str(cache)!r}, which takes "
            f"{sum(map(len, source.listing.files.values())) * source.spec.resize**2 * 3:,} bytes; "
            "free some, choose another folder or a smaller resize"
        ) from error
    finally:
        for name in files:
            (cache / f"{name}.part").unlink(missing_ok=True)


@dataclass
class _Findings:
    """What decoding finds: why images fail, what was left aside, their perceptual hashes."""

    failures: list[DataError] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)


def _write_parts(source: _Source, cache: Path, progress: bool) -> dict[str, Any]:
    """Write the images of both splits; returns the index.  Raises UnreadableImages."""
    spec = source.spec
    found = _Findings()
    index: dict[str, Any] = {"fingerprint": source.fingerprint}
    for split in SPLITS:
        names = [name for name, _ in source.listing.files[split]]
        images: Iterable[np.ndarray]
        boxes = None
        if spec.kind == "birds":
            options: Any = {"seed": spec.seed, "family_size": spec.family_size, "size": spec.size}
            number = getattr(spec, split)
            flock = birds.draw(spec.species, number, pixels=spec.resize, split=split, **options)
            images, boxes = flock.images, flock.boxes.tolist()
        else:
            images = _decode_all(source.listing.root, names, spec, found, progress)
        shape = (len(names), spec.resize, spec.resize, 3)
        digests = _write_array(cache / f"{split}.npy.part", images, shape)
        index[split] = {"boxes": boxes, "digests": digests}
    if found.failures:
        raise UnreadableImages(spec.key, source.listing, found.failures)
    if found.hashes:
        index["notes"] = [*_note_aside(found.aside), *_note_near(source.listing, index, found.hashes)]
    return index


def _write_array(path: Path, images: Iterable[np.ndarray], shape: tuple[int, ...]) -> list[str]:
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


def _decode_all(
    root: Path, paths: list[str], spec: DataSpec, found: _Findings, progress: bool
) -> Iterator[np.ndarray]:
    """Decode images in order; those that fail are left out."""

    def attempt(path: str) -> np.ndarray | DataError:
        reasons: list[str] = []
        try:
            image = decode(root / path, spec.resize, reasons)
        except DataError as error:
            return error
        found.aside.extend(f"{path!r} ({reason})" for reason in reasons)
        found.hashes[path] = photos.perceptual_hash(image)
        return image

    cores = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    silent = None if progress else True
    bar = tqdm(total=len(paths), desc=f"decoding {spec.key}", unit="image", delay=2, disable=silent)
    with ThreadPoolExecutor(cores) as pool, bar:
        for start in range(0, len(paths), 256):  # in batches, so that a slow disk does not fill the memory
            for image in pool.map(attempt, paths[start : start + 256]):
                bar.update()
                if isinstance(image, DataError):
                    found.failures.append(image)
                else:
                    yield image


def _find_absent(root: Path, paths: list[str]) -> str:
    """Name the first of these images, and those that are a folder too deep, as in images/images."""
    if not paths:
        return ""
    deeper: Counter[str] = Counter()
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if root.joinpath(*parts[:depth], *parts[depth - 1 :]).exists():
                deeper["/".join([*parts[:depth], parts[depth - 1]])] += 1
                break
    found = " and ".join(f"{count} below {folder!r}" for folder, count in deeper.items())
    advice = f"found {found}: move them up" if found else "put them back"
    return f"the first is {paths[0]!r}; {advice}"
