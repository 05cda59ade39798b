"""What updates minimise: sums over the rows of a micro-batch, as functions of the weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scope_jax.learning.losses import LossSpec, policy_loss
from scope_jax.models import (
    LoraSpec,
    ModelConfig,
    Params,
    attach,
    for_device,
    hidden_states,
    logprobs_and_load,
    prm_logits,
    token_logprobs,
)

# loss(params, micro-batch, scalars) -> (sum, statistics)
Loss = Callable[
    [Params, dict[str, jax.Array], dict[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]
]


def policy_objective(
    config: ModelConfig,
    spec: LossSpec,
    *,
    temperature: float,
    entropy: bool,
    lora: LoraSpec | None = None,
) -> Loss:
    """The hybrid objective over what `pack` made of `advantage` ([B], or [B, T] where it differs
    along a row), `on`, `off` [B, T] and, where given, `old_logp`, `teacher_logp`,
    `reference_logp`, `sampler_logp`, `distill_logp` [B, T]; scalars: `teacher_weight`. `entropy`:
    whether the statistics hold it; with a mixture of experts they also hold `expert_load`, of the
    tokens with a weight. `lora`: adapters are trained, of the weights in scalars under
    `base`."""
    config = for_device(config)

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        counted = ((batch["on"] != 0) | (batch["off"] != 0)).astype(jnp.float32)
        logp, entropy_BT, load_LE = logprobs_and_load(
            params if lora is None else attach(scalars["base"], params, lora),
            config,
            batch["prompt"],
            batch["prompt_length"],
            batch["completion"],
            counted if config.num_experts else None,
            temperature=temperature,
            entropy=entropy or spec.entropy_bonus > 0,
        )
        advantage = batch["advantage"]
        value, stats = policy_loss(
            logp,
            batch.get("old_logp"),
            advantage[:, None] if advantage.ndim == 1 else advantage,
            batch["on"],
            batch["off"],
            spec,
            teacher_weight=scalars["teacher_weight"],
            teacher_logp_BT=batch.get("teacher_logp"),
            reference_logp_BT=batch.get("reference_logp"),
            sampler_logp_BT=batch.get("sampler_logp"),
            distill_logp_BT=batch.get("distill_logp"),
            entropy_BT=entropy_BT,
        )
        return value, stats if load_LE is None else stats | {"expert_load": load_LE}

    return loss


def cloning_objective(config: ModelConfig) -> Loss:
    """Supervised next-token loss: -sum weight * log p(token), over batches of `tokens`, `weight`
    [B, T]."""
    config = for_device(config)

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        logp, _ = token_logprobs(params, config, batch["tokens"])
        return -jnp.sum(jnp.where(batch["weight"] > 0, batch["weight"] * logp, 0.0)), {}

    return loss


def step_label_objective(config: ModelConfig) -> Loss:
    """Two-class cross-entropy at step positions: batches of `tokens`, `label` (0 wrong, 1 good;
    float: the share that is good), `weight` [B, T]."""
    config = for_device(config)

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        scores = prm_logits(params, hidden_states(params, config, batch["tokens"]))
        logp = jax.nn.log_softmax(scores, axis=-1)
        label = batch["label"]
        if jnp.issubdtype(label.dtype, jnp.integer):
            chosen = jnp.take_along_axis(logp, label[..., None], axis=-1)[..., 0]
        else:
            chosen = label * logp[..., 1] + (1 - label) * logp[..., 0]
        return -jnp.sum(jnp.where(batch["weight"] > 0, batch["weight"] * chosen, 0.0)), {}

    return loss
