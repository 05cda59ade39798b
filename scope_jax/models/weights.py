"""The one table of weights: name, shape, logical axes, initialiser and Hugging Face name of every
parameter.

Initialisation, sharding, loading, export and the gather before use are all read off this table.
Projections are stored [in, out] (Hugging Face stores [out, in]); the weights of all layers are
stacked on a leading L axis and scanned. A model with 8-bit weights (`int8`) has the same table with
a scale beside each weight that is kept so.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from scope_jax.devices.mesh import GATHERED, constrain, sharding
from scope_jax.models.config import ModelConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter. `hf` holds "{}" for the layer number when the weight is stacked, and another
    one for the expert where `experts` says that it is stacked by expert too, unless the file's
    tensor holds those of all experts; it is empty for a scale, which no file has. `transpose` says
    that the Hugging Face tensor is the transpose of (each layer, each expert of) ours; `rows` that
    it holds other weights too: our first row there, and how many it has."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    hf: str
    init: str = "normal"  # normal | zeros | ones
    transpose: bool = False
    dtype: str | None = None  # None: the one that the model is used in
    rows: tuple[int, int] | None = None
    experts: bool = False

    @property
    def stacked(self) -> bool:
        return "{}" in self.hf

    @property
    def depth(self) -> int:
        """How many leading axes are those of a stack: layers, experts."""
        return self.stacked + self.experts

    @property
    def experts_in_one(self) -> bool:
        """Whether the Hugging Face tensor holds those of all experts, one behind the other."""
        return self.hf.count("{}") < self.depth

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Of the Hugging Face tensor."""
        shape = self.shape[self.depth :]
        shape = shape[::-1] if self.transpose else shape
        shape = shape if self.rows is None else (self.rows[1], *shape[1:])
        return (self.shape[1], *shape) if self.experts_in_one else shape

    def places(self, bounds: Sequence[tuple[int, int]] | None = None) -> Iterator[tuple[int, ...]]:
        """The places in the stack: (), (layer,) or (layer, expert); of those axes within `bounds`,
        where they are given."""
        ranges = [(0, size) for size in self.shape] if bounds is None else bounds
        return itertools.product(*(range(*ends) for ends in ranges[: self.depth]))

    def name(self, place: tuple[int, ...]) -> str:
        """Of the Hugging Face tensor that holds this place of the stack."""
        return self.hf.format(*place)


def weight_table(config: ModelConfig) -> dict[str, Weight]:
    """ "/"-joined path in the parameter tree -> Weight."""
    D, F, L, V = config.hidden_size, config.ffn_size, config.num_layers, config.vocab_size
    Q, K = config.num_heads * config.head_size, config.num_kv_heads * config.head_size

    def projection(hf: str, rows: int, columns: int, axes: tuple[str, str]) -> Weight:
        return Weight(
            (L, rows, columns), (None, *axes), f"model.layers.{{}}.{hf}.weight", transpose=True
        )

    def vector(hf: str, size: int, axis: str | None, init: str) -> Weight:
        return Weight((L, size), (None, axis), f"model.layers.{{}}.{hf}", init)

    def norm(hf: str, size: int = D) -> Weight:
        # Gemma's norms multiply by 1 + w.
        return vector(f"{hf}.weight", size, None, "zeros" if gemma else "ones")

    def ffn(name: str, rows: int, columns: int, axes: tuple[str, str]) -> Weight | None:
        return None if config.num_experts else projection(f"mlp.{name}", rows, columns, axes)

    gemma, before = config.family.gemma, not config.family.post_norm
    behind, whole = config.family.norms_behind, config.family.whole_qk_norm
    projection_bias = config.attention_bias or config.model_type == "qwen2"
    listed: dict[str, Weight | None] = {
        "embed": Weight((V, D), ("vocab", None), "model.embed_tokens.weight"),
        "layers/attention_norm": norm("input_layernorm") if before else None,
        "layers/query": projection("self_attn.q_proj", D, Q, ("embed", "heads")),
        "layers/query_bias": vector("self_attn.q_proj.bias", Q, "heads", "zeros")
        if projection_bias
        else None,
        "layers/query_norm": vector("self_attn.q_norm.weight", Q, "heads", "ones")
        if whole
        else norm("self_attn.q_norm", config.head_size)
        if config.family.qk_norm
        else None,
        "layers/key": projection("self_attn.k_proj", D, K, ("embed", "kv_heads")),
        "layers/key_bias": vector("self_attn.k_proj.bias", K, "kv_heads", "zeros")
        if projection_bias
        else None,
        "layers/key_norm": vector("self_attn.k_norm.weight", K, "kv_heads", "ones")
        if whole
        else norm("self_attn.k_norm", config.head_size)
        if config.family.qk_norm
        else None,
        "layers/value": projection("self_attn.v_proj", D, K, ("embed", "kv_heads")),
        "layers/value_bias": vector("self_attn.v_proj.bias", K, "kv_heads", "zeros")
        if projection_bias
        else None,
        "layers/output": projection("self_attn.o_proj", Q, D, ("heads", "embed")),
        "layers/output_bias": vector("self_attn.o_proj.bias", D, None, "zeros")
        if config.attention_bias
        else None,
        # Gemma has a norm behind each block too, OLMo has no other, and Hugging Face's
        # post_attention_layernorm is that one there.
        "layers/attended_norm": norm("post_attention_layernorm") if behind else None,
        "layers/ffn_norm": norm(
            "pre_feedforward_layernorm" if behind else "post_attention_layernorm"
        )
        if before
        else None,
        "layers/gate": ffn("gate_proj", D, F, ("embed", "mlp")),
        "layers/gate_bias": vector("mlp.gate_proj.bias", F, "mlp", "zeros")
        if config.mlp_bias
        else None,
        "layers/up": ffn("up_proj", D, F, ("embed", "mlp")),
        "layers/up_bias": vector("mlp.up_proj.bias", F, "mlp", "zeros")
        if config.mlp_bias
        else None,
        "layers/down": ffn("down_proj", F, D, ("mlp", "embed")),
        "layers/down_bias": vector("mlp.down_proj.bias", D, None, "zeros")
        if config.mlp_bias
        else None,
        **(_of_experts(config) if config.num_experts else {}),
        "layers/fed_norm": norm("post_feedforward_layernorm") if behind else None,
        "final_norm": Weight((D,), (None,), "model.norm.weight", "zeros" if gemma else "ones"),
    }
    table = {path: weight for path, weight in listed.items() if weight is not None}
    if config.family.fused:
        _fuse(table, ("query", "key", "value"), "self_attn.qkv_proj")
        _fuse(table, ("gate", "up"), "mlp.gate_up_proj")
    if config.head == "lm" and not config.tied:
        table["head"] = Weight((D, V), (None, "vocab"), "lm_head.weight", transpose=True)
    if config.head == "prm":
        table |= {
            "prm_hidden": Weight((D, D), (None, None), "score.0.weight", transpose=True),
            "prm_hidden_bias": Weight((D,), (None,), "score.0.bias", "zeros"),
            "prm_output": Weight((D, 2), (None, None), "score.2.weight", transpose=True),
            "prm_output_bias": Weight((2,), (None,), "score.2.bias", "zeros"),
        }
    if config.head == "value":
        table |= {
            "value_head": Weight((D, 1), (None, None), "v_head.summary.weight", transpose=True),
            "value_head_bias": Weight((1,), (None,), "v_head.summary.bias", "zeros"),
        }
    return _with_scales(table, config) if config.weights == "int8" else table


