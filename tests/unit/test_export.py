"""The hand-over: what it refuses and why, its preprocessing, its script on photos of all kinds."""

import ctypes
import dataclasses
import importlib.util
import json
import math
import os
import resource
import runpy
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torchvision.transforms import CenterCrop

from fgkd import cli
from fgkd.analysis import records
from fgkd.data.images import decode
from fgkd.distillation import export
from fgkd.models import classifier
from fgkd.study import Job, Sizes, StudyError

DISTILL = Job("distill", "birds", "resnet", "FT")
TEACHER = Job("teacher", "birds", "resnet", "FT")
STUDENT = Job("student", "birds", "resnet", "FT", student="small", loss="kd")


def refusal(study, folder, job=DISTILL, student=None, loss=None):
    """The one line by which a hand-over is refused; nothing is left behind."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(StudyError) as error:
        export.hand_over(study, job, student, loss, folder)
    assert sorted(folder.parent.iterdir()) == before
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "job, student, loss, message",
    [
        (DISTILL, "smal", None, "student 'smal' is not in the study (did you mean 'small'?)"),
        (
            DISTILL,
            None,
            "dkd",
            "has no student 'small' of loss 'dkd' (did you mean 'kd'?): expected one of kd",
        ),
        (TEACHER, "small", None, "is a teacher: it has no students, leave out student and loss"),
        (
            Job("teacher", "birds", "resnet", "CAL"),
            None,
            None,
            "expected a student, or a teacher of recipe FZ",
        ),
        (
            Job("bank", "birds", "resnet", "FT"),
            None,
            None,
            "'bank/birds/FT/resnet' trains no network: expected",
        ),
    ],
)
def test_a_name_that_the_study_lacks_is_refused(finished, tmp_path, job, student, loss, message):
    assert message in refusal(finished, tmp_path / "out", job, student, loss)


def test_a_student_must_be_named_where_there_are_several(make_study, tmp_path):
    study = make_study({"students.other": {"model": "test_resnet"}})
    message = refusal(study, tmp_path / "out")
    assert message == "'distill/birds/FT/resnet' has several students: name one of small, other"


def test_a_job_that_is_not_done_is_refused(tiny, tmp_path):
    message = refusal(tiny, tmp_path / "out")
    assert f"'{STUDENT.id}' is not done: run 'fgkd run {tiny.file}' first" == message


def test_a_job_that_is_out_of_date_is_refused(finished, make_study, tmp_path):
    changed = make_study({"recipes.student.lr": 0.002})
    assert changed.folder == finished.folder
    assert "is out of date, since an input changed" in refusal(changed, tmp_path / "out")


def test_a_record_that_came_without_weights_is_refused(finished, tmp_path):
    (finished.path(STUDENT) / "model.safetensors").unlink()
    message = refusal(finished, tmp_path / "out")
    assert "has its record, but not its weights" in message and "bring model.safetensors to" in message


def test_a_folder_with_other_files_and_a_file_are_refused(finished, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    assert "holds 'thesis.tex', which is of no hand-over" in refusal(finished, tmp_path / "out")
    (tmp_path / "file").write_text("")
    assert "is a file: expected a new folder" in refusal(finished, tmp_path / "file")


def test_a_missing_package_is_named_with_what_adds_it(finished, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name)
    )
    message = refusal(finished, tmp_path / "out")
    assert message == "onnxscript is not installed: pip install 'fgkd[export]' adds it"


def test_the_command_hands_over_and_again_into_the_same_folder(finished, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    words = ["export", finished.file, DISTILL.id, "--out", str(out)]
    assert cli.main(words) == 0
    assert f"handed over to {out}" in capsys.readouterr().out
    (out / export.NETWORK).write_text("from an earlier hand-over")
    assert cli.main(words) == 0
    assert {path.name for path in out.iterdir()} == export.FILES - {export.NETWORK}
    assert (out / "classes.txt").read_text().splitlines() == list(
        export.find(finished, DISTILL).dataset.classes
    )
    assert (
        json.loads((out / "config.json").read_text())["label_names"][0] in (out / "classes.txt").read_text()
    )


def test_a_hand_over_as_the_weights_of_another_study_gives_the_same_logits(finished, tmp_path):
    pytest.importorskip("onnxruntime")
    out = export.hand_over(finished, DISTILL, None, None, tmp_path / "out")
    trained = export.find(finished, DISTILL).load()
    spec = finished.student("small").model_copy(update={"weights": str(out / "model.safetensors")})
    again = classifier.build(spec, None, crop=finished.views.crop, seed=0).eval()
    images = torch.randint(0, 256, (4, 3, finished.views.crop, finished.views.crop), dtype=torch.uint8)
    torch.testing.assert_close(again(images), trained(images))


def test_the_command_names_a_job_that_is_close(finished, tmp_path, capsys):
    assert cli.main(["export", finished.file, "distill/birds/FT/resent", "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fgkd: job 'distill/birds/FT/resent' is not in the study (did you mean")


@pytest.mark.fault("a full disk under a hand-over")
def test_a_full_disk_leaves_an_earlier_hand_over_as_it_was(finished, tmp_path, in_child):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("of an earlier hand-over")

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OSError, match=r"could not write '.*model.safetensors'.*full: free some space"):
            export.hand_over(finished, DISTILL, None, None, out)

    assert in_child(fill) == 0
    assert [path.name for path in out.iterdir()] == ["README.md"]
    assert not list(tmp_path.glob(".out*"))


def test_the_crop_share_gives_timm_the_size_of_the_study():
    sizes = [(resize, crop) for resize in range(8, 400, 3) for crop in range(1, resize + 1)]
    assert all(math.floor(crop / export.crop_share(resize, crop)) == resize for resize, crop in sizes)
    assert any(math.floor(crop / (crop / resize)) != resize for resize, crop in sizes)


@pytest.mark.parametrize("resize, crop", [(72, 64), (36, 32), (108, 96), (69, 64), (50, 50)])
def test_timms_transform_gives_the_very_pixels_of_the_study(tmp_path, resize, crop):
    pixels = np.random.default_rng(0).integers(0, 256, (91, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    transform = create_transform(
        input_size=(3, crop, crop),
        interpolation="bicubic",
        crop_mode="squash",
        crop_pct=export.crop_share(resize, crop),
        normalize=False,
    )
    corner = (resize - crop) // 2
    ours = decode(tmp_path / "photo.png", resize)[corner : corner + crop, corner : corner + crop]
    assert (transform(Image.open(tmp_path / "photo.png")).permute(1, 2, 0).numpy() == ours).all()


@pytest.mark.parametrize("crop, differs", [(32, False), (35, False), (33, True), (29, True)])
def test_the_card_warns_of_a_margin_that_timm_cuts_otherwise(finished, crop, differs):
    """torchvision rounds half a margin to the even neighbour, the study downwards."""
    corner = CenterCrop(crop)(torch.arange(36 * 36).view(1, 36, 36))[0, 0, 0].item() % 36
    assert (corner != (36 - crop) // 2) == differs
    trained = export.find(finished, DISTILL)
    study = finished.model_copy(update={"views": Sizes(resize=36, crop=crop)})
    card = export.card(dataclasses.replace(trained, study=study))
    assert ("Of an odd margin" in card) == differs


def test_the_card_says_what_weights_a_training_started_from(finished):
    for job, words in (
        (Job("teacher", "pretext", "byobnet", "pretext"), "random"),
        (Job("teacher", "birds", "byobnet", "FT"), "of a training on the pretext set"),
        (Job("distill", "birds", "none", "CE"), "random"),
    ):
        assert f"| weights before | {words} |" in export.card(export.find(finished, job))


class Session:
    """Stands for onnxruntime's: the probability of class 1 is the mean of the pixels over 255."""

    def __init__(self, *arguments, **options):
        pass

    def run(self, names, inputs):
        self.pixels = inputs["pixels"]
        mean = float(self.pixels.mean()) / 255
        return [np.array([[1 - mean, mean]])]


