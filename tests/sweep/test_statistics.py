"""Intervals against printed tables, permutation tests by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from scope_jax.sweep.statistics import estimate, paired, sign_flip_p


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [  # printed tables of Student's t
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.975, 5, 2.571),
        (0.975, 19, 2.093),
        (0.95, 10, 1.812),
        (0.995, 9, 3.250),
        (0.975, 120, 1.980),
    ],
)
def test_intervals_against_printed_tables(probability, degrees, expected):
    assert t_of(2 * probability - 1, degrees) == pytest.approx(expected, abs=6e-4)


def test_intervals_in_closed_form():
    for t in (0.4, 1.0, 2.5):  # P(-t < T < t) for one, two and three degrees
        assert t_of(2 * math.atan(t) / math.pi, 1) == pytest.approx(t)  # Cauchy
        assert t_of(t / math.sqrt(2 + t * t), 2) == pytest.approx(t)
        cubic = math.atan(t / math.sqrt(3)) + (t / math.sqrt(3)) / (1 + t * t / 3)
        assert t_of(2 * cubic / math.pi, 3) == pytest.approx(t)


def t_of(level, degrees):
    """The quantile of Student's t that an interval was made with."""
    values = [float(i) for i in range(degrees + 1)]
    return estimate(values, level).half * math.sqrt(len(values)) / np.std(values, ddof=1)


def test_levels_outside_0_to_1_are_errors():
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="must lie in"):
            estimate([1.0, 2.0], level)


def test_an_interval_by_hand():
    got = estimate([1.0, 2.0, 3.0, 4.0, math.nan])
    # sd sqrt(5/3), t(3) 3.1824
    assert (got.mean, got.count) == (2.5, 4) and got.half == pytest.approx(
        3.1824 * math.sqrt(5 / 3) / 2, abs=1e-3
    )
    assert estimate([7.0]).mean == 7 and math.isnan(estimate([7.0]).half)
    assert math.isnan(estimate([]).mean) and estimate([]).count == 0


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits = sum(
        abs(e.mean) <= e.half for e in (estimate(rng.normal(size=5).tolist()) for _ in range(4000))
    )
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)


def test_sign_flips_by_hand():
    # Of the 8 assignments of (1, 2, 4): |sum| >= 7 for all plus and all minus.
    assert sign_flip_p([1.0, 2.0, 4.0]) == 2 / 8
    # (3, -1): |sum| >= 2 holds for every assignment of signs.
    assert sign_flip_p([3.0, -1.0]) == 1.0
    assert sign_flip_p([0.1] * 20) == 2 / 2**20
    assert math.isnan(sign_flip_p([]))
    # Drawn: the smallest that can be said, or by chance one more of the draws.
    assert 1 / 262145 <= sign_flip_p([0.1] * 25) <= 2 / 262145


def test_sign_flips_equal_scipys_permutation_test():
    rng = np.random.default_rng(1)
    for count in (2, 5, 9):
        gap = rng.normal(0.5, 1, count)
        reference = stats.permutation_test(
            (gap,), np.sum, permutation_type="samples", n_resamples=np.inf
        )
        assert sign_flip_p(gap.tolist()) == pytest.approx(reference.pvalue)


def test_pairs_remove_what_seeds_share():
    rng = np.random.default_rng(0)
    shared, noise = rng.normal(0, 1, 20), rng.normal(0, 0.01, 20)
    found = paired((shared + 0.02 + noise).tolist(), shared.tolist())
    assert found.difference.mean == pytest.approx(0.02, abs=0.01) and found.difference.half < 0.01
    assert found.p < 0.001 and found.ahead >= 17 and found.difference.count == 20
    with pytest.raises(ValueError, match="one of each per seed"):
        paired([1.0], [1.0, 2.0])
