"""What an answer says, as far as its text tells: its spelling, its exact value, its unit.

`equal` compares two readings. True and False are final; None leaves it to sympy.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from .rationals import in_base, is_decimal, rational
from .spelling import conjunction, letters_of, spelled
from .units import split_unit

_NAMED = re.compile(r"((?:[a-zA-Z]|\\[a-zA-Z]+)'*(?:_\{[^{}=]*\})?(?:\([a-z]\))?) ?= ?(?!.*[=<>])")
_WORD = re.compile(r"\\text\{[a-zA-Z]{2,}\}|(?i:yes|no|true|false)")
_LETTERS_ONLY = re.compile(r"[a-zA-Z]+")
_BASED = re.compile(r"(?<![a-zA-Z_^{\d\\])\(?\d+\)? ?_")
_MONEY = re.compile(r"\\\$|[€£¥₹₩₽￥]")
_CURRENCIES = ("money", "dollar", "euro", "lb")
_MARKS = re.compile(r"'+|(?<=[A-Z])\^\{T\}|\^\{?\\(?:top|dagger)|!!+")
_CONDITION = re.compile(
    r"[<>]|\\(?:le|ge|ne|in|pm|mp|text|cdots|ldots|mid|to|cup|cap)(?![a-z])|\.\.\.|[|:;]"
)
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
    based: bool
    """Whether it is, or has in it, a number with an index, which is its base."""
    marks: tuple[str, ...]
    """What sympy's reader leaves out: primes, transposes, double factorials, in order."""
    items: tuple[str, ...]
    """Of a list, set or tuple; empty where the text is none, or names conditions."""
    bracket: str
    """What is around the items."""
    joined: str
    """ " and" or " or" between inequalities."""
    bare: bool
    """Whether the unit was of letters that may be variables."""


def read(text: str, *, reference: bool) -> list[Reading]:
    """The readings of an answer, the likeliest first. A reference answer has one: letters after
    its number are variables there. In another answer they may be units (5 m), and 1,000 may be a
    list."""
    text = text[:_LONGEST]
    words, listed = spelled(text), spelled(text, thousands=False)
    readings = _readings(words, listed, reference)
    joined = conjunction(text)
    return [
        replace(
            reading,
            key=reading.key + joined,
            listed=reading.listed + joined,
            joined=joined,
            measure=reading.measure or ("money" if _MONEY.search(text) else ""),
        )
        for reading in readings
    ]


def _readings(words: str, listed: str, reference: bool) -> list[Reading]:
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
    value = in_base(rest)
    bracket, items = _items(words)
    return Reading(
        key=letters_of(words),
        listed=letters_of(listed),
        text=f"{name} = {rest}" if name else rest,
        name=name,
        value=rational(rest) if value is None else value,
        decimal=is_decimal(rest),
        percent=percent,
        measure=measure,
        based=_BASED.search(rest) is not None,
        marks=tuple(sorted(_MARKS.findall(rest if name else words))),
        items=items,
        bracket=bracket,
        joined="",
        bare=bare,
    )


def equal(reference: Reading, answer: Reading) -> bool | None:
    """Whether two readings are equal; None where their texts and values do not tell."""
    if answer.key and answer.key in (reference.key, reference.listed):
        return True
    if _measures_differ(reference.measure, answer.measure) or _differ(reference, answer):
        return False
    if _is_without_its_base(reference, answer):
        return True
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


def _measures_differ(first: str, second: str) -> bool:
    if not first or not second or first == second:
        return False
    return "money" not in (first, second) or not {first, second} <= set(_CURRENCIES)


def _bases_differ(reference: Reading, answer: Reading) -> bool:
    """Whether a number has an index that is no base: it is only its text."""
    return any(reading.based and reading.value is None for reading in (reference, answer))


def _is_without_its_base(reference: Reading, answer: Reading) -> bool:
    """Whether an answer is the digits of the reference, 101 for 101_2: the question names it."""
    digits = reference.text.partition("_")[0].strip("(){} ")
    return reference.based and reference.value is not None and answer.text.strip() == digits


def _are_joined_otherwise(reference: Reading, answer: Reading) -> bool:
    """Whether "and" stands for "or", or a set is in another set."""
    nested = ["\\{\\{" in reading.key for reading in (reference, answer)]
    joined = reference.joined, answer.joined
    return nested[0] is not nested[1] or (all(joined) and joined[0] != joined[1])


def _lists_differ(reference: Reading, answer: Reading) -> bool:
    """Whether brackets or items do: sets are no tuples, and an item counts as often as it is
    there."""
    if not (reference.items or answer.items):
        return False
    brackets = reference.bracket + answer.bracket
    if reference.items and answer.items and brackets in ("{(", "({"):
        return True
    if len(reference.items) != len(answer.items):
        return bool(reference.items and answer.items) and "{" not in brackets
    values = [
        sorted(v for i in r.items if (v := rational(i)) is not None) for r in (reference, answer)
    ]
    return len(values[0]) == len(values[1]) == len(reference.items) and values[0] != values[1]


def _items(text: str) -> tuple[str, tuple[str, ...]]:
    """The bracket around a list ("{", "(" or "") and the items between its outer commas."""
    if "," not in text or _CONDITION.search(text):
        return "", ()
    bracket = ""
    for opening, closing in (("\\{", "\\}"), ("(", ")")):
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if len(_split(inner)) > 1 or "," not in inner:
                bracket, text = opening[-1], inner
                break
    return bracket, tuple(_split(text))


def _split(text: str) -> list[str]:
    """What is between the outer commas; nothing where brackets do not close."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return []
        if character == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return parts


def _differ(reference: Reading, answer: Reading) -> bool:
    """Whether texts that are not the same say different things to which sympy's reader is blind."""
    if reference.marks != answer.marks or _bases_differ(reference, answer):
        return True
    if _lists_differ(reference, answer) or _are_joined_otherwise(reference, answer):
        return True
    if reference.name and answer.name and reference.name.count("'") != answer.name.count("'"):
        return True
    both = reference.text.strip(), answer.text.strip()
    words = any(map(_WORD.fullmatch, both))
    # Words are no products of letters.
    return words and _LETTERS_ONLY.fullmatch(reference.key + answer.key) is not None
