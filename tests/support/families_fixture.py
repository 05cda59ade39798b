"""Tiny checkpoints of every family as they are published: config.json and tensors under Hugging
Face's names.

Names and shapes come from transformers, by way of the goldens; the numbers come from numpy's
frozen RandomState stream. So torch, in goldens/make_goldens.py, and the tests see the same
checkpoint, and nothing in it was written by `models.save`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from scope_jax import models

WINDOW = 5
# Rows of 16 slots: long, one more than a window, a window, one token.
LENGTHS = np.array([16, WINDOW + 1, WINDOW, 1], np.int32)
NEW = 32
_SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GEMMA: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 12,
    "query_pre_attn_scalar": 20,
    "sliding_window": WINDOW,
    "bos_token_id": 2,
    "pad_token_id": 0,
}
# name -> (config.json, seed). Each has what its family is known for, at numbers where forgetting
# it would show.
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "qwen2": (
        _SIZES
        | {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "rope_theta": 1000000.0,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        11,
    ),
    "qwen2_yarn": (
        _SIZES
        | {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 64,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            "use_sliding_window": False,
            "sliding_window": WINDOW,
            "num_key_value_heads": 1,
        },
        22,
    ),
    "qwen3": (
        _SIZES
        | {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "head_dim": 16,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "attention_bias": True,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        13,
    ),
    # Weights of a token's experts that sum to 1, an expert smaller than the unused feed-forward.
    "qwen3_moe": (
        _SIZES
        | {
            "model_type": "qwen3_moe",
            "architectures": ["Qwen3MoeForCausalLM"],
            "head_dim": 16,
            "rope_theta": 1000000.0,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
            "tie_word_embeddings": False,
        },
        51,
    ),
    # Weights as the softmax gives them, three experts of five, by the defaults of the file.
    "qwen3_moe_plain": (
        _SIZES
        | {
            "model_type": "qwen3_moe",
            "architectures": ["Qwen3MoeForCausalLM"],
            "rope_theta": 10000.0,
            "num_key_value_heads": 1,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        52,
    ),
    "llama": (
        _SIZES
        | {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "attention_bias": True,
            "mlp_bias": True,
        },
        14,
    ),
    "mistral": (
        _SIZES
        | {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "head_dim": 12,
            "num_key_value_heads": 4,
            "rope_theta": 10000.0,
            "sliding_window": WINDOW,
        },
        15,
    ),
    "gemma2": (
        _SIZES
        | _GEMMA
        | {
            "model_type": "gemma2",
            "architectures": ["Gemma2ForCausalLM"],
            "rope_theta": 10000.0,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 4.0,
        },
        16,
    ),
    "gemma3": (
        _SIZES
        | _GEMMA
        | {
            "model_type": "gemma3_text",
            "architectures": ["Gemma3ForCausalLM"],
            "num_hidden_layers": 4,
            "sliding_window_pattern": 3,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "final_logit_softcapping": 4.0,
        },
        27,
    ),
    "smollm3": (
        _SIZES
        | {
            "model_type": "smollm3",
            "architectures": ["SmolLM3ForCausalLM"],
            "num_hidden_layers": 4,
            "rope_theta": 5000.0,
            "no_rope_layers": [1, 0, 1, 0],
            "attention_bias": True,
            "use_sliding_window": False,
            "sliding_window": None,
            "tie_word_embeddings": True,
        },
        31,
    ),
    # Layers without positions in every second place, by the interval, and local.
    "smollm3_window": (
        _SIZES
        | {
            "model_type": "smollm3",
            "architectures": ["SmolLM3ForCausalLM"],
            "num_hidden_layers": 4,
            "rope_theta": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "tie_word_embeddings": False,
        },
        32,
    ),
    "olmo2": (
        _SIZES
        | {
            "model_type": "olmo2",
            "architectures": ["Olmo2ForCausalLM"],
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_theta": 500.0,
            "rms_norm_eps": 1e-3,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        113,
    ),
    "olmo3": (
        _SIZES
        | {
            "model_type": "olmo3",
            "architectures": ["Olmo3ForCausalLM"],
            "num_hidden_layers": 5,
            "sliding_window": WINDOW,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "attention_factor": 1.2,
            },
            "tie_word_embeddings": False,
        },
        44,
    ),
    # A rotary base for each type of layer, and layers of both in another order.
    "olmo3_bases": (
        _SIZES
        | {
            "model_type": "olmo3",
            "architectures": ["Olmo3ForCausalLM"],
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": WINDOW,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "tie_word_embeddings": True,
        },
        95,
    ),
    "phi3": (
        _SIZES
        | {
            "model_type": "phi3",
            "architectures": ["Phi3ForCausalLM"],
            "hidden_size": 48,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000.0,
            "sliding_window": WINDOW,
            "tie_word_embeddings": False,
        },
        46,
    ),
    # Phi-4-mini: heads of 16 with 12 rotated, a window that is wider than all positions.
    "phi4_mini": (
        _SIZES
        | {
            "model_type": "phi3",
            "architectures": ["Phi3ForCausalLM"],
            "hidden_size": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 48,
            "max_position_embeddings": 384,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 3.0],
                "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
            },
            "sliding_window": 1000,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "tie_word_embeddings": True,
        },
        37,
    ),
}
# The head of Skywork-o1-Open-PRM on the trunk "qwen2".
VALUE_HEAD = {"v_head.summary.weight": (1, 32), "v_head.summary.bias": (1,)}


def tensors_of(
    raw: dict[str, Any], shapes: dict[str, tuple[int, ...]], seed: int
) -> dict[str, np.ndarray]:
    """float32 tensors under their published names, of a size that makes attention and logits
    uneven."""
    stream = np.random.RandomState(seed)
    drawn = {}
    for name in sorted(shapes):
        value = stream.standard_normal(shapes[name])
        if name.endswith("norm.weight"):
            value = 0.2 * value + (not raw["model_type"].startswith("gemma"))
        elif name.endswith("bias"):
            value = 0.3 * value
        else:
            value *= 0.25 if "embed" in name else 1.5 * shapes[name][-1] ** -0.5
        drawn[name] = value.astype(np.float32)
    return drawn


def write_checkpoint(directory: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def family_tokens(name: str) -> np.ndarray:
    """int32[4, 16]; what stands past a row's length must not matter."""
    raw, seed = FAMILIES[name]
    return np.random.RandomState(seed).randint(0, raw["vocab_size"], (4, 16)).astype(np.int32)


def shapes_in(golden: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in json.loads(str(golden["shapes"])).items()}


def load_family(
    name: str, directory: Path, golden: dict[str, np.ndarray]
) -> tuple[models.ModelConfig, models.Params]:
    """Write the checkpoint and load it."""
    raw, seed = FAMILIES[name]
    write_checkpoint(directory, raw, tensors_of(raw, shapes_in(golden), seed))
    return models.load(directory)