def _of_experts(config: ModelConfig) -> dict[str, Weight]:
    """The router, which is small and whole on every device, and the projections of the experts."""
    D, F, L, E = config.hidden_size, config.expert_size, config.num_layers, config.num_experts

    def projection(hf: str, rows: int, columns: int, axes: tuple[str, str]) -> Weight:
        name = f"model.layers.{{}}.mlp.experts.{{}}.{hf}.weight"
        shape = (L, E, rows, columns)
        return Weight(shape, (None, "expert", *axes), name, transpose=True, experts=True)

    return {
        "layers/router": Weight(
            (L, D, E), (None, None, None), "model.layers.{}.mlp.gate.weight", transpose=True
        ),
        "layers/expert_gate": projection("gate_proj", D, F, ("embed", "mlp")),
        "layers/expert_up": projection("up_proj", D, F, ("embed", "mlp")),
        "layers/expert_down": projection("down_proj", F, D, ("mlp", "embed")),
    }


def with_experts_in_one(table: dict[str, Weight]) -> dict[str, Weight]:
    """The table for files that hold a layer's experts in two tensors, as transformers 5 keeps them
    in memory: gate and up as rows of `gate_up_proj`, and `down_proj`."""
    size = table["layers/expert_gate"].shape[-1]
    where: dict[str, tuple[str, tuple[int, int] | None]] = {
        "layers/expert_gate": ("gate_up_proj", (0, 2 * size)),
        "layers/expert_up": ("gate_up_proj", (size, 2 * size)),
        "layers/expert_down": ("down_proj", None),
    }
    changed = {
        path: dataclasses.replace(
            table[path], hf=f"model.layers.{{}}.mlp.experts.{name}", rows=rows
        )
        for path, (name, rows) in where.items()
    }
    return table | changed


def _fuse(table: dict[str, Weight], names: tuple[str, ...], hf: str) -> None:
    """These projections of the table, one after the other, are the rows of one tensor in files."""
    paths = [f"layers/{name}" for name in names]
    total, first = sum(table[path].shape[-1] for path in paths), 0
    for path in paths:
        table[path] = dataclasses.replace(
            table[path], hf=f"model.layers.{{}}.{hf}.weight", rows=(first, total)
        )
        first += table[path].shape[-1]


