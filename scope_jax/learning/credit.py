"""From the rewards of a step to the advantages of its rows, or of their tokens.

A way of giving credit is a frozen dataclass: its settings, and a method `advantages`. To add one,
write the class here, and a variant of `method` that inherits it in `configuration/methods.py`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.correction import Groups, Located, Scene, locate
from scope_jax.devices.mesh import to_host
from scope_jax.devices.programs import program
from scope_jax.learning.advantages import AdvantageSpec, group_advantages
from scope_jax.learning.diversity import diversified
from scope_jax.learning.optimizer import schedule_value
from scope_jax.learning.process_rewards import (
    Rows,
    Steps,
    overlong_penalty,
    prefix_advantages,
    summed_step_advantages,
    worst_step_advantages,
)
from scope_jax.types import check_choices

_group_advantages = program(
    group_advantages, static_argnames=("group", "std", "baseline", "batch_std")
)
Advantages = jax.Array | np.ndarray  # float32[B], or [B, T]
Metrics = dict[str, float]


@runtime_checkable
class Credit(Protocol):
    """A way of giving credit."""

    # Advantages are [B, T], and steps are scored by the scene's localiser.
    scores_steps: ClassVar[bool]

    def advantages(
        self, groups: Groups, by_outcome: Callable[[], Advantages], scene: Scene
    ) -> tuple[Advantages, Metrics]:
        """(advantages, metrics). `by_outcome()`: float32[B], those of the rows by their outcome
        alone; rows without a verdict have 0."""
        ...


def advantages(
    groups: Groups,
    scene: Scene,
    credit: Credit,
    spec: AdvantageSpec,
    *,
    max_new_tokens: int,
    done: float = 0.0,
) -> tuple[Advantages, Metrics]:
    """(float32[B], or [B, T] where `credit` scores steps; metrics). `done`: share of the run
    that is done, for what changes over it."""
    metrics: Metrics = {}
    reward_B = groups.reward_B
    if spec.overlong_tokens:
        prompt_length, length = to_host((groups.rollout.prompt_length_B, groups.rollout.length_B))
        penalty = overlong_penalty(
            length - prompt_length, max_new_tokens, spec.overlong_tokens, spec.overlong_penalty
        )
        reward_B = reward_B + penalty
        metrics["reward/overlong_penalty"] = float(np.mean(penalty))

    def by_outcome() -> Advantages:
        plain = _group_advantages(
            reward_B,
            groups.group,
            std=spec.std,
            include_B=groups.include_B,
            baseline=spec.baseline,
            batch_std=spec.batch_std,
        )
        if not spec.switched:
            return plain
        share = float(schedule_value(spec.pass_k_schedule, 1.0, 0.0, jnp.float32(done), 1))
        changed, more = diversified(np.asarray(plain), groups, scene, spec, pass_k_share=share)
        metrics.update(more)
        return changed

    advantage, more = credit.advantages(groups, by_outcome, scene)
    return advantage, metrics | more


# ---- the ways


@dataclasses.dataclass(frozen=True)
class OutcomeCredit:
    """Every token of a row has the advantage of the row's outcome (GRPO and its relatives)."""

    scores_steps: ClassVar[bool] = False

    def advantages(
        self, groups: Groups, by_outcome: Callable[[], Advantages], scene: Scene
    ) -> tuple[Advantages, Metrics]:
        """float32[B]: the outcome's."""
        return by_outcome(), {}


