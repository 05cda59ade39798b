"""Every setting of a training run, with its default, its meaning and its checks.

An experiment is a file with a `get_config()` that starts from `default_config()` and changes some
of it. `train_config` makes the typed, frozen tree of it that the program is handed; nothing below
the entry points ever sees a ConfigDict. docs/method.md says why the defaults are what they are.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import ClassVar, Literal

from ml_collections import ConfigDict

from scope_jax.configuration.renamed import NAMES, renamed_to
from scope_jax.configuration.schema import from_dict, leaves, to_config_dict
from scope_jax.correction import CorrectionSpec, LocaliserSpec
from scope_jax.data.load import TaskSpec
from scope_jax.learning import AdvantageSpec, LossSpec, OptimizerSpec
from scope_jax.learning.credit import Credit, GoodPrefix, OutcomeCredit, SummedSteps, WorstStep
from scope_jax.models import LoraSpec
from scope_jax.rollout import SampleSpec
from scope_jax.teachers import DemonstrationSpec, EndpointSpec, TeacherSpec
from scope_jax.types import check_least

Dtype = Literal["float32", "bfloat16"]
Place = Literal["device", "host"]  # where weights wait while others work
Remat = Literal["none", "dots", "layer"]
MasterWeights = Literal["float32", "none"]


# ---- what a method is: one of these


@dataclasses.dataclass(frozen=True)
class Grpo:
    """Groups of the policy's own rollouts: GRPO, Dr.GRPO, DAPO, GSPO, by the settings of
    `advantage` and `loss`."""

    name: Literal["grpo"] = "grpo"
    resample: int = 0  # further batches until every group has two rewards (DAPO's dynamic sampling)


@dataclasses.dataclass(frozen=True)
class Scope(CorrectionSpec):
    """Failed rollouts are rescued at their first wrong step (arXiv 2602.24110)."""

    name: Literal["scope"] = "scope"


@dataclasses.dataclass(frozen=True)
class Luffy:
    """Some rows of each group are whole solutions of the teacher (LUFFY, arXiv 2504.14945)."""

    name: Literal["luffy"] = "luffy"
    per_group: int = 1  # demonstrations instead of rollouts

    def __post_init__(self) -> None:
        check_least(self, "method", 1, "per_group")


@dataclasses.dataclass(frozen=True)
class Relift:
    """Prompts whose group failed altogether are kept; a full buffer makes one supervised step on
    their demonstrations (ReLIFT, arXiv 2506.07527)."""

    name: Literal["relift"] = "relift"
    buffer: int = 16  # prompts

    def __post_init__(self) -> None:
        check_least(self, "method", 1, "buffer")


@dataclasses.dataclass(frozen=True)
class Process(SummedSteps):
    """The steps' scores are rewards beside the outcome, normalised over the group and summed to go
    (process supervision of arXiv 2402.03300)."""

    name: Literal["process"] = "process"
    resample: int = 0  # as in `grpo`


@dataclasses.dataclass(frozen=True)
class Pure(WorstStep):
    """The worst step of a row is its reward, beside the outcome (PURE, arXiv 2504.15275)."""

    name: Literal["pure"] = "pure"
    resample: int = 0  # as in `grpo`


@dataclasses.dataclass(frozen=True)
class Vppo(GoodPrefix):
    """The good beginning of a failed row is worth something (VPPO, arXiv 2601.18984)."""

    name: Literal["vppo"] = "vppo"
    resample: int = 0  # as in `grpo`


Method = Grpo | Scope | Luffy | Relift | Process | Pure | Vppo
METHODS = {kind.name: kind for kind in (Grpo, Scope, Luffy, Relift, Process, Pure, Vppo)}


# ---- sections


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """The same devices in another shape. All None: that of the run."""

    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None

    @property
    def given(self) -> bool:
        """Whether this is a shape of its own."""
        return any(size is not None for size in (self.data, self.fsdp, self.tensor))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out; one size may be -1: what the others leave."""

    data: int = -1  # devices along the rows
    fsdp: int = 1  # devices that parameters and optimiser state are split over (rows too)
    tensor: int = 1  # devices that heads and feed-forward are split over
    teacher: MeshShape = MeshShape()
    prm: MeshShape = MeshShape()

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            if (value := getattr(self, name)) < 1 and value != -1:
                raise ValueError(f"config.mesh.{name} = {value} must be at least 1, or -1")


@dataclasses.dataclass(frozen=True)
class PlacementConfig:
    """Where weights wait while others work."""

    teacher: Place = "device"
    prm: Place = "device"
    reference: Place = "device"  # the weights at the start, of a KL term
    optimizer: Place = "device"  # moments, and weights kept in another dtype than they are used in


