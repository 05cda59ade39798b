"""Choosing among several solutions of one problem: best of n and the weighted vote.

Pure functions on plain numbers; the step scores come from `ProcessRewardModel.score`.
"""

import math
from collections.abc import Sequence

AGGREGATES = ("min", "product", "last", "mean")


def aggregate(score_J: Sequence[float], how: str) -> float:
    """One weight for a solution from the scores of its steps; `how` is one of AGGREGATES.

    A solution without a scored step has the weight 0. Raises ValueError for another `how`.
    """
    if how not in AGGREGATES:
        raise ValueError(f"aggregate {how!r} is unknown; one of {', '.join(AGGREGATES)}")
    score = [float(s) for s in score_J]
    if not score:
        return 0.0
    if how == "min":
        return min(score)
    if how == "product":
        return math.prod(score)
    return score[-1] if how == "last" else math.fsum(score) / len(score)


def best_of_n(weights: Sequence[float]) -> int:
    """Index of the sample with the greatest weight; of equal ones the earliest. NaN ranks below
    every number. Raises ValueError where there is no sample.
    """
    if not len(weights):
        raise ValueError("best_of_n: no sample to choose from; give at least one weight")
    return max(
        range(len(weights)), key=lambda n: (-math.inf if math.isnan(weights[n]) else weights[n], -n)
    )


def weighted_vote(answers: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The answer with the greatest sum of weights; of equal ones that of the earliest sample. With
    all weights 1 this is the majority vote.

    Samples without an answer (None) do not vote; where no sample has one, the result is None.
    Raises ValueError for another number of weights than answers.
    """
    if len(answers) != len(weights):
        raise ValueError(
            f"weighted_vote: {len(answers)} answers and {len(weights)} weights; expected one weight"
            " per answer"
        )
    votes: dict[str, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(weight)
    if not votes:
        return None
    # fsum: equal sums are equal whatever the order of their parts. The dict keeps the order of
    # first appearance.
    names = list(votes)
    return names[best_of_n([math.fsum(votes[name]) for name in names])]
