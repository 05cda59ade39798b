"""Where a rollout went wrong, and how good it was before."""

import jax
import jax.numpy as jnp


def first_error(score_BJ: jax.Array, valid_BJ: jax.Array, threshold: float) -> jax.Array:
    """int32[B]: the first step whose score (probability of being right) is below `threshold`; J
    where there is none.

    `valid_BJ` (bool) marks the steps that exist and were scored; others are never an error. A NaN
    score is not below.
    """
    wrong = (score_BJ < threshold) & valid_BJ
    J = score_BJ.shape[1]
    return jnp.min(jnp.where(wrong, jnp.arange(J)[None], J), axis=1).astype(jnp.int32)


def prefix_quality(score_BJ: jax.Array, valid_BJ: jax.Array, error_B: jax.Array) -> jax.Array:
    """float32[B]: mean score of the steps before the first error times the share of steps before
    it; 0 where none is."""
    before = valid_BJ & (jnp.arange(score_BJ.shape[1])[None] < error_B[:, None])
    count = jnp.sum(before, axis=1)
    mean = jnp.sum(jnp.where(before, score_BJ, 0.0), axis=1) / jnp.maximum(count, 1)
    return (mean * count / jnp.maximum(jnp.sum(valid_BJ, axis=1), 1)).astype(jnp.float32)
