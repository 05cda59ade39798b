"""Learning: credit, advantages, token weights, losses, packing, the optimiser, the update.

In: judged groups of rows, and log-probs. Out: advantages, weighted sums of losses, updated
parameters with statistics. Losses are pure functions of arrays.
"""

from scope_jax.learning.advantages import (
    AdvantageSpec,
    group_advantages,
    zero_group_share,
    zero_groups,
)
from scope_jax.learning.expert_load import expert_metrics
from scope_jax.learning.logprobs import logprobs_program, make_logprobs
from scope_jax.learning.losses import (
    LossSpec,
    finish_stats,
    merge_stats,
    policy_loss,
    token_weights,
)
from scope_jax.learning.objectives import (
    cloning_objective,
    policy_objective,
    step_label_objective,
)
from scope_jax.learning.optimizer import (
    OptimizerSpec,
    learning_rate,
    make_optimizer,
    schedule_value,
)
from scope_jax.learning.packing import PackSizes, length_order, pack
from scope_jax.learning.process_rewards import (
    overlong_penalty,
    prefix_advantages,
    summed_step_advantages,
    worst_step_advantages,
)
from scope_jax.learning.recompute import Remat
from scope_jax.learning.update import (
    TrainState,
    Update,
    UpdateSpec,
    abstract_state,
    init_state,
    make_update,
    update_program,
)

__all__ = [
    "AdvantageSpec",
    "LossSpec",
    "OptimizerSpec",
    "PackSizes",
    "Remat",
    "TrainState",
    "Update",
    "UpdateSpec",
    "abstract_state",
    "cloning_objective",
    "expert_metrics",
    "finish_stats",
    "group_advantages",
    "init_state",
    "learning_rate",
    "length_order",
    "logprobs_program",
    "make_logprobs",
    "make_optimizer",
    "make_update",
    "merge_stats",
    "overlong_penalty",
    "pack",
    "policy_loss",
    "policy_objective",
    "prefix_advantages",
    "schedule_value",
    "step_label_objective",
    "summed_step_advantages",
    "token_weights",
    "update_program",
    "worst_step_advantages",
    "zero_group_share",
    "zero_groups",
]
