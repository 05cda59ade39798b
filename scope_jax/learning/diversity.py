"""Diversity on right rows: the advantage of the outcome changed so that right rows of a common kind
count for less, and those of a rare kind for more.

Each switch of `AdvantageSpec` is a function here, on the host, in float64, on groups: [P, M] arrays
of P groups of M rows. The formulas, and whose they are: docs/method.md.
"""

import collections
import math

import numpy as np

from scope_jax.correction import Groups, Scene
from scope_jax.devices.mesh import to_host
from scope_jax.learning.advantages import AdvantageSpec
from scope_jax.rollout import completion_texts
from scope_jax.tasks.domain import answers_and_paths
from scope_jax.types import Owner, Rollout

Metrics = dict[str, float]


def diversified(
    advantage_B: np.ndarray,
    groups: Groups,
    scene: Scene,
    spec: AdvantageSpec,
    *,
    pass_k_share: float = 1.0,
) -> tuple[np.ndarray, Metrics]:
    """(float32[B], metrics): the advantages of the rows by their outcome (float[B], as
    `group_advantages` gives them) under the switches of `spec`, in this order: `pass_k`, `focal`,
    `positive_weight`, `unique`, `smoothing`. `pass_k_share`: of the advantage of pass@k; the rest
    is that of pass@1. All processes call it."""
    shape = (-1, groups.group)
    counts = (groups.include_B & ~np.isnan(groups.reward_B)).reshape(shape)
    right = groups.right_B.reshape(shape) & counts
    advantage, metrics = advantage_B.astype(np.float64).reshape(shape), Metrics()
    if spec.pass_k > 1:
        of_k = pass_k_advantages(right, counts, spec.pass_k, std=spec.std)
        advantage = pass_k_share * of_k + (1 - pass_k_share) * advantage
        metrics["advantage/pass_k_share"] = pass_k_share
        metrics["advantage/pass_k_zero_share"] = float(np.mean(np.all(of_k == 0, axis=1)))
    if spec.focal > 0:
        advantage = np.where(right, advantage * focal_weights(right, counts, spec.focal), advantage)
    if spec.positive_weight != 1:
        advantage = np.where(advantage > 0, spec.positive_weight * advantage, advantage)
    if spec.unique:
        path = np.array(paths(groups, scene), object).reshape(shape)
        has_none = np.array([p is None for p in path.flat]).reshape(shape)
        metrics["advantage/no_path"] = float(np.sum(right & has_none))
        metrics["advantage/repeated_share"] = repeated_share(advantage, right, path)
        advantage = advantage * path_weights(advantage, right, path)
        metrics["advantage/repeated_share_after"] = repeated_share(advantage, right, path)
    if spec.smoothing > 0:
        own = right & groups.own_B.reshape(shape)
        score = own_logprob(groups.rollout).reshape(shape)
        moved = spec.smoothing * rarity(score, own)
        advantage = advantage + moved
        metrics["advantage/smoothed_rows"] = float(np.sum(moved != 0))
        metrics["advantage/smoothing_size"] = float(np.sum(np.abs(moved))) / max(own.sum(), 1)
        metrics["advantage/smoothing_unknown"] = float(np.sum(own & np.isnan(score)))
    total = np.sum(np.abs(advantage))
    positive = float(np.sum(np.maximum(advantage, 0)) / total) if total > 0 else 0.0
    metrics["advantage/positive_share"] = positive
    return advantage.reshape(-1).astype(np.float32), metrics


# ---- the switches


def pass_k_advantages(
    right_PM: np.ndarray,
    counts_PM: np.ndarray,
    k: int,
    *,
    std: bool = False,
    epsilon: float = 1e-6,
) -> np.ndarray:
    """float64[P, M]: what a row adds to the reward of k rows of its group, which is 1 where one of
    them is right, in the mean over all choices of k (arXiv 2508.10751, equations 11 to 15; without
    `std` not divided by the deviation of that reward).

    `right_PM` bool: right rows; `counts_PM` bool: rows that count; the others get 0. In a group of
    fewer than k rows that count, k is their number. k = 1 is the verdict minus the group's mean.
    """
    out = np.zeros(right_PM.shape)
    for found, right, counts in zip(out, right_PM & counts_PM, counts_PM, strict=True):
        n, wrong = int(counts.sum()), int((counts & ~right).sum())
        size = min(k, n)
        if size == 0:
            continue
        # That none of k rows is right; and none of k - 1 others beside a wrong one.
        fails = math.comb(wrong, size) / math.comb(n, size)
        beside = math.comb(wrong - 1, size - 1) / math.comb(n - 1, size - 1) if wrong else 0.0
        scale = math.sqrt(fails * (1 - fails)) + epsilon if std else 1.0
        found[right] = fails / scale
        found[counts & ~right] = (fails - beside) / scale
    return out


