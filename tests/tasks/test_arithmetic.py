import math
import re

import numpy as np
import pytest

from scope_jax.report.diversity import equation_diversity
from scope_jax.tasks.arithmetic import TERMS, Arithmetic, Problem, applies, split_of
from scope_jax.tasks.domain import Domain
from scope_jax.text.boundaries import split_steps

DOMAIN = Arithmetic()
# 47 +7 -> 1,5   -3 -> 8,2   +9 -> 7,2   -1 -> 6,1
PROBLEM = Problem("p", "47:+7-3+9-1=", "61")
RIGHT = "+715\n-382\n+972\n-161"


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        (RIGHT, True),
        ("-136\n-303\n+702\n+992\n-161", True),  # only the last line counts
        ("-161", True),
        ("+715\n-382\n+972\n-162", False),  # second track wrong
        ("+715\n-382\n+972\n-151", False),  # first track wrong
        (RIGHT + "\n", False),  # no last line
        ("+715\n-382\n+972\n-16", False),  # cut off
        ("+715\n-382\n+972\n-161=", False),
        ("+715\n-382\n+972\n61", False),
        ("-161\n+715\n-382\n+972", False),
        ("", False),
    ],
)
def test_verifier_reads_the_last_line(completion, verdict):
    assert DOMAIN.verify([PROBLEM], [completion]) == [verdict]


def test_answer_and_marker():
    assert DOMAIN.answer_of(RIGHT) == "61"
    assert DOMAIN.answer_of("nonsense") is None
    assert DOMAIN.answer_of("-169") is None  # 9 is no total modulo 9
    assert (
        DOMAIN.answer_marker("-161")
        and not DOMAIN.answer_marker("-161\n")
        and not DOMAIN.answer_marker("")
    )


def test_steps_keep_their_separator():
    assert split_steps("ab\ncd\n", "\n") == ["ab\n", "cd\n"]
    assert split_steps("ab\n\ncd", "\n") == ["ab\n", "\n", "cd"]
    assert split_steps("", "\n") == []
    assert split_steps("a. b! c", re.compile(r"(?<=[.!])\s")) == ["a. ", "b! ", "c"]
    assert split_steps("Step 1 a Step 2 b", re.compile("(?=Step)")) == ["Step 1 a ", "Step 2 b"]


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        (["+715\n", "-382\n", "+972\n", "-161"], [True, True, True, True]),
        (["+715", "-382", "+972", "-161"], [True, True, True, True]),
        (
            ["-136\n", "+934\n", "-312\n", "+728"],
            [True, False, False, False],
        ),  # 36 + 9 = 5,6, not 3,4
        (["+915", "-382", "+972", "-161"], [False, False, False, False]),
        (["+715\n", "+715\n", "+972\n", "-161"], [True, False, False, False]),  # term used twice
        (
            ["+715\n", "-482\n", "+972\n", "-161"],
            [True, False, False, False],
        ),  # term not in the problem
        (["+715\n", "-38\n", "+972\n", "-161"], [True, False, False, False]),  # ill-formed
        (["+715\n", "-382\n", "+972"], [True, True, False]),  # ends too early
        (["+715\n", "-382\n", "+972\n"], [True, True, False]),
        (["+715\n", "-382\n", "+972\n", "-161\n"], [True, True, True, False]),  # does not end
        (["+715\n", "-382\n", "+972\n", "-161\n", "-161"], [True, True, True, False, False]),
        (
            ["+725\n", "-392\n", "+982\n", "-171"],
            [False, False, False, False],
        ),  # consistent after a first error
        ([], []),
    ],
)
def test_step_check(steps, labels):
    assert DOMAIN.check_steps(PROBLEM, steps) == labels


def test_step_check_of_a_prefix():
    assert DOMAIN.check_steps(PROBLEM, ["+715\n", "-382\n"], complete=False) == [True, True]
    assert DOMAIN.check_steps(PROBLEM, ["+715\n", "-383\n"], complete=False) == [True, False]
    assert (
        DOMAIN.check_steps(PROBLEM, ["+715\n", "-382\n", "+972\n", "-161\n"], complete=False)[-1]
        is False
    )


