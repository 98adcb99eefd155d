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
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fgkd.data import photos
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
Parts = dict[str, dict[str, list[str]]]  # by split, '' where there is none: paths of each class


class _Folder(NamedTuple):
    """What is in a folder: paths below the root, and the endings of files that are no photos."""

    path: str
    folders: list[str]
    photos: list[str]
    endings: list[str]


class _Tree:
    """The folders below a root, by paths below it ('' is the root), each read once.

    notes: sentences on what is read as what, and what is left out.
    """

    def __init__(self, root: Path):
        self.root = root
        self.notes: list[str] = []
        self.aside: list[str] = []
        self.links: list[str] = []
        self.read = functools.cache(self._read)

    def _read(self, path: str) -> _Folder:
        found = _Folder(path, [], [], [])
        for entry in sorted(os.scandir(self.root / path), key=lambda entry: entry.name):
            below = _join(path, entry.name)
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (self.aside if entry.name.casefold() in SYSTEM else found.folders).append(below)
            elif ending in _endings():
                found.photos.append(below)
            else:
                found.endings.append(ending)
        return found

    def names(self, path: str) -> list[str]:
        """Names of the folders in a folder."""
        return [os.path.basename(folder) for folder in self.read(path).folders]

    def below(self, path: str) -> Iterator[_Folder]:
        """A folder and all in it, but those behind links, which could lead round in circles."""
        yield self.read(path)
        for folder in self.read(path).folders:
            if not os.path.islink(self.root / folder):
                yield from self.below(folder)

    def holds(self, path: str) -> bool:
        """Whether there is a photo in a folder, or in a folder in it."""
        return any(folder.photos for folder in self.below(path))

    def loose(self, paths: Iterable[str]) -> dict[str, int]:
        """How many photos lie in these folders themselves, where there are any."""
        return {path: len(self.read(path).photos) for path in paths if self.read(path).photos}


def list_images(spec: DataSpec) -> Listing:
    """List the images of a folder in one of the layouts above, or as its split file says.

    Raises DataError for a root, folders, classes or a file that cannot be used.
    """
    root = Path(spec.root or "")
    try:
        if not spec.root or not root.is_dir():
            raise DataError(
                f"root {spec.root!r} is not a folder; name one that holds a folder per class, or train/ and "
                "test/ with a folder per class in each"
            )
        return _list_file(spec, root, Path(spec.split)) if spec.split else _list_folders(spec, _Tree(root))
    except OSError as error:
        raise DataError(
            f"{spec.key}: {str(error.filename)!r} cannot be read ({error.strerror}); change its permissions, "
            f"or move it out of {str(root)!r}"
        ) from error
    except DataError as error:
        raise DataError(f"{spec.key}: {error}") from error.__cause__


def _list_folders(spec: DataSpec, tree: _Tree) -> Listing:
    parts = _unite(tree, _find_parts(tree))
    found = _collect(tree, parts, _choose_classes(spec, parts))
    for part, classes in parts.items():
        _refuse(tree, _splits_around(part, classes, found[part]))
    if tree.aside:
        tree.notes.append(f"left out, as folders of a system or program: {quote_some(tree.aside)}")
    if tree.links:
        tree.notes.append(f"left out, since they are links to folders: {quote_some(tree.links)}")
    is_split = "" not in parts
    return _to_listing(tree.root, found if is_split else _split(spec, found[""]), tree.notes, is_split)


