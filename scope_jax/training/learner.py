"""What learns in a run: the trained parameters, their optimiser, and the compiled updates."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scope_jax import learning, models, rollout, streams
from scope_jax.configuration import TrainConfig
from scope_jax.devices.hosts import from_main, is_main
from scope_jax.devices.memory import device_memory, local_bytes, on_device
from scope_jax.devices.mesh import to_device_memory, to_host, to_host_memory
from scope_jax.devices.programs import program
from scope_jax.training.actors import Actors, resident_models
from scope_jax.training.logprobs import written_logprobs
from scope_jax.training.recompute import chosen_remat
from scope_jax.training.widths import bucketed_together, buckets_and_passes, pack_sizes
from scope_jax.types import Owner, Rollout

# What a supervised step minimises: the mean over demonstrated tokens of -log pi.
CLONING = learning.LossSpec(teacher_term="nll", teacher_weight=1.0, normaliser="token")

_token_weights = program(learning.token_weights, static_argnames="spec")


# ---- what a config asks for


def update_spec(config: TrainConfig) -> learning.UpdateSpec:
    """The update of a rollout batch, in one micro-batch."""
    return learning.UpdateSpec(
        loss=config.loss,
        optimizer=config.optimizer,
        temperature=config.rollout.temperature,
        lora=config.lora.spec,
        dtype=config.dtype,
    )


def cloning_spec(config: TrainConfig) -> learning.UpdateSpec:
    """The update of a supervised step, in one micro-batch."""
    return dataclasses.replace(update_spec(config), loss=CLONING, temperature=1.0, entropy=False)


Whose = Literal["sampler", "policy", "reference", "teacher"]


def loss_inputs(config: TrainConfig) -> dict[str, Whose]:
    """{name of a log-prob that the loss is given beside the trained one: whose it is}. Those of the
    sampler are recorded in the rollout; those of the policy (before the updates), of the reference
    and of the teacher are computed."""
    training, loss = config.training, config.loss
    inputs: dict[str, Whose] = {"sampler_logp": "sampler"}
    if loss.old_logp == "sampler":
        inputs["old_logp"] = "sampler"
    elif training.epochs * training.mini_batches > 1:
        inputs["old_logp"] = "policy"
    if loss.kl_weight > 0:
        inputs["reference_logp"] = "reference"
    if loss.teacher_term == "importance":
        inputs["teacher_logp"] = "sampler"
    if loss.distill_weight > 0:
        inputs["distill_logp"] = "teacher"
    return inputs


def rows_with_gradient(
    loss: learning.LossSpec, teacher_weight: float, rows: Rollout, advantage: Any
) -> np.ndarray:
    """bool[B]: rows whose gradient may differ from 0. Without an advantage a row has one through a
    KL or an entropy term, through distillation, and through TEACHER tokens that are cloned (`nll`)
    with a weight above 0; every other term is multiplied by the advantage. A row whose own
    log-probs are not finite counts: its update is computed and found to be none. `advantage` [B] or
    [B, T]. All processes call it."""
    owner_BT, length_B, logp_BT, advantage = to_host(
        (rows.owner_BT, rows.length_B, rows.logp_BT, advantage)
    )
    B = len(length_B)
    if loss.kl_weight > 0 or loss.entropy_bonus > 0 or loss.distill_weight > 0:
        return np.ones(B, bool)
    tells_B = (np.asarray(advantage).reshape(B, -1) != 0).any(axis=1)
    tells_B |= ((owner_BT == Owner.POLICY) & ~np.isfinite(logp_BT)).any(axis=1)
    if loss.teacher_term == "nll" and teacher_weight > 0:
        held_BT = np.arange(owner_BT.shape[1]) < length_B[:, None]
        tells_B |= ((owner_BT == Owner.TEACHER) & held_BT).any(axis=1)
    return tells_B


# ---- the learner


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of one update, and the arrays that its loss needs."""

    rows: Rollout
    arrays: dict[str, jax.Array]  # [B], or [B, T] at the rows' tokens
    group: int  # consecutive rows with the same prompt

    def take(self, index: Any, group: int | None = None) -> "Batch":
        """The rows of these numbers, in groups of `group` (None: as here)."""
        rows, arrays = _take((self.rows, self.arrays), jnp.asarray(index))
        return Batch(rows, arrays, group or self.group)


