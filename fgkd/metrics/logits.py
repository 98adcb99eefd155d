r"""Metrics of a teacher's logits, one value per sample, and their summary.

With P_1 >= P_2 >= ... a sample's logits in falling order and q_1 >= q_2 >= ... its softmax at T = 1:

    R12     = P_1 / P_2                     (arXiv 2605.15689; mean over samples; claim: smaller is better)
    SSP     = std(q_2, ..., q_4), unbiased  (spread of secondary probabilities; claim: larger is better)
    margin  = P_1 - P_2                     (shift invariant, unlike R12)
    entropy = -sum_c q_c log q_c            (nats)

Raw logits may be shifted by a constant without any change to softmax, and R12 changes: it is a property of
how the network was trained, not of its probabilities.  It is infinite at P_2 = 0 and negative below;
`summarize` says for how many samples.

All functions take (N, C) tensors or arrays, compute in fp64 and return fp64 tensors (N,) on the same device.
They go through the samples some hundreds at a time, so that intermediate results stay in a core's cache and
take little memory next to the input.

METRICS also lists rivals that need more than logits: labels (the bank has them), the pretrained network (see
`transfer`) and the student.  Metrics of plugins (see `claims.metric`) are computed with ours in
`all_samples`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fgkd.metrics.claims import PLUGIN_METRICS

LABELLED = ("nll", "confidence", "correct")


def ratio12(logits) -> Tensor:
    """P_1 / P_2 of raw logits (N, C >= 2) -> (N,).  Scale invariant, not shift invariant.

    inf at P_2 = 0, negative at P_2 < 0 < P_1, NaN where both are 0.

    >>> ratio12([[6.0, 4.0, 1.0], [3.0, 3.0, 0.0]]).tolist()
    [1.5, 1.0]
    """
    return _map(logits, lambda chunk: chunk.ratio(1, 2), top=2)


def ratio12_centred(logits) -> Tensor:
    """R12 of logits (N, C >= 2) less their mean over classes -> (N,).

    Scale and shift invariant; infinite or negative where all classes but the first lie at or below the mean.

    >>> ratio12_centred([[6.0, 4.0, 1.0, 1.0], [106.0, 104.0, 101.0, 101.0]]).tolist()
    [3.0, 3.0]
    """
    return _map(logits, _Chunk.centred, top=2)


def margin(logits) -> Tensor:
    """P_1 - P_2 of raw logits (N, C >= 2) -> (N,), 0 at a tie.

    >>> margin([[6.0, 4.0, 1.0]]).tolist()
    [2.0]
    """
    return _map(logits, _Chunk.margin, top=2)


def entropy(logits) -> Tensor:
    """Entropy of the softmax in nats, (N, C >= 2) -> (N,): 0 when certain, log C when uniform.

    >>> round(entropy([[0.0, 0.0, 0.0, 0.0]]).item(), 4)
    1.3863
    """
    return _map(logits, _Chunk.entropy, top=2)


def secondary_std(logits, k: int = 3) -> Tensor:
    """Unbiased std of the k probabilities after the largest, (N, C) -> (N,); NaN for C <= k.

    >>> round(secondary_std([[3.0, 2.0, 1.0, 0.0]]).item(), 6)
    0.105995
    """
    if k < 2:
        raise ValueError(f"k is {k}: the spread of secondary probabilities needs at least 2 of them")
    return _map(logits, lambda chunk: chunk.secondary_std(k), top=k + 1)


def accuracy(logits, labels) -> float:
    """Share of samples whose largest logit, of equal ones the first, is the label's.

    logits: (N, C)
    labels: (N,)
    """
    return _map(logits, _Chunk.correct, labels, top=2).mean().item()


def calibration_error(confidence, correct, *, bins: int = 15) -> float:
    """Expected calibration error, in [0, 1] (Guo et al. 2017).

    The mean over samples of the gap between their bin's accuracy and its confidence.

    confidence: (N,) the largest softmax probability
    correct: (N,) whether its class is the label
    bins: number of bins of equal width, each with its upper edge

    >>> round(calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]), 4)
    0.1
    """
    confidence = torch.as_tensor(confidence).double()
    correct = torch.as_tensor(correct).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    bin_index = torch.bucketize(confidence, edges)
    gaps = confidence.new_zeros(bins).index_add_(0, bin_index, correct - confidence)
    return gaps.abs().sum().item() / len(confidence)


def samples(logits) -> dict[str, Tensor]:
    """Every built-in metric of logits (N, C): name -> (N,)."""
    return _map_all(logits, _Chunk.plain)


def labelled_samples(logits, labels) -> dict[str, Tensor]:
    """NLL, confidence and correctness: logits (N, C), labels (N,) -> name -> (N,)."""
    return _map_all(logits, _Chunk.labelled, labels, top=2)


def all_samples(logits, labels) -> dict[str, Tensor]:
    """All built-in and plugins' metrics, `labelled_samples` and `nonpositive`: name -> (N,)."""
    return _map_all(logits, lambda chunk: chunk.counted() | chunk.labelled() | chunk.of_plugins(), labels)