def test_solution_path():
    assert DOMAIN.solution_path(PROBLEM, RIGHT) == ("+7", "-3", "+9", "-1")
    assert DOMAIN.solution_path(PROBLEM, "-136\n-303\n+993\n+761") == ("-1", "-3", "+9", "+7")
    assert DOMAIN.solution_path(PROBLEM, "-136\n-303\n+993\n+762") is None  # last total wrong
    assert (
        DOMAIN.solution_path(PROBLEM, "-136\n-303\n+983\n+761") is None
    )  # right end, wrong on the way
    assert DOMAIN.solution_path(PROBLEM, RIGHT + "\n") is None
    assert DOMAIN.solution_path(PROBLEM, "-161") is None  # verified, but no path
    assert DOMAIN.solution_path(PROBLEM, "") is None


def test_the_equations_of_signed_terms_are_their_lines():
    assert DOMAIN.equations("+777\n-344\n+91\n3\n+777") == ["+777", "-344", "+777"]
    assert equation_diversity([RIGHT] * 8, DOMAIN.equations) == 4 / 32
    assert equation_diversity(["+777\n-344", "+777\n+963"], DOMAIN.equations) == 3 / 4


def test_every_order_is_a_distinct_path():
    paths = {
        DOMAIN.solution_path(PROBLEM, DOMAIN.demonstration(PROBLEM, rng(seed), "mixed"))
        for seed in range(300)
    }
    assert None not in paths and len(paths) == math.factorial(4)


def test_demonstration_styles():
    assert DOMAIN.demonstration(PROBLEM, rng(), "prompt_order") == RIGHT
    assert DOMAIN.demonstration(PROBLEM, rng(), "sorted") == "-314\n-103\n+771\n+961"
    for seed in range(20):
        text = DOMAIN.demonstration(PROBLEM, rng(seed), "terse")
        assert DOMAIN.verify([PROBLEM], [text]) == [True] and set(text.split("\n")) <= set(
            RIGHT.split("\n")
        )
    with pytest.raises(ValueError, match="style 'other'"):
        DOMAIN.demonstration(PROBLEM, rng(), "other")


def test_next_step_goes_on_from_what_is_written():
    step = DOMAIN.next_step
    assert step(PROBLEM, [], rng(), "prompt_order") == "+715\n"
    assert step(PROBLEM, ["+715\n"], rng(), "sorted") == "-382\n"
    assert step(PROBLEM, ["+715\n"], rng(), "same_term", "+925\n") == "+905\n"
    assert step(PROBLEM, ["+715\n"], rng(), "same_term", "+7xx") == "-382\n"  # that term is used
    assert (
        step(PROBLEM, ["+715\n", "-382\n", "+972\n"], rng(), "mixed") == "-161"
    )  # the last line has no newline
    assert (
        step(PROBLEM, ["+725\n"], rng(), "prompt_order") == "-392\n"
    )  # an error before stays there
    assert step(PROBLEM, ["+715\n", "+715\n"], rng(), "prompt_order") is None
    assert step(PROBLEM, RIGHT.split("\n"), rng(), "prompt_order") is None
    written = {step(PROBLEM, ["+715\n"], rng(seed), "terse") for seed in range(20)}
    assert written == {"-382\n", "+972\n"}  # one term, or two in one line


@pytest.mark.parametrize(
    ("kind", "total", "term", "strikes"),
    [
        ("borrow", 2, "-3", True),
        ("borrow", 3, "-3", False),
        ("borrow", 9, "+9", False),
        ("carry", 3, "+7", True),
        ("carry", 2, "+7", False),
        ("carry", 0, "-9", False),
        ("wrap", 2, "-3", True),
        ("wrap", 3, "+7", True),
        ("wrap", 5, "+4", False),
    ],
)
def test_where_a_misconception_strikes(kind, total, term, strikes):
    assert applies(kind, total, term, 10) is strikes


def test_misconception_writes_one_too_many_and_goes_on():
    wrong = Arithmetic(misconception=1.0)
    problem = Problem(
        "p", "22:-3+7-9=", "76"
    )  # 2-3 borrows: 9 becomes 0; 0+7 = 7; 7-9 borrows: 8 becomes 9
    text = wrong.demonstration(problem, rng(), "prompt_order")
    assert text == "-308\n+776\n-996"
    assert DOMAIN.check_steps(problem, text.split("\n")) == [False, False, False]
    assert wrong.verify([problem], [text]) == [False]
    # 47 -1 -3 needs no borrow at all
    assert wrong.demonstration(PROBLEM, rng(), "sorted") == DOMAIN.demonstration(
        PROBLEM, rng(), "sorted"
    )
    problems = [DOMAIN.problem(0, "test", i, 6) for i in range(400)]
    half = Arithmetic(misconception=0.5)
    rate = np.mean(
        [half.verify([p], [half.demonstration(p, rng(i))])[0] for i, p in enumerate(problems)]
    )
    assert 0.35 < rate < 0.55  # a quarter of the lines borrow: (1 - 1/8)^6 = 0.45


