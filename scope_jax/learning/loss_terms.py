"""The terms of the objective (`learning/losses.py`), on arrays in which tokens without weight hold
zeros."""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from scope_jax.learning.sampler_weights import in_band, log_weights, truncated
from scope_jax.learning.surrogates import surrogate
from scope_jax.types import masked_sum

if TYPE_CHECKING:
    from scope_jax.learning.losses import LossSpec

Stats = dict[str, jax.Array]

# Beyond e^20 a ratio says only that the two log-probs have nothing to do with each other; exp
# would overflow soon after, and infinity times the 0 of the branch that `minimum` did not take is
# NaN.
LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class Weighed:
    """What the terms share: float32[B, T], masks bool[B, T].

    NaN * 0 is NaN, in the value and in the gradient. So what has no weight is replaced before it
    is computed with, and again (in `masked_sum`) afterwards."""

    on: jax.Array  # weights of POLICY tokens
    off: jax.Array  # of TEACHER tokens
    is_on: jax.Array
    is_off: jax.Array
    advantage: jax.Array  # where either is
    logp_on: jax.Array
    logp_off: jax.Array
    old_on: jax.Array

    def given(self, name: str, values: Any, mask: jax.Array) -> jax.Array:
        """An argument of the loss where `mask`, 0 elsewhere; not differentiated. Raises ValueError
        where its shape is another."""
        return only(mask, fixed(name, values, self.on.shape))


def weighed(logp_BT: Any, old_logp_BT: Any, advantage_BT: Any, on_BT: Any, off_BT: Any) -> Weighed:
    """The arguments of `policy_loss` of these names. Raises ValueError where a shape is not that of
    `logp_BT`."""
    shape = jnp.shape(logp_BT)
    on, off = fixed("on_BT", on_BT, shape), fixed("off_BT", off_BT, shape)
    is_on, is_off = on > 0, off > 0
    logp = jnp.asarray(logp_BT, jnp.float32)
    advantage = only(is_on | is_off, fixed("advantage_BT", advantage_BT, shape))
    logp_on, logp_off = only(is_on, logp), only(is_off, logp)
    old_on = (
        jax.lax.stop_gradient(logp_on)
        if old_logp_BT is None
        else only(is_on, fixed("old_logp_BT", old_logp_BT, shape))
    )
    return Weighed(on, off, is_on, is_off, advantage, logp_on, logp_off, old_on)


