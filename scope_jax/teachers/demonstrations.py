"""Whole solutions by the teacher, as rows of TEACHER tokens: what LUFFY puts into a group, and
what supervised steps learn."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import to_host
from scope_jax.rollout import SampleSpec, completion_ids, from_prompts, texts
from scope_jax.rollout.rows import cut, splice
from scope_jax.tasks import Domain, Problem
from scope_jax.teachers.endpoint import EndpointTeacher
from scope_jax.teachers.kinds import ModelTeacher, ProgramTeacher, ReferenceTeacher, Teacher
from scope_jax.teachers.replies import encode_step, special_texts
from scope_jax.text import encode_prompts
from scope_jax.types import Owner, Rollout

# Streams of random numbers: see teachers.py. This one is none of the tails'.
DEMONSTRATION_STREAM = 1 << 19

_splice_rows = jax.jit(splice, static_argnames="owner")


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstrations:
    """`rollout`: one row per problem, finished where there is a demonstration, else the prompt
    alone. failed: per row, why there is none (None: there is one). metrics: counters by full name.
    """

    rollout: Rollout
    failed: list[str | None]
    metrics: dict[str, float]


def demonstrate(
    teacher: Teacher,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    *,
    max_length: int,
    first_row: int,
    sample_spec: SampleSpec,
    temperature: float,
    key: jax.Array,
    seed: int,
    domain: Domain,
    tokenizer: Any,
    prompt_tokens: int = 1024,
) -> Demonstrations:
    """The teacher's whole solution of each problem, behind its prompt (`prompts`: ids as the
    policy is shown them), in buffers of `max_length` slots. Row ids count up from `first_row`.

    A model that shares the policy's tokenizer continues the prompt; one with its own, or an
    endpoint, is shown the problem in its own chat template, and its text is encoded for the
    policy; a program or the data set's solution are encoded too. `sample_spec`: the policy's; a
    solution of more than its `max_new_tokens`, end token included, is refused ("too_long"). Raises
    ValueError for the teacher `self`: the policy demonstrates nothing to itself.
    """
    rows = from_prompts(prompts, 1, max_length, first_row=first_row)
    if isinstance(teacher, ModelTeacher):
        if teacher.generator is None:
            raise ValueError(
                "teacher.kind 'self' gives no demonstrations; use 'model', 'reference', 'program'"
                " or 'endpoint'"
            )
        if teacher.tokenizer is None:
            spec = dataclasses.replace(
                sample_spec, temperature=temperature, top_p=1.0, top_k=0, stop=None
            )
            rows = teacher.generator.extend(
                rows,
                key,
                spec,
                owner=Owner.TEACHER,
                stream=DEMONSTRATION_STREAM,
            )
            finished = to_host(rows.finished_B)
            return _done(rows, [None if ended else "too_long" for ended in finished], {})
        found: Sequence[str | tuple[str, str]] = _own_words(
            teacher,
            problems,
            prompt_tokens,
            sample_spec.max_new_tokens,
            temperature,
            key,
            rows.row_id_B,
            domain,
        )
        metrics: dict[str, float] = {}
    elif isinstance(teacher, EndpointTeacher):
        found, metrics = teacher.solve(
            problems, domain, sample_spec.max_new_tokens, temperature, seed
        )
    else:
        found, metrics = (
            [
                _written(teacher, problem, first_row + n, domain, seed)
                for n, problem in enumerate(problems)
            ],
            {},
        )
    return _done(*_encoded(rows, found, sample_spec, domain, tokenizer), metrics)


def _written(
    teacher: Teacher, problem: Problem, row: int, domain: Domain, seed: int
) -> str | tuple[str, str]:
    """A solution that exists or that a program writes; ("", reason) where there is none."""
    if isinstance(teacher, ReferenceTeacher):
        text = domain.reference_solution(problem)
    else:
        style = teacher.style if isinstance(teacher, ProgramTeacher) else ""
        text = domain.demonstration(problem, np.random.default_rng([seed, 4, row]), style)
    return text or ("", "no_solution")


def _own_words(
    teacher: ModelTeacher,
    problems: Sequence[Problem],
    prompt_tokens: int,
    new_tokens: int,
    temperature: float,
    key: jax.Array,
    row_id_B: jax.Array,
    domain: Domain,
) -> list[str | tuple[str, str]]:
    """Solutions of a model with a tokenizer of its own, as texts."""
    generator, tokenizer = teacher.generator, teacher.tokenizer
    assert generator is not None
    shown = [domain.policy_prompt(problem) for problem in problems]
    chat = bool(tokenizer.chat_template)
    encoded, dropped = encode_prompts(
        tokenizer, shown, max_length=prompt_tokens, chat=chat, system=domain.system
    )
    left = iter(encoded)
    open_B = np.array([n not in set(dropped) for n in range(len(problems))])
    rows = from_prompts(
        [next(left) if opened else [0] for opened in open_B], 1, prompt_tokens + new_tokens
    )
    rows = rows.replace(row_id_B=row_id_B, finished_B=jnp.asarray(~open_B))
    spec = SampleSpec(
        temperature=temperature, max_new_tokens=new_tokens, end_ids=generator.config.end_ids
    )
    rows = generator.extend(rows, key, spec, owner=Owner.TEACHER, stream=DEMONSTRATION_STREAM)
    finished = to_host(rows.finished_B)
    replies = texts(completion_ids(rows), tokenizer)
    return [
        ("", "prompt_too_long") if not open_B[n] else reply if finished[n] else ("", "too_long")
        for n, reply in enumerate(replies)
    ]


def _encoded(
    rows: Rollout,
    found: Sequence[str | tuple[str, str]],
    spec: SampleSpec,
    domain: Domain,
    tokenizer: Any,
) -> tuple[Rollout, list[str | None]]:
    """The rows with these texts behind their prompts, in the policy's ids and with its end token."""
    B, most = len(found), spec.max_new_tokens
    eos = tokenizer.eos_token_id
    end = eos if eos in spec.end_ids or not spec.end_ids else spec.end_ids[0]
    tokens, count = np.zeros((B, most), np.int32), np.zeros(B, np.int32)
    failed: list[str | None] = []
    for number, text in enumerate(found):
        if not isinstance(text, str):
            failed.append(text[1])
            continue
        text = text.strip(" \n") if domain.separator.isspace() else text
        ids = (
            None
            if any(special in text for special in special_texts(tokenizer))
            else encode_step(text, tokenizer, domain.separator)
        )
        if not text or ids is None:
            failed.append("untokenisable" if text else "empty")
        elif len(ids) + 1 > most:
            failed.append("too_long")
        else:
            tokens[number, : len(ids) + 1] = [*ids, end]
            count[number] = len(ids) + 1
            failed.append(None)
    ends = jnp.asarray(count > 0)
    return (
        _splice_rows(
            rows, jnp.asarray(tokens), jnp.asarray(count), owner=Owner.TEACHER, finished_B=ends
        ),
        failed,
    )


def _done(rows: Rollout, failed: list[str | None], metrics: dict[str, float]) -> Demonstrations:
    """Rows whose demonstration failed hold the prompt alone, finished."""
    bad = jnp.asarray(np.array([reason is not None for reason in failed]))
    spent = float(jnp.sum(rows.length_B - rows.prompt_length_B))
    counts = {
        "demonstrations/asked": float(len(failed)),
        "demonstrations/failed": float(sum(r is not None for r in failed)),
    }
    for reason in failed:
        if reason is not None:
            counts[f"demonstrations/failed_{reason}"] = (
                counts.get(f"demonstrations/failed_{reason}", 0.0) + 1.0
            )
    return Demonstrations(
        without(rows, bad), failed, metrics | counts | {"cost/demonstration_tokens": spent}
    )


@jax.jit
def without(rows: Rollout, bad: jax.Array) -> Rollout:
    """The rows, those where `bad` (bool[B]) cut to their prompt and finished."""
    return cut(rows, jnp.where(bad, rows.prompt_length_B, rows.length_B)).replace(
        finished_B=rows.finished_B | bad
    )
