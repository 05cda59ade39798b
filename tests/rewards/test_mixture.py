"""The sum, the verdict, and what the rest of the program makes of rewards between 0 and 1."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import (
    DOMAIN,
    LAST,
    NAN,
    PROBLEM,
    RIGHT,
    SPEC,
    WITH_4,
    WRONG_1,
    WRONG_2,
    bigram,
    fours_are_wrong,
    groups_of,
    played,
    scene,
    text,
)

from scope_jax import train
from scope_jax.configuration import default_config, train_config
from scope_jax.correction import Groups, rescue
from scope_jax.correction.monte_carlo import successes
from scope_jax.learning import AdvantageSpec
from scope_jax.learning.credit import GoodPrefix, OutcomeCredit, advantages
from scope_jax.rewards import Reward, RewardSpec, Rows
from scope_jax.tasks import Arithmetic, is_right
from scope_jax.tasks.domain import verdicts
from scope_jax.training.rollouts import Progress

MINE = """
def length(problem, completion, token_ids): return len(completion) / 100

def tokens(problem, completion, token_ids): return -len(token_ids)

def odd(problem, completion, token_ids): return None if completion == "+100" else 0.5

def silent(problem, completion, token_ids):
    return None if completion.startswith("+777\\n-987") else 1

def quarter(problem, completion, token_ids): return 0.25 + 0.5 * completion.endswith("98")
"""


@pytest.fixture(autouse=True)
def mine(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "mixture"
    folder.mkdir(exist_ok=True)
    (folder / "my_mixture_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(folder)


class Scored(Arithmetic):
    """A verifier with partial credit: the verdict of each text is written down."""

    def verify(self, problems: Any, completions: Any) -> Any:
        return [CREDIT.get(completion) for completion in completions]


CREDIT = {RIGHT: 1.0, WRONG_1: 0.4, WRONG_2: 0.9, "+198": True, "+100": False, "+777\n+190": 0.0}


def rows_of(texts: list[str], domain: Arithmetic = DOMAIN, finished: Any = None) -> Rows:
    ended = np.ones(len(texts), bool) if finished is None else np.array(finished)
    return Rows(domain, [PROBLEM] * len(texts), texts, [[1] * len(x) for x in texts], ended)


# ---- without a setting


def as_ever(domain: Any, problems: Any, texts: Any, finished_B: np.ndarray) -> np.ndarray:
    """What a row was worth before there were settings of it: the verifier's word as it is."""
    found = verdicts(domain, problems, texts)
    reward = np.array([np.nan if v is None else float(v) for v in found], np.float32)
    reward[~np.isfinite(reward)] = np.nan
    reward[~finished_B] = 0.0
    return reward


def test_the_default_is_the_verifier_bit_for_bit():
    class Any_(Arithmetic):
        def verify(self, problems: Any, completions: Any) -> Any:
            return [known[int(completion)] for completion in completions]

    known = [True, False, None, 1.0, 0, 0.1, 1 / 3, np.float32(0.7), float("inf"), float("nan")]
    texts = [str(n % len(known)) for n in range(3 * len(known))]
    finished = np.arange(len(texts)) % 7 != 3
    domain = Any_()
    problems = [PROBLEM] * len(texts)
    wanted = as_ever(domain, problems, texts, finished)
    judged = Reward().judge(Rows(domain, problems, texts, [[]] * len(texts), finished))
    assert judged.reward_B.dtype == np.float32
    assert judged.reward_B.tobytes() == wanted.tobytes()
    np.testing.assert_array_equal(judged.right_B, wanted == 1)
    assert not judged.reasons


def test_of_1_and_0_failed_and_right_are_what_they_were():
    groups = groups_of(scene(RIGHT + "#", WRONG_2 + "#", RIGHT + "#", "+1"), [1, 0, NAN, 0])
    assert groups.failed_B.tolist() == (groups.reward_B == 0).tolist()
    assert groups.right_B.tolist() == (groups.reward_B == 1).tolist()


@pytest.mark.parametrize(
    ("verdict", "right"),
    [
        (True, True),
        (1, True),
        (1.0, True),
        (0.99, False),
        (False, False),
        (None, False),
        (NAN, False),
    ],
)
def test_a_right_verdict_is_all_of_the_credit(verdict, right):
    assert is_right(verdict) is right and not is_right(float("inf"))


