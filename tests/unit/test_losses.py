"""Distillation losses: the released implementation, timm's task, torchdistill, cases by hand, and limits."""

import json
import math
import re
from types import MappingProxyType

import numpy as np
import pytest
import torch
from timm.task import LogitDistillationTask
from torch import nn
from torch.nn import functional as F

from fgkd.distillation import losses
from fgkd.study import Loss


class Fixed(nn.Module):
    """A model whose logits are its parameter, with what timm's task asks of a model."""

    num_classes, in_chans = 9, 3
    pretrained_cfg = MappingProxyType({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits


def logits(n=12, c=9, *, seed):
    return 4 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


def crd(student, teacher):
    """The first loss of a new module over 40 images of 4 classes, the same at each call."""
    torch.manual_seed(0)
    return losses.CRD(9, 9, torch.arange(40) % 4, negatives=20)(student, teacher, torch.arange(len(student)))


EVERY = {
    "kd": lambda s, t: losses.kd(s, t, 2),
    "dkd": lambda s, t: losses.dkd(s, t, torch.arange(len(s)) % 9, 1, 8, 4),
    "rkd": losses.rkd,
    "pkt": losses.pkt,
    "hint": losses.hint,
    "crd": crd,
}
every = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)
relational = pytest.mark.parametrize("loss", [losses.rkd, losses.pkt])

GOLDEN = {
    "kd_T2": lambda s, t, _: losses.kd(s, t, 2),
    "kd_T4": lambda s, t, _: losses.kd(s, t, 4),
    "dkd_a1_b8_T4": lambda s, t, labels: losses.dkd(s, t, labels, 1, 8, 4),
    "dkd_a1_b0.5_T1": lambda s, t, labels: losses.dkd(s, t, labels, 1, 0.5, 1),
    "rkd_logits_d25_a50": lambda s, t, _: losses.rkd(s, t),
    "rkd_features_d25_a50": lambda s, t, _: losses.rkd(s, t),
    "pkt_logits": lambda s, t, _: losses.pkt(s, t),
    "pkt_features": lambda s, t, _: losses.pkt(s, t),
    "hint_logits_mse": lambda s, t, _: losses.hint(s, t),
}


@pytest.mark.parametrize("key", GOLDEN)
def test_losses_equal_the_released_implementation(reference, key):
    given = np.load(reference / "golden.npz")
    golden = json.loads((reference / "golden.json").read_text())["losses"][key]
    kind = "features" if "features" in key else "logits"
    student, teacher, labels = (
        torch.from_numpy(given[f"losses/{name}"]) for name in (f"student_{kind}", f"teacher_{kind}", "labels")
    )
    # fp32 rounds PKT by some 1e-9, as much as the order of the features' columns changes it: 1e-4 of the
    # value for features
    assert GOLDEN[key](student, teacher, labels).item() == pytest.approx(golden, rel=1e-5, abs=2e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_ce_plus_beta_kd_and_its_gradient_equal_timms_task(temperature):
    student, teacher, labels = Fixed(logits(seed=1)), Fixed(logits(seed=2)), torch.arange(12) % 9
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=10.0,
        temperature=temperature,
        verbose=False,
    )
    theirs = task(torch.zeros(12, 3, 2, 2), labels)["loss"]
    (expected,) = torch.autograd.grad(theirs, student.logits)
    ours = F.cross_entropy(student.logits, labels) + 10 * losses.kd(
        student.logits, teacher.logits, temperature
    )
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
    assert losses.kd(student, teacher, 200).item() == pytest.approx(
        (gap.square().mean(1) / 2).mean().item(), rel=0.02
    )


def test_dkd_by_hand():
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.5, 0.3, 0.2]]).log()
    label = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    rest = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)
    assert losses.dkd(student, teacher, torch.tensor([0]), 2, 3, 1).item() == pytest.approx(
        2 * label + 3 * rest, rel=1e-5
    )


@pytest.mark.parametrize("temperature", [1, 4])
def test_dkd_whose_beta_is_the_teachers_doubt_of_the_label_is_kd(temperature):
    for i in range(12):
        student, teacher, label = (
            logits(1, seed=i).requires_grad_(),
            logits(1, seed=100 + i),
            torch.tensor([i % 9]),
        )
        doubt = 1 - (teacher / temperature).softmax(1)[0, i % 9].item()
        found, expected = (
            losses.dkd(student, teacher, label, 1, doubt, temperature),
            losses.kd(student, teacher, temperature),
        )
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, student)[0] for loss in (found, expected)), rtol=1e-4, atol=1e-5
        )


