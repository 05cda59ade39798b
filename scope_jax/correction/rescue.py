"""The rescue: failed rollouts corrected at their first error, and put back into their groups.

    failures --locate--> first error --choose--> rows --correct--> one step of the teacher
             --finish--> tail and verdict --place--> final groups

Each stage is a function in a file of its own. It takes the record of the stage before, and returns
one; `repair` has `correct` and `finish` done, several times where settings ask for that. Every
stage works on the failures only, packed into a few fixed batch sizes. A row at which the
localiser or the teacher fails stays the ordinary failed rollout it was, and is counted.
"""

import dataclasses
from typing import Any

import numpy as np

from scope_jax.correction.choose import choose, correctable
from scope_jax.correction.gallery import gallery_items
from scope_jax.correction.locate import Located, locate
from scope_jax.correction.place import place, prepare
from scope_jax.correction.records import Groups, Scene
from scope_jax.correction.repair import SELF_METRICS, repair
from scope_jax.correction.spec import CorrectionSpec
from scope_jax.devices.mesh import to_host
from scope_jax.types import Owner


@dataclasses.dataclass(frozen=True, eq=False)
class Rescue:
    """What the rescue leaves."""

    # The final groups: larger than before where accepted rows are appended; a place that was not
    # taken holds the prompt alone.
    groups: Groups
    metrics: dict[str, float]
    gallery: list[dict[str, Any]]  # what happened to each attempted row
    located: Located  # the failures, in steps, with the first error of each


def rescue(
    groups: Groups, scene: Scene, spec: CorrectionSpec, *, keep_gallery: bool = True
) -> Rescue:
    """Correct failures of `groups`. The phases "prm", "correct" and "verify" are timed. Without
    `keep_gallery` the gallery comes back empty."""
    with scene.timer("prm"):
        # What stands before an error is asked of all failures where it is to be spared.
        asked_B = groups.failed_B if spec.spare_prefix else correctable(groups, spec.select)
        located = locate(groups, asked_B, scene)
    chosen = choose(located, groups, spec.select, scene.seed)
    if not len(chosen.rows_N):
        final = prepare(groups, spec, located)
        none = dict.fromkeys(SELF_METRICS, 0.0) if scene.self_tries else {}
        return Rescue(final, _complete(chosen.metrics | none, final), [], located)
    attempts = repair(chosen, groups, scene, spec)
    final = place(attempts, groups, spec, scene.seed)
    gallery = gallery_items(attempts) if keep_gallery else []
    return Rescue(final, _complete(attempts.metrics, final), gallery, located)


def _complete(metrics: dict[str, float], final: Groups) -> dict[str, float]:
    """The metrics with those of the final rows, and 0 for what was not counted."""
    owner = to_host(final.rollout.owner_BT)
    written = int(np.sum(owner >= Owner.POLICY))
    share = float(np.sum(owner == Owner.TEACHER)) / max(written, 1)
    more = {"scope/teacher_token_share": share}
    if final.credit_from_B is not None:
        before = np.arange(owner.shape[1]) < final.credit_from_B[:, None]
        spared = (owner == Owner.POLICY) & before & final.include_B[:, None]
        more["scope/spared_tokens"] = float(np.sum(spared))
    return _ZERO | metrics | final.metrics | more


_ZERO = {
    "scope/accepted": 0.0,
    "scope/accepted_share": 0.0,
    "scope/corrected": 0.0,
    "scope/leaks": 0.0,
    "scope/incomplete_steps": 0.0,
    "scope/teacher_failed": 0.0,
    "scope/tail_tries": 0.0,
    "cost/teacher_tokens": 0.0,
    "cost/tail_tokens": 0.0,
}
