"""Rollouts as batches of updates and back, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import mesh_of
from support.one_update import GROUP, LENGTH, PROMPT_LENGTH, batch

from scope_jax import learning
from scope_jax.learning.packing import pack, rows_together, split_rows, unpack
from scope_jax.types import Owner, Rollout


def test_packed_rows_by_hand():
    """Two prompts of 2 and 3 tokens, two completions each; sizes are rounded up to 8; padding
    holds zeros."""
    tokens = np.array(
        [[5, 6, 1, 2, 9], [5, 6, 3, 9, 9], [7, 8, 5, 4, 9], [7, 8, 5, 1, 2]], np.int32
    )
    length, prompt = np.array([4, 3, 4, 5], np.int32), np.array([2, 2, 3, 3], np.int32)
    owner = np.full((4, 5), Owner.POLICY, np.int8)
    rollout = Rollout(
        tokens,
        owner,
        np.zeros((4, 5), np.float32),
        length,
        prompt,
        np.ones(4, bool),
        np.arange(4, dtype=np.int32),
    )
    arrays = {
        "on": np.arange(20, dtype=np.float32).reshape(4, 5),
        "advantage": np.arange(4, dtype=np.float32),
    }
    packed = jax.device_get(learning.pack(rollout, arrays, 2))
    assert packed["prompt"][:, :3].tolist() == [[5, 6, 1], [7, 8, 5]] and packed[
        "prompt"
    ].shape == (2, 8)
    assert packed["prompt_length"].tolist() == [2, 3]
    assert packed["completion"].tolist() == [
        [1, 2] + [0] * 6,
        [3] + [0] * 7,
        [4] + [0] * 7,
        [1, 2] + [0] * 6,
    ]
    assert packed["on"].tolist() == [
        [2, 3] + [0] * 6,
        [7] + [0] * 7,
        [13] + [0] * 7,
        [18, 19] + [0] * 6,
    ]
    assert packed["advantage"].tolist() == [0, 1, 2, 3]
    # Micro-batches of one row each: a group no longer stays together, so its prompt is there for
    # each row.
    assert jax.device_get(learning.pack(rollout, arrays, 2, 4)["prompt_length"]).tolist() == [
        2,
        2,
        3,
        3,
    ]


def test_order_by_hand():
    rows, _ = batch()
    # Longest completions of the four groups: 28, 24, 12, 22.
    assert (LENGTH - PROMPT_LENGTH).reshape(4, 2).max(1).tolist() == [28, 24, 12, 22]
    # Prompts take 8 slots. Two parts of two groups: 2 (2 x 8) + 4 (24 + 32) slots; of rows, 2 (4 x
    # 8) + 4 (16 + 32): as many.
    order, unit = learning.length_order(rows, GROUP, 2)
    assert unit == 2 and order.tolist() == [[4, 5, 6, 7], [2, 3, 0, 1]]
    # Completions of 28 1 1 25 1 1 1 2: four groups, 4 x 8 + 2 (8 + 8 + 32 + 32) = 192; rows, 8 x 8
    # + 2 (8 + 8 + 8 + 32) = 176.
    uneven = rows.replace(length_B=PROMPT_LENGTH + np.array([28, 1, 1, 25, 1, 1, 1, 2], np.int32))
    order, unit = learning.length_order(uneven, GROUP, 4)
    assert unit == 1 and order.tolist() == [[1, 2], [4, 5], [6, 7], [3, 0]]
    with pytest.raises(
        ValueError,
        match="4 groups cannot be divided into 3 parts of like length; choose a divisor of 4",
    ):
        learning.length_order(rows, GROUP, 3)


def rows_of(prompts: list[int], written: list[int], slots: int) -> Rollout:
    """Rows of these lengths; the token of slot t in row b is 100 b + t, also behind the row."""
    B = len(prompts)
    tokens = 100 * np.arange(B)[:, None] + np.arange(slots)[None]
    prompt = np.array(prompts, np.int32)
    return Rollout(
        tokens.astype(np.int32),
        np.zeros((B, slots), np.int8),
        np.zeros((B, slots), np.float32),
        prompt + np.array(written, np.int32),
        prompt,
        np.zeros(B, bool),
        np.arange(B, dtype=np.int32),
    )


def test_widths_are_those_of_the_longest_prompt_and_the_longest_completion():
    """They need not be of one row; completions in coarse steps of 16 from 64 on, else of 8."""
    rows = rows_of([3, 3, 9, 9], [2, 65, 1, 1], 80)
    for coarse, widths in ((False, (16, 72)), (True, (16, 80))):
        packed = pack(rows, {}, 2, coarse=coarse)
        assert (packed["prompt"].shape[1], packed["completion"].shape[1]) == widths
    packed = jax.device_get(packed)
    assert packed["prompt"][:, :3].tolist() == [[0, 1, 2], [200, 201, 202]]
    assert packed["prompt"][1, :9].tolist() == list(range(200, 209))
    assert packed["completion"][1, :66].tolist() == [*range(103, 168), 0]
    assert packed["completion"][2, :2].tolist() == [209, 0]


def test_what_stands_behind_a_row_is_not_packed():
    """NaN there, as log-probs have it, would be NaN in every sum."""
    rows = rows_of([2, 2], [3, 1], 8)
    logp = jnp.arange(16.0).reshape(2, 8).at[0, 5:].set(jnp.nan).at[1, 3:].set(jnp.nan)
    packed = pack(rows, {"logp": logp}, 2)
    assert packed["logp"].tolist() == [[2, 3, 4, 0, 0, 0, 0, 0], [10, 0, 0, 0, 0, 0, 0, 0]]


def test_arrays_of_other_shapes_pass_as_they_are():
    rows = rows_of([2, 2], [3, 1], 8)
    arrays = {"row": jnp.array([1.5, 2.5]), "wide": jnp.ones((2, 3))}
    packed = pack(rows, arrays, 2)
    assert packed["row"].tolist() == [1.5, 2.5]
    assert packed["wide"].tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("mesh", "rows", "group", "together"),
    [
        (None, 8, 4, 4),
        (None, 6, 4, 2),  # a micro-batch holds a group and a half
        (None, 1, 4, 1),
        ("8x1x1", 16, 4, 2),  # a device holds two rows
        ("8x1x1", 8, 4, 1),
        ("8x1x1", 4, 4, 1),  # and here no whole row
        ("2x2x2", 8, 4, 2),  # rows are split over data and fsdp only
        ("2x2x2", 16, 4, 4),
    ],
)
def test_as_many_rows_share_a_prompt_as_a_device_holds_of_a_group(mesh, rows, group, together):
    if mesh is None:
        assert rows_together(rows, group) == together
    else:
        with jax.set_mesh(mesh_of(mesh)):
            assert rows_together(rows, group) == together


def test_unpacking_puts_completions_back_behind_their_prompts():
    rows = rows_of([2, 4, 1], [3, 2, 0], 7)
    values = jnp.array([[1.0, 2, 3, 4], [5, 6, 7, 8], [jnp.nan, jnp.nan, jnp.nan, jnp.nan]])
    assert unpack(rows, values).tolist() == [
        [0, 0, 1, 2, 3, 0, 0],
        [0, 0, 0, 0, 5, 6, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_unpacking_undoes_packing():
    rows, arrays = batch()
    logp = np.asarray(rows.logp_BT)
    slot = np.arange(logp.shape[1])[None]
    written = (slot >= PROMPT_LENGTH[:, None]) & (slot < LENGTH[:, None])
    back = unpack(rows, pack(rows, {"logp": logp}, GROUP)["logp"])
    np.testing.assert_array_equal(back, np.where(written, logp, 0))


def test_each_micro_batch_takes_every_nth_unit_with_its_rows():
    """Four prompts, two rows each, in two parts: each device keeps rows of its own in both."""
    assert split_rows(jnp.arange(4), 4, 2).tolist() == [[0, 2], [1, 3]]
    assert split_rows(jnp.arange(8), 4, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    wide = split_rows(jnp.arange(16).reshape(8, 2), 4, 2)
    assert wide.shape == (2, 4, 2) and wide[1, :, 0].tolist() == [4, 6, 12, 14]


def test_rows_of_one_length_stay_in_order():
    """Positions are the same however rows are arranged: whole groups stay together."""
    order, unit = learning.length_order(rows_of([2] * 8, [3] * 8, 8), 2, 2)
    assert unit == 2 and order.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_rows_without_a_group_are_ordered_one_by_one():
    order, unit = learning.length_order(rows_of([1] * 4, [3, 1, 2, 1], 8), 1, 2)
    assert unit == 1 and order.tolist() == [[1, 3], [2, 0]]
