"""Means over seeds with their intervals, and paired comparisons of two methods on the same seeds."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# Up to so many pairs, every assignment of signs is tried; beyond, as many are drawn.
MOST_EXACT = 20
DRAWN = 1 << 18


@dataclasses.dataclass(frozen=True)
class Estimate:
    """mean ± half: the 95 % interval of the mean over `count` values; half is NaN for fewer than
    two."""

    mean: float
    half: float
    count: int


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and interval (Student's t). NaN values are left out; Raises ValueError for a level
    outside (0, 1)."""
    known = np.array([v for v in values if not math.isnan(v)], np.float64)
    n = len(known)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    half = math.nan
    if n > 1:
        half = t_quantile(0.5 + level / 2, n - 1) * float(known.std(ddof=1)) / math.sqrt(n)
    return Estimate(float(known.mean()), half, n)


@dataclasses.dataclass(frozen=True)
class Paired:
    """ours - theirs over common seeds: `difference`, `p` (two-sided, by flipping signs), and on
    how many seeds ours is ahead."""

    difference: Estimate
    p: float
    ahead: int


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare two methods seed by seed. Raises ValueError for lists of different lengths."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values: one of each per seed is needed")
    gap = np.array([a - b for a, b in zip(ours, theirs) if not math.isnan(a - b)], np.float64)
    return Paired(estimate(gap.tolist()), sign_flip_p(gap.tolist()), int(np.sum(gap > 0)))


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Share of all assignments of signs whose mean is at least as far from 0 as that of
    `differences` (a permutation test of paired values, two-sided). Exact up to 20 values, from
    262,144 drawn assignments beyond; NaN for none."""
    gap = np.asarray(differences, np.float64)
    n = len(gap)
    if n == 0:
        return math.nan
    # Rounding must not set the observed assignment apart from its equals.
    limit = abs(gap.sum()) * (1 - 1e-12) - 1e-300
    if n > MOST_EXACT:
        signs = np.random.default_rng(seed).integers(0, 2, (DRAWN, n)) * 2 - 1
        return float((np.sum(np.abs(signs @ gap) >= limit) + 1) / (DRAWN + 1))
    sums = np.zeros(1)
    for value in gap:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= limit))


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution. Raises ValueError unless 0 < probability < 1 and
    degrees >= 1."""
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(
            f"t_quantile({probability}, {degrees}): a probability inside (0, 1) and at least one"
            " degree are needed"
        )
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while t_cumulative(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cumulative(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def t_cumulative(t: float, degrees: int) -> float:
    """P(T <= t) for whole degrees of freedom: the finite sums of Abramowitz and Stegun, 26.7.3 and
    26.7.4."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    total, term = 0.0, 1.0
    if degrees % 2:
        term = cosine
        for k in range(1, (degrees - 1) // 2 + 1):
            total += term
            term *= cosine**2 * 2 * k / (2 * k + 1)
        inside = 2 / math.pi * (angle + sine * total)
    else:
        for k in range(1, degrees // 2 + 1):
            total += term
            term *= cosine**2 * (2 * k - 1) / (2 * k)
        inside = sine * total
    return 0.5 + 0.5 * inside