def test_dkd_averages_over_images():
    student, teacher, labels = logits(seed=1), logits(seed=2), torch.arange(12) % 9
    one_by_one = torch.stack(
        [losses.dkd(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], 1, 8, 4) for i in range(12)]
    )
    assert losses.dkd(student, teacher, labels, 1, 8, 4).item() == pytest.approx(
        one_by_one.mean().item(), rel=1e-5
    )


def test_dkd_of_two_classes_has_no_rest():
    student, teacher, labels = logits(c=2, seed=1), logits(c=2, seed=2), torch.arange(12) % 2
    assert losses.dkd(student, teacher, labels, 0, 8, 4).item() == 0
    assert losses.dkd(student, teacher, labels, 1, 8, 4).item() == pytest.approx(
        losses.kd(student, teacher, 4).item(), rel=1e-5
    )


def test_dkd_of_logits_that_are_sure_is_finite_where_probabilities_are_0():
    student = (1000 * logits(seed=1)).requires_grad_()
    found = losses.dkd(student, 1000 * logits(seed=2), torch.arange(12) % 9, 1, 8, 1)
    found.backward()
    assert (student.softmax(1) == 0).any() and found.isfinite() and student.grad.isfinite().all()


def test_rkd_by_hand():
    # a triangle of sides 3, 4, 5, whose cosines are 0, 3/5 and 4/5, and one of equal sides, with cosines 1/2
    student = torch.tensor([[0.0, 0, 7], [3, 0, 7], [0, 4, 7]])
    teacher = torch.eye(3, 4)
    distance = 2 * 2 * 0.25**2 / 2 / 9
    angle = 2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27
    assert losses.rkd(student, teacher, 1, 0).item() == pytest.approx(distance, rel=1e-5)
    assert losses.rkd(student, teacher, 0, 1).item() == pytest.approx(angle, rel=1e-5)
    assert losses.rkd(student, teacher).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-5)


def test_pkt_by_hand():
    student, teacher = torch.tensor([[2.0, 0], [0, 5]]), torch.ones(2, 3)
    expected = (0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))) / 2
    assert losses.pkt(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_hint_by_hand():
    assert losses.hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 2.0]])).item() == 4.5


def test_rkd_sees_neither_turns_nor_shifts_nor_scale_and_pkt_neither_turns_nor_lengths():
    student, teacher = logits(seed=1), logits(c=5, seed=2)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(3)))[0]
    lengths = torch.arange(1, 13)[:, None]
    assert losses.rkd(3 * student @ turn + 2, teacher).item() == pytest.approx(
        losses.rkd(student, teacher).item(), rel=1e-4
    )
    assert losses.pkt(lengths * student @ turn, teacher).item() == pytest.approx(
        losses.pkt(student, teacher).item(), rel=1e-4
    )
    assert losses.rkd(student @ turn, student).item() == pytest.approx(0, abs=1e-6)
    assert (
        losses.rkd(lengths * student, student).item() > 0.1 and losses.pkt(student + 2, student).item() > 1e-4
    )


@relational
def test_images_that_coincide_leave_value_and_gradient_finite_and_of_their_size(loss):
    student, teacher = logits(seed=1), logits(c=5, seed=2)
    student[3:6], teacher[5:8] = student[3], teacher[5]
    student[8:11], teacher[9:] = 0, 0
    student.requires_grad_()
    found = loss(student, teacher)
    found.backward()
    assert found.isfinite() and found > 0 and student.grad.abs().max() < 100


@relational
def test_images_that_all_coincide_leave_value_and_gradient_finite(loss):
    for point in (torch.zeros(1, 9), logits(1, seed=3)):
        student = point.repeat(12, 1).requires_grad_()
        found = loss(student, logits(c=5, seed=2))
        found.backward()
        assert (
            found.isfinite()
            and student.grad.isfinite().all()
            and loss(logits(seed=1), point.repeat(12, 1)).isfinite()
        )


@every
def test_a_batch_of_one_has_a_value_and_a_gradient(loss):
    student = logits(1, seed=1).requires_grad_()
    found = loss(student, logits(1, seed=2))
    found.backward()
    assert found.isfinite() and student.grad.isfinite().all()
    is_nothing = found == 0 and student.grad.abs().max() < 1e-12  # rounding, on some processors
    assert is_nothing == (loss in (losses.rkd, losses.pkt))


def test_rkd_of_two_images_is_zero():
    student = logits(2, seed=1).requires_grad_()
    found = losses.rkd(student, logits(2, seed=2))
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6) and student.grad.abs().max() < 1e-5


