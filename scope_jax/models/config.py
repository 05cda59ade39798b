"""What a decoder is made of, read from and written to Hugging Face's `config.json`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

PRM_ARCHITECTURE = "Qwen2ForProcessRewardModel"
SUPPORTED = {"qwen2": "Qwen2ForCausalLM"}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, gated SiLU feed-forward.

    `head` says what stands on top: "lm" (vocabulary logits), "prm" (two classes at every position, the layout of
    Qwen2.5-Math-PRM) or "none" (a bare trunk).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_size: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tied: bool = False
    max_positions: int = 4096
    head: str = "lm"
    model_type: str = "qwen2"
    end_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head not in ("lm", "prm", "none"):
            raise ValueError(f"head {self.head!r} must be lm, prm or none")

    @property
    def num_query_groups(self) -> int:
        """G: query heads per kv head."""
        return self.num_heads // self.num_kv_heads

    def with_head(self, head: str) -> "ModelConfig":
        """The same trunk with another head."""
        return dataclasses.replace(self, head=head)


def read_config(directory: str | Path) -> ModelConfig:
    """ModelConfig of a Hugging Face directory. Both generations of `config.json` are read: `rope_theta` at the top
    level (published checkpoints) and inside `rope_parameters` (transformers 5).

    Raises FileNotFoundError without `config.json`, ValueError for a family that is not supported.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no config.json; a model directory holds config.json, *.safetensors and a tokenizer")
    raw = json.loads(path.read_text())
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED:
        raise ValueError(f"{path}: model_type {model_type!r} is not supported; known: {', '.join(SUPPORTED)}")
    rope = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    if scaling:
        raise ValueError(f"{path}: rotary scaling {scaling!r} is not supported; only plain rope_theta is")
    if raw.get("use_sliding_window"):
        raise ValueError(f"{path}: use_sliding_window is not supported; set it to false for rows within the full window")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: hidden_act {raw['hidden_act']!r} is not supported; qwen2 uses silu")
    heads = raw["num_attention_heads"]
    architecture = (raw.get("architectures") or [SUPPORTED[model_type]])[0]
    head = {PRM_ARCHITECTURE: "prm", "Qwen2Model": "none"}.get(architecture, "lm")
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads", heads),
        head_size=raw.get("head_dim") or raw["hidden_size"] // heads,
        ffn_size=raw["intermediate_size"],
        rope_theta=float(raw.get("rope_theta", rope.get("rope_theta", 10000.0))),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        tied=bool(raw.get("tie_word_embeddings", False)),
        max_positions=raw.get("max_position_embeddings", 32768),
        head=head,
        model_type=model_type,
        end_ids=_read_end_ids(Path(directory), raw),
    )


def config_to_json(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` that transformers (4 and 5) reads back as this model."""
    architecture = {"lm": SUPPORTED[config.model_type], "prm": PRM_ARCHITECTURE, "none": "Qwen2Model"}[config.head]
    written: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn_size,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_positions,
        "use_sliding_window": False,
        "torch_dtype": dtype,
    }
    if config.end_ids:
        written["eos_token_id"] = config.end_ids[0] if len(config.end_ids) == 1 else list(config.end_ids)
    if config.head == "prm":
        written["num_labels"] = 2
    return written


def _read_end_ids(directory: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    """End tokens of generation_config.json (which lists all of them) and config.json, in that order, without repeats."""
    found: list[int] = []
    generation = directory / "generation_config.json"
    sources = [json.loads(generation.read_text())] if generation.is_file() else []
    for source in [*sources, raw]:
        ids = source.get("eos_token_id")
        for token in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if token not in found:
                found.append(int(token))
    return tuple(found)
