"""How well one metric ranks the teachers of one group: rank correlations, their p and intervals.

At n = 8 and no correlation at all abs(rho) averages 0.31 and exceeds 0.705 in 5.8 % of groups, so a rho is
never shown without its n and p.

Ranks, Spearman's rho, Kendall's tau and Wilson's interval are scipy's.  Ours are the exact p, whose null is
the same for all groups of n teachers and cached here (scipy.stats.permutation_test counts it again in each
call), the interval of a rho and the partial correlation, which scipy lacks.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import scipy  # scipy.stats loads with its first use: a command that correlates nothing need not wait for it

STRENGTHS = ("weak", "modest", "strong")
MIN_SIGNIFICANT = 5  # teachers of which a perfect ranking has p < 0.05
COUNTED = 9  # teachers whose permutations are all counted; of more they are sampled
Z95 = 1.959964  # 97.5 % quantile of the standard normal distribution


def spearman(x, y) -> float:
    """Spearman's rho, ties at their mean rank; NaN where n < 3 or either is constant.

    x, y: (n,)

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8
    """
    x, y = _as_pair(x, y)
    if _is_undefined(x, y):
        return math.nan
    return round(float(scipy.stats.spearmanr(x, y).statistic), 12) + 0.0  # -0.0 + 0.0 is 0.0


def exact_p(x, y, *, draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided permutation p of Spearman's rho; NaN where rho is.

    The share of the permutations of y with an abs(rho) at least as large.  All are counted up to n = COUNTED
    (362,880).  Above, they are sampled and the observed one is added (Phipson and Smyth 2010).

    x, y: (n,)
    draws: number of sampled permutations
    seed: of the sample
    """
    x, y = _as_pair(x, y)
    rho = spearman(x, y)
    if math.isnan(rho):
        return math.nan
    n = len(x)
    rank_x = _standardize(scipy.stats.rankdata(x))
    rank_y = _standardize(scipy.stats.rankdata(y))
    tied = len(set(rank_x)) < n or len(set(rank_y)) < n
    if n > COUNTED:
        others = rank_y[_orders(n, draws, seed)] @ rank_x if tied else _sampled_null(n, draws, seed)
        null = np.append(others, rho)
    else:
        null = rank_y[_permutations(n)] @ rank_x if tied else _null(n)
    # permutations of the same rho differ in its last digits
    return float((np.abs(null) >= abs(rho) - 1e-9).mean())


def spearman_within(x, y, families) -> float:
    """Partial rank correlation given the family: Pearson's of ranks less their family's mean.

    It is what is left where two families differ in both x and y, as networks of two kinds of normalisation
    may.  A family of one contributes nothing.  NaN where fewer than 3 teachers share a family with another
    or nothing differs inside families.

    x, y: (n,)
    families: (n,) names

    >>> spearman_within([1, 2, 3, 7, 8, 9], [3, 2, 1, 9, 8, 7], list("aaabbb"))
    -1.0
    """
    x, y = _as_pair(x, y)
    _, family, sizes = np.unique(np.asarray(families), return_inverse=True, return_counts=True)
    if not len(x) or (sizes[family] > 1).sum() < 3:
        return math.nan
    rank_x = scipy.stats.rankdata(x)
    rank_y = scipy.stats.rankdata(y)
    rank_x -= (np.bincount(family, rank_x) / sizes)[family]
    rank_y -= (np.bincount(family, rank_y) / sizes)[family]
    scale = math.sqrt((rank_x @ rank_x) * (rank_y @ rank_y))
    if scale <= 1e-9:
        return math.nan
    return round(float(rank_x @ rank_y / scale), 12) + 0.0


def kendall(x, y) -> float:
    """Kendall's tau-b: concordant less discordant pairs, as a share; NaN where rho is.

    x, y: (n,)

    >>> round(kendall([1, 2, 3, 4], [10, 20, 40, 30]), 4)
    0.6667
    """
    x, y = _as_pair(x, y)
    if _is_undefined(x, y):
        return math.nan
    return float(scipy.stats.kendalltau(x, y).statistic)


def interval(rho: float, n: int) -> tuple[float, float]:
    """95 % interval of a rho over n teachers by Fisher's z; NaN where rho is.

    The variance of z is (1 + rho^2/2) / (n - 3) (Bonett and Wright 2000).  z is infinite at a perfect
    ranking, which therefore counts as half a step short of it.  In simulations of normal, heavy-tailed and
    clustered teachers (n = 6 to 8) it covers 92 to 98 %; a percentile or BCa bootstrap over teachers is wider
    and falls to 61 % near rho = 1.  n = 3 leaves (-1, 1).

    >>> [round(bound, 2) for bound in interval(-0.905, 8)]
    [-0.99, -0.43]
    """
    if math.isnan(rho):
        return math.nan, math.nan
    # rho moves in steps of 12 / (n^3 - n)
    largest = 1 - 6 / (n**3 - n)
    finite = min(max(rho, -largest), largest)
    reach = Z95 * math.sqrt((1 + finite**2 / 2) / (n - 3)) if n > 3 else math.inf
    low = math.tanh(math.atanh(finite) - reach)
    high = math.tanh(math.atanh(finite) + reach)
    return min(rho, low), max(rho, high)


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of the share that `hits` of n images sample (Wilson 1927); NaN for n = 0.

    >>> [round(bound, 3) for bound in share_interval(15, 60)]
    [0.158, 0.372]
    """
    if n == 0:
        return math.nan, math.nan
    bounds = scipy.stats.binomtest(int(hits), int(n)).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)


def difference_interval(hits: int, other_hits: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares, each of n images (Newcombe 1998).

    His method 10, from the intervals of both, which takes the images for different ones: of the same images
    it is somewhat too wide.  NaN for n = 0.

    >>> [round(bound, 3) for bound in difference_interval(30, 15, 60)]
    [0.077, 0.403]
    """
    if n == 0:
        return math.nan, math.nan
    share, other = hits / n, other_hits / n
    low, high = share_interval(hits, n)
    other_low, other_high = share_interval(other_hits, n)
    below = math.hypot(share - low, other_high - other)
    above = math.hypot(high - share, other - other_low)
    return share - other - below, share - other + above


