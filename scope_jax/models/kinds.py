"""What the values of a model directory's JSON files may be: a wrong kind is one line, by its name.

Bounds keep a value that is no model's, such as a thousand million layers, from being worked on.
"""

import json
import math
from pathlib import Path
from typing import Any

# Keys of config.json that are read; those of the first row must be there, the others may be null
# unless they stand in _NEVER_NULL.
_NEEDED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
_WHOLE = (
    *_NEEDED,
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "original_max_position_embeddings",
    "no_rope_layer_interval",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "decoder_sparse_step",
)
_NUMBERS = (
    "rms_norm_eps",
    "rope_theta",
    "rope_local_base_freq",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "partial_rotary_factor",
)
_SWITCHES = (
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
    "norm_topk_prob",
)
_NAMES = ("architectures", "layer_types")
_FLAGS = ("no_rope_layers",)
_NUMBERED = ("mlp_only_layers",)
_TABLES = ("rope_scaling", "rope_parameters")
_IDS = ("bos_token_id", "pad_token_id")
_NEVER_NULL = (*_NEEDED, "max_position_embeddings", "rms_norm_eps", "query_pre_attn_scalar")
# Zero stands for none there, as null does.
_MAY_BE_0 = (
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "original_max_position_embeddings",
)
_MOST = {"num_hidden_layers": 10_000}
_MOST_ELSE = 2**31 - 1


def check_kinds(raw: dict[str, Any]) -> None:
    """Raise ValueError for a value of a config.json that is of a wrong kind or out of bounds."""
    kinds = (
        (_WHOLE, is_whole, "a whole number"),
        (_NUMBERS, lambda value: is_number(value) and value >= 0, "a number from 0 up"),
        (_SWITCHES, lambda value: isinstance(value, bool), "true or false"),
        (_NAMES, _is_names, "a list of names"),
        (_FLAGS, _is_flags, "a list of 0 and 1"),
        (_NUMBERED, _is_wholes, "a list of whole numbers"),
        (_TABLES, lambda value: isinstance(value, dict), "an object"),
        (_IDS, is_whole, "a whole number"),
    )
    for keys, fits, wanted in kinds:
        for key in keys:
            value = raw.get(key)
            missing = value is None and (key in _NEEDED or (key in raw and key in _NEVER_NULL))
            if missing or (value is not None and not fits(value)):
                raise ValueError(f"{key} is {_shown(value)}, {wanted} is needed")
    for key in _WHOLE:
        value, least, most = raw.get(key), int(key not in _MAY_BE_0), _MOST.get(key, _MOST_ELSE)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{key} is {value}, a number from {least} to {most} is needed")


def end_ids_of(raw: dict[str, Any]) -> tuple[int, ...]:
    """`eos_token_id`, which is one id, several or null. Raises ValueError for anything else."""
    ids = raw.get("eos_token_id")
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(map(is_whole, listed)):
        raise ValueError(f"eos_token_id is {_shown(ids)}, a whole number or several are needed")
    return tuple(dict.fromkeys(listed))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError where it is none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: holds a {type(raw).__name__}, an object is needed")
    return raw


def is_whole(value: Any) -> bool:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_flags(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole(flag) and flag in (0, 1) for flag in value)


def _is_wholes(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_whole, value))


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
