"""What a salvage is asked to do: one frozen record, checked before anything is read."""

import dataclasses
import json
import math
import os
from typing import Literal

from scope_jax.correction import CorrectionSpec, LocaliserSpec, SelectSpec
from scope_jax.data.load import GENERATED
from scope_jax.tasks import Domain, Mathematics
from scope_jax.types import check_choices, check_kind

TASKS = ("math", *GENERATED)
# Kinds of teacher that are a word and not an address, a directory or module:name.
WORDS = ("reference", "program", "self")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a salvage, by the names of its flags (docs/salvage.md). Raises ValueError for
    what makes no sense; opens no file."""

    rollouts: str
    out: str
    teacher: str
    prm: str | None = None
    policy: str | None = None
    tokenizer: str | None = None
    # The rollouts.
    fields: tuple[str, ...] = ()
    right: float = 1.0
    task: str = "math"
    separator: str = ""
    boundary: str = ""
    chat: Literal["auto", "on", "off"] = "auto"
    system: str | None = None
    prompt_tokens: int = 1024
    new_tokens: int = 2048
    # The first wrong step.
    localiser: str = "prm"
    checker: str | None = None
    prm_format: str = "auto"
    threshold: float = 0.5
    continuations: int = 4
    good_steps: int = 1
    # Its correction.
    template: Literal["auto", "continue", "wrong_step", "wrong_step_and_answer"] = "auto"
    step_tokens: int = 256
    style: str = ""
    teacher_api: Literal["chat", "completions"] = "chat"
    teacher_model: str | None = None
    teacher_key_env: str | None = None
    teacher_tokens: int | None = None
    teacher_extra: str | None = None
    # The tail and its verdict.
    policy_model: str | None = None
    policy_key_env: str | None = None
    temperature: float = 1.0
    tails: int = 1
    verify: str = "task"
    # What is written.
    pairs: Literal["steps", "solutions"] = "steps"
    right_steps: bool = False
    # How it is computed.
    rows: int = 64
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    request_seconds: float = 120.0
    concurrency: int = 16

    def __post_init__(self) -> None:
        check_choices(self, "-")
        for name in (
            *("prompt_tokens", "new_tokens", "step_tokens"),
            *("tails", "rows"),
            "concurrency",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag(name)}={getattr(self, name)}: expected at least 1")
        if self.teacher_tokens is not None and self.teacher_tokens < 1:
            raise ValueError(f"--teacher-tokens={self.teacher_tokens}: expected at least 1")
        if self.teacher_extra is not None:
            _check_object(self.teacher_extra, "--teacher-extra")
        if not math.isfinite(self.right):
            raise ValueError(f"--right={self.right}: expected a number")
        if self.temperature < 0 or self.request_seconds <= 0:
            raise ValueError("--temperature must be 0 or more, --request-seconds above 0")
        if self.task not in TASKS:
            raise ValueError(f"--task={self.task} is unknown; one of {', '.join(TASKS)}")
        if self.task != "math" and (self.separator or self.boundary):
            raise ValueError(f"--separator and --boundary are for --task=math, not {self.task}")
        self._check_who()
        _ = self.domain, self.localiser_spec, self.correction  # refuse what makes no sense

    def _check_who(self) -> None:
        if self.localiser == "prm" and not self.prm:
            raise ValueError(
                "--prm is missing: the directory of a process reward model; or another --localiser"
            )
        if self.prm and self.localiser != "prm":
            raise ValueError(f"--prm is for --localiser=prm, not {self.localiser}")
        if self.localiser == "function" and not self.checker:
            raise ValueError(
                "--checker is missing: the function that names the first wrong step, as"
                " module:function"
            )
        if self.checker and self.localiser != "function":
            raise ValueError(f"--checker is for --localiser=function, not {self.localiser}")
        if self.localiser == "monte_carlo" and (not self.policy or is_address(self.policy)):
            raise ValueError(
                "--localiser=monte_carlo needs --policy=DIR, whose continuations it is"
            )
        if self.localiser == "likelihood" and teacher_kind(self.teacher) not in ("model", "self"):
            raise ValueError(
                "--localiser=likelihood asks the teacher for the probability of steps that it did"
                " not write: it needs --teacher=DIR (or self)"
            )
        if self.teacher == "self" and (not self.policy or is_address(self.policy)):
            raise ValueError("--teacher=self needs --policy=DIR")
        for who in ("policy", "teacher"):
            named = getattr(self, who)
            if named and is_address(named) and not getattr(self, f"{who}_model"):
                raise ValueError(f"--{who}-model is missing: the model's name at {named}")
        for name in ("teacher_tokens", "teacher_extra"):
            if getattr(self, name) is not None and not is_address(self.teacher):
                raise ValueError(f"{flag(name)} is for a teacher behind an address")
        self._check_idle()
        check_kind(self.verify, ("task", "math"), "--verify")
        if self.verify == "math" and self.task != "math":
            raise ValueError(
                f"--verify=math goes with --task=math; {self.task} has its own: --verify=task"
            )
        if self.pairs == "solutions" and not self.policy:
            raise ValueError(
                "--pairs=solutions needs --policy: without a tail a corrected solution has no end"
            )

    def _check_idle(self) -> None:
        """Refuse flags that would do nothing."""
        at_address = {who: is_address(getattr(self, who) or "") for who in ("policy", "teacher")}
        for name, serves, why in (
            *((f"{who}_model", at_address[who], f"--{who}=ADDRESS") for who in at_address),
            *((f"{who}_key_env", at_address[who], f"--{who}=ADDRESS") for who in at_address),
            ("prm_format", self.prm is not None, "--prm"),
            ("style", self.teacher == "program", "--teacher=program"),
        ):
            usual = next(f.default for f in dataclasses.fields(self) if f.name == name)
            if not serves and getattr(self, name) != usual:
                raise ValueError(f"{flag(name)} is for {why}, and does nothing here")

    @property
    def domain(self) -> Domain:
        """Where steps end, what an answer looks like, the verifier."""
        if self.task != "math":
            return GENERATED[self.task][0]()
        separator = self.separator.replace("\\n", "\n") or "\n\n"  # as a shell has it
        return Mathematics(separator=separator, boundary=self.boundary)

    @property
    def localiser_spec(self) -> LocaliserSpec:
        """Who says which step is the first wrong one."""
        return LocaliserSpec(
            self.localiser, self.threshold, self.continuations, function=self.checker
        )

    @property
    def correction(self) -> CorrectionSpec:
        """Every failure is corrected. Without a policy nothing follows the teacher's step."""
        select = SelectSpec(rule="all", keep_failure=False, good_steps=self.good_steps)
        if not self.policy:
            return CorrectionSpec(select, tail="none", accept="unverified")
        return CorrectionSpec(select, tails=self.tails)

    @property
    def needs_answers(self) -> bool:
        """Whether verdicts compare with a reference answer."""
        return self.verify in ("task", "math")


def _check_object(text: str, where: str) -> None:
    """Raise ValueError where a text is no JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); expected an object such as {{}}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(found).__name__}")


def flag(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def is_address(who: str) -> bool:
    """Whether a model is behind an address."""
    return who.startswith(("http://", "https://"))


def teacher_kind(teacher: str) -> str:
    """`TeacherSpec.kind` of `--teacher`."""
    if is_address(teacher):
        return "endpoint"
    if teacher in WORDS:
        return teacher
    return teacher if ":" in teacher and not os.path.isdir(teacher) else "model"
