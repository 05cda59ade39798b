"""The rules of verdicts: every pair of `verdict_pairs`, and texts that are made to be slow."""

import time
from fractions import Fraction

import pytest
from verdict_pairs import KINDS, ONLY_AS_TEXT

from scope_jax.tasks.answers import boxed_solution, hash_answer, last_boxed, normal_answer
from scope_jax.tasks.graders import Grader, boxed_form
from scope_jax.tasks.rules.boxes import answer_in_boxes
from scope_jax.tasks.rules.choices import choice_letter
from scope_jax.tasks.rules.rationals import rational
from scope_jax.tasks.rules.readings import read
from scope_jax.tasks.rules.spelling import spelled
from scope_jax.tasks.rules.units import split_unit
from scope_jax.tasks.verify_math import MathVerifier

PAIRS = [
    (name, reference, answer, verdict)
    for name, kind in KINDS.items()
    for verdict, pairs in ((True, kind.right), (False, kind.wrong))
    for reference, answer in pairs
]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(workers=2, seconds=30.0) as pool:
        yield pool


def boxed(answer: str) -> str:
    return rf"So the answer is $\boxed{{{answer}}}$."


def test_every_pair_of_the_corpus(verifier):
    assert len(PAIRS) >= 400 and sum(not right for *_, right in PAIRS) >= 150
    assert all(kind.source and kind.right and kind.wrong for kind in KINDS.values())
    got = verifier.verify([boxed(a) for _, _, a, _ in PAIRS], [g for _, g, _, _ in PAIRS])
    misses = [(*pair, verdict) for pair, verdict in zip(PAIRS, got) if verdict is not pair[3]]
    assert not misses, "\n".join(map(str, misses))


def test_every_reference_equals_itself_and_is_judged(verifier):
    golds = sorted({gold for _, gold, _, _ in PAIRS})
    assert verifier.verify([boxed(gold) for gold in golds], golds) == [True] * len(golds)
    other = verifier.verify([boxed("987654321")] * len(golds), golds)
    assert [gold for gold, verdict in zip(golds, other) if verdict is not False] == []


def test_what_only_its_text_tells_is_not_judged(verifier):
    golds = [gold for gold, _ in ONLY_AS_TEXT]
    assert verifier.verify([boxed(a) for _, a in ONLY_AS_TEXT], golds) == [None] * len(golds)
    assert verifier.verify([boxed(gold) for gold in golds], golds) == [True] * len(golds)


def test_what_votes_call_equal_is_right():
    """Over all texts of the corpus, those of wrong pairs too: one spelling, one verdict."""
    for _, gold, answer, right in PAIRS:
        if boxed_form(boxed(gold)) == boxed_form(boxed(answer)):
            assert right, (gold, answer)


def test_one_spelling_is_right_to_the_verifier(verifier):
    texts = sorted({text for _, gold, answer, _ in PAIRS for text in (gold, answer)})
    forms: dict[str, str] = {}
    equal = [
        (first, text)
        for text in texts
        if (first := forms.setdefault(normal_answer(text), text)) != text
    ]
    assert len(equal) > 50
    got = verifier.verify([boxed(second) for _, second in equal], [first for first, _ in equal])
    assert [pair for pair, verdict in zip(equal, got) if verdict is not True] == []


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        ("The answer is 4.5e33.", "4.5e33", True),
        ("The answer is 115 000.", "115000", True),
        ("Answer: 28%", "0.28", True),
        ("The answer is 6-5 i", "6-5i", True),
        ("**Answer: 73**", "73", True),
        ("The final answer is $3t$.", "3", False),
        (r"The answer is $\frac{1}{2^{99}}$.", r"\frac{1}{2^{98}}", False),
        ("I think it is 5. Or 6.", "5", False),
        (r"\boxed{5}", r"Therefore the answer is $5$.", True),
        (r"\boxed{6}", r"Therefore the answer is $5$.", False),
        (r"\boxed{5}", r"$5$ cm", True),
    ],
)
def test_answers_without_a_box_and_references_in_sentences(verifier, text, gold, verdict):
    assert verifier.verify([text], [gold]) == [verdict]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30", 30),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"18\frac{19}{20}", Fraction(379, 20)),
        (r"4.5\times 10^{3}", 4500),
        ("3(2+1)^{2}", 27),
        ("-2^{2}", -4),
        ("2-3-4", -5),
        ("12/2/3", 2),
        ("1/0", None),
        ("1/2(3)", None),
        ("2 3", None),
        ("x", None),
        ("", None),
        ("2^{1/2}", None),
        ("10^{10^{10}}", None),
        ("1" * 1001, None),
        ("(" * 100 + "1" + ")" * 100, None),
    ],
)
def test_exact_values(text, value):
    assert rational(text) == value


