"""The examples in docstrings run and give what they say."""

import doctest
import inspect

import pytest

from fgkd import metrics
from fgkd.analysis import blocks, correlation
from fgkd.metrics import logits, transfer


@pytest.mark.parametrize("module", [logits, correlation, blocks, transfer], ids=lambda m: m.__name__)
def test_examples_hold(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.parametrize(
    "function",
    [
        metrics.ratio12,
        metrics.ratio12_centred,
        metrics.ratio13,
        metrics.ratio23,
        metrics.ratio12_softmax,
        metrics.margin,
        metrics.entropy,
        metrics.secondary_std,
        metrics.summarize,
        metrics.nll,
        metrics.calibration_error,
        transfer.logme,
        transfer.leep,
        transfer.nce,
    ],
    ids=lambda f: f.__name__,
)
def test_every_metric_shows_an_example(function):
    assert ">>>" in inspect.getdoc(function)
