"""Training, banks and losses on a GPU: `python -m pytest tests/unit/test_gpu.py` where there is one."""

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
import trainings
from torch import nn

from fgkd.data.datasets import Split
from fgkd.distillation import checkpoint, losses, stages, training
from fgkd.models import classifier
from fgkd.study import Model, Recipe, Sizes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


def test_the_tiny_study_runs_on_a_gpu_and_says_so(make_study):
    tables = stages.study_tables(make_study({"device": "cuda"}))
    assert set(tables["students"].device) == {"cuda"} and tables["students"].accuracy.between(0, 1).all()
    assert (tables["teachers"].peak_memory_mb > 0).all()


def test_the_bank_of_a_teacher_is_the_same_on_a_gpu_but_for_bf16(make_study):
    cpu, gpu = make_study({"device": "cpu"}, "one"), make_study({"device": "cuda"}, "two")
    trained = stages.teacher(cpu, "birds", "resnet", "FT")
    stages.teacher(gpu, "birds", "resnet", "FT")
    weights = (trained.folder / "model.safetensors").read_bytes()
    (gpu.path(trained.job) / "model.safetensors").write_bytes(weights)
    banks = [stages.bank(study, "birds", "resnet", "FT")[1] for study in (cpu, gpu)]
    logits = [torch.stack([bank.logits(view) for view in range(2)]) for bank in banks]
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[0].abs().max()


def test_students_learn_the_same_from_the_bank_and_online(make_study):
    stored, online = (
        make_study({"device": "cuda"}, "stored"),
        make_study({"device": "cuda", "online": True}, "online"),
    )
    histories = [
        pd.DataFrame(stages.distill(s, "birds", "resnet", "FT").table("history")) for s in (stored, online)
    ]
    assert (histories[0].kd / histories[1].kd - 1).abs().max() < 0.05


def test_losses_their_gradients_and_crds_memories_are_the_same_on_a_gpu():
    def found(on):
        torch.manual_seed(0)
        student, teacher, labels = (
            torch.randn(12, 9).to(on).requires_grad_(),
            torch.randn(12, 9).to(on),
            (torch.arange(40) % 4).to(on),
        )
        crd = losses.CRD(
            9, 9, labels
        )  # with all images of other classes as negatives: GPUs draw other numbers
        parts = [
            losses.kd(student, teacher, 2),
            losses.dkd(student, teacher, labels[:12], 1, 8, 4),
            losses.rkd(student, teacher),
            losses.pkt(student, teacher),
            losses.hint(student, teacher),
            crd(student, teacher, torch.arange(12)),
        ]
        return [*parts, *(torch.autograd.grad(part, student)[0] for part in parts), crd.memory, crd.log_z]

    for cpu, gpu in zip(found("cpu"), found("cuda"), strict=True):
        assert gpu.is_cuda
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext3", "lcnet_035", "resnetv2_18"])
def test_logits_are_not_rounded_to_bf16_and_are_those_of_the_last_layer_on_the_features(name):
    model = classifier.build(Model(key="x", model=name), 200, crop=64, seed=0).eval().cuda()
    pixels = np.random.default_rng(1).integers(0, 256, (16, 3, 64, 64), dtype=np.uint8)
    images = torch.from_numpy(pixels).cuda()
    with torch.inference_mode():
        logits, (_, again) = model(images), model.features_and_logits(images)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, again, rtol=1e-4, atol=1e-4 * again.abs().max().item())


