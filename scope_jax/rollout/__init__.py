"""Rollouts: the policy (or a teacher) continues rows."""

from scope_jax.rollout.generate import from_prompts, generate
from scope_jax.rollout.sampling import SampleSpec

__all__ = ["SampleSpec", "from_prompts", "generate"]
