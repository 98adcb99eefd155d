"""Metrics of a teacher's logits (R12 and its rivals), with what each claims; transferability scores.

Imports nothing of the package; may be imported by all of it.  `fgkd.metrics.ratio12` and its like load
PyTorch when they are first asked for; `METRICS`, the claims, does not.
"""

import importlib

from fgkd.metrics.claims import METRICS, Claim

__all__ = ["METRICS", "Claim"]


def __getattr__(name: str):
    """A name of `metrics.logits`, which needs PyTorch."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("fgkd.metrics.logits"), name)
