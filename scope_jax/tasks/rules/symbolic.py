"""Equality of what is no plain number: latex2sympy reads it, and values decide.

math_verify's own comparison rounds to six decimals and drops what is smaller than 1e-15, so two
tiny numbers are equal to it. Here everything is exact: decimals are read as fractions, constants
are compared to 50 digits of their own size, expressions at several points. Lists, sets, tuples,
intervals and matrices are compared element by element, so that this holds within them too.

This runs in worker processes only, under their time and memory limits.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import latex2sympy, normalize_latex
from latex2sympy2_extended.math_normalization import NormalizationConfig
from math_verify import verify
from math_verify.grader import (
    is_equation,
    is_relation,
    take_first_relation,
    take_last_relation,
)

from .rationals import decimal_value
from .spelling import letters_of

NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
)
_PLAIN = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
_DIGITS = 60
_TOLERANCE = sympy.Float("1e-50", _DIGITS)
_HALF_OF_THE_SEVENTH_DIGIT = sympy.Rational(5, 10**7)
_MOST_ELEMENTS = 100
_MOST_NATS = 100_000  # of a power within a rational number: e to that
_MOST_CHARACTERS, _MOST_DEPTH = 3000, 60
_COUNTED = (sympy.Sum, sympy.Product)

_SIGNS = re.compile(r"(?:\^\{\\circ\}|\\%)(?! ?\.?\d)")
_NUMBERS_SIDE_BY_SIDE = re.compile(r"\d \.?\d|\d\. \d")
_DECIMAL = re.compile(
    r"(?:\d+\.\d*|\.\d+)(?:\\(?:overline|bar)\{\d{1,100}\}|\(\d{1,100}\)|\.\.\.)?"
)
_WHOLE_AND_FRACTION = re.compile(r"(?<![\d.}_^{])(\d{1,50}) ?(\\frac\{(\d{1,50})\}\{(\d{1,50})\})")
_BEFORE_BRACKET = re.compile(r"(?<![\d.}_^{a-zA-Z])(\d+) ?(?=\()")
_LETTERS = re.compile(
    r"\\(?:text|begin|end|operatorname|math[a-z]+)\{[^{}]*\}|\\[a-zA-Z]+|_\{[^{}]*\}"
    r"|([iE]|[A-Z](?! ?\((?![^()]*[-+])))"
)
_IS_A_SUM = re.compile(r"[-+*/^<>]|^[\s({]*\d")
_NAMED_PLUS_MINUS = re.compile(r"[a-zA-Z] = [^=<>,]*\\pm(?![a-z])[^=<>,]*")
_CAPITAL = re.compile(r"[A-Z]")
_INDEXED = re.compile(r"\\(?:sum|prod|int)(?![a-z])")


class Incomparable(Exception):
    """Two readings of which nothing says whether they are equal."""


@functools.lru_cache(maxsize=256)  # the rollouts of a group share their reference
def parsed(text: str) -> Any:
    """The sympy object that a text in the one spelling stands for. Raises what latex2sympy does."""
    if len(text) > _MOST_CHARACTERS or max(itertools.accumulate(map(_step, text))) > _MOST_DEPTH:
        raise ValueError("too long or too deep for latex2sympy, which would take for ever")
    if "..." in _DECIMAL.sub("", text):
        raise ValueError("an ellipsis can only be compared as text")
    if _NUMBERS_SIDE_BY_SIDE.search(letters_of(text)):
        raise ValueError("no number, and no product")
    text = _both_values(text)
    latex = normalize_latex(_for_latex2sympy(text), _PLAIN)
    try:
        return _whole(latex2sympy(latex, is_real=True, normalization_config=None))
    except Exception:
        last = re.split(r"(?<![\\<>!])=", latex)[-1]
        if last == latex or "," in latex or ";" in latex or _IS_A_SUM.search(latex.split("=")[0]):
            raise
        return _whole(latex2sympy(last, is_real=True, normalization_config=None))


def _both_values(text: str) -> str:
    r"""x = 1 \pm y as the list of x = 1 + y and x = 1 - y: latex2sympy can read no sign after =."""
    if text.count("\\pm") != 1 or _NAMED_PLUS_MINUS.fullmatch(text) is None:
        return text
    return ", ".join(text.replace("\\pm", sign) for sign in "+-")


def _step(character: str) -> int:
    return (character in "({[") - (character in ")}]")


def _whole(value: Any) -> Any:
    if isinstance(value, (list, bool)) or value in (sympy.zoo, sympy.nan):
        raise ValueError("no value")
    return value


def _for_latex2sympy(text: str) -> str:
    """Decimals as fractions, mixed numbers as one fraction, i as the imaginary unit, capitals as
    names (latex2sympy ignores case, and takes E for the start of a power of ten)."""
    text = _DECIMAL.sub(_decimal, _SIGNS.sub("", text))
    text = _BEFORE_BRACKET.sub(r"\1\\cdot ", _WHOLE_AND_FRACTION.sub(_mixed, text))
    indexed = _INDEXED.search(text) is not None

    def letter(match: re.Match[str]) -> str:
        if match[1] and match[1] != "i":
            return rf"\text{{capital{match[1]}}}"
        if match[0][0] == "_":
            return _CAPITAL.sub(r"capital\g<0>", match[0])
        return "{I}" if match[1] == "i" and not indexed else match[0]

    return _LETTERS.sub(letter, text)


def _decimal(match: re.Match[str]) -> str:
    value = decimal_value(match.group())
    return match.group() if value is None else _fraction(value)


def _mixed(match: re.Match[str]) -> str:
    whole, over, under = int(match[1]), int(match[3]), int(match[4])
    if 0 < over < under:
        return _fraction(whole + Fraction(over, under))
    return rf"{match[1]}\cdot {match[2]}"


def _fraction(value: Fraction) -> str:
    return (
        str(value.numerator)
        if value.denominator == 1
        else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    )


def exact(expression: Any) -> Any:
    """An expression with its floats as the decimals that they were written as."""
    floats = expression.atoms(sympy.Float) if isinstance(expression, sympy.Basic) else ()
    return (
        expression.xreplace({f: sympy.Rational(str(f)) for f in floats}) if floats else expression
    )


def close(decimal: Fraction, constant: Any) -> bool:
    """Whether a decimal number stands for an irrational one: to half a unit of the seventh digit,
    however small or large the number is. A rational number has to be equal."""
    if not isinstance(constant, sympy.Expr) or constant.free_symbols:
        return False
    number, value = sympy.Rational(decimal.numerator, decimal.denominator), constant.evalf(_DIGITS)
    if not value.is_Float or abs(value - number) > _HALF_OF_THE_SEVENTH_DIGIT * abs(value):
        return False
    return constant.doit().is_rational is not True or same(number, constant)


def same(reference: Any, answer: Any) -> bool:
    """Whether an answer equals the reference, which says how the answer may be written: 5 is also
    x = 5, but x = 5 is not 2x = 10. Raises Incomparable, or what sympy does."""
    reference, answer = _without_names(reference, answer)
    if any(
        is_relation(a) and isinstance(b, sympy.Expr)
        for a, b in ((reference, answer), (answer, reference))
    ):
        return False
    if is_relation(reference) or is_relation(answer):
        return _same_relations(reference, answer)
    if isinstance(reference, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return reference.shape == answer.shape and all(map(same, reference.flat(), answer.flat()))
    if isinstance(reference, (sympy.Set, sympy.Tuple)) or isinstance(
        answer, (sympy.Set, sympy.Tuple)
    ):
        return _same_collections(reference, answer)
    if isinstance(reference, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _same_expressions(reference, answer)
    return bool(reference == answer)


def _without_names(reference: Any, answer: Any) -> tuple[Any, Any]:
    """Both without the name before "=" where one of them has none, or both have the same."""
    named = is_named(reference), is_named(answer)
    if not is_relation(reference) and (named[1] or _is_computation(answer)):
        answer = take_last_relation(answer).rhs
    elif named[0] and not is_relation(answer):
        reference = take_last_relation(reference).rhs
    elif all(named) and take_first_relation(reference).lhs == take_first_relation(answer).lhs:
        reference, answer = take_last_relation(reference).rhs, take_last_relation(answer).rhs
    return reference, answer


def is_named(value: Any) -> bool:
    r"""Whether a value is an equation that says what something is: x, f(x), \cos A, |AB|, AB."""
    if not is_equation(value):
        return False
    left = take_first_relation(value).lhs
    if isinstance(left, sympy.Abs):
        left = left.args[0]
    if isinstance(left, sympy.Mul):  # the name of a side or a triangle
        names = [str(factor) for factor in left.args]
        return all(name.startswith("capital") or name in ("angle", "m") for name in names)
    return isinstance(left, (sympy.Symbol, sympy.Function)) or not isinstance(left, sympy.Expr)


def _is_computation(value: Any) -> bool:
    """Whether a value is a true equation of numbers: 2 + 3 = 5."""
    if not is_equation(value):
        return False
    first, last = take_first_relation(value).lhs, take_last_relation(value).rhs
    return bool(first.is_number and last.is_number and same(last, first))


# ---- numbers and expressions


def _same_expressions(a: sympy.Expr, b: sympy.Expr) -> bool:
    if a == b:
        return True
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        return _same_constants(a, b)
    counted = a.has(*_COUNTED) or b.has(*_COUNTED)
    strict = a.has(sympy.Abs) is not b.has(sympy.Abs)
    told = [_same_at(a, b, point, strict) for point in _points(symbols, whole=counted)]
    if False in told:
        return False
    return told.count(True) >= 3 or bool(sympy.simplify(a - b) == 0)


def _same_constants(a: sympy.Expr, b: sympy.Expr) -> bool:
    first, second = a.evalf(_DIGITS), b.evalf(_DIGITS)
    if not _is_finite(first) or not _is_finite(second):
        return bool(first == second)
    size = abs(first) + abs(second)
    if bool(abs(first - second).evalf(_DIGITS) <= _TOLERANCE * size):
        return not (a.is_rational and b.is_rational) or _same_rationals(a, b)
    # What is zero without showing it (sqrt(2) sqrt(3) - sqrt(6)) has a value of no digits.
    hidden = any(value.is_Float and value._prec == 1 for value in (first, second))
    return hidden and bool(sympy.simplify(a - b) == 0)


def _same_rationals(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether numbers of which 50 digits agree are equal. Those with a part too large to compute
    are not, unless they are written alike."""
    parts = [part for number in (a, b) for part in number.atoms(sympy.Pow, sympy.factorial)]
    if any(abs(sympy.log(abs(part)).evalf(15)) > _MOST_NATS for part in parts if part != 0):
        return False
    first, second = a.doit(), b.doit()
    return not (first.is_Rational and second.is_Rational) or bool(first == second)


