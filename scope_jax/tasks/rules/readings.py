"""What an answer says, as far as its text tells: its spelling, its exact value, its unit.

`equal` compares two readings. True and False are final; None leaves it to sympy.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from .rationals import is_decimal, rational
from .spelling import normal_answer, spelled
from .units import split_unit

_NAMED = re.compile(r"((?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{[^{}=]*\})?(?:\([a-z]\))?) ?= ?(?!.*[=<>])")
_LONGEST = 10_000


@dataclass(frozen=True)
class Reading:
    """One way to read an answer."""

    key: str
    """Equal keys are equal answers."""
    text: str
    """In the one spelling, for sympy; without a unit, a percent sign, a degree sign."""
    name: str
    """x of "x = 5", else ""."""
    value: Fraction | None
    """Of what `name` stands for, before the percent sign."""
    decimal: bool
    """Whether that is written as one decimal number."""
    percent: bool
    measure: str
    """Known unit, see `units`."""
    bare: bool
    """Whether the unit was a letter that may be a variable."""


def read(text: str, *, reference: bool) -> list[Reading]:
    """The readings of an answer, the likeliest first. A reference answer has one: letters after
    its number are variables there. In another answer they may be units (5 m), and 1,000 may be a
    list."""
    text = text[:_LONGEST]
    words = spelled(text)
    readings = [_reading(text, words, units=True)]
    if readings[0].bare:
        plain = _reading(text, words, units=False)
        readings = [plain] if reference else [readings[0], plain]
    if not reference and (listed := spelled(text, thousands=False)) != words:
        readings.append(_reading(text, listed, units=False))
    return readings


def _reading(text: str, words: str, *, units: bool) -> Reading:
    named = _NAMED.match(words)
    name = named[1] if named else ""
    rest = words[named.end() :] if named else words
    split = split_unit(rest) if units else None
    if split is not None and not (split.bare and (name or rational(split.rest) is None)):
        rest, measure, bare = split
    else:
        measure, bare = "", False
    stripped = rest.removesuffix("^{\\circ}").rstrip()
    percent = stripped.endswith("\\%")
    stripped = stripped.removesuffix("\\%").rstrip()
    return Reading(
        normal_answer(text),
        f"{name} = {stripped}" if name else stripped,
        name,
        rational(stripped),
        is_decimal(stripped),
        percent,
        measure,
        bare,
    )


def equal(reference: Reading, answer: Reading) -> bool | None:
    """Whether two readings are equal; None where their texts and values do not tell."""
    if reference.key and reference.key == answer.key:
        return True
    if reference.measure and answer.measure and reference.measure != answer.measure:
        return False
    if reference.value is None or answer.value is None:
        return None
    if reference.name and answer.name and reference.name != answer.name:
        return False
    if reference.value == answer.value:
        return True
    if reference.percent == answer.percent:
        return False
    # 28% is 28, which it is called, and 0.28, which it means.
    return reference.value / (100 if reference.percent else 1) == answer.value / (
        100 if answer.percent else 1
    )

