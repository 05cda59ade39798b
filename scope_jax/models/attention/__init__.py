"""Attention: over a row, over a prompt that several completions share, over the cache while
decoding.

In: queries, keys and values. Out: what is gathered. `choice.py` says which form is taken where.
"""

import jax

from scope_jax.models.attention import fused, plain
from scope_jax.models.attention.choice import (
    Choice,
    Kernel,
    choose,
    kernel_here,
    kernel_of,
)
from scope_jax.models.attention.decode import Blocks, blockwise, cached, cudnn
from scope_jax.models.attention.plain import PLAIN, Packed, Scoring, Window

__all__ = [
    "PLAIN",
    "Blocks",
    "Choice",
    "Kernel",
    "Packed",
    "Scoring",
    "Window",
    "blockwise",
    "cached",
    "causal",
    "choose",
    "cudnn",
    "kernel_here",
    "kernel_of",
    "shared_prompt",
]


def causal(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: Window = None,
    scoring: Scoring = PLAIN,
    kernel: Kernel = "plain",
) -> jax.Array:
    """q [B, T, K, G, H], k, v [B, T, K, H] -> [B, T, N H]: position t attends to positions 0..t, or
    to the last `window` of them."""
    if kernel == "plain":
        return plain.causal(q, k, v, window=window, scoring=scoring)
    return fused.causal(q, k, v, kernel, _fixed(window), scoring)


def shared_prompt(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    packed: Packed,
    *,
    window: Window = None,
    scoring: Scoring = PLAIN,
    kernel: Kernel = "plain",
) -> jax.Array:
    """Attention of packed rows, each W prompt positions followed by M completions of C positions:
    q [P, W + M C, K, G, H], k, v [P, W + M C, K, H] -> [P, W + M C, N H].

    A prompt token attends to the prompt up to itself; a completion token to the part of the prompt
    that is seen, and to its own completion up to itself. What comes out at prompt positions that no
    completion sees is not defined.
    """
    if kernel == "plain":
        return plain.shared_prompt(q, k, v, packed, window=window, scoring=scoring)
    return fused.shared_prompt(q, k, v, packed, kernel, _fixed(window), scoring)


def _fixed(window: Window) -> int | None:
    """The window of a kernel, which is compiled for it."""
    if isinstance(window, jax.Array):
        raise ValueError("a kernel's window is a number, the same for all layers")
    return window
