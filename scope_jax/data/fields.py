"""What a field of a data set holds, as text that can be shown, encoded and compared."""

import decimal
import math
from typing import Any, TypeGuard


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
    if not text.strip():
        raise ValueError(f"{what} is empty")
    return text


def answer_text(value: Any, what: str) -> str:
    """`text_of` a reference answer. Raises ValueError also for the text "nan", which programs for
    tables write where an answer is missing."""
    text = text_of(value, what)
    if text.strip().lower() == "nan":
        raise ValueError(
            f"{what}: {text.strip()!r} stands for a missing number: expected an answer"
        )
    return text


def id_text(value: Any, what: str, default: str) -> str:
    """An id as text; `default` where it is missing, blank, or a number of a table that is missing
    (NaN). Raises ValueError as `text_of` does."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
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


def check_characters(text: str, what: str) -> None:
    """Raise ValueError where a text holds half of a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what}: half of a character (\\u{ord(text[error.start]):04x}) at {error.start}:"
            " expected Unicode text"
        ) from None