@pytest.fixture
def predict_folder(tmp_path):
    """A folder with predict.py and the names of two classes."""
    (tmp_path / "classes.txt").write_text("dark\nlight\n")
    (tmp_path / "predict.py").write_text(export.predict_script(36, 32))
    return tmp_path


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "I;16B", "F", "turned"]


@pytest.mark.parametrize("mode", MODES)
def test_the_script_decodes_photos_as_the_study_does(predict_folder, monkeypatch, mode):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 4), dtype=np.uint8))
    exif = Image.Exif()
    if mode == "turned":
        exif[0x0112] = 6
    elif mode[0] in "IF":
        grey = np.random.default_rng(0).integers(0, 65536, (40, 70))
        image = Image.fromarray(grey.astype(np.float32 if mode == "F" else np.int32)).convert(mode)
    else:
        image = image.convert("LA" if mode == "PA" else "RGBA").convert(mode)
    photo = predict_folder / f"photo.{'png' if mode in ('RGBA', 'LA', 'P', 'turned') else 'tif'}"
    image.save(photo, exif=exif)
    script = runpy.run_path(str(predict_folder / "predict.py"))
    name, probability = script["predict"](photo)
    view = decode(photo, 36)[2:34, 2:34]
    assert (script["network"]().pixels[0] == view).all()
    light = view.mean() / 255
    assert 0.2 < light < 0.8 and name == ("light" if light > 0.5 else "dark")
    assert probability == pytest.approx(max(light, 1 - light))
    assert (np.asarray(script["photo"](photo))[2:34, 2:34] == view).all()


