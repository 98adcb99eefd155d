"""What a folder of photos holds, before anything is trained on it.

Photos are copies of one another where their files are the same, or nearly so (see `data.photos`).  A test
photo with a copy in train flatters every accuracy: the copy is left out of the training photos.  Where the
folder has no split of its own, copies stay on one side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fgkd.data import folders
from fgkd.data import photos as files
from fgkd.data.images import SHOWN, SPLITS, DataError, decode, quote_some
from fgkd.study import DataSpec, StudyError

HASHED = 128  # pixels of the images whose perceptual hashes are compared
HELD_OUT = 0.2  # of the training photos, to compare teachers on
TEST = 0.2  # of the photos, where the folder has no split of its own
MAX_SIDE = 256  # pixels of the cached images


@dataclass(frozen=True)
class Audit:
    """The photos of a folder, and where each of them goes.

    photos: one row per photo: path below the root, name below its split, label (its class), split, side (the
    shorter one, pixels), digest (of the file), error (why it cannot be read, or ''), group (its number, which
    copies share), use: 'train', 'held out', 'test', or '' for one that is left out.
    is_split: whether the folder has train/ and test/ of its own.
    notes: what the listing left out.
    """

    root: Path
    photos: pd.DataFrame
    is_split: bool
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.photos.label.nunique()

    @property
    def sizes(self) -> tuple[int, int]:
        """Sides of the cached images and of their crops, pixels.

        Up to 256, by the median photo's shorter side; the crops have 7/8 of it.
        """
        median = float(self.photos.side[self.photos.error == ""].median())
        resize = max(32, min(MAX_SIDE, int(median)) // 8 * 8)
        return resize, resize * 7 // 8

    def count(self, *uses: str) -> int:
        """Number of photos of these uses."""
        return int(self.photos.use.isin(uses).sum())

    def table(self) -> pd.DataFrame:
        """One row per part: number of photos and classes, photos of its smallest and largest class."""
        sizes = self.photos.groupby(["use", "label"]).size().groupby("use").agg(["sum", "size", "min", "max"])
        table = sizes.loc[["train", "held out", "test"]].rename({"held out": "train, held out"})
        table.columns = ["photos", "classes", "smallest class", "largest class"]
        return table.rename_axis("part").reset_index()

    def findings(self) -> list[str]:
        """What is wrong or remarkable, a sentence each, with names."""
        photos = self.photos
        bad = photos[photos.error != ""]
        good = photos[photos.error == ""]
        exact = good[good.duplicated("digest", keep=False)]
        near = good[good.duplicated("group", keep=False)].drop_duplicates("digest")
        near = near[near.duplicated("group", keep=False)]
        across = good[good.use == ""]
        double = exact[exact.groupby("digest").label.transform("nunique") > 1]
        unreadable = "; ".join(f"{row.path!r} ({row.error})" for row in bad[:SHOWN].itertuples())
        sentences = (
            (bad, f"{len(bad)} files cannot be read and are left out: {unreadable}"),
            (exact, f"{_pairs(exact, 'digest')} are the same file"),
            (near, f"{_pairs(near, 'group')} are near copies of one another"),
            (
                across,
                f"{len(across)} of the folder's training photos are copies of test photos, which would "
                f"flatter accuracy, and are left out of training: {quote_some(sorted(across.path))}",
            ),
            (double, f"{_pairs(double, 'digest')} are the same file with two labels: correct them"),
        )
        return [*self.notes, *(sentence for found, sentence in sentences if len(found))]


def look(root: Path, memory: Path, *, seed: int = 0) -> Audit:
    """List, read and compare all photos of a folder, and give each its use.

    root: holds train/<class>/* and test/<class>/*, or <class>/*.
    memory: a file that keeps what was read of each photo, so that none is read twice.
    seed: of the splits that the folder does not have.
    Raises DataError for folders or classes that cannot be used, StudyError for classes of too few photos.
    """
    spec = DataSpec(key="photos", kind="folder", root=str(root), test_fraction=TEST)
    listing = folders.list_images(spec)
    rows = []
    for split in SPLITS:
        for path, index in listing.files[split]:
            label = listing.classes[index]
            _, is_there, below = f"/{path}".partition(f"/{label}/")
            rows.append((path, label, split, f"{label}/{below if is_there else path}"))
    photos = pd.DataFrame(sorted(rows), columns=["path", "label", "split", "name"])
    read = files.remember(memory, listing.root, photos.path, _read)
    columns = ["side", "digest", "hash", "error"]
    photos = photos.join(pd.DataFrame([read[path] for path in photos.path], columns=columns))
    photos["group"] = _groups(photos)
    photos["use"] = _uses(photos, listing.is_split, seed)
    _check_counts(photos, listing.is_split)
    return Audit(listing.root, photos.drop(columns="hash"), listing.is_split, listing.notes)


def link(audit: Audit, folder: Path) -> None:
    """Lay out the photos as links, in the folders photos/ and selection_photos/ of `folder`.

    photos/ has the true splits; selection_photos/ the training photos alone: train/, and test/ with those
    that are held out of them.
    Links of an earlier audit that no longer hold are removed.
    """
    layouts = {
        "photos": {"train": "train", "held out": "train", "test": "test"},
        "selection_photos": {"train": "train", "held out": "test"},
    }
    targets = {}
    for (name, splits), photo in product(layouts.items(), audit.photos.itertuples()):
        if photo.use in splits:
            targets[folder / name / splits[photo.use] / photo.name] = audit.root.resolve() / photo.path
    for path in sorted(chain(*((folder / name).rglob("*") for name in layouts)), reverse=True):
        if path.is_symlink() and (path not in targets or path.readlink() != targets[path]):
            path.unlink()
        elif path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    for path, target in targets.items():
        if not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)


def _read(file: Path) -> list:
    """Shorter side, digest, hash (hexadecimal) and error of a photo."""
    try:
        hashed = files.perceptual_hash(decode(file, HASHED))
        with Image.open(file) as image:
            side = min(image.size)
    except (DataError, OSError) as error:
        return [0, "", "", str(error).rpartition(" cannot be decoded: ")[2]]
    return [side, files.digest(file), hashed, ""]


def _groups(photos: pd.DataFrame) -> np.ndarray:
    """A number for each photo that copies of one another share; unreadable ones have their own."""
    readable = np.flatnonzero(photos.error == "")
    hashes = list(photos.hash.iloc[readable])
    pairs = np.array(list(files.near_pairs(hashes, hashes)), int).reshape(-1, 2)
    first, second = readable[pairs.T]
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(photos), len(photos)))
    return connected_components(graph, directed=False)[1]


def _uses(photos: pd.DataFrame, is_split: bool, seed: int) -> pd.Series:
    """What each photo is for: see `Audit`."""
    uses = photos.split.where(photos.error == "", "")
    if not is_split:
        uses[uses != ""] = "train"
        uses[_pick(photos[uses == "train"], TEST, f"{seed}/test")] = "test"
    uses[(uses == "train") & photos.group.isin(photos.group[uses == "test"])] = ""
    uses[_pick(photos[uses == "train"], HELD_OUT, f"{seed}/held out")] = "held out"
    return uses


def _pick(photos: pd.DataFrame, share: float, seed: str) -> pd.Index:
    """Rows of a share of each class: see `data.photos.pick`."""
    rows = files.pick(list(photos.name), list(photos.label), share, seed, list(photos.group))
    return photos.index[rows]


def _check_counts(photos: pd.DataFrame, is_split: bool) -> None:
    """Raise StudyError unless every class has photos to train on, to hold out and to test on."""
    counts = photos.groupby(["label", "use"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["train", "held out", "test"], fill_value=0)
    few = sorted(counts.index[(counts == 0).any(axis=1)])
    if few:
        needed = "2 different training photos and 1 test photo" if is_split else "3 different photos"
        raise StudyError(
            f"{quote_some(few)}: too few photos that can be read. Each class needs {needed} or more, to "
            "train on, to compare teachers on, and to test on: add photos, or remove the folder"
        )


def _pairs(photos: pd.DataFrame, key: str) -> str:
    """'7 photos (a = b; c = d)': the first groups of equal `key`."""
    groups = [" = ".join(sorted(members.path)) for _, members in photos.groupby(key)]
    more = f"; and {len(groups) - 3} groups more" if len(groups) > 3 else ""
    return f"{len(photos)} photos ({'; '.join(sorted(groups)[:3])}{more})"
