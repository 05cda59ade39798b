"""Stage 5: accepted rows put into the final groups."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.correction.finish import Attempts
from scope_jax.correction.records import Groups
from scope_jax.correction.spec import CorrectionSpec
from scope_jax.correction.steps import pad_rows
from scope_jax.devices.programs import program
from scope_jax.rollout.rows import cut, place_rows, take_rows
from scope_jax.streams import Host, host_rng
from scope_jax.types import Rollout

_place_rows = program(place_rows)


def place(attempts: Attempts, groups: Groups, spec: CorrectionSpec, seed: int) -> Groups:
    """The final groups: accepted rows in the place of their parents, of failures drawn at random,
    or appended to larger groups. A verified row has its own reward; an unverified one
    (tail `none`) does not count in the group's mean."""
    final = prepare(groups, spec)
    rows_N = attempts.corrected.chosen.rows_N
    target_N = targets(rows_N, groups, spec, seed)
    placed = _place_rows(
        final.rollout,
        jnp.asarray(pad_rows(target_N, len(attempts.accepted_R))),
        attempts.rows,
        jnp.asarray(attempts.accepted_R),
    )
    reward, right, include = (x.copy() for x in (final.reward_B, final.right_B, final.include_B))
    accepted_N = attempts.accepted_R[: len(target_N)]
    taken = target_N[accepted_N]
    if spec.tail == "none":
        include[taken] = False
    else:
        reward[taken] = attempts.reward_R[: len(target_N)][accepted_N]
        right[taken] = include[taken] = True
    return dataclasses.replace(
        final, rollout=placed, reward_B=reward, right_B=right, include_B=include
    )


def prepare(groups: Groups, spec: CorrectionSpec) -> Groups:
    """The groups as they are, or with room for accepted rows at the end of each: the prompt alone,
    reward NaN. Rows without a verdict do not count."""
    if spec.place == "append":
        groups = _with_free_rows(groups, spec.select.most(groups.group))
    return dataclasses.replace(groups, include_B=~np.isnan(groups.reward_B))


def targets(rows_N: np.ndarray, groups: Groups, spec: CorrectionSpec, seed: int) -> np.ndarray:
    """int[N]: which row of the final groups each corrected row is put in."""
    group = groups.group
    if spec.place == "replace_parent":
        return rows_N
    number = rows_N // group
    if spec.place == "append":
        turn = np.array([np.sum(number[:n] == g) for n, g in enumerate(number)], np.int64)
        return number * (group + spec.select.most(group)) + group + turn
    rng = host_rng(seed, Host.PLACE)
    target_N = np.empty_like(rows_N)
    for g in np.unique(number):
        members = np.flatnonzero(number == g)
        failures = g * group + np.flatnonzero(groups.failed_B[g * group : (g + 1) * group])
        target_N[members] = rng.permutation(failures)[: len(members)]
    return target_N


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
