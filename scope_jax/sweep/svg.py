"""How pictures of the pages of results are written: as SVG, the same for the same figures."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scope_jax.run import write_atomically


@contextlib.contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of this size in inches, written to `path` at the end of the block, where
    text stays text and nothing says when it was drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.hashsalt": "scope_jax", "svg.fonttype": "none", "font.size": 9}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hundredth of a point is enough, and makes the file smaller; what is read stays as it is.
    short = re.sub(
        r"(<text\b.*?</text>)|(\.\d\d)\d+", lambda m: m[1] or m[2], drawn.getvalue(), flags=re.S
    )
    write_atomically(path, short)


def colours() -> Any:
    """The colours of curves and points, by number from 0 to 9."""
    import matplotlib

    return matplotlib.colormaps["tab10"]
