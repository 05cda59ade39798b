"""The arithmetic of the table, on batches that were counted by hand."""

import dataclasses

import numpy as np
import pytest

from scope_jax.prospect.figures import Places, Precision, figures, places
from scope_jax.prospect.measure import UNCHECKED, Batch, FirstErrors
from scope_jax.prospect.table import table


def rows(*of: tuple[int, int, int], scored: bool = True, ended: bool = True) -> FirstErrors:
    """Rows of (steps, first error found, true first error)."""
    steps, found, true = (
        (np.array(x, int) for x in zip(*of, strict=True)) if of else 3 * (np.zeros(0, int),)
    )
    many = np.ones(len(of), bool)
    return FirstErrors(steps, found, true, many & scored, many & ended)


def batch(right, failed, failures: FirstErrors, asked: FirstErrors | None, **metrics) -> Batch:
    """A batch of groups of four rows; metrics with "__" for "/"."""
    named = {name.replace("__", "/"): float(value) for name, value in metrics.items()}
    return Batch(4, np.array(right, bool), np.array(failed, bool), failures, asked, named)


def two_batches() -> list[Batch]:
    """Four groups of four rows: one all failed, one all right, two mixed, of which one has a row
    that could not be judged."""
    one = batch(
        [0, 0, 0, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0, 0],
        # Exact; a step too early; a step too late; none found.
        rows((5, 2, 2), (5, 0, 1), (4, 3, 2), (3, 3, 1)),
        # Left alone, a false alarm, and two right by luck: their steps are wrong.
        rows((3, 3, 3), (3, 1, 3), (4, 4, 0), (4, 0, 0)),
        scope__selected=2,
        scope__corrected=1,
        scope__accepted=1,
        scope__leaks=1,
        advantage__zero_group_share=1.0,
        advantage__zero_group_share_after=0.5,
        cost__rollout_tokens=100,
        cost__tail_tokens=7,
        cost__teacher_tokens=5,
        cost__prm_tokens=60,
        time__rollout=9.0,
        time__prm=9.0,
        time__correct=9.0,
    )
    two = batch(
        [1, 0, 0, 0, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0, 1, 0],
        FirstErrors.joined(
            [
                rows((4, 0, 0), (10, 9, 9)),
                rows((2, 1, 1), ended=False),
                rows((4, 4, 4), scored=False),  # no wrong step, and no scores
            ]
        ),
        rows((2, 2, 2), (2, 2, 2), (2, 2, 2)),
        scope__selected=1,
        scope__corrected=0,
        scope__accepted=0,
        scope__teacher_failed=1,
        scope__teacher_failed_too_long=1,
        advantage__zero_group_share=0.0,
        advantage__zero_group_share_after=0.0,
        cost__rollout_tokens=60,
        cost__tail_tokens=3,
        cost__teacher_tokens=5,
        cost__prm_tokens=40,
        time__rollout=2.0,
        time__prm=0.5,
        time__correct=1.5,
    )
    return [one, two]


def test_the_policy_by_itself():
    policy = figures(two_batches(), localiser="prm").policy
    assert (policy.problems, policy.group) == (4, 4)
    assert (policy.all_failed, policy.mixed, policy.all_right) == (1, 2, 1)
    assert (policy.failed, policy.right, policy.not_judged) == (8, 7, 1)
    assert policy.pass_1 == pytest.approx((0 + 1 + 1 / 4 + 2 / 4) / 4)
    assert policy.pass_group == 3 / 4
    # Of 0, 1, 1, 1: the sample deviation is 1/2, over the root of 4.
    assert policy.pass_group_error == pytest.approx(0.25)


def test_where_the_first_errors_lie():
    found = figures(two_batches(), localiser="prm")
    # 2/5, 0/5, 3/4, 0/4, 9/10 by the PRM; 2/5, 1/5, 2/4, 1/3, 0/4, 9/10 by the check; the row
    # that was cut off is in neither.
    assert found.found == Places(rows=5, none=2, first_step=2, parts=(2, 0, 1, 1, 1))
    assert found.checked == Places(rows=6, none=1, first_step=1, parts=(1, 2, 2, 0, 1))


def test_the_parts_have_no_rounding():
    every = places(np.arange(100), np.full(100, 100))
    assert every.parts == (20, 20, 20, 20, 20) and every.first_step == 1
    # 3 of 5 steps precede: 3/5 as a float is less than three times 1/5.
    assert places(np.array([3]), np.array([5])).parts == (0, 0, 0, 1, 0)
    assert places(np.array([0, 4]), np.array([0, 4])) == Places(0, 2, 0, (0, 0, 0, 0, 0))


def test_the_localiser_against_the_check():
    assert figures(two_batches(), localiser="prm").precision == Precision(
        errors=6, exact=3, earlier=1, later=1, missed=1, clean=5, false_alarms=1
    )


def test_the_way_of_the_failures():
    rescues = figures(two_batches(), localiser="prm").rescues
    assert (rescues.cut_off, rescues.not_found, rescues.not_scored) == (1, 2, 1)
    assert (rescues.too_early, rescues.eligible) == (2, 3)
    assert rescues.cut_off + rescues.not_found + rescues.too_early + rescues.eligible == 8
    assert (rescues.selected, rescues.corrected, rescues.rescued) == (3, 1, 1)
    assert rescues.refused == {"leak": 1, "teacher_too_long": 1}
    deeper = figures(two_batches(), localiser="prm", good_steps=3).rescues
    assert (deeper.too_early, deeper.eligible) == (3, 2)


