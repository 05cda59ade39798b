"""Who says which step of a row is the first wrong one.

A localiser scores the steps of rows with the probability that each is right. To add one, write a
class with `spec` and `score`; a config names it as `localiser.kind = "module:Class"`.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np

from scope_jax.correction import likelihood, monte_carlo
from scope_jax.correction.records import Scene
from scope_jax.correction.step_checkers import StepChecker
from scope_jax.correction.steps import StepRows
from scope_jax.devices.hosts import by_share
from scope_jax.devices.mesh import to_host
from scope_jax.prm import TEMPLATE_TOKENS, ProcessRewardModel
from scope_jax.prm.finite import finite_rows
from scope_jax.types import Rollout, check_kind, made

KINDS = ("prm", "likelihood", "oracle", "monte_carlo", "function")


@dataclasses.dataclass(frozen=True)
class LocaliserSpec:
    """Who finds the first wrong step of a row."""

    # prm: a process reward model; likelihood: the teacher's probability of each step; oracle: the
    # domain's own step check; monte_carlo: continuations by the policy; function: a step checker of
    # yours; module:name: a class of your own, called with this spec.
    kind: str = "prm"
    threshold: float = 0.5  # a step whose score is below it is wrong
    continuations: int = 4  # of monte_carlo: per prefix that is tried
    # Probability that a row's error is moved to one of its steps drawn at random, to see what a
    # bad localiser does.
    noise: float = 0.0
    function: str | None = None  # of function: module:function, called with (problem, steps)
    seconds: float = 5.0  # deadline of one call of it
    memory_mb: int = 4096  # that its process may take beyond what its imports took
    workers: int | None = None  # its processes at most; None: by the machine's cores

    def __post_init__(self) -> None:
        check_kind(self.kind, KINDS, "localiser.kind")
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"localiser.threshold = {self.threshold}: the threshold must lie in (0, 1)"
            )
        if self.continuations < 1:
            raise ValueError(f"localiser.continuations = {self.continuations} must be at least 1")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"localiser.noise = {self.noise} must be a probability")
        self._check_function()

    def _check_function(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"localiser.seconds = {self.seconds} must be a number above 0")
        for name in ("memory_mb", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"localiser.{name} = {value} must be at least 1")
        if self.function is None:
            if self.kind == "function":
                raise ValueError(
                    "localiser.function is None; localiser.kind 'function' needs a step checker of"
                    " yours, module:function"
                )
            return
        module, colon, path = self.function.partition(":")
        if not colon or not all(map(str.isidentifier, [*module.split("."), *path.split(".")])):
            raise ValueError(
                f"localiser.function = {self.function!r}: expected a step checker of yours as"
                " module:function"
            )
        if self.kind in KINDS and self.kind != "function":
            raise ValueError(
                f"localiser.function = {self.function!r} is for localiser.kind 'function', not"
                f" {self.kind!r}; set it to None"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of the steps of R rows, J at most."""

    score_RJ: np.ndarray  # float32: the probability that a step is right
    valid_RJ: np.ndarray  # bool: steps that exist and were scored
    metrics: dict[str, float]  # rows without scores, and the cost


class Localiser(Protocol):
    """Scores steps. A step scored below `spec.threshold` is wrong."""

    @property
    def spec(self) -> LocaliserSpec: ...

    def score(self, rows: StepRows, scene: Scene) -> Scores:
        """The scores of the steps of `rows`. Raises ValueError where what it needs is missing."""
        ...


def make_localiser(spec: LocaliserSpec, prm: ProcessRewardModel | None = None) -> Localiser:
    """The localiser that `spec` names. Raises ValueError where it lacks its model."""
    if ":" in spec.kind:
        return made(spec.kind, "localiser.kind", spec)
    if spec.kind == "oracle":
        return Oracle(spec)
    if spec.kind == "likelihood":
        return Likelihood(spec)
    if spec.kind == "monte_carlo":
        return MonteCarlo(spec)
    if spec.kind == "function":
        return StepChecker(spec)
    if prm is None:
        raise ValueError(
            "localiser 'prm' needs a process reward model; set models.prm, or localiser 'oracle'"
        )
    return PRM(spec, prm)


