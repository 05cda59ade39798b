"""A program that writes the next line of a solution, whatever equation stands before it.

It multiplies denominators away, expands, moves terms, divides; a polynomial equation is brought to
0 on the right and factored. Where solutions may be gained it says which x are excluded:
(x^2-5x+6)/(x-2)=0, then x^2-5x+6=0, x!=2, then (x-3)(x-2)=0, x!=2, then x=3.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from scope_jax.tasks.algebra_checker import (
    Factor,
    Solutions,
    is_solved,
    real_zeros,
    solutions,
)
from scope_jax.tasks.equations import (
    ONE,
    Case,
    Poly,
    Side,
    Unreadable,
    X,
    add,
    constant,
    multiply,
    negate,
    read_line,
    read_side,
    subtract,
    written,
)

_FACTORED = re.compile(r"-?\d*(?:x(?:\^\d)?|\([^()]+\)(?:\^\d)?)+")
_BRACKET = re.compile(r"(?<![\d^x)])(\d+)\((x[+-]\d+)\)")


def next_line(text: str, *, numbers_first: bool = False, slip: str = "") -> str | None:
    """The line after `text`. None where it is solved already, cannot be read, or has solutions
    that no fraction names.

    numbers_first  of a linear equation: numbers are moved before terms with x
    slip           "sign": a term that is moved keeps its sign; "bracket": only the first term in a
                   bracket is multiplied
    """
    try:
        line = read_line(text)
        if is_solved(text, line.expression):
            return None
        if line.expression:
            return _simplified(line.cases[0].sides[-1])
        [case, *more] = line.cases
        if more or len(case.sides) != 2:
            return solved(solutions(line))
        return _step(case, solutions(line), numbers_first, slip)
    except Unreadable:
        return None


def solved(found: Solutions) -> str | None:
    """The line that names these solutions, smallest first; None where a fraction does not."""
    if any(len(factor) > 2 for factor in found.factors):
        return None
    values = sorted(Fraction(-factor[0], factor[1]) for factor in found.factors)
    if found.all_but:
        return ", ".join(["any x", *(f"x!={value}" for value in values)])
    return " or ".join(f"x={value}" for value in values) or "no x"


def _simplified(side: Side) -> str | None:
    if len(side.bottom) > 1:
        return None
    return f"={written(_scaled(side.top, 1 / side.bottom[0]))}"


def _step(case: Case, found: Solutions, numbers_first: bool, slip: str) -> str | None:
    left, right = case.sides
    if len(left.bottom) > 1 or len(right.bottom) > 1:
        sides = (_product(left.top, right.bottom), _product(right.top, left.bottom))
        return _with_conditions(sides, case)
    a, b = (_scaled(side.top, 1 / side.bottom[0]) for side in case.sides)
    plain = (written(a), written(b))
    if not b and len(a) > 2 and (left.text == plain[0] or _FACTORED.fullmatch(left.text)):
        factored = _factored(a)
        if left.text != plain[0] or factored == plain[0]:
            return solved(found)
        return _with_conditions((factored, "0"), case) if _splits(a) else solved(found)
    if (left.text, right.text) != plain:
        if slip == "bracket":
            plain = (_misread(left.text) or plain[0], _misread(right.text) or plain[1])
        return _with_conditions(plain, case)
    difference = subtract(a, b)
    if len(difference) < 2:
        return solved(found)
    if len(difference) > 2:
        moved = add(a, b) if slip == "sign" and len(add(a, b)) > 2 else difference
        moved = negate(moved) if moved[-1] < 0 else moved
        return _with_conditions((written(moved), "0"), case)
    return _linear(a, b, found, case, numbers_first, slip)


def _linear(
    a: Poly, b: Poly, found: Solutions, case: Case, numbers_first: bool, slip: str
) -> str | None:
    """A step of an equation whose difference is linear; both sides are sums of powers."""
    if len(a) > 2:  # the same higher powers on both sides
        high = (Fraction(0),) * 2 + a[2:]
        sides = (written(subtract(a, high)), written(subtract(b, high)))
        return _with_conditions(sides, case)
    if len(a) < 2:
        a, b = b, a
    (number, times), (other, more) = _two(a), _two(b)
    left: Poly
    right: Poly
    sign = -1 if slip == "sign" else 1
    if more and not (numbers_first and number):
        left, right = (number, times - sign * more), constant(other)
    elif number:
        left, right = (Fraction(0), times), add((other - sign * number, more), ())
    else:
        return solved(found)
    left = add(left, ())  # without a zero in front
    return _with_conditions((written(left), written(right)), case)


def _two(poly: Poly) -> tuple[Fraction, Fraction]:
    padded = poly + (Fraction(0),) * 2
    return padded[0], padded[1]


def _with_conditions(sides: Sequence[str], case: Case) -> str:
    """An equation, with the conditions that it needs to have no solution more than before."""
    text = "=".join(sides)
    if not case.nonzero:
        return text
    (a, b, _), (c, d, _) = read_side(sides[0]), read_side(sides[1])
    difference = subtract(multiply(a, d), multiply(c, b))
    excluded = frozenset[Factor]().union(*map(real_zeros, case.nonzero))
    gained = sorted(excluded & real_zeros(difference) if difference else excluded)
    return ", ".join([text, *map(_condition, gained)])


def _condition(factor: Factor) -> str:
    if len(factor) == 2:
        return f"x!={Fraction(-factor[0], factor[1])}"
    return f"{written(tuple(map(Fraction, factor)))}!=0"


def _splits(poly: Poly) -> bool:
    return all(len(factor) == 2 for factor in real_zeros(poly))


def _factored(poly: Poly) -> str:
    """A polynomial as the product of its linear factors and what is left: 2(x-1)(x+3)."""
    text, rest = "", poly
    linears = [factor for factor in real_zeros(poly) if len(factor) == 2]
    for factor in sorted(linears, key=lambda factor: (factor != (0, 1), factor)):
        linear, times = tuple(map(Fraction, factor)), 0
        while (quotient := _divided(rest, linear)) is not None:
            rest, times = quotient, times + 1
        if times:
            name = written(linear)
            name = name if name == "x" else f"({name})"
            text += name + (f"^{times}" if times > 1 else "")
    if len(rest) > 1:
        return f"({written(rest)}){text}" if text else written(rest)
    front = written(rest)
    if rest[0].denominator > 1:
        return f"({front}){text}"
    return {"1": "", "-1": "-"}.get(front, front) + text


def _divided(poly: Poly, linear: Poly) -> Poly | None:
    """poly / linear where it divides, by Horner's scheme."""
    zero, found, carry = -linear[0] / linear[1], [], Fraction(0)
    for value in reversed(poly):
        carry = carry * zero + value
        found.append(carry)
    if len(poly) < 2 or found.pop():
        return None
    return tuple(value / linear[1] for value in reversed(found))


def _product(a: Poly, b: Poly) -> str:
    """Two polynomials as a product, not expanded: 3(x-2), x(x+1), (x+1)(x+2)."""
    if not a or not b:
        return "0"
    a, b = (a, b) if len(a) <= len(b) else (b, a)
    if a == ONE:
        return written(b)
    if len(b) == 1 or a == b == X or (len(a) == 1 and a[0].denominator > 1):
        return written(multiply(a, b))
    number = {Fraction(1): "", Fraction(-1): "-"}.get(a[0], written(a))
    front = number if len(a) == 1 else _factor(a)
    return front + _factor(b)


def _factor(poly: Poly) -> str:
    text = written(poly)
    return text if text == "x" else f"({text})"


def _misread(text: str) -> str | None:
    """A side expanded with only the first term of each bracket multiplied; None without one."""
    if _BRACKET.search(text) is None:
        return None
    top, bottom, _ = read_side(_BRACKET.sub(r"\1\2", text))
    return written(_scaled(top, 1 / bottom[0])) if len(bottom) == 1 else None


def _scaled(poly: Poly, factor: Fraction) -> Poly:
    return multiply(poly, constant(factor))
