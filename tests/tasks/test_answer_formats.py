"""How completions say their answers."""

import time

import pytest

from scope_jax.tasks.answer_formats import FORMATS

CASES = {
    "answer_tag": [
        ("So <answer> 12 </answer>.", "12"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer>1</answer> and <answer>2", "1"),
        ("<answer></answer>", None),
        ("</answer>3<answer>", None),
        ("12", None),
    ],
    "boxed": [
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{[1, 2]}", "[1, 2]"),
        ("\\boxed{1", None),
        ("12", None),
    ],
    "answer_is": [
        ("The answer is 12.", "12"),
        ("The answer is 1. No: the final Answer is: a, b\nBye.", "a, b"),
        ("The answer is 3.14.", "3.14"),
        ("The answer is\n12", None),
        ("12", None),
    ],
    "last_line": [("1 + 1\n= 2\n\n", "= 2"), (" \n", None), ("", None)],
    "whole": [(" 1 0\n0 1 \n", "1 0\n0 1"), ("\n", None)],
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_answer_of_a_text(name):
    form = FORMATS[name]
    assert [form.find(text) for text, _ in CASES[name]] == [answer for _, answer in CASES[name]]
    assert (
        form.find("One step.\n" + form.write("7 8")) == ("One step.\n7 8", "7 8")[name != "whole"]
    )


def test_a_step_with_the_mark_of_an_answer_is_seen():
    marks = {name: form.marks(form.write("7")) for name, form in FORMATS.items()}
    assert marks == {
        "answer_tag": True,
        "boxed": True,
        "answer_is": True,
        "last_line": False,
        "whole": False,
    }
    assert not any(form.marks("2 + 2 = 4\n\n") for form in FORMATS.values())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "answer is ", "\\boxed{", " ", "\n"])
def test_long_texts_are_read_in_no_time(name, piece):
    start = time.perf_counter()
    FORMATS[name].find(piece * 50_000)
    FORMATS[name].marks(piece * 50_000)
    assert time.perf_counter() - start < 1.0
