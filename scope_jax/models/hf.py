"""Hugging Face directories in and out: config.json, safetensors (one file or sharded), tokenizer
files."""

import contextlib
import dataclasses
import functools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scope_jax import hub
from scope_jax.devices.current import current_mesh
from scope_jax.devices.hosts import is_main, wait_for_all
from scope_jax.devices.mesh import assert_sharded, make_mesh, sharding, to_host
from scope_jax.models.config import ModelConfig, config_to_json, read_config
from scope_jax.models.int8 import quantise
from scope_jax.models.kinds import read_object
from scope_jax.models.weights import (
    Params,
    Weight,
    flatten,
    nest,
    refuse_int8,
    shardings,
    weight_table,
    with_experts_in_one,
)

# Tensors that published checkpoints carry and this model does not use.
HARMLESS = ("rotary_emb.inv_freq",)
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
# So much of a file is read and laid out at once: what a load needs on the host beside the
# parameters.
BLOCK_BYTES = 2 << 20

Bounds = list[tuple[int, int]]  # begin and end on each axis


class NotFinite(ValueError):
    """A tensor holds NaN or infinity."""

    def __init__(self, name: str):
        self.name = name
        super().__init__(
            f"weight {name} holds values that are not finite (NaN or infinity); get the file again,"
            " or take another checkpoint"
        )


def load(
    directory: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    weights: Literal["auto", "int8"] = "auto",
) -> tuple[ModelConfig, Params]:
    """(config, params) of a Hugging Face directory, or a name of the hub, laid out on `mesh`
    (default: the mesh that is set, else one device). `weights` int8: see `ModelConfig.weights`;
    they are rounded on the way, from what the files hold, so that the full ones are never on a
    device.

    Every tensor of the files must be expected and every expected tensor present with its shape, in
    float32, bfloat16 or float16; an unused head and rotary tables are skipped with a warning that
    names them. Each process reads only the slices that its devices hold, a block at a time. Raises
    FileNotFoundError for a missing directory or file, ValueError naming the file, and the tensor
    where one is missing, too many, of another shape or not finite.
    """
    directory = hub.local(directory)
    config = read_config(directory)
    mesh = mesh or current_mesh()
    files, skipped = _checked(directory, config)
    config = dataclasses.replace(config, weights=weights)
    table = _stored_table(config, files)
    if skipped:
        warnings.warn(
            f"{directory}: tensors that this model does not use were skipped: {', '.join(skipped)}",
            stacklevel=2,
        )
    handles = {path: open_tensors(path) for path in sorted({path for path, _ in files.values()})}

    def read(name: str) -> Any:
        path, stored = files[name]
        return handles[path].get_slice(stored)

    try:
        flat: dict[str, jax.Array] = {}
        for path, weight in table.items():
            if weight.dtype == "int8":
                scale = table[f"{path}_scale"]
                flat[path], flat[f"{path}_scale"] = _load_int8(weight, scale, read, mesh)
            elif weight.hf:
                flat[path] = _load_weight(weight, read, jnp.dtype(dtype), mesh)
    except NotFinite as error:
        raise ValueError(f"{files[error.name][0]}: {error}") from None
    params = nest(flat)
    if mesh is not None:
        assert_sharded(params, shardings(config, mesh))
    return config, params


def check_files(directory: str | Path) -> None:
    """What `load` refuses before it reads a weight: `config.json`, and the names, shapes and dtypes
    of the tensors in the files' headers. Raises as `load` does."""
    _checked(hub.local(directory), read_config(directory))


def _checked(directory: Path, config: ModelConfig) -> tuple[dict[str, tuple[Path, str]], list[str]]:
    """(tensor name -> (file, its name there), names of those that are skipped)."""
    files = _tensor_files(directory, config)
    return files, _check_tensors(directory, config, _stored_table(config, files), files)


def _stored_table(config: ModelConfig, files: dict[str, tuple[Path, str]]) -> dict[str, Weight]:
    """The table of weights with the names of these files."""
    table = weight_table(config)
    if config.num_experts:
        in_one = with_experts_in_one(table)
        if in_one["layers/expert_down"].name((0, 0)) in files:
            return in_one
    return table