# ---- sums by hand


def test_weights_by_hand():
    functions = {
        "outcome": {"weight": 2.0},
        "format": {"pattern": r"([+-]\d\d\d\n?)+", "weight": 0.5},
        "length": {"function": "my_mixture_test:length", "weight": 3.0},
        "tokens": {"function": "my_mixture_test:tokens", "weight": 0.1, "range": (-20, 0)},
        "odd": {"function": "my_mixture_test:odd", "weight": -1},
        "quarter": {"function": "my_mixture_test:quarter", "weight": 0},
    }
    texts = [RIGHT, "+198", "+197", "98", "+100", "+198"]
    finished = [True, True, True, True, True, False]
    with (
        Reward(RewardSpec(functions=functions, workers=1)) as reward,
        pytest.warns(UserWarning, match="reward 'odd': problem .*: None from"),
    ):
        judged = reward.judge(rows_of(texts, finished=finished))
    wanted = [
        2 + 0.5 + 3 * 0.14 - 1.4 - 0.5,  # right, in form, 14 characters
        2 + 0.5 + 3 * 0.04 - 0.4 - 0.5,  # right, in form, 4
        0 + 0.5 + 3 * 0.04 - 0.4 - 0.5,  # wrong
        0 + 0.0 + 3 * 0.02 - 0.2 - 0.5,  # no line at all
        NAN,  # odd says nothing
        0 + 0.0 + 0 - 2.0 - 1.0,  # did not end: the lowest of every part
    ]
    np.testing.assert_allclose(judged.reward_B, wanted, rtol=1e-6)
    assert judged.right_B.tolist() == [True, True, False, False, False, False]
    metrics = judged.metrics()
    means = {  # of the five rows with a reward
        "outcome": 2 / 5,
        "format": 3 / 5,
        "length": (0.14 + 0.04 + 0.04 + 0.02 + 0) / 5,
        "tokens": (-14 - 4 - 4 - 2 - 20) / 5,
        "odd": (4 * 0.5 + 1) / 5,
        "quarter": (0.75 + 0.75 + 0.25 + 0.75 + 0.0) / 5,
    }
    assert {name: metrics[f"reward/{name}"] for name in means} == pytest.approx(means)
    weights = {name: float(part.get("weight", 1)) for name, part in functions.items()}
    total = sum(weights[name] * mean for name, mean in means.items())
    assert np.nanmean(judged.reward_B) == pytest.approx(total)
    assert metrics["reward/accepted_share"] == 2 / 5 and metrics["reward/unscored_none"] == 1


def test_who_is_right_is_a_part_or_the_sum():
    texts = [RIGHT, "+198", "+197", WRONG_1]
    functions = {"outcome": {}, "length": {"function": "my_mixture_test:length", "weight": 10}}

    def right(**more: Any) -> list[bool]:
        with Reward(RewardSpec(functions=functions, workers=1, **more)) as reward:
            rows = rows_of(texts)
            judged = reward.judge(rows)
            assert reward.accepts(rows).tolist() == judged.right_B.tolist()
            np.testing.assert_allclose(judged.reward_B, [2.4, 1.4, 0.4, 1.4], rtol=1e-6)
            return judged.right_B.tolist()

    assert right() == [True, True, False, False]  # by the verifier
    assert right(accept_by="total", accept=1.4) == [True, True, False, True]
    assert right(accept_by="total", accept=1.5) == [True, False, False, False]
    assert right(accept_by="length", accept=0.05) == [True, False, False, True]
    assert right(accept_by="total") == [False] * 4  # nobody has 11


def test_a_sum_that_rounding_leaves_below_the_threshold_reaches_it():
    """0.7 + 0.1 + 0.1 is 0.8999999999999999 in float64, and less in float32."""
    parts = {f"p{n}": {"function": "outcome", "weight": w} for n, w in enumerate((0.7, 0.1, 0.1))}
    judged = Reward(RewardSpec(functions=parts, accept_by="total", accept=0.9)).judge(
        rows_of([RIGHT, "+100"])
    )
    assert 0.7 + 0.1 + 0.1 < 0.9 and judged.right_B.tolist() == [True, False]