@every
def test_the_teacher_receives_no_gradient(loss):
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@every
@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_losses_are_computed_in_single_precision(loss, dtype):
    student, teacher = logits(seed=1).to(dtype), logits(seed=2).to(dtype)
    found = loss(student, teacher)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(student.float(), teacher.float()))


@every
def test_autocast_changes_no_loss(loss):
    student, teacher = logits(seed=1), logits(seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher)
    assert torch.equal(found, loss(student, teacher))


@pytest.mark.parametrize("temperature", [0, -1, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}: expected more than 0"):
        losses.kd(logits(seed=1), logits(seed=2), temperature)


@every
@pytest.mark.parametrize("shape", [(11, 9), (1, 9), (9,), (12, 9, 1)])
def test_batches_of_two_shapes_are_refused_and_not_broadcast(loss, shape):
    with pytest.raises(
        ValueError, match=rf"student has shape \(12, 9\), teacher {re.escape(str(shape))}: expected"
    ):
        loss(logits(seed=1), torch.zeros(shape))


@every
def test_an_empty_batch_is_refused(loss):
    with pytest.raises(ValueError, match=r"student has shape \(0, 9\)"):
        loss(logits(0, seed=1), logits(0, seed=2))


@pytest.mark.parametrize("name", ["kd", "dkd", "hint"])
def test_two_widths_are_refused_where_columns_are_compared(name):
    with pytest.raises(
        ValueError, match=r"student has shape \(12, 9\), teacher \(12, 8\): expected the same \(N, D\)"
    ):
        EVERY[name](logits(seed=1), logits(c=8, seed=2))


@pytest.mark.parametrize(("labels", "classes"), [((11,), 9), ((12, 9), 9), ((12,), 1)])
def test_dkd_refuses_labels_that_do_not_fit_and_a_single_class(labels, classes):
    with pytest.raises(ValueError, match=r"labels have shape .*expected \(N,\) and \(N, C\) with 2 classes"):
        losses.dkd(
            logits(c=classes, seed=1),
            logits(c=classes, seed=2),
            torch.zeros(labels, dtype=torch.long),
            1,
            8,
            4,
        )


AUXILIARY = {"dkd": {"temperature": 4.0}, "rkd": {}, "pkt": {}, "hint": {}, "crd": {"negatives": 20}}


def test_the_losses_that_a_study_may_name_are_these_and_the_decorated_ones():
    assert set(AUXILIARY) <= set(losses.AUXILIARY)
    assert losses.AUXILIARY["dkd"] is losses.dkd and losses.AUXILIARY["crd"] is losses.CRD


@pytest.mark.parametrize("name", AUXILIARY)
def test_an_auxiliary_loss_is_its_function_or_module_times_its_weight(name):
    student, teacher, index = logits(seed=1), logits(seed=2), torch.arange(12)
    spec = Loss(key=name, loss=name, weight=0.5, options=AUXILIARY[name])
    torch.manual_seed(0)
    auxiliary = losses.AuxiliaryLoss(spec, 9, 9, torch.arange(40) % 4)
    found = auxiliary(student, teacher, index % 4, index)
    expected = {
        "dkd": lambda: losses.dkd(student, teacher, index % 4, 1.0, 0.5, 4.0),
        "crd": lambda: crd(student, teacher),
    }.get(name, lambda: getattr(losses, name)(student, teacher))()
    assert found.item() == pytest.approx(0.5 * expected.item())
    assert len(list(auxiliary.parameters())) == (4 if name == "crd" else 0)


def test_a_hint_of_two_widths_is_projected_to_the_teachers():
    auxiliary = losses.AuxiliaryLoss(Loss(key="hint", loss="hint"), 9, 5, torch.arange(40) % 4)
    student, teacher = logits(seed=1), logits(c=5, seed=2)
    weight, bias = auxiliary.parameters()
    found = auxiliary(student, teacher, torch.arange(12) % 4, torch.arange(12))
    assert found.item() == pytest.approx(F.mse_loss(student @ weight.T + bias, teacher).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["kd", "dkd", "hint"])
def test_a_loss_whose_name_is_taken_is_refused(name):
    def mine(student, teacher):
        return (student - teacher).abs().mean()

    mine.__name__ = name
    before = dict(losses.AUXILIARY)
    with pytest.raises(ValueError, match=f"loss '{name}' is taken: give the one in .* another name"):
        losses.loss(mine)
    assert before == losses.AUXILIARY


def test_crd_by_hand_against_all_images_of_other_classes():
    torch.manual_seed(0)
    labels = torch.arange(40) % 4
    module = losses.CRD(9, 5, labels, width=16, temperature=0.1, momentum=0.3)
    index, student, teacher = torch.tensor([7, 30, 12]), logits(3, seed=1), logits(3, 5, seed=2)
    memory = module.memory.clone()
    found = module(student, teacher, index)
    expected = 0
    for embed, x, other in (
        (module.embed_student, student, memory[1]),
        (module.embed_teacher, teacher, memory[0]),
    ):
        scores = (F.normalize(embed(x)) @ other.T / 0.1).exp()
        seen = [[i, *(j for j in range(40) if labels[j] != labels[i])] for i in index.tolist()]
        scores = torch.stack([row[columns] for row, columns in zip(scores, seen, strict=True)])
        p = scores / (scores.mean() * 40)
        h = p / (p + 30 / 40)
        expected -= (h[:, 0].log() + (1 - h[:, 1:]).log().sum(1)).mean()
    assert module.negatives == 30
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    moved = F.normalize(0.3 * memory[0, index] + 0.7 * F.normalize(module.embed_student(student)))
    torch.testing.assert_close(module.memory[0, index], moved)
    rest = torch.arange(40)[~torch.isin(torch.arange(40), index)]
    assert torch.equal(module.memory[:, rest], memory[:, rest])


def test_crd_draws_images_of_other_classes_only_all_of_them_and_none_twice():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 30)[
        torch.randperm(100, generator=torch.Generator().manual_seed(0))
    ]
    module, index = losses.CRD(4, 4, labels, negatives=10), torch.arange(100)
    torch.manual_seed(0)
    drawn = torch.stack([module.draw(index) for _ in range(200)])
    assert drawn.shape == (200, 100, 10) and (labels[drawn] != labels[:, None]).all()
    assert (drawn.sort(2).values.diff(dim=2) > 0).all()
    for i in (0, 17, 99):
        counts = drawn[:, i].flatten().bincount(minlength=100)[labels != labels[i]]
        expected = 2000 / len(counts)
        assert (counts - expected).abs().max() < 5 * expected**0.5


