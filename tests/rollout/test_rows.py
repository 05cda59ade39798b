"""Rows cut, spliced, taken and placed: literal cases."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from support.hand_made import NAN

from scope_jax.rollout import cut, place_rows, splice, take_rows
from scope_jax.types import Owner, Rollout


def small_rollout() -> Rollout:
    """Two rows in a buffer of 6: a prompt of 2, then 3 POLICY tokens (finished), and a prompt of
    1, then 1 token."""
    return Rollout(
        tokens_BT=jnp.array([[5, 6, 7, 8, 9, 0], [3, 4, 0, 0, 0, 0]], jnp.int32),
        owner_BT=jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 0, 0, 0, 0]], jnp.int8),
        logp_BT=jnp.array([[0, 0, -1, -2, -3, 0], [0, -4, 0, 0, 0, 0]], jnp.float32),
        length_B=jnp.array([5, 2], jnp.int32),
        prompt_length_B=jnp.array([2, 1], jnp.int32),
        finished_B=jnp.array([True, False]),
        row_id_B=jnp.array([10, 11], jnp.int32),
    )


def test_cut_literal():
    short = cut(small_rollout(), jnp.array([3, 9]))
    assert short.tokens_BT.tolist() == [[5, 6, 7, 0, 0, 0], [3, 4, 0, 0, 0, 0]]
    assert short.owner_BT.tolist() == [[1, 1, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]]
    assert short.logp_BT.tolist() == [[0, 0, -1, 0, 0, 0], [0, -4, 0, 0, 0, 0]]
    assert short.length_B.tolist() == [3, 2]  # a length past the row's own leaves it as it is
    assert short.finished_B.tolist() == [False, False]
    assert short.prompt_length_B.tolist() == [2, 1] and short.row_id_B.tolist() == [10, 11]
    assert cut(small_rollout(), jnp.array([5, 2])).finished_B.tolist() == [
        True,
        False,
    ]  # nothing cut: still finished


def test_splice_literal():
    start = cut(small_rollout(), jnp.array([3, 2]))
    new = jnp.array([[21, 22, 23], [31, 32, 33]])
    mixed = splice(start, new, jnp.array([2, 0]), finished_B=jnp.array([True, True]))
    assert mixed.tokens_BT.tolist() == [[5, 6, 7, 21, 22, 0], [3, 4, 0, 0, 0, 0]]
    assert mixed.owner_BT.tolist() == [[1, 1, 2, 3, 3, 0], [1, 2, 0, 0, 0, 0]]
    np.testing.assert_array_equal(mixed.logp_BT, [[0, 0, -1, NAN, NAN, 0], [0, -4, 0, 0, 0, 0]])
    assert mixed.length_B.tolist() == [5, 2]
    assert mixed.finished_B.tolist() == [
        True,
        False,
    ]  # count 0: not touched, whatever finished_B says

    known = splice(
        start,
        new,
        jnp.array([1, 2]),
        Owner.POLICY,
        logp_BJ=jnp.array([[-7.0, 0, 0], [-8.0, -9.0, 0]]),
    )
    assert known.owner_BT.tolist() == [[1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 0, 0]]
    assert known.logp_BT.tolist() == [[0, 0, -1, -7, 0, 0], [0, -4, -8, -9, 0, 0]]
    assert known.finished_B.tolist() == [False, False]
    assert (
        known.tokens_BT.dtype == jnp.int32
        and known.owner_BT.dtype == jnp.int8
        and known.logp_BT.dtype == jnp.float32
    )


def test_splice_leaves_off_what_does_not_fit():
    over = splice(
        small_rollout(),
        jnp.array([[21, 22], [31, 32]]),
        jnp.array([2, 2]),
        finished_B=jnp.array([True, True]),
    )
    assert over.tokens_BT.tolist() == [[5, 6, 7, 8, 9, 21], [3, 4, 31, 32, 0, 0]]
    assert over.length_B.tolist() == [6, 4]
    start = cut(small_rollout(), jnp.array([4, 2]))
    over = splice(
        start,
        jnp.array([[21, 22, 23], [31, 32, 33]]),
        jnp.array([3, 3]),
        finished_B=jnp.array([True, True]),
    )
    assert over.length_B.tolist() == [6, 5]
    assert over.finished_B.tolist() == [False, True]  # the end token of the first row was left off


def test_take_and_place_rows_literal():
    rows = take_rows(small_rollout(), jnp.array([1, 0, 0]), jnp.array([True, True, False]))
    assert rows.tokens_BT[:, :2].tolist() == [[3, 4], [5, 6], [5, 6]]
    assert rows.row_id_B.tolist() == [11, 10, 10]
    assert rows.finished_B.tolist() == [
        False,
        True,
        True,
    ]  # the row that only fills the batch is not continued

    changed = dataclasses.replace(
        rows, tokens_BT=rows.tokens_BT + 100, length_B=jnp.array([4, 4, 1])
    )
    placed = place_rows(
        small_rollout(), jnp.array([0, 1, 0]), changed, jnp.array([True, False, False])
    )
    assert placed.tokens_BT[:, :2].tolist() == [[103, 104], [3, 4]]
    assert placed.length_B.tolist() == [4, 2]
    assert placed.prompt_length_B.tolist() == [1, 1]
    assert placed.row_id_B.tolist() == [
        10,
        11,
    ]  # the identity of the place, not of the row that came
