"""Stage 2: which failures get a teacher's step. Distribution-aware selection, a cap per group, one
failure kept."""

import dataclasses

import numpy as np

from scope_jax.correction.locate import Located
from scope_jax.correction.records import Groups
from scope_jax.correction.spec import SelectSpec
from scope_jax.devices.mesh import to_host
from scope_jax.streams import rank_rng


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """N failures to correct, group by group, the best first."""

    located: Located
    position_N: np.ndarray  # int: their positions among the located rows
    metrics: dict[str, float]  # of this stage and those before

    @property
    def rows_N(self) -> np.ndarray:
        """int[N]: their numbers in the rollout."""
        return self.located.rows.rows_R[self.position_N]


def choose(located: Located, groups: Groups, spec: SelectSpec, seed: int) -> Chosen:
    """The failures to correct. A row is eligible where its group may be corrected, an error was
    found with `good_steps` before it and the row was not cut off by length."""
    rows_R, error_R, found_R = located.rows.rows_R, located.error_R, located.has_error_R
    finished_R = to_host(groups.rollout.finished_B)[rows_R]
    eligible_R = found_R & (error_R >= spec.good_steps) & finished_R
    eligible_R &= correctable(groups, spec)[rows_R]
    B = len(groups.reward_B)
    eligible_B, quality_B = np.zeros(B, bool), np.zeros(B)
    eligible_B[rows_R], quality_B[rows_R] = eligible_R, located.quality_R
    rows_N = select(
        eligible_B, quality_B, groups.failed_B, groups.group, spec, seed, right_B=groups.right_B
    )
    position = {int(b): r for r, b in enumerate(rows_R)}
    metrics = {
        "scope/failed_share": float(np.mean(groups.failed_B)),
        **located.metrics,
        "scope/located_share": float(np.mean(found_R)) if len(rows_R) else 0.0,
        "scope/cut_off": float(np.sum(~finished_R)),
        "scope/no_good_step": float(np.sum(found_R & (error_R == 0))),
        "scope/eligible": float(np.sum(eligible_R)),
        "scope/selected": float(len(rows_N)),
    }
    if spec.groups == "all_failed":
        of_group = correctable(groups, spec).reshape(-1, groups.group)
        metrics["scope/groups_failed"] = float(np.sum(of_group.any(axis=1)))
    if found_R.any():
        share_R = error_R[found_R] / located.rows.count_R[found_R]
        metrics["scope/first_error_position"] = float(np.mean(share_R))
    return Chosen(located, np.array([position[int(b)] for b in rows_N], np.int64), metrics)


def correctable(groups: Groups, spec: SelectSpec) -> np.ndarray:
    """bool[B]: the failures of the groups that `spec.groups` names."""
    if spec.groups == "any":
        return groups.failed_B
    none_right_P = ~groups.right_B.reshape(-1, groups.group).any(axis=1)
    return groups.failed_B & np.repeat(none_right_P, groups.group)


def select(
    eligible_B: np.ndarray,
    quality_B: np.ndarray,
    failed_B: np.ndarray,
    group: int,
    spec: SelectSpec,
    seed: int = 0,
    *,
    right_B: np.ndarray | None = None,
) -> np.ndarray:
    """Row numbers (int64[R], group by group, best first) of the rows to correct.

    eligible_B bool: rows that may be corrected. quality_B float: prefix quality. failed_B bool:
    rows judged and not accepted. right_B bool: rows judged and accepted (None: all that did not
    fail); a group without one failed altogether, whether or not all of its rows were judged. Rows
    of a group are `group` consecutive ones. Ties go to the lower row.
    """
    eligible = np.asarray(eligible_B, bool)
    quality = np.asarray(quality_B, np.float64)
    kept = eligible.copy()
    if spec.rule == "band" and eligible.any():
        low, high = np.quantile(quality[eligible], spec.quantiles)
        kept &= (quality >= low) & (quality <= high)
    rank = rank_rng(seed).random(len(quality)) if spec.rule == "random" else quality
    right = ~np.asarray(failed_B, bool) if right_B is None else right_B
    chosen: list[int] = []
    for start in range(0, len(eligible), group):
        rows = np.arange(start, start + group)
        failures = int(np.sum(np.asarray(failed_B)[rows]))
        if spec.groups == "all_failed" and right[rows].any():
            continue
        candidates = rows[kept[rows]]
        best = candidates[np.argsort(-rank[candidates], kind="stable")]
        chosen.extend(best[: spec.most(failures)].tolist())
    return np.array(chosen, np.int64)
