"""What an answer says, as far as its text tells: its spelling, its exact value, its unit.

`equal` compares two readings. True and False are final; None leaves it to sympy.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from .rationals import is_decimal, rational
from .spelling import letters_of, spelled
from .units import split_unit

_NAMED = re.compile(r"((?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{[^{}=]*\})?(?:\([a-z]\))?) ?= ?(?!.*[=<>])")
_WORD = re.compile(r"\\text\{[a-zA-Z]{2,}\}|(?i:yes|no|true|false)")
_LETTERS_ONLY = re.compile(r"[a-zA-Z]+")
_LONGEST = 10_000


@dataclass(frozen=True)
class Reading:
    """One way to read an answer."""

    key: str
    """Its letters (`spelling.normal_answer`): equal keys are equal answers."""
    listed: str
    """The same where 1,000 is a list of two."""
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
    """Whether the unit was of letters that may be variables."""


def read(text: str, *, reference: bool) -> list[Reading]:
    """The readings of an answer, the likeliest first. A reference answer has one: letters after
    its number are variables there. In another answer they may be units (5 m), and 1,000 may be a
    list."""
    text = text[:_LONGEST]
    words, listed = spelled(text), spelled(text, thousands=False)
    readings = [_reading(words, listed, units=True)]
    if readings[0].bare:
        plain = _reading(words, listed, units=False)
        readings = [plain] if reference else [readings[0], plain]
    if not reference and listed != words:
        readings.append(_reading(listed, listed, units=False))
    return readings


def _reading(words: str, listed: str, *, units: bool) -> Reading:
    named = _NAMED.match(words)
    name = named[1] if named else ""
    rest, measure, bare = words[named.end() :] if named else words, "", False
    if units:
        split = split_unit(rest)
        # Letters are a unit after a rational number only, and never in an equation.
        if not split.bare or (not name and rational(split.rest) is not None):
            rest, measure, bare = split
    rest = rest.removesuffix("^{\\circ}").rstrip()
    percent = rest.endswith("\\%")
    rest = rest.removesuffix("\\%").rstrip()
    return Reading(
        key=letters_of(words),
        listed=letters_of(listed),
        text=f"{name} = {rest}" if name else rest,
        name=name,
        value=rational(rest),
        decimal=is_decimal(rest),
        percent=percent,
        measure=measure,
        bare=bare,
    )


def equal(reference: Reading, answer: Reading) -> bool | None:
    """Whether two readings are equal; None where their texts and values do not tell."""
    if answer.key and answer.key in (reference.key, reference.listed):
        return True
    if reference.measure and answer.measure and reference.measure != answer.measure:
        return False
    if _differ(reference, answer):
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


def _differ(reference: Reading, answer: Reading) -> bool:
    """Whether texts that are not the same say different things to which sympy's reader is blind."""
    both = reference.text.strip(), answer.text.strip()
    words = any(map(_WORD.fullmatch, both))
    # Words are no products of letters.
    return words and _LETTERS_ONLY.fullmatch(reference.key + answer.key) is not None
