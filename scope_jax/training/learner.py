"""What learns in a run: the trained parameters, their optimiser, and the compiled updates."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scope_jax import learning, models, rollout, streams
from scope_jax.configuration import TrainConfig
from scope_jax.devices.hosts import settle
from scope_jax.devices.mesh import to_device_memory, to_host_memory
from scope_jax.training.actors import Actors
from scope_jax.types import Rollout

# What a supervised step minimises: the mean over demonstrated tokens of -log pi.
CLONING = learning.LossSpec(teacher_term="nll", teacher_weight=1.0, normaliser="token")

_take_rows = jax.jit(rollout.take_rows)


class Learner:
    """The state of a run and the moves that change it. `state` may be replaced by a restored one.

    With adapters (`lora.rank`), they are all that is trained and checkpointed; the weights stay
    those of models.policy.
    """

    def __init__(self, config: TrainConfig, actors: Actors, mesh: Mesh, root: jax.Array):
        self.config, self.model, self.mesh = config, actors.config, mesh
        self.losses, self.lora = config.loss, config.lora.spec
        self.optimizer = config.optimizer
        # The weights at the start, where they are needed later: under adapters, and as the
        # reference of a KL term.
        self.start: models.Params = (
            actors.params if self.lora is not None or self.losses.kl_weight > 0 else {}
        )
        if config.placement.reference == "host":
            self.start = to_host_memory(self.start)
        trained = actors.params
        if self.lora is not None:
            trained = models.init_lora(
                actors.config, self.lora, jax.random.fold_in(root, streams.LORA), mesh
            )
        # What weights are used in; what they are kept in may be wider.
        self.dtype = jnp.dtype(config.dtype)
        kept = "float32" if config.training.master_weights == "float32" else None
        self.state = learning.init_state(trained, learning.make_optimizer(self.optimizer), kept)

    # ---- moves

    def restore(self, state: Any) -> None:
        """Take up a state that was saved."""
        self.state = state

    def publish(self) -> rollout.Generator:
        """The policy of the moment, laid out for decoding. With `placement.optimizer` the moments,
        and weights that are kept in another dtype than they are used in, wait in host memory from
        now on, until the next update."""
        parks = self.config.placement.optimizer == "host"
        if parks:
            self.state = dataclasses.replace(
                self.state, opt_state=to_host_memory(self.state.opt_state)
            )
        writer = rollout.Generator(
            models.decode_layout(self.model, self._params(), self.mesh), self.model
        )
        if parks and any(w.dtype != self.dtype for w in jax.tree.leaves(self.state.params)):
            self.state = dataclasses.replace(self.state, params=to_host_memory(self.state.params))
        return writer

    def update(
        self,
        rows: Rollout,
        group: int,
        advantage: Any,
        include_B: np.ndarray,
        key: jax.Array,
        step: int,
    ) -> dict[str, float]:
        """The updates of one rollout batch: `training.epochs` times over its groups, in
        `training.mini_batches` parts of whole groups each. `advantage` [B] or [B, T]. Returns
        metrics."""
        config, losses = self.config, self.losses
        parts, epochs, micro = (
            config.training.mini_batches,
            config.training.epochs,
            config.training.micro_batches,
        )
        B = rows.tokens_BT.shape[0]
        arrays = {"advantage": jnp.asarray(advantage)}
        several = parts * epochs > 1
        if config.loss.old_logp == "sampler":
            arrays["old_logp"] = rows.logp_BT
        elif several:
            arrays["old_logp"] = self._logprobs(self._params(), rows, group)
        if losses.kl_weight > 0:
            arrays["reference_logp"] = self._logprobs(to_device_memory(self.start), rows, group)
        if losses.tis_cap is not None:
            arrays["sampler_logp"] = rows.logp_BT
        if losses.teacher_term == "importance":
            arrays["teacher_logp"] = rows.logp_BT
        weight = learning.schedule_value(
            config.loss.teacher_schedule,
            losses.teacher_weight,
            config.loss.teacher_weight_end,
            step,
            config.steps,
        )
        include = jnp.asarray(include_B)
        seen = []
        for epoch in range(epochs):
            for index in _mini_batches(B // group, parts, group, key, epoch):
                if parts == 1:
                    part, own, counts = rows, arrays, include
                else:
                    part = _rows(rows, index)
                    own, counts = {name: x[index] for name, x in arrays.items()}, include[index]
                settle((part, own, counts))
                on, off = settle(learning.token_weights(part, losses, include_B=counts))
                seen.append(
                    self._step(
                        losses,
                        config.rollout.temperature,
                        part,
                        own | {"on": on, "off": off},
                        group,
                        micro,
                        weight,
                    )
                )
        return self._metrics(seen) | {"loss/teacher_weight": float(weight)}

    def clone(self, rows: Rollout, include_B: np.ndarray, parts: int = 1) -> dict[str, float]:
        """Supervised updates on the TEACHER tokens of `rows`, one for each of `parts` runs of
        rows; none for a part where `include_B` is nowhere set."""
        B = rows.tokens_BT.shape[0]
        seen = []
        for index in np.arange(B).reshape(parts, -1):
            if not include_B[index].any():
                continue
            part = rows if parts == 1 else _rows(rows, index)
            on, off = learning.token_weights(part, CLONING)
            micro = int(np.gcd(len(index), self.config.training.micro_batches))
            arrays = {"advantage": jnp.zeros(len(index)), "on": on, "off": off}
            seen.append(self._step(CLONING, 1.0, part, arrays, 1, micro, 1.0))
        return self._metrics(seen)

    def save(self, workdir: Path) -> None:
        """The policy as `workdir/model`, adapters as `workdir/adapter`."""
        models.save(workdir / "model", self.model, self._params(), None)
        if self.lora is not None:
            models.save_lora(
                workdir / "adapter",
                self.model,
                self.state.params,
                self.lora,
                base=self.config.models.policy or "",
            )

    # ---- parts

    def _params(self) -> models.Params:
        """The weights of the moment, as they are used."""
        trained = to_device_memory(self.state.params)
        if self.lora is None:
            return models.in_dtype(trained, self.dtype)
        return models.merge(self.model, self.start, trained, self.lora)

    def _logprobs(self, params: models.Params, rows: Rollout, group: int) -> jax.Array:
        micro = self.config.training.micro_batches * self.config.training.mini_batches
        buckets, passes = self._buckets(rows, group, micro)
        run = _logprobs_program(
            self.model, self.config.rollout.temperature, passes, models.unroll_layers()
        )
        if buckets == 1:
            return run(params, rows, group)
        order, unit = learning.length_order(rows, group, buckets)
        parts = [
            settle(run(params, settle(_rows(rows, index)), unit, coarse=True)) for index in order
        ]
        return jnp.concatenate(parts)[np.argsort(order.ravel())]

    def _buckets(self, rows: Rollout, group: int, micro_batches: int) -> tuple[int, int]:
        """Into how many parts of like length the rows of an update go, and in how many passes each
        of them."""
        groups = rows.tokens_BT.shape[0] // group
        buckets = math.gcd(groups, self.config.training.length_buckets)
        return buckets, math.gcd(groups // buckets * group, max(micro_batches // buckets, 1))

    def _step(
        self,
        spec: learning.LossSpec,
        temperature: float,
        rows: Rollout,
        arrays: dict[str, jax.Array],
        group: int,
        micro_batches: int,
        weight: Any,
    ) -> dict[str, Any]:
        buckets, passes = self._buckets(rows, group, micro_batches)
        update = _update_program(
            self.model,
            spec,
            self.optimizer,
            self.lora,
            temperature,
            self.config.training.remat,
            passes,
            models.unroll_layers(self.config.training.remat),
            self.config.dtype,
        )
        if buckets == 1:
            packed = settle(learning.pack(rows, arrays, group, passes))
        else:
            packed, (order, unit) = [], learning.length_order(rows, group, buckets)
            for index in order:
                part, own = settle(
                    (_rows(rows, index), {name: x[index] for name, x in arrays.items()})
                )
                packed.append(settle(learning.pack(part, own, unit, passes, coarse=True)))
        fixed = {"teacher_weight": jnp.float32(weight)} | (
            {} if self.lora is None else {"base": self.start}
        )
        self.state, stats = update(to_device_memory(self.state), packed, fixed)
        return stats

    def _metrics(self, seen: list[dict[str, Any]]) -> dict[str, float]:
        """Statistics of a step's updates as metrics: means over tokens, means of loss and norm
        over the updates."""
        seen = jax.device_get(seen)
        metrics = {
            "grad/skipped": float(jax.device_get(self.state.skipped)),
            "grad/skipped_now": float(sum(stats["skipped"] for stats in seen)),
            "update/count": float(len(seen)),
        }
        if not seen:
            return metrics
        stats = learning.merge_stats(
            *(
                {k: v for k, v in s.items() if k not in ("loss", "grad_norm", "skipped")}
                for s in seen
            )
        )
        metrics |= {name: float(value) for name, value in learning.finish_stats(stats).items()}
        for name in ("loss/policy", "loss/teacher"):
            metrics[name] /= len(seen)
        taken = int(jax.device_get(self.state.updates))
        return metrics | {
            "loss/total": float(np.mean([s["loss"] for s in seen])),
            "grad/norm": float(np.mean([s["grad_norm"] for s in seen])),
            "optimizer/learning_rate": float(
                learning.learning_rate(self.optimizer, max(taken - 1, 0))
            ),
        }


def _rows(rows: Rollout, index: Any) -> Rollout:
    return _take_rows(rows, jnp.asarray(index), jnp.ones(len(index), bool))


def _mini_batches(
    groups: int, parts: int, group: int, key: jax.Array, epoch: int
) -> list[jax.Array]:
    """Row numbers of each mini-batch of an epoch: whole groups, in an order of the epoch's own."""
    if parts == 1:
        return [jnp.arange(groups * group)]
    order = jax.random.permutation(
        jax.random.fold_in(jax.random.fold_in(key, streams.ORDER), epoch), groups
    )
    rows = order[:, None] * group + jnp.arange(group)[None]
    return list(rows.reshape(parts, -1))


# Programs are kept beyond a run: several runs of one process (a sweep) share what is equal.
@functools.lru_cache(maxsize=64)
def _update_program(
    config: models.ModelConfig,
    spec: learning.LossSpec,
    optimizer: learning.OptimizerSpec,
    lora: models.LoraSpec | None,
    temperature: float,
    remat: str,
    micro_batches: int,
    unrolled: bool,
    dtype: str,
) -> Any:
    objective = learning.policy_objective(
        config,
        spec,
        temperature=temperature,
        entropy=spec != CLONING,
        remat=remat,
        lora=lora,
        unrolled=unrolled,
    )
    table = None if lora is None else models.lora_table(config, lora)
    # Adapters are actors where they are attached.
    used = dtype if lora is None else None
    return learning.make_update(
        objective,
        learning.make_optimizer(optimizer),
        config,
        micro_batches,
        table=table,
        dtype=used,
    )


@functools.lru_cache(maxsize=16)
def _logprobs_program(
    config: models.ModelConfig, temperature: float, micro_batches: int, unrolled: bool
) -> Any:
    return learning.make_logprobs(
        config, temperature=temperature, micro_batches=micro_batches, unrolled=unrolled
    )
