"""The decoder: one set of layer functions for training, scoring, prefill and decoding.

Rows are right-padded. Attention is causal, so padding is never seen by a real token and no mask is
needed for it. Projections are 2-D matrix products ([rows x positions, in] @ [in, out]); norms,
softmax and log-probs run in float32.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import constrain, parts, platform
from scope_jax.models import attention
from scope_jax.models.cache import Cache, layer_of, put_in_layer, put_stacked, stored
from scope_jax.models.config import ModelConfig
from scope_jax.models.rope import frequencies
from scope_jax.models.weights import Params, gather_layer

# [B, chunk, V] float32 logits held at once by `token_logprobs`, in elements of one device.
LOGITS_BUDGET = 1 << 24
# ModelConfig.remat: what of a layer stays in memory for the backward pass. All of it; the products
# with its weights; only what enters it.
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda f: f,
    "dots": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "layer": jax.checkpoint,
}
# The window of a layer without one, where layers with and without are scanned together.
NO_WINDOW = 1 << 30

# cos, sin [B, T, 1, H/2]
Rotation = tuple[jax.Array, jax.Array]


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens_BT: jax.Array,
) -> jax.Array:
    """Final-norm hidden states, [B, T, D] in the parameters' dtype."""
    position = jnp.arange(tokens_BT.shape[1])[None]
    hidden, _ = _run_layers(params, config, tokens_BT, position, _attend_causal(config))
    return hidden


def for_device(config: ModelConfig) -> ModelConfig:
    """`config` with `scan_layers` decided for the device at hand, where it is None: on CPU a Python
    loop, as a scan copies each layer's weights and activations out of stacked arrays and back; a
    scan elsewhere, for compile time and memory, and where something is to be computed again: in a
    Python loop the CPU's compiler finds the first computation again and keeps it. Reads the mesh
    that is set; not for use inside jit."""
    if config.scan_layers is not None:
        return config
    return dataclasses.replace(config, scan_layers=platform() != "cpu" or config.remat != "none")


def logits(
    params: Params, config: ModelConfig, tokens_BT: jax.Array, length_B: jax.Array
) -> jax.Array:
    """Next-token logits, float32[B, T, V]; positions at and past `length_B` hold zeros.

    Raises ValueError for a model without a vocabulary head.
    """
    if config.head != "lm":
        raise ValueError(
            f"this checkpoint has head {config.head!r} and no vocabulary logits; an 'lm' head is"
            " needed"
        )
    out = _vocabulary(params, config, hidden_states(params, config, tokens_BT))
    return jnp.where((jnp.arange(out.shape[1])[None] < length_B[:, None])[..., None], out, 0.0)


def good_step_probability(
    params: Params,
    config: ModelConfig,
    tokens_BT: jax.Array,
    length_B: jax.Array,
) -> jax.Array:
    """Probability that the step ending at each position is right, float32[B, T]: softmax of the
    two-class head, class 1, or sigmoid of the value head. Meaningful at a PRM's step positions;
    zero at and past `length_B`.

    Raises ValueError for a model without such a head.
    """
    if config.head not in ("prm", "value"):
        raise ValueError(
            f"this checkpoint has head {config.head!r}; a PRM needs score.0 and score.2 (config"
            " head 'prm') or v_head.summary (config head 'value')"
        )
    hidden = hidden_states(params, config, tokens_BT)
    if config.head == "prm":
        probability = jax.nn.softmax(prm_logits(params, hidden), axis=-1)[..., 1]
    else:
        probability = jax.nn.sigmoid(value_logits(params, hidden))
    return jnp.where(jnp.arange(tokens_BT.shape[1])[None] < length_B[:, None], probability, 0.0)


def token_choice_probability(
    params: Params,
    config: ModelConfig,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    good_id: int,
    bad_id: int,
) -> jax.Array:
    """Probability of `good_id` against `bad_id` as the next token, float32[B, T]: softmax over
    these two logits, which is how a causal LM judges steps in Math-Shepherd (arXiv 2312.08935).
    Only two columns of the head are multiplied with. Zero at and past `length_B`.

    Raises ValueError for a model without a vocabulary head, or ids outside of it.
    """
    if config.head != "lm":
        raise ValueError(
            f"this checkpoint has head {config.head!r} and no vocabulary logits; an 'lm' head is"
            " needed"
        )
    for token in (good_id, bad_id):
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token {token} is not in the vocabulary of {config.vocab_size}")
    hidden = hidden_states(params, config, tokens_BT)
    pair = jnp.array([good_id, bad_id])
    columns = params["embed"][pair].T if config.tied else params["head"][:, pair]
    scores = _cap_logits(jnp.dot(hidden, columns, preferred_element_type=jnp.float32), config)
    probability = jax.nn.softmax(scores, axis=-1)[..., 0]
    return jnp.where(jnp.arange(tokens_BT.shape[1])[None] < length_B[:, None], probability, 0.0)


