"""Where programs run now: the mesh that is set, or the default device."""

from typing import Any

import jax
from jax.sharding import Mesh


def current_mesh() -> Mesh | None:
    """The mesh entered with `jax.set_mesh`, or None. Not for use inside jit."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def first_device() -> Any:
    """Of the mesh that is set, else the default device. Not for use inside jit."""
    mesh = current_mesh()
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def platform() -> str:
    """Either "cpu", "tpu" or "gpu": that of `first_device`. Not for use inside jit."""
    name = first_device().platform
    return name if name in ("cpu", "tpu") else "gpu"
