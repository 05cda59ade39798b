r"""Answers and equations in texts: the last \boxed{} of a solution, the number after "####", and
one spelling for both.

Verdicts are not made here (`verify_math` does that): these functions read the reference answer of
a data set that has only solutions, and the answer of a completion in the spelling by which votes
are counted, which is the verdicts' own (`rules.spelling`).
"""

import re

from scope_jax.tasks.rules.boxes import answer_in_boxes
from scope_jax.tasks.rules.spelling import normal_answer

__all__ = [
    "boxed_solution",
    "equations_in",
    "hash_answer",
    "last_boxed",
    "normal_answer",
    "normal_boxed",
]

_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s+([^\s$.,]+)")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
# How the step begins that states the answer of a reference solution without a box.
CLOSING = "The final answer is $\\boxed{"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


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
    found = [answer for line in text.split("\n") if (answer := _after_hashes(line))]
    return _THOUSANDS.sub("", found[-1]) if found else None


def _after_hashes(line: str) -> str:
    line = line.strip()
    marked = line.startswith("####") and not line.startswith("#####")  # that is a heading
    return line[4:].strip() if marked else ""


def boxed_solution(solution: str, answer: str) -> str:
    r"""A reference solution that ends in \boxed{answer}: as it is where it has a box, else GSM8K's
    calculator notes (<<48/2=24>>) and "####" line are taken out and a last step with the box is
    added."""
    if last_boxed(solution) is not None:
        return solution
    lines = _CALCULATOR.sub("", solution).split("\n")
    body = "\n".join(line for line in lines if not _after_hashes(line)).rstrip()
    return f"{body}\n\n{CLOSING}{answer}}}$."


def normal_boxed(completion: str) -> str | None:
    r"""The answer in the last \boxed{} (and those joined to it), in one spelling; None without."""
    answer = answer_in_boxes(completion)
    return None if answer is None else normal_answer(answer) or None
