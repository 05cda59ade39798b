"""Stage 1: rows in steps, the steps scored, the first error of each row found."""

import dataclasses

import jax
import numpy as np

from scope_jax.correction.first_error import first_error, prefix_quality
from scope_jax.correction.records import Groups, Scene
from scope_jax.correction.steps import StepRows, in_steps
from scope_jax.devices.programs import program
from scope_jax.devices.shapes import fine_width, row_count
from scope_jax.prm.finite import finite_rows
from scope_jax.streams import Host, host_rng


@dataclasses.dataclass(frozen=True, eq=False)
class Located:
    """R rows of a rollout, at most J steps each, with the first error of each row."""

    rows: StepRows
    score_RJ: np.ndarray  # float32: the probability that a step is right
    valid_RJ: np.ndarray  # bool: steps that exist and were scored
    error_R: np.ndarray  # int: the first error, J where there is none
    quality_R: np.ndarray  # float32: `prefix_quality`
    threshold: float  # a step scored below it is wrong
    metrics: dict[str, float]

    @property
    def has_error_R(self) -> np.ndarray:
        """bool[R]: an error was found."""
        return self.error_R < self.rows.count_R

    @property
    def good_tokens_R(self) -> np.ndarray:
        """int[R]: completion tokens before the first error; 0 where none was found."""
        good = np.zeros(len(self.error_R), np.int64)
        for r in np.flatnonzero(self.has_error_R & (self.error_R > 0)):
            good[r] = self.rows.ends[r][self.error_R[r] - 1]
        return good


def locate(groups: Groups, mask_B: np.ndarray, scene: Scene) -> Located:
    """The rows where `mask_B`, in steps, with the first error of each by `scene.localiser`.

    Metrics: rows that could not be scored (`scope/unscored`) and what the scores cost
    (`cost/prm_tokens`, `cost/localiser_tokens`). Raises ValueError where the localiser lacks what
    it needs, RuntimeError where most of its scores are not finite.
    """
    localiser = scene.localiser
    if localiser is None:
        raise ValueError("no localiser: steps cannot be scored")
    rows = in_steps(
        groups.rollout,
        groups.problems,
        np.flatnonzero(mask_B),
        scene.policy.tokenizer,
        scene.domain.divider,
    )
    scores, threshold = localiser.score(rows, scene), localiser.spec.threshold
    score, valid, not_finite = finite_rows(
        scores.score_RJ, scores.valid_RJ, f"localiser {localiser.spec.kind!r}"
    )
    if localiser.spec.noise > 0:
        score = move_errors(score, valid, threshold, localiser.spec.noise, scene.seed)
    size = row_count(len(rows.steps), mask_B.size)
    error, quality = _judge(score, valid, threshold, size)
    metrics = {"scope/unscored": 0.0, "cost/prm_tokens": 0.0, "cost/localiser_tokens": 0.0}
    metrics |= scores.metrics
    metrics["scope/unscored"] += not_finite
    return Located(rows, score, valid, error, quality, threshold, metrics)


def move_errors(
    score_RJ: np.ndarray, valid_RJ: np.ndarray, threshold: float, noise: float, seed: int
) -> np.ndarray:
    """Scores with the first error of some rows (share `noise`) moved to a step drawn at random: 1
    before its new place, 0 from there on."""
    rng = host_rng(seed, Host.NOISE)
    moved = score_RJ.copy()
    for r in range(len(moved)):
        steps = int(valid_RJ[r].sum())
        strikes, place = rng.random() < noise, rng.random()
        if strikes and steps and (score_RJ[r, :steps] < threshold).any():
            moved[r, :steps] = np.arange(steps) < int(place * steps)
    return moved


def _judge(
    score_RJ: np.ndarray, valid_RJ: np.ndarray, threshold: float, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """(first error, prefix quality) of each row, computed on arrays of a few fixed sizes."""
    R, J = score_RJ.shape
    pad = ((0, rows - R), (0, fine_width(J) - J))
    error, quality = _error_and_quality(np.pad(score_RJ, pad), np.pad(valid_RJ, pad), threshold)
    return np.minimum(np.asarray(error)[:R], J), np.asarray(quality)[:R]


@program
def _error_and_quality(
    score: jax.Array, valid: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array]:
    error = first_error(score, valid, threshold)
    return error, prefix_quality(score, valid, error)
