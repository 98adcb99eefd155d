r"""Distillation losses of what a student and its teacher say of the same N images: logits (N, C) or pooled features (N, D).

    KD   = T^2 * KL(softmax(teacher / T) || softmax(student / T)), summed over classes, mean over the batch     (Hinton et al. 2015)
    DKD  = KD in two parts, the label's class against the rest and the rest among themselves, weighted apart      (Zhao et al. 2022)
    RKD  = how far the distances and the angles between the images differ                                         (Park et al. 2019)
    PKT  = KL of each image's similarities to all images                                                   (Passalis and Tefas 2018)
    hint = mean square of the difference                                                                        (Romero et al. 2015)
    CRD  = an image's student and teacher told from those of other classes, with a memory of all images           (Tian et al. 2020)

The T^2 keeps the gradient's size independent of T.  A student's total loss is CE + beta * KD, and one of the others may be added.
RKD, PKT and hint are defined on features by their papers; the released code of arXiv 2605.15689 feeds them logits; they take either.

Every loss is a scalar in fp32 whatever it is given, under autocast too.  The teacher receives no gradient and need not be in
train mode.  Raises ValueError where shapes do not fit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation of logits (N, C) and (N, C) -> scalar, nats times T^2; 0 where both agree.

    The teacher's logits receive no gradient.  Raises ValueError where shapes differ or the temperature is not positive.
    """
    student, teacher = _softened(student, teacher, temperature)
    return _kl(student, teacher) * temperature**2


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Decoupled knowledge distillation of logits (N, C >= 2) and (N, C) with labels (N,) -> scalar, nats times T^2.

        DKD = T^2 * (alpha * KL(b_teacher || b_student) + beta * KL(r_teacher || r_student)), mean over the batch

    b: the probabilities (label's class, all others together); r: those of the other classes, made to add up to 1.  KD is alpha = 1
    and beta = 1 - the teacher's probability of the label.  Images count one by one, so a batch of one is like any other.
    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation" (alpha 1, beta 8, T 4; the released code of arXiv 2605.15689: 1, 0.5, 1).
    """
    student, teacher = _softened(student, teacher, temperature)
    if labels.shape != student.shape[:1] or student.shape[1] < 2:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, logits {tuple(student.shape)}: expected (N,) and (N, C) with 2 classes or more"
        )
    (target, rest), (target_teacher, rest_teacher) = _decoupled(student, labels), _decoupled(teacher, labels)
    return (alpha * _kl(target, target_teacher) + beta * _kl(rest, rest_teacher)) * temperature**2


def rkd(
    student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Relational knowledge distillation of logits or features (N, D1) and (N, D2) -> scalar.

        RKD = distance_weight * mean_ij H(d_ij - d'_ij) + angle_weight * mean_ijk H(cos_ijk - cos'_ijk)

    d: distances between images over their mean; cos_ijk: of the angle at image i between j and k; H: Huber's loss, delta 1.
    Turning, moving or scaling either side changes nothing.  Images that coincide have distance 0 and cosine 0 and pull at nothing.
    0 without gradient for N of 1 or 2: one pair has no relation.  Memory: O(N^3 + N^2 D).  Source: Park et al. 2019, "Relational
    Knowledge Distillation"; the means run over all N^2 and N^3 places, as in its code.  Its paper applies it to features, the released
    code of arXiv 2605.15689 to logits.
    """
    student, teacher = _single(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        (distance, angle), (distance_teacher, angle_teacher) = _relations(student), _relations(teacher)
    return distance_weight * F.smooth_l1_loss(distance, distance_teacher) + angle_weight * F.smooth_l1_loss(
        angle, angle_teacher
    )


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer of logits or features (N, D1) and (N, D2) -> scalar, nats over N.

        PKT = mean_ij t_ij * log((t_ij + e) / (s_ij + e)),   s_ij = (1 + cos_ij) / sum_k (1 + cos_ik),   t_ij from the teacher, e = 1e-7

    Scaling any row changes nothing.  0 without gradient for a batch of one.  Source: Passalis and Tefas 2018, "Learning Deep
    Representations with Probabilistic Knowledge Transfer"; j = i is counted and the sum divided by N^2, as in its code.  Its paper applies
    it to features, the released code of arXiv 2605.15689 to logits.
    """
    student, teacher = _single(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        s, t = _similarities(student), _similarities(teacher)
    return (t * ((t + 1e-7) / (s + 1e-7)).log()).mean()


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of student (N, D) minus teacher (N, D), logits or features -> scalar; a batch of one is like any other.

    Source: Romero et al. 2015, "FitNets", with features and a layer that maps the student's to the teacher's width; the released code
    of arXiv 2605.15689 applies it to logits, which need none.
    """
    return F.mse_loss(*_single(student, teacher, same_width=True))


class CRD(nn.Module):
    r"""Contrastive representation distillation: features of student and teacher -> scalar, nats.

        CRD = -mean_i sum over both sides of [log h(i) + sum_k log(1 - h(k))],   h(j) = p_j / (p_j + K / N),   p_j = exp(u . m_j / T) / Z

    u: the embedding of image i by one side, of length 1; m_j: the other side's memory of image j; k: the K negatives; Z: one constant a
    side, taken from the first batch, that makes p average 1 / N.  Source: Tian et al. 2020, "Contrastive Representation Distillation",
    without the 1e-7 that its code adds to denominators; memories are compared before the batch moves them.

    student_width, teacher_width: of the features (or logits); labels: (N,) of all training images, on the
    device that the module shall be on; width: of the embeddings; negatives: K, at most the images of other
    classes that every image has (the default is its paper's; the released code of arXiv 2605.15689 has
    4,096); temperature: T; momentum: the share of an image's memory that outlasts a visit.  Both embeddings
    are parameters, to be trained with the student's.  Memories start from torch's random numbers and are
    buffers, as is Z: a training goes on from `state_dict` as if it had not stopped.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        labels: Tensor,
        *,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        if not (negatives >= 1 and temperature > 0 and 0 <= momentum < 1):
            raise ValueError(
                f"negatives are {negatives}, temperature {temperature}, momentum {momentum}: expected 1 or more, more than 0, and 0 up to 1"
            )
        counts = labels.unique(return_counts=True)[1]
        if labels.ndim != 1 or len(counts) < 2:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and {len(counts)} classes: expected (N,) with 2 classes or more"
            )
        self.negatives = min(negatives, len(labels) - counts.max().item())
        self.temperature, self.momentum = temperature, momentum
        self.embed_student, self.embed_teacher = (
            nn.Linear(student_width, width),
            nn.Linear(teacher_width, width),
        )
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer(
            "memory", (torch.rand(2, len(labels), width) * 2 - 1) * math.sqrt(3 / width)
        )  # of length 1, about
        self.register_buffer("log_z", torch.full((2,), -torch.inf))
        self.to(labels.device)

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """The loss of features (B, Ds) and (B, Dt) of the images `index` (B,), each there once; their memories are moved.

        Memory: O(B N).  A batch of one is like any other.
        """
        student, teacher = _single(student, teacher)
        widths = self.embed_student.in_features, self.embed_teacher.in_features
        if (student.shape[1], teacher.shape[1]) != widths or index.shape != student.shape[:1]:
            raise ValueError(
                f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}, index {tuple(index.shape)}: "
                f"expected (B, {widths[0]}), (B, {widths[1]}) and (B,)"
            )
        index = index.to(self.labels.device)
        seen = torch.cat([index[:, None], self.draw(index)], dim=1)
        with torch.autocast(index.device.type, enabled=False):
            u = torch.stack([_polar(self.embed_student(student))[0], _polar(self.embed_teacher(teacher))[0]])
            scores = (u @ self.memory.flip(0).mT / self.temperature).gather(2, seen.expand(2, -1, -1))
        with torch.no_grad():
            n = len(self.labels)
            log_z = scores.flatten(1).logsumexp(1) - math.log(seen.numel() / n)
            self.log_z.copy_(torch.where(self.log_z.isinf(), log_z, self.log_z))
            self.memory[:, index] = _polar(self.momentum * self.memory[:, index] + (1 - self.momentum) * u)[0]
        odds = scores - self.log_z[:, None, None] - math.log(self.negatives / n)
        return -(F.logsigmoid(odds[..., 0]) + F.logsigmoid(-odds[..., 1:]).sum(2)).mean(1).sum()

    def draw(self, index: Tensor) -> Tensor:
        """Negatives of the images `index` (B,): (B, K) images of other classes, none twice, from torch's random numbers."""
        own = self.labels[index][:, None] == self.labels
        return (
            torch.rand(own.shape, device=own.device)
            .masked_fill_(own, -1)
            .topk(self.negatives, dim=1, sorted=False)
            .indices
        )


def _single(student: Tensor, teacher: Tensor, *, same_width: bool = False) -> tuple[Tensor, Tensor]:
    """Both in fp32, the teacher's cut from its graph, once their shapes fit."""
    fit = student.ndim == teacher.ndim == 2 and 0 < len(student) == len(teacher)
    if not fit or (same_width and student.shape != teacher.shape):
        expected = (
            "the same (N, D); rkd, pkt and CRD take two widths" if same_width else "(N, D1) and (N, D2)"
        )
        raise ValueError(
            f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}: expected {expected}"
        )
    return student.float(), teacher.detach().float()


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, C) of both."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: expected more than 0")
    student, teacher = _single(student, teacher, same_width=True)
    return F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _decoupled(log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (label's class, others) (N, 2), and of each other class among the others (N, C), with 0 at the label's."""
    own = F.one_hot(labels, log_p.shape[1]).bool()
    others = log_p.masked_fill(own, -torch.inf)
    return torch.stack([log_p.masked_fill(~own, 0).sum(1), others.logsumexp(1)], dim=1), others.log_softmax(
        1
    ).masked_fill(own, 0)


def _polar(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (..., D) and lengths (..., 1); the direction of 0 is 0, with a gradient no larger than elsewhere."""
    squares = vectors.square().sum(-1, keepdim=True)
    zero = squares == 0
    lengths = squares.masked_fill(zero, 1).sqrt()
    return vectors / lengths, lengths.masked_fill(zero, 0)


def _relations(points: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean (N, N), and the cosine of the angle at each point between each two (N, N, N)."""
    directions, lengths = _polar(points - points[:, None])
    mean = lengths.sum() / max(1, len(points) * (len(points) - 1))
    return lengths[..., 0] / mean.masked_fill(mean == 0, 1), directions @ directions.mT


def _similarities(points: Tensor) -> Tensor:
    directions, _ = _polar(points)
    kernel = (directions @ directions.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
