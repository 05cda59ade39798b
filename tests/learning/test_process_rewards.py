"""Rewards of steps and prefixes, and the penalty of long rows: numbers by hand, and the
definitions in plain loops."""

import math

import numpy as np
import pytest

from scope_jax.learning.process_rewards import (
    Rows,
    Steps,
    overlong_penalty,
    prefix_advantages,
    summed_step_advantages,
    worst_step_advantages,
)

NAN = float("nan")


def steps(rows, T, group, form, temperature=0.1, include=None, prompt=2, epsilon=1e-6):
    """The advantages of rows spelled as lists of (score, tokens); score None: the step was not
    scored."""
    J = max(len(row) for row in rows)
    score, end, valid = (
        np.full((len(rows), J), NAN),
        np.zeros((len(rows), J), int),
        np.zeros((len(rows), J), bool),
    )
    length = np.full(len(rows), prompt)
    for b, row in enumerate(rows):
        for j, (p, tokens) in enumerate(row):
            length[b] += tokens
            end[b, j], valid[b, j] = length[b], p is not None
            score[b, j] = 0.0 if p is None else p
    prompts = np.full(len(rows), prompt)
    batch = Rows.of(prompts, length, T, group, include)
    found = Steps.of(batch, score, end, valid)
    if form == "sum":
        return summed_step_advantages(batch, found, epsilon=epsilon)
    return worst_step_advantages(batch, found, temperature=temperature)


# ------------------------------------------------------------------------------------------------
# sums of steps


def test_sum_by_hand():
    # Scores 0.9, 0.1 and 0.5: mean 0.5, population std sqrt(0.32 / 3). Worth: +u, -u and 0.
    u = 0.4 / math.sqrt(0.32 / 3)
    got = steps([[(0.9, 2), (0.1, 1)], [(0.5, 3)]], 6, 2, "sum", epsilon=0.0)
    assert got.dtype == np.float32
    # A token of the first step has both steps before it: u - u; the second step has its own.
    np.testing.assert_allclose(got, [[0, 0, 0, 0, -u, 0], [0, 0, 0, 0, 0, 0]], atol=1e-6)
    got = steps([[(0.1, 1), (0.9, 2)], [(0.5, 3)]], 6, 2, "sum", epsilon=0.0)
    np.testing.assert_allclose(got, [[0, 0, 0, u, u, 0], [0, 0, 0, 0, 0, 0]], atol=1e-6)


def test_sum_is_normalised_over_steps_not_over_rows():
    # Three steps at 1, one at 0: mean 0.75, though the rows' means are 1 and 0; std sqrt(3) / 4.
    root = math.sqrt(3)
    got = steps([[(1.0, 1)] * 3, [(0.0, 2)]], 5, 2, "sum", epsilon=0.0)
    np.testing.assert_allclose(
        got, [[0, 0, 3 / root, 2 / root, 1 / root], [0, 0, -root, -root, 0]], rtol=1e-6
    )
    # More good steps, more advantage: why this reward can be hacked.
    assert got[0, 2] > got[0, 4]


def test_sum_of_equal_scores_is_exactly_zero():
    assert (
        0.1 - (0.1 + 0.1 + 0.1) / 3 != 0
    )  # the trap is real: divided by a std of 1e-17 this would be an advantage of 1
    for epsilon in (1e-6, 0.0):
        got = steps([[(0.1, 1), (0.1, 2)], [(0.1, 3)]], 8, 2, "sum", epsilon=epsilon)
        np.testing.assert_array_equal(got, np.zeros((2, 8)))


