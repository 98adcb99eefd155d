"""Means over groups: their intervals and tests take whole datasets as independent blocks.

A group is one dataset, student, strategy and loss.  Groups of one dataset share teachers, metrics and images,
so datasets are the independent *blocks*.  Intervals and p of means are NaN below six of them.  Taking the
groups of one dataset as independent covers 30 to 60 % in simulations, and finds p < .05 in a quarter or more
of null studies.  The results hold for other datasets with the same teachers, never for other teachers.

scipy has no counterpart: its bootstrap and its permutation test resample single values, not blocks of unequal
size, and Hartigan's interval and Holm's correction are in neither.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from fgkd.analysis.correlation import Z95

MIN_DATASETS = 6  # of which an interval can be made, or p can be below 0.05


def mean_interval(values, blocks, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean: quantiles of the means over all sets of whole blocks.

    These are Hartigan's typical values (1969): exact where the blocks' errors are symmetric, and 0 lies
    within exactly where `swap_p` exceeds 0.05.  With 8 datasets it covers 94 to 96 % (skewed ones 90 %), a
    percentile bootstrap of them 88 %.  NaN below 6 blocks.

    values: (G,); NaN is left out
    blocks: (G,) names of the values' blocks
    seed: of the 65,536 sets that are drawn above 16 blocks
    """
    sums, counts = _sum_blocks(values, blocks)
    if len(sums) < MIN_DATASETS:
        return math.nan, math.nan
    subsets = _subsets(len(sums), seed)
    # a block weighs as many groups as it has, as in the mean over groups whose interval this is
    sizes = subsets @ counts
    means = np.sort((subsets @ sums)[sizes > 0] / sizes[sizes > 0])
    # 2^D - 1 subset means cut the line into 2^D equally likely gaps: drop 2.5 % at each end
    tail = int(0.025 * len(subsets))
    return float(means[tail - 1]), float(means[-tail])


def swap_p(differences, blocks, *, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences: whole blocks of pairs are swapped.

    All 2^D swaps are counted up to 16 blocks.  The smallest p is 2 / 2^D, so fewer than 6 blocks never reach
    0.05.  NaN where no difference is left.

    differences: (G,); NaN is left out
    blocks: (G,) names of the differences' blocks
    seed: of the 65,536 swaps that are drawn above 16 blocks, the observed one among them
    """
    sums, _ = _sum_blocks(differences, blocks)
    if not len(sums):
        return math.nan
    # a block in the subset has its sign reversed; the empty subset is the observed mean
    null = np.abs((1 - 2 * _subsets(len(sums), seed)) @ sums)
    # sums of the same terms in another order differ in their last digits
    return float((null >= null[0] - 1e-9).mean())


def mean_test(values, blocks) -> tuple[float, float, float]:
    """Low and high of `mean_interval`, and the p of `swap_p`; all NaN below six blocks."""
    low, high = mean_interval(values, blocks)
    return low, high, math.nan if math.isnan(low) else swap_p(values, blocks)


def exceeds(low: float, high: float, limit: float = 0.0) -> bool | None:
    """Whether an interval lies above a limit: None where it contains the limit, or is NaN.

    >>> exceeds(0.1, 0.3), exceeds(-0.3, -0.1), exceeds(-0.1, 0.3)
    (True, False, None)
    """
    if math.isnan(low) or math.isnan(high) or low <= limit <= high:
        return None
    return bool(low > limit)


def shared_error(errors, blocks) -> float:
    """Half the 95 % interval of a mean whose errors are shared inside blocks, as test images.

    Inside a block they add up as if they were one; blocks are independent.

    errors: (G,) standard errors of the values
    blocks: (G,) names of the values' blocks
    """
    sums, counts = _sum_blocks(errors, blocks)
    return Z95 * math.sqrt((sums**2).sum()) / counts.sum()


def detectable(
    spread: float, datasets: int, *, level: float, power: float = 0.8, draws: int = 2000, seed: int = 0
) -> float:
    """Smallest true mean difference that `swap_p` finds in a share `power` of studies.

    Finds it with its sign.  In each simulated study a dataset's difference is the true mean plus a normal
    error.  Take `spread` from the differences of a study's own datasets: it holds what teachers, images and
    the number of groups leave open there.  As far as it comes from the number n of teachers it is
    proportional to 1 / sqrt(n - 1), as a rho's is.  Infinite where no difference is enough, since 2 / 2^D
    exceeds `level`.

    spread: standard deviation of the error
    datasets: their number D
    level: largest p that counts as found
    power: share of studies
    draws: simulated studies
    seed: of the simulation

    >>> detectable(0.2, 6, level=0.05 / 3)
    inf
    """
    return spread * _detectable(datasets, level, power, draws, seed)


def holm(p) -> np.ndarray:
    """p values corrected for their number (Holm 1979); NaN stays and is not counted.

    p: (k,)

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, float)
    corrected = np.full(p.shape, math.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return corrected


@functools.cache
def _detectable(datasets: int, level: float, power: float, draws: int, seed: int) -> float:
    """`detectable` in units of the spread.

    Where the mean is positive, p is (2 + 2 c) / 2^D for c subsets of the D datasets whose own mean is not
    above 0: a study finds what exceeds the lowest mean but c of such subsets of its errors.  Above 10
    datasets 4,096 subsets are drawn.
    """
    rng = np.random.default_rng(seed)
    # all 2^D subsets of each of 2,000 studies would take 16 GB at 20 datasets
    if datasets <= 10:
        subsets = _subsets(datasets, seed)
    else:
        subsets = rng.integers(0, 2, (2**12, datasets)).astype(float)
    subsets = subsets[subsets.any(1)]
    # the largest c of which (2 + 2 c) / 2^D is still at most the level
    spared = math.floor(level * (len(subsets) + 1) / 2 - 1 + 1e-9)
    if spared < 0:
        return math.inf
    errors = rng.normal(size=(draws, datasets))
    means = (errors @ subsets.T) / subsets.sum(1)
    # a true mean shifts all of a study's subset means alike, so that one simulation serves every size of it
    needed = -np.partition(means, spared, axis=1)[:, spared]
    return max(0.0, float(np.quantile(needed, power)))


def _sum_blocks(values, blocks) -> tuple[np.ndarray, np.ndarray]:
    """Sum (D,) and number (D,) of the values in each block, NaN left out."""
    values = np.asarray(values, float)
    defined = ~np.isnan(values)
    _, index = np.unique(np.asarray(blocks)[defined], return_inverse=True)
    return np.bincount(index, values[defined]), np.bincount(index)


@functools.lru_cache(maxsize=4)
def _subsets(blocks: int, seed: int) -> np.ndarray:
    """Subsets of the blocks, rows of 0 and 1, the empty one first: all (2^D, D), or 65,536."""
    if blocks <= 16:
        return (np.arange(2**blocks)[:, None] >> np.arange(blocks) & 1).astype(float)
    drawn = np.random.default_rng(seed).integers(0, 2, (2**16 - 1, blocks))
    return np.vstack([np.zeros(blocks), drawn])
