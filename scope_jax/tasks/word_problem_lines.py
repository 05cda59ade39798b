"""The lines of a word problem's solution: which equations are right, and programs that write them.

A solution is a way from the amounts of a story to the one amount that is left. Where it stands is a
state: the amounts that are still to be reckoned with.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Amount:
    """Something that is still to be reckoned with: `numbers` has one number, or two whose product
    is not worked out."""

    sign: int
    numbers: tuple[int, ...]
    label: str = ""  # how a line about its product begins


# ---- what is left to be reckoned with: a sorted tuple of (sign, numbers)

State = tuple[tuple[int, tuple[int, ...]], ...]
Term = tuple[str, tuple[int, ...]]  # "+" or "-", one number or the two of a product

# Numbers of the digits 0 to 9, and few of them: Python reads thousands of digits slowly or not at
# all. What stands beside an equation must not belong to it: in "= 10.5" or "3 * 2 * 5 = 10" there
# is another one than the pattern would see.
_NUMBER = r"[0-9]{1,9}"
_TERM = rf"{_NUMBER}(?: \* {_NUMBER})?"
EQUATION = re.compile(
    rf"(?<![0-9.,])(?<![-+*/=] )(?<![-+*/=(])({_TERM}(?: [+-] {_TERM})*) = ({_NUMBER})"
    r"(?![0-9]|[.,][0-9]| ?[-+*/=])"
)
_LONGEST_LINE = 400  # characters


def state_of(amounts: Sequence[Amount]) -> State:
    return tuple(sorted((a.sign, a.numbers) for a in amounts))


def equation_of(step: str) -> tuple[list[Term], int] | None:
    """(terms, result) of the one equation of a line; None where it has none, several, or one that
    says nothing (5 = 5)."""
    found = EQUATION.findall(step) if len(step) <= _LONGEST_LINE else []
    if len(found) != 1 or step.count("=") != 1:
        return None
    parts = re.split(r" ([+-]) ", f" + {found[0][0]}")[1:]
    terms = [
        (sign, tuple(sorted(int(n) for n in term.split(" * "))))
        for sign, term in zip(parts[::2], parts[1::2])
    ]
    return (terms, int(found[0][1])) if len(terms) > 1 or len(terms[0][1]) > 1 else None


def states_after(states: set[State], step: str) -> set[State]:
    """The states that a line leads to; none where it is wrong."""
    equation = equation_of(step)
    if equation is None:
        return set()
    terms, result = equation
    value = sum((1 if sign == "+" else -1) * int(np.prod(n)) for sign, n in terms)
    if value != result:
        return set()
    return {after for state in states for after in _used(state, terms, result)}


def _used(state: State, terms: list[Term], result: int) -> Iterator[State]:
    """The state without the amounts of `terms` and with their result, for each way to read them:
    as amounts at hand with those taken away, or all of them as amounts to be taken away."""
    for whole in (1, -1):
        left = list(state)
        for sign, numbers in terms:
            wanted = (whole if sign == "+" else -whole, numbers)
            alike = [a for a in left if a[0] == wanted[0] and tuple(sorted(a[1])) == numbers]
            if not alike:
                break
            left.remove(alike[0])
        else:
            # Nothing is left, whichever way it is read.
            yield tuple(sorted([*left, (whole if result else 1, (result,))]))


# ---- lines


def any_line(state: State, labels: dict, unit: str, rng: np.random.Generator) -> str:
    """A product, or the sum or difference of two amounts, each way with equal probability."""
    products = [a for a in state if len(a[1]) == 2]
    single = [a for a in state if len(a[1]) == 1]
    pairs = [
        (a, b)
        for i, a in enumerate(single)
        for b in single[i + 1 :]
        if a[0] == b[0] or _taken(a, b)[0] >= _taken(a, b)[1]
    ]
    chosen = int(rng.integers(len(products) + len(pairs)))
    if chosen < len(products):
        return _product(products[chosen], labels, unit)
    a, b = pairs[chosen - len(products)]
    return _combined(a, b, unit)


def line_in_order(
    amounts: Sequence[Amount], state: State, labels: dict, unit: str, style: str
) -> str:
    """The line that comes next in the order of the story. Once lines did not come in that order,
    the first amounts that fit."""
    left = list(state)
    ordered = []
    for amount in amounts[1:]:
        for form in ((amount.sign, amount.numbers), (amount.sign, (int(np.prod(amount.numbers)),))):
            if form in left:
                left.remove(form)
                ordered.append(form)
                break
    # What is at hand: the first amount, or what became of it.
    held = max((a for a in left if a[0] == 1), default=None)
    if held is not None:
        left.remove(held)  # once: another amount may be as large
    ordered = [*ordered, *left]
    products = [a for a in ordered if len(a[1]) == 2]
    if products and (style == "products_first" or held is None or ordered[0] is products[0]):
        return _product(products[0], labels, unit)
    if held is None:
        held, ordered = ordered[0], ordered[1:]
    for other in ordered:
        if len(other[1]) == 2:
            return _product(other, labels, unit)
        if held[0] == other[0] or _taken(held, other)[0] >= _taken(held, other)[1]:
            return _combined(held, other, unit)
    return _combined(ordered[0], ordered[1], unit)


def _taken(a: tuple, b: tuple) -> tuple[int, int]:
    """(what is at hand, what is taken away) of two amounts of different signs."""
    return (a[1][0], b[1][0]) if a[0] == 1 else (b[1][0], a[1][0])


def _product(amount: tuple, labels: dict, unit: str) -> str:
    n, m = amount[1]
    return f"{labels[amount]} {n} * {m} = {n * m} {unit}.\n"


def _combined(a: tuple, b: tuple, unit: str) -> str:
    if a[0] == b[0]:
        total = a[1][0] + b[1][0]
        words = "That makes" if a[0] == 1 else "Together that takes away"
        return f"{words} {a[1][0]} + {b[1][0]} = {total} {unit}.\n"
    whole, part = _taken(a, b)
    return f"That leaves {whole} - {part} = {whole - part} {unit}.\n"