@pytest.mark.parametrize(
    ("text", "rest", "measure"),
    [
        (r"5\text{ cm}^2", "5", "cm^2"),
        ("60 miles per hour", "60", "mi/h"),
        ("4 square feet", "4", "ft^2"),
        ("12 ways", "12", ""),
        ("3t", "3t", ""),
        ("5 dozen", "5 dozen", ""),
        (r"\pi r^2\text{ m}^2", r"\pi r^{2}", "m^2"),
        ("x", "x", ""),
    ],
)
def test_units(text, rest, measure):
    split = split_unit(spelled(text))
    assert (split.rest, split.measure) == (rest, measure)


# ---- hostile texts

N = 200_000
HOSTILE = [
    " " * N,
    "\n" * N,
    r"\boxed" + " " * N,
    r"\boxed{A" + " " * N + "}",
    "#### 1" + " " * N,
    ("####" + " " * 50) * (N // 54),
    "Answer: A " * (N // 10),
    "answer is" + " " * N,
    "1" * N,
    "1," * N,
    "1 " * N,
    "1e" * N,
    "9^" * (N // 2),
    "0." + "3" * N + "...",
    r"\frac" * (N // 5),
    r"\frac{" * (N // 6),
    r"\sqrt(" * (N // 6),
    r"\text{" * (N // 6),
    r"\frac{\text{" * (N // 12),
    "5 " + r"\text{m}" * (N // 8),
    "(" * N,
    "{" * N,
    "$" * N,
    "=" * N,
    "x = " * (N // 4),
    "and " * (N // 4),
    ", " * (N // 2),
    "<<" * N,
    "*" * N,
]


@pytest.mark.parametrize(
    "function",
    [
        normal_answer,
        lambda text: read(text, reference=False),
        answer_in_boxes,
        last_boxed,
        choice_letter,
        hash_answer,
        lambda text: boxed_solution(text, "1"),
    ],
    ids=["normal_answer", "read", "boxes", "last_boxed", "choice", "hash", "solution"],
)
def test_time_is_linear_in_the_text(function):
    """What is quadratic takes a minute at this length; a busy machine gets its share of 5 s."""
    for text in HOSTILE:
        start = time.monotonic()
        function(text)
        assert time.monotonic() - start < 5, text[:20]


def test_numbers_too_large_to_compute_are_judged_at_once(verifier):
    huge = ["1e999999999", "10^{10^{10}}", r"10^{-999999999}", "9" * 5000, "1000000!"]
    start = time.monotonic()
    assert verifier.verify(list(map(boxed, huge)), ["1"] * len(huge)) == [False] * len(huge)
    assert verifier.verify([boxed("0")] * 3, huge[:3]) == [False] * 3
    assert verifier.verify(list(map(boxed, huge)), huge) == [True] * len(huge)
    assert time.monotonic() - start < 20


# ---- multiple choice

CHOICES = [
    (r"\boxed{A, C}", None),
    (r"\boxed{A \text{ or } B}", None),
    (r"\boxed{A \& C}", None),
    (r"\boxed{AC}", None),
    (r"\boxed{A} and \boxed{B}", None),
    (r"\boxed{A, B, \text{ and } C}", None),
    ("the answer is (A), so \\boxed{A, C}", None),
    ("Answer: A or B", None),
    ("Answer: (A) or (B)", None),
    ("Answer: A/C", None),
    ("Answer: A + B", None),
    ("The answer is N/A", None),
    ("Answer: I do not know", None),
    ("Answer: I think B", None),
    ("The answer is A good idea", None),
    ("answer is X-ray", None),
    (r"\boxed{\text{I do not know}}", None),
    (r"\boxed{\text{A good idea}}", None),
    (r"\boxed{E=mc^2}", None),
    (r"\boxed{x+1}", None),
    ("**Answer:** C", "C"),
    ("**Answer**: D", "D"),
    ("ANSWER: C", "C"),
    ("Answer: A", "A"),
    ("Answer: I", "I"),
    ("Answer: A because it is", "A"),
    ("Answer: B because it is", "B"),
    ("The answer is B, not A", "B"),
    ("The answer is B. C is wrong.", "B"),
    ("The answer is option C", "C"),
    (r"Answer: \text{C}", "C"),
    ("Answer:\n\nD", "D"),
    (r"\boxed{\text{Option C}}", "C"),
    (r"\boxed{\text{Answer: C}}", "C"),
    (r"\boxed{\textrm{C}}", "C"),
    (r"\boxed{\mathbf{C}}", "C"),
    (r"\boxed{C \quad 12}", "C"),
    (r"\boxed{\textbf{(A)}\ 12}", "A"),
    (r"\boxed{\text{C. } x = 5}", "C"),
    (r"\boxed{I}", "I"),
    ("Answer: A AND B", None),
    ("Answer: A OR B", None),
    ("Answer: A,  B", None),
    ("Answer: A\nB", None),
    ("Answer: A | B", None),
    (r"Answer: A \& B", None),
    (r"Answer: A \text{ or } B", None),
    ("Answer: A (and B)", None),
    ("Answer: A as well as B", None),
    (r"\boxed{A, c}", None),
    (r"\boxed{(A)(C)}", None),
    (r"\boxed{A (or C)}", None),
    (r"\boxed{C(10,3)}", None),
    (r"\boxed{P(A)}", None),
    (r"\boxed{A\pi r^2}", None),
    ("Answer: E = mc^2", None),
    ("Answer: H2O", None),
    ("Answer: C14", None),
    ("Answer: C-14", None),
    ("Answer: C++", None),
    ("Answer: A^2", None),
    (r"\boxed{A AND B}", None),
    (r"\boxed{A | B}", None),
    (r"\boxed{A \& B}", None),
    ("Answer: E=mc^2", None),
    (r"\boxed{H2O}", None),
    (r"\boxed{C-14}", None),
    (r"\boxed{C++}", None),
    (r"\boxed{A^2}", None),
    ("Answer: $A^2$", None),
    (r"Answer: $A\pi r^2$", None),
    ("Answer: P(A)", None),
    ("Answer: C(10,3)", None),
    ("Answer: (A)(C)", None),
    ("Answer: B cells", None),
    ("Answer: A and/or B", None),
    (r"\boxed{A or B}", None),
    (r"\boxed{A and B}", None),
    ("Answer: A, c", None),
    (r"\boxed C", "C"),
    (r"\boxed{\mathsf{C}}", "C"),
    (r"\boxed{\textsf{C}}", "C"),
    (r"\boxed{\boldsymbol{C}}", "C"),
    (r"\boxed{\mbox{C}}", "C"),
    (r"\boxed{[C]}", "C"),
    (r"\boxed{\text{C is correct}}", "C"),
    ("The correct option is C.", "C"),
    (r"Answer: \(C\)", "C"),
    ("Answer: `C`", "C"),
    ('Answer: "C"', "C"),
    ("<answer>C</answer>", "C"),
    ("The answer should be C", "C"),
    ("Answer: C", "C"),
    ("Answer: C.", "C"),
    ("Answer: (C) 12 cm", "C"),
    ("The answer is C because A is wrong.", "C"),
    ("Answer: C) 12", "C"),
    ("Answer: C: 12", "C"),
    ("Answer: C\n\nBecause A is not.", "C"),
    ("The answer is C, not A", "C"),
    ("Answer: C - 14 apples", "C"),
    (r"\boxed{C) 12}", "C"),
    (r"\boxed{(C) 12}", "C"),
    ("The answer is C, since it is.", "C"),
    ("The correct answer is C", "C"),
    ("Answer: C, because B is false", "C"),
    ("The correct choice is (C).", "C"),
    ("Answer: C\nA is wrong.", "C"),
]


@pytest.mark.parametrize(("text", "letter"), CHOICES)
def test_one_letter_or_none(text, letter):
    """NeMo-Gym#1844 and #1945, inspect_ai#2217, and neighbours."""
    assert choice_letter(text) == letter


def test_records_name_the_version_of_the_rules():
    records = {name: Grader(name).record() for name in ("math", "choice", "exact")}
    assert {record["rules"] for record in records.values()} == {2}
    assert "rules" not in Grader("module:function").record()