def test_crd_of_few_images_has_the_negatives_that_every_image_has():
    labels = torch.tensor([0] * 300 + [1] * 150 + [2] * 50)
    module = losses.CRD(9, 9, labels)
    assert module.negatives == 200
    assert module(logits(seed=1), logits(seed=2), torch.arange(290, 302)).isfinite()


def test_crd_starts_from_memories_of_length_1_in_every_direction():
    torch.manual_seed(0)
    memory = losses.CRD(9, 5, torch.arange(500) % 4).memory
    assert memory.shape == (2, 500, 128)
    assert (
        memory.square().sum(2).mean().item() == pytest.approx(1, abs=0.01)
        and memory.mean(1).abs().max() < 0.03
    )


def test_crd_keeps_the_constants_of_its_first_batch():
    torch.manual_seed(0)
    module, index = losses.CRD(9, 9, torch.arange(40) % 4), torch.arange(12)
    module(logits(seed=1), logits(seed=2), index)
    first = module.log_z.clone()
    module(logits(seed=3), logits(seed=4), index)
    assert first.isfinite().all() and torch.equal(module.log_z, first)


def test_crd_trains_the_embeddings_of_both_sides():
    torch.manual_seed(0)
    module = losses.CRD(9, 5, torch.arange(40) % 4)
    module(logits(seed=1), logits(c=5, seed=2), torch.arange(12)).backward()
    assert sorted(name for name, _ in module.named_parameters()) == [
        "embed_student.bias",
        "embed_student.weight",
        "embed_teacher.bias",
        "embed_teacher.weight",
    ]
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_crd_continues_from_its_state_with_the_same_numbers():
    def steps(module, epochs):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        found = []
        for epoch in epochs:
            torch.manual_seed(epoch)
            found.append(module(logits(seed=epoch), logits(c=5, seed=100 + epoch), torch.arange(12) + epoch))
            optimizer.zero_grad()
            found[-1].backward()
            optimizer.step()
        return [loss.item() for loss in found]

    def module(seed):
        torch.manual_seed(seed)
        return losses.CRD(9, 5, torch.arange(40) % 4, negatives=20)

    killed, whole = module(0), steps(module(0), range(6))
    first = steps(killed, range(3))
    resumed = module(1)
    resumed.load_state_dict(killed.state_dict())
    assert first + steps(resumed, range(3, 6)) == whole
    assert steps(module(0), range(6)) == whole != steps(module(1), range(6))


