"""Stage 1, `locate`: the first wrong step, and how good what stands before it is."""

import dataclasses

import numpy as np
import pytest
from support.hand_made import (
    IDLE,
    LAST,
    PRM,
    RIGHT,
    WITH_4,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    fours_are_wrong,
    groups_of,
    played,
    run,
    same,
    scene,
    text,
)

from scope_jax.correction import LocaliserSpec, locate
from scope_jax.correction.locate import move_errors


def test_the_prm_finds_the_step_and_the_threshold_decides():
    batch = scene(RIGHT + "#", WITH_4 + "#", WRONG_2 + "#", WRONG_2 + "#")
    result = run(batch, [1, 0, 0, 0], localiser=PRM, prm=fours_are_wrong())
    # Rows 2 and 3 hold no 4: not located, so not candidates.
    assert result.metrics["scope/located_share"] == pytest.approx(1 / 3)
    assert text(result.rollout, 1) == RIGHT + "#" and result.reward_B.tolist() == [1, 1, 0, 0]
    assert [s["score"] is not None for s in result.gallery[0]["steps"]] == [
        True,
        True,
        True,
        False,
        False,
    ]
    # A PRM that finds every step wrong leaves no prefix to keep; one that is content with 0.2
    # finds the error all the same.
    gloomy = run(batch, [1, 0, 0, 0], localiser=PRM, prm=fours_are_wrong(good=-1.0))
    assert gloomy.metrics["scope/no_good_step"] == 3 and gloomy.metrics["scope/selected"] == 0
    assert same(gloomy.rollout, batch, range(4))
    lower = run(
        batch,
        [1, 0, 0, 0],
        localiser=LocaliserSpec("prm", threshold=0.2),
        prm=fours_are_wrong(good=-1.0),
    )
    assert lower.metrics["scope/selected"] == 1 and lower.metrics["scope/accepted"] == 1