def prm_logits(params: Params, hidden: jax.Array) -> jax.Array:
    """Two-class logits of a process reward model, float32[..., 2]: Linear, ReLU, Linear
    (Qwen2.5-Math-PRM)."""
    inner = jax.nn.relu(_dense(hidden, params["prm_hidden"], params["prm_hidden_bias"]))
    return _dense(inner, params["prm_output"], params["prm_output_bias"]).astype(jnp.float32)


def value_logits(params: Params, hidden: jax.Array) -> jax.Array:
    """What the value head says before the sigmoid, float32[...] (Skywork-o1-Open-PRM)."""
    return _dense(hidden, params["value_head"], params["value_head_bias"]).astype(jnp.float32)[
        ..., 0
    ]


def token_logprobs(
    params: Params,
    config: ModelConfig,
    tokens_BT: jax.Array,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """(logp_BT, entropy_BT or None), float32: entry t holds log p(token t | tokens before t) of the
    temperature-scaled distribution and the entropy of the distribution that token t was drawn
    from; entry 0 holds 0.

    Logits exist for one chunk of positions at a time, forward and backward.
    """
    hidden = hidden_states(params, config, tokens_BT)
    out = _next_logprobs(
        params, config, hidden, jnp.roll(tokens_BT, -1, axis=1), temperature, entropy
    )
    return jax.tree.map(lambda x: jnp.pad(x[:, :-1], ((0, 0), (1, 0))), out)


def completion_logprobs(
    params: Params,
    config: ModelConfig,
    prompt_PW: jax.Array,
    prompt_length_P: jax.Array,
    completion_BC: jax.Array,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """`token_logprobs` of completions only: (logp_BC, entropy_BC or None), float32. B = P M rows,
    of which M consecutive ones continue the same prompt, which goes through the model once for all
    of them, forward and backward.

    Prompts and completions are right-padded; what stands in a completion's padding changes nothing
    before it.
    """
    P, W = prompt_PW.shape
    B, C = completion_BC.shape
    M = B // P
    # A completion's first position is fed the prompt's last token, and its keys come from there:
    # the prompt's own last position is not seen.
    last = jnp.take_along_axis(prompt_PW, prompt_length_P[:, None] - 1, axis=1)
    fed = jnp.concatenate([jnp.repeat(last, M, axis=0), completion_BC[:, :-1]], axis=1)
    tokens = jnp.concatenate([prompt_PW, fed.reshape(P, M * C)], axis=1)
    begin = prompt_length_P[:, None] - 1 + jnp.arange(C)[None]
    position = jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(W)[None], (P, W)), jnp.tile(begin, (1, M))], axis=1
    )

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: attention.Window) -> jax.Array:
        return attention.shared_prompt(
            q, k, v, W, M, prompt_length_P - 1, window=window, scoring=_scoring(config)
        )

    hidden, _ = _run_layers(params, config, tokens, position, attend)
    out = _next_logprobs(
        params, config, hidden[:, W:], completion_BC.reshape(P, M * C), temperature, entropy
    )
    return jax.tree.map(lambda x: x.reshape(B, C), out)


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
        params, config, tokens_PW, position, _attend_causal(config), keep_cache=True
    )
    last = jnp.take_along_axis(hidden, (length_P - 1)[:, None, None], axis=1)[:, 0]
    return _vocabulary(params, config, last), cache


