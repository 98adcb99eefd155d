r"""Distillation losses between a student's and its teacher's logits or features of N images.

    KD    KL of softened predictions, times T^2 (Hinton et al. 2015)
    DKD   KD in two parts, the label's class against the rest, and the rest (Zhao et al. 2022)
    RKD   difference of the distances and of the angles between the images (Park et al. 2019)
    PKT   KL of each image's similarities to all images (Passalis and Tefas 2018)
    hint  mean squared difference (Romero et al. 2015)
    CRD   an image's student and teacher told from those of other classes (Tian et al. 2020)

A student's total loss is CE + beta * KD, and one of the
others, an *auxiliary loss*, may be added.  RKD, PKT and hint are defined on features by their papers; the
released code of arXiv 2605.15689 feeds them logits; they take either.

Every loss is a scalar in fp32 for inputs of any precision, under autocast too.  The teacher receives no
gradient.  Raises ValueError where shapes do not fit.  KD and DKD take logits of -inf, as of classes that a
teacher masks, for probabilities of 0.  The others have no limit there: of a teacher that is NaN or infinite
they raise ValueError on a CPU; a GPU is not waited for, and `training.fit` ends with its epoch.

An auxiliary loss of one's own is one function in a plugin file that the study names:

    from fgkd.distillation.losses import loss

    @loss
    def cubic(student, teacher, labels, *, power=3.0):
        return (student - teacher).abs().pow(power).mean()
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgkd.study import Loss

AUXILIARY: dict[str, Callable[..., Tensor] | type[nn.Module]] = {}  # by the name that a study gives it
LOWEST = torch.finfo(torch.float32).min  # a log-probability of 0 that 0 can be multiplied with

kl_div = functools.partial(F.kl_div, reduction="batchmean", log_target=True)  # of log-probabilities (N, C)


def loss(entry):
    """Register an auxiliary loss under its name, a class under its name in lower case.

    A function takes `student` and `teacher`, (B, D1) and (B, D2), and by name, where it has them, `labels`
    (B,) and `index` (B,), the images' places in the training split.  A module, for a loss with weights or a
    memory, takes the same in `forward`, and in `__init__` the widths D1 and D2 and the labels (N,) of all
    training images.  Each parameter with a default is an option that a study may set.
    Raises ValueError for a name that another loss has.
    """
    name = entry.__name__.lower() if isinstance(entry, type) else entry.__name__
    if name == "kd" or AUXILIARY.get(name, entry).__module__ != entry.__module__:
        raise ValueError(f"loss '{name}' is taken: give the one in {entry.__module__} another name")
    AUXILIARY[name] = entry
    return entry


class AuxiliaryLoss(nn.Module):
    """An auxiliary loss of a study, times its weight, with whatever weights and memory it has."""

    def __init__(self, spec: Loss, student_width: int, teacher_width: int, labels: Tensor):
        """Build it for logits or features of two widths, and labels (N,) of all training images."""
        super().__init__()
        entry = AUXILIARY[spec.loss]
        if isinstance(entry, type):
            self.loss = entry(student_width, teacher_width, labels, **spec.options)
            parameters = inspect.signature(self.loss.forward).parameters
        else:
            self.loss = functools.partial(entry, **spec.options)
            parameters = inspect.signature(entry).parameters
        self.weight = spec.weight
        self.applies_to = spec.applies_to
        self.inputs = {"labels", "index"} & parameters.keys()

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """The weighted loss of (B, D1) and (B, D2); labels and index: (B,) -> scalar."""
        given = {"labels": labels, "index": index}
        return self.weight * self.loss(student, teacher, **{name: given[name] for name in self.inputs})


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation of logits (N, C), in nats times T^2; 0 where both agree.

        KD = T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch

    The T^2 keeps the gradient's size independent of the temperature T, more than 0.
    """
    student_log_p, teacher_log_p = _softened(student, teacher, temperature)
    return kl_div(student_log_p, teacher_log_p) * temperature**2


@loss
def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """Decoupled knowledge distillation, in nats times T^2.

        DKD = T^2 * (alpha * KL(b_teacher || b_student) + beta * KL(r_teacher || r_student))

    b: the probabilities (label's class, all others together); r: those of the other classes, made to add up
    to 1.  KD is alpha = 1 and beta = 1 - the teacher's probability of the label.  The mean is over images
    one by one, so a batch of one is like any other.

    student, teacher: logits (N, C), of two classes or more; labels: (N,).
    alpha, beta, temperature: 1, 8 and 4 in its paper; the defaults are those of the released code of
    arXiv 2605.15689.
    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation".
    """
    student_log_p, teacher_log_p = _softened(student, teacher, temperature)
    if labels.shape != student.shape[:1] or student.shape[1] < 2:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, logits {tuple(student.shape)}: "
            "expected (N,) and (N, C) with 2 classes or more"
        )
    student_target, student_rest = _decoupled(student_log_p, labels)
    teacher_target, teacher_rest = _decoupled(teacher_log_p, labels)
    target = kl_div(student_target, teacher_target)
    rest = kl_div(student_rest, teacher_rest)
    return (alpha * target + beta * rest) * temperature**2


