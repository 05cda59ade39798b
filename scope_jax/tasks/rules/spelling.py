r"""One spelling for answers that differ in typesetting only.

`spelled` is what the other rules read: LaTeX with one name for each thing, single blanks, braces
around every argument. `normal_answer` goes on to what two equal answers mostly have in common
letter by letter; votes are counted by it, and what it calls equal is right to the verifier.

Every pattern takes time linear in the text.
"""

import re
from collections.abc import Callable

_BLANKS = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f"
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys(_BLANKS + "\u205f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("€£¥₹₩₽￥", r"\$"),
        **dict.fromkeys("⋅·∙•", r"\cdot "),
        **dict.fromkeys("°º˚", r"^{\circ}"),
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        **{letter: f"\\{name} " for letter, name in zip("αβγδθλμφωσρτπ", (
            "alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "sigma",
            "rho", "tau", "pi",
        ))},
        **{sign: rf"\frac{{{a}}}{{{b}}}" for sign, a, b in zip("½⅓⅔¼¾⅕⅛", "1121311", "2334458")},
        "⩽": r"\le ", "⩾": r"\ge ",
        "×": r"\times ", "÷": "/", "⁄": "/", "∕": "/", "∞": r"\infty ", "∅": r"\emptyset ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "…": "...", "％": "%", "，": ",", "：": ":", "∶": ":",
        "（": "(", "）": ")", "′": "'", "’": "'", "\t": " ", "\r": " ", "\n": " ",
    }
)  # fmt: skip
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋"
_SMALL = re.compile(f"([{_RAISED}]+)|[{_LOWERED}]+")
_FULL_SIZE = str.maketrans(_RAISED + _LOWERED, "0123456789+-" * 2)


def spelled(text: str, *, thousands: bool = True) -> str:
    r"""The text in the one spelling. Units, words and percent signs stay, currency signs go.

    thousands  join 1,234 into 1234; False leaves the comma, for what may be a list
    """
    text = _SMALL.sub(_full_size, text).translate(_CHARACTERS)
    text = _SEPARATED.sub(_digits_only, text)
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    text = _TEXT.sub(_text_group, _BLANK.sub(" ", text))
    text = _COMMAS.sub(",", _BLANK.sub(" ", _CONJUNCTION.sub(",", text))).strip(" *")
    text = _INNER_BLANK.sub("", text)
    text = _without_full_stop(text)
    if _BRACKET.search(text) is None:
        text = _BLANK_THOUSANDS.sub(_digits_only, text)
        if thousands:
            text = _COMMA_THOUSANDS.sub(_digits_only, text)
    text = _E_NOTATION.sub(_power_of_ten, text)
    text = _POWER.sub(r"^{\1}", _INDEX.sub(r"_{\1}", text))
    return _with_braces(_ANGLE.sub(_in_radians, text))


def normal_answer(answer: str) -> str:
    r"""One spelling for answers that differ in typesetting only: blanks, $, \left \right, \dfrac,
    \text{}, degree, percent and currency signs, thousands, a trailing full stop, the braces of
    \frac12, the case of words. Values are not computed: 1/2 and 0.5 stay different."""
    return letters_of(spelled(answer)) + conjunction(answer)


def conjunction(answer: str) -> str:
    """ " and" or " or" where an answer joins inequalities so; there it is no comma."""
    if _INEQUALITY.search(answer) is None:
        return ""
    return "".join(f" {word}" for word in sorted(set(_JOINED.findall(answer))))


def letters_of(text: str) -> str:
    """`normal_answer` of a text in the one spelling."""
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _TEXT.sub(r" \1 ", _SIGNS.sub("", text)))
    text = _BLANK_TO_DROP.sub(r"\1", _BLANK.sub(" ", text).strip()).removeprefix("+")
    text = _without_full_stop(text)
    if _ONE_LETTER.fullmatch(text):
        text = text[1]
    return text.casefold() if _WORDS.fullmatch(text) else text


def _rules(
    *pairs: tuple[str, str | Callable[[re.Match[str]], str]],
) -> list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


