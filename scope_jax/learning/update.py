"""One optimiser step: weighted loss sums over micro-batches, gradients in the parameters' layout,
guarded update."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from scope_jax.devices.current import current_mesh
from scope_jax.devices.mesh import constrain
from scope_jax.devices.programs import Program, program
from scope_jax.learning.losses import LossSpec, merge_stats
from scope_jax.learning.objectives import Loss, policy_objective
from scope_jax.learning.optimizer import OptimizerSpec, make_optimizer
from scope_jax.learning.packing import split_rows
from scope_jax.models import LoraSpec, ModelConfig, Params, for_device, in_dtype, lora_table
from scope_jax.models.weights import Weight, refuse_int8, weight_table

Batch = dict[str, jax.Array]
Stats = dict[str, jax.Array]
# (loss, statistics, gradient), summed over micro-batches
Sums = tuple[jax.Array, Stats, Params]


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes."""

    params: Params  # in the dtype they are kept in, which may be wider than the one in use
    opt_state: Any
    updates: jax.Array  # int32; updates taken
    skipped: jax.Array  # int32; updates left out for non-finite gradients
    skipped_in_row: jax.Array  # int32; the latest unbroken run of those


def init_state(
    params: Params, optimizer: optax.GradientTransformation, dtype: Any = None
) -> TrainState:
    """A fresh state around (a copy of) `params`, kept in `dtype` (None: their own): updates donate
    their state, and the caller may go on using its arrays. Moments are laid out like their
    parameters, counters on every device of the mesh that is set."""
    params = jax.tree.map(
        lambda w: jnp.copy(w) if dtype in (None, w.dtype) else w.astype(dtype), params
    )
    updates, skipped, skipped_in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    state = TrainState(params, optimizer.init(params), updates, skipped, skipped_in_row)
    mesh = current_mesh()
    if mesh is None:
        return state
    everywhere = NamedSharding(mesh, PartitionSpec())

    def lay_out(x: jax.Array) -> jax.Array:
        laid_out = isinstance(x.sharding, NamedSharding) and x.ndim > 0
        return x if laid_out else jax.device_put(x, everywhere)

    return jax.tree.map(lay_out, state)


def abstract_state(state: TrainState) -> TrainState:
    """Shapes, dtypes and layouts of a state, to restore a checkpoint into."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def computing(params: Params, dtype: Any) -> Params:
    """The weights as a loss uses them: in `dtype`, except for the embedding and the head. Many
    tokens of a batch add to the same row of those, so they stay in the dtype they are kept in, and
    their gradients are summed in it (the decoder casts what it takes)."""
    return {
        name: part if name in ("embed", "head") else in_dtype(part, dtype)
        for name, part in params.items()
    }


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimiser step as compiled programs, from `make_update`."""

    micro_batches: int
    whole: Program  # (state, batch, scalars) -> (state, statistics): all of it
    # The same in parts, for batches of several widths.
    begin: Program  # (params, batch, scalars) -> Sums of zeros
    add: Program  # (Sums, params, batch, scalars) -> Sums
    end: Program  # (state, Sums) -> (state, statistics)

    def __call__(
        self, state: TrainState, batch: Batch | Sequence[Batch], scalars: dict[str, Any]
    ) -> tuple[TrainState, Stats]:
        batches = [batch] if isinstance(batch, dict) else batch
        for part in batches:
            rows = min(len(x) for x in part.values())
            if rows % self.micro_batches:
                raise ValueError(
                    f"{rows} rows cannot be split into {self.micro_batches} micro-batches; choose"
                    f" a divisor of {rows}"
                )
        if len(batches) == 1:
            return self.whole(state, batches[0], scalars)
        sums = self.begin(state.params, batches[0], scalars)
        for part in batches:
            sums = self.add(sums, state.params, part, scalars)
        return self.end(state, sums)


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """What the programs of an `Update` compute."""

    value_and_grad: Any  # (weights, rows, scalars) -> ((loss, statistics), gradient)
    optimizer: optax.GradientTransformation
    table: dict[str, Weight]  # of the weights that are trained
    micro_batches: int
    dtype: Any  # that the weights are used in; None: the one they are kept in

    def update(
        self, state: TrainState, batch: Batch, scalars: dict[str, Any]
    ) -> tuple[TrainState, Stats]:
        return self.take_step(state, self.gradients(state.params, batch, scalars))

    def accumulate(self, sums: Sums, params: Params, batch: Batch, scalars: dict[str, Any]) -> Sums:
        return self.gradients(params, batch, scalars, sums)

    def gradients(
        self, params: Params, batch: Batch, scalars: dict[str, Any], sums: Sums | None = None
    ) -> Sums:
        """The sums of a batch, added to `sums` where they are given."""
        # Once for all micro-batches, and before layers are gathered.
        params = params if self.dtype is None else computing(params, self.dtype)
        if self.micro_batches == 1:
            if sums is not None:
                return self._add(sums, params, batch, scalars)
            (total, stats), grads = self.value_and_grad(params, batch, scalars)
            return total, stats, self._pin(grads)
        parts = self._split(batch)
        if sums is None:
            sums = self.zero_sums(params, jax.tree.map(lambda x: x[0], parts), scalars)
        return jax.lax.scan(
            lambda sums, rows: (self._add(sums, params, rows, scalars), None), sums, parts
        )[0]

    def zero_sums(self, params: Params, rows: Batch, scalars: dict[str, Any]) -> Sums:
        def zeros(tree: Any) -> Any:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)

        (value, stats), grad = jax.eval_shape(self.value_and_grad, params, rows, scalars)
        return zeros(value), zeros(stats), self._pin(zeros(grad))

    def take_step(self, state: TrainState, sums: Sums) -> tuple[TrainState, Stats]:
        """The guarded update."""
        total, stats, grads = sums
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(total) & jnp.isfinite(norm)

        def choose(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        # A skipped update still runs through the optimiser: it is fed zeros, so that no NaN is
        # made, and its result is dropped.
        grads = jax.tree.map(lambda g: jnp.where(good, g, jnp.zeros_like(g)), grads)
        steps, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, steps)
        bad = jnp.int32(~good)
        state = TrainState(
            params=choose(params, state.params),
            opt_state=choose(opt_state, state.opt_state),
            updates=state.updates + 1 - bad,
            skipped=state.skipped + bad,
            skipped_in_row=jnp.where(good, 0, state.skipped_in_row + 1),
        )
        return state, stats | {"loss": total, "grad_norm": norm, "skipped": bad}

    def _add(self, sums: Sums, params: Params, rows: Batch, scalars: dict[str, Any]) -> Sums:
        total, stats, grads = sums
        (value, new_stats), grad = self.value_and_grad(params, rows, scalars)
        grads = jax.tree.map(jnp.add, grads, self._pin(grad))
        return total + value, merge_stats(stats, new_stats), grads

    def _pin(self, grads: Params) -> Params:
        # Without a constraint, gradients of sharded parameters may come out replicated.
        flat = traverse_util.flatten_dict(grads, sep="/")
        return traverse_util.unflatten_dict(
            {p: constrain(g, *self.table[p].axes).astype(jnp.float32) for p, g in flat.items()},
            sep="/",
        )

    def _split(self, batch: Batch) -> Batch:
        units = min(len(x) for x in batch.values())
        return jax.tree.map(lambda x: split_rows(x, units, self.micro_batches), batch)


