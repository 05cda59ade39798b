"""From the rewards of a step to the advantages of its rows, or of its tokens where steps are
rewarded too."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from scope_jax import correction, learning
from scope_jax.configuration import Process, Vppo
from scope_jax.devices.mesh import to_host
from scope_jax.types import Rollout


def advantages(
    rollout: Rollout,
    reward_B: np.ndarray,
    include_B: np.ndarray,
    group: int,
    spec: learning.AdvantageSpec,
    method: Any,
    *,
    max_new_tokens: int,
    locate: Callable[[np.ndarray], correction.Located] | None = None,
) -> tuple[jax.Array | np.ndarray, dict[str, float]]:
    """(float32[B], or [B, T] where `spec.process` rewards steps; metrics).

    `locate(mask_B)` scores the steps of the rows where the mask is set; needed where steps are
    rewarded.
    """
    metrics: dict[str, float] = {}
    prompt_length, length = to_host((rollout.prompt_length_B, rollout.length_B))
    outcome = reward_B
    if spec.overlong_tokens:
        penalty = learning.overlong_penalty(
            length - prompt_length, max_new_tokens, spec.overlong_tokens, spec.overlong_penalty
        )
        outcome = reward_B + penalty
        metrics["reward/overlong_penalty"] = float(np.mean(penalty))
    if not isinstance(method, Process | Vppo):
        return learning.group_advantages(outcome, group, std=spec.std, include_B=include_B), metrics
    if locate is None:
        raise ValueError(f"advantage.process {method.name!r} needs the scores of steps")
    T = rollout.tokens_BT.shape[1]
    located = locate(reward_B == 0 if isinstance(method, Vppo) else include_B)
    metrics |= located.metrics
    if isinstance(method, Vppo):
        end = prompt_length.copy()
        for r in np.flatnonzero(located.found_R & (located.error_R > 0)).tolist():
            b = located.rows_R[r]
            end[b] = prompt_length[b] + located.ends[r][located.error_R[r] - 1]
        token = learning.prefix_advantages(
            reward_B,
            end,
            prompt_length,
            length,
            T,
            group,
            alpha=method.alpha,
            shorten=method.shorten,
            shorten_by=method.shorten_by,
            include_B=include_B,
        )
        return token, metrics | {
            "process/located_share": float(np.mean(located.found_R)) if len(located.rows_R) else 0.0
        }
    B, J = len(reward_B), max(located.score_RJ.shape[1], 1)
    score, ends, valid = (
        np.zeros((B, J), np.float32),
        np.zeros((B, J), np.int32),
        np.zeros((B, J), bool),
    )
    for r, b in enumerate(located.rows_R):
        steps: int = len(located.ends[r])
        score[b, :steps], valid[b, :steps] = (
            located.score_RJ[r, :steps],
            located.valid_RJ[r, :steps],
        )
        ends[b, :steps] = prompt_length[b] + np.array(located.ends[r], np.int32)
    token = learning.step_advantages(
        score,
        ends,
        valid,
        prompt_length,
        length,
        T,
        group,
        form=method.form,
        temperature=method.min_temperature,
        include_B=include_B,
    )
    row = np.asarray(learning.group_advantages(outcome, group, std=spec.std, include_B=include_B))
    written = (np.arange(T)[None] >= prompt_length[:, None]) & (
        np.arange(T)[None] < length[:, None]
    )
    total = method.outcome_weight * row[:, None] * written + method.process_weight * token
    return total.astype(np.float32), metrics | {
        "process/score_mean": float(np.mean(score[valid])) if valid.any() else 0.0
    }
