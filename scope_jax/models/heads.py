"""What is read off hidden states: logits, step scores of the three kinds of PRM, log-probs.

Softmax and log-probs run in float32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import constrain, parts
from scope_jax.models.attention.plain import wide
from scope_jax.models.config import ModelConfig
from scope_jax.models.decoder import completion_states, hidden_states
from scope_jax.models.layers import cap_logits, dense, vocabulary_logits
from scope_jax.models.weights import Params

# [B, chunk, V] float32 logits held at once by `token_logprobs`, in elements of one device, where
# `ModelConfig.logits_at_once` does not say.
LOGITS_BUDGET = 1 << 24
# Logical axes of logits in a loss.
LOGITS_AXES = ("loss_batch", None, "vocab")


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
    out = vocabulary_logits(params, config, hidden_states(params, config, tokens_BT))
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
    scores = jnp.dot(hidden, columns.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if config.weights == "int8":
        scores = scores * params["embed_scale" if config.tied else "head_scale"][None, None, pair]
    scores = cap_logits(scores, config)
    probability = jax.nn.softmax(scores, axis=-1)[..., 0]
    return jnp.where(jnp.arange(tokens_BT.shape[1])[None] < length_B[:, None], probability, 0.0)


def prm_logits(params: Params, hidden: jax.Array) -> jax.Array:
    """Two-class logits of a process reward model, float32[..., 2]: Linear, ReLU, Linear
    (Qwen2.5-Math-PRM)."""
    inner = jax.nn.relu(dense(hidden, params["prm_hidden"], params["prm_hidden_bias"]))
    return dense(inner, params["prm_output"], params["prm_output_bias"]).astype(jnp.float32)


def value_logits(params: Params, hidden: jax.Array) -> jax.Array:
    """What the value head says before the sigmoid, float32[...] (Skywork-o1-Open-PRM)."""
    return dense(hidden, params["value_head"], params["value_head_bias"]).astype(jnp.float32)[
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
    """`token_logprobs` of completions only: (logp_BC, entropy_BC or None), float32, by
    `decoder.completion_states`."""
    rows = prompt_PW, prompt_length_P, completion_BC
    return logprobs_and_load(params, config, *rows, None, temperature=temperature, entropy=entropy)[
        :2
    ]


def logprobs_and_load(
    params: Params,
    config: ModelConfig,
    prompt_PW: jax.Array,
    prompt_length_P: jax.Array,
    completion_BC: jax.Array,
    counted_BC: jax.Array | None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """`completion_logprobs`, and the load of the experts that `decoder.completion_states` counts,
    or None."""
    hidden, load_LE = completion_states(
        params, config, prompt_PW, prompt_length_P, completion_BC, counted_BC
    )
    target = completion_BC.reshape(hidden.shape[:2])
    out = _next_logprobs(params, config, hidden, target, temperature, entropy)
    logp, spread = jax.tree.map(lambda x: x.reshape(completion_BC.shape), out)
    return logp, spread, load_LE


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
    devices = parts(("loss_batch", None, "vocab"), (B, 1, config.vocab_size))
    budget = config.logits_at_once or LOGITS_BUDGET
    how = _Reading(
        vocab_axis=0 if config.tied else 1,
        scale=1.0 if temperature == 0 else 1.0 / temperature,
        cap=config.logit_cap,
        chunk=chunk_size(B, T, config.vocab_size, devices, budget),
    )
    name = "embed" if config.tied else "head"
    head = params[name]
    if config.weights == "int8":
        scale = params[f"{name}_scale"]
        head = head.astype(hidden_BTD.dtype) * (scale[:, None] if config.tied else scale[None])
        head = head.astype(hidden_BTD.dtype)
    logp, spread = _read(how, entropy, hidden_BTD, head, target_BT)
    return logp, spread if entropy else None


@dataclasses.dataclass(frozen=True)
class _Reading:
    """How log-probs are read off hidden states. vocab_axis: of the head. scale: of the logits.
    cap: see `ModelConfig.logit_cap`. chunk: positions of a row whose logits are there at once."""

    vocab_axis: int
    scale: float
    cap: float
    chunk: int

    def products(self, hidden_BTD: jax.Array, head: jax.Array) -> jax.Array:
        """Logits before the cap, float32[B, T, V]."""
        B, T, D = hidden_BTD.shape
        columns = head.T if self.vocab_axis == 0 else head
        out = _product(hidden_BTD.reshape(-1, D), columns)
        return constrain(out.reshape(B, T, -1), *LOGITS_AXES)

    def split(self, x: jax.Array) -> jax.Array:
        """[B, T, ..] -> [chunks, B, chunk, ..]"""
        B, T = x.shape[:2]
        return jnp.moveaxis(x.reshape(B, T // self.chunk, self.chunk, *x.shape[2:]), 1, 0)

    def join(self, x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    def scaled(self, products: jax.Array) -> jax.Array:
        capped = self.cap * jnp.tanh(products / self.cap) if self.cap else products
        return capped * self.scale


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b, summed in float32 at least."""
    return jnp.dot(a, b, preferred_element_type=wide(a.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _read(
    how: _Reading, entropy: bool, hidden_BTD: jax.Array, head: jax.Array, target_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(log-prob of the target, entropy or zeros), float32[B, T].

    With a gradient of its own: logits are there for one chunk at a time and computed again for
    it, where there is more than one; the head is cast once, products of the backward pass are of
    the hidden states' dtype, and the head's gradient is summed over chunks in float32.
    """
    return _read_forward(how, entropy, hidden_BTD, head, target_BT)[0]


def _read_forward(
    how: _Reading, entropy: bool, hidden_BTD: jax.Array, head: jax.Array, target_BT: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    narrow = head.astype(hidden_BTD.dtype)

    def chunk(hidden: jax.Array, target: jax.Array) -> tuple[tuple, jax.Array]:
        products = how.products(hidden, narrow)
        scaled = how.scaled(products)
        normaliser = jax.nn.logsumexp(scaled, axis=-1)
        chosen = jnp.take_along_axis(scaled, target[..., None], axis=-1)[..., 0]
        spread = jnp.zeros_like(chosen)
        if entropy:
            probability = jnp.exp(scaled - normaliser[..., None])
            spread = normaliser - jnp.sum(probability * scaled, axis=-1)
        return (chosen - normaliser, spread), products

    hidden_BTD = constrain(hidden_BTD, *LOGITS_AXES[:2], None)
    kept = hidden_BTD, head, target_BT
    if how.chunk >= target_BT.shape[1]:
        out, products = chunk(hidden_BTD, target_BT)
        return out, (*kept, products)
    parts_of_rows = how.split(hidden_BTD), how.split(target_BT)
    _, out = jax.lax.scan(lambda _, xs: (None, chunk(*xs)[0]), None, parts_of_rows)
    return (how.join(out[0]), how.join(out[1])), (*kept, None)


def _read_backward(how: _Reading, entropy: bool, kept: tuple, grads: tuple) -> tuple:
    """With p = softmax(s) and entropy E: d logp / ds_j = [j is the target] - p_j and
    dE / ds_j = -p_j (log p_j + E)."""
    hidden_BTD, head, target_BT, products = kept
    dtype = hidden_BTD.dtype
    narrow = head.astype(dtype)
    vocab_first = how.vocab_axis == 0

    def chunk(head_grad: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
        hidden, target, logp_grad, spread_grad, products = xs
        products = how.products(hidden, narrow) if products is None else products
        scaled = how.scaled(products)
        logp = scaled - jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
        probability = jnp.exp(logp)
        is_target = target[..., None] == jnp.arange(scaled.shape[-1])[None, None]
        grad = logp_grad[..., None] * (is_target - probability)
        if entropy:
            spread = -jnp.sum(probability * logp, axis=-1, keepdims=True)
            grad -= spread_grad[..., None] * probability * (logp + spread)
        grad *= how.scale
        if how.cap:
            grad *= 1 - jnp.square(jnp.tanh(products / how.cap))
        grad = constrain(grad.astype(dtype), *LOGITS_AXES)
        flat, rows = grad.reshape(-1, grad.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
        hidden_grad = _product(flat, narrow if vocab_first else narrow.T).reshape(hidden.shape)
        more = _product(flat.T, rows) if vocab_first else _product(rows.T, flat)
        axes = ("vocab", None) if vocab_first else (None, "vocab")
        return constrain(head_grad + more, *axes), hidden_grad.astype(dtype)

    xs, zero = (hidden_BTD, target_BT, *grads), jnp.zeros(head.shape, wide(head.dtype))
    if products is not None:
        head_grad, hidden_grad = chunk(zero, (*xs, products))
    else:
        split = (*(how.split(x) for x in xs), None)
        head_grad, parts_of_grad = jax.lax.scan(chunk, zero, split)
        hidden_grad = how.join(parts_of_grad)
    return hidden_grad, head_grad.astype(head.dtype), None


_read.defvjp(_read_forward, _read_backward)


def chunk_size(rows: int, width: int, vocab: int, devices: int, budget: int) -> int:
    """Largest divisor of `width` whose logits, over `devices` devices, stay within the budget."""
    best = 1
    for size in range(1, width + 1):
        if width % size == 0 and rows * size * vocab <= budget * devices:
            best = size
    return best
