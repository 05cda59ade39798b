"""Attention of one new token per row over the keys and values that are kept.

Cost follows the tokens that are there: cuDNN's kernel reads each row as far as it goes; the form
for every device reads short caches whole, and long ones in blocks of positions, for lanes of seats
that are about equally long.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import by_device
from scope_jax.models.attention.plain import PLAIN, UNSEEN, Scoring, Window, softcap, wide

Gathered = tuple[jax.Array, jax.Array, jax.Array]
# Keys, values, and their scales or None.
Arrays = tuple[jax.Array, jax.Array, Any, Any]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a long cache is read: `size` positions at a time, for each of `lanes` lanes of seats as
    far as its longest row goes. Each of `parts` devices has lanes of its own."""

    size: int
    lanes: int
    parts: int = 1


def cached(
    q: jax.Array,
    cache: Arrays,
    length_B: jax.Array,
    *,
    layout: tuple[str, str, str],
    window: Window = None,
    scoring: Scoring = PLAIN,
) -> jax.Array:
    """One query per row over its first `length_B` keys, the query's own included, or the last
    `window` of them: q [B, K, G, H] -> [B, K, G, H]. cache: k, v, k_scale, v_scale with the axes of
    `layout` (keys, values, scales), such as ("BKSH", "BKSH", "BKS"). Scales, which int8 keys and
    values have, multiply scores and weights: H times fewer than keys and values."""
    k, v, k_scale, v_scale = cache
    seen_BS = _seen(jnp.arange(k.shape[layout[0].index("S")]), length_B, window)
    scores = _scores(q, k, k_scale, layout, scoring)
    weights = jax.nn.softmax(jnp.where(seen_BS[:, None, None], scores, -jnp.inf), axis=-1)
    return _weighted(weights, v, v_scale, layout, q.dtype, None)


def cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    length_B: jax.Array,
    *,
    scoring: Scoring = PLAIN,
) -> jax.Array:
    """`cached` of k, v [B, S, K, H] by cuDNN: the queries of a kv head stand in for positions, so
    that its keys are read once for all of them."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, length_B: jax.Array) -> jax.Array:
        out = jax.nn.dot_product_attention(
            jnp.swapaxes(q, 1, 2),
            k,
            v,
            scale=scoring.scale_of(q),
            key_value_seq_lengths=jnp.maximum(length_B, 1),
            implementation="cudnn",
        )
        return jnp.swapaxes(out, 1, 2)

    query, kept = ("batch", "kv_heads", None, None), ("batch", None, "kv_heads", None)
    return by_device(attend, (q, k, v, length_B), (query, kept, kept, ("batch",)), query)


def blockwise(
    q: jax.Array,
    cache: Arrays,
    length_B: jax.Array,
    blocks: Blocks,
    *,
    layout: tuple[str, str, str],
    layer: jax.Array | None = None,
    window: Window = None,
    scoring: Scoring = PLAIN,
) -> jax.Array:
    """`cached`, in blocks; rows are the first axis, or the second, behind layers, where `layer`
    says which. Rows of length 0 come out as zeros, and cost nothing once their lane holds no
    others."""
    B = q.shape[0]
    parts, lanes = blocks.parts, blocks.lanes
    lane_rows = B // (parts * lanes)

    def lane_of(x: jax.Array) -> jax.Array:
        """[B, ..] -> [lanes, parts, rows of a lane, ..]"""
        return jnp.moveaxis(x.reshape(parts, lanes, lane_rows, *x.shape[1:]), 1, 0)

    lengths = lane_of(length_B)
    ends = -(-jnp.max(lengths, axis=(1, 2)) // blocks.size)
    starts = jnp.zeros_like(ends)
    if isinstance(window, int):
        nearest = jnp.min(jnp.where(lengths > 0, lengths, jnp.iinfo(jnp.int32).max), axis=(1, 2))
        starts = jnp.clip((nearest - window) // blocks.size, 0, ends)

    lead = 0 if layer is None else 1

    def block_of(x: Any, axes: str, lane: jax.Array, number: jax.Array) -> Any:
        """Block `number` of a lane, its axes as in `axes`."""
        if x is None:
            return None
        x = x.reshape(*x.shape[:lead], parts, lanes, lane_rows, *x.shape[lead + 1 :])
        begin: list[Any] = [0] * x.ndim
        size = list(x.shape)
        if layer is not None:
            begin[0], size[0] = layer, 1
        place = axes.index("S") + lead + 2
        begin[lead + 1], size[lead + 1] = lane, 1
        begin[place], size[place] = number * blocks.size, blocks.size
        out = jax.lax.dynamic_slice(x, begin, size)
        return out.reshape(parts * lane_rows, *size[lead + 3 :])

    def attend(lane: jax.Array, q: jax.Array, length: jax.Array, start: Any, end: Any) -> jax.Array:
        def add(number: jax.Array, sums: Gathered) -> Gathered:
            block = tuple(
                block_of(x, axes, lane, number)
                for x, axes in zip(cache, (*layout, layout[2]), strict=True)
            )
            position = number * blocks.size + jnp.arange(blocks.size)
            return _add_block(sums, q, block, _seen(position, length, window), layout, scoring)

        shape, kept = q.shape[:-1], wide(q.dtype)
        empty = jnp.zeros(q.shape, kept), jnp.full(shape, UNSEEN, kept), jnp.zeros(shape, kept)
        values, _, weight = jax.lax.fori_loop(start, end, add, empty)
        return values / jnp.where(weight > 0, weight, 1.0)[..., None]

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(lanes, parts * lane_rows, *x.shape[3:])

    out = jax.lax.map(
        lambda xs: attend(*xs), (jnp.arange(lanes), flat(lane_of(q)), flat(lengths), starts, ends)
    )
    out = out.reshape(lanes, parts, lane_rows, *q.shape[1:])
    return jnp.moveaxis(out, 0, 1).reshape(q.shape).astype(q.dtype)


def _add_block(
    sums: Gathered,
    q: jax.Array,
    block: tuple,
    seen_BS: jax.Array,
    layout: tuple[str, str, str],
    scoring: Scoring,
) -> Gathered:
    """(weighted values, largest score, sum of weights) with the keys of one block."""
    values, largest, weight = sums
    k, v, k_scale, v_scale = block
    seen = seen_BS[:, None, None]
    scores = jnp.where(seen, _scores(q, k, k_scale, layout, scoring), UNSEEN)
    new = jnp.maximum(largest, jnp.max(scores, axis=-1))
    weights = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
    shrink = jnp.exp(largest - new)
    weight = weight * shrink + jnp.sum(weights, axis=-1)
    added = _weighted(weights, v, v_scale, layout, q.dtype, wide(q.dtype))
    return values * shrink[..., None] + added, new, weight


def _scores(
    q: jax.Array, k: jax.Array, k_scale: Any, layout: tuple[str, str, str], scoring: Scoring
) -> jax.Array:
    """[B, K, G, S]"""
    form = f"BKGH,{layout[0]}->BKGS"
    scores = jnp.einsum(form, q, k.astype(q.dtype), preferred_element_type=wide(q.dtype))
    scores = scores * scoring.scale_of(q)
    if k_scale is not None:
        scores = scores * _scale(k_scale, layout)
    return softcap(scores, scoring.cap)


def _weighted(
    weights: jax.Array,
    v: jax.Array,
    v_scale: Any,
    layout: tuple[str, str, str],
    dtype: Any,
    out: Any,
) -> jax.Array:
    """Sums of values [B, K, G, H] by weights [B, K, G, S]; products are of `dtype`, and so is what
    comes out unless `out` says."""
    if v_scale is not None:
        weights = weights * _scale(v_scale, layout)
    form = f"BKGS,{layout[1]}->BKGH"
    return jnp.einsum(form, weights.astype(dtype), v.astype(dtype), preferred_element_type=out)


def _scale(scale: jax.Array, layout: tuple[str, str, str]) -> jax.Array:
    """[B, K, 1, S]"""
    order = [layout[2].index(axis) for axis in "BKS"]
    return jnp.transpose(scale, order)[:, :, None]


def _seen(position_S: jax.Array, length_B: jax.Array, window: Window) -> jax.Array:
    """bool[B, S]: which positions a row's last token sees."""
    seen = position_S[None] < length_B[:, None]
    if window is not None:
        seen = seen & (length_B[:, None] - 1 - position_S[None] < window)
    return seen
