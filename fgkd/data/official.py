"""The paper's eight data sets: what they are, reading their official layouts, fetching them, and checking them before a study.

`folders.load` reads a set through `listing`; `fgkd data KEY` is `prepare`, `fgkd data --list` is `overview`.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from fgkd.data import folders
from fgkd.data.folders import SHOWN, SPLITS, DataError
from fgkd.study import DataSpec

Splits = dict[
    str, list[tuple[str, int]]
]  # for train and test: (path below the set's folder, official class id) of each image


@dataclass(frozen=True)
class File:
    """A file that the set's owner gives out. gives: the name in the set's folder that is there once it is in place."""

    name: str
    gives: str
    url: str = ""  # empty: to be fetched by hand
    checksum: str = ""  # 'md5:...' or 'sha256:...'; empty where none is known for certain


@dataclass(frozen=True)
class Layout:
    """A way in which a set lies on disk: in one of `folders` below its root, or in the root itself, whatever its name."""

    folders: tuple[str, ...]
    needs: tuple[str, ...]  # what there must be, as glob patterns
    read: Callable[[Path], tuple[dict[int, str], Splits]]  # the set's folder -> name of each class id, images


@dataclass(frozen=True)
class Official:
    """A set's facts: counts as the paper uses them (train is train and validation joined), terms, layouts, files."""

    name: str
    classes: int
    train: int
    test: int
    licence: str
    home: str
    layouts: tuple[Layout, ...]
    files: tuple[File, ...] = ()
    note: str = ""  # what a reader of its results should know


@dataclass(frozen=True)
class Listing:
    """What a set consists of; files: (path below its root, label) of each image, labels in the order of the class ids."""

    classes: tuple[str, ...]
    files: Splits


def root_of(kind: str, root: str | None) -> Path:
    """The folder of a set: `root`, or the set's own in the folder FGKD_DATA."""
    if root or os.environ.get("FGKD_DATA"):
        return Path(root or Path(os.environ["FGKD_DATA"], kind)).expanduser().absolute()
    raise DataError(
        f"{kind}: neither a root is given nor FGKD_DATA set: name the root (in the study file, or with --root), "
        f"or set FGKD_DATA to the folder that holds {kind}/"
    )


def listing(kind: str, root: Path) -> Listing:
    """Classes and images of the set in `root`, as its official files list them; no image is opened but Moe's headers.

    Raises DataError where the set is absent, lacks a file, or has one that cannot be followed.
    """
    layout, base, missing = _locate(kind, root)
    if len(missing) == len(layout.needs):
        raise DataError(
            f"{kind}: {SETS[kind].name} is not in {str(root)!r}: expected {_described(kind)}. 'fgkd data {kind}' fetches it or says how"
        )
    if missing:
        raise DataError(
            f"{kind}: {', '.join(map(repr, missing))} missing in {str(base)!r}: expected {', '.join(layout.needs)}; "
            f"put it back, or remove the folder, and run 'fgkd data {kind}'"
        )
    try:
        names, splits = layout.read(base)
        ids = sorted({number for files in splits.values() for _, number in files})
        if unnamed := [number for number in ids if number not in names]:
            raise DataError(
                f"class {unnamed[0]} has images in {str(base)!r}, but no name; fetch the set anew"
            )
    except DataError as error:
        raise DataError(f"{kind}: {error}") from None
    except Exception as error:  # torchvision and scipy raise whatever their parsers stumble on
        raise DataError(
            f"{kind}: the files in {str(base)!r} cannot be followed ({type(error).__name__}: {error}); fetch them anew"
        ) from error
    if empty := [split for split in SPLITS if not splits[split]]:
        raise DataError(f"{kind}: no {empty[0]} image is listed in {str(base)!r}; fetch the set anew")
    label, below = (
        {number: i for i, number in enumerate(ids)},
        "" if base == root else f"{base.relative_to(root).as_posix()}/",
    )
    return Listing(
        tuple(names[number] for number in ids),
        {split: [(below + path, label[number]) for path, number in splits[split]] for split in SPLITS},
    )


