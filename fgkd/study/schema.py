"""What editors and readers are told of study files: `study.schema.json` and the tables in `KEYS.md`.

python -m fgkd.study.schema    # writes both from `config`
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from fgkd.study import config
from fgkd.study.files import PROJECT

SCHEMA = PROJECT / "runs" / "study.schema.json"
KEYS = PROJECT / "runs" / "KEYS.md"
BASE = {
    "type": "string",
    "description": "a study file in the same folder, whose values hold where this one has none",
}
MANY = 1_000_000  # a bound that only a slip reaches
NAMES = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "array": "list",
    "object": "mapping",
}
SECTIONS: dict[
    str, type[config.Section]
] = {  # where a section stands in a study file, in the order of the tables
    "Of the study": config.StudyConfig,
    "`views`": config.Sizes,
    "`datasets`, each below its name, and `pretext`": config.DataSpec,
    "`teachers` and `students`, each below its name": config.Teacher,
    "`recipes`: `pretext`, `FZ`, `FT`, `CAL`, `student`": config.Recipe,
    "`distillation`": config.Distillation,
    "`losses`, each below its name": config.Loss,
    "`resources`: `teacher`, `bank`, `distill`": config.Resources,
}


class _Generator(GenerateJsonSchema):
    """Pydantic's schema without a title for each field, which repeats its name."""

    def field_title_should_be_set(self, schema) -> bool:
        return False


def build() -> dict[str, Any]:
    """The schema of a study file, alone or over a base.

    Over a base a file need not say everything, and an empty value takes a section or an entry of the base
    away; what a study then lacks is for `load` to say.
    """
    schema = config.StudyConfig.model_json_schema(schema_generator=_Generator)
    sections = schema["properties"]
    required = schema.pop("required")
    for definition in schema["$defs"].values():
        definition.pop("required", None)
    for name, section in sections.items():
        for pattern, entries in section.pop("patternProperties", {}).items():
            section |= {"propertyNames": {"pattern": pattern}, "additionalProperties": entries}
        if entries := section.get("additionalProperties"):
            section["additionalProperties"] = _or_empty(entries)
        sections[name] = _or_empty(section)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {"base": BASE, **sections},
        "anyOf": [{"required": ["base"]}, {"required": required}],
    }


def text() -> str:
    """The content of `runs/study.schema.json`."""
    return json.dumps(build(), indent=2) + "\n"


def tables() -> str:
    """The tables of keys in `runs/KEYS.md`: a section each, a row a key."""
    lines = []
    for place, section in SECTIONS.items():
        schema = section.model_json_schema(schema_generator=_Generator)
        keys = schema["properties"]
        if section is config.StudyConfig:
            keys = {"base": BASE, **keys}
        lines += [f"### {place}", "", "| key | value | default | meaning |", "|---|---|---|---|"]
        for key, field in keys.items():
            default = "must be there" if key in schema.get("required", ()) else _default(field.get("default"))
            lines.append(f"| `{key}` | {_value(field)} | {default} | {field['description']} |")
        lines.append("")
    return "\n".join(lines)


def page(old: str) -> str:
    """The text of `runs/KEYS.md` with these tables in place of those that it has."""
    before, rest = old.split("### ", 1)
    after = rest[rest.index("\n## ") :]
    return before + tables() + after


def _or_empty(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value that may be empty; its description stays where editors show it."""
    notes = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    return notes | {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}


def _value(field: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if options := field.get("anyOf"):
        words = [_value(option) for option in options if option.get("type") != "null"]
        if words == [words[0], f"list of {words[0]}"]:
            return f"{words[0]}; or a list"
        return words[0]  # of a text, which may also be written as a number
    if choices := field.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = NAMES[field.get("type", "object")]
    if kind == "list":
        return f"list of {_value(field['items'])}"
    if "exclusiveMinimum" in field:
        below = f", below {field['exclusiveMaximum']}" if "exclusiveMaximum" in field else ""
        return f"{kind}, more than {field['exclusiveMinimum']}{below}"
    if "minimum" not in field:
        return kind
    low, high = field["minimum"], field.get("maximum", MANY)
    return f"{kind}, {low:g} or more" if high >= MANY else f"{kind}, {low:g} to {high:,}"


def _default(value: Any) -> str:
    return "" if value in (None, "", [], {}) else f"`{json.dumps(value)}`".replace('"', "")


if __name__ == "__main__":
    SCHEMA.write_text(text())
    KEYS.write_text(page(KEYS.read_text()))
