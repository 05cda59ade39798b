import dataclasses
from typing import Literal

from scope_jax.correction.select import SelectSpec
from scope_jax.types import check_choices


@dataclasses.dataclass(frozen=True)
class LocaliserSpec:
    kind: Literal["prm", "oracle", "monte_carlo"] = "prm"
    threshold: float = 0.5
    continuations: int = 4
    noise: float = 0.0

    def __post_init__(self):
        check_choices(self, "localiser")


@dataclasses.dataclass(frozen=True)
class CorrectionSpec:
    select: SelectSpec = SelectSpec()
    tail: Literal["policy", "teacher", "none"] = "policy"
    tails: int = 1
    accept: Literal["verified", "unverified"] = "verified"
    place: Literal["replace_parent", "replace_random_failure", "append"] = "replace_parent"
    rows_at_once: int | None = None


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    kind: Literal["model", "self", "reference", "program", "endpoint"] = "model"
    template: Literal["continue", "wrong_step", "wrong_step_and_answer"] = "continue"
    prompt: str | None = None
    prompt_tokens: int = 1024
    style: str = "same_term"
    step_tokens: int = 64
    temperature: float = 0.0


@dataclasses.dataclass(frozen=True)
class DemonstrationSpec:
    verified: bool = False
    temperature: float = 1.0
