"""Process reward models: the published input formats, and the scores of steps.

In: problems and steps as texts. Out: float32[B, J], the probability that each step is right.
The model may have a tokenizer of its own; steps are matched by position, never by decoding.
"""

from scope_jax.prm.model import TEMPLATE_TOKENS, ProcessRewardModel

__all__ = [
    "TEMPLATE_TOKENS",
    "ProcessRewardModel",
]
