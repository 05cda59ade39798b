"""Several steps of a teacher for each failure, and which of them is taken."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import (
    LAST,
    PAD,
    POLICY,
    PROMPT,
    RIGHT,
    SAMPLE,
    SPEC,
    STEP,
    TEACHER,
    TOKENIZER,
    WRONG_1,
    WRONG_2,
    EveryLine,
    V,
    bigram,
    groups_of,
    played,
    same,
    scene,
    text,
)

from scope_jax import streams
from scope_jax.configuration import default_config, train_config
from scope_jax.correction import CorrectionSpec, rescue
from scope_jax.correction.candidates import scene_of_candidate
from scope_jax.rollout import Generator
from scope_jax.teachers import TeacherSpec
from scope_jax.teachers.base import encode_known, write_steps

# Of these, the policy below finds the second likeliest by far, but it leaves no room for a tail.
# The sums of the other two are equal; the mean is that of the longer one.
STEPS = ["-9\n", "-77777777\n", "-777\n"]


@dataclasses.dataclass
class InTurn:
    """A teacher that writes one of its texts for all rows, the next one each time."""

    texts: list[str]
    spec: TeacherSpec = dataclasses.field(
        default_factory=lambda: dataclasses.replace(STEP, step_tokens=10)
    )
    generator: None = None
    seeds: list[int] = dataclasses.field(default_factory=list)
    keys: list[jax.Array] = dataclasses.field(default_factory=list)

    def correct(self, job):
        step = self.texts[len(self.seeds) % len(self.texts)]
        self.seeds.append(job.seed)
        self.keys.append(job.key)
        steps = [encode_known(step, False, ask, job) for ask in job.asks]
        return write_steps(job, steps, self.spec)


def policy() -> Generator:
    """After a newline the last line and the end; 7 after 7; no opinion after other characters."""
    seven = TOKENIZER.convert_tokens_to_ids("7")
    return Generator(
        LAST.params | {"head": LAST.params["head"].at[seven, seven].set(20.0)}, LAST.config
    )


def mean_logp(writer: Generator, step: str, before: str = "\n", temperature: float = 1) -> float:
    """By the table alone: each token after the one before it."""
    table = np.asarray(writer.params["head"], np.float64) * np.sqrt(V) / temperature
    logp = table - np.log(np.exp(table - table.max(1, keepdims=True)).sum(1, keepdims=True))
    logp -= table.max(1, keepdims=True)
    ids = TOKENIZER.encode(before + step)
    return float(np.mean([logp[a, b] for a, b in itertools.pairwise(ids)]))


BATCH = (RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
THREE = dataclasses.replace(SPEC, candidates=3)


def rescued(teacher: InTurn, spec: CorrectionSpec = THREE, **parts):
    rows = parts.pop("rows", BATCH)
    scene_ = played(teacher=teacher, **{"policy": policy(), **parts})
    return rescue(groups_of(scene(*rows), [float(r == RIGHT + "#") for r in rows]), scene_, spec)


def test_the_likeliest_step_with_a_right_tail_is_taken():
    means = [mean_logp(policy(), step) for step in STEPS]
    assert means[1] > means[2] > means[0]
    assert 3 * means[0] == pytest.approx(5 * means[2], rel=1e-3)  # the sums do not differ
    result = rescued(InTurn(STEPS))
    final = result.groups.rollout
    assert text(final, 1) == "+777\n" + "-777\n" + "+198#"
    taught = [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [POLICY] * 5 + [PAD]
    assert final.owner_BT[1].tolist() == taught and same(final, scene(*BATCH), [0, 2, 3])
    figures = {name.split("/")[1]: value for name, value in result.metrics.items()}
    assert (figures["selected"], figures["accepted"], figures["accepted_share"]) == (1, 1, 1)
    assert (figures["candidates_accepted"], figures["candidates_several"]) == (2, 1)
    # Three steps of 3, 10 and 5 tokens; tails of 5, of the one token there is room for, and of 5.
    assert (figures["teacher_tokens"], figures["tail_tokens"]) == (18, 11)
    assert figures["step_logp_taken"] == pytest.approx(means[2], rel=1e-4)
    assert figures["step_logp_accepted"] == pytest.approx((means[0] + means[2]) / 2, rel=1e-4)
    [item] = result.gallery
    assert [s["text"] for s in item["steps"] if s["status"] != "discarded"] == [
        "+777\n",
        "-988\n",
        "-777\n",
        "+198",
    ]


def test_steps_are_as_likely_as_the_policy_finds_them_at_its_temperature():
    result = rescued(InTurn(STEPS), sample=dataclasses.replace(SAMPLE, temperature=2.0))
    wanted = mean_logp(policy(), STEPS[2], temperature=2.0)
    assert result.metrics["scope/step_logp_taken"] == pytest.approx(wanted, rel=1e-4)
    assert abs(wanted - mean_logp(policy(), STEPS[2])) > 1


def test_the_first_one_that_is_right_is_taken_where_that_is_asked():
    spec = dataclasses.replace(THREE, choose="first")
    for steps, wanted in ((STEPS, STEPS[0]), (STEPS[1:], STEPS[2])):
        result = rescued(InTurn(steps), spec)
        assert text(result.groups.rollout, 1) == "+777\n" + wanted + "+198#"


def test_a_row_without_a_right_candidate_keeps_the_first():
    result = rescued(InTurn(STEPS), policy=bigram("\n+190#"))
    assert same(result.groups.rollout, scene(*BATCH), range(4))
    assert result.metrics["scope/accepted"] == 0 == result.metrics["scope/candidates_accepted"]
    [item] = result.gallery
    assert item["not_rescued"] == "tail_wrong" and "scope/step_logp_taken" not in result.metrics
    assert [s["text"] for s in item["steps"] if s["status"] == "corrected"] == [STEPS[0]]
    # A step that may not be used is none of the candidates, and is counted.
    result = rescued(InTurn(["7" * 30 + "\n", "-777\n"]))
    assert text(result.groups.rollout, 1) == "+777\n" + "-777\n" + "+198#"
    assert result.metrics["scope/teacher_failed_too_long"] == 2  # the first one, and the third
    assert result.metrics["scope/candidates_accepted"] == 1 == result.metrics["scope/accepted"]


def test_each_row_has_its_own_best():
    # Row 1 has a line before its cut, so the long step leaves no room; row 2, cut at its start
    # (steps before the error are not asked for), has room for it.
    select = dataclasses.replace(SPEC.select, good_steps=0)
    result = rescued(
        InTurn(STEPS),
        dataclasses.replace(THREE, select=select),
        rows=(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", WRONG_1 + "#"),
    )
    assert text(result.groups.rollout, 1) == "+777\n" + "-777\n" + "+198#"
    assert text(result.groups.rollout, 2) == "-77777777\n" + "+198#"
    assert result.groups.reward_B.tolist() == [1, 1, 1, 0]


def test_candidates_are_for_what_the_policy_could_not_repair_by_itself():
    teacher = InTurn(STEPS)
    parts = played(policy=policy(), teacher=teacher, domain=EveryLine(start="zero"))
    groups = groups_of(scene(*BATCH), [1, 0, 0, 1])
    result = rescue(groups, dataclasses.replace(parts, self_tries=1), THREE)
    assert text(result.groups.rollout, 1) == "+777\n" + "-777\n" + "+198#"
    shown = ("self_accepted", "teacher_asked", "teacher_accepted", "candidates_accepted")
    assert [result.metrics[f"scope/{name}"] for name in shown] == [0, 1, 1, 2]
    assert result.metrics["cost/self_tokens"] == 5 and len(teacher.seeds) == 3


def test_parts_of_rows_give_the_same():
    rows = (RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_1 + "#")
    whole = rescued(InTurn(STEPS), rows=rows)
    parts = rescued(InTurn(STEPS), dataclasses.replace(THREE, rows_at_once=1), rows=rows)
    one, other = whole.groups.rollout, parts.groups.rollout
    for name in ("tokens_BT", "owner_BT", "length_B", "finished_B"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert parts.metrics == pytest.approx(whole.metrics)


def test_candidates_have_random_numbers_of_their_own_and_the_first_those_of_one():
    three, one = InTurn(STEPS), InTurn(STEPS)
    rescued(three)
    rescued(one, SPEC)
    assert len(set(three.seeds)) == 3 and three.seeds[:1] == one.seeds == [0]
    key = jax.random.key(3)
    assert three.seeds[2] == streams.candidate_seed(0, 2)
    keys = [key, *(jax.random.fold_in(key, 2**23 + number) for number in (1, 2))]
    assert [jnp.array_equal(a, b) for a, b in zip(three.keys, keys, strict=True)] == [True] * 3
    whole = played()
    assert scene_of_candidate(whole, 0) is whole
    assert int(np.random.SeedSequence([7, 6, 2]).generate_state(1)[0]) == streams.candidate_seed(
        7, 2
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method.candidates": 0}, "method.candidates = 0 must be at least 1"),
        ({"method.choose": "first"}, "method.choose = 'first' chooses from several steps: set"),
        ({"method.choose": "best"}, "method.choose = 'best' is unknown; one of policy_logp, first"),
        (
            {"method.candidates": 4},
            "config.method.candidates = 4: with teacher.temperature 0 all of them are the same",
        ),
        (
            {"method.candidates": 2, "teacher.kind": "reference", "teacher.temperature": 1.0},
            "config.method.candidates = 2: teacher.kind 'reference' writes the same step each time",
        ),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    config = default_config("scope")
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError) as caught:
        train_config(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)