@pytest.mark.parametrize("first, then", [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_training_goes_on_on_another_device_than_it_began_on(tmp_path, monkeypatch, first, then):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1)
    pixels = np.random.default_rng(2).integers(0, 256, (24, 36, 36, 3), dtype=np.uint8)
    split, write, files = Split(pixels, np.arange(24) % 4, ("",) * 24), checkpoint.write_bytes, []

    def train(on):
        model = classifier.build(Model(key="x", model="test_byobnet"), 4, crop=32, seed=0).to(on)
        images = training.Images(split, Sizes(resize=36, crop=32), torch.device(on))
        recipe = Recipe(epochs=3, batch_size=8, optimizer="adamw", lr=0.001, weight_decay=0.05)
        objective, options = training.cross_entropy(images.labels), {"seed": 2, "checkpoint": tmp_path / "c"}
        return training.fit_images(model, images, objective, recipe, views_seed=1, **options)

    def killed(*given):
        write(*given)
        files.append(given)
        if len(files) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        train(first)
    begun = torch.load(tmp_path / "c", weights_only=True)["begun"]
    assert len(begun["random"]) == (1 if first == "cpu" else 2)
    monkeypatch.setattr(checkpoint, "write_bytes", write)
    history = train(then)
    assert [row["epoch"] for row in history] == [0, 1, 2] and all(np.isfinite(row["ce"]) for row in history)


@pytest.fixture
def no_waiting():
    """A context in which it is an error to wait for the GPU, as each copy from the CPU's own memory does."""

    @contextlib.contextmanager
    def within():
        torch.cuda.set_sync_debug_mode("error")
        yield
        torch.cuda.set_sync_debug_mode("default")

    yield within()
    torch.cuda.set_sync_debug_mode("default")


def test_waiting_for_the_gpu_is_seen(no_waiting):
    total = torch.ones(3, device="cuda").sum()
    with no_waiting, pytest.raises(RuntimeError, match="synchroniz"):
        total.item()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", (*trainings.KINDS, *trainings.AUXILIARY))
def test_no_step_waits_for_the_gpu(tmp_path, monkeypatch, no_waiting, kind, optimizer):
    watched = trainings.Steps(no_waiting, monkeypatch)
    recipe = Recipe(epochs=2, batch_size=4, lr=1e-4, optimizer=optimizer)
    net = trainings.network(kind).cuda()
    history = trainings.train(kind, net, tmp_path / "c", device="cuda", with_recipe=recipe)
    assert watched.number == 9 and len(history) == 2


def test_views_cut_on_a_gpu_are_those_cut_on_a_cpu():
    index, (cpu, gpu) = torch.tensor([19, 0, 7, 7]), (trainings.images(on) for on in ("cpu", "cuda"))
    expected = cpu.batch(index, cpu.epoch(3, 1))
    seen = gpu.epoch(3, 1)
    assert {t.device.type for t in (seen.top, seen.left, seen.flip)} == {"cuda"}
    assert torch.equal(gpu.batch(index, seen).cpu(), expected)
    assert torch.equal(gpu.batch(index.cuda(), seen).cpu(), expected)
    gpu.resident, gpu.index_device = None, index.device
    assert torch.equal(gpu.batch(index, seen).cpu(), expected)


def test_images_that_do_not_fit_its_memory_train_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda on: (1000, 1000))
    seen = trainings.images("cuda")
    assert seen.resident is None
    net = trainings.network("CE").cuda()
    history = trainings.train("CE", net, tmp_path / "c", device="cuda", source=seen)
    assert len(history) == 3 and all(np.isfinite(row["ce"]) for row in history)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_gpus_one_kernel_for_all_weights_moves_them_as_a_cpu_does(tmp_path, optimizer):
    found, recipe = [], Recipe(epochs=4, batch_size=8, optimizer=optimizer, lr=0.01, weight_decay=0.1)
    for on in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(on)
        x, labels = torch.randn(24, 6).to(on), (torch.arange(24) % 3).to(on)
        fused = {group["fused"] for group in training.make_optimizer(net, recipe).param_groups}
        options, objective = {"seed": 1, "checkpoint": tmp_path / "c"}, training.cross_entropy(labels)
        training.fit(net, lambda epoch, index, x=x: x[index], labels, objective, recipe, **options)
        found.append((fused, [weight.detach().cpu() for weight in net.parameters()]))
    assert [fused for fused, _ in found] == [{None}, {True}]
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-4)


def test_a_cpus_checkpoint_is_continued_in_one_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1)
    recipe, net = trainings.recipe("KD"), trainings.network("KD")
    trainings.train("KD", net, tmp_path / "c", with_recipe=recipe)
    optimizer = training.make_optimizer(net.cuda(), recipe)
    state = checkpoint.Checkpoint(tmp_path / "c", net, optimizer)
    assert len(state.history) == 3 and not state.begun
    assert {group["fused"] for group in optimizer.param_groups} == {True}
    assert all(state["step"].is_cuda and state["step"] == 12 for state in optimizer.state.values())
