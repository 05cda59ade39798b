"""Group-relative advantages, and how many groups carry no gradient.

Rows are prompt-major: rows `[i * group, (i + 1) * group)` are the samples of prompt i.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scope_jax.types import check_choices

# The switches of `learning/diversity.py`: settings that leave advantages alone at their defaults.
SWITCHES = ("pass_k", "focal", "positive_weight", "unique", "smoothing")


@dataclasses.dataclass(frozen=True)
class AdvantageSpec:
    """The advantage of a row from the outcomes of its group. ValueError (one line) on a number that
    makes no sense."""

    std: bool = False  # divide by the group's standard deviation
    # What a reward is compared with: the mean of its group, of the others in it (RLOO), or of the
    # batch (REINFORCE++).
    baseline: Literal["group", "leave_one_out", "batch"] = "group"
    batch_std: bool = False  # divide by the standard deviation over the batch (REINFORCE++)
    overlong_tokens: int | None = None  # DAPO's soft overlong punishment: where it begins, before
    # the limit; None: off
    overlong_penalty: float = 1.0  # at full length
    # Diversity on right rows (`learning/diversity.py`, docs/method.md), each off by default.
    pass_k: int = 1  # the advantage of pass@k in place of pass@1's
    pass_k_schedule: Literal["linear", "cosine", "constant"] = "linear"  # of its share, 1 to 0
    focal: float = 0.0  # gamma: right rows times (1 - share of right rows) ** gamma
    positive_weight: float = 1.0  # of advantages above 0
    unique: bool = False  # copies of a right path share its credit
    smoothing: float = 0.0  # beta: right rows of the policy that it found less likely get more

    def __post_init__(self) -> None:
        check_choices(self, "advantage")
        if self.std and (self.batch_std or self.baseline != "group"):
            other = "batch_std" if self.batch_std else f"baseline {self.baseline!r}"
            raise ValueError(
                "advantage.std divides the difference from the group's mean by the group's"
                f" deviation, so it does not go with advantage.{other}: set std to False"
            )
        if self.batch_std and self.baseline == "leave_one_out":
            raise ValueError(
                "advantage.batch_std takes away the M / (M - 1) by which advantage.baseline"
                " 'leave_one_out' differs from 'group': set one of them back"
            )
        for name in ("overlong_tokens", "overlong_penalty"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"advantage.{name} = {value} must be 0 or more")
        for name in ("focal", "positive_weight", "smoothing"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"advantage.{name} = {getattr(self, name)} must be a number of 0 or more"
                )
        if self.pass_k < 1:
            raise ValueError(f"advantage.pass_k = {self.pass_k} must be at least 1")

    @property
    def switched(self) -> tuple[str, ...]:
        """Those of SWITCHES that do not stand at their defaults."""
        return tuple(name for name in SWITCHES if getattr(self, name) != getattr(_OFF, name))


_OFF = AdvantageSpec()


def group_advantages(
    reward_B: ArrayLike,
    group: int,
    *,
    std: bool = False,
    include_B: ArrayLike | None = None,
    epsilon: float = 1e-6,
    baseline: Literal["group", "leave_one_out", "batch"] = "group",
    batch_std: bool = False,
) -> jax.Array:
    """float32[B]: reward minus the mean of its group (GRPO, arXiv 2402.03300; without `std`
    Dr.GRPO, 2503.20783).

    `reward_B` float[B]; a NaN reward means "could not be judged". `include_B` bool[B]: rows that
    count. Rows not included, and rows with a NaN reward, are left out of the mean and get 0. With
    `std` the difference is divided by the population standard deviation of the included rows plus
    `epsilon`. A group whose included rewards are all equal gets exactly 0, whatever rounding the
    mean would leave behind.

    `baseline`: `leave_one_out` subtracts the mean of the other included rows of the group (RLOO,
    arXiv 2402.14740), which is M / (M - 1) times the difference from the mean of all M; `batch`
    subtracts the mean of all included rows, as if they were one group. `batch_std`: divided by the
    population standard deviation of the differences of all included rows, plus `epsilon`: with the
    group's mean REINFORCE++ with baseline, with that of the batch REINFORCE++ (arXiv 2501.03262).

    Raises ValueError where B is not a multiple of `group`, or a shape does not fit.
    """
    reward, include = _groups(reward_B, group, include_B)
    if baseline == "batch":
        reward, include = reward.reshape(1, -1), include.reshape(1, -1)
    count = jnp.maximum(jnp.sum(include, axis=1, keepdims=True), 1).astype(jnp.float32)
    mean = jnp.sum(reward, axis=1, keepdims=True) / count
    difference = jnp.where(include & ~_all_equal(reward, include), reward - mean, 0.0)
    if baseline == "leave_one_out":
        difference *= count / jnp.maximum(count - 1, 1)
    if batch_std:
        rows = jnp.maximum(jnp.sum(include), 1).astype(jnp.float32)
        difference /= jnp.sqrt(jnp.sum(difference**2) / rows) + epsilon
    if std:
        difference /= jnp.sqrt(jnp.sum(difference**2, axis=1, keepdims=True) / count) + epsilon
    return difference.reshape(-1)


def zero_group_share(
    reward_B: ArrayLike, group: int, include_B: ArrayLike | None = None
) -> jax.Array:
    """float32[]: share of the groups whose included rewards are all equal, so that no row of
    theirs has an advantage.

    A group with one included row or none counts too. Arguments and errors as in
    `group_advantages`.
    """
    reward, include = _groups(reward_B, group, include_B)
    return jnp.mean(_all_equal(reward, include).astype(jnp.float32))


def zero_groups(reward_B: np.ndarray, group: int) -> np.ndarray:
    """bool[P], on the host: groups whose known rewards are all equal, NaN being unknown.
    `reward_B` float[B]."""
    reward = np.asarray(reward_B, np.float32).reshape(-1, group)
    return np.array([len(set(row[~np.isnan(row)].tolist())) < 2 for row in reward])


def _groups(
    reward_B: ArrayLike, group: int, include_B: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """float32[P, M] rewards, 0 where not included, and bool[P, M] of what is included."""
    reward = jnp.asarray(reward_B, jnp.float32)
    if reward.ndim != 1:
        raise ValueError(f"reward_B has shape {reward.shape}; expected one reward per row, [B]")
    if group < 1 or reward.shape[0] % group:
        raise ValueError(
            f"{reward.shape[0]} rows do not make whole groups of {group}; B must be a multiple of"
            " group"
        )
    include = ~jnp.isnan(reward)
    if include_B is not None:
        include_B = jnp.asarray(include_B)
        if include_B.shape != reward.shape or include_B.dtype != jnp.bool_:
            raise ValueError(
                f"include_B is {include_B.dtype}{list(include_B.shape)}; expected"
                f" bool{list(reward.shape)}"
            )
        include &= include_B
    return jnp.where(include, reward, 0.0).reshape(-1, group), include.reshape(-1, group)


def _all_equal(reward: jax.Array, include: jax.Array) -> jax.Array:
    """bool[P, 1]: no two included rewards of the group differ (compared as they are: a mean would
    round)."""
    highest = jnp.max(jnp.where(include, reward, -jnp.inf), axis=1, keepdims=True)
    lowest = jnp.min(jnp.where(include, reward, jnp.inf), axis=1, keepdims=True)
    return highest <= lowest  # -inf <= inf: also true for a group with nothing included
