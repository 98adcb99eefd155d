"""What editors and readers are told of study files is the code's, and editors refuse what they can."""

import json

import jsonschema
import pytest

from fgkd.study import PROJECT, schema
from fgkd.study.files import read

STUDIES = sorted((PROJECT / "runs").glob("*.yaml"))
LINE = "# yaml-language-server: $schema=study.schema.json"


@pytest.fixture(scope="module")
def validator():
    content = json.loads((PROJECT / "runs" / "study.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def test_the_committed_schema_is_that_of_the_code():
    assert schema.SCHEMA.read_text() == schema.text(), "python -m fgkd.study.schema"


def test_the_committed_tables_of_keys_are_those_of_the_code_and_have_each_key():
    committed = schema.KEYS.read_text()
    assert committed == schema.page(committed), "python -m fgkd.study.schema"
    content = schema.build()
    sections = {"": content, **content["$defs"]}
    del sections["TeacherRecipe"]  # a recipe's keys, and those of each recipe below its name
    for section in sections.values():
        assert [key for key in section["properties"] if f"| `{key}` |" not in committed] == []


def test_a_table_of_keys_is_written_where_another_stood():
    old = "# Keys\n\n### Old\n\n| `gone` |\n\n## Below\n"
    new = schema.page(old)
    assert new.startswith("# Keys\n\n### Of the study\n") and new.endswith(" |\n\n## Below\n")
    row = "| `threads` | whole number, 1 to 1,024 | `1` | CPU threads of one run |"
    assert "gone" not in new and row in new


def test_every_key_has_a_description():
    content = schema.build()
    for section in (content, *content["$defs"].values()):
        assert [key for key, field in section["properties"].items() if not field.get("description")] == []


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_names_the_schema_and_is_valid_by_it(file, validator):
    assert file.read_text().splitlines()[0] == LINE
    validator.validate(read(file))


def test_a_file_over_a_base_may_take_entries_away_and_leave_keys_to_it(validator):
    validator.validate(
        {
            "base": "tiny.yaml",
            "pretext": None,
            "teachers": {"resnet": {"weights": "none"}, "byobnet": None},
            "losses": {"pkt": None},
        }
    )


@pytest.mark.parametrize(
    "change",
    [
        {"treachers": {}},
        {"threads": 0},
        {"device": "gpu"},
        {"online": 1},
        {"seed": -1},
        {"strategies": ["CAL2"]},
        {"datasets.birds.key": "x"},
        {"datasets.birds.kind": "bird"},
        {"datasets.birds.species": "4"},
        {"teachers.a/b": {"model": "test_resnet"}},
        {"teachers.resnet.recipe": {"FT": {"lrr": 1}}},
        {"students.small.recipe": {"FT": {"lr": 1}}},
        {"recipes.FT.lr": [0.1, "fast"]},
        {"recipes.FT.lr": 0},
        {"recipes.students": {}},
        {"losses": {"rkd": {"on": "maps"}}},
        {"losses": {"rkd": {"applies_to": "logits"}}},
        {"resources": {"report": {}}},
        {"students": ...},
    ],
    ids=str,
)
def test_a_mistake_is_one_by_the_schema_too(validator, write_study, change):
    validator.validate(read(write_study()))
    assert not validator.is_valid(read(write_study(change)))
