"""Study files: found by path or name, read with their bases, checked against `config`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import TypeAdapter, ValidationError

from fgkd.study.config import StudyConfig, complete_losses, explain
from fgkd.study.errors import StudyError, expected
from fgkd.study.jobs import Study

PROJECT = Path(__file__).resolve().parents[2]
SCHEMA = TypeAdapter(StudyConfig)


def load(study: str) -> Study:
    """Read a study from a YAML file, or by the name of a file in `runs/`.

    Data and weights need not be there yet.
    Raises StudyError naming the key or value that is wrong, what was expected and what to do.
    """
    file = find(study)
    return check(read(file), file.resolve())


def check(raw: dict[str, Any], file: Path) -> Study:
    """The study of a file's keys and values.  Raises StudyError as `load` does.

    file: its absolute path.
    """
    given = {"name": file.stem} | {key: value for key, value in raw.items() if value is not None}
    context = {"folder": file.parent}
    try:
        config = SCHEMA.validate_python(given, context=context, by_name=False)
    except ValidationError as error:
        raise StudyError(explain(error, file.name)) from None
    losses = complete_losses(config.losses, config.plugins)
    return Study(**vars(config) | {"losses": losses}, file=str(file))


def find(study: str) -> Path:
    """The path of a study file, given itself or by its name in `runs/`.

    Raises StudyError where there is none.
    """
    path = Path(study)
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
        raw = yaml.load(file.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        advice = ": indent with spaces, not tabs" if r"'\t'" in str(error) else ""
        raise StudyError(f"{file} is not YAML: {' '.join(str(error).split())}{advice}") from None
    if isinstance(raw, dict):
        return raw
    content = "holds a list" if isinstance(raw, list) else "holds one value"
    if raw is None:
        content = "is empty"
    raise StudyError(f"{file} {content}: expected keys and values such as 'datasets:' and 'teachers:'")


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
    """YAML whose booleans and floats are those of version 1.2, whose keys are text, and none given twice."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, regex) for tag, regex in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = [key for key, _ in node.value if keys.count(key.value) > 1]
        if twice:
            raise StudyError(
                f"key '{twice[-1].value}' is there twice, "
                f"again in line {twice[-1].start_mark.line + 1}: remove or rename one"
            )
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node):
        super().flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)
