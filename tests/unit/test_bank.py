"""The bank: the metrics of an online pass, whole files or none, and students that learn from it what they would learn online."""

import math
import os

import numpy as np
import pytest
import torch

from fgkd import bank, models, stages, training
from fgkd.datasets import Split
from fgkd.study import Model, Views

EPOCHS, N, CLASSES = 3, 17, 5
SHAPE = {"epochs": EPOCHS, "samples": N, "classes": CLASSES, "device": torch.device("cpu")}


@pytest.fixture
def images():
    pixels = np.random.default_rng(2).integers(0, 256, (N, 36, 36, 3), dtype=np.uint8)
    return training.Images(Split(pixels, np.arange(N) % CLASSES, ("",) * N), Views(resize=36, crop=32), torch.device("cpu"))


@pytest.fixture
def teacher():
    model = models.build(Model("t", "test_resnet"), CLASSES, crop=32, seed=4).eval().requires_grad_(False)
    with torch.no_grad():
        model.head.bias += torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0])  # R12 of a network around 0 is dominated by a few samples
    return model


def write(file, teacher, images, **changes):
    return bank.write(file, teacher, images, **({"epochs": EPOCHS, "views_seed": 8, "classes": CLASSES} | changes))


def online(teacher, images):
    """Logits (E, N, C) of the same views, cut, flipped and normalised by hand."""
    mean, std = (np.array(teacher.net.pretrained_cfg[k], np.float32) * np.float32(255) for k in ("mean", "std"))
    found = []
    for epoch in range(EPOCHS):
        seen = images.epoch(8, epoch)
        crops = [p[t : t + 32, left : left + 32][:, :: -1 if flip else 1] for p, t, left, flip in zip(images.split.images, seen.top, seen.left, seen.flip)]
        x = torch.from_numpy(np.stack([(c - mean) / std for c in crops])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            found.append(teacher.net(x))
    return torch.stack(found).numpy()


def by_hand(logits):
    """The metrics of logits (S, C) in numpy, fp64."""
    p = np.sort(logits.astype(np.float64), axis=1)[:, ::-1]
    q = np.exp(p - p[:, :1])
    q /= q.sum(1, keepdims=True)
    ratio = p[:, 0] / p[:, 1]
    return {"ratio12": ratio.mean(), "ratio12_median": np.median(ratio), "ratio12_nonpositive": (p[:, 1] <= 0).mean(), "ratio13": (p[:, 0] / p[:, 2]).mean(),
            "ratio23": (p[:, 1] / p[:, 2]).mean(), "ratio12_softmax": (q[:, 0] / q[:, 1]).mean(), "margin": (p[:, 0] - p[:, 1]).mean(),
            "entropy": -(q * np.log(q)).sum(1).mean(), "ssp": q[:, 1:4].std(1, ddof=1).mean()}


def test_a_banks_metrics_and_logits_equal_an_online_pass_over_the_same_views(tmp_path, teacher, images):
    summary, rows = write(tmp_path / "logits.npy", teacher, images)
    logits = online(teacher, images)
    assert summary == pytest.approx(by_hand(logits.reshape(-1, CLASSES)), rel=1e-9)
    for epoch, row in enumerate(rows):
        assert row == pytest.approx({"epoch": epoch} | by_hand(logits[epoch]), rel=1e-9)
    stored = bank.read(tmp_path / "logits.npy", **SHAPE).stored
    assert stored.dtype == np.float16 and np.array_equal(stored, logits.astype(np.float16))


def test_metrics_come_from_unrounded_logits(tmp_path, teacher, images):
    summary, _ = write(tmp_path / "logits.npy", teacher, images)
    rounded = by_hand(np.asarray(bank.read(tmp_path / "logits.npy", **SHAPE).stored, np.float64).reshape(-1, CLASSES))
    assert summary["margin"] != pytest.approx(rounded["margin"], rel=1e-9)
    assert summary["margin"] == pytest.approx(rounded["margin"], rel=1e-2)


def test_a_batch_reads_its_own_images_logits(tmp_path, teacher, images):
    write(tmp_path / "logits.npy", teacher, images)
    found, index = bank.read(tmp_path / "logits.npy", **SHAPE), torch.tensor([16, 0, 16])
    logits = found.logits(2, index)
    assert logits.dtype == torch.float32 and np.array_equal(logits, found.stored[2][[16, 0, 16]].astype(np.float32))


def test_two_banks_of_one_teacher_are_the_same_bytes_and_another_seeds_are_not(tmp_path, teacher, images):
    for name, seed in (("a", 8), ("b", 8), ("c", 9)):
        write(tmp_path / name, teacher, images, views_seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_a_bank_that_is_killed_half_way_leaves_nothing_that_is_read(tmp_path, teacher, images, monkeypatch, in_child):
    file, passes = tmp_path / "logits.npy", []

    def batches(*given):
        passes.append(1)
        if len(passes) == 2:
            os._exit(9)
        yield from training.batches(*given)

    monkeypatch.setattr(bank, "batches", batches)
    assert in_child(lambda: write(file, teacher, images)) == 9
    assert not file.exists() and bank.read(file, **SHAPE) is None
    monkeypatch.undo()
    write(file, teacher, images)
    assert bank.read(file, **SHAPE) is not None and [f.name for f in tmp_path.iterdir()] == ["logits.npy"]


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_that_is_cut_short_is_not_read(tmp_path, teacher, images, kept):
    write(file := tmp_path / "logits.npy", teacher, images)
    file.write_bytes(file.read_bytes()[:kept])
    assert bank.read(file, **SHAPE) is None


@pytest.mark.parametrize("array", [
    np.zeros((EPOCHS, N, CLASSES + 1), np.float16), np.zeros((EPOCHS - 1, N, CLASSES), np.float16), np.zeros((EPOCHS, N, CLASSES), np.float32),
    np.array({"a": 1})], ids=["classes", "epochs", "type", "object"])
def test_a_file_of_another_shape_or_type_is_not_read(tmp_path, array):
    np.save(tmp_path / "logits.npy", array)
    assert bank.read(tmp_path / "logits.npy", **SHAPE) is None


@pytest.mark.parametrize("value, message", [(7e4, "largest logit is .*beyond fp16 .65504.*diverge"), (math.nan, "NaN or infinite"), (math.inf, "NaN or infinite")])
def test_logits_that_fp16_cannot_hold_are_refused_and_leave_no_file(tmp_path, teacher, images, value, message):
    with torch.no_grad():
        teacher.head.bias[1] = value
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "logits.npy", teacher, images)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_names_the_file_and_the_remedy_and_leaves_no_file(tmp_path, teacher, images):
    (tmp_path / ".logits.npy.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="could not write '.*logits.npy'.*full: free some space and start again"):
        write(tmp_path / "logits.npy", teacher, images)
    assert not list(tmp_path.iterdir())


def test_a_student_of_the_bank_has_the_losses_of_one_taught_online(make_study):
    """The bank rounds logits to fp16, at most 5e-4 of them; over three epochs losses were seen to part by less than 1e-4 of themselves."""
    runs = {}
    for name, changes in {"stored": {}, "online": {"online": True}, "other": {"distillation.temperature": 2.1}}.items():
        study = make_study({"name": name, "recipes.student.epochs": 3} | changes)
        runs[name] = stages.distill(study, "birds", "resnet", "FT").table("history")[["ce", "kd"]].to_numpy()
        assert (study.folder / "bank").exists() == (name != "online")
    assert runs["stored"].shape == (3, 2)
    assert runs["stored"] == pytest.approx(runs["online"], rel=1e-3)
    assert runs["stored"] != pytest.approx(runs["other"], rel=1e-3)
