"""What the report is told of each attempted row, word by word."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from support.hand_made import (
    IDLE,
    LAST,
    PRM,
    RIGHT,
    SAMPLE,
    SPEC,
    STEP,
    WITH_4,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    bigram,
    fours_are_wrong,
    groups_of,
    played,
    scene,
)

from scope_jax.correction import CorrectionSpec, choose, correct, finish, locate
from scope_jax.correction.gallery import gallery_items
from scope_jax.correction.locate import Located
from scope_jax.rollout import SampleSpec
from scope_jax.tasks import Arithmetic
from scope_jax.teachers.base import Corrected, Job, write_steps


def items(
    *rows: str,
    spec: CorrectionSpec = SPEC,
    change: Callable[[Located], Located] = lambda located: located,
    **parts: Any,
) -> list[dict[str, Any]]:
    """The items of a group whose first and last rows are right; the others failed. `change`: of
    what was located."""
    groups = groups_of(scene(RIGHT + "#", *(row + "#" for row in rows), RIGHT + "#"), [1, 0, 0, 1])
    played_by = played(**parts)
    located = change(locate(groups, groups.failed_B, played_by))
    chosen = choose(located, groups, spec.select, 0)
    return gallery_items(finish(correct(chosen, groups, played_by, spec), played_by, spec))


def step(
    text: str,
    owner: str,
    status: str,
    score: float | None = None,
    correct: bool | None = None,
) -> dict[str, Any]:
    return {"text": text, "score": score, "owner": owner, "status": status, "correct": correct}


def test_a_rescue_whole():
    """Kept steps, the wrong one, what was thrown away, the teacher's, and the policy's tail."""
    (item,) = items(WRONG_2, WRONG_1)
    assert item == {
        "prompt": "+7-9+1=",
        "answer": "98",
        "steps": [
            step("+777\n", "policy", "kept", 1.0, True),
            step("-988\n", "policy", "wrong", 0.0, False),
            step("+199", "policy", "discarded", 0.0, False),
            step("-987\n", "teacher", "corrected"),
            step("+198", "policy", "tail"),
        ],
        "first_error": 1,
        "threshold": 0.5,
        "verdict_before": False,
        "verdict_after": True,
        "not_rescued": None,
        "refused": None,
    }


def test_rows_come_in_the_order_of_the_attempts():
    spec = dataclasses.replace(SPEC, select=dataclasses.replace(SPEC.select, keep_failure=False))
    found = items(WRONG_3, WRONG_2, spec=spec)
    assert [item["first_error"] for item in found] == [2, 1]
    last = [(s["text"], s["status"]) for s in found[0]["steps"]]
    # The last step is wrong, so nothing is thrown away.
    assert last[:3] == [("+777\n", "kept"), ("-987\n", "kept"), ("+190", "wrong")]


def test_a_tail_that_fails_is_shown_with_its_verdict():
    (item,) = items(WRONG_2, WRONG_1, policy=bigram("\n+190#"))
    assert item["verdict_after"] is False and item["not_rescued"] == "tail_wrong"
    assert item["steps"][-1] == step("+190", "policy", "tail")


def test_without_a_tail_there_is_no_verdict():
    spec = dataclasses.replace(SPEC, tail="none", accept="unverified")
    (item,) = items(WRONG_2, WRONG_1, spec=spec)
    assert item["verdict_after"] is None and item["not_rescued"] is None
    assert [s["status"] for s in item["steps"]] == ["kept", "wrong", "discarded", "corrected"]


def test_a_tail_by_the_teacher_is_the_teachers():
    (item,) = items(WRONG_2, WRONG_1, spec=dataclasses.replace(SPEC, tail="teacher"), policy=IDLE)
    tails = [s for s in item["steps"] if s["status"] == "tail"]
    assert tails and {s["owner"] for s in tails} == {"teacher"}


def test_a_step_that_was_refused_is_not_shown():
    """The teacher's step has the answer in it: nothing comes after what the policy wrote, and what
    it was stands by itself."""
    (item,) = items(WRONG_2, WRONG_1, teacher=LAST)
    assert [s["status"] for s in item["steps"]] == ["kept", "wrong", "discarded"]
    assert item["verdict_after"] is False
    assert (item["not_rescued"], item["refused"]) == ("leak", "+198")


def short(most: int) -> SampleSpec:
    """Room for this many tokens: 5 are kept, and 5 are the teacher's."""
    return dataclasses.replace(SAMPLE, max_new_tokens=most)


class Silent:
    """A teacher that has a reason of its own."""

    generator = None

    def correct(self, job: Job) -> Corrected:
        return write_steps(job, ["on_strike"] * len(job.asks), STEP)


class NotSure(Arithmetic):
    """A verifier that cannot judge what ends with 8."""

    def verify(self, problems: Any, completions: Any) -> list[bool | None]:
        return [None if text.endswith("8") else False for text in completions]


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        ("teacher_on_strike", {"teacher": Silent()}),
        ("incomplete_step", {"teacher": bigram("\n--")}),
        ("tail_cut_off", {"policy": IDLE}),
        ("tail_cut_off", {"sample": short(14)}),  # "+198" is right, and its end has no room
        ("no_room", {"sample": short(10)}),
        ("tail_not_judged", {"domain": NotSure(start="zero")}),
        ("tail_wrong", {"policy": bigram("\n+190#")}),
    ],
)
def test_a_row_that_is_not_accepted_says_why(reason: str, parts: dict[str, Any]):
    (item,) = items(WRONG_2, WRONG_1, **parts)
    assert item["not_rescued"] == reason and item["verdict_after"] is False


def test_scores_are_those_of_the_process_reward_model():
    (item,) = items(WITH_4, WRONG_1, localiser=PRM, prm=fours_are_wrong())
    scores = [s["score"] for s in item["steps"]]
    # Logit 3 up to the first 4, and far below 0 behind it; what came in its place has no score.
    assert scores[:3] == pytest.approx([0.9526, 0.0011, 0.0011], abs=1e-4) and scores[3:] == [
        None,
        None,
    ]
    assert item["threshold"] == PRM.threshold
    # The check says the same of these steps, and nothing of the others.
    assert [s["correct"] for s in item["steps"]] == [True, False, False, None, None]


def test_a_step_that_was_not_scored_has_no_score():
    def last_step_unknown(located: Located) -> Located:
        valid = located.valid_RJ.copy()
        valid[:, 2] = False
        return dataclasses.replace(located, valid_RJ=valid)

    (item,) = items(WRONG_2, WRONG_1, change=last_step_unknown)
    assert [s["score"] for s in item["steps"]] == [1.0, 0.0, None, None, None]


class Unchecked(Arithmetic):
    """A domain that cannot check steps."""

    def check_steps(self, problem: Any, steps: Any) -> None:
        return None


def test_without_a_check_no_step_is_called_right_or_wrong():
    (item,) = items(
        WITH_4, WRONG_1, localiser=PRM, prm=fours_are_wrong(), domain=Unchecked(start="zero")
    )
    assert {s["correct"] for s in item["steps"]} == {None}
