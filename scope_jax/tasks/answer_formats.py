r"""How a completion says its answer, by name.

    answer_tag   <answer>...</answer>, the last pair
    boxed        \boxed{...}, the last one whose braces close
    answer_is    what follows the last "answer is" on its line, a colon before it and a period
                 after it left out
    last_line    the last line that is not empty
    whole        all of the text

Reading takes time in proportion to the text.
"""

import dataclasses
import re
from collections.abc import Callable

from scope_jax.tasks.answers import last_boxed

_ANSWER_IS = re.compile(r"\banswer is\b", re.IGNORECASE)
_LONGEST_LINE = 20_000


@dataclasses.dataclass(frozen=True)
class AnswerFormat:
    """One format.

    find         the answer in a text; None where there is none
    marks        whether a step of a solution gives an answer away
    write        an answer in this format
    instruction  what a system turn says about it
    """

    find: Callable[[str], str | None]
    marks: Callable[[str], bool]
    write: Callable[[str], str]
    instruction: str


def _tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() or None if start >= 0 else None


def _stated(text: str) -> str | None:
    line = ""
    for match in _ANSWER_IS.finditer(text):
        line = text[match.end() : match.end() + _LONGEST_LINE].partition("\n")[0]
    return line.strip().removeprefix(":").removesuffix(".").strip() or None


def _last_line(text: str) -> str | None:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


FORMATS = {
    "answer_tag": AnswerFormat(
        _tagged,
        lambda step: "<answer>" in step,
        lambda answer: f"<answer>{answer}</answer>",
        "Please reason step by step, and put your final answer, and nothing else, between <answer>"
        " and </answer>.",
    ),
    "boxed": AnswerFormat(
        last_boxed,
        lambda step: "\\boxed" in step or "\\fbox" in step,
        lambda answer: f"\\boxed{{{answer}}}",
        "Please reason step by step, and put your final answer within \\boxed{}.",
    ),
    "answer_is": AnswerFormat(
        _stated,
        lambda step: _ANSWER_IS.search(step) is not None,
        lambda answer: f"The answer is {answer}.",
        'Please reason step by step, and end with a line "The answer is X." that has your final'
        " answer in place of X.",
    ),
    "last_line": AnswerFormat(
        _last_line,
        lambda step: False,
        lambda answer: answer,
        "Please reason step by step, and write your final answer, and nothing else, on the last"
        " line.",
    ),
    "whole": AnswerFormat(
        lambda text: text.strip() or None,
        lambda step: False,
        lambda answer: answer,
        "Please write the final answer and nothing else.",
    ),
}