@dataclasses.dataclass(frozen=True)
class SummedSteps:
    """Process supervision of GRPO (DeepSeekMath): scores normalised over the group and summed to
    go, beside the outcome."""

    scores_steps: ClassVar[bool] = True

    process_weight: float = 1.0
    outcome_weight: float = 1.0

    def __post_init__(self) -> None:
        _at_least_0(self, "process_weight", "outcome_weight")

    def advantages(
        self, groups: Groups, by_outcome: Callable[[], Advantages], scene: Scene
    ) -> tuple[Advantages, Metrics]:
        """float32[B, T]: the weighted sum of both."""
        rows, steps, metrics = _scored_steps(groups, scene)
        token = summed_step_advantages(rows, steps)
        return self.mix(groups, by_outcome(), token), metrics

    def mix(self, groups: Groups, row: Advantages, token_BT: np.ndarray) -> np.ndarray:
        """float32[B, T]: `outcome_weight` times the advantage of the row (float32[B]) on what was
        written, plus `process_weight` times that of the token."""
        start, stop = to_host((groups.rollout.prompt_length_B, groups.rollout.length_B))
        position = np.arange(token_BT.shape[1])[None]
        written = (position >= start[:, None]) & (position < stop[:, None])
        outcome = self.outcome_weight * np.asarray(row)[:, None] * written
        return (outcome + self.process_weight * token_BT).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class WorstStep(SummedSteps):
    """PURE's min-form: the worst step of a row decides, beside the outcome."""

    min_temperature: float = 0.1  # of the softmax over the steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min_temperature > 0:
            raise ValueError(f"method.min_temperature = {self.min_temperature} must be above 0")

    def advantages(
        self, groups: Groups, by_outcome: Callable[[], Advantages], scene: Scene
    ) -> tuple[Advantages, Metrics]:
        """float32[B, T]: the weighted sum of both."""
        rows, steps, metrics = _scored_steps(groups, scene)
        token = worst_step_advantages(rows, steps, temperature=self.min_temperature)
        return self.mix(groups, by_outcome(), token), metrics


@dataclasses.dataclass(frozen=True)
class GoodPrefix:
    """VPPO: the good prefix of a failed row is worth `alpha`, a right row 1, whatever their
    rewards. It replaces the outcome's advantage, and takes neither a std nor punished rewards."""

    scores_steps: ClassVar[bool] = True

    alpha: float = 0.5
    # What the rewarded prefix is shorter by: a share of it, tokens, or the length of the prompt.
    shorten: Literal["fraction", "prompt", "fixed"] = "fraction"
    shorten_by: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self, "method")
        _at_least_0(self, "shorten_by")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"method.alpha = {self.alpha} must lie in [0, 1]")
        if self.shorten == "fraction" and self.shorten_by > 1:
            raise ValueError(
                f"method.shorten_by = {self.shorten_by}: a fraction of the prefix is at most 1"
            )

    def advantages(
        self, groups: Groups, by_outcome: Callable[[], Advantages], scene: Scene
    ) -> tuple[Advantages, Metrics]:
        """float32[B, T]: of the prefixes before the first errors."""
        rows = _rows(groups)
        located = locate(groups, groups.failed_B, scene)
        end = rows.prompt_length_B.copy()
        end[located.rows.rows_R] += located.good_tokens_R
        verdict_B = np.where(np.isnan(groups.reward_B), np.nan, groups.right_B)
        token = prefix_advantages(
            rows,
            verdict_B,
            end,
            alpha=self.alpha,
            shorten=self.shorten,
            shorten_by=self.shorten_by,
        )
        found = located.has_error_R
        share = float(np.mean(found)) if len(found) else 0.0
        return token, located.metrics | {"process/located_share": share}


# ---- what they share


def _rows(groups: Groups) -> Rows:
    """Where the rows of a step were written."""
    rollout = groups.rollout
    prompt_length, length = to_host((rollout.prompt_length_B, rollout.length_B))
    T = rollout.tokens_BT.shape[1]
    return Rows.of(prompt_length, length, T, groups.group, groups.include_B)


def _scored_steps(groups: Groups, scene: Scene) -> tuple[Rows, Steps, Metrics]:
    """(the rows of a step, what the localiser says of their steps, metrics)."""
    rows = _rows(groups)
    located = locate(groups, groups.include_B, scene)
    score, end, valid = _by_row(located, rows.prompt_length_B)
    mean = float(np.mean(score[valid])) if valid.any() else 0.0
    steps = Steps.of(rows, score, end, valid)
    return rows, steps, located.metrics | {"process/score_mean": mean}


def _by_row(
    located: Located, prompt_length_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(score_BJ, end_BJ as positions of the row, valid_BJ) of all rows, from the scored ones."""
    B, J = len(prompt_length_B), max(located.score_RJ.shape[1], 1)
    score, valid = np.zeros((B, J), np.float32), np.zeros((B, J), bool)
    end = np.zeros((B, J), np.int32)
    for r, b in enumerate(located.rows.rows_R):
        steps = len(located.rows.ends[r])
        score[b, :steps] = located.score_RJ[r, :steps]
        valid[b, :steps] = located.valid_RJ[r, :steps]
        end[b, :steps] = prompt_length_B[b] + np.array(located.rows.ends[r], np.int32)
    return score, end, valid


def _at_least_0(spec: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(spec, name) < math.inf:
            raise ValueError(f"method.{name} = {getattr(spec, name)} must be 0 or more")
