"""The sections of a training run's settings, each with its defaults, meanings and checks.

Those that a room below has use for as they are stand there: `AdvantageSpec`, `LossSpec`,
`OptimizerSpec` (learning), `LocaliserSpec` (correction), `TeacherSpec`, `EndpointSpec`,
`DemonstrationSpec` (teachers), `TaskSpec` (data), `TrackSpec` (run).
"""

import dataclasses
from typing import Literal

from scope_jax.devices.precision import MatmulPrecision as MatmulPrecision
from scope_jax.models import LoraSpec
from scope_jax.rollout import SampleSpec
from scope_jax.teachers import EndpointSpec, TeacherSpec
from scope_jax.types import check_least

Dtype = Literal["float32", "bfloat16"]
Memory = Literal["device", "host"]  # where weights wait while others work
Remat = Literal["auto", "none", "dots", "layer"]
MasterWeights = Literal["float32", "none"]
FrozenWeights = Literal["auto", "int8"]  # of models that are not trained; auto: `dtype`


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """The same devices in another shape. All None: that of the run."""

    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None
    expert: int | None = None  # None: 1

    @property
    def given(self) -> bool:
        """Whether this is a shape of its own."""
        return any(size is not None for size in (self.data, self.fsdp, self.tensor, self.expert))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out; one size may be -1: what the others leave."""

    data: int = -1  # devices along the rows
    fsdp: int = 1  # devices that parameters and optimiser state are split over (rows too)
    tensor: int = 1  # devices that heads and feed-forward are split over
    expert: int = 1  # devices that experts are split over (rows and other weights too)
    teacher: MeshShape = MeshShape()
    prm: MeshShape = MeshShape()

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor", "expert"):
            if (value := getattr(self, name)) < 1 and value != -1:
                raise ValueError(f"config.mesh.{name} = {value} must be at least 1, or -1")


@dataclasses.dataclass(frozen=True)
class PlacementConfig:
    """Where weights wait while others work."""

    teacher: Memory = "device"
    prm: Memory = "device"
    reference: Memory = "device"  # the weights at the start, of a KL term
    optimizer: Memory = "device"  # moments, and weights kept in another dtype than they are used in


@dataclasses.dataclass(frozen=True)
class ModelsConfig:
    """Hugging Face directories."""

    policy: str | None = None
    teacher: str | None = None
    teacher_weights: FrozenWeights = "auto"
    prm: str | None = None
    prm_format: Literal["auto", "qwen", "math_shepherd", "skywork"] = "auto"
    prm_weights: FrozenWeights = "auto"
    # auto: the kernel of the device where it serves the model; plain: products of arrays.
    attention: Literal["auto", "plain"] = "auto"


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

    steps: int = 0  # of the run's steps, from the first; as many or more: all of them
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
        LoraSpec(
            1 if self.rank is None else self.rank, self.alpha, self.targets
        )  # refuses what makes no sense

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
    remat: Remat = "auto"  # what is computed again in the backward pass; auto: what does not fit
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
    # Further ones; their metrics are called eval_t0.6/... and so on. At 0 one rollout is enough.
    more_temperatures: tuple[float, ...] = ()
    prompt_tokens: int | None = None  # longer prompts are dropped and counted; None: as in rollout
    new_tokens: int | None = None  # None: as in rollout
    rows_at_once: int = 1024  # decoded together

    def __post_init__(self) -> None:
        counts = ("every", "samples", "prompt_tokens", "new_tokens", "rows_at_once")
        check_least(self, "evaluation", 1, *counts)
        check_least(self, "evaluation", 0, "problems", "ood_problems", "temperature")
        temperatures = [self.temperature, *self.more_temperatures]
        names = {f"{t:g}" for t in temperatures}  # in the names of their metrics
        if not all(t >= 0 for t in temperatures) or len(names) < len(temperatures):
            raise ValueError(
                f"evaluation.more_temperatures = {self.more_temperatures}: expected numbers from 0"
                f" that differ from each other and from evaluation.temperature = {self.temperature}"
            )


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
    """Files of rescued rollouts and of ordinary ones."""

    every: int = 20  # steps; the last one always has a file
    per_file: int = 6  # rescued rollouts
    rollouts: int = 2  # ordinary ones of each kind: right, wrong, cut off, not judged; 0: none
    show_every: int | None = None  # steps between rescues on the terminal; None: none

    def __post_init__(self) -> None:
        check_least(self, "samples", 1, "every", "show_every")
        check_least(self, "samples", 0, "per_file", "rollouts")