def decode_step(
    params: Params,
    layers: Any,
    config: ModelConfig,
    cache: Cache,
    token_B: jax.Array,
    position_B: jax.Array,
) -> tuple[jax.Array, Cache]:
    """One token per row: `token_B` stands at `position_B`; its keys and values are written there
    and it attends to positions 0..position, in a local layer to the last of them. Returns
    (float32[B, V] logits of the next token, Cache).

    `layers`: from `decode_layers`. The cache has the form that `config` asks for.
    """
    x_BD = _embed(params, config, token_B)
    position, int8 = jnp.arange(cache.positions)[None], cache.k_scale is not None

    def kind(local: bool) -> tuple[Rotation, jax.Array]:
        seen = position <= position_B[:, None]
        if local:
            seen = seen & (position_B[:, None] - position < config.window)
        return _rotation(position_B[:, None], config, local), seen

    def run(
        x: jax.Array, layer: Params, kind: tuple, write: Callable[[Cache], tuple[Cache, Any]]
    ) -> tuple[jax.Array, Any]:
        """(x after the layer, second result of `write`); the first result of `write` is the
        layer's cache with the new token in it."""
        rotation, seen_BS = kind
        q, k, v = _project(x[:, None], layer, config, rotation)
        there, kept = write(stored(k[:, 0], v[:, 0], int8))
        attended = attention.cached(
            q[:, 0],
            there.k,
            there.v,
            seen_BS,
            k_scale=there.k_scale,
            v_scale=there.v_scale,
            keys_transposed=config.unrolled,
            scoring=_scoring(config),
        )
        return _finish_layer(x, attended.reshape(x.shape[0], -1), layer, config), kept

    if config.unrolled:
        parts = []
        kinds, local_L = _kinds_apart(config, kind)
        for number, (layer, local) in enumerate(zip(layers, local_L, strict=True)):

            def write_one(new: Cache, number: int = number) -> tuple[Cache, Cache]:
                part = put_in_layer(cache, number, new, position_B)
                return part, part

            x_BD, part = run(x_BD, layer, kinds[local], write_one)
            parts.append((part.k, part.v, part.k_scale, part.v_scale))
        cache = Cache(
            *(None if part[0] is None else tuple(part) for part in zip(*parts, strict=True))
        )
    else:
        pick, scanned_L = _kinds_scanned(config, kind)

        def body(carry: tuple[jax.Array, Cache], xs: tuple) -> tuple[tuple[jax.Array, Cache], None]:
            x, kept = carry
            layer, number, local = xs

            def write(new: Cache) -> tuple[Cache, Cache]:
                whole = put_stacked(kept, number, new, position_B)
                return layer_of(whole, number), whole

            return run(x, layer, pick(local), write), None

        numbers = jnp.arange(config.num_layers)
        (x_BD, cache), _ = jax.lax.scan(body, (x_BD, cache), (layers, numbers, scanned_L))
    x_BD = _rms_norm(x_BD, params["final_norm"], config)
    return _vocabulary(params, config, x_BD), cache


def decode_layers(params: Params, config: ModelConfig) -> Any:
    """The layer weights in the form that `decode_step` loops over: stacked, or a list sliced once,
    before the loop."""
    if not config.unrolled:
        return params["layers"]
    return [jax.tree.map(lambda w, n=n: w[n], params["layers"]) for n in range(config.num_layers)]


def _run_layers(
    params: Params,
    config: ModelConfig,
    tokens_BT: jax.Array,
    position_BT: jax.Array,
    attend: Callable[[jax.Array, jax.Array, jax.Array, attention.Window], jax.Array],
    *,
    keep_cache: bool = False,
) -> tuple[jax.Array, Any]:
    """(final-norm hidden states, stacked Cache or None).
    `attend(q, k, v, window)`: [B, T, K, G, H], [B, T, K, H] -> [B, T, N H]."""
    x = constrain(_embed(params, config, tokens_BT), "batch", None, None)

    def kind(local: bool) -> tuple[Rotation, int | None]:
        return _rotation(position_BT, config, local), config.window if local else None

    def body(
        kind: tuple[Rotation, attention.Window], x: jax.Array, layer: Params
    ) -> tuple[jax.Array, Any]:
        rotation, window = kind
        layer = gather_layer(config, layer)
        q, k, v = _project(x, layer, config, rotation)
        x = _finish_layer(x, attend(q, k, v, window), layer, config)
        kept = (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)) if keep_cache else None
        return constrain(x, "batch", None, None), kept

    # What a kind holds is closed over, so that a Python window stays one under `jax.checkpoint`.
    wrap = REMAT[config.remat]
    if config.unrolled:
        kinds, local_L = _kinds_apart(config, kind)
        bodies = {local: wrap(functools.partial(body, value)) for local, value in kinds.items()}
        parts = []
        for layer, local in zip(decode_layers(params, config), local_L, strict=True):
            x, part = bodies[local](x, layer)
            parts.append(part)
        kept = jax.tree.map(lambda *layers: jnp.stack(layers), *parts)
    else:
        pick, scanned_L = _kinds_scanned(config, kind)
        scanned = wrap(lambda x, xs: body(pick(xs[1]), x, xs[0]))
        x, kept = jax.lax.scan(scanned, x, (params["layers"], scanned_L))
    cache = (
        Cache(*(constrain(c, None, "batch", "kv_heads", None, None) for c in kept))
        if keep_cache
        else None
    )
    return _rms_norm(x, params["final_norm"], config), cache


