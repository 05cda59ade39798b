"""The checker of algebra: lines by hand, and random equations against substituting numbers."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from scope_jax.tasks.algebra_checker import follows, is_solved, reasons
from scope_jax.tasks.algebra_steps import next_line
from scope_jax.tasks.check_algebra import first_wrong
from scope_jax.tasks.equations import Unreadable, read_line, read_side, written

RIGHT = [
    ("3(x-2)=x+4", "3x-6=x+4"),
    ("3x-6=x+4", "2x-6=4"),
    ("3x-6=x+4", "3x=x+10"),
    ("2x=10", "x=5"),
    ("2x=10", "5=x"),
    ("2x=10", "10=2x"),
    ("2x=7", "x=7/2"),
    ("2x=7", "x=3.5"),
    ("2x=7", "x=\\frac{7}{2}"),
    ("-x=3", "x=-3"),
    ("x/2+x/3=5", "5x/6=5"),
    ("x/2+x/3=5", "3x+2x=30"),
    ("(x+1)/2=(x-1)/3", "3(x+1)=2(x-1)"),
    ("1/2*x=4", "x=8"),
    ("x=6/2", "x=6/2=3"),
    ("x^2=9", "x=3 or x=-3"),
    ("x^2=9", "(x-3)(x+3)=0"),
    ("x^2-5x+6=0", "x-2=0 or x-3=0"),
    ("x-2=0 or x-3=0", "x=2 or x-3=0"),
    ("(x-2)^2=0", "x=2"),
    ("x^2=2", "x^2-2=0"),
    ("x^2=2", "x^4=4"),  # the other two zeros are not real
    ("x^2+1=0", "no x"),
    ("x^3=x", "x=0 or x=1 or x=-1"),
    ("x^2=3x", "x(x-3)=0"),
    ("x^2=3x", "x=0 or x=3"),
    ("2x+3=2x+5", "3=5"),
    ("2x+3=2x+5", "no x"),
    ("2(x+1)=2x+2", "any x"),
    ("2(x+1)=2x+2", "0=0"),
    ("(x^2-4)/(x-2)=4", "x+2=4, x!=2"),
    ("(x^2-4)/(x-2)=4", "no x"),
    ("(x^2-4)/(x-2)=0", "x=-2"),
    ("x/x=1", "any x, x!=0"),
    ("x/x=1", "x=x, x!=0"),
    ("12/(x-1)=x", "12=x(x-1)"),  # x=1 does not solve the second
    ("1/x=1/3", "x=3"),
    ("1/(x-1)=1/(x-1)", "any x and x!=1"),
    ("6 = 3 x - 3", "9 = 3 · x"),
    ("x-1=0", "(x-1)(x^2+1)=0"),
    # expressions
    ("2(x+3)-(x-1)", "=x+7"),
    ("2(x+3)-(x-1)", "2x+6-x+1=x+7"),
    ("(x^2-1)/(x-1)", "x+1"),
    ("(x+1)^3", "x^3+3x^2+3x+1"),
    ("1/x+1/(x+1)", "(2x+1)/(x(x+1))"),
    ("-x^2", "-(x^2)"),
    ("3x/2", "1.5x"),
]
WRONG = [
    # signs
    ("3x-6=x+4", "4x-6=4", "solutions lost: x=5; solutions gained: x=5/2"),
    ("2x-6=4", "2x=-2", "solutions lost: x=5; solutions gained: x=-1"),
    ("-x=3", "x=3", "solutions lost: x=-3; solutions gained: x=3"),
    ("5-(x-2)=1", "5-x-2=1", "gained: x=2"),
    ("x^2-5x=-6", "x^2-5x-6=0", "lost: x=2 or x=3"),
    # brackets
    ("3(x-2)=x+4", "3x-2=x+4", "gained: x=3"),
    ("(x+1)^2=9", "x^2+1=9", "lost: x=-4 or x=2; solutions gained: x^2-8=0"),
    ("-(x+1)=2", "-x+1=2", "lost: x=-3"),
    # both sides
    ("x/2+1=4", "x+1=8", "lost: x=6"),
    ("2x=10", "x=8", "lost: x=5"),
    ("2x=10", "x=10/2=6", "lost: x=5"),
    ("2x=10", "x=5 or x=6", "gained: x=6"),
    # lost: divided by what may be 0, a root with one sign
    ("x^2=3x", "x=3", "solutions lost: x=0"),
    ("x(x-1)=2(x-1)", "x=2", "solutions lost: x=1"),
    ("x^2=9", "x=3", "solutions lost: x=-3"),
    ("x^2=2", "x=1", "solutions lost: "),
    ("(x-2)(x-3)=0", "x=2 and x!=3", "solutions lost: x=3"),
    ("x=2 or x=3", "x=2", "solutions lost: x=3"),
    # gained: squared, multiplied by what may be 0
    ("x=3", "x^2=9", "solutions gained: x=-3"),
    ("x=3", "x^2=3x", "solutions gained: x=0"),
    ("(x^2-4)/(x-2)=4", "x+2=4", "solutions gained: x=2"),
    ("(x^2-5x+6)/(x-2)=0", "x^2-5x+6=0", "solutions gained: x=2"),
    ("x/x=1", "any x", "holds for other x"),
    ("x/x=0", "x=0", "solutions gained: x=0"),
    # everything, nothing
    ("2x+3=2x+5", "x=0", "solutions gained: x=0"),
    ("2(x+1)=2x+2", "no x", "holds for other x"),
    ("2x=4", "any x", "holds for other x"),
    ("x^2+1=0", "x^2=1", "gained: x=-1 or x=1"),
    # not read: no algebra, two ways to read it, a division by 0
    ("x=3", "x=3!", "cannot be read"),
    ("x=1/2", "x=1/0", "a division by zero"),
    ("x=1/2", "x=1/(x-x)", "a division by zero"),
    ("x=3", "1/2x=3/2", "'x' needs a sign"),
    ("x=3", "x3=9", "'3' needs a sign"),
    ("x=3", "2^x=8", "'x': a power is"),
    ("x=3", "y=3", "cannot be read"),
    ("x=3", "", "the end"),
    ("x=3", "x=", "the end"),
    ("x=3", "x==3", "the end"),
    ("x=3", "3", "an expression, where an equation is due"),
    ("x=3", "x=2 or 3", "is no equation"),
    ("x=3", "x=(3", "the end"),
    ("x=3", "x=3)", "no place"),
    ("x=3", "x^13=1594323", "'13': a power is"),
    ("x=3", "__import__('os')", "cannot be read"),
    ("x=3", "x=" + "9" * 13, "13 digits"),
    ("x=3", "x=(((9^9)^9)^9)^9", "too large"),
    ("x=3", "(x^9)^9=0", "a power of x above 12"),
    ("x=3", "(" * 20 + "x" + ")" * 20 + "=3", "deeper"),
    ("x=3", "x=1" + "+1" * 200, "characters"),
    # expressions
    ("2(x+3)", "=2x+3", "2x+3 is not equal to 2(x+3)"),
    ("2(x+3)", "2x+6=2x+5", "2x+5 is not equal"),
    ("x+1", "no x", "an equation, where an expression is due"),
    ("x+1", "x+1 or x+1", "an equation, where an expression is due"),
    ("-x^2", "x^2", "not equal"),
]


@pytest.mark.parametrize(("before", "line"), RIGHT)
def test_lines_that_follow(before, line):
    assert follows(before, line) == ""


@pytest.mark.parametrize(("before", "line", "why"), WRONG)
def test_lines_that_do_not(before, line, why):
    assert why in follows(before, line) != ""


def test_the_line_before_must_be_readable():
    for before in ("3x-", "x=2 or 3", "hello"):
        with pytest.raises(Unreadable):
            follows(before, "x=1")


@pytest.mark.parametrize(
    ("line", "solved"),
    [
        ("x=3", True),
        ("x=-1/2 or x=4", True),
        ("x = 3", True),
        ("no x", True),
        ("any x", True),
        ("any x, x!=2", True),
        ("x=4/2", False),
        ("x=0.5", False),
        ("x=3 or x=3", False),
        ("x=3, x!=2", False),
        ("x=+3", False),
        ("x=-0", False),
        ("x=03", False),
        ("3=x", False),
        ("x=1+2", False),
        ("2x=6", False),
        ("no x or x=3", False),
        ("x=1/0", False),
        ("x=x", False),
        ("what", False),
    ],
)
def test_what_is_solved(line, solved):
    assert is_solved(line) is solved


@pytest.mark.parametrize(
    ("prompt", "steps", "wrong"),
    [
        ("3(x-2)=x+4:", ["3x-6=x+4\n", "2x-6=4\n", "2x=10\n", "x=5"], None),
        ("3(x-2)=x+4:", ["3x-6=x+4", "x=5"], None),
        ("3(x-2)=x+4", ["x=5"], None),
        ("3(x-2)=x+4:", ["3x-2=x+4\n", "2x=6\n", "x=3"], 0),
        ("3(x-2)=x+4:", ["3x-6=x+4\n", "4x=10\n", "x=5/2"], 1),
        ("3(x-2)=x+4:", ["3x-6=x+4\n", "2x=10\n", "x=6"], 2),
        ("3(x-2)=x+4:", ["3x-6=x+4\n", "2x=10"], 1),  # ends too early
        ("3(x-2)=x+4:", ["3x-6=x+4\n", "x=5\n"], 1),  # does not end
        ("3(x-2)=x+4:", ["x=5\n", "x=5"], 0),
        ("x^2=3x:", ["x=3"], 0),
        ("x^2=9:", ["x=3 or x=-3"], None),
        ("2(x+3)-(x-1):", ["=2x+6-x+1\n", "=x+7"], None),
        ("2(x+3)-(x-1):", ["=2x+6-x-1\n", "=x+5"], 0),
        ("2(x+3)-(x-1):", ["=2x+6-x+1"], 0),
        ("2x=10:", [], None),
    ],
)
def test_the_first_wrong_line(prompt, steps, wrong):
    assert first_wrong({"prompt": prompt}, steps) == wrong


def test_a_problem_that_cannot_be_read_is_an_error():
    with pytest.raises(Unreadable):
        first_wrong({"prompt": "What is 2+2?"}, ["4"])
    assert reasons("2x=10", ["x=5\n"], complete=False) == ["the solution should end here"]
    assert reasons("2x=10", ["4x=20\n"], complete=False) == [""]


# ---- against substituting numbers

# Every solution and every pole below is one of these.
GRID = sorted({Fraction(p, q) for p in range(-12, 13) for q in (1, 2, 3)})


class Tree:
    """An expression that knows its text and its value, without the reader under test."""

    def __init__(self, text, value):
        self.text, self.value = text, value

    @classmethod
    def number(cls, n):
        return cls(f"({n})" if n < 0 else str(n), lambda x: n)

    @classmethod
    def joined(cls, a, sign, b):
        def value(x):
            p, q = a.value(x), b.value(x)
            if p is None or q is None or (sign == "/" and q == 0):
                return None
            return {"+": lambda: p + q, "-": lambda: p - q, "*": lambda: p * q,
                    "/": lambda: Fraction(p) / q}[sign]()  # fmt: skip

        return cls(f"({a.text}{sign}{b.text})", value)


X = Tree("x", lambda x: x)


def linear(rng):
    """q x - p, zero at p/q."""
    p, q = int(rng.integers(-4, 5)), int(rng.integers(1, 4))
    return Tree.joined(Tree.joined(Tree.number(q), "*", X), "-", Tree.number(p))


def random_tree(rng, depth=2):
    if depth == 0:
        return X if rng.random() < 0.5 else Tree.number(int(rng.integers(-3, 4)))
    sign = "+-*"[int(rng.integers(3))]
    return Tree.joined(random_tree(rng, depth - 1), sign, random_tree(rng, depth - 1))


def equation(rng, zeros, poles):
    """(text, holds(x)) of an equation with these factors above and below, and the same random
    expression added to both sides."""
    left = Tree.number(int(rng.integers(1, 4)))
    for factor in zeros:
        left = Tree.joined(left, "*", factor)
    for factor in poles:
        left = Tree.joined(left, "/", factor)
    more = random_tree(rng)
    left, right = Tree.joined(left, "+", more), more
    sides = (left, right) if rng.random() < 0.5 else (right, left)

    def holds(x):
        p, q = (side.value(x) for side in sides)
        return p is not None and p == q

    return f"{sides[0].text}={sides[1].text}", holds


def test_random_equations_against_substituting():
    rng, seen = np.random.default_rng(0), []
    for _ in range(100):
        factors = [linear(rng) for _ in range(3)]
        both = []
        for _ in range(2):
            take = [f for f in factors if rng.random() < 0.6]
            both.append(equation(rng, take, [f for f in factors[:2] if rng.random() < 0.25]))
        (before, holds), (line, also) = both
        expected = all(holds(x) == also(x) for x in GRID)
        assert (follows(before, line) == "") == expected, (before, line)
        seen.append(expected)
    assert 0.15 < np.mean(seen) < 0.85


def test_random_expressions_against_substituting():
    rng, seen = np.random.default_rng(1), []
    for _ in range(60):
        a, b, c = (random_tree(rng) for _ in range(3))
        one = Tree.joined(a, "*", Tree.joined(b, "+", c))
        sign = "+-"[int(rng.integers(2))]
        two = Tree.joined(Tree.joined(a, "*", b), sign, Tree.joined(c, "*", a))
        expected = all(one.value(x) == two.value(x) for x in GRID)  # more points than the degree
        assert (follows(one.text, two.text) == "") == expected
        seen.append(expected)
    assert 0.4 < np.mean(seen) < 0.9


def test_values_are_exact_and_texts_are_read_back():
    top, bottom, nonzero = read_side("(2x-1)^2/(3(x+1))")

    def at(poly, x):
        return sum(c * x**power for power, c in enumerate(poly))

    assert [at(top, x) / at(bottom, x) for x in GRID if x != -1] == [
        (2 * x - 1) ** 2 / (3 * (x + 1)) for x in GRID if x != -1
    ]
    assert [written(poly) for poly in nonzero] == ["3x+3"]
    for text in ("x^2-3x/2+1", "-x+1/3", "0", "-2x^3", "7"):
        top, bottom, _ = read_side(text)
        scaled = tuple(value / bottom[0] for value in top)
        assert written(scaled) == text


# ---- the program that writes lines


def test_each_line_of_the_program_follows_and_it_ends():
    rng = np.random.default_rng(2)
    for _ in range(40):
        factors = [linear(rng) for _ in range(3)]
        line, _ = equation(rng, factors[: int(rng.integers(1, 4))], factors[: rng.integers(2)])
        for _ in range(12):
            following = next_line(line, numbers_first=bool(rng.integers(2)))
            if following is None:
                break
            assert follows(line, following) == "", (line, following)
            line = following
        assert is_solved(line), line


def test_the_program_by_hand():
    def whole(text, **how):
        lines = [text]
        while (line := next_line(lines[-1], **how)) is not None:
            lines.append(line)
        return lines[1:]

    assert whole("3(x-2)=x+4") == ["3x-6=x+4", "2x-6=4", "2x=10", "x=5"]
    assert whole("3(x-2)=x+4", numbers_first=True) == ["3x-6=x+4", "3x=x+10", "2x=10", "x=5"]
    assert whole("3(x-2)=x+4", slip="sign") == ["3x-6=x+4", "4x-6=4", "4x=-2", "x=-1/2"]
    assert whole("3(x-2)=x+4", slip="bracket")[:2] == ["3x-2=x+4", "2x-2=4"]
    assert whole("(x^2-5x+6)/(x-2)=0") == [
        "x^2-5x+6=0, x!=2",
        "(x-3)(x-2)=0, x!=2",
        "x=3",
    ]
    assert whole("1/x=1/x") == ["x=x, x!=0", "any x, x!=0"]
    assert whole("2x+3=2x+5") == ["no x"]
    assert whole("x^2=2") == ["x^2-2=0"]  # and no fraction names what is left
    assert whole("2(x+3)-(x-1)") == ["=x+7"]
    assert next_line("what") is None and next_line("x=3") is None


def test_lines_are_read_in_bounded_time():
    hard = "*".join(f"({a}x^2+{b}x-{c})" for a, b, c in itertools.product((7, 9), (5, 8), (3,)))
    assert follows(f"{hard}=1", f"{hard}-1=0") == ""
    with pytest.raises(Unreadable, match="a power of x above 12"):
        read_line("(x+1)^9*(x+2)^9=0")
