"""The settings of a mixture of experts: checked, read from and written to `config.json`."""

from typing import Any

# What config.json means where it leaves the key out.
_DEFAULTS = {"moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128}


def check_experts(config: Any) -> None:
    """Raise ValueError for a `ModelConfig` whose numbers of experts do not fit together."""
    numbers = config.num_experts, config.experts_per_token, config.expert_size
    if not config.family.experts:
        if any(numbers) or config.norm_expert_weights:
            raise ValueError(f"num_experts {numbers[0]} is not part of {config.model_type}")
        return
    if min(numbers) < 1 or config.experts_per_token > config.num_experts:
        raise ValueError(
            f"experts_per_token {config.experts_per_token} of num_experts {config.num_experts}"
            f" with expert_size {config.expert_size}: {config.model_type} needs from 1 to all"
            " experts for a token, and a size of at least 1"
        )
    if config.weights == "int8":
        raise ValueError(
            f"int8 weights (models.teacher_weights, prm_weights) are not supported for the experts"
            f" of {config.model_type}; leave them at 'auto'"
        )


def read_experts(raw: dict[str, Any], layers: int) -> dict[str, Any]:
    """The fields of `ModelConfig` about experts. transformers 5 writes `num_local_experts` where
    published files have `num_experts`. Raises ValueError where a layer has no experts."""
    step, dense = raw.get("decoder_sparse_step"), raw.get("mlp_only_layers") or []
    if step not in (None, 1) or any(number < layers for number in dense):
        key, value = ("mlp_only_layers", dense) if dense else ("decoder_sparse_step", step)
        raise ValueError(
            f"{key} {value!r:.60} is not supported: every layer must have experts"
            " (decoder_sparse_step 1, mlp_only_layers [])"
        )
    found = {
        key: default if (value := raw.get(key)) is None else value
        for key, default in _DEFAULTS.items()
    }
    if raw.get("num_experts") is None and (local := raw.get("num_local_experts")) is not None:
        found["num_experts"] = local
    return {
        "num_experts": found["num_experts"],
        "experts_per_token": found["num_experts_per_tok"],
        "expert_size": found["moe_intermediate_size"],
        "norm_expert_weights": bool(raw.get("norm_topk_prob")),
    }


def write_experts(config: Any) -> dict[str, Any]:
    """The keys that `read_experts` reads back. An auxiliary loss is no part of the model; none is
    asked of whoever trains it next."""
    return {
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.expert_size,
        "norm_topk_prob": config.norm_expert_weights,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
