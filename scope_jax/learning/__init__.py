"""Learning: advantages, token weights, losses, optimiser, the update."""

from scope_jax.learning.advantages import group_advantages, zero_group_share
from scope_jax.learning.losses import LossSpec, finish_stats, merge_stats, policy_loss, token_weights
from scope_jax.learning.optimizer import OptimizerSpec, learning_rate, make_optimizer, schedule_value
from scope_jax.learning.update import (
    TrainState,
    abstract_state,
    cloning_objective,
    init_state,
    make_update,
    pack,
    policy_objective,
    step_label_objective,
)

__all__ = [
    "LossSpec",
    "OptimizerSpec",
    "TrainState",
    "abstract_state",
    "cloning_objective",
    "finish_stats",
    "group_advantages",
    "init_state",
    "learning_rate",
    "make_optimizer",
    "make_update",
    "merge_stats",
    "pack",
    "policy_loss",
    "policy_objective",
    "schedule_value",
    "step_label_objective",
    "token_weights",
    "zero_group_share",
]
