"""Stage 5: accepted rows put into the final groups, and which tokens there carry no weight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.correction.finish import Attempts
from scope_jax.correction.locate import Located
from scope_jax.correction.records import Groups
from scope_jax.correction.spec import CorrectionSpec
from scope_jax.correction.steps import pad_rows
from scope_jax.devices.mesh import to_host
from scope_jax.devices.programs import program
from scope_jax.rollout.rows import cut, place_rows, take_rows
from scope_jax.streams import Host, host_rng
from scope_jax.types import Rollout

_place_rows = program(place_rows)


def place(attempts: Attempts, groups: Groups, spec: CorrectionSpec, seed: int) -> Groups:
    """The final groups: accepted rows in the place of their parents, of failures drawn at random,
    or appended to larger groups. A verified row has its own reward; an unverified one
    (tail `none`) does not count in the group's mean."""
    chosen = attempts.corrected.chosen
    final, rows_N = prepare(groups, spec, chosen.located), chosen.rows_N
    accepted_N = attempts.accepted_R[: len(rows_N)]
    target_N = targets(rows_N, groups, spec, seed, accepted_N)
    placed = _place_rows(
        final.rollout,
        jnp.asarray(pad_rows(target_N, len(attempts.accepted_R))),
        attempts.rows,
        jnp.asarray(attempts.accepted_R),
    )
    reward, right, include = (x.copy() for x in (final.reward_B, final.right_B, final.include_B))
    taken = target_N[accepted_N]
    if spec.tail == "none":
        include[taken] = False
    else:
        reward[taken] = attempts.reward_R[: len(target_N)][accepted_N]
        right[taken] = include[taken] = True
    parent = in_final(rows_N, groups, spec)[accepted_N]
    cut = attempts.corrected.job.kept_B[: len(rows_N)][accepted_N]
    return dataclasses.replace(
        final,
        rollout=placed,
        reward_B=reward,
        right_B=right,
        include_B=include,
        credit_from_B=_credit_from(final, parent, taken, cut, spec),
        metrics=final.metrics | _counts(parent, taken, final.group, spec),
    )


def prepare(groups: Groups, spec: CorrectionSpec, located: Located) -> Groups:
    """The groups as they are, or with room for accepted rows at the end of each: the prompt alone,
    reward NaN. Rows without a verdict do not count. With `spare_prefix`, the tokens before the
    located errors carry no weight."""
    rows_R, credit_from_B = in_final(located.rows.rows_R, groups, spec), None
    if spec.place == "append":
        groups = _with_free_rows(groups, spec.select.most(groups.group))
    if spec.spares:
        credit_from_B = np.zeros(len(groups.reward_B), np.int32)
    if credit_from_B is not None and spec.spare_prefix:
        prompt_length_B = to_host(groups.rollout.prompt_length_B)
        credit_from_B[rows_R] = prompt_length_B[rows_R] + located.good_tokens_R
    nobody = np.zeros(0, np.int64)
    return dataclasses.replace(
        groups,
        include_B=~np.isnan(groups.reward_B),
        credit_from_B=credit_from_B,
        metrics=groups.metrics | _counts(nobody, nobody, groups.group, spec),
    )


def in_final(rows_N: np.ndarray, groups: Groups, spec: CorrectionSpec) -> np.ndarray:
    """int[N]: where rows of `groups` stand in the final groups."""
    if spec.place != "append":
        return rows_N
    number, place_N = np.divmod(rows_N, groups.group)
    return number * (groups.group + spec.select.most(groups.group)) + place_N


def targets(
    rows_N: np.ndarray,
    groups: Groups,
    spec: CorrectionSpec,
    seed: int,
    accepted_N: np.ndarray | None = None,
) -> np.ndarray:
    """int[N]: which row of the final groups each corrected row is put in. `accepted_N` (bool; None:
    all): those that are put anywhere, which `pair` has to know."""
    group = groups.group
    if spec.place == "replace_parent":
        return rows_N
    number = rows_N // group
    if spec.place == "append":
        turn = np.array([np.sum(number[:n] == g) for n, g in enumerate(number)], np.int64)
        return number * (group + spec.select.most(group)) + group + turn
    rng = host_rng(seed, Host.PLACE)
    placed_N = np.ones(len(rows_N), bool)
    if spec.place == "pair" and accepted_N is not None:
        placed_N = accepted_N
    target_N = rows_N.copy()
    for g in np.unique(number):
        members = np.flatnonzero((number == g) & placed_N)
        free = g * group + np.flatnonzero(groups.failed_B[g * group : (g + 1) * group])
        if spec.place == "pair":
            free = np.setdiff1d(free, rows_N[members])
        drawn = rng.permutation(free)[: len(members)]
        # The best first; those for which no place is left replace their parents.
        target_N[members[: len(drawn)]] = drawn
    return target_N


def _credit_from(
    final: Groups,
    parent_A: np.ndarray,
    taken_A: np.ndarray,
    cut_A: np.ndarray,
    spec: CorrectionSpec,
) -> np.ndarray | None:
    """int[B]: where credit begins, with A accepted rows in the places `taken_A` and their parents:
    at their cut, or with credit `row` at the start."""
    if final.credit_from_B is None:
        return None
    credit_from_B = final.credit_from_B.copy()
    start_A = cut_A if spec.credit == "divergence" else np.zeros_like(cut_A)
    credit_from_B[parent_A] = start_A
    credit_from_B[taken_A] = start_A  # last: a parent's place may have been taken
    return credit_from_B


def _counts(
    parent_A: np.ndarray, taken_A: np.ndarray, group: int, spec: CorrectionSpec
) -> dict[str, float]:
    """Of A accepted rows: parents that stay, and groups, where a setting makes them worth
    knowing."""
    counts: dict[str, float] = {}
    if spec.place == "pair":
        counts["scope/paired"] = float(np.sum(~np.isin(parent_A, taken_A)))
    if spec.select.groups == "all_failed":
        counts["scope/groups_repaired"] = float(len(np.unique(taken_A // group)))
    return counts


def _with_free_rows(groups: Groups, free: int) -> Groups:
    group, P = groups.group, len(groups.reward_B) // groups.group
    rows = np.arange(P * group).reshape(P, group)
    index = np.concatenate([rows, np.repeat(rows[:, :1], free, axis=1)], axis=1).reshape(-1)
    is_free = np.tile(np.arange(group + free) >= group, P)
    reward = np.where(is_free, np.nan, groups.reward_B[index]).astype(groups.reward_B.dtype)
    return dataclasses.replace(
        groups,
        rollout=_widen(groups.rollout, jnp.asarray(index), jnp.asarray(is_free)),
        group=group + free,
        problems=[groups.problems[b] for b in index],
        reward_B=reward,
        right_B=groups.right_B[index] & ~is_free,
        own_B=groups.own_B[index],
    )


@program
def _widen(rollout: Rollout, index: jax.Array, is_free: jax.Array) -> Rollout:
    rows = take_rows(rollout, index, ~is_free)
    rows = cut(rows, jnp.where(is_free, rows.prompt_length_B, rows.length_B))
    ids = jnp.where(
        is_free,
        rollout.row_id_B.shape[0] + jnp.arange(index.shape[0], dtype=jnp.int32),
        rows.row_id_B,
    )
    return rows.replace(finished_B=rows.finished_B | is_free, row_id_B=ids)