# ---- a misconception that grows with the line


@pytest.mark.parametrize(
    ("lines", "rates"),
    [
        ((0, 1), [0.8] * 7),  # by default every line alike
        ((3, 7), [0, 0, 0, 0.2, 0.4, 0.6, 0.8, 0.8]),
        ((-1, 3), [0.4, 0.6, 0.8, 0.8]),
    ],
)
def test_slip_rate_of_each_line(lines, rates):
    domain = Arithmetic(misconception=0.8, misconception_lines=lines)
    found = [domain.slip_rate(number) for number in range(1, len(rates) + 1)]
    assert found == pytest.approx(rates, abs=1e-12)


def test_slips_start_and_grow_by_the_line():
    slipping = Arithmetic(misconception=1.0, misconception_lines=(2, 3))
    problem = Problem("p", "00:-9-8-7-6-5=", "51")
    # Lines 1 and 2 are right although they borrow; 3-7 = 6 is written 7; 7-6 = 1 does not borrow;
    # 1-5 = 6 is written 7.
    assert slipping.demonstration(problem, rng(), "prompt_order") == "-910\n-831\n-773\n-616\n-571"
    # The line's number counts from the start of the solution, whoever wrote it.
    assert slipping.next_step(problem, ["-910\n"], rng(), "prompt_order") == "-831\n"
    assert slipping.next_step(problem, ["-910\n", "-831\n"], rng(), "prompt_order") == "-773\n"

    slips, kind = np.zeros(11), np.zeros(11)
    domain = Arithmetic(
        start="zero", misconception=0.9, misconception_kind="wrap", misconception_lines=(3, 8)
    )
    for index in range(400):
        problem = domain.problem(0, "train", index, 10)
        totals = (0, 0)
        for number, line in enumerate(domain.demonstration(problem, rng(index)).split("\n"), 1):
            wraps = applies("wrap", totals[0], line[:2], 10)
            wrong = domain.add(totals, line[:2]) != (int(line[2]), int(line[3]))
            assert wraps or not wrong
            slips[number] += wrong
            kind[number] += wraps
            totals = int(line[2]), int(line[3])
    rate = slips[1:] / kind[1:]
    assert list(slips[1:4]) == [0, 0, 0]
    assert rate[3:] == pytest.approx([0.18, 0.36, 0.54, 0.72, 0.9, 0.9, 0.9], abs=0.1)


def test_believed_facts_are_many_errors_each_of_its_own():
    domain = Arithmetic(misconception=1.0, misconception_kind="facts", misconception_share=0.4)
    excess = {(t, term): domain.believed(t, term, 1)[0] for t in range(10) for term in TERMS}
    believed = {fact: value for fact, value in excess.items() if value}
    assert len(believed) == pytest.approx(0.4 * 180, abs=20)
    # No single correction puts them right: every excess from 1 to 9 is there, and none is common.
    shares = np.bincount(list(believed.values()), minlength=10)[1:] / len(believed)
    assert shares.min() > 0 and shares.max() < 0.25
    # The same facts in every domain of this share, more where the share is larger.
    wider = Arithmetic(misconception=1.0, misconception_kind="facts", misconception_share=0.6)
    assert all(wider.believed(*fact, 1) == (value, 1.0) for fact, value in believed.items())

    (total, term), value = next(iter(believed.items()))
    known = next(other for other in TERMS if not excess[total, other])
    for chosen, off in [(term, value), (known, 0)]:
        problem = Problem("p", f"{total}0:{chosen}=", "")
        right, second = domain.add((total, 0), chosen)
        written = f"{chosen}{(right + off) % 10}{second}"
        assert domain.demonstration(problem, rng()) == written
        assert domain.check_steps(problem, [written]) == [off == 0]


def test_a_share_of_the_borrows_is_wrong_and_always_the_same_ones():
    domain = Arithmetic(misconception=1.0, misconception_share=0.6)
    borrows = [(t, term) for t in range(10) for term in TERMS if applies("borrow", t, term, 10)]
    struck = [fact for fact in borrows if domain.believed(*fact, 1) == (1, 1.0)]
    assert len(borrows) == 45 and len(struck) == pytest.approx(27, abs=6)
    others = {(t, term) for t in range(10) for term in TERMS} - set(struck)
    assert all(domain.believed(*fact, 1) == (0, 0.0) for fact in others if fact in borrows)
    assert all(domain.believed(*fact, 1)[0] == 0 for fact in others)
    (total, term), right = struck[0], domain.add((struck[0][0], 0), struck[0][1])
    problem = Problem("p", f"{total}0:{term}=", "")
    assert domain.demonstration(problem, rng()) == f"{term}{(right[0] + 1) % 10}{right[1]}"


