r"""Units and other words after a number: 5 cm, 30~\text{cm}^2, 12 ways, 9.8\text{ m}/\text{s}^2.

A letter or a word is a unit only where everything before it is a number. A known measure is kept,
in one name: two answers that both have one must have the same. Any other words are a label, which
says nothing (12 ways is 12).
"""

import re
from typing import NamedTuple

_NAMES = {
    "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres",
    "mm": "millimeter millimeters millimetre millimetres",
    "km": "kilometer kilometers kilometre kilometres kms",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "g": "gram grams gm",
    "kg": "kilogram kilograms kgs",
    "mg": "milligram milligrams",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "L": "l liter liters litre litres",
    "mL": "ml milliliter milliliters millilitre millilitres",
    "J": "joule joules",
    "N": "newton newtons",
    "W": "watt watts",
    "V": "volt volts",
    "K": "kelvin kelvins",
    "C": "celsius",
    "F": "fahrenheit",
    "Hz": "hz hertz",
    "Pa": "pa pascal pascals",
    "eV": "ev",
    "mol": "mole moles",
    "mi/h": "mph",
    "km/h": "kmh kph kmph",
    "dollar": "dollars usd",
    "cent": "cents",
    "euro": "euros",
}
_MEASURES = {
    name: measure for measure, names in _NAMES.items() for name in (measure, *names.split())
}
_LETTERS = "mgshlLJNWVK"
"""Those that a letter without \\text may stand for, in an answer to a number."""
_APART = ("mm", "cm", "km", "kg", "ft", "lb", "oz", "mL")
"""Units of two letters that after a number and a blank are no product, in a reference either."""
# Words that change the number before them, or make a sentence of it.
_NO_UNIT = re.compile(
    r"hundreds?|thousands?|millions?|billions?|trillions?|dozens?|half|halves|thirds?|quarters?"
    r"|[a-z]+ths?|squared|cubed|factorial|times|over|mod|modulo|plus|minus|negative|choose|infinity"
    r"|repeating|recurring|periodic|score|scores|tens|[a-z]+(?:ill|ard)ions?|lakhs?"
    r"|crores?|gross|permille?|mil|bn|tn|mn|doubled|tripled|halved|alpha|beta|gamma|delta|epsilon"
    r"|theta|lambda|mu|phi|omega|sigma|rho|tau|psi|chi|eta|zeta|xi|nu|kappa|root|wrong|false"
    r"|true|incorrect|below|above|less|more|fewer|greater|under|exceeds?|or|but|never"
    r"|to|if|for|is|not|no|else|otherwise|where|when|with|via|e|i|pi|sqrt|sin|cos|tan|log|ln"
)
_CONSTANT = re.compile(
    r"(?:[\d.,+\-*/^(){}\[\]! ]|\\(?:frac|sqrt|pi|cdot|times|div|overline|bar|circ)(?![a-zA-Z])"
    r"|\\%)*"
)
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_LAST_TEXT = re.compile(r" ?\\text\{([^{}]*)\}(\^\{-?\d\})?$")
_POWER = re.compile(r"\^\{?(-?\d)\}?")
_NUMBER = re.compile(r"\d|\\pi")
_LONGEST = 80


class Split(NamedTuple):
    """A text without its unit."""

    rest: str
    measure: str = ""
    """One name of the unit where it is a known measure; "" for none and for a label."""
    bare: bool = False
    """Whether the unit is of letters that may as well be variables."""


def split_unit(text: str) -> Split:
    """A text in the one spelling, divided into what is before its unit and the unit."""
    constant = _CONSTANT.match(text)
    rest = (constant.group() if constant else "").removesuffix("\\frac{")
    tail = text[len(rest) :]
    if not tail:
        return Split(text)
    if len(tail) <= _LONGEST and _NUMBER.search(rest):
        per = "/" if rest.rstrip().endswith("/") else ""
        apart = rest.endswith(" ")
        rest = rest.rstrip(" /").removesuffix("\\cdot").rstrip()
        found = None
        if rest[-1:] not in "+-*^(,":
            found = _after_a_number(rest, per + tail, apart=apart)
        if found is not None:
            return found
    return _after_an_expression(text)