def _find_parts(tree: _Tree) -> Parts:
    """Find the folders of the splits, and of the classes in them."""
    base = _look_through(tree, "")
    if base:
        tree.notes.append(f"read from {base!r}")
    splits = _find_splits(tree, base, lambda path: bool(tree.names(_look_through(tree, path))))
    kinds = {*_kinds(tree.names(base)).values()}
    if not splits and (not tree.names(base) or ("train" in kinds and {"test", "val"} & kinds)):
        number = sum(tree.loose([base, *tree.read(base).folders]).values())
        but = f", but {number} photos" if number else ""
        where = str(tree.root / base)
        raise DataError(f"no class folders in {where!r}{but}; put the images of each class in a folder")
    tops = {split: _look_through(tree, path) for split, path in splits.items()} or {"": base}
    parts = {
        split: {os.path.basename(path): [path] for path in tree.read(top).folders}
        for split, top in tops.items()
    }
    for classes in parts.values():
        _refuse(tree, _like_splits(classes))
    passed = ["", base, *splits.values(), *tops.values()]
    if not splits and (inside := _find_splits_inside(tree, parts[""])):
        passed += tree.read(base).folders
        parts = inside
    for path, count in tree.loose(dict.fromkeys(passed)).items():
        where = str(tree.root / path)
        tree.notes.append(f"left out, since they are in no class folder: {count} photos in {where!r}")
    return parts


def _find_splits_inside(tree: _Tree, classes: dict[str, list[str]]) -> Parts:
    """Find the folders of the splits in the folder of each class: all have both, or none has any."""
    inside = {name: _find_splits(tree, path, tree.holds) for name, [path] in classes.items()}
    if not any(inside.values()):
        return {}
    if lacking := [name for name, found in inside.items() if found.keys() != set(SPLITS)]:
        raise DataError(
            f"{quote_some(lacking)} of {str(tree.root)!r} do not hold folders for training "
            "and for test, as other classes do; expected both in each class"
        )
    if several := [name for name, found in inside.items() if not tree.loose([found["train"]])]:
        raise DataError(
            f"{quote_some(several)} of {str(tree.root)!r} each have a split and classes of "
            "their own: name one of them as the root"
        )
    return {split: {name: [found[split]] for name, found in inside.items()} for split in SPLITS}


def _find_splits(tree: _Tree, base: str, is_filled: Callable[[str], bool]) -> dict[str, str]:
    """Find the folders of the splits in a folder: none, both, or '' alone for one to be split."""
    names = tree.names(base)
    kinds = _kinds(names)
    if "train" not in kinds.values() or not {"test", "val"} & {*kinds.values()}:
        return {}
    found = {}
    for kind in ("train", "val", "test"):
        filled = [name for name in names if kinds.get(name) == kind and is_filled(_join(base, name))]
        if len(filled) > 1 and kind not in filled:
            raise DataError(
                f"{quote_some(filled)} of {str(tree.root / base)!r} are all for {kind}; name the "
                f"one to use {kind!r}, or put their photos together"
            )
        found[kind] = kind if kind in filled else "".join(filled[:1])
    if not found["train"]:
        return {}
    test = found["test"] or found["val"]
    used = [name for name in (found["train"], test) if name]
    if used != list(SPLITS):
        tree.notes.append(f"read for training: {found['train']!r}, for test: {test or 'a part of it'!r}")
    if others := [name for name in names if name not in used]:
        only = " and ".join(f"{name}/" for name in used)
        tree.notes.append(f"left out, since only {only} are used: {quote_some(others)}")
    return {split: _join(base, name) for split, name in zip(SPLITS if test else ("",), used, strict=True)}


def _look_through(tree: _Tree, path: str) -> str:
    """Go down from a folder that only wraps another to the one that is wrapped."""
    while True:
        inner = tree.names(path)
        plain = [name for name in inner if {*map(_kind, _words(name))} == {"filler"}]
        if len(inner) > 1 and len(plain) == 1:  # images/ beside labels/
            others = [name for name in inner if name not in plain]
            inner = inner if any(tree.holds(_join(path, name)) for name in others) else plain
        if len(inner) != 1 or (_kinds(inner) and inner[0].casefold() != os.path.basename(path).casefold()):
            return path
        below = tree.read(_join(path, inner[0]))
        if below.photos or not below.folders:
            return path
        path = below.path


