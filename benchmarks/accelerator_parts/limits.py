"""The least that a piece of work costs, counted from the shapes alone: bytes that must be read,
operations that must be done. Apart from the library's own count, as a second opinion.

A multiplication and an addition are two operations."""

from collections.abc import Sequence

from accelerator_parts.plan import Shape

BYTES = {"bfloat16": 2, "float32": 4}


def layer_weights(shape: Shape) -> int:
    """Numbers in the projections of one layer."""
    D, Q, K = shape.hidden, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return 2 * D * Q + 2 * D * K + 3 * D * shape.ffn


def weights(shape: Shape, head: bool = True) -> int:
    """Numbers that every token is multiplied with: projections and, with `head`, the vocabulary's
    matrix, which is the embedding too. Norms and biases are left out (under a thousandth)."""
    return shape.layers * layer_weights(shape) + head * shape.vocab * shape.hidden


def position_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of the keys and values of one position, all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * BYTES[dtype]


def pairs(queries: int, before: int = 0) -> float:
    """Pairs of a query and a key that it sees: `queries` positions in causal order behind `before`
    others."""
    return queries * (queries + 1) / 2 + queries * before


def attention_flops(shape: Shape, seen: float) -> float:
    """Operations of attention over `seen` pairs in every layer, forward."""
    return 4.0 * shape.layers * shape.heads * shape.head_size * seen


def decode_steps(lengths: Sequence[int], seats: int) -> int:
    """The least number of decode steps: the first token of a row comes out of its prefill, and a
    step writes one token in each seat."""
    return max(max(lengths) - 1, -(-(sum(lengths) - len(lengths)) // seats))


def rollout_seconds(
    shape: Shape,
    dtype: str,
    prompts: int,
    prompt_tokens: int,
    lengths: Sequence[int],
    seats: int,
    peaks: dict,
) -> float:
    """The least time of rollouts on a device of these peaks (`flops`, `hbm_rate`, per second): all
    weights once a step, the live keys and values of a row once for each of its tokens, and the
    products of the prefill."""
    keys = sum(pairs(n - 1, prompt_tokens) for n in lengths)
    read = decode_steps(lengths, seats) * weights(shape) * BYTES[dtype]
    read += keys * position_bytes(shape, dtype)
    prefill = 2.0 * weights(shape, head=False) * prompts * prompt_tokens
    prefill += attention_flops(shape, prompts * pairs(prompt_tokens))
    return read / peaks["hbm_rate"] + prefill / peaks["flops"]


def update_flops(
    shape: Shape, prompts: int, prompt_tokens: int, completions: int, tokens: int
) -> float:
    """6 N D and attention of the tokens that are there, each prompt once: `prompts` of
    `prompt_tokens`, with `completions` of `tokens` tokens behind them in all. What is computed
    again counts once."""
    trained = prompts * prompt_tokens + completions * tokens
    seen = prompts * pairs(prompt_tokens) + completions * pairs(tokens, prompt_tokens)
    return 6.0 * weights(shape) * trained + 3 * attention_flops(shape, seen)


def score_flops(shape: Shape, rows: int, tokens: int) -> float:
    """Of a forward pass without the vocabulary's matrix."""
    return 2.0 * weights(shape, head=False) * rows * tokens + attention_flops(
        shape, rows * pairs(tokens)
    )


def update_bytes(shape: Shape) -> float:
    """What an update holds at the least beside activations: float32 weights, two moments and
    gradients, and the weights in 2 bytes twice (as they came, and as they are used)."""
    return 20.0 * weights(shape)
