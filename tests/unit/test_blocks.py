"""Means over groups: whole datasets as blocks, by hand, by counting, and in simulated studies."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from scenes import rhos

from fgkd.analysis import blocks


def study(rng, *, data_sets=8, n=8, r=0.0, rivals=1, shared=0.6):
    """Spearman's rhos (rivals, datasets, 16) of metrics that correlate with accuracy by r.

    The groups of four strategies have one metric each.
    """
    strategy = np.repeat(np.arange(4), 4)
    metric = (
        np.sqrt(0.5)
        * (rng.normal(size=(rivals, data_sets, 1, n)) + rng.normal(size=(rivals, data_sets, 4, n)))[
            :, :, strategy
        ]
    )
    noise = np.sqrt(shared) * rng.normal(size=(data_sets, 1, n)) + np.sqrt(1 - shared) * rng.normal(
        size=(data_sets, 16, n)
    )
    accuracy = r * metric.sum(0) + math.sqrt(1 - rivals * r**2) * noise
    return rhos(metric, accuracy)


def test_the_interval_of_a_mean_by_hand():
    values, datasets = [1.0, 2, 4, 8, 16, 32], list("abcdef")
    assert blocks.mean_interval(values, datasets) == (1, 32)
    means = sorted(
        np.mean(s) for size in range(1, 9) for s in itertools.combinations([*values, 64, 128], size)
    )
    assert blocks.mean_interval([*values, 64, 128], list("abcdefgh")) == (means[5], means[-6])


def test_blocks_are_whole_data_sets_of_any_size_and_what_is_absent_does_not_count():
    rng = np.random.default_rng(0)
    values, datasets = rng.normal(size=30), np.repeat(np.arange(8), [1, 2, 3, 4, 5, 5, 5, 5])
    found = blocks.mean_interval(values, datasets)
    assert found[0] < values.mean() < found[1]
    mixed = rng.permutation(30)
    assert blocks.mean_interval(values[mixed], datasets[mixed]) == pytest.approx(found)
    assert blocks.mean_interval([*values, math.nan], [*datasets, 99]) == found
    assert blocks.swap_p([*values, math.nan], [*datasets, 99]) == blocks.swap_p(values, datasets)


def test_fewer_than_six_blocks_have_no_interval_and_no_significant_p():
    assert all(math.isnan(v) for v in blocks.mean_interval([1, 2, 3, 4, 5], list("abcde")))
    assert blocks.swap_p([1, 2, 3, 4, 5], list("abcde")) == 2 / 2**5 and blocks.swap_p([3.0], ["a"]) == 1
    assert math.isnan(blocks.swap_p([math.nan], ["a"])) and math.isnan(blocks.swap_p([], []))


def test_the_p_of_swapping_counts_every_swap_of_whole_blocks():
    rng = np.random.default_rng(3)
    differences, datasets = rng.normal(0.4, 1, 21), np.repeat(np.arange(7), 3)
    swaps = [
        abs((np.repeat(signs, 3) * differences).mean()) for signs in itertools.product([1, -1], repeat=7)
    ]
    assert blocks.swap_p(differences, datasets) == np.mean(np.array(swaps) >= abs(differences.mean()) - 1e-12)
    assert (
        blocks.swap_p(differences, datasets)
        == blocks.swap_p(-differences, datasets)
        != blocks.swap_p(differences, np.arange(21))
    )


def test_above_sixteen_blocks_swaps_are_drawn_by_seed():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.3, 1, 17)
    found = blocks.swap_p(differences, range(17))
    exact = scipy.stats.permutation_test(
        (differences,), lambda v, axis: v.mean(axis), permutation_type="samples", n_resamples=math.inf
    ).pvalue
    assert found == blocks.swap_p(differences, range(17)) == pytest.approx(exact, abs=0.005)
    low, high = blocks.mean_interval(differences, range(17))
    reach = scipy.stats.t.ppf(0.975, 16) * differences.std(ddof=1) / math.sqrt(17)
    assert (low, high) == pytest.approx(
        (differences.mean() - reach, differences.mean() + reach), abs=0.1 * reach
    )
    assert blocks.swap_p(np.ones(17), range(17)) >= 1 / 2**16


def test_zero_lies_in_the_interval_exactly_where_p_exceeds_5_percent():
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        values, datasets = (
            rng.normal(0.5, 1, 24) + np.repeat(rng.normal(size=8), 3),
            np.repeat(np.arange(8), 3),
        )
        low, high = blocks.mean_interval(values, datasets)
        assert (low <= 0 <= high) == (blocks.swap_p(values, datasets) > 0.05)
        outcomes.add(low <= 0 <= high)
    assert outcomes == {True, False}


def test_seven_data_sets_find_at_a_third_of_5_percent_what_is_above_0_in_all_of_them():
    found = blocks.detectable(0.2, 7, level=0.05 / 3)
    assert found == pytest.approx(0.2 * scipy.stats.norm.ppf(0.8 ** (1 / 7)), rel=0.04)
    assert blocks.detectable(0.2, 6, level=0.05 / 3) == math.inf


@pytest.mark.parametrize("datasets, level", [(7, 0.05 / 3), (8, 0.05), (12, 0.05 / 3)])
def test_the_test_finds_in_four_of_five_studies_what_is_said_to_be_detectable(datasets, level):
    rng, size = np.random.default_rng(1), blocks.detectable(1, datasets, level=level)
    studies = rng.normal(size, 1, size=(400, datasets))
    hits = [blocks.swap_p(study, range(datasets)) <= level and study.mean() > 0 for study in studies]
    assert 0.74 < np.mean(hits) < 0.86


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5, 0.9], [0.02, 0.02, 0.02], [0.3]])
def test_holm_by_the_definition(p):
    ordered = sorted(p)
    stepped = {v: max(min(1, (len(p) - j) * ordered[j]) for j in range(ordered.index(v) + 1)) for v in p}
    assert blocks.holm(p) == pytest.approx([stepped[v] for v in p])


def test_an_absent_p_is_not_corrected_for():
    assert blocks.holm([0.02, math.nan, 0.03]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)


@pytest.mark.parametrize("r", [0.0, 0.5])
def test_the_paired_test_keeps_its_size_where_groups_as_blocks_do_not(r):
    """Both metrics are equally good; groups of a data set share teachers, metrics and images."""
    rng, found = np.random.default_rng(7), []
    for _ in range(400):
        first, second = study(rng, r=r, rivals=2).reshape(2, -1)
        naive = abs((first - second).mean()) / (first - second).std() * math.sqrt(128) > 1.96
        found.append(
            [
                blocks.swap_p(v, np.repeat(np.arange(8), 16)) <= 0.05
                for v in (first - second, abs(first) - abs(second))
            ]
            + [naive]
        )
    signed, absolute, naive = np.mean(found, axis=0)
    assert 0.02 < signed < 0.085 and 0.02 < absolute < 0.085 and naive > 0.15


def test_the_paired_test_finds_a_planted_difference():
    rng = np.random.default_rng(8)
    found = [
        blocks.swap_p((study(rng, r=0.7) - study(rng, r=0.3)).ravel(), np.repeat(np.arange(8), 16)) <= 0.05
        for _ in range(200)
    ]
    assert np.mean(found) > 0.8


@pytest.mark.parametrize("r", [0.0, 0.6])
def test_the_interval_of_a_study_of_128_groups_covers_their_true_mean(r):
    rng = np.random.default_rng(9)
    true = np.mean([study(rng, data_sets=100, r=r).mean() for _ in range(40)])
    datasets, covered, naive = np.repeat(np.arange(8), 16), [], []
    for _ in range(500):
        values = study(rng, r=r).ravel()
        low, high = blocks.mean_interval(values, datasets)
        covered.append(low <= true <= high)
        naive.append(abs(values.mean() - true) < 1.96 * values.std() / math.sqrt(128))
    assert 0.915 < np.mean(covered) < 0.98 and np.mean(naive) < 0.8
