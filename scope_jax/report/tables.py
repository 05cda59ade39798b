"""Tables of texts: as Markdown for pages, aligned for the terminal."""

from collections.abc import Collection, Sequence

import tabulate

_Rows = Sequence[Sequence[str]]


def markdown(columns: Sequence[str], rows: _Rows) -> str:
    """A Markdown table without padding, so that one long cell does not widen every row."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def plain(columns: Sequence[str], rows: _Rows, left: Collection[int] = (0,)) -> str:
    """An aligned table for the terminal: the columns `left` to the left, others to the right."""
    align = ["left" if n in left else "right" for n in range(len(columns))]
    return tabulate.tabulate(
        rows, columns, tablefmt="simple", colalign=align if rows else None, disable_numparse=True
    )
