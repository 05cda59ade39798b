"""The rows of a step, by hand: problems drawn, rollouts judged, demonstrations beside them."""

import collections
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support.hand_made import (
    DOMAIN,
    NAN,
    PLAIN,
    POLICY,
    PROBLEM,
    PROMPT,
    RIGHT,
    TEACHER,
    TOKENIZER,
    WRONG_2,
    WRONG_3,
    bigram,
    groups_of,
    scene,
    text,
)

from scope_jax import tasks, teachers
from scope_jax.configuration import default_config, train_config
from scope_jax.correction import Groups
from scope_jax.data import Problems, batch_indices
from scope_jax.data.load import Task
from scope_jax.rewards import Judged, Reward, Rows
from scope_jax.run import PhaseTimer
from scope_jax.tasks import Problem
from scope_jax.text import character_tokenizer
from scope_jax.training import rollouts
from scope_jax.training.actors import Actors
from scope_jax.training.rollouts import (
    Progress,
    Step,
    collect_demonstrations,
    collect_rollouts,
    draw,
    encoded_or_none,
    rollout_metrics,
    scene_of,
    summed_demonstrations,
    with_demonstrations,
)

OTHER = DOMAIN.make_problem(["+2", "-4"], id="other")
# "+198" behind the prompt: the right answer of PROBLEM alone.
LAST_LINE = bigram("=+198#")
ENDLESS = bigram("=++")


def config_of(method: str = "grpo", **settings: Any) -> ConfigDict:
    """Two prompts, two rows of each, 7 + 16 tokens."""
    config = default_config(method)
    config.rollout.prompts, config.rollout.group = 2, 2
    config.rollout.prompt_tokens, config.rollout.new_tokens = 7, 16
    config.update_from_flattened_dict(settings)
    return config


def actors_of(problems: list[Problem], teacher: teachers.Teacher | None = None) -> Actors:
    task = Task(DOMAIN, Problems.from_list(problems), {})
    config = dataclasses.replace(PLAIN, end_ids=(0,))
    return Actors(config, {}, TOKENIZER, task, teacher, None)


def a_step(number: int = 0) -> Step:
    return Step(number, jax.random.key(5), 11, PhaseTimer())


# ---- where a run stands


def test_progress_is_taken_up_as_it_was():
    progress = Progress(17, 3, [PROBLEM, dataclasses.replace(OTHER, solution="+222")])
    other = Progress()
    other.restore(json.loads(json.dumps(progress.to_json())))
    assert other == progress
    older = {"position": 4, "dropped": 1}  # of a version that kept no prompts
    other.restore(older)
    assert other == Progress(4, 1, [])


def test_the_scene_of_a_step_is_what_the_config_and_the_step_say():
    actors = actors_of([PROBLEM], teachers.ReferenceTeacher())
    config = config_of(**{"rollout.temperature": 0.7, "rollout.top_k": 5})
    step = a_step()
    found = scene_of(actors, LAST_LINE, train_config(config), step)
    assert (found.domain, found.teacher, found.localiser) == (DOMAIN, actors.teacher, None)
    assert found.key is step.key and found.seed == 11 and found.timer is step.timer
    assert found.policy.generator is LAST_LINE and found.policy.end_id == 0
    sampling = found.policy.sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_new_tokens) == (0.7, 5, 16)


# ---- drawing


