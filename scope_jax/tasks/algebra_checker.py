"""Whether a line of algebra follows from the one before: by solution sets, exactly, with sympy.

Solutions are real numbers at which every denominator differs from 0. A line of an equation is
right where it has the solutions of the line before, no fewer (x^2=3x, then x=3) and no more
((x^2-x)/x=0, then x^2-x=0). A line of an expression is right where it is equal to the one before
wherever both are defined.

No root is computed, so nothing is rounded. A polynomial's real zeros are the irreducible factors
over the rational numbers that have a real zero (sympy factors, Sturm's theorem counts): two such
factors share no zero, so equal sets of factors are equal sets of zeros, irrational ones included.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from fractions import Fraction

from scope_jax.tasks.equations import (
    Case,
    Line,
    Poly,
    Side,
    Unreadable,
    multiply,
    read_line,
    subtract,
    written,
)

# What a solved line says: x=3, x=-1/2 or x=4, no x, any x, x!=2.
_VALUE = re.compile(r"x=(-?\d+(?:/\d+)?)")

Factor = tuple[int, ...]  # irreducible: whole coefficients from x^0 up, the last one positive


@dataclasses.dataclass(frozen=True)
class Solutions:
    """A set of real numbers: the zeros of the factors, or all numbers but these."""

    factors: frozenset[Factor]
    all_but: bool = False

    def union(self, other: "Solutions") -> "Solutions":
        """What is in one of them."""
        if self.all_but and other.all_but:
            return Solutions(self.factors & other.factors, True)
        if self.all_but:
            return Solutions(self.factors - other.factors, True)
        if other.all_but:
            return other.union(self)
        return Solutions(self.factors | other.factors)

    def without(self, factors: frozenset[Factor]) -> "Solutions":
        """What is left where these zeros are taken out."""
        if self.all_but:
            return Solutions(self.factors | factors, True)
        return Solutions(self.factors - factors)

    def both(self, other: "Solutions") -> "Solutions":
        """What is in both."""
        if other.all_but:
            return self.without(other.factors)
        if self.all_but:
            return other.without(self.factors)
        return Solutions(self.factors & other.factors)


EVERYTHING, NOTHING = Solutions(frozenset(), True), Solutions(frozenset())


@functools.lru_cache(maxsize=1 << 15)
def real_zeros(poly: Poly) -> frozenset[Factor]:
    """The irreducible factors of a polynomial other than 0 that have a real zero."""
    if len(poly) < 2:
        return frozenset()
    if len(poly) == 2:
        return frozenset([_primitive(poly)])
    from sympy import QQ, Poly, Symbol  # a second to import: nobody else waits for it

    x = Symbol("x")
    given = [QQ(value.numerator, value.denominator) for value in reversed(poly)]
    found = set()
    for factor, _ in Poly(given, x, domain=QQ).factor_list()[1]:
        if factor.degree() == 1 or factor.count_roots() > 0:
            coefficients = [Fraction(int(c.p), int(c.q)) for c in reversed(factor.all_coeffs())]
            found.add(_primitive(tuple(coefficients)))
    return frozenset(found)


def _primitive(poly: Poly) -> Factor:
    scale = math.lcm(*(value.denominator for value in poly))
    whole = [int(value * scale) for value in poly]
    divisor = math.gcd(*whole) * (1 if whole[-1] > 0 else -1)
    return tuple(value // divisor for value in whole)


def solutions(line: Line) -> Solutions:
    """The solutions of an equation; one of an expression alone is Unreadable."""
    if line.expression:
        raise Unreadable("an expression, where an equation is due")
    return functools.reduce(Solutions.union, map(_of_case, line.cases))


def _of_case(case: Case) -> Solutions:
    if case.always is None and len(case.sides) == 1:
        raise Unreadable(f"{case.text!r} is no equation")
    found = NOTHING if case.always is False else EVERYTHING
    for left, right in zip(case.sides, case.sides[1:]):
        difference = _difference(left, right)
        found = found.both(Solutions(real_zeros(difference)) if difference else EVERYTHING)
    for poly in case.nonzero:
        found = found.without(real_zeros(poly)) if poly else NOTHING
    return found


def _difference(left: Side, right: Side) -> Poly:
    """0 where two quotients are equal, denominators being other than 0."""
    return subtract(multiply(left.top, right.bottom), multiply(right.top, left.bottom))


def follows(before: str, line: str) -> str:
    """Why a line does not follow from the line before, in words; "" where it does. Raises
    Unreadable where it is the line before that cannot be read."""
    known = read_line(before)
    _meaning(known)
    try:
        found = read_line(line)
        if known.expression:
            return _of_expression(known, found)
        return compared(solutions(known), solutions(found))
    except Unreadable as error:
        return f"cannot be read: {error}"


def _meaning(line: Line) -> Side | Solutions:
    return line.cases[0].sides[-1] if line.expression else solutions(line)


def _of_expression(known: Line, found: Line) -> str:
    [case, *more] = found.cases
    if more or case.always is not None:
        return "an equation, where an expression is due"
    value = known.cases[0].sides[-1]
    for side in case.sides:
        if _difference(value, side):
            return f"{side.text} is not equal to {value.text}"
    return ""


def compared(known: Solutions, found: Solutions) -> str:
    """What was lost or gained, in words; "" where two sets are equal."""
    if known == found:
        return ""
    if known.all_but or found.all_but:
        return "holds for other x than the line before"
    words = [
        f"{what}: {' or '.join(map(_named, sorted(factors, key=_order)))}"
        for what, factors in (
            ("solutions lost", known.factors - found.factors),
            ("solutions gained", found.factors - known.factors),
        )
        if factors
    ]
    return "; ".join(words)


def _order(factor: Factor) -> tuple[int, Fraction]:
    return len(factor), Fraction(-factor[0], factor[1] if len(factor) == 2 else 1)


def _named(factor: Factor) -> str:
    if len(factor) == 2:
        return f"x={Fraction(-factor[0], factor[1])}"
    return f"{written(tuple(map(Fraction, factor)))}=0"


# ---- whole solutions


def is_solved(line: str, expression: bool = False) -> bool:
    """Whether a line needs no other: it names the values of x, each once and in lowest terms (x=3,
    x=-1/2 or x=4), or says no x, any x; of an expression, whether it is a sum of powers in its one
    spelling."""
    try:
        found = read_line(line)
    except Unreadable:
        return False
    if expression:
        last = found.cases[0].sides[-1:]
        return any(side.bottom in ((1,),) and side.text == written(side.top) for side in last)
    if any(case.always is not None for case in found.cases):
        [first, *more] = found.cases
        plain = all(len(poly) == 2 for poly in first.nonzero)
        return not more and (plain if first.always else not first.nonzero)
    matches = [_VALUE.fullmatch(case.text) for case in found.cases]
    values = [match[1] for match in matches if match is not None]
    return (
        len(values) == len(matches) == len(set(values))
        and not any(value.endswith("/0") for value in values)
        and all(str(Fraction(value)) == value for value in values)
    )


def reasons(prompt: str, steps: Sequence[str], *, complete: bool = True) -> list[str]:
    """Why each step is wrong, "" for those that are right: it does not follow, it stands after the
    solved line, or, with `complete`, the solution ends before one. A step may end in a newline, of
    which all but the last have one; a solved line that has one does not end the solution. Raises
    Unreadable where the problem itself cannot be read."""
    before, found = prompt, []
    known = read_line(prompt)
    _meaning(known)
    for number, step in enumerate(steps):
        last, text = number == len(steps) - 1, step.removesuffix("\n")
        reason = follows(before, text)
        if not reason:
            solved = is_solved(text, known.expression)
            if solved and not (last and step == text):
                reason = "the solution should end here"
            elif last and complete and not solved:
                reason = "the solution ends before it is solved"
        found.append(reason)
        if not reason:
            before = text
    return found


def problem_text(prompt: str) -> str:
    """The equation or expression of a prompt."""
    return prompt.strip().removesuffix(":")
