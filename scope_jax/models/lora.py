"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): W + alpha/rank A B for the projections of
every layer.

Adapters are a small tree beside the parameters, {"layers": {"query_a": [L, in, r], "query_b": [L,
r, out], ...}}. Training runs on `attach`ed parameters, in which the weights themselves get no
gradient; rollouts and export on `merge`d ones.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from scope_jax.devices.hosts import is_main
from scope_jax.devices.mesh import constrain, to_host
from scope_jax.devices.programs import program
from scope_jax.models.config import ModelConfig
from scope_jax.models.hf import NotFinite, is_finite, open_tensors
from scope_jax.models.kinds import is_number, is_whole, read_object
from scope_jax.models.weights import (
    Params,
    Weight,
    flatten,
    init_table,
    nest,
    refuse_int8,
    table_shardings,
    weight_table,
)

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """rank of the adapters; alpha / rank multiplies A B; targets: the projections that have one."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(
                f"lora: rank {self.rank} must be at least 1 and alpha {self.alpha} above 0"
            )
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(
                f"lora.targets {list(self.targets)}: some of {', '.join(TARGETS)}, each once"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def lora_table(config: ModelConfig, spec: LoraSpec) -> dict[str, Weight]:
    """The table of weights of the adapters; their names are those of PEFT. B starts at 0, so that
    nothing changes at first."""
    refuse_int8(config, "adapters are trained")
    weights, table = weight_table(config), {}
    for name in spec.targets:
        weight = weights.get(f"layers/{name}")
        if weight is None:
            raise ValueError(
                f"lora.targets: {name} of {config.model_type} is a part of its experts, for which"
                f" there are no adapters; take some of {', '.join(_known(config))}"
            )
        if weight.rows is not None:
            raise ValueError(
                f"lora.targets: {name} of {config.model_type} is a part of"
                f" {weight.hf.split('.')[-2]}, for which there are no adapters; take some of"
                f" {', '.join(_known(config))}"
            )
        (layers, rows, columns), (_, row_axis, column_axis) = weight.shape, weight.axes
        hf = "base_model.model." + weight.hf.removesuffix(".weight")
        a, b = (layers, rows, spec.rank), (layers, spec.rank, columns)
        table[f"layers/{name}_a"] = Weight(
            a, (None, row_axis, None), f"{hf}.lora_A.weight", transpose=True
        )
        table[f"layers/{name}_b"] = Weight(
            b, (None, None, column_axis), f"{hf}.lora_B.weight", "zeros", transpose=True
        )
    return table


def init_lora(
    config: ModelConfig, spec: LoraSpec, key: jax.Array, mesh: Mesh | None = None
) -> Params:
    """Fresh float32 adapters: A normal with std 1/sqrt(fan-in), B zero. Laid out on `mesh` if one
    is given."""
    return init_table(lora_table(config, spec), key, jnp.float32, mesh)


def attach(params: Params, lora: Params, spec: LoraSpec) -> Params:
    """Parameters for the decoder that add the adapters' products to those of the weights, in the
    weights' dtype."""
    dtype = params["embed"].dtype
    factors = {
        name: (x * spec.scale if name.endswith("_b") else x).astype(dtype)
        for name, x in lora["layers"].items()
    }
    return {**params, "layers": {**params["layers"], **factors}}


@functools.partial(program, static_argnums=(0, 3))
def merge(config: ModelConfig, params: Params, lora: Params, spec: LoraSpec) -> Params:
    """Plain parameters with the adapters added in float32; layout and dtype of `params`."""
    table, layers = weight_table(config), dict(params["layers"])
    for name in spec.targets:
        a, b = (lora["layers"][f"{name}_{part}"].astype(jnp.float32) for part in "ab")
        merged = layers[name].astype(jnp.float32) + spec.scale * jnp.einsum("Lir,Lro->Lio", a, b)
        layers[name] = constrain(merged.astype(layers[name].dtype), *table[f"layers/{name}"].axes)
    return {**params, "layers": layers}


