"""Stage 4: the policy goes on after the teacher's step, and the verifier decides."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import streams
from scope_jax.correction.correct import CorrectedRows
from scope_jax.correction.records import Scene
from scope_jax.correction.spec import CorrectionSpec
from scope_jax.devices.mesh import to_host
from scope_jax.devices.programs import program
from scope_jax.rewards import Judged, Rows, by_reason
from scope_jax.rollout import Generator, completion_ids, texts
from scope_jax.teachers.model import has_foreign_ids
from scope_jax.types import Owner, Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class Attempts:
    """What became of the corrected rows."""

    corrected: CorrectedRows
    # Corrected rows with their tails. Rows that no attempt saved keep the last attempt, for the
    # report.
    rows: Rollout
    accepted_R: np.ndarray  # bool: rows that go into the final groups
    reward_R: np.ndarray  # float32: what these are worth; read with a tail only
    spec: CorrectionSpec
    # Per row, why it was not accepted: as in `CorrectedRows.refused`, or of the last tail
    # "no_room", "tail_cut_off", "tail_wrong", "tail_not_judged"; None: it was.
    failed: list[str | None]
    metrics: dict[str, float]  # of this stage and those before
    tails: int = 0  # that were written, over all rows
    own_R: np.ndarray | None = None  # bool: rows that the policy repaired by itself; None: none


def finish(
    corrected: CorrectedRows, scene: Scene, spec: CorrectionSpec, *, stream: int = streams.TAIL
) -> Attempts:
    """Up to `spec.tails` continuations of each usable row by the policy (or the teacher), until
    one is right. With tail `none` every usable row is accepted as it is, unverified."""
    tail = spec.tail
    usable, rows, job = corrected.usable_R, corrected.rows, corrected.job
    accepted = usable.copy() if tail == "none" else np.zeros(len(usable), bool)
    reward_R, not_judged = np.ones(len(usable), np.float32), collections.Counter[str]()
    failed = list(corrected.refused)
    attempts = tokens = tails = 0
    while tail != "none" and attempts < spec.tails and (open_R := usable & ~accepted).any():
        with scene.timer("correct"):
            longer = extend_rows(corrected, scene, spec, open_R, stream + attempts)
            jax.block_until_ready(longer)  # where the clock is read
        with scene.timer("verify"):
            ended, length, before = to_host(
                (longer.finished_B, longer.length_B, corrected.rows.length_B)
            )
            tokens += int(np.sum(length - before))
            judged = judge_open(longer, corrected, scene, open_R)
            not_judged.update(judged.reasons)
        opened = np.flatnonzero(open_R)
        for n, value, right in zip(opened, judged.reward_B, judged.right_B, strict=True):
            room = bool(length[n] > before[n] or ended[n])
            failed[n] = _why_not(None if np.isnan(value) else bool(right), bool(ended[n]), room)
        rows = select_rows(jnp.asarray(open_R), longer, rows)
        reward_R[open_R], accepted[open_R] = judged.reward_B, judged.right_B
        attempts, tails = attempts + 1, tails + len(opened)
    teacher_tokens = corrected.metrics["cost/teacher_tokens"]
    metrics = corrected.metrics | {
        "cost/teacher_tokens": teacher_tokens + (tokens if tail == "teacher" else 0),
        "cost/tail_tokens": float(tokens) if tail == "policy" else 0.0,
        "scope/accepted": float(np.sum(accepted)),
        "scope/accepted_share": float(np.sum(accepted)) / len(job.asks),
        "scope/tail_tries": float(attempts),
        **by_reason("scope/not_judged", not_judged),
    }
    return Attempts(corrected, rows, accepted, reward_R, spec, failed, metrics, tails)


def judge_open(
    longer: Rollout, corrected: CorrectedRows, scene: Scene, open_R: np.ndarray
) -> Judged:
    """The rewards of the rows where `open_R`, in their order."""
    rows, finished = np.flatnonzero(open_R), to_host(longer.finished_B)
    every, asks = completion_ids(longer), corrected.job.asks
    ids = [every[r] for r in rows]
    text, problems = texts(ids, scene.policy.tokenizer), [asks[int(r)].problem for r in rows]
    return scene.reward.judge(Rows(scene.domain, problems, text, ids, finished[rows]))


def _why_not(verdict: bool | None, ended: bool, room: bool) -> str | None:
    """What is wrong with a tail, None where nothing is."""
    if not ended:
        return "tail_cut_off" if room else "no_room"
    if verdict is None:
        return "tail_not_judged"
    return None if verdict else "tail_wrong"


def extend_rows(
    corrected: CorrectedRows, scene: Scene, spec: CorrectionSpec, open_R: np.ndarray, stream: int
) -> Rollout:
    """The corrected rows where `open_R`, continued from the teacher's step."""
    generator: Generator | None = scene.policy.generator
    if spec.tail == "teacher":
        generator = scene.teacher.generator if scene.teacher else None
    if generator is None:
        raise ValueError(
            "method.tail 'teacher' needs a teacher that is a model on the mesh; use tail 'policy'"
        )
    job, rows = corrected.job, corrected.rows
    longer = generator.extend(
        rows.replace(finished_B=rows.finished_B | ~jnp.asarray(open_R)),
        scene.key,
        scene.policy.sampling,
        owner=Owner.POLICY if spec.tail == "policy" else Owner.TEACHER,
        stream=stream,
        limit_B=jnp.asarray(job.limit_B),
        at_once=job.rows_at_once,
    )
    if spec.tail == "policy":
        return longer
    # A tail with an id that the policy lacks is none.
    foreign = has_foreign_ids(longer, generator, scene.policy.generator.config.vocab_size)
    return select_rows(jnp.asarray(~foreign), longer, rows) if foreign.any() else longer


@program
def select_rows(use_R: jax.Array, rows: Rollout, others: Rollout) -> Rollout:
    """Row r of `rows` where `use_R[r]`, of `others` elsewhere."""
    return jax.tree.map(
        lambda a, b: jnp.where(use_R.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), rows, others
    )
