"""Intervals against printed tables, permutation tests by hand."""

import math

import numpy as np
import pytest

from scope_jax.sweep.statistics import estimate, paired, sign_flip_p, t_cumulative, t_quantile


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
        (0.5, 3, 0.0),
        (0.025, 4, -2.776),
    ],
)
def test_quantiles_of_t(probability, degrees, expected):
    assert t_quantile(probability, degrees) == pytest.approx(expected, abs=6e-4)


def test_cumulative_of_t_in_closed_form():
    for t in (-3.0, -0.4, 0.0, 1.0, 2.5):
        assert t_cumulative(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi)  # Cauchy
        assert t_cumulative(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))
        cubic = math.atan(t / math.sqrt(3)) + (t / math.sqrt(3)) / (1 + t * t / 3)
        assert t_cumulative(t, 3) == pytest.approx(0.5 + cubic / math.pi)


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
    assert sign_flip_p([0.1] * 25) == pytest.approx(
        1 / 262145, rel=1
    )  # drawn: the smallest that can be said


def test_pairs_remove_what_seeds_share():
    rng = np.random.default_rng(0)
    shared, noise = rng.normal(0, 1, 20), rng.normal(0, 0.01, 20)
    found = paired((shared + 0.02 + noise).tolist(), shared.tolist())
    assert found.difference.mean == pytest.approx(0.02, abs=0.01) and found.difference.half < 0.01
    assert found.p < 0.001 and found.ahead >= 17 and found.difference.count == 20
    with pytest.raises(ValueError, match="one of each per seed"):
        paired([1.0], [1.0, 2.0])