@pytest.mark.parametrize(("steps", "of"), [("mean", np.mean), ("min", np.min), ("last", None)])
def test_what_the_prm_says_of_the_steps(steps, of):
    prm = fours_are_wrong()
    texts = [RIGHT, WITH_4, "", RIGHT]
    spec = RewardSpec(functions={"prm": {"steps": steps}, "outcome": {"weight": 0.5}})
    reward = Reward(spec, prm, rows=16, tokens=23)
    judged = reward.judge(rows_of(texts, finished=[True, True, True, False]))
    lines = [RIGHT.splitlines(True), WITH_4.splitlines(True)]
    score, valid, _ = prm.score([PROBLEM.prompt] * 2, lines)
    assert valid.all() and score[1, 1] < 0.5 < score[0, 1]
    wanted = score[:, -1] if of is None else of(score.astype(float), axis=1)
    np.testing.assert_allclose(judged.part_B["prm"][:2], wanted, rtol=1e-6)
    np.testing.assert_allclose(judged.reward_B[:2], wanted + [0.5, 0], rtol=1e-6)
    assert judged.reward_B[2:].tolist() == [0, 0]  # no step; did not end
    assert judged.reasons == {"prm": 0, "verifier": 0}
    # Blank lines are no steps, and nothing to be had by them.
    padded = reward.judge(rows_of([WITH_4, WITH_4 + "\n\n\n", "\n \n"]))
    np.testing.assert_array_equal(padded.reward_B[1], padded.reward_B[0])
    assert padded.part_B["prm"][2] == 0
    with pytest.raises(
        ValueError, match=r"config\.reward\.functions\.prm: no process reward model"
    ):
        Reward(spec).judge(rows_of(texts))


# ---- what the rest makes of it


def groups_by(reward: Reward, *rows: str, domain: Arithmetic = DOMAIN) -> Groups:
    """A group of these rows (`#` is the end token), judged by `reward`."""
    batch = scene(*rows)
    judged = reward.judge(
        rows_of([row.removesuffix("#") for row in rows], domain, [row[-1:] == "#" for row in rows])
    )
    found = groups_of(batch, judged.reward_B.tolist())
    return dataclasses.replace(found, right_B=judged.right_B)


