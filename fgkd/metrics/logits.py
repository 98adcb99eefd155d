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
R12 written out is

    top = logits.double().topk(2, dim=1).values
    ratio12 = top[:, 0] / top[:, 1]

and `chunks` computes it and all the others in one pass.

METRICS also lists rivals that need more than logits: labels (the bank has them), the pretrained network (see
`transfer`) and the student.  Metrics of plugins (see `claims.metric`) are computed with ours in
`all_samples`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fgkd.metrics.chunks import Chunk, map_chunks
from fgkd.metrics.claims import PLUGIN_METRICS

PLAIN: dict[str, Callable[[Chunk], Tensor]] = {
    "ratio12": lambda chunk: chunk.ratio(1, 2),
    "ratio12_centred": Chunk.centred,
    "ratio13": lambda chunk: chunk.ratio(1, 3),
    "ratio23": lambda chunk: chunk.ratio(2, 3),
    "ratio12_softmax": lambda chunk: chunk.margin().exp(),
    "margin": Chunk.margin,
    "entropy": Chunk.entropy,
    "ssp": lambda chunk: chunk.secondary_std(3),
}
COUNTED = PLAIN | {"nonpositive": lambda chunk: chunk.p(2) <= 0}
LABELLED = {"nll": Chunk.nll, "confidence": Chunk.confidence, "correct": Chunk.correct}


def ratio12(logits) -> Tensor:
    """P_1 / P_2 of raw logits (N, C >= 2) -> (N,).  Scale invariant, not shift invariant.

    inf at P_2 = 0, negative at P_2 < 0 < P_1, NaN where both are 0.

    >>> ratio12([[6.0, 4.0, 1.0], [3.0, 3.0, 0.0]]).tolist()
    [1.5, 1.0]
    """
    return _map(logits, PLAIN["ratio12"])


def ratio12_centred(logits) -> Tensor:
    """R12 of logits (N, C >= 2) less their mean over classes -> (N,).

    Scale and shift invariant; infinite or negative where all classes but the first lie at or below the mean.

    >>> ratio12_centred([[6.0, 4.0, 1.0, 1.0], [106.0, 104.0, 101.0, 101.0]]).tolist()
    [3.0, 3.0]
    """
    return _map(logits, Chunk.centred)


def margin(logits) -> Tensor:
    """P_1 - P_2 of raw logits (N, C >= 2) -> (N,), 0 at a tie.

    >>> margin([[6.0, 4.0, 1.0]]).tolist()
    [2.0]
    """
    return _map(logits, Chunk.margin)


def entropy(logits) -> Tensor:
    """Entropy of the softmax in nats, (N, C >= 2) -> (N,): 0 when certain, log C when uniform.

    >>> round(entropy([[0.0, 0.0, 0.0, 0.0]]).item(), 4)
    1.3863
    """
    return _map(logits, Chunk.entropy)


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
    return _map(logits, Chunk.correct, labels).mean().item()


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
    return map_chunks(logits, PLAIN)


def labelled_samples(logits, labels) -> dict[str, Tensor]:
    """NLL, confidence and correctness: logits (N, C), labels (N,) -> name -> (N,)."""
    return map_chunks(logits, LABELLED, labels, top=2)


def all_samples(logits, labels) -> dict[str, Tensor]:
    """All built-in and plugins' metrics, `labelled_samples` and `nonpositive`: name -> (N,)."""
    of_plugins = {name: functools.partial(_of_plugin, name) for name in PLUGIN_METRICS}
    return map_chunks(logits, COUNTED | LABELLED | of_plugins, labels)


def summarize(logits, labels=None) -> dict[str, float]:
    """Means over samples of every built-in metric, with R12's median and its share of P_2 <= 0.

    logits: (N, C)
    labels: (N,) adds `accuracy`

    Raises ValueError for NaN, infinity, an empty batch or a single class.

    >>> summary = summarize([[6.0, 4.0, 1.0, 0.5], [2.0, -1.0, -1.0, -2.0]])
    >>> summary["ratio12"], summary["ratio12_median"], summary["ratio12_nonpositive"]
    (-0.25, -0.25, 0.5)
    """
    summary = _summarize_samples(map_chunks(logits, COUNTED))
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


def _map(logits, metric: Callable[[Chunk], Tensor], labels=None, *, top: int = 2) -> Tensor:
    """One metric of all samples: (N,)."""
    return map_chunks(logits, {"": metric}, labels, top=top)[""]


def _of_plugin(name: str, chunk: Chunk) -> Tensor:
    """A plugin's metric.  Raises ValueError for one that does not return a value per sample."""
    value = torch.as_tensor(PLUGIN_METRICS[name](chunk.exact.clone()), device=chunk.exact.device)
    if value.shape != chunk.mean.shape:
        expected = f"({len(chunk.mean)},), one value per sample"
        raise ValueError(f"metric '{name}' has shape {tuple(value.shape)}: expected {expected}")
    return value.double()
