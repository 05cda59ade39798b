"""The compiled programs of a training run, as `scope_jax.train` runs them, with shapes in place of
arrays.

Every program is the trainer's own jitted function, lowered with the largest shapes that the config
allows: prompts and rows as long as they may be, every group with as many corrections as it may
have.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from scope_jax import models
from scope_jax.configuration import (
    final_group,
    lora_spec,
    loss_spec,
    needs_prm,
    needs_teacher,
    optimizer_spec,
    steps_spec,
)
from scope_jax.correction.sizes import bucket
from scope_jax.devices.mesh import RULES, make_mesh, reshape_mesh
from scope_jax.fit.costs import Work, generate_work, score_work, update_work
from scope_jax.fit.lint import Facts
from scope_jax.fit.shapes import (
    for_decoding,
    local_bytes,
    row_struct,
    row_structs,
    train_state,
    whole,
)
from scope_jax.learning.update import logprobs_program
from scope_jax.models.weights import abstract, shardings
from scope_jax.prm.model import ProcessRewardModel, _probabilities
from scope_jax.rollout.generate import _bucket, _generate
from scope_jax.rollout.generator import part_size
from scope_jax.training.learner import CLONING, _update_program

# States of the table that ends a step at its separator, a blank line.
STOP_STATES = 3
# Tokens that a PRM's own template puts around a solution.
TEMPLATE_TOKENS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One compiled program. lower: gives what can be compiled; called with `mesh` set. uses: names
    of `held` that are its arguments. gone: names that are not alive meanwhile. runs: how often it
    runs in a step. rows: what its memory grows with."""

    name: str
    mesh: Mesh
    lower: Callable[[], Any]
    work: Work
    uses: frozenset[str]
    gone: frozenset[str] = frozenset()
    runs: float = 1.0
    rows: int = 0
    aliased: bool = False  # whether it is to write its result over its arguments
    facts: Facts = dataclasses.field(default_factory=Facts)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """held: bytes of one device that stay between programs, by name. notes: what was taken for
    granted."""

    held: dict[str, float]
    programs: list[Program]
    notes: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """Shapes of who takes part."""

    policy: models.ModelConfig
    teacher: models.ModelConfig | None = None
    prm: models.ModelConfig | None = None


def mesh_of(config: ConfigDict, devices: list[Any]) -> Mesh:
    """The mesh of a run. Raises ValueError where it does not match the devices."""
    return make_mesh(**config.mesh.to_dict(), devices=devices)


def own_mesh(config: ConfigDict, who: str, mesh: Mesh) -> Mesh:
    """The mesh of teacher or PRM. Raises ValueError where it does not match the devices."""
    shape = config.meshes[who].to_dict()
    try:
        return reshape_mesh(mesh, **shape) if any(shape.values()) else mesh
    except ValueError as error:
        raise ValueError(f"config.meshes.{who}: {error}") from None


def check_heads(who: str, config: models.ModelConfig, mesh: Mesh) -> None:
    """Raise ValueError where the model's heads cannot be split over the mesh for decoding."""
    if config.num_kv_heads % mesh.shape["tensor"]:
        raise ValueError(
            f"mesh.tensor = {mesh.shape['tensor']} does not divide the {config.num_kv_heads} key"
            f" and value heads of the {who}: each device would keep a whole cache; choose a divisor"
            f" of {config.num_kv_heads}"
        )


def plan(config: ConfigDict, found: Models, devices: list[Any]) -> Plan:
    """The programs of one step of `config`, on these devices. Raises ValueError for a mesh that
    does not match."""
    mesh = mesh_of(config, devices)
    check_heads("policy", found.policy, mesh)
    make = _Maker(config, found, mesh)
    return Plan(make.held, list(make.programs()), make.notes)


