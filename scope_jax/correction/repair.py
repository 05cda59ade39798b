"""Stages 3 and 4 together: the chosen failures repaired, by the policy itself first where the scene
asks for that, and by the teacher."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from scope_jax import streams
from scope_jax.correction.candidates import scene_of_candidate, taken
from scope_jax.correction.choose import Chosen
from scope_jax.correction.correct import CorrectedRows, correct, cut_rows
from scope_jax.correction.finish import Attempts, finish
from scope_jax.correction.records import Groups, Scene
from scope_jax.correction.spec import CorrectionSpec
from scope_jax.correction.steps import pad_rows
from scope_jax.devices.programs import program
from scope_jax.rollout.rows import place_rows
from scope_jax.types import Rollout

_place_rows = program(place_rows)
# What is counted where the policy tries by itself first.
SELF_METRICS = (
    "cost/self_tokens",
    "scope/self_tails",
    "scope/self_accepted",
    "scope/teacher_asked",
    "scope/teacher_accepted",
)


def repair(chosen: Chosen, groups: Groups, scene: Scene, spec: CorrectionSpec) -> Attempts:
    """What becomes of the chosen rows (one at least). With `scene.self_tries` the policy goes on
    from the cut that many times at most, and the teacher is asked only where all of them fail."""
    if not scene.self_tries:
        return _by_teacher(chosen, groups, scene, spec)
    own = by_itself(chosen, groups, scene, spec)
    left_L = np.flatnonzero(~own.accepted_R[: len(chosen.rows_N)])
    rest = dataclasses.replace(chosen, position_N=chosen.position_N[left_L])
    taught = _by_teacher(rest, groups, scene, spec) if len(left_L) else None
    return joined(own, taught, left_L)


def _by_teacher(chosen: Chosen, groups: Groups, scene: Scene, spec: CorrectionSpec) -> Attempts:
    tried = []
    for number in range(spec.candidates):
        scene_ = scene_of_candidate(scene, number)
        with scene.timer("correct"):
            corrected = correct(chosen, groups, scene_, spec)
        tried.append(finish(corrected, scene_, spec))
    return tried[0] if len(tried) == 1 else taken(tried, scene, spec)


def own_spec(scene: Scene, spec: CorrectionSpec) -> CorrectionSpec:
    """How the policy finishes its own rows."""
    return dataclasses.replace(spec, tail="policy", tails=scene.self_tries, accept="verified")


def by_itself(chosen: Chosen, groups: Groups, scene: Scene, spec: CorrectionSpec) -> Attempts:
    """The chosen rows continued by the policy from their cut, nothing of a teacher between: as it
    samples its rollouts, so that their log-probs are of the same distribution."""
    with scene.timer("correct"):
        job = cut_rows(chosen, groups, scene, spec)
    N, R = len(job.asks), len(job.kept_B)
    metrics = chosen.metrics | {"cost/teacher_tokens": 0.0}
    cut = CorrectedRows(chosen, job, job.rows, [""] * N, np.arange(R) < N, [None] * N, metrics)
    return finish(cut, scene, own_spec(scene, spec), stream=streams.SELF)


def joined(own: Attempts, taught: Attempts | None, left_L: np.ndarray) -> Attempts:
    """The policy's own attempts, and the teacher's at the L rows that they left (None where there
    are none), as attempts at all N rows."""
    cut, N = own.corrected, len(own.corrected.job.asks)
    own_R, steps = own.accepted_R.copy(), [""] * N
    usable, accepted, reward = (x.copy() for x in (own_R, own.accepted_R, own.reward_R))
    refused: list[str | None] = [None] * N
    failed = list(own.failed)
    rows, with_steps = own.rows, cut.rows
    if taught is not None:
        L = len(left_L)
        rows = put_back(own.rows, taught.rows, left_L)
        with_steps = put_back(cut.rows, taught.corrected.rows, left_L)
        usable[left_L] = taught.corrected.usable_R[:L]
        accepted[left_L], reward[left_L] = taught.accepted_R[:L], taught.reward_R[:L]
        for n, step, why, end in zip(
            left_L.tolist(), taught.corrected.steps, taught.corrected.refused, taught.failed
        ):
            steps[n], refused[n], failed[n] = step, why, end
    metrics = _metrics(own, taught, int(accepted.sum()), N)
    corrected = dataclasses.replace(
        cut, rows=with_steps, steps=steps, usable_R=usable, refused=refused, metrics=metrics
    )
    spec = own.spec if taught is None else taught.spec
    tails = own.tails + (0 if taught is None else taught.tails)
    return Attempts(corrected, rows, accepted, reward, spec, failed, metrics, tails, own_R)


def put_back(rows: Rollout, part: Rollout, left_L: np.ndarray) -> Rollout:
    """`rows` with row `left_L[l]` replaced by row l of `part`, a batch of the same size."""
    R = rows.length_B.shape[0]
    use = jnp.asarray(np.arange(R) < len(left_L))
    return _place_rows(rows, jnp.asarray(pad_rows(left_L, R)), part, use)


def _metrics(own: Attempts, taught: Attempts | None, accepted: int, N: int) -> dict[str, float]:
    """Those of all rows. What is counted of the teacher and of the tails after its steps is of the
    teacher's rows alone; what the policy did by itself is counted apart."""
    by_policy = float(own.accepted_R.sum())
    later = own.corrected.metrics if taught is None else taught.metrics
    not_judged = {
        name: value + later.get(name, 0.0)
        for name, value in own.metrics.items()
        if name.startswith("scope/not_judged")
    }
    return (
        later
        | not_judged
        | {
            "cost/self_tokens": own.metrics["cost/tail_tokens"],
            "scope/self_tails": float(own.tails),
            "scope/self_accepted": by_policy,
            "scope/teacher_asked": float(0 if taught is None else len(taught.corrected.job.asks)),
            "scope/teacher_accepted": accepted - by_policy,
            "scope/accepted": float(accepted),
            "scope/accepted_share": accepted / N,
        }
    )