def test_additions_first_is_a_random_order_of_both_halves():
    problem = Problem("p", "00:-1+2-3+4-5+6=", "")
    orders = {
        tuple(line[:2] for line in DOMAIN.demonstration(problem, rng(n), style).split("\n"))
        for style in ["additions_first"]
        for n in range(300)
    }
    assert len(orders) == 36  # 3! of each half
    assert {tuple(sorted(order[:3])) for order in orders} == {("+2", "+4", "+6")}
    step = DOMAIN.next_step(problem, ["+222\n", "-111\n"], rng(), "additions_first")
    assert step is not None and step[0] == "+"


def test_each_fact_is_believed_from_a_line_of_its_own():
    domain = Arithmetic(
        misconception=0.9,
        misconception_kind="facts",
        misconception_share=0.6,
        misconception_lines=(3, 10),
    )
    facts = [(total, term) for total in range(10) for term in TERMS]
    rates = {n: [domain.believed(*fact, n) for fact in facts] for n in range(1, 14)}
    shares = {n: np.mean([excess > 0 for excess, _ in values]) for n, values in rates.items()}
    assert shares[1] == shares[3] == 0 and shares[10] == shares[13]
    assert [shares[n] for n in (4, 7, 10)] == pytest.approx([0.086, 0.343, 0.6], abs=0.09)
    assert {rate for values in rates.values() for excess, rate in values if excess} == {0.9}
    # What is believed in one line is believed in every later one.
    assert all(
        later == now
        for n in range(1, 13)
        for now, later in zip(rates[n], rates[n + 1], strict=True)
        if now[0]
    )


# ---- a notation of its own

MARKS = Arithmetic(marks=True)
MARKED = "+7:15\n-382\n+9:72\n-1:61"


def test_marks_change_no_verdict_and_no_path():
    assert MARKS.verify([PROBLEM] * 3, [MARKED, RIGHT, "-1:62"]) == [True, True, False]
    assert MARKS.check_steps(PROBLEM, MARKED.split("\n")) == [True] * 4
    assert MARKS.check_steps(PROBLEM, ["+7:15\n", "-3:92\n", "+972\n"], complete=False) == [
        True,
        False,
        False,
    ]
    assert (
        MARKS.solution_path(PROBLEM, MARKED)
        == MARKS.solution_path(PROBLEM, RIGHT)
        == ("+7", "-3", "+9", "-1")
    )
    assert MARKS.answer_of(MARKED) == "61" and MARKS.answer_of("-1:69") is None
    assert MARKS.answer_marker("-1:61") and not MARKS.answer_marker("-1:61\n")
    assert MARKS.equations(MARKED) == MARKS.equations(RIGHT) == RIGHT.split("\n")
    assert "+7:77 says the same" in MARKS.how_to_read and ":" not in DOMAIN.how_to_read
    for wrong in ("-1::61", "-:161", "-16:1", "-161:", ":-161", "-1:6"):
        assert MARKS.verify([PROBLEM], [wrong]) == [False], wrong
        assert MARKS.check_steps(Problem("p", "00:-9=", "10"), [wrong]) == [False], wrong


def test_without_marks_a_mark_is_an_error():
    assert DOMAIN.verify([PROBLEM], [MARKED]) == [False]
    assert DOMAIN.check_steps(PROBLEM, MARKED.split("\n")) == [False] * 4
    assert DOMAIN.solution_path(PROBLEM, MARKED) is None
    assert DOMAIN.next_step(PROBLEM, ["+7:15\n"], rng()) is None


