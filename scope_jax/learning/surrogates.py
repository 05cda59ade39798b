"""What the policy's own tokens gain, as a function of the ratio pi / pi_old and of the advantage A:
PPO's clip, CISPO's clipped weight, SAPO's gate."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from scope_jax.learning.losses import LossSpec


def surrogate(
    ratio: jax.Array, logp: jax.Array, advantage: jax.Array, spec: "LossSpec"
) -> tuple[jax.Array, jax.Array]:
    """(gain per token, to be maximised; bool: where what the ratio says was cut), of arrays of one
    shape. `logp`: log pi, of which `ratio` is a function.

    `clip`     min(rho A, clip(rho) A) (arXiv 1707.06347); cut: the gradient is 0
    `cispo`    stop_gradient(clip(rho)) A log pi (arXiv 2506.13585, equations 4 and 5); cut: the
               weight lies at a bound, the gradient stays
    `sapo`     4 / tau sigmoid(tau (rho - 1)) A, with tau by the sign of A (arXiv 2511.20347); its
               gradient is that of rho A times a gate, 1 at rho = 1 and falling off to both sides;
               cut: the gate is below 1/2
    """
    if spec.surrogate == "sapo":
        tau = jnp.where(advantage > 0, spec.sapo_positive, spec.sapo_negative)
        share = jax.nn.sigmoid(tau * (ratio - 1.0))
        return 4.0 / tau * share * advantage, 4.0 * share * (1.0 - share) < 0.5
    low = 0.0 if spec.clip_low is None else 1.0 - spec.clip_low
    high = jnp.inf if spec.clip_high is None else 1.0 + spec.clip_high
    if spec.surrogate == "cispo":
        weight = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
        return weight * advantage * logp, (ratio < low) | (ratio > high)
    return _clipped(ratio, advantage, low, high, spec.dual_clip)


def _clipped(
    ratio: jax.Array, advantage: jax.Array, low: float, high: float, dual: float | None
) -> tuple[jax.Array, jax.Array]:
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, low, high) * advantage)
    cut = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    if dual is not None:
        gain = jnp.where(advantage < 0, jnp.maximum(gain, dual * advantage), gain)
        cut |= (advantage < 0) & (ratio > dual)
    return gain, cut
