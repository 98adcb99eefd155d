"""How `metrics.logits` goes through samples: some hundreds at a time, with what metrics share computed once.

Intermediate results of so few stay in a core's cache and take little memory next to the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor


class Chunk:
    """Logits (n, C) and labels (n,) of some samples, and what metrics of them share.

    That is computed when it is first asked for.  The `top` largest are searched among the logits as they are
    given, which is as exact as in fp64 and faster.

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
        return _divide(self.p(above), self.p(below))

    def centred(self) -> Tensor:
        return _divide(self.p(1) - self.mean, self.p(2) - self.mean)

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


def map_chunks(
    logits, metrics: Mapping[str, Callable[[Chunk], Tensor]], labels=None, *, top: int = 4
) -> dict[str, Tensor]:
    """Apply each of `metrics` to all samples, chunk by chunk: name -> (N,).

    top: how many of the largest logits they need.
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
    results: dict[str, list[Tensor]] = {name: [] for name in metrics}
    for first in range(0, len(logits), size):
        part = slice(first, first + size)
        chunk = Chunk(logits[part], None if labels is None else labels[part], top, buffer)
        if not torch.isfinite(chunk.mean).all():
            _check_finite(logits)
        for name, metric in metrics.items():
            results[name].append(metric(chunk))
    return {name: torch.cat(values) for name, values in results.items()}


def as_integers(labels, device: torch.device) -> Tensor:
    """Labels as int64 on a device.  Raises ValueError for one that is no whole number."""
    labels = torch.as_tensor(labels, device=device)
    whole = labels.long()
    if not torch.equal(whole.to(labels.dtype), labels):
        raise ValueError(f"labels hold {labels[whole != labels][0].item():g}: expected whole numbers")
    return whole


def _divide(above: Tensor, below: Tensor) -> Tensor:
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
