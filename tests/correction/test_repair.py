"""Stages 3 and 4 with the policy's own repairs first, and the teacher for what is left."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from support.hand_made import (
    LINE2,
    PAD,
    POLICY,
    PROMPT,
    RIGHT,
    SPEC,
    STEP,
    TEACHER,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    EveryLine,
    bigram,
    groups_of,
    played,
    same,
    scene,
    text,
)

from scope_jax import streams
from scope_jax.configuration import default_config, set_method, train_config
from scope_jax.correction import rescue
from scope_jax.correction.repair import SELF_METRICS, _metrics
from scope_jax.report.gallery import rescue_of
from scope_jax.teachers import ModelTeacher, TeacherSpec


@dataclasses.dataclass(frozen=True)
class Counting(ModelTeacher):
    """A teacher on the mesh that says what it was asked."""

    asked: list[list[int]] = dataclasses.field(default_factory=list)

    def correct(self, job):
        self.asked.append([ask.row for ask in job.asks])
        return ModelTeacher(self.generator, self.spec).correct(job)


def attempts_of(rows, rewards, tries, spec=SPEC, **parts):
    teacher = Counting(LINE2, STEP)
    scene_ = dataclasses.replace(played(teacher=teacher, **parts), self_tries=tries)
    return rescue(groups_of(rows, rewards), scene_, spec), teacher.asked


def figures(result) -> dict[str, float]:
    names = (*SELF_METRICS, "scope/accepted", "cost/teacher_tokens", "cost/tail_tokens")
    return {name.split("/")[1]: result.metrics[name] for name in names}


def test_the_policy_repairs_one_row_and_the_teacher_the_other_token_by_token():
    # The policy writes the last line and the end after any newline. Cut before its last line, row
    # 1 is right then; row 2, cut before its second, lacks that one, twice.
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_2 + "#", WRONG_1 + "#")
    result, asked = attempts_of(batch, [1, 0, 0, 0], 2, domain=EveryLine(start="zero"))
    final = result.groups
    assert asked == [[2]] and final.reward_B.tolist() == [1, 1, 1, 0]
    assert [text(final.rollout, row) for row in (1, 2)] == [RIGHT + "#"] * 2
    assert final.rollout.owner_BT[1].tolist() == [PROMPT] * 7 + [POLICY] * 15 + [PAD]
    taught = [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [POLICY] * 5 + [PAD]
    assert final.rollout.owner_BT[2].tolist() == taught
    assert final.rollout.row_id_B.tolist() == [0, 1, 2, 3]
    assert same(final.rollout, batch, [0, 3])
    # What was kept is as it was sampled; the new line's log-probs are those of this policy (sure).
    np.testing.assert_array_equal(final.rollout.logp_BT[1, :17], batch.logp_BT[1, :17])
    np.testing.assert_allclose(final.rollout.logp_BT[1, 17:22], 0, atol=1e-6)
    # Lines of five tokens: one try of row 1, two of row 2, then the teacher's line and its tail.
    assert figures(result) == {
        "self_tokens": 15,
        "self_tails": 3,
        "self_accepted": 1,
        "teacher_asked": 1,
        "teacher_accepted": 1,
        "accepted": 2,
        "teacher_tokens": 5,
        "tail_tokens": 5,
    }
    assert (result.metrics["scope/selected"], result.metrics["scope/accepted_share"]) == (2, 1)
    assert result.metrics["scope/corrected"] == 1  # steps of the teacher
    own, other = result.gallery
    after = [(s["text"], s["owner"], s["status"]) for s in own["steps"]]
    assert after[2:] == [("+190", "policy", "wrong"), ("+198", "policy", "tail")]
    assert [s["status"] for s in other["steps"]].count("corrected") == 1
    assert [item["verdict_after"] for item in result.gallery] == [True, True]
    assert [item["not_rescued"] for item in result.gallery] == [None, None]
    shown = rescue_of(own).heading_after, rescue_of(other).heading_after
    assert shown == (
        "Repaired by the policy itself",
        "Corrected by the teacher, finished by the policy",
    )


def test_a_teacher_is_not_asked_where_nothing_is_left():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", WRONG_1 + "#")
    result, asked = attempts_of(batch, [1, 0, 0, 0], 1)
    assert asked == [] and result.groups.reward_B.tolist() == [1, 1, 0, 0]
    assert figures(result)["self_accepted"] == 1 == result.metrics["scope/accepted"]
    assert [figures(result)[n] for n in ("teacher_asked", "teacher_tokens", "tail_tokens")] == [
        0
    ] * 3
    nothing, asked = attempts_of(scene(*[RIGHT + "#"] * 4), [1] * 4, 1)
    assert asked == [] and set(figures(nothing).values()) == {0}
    # Without tries it is as if the switch did not exist.
    plain, asked = attempts_of(batch, [1, 0, 0, 0], 0)
    assert asked == [[1]] and "scope/self_tails" not in plain.metrics


def test_what_neither_can_repair_stays_a_failure():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_2 + "#", WRONG_1 + "#")
    result, asked = attempts_of(batch, [1, 0, 0, 0], 3, policy=bigram("\n+190#"))
    assert asked == [[1, 2]] and same(result.groups.rollout, batch, range(4))
    assert figures(result) == {
        "self_tokens": 30,
        "self_tails": 6,
        "self_accepted": 0,
        "teacher_asked": 2,
        "teacher_accepted": 0,
        "accepted": 0,
        "teacher_tokens": 10,
        # Row 1 holds 10 + 5 of 16 tokens then; row 2 has room for the line.
        "tail_tokens": 6,
    }
    assert [item["not_rescued"] for item in result.gallery] == ["tail_cut_off", "tail_wrong"]


def test_what_could_not_be_judged_is_counted_of_both():
    """Of two rows the policy repaired one, with three tries; the teacher was asked for one."""
    own = SimpleNamespace(
        accepted_R=np.array([True, False]),
        metrics={
            "cost/tail_tokens": 5.0,
            "scope/not_judged_late": 2.0,
            "scope/not_judged_odd": 1.0,
        },
        tails=3,
    )
    asked = SimpleNamespace(job=SimpleNamespace(asks=[None]))
    taught = SimpleNamespace(
        metrics={"cost/tail_tokens": 7.0, "scope/not_judged_late": 4.0}, corrected=asked
    )
    assert _metrics(own, taught, 1, 2) == {
        **{"scope/not_judged_late": 6, "scope/not_judged_odd": 1},
        **{"cost/tail_tokens": 7, "cost/self_tokens": 5, "scope/self_tails": 3},
        **{"scope/self_accepted": 1, "scope/teacher_accepted": 0, "scope/teacher_asked": 1},
        **{"scope/accepted": 1, "scope/accepted_share": 0.5},
    }


def test_own_repairs_are_pairs_too():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", RIGHT + "#")
    spec = dataclasses.replace(SPEC, place="pair", credit="divergence")
    result, asked = attempts_of(batch, [1, 0, 0, 1], 1, spec)
    assert asked == [] and result.groups.reward_B.tolist() == [1, 0, 1, 1]
    assert result.groups.credit_from_B.tolist() == [0, 17, 17, 0]


def test_each_try_has_random_numbers_of_its_own(monkeypatch):
    seen = []
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    generator = bigram("\n+190#")
    inner = type(generator).extend

    def extend(self, rows, key, spec, **more):
        seen.append(more["stream"])
        return inner(self, rows, key, spec, **more)

    monkeypatch.setattr(type(generator), "extend", extend)
    attempts_of(batch, [1, 0, 0, 1], 2, dataclasses.replace(SPEC, tails=2), policy=generator)
    own, tails = streams.SELF, streams.TAIL
    assert seen == [own, own + 1, streams.TEACHER, tails, tails + 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first": "self"}, "teacher.self_tries = None: with teacher.first 'self' it says how"),
        ({"first": "self", "self_tries": 0}, "teacher.self_tries = 0: with teacher.first 'self'"),
        ({"self_tries": 2}, "teacher.self_tries = 2 is for teacher.first 'self'; set it to None"),
        ({"first": "policy"}, "teacher.first = 'policy' is unknown; one of teacher, self"),
    ],
)
def test_a_teachers_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError) as caught:
        TeacherSpec(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "luffy",
            {"demonstrations.verified": True},
            "config.teacher.first 'self' is for method 'scope', where failures are",
        ),
        ("scope", {"teacher.kind": "self"}, "config.teacher.first 'self' comes before another"),
        (
            "scope",
            {"method.tail": "none", "method.accept": "unverified"},
            "config.teacher.first 'self' has the policy's repairs verified, and method.tail 'none'",
        ),
    ],
)
def test_what_own_repairs_do_not_go_with(method, settings, message):
    config = default_config()
    set_method(config, method)
    config.teacher.first, config.teacher.self_tries = "self", 2
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError) as caught:
        train_config(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)
