"""Every setting of supervised training, with its default, its meaning and its checks."""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal

from ml_collections import ConfigDict

from scope_jax.configuration.renamed import SUPERVISED_NAMES, renamed_to
from scope_jax.configuration.schema import from_dict, leaves, to_config_dict
from scope_jax.configuration.sections import Dtype, MasterWeights, MatmulPrecision
from scope_jax.data.load import GENERATED, TaskSpec, generated_domain
from scope_jax.learning import OptimizerSpec, Remat
from scope_jax.supervision.labels import LabelSpec
from scope_jax.tasks import GeneratedDomain
from scope_jax.types import check_least


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The size of a new decoder."""

    hidden_size: int = 96  # D
    num_layers: int = 3  # L
    num_heads: int = 4  # N
    num_kv_heads: int = 2  # K
    ffn_size: int = 288  # F
    rope_theta: float = 1000.0  # base of the rotary positions


@dataclasses.dataclass(frozen=True)
class SupervisedMesh:
    """How the devices are laid out; one size may be -1: what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1


@dataclasses.dataclass(frozen=True)
class FreshProblems:
    """Problems that a domain's program makes, without end; used where `task.data` is None."""

    lengths: tuple[int, ...] = (2, 3, 4, 5, 6)  # sizes, drawn from these, so repeats weigh
    start: str = "zero"  # of arithmetic: zero | random (written in the prompt)
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class PolicyTarget:
    """Next-token loss on demonstrations: a policy, or a teacher."""

    name: Literal["policy"] = "policy"
    style: str = "mixed"  # of the domain's program; reference solutions are taken as they are
    misconception: float = 0.0  # probability that a line of the kind below is written wrong
    # arithmetic: borrow, carry, wrap, facts; countdown: haste, slip; algebra: sign, bracket
    misconception_kind: str = "borrow"
    # Some first lines are given, in random order, and not trained on: the model learns to go on
    # in its own style from what somebody else wrote.
    foreign_prefix: bool = False
    in_steps: bool = False  # divide reference solutions into the domain's steps
    max_tokens: int | None = None  # longer rows are dropped and counted; None: the model's limit


@dataclasses.dataclass(frozen=True)
class LabelledRollouts:
    """The rollouts whose steps are labelled."""

    policy: str | None = None  # directory of the policy that writes them
    problems: int = 1024
    group: int = 4  # rollouts per problem
    lengths: tuple[int, ...] = (4, 5, 6)  # sizes of fresh problems
    held_out: int = 256  # further problems, on which first-error rates are reported
    problems_at_once: int = 256  # of a chunk; times `group` the rows that are decoded together
    prompt_tokens: int | None = None  # longer prompts are dropped; None: what fresh problems need
    new_tokens: int | None = None  # longer rollouts are left out; None: the same
    temperature: float = 1.0  # of rollouts and continuations

    def __post_init__(self) -> None:
        counts = ("problems", "group", "held_out", "problems_at_once")
        check_least(self, "target.rollouts", 1, *counts, "prompt_tokens", "new_tokens")
        check_least(self, "target.rollouts", 0, "temperature")


@dataclasses.dataclass(frozen=True)
class PrmTarget:
    """Two-class cross-entropy at the step marks of labelled rollouts: a process reward model."""

    name: Literal["prm"] = "prm"
    rollouts: LabelledRollouts = LabelledRollouts()
    labels: LabelSpec = LabelSpec()
    threshold: float = 0.5  # of the first error in the rates that are reported


@dataclasses.dataclass(frozen=True)
class SupervisedOptimizer:
    """AdamW with a warm-up and a cosine over the run."""

    learning_rate: float = 3e-3  # at its peak
    warmup_steps: int = 30  # fewer than `steps`
    final_share: float = 0.1  # rate at the end, as a share of the peak
    b2: float = 0.98
    weight_decay: float = 0.01  # of matrices only


@dataclasses.dataclass(frozen=True)
class SupervisedCheckpoint:
    """Checkpoints while the run lasts; they are removed when it is done."""

    every: int | None = None  # updates; None: none


