"""Students that are handed over: used without fgkd, they are as accurate as reported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import _write
from PIL import Image
from scipy.special import softmax

from fgkd import study as studies
from fgkd.data import datasets
from fgkd.distillation import export, stages
from fgkd.models import classifier
from fgkd.study import DataSpec, StudyError

pytest.importorskip("onnxruntime")
PLUGIN = """
from timm.models import register_model
from timm.models.byobnet import _create_byobnet

@register_model
def my_student(pretrained=False, **kwargs):
    return _create_byobnet("test_byobnet", pretrained=False, **kwargs)
"""
CHANGES = {
    "plugins": ["mine.py"],
    "pretext": ...,
    "datasets": {"garden": {"kind": "folder", "root": "photos"}},
    "teachers": {"resnet": {"model": "test_resnet"}},
    "strategies": ["FT"],
    "baseline": False,
    "students": {
        "small": {"model": "test_byobnet"},
        "patches": {"model": "test_vit3", "options": {"depth": 2}},  # its size of images is fixed
        "enlarged": {"model": "test_resnet", "resolution": 48},
        "mine": {"model": "my_student"},
    },
    "recipes.FT": {"epochs": 20, "batch_size": 8, "lr": 0.05},
    "recipes.student": {"epochs": 20, "batch_size": 8, "optimizer": "adamw", "lr": 0.005},
}
BY_TIMM = """
import re, sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image

photos, *folders = map(Path, sys.argv[1:])
files = sorted(photos.glob("*/*"))
for folder in folders:
    sys.path[0] = str(folder)
    sys.modules.pop("predict", None)
    card = (folder / "README.md").read_text()
    lines = re.search(r"With timm:\\n\\n((?:    .+\\n)+)", card)[1]
    exec("".join(line[4:] for line in lines.replace("FOLDER", str(folder)).splitlines(keepends=True)))
    with torch.inference_mode():
        logits = torch.cat([net(transform(Image.open(file).convert("RGB"))[None]) for file in files])
    names = config["label_names"]
    hits = [names[row.argmax()] == file.parent.name for row, file in zip(logits, files)]
    np.savez(folder.name, probabilities=logits.softmax(1), accuracy=np.mean(hits))
assert "fgkd" not in sys.modules
"""
BY_ONNX = """
import sys
from pathlib import Path
import numpy as np

photos, *folders = map(Path, sys.argv[1:])
files = sorted(photos.glob("*/*"))
for folder in folders:
    sys.path[0] = str(folder)
    sys.modules.pop("predict", None)
    from predict import predict
    found = [predict(file) for file in files]
    hits = [name == file.parent.name for (name, _), file in zip(found, files)]
    np.savez(folder.name, probabilities=[p for _, p in found], accuracy=np.mean(hits))
assert not {"fgkd", "torch", "timm"} & {*sys.modules}
"""
NAMES = ("small", "patches", "enlarged", "mine", "teacher")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four students of one teacher, trained on photos that are no squares: drawn birds, stretched."""
    folder = tmp_path_factory.mktemp("garden")
    (folder / "mine.py").write_text(PLUGIN)
    spec = DataSpec(key="birds", species=4, family_size=2, train=24, test=12, resize=60)
    birds = datasets.load(spec, folder / "cache")
    for split, images in (("train", birds.train), ("test", birds.test)):
        for number, (pixels, label) in enumerate(zip(images.images, images.labels)):
            photo = folder / "photos" / split / birds.classes[label] / f"{number:03}.png"
            photo.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((75 + number % 20, 60)).save(photo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGKD_RUNS", str(folder))
        study = studies.load(str(_write(folder / "tiny.yaml", CHANGES)))
        stages.distill(study, "garden", "resnet", "FT")
        yield study


@pytest.fixture(scope="module")
def handed_over(study, tmp_path_factory):
    """The folder of each student, and of the teacher."""
    folder = tmp_path_factory.mktemp("handed-over")
    job = study.job("distill", "garden", "resnet", "FT")
    for student in study.students:
        export.hand_over(study, job, student, None, folder / student)
    export.hand_over(study, study.job("teacher", "garden", "resnet", "FT"), None, None, folder / "teacher")
    return folder


def result_of(study, name):
    """(accuracy, probabilities on the test images) as the study reported them."""
    if name == "teacher":
        result = stages.teacher(study, "garden", "resnet", "FT")
        return result.rows.tac[0], softmax(result.logits(), 1)
    result = stages.distill(study, "garden", "resnet", "FT").students[name, "kd"]
    return result.rows.accuracy[0], softmax(result.logits(), 1)


def use(script, study, handed_over, folder):
    """What a script that knows the folders and the test photos alone finds: by name, all in one process."""
    folders = [str(handed_over / name) for name in NAMES]
    words = [sys.executable, "-c", script, f"{study.datasets['garden'].root}/test", *folders]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return {name: dict(np.load(folder / f"{name}.npz")) for name in NAMES}


def test_timm_as_the_card_says_is_as_accurate_as_reported(study, handed_over, tmp_path):
    for name, found in use(BY_TIMM, study, handed_over, tmp_path).items():
        reported, probabilities = result_of(study, name)
        assert found["accuracy"] == reported, name
        assert np.ptp(probabilities, 0).max() > 0.1, name  # it does not say the same of every photo
        assert np.abs(found["probabilities"] - probabilities).max() < 1e-4, name


def test_onnxruntime_is_as_accurate_as_reported(study, handed_over, tmp_path):
    for name, found in use(BY_ONNX, study, handed_over, tmp_path).items():
        reported, probabilities = result_of(study, name)
        assert found["accuracy"] == reported, name
        assert np.abs(found["probabilities"] - probabilities.max(1)).max() < 1e-4, name


def test_the_script_names_a_photo(study, handed_over):
    photo = next(Path(study.datasets["garden"].root).glob("test/*/*"))
    words = [sys.executable, str(handed_over / "small" / "predict.py"), str(photo)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"{re.escape(str(photo))}: (.+) \(\d+\.\d%\)\n", shown)


@pytest.mark.parametrize("images", [1, 5])
def test_the_onnx_file_takes_any_number_of_images(handed_over, images):
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    probabilities = export.run_onnx(handed_over / "small" / "model.onnx", pixels)
    assert probabilities.shape == (images, 4) and np.allclose(probabilities.sum(1), 1, atol=1e-6)


def test_the_card_says_what_the_network_is_and_how_timm_differs(study, handed_over):
    cards = {folder.name: (folder / "README.md").read_text() for folder in handed_over.iterdir()}
    accuracy, _ = result_of(study, "small")
    assert f"**{accuracy:.1%}** (95 % interval" in cards["small"]
    assert "resnet (test_resnet), strategy FT, test accuracy" in cards["small"]
    assert "CE + beta T² KD with T = 2, beta = 10" in cards["small"]
    assert "import network" in cards["mine"] and "import network" not in cards["small"]
    assert "resized to 48" in cards["enlarged"] and "accuracy may differ" not in cards["small"]


def test_a_network_that_loads_otherwise_than_it_was_trained_is_refused(study, tmp_path, monkeypatch):
    job = study.job("distill", "garden", "resnet", "FT")
    save = classifier.save

    def spoil(net, file):
        with torch.no_grad():
            net.get_classifier().bias[0] += 5
            save(net, file)
            net.get_classifier().bias[0] -= 5

    monkeypatch.setattr(classifier, "save", spoil)
    with pytest.raises(StudyError, match="predict other probabilities than the trained network"):
        export.hand_over(study, job, "small", None, tmp_path / "out")
    assert not list(tmp_path.iterdir())
