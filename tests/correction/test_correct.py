"""Stage 3, `correct`: one step of the teacher after the cut, refused where it leaks."""

import dataclasses

import numpy as np
import pytest
from support.hand_made import (
    IDLE,
    LAST,
    PAD,
    POLICY,
    PRM,
    PROBLEM,
    PROMPT,
    RIGHT,
    SPEC,
    TEACHER,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    bigram,
    fours_are_wrong,
    groups_of,
    played,
    run,
    same,
    scene,
    text,
)

from scope_jax.correction import SelectSpec, choose, correct, locate
from scope_jax.tasks import Arithmetic


class Coloned(Arithmetic):
    """Signed terms whose lines may end with a colon too."""

    boundary = "[:\\n]"

    def answer_of(self, completion):
        return super().answer_of(completion.replace(":", "\n"))

    def answer_marker(self, step):
        return super().answer_marker(step.replace(":", "\n"))


def test_a_pattern_divides_the_rows_and_ends_the_teachers_step():
    batch = scene("+777:-987:+198#", "+777:-984:+195#", "+777\n-984\n+195#", "+777:-987:+198#")
    domain = Coloned(start="zero")
    both = dataclasses.replace(SPEC, select=SelectSpec(per_group=2, keep_failure=False))
    rest = {
        "localiser": PRM,
        "prm": fours_are_wrong(),
        "policy": bigram(":+198#"),
        "domain": domain,
    }
    result = run(batch, [1, 0, 0, 1], both, teacher=bigram("\n:-987:"), **rest)
    # The teacher goes on and on; what it wrote past its first step is gone, and the policy goes on
    # from there.
    final = result.rollout
    assert text(final, 1) == "+777:" + "-987:" + "+198#"
    assert final.owner_BT[1].tolist() == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [
        POLICY
    ] * 5 + [PAD]
    assert result.reward_B[1] == 1 and result.metrics["scope/corrected"] == 2
    assert [s["text"] for s in result.gallery[0]["steps"]] == [
        "+777:",
        "-984:",
        "+195",
        "-987:",
        "+198",
    ]
    # A row of lines is divided at the newlines, as before.
    assert [s["text"] for s in result.gallery[1]["steps"]][:3] == ["+777\n", "-984\n", "+195"]
    batch = scene("+777:-987:+198#", "+777:-984:+195#", "+777:-987:+198#", "+777:-987:+198#")
    endless = run(batch, [1, 0, 1, 1], both, teacher=bigram(":--"), **rest)
    assert endless.metrics["scope/corrected"] == 0 and same(endless.rollout, batch, range(4))


def test_a_teacher_that_gives_the_answer_away_is_refused():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(
        batch, [1, 0, 0, 1], teacher=LAST
    )  # writes the final line where the second was wanted
    assert (
        result.metrics["scope/leaks"],
        result.metrics["scope/corrected"],
        result.metrics["scope/accepted"],
    ) == (1, 0, 0)
    assert result.metrics["scope/selected"] == 1 and result.metrics["scope/accepted_share"] == 0
    assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [1, 0, 0, 1]
    assert result.gallery[0]["verdict_after"] is False
    assert [s["owner"] for s in result.gallery[0]["steps"]] == ["policy"] * 3


class Unmarked(Arithmetic):
    """Signed terms of which no line looks like an answer."""

    def answer_marker(self, step):
        return False


@pytest.mark.parametrize("rows, leaks", [((WRONG_2, WRONG_1), 1), ((WRONG_3, WRONG_1), 0)])
def test_a_teacher_that_ends_the_solution_before_the_last_step_is_refused(rows, leaks):
    """Whatever its step looks like: nothing would be left for the policy to write."""
    batch = scene(RIGHT + "#", *(row + "#" for row in rows), RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], teacher=LAST, domain=Unmarked(start="zero"))
    assert result.metrics["scope/leaks"] == leaks
    assert result.metrics["scope/corrected"] == 1 - leaks


class ByLines(Arithmetic):
    """Steps that a boundary of a known name divides."""

    boundary = "lines"


