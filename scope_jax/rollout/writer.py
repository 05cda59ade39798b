"""A model that continues rows, wherever its weights lie: on the mesh of the run, on one of its own, or parked in host memory."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from scope_jax.mesh import at_hand, current_mesh, onto
from scope_jax.models.config import ModelConfig
from scope_jax.models.weights import Params
from scope_jax.rollout.generate import generate
from scope_jax.rollout.sampling import SampleSpec
from scope_jax.types import Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """The policy of the moment, or the teacher. `params`: laid out for decoding (`models.relay`); parked ones (`mesh.park`) are
    brought to the devices for each call. `mesh`: of the same devices in another shape (None: the mesh that is set)."""

    params: Params
    config: ModelConfig
    mesh: Mesh | None = None

    def write(self, rows: Rollout, key: jax.Array, spec: SampleSpec, **options: Any) -> Rollout:
        """`rollout.generate` by this model; the rows come back on the mesh that is set."""
        params, home = at_hand(self.params), current_mesh()
        if self.mesh is None or home is None or self.mesh == home:
            return generate(params, self.config, rows, key, spec, **options)
        with jax.set_mesh(self.mesh):
            rows, key, options = onto((rows, key, options), self.mesh)
            out = generate(params, self.config, rows, key, spec, **options)
        return onto(out, home)
