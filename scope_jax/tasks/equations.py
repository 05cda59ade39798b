r"""Lines of algebra in one unknown x, read exactly: 3(x-2)=x+4, (x+1)/(x-2)=3, x=2 or x=-1/3.

A small reader of + - * / ^ and brackets that computes with fractions as it reads. It evaluates
nothing else: a text that it does not know, and whatever would be large or deep, is `Unreadable`,
so that nothing here takes long, whatever the text is.

    line    case or case ...
    case    chain | no x | any x, each with conditions after a comma: , x!=2
    chain   sum = sum = ...            all of them are equal; an expression where it is alone
    sum     products with + or -, a sign in front of the first
    product powers with * or /, or side by side: 2x, 3(x-2), x(x+1)
    power   number, x or bracket, with ^ and a whole number from 1 to 9 after it

3x/2 is (3x)/2. What readers take in two ways is not read: 1/2x, x2, 2^x. A power binds more
tightly than a sign: -x^2 is -(x^2).
"""

import dataclasses
import functools
import re
from fractions import Fraction

from scope_jax.tasks.rules.rationals import decimal_value

# Coefficients from that of x^0 up, without zeros at the end: 0 is the empty tuple.
Poly = tuple[Fraction, ...]

ONE: Poly = (Fraction(1),)
X: Poly = (Fraction(0), Fraction(1))

_MOST_CHARACTERS = 300
_MOST_DIGITS = 12  # of a number as it is written
_MOST_DEPTH = 12
_MOST_DEGREE = 12
_MOST_BITS = 600  # of a numerator or denominator
_MOST_CASES, _MOST_SIDES = 8, 6

_TYPESETTING = str.maketrans({"−": "-", "–": "-", "·": "*", "×": "*", "⋅": "*", "÷": "/"})
_LATEX = (
    (re.compile(r"\\(?:left|right)(?![a-z])"), ""),
    (re.compile(r"\\(?:cdot|times)(?![a-z])"), "*"),
    (re.compile(r"\\(?:ne|neq)(?![a-z])|≠"), "!="),
    (re.compile(r"\\[dt]?frac(?![a-z])"), r"\\frac"),
)
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|x|!=|\\frac|[-+*/^(){}=])")
_OR, _COMMA = re.compile(r"\bor\b"), re.compile(r",|\band\b")


class Unreadable(ValueError):
    """A text that is no line of algebra, or one that is too large; says why."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of an equation: a quotient of polynomials as it was written, nothing cancelled."""

    top: Poly
    bottom: Poly
    text: str  # without blanks


@dataclasses.dataclass(frozen=True)
class Case:
    """One alternative of a line: sides that are equal to each other."""

    sides: tuple[Side, ...]  # empty where `always` says it
    always: bool | None  # any x: True; no x: False
    nonzero: tuple[Poly, ...]  # must not be 0: denominators, and what conditions say
    text: str  # without blanks


@dataclasses.dataclass(frozen=True)
class Line:
    """A line: one of its cases holds."""

    cases: tuple[Case, ...]
    continues: bool = False  # an "=" stands in front: it goes on from the line before

    @property
    def expression(self) -> bool:
        """Whether it is an expression, or a chain of equal ones, and no equation."""
        [first, *more] = self.cases
        return not more and (self.continues or len(first.sides) == 1)


@functools.lru_cache(maxsize=1 << 15)
def read_line(text: str) -> Line:
    """The line that a text is, without its newline. Raises Unreadable."""
    if len(text) > _MOST_CHARACTERS:
        raise Unreadable(f"a line of {len(text)} characters; at most {_MOST_CHARACTERS}")
    text = text.translate(_TYPESETTING)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = text.strip()
    continues = text.startswith("=")
    parts = _OR.split(text.removeprefix("="))
    if len(parts) > _MOST_CASES:
        raise Unreadable(f"{len(parts)} cases; at most {_MOST_CASES}")
    if continues and len(parts) > 1:
        raise Unreadable("an expression has no cases")
    return Line(tuple(_case(part) for part in parts), continues)


def read_side(text: str) -> tuple[Poly, Poly, tuple[Poly, ...]]:
    """(numerator, denominator, what must not be 0) of an expression. Raises Unreadable."""
    reader = _Reader(text)
    top, bottom = reader.whole()
    return top, bottom, tuple(reader.nonzero)


def _case(text: str) -> Case:
    first, *conditions = _COMMA.split(text)
    nonzero: list[Poly] = []
    for condition in conditions:
        both = condition.split("!=")
        if len(both) != 2:
            raise Unreadable(f"{condition.strip()!r}: a condition is like x!=2")
        (a, b, more), (c, d, others) = read_side(both[0]), read_side(both[1])
        nonzero += [*more, *others, subtract(multiply(a, d), multiply(c, b))]
    words, plain = " ".join(first.split()), "".join(text.split())
    if words in ("any x", "no x"):
        return Case((), words == "any x", tuple(nonzero), plain)
    pieces = first.split("=")
    if len(pieces) > _MOST_SIDES:
        raise Unreadable(f"{len(pieces)} sides; at most {_MOST_SIDES}")
    sides = []
    for piece in pieces:
        top, bottom, more = read_side(piece)
        nonzero += more
        sides.append(Side(top, bottom, "".join(piece.split())))
    return Case(tuple(sides), None, tuple(nonzero), plain)