def _after_a_number(rest: str, tail: str, *, apart: bool) -> Split | None:
    words, written = _words(tail), "\\text" in tail
    measure = _measure(words)
    if written or (apart and all(len(word) > 2 and word.isalpha() for word in words)):
        return Split(rest, measure) if measure or _is_label(words, written) else None
    if len(words) == 1 and len(words[0]) == 1:
        if rest.endswith("^{\\circ}") and words[0] in "CF":
            return Split(rest, measure)
        return Split(rest, measure, bare=True) if words[0] in _LETTERS else None
    if measure:
        alone = apart and rest[-1:].isdigit() and tail in _APART
        return None if measure.startswith("/") else Split(rest, measure, bare=not alone)
    return Split(rest, bare=not apart) if _is_label(words, written) else None


def _after_an_expression(text: str) -> Split:
    r"""\pi r^2\text{ cm}^2: a measure in \text may follow whatever is no relation and no list."""
    found = _LAST_TEXT.search(text[-_LONGEST:])
    if found is None or re.search(r"[=<>,]|\\(?:le|ge|ne|in)(?![a-z])", text):
        return Split(text)
    rest = text[: len(text) - len(found.group())].rstrip()
    measure = _measure(_words(found.group()))
    return Split(rest, measure) if measure and rest else Split(text)


def _words(tail: str) -> list[str]:
    """The words of a unit, "/" as a word of its own, a power as part of its word."""
    tail = re.sub(r"\\frac\{(.*)\}\{(.*)\}$", r"\1/\2", tail) if tail.startswith("\\frac") else tail
    tail = _TEXT.sub(r" \1 ", tail).replace("\\cdot", " ").replace("^{\\circ}", " ")
    tail = re.sub(r"[{}()]", "", _POWER.sub(r"^\1 ", tail))
    tail = tail.replace(" ^", "^").replace("/", " / ").replace(".", " ").replace("-", " -")
    return re.sub(r"\^ -", "^-", tail).split()


def _measure(words: list[str]) -> str:
    """The name of a measure, such as "m/s^2"; "" where a word of it is not known."""
    parts: list[str] = []
    power = ""
    for word in words:
        name, _, exponent = word.partition("^")
        if name.lower() in ("square", "sq", "cubic", "cu"):
            power = "^2" if name.lower().startswith("s") else "^3"
            continue
        if name.lower() in ("squared", "cubed") and parts:
            parts[-1] += "^2" if name.lower() == "squared" else "^3"
            continue
        if name in ("/", "per"):
            parts.append("/")
            continue
        known = _MEASURES.get(name) or _MEASURES.get(name.lower() if len(name) > 1 else "")
        if known is None:
            return ""
        parts.append(known + (f"^{exponent}" if exponent else power))
        power = ""
    return " ".join(parts).replace(" / ", "/")


def _is_label(words: list[str], written: bool) -> bool:
    r"""Whether words say what is counted: ways, square units, apples. Without \text they are few
    and longer than names of variables."""
    if not words or len(words) > (8 if written else 3):
        return False
    for word in words:
        plain = word.partition("^")[0]
        if word == "/" or (plain.lower() in ("per", "of", "the", "a") and len(words) > 1):
            continue
        if not plain.isalpha() or len(plain) < (2 if written else 3):
            return False
        if _NO_UNIT.fullmatch(plain.lower()):
            return False
        if len(plain) == 3 and not written and plain.lower() not in _THREE_LETTERS:
            return False
    return True


# Other words of three letters after a number may be a product.
_THREE_LETTERS = ("men", "way", "cup", "ton", "gal", "boy", "cow", "dog", "cat", "box", "pie")