def _attend_causal(
    config: ModelConfig,
) -> Callable[[jax.Array, jax.Array, jax.Array, attention.Window], jax.Array]:
    def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: attention.Window) -> jax.Array:
        return attention.causal(q, k, v, window=window, scoring=_scoring(config))

    return attend


def _scoring(config: ModelConfig) -> attention.Scoring:
    return attention.Scoring(config.query_scale, config.attention_cap)


def _kinds_apart(
    config: ModelConfig, kind: Callable[[bool], Any]
) -> tuple[dict[bool, Any], tuple[bool, ...]]:
    """For a Python loop over layers: what `kind` gives for local layers and for the others, as far
    as there are any; and which layers are local."""
    local_L = config.local_layers or (False,) * config.num_layers
    return {local: kind(local) for local in sorted(set(local_L))}, local_L


def _kinds_scanned(
    config: ModelConfig, kind: Callable[[bool], Any]
) -> tuple[Callable[[Any], Any], jax.Array | None]:
    """For a scan over layers: a function from what is scanned to what `kind` gives for that layer;
    and what to scan. Nothing is scanned or picked where all layers are of one kind. A Python
    number or None counts as a window."""
    kinds, local_L = _kinds_apart(config, kind)
    if len(kinds) == 1:
        return lambda _: kinds[local_L[0]], None

    def is_window(x: Any) -> bool:
        return x is None or isinstance(x, int)

    def array(x: Any) -> jax.Array:
        return jnp.int32(NO_WINDOW if x is None else x) if is_window(x) else x

    stacked = jax.tree.map(
        lambda *both: jnp.stack([array(x) for x in both]),
        kinds[False],
        kinds[True],
        is_leaf=is_window,
    )
    return lambda local: jax.tree.map(lambda x: x[local], stacked), jnp.array(local_L, jnp.int32)