def test_min_by_hand():
    # temperature 1 / log 3: rewards 1 and 0 get the weights 1/4 and 3/4, so they are worth 1/4 and
    # 0; -1 alone stays -1.
    rows = [[(1.0, 2), (0.5, 3)], [(0.0, 4)]]
    got = steps(rows, 8, 2, "min", temperature=1 / math.log(3))
    # Row 0: the other row earns -1/4 a token, so its steps of 2 and 3 tokens are charged -0.5 and
    # -0.75. Row 1: the other row earns (1/4) / 5 a token: -1 - 4 / 20.
    np.testing.assert_allclose(
        got,
        [[0, 0, 1.5, 1.5, 0.75, 0.75, 0.75, 0], [0, 0, -1.2, -1.2, -1.2, -1.2, 0, 0]],
        rtol=1e-6,
    )


def test_min_is_the_worst_step_at_a_low_temperature():
    rows = [[(0.9, 1), (0.2, 1), (0.8, 1)], [(0.7, 1), (0.7, 1), (0.7, 1)]]
    got = steps(rows, 5, 2, "min", temperature=1e-3)
    # Rewards 0.8, -0.6, 0.6 -> -0.6 at the second step; 0.4 x 3 -> a third of 0.4 at each.
    # Baselines: 0.4/3 and -0.2 a token.
    third = 0.4 / 3
    first = [
        -0.6 - 3 * third,
        -0.6 - 2 * third,
        -third,
    ]  # the good step after the bad one has no reward to go of its own
    second = [0.4 + 0.6, 2 * third + 0.4, third + 0.2]
    np.testing.assert_allclose(got[:, 2:], [first, second], rtol=1e-6)


def test_min_does_not_care_into_how_many_steps_a_text_is_cut():
    whole = steps([[(0.8, 6)], [(0.1, 4), (0.6, 1)]], 8, 2, "min")
    cut = steps([[(0.8, 2), (0.8, 1), (0.8, 3)], [(0.1, 4), (0.6, 1)]], 8, 2, "min")
    np.testing.assert_allclose(
        whole[:, 2], cut[:, 2], rtol=1e-6
    )  # what the first token of each row stands for
    np.testing.assert_allclose(whole[1], cut[1], rtol=1e-6)


@pytest.mark.parametrize("form", ["sum", "min"])
def test_rows_without_scored_steps_are_out_of_everything(form):
    rows = [[(0.9, 2), (0.1, 1)], [(0.6, 3)], [(None, 5)], []]
    got = steps(rows, 8, 4, form)
    np.testing.assert_array_equal(got[2:], np.zeros((2, 8)))
    np.testing.assert_array_equal(got[:2], steps(rows[:2], 8, 2, form))
    # Left out: the same.
    np.testing.assert_array_equal(
        got[:2], steps(rows[:2] + rows[:2], 8, 4, form, include=np.array([1, 1, 0, 0], bool))[:2]
    )


def test_a_row_alone_with_scored_steps():
    # `min` leaves nothing to compare it with; `sum` compares its steps with each other.
    rows = [[(0.9, 2), (0.1, 1)], [(None, 3)]]
    np.testing.assert_array_equal(steps(rows, 6, 2, "min"), np.zeros((2, 6)))
    np.testing.assert_allclose(steps(rows, 6, 2, "sum", epsilon=0.0)[0, 2:5], [0, 0, -1], atol=1e-6)
    np.testing.assert_array_equal(steps([[], []], 6, 2, "sum"), np.zeros((2, 6)))


def test_a_step_that_was_not_scored_is_worth_nothing_and_its_tokens_do_not_count():
    rows = [[(0.5, 2), (None, 5), (0.0, 1)], [(1.0, 3)]]
    got = steps(rows, 12, 2, "min", temperature=1 / math.log(3))
    # Rewards 0 and -1 with weights 1/4 and 3/4; 1/3 a token elsewhere, over 2 and 1 tokens; here
    # -3/4 over 3 tokens.
    last = -0.75 - 1 / 3
    np.testing.assert_allclose(got[0, 2:10], [last - 2 / 3] * 2 + [last] * 6, rtol=1e-6)
    np.testing.assert_allclose(got[1, 2:5], [1 + 0.75] * 3, rtol=1e-6)