def test_the_way_with_own_tries_candidates_and_groups_that_are_left_alone():
    one, two = two_batches()
    one.metrics.update({"scope/self_accepted": 1.0, "cost/self_tokens": 30.0})
    one.metrics.update({"scope/corrected": 2.0, "scope/accepted": 2.0})
    # Of its four failures two are in a group that may be corrected.
    one = dataclasses.replace(one, failures=one.failures.take(np.arange(2)))
    found = figures([one, two], localiser="prm", candidates=3)
    rescues = found.rescues
    assert (rescues.elsewhere, rescues.cut_off, rescues.not_found) == (2, 1, 1)
    assert (rescues.too_early, rescues.eligible) == (2, 2)
    # Three rows were chosen, one of which the policy repaired: three steps for each of the others.
    assert (rescues.selected, rescues.by_policy, rescues.steps) == (3, 1, 6)
    assert (rescues.corrected, rescues.rescued, found.cost.self_tokens) == (2, 2, 30)
    lines = {
        line[:56].strip(): line[56:].split(maxsplit=2) for line in table(found).splitlines() if line
    }
    assert lines["in groups that are left alone (method.select.groups)"] == ["25", "%", "2 of 8"]
    assert lines["the teacher's steps that may be used"] == ["33", "%", "2 of 6"]
    assert lines["rescued: right in the end (salvage rate)"] == ["67", "%", "2 of 3"]
    assert lines["of these, by the policy itself"] == ["50", "%", "1 of 2"]
    assert lines["refused: the teacher's step was too long"] == ["17", "%", "1 of 6"]
    assert lines["the policy's own tries"] == ["15"]  # of each of two batches
    # 10 of the teacher, 10 of tails and 30 of tries, for two rows.
    assert lines["a rescued row, written"][0] == "25"


def test_cost_and_dead_groups():
    found = figures(two_batches(), localiser="prm")
    cost = found.cost
    assert (found.dead_before, found.dead_after) == (0.5, 0.25)
    assert (cost.rollout_tokens, cost.tail_tokens, cost.teacher_tokens) == (160, 10, 10)
    assert cost.prm_tokens == 100
    # The first batch compiles: its seconds count only where there is no other.
    assert not cost.compiling
    assert cost.seconds == {"rollout": 2.0, "verify": 0.0, "prm": 0.5, "correct": 1.5}
    alone = figures(two_batches()[:1], localiser="prm").cost
    assert alone.compiling and alone.seconds["rollout"] == 9.0


def test_a_task_that_checks_no_steps():
    batches = [
        batch(
            [0, 0, 1, 1],
            [1, 1, 0, 0],
            rows((4, 1, UNCHECKED), (4, 4, UNCHECKED)),
            FirstErrors.joined([rows((4, 2, UNCHECKED)), rows((4, 4, UNCHECKED), scored=False)]),
            advantage__zero_group_share=0,
            advantage__zero_group_share_after=0,
        )
    ]
    found = figures(batches, localiser="prm")
    assert found.checked is None and found.precision is None
    assert (found.right_asked, found.right_flagged) == (1, 1)
    assert found.found == Places(rows=1, none=1, first_step=0, parts=(0, 1, 0, 0, 0))


def test_the_localiser_is_the_check():
    found = figures(two_batches(), localiser="oracle")
    assert found.checked is None and found.precision is None


TABLE = """\
SCOPE before training: 4 problems x 4 rollouts (2 batches, seed 3); nothing was learned

the policy by itself                                     share                 of
---------------------------------------------------------------------------------
  groups all failed                                       25 %             1 of 4
  groups mixed                                            50 %             2 of 4
  groups all right                                        25 %             1 of 4
  pass@1                                                 0.438            ± 0.213
  pass@4                                                 0.750            ± 0.250
  rollouts failed                                         50 %            8 of 16
  rollouts not judged, in no rate but as not right         6 %            1 of 16

where failures first err (those not cut off)        by the PRM  by the step check
---------------------------------------------------------------------------------
  in the first step: no good one before                   40 %               17 %
  after 0 to 20 % of the steps                            40 %               17 %
  after 20 to 40 % of the steps                            0 %               33 %
  after 40 to 60 % of the steps                           20 %               33 %
  after 60 to 80 % of the steps                           20 %                0 %
  after 80 to 100 % of the steps                          20 %               17 %
  failures with an error                                     5                  6
  failures without one                                       2                  1

the PRM against the step check, on failures              share                 of
---------------------------------------------------------------------------------
  first error found exactly                               50 %             3 of 6
  too early                                               17 %             1 of 6
  too late: the row keeps its error                       17 %             1 of 6
  none found                                              17 %             1 of 6
  false alarms, on right rows without a wrong step        20 %             1 of 5

the way of the failures                                  share                 of
---------------------------------------------------------------------------------
  cut off by length                                       12 %             1 of 8
  no error found                                          25 %             2 of 8
  not scored, among those without an error found          12 %             1 of 8
  fewer than 1 good step before it                        25 %             2 of 8
  may be rescued                                          38 %             3 of 8
  chosen by method.select                                 38 %             3 of 8
  with a teacher's step that may be used                  33 %             1 of 3
  rescued: right in the end (salvage rate)                33 %             1 of 3
  refused: the teacher's step gave the answer away        33 %             1 of 3
  refused: the teacher's step was too long                33 %             1 of 3

groups without an advantage                             before   after the rescue
---------------------------------------------------------------------------------
  share                                                   50 %               25 %

what a batch takes                                      tokens            seconds
---------------------------------------------------------------------------------
  the policy's rollouts                                     80               2.00
  their verdicts, and those of the tails                                     0.00
  the PRM, read                                             50               0.50
  the teacher's steps                                        5
  the tails, and seconds of both                             5               1.50
  a rescued row, written                                    20              4.000
  a rescued row, read by the PRM                           100
  a right row of the rollouts                               23              0.571"""


def test_the_whole_table():
    assert table(figures(two_batches(), localiser="prm", seed=3)) == TABLE
