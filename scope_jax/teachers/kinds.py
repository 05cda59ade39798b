"""Teachers: who writes the corrected step.

One interface, `Teacher.correct(job)`: the rows of a job stand at their cut, and come back with one
TEACHER step each. Five kinds:

    model      a second model on the mesh; "continue" goes on from the row's own ids, another template is prompted
    self       the same, with the policy's own parameters of the moment
    reference  the next step of the data set's own solution
    program    the domain's program teacher
    endpoint   a model behind an OpenAI-compatible address (scope_jax.teachers.endpoint)

A teacher that writes text instead of the policy's ids has its step, and nothing else, encoded by
the policy's tokenizer. What goes wrong on a row is a reason, never an exception: the row stays the
failure it was.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import to_host
from scope_jax.rollout import Generator, SampleSpec, completion_ids, from_prompts, texts
from scope_jax.rollout.rows import cut, splice
from scope_jax.tasks import Domain, Problem
from scope_jax.teachers.replies import encode_step, read_reply, reference_steps, special_texts
from scope_jax.text import encode_prompts, step_ends, stop_table
from scope_jax.text.steps import token_bytes
from scope_jax.types import Owner, Rollout

KINDS = ("model", "self", "reference", "program", "endpoint")
TEMPLATES = ("continue", "wrong_step", "wrong_step_and_answer")
# Streams of random numbers: 0 is the rollout, 1 the teacher's step, 2 + i the i-th try of a tail.
TEACHER_STREAM = 1

_splice_rows, _cut_rows = jax.jit(splice, static_argnames="owner"), jax.jit(cut)


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """kind: one of `KINDS`. template: what the teacher is shown besides the problem and the steps
    before the error. prompt: a text of one's own in place of the template's, with the fields
    {prompt}, {kept}, {wrong} and {answer}. prompt_tokens: the longest prompt of a prompted model
    on the mesh. style: of a program teacher."""

    kind: str = "model"
    template: str = "continue"
    prompt: str = ""
    prompt_tokens: int = 1024
    style: str = "same_term"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("template", self.template, TEMPLATES),
        ):
            if value not in known:
                raise ValueError(
                    f"teacher.{name} = {value!r} is unknown; one of {', '.join(known)}"
                )
        if self.prompt_tokens < 1:
            raise ValueError(f"teacher.prompt_tokens = {self.prompt_tokens} must be at least 1")

    @property
    def prompted(self) -> bool:
        """Whether the teacher gets a prompt of its own, instead of the row to go on with."""
        return self.template != "continue" or bool(self.prompt)

    @property
    def shows_answer(self) -> bool:
        """Whether the teacher sees the reference answer."""
        return (
            "{answer}" in self.prompt if self.prompt else self.template == "wrong_step_and_answer"
        )


@dataclasses.dataclass(frozen=True)
class Ask:
    """One row to correct. `kept`: texts of the steps before the error; `wrong`: of the wrong step;
    `last`: it is the rollout's last step, so that the correction may end the solution; `row`: the
    row's id."""

    problem: Problem
    kept: tuple[str, ...]
    wrong: str
    last: bool
    row: int


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """Rows to correct. `rows`: B rows, cut before the error; the first len(asks) are to be
    continued, the rest fills the batch and is finished. kept_B: their lengths; limit_B: what they
    may grow to (both int, on the host). at_once: rows that a model writes at a time (0: all)."""

    rows: Rollout
    asks: Sequence[Ask]
    kept_B: np.ndarray
    limit_B: np.ndarray
    step_tokens: int
    temperature: float
    end_ids: tuple[int, ...]  # the policy's
    key: jax.Array
    seed: int
    domain: Domain
    tokenizer: Any  # the policy's
    policy: Generator
    at_once: int = 0

    @property
    def end_id(self) -> int:
        """The token that ends a solution: the tokenizer's own, where the policy has several."""
        eos = self.tokenizer.eos_token_id
        return eos if eos in self.end_ids or not self.end_ids else self.end_ids[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Corrected:
    """`rollout`: the job's rows with a step each. failed: per ask, why there is none (None: there
    is one). metrics: counters by full name. shows_answer: the teacher knows the reference answer,
    so its steps are looked through for it."""

    rollout: Rollout
    failed: list[str | None]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    shows_answer: bool = False


class Teacher(Protocol):
    """`generator`: a model on the mesh that can write a tail too, None where there is none."""

    @property
    def generator(self) -> Generator | None: ...

    def correct(self, job: Job) -> Corrected:
        """The job's rows, each with one step written by the TEACHER, or with a reason why not."""
        ...


@dataclasses.dataclass(frozen=True)
class Step:
    """A step in the policy's ids, without an end token. `ends`: it ends the solution. `logp`: None
    where unknown."""

    ids: list[int]
    ends: bool
    logp: list[float] | None = None


# ---- kinds


@dataclasses.dataclass(frozen=True, eq=False)
class ModelTeacher:
    """A model on the mesh; `generator` None is the policy of the moment. `tokenizer`: the model's own
    where it is another one than the policy's (None: the same), which only a prompted teacher may
    have."""

    generator: Generator | None
    spec: TeacherSpec = dataclasses.field(default_factory=TeacherSpec)
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if self.tokenizer is not None and not self.spec.prompted:
            raise ValueError(
                "teacher.template 'continue' on the mesh goes on from the policy's ids, so the"
                " teacher must share the policy's tokenizer; use template 'wrong_step'"
            )

    def correct(self, job: Job) -> Corrected:
        generator = self.generator or job.policy
        if self.spec.prompted:
            return self._prompted(job, generator)
        spec = SampleSpec(
            temperature=job.temperature,
            max_new_tokens=job.step_tokens,
            end_ids=job.end_ids,
            stop=_stop_table(job.tokenizer, job.domain, generator.config.vocab_size),
        )
        rollout = generator.extend(
            job.rows,
            job.key,
            spec,
            owner=Owner.TEACHER,
            stream=TEACHER_STREAM,
            limit_B=jnp.asarray(job.limit_B),
            at_once=job.at_once,
        )
        if not job.domain.boundary:
            return Corrected(rollout, self._past_the_vocabulary(rollout, generator, job))
        rollout, endless = _first_step_only(rollout, job)
        past = self._past_the_vocabulary(rollout, generator, job)
        return Corrected(
            rollout,
            [reason or ("incomplete" if n in endless else None) for n, reason in enumerate(past)],
        )

    def _past_the_vocabulary(
        self, rollout: Rollout, generator: Generator, job: Job
    ) -> list[str | None]:
        """Padded vocabularies of one tokenizer may differ in size: an id that the policy has no
        row for is no step."""
        failed: list[str | None] = [None] * len(job.asks)
        if generator.config.vocab_size > job.policy.config.vocab_size:
            highest = to_host(jnp.max(rollout.tokens_BT, axis=1))
            failed = [
                "untokenisable" if high >= job.policy.config.vocab_size else None
                for high in highest[: len(failed)]
            ]
        return failed

    def _prompted(self, job: Job, generator: Generator) -> Corrected:
        tokenizer = self.tokenizer or job.tokenizer
        prompts = [prompt_text(ask, self.spec) for ask in job.asks]
        chat = bool(tokenizer.chat_template)
        encoded, dropped = encode_prompts(
            tokenizer, prompts, max_length=self.spec.prompt_tokens, chat=chat
        )
        B, left = len(job.kept_B), iter(encoded)
        open_B = np.array([n < len(job.asks) and n not in set(dropped) for n in range(B)])
        rows = from_prompts(
            [next(left) if opened else [0] for opened in open_B],
            1,
            self.spec.prompt_tokens + job.step_tokens,
        )
        rows = rows.replace(row_id_B=job.rows.row_id_B, finished_B=jnp.asarray(~open_B))
        spec = SampleSpec(
            temperature=job.temperature,
            max_new_tokens=job.step_tokens,
            end_ids=generator.config.end_ids or job.end_ids,
            stop=_stop_table(tokenizer, job.domain, generator.config.vocab_size),
        )
        rows = generator.extend(
            rows, job.key, spec, owner=Owner.TEACHER, stream=TEACHER_STREAM, at_once=job.at_once
        )
        ids = completion_ids(rows)
        replies = texts(ids, tokenizer)
        finished, logp, start = to_host((rows.finished_B, rows.logp_BT, rows.prompt_length_B))
        steps: list[Step | str] = []
        for number, ask in enumerate(job.asks):
            if not open_B[number]:
                steps.append("prompt_too_long")
                continue
            found = read_reply(replies[number], bool(finished[number]), ask.last, job.domain)
            own = None
            if self.tokenizer is None:
                own = (
                    ids[number],
                    logp[number, start[number] : start[number] + len(ids[number])].tolist(),
                )
            steps.append(encode_reply(found, job, own))
        return write_steps(job, steps, shows_answer=self.spec.shows_answer)


@dataclasses.dataclass(frozen=True)
class ReferenceTeacher:
    """The data set's own solution. The step with the index of the wrong one, capped at the
    solution's last; steps that the policy already wrote, blanks aside, are passed over. The step
    that ends the solution corrects a last step only."""

    generator: None = None

    def correct(self, job: Job) -> Corrected:
        return write_steps(job, [self._step(ask, job) for ask in job.asks], shows_answer=True)

    def _step(self, ask: Ask, job: Job) -> Step | str:
        if not ask.problem.solution:
            return "no_solution"
        steps = reference_steps(ask.problem.solution, job.domain.separator, job.domain.divider)
        plain = lambda text: "".join(text.split())
        covered = {plain(step) for step in ask.kept}
        start = min(len(ask.kept), len(steps) - 1)
        number = next((n for n in range(start, len(steps)) if plain(steps[n]) not in covered), None)
        if number is None:
            return "no_step"
        return _final_or_not(steps[number], number == len(steps) - 1, ask, job)


@dataclasses.dataclass(frozen=True)
class ProgramTeacher:
    """The domain's own program (`Domain.next_step`) in one of its styles."""

    style: str = "same_term"
    generator: None = None

    def correct(self, job: Job) -> Corrected:
        return write_steps(job, [self._step(ask, job) for ask in job.asks])

    def _step(self, ask: Ask, job: Job) -> Step | str:
        rng = np.random.default_rng([job.seed, 2, ask.row])
        step = job.domain.next_step(ask.problem, ask.kept, rng, self.style, ask.wrong)
        if step is None:
            return "no_step"
        return _final_or_not(step, not step.endswith(job.domain.separator), ask, job)


def _final_or_not(step: str, final: bool, ask: Ask, job: Job) -> Step | str:
    """A step of which it is known whether it ends the solution: where it does, it corrects a last
    step only."""
    if final and not ask.last:
        return "leak"
    if not step.strip():
        return "empty"
    return encode_reply((step.removesuffix(job.domain.separator) if final else step, final), job)


# ---- prompts

_ORDER = (
    "You correct solutions step by step. Below are a problem and the beginning of a solution, all"
    " of it right so far. Write the one step that comes next, in the notation and style of the"
    " solution, and nothing else: no comment, no title, no second step."
)


def prompt_text(ask: Ask, spec: TeacherSpec) -> str:
    """What a prompted teacher is told about one row."""
    values = {
        "prompt": ask.problem.prompt,
        "kept": "".join(ask.kept),
        "wrong": ask.wrong,
        "answer": ask.problem.answer,
    }
    if spec.prompt:
        return re.sub(
            r"\{(prompt|kept|wrong|answer)\}", lambda match: values[match[1]], spec.prompt
        )
    parts = [
        _ORDER,
        f"Problem:\n{values['prompt']}",
        f"Solution so far:\n{values['kept'].rstrip()}",
    ]
    if spec.template != "continue":
        parts.append(f"The next step was written like this, and it is wrong:\n{ask.wrong.rstrip()}")
    if spec.template == "wrong_step_and_answer":
        parts.append(f"The final answer, to check your step against: {ask.problem.answer}")
    parts.append(
        "If your step completes the solution, let it state the final answer in the form that the"
        " problem asks for."
        if ask.last
        else "More steps follow after yours: do not state the final answer."
    )
    return "\n\n".join(parts)


# ---- from a reply to a row


def encode_reply(
    found: tuple[str, bool] | str, job: Job, sampled: tuple[list[int], list[float]] | None = None
) -> Step | str:
    """The step that `read_reply` found, in the policy's ids; a reason stays what it is.

    `sampled`: ids and log-probs that were drawn for the reply. They are taken as they are where
    they spell the step, with the separator's ids added where that is all they lack.
    """
    if isinstance(found, str):
        return found
    step, ends = found
    if any(special in step for special in special_texts(job.tokenizer)):
        return "special"
    if any("\ud800" <= character <= "\udfff" for character in step):
        return "untokenisable"  # half of a character, which JSON can carry
    if sampled is not None:
        pieces, (ids, logp) = token_bytes(job.tokenizer), sampled
        for missing in ("", job.domain.separator):
            more = encode_step(missing, job.tokenizer) if missing else []
            if more is not None and b"".join(pieces[i] for i in [*ids, *more]) == step.encode():
                return Step([*ids, *more], ends, [*logp, *[float("nan")] * len(more)])
    encoded = encode_step(step, job.tokenizer, job.domain.separator)
    return "untokenisable" if encoded is None else Step(encoded, ends)


def write_steps(
    job: Job,
    steps: Sequence[Step | str],
    *,
    metrics: dict[str, float] | None = None,
    shows_answer: bool = False,
) -> Corrected:
    """The job's rows with these steps after their cut, one per ask; where a step ends the
    solution, the policy's end token after it. A step is never cut: one longer than `step_tokens`,
    or than the row's room, is refused ("too_long")."""
    B, J = len(job.kept_B), job.step_tokens + 1
    tokens, count, ends = np.zeros((B, J), np.int32), np.zeros(B, np.int32), np.zeros(B, bool)
    logp = np.full((B, J), np.nan, np.float32)
    failed: list[str | None] = []
    for number, step in enumerate(steps):
        if isinstance(step, str):
            failed.append(step)
            continue
        ids = [*step.ids, job.end_id] if step.ends else step.ids
        if len(step.ids) > job.step_tokens or job.kept_B[number] + len(ids) > job.limit_B[number]:
            failed.append("too_long")
            continue
        tokens[number, : len(ids)] = ids
        logp[number, : len(step.ids)] = np.nan if step.logp is None else step.logp
        count[number], ends[number] = len(ids), step.ends
        failed.append(None)
    arrays = (jnp.asarray(tokens), jnp.asarray(count))
    rollout = _splice_rows(
        job.rows,
        *arrays,
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


def _stop_table(tokenizer: Any, domain: Domain, vocab_size: int) -> np.ndarray | None:
    """What stops a teacher after one step. A pattern stops nobody: what is written past the step
    is cut off afterwards."""
    return None if domain.boundary else _kept_table(tokenizer, domain.separator, vocab_size)


@functools.lru_cache(maxsize=4)
def _kept_table(tokenizer: Any, separator: str, vocab_size: int) -> np.ndarray:
    return stop_table(tokenizer, separator, vocab_size)


def _first_step_only(rollout: Rollout, job: Job) -> tuple[Rollout, set[int]]:
    """(the rows, cut after the first step that was written to each, which asks have a step without
    an end)."""
    start, finished, length = to_host(
        (rollout.prompt_length_B, rollout.finished_B, rollout.length_B)
    )
    length, endless = np.array(length), set()
    written = [
        ids[job.kept_B[n] - start[n] :]
        for n, ids in enumerate(completion_ids(rollout)[: len(job.asks)])
    ]
    for number, (ids, text) in enumerate(zip(written, texts(written, job.tokenizer), strict=True)):
        ends = step_ends(ids, job.tokenizer, job.domain.divider)
        if len(ends) > 1:
            length[number] = job.kept_B[number] + ends[0]
        elif not finished[number] and not any(
            match.group() for match in re.finditer(job.domain.boundary, text)
        ):
            endless.add(number)
    return _cut_rows(rollout, jnp.asarray(length)), endless
