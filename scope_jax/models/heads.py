"""What is read off hidden states: logits, step scores of the three kinds of PRM, log-probs.

Softmax and log-probs run in float32.
"""

import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import parts
from scope_jax.models.config import ModelConfig
from scope_jax.models.decoder import completion_states, hidden_states
from scope_jax.models.layers import cap_logits, dense, vocabulary_logits
from scope_jax.models.weights import Params

# [B, chunk, V] float32 logits held at once by `token_logprobs`, in elements of one device.
LOGITS_BUDGET = 1 << 24


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
    hidden = completion_states(params, config, prompt_PW, prompt_length_P, completion_BC)
    target = completion_BC.reshape(hidden.shape[:2])
    out = _next_logprobs(params, config, hidden, target, temperature, entropy)
    return jax.tree.map(lambda x: x.reshape(completion_BC.shape), out)


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
        scaled = vocabulary_logits(params, config, hidden_BCD) * scale
        normaliser = jax.nn.logsumexp(scaled, axis=-1)
        chosen = jnp.take_along_axis(scaled, target_BC[..., None], axis=-1)[..., 0]
        entropy_BC = None
        if entropy:
            probability = jnp.exp(scaled - normaliser[..., None])
            entropy_BC = normaliser - jnp.sum(probability * scaled, axis=-1)
        return chosen - normaliser, entropy_BC

    chunk = chunk_size(
        B, T, config.vocab_size, parts(("loss_batch", None, "vocab"), (B, 1, config.vocab_size))
    )
    if chunk >= T:
        return chunk_logprobs(hidden_BTD, target_BT)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(B, T // chunk, chunk, *x.shape[2:]), 1, 0)

    body = jax.checkpoint(lambda _, xs: (None, chunk_logprobs(*xs)))
    _, out = jax.lax.scan(body, None, (split(hidden_BTD), split(target_BT)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, T), out)


def chunk_size(rows: int, width: int, vocab: int, devices: int) -> int:
    """Largest divisor of `width` whose logits, over `devices` devices, stay within the budget."""
    best = 1
    for size in range(1, width + 1):
        if width % size == 0 and rows * size * vocab <= LOGITS_BUDGET * devices:
            best = size
    return best