def focal_weights(right_PM: np.ndarray, counts_PM: np.ndarray, gamma: float) -> np.ndarray:
    """float64[P, 1]: (1 - share of the group's rows that are right) ** gamma, for its right rows
    (arXiv 2602.06717)."""
    number = np.maximum(counts_PM.sum(axis=1, keepdims=True), 1)
    return (1 - right_PM.sum(axis=1, keepdims=True) / number) ** gamma


def path_weights(advantage_PM: np.ndarray, right_PM: np.ndarray, path_PM: np.ndarray) -> np.ndarray:
    """float64[P, M]: u / n for a right row with an advantage above 0, n being the right rows of its
    group that take the same path; 1 for other rows. u, one for each group, keeps the sum of its
    advantages (arXiv 2601.08763 divides by n alone).

    `path_PM` object: what stands for a row's path, None for one of its own.
    """
    out = np.ones(advantage_PM.shape)
    copies = copies_of(right_PM, path_PM)
    shared = right_PM & (advantage_PM > 0)
    for g in np.flatnonzero(shared.any(axis=1)):
        of_group, n = advantage_PM[g, shared[g]], copies[g, shared[g]]
        out[g, shared[g]] = np.sum(of_group) / np.sum(of_group / n) / n
    return out


def rarity(score_PM: np.ndarray, own_PM: np.ndarray) -> np.ndarray:
    """float64[P, M]: by how much a row's score lies below the mean of the rows `own_PM` of its
    group; their sum is 0 in each group. 0 for all others, for rows whose score is NaN, and where
    fewer than two of the scores differ (arXiv 2511.19942 subtracts the log-prob itself)."""
    known = own_PM & ~np.isnan(score_PM)
    number = np.maximum(known.sum(axis=1, keepdims=True), 1)
    mean = np.where(known, score_PM, 0.0).sum(axis=1, keepdims=True) / number
    # Compared as they are: a mean of equal scores would round.
    highest = np.max(np.where(known, score_PM, -np.inf), axis=1, keepdims=True)
    lowest = np.min(np.where(known, score_PM, np.inf), axis=1, keepdims=True)
    return np.where(known & (highest > lowest), mean - score_PM, 0.0)


# ---- what they read


def own_logprob(rollout: Rollout) -> np.ndarray:
    """float64[B]: the mean over a row's POLICY tokens of their log-prob as the sampler recorded it,
    the end token included. A teacher's tokens count neither above nor below the line. NaN where the
    policy wrote none, or the log-prob of one is not known."""
    owner_BT, length_B, logp_BT = to_host((rollout.owner_BT, rollout.length_B, rollout.logp_BT))
    held_BT = np.arange(owner_BT.shape[1]) < length_B[:, None]
    own_BT = (owner_BT == Owner.POLICY) & held_BT
    number_B = own_BT.sum(axis=1)
    total_B = np.where(own_BT, logp_BT.astype(np.float64), 0.0).sum(axis=1)
    known_B = (number_B > 0) & np.isfinite(total_B)
    return np.where(known_B, total_B, np.nan) / np.maximum(number_B, 1)


def paths(groups: Groups, scene: Scene) -> list[str | None]:
    """What stands for the path of each right row, None where the domain sees none: the whole text
    after the prompt is read, whoever wrote it. All processes call it."""
    texts = completion_texts(groups.rollout, scene.policy.tokenizer)
    return answers_and_paths(scene.domain, groups.problems, texts, groups.right_B.tolist())[1]


def copies_of(right_PM: np.ndarray, path_PM: np.ndarray) -> np.ndarray:
    """int[P, M]: right rows of the group that take the row's path, itself included; 1 for rows that
    are not right or have no path."""
    out = np.ones(right_PM.shape, np.int64)
    for found, right, path in zip(out, right_PM, path_PM, strict=True):
        taken = collections.Counter(path[right])
        found[:] = [taken[p] if r and p is not None else 1 for r, p in zip(right, path)]
    return out


def repeated_share(advantage_PM: np.ndarray, right_PM: np.ndarray, path_PM: np.ndarray) -> float:
    """The share of the right rows' positive advantages that lies on paths which two or more right
    rows of the group take; 0 where there is none."""
    mass = np.where(right_PM, np.maximum(advantage_PM, 0.0), 0.0)
    repeated = copies_of(right_PM, path_PM) > 1
    return float(np.sum(mass[repeated]) / np.sum(mass)) if np.sum(mass) > 0 else 0.0
