"""Where a rollout went wrong, and how good it was before; numpy, on the host."""

import numpy as np


def first_error(score_BJ: np.ndarray, valid_BJ: np.ndarray, threshold: float) -> np.ndarray:
    """int64[B]: the first step whose score (probability of being right) is below `threshold`; J
    where there is none.

    `valid_BJ` (bool) marks the steps that exist and were scored; others are never an error. A NaN
    score is not below.
    """
    wrong = (score_BJ < threshold) & valid_BJ
    J = score_BJ.shape[1]
    return np.where(wrong, np.arange(J)[None], J).min(axis=1, initial=J)


def prefix_quality(score_BJ: np.ndarray, valid_BJ: np.ndarray, error_B: np.ndarray) -> np.ndarray:
    """float32[B]: mean score of the steps before the first error times the share of steps before
    it; 0 where none is."""
    before = valid_BJ & (np.arange(score_BJ.shape[1])[None] < error_B[:, None])
    count = before.sum(axis=1)
    mean = np.where(before, score_BJ, 0.0).sum(axis=1) / np.maximum(count, 1)
    return (mean * count / np.maximum(valid_BJ.sum(axis=1), 1)).astype(np.float32)