def summarize(logits, labels=None) -> dict[str, float]:
    """Means over samples of every built-in metric, with R12's median and its share of P_2 <= 0.

    logits: (N, C)
    labels: (N,) adds `accuracy`

    Raises ValueError for NaN, infinity, an empty batch or a single class.

    >>> summary = summarize([[6.0, 4.0, 1.0, 0.5], [2.0, -1.0, -1.0, -2.0]])
    >>> summary["ratio12"], summary["ratio12_median"], summary["ratio12_nonpositive"]
    (-0.25, -0.25, 0.5)
    """
    summary = _summarize_samples(_map_all(logits, _Chunk.counted))
    return summary if labels is None else summary | {"accuracy": accuracy(logits, labels)}


def summarize_labelled(values: dict[str, Tensor]) -> dict[str, float]:
    """NLL, calibration error and accuracy, from `labelled_samples` of one or more batches.

    >>> summary = summarize_labelled(labelled_samples([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]], [0, 1]))
    >>> {name: round(value, 3) for name, value in summary.items()}
    {'nll': 1.667, 'ece': 0.561, 'train_accuracy': 0.5}
    """
    return {
        "nll": values["nll"].mean().item(),
        "ece": calibration_error(values["confidence"], values["correct"]),
        "train_accuracy": values["correct"].mean().item(),
    }


def summarize_all(values: dict[str, Tensor]) -> dict[str, float]:
    """`summarize` and `summarize_labelled` of `all_samples`, and means of plugins' metrics."""
    plain = {name: value for name, value in values.items() if name not in LABELLED}
    return _summarize_samples(plain) | summarize_labelled(values)


def _summarize_samples(values: dict[str, Tensor]) -> dict[str, float]:
    """Means over samples, R12's median and the share of P_2 <= 0.

    A ratio of 0 to 0, as of a network whose logits are all 0, is left out: it is counted among P_2 <= 0.
    """
    means = {name: value.double().nanmean().item() for name, value in values.items()}
    defined = values["ratio12"][~values["ratio12"].isnan()].cpu().numpy()
    median = np.median(defined).item() if len(defined) else math.nan
    share = means.pop("nonpositive")
    return {"ratio12": means.pop("ratio12"), "ratio12_median": median, "ratio12_nonpositive": share, **means}


class _Chunk:
    """Logits (n, C) and labels (n,) of some samples, and what metrics share, computed when first asked for.

    The `top` largest are searched among the logits as they are given, which is as exact as in fp64 and
    faster.

    buffer: fp64 (3, n or more, C) to compute in; to allocate it for each chunk takes longer than the work
    """

    def __init__(self, logits: Tensor, labels: Tensor | None, top: int, buffer: Tensor):
        self.logits = logits
        self.labels = labels
        self.top = min(top, logits.shape[1])
        self.exact, self._below, self._e = buffer[:, : len(logits)]
        self.exact.copy_(logits)

    @cached_property
    def mean(self) -> Tensor:
        return self.exact.mean(1)

    @cached_property
    def largest(self) -> tuple[Tensor, Tensor]:
        """Largest logits in falling order (n, top), and the first one's class, any of equal ones."""
        values, classes = self.logits.topk(self.top, dim=1)
        return values.double(), classes[:, 0]

    @cached_property
    def rest(self) -> tuple[Tensor, Tensor]:
        """Sums of e and -e log e, e = exp(P_c - P_1), over classes c but the first: (n,) each.

        Apart from the first class's 1 they keep their digits where a teacher is almost certain.
        """
        values, first = self.largest
        below = torch.sub(self.exact, values[:, :1], out=self._below)
        e = torch.exp(below, out=self._e).scatter_(1, first[:, None], 0)
        return e.sum(1), -below.mul_(e).sum(1)

    def p(self, rank: int) -> Tensor:
        return self.largest[0][:, rank - 1]

    def ratio(self, above: int, below: int) -> Tensor:
        if self.top < below:
            return torch.full_like(self.mean, torch.nan)
        return _quotient(self.p(above), self.p(below))

    def centred(self) -> Tensor:
        return _quotient(self.p(1) - self.mean, self.p(2) - self.mean)

    def margin(self) -> Tensor:
        return self.p(1) - self.p(2)

    def entropy(self) -> Tensor:
        total, spread = self.rest
        return total.log1p() + spread / (1 + total)

    def secondary_std(self, k: int) -> Tensor:
        if self.top < k + 1:
            return torch.full_like(self.mean, torch.nan)
        values = self.largest[0]
        q = (values[:, 1 : k + 1] - values[:, :1]).exp() * self.confidence()[:, None]
        return q.std(1, unbiased=True)

    def confidence(self) -> Tensor:
        return 1 / (1 + self.rest[0])

    def nll(self) -> Tensor:
        assert self.labels is not None
        of_label = self.exact.gather(1, self.labels[:, None])[:, 0]
        return self.rest[0].log1p() + (self.p(1) - of_label)

    def correct(self) -> Tensor:
        assert self.labels is not None
        predicted = self.largest[1].clone()
        tied = self.p(1) == self.p(2)
        predicted[tied] = self.exact[tied].argmax(1)
        return (predicted == self.labels).double()

    def plain(self) -> dict[str, Tensor]:
        return {
            "ratio12": self.ratio(1, 2),
            "ratio12_centred": self.centred(),
            "ratio13": self.ratio(1, 3),
            "ratio23": self.ratio(2, 3),
            "ratio12_softmax": self.margin().exp(),
            "margin": self.margin(),
            "entropy": self.entropy(),
            "ssp": self.secondary_std(3),
        }

    def counted(self) -> dict[str, Tensor]:
        return self.plain() | {"nonpositive": self.p(2) <= 0}

    def labelled(self) -> dict[str, Tensor]:
        return {"nll": self.nll(), "confidence": self.confidence(), "correct": self.correct()}

    def of_plugins(self) -> dict[str, Tensor]:
        """Plugins' metrics.  Raises ValueError for one that does not return a value per sample."""
        values = {}
        for name, function in PLUGIN_METRICS.items():
            value = torch.as_tensor(function(self.exact.clone()), device=self.exact.device)
            if value.shape != self.mean.shape:
                expected = f"({len(self.mean)},), one value per sample"
                raise ValueError(f"metric '{name}' has shape {tuple(value.shape)}: expected {expected}")
            values[name] = value.double()
        return values


