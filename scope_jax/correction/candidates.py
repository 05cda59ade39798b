"""Several steps of the teacher for each failure, each with its tail: which one is taken."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import streams
from scope_jax.correction.correct import CorrectedRows
from scope_jax.correction.finish import Attempts, select_rows
from scope_jax.correction.records import Scene
from scope_jax.correction.spec import CorrectionSpec
from scope_jax.devices.mesh import constrain, to_device_memory, to_host
from scope_jax.devices.programs import Program, program
from scope_jax.devices.shapes import part_size
from scope_jax.models import ModelConfig, Params, for_device, token_logprobs
from scope_jax.rollout import Policy
from scope_jax.types import Owner

# A candidate that may not be taken.
NEVER = -np.inf


def scene_of_candidate(scene: Scene, number: int) -> Scene:
    """The scene with random numbers of its own for candidate `number`; for the first one as it
    is."""
    if number == 0:
        return scene
    key = jax.random.fold_in(scene.key, streams.CANDIDATE + number)
    return dataclasses.replace(scene, key=key, seed=streams.candidate_seed(scene.seed, number))


def taken(tried: Sequence[Attempts], scene: Scene, spec: CorrectionSpec) -> Attempts:
    """Of the J attempts at each row the accepted one whose step the policy finds likeliest
    (`step_logprobs`), or with `choose` first the accepted one of the lowest number; of a row
    without an accepted one the first attempt. Ties go to the lower number."""
    accepted_JR = np.stack([attempts.accepted_R for attempts in tried])
    with scene.timer("correct"):
        logp_JR = np.stack(
            [step_logprobs(x.corrected, scene.policy, spec.rows_at_once) for x in tried]
        )
    score_JR = np.where(np.isnan(logp_JR), np.finfo(np.float32).min, logp_JR)
    if spec.choose == "first":
        score_JR = np.zeros_like(score_JR)
    best_R = np.argmax(np.where(accepted_JR, score_JR, NEVER), axis=0)
    metrics = _metrics(tried, accepted_JR, logp_JR, best_R)
    return _of_rows(tried, best_R, metrics)


def step_logprobs(corrected: CorrectedRows, policy: Policy, at_once: int | None) -> np.ndarray:
    """float32[R]: the mean log-prob per token, under the policy at its sampling temperature, of the
    teacher's step in each row; NaN where there is none."""
    rows, temperature = corrected.rows, policy.sampling.temperature
    run = _logprobs(for_device(policy.generator.config), temperature)
    params, R = to_device_memory(policy.generator.params), rows.length_B.shape[0]
    size = part_size(R, at_once)
    tokens = rows.tokens_BT
    parts = [
        to_host(run(params, tokens if size == R else _take_part(tokens, start, size)))
        for start in range(0, R, size)
    ]
    step_RT = (to_host(rows.owner_BT) == Owner.TEACHER) & corrected.usable_R[:, None]
    count_R = step_RT.sum(axis=1)
    total_R = np.where(step_RT, np.concatenate(parts), 0).sum(axis=1)
    mean_R = total_R / np.maximum(count_R, 1)
    return np.where(count_R > 0, mean_R, np.nan).astype(np.float32)


@functools.partial(program, static_argnames="size")
def _take_part(tokens_BT: jax.Array, start: int, size: int) -> jax.Array:
    return constrain(jax.lax.dynamic_slice_in_dim(tokens_BT, start, size), "batch", None)


@functools.lru_cache(maxsize=4)
def _logprobs(config: ModelConfig, temperature: float) -> Program:
    @program
    def run(params: Params, tokens_BT: jax.Array) -> jax.Array:
        return token_logprobs(params, config, tokens_BT, temperature=temperature)[0]

    return run


def _of_rows(tried: Sequence[Attempts], best_R: np.ndarray, metrics: dict[str, float]) -> Attempts:
    """Attempt `best_R[r]` of each row r."""
    first = tried[0]
    rows, with_steps = first.rows, first.corrected.rows
    for number, attempts in enumerate(tried[1:], start=1):
        here = jnp.asarray(best_R == number)
        rows = select_rows(here, attempts.rows, rows)
        with_steps = select_rows(here, attempts.corrected.rows, with_steps)
    every = np.arange(len(best_R))

    def pick(values: list[np.ndarray]) -> np.ndarray:
        return np.stack(values)[best_R, every]

    asks = range(len(first.corrected.job.asks))
    by_row = [tried[int(best_R[n])] for n in asks]
    corrected = dataclasses.replace(
        first.corrected,
        rows=with_steps,
        steps=[x.corrected.steps[n] for n, x in zip(asks, by_row, strict=True)],
        usable_R=pick([x.corrected.usable_R for x in tried]),
        refused=[x.corrected.refused[n] for n, x in zip(asks, by_row, strict=True)],
        metrics=metrics,
    )
    return dataclasses.replace(
        first,
        corrected=corrected,
        rows=rows,
        accepted_R=pick([x.accepted_R for x in tried]),
        reward_R=pick([x.reward_R for x in tried]),
        failed=[x.failed[n] for n, x in zip(asks, by_row, strict=True)],
        metrics=metrics,
        tails=sum(x.tails for x in tried),
    )


def _metrics(
    tried: Sequence[Attempts], accepted_JR: np.ndarray, logp_JR: np.ndarray, best_R: np.ndarray
) -> dict[str, float]:
    """Costs and counters are sums over the candidates; rows are counted once."""
    before, N = tried[0].corrected.chosen.metrics, len(tried[0].corrected.job.asks)
    summed: dict[str, float] = {}
    for attempts in tried:
        for name, value in attempts.metrics.items():
            summed[name] = before[name] if name in before else summed.get(name, 0.0) + value
    rows = accepted_JR.any(axis=0)
    logp = logp_JR[best_R, np.arange(len(best_R))][rows]
    metrics = summed | {
        "scope/accepted": float(rows.sum()),
        "scope/accepted_share": float(rows.sum()) / N,
        "scope/candidates_accepted": float(accepted_JR.sum()),
        "scope/candidates_several": float(np.sum(accepted_JR.sum(axis=0) > 1)),
    }
    if rows.any():
        metrics["scope/step_logp_taken"] = float(np.mean(logp))
        metrics["scope/step_logp_accepted"] = float(np.mean(logp_JR[accepted_JR]))
    return metrics
