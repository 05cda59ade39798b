"""What a decoder is made of, read from and written to Hugging Face's `config.json`."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from scope_jax import hub, types
from scope_jax.models.experts_config import check_experts, read_experts, write_experts
from scope_jax.models.families import FAMILIES, Family
from scope_jax.models.kinds import check_kinds, end_ids_of, read_object
from scope_jax.models.rope import PLAIN, RopeScaling, check_kind, read_ropes, write_rope
from scope_jax.models.windows import (
    LAYER_TYPES,
    read_unrotated,
    read_windows,
    write_unrotated,
    write_windows,
)

Read = TypeVar("Read")


HEADS = ("lm", "prm", "value", "none")
# (local, without positions): all that sets layers of one model apart.
LayerKind = tuple[bool, bool]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, gated
    feed-forward.

    `head` says what stands on top: "lm" (vocabulary logits), "prm" (two classes at every position,
    the layout of Qwen2.5-Math-PRM), "value" (one number at every position, the layout of
    Skywork-o1-Open-PRM) or "none" (a bare trunk). `model_type` is Hugging Face's name of the
    family, which settles what has no field here (norms, activation). Fields are 0, () or False
    where a model lacks the thing. Raises ValueError for what does not fit together.
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
    attention_bias: bool = (
        False  # on query, key, value and output; qwen2 has the first three without it
    )
    mlp_bias: bool = False
    window: int = 0  # positions that a local layer's query sees, its own included
    local_layers: tuple[bool, ...] = ()  # one per layer
    unrotated_layers: tuple[bool, ...] = ()  # one per layer: those without positions
    partial_rotary_factor: float = 1.0  # the first part of a head that is rotated
    rope_scaling: RopeScaling = PLAIN
    local_rope_theta: float = (
        0.0  # of local layers; 0: theirs is that of the others, scaling included
    )
    local_rope_scaling: RopeScaling = PLAIN
    query_pre_attn_scalar: float = 0.0  # scores are multiplied by its -1/2 power; 0: head_size
    num_experts: int = 0  # of a layer's feed-forward; 0: it is one, of ffn_size
    experts_per_token: int = 0
    expert_size: int = 0  # of an expert, as ffn_size is of a whole feed-forward
    norm_expert_weights: bool = False  # whether the weights of a token's experts sum to 1
    attention_cap: float = 0.0  # score -> cap tanh(score / cap)
    logit_cap: float = 0.0
    bos_id: int | None = None
    pad_id: int | None = None
    # The last six say how the model is run, not what it is: no config.json has them.
    # Layers in a scan (True) or a Python loop (False). None: a scan, unless `for_device` decides.
    scan_layers: bool | None = None
    # What the backward pass computes again instead of keeping: nothing; all but the products with
    # a layer's weights; all but what enters a layer.
    remat: Literal["none", "dots", "layer"] = "none"
    # The kernel of the device, which `models/attention/choice.py` takes where it serves. None: that
    # of the device at hand, by `for_device` or `with_kernel`.
    attention: Literal["plain", "cudnn", "splash"] | None = None
    # Logits that a loss holds at once on one device, in numbers. None: what suits the device at
    # hand, by `for_device`.
    logits_at_once: int | None = None
    # Whether decoding multiplies with a layer's experts where they lie in the stack of all layers.
    # None: not, unless `for_device` or `with_kernel` decides.
    experts_in_stack: bool | None = None
    # What projections, embedding and head are kept in: auto, the dtype that the model is used in;
    # int8, with a scale for each output channel. Nothing of such a model can be trained.
    weights: Literal["auto", "int8"] = "auto"

    def __post_init__(self) -> None:
        types.check_choices(self, "ModelConfig")
        if self.model_type not in FAMILIES:
            raise ValueError(
                f"model_type {self.model_type!r} is not supported; known: {', '.join(FAMILIES)}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head not in HEADS:
            raise ValueError(f"head {self.head!r} must be {', '.join(HEADS[:-1])} or {HEADS[-1]}")
        if self.head_size < 2 or self.head_size % 2:
            raise ValueError(
                f"head_size {self.head_size} must be even; rotary positions turn pairs"
            )
        if self.local_layers and len(self.local_layers) != self.num_layers:
            raise ValueError(
                f"local_layers names {len(self.local_layers)} layers, num_layers is"
                f" {self.num_layers}"
            )
        if bool(self.window) != any(self.local_layers) or self.window < 0:
            raise ValueError(
                f"window {self.window} and local_layers {self.local_layers} must both be given, or"
                " neither"
            )
        for key in ("attention_bias", "mlp_bias"):
            if getattr(self, key) and key not in self.family.biases:
                raise ValueError(f"{key} is not part of {self.model_type}")
        self._check_rotation()
        check_experts(self)

    def _check_rotation(self) -> None:
        if self.unrotated_layers and not self.family.unrotated:
            raise ValueError(f"unrotated_layers is not part of {self.model_type}")
        if self.unrotated_layers and len(self.unrotated_layers) != self.num_layers:
            raise ValueError(
                f"unrotated_layers names {len(self.unrotated_layers)} layers, num_layers is"
                f" {self.num_layers}"
            )
        if self.partial_rotary_factor != 1 and not self.family.partial_rotary:
            raise ValueError(
                f"partial_rotary_factor is not supported for {self.model_type}; whole heads are"
                " rotated"
            )
        check_kind(self.rope_scaling.kind, self.family)
        size = self.rotary_size
        if not 2 <= size <= self.head_size or size % 2:
            raise ValueError(
                f"partial_rotary_factor {self.partial_rotary_factor} of heads of {self.head_size}"
                f" rotates {size} numbers; an even number from 2 up to the head's size is needed"
            )
        self.rope_scaling.check_size(size)

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def num_query_groups(self) -> int:
        """G: query heads per kv head."""
        return self.num_heads // self.num_kv_heads

    @property
    def unrolled(self) -> bool:
        """Whether layers are a Python loop."""
        return self.scan_layers is False

    @property
    def query_scale(self) -> float:
        """What attention scores are multiplied by."""
        return (self.query_pre_attn_scalar or self.head_size) ** -0.5

    @property
    def rotary_size(self) -> int:
        """How many numbers of a head are rotated: the first ones."""
        return int(self.head_size * self.partial_rotary_factor)

    def check_width(self, width: int) -> None:
        """Raise ValueError for rows of more positions than the rotary scaling is the same for:
        `longrope` turns every position of a longer row by other factors."""
        if self.rope_scaling.kind == "longrope" and width > self.max_positions:
            raise ValueError(
                f"rows of {width} positions: longrope is supported up to"
                f" original_max_position_embeddings, {self.max_positions}; shorten prompts or"
                " completions"
            )

    @property
    def positions(self) -> int:
        """Positions of the longest row that the model is made for: those of its config, and of
        scalings that its config gives as a multiple, so many times as many."""
        scaling = self.rope_scaling
        of = {"yarn": scaling.original_positions, "linear": self.max_positions}.get(scaling.kind, 0)
        return max(self.max_positions, round(scaling.factor * of))

    def check_rows(self, width: int, what: str) -> None:
        """Raise ValueError where rows of `width` tokens, which `what` makes them, are longer than
        the model is made for."""
        self.check_width(width)
        if width > self.positions:
            raise ValueError(
                f"rows of {width} tokens ({what}): the model is made for {self.positions}"
                " (max_position_embeddings of its config.json); shorten them, or give it a"
                " rope_scaling that it was trained or measured with"
            )

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        none = (False,) * self.num_layers
        return tuple(
            zip(self.local_layers or none, self.unrotated_layers or none, strict=True),
        )

    def rope(self, local: bool) -> tuple[float, RopeScaling]:
        """(theta, scaling) of local layers, or of the others."""
        if local and self.local_rope_theta:
            return self.local_rope_theta, self.local_rope_scaling
        return self.rope_theta, self.rope_scaling

    def with_head(self, head: str) -> "ModelConfig":
        """The same trunk with another head."""
        return dataclasses.replace(self, head=head)


def read_config(directory: str | Path) -> ModelConfig:
    """ModelConfig of a Hugging Face directory, or of a name of the hub (`scope_jax.hub`). Both
    generations of `config.json` are read: `rope_theta` and `rope_scaling` at the top level
    (published checkpoints) and `rope_parameters` (transformers 5).

    Raises FileNotFoundError without the directory or its `config.json`, ValueError for what is
    not supported.
    """
    path = hub.local(directory) / "config.json"
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{directory}: no such model directory; give a Hugging Face directory (config.json,"
            " *.safetensors), or a name of the hub such as Qwen/Qwen2.5-0.5B-Instruct"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory}: no config.json; a model directory holds config.json, *.safetensors and a"
            " tokenizer"
        )
    config = _of_file(path, config_from_json)
    generation = path.with_name("generation_config.json")
    listed = _of_file(generation, end_ids_of) if generation.is_file() else ()
    return dataclasses.replace(config, end_ids=tuple(dict.fromkeys(listed + config.end_ids)))


def config_from_json(raw: dict[str, Any]) -> ModelConfig:
    """ModelConfig of the contents of a `config.json`; absent keys have the defaults of
    transformers.

    Raises ValueError naming the key that is missing, of a wrong kind or not supported.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    check_kinds(raw)
    for key in ("quantization_config", "use_bidirectional_attention"):
        if raw.get(key):
            raise ValueError(
                f"{key} is not supported; give weights in float32, bfloat16 or float16 of a causal"
                " decoder"
            )
    for key, value in family.only.items():
        if raw.get(key) not in (None, value):
            raise ValueError(
                f"{key} {raw[key]!r:.60} is not supported for {model_type}; {json.dumps(value)} is"
            )
    key, activation = (
        ("hidden_activation", "gelu_pytorch_tanh") if family.gemma else ("hidden_act", "silu")
    )
    if raw.get(key, activation) != activation:
        raise ValueError(f"{key} {raw[key]!r} is not supported; {model_type} uses {activation}")
    architecture = (raw.get("architectures") or [f"{family.name}ForCausalLM"])[0]
    if architecture not in family.architectures:
        raise ValueError(
            f"architecture {architecture!r} is not supported; known:"
            f" {', '.join(family.architectures)}"
        )
    heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
    max_positions = raw.get("max_position_embeddings", 32768)
    head_size = raw.get("head_dim") or family.head_size or raw["hidden_size"] // heads
    unrotated = read_unrotated(raw, layers) if family.unrotated else ()
    window, local_layers = read_windows(raw, model_type, layers, unrotated)
    ropes = read_ropes(raw, family, max_positions, window)
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_size=head_size,
        ffn_size=raw["intermediate_size"],
        norm_eps=float(raw.get("rms_norm_eps", family.norm_eps)),
        tied=bool(raw.get("tie_word_embeddings", family.gemma or family.tied)),
        max_positions=ropes["rope_scaling"].longest or max_positions,
        head=family.architectures[architecture],
        model_type=model_type,
        end_ids=end_ids_of(raw),
        attention_bias="attention_bias" in family.biases and bool(raw.get("attention_bias")),
        mlp_bias="mlp_bias" in family.biases and bool(raw.get("mlp_bias")),
        window=window,
        local_layers=local_layers,
        unrotated_layers=unrotated,
        **ropes,
        **(read_experts(raw, layers) if family.experts else {}),
        **(_read_gemma(raw, model_type, head_size) if family.gemma else {}),
        bos_id=raw.get("bos_token_id"),
        pad_id=raw.get("pad_token_id"),
    )


