"""The official layouts of the paper's eight datasets: what must be there, and how the lists are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fgkd.data.images import SPLITS, DataError, Files

Read = tuple[dict[int, str], Files]  # the name of each official class id; the images with these ids as labels


@dataclass(frozen=True)
class Layout:
    """A way in which a dataset lies on disk.

    folders: the folders below its root that may hold it; the root itself always may.
    needs: what must be in the folder, as glob patterns.
    read: the folder -> class names and images.
    """

    folders: tuple[str, ...]
    needs: tuple[str, ...]
    read: Callable[[Path], Read]


def read_aircraft(base: Path) -> Read:
    """Read FGVC-Aircraft's variants; train and validation are joined."""
    names = (base / "data/variants.txt").read_text().splitlines()
    files: Files = {}
    for split, file in (("train", "trainval"), ("test", "test")):
        lines = (base / f"data/images_variant_{file}.txt").read_text().splitlines()
        rows = [line.split(" ", 1) for line in lines]
        files[split] = [(f"data/images/{image}.jpg", names.index(name)) for image, name in rows]
    return dict(enumerate(names)), files


def read_cars(base: Path) -> Read:
    """Read Stanford Cars as two folders and a development kit; classes are counted from 1."""
    names = _load_mat(base / "devkit/cars_meta.mat")["class_names"]
    files: Files = {}
    for split, file in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        rows = _load_mat(base / file)["annotations"]
        files[split] = [(f"cars_{split}/{row['fname']}", int(row["class"])) for row in rows]
    return dict(enumerate(names.tolist(), 1)), files


def read_cars_annos(base: Path) -> Read:
    """Read Stanford Cars from one folder.

    cars_annos.mat holds each image's class, counted from 1, and its split.
    """
    annos = _load_mat(base / "cars_annos.mat")
    files: Files = {split: [] for split in SPLITS}
    for annotation in annos["annotations"]:
        split = SPLITS[int(annotation["test"])]
        files[split].append((annotation["relative_im_path"], int(annotation["class"])))
    return dict(enumerate(annos["class_names"].tolist(), 1)), files


def read_cars_folders(base: Path) -> Read:
    """Read Stanford Cars from a folder per class in train/ and test/, sorted by name."""
    names = sorted({path.name for split in SPLITS for path in (base / split).iterdir() if path.is_dir()})
    files: Files = {split: [] for split in SPLITS}
    for split in SPLITS:
        for number, name in enumerate(names):
            paths = sorted((base / split / name).glob("*.jpg"))
            files[split] += [(f"{split}/{name}/{path.name}", number) for path in paths]
    return dict(enumerate(names)), files


def read_bird_lists(base: Path) -> Read:
    """Read CUB or NABirds: files of an id and a value per line.

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
    files: Files = {split: [] for split in SPLITS}
    for split, flag in (("train", "1"), ("test", "0")):
        images = [image for image in paths if flags[image] == flag]
        files[split] = [(f"images/{paths[image]}", int(labels[image])) for image in images]
    names = _read_pairs(base / "classes.txt")
    return {int(number): name for number, name in names.items()}, files


def read_dogs(base: Path) -> Read:
    """Read Stanford Dogs, whose class names are its folders."""
    names = {}
    files: Files = {split: [] for split in SPLITS}
    for split in SPLITS:
        lists = _load_mat(base / f"{split}_list.mat")
        for path, number in zip(lists["file_list"], lists["labels"], strict=True):
            files[split].append((f"Images/{path}", int(number)))
            names[int(number)] = path.partition("/")[0]
    return names, files


def read_flowers(base: Path) -> Read:
    """Read Oxford Flowers-102; train and validation are joined."""
    from torchvision.datasets import Flowers102
    from torchvision.datasets.utils import check_integrity

    for name, md5 in (Flowers102._file_dict["label"], Flowers102._file_dict["setid"]):
        if not check_integrity(str(base / name), md5):
            raise ValueError(f"{name} is corrupted, or not the official one")
    labels = _load_mat(base / "imagelabels.mat")["labels"]
    ids = _load_mat(base / "setid.mat")
    files: Files = {}
    for split, parts in (("train", ("trnid", "valid")), ("test", ("tstid",))):
        images = [int(image) for part in parts for image in ids[part]]
        files[split] = [(f"jpg/image_{image:05}.jpg", int(labels[image - 1])) for image in images]
    return dict(enumerate(Flowers102.classes, 1)), files


def read_moe(base: Path) -> Read:
    """Read Moe, a folder per character; the first 80 % of its RGB images are for training."""
    names: dict[int, str] = {}
    files: Files = {split: [] for split in SPLITS}
    for folder in sorted(path for path in base.iterdir() if path.is_dir()):
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
        paths = [f"{folder.name}/{path.name}" for path in images if _is_rgb(path)]
        if not paths:
            continue
        number = len(names)
        names[number] = folder.name
        count = len(paths) * 4 // 5
        files["train"] += [(path, number) for path in paths[:count]]
        files["test"] += [(path, number) for path in paths[count:]]
    return names, files


def read_pets(base: Path) -> Read:
    """Read Oxford-IIIT Pet; class names are the beginnings of file names."""
    names: dict[int, str] = {}
    files: Files = {}
    for split, file in (("train", "trainval"), ("test", "test")):
        rows = [line.split() for line in (base / f"annotations/{file}.txt").read_text().splitlines()]
        files[split] = [(f"images/{image}.jpg", int(number)) for image, number, _, _ in rows]
        names |= {int(number): image.rpartition("_")[0] for image, number, _, _ in rows}
    return names, files


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


BIRD_LISTS = ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
AIRCRAFT_LISTS = ("data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt")
CARS_LISTS = ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
PETS_LISTS = ("annotations/trainval.txt", "annotations/test.txt")
MOE_FOLDERS = ("moeimouto-faces", "animeface-character-dataset/thumb", "thumb")

LAYOUTS = {
    "aircraft": (Layout(("fgvc-aircraft-2013b",), ("data/images", *AIRCRAFT_LISTS), read_aircraft),),
    "cars": (
        Layout(("stanford_cars",), ("cars_train", "cars_test", *CARS_LISTS), read_cars),
        Layout(("stanford_cars",), ("car_ims", "cars_annos.mat"), read_cars_annos),
        Layout(("car_data/car_data", "car_data"), ("train/*/*.jpg", "test/*/*.jpg"), read_cars_folders),
    ),
    "cub": (Layout(("CUB_200_2011",), BIRD_LISTS, read_bird_lists),),
    "dogs": (Layout((), ("Images", "train_list.mat", "test_list.mat"), read_dogs),),
    "flowers": (Layout(("flowers-102",), ("jpg", "imagelabels.mat", "setid.mat"), read_flowers),),
    "moe": (Layout(MOE_FOLDERS, ("*/*.png",), read_moe),),
    "nabirds": (Layout(("nabirds",), BIRD_LISTS, read_bird_lists),),
    "pets": (Layout(("oxford-iiit-pet",), ("images", *PETS_LISTS), read_pets),),
}
