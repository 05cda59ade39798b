"""Hugging Face directories in and out: config.json, safetensors (one file or sharded), tokenizer files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import save_file

from scope_jax.mesh import assert_sharded, current_mesh, sharding
from scope_jax.models.config import ModelConfig, config_to_json, read_config
from scope_jax.models.weights import Params, Weight, flatten, nest, shardings, weight_table

# Tensors that published checkpoints carry and this model does not use.
HARMLESS = ("rotary_emb.inv_freq",)


def load(directory: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None) -> tuple[ModelConfig, Params]:
    """(config, params) of a Hugging Face directory, laid out on `mesh` (default: the mesh that is set, else one device).

    Every tensor of the files must be expected and every expected tensor present with its shape; each device reads only
    the slices it holds. Raises FileNotFoundError for a missing directory or file, ValueError naming the tensor.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such model directory; give a Hugging Face directory (config.json, *.safetensors)")
    config = read_config(directory)
    mesh = mesh or current_mesh()
    files = _tensor_files(directory)
    table = weight_table(config)
    _check_names(directory, config, table, files)
    handles = {path: safe_open(path, framework="flax") for path in sorted(set(files.values()))}
    read = lambda name: handles[files[name]].get_slice(name)
    flat = {path: _load_weight(weight, read, jnp.dtype(dtype), mesh) for path, weight in table.items()}
    params = nest(flat)
    if mesh is not None:
        assert_sharded(params, shardings(config, mesh))
    return config, params


def save(directory: str | Path, config: ModelConfig, params: Params, tokenizer: Any = None) -> None:
    """Write config.json, generation_config.json, model.safetensors and, if given, the tokenizer."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    flat = flatten(params)
    tensors: dict[str, np.ndarray] = {}
    for path, weight in weight_table(config).items():
        value = np.asarray(jax.device_get(flat[path]))
        for number, layer in enumerate(value) if weight.stacked else [(0, value)]:
            tensors[weight.hf.format(number)] = np.ascontiguousarray(layer.T if weight.transpose else layer)
    dtype = str(next(iter(tensors.values())).dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config_to_json(config, dtype), indent=2) + "\n")
    if config.head == "lm":
        ends = list(config.end_ids)
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    index = directory / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    found: dict[str, Path] = {}
    for name in names:
        path = directory / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; weights must be safetensors (pickled *.bin files are never read)")
        with safe_open(path, framework="numpy") as handle:
            for tensor in handle.keys():  # noqa: SIM118
                if tensor in found:
                    raise ValueError(f"{path}: tensor {tensor!r} is also in {found[tensor].name}; each tensor may stand once")
                found[tensor] = path
    return found


def _check_names(directory: Path, config: ModelConfig, table: dict[str, Weight], files: dict[str, Path]) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for weight in table.values():
        shape = weight.shape[1:] if weight.stacked else weight.shape
        for number in range(weight.shape[0] if weight.stacked else 1):
            expected[weight.hf.format(number)] = tuple(reversed(shape)) if weight.transpose else shape
    unused_head = {"lm_head.weight"} if "head" not in table else set()
    for name, shape in expected.items():
        if name not in files:
            hint = "; a PRM needs its head score.0, score.2" if name.startswith("score.") else ""
            raise ValueError(f"{directory}: weight {name} of shape {list(shape)} is missing{hint}")
    for name in files:
        if name not in expected and name not in unused_head and not name.endswith(HARMLESS):
            raise ValueError(f"{directory}: weight {name} is not part of this {config.model_type} model (head {config.head!r})")
    for path in sorted(set(files.values())):
        with safe_open(path, framework="numpy") as handle:
            for name in handle.keys():  # noqa: SIM118
                found = tuple(handle.get_slice(name).get_shape())
                if name in expected and found != expected[name]:
                    raise ValueError(f"{path}: weight {name} has shape {list(found)}, config.json asks for {list(expected[name])}")


def _load_weight(weight: Weight, read: Callable[[str], Any], dtype: Any, mesh: Mesh | None) -> jax.Array:
    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        """The part of our (stacked, transposed) array at `index` (None: all of it), read slice by slice."""
        index = index or (slice(None),) * len(weight.shape)
        if not weight.stacked:
            return _read(read(weight.hf), index, weight.transpose, dtype)
        layers = range(*index[0].indices(weight.shape[0]))
        return np.stack([_read(read(weight.hf.format(n)), index[1:], weight.transpose, dtype) for n in layers])

    if mesh is None:
        return jnp.asarray(piece(None))
    return jax.make_array_from_callback(weight.shape, sharding(mesh, weight.axes, weight.shape), piece)


def _read(tensor: Any, index: tuple[slice, ...], transpose: bool, dtype: Any) -> np.ndarray:
    part = np.asarray(tensor[tuple(reversed(index)) if transpose else index])
    return np.ascontiguousarray(part.T if transpose else part).astype(dtype)
