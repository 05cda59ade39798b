"""Rollouts: the policy (or a teacher) continues rows."""

from scope_jax.rollout.generate import from_prompts, generate
from scope_jax.rollout.sampling import SampleSpec
from scope_jax.rollout.text import completion_ids, completion_texts, texts

__all__ = ["SampleSpec", "completion_ids", "completion_texts", "from_prompts", "generate", "texts"]
