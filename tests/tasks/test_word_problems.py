"""Word problems: verdicts of steps by hand, programs that write right lines, splits."""

import re

import numpy as np
import pytest

from scope_jax.data.load import TaskSpec, generated_domain, load_task
from scope_jax.tasks.word_problems import STYLES, Problem, WordProblems, split_of
from scope_jax.text import load_tokenizer, split_steps

DOMAIN = WordProblems()
PROBLEM = Problem(
    "p",
    "Maria has 20 dollars. She buys 3 pens for 4 dollars each. She gets 15 dollars from Omar."
    " She pays 4 dollars for a ride. How many dollars does Maria have in the end?",
    "19",
)
RIGHT = (
    "3 pens cost 3 * 4 = 12 dollars.\n"
    "That leaves 20 - 12 = 8 dollars.\n"
    "That makes 8 + 15 = 23 dollars.\n"
    "That leaves 23 - 4 = 19 dollars.\n"
    "The answer is 19."
)


def labels(*lines, complete=True):
    return DOMAIN.check_steps(PROBLEM, [f"{line}\n" for line in lines], complete=complete)


def test_a_right_solution():
    steps = split_steps(RIGHT, "\n")
    assert DOMAIN.check_steps(PROBLEM, steps) == [True] * 5
    assert DOMAIN.verify([PROBLEM], [RIGHT]) == [True]
    assert DOMAIN.equations(RIGHT)[0] == "3 * 4 = 12"


@pytest.mark.parametrize(
    ("lines", "good"),
    [
        (["20 + 15 = 35", "35 - 4 = 31", "3 * 4 = 12", "31 - 12 = 19"], 4),  # another order
        (["4 * 3 = 12", "12 + 4 = 16", "20 + 15 = 35", "35 - 16 = 19"], 4),  # what is spent, summed
        (["20 - 3 * 4 = 8", "8 + 15 - 4 = 19"], 2),  # several at once
        (["20 - 3 * 4 + 15 - 4 = 19"], 1),
        (["3 * 4 = 13"], 0),  # not true
        (["3 * 5 = 15"], 0),  # true, of numbers that are not there
        (["20 + 4 = 24"], 0),  # 4 is paid, not given
        (["20 - 15 = 5"], 0),  # 15 is given, not paid
        (["20 - 4 = 16", "16 - 4 = 12"], 1),  # 4 was paid once; the other 4 is a price
        (["15 + 4 = 19"], 0),
        (["4 - 15 = 11"], 0),
        (["20 = 20"], 0),  # says nothing
        (["20"], 0),
        (["3 * 4 = 12 and 20 - 12 = 8"], 0),  # two equations
        (["3 * 4 = 12 = 12"], 0),
        (["20 - 3 * 4 = 8", "8 + 15 = 23", "23 - 4 = 20", "20 + 0 = 20"], 2),
        # A part of each is true; the whole is not, or is no equation of this notation.
        (["3 * 4 = 12,000"], 0),
        (["3 * 4 = 12.5"], 0),
        (["3 * 4 = 12 * 3"], 0),
        (["3 * 4 = 12 + 3"], 0),
        (["2 * 3 * 4 = 12"], 0),
        (["100 / 3 * 4 = 12"], 0),
        (["-3 * 4 = 12"], 0),
        (["1.3 * 4 = 12"], 0),
        (["(2 -20 + 15 = 35"], 0),
        (["3 * 4 = \u0661\u0662"], 0),  # other digits
        (["3 * 4 = 1" + "0" * 5000], 0),
        (["1 + " * 5000 + "1 = 2"], 0),
    ],
)
def test_lines(lines, good):
    expected = [True] * good + [False] * (len(lines) - good)
    assert labels(*(f"That is {line} dollars." for line in lines), complete=False) == expected


def test_the_end_of_a_solution():
    steps = split_steps(RIGHT, "\n")
    assert DOMAIN.check_steps(PROBLEM, steps[:3]) == [True, True, False]  # ends too early
    assert DOMAIN.check_steps(PROBLEM, steps[:3], complete=False) == [True] * 3
    wrong = [*steps[:4], "The answer is 20."]
    assert DOMAIN.check_steps(PROBLEM, wrong) == [True] * 4 + [False]
    early = [*steps[:3], "The answer is 23."]
    assert DOMAIN.check_steps(PROBLEM, early) == [True] * 3 + [False]
    goes_on = [*steps[:4], "The answer is 19.\n", "19 + 1 = 20\n"]
    assert DOMAIN.check_steps(PROBLEM, goes_on) == [True] * 4 + [False, False]


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("The answer is 19.", True),
        ("The answer is 19", True),
        (" 3 * 4 = 12\nThe answer is 19.\n", True),
        ("The answer is 019.", True),
        ("The answer is 19.\nThat is all.", False),
        ("The answer is 1.9", False),
        ("The answer is 19.\n ", True),
        ("The answer is \u0661\u0669.", False),
        ("The answer is 1" + "0" * 5000 + ".", False),
        ("19", False),
        ("", False),
    ],
)
def test_the_verdict_looks_at_the_last_line(completion, verdict):
    assert DOMAIN.verify([PROBLEM], [completion]) == [verdict]