def save(directory: str | Path, config: ModelConfig, params: Params, tokenizer: Any = None) -> None:
    """Write config.json, generation_config.json, model.safetensors and, if given, the tokenizer.
    All processes call it, one writes; all return when the files are there.

    Raises ValueError where the family's config.json cannot say what `config` says; nothing is
    written then.
    """
    refuse_int8(config, "a directory is written")
    directory = Path(directory)
    flat = flatten(params)
    raw = config_to_json(config, str(flat["embed"].dtype))
    tensors: dict[str, np.ndarray] = {}
    for path, weight in weight_table(config).items():
        value = np.asarray(to_host(flat[path]))
        if not is_main():
            continue
        for place in weight.places():
            part = value[place]
            _put_tensor(tensors, weight, place, part.T if weight.transpose else part)
    if is_main():
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
        if config.head == "lm":
            special = {
                "eos_token_id": list(config.end_ids),
                "bos_token_id": config.bos_id,
                "pad_token_id": config.pad_id,
            }
            special = {key: value for key, value in special.items() if value is not None}
            (directory / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
    wait_for_all(f"{directory} is written")


def _put_tensor(
    tensors: dict[str, np.ndarray], weight: Weight, place: tuple[int, ...], value: np.ndarray
) -> None:
    """Add the tensor of a place of the stack, or the rows of it that are this weight."""
    name = weight.name(place)
    if weight.rows is None:
        tensors[name] = np.ascontiguousarray(value)
        return
    if name not in tensors:
        tensors[name] = np.empty(weight.file_shape, value.dtype)
    tensors[name][weight.rows[0] : weight.rows[0] + len(value)] = value


class _Rows:
    """The rows of a file's tensor that are a weight, counted from the first of them."""

    def __init__(self, tensor: Any, first: int):
        self.tensor, self.first = tensor, first
        self.get_dtype, self.get_shape = tensor.get_dtype, tensor.get_shape

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        rows, *others = index if isinstance(index, tuple) else (index,)
        return self.tensor[(slice(rows.start + self.first, rows.stop + self.first), *others)]


class _Expert:
    """The matrix of one expert in a file's tensor of all of them."""

    def __init__(self, tensor: Any, number: int):
        self.tensor, self.number = tensor, number
        self.get_dtype = tensor.get_dtype

    def get_shape(self) -> list[int]:
        return list(self.tensor.get_shape())[1:]

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        others = index if isinstance(index, tuple) else (index,)
        return self.tensor[(slice(self.number, self.number + 1), *others)][0]


def _part(tensor: Any, weight: Weight, place: tuple[int, ...]) -> Any:
    """What of a file's tensor is the weight at a place of its stack."""
    tensor = _Expert(tensor, place[1]) if weight.experts_in_one else tensor
    return tensor if weight.rows is None else _Rows(tensor, weight.rows[0])


def _tensor_files(directory: Path, config: ModelConfig) -> dict[str, tuple[Path, str]]:
    """Tensor name -> (file, its name there). As in transformers, model.safetensors goes before an
    index."""
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file() and not (directory / names[0]).is_file():
        names = _listed(index)
    found: dict[str, tuple[Path, str]] = {}
    for file in names:
        path = directory / file
        if path.parent != directory or not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; weights must be safetensors (pickled *.bin files are never read)"
            )
        for stored in open_tensors(path).keys():  # noqa: SIM118
            name = _name(stored, config)
            if name in found:
                raise ValueError(
                    f"{path}: tensor {stored!r} is also in {found[name][0].name}; each tensor may"
                    " stand once"
                )
            found[name] = path, stored
    return found


_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\\]{1,255}")


def _listed(index: Path) -> list[str]:
    """The files that an index names."""
    weights = read_object(index).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{index}: weight_map is {weights!r:.60}, an object of files is needed")
    files = list(weights.values())
    if not all(isinstance(file, str) for file in files):
        raise ValueError(f"{index}: weight_map: the name of a file is needed for each tensor")
    for file in files:
        if not _FILE_NAME.fullmatch(file) or not file.isprintable() or len(file.encode()) > 255:
            raise ValueError(
                f"{index}: weight_map: {file!r:.60} is no name of a file beside it: expected one"
                " such as model-00001-of-00002.safetensors"
            )
    return sorted(set(files))


def open_tensors(path: Path) -> Any:
    """An open safetensors file. Raises ValueError for one that is damaged or was cut short."""
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: not a whole safetensors file ({reason}); was its download cut short? get it"
            " again"
        ) from None


def _name(stored: str, config: ModelConfig) -> str:
    """The name of a tensor in a causal LM. A bare trunk is saved without "model.", a value head
    may be saved with TRL's wrapper around the model."""
    if config.head == "value":
        return stored.removeprefix("pretrained_model.")
    if config.head == "none" and not stored.startswith(("model.", "lm_head.")):
        return f"model.{stored}"
    return stored


