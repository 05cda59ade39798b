"""One optimiser step: weighted loss sums over micro-batches, gradients in the parameters' layout,
guarded update."""

from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from scope_jax.devices.mesh import constrain, current_mesh
from scope_jax.learning.losses import LossSpec, merge_stats, policy_loss
from scope_jax.learning.packing import pack, split_rows, unpack
from scope_jax.models import (
    LoraSpec,
    ModelConfig,
    Params,
    attach,
    completion_logprobs,
    hidden_states,
    in_dtype,
    prm_logits,
    token_logprobs,
    unroll_layers,
)
from scope_jax.models.weights import Weight, weight_table
from scope_jax.types import Rollout

Batch = dict[str, jax.Array]
# of the loss, statistics, gradient
Sums = tuple[jax.Array, dict[str, jax.Array], Params]
# loss(params, micro-batch, scalars) -> (sum, statistics)
Loss = Callable[
    [Params, dict[str, jax.Array], dict[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]
]


@flax.struct.dataclass
class TrainState:
    """Everything an update changes. `params`: in the dtype that they are kept in, which need not
    be the one that they are used in (see `computing`). `skipped` counts updates left out for
    non-finite gradients, `skipped_in_row` the latest unbroken run of them."""

    params: Params
    opt_state: Any
    updates: jax.Array  # int32, taken
    skipped: jax.Array  # int32
    skipped_in_row: jax.Array  # int32


def init_state(
    params: Params, optimizer: optax.GradientTransformation, dtype: Any = None
) -> TrainState:
    """A fresh state around (a copy of) `params`, kept in `dtype` (None: their own): updates donate
    their state, and the caller may go on using its arrays. Moments are laid out like their
    parameters, counters on every device of the mesh that is set."""
    params = jax.tree.map(
        lambda w: jnp.copy(w) if dtype in (None, w.dtype) else w.astype(dtype), params
    )
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
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def computing(params: Params, dtype: Any) -> Params:
    """Kept weights as they are used in a loss: in `dtype`, but for the embedding and the head. A
    batch adds to one row of those from many tokens: they stay as they are kept, so that their
    gradients are summed so (the decoder casts what it takes)."""
    return {
        name: part if name in ("embed", "head") else in_dtype(part, dtype)
        for name, part in params.items()
    }


def make_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: ModelConfig,
    micro_batches: int = 1,
    *,
    table: dict[str, Weight] | None = None,
    dtype: Any = None,
) -> Callable[
    [TrainState, Batch | Sequence[Batch], dict[str, jax.Array]],
    tuple[TrainState, dict[str, jax.Array]],
]:
    """Jitted `update(state, batch, scalars) -> (state, statistics)`; `state` is donated.

    batch: arrays of the whole update, [B, ...] or, with M consecutive rows of the others to each
    of theirs, [P, ...] (see `pack`). Micro-batch i holds row i, i + n, i + 2n, ... of the shorter
    ones and what belongs to them, so that each device works on its own rows in every micro-batch.
    Or several such batches, of widths of their own, each in `micro_batches` parts: one program for
    each width adds to the gradient, another one ends the update. Loss and gradient are sums: they
    do not depend on how rows are split. Where loss or gradient are not finite, parameters and
    optimiser stay as they were and the skip is counted. Gradients are summed over micro-batches in
    float32, whatever the dtype of the weights. `dtype`: what the weights are used in (None: what
    they are kept in); see `computing`. `scalars`: what is the same for all micro-batches, the
    frozen weights under adapters included. `table`: the weights that are trained (default: those
    of `config`). Statistics: those of the loss, merged, and `loss`, `grad_norm`, `skipped` (1
    where this update was left out).
    """
    table = weight_table(config) if table is None else table
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def pin(grads: Params) -> Params:
        # Without a constraint, gradients of sharded parameters may come out replicated.
        flat = traverse_util.flatten_dict(grads, sep="/")
        return traverse_util.unflatten_dict(
            {p: constrain(g, *table[p].axes).astype(jnp.float32) for p, g in flat.items()}, sep="/"
        )

    def add(sums: Sums, params: Params, rows: Batch, scalars: dict) -> Sums:
        total, stats, grads = sums
        (value, seen), grad = value_and_grad(params, rows, scalars)
        return total + value, merge_stats(stats, seen), jax.tree.map(jnp.add, grads, pin(grad))

    def nothing(params: Params, rows: Batch, scalars: dict) -> Sums:
        (value, seen), grad = jax.eval_shape(value_and_grad, params, rows, scalars)
        zeros = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)
        return zeros(value), zeros(seen), pin(zeros(grad))

    def split(batch: Batch) -> Batch:
        units = min(len(x) for x in batch.values())
        return jax.tree.map(lambda x: split_rows(x, units, micro_batches), batch)

    def gradients(params: Params, batch: Batch, scalars: dict, sums: Sums | None = None) -> Sums:
        # Once for all micro-batches, and before layers are gathered.
        params = params if dtype is None else computing(params, dtype)
        if micro_batches == 1:
            if sums is not None:
                return add(sums, params, batch, scalars)
            (total, stats), grads = value_and_grad(params, batch, scalars)
            return total, stats, pin(grads)
        parts = split(batch)
        if sums is None:
            sums = nothing(params, jax.tree.map(lambda x: x[0], parts), scalars)
        return jax.lax.scan(
            lambda sums, rows: (add(sums, params, rows, scalars), None), sums, parts
        )[0]

    def take_step(state: TrainState, sums: Sums) -> tuple[TrainState, dict[str, jax.Array]]:
        total, stats, grads = sums
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(total) & jnp.isfinite(norm)
        # A skipped update still runs through the optimiser: feed it zeros, so that no NaN is made,
        # and drop the result.
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

    def update(
        state: TrainState, batch: Batch, scalars: dict
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        return take_step(state, gradients(state.params, batch, scalars))

    whole = jax.jit(update, donate_argnums=0)
    begin = jax.jit(nothing)
    accumulate = jax.jit(
        lambda sums, params, batch, scalars: gradients(params, batch, scalars, sums),
        donate_argnums=0,
    )
    end = jax.jit(take_step, donate_argnums=0)

    def checked(
        state: TrainState, batch: Batch | Sequence[Batch], scalars: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batches = [batch] if isinstance(batch, dict) else batch
        for part in batches:
            rows = min(len(x) for x in part.values())
            if rows % micro_batches:
                raise ValueError(
                    f"{rows} rows cannot be split into {micro_batches} micro-batches; choose a"
                    f" divisor of {rows}"
                )
        if len(batches) == 1:
            return whole(state, batches[0], scalars)
        sums = begin(state.params, batches[0], scalars)
        for part in batches:
            sums = accumulate(sums, state.params, part, scalars)
        return end(state, sums)

    return checked


def policy_objective(
    config: ModelConfig,
    spec: LossSpec,
    *,
    temperature: float,
    entropy: bool,
    remat: str,
    unrolled: bool | None = None,
    lora: LoraSpec | None = None,
) -> Loss:
    """The hybrid objective over what `pack` made of `advantage` ([B], or [B, T] where it differs
    along a row), `on`, `off` [B, T] and, where given, `old_logp`, `teacher_logp`,
    `reference_logp`, `sampler_logp` [B, T]; scalars: `teacher_weight`. `unrolled`: form of the
    layer loop (None: `models.unroll_layers(remat)`). `lora`: what is trained are adapters, of the
    weights that stand in scalars under `base`."""
    unrolled = unroll_layers(remat) if unrolled is None else unrolled

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        logp, entropy_BT = completion_logprobs(
            params if lora is None else attach(scalars["base"], params, lora),
            config,
            batch["prompt"],
            batch["prompt_length"],
            batch["completion"],
            temperature=temperature,
            entropy=entropy or spec.entropy_bonus > 0,
            remat=remat,
            unrolled=unrolled,
        )
        advantage = batch["advantage"]
        return policy_loss(
            logp,
            batch.get("old_logp"),
            advantage[:, None] if advantage.ndim == 1 else advantage,
            batch["on"],
            batch["off"],
            spec,
            teacher_weight=scalars["teacher_weight"],
            teacher_logp_BT=batch.get("teacher_logp"),
            reference_logp_BT=batch.get("reference_logp"),
            sampler_logp_BT=batch.get("sampler_logp"),
            entropy_BT=entropy_BT,
        )

    return loss


def make_logprobs(
    config: ModelConfig, *, temperature: float, micro_batches: int = 1, unrolled: bool | None = None
) -> Callable[..., jax.Array]:
    """`logprobs(params, rollout, group, coarse=False) -> float32[B, T]`: log-probs of the written
    tokens under `params` (old or reference log-probs of an update), 0 elsewhere. As many rows at
    once as in an update with so many micro-batches; `coarse`: see `pack`."""
    run = logprobs_program(
        config, temperature, micro_batches, unroll_layers() if unrolled is None else unrolled
    )

    def logprobs(params: Params, rollout: Rollout, group: int, coarse: bool = False) -> jax.Array:
        return unpack(rollout, run(params, pack(rollout, {}, group, micro_batches, coarse=coarse)))

    return logprobs


def logprobs_program(
    config: ModelConfig, temperature: float, micro_batches: int, unrolled: bool
) -> Any:
    """The jitted part of `make_logprobs`: `run(params, batch) -> float32[B, C]`, of what `pack`
    made."""

    @jax.jit
    def run(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        def part(rows: dict[str, jax.Array]) -> jax.Array:
            logp, _ = completion_logprobs(
                params,
                config,
                rows["prompt"],
                rows["prompt_length"],
                rows["completion"],
                temperature=temperature,
                unrolled=unrolled,
            )
            return logp

        if micro_batches == 1:
            return part(batch)
        units = len(batch["prompt"])
        out = jax.lax.map(
            part, {name: split_rows(x, units, micro_batches) for name, x in batch.items()}
        )
        B, C = batch["completion"].shape
        return jnp.swapaxes(
            out.reshape(micro_batches, units // micro_batches, -1, C), 0, 1
        ).reshape(B, C)

    return run


def cloning_objective(
    config: ModelConfig, *, remat: str = "none", unrolled: bool | None = None
) -> Loss:
    """Supervised next-token loss: -sum weight * log p(token), over batches of `tokens`, `weight`
    [B, T]."""
    unrolled = unroll_layers(remat) if unrolled is None else unrolled

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        logp, _ = token_logprobs(params, config, batch["tokens"], remat=remat, unrolled=unrolled)
        return -jnp.sum(jnp.where(batch["weight"] > 0, batch["weight"] * logp, 0.0)), {}

    return loss


def step_label_objective(
    config: ModelConfig, *, remat: str = "none", unrolled: bool | None = None
) -> Loss:
    """Two-class cross-entropy at step positions: batches of `tokens`, `label` (0 wrong, 1 good;
    float: the share that is good), `weight` [B, T]."""
    unrolled = unroll_layers(remat) if unrolled is None else unrolled

    def loss(params: Params, batch: dict, scalars: dict) -> tuple[jax.Array, dict]:
        scores = prm_logits(
            params, hidden_states(params, config, batch["tokens"], remat=remat, unrolled=unrolled)
        )
        logp = jax.nn.log_softmax(scores, axis=-1)
        label = batch["label"]
        if jnp.issubdtype(label.dtype, jnp.integer):
            chosen = jnp.take_along_axis(logp, label[..., None], axis=-1)[..., 0]
        else:
            chosen = label * logp[..., 1] + (1 - label) * logp[..., 0]
        return -jnp.sum(jnp.where(batch["weight"] > 0, batch["weight"] * chosen, 0.0)), {}

    return loss
