"""Stage 5, `place`: accepted rows in the final groups, and what that does to their advantages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import (
    BUFFER,
    GROUP,
    IDLE,
    NAN,
    PAD,
    POLICY,
    PROMPT,
    RIGHT,
    SPEC,
    TEACHER,
    WRONG_1,
    WRONG_2,
    Outcome,
    bigram,
    groups_of,
    played,
    run,
    same,
    scene,
    text,
)

from scope_jax.correction import SelectSpec, choose, correct, finish, locate, place
from scope_jax.correction.place import targets
from scope_jax.learning import (
    LossSpec,
    group_advantages,
    policy_loss,
    token_weights,
    zero_group_share,
)
from scope_jax.types import Rollout


def test_place_parent_or_a_random_failure():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", WRONG_1 + "#")
    spec = dataclasses.replace(SPEC, place="replace_random_failure")
    places = set()
    for seed in range(12):
        result = run(batch, [1, 0, 0, 0], spec, seed=seed)
        (place,) = np.flatnonzero(result.reward_B - [1, 0, 0, 0])
        places.add(int(place))
        assert text(result.rollout, place) == RIGHT + "#" and result.rollout.row_id_B.tolist() == [
            0,
            1,
            2,
            3,
        ]
        assert same(result.rollout, batch, [row for row in range(4) if row != place])
        again = run(batch, [1, 0, 0, 0], spec, seed=seed)
        assert again.reward_B.tolist() == result.reward_B.tolist()
    assert places == {1, 2, 3}  # never the row that was right
    parent = run(batch, [1, 0, 0, 0], seed=5)
    assert parent.reward_B.tolist() == [1, 1, 0, 0]


def prefix_push(result, rows, kept=5) -> float:
    """How much a step of gradient descent raises log pi of the tokens that `rows` share, kept from
    one wrong rollout: minus the derivative of the loss, summed over those rows and over the `kept`
    tokens after the prompt; one update per batch."""
    advantage = group_advantages(result.reward_B, result.group, include_B=result.include_B)
    spec = LossSpec(teacher_term="mask", normaliser="constant", max_new_tokens=16)
    on, off = token_weights(result.rollout, spec, include_B=jnp.asarray(result.include_B))
    logp = jnp.where(result.rollout.owner_BT == POLICY, -1.0, 0.0)
    gradient = jax.grad(lambda logp: policy_loss(logp, None, advantage[:, None], on, off, spec)[0])(
        logp
    )
    return -float(gradient[np.asarray(rows), 7 : 7 + kept].sum())


def test_zero_variance_groups_before_and_after():
    def share(result: Outcome) -> float:
        return float(zero_group_share(result.reward_B, result.group, result.include_B))

    assert float(zero_group_share(np.zeros(4), GROUP)) == 1.0
    kept = run(scene(*[WRONG_2 + "#"] * 4), [0, 0, 0, 0])
    assert kept.reward_B.tolist() == [1, 1, 0, 0] and share(kept) == 0.0
    # Every failure rescued: all right, so that a group that had an advantage has none; the reason
    # for `keep_failure`.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", RIGHT + "#")
    spec = dataclasses.replace(SPEC, select=SelectSpec(per_group=2, keep_failure=False))
    everything = run(batch, [1, 0, 0, 1], spec)
    assert everything.reward_B.tolist() == [1] * 4 and share(everything) == 1.0
    assert prefix_push(everything, range(4)) == 0.0
    # Beside their parents the rescues leave a group with both.
    beside = run(batch, [1, 0, 0, 1], dataclasses.replace(spec, place="append"))
    assert beside.reward_B.tolist() == [1, 0, 0, 1, 1, 1] and share(beside) == 0.0


def two_groups(first: Rollout, second: Rollout) -> Rollout:
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    return rows.replace(row_id_B=jnp.arange(2 * GROUP, dtype=jnp.int32))


APPEND = dataclasses.replace(SPEC, place="append")


def test_appended_rows_token_by_token():
    # The first group has one failure to rescue (and one to keep); the second has two, and room for
    # both.
    first = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    second = scene(WRONG_1 + "#", WRONG_2 + "#", RIGHT + "#", WRONG_2 + "#")
    batch = two_groups(first, second)
    result = run(batch, [1, 0, 0, 1, 0, 0, 1, 0], APPEND)
    final = result.rollout
    assert result.group == 6 and final.tokens_BT.shape == (12, BUFFER)
    # The rollouts are where they were in their groups, as they were.
    here = [0, 1, 2, 3, 6, 7, 8, 9]
    for name in (
        "tokens_BT",
        "owner_BT",
        "logp_BT",
        "length_B",
        "prompt_length_B",
        "finished_B",
        "row_id_B",
    ):
        np.testing.assert_array_equal(
            np.asarray(getattr(final, name))[here], getattr(batch, name), err_msg=name
        )
    for row in (4, 10, 11):
        assert text(final, row) == RIGHT + "#"
        assert final.owner_BT[row].tolist() == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [
            POLICY
        ] * 5 + [PAD]
        np.testing.assert_array_equal(final.logp_BT[row, :12], batch.logp_BT[1, :12])
        assert bool(final.finished_B[row])
    # The place that was not taken holds the prompt, no written token, and counts nowhere.
    assert text(final, 5) == "" and bool(final.finished_B[5])
    assert final.owner_BT[5].tolist() == [PROMPT] * 7 + [PAD] * 16
    assert final.tokens_BT[5].tolist() == batch.tokens_BT[0, :7].tolist() + [0] * 16
    assert (final.logp_BT[5] == 0).all()
    np.testing.assert_array_equal(result.reward_B, [1, 0, 0, 1, 1, NAN, 0, 0, 1, 0, 1, 1])
    assert result.include_B.tolist() == [True] * 5 + [False] + [True] * 6
    assert len(set(final.row_id_B.tolist())) == 12  # an id of its own for every row
    assert result.metrics["scope/selected"] == 3 and result.metrics["scope/accepted"] == 3
    # The mean is over real rows: 3 of 5 and 3 of 6.
    advantage = np.asarray(group_advantages(result.reward_B, 6, include_B=result.include_B))
    np.testing.assert_allclose(
        advantage, [0.4, -0.6, -0.6, 0.4, 0.4, 0, -0.5, -0.5, 0.5, -0.5, 0.5, 0.5], rtol=1e-6
    )
    on, off = token_weights(
        final,
        LossSpec(normaliser="constant", max_new_tokens=16),
        include_B=jnp.asarray(result.include_B),
    )
    assert float(on[5].sum() + off[5].sum()) == 0.0
    np.testing.assert_allclose(
        on[4, 7:22], np.array([1] * 5 + [0] * 5 + [1] * 5) / (11 * 16), rtol=1e-6
    )  # 11 rows, not 12


def test_appended_rows_where_nothing_is_accepted():
    batch = scene(*[RIGHT + "#"] * 4)
    result = run(batch, [1, 1, 1, 1], APPEND)
    assert result.group == 6 and same(result.rollout, batch, range(4))
    np.testing.assert_array_equal(result.reward_B, [1] * 4 + [NAN] * 2)
    assert result.include_B.tolist() == [True] * 4 + [False] * 2
    assert result.rollout.length_B.tolist()[4:] == [7, 7]
    failed = run(
        scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#"),
        [1, 0, 0, 1],
        APPEND,
        policy=bigram("\n+190#"),
    )
    assert failed.metrics["scope/corrected"] == 1 and failed.metrics["scope/accepted"] == 0
    assert failed.include_B.tolist() == [True] * 4 + [
        False
    ] * 2 and failed.rollout.length_B.tolist()[4:] == [7, 7]


def test_appended_rows_without_a_verdict_give_the_teacher_term_only():
    spec = dataclasses.replace(APPEND, tail="none", accept="unverified")
    result = run(
        scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#"),
        [1, 0, 0, 1],
        spec,
        policy=IDLE,
    )
    assert text(result.rollout, 4) == "+777\n-987\n"
    assert result.include_B.tolist() == [True] * 4 + [False] * 2
    on, off = token_weights(
        result.rollout, LossSpec(normaliser="token"), include_B=jnp.asarray(result.include_B)
    )
    assert (
        float(on[4].sum()) == 0.0
        and (np.asarray(off[4]) > 0).tolist() == [False] * 12 + [True] * 5 + [False] * 6
    )


def test_a_failed_parent_beside_its_correction_cancels_the_shared_prefix():
    # Two of the three failures share their right first line (5 tokens) with the rescues made of
    # them.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_1 + "#")
    beside = run(batch, [1, 0, 0, 0], APPEND)
    assert beside.reward_B.tolist() == [1, 0, 0, 0, 1, 1]
    # Six rows, mean 1/2: each parent pushes its prefix down by as much as its rescue pushes it up.
    assert prefix_push(beside, [1, 2]) == pytest.approx(-2 * 5 * 0.5 / (6 * 16))
    assert prefix_push(beside, [4, 5]) == pytest.approx(2 * 5 * 0.5 / (6 * 16))
    assert prefix_push(beside, [1, 2, 4, 5]) == pytest.approx(0, abs=1e-7)
    # In their parents' places: four rows, mean 3/4, nothing against them.
    instead = run(batch, [1, 0, 0, 0])
    assert instead.reward_B.tolist() == [1, 1, 1, 0]
    assert prefix_push(instead, [1, 2]) == pytest.approx(2 * 5 * 0.25 / (4 * 16))
    # With another mean what is left is what the mean leaves: one rescue of two failures, 3 of 5
    # right, 0.4 - 0.6.
    one = run(scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#"), [1, 0, 0, 1], APPEND)
    assert prefix_push(one, [1, 4]) == pytest.approx(5 * (0.4 - 0.6) / (5 * 16))


# ---- the stage


def test_targets_literal():
    """Where the first rows of two groups of four go, with room for two more rows each."""
    rows = np.array([1, 2, 6])
    groups = groups_of(
        two_groups(scene(*[RIGHT] * 4), scene(*[RIGHT] * 4)), [1, 0, 0, 1, 0, 1, 0, 1]
    )
    assert targets(rows, groups, SPEC, 0).tolist() == [1, 2, 6]
    assert targets(rows, groups, APPEND, 0).tolist() == [4, 5, 10]
    draw = dataclasses.replace(SPEC, place="replace_random_failure")
    drawn = [targets(rows, groups, draw, seed).tolist() for seed in range(20)]
    assert {tuple(sorted(row[:2])) for row in drawn} == {(1, 2)}
    assert {row[2] for row in drawn} == {4, 6}


def test_place_literal():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    groups = groups_of(batch, [1, 0, 0, NAN])
    played_by = played()
    chosen = choose(locate(groups, groups.failed_B, played_by), groups, SPEC.select, 0)
    attempts = finish(correct(chosen, groups, played_by, SPEC), played_by, SPEC)
    final = place(attempts, groups, SPEC, 0)
    assert final.group == 4 and final.problems == groups.problems
    np.testing.assert_array_equal(final.reward_B, [1, 1, 0, NAN])
    assert final.include_B.tolist() == [True, True, True, False]
    assert text(final.rollout, 1) == RIGHT + "#" and same(final.rollout, batch, [0, 2, 3])
    assert groups.reward_B[1] == 0  # what came in is left as it was
    lost = dataclasses.replace(attempts, accepted_R=np.array([False, False]))
    assert same(place(lost, groups, SPEC, 0).rollout, batch, range(4))
    larger = place(attempts, groups, APPEND, 0)
    assert larger.group == 6 and len(larger.problems) == 6 and larger.own_B.all()
    assert text(larger.rollout, 4) == RIGHT + "#" and text(larger.rollout, 5) == ""
