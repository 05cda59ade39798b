"""Graders: literal verdicts, a hostile corpus through each of them, and functions of the user that
misbehave."""

import time

import pytest

from scope_jax.tasks import Problem
from scope_jax.tasks.graders import Grader, boxed_form, check_grader, choice_letter, exact_answer
from scope_jax.tasks.rules import VERSION

MINE = """
import os, sys, time

def long_enough(fields, completion):
    return len(completion) >= int(fields["answer"])

def graded(fields, completion):
    return {"id": fields["id"] == "p", "level": fields["level"] / 10}[completion]

def any_way(fields, completion):
    if completion == "raise": raise KeyError("no")
    if completion == "exit": sys.exit(3)
    if completion == "die": os._exit(3)
    if completion == "hang": time.sleep(600)
    if completion == "spin": [None for _ in iter(int, 1)]
    if completion == "swallow":
        while True:
            try: time.sleep(600)
            except BaseException: pass
    if completion == "print": print("noise" * 1000)
    known = {"text": "yes", "list": [1], "nan": float("nan"), "two": 2, "none": None, "half": 0.5}
    return known.get(completion, True)

class Judge:
    @staticmethod
    def always(fields, completion): return True

not_a_function = 3
"""


def problem(answer: str, identity: str = "p") -> Problem:
    return Problem(id=identity, prompt="?", answer=answer)


@pytest.fixture(autouse=True)
def mine(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "functions"
    folder.mkdir(exist_ok=True)
    (folder / "my_grader.py").write_text(MINE)
    monkeypatch.syspath_prepend(folder)
    return folder


# ---- literal verdicts


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"so \boxed{C}.", "C"),
        (r"\boxed{c}", "C"),
        (r"\boxed{\text{(D) 12 cm}}", "D"),
        (r"\boxed{\textbf{B.} rock}", "B"),
        (r"first \boxed{A}, no: \boxed{B}", "B"),
        ("The answer is (J).", "J"),
        ("**Answer: B**", "B"),
        ("the answer is A. No, the answer is **D**", "D"),
        ("the answer is Apollo", None),
        ("the answer is a number", None),
        (r"\boxed{42}", None),
        (r"the answer is (A), so \boxed{42}", "A"),
        (r"\boxed{Apollo}", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice(text, letter):
    assert choice_letter(text) == letter


def test_exact_answers():
    assert exact_answer("so\n\n The  Moon \n\n") == "the moon"
    assert exact_answer(r"\boxed{The Moon} is it") == "the moon"
    assert exact_answer(" \n ") is None and exact_answer("x" * 2000) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        ("1,234", "1234", True),
        (r"5\text{ cm}", "5", False),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\frac12", r"\frac{1}{2}", True),
        (r"30^\circ", "30", True),
    ],
)
def test_forms_that_votes_are_counted_by(one, other, same):
    assert (boxed_form(rf"\boxed{{{one}}}") == boxed_form(rf"\boxed{{{other}}}")) is same


