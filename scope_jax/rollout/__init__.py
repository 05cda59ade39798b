"""Rollouts: a model continues rows of tokens.

In: rows with their prompts (`Rollout`), a key, a `SampleSpec`. Out: the same rows with more
tokens, who wrote each of them, and its log-prob at the time of sampling.
"""

from scope_jax.rollout.decoding import DecodeSpec, Request, decode_spec
from scope_jax.rollout.generate import check_heads, from_prompts, generate, generate_program
from scope_jax.rollout.generator import Generator
from scope_jax.rollout.policy import Policy, solution_end
from scope_jax.rollout.rows import cut, place_rows, splice, take_rows
from scope_jax.rollout.sampling import SampleSpec
from scope_jax.rollout.text import completion_ids, completion_texts, texts

__all__ = [
    "DecodeSpec",
    "Generator",
    "Policy",
    "Request",
    "SampleSpec",
    "check_heads",
    "completion_ids",
    "completion_texts",
    "cut",
    "decode_spec",
    "from_prompts",
    "generate",
    "generate_program",
    "place_rows",
    "solution_end",
    "splice",
    "take_rows",
    "texts",
]