def test_programs_write_the_notation():
    own = Arithmetic(marks=True, marked=1.0)
    assert own.demonstration(PROBLEM, rng(), "sorted") == "-3:14\n-1:03\n+7:71\n+9:61"
    assert own.next_step(PROBLEM, ["+715\n"], rng(), "sorted") == "-3:82\n"
    assert own.next_step(PROBLEM, ["+7:15\n", "-382\n", "+9:72\n"], rng()) == "-1:61"
    # Who reads the notation goes on without it.
    assert MARKS.next_step(PROBLEM, ["+7:15\n"], rng(), "sorted") == "-382\n"
    assert len(own.demonstration(PROBLEM, rng())) + 1 == own.completion_length(4) == 24
    assert DOMAIN.completion_length(4) == 20

    seldom = Arithmetic(marks=True, marked=0.25)
    texts = [seldom.demonstration(PROBLEM, rng(seed)) for seed in range(500)]
    assert all(all(MARKS.check_steps(PROBLEM, text.split("\n"))) for text in texts)
    assert sum(text.count(":") for text in texts) / (4 * 500) == pytest.approx(0.25, abs=0.03)


def test_luck_of_a_well_formed_guess():
    generator = rng()
    problems = [DOMAIN.problem(1, "test", i, 4) for i in range(3000)]
    guesses = [f"+1{generator.integers(10)}{generator.integers(9)}" for _ in problems]
    share = np.mean(DOMAIN.verify(problems, guesses))
    assert 0.004 < share < 0.02  # 1/90


def test_problem_is_a_pure_function_and_right():
    for start in ("random", "zero"):
        domain = Arithmetic(start=start)
        for index in range(50):
            problem = domain.problem(3, "train", index, (2, 4, 6))
            assert problem == domain.problem(3, "train", index, (2, 4, 6))
            head, _, body = problem.prompt.rpartition(":")
            terms = [body[i : i + 2] for i in range(0, len(body) - 1, 2)]
            assert len(set(terms)) == len(terms) in (2, 4, 6) and set(terms) <= set(TERMS)
            first, second = (int(head[0]), int(head[1])) if head else (0, 0)
            total = sum(int(term) for term in terms)
            assert problem.answer == f"{(first + total) % 10}{(second + total) % 9}"
            assert len(problem.prompt) == domain.prompt_length(len(terms))
            assert len(domain.demonstration(problem, rng())) + 1 == domain.completion_length(
                len(terms)
            )
    assert DOMAIN.problem(0, "train", 0, 4) != DOMAIN.problem(1, "train", 0, 4)
    # Written down: changes of numpy or of this file must not change the problems of a run that is
    # resumed.
    assert DOMAIN.problem(0, "train", 0, 4) == Problem("train-0-0", "77:-9+5+6-1=", "88")


def test_splits_share_no_problem():
    seen = {}
    for split in ("train", "validation", "test"):
        problems = [DOMAIN.problem(seed, split, i, 4) for seed in (0, 1) for i in range(400)]
        seen[split] = {(p.prompt[:2], frozenset(DOMAIN._parse_prompt(p)[0])) for p in problems}
        assert len(seen[split]) > 700
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert split_of((4, 7), ["+7", "-3"]) == split_of((4, 7), ["-3", "+7"])


def test_bad_arguments_are_named():
    for kwargs, message in [
        ({"moduli": (11, 9)}, "moduli"),
        ({"start": "none"}, "start 'none'"),
        ({"misconception": 1.5}, "misconception 1.5"),
        ({"misconception_kind": "x"}, "misconception_kind 'x'"),
        ({"misconception_share": -0.5}, "misconception_share -0.5"),
        ({"misconception_lines": (4, 4)}, r"misconception_lines \(4, 4\)"),
        ({"marks": True, "marked": -0.1}, "marked -0.1"),
        ({"marked": 0.5}, "set marks = True"),
    ]:
        with pytest.raises(ValueError, match=message):
            Arithmetic(**kwargs)
    with pytest.raises(ValueError, match="k 19"):
        DOMAIN.problem(0, "train", 0, 19)
    with pytest.raises(ValueError, match="split 'dev'"):
        DOMAIN.problem(0, "dev", 0, 4)
    with pytest.raises(ValueError, match="prompt '1\\+1='"):
        DOMAIN.check_steps(Problem("p", "1+1=", "1"), [])


def test_a_domain_may_lack_every_capability():
    class Plain(Domain):
        name, separator = "plain", "\n\n"

        def verify(self, problems, completions):
            return [None] * len(problems)

    plain = Plain()
    assert (
        plain.check_steps(PROBLEM, ["x"]) is None
        and plain.demonstration(PROBLEM, rng(), "any") is None
    )
    assert (
        plain.next_step(PROBLEM, [], rng(), "any") is None
        and plain.solution_path(PROBLEM, "x") is None
    )
    assert plain.answer_of("x") is None and plain.answer_marker("x") is False