def test_a_rescue_by_a_number_keeps_what_it_is_worth():
    """Of [0.25, 0.75] for the wrong and the right answer, with 0.5 as the threshold."""
    rows = (RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    spec = RewardSpec("my_mixture_test:quarter", accept=0.5, workers=1)
    with Reward(spec) as reward:
        groups = groups_by(reward, *rows)
        assert groups.reward_B.tolist() == [0.75, 0.25, 0.25, 0.75]
        assert groups.failed_B.tolist() == [False, True, True, False]
        result = rescue(groups, dataclasses.replace(played(), reward=reward), SPEC)
        lost = rescue(
            groups, dataclasses.replace(played(policy=bigram("\n+190#")), reward=reward), SPEC
        )
    final = result.groups
    assert text(final.rollout, 1) == RIGHT + "#"
    assert final.reward_B.tolist() == [0.75, 0.75, 0.25, 0.75]
    assert final.right_B.tolist() == [True, True, False, True] and final.include_B.all()
    assert (result.metrics["scope/failed_share"], result.metrics["scope/accepted"]) == (0.5, 1)
    assert result.metrics["scope/not_judged_timeout"] == 0
    # A tail that is worth 0.25 is none.
    assert lost.metrics["scope/accepted"] == 0 and lost.groups.reward_B.tolist() == [
        *(0.75, 0.25, 0.25, 0.75)
    ]
    # The same rewards with a threshold that nobody reaches.
    with Reward(dataclasses.replace(spec, accept=1.0)) as reward:
        groups = groups_by(reward, *rows)
        assert groups.failed_B.all()
        result = rescue(groups, dataclasses.replace(played(), reward=reward), SPEC)
    assert result.metrics["scope/corrected"] > 0 and result.metrics["scope/accepted"] == 0


def test_a_rescued_row_that_cannot_be_judged_is_counted_and_not_accepted():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    groups = groups_of(batch, [1, 0, 0, 1])
    with Reward(RewardSpec("my_mixture_test:silent", workers=1)) as reward:
        by_function = dataclasses.replace(played(), reward=reward)
        with pytest.warns(UserWarning, match="None from my_mixture_test:silent"):
            result = rescue(groups, by_function, SPEC)
    assert result.metrics["scope/not_judged_none"] == 1 and result.metrics["scope/accepted"] == 0
    assert result.groups.reward_B.tolist() == [1, 0, 0, 1]


def test_partial_credit_of_a_verifier_is_a_failure_and_full_credit_is_none():
    """The verdicts are numbers: 1.0 is as good as True, where a row is rescued too."""
    domain = Scored(start="zero")
    groups = groups_by(Reward(), RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT, domain=domain)
    np.testing.assert_array_equal(groups.reward_B, np.array([1, 0.9, 0.4, 0], np.float32))
    assert groups.failed_B.tolist() == [False, True, True, True]
    result = rescue(groups, played(domain=domain), SPEC)
    assert result.metrics["scope/accepted"] == 1 and text(result.groups.rollout, 1) == RIGHT + "#"
    assert result.groups.reward_B[1] == 1 and result.groups.right_B[1]
    # 0.9 is enough where that is said.
    generous = Reward(RewardSpec(accept=0.9))
    groups = groups_by(generous, RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT, domain=domain)
    assert groups.failed_B.tolist() == [False, False, True, True]


def test_a_continuation_succeeds_where_it_is_accepted():
    rows = scene(*[WRONG_2 + "#"] * 4)
    length = np.array([7 + 10])  # prompt, "+777\n-988\n"

    def won(reward: Reward) -> int:
        ended = dataclasses.replace(played(policy=LAST), reward=reward)
        found, _ = successes(rows, [PROBLEM] * 4, np.array([0]), length, ended, continuations=2)
        return int(found[0])

    assert won(Reward()) == 2  # "+198"
    with Reward(RewardSpec("my_mixture_test:quarter", accept=0.7, workers=1)) as reward:
        assert won(reward) == 2
    with Reward(RewardSpec("my_mixture_test:quarter", accept=0.8, workers=1)) as reward:
        assert won(reward) == 0


def test_vppo_takes_the_verdict_and_grpo_the_number():
    rows = (RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")

    def credit(reward: list[float], right: list[bool], way: Any) -> np.ndarray:
        made = dataclasses.replace(groups_of(scene(*rows), reward), right_B=np.array(right))
        found, _ = advantages(made, played(), way, AdvantageSpec(), max_new_tokens=16)
        return np.asarray(found)

    right = [True, False, False, True]
    as_ever = credit([1, 0, 0, 1], right, GoodPrefix())
    np.testing.assert_array_equal(credit([0.75, 0.25, 0.0, 0.5], right, GoodPrefix()), as_ever)
    assert (as_ever[0, 7:21] > 0).all() and (as_ever[1, 12:21] < 0).all()
    found = credit([0.75, 0.25, 0.0, 0.5], right, OutcomeCredit())
    np.testing.assert_allclose(found, [0.375, -0.125, -0.375, 0.125])


def test_prompts_that_failed_altogether_are_those_that_nobody_got_right():
    """ReLIFT: two groups of two rows."""
    groups = dataclasses.replace(
        groups_of(scene(*[WRONG_2 + "#"] * 4), [0.5, 0.25, 0.5, 0.9]), group=2
    )
    right = np.array([False, False, False, True])
    config = default_config("relift")
    progress, metrics = Progress(), {"grad/skipped_now": 0.0}
    for groups_, waiting in (
        (dataclasses.replace(groups, right_B=right), 1),
        (dataclasses.replace(groups, right_B=np.zeros(4, bool)), 3),
        (dataclasses.replace(groups, reward_B=np.array([0, NAN, 0, 0]), right_B=right), 3),
    ):
        train.clone_failures(
            None,
            None,
            train_config(config),
            progress,
            groups_,
            None,
            metrics,  # type: ignore[arg-type]
        )
        assert len(progress.waiting) == metrics["demonstrations/waiting"] == waiting


def test_an_empty_batch_is_judged():
    judged = Reward().judge(rows_of([]))
    assert judged.reward_B.shape == (0,) and judged.right_B.shape == (0,)
    assert jnp.asarray(judged.reward_B).dtype == jnp.float32
