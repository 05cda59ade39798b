"""All settings of a training run as one tree, and what cannot go together in it.

An experiment is a file with a `get_config()` that starts from `default_config()` and changes some
of it. `train_config` makes the typed, frozen tree of it that the program is handed; nothing below
the entry points ever sees a ConfigDict. docs/method.md says why the defaults are what they are.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, ClassVar

from ml_collections import ConfigDict

from scope_jax.configuration.methods import METHODS, Grpo, Luffy, Method, Relift, Scope, Vppo
from scope_jax.configuration.renamed import NAMES, renamed_to
from scope_jax.configuration.schema import from_dict, leaves, to_config_dict
from scope_jax.configuration.sections import (
    CheckpointConfig,
    Dtype,
    EvaluationConfig,
    LoraConfig,
    MatmulPrecision,
    MeshConfig,
    ModelsConfig,
    PlacementConfig,
    RolloutConfig,
    SamplesConfig,
    SftConfig,
    TeacherConfig,
    TrainingConfig,
)
from scope_jax.correction import LocaliserSpec
from scope_jax.data.load import TaskSpec
from scope_jax.learning import AdvantageSpec, LossSpec, OptimizerSpec
from scope_jax.learning.credit import Credit, OutcomeCredit, SummedSteps
from scope_jax.rewards import RewardSpec
from scope_jax.run import TrackSpec
from scope_jax.teachers import DemonstrationSpec
from scope_jax.types import check_least


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of `scope_jax.train`."""

    OLD_NAMES: ClassVar[Mapping[str, str]] = NAMES

    seed: int = 0  # of every random draw of the run
    steps: int = 100  # rollout batches; one update each unless `training` says otherwise
    dtype: Dtype = "float32"  # what weights are used in
    matmul_precision: MatmulPrecision = "float32"  # of float32 products on accelerators
    mesh: MeshConfig = MeshConfig()
    placement: PlacementConfig = PlacementConfig()
    task: TaskSpec = field(default_factory=TaskSpec)
    models: ModelsConfig = ModelsConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardSpec = field(default_factory=RewardSpec)  # what a row is worth
    method: Method = Grpo()
    localiser: LocaliserSpec = LocaliserSpec()  # of `scope` and of methods that score steps
    teacher: TeacherConfig = TeacherConfig()  # of `scope`, `luffy`, `relift` and `sft`
    demonstrations: DemonstrationSpec = DemonstrationSpec()  # of `luffy`, `relift` and `sft`
    sft: SftConfig = SftConfig()
    advantage: AdvantageSpec = AdvantageSpec()
    loss: LossSpec = LossSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    track: TrackSpec = TrackSpec()

    def __post_init__(self) -> None:
        check_least(self, "", 1, "steps")
        check_least(self, "", 0, "seed")
        loss = dataclasses.replace(self.loss, max_new_tokens=self.rollout.new_tokens)
        object.__setattr__(self, "loss", loss)
        for reason in conflicts(self):
            raise ValueError(reason)

    @property
    def uses_teacher(self) -> bool:
        """Whether the run asks a teacher, for steps, for demonstrations or for its log-probs."""
        return isinstance(self.method, Scope) or self.uses_demonstrations or self.distills

    @property
    def distills(self) -> bool:
        """Whether the policy's own tokens are compared with the teacher's log-probs."""
        return self.loss.distill_weight > 0

    @property
    def uses_demonstrations(self) -> bool:
        """Whether the run asks the teacher for whole solutions."""
        return isinstance(self.method, Luffy | Relift) or self.sft.steps > 0

    @property
    def credit(self) -> Credit:
        """How advantages come from rewards: by the method itself where it has a way of its own."""
        method = self.method
        return method if isinstance(method, Credit) else OutcomeCredit()

    @property
    def uses_localiser(self) -> bool:
        """Whether the run looks for the first wrong step of a row."""
        return isinstance(self.method, Scope) or self.credit.scores_steps

    @property
    def uses_prm(self) -> bool:
        """Whether the run scores steps with a process reward model."""
        return (self.localiser.kind == "prm" and self.uses_localiser) or self.reward.uses_prm

    @property
    def resample(self) -> int:
        """Further batches of prompts per step at most, for groups with two different rewards: of
        rollouts, or under SCOPE of rescued ones."""
        return getattr(self.method, "resample", 0)

    @property
    def evaluation_tokens(self) -> tuple[int, int]:
        """(prompt_tokens, new_tokens) of an evaluation: those of the rollouts where its own section
        leaves them open."""
        own, rollouts = self.evaluation, self.rollout
        return own.prompt_tokens or rollouts.prompt_tokens, own.new_tokens or rollouts.new_tokens

    @property
    def rows_per_group(self) -> int:
        """Rows of a group in the update: rescued rows may be appended."""
        group, method = self.rollout.group, self.method
        if isinstance(method, Scope) and method.place == "append":
            return group + method.select.most(group)
        return group


