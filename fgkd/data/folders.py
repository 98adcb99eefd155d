"""Folders of photos: which images are there, of which classes, in which split.

Folders are read by what their names mean, as far as that is certain, and refused otherwise:

    train/<class>/*, test/<class>/*      in any usual spelling: training_set, Test, seg_train, images-val, ...
    <class>/train/*, <class>/test/*      the same, the other way round
    <class>/*                            split by the hashes of the paths and the seed

Without a test split that has classes, the validation split is the test split; beside one it is left out. A
folder that only wraps another (pets/pets/, data/) is looked through, and those of systems and photo programs
are passed over.
"""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path

from PIL import Image

from fgkd.data.images import FORMATS, SPLITS, DataError, Files, Listing, quote_some
from fgkd.study import DataSpec

WORDS = {  # of the names of splits
    "train": "train(ing|ings)?|trn|entrenamiento|entrainement|apprentissage|treino|addestramento|训练|訓練",
    "val": "val|valid(ation)?|dev|eval(uation)?|holdout|validacion|validacao|validazione|验证|検証",
    "test": "tests?|testing|tst|pruebas?|teste|测试|テスト",
    "unlabeled": "pred(ict|ictions?)?|unlabell?ed|submission|inference",
}
FILLER = (  # says nothing in the name of a folder
    "(data)?sets?|splits?|data|daten|im(a?)ge?s?|photos?|pic(ture)?s?|bilder|folders?|dir|files?|jpe?g|png|"
    "class(es)?|集"
)
SYSTEM = {  # of disks, network storage, clouds, archives, photo programs and notebooks
    *("__macosx", "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"),
    *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "_gsdata_", "_uploads"),
    *("thumbs", "thumbnails", "picasaoriginals", "__pycache__"),
}
Parts = dict[str, dict[str, list[str]]]  # by split, '' where there is none: the folders of each class


