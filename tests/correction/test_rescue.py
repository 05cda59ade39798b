"""Whole rescues, token by token."""

import dataclasses

import numpy as np
import pytest
from support.hand_made import (
    NAN,
    ORACLE,
    PAD,
    POLICY,
    PRM,
    PROMPT,
    RIGHT,
    SPEC,
    TEACHER,
    WRONG_1,
    WRONG_2,
    fours_are_wrong,
    run,
    same,
    scene,
    text,
)

from scope_jax.correction import CorrectionSpec, SelectSpec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail": "nobody"}, "method.tail = 'nobody' is unknown"),
        ({"accept": "all"}, "method.accept = 'all' is unknown"),
        (
            {"place": "everywhere"},
            (
                "method.place = 'everywhere' is unknown; one of replace_parent,"
                " replace_random_failure, append"
            ),
        ),
        ({"tails": 0}, "method.tails = 0 must be at least 1"),
        ({"rows_at_once": 0}, "method.rows_at_once = 0 must be at least 1, or None for all"),
        ({"tail": "none"}, "set accept to 'unverified'"),
        ({"accept": "unverified"}, "accept 'unverified' is for tail 'none'"),
    ],
)
def test_correction_spec_refuses(settings, message):
    with pytest.raises(ValueError) as caught:
        CorrectionSpec(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_failure_is_rescued_token_by_token():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1])
    final = result.rollout
    assert text(final, 1) == "+777\n" + "-987\n" + "+198#"
    kept, step, tail = 7 + 5, 5, 5
    assert (
        final.owner_BT[1].tolist()
        == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * step + [POLICY] * tail + [PAD] * 1
    )
    assert final.length_B[1] == kept + step + tail and bool(final.finished_B[1])
    # What was kept is what was sampled: ids and log-probs, bit for bit, and strictly less than the
    # row.
    for name in ("tokens_BT", "owner_BT", "logp_BT"):
        np.testing.assert_array_equal(
            getattr(final, name)[1, :kept], getattr(batch, name)[1, :kept]
        )
    assert kept < int(batch.length_B[1])
    assert (
        final.tokens_BT[1, kept + 3] != batch.tokens_BT[1, kept + 3]
    )  # 7 where the policy wrote 8
    np.testing.assert_allclose(
        final.logp_BT[1, kept : kept + 10], 0.0, atol=1e-6
    )  # these writers are certain
    assert same(final, batch, [0, 2, 3])
    assert final.row_id_B.tolist() == [0, 1, 2, 3]
    assert result.reward_B.tolist() == [1, 1, 0, 1] and result.include_B.all()
    figures = {k.removeprefix("scope/"): v for k, v in result.metrics.items()}
    expected = {
        "failed_share": 0.5,
        "located_share": 1.0,
        "no_good_step": 1,
        "eligible": 1,
        "selected": 1,
        "corrected": 1,
    }
    assert expected.items() <= figures.items()
    assert (
        figures["accepted"],
        figures["accepted_share"],
        figures["leaks"],
        figures["incomplete_steps"],
    ) == (1, 1, 0, 0)
    assert figures["first_error_position"] == pytest.approx((1 / 3 + 0) / 2)
    assert figures["teacher_token_share"] == pytest.approx(5 / (15 * 4))
    (item,) = result.gallery
    assert [(s["text"], s["owner"], s["status"]) for s in item["steps"]] == [
        ("+777\n", "policy", "kept"),
        ("-988\n", "policy", "wrong"),
        ("+199", "policy", "discarded"),
        ("-987\n", "teacher", "corrected"),
        ("+198", "policy", "tail"),
    ]
    assert (item["prompt"], item["first_error"], item["verdict_after"]) == ("+7-9+1=", 1, True)


def test_rows_without_a_verdict_are_left_out():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_1 + "#")
    result = run(batch, [1, NAN, 0, 0])
    assert result.include_B.tolist() == [True, False, True, True]
    assert result.metrics["scope/failed_share"] == 0.5
    assert same(result.rollout, batch, [0, 1, 3]) and text(result.rollout, 2) == RIGHT + "#"
    np.testing.assert_array_equal(result.reward_B, [1, NAN, 1, 0])


def test_nothing_failed():
    batch = scene(*[RIGHT + "#"] * 4)
    for localiser, prm in ((ORACLE, None), (PRM, fours_are_wrong())):
        result = run(batch, [1, 1, 1, 1], localiser=localiser, prm=prm)
        assert (
            same(result.rollout, batch, range(4))
            and result.include_B.all()
            and result.gallery == []
        )
        shown = (
            "failed_share",
            "located_share",
            "selected",
            "accepted",
            "accepted_share",
            "teacher_token_share",
        )
        assert [result.metrics[f"scope/{name}"] for name in shown] == [0] * 6


def test_everything_failed_leaves_one_failure():
    batch = scene(*[WRONG_2 + "#"] * 4)
    result = run(batch, [0, 0, 0, 0], SPEC)
    assert result.reward_B.tolist() == [1, 1, 0, 0]
    assert [text(result.rollout, row) for row in range(4)] == [RIGHT + "#"] * 2 + [
        WRONG_2 + "#"
    ] * 2
    assert (result.metrics["scope/failed_share"], result.metrics["scope/selected"]) == (1.0, 2)
    every = run(
        batch, [0, 0, 0, 0], dataclasses.replace(SPEC, select=SelectSpec(rule="all", per_group=2))
    )
    assert every.reward_B.tolist() == [1, 1, 1, 0]
    # Room for them where they are appended: as many places as failures may be rescued.
    beside = run(
        batch,
        [0, 0, 0, 0],
        dataclasses.replace(SPEC, select=SelectSpec(rule="all", per_group=2), place="append"),
    )
    assert beside.group == 7 and beside.reward_B.tolist() == [0, 0, 0, 0, 1, 1, 1]
