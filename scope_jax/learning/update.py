"""One optimiser step: weighted loss sums over micro-batches, gradients in the parameters' layout, guarded update."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from scope_jax.learning.losses import LossSpec, merge_stats, policy_loss
from scope_jax.mesh import constrain, current_mesh
from scope_jax.models import ModelConfig, Params, prm_logits, token_logprobs
from scope_jax.models.decoder import hidden_states
from scope_jax.models.weights import weight_table

# loss(params, micro-batch, scalars) -> (sum, statistics)
Loss = Callable[[Params, dict[str, jax.Array], dict[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]]


@flax.struct.dataclass
class TrainState:
    """Everything an update changes. `skipped` counts updates left out for non-finite gradients, `skipped_in_row` the
    latest unbroken run of them."""

    params: Params
    opt_state: Any
    updates: jax.Array  # int32, taken
    skipped: jax.Array  # int32
    skipped_in_row: jax.Array  # int32


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state around (a copy of) `params`: updates donate their state, and the caller may go on using its arrays.
    Moments are laid out like their parameters, counters on every device of the mesh that is set."""
    params = jax.tree.map(jnp.copy, params)
    zero = lambda: jnp.zeros((), jnp.int32)
    state = TrainState(params, optimizer.init(params), zero(), zero(), zero())
    mesh = current_mesh()
    if mesh is None:
        return state
    everywhere = NamedSharding(mesh, PartitionSpec())
    laid_out = lambda x: isinstance(x.sharding, NamedSharding) and x.ndim > 0
    return jax.tree.map(lambda x: x if laid_out(x) else jax.device_put(x, everywhere), state)


def abstract_state(state: TrainState) -> TrainState:
    """Shapes, dtypes and layouts of a state, to restore a checkpoint into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def trim(arrays: dict[str, jax.Array], length_B: jax.Array, step: int = 16) -> dict[str, jax.Array]:
    """The [B, T] arrays without the slots that no row reaches, T rounded up to a multiple of `step` so that few shapes
    occur. The loss does not change: those slots carry no weight."""
    longest = int(jnp.max(length_B))
    width = -(-longest // step) * step
    return {name: x[:, :width] if x.ndim == 2 else x for name, x in arrays.items()}


def make_update(
    loss: Loss, optimizer: optax.GradientTransformation, config: ModelConfig, micro_batches: int = 1
) -> Callable[[TrainState, dict[str, jax.Array], dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `update(state, batch, scalars) -> (state, statistics)`; `state` is donated.

    batch: arrays [B, ...] of the whole update; micro-batch i holds rows i, i + n, i + 2n, ... so that each device works
    on its own rows in every micro-batch. Loss and gradient are sums: they do not depend on `micro_batches`. Where loss
    or gradient are not finite, parameters and optimiser stay as they were and the skip is counted.
    Statistics: those of the loss, merged, and `loss`, `grad_norm`, `skipped` (1 where this update was left out).
    """
    table = weight_table(config)

    def pin(grads: Params) -> Params:
        # Without a constraint, gradients of sharded parameters may come out replicated.
        flat = traverse_util.flatten_dict(grads, sep="/")
        return traverse_util.unflatten_dict({p: constrain(g, *table[p].axes) for p, g in flat.items()}, sep="/")

    def split(x: jax.Array) -> jax.Array:
        rows = x.shape[0] // micro_batches
        parts = jnp.swapaxes(x.reshape(rows, micro_batches, *x.shape[1:]), 0, 1)
        return constrain(parts, None, "batch", *(None,) * (x.ndim - 1))

    def gradients(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict, Params]:
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if micro_batches == 1:
            (total, stats), grads = value_and_grad(params, batch, scalars)
            return total, stats, pin(grads)
        parts = jax.tree.map(split, batch)

        def body(carry: Any, part: dict) -> tuple[Any, None]:
            total, stats, grads = carry
            (value, seen), grad = value_and_grad(params, part, scalars)
            return (total + value, merge_stats(stats, seen), jax.tree.map(jnp.add, grads, pin(grad))), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(value_and_grad, params, first, scalars)
        zeros = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)
        (value, seen), grad = shapes
        (total, stats, grads), _ = jax.lax.scan(body, (zeros(value), zeros(seen), pin(zeros(grad))), parts)
        return total, stats, grads

    def update(state: TrainState, batch: dict, scalars: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        total, stats, grads = gradients(state.params, batch, scalars)
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(total) & jnp.isfinite(norm)
        # A skipped update still runs through the optimiser: feed it zeros, so that no NaN is made, and drop the result.
        grads = jax.tree.map(lambda g: jnp.where(good, g, jnp.zeros_like(g)), grads)
        steps, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, steps)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
        bad = jnp.int32(~good)
        state = TrainState(
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            updates=state.updates + 1 - bad,
            skipped=state.skipped + bad,
            skipped_in_row=jnp.where(good, 0, state.skipped_in_row + 1),
        )
        return state, stats | {"loss": total, "grad_norm": norm, "skipped": bad}

    jitted = jax.jit(update, donate_argnums=0)

    def checked(state: TrainState, batch: dict, scalars: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        rows = len(next(iter(batch.values())))
        if rows % micro_batches:
            raise ValueError(f"{rows} rows cannot be split into {micro_batches} micro-batches; choose a divisor of {rows}")
        return jitted(state, batch, scalars)

    return checked


def policy_objective(config: ModelConfig, spec: LossSpec, *, temperature: float, entropy: bool, remat: bool) -> Loss:
    """The hybrid objective over batches of `tokens`, `advantage` [B], `on`, `off` [B, T] and, where given, `old_logp`,
    `teacher_logp`, `reference_logp`, `sampler_logp` [B, T]; scalars: `teacher_weight`."""

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        logp, spread = token_logprobs(
            params,
            config,
            batch["tokens"],
            temperature=temperature,
            entropy=entropy or spec.entropy_bonus > 0,
            remat=remat,
        )
        return policy_loss(
            logp,
            batch.get("old_logp"),
            batch["advantage"][:, None],
            batch["on"],
            batch["off"],
            spec,
            teacher_weight=scalars["teacher_weight"],
            teacher_logp_BT=batch.get("teacher_logp"),
            reference_logp_BT=batch.get("reference_logp"),
            sampler_logp_BT=batch.get("sampler_logp"),
            entropy_BT=spread,
        )

    return loss


def cloning_objective(config: ModelConfig, *, remat: bool = False) -> Loss:
    """Supervised next-token loss: -sum weight * log p(token), over batches of `tokens`, `weight` [B, T]."""

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        logp, _ = token_logprobs(params, config, batch["tokens"], remat=remat)
        return -jnp.sum(jnp.where(batch["weight"] > 0, batch["weight"] * logp, 0.0)), {}

    return loss


def step_label_objective(config: ModelConfig, *, remat: bool = False) -> Loss:
    """Two-class cross-entropy at step positions: batches of `tokens`, `label` (0 wrong, 1 good), `weight` [B, T]."""

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        scores = prm_logits(params, hidden_states(params, config, batch["tokens"], remat=remat))
        logp = jax.nn.log_softmax(scores, axis=-1)
        chosen = jnp.take_along_axis(logp, batch["label"][..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(batch["weight"] > 0, batch["weight"] * chosen, 0.0)), {}

    return loss