def _check_tensors(
    directory: Path,
    config: ModelConfig,
    table: dict[str, Weight],
    files: dict[str, tuple[Path, str]],
) -> list[str]:
    """Names of the tensors that will be skipped, "*" for a layer's number."""
    expected: dict[str, tuple[int, ...]] = {}
    for weight in table.values():
        if weight.hf:
            expected |= dict.fromkeys(map(weight.name, weight.places()), weight.file_shape)
    unused_head = {"lm_head.weight"} if "head" not in table else set()
    hints = {
        "score.": "; a PRM needs its head score.0, score.2",
        "v_head.": "; a PRM of this architecture needs v_head.summary",
    }
    for name, shape in expected.items():
        if name not in files:
            hint = next((text for start, text in hints.items() if name.startswith(start)), "")
            raise ValueError(f"{directory}: weight {name} of shape {list(shape)} is missing{hint}")
    skipped = []
    for name in files:
        if name in unused_head or name.endswith(HARMLESS):
            skipped.append(re.sub(r"\.\d+\.", ".*.", name))
        elif name not in expected:
            raise ValueError(
                f"{directory}: weight {name} is not part of this {config.model_type} model (head"
                f" {config.head!r})"
            )
    for path in sorted({path for path, _ in files.values()}):
        with open_tensors(path) as handle:
            for stored in handle.keys():  # noqa: SIM118
                name, tensor = _name(stored, config), handle.get_slice(stored)
                found = tuple(tensor.get_shape())
                if name in expected and found != expected[name]:
                    raise ValueError(
                        f"{path}: weight {name} has shape {list(found)}, config.json asks for"
                        f" {list(expected[name])}"
                    )
                if name in expected and tensor.get_dtype() not in ITEM_BYTES:
                    raise ValueError(
                        f"{path}: weight {name} is {tensor.get_dtype()}, known are"
                        f" {', '.join(ITEM_BYTES)}"
                    )
    return sorted(set(skipped))


def _load_weight(
    weight: Weight, read: Callable[[str], Any], dtype: Any, mesh: Mesh | None
) -> jax.Array:
    if mesh is None:
        return _load_part(weight, read, [(0, size) for size in weight.shape], dtype, None)
    layout = sharding(mesh, weight.axes, weight.shape)
    parts: dict[tuple[tuple[int, int], ...], jax.Array] = {}
    held = []
    for device, bounds in _bounds_of_devices(weight, mesh):
        # A part that several devices hold is read once. Only its own device takes part in filling
        # it, whatever mesh is set.
        if bounds not in parts:
            with jax.set_mesh(make_mesh(devices=[device])):
                parts[bounds] = _load_part(weight, read, list(bounds), dtype, device)
        held.append(jax.device_put(parts[bounds], device))
    return jax.make_array_from_single_device_arrays(weight.shape, layout, held)


def _bounds_of_devices(
    weight: Weight, mesh: Mesh | None
) -> list[tuple[Any, tuple[tuple[int, int], ...]]]:
    """(device, bounds of what it holds of the weight) for each device of this process; without a
    mesh all of it, and no device."""
    if mesh is None:
        return [(None, tuple((0, size) for size in weight.shape))]
    layout = sharding(mesh, weight.axes, weight.shape)
    return [
        (device, tuple(axis.indices(size)[:2] for axis, size in zip(index or (), weight.shape)))
        for device, index in layout.addressable_devices_indices_map(weight.shape).items()
    ]


