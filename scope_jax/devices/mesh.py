"""The device mesh, the table from logical axes to mesh axes, and the moves between host and
device.

Library code names *logical* axes; `RULES` is the only place that says where they live. All
functions also work without a mesh (one device, nothing to constrain), so that a notebook can call
a model with plain arrays.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scope_jax.devices.current import current_mesh
from scope_jax.devices.programs import wait_on_cpu

AXES = ("data", "fsdp", "tensor")
# The axes of a mesh on which experts are split. Without that, it has the three above.
AXES_WITH_EXPERTS = ("data", "fsdp", "expert", "tensor")
# Mesh axes over which weights are split for memory alone: each is whole again where it is used.
# (Experts stay where they are: `partition_spec`.)
GATHERED = ("fsdp", "expert")

# Logical axis -> mesh axes. The vocabulary is split over fsdp too: with the head split on its D
# axis, every chunk of the log-prob loop would gather the whole head again. Where a mesh has an
# axis of experts, rows and what is no expert are split over it as over fsdp.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    # Rows while log-probs are computed: the fsdp devices hold parts of the vocabulary instead of
    # rows.
    "loss_batch": ("data",),
    "vocab": ("fsdp", "expert", "tensor"),
    "embed": ("fsdp", "expert"),
    "expert": ("expert",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


# A model of more weights than this has products that fill several cores by themselves.
SMALL_MODEL = 8_000_000


def use_cpu_cores(weights: int = 0, most: int = 8) -> None:
    """Make each core a CPU device of its own, at most `most`, if the programs will run on CPU and
    the model is small; one device of all cores where it has more than SMALL_MODEL `weights` (0:
    not known, taken for few). For entry points, before the first device is asked for, and before
    other processes are joined; JAX_NUM_CPU_DEVICES or XLA's own flag overrule it.

    XLA runs many of a program's small operations on one thread: with rows split over devices,
    every core has work. With large products that is of no use, each device holds all weights, and
    the gradient is summed over devices, in an order that depends on their number.
    """
    given = (
        "JAX_NUM_CPU_DEVICES" in os.environ
        or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    if not given:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        jax.config.update("jax_num_cpu_devices", 1 if weights > SMALL_MODEL else min(cores, most))


def _axes_and_shape(
    data: int, fsdp: int, tensor: int, expert: int
) -> tuple[tuple[str, ...], list[int]]:
    """Names and sizes of a mesh's axes: that of experts is one only where it is asked for."""
    if expert == 1:
        return AXES, [data, fsdp, tensor]
    return AXES_WITH_EXPERTS, [data, fsdp, expert, tensor]


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
    *,
    expert: int = 1,
) -> Mesh:
    """A ("data", "fsdp", "tensor") mesh, or ("data", "fsdp", "expert", "tensor") where `expert` is
    not 1; one size may be -1 (whatever is left).

    Raises ValueError when the product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    axes, shape = _axes_and_shape(data, fsdp, tensor, expert)
    if shape.count(-1) > 1:
        raise ValueError(f"mesh {shape}: at most one of {', '.join(axes)} may be -1")
    if -1 in shape:
        known = -int(np.prod(shape))
        shape[shape.index(-1)] = max(len(devices) // known, 1)
    if int(np.prod(shape)) != len(devices):
        hint = (
            "; JAX_NUM_CPU_DEVICES sets their number on CPU" if devices[0].platform == "cpu" else ""
        )
        raise ValueError(
            f"mesh {' x '.join(axes)} = {shape} needs {int(np.prod(shape))} devices,"
            f" {len(devices)} are here{hint}"
        )
    # `jax.make_mesh` would refuse to split a side of the torus, such as 4 x 4 x 4 on a slice of 8
    # x 8, but on v5e.
    placed = mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=True)
    return Mesh(placed, axes, axis_types=(AxisType.Auto,) * len(axes))


def mesh_of(sizes: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """`make_mesh` of settings with the attributes data, fsdp, tensor and expert."""
    return make_mesh(sizes.data, sizes.fsdp, sizes.tensor, devices, expert=sizes.expert)


def reshape_mesh(mesh: Mesh, data: int, fsdp: int, tensor: int, expert: int = 1) -> Mesh:
    """A mesh of the same devices in the same order; one size may be -1. Raises ValueError where
    the product is another."""
    axes, shape = _axes_and_shape(data, fsdp, tensor, expert)
    given = list(shape)
    if shape.count(-1) == 1 and mesh.size % -math.prod(shape) == 0:
        shape[shape.index(-1)] = mesh.size // -math.prod(shape)
    if min(shape) < 1 or math.prod(shape) != mesh.size:
        raise ValueError(
            f"mesh {' x '.join(axes)} = {given} does not hold the {mesh.size} devices of the run"
        )
    return Mesh(mesh.devices.reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))


def own_mesh(mesh: Mesh, shape: dict[str, int | None], setting: str) -> Mesh:
    """The mesh of a model beside the policy: the run's devices in `shape`, or the run's mesh where
    it names no size. Raises ValueError, naming the setting, where the devices do not fit."""
    if not any(shape.values()):
        return mesh
    sizes = {axis: size or int(axis == "expert") for axis, size in shape.items()}
    try:
        return reshape_mesh(mesh, **sizes)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def partition_spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    sizes: dict[str, int],
    drop: Sequence[str] = (),
) -> PartitionSpec:
    """The spec of an array with logical `axes`. A mesh axis is left out where the mesh lacks it,
    where it does not divide the dimension, where an earlier dimension has it, and where it is in
    `drop`, which does not hold for experts: they stay on their devices."""
    entries: list[Any] = []
    used: set[str] = set()
    for name, extent in zip(axes, shape, strict=True):
        kept: list[str] = []
        for mesh_axis in RULES.get(name, ()) if name else ():
            if mesh_axis not in sizes or (mesh_axis in drop and name != "expert"):
                continue
            size = sizes[mesh_axis]
            if (
                mesh_axis not in used
                and extent % (size * int(np.prod([sizes[a] for a in kept]))) == 0
            ):
                kept.append(mesh_axis)
        used.update(kept)
        entries.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    return PartitionSpec(*entries)


def constrain(array: jax.Array, *axes: str | None, drop: Sequence[str] = ()) -> jax.Array:
    """Ask the partitioner to lay `array` out by its logical axes; does nothing where no mesh is
    set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return array
    spec = partition_spec(axes, array.shape, dict(mesh.shape), drop)
    return jax.lax.with_sharding_constraint(array, spec)


