r"""Where the answer stands in a text: the last \boxed{} and those joined to it."""

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_JOINED = re.compile(r"[\s$]*(?:,\s*and|,\s*or|,|and|or)[\s$]*")
_BARE = re.compile(r"\\boxed\s+([^\s$.,{]+)")


def final_boxes(text: str) -> list[str]:
    r"""The content of the last \boxed{...} (or \fbox) whose braces close, after the contents of
    those joined to it by a comma, "and" or "or"; empty where there is none.

    A box within a box belongs to the outer one. One pass, however many are opened.
    """
    opened: list[
        int | None
    ] = []  # where the box of each open brace starts; None for a brace of another kind
    boxes: list[tuple[int, int, str]] = []
    inside: list[int] = []  # starts of contents
    for match in _BRACES.finditer(text):
        found = match.group()
        if found == "}":
            if opened:
                start, content = opened.pop(), inside.pop()
                if start is not None:
                    while boxes and boxes[-1][0] > start:
                        boxes.pop()  # a box within this one
                    boxes.append((start, match.end(), text[content : match.start()]))
        elif found[-1] == "{" and found != "\\{":
            opened.append(match.start() if len(found) > 1 else None)
            inside.append(match.end())
    if not boxes:
        return []
    first = len(boxes) - 1
    while first > 0 and _JOINED.fullmatch(text[boxes[first - 1][1] : boxes[first][0]]):
        first -= 1
    return [content.strip() for _, _, content in boxes[first:]]


def bare_box(text: str) -> str | None:
    r"""What follows the last "\boxed" without braces; None without one."""
    bare = _BARE.findall(text)
    return bare[-1] if bare else None


def answer_in_boxes(text: str) -> str | None:
    r"""`final_boxes` as one answer, a list where they are several; of a box within a box the inner
    one. "\boxed 5" is read too, where no box has braces. None without a box."""
    boxes = final_boxes(text)
    if not boxes:
        return bare_box(text)
    while len(boxes) == 1 and (inner := final_boxes(boxes[0])):
        boxes = inner
    return ", ".join(boxes)