@dataclasses.dataclass(frozen=True)
class ModelsConfig:
    """Hugging Face directories."""

    policy: str | None = None
    teacher: str | None = None
    prm: str | None = None
    prm_format: Literal["auto", "qwen", "math_shepherd", "skywork"] = "auto"


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """The rollouts of a step."""

    prompts: int = 16  # per step
    group: int = 8  # rollouts per prompt
    prompt_tokens: int = 64  # longer prompts are dropped and counted
    new_tokens: int = 64  # that a rollout may write, tail included
    temperature: float = 1.0  # of the rollouts, and of the log-probs in the update
    top_p: float = 1.0  # truncates the draw, not the recorded log-probs; train with 1
    top_k: int | None = None  # the same
    seats: int | None = None  # rows decoded at once; None: all
    cache: Literal["auto", "int8"] = "auto"  # keys and values while decoding
    chat: bool = False  # put prompts into the tokenizer's chat template

    def __post_init__(self) -> None:
        counts = ("prompts", "group", "prompt_tokens", "new_tokens", "seats", "top_k")
        check_least(self, "rollout", 1, *counts)
        SampleSpec(self.temperature, self.top_p, self.top_k, self.new_tokens, cache=self.cache)

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.prompt_tokens + self.new_tokens

    def sampling(self, end_ids: tuple[int, ...]) -> SampleSpec:
        """How the policy continues a row."""
        return SampleSpec(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.new_tokens,
            end_ids=end_ids,
            cache=self.cache,
        )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised steps on the teacher's demonstrations, before the first rollout."""

    steps: int = 0  # of the run's steps
    prompts: int | None = None  # per such step; None: rollout.prompts

    def __post_init__(self) -> None:
        check_least(self, "sft", 0, "steps")
        check_least(self, "sft", 1, "prompts")


