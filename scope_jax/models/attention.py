"""Attention: over a row, over a prompt that several completions share, over the cache while
decoding.

What queries gather from one source of keys is kept as (weighted sum of values, largest score, sum
of weights), so that several sources merge exactly and the division is done once, on [.., H]
instead of [.., S].

Scores are never all there at once: queries go in blocks, and in long rows each block goes through
a loop over parts, forward and backward, whose scores are computed again for the gradient.

A `window` lets a query see so many slots, its own included: None (all), a Python number (keys that
no query of a block sees are not multiplied with) or a traced one (a mask). Scores are multiplied
by `scale` (default H^-1/2); a `cap` other than 0 bends them to cap tanh(score / cap).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Queries go in blocks of so many slots, at most 8 blocks a row (4 in long ones): keys after a
# block are not even multiplied with.
QUERY_BLOCK = 64
# Above so many scores of a row and head, queries go in parts of so many slots through a loop: what
# XLA may keep of blocks side by side (all of it, as it turned out) is then the scores of one part.
LONG, PART = 1024 * 1024, 128
# Score of a key that is not seen. Finite, so that a source of which nothing is seen gets weight 0
# in a merge, not NaN.
UNSEEN = -1e30

# (values [B, K, T, G, H] summed with weights exp(score - largest), largest score and sum of
# weights [B, K, T, G, 1])
Gathered = tuple[jax.Array, jax.Array, jax.Array]
Window = int | jax.Array | None


def causal(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: Window = None,
    scale: float | None = None,
    cap: float = 0.0,
) -> jax.Array:
    """q [B, T, K, G, H], k, v [B, T, K, H] -> [B, T, N H]: slot t attends to slots 0..t, or to the
    last `window` of them."""
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    q, k, v = (_heads_first(x) for x in (q, k, v))
    return _finish(_gather_causal(q, k, v, window, cap), v.dtype)


def shared_prompt(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prompt_slots: int,
    completions: int,
    seen_P: jax.Array,
    *,
    window: Window = None,
    scale: float | None = None,
    cap: float = 0.0,
) -> jax.Array:
    """Attention of packed rows, each W prompt slots followed by M completions of C slots: q [P, W
    + M C, K, G, H], k, v [P, W + M C, K, H] -> [P, W + M C, N H].

    A prompt slot attends to the prompt up to itself; a completion slot to the first `seen_P`
    prompt slots and to its own completion up to itself, which begins at position `seen_P`.
    """
    P, X, K, G, H = q.shape
    W, M = prompt_slots, completions
    C = (X - W) // M
    q = q * (H**-0.5 if scale is None else scale)
    first = lambda x: _heads_first(x[:, :W])
    apart = lambda x: _heads_first(x[:, W:].reshape(P * M, C, *x.shape[2:]))
    prompt = _gather_causal(first(q), first(k), first(v), window, cap)
    own = _gather_causal(apart(q), apart(k), apart(v), window, cap)
    # [P M, K, C, ..] -> [P, K, M C, ..]: the completions of a prompt look at it with one product.
    beside = lambda x: jnp.swapaxes(x.reshape(P, M, K, C, G, -1), 1, 2).reshape(P, K, M * C, G, -1)
    own = (beside(own[0]), beside(own[1]), beside(own[2]))

    def seen(slot_T: jax.Array) -> jax.Array:
        inside = (jnp.arange(W)[None] < seen_P[:, None])[:, None, None, None]
        if window is None:
            return inside
        position = seen_P[:, None] + (slot_T % C)[None]
        near = position[:, :, None] - jnp.arange(W)[None, None] < window
        return inside & near[:, None, :, None]

    given = _gather_parts(
        _heads_first(q[:, W:]), first(k), first(v), jnp.arange(M * C), seen, cap, M * C * W > LONG
    )
    return jnp.concatenate([_finish(prompt, v.dtype), _finish(_merge(own, given), v.dtype)], axis=1)


def cached(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen_BS: jax.Array,
    *,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    keys_transposed: bool = False,
    scale: float | None = None,
    cap: float = 0.0,
) -> jax.Array:
    """One query per row over its cache: q [B, K, G, H], k [B, K, S, H] (`keys_transposed`: [B, K,
    H, S]), v [B, K, S, H], seen_BS bool (the window, if any, is in it) -> [B, K, G, H]. int8 keys
    and values have scales [B, K, S], which multiply scores and weights: H times fewer than keys
    and values."""
    form = "BKGH,BKHS->BKGS" if keys_transposed else "BKGH,BKSH->BKGS"
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = jnp.einsum(form, q, k.astype(q.dtype), preferred_element_type=jnp.float32) * scale
    if k_scale is not None:
        scores = scores * k_scale[:, :, None]
    weights = jax.nn.softmax(
        jnp.where(seen_BS[:, None, None], softcap(scores, cap), -jnp.inf), axis=-1
    )
    if v_scale is not None:
        weights = weights * v_scale[:, :, None]
    return jnp.einsum("BKGS,BKSH->BKGH", weights.astype(q.dtype), v.astype(q.dtype))


def _gather(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, cap: float) -> Gathered:
    """q [B, K, T, G, H] (scaled), k, v [B, K, S, H], `seen` broadcast to [B, K, T, G, S]."""
    scores = softcap(jnp.einsum("BKTGH,BKSH->BKTGS", q, k, preferred_element_type=jnp.float32), cap)
    scores = jnp.where(seen, scores, UNSEEN)
    # The result does not depend on what is subtracted, and neither does its gradient.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    values = jnp.einsum(
        "BKTGS,BKSH->BKTGH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
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
    count = -(-T // PART)
    short = count * PART - T
    # What is added at the end is cut off again.
    q = jnp.pad(q, ((0, 0), (0, 0), (0, short), (0, 0), (0, 0)))
    split = jnp.moveaxis(q.reshape(*q.shape[:2], count, PART, *q.shape[3:]), 2, 0)
    number = jnp.pad(query_T, (0, short), mode="edge").reshape(count, PART)
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