def checks(kind: str, found: Listing) -> pd.DataFrame:
    """One row a count of the listing: check, expected, found, verdict (ok or wrong), detail."""
    official, paths = SETS[kind], {split: [path for path, _ in found.files[split]] for split in SPLITS}
    twice = sorted(set(paths["train"]) & set(paths["test"]))
    rows = [
        _row("classes", official.classes, len(found.classes)),
        _row("training images", official.train, len(paths["train"])),
        _row("test images", official.test, len(paths["test"])),
        _row("images listed in both splits", 0, len(twice), ", ".join(twice[:3])),
    ]
    return pd.DataFrame(rows)


def prepare(kind: str, root: Path, *, resize: int, progress: bool = True) -> pd.DataFrame:
    """Fetch a set where its owner lets a program do so, check it, and cache its images at `resize` pixels.

    Returns the rows of `checks` and of the images themselves; the cache is built unless images cannot be read.
    Raises DataError where the set must be fetched by hand, saying what, from where and where to, and where it cannot be read.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _complete(kind, root, progress)
    table = checks(kind, listing(kind, root))
    spec = DataSpec(key=kind, kind=kind, root=str(root), resize=resize, check_counts=False)
    try:
        found = folders.load(spec, folders.shared_cache(root, resize), progress=progress)
    except folders.UnreadableImages as error:
        rows = [_row("unreadable images", 0, len(error.failures))]
        rows += [
            {"check": "", "expected": "", "found": "", "verdict": "", "detail": failure}
            for failure in error.failures[:SHOWN]
        ]
    else:
        same = _row(
            "pictures in both splits",
            0,
            int(folders.check(found).in_both_splits[1]),
            " ".join(note for note in found.notes if "also in train" in note),
        )
        rows = [
            _row("unreadable images", 0, 0),
            same | ({"verdict": "note"} if same["found"] else {}),
        ]  # official splits may well share some
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def overview() -> pd.DataFrame:
    """One row a set: its counts, its terms, and what there is of it in FGKD_DATA."""
    return pd.DataFrame(
        [
            {
                "key": kind,
                "name": s.name,
                "classes": s.classes,
                "train": s.train,
                "test": s.test,
                "licence": s.licence,
                "state": _state(kind),
            }
            for kind, s in SETS.items()
        ]
    )


def fetch(url: str, file: Path, checksum: str = "", *, progress: bool = True) -> None:
    """Download `url` to `file`, going on from what an earlier call left in '<file>.part'.

    checksum: 'md5:...' or 'sha256:...', or '' to take the file as it comes. A file that is there is checked, not fetched.
    Raises DataError where the download fails or ends early, which keeps the part, and for a wrong checksum, which removes it.
    """
    if file.exists():
        if wrong := _mismatch(file, checksum):
            raise DataError(
                f"{str(file)!r} {wrong}: it is damaged or another version; remove it and run again"
            )
        return
    part = file.with_name(f"{file.name}.part")
    try:
        _download(url, part, progress)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url} cannot be fetched: {error}. The same command continues where this one ended; "
            f"or fetch the file by other means and put it at {str(file)!r}"
        ) from error
    if wrong := _mismatch(part, checksum):
        part.unlink()
        raise DataError(
            f"what came from {url} {wrong}, and was removed: run again, or fetch the file by other means and put it at {str(file)!r}"
        )
    os.replace(part, file)


def _download(url: str, part: Path, progress: bool) -> None:
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "fgkd"} | ({"Range": f"bytes={start}-"} if start else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing follows the part: it was whole when the last call ended
            return
        raise
    with response:
        start = start if response.status == 206 else 0  # a server that knows no ranges sends the whole file
        total = (
            start + int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        )
        with (
            open(part, "ab" if start else "wb") as out,
            tqdm(
                initial=start,
                total=total,
                unit="B",
                unit_scale=True,
                desc=f"fetching {part.stem}",
                disable=None if progress else True,
            ) as bar,
        ):
            while chunk := response.read(1 << 20):
                out.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


def _mismatch(file: Path, checksum: str) -> str:
    """What is wrong with a file's checksum, '' where nothing is."""
    kind, _, expected = checksum.partition(":")
    with open(file, "rb") as content:
        found = hashlib.file_digest(content, kind).hexdigest() if checksum else ""
    return f"has the {kind} {found}, expected {expected}" if found != expected else ""