@dataclasses.dataclass(frozen=True)
class TeacherConfig(TeacherSpec):
    """Who corrects and demonstrates."""

    endpoint: EndpointSpec = EndpointSpec()


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters that are trained in place of all weights."""

    rank: int | None = None  # None: all weights are trained
    alpha: float = 32.0  # alpha / rank multiplies the product of the two factors
    targets: tuple[str, ...] = LoraSpec().targets  # projections with an adapter

    def __post_init__(self) -> None:
        _ = self.spec  # refuses what makes no sense

    @property
    def spec(self) -> LoraSpec | None:
        """The adapters; None where all weights are trained."""
        return None if self.rank is None else LoraSpec(self.rank, self.alpha, self.targets)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The updates of one rollout batch."""

    epochs: int = 1  # times that the batch is gone through
    mini_batches: int = 1  # updates per epoch, each on whole groups
    micro_batches: int = 1  # passes per update; the gradient does not change
    length_buckets: int = 1  # parts of like length, each packed to its own width
    master_weights: MasterWeights = "float32"  # what trained weights are kept in; none: `dtype`
    remat: Remat = "none"  # what is computed again in the backward pass
    stop_after_skipped: int = 5  # updates that were not finite, in a row

    def __post_init__(self) -> None:
        counts = ("epochs", "mini_batches", "micro_batches", "length_buckets", "stop_after_skipped")
        check_least(self, "training", 1, *counts)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on held-out problems."""

    every: int | None = None  # steps; None: at the end only
    at_start: bool = False  # also before the first step
    problems: int = 1000  # of each set but test_ood; 0: none
    ood_problems: int = 1000  # of test_ood; 0: none
    samples: int = 8  # rollouts per problem
    temperature: float = 1.0
    prompt_tokens: int | None = None  # longer prompts are dropped and counted; None: as in rollout
    new_tokens: int | None = None  # None: as in rollout
    rows_at_once: int = 1024  # decoded together

    def __post_init__(self) -> None:
        counts = ("every", "samples", "prompt_tokens", "new_tokens", "rows_at_once")
        check_least(self, "evaluation", 1, *counts)
        check_least(self, "evaluation", 0, "problems", "ood_problems", "temperature")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of the run; one is always written at the end."""

    every: int = 50  # steps
    keep: int = 2  # of the newest; with 1 there is nothing to fall back on
    directory: str | None = None  # a folder or gs:// address; None: in the workdir

    def __post_init__(self) -> None:
        check_least(self, "checkpoint", 1, "every", "keep")


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """Files of rescued rollouts."""

    every: int = 20  # steps
    per_file: int = 6  # rescued rollouts

    def __post_init__(self) -> None:
        check_least(self, "samples", 1, "every")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of `scope_jax.train`."""

    OLD_NAMES: ClassVar[Mapping[str, str]] = NAMES

    seed: int = 0  # of every random draw of the run
    steps: int = 100  # rollout batches; one update each unless `training` says otherwise
    dtype: Dtype = "float32"  # what weights are used in
    mesh: MeshConfig = MeshConfig()
    placement: PlacementConfig = PlacementConfig()
    task: TaskSpec = field(default_factory=TaskSpec)
    models: ModelsConfig = ModelsConfig()
    rollout: RolloutConfig = RolloutConfig()
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

    def __post_init__(self) -> None:
        check_least(self, "", 1, "steps")
        check_least(self, "", 0, "seed")
        loss = dataclasses.replace(self.loss, max_new_tokens=self.rollout.new_tokens)
        object.__setattr__(self, "loss", loss)
        for reason in conflicts(self):
            raise ValueError(reason)

    @property
    def uses_teacher(self) -> bool:
        """Whether the run asks a teacher, for steps or for demonstrations."""
        return isinstance(self.method, Scope) or self.uses_demonstrations

    @property
    def uses_demonstrations(self) -> bool:
        """Whether the run asks the teacher for whole solutions."""
        return isinstance(self.method, Luffy | Relift) or self.sft.steps > 0

    @property
    def credit(self) -> Credit:
        """How advantages come from rewards: the method itself where it scores steps."""
        method = self.method
        return method if isinstance(method, SummedSteps | GoodPrefix) else OutcomeCredit()

    @property
    def uses_localiser(self) -> bool:
        """Whether the run looks for the first wrong step of a row."""
        return isinstance(self.method, Scope) or self.credit.scores_steps

    @property
    def uses_prm(self) -> bool:
        """Whether the run scores steps with a process reward model."""
        return self.localiser.kind == "prm" and self.uses_localiser

    @property
    def resample(self) -> int:
        """Further batches of prompts per step at most, for groups with two different rewards."""
        return getattr(self.method, "resample", 0)

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
        training = values.get("training") or {}
        counts = [values.get("steps"), training.get("epochs"), training.get("mini_batches")]
        if all(isinstance(count, int) for count in counts):
            optimizer["steps"] = counts[0] * counts[1] * counts[2]
    return from_dict(TrainConfig, values)


def conflicts(config: TrainConfig) -> Iterator[str]:
    """What cannot go together, each with its reason."""
    method, loss, teacher = config.method, config.loss, config.teacher
    scored = config.credit.scores_steps
    if isinstance(method, Scope):
        if method.tail == "teacher" and teacher.kind != "model":
            yield f"config.method.tail 'teacher' needs teacher.kind 'model', not {teacher.kind!r}"
        if method.tail == "none" and method.tails > 1:
            yield (
                f"config.method.tails = {method.tails}: method.tail 'none' writes none; set tails"
                " to 1"
            )
        if method.accept == "unverified" and loss.teacher_term in (
            "shaped",
            "reinforce",
            "importance",
        ):
            yield (
                f"config.loss.teacher_term {loss.teacher_term!r} multiplies by an advantage, and"
                " unverified rows have none: use 'nll' with method.accept 'unverified'"
            )
        if method.accept == "unverified" and (loss.teacher_term == "mask" or not loss.teaches):
            yield (
                "config.method.accept 'unverified' gives rows that learn by the teacher's term"
                " alone, and loss.teacher_term or teacher_weight takes it away: set"
                " loss.teacher_term to 'nll' and a weight above 0"
            )
    if config.sft.steps < config.steps:
        if config.rollout.group < 2:
            yield (
                f"config.rollout.group = {config.rollout.group} must be at least 2: a row is"
                " compared with the rest of its group"
            )
        if config.rollout.temperature == 0:
            yield (
                "config.rollout.temperature = 0 makes the rows of a group alike, which leaves"
                " nothing to compare: set it above 0"
            )
    if scored and config.localiser.kind == "monte_carlo":
        yield (
            f"config.method {method.name!r} needs scores of steps: set localiser.kind to 'prm' or"
            " 'oracle'"
        )
    if scored and loss.ratio == "sequence":
        yield (
            "config.loss.ratio 'sequence' has one ratio per row, which averages away the token"
            f" advantages of method {method.name!r}"
        )
    if isinstance(method, Vppo) and config.advantage.overlong_tokens:
        yield (
            "config.method 'vppo' takes no punished rewards: set advantage.overlong_tokens to None"
        )
    if isinstance(method, Vppo) and config.advantage.std:
        yield "config.method 'vppo' subtracts the group's mean only; set advantage.std to False"
    if isinstance(method, Luffy):
        if method.per_group >= config.rollout.group:
            yield (
                f"config.method.per_group = {method.per_group} leaves no rollout in a group of"
                f" {config.rollout.group}; for demonstrations alone set sft.steps"
            )
        if not config.demonstrations.verified and loss.teacher_term == "nll":
            yield (
                "config.loss.teacher_term 'nll' would clone demonstrations that the verifier"
                " refuses: set demonstrations.verified, or a term that multiplies by the advantage"
                " ('shaped', 'reinforce', 'importance')"
            )
    if config.uses_demonstrations and teacher.kind == "self":
        yield (
            "config.demonstrations need a teacher other than the policy itself: teacher.kind"
            " 'self' gives none"
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
    if config.resample < 0:
        yield f"config.method.resample = {config.resample} must be 0 or more"
    yield from _uneven(config)


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
