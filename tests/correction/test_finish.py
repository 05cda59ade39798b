"""Stage 4, `finish`: the policy goes on, and the verifier decides."""

import dataclasses

import numpy as np
import pytest
from support.hand_made import (
    BUFFER,
    DOMAIN,
    IDLE,
    LAST,
    PAD,
    POLICY,
    PROMPT,
    RIGHT,
    SAMPLE,
    SPEC,
    TEACHER,
    TOKENIZER,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    bigram,
    groups_of,
    played,
    run,
    same,
    scene,
    text,
)

from scope_jax.correction import choose, correct, finish, locate


def test_a_tail_that_fails_leaves_the_failure():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    wrong = run(batch, [1, 0, 0, 1], policy=bigram("\n+190#"))
    endless = run(
        batch, [1, 0, 0, 1], policy=bigram("\n++"), spec=dataclasses.replace(SPEC, tails=2)
    )
    for result, tries in ((wrong, 1), (endless, 2)):
        assert (result.metrics["scope/corrected"], result.metrics["scope/accepted"]) == (1, 0)
        assert result.metrics["scope/tail_tries"] == tries
        assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [1, 0, 0, 1]
    # The row may hold 16 new tokens in all: 5 kept, 5 by the teacher, 6 in the tail.
    assert [s["text"] for s in endless.gallery[0]["steps"]][-1] == "++++++"


def test_without_tail_the_row_is_not_verified():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(
        batch,
        [1, 0, 0, 1],
        dataclasses.replace(SPEC, tail="none", accept="unverified"),
        policy=IDLE,
    )
    assert text(result.rollout, 1) == "+777\n-987\n" and not bool(result.rollout.finished_B[1])
    assert (
        result.rollout.owner_BT[1].tolist()
        == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [PAD] * 6
    )
    assert result.reward_B.tolist() == [1, 0, 0, 1]
    assert result.include_B.tolist() == [True, False, True, True]
    assert result.gallery[0]["verdict_after"] is None


def test_the_teacher_may_write_the_tail_in_several_tries():
    # Greedy, the teacher ends its line with a newline; sampled, it ends the solution instead in 4
    # of 10 tries.
    short = DOMAIN.make_problem(["+7", "-9"])
    teacher = bigram("\n-987\n")
    teacher.params["head"] = (
        teacher.params["head"].at[TOKENIZER.convert_tokens_to_ids("7"), 0].set(19.9)
    )
    batch = scene("+777\n-987#", "+777\n-988#", "+778\n-988#", "+777\n-987#", problem=short)
    spec = dataclasses.replace(SPEC, tail="teacher", tails=8)
    result = run(batch, [1, 0, 0, 1], spec, teacher=teacher, policy=IDLE, problem=short)
    assert (
        text(result.rollout, 1) == "+777\n" + "-987\n" + "-987#"
    )  # the outcome is right, which is all that is verified
    assert result.rollout.owner_BT[1, :20].tolist() == [PROMPT] * 5 + [POLICY] * 5 + [TEACHER] * 10
    assert result.reward_B.tolist() == [1, 1, 0, 1]
    tries = int(result.metrics["scope/tail_tries"])
    assert 1 <= tries <= 8
    if tries > 1:  # one try less would not have been enough
        fewer = run(
            batch,
            [1, 0, 0, 1],
            dataclasses.replace(spec, tails=tries - 1),
            teacher=teacher,
            policy=IDLE,
            problem=short,
        )
        assert fewer.metrics["scope/accepted"] == 0 and same(fewer.rollout, batch, range(4))


def test_a_teacher_step_that_ends_the_solution_needs_no_tail():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", RIGHT + "#")
    verified = run(batch, [1, 0, 0, 1], teacher=LAST, policy=IDLE)
    assert (
        verified.metrics["cost/tail_tokens"] == 0
    )  # the policy was not asked: a row that ended is not continued
    unverified = run(
        batch,
        [1, 0, 0, 1],
        dataclasses.replace(SPEC, tail="none", accept="unverified"),
        teacher=LAST,
        policy=IDLE,
    )
    assert text(unverified.rollout, 1) == RIGHT + "#" and bool(unverified.rollout.finished_B[1])
    # Whoever asks for no verdict gets none, even where one could be had.
    assert unverified.reward_B.tolist() == [1, 0, 0, 1] and unverified.include_B.tolist() == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(("most", "accepted"), [(15, 1), (14, 0)])
