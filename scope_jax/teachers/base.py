"""What all teachers share: what they are asked, what they give back, and how a step of theirs
becomes tokens of the policy.

A teacher has two methods. `correct` takes rows that stand at their cut and brings them back with
one TEACHER step each; `demonstrate` writes whole solutions. A teacher that writes text instead of
the policy's ids has its step, and nothing else, encoded by the policy's tokenizer. What goes wrong
on a row is a reason, never an exception: the row stays the failure it was.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.programs import program
from scope_jax.rollout import Generator, Policy
from scope_jax.rollout.rows import splice
from scope_jax.tasks import Domain, Problem
from scope_jax.teachers.demonstrations import DemonstrationJob, Demonstrations
from scope_jax.teachers.replies import (
    encode_step,
    most_characters,
    opening_blanks,
    special_texts,
)
from scope_jax.text.steps import token_bytes
from scope_jax.types import Owner, Rollout, check_choices, check_kind

_splice_rows = program(splice, static_argnames="owner")
KINDS = ("model", "self", "reference", "program", "endpoint")


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """Who corrects, and how it is asked."""

    # model: on the mesh; self: the policy of the moment; reference: the data set's own solution;
    # program: the domain's; endpoint: a model behind an OpenAI-compatible address; module:name: a
    # class of your own, called with this spec.
    kind: str = "model"
    # What it is shown besides the problem and the steps before the error.
    template: Literal["continue", "wrong_step", "wrong_step_and_answer"] = "continue"
    # A text in place of the template's; fields {prompt}, {kept}, {wrong} and {answer}.
    prompt: str | None = None
    # The longest prompt of a prompted model on the mesh.
    prompt_tokens: int = 1024
    # Of a program.
    style: str = "same_term"
    # The longest step it may write.
    step_tokens: int = 64
    # Of its step; 0 is greedy.
    temperature: float = 0.0
    # Who is the first to repair a failure. self: the policy goes on from the cut by itself, up to
    # `self_tries` times, and the teacher is asked where all of them fail.
    first: Literal["teacher", "self"] = "teacher"
    self_tries: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, "teacher")
        check_kind(self.kind, KINDS, "teacher.kind")
        for name in ("prompt_tokens", "step_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"teacher.{name} = {getattr(self, name)} must be at least 1")
        if not self.temperature >= 0:
            raise ValueError(
                f"teacher.temperature = {self.temperature} must be 0 or more (0 is greedy)"
            )
        if self.first == "self" and (self.self_tries or 0) < 1:
            raise ValueError(
                f"teacher.self_tries = {self.self_tries}: with teacher.first 'self' it says how"
                " often the policy tries before the teacher is asked; set it to 1 or more"
            )
        if self.first == "teacher" and self.self_tries is not None:
            raise ValueError(
                f"teacher.self_tries = {self.self_tries} is for teacher.first 'self'; set it to"
                " None"
            )

    @property
    def prompted(self) -> bool:
        """Whether the teacher gets a prompt of its own, instead of the row to go on with."""
        return self.template != "continue" or bool(self.prompt)

    @property
    def shows_answer(self) -> bool:
        """Whether the teacher sees the reference answer."""
        if self.prompt:
            return "{answer}" in self.prompt
        return self.template == "wrong_step_and_answer"


@dataclasses.dataclass(frozen=True)
class Ask:
    """One row to correct."""

    problem: Problem
    kept: tuple[str, ...]  # the steps before the error
    wrong: str  # the wrong step
    last: bool  # it is the rollout's last step: the correction may end the solution
    row: int  # the row's id


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """B rows to correct; the first len(asks) get a step, the rest fill the batch."""

    rows: Rollout  # cut before the error; those that only fill the batch are finished
    asks: Sequence[Ask]
    kept_B: np.ndarray  # int: their lengths
    limit_B: np.ndarray  # int: what they may grow to
    policy: Policy
    domain: Domain
    key: jax.Array  # of the training step
    seed: int  # of what does not draw by key
    rows_at_once: int | None = None  # rows that a model writes at a time; None: all


@dataclasses.dataclass(frozen=True, eq=False)
class Corrected:
    """The rows of a job, as the teacher leaves them."""

    rollout: Rollout  # with one step each
    failed: list[str | None]  # per ask, why there is no step (None: there is one)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)  # by full name
    # The teacher knows the reference answer, so its steps are searched for it.
    shows_answer: bool = False


class Teacher(Protocol):
    """Whoever writes the corrected step, or whole solutions."""

    @property
    def generator(self) -> Generator | None:
        """A model on the mesh that can write a tail too; None where there is none."""
        ...

    def correct(self, job: Job) -> Corrected:
        """The job's rows, each with one step written by the TEACHER or with a reason why not."""
        ...

    def demonstrate(self, job: DemonstrationJob) -> Demonstrations:
        """A whole solution of each problem, or a reason why not."""
        ...


