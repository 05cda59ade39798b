"""What the correction is given: rows in groups, and the scene that they are played in."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from scope_jax.rewards import Reward
from scope_jax.rollout import Policy
from scope_jax.tasks import Domain, Problem
from scope_jax.teachers import Teacher
from scope_jax.types import Rollout

if TYPE_CHECKING:
    from scope_jax.correction.localisers import Localiser


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Judged rows in whole groups of `group` consecutive ones."""

    rollout: Rollout
    group: int
    problems: list[Problem]  # one per row
    reward_B: np.ndarray  # float32: what a row is worth, NaN where there is no verdict
    right_B: np.ndarray  # bool: rows with a verdict, and a good one
    include_B: np.ndarray  # bool: rows that count in the group's mean and in the update
    own_B: np.ndarray  # bool: rows that the policy wrote; the others are demonstrations
    metrics: dict[str, float]
    # int: POLICY tokens at positions before it carry no weight in the update (they still count in
    # its normaliser); None: all tokens of rows that count carry one.
    credit_from_B: np.ndarray | None = None

    @property
    def failed_B(self) -> np.ndarray:
        """bool[B]: rows with a verdict, and a bad one."""
        return ~np.isnan(self.reward_B) & ~self.right_B


def _no_timer(phase: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What a training step is played in: who takes part, and where its random numbers come from."""

    domain: Domain
    policy: Policy
    key: jax.Array  # of the training step, the one the rollouts were made with
    teacher: Teacher | None = None
    localiser: "Localiser | None" = None
    seed: int = 0  # of what does not draw by key
    timer: Callable[[str], Any] = _no_timer  # `with timer(phase)` around each phase
    reward: Reward = dataclasses.field(default_factory=Reward)  # and who is accepted
    # How often at most the policy goes on from the cut of a failure before the teacher is asked.
    self_tries: int = 0
