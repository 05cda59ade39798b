"""Values of a samples file as texts and numbers, and the words for why a row was not rescued."""

import math
import re
from typing import Any

_TWO_WORDS = re.compile(r"[^\W\d_]{2,}[,;:]?\s+[^\W\d_]{2,}")

# Why an attempted row was not rescued, by the words of `correction.finish.Attempts.failed`.
_REASONS = {
    "leak": "the teacher's step gave the answer away",
    "incomplete_step": "the teacher's step had no end, or nothing in it",
    "no_room": "there was no room left for the policy to go on",
    "tail_cut_off": "the new end was cut off",
    "tail_wrong": "the new answer is wrong too",
    "tail_not_judged": "the new answer could not be judged",
    "teacher_too_long": "the teacher's step was too long",
    "teacher_empty": "the teacher wrote nothing",
    "teacher_incomplete": "the teacher's step had no end",
    "teacher_thinking": "the teacher did not come to the end of its thoughts",
    "teacher_untokenisable": "the policy has no tokens for the teacher's step",
    "teacher_special": "the teacher's step held a special token",
}


def why_not(reason: str | None) -> str:
    """A reason in words, "" for None; one that is not known as it is written."""
    if reason is None:
        return ""
    if reason in _REASONS:
        return _REASONS[reason]
    name, teacher = reason.removeprefix("teacher_"), reason.startswith("teacher_")
    return ("the teacher refused: " if teacher else "") + name.replace("_", " ")


def is_prose(*texts: str) -> bool:
    """Whether any of the texts has two words beside each other: sentences, not bare symbols."""
    return any(_TWO_WORDS.search(text) for text in texts)


def plain_text(value: Any) -> str:
    """Any value as a text without the line ends around it; None is empty."""
    return "" if value is None else str(value).strip("\r\n").rstrip()


def number(value: Any) -> float | None:
    """A finite number, None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def share(value: Any) -> float | None:
    """A number moved into [0, 1], None for anything else."""
    found = number(value)
    return None if found is None else min(max(found, 0.0), 1.0)
