"""Accepted rows beside their parents (`place` pair), credit at the divergence, and prefixes that
carry no weight: every token's weight, written out."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import (
    GROUP,
    IDLE,
    NAN,
    RIGHT,
    SPEC,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    bigram,
    groups_of,
    played,
    same,
    scene,
    text,
)

from scope_jax.correction import CorrectionSpec, Groups, Rescue, SelectSpec, rescue
from scope_jax.correction.place import targets
from scope_jax.learning import LossSpec, group_advantages, token_weights
from scope_jax.types import Rollout

ONE = SelectSpec(per_group=1)
PAIR = CorrectionSpec(select=ONE, place="pair", credit="divergence")


def rescued(batch: Rollout, reward: list[float], spec: CorrectionSpec, **parts) -> Rescue:
    return rescue(groups_of(batch, reward), played(**parts), spec)


def push(final: Groups, loss: LossSpec) -> tuple[np.ndarray, np.ndarray]:
    """(weight times advantage of each POLICY token, weight of each TEACHER token), [B, T]: what a
    step of gradient descent raises their log-probs by, at ratio 1 and lambda 1."""
    advantage = group_advantages(final.reward_B, final.group, include_B=final.include_B)
    on, off = token_weights(
        final.rollout,
        loss,
        include_B=jnp.asarray(final.include_B),
        credit_from_B=None if final.credit_from_B is None else jnp.asarray(final.credit_from_B),
    )
    return np.asarray(on * advantage[:, None]), np.asarray(off)


def literal(*rows: list[tuple[int, float]]) -> np.ndarray:
    """[B, 23]: each row as runs of (tokens, value), the prompt's 7 first; the rest 0."""
    out = np.zeros((len(rows), 23))
    for b, runs in enumerate(rows):
        at = 7
        for count, value in runs:
            out[b, at : at + count] = value
            at += count
    return out


