r"""How well a pretrained network suits new labels, before anything is trained on them: LogME, LEEP and NCE.

LogME needs its features.  LEEP and NCE need the predictions of its *own* head, over the classes that it was
pretrained on.  Fed with a fine-tuned teacher's predictions of the target classes they can be computed and
mean something else: LEEP is then the teacher's log-likelihood of the labels after a soft confusion matrix,
and NCE what that matrix leaves open, both near 0 for every teacher that has learnt its training images.  They
are not defined for a network whose head was lost or that has none.

All functions compute in fp64 and take tensors or arrays; labels are integers.  The larger, the better is
claimed of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fgkd.metrics.chunks import as_integers


def logme(features, labels) -> float:
    """Log evidence of a label per sample and class, nats (You et al. 2021); larger is better.

    For each class y is 1 on its samples and 0 elsewhere, y = F w + noise with w ~ N(0, 1/alpha) and noise
    ~ N(0, 1/beta), and log p(y) / N is maximised over alpha and beta; the mean over the classes there are.
    With ratio = alpha / beta and Q the least regularised error, beta = N / Q, which leaves a search over the
    ratio alone: a grid of e^-18 times F's smallest to e^18 times its largest squared singular value but 0,
    refined.  Features that fit the labels exactly have no finite evidence and get that of the grid's end.
    The level depends on N and the classes: compare teachers on the same samples.  N D^2 or N^2 D operations,
    whichever are fewer.

    features: (N, D)
    labels: (N,)

    >>> features = [[2.0], [1.0], [-1.0], [-2.0]]
    >>> round(logme(features, [0, 0, 1, 1]), 3), round(logme(features, [0, 1, 0, 1]), 3)
    (-1.03, -1.072)
    """
    features, labels = _as_samples(features, labels, "features")
    n = len(features)
    targets = (labels[:, None] == labels.unique()).double()
    eigenvalues, squares = _project(features, targets)
    left = (targets.sum(0) - squares.sum(0)).clamp(min=0)

    def evidence(log_ratio: Tensor) -> Tensor:
        ratio = log_ratio.exp()
        error = (left + (squares * ratio / (eigenvalues + ratio)).sum(0)).clamp(min=1e-12)
        log_det = (log_ratio - (eigenvalues + ratio).log()).sum(0)
        return (log_det - n * ((2 * math.pi / n * error).log() + 1)) / (2 * n)

    highest = eigenvalues.max().log()
    span = int((highest - eigenvalues[eigenvalues > 0].min().log()).ceil())
    grid = highest + torch.arange(-18 - span, 19, dtype=torch.float64, device=features.device)
    best = grid[torch.stack([evidence(point) for point in grid]).argmax(0)]
    for halving in range(1, 31):
        around = torch.stack([best, best - 0.5**halving, best + 0.5**halving])
        chosen = torch.stack([evidence(point) for point in around]).argmax(0, keepdim=True)
        best = around.gather(0, chosen)[0]
    return evidence(best).mean().item()


def leep(probabilities, labels) -> float:
    """Mean log-likelihood of the labels through the source classes, nats, at most 0.

    A sample's likelihood is sum_z q_z p(label | z), where p(label | z) is q_z's share that falls on samples
    of that label.  Larger is claimed better (Nguyen et al. 2020).

    probabilities: (N, Z) the pretrained head's softmax, rows that sum to 1
    labels: (N,)

    >>> round(leep([[1.0, 0.0], [0.0, 1.0]], [0, 1]), 4), round(leep([[0.5, 0.5], [0.5, 0.5]], [0, 1]), 4)
    (0.0, -0.6931)
    """
    probabilities, labels = _as_samples(probabilities, labels, "probabilities")
    one = probabilities.new_ones(())
    if (probabilities < 0).any() or not torch.allclose(probabilities.sum(1), one, atol=1e-3):
        raise ValueError(
            "probabilities are negative or do not sum to 1 in each row: expected a softmax, not logits"
        )
    classes, index = labels.unique(return_inverse=True)
    joint = probabilities.new_zeros(len(classes), probabilities.shape[1]).index_add_(0, index, probabilities)
    given_source = joint / joint.sum(0).clamp(min=1e-300)
    likelihoods = [q @ given_source[label] for q, label in zip(probabilities, index, strict=True)]
    return torch.stack(likelihoods).log().mean().item()


def nce(source, labels) -> float:
    """Negative conditional entropy -H(label | source class), nats, at most 0.

    What LEEP becomes for probabilities of 0 and 1.  Larger is claimed better (Tran et al. 2019).

    source: (N,) the class that the pretrained head predicts for each sample
    labels: (N,)

    >>> round(nce([0, 0, 1, 1], [0, 1, 2, 2]), 4)
    -0.3466
    """
    source = torch.as_tensor(source)
    if source.ndim != 1:
        raise ValueError(
            f"source has shape {tuple(source.shape)}: expected (N,), the class named for each sample"
        )
    return leep((source[:, None] == source.unique()).double(), labels)


def _project(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values s^2 of F (R, 1), and (u' y)^2 of their left vectors and targets (R, C)."""
    wide = len(features) < features.shape[1]
    eigenvalues, basis = torch.linalg.eigh(features @ features.T if wide else features.T @ features)
    if eigenvalues.max() <= 0:
        raise ValueError(
            "features are 0 for every sample: expected those of a network that tells images apart"
        )
    is_zero = (eigenvalues <= 1e-13 * eigenvalues.max())[:, None]  # but for rounding
    eigenvalues = eigenvalues[:, None].masked_fill(is_zero, 0)
    if wide:
        return eigenvalues, (basis.T @ targets) ** 2
    squares = (basis.T @ (features.T @ targets)) ** 2 / eigenvalues
    return eigenvalues, squares.masked_fill(is_zero, 0)


def _as_samples(values, labels, name: str) -> tuple[Tensor, Tensor]:
    """Values (N, D) in fp64 and labels (N,).  Raises ValueError for other ones."""
    values = torch.as_tensor(values).detach().double()
    labels = as_integers(labels, values.device)
    if values.ndim != 2 or not len(values) or labels.shape != values.shape[:1]:
        shapes = f"{name} have shape {tuple(values.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes}: expected (N, D) and (N,), a label a sample")
    bad = (~torch.isfinite(values)).any(1).sum().item()
    if bad:
        raise ValueError(
            f"{name} of {bad} of {len(values)} samples are NaN or infinite: "
            "check that the network's training did not diverge"
        )
    return values, labels