def _complete(kind: str, root: Path, progress: bool) -> None:
    """Put in place what is missing of a set: fetched, or unpacked from archives that lie in its root."""
    official, (layout, base, missing) = SETS[kind], _locate(kind, root)
    if not missing or layout is not official.layouts[0]:
        return
    files = [file for file in official.files if not (base / file.gives).exists()]
    if (
        len(missing) == len(layout.needs)
        and not files
        or any(not file.url and not (root / file.name).exists() for file in files)
    ):
        raise DataError(_by_hand(kind, root, files))
    base.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.name == file.gives:  # no archive
            if (root / file.name).exists() and root != base:
                os.replace(root / file.name, base / file.name)
            fetch(file.url, base / file.name, file.checksum, progress=progress)
        else:
            fetch(file.url, root / file.name, file.checksum, progress=progress)
            _unpack(root / file.name, base, file.gives)


def _unpack(archive: Path, base: Path, last: str) -> None:
    """Unpack beside the set's folder and move into it what is whole, `last` last: a set half unpacked is never taken for a whole one."""
    from torchvision.datasets.utils import extract_archive

    aside = archive.parent / ".unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        print(f"unpacking {archive}")
        extract_archive(str(archive), str(aside))
        content = aside / base.name if (aside / base.name).is_dir() else aside
        for entry in sorted(content.iterdir(), key=lambda entry: entry.name == last):
            if not (base / entry.name).exists():
                os.replace(entry, base / entry.name)
    except Exception as error:  # tarfile, zipfile, gzip and zlib each have their own
        raise DataError(f"{str(archive)!r} cannot be unpacked: {error}; remove it and run again") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _locate(kind: str, root: Path) -> tuple[Layout, Path, list[str]]:
    """The layout of which `root` holds most, the set's folder in it, and what it lacks."""
    found = []
    for layout in SETS[kind].layouts:
        for base in (*(root / folder for folder in layout.folders), root):
            missing = [need for need in layout.needs if not any(base.glob(need))]
            found.append((len(missing) / len(layout.needs), layout, base, missing))
    return min(found, key=lambda candidate: candidate[0])[1:]


def _described(kind: str) -> str:
    return ", or ".join(
        "".join(f"{folder}/ or " for folder in layout.folders)[:-4]
        + f"{' with ' if layout.folders else ''}{', '.join(layout.needs)}"
        for layout in SETS[kind].layouts
    )


def _by_hand(kind: str, root: Path, files: list[File]) -> str:
    official = SETS[kind]
    absent = [
        f"{file.name} ({file.checksum.replace(':', ' ')})"
        for file in files
        if not (root / file.name).exists()
    ]
    return "\n  ".join(
        [
            f"{kind}: {official.name} is not complete in {str(root)!r}, and has to be fetched by hand ({official.licence}).",
            f"from   {official.home}",
            *(
                [
                    "fetch  " + "\n         ".join(absent),
                    f"to     {root}",
                    f"then   'fgkd data {kind}' checks and unpacks what is there",
                ]
                if absent
                else []
            ),
            f"{'or' if absent else 'to':7}{root}, unpacked: {_described(kind)}",
        ]
    )


def _state(kind: str) -> str:
    if not os.environ.get("FGKD_DATA"):
        return "FGKD_DATA is not set"
    root = root_of(kind, None)
    layout, _, missing = _locate(kind, root)
    if len(missing) == len(layout.needs):
        return "absent"
    try:
        table = checks(kind, listing(kind, root))
    except DataError as error:
        return str(error).removeprefix(f"{kind}: ")
    if wrong := ", ".join(
        f"{row.found} of {row.expected} {row.check}" for row in table.itertuples() if row.verdict == "wrong"
    ):
        return wrong
    sizes = [index.parent.name.removeprefix("cache-") for index in sorted(root.glob("cache-*/index.json"))]
    return f"ready at {', '.join(sizes)} pixels" if sizes else "complete, not cached"