@dataclass
class _Tree:
    """The folders below a root, by paths below it ('' is the root), each listed once.

    notes: sentences on what is read as what, and what is left out.
    aside, links: folders that are passed over.
    """

    root: Path
    notes: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)
    listed: dict[str, tuple[list[str], list[str], list[str]]] = field(default_factory=dict)

    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder, but for hidden ones and those of systems and programs."""
        return self._list(path)[0]

    def photos(self, path: str) -> list[str]:
        """Names of the photos directly in a folder."""
        return self._list(path)[1]

    def all_photos(self, path: str, skipped: Counter[str]) -> list[str]:
        """Paths of the photos in a folder and all folders in it.

        skipped: counts the other files by ending, in place.
        """
        skipped.update(self._list(path)[2])
        paths = [f"{path}/{name}" for name in self.photos(path)]
        for name in self.folders(path):
            below = f"{path}/{name}"
            if os.path.islink(self.root / below):  # it could lead round in circles
                self.links.append(below)
            else:
                paths += self.all_photos(below, skipped)
        return sorted(paths)

    def has_photos(self, path: str) -> bool:
        """Whether there is a photo in a folder or in a folder in it."""
        below = [_join(path, name) for name in self.folders(path)]
        is_link = [os.path.islink(self.root / folder) for folder in below]
        inside = [folder for folder, link in zip(below, is_link, strict=True) if not link]
        return bool(self.photos(path)) or any(self.has_photos(folder) for folder in inside)

    def _list(self, path: str) -> tuple[list[str], list[str], list[str]]:
        """Names of folders, names of photos and endings of other files."""
        if path not in self.listed:
            folders: list[str] = []
            photos: list[str] = []
            others: list[str] = []
            for entry in os.scandir(self.root / path):
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() and entry.name.casefold() in SYSTEM:
                    self.aside.append(_join(path, entry.name))
                elif entry.is_dir():
                    folders.append(entry.name)
                elif ending in _endings():
                    photos.append(entry.name)
                else:
                    others.append(ending)
            self.listed[path] = (sorted(folders), photos, others)
        return self.listed[path]


def list_images(spec: DataSpec) -> Listing:
    """List the images of a folder in one of the layouts above.

    Raises DataError for a root, folders or classes that cannot be used.
    """
    root = Path(spec.root or "")
    if not spec.root or not root.is_dir():
        raise DataError(
            f"{spec.key}: root {spec.root!r} is not a folder; name one that holds a folder per class, "
            "or train/ and test/ with a folder per class in each"
        )
    if spec.split:
        return list_file(spec, root, Path(spec.split))
    try:
        return _list_images(spec, _Tree(root))
    except OSError as error:
        raise DataError(
            f"{spec.key}: {str(error.filename)!r} cannot be read ({error.strerror}); change its permissions, "
            f"or move it out of {str(root)!r}"
        ) from error


def list_file(spec: DataSpec, root: Path, file: Path) -> Listing:
    """List the images of a CSV file with the columns class, path (below the root) and split.

    Raises DataError naming the line that is wrong.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            paths = _read_lines(f"{spec.key}: %s of {str(file)!r}", root, csv.DictReader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{spec.key}: split file {str(file)!r} cannot be read ({reason})") from error
    parts = {"train": paths["train"], "test": paths["test"] or paths["val"]}
    classes = _choose_classes(spec, sorted(set().union(*parts.values())))
    _check_counterparts(spec, parts, classes)
    notes = [f"split by {file.name!r}"]
    if paths["test"] and paths["val"]:
        notes.append(
            f"left out, as there is a test split: {sum(map(len, paths['val'].values()))} for validation"
        )
    files: Files = {split: [] for split in SPLITS}
    for split, (label, name) in product(SPLITS, enumerate(classes)):
        files[split] += [(path, label) for path in sorted(parts[split][name])]
    return Listing(classes, root, files, tuple(notes))


def _read_lines(where: str, root: Path, reader: csv.DictReader) -> Parts:
    """The photos of each class by the kind of their split; `where` takes the place of an error."""
    columns = ("class", "path", "split")
    if not set(columns) <= set(reader.fieldnames or ()):
        raise DataError(f"{where % 'the first line'} is {reader.fieldnames}: expected class,path,split")
    lines: dict[str, int] = {}
    paths: Parts = {kind: defaultdict(list) for kind in WORDS}
    for row in reader:
        line = where % f"line {reader.line_num}"
        if lacking := [column for column in columns if not row[column]]:
            raise DataError(f"{line} has no {lacking[0]}")
        path = Path(os.path.normpath(row["path"])).as_posix()
        kinds = [*_kinds([row["split"]]).values()]
        if not kinds:
            raise DataError(f"{line} has the split {row['split']!r}: expected train or test")
        if path in lines:
            raise DataError(f"{line} has {path!r}, which line {lines[path]} has, too")
        if path.startswith(("../", "/")) or not (root / path).is_file():
            raise DataError(f"{line} has {path!r}, which is not there below {str(root)!r}")
        lines[path] = reader.line_num
        paths[kinds[0]][row["class"]].append(path)
    return paths


def _list_images(spec: DataSpec, tree: _Tree) -> Listing:
    parts = _unite(tree, _find_parts(spec, tree))
    classes = _choose_classes(spec, sorted(set().union(*parts.values())))
    _check_counterparts(spec, parts, classes)
    skipped: Counter[str] = Counter()
    paths = {}
    for part, name in product(parts, classes):
        paths[part, name] = sorted(
            chain.from_iterable(tree.all_photos(folder, skipped) for folder in parts[part][name])
        )
    if empty := [key for key, images in paths.items() if not images]:
        raise DataError(f"{spec.key}: {_explain_empty(tree, [parts[part][name] for part, name in empty])}")
    nested = set()
    for (part, name), images in paths.items():
        depth = parts[part][name][0].count("/") + 1
        if any(path.count("/") > depth for path in images):
            nested.add(name)
    is_split = "" not in parts
    if not is_split:
        paths = _split(spec, {name: paths["", name] for name in classes})
    files: Files = {split: [] for split in SPLITS}
    for split in SPLITS:
        for label, name in enumerate(classes):
            files[split] += [(path, label) for path in paths[split, name]]
    return Listing(classes, tree.root, files, _notes(tree, skipped, sorted(nested)), is_split=is_split)


def _explain_empty(tree: _Tree, empty: list[list[str]]) -> str:
    """Say which class folders have no photo, and what they hold instead."""
    folders = list(chain.from_iterable(empty))
    others: Counter[str] = Counter()
    for folder in folders:
        tree.all_photos(folder, others)
    advice = "add images or remove the folders"
    if others:
        advice = f"what is there, {_count_endings(others)}, Pillow does not open: convert it to JPEG or PNG"
    return f"no image in {quote_some(folders)} of {str(tree.root)!r}; {advice}"


def _find_parts(spec: DataSpec, tree: _Tree) -> Parts:
    """Find the folders of the splits, and of the classes in them."""
    base = _look_through(tree, "")
    tree.passed = {"", base}
    if base:
        tree.notes.append(f"read from {base!r}")
    splits = _find_splits(spec, tree, base, lambda path: bool(tree.folders(_look_through(tree, path))))
    if splits:
        tops = {split: _look_through(tree, path) for split, path in splits.items()}
        tree.passed |= {*splits.values(), *tops.values()}
        return {
            split: {name: [_join(top, name)] for name in tree.folders(top)} for split, top in tops.items()
        }
    _refuse_half_a_split(spec, tree, base)
    classes = {name: _join(base, name) for name in tree.folders(base)}
    inside = {name: _find_splits(spec, tree, path, tree.has_photos) for name, path in classes.items()}
    if not any(inside.values()):
        return {"": {name: [path] for name, path in classes.items()}}
    if lacking := [name for name, found in inside.items() if found.keys() != set(SPLITS)]:
        raise DataError(
            f"{spec.key}: {quote_some(lacking)} of {str(tree.root)!r} do not hold folders for training and "
            "for test, as other classes do; expected both in each class"
        )
    tree.passed |= {*classes.values()}
    return {split: {name: [found[split]] for name, found in inside.items()} for split in SPLITS}


def _refuse_half_a_split(spec: DataSpec, tree: _Tree, base: str) -> None:
    """Raise DataError for folders named as splits, of which one is missing, or has no classes."""
    names = tree.folders(base)
    where = repr(str(tree.root / base))
    kinds = _kinds(names)
    photos = sum(len(tree.photos(_join(base, name))) for name in ("", *kinds))
    if not names or {"train", "test"} <= set(kinds.values()) or {"train", "val"} <= set(kinds.values()):
        found = f", but {photos} photos" if photos else ""
        raise DataError(
            f"{spec.key}: no class folders in {where}{found}; put the images of each class in a folder"
        )
    is_plain = all(_words(name) == [name.casefold()] for name in names)
    is_clear = "train" in kinds.values() or len(set(kinds.values())) > 1 or is_plain
    if (len(kinds) == len(names) and is_clear) or any(len(_words(name)) > 1 for name in kinds):
        raise DataError(
            f"{spec.key}: {where} holds {quote_some(names)}; expected both 'train' and 'test', or a folder "
            "per class: rename these"
        )


def _find_splits(spec: DataSpec, tree: _Tree, base: str, is_filled: Callable[[str], bool]) -> dict[str, str]:
    """Find the folders of the splits in a folder: none, both, or '' alone for one to be split."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, kind in _kinds(tree.folders(base)).items():
        names[kind].append(name)
    if not names["train"] or not names["test"] + names["val"]:
        return {}
    found = {}
    for kind in ("train", "val", "test"):
        filled = [name for name in names[kind] if is_filled(_join(base, name))]
        if len(filled) > 1 and kind not in filled:
            raise DataError(
                f"{spec.key}: {quote_some(filled)} of {str(tree.root / base)!r} are all for {kind}; name the "
                f"one to use {kind!r}, or put their photos together"
            )
        if filled:
            found[kind] = kind if kind in filled else filled[0]
    if "train" not in found:
        return {}
    test = found.get("test") or found.get("val")
    used = [found["train"], test] if test else [found["train"]]
    if used != list(SPLITS):
        tree.notes.append(f"read for training: {found['train']!r}, for test: {test or 'a part of it'!r}")
    if others := [name for name in tree.folders(base) if name not in used]:
        only = " and ".join(f"{name}/" for name in used)
        tree.notes.append(f"left out, since only {only} are used: {quote_some(others)}")
    splits = dict(zip(SPLITS, used, strict=False)) if test else {"": used[0]}
    return {split: _join(base, name) for split, name in splits.items()}


def _kinds(names: list[str]) -> dict[str, str]:
    """Which of these names are those of splits, and of which: a key of WORDS.

    What all of them have in common says nothing, as in seg_train and seg_test.
    """
    words = {name: {word: _kind(word) for word in _words(name)} for name in names}
    words = {name: kinds for name, kinds in words.items() if {*kinds.values()} & WORDS.keys()}
    shared = set.intersection(*map(set, words.values())) if len(words) > 1 else set()
    splits = {}
    for name, kinds in words.items():
        own = {kind for word, kind in kinds.items() if word not in shared} - {"filler"}
        if own <= WORDS.keys():
            splits[name] = "train" if own == {"train", "val"} else min(own, default="")
    return splits


def _words(name: str) -> list[str]:
    """The words of a name, in small letters without accents and numbers: Training_Set-2 -> training, set."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain).casefold())


@functools.cache
def _kind(word: str) -> str:
    """The key of WORDS to which a word belongs, alone or with a filler; 'filler', or ''."""
    for kind, pattern in (*WORDS.items(), ("filler", FILLER)):
        if re.fullmatch(f"({FILLER})?({pattern})({FILLER})?", word):
            return kind
    return ""


def _look_through(tree: _Tree, path: str) -> str:
    """Go down from a folder that only wraps another to the one that is wrapped."""
    while True:
        inner = tree.folders(path)
        plain = [name for name in inner if {*map(_kind, _words(name))} == {"filler"}]
        if len(inner) > 1 and len(plain) == 1:  # images/ beside labels/
            others = [name for name in inner if name not in plain]
            inner = inner if any(tree.has_photos(_join(path, name)) for name in others) else plain
        is_split = bool(_kinds(inner)) and inner[0].casefold() != os.path.basename(path).casefold()
        below = _join(path, inner[0]) if len(inner) == 1 and not is_split else ""
        if not below or tree.photos(below) or not tree.folders(below):
            return path
        path = below


def _unite(tree: _Tree, parts: Parts) -> Parts:
    """Join folders whose names differ in Unicode's form, or between the splits in case, alone."""
    spelt: dict[str, list[str]] = defaultdict(list)
    united: Parts = {part: defaultdict(list) for part in parts}
    for part, classes in parts.items():
        for name, folders in classes.items():
            key = unicodedata.normalize("NFC", name)
            united[part][key] += folders
            spelt[key] += [name]
    if len(parts) > 1:
        train, test = united.values()
        lone = Counter(name.casefold() for name in train.keys() ^ test.keys())
        for name in sorted(train.keys() - test.keys()):
            twins = [other for other in test.keys() - train.keys() if other.casefold() == name.casefold()]
            if lone[name.casefold()] == 2 and twins:
                test[name] = test.pop(twins[0])
                tree.notes.append(f"the folders {name!r} and {twins[0]!r} are one class")
    for key, names in spelt.items():
        if len(set(names)) > 1:
            tree.notes.append(f"the folders named {key!r} in two Unicode forms are one class")
    own = {key: names[0] for key, names in spelt.items() if len(set(names)) == 1}
    return {
        part: {own.get(key, key): folders for key, folders in classes.items()}
        for part, classes in united.items()
    }


def _choose_classes(spec: DataSpec, available: list[str]) -> tuple[str, ...]:
    """Return the class folders to use, sorted."""
    forms = {unicodedata.normalize("NFC", name): name for name in available}
    wanted = {forms.get(unicodedata.normalize("NFC", name), name) for name in spec.classes}
    absent = sorted(wanted - set(available))
    if absent:
        hints = ""
        for name in absent:
            for close in difflib.get_close_matches(name, available, n=1):
                hints += f"; did you mean {close!r} for {name!r}?"
        raise DataError(
            f"{spec.key}: classes {quote_some(absent)} not found in {spec.root!r}, which has "
            f"{quote_some(available)}{hints}"
        )
    classes = tuple(sorted(wanted or available))
    if len(classes) < 2:
        raise DataError(
            f"{spec.key}: {classes[0]!r} is the only class in {spec.root!r}; at least two are needed"
        )
    if odd := [name for name in classes if name != os.fsencode(name).decode(errors="replace")]:
        raise DataError(
            f"{spec.key}: the names of {quote_some(odd)} in {spec.root!r} are not UTF-8: rename these folders"
        )
    return classes


def _check_counterparts(spec: DataSpec, parts: Parts, classes: tuple[str, ...]) -> None:
    """Raise DataError for classes that are in one of the splits only."""
    alone = []
    for part, folders in parts.items():
        for name in classes:
            if name in folders and not all(name in others for others in parts.values()):
                alone.append(f"{part}/{name}")
    if alone:
        raise DataError(
            f"{spec.key}: {quote_some(alone)} without counterpart; a class needs images in train/ and test/"
        )


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


def _notes(tree: _Tree, skipped: Counter[str], nested: list[str]) -> tuple[str, ...]:
    """Say what is left out, and what is read as what."""
    notes = [*tree.notes]
    if skipped:
        notes.insert(0, f"left out, since Pillow opens no such images: {_count_endings(skipped)}")
    if tree.aside:
        notes.append(f"left out, as folders of a system or program: {quote_some(tree.aside)}")
    if tree.links:
        notes.append(f"left out, since they are links to folders: {quote_some(tree.links)}")
    for path in sorted(tree.passed):
        if photos := len(tree.photos(path)):
            notes.append(
                f"left out, since they are in no class folder: {photos} photos in {str(tree.root / path)!r}"
            )
    if nested:
        notes.append(f"the photos in folders inside {quote_some(nested)} count as that class")
    return tuple(dict.fromkeys(notes))


def _count_endings(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {'*' + ending!r}" for ending, count in sorted(endings.items()))


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


@functools.cache
def _endings() -> frozenset[str]:
    """The endings of photos."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)
