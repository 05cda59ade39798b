"""Whole solutions by the teacher, as rows of TEACHER tokens: what LUFFY puts into a group, and
what supervised steps learn."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import to_host
from scope_jax.devices.programs import program
from scope_jax.rollout import SampleSpec, solution_end
from scope_jax.rollout.rows import cut, splice
from scope_jax.tasks import Domain, Problem
from scope_jax.teachers.replies import (
    encode_step,
    most_characters,
    special_texts,
    unix_newlines,
)
from scope_jax.types import Owner, Rollout

_splice_rows = program(splice, static_argnames="owner")


@dataclasses.dataclass(frozen=True)
class DemonstrationSpec:
    """Whole solutions of the teacher."""

    verified: bool = False  # use only those that the verifier accepts
    temperature: float = 1.0  # of a teacher that samples

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"demonstrations.temperature = {self.temperature} must be 0 or more")


@dataclasses.dataclass(frozen=True, eq=False)
class DemonstrationJob:
    """Problems to solve as a whole, and B rows; those that have no problem fill the batch."""

    problems: Sequence[Problem]
    # First one per problem, its prompt as the policy is shown it; then those that fill the batch,
    # finished.
    rows: Rollout
    tokenizer: Any  # the policy's
    # The policy's; a solution longer than its `max_new_tokens`, end token included, is refused.
    sampling: SampleSpec
    domain: Domain
    temperature: float
    key: jax.Array  # of the training step
    seed: int  # of what does not draw by key
    vocab_size: int | None = None  # of the policy's model; None: any id of the tokenizer's family


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstrations:
    """What the teacher wrote."""

    rollout: Rollout  # a solution, finished; where there is none, the prompt alone
    failed: list[str | None]  # per problem, why there is none (None: there is one)
    metrics: dict[str, float]  # counters by full name


@dataclasses.dataclass(frozen=True)
class Refused:
    """There is no solution, and why."""

    reason: str


def write_solutions(
    job: DemonstrationJob,
    solutions: Sequence[str | Refused],
    metrics: dict[str, float] | None = None,
) -> Demonstrations:
    """The job's rows with these texts behind their prompts, in the policy's ids and with its end
    token."""
    B, most = job.rows.length_B.shape[0], job.sampling.max_new_tokens
    tokens, count = np.zeros((B, most), np.int32), np.zeros(B, np.int32)
    end = solution_end(job.tokenizer, job.sampling)
    failed: list[str | None] = []
    for number, text in enumerate(solutions):
        if isinstance(text, Refused):
            failed.append(text.reason)
            continue
        ids = _solution_ids(text, job)
        if isinstance(ids, str):
            failed.append(ids)
            continue
        tokens[number, : len(ids) + 1] = [*ids, end]
        count[number] = len(ids) + 1
        failed.append(None)
    rows = _splice_rows(
        job.rows,
        jnp.asarray(tokens),
        jnp.asarray(count),
        owner=Owner.TEACHER,
        finished_B=jnp.asarray(count > 0),
    )
    return demonstrated(rows, failed, metrics)


def _solution_ids(text: str, job: DemonstrationJob) -> list[int] | str:
    """The ids of a solution, without the end token; or why there are none."""
    tokenizer, separator, most = job.tokenizer, job.domain.separator, job.sampling.max_new_tokens
    text = unix_newlines(text)
    text = text.strip(" \n") if separator.isspace() else text
    if not text:
        return "empty"
    if len(text) > most_characters(tokenizer, most):
        return "too_long"
    if any(special in text for special in special_texts(tokenizer)):
        return "untokenisable"
    ids = encode_step(text, tokenizer, separator)
    if ids is None:
        return "untokenisable"
    return ids if len(ids) + 1 <= most else "too_long"


def demonstrated(
    rows: Rollout, failed: list[str | None], metrics: dict[str, float] | None = None
) -> Demonstrations:
    """The record of these rows, with its counters; rows that failed hold the prompt alone,
    finished."""
    length, prompt_length = to_host((rows.length_B, rows.prompt_length_B))
    failed_B = np.zeros(len(length), bool)
    failed_B[: len(failed)] = [reason is not None for reason in failed]
    spent = float(np.sum(length - prompt_length))
    reasons = collections.Counter(reason for reason in failed if reason is not None)
    counts = {
        "demonstrations/asked": float(len(failed)),
        "demonstrations/failed": float(sum(reasons.values())),
        **{f"demonstrations/failed_{name}": float(n) for name, n in reasons.items()},
        "cost/demonstration_tokens": spent,
    }
    return Demonstrations(without(rows, jnp.asarray(failed_B)), failed, (metrics or {}) | counts)


@program
def without(rows: Rollout, refused_B: jax.Array) -> Rollout:
    """The rows, those where `refused_B` (bool[B]) cut to their prompt and finished."""
    return cut(rows, jnp.where(refused_B, rows.prompt_length_B, rows.length_B)).replace(
        finished_B=rows.finished_B | refused_B
    )