@pytest.mark.parametrize(
    "domain", [Arithmetic(start="zero"), ByLines(start="zero")], ids=["separator", "boundary"]
)
@pytest.mark.parametrize(
    "chain", ["\n--", "\n\n", "\n#"], ids=["never ends", "separator only", "end token only"]
)
def test_an_incomplete_teacher_step_is_refused(chain, domain):
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], teacher=bigram(chain), domain=domain)
    assert (
        result.metrics["scope/incomplete_steps"],
        result.metrics["scope/corrected"],
        result.metrics["scope/leaks"],
    ) == (1, 0, 0)
    assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [1, 0, 0, 1]


def test_a_corrected_last_step_ends_the_solution():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], teacher=LAST, policy=IDLE)
    assert text(result.rollout, 1) == RIGHT + "#"
    assert result.rollout.owner_BT[1].tolist() == [PROMPT] * 7 + [POLICY] * 10 + [TEACHER] * 5 + [
        PAD
    ]
    assert result.metrics["scope/leaks"] == 0 and result.reward_B.tolist() == [1, 1, 0, 1]


def test_with_no_good_step_asked_for_the_teacher_writes_the_first():
    """good_steps 0: the row is cut to its prompt, and the teacher begins (with -9, which is right
    as well)."""
    batch = scene(RIGHT + "#", WRONG_1 + "#", WRONG_1 + "#", RIGHT + "#")
    select = dataclasses.replace(SPEC.select, good_steps=0, per_group=1)
    spec = dataclasses.replace(SPEC, select=select, tail="none", accept="unverified")
    result = run(batch, [1, 0, 0, 1], spec, teacher=bigram("=-910\n"), policy=IDLE)
    assert result.metrics["scope/eligible"] == 2 and result.metrics["scope/corrected"] == 1
    assert text(result.rollout, 1) == "-910\n" and result.include_B.tolist() == [
        True,
        False,
        True,
        True,
    ]
    assert result.rollout.owner_BT[1].tolist() == [PROMPT] * 7 + [TEACHER] * 5 + [PAD] * 11
    assert same(result.rollout, batch, [0, 2, 3])
    (item,) = result.gallery
    assert (
        item["steps"][0]["text"] == "+778\n"
        and item["steps"][0]["status"] == "wrong"
        and item["first_error"] == 0
    )


# ---- the stage


def corrected(*rows: str, **parts):
    """(the rows, `correct` of their failures)."""
    groups = groups_of(scene(*rows), [1, 0, 0, 1])
    played_by = played(**parts)
    chosen = choose(locate(groups, groups.failed_B, played_by), groups, SPEC.select, 0)
    return groups.rollout, correct(chosen, groups, played_by, SPEC)


def test_cut_rows_literal():
    """One chosen row, cut before its second step, with what a teacher is told; a finished row fills
    the batch, which has room for the two that may be chosen."""
    batch, out = corrected(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    job = out.job
    (ask,) = job.asks
    assert (ask.problem, ask.kept, ask.wrong) == (PROBLEM, ("+777\n",), "-988\n")
    assert not ask.last and ask.row == 1
    assert job.kept_B.tolist() == job.rows.length_B.tolist() == [7 + 5, 7 + 15]
    assert job.limit_B.tolist() == [7 + 16, 7 + 16]
    np.testing.assert_array_equal(job.rows.tokens_BT[0, :12], batch.tokens_BT[1, :12])
    assert not job.rows.tokens_BT[0, 12:].any() and job.rows.finished_B.tolist() == [False, True]


def test_correct_literal():
    _, out = corrected(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    assert out.steps == ["-987\n"] and out.usable_R.tolist() == [True, False]
    assert text(out.rows, 0) == "+777\n-987\n"
    assert out.rows.owner_BT[0].tolist() == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [PAD] * 6
    figures = {name: out.metrics[f"scope/{name}"] for name in ("corrected", "leaks", "selected")}
    assert figures == {"corrected": 1, "leaks": 0, "selected": 1}
    assert out.metrics["cost/teacher_tokens"] == 5


def test_a_refused_step_is_there_and_not_usable():
    _, out = corrected(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#", teacher=LAST)
    assert out.steps == ["+198"] and out.usable_R.tolist() == [False, False]
    assert (out.metrics["scope/leaks"], out.metrics["scope/corrected"]) == (1, 0)


def test_without_a_teacher_nothing_is_corrected():
    with pytest.raises(ValueError, match="the correction needs a teacher"):
        corrected(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#", teacher=None)