def loops(score, end, valid, prompt, length, T, group, form, temperature, include):
    """Every token on its own, from the definitions."""
    B, J = score.shape
    out = np.zeros((B, T))
    real = [
        [j for j in range(J) if valid[b, j] and include[b] and not math.isnan(score[b, j])]
        for b in range(B)
    ]

    def size(b, j):
        return end[b, j] - (end[b, j - 1] if j else prompt[b])

    def reward(b, j):
        weights = [math.exp(-(2 * score[b, k] - 1) / temperature) for k in real[b]]
        return math.exp(-(2 * score[b, j] - 1) / temperature) / sum(weights) * (2 * score[b, j] - 1)

    for b in range(B):
        members = [i for i in range(b - b % group, b - b % group + group)]
        pool = [score[i, j] for i in members for j in real[i]]
        others = [i for i in members if i != b and real[i]]
        for t in range(prompt[b], min(length[b], T)):
            for j in real[b]:
                if end[b, j] <= t:
                    continue
                if form == "sum":
                    out[b, t] += (score[b, j] - np.mean(pool)) / (np.std(pool) + 1e-6)
                elif others:
                    earned = sum(reward(i, k) for i in others for k in real[i])
                    out[b, t] += reward(b, j) - size(b, j) * earned / sum(
                        size(i, k) for i in others for k in real[i]
                    )
    return out


