"""What rows cost at least, against sums over tokens, layers and steps one by one.

`fit`'s counts of whole programs are tested in tests/fit.
"""

import numpy as np
import pytest

from scope_jax.models import ModelConfig
from scope_jax.models.costs import (
    cache_bytes,
    decode_steps,
    live_positions,
    prefill_flops,
    trained_flops,
)

D, F, L, N, K, H, V, WINDOW = 8, 12, 3, 4, 2, 6, 50, 4
CONFIG = ModelConfig(
    vocab_size=V, hidden_size=D, num_layers=L, num_heads=N, num_kv_heads=K, head_size=H, ffn_size=F
)
LOCAL = ModelConfig(
    vocab_size=V,
    hidden_size=D,
    num_layers=L,
    num_heads=N,
    num_kv_heads=K,
    head_size=H,
    ffn_size=F,
    model_type="gemma2",
    window=WINDOW,
    local_layers=(True, False, True),
)
PROMPT = np.array([3, 5])
WRITTEN = np.array([[1, 6, 0], [2, 9, 4]])  # M = 3 rows of each prompt

# Query, key, value, output; gate, up, down.
LAYER = 2 * (D * N * H + 2 * D * K * H + N * H * D) + 2 * 3 * D * F


def seen_by(position: int, layer: int, config: ModelConfig) -> int:
    """Positions that the query at `position` (from 0) sees in a layer, its own included."""
    local = config.local_layers and config.local_layers[layer]
    return min(position + 1, WINDOW) if local else position + 1


def forward(positions: range, config: ModelConfig) -> int:
    """Operations of these positions of a row: products with weights, and two with what is seen."""
    return sum(
        LAYER + 2 * 2 * N * H * seen_by(position, layer, config)
        for position in positions
        for layer in range(L)
    )


@pytest.mark.parametrize("config", [CONFIG, LOCAL], ids=["full", "local layers"])
def test_an_update_is_counted_token_by_token(config: ModelConfig):
    once = 0
    for prompt, rows in zip(PROMPT.tolist(), WRITTEN.tolist(), strict=True):
        once += forward(range(prompt), config)
        for written in rows:
            once += forward(range(prompt, prompt + written), config) + written * 2 * D * V
    assert trained_flops(config, PROMPT, WRITTEN) == 3 * once
    assert trained_flops(config, PROMPT, WRITTEN, frozen=True) == 2 * once


def test_without_attention_it_is_six_times_weights_times_tokens():
    """Of a model whose attention is next to nothing beside its products."""
    wide = ModelConfig(
        vocab_size=64,
        hidden_size=4096,
        num_layers=2,
        num_heads=1,
        num_kv_heads=1,
        head_size=2,
        ffn_size=8192,
    )
    weights = 2 * (2 * 4096 * 2 + 2 * 4096 * 2 + 3 * 4096 * 8192) + 4096 * 64
    rows = np.full((1, 1), 10)
    found = trained_flops(wide, np.array([1]), rows)
    assert found == pytest.approx(6 * weights * 10, rel=0.1)  # the prompt's token has no head


@pytest.mark.parametrize("config", [CONFIG, LOCAL], ids=["full", "local layers"])
def test_a_prefill_is_counted_prompt_by_prompt(config: ModelConfig):
    want = sum(forward(range(prompt), config) + 2 * D * V for prompt in PROMPT.tolist())
    assert prefill_flops(config, PROMPT) == want


@pytest.mark.parametrize(
    ("written", "seats", "steps"),
    [
        ([5, 5, 5, 5], 4, 4),  # the first token of each comes out of the prefill
        ([5, 2, 1, 9], 4, 8),  # the longest row
        ([5, 5, 5, 5], 2, 8),  # as many as fit on two seats
        ([5, 5, 6], 2, 7),  # 13 tokens on two seats
        ([2, 2, 2, 20], 2, 19),  # the longest row again
        ([1, 1, 0], 2, 0),
    ],
)
def test_the_fewest_decode_steps(written, seats, steps):
    assert decode_steps(np.array(written), seats) == steps


@pytest.mark.parametrize("config", [CONFIG, LOCAL], ids=["full", "local layers"])
def test_live_positions_are_those_of_each_step(config: ModelConfig):
    prompt, written = np.repeat(PROMPT, 3), WRITTEN.reshape(-1)
    want = sum(
        seen_by(p + token - 2, layer, config)  # it is fed token - 1, at that position
        for p, n in zip(prompt.tolist(), written.tolist(), strict=True)
        for token in range(2, n + 1)
        for layer in range(L)
    )
    assert live_positions(config, prompt, written) == want


def test_bytes_of_a_position():
    assert cache_bytes(CONFIG, 2) == 2 * K * H * 2
    assert cache_bytes(CONFIG, 2, int8=True) == 2 * K * (H + 4)