@program
def _take(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


class Learner:
    """The state of a run and the moves that change it.

    With adapters (`lora.rank`), only they are trained and checkpointed; the weights stay those of
    models.policy.
    """

    def __init__(self, config: TrainConfig, actors: Actors, mesh: Mesh, root: jax.Array):
        """Takes the weights over: afterwards `actors` has none, and those that are not needed any
        more are freed."""
        self.config, self.model, self.mesh = config, actors.config, mesh
        self.spec, self.sizes = update_spec(config), pack_sizes(config)
        self._rehearsing = False
        self.share_used = 1.0  # of the parts of the latest batch: those that made an update
        weights, actors.params = actors.params, {}
        # The weights at the start, where they are needed later: under adapters, and as the
        # reference of a KL term.
        needed = self.spec.lora is not None or self.spec.loss.kl_weight > 0
        self.start: models.Params = weights if needed else {}
        if config.placement.reference == "host":
            self.start = to_host_memory(self.start)
        if self.spec.lora is not None:
            key = jax.random.fold_in(root, streams.LORA)
            weights = models.init_lora(self.model, self.spec.lora, key, mesh)
        # The dtype that weights are used in; they may be kept in a wider one.
        self.dtype = jnp.dtype(config.dtype)
        kept = "float32" if config.training.master_weights == "float32" else None
        self.state = learning.init_state(
            weights, learning.make_optimizer(self.spec.optimizer), kept
        )
        self.remat = self._chosen_remat(actors)

    # ---- moves

    def publish(self) -> rollout.Generator:
        """The policy as it is now, laid out for decoding. With `placement.optimizer`, the moments,
        and weights that are kept in another dtype than the one in use, move to host memory until
        the next update."""
        parked = self.config.placement.optimizer == "host"
        if parked:
            self.state = dataclasses.replace(
                self.state, opt_state=to_host_memory(self.state.opt_state)
            )
        generator = rollout.Generator(
            models.decode_layout(self.model, self._params(), self.mesh), self.model
        )
        if parked and any(w.dtype != self.dtype for w in jax.tree.leaves(self.state.params)):
            self.state = dataclasses.replace(self.state, params=to_host_memory(self.state.params))
        return generator

    def restore(self, state: learning.TrainState) -> None:
        """Go on from the state of a checkpoint."""
        self.state = state

    def update(
        self,
        rows: Rollout,
        group: int,
        advantage: Any,
        include_B: np.ndarray,
        key: jax.Array,
        step: int,
        credit_from_B: np.ndarray | None = None,
        teacher_logp_BT: jax.Array | None = None,
    ) -> dict[str, float]:
        """The updates of one rollout batch: `training.epochs` times over its groups, each time in
        `training.mini_batches` parts of whole groups. `advantage` [B] or [B, T]; of `include_B`
        and `credit_from_B` see `learning.token_weights`; `teacher_logp_BT`: for distillation, of
        `training.logprobs.teacher_logprobs`. A part whose
        gradient is 0 whatever the weights (`rows_with_gradient`) is left out and counted: neither
        weights nor moments nor the count of updates change. Returns metrics."""
        config, loss = self.config, self.spec.loss
        weight = learning.schedule_value(
            loss.teacher_schedule,
            loss.teacher_weight,
            loss.teacher_weight_end,
            step,
            loss.teacher_steps or config.steps,
        )
        groups, parts = rows.tokens_BT.shape[0] // group, config.training.mini_batches
        plan = [
            index
            for epoch in range(config.training.epochs)
            for index in _mini_batches(groups, parts, group, key, epoch)
        ]
        tells_B = rows_with_gradient(loss, float(weight), rows, advantage) | self._rehearsing
        used = [index for index in plan if tells_B[to_host(index)].any()]
        self.share_used = len(used) / len(plan)
        counted = {
            "update/no_signal": float(len(plan) - len(used)),
            "loss/teacher_weight": float(weight),
        }
        if not used:
            return self._metrics([]) | counted
        arrays = {"advantage": jnp.asarray(advantage), "include": jnp.asarray(include_B)}
        if credit_from_B is not None:
            arrays["credit_from"] = jnp.asarray(credit_from_B)
        for name, whose in loss_inputs(config).items():
            if whose == "sampler":
                arrays[name] = rows.logp_BT
            elif whose == "teacher":
                if teacher_logp_BT is None:
                    raise ValueError(
                        "loss.distill_weight needs the teacher's log-probs of the rows"
                    )
                arrays[name] = teacher_logp_BT
            else:
                params = self._params() if whose == "policy" else to_device_memory(self.start)
                arrays[name] = self._logprobs(params, rows, group)
        whole = Batch(rows, arrays, group)
        step_stats = []
        for index in used:
            batch = whole if parts == 1 else whole.take(index)
            step_stats.append(self._step(self.spec, batch, config.training.micro_batches, weight))
        return self._metrics(step_stats) | counted

    def clone(self, rows: Rollout, include_B: np.ndarray, parts: int = 1) -> dict[str, float]:
        """Supervised updates on the TEACHER tokens of `rows`, one for each of `parts` equal runs of
        rows; none for a part that `include_B` leaves out altogether. Returns metrics."""
        B = rows.tokens_BT.shape[0]
        spec, whole = cloning_spec(self.config), Batch(rows, {"advantage": jnp.zeros(B)}, 1)
        step_stats = []
        for index in np.arange(B).reshape(parts, -1):
            if not include_B[index].any():
                continue
            batch = whole if parts == 1 else whole.take(index)
            micro_batches = math.gcd(len(index), self.config.training.micro_batches)
            step_stats.append(self._step(spec, batch, micro_batches, 1.0))
        self.share_used = len(step_stats) / parts
        return self._metrics(step_stats)

    def save(self, workdir: Path) -> None:
        """Write the policy as `workdir/model`, adapters as `workdir/adapter`."""
        models.save(workdir / "model", self.model, self._params(), None)
        if self.spec.lora is not None:
            models.save_lora(
                workdir / "adapter",
                self.model,
                self.state.params,
                self.spec.lora,
                base=self.config.models.policy or "",
            )

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Updates within it run as always and are left out, so that their programs are compiled
        and nothing else has changed afterwards."""
        counters = {name: getattr(self.state, name) for name in ("skipped", "skipped_in_row")}
        kept = jax.tree.map(jnp.copy, counters)  # an update takes the state over
        self._rehearsing = True
        try:
            yield
        finally:
            self._rehearsing = False
            self.state = dataclasses.replace(self.state, **kept)

    # ---- parts

    def _chosen_remat(self, actors: Actors) -> learning.Remat:
        """What updates compute again in the backward pass; said once where it is decided here."""
        if (given := self.config.training.remat) != "auto":
            return given
        trained = (self.state.params, self.state.opt_state)
        others = on_device((self.start, resident_models(actors)))
        # Processes may have devices with more or less memory; all decide as the first one does.
        limit = from_main(device_memory(self.mesh))
        resident = local_bytes(trained) + local_bytes(others)
        choice = chosen_remat(self.config, self.model, self.mesh, resident, limit)
        if is_main():
            print(choice.line(), flush=True)
        return choice.remat

    def _params(self) -> models.Params:
        """The weights as they are now, in the dtype in use."""
        trained = to_device_memory(self.state.params)
        if self.spec.lora is None:
            return models.in_dtype(trained, self.dtype)
        return models.merge(self.model, self.start, trained, self.spec.lora)

    def _logprobs(self, params: models.Params, rows: Rollout, group: int) -> jax.Array:
        return written_logprobs(self.config, self.model, params, rows, group)

    def _step(
        self, spec: learning.UpdateSpec, batch: Batch, micro_batches: int, teacher_weight: Any
    ) -> dict[str, Any]:
        """One update; returns its statistics."""
        groups = batch.rows.tokens_BT.shape[0] // batch.group
        buckets, passes = buckets_and_passes(
            groups, batch.group, self.config.training.length_buckets, micro_batches
        )
        model = dataclasses.replace(self.model, remat=self.remat)
        update = learning.update_program(model, dataclasses.replace(spec, micro_batches=passes))
        arrays = dict(batch.arrays)
        on, off = _token_weights(
            batch.rows,
            spec.loss,
            include_B=arrays.pop("include", None),
            credit_from_B=arrays.pop("credit_from", None),
        )
        batch = dataclasses.replace(batch, arrays=arrays | {"on": on, "off": off})
        if buckets == 1:
            parts = [batch]
        else:
            together = bucketed_together(self.config, batch.group)
            order = learning.length_order(batch.rows, together, buckets)
            parts = [batch.take(index, together) for index in order]
        packed = [
            learning.pack(part.rows, part.arrays, part.group, passes, self.sizes) for part in parts
        ]
        # Not a number: the update is found to be not finite, and left out.
        weight = math.nan if self._rehearsing else teacher_weight
        scalars: dict[str, Any] = {"teacher_weight": jnp.float32(weight)}
        if spec.lora is not None:
            scalars["base"] = self.start
        self.state, stats = update(to_device_memory(self.state), packed, scalars)
        return stats

    def _metrics(self, step_stats: list[dict[str, Any]]) -> dict[str, float]:
        """Statistics of a step's updates as metrics: means over tokens, means of loss and norm
        over the updates."""
        step_stats = jax.device_get(step_stats)
        metrics = {
            "grad/skipped": float(jax.device_get(self.state.skipped)),
            "grad/skipped_now": float(sum(stats["skipped"] for stats in step_stats)),
            "update/count": float(len(step_stats)),
        }
        if not step_stats:
            return metrics
        stats = learning.merge_stats(
            *(
                {k: v for k, v in s.items() if k not in ("loss", "grad_norm", "skipped")}
                for s in step_stats
            )
        )
        if "gap_max" in stats:  # later updates see other weights than the sampler had
            stats |= {k: v for k, v in step_stats[0].items() if k.startswith("gap_")}
        metrics |= {name: float(value) for name, value in learning.finish_stats(stats).items()}
        if "expert_load" in stats:
            metrics |= learning.expert_metrics(stats["expert_load"])
        for name in ("loss/policy", "loss/teacher"):
            metrics[name] /= len(step_stats)
        taken = int(jax.device_get(self.state.updates))
        return metrics | {
            "loss/total": float(np.mean([s["loss"] for s in step_stats])),
            "grad/norm": float(np.mean([s["grad_norm"] for s in step_stats])),
            "optimizer/learning_rate": float(
                learning.learning_rate(self.spec.optimizer, max(taken - 1, 0))
            ),
        }


def _mini_batches(
    groups: int, parts: int, group: int, key: jax.Array, epoch: int
) -> list[jax.Array]:
    """Row numbers of each mini-batch of an epoch: whole groups, in a random order per epoch."""
    if parts == 1:
        return [jnp.arange(groups * group)]
    order = jax.random.permutation(
        jax.random.fold_in(jax.random.fold_in(key, streams.ORDER), epoch), groups
    )
    rows = order[:, None] * group + jnp.arange(group)[None]
    return list(rows.reshape(parts, -1))