def test_prompts_that_do_not_fit_are_dropped_and_counted():
    domain = tasks.Arithmetic(start="zero")
    problems = [
        domain.problem(0, "train", n, 2 + n % 2) for n in range(12)
    ]  # prompts of 5 and 7 tokens in turn
    source = Problems.from_list(problems, "mixed lengths")
    tokenizer = character_tokenizer(domain.characters)

    actors = Actors(None, {}, tokenizer, Task(domain, source, {}), None, None)

    def take(limit):
        config, progress = default_config(), Progress()
        config.rollout.prompt_tokens = limit
        drawn, ids = draw(actors, train_config(config), progress, 6)
        return drawn, ids, progress.position, progress.dropped

    drawn, ids, position, dropped = take(5)
    assert len(drawn) == len(ids) == 6 and all(
        len(p.prompt) == len(i) == 5 for p, i in zip(drawn, ids)
    )
    assert position == 6 + dropped and dropped > 0
    order = source.take(batch_indices(0, 0, position, len(source)))
    assert [p.id for p in drawn] == [
        p.id for p in order if len(p.prompt) == 5
    ]  # nothing skipped, nothing twice
    assert take(7)[2:] == (6, 0)
    with pytest.raises(
        ValueError, match=r"mixed lengths: no prompt fits into rollout\.prompt_tokens = 4; raise it"
    ):
        take(4)


def test_prompts_that_are_too_long_have_their_place_and_no_ids():
    long = DOMAIN.make_problem(["+1", "-2", "+3", "-4"])
    found = encoded_or_none(actors_of([]), train_config(config_of()), [long, PROBLEM, long, OTHER])
    assert found == [
        None,
        TOKENIZER.encode("+7-9+1="),
        None,
        TOKENIZER.encode("+2-4="),
    ]


# ---- verdicts


def judge(domain: Any, problems: Any, texts: Any, finished: np.ndarray) -> np.ndarray:
    return Reward().judge(Rows(domain, problems, texts, [[]] * len(texts), finished)).reward_B


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_reward_that_is_not_finite_is_no_reward(bad: float):
    class Odd(tasks.Arithmetic):
        def verify(self, problems: Any, texts: Any) -> Any:
            return [True, bad, False, bad][: len(texts)]

    domain = Odd(start="zero")
    problems = [domain.problem(0, "train", n, 2) for n in range(4)]
    reward = judge(domain, problems, [""] * 4, np.array([True, True, True, False]))
    np.testing.assert_array_equal(
        reward, [1, np.nan, 0, 0]
    )  # an unfinished row is wrong, whatever the verifier says


def test_a_verdict_is_1_or_0_and_no_verdict_is_nan():
    problems = [PROBLEM] * 4
    texts, finished = [RIGHT, WRONG_2, RIGHT, "+198"], np.array([True, True, False, True])
    reward = judge(DOMAIN, problems, texts, finished)
    assert reward.dtype == np.float32 and reward.tolist() == [1, 0, 0, 1]

    class Silent(tasks.Arithmetic):
        def verify(self, problems: Any, texts: Any) -> Any:
            return [None] * len(texts)

    reward = judge(Silent(start="zero"), problems, texts, finished)
    np.testing.assert_array_equal(reward, [NAN, NAN, 0, NAN])