@loss
def rkd(
    student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Relational knowledge distillation of logits or features (N, D1) and (N, D2).

        RKD = distance_weight * mean_ij H(d_ij - d'_ij) + angle_weight * mean_ijk H(cos_ijk - cos'_ijk)

    d: distances between images over their mean; cos_ijk: of the angle at image i between j and k; H: Huber's
    loss, delta 1.  Turning, moving or scaling either side changes nothing.  Images that coincide have
    distance 0 and cosine 0 and pull at nothing.  0 without gradient for N of 1 or 2: one pair has no
    relation.  Memory: O(N^3 + N^2 D).
    Source: Park et al. 2019, "Relational Knowledge Distillation"; the means run over all N^2 and N^3 places,
    as in its code.  Its paper applies it to features, the released code of arXiv 2605.15689 to logits.
    """
    student, teacher = _to_fp32(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        student_distance, student_angle = _relations(student)
        teacher_distance, teacher_angle = _relations(teacher)
    distance = F.smooth_l1_loss(student_distance, teacher_distance)
    angle = F.smooth_l1_loss(student_angle, teacher_angle)
    return distance_weight * distance + angle_weight * angle


@loss
def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer of logits or features (N, D1), (N, D2), in nats over N.

        PKT = mean_ij t_ij * log((t_ij + e) / (s_ij + e)),   e = 1e-7
        s_ij = (1 + cos_ij) / sum_k (1 + cos_ik),   t_ij the same of the teacher

    Scaling any row changes nothing.  0 without gradient for a batch of one.
    Source: Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer";
    j = i is counted and the sum divided by N^2, as in its code.  Its paper applies it to features, the
    released code of arXiv 2605.15689 to logits.
    """
    student, teacher = _to_fp32(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        s = _similarities(student)
        t = _similarities(teacher)
    return (t * ((t + 1e-7) / (s + 1e-7)).log()).mean()


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of student (N, D) minus teacher (N, D), logits or features.

    A batch of one is like any other.
    Source: Romero et al. 2015, "FitNets", with features and a layer that maps the student's to the teacher's
    width; the released code of arXiv 2605.15689 applies it to logits, which need none.
    """
    return F.mse_loss(*_to_fp32(student, teacher, same_width=True))


@loss
class Hint(nn.Module):
    """`hint` behind a linear projection to the teacher's width where the two differ."""

    def __init__(self, student_width: int, teacher_width: int, labels: Tensor):
        super().__init__()
        same = student_width == teacher_width
        self.projection = nn.Identity() if same else nn.Linear(student_width, teacher_width)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return hint(self.projection(student), teacher)


@loss
class CRD(nn.Module):
    r"""Contrastive representation distillation: features of student and teacher -> scalar, nats.

        CRD = -mean_i sum over both sides of [log h(i) + sum_k log(1 - h(k))]
        h(j) = p_j / (p_j + K / N),   p_j = exp(u . m_j / T) / Z

    u: the embedding of image i by one side, of length 1; m_j: the other side's memory of image j; k: the K
    negatives; Z: one constant a side, taken from the first batch, that makes p average 1 / N.
    Source: Tian et al. 2020, "Contrastive Representation Distillation", without the 1e-7 that its code adds
    to denominators; memories are compared before the batch moves them.

    Both embeddings are parameters, to be trained with the student's.  Memories start from torch's random
    numbers and are buffers, as is Z: a training resumes from `state_dict` as if it had not stopped.
    """

    labels: Tensor
    memory: Tensor
    log_z: Tensor

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
        """Make embeddings for features (or logits) of two widths, and memories of length 1, about.

        labels: (N,) of all training images, on the module's device.
        width: of the embeddings.
        negatives: K, at most the images of other classes that every image has; the default is its paper's,
        the released code of arXiv 2605.15689 has 4,096.
        temperature: T.
        momentum: the share of an image's memory that outlasts a visit.
        """
        super().__init__()
        if not (negatives >= 1 and temperature > 0 and 0 <= momentum < 1):
            raise ValueError(
                f"negatives are {negatives}, temperature {temperature}, momentum {momentum}: "
                "expected 1 or more, more than 0, and 0 up to 1"
            )
        counts = labels.unique(return_counts=True)[1]
        if labels.ndim != 1 or len(counts) < 2:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and {len(counts)} classes: "
                "expected (N,) with 2 classes or more"
            )
        self.negatives = min(negatives, len(labels) - int(counts.max()))
        self.temperature = temperature
        self.momentum = momentum
        self.embed_student = nn.Linear(student_width, width)
        self.embed_teacher = nn.Linear(teacher_width, width)
        # Uniform on (-a, a) has variance a^2 / 3: `width` such numbers have length 1 for a^2 = 3 / width.
        memory = (torch.rand(2, len(labels), width) * 2 - 1) * math.sqrt(3 / width)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("memory", memory)
        self.register_buffer("log_z", torch.full((2,), -torch.inf))
        self.to(labels.device)

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """The loss of features (B, D1) and (B, D2) of different images; moves their memories.

        index: (B,), the images' places in the training split.
        Memory: O(B N).  A batch of one is like any other.
        """
        student, teacher = _to_fp32(student, teacher)
        widths = self.embed_student.in_features, self.embed_teacher.in_features
        if (student.shape[1], teacher.shape[1]) != widths or index.shape != student.shape[:1]:
            raise ValueError(
                f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}, "
                f"index {tuple(index.shape)}: expected (B, {widths[0]}), (B, {widths[1]}) and (B,)"
            )
        index = index.to(self.labels.device)
        candidates = torch.cat([index[:, None], self.draw(index)], dim=1)
        with torch.autocast(index.device.type, enabled=False):
            student_direction, _ = _polar(self.embed_student(student))
            teacher_direction, _ = _polar(self.embed_teacher(teacher))
            u = torch.stack([student_direction, teacher_direction])
            scores = (u @ self.memory.flip(0).mT / self.temperature).gather(2, candidates.expand(2, -1, -1))
        n = len(self.labels)
        with torch.no_grad():
            # Z = N * mean of exp(score), fixed by the first batch.
            log_z = scores.flatten(1).logsumexp(1) - math.log(candidates.numel() / n)
            self.log_z.copy_(torch.where(self.log_z.isinf(), log_z, self.log_z))
            self.memory[:, index] = _polar(self.momentum * self.memory[:, index] + (1 - self.momentum) * u)[0]
        # h = p / (p + K / N) is the logistic function of log p - log(K / N).
        odds = scores - self.log_z[:, None, None] - math.log(self.negatives / n)
        return -(F.logsigmoid(odds[..., 0]) + F.logsigmoid(-odds[..., 1:]).sum(2)).mean(1).sum()

    def draw(self, index: Tensor) -> Tensor:
        """Draw K images of other classes for each of the images `index` (B,), none twice: (B, K)."""
        same_class = self.labels[index][:, None] == self.labels
        rank = torch.rand(same_class.shape, device=same_class.device).masked_fill_(same_class, -1)
        return rank.topk(self.negatives, dim=1, sorted=False).indices


