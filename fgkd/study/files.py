"""Study files: found by path or name, read with their bases, checked against `config`."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError

from fgkd.study import contents
from fgkd.study.config import explain
from fgkd.study.errors import StudyError, expected
from fgkd.study.jobs import Study

PROJECT = Path(__file__).resolve().parents[2]
MAX_VALUES = 100_000  # in a file, its aliases written out
MAX_MESSAGE = 600  # characters
CORE = "tag:yaml.org,2002:"
TEXT = f"{CORE}str"
SCALARS = {  # what a plain scalar is, by the core schema of YAML 1.2; text where it is none of these
    "merge": "<<",
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
# where scalars are names: text as they are written, such as 010
WRITTEN = re.compile(r"name|datasets/[^/]+/classes/-|pretext/classes/-|losses/[^/]+/students/-")


def load(study: str) -> Study:
    """Read a study from a YAML file, or by the name of a file in `runs/`.

    Data and weights need not be there yet.
    Raises StudyError naming the key or value that is wrong, what was expected and what to do.
    """
    file = find(study)
    try:
        return check(read(file), Path(contents.absolute(file)))
    except RecursionError:
        raise StudyError(
            f"{file.name} is nested too deeply, or has too many bases one above the other: write it plainly"
        ) from None


def check(raw: dict[str, Any], file: Path) -> Study:
    """The study of a file's keys and values.  Raises StudyError as `load` does.

    file: its absolute path.
    """
    given = {"name": file.stem} | {key: value for key, value in raw.items() if value is not None}
    try:
        study = Study.model_validate(given, context={"folder": file.parent})
    except ValidationError as error:
        text = explain(error, file.name)
        half = MAX_MESSAGE // 2
        short = text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}"
        raise StudyError(" ".join(short.split())) from None
    study = study.model_copy(update={"file": str(file)})
    for spec in filter(None, (*study.datasets.values(), study.pretext)):  # results would become photos
        root = Path(spec.root or os.devnull).resolve()
        if spec.kind in ("folder", "moe") and study.folder.resolve().is_relative_to(root):
            raise StudyError(
                f"datasets.{spec.key}.root is '{spec.root}', in which the results of the study would lie "
                f"('{study.folder}'): give the study another name, or set FGKD_RUNS to a folder elsewhere"
            )
    return study


def find(study: str) -> Path:
    """The path of a study file, given itself or by its name in `runs/`.

    Raises StudyError where there is none.
    """
    path = Path(study)
    of_run = os.environ.get("FGKD_STUDY", "")
    if of_run and study == os.path.basename(of_run):  # a notebook of a run works elsewhere
        return Path(of_run)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise StudyError(
                f"study file '{study}' does not exist: "
                "give the path of a YAML file, or the name of one in runs/"
            )
        return path
    folders = [Path.cwd() / "runs", PROJECT / "runs"]
    for folder in folders:
        path = folder / f"{study}.yaml"
        if path.is_file():
            return path
    names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise StudyError(f"study '{study}' is unknown{expected(study, names)}, or the path of a YAML file")


def read(file: Path, *above: Path) -> dict[str, Any]:
    """The file's keys and values, over those of the study next to it that its `base` names.

    above: files that have this one as their base, directly or not.
    Raises StudyError where the file, or a base, cannot be read.
    """
    raw = _parse(file)
    if "base" not in raw:
        return raw
    name = raw.pop("base")
    if not isinstance(name, str):
        raise StudyError(f"base is {name!r}: expected text")
    base = file.parent / name
    if base.parent != file.parent or not base.is_file():
        raise StudyError(
            f"{file.name}: base '{base}' does not exist: expected the name of a study file in {file.parent}"
        )
    if base in (file, *above):
        raise StudyError(f"{file.name}: base '{base.name}' leads back to itself: leave one of the two out")
    inherited = read(base, file, *above)
    inherited.pop("name", None)
    return _merge(inherited, raw)


def _parse(file: Path) -> dict[str, Any]:
    try:
        loader = _Loader(file.read_bytes())
        node = loader.get_single_node()
        if node is not None and _read(node, {}) > MAX_VALUES:
            raise StudyError(
                f"{file.name} holds more than {MAX_VALUES:,} values, its aliases (*name) written out, or an "
                "alias that holds itself: say each thing once"
            )
        raw = None if node is None else loader.construct_document(node)
    except StudyError:
        raise
    except (yaml.YAMLError, ValueError, LookupError) as error:  # the last two of values of explicit tags
        advice = ": indent with spaces, not tabs" if r"'\t'" in str(error) else ""
        problem = " ".join(str(error).replace('in "<byte string>",', "in").split())
        raise StudyError(f"{file} is not YAML: {problem}{advice}") from None
    if isinstance(raw, dict):
        return raw
    content = "holds a list" if isinstance(raw, list) else "holds one value"
    if raw is None:
        content = "is empty"
    raise StudyError(f"{file} {content}: expected keys and values such as 'datasets:' and 'teachers:'")


def _read(node: yaml.Node, counts: dict[int, float], *place: str) -> float:
    """Make keys and names text, as they are written; returns the number of values, those of aliases too.

    counts: of the nodes that were read; infinite while they are, and so where one holds itself.
    place: the keys that lead to the node, '-' for an item of a list.
    """
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        if re.search("[\0\ud800-\udfff]", node.value):
            raise StudyError(f"line {line} holds {node.value!r}: expected characters that a text may hold")
        if WRITTEN.fullmatch("/".join(place)) and (place[-1] == "-" or node.tag != f"{CORE}null"):
            node.tag = TEXT
        return 1
    if id(node) in counts:
        return counts[id(node)]
    counts[id(node)] = math.inf
    if isinstance(node, yaml.MappingNode):
        number = sum(_read(value, counts, *place, str(key.value)) for key, value in node.value)
        number += sum(_read(key, counts) for key, _ in node.value)
        _make_keys_text([key for key, _ in node.value])
    else:
        number = sum(_read(item, counts, *place, "-") for item in node.value)
    counts[id(node)] = 1 + number
    return counts[id(node)]


def _make_keys_text(keys: list[yaml.Node]) -> None:
    known = set()
    for key in keys:
        if str(key.value) in known:
            line = key.start_mark.line + 1
            raise StudyError(f"key '{key.value}' is there twice, again in line {line}: remove or rename one")
        known.add(str(key.value))
        if isinstance(key, yaml.ScalarNode) and key.tag != f"{CORE}merge":
            key.tag = TEXT


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`, mappings key by key; an empty value takes a key of `base` away."""
    merged = dict(base)
    for key, value in own.items():
        if value is None and key in base:
            del merged[key]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
        else:
            merged[key] = value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars, and of explicit tags those that make JSON."""

    yaml_implicit_resolvers: ClassVar[dict] = {}
    yaml_constructors: ClassVar = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, TEXT, *(CORE + name for name in ("null", "bool", "float", "seq", "map")))
    }

    def construct_integer(self, node):
        return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


_Loader.add_constructor(f"{CORE}int", _Loader.construct_integer)
for _name, _pattern in SCALARS.items():
    _Loader.add_implicit_resolver(CORE + _name, re.compile(rf"(?:{_pattern})\Z"), [None])
