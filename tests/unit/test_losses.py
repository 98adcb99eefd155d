"""Knowledge distillation: the released implementation's values, timm's task, and its limits."""

import json
import math

import numpy as np
import pytest
import torch
from timm.task import LogitDistillationTask
from torch import nn
from torch.nn import functional as F

from fgkd import losses


class Fixed(nn.Module):
    """A model whose logits are its parameter, with what timm's task asks of a model."""

    num_classes, in_chans = 9, 3
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits


def logits(n=12, c=9, *, seed):
    return 4 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [2, 4])
def test_kd_equals_the_released_implementation(reference, temperature):
    given = np.load(reference / "golden.npz")
    golden = json.loads((reference / "golden.json").read_text())["losses"]
    student, teacher = (torch.from_numpy(given[f"losses/{who}_logits"]) for who in ("student", "teacher"))
    assert losses.kd(student, teacher, temperature).item() == pytest.approx(golden[f"kd_T{temperature}"], rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_ce_plus_beta_kd_and_its_gradient_equal_timms_task(temperature):
    student, teacher, labels = Fixed(logits(seed=1)), Fixed(logits(seed=2)), torch.arange(12) % 9
    task = LogitDistillationTask(student, teacher, criterion=nn.CrossEntropyLoss(), distill_loss_weight=10.0, temperature=temperature, verbose=False)
    theirs = task(torch.zeros(12, 3, 2, 2), labels)["loss"]
    (expected,) = torch.autograd.grad(theirs, student.logits)
    ours = F.cross_entropy(student.logits, labels) + 10 * losses.kd(student.logits, teacher.logits, temperature)
    (found,) = torch.autograd.grad(ours, student.logits)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_kd_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert losses.kd(student, teacher, 2).item() == pytest.approx(expected, rel=1e-6)


def test_kd_sums_over_classes_and_averages_over_samples():
    student, teacher = logits(seed=1), logits(seed=2)
    one_by_one = torch.stack([losses.kd(student[i : i + 1], teacher[i : i + 1], 2) for i in range(12)])
    found = losses.kd(student, teacher, 2).item()
    assert found == pytest.approx(one_by_one.mean().item(), rel=1e-5)
    every = F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none")
    assert found == pytest.approx(9 * 4 * every.mean().item(), rel=1e-5)


def test_kd_is_zero_for_equal_predictions_only_and_not_symmetric():
    student, teacher = logits(seed=1), logits(seed=2)
    assert losses.kd(teacher + 7, teacher, 2).item() == pytest.approx(0, abs=1e-5)
    forward, backward = losses.kd(student, teacher, 2).item(), losses.kd(teacher, student, 2).item()
    assert forward > 0.1 and backward > 0.1 and abs(forward - backward) > 0.1


def test_at_a_high_temperature_kd_is_half_the_mean_square_of_centred_logits():
    student, teacher = logits(seed=1), logits(seed=2)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert losses.kd(student, teacher, 200).item() == pytest.approx((gap.square().mean(1) / 2).mean().item(), rel=0.02)


def test_the_teacher_receives_no_gradient():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2).requires_grad_()
    losses.kd(student, teacher, 2).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_logits_of_half_precision_are_added_up_in_single():
    student, teacher = logits(seed=1).half(), logits(seed=2).half()
    found = losses.kd(student, teacher, 2)
    assert found.dtype == torch.float32
    assert torch.equal(found, losses.kd(student.float(), teacher.float(), 2))


@pytest.mark.parametrize("temperature", [0, -1, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}: expected more than 0"):
        losses.kd(logits(seed=1), logits(seed=2), temperature)


@pytest.mark.parametrize("shape", [(12, 8), (11, 9), (1, 9), (9,)])
def test_logits_of_two_shapes_are_refused_and_not_broadcast(shape):
    with pytest.raises(ValueError, match=r"student logits have shape \(12, 9\).*expected the same"):
        losses.kd(logits(seed=1), torch.zeros(shape), 2)
