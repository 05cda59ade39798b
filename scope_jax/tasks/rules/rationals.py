r"""Exact values of answers that are rational numbers: 30, -0.5, 1/3, \frac{2^{5}+1}{3 \cdot 4},
4.5\times 10^{33}, 18\frac{19}{20}, 0.1\overline{6}.

A small reader of + - * / ^, \frac and brackets over numbers. Whatever it does not know, and
whatever would be large or deep, is None: nothing here takes long, whatever the text is.
"""

import re
from fractions import Fraction

_MOST_CHARACTERS = 2000
_MOST_DIGITS = 1000  # of a number as it is written; Python itself refuses 4,300
_MOST_BITS = 20_000  # of a numerator or denominator
_MOST_DEPTH = 30

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.\d*|\.\d+)"
    r"(?P<repeats>\\(?:overline|bar)\{\d{1,100}\}|\(\d{1,100}\)|\.\.\.)?|\d+)"
    r"|(?P<mark>\\frac|\\times|\\cdot|\\div|[-+*/^(){}]))"
)
_IN_BASE = re.compile(
    r"(-?)(?:\(|\{|\\text\{)?(\d[0-9A-Z]{0,1000})[)}]? ?_(?:\{| ?\\text\{)?(\d{1,2}|[a-z]{3,7})\}?"
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
          "ten": 10, "twelve": 12, "sixteen": 16}  # fmt: skip
_OPERATORS = {"\\times": "*", "\\cdot": "*", "\\div": "/"}
_DECIMAL = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+)(?:\s*\\(?:times|cdot)\s*10\^\{-?\d+\})?")


class _Unreadable(Exception):
    pass


def rational(text: str) -> Fraction | None:
    """The value of a text in the one spelling (`spelling.spelled`) where it is a rational number;
    None where it is not, or is too large to be computed."""
    if not text or len(text) > _MOST_CHARACTERS:
        return None
    try:
        return _Reader(_tokens(text)).whole()
    except (_Unreadable, ZeroDivisionError):
        return None


def in_base(text: str) -> Fraction | None:
    r"""The value of a number with its base as an index, 101_{2} or 2A_{16} (2 to 36); None for a
    text of another form, and where a digit is none of that base."""
    match = _IN_BASE.fullmatch(text)
    if match is None or len(match[2]) > _MOST_DIGITS:
        return None
    base = _BASES.get(match[3].strip()) or int(re.sub(r"\D", "", match[3]) or 0)
    if not 2 <= base <= 36:
        return None
    try:
        value = int(match[2], base)
    except ValueError:
        return None
    return Fraction(-value if match[1] else value)


def is_decimal(text: str) -> bool:
    """Whether a text is one decimal number, a power of ten after it allowed."""
    return _DECIMAL.fullmatch(text) is not None


def decimal_value(number: str) -> Fraction | None:
    r"""The value of one number as it is written, a repeating decimal (0.1\overline{6}, 0.1(6),
    0.1666...) included. None for a number followed by "..." that does not repeat."""
    match = _TOKEN.fullmatch(number)
    if match is None or match["number"] is None:
        return None
    repeats = match["repeats"] or ""
    digits = match["number"][: len(match["number"]) - len(repeats)]
    if len(digits) > _MOST_DIGITS:
        return None
    whole, _, places = digits.partition(".")
    if repeats == "...":
        block = _repeating_block(places)
    else:
        block = re.sub(r"\D", "", repeats)
    if repeats and not block:
        return None
    value = Fraction(int(whole + places or "0"), 10 ** len(places))
    if block:
        value += Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(places))
    return value


def _repeating_block(places: str) -> str:
    """What the end of some decimal places repeats: 3 of 0.33, 6 of 0.166, 12 of 0.1212; "" where
    it is not written twice."""
    for size in range(1, min(20, len(places) // 2) + 1):
        if places[-size:] == places[-2 * size : -size]:
            return places[-size:]
    return ""


def _tokens(text: str) -> list[str]:
    found, place = [], 0
    text = text.strip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _Unreadable
        token = match["number"] or match["mark"]
        found.append(_OPERATORS.get(token, token))
        place = match.end()
    return found


class _Reader:
    """Recursive descent over tokens, with one level of depth for each bracket."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.place, self.depth = tokens, 0, 0

    def whole(self) -> Fraction:
        value = self.sum()
        if self.place < len(self.tokens):
            raise _Unreadable
        return value

    def next(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def take(self, token: str) -> None:
        if self.next() != token:
            raise _Unreadable
        self.place += 1

    def sum(self) -> Fraction:
        value = self.product()
        while (sign := self.next()) in ("+", "-"):
            self.place += 1
            term = self.product()
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def product(self) -> Fraction:
        value, divided = self.signed(), False
        while True:
            mark = self.next()
            if mark in ("*", "/"):
                self.place += 1
                factor = self.signed()
                divided = mark == "/"
                value = _bounded(value / factor if divided else value * factor)
            elif mark in ("(", "{", "\\frac"):
                if divided:
                    raise _Unreadable  # 1/2(3): who knows
                value = _bounded(value * self.power())
            else:
                return value

    def signed(self) -> Fraction:
        sign = 1
        while (mark := self.next()) in ("+", "-"):
            self.place += 1
            sign = -sign if mark == "-" else sign
        return sign * self.power()

    def power(self) -> Fraction:
        base = self.atom()
        if self.next() != "^":
            return base
        self.place += 1
        exponent = self.group() if self.next() in ("{", "(") else self.signed()
        if exponent.denominator != 1:
            raise _Unreadable
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent.numerator) > _MOST_BITS:
            raise _Unreadable
        return base**exponent.numerator

    def atom(self) -> Fraction:
        token = self.next()
        if token in ("(", "{"):
            return self.group()
        self.place += 1
        if token == "\\frac":
            above, below = self.group(), self.group()
            return _bounded(above / below)
        value = decimal_value(token) if token else None
        if value is None:
            raise _Unreadable
        return value + self.fraction_of_a_mixed_number() if token.isdigit() else value

    def fraction_of_a_mixed_number(self) -> Fraction:
        r"""What a whole number just read has after it: 19/20 in "18 19/20" and 18\frac{19}{20}.
        Nothing (0) unless it is a proper fraction of whole numbers."""
        if self.next() == "\\frac" and self.next(1) == "{" == self.next(4):
            above, below, size = self.next(2), self.next(5), 7
            closed = self.next(3) == "}" == self.next(6)
        else:
            above, below, size = self.next(), self.next(2), 3
            closed = self.next(1) == "/"
        if not (closed and above.isdigit() and below.isdigit()):
            return Fraction(0)
        over, under = decimal_value(above), decimal_value(below)
        if over is None or under is None or not 0 < over < under:
            return Fraction(0)
        self.place += size
        return over / under

    def group(self) -> Fraction:
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise _Unreadable
        closing = {"(": ")", "{": "}"}.get(self.next())
        if closing is None:
            raise _Unreadable
        self.place += 1
        value = self.sum()
        self.take(closing)
        self.depth -= 1
        return value


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise _Unreadable
    return value
