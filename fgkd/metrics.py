r"""Metrics of a teacher's logits, one value a sample, and their summary.

With P_1 >= P_2 >= ... a sample's logits in falling order and q_1 >= q_2 >= ... its softmax at T = 1:

    R12     = P_1 / P_2                       (arXiv 2605.15689; mean over samples and epochs; smaller is claimed better)
    SSP     = std(q_2, ..., q_4), unbiased    (spread of secondary probabilities; larger is claimed better)
    margin  = P_1 - P_2                       (shift invariant, unlike R12)
    entropy = -sum_c q_c log q_c              (nats)

Raw logits may be shifted by a constant without any change to softmax, and R12 changes: it is a property of how the network was
trained, not of its probabilities.  It is infinite at P_2 = 0 and negative below; `summarize` says for how many samples.

All functions take (N, C) tensors or arrays, compute in fp64 and return fp64 tensors (N,) on the same device.

METRICS also lists rivals that need more than logits: labels (the bank has them), the pretrained network (see `transfer`) and the student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Claim:
    """Which way a metric is claimed to point: direction +1 larger is better, -1 smaller is better; afterwards: it takes the trained student."""

    label: str
    direction: int
    source: str
    afterwards: bool = False


METRICS = {
    "ratio12": Claim("R12", -1, "arXiv 2605.15689: ratio of the two largest raw logits"),
    "ratio12_median": Claim("R12, median", -1, "as R12, robust to samples whose second logit is near 0"),
    "ratio12_centred": Claim("R12, centred", -1, "as R12, after each sample's mean logit is subtracted"),
    "ratio13": Claim("R13", -1, "ratio of the largest to the third raw logit"),
    "ratio23": Claim("R23", -1, "ratio of the second to the third raw logit"),
    "ratio12_softmax": Claim("R12 of softmax", -1, "ratio of the two largest probabilities"),
    "margin": Claim("margin", -1, "difference of the two largest raw logits"),
    "entropy": Claim("entropy", 1, "Shannon entropy of softmax, nats"),
    "ssp": Claim("SSP", 1, "arXiv 2605.15689: std of the probabilities of ranks 2 to 4"),
    "tac": Claim("TAC", 1, "the teacher's top-1 accuracy on the test split"),
    "nll": Claim("NLL", -1, "Menon et al. 2021: teachers of better probabilities, not only of better labels, teach better"),
    "ece": Claim("ECE", -1, "Guo et al. 2017: expected calibration error; a direction as for NLL"),
    "train_accuracy": Claim("training accuracy", 1, "top-1 accuracy on the views that the students see"),
    "parameters": Claim("parameters", 1, "number of the teacher's weights; Cho and Hariharan 2019 found larger ones no better"),
    "logme": Claim("LogME", 1, "You et al. 2021: evidence of a linear model of the labels on the features"),
    "leep": Claim("LEEP", 1, "Nguyen et al. 2020: log-likelihood of the labels through the pretrained head's classes"),
    "nce": Claim("NCE", 1, "Tran et al. 2019: negative conditional entropy of the labels given the pretrained head's class"),
    "agreement": Claim("agreement", 1, "Stanton et al. 2021: share of test images of which the student says what its teacher says", afterwards=True),
}


def ratio12(logits) -> Tensor:
    """P_1 / P_2 of raw logits (N, C >= 2) -> (N,).  Scale invariant, not shift invariant; inf at P_2 = 0, negative at P_2 < 0 < P_1,
    NaN where both are 0.

    >>> ratio12([[6.0, 4.0, 1.0], [3.0, 3.0, 0.0]]).tolist()
    [1.5, 1.0]
    """
    return _ratio(logits, 1, 2)


def ratio12_centred(logits) -> Tensor:
    """R12 of logits (N, C >= 2) less their mean over classes -> (N,).  Scale and shift invariant; infinite or negative where all classes
    but the first lie at or below the mean.

    >>> ratio12_centred([[6.0, 4.0, 1.0, 1.0], [106.0, 104.0, 101.0, 101.0]]).tolist()
    [3.0, 3.0]
    """
    logits = _checked(logits)
    return _ratio(logits - logits.mean(1, keepdim=True), 1, 2)


def ratio13(logits) -> Tensor:
    """P_1 / P_3 of raw logits (N, C) -> (N,); NaN where C < 3.

    >>> ratio13([[6.0, 4.0, 1.5]]).tolist()
    [4.0]
    """
    return _ratio(logits, 1, 3)


def ratio23(logits) -> Tensor:
    """P_2 / P_3 of raw logits (N, C) -> (N,); NaN where C < 3.

    >>> ratio23([[6.0, 4.0, 2.0]]).tolist()
    [2.0]
    """
    return _ratio(logits, 2, 3)


def ratio12_softmax(logits) -> Tensor:
    """q_1 / q_2 of the softmax = exp(P_1 - P_2), (N, C >= 2) -> (N,).  Shift invariant, not scale invariant.

    >>> round(ratio12_softmax([[2.0, 1.0, 0.0]]).item(), 4)
    2.7183
    """
    return margin(logits).exp()


def margin(logits) -> Tensor:
    """P_1 - P_2 of raw logits (N, C >= 2) -> (N,), 0 at a tie.

    >>> margin([[6.0, 4.0, 1.0]]).tolist()
    [2.0]
    """
    top = _top(logits, 2)
    return top[:, 0] - top[:, 1]


def entropy(logits) -> Tensor:
    """Entropy of the softmax in nats, (N, C >= 2) -> (N,): 0 when certain, log C when uniform.

    >>> round(entropy([[0.0, 0.0, 0.0, 0.0]]).item(), 4)
    1.3863
    """
    log_q = _checked(logits).log_softmax(1)
    return -(log_q.exp() * log_q).sum(1)


def secondary_std(logits, k: int = 3) -> Tensor:
    """Unbiased std of the k softmax probabilities after the largest, (N, C) -> (N,); NaN where C < k + 1.

    >>> round(secondary_std([[3.0, 2.0, 1.0, 0.0]]).item(), 6)
    0.105995
    """
    if k < 2:
        raise ValueError(f"k is {k}: the spread of secondary probabilities needs at least 2 of them")
    q = _checked(logits).softmax(1)
    if q.shape[1] < k + 1:
        return q.new_full((len(q),), torch.nan)
    return q.topk(k + 1, dim=1).values[:, 1:].std(1, unbiased=True)


def accuracy(logits, labels) -> float:
    """Share of samples whose largest logit is the label's: logits (N, C), labels (N,) -> [0, 1]."""
    logits, labels = _labelled(logits, labels)
    return (logits.argmax(1) == labels).double().mean().item()