def test_paths_are_the_equations_without_their_order():
    path = DOMAIN.solution_path(PROBLEM, RIGHT)
    assert path is not None and len(path) == 4
    turned = RIGHT.replace("3 * 4", "4 * 3").replace("8 + 15", "15 + 8")
    assert DOMAIN.solution_path(PROBLEM, turned) == path
    other = "20 + 15 = 35\n35 - 4 = 31\n3 * 4 = 12\n31 - 12 = 19\nThe answer is 19."
    assert DOMAIN.solution_path(PROBLEM, other) not in (None, path)
    # The right answer by a wrong line is no path.
    assert DOMAIN.solution_path(PROBLEM, RIGHT.replace("= 8", "= 9")) is None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_programs_write_right_lines(style, k):
    rng = np.random.default_rng(k)
    for index in range(25):
        problem = DOMAIN.problem(0, "train", index, k)
        text = DOMAIN.demonstration(problem, rng, style)
        steps = split_steps(text, "\n")
        assert DOMAIN.check_steps(problem, steps) == [True] * len(steps), (problem, text)
        assert DOMAIN.verify([problem], [text]) == [True]
        assert k + 1 <= len(steps) <= 2 * k + 1
        assert len(problem.prompt) <= DOMAIN.prompt_length(k)
        assert len(text) < DOMAIN.completion_length(k)
        assert set(problem.prompt + text) <= set(DOMAIN.characters)


def test_the_answer_is_that_of_the_story():
    """Told again by hand: each sentence's numbers, added or taken away by its verb."""
    for index in range(200):
        problem = DOMAIN.problem(1, "train", index, (2, 3, 4))
        first, *events, _ = re.findall(r"[^.?]+[.?]", problem.prompt)
        total = int(re.search(r"\d+", first)[0])
        for event in events:
            taken = re.search(r"buys .* for|pays|lends|gives|loses|bakes|sells|eat", event)
            sign = -1 if taken else 1
            if "bakes" in event or ("sells" in event and "old" in event):
                sign = 1
            total += sign * int(np.prod([int(n) for n in re.findall(r"\d+", event)]))
            assert 0 <= total <= DOMAIN.largest_total
        assert str(total) == problem.answer, problem


def test_a_next_step_goes_on_from_right_lines_only():
    rng = np.random.default_rng(0)
    steps = split_steps(RIGHT, "\n")
    assert DOMAIN.next_step(PROBLEM, steps[:4], rng) == "The answer is 19."
    assert DOMAIN.next_step(PROBLEM, steps[:1], rng, "in_order") == steps[1]
    assert DOMAIN.next_step(PROBLEM, ["3 * 4 = 13\n"], rng) is None
    assert DOMAIN.next_step(PROBLEM, steps, rng) is None
    assert DOMAIN.answer_marker(steps[4]) and not any(map(DOMAIN.answer_marker, steps[:4]))
    with pytest.raises(ValueError, match="style 'odd': expected one of"):
        DOMAIN.next_step(PROBLEM, [], rng, "odd")


def test_problems_are_pure_and_splits_share_none():
    assert DOMAIN.problem(0, "train", 3, (2, 3)) == DOMAIN.problem(0, "train", 3, (2, 3))
    found = {
        split: {DOMAIN.problem(seed, split, n, 2).prompt for n in range(100) for seed in (0, 1)}
        for split in ("train", "validation", "test")
    }
    assert not found["train"] & found["test"] and not found["train"] & found["validation"]
    assert all(split_of(prompt) == split for split, texts in found.items() for prompt in texts)
    assert len(found["train"]) > 190


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest_each": 1}, "largest_each 1: expected 2 to 99"),
        ({"largest_total": 3, "largest_amount": 3}, "largest_total 3: expected 40 to 9999"),
        ({"largest_amount": 100}, "largest_amount 100: expected 2 to 99"),
        ({"largest": 3}, "config.task.options.largest: unknown"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        generated_domain("word_problems", options)


def test_bad_problems():
    with pytest.raises(ValueError, match="split 'dev': expected one of"):
        DOMAIN.problem(0, "dev", 0, 2)
    with pytest.raises(ValueError, match="k 9: expected 1 to 8 events"):
        DOMAIN.problem(0, "train", 0, 9)
    with pytest.raises(ValueError, match="expected a story made by this domain"):
        DOMAIN.check_steps(Problem("x", "How many?", "3"), ["3"])


def test_the_data_set(tmp_path):
    options = {"train_size": 8, "test_size": 4, "test_ood_size": 2, "validation_size": 1}
    task = load_task(TaskSpec(name="word_problems", data=str(tmp_path), options=options))
    assert len(task.train) == 8 and task.train[5] == task.domain.problem(0, "train", 5, (2, 3))
    assert {name: len(found) for name, found in task.evaluation.items()} == {
        "test": 4,
        "test_ood": 2,
    }


def test_a_text_by_characters(tmp_path):
    from scope_jax.text import character_tokenizer, save_tokenizer

    save_tokenizer(character_tokenizer(DOMAIN.characters), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode(RIGHT)) == RIGHT


def test_two_amounts_of_one_size():
    """A sum may be as large as what was there at first: a program still goes on."""
    story = Problem(
        "p",
        "Leo has 20 shells. He finds 12 shells. He finds 8 shells. He loses 20 shells. How many"
        " shells does Leo have in the end?",
        "20",
    )
    steps = ["That makes 12 + 8 = 20 shells.\n"]
    for style in STYLES:
        written = list(steps)
        rng = np.random.default_rng(0)
        while (step := DOMAIN.next_step(story, written, rng, style)) is not None:
            written.append(step)
        assert DOMAIN.check_steps(story, written) == [True] * len(written)
        assert DOMAIN.verify([story], ["".join(written)]) == [True]


def test_nothing_is_left():
    story = Problem(
        "p",
        "Jack has 48 shells. He gives 8 shells to each of 6 friends. How many shells does Jack have"
        " in the end?",
        "0",
    )
    for first in ("6 * 8 - 48 = 0\n", "48 - 6 * 8 = 0\n"):
        assert DOMAIN.check_steps(story, [first, "The answer is 0."]) == [True, True]