class _Reader:
    """Recursive descent over the tokens of one side; every value is a quotient of polynomials."""

    def __init__(self, text: str):
        self.tokens, place = [], 0
        text = text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise Unreadable(f"{text[place:].strip()[:20]!r} cannot be read")
            self.tokens.append(match[1])
            place = match.end()
        self.place = self.depth = 0
        self.nonzero: list[Poly] = []

    def whole(self) -> tuple[Poly, Poly]:
        value = self.sum()
        if self.place < len(self.tokens):
            raise Unreadable(f"{self.next!r} has no place here")
        return value

    @property
    def next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, *tokens: str) -> str:
        token = self.next
        if token not in tokens or not token:
            raise Unreadable(f"{token or 'the end'!r} where {' or '.join(tokens)} should be")
        self.place += 1
        return token

    def sum(self) -> tuple[Poly, Poly]:
        sign = self.take("-", "+") if self.next in ("-", "+") else "+"
        top, bottom = self.product()
        if sign == "-":
            top = negate(top)
        while self.next in ("-", "+"):
            sign = self.take("-", "+")
            a, b = self.product()
            if bottom != b:
                top, a, bottom = multiply(top, b), multiply(a, bottom), multiply(bottom, b)
            top = add(top, a) if sign == "+" else subtract(top, a)
        return top, bottom

    def product(self) -> tuple[Poly, Poly]:
        top, bottom = self.power()
        divided = False
        while self.next and self.next not in ("+", "-", ")", "}"):
            side_by_side = self.next not in ("*", "/")
            if side_by_side and (divided or self.next[0].isdigit()):
                raise Unreadable(f"{self.next!r} needs a sign or brackets before it")
            sign = "*" if side_by_side else self.take("*", "/")
            divided = divided or sign == "/"
            a, b = self.power()
            if sign == "/":
                a, b = self.inverse(a, b)
            top, bottom = multiply(top, a), multiply(bottom, b)
        return top, bottom

    def inverse(self, top: Poly, bottom: Poly) -> tuple[Poly, Poly]:
        if not top:
            raise Unreadable("a division by zero")
        if len(top) > 1:
            self.nonzero.append(top)
        return bottom, top

    def power(self) -> tuple[Poly, Poly]:
        top, bottom = self.atom()
        if self.next != "^":
            return top, bottom
        self.take("^")
        wrapped = self.next == "{" and bool(self.take("{"))
        if len(self.next) != 1 or self.next not in "123456789":
            raise Unreadable(f"{self.next or 'the end'!r}: a power is a whole number from 1 to 9")
        exponent = self.take(self.next)
        if wrapped:
            self.take("}")
        if self.next == "^":
            raise Unreadable("a power of a power needs brackets")
        a, b = top, bottom
        for _ in range(int(exponent) - 1):
            a, b = multiply(a, top), multiply(b, bottom)
        return a, b

    def atom(self) -> tuple[Poly, Poly]:
        token = self.next
        if token == "x":
            self.place += 1
            return X, ONE
        if token[:1].isdigit():
            self.place += 1
            value = decimal_value(token) if len(token) <= _MOST_DIGITS else None
            if value is None:
                raise Unreadable(f"a number of {len(token)} digits; at most {_MOST_DIGITS}")
            return constant(value.numerator), constant(value.denominator)
        if token == "\\frac":
            self.place += 1
            (a, b), (c, d) = self.bracket("{", "}"), self.bracket("{", "}")
            c, d = self.inverse(c, d)
            return multiply(a, c), multiply(b, d)
        return self.bracket("(", ")")

    def bracket(self, opened: str, closed: str) -> tuple[Poly, Poly]:
        self.take(opened)
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise Unreadable(f"brackets deeper than {_MOST_DEPTH}")
        value = self.sum()
        self.depth -= 1
        self.take(closed)
        return value


# ---- polynomials


def constant(value: int | Fraction) -> Poly:
    """The polynomial that is this number everywhere."""
    return (Fraction(value),) if value else ()


def _checked(coefficients: list[Fraction]) -> Poly:
    while coefficients and not coefficients[-1]:
        coefficients.pop()
    if len(coefficients) > _MOST_DEGREE + 1:
        raise Unreadable(f"a power of x above {_MOST_DEGREE}")
    if any(
        max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS
        for value in coefficients
    ):
        raise Unreadable("numbers that grow too large")
    return tuple(coefficients)


def add(a: Poly, b: Poly) -> Poly:
    """a + b."""
    size, zero = max(len(a), len(b)), (Fraction(0),)
    longer, other = a + zero * (size - len(a)), b + zero * (size - len(b))
    return _checked([p + q for p, q in zip(longer, other)])


def negate(a: Poly) -> Poly:
    """-a."""
    return tuple(-value for value in a)


def subtract(a: Poly, b: Poly) -> Poly:
    """a - b."""
    return add(a, negate(b))


def multiply(a: Poly, b: Poly) -> Poly:
    """a b. Raises Unreadable where the degree or a coefficient grows too large."""
    if not a or not b:
        return ()
    found = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            found[i + j] += p * q
    return _checked(found)


def written(a: Poly) -> str:
    """A polynomial in its one spelling: x^2-3x/2+1, highest power first."""
    text = ""
    for power in range(len(a) - 1, -1, -1):
        if not (value := a[power]):
            continue
        sign = "-" if value < 0 else "+" if text else ""
        over, under = abs(value.numerator), value.denominator
        letter = "" if power == 0 else "x" if power == 1 else f"x^{power}"
        number = "" if over == 1 and letter else str(over)
        text += f"{sign}{number}{letter}" + (f"/{under}" if under > 1 else "")
    return text or "0"