def config_to_json(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` that transformers (4 and 5) reads back as this model.

    Raises ValueError where the family's `config.json` cannot say what `config` says.
    """
    family = config.family
    (architecture,) = (name for name, head in family.architectures.items() if head == config.head)
    ends = list(config.end_ids)
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
        "hidden_act": "gelu_pytorch_tanh" if family.gemma else "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": write_rope(config.rope_scaling),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.rope_scaling.reach or config.max_positions,
        # Written where they are None too: transformers has numbers of its own for some families.
        "bos_token_id": config.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config.pad_id,
        "torch_dtype": dtype,
    }
    written |= {key: getattr(config, key) for key in family.biases}
    local = config.local_layers or (False,) * config.num_layers
    written |= write_windows(config.model_type, config.window, local, config.max_positions)
    if family.unrotated:
        written |= write_unrotated(config.unrotated_layers, config.num_layers)
    if family.partial_rotary:
        written["partial_rotary_factor"] = config.partial_rotary_factor
    if family.experts:
        written |= write_experts(config)
    if config.rope_scaling.kind == "longrope":
        written["original_max_position_embeddings"] = config.rope_scaling.original_positions
    if family.gemma:
        scalar = config.query_pre_attn_scalar or config.head_size
        written |= {
            "hidden_activation": written["hidden_act"],
            "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
            "final_logit_softcapping": config.logit_cap or None,
            "attn_logit_softcapping": config.attention_cap or None,
        }
    if family.local_rope_theta:
        theta, scaling = config.rope(local=True)
        if family.gemma:
            written["rope_local_base_freq"] = theta
        if scaling != PLAIN or not family.gemma:
            written["rope_parameters"] = {
                kind: (write_rope(rope[1]) or {"rope_type": "default"}) | {"rope_theta": rope[0]}
                for kind, rope in zip(LAYER_TYPES, (config.rope(local=False), (theta, scaling)))
            }
    if config.head == "prm":
        written["num_labels"] = 2
    again = dataclasses.replace(
        config_from_json(written),
        scan_layers=config.scan_layers,
        remat=config.remat,
        attention=config.attention,
        logits_at_once=config.logits_at_once,
        experts_in_stack=config.experts_in_stack,
        weights=config.weights,
    )
    lost = [
        f.name
        for f in dataclasses.fields(config)
        if getattr(again, f.name) != getattr(config, f.name)
    ]
    if lost:
        raise ValueError(
            f"{lost[0]} = {getattr(config, lost[0])!r} cannot be written into a config.json of"
            f" {config.model_type}"
        )
    return written


def _of_file(path: Path, read: Callable[[dict[str, Any]], Read]) -> Read:
    """What `read` makes of a file's object; its errors name the file."""
    raw = read_object(path)
    try:
        return read(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_gemma(raw: dict[str, Any], model_type: str, head_size: int) -> dict[str, Any]:
    scalar = float(raw.get("query_pre_attn_scalar", 256))
    caps = (30.0, 50.0) if model_type == "gemma2" else (None, None)
    logit_cap = raw.get("final_logit_softcapping", caps[0])
    attention_cap = raw.get("attn_logit_softcapping", caps[1])
    if attention_cap and model_type == "gemma3_text":
        warnings.warn(
            "attn_logit_softcapping is not applied: gemma3 has none, neither published nor in"
            " transformers",
            stacklevel=4,
        )
        attention_cap = None
    return {
        "query_pre_attn_scalar": 0.0 if scalar == head_size else scalar,
        "logit_cap": float(logit_cap or 0),
        "attention_cap": float(attention_cap or 0),
    }