def _same_at(
    a: sympy.Expr, b: sympy.Expr, point: dict[sympy.Symbol, sympy.Rational], strict: bool
) -> bool | None:
    """Whether two expressions agree at a point; None where one of them has no value there, is
    real where the other is not (False if `strict`), or both are zero but for noise."""
    first, second = _value(a, point), _value(b, point)
    if not _is_finite(first) or not _is_finite(second):
        return None
    if first.is_real is not second.is_real:
        return False if strict else None
    size = abs(first) + abs(second)
    if bool(size < _TOLERANCE):
        return None
    return bool(abs(first - second).evalf(_DIGITS) <= _TOLERANCE * size)


def _value(expression: sympy.Expr, point: dict[sympy.Symbol, Any]) -> Any:
    if expression.has(*_COUNTED):
        return expression.subs(point).doit().evalf(_DIGITS)
    return expression.evalf(_DIGITS, subs=point)


def _is_finite(value: Any) -> bool:
    return bool(value.is_number) and value.is_finite is True and not value.atoms(sympy.Integral)


def _points(
    symbols: Sequence[sympy.Symbol], *, whole: bool = False
) -> list[dict[sympy.Symbol, sympy.Rational]]:
    """Where expressions are compared: the same fractions each time, of both signs; whole numbers
    for bounds of sums."""
    if whole:
        return [
            {symbol: sympy.Integer(3 + row + place % 5) for place, symbol in enumerate(symbols)}
            for row in range(4)
        ]
    return [
        {
            symbol: sign * sympy.Rational((97 * place + 31 * row) % 89 + 10, 53)
            for place, (symbol, sign) in enumerate(zip(symbols, itertools.cycle(signs)), start=1)
        }
        for row, signs in enumerate(((1,), (1,), (1,), (-1, 1), (-1,), (1, -1, -1)), start=1)
    ]


