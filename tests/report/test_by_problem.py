"""Counts problem by problem: as text and back, and errors of differences over problems by hand."""

import json
import math

import numpy as np
import pytest

from scope_jax.report.by_problem import ByProblem, digest_of, paired_over_problems


def test_counts_are_digits_and_come_back():
    counts = ByProblem(32, "ab", [0, 9, 10, 32], [0, 1, 2, 30])
    saved = counts.to_json()
    assert saved == {"samples": 32, "problems": "ab", "right": "09aw", "paths": "012u"}
    assert ByProblem.from_json(json.loads(json.dumps(saved))) == counts
    greedy = ByProblem(1, "ab", [0, 1])
    assert "paths" not in greedy.to_json() and ByProblem.from_json(greedy.to_json()) == greedy
    # More samples than there are digits.
    many = ByProblem(100, "ab", [61, 62, 100], [61, 3, 2])
    assert many.to_json()["right"] == [61, 62, 100] and many.to_json()["paths"] == "Z32"
    assert ByProblem.from_json(many.to_json()) == many


@pytest.mark.parametrize(
    "change",
    [{"right": "0!"}, {"right": None}, {"right": "05"}, {"paths": "1"}, {"samples": "x"}],
)
def test_what_is_no_counts_is_one_line(change):
    saved = {"samples": 4, "problems": "ab", "right": "04", "paths": "01"} | change
    with pytest.raises(ValueError, match=r"^counts by problem: .*$"):
        ByProblem.from_json(saved)


def test_lists_of_problems_are_told_apart():
    assert digest_of(["a", "b"]) == digest_of(["a", "b"]) and len(digest_of([])) == 8
    assert len({digest_of(ids) for ids in (["a", "b"], ["b", "a"], ["a"], ["ab"], [])}) == 5


def test_paired_errors_over_problems_by_hand():
    ours = [ByProblem(4, "p", right) for right in ([4, 2, 0, 2], [4, 4, 0, 0])]
    theirs = [ByProblem(2, "p", [2, 1, 0, 0])]
    # Shares: 1, .75, 0, .25 against 1, .5, 0, 0: differences 0, .25, 0, .25, sd sqrt(.0625/3).
    mean, error = paired_over_problems(ours, theirs)
    assert mean == pytest.approx(0.125)
    assert error == pytest.approx(math.sqrt(0.0625 / 3) / 2)
    assert all(map(math.isnan, paired_over_problems(ours, [])))
    with pytest.raises(ValueError, match="2 different sets of problems cannot be paired"):
        paired_over_problems(ours, [ByProblem(2, "q", [2, 1, 0, 0])])


def test_what_problems_share_drops_out_of_the_paired_error():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.2, 0.8, 2000)  # how likely a problem is solved, by either
    ours = ByProblem(32, "p", rng.binomial(32, hard).tolist())
    theirs = ByProblem(32, "p", rng.binomial(32, hard).tolist())
    mean, error = paired_over_problems([ours], [theirs])
    # By hand: twice the binomial variance p (1 - p) / 32 with mean .25 - .03, over 2,000.
    assert error == pytest.approx(math.sqrt(2 * 0.22 / 32 / 2000), rel=0.05)
    assert abs(mean) < 3 * error
    alone = [np.std(np.array(one.right) / 32) / math.sqrt(2000) for one in (ours, theirs)]
    assert error < 0.6 * math.hypot(*alone)