def nll(logits, labels) -> Tensor:
    """-log of the label's softmax probability, nats: logits (N, C), labels (N,) -> (N,).

    >>> round(nll([[0.0, 0.0, 0.0, 0.0]], [2]).item(), 4)
    1.3863
    """
    logits, labels = _labelled(logits, labels)
    return -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]


def calibration_error(confidence, correct, *, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): mean over samples of a bin's gap between accuracy and confidence, in [0, 1].

    confidence (N,): the largest softmax probability; correct (N,): whether its class is the label; `bins` of equal width, each with its
    upper edge.

    >>> round(calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]), 4)
    0.1
    """
    confidence, correct = torch.as_tensor(confidence).double(), torch.as_tensor(correct).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    gaps = confidence.new_zeros(bins).index_add_(0, torch.bucketize(confidence, edges), correct - confidence)
    return gaps.abs().sum().item() / len(confidence)


def labelled_samples(logits, labels) -> dict[str, Tensor]:
    """What `summarize_labelled` asks of each sample of logits (N, C) with labels (N,): name -> (N,)."""
    logits, labels = _labelled(logits, labels)
    confidence, named = logits.softmax(1).max(1)
    return {"nll": nll(logits, labels), "confidence": confidence, "correct": (named == labels).double()}


def summarize_labelled(values: dict[str, Tensor]) -> dict[str, float]:
    """The rivals that labels allow, from `labelled_samples`, of one batch or of all batches joined.

    >>> found = summarize_labelled(labelled_samples([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]], [0, 1]))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'nll': 1.667, 'ece': 0.561, 'train_accuracy': 0.5}
    """
    return {"nll": values["nll"].mean().item(), "ece": calibration_error(values["confidence"], values["correct"]), "train_accuracy": values["correct"].mean().item()}


def samples(logits) -> dict[str, Tensor]:
    """Every per-sample metric of logits (N, C): name -> (N,)."""
    return {"ratio12": ratio12(logits), "ratio12_centred": ratio12_centred(logits), "ratio13": ratio13(logits), "ratio23": ratio23(logits),
            "ratio12_softmax": ratio12_softmax(logits), "margin": margin(logits), "entropy": entropy(logits), "ssp": secondary_std(logits)}


def summarize(logits, labels=None) -> dict[str, float]:
    """Means over samples of every metric of logits (N, C), with R12's median and its share of P_2 <= 0.

    labels: (N,), adds `accuracy`.  Raises ValueError for NaN, infinity, an empty batch or a single class.

    >>> summary = summarize([[6.0, 4.0, 1.0, 0.5], [2.0, -1.0, -1.0, -2.0]])
    >>> summary["ratio12"], summary["ratio12_median"], summary["ratio12_nonpositive"]
    (-0.25, -0.25, 0.5)
    """
    found = summarize_samples(samples(logits), _top(logits, 2)[:, 1] <= 0)
    return found if labels is None else found | {"accuracy": accuracy(logits, labels)}


def summarize_samples(values: dict[str, Tensor], nonpositive: Tensor) -> dict[str, float]:
    """The summary of per-sample values (N,) and of whether P_2 <= 0 (N,); what a bank accumulates over its epochs.

    A ratio of 0 to 0, as of a network that says 0 to all classes, is left out: it is counted among P_2 <= 0.
    """
    means = {name: v.nanmean().item() for name, v in values.items()}
    defined = values["ratio12"][~values["ratio12"].isnan()].cpu().numpy()
    median = np.median(defined).item() if len(defined) else math.nan
    return {"ratio12": means.pop("ratio12"), "ratio12_median": median, "ratio12_nonpositive": nonpositive.double().mean().item(), **means}


def _ratio(logits, above: int, below: int) -> Tensor:
    logits = _checked(logits)
    if logits.shape[1] < below:
        return logits.new_full((len(logits),), torch.nan)
    top = logits.topk(below, dim=1).values
    return top[:, above - 1] / (top[:, below - 1] + 0.0)  # -0.0 + 0.0 is 0.0


def _top(logits, k: int) -> Tensor:
    return _checked(logits).topk(k, dim=1).values


def _checked(logits) -> Tensor:
    logits = torch.as_tensor(logits).detach().double()
    if logits.ndim != 2 or logits.shape[0] == 0:
        raise ValueError(f"logits have shape {tuple(logits.shape)}: expected (N, C) with N samples and C classes")
    if logits.shape[1] < 2:
        raise ValueError("logits have 1 class: a metric of the two largest logits needs at least 2 classes")
    if not torch.isfinite(logits).all():
        bad = (~torch.isfinite(logits)).any(1).nonzero().flatten()
        raise ValueError(f"logits of {len(bad)} of {len(logits)} samples are NaN or infinite (first: sample {bad[0].item()}): "
                         "check that the teacher's training did not diverge")
    return logits


def _labelled(logits, labels) -> tuple[Tensor, Tensor]:
    logits = _checked(logits)
    labels = torch.as_tensor(labels, device=logits.device).long()
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}: expected ({len(logits)},), one for each sample")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels run from {labels.min().item()} to {labels.max().item()}: expected 0 to {logits.shape[1] - 1}, the classes of the logits")
    return logits, labels