def make_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: ModelConfig,
    micro_batches: int = 1,
    *,
    table: dict[str, Weight] | None = None,
    dtype: Any = None,
) -> Update:
    """Compiled `update(state, batch, scalars) -> (state, statistics)`; `state` is donated.

    batch: arrays of the whole update, [B, ...] or, with M consecutive rows of the others to each
    of theirs, [P, ...] (see `pack`). Micro-batch i holds row i, i + n, i + 2n, ... of the shorter
    ones and the rows that belong to them, so that each device works on its own rows in every
    micro-batch. Or several such batches, each of its own width and in `micro_batches` parts: one
    program for each width adds to the gradient, another one ends the update.

    Loss and gradient are sums: they do not depend on how rows are split. Gradients are summed over
    micro-batches in float32, whatever the dtype of the weights. Where loss or gradient are not
    finite, parameters and optimiser stay as they were and the skip is counted.

    scalars: what is the same for all micro-batches, including the frozen weights under adapters.
    table: the weights that are trained (None: those of `config`). dtype: that the weights are used
    in (None: the one they are kept in); see `computing`. Statistics: those of the loss, merged, and
    `loss`, `grad_norm`, `skipped` (1 where this update was left out).
    """
    refuse_int8(config, "a model is trained")
    step = _Step(
        jax.value_and_grad(loss, has_aux=True),
        optimizer,
        weight_table(config) if table is None else table,
        micro_batches,
        dtype,
    )
    return Update(
        micro_batches=micro_batches,
        whole=program(step.update, donate_argnums=0),
        begin=program(step.zero_sums),
        add=program(step.accumulate, donate_argnums=0),
        end=program(step.take_step, donate_argnums=0),
    )


@dataclasses.dataclass(frozen=True)
class UpdateSpec:
    """Everything that the update of a policy is compiled for, beside the model and the shapes."""

    loss: LossSpec
    optimizer: OptimizerSpec
    temperature: float = 1.0  # of the distribution that the log-probs are of
    entropy: bool = True  # whether the statistics hold it
    lora: LoraSpec | None = None  # what is trained; None: all weights
    micro_batches: int = 1
    dtype: str | None = None  # that the weights are used in; see `make_update`


def update_program(config: ModelConfig, spec: UpdateSpec) -> Update:
    """The update of a policy. Equal arguments give the same programs, also in another run of this
    process (a sweep)."""
    return _update_program(for_device(config), spec)


@functools.lru_cache(maxsize=64)
def _update_program(config: ModelConfig, spec: UpdateSpec) -> Update:
    objective = policy_objective(
        config, spec.loss, temperature=spec.temperature, entropy=spec.entropy, lora=spec.lora
    )
    return make_update(
        objective,
        make_optimizer(spec.optimizer),
        config,
        spec.micro_batches,
        table=None if spec.lora is None else lora_table(config, spec.lora),
        # Adapters are cast where they are attached.
        dtype=spec.dtype if spec.lora is None else None,
    )