def _to_fp32(
    student: Tensor, teacher: Tensor, *, same_width: bool = False, finite: bool = True
) -> tuple[Tensor, Tensor]:
    """Return both in fp32, the teacher detached, once their shapes fit.

    finite: whether the teacher has to be.
    """
    fit = student.ndim == teacher.ndim == 2 and 0 < len(student) == len(teacher)
    if not fit or (same_width and student.shape != teacher.shape):
        two_widths = "(N, D1) and (N, D2)"
        one_width = "the same (N, D); rkd, pkt and CRD take two widths"
        raise ValueError(
            f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}: "
            f"expected {one_width if same_width else two_widths}"
        )
    if finite and teacher.device.type == "cpu" and not teacher.isfinite().all():
        raise ValueError("teacher is NaN or infinite in places: expected finite logits or features")
    return student.float(), teacher.detach().float()


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, C) of both at a temperature."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: expected more than 0")
    student, teacher = _to_fp32(student, teacher, same_width=True, finite=False)
    student_log_p = F.log_softmax(student / temperature, dim=1)
    teacher_log_p = F.log_softmax(teacher / temperature, dim=1)
    return student_log_p.clamp(min=LOWEST), teacher_log_p.clamp_(min=LOWEST)


def _decoupled(log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (label's class, all others together) (N, 2), and among these (N, C).

    The latter have 0 at the label's class, which adds nothing to a KL.
    """
    is_label = F.one_hot(labels, log_p.shape[1]).bool()
    others = log_p.masked_fill(is_label, -torch.inf)
    label_log_p = log_p.masked_fill(~is_label, 0).sum(1)
    target = torch.stack([label_log_p, others.logsumexp(1)], dim=1)
    return target, others.log_softmax(1).masked_fill(is_label, 0)


def _polar(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (..., D) and lengths (..., 1).

    The direction of 0 is 0, with a gradient no larger than elsewhere.
    """
    squares = vectors.square().sum(-1, keepdim=True)
    zero = squares == 0
    lengths = squares.masked_fill(zero, 1).sqrt()
    return vectors / lengths, lengths.masked_fill(zero, 0)


def _relations(points: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean (N, N), and cosines of the angle at i between j and k (N, N, N)."""
    directions, lengths = _polar(points - points[:, None])
    mean = lengths.sum() / max(1, len(points) * (len(points) - 1))
    return lengths[..., 0] / mean.masked_fill(mean == 0, 1), directions @ directions.mT


def _similarities(points: Tensor) -> Tensor:
    """Each image's cosine similarities to all, shifted to [0, 1], of sum 1: (N, N)."""
    directions, _ = _polar(points)
    kernel = (directions @ directions.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