def _row(check: str, expected: int, found: int, detail: str = "") -> dict:
    return {
        "check": check,
        "expected": expected,
        "found": found,
        "verdict": "ok" if found == expected else "wrong",
        "detail": detail,
    }


def _through_torchvision(
    base: Path, name: str, read: Callable[[str], tuple[dict[int, str], dict[str, Iterable]]]
) -> tuple[dict[int, str], Splits]:
    """What `read` finds in a folder where `base` lies under the name that torchvision expects; its paths made relative to base."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, name)
        link.symlink_to(base.absolute(), target_is_directory=True)
        names, splits = read(folder)
        return names, {
            split: [(Path(path).relative_to(link).as_posix(), int(number)) for path, number in files]
            for split, files in splits.items()
        }


def _aircraft(base: Path) -> tuple[dict[int, str], Splits]:
    from torchvision.datasets import FGVCAircraft

    def read(root):
        train, test = (FGVCAircraft(root, split) for split in ("trainval", "test"))
        return dict(enumerate(train.classes)), {
            "train": zip(train._image_files, train._labels),
            "test": zip(test._image_files, test._labels),
        }

    return _through_torchvision(base, "fgvc-aircraft-2013b", read)


def _cars(base: Path) -> tuple[dict[int, str], Splits]:
    from torchvision.datasets import StanfordCars

    def read(root):
        train, test = (StanfordCars(root, split) for split in SPLITS)
        return dict(enumerate(train.classes)), {"train": train._samples, "test": test._samples}

    return _through_torchvision(base, "stanford_cars", read)


def _cars_annos(base: Path) -> tuple[dict[int, str], Splits]:
    """All images in one folder; cars_annos.mat says of each its class, from 1, and whether it is for test."""
    from scipy.io import loadmat

    annos = loadmat(base / "cars_annos.mat", squeeze_me=True)
    splits = {
        split: [(a["relative_im_path"], int(a["class"])) for a in annos["annotations"] if a["test"] == test]
        for test, split in enumerate(SPLITS)
    }
    return dict(enumerate(annos["class_names"].tolist(), 1)), splits


def _cars_folders(base: Path) -> tuple[dict[int, str], Splits]:
    """A folder a class in train/ and test/; it has no class ids, so the classes are in the order of their names."""
    names = sorted({path.name for split in SPLITS for path in (base / split).iterdir() if path.is_dir()})
    files = {
        split: [
            (f"{split}/{name}/{path.name}", number)
            for number, name in enumerate(names)
            for path in sorted((base / split / name).glob("*.jpg"))
        ]
        for split in SPLITS
    }
    return dict(enumerate(names)), files


def _birds_lists(base: Path) -> tuple[dict[int, str], Splits]:
    """CUB and NABirds: an id and a value a line; NABirds' classes.txt holds the inner classes of its tree, too, which have no images."""
    paths, labels, train = (
        _pairs(base / name) for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    for name, other in (("image_class_labels.txt", labels), ("train_test_split.txt", train)):
        if differ := sorted(paths.keys() ^ other.keys()):
            raise DataError(
                f"{len(differ)} images are in only one of images.txt and {name} of {str(base)!r}, the first is {differ[0]!r}; fetch the set anew"
            )
    splits = {
        split: [
            (f"images/{path}", int(labels[image])) for image, path in paths.items() if train[image] == flag
        ]
        for split, flag in zip(SPLITS, "10")
    }
    return {int(number): name for number, name in _pairs(base / "classes.txt").items()}, splits


def _dogs(base: Path) -> tuple[dict[int, str], Splits]:
    from scipy.io import loadmat

    splits = {}
    for split in SPLITS:
        lists = loadmat(base / f"{split}_list.mat", squeeze_me=True)
        splits[split] = [
            (f"Images/{path}", int(number))
            for path, number in zip(lists["file_list"], lists["labels"], strict=True)
        ]
    names = {number: path.split("/")[1] for files in splits.values() for path, number in files}
    return names, splits


def _flowers(base: Path) -> tuple[dict[int, str], Splits]:
    from torchvision.datasets import Flowers102

    def read(root):
        found = {split: Flowers102(root, split) for split in ("train", "val", "test")}
        files = {split: list(zip(s._image_files, s._labels)) for split, s in found.items()}
        return dict(enumerate(Flowers102.classes)), {
            "train": files["train"] + files["val"],
            "test": files["test"],
        }

    return _through_torchvision(base, "flowers-102", read)


def _moe(base: Path) -> tuple[dict[int, str], Splits]:
    """A folder a character. Of its RGB images in the order of their names, the first 80 % (rounded down) are for training."""
    names, splits = {}, {split: [] for split in SPLITS}
    for folder in sorted(path for path in base.iterdir() if path.is_dir()):
        paths = [
            f"{folder.name}/{path.name}"
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in (".png", ".jpg", ".jpeg") and _is_rgb(path)
        ]
        if paths:
            number, count = len(names), len(paths) * 4 // 5
            names[number] = folder.name
            for split, part in zip(SPLITS, (paths[:count], paths[count:])):
                splits[split] += [(path, number) for path in part]
    return names, splits


def _is_rgb(path: Path) -> bool:
    """Also True for what is no image, so that decoding reports it."""
    try:
        with Image.open(path) as image:
            return image.mode == "RGB"
    except OSError:
        return True


def _pets(base: Path) -> tuple[dict[int, str], Splits]:
    from torchvision.datasets import OxfordIIITPet

    def read(root):
        splits = {
            split: list(zip(s._images, s._labels))
            for split, s in zip(SPLITS, (OxfordIIITPet(root, "trainval"), OxfordIIITPet(root, "test")))
        }
        return {
            number: path.name.rsplit("_", 1)[0] for files in splits.values() for path, number in files
        }, splits

    return _through_torchvision(base, "oxford-iiit-pet", read)


def _pairs(file: Path) -> dict[str, str]:
    """The lines of a file, '<id> <value>'."""
    found = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        key, _, value = line.strip().partition(" ")
        if not value or key in found:
            raise DataError(
                f"line {number} of {str(file)!r} is {line!r}: expected an id that no other line has, a space and a value; fetch the file anew"
            )
        found[key] = value
    return found


LISTS = ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
DOGS = "http://vision.stanford.edu/aditya86/ImageNetDogs"

# Addresses of Aircraft, Flowers and Pets and the md5 of the latter two are torchvision's, the sha256 of Cars and Dogs those recorded by TensorFlow Datasets;
# the md5 of CUB and NABirds are published with their readers. No checksum of Aircraft's archive is known.
SETS = {
    "aircraft": Official(
        "FGVC-Aircraft (variants)",
        100,
        6667,
        3333,
        "non-commercial research",
        f"{VGG}/fgvc-aircraft/",
        (
            Layout(
                ("fgvc-aircraft-2013b",),
                (
                    "data/images",
                    "data/variants.txt",
                    "data/images_variant_trainval.txt",
                    "data/images_variant_test.txt",
                ),
                _aircraft,
            ),
        ),
        (
            File(
                "fgvc-aircraft-2013b.tar.gz",
                "data",
                f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            ),
        ),
    ),
    "cars": Official(
        "Stanford Cars",
        196,
        8144,
        8041,
        "research use",
        "its first home, ai.stanford.edu/~jkrause/cars, is gone; copies: https://www.kaggle.com/datasets/jutrera/stanford-car-dataset-by-classes-folder",
        (
            Layout(
                ("stanford_cars",),
                (
                    "cars_train",
                    "cars_test",
                    "devkit/cars_meta.mat",
                    "devkit/cars_train_annos.mat",
                    "cars_test_annos_withlabels.mat",
                ),
                _cars,
            ),
            Layout(("stanford_cars",), ("car_ims", "cars_annos.mat"), _cars_annos),
            Layout(("car_data/car_data", "car_data"), ("train/*/*.jpg", "test/*/*.jpg"), _cars_folders),
        ),
        (
            File(
                "cars_train.tgz",
                "cars_train",
                checksum="sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
            ),
            File(
                "cars_test.tgz",
                "cars_test",
                checksum="sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
            ),
            File(
                "car_devkit.tgz",
                "devkit",
                checksum="sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
            ),
            File(
                "cars_test_annos_withlabels.mat",
                "cars_test_annos_withlabels.mat",
                checksum="sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
            ),
        ),
    ),
    "cub": Official(
        "CUB-200-2011",
        200,
        5994,
        5794,
        "non-commercial research",
        "https://data.caltech.edu/records/65de6-vp158",
        (Layout(("CUB_200_2011",), LISTS, _birds_lists),),
        (
            File(
                "CUB_200_2011.tgz",
                "images",
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "md5:97eceeb196236b17998738112f37df78",
            ),
        ),
    ),
    "dogs": Official(
        "Stanford Dogs",
        120,
        12000,
        8580,
        "ImageNet subset",
        f"{DOGS}/",
        (Layout((), ("Images", "train_list.mat", "test_list.mat"), _dogs),),
        (
            File(
                "images.tar",
                "Images",
                f"{DOGS}/images.tar",
                "sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            ),
            File(
                "lists.tar",
                "train_list.mat",
                f"{DOGS}/lists.tar",
                "sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            ),
        ),
        "the test images are training images of ImageNet, so teachers pretrained on it have seen them",
    ),
    "flowers": Official(
        "Oxford Flowers-102",
        102,
        2040,
        6149,
        "none stated",
        f"{VGG}/flowers/102/",
        (Layout(("flowers-102",), ("jpg", "imagelabels.mat", "setid.mat"), _flowers),),
        (
            File(
                "102flowers.tgz",
                "jpg",
                f"{VGG}/flowers/102/102flowers.tgz",
                "md5:52808999861908f626f3c1f4e79d11fa",
            ),
            File(
                "imagelabels.mat",
                "imagelabels.mat",
                f"{VGG}/flowers/102/imagelabels.mat",
                "md5:e0620be6f572b9609742df49c70aed4d",
            ),
            File(
                "setid.mat",
                "setid.mat",
                f"{VGG}/flowers/102/setid.mat",
                "md5:a5357ecc9cb78c4bef273ce3793fc85c",
            ),
        ),
    ),
    "moe": Official(
        "Moeimouto faces",
        173,
        11454,
        2943,
        "third-party artwork",
        "http://www.nurs.or.jp/~nagadomi/animeface-character-dataset/, or moeimouto-faces in https://www.kaggle.com/mylesoneill/tagged-anime-illustrations",
        (Layout(("moeimouto-faces", "animeface-character-dataset/thumb", "thumb"), ("*/*.png",), _moe),),
        note="it has no official split: the first 80 % of each character's images, by name, are for training",
    ),
    "nabirds": Official(
        "NABirds",
        555,
        23929,
        24633,
        "Cornell terms, non-commercial",
        "https://dl.allaboutbirds.org/nabirds",
        (Layout(("nabirds",), LISTS, _birds_lists),),
        (File("nabirds.tar.gz", "images", checksum="md5:df21a9e4db349a14e2b08adfd45873bd"),),
    ),
    "pets": Official(
        "Oxford-IIIT Pet",
        37,
        3680,
        3669,
        "CC BY-SA 4.0",
        f"{VGG}/pets/",
        (
            Layout(
                ("oxford-iiit-pet",), ("images", "annotations/trainval.txt", "annotations/test.txt"), _pets
            ),
        ),
        (
            File(
                "images.tar.gz",
                "images",
                f"{VGG}/pets/data/images.tar.gz",
                "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
            ),
            File(
                "annotations.tar.gz",
                "annotations",
                f"{VGG}/pets/data/annotations.tar.gz",
                "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
            ),
        ),
    ),
}