def test_a_group_of_four_token_by_token():
    # Two steps of five tokens, then four and the end. Row 1 goes wrong in its second step; the
    # cut is at position 12. Rows 2 and 3 have no good step, so one of them gives its place.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", WRONG_1 + "#")
    result = rescued(batch, [1, 0, 0, 0], PAIR)
    final = result.groups
    [place] = [row for row in (2, 3) if final.reward_B[row] == 1]
    other = 5 - place
    assert final.reward_B.tolist() == [1, 0, *([1, 0] if place == 2 else [0, 1])]
    assert text(final.rollout, place) == RIGHT + "#" and same(final.rollout, batch, [0, 1, other])
    assert final.credit_from_B is not None
    assert final.credit_from_B.tolist() == [0, 12, *([12, 0] if place == 2 else [0, 12])]
    # Mean 1/2. N: 4 rows of 15 tokens, the 10 that are spared included.
    n = 0.5 / 60
    rows = {
        0: [(15, n)],  # right as it was
        1: [(5, 0), (10, -n)],  # the parent: from its error on
        place: [(5, 0), (5, 0), (5, n)],  # the prefix, the teacher's step, the policy's tail
        other: [(15, -n)],  # the failure that nobody repaired
    }
    on, off = push(final, LossSpec(normaliser="token"))
    np.testing.assert_allclose(on, literal(*(rows[b] for b in range(4))), rtol=1e-6)
    taught = {b: [(5, 0), (5, 1 / 60 if b == place else 0)] for b in range(4)}
    np.testing.assert_allclose(off, literal(*(taught[b] for b in range(4))), rtol=1e-6)
    assert (result.metrics["scope/paired"], result.metrics["scope/spared_tokens"]) == (1, 10)
    # The other normalisers count what is spared too: rows of 16, and rows of 15 tokens each.
    for loss, count in (
        (LossSpec(normaliser="constant", max_new_tokens=16), 64),
        (LossSpec(normaliser="sequence"), 60),
    ):
        on, _ = push(final, loss)
        np.testing.assert_allclose(on[1], literal([(5, 0), (10, -0.5 / count)])[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("place", "rewards", "credit_from"),
    [
        # The parent is gone; the accepted row's own prefix carries nothing.
        ("replace_parent", [1, 1, 0, 1], [0, 12, 0, 0]),
        # Row 2 is the one other failure.
        ("pair", [1, 0, 1, 1], [0, 12, 12, 0]),
        ("append", [1, 0, 0, 1, 1], [0, 12, 0, 0, 12]),
    ],
)
def test_credit_goes_with_every_place(place, rewards, credit_from):
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    spec = dataclasses.replace(PAIR, place=place)
    final = rescued(batch, [1, 0, 0, 1], spec).groups
    assert final.reward_B.tolist() == rewards and final.credit_from_B.tolist() == credit_from
    whole = rescued(batch, [1, 0, 0, 1], dataclasses.replace(spec, credit="row"))
    assert whole.groups.credit_from_B is None and whole.groups.reward_B.tolist() == rewards
    assert same(whole.groups.rollout, final.rollout, range(len(rewards)))
    assert "scope/spared_tokens" not in whole.metrics
    assert ("scope/paired" in whole.metrics) == (place == "pair")


def test_a_random_place_may_be_the_parents():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    spec = dataclasses.replace(PAIR, place="replace_random_failure")
    seen = set()
    for seed in range(12):
        final = rescued(batch, [1, 0, 0, 1], spec, seed=seed).groups
        seen.add((*final.reward_B.tolist(), *final.credit_from_B.tolist()))
    assert seen == {(1, 1, 0, 1, 0, 12, 0, 0), (1, 0, 1, 1, 0, 12, 12, 0)}


def test_targets_of_pairs_literal():
    groups = groups_of(scene(*[RIGHT] * 4), [0, 0, 0, 0])
    spec = dataclasses.replace(PAIR, select=SelectSpec(per_group=3))
    yes, no = True, False

    def found(rows: list[int], accepted: list[bool]) -> set[tuple[int, ...]]:
        return {
            tuple(targets(np.array(rows), groups, spec, seed, np.array(accepted)).tolist())
            for seed in range(40)
        }

    assert found([1], [yes]) == {(0,), (2,), (3,)}
    assert found([1, 0], [yes, yes]) == {(2, 3), (3, 2)}  # never a parent's place
    # A row that was tried and not accepted is a failure like others; its own number is not read.
    assert found([1, 0], [yes, no]) == {(0, 0), (2, 0), (3, 0)}
    # One failure is left for three: the best row has it, the others replace their parents.
    assert found([2, 0, 1], [yes, yes, yes]) == {(3, 0, 1)}
    everyone = groups_of(scene(*[RIGHT] * 4), [1, 0, NAN, 1])
    assert targets(np.array([1]), everyone, spec, 0).tolist() == [1]  # no other failure


def test_parents_are_replaced_where_no_failure_is_left():
    # Three failures of which two are repaired: one place, then the parent's own.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_1 + "#")
    spec = dataclasses.replace(PAIR, select=SelectSpec(per_group=2))
    result = rescued(batch, [1, 0, 0, 0], spec)
    assert result.groups.reward_B.tolist() == [1, 0, 1, 1]
    assert result.groups.credit_from_B.tolist() == [0, 12, 12, 12]
    assert (result.metrics["scope/accepted"], result.metrics["scope/paired"]) == (2, 1)


def test_what_was_not_accepted_is_no_pair():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    lost = rescued(batch, [1, 0, 0, 1], PAIR, policy=bigram("\n+190#"))
    nobody = rescued(scene(*[RIGHT + "#"] * 4), [1] * 4, PAIR)
    for result in (lost, nobody):
        assert result.groups.credit_from_B.tolist() == [0] * GROUP
        shown = ("scope/accepted", "scope/paired", "scope/spared_tokens")
        assert [result.metrics[name] for name in shown] == [0, 0, 0]
    assert same(lost.groups.rollout, batch, range(4))


def test_an_unverified_row_has_the_teachers_weight_alone():
    spec = dataclasses.replace(PAIR, tail="none", accept="unverified")
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    final = rescued(batch, [1, 0, 0, 1], spec, policy=IDLE).groups
    assert text(final.rollout, 2) == "+777\n-987\n"
    assert final.include_B.tolist() == [True, True, False, True]
    on, off = push(final, LossSpec(normaliser="token"))
    # Mean of the rows that count 2/3; N 3 x 15 and the teacher's 5.
    n = 1 / 3 / 50
    expected = literal([(15, n)], [(5, 0), (10, -2 * n)], [(10, 0)], [(15, n)])
    np.testing.assert_allclose(on, expected, rtol=1e-5)
    np.testing.assert_allclose(off[2], literal([(5, 0), (5, 1 / 50)])[0], rtol=1e-6)


def test_settings_that_are_unknown():
    for settings, message in (
        ({"place": "pairs"}, "one of replace_parent, replace_random_failure, append, pair"),
        ({"credit": "step"}, "method.credit = 'step' is unknown; one of row, divergence"),
    ):
        with pytest.raises(ValueError) as caught:
            CorrectionSpec(**settings)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_rows_of_another_number_are_refused():
    final = groups_of(scene(*[RIGHT + "#"] * 4), [1] * 4)
    with pytest.raises(ValueError, match=r"credit_from_B has shape \[3\]; expected \[4\]"):
        token_weights(final.rollout, LossSpec(), credit_from_B=jnp.zeros(3, jnp.int32))


# ---- prefixes of failures that nobody repaired


SPARE = dataclasses.replace(SPEC, select=ONE, spare_prefix=True)


def test_the_prefix_of_a_failure_that_is_not_repaired_token_by_token():
    # Row 1 is repaired (per group one, and of two equal prefixes the lower row); row 2 has one
    # good step, row 3 none.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_1 + "#")
    result = rescued(batch, [1, 0, 0, 0], SPARE)
    final = result.groups
    assert final.reward_B.tolist() == [1, 1, 0, 0]
    assert final.credit_from_B.tolist() == [0, 0, 12, 7]
    n = 0.5 / 60
    expected = literal([(15, n)], [(5, n), (5, 0), (5, n)], [(5, 0), (10, -n)], [(15, -n)])
    on, _ = push(final, LossSpec(normaliser="token"))
    np.testing.assert_allclose(on, expected, rtol=1e-6)
    assert result.metrics["scope/spared_tokens"] == 5


@pytest.mark.parametrize("place", ["replace_parent", "append"])
def test_prefixes_are_spared_where_nothing_is_chosen(place):
    # A group with one failure is left alone (`keep_failure`), its prefix is spared all the same.
    batch = scene(RIGHT + "#", RIGHT + "#", WRONG_3 + "#", RIGHT + "#")
    spec = dataclasses.replace(SPARE, place=place)
    result = rescued(batch, [1, 1, 0, 1], spec)
    assert result.metrics["scope/selected"] == 0
    free = [0] if place == "append" else []
    assert result.groups.credit_from_B.tolist() == [0, 0, 17, 0, *free]
    assert result.metrics["scope/spared_tokens"] == 10


def test_spared_prefixes_beside_a_pair():
    # Rows 1 and 2 can be repaired and one is; the place of row 2 or 3 is taken.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_1 + "#")
    spec = dataclasses.replace(PAIR, spare_prefix=True)
    seen = {
        tuple(rescued(batch, [1, 0, 0, 0], spec, seed=seed).groups.credit_from_B.tolist())
        for seed in range(8)
    }
    assert seen == {(0, 12, 12, 7), (0, 12, 12, 12)}
    # With credit of whole rows the repaired row's parent is a failure that was repaired.
    rows = dataclasses.replace(spec, credit="row")
    seen = {
        tuple(rescued(batch, [1, 0, 0, 0], rows, seed=seed).groups.credit_from_B.tolist())
        for seed in range(8)
    }
    assert seen == {(0, 0, 0, 7), (0, 0, 12, 0)}


def test_nothing_is_spared_of_a_row_that_is_not_located():
    batch = scene(RIGHT + "#", WRONG_2 + "#", RIGHT + "#", WRONG_1 + "#")
    # Row 2 counts as a failure, and its steps are right.
    result = rescued(batch, [1, NAN, 0, 0], SPARE)
    assert result.metrics["scope/located_share"] == 0.5
    assert result.metrics["scope/spared_tokens"] == 0
    on, _ = push(result.groups, LossSpec(normaliser="token"))
    assert (on[2:, 7:22] < 0).all()
