"""Scores that are no numbers: a row with one is not scored, and a batch of them ends the run."""

import numpy as np


def finite_rows(
    score_RJ: np.ndarray, valid_RJ: np.ndarray, who: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """(scores, which of them count, rows left out): a row with a score that is not finite counts
    as not scored, since its first error cannot be told.

    Raises RuntimeError, naming `who` scored, where that is so for most of the rows that have
    scores: a run that went on would leave out the correction without a word.
    """
    scored_R = valid_RJ.any(axis=1)
    bad_R = (valid_RJ & ~np.isfinite(score_RJ)).any(axis=1)
    bad, scored = int(bad_R.sum()), int(scored_R.sum())
    if 2 * bad > scored:
        raise RuntimeError(
            f"{who}: the scores of {bad} of {scored} rows are not finite (NaN or infinity); take"
            " another checkpoint, or float32 for its weights"
        )
    if not bad:
        return score_RJ, valid_RJ, 0
    return np.where(bad_R[:, None], 0, score_RJ), valid_RJ & ~bad_R[:, None], bad
