"""The embedded domain "algebra": equations in x, solved line by line.

    prompt      3(x-2)=x+4:     an equation
    completion  3x-6=x+4\\n      a line with the same solutions
                2x-6=4\\n
                2x=10\\n
                x=5             the solutions are named: the solution ends, without a newline

Every character is one token. A line is right if it has exactly the solutions of the line before,
neither fewer nor more, which `algebra_checker` decides exactly. Equations are linear, quadratic or
have x in a denominator; lines may have several cases (x=2 or x=3) and conditions (x!=2).

The outcome verifier checks the whole solution: whether each line follows costs nothing more, and a
guessed number is no solution.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from scope_jax.tasks.algebra_checker import is_solved, problem_text, reasons, solutions
from scope_jax.tasks.algebra_steps import next_line, solved
from scope_jax.tasks.domain import GeneratedDomain, Problem
from scope_jax.tasks.equations import Unreadable, read_line, written

CHARACTERS = "0123456789x+-*/^()=!,: anory\n"
STYLES = ("mixed", "x_first", "numbers_first")
MISCONCEPTIONS = ("sign", "bracket")
KINDS = ("linear", "quadratic", "rational")
SPLITS = ("train", "validation", "test", "test_ood")


@dataclasses.dataclass(frozen=True)
class Algebra(GeneratedDomain):
    """Equations of some `kinds`, made from solutions and numbers between -`largest` and `largest`.

    `misconception` is the probability that a line of `demonstration` that could go wrong by
    `misconception_kind` does, which is how a base policy gets a weakness that is structured and
    can be rescued. Teachers leave it at 0. "sign": a term that is moved keeps its sign. "bracket":
    only the first term in a bracket is multiplied by the number before it.
    """

    kinds: tuple[str, ...] = KINDS
    largest: int = 9
    misconception: float = 0.0
    misconception_kind: str = "sign"

    name = "algebra"
    separator = "\n"
    characters = CHARACTERS
    styles = STYLES

    def __post_init__(self):
        object.__setattr__(self, "kinds", tuple(self.kinds))
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"algebra: kinds {self.kinds!r}: expected some of {KINDS}")
        if not 2 <= self.largest <= 99:
            raise ValueError(f"algebra: largest {self.largest}: expected 2 to 99")
        if self.misconception_kind not in MISCONCEPTIONS:
            raise ValueError(
                f"algebra: misconception_kind {self.misconception_kind!r}: one of {MISCONCEPTIONS}"
            )
        if not 0.0 <= self.misconception <= 1.0:
            raise ValueError(f"algebra: misconception {self.misconception}: expected a probability")

    @property
    def how_to_read(self) -> str:
        """What a line of a solution says, by an example."""
        return (
            "3x-6=x+4 stands for 3(x-2)=x+4, since both are true for the same x; x^2-4=0, x!=2 is"
            " the equation without that solution, and the last line names all there are, as in"
            " x=-2 or x=3"
        )

    # ---- problems

    def problem(self, seed: int, split: str, index: int, k: int | Sequence[int]) -> Problem:
        """Problem number `index` of a split: a pure function of the arguments, so fresh problems
        never run out.

        `k` is how many lines the program's solution has (2 to 5), or several such, one of which is
        drawn. Validation, test and train are disjoint: a hash of the equation's text decides which
        of them a problem belongs to (5 %, 5 %, 90 %), and drawing is repeated until it fits.
        `test_ood` draws from the test share (it differs in k only).
        """
        if split not in SPLITS:
            raise ValueError(f"algebra: split {split!r}: expected one of {SPLITS}")
        sizes = (k,) if isinstance(k, int) else tuple(k)
        if not sizes or not set(sizes) <= set(TEMPLATES):
            raise ValueError(f"algebra: k {k}: expected 2 to 5 lines")
        for size in sizes:
            if not set(TEMPLATES[size]) & set(self.kinds):
                raise ValueError(f"algebra: no equation of {self.kinds} takes {size} lines")
        # Raw bits only: numpy guarantees their stream for ever, but not that of Generator's
        # methods.
        bits = np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), index, *sizes]))
        share = "test" if split == "test_ood" else split
        for _ in range(20_000):
            draw = Draw([int(bit) for bit in bits.random_raw(12)], self.largest)
            templates = TEMPLATES[draw.one_of(sizes)]
            kind = draw.one_of([kind for kind in KINDS if kind in self.kinds and kind in templates])
            text = templates[kind](draw)
            if text is not None and split_of(text) == share:
                return self.make_problem(text, id=f"{split}-{seed}-{index}")
        raise ValueError(
            f"algebra: no problem with k={k} belongs to {split!r}: use more kinds or a larger"
            " `largest`"
        )

    def make_problem(self, equation: str, id: str = "") -> Problem:
        """The problem with this equation. Raises Unreadable, and ValueError where no fraction
        names its solutions."""
        answer = solved(solutions(read_line(equation)))
        if answer is None:
            raise ValueError(f"algebra: {equation!r}: its solutions are no fractions")
        return Problem(id=id, prompt=f"{equation}:", answer=answer)

    def prompt_length(self, k: int) -> int:
        """The most characters (= tokens) that a prompt of size k has."""
        return _LONGEST[k][0] + _PROMPT_DIGITS * (len(str(self.largest)) - 1)

    def completion_length(self, k: int) -> int:
        """The most tokens that a right solution by the program has, the end token included."""
        return _LONGEST[k][1] + _LINE_DIGITS * k * (len(str(self.largest)) - 1)

    # ---- verdicts

    def verify(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[bool | None]:
        """True where every line follows and the last one names the solutions."""
        return [
            not any(self._reasons(problem, text.split("\n")))
            for problem, text in zip(problems, completions, strict=True)
        ]

    def answer_of(self, completion: str) -> str | None:
        """The solutions that the last line names, smallest first; None where it names none."""
        last = completion.rsplit("\n", 1)[-1]
        try:
            return solved(solutions(read_line(last))) if is_solved(last) else None
        except Unreadable:
            return None

    def answer_marker(self, step: str) -> bool:
        """A line that names the solutions ends the solution."""
        return is_solved(step.removesuffix("\n"))

    def check_steps(
        self, problem: Problem, steps: Sequence[str], *, complete: bool = True
    ) -> list[bool]:
        """One label per line: it has the solutions of the line before, and it ends the solution
        exactly when it names them; after the first error everything is False.

        Steps may come with or without their newline (all but the last must then be lines that had
        one). A last step that ends in a newline although it names the solutions is wrong; with
        `complete` a last step that does not name them is too.
        """
        found = self._reasons(problem, steps, complete=complete)
        good = next((index for index, reason in enumerate(found) if reason), len(found))
        return [index < good for index in range(len(found))]

    def solution_path(self, problem: Problem, completion: str) -> tuple[str, ...] | None:
        """The lines of a wholly right solution, without blanks; of cases the order says nothing."""
        lines = completion.split("\n")
        if any(self._reasons(problem, lines)):
            return None
        return tuple(" or ".join(sorted(case.text for case in read_line(x).cases)) for x in lines)

    def _reasons(
        self, problem: Problem, steps: Sequence[str], *, complete: bool = True
    ) -> list[str]:
        try:
            return reasons(problem_text(problem.prompt), steps, complete=complete)
        except Unreadable as error:
            raise ValueError(
                f"algebra: problem {problem.id!r}: prompt {problem.prompt!r}: {error}; expected"
                " like '3(x-2)=x+4:'"
            ) from None

    # ---- programs that write solutions

    def demonstration(
        self, problem: Problem, rng: np.random.Generator, style: str = "mixed"
    ) -> str:
        """A whole solution, right unless there is a misconception; styles as in `next_step`."""
        lines = [problem_text(problem.prompt)]
        while len(lines) < 16 and (line := self._line(lines[-1], rng, style)) is not None:
            lines.append(line)
        return "\n".join(lines[1:])

    def next_step(
        self,
        problem: Problem,
        steps: Sequence[str],
        rng: np.random.Generator,
        style: str = "mixed",
        wrong_step: str | None = None,
    ) -> str | None:
        """A right line after `steps`, going on from the one written last. None where that is
        solved, cannot be read, or has solutions that no fraction names.

        Styles: "x_first" moves terms with x before numbers, "numbers_first" numbers before terms
        with x, "mixed" one or the other.
        """
        lines = [problem_text(problem.prompt), *(step.removesuffix("\n") for step in steps)]
        line = self._line(lines[-1], rng, style)
        if line is None:
            return None
        return line + ("" if is_solved(line, "=" not in lines[0]) else "\n")

    def _line(self, before: str, rng: np.random.Generator, style: str) -> str | None:
        if style not in STYLES:
            raise ValueError(f"algebra: style {style!r}: expected one of {STYLES}")
        numbers_first = style == "numbers_first" or (style == "mixed" and bool(rng.random() < 0.5))
        strikes = bool(self.misconception) and bool(rng.random() < self.misconception)
        slip = self.misconception_kind if strikes else ""
        return next_line(before, numbers_first=numbers_first, slip=slip)


def split_of(equation: str) -> str:
    """The split that an equation belongs to, whatever the seed."""
    digest = hashlib.blake2b(equation.encode(), digest_size=8).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest, "little") % 20, "train")


# ---- equations by the number of lines that they take


class Draw:
    """Numbers from raw bits."""

    def __init__(self, bits: Sequence[int], largest: int):
        self._bits, self.largest = iter(bits), largest

    def one_of(self, things: Sequence[Any]) -> Any:
        """One of some things."""
        return things[next(self._bits) % len(things)]

    def number(self, *but: int) -> int:
        """A whole number from -`largest` to `largest`, other than these."""
        numbers = range(-self.largest, self.largest + 1)
        return self.one_of([number for number in numbers if number not in but])

    def times(self, *but: int) -> int:
        """A number that a bracket or x is multiplied by."""
        return self.one_of([number for number in range(2, 7) if number not in but])

    def rest(self, divisor: int) -> int:
        """Added to a multiple of a divisor: 0 or more, so that some solutions are fractions."""
        return next(self._bits) % abs(divisor) if next(self._bits) % 2 == 0 else 0


def _sum(*coefficients: int) -> str:
    """The polynomial with these coefficients, highest power first."""
    return written(tuple(map(Fraction, reversed(coefficients))))


def _linear_2(draw: Draw) -> str:
    """3x+5=11"""
    a, b, x = draw.times(), draw.number(0), draw.number()
    return f"{_sum(a, b)}={a * x + b + draw.rest(a)}"


def _linear_3(draw: Draw) -> str:
    """5x+2=2x+11"""
    a, b, x = draw.times(), draw.number(0), draw.number()
    c = draw.times(a, a - 1)  # with others a line is saved
    d = (a - c) * x + b + draw.rest(a - c)
    return f"{_sum(a, b)}={_sum(c, d)}"


def _linear_4(draw: Draw) -> str:
    """3(x-2)=x+4"""
    a, b, x = draw.times(), draw.number(0), draw.number()
    c = draw.times(a, a - 1)  # with others a line is saved
    d = (a - c) * x + a * b + draw.rest(a - c)
    return f"{a}({_sum(1, b)})={_sum(c, d)}"


def _quadratic_2(draw: Draw) -> str:
    """x^2-5x+6=0"""
    x, y = draw.number(0), draw.number(0)
    return f"{_sum(1, -x - y, x * y)}=0"


def _quadratic_3(draw: Draw) -> str:
    """x^2-3x=2x-6"""
    x, y, a = draw.number(0), draw.number(0), draw.number(0)
    return f"{_sum(1, -x - y + a, 0)}={_sum(a, -x * y)}"


def _quadratic_4(draw: Draw) -> str | None:
    """x(x-3)=2x-6"""
    x, y, a = draw.number(0), draw.number(0), draw.number(0)
    b = a - x - y
    return f"x({_sum(1, b)})={_sum(a, -x * y)}" if b else None


def _quadratic_5(draw: Draw) -> str | None:
    """12/(x-1)=x"""
    x, a, b = draw.number(0), draw.number(0), draw.number()
    over = (x + a) * (x + b)
    return f"{over}/({_sum(1, a)})={_sum(1, b)}" if over else None


def _rational_3(draw: Draw) -> str | None:
    """(x^2-5x+6)/(x-2)=0: one of the two zeros is no solution"""
    x, y = draw.number(0), draw.number(0)
    return f"({_sum(1, -x - y, x * y)})/({_sum(1, -x)})=0" if x != y else None


def _rational_4(draw: Draw) -> str | None:
    """6/(x-1)=3"""
    x, a, b = draw.number(), draw.number(0), draw.times()
    return f"{b * (x + a)}/({_sum(1, a)})={b}" if x + a else None


def _rational_5(draw: Draw) -> str | None:
    """(x+4)/(x-2)=3"""
    x, a, b = draw.number(), draw.number(0), draw.times()
    c = b * (x + a) - x
    return f"({_sum(1, c)})/({_sum(1, a)})={b}" if c and x + a else None


# By size and kind. Each gives an equation that the program solves in so many lines, in the style
# "x_first", or None for numbers that would take fewer.
TEMPLATES: dict[int, dict[str, Callable[[Draw], str | None]]] = {
    2: {"linear": _linear_2, "quadratic": _quadratic_2},
    3: {"linear": _linear_3, "quadratic": _quadratic_3, "rational": _rational_3},
    4: {"linear": _linear_4, "quadratic": _quadratic_4, "rational": _rational_4},
    5: {"quadratic": _quadratic_5, "rational": _rational_5},
}
# The most characters of a prompt, and of a solution and its end, with numbers of one digit.
_LONGEST = {2: (13, 26), 3: (21, 45), 4: (15, 54), 5: (15, 71)}
# What a further digit of `largest` adds at most: a product of two numbers has two more.
_PROMPT_DIGITS, _LINE_DIGITS = 6, 8
