"""A step checker as localiser, in real worker processes: what it names, every reason why a row is
not located, what is refused."""

import dataclasses
import re
import time
from pathlib import Path

import numpy as np
import pytest
from support.hand_made import (
    ORACLE,
    PROBLEM,
    RIGHT,
    SPEC,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    groups_of,
    played,
    run,
    scene,
)

from scope_jax.correction import LocaliserSpec, locate, make_localiser, rescue
from scope_jax.correction.step_checkers import REASONS, Checkers, StepChecker
from scope_jax.text import split_steps

PAGE = Path(__file__).resolve().parents[2] / "docs" / "step_checkers.md"

MINE = """
import os, sys, time
import numpy as np

KNOWN = ["+777", "-987", "+198"]

def by_hand(problem, steps):
    "The totals of the one problem, written down."
    assert problem["prompt"] == "+7-9+1=" and problem["answer"] == "98", problem
    for index, (step, right) in enumerate(zip(steps, KNOWN)):
        if step.rstrip("\\n") != right: return index
    return None

def by_word(problem, steps):
    word = steps[-1]
    if word == "raise": raise KeyError("no such " + problem["id"])
    if word == "exit": sys.exit(3)
    if word == "die": os._exit(3)
    if word == "sleep": time.sleep(600)
    if word == "allocate": return len(bytearray(1 << 31)) * 0
    return {"none": None, "first": 0, "last": len(steps) - 1, "numpy": np.int64(1), "true": True,
            "text": "1", "half": 0.5, "minus": -1, "beyond": len(steps)}[word]

def one(problem): return None
def three(problem, steps, more): return None
not_a_function = 3
"""
BY_HAND = LocaliserSpec("function", function="my_checkers_test:by_hand", workers=1)
BY_WORD = dataclasses.replace(
    BY_HAND, function="my_checkers_test:by_word", seconds=2.0, memory_mb=512
)