def test_metrics_speak_of_all_rows():
    """Four groups of two: one with two rewards, one all right, one all wrong, one without a
    verdict for one row."""
    reward = np.array([1, 0, 1, 1, 0, 0, NAN, 1], np.float32)
    found = rollout_metrics(
        finished=np.array([True, True, True, True, True, False, True, True]),
        rows=Judged(reward, reward == 1, {}, collections.Counter()),
        written=[[1] * n for n in (4, 4, 6, 6, 8, 8, 5, 5)],
        text=[RIGHT, WRONG_3, RIGHT, RIGHT, WRONG_3, WRONG_3, RIGHT, RIGHT],
        problems=[PROBLEM] * 8,
        group=2,
        domain=DOMAIN,
    )
    wanted = {
        "reward/mean": 4 / 7,
        "reward/unscored": 1,
        "advantage/zero_group_share": 3 / 4,
        "completion/length_mean": 46 / 8,
        "completion/truncated_share": 1 / 8,
        # The answers differ in the first group only.
        "diversity/answer_entropy": np.log(2) / 4,
        # One path where a row is right, also where the other row has no verdict.
        "diversity/distinct_paths": 3 / 4,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_without_any_verdict_the_mean_reward_is_0():
    nothing = Judged(np.full(2, NAN), np.zeros(2, bool), {}, collections.Counter())
    found = rollout_metrics(
        np.ones(2, bool), nothing, [[1], [1]], ["x", "x"], [PROBLEM] * 2, 2, DOMAIN
    )
    assert (found["reward/mean"], found["reward/unscored"]) == (0, 2)


# ---- rollouts


def test_rollouts_are_written_and_judged_group_by_group():
    progress, step = Progress(), a_step()
    actors = actors_of([PROBLEM, OTHER])
    found = collect_rollouts(actors, LAST_LINE, train_config(config_of()), progress, step)
    problems = [[PROBLEM, OTHER][n] for n in batch_indices(0, 0, 2, 2)]
    assert found.problems == [problem for problem in problems for _ in range(2)]
    assert [text(found.rollout, b) for b in range(4)] == ["+198#"] * 4
    right = [problem is PROBLEM for problem in found.problems]
    assert found.reward_B.tolist() == [float(good) for good in right]
    assert found.group == 2 and found.include_B.all() and found.own_B.all()
    assert found.rollout.row_id_B.tolist() == [0, 1, 2, 3] and progress.position == 2
    wanted = {
        "reward/mean": 0.5,
        "rollout/batches": 1,
        "cost/rollout_tokens": 16,  # end tokens left out
        "completion/length_mean": 4,
        "completion/truncated_share": 0,
    }
    assert {name: found.metrics[name] for name in wanted} == wanted
    assert step.timer.pop().keys() == {"time/rollout", "time/verify"}


def test_a_rollout_without_an_end_is_wrong():
    actors = actors_of([PROBLEM, OTHER])
    found = collect_rollouts(actors, ENDLESS, train_config(config_of()), Progress(), a_step())
    assert found.reward_B.tolist() == [0] * 4 and found.include_B.all()
    assert found.metrics["completion/truncated_share"] == 1
    assert found.rollout.length_B.tolist() == (found.rollout.prompt_length_B + 16).tolist()


def test_resampling_ends_after_so_many_batches_and_keeps_the_last_of_what_tells_nothing():
    """This policy writes the same in every row of a group, so that no group ever tells."""
    problems = [DOMAIN.make_problem(["+7", f"-{n}"]) for n in range(1, 7)]
    progress = Progress()
    config = train_config(config_of(**{"method.resample": 2}))
    found = collect_rollouts(actors_of(problems), LAST_LINE, config, progress, a_step())
    assert found.metrics["rollout/batches"] == 3 and progress.position == 6
    assert found.metrics["cost/rollout_tokens"] == 12 * 4
    last = [problems[n] for n in batch_indices(0, 4, 2, 6)]
    assert found.problems == [problem for problem in last for _ in range(2)]
    assert found.rollout.row_id_B.tolist() == [8, 9, 10, 11]
    prompts = [TOKENIZER.decode(row[:5]) for row in found.rollout.tokens_BT]
    assert prompts == [problem.prompt for problem in found.problems]


@pytest.mark.parametrize(
    ("informative", "kept"),
    [
        ([0, 1, 2], [0, 1]),  # as many as are wanted, the first ones
        ([3], [3, 5]),  # the last of the others
        ([5], [4, 5]),
        ([], [4, 5]),
    ],
)
def test_groups_that_tell_come_before_others(informative: list[int], kept: list[int]):
    rows = rollouts._kept_rows(np.array(informative, int), 2, 6, 3)
    assert rows.tolist() == [3 * g + n for g in kept for n in range(3)]


# ---- demonstrations

SOLVED = dataclasses.replace(PROBLEM, id="right", solution=RIGHT)
MISLED = dataclasses.replace(PROBLEM, id="wrong", solution=WRONG_2)


def demonstrated(*problems: Problem, verified: bool = True) -> Groups:
    config = config_of("luffy", **{"demonstrations.verified": verified})
    if not verified:
        config.loss.teacher_term = "shaped"
    actors = actors_of([], teachers.ReferenceTeacher())
    return collect_demonstrations(actors, train_config(config), problems, a_step(), first_row=40)


def test_demonstrations_are_judged_like_rollouts():
    found = demonstrated(SOLVED, PROBLEM, MISLED)
    np.testing.assert_array_equal(found.reward_B, [1, NAN, 0])
    assert found.include_B.tolist() == [True, False, False] and not found.own_B.any()
    assert (found.group, found.problems) == (1, [SOLVED, PROBLEM, MISLED])
    assert [text(found.rollout, b) for b in range(3)] == [RIGHT + "#", "", ""]
    owner = found.rollout.owner_BT.tolist()
    assert owner[0][:22] == [PROMPT] * 7 + [TEACHER] * 15 and owner[2][:8] == [PROMPT] * 7 + [0]
    assert found.rollout.row_id_B.tolist() == [40, 41, 42]
    assert found.metrics["demonstrations/right_share"] == 0.5
    assert found.metrics["demonstrations/used"] == 1


def test_a_demonstration_that_is_wrong_may_be_learned_from_where_that_is_asked_for():
    found = demonstrated(SOLVED, PROBLEM, MISLED, verified=False)
    assert found.include_B.tolist() == [True, False, True]
    assert text(found.rollout, 2) == WRONG_2 + "#" and found.metrics["demonstrations/used"] == 2


def test_without_any_demonstration_nothing_is_right():
    found = demonstrated(PROBLEM)
    assert found.metrics["demonstrations/right_share"] == 0 and not found.include_B.any()


def test_demonstrations_stand_at_the_end_of_their_groups():
    """Two groups of four rows, and two demonstrations of each prompt."""
    first = scene(RIGHT + "#", WRONG_2 + "#", RIGHT + "#", WRONG_2 + "#")
    second = first.replace(row_id_B=first.row_id_B + 4)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
    own = groups_of(both, [1, 0, 1, NAN, 0, 0, 0, 0])
    own.metrics["reward/mean"] = 0.5
    shown = demonstrated(SOLVED, MISLED, PROBLEM, SOLVED)
    found = with_demonstrations(own, shown)
    assert found.group == 6
    assert found.rollout.row_id_B.tolist() == [0, 1, 2, 3, 40, 41, 4, 5, 6, 7, 42, 43]
    np.testing.assert_array_equal(found.reward_B, [1, 0, 1, NAN, 1, 0, 0, 0, 0, 0, NAN, 1])
    left_out = np.flatnonzero(~found.include_B)  # no verdict, wrong, no demonstration
    assert left_out.tolist() == [3, 5, 10]
    assert found.own_B.tolist() == [True, True, True, True, False, False] * 2
    assert [p.id for p in found.problems[4:6]] == ["right", "wrong"]
    assert found.problems[10:] == [PROBLEM, SOLVED]
    assert text(found.rollout, 4) == RIGHT + "#" and text(found.rollout, 10) == ""
    assert found.rollout.owner_BT[1, 7] == POLICY and found.rollout.owner_BT[4, 7] == TEACHER
    assert found.metrics == own.metrics | shown.metrics


def test_several_lots_of_demonstrations_are_counted_as_one():
    """Of three and of four asked, two and four were given: 1 of 2 and 1 of 4 are right."""
    one = {"asked": 3, "failed": 1, "failed_too_long": 1, "used": 1, "right_share": 0.5}
    two = {"asked": 4, "failed": 0, "used": 1, "right_share": 0.25}
    parts = [
        {f"demonstrations/{k}": float(v) for k, v in lot.items()} | {"cost/demonstration_tokens": n}
        for lot, n in ((one, 20.0), (two, 30.0))
    ]
    found = summed_demonstrations(parts)
    assert {k.removeprefix("demonstrations/"): v for k, v in found.items()} == {
        **{"asked": 7, "failed": 1, "failed_too_long": 1, "used": 2, "right_share": 2 / 6},
        "cost/demonstration_tokens": 50,
    }
    assert summed_demonstrations(parts[:1]) == parts[0] and summed_demonstrations([]) == {}