# A name of LaTeX ends where no letter follows; a word starts where no letter or backslash is.
_END = r"(?![a-zA-Z])"
_START = r"(?<![a-zA-Z\\])"
_COMMANDS = _rules(
    (r"\\(?:left|right)\s?\.", ""),
    (rf"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits){_END}", ""),
    (rf"\\(?:[dtc]|nice|s)frac{_END}", r"\\frac"),
    (r"\\(?:text)?color\s?\{[a-zA-Z]{1,20}\}", ""),
    (r"\{-\}", "-"),
    (r"(?<=\d)\\dot\s?\{?(\d)\}?|(?<=\.)\\dot\s?\{?(\d)\}?$", r"\\overline{\1\2}"),
    (r"\\overline\s?(\d)", r"\\overline{\1}"),
    (r"(?<=\d)\s?[,;]$", ""),
    (rf"\\(?:math(?:rm|sf)|text(?:bf|rm|it|sf|normal)|[mh]box|emph){_END}", r"\\text"),
    (r"\\(?:mathbf|boldsymbol|bm|mathit)\s?\{([^{}]*)\}", r" \1"),
    (rf"\\(?:rm|bf|it){_END}", ""),
    (r"\\?%", r"\\%"),
    (r"(?<=\d)\s?\\?\$\s?(?=\.?\d)", r"\\currency "),
    (rf"\\?\$|\\(?:pounds|euro|textdollar|yen|textsterling){_END}", ""),
    (r"^\s*(?:USD?|EUR|GBP|Rs\.?|INR)\s?(?=\d)", ""),
    (rf"\\(?:varnothing|O){_END}|\\\{{\s?\\\}}", r"\\emptyset "),
    # A doubled backslash ends a row of a matrix: it is not the start of a blank or a formula.
    (rf"(\\\\)|\\[,;:>()\[\] ]|~|\\(?:quad|qquad|thinspace|enspace|space){_END}", r"\1 "),
    (r"\\!|\\(?:[hv]space\*?|[hv]?phantom)\{[^{}]*\}", ""),
    (rf"\\[lc]?dots{_END}", "..."),
    (rf"\\lbrace{_END}", r"\\{"),
    (rf"\\rbrace{_END}", r"\\}"),
    (rf"\\[lr]?vert{_END}", "|"),
    (rf"\\leq(?:slant)?{_END}|<=", r"\\le "),
    (rf"\\geq(?:slant)?{_END}|>=", r"\\ge "),
    (rf"\\neq{_END}|!=", r"\\ne "),
    (rf"\\imath{_END}", "i"),
    (rf"\^\s?\{{?\s?\\prime{_END}\s?\}}?", "'"),
    (r"^\*\*|\*\*$", ""),
    (r"\*\*", "^"),
    (rf"\^\s?\{{?\s?\\circ{_END}\s?\}}?|\\degree{_END}", r"^{\\circ}"),
    (rf"{_START}(?:percent|per cent|pct){_END}", r"\\%"),
    (rf"{_START}degrees?{_END}(?! ?[CFcf])", r"^{\\circ}"),
    (rf"{_START}infinity{_END}", r"\\infty "),
    (rf"{_START}pi{_END}", r"\\pi "),
    (rf"(?:√|{_START}sqrt)\s?(\d+)", r"\\sqrt{\1}"),
    (r"√", r"\\sqrt "),
    (rf"{_START}(?=(?:sqrt|sin|cos|tan|log|ln|exp)[ ({{])", r"\\"),
    (r"(?<=\d)\s?[xX]\s?(?=10\s?\^)", r"\\times "),
    *(
        (rf"(?<=\d)\s?(?:\\text\s?\{{\s?)?{word}{_END}\s?\}}?", rf"\\times 10^{{{power}}} ")
        for word, power in (("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
    ),
)  # fmt: skip
_TEXT = re.compile(r"\\text\s?\{([^{}]*)\}")
_BLANK = re.compile(r"\s+")
_CONJUNCTION = re.compile(rf"{_START}(?:and|or){_END}")
_JOINED = re.compile(rf"{_START}(?:and|or){_END}")
_INEQUALITY = re.compile(rf"[<>≤≥]|\\[lg]eq?(?:slant)?{_END}")
_INNER_BLANK = re.compile(r"(?<=[{(\[]) | (?=[)}\]])")
_COMMAS = re.compile(r",(?: ?,)+")
_BRACKET = re.compile(r"[(\[]|\\\{")
# Only thousands are separated so: by {,} or a thin space, whatever is around them.
_SEPARATED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:\{,\}|,\\!|\\[,!;: ]|~)\d{3})+(?!\d)")
_BLANK_THOUSANDS = re.compile(r"(?<![\d.,/^_])(?<![\d.,/] )[1-9]\d{0,2}(?: \d{3})+(?! ?[\d/])")
_COMMA_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_E_NOTATION = re.compile(r"(?<![\w.\\}])(\d+(?:\.\d*)?|\.\d+)[eE]\+?(-?\d+)(?![\w.])")
# An angle that a function is taken of: there degrees are no sign that may be left out.
_ANGLE = re.compile(
    r"(?P<function>\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{\d+\})?) ?"
    r"(?:(?P<bracket>\()|\{)?(?P<degrees>\d{1,9}(?:\.\d{1,9})?)\^\{\\circ\}(?(bracket)|\}?)"
)
_POWER = re.compile(r"\^ ?(-?\d+|[a-zA-Z])")
_INDEX = re.compile(r"_ ?(\d+|[a-zA-Z])")
# Signs that are dropped; between digits they would join them.
_SIGNS = re.compile(r"(?:\\%|\^\{\\circ\})(?! ?\.?\d)")
_MIXED = re.compile(r"(?<![\d.])(\d+) (\d+)/(\d+)(?![\d.])")
# A blank says something between two digits, and between the name of a command and a letter.
_BLANK_TO_DROP = re.compile(r"(\\[a-zA-Z]+ (?=[a-zA-Z])|\d (?=\.?\d)|\d\. (?=\d))| ")
_ONE_LETTER = re.compile(r"\([a-zA-Z]\)")
# Two letters are a product, of which the case says something; so are GMm and aBCd.
_WORDS = re.compile(r"[nN][oO]|[a-zA-Z][a-z]{2,3}|[A-Z]{3,4}|(?=[a-zA-Z]{3})[a-zA-Z,'-]{5,}")
_TAKES_ARGUMENTS = re.compile(r"\\(frac|sqrt|binom)(?![a-zA-Z])")
_ARGUMENT = re.compile(r"\\[a-zA-Z]+|[^\\{}()\[\]]")
_SYMBOLS_OF_TEXT = {
    "": "", "and": ",", "or": ",", "percent": r"\%", "per cent": r"\%", "pct": r"\%",
    "degree": r"^{\circ}", "degrees": r"^{\circ}", "deg": r"^{\circ}",
}  # fmt: skip


