"""One layer of the decoder, the embedding before the layers and the vocabulary after them.

Projections are 2-D matrix products ([rows x positions, in] @ [in, out]); norms run in float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import constrain, parts
from scope_jax.models.config import LayerKind, ModelConfig
from scope_jax.models.experts import mix
from scope_jax.models.rope import frequencies
from scope_jax.models.weights import Params

# cos, sin [B, T, 1, R/2]: R numbers of a head are rotated, all of them unless the config says so
Rotation = tuple[jax.Array, jax.Array]


def embed(params: Params, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    # In training, embedding and head may be kept in a wider type than the rest: what is taken of
    # them is cast.
    x = params["embed"][tokens]
    if "embed_scale" in params:
        x = x.astype(jnp.float32) * params["embed_scale"][tokens][..., None]
    x = x.astype(params["final_norm"].dtype)
    # The factor is rounded to the weights' dtype, as in Gemma's own code.
    return x * jnp.asarray(config.hidden_size**0.5, x.dtype) if config.family.gemma else x


def vocabulary_logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """float32 logits over the vocabulary, of hidden states [B, D] (decoding) or [B, T, D] (a
    loss)."""
    name = "embed" if config.tied else "head"
    head = params["embed"].T if config.tied else params["head"]
    rows = ("batch",) if hidden.ndim == 2 else ("loss_batch", None)
    hidden = constrain(hidden, *rows, None)
    out = jnp.dot(
        hidden.reshape(-1, hidden.shape[-1]),
        head.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    if config.weights == "int8":
        out = out * params[f"{name}_scale"][None]
    return constrain(
        cap_logits(out, config).reshape(*hidden.shape[:-1], head.shape[-1]), *rows, "vocab"
    )


def cap_logits(logits: jax.Array, config: ModelConfig) -> jax.Array:
    return config.logit_cap * jnp.tanh(logits / config.logit_cap) if config.logit_cap else logits


def rotation_of(position_BT: jax.Array, config: ModelConfig, kind: LayerKind) -> Rotation:
    """cos, sin [B, T, 1, R/2], float32, R the numbers of a head that are rotated: 1 and 0, which
    leave them as they are, in layers without positions."""
    local, unrotated = kind
    if unrotated:
        shape = (*position_BT.shape, 1, config.rotary_size // 2)
        return jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
    theta, scaling = config.rope(local)
    frequency = frequencies(theta, config.rotary_size, scaling)
    angle = position_BT.astype(jnp.float32)[..., None, None] * frequency[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if scaling.attention_factor != 1:
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    # Without the barrier XLA computes both anew in every layer that uses them.
    return jax.lax.optimization_barrier((cos, sin))


def project(
    x_BTD: jax.Array, layer: Params, config: ModelConfig, rotation: Rotation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [B, T, K, G, H], k and v [B, T, K, H], rotary positions applied."""
    family = config.family
    h = x_BTD if family.post_norm else rms_norm(x_BTD, layer["attention_norm"], config)
    B, T, _ = h.shape
    K, G, H = config.num_kv_heads, config.num_query_groups, config.head_size
    q, k, v = _linears(h, layer, ("query", "key", "value"), (K * G * H, K * H, K * H))
    if family.whole_qk_norm:
        q, k = rms_norm(q, layer["query_norm"], config), rms_norm(k, layer["key_norm"], config)
    q, k, v = q.reshape(B, T, K * G, H), k.reshape(B, T, K, H), v.reshape(B, T, K, H)
    if family.qk_norm:
        q, k = rms_norm(q, layer["query_norm"], config), rms_norm(k, layer["key_norm"], config)
    return _rotate(q, rotation).reshape(B, T, K, G, H), _rotate(k, rotation), v