def test_an_accepted_row_may_fill_its_length_to_the_last_token(most, accepted):
    # 5 tokens kept, 5 by the teacher, 5 of the tail, the end token the last of them.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], sample=dataclasses.replace(SAMPLE, max_new_tokens=most))
    assert (result.metrics["scope/corrected"], result.metrics["scope/accepted"]) == (1, accepted)
    assert result.metrics["cost/tail_tokens"] == most - 10
    if accepted:
        assert text(result.rollout, 1) == RIGHT + "#" and result.rollout.length_B[1] == 7 + most
    else:  # "+198" without its end token is right and is not done
        assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [1, 0, 0, 1]


def test_a_parent_that_fills_its_buffer_is_corrected_like_any_other():
    full = "+777\n-988\n+1990#"  # 16 tokens of 16, the last an end token
    batch = scene(RIGHT + "#", full, WRONG_1 + "#", RIGHT + "#")
    assert batch.length_B[1] == BUFFER and bool(batch.finished_B[1])
    result = run(batch, [1, 0, 0, 1])
    assert text(result.rollout, 1) == RIGHT + "#" and result.rollout.length_B[1] == 7 + 15
    assert result.rollout.tokens_BT[1, 22:].tolist() == [0] and result.rollout.owner_BT[
        1, 22:
    ].tolist() == [PAD]
    # Full without an end token: cut off by length, so where it would have gone is not known.
    assert (
        run(
            scene(RIGHT + "#", "+777\n-988\n+19900", WRONG_1 + "#", RIGHT + "#"), [1, 0, 0, 1]
        ).metrics["scope/cut_off"]
        == 1
    )


# ---- the stage


def finished(spec=SPEC, **parts):
    """`finish` of one failure, corrected by the hand-made teacher."""
    groups = groups_of(scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#"), [1, 0, 0, 1])
    played_by = played(**parts)
    chosen = choose(locate(groups, groups.failed_B, played_by), groups, spec.select, 0)
    return finish(correct(chosen, groups, played_by, spec), played_by, spec)


def test_finish_literal():
    attempts = finished()
    assert text(attempts.rows, 0) == RIGHT + "#" and attempts.accepted_R.tolist() == [True, False]
    figures = ("accepted", "accepted_share", "tail_tries")
    assert [attempts.metrics[f"scope/{name}"] for name in figures] == [1, 1.0, 1]
    assert (attempts.metrics["cost/teacher_tokens"], attempts.metrics["cost/tail_tokens"]) == (5, 5)


def test_a_row_that_no_attempt_saved_keeps_the_last_one():
    attempts = finished(dataclasses.replace(SPEC, tails=2), policy=bigram("\n+190#"))
    assert text(attempts.rows, 0) == "+777\n-987\n+190#"
    assert (
        attempts.accepted_R.tolist() == [False, False] and attempts.metrics["scope/tail_tries"] == 2
    )
    assert attempts.metrics["cost/tail_tokens"] == 10


def test_a_step_that_is_refused_gets_no_tail():
    attempts = finished(teacher=LAST)
    assert (
        attempts.accepted_R.tolist() == [False, False] and attempts.metrics["scope/tail_tries"] == 0
    )
    assert text(attempts.rows, 0) == "+777\n+198#"


def test_the_teachers_tail_counts_as_the_teachers_tokens():
    attempts = finished(dataclasses.replace(SPEC, tail="teacher"), policy=IDLE)
    assert attempts.metrics["cost/tail_tokens"] == 0
    assert attempts.metrics["cost/teacher_tokens"] > 5
    assert (np.asarray(attempts.rows.owner_BT)[0, 12:17] == TEACHER).all()