def test_scores_by_each_grader():
    with Grader("math", seconds=20) as grader:
        texts = [r"\boxed{0.5}", r"\boxed{0.4}", r"\boxed{1}"]
        assert grader.scores([problem(r"\frac12"), problem(r"\frac12"), problem("")], texts) == [
            1.0,
            0.0,
            None,
        ]
        assert grader.counts == {"judged": 2, "gold is empty": 1}
        assert grader.answer(texts[0]) == "0.5"
        assert (
            grader.record()["math_verify"].split(".")[0].isdigit()
            and "gold first" in grader.record()["how"]
            and grader.record()["rules"] == VERSION
        )
    with Grader("choice") as grader:
        assert grader.scores([problem("B")] * 3, [r"\boxed{B}", "answer is (A)", ""]) == [
            1.0,
            0.0,
            0.0,
        ]
        assert grader.answer("answer is (A)") == "A" and grader.record() == {
            "name": "choice",
            "rules": VERSION,
        }
    with Grader("exact") as grader:
        assert grader.scores([problem("The  moon")] * 2, ["THE MOON", "the sun"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="2 problems and 1 completions"):
        Grader("exact").scores([problem("1")] * 2, ["1"])


def test_several_values_of_olympiadbench_may_come_in_any_order():
    golds = ["-1, 7", "-1, 7", "(1,8), (2,7)", "(1,8), (2,7)", r"\frac{1}{2}, 2"]
    texts = [
        r"\boxed{7, -1}",
        r"\boxed{7}",
        r"\boxed{(1,8),(2,7)}",
        r"\boxed{(1,8)}",
        r"\boxed{\frac12, 2}",
    ]
    with Grader("math", seconds=20) as grader:
        assert grader.scores([problem(gold) for gold in golds], texts) == [1.0, 0.0, 1.0, 0.0, 1.0]


# ---- the hostile corpus

DEEP = r"\frac{1}{" * 400 + "2" + "}" * 400
HOSTILE = [
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{10^{10^{10}}!}",
    rf"\boxed{{{DEEP}}}",
    r"\boxed{" + r"\sqrt{" * 2000 + "}" * 2000 + "}",
    r"\boxed{" * 20_000,
    "{" * 100_000,
    r"\boxed{" + "x" * 100_000 + "}",
    "a" * 100_000,
    "answer is" + " " * 100_000,
    "answer" * 17_000,
    "$" * 100_000,
    "\n" * 100_000,
    "(" * 100_000 + ")" * 100_000,
    r"\boxed{" + "\\" * 99_999,
    r"\boxed{" + "{}" * 10_000 + "}",
    r"\boxed{" + "\\text{" * 150 + "q",
    r"\boxed{" + "1," * 5_000 + "1}",
    r"\boxed{\ud800}" + "\ud800\udfff" * 1000,
    "\0" * 1000 + "\x1b[2J",
    r"\def\a{\a\a}\a \boxed{\a}",
    r"\boxed{\sum_{n=1}^{10^{12}} \prod_{m=1}^{10^{12}} n^m}",
    r"\boxed{\input{/etc/hostname}}",
    r"\boxed{\int_0^1 x^{x^{x^{x^x}}} dx}",
]
CODE = [
    "__import__('pathlib').Path({!r}).touch()",
    "open({!r}, 'w')",
    "[c for c in ().__class__.__base__.__subclasses__()] or open({!r}, 'w')",
]


@pytest.mark.parametrize("name", ["math", "choice", "exact", "my_grader:long_enough"])
def test_hostile_texts_neither_hang_nor_kill_nor_run(name, tmp_path):
    marker = tmp_path / "was_run"
    code = [line.format(str(marker)) for line in CODE]
    texts = [
        *HOSTILE,
        *code,
        *(rf"\boxed{{{line}}}" for line in code),
        *(f"${line}$" for line in code),
        r"\boxed{7}",
    ]
    answer = {"choice": "Z", "my_grader:long_enough": "1000000"}.get(name, "7")
    start = time.monotonic()
    with Grader(name, seconds=1.0, workers=2) as grader:
        scores = grader.scores([problem(answer)] * len(texts), texts)
        answers = [grader.answer(text) for text in texts]
    assert all(score in (0.0, None) for score in scores[:-1]), [
        t[:40] for t, s in zip(texts, scores[:-1]) if s not in (0.0, None)
    ]
    assert scores[-1] == (1.0 if answer == "7" else 0.0)
    assert all(answer is None or len(answer) <= 1000 for answer in answers)
    assert not marker.exists()
    assert (
        time.monotonic() - start < 60
    )  # a second for each that never ends, and starts of workers on a busy machine


@pytest.mark.parametrize(
    "gold", [HOSTILE[0], rf"\boxed{{{DEEP}}}", "x" * 100_000, "\ud800", "__import__('os')._exit(1)"]
)
def test_hostile_references(gold):
    with Grader("math", seconds=1.0, workers=1) as grader:
        assert grader.scores([problem(gold), problem("1")], [r"\boxed{1}"] * 2) in (
            [0.0, 1.0],
            [None, 1.0],
        )
    for name in ("choice", "exact"):
        assert Grader(name).scores([problem(gold)], [r"\boxed{1}"]) == [0.0]


# ---- functions of the user


def test_a_function_sees_the_fields_of_the_problem_and_gives_a_score():
    with Grader("my_grader:graded", seconds=20, workers=1) as grader:
        rows = [{"level": 3, "id": "column", "when": object()}] * 2  # what is not JSON goes as text
        assert grader.scores([problem("1")] * 2, ["id", "level"], rows) == [1.0, 0.3]
        assert grader.record() == {"name": "my_grader:graded", "seconds": 20}
        assert grader.answer(r"\boxed{ 4 }") == "4"
    with Grader("my_grader:Judge.always", seconds=20, workers=1) as grader:
        assert grader.scores([problem("1")], [""]) == [1.0]


def test_a_function_that_misbehaves_costs_its_item_only():
    texts = [
        "raise",
        "exit",
        "die",
        "hang",
        "spin",
        "swallow",
        "text",
        "list",
        "nan",
        "two",
        "none",
        "half",
        "print",
        "fine",
    ]
    start = time.monotonic()
    with Grader("my_grader:any_way", seconds=1.0, workers=2) as grader:
        scores = grader.scores([problem("1")] * len(texts), texts)
    assert dict(zip(texts, scores)) == {
        **dict.fromkeys(texts),
        "half": 0.5,
        "print": 1.0,
        "fine": 1.0,
    }
    assert time.monotonic() - start < 40
    strange = "my_grader:any_way gave no bool, no number in [0, 1] and no None"
    assert grader.counts == {
        "judged": 3,
        "timeout": 3,
        "crash": 1,
        "KeyError in my_grader:any_way": 1,
        "SystemExit in my_grader:any_way": 1,
        "None from my_grader:any_way": 1,
        strange: 4,
    }


def test_names_that_are_no_grader():
    for name in (
        "maths",
        "my grader:x",
        "os.system('x'):y",
        "a:b:c",
        ":f",
        "m:",
        "__import__('os')",
    ):
        with pytest.raises(
            ValueError,
            match=(
                "is unknown; one of math, choice, exact, or a function of yours as module:function"
            ),
        ):
            check_grader(name)
    for name, reason in (
        ("no_such_module:f", "ModuleNotFoundError"),
        ("my_grader:g", "AttributeError"),
        ("my_grader:not_a_function", "TypeError"),
    ):
        with (
            Grader(name, workers=1) as grader,
            pytest.raises(RuntimeError, match=f"a worker did not start: {reason}"),
        ):
            grader.scores([problem("1")], ["1"])