def _load_part(
    weight: Weight, read: Callable[[str], Any], bounds: Bounds, dtype: Any, device: Any
) -> jax.Array:
    """The part of our (stacked, transposed) array within `bounds`, filled on its device block by
    block: the host never holds more than a block of it. Raises NotFinite."""
    part = jnp.zeros([end - begin for begin, end in bounds], dtype, device=device)
    inside = bounds[weight.depth :]
    for place in weight.places(bounds):
        name = weight.name(place)
        tensor = _part(read(name), weight, place)
        (begin, end), *others = reversed(inside) if weight.transpose else inside
        row_bytes = int(np.prod([b - a for a, b in others])) * ITEM_BYTES[tensor.get_dtype()]
        rows = min(max(BLOCK_BYTES // row_bytes, 1), end - begin)
        for first in range(begin, end, rows):
            first = min(first, end - rows)  # the last block overlaps: one shape, one program
            block = tensor[(slice(first, first + rows), *(slice(a, b) for a, b in others))]
            start = [0] * len(inside)
            start[-1 if weight.transpose else 0] = first - begin
            start = [at - begins for at, (begins, _) in zip(place, bounds)] + start
            if not is_finite(block):
                raise NotFinite(name)
            # Waited for, because blocks that wait to be written would pile up on the host.
            part = jax.block_until_ready(
                _write(part, block, tuple(map(np.int32, start)), transpose=weight.transpose)
            )
    return part


def _load_int8(
    weight: Weight, scale: Weight, read: Callable[[str], Any], mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """(int8 weight, its scales), laid out. A channel is a row of the file's tensor: each process
    reads the whole of those that its devices hold a part of, once, a block at a time, rounds them
    on the host and gives every device its part. Raises NotFinite."""
    held = _bounds_of_devices(weight, mesh)
    channel_axis = len(weight.shape) - (1 if weight.transpose else 2)
    scales = np.zeros(scale.shape, np.float32)
    scales = scales if weight.stacked else scales[None]
    filled: dict[tuple[tuple[int, int], ...], jax.Array] = {}
    owner = {bounds: device for device, bounds in reversed(held)}
    for bounds, device in owner.items():
        shape = [end - begin for begin, end in bounds]
        filled[bounds] = jnp.zeros(shape, jnp.int8, device=device)
    for begin, end in sorted({bounds[channel_axis] for bounds in owner}):
        parts = [bounds for bounds in owner if bounds[channel_axis] == (begin, end)]
        for layer in range(weight.shape[0]) if weight.stacked else (0,):
            tensor = _part(read(weight.hf.format(layer)), weight, (layer,))
            width = tensor.get_shape()[1]
            rows = max(BLOCK_BYTES // (width * ITEM_BYTES[tensor.get_dtype()]), 1)
            rows = min(rows, end - begin)
            for first in range(begin, end, rows):
                first = min(first, end - rows)  # as in `_load_part`
                block = tensor[first : first + rows]
                if not is_finite(block):
                    raise NotFinite(weight.hf.format(layer))
                rounded, scales[layer, first : first + rows] = quantise(block)
                for bounds in parts:
                    filled[bounds] = _put_rows(
                        filled[bounds], rounded, weight, bounds, (layer, first), owner[bounds]
                    )
    scales = scales.reshape(scale.shape)
    if mesh is None:
        return filled[held[0][1]], jnp.asarray(scales)
    layout = sharding(mesh, weight.axes, weight.shape)
    return (
        jax.make_array_from_single_device_arrays(
            weight.shape, layout, [jax.device_put(filled[bounds], d) for d, bounds in held]
        ),
        jax.make_array_from_callback(
            scale.shape, sharding(mesh, scale.axes, scale.shape), lambda index: scales[index]
        ),
    )


def _put_rows(
    part: jax.Array,
    block: np.ndarray,
    weight: Weight,
    bounds: tuple[tuple[int, int], ...],
    place: tuple[int, int],
    device: Any,
) -> jax.Array:
    """`part`, which lies within `bounds` of the weight, with whole rows of a file's tensor
    written into it: `place` is their layer and the number of the first."""
    layer, first = place
    if weight.stacked and not bounds[0][0] <= layer < bounds[0][1]:
        return part
    channel, summed = (-1, -2) if weight.transpose else (-2, -1)
    start = [0, 0]
    start[channel] = first - bounds[channel][0]
    where = [layer - bounds[0][0], *start] if weight.stacked else start
    block = block[:, slice(*bounds[summed])]
    with contextlib.nullcontext() if device is None else jax.set_mesh(make_mesh(devices=[device])):
        return jax.block_until_ready(
            _write(part, block, tuple(map(np.int32, where)), transpose=weight.transpose)
        )


def is_finite(block: np.ndarray) -> bool:
    """Whether all values of a float array are finite. On two bytes by the bits: numpy's own test is
    ten times slower there."""
    if block.dtype.itemsize != 2:
        return bool(np.isfinite(block).all())
    infinity = 0x7C00 if block.dtype == np.float16 else 0x7F80  # of bfloat16
    return block.size == 0 or int((block.view(np.uint16) & 0x7FFF).max()) < infinity


@functools.partial(jax.jit, donate_argnums=0, static_argnames="transpose")
def _write(
    part: jax.Array, block: jax.Array, start: tuple[jax.Array, ...], *, transpose: bool
) -> jax.Array:
    block = (block.T if transpose else block).astype(part.dtype)
    return jax.lax.dynamic_update_slice(
        part, block.reshape((1,) * (part.ndim - block.ndim) + block.shape), start
    )
