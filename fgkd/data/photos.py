"""Photos before they are trained on: what was read of each, which are copies, and which of them are for test.

Near copies are scaled, compressed again or brightened, but not cropped: their perceptual hashes of 256 bits
(imagehash's phash) differ in a tenth of the bits at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image
from tqdm import tqdm

from fgkd.analysis.records import read_json, write_json
from fgkd.study import contents

HASH_SIDE = 16  # a perceptual hash has the square of it as bits
NEAR_BITS = HASH_SIDE**2 // 10  # in which the hashes of copies differ at most
ROWS = 512  # hashes that are compared with all others at once


def remember(file: Path, root: Path, paths: Iterable[str], read: Callable[[Path], Any]) -> dict[str, Any]:
    """What `read` returns of each photo, read again only where its size or a time has changed.

    file: keeps what is returned, as JSON.
    """
    try:
        known = read_json(file) or {}
    except OSError:
        known = {}
    entries: dict[str, list] = {}
    for path in sorted(paths):
        try:
            status = os.stat(root / path)
            # The last time is the system's own: no copying restores it.
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        except OSError:  # a broken link: decoding reports it together with all other bad files
            stamp = [-1, -1, -1]
        entry = known.get(path)
        entries[path] = stamp
        if isinstance(entry, list) and len(entry) == 4 and entry[:3] == stamp:
            entries[path] = entry
    new = [path for path, entry in entries.items() if len(entry) == 3]
    bar = tqdm(total=len(new), desc="reading photos", unit="image", delay=2, disable=None)
    with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool, bar:
        for path, value in zip(new, pool.map(lambda path: read(root / path), new), strict=True):
            entries[path].append(value)
            bar.update()
    if entries != known:
        with contextlib.suppress(OSError):  # another's folder, a full disk: they are read again
            write_json(file, entries)
    return {path: entry[-1] for path, entry in entries.items()}


def digest(path: Path) -> str:
    """The digest of a photo's bytes."""
    try:
        return contents.of_file(path) or "unreadable"
    except OSError:  # decoding reports it together with all other bad files
        return "unreadable"


def pick(
    names: Sequence[str], labels: Sequence, share: float, seed: str, groups: Sequence[int] | None = None
) -> list[int]:
    """Positions of a share of each class, copies together: one photo or more, never all.

    The hash of its name decides on a photo, so that a new one changes the place of few others.

    groups: a number for each photo, which copies share; None where there are no copies.
    """
    numbers = range(len(names)) if groups is None else groups
    least: dict[int, bytes] = {}
    for name, group in zip(names, numbers, strict=True):
        order = hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()
        least[group] = min(order, least.get(group, order))
    classes: dict[Any, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i in sorted(range(len(names)), key=lambda i: (least[numbers[i]], names[i])):
        classes[labels[i]][numbers[i]].append(i)
    picked: list[int] = []
    taken: set[int] = set()
    for label in sorted(classes):
        count = sum(map(len, classes[label].values()))
        wanted = min(max(round(count * share), 1), count - 1)
        for group, alike in classes[label].items():
            if wanted > 0 and (group in taken or len(alike) < count):
                picked += alike
                taken.add(group)
                wanted -= len(alike)
    return picked


def perceptual_hash(pixels: np.ndarray) -> str:
    """The perceptual hash of an image (R, R, 3) uint8, hexadecimal."""
    return str(imagehash.phash(Image.fromarray(pixels), HASH_SIDE))


def near_pairs(hashes: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The positions of each hash and of each other hash that belong to copies."""
    words = HASH_SIDE**2 // 64
    first, second = (
        np.frombuffer(bytes.fromhex("".join(part)), np.uint64).reshape(-1, words) for part in (hashes, others)
    )
    for start in range(0, len(first), ROWS):
        rows = first[start : start + ROWS]
        bits = np.zeros((len(rows), len(second)), np.uint16)
        for word in range(words):
            bits += np.bitwise_count(rows[:, None, word] ^ second[None, :, word])
        for row, column in np.argwhere(bits <= NEAR_BITS):
            yield start + int(row), int(column)