def _full_size(match: re.Match[str]) -> str:
    return f"{'^' if match[1] else '_'}{{{match.group().translate(_FULL_SIZE)}}}"


def _digits_only(match: re.Match[str]) -> str:
    return re.sub(r"\D", "", match.group())


def _text_group(match: re.Match[str]) -> str:
    r"""\text{...} without what it does not need to be there for: numbers, lists, one letter."""
    content = " ".join(match[1].split())
    symbol = _SYMBOLS_OF_TEXT.get(content.lower().strip(" ,"))
    if symbol is not None:
        return f" {symbol} "
    letters = sum(character.isalpha() for character in content)
    before = match.string[max(0, match.start() - 3) : match.start()].rstrip()[-1:]
    # A letter after a number or an expression is a unit, and stays one.
    is_unit = letters == 1 and content not in ("i", "e") and (before.isalnum() or before in "}){/")
    if (letters <= 1 and not (is_unit and before)) or "," in content:
        return f" {content} "
    return rf" \text{{{content}}}"


def _without_full_stop(text: str) -> str:
    return text if text.endswith("...") else text.rstrip(" .")


def _power_of_ten(match: re.Match[str]) -> str:
    sign, digits = "-" * match[2].startswith("-"), match[2].lstrip("-0") or "0"
    return rf"{match[1]}\times 10^{{{sign}{digits}}}"


def _in_radians(match: re.Match[str]) -> str:
    angle = rf"\frac{{{match['degrees']}}}{{180}}\cdot \pi"
    return f"{match['function']}({angle}" + ("" if match["bracket"] else ")")


def _with_braces(text: str) -> str:
    r"""\frac12, \sqrt3, \sqrt(3) with braces around each argument."""
    if _TAKES_ARGUMENTS.search(text) is None:
        return text
    closing = _closing_brackets(text)
    changed: dict[int, str] = {}
    for match in _TAKES_ARGUMENTS.finditer(text):
        place = match.end()
        if text[place : place + 1] == "[":
            place = closing.get(place, len(text)) + 1
        for _ in range(1 if match[1] == "sqrt" else 2):
            place += text[place : place + 1] == " "
            if text[place : place + 1] == "{" and place in closing:
                place = closing[place] + 1
            elif text[place : place + 1] == "(" and match[1] == "sqrt" and place in closing:
                changed |= {place: "{", closing[place]: "}"}
                place = closing[place] + 1
            else:
                argument = _ARGUMENT.match(text, place)
                if argument is None or _TAKES_ARGUMENTS.match(text, place):
                    break
                for end, braced in ((place, "{%s"), (argument.end() - 1, "%s}")):
                    changed[end] = braced % changed.get(end, text[end])
                place = argument.end()
    return "".join(changed.get(place, character) for place, character in enumerate(text))


def _closing_brackets(text: str) -> dict[int, int]:
    """From the place of each bracket to that of the one that closes it."""
    pairs, opened = {}, []
    for place, character in enumerate(text):
        if character in "{([":
            opened.append(place)
        elif character in "})]" and opened:
            pairs[opened.pop()] = place
    return pairs