def default_config(method: str = "grpo") -> ConfigDict:
    """All settings of `scope_jax.train` with their defaults; `method` says which variant stands in
    the section `method`. Raises ValueError for an unknown one."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; one of {', '.join(METHODS)}")
    config = to_config_dict(TrainConfig())
    with config.unlocked():
        config.method = to_config_dict(METHODS[method]())
    return config


def set_method(config: ConfigDict, method: str) -> None:
    """Put another variant, with its defaults, into the section `method`."""
    with config.unlocked():
        config.method = default_config(method).method


def train_config(config: ConfigDict | TrainConfig) -> TrainConfig:
    """The typed, frozen tree of a config. Raises ValueError, in one line, for unknown or missing
    keys, values that make no sense and settings that cannot go together."""
    if isinstance(config, TrainConfig):
        return config
    for name, _ in leaves(config):
        if (now := renamed_to(name)) is not None:
            raise ValueError(f"config.{name}: renamed; it is now {now}")
    values = config.to_dict()
    optimizer = values.get("optimizer") or {}
    if optimizer.get("steps", 0) is None:  # a schedule runs over the updates of the whole run
        _check_schedule(values, optimizer)
        training = values.get("training") or {}
        supervised = (values.get("sft") or {}).get("steps")
        counts = [values.get("steps"), training.get("epochs"), training.get("mini_batches")]
        if all(isinstance(count, int) for count in (*counts, supervised)):
            steps, epochs, parts = counts
            first = min(supervised, steps)  # in parts too, but once
            optimizer["steps"] = first * parts + (steps - first) * epochs * parts
    return from_dict(TrainConfig, values)


def _check_schedule(values: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
    method, schedule = values.get("method") or {}, optimizer.get("schedule")
    if method.get("name") == "relift" and schedule != "constant":
        raise ValueError(
            f"config.optimizer.schedule = {schedule!r}: the supervised updates of relift count too,"
            " and how many there are shows while it runs: set optimizer.steps"
        )


def conflicts(config: TrainConfig) -> Iterator[str]:
    """What cannot go together, each with its reason."""
    method = config.method
    if isinstance(method, Scope):
        yield from _of_scope(config, method)
    if isinstance(method, Luffy):
        yield from _of_luffy(config, method)
    if isinstance(method, Vppo):
        yield from _of_vppo(config)
    if config.credit.scores_steps:
        yield from _of_scored_steps(config)
    elif config.uses_localiser and config.localiser.kind == "likelihood":
        yield from _of_likelihood(config)
    if config.sft.steps < config.steps:
        yield from _of_groups(config)
        yield from _of_diversity(config)
    if config.teacher.first == "self":
        yield from _of_own_repairs(config)
    if config.distills and config.teacher.kind != "model":
        yield (
            "config.loss.distill_weight needs the teacher's log-probs of tokens that it did not"
            f" write: teacher.kind 'model', not {config.teacher.kind!r}"
        )
    if config.uses_demonstrations and config.teacher.kind == "self":
        yield (
            "config.demonstrations need a teacher other than the policy itself: teacher.kind"
            " 'self' gives none"
        )
    if config.models.teacher_weights == "int8" and config.teacher.kind != "model":
        yield (
            "config.models.teacher_weights 'int8' is for a teacher that is a frozen model of its"
            f" own: teacher.kind 'model', not {config.teacher.kind!r}"
        )
    if config.placement.reference == "host" and config.lora.rank is not None:
        yield (
            "config.placement.reference 'host' and lora.rank: the weights under the adapters are"
            " needed in every update"
        )
    if (config.advantage.overlong_tokens or 0) > config.rollout.new_tokens:
        yield (
            f"config.advantage.overlong_tokens = {config.advantage.overlong_tokens} is more than"
            f" rollout.new_tokens = {config.rollout.new_tokens}"
        )
    if config.samples.show_every and not isinstance(method, Scope):
        yield (
            f"config.samples.show_every = {config.samples.show_every} shows rescues, which method"
            f" {method.name!r} has none of: set it to None"
        )
    if config.reward.uses_prm and not config.models.prm:
        yield "config.models.prm is None; a part of the reward is 'prm', a process reward model"
    if config.resample < 0:
        yield f"config.method.resample = {config.resample} must be 0 or more"
    yield from _uneven(config)


def _of_scope(config: TrainConfig, method: Scope) -> Iterator[str]:
    loss, kind = config.loss, config.teacher.kind
    if method.tail == "teacher" and kind != "model":
        yield f"config.method.tail 'teacher' needs teacher.kind 'model', not {kind!r}"
    if method.tail == "none" and method.tails > 1:
        yield (
            f"config.method.tails = {method.tails}: method.tail 'none' writes none; set tails to 1"
        )
    if method.candidates > 1 and kind in ("reference", "program"):
        yield (
            f"config.method.candidates = {method.candidates}: teacher.kind {kind!r} writes the same"
            " step each time; set candidates to 1, or teacher.kind to 'model' or 'endpoint'"
        )
    elif method.candidates > 1 and config.teacher.temperature == 0:
        yield (
            f"config.method.candidates = {method.candidates}: with teacher.temperature 0 all of"
            " them are the same step; set it above 0"
        )
    if method.accept != "unverified":
        return
    if method.resample:
        yield (
            f"config.method.resample = {method.resample} looks for groups that the rescue gave a"
            " second reward, and unverified rows have none: set it to 0, or method.accept to"
            " 'verified' with a tail"
        )
    if loss.teacher_term in ("shaped", "reinforce", "importance"):
        yield (
            f"config.loss.teacher_term {loss.teacher_term!r} multiplies by an advantage, and"
            " unverified rows have none: use 'nll' with method.accept 'unverified'"
        )
    if loss.teacher_term == "mask" or not loss.teaches:
        yield (
            "config.method.accept 'unverified' gives rows that learn by the teacher's term alone,"
            " and loss.teacher_term or teacher_weight takes it away: set loss.teacher_term to 'nll'"
            " and a weight above 0"
        )
    if loss.teacher_steps is not None and not loss.teacher_weight_end:
        yield (
            f"config.loss.teacher_steps = {loss.teacher_steps} takes the teacher's term away, by"
            " which alone rows of method.accept 'unverified' learn: set it to None, or"
            " loss.teacher_weight_end above 0"
        )


def _of_own_repairs(config: TrainConfig) -> Iterator[str]:
    method = config.method
    if not isinstance(method, Scope):
        yield (
            "config.teacher.first 'self' is for method 'scope', where failures are repaired; with"
            f" method {method.name!r} set it to 'teacher'"
        )
        return
    if config.teacher.kind == "self":
        yield (
            "config.teacher.first 'self' comes before another teacher, and teacher.kind is 'self':"
            " for the policy alone set teacher.first to 'teacher'"
        )
    if method.tail == "none":
        yield (
            "config.teacher.first 'self' has the policy's repairs verified, and method.tail 'none'"
            " leaves the others without an answer: set method.tail to 'policy' or 'teacher'"
        )


def _of_luffy(config: TrainConfig, method: Luffy) -> Iterator[str]:
    if method.per_group >= config.rollout.group:
        yield (
            f"config.method.per_group = {method.per_group} leaves no rollout in a group of"
            f" {config.rollout.group}; for demonstrations alone set sft.steps"
        )
    if not config.demonstrations.verified and config.loss.teacher_term == "nll":
        yield (
            "config.loss.teacher_term 'nll' would clone demonstrations that the verifier refuses:"
            " set demonstrations.verified, or a term that multiplies by the advantage ('shaped',"
            " 'reinforce', 'importance')"
        )


def _of_vppo(config: TrainConfig) -> Iterator[str]:
    if config.advantage.overlong_tokens:
        yield (
            "config.method 'vppo' takes no punished rewards: set advantage.overlong_tokens to None"
        )
    if config.advantage.std:
        yield "config.method 'vppo' subtracts the group's mean only; set advantage.std to False"
    if config.advantage.baseline != "group" or config.advantage.batch_std:
        yield (
            "config.method 'vppo' has advantages of its own, from the group's mean: set"
            " advantage.baseline to 'group' and advantage.batch_std to False"
        )


def _of_scored_steps(config: TrainConfig) -> Iterator[str]:
    name = config.method.name
    if config.localiser.kind in ("monte_carlo", "likelihood"):
        yield (
            f"config.method {name!r} needs scores of steps: set localiser.kind to 'prm', 'oracle'"
            f" or 'function', not {config.localiser.kind!r}"
        )
    if config.loss.ratio == "sequence":
        yield (
            "config.loss.ratio 'sequence' has one ratio per row, which averages away the token"
            f" advantages of method {name!r}"
        )


def _of_likelihood(config: TrainConfig) -> Iterator[str]:
    if config.teacher.kind not in ("model", "self"):
        yield (
            "config.localiser.kind 'likelihood' asks the teacher for the probability of steps that"
            f" it did not write: teacher.kind 'model' or 'self', not {config.teacher.kind!r}"
        )


def _of_groups(config: TrainConfig) -> Iterator[str]:
    """Rollouts are compared with each other."""
    if config.rollout.group < 2:
        yield (
            f"config.rollout.group = {config.rollout.group} must be at least 2: a row is compared"
            " with the rest of its group"
        )
    if config.rollout.temperature == 0:
        yield (
            "config.rollout.temperature = 0 makes the rows of a group alike, which leaves nothing"
            " to compare: set it above 0"
        )


def _of_diversity(config: TrainConfig) -> Iterator[str]:
    """Switches of the advantage that would do nothing, or leave something out."""
    spec, method = config.advantage, config.method
    for name in spec.switched:
        if isinstance(method, Vppo):
            yield (
                f"config.advantage.{name} changes the advantage of the outcome, which method 'vppo'"
                " does not use; leave it at its default"
            )
        if isinstance(method, SummedSteps) and method.outcome_weight == 0:
            yield (
                f"config.advantage.{name} changes the advantage of the outcome, which"
                " method.outcome_weight = 0 takes away; leave it at its default"
            )
        if config.loss.outcome_weight == 0:
            yield (
                f"config.advantage.{name} changes the advantage of the outcome, which"
                " loss.outcome_weight = 0 takes away; leave it at its default"
            )
    if spec.pass_k == 1:
        return
    if spec.baseline != "group" or spec.batch_std:
        yield (
            f"config.advantage.pass_k = {spec.pass_k} compares the rows of a group: set"
            " advantage.baseline to 'group' and advantage.batch_std to False"
        )
    if spec.pass_k > config.rollout.group:
        yield (
            f"config.advantage.pass_k = {spec.pass_k} is more than rollout.group ="
            f" {config.rollout.group}"
        )
    if spec.overlong_tokens:
        yield (
            f"config.advantage.pass_k = {spec.pass_k} knows right and wrong rows only, and would"
            " leave the punishment out: set advantage.overlong_tokens to None"
        )
    weighed = [(part.function, part.weight) for part in config.reward.parts if part.weight]
    if weighed != [("outcome", 1.0)]:
        yield (
            f"config.advantage.pass_k = {spec.pass_k} knows right and wrong rows only, and would"
            " leave the other parts of the reward out: set it to 1, or reward.functions to the"
            " task's verifier alone"
        )


def _uneven(config: TrainConfig) -> Iterator[str]:
    """Numbers of rows that do not divide."""
    prompts, training = config.rollout.prompts, config.training
    parts, buckets, micro = training.mini_batches, training.length_buckets, training.micro_batches
    if prompts % parts:
        yield (
            f"config.training.mini_batches = {parts} does not divide rollout.prompts = {prompts} (a"
            " mini-batch holds whole groups)"
        )
        return
    if (config.sft.prompts or 0) % parts:
        yield (
            f"config.training.mini_batches = {parts} does not divide sft.prompts ="
            f" {config.sft.prompts}"
        )
    if prompts // parts % buckets:
        yield (
            f"config.training.length_buckets = {buckets} does not divide rollout.prompts /"
            f" training.mini_batches = {prompts // parts} (a bucket holds whole groups)"
        )
    if micro % buckets and buckets % micro:
        yield (
            f"config.training.length_buckets = {buckets} and micro_batches = {micro}: one must be a"
            " multiple of the other"
        )
    rows = prompts // parts * config.rows_per_group
    if rows % micro:
        yield (
            f"config.training.micro_batches = {micro} does not divide prompts x group = {rows}"
            + (" of a mini-batch" if parts > 1 else "")
        )
