"""The keys and values of decoding: two forms for two kinds of device, in the parameters' dtype or
in 8 bits."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import constrain
from scope_jax.models.config import ModelConfig


@flax.struct.dataclass
class Cache:
    """Keys and values. Stacked form: k, v are [L, B, K, S, H], scanned together with the weights.
    Unrolled form: tuples of L arrays, v [B, K, S, H] and k [B, K, H, S], which is what the CPU's
    matrix product reads fastest.

    As int8, keys are k times k_scale and values v times v_scale, with one scale for each position
    and head, float32 [L, B, K, S], unrolled [B, K, S]; else these are None.
    """

    k: Any
    v: Any
    k_scale: Any = None
    v_scale: Any = None

    @property
    def unrolled(self) -> bool:
        return isinstance(self.v, tuple)

    @property
    def positions(self) -> int:
        return self.v[0].shape[2] if self.unrolled else self.v.shape[3]


def quantise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int8 of x's shape, float32 scales without the last axis): the largest of the last axis
    becomes 127 or -127."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None]).astype(
        jnp.int8
    ), scale


def stored(k: jax.Array, v: jax.Array, int8: bool) -> Cache:
    """Keys and values [.., H] as a cache keeps them."""
    if not int8:
        return Cache(k, v)
    (k, k_scale), (v, v_scale) = quantise(k), quantise(v)
    return Cache(k, v, k_scale, v_scale)


def map_arrays(f: Callable[..., jax.Array], *caches: Cache) -> Cache:
    """The Cache of f(one array of each cache, rows=axis, positions=axis); the axes are those of the
    array that are the rows and the positions."""
    unrolled = caches[0].unrolled

    def each(name: str) -> Any:
        found = [getattr(cache, name) for cache in caches]
        if found[0] is None:
            return None
        if not unrolled:
            return f(*found, rows=1, positions=3)
        return tuple(
            f(*layer, rows=0, positions=3 if name == "k" else 2)
            for layer in zip(*found, strict=True)
        )

    return Cache(*(each(name) for name in ("k", "v", "k_scale", "v_scale")))


def lay(x: jax.Array, rows: int) -> jax.Array:
    """An array of a cache, laid out over its rows (axis `rows`) and heads (the axis behind it)."""
    return constrain(x, *(None,) * rows, "batch", "kv_heads", *(None,) * (x.ndim - rows - 2))


def decode_cache(config: ModelConfig, prefixes: Cache, group: int, size: int) -> Cache:
    """The stacked cache of prefixes [L, P, K, W, ..] repeated for `group` consecutive rows and
    grown to `size` positions, in the form that `config` asks for."""

    def grow(x: jax.Array, rows: int, positions: int) -> jax.Array:
        x = jnp.repeat(x, group, axis=rows) if group > 1 else x
        more = [(0, size - x.shape[axis] if axis == positions else 0) for axis in range(x.ndim)]
        return lay(jnp.pad(x, more), rows)

    return in_form(config, map_arrays(grow, prefixes))


def empty_cache(config: ModelConfig, like: Cache, seats: int, size: int) -> Cache:
    """Zeros for `seats` rows of `size` positions, in the form that `config` asks for; everything
    else as in `like`, which is stacked."""

    def zeros(x: jax.Array, rows: int, positions: int) -> jax.Array:
        shape = list(x.shape)
        shape[rows], shape[positions] = seats, size
        return lay(jnp.zeros(shape, x.dtype), rows)

    return in_form(config, map_arrays(zeros, like))


def in_form(config: ModelConfig, cache: Cache) -> Cache:
    """A stacked cache in the form that `config` asks for."""
    return unstack_cache(cache) if config.unrolled else cache


def unstack_cache(cache: Cache) -> Cache:
    """The unrolled form of a stacked cache."""

    def apart(x: Any, transpose: bool = False) -> Any:
        if x is None:
            return None
        return tuple(
            lay(jnp.swapaxes(layer, 2, 3) if transpose else layer, 0)
            for layer in (x[n] for n in range(x.shape[0]))
        )

    return Cache(
        apart(cache.k, transpose=True), apart(cache.v), apart(cache.k_scale), apart(cache.v_scale)
    )


def put_in_layer(cache: Cache, number: int, new: Cache, position_B: jax.Array) -> Cache:
    """Layer `number` of an unrolled cache, as [B, ..] arrays, with `new` [B, K, ..] at position
    `position_B` of each row."""
    # Over rows by vmap, so that the partitioner sees that no row touches another: no collectives,
    # however rows are split.
    put_key = jax.vmap(lambda c, x, at: c.at[:, :, at].set(x.astype(c.dtype)))
    put = jax.vmap(lambda c, x, at: c.at[:, at].set(x.astype(c.dtype)))
    k, v = put_key(cache.k[number], new.k, position_B), put(cache.v[number], new.v, position_B)
    if new.k_scale is None:
        return Cache(k, v)
    k_scale = put(cache.k_scale[number], new.k_scale, position_B)
    return Cache(k, v, k_scale, put(cache.v_scale[number], new.v_scale, position_B))


def put_stacked(cache: Cache, number: jax.Array, new: Cache, position_B: jax.Array) -> Cache:
    """A stacked cache with `new` [B, K, ..] in layer `number` at `position_B` of each row."""
    B, K = new.k.shape[:2]
    rows, heads, at = jnp.arange(B)[:, None], jnp.arange(K)[None], position_B[:, None]
    # Every index explicit, on the stacked cache itself: the one form that writes in place and lets
    # the read of the layer be fused into attention on TPU.
    return jax.tree.map(
        lambda c, x: c.at[number, rows, heads, at].set(x.astype(c.dtype)), cache, new
    )


def layer_of(cache: Cache, number: jax.Array) -> Cache:
    """Layer `number` of a stacked cache."""
    return jax.tree.map(lambda c: jax.lax.dynamic_index_in_dim(c, number, 0, keepdims=False), cache)
