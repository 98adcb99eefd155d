r"""Distillation losses as pure functions of student and teacher logits.

    KD = T^2 * KL(softmax(teacher / T) || softmax(student / T)), summed over classes, mean over the batch   (Hinton et al. 2015)

The T^2 keeps the gradient's size independent of T.  A student's total loss is CE + beta * KD.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation of logits (N, C) and (N, C) -> scalar, nats times T^2; 0 where both agree.

    The teacher's logits receive no gradient.  Raises ValueError where shapes differ or the temperature is not positive.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student logits have shape {tuple(student.shape)}, teacher logits {tuple(teacher.shape)}: expected the same (N, C)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: expected more than 0")
    log_p = F.log_softmax(student.float() / temperature, dim=1)
    log_q = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2
