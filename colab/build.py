"""Make the notebooks from their percent-format sources: `python colab/build.py`, or `--check` to
compare only.

A line `# %%` starts a code cell, `# %% [markdown]` a text cell whose lines are comments. Notebooks
hold no outputs, and cell ids count up, so that the same source always gives the same file.
"""

import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
MARK = "# %%"


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell, kind "code" or "markdown"; before the first mark only comments
    for tools may stand, which the notebook leaves out.

    Raises ValueError for code before the first mark and for a text cell with a line that is no
    comment.
    """
    head, *parts = ("\n" + source).split(f"\n{MARK}")
    if any(line and not line.startswith("#") for line in head.split("\n")):
        raise ValueError(f"code before the first cell; start it with {MARK!r}")
    found = []
    for part in parts:
        title, _, body = part.partition("\n")
        body = body.strip("\n")
        if title.strip() == "":
            found.append(("code", body))
        elif title.strip() == "[markdown]":
            lines = body.split("\n")
            wrong = [line for line in lines if line != "#" and not line.startswith("# ")]
            if wrong:
                raise ValueError(f"text cell: {wrong[0]!r} is no comment; every line of a text cell starts with '# '")
            found.append(("markdown", "\n".join(line[2:] for line in lines)))
        else:
            raise ValueError(f"cell {MARK}{title}: unknown kind; '{MARK}' or '{MARK} [markdown]'")
    return found


def notebook(source: str) -> str:
    """The notebook file made from a percent-format source."""
    made = nbformat.v4.new_notebook()
    made.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, (kind, text) in enumerate(cells(source)):
        cell = nbformat.v4.new_code_cell(text) if kind == "code" else nbformat.v4.new_markdown_cell(text)
        cell.id = f"cell-{number}"
        made.cells.append(cell)
    nbformat.validate(made)
    return nbformat.writes(made, version=4) + "\n"


def main(argv: list[str]) -> int:
    stale = []
    for source in sorted(HERE.glob("scope_*.py")):
        target, made = source.with_suffix(".ipynb"), notebook(source.read_text(encoding="utf-8"))
        if not target.is_file() or target.read_text(encoding="utf-8") != made:
            stale.append(target.name)
            if "--check" not in argv:
                target.write_text(made, encoding="utf-8")
    if stale:
        print(("differs from its source: " if "--check" in argv else "written: ") + ", ".join(stale))
    return int(bool(stale) and "--check" in argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
