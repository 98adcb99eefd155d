"""Readers of the lists in the paper's eight datasets; official.yaml says which layout each of them reads.

A reader takes the folder of a set, and returns the names of the official class ids and the images, each a
split, a path and such an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from fgkd.data.images import SPLITS, DataError

Read = tuple[dict[int, str], list[tuple[str, str, int]]]


def aircraft(base: Path) -> Read:
    """FGVC-Aircraft's variants; train and validation are joined."""
    names = (base / "data/variants.txt").read_text().splitlines()
    images = []
    for split, line in _split_lines(base, "data/images_variant_{}.txt"):
        image, name = line.split(" ", 1)
        images.append((split, f"data/images/{image}.jpg", names.index(name)))
    return dict(enumerate(names)), images


def cars(base: Path) -> Read:
    """Stanford Cars as two folders and a development kit; classes are counted from 1."""
    names = _load_mat(base / "devkit/cars_meta.mat")["class_names"]
    images = []
    for split, file in zip(SPLITS, ("devkit/cars_train_annos", "cars_test_annos_withlabels"), strict=True):
        for row in _load_mat(base / f"{file}.mat")["annotations"]:
            images.append((split, f"cars_{split}/{row['fname']}", int(row["class"])))
    return dict(enumerate(names.tolist(), 1)), images


def cars_annos(base: Path) -> Read:
    """Stanford Cars in one folder; cars_annos.mat has each image's class and split."""
    lists = _load_mat(base / "cars_annos.mat")
    images = []
    for row in lists["annotations"]:
        images.append((SPLITS[int(row["test"])], row["relative_im_path"], int(row["class"])))
    return dict(enumerate(lists["class_names"].tolist(), 1)), images


def cars_folders(base: Path) -> Read:
    """Stanford Cars as a folder per class in train/ and test/, sorted by name."""
    paths = chain.from_iterable((base / split).glob("*/*.jpg") for split in SPLITS)
    parts = sorted(path.relative_to(base).parts for path in paths)
    names = sorted({name for _, name, _ in parts})
    images = [(split, f"{split}/{name}/{file}", names.index(name)) for split, name, file in parts]
    return dict(enumerate(names)), images


def bird_lists(base: Path) -> Read:
    """CUB or NABirds: files of an id and a value per line.

    NABirds' classes.txt also holds the inner classes of its tree, which have no images.
    """
    paths = _read_pairs(base / "images.txt")
    labels = _read_pairs(base / "image_class_labels.txt")
    flags = _read_pairs(base / "train_test_split.txt")
    for name, other in (("image_class_labels.txt", labels), ("train_test_split.txt", flags)):
        if differ := sorted(paths.keys() ^ other.keys()):
            raise DataError(
                f"{len(differ)} images are in only one of images.txt and {name} of {str(base)!r}, "
                f"the first is {differ[0]!r}; fetch the set anew"
            )
    splits = {"1": "train", "0": "test"}
    images = []
    for image, path in paths.items():
        if flags[image] in splits:
            images.append((splits[flags[image]], f"images/{path}", int(labels[image])))
    return {int(number): name for number, name in _read_pairs(base / "classes.txt").items()}, images


def dogs(base: Path) -> Read:
    """Stanford Dogs, whose class names are its folders."""
    images = []
    for split in SPLITS:
        lists = _load_mat(base / f"{split}_list.mat")
        for path, number in zip(lists["file_list"], lists["labels"], strict=True):
            images.append((split, f"Images/{path}", int(number)))
    return {number: path.split("/")[1] for _, path, number in images}, images


def flowers(base: Path) -> Read:
    """Oxford Flowers-102; train and validation are joined."""
    from torchvision.datasets import Flowers102
    from torchvision.datasets.utils import check_integrity

    for name, md5 in (Flowers102._file_dict["label"], Flowers102._file_dict["setid"]):
        if not check_integrity(str(base / name), md5):
            raise ValueError(f"{name} is corrupted, or not the official one")
    labels = _load_mat(base / "imagelabels.mat")["labels"]
    ids = _load_mat(base / "setid.mat")
    images = []
    for split, part in (("train", "trnid"), ("train", "valid"), ("test", "tstid")):
        for image in ids[part].tolist():
            images.append((split, f"jpg/image_{image:05}.jpg", int(labels[image - 1])))
    return dict(enumerate(Flowers102.classes, 1)), images


def moe(base: Path) -> Read:
    """Moe, a folder per character; the first 80 % of its RGB images are for training."""
    names: dict[int, str] = {}
    images = []
    for folder in sorted(path for path in base.iterdir() if path.is_dir()):
        pictures = [path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
        paths = [f"{folder.name}/{path.name}" for path in sorted(pictures) if _is_rgb(path)]
        for i, path in enumerate(paths):
            images.append((SPLITS[i >= len(paths) * 4 // 5], path, len(names)))
        if paths:
            names[len(names)] = folder.name
    return names, images


def pets(base: Path) -> Read:
    """Oxford-IIIT Pet; class names are the beginnings of file names."""
    names: dict[int, str] = {}
    images = []
    for split, line in _split_lines(base, "annotations/{}.txt"):
        image, number, _, _ = line.split()
        images.append((split, f"images/{image}.jpg", int(number)))
        names[int(number)] = image.rpartition("_")[0]
    return names, images


def _split_lines(base: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """The lines of a file for train and validation, and of one for test, each with its split."""
    for split, name in (("train", "trainval"), ("test", "test")):
        for line in (base / pattern.format(name)).read_text().splitlines():
            yield split, line


def _load_mat(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    return loadmat(file, squeeze_me=True)


def _is_rgb(path: Path) -> bool:
    """Whether an image is RGB; also True for what is no image, so that decoding reports it."""
    try:
        with Image.open(path) as image:
            return image.mode == "RGB"
    except OSError:
        return True


def _read_pairs(file: Path) -> dict[str, str]:
    """Read a file of lines '<id> <value>'."""
    pairs: dict[str, str] = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        key, _, value = line.strip().partition(" ")
        if not value or key in pairs:
            raise DataError(
                f"line {number} of {str(file)!r} is {line!r}: expected an id that no other line has, "
                "a space and a value; fetch the file anew"
            )
        pairs[key] = value
    return pairs