# ---- relations


def _same_relations(reference: Any, answer: Any) -> bool:
    chains = [
        list(x._unsorted_args) if hasattr(x, "_unsorted_args") and is_relation(x) else [x]
        for x in (reference, answer)
    ]
    if all(is_relation(x) for chain in chains for x in chain):
        first, second = chains
        if len(first) != len(second):
            return False
        for order in (second, second[::-1]):
            if all(map(_same_relation, first, order)):
                return True
        if _told_apart_by_rounding(first, second):
            return False
    if isinstance(reference, sympy.Interval) and not _may_be_a_pair(reference):
        reference, answer = answer, reference
    return bool(verify(reference, answer, timeout_seconds=None, raise_on_error=True))


def _may_be_a_pair(interval: sympy.Interval) -> bool:
    return bool(interval.left_open and interval.right_open and interval.measure.is_finite)


def _same_relation(a: Any, b: Any) -> bool:
    """Whether two relations have the same solutions because one is a multiple of the other."""
    (kind, first), (other, second) = _as_difference(a), _as_difference(b)
    if kind is not other:
        return False
    if first is None or second is None:
        return bool(a.lhs == b.lhs) and same(a.rhs, b.rhs)
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    ratio: Any = None
    for point in _points(symbols):
        values = first.evalf(_DIGITS, subs=point), second.evalf(_DIGITS, subs=point)
        if not all(_is_finite(value) and value.is_real for value in values):
            raise Incomparable
        if bool(values[1] == 0) or bool(values[0] == 0):
            return bool(sympy.simplify(first - second) == 0)
        found = values[0] / values[1]
        if ratio is None:
            ratio = found
        if bool(abs(found - ratio) > _TOLERANCE * abs(ratio)):
            return False
    return kind in (sympy.Eq, sympy.Ne) or bool(ratio > 0)


