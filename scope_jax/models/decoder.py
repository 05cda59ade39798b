"""The decoder: the layers in turn, for training, scoring, prefill and decoding.

Rows are right-padded. Attention is causal, so padding is never seen by a real token and no mask is
needed for it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scope_jax.devices.current import platform
from scope_jax.devices.mesh import constrain
from scope_jax.models import attention
from scope_jax.models.cache import (
    Cache,
    FormName,
    laid_out,
    layer_of,
    put_in_layer,
    put_stacked,
    stored,
)
from scope_jax.models.config import LayerKind, ModelConfig
from scope_jax.models.experts import EXPERTS
from scope_jax.models.layers import (
    Rotation,
    embed,
    finish_layer,
    merge_projections,
    project,
    rms_norm,
    rotation_of,
    vocabulary_logits,
)
from scope_jax.models.weights import Params, gather_layer

# ModelConfig.remat: what of a layer stays in memory for the backward pass. All of it; the products
# with its weights; only what enters it.
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda f: f,
    "dots": functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            lambda primitive, *_, **__: primitive.name == "ragged_dot_general",
        ),
    ),
    "layer": jax.checkpoint,
}
# The window of a layer without one, where layers with and without are scanned together.
NO_WINDOW = 1 << 30


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens_BT: jax.Array,
) -> jax.Array:
    """Final-norm hidden states, [B, T, D] in the parameters' dtype."""
    config.check_width(tokens_BT.shape[1])
    position = jnp.arange(tokens_BT.shape[1])[None]
    hidden, _ = _run_layers(params, config, tokens_BT, position, _attend_causal(params, config))
    return hidden


# Logits that a loss holds at once on one device. With each chunk the gradient of the whole head is
# read and written: few large ones where there is memory for them.
LOGITS_AT_ONCE = {"cpu": 1 << 24, "tpu": 1 << 26, "gpu": 1 << 28}


def with_kernel(config: ModelConfig) -> ModelConfig:
    """`config` with `attention`, `logits_at_once` and `experts_in_stack` decided for the device at
    hand, where they are None. Reads the mesh that is set; not for use inside jit."""
    kernel = config.attention or attention.kernel_here()
    logits = config.logits_at_once or LOGITS_AT_ONCE[platform()]
    in_stack = config.experts_in_stack
    if in_stack is None:
        # Where ragged_dot is a dense product it would multiply with the experts of all layers.
        in_stack = platform() == "tpu"
    return dataclasses.replace(
        config, attention=kernel, logits_at_once=logits, experts_in_stack=in_stack
    )


def for_device(config: ModelConfig) -> ModelConfig:
    """`with_kernel`, and `scan_layers` decided too, where it is None: on CPU and GPU a Python loop,
    as a scan copies each layer's weights and activations out of stacked arrays and back; a scan
    on TPU, which reads them in place, for compile time and memory, and where something is to be
    computed again: in a Python loop the CPU's compiler finds the first computation again and keeps
    it. Reads the mesh that is set; not for use inside jit."""
    config = with_kernel(config)
    if config.scan_layers is not None:
        return config
    return dataclasses.replace(config, scan_layers=platform() == "tpu" or config.remat != "none")


def for_prefill(config: ModelConfig) -> ModelConfig:
    """`for_device`, but that layers are scanned on a GPU too where `config` does not say: prefill
    runs once, and half of what is compiled for a rollout would be its layers. (How decoding loops
    over them is said by `decode_form`.)"""
    if platform() == "gpu" and config.scan_layers is None:
        config = dataclasses.replace(config, scan_layers=True)
    return for_device(config)


