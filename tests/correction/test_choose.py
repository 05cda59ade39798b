"""Stage 2, `choose`: which failures get a step of the teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import RIGHT, WRONG_1, WRONG_2, WRONG_3, groups_of, played, run, same, scene

from scope_jax.correction import (
    CorrectionSpec,
    Groups,
    LocaliserSpec,
    SelectSpec,
    choose,
    locate,
    rescue,
    select,
)
from scope_jax.correction.localisers import Oracle
from scope_jax.learning import group_advantages


def chosen(eligible, quality, failed, group, seed=0, **spec) -> list[int]:
    rows = select(
        np.array(eligible, bool),
        np.array(quality, float),
        np.array(failed, bool),
        group,
        SelectSpec(**spec),
        seed,
    )
    assert rows.dtype == np.int64
    return rows.tolist()


def test_band_uses_quantiles_of_all_eligible_rows():
    # Two groups of 6. Eligible qualities 0.0, 0.1 ... 1.0 but for one row; quantiles 0.1 and 0.9
    # of them are 0.1 and 0.9.
    quality = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 99.0]
    eligible = [True] * 11 + [False]
    everything = {"rule": "band", "per_group": 6, "keep_failure": False}
    assert chosen(eligible, quality, [True] * 12, 6, **everything) == [5, 4, 3, 2, 1, 9, 8, 7, 6]
    assert chosen(eligible, quality, [True] * 12, 6, **everything, quantiles=(0.0, 1.0)) == [
        5,
        4,
        3,
        2,
        1,
        0,
        10,
        9,
        8,
        7,
        6,
    ]
    assert chosen(eligible, quality, [True] * 12, 6, **{**everything, "rule": "all"})[-5:] == [
        10,
        9,
        8,
        7,
        6,
    ]
    # By group alone, row 5 (the best of its group) would be outside and row 6 (the worst of its
    # own) too.
    assert chosen(eligible, quality, [True] * 12, 6, rule="band", per_group=1) == [5, 9]


def test_cap_ties_and_the_failure_that_stays():
    quality = [0.5, 0.7, 0.7, 0.2]
    assert chosen([1, 1, 1, 1], quality, [1, 1, 1, 1], 4, rule="top", per_group=2) == [
        1,
        2,
    ]  # a tie goes to the lower row
    assert chosen([1, 1, 1, 1], quality, [1, 1, 1, 1], 4, rule="top", per_group=9) == [
        1,
        2,
        0,
    ]  # failures - 1
    assert chosen(
        [1, 1, 1, 1], quality, [1, 1, 1, 1], 4, rule="top", per_group=9, keep_failure=False
    ) == [1, 2, 0, 3]
    # One failure only: rescuing it would leave the group without an advantage.
    assert chosen([0, 1, 0, 0], quality, [0, 1, 0, 0], 4, rule="all", per_group=2) == []
    assert chosen(
        [0, 1, 0, 0], quality, [0, 1, 0, 0], 4, rule="all", per_group=2, keep_failure=False
    ) == [1]
    assert chosen([0, 0, 0, 0], quality, [0, 0, 0, 0], 4, rule="band") == []
    # A failed row that is not eligible still is the one that stays.
    assert chosen([0, 1, 1, 0], quality, [1, 1, 1, 0], 4, rule="all") == [1, 2]


def test_all_takes_every_eligible_row_and_top_the_best():
    quality = [0.5, 0.7, 0.7, 0.2, 0.1, 0.9]
    assert chosen([1] * 6, quality, [1] * 6, 6, rule="all", per_group=2) == [
        5,
        1,
        2,
        0,
        3,
    ]  # one failure stays
    assert chosen([1] * 6, quality, [1] * 6, 6, rule="all", per_group=2, keep_failure=False) == [
        5,
        1,
        2,
        0,
        3,
        4,
    ]
    assert chosen([1] * 6, quality, [1] * 6, 6, rule="top", per_group=2) == [5, 1]
    assert (
        SelectSpec(rule="all", per_group=2).most(6) == 5
        and SelectSpec(rule="top", per_group=2).most(6) == 2
    )
    assert (
        SelectSpec(per_group=9).most(6) == 5
        and SelectSpec(per_group=9, keep_failure=False).most(6) == 6
    )
    assert SelectSpec().most(1) == SelectSpec(rule="all").most(0) == 0


def test_all_failed_groups_only():
    quality = [0.9, 0.8, 0.7, 0.6]
    assert chosen(
        [1, 1, 1, 1], quality, [1, 1, 1, 0], 2, rule="top", groups="all_failed", per_group=1
    ) == [0]
    assert chosen(
        [1, 1, 1, 0],
        quality,
        [1, 1, 1, 0],
        2,
        rule="top",
        groups="any",
        per_group=1,
        keep_failure=False,
    ) == [0, 2]


def test_random_is_reproducible_and_blind_to_quality():
    def draw(seed: int, quality: list[float]) -> list[int]:
        return chosen([1] * 8, quality, [1] * 8, 8, seed, rule="random", per_group=3)

    rising = list(np.linspace(0, 1, 8))
    assert draw(1, rising) == draw(1, rising[::-1])
    assert len({tuple(draw(seed, rising)) for seed in range(20)}) > 10
    assert set().union(*(draw(seed, rising) for seed in range(20))) == set(range(8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rule": "best"},
            "method.select.rule = 'best' is unknown; one of top, band, random, all",
        ),
        ({"groups": "some"}, "method.select.groups = 'some' is unknown"),
        ({"quantiles": (0.9, 0.1)}, "must ascend in [0, 1]"),
        ({"quantiles": (0.1, 1.5)}, "must ascend in [0, 1]"),
        ({"per_group": 0}, "per_group 0 be >= 1"),
    ],
)
def test_select_spec_refuses(settings, message):
    with pytest.raises(ValueError) as caught:
        SelectSpec(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rows_cut_off_by_length_are_no_candidates():
    batch = scene(RIGHT + "#", "+777\n-988\n+199-", "+777\n-988\n+199-", WRONG_2 + "#")
    result = run(batch, [1, 0, 0, 0])
    assert result.metrics["scope/cut_off"] == 2 and result.metrics["scope/selected"] == 1
    assert result.reward_B.tolist() == [1, 0, 0, 1]


def test_an_empty_completion_is_no_candidate():
    batch = scene("#", "#", "#", "#")
    result = run(batch, [0, 0, 0, 0])
    assert result.metrics["scope/selected"] == 0 and same(result.rollout, batch, range(4))


# ---- the stage


def test_choose_literal():
    """Of four failures: one without a good step, one cut off by length, and of the other two the
    one with the longer prefix first."""
    batch = scene(WRONG_2 + "#", WRONG_1 + "#", WRONG_3 + "#", "+777\n-988\n+199-")
    groups = groups_of(batch, [0, 0, 0, 0])
    located = locate(groups, groups.failed_B, played())
    chosen = choose(located, groups, SelectSpec(per_group=2), seed=0)
    assert chosen.rows_N.tolist() == chosen.position_N.tolist() == [2, 0]
    share = chosen.metrics.pop("scope/first_error_position")
    assert share == pytest.approx((1 / 3 + 0 + 2 / 3 + 1 / 3) / 4)
    assert chosen.metrics == located.metrics | {
        "scope/failed_share": 1.0,
        "scope/located_share": 1.0,
        "scope/cut_off": 1,
        "scope/no_good_step": 1,
        "scope/eligible": 2,
        "scope/selected": 2,
    }
    assert choose(located, groups, SelectSpec(per_group=1), seed=0).rows_N.tolist() == [2]
    some = groups_of(scene(RIGHT + "#", WRONG_1 + "#", WRONG_3 + "#", WRONG_2 + "#"), [1, 0, 0, 0])
    located = locate(some, some.failed_B, played())
    chosen = choose(located, some, SelectSpec(), seed=0)
    # Positions count among the rows that were located.
    assert chosen.rows_N.tolist() == [2, 3] and chosen.position_N.tolist() == [1, 2]


# ---- groups that failed altogether, one repair each


def two_groups(first: list[str], second: list[str], reward: list[float]) -> Groups:
    batches = [scene(*(row + "#" for row in rows)) for rows in (first, second)]
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *batches)
    return groups_of(rows.replace(row_id_B=jnp.arange(8, dtype=jnp.int32)), reward)


FAILED = SelectSpec(groups="all_failed", per_group=1)


@dataclasses.dataclass
class Counting:
    """The oracle, and the rows that it was asked of."""

    spec = LocaliserSpec("oracle")
    asked: list[list[int]] = dataclasses.field(default_factory=list)

    def score(self, rows, scene):
        self.asked.append(rows.rows_R.tolist())
        return Oracle(self.spec).score(rows, scene)


def test_one_repair_in_each_group_that_failed_altogether():
    # The first group has a right row and a failure with two good steps, the second has none that
    # is right: rows 5 and 6 have a good step.
    groups = two_groups(
        [RIGHT, WRONG_3, WRONG_2, WRONG_1],
        [WRONG_1, WRONG_2, WRONG_3, WRONG_1],
        [1, 0, 0, 0, 0, 0, 0, 0],
    )
    counting = Counting()
    scene_ = dataclasses.replace(played(), localiser=counting)
    result = rescue(groups, scene_, CorrectionSpec(select=FAILED))
    # The best prefix of the second group is that of row 6, which has no room for the teacher's line
    # and another one: it is tried, and not accepted.
    assert counting.asked == [[4, 5, 6, 7]]
    shown = ("eligible", "selected", "accepted", "groups_failed", "groups_repaired")
    assert [result.metrics[f"scope/{name}"] for name in shown] == [2, 1, 0, 1, 0]
    assert same(result.groups.rollout, groups.rollout, range(8))
    # Where the failures have one good step each the lower row is repaired, and no other.
    groups = two_groups(
        [RIGHT, WRONG_2, WRONG_2, WRONG_1],
        [WRONG_1, WRONG_2, WRONG_2, WRONG_1],
        [1, 0, 0, 0, 0, 0, 0, 0],
    )
    result = rescue(groups, scene_, CorrectionSpec(select=FAILED))
    assert [result.metrics[f"scope/{name}"] for name in shown] == [2, 1, 1, 1, 1]
    assert result.groups.reward_B.tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    # What the page says: 1 - 1/4, and -1/4.
    advantage = group_advantages(result.groups.reward_B, 4, include_B=result.groups.include_B)
    assert advantage.tolist() == [0.75, -0.25, -0.25, -0.25, -0.25, 0.75, -0.25, -0.25]
    # With prefixes to be spared all failures are looked at, and the same one is repaired.
    spec = CorrectionSpec(select=FAILED, spare_prefix=True)
    result = rescue(groups, scene_, spec)
    assert counting.asked[1:] == [[4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]]
    assert [result.metrics[f"scope/{name}"] for name in shown] == [2, 1, 1, 1, 1]
    assert result.groups.credit_from_B.tolist() == [0, 12, 12, 7, 7, 0, 12, 7]


def test_a_row_that_was_not_judged_is_no_right_one():
    nan = float("nan")
    # All judged rows of the second group failed.
    groups = two_groups(
        [RIGHT, WRONG_2, WRONG_2, WRONG_1], [WRONG_2] * 4, [1, 0, 0, nan, *[0] * 3, nan]
    )
    result = rescue(groups, played(), CorrectionSpec(select=FAILED))
    np.testing.assert_array_equal(result.groups.reward_B, [1, 0, 0, nan, 1, 0, 0, nan])
    assert result.metrics["scope/groups_failed"] == 1
    unknown = two_groups([RIGHT] * 4, [WRONG_2] * 4, [1, 1, 1, 1, *[nan] * 4])
    nothing = rescue(unknown, played(), CorrectionSpec(select=FAILED))
    assert [nothing.metrics[f"scope/{n}"] for n in ("groups_failed", "groups_repaired")] == [0, 0]
    assert "scope/groups_failed" not in rescue(groups, played(), CorrectionSpec()).metrics
