"""A model that continues rows, wherever its weights are: on the mesh of the run, on one of its own,
or in host memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from scope_jax.devices.current import current_mesh
from scope_jax.devices.mesh import constrain, to_device_memory, to_mesh
from scope_jax.devices.programs import program
from scope_jax.devices.shapes import part_size
from scope_jax.models.config import ModelConfig
from scope_jax.models.weights import Params
from scope_jax.rollout.generate import make_request, run_request
from scope_jax.rollout.sampling import SampleSpec
from scope_jax.types import Owner, Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A model that writes: the policy at this step, or the teacher."""

    # Laid out for decoding (`models.decode_layout`). Weights in host memory are brought to the
    # devices for each call.
    params: Params
    config: ModelConfig
    # Of the run's devices in another shape; None: the mesh that is set.
    mesh: Mesh | None = None

    def extend(
        self,
        rows: Rollout,
        key: jax.Array,
        spec: SampleSpec,
        *,
        shared_prefix: int = 1,
        owner: Owner = Owner.POLICY,
        stream: int = 0,
        limit_B: jax.Array | None = None,
        at_once: int | None = None,
    ) -> Rollout:
        """`rollout.generate` by this model; the rows come back on the mesh that is set. `limit_B`
        (int32[B]): a row's length never passes it. `at_once`: at most this many rows are prefilled
        and decoded together, in parts of equal size (None: all). The tokens do not depend on it."""

        def extend_here(rows: Rollout, key: jax.Array, limit_B: jax.Array | None) -> Rollout:
            params, parts = to_device_memory(self.params), []
            B = rows.tokens_BT.shape[0]
            size = part_size(B, at_once, shared_prefix)
            for start in range(0, B, size):
                part, limit = rows, limit_B
                if size < B:
                    part, limit = _take_part((rows, limit_B), start, size)
                request = make_request(part, key, spec, owner=owner, stream=stream, limit_B=limit)
                parts.append(run_request(params, self.config, request, spec, shared_prefix))
            return parts[0] if len(parts) == 1 else _join_parts(parts)

        home = current_mesh()
        if self.mesh is None or home is None or self.mesh == home:
            return extend_here(rows, key, limit_B)
        with jax.set_mesh(self.mesh):
            rows = extend_here(*to_mesh((rows, key, limit_B), self.mesh))
        return to_mesh(rows, home)


@functools.partial(program, static_argnames="size")
def _take_part(tree: Any, start: int, size: int) -> Any:
    def take(x: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(x, start, size)
        return constrain(part, "batch", *(None,) * (x.ndim - 1))

    return jax.tree.map(take, tree)


@program
def _join_parts(parts: list[Rollout]) -> Rollout:
    def join(*x: jax.Array) -> jax.Array:
        return constrain(jnp.concatenate(x), "batch", *(None,) * (x[0].ndim - 1))

    return jax.tree.map(join, *parts)