def completion_states(
    params: Params,
    config: ModelConfig,
    prompt_PW: jax.Array,
    prompt_length_P: jax.Array,
    completion_BC: jax.Array,
    counted_BC: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Final-norm hidden states before each token of the completions, [P, M C, D]; and of a mixture
    of experts, where `counted_BC` says which of these positions count (1 or 0), how many of them
    each expert had in each layer, float32[L, E]. B = P M rows, of which M consecutive ones
    continue the same prompt, which goes through the model once for all of them, forward and
    backward.

    Prompts and completions are right-padded; what stands in a completion's padding changes nothing
    before it.
    """
    P, W = prompt_PW.shape
    B, C = completion_BC.shape
    M = B // P
    config.check_width(W + C)
    # A completion's first position is fed the prompt's last token, and its keys come from there:
    # the prompt's own last position is not seen.
    last = jnp.take_along_axis(prompt_PW, prompt_length_P[:, None] - 1, axis=1)
    fed = jnp.concatenate([jnp.repeat(last, M, axis=0), completion_BC[:, :-1]], axis=1)
    tokens = jnp.concatenate([prompt_PW, fed.reshape(P, M * C)], axis=1)
    begin = prompt_length_P[:, None] - 1 + jnp.arange(C)[None]
    position = jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(W)[None], (P, W)), jnp.tile(begin, (1, M))], axis=1
    )

    kernel = attention.choose(config, _dtype(params)).kernel

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: attention.Window) -> jax.Array:
        packed = attention.Packed(W, M, prompt_length_P - 1)
        return attention.shared_prompt(
            q, k, v, packed, window=window, scoring=_scoring(config), kernel=kernel
        )

    counted = None
    if counted_BC is not None and config.num_experts:
        counted = jnp.pad(counted_BC.reshape(P, M * C), ((0, 0), (W, 0)))
    hidden, load_LE = _run_layers(params, config, tokens, position, attend, counted_BT=counted)
    return hidden[:, W:], load_LE


def prefill(
    params: Params,
    config: ModelConfig,
    tokens_PW: jax.Array,
    length_P: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Run prefixes through the model: (logits of the token after each prefix, float32[P, V];
    stacked Cache with S = W)."""
    position = jnp.arange(tokens_PW.shape[1])[None]
    hidden, cache = _run_layers(
        params, config, tokens_PW, position, _attend_causal(params, config), keep_cache=True
    )
    last = jnp.take_along_axis(hidden, (length_P - 1)[:, None, None], axis=1)[:, 0]
    return vocabulary_logits(params, config, last), cache


def decode_form(config: ModelConfig, dtype: Any, int8: bool) -> FormName:
    """The form of the cache on the device at hand. Layers are apart on CPU and GPU: taken out of a
    stack, keys, values and weights would be copied in every step there. On TPU the stack is read
    and written in place. Reads the mesh that is set; not for use inside jit."""
    stacked = platform() == "tpu" if config.scan_layers is None else config.scan_layers
    if stacked:
        return "stacked"
    # cuDNN's window counts from the query's place, which its decoding form has none of.
    serves = attention.choose(with_kernel(config), dtype).kernel == "cudnn"
    if serves and not int8 and not config.window:
        return "by_position"
    return "transposed"


def decode_step(
    params: Params,
    layers: Any,
    config: ModelConfig,
    cache: Cache,
    token_B: jax.Array,
    position_B: jax.Array,
    on_B: jax.Array | None = None,
    blocks: attention.Blocks | None = None,
) -> tuple[jax.Array, Cache]:
    """One token per row: `token_B` stands at `position_B`; its keys and values are written there
    and it attends to positions 0..position, in a local layer to the last of them. Returns
    (float32[B, V] logits of the next token, Cache).

    `layers`: from `decode_layers`. on_B: which rows go on (None: all); what comes out for the
    others means nothing. blocks: how a long cache is read (None: whole).
    """
    x_BD = embed(params, config, token_B)
    int8 = cache.k_scale is not None
    length_B = position_B + 1
    if on_B is not None and (blocks is not None or cache.form == "by_position"):
        length_B = jnp.where(on_B, length_B, 0)

    def kind(of: LayerKind) -> tuple[Rotation, int | None]:
        window = config.window if of[0] else None
        return rotation_of(position_B[:, None], config, of), window

    def run(
        x: jax.Array,
        layer: Params,
        kind: tuple[Rotation, attention.Window],
        write: Callable[[Cache], tuple[Cache, jax.Array | None, Any]],
        place: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """(x after the layer, last result of `write`); the first results of `write` are what holds
        the layer's cache with the new token in it, and the number of the layer in it. place: see
        `finish_layer`."""
        rotation, window = kind
        q, k, v = project(x[:, None], layer, config, rotation)
        there, number, kept = write(stored(k[:, 0], v[:, 0], int8))
        attended = _attend_cached(q[:, 0], there, number, length_B, window, blocks, config)
        x, _ = finish_layer(x, attended.reshape(x.shape[0], -1), layer, config, place=place)
        return x, kept

    if cache.axes.apart:
        parts = []
        kinds, kinds_L = _kinds_apart(config, kind)
        for number, (layer, of) in enumerate(zip(layers, kinds_L, strict=True)):

            def write_one(new: Cache, number: int = number) -> tuple[Cache, None, Cache]:
                part = put_in_layer(cache, number, new, position_B)
                return part, None, part

            x_BD, part = run(x_BD, layer, kinds[of], write_one)
            parts.append((part.k, part.v, part.k_scale, part.v_scale))
        k, v, k_scale, v_scale = (
            None if part[0] is None else tuple(part) for part in zip(*parts, strict=True)
        )
        cache = Cache(k, v, k_scale, v_scale, cache.form)
    else:
        pick, scanned_L = _kinds_scanned(config, kind)
        # A kernel takes whole arrays: a layer's experts would be copied out of the stack for it.
        in_stack = config.num_experts and config.experts_in_stack
        stays = {name: layers[name] for name in EXPERTS} if in_stack else {}
        goes = {name: w for name, w in layers.items() if name not in stays}

        def body(carry: tuple[jax.Array, Cache], xs: tuple) -> tuple[tuple[jax.Array, Cache], None]:
            x, kept = carry
            layer, number, of = xs

            def write(new: Cache) -> tuple[Cache, jax.Array | None, Cache]:
                whole = put_stacked(kept, number, new, position_B)
                if blocks is None:
                    return layer_of(whole, number), None, whole
                return whole, number, whole

            return run(x, layer | stays, pick(of), write, number if stays else None), None

        numbers = jnp.arange(config.num_layers)
        (x_BD, cache), _ = jax.lax.scan(body, (x_BD, cache), (goes, numbers, scanned_L))
    x_BD = rms_norm(x_BD, params["final_norm"], config)
    return vocabulary_logits(params, config, x_BD), cache


def _attend_cached(
    q: jax.Array,
    there: Cache,
    number: jax.Array | None,
    length_B: jax.Array,
    window: attention.Window,
    blocks: attention.Blocks | None,
    config: ModelConfig,
) -> jax.Array:
    """What queries [B, K, G, H] gather from a layer's cache."""
    scoring, axes = _scoring(config), there.axes
    if there.form == "by_position":
        return attention.cudnn(q, there.k, there.v, length_B, scoring=scoring)
    arrays = there.k, there.v, there.k_scale, there.v_scale
    how: dict[str, Any] = {"window": window, "scoring": scoring}
    layout = axes.keys, axes.values, axes.scales
    if blocks is None:
        return attention.cached(q, arrays, length_B, layout=layout, **how)
    return attention.blockwise(q, arrays, length_B, blocks, layout=layout, layer=number, **how)


def decode_layers(params: Params, config: ModelConfig, apart: bool, merged: bool = False) -> Any:
    """The layer weights in the form that `decode_step` loops over: stacked, or a list sliced once,
    before the loop. merged: see `merge_projections`."""
    if not apart:
        return params["layers"]
    layers = [jax.tree.map(lambda w, n=n: w[n], params["layers"]) for n in range(config.num_layers)]
    return [merge_projections(layer) for layer in layers] if merged else layers


def _run_layers(
    params: Params,
    config: ModelConfig,
    tokens_BT: jax.Array,
    position_BT: jax.Array,
    attend: Callable[[jax.Array, jax.Array, jax.Array, attention.Window], jax.Array],
    *,
    keep_cache: bool = False,
    counted_BT: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """(final-norm hidden states; a stacked Cache, or where positions are counted the load of the
    experts, float32[L, E], or None).
    `attend(q, k, v, window)`: [B, T, K, G, H], [B, T, K, H] -> [B, T, N H]."""
    x = constrain(embed(params, config, tokens_BT), "batch", None, None)

    def kind(of: LayerKind) -> tuple[Rotation, int | None]:
        return rotation_of(position_BT, config, of), config.window if of[0] else None

    def body(
        kind: tuple[Rotation, attention.Window], x: jax.Array, layer: Params
    ) -> tuple[jax.Array, Any]:
        rotation, window = kind
        layer = gather_layer(config, layer)
        q, k, v = project(x, layer, config, rotation)
        x, load_E = finish_layer(x, attend(q, k, v, window), layer, config, counted_BT)
        kept = (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)) if keep_cache else load_E
        return constrain(x, "batch", None, None), kept

    # What a kind holds is closed over, so that a Python window stays one under `jax.checkpoint`.
    wrap = REMAT[config.remat]
    if config.unrolled:
        kinds, kinds_L = _kinds_apart(config, kind)
        bodies = {of: wrap(functools.partial(body, value)) for of, value in kinds.items()}
        parts = []
        for layer, of in zip(decode_layers(params, config, True), kinds_L, strict=True):
            x, part = bodies[of](x, layer)
            parts.append(part)
        kept = jax.tree.map(lambda *layers: jnp.stack(layers), *parts)
    else:
        pick, scanned_L = _kinds_scanned(config, kind)
        scanned = wrap(lambda x, xs: body(pick(xs[1]), x, xs[0]))
        x, kept = jax.lax.scan(scanned, x, (params["layers"], scanned_L))
    kept = laid_out(Cache(*kept)) if keep_cache else kept
    return rms_norm(x, params["final_norm"], config), kept


def _attend_causal(
    params: Params, config: ModelConfig
) -> Callable[[jax.Array, jax.Array, jax.Array, attention.Window], jax.Array]:
    kernel = attention.choose(config, _dtype(params)).kernel

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: attention.Window) -> jax.Array:
        return attention.causal(q, k, v, window=window, scoring=_scoring(config), kernel=kernel)

    return attend


def _dtype(params: Params) -> Any:
    """Of the activations."""
    return params["final_norm"].dtype


def _scoring(config: ModelConfig) -> attention.Scoring:
    return attention.Scoring(config.query_scale, config.attention_cap)


def _kinds_apart(
    config: ModelConfig, kind: Callable[[LayerKind], tuple[Rotation, int | None]]
) -> tuple[dict[LayerKind, tuple[Rotation, int | None]], tuple[LayerKind, ...]]:
    """For a Python loop over layers: what `kind` gives for each kind of layer that there is; and
    the kind of each layer."""
    kinds_L = config.layer_kinds
    return {of: kind(of) for of in sorted(set(kinds_L))}, kinds_L


def _kinds_scanned(
    config: ModelConfig, kind: Callable[[LayerKind], tuple[Rotation, int | None]]
) -> tuple[Callable[[Any], Any], jax.Array | None]:
    """For a scan over layers: a function from what is scanned to what `kind` gives for that layer;
    and what to scan, the number of its kind. Nothing is scanned or picked where all layers are of
    one kind."""
    kinds, kinds_L = _kinds_apart(config, kind)
    if len(kinds) == 1:
        return lambda _: kinds[kinds_L[0]], None

    numbers_L = jnp.array([list(kinds).index(of) for of in kinds_L], jnp.int32)
    windows = [window for _, window in kinds.values()]
    if len(set(windows)) == 1:
        # A window that all share stays a Python number: kernels take no other.
        turns = jax.tree.map(lambda *each: jnp.stack(each), *(turn for turn, _ in kinds.values()))
        return lambda n: (jax.tree.map(lambda x: x[n], turns), windows[0]), numbers_L

    def is_window(x: Any) -> bool:
        return x is None or isinstance(x, int)

    def array(x: Any) -> jax.Array:
        return jnp.int32(NO_WINDOW if x is None else x) if is_window(x) else x

    stacked = jax.tree.map(
        lambda *each: jnp.stack([array(x) for x in each]), *kinds.values(), is_leaf=is_window
    )
    return lambda n: jax.tree.map(lambda x: x[n], stacked), numbers_L
