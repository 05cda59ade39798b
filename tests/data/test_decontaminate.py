import json

import pytest

from scope_jax.data.decontaminate import decontaminated, find_overlaps, words
from scope_jax.data.problems import Problems
from scope_jax.tasks.domain import Problem

LONG = (
    "Let $a$ and $b$ be positive integers such that $a + b = 10$ and the product is as large as"
    " possible. Find it."
)


def problems(*texts, name="p"):
    return [Problem(f"{name}{i}", text, "1") for i, text in enumerate(texts)]


def test_words():
    assert words("What is $1+1$?") == ["what", "is", "1", "+", "1"]
    assert words("  WHAT is\n\\left( 1 \\right) + 1") == ["what", "is", "1", "+", "1"]
    assert words("$\\frac{3.5}{x_1}$, \u22121 ﬁve") == ["3.5", "x", "1", "-", "1", "five"]
    assert words("Is 5! = n! (k)! so? Yes!") == [
        "is",
        "5",
        "!",
        "=",
        "n",
        "!",
        "k",
        "!",
        "so",
        "yes",
    ]
    assert words("$$ .,{} ") == []


def test_a_shared_run_of_thirteen_words_is_an_overlap():
    train = problems(
        "In a later year: "
        + LONG.upper()
        + " Explain.",  # the same but for case and what stands around it
        LONG.replace("$", "").replace(".", " . "),  # the same but for formatting
        LONG.replace("positive", "negative")
        .replace("product", "sum")
        .replace("large", "small"),  # no 13 words in a row
        "Something else altogether, " * 5,
    )
    evaluation = {
        "math500": problems("Nothing here.", LONG, name="m"),
        "aime": problems("Another one.", name="a"),
    }
    found = find_overlaps(train, evaluation)
    assert sorted(found) == [0, 1]
    assert (found[0].train, found[0].set, found[0].evaluation) == ("p0", "math500", "m1")
    assert found[0].text == "let a and b be positive integers such that a + b ="
    assert sorted(find_overlaps(train, evaluation, n=4)) == [0, 1, 2]
    with pytest.raises(ValueError, match="n-grams of 0 words"):
        find_overlaps(train, evaluation, n=0)


def test_short_problems_are_compared_whole():
    evaluation = {"e": problems("What is $1+1$?", "$$")}
    train = problems("What is 1 + 1", "What is $1-1$?", "Tell me: What is $1+1$?", "$$")
    assert sorted(find_overlaps(train, evaluation)) == [0]


def test_twelve_words_in_common_are_none():
    text = "one two three four five six seven eight nine ten eleven twelve"
    assert find_overlaps(problems(text + " here"), {"e": problems(text + " there")}) == {}
    assert sorted(
        find_overlaps(problems(text + " x here"), {"e": problems(text + " x there")})
    ) == [0]


def test_counted_listed_and_removed():
    train = Problems.from_list(problems(LONG, "free", "What is 2 + 2?"), "train", skipped=3)
    evaluation = {"a": problems(LONG, name="a"), "b": problems("what is 2+2", name="b")}
    same, record = decontaminated(train, evaluation, remove=False)
    assert same is train and (record["checked"], record["overlapping"], record["removed"]) == (
        3,
        2,
        0,
    )
    assert record["by_set"] == {"a": 1, "b": 1}
    assert json.loads(json.dumps(record))["overlaps"][1] == {
        "train": "p2",
        "set": "b",
        "evaluation": "b0",
        "text": "what is 2 + 2",
    }
    kept, record = decontaminated(train, evaluation)
    assert [p.id for p in kept] == ["p1"] and kept.skipped == 3 and record["removed"] == 2
    with pytest.raises(ValueError, match="train: every training problem overlaps"):
        decontaminated(train, {"all": list(train)})