def finish_layer(
    x: jax.Array,
    attended: jax.Array,
    layer: Params,
    config: ModelConfig,
    counted: jax.Array | None = None,
    place: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """(x after the layer; of a mixture of experts, what `experts.mix` counted, or None). place: the
    layer's number, where `layer` holds the experts of all layers."""
    family = config.family
    attended = _linear(attended, layer, "output")
    x = x + (
        rms_norm(attended, layer["attended_norm"], config) if family.norms_behind else attended
    )
    h = x if family.post_norm else rms_norm(x, layer["ffn_norm"], config)
    fed, load_E = (
        mix(h, layer, config, counted, place)
        if config.num_experts
        else (_feed_forward(h, layer, config), None)
    )
    fed = rms_norm(fed, layer["fed_norm"], config) if family.norms_behind else fed
    return x + fed, load_E


def _feed_forward(h: jax.Array, layer: Params, config: ModelConfig) -> jax.Array:
    gate, up = _linears(h, layer, ("gate", "up"), (config.ffn_size, config.ffn_size))
    gate = jax.nn.gelu(gate, approximate=True) if config.family.gemma else jax.nn.silu(gate)
    return _linear(gate * up, layer, "down")


def _rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotary positions on [B, T, heads, H], halves paired as in Hugging Face's Llama and Qwen. What
    stands behind the rotated numbers of a head stays as it is."""
    cos, sin = rotation
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        return jnp.concatenate([_rotate(x[..., :rotated], rotation), x[..., rotated:]], axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, config: ModelConfig) -> jax.Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(
        jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + config.norm_eps
    )
    scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    if config.family.gemma:
        return (normed * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    if config.family.wide_norms:
        return (normed * scale.astype(jnp.float32)).astype(x.dtype)
    return normed.astype(x.dtype) * scale


def merge_projections(layer: Params) -> Params:
    """A layer whose projections of the same input are one weight each, under their names joined by
    "+": one product in place of two or three. (Left to itself, XLA joins the weights on a GPU, in
    every step of a loop.)"""
    merged = dict(layer)
    for names in (("query", "key", "value"), ("gate", "up")):
        if names[0] not in layer:
            continue  # experts
        devices = _devices([layer[name].shape[-1] for name in names])
        for end in ("", "_bias", "_scale"):
            found = [merged.pop(name + end) for name in names if name + end in layer]
            if found:
                # What a device has of each stands together.
                split = [w.reshape(*w.shape[:-1], devices, -1) for w in found]
                joined = jnp.concatenate(split, axis=-1).reshape(*found[0].shape[:-1], -1)
                axes = (None,) * (joined.ndim - 1)
                merged["+".join(names) + end] = constrain(joined, *axes, "heads")
    return merged


def _linears(
    x: jax.Array, layer: Params, names: tuple[str, ...], sizes: tuple[int, ...]
) -> tuple[jax.Array, ...]:
    """Projections of the same input, of these sizes."""
    name = "+".join(names)
    if name not in layer:
        return tuple(_linear(x, layer, name) for name in names)
    devices, lead = _devices(sizes), x.shape[:-1]
    out = _linear(x, layer, name).reshape(*lead, devices, -1)
    ends = [sum(sizes[:n]) // devices for n in range(1, len(sizes))]
    return tuple(part.reshape(*lead, -1) for part in jnp.split(out, ends, axis=-1))


def _devices(sizes: Sequence[int]) -> int:
    """How many devices the columns of weights of these sizes are split over."""
    return min(parts(("heads",), (size,)) for size in sizes)


def _linear(x: jax.Array, layer: Params, name: str) -> jax.Array:
    """A projection of a layer, with its bias and its low-rank adapter where it has them."""
    out = dense(x, layer[name], layer.get(f"{name}_bias"), layer.get(f"{name}_scale"))
    return (
        out + dense(dense(x, layer[f"{name}_a"]), layer[f"{name}_b"])
        if f"{name}_a" in layer
        else out
    )


def dense(
    x: jax.Array, w: jax.Array, bias: jax.Array | None = None, scale: jax.Array | None = None
) -> jax.Array:
    """x [..., in] @ w [in, out] + bias [out]. int8 weights have a scale [out], float32: they are
    cast inside the product, so that 8 bits are read of each, and what comes out is scaled."""
    rows = x.reshape(-1, x.shape[-1])
    out = rows @ w if scale is None else (rows @ w.astype(x.dtype) * scale[None]).astype(x.dtype)
    if bias is not None:
        out = out + bias[None]
    return out.reshape(*x.shape[:-1], w.shape[-1])
