"""A teacher and a dataset of one's own are a line each in the study file: nothing of the package changes."""

import numpy as np
import pytest
from PIL import Image

from fgkd.analysis import records
from fgkd.distillation import stages

PLUGIN = """
from timm.models import register_model
from timm.models.byobnet import _create_byobnet

@register_model
def my_teacher(pretrained=False, **kwargs):
    return _create_byobnet("test_byobnet", pretrained=False, **kwargs)
"""


@pytest.fixture
def photos(tmp_path):
    """A folder of photos of two classes, a plain and a striped one, of other sizes and formats."""
    for label in ("plain", "striped"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 90, (40 + number, 48, 3), dtype=np.uint8)
            if label == "striped":
                pixels[::4] = 255
            Image.fromarray(pixels).save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    return tmp_path / "photos"


def test_a_teacher_and_a_folder_of_photos_go_through_a_study_as_a_line_each(photos, make_study, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    study = make_study(
        {
            "plugins": ["mine.py"],
            "teachers.mine": {"model": "my_teacher"},
            "datasets.garden": {"kind": "folder", "root": "photos"},
            "strategies": ["FT"],
        }
    )
    tables = stages.study_tables(study)
    assert all(records.is_complete(study, job) for job in study.jobs() if job.stage == "distill")
    garden = tables["data"].set_index("dataset").loc["garden"]
    assert (garden.classes, garden.train, garden.test) == (2, 16, 4)
    students = tables["students"].query("dataset == 'garden' and strategy == 'FT'")
    assert set(students.teacher) == {*study.teachers} and "mine" in study.teachers
    assert students.accuracy.between(0, 1).all()
    mine = tables["metrics"].query("dataset == 'garden' and teacher == 'mine'")
    assert len(mine) == 1 and np.isfinite(mine.ratio12_median).all()
