"""How much memory a device has, and how much of it arrays take."""

import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from scope_jax.devices.chips import chip_of

# Of a machine's memory that programs on its CPU devices are planned for: the host's own data, the
# compiler and other programs need some too.
CPU_SHARE = 0.5
# Where a container's own limit stands.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def local_bytes(tree: Any) -> float:
    """Bytes that one device holds of a tree of laid-out arrays or shapes."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )


def on_device(tree: Any) -> Any:
    """The arrays of a tree that are not parked in host memory, as a list."""
    return [x for x in jax.tree.leaves(tree) if x.sharding.memory_kind != "pinned_host"]


def device_memory(mesh: Mesh) -> float | None:
    """Bytes of memory that programs have on each device of a mesh; None where nothing says.

    What the device itself allows, else what its maker publishes; of a CPU device its part of
    `CPU_SHARE` of the machine's memory, or of its container's."""
    found = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    device = found[0] if found else mesh.devices.flat[0]
    if device.platform == "cpu":
        return CPU_SHARE * _machine_memory() / jax.local_device_count()
    try:
        stats = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:  # a device that is only described
        stats = {}
    chip = chip_of(device.device_kind)
    return float(stats["bytes_limit"]) if "bytes_limit" in stats else chip.hbm if chip else None


def _machine_memory() -> float:
    """Bytes of memory of this machine, or those that its container may use."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        if (path := Path(name)).is_file() and (text := path.read_text().strip()).isdigit():
            sizes.append(int(text))
    return float(min(sizes))
