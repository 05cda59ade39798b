"""Stage 3: the chosen rows cut before their error, and one step of the teacher after the cut."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from scope_jax.correction.choose import Chosen
from scope_jax.correction.records import Groups, Scene
from scope_jax.correction.spec import CorrectionSpec
from scope_jax.correction.steps import pad_rows
from scope_jax.devices.mesh import to_host
from scope_jax.devices.programs import program
from scope_jax.rollout import completion_ids, texts
from scope_jax.rollout.rows import cut, take_rows
from scope_jax.teachers.base import Ask, Corrected, Job, failure_counts
from scope_jax.teachers.replies import gives_answer_away
from scope_jax.text.boundaries import places
from scope_jax.text.steps import can_stop
from scope_jax.types import Rollout

_cut_rows, _take_rows = program(cut), program(take_rows)


@dataclasses.dataclass(frozen=True, eq=False)
class CorrectedRows:
    """The N chosen rows with a step of the teacher each, in a batch of R rows."""

    chosen: Chosen
    job: Job  # the cut rows, and what the teacher was asked
    rows: Rollout  # with the teacher's step
    steps: list[str]  # N texts: what the teacher wrote
    usable_R: np.ndarray  # bool: the step may be used
    # Per row, why there is none to use ("leak", "incomplete_step", "teacher_<its reason>"); None:
    # there is one.
    refused: list[str | None]
    metrics: dict[str, float]  # of this stage and those before


def correct(chosen: Chosen, groups: Groups, scene: Scene, spec: CorrectionSpec) -> CorrectedRows:
    """One TEACHER step for each chosen row, after what stands before its first error. A step that
    is incomplete, or that gives the answer away before the last step, is refused."""
    if scene.teacher is None:
        raise ValueError("the correction needs a teacher")
    job = cut_rows(chosen, groups, scene, spec)
    answer = scene.teacher.correct(job)
    refused, steps = _check_steps(answer, job)
    usable_R = np.zeros(len(job.kept_B), bool)
    usable_R[: len(refused)] = [reason is None for reason in refused]
    length, before = to_host((answer.rollout.length_B, job.rows.length_B))
    tokens = float(np.sum(length - before))
    metrics = chosen.metrics | failure_counts(answer.failed) | answer.metrics
    metrics |= {
        "scope/leaks": float(refused.count("leak")),
        "scope/incomplete_steps": float(refused.count("incomplete_step")),
        "scope/corrected": float(usable_R.sum()),
        "cost/teacher_tokens": tokens,
    }
    return CorrectedRows(chosen, job, answer.rollout, steps, usable_R, refused, metrics)


def cut_rows(chosen: Chosen, groups: Groups, scene: Scene, spec: CorrectionSpec) -> Job:
    """The chosen rows, cut before their first error, as a job for a teacher. Row 0 of the rollout,
    finished, fills the batch up: it always has room for as many as may be chosen."""
    rollout, located, rows_N = groups.rollout, chosen.located, chosen.rows_N
    prompts = len(groups.reward_B) // groups.group
    size = max(prompts * spec.select.most(groups.group), 1)
    index, valid = pad_rows(rows_N, size), np.arange(size) < len(rows_N)
    prompt_length, row_length, row_id = to_host(
        (rollout.prompt_length_B, rollout.length_B, rollout.row_id_B)
    )
    kept, good_tokens_R, asks = row_length[index].astype(np.int32), located.good_tokens_R, []
    for n, (b, r) in enumerate(zip(rows_N.tolist(), chosen.position_N.tolist(), strict=True)):
        error, steps = int(located.error_R[r]), located.rows.steps[r]
        kept[n] = prompt_length[b] + good_tokens_R[r]
        before, last = tuple(steps[:error]), error == len(steps) - 1
        asks.append(Ask(groups.problems[b], before, steps[error], last, int(row_id[b])))
    rows = _cut_rows(_take_rows(rollout, jnp.asarray(index), jnp.asarray(valid)), jnp.asarray(kept))
    longest = prompt_length[index] + scene.policy.sampling.max_new_tokens
    return Job(
        rows=rows,
        asks=asks,
        kept_B=kept,
        limit_B=np.minimum(longest, rows.tokens_BT.shape[1]),
        policy=scene.policy,
        domain=scene.domain,
        key=scene.key,
        seed=scene.seed,
        rows_at_once=spec.rows_at_once,
    )


def _check_steps(answer: Corrected, job: Job) -> tuple[list[str | None], list[str]]:
    """(per row, why the teacher's step cannot be used, None where it can; the steps' texts)."""
    finished, start = to_host((answer.rollout.finished_B, answer.rollout.prompt_length_B))
    ids = [row[job.kept_B[n] - start[n] :] for n, row in enumerate(completion_ids(answer.rollout))]
    steps = texts(ids, job.policy.tokenizer)[: len(job.asks)]
    refused: list[str | None] = []
    for n, (ask, text, reason) in enumerate(zip(job.asks, steps, answer.failed, strict=True)):
        if reason is not None:
            refused.append(reason if reason == "leak" else f"teacher_{reason}")
            continue
        told = (
            finished[n]
            or job.domain.answer_marker(text)
            or (answer.shows_answer and gives_answer_away(text, ask.problem.answer))
        )
        # Where no table of stops tells the end of a step the teacher has seen to it.
        divider = job.domain.divider
        divided = not can_stop(divider) or any(places(text, divider))
        if not (finished[n] or divided) or not text.strip():
            refused.append("incomplete_step")
        else:
            refused.append("leak" if told and not ask.last else None)
    return refused, steps
