"""A teacher that is a model on the mesh: it continues the policy's rows, or answers a prompt."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import streams
from scope_jax.devices.mesh import to_host
from scope_jax.devices.programs import program
from scope_jax.rollout import Generator, SampleSpec, completion_ids, from_prompts, texts
from scope_jax.rollout.rows import cut
from scope_jax.tasks import Domain
from scope_jax.tasks.visible import is_visible
from scope_jax.teachers.base import (
    Corrected,
    Job,
    TeacherSpec,
    WrittenStep,
    encode_reply,
    write_steps,
)
from scope_jax.teachers.demonstrations import (
    DemonstrationJob,
    Demonstrations,
    Refused,
    demonstrated,
    write_solutions,
)
from scope_jax.teachers.prompts import prompt_text
from scope_jax.teachers.replies import most_characters, read_reply
from scope_jax.text import encode_in_place, step_ends, stop_table
from scope_jax.text.boundaries import Separator, places
from scope_jax.text.steps import can_stop
from scope_jax.types import Owner, Rollout

_cut_rows = program(cut)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelTeacher:
    """A model on the mesh. Template `continue` goes on from the row's own ids; any other is
    prompted, and only then may the model have a tokenizer of its own."""

    generator: Generator | None  # None: the policy of the moment
    spec: TeacherSpec = dataclasses.field(default_factory=TeacherSpec)
    tokenizer: Any = None  # the model's own; None: the policy's
    # Whose chat template prompts it: the model's own tokenizer, even where its ids are the
    # policy's. None: `tokenizer`.
    prompted_by: Any = None

    def __post_init__(self) -> None:
        if self.tokenizer is not None and not self.spec.prompted:
            raise ValueError(
                "teacher.template 'continue' on the mesh goes on from the policy's ids, so the"
                " teacher must share the policy's tokenizer; use template 'wrong_step'"
            )

    def correct(self, job: Job) -> Corrected:
        """One step for each row, by `generator`."""
        generator = self.generator or job.policy.generator
        if self.spec.prompted:
            return self._prompted(job, generator)
        stop = _stop_table(job.policy.tokenizer, job.domain, generator.config.vocab_size)
        spec = SampleSpec(
            temperature=self.spec.temperature,
            max_new_tokens=self.spec.step_tokens,
            end_ids=job.policy.sampling.end_ids,
            stop=stop,
        )
        rollout = generator.extend(
            job.rows,
            job.key,
            spec,
            owner=Owner.TEACHER,
            stream=streams.TEACHER,
            limit_B=jnp.asarray(job.limit_B),
            at_once=job.rows_at_once,
        )
        if stop is not None:
            return Corrected(rollout, _foreign_ids(rollout, generator, job))
        rollout, endless = _first_step_only(rollout, job)
        foreign = _foreign_ids(rollout, generator, job)
        return Corrected(
            rollout,
            [
                reason or ("incomplete" if n in endless else None)
                for n, reason in enumerate(foreign)
            ],
        )

    def demonstrate(self, job: DemonstrationJob) -> Demonstrations:
        """Solutions by `generator`: the prompts continued where the tokenizer is the policy's, else
        the problems in its own chat template and its texts encoded for the policy. Raises
        ValueError for the policy itself, which demonstrates nothing to itself."""
        if self.generator is None:
            raise ValueError(
                "teacher.kind 'self' gives no demonstrations; use 'model', 'reference', 'program'"
                " or 'endpoint'"
            )
        if self.tokenizer is not None:
            return write_solutions(job, self._own_words(job, self.generator))
        spec = dataclasses.replace(
            job.sampling, temperature=job.temperature, top_p=1.0, top_k=None, stop=None
        )
        rows = self.generator.extend(
            job.rows, job.key, spec, owner=Owner.TEACHER, stream=streams.DEMONSTRATION
        )
        finished = to_host(rows.finished_B)[: len(job.problems)]
        foreign = has_foreign_ids(
            rows, self.generator, job.vocab_size or self.generator.config.vocab_size
        )
        return demonstrated(
            rows,
            [
                "untokenisable" if strange else None if ended else "too_long"
                for ended, strange in zip(finished, foreign)
            ],
        )

    def _prompted(self, job: Job, generator: Generator) -> Corrected:
        tokenizer = self.prompted_by or self.tokenizer or job.policy.tokenizer
        prompts = encode_in_place(
            tokenizer,
            [prompt_text(ask, self.spec) for ask in job.asks],
            max_length=self.spec.prompt_tokens,
            chat=bool(tokenizer.chat_template),
        )
        rows = _prompt_rows(
            [*prompts, *[None] * (len(job.kept_B) - len(prompts))],
            job.rows.row_id_B,
            self.spec.prompt_tokens + self.spec.step_tokens,
        )
        spec = SampleSpec(
            temperature=self.spec.temperature,
            max_new_tokens=self.spec.step_tokens,
            end_ids=generator.config.end_ids or job.policy.sampling.end_ids,
            stop=_stop_table(tokenizer, job.domain, generator.config.vocab_size),
        )
        rows = generator.extend(
            rows,
            job.key,
            spec,
            owner=Owner.TEACHER,
            stream=streams.TEACHER,
            at_once=job.rows_at_once,
        )
        ids = completion_ids(rows)
        replies = texts(ids, tokenizer)
        finished, logp, start = to_host((rows.finished_B, rows.logp_BT, rows.prompt_length_B))
        steps: list[WrittenStep | str] = []
        most = most_characters(job.policy.tokenizer, self.spec.step_tokens)
        for n, ask in enumerate(job.asks):
            if prompts[n] is None:
                steps.append("prompt_too_long")
                continue
            found = read_reply(replies[n], bool(finished[n]), ask.last, job.domain, most=most)
            sampled = None
            if self.tokenizer is None:
                sampled = (ids[n], logp[n, start[n] : start[n] + len(ids[n])].tolist())
            steps.append(encode_reply(found, job, sampled, most, ask))
        return write_steps(job, steps, self.spec, shows_answer=self.spec.shows_answer)

    def _own_words(self, job: DemonstrationJob, generator: Generator) -> list[str | Refused]:
        """Solutions of a model with a tokenizer of its own, as texts."""
        most, tokenizer = job.sampling.max_new_tokens, self.tokenizer
        prompts = encode_in_place(
            tokenizer,
            [job.domain.policy_prompt(problem) for problem in job.problems],
            max_length=self.spec.prompt_tokens,
            chat=bool(tokenizer.chat_template),
            system=job.domain.system,
        )
        prompts += [None] * (job.rows.length_B.shape[0] - len(prompts))
        rows = _prompt_rows(prompts, job.rows.row_id_B, self.spec.prompt_tokens + most)
        spec = SampleSpec(
            temperature=job.temperature, max_new_tokens=most, end_ids=generator.config.end_ids
        )
        rows = generator.extend(
            rows, job.key, spec, owner=Owner.TEACHER, stream=streams.DEMONSTRATION
        )
        finished = to_host(rows.finished_B)
        replies = texts(completion_ids(rows), tokenizer)
        return [
            Refused("prompt_too_long")
            if prompts[n] is None
            else (reply if finished[n] else Refused("too_long"))
            for n, reply in enumerate(replies[: len(job.problems)])
        ]


def _prompt_rows(
    prompts: Sequence[list[int] | None], row_id_B: jax.Array, max_length: int
) -> Rollout:
    """Rows with these prompts under the given ids; where there is none, a finished row that only
    fills the batch."""
    rows = from_prompts([ids or [0] for ids in prompts], 1, max_length)
    closed_B = np.array([ids is None for ids in prompts])
    return rows.replace(row_id_B=row_id_B, finished_B=jnp.asarray(closed_B))


def _foreign_ids(rollout: Rollout, generator: Generator, job: Job) -> list[str | None]:
    """Per ask, "untokenisable" where the policy lacks an id of the step."""
    foreign = has_foreign_ids(rollout, generator, job.policy.generator.config.vocab_size)
    return ["untokenisable" if foreign[n] else None for n in range(len(job.asks))]


def has_foreign_ids(rollout: Rollout, generator: Generator, known: int) -> np.ndarray:
    """bool[B]: rows with an id that a policy with a vocabulary of `known` ids lacks: padded
    vocabularies of one tokenizer may differ in size."""
    if generator.config.vocab_size <= known:
        return np.zeros(rollout.tokens_BT.shape[0], bool)
    return np.asarray(to_host(jnp.max(rollout.tokens_BT, axis=1)) >= known)


def _stop_table(tokenizer: Any, domain: Domain, vocab_size: int) -> np.ndarray | None:
    """What stops a teacher after one step. A pattern stops nobody: what is written past the step
    is cut off afterwards."""
    divider = domain.divider
    return _kept_table(tokenizer, divider, vocab_size) if can_stop(divider) else None


@functools.lru_cache(maxsize=4)
def _kept_table(tokenizer: Any, separator: Separator, vocab_size: int) -> np.ndarray:
    return stop_table(tokenizer, separator, vocab_size)


def _first_step_only(rollout: Rollout, job: Job) -> tuple[Rollout, set[int]]:
    """(the rows, cut after the first step that was written to each; which asks have a step without
    an end)."""
    start, finished, length = to_host(
        (rollout.prompt_length_B, rollout.finished_B, rollout.length_B)
    )
    length, endless = np.array(length), set()
    tokenizer = job.policy.tokenizer
    steps = [
        ids[job.kept_B[n] - start[n] :]
        for n, ids in enumerate(completion_ids(rollout)[: len(job.asks)])
    ]
    for n, (ids, text) in enumerate(zip(steps, texts(steps, tokenizer), strict=True)):
        ends = step_ends(ids, tokenizer, job.domain.divider)
        if len(ends) > 1:
            length[n] = job.kept_B[n] + ends[0]
        elif not finished[n] and not any(
            match.group() and is_visible(text[: match.end()])
            for match in places(text, job.domain.divider)
        ):
            endless.add(n)
    return _cut_rows(rollout, jnp.asarray(length)), endless