def _next_logprobs(
    params: Params,
    config: ModelConfig,
    hidden_BTD: jax.Array,
    target_BT: jax.Array,
    temperature: float,
    entropy: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Log-prob of `target` after each hidden state, and the entropy there, float32[B, T]."""
    B, T = target_BT.shape
    scale = 1.0 if temperature == 0 else 1.0 / temperature

    def chunk_logprobs(
        hidden_BCD: jax.Array, target_BC: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        scaled = _vocabulary(params, config, hidden_BCD) * scale
        normaliser = jax.nn.logsumexp(scaled, axis=-1)
        chosen = jnp.take_along_axis(scaled, target_BC[..., None], axis=-1)[..., 0]
        entropy_BC = None
        if entropy:
            probability = jnp.exp(scaled - normaliser[..., None])
            entropy_BC = normaliser - jnp.sum(probability * scaled, axis=-1)
        return chosen - normaliser, entropy_BC

    chunk = _chunk_size(
        B, T, config.vocab_size, parts(("loss_batch", None, "vocab"), (B, 1, config.vocab_size))
    )
    if chunk >= T:
        return chunk_logprobs(hidden_BTD, target_BT)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(B, T // chunk, chunk, *x.shape[2:]), 1, 0)

    body = jax.checkpoint(lambda _, xs: (None, chunk_logprobs(*xs)))
    _, out = jax.lax.scan(body, None, (split(hidden_BTD), split(target_BT)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, T), out)


def _embed(params: Params, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    # In training, embedding and head may be kept in a wider type than the rest: what is taken of
    # them is cast.
    x = params["embed"][tokens].astype(params["final_norm"].dtype)
    # The factor is rounded to the weights' dtype, as in Gemma's own code.
    return x * jnp.asarray(config.hidden_size**0.5, x.dtype) if config.family.gemma else x


def _project(
    x_BTD: jax.Array, layer: Params, config: ModelConfig, rotation: Rotation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [B, T, K, G, H], k and v [B, T, K, H], rotary positions applied."""
    h = _rms_norm(x_BTD, layer["attention_norm"], config)
    B, T, _ = h.shape
    K, G, H = config.num_kv_heads, config.num_query_groups, config.head_size
    q = _linear(h, layer, "query").reshape(B, T, K * G, H)
    k = _linear(h, layer, "key").reshape(B, T, K, H)
    v = _linear(h, layer, "value").reshape(B, T, K, H)
    if config.family.qk_norm:
        q, k = _rms_norm(q, layer["query_norm"], config), _rms_norm(k, layer["key_norm"], config)
    return _rotate(q, rotation).reshape(B, T, K, G, H), _rotate(k, rotation), v


def _finish_layer(
    x: jax.Array, attended: jax.Array, layer: Params, config: ModelConfig
) -> jax.Array:
    gemma = config.family.gemma
    attended = _linear(attended, layer, "output")
    x = x + (_rms_norm(attended, layer["attended_norm"], config) if gemma else attended)
    h = _rms_norm(x, layer["ffn_norm"], config)
    gate = _linear(h, layer, "gate")
    gate = jax.nn.gelu(gate, approximate=True) if gemma else jax.nn.silu(gate)
    fed = _linear(gate * _linear(h, layer, "up"), layer, "down")
    return x + (_rms_norm(fed, layer["fed_norm"], config) if gemma else fed)


def _vocabulary(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """float32 logits over the vocabulary, of hidden states [B, D] (decoding) or [B, T, D] (a
    loss)."""
    head = params["embed"].T if config.tied else params["head"]
    rows = ("batch",) if hidden.ndim == 2 else ("loss_batch", None)
    hidden = constrain(hidden, *rows, None)
    out = jnp.dot(
        hidden.reshape(-1, hidden.shape[-1]),
        head.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    return constrain(
        _cap_logits(out, config).reshape(*hidden.shape[:-1], head.shape[-1]), *rows, "vocab"
    )


def _cap_logits(logits: jax.Array, config: ModelConfig) -> jax.Array:
    return config.logit_cap * jnp.tanh(logits / config.logit_cap) if config.logit_cap else logits


def _rms_norm(x: jax.Array, scale: jax.Array, config: ModelConfig) -> jax.Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(
        jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + config.norm_eps
    )
    scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    if config.family.gemma:
        return (normed * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return normed.astype(x.dtype) * scale


def _linear(x: jax.Array, layer: Params, name: str) -> jax.Array:
    """A projection of a layer, with its bias and its low-rank adapter where it has them."""
    out = _dense(x, layer[name], layer.get(f"{name}_bias"))
    return (
        out + _dense(_dense(x, layer[f"{name}_a"]), layer[f"{name}_b"])
        if f"{name}_a" in layer
        else out
    )


def _dense(x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    out = x.reshape(-1, x.shape[-1]) @ w
    if bias is not None:
        out = out + bias[None]
    return out.reshape(*x.shape[:-1], w.shape[-1])


def _rotation(position_BT: jax.Array, config: ModelConfig, local: bool) -> Rotation:
    """cos, sin [B, T, 1, H/2], float32."""
    theta, scaling = config.rope(local)
    frequency = frequencies(theta, config.head_size, scaling)
    angle = position_BT.astype(jnp.float32)[..., None, None] * frequency[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if scaling.attention_factor != 1:
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    # Without the barrier XLA computes both anew in every layer that uses them.
    return jax.lax.optimization_barrier((cos, sin))


def _rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotary positions on [B, T, heads, H], halves paired as in Hugging Face's Llama and Qwen."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def _chunk_size(rows: int, width: int, vocab: int, devices: int) -> int:
    """Largest divisor of `width` whose logits, over `devices` devices, stay within the budget."""
    best = 1
    for size in range(1, width + 1):
        if width % size == 0 and rows * size * vocab <= LOGITS_BUDGET * devices:
            best = size
    return best
