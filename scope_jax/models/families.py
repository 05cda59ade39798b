"""The model families: what sets one `model_type` of Hugging Face apart from the others."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """What sets one `model_type` apart from the others. `name` begins the names of its classes in
    transformers."""

    name: str
    trunk: str
    head_size: int | None = (
        None  # where config.json has no head_dim: this, or hidden_size / num_heads
    )
    qk_norm: bool = False
    biases: tuple[
        str, ...
    ] = ()  # of attention_bias and mlp_bias, the keys that its config.json has
    gemma: bool = False
    post_norm: bool = False  # norms stand behind attention and feed-forward, none before them
    whole_qk_norm: bool = False  # norms of query and key go over all heads together
    wide_norms: bool = False  # norms multiply by their weights in float32
    fused: bool = False  # in files query, key and value are one tensor, gate and up another
    unrotated: bool = False  # some layers have no positions (no_rope_layers)
    partial_rotary: bool = False  # only the first part of a head may be rotated
    experts: bool = False  # the feed-forward is a mixture of experts, in every layer
    # What config.json means where it leaves the key out.
    tied: bool = False
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    local_rope_theta: float = 0.0  # of local layers; 0: local layers have no rope of their own
    rope_kinds: tuple[str, ...] = ()  # rotary scalings; (): `rope.KINDS`
    # Keys that would change the model, each with the only value that is supported.
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def norms_behind(self) -> bool:
        """Whether norms stand behind attention and feed-forward."""
        return self.gemma or self.post_norm

    @property
    def architectures(self) -> dict[str, str]:
        """Name in `architectures` -> head."""
        return {
            f"{self.name}ForCausalLM": "lm",
            f"{self.name}ForProcessRewardModel": "prm",
            f"{self.name}ForPrmModel": "value",
            self.trunk: "none",
        }


_OLMO: dict[str, Any] = dict(
    biases=("attention_bias",),
    post_norm=True,
    whole_qk_norm=True,
    wide_norms=True,
    norm_eps=1e-5,
    only={"attention_dropout": 0, "mlp_bias": False, "clip_qkv": None},
)
OLMO3_THETA = 500000.0
FAMILIES = {
    "qwen2": Family("Qwen2", "Qwen2Model"),
    "qwen3": Family("Qwen3", "Qwen3Model", head_size=128, qk_norm=True, biases=("attention_bias",)),
    "qwen3_moe": Family(
        "Qwen3Moe",
        "Qwen3MoeModel",
        qk_norm=True,
        biases=("attention_bias",),
        experts=True,
        only={"attention_dropout": 0, "use_sliding_window": False},
    ),
    "llama": Family("Llama", "LlamaModel", biases=("attention_bias", "mlp_bias")),
    "mistral": Family("Mistral", "MistralModel"),
    "gemma2": Family(
        "Gemma2", "Gemma2Model", head_size=256, biases=("attention_bias",), gemma=True
    ),
    "gemma3_text": Family(
        "Gemma3",
        "Gemma3TextModel",
        head_size=256,
        qk_norm=True,
        biases=("attention_bias",),
        gemma=True,
        rope_theta=1e6,
        local_rope_theta=1e4,
    ),
    "smollm3": Family(
        "SmolLM3",
        "SmolLM3Model",
        biases=("attention_bias", "mlp_bias"),
        unrotated=True,
        tied=True,
        rope_theta=2e6,
        only={"attention_dropout": 0},
    ),
    "olmo2": Family("Olmo2", "Olmo2Model", **_OLMO),
    "olmo3": Family(
        "Olmo3", "Olmo3Model", rope_theta=OLMO3_THETA, local_rope_theta=OLMO3_THETA, **_OLMO
    ),
    "phi3": Family(
        "Phi3",
        "Phi3Model",
        fused=True,
        partial_rotary=True,
        norm_eps=1e-5,
        rope_kinds=("default", "longrope"),
        only={
            **dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), False),
            **dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop"), 0),
            **dict.fromkeys(("full_attn_mod", "interpolate_factor"), 1),
        },
    ),
}
