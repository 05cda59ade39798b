"""A mixture of experts in place of a layer's feed-forward: each token goes through the few experts
that its router finds best, and what they say is added by the router's weights.

Rows of tokens are sorted by expert, so that each expert's are one run of rows, and multiplied with
`jax.lax.ragged_dot`. There is no capacity: no token is dropped, and what comes out for a token does
not depend on the others. (On CPUs and GPUs, ragged_dot multiplies every row with every expert.)

On a mesh each device sorts its own rows. Where experts are split over devices (the mesh axis
`expert`), the tokens of these devices are gathered, each device adds what its own experts say (of
whole rows for one device's tokens at a time), and the sums go back to where the tokens belong.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scope_jax.devices.mesh import GATHERED, partition_spec
from scope_jax.models.config import ModelConfig
from scope_jax.models.weights import Params

EXPERTS = ("expert_gate", "expert_up", "expert_down")
WEIGHTS = ("router", *EXPERTS)
# Logical axes of a layer's weights.
_AXES = (
    (None, None),
    ("expert", "embed", "mlp"),
    ("expert", "embed", "mlp"),
    ("expert", "mlp", "embed"),
)


@dataclasses.dataclass(frozen=True)
class _Split:
    """How the work lies on a mesh. experts, sums: the mesh axes over which experts, and their
    hidden size, are split. rows: those of the tokens."""

    experts: str | None = None
    sums: str | None = None
    rows: tuple[str, ...] = ()


def check_split(config: ModelConfig, sizes: Mapping[str, int], who: str = "the model") -> None:
    """Raise ValueError where the mesh axis `expert` does not divide the experts: every device would
    hold all of them."""
    size = sizes.get("expert", 1)
    if config.num_experts % size:
        raise ValueError(
            f"mesh.expert = {size} does not divide the {config.num_experts} experts of {who}; use"
            f" a divisor of {config.num_experts}, and split weights further with mesh.fsdp"
        )


def mix(
    x: jax.Array,
    layer: Params,
    config: ModelConfig,
    counted: jax.Array | None = None,
    place: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """What the experts of a layer say of x [B, D] or [B, T, D], in its shape and dtype; and where
    `counted` says which of its tokens count (1 or 0, [B] or [B, T]), how many of those each expert
    had, float32[E].

    place: int32[], the number of the layer, where `layer` holds the experts of all of them
    ([L, E, ...]; the router is its own)."""
    weights = tuple(layer[name] for name in WEIGHTS)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _on_device(x, counted, place, *weights, config=config, split=_Split())
    sizes = dict(mesh.shape)
    check_split(config, sizes)
    rows = partition_spec(("batch", *(None,) * (x.ndim - 1)), x.shape, sizes)
    layer_specs = [
        partition_spec(axes, w.shape[-len(axes) :], sizes, drop=GATHERED)
        for axes, w in zip(_AXES, weights, strict=True)
    ]
    split = _Split(layer_specs[1][0], layer_specs[1][2], _names(rows[0]))
    stacked = place is not None
    specs = [
        PartitionSpec(None, *spec) if stacked and name in EXPERTS else spec
        for name, spec in zip(WEIGHTS, layer_specs, strict=True)
    ]
    absent = counted is None
    run = jax.shard_map(
        functools.partial(_on_device, config=config, split=split),
        mesh=mesh,
        in_specs=(
            rows,
            None if absent else PartitionSpec(*rows[:-1]),
            PartitionSpec() if stacked else None,
            *specs,
        ),
        out_specs=(rows, None if absent else PartitionSpec()),
        check_vma=False,
    )
    return run(x, counted, place, *weights)


def route(
    x_ND: jax.Array, router_DE: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """(weights [N, A] in x's dtype, numbers int32[N, A]) of the A experts of each token, by a
    softmax over all experts in float32."""
    probability = jax.nn.softmax((x_ND @ router_DE).astype(jnp.float32), axis=-1)
    weight, expert = jax.lax.top_k(probability, config.experts_per_token)
    if config.norm_expert_weights:
        weight = weight / jnp.sum(weight, axis=-1, keepdims=True)
    return weight.astype(x_ND.dtype), expert


def _on_device(
    x: jax.Array,
    counted: jax.Array | None,
    place: jax.Array | None,
    router: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    config: ModelConfig,
    split: _Split,
) -> tuple[jax.Array, jax.Array | None]:
    """`mix` with a device's tokens and its part of the experts (of each layer, with `place`)."""
    x_ND = x.reshape(-1, x.shape[-1])
    weight_NA, expert_NA = route(x_ND, router, config)
    tokens = x_ND, weight_NA, expert_NA
    load_E = None
    if counted is not None:
        chosen = expert_NA[..., None] == jnp.arange(config.num_experts)[None, None]
        load_E = jnp.sum(chosen * counted.reshape(-1, 1, 1), axis=(0, 1), dtype=jnp.float32)
        load_E = jax.lax.psum(load_E, split.rows) if split.rows else load_E
    axis = split.experts
    first = 0 if axis is None else jax.lax.axis_index(axis) * gate.shape[-3]

    def own(tokens: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return _apply(*tokens, (gate, up, down), first, place)

    if axis is None:
        out = own(tokens)
    elif axis in split.rows:
        gathered = jax.tree.map(lambda t: jax.lax.all_gather(t, axis), tokens)
        if x.ndim == 2:
            # A token of each row, while decoding: the weights are read once for all of them.
            flat = jax.tree.map(lambda t: t.reshape(-1, t.shape[-1]), gathered)
            sums = own(flat).reshape(gathered[0].shape)
        else:
            # One device's tokens at a time, whose intermediate results are computed again in the
            # backward pass: all at once would need as many times the memory.
            sums = jax.lax.map(jax.checkpoint(own), gathered)
        out = jax.lax.psum_scatter(sums, axis)
    else:
        out = jax.lax.psum(own(tokens), axis)
    if split.sums is not None:
        out = jax.lax.psum(out, split.sums)
    return out.reshape(x.shape), load_E


def _apply(
    x_ND: jax.Array,
    weight_NA: jax.Array,
    expert_NA: jax.Array,
    weights: tuple[jax.Array, jax.Array, jax.Array],
    first: Any,
    place: jax.Array | None,
) -> jax.Array:
    """What the experts from number `first` on, whose weights these are, add to each token."""
    (N, A), E = expert_NA.shape, weights[0].shape[-3]
    number = expert_NA.reshape(-1) - first
    number = jnp.where((number >= 0) & (number < E), number, E)  # those of others stand last
    order = jnp.argsort(number, stable=True)
    back = jnp.argsort(order)
    count_E = jnp.sum(number[:, None] == jnp.arange(E)[None], axis=0, dtype=jnp.int32)
    # What ragged_dot leaves in rows behind the last group depends on the device.
    here = (jnp.arange(N * A) < jnp.sum(count_E))[:, None]
    runs = count_E
    if place is not None:
        # The experts of other layers have no rows.
        flat = [w.reshape(-1, *w.shape[-2:]) for w in weights]
        runs = jax.lax.dynamic_update_slice(
            jnp.zeros(flat[0].shape[0], jnp.int32), count_E, (place * E,)
        )
        weights = flat[0], flat[1], flat[2]
    gate, up, down = weights
    rows = jnp.where(here, _take(x_ND, order, back.reshape(N, A)), 0)
    hidden = jax.nn.silu(_products(rows, gate, runs)) * _products(rows, up, runs)
    out = jnp.where(here, _products(jnp.where(here, hidden, 0), down, runs), 0)
    weight = _permute(weight_NA.reshape(-1), order, back)
    return _put(out * weight[:, None], order, back.reshape(N, A))


def _products(rows: jax.Array, weights: jax.Array, runs: jax.Array) -> jax.Array:
    """Each run of rows, of these lengths, times its expert's weights [E, in, out]."""
    # TPUs have a kernel for whole tiles of eight rows only, and a dense product for others.
    count = rows.shape[0]
    rows = jnp.pad(rows, ((0, -count % 8), (0, 0)))
    return jax.lax.ragged_dot(rows, weights.astype(rows.dtype), runs)[:count]


@jax.custom_vjp
def _take(x_ND: jax.Array, order: jax.Array, back_NA: jax.Array) -> jax.Array:
    """A row for each of a token's A experts, in this order: [N A, D]. Its transpose is `_put`."""
    return x_ND[order // back_NA.shape[1]]


@jax.custom_vjp
def _put(rows: jax.Array, order: jax.Array, back_NA: jax.Array) -> jax.Array:
    """The sum of a token's rows: [N, D]. Its transpose is `_take`."""
    return jnp.sum(rows[back_NA], axis=1)


Order = tuple[jax.Array, ...]  # the last two arguments


def _take_forward(x: jax.Array, *order: jax.Array) -> tuple[jax.Array, Order]:
    return _take(x, *order), order


def _take_backward(order: Order, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return _put(grad, *order), None, None


def _put_forward(rows: jax.Array, *order: jax.Array) -> tuple[jax.Array, Order]:
    return _put(rows, *order), order


def _put_backward(order: Order, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return _take(grad, *order), None, None


_take.defvjp(_take_forward, _take_backward)
_put.defvjp(_put_forward, _put_backward)


@jax.custom_vjp
def _permute(x: jax.Array, order: jax.Array, back: jax.Array) -> jax.Array:
    """x[order], `back` the inverse of `order`: a gather, and so is its transpose. Left to itself,
    JAX would scatter."""
    return x[order]


def _permute_forward(
    x: jax.Array, order: jax.Array, back: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return x[order], back


def _permute_backward(back: jax.Array, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return grad[back], None, None


_permute.defvjp(_permute_forward, _permute_backward)


def _names(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
