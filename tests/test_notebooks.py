"""Notebooks as batch jobs: their parameters and what these refuse.

That each runs, and again in the same kernel, is tested by nbval, which collects `notebooks/`; how each is
written, by `test_notebook_style`.
"""

import json
import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner
from papermill.cli import papermill
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from fgkd.choose import NOTEBOOK
from fgkd.study import PROJECT, STAGES, StudyError

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda f: f.stem)
def notebook_file(request):
    return request.param


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def what_is_said(name, out, **parameters):
    """The sentences that a notebook shows when it is executed with these parameters."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fgkd.engine.execute",
            str(PROJECT / f"notebooks/{name}.ipynb"),
            str(out),
            json.dumps({name: str(value) for name, value in parameters.items()}),
        ],
        env=os.environ | {"FGKD_WARM": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outputs = [output for cell in code(nbformat.read(out, 4)) for output in cell.outputs if "data" in output]
    return [output.data.get("text/markdown", "") for output in outputs]


def test_there_is_a_notebook_for_every_stage():
    assert {f.stem for f in NOTEBOOKS} == {*(row.notebook for row in STAGES.values()), NOTEBOOK}


def test_papermill_knows_the_type_the_default_and_the_meaning_of_each_parameter(notebook_file):
    shown = CliRunner().invoke(papermill, ["--help-notebook", str(notebook_file)])
    assert shown.exit_code == 0 and "Unknown type" not in shown.output
    for line in nbformat.read(notebook_file, 4).cells[2].source.splitlines():
        name, kind, default, meaning = re.fullmatch(r"(\w+): (\w+) = (\S+)  # (.+)", line).groups()
        assert f"{name}: {kind} (default {default})" in shown.output and meaning.split()[0] in shown.output


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("03_teacher", {"recipe": "CALL"}, "recipe 'CALL' is not in the study (did you mean 'CAL'?)"),
        ("04_ratio12", {"recipe": "FZ"}, "recipe 'FZ' is not in the study"),
        (
            "05_distillation",
            {"strategy": "FZ"},
            "strategy 'FZ' is not in the study: expected one of CAL, TGDA, CE",
        ),
        (
            "05_distillation",
            {"teacher": "none"},
            "teacher 'none' with strategy 'CAL': expected CE with teacher none",
        ),
        ("02_data", {"dataset": "bird"}, "dataset 'bird' is not in the study (did you mean 'birds'?)"),
    ],
)
def test_what_the_study_lacks_is_refused_in_the_cell_that_checks_parameters(
    tmp_path, monkeypatch, name, given, message
):
    """The cells up to that one: imports, parameters, those that papermill puts after them, the check."""
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    notebook = load_notebook_node(str(PROJECT / "notebooks" / f"{name}.ipynb"))
    cells = [cell.source for cell in parameterize_notebook(notebook, given).cells if cell.cell_type == "code"]
    namespace: dict = {}
    for source in cells[:3]:
        exec(source, namespace)
    with pytest.raises(StudyError, match=re.escape(message)):
        exec(cells[3], namespace)
    assert not (tmp_path / "lesson").exists()


def test_classes_that_their_colour_tells_apart_are_not_held_to_be_fine_grained(tmp_path, write_study):
    """Two classes, of which the mean image is right for every test image; nobody says what their families
    are."""
    for split, number in (("train", 6), ("test", 12)):
        for name, colour in (("blue", (30, 60, 200)), ("red", (200, 60, 30))):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (36, 36), tuple(c + i for c in colour)).save(folder / f"{split}-{i}.png")
    study = write_study({"datasets.photos": {"kind": "folder", "root": "photos"}})
    said = what_is_said("02_data", tmp_path / "out.ipynb", study=study, dataset="photos")
    assert any(
        text.startswith("**Did not hold.** Of 24 test images, with 95 % intervals: mean image 100.0%")
        for text in said
    )
    assert "Which classes are siblings these images do not say." in said


def test_a_study_of_one_teacher_says_how_far_the_seed_moves_its_students(tmp_path, write_study):
    changes = {"seed": [0, 1], "strategies": ["FZ"], "teachers": {"resnet": {"model": "test_resnet"}}}
    study = write_study(changes | {"pretext": ..., "recipes.pretext": ...})
    said = what_is_said("06_correlation", tmp_path / "out.ipynb", study=study)
    spread = pd.read_csv(tmp_path / "tiny/tables/students.csv").query("strategy == 'FZ'").accuracy.std()
    expected = f"**Cannot tell.** One teacher's students differ by {spread:.1%} (sd) between seeds."
    assert expected in said
    assert any("the smallest p that there can be, that of a perfect order, is 1." in text for text in said)
