"""Attention as products of arrays: the form for every device, dtype and model.

What queries gather from one source of keys is kept as (weighted sum of values, largest score, sum
of weights), so that several sources merge exactly and the division is done once, on [.., H]
instead of [.., S].

Scores are never all there at once: queries go in blocks, and in long rows each block goes through
a loop over parts, forward and backward, whose scores are computed again for the gradient.

A `window` is how many positions a query sees, its own included: None (all), a Python number (keys
that no query of a block sees are not multiplied with) or a traced one (a mask).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Queries go in blocks of this many positions, at most 8 blocks a row (4 in long ones): keys after a
# block are not even multiplied with.
QUERY_BLOCK = 64
# Above LONG scores of a row and head, queries go through a loop in parts of PART positions, or in
# PARTS parts where those are larger: XLA may keep the scores of blocks side by side (all of them,
# as it turned out), but only of one part. Each part is a product of its own, and dozens of small
# ones leave a GPU idle.
LONG, PART, PARTS = 1024 * 1024, 128, 8
# Score of a key that is not seen. Finite, so that a source of which nothing is seen gets weight 0
# in a merge, not NaN.
UNSEEN = -1e30

# (values [B, K, T, G, H] summed with weights exp(score - largest), largest score and sum of
# weights [B, K, T, G, 1])
Gathered = tuple[jax.Array, jax.Array, jax.Array]
Window = int | jax.Array | None


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How products of queries and keys become scores."""

    scale: float | None = None  # they are multiplied by it; None: H^-1/2
    cap: float = 0.0  # other than 0: bent to cap tanh(score / cap)

    def scaled(self, q: jax.Array) -> jax.Array:
        return q * self.scale_of(q)

    def scale_of(self, q: jax.Array) -> float:
        return q.shape[-1] ** -0.5 if self.scale is None else self.scale


PLAIN = Scoring()


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """How rows are packed: `width` positions for a prompt, of which completions see the first
    `seen_P` (int32[P]), then `completions` completions of equally many positions, each of which
    begins at position `seen_P`."""

    width: int
    completions: int
    seen_P: jax.Array


def causal(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: Window = None,
    scoring: Scoring = PLAIN,
) -> jax.Array:
    """q [B, T, K, G, H], k, v [B, T, K, H] -> [B, T, N H]: position t attends to positions 0..t, or
    to the last `window` of them."""
    q, k, v = (_heads_first(x) for x in (scoring.scaled(q), k, v))
    return _finish(_gather_causal(q, k, v, window, scoring.cap), v.dtype)


def shared_prompt(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    packed: Packed,
    *,
    window: Window = None,
    scoring: Scoring = PLAIN,
) -> jax.Array:
    """Attention of packed rows, each W prompt positions followed by M completions of C positions:
    q [P, W + M C, K, G, H], k, v [P, W + M C, K, H] -> [P, W + M C, N H].

    A prompt token attends to the prompt up to itself; a completion token to the part of the prompt
    that is seen, and to its own completion up to itself.
    """
    P, X, K, G, _ = q.shape
    W, M, seen_P = packed.width, packed.completions, packed.seen_P
    C = (X - W) // M
    q, cap = scoring.scaled(q), scoring.cap

    def prompts(x: jax.Array) -> jax.Array:
        return _heads_first(x[:, :W])

    def each_apart(x: jax.Array) -> jax.Array:
        return _heads_first(x[:, W:].reshape(P * M, C, *x.shape[2:]))

    def side_by_side(x: jax.Array) -> jax.Array:
        """[P M, K, C, ..] -> [P, K, M C, ..]: the completions of a prompt look at it with one
        product."""
        return jnp.swapaxes(x.reshape(P, M, K, C, G, -1), 1, 2).reshape(P, K, M * C, G, -1)

    prompt = _gather_causal(prompts(q), prompts(k), prompts(v), window, cap)
    own = _gather_causal(each_apart(q), each_apart(k), each_apart(v), window, cap)
    own = (side_by_side(own[0]), side_by_side(own[1]), side_by_side(own[2]))

    def seen(query_T: jax.Array) -> jax.Array:
        inside = (jnp.arange(W)[None] < seen_P[:, None])[:, None, None, None]
        if window is None:
            return inside
        position = seen_P[:, None] + (query_T % C)[None]
        near = position[:, :, None] - jnp.arange(W)[None, None] < window
        return inside & near[:, None, :, None]

    given = _gather_parts(
        _heads_first(q[:, W:]),
        prompts(k),
        prompts(v),
        jnp.arange(M * C),
        seen,
        cap,
        M * C * W > LONG,
    )
    return jnp.concatenate([_finish(prompt, v.dtype), _finish(_merge(own, given), v.dtype)], axis=1)