@dataclasses.dataclass(frozen=True, eq=False)
class PRM:
    """A process reward model."""

    spec: LocaliserSpec
    model: ProcessRewardModel

    def score(self, rows: StepRows, scene: Scene) -> Scores:
        """The model's scores; rows that it cannot be given count as not scored."""
        prompt_length, length, finished = to_host(
            (rows.rollout.prompt_length_B, rows.rollout.length_B, rows.rollout.finished_B)
        )
        score, valid, unscored = self.model.score(
            [problem.prompt for problem in rows.problems_R],
            rows.steps,
            rows=len(length),
            tokens=rows.rollout.tokens_BT.shape[1] + TEMPLATE_TOKENS,
        )
        read = np.maximum(length - finished.astype(np.int32), prompt_length)[rows.rows_R]
        metrics = {"scope/unscored": float(unscored), "cost/prm_tokens": float(read.sum())}
        return Scores(score, valid, metrics)

    def compile_ahead(self, rollout: Rollout, scene: Scene) -> None:
        """Run the model's programs for rows like these."""
        rows, buffer = rollout.tokens_BT.shape
        self.model.compile_ahead(rows, buffer + TEMPLATE_TOKENS)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The teacher's probability of each step, the geometric mean over its tokens: no process reward
    model and no labels. Of teacher `self` it is the policy's own."""

    spec: LocaliserSpec

    def score(self, rows: StepRows, scene: Scene) -> Scores:
        """Raises ValueError where the teacher is no model that reads the policy's tokens,
        RuntimeError where most scores are not finite."""
        score, valid = no_scores(rows)
        found, tokens = likelihood.step_probabilities(rows, scene)
        for r, probabilities in enumerate(found):
            score[r, : len(probabilities)], valid[r, : len(probabilities)] = probabilities, True
        score, valid, not_finite = finite_rows(score, valid, "teacher as localiser")
        metrics = {"scope/unscored": float(not_finite), "cost/prm_tokens": float(tokens)}
        return Scores(score, valid, metrics)

    def compile_ahead(self, rollout: Rollout, scene: Scene) -> None:
        """Run the teacher's programs for rows like these."""
        likelihood.compile_ahead(rollout, scene)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """The domain's own check of steps: 1 or 0."""

    spec: LocaliserSpec

    def score(self, rows: StepRows, scene: Scene) -> Scores:
        """1 up to the first wrong step, 0 from there on."""

        def check(problems: list, lists: list) -> list:
            return [scene.domain.check_steps(p, s) for p, s in zip(problems, lists, strict=True)]

        score, valid = no_scores(rows)
        for r, labels in enumerate(by_share(check, rows.problems_R, rows.steps)):
            if labels is None:
                raise ValueError(
                    f"localiser 'oracle': domain {scene.domain.name!r} cannot check steps; use"
                    " 'prm'"
                )
            score[r, : len(labels)], valid[r, : len(labels)] = labels, True
        return Scores(score, valid, {})


@dataclasses.dataclass(frozen=True)
class MonteCarlo:
    """Continuations by the policy: the first wrong step is the one after which it never succeeds.
    Only finished rows are looked at."""

    spec: LocaliserSpec

    def score(self, rows: StepRows, scene: Scene) -> Scores:
        """1 before the error that the search finds, 0 from there on."""
        score, valid = no_scores(rows)
        finished_R = to_host(rows.rollout.finished_B)[rows.rows_R]
        tried = np.flatnonzero(finished_R & (rows.count_R > 0))
        found = monte_carlo.locate_first_error(rows.take(tried), scene, self.spec.continuations)
        for r, error in zip(tried.tolist(), found.error_R.tolist(), strict=True):
            score[r, :error], valid[r, : len(rows.steps[r])] = 1.0, True
        return Scores(score, valid, {"cost/localiser_tokens": float(found.tokens)})

    def compile_ahead(self, rollout: Rollout, scene: Scene) -> None:
        """Run the program of the continuations for rows like these."""
        monte_carlo.compile_ahead(rollout, scene, self.spec.continuations)


def no_scores(rows: StepRows) -> tuple[np.ndarray, np.ndarray]:
    """(scores 0, valid False) of the steps of `rows`, [R, J] each."""
    shape = (len(rows.steps), max((len(row) for row in rows.steps), default=0))
    return np.zeros(shape, np.float32), np.zeros(shape, bool)