def _like_splits(classes: Iterable[str]) -> list[str]:
    """The names of classes that look like splits."""
    odd = {name: words for name in classes if (words := _split_words(name))}
    certain = _kinds(classes)
    # Classes may well be called Test tube, or dev1 and dev2.
    is_clear = len(set().union(*odd.values())) > 1 or any(len(_words(name)) > 1 for name in certain)
    if len(certain) == len([*classes]):
        is_clear |= "train" in certain.values() or all(_words(name) == [name.casefold()] for name in certain)
    return [*odd] if certain and is_clear else []


def _splits_around(part: str, classes: dict[str, list[str]], found: dict[str, list[str]]) -> list[str]:
    """The names of folders above the classes, and inside of them, that are those of test images."""
    around: set[str] = set()
    for name, paths in found.items():
        *above, _ = classes[name][0].split("/")
        around.update([] if part else above, *(path.split("/")[len(above) + 1 : -1] for path in paths))
    return sorted(name for name in around if _split_words(name) & {"test", "val"})


def _refuse(tree: _Tree, names: list[str]) -> None:
    if names:
        raise DataError(
            f"{quote_some(names)} among the classes of {str(tree.root)!r}, above or inside of them, look "
            "like splits; expected both 'train' and 'test' with a folder per class in each: rename these"
        )


def _kinds(names: Iterable[str]) -> dict[str, str]:
    """Which of these names are those of splits, and of which: a key of WORDS.

    What all of them have in common says nothing, as in seg_train and seg_test.
    """
    words = {name: set(_words(name)) for name in names if _split_words(name)}
    shared = set.intersection(*words.values()) if len(words) > 1 else set()
    splits = {}
    for name, own in words.items():
        kinds = {*map(_kind, own - shared)} - {"filler"}
        if kinds <= WORDS.keys():
            splits[name] = "train" if kinds == {"train", "val"} else min(kinds, default="")
    return splits


def _split_words(name: str) -> set[str]:
    """The splits that words of a name mean: keys of WORDS."""
    return {*map(_kind, _words(name))} & WORDS.keys()


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


def _unite(tree: _Tree, parts: Parts) -> Parts:
    """Join folders whose names differ in Unicode's form, or between the splits in case, alone."""

    def fold(name: str) -> str:
        return _form(name).casefold()

    folded = [sorted(map(fold, part)) for part in parts.values()]
    is_clear = len(parts) > 1 and folded[0] == folded[1] and len(folded[0]) == len(set(folded[0]))
    key = fold if is_clear else _form
    spelt: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(chain.from_iterable(parts.values())):
        spelt[key(name)].append(name)
    for names in spelt.values():
        if len(names) > 1:
            tree.notes.append(f"one class, of names in two Unicode forms or cases: {quote_some(names)}")
    united: Parts = {part: defaultdict(list) for part in parts}
    for part, classes in parts.items():
        for name, paths in classes.items():
            first, *others = spelt[key(name)]
            united[part][_form(first) if others else first] += paths
    return united


def _choose_classes(spec: DataSpec, parts: Parts) -> tuple[str, ...]:
    available = sorted(set().union(*parts.values()))
    forms = {_form(name): name for name in available}
    wanted = {forms.get(_form(name), name) for name in spec.classes}
    if absent := sorted(wanted - set(available)):
        hints = ""
        for name in absent:
            for close in difflib.get_close_matches(name, available, n=1):
                hints += f"; did you mean {close!r} for {name!r}?"
        raise DataError(
            f"classes {quote_some(absent)} not found in {spec.root!r}, which has "
            f"{quote_some(available)}{hints}"
        )
    classes = tuple(sorted(wanted or available))
    if len(classes) < 2:
        only = f"{classes[0]!r} is the only" if classes else "there is no"
        raise DataError(f"{only} class in {spec.root!r}; at least two are needed")
    if odd := [name for name in classes if name != os.fsencode(name).decode(errors="replace")]:
        raise DataError(
            f"the names of {quote_some(odd)} in {spec.root!r} are not UTF-8: rename these folders"
        )
    shared = set.intersection(*map(set, parts.values()))
    lone = [f"{part}/{name}" for part, name in product(parts, classes) if name in parts[part].keys() - shared]
    if lone:
        raise DataError(f"{quote_some(lone)} without counterpart; a class needs images in train/ and test/")
    return classes