@dataclasses.dataclass(frozen=True)
class SuperviseConfig:
    """All settings of `scope_jax.supervise`."""

    OLD_NAMES: ClassVar[Mapping[str, str]] = SUPERVISED_NAMES

    seed: int = 0  # of initialisation and batches
    steps: int = 500  # updates
    batch: int = 64  # rows per update
    micro_batches: int = 4  # passes per update
    dtype: Dtype = "float32"  # what weights are used and exported in
    matmul_precision: MatmulPrecision = "float32"  # of float32 products on accelerators
    master_weights: MasterWeights = "float32"  # what they are kept in; none: `dtype`
    remat: Remat = "none"  # what is computed again in the backward pass
    mesh: SupervisedMesh = SupervisedMesh()
    model: ModelSize = ModelSize()  # where `start` is None
    start: str | None = None  # directory to start from; of a PRM: the trunk (None: the policy)
    chat: bool = False  # put prompts into the tokenizer's chat template
    task: TaskSpec = field(default_factory=TaskSpec)
    fresh: FreshProblems = FreshProblems()
    target: PolicyTarget | PrmTarget = PolicyTarget()
    optimizer: SupervisedOptimizer = SupervisedOptimizer()
    checkpoint: SupervisedCheckpoint = SupervisedCheckpoint()

    def __post_init__(self) -> None:
        check_least(self, "", 1, "steps", "batch", "micro_batches")
        target = self.target
        if self.makes_problems:
            self.generated_domain()
        needs_start = isinstance(target, PolicyTarget) and self.task.name not in GENERATED
        if needs_start and self.start is None:
            raise ValueError(
                f"config.start is None; task {self.task.name!r} needs a Hugging Face directory to"
                " start from"
            )
        if isinstance(target, PrmTarget):
            if not target.rollouts.policy:
                raise ValueError(
                    "config.target.rollouts.policy is None; give the directory of the policy whose"
                    " rollouts are labelled"
                )
            limits = (target.rollouts.prompt_tokens, target.rollouts.new_tokens)
            if not self.makes_problems and None in limits:
                raise ValueError(
                    "config.target.rollouts.prompt_tokens and .new_tokens must be set for problems"
                    " of a data set"
                )
        _ = self.optimizer_spec

    @property
    def makes_problems(self) -> bool:
        """Whether problems are made by a program, as many as are wanted, instead of read."""
        return self.task.name in GENERATED and not self.task.data

    @property
    def optimizer_spec(self) -> OptimizerSpec:
        """The optimiser's own spec."""
        settings = dataclasses.asdict(self.optimizer)
        return OptimizerSpec(schedule="cosine", steps=self.steps, **settings)

    def generated_domain(self) -> GeneratedDomain:
        """The domain whose program makes the problems."""
        settings: dict[str, Any] = {}
        if isinstance(self.target, PolicyTarget) and self.target.misconception:
            settings["misconception"] = self.target.misconception
            settings["misconception_kind"] = self.target.misconception_kind
        if self.task.name == "arithmetic":
            settings["start"] = self.fresh.start
        return generated_domain(self.task.name, settings | self.task.options)


def default_config(target: str = "policy") -> ConfigDict:
    """All settings with their defaults, to train a `policy` (or teacher) or a `prm`. Raises
    ValueError for another target."""
    if target not in ("policy", "prm"):
        raise ValueError(f"target {target!r} is unknown; policy or prm")
    config = to_config_dict(SuperviseConfig())
    if target == "prm":
        with config.unlocked():
            config.target = to_config_dict(PrmTarget())
    return config


def supervise_config(config: ConfigDict | SuperviseConfig) -> SuperviseConfig:
    """The typed, frozen tree of a config; raises ValueError in one line."""
    if isinstance(config, SuperviseConfig):
        return config
    for name, _ in leaves(config):
        if (now := renamed_to(name, SUPERVISED_NAMES)) is not None:
            raise ValueError(f"config.{name}: renamed; it is now {now}")
    return from_dict(SuperviseConfig, config.to_dict())