def by_device(
    function: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    axes: Sequence[Sequence[str | None]],
    out: Sequence[str | None],
) -> jax.Array:
    """`function(*arrays)`, run on each device with its own part of arrays with these logical axes,
    so that no device needs anything of another; the result is shaped like the first of them, and
    `out` are its axes. For kernels that the partitioner cannot look into."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    sizes = dict(mesh.shape)
    specs = [partition_spec(a, x.shape, sizes) for a, x in zip(axes, arrays, strict=True)]
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(specs),
        out_specs=partition_spec(out, arrays[0].shape, sizes),
        check_vma=False,
    )
    return run(*arrays)


def parts(axes: Sequence[str | None], shape: Sequence[int]) -> int:
    """In how many parts an array with logical `axes` lies on the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    entries = partition_spec(axes, shape, dict(mesh.shape))
    return math.prod(
        mesh.shape[axis]
        for entry in entries
        for axis in ((entry,) if isinstance(entry, str) else entry or ())
    )


def row_parts(rows: int) -> int:
    """How many devices of the mesh that is set an array of `rows` rows is split over."""
    return parts(("batch",), (rows,))


def row_devices(mesh: Mesh | None = None) -> int:
    """How many devices rows are split over on `mesh` (None: the mesh that is set)."""
    mesh = mesh or current_mesh()
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"])


def sharding(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], drop: Sequence[str] = ()
) -> NamedSharding:
    """The NamedSharding of an array with logical `axes` on `mesh`."""
    return NamedSharding(mesh, partition_spec(axes, shape, dict(mesh.shape), drop))


def put_rows(tree: Any, mesh: Mesh | None = None) -> Any:
    """Host arrays whose first axis is B -> device arrays split over the batch axes of the mesh (or
    on the default device)."""
    mesh = mesh or current_mesh()

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        if mesh is None:
            return jnp.asarray(array)
        layout = sharding(mesh, ("batch",) + (None,) * (array.ndim - 1), array.shape)
        if jax.process_count() == 1:
            return jax.device_put(array, layout)
        return jax.make_array_from_callback(array.shape, layout, lambda index: array[index])

    return jax.tree.map(put, tree)


def to_mesh(tree: Any, mesh: Mesh) -> Any:
    """Device arrays laid out on another mesh of the same devices: those whose first axis the batch
    axes can split by rows, keys and scalars on every device. Other leaves stay what they are. With
    several processes, an array that lies on the devices of one of them has the same values on
    each."""

    def move(array: Any) -> Any:
        if not isinstance(array, jax.Array):
            return array
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            # By their bits: a key of one process alone cannot be laid out over the devices of
            # others.
            bits = place(jax.random.key_data(array), (None,) * (array.ndim + 1))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(array))
        return place(array, ("batch", *(None,) * (array.ndim - 1))[: array.ndim])

    def place(array: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        layout = sharding(mesh, axes, array.shape)
        if jax.process_count() > 1 and array.is_fully_addressable:
            values = np.asarray(array)
            return jax.make_array_from_callback(array.shape, layout, lambda index: values[index])
        return wait_on_cpu(jax.device_put(array, layout))

    return jax.tree.map(move, tree)


def to_host_memory(tree: Any) -> Any:
    """Device arrays moved into the memory of the hosts that their devices belong to, laid out as
    they are."""
    return jax.tree.map(
        lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), tree
    )


def to_device_memory(tree: Any) -> Any:
    """Arrays in host memory brought back to their devices; the others are the same arrays."""

    def move(x: Any) -> Any:
        if isinstance(x, jax.Array) and x.sharding.memory_kind == "pinned_host":
            return jax.device_put(x, x.sharding.with_memory_kind("device"))
        return x

    return jax.tree.map(move, tree)


def to_host(tree: Any) -> Any:
    """Device arrays -> numpy arrays of the same values, whole, on every process. All processes
    call it with the same arrays."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def everywhere(array: Any) -> Any:
        if (
            not isinstance(array, jax.Array)
            or array.is_fully_addressable
            or array.is_fully_replicated
        ):
            return array
        assert isinstance(array.sharding, NamedSharding)
        return jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec()))

    return jax.device_get(jax.tree.map(everywhere, tree))


def assert_sharded(tree: Any, expected: Any) -> None:
    """Raise ValueError naming the first leaf whose sharding is not the expected one (silently
    replicated weights)."""
    for (path, leaf), want in zip(
        jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        if not leaf.sharding.is_equivalent_to(want, leaf.ndim):
            raise ValueError(
                f"{jax.tree_util.keystr(path)}: laid out as {leaf.sharding.spec}, should be"
                f" {want.spec}"
            )