def _gather(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, cap: float) -> Gathered:
    """q [B, K, T, G, H] (scaled), k, v [B, K, S, H], `seen` broadcast to [B, K, T, G, S]."""
    scores = softcap(
        jnp.einsum("BKTGH,BKSH->BKTGS", q, k, preferred_element_type=wide(q.dtype)), cap
    )
    scores = jnp.where(seen, scores, UNSEEN)
    # The result does not depend on what is subtracted, and neither does its gradient.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    values = jnp.einsum(
        "BKTGS,BKSH->BKTGH", weights.astype(v.dtype), v, preferred_element_type=wide(q.dtype)
    )
    return values, largest, jnp.sum(weights, axis=-1, keepdims=True)


def _gather_causal(
    q: jax.Array, k: jax.Array, v: jax.Array, window: Window, cap: float
) -> Gathered:
    T = q.shape[2]
    long = T * T > LONG
    # In long rows every block is a loop of its own to compile: fewer of them.
    size = -(-T // (4 * PART)) * PART if long else max(QUERY_BLOCK, -(-T // 8))
    blocks = []
    for start in range(0, T, size):
        end = min(start + size, T)
        first = max(start + 1 - window, 0) if isinstance(window, int) else 0

        def seen(query_T: jax.Array, first: int = first, end: int = end) -> jax.Array:
            query, key = query_T[:, None], jnp.arange(first, end)[None]
            near = key <= query
            if window is not None:
                near = near & (query - key < window)
            return near[None, None, :, None]

        keys, values = k[:, :, first:end], v[:, :, first:end]
        blocks.append(
            _gather_parts(q[:, :, start:end], keys, values, jnp.arange(start, end), seen, cap, long)
        )
    return _join(blocks)


def _gather_parts(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_T: jax.Array,
    seen: Callable[[jax.Array], jax.Array],
    cap: float,
    long: bool,
) -> Gathered:
    """`_gather` where `seen(query_T)` are the keys that the queries of these numbers see; `long`:
    in parts."""
    T = q.shape[2]
    if not long:
        return _gather(q, k, v, seen(query_T), cap)
    size = max(-(-T // (PARTS * PART)) * PART, PART)
    count = -(-T // size)
    short = count * size - T
    # What is added at the end is cut off again.
    q = jnp.pad(q, ((0, 0), (0, 0), (0, short), (0, 0), (0, 0)))
    split = jnp.moveaxis(q.reshape(*q.shape[:2], count, size, *q.shape[3:]), 2, 0)
    number = jnp.pad(query_T, (0, short), mode="edge").reshape(count, size)
    part = jax.checkpoint(lambda q, query: _gather(q, k, v, seen(query), cap))
    _, out = jax.lax.scan(lambda _, xs: (None, part(*xs)), None, (split, number))
    values, largest, weight = (
        jnp.moveaxis(x, 0, 2).reshape(*q.shape[:3], *x.shape[4:])[:, :, :T] for x in out
    )
    return values, largest, weight


def _join(blocks: list[Gathered]) -> Gathered:
    """Blocks of queries, one after the other."""
    values, largest, weight = (
        jnp.concatenate(x, axis=2) if len(blocks) > 1 else x[0] for x in zip(*blocks, strict=True)
    )
    return values, largest, weight


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """What sums of products are kept in: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def softcap(scores: jax.Array, cap: float) -> jax.Array:
    return cap * jnp.tanh(scores / cap) if cap else scores


def _merge(one: Gathered, other: Gathered) -> Gathered:
    largest = jnp.maximum(one[1], other[1])
    share_one, share_other = jnp.exp(one[1] - largest), jnp.exp(other[1] - largest)
    return (
        one[0] * share_one + other[0] * share_other,
        largest,
        one[2] * share_one + other[2] * share_other,
    )


def _finish(gathered: Gathered, dtype: jnp.dtype) -> jax.Array:
    """[B, K, T, G, ..] -> [B, T, N H] in `dtype`."""
    values, _, weight = gathered
    out = _heads_first((values / weight).astype(dtype))
    return out.reshape(*out.shape[:2], -1)


def _heads_first(x: jax.Array) -> jax.Array:
    """[B, T, K, ..] -> [B, K, T, ..], and back."""
    return jnp.swapaxes(x, 1, 2)