def test_the_script_names_the_other_photos_where_one_is_none(predict_folder, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    Image.new("RGB", (20, 20), "white").save(predict_folder / "a.png")
    (predict_folder / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    script = runpy.run_path(str(predict_folder / "predict.py"))
    paths = [str(predict_folder / name) for name in ("gone.jpg", "eps.jpg", "a.png")]
    assert script["main"](paths) == 1
    shown = capsys.readouterr()
    assert shown.out == f"{paths[2]}: light (100.0%)\n"
    assert [line.partition(" cannot be decoded: ")[2] for line in shown.err.splitlines()] == [
        "No such file or directory",
        "not an image that Pillow can read",
    ]
    with pytest.raises(SystemExit, match="usage: python predict.py PHOTO"):
        script["main"]([])


def zero_tail(file):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def put_nan(file):
    state = load_file(file)
    save_file(
        {name: value * float("nan") if value.is_floating_point() else value for name, value in state.items()},
        file,
    )


SPOILT = {
    "another student": (lambda folder, other: shutil.copy(other / "model.safetensors", folder), "weights"),
    "a zeroed tail": (lambda folder, _: zero_tail(folder / "model.safetensors"), "weights"),
    "NaN": (lambda folder, _: put_nan(folder / "model.safetensors"), "weights"),
    "another's logits": (lambda folder, other: shutil.copy(other / "test.npy", folder), "test.npy"),
    "cut logits": (lambda folder, _: (folder / "test.npy").write_bytes(b"\x93NUMPY"), "test.npy"),
    "fewer images": (lambda folder, _: np.save(folder / "test.npy", np.zeros((3, 4))), "test.npy"),
}


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("has_digests", [True, False], ids=["digests", "an earlier version's record"])
@pytest.mark.fault("weights or logits of another training")
def test_weights_and_logits_of_another_training_are_refused(
    finished, tmp_path, spoil, has_digests, monkeypatch
):
    monkeypatch.setattr(export, "NOISE", {"cpu": 1e-4})  # two students of a few steps hardly differ
    folder = finished.path(STUDENT)
    if not has_digests:
        stored = records.read_json(folder / "record.json")
        records.write_json(folder / "record.json", {k: v for k, v in stored.items() if k != "files"})
    change, name = SPOILT[spoil]
    change(folder, finished.path(dataclasses.replace(STUDENT, teacher="efficientnet")))
    message = refusal(finished, tmp_path / "out")
    named = "model.safetensors" if has_digests and name == "weights" else name
    assert message.startswith(f"{STUDENT.id}: its ") and named in message and "--repair' removes" in message


@pytest.mark.fault("an accuracy that was edited")
def test_an_accuracy_that_is_not_that_of_the_logits_is_refused(finished, tmp_path):
    stored = records.read_json(finished.path(STUDENT) / "record.json")
    stored["rows"][0]["accuracy"] = 0.987
    records.write_json(finished.path(STUDENT) / "record.json", stored)
    assert "its accuracy is 98.70%, but " in refusal(finished, tmp_path / "out")


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.fault("a hand-over killed while it replaces an earlier one")
def test_a_killed_hand_over_leaves_the_files_of_one_model_and_nothing_for_long(tmp_path, in_child, step):
    out, rename = tmp_path / "out", Path.rename

    def write(folder, text):
        folder.mkdir(exist_ok=True)
        for name in export.FILES:
            (folder / name).write_text(text)

    def replace():
        steps = []

        def rename_or_die(path, target):
            steps.append(path)
            if len(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            renamed = rename(path, target)
            if len(steps) == step - 1 == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return renamed

        Path.rename = rename_or_die
        with export._replacing(out) as new:
            write(new, "new")

    write(out, "old")
    assert in_child(replace) == -signal.SIGKILL
    assert not out.exists() or len({file.read_text() for file in out.iterdir()}) == 1
    with pytest.raises(KeyError), export._replacing(out):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {file.read_text() for file in out.iterdir()} == {"old" if step < 3 else "new"}


def obey_modes():
    """Let this process, if it is root's, write nothing that its owner may not."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' capabilities")
@pytest.mark.fault("a study that cannot be written")
def test_anothers_study_is_read_without_writing_to_it(finished, tmp_path, in_child, capfd):
    pytest.importorskip("onnxruntime")
    (place := tmp_path / "mine").mkdir()
    folders = [finished.folder, *(path for path in finished.folder.rglob("*") if path.is_dir())]
    for file in finished.folder.rglob(".lock"):
        file.unlink()
    for folder in folders:
        folder.chmod(0o555)

    def read():
        obey_modes()
        assert cli.main(["status", finished.file]) == 0
        assert cli.main(["check", finished.file]) == 0
        assert cli.main(["report", finished.file, "--out", str(place / "report")]) == 0
        assert cli.main(["export", finished.file, DISTILL.id, "--out", str(place / "out")]) == 0
        assert cli.main(["report", finished.file]) == 2

    status = in_child(read)
    for folder in folders:
        folder.chmod(0o755)
    output = capfd.readouterr()
    assert status == 0, output
    assert (place / "report" / "tables" / "students.csv").exists() and (place / "out" / "model.onnx").exists()
    assert "figures' cannot be used (Permission denied)" in output.err and "FGKD_RUNS" in output.err
