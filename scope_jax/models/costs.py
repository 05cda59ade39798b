"""What programs have to do at least, from the shapes of a model and of its rows.

A multiplication and an addition are two operations. Of attention only what is seen is counted, so
a program that also multiplies masked scores does more than this. `fit` counts the largest shapes
that a config allows, a run the rows that it really had.
"""

import dataclasses
from typing import Any

import numpy as np

from scope_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations of all devices together. flops: of one run, without its decode steps. steps,
    step_flops: of its decode loop. tokens: written by one run. useful: operations that count for
    the share of the peak that is put to use (0: not asked)."""

    flops: float
    steps: float = 0.0
    step_flops: float = 0.0
    tokens: float = 0.0
    useful: float = 0.0


def token_flops(config: ModelConfig) -> float:
    """Of one token through all layers, forward: products with weights, of experts with those that a
    token goes through."""
    D, F = config.hidden_size, config.ffn_size
    Q, K = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    fed = 3 * D * F
    if config.num_experts:
        fed = 3 * D * config.experts_per_token * config.expert_size + D * config.num_experts
    return 2.0 * config.num_layers * (2 * D * Q + 2 * D * K + fed)


def head_flops(config: ModelConfig) -> float:
    """Of one token in the head: its logits, or a PRM's scores."""
    D = config.hidden_size
    return (
        2.0
        * {"lm": D * config.vocab_size, "prm": D * D + 2 * D, "value": D, "none": 0}[config.head]
    )


def share_of_experts(config: ModelConfig, tokens: int) -> float:
    """The most of a layer's experts that `tokens` tokens can ask for; 1 without experts."""
    if not config.num_experts:
        return 1.0
    return min(1.0, tokens * config.experts_per_token / config.num_experts)


def seen(length: Any, window: int = 0) -> Any:
    """Pairs of query and key in causal attention of a row of `length` positions; of rows, where
    that is an array."""
    inner = np.minimum(length, window or length)
    return inner * (inner + 1) / 2 + (length - inner) * inner


def attention_flops(config: ModelConfig, queries: Any, keys: int | None = None) -> Any:
    """Of a row's attention in all layers, forward: causal within it, or of `queries` queries
    that see `keys` keys each. Of rows, where `queries` is an array."""
    local = sum(config.local_layers)
    near = (
        seen(queries, config.window) if keys is None else queries * min(keys, config.window or keys)
    )
    far = seen(queries) if keys is None else queries * keys
    return (
        4.0
        * config.num_heads
        * config.head_size
        * (local * near + (config.num_layers - local) * far)
    )


def generate_work(
    config: ModelConfig,
    *,
    prompts: int,
    width: int,
    rows: int,
    seats: int,
    tokens: float,
    keys: int,
) -> Work:
    """`prompts` of `width` positions are prefilled, then `rows` rows write `tokens` tokens each on
    `seats` seats, with `keys` positions in the cache."""
    prefill = prompts * (
        width * token_flops(config) + attention_flops(config, width) + head_flops(config)
    )
    step = seats * (token_flops(config) + attention_flops(config, 1, keys) + head_flops(config))
    # The first token comes out of the prefill.
    return Work(
        prefill, steps=max(tokens - 1, 0) * rows / seats, step_flops=step, tokens=rows * tokens
    )


def score_work(config: ModelConfig, rows: int, width: int) -> Work:
    """A forward pass with its head at every position."""
    return Work(
        rows * (width * (token_flops(config) + head_flops(config)) + attention_flops(config, width))
    )


def update_work(
    config: ModelConfig,
    *,
    prompts: int,
    width: int,
    rows: int,
    tokens: int,
    remat: str,
    train: bool = True,
) -> Work:
    """`prompts` of `width` positions, each with rows / prompts completions of `tokens` positions.
    Backward is twice forward, and recomputed parts (by `remat` the layers or their attention alone;
    the logits always) are forward once more."""
    positions = prompts * width + rows * tokens
    layers = positions * token_flops(config)
    attention = prompts * attention_flops(config, width) + rows * (
        attention_flops(config, tokens) + attention_flops(config, tokens, width)
    )
    head = rows * tokens * head_flops(config)
    if not train:
        return Work(layers + attention + head)
    again = {"none": 0.0, "dots": attention}.get(remat, layers + attention)
    useful = 3 * (layers + attention + head)
    return Work(useful + again + head, useful=useful)


# ---- rows as they were


def prefill_flops(config: ModelConfig, prompt_P: np.ndarray) -> float:
    """Of distinct prompts of these lengths, each read once and followed by one token's logits."""
    return float(
        np.sum(prompt_P) * token_flops(config)
        + np.sum(attention_flops(config, prompt_P))
        + len(prompt_P) * head_flops(config)
    )


def trained_flops(
    config: ModelConfig, prompt_P: np.ndarray, written_PM: np.ndarray, *, frozen: bool = False
) -> float:
    """Of an update on `written_PM` tokens behind prompts of `prompt_P` tokens, each prompt once for
    its M rows: forward, and twice that backward; once where the weights are `frozen` (adapters),
    which have no gradient. This is the 6 N D of the layers' N weights and the D tokens of prompts
    and rows, the head for the tokens that were written, and attention. Nothing is counted twice
    that a program computes again, and no padding."""
    prompt_P1 = prompt_P[:, None]
    tokens = np.sum(prompt_P) + np.sum(written_PM)
    # A row's own queries see the prompt and what stands before them.
    own = attention_flops(config, prompt_P1 + written_PM) - attention_flops(config, prompt_P1)
    forward = (
        tokens * token_flops(config)
        + np.sum(attention_flops(config, prompt_P))
        + np.sum(own)
        + np.sum(written_PM) * head_flops(config)
    )
    return float((2 if frozen else 3) * forward)


def decode_steps(written_B: np.ndarray, seats: int) -> float:
    """The fewest steps that write rows of these lengths on `seats` seats. The first token of a row
    comes out of the prefill; a step writes one token in each seat."""
    left_B = np.maximum(written_B - 1, 0)
    return float(max(np.max(left_B), -(-np.sum(left_B) // seats)))


def cache_bytes(config: ModelConfig, kept_in: int, *, int8: bool = False) -> float:
    """Of the keys and values of one position in one layer, in numbers of `kept_in` bytes; `int8`:
    in one byte, with a float32 scale for each head."""
    head = config.head_size + 4 if int8 else kept_in * config.head_size
    return 2.0 * config.num_kv_heads * head


def live_positions(config: ModelConfig, prompt_B: np.ndarray, written_B: np.ndarray) -> float:
    """Positions, summed over layers, rows and decode steps, whose keys and values a step needs: the
    step that writes token j of a row (from 2) sees its prompt and j - 1 tokens, or the last of
    them that a layer's window leaves. Each row has the prompt for itself."""

    def positions(window: int) -> float:
        last = prompt_B + np.maximum(written_B - 1, 0)
        return float(np.sum(seen(last, window) - seen(prompt_B, window)))

    local = sum(config.local_layers)
    return local * positions(config.window) + (config.num_layers - local) * positions(0)
