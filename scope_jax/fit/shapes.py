"""Shapes, types and layouts of what a run holds, in place of the arrays."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scope_jax import learning, models
from scope_jax.configuration import TrainConfig
from scope_jax.devices.current import platform
from scope_jax.devices.mesh import GATHERED, sharding
from scope_jax.learning.update import TrainState
from scope_jax.models.decoder import decode_form
from scope_jax.models.weights import abstract, flatten, nest, shardings, table_shardings
from scope_jax.rollout import Request, SampleSpec
from scope_jax.types import Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """Shapes of who takes part."""

    policy: models.ModelConfig
    teacher: models.ModelConfig | None = None
    prm: models.ModelConfig | None = None


def with_weights(found: Models, kept: dict[str, Any]) -> Models:
    """Teacher and PRM with their weights as `kept` says (`ModelConfig.weights`)."""
    changed = {
        who: dataclasses.replace(model, weights=weights)
        for who, weights in kept.items()
        if (model := getattr(found, who)) is not None
    }
    return dataclasses.replace(found, **changed)


def row_struct(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Any:
    """An array of rows, split over the batch axes of the mesh."""
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=sharding(mesh, ("batch",) + (None,) * (len(shape) - 1), shape)
    )


def whole(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Any:
    """An array that every device has all of."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def request_structs(rows: int, buffer: int, stop: tuple[int, ...] | None, mesh: Mesh) -> Request:
    """A request to continue `rows` rows of `buffer` positions; `stop`: shape of a stop table."""
    return Request(
        rollout=row_structs(rows, buffer, mesh),
        key=whole((), jax.eval_shape(lambda: jax.random.key(0)).dtype, mesh),
        stream=whole((), jnp.int32, mesh),
        owner=whole((), jnp.int8, mesh),
        limit_B=whole((rows,), jnp.int32, mesh),
        stop=None if stop is None else whole(stop, jnp.int32, mesh),
    )


def row_structs(rows: int, buffer: int, mesh: Mesh) -> Rollout:
    """A `Rollout` of `rows` rows of `buffer` positions."""
    struct = functools.partial(row_struct, mesh=mesh)
    return Rollout(
        tokens_BT=struct((rows, buffer), jnp.int32),
        owner_BT=struct((rows, buffer), jnp.int8),
        logp_BT=struct((rows, buffer), jnp.float32),
        length_B=struct((rows,), jnp.int32),
        prompt_length_B=struct((rows,), jnp.int32),
        finished_B=struct((rows,), jnp.bool_),
        row_id_B=struct((rows,), jnp.int32),
    )


def decoding(
    config: models.ModelConfig, dtype: Any, sampling: SampleSpec, mesh: Mesh
) -> dict[str, Any]:
    """How a cache is kept and read on the devices of a mesh; for `rollout.decode_spec`."""
    with jax.set_mesh(mesh):
        return {
            "form": decode_form(config, dtype, sampling.cache == "int8"),
            "on_gpu": platform() == "gpu",
        }


def for_decoding(config: models.ModelConfig, weights: models.Params, mesh: Mesh) -> models.Params:
    """`weights` in the layout that `models.decode_layout` gives them."""

    def place(x: Any, layout: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)

    return jax.tree.map(place, weights, shardings(config, mesh, GATHERED))


def train_state(
    config: TrainConfig, model: models.ModelConfig, dtype: Any, mesh: Mesh
) -> TrainState:
    """The state that `Learner` starts with: weights (or adapters) as they are kept, and the
    optimiser's moments laid out like them. `dtype`: what the weights are used in."""
    lora = config.lora.spec
    trained = abstract(
        model, jnp.float32 if config.training.master_weights == "float32" else dtype, mesh
    )
    if lora is not None:
        table = models.lora_table(model, lora)
        layouts = flatten(table_shardings(table, mesh))
        trained = nest(
            {
                path: jax.ShapeDtypeStruct(w.shape, jnp.float32, sharding=layouts[path])
                for path, w in table.items()
            }
        )
    optimizer = learning.make_optimizer(config.optimizer)
    number = whole((), jnp.int32, mesh)
    moments = laid_out_like(jax.eval_shape(optimizer.init, trained), trained, mesh)
    return TrainState(trained, moments, number, number, number)


def laid_out_like(state: Any, trained: models.Params, mesh: Mesh) -> Any:
    """An optimiser's state with the layout that `init_state` gives it: moments that of their
    weights, the factors `row` and `column` of one that of its dimensions without the last or the
    one before, all others whole on every device."""
    by_path = {tuple(path.split("/")): leaf for path, leaf in flatten(trained).items()}

    def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        names = tuple(
            str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
        )
        spec = PartitionSpec()
        for start in range(len(names)):
            weight, factored = by_path.get(names[start:]), by_path.get(names[start:-1])
            if weight is not None and weight.shape == leaf.shape:
                spec = weight.sharding.spec
                break
            if factored is not None and names[-1] in ("row", "column"):
                axis = -1 if names[-1] == "row" else -2
                entries = [
                    *factored.sharding.spec,
                    *(None,) * (len(factored.shape) - len(factored.sharding.spec)),
                ]
                del entries[axis]
                spec = PartitionSpec(*entries)
                break
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, state)