def only(mask: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where(mask, values, 0.0)


def fixed(name: str, values: Any, shape: tuple[int, ...]) -> jax.Array:
    """As float32 of `shape`, not differentiated; an advantage may be one per row."""
    if jnp.shape(values) != shape and not (
        name == "advantage_BT" and jnp.shape(values) == (shape[0], 1)
    ):
        raise ValueError(f"{name} has shape {jnp.shape(values)}; expected that of logp_BT, {shape}")
    return jax.lax.stop_gradient(jnp.broadcast_to(jnp.asarray(values, jnp.float32), shape))


# ---- POLICY tokens


@dataclass(frozen=True)
class Own:
    """Of POLICY tokens, float32[B, T]."""

    gain: jax.Array  # to be maximised
    ratio: jax.Array  # pi / pi_old
    clipped: jax.Array  # bool: where the surrogate cut it
    teacher_logp: jax.Array | None  # of what is distilled
    stats: Stats


def own_term(
    tokens: Weighed, spec: "LossSpec", distill_logp_BT: Any = None, sampler_logp_BT: Any = None
) -> Own:
    """The surrogate of the ratio and the advantage, weighed against the sampler.

    With the ratio at `sequence` level every POLICY token of a row has the same ratio, through which
    the gradient goes to all of them alike: an advantage that differs along the row is then averaged
    over it.

    Distillation, with weight w: as `advantage`, that of POLICY tokens is outcome_weight A +
    w (log pi_teacher - log pi_old), whose mean over samples of pi_old is minus the reverse KL; as
    `loss`, w / 2 (log pi - log pi_teacher)^2 is added per token (`distilled`), which has the same
    gradient where pi = pi_old, is not clipped, and leaves outcome_weight A to the surrogate.
    """
    is_on, old_on = tokens.is_on, tokens.old_on
    ratio = _ratio(tokens, spec)
    stats: Stats = {}
    advantage, teacher = tokens.advantage, None
    if spec.distill_weight > 0:
        teacher = tokens.given("distill_logp_BT", distill_logp_BT, is_on)
        stats["distill_sum"] = masked_sum(old_on - teacher, is_on)
        advantage = spec.outcome_weight * advantage
        if spec.distill_form == "advantage":
            advantage += spec.distill_weight * (teacher - old_on)
    gain, clipped = surrogate(ratio, tokens.logp_on, advantage, spec)
    if spec.tis_cap is not None or spec.masks:
        sampler = tokens.given("sampler_logp_BT", sampler_logp_BT, is_on)
        gain, of_weights = _weighed_by_sampler(gain, old_on, sampler, is_on, spec)
        stats |= of_weights
    return Own(gain, ratio, clipped, teacher, stats)


def _ratio(tokens: Weighed, spec: "LossSpec") -> jax.Array:
    log_ratio = tokens.logp_on - tokens.old_on
    if spec.ratio == "sequence":
        count = jnp.maximum(jnp.sum(tokens.is_on, axis=1, keepdims=True), 1)
        mean = jnp.sum(log_ratio, axis=1, keepdims=True) / count
        log_ratio = jnp.broadcast_to(mean, tokens.on.shape)
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def _weighed_by_sampler(
    gain: jax.Array, old_on: jax.Array, sampler: jax.Array, is_on: jax.Array, spec: "LossSpec"
) -> tuple[jax.Array, Stats]:
    """(the gain of each token under spec.tis_cap and the mask's bounds, statistics)."""
    weigh = functools.partial(log_weights, old_on, sampler, is_on)
    stats: Stats = {}
    if spec.tis_cap is not None:
        tis, of_weights = truncated(weigh(spec.tis_level), is_on, spec.tis_cap)
        stats |= of_weights
        gain *= tis
    if spec.masks:
        inside, of_band = in_band(weigh(spec.mask_level), is_on, spec.mask_low, spec.mask_high)
        stats |= of_band
        gain = jnp.where(inside, gain, 0.0)
    return gain, stats


def distilled(tokens: Weighed, own: Own, spec: "LossSpec") -> jax.Array:
    """float32[]: what the form `loss` of distillation adds to the loss."""
    assert own.teacher_logp is not None
    squares = tokens.on * 0.5 * (tokens.logp_on - own.teacher_logp) ** 2
    return spec.distill_weight * masked_sum(squares, tokens.is_on)


# ---- TEACHER tokens


def teacher_gain(tokens: Weighed, spec: "LossSpec", teacher_logp_BT: Any = None) -> jax.Array:
    """g(pi, A) per token, to be maximised: `nll` log pi; `shaped` A f(pi) with f(p) = p / (p +
    gamma), differentiated through f (arXiv 2504.14945); `reinforce` A log pi; `importance`
    stop_gradient(min(pi / pi_teacher, cap)) A log pi; `mask` 0."""
    logp, advantage = tokens.logp_off, tokens.advantage
    if spec.teacher_term == "nll":
        return logp
    if spec.teacher_term == "shaped":
        # p / (p + gamma) written as a sigmoid: its gradient stays finite where p underflows to 0.
        return advantage * jax.nn.sigmoid(logp - math.log(spec.shaping_gamma))
    if spec.teacher_term == "reinforce":
        return advantage * logp
    if spec.teacher_term == "importance":
        teacher = tokens.given("teacher_logp_BT", teacher_logp_BT, tokens.is_off)
        known = jnp.where(jnp.isnan(teacher), 0.0, teacher)
        weight = jnp.exp(jnp.minimum(logp - known, math.log(spec.importance_cap)))
        return jax.lax.stop_gradient(weight) * advantage * logp
    return jnp.zeros_like(logp)


# ---- beside them


def kl_estimate(tokens: Weighed, reference_logp_BT: Any) -> jax.Array:
    """float32[B, T]: k3 of Schulman's "Approximating KL divergence": e^x - x - 1 >= 0, unbiased on
    samples of pi."""
    gap = tokens.given("reference_logp_BT", reference_logp_BT, tokens.is_on) - tokens.logp_on
    return jnp.exp(jnp.clip(gap, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) - gap - 1.0


def token_statistics(tokens: Weighed, own: Own) -> Stats:
    """Counts, sums and maxima over the tokens that carry weight."""
    is_on, is_off = tokens.is_on, tokens.is_off
    return {
        "on_tokens": jnp.sum(is_on).astype(jnp.float32),
        "off_tokens": jnp.sum(is_off).astype(jnp.float32),
        "ratio_sum": masked_sum(own.ratio, is_on),
        "ratio_max": jnp.max(only(is_on, own.ratio), initial=0.0),
        "move_max": jnp.max(only(is_on, jnp.abs(tokens.logp_on - tokens.old_on)), initial=0.0),
        "clip_count": jnp.sum(is_on & own.clipped).astype(jnp.float32),
        "teacher_logp_sum": masked_sum(tokens.logp_off, is_off),
    }


def sampler_gap(tokens: Weighed, sampler_logp_BT: Any) -> Stats:
    """Statistics of how far log-probs are from what the sampler recorded, where that is known."""
    sampler = fixed("sampler_logp_BT", sampler_logp_BT, tokens.on.shape)
    known = tokens.is_on & ~jnp.isnan(sampler)
    gap = jnp.where(known, jnp.abs(tokens.logp_on - sampler), 0.0)
    return {
        "gap_max": jnp.max(gap, initial=0.0),
        "gap_sum": jnp.sum(gap),
        "gap_count": jnp.sum(known).astype(jnp.float32),
    }
