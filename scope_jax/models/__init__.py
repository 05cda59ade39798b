"""Models: one decoder for policy, teacher and process reward model, and one table of weights.

In: a Hugging Face directory, or tokens. Out: a `ModelConfig` with parameters laid out on the mesh;
logits, log-probs, step scores; a Hugging Face directory again.
"""

from scope_jax.models.config import FAMILIES, ModelConfig, config_from_json, read_config
from scope_jax.models.decoder import REMAT, for_device, hidden_states, with_kernel
from scope_jax.models.heads import (
    completion_logprobs,
    good_step_probability,
    logits,
    logprobs_and_load,
    prm_logits,
    token_choice_probability,
    token_logprobs,
    value_logits,
)
from scope_jax.models.hf import check_files, load, save
from scope_jax.models.int8 import in_int8
from scope_jax.models.lora import (
    LoraSpec,
    attach,
    init_lora,
    load_lora,
    lora_table,
    merge,
    save_lora,
)
from scope_jax.models.rope import RopeScaling
from scope_jax.models.vocabulary import with_more_rows, with_room_for
from scope_jax.models.weights import (
    Params,
    abstract,
    decode_layout,
    in_dtype,
    init,
    shardings,
    weight_table,
)

__all__ = [
    "FAMILIES",
    "REMAT",
    "LoraSpec",
    "ModelConfig",
    "Params",
    "RopeScaling",
    "abstract",
    "attach",
    "check_files",
    "completion_logprobs",
    "config_from_json",
    "decode_layout",
    "for_device",
    "good_step_probability",
    "hidden_states",
    "in_dtype",
    "in_int8",
    "init",
    "init_lora",
    "load",
    "load_lora",
    "logits",
    "logprobs_and_load",
    "lora_table",
    "merge",
    "prm_logits",
    "read_config",
    "save",
    "save_lora",
    "shardings",
    "token_choice_probability",
    "token_logprobs",
    "value_logits",
    "weight_table",
    "with_kernel",
    "with_more_rows",
    "with_room_for",
]
