"""Group advantages: literal cases, an independent numpy computation, rows left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scope_jax.learning.advantages import (
    AdvantageSpec,
    group_advantages,
    zero_group_share,
    zero_groups,
)

NAN = float("nan")


def oracle(reward, group, std, include, epsilon):
    """Row by row in float64, from the definition."""
    out = np.zeros(len(reward))
    for first in range(0, len(reward), group):
        rows = [i for i in range(first, first + group) if include[i] and not np.isnan(reward[i])]
        values = [float(reward[i]) for i in rows]
        if len(set(values)) < 2:
            continue
        mean = sum(values) / len(values)
        scale = (
            (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5 + epsilon if std else 1.0
        )
        for i, value in zip(rows, values):
            out[i] = (value - mean) / scale
    return out


def test_literal_groups():
    reward = np.array([1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1], np.float32)
    got = group_advantages(reward, 4)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(
        got, [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0, -0.5, -0.5, 0.5, 0.5]
    )
    # std of (1, 0, 0, 0) is sqrt(3)/4, so 0.75 becomes sqrt(3) and -0.25 becomes -1/sqrt(3).
    got = group_advantages(reward, 4, std=True)
    root = 3**0.5
    np.testing.assert_allclose(
        got, [root, -1 / root, -1 / root, -1 / root, 0, 0, 0, 0, -1, -1, 1, 1], rtol=1e-5
    )


def test_left_out_and_unscored_rows_are_out_of_the_mean():
    reward = np.array([1, 0, 0, NAN, 1, 0, 1, 0], np.float32)
    include = np.array([1, 1, 0, 1, 0, 1, 0, 1], bool)
    # group 0: rows 0 and 1 count; group 1: rows 5 and 7, both 0, though rows left out have 1.
    np.testing.assert_array_equal(
        group_advantages(reward, 4, include_B=include), [0.5, -0.5, 0, 0, 0, 0, 0, 0]
    )
    np.testing.assert_allclose(
        group_advantages(reward, 4), [2 / 3, -1 / 3, -1 / 3, 0, 0.5, -0.5, 0.5, -0.5], rtol=1e-6
    )
    assert float(zero_group_share(reward, 4, include)) == 0.5
    assert float(zero_group_share(reward, 4)) == 0.0


def test_nothing_included_gives_zero_not_nan():
    reward = np.array([NAN, NAN, 1, 0], np.float32)
    for std in (False, True):
        np.testing.assert_array_equal(
            group_advantages(reward, 2, std=std, include_B=np.array([1, 1, 0, 1], bool)),
            [0, 0, 0, 0],
        )
    assert float(zero_group_share(reward, 2)) == 0.5


def test_equal_rewards_give_exact_zero_where_a_mean_would_round():
    reward = np.full(12, 0.9, np.float32)
    assert np.any(
        reward[:3] - np.float32(reward[:3].sum(dtype=np.float32) / np.float32(3)) != 0
    )  # the trap is real
    for std in (False, True):
        np.testing.assert_array_equal(group_advantages(reward, 3, std=std), np.zeros(12))
    assert float(zero_group_share(reward, 3)) == 1.0


@pytest.mark.parametrize("std", [False, True])
def test_matches_numpy_under_jit(std):
    rng = np.random.default_rng(0)
    reward = rng.choice([0.0, 0.25, 1.0], size=60).astype(np.float32)
    reward[rng.random(60) < 0.15] = NAN
    include = rng.random(60) < 0.8
    want = oracle(reward, 5, std, include, 1e-3)
    assert np.abs(want).max() > 0.5
    got = jax.jit(lambda r, i: group_advantages(r, 5, std=std, include_B=i, epsilon=1e-3))(
        reward, include
    )
    np.testing.assert_allclose(got, want, atol=2e-6)
    scored = [
        set(reward[i : i + 5][include[i : i + 5] & ~np.isnan(reward[i : i + 5])])
        for i in range(0, 60, 5)
    ]
    share = jax.jit(lambda r, i: zero_group_share(r, 5, i))(reward, include)
    assert float(share) == pytest.approx(np.mean([len(s) < 2 for s in scored]))


def test_a_group_does_not_see_its_neighbour():
    reward = np.array([1, 0, 5, 2], np.float32)
    changed = np.array([1, 0, -7, 3], np.float32)
    np.testing.assert_array_equal(group_advantages(reward, 2)[:2], group_advantages(changed, 2)[:2])


def test_std_is_that_of_the_rows_that_count():
    # Rewards 3, 1 and 1 count: mean 5/3, population std sqrt(8) / 3. The 100 is not in it, nor the
    # row not judged.
    reward = np.array([3, 1, 100, 1, NAN], np.float32)
    got = group_advantages(
        reward, 5, std=True, include_B=np.array([1, 1, 0, 1, 1], bool), epsilon=0.0
    )
    np.testing.assert_allclose(got, [2**0.5, -(0.5**0.5), 0, -(0.5**0.5), 0], rtol=1e-6)
    # A std close to 0 does not make advantages large: epsilon is in the scale of rewards.
    got = group_advantages(np.array([1.0, 1.0 + 2e-6], np.float32), 2, std=True)
    assert 0 < float(got[1]) < 0.6


def test_zero_groups_are_known_on_the_host():
    reward = np.array([1, 1, 1, 0, NAN, 1, NAN, NAN, 0.9, 0.9], np.float32)
    zero = zero_groups(reward, 2)
    assert zero.tolist() == [True, False, True, True, True]
    assert zero.mean() == pytest.approx(float(zero_group_share(reward, 2)))
    assert np.asarray(group_advantages(reward, 2)).reshape(-1, 2)[zero].tolist() == [[0, 0]] * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"overlong_tokens": -1}, "advantage.overlong_tokens = -1 must be 0 or more"),
        ({"overlong_penalty": NAN}, "advantage.overlong_penalty = nan must be 0 or more"),
    ],
)
def test_bad_specs_are_named_in_one_line(wrong, message):
    with pytest.raises(ValueError) as error:
        AdvantageSpec(**wrong)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="6 rows do not make whole groups of 4"):
        group_advantages(np.zeros(6), 4)
    with pytest.raises(ValueError, match="whole groups of 0"):
        zero_group_share(np.zeros(6), 0)
    with pytest.raises(ValueError, match=r"include_B is float32\[6\]; expected bool\[6\]"):
        group_advantages(np.zeros(6), 3, include_B=np.ones(6, np.float32))
    with pytest.raises(ValueError, match=r"reward_B has shape \(3, 2\)"):
        group_advantages(np.zeros((3, 2)), 3)


# ---- other baselines, by hand


def test_leave_one_out_by_hand():
    """Each row minus the mean of the others of its group."""
    reward = np.array([1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1], np.float32)
    got = group_advantages(reward, 4, baseline="leave_one_out")
    third = 1 / 3
    np.testing.assert_allclose(
        got,
        [1, -third, -third, -third, 0, 0, 0, 0, -2 * third, -2 * third, 2 * third, 2 * third],
        rtol=1e-6,
    )
    # Rows that do not count are no others: of two that count each has the other alone; one alone
    # is compared with nobody.
    reward = np.array([1, 0, NAN, 1, 0.5, NAN, NAN, 1], np.float32)
    include = np.array([1, 1, 1, 0, 1, 1, 1, 0], bool)
    np.testing.assert_allclose(
        group_advantages(reward, 4, include_B=include, baseline="leave_one_out"),
        [1, -1, 0, 0, 0, 0, 0, 0],
    )


def test_the_batch_normalises_by_hand():
    """REINFORCE++ with and without the baseline of the group."""
    reward = np.array([1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1], np.float32)
    # Differences: 3/4, three times -1/4; 0; 1/2 four times. Squares: 12/16 + 4/4 = 7/4, of 12 rows.
    scale = (7 / 48) ** 0.5
    np.testing.assert_allclose(
        group_advantages(reward, 4, batch_std=True),
        np.array([0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0, -0.5, -0.5, 0.5, 0.5]) / scale,
        rtol=1e-5,
    )
    # Seven of twelve rows are right, whatever their group: mean 7/12, variance 35/144.
    root = 35**0.5
    np.testing.assert_allclose(
        group_advantages(reward, 4, baseline="batch", batch_std=True),
        np.where(reward == 1, 5, -7) / root,
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        group_advantages(reward, 4, baseline="batch"), reward - 7 / 12, rtol=1e-5
    )


def test_rows_that_do_not_count_are_not_in_the_batch():
    reward = np.array([1, 0, NAN, 9, 1, 1, 0, 1], np.float32)
    include = np.array([1, 1, 1, 0, 1, 1, 1, 1], bool)
    counts = include & ~np.isnan(reward)
    known = reward[counts].astype(np.float64)
    got = np.asarray(
        group_advantages(reward, 4, include_B=include, baseline="batch", batch_std=True)
    )
    np.testing.assert_allclose(got[counts], (known - known.mean()) / known.std(), rtol=1e-5)
    np.testing.assert_array_equal(got[~counts], 0)
    # The group's mean: (1, 0) and (1, 1, 0, 1).
    difference = np.array([0.5, -0.5, 0.25, 0.25, -0.75, 0.25])
    got = np.asarray(group_advantages(reward, 4, include_B=include, batch_std=True))
    np.testing.assert_allclose(got[counts], difference / np.std(difference), rtol=1e-5)


@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "batch"])
@pytest.mark.parametrize("batch_std", [False, True])
def test_equal_rewards_give_zero_under_every_baseline(baseline, batch_std):
    for reward in (np.full(6, 0.1, np.float32), np.full(6, NAN, np.float32)):
        got = group_advantages(reward, 3, baseline=baseline, batch_std=batch_std)
        np.testing.assert_array_equal(got, np.zeros(6))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"baseline": "mean"}, "advantage.baseline = 'mean' is unknown"),
        ({"std": True, "batch_std": True}, "does not go with advantage.batch_std"),
        ({"std": True, "baseline": "batch"}, "does not go with advantage.baseline 'batch'"),
        ({"std": True, "baseline": "leave_one_out"}, "set std to False"),
        ({"batch_std": True, "baseline": "leave_one_out"}, "set one of them back"),
    ],
)
def test_normalisations_that_take_each_other_away_are_refused(settings, reason):
    with pytest.raises(ValueError) as error:
        AdvantageSpec(**settings)
    assert reason in str(error.value) and "\n" not in str(error.value)
