"""Content digests: what makes two files, or two versions of a plugin's code, the same wherever they lie.

A job's inputs from outside the study file (photos, weights, plugins' networks, losses and metrics) count by
content.  Their paths, their times and the machine do not: the same study in another folder, from copies of
its files, is the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from fgkd.study import plugins
from fgkd.study.errors import StudyError

LENGTH = 16  # hexadecimal digits of a digest
CONFIG_BYTES = 10_000_000  # of the largest config.json that is read
OWN_ARGUMENTS = {"num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"} | {
    *("checkpoint_path", "cache_dir", "features_only", "scriptable", "exportable", "no_jit")
}  # of timm.create_model that no config.json may set


def absolute(path: str | Path, folder: str | Path = "") -> str:
    """An absolute path, `~` expanded; a link is not followed: its own name and folder count.

    Raises StudyError for the home of a user who is not there.
    """
    expanded = os.path.expanduser(path)
    if str(expanded).startswith("~"):
        raise StudyError(f"'{path}' begins with '~', but there is no such user: expected ./~ or another path")
    path = os.path.join(folder, expanded).rstrip(os.sep) or os.sep
    parent, name = os.path.split(path)
    return os.path.normpath(os.path.join(os.path.realpath(parent), name))


def of_text(text: str) -> str:
    """The digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def of_file(path: str | Path) -> str | None:
    """The digest of a file's bytes, None where there is none.

    A file is read again only when its size or times have changed.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):  # a device or pipe may have no end
        return None
    return _of_file(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def of_weights(file: str) -> dict[str, str | None]:
    """The digests of a weights file and of what config.json beside it says, '' for nothing.

    None where the file is not there.  Where its images come from, their size and interpolation are the
    study's, and count by its values.
    """
    weights = of_file(file)
    said = {} if weights is None else config(file)
    counted = {key: value for key, value in said.items() if key in ("mean", "std", "model_args")}
    digest = of_text(json.dumps(counted, sort_keys=True)) if counted else ""
    return {"weights": weights, "config": None if weights is None else digest}


def config(weights: str) -> dict[str, Any]:
    """What timm's config.json beside a weights file says of it; {} where there is none.

    architecture; mean and std, three numbers each; model_args for timm.create_model; input_size (3, S, S);
    license: as far as they are there.
    Raises StudyError for one that cannot be read, or is of a network that fgkd cannot feed.
    """
    file = os.path.join(os.path.dirname(weights), "config.json")
    read = _read_json(file) if os.path.isfile(file) else {}
    if not isinstance(read.get("architecture"), str):
        return {}  # another library's
    own = read.get("pretrained_cfg", read)
    arguments = read.get("model_args") or {}
    if not isinstance(own, dict) or not isinstance(arguments, dict):
        raise StudyError(f"'{file}' is none of timm's: expected mappings pretrained_cfg and model_args")
    found = {
        "architecture": read["architecture"],
        "license": own.get("license") or read.get("license"),
        "model_args": {key: value for key, value in arguments.items() if key not in OWN_ARGUMENTS},
    }
    for key, least in {"mean": -math.inf, "std": 0, "input_size": 0}.items():
        if own.get(key) is not None:
            found[key] = _three_numbers(own[key], least, f"'{file}' has {key}")
    if found.get("input_size", [3])[0] != 3 or arguments.get("in_chans", 3) != 3:
        raise StudyError(f"'{file}' is of a network whose images have other than 3 channels: expected RGB")
    return {key: value for key, value in found.items() if value}


def _read_json(file: str) -> dict[str, Any]:
    """A file's mapping; {} where it holds another value."""
    try:
        if os.path.getsize(file) > CONFIG_BYTES:
            raise ValueError(f"it is larger than {CONFIG_BYTES:,} bytes")
        read = json.loads(Path(file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"'{file}' beside weights cannot be read: {error}; mend or remove it") from None
    return read if isinstance(read, dict) else {}


def _three_numbers(values: Any, least: float, where: str) -> list[float]:
    are_numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not are_numbers or len(values) != 3 or not all(least < value < math.inf for value in values):
        raise StudyError(f"{where} {values!r}: expected a list of three numbers; mend or remove the file")
    return values


def of_code(files: tuple[str, ...], decorator: str, name: str | None = None) -> str | None:
    """The digest of plugins' code of what a decorator registers: see `plugins.code_of`.

    name: under which it is registered; None takes all.

    '' where no plugin registers it, None where a plugin is not there.
    """
    texts = [plugins.read(file) for file in files]
    if None in texts:
        return None
    base = name and name.partition(".")[0]  # of a network: without its tag
    code = [plugins.code_of(text, decorator, base) for text in texts if text is not None]
    return of_text("\n".join(code)) if any(code) else ""


@functools.lru_cache(maxsize=1024)
def _of_file(path: str, size: int, *times: int) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:LENGTH]