def _collect(tree: _Tree, parts: Parts, classes: tuple[str, ...]) -> Parts:
    found: Parts = {part: {} for part in parts}
    skipped: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    empty: list[str] = []
    nested: set[str] = set()
    for part, name in product(parts, classes):
        tops = parts[part][name]
        inside = [*chain.from_iterable(map(tree.below, tops))]
        others = Counter(chain.from_iterable(folder.endings for folder in inside))
        found[part][name] = [*chain.from_iterable(folder.photos for folder in inside)]
        skipped += others
        if not found[part][name]:
            empty += tops
            odd += others
        if any(folder.photos for folder in inside if folder.path not in tops):
            nested.add(name)
        below = chain.from_iterable(folder.folders for folder in inside)
        tree.links += [path for path in below if os.path.islink(tree.root / path)]
    if empty:
        advice = "add images or remove the folders"
        if odd:
            advice = f"what is there, {_count_endings(odd)}, Pillow does not open: convert it to JPEG or PNG"
        raise DataError(f"no image in {quote_some(empty)} of {str(tree.root)!r}; {advice}")
    if skipped:
        tree.notes.append(f"left out, since Pillow opens no such images: {_count_endings(skipped)}")
    if nested:
        tree.notes.append(f"the photos in folders inside {quote_some(sorted(nested))} count as that class")
    return found


def _split(spec: DataSpec, classes: dict[str, list[str]]) -> Parts:
    """Split each class by its paths' hashes: a new image moves at most one other to the other split."""
    if single := [name for name, paths in classes.items() if len(paths) < 2]:
        raise DataError(
            f"only one image of {quote_some(single)}; a class needs one for train and one for test"
        )
    splits: Parts = {split: {} for split in SPLITS}
    for name, paths in classes.items():
        chosen = set(photos.pick(paths, [name] * len(paths), spec.test_fraction, str(spec.seed)))
        for i, path in enumerate(paths):
            splits["test" if i in chosen else "train"].setdefault(name, []).append(path)
    return splits


def _list_file(spec: DataSpec, root: Path, file: Path) -> Listing:
    """List the images of a CSV file with the columns class, path (below the root) and split.

    Raises DataError naming the line that is wrong.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            paths = _read_lines(f"%s of {str(file)!r}", root, csv.DictReader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"split file {str(file)!r} cannot be read ({reason})") from error
    parts = {"train": paths["train"], "test": paths["test"] or paths["val"]}
    notes = [f"split by {file.name!r}"]
    if paths["test"] and paths["val"]:
        count = sum(map(len, paths["val"].values()))
        notes.append(f"left out, as there is a test split: {count} for validation")
    classes = _choose_classes(spec, parts)
    splits = {split: {name: part[name] for name in classes} for split, part in parts.items()}
    return _to_listing(root, splits, notes)


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


def _to_listing(root: Path, splits: Parts, notes: list[str], is_split: bool = True) -> Listing:
    files: Files = {split: [] for split in SPLITS}
    for split in SPLITS:
        for label, paths in enumerate(splits[split].values()):
            files[split] += [(path, label) for path in sorted(paths)]
    return Listing(tuple(splits["train"]), root, files, tuple(dict.fromkeys(notes)), is_split=is_split)


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _count_endings(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {'*' + ending!r}" for ending, count in sorted(endings.items()))


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


@functools.cache
def _endings() -> frozenset[str]:
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)