def save_lora(
    directory: str | Path, config: ModelConfig, lora: Params, spec: LoraSpec, base: str = ""
) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT does; `base` is the
    directory of the weights that the adapters belong to."""
    directory = Path(directory)
    tensors: dict[str, np.ndarray] = {}
    flat, table = flatten(lora), lora_table(config, spec)
    for path, weight in table.items():
        for number, layer in enumerate(np.asarray(to_host(flat[path]))):
            tensors[weight.hf.format(number)] = np.ascontiguousarray(layer.T)
    if not is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    raw: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [_module(config, name) for name in spec.targets],
    }
    (directory / "adapter_config.json").write_text(json.dumps(raw, indent=2) + "\n")


def load_lora(
    directory: str | Path, config: ModelConfig, mesh: Mesh | None = None
) -> tuple[LoraSpec, Params]:
    """(spec, float32 adapters) of a directory that PEFT or `save_lora` wrote for a model like
    `config`.

    Raises FileNotFoundError without the two files, ValueError for adapters of another kind and for
    a tensor that is missing, unknown or of another shape.
    """
    directory = Path(directory)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory}: no {name}; adapters are adapter_config.json and"
                " adapter_model.safetensors"
            )
    raw = read_object(directory / "adapter_config.json")
    for key, wanted in (
        ("peft_type", "LORA"),
        ("bias", "none"),
        ("use_dora", False),
        ("use_rslora", False),
    ):
        if raw.get(key, wanted) != wanted:
            raise ValueError(
                f"{directory}: adapter_config.json: {key} {raw[key]!r} is not supported; only"
                f" {wanted!r} is"
            )
    known = {_module(config, name): name for name in _known(config)}
    modules = raw.get("target_modules") or []
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ValueError(
            f"{directory}: adapter_config.json: target_modules: a list of names is needed"
        )
    unknown = [module for module in modules if module not in known]
    if unknown:
        raise ValueError(
            f"{directory}: adapter_config.json: target_modules {unknown[0]!r} is not one of"
            f" {', '.join(known)}"
        )
    targets = tuple(name for module, name in known.items() if module in modules)
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if rank is None or alpha is None or not is_whole(rank) or not is_number(alpha):
        raise ValueError(f"{directory}: adapter_config.json: r and lora_alpha must be numbers")
    spec = LoraSpec(rank, float(alpha), targets)
    table, flat = lora_table(config, spec), {}
    with open_tensors(directory / "adapter_model.safetensors") as handle:
        found = set(handle.keys())
        for path, weight in table.items():
            layers = []
            for number in range(weight.shape[0]):
                name, shape = weight.hf.format(number), weight.shape[:0:-1]
                if name not in found:
                    raise ValueError(
                        f"{directory}: weight {name} of shape {list(shape)} is missing"
                    )
                tensor = handle.get_tensor(name)
                if tensor.shape != shape:
                    raise ValueError(
                        f"{directory}: weight {name} has shape {list(tensor.shape)}, should be"
                        f" {list(shape)}"
                    )
                layers.append(tensor.T.astype(np.float32))
                if not is_finite(layers[-1]):
                    raise ValueError(f"{directory}: {NotFinite(name)}")
                found.discard(name)
            flat[path] = jnp.asarray(np.stack(layers))
    if found:
        raise ValueError(f"{directory}: weight {min(found)} is not part of these adapters")
    lora = nest(flat)
    return spec, lora if mesh is None else jax.device_put(lora, table_shardings(table, mesh))


def _known(config: ModelConfig) -> list[str]:
    """The projections that may have adapters: those that are tensors of their own in files."""
    table = weight_table(config)
    found = {name: table.get(f"layers/{name}") for name in TARGETS}
    return [name for name, weight in found.items() if weight is not None and weight.rows is None]


def _module(config: ModelConfig, name: str) -> str:
    """PEFT's name of a projection: q_proj, gate_proj, ..."""
    return weight_table(config)[f"layers/{name}"].hf.removesuffix(".weight").rpartition(".")[2]
