"""What a field of a data set holds, as text that can be shown, encoded and compared."""

import decimal
import math
import re
from typing import Any, TypeGuard

from scope_jax.tasks.visible import is_visible

# What programs for tables write where a value is missing: pandas NaN (of floats), NaT (of times),
# <NA>; JSON and SQL null; Python None. The word "none" may be an answer.
_MISSING = re.compile(r"(?i:nan)|NaT|<NA>|null|NULL|None")
_AROUND = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}|\\[(\[](.*)\\[)\]]", re.DOTALL)


def text_of(value: Any, what: str) -> str:
    """A text as it is, a number as `number_text` writes it. `what` begins the message of an error.

    Raises ValueError for any other type, for a text without a visible character, for one that
    holds half of a character (which JSON can carry, and no tokenizer can encode), and for a number
    that is missing or infinite.
    """
    if isinstance(value, str):
        text = value
        check_characters(text, what)
    elif isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise ValueError(f"{what}: expected text, found {type(value).__name__}")
    elif not is_number(value):
        raise ValueError(f"{what}: {value} is no number: expected text or a number")
    else:
        text = number_text(value)
    if not is_visible(text):
        raise ValueError(f"{what} is empty")
    return text


def answer_text(value: Any, what: str) -> str:
    """`text_of` a reference answer. Raises ValueError also for a text such as "nan", which programs
    for tables write where an answer is missing, with or without dollars, a box and a full stop."""
    text = text_of(value, what)
    bare = _bare(text)
    if not is_visible(bare):
        raise ValueError(f"{what}: {text.strip()[:40]!r} holds no answer")
    if _MISSING.fullmatch(bare):
        raise ValueError(f"{what}: {text.strip()!r} stands for a missing value: expected an answer")
    return text


def _bare(text: str) -> str:
    """A short text without what may stand around an answer; a long one as it is."""
    while len(text) < 100:
        bare = re.sub(r"^[\s$]+|[\s$.]+$", "", text)
        if match := _AROUND.fullmatch(bare):
            bare = match[1] if match[1] is not None else match[2]
        if bare == text:
            break
        text = bare
    return text


def id_text(value: Any, what: str, default: str) -> str:
    """An id as text; `default` where it is missing, blank, or a number of a table that is missing
    (NaN). Raises ValueError as `text_of` does."""
    if value is None or value != value or (isinstance(value, str) and not is_visible(value)):
        return default
    if isinstance(value, str):
        return text_of(value, what)
    return number_text(value) if is_number(value) else str(value)


def is_number(value: Any) -> TypeGuard[int | float | decimal.Decimal]:
    """Whether a value is a number and neither missing (NaN) nor infinite."""
    return not isinstance(value, bool) and (
        isinstance(value, int)
        or (isinstance(value, float | decimal.Decimal) and math.isfinite(value))
    )


def number_text(value: int | float | decimal.Decimal) -> str:
    """A finite number in plain decimal digits, without an exponent and without ".0": 1e16 is
    10000000000000000, 1e-05 is 0.00001. The shortest digits that give the number back."""
    if isinstance(value, int):
        return str(value)
    digits = format(decimal.Decimal(repr(value) if isinstance(value, float) else value), "f")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return "0" if digits == "-0" else digits


def shortest(value: Any) -> Any:
    """A number or array of numpy with less than 64 bits as one of Python's floats: those whose
    digits are the shortest that give its values back, 1.1 and not 1.100000023841858."""
    return value.astype(str).astype(float).tolist()


def check_characters(text: str, what: str) -> None:
    """Raise ValueError where a text holds half of a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what}: half of a character (\\u{ord(text[error.start]):04x}) at {error.start}:"
            " expected Unicode text"
        ) from None
