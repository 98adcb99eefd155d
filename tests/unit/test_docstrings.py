"""The examples in docstrings run and give what they say."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

from fgkd import metrics
from fgkd.metrics import transfer

ROOT = Path(__file__).parents[2]
FILES = [file.relative_to(ROOT) for file in sorted(ROOT.glob("fgkd/**/*.py")) if ">>> " in file.read_text()]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_examples_hold(file):
    results = doctest.testmod(importlib.import_module(".".join(file.with_suffix("").parts)))
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize(
    "function",
    [
        metrics.ratio12,
        metrics.ratio12_centred,
        metrics.margin,
        metrics.entropy,
        metrics.secondary_std,
        metrics.summarize,
        metrics.calibration_error,
        transfer.logme,
        transfer.leep,
        transfer.nce,
    ],
    ids=lambda f: f.__name__,
)
def test_every_metric_shows_an_example(function):
    assert ">>>" in inspect.getdoc(function)
