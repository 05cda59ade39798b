"""Rollouts: the policy (or a teacher) continues rows."""

from scope_jax.rollout.generate import check_heads, from_prompts, generate
from scope_jax.rollout.sampling import SampleSpec
from scope_jax.rollout.text import completion_ids, completion_texts, texts
from scope_jax.rollout.writer import Writer

__all__ = ["SampleSpec", "Writer", "check_heads", "completion_ids", "completion_texts", "from_prompts", "generate", "texts"]