def test_rows_the_prm_cannot_score_stay_failures():
    prm = fours_are_wrong()
    prm = dataclasses.replace(prm, config=dataclasses.replace(prm.config, max_positions=20))
    batch = scene(RIGHT + "#", WITH_4 + "#", "+777\n-984#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], localiser=PRM, prm=prm)
    assert (
        result.metrics["scope/unscored"] == 1
    )  # 7 + 14 ids do not fit 20 positions; the shorter row does
    assert result.reward_B.tolist() == [1, 0, 1, 1]


def test_without_a_prm_or_an_oracle_there_is_an_error():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", RIGHT + "#")
    with pytest.raises(ValueError, match="localiser 'prm' needs a process reward model"):
        run(batch, [1, 0, 0, 1], localiser=PRM)


def test_a_first_step_that_is_wrong_leaves_nothing_to_keep():
    batch = scene(*[WRONG_1 + "#"] * 4)
    result = run(batch, [0, 0, 0, 0])
    shown = ("located_share", "no_good_step", "eligible", "selected", "first_error_position")
    assert [result.metrics[f"scope/{name}"] for name in shown] == [1.0, 4, 0, 0, 0.0]
    assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [0] * 4


def test_an_error_that_no_step_shows_is_not_located():
    # The verdict says failed (an answer in another form, say), and every step is right.
    batch = scene(RIGHT + "#", RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#")
    result = run(batch, [1, 0, 0, 0], teacher=LAST, policy=IDLE)
    assert result.metrics["scope/located_share"] == pytest.approx(2 / 3)
    assert (
        result.metrics["scope/selected"] == 1
    )  # the error in the last step; that in the first leaves no prefix
    assert same(result.rollout, batch, [0, 1, 3]) and result.reward_B.tolist() == [1, 0, 1, 0]
    assert result.metrics["scope/first_error_position"] == pytest.approx((2 / 3 + 0) / 2)


def test_misplaced_errors_are_as_many_as_asked_for_and_anywhere():
    rng = np.random.default_rng(0)
    R, J, error = 4000, 6, 3
    valid = np.arange(J)[None] < np.where(np.arange(R) % 2, 5, 6)[:, None]
    score = np.where(
        np.arange(J)[None] < error, rng.uniform(0.6, 1, (R, J)), rng.uniform(0, 0.4, (R, J))
    ).astype(np.float32)
    score[::10, error:] = 0.9  # rows without an error
    np.testing.assert_array_equal(move_errors(score, valid, 0.5, 0.0, 7), score)
    moved = move_errors(score, valid, 0.5, 0.4, 7)
    touched = (moved != score).any(axis=1)
    assert not touched[::10].any()
    has_error = np.arange(R) % 10 != 0
    assert touched[has_error].mean() == pytest.approx(0.4, abs=0.03)  # 4 standard errors
    first = np.where((moved < 0.5) & valid, np.arange(J)[None], J).min(axis=1)
    for steps in (5, 6):
        places = first[touched & (valid.sum(axis=1) == steps)]
        counts = np.bincount(places, minlength=steps)
        assert len(counts) == steps  # at some step of the row, the right one included
        np.testing.assert_allclose(counts / len(places), 1 / steps, atol=0.06)
    for r in np.flatnonzero(touched)[:50]:
        steps = int(valid[r].sum())
        assert moved[r, :steps].tolist() == [1.0] * first[r] + [0.0] * (steps - first[r])
    assert not np.array_equal(moved, move_errors(score, valid, 0.5, 0.4, 8))
    everywhere = move_errors(score, valid, 0.5, 1.0, 7)
    assert (everywhere != score).any(axis=1)[has_error].all()


# ---- the stage


def test_locate_moves_the_errors_that_the_settings_ask_to_be_moved():
    batch = scene(*[WRONG_2 + "#", WRONG_3 + "#"] * 2)
    groups = groups_of(batch, [0, 0, 0, 0])
    plain = locate(groups, groups.failed_B, played())
    noisy = played(localiser=LocaliserSpec("oracle", noise=1.0), seed=7)
    moved = locate(groups, groups.failed_B, noisy)
    wanted = move_errors(plain.score_RJ, plain.valid_RJ, plain.threshold, 1.0, 7)
    assert not np.array_equal(wanted, plain.score_RJ)
    np.testing.assert_array_equal(moved.score_RJ, wanted)
    assert (moved.error_R != plain.error_R).any()


def test_locate_literal():
    """Two of the four rows, in their steps, by the domain's own check."""
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    located = locate(groups_of(batch, [1, 0, 0, 1]), np.array([0, 1, 1, 0], bool), played())
    assert located.rows.rows_R.tolist() == [1, 2]
    assert located.rows.steps == [["+777\n", "-988\n", "+199"], ["+778\n", "-988\n", "+199"]]
    assert located.rows.ends == [[5, 10, 14], [5, 10, 14]]
    assert located.score_RJ.tolist() == [[1, 0, 0], [0, 0, 0]] and located.valid_RJ.all()
    assert located.error_R.tolist() == [1, 0] and located.has_error_R.all()
    assert located.good_tokens_R.tolist() == [5, 0]
    np.testing.assert_allclose(located.quality_R, [1 / 3, 0], rtol=1e-6)
    assert located.threshold == 0.5
    assert located.metrics == {
        "scope/unscored": 0,
        "cost/prm_tokens": 0,
        "cost/localiser_tokens": 0,
    }


def test_locate_by_a_prm_counts_what_it_reads():
    batch = scene(RIGHT + "#", WITH_4 + "#", WRONG_2, RIGHT + "#")
    located = locate(
        groups_of(batch, [1, 0, 0, 1]),
        np.array([0, 1, 1, 0], bool),
        played(localiser=PRM, prm=fours_are_wrong()),
    )
    assert located.error_R.tolist() == [1, 3] and located.has_error_R.tolist() == [True, False]
    assert located.good_tokens_R.tolist() == [5, 0]
    assert located.metrics["cost/prm_tokens"] == 2 * (7 + 14)  # no end token


def test_nothing_to_locate():
    located = locate(groups_of(scene(*[RIGHT + "#"] * 4), [1] * 4), np.zeros(4, bool), played())
    assert located.rows.steps == [] and located.error_R.shape == located.has_error_R.shape == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "guess"},
            "localiser.kind = 'guess' is unknown; one of prm, likelihood, oracle, monte_carlo",
        ),
        ({"threshold": 1.0}, "threshold must lie in (0, 1)"),
        ({"continuations": 0}, "localiser.continuations = 0 must be at least 1"),
        ({"noise": 1.5}, "localiser.noise = 1.5 must be a probability"),
    ],
)
def test_localiser_spec_refuses(settings, message):
    with pytest.raises(ValueError) as caught:
        LocaliserSpec(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
