"""Means over seeds with their intervals, and paired comparisons of methods on common seeds."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

MOST_EXACT = 20  # pairs up to which every assignment of signs is tried
DRAWN = 1 << 18  # assignments drawn at random for more pairs


@dataclasses.dataclass(frozen=True)
class Estimate:
    """mean ± half, the confidence interval of a mean."""

    mean: float
    half: float  # half of the interval's width; NaN for fewer than two values
    count: int  # number of values


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and interval (Student's t); NaN values are left out. Raises ValueError for a level
    outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie in (0, 1)")
    known = np.array([v for v in values if not math.isnan(v)], np.float64)
    n = len(known)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf(0.5 + level / 2, n - 1) * known.std(ddof=1)) / math.sqrt(n)
    return Estimate(float(known.mean()), half, n)


@dataclasses.dataclass(frozen=True)
class Paired:
    """ours - theirs over the seeds that both have."""

    difference: Estimate
    p: float  # two-sided, of the sign-flip test
    ahead: int  # seeds on which ours is ahead; ties do not count


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare two methods seed by seed. Raises ValueError for lists of different lengths."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values: one of each per seed is needed")
    gap = np.array([a - b for a, b in zip(ours, theirs) if not math.isnan(a - b)], np.float64)
    return Paired(estimate(gap.tolist()), sign_flip_p(gap.tolist()), int(np.sum(gap > 0)))


def welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[Estimate, float]:
    """(ours - theirs, p) of runs that are not paired: Welch's interval of 95 % and two-sided test,
    which ask for no equal variances. NaN values are left out; interval and p are NaN for fewer than
    two values on a side. The count is that of ours."""
    sides = [
        np.array([v for v in side if not math.isnan(v)], np.float64) for side in (ours, theirs)
    ]
    counts = [len(side) for side in sides]
    if min(counts) == 0:
        return Estimate(math.nan, math.nan, 0), math.nan
    gap = float(sides[0].mean() - sides[1].mean())
    if min(counts) == 1:
        return Estimate(gap, math.nan, counts[0]), math.nan
    parts = [float(side.var(ddof=1)) / n for side, n in zip(sides, counts)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Estimate(gap, 0.0, counts[0]), float(gap == 0)
    freedom = sum(parts) ** 2 / sum(v**2 / (n - 1) for v, n in zip(parts, counts))
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Estimate(gap, half, counts[0]), float(2 * stats.t.sf(abs(gap) / error, freedom))


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Share of all assignments of signs whose sum is at least as far from 0 as that of
    `differences`: a two-sided permutation test of paired values. Exact up to 20 values, from
    262,144 random assignments beyond; NaN for none.

    `scipy.stats.permutation_test` does the same, but takes seconds for 20 pairs, where the sums of
    all assignments, doubled value by value, take milliseconds.
    """
    gap = np.asarray(differences, np.float64)
    n = len(gap)
    if n == 0:
        return math.nan
    # Rounding must not separate the observed assignment from its equals.
    limit = abs(gap.sum()) * (1 - 1e-12) - 1e-300
    if n > MOST_EXACT:
        signs = np.random.default_rng(seed).integers(0, 2, (DRAWN, n)) * 2 - 1
        return float((np.sum(np.abs(signs @ gap) >= limit) + 1) / (DRAWN + 1))
    sums = np.zeros(1)
    for value in gap:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= limit))
