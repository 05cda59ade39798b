"""Shapes of well-known models, for configs whose model directories are not on this machine.

The numbers are those of the published `config.json` files, as far as a program's shapes depend on
them.
"""

import re
from pathlib import Path
from typing import Any

from scope_jax.models.config import ModelConfig, config_from_json, read_config

_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
_QWEN3_EXPERTS: dict[str, Any] = {
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
}
_OLMO3_7B: tuple[str, tuple[int, ...], dict[str, Any]] = (
    "olmo3",
    (4096, 32, 32, 32, 11008, 100278),
    {"max_position_embeddings": 65536},
)
_SHAPES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "Qwen2.5-0.5B": ("qwen2", (896, 24, 14, 2, 4864, 151936), {"tie_word_embeddings": True}),
    "Qwen2.5-1.5B": ("qwen2", (1536, 28, 12, 2, 8960, 151936), {"tie_word_embeddings": True}),
    "Qwen2.5-3B": ("qwen2", (2048, 36, 16, 2, 11008, 151936), {"tie_word_embeddings": True}),
    "Qwen2.5-7B": ("qwen2", (3584, 28, 28, 4, 18944, 152064), {}),
    "Qwen2.5-14B": ("qwen2", (5120, 48, 40, 8, 13824, 152064), {}),
    "Qwen2.5-32B": ("qwen2", (5120, 64, 40, 8, 27648, 152064), {}),
    "Qwen2.5-72B": ("qwen2", (8192, 80, 64, 8, 29568, 152064), {}),
    "Qwen2.5-Math-1.5B": (
        "qwen2",
        (1536, 28, 12, 2, 8960, 151936),
        {"tie_word_embeddings": True, "max_position_embeddings": 4096},
    ),
    "Qwen2.5-Math-7B": (
        "qwen2",
        (3584, 28, 28, 4, 18944, 152064),
        {"max_position_embeddings": 4096},
    ),
    "Qwen2.5-Math-72B": (
        "qwen2",
        (8192, 80, 64, 8, 29568, 152064),
        {"max_position_embeddings": 4096},
    ),
    "Qwen2.5-Math-PRM-7B": (
        "qwen2",
        (3584, 28, 28, 4, 18944, 152064),
        {"max_position_embeddings": 4096, "architectures": ["Qwen2ForProcessRewardModel"]},
    ),
    "Qwen2.5-Math-PRM-72B": (
        "qwen2",
        (8192, 80, 64, 8, 29568, 152064),
        {"max_position_embeddings": 4096, "architectures": ["Qwen2ForProcessRewardModel"]},
    ),
    "Skywork-o1-Open-PRM-Qwen-2.5-1.5B": (
        "qwen2",
        (1536, 28, 12, 2, 8960, 151936),
        {
            "tie_word_embeddings": True,
            "max_position_embeddings": 4096,
            "architectures": ["Qwen2ForPrmModel"],
        },
    ),
    "Skywork-o1-Open-PRM-Qwen-2.5-7B": (
        "qwen2",
        (3584, 28, 28, 4, 18944, 152064),
        {"max_position_embeddings": 4096, "architectures": ["Qwen2ForPrmModel"]},
    ),
    "math-shepherd-mistral-7b-prm": (
        "mistral",
        (4096, 32, 32, 8, 14336, 32000),
        {"sliding_window": None},
    ),
    "Qwen3-0.6B": ("qwen3", (1024, 28, 16, 8, 3072, 151936), {"tie_word_embeddings": True}),
    "Qwen3-1.7B": ("qwen3", (2048, 28, 16, 8, 6144, 151936), {"tie_word_embeddings": True}),
    "Qwen3-4B": ("qwen3", (2560, 36, 32, 8, 9728, 151936), {"tie_word_embeddings": True}),
    "Qwen3-8B": ("qwen3", (4096, 36, 32, 8, 12288, 151936), {}),
    "Qwen3-14B": ("qwen3", (5120, 40, 40, 8, 17408, 151936), {}),
    "Qwen3-32B": ("qwen3", (5120, 64, 64, 8, 25600, 151936), {}),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        (2048, 48, 32, 4, 6144, 151936),
        {**_QWEN3_EXPERTS, "moe_intermediate_size": 768},
    ),
    "Qwen3-235B-A22B": (
        "qwen3_moe",
        (4096, 94, 64, 4, 12288, 151936),
        {**_QWEN3_EXPERTS, "moe_intermediate_size": 1536},
    ),
    "Llama-3.1-8B": ("llama", (4096, 32, 32, 8, 14336, 128256), {}),
    "Llama-3.1-70B": ("llama", (8192, 80, 64, 8, 28672, 128256), {}),
    "Llama-3.2-1B": (
        "llama",
        (2048, 16, 32, 8, 8192, 128256),
        {"tie_word_embeddings": True, "head_dim": 64},
    ),
    "Llama-3.2-3B": (
        "llama",
        (3072, 28, 24, 8, 8192, 128256),
        {"tie_word_embeddings": True, "head_dim": 128},
    ),
    "Llama-3.3-70B": ("llama", (8192, 80, 64, 8, 28672, 128256), {}),
    "SmolLM3-3B": (
        "smollm3",
        (2048, 36, 16, 4, 11008, 128256),
        {"max_position_embeddings": 65536},
    ),
    "OLMo-2-0425-1B": (
        "olmo2",
        (2048, 16, 16, 16, 8192, 100352),
        {"max_position_embeddings": 4096},
    ),
    "Olmo-3-1025-7B": _OLMO3_7B,
    "Olmo-3-7B": _OLMO3_7B,
    "Phi-3-mini-4k": (
        "phi3",
        (3072, 32, 32, 32, 8192, 32064),
        {"max_position_embeddings": 4096, "sliding_window": 2047},
    ),
    "phi-4": (
        "phi3",
        (5120, 40, 40, 10, 17920, 100352),
        {"max_position_embeddings": 16384},
    ),
    # Positions: as many as its rotary scaling is supported for.
    "Phi-4-mini": (
        "phi3",
        (3072, 32, 24, 8, 8192, 200064),
        {
            "tie_word_embeddings": True,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 4096,
        },
    ),
}


def model_shapes(directory: str) -> tuple[ModelConfig, str]:
    """(config, where it comes from) of a model directory: its `config.json`, or the published one
    of a directory's name.

    Raises ValueError where there is neither, and as `read_config` does.
    """
    if (Path(directory) / "config.json").is_file():
        return read_config(directory), f"{directory}/config.json"
    name = re.sub(r"(?i)-(instruct|base|it)$", "", Path(directory).name)
    known = {key.lower(): key for key in _SHAPES}
    key = known.get(name.lower()) or known.get(name.lower().removeprefix("meta-"))
    if key is None:
        raise ValueError(
            f"{directory}: not here, and no model whose shapes are built in; give a directory with"
            f" config.json, or one of {', '.join(_SHAPES)}"
        )
    family, numbers, more = _SHAPES[key]
    return (
        config_from_json({"model_type": family, **dict(zip(_KEYS, numbers, strict=True)), **more}),
        f"published {key}",
    )