@pytest.mark.parametrize("form", ["sum", "min"])
def test_ragged_rows_match_the_definition(form):
    rng = np.random.default_rng(4)
    B, J, T, group = 20, 5, 24, 5
    prompt = rng.integers(1, 5, B)
    end, valid, length = np.zeros((B, J), int), np.zeros((B, J), bool), np.zeros(B, int)
    for b in range(B):
        count = int(rng.integers(0, J + 1))
        end[b, :count] = prompt[b] + np.cumsum(rng.integers(1, 5, count))
        end[b, count:] = rng.integers(
            -9, 99, J - count
        )  # slots of steps that do not exist hold anything
        length[b] = end[b, count - 1] if count else prompt[b] + 3
        valid[b, :count] = rng.random(count) < 0.9
    score = np.where(rng.random((B, J)) < 0.05, NAN, rng.random((B, J)))
    include = rng.random(B) < 0.85
    batch = Rows.of(prompt, length, T, group, include)
    found = Steps.of(batch, score, end, valid)
    if form == "sum":
        got = summed_step_advantages(batch, found)
    else:
        got = worst_step_advantages(batch, found, temperature=0.3)
    want = loops(score, end, valid, prompt, length, T, group, form, 0.3, include)
    assert np.abs(want).max() > 0.5 and (want != 0).sum() > 60
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_errors_of_steps_are_named():
    def of(prompt=(1, 1), length=(3, 3), group=2, include=None, **change):
        good = dict(score_BJ=np.ones((2, 1)), end_BJ=[[3], [3]], valid_BJ=np.ones((2, 1), bool))
        return Steps.of(Rows.of(prompt, length, 4, group, include), **(good | change))

    assert of().score_BJ.shape == (2, 1)
    for change, message in (
        (
            {"valid_BJ": np.ones((2, 1))},
            r"valid_BJ are float\[2, 1\], int\[2, 1\], float64\[2, 1\]",
        ),
        ({"score_BJ": np.ones((2, 2))}, r"are float\[2, 2\], int\[2, 1\].* one shape \[2, J\]"),
        (
            {"end_BJ": [[3], [4]]},
            r"step 0 of row 1 covers positions \[1, 4\); expected some of the positions \[1, 3\)",
        ),
        ({"end_BJ": [[1], [3]]}, r"step 0 of row 0 covers positions \[1, 1\)"),
        ({"group": 3}, "2 rows do not make whole groups of 3"),
        ({"length": [3]}, r"length_B has shape \[1\]; expected \[2\]"),
        ({"include": [1, 0]}, r"include_B is int64\[2\]; expected bool\[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            of(**change)
    # What is not read cannot be wrong.
    assert of(end_BJ=[[3], [99]], include=np.array([True, False])).valid_BJ.tolist() == [
        [True],
        [False],
    ]


# ------------------------------------------------------------------------------------------------
# prefixes


def test_prefix_by_hand():
    # Prompt 2, four rows of 10 tokens: right; 5 good tokens; nothing good; right. Nothing is
    # shortened.
    more = dict(alpha=0.5, shorten="fixed", shorten_by=0)
    got = prefix_advantages(Rows.of([2] * 4, [12] * 4, 14, 4), [1, 0, 0, 1], [2, 7, 2, 12], **more)
    assert got.dtype == np.float32
    mean = (1 + 0.5 * 5 / 10 + 0 + 1) / 4  # 0.5625
    want = np.zeros((4, 14))
    want[:, 2:12] = -mean
    want[[0, 3], 2:12] = 1 - mean
    want[1, 2:7] = 0.5 - mean
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # A group that failed altogether still learns: the prefix is above the mean, what follows below
    # it.
    got = prefix_advantages(Rows.of([2, 2], [12, 12], 12, 2), [0, 0], [7, 2], **more)
    np.testing.assert_allclose(got[0, 2:], [0.375] * 5 + [-0.125] * 5, rtol=1e-6)
    np.testing.assert_allclose(got[1, 2:], [-0.125] * 10, rtol=1e-6)


@pytest.mark.parametrize(
    ("shorten", "shorten_by", "good", "kept"),
    [
        ("prompt", 0.1, 5, 2),  # the prompt has 3 tokens
        ("prompt", 0.1, 2, 0),  # never below 0
        ("fixed", 4, 5, 1),
        ("fixed", 200, 5, 0),
        ("fraction", 0.1, 5, 4),  # half a token is a token
        ("fraction", 0.1, 70, 63),
        ("fraction", 0.28, 25, 18),  # 0.28 x 25 > 7 in floating point
        ("fraction", 0.0, 5, 5),
        ("fraction", 1.0, 5, 0),
    ],
)
def test_the_prefix_is_shortened(shorten, shorten_by, good, kept):
    got = prefix_advantages(
        Rows.of([3, 3], [83, 83], 83, 2),
        [1, 0],
        [3, 3 + good],
        alpha=0.5,
        shorten=shorten,
        shorten_by=shorten_by,
    )
    mean = (1 + 0.5 * kept / 80) / 2
    np.testing.assert_allclose(got[1, 3:], [0.5 - mean] * kept + [-mean] * (80 - kept), rtol=1e-5)
    np.testing.assert_allclose(got[0, 3:], 1 - mean, rtol=1e-5)


def test_prefix_rows_that_do_not_count():
    reward = [1, 0, NAN, 0]
    ends, prompt, length = (
        [99, 5, 99, -7],
        [1, 1, 1, 1],
        [5, 9, 9, 3],
    )  # ends of rows that are not read hold anything
    include = np.array([True, True, True, False])
    got = prefix_advantages(
        Rows.of(prompt, length, 9, 4, include), reward, ends, shorten="fixed", shorten_by=0
    )
    mean = (1 + 0.5 * 4 / 8) / 2
    np.testing.assert_allclose(got[0], [0] + [1 - mean] * 4 + [0] * 4, rtol=1e-6)
    np.testing.assert_allclose(got[1], [0] + [0.5 - mean] * 4 + [-mean] * 4, rtol=1e-6)
    np.testing.assert_array_equal(got[2:], np.zeros((2, 9)))
    nobody = prefix_advantages(Rows.of(prompt, length, 9, 4, np.zeros(4, bool)), reward, ends)
    np.testing.assert_array_equal(nobody, np.zeros((4, 9)))


def test_equal_rows_give_no_prefix_advantage():
    np.testing.assert_array_equal(
        prefix_advantages(Rows.of([1] * 3, [4, 5, 6], 6, 3), [1] * 3, [1] * 3), np.zeros((3, 6))
    )
    np.testing.assert_array_equal(
        prefix_advantages(Rows.of([1] * 3, [4, 5, 6], 6, 3), [0] * 3, [1] * 3), np.zeros((3, 6))
    )
    # A row that wrote nothing is a failure without tokens: its average is 0, and there is no slot
    # to give anything to.
    got = prefix_advantages(Rows.of([1, 2], [3, 2], 4, 2), [1, 0], [3, 2])
    np.testing.assert_allclose(got, [[0, 0.5, 0.5, 0], [0, 0, 0, 0]])


def test_prefix_matches_loops():
    rng = np.random.default_rng(5)
    B, T, group, alpha = 24, 30, 6, 0.3
    prompt, written = rng.integers(1, 6, B), rng.integers(1, 20, B)
    end = prompt + (written * rng.random(B)).astype(int)
    reward = rng.choice([0.0, 1.0, NAN], B, p=[0.6, 0.3, 0.1])
    include = rng.random(B) < 0.9
    got = prefix_advantages(
        Rows.of(prompt, prompt + written, T, group, include),
        reward,
        end,
        alpha=alpha,
        shorten="fraction",
        shorten_by=0.25,
    )
    for first in range(0, B, group):
        rows = [b for b in range(first, first + group) if include[b] and not math.isnan(reward[b])]
        raw = {}
        for b in rows:
            size = end[b] - prompt[b]
            kept = size - math.ceil(size / 4)
            raw[b] = (
                [1.0] * written[b]
                if reward[b] == 1
                else [alpha] * kept + [0.0] * (written[b] - kept)
            )
        for b in range(first, first + group):
            want = np.zeros(T)
            if b in raw:
                want[prompt[b] : prompt[b] + written[b]] = np.array(raw[b]) - np.mean(
                    [np.mean(raw[i]) for i in rows]
                )
            np.testing.assert_allclose(got[b], want, rtol=1e-5, atol=1e-6)
    assert np.abs(got).max() > 0.3


def test_prefix_errors_are_named():
    rows = Rows.of([1, 1], [3, 3], 4, 2)
    for reward, end, message in (
        ([1, 0], [1, 4], r"prefix_end_B\[1\] = 4; expected a position in \[1, 3\]"),
        ([1, 0], [1, 0], r"prefix_end_B\[1\] = 0"),
        ([1, 0], [1], r"prefix_end_B has shape \[1\]; expected \[2\]"),
        ([[1, 0]], [1, 2], r"reward_B has shape \[1, 2\]; expected \[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            prefix_advantages(rows, reward, end)


# ------------------------------------------------------------------------------------------------
# length


def test_overlong_penalty_by_hand():
    # 20 tokens at most, the last 8 of them punished: 12 is free, each token more costs an eighth.
    got = overlong_penalty(np.array([0, 11, 12, 13, 16, 19, 20, 25], np.int32), 20, 8)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [0, 0, 0, -0.125, -0.5, -0.875, -1, -1])
    assert not np.signbit(got[:3]).any()
    np.testing.assert_array_equal(overlong_penalty([16, 20], 20, 8, penalty=0.5), [-0.25, -0.5])
    np.testing.assert_array_equal(
        overlong_penalty([10, 20], 20, 20), [-0.5, -1]
    )  # the buffer may be everything
    # DAPO's own numbers: 16,384 expected tokens and a cache of 4,096.
    np.testing.assert_array_equal(
        overlong_penalty([16384, 18432, 20480], 20480, 4096), [0, -0.5, -1]
    )


@pytest.mark.parametrize(
    ("buffer", "penalty"), [(0, 1.0), (21, 1.0), (8, -1.0), (8, NAN), (8, math.inf)]
)
def test_overlong_errors_are_named(buffer, penalty):
    with pytest.raises(ValueError, match=r"buffer = |penalty = "):
        overlong_penalty([1], 20, buffer, penalty)
