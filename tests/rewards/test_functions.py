"""Functions of the user in real worker processes: every reason why a row has no value, by a
function that does it."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hand_made import PROBLEM, RIGHT

from scope_jax.rewards import Reward, RewardSpec, Rows
from scope_jax.tasks import Arithmetic, Problem

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"
MINE = """
import os, sys, time
import numpy as np

KEPT = []

def by_word(problem, completion, token_ids):
    if completion == "raise": raise KeyError("no such " + problem["id"])
    if completion == "exit": sys.exit(3)
    if completion == "die": os._exit(3)
    if completion == "sleep": time.sleep(600)
    if completion == "swallow":
        while True:
            try: time.sleep(600)
            except BaseException: pass
    if completion == "allocate": return float(len(bytearray(1 << 31)) > 0)
    if completion == "hoard":
        while True: KEPT.append(np.zeros(1 << 26, np.int8))
    if completion == "keep and sleep":
        KEPT.append(np.zeros(400 << 20, np.int8))
        time.sleep(600)
    if completion == "kept": return float(len(KEPT) == 0)
    if completion == "some": return float(len(bytearray(1 << 26)) > 0)
    known = {"none": None, "text": "1", "nan": float("nan"), "inf": float("inf"), "list": [1],
             "huge": 10 ** 400, "above": 1.5, "below": -0.01, "true": True, "half": 0.5,
             "numpy": np.float32(0.25), "one": 1}
    return known[completion]

def seen(problem, completion, token_ids):
    said = [problem["id"], problem["prompt"], problem["answer"], problem["solution"], completion]
    return float(said == ["a", "1+1=", "2", None, "\\U0001f600 2"] and token_ids == [5, 0, 7])

def cents(problem, completion, token_ids): return float(completion)

def two(problem, completion): return 1

def four(problem, completion, token_ids, more): return 1

def with_default(problem, completion, token_ids, more=1): return more

class Judge:
    @staticmethod
    def always(problem, completion, token_ids): return 1

class ByCall:
    def __call__(self, problem, completion, token_ids): return 1