def _with_scales(table: dict[str, Weight], config: ModelConfig) -> dict[str, Weight]:
    """The table of the same model with 8-bit weights: the layers' projections and the head over the
    vocabulary, which may be the embedding, in int8; and beside each of them `<path>_scale`,
    float32: one number for each output channel, laid out like that axis. An embedding that is only
    looked up is not read as a whole, and costs precision; a two-class or value head is small: they
    stay as they are."""
    head = {"head"} if "head" in table else {"embed"} if config.head == "lm" else set()
    scaled = {}
    for path, weight in table.items():
        if path in head or (weight.stacked and len(weight.shape) == 3):
            # Our last axis is the output channel; of the embedding, the rows are.
            channel = len(weight.shape) - (2 if path == "embed" else 1)
            kept = [0, channel] if weight.stacked else [channel]
            scaled[path] = dataclasses.replace(weight, dtype="int8")
            scaled[f"{path}_scale"] = Weight(
                tuple(weight.shape[n] for n in kept),
                tuple(weight.axes[n] for n in kept),
                "",
                "ones",
                dtype="float32",
            )
        else:
            scaled[path] = weight
    return scaled


def count_weights(config: ModelConfig) -> int:
    """Numbers in all weights of a model."""
    return sum(math.prod(weight.shape) for weight in weight_table(config).values())


def nest(flat: dict[str, Any]) -> Params:
    """ "/"-joined paths -> nested dict."""
    return traverse_util.unflatten_dict(flat, sep="/")


def flatten(params: Params) -> dict[str, Any]:
    """Nested dict -> "/"-joined paths."""
    return traverse_util.flatten_dict(params, sep="/")


def init(
    config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> Params:
    """Random parameters: normal with std 1/sqrt(fan-in) for projections, 0.02 for the embedding;
    biases 0, norms that scale by 1. Laid out on `mesh` if one is given. Raises ValueError for 8-bit
    weights, which are made of others (`int8.in_int8`)."""
    refuse_int8(config, "random weights are made")
    return init_table(weight_table(config), key, dtype, mesh)


def refuse_int8(config: ModelConfig, what: str) -> None:
    """Raise ValueError for a model with 8-bit weights; `what` is done with full ones only."""
    if config.weights == "int8":
        raise ValueError(
            f"int8 weights are for frozen models (models.teacher_weights, prm_weights): {what} with"
            " weights 'auto' only"
        )


def init_table(
    table: dict[str, Weight], key: jax.Array, dtype: Any, mesh: Mesh | None = None
) -> Params:
    """Random parameters of any table of weights; see `init`."""

    def draw(number: int, path: str, weight: Weight) -> jax.Array:
        if weight.init == "zeros":
            return jnp.zeros(weight.shape, dtype)
        if weight.init == "ones":
            return jnp.ones(weight.shape, dtype)
        std = 0.02 if path == "embed" else weight.shape[-2] ** -0.5
        return (std * jax.random.normal(jax.random.fold_in(key, number), weight.shape)).astype(
            dtype
        )

    def build() -> Params:
        return nest({path: draw(n, path, weight) for n, (path, weight) in enumerate(table.items())})

    return jax.jit(build, out_shardings=None if mesh is None else table_shardings(table, mesh))()


def shardings(config: ModelConfig, mesh: Mesh, drop: tuple[str, ...] = ()) -> Params:
    """NamedSharding of every parameter; mesh axes in `drop` are left out (rollouts drop "fsdp")."""
    return table_shardings(weight_table(config), mesh, drop)


def table_shardings(table: dict[str, Weight], mesh: Mesh, drop: tuple[str, ...] = ()) -> Params:
    """NamedSharding of every weight of a table."""
    return nest({path: sharding(mesh, w.axes, w.shape, drop) for path, w in table.items()})


def abstract(config: ModelConfig, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Params:
    """ShapeDtypeStruct of every parameter, for compiling without weights."""
    return nest(
        {
            path: jax.ShapeDtypeStruct(
                w.shape,
                w.dtype or dtype,
                sharding=None if mesh is None else sharding(mesh, w.axes, w.shape),
            )
            for path, w in weight_table(config).items()
        }
    )


def in_dtype(params: Any, dtype: Any) -> Any:
    """The weights in `dtype`, laid out as they are; those that have it already are the same
    arrays."""
    return jax.tree.map(lambda w: w if w.dtype == dtype else w.astype(dtype), params)


def decode_layout(
    config: ModelConfig, params: Params, mesh: Mesh | None, drop: tuple[str, ...] = GATHERED
) -> Params:
    """Parameters laid out again once per phase: decoding with fsdp-split weights would gather
    every weight for every token. Without a mesh, or with nothing to drop, the same arrays come
    back."""
    if mesh is None or all(mesh.shape.get(axis, 1) == 1 for axis in drop):
        return params
    return jax.device_put(params, shardings(config, mesh, drop))


def gather_layer(config: ModelConfig, layer: Params) -> Params:
    """Inside the scan over layers: constrain each weight of one layer to its layout *without*
    fsdp, so that the partitioner makes one plain all-gather per weight instead of a ring of
    permutes around every product. Adapters, which the table does not have, are small and left to
    it."""
    table = weight_table(config)
    axes = {name: table[f"layers/{name}"].axes[1:] for name in layer if f"layers/{name}" in table}
    return {
        name: constrain(w, *axes[name], drop=GATHERED) if name in axes else w
        for name, w in layer.items()
    }
