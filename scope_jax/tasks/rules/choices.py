r"""The letter chosen in a multiple-choice answer: one letter, or none.

Two letters are no choice, and neither are the article "A" and the pronoun "I".
"""

import re

from .boxes import final_boxes

_WRAPPING = re.compile(
    r"\\(?:textbf|textrm|textit|text|mathrm|mathbf|rm|bf|boxed|left|right)(?![a-z])|[${}*]|\\(?=&)"
)
_SPACING = re.compile(r"\\(?:quad|qquad)(?![a-z])|\\[,;:! ]|~")
_LABEL = re.compile(
    r"(?:the )?(?:correct )?(?:answer|option|choice)\b(?: is)? ?:? ?", re.IGNORECASE
)
# What may stand between "answer" and the letter: "is", ":", markdown and brackets, never a word.
_ANSWER_IS = re.compile(
    r"\banswer[*_]{0,3}(?:\s{1,3}is)?\s{0,3}[*_]{0,3}:?[*_]{0,3}\s{0,3}"
    r"(?:(?:option|choice)\s)?((?:[*_$({\[ ]|\\[a-z]{2,8}\{){0,6})(?-i:([A-Z]))"
    r"(?![A-Za-z'’]|-[A-Za-z])",
    re.IGNORECASE,
)
_FIRST = re.compile(r"\(?([A-Za-z])(?![A-Za-z0-9'’_^=-])")
# Another letter joined to the first: A, C; A or B; (A) and (C); A/C.
_SECOND = re.compile(
    r"[\s.):\]*}$]{0,6}(?:,\s?(?:and|or)\b|,|;|/|&|\+|\band\b|\bor\b)\s?"
    r"(?:(?:option|choice)\s)?[(\[*$]{0,3}[A-Z](?![A-Za-z'’])"
)
# After a letter that is also a word, only these continue "the answer is A ...".
_GOES_ON = re.compile(r"\s{1,3}(?!(?:because|since|as|due|which)\b)[a-z]")
_LONGEST = 200


def choice_letter(completion: str) -> str | None:
    r"""The letter chosen: in the last box (\boxed{C}, \boxed{\text{(C) 12 cm}}), else after the
    last "answer is" or "Answer:". None where there is none, or more than one."""
    boxes = final_boxes(completion)
    if boxes:
        letters = [_letter_of(box[:_LONGEST]) for box in boxes]
        if len(letters) > 1 or letters[0] == "":
            return None
        if letters[0]:
            return letters[0]
    statements = list(_ANSWER_IS.finditer(completion))
    if not statements:
        return None
    last = statements[-1]
    rest = completion[last.end() : last.end() + _LONGEST]
    word = last[2] in "AI" and not last[1].strip() and _GOES_ON.match(rest)
    return None if word or _SECOND.match(rest) else last[2]


def _letter_of(box: str) -> str | None:
    """The letter in a box; "" where there are several, None where it holds something else."""
    content = " ".join(_SPACING.sub(" ", _WRAPPING.sub(" ", box)).split())
    content = _LABEL.sub("", content, count=1) if _LABEL.match(content) else content
    found = _FIRST.match(content)
    if found is None:
        return None
    letter, rest = found[1], content[found.end() :]
    if _SECOND.match(rest):
        return ""
    after = rest.lstrip(" ")[:1]
    # A lower-case letter is a choice by itself only; in "x + 1" or "A good idea" there is none.
    if not after or (letter.isupper() and (after in ").:,\\(" or after.isdigit())):
        return letter.upper()
    return None