@pytest.fixture(autouse=True)
def mine(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "checkers"
    folder.mkdir(exist_ok=True)
    (folder / "my_checkers_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(folder)


def test_the_first_wrong_step_literal():
    batch = scene(WRONG_3 + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    with make_localiser(BY_HAND) as localiser:
        localiser.start()
        seen = dataclasses.replace(played(), localiser=localiser)
        located = locate(groups_of(batch, [0, 0, 0, 0]), np.ones(4, bool), seen)
    assert located.error_R.tolist() == [2, 1, 0, 3]  # 3: no step of the last row is wrong
    assert located.has_error_R.tolist() == [True, True, True, False]
    assert located.score_RJ.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert located.valid_RJ.all() and located.good_tokens_R.tolist() == [10, 5, 0, 0]
    assert located.metrics["scope/unscored"] == 0
    assert {name for name in located.metrics if name.startswith("scope/unscored_")} == {
        f"scope/unscored_{reason}" for reason in REASONS
    }


def test_a_rescue_is_the_one_of_the_domains_own_check():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", RIGHT + "#")
    by_domain = run(batch, [1, 0, 0, 1], localiser=ORACLE)
    with StepChecker(BY_HAND) as localiser:
        seen = dataclasses.replace(played(), localiser=localiser)
        result = rescue(groups_of(batch, [1, 0, 0, 1]), seen, SPEC)
    by_hand = result.groups
    assert np.array_equal(by_domain.rollout.tokens_BT, by_hand.rollout.tokens_BT)
    assert by_hand.reward_B.tolist() == by_domain.reward_B.tolist() and by_hand.reward_B.sum() == 3
    assert {k: result.metrics[k] for k in by_domain.metrics} == by_domain.metrics
    assert result.metrics["scope/located_share"] == 1


def test_the_function_of_the_page(tmp_path, monkeypatch):
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    (tmp_path / "my_checkers.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    texts = [RIGHT, WRONG_1, WRONG_2, WRONG_3, "+777\n-987", "+777\n-987\n"]
    rows = [split_steps(text, "\n") for text in texts]
    spec = dataclasses.replace(BY_HAND, function="my_checkers:first_wrong")
    with Checkers(spec) as checkers:
        found = checkers.first_wrong([PROBLEM] * len(rows), rows)
    assert [index for index, _, _ in found] == [-1, 0, 1, 2, 1, 1]


WORDS = {
    "exception": ["raise", "exit"],
    "timeout": ["sleep"],
    "memory": ["allocate"],
    "crash": ["die"],
    "not_an_index": ["true", "text", "half"],
    "out_of_range": ["minus", "beyond"],
}


def test_every_reason_is_known_and_costs_its_row_alone():
    words = [word for reason in WORDS.values() for word in reason]
    texts = [text for word in words for text in (word, "last")] + ["none", "first", "numpy"]
    rows = [["a", "b", text] for text in texts]
    begin = time.monotonic()
    with Checkers(BY_WORD) as checkers:
        found = checkers.first_wrong([PROBLEM] * len(rows), rows)
    assert time.monotonic() - begin < 120
    named = dict(zip(texts, found, strict=True))
    assert [named[word][0] for word in ("last", "none", "first", "numpy")] == [2, -1, 0, 1]
    assert all(value[0] == 2 for text, value in zip(texts, found, strict=True) if text == "last")
    assert {word: named[word][:2] for word in words} == {
        word: (None, reason) for reason, some in WORDS.items() for word in some
    }
    assert named["raise"][2] == f"KeyError in my_checkers_test:by_word: 'no such {PROBLEM.id}'"
    assert named["beyond"][2] == "my_checkers_test:by_word gave 3 for a row of 3 steps"
    assert set(WORDS) == set(REASONS)


def test_rows_without_an_answer_stay_failures_and_are_counted():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_2 + "#")
    with StepChecker(BY_WORD) as localiser:  # these words it does not know
        seen = dataclasses.replace(played(), localiser=localiser)
        mask = np.array([0, 1, 1, 1], bool)
        with pytest.warns(UserWarning) as said:
            located = locate(groups_of(batch, [1, 0, 0, 0]), mask, seen)
    assert not located.valid_RJ.any() and not located.has_error_R.any()
    assert located.metrics["scope/unscored"] == located.metrics["scope/unscored_exception"] == 3
    [line] = [str(warning.message) for warning in said]
    assert line.startswith("localiser 'my_checkers_test:by_word': problem ")
    assert "KeyError" in line and line.endswith("counted in scope/unscored_exception")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("no_such_module_here:f", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("my_checkers_test:none", "AttributeError: module 'my_checkers_test' has no attribute"),
        ("my_checkers_test:not_a_function", "TypeError: my_checkers_test:not_a_function is a int"),
        ("my_checkers_test:one", "cannot be called as (problem, steps): too many positional"),
        ("my_checkers_test:three", "cannot be called as (problem, steps): missing a required"),
    ],
)
def test_a_function_that_cannot_be_used_is_named_with_its_setting(function, reason):
    spec = dataclasses.replace(BY_HAND, function=function)
    with StepChecker(spec) as localiser, pytest.raises(ValueError) as caught:
        localiser.start()
    assert str(caught.value).startswith(f"config.localiser.function = {function!r}: ")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "function"}, "localiser.function is None; localiser.kind 'function' needs a"),
        ({"kind": "function", "function": "mine"}, "localiser.function = 'mine': expected a step"),
        ({"kind": "function", "function": "a b:c"}, "localiser.function = 'a b:c': expected"),
        ({"function": "mine:f"}, "is for localiser.kind 'function', not 'prm'; set it to None"),
        ({"seconds": 0.0}, "localiser.seconds = 0.0 must be a number above 0"),
        ({"memory_mb": 0}, "localiser.memory_mb = 0 must be at least 1"),
        ({"workers": 0}, "localiser.workers = 0 must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError) as caught:
        LocaliserSpec(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
