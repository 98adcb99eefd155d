"""The JSON schema of study files, by which an editor completes and checks them as one types.

python -m fgkd.study.schema > runs/study.schema.json
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from fgkd.study.config import StudyConfig


class _Generator(GenerateJsonSchema):
    """Pydantic's schema without a title for each field, which repeats its name."""

    def field_title_should_be_set(self, schema) -> bool:
        return False


def build() -> dict[str, Any]:
    """The schema of a study file, alone or over a base.

    Over a base a file need not say everything, and an empty value takes a section or an entry of the base
    away; what a study then lacks is for `load` to say.
    """
    schema = StudyConfig.model_json_schema(schema_generator=_Generator)
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
    base = {
        "type": "string",
        "description": "a study file in the same folder, whose values hold where this one has none",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {"base": base, **sections},
        "anyOf": [{"required": ["base"]}, {"required": required}],
    }


def text() -> str:
    """The content of `runs/study.schema.json`."""
    return json.dumps(build(), indent=2) + "\n"


def _or_empty(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value that may be empty; its description stays where editors show it."""
    notes = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    return notes | {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}


if __name__ == "__main__":
    print(text(), end="")
