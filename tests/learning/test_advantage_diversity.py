"""Diversity on right rows: groups of four by hand, pass@k by going through all choices, random
groups row by row, and the switches together on hand-made rollouts."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import (
    DOMAIN,
    NAN,
    PROBLEM,
    RIGHT,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    groups_of,
    played,
    run,
    scene,
)

from scope_jax.learning import AdvantageSpec, group_advantages
from scope_jax.learning.credit import OutcomeCredit, SummedSteps, advantages
from scope_jax.learning.diversity import (
    focal_weights,
    own_logprob,
    pass_k_advantages,
    path_weights,
    rarity,
    repeated_share,
)

T, F = True, False
ALL = np.ones((1, 4), bool)


def bools(*rows):
    return np.array(rows, bool)


def texts(*rows):
    return np.array(rows, object)


# ---- the parts, by hand and from their definitions


@pytest.mark.parametrize(
    ("right", "k", "want"),
    [
        # Of 6 pairs 3 have the one right row: it is in three of them, mean 1 - 1/2; a wrong row is
        # in 3 pairs, of which 1 succeeds, 1/3 - 1/2.
        ([T, F, F, F], 2, [1 / 2, -1 / 6, -1 / 6, -1 / 6]),
        # Of 6 pairs 5 succeed; a wrong row is in 3, of which 2 succeed.
        ([T, T, F, F], 2, [1 / 6, 1 / 6, -1 / 6, -1 / 6]),
        # Fewer than k wrong rows: every choice succeeds, and nothing is left to learn.
        ([T, T, T, F], 2, [0, 0, 0, 0]),
        ([T, F, F, F], 3, [1 / 4, -1 / 12, -1 / 12, -1 / 12]),
        ([T, F, F, F], 4, [0, 0, 0, 0]),
        ([T, T, T, T], 2, [0, 0, 0, 0]),
        ([F, F, F, F], 2, [0, 0, 0, 0]),
        ([T, F, F, F], 1, [3 / 4, -1 / 4, -1 / 4, -1 / 4]),
    ],
)
def test_pass_k_by_hand(right, k, want):
    got = pass_k_advantages(bools(right), ALL, k)
    np.testing.assert_allclose(got, [want], atol=1e-15)
    if not any(want):
        assert (got == 0).all()


def test_pass_k_is_the_mean_over_all_choices_of_k():
    """Every choice of k rows is worth 1 where one is right: a row's advantage is the mean worth of
    the choices that hold it, minus that of all, over the deviation of the worth."""
    rng = np.random.default_rng(0)
    for k, std in itertools.product((1, 2, 3, 5), (False, True)):
        right, counts = rng.random((12, 6)) < 0.4, rng.random((12, 6)) < 0.8
        got = pass_k_advantages(right & counts, counts, k, std=std, epsilon=1e-3)
        for g in range(12):
            rows = np.flatnonzero(counts[g]).tolist()
            choices = list(itertools.combinations(rows, min(k, len(rows))))
            worth = [float(any(right[g, i] for i in choice)) for choice in choices]
            scale = np.std(worth) + 1e-3 if std else 1.0
            for i in range(6):
                held = [w for w, choice in zip(worth, choices) if i in choice]
                want = (np.mean(held) - np.mean(worth)) / scale if held else 0.0
                assert got[g, i] == pytest.approx(want, abs=1e-12)
    # With k = 1 it is what everybody else has.
    np.testing.assert_allclose(
        pass_k_advantages(right & counts, counts, 1, std=True).reshape(-1),
        group_advantages(right.reshape(-1) * 1.0, 6, std=True, include_B=counts.reshape(-1)),
        atol=2e-6,
    )


def test_pass_k_of_large_groups_does_not_overflow():
    right = np.arange(4096)[None] < 40
    got = pass_k_advantages(right, np.ones((1, 4096), bool), 64)
    assert np.isfinite(got).all() and abs(got.sum()) < 1e-9
    assert got[0, 0] == pytest.approx(math.comb(4056, 64) / math.comb(4096, 64))


def test_focal_weights_by_hand():
    right = bools([T, F, F, F], [T, T, F, F], [T, T, T, T], [T, T, F, F])
    counts = bools([T, T, T, T], [T, T, T, T], [T, T, T, T], [T, T, T, F])
    np.testing.assert_allclose(focal_weights(right, counts, 1), [[3 / 4], [1 / 2], [0], [1 / 3]])
    np.testing.assert_allclose(focal_weights(right, counts, 2), [[9 / 16], [1 / 4], [0], [1 / 9]])
    np.testing.assert_allclose(focal_weights(right, counts, 0.5)[:2], [[0.75**0.5], [0.5**0.5]])


def test_copies_share_by_hand():
    # Three right rows, 1/4 each; two take one path. Of u / 2, u / 2 and u of 1/4 each, the sum 3/4
    # is kept by u = 3/2: 3/16, 3/16 and 3/8.
    A = np.array([[1 / 4, 1 / 4, 1 / 4, -3 / 4]])
    right, path = bools([T, T, T, F]), texts(["ab", "ab", "ba", "ab"])
    np.testing.assert_allclose(path_weights(A, right, path), [[3 / 4, 3 / 4, 3 / 2, 1]])
    assert repeated_share(A, right, path) == pytest.approx(2 / 3)
    assert repeated_share(A * path_weights(A, right, path), right, path) == pytest.approx(1 / 2)
    # None is a path of its own, not the same for two rows; no copies: exactly as it was.
    for others in ([None, None, "ba", None], ["a", "b", "c", "a"]):
        assert (path_weights(A, right, texts(others)) == 1).all()
    assert repeated_share(A, right, texts([None, None, "ba", None])) == 0
    # All of one path: nobody is rarer than the others.
    np.testing.assert_array_equal(path_weights(A, right, texts(["a"] * 4)), [[1, 1, 1, 1]])
    # A group whose rows have no advantage, and one without right rows.
    zero = np.array([[0.0, 0, 0, 0], [-0.5, 0.5, 0, 0]])
    some = bools([T, T, T, T], [F, F, F, F])
    assert (path_weights(zero, some, texts(["a"] * 4, ["a"] * 4)) == 1).all()


def test_a_right_row_below_the_mean_is_left_alone():
    # Rewards in between: the third row is right and has less than the mean. It counts as a copy.
    A = np.array([[0.5, 0.25, -0.25, -0.5]])
    got = path_weights(A, bools([T, T, T, F]), texts(["a", "b", "a", "c"]))
    # 0.5 u / 2 + 0.25 u = 0.75: u = 1.5.
    np.testing.assert_allclose(got, [[0.75, 1.5, 1, 1]])


def test_rarity_by_hand():
    score = np.array([[-0.1, -0.5, -0.3, -0.9]])
    np.testing.assert_allclose(rarity(score, bools([T, T, T, F])), [[-0.2, 0.2, 0, 0]], atol=1e-15)
    assert (rarity(score, bools([T, F, F, F])) == 0).all()  # one right row is left alone
    assert (rarity(score, bools([F, F, F, F])) == 0).all()
    # A row whose log-prob is not known is in no mean; then there may be one left.
    score[0, 2] = NAN
    np.testing.assert_allclose(rarity(score, bools([T, T, T, F])), [[-0.2, 0.2, 0, 0]], atol=1e-15)
    score[0, 1] = NAN
    assert (rarity(score, bools([T, T, T, F])) == 0).all()
    # Equal scores give exactly 0, where their mean would round.
    equal = np.full((1, 4), -0.1)
    assert np.any(equal[0, :3].sum() / 3 != -0.1)  # the trap is real
    assert (rarity(equal, bools([T, T, T, F])) == 0).all()


def test_random_groups_row_by_row():
    rng = np.random.default_rng(1)
    right, A = rng.random((30, 5)) < 0.6, rng.normal(size=(30, 5))
    path = rng.choice(np.array(["a", "b", "c", None], object), size=(30, 5))
    score = np.where(rng.random((30, 5)) < 0.1, np.nan, rng.normal(size=(30, 5)))
    got, moved = A * path_weights(A, right, path), rarity(score, right)
    for g in range(30):
        rows = [i for i in range(5) if right[g, i] and A[g, i] > 0]
        share = {
            i: A[g, i] / max(sum(right[g, j] and path[g, j] == path[g, i] for j in range(5)), 1)
            if path[g, i] is not None
            else A[g, i]
            for i in rows
        }
        kept = sum(A[g, i] for i in rows)
        for i in range(5):
            want = share[i] * kept / sum(share.values()) if i in share else A[g, i]
            assert got[g, i] == pytest.approx(want, rel=1e-12)
        known = [score[g, i] for i in range(5) if right[g, i] and not np.isnan(score[g, i])]
        for i in range(5):
            moves = right[g, i] and not np.isnan(score[g, i]) and len(known) > 1
            want = np.mean(known) - score[g, i] if moves else 0.0
            assert moved[g, i] == pytest.approx(want, abs=1e-12)
    assert np.abs(moved.sum(axis=1)).max() < 1e-12 and np.abs(moved).max() > 0.5
    np.testing.assert_allclose(got.sum(axis=1), A.sum(axis=1), atol=1e-12)


# ---- on rollouts


# RIGHT in the order of its prompt, +7 -9 +1; and two other orders.
SECOND, THIRD = (DOMAIN.demonstration(PROBLEM, np.random.default_rng(s), "mixed") for s in (0, 5))


def credit_of(spec, rows=(RIGHT, RIGHT, SECOND, WRONG_2), reward=(1, 1, 1, 0), **more):
    groups = groups_of(scene(*(row + "#" for row in rows)), list(reward))
    got, metrics = advantages(
        dataclasses.replace(groups, **more.pop("groups", {})),
        played(),
        more.pop("credit", OutcomeCredit()),
        spec,
        max_new_tokens=16,
        **more,
    )
    return np.asarray(got), metrics


def test_the_orders_are_three():
    orders = {DOMAIN.solution_path(PROBLEM, text) for text in (RIGHT, SECOND, THIRD)}
    assert len(orders) == 3 and None not in orders


def test_off_it_is_what_it_was_to_the_bit():
    got, metrics = credit_of(AdvantageSpec())
    assert metrics == {} and AdvantageSpec().switched == ()
    np.testing.assert_array_equal(got, group_advantages(np.array([1, 1, 1, 0.0]), 4))
    # A schedule without pass_k is no switch.
    assert AdvantageSpec(pass_k_schedule="cosine", std=True).switched == ()


def test_unique_reads_the_rows_and_asks_the_domain():
    got, metrics = credit_of(AdvantageSpec(unique=True))
    np.testing.assert_allclose(got, [3 / 16, 3 / 16, 3 / 8, -3 / 4])
    assert got.dtype == np.float32
    assert metrics["advantage/repeated_share"] == pytest.approx(2 / 3)
    assert metrics["advantage/repeated_share_after"] == pytest.approx(1 / 2)
    assert metrics["advantage/no_path"] == 0
    # Verified, with a wrong line: right rows without a path share with nobody.
    lucky = "+778\n-988\n+198"
    got, metrics = credit_of(AdvantageSpec(unique=True), (lucky, lucky, RIGHT, WRONG_2))
    np.testing.assert_allclose(got, [1 / 4, 1 / 4, 1 / 4, -3 / 4])
    assert metrics["advantage/no_path"] == 2


def test_smoothing_by_hand():
    # Every row has the log-probs -0.07 to -0.21 of 15 tokens: the same mean, so nothing moves.
    got, metrics = credit_of(AdvantageSpec(smoothing=0.5))
    np.testing.assert_array_equal(got, [0.25, 0.25, 0.25, -0.75])
    assert metrics["advantage/smoothed_rows"] == 0
    batch = scene(RIGHT + "#", RIGHT + "#", SECOND + "#", WRONG_2 + "#")
    score = np.array([-0.2, -0.4, -0.9, -2.0], np.float32)
    logp = jnp.where(batch.owner_BT == 2, jnp.asarray(score)[:, None], 0.0)
    # The mean of the three is -0.5: -0.3, -0.1 and +0.4, times beta.
    got, metrics = credit_of(
        AdvantageSpec(smoothing=0.5), groups={"rollout": batch.replace(logp_BT=logp)}
    )
    np.testing.assert_allclose(got, [0.10, 0.20, 0.45, -0.75], rtol=1e-6)
    assert metrics["advantage/smoothed_rows"] == 3
    assert metrics["advantage/smoothing_size"] == pytest.approx(0.4 / 3)
    # A demonstration is nobody's sample: it is neither moved nor in the mean, -0.3 then.
    got, _ = credit_of(
        AdvantageSpec(smoothing=0.5),
        groups={"rollout": batch.replace(logp_BT=logp), "own_B": np.array([T, T, F, T])},
    )
    np.testing.assert_allclose(got, [0.20, 0.30, 0.25, -0.75], rtol=1e-6)
    # A group of right rows alone: there is something to learn now.
    got, _ = credit_of(
        AdvantageSpec(smoothing=1.0),
        (RIGHT, RIGHT, SECOND, THIRD),
        (1, 1, 1, 1),
        groups={"rollout": batch.replace(logp_BT=logp)},
    )
    np.testing.assert_allclose(got, score.mean() - score, rtol=1e-5)
    # An unknown log-prob is counted.
    lost = logp.at[1, 9].set(NAN)
    got, metrics = credit_of(
        AdvantageSpec(smoothing=0.5), groups={"rollout": batch.replace(logp_BT=lost)}
    )
    np.testing.assert_allclose(got, [0.25 - 0.175, 0.25, 0.25 + 0.175, -0.75], rtol=1e-6)
    assert metrics["advantage/smoothing_unknown"] == 1


def test_a_rescued_row_has_the_score_of_its_own_tokens():
    """+777 and the tail are the policy's, the line between the teacher's, whose log-probs (0, by a
    writer that is sure) are left out."""
    final = run(scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#"), [1, 0, 0, 1]).rollout
    owner, length = np.asarray(final.owner_BT)[1], int(final.length_B[1])
    assert "".join("qpt"[o - 1] for o in owner[:length]) == "q" * 7 + "p" * 5 + "t" * 5 + "p" * 5
    logp = np.asarray(final.logp_BT).copy()
    logp[1, 7:12], logp[1, 12:17], logp[1, 17:22] = -0.2, NAN, -0.6
    got = own_logprob(final.replace(logp_BT=jnp.asarray(logp)))
    assert got[1] == pytest.approx(-0.4)
    assert got[0] == pytest.approx(np.mean(-(np.arange(15) + 7.0) / 100))
    nobody = final.replace(owner_BT=jnp.where(final.owner_BT == 2, 3, final.owner_BT))
    assert np.isnan(own_logprob(nobody)).all()  # the policy wrote nothing


def test_weights_of_right_rows_by_hand():
    got, metrics = credit_of(AdvantageSpec(positive_weight=0.5))
    np.testing.assert_array_equal(got, [0.125, 0.125, 0.125, -0.75])
    assert metrics == {"advantage/positive_share": pytest.approx(1 / 3)}
    # It goes by the advantage: partial credit above the mean, 0.4, is weighed too.
    got, _ = credit_of(AdvantageSpec(positive_weight=0.5), reward=(1, 0.6, 0, 0))
    np.testing.assert_allclose(got, [0.3, 0.1, -0.4, -0.4], rtol=1e-6)
    got, _ = credit_of(AdvantageSpec(positive_weight=0.0))
    np.testing.assert_array_equal(got, [0, 0, 0, -0.75])
    got, _ = credit_of(AdvantageSpec(focal=1.0))
    np.testing.assert_array_equal(got, [0.0625, 0.0625, 0.0625, -0.75])
    # A row that could not be judged is in no share: two of three.
    got, _ = credit_of(AdvantageSpec(focal=1.0), reward=(1, 1, NAN, 0))
    np.testing.assert_allclose(got, [1 / 9, 1 / 9, 0, -2 / 3], rtol=1e-6)
    # Nor is one that is left out, whatever its reward.
    left_out = {"include_B": np.array([T, T, F, T])}
    got, _ = credit_of(AdvantageSpec(focal=1.0), groups=left_out)
    np.testing.assert_allclose(got, [1 / 9, 1 / 9, 0, -2 / 3], rtol=1e-6)


def test_pass_k_goes_over_into_pass_1():
    rows, reward = (RIGHT, WRONG_2, WRONG_3, WRONG_2), (1, 0, 0, 0)
    of_2, of_1 = np.array([3, -1, -1, -1]) / 6, np.array([3, -1, -1, -1]) / 4
    for schedule, done, share in (
        ("linear", 0.0, 1.0),
        ("linear", 0.25, 0.75),
        ("linear", 1.0, 0.0),
        ("cosine", 0.25, (1 + math.cos(math.pi / 4)) / 2),
        ("constant", 0.25, 1.0),
    ):
        spec = AdvantageSpec(pass_k=2, pass_k_schedule=schedule)
        got, metrics = credit_of(spec, rows, reward, done=done)
        np.testing.assert_allclose(got, share * of_2 + (1 - share) * of_1, rtol=1e-6)
        assert metrics["advantage/pass_k_share"] == pytest.approx(share)
        assert metrics["advantage/pass_k_zero_share"] == 0
    # By verdict: a reward in between is as wrong as another, and has its part when k is 1 again.
    part = {"reward_B": np.array([1, 0.5, 0, 0], np.float32), "right_B": np.array([T, F, F, F])}
    got, _ = credit_of(AdvantageSpec(pass_k=2), rows, reward, groups=part)
    np.testing.assert_allclose(got, of_2, rtol=1e-6)
    got, _ = credit_of(AdvantageSpec(pass_k=2), rows, reward, groups=part, done=1.0)
    np.testing.assert_allclose(got, [0.625, 0.125, -0.375, -0.375])
    # Three of four are right: nothing to learn about pairs.
    got, metrics = credit_of(AdvantageSpec(pass_k=2))
    assert (got == 0).all() and metrics["advantage/pass_k_zero_share"] == 1
    assert metrics["advantage/positive_share"] == 0


def test_the_switches_go_one_after_the_other():
    """1/4 each; times 1 - 3/4 (focal) and 1/2: 1/32; copies share 3/32: 3/128, 3/128, 3/64; then
    the log-probs, whose size no weight changes."""
    batch = scene(RIGHT + "#", RIGHT + "#", SECOND + "#", WRONG_2 + "#")
    score = jnp.array([-0.2, -0.4, -0.9, -2.0])[:, None]
    spec = AdvantageSpec(focal=1.0, positive_weight=0.5, unique=True, smoothing=0.1)
    assert spec.switched == ("focal", "positive_weight", "unique", "smoothing")
    rollout = batch.replace(logp_BT=jnp.where(batch.owner_BT == 2, score, 0.0))
    got, _ = credit_of(spec, groups={"rollout": rollout})
    np.testing.assert_allclose(
        got, [3 / 128 - 0.03, 3 / 128 - 0.01, 3 / 64 + 0.04, -0.75], rtol=1e-5
    )


def test_with_step_scores_the_switches_change_the_outcomes_part():
    plain, _ = credit_of(AdvantageSpec(), credit=SummedSteps())
    outcome, _ = credit_of(AdvantageSpec(), credit=SummedSteps(process_weight=0.0))
    got, metrics = credit_of(AdvantageSpec(positive_weight=0.5), credit=SummedSteps())
    want = plain - np.where(outcome > 0, outcome / 2, 0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert "advantage/positive_share" in metrics and not np.allclose(got, plain)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"smoothing": -0.1}, "advantage.smoothing = -0.1 must be a number of 0 or more"),
        ({"smoothing": NAN}, "advantage.smoothing = nan must be a number of 0 or more"),
        ({"focal": -1.0}, "advantage.focal = -1.0 must be a number of 0 or more"),
        ({"focal": math.inf}, "advantage.focal = inf must be a number of 0 or more"),
        ({"positive_weight": -1}, "advantage.positive_weight = -1 must be a number of 0 or more"),
        ({"pass_k": 0}, "advantage.pass_k = 0 must be at least 1"),
        (
            {"pass_k_schedule": "step"},
            "advantage.pass_k_schedule = 'step' is unknown; one of linear, cosine, constant",
        ),
    ],
)
def test_bad_settings_are_named_in_one_line(wrong, message):
    with pytest.raises(ValueError) as error:
        AdvantageSpec(**wrong)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_path_of_one_group_is_no_copy_of_anothers():
    A = np.array([[0.5, 0.5, -0.5, -0.5], [0.5, 0.5, -0.5, -0.5]])
    right = bools([T, T, F, F], [T, T, F, F])
    path = texts(["a", "b", "a", "a"], ["a", "a", "b", "b"])
    np.testing.assert_array_equal(path_weights(A, right, path), np.ones((2, 4)))
