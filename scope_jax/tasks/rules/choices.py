r"""The letter chosen in a multiple-choice answer: one letter, or none.

Two letters are no choice, and neither are the article "A" and the pronoun "I".
"""

import re

from .boxes import bare_box, final_boxes

_WRAPPING = re.compile(
    r"\\(?:text(?:bf|rm|it|sf|tt|normal)?|math(?:rm|bf|sf|it|tt)|[mh]box|boldsymbol|bm|rm|bf|boxed"
    r"|left|right)(?![a-z])|[${}*`\"]|\\(?=&)|\\[()]"
)
_SPACING = re.compile(r"\\(?:quad|qquad)(?![a-z])|\\[,;:! ]|~")
_LABEL = re.compile(
    r"(?:the )?(?:correct )?(?:answer|option|choice)\b(?: is)? ?:? ?", re.IGNORECASE
)
# What may stand between "answer" and the letter: "is", ":", markdown and brackets, never a word.
_ANSWER_IS = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s(?:option|choice))[*_]{0,3}"
    r"(?:\s{1,3}(?:is|should\sbe|must\sbe))?\s{0,3}[*_]{0,3}[:>]?[*_]{0,3}\s{0,3}"
    r"(?:(?:option|choice)\s)?((?:[*_$({\[ `\"]|\\\(|\\[a-z]{2,10}\{){0,6})(?-i:([A-Z]))"
    r"(?![A-Za-z'’]|-[A-Za-z])",
    re.IGNORECASE,
)
_FIRST = re.compile(r"[(\[]?([A-Za-z])(?![A-Za-z0-9'’_^=+-])")
# Another letter joined to the first: A, C; A or B; (A) and (C); A/C; (A)(C); one on the next line.
_SECOND = re.compile(
    r"[\s.):\]]{0,6}(?:(?:(?:,|;|/|&|\+|\||\(|\b(?i:and|or|as well as)\b)\s{0,3}){1,3}"
    r"(?:(?i:option|choice)\s)?[(\[]{0,3}(?:(?!I [a-z])[A-Z](?![A-Za-z'’])|[a-z][)\]. ]{0,3}$)"
    r"|\([A-Z]\)|\n\s{0,9}[(\[]?[A-Z][)\].]{0,2}\s{0,9}(?:\n|$))"
)
# What makes a formula or another name of a letter: E = mc^2, H2O, C-14, C(10,3), A\\pi.
_FORMULA = re.compile(r"\d|\(|\\[a-z]|[-^_!]|\s{0,3}(?:[=+^<>](?!/))")
# After a letter that is also a word, only these continue "the answer is A ...".
_GOES_ON = re.compile(r"\s{1,3}(?!(?:because|since|as|due|which)\b)[a-z]")
_ONE_WORD = re.compile(
    r" (?!(?:because|indeed|only|too|here|then|obviously|clearly)\b)[a-z]+[.!]?\s*$"
)
_IS_CORRECT = re.compile(r" is (?:the )?(?:correct|right)")
_LONGEST = 200


def choice_letter(completion: str) -> str | None:
    r"""The letter chosen: in the last box (\boxed{C}, \boxed{\text{(C) 12 cm}}), else after the
    last "answer is" or "Answer:". None where there is none, or more than one."""
    bare = bare_box(completion)
    boxes = final_boxes(completion) or ([bare] if bare else [])
    if boxes:
        letters = [_letter_of(box[:_LONGEST]) for box in boxes]
        if len(letters) > 1 or letters[0] == "":
            return None
        if letters[0]:
            return letters[0]
    statements = list(_ANSWER_IS.finditer(completion))
    return _stated_letter(completion, statements[-1]) if statements else None


def _stated_letter(completion: str, statement: re.Match[str]) -> str | None:
    rest = completion[statement.end() : statement.end() + _LONGEST]
    rest = _WRAPPING.sub("", _SPACING.sub(" ", rest))
    if _SECOND.match(rest) or _FORMULA.match(rest):
        return None
    bare = not statement[1].strip()
    is_word = _GOES_ON if statement[2] in "AI" else _ONE_WORD
    return None if bare and is_word.match(rest.split("\n")[0]) else statement[2]


def _letter_of(box: str) -> str | None:
    """The letter in a box; "" where there are several, None where it holds something else."""
    content = " ".join(_WRAPPING.sub(" ", _SPACING.sub(" ", box)).split())
    content = _LABEL.sub("", content, count=1) if _LABEL.match(content) else content
    found = _FIRST.match(content)
    if found is None:
        return None
    letter, rest = found[1], content[found.end() :]
    if _SECOND.match(rest):
        return ""
    if _FORMULA.match(rest):
        return None
    after = rest.lstrip(" ")[:1]
    # A lower-case letter is a choice by itself only; in "x + 1" or "A good idea" there is none.
    said = after in ").:,\\(]" or after.isdigit() or _IS_CORRECT.match(rest) is not None
    return letter.upper() if not after or (letter.isupper() and said) else None