def smallest_p(n: int) -> float:
    """The smallest exact two-sided p of n teachers: two of their n! orders are perfect.

    Of one teacher there is one order, and p is 1.

    >>> round(smallest_p(4), 3), smallest_p(1)
    (0.083, 1.0)
    """
    return min(1.0, 2 / math.factorial(n))


def strength(rho: float) -> str:
    """weak, modest or strong: abs(rho) to 2 decimals is at most 0.5, 0.7, above; '' for NaN.

    >>> [strength(r) for r in (0.5, -0.505, 0.704, -0.71)]
    ['weak', 'modest', 'modest', 'strong']
    """
    return "" if math.isnan(rho) else STRENGTHS[int(_strength_index(rho))]


def describe_rho(rho: float, n: int) -> str:
    """A rho of n teachers in words, with its strength where a perfect ranking is significant.

    >>> describe_rho(-0.8, 8), describe_rho(0.8, 4), describe_rho(math.nan, 2)
    ('-0.80, strong (n = 8)', '+0.80 (n = 4)', 'undefined (n = 2)')
    """
    if math.isnan(rho):
        return f"undefined (n = {n})"
    if n < MIN_SIGNIFICANT:
        return f"{rho:+.2f} (n = {n})"
    return f"{rho:+.2f}, {strength(rho)} (n = {n})"


def null_share(n: int, above: float = 0.705) -> float:
    """Share of groups of n >= 3 unrelated teachers whose abs(rho) exceeds `above`.

    Of all permutations up to COUNTED teachers, of more of 100,000 sampled ones.
    """
    return float((_null(n) > above + 1e-9).mean())


def null_summary(n: int) -> dict[str, float]:
    """Mean abs_rho and shares of weak, modest and strong groups of n >= 3 unrelated teachers.

    Of all permutations up to COUNTED teachers, of more of 100,000 sampled ones.

    >>> {name: round(value, 3) for name, value in null_summary(8).items()}
    {'abs_rho': 0.31, 'weak': 0.803, 'modest': 0.139, 'strong': 0.058}
    """
    null = _null(n)
    counts = np.bincount(_strength_index(null), minlength=3)
    shares = (counts / len(null)).tolist()
    return {"abs_rho": float(null.mean())} | dict(zip(STRENGTHS, shares, strict=True))


def _as_pair(x, y) -> tuple[np.ndarray, np.ndarray]:
    """x and y as fp64 (n,), empty where a value is NaN.  Raises ValueError for unequal lengths."""
    x = np.asarray(x, float)
    y = np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}: expected two of the same length")
    if np.isnan(x).any() or np.isnan(y).any():
        return x[:0], y[:0]
    return x, y


def _is_undefined(x: np.ndarray, y: np.ndarray) -> bool:
    return len(x) < 3 or x.min() == x.max() or y.min() == y.max()


def _standardize(ranks: np.ndarray) -> np.ndarray:
    """Ranks of mean 0 and length 1, whose dot product is rho."""
    centred = ranks - ranks.mean()
    return centred / np.sqrt(centred @ centred)


def _strength_index(rho) -> np.ndarray:
    """0 weak, 1 modest, 2 strong."""
    # half up, where numpy would round half to even
    rounded = np.floor(np.abs(rho) * 100 + 0.5 + 1e-9) / 100
    return np.searchsorted([0.5, 0.7], rounded)


@functools.cache
def _null(n: int) -> np.ndarray:
    """abs(rho) of permutations of n teachers without ties: of all (n!,), or of 100,000."""
    if n < 3:
        raise ValueError(f"n is {n}: expected 3 teachers or more, of fewer there is no rho")
    if n > COUNTED:
        return np.abs(_sampled_null(n, 100_000, 0))
    ranks = _standardize(np.arange(n, dtype=float))
    return np.abs(ranks[_permutations(n)] @ ranks)


@functools.lru_cache(maxsize=4)
def _sampled_null(n: int, draws: int, seed: int) -> np.ndarray:
    """rho of sampled permutations of n teachers without ties: (draws,)."""
    ranks = _standardize(np.arange(n, dtype=float))
    return ranks[_orders(n, draws, seed)] @ ranks


@functools.lru_cache(maxsize=4)
def _orders(n: int, draws: int, seed: int) -> np.ndarray:
    """Sampled permutations of n: (draws, n)."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (draws, 1)), axis=1)


@functools.cache
def _permutations(n: int) -> np.ndarray:
    """All permutations of n: (n!, n)."""
    return np.array(list(itertools.permutations(range(n))), dtype=np.int8)
