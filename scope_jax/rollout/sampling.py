"""Drawing one token per row from logits, with a random key per (row, position)."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.types import check_choices

# Width of the blocks that the inverse-CDF draw looks through.
BLOCK = 128


@dataclasses.dataclass(frozen=True, eq=False)
class SampleSpec:
    """How rows are continued."""

    temperature: float = 1.0  # 0 is greedy
    # In (0, 1], and None for off: truncate what is drawn, not the recorded log-probs.
    top_p: float = 1.0
    top_k: int | None = None
    max_new_tokens: int = 256  # at most, in one call
    end_ids: tuple[int, ...] = ()  # tokens that finish a row
    # int32[states, V] from `text.stop_table`; a row pauses (unfinished) in the last state.
    stop: np.ndarray | None = None
    # How keys and values are kept: in the parameters' dtype, or as 8-bit numbers. Recorded
    # log-probs are those of the model that reads them.
    cache: Literal["auto", "int8"] = "auto"
    # Rows decoded at once (None: all); a seat whose row has ended is given a waiting row. Tokens do
    # not depend on it.
    seats: int | None = None
    # Tokens that the longest row may hold when it is continued, where that is known: so much is
    # prefilled. None: half of the buffer where that is enough, else all of it. Tokens do not depend
    # on it.
    prefix_tokens: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, "SampleSpec")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"SampleSpec.temperature {self.temperature} must be a number >= 0 (0 is greedy)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"SampleSpec.top_p {self.top_p} must be in (0, 1]")
        if self.max_new_tokens < 1:
            raise ValueError(f"SampleSpec.max_new_tokens {self.max_new_tokens} must be >= 1")
        for name, otherwise in (
            ("top_k", "off"),
            ("seats", "all rows"),
            ("prefix_tokens", "what is there"),
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"SampleSpec.{name} {value} must be >= 1, or None for {otherwise}")


def row_keys(key: jax.Array, stream: jax.Array | int, row_id_B: jax.Array) -> jax.Array:
    """One key per row: key -> stream -> row id. The position is folded in when a token is drawn."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.fold_in(key, stream), row_id_B
    )


def sample(
    logits_BV: jax.Array,
    key_B: jax.Array,
    position_B: jax.Array,
    temperature: float,
    top_p: float,
    top_k: int | None,
) -> tuple[jax.Array, jax.Array]:
    """(token int32[B], logp float32[B]): logp under the temperature-scaled, untruncated
    distribution (temperature 0: under the distribution at temperature 1).

    One uniform number per row is turned into a token by inverse CDF in two steps, over blocks and
    then inside one block: exact, and V random numbers per row cheaper than Gumbel noise.
    """
    scaled = logits_BV if temperature in (0, 1) else logits_BV / temperature
    normaliser = jax.nn.logsumexp(scaled, axis=-1)
    if temperature == 0:
        token = jnp.argmax(scaled, axis=-1)
    else:
        uniform = jax.vmap(lambda k, s: jax.random.uniform(jax.random.fold_in(k, s)))(
            key_B, position_B
        )
        token = _inverse_cdf(_truncate(scaled, top_p, top_k), uniform)
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen - normaliser


def _inverse_cdf(scaled_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    B, V = scaled_BV.shape
    weight = jnp.exp(scaled_BV - jnp.max(scaled_BV, axis=-1, keepdims=True))
    blocks = -(-V // BLOCK)
    weight = jnp.pad(weight, ((0, 0), (0, blocks * BLOCK - V))).reshape(B, blocks, BLOCK)
    total = jnp.cumsum(jnp.sum(weight, axis=-1), axis=-1)
    target = uniform_B * total[:, -1]
    block = jnp.minimum(jnp.sum(total <= target[:, None], axis=-1), blocks - 1)
    inside = jnp.take_along_axis(weight, block[:, None, None], axis=1)[:, 0]
    before = jnp.where(
        block > 0, jnp.take_along_axis(total, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0
    )
    running = before[:, None] + jnp.cumsum(inside, axis=-1)
    # Rounding can carry the target past the last sum, or onto a token of probability 0: take the
    # nearest likely one.
    place = jnp.sum(running <= target[:, None], axis=-1)
    likely = inside > 0
    last = BLOCK - 1 - jnp.argmax(likely[:, ::-1], axis=-1)
    column = jnp.arange(BLOCK)[None]
    place = jnp.min(jnp.where(likely & (column >= place[:, None]), column, last[:, None]), axis=-1)
    return block * BLOCK + place


def _truncate(scaled_BV: jax.Array, top_p: float, top_k: int | None) -> jax.Array:
    """-inf outside the `top_k` likeliest tokens and outside the smallest set with mass `top_p`
    (its last token kept)."""
    V = scaled_BV.shape[-1]
    if top_p == 1 and (top_k is None or top_k >= V):
        return scaled_BV
    ranked = jnp.sort(scaled_BV, axis=-1)[:, ::-1]
    keep = jnp.ones_like(ranked, bool)
    if top_k is not None and top_k < V:
        keep &= (jnp.arange(V) < top_k)[None]
    if top_p < 1:
        probability = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
        keep &= jnp.cumsum(probability, axis=-1) - probability < top_p
    floor = jnp.min(jnp.where(keep, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled_BV >= floor, scaled_BV, -jnp.inf)
