"""Ways of giving credit, on hand-made rows and by hand."""

import dataclasses

import numpy as np
import pytest
from support.hand_made import (
    NAN,
    RIGHT,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    groups_of,
    played,
    scene,
)

from scope_jax.learning import AdvantageSpec
from scope_jax.learning.credit import (
    GoodPrefix,
    OutcomeCredit,
    SummedSteps,
    WorstStep,
    advantages,
)


def credit_of(credit, reward=(1, 0, 0, 0), spec=AdvantageSpec(), second=WRONG_2, **parts):
    """(advantages of one right row and of failures at step 1, 2 and 0; metrics)."""
    batch = scene(RIGHT + "#", second + "#", WRONG_3 + "#", WRONG_1 + "#")
    groups = groups_of(batch, list(reward))
    got, metrics = advantages(groups, played(**parts), credit, spec, max_new_tokens=16)
    return np.asarray(got), metrics


def test_the_outcome_alone():
    got, metrics = credit_of(OutcomeCredit())
    np.testing.assert_allclose(got, [0.75, -0.25, -0.25, -0.25])
    assert metrics == {}
    for spec, right, failed in (
        (AdvantageSpec(std=True), 3**0.5, -(3**-0.5)),
        (AdvantageSpec(batch_std=True), 3**0.5, -(3**-0.5)),
        (AdvantageSpec(baseline="leave_one_out"), 1.0, -1 / 3),
    ):
        got, _ = credit_of(OutcomeCredit(), spec=spec)
        np.testing.assert_allclose(got, [right, failed, failed, failed], rtol=1e-4)
    got, _ = credit_of(OutcomeCredit(), reward=(1, NAN, 0, 0))
    np.testing.assert_allclose(got, [2 / 3, 0, -1 / 3, -1 / 3], rtol=1e-6)


def test_long_rows_are_punished_before_the_mean():
    # 15 tokens each, of 16, but the second; the last 2 cost a half.
    spec = AdvantageSpec(overlong_tokens=2)
    got, metrics = credit_of(OutcomeCredit(), spec=spec, second="+777\n")
    np.testing.assert_allclose(got, [0.625, 0.125, -0.375, -0.375])
    assert metrics == {"reward/overlong_penalty": -0.375}


def steps_of(values) -> np.ndarray:
    """float[4, 23]: a value for each of the three steps, of 5 tokens each (the last with its end
    token left out), on the slots behind the prompt."""
    out = np.zeros((4, 23))
    for b, row in enumerate(values):
        for j, value in enumerate(row):
            out[b, 7 + 5 * j : 7 + min(5 * (j + 1), 14)] = value
    return out


# The oracle's scores, row by row.
SCORES = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], float)


def test_summed_steps_by_hand():
    worth = (SCORES - SCORES.mean()) / (SCORES.std() + 1e-6)
    to_go = np.cumsum(worth[:, ::-1], axis=1)[:, ::-1]
    got, metrics = credit_of(SummedSteps(outcome_weight=0.0))
    np.testing.assert_allclose(got, steps_of(to_go), rtol=1e-5, atol=1e-6)
    assert metrics["process/score_mean"] == 0.5 and metrics["scope/unscored"] == 0
    both, _ = credit_of(SummedSteps(process_weight=0.5, outcome_weight=2.0))
    slot = np.arange(23)
    written = ((slot >= 7) & (slot < 7 + 15))[None]
    outcome = np.array([0.75, -0.25, -0.25, -0.25])[:, None] * written
    np.testing.assert_allclose(both, 2 * outcome + 0.5 * steps_of(to_go), rtol=1e-5, atol=1e-6)


def test_the_worst_step_decides():
    got, _ = credit_of(WorstStep(outcome_weight=0.0))
    total = got[:, 7]  # what a row earned, minus what its length would have earned elsewhere
    assert total[0] > 1 > 0 > total[3] and (got[:, 21:] == 0).all()
    # Rows that failed at the same price: their worst r is -1.
    np.testing.assert_allclose(total[1], total[2], atol=1e-3)
    # A softmax so warm that all steps weigh alike: a mean, and not the worst.
    warm, _ = credit_of(WorstStep(outcome_weight=0.0, min_temperature=1e6))
    one_error, two_errors = warm[2, 7], warm[1, 7]
    # Means 1/3 and -1/3 of r, less what the other three rows' tokens earn.
    np.testing.assert_allclose(one_error - two_errors, 2 / 3 + 2 / 9, atol=1e-3)


def test_good_prefixes_by_hand():
    got, metrics = credit_of(GoodPrefix(shorten="fixed", shorten_by=0.0))
    # Of 15 tokens: all, 5, 10 and none are good.
    mean = (1 + 0.5 * 5 / 15 + 0.5 * 10 / 15 + 0) / 4
    want = np.zeros((4, 23))
    want[:, 7:22] = -mean
    want[0, 7:22] += 1
    want[1, 7:12] += 0.5
    want[2, 7:17] += 0.5
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert metrics["process/located_share"] == 1.0
    less, _ = credit_of(GoodPrefix(alpha=0.25, shorten="fixed", shorten_by=0.0))
    assert got[2, 7] - got[2, 21] == pytest.approx(0.5)
    assert less[2, 7] - less[2, 21] == pytest.approx(0.25)


def test_only_ways_that_score_steps_need_a_localiser():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_3 + "#", WRONG_1 + "#")
    groups, nobody = groups_of(batch, [1, 0, 0, 0]), dataclasses.replace(played(), localiser=None)
    for way in (OutcomeCredit, SummedSteps, WorstStep, GoodPrefix):
        credit = way()
        if credit.scores_steps:
            with pytest.raises(ValueError, match="no localiser"):
                advantages(groups, nobody, credit, AdvantageSpec(), max_new_tokens=16)
        else:
            advantages(groups, nobody, credit, AdvantageSpec(), max_new_tokens=16)


@pytest.mark.parametrize(
    ("way", "wrong", "message"),
    [
        (
            GoodPrefix,
            {"shorten": "half"},
            "method.shorten = 'half' is unknown; one of fraction, prompt, fixed",
        ),
        (SummedSteps, {"process_weight": NAN}, "method.process_weight = nan must be 0 or more"),
        (WorstStep, {"outcome_weight": -1}, "method.outcome_weight = -1 must be 0 or more"),
        (WorstStep, {"min_temperature": 0.0}, "method.min_temperature = 0.0 must be above 0"),
        (GoodPrefix, {"alpha": 1.5}, "method.alpha = 1.5 must lie in [0, 1]"),
        (GoodPrefix, {"shorten_by": 1.5}, "a fraction of the prefix is at most 1"),
        (GoodPrefix, {"shorten": "fixed", "shorten_by": float("inf")}, "must be 0 or more"),
        (GoodPrefix, {"shorten_by": -0.1}, "method.shorten_by = -0.1 must be 0 or more"),
    ],
)
def test_bad_settings_are_named_in_one_line(way, wrong, message):
    with pytest.raises(ValueError) as error:
        way(**wrong)
    assert message in str(error.value) and "\n" not in str(error.value)