def as_integers(labels, device: torch.device) -> Tensor:
    """Labels as int64 on a device.  Raises ValueError for one that is no whole number."""
    labels = torch.as_tensor(labels, device=device)
    whole = labels.long()
    if not torch.equal(whole.to(labels.dtype), labels):
        raise ValueError(f"labels hold {labels[whole != labels][0].item():g}: expected whole numbers")
    return whole


def _map(logits, metric: Callable[[_Chunk], Tensor], labels=None, *, top: int) -> Tensor:
    """One metric of all samples: (N,)."""
    return _map_all(logits, lambda chunk: {"": metric(chunk)}, labels, top=top)[""]


def _map_all(logits, metrics: Callable[[_Chunk], dict], labels=None, *, top: int = 4) -> dict[str, Tensor]:
    """Apply `metrics` chunk by chunk and concatenate: name -> (N,).

    Raises ValueError for another shape, a single class, logits that are not finite, and labels of no class.
    """
    logits = torch.as_tensor(logits).detach()
    if logits.ndim != 2 or logits.shape[0] == 0:
        raise ValueError(f"logits have shape {tuple(logits.shape)}: expected (N, C), N samples and C classes")
    if logits.shape[1] < 2:
        raise ValueError("logits have 1 class: a metric of the two largest logits needs at least 2 classes")
    if labels is not None:
        labels = _as_labels(labels, logits)
    numbers = 2**21 if logits.is_cuda else 2**17  # a megabyte of fp64 stays in a core's cache; GPUs want more
    size = min(len(logits), max(1, numbers // logits.shape[1]))
    buffer = logits.new_empty((3, size, logits.shape[1]), dtype=torch.float64)
    results: dict[str, Tensor] = {}
    for first in range(0, len(logits), size):
        part = slice(first, first + size)
        chunk = _Chunk(logits[part], None if labels is None else labels[part], top, buffer)
        if not torch.isfinite(chunk.mean).all():
            _check_finite(logits)
        for name, value in metrics(chunk).items():
            if name not in results:
                results[name] = value.new_empty(len(logits))
            results[name][part] = value
    return results


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    return above / (below + 0.0)  # -0.0 + 0.0 is 0.0


def _check_finite(logits: Tensor) -> None:
    """Raise ValueError for NaN and infinity, not for finite logits whose sum is infinite."""
    bad = (~torch.isfinite(logits)).any(1).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"logits of {len(bad)} of {len(logits)} samples are NaN or infinite (first: sample "
            f"{bad[0].item()}): check that the teacher's training did not diverge"
        )


def _as_labels(labels, logits: Tensor) -> Tensor:
    """Labels (N,) as integers on the logits' device.  Raises ValueError for other labels."""
    labels = as_integers(labels, logits.device)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}: expected ({len(logits)},), one a sample")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels run from {labels.min().item()} to {labels.max().item()}: expected 0 to "
            f"{logits.shape[1] - 1}, the classes of the logits"
        )
    return labels
