"""Models: one decoder for policy, teacher and PRM; Hugging Face directories in and out."""

from scope_jax.models.config import FAMILIES, ModelConfig, config_from_json, read_config
from scope_jax.models.decoder import (
    completion_logprobs,
    good_step_probability,
    hidden_states,
    logits,
    prm_logits,
    token_choice_probability,
    token_logprobs,
    unroll_layers,
    value_logits,
)
from scope_jax.models.hf import load, save
from scope_jax.models.rope import RopeScaling
from scope_jax.models.weights import Params, abstract, init, relay, shardings, weight_table

__all__ = [
    "FAMILIES",
    "ModelConfig",
    "Params",
    "RopeScaling",
    "abstract",
    "completion_logprobs",
    "config_from_json",
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
    "token_choice_probability",
    "token_logprobs",
    "unroll_layers",
    "value_logits",
    "weight_table",
]
