"""The keys and values of decoding, in the form that the device at hand reads best, in the
parameters' dtype or in 8 bits."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import constrain

FormName = Literal["stacked", "transposed", "by_position"]


@dataclasses.dataclass(frozen=True)
class Form:
    """Where the axes of a layer's keys, values and scales are: B rows, K heads, S positions, H. Not
    `apart`: all layers are one array, with an axis before these; else a tuple of arrays."""

    keys: str
    values: str
    scales: str
    apart: bool


FORMS: dict[FormName, Form] = {
    # Scanned together with the weights.
    "stacked": Form("BKSH", "BKSH", "BKS", apart=False),
    # What the CPU's matrix product reads fastest.
    "transposed": Form("BKHS", "BKSH", "BKS", apart=True),
    # What cuDNN's attention takes.
    "by_position": Form("BSKH", "BSKH", "BSK", apart=True),
}


@flax.struct.dataclass
class Cache:
    """Keys and values in the form of that name. As int8, keys are k times k_scale and values v
    times v_scale, with one float32 scale for each position and head; else these are None."""

    k: Any
    v: Any
    k_scale: Any = None
    v_scale: Any = None
    form: FormName = flax.struct.field(pytree_node=False, default="stacked")

    @property
    def axes(self) -> Form:
        return FORMS[self.form]

    @property
    def positions(self) -> int:
        one = self.v[0] if self.axes.apart else self.v
        return one.shape[self.axes.values.index("S") + (not self.axes.apart)]


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


def _axes_of(form: Form) -> dict[str, str]:
    return {"k": form.keys, "v": form.values, "k_scale": form.scales, "v_scale": form.scales}


def map_arrays(f: Callable[..., jax.Array], *caches: Cache) -> Cache:
    """The Cache of f(one array of each cache, rows=axis, positions=axis); the axes are those of the
    array that are the rows and the positions."""
    form = caches[0].axes

    def each(name: str, axes: str) -> Any:
        found = [getattr(cache, name) for cache in caches]
        if found[0] is None:
            return None
        place = {"rows": axes.index("B"), "positions": axes.index("S")}
        if not form.apart:
            return f(*found, **{what: axis + 1 for what, axis in place.items()})
        return tuple(f(*layer, **place) for layer in zip(*found, strict=True))

    arrays = {name: each(name, axes) for name, axes in _axes_of(form).items()}
    return Cache(**arrays, form=caches[0].form)


def laid_out(cache: Cache) -> Cache:
    """A cache laid out over its rows and heads."""
    form = cache.axes

    def lay(x: Any, axes: str) -> Any:
        if x is None:
            return None
        if form.apart:
            return tuple(_lay(layer, axes) for layer in x)
        return _lay(x, "." + axes)

    arrays = {name: lay(getattr(cache, name), axes) for name, axes in _axes_of(form).items()}
    return Cache(**arrays, form=cache.form)


def _lay(x: jax.Array, axes: str) -> jax.Array:
    return constrain(x, *({"B": "batch", "K": "kv_heads"}.get(axis) for axis in axes))


def decode_cache(form: FormName, prefixes: Cache, group: int, size: int) -> Cache:
    """The stacked cache of prefixes [L, P, K, W, ..] repeated for `group` consecutive rows and
    grown to `size` positions, in the form of that name."""

    def grow(x: jax.Array, rows: int, positions: int) -> jax.Array:
        x = jnp.repeat(x, group, axis=rows) if group > 1 else x
        more = [(0, size - x.shape[axis] if axis == positions else 0) for axis in range(x.ndim)]
        return jnp.pad(x, more)

    return in_form(form, laid_out(map_arrays(grow, prefixes)))


def empty_cache(form: FormName, like: Cache, seats: int, size: int) -> Cache:
    """Zeros for `seats` rows of `size` positions, in the form of that name; everything else as in
    `like`, which is stacked."""

    def zeros(x: jax.Array, rows: int, positions: int) -> jax.Array:
        shape = list(x.shape)
        shape[rows], shape[positions] = seats, size
        return jnp.zeros(shape, x.dtype)

    return in_form(form, laid_out(map_arrays(zeros, like)))


def in_form(name: FormName, cache: Cache) -> Cache:
    """A stacked cache in the form of that name."""
    if name == "stacked":
        return cache
    stacked, form = FORMS["stacked"], FORMS[name]

    def apart(x: Any, old: str, new: str) -> Any:
        if x is None:
            return None
        order = [old.index(axis) for axis in new]
        return tuple(_lay(jnp.transpose(x[n], order), new) for n in range(x.shape[0]))

    old, new = _axes_of(stacked), _axes_of(form)
    arrays = {key: apart(getattr(cache, key), old[key], new[key]) for key in old}
    return Cache(**arrays, form=name)


def put_in_layer(cache: Cache, number: int, new: Cache, position_B: jax.Array) -> Cache:
    """Layer `number` of a cache whose layers are apart, with `new` [B, K, ..] at position
    `position_B` of each row; its arrays are not tuples."""

    def put(x: Any, values: Any, axes: str) -> Any:
        if x is None:
            return None
        index = (slice(None),) * (axes.index("S") - 1)
        # Over rows by vmap, so that the partitioner sees that no row touches another: no
        # collectives, however rows are split.
        one_row = jax.vmap(lambda c, v, at: c.at[(*index, at)].set(v.astype(c.dtype)))
        return one_row(x[number], values, position_B)

    arrays = {
        name: put(getattr(cache, name), getattr(new, name), axes)
        for name, axes in _axes_of(cache.axes).items()
    }
    return Cache(**arrays, form=cache.form)


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
