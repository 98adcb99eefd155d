"""Content digests: what makes two files, or two versions of a plugin's code, the same wherever they lie.

A job's inputs from outside the study file (photos, weights, plugins' networks, losses and metrics) count by
content.  Their paths, their times and the machine do not: the same study in another folder, from copies of
its files, is the same.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from pathlib import Path

from fgkd.study import plugins

LENGTH = 16  # hexadecimal digits of a digest


def absolute(path: str | Path, folder: str | Path = "") -> str:
    """An absolute path, `~` expanded; a link is not followed, since its own name, ending and folder count."""
    path = os.path.join(folder, os.path.expanduser(path)).rstrip(os.sep) or os.sep
    parent, name = os.path.split(path)
    return os.path.normpath(os.path.join(os.path.realpath(parent), name))


def of_text(text: str) -> str:
    """The digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def of_file(path: str | Path) -> str | None:
    """The digest of a file's bytes, None where there is none.

    A file is read again only when its size or time has changed.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):  # a device or pipe may have no end
        return None
    return _of_file(str(path), status.st_size, status.st_mtime_ns)


def of_network(model: str, files: tuple[str, ...]) -> str | None:
    """The digest of the plugins' code of a timm model: see `plugins.code_of`.

    '' where no plugin registers it, None where a plugin is not there.
    """
    return _of_code(files, plugins.NETWORK, model.partition(".")[0])


def of_loss(name: str, files: tuple[str, ...]) -> str | None:
    """The digest of the plugins' code of a loss, as of a network."""
    return _of_code(files, plugins.LOSS, name)


def of_metrics(files: tuple[str, ...]) -> str | None:
    """The digest of the plugins' code of all metrics that they register, as of a network."""
    return _of_code(files, plugins.METRIC)


def _of_code(files: tuple[str, ...], decorator: str, name: str | None = None) -> str | None:
    texts = [plugins.read(file) for file in files]
    if None in texts:
        return None
    code = [plugins.code_of(text, decorator, name) for text in texts if text is not None]
    return of_text("\n".join(code)) if any(code) else ""


@functools.lru_cache(maxsize=1024)
def _of_file(path: str, size: int, time: int) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:LENGTH]
