"""Sampler and trainer do not compute the same numbers (another cache, another dtype): importance
weights pi_old / pi_sampler, per token or per row, which are truncated, or which decide what is
learned from."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from scope_jax.types import masked_sum

# A token's own weight; the product over the row's tokens; their geometric mean.
Level = Literal["token", "sequence", "geometric"]


def log_weights(
    old_logp_BT: jax.Array, sampler_logp_BT: jax.Array, on_BT: jax.Array, level: Level
) -> jax.Array:
    """float32[B, T]: log of the weight of each token where `on_BT` (bool[B, T]). Tokens whose
    log-prob the sampler did not record (NaN) have weight 1 and count in no mean. Not
    differentiated."""
    known = on_BT & ~jnp.isnan(sampler_logp_BT)
    gap = jax.lax.stop_gradient(jnp.where(known, old_logp_BT - sampler_logp_BT, 0.0))
    if level == "token":
        return gap
    row = jnp.sum(gap, axis=1, keepdims=True)
    if level == "geometric":
        row /= jnp.maximum(jnp.sum(known, axis=1, keepdims=True), 1)
    return jnp.broadcast_to(row, gap.shape)


def truncated(
    log_weight_BT: jax.Array, on_BT: jax.Array, cap: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(min(weight, cap), statistics)."""
    weight = jnp.exp(jnp.minimum(log_weight_BT, math.log(cap)))
    capped = on_BT & (log_weight_BT > math.log(cap))
    return weight, {
        "tis_sum": masked_sum(weight, on_BT),
        "tis_capped": jnp.sum(capped).astype(jnp.float32),
    }


def in_band(
    log_weight_BT: jax.Array, on_BT: jax.Array, low: float | None, high: float | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(bool[B, T]: whether low <= weight <= high, statistics). None: no bound on that side."""
    inside = jnp.ones(log_weight_BT.shape, bool)
    if low is not None:
        inside &= log_weight_BT >= math.log(low)
    if high is not None:
        inside &= log_weight_BT <= math.log(high)
    rows = jnp.any(on_BT, axis=1)
    return inside, {
        "masked_tokens": jnp.sum(on_BT & ~inside).astype(jnp.float32),
        "masked_rows": jnp.sum(rows & ~jnp.any(on_BT & inside, axis=1)).astype(jnp.float32),
        "own_rows": jnp.sum(rows).astype(jnp.float32),
    }