class _Maker:
    def __init__(self, config: ConfigDict, found: Models, mesh: Mesh):
        self.config, self.found, self.mesh = config, found, mesh
        self.dtype = jnp.dtype(config.dtype)
        self.teacher_mesh, self.prm_mesh = (
            own_mesh(config, who, mesh) for who in ("teacher", "prm")
        )
        if found.teacher is not None:
            check_heads("teacher", found.teacher, self.teacher_mesh)
        self.notes: list[str] = []
        self.lora, self.losses = lora_spec(config), loss_spec(config)
        self.weights = abstract(found.policy, self.dtype, mesh)
        self.state = train_state(config, found.policy, self.dtype, mesh)
        self.decoding = for_decoding(found.policy, self.weights, mesh)
        self.held = {
            "weights": local_bytes(self.state.params),
            "moments": local_bytes(self.state.opt_state),
        }
        if self.lora is not None or self.losses.kl_weight > 0:
            self.held["start weights"] = local_bytes(self.weights)
        # Without fsdp the layout for decoding is that of training, and where the dtype is the
        # same, too, so are the arrays.
        self.cast = self.lora is None and any(
            w.dtype != self.dtype for w in jax.tree.leaves(self.state.params)
        )
        if mesh.shape["fsdp"] > 1 or self.lora is not None or self.cast:
            self.held["policy for decoding"] = local_bytes(self.decoding)
        if found.teacher is not None:
            weights = abstract(found.teacher, self.dtype, self.teacher_mesh)
            self.teacher_weights = for_decoding(found.teacher, weights, self.teacher_mesh)
            self.held["teacher"] = local_bytes(self.teacher_weights)
        if found.prm is not None:
            self.prm_weights = abstract(found.prm, self.dtype, self.prm_mesh)
            self.held["PRM"] = local_bytes(self.prm_weights)
        # Token ids, owners and log-probs of a step's rows.
        rollout = config.rollout
        self.held["rows"] = local_bytes(
            row_structs(rollout.prompts * final_group(config), self.slots, mesh)
        )

    @property
    def slots(self) -> int:
        return self.config.rollout.prompt_tokens + self.config.rollout.new_tokens

    def parked(self, *own: str) -> frozenset[str]:
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
            if name not in own and self.config.placement[key] == "host"
        )

    def programs(self) -> Iterator[Program]:
        config, rollout, found = self.config, self.config.rollout, self.found
        group = rollout.group - config.method.per_group
        policy = frozenset(
            {"policy for decoding"} if "policy for decoding" in self.held else {"weights"}
        )
        if "policy for decoding" in self.held:
            yield self.decode_layout()
        yield self.generate(
            "rollout", found.policy, self.decoding, self.mesh, policy | {"rows"}, rows=rollout.prompts * group, shared=group,
            longest=rollout.prompt_tokens, slots=self.slots, new=rollout.new_tokens, seats=rollout.slots, runs=1 + rollout.resample,
        )  # fmt: skip
        if needs_prm(config):
            yield from self.scores()
        if config.correction.enabled:
            yield from self.corrections(policy)
            if config.localiser.kind == "monte_carlo":
                self.notes.append(
                    "the continuations of correction.localiser 'monte_carlo' are not compiled"
                )
        if found.teacher is not None and needs_teacher(config) and self.shown:
            yield self.generate(
                "demonstrations", found.teacher, self.teacher_weights, self.teacher_mesh, frozenset({"teacher"}), rows=self.shown,
                shared=1, longest=rollout.prompt_tokens, slots=self.slots, new=rollout.new_tokens, own="teacher",
            )  # fmt: skip
        if self.losses.kl_weight > 0 or self.recomputes:
            yield self.logprobs()
        yield self.update()
        evaluation = config.evaluation
        samples = evaluation.samples
        chunk = max(evaluation.rows // samples, 1)
        prompt, new = (
            evaluation.prompt_tokens or rollout.prompt_tokens,
            evaluation.new_tokens or rollout.new_tokens,
        )
        yield self.generate(
            "evaluation", found.policy, self.decoding, self.mesh, policy, rows=chunk * samples, shared=samples,
            longest=prompt, slots=prompt + new, new=new, runs=0, temperature=evaluation.temperature,
        )  # fmt: skip

    @property
    def recomputes(self) -> bool:
        """Whether old log-probs are computed before the updates."""
        training = self.config.training
        return (
            self.config.loss.old_logp == "recompute" and training.epochs * training.mini_batches > 1
        )

    @property
    def shown(self) -> int:
        """Rows of demonstrations asked for at once."""
        shows, prompts = self.config.demonstrations, self.config.rollout.prompts
        supervised = (shows.rows or prompts) if shows.supervised_steps else 0
        return max(prompts * shows.per_group, supervised, shows.buffer)

    # ---- programs

    def decode_layout(self) -> Program:
        """The weights, as they are used, laid out for decoding. For a moment, merged or cast ones
        are there beside them."""
        move = jax.jit(
            lambda weights: weights,
            out_shardings=shardings(self.found.policy, self.mesh, ("fsdp",)),
        )
        own = {"policy for decoding"} | (
            {"weights"} if self.lora is None and not self.cast else set()
        )
        lower = lambda: move.lower(self.weights)
        return Program(
            "decode_layout",
            self.mesh,
            lower,
            Work(0.0),
            frozenset(own),
            self.parked("weights") | {"rows"},
        )

    def generate(
        self,
        name: str,
        model: models.ModelConfig,
        weights: models.Params,
        mesh: Mesh,
        uses: frozenset[str],
        *,
        rows: int,
        shared: int,
        longest: int,
        slots: int,
        new: int,
        seats: int = 0,
        runs: float = 1.0,
        temperature: float | None = None,
        stops: bool = False,
        own: str = "",
    ) -> Program:
        """`rollout.generate` of `rows` rows whose prefixes have at most `longest` tokens."""
        rollout = self.config.rollout
        temperature = rollout.temperature if temperature is None else temperature
        seats, width = min(seats or rows, rows), _bucket(longest, slots)
        top = (rollout.top_p, rollout.top_k) if name in ("rollout", "tails") else (1.0, 0)
        ends = model.end_ids or (0,)

        def lower() -> Any:
            kind = rollout.cache if name in ("rollout", "tails") else "auto"
            static = (
                temperature,
                *top,
                new,
                ends,
                width,
                shared,
                seats,
                models.unroll_layers(),
                kind,
            )
            batch = row_structs(rows, slots, mesh)
            number = functools.partial(whole, (), mesh=mesh)
            stop = whole((STOP_STATES, model.vocab_size), jnp.int32, mesh) if stops else None
            key = number(jax.eval_shape(lambda: jax.random.key(0)).dtype)
            limit = whole((rows,), jnp.int32, mesh)
            return _generate.lower(
                weights, batch, key, number(jnp.int32), number(jnp.int8), limit, stop, model, static
            )  # fmt: skip

        keys = min(width + new, slots)
        work = generate_work(
            model,
            prompts=rows // shared,
            width=width,
            rows=rows,
            seats=seats,
            tokens=new,
            keys=keys,
        )
        local = seats // math.prod(mesh.shape[axis] for axis in RULES["batch"])
        int8 = rollout.cache == "int8" and name in ("rollout", "tails")
        layer = (
            local
            * model.num_kv_heads
            // mesh.shape["tensor"]
            * keys
            * model.head_size
            * (1 if int8 else self.dtype.itemsize)
        )
        facts = Facts(layer_cache=layer, rows=local, layers=model.num_layers)
        return Program(name, mesh, lower, work, uses, self.parked(own), runs, seats, facts=facts)

    def corrections(self, policy: frozenset[str]) -> Iterator[Program]:
        """The teacher's steps and the policy's tails behind them, from cuts anywhere in the row."""
        config, correction = self.config, self.config.correction
        most = config.rollout.prompts * steps_spec(config).select.most(config.rollout.group)
        rescued = bucket(most, most)
        rows = part_size(rescued, correction.rows)
        teacher, weights, mesh, uses, own = (
            self.found.teacher,
            None,
            self.teacher_mesh,
            frozenset({"teacher"}),
            "teacher",
        )
        if config.teacher.kind == "self":
            teacher, weights, mesh, uses, own = (
                self.found.policy,
                self.decoding,
                self.mesh,
                policy,
                "",
            )
        elif teacher is not None:
            weights = self.teacher_weights
        prompted = config.teacher.template != "continue" or bool(config.teacher.prompt)
        room = config.teacher.prompt_tokens + correction.step_tokens if prompted else self.slots
        if teacher is not None and weights is not None:
            yield self.generate(
                "teacher", teacher, weights, mesh, uses, rows=rows, shared=1, longest=config.teacher.prompt_tokens if prompted
                else self.slots, slots=room, new=correction.step_tokens, temperature=correction.teacher_temperature, stops=True,
                own=own, runs=rescued // rows,
            )  # fmt: skip
        if correction.tail == "none":
            return
        model, written, where, who = self.found.policy, self.decoding, self.mesh, policy
        if correction.tail == "teacher" and teacher is not None and weights is not None:
            model, written, where, who = teacher, weights, mesh, uses
        yield self.generate(
            "tails", model, written, where, who, rows=rows, shared=1, longest=self.slots, slots=self.slots,
            new=config.rollout.new_tokens, runs=correction.tails * rescued // rows, own=own if correction.tail == "teacher" else "",
        )  # fmt: skip

    def scores(self) -> Iterator[Program]:
        config, model, mesh = self.config, self.found.prm, self.prm_mesh
        assert model is not None
        rows = config.rollout.prompts * config.rollout.group
        length = min(self.slots + TEMPLATE_TOKENS, model.max_positions)
        with jax.set_mesh(self.mesh):
            chunks = list(
                ProcessRewardModel._chunks(
                    cast(Any, SimpleNamespace(tokens_at_once=ProcessRewardModel.tokens_at_once)),
                    [length] * rows,
                    rows,
                )
            )
        (count, width), choice = chunks[0][1], None if model.head != "lm" else (0, 1)
        tokens = row_struct((count, width), jnp.int32, mesh)
        lengths = row_struct((count,), jnp.int32, mesh)
        lower = lambda: _probabilities.lower(
            self.prm_weights, model, tokens, lengths, choice=choice
        )
        work = score_work(model, count, width)
        yield Program(
            "PRM",
            mesh,
            lower,
            work,
            frozenset({"PRM"}),
            self.parked("PRM"),
            runs=len(chunks),
            rows=count,
        )

    def packed(self, mini_batches: int, micro_batches: int) -> tuple[dict[str, Any], int]:
        """(what `learning.pack` makes of a part of the step's rows, its passes), at the largest
        widths."""
        training, rollout = self.config.training, self.config.rollout
        group, buckets = final_group(self.config), training.length_buckets
        rows = rollout.prompts * group // mini_batches // buckets
        passes = math.gcd(rows, max(micro_batches // buckets, 1))
        devices = math.prod(self.mesh.shape[axis] for axis in RULES["batch"])
        together = math.gcd(group, rows // passes, max(rows // passes // devices, 1))
        width, tokens = (-(-n // 8) * 8 for n in (rollout.prompt_tokens, rollout.new_tokens))
        struct = functools.partial(row_struct, mesh=self.mesh)
        floats = ["on", "off"]
        if self.config.loss.old_logp == "sampler" or training.epochs * training.mini_batches > 1:
            floats.append("old_logp")
        floats += ["reference_logp"] if self.losses.kl_weight > 0 else []
        floats += ["sampler_logp"] if self.losses.tis_cap is not None else []
        floats += ["teacher_logp"] if self.losses.teacher_term == "importance" else []
        by_token = self.config.advantage.process != "none"
        batch = {
            "prompt": struct((rows // together, width), jnp.int32),
            "prompt_length": struct((rows // together,), jnp.int32),
            "completion": struct((rows, tokens), jnp.int32),
            "advantage": (
                struct((rows, tokens), jnp.float32)
                if by_token
                else whole((rows,), jnp.float32, self.mesh)
            ),
            **{name: struct((rows, tokens), jnp.float32) for name in floats},
        }
        return batch, passes

    def update(self) -> Program:
        config, training = self.config, self.config.training
        batch, passes = self.packed(training.mini_batches, training.micro_batches)
        runs = training.epochs * training.mini_batches * training.length_buckets
        losses = CLONING if config.sft.steps >= config.steps else self.losses

        def lower() -> Any:
            program = _update_program(
                self.found.policy, losses, optimizer_spec(config), self.lora, config.rollout.temperature, training.remat, passes,
                models.unroll_layers(training.remat), config.dtype,
            )  # fmt: skip
            scalars: dict[str, Any] = {"teacher_weight": whole((), jnp.float32, self.mesh)}
            if self.lora is not None:
                scalars["base"] = self.weights
            return jax.jit(program, donate_argnums=0).lower(self.state, batch, scalars)

        uses = {"weights", "moments"} | ({"start weights"} if self.lora is not None else set())
        prompts, width = batch["prompt"].shape
        rows, tokens = batch["completion"].shape
        devices = math.prod(self.mesh.shape[axis] for axis in RULES["batch"])
        if rows // passes % devices:
            self.notes.append(
                f"a micro-batch of {rows // passes} rows is no multiple of data x fsdp = {devices}:"
                " devices stand idle"
            )
        work = update_work(
            self.found.policy,
            prompts=prompts,
            width=width,
            rows=rows,
            tokens=tokens,
            remat=training.remat,
        )
        gone = self.parked("weights", "moments") | {"policy for decoding"}
        facts = Facts(layers=self.found.policy.num_layers, passes=passes)
        return Program(
            "update",
            self.mesh,
            lower,
            work,
            frozenset(uses),
            gone,
            runs,
            rows // passes,
            True,
            facts,
        )

    def logprobs(self) -> Program:
        config, training = self.config, self.config.training
        batch, passes = self.packed(1, training.micro_batches * training.mini_batches)
        rows = {name: batch[name] for name in ("prompt", "prompt_length", "completion")}

        def lower() -> Any:
            program = logprobs_program(
                self.found.policy, config.rollout.temperature, passes, models.unroll_layers()
            )
            return program.lower(self.weights, rows)

        prompts, width = batch["prompt"].shape
        count, tokens = batch["completion"].shape
        work = update_work(
            self.found.policy,
            prompts=prompts,
            width=width,
            rows=count,
            tokens=tokens,
            remat="none",
            train=False,
        )
        # With other dtypes its argument is a copy, and the kept weights wait beside it.
        uses = frozenset(
            {"start weights"}
            if self.losses.kl_weight > 0
            else {"weights"}
            if not self.cast
            else set()
        )
        gone = self.parked("start weights", "weights", "moments") | {"policy for decoding"}
        # Old log-probs, and those of the reference.
        runs = training.length_buckets * ((self.losses.kl_weight > 0) + self.recomputes)
        return Program("log-probs", self.mesh, lower, work, uses, gone, runs)
