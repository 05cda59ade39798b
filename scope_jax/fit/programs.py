"""The compiled programs of a training run, as `scope_jax.train` runs them, with shapes in place of
arrays.

Every program is the trainer's own jitted function, lowered with the largest shapes that the config
allows: prompts and rows as long as they may be, every group with as many corrections as it may
have.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scope_jax import learning, models, rollout
from scope_jax.configuration import Luffy, Relift, Scope, TrainConfig
from scope_jax.devices.memory import device_memory, local_bytes
from scope_jax.devices.mesh import GATHERED, RULES, own_mesh, row_devices
from scope_jax.devices.mesh import mesh_of as mesh_of_sizes
from scope_jax.devices.programs import program
from scope_jax.devices.shapes import part_size
from scope_jax.fit.lint import Facts
from scope_jax.fit.records import Plan, Planned, RowCounts, Writer
from scope_jax.fit.shapes import (
    Models,
    decoding,
    for_decoding,
    request_structs,
    row_struct,
    row_structs,
    train_state,
    whole,
    with_weights,
)
from scope_jax.models.costs import Work, generate_work, score_work, update_work
from scope_jax.models.decoder import for_prefill
from scope_jax.models.weights import abstract, shardings
from scope_jax.prm.model import (
    TEMPLATE_TOKENS,
    ProcessRewardModel,
    batch_width,
    score_batches,
    score_program,
)
from scope_jax.training.learner import (
    cloning_spec,
    loss_inputs,
    update_spec,
)
from scope_jax.training.recompute import chosen_remat, update_shape

# States of the table that ends a step at its separator, a blank line.
STOP_STATES = 3


def mesh_of(config: TrainConfig, devices: list[Any]) -> Mesh:
    """The mesh of a run. Raises ValueError where it does not match the devices."""
    return mesh_of_sizes(config.mesh, devices)


def plan(
    config: TrainConfig, found: Models, devices: list[Any], limit: float | None = None
) -> Plan:
    """The programs of one step of `config`, on these devices, which have `limit` bytes of memory
    (None: what they say). Raises ValueError for a mesh that does not match."""
    mesh = mesh_of(config, devices)
    rollout.check_heads(found.policy, mesh, "the policy")
    make = _Maker(config, found, mesh, limit)
    return Plan(make.held, list(make.programs()), make.notes)


class _Maker:
    def __init__(self, config: TrainConfig, found: Models, mesh: Mesh, limit: float | None):
        kept = {"teacher": config.models.teacher_weights, "prm": config.models.prm_weights}
        self.config, self.found, self.mesh = config, with_weights(found, kept), mesh
        found = self.found
        self.dtype = jnp.dtype(config.dtype)
        self.teacher_mesh, self.prm_mesh = (
            own_mesh(mesh, dataclasses.asdict(shape), f"config.mesh.{who}")
            for who, shape in (("teacher", config.mesh.teacher), ("prm", config.mesh.prm))
        )
        if found.teacher is not None:
            rollout.check_heads(found.teacher, self.teacher_mesh, "the teacher")
        self.notes: list[str] = []
        self.lora, self.losses = config.lora.spec, config.loss
        self.weights = abstract(found.policy, self.dtype, mesh)
        self.state = train_state(config, found.policy, self.dtype, mesh)
        self.decoding = for_decoding(found.policy, self.weights, mesh)
        self.held = {
            "weights": local_bytes(self.state.params),
            "moments": local_bytes(self.state.opt_state),
        }
        if self.lora is not None or self.losses.kl_weight > 0:
            self.held["start weights"] = local_bytes(self.weights)
        # Where nothing is split for memory alone the layout for decoding is that of training, and
        # where the dtype is the same, too, so are the arrays.
        self.cast = self.lora is None and any(
            w.dtype != self.dtype for w in jax.tree.leaves(self.state.params)
        )
        if (
            any(mesh.shape.get(axis, 1) > 1 for axis in GATHERED)
            or self.lora is not None
            or self.cast
        ):
            self.held["policy for decoding"] = local_bytes(self.decoding)
        name = "policy for decoding" if "policy for decoding" in self.held else "weights"
        self.policy = Writer(found.policy, self.decoding, mesh, frozenset({name}))
        self.teacher: Writer | None = None
        if found.teacher is not None:
            weights = abstract(found.teacher, self.dtype, self.teacher_mesh)
            weights = for_decoding(found.teacher, weights, self.teacher_mesh)
            self.held["teacher"] = local_bytes(weights)
            self.teacher = Writer(found.teacher, weights, self.teacher_mesh, frozenset({"teacher"}))
        if found.prm is not None:
            self.prm_weights = abstract(found.prm, self.dtype, self.prm_mesh)
            self.held["PRM"] = local_bytes(self.prm_weights)
        self.remat = self.chosen_remat(limit)
        # Token ids, owners and log-probs of a step's rows.
        rows = config.rollout.prompts * config.rows_per_group
        self.held["rows"] = local_bytes(row_structs(rows, self.buffer, mesh))

    @property
    def buffer(self) -> int:
        """Positions of a row."""
        return self.config.rollout.length

    def on_host(self, *own: str) -> frozenset[str]:
        """Who stands in host memory while `own` are at work."""
        who = {
            "teacher": "teacher",
            "PRM": "prm",
            "start weights": "reference",
            "moments": "optimizer",
        }
        # Weights that are used in another dtype than they are kept in wait with the moments.
        who |= {"weights": "optimizer"} if self.cast else {}
        return frozenset(
            name
            for name, key in who.items()
            if name not in own and getattr(self.config.placement, key) == "host"
        )

    def chosen_remat(self, limit: float | None) -> learning.Remat:
        """What the run computes again, by what it has on a device during an update."""
        if (given := self.config.training.remat) != "auto":
            return given
        others = self.held.keys() - {"policy for decoding"} - self.on_host("weights", "moments")
        resident = sum(self.held[name] for name in others)
        limit = device_memory(self.mesh) if limit is None else limit
        choice = chosen_remat(self.config, self.found.policy, self.mesh, resident, limit)
        self.notes.append(choice.line())
        return choice.remat

    def programs(self) -> Iterator[Planned]:
        config = self.config
        group = config.rollout.group
        if isinstance(config.method, Luffy):
            group -= config.method.per_group
        prompt, new = config.rollout.prompt_tokens, config.rollout.new_tokens
        if "policy for decoding" in self.held:
            yield self.decode_layout()
        yield self.generate(
            "rollout",
            dataclasses.replace(self.policy, uses=self.policy.uses | {"rows"}),
            self.sampling(seats=config.rollout.seats),
            RowCounts(config.rollout.prompts * group, self.buffer, prompt, shared=group),
            runs=1 + config.resample,
        )
        if config.uses_prm:
            yield from self.scores()
        if isinstance(config.method, Scope):
            yield from self.corrections(config.method)
            if config.localiser.kind == "monte_carlo":
                self.notes.append("the continuations of localiser 'monte_carlo' are not compiled")
            if config.localiser.kind == "likelihood":
                self.notes.append("the teacher's pass of localiser 'likelihood' is not compiled")
        if self.teacher is not None and self.demonstrations:
            yield self.generate(
                "demonstrations",
                self.teacher,
                rollout.SampleSpec(config.rollout.temperature, max_new_tokens=new),
                RowCounts(self.demonstrations, self.buffer, prompt),
            )
        if self.losses.kl_weight > 0 or self.recomputes:
            yield self.logprobs()
        if config.distills and self.teacher is not None:
            yield self.teacher_logprobs(self.teacher)
        yield self.update()
        evaluation = config.evaluation
        chunk = max(evaluation.rows_at_once // evaluation.samples, 1)
        prompt, new = evaluation.prompt_tokens or prompt, evaluation.new_tokens or new
        yield self.generate(
            "evaluation",
            self.policy,
            rollout.SampleSpec(evaluation.temperature, max_new_tokens=new),
            RowCounts(chunk * evaluation.samples, prompt + new, prompt, shared=evaluation.samples),
            runs=0,
        )

    def sampling(self, **changes: Any) -> rollout.SampleSpec:
        """How the policy's rollouts are sampled."""
        return dataclasses.replace(self.config.rollout.sampling(()), **changes)

    @property
    def recomputes(self) -> bool:
        """Whether old log-probs are computed before the updates."""
        return "policy" in loss_inputs(self.config).values()

    @property
    def demonstrations(self) -> int:
        """RowCounts of demonstrations asked for at once."""
        config, prompts = self.config, self.config.rollout.prompts
        method = config.method
        rows = (config.sft.prompts or prompts) if config.sft.steps else 0
        if isinstance(method, Luffy):
            rows = max(rows, prompts * method.per_group)
        if isinstance(method, Relift):
            rows = max(rows, method.buffer)
        return rows

    # ---- programs

    def decode_layout(self) -> Planned:
        """The weights, as they are used, laid out for decoding. For a moment, merged or cast ones
        are there beside them."""
        layout = shardings(self.found.policy, self.mesh, GATHERED)
        move = program(lambda weights: weights, out_shardings=layout)
        uses = {"policy for decoding"}
        if self.lora is None and not self.cast:
            uses |= {"weights"}
        return Planned(
            "decode_layout",
            self.mesh,
            lambda: move.lower(self.weights),
            Work(0.0),
            frozenset(uses),
            self.on_host("weights") | {"rows"},
        )

    def generate(
        self,
        name: str,
        writer: Writer,
        sampling: rollout.SampleSpec,
        rows: RowCounts,
        runs: float = 1.0,
    ) -> Planned:
        """`rollout.generate` of these rows."""
        model, mesh = writer.config, writer.mesh
        sampling = dataclasses.replace(sampling, end_ids=model.end_ids or (0,))
        spec = rollout.decode_spec(
            sampling,
            rows=rows.count,
            buffer=rows.buffer,
            longest=rows.longest,
            shared_prefix=rows.shared,
            **decoding(model, self.dtype, sampling, mesh),
        )

        def lower() -> Any:
            stop = None if sampling.stop is None else sampling.stop.shape
            request = request_structs(rows.count, rows.buffer, stop, mesh)
            config = for_prefill(model)
            return rollout.generate_program.lower(writer.weights, request, config, spec)

        # Rows are as long as they may be at the end; what they hold grows until then.
        keys = min(rows.longest + spec.max_new_tokens, rows.buffer)
        mean = keys - spec.max_new_tokens / 2
        follows = spec.block is not None or spec.form == "by_position"
        read = min(mean + (spec.block or 0) / 2, spec.positions) if follows else spec.positions
        work = generate_work(
            model,
            prompts=rows.count // rows.shared,
            width=spec.width,
            rows=rows.count,
            seats=spec.seats,
            tokens=spec.max_new_tokens,
            keys=round(mean),
        )
        local = spec.seats // row_devices(mesh)
        heads = model.num_kv_heads // mesh.shape["tensor"]
        size = 1 if spec.cache == "int8" else self.dtype.itemsize
        facts = Facts(
            layer_cache=local * heads * spec.positions * model.head_size * size,
            live=read / spec.positions,
            layer_weights=max(map(local_bytes, jax.tree.leaves(writer.weights["layers"])))
            / model.num_layers,
            experts=local_bytes(writer.weights["layers"]["expert_gate"]) / model.num_layers
            if model.num_experts
            else 0.0,
            rows=local,
            layers=model.num_layers,
        )
        gone = self.on_host(*writer.uses & {"teacher"})
        return Planned(name, mesh, lower, work, writer.uses, gone, runs, spec.seats, facts=facts)

    def corrections(self, method: Scope) -> Iterator[Planned]:
        """The teacher's steps and the policy's tails behind them, from cuts anywhere in the row."""
        config = self.config
        most = config.rollout.prompts * method.select.most(config.rollout.group)
        rescued, rounds = max(most, 1), 1 + method.resample
        rows = part_size(rescued, method.rows_at_once)
        parts = rounds * rescued // rows
        teacher = self.policy if config.teacher.kind == "self" else self.teacher
        prompted = config.teacher.prompted
        if teacher is not None:
            longest, buffer = self.buffer, self.buffer
            if prompted:
                longest = config.teacher.prompt_tokens
                buffer = longest + config.teacher.step_tokens
            sampling = rollout.SampleSpec(
                config.teacher.temperature,
                max_new_tokens=config.teacher.step_tokens,
                stop=np.zeros((STOP_STATES, teacher.config.vocab_size), np.int32),
            )
            yield self.generate(
                "teacher",
                teacher,
                sampling,
                RowCounts(rows, buffer, longest),
                method.candidates * parts,
            )
        if method.tail == "none":
            return
        writer = teacher if method.tail == "teacher" and teacher is not None else self.policy
        # What the policy tries by itself is the same program as its tails.
        own = (config.teacher.self_tries or 0) if writer is self.policy else 0
        yield self.generate(
            "tails",
            writer,
            self.sampling(),
            RowCounts(rows, self.buffer, self.buffer),
            (method.candidates * method.tails + own) * parts,
        )

    def scores(self) -> Iterator[Planned]:
        config, model, mesh = self.config, self.found.prm, self.prm_mesh
        assert model is not None
        rows = config.rollout.prompts * config.rollout.group
        tokens, at_once = self.buffer + TEMPLATE_TOKENS, ProcessRewardModel.tokens_at_once
        length = min(tokens, model.max_positions)
        width_of = batch_width(tokens, model.max_positions)
        with jax.set_mesh(mesh):
            batches = list(score_batches([length] * rows, rows, at_once, width_of))
        (count, width), choice = batches[0][1], None if model.head != "lm" else (0, 1)
        rounds = 1 + config.resample if isinstance(config.method, Scope) else 1
        tokens = row_struct((count, width), jnp.int32, mesh)
        lengths = row_struct((count,), jnp.int32, mesh)
        yield Planned(
            "PRM",
            mesh,
            lambda: score_program.lower(
                self.prm_weights, models.with_kernel(model), tokens, lengths, choice=choice
            ),
            score_work(model, count, width),
            frozenset({"PRM"}),
            self.on_host("PRM"),
            runs=len(batches) * rounds,
            rows=count,
        )

    def packed(
        self,
        mini_batches: int,
        micro_batches: int,
        inputs: Sequence[str],
        mesh: Mesh | None = None,
    ) -> tuple[dict[str, Any], int]:
        """(what `learning.pack` makes of a part of the step's rows, its passes), at the largest
        widths. `inputs`: names of the arrays with a number for each token. `mesh`: None: the
        run's."""
        config, group = self.config, self.config.rows_per_group
        groups, mesh = config.rollout.prompts // mini_batches, mesh or self.mesh
        shape = update_shape(config, mesh, groups, group, micro_batches)
        passes, width, tokens = shape.passes, shape.width, shape.tokens
        rows, prompts = shape.rows * passes, shape.prompts * passes
        struct = functools.partial(row_struct, mesh=mesh)
        batch = {
            "prompt": struct((prompts, width), jnp.int32),
            "prompt_length": struct((prompts,), jnp.int32),
            "completion": struct((rows, tokens), jnp.int32),
            **{name: struct((rows, tokens), jnp.float32) for name in inputs},
        }
        return batch, passes

    def update(self) -> Planned:
        config, training = self.config, self.config.training
        cloning = config.sft.steps >= config.steps
        spec = cloning_spec(config) if cloning else update_spec(config)
        inputs = ["on", "off"] if cloning else ["on", "off", *loss_inputs(config)]
        by_token = config.credit.scores_steps and not cloning
        batch, passes = self.packed(
            training.mini_batches,
            training.micro_batches,
            [*inputs, "advantage"] if by_token else inputs,
        )
        prompts, width = batch["prompt"].shape
        rows, tokens = batch["completion"].shape
        if not by_token:
            batch["advantage"] = whole((rows,), jnp.float32, self.mesh)
        scalars: dict[str, Any] = {"teacher_weight": whole((), jnp.float32, self.mesh)}
        uses = {"weights", "moments"}
        if self.lora is not None:
            scalars["base"] = self.weights
            uses |= {"start weights"}

        def lower() -> Any:
            model = dataclasses.replace(self.found.policy, remat=self.remat)
            update = learning.update_program(model, dataclasses.replace(spec, micro_batches=passes))
            return update.whole.lower(self.state, batch, scalars)

        devices = row_devices(self.mesh)
        if rows // passes % devices:
            axes = " x ".join(axis for axis in RULES["batch"] if axis in self.mesh.shape)
            self.notes.append(
                f"a micro-batch of {rows // passes} rows is no multiple of {axes} = {devices}:"
                " devices stand idle"
            )
        work = update_work(
            self.found.policy,
            prompts=prompts,
            width=width,
            rows=rows,
            tokens=tokens,
            remat=self.remat,
        )
        return Planned(
            "update",
            self.mesh,
            lower,
            work,
            frozenset(uses),
            self.on_host("weights", "moments") | {"policy for decoding"},
            training.epochs * training.mini_batches * training.length_buckets,
            rows // passes,
            aliased=True,
            facts=Facts(layers=self.found.policy.num_layers, passes=passes),
        )

    def logprobs(self) -> Planned:
        """Old log-probs, and those of the reference."""
        kl = self.losses.kl_weight > 0
        # With other dtypes its argument is a copy, and the kept weights wait beside it.
        uses = {"start weights"} if kl else set() if self.cast else {"weights"}
        gone = self.on_host("start weights", "weights", "moments") | {"policy for decoding"}
        who = Writer(self.found.policy, self.weights, self.mesh, frozenset(uses))
        return self.written_logprobs("log-probs", who, gone, kl + self.recomputes)

    def teacher_logprobs(self, teacher: Writer) -> Planned:
        """What a teacher says of the policy's tokens."""
        return self.written_logprobs("teacher log-probs", teacher, self.on_host("teacher"), 1)

    def written_logprobs(self, name: str, who: Writer, gone: frozenset[str], times: int) -> Planned:
        """`training.logprobs.written_logprobs` of a step's rows."""
        config, training = self.config, self.config.training
        parts = training.micro_batches * training.mini_batches
        batch, passes = self.packed(1, parts, (), who.mesh)

        def lower() -> Any:
            run = learning.logprobs_program(
                models.for_device(who.config), config.rollout.temperature, passes
            )
            return run.lower(who.weights, batch)

        prompts, width = batch["prompt"].shape
        count, tokens = batch["completion"].shape
        work = update_work(
            who.config,
            prompts=prompts,
            width=width,
            rows=count,
            tokens=tokens,
            remat="none",
            train=False,
        )
        runs = training.length_buckets * times
        return Planned(name, who.mesh, lower, work, who.uses, gone, runs)
