"""The examples in docstrings run and give what they say."""

import doctest
import inspect

import pytest

from fgkd import metrics, stats


@pytest.mark.parametrize("module", [metrics, stats], ids=lambda m: m.__name__)
def test_examples_hold(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.parametrize("name", ["ratio12", "ratio13", "ratio23", "ratio12_softmax", "margin", "entropy", "secondary_std", "summarize"])
def test_every_metric_shows_an_example(name):
    assert ">>>" in inspect.getdoc(getattr(metrics, name))
