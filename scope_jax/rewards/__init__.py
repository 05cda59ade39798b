"""Rewards: what a completion is worth, as a weighted sum of parts, and whether it is accepted.

In: problems, texts, token ids, which rows ended. Out: a number for each row, a verdict, metrics.
Parts are the task's verifier, a pattern, a PRM's scores and functions of the user.
"""

from scope_jax.rewards.mixture import Judged, Reward, Rows, by_reason
from scope_jax.rewards.spec import Part, RewardSpec

__all__ = ["Judged", "Part", "Reward", "RewardSpec", "Rows", "by_reason"]