@pytest.mark.parametrize("shape", [(12, 8), (12,), (11, 9)])
def test_crd_refuses_features_and_indices_that_do_not_fit(shape):
    module = losses.CRD(9, 5, torch.arange(40) % 4)
    with pytest.raises(ValueError, match=f"student has shape {re.escape(str(shape))}, teacher .*expected"):
        module(torch.zeros(shape), logits(c=5, seed=2), torch.arange(12))
    with pytest.raises(ValueError, match=r"index \(11,\): expected \(B, 9\), \(B, 5\) and \(B,\)"):
        module(logits(seed=1), logits(c=5, seed=2), torch.arange(11))


@pytest.mark.parametrize("labels", [torch.zeros(40, dtype=torch.long), torch.arange(40)[:, None]])
def test_crd_refuses_labels_of_one_class_or_of_two_dimensions(labels):
    with pytest.raises(ValueError, match=r"labels have shape .* expected \(N,\) with 2 classes or more"):
        losses.CRD(9, 5, labels)


@pytest.mark.parametrize("options", [{"negatives": 0}, {"temperature": 0}, {"momentum": 1}])
def test_crd_refuses_options_out_of_range(options):
    with pytest.raises(ValueError, match=r"expected 1 or more, more than 0, and 0 up to 1"):
        losses.CRD(9, 5, torch.arange(40) % 4, **options)


@pytest.mark.parametrize("widths", [(9, 9), (30, 70)])
@relational
def test_rkd_and_pkt_and_their_gradients_equal_torchdistills(loss, widths):
    theirs = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = logits(c=widths[0], seed=1).requires_grad_(), logits(c=widths[1], seed=2)
    peer = (
        theirs.RKDLoss("x", "x", 25, 50, "mean")
        if loss is losses.rkd
        else theirs.PKTLoss("x", "output", "x", "output")
    )
    ours, expected = loss(student, teacher), peer({"x": {"output": student}}, {"x": {"output": teacher}})
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, student)[0] for value in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5 * gradients[1].abs().max().item())


def test_crd_its_gradients_and_memories_equal_torchdistills():
    theirs = pytest.importorskip("torchdistill.losses.mid_level")
    torch.manual_seed(0)
    module = losses.CRD(9, 5, torch.arange(60) % 6, width=16, negatives=25)
    peer = theirs.CRDLoss("norm", "empty", "norm", 16, 60, 25, 60)
    peer.memory_v1, peer.memory_v2 = module.memory.clone()
    for step in range(3):
        student, teacher, index = (
            logits(seed=step).requires_grad_(),
            logits(c=5, seed=100 + step),
            torch.arange(12) + 5 * step,
        )
        torch.manual_seed(step)
        seen = torch.cat([index[:, None], module.draw(index)], dim=1)
        torch.manual_seed(step)
        ours = module(student, teacher, index)
        s, t = (
            F.normalize(embed(x))
            for embed, x in ((module.embed_student, student), (module.embed_teacher, teacher))
        )
        expected = peer(
            {"norm": {"output": s}, "empty": {"input": {"pos_idx": index, "contrast_idx": seen}}},
            {"norm": {"output": t}},
        )
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
        for found, value in zip(
            *(torch.autograd.grad(loss, [student, *module.parameters()]) for loss in (ours, expected.sum())),
            strict=True,
        ):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5 * value.abs().max().item())
        torch.testing.assert_close(module.memory, torch.stack([peer.memory_v1, peer.memory_v2]))


MASKS = {"one": [0], "the label's": [3], "all but one": [0, 1, 2, 3, 4, 5, 6, 7]}


@pytest.mark.parametrize("masked", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("side", ["teacher", "both"])
@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_a_class_that_the_teacher_masks_has_probability_0(name, side, masked):
    student, teacher = logits(seed=0), logits(seed=1)
    teacher[:, masked] = -math.inf
    if side == "both":
        student[:, masked] = -math.inf
    student.requires_grad_()
    found = EVERY[name](student, teacher)
    (gradient,) = torch.autograd.grad(found, student)
    assert found.isfinite() and gradient.isfinite().all()
    if name == "kd":
        p, log_q = (teacher / 2).softmax(1), (student / 2).log_softmax(1)
        known = torch.where(p > 0, torch.special.xlogy(p, p) - p * log_q, 0)
        assert found.item() == pytest.approx(4 * known.sum(1).mean().item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["rkd", "pkt", "hint", "crd"])
def test_a_loss_without_a_limit_refuses_a_teacher_that_is_not_finite(name, bad):
    teacher = logits(seed=1)
    teacher[2, 3] = bad
    with pytest.raises(ValueError, match="teacher is NaN or infinite"):
        EVERY[name](logits(seed=0), teacher)