@dataclasses.dataclass(frozen=True)
class WrittenStep:
    """A step in the policy's ids, without an end token."""

    ids: list[int]
    ends: bool  # it ends the solution
    logp: list[float] | None = None  # None where unknown


# ---- from a text to a row


def encode_reply(
    found: tuple[str, bool] | str,
    job: Job,
    sampled: tuple[list[int], list[float]] | None = None,
    most: int | None = None,
    ask: Ask | None = None,
) -> WrittenStep | str:
    """The step that `read_reply` found, in the policy's ids; a reason stays what it is. One longer
    than `most` characters (default: what a row of the job may hold) is not encoded ("too_long").
    With `ask`, the blanks that it needs after the steps before it (`opening_blanks`) come first.

    `sampled`: ids and log-probs that were drawn for the reply. They are used as they are where
    their text is the step, with the separator's ids added where only that is missing.
    """
    if isinstance(found, str):
        return found
    (step, ends), tokenizer = found, job.policy.tokenizer
    if ask is not None and not step[:1].isspace():
        step = opening_blanks(ask.kept, ask.wrong, job.domain.divider) + step
    if most is None:
        most = most_characters(tokenizer, int(job.limit_B.max(initial=0)))
    if len(step) > most:
        return "too_long"
    if any(special in step for special in special_texts(tokenizer)):
        return "special"
    if sampled is not None:
        pieces, (ids, logp) = token_bytes(tokenizer), sampled
        for missing in ("", job.domain.separator):
            more = encode_step(missing, tokenizer) if missing else []
            if more is not None and _text_of([*ids, *more], pieces) == step.encode():
                return WrittenStep([*ids, *more], ends, [*logp, *[float("nan")] * len(more)])
    encoded = encode_step(step, tokenizer, job.domain.separator)
    return "untokenisable" if encoded is None else WrittenStep(encoded, ends)


def _text_of(ids: Sequence[int], pieces: Sequence[bytes]) -> bytes:
    """The bytes of ids; one past the tokenizer's vocabulary, as a padded model may sample, is no
    text."""
    return b"".join(pieces[i] if i < len(pieces) else b"\0" for i in ids)


def encode_known(step: str, final: bool, ask: Ask, job: Job) -> WrittenStep | str:
    """A step of which it is known whether it ends the solution (`final`); one that does may
    correct a last step only."""
    if final and not ask.last:
        return "leak"
    if not step.strip():
        return "empty"
    step = step.removesuffix(job.domain.separator) if final else step
    return encode_reply((step, final), job, ask=ask)


def write_steps(
    job: Job,
    steps: Sequence[WrittenStep | str],
    spec: TeacherSpec,
    *,
    metrics: dict[str, float] | None = None,
    shows_answer: bool = False,
) -> Corrected:
    """The job's rows with these steps (or reasons) after their cut, one per ask; the policy's end
    token after a step that ends the solution. A step is never cut: one longer than
    `spec.step_tokens`, or than the room of its row, is refused ("too_long")."""
    B, J = len(job.kept_B), spec.step_tokens + 1
    tokens, count, ends = np.zeros((B, J), np.int32), np.zeros(B, np.int32), np.zeros(B, bool)
    logp = np.full((B, J), np.nan, np.float32)
    failed: list[str | None] = []
    for number, step in enumerate(steps):
        if isinstance(step, str):
            failed.append(step)
            continue
        ids = [*step.ids, job.policy.end_id] if step.ends else step.ids
        if len(step.ids) > spec.step_tokens or job.kept_B[number] + len(ids) > job.limit_B[number]:
            failed.append("too_long")
            continue
        tokens[number, : len(ids)] = ids
        logp[number, : len(step.ids)] = np.nan if step.logp is None else step.logp
        count[number], ends[number] = len(ids), step.ends
        failed.append(None)
    rollout = _splice_rows(
        job.rows,
        jnp.asarray(tokens),
        jnp.asarray(count),
        owner=Owner.TEACHER,
        logp_BJ=jnp.asarray(logp),
        finished_B=jnp.asarray(ends),
    )
    return Corrected(rollout, failed, metrics or {}, shows_answer)


def failure_counts(failed: Sequence[str | None]) -> dict[str, float]:
    """Counters of the rows without a step: all of them, and by reason. A leak is counted with the
    other leaks."""
    reasons = collections.Counter(reason for reason in failed if reason not in (None, "leak"))
    return {"scope/teacher_failed": float(sum(reasons.values()))} | {
        f"scope/teacher_failed_{reason}": float(count) for reason, count in sorted(reasons.items())
    }
