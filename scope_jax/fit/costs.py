"""What a program has to do at least, from the shapes of its model; and how long that takes by a
roofline.

A multiplication and an addition are two operations. Of attention only what is seen is counted, so
a program that also multiplies masked scores does more than this.
"""

import dataclasses

from scope_jax.fit.topology import Topology
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
    """Of one token through all layers, forward: products with weights."""
    D, F = config.hidden_size, config.ffn_size
    Q, K = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    return 2.0 * config.num_layers * (2 * D * Q + 2 * D * K + 3 * D * F)


def head_flops(config: ModelConfig) -> float:
    """Of one token in the head: its logits, or a PRM's scores."""
    D = config.hidden_size
    return (
        2.0
        * {"lm": D * config.vocab_size, "prm": D * D + 2 * D, "value": D, "none": 0}[config.head]
    )


def seen(length: int, window: int = 0) -> float:
    """Pairs of query and key in causal attention of a row of `length` positions."""
    inner = min(length, window or length)
    return inner * (inner + 1) / 2 + (length - inner) * inner


def attention_flops(config: ModelConfig, queries: int, keys: int | None = None) -> float:
    """Of a row's attention in all layers, forward: causal within it, or of `queries` queries
    that see `keys` keys each."""
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


def roofline(flops: float, hbm: float, network: float, topology: Topology) -> tuple[float, str]:
    """(seconds, what they are spent on) of `flops` on all devices, and `hbm` and `network` bytes
    on each."""
    parts = {
        "compute": flops / topology.devices / topology.chip.flops,
        "HBM": hbm / topology.chip.hbm_rate,
        "network": network / topology.axis_rate,
    }
    bound = max(parts, key=lambda name: parts[name])
    return parts[bound], bound
