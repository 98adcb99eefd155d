"""Metrics of a teacher's logits (R12 and its rivals), with what each claims; transferability scores.

Imports nothing of the package; may be imported by all of it.  `fgkd.metrics.ratio12` and its like load
PyTorch when they are first asked for; METRICS, the claims, and the decorator `metric` do not.
"""

import importlib

from fgkd.metrics.claims import METRICS, Claim, metric, plugin_claims

__all__ = ["METRICS", "Claim", "metric", "plugin_claims"]


def __getattr__(name: str):
    """A name of `metrics.logits`, which needs PyTorch."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("fgkd.metrics.logits"), name)
