r"""Answers and equations in texts: the last \boxed{} of a solution, the number after "####", and
one spelling for both.

Verdicts are not made here (`verify_math` does that): these functions read the reference answer of
a data set that has only solutions, and give answers a common spelling so that equal ones can be
counted.
"""

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s+([^\s$.,]+)")
_HASH = re.compile(r"^####[ \t]*(\S.*?)\s*$", re.MULTILINE)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def equations_in(text: str) -> list[str]:
    """The equations of a text: its lines with something on both sides of an "=", white space, `$`
    and `\\(` removed."""
    lines = (re.sub(r"\s+|\$|\\[()\[\]]", "", line).rstrip(".,;") for line in text.splitlines())
    return [line for line in lines if re.search(r"[^=]=[^=]", line)]


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} (or \fbox) whose braces close, the outermost of nested
    ones; None where there is none or nothing is in it.

    Escaped braces (\{ \}) do not count. "\boxed 5" is read too (MATH has it), where no box with
    braces comes after it. One pass over the text, however many boxes are opened in it.
    """
    opened: list[
        tuple[int, int] | None
    ] = []  # (start of the box, of its content) of each open brace; None: of another kind
    start, box = -1, ""
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}" and opened:
            # A box that closes later than the one found before is after it or around it.
            if (closed := opened.pop()) is not None:
                start, box = closed[0], text[closed[1] : match.start()].strip()
        elif token == "{":
            opened.append(None)
        elif len(token) > 2:
            opened.append((match.start(), match.end()))
    for match in _BARE_BOX.finditer(text):
        if not match.group(1).startswith("{") and match.start() > start:
            start, box = match.start(), match.group(1)
    return box or None


def hash_answer(text: str) -> str | None:
    """What GSM8K writes after "####" on its own line (the last such line), thousands commas
    removed; None without it."""
    found = _HASH.findall(text)
    return _THOUSANDS.sub("", found[-1]) if found else None


def boxed_solution(solution: str, answer: str) -> str:
    r"""A reference solution that ends in \boxed{answer}: as it is where it has a box, else GSM8K's
    calculator notes (<<48/2=24>>) and "####" line are taken out and a last step with the box is
    added."""
    if last_boxed(solution) is not None:
        return solution
    body = _HASH.sub("", _CALCULATOR.sub("", solution)).rstrip()
    return f"{body}\n\nThe final answer is $\\boxed{{{answer}}}$."


def normal_answer(answer: str) -> str:
    r"""One spelling for answers that differ in typesetting only: blanks, $, \left \right, \dfrac,
    \text{}, degree and percent signs, thousands commas, a trailing full stop, the braces of
    \frac12. Values are not computed: 1/2 and 0.5 stay different."""
    text = answer.strip().strip("$").strip()
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _THOUSANDS.sub("", text)
    return text.rstrip(".")


_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:left|right)(?![a-zA-Z])", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\{,\}", ","),
        (r"\\[!,;: ]|~|\\quad|\\qquad", ""),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", ""),
        (r"\\?[%$]", ""),
        (r"\s+", ""),
    )
]