def _as_difference(relation: Any) -> tuple[Any, Any]:
    """(kind, left - right), greater relations turned round; (kind, None) where a side is a set."""
    left, right = relation.lhs, relation.rhs
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return type(relation), None
    if isinstance(relation, (sympy.StrictGreaterThan, sympy.GreaterThan)):
        kind = sympy.StrictLessThan if isinstance(relation, sympy.Gt) else sympy.LessThan
        return kind, right - left
    return type(relation), left - right


def _told_apart_by_rounding(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether math_verify would take relations for equal that differ by little only."""
    for a, b in zip(first, second):
        one, other = _as_difference(a)[1], _as_difference(b)[1]
        if one is None or other is None:
            return False
        gap = (one - other).evalf(
            _DIGITS, subs=_points(sorted((one - other).free_symbols, key=str))[0]
        )
        if not gap.is_number or bool(abs(gap) > 1e-6):
            return False
    return True


# ---- sets, lists, tuples, intervals


def _same_collections(reference: Any, answer: Any) -> bool:
    if isinstance(reference, sympy.Interval) and isinstance(answer, sympy.Interval):
        return (
            reference.left_open == answer.left_open
            and reference.right_open == answer.right_open
            and same(reference.start, answer.start)
            and same(reference.end, answer.end)
        )
    if reference == answer:
        return True
    first, second = _elements(reference), _elements(answer)
    if first is not None and second is not None:
        if len(first) != len(second) or len(first) > _MOST_ELEMENTS:
            return False
        names = _names(first), _names(second)
        if any(len(set(one)) > 1 for one in names) and not all(names):
            first, second = _by_name(first), _by_name(second)
        elif isinstance(reference, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
            return _same_in_any_order(first, second, same)
        return all(map(same, first, second))
    if type(reference) is type(answer) and isinstance(reference, (sympy.Union, sympy.Intersection)):
        parts = list(reference.args), list(answer.args)
        if len(parts[0]) == len(parts[1]) and _same_in_any_order(*parts, same):
            return True
    if isinstance(reference, sympy.Set) and isinstance(answer, sympy.Set):
        return bool(verify(reference, answer, timeout_seconds=None, raise_on_error=True))
    return False


def _names(elements: Sequence[Any]) -> list[str]:
    """What x = 3, y = 4 gives values to; empty unless each element is so."""
    names = [str(take_first_relation(value).lhs) for value in elements if is_named(value)]
    return names if len(names) == len(elements) else []


def _by_name(elements: list[Any]) -> list[Any]:
    names = _names(elements)
    order = sorted(range(len(names)), key=names.__getitem__)
    return [elements[place] for place in order] or elements


def _elements(value: Any) -> list[Any] | None:
    """What is in a list, in its order; an open interval is a pair too, a value a list of one.
    None for sets that are no lists."""
    if isinstance(value, sympy.FiniteSet):
        return list(getattr(value, "_unsorted_args", value.args))
    if isinstance(value, sympy.Tuple):
        return list(value.args)
    if isinstance(value, sympy.Interval) and value.left_open and value.right_open:
        return [value.start, value.end]
    return None if isinstance(value, sympy.Set) else [value]


def _same_in_any_order(
    first: Sequence[Any], second: Sequence[Any], equal: Callable[[Any, Any], bool]
) -> bool:
    left = list(second)
    for element in first:
        for place, candidate in enumerate(left):
            if equal(element, candidate):
                del left[place]
                break
        else:
            return False
    return True
