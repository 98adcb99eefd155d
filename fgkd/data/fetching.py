"""Fetching and preparing the paper's datasets: `fgkd data KEY` is `prepare`.

Downloads are ours: pooch, the usual library for them, starts a broken one from its first byte, and these
archives take up to ten gigabytes.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from fgkd.analysis.records import locked
from fgkd.data import datasets, official
from fgkd.data.images import SHOWN, DataError
from fgkd.data.official import File, check_row
from fgkd.study import DataSpec, OfficialName


def prepare(kind: OfficialName, root: Path, *, resize: int, progress: bool = True) -> pd.DataFrame:
    """Fetch a set where its owner lets a program do so, check it, and cache its images.

    Returns the rows of `official.checks` and of the images themselves; the cache is built unless images
    cannot be read.

    Raises DataError where the set must be fetched by hand, saying what, from where and where to, and where
    it cannot be read.
    """
    with locked(root):
        _complete(kind, root, progress)
    table = official.checks(kind, official.listing(kind, root))
    spec = DataSpec(key=kind, kind=kind, root=str(root), resize=resize, check_counts=False)
    try:
        dataset = datasets.load(spec, official.shared_cache(root, resize), progress=progress)
    except datasets.UnreadableImages as error:
        rows = [check_row("unreadable images", 0, len(error.failures))]
        if error.absent:
            rows.append(check_row("listed images that are not there", 0, error.absent, error.where))
        empty = {"check": "", "expected": "", "found": "", "verdict": ""}
        rows += [empty | {"detail": failure} for failure in error.failures[:SHOWN]]
    else:
        copies = int(datasets.check(dataset).in_both_splits[1])
        detail = " ".join(note for note in dataset.notes if "also in train" in note)
        both = check_row("pictures in both splits", 0, copies, detail)
        if copies:  # official splits may well share some
            both["verdict"] = "note"
        rows = [check_row("unreadable images", 0, 0), both]
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def fetch(url: str, file: Path, checksum: str = "", *, progress: bool = True) -> None:
    """Download `url` to `file`, continuing what an earlier call left in '<file>.part'.

    checksum: 'md5:...' or 'sha256:...', or '' to take the file as it comes. An existing file is checked, not
    fetched.

    Raises DataError where the download fails or ends early, which keeps the part, and for a wrong checksum,
    which removes it.
    """
    if file.exists():
        if wrong := _mismatch(file, checksum):
            raise DataError(
                f"{str(file)!r} {wrong}: it is damaged or another version; remove it and run again"
            )
        return
    part = file.with_name(f"{file.name}.part")
    advice = f"fetch the file by other means and put it at {str(file)!r}"
    try:
        _download(url, part, progress)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url} cannot be fetched: {error}. The same command continues where this one ended; or {advice}"
        ) from error
    if wrong := _mismatch(part, checksum):
        part.unlink()
        raise DataError(f"what came from {url} {wrong}, and was removed: run again, or {advice}")
    os.replace(part, file)


def _download(url: str, part: Path, progress: bool) -> None:
    """Append to `part` what follows it; a server that knows no ranges sends the whole file."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fgkd"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing follows the part: it was complete when the last call ended
            return
        raise
    with response:
        if response.status != 206:
            start = 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        options: Any = {"desc": f"fetching {part.stem}", "disable": None if progress else True}
        watched = tqdm.wrapattr(response, "read", total, initial=start, **options)
        with watched as body, open(part, "ab" if start else "wb") as out:
            shutil.copyfileobj(body, out, 1 << 20)
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


def _mismatch(file: Path, checksum: str) -> str:
    """What is wrong with a file's checksum; '' where nothing is."""
    if not checksum:
        return ""
    kind, _, expected = checksum.partition(":")
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, kind).hexdigest()
    return f"has the {kind} {digest}, expected {expected}" if digest != expected else ""


def _complete(kind: str, root: Path, progress: bool) -> None:
    """Put in place what is missing of a set: fetched, or unpacked from archives in its root."""
    layout, base, missing = official.locate(kind, root)
    if not missing or layout is not official.SETS[kind].layouts[0]:
        return
    files = [file for file in official.SETS[kind].files if not (base / file.gives).exists()]
    absent = [file for file in files if not (root / file.name).exists()]
    nothing_to_fetch = len(missing) == len(layout.needs) and not files
    if nothing_to_fetch or any(not file.url for file in absent):
        raise DataError(_instructions(kind, root, absent))
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
    """Unpack next to the set's folder and move into it what is complete, `last` last.

    A set half unpacked is thus never taken for a complete one.
    """
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
        advice = "remove it and run again"
        if getattr(error, "errno", None):  # the system's: the archive is whole
            advice = "free space there, or mend what hinders it, and run again: the archive is kept"
        raise DataError(f"{str(archive)!r} cannot be unpacked: {error}; {advice}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _instructions(kind: str, root: Path, absent: list[File]) -> str:
    facts = official.SETS[kind]
    lines = [
        f"{kind}: {facts.name} is not complete in {str(root)!r}, and has to be fetched by hand "
        f"({facts.licence}).",
        f"from   {facts.home}",
    ]
    if absent:
        files = [f"{file.name} ({file.checksum.replace(':', ' ')})" for file in absent]
        lines.append("fetch  " + "\n         ".join(files))
        lines.append(f"to     {root}")
        lines.append(f"then   'fgkd data {kind}' checks and unpacks what is there")
    lines.append(f"{'or' if absent else 'to':7}{root}, unpacked: {official.describe_layouts(kind)}")
    return "\n  ".join(lines)