called = ByCall()
not_a_function = 3
"""


@pytest.fixture(autouse=True)
def mine(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "rewards"
    folder.mkdir(exist_ok=True)
    (folder / "my_rewards_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(folder)


def rows_of(texts: list[str], **more: Any) -> Rows:
    problems = [Problem(f"p{n}", "?", "") for n in range(len(texts))]
    everyone = np.ones(len(texts), bool)
    given = {"problems": problems, "ids": [[1]] * len(texts), "finished_B": everyone} | more
    return Rows(Arithmetic(), given["problems"], texts, given["ids"], given["finished_B"])


# What each word makes of the row.
REASONS = {
    "none": ["none"],
    "exception": ["raise", "exit"],
    "timeout": ["sleep", "swallow"],
    "memory": ["allocate", "hoard"],
    "crash": ["die"],
    "not_a_number": ["text", "nan", "inf", "list", "huge"],
    "out_of_range": ["above", "below"],
}
VALUES = {"true": 1.0, "half": 0.5, "numpy": 0.25, "one": 1.0, "kept": 1.0, "some": 1.0}


def test_a_process_that_was_stopped_with_its_memory_full_is_replaced():
    spec = RewardSpec("my_rewards_test:by_word", seconds=1.0, memory_mb=512, workers=1)
    with Reward(spec) as reward, pytest.warns(UserWarning, match="p0: timeout"):
        judged = reward.judge(rows_of(["keep and sleep", "kept", "sleep", "kept"]))
    assert np.isnan(judged.reward_B[[0, 2]]).all() and judged.reward_B[[1, 3]].tolist() == [1, 1]
    assert judged.reasons["timeout"] == 2


def test_every_reason_is_counted_and_costs_its_row_alone():
    words = [word for reason in REASONS.values() for word in reason]
    # A good row after each bad one: the process that took the other's place works.
    texts = [text for word in words for text in (word, "half")] + list(VALUES)
    spec = RewardSpec("my_rewards_test:by_word", seconds=1.0, memory_mb=512, workers=2)
    begin = time.monotonic()
    with Reward(spec) as reward, pytest.warns(UserWarning) as said:
        reward.start()
        judged = reward.judge(rows_of(texts))
    assert time.monotonic() - begin < 60
    value = dict(zip(texts, judged.reward_B.tolist(), strict=True))
    assert {word: value[word] for word in VALUES} == VALUES and np.isnan(
        [value[word] for word in words]
    ).all()
    half = [n for n, text in enumerate(texts) if text == "half"]
    assert (judged.reward_B[half] == 0.5).all()
    assert dict(judged.reasons) == {reason: len(words) for reason, words in REASONS.items()}
    metrics = judged.metrics()
    assert {name: metrics[name] for name in metrics if "unscored" in name} == {
        f"reward/unscored_{reason}": len(words) for reason, words in REASONS.items()
    }
    # Right: 1 of [0, 1]. One warning for each reason, with the problem of the row and what it was.
    assert judged.right_B.tolist() == [value[text] == 1 for text in texts]
    lines = [str(warning.message) for warning in said]
    assert len(lines) == len(REASONS)
    [line] = [line for line in lines if "KeyError" in line]
    assert line == (
        "reward 'by_word': problem p2: KeyError in my_rewards_test:by_word: 'no such p2'; such rows"
        " are left out, and counted in reward/unscored_exception"
    )


def test_what_a_function_is_given():
    problem = Problem("a", "1+1=", "2")
    with Reward(RewardSpec("my_rewards_test:seen", workers=1)) as reward:
        rows = rows_of(["\U0001f600 2"], problems=[problem], ids=[np.array([5, 0, 7]).tolist()])
        assert reward.judge(rows).reward_B.tolist() == [1]


def test_a_declared_range_is_the_range():
    part = {"function": "my_rewards_test:cents", "range": (-100, 50), "weight": 0.01}
    spec = RewardSpec(functions={"cents": part}, accept=0.3, workers=1)
    with Reward(spec) as reward, pytest.warns(UserWarning, match=r"50\.1 is outside \[-100, 50\]"):
        judged = reward.judge(rows_of(["-100", "50", "30", "29.99", "50.1"]))
    np.testing.assert_allclose(judged.reward_B, [-1, 0.5, 0.3, 0.2999, np.nan], rtol=1e-6)
    assert judged.right_B.tolist() == [False, True, True, False, False]
    assert judged.reasons["out_of_range"] == 1


def test_a_row_that_did_not_end_is_not_asked_about():
    finished = np.array([True, False, False])
    for weight, total in ((1.0, [0.5, 0, 0]), (-1.0, [-0.5, -1, -1])):
        part = {"function": "my_rewards_test:by_word", "weight": weight}
        spec = RewardSpec(functions={"word": part}, workers=1)
        with Reward(spec) as reward:
            judged = reward.judge(rows_of(["half", "half", "raise"], finished_B=finished))
        assert judged.reward_B.tolist() == total and not judged.right_B[1:].any()
        assert sum(judged.reasons.values()) == 0


@pytest.mark.parametrize("name", ["with_default", "Judge.always", "called"])
def test_what_can_be_called_with_three_arguments_is_a_function(name):
    with Reward(RewardSpec(f"my_rewards_test:{name}", workers=1)) as reward:
        reward.start()
        assert reward.judge(rows_of(["x"])).reward_B.tolist() == [1]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("no_such_module_here:f", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        (
            "my_rewards_test:none",
            "AttributeError: module 'my_rewards_test' has no attribute 'none'",
        ),
        (
            "my_rewards_test:not_a_function",
            "TypeError: my_rewards_test:not_a_function is a int, no",
        ),
        ("my_rewards_test:two", "TypeError: my_rewards_test:two(problem, completion) cannot be"),
        ("my_rewards_test:four", "cannot be called as (problem, completion, token_ids): missing a"),
    ],
)
def test_a_function_that_cannot_be_used_is_named_with_its_setting(function, reason):
    for spec, where in (
        (RewardSpec(function, workers=1), "function"),
        (RewardSpec(functions={"x": function}, workers=1), "functions.x.function"),
    ):
        with Reward(spec) as reward, pytest.raises(ValueError) as caught:
            reward.start()
        assert str(caught.value).startswith(f"config.reward.{where} = {function!r}: ")
        assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_pattern_matches_all_of_a_completion_or_runs_out_of_time():
    part = {"pattern": "(a+)+b|<t>.*</t>\n"}
    spec = RewardSpec(functions={"format": part}, seconds=1.0, workers=1)
    texts = ["ab", "aab ", "x ab", "<t>1</t>\n", "<t>1\n</t>\n", "", "a" * 40 + "c", "aaab"]
    with Reward(spec) as reward, pytest.warns(UserWarning, match="reward 'format': problem p6"):
        reward.start()
        judged = reward.judge(rows_of(texts))
    np.testing.assert_array_equal(judged.reward_B, [1, 0, 0, 1, 0, 0, np.nan, 1])
    assert judged.reasons["timeout"] == 1


def test_the_functions_of_the_page(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    (tmp_path / "my_rewards.py").write_text(next(b for b in blocks if "my_rewards.py" in b))
    monkeypatch.syspath_prepend(tmp_path)
    functions = {
        "totals": "my_rewards:totals",
        "brief": {"function": "my_rewards:brief", "range": (-1, 0)},
    }
    texts = [RIGHT, "+198", "+197", "", "+100"]
    ids = [[1] * 14, [1] * 4, [1] * 17, [], [1] * 99]
    with Reward(RewardSpec(functions=functions, workers=1)) as reward:
        judged = reward.judge(rows_of(texts, problems=[PROBLEM] * 5, ids=ids))
    assert judged.part_B["totals"].tolist() == [1, 1, 0.5, 0, 0]
    np.testing.assert_allclose(judged.part_B["brief"], [-14 / 34, -4 / 34, -0.5, 0, -1])
