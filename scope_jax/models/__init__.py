"""Models: one decoder for policy, teacher and PRM; Hugging Face directories in and out."""

from scope_jax.models.config import ModelConfig, read_config
from scope_jax.models.decoder import (
    completion_logprobs,
    good_step_probability,
    hidden_states,
    logits,
    prm_logits,
    token_logprobs,
    unroll_layers,
)
from scope_jax.models.hf import load, save
from scope_jax.models.weights import Params, abstract, init, relay, shardings, weight_table

__all__ = [
    "ModelConfig",
    "Params",
    "abstract",
    "completion_logprobs",
    "good_step_probability",
    "hidden_states",
    "init",
    "load",
    "logits",
    "prm_logits",
    "read_config",
    "relay",
    "save",
    "shardings",
    "token_logprobs",
    "unroll_layers",
    "weight_table",
]
