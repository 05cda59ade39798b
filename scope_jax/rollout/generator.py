"""A model that continues rows, wherever its weights lie: on the mesh of the run, on one of its
own, or parked in host memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from scope_jax.devices.hosts import settle
from scope_jax.devices.mesh import constrain, current_mesh, to_device_memory, to_mesh
from scope_jax.models.config import ModelConfig
from scope_jax.models.weights import Params
from scope_jax.rollout.generate import generate
from scope_jax.rollout.sampling import SampleSpec
from scope_jax.types import Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """The policy of the moment, or the teacher. `params`: laid out for decoding (`models.decode_layout`);
    parked ones (`mesh.to_host_memory`) are brought to the devices for each call. `mesh`: of the same devices
    in another shape (None: the mesh that is set)."""

    params: Params
    config: ModelConfig
    mesh: Mesh | None = None

    def extend(
        self, rows: Rollout, key: jax.Array, spec: SampleSpec, *, at_once: int = 0, **options: Any
    ) -> Rollout:
        """`rollout.generate` by this model; the rows come back on the mesh that is set. `at_once`:
        so many rows are prefilled and decoded at a time at the most, in parts of equal size (0:
        all); what is written does not depend on it."""
        params, home = to_device_memory(self.params), current_mesh()
        if self.mesh is None or home is None or self.mesh == home:
            return self._write(params, rows, key, spec, at_once, **options)
        with jax.set_mesh(self.mesh):
            rows, key, options = to_mesh((rows, key, options), self.mesh)
            out = self._write(params, rows, key, spec, at_once, **options)
        return to_mesh(out, home)

    def _write(
        self,
        params: Params,
        rows: Rollout,
        key: jax.Array,
        spec: SampleSpec,
        at_once: int,
        *,
        limit_B: jax.Array | None = None,
        **options: Any,
    ) -> Rollout:
        B = rows.tokens_BT.shape[0]
        size = part_size(B, at_once, options.get("shared_prefix", 1))
        if size == B:
            return generate(params, self.config, rows, key, spec, limit_B=limit_B, **options)
        parts = []
        for start in range(0, B, size):
            part, limit = settle(_part((rows, limit_B), start, size))
            parts.append(
                settle(generate(params, self.config, part, key, spec, limit_B=limit, **options))
            )
        return _together(parts)


def part_size(rows: int, at_once: int, shared: int = 1) -> int:
    """The largest number of rows up to `at_once` that divides `rows` and is a multiple of
    `shared`; all where `at_once` is 0, and `shared` where there is none."""
    sizes = [size for size in range(shared, min(at_once, rows) + 1, shared) if rows % size == 0]
    return rows if not at_once else max(sizes, default=shared)


@functools.partial(jax.jit, static_argnames="size")
def _part(tree: Any, start: int, size: int) -> Any:
    pick = lambda x: constrain(
        jax.lax.dynamic_slice_in_dim(x, start, size), "batch", *(None,) * (x.ndim - 1)
    )
    return jax.tree.map(pick, tree)


@jax.jit
def _together(parts: list[Rollout]) -> Rollout:
    return jax.tree.map(
        lambda *x: constrain(jnp.concatenate(x), "batch", *(None,) * (x[0].ndim - 1)), *parts
    )
