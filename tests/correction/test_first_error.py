"""The first wrong step of each row, and how good a row was before it, by hand."""

import jax.numpy as jnp
import numpy as np
from support.hand_made import NAN

from scope_jax.correction import first_error, prefix_quality


def test_first_error_literal():
    score = jnp.array(
        [
            [0.4, 0.9, 0.1],  # first step
            [0.9, 0.8, 0.1],  # last step
            [0.9, 0.5, 0.7],  # 0.5 is not below 0.5: nowhere
            [0.9, NAN, 0.2],  # NaN is not below
            [0.9, NAN, 0.7],  # nowhere, with NaN
            [0.9, 0.1, 0.2],  # the low steps do not exist
            [0.9, 0.1, 0.2],  # the second step was not scored, the third was
        ]
    )
    valid = jnp.ones((7, 3), bool).at[5, 1:].set(False).at[6, 1].set(False)
    found = first_error(score, valid, 0.5)
    assert found.dtype == jnp.int32
    assert found.tolist() == [0, 2, 3, 2, 3, 3, 2]
    assert first_error(score[2:3], valid[2:3], 0.55).tolist() == [1]  # the threshold decides


def test_prefix_quality_literal():
    score = jnp.array([[0.9, 0.7, 0.1, 0.0], [0.2, 0.9, 0.0, 0.0], [1.0, 0.8, 0.6, 0.9]])
    valid = jnp.array(
        [[True, True, True, False], [True, True, False, False], [True, True, True, True]]
    )
    quality = prefix_quality(score, valid, jnp.array([2, 0, 4]))
    # mean(0.9, 0.7) * 2/3; no step before the error; mean of four * 4/4
    np.testing.assert_allclose(quality, [0.8 * 2 / 3, 0.0, 0.825], rtol=1e-6)
    assert quality.dtype == jnp.float32
    assert (
        float(prefix_quality(jnp.full((1, 2), NAN), jnp.zeros((1, 2), bool), jnp.array([2]))[0])
        == 0.0
    )


def test_steps_that_were_not_scored_count_neither_as_good_nor_as_steps():
    """Two of three scored steps stand before the error, one of them bad itself."""
    score = jnp.array([[0.9, NAN, 0.5, 0.1]])
    valid = jnp.array([[True, False, True, True]])
    np.testing.assert_allclose(
        prefix_quality(score, valid, first_error(score, valid, 0.3)), [0.7 * 2 / 3], rtol=1e-6
    )


def test_rows_without_a_step_have_no_error_and_no_quality():
    score, valid = jnp.zeros((2, 0)), jnp.zeros((2, 0), bool)
    assert prefix_quality(score, valid, jnp.array([0, 0])).tolist() == [0.0, 0.0]
    score, valid = jnp.zeros((1, 3)), jnp.zeros((1, 3), bool)
    assert first_error(score, valid, 0.5).tolist() == [3]
