"""Choosing among several solutions, by hand."""

import math

import pytest

from scope_jax.report import voting


def test_aggregate_literal():
    score = [0.5, 0.25, 1.0]
    assert [voting.aggregate(score, how) for how in voting.AGGREGATES] == [
        0.25,
        0.125,
        1.0,
        pytest.approx(1.75 / 3),
    ]
    assert [voting.aggregate([], how) for how in voting.AGGREGATES] == [0.0] * 4
    with pytest.raises(
        ValueError, match="aggregate 'max' is unknown; one of min, product, last, mean"
    ):
        voting.aggregate(score, "max")


def test_best_of_n_literal():
    assert voting.best_of_n([0.1, 0.9, 0.9, 0.2]) == 1  # a tie goes to the earlier sample
    assert voting.best_of_n([math.nan, -1.0]) == 1
    assert voting.best_of_n([0.0]) == 0
    with pytest.raises(ValueError, match="best_of_n: no sample"):
        voting.best_of_n([])


def test_weighted_vote_literal():
    answers = ["7", "8", None, "8", "7"]
    assert (
        voting.weighted_vote(answers, [0.5, 0.25, 9.0, 0.25, 0.0]) == "7"
    )  # 0.5 each: the earlier one
    assert voting.weighted_vote(answers, [0.5, 0.25, 9.0, 0.375, 0.0]) == "8"
    assert voting.weighted_vote(["a", "b", "a", "b", "a"], [0.3, 0.2, 0.2, 0.3, 0.1]) == "a"
    # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in their last bit when added one by one.
    assert (
        voting.weighted_vote(["a", "a", "a", "b", "b", "b"], [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]) == "a"
    )
    assert (
        voting.weighted_vote(["b", "b", "b", "a", "a", "a"], [0.3, 0.2, 0.1, 0.1, 0.2, 0.3]) == "b"
    )
    assert voting.weighted_vote(["x", "y"], [0.0, 0.0]) == "x"
    assert (
        voting.weighted_vote([None, None], [1.0, 1.0]) is None
        and voting.weighted_vote([], []) is None
    )
    with pytest.raises(ValueError, match="2 answers and 1 weights"):
        voting.weighted_vote(["a", "b"], [1.0])


def test_an_answer_of_nobody_gets_no_vote_however_heavy():
    assert voting.weighted_vote([None, "a"], [math.inf, 0.0]) == "a"
    assert voting.weighted_vote([None, "a", "b"], [9.0, 0.1, 0.2]) == "b"


def test_an_answer_whose_weight_is_unknown_loses_to_any_other():
    assert voting.weighted_vote(["a", "a", "b"], [0.9, math.nan, 0.1]) == "b"
    assert voting.best_of_n([math.nan, math.nan]) == 0
