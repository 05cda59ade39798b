"""A rescue as lines of a terminal: the steps that were kept, the wrong one struck out, the
teacher's, the new end."""

import textwrap
from collections.abc import Mapping
from typing import Any

from scope_jax.report.gallery import Cell, rescue_of

# SGR codes of each status; 9 strikes out.
_LOOKS = {
    "kept": "",
    "wrong": "31;9",
    "discarded": "2;9",
    "corrected": "1;32",
    "tail": "36",
    "refused": "33",
}
_STRUCK = ("wrong", "discarded")
_NAMES = {
    "kept": "kept",
    "wrong": "wrong",
    "discarded": "discarded",
    "corrected": "teacher",
    "tail": "new end",
    "refused": "refused",
}
_LABEL = 13  # columns for the number of a step and what it is


def rescue_text(item: Mapping[str, Any], title: str, *, width: int, colour: bool) -> str:
    """An item of a samples file (`gallery.rescue_of`) in lines of at most `width` columns.

    `colour`: with escape sequences; without them what is struck out stands between `~~`. Of what a
    model wrote nothing but its printable characters gets through.
    """
    shown = rescue_of(item)
    what = {True: "rescued", False: "not rescued", None: "corrected, not verified"}[
        shown.verdict_after
    ]
    if shown.why_not:
        what += f" ({shown.why_not})"
    lines = [_styled(f"{title}, {what}", "1", colour)]
    lines += _block("problem", f"{shown.prompt}  (answer: {shown.answer})", "2", width, colour)
    for cell in (*shown.kept, *shown.before, *shown.after):
        lines += _cell(cell, width, colour)
    return "\n".join(lines)


def _cell(cell: Cell, width: int, colour: bool) -> list[str]:
    text = cell.text
    if cell.status in _STRUCK and not colour:
        text = f"~~{text.strip()}~~"
    if cell.score is not None:
        text += f"  [{cell.score:.2f}]"
    name = f"{cell.number:>2} {_NAMES[cell.status]}"
    return _block(name, text, _LOOKS[cell.status], width, colour)


def _block(name: str, text: str, look: str, width: int, colour: bool) -> list[str]:
    """A text beside its name, wrapped; blanks that divide words are one."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    wrapped = textwrap.wrap(plain, max(width - _LABEL, 20)) or [""]
    names = [name, *[""] * (len(wrapped) - 1)]
    return [
        f"{name:<{_LABEL}}{_styled(line, look, colour)}"
        for name, line in zip(names, wrapped, strict=True)
    ]


def _styled(text: str, look: str, colour: bool) -> str:
    return f"\x1b[{look}m{text}\x1b[0m" if colour and look else text
