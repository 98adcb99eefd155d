"""Transferability: the evidence by brute force, likelihoods by a loop, and what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from fgkd.metrics import transfer


def scene(n, d, classes, *, signal, seed=0):
    """Features (n, d) whose class means differ by `signal`, and labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(n, d)) + signal * rng.normal(size=(classes, d))[labels], labels


def evidence(features, target):
    """The largest log density of a target (n,), Gaussian of covariance I/beta + F F'/alpha, by search."""

    def negative(logs):
        covariance = np.eye(len(target)) * np.exp(-logs[0]) + features @ features.T * np.exp(-logs[1])
        return -multivariate_normal.logpdf(target, np.zeros(len(target)), covariance)

    return max(
        -minimize(negative, (beta, alpha), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}).fun
        for beta in (0, 3)
        for alpha in (0, 5)
    )


@pytest.mark.parametrize(
    "n, d, classes, signal", [(24, 4, 3, 1), (12, 30, 3, 1), (16, 16, 2, 0.3), (24, 4, 2, 0)]
)
def test_logme_is_the_largest_evidence(n, d, classes, signal):
    features, labels = scene(n, d, classes, signal=signal)
    expected = np.mean([evidence(features, (labels == k).astype(float)) / n for k in range(classes)])
    assert transfer.logme(features, labels) == pytest.approx(expected, abs=1e-5)


def fixed_point(features, target, steps=20_000):
    """The evidence by the iteration of LogME's paper, on the singular values."""
    n, d = features.shape
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    squares = (u.T @ target) ** 2
    alpha = beta = 1.0
    for _ in range(steps):
        t = alpha / beta
        used = (s**2 / (s**2 + t)).sum()
        length = (s**2 * squares / (s**2 + t) ** 2).sum()
        error = (squares / (1 + s**2 / t) ** 2).sum() + target @ target - squares.sum()
        alpha, beta = used / length, (n - used) / error
    log_det = np.log(alpha + beta * s**2).sum() + (d - len(s)) * np.log(alpha)
    fit = beta * error + alpha * length + n * np.log(2 * np.pi)
    return (d * np.log(alpha) + n * np.log(beta) - log_det - fit) / 2 / n


@pytest.mark.parametrize("shift, outlier", [(0, 0), (3000, 0), (0, 1e3), (0, 1e5)])
def test_logme_finds_the_largest_evidence_where_one_direction_is_long(shift, outlier):
    features, labels = scene(60, 8, 4, signal=1)
    long = np.c_[features + shift, outlier * np.random.default_rng(1).normal(size=60)]
    expected = np.mean([fixed_point(long, (labels == k).astype(float)) for k in range(4)])
    assert transfer.logme(long, labels) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("n, d", [(24, 4), (24, 40)])
def test_logme_of_any_scale_rank_and_number_is_the_same(n, d, scale):
    features, labels = scene(n, d, 3, signal=1)
    usual = transfer.logme(features, labels)
    assert transfer.logme(scale * features, labels) == pytest.approx(usual, abs=1e-7)
    assert math.isfinite(transfer.logme(np.outer(np.arange(n), np.ones(d)), labels))
    assert math.isfinite(transfer.logme(np.ones((n, d)), labels))
    assert math.isfinite(transfer.logme(features, np.arange(n)))


def test_logme_prefers_features_that_tell_the_classes_apart():
    found = [transfer.logme(*scene(60, 5, 4, signal=signal)) for signal in (0, 1, 3)]
    assert found == sorted(found) and found[2] > found[0] + 0.1


def test_logme_ignores_rotation_scale_order_and_the_names_of_classes():
    features, labels = scene(30, 6, 3, signal=1)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    order = np.random.default_rng(2).permutation(30)
    for values, names in (
        (features @ rotation, labels),
        (50 * features, labels),
        (features[order], labels[order]),
        (features, 7 * (2 - labels)),
    ):
        assert transfer.logme(values, names) == pytest.approx(transfer.logme(features, labels), abs=1e-6)


def test_features_that_fit_exactly_still_give_a_number():
    assert math.isfinite(transfer.logme(np.eye(3)[[0, 0, 1, 1, 2, 2]], [0, 0, 1, 1, 2, 2]))


def test_leep_equals_a_loop_over_samples():
    rng = np.random.default_rng(0)
    q, labels = rng.dirichlet(np.ones(5), 20), np.arange(20) % 3
    joint = np.zeros((3, 5))
    for row, label in zip(q, labels, strict=True):
        joint[label] += row / 20
    expected = np.mean(
        [
            np.log(sum(row[z] * joint[label, z] / joint[:, z].sum() for z in range(5)))
            for row, label in zip(q, labels, strict=True)
        ]
    )
    assert transfer.leep(q, labels) == pytest.approx(expected, abs=1e-12)


def test_nce_is_the_conditional_entropy_of_the_counts_and_leep_of_certain_predictions():
    rng = np.random.default_rng(0)
    source, labels = rng.integers(0, 4, 50), rng.integers(0, 3, 50)
    counts = np.array([[np.sum((source == z) & (labels == y)) for z in range(4)] for y in range(3)])
    expected = (
        sum(c * np.log(c / counts[:, z].sum()) for y in range(3) for z, c in enumerate(counts[y]) if c) / 50
    )
    assert transfer.nce(source, labels) == pytest.approx(expected, abs=1e-12)
    assert transfer.leep(np.eye(9)[source], labels) == pytest.approx(expected, abs=1e-12)


def test_source_classes_that_say_nothing_leave_the_entropy_of_the_labels():
    labels = [0, 0, 0, 1]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert (
        transfer.nce([5] * 4, labels)
        == pytest.approx(-entropy)
        == transfer.leep(torch.full((4, 3), 1 / 3), labels)
    )
    assert transfer.nce([3, 1, 0, 2], labels) == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: transfer.logme(np.ones((4, 2)), [0, 1]), r"features have shape \(4, 2\) and labels \(2,\)"),
        (lambda: transfer.logme(np.ones(4), [0, 1, 0, 1]), "features have shape"),
        (lambda: transfer.logme(np.zeros((4, 2)), [0, 1, 0, 1]), "features are 0"),
        (lambda: transfer.logme([[1.0], [math.nan]], [0, 1]), "features of 1 of 2 samples are NaN"),
        (lambda: transfer.leep([[3.0, 1.0], [0.0, 2.0]], [0, 1]), "expected a softmax, not logits"),
        (lambda: transfer.leep([[1.5, -0.5], [0.5, 0.5]], [0, 1]), "expected a softmax, not logits"),
        (lambda: transfer.logme([[1.0], [2.0]], [0, 2.9]), "labels hold 2.9"),
        (lambda: transfer.nce([0, 1], [0, math.nan]), "labels hold nan"),
        (lambda: transfer.nce([[0, 1]], [0, 1]), r"source has shape \(1, 2\)"),
    ],
)
def test_what_is_no_sample_with_a_label_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
