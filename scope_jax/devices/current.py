"""Where programs run now: the mesh that is set, or the default device."""

import jax
from jax.sharding import Mesh


def current_mesh() -> Mesh | None:
    """The mesh entered with `jax.set_mesh`, or None. Not for use inside jit."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def platform() -> str:
    """Either "cpu", "tpu" or "gpu": that of the mesh that is set, else of the default device. Not
    for use inside jit."""
    mesh = current_mesh()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
