"""Line charts as inline SVG, drawn by matplotlib and coloured by the page's style sheet."""

import dataclasses
import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = 8  # the style sheet defines --line-0 to --line-7
_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 22
_MOST_POINTS = 400
# Colours that matplotlib draws with, which then become the style sheet's variables.
_GRID = "#00ff00"
_LINES = [f"#00000{number}" for number in range(1, COLOURS + 1)]

# Of each series x, and for each seed y, None where there is a gap.
_Numbers = tuple[tuple[tuple[float, ...], tuple[tuple[float | None, ...], ...]], ...]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart for the template; all texts but `svg` are still to be escaped."""

    title: str
    x_label: str
    y_label: str
    legend: list[tuple[int, str]]  # (number of the colour, text) of each line
    svg: str  # an `<svg>` without its opening and closing tags
    box: str = f"0 0 {_WIDTH} {_HEIGHT}"
    value: str = ""  # what it comes to, in short
    note: str = ""  # beside it


def line_chart(curve: Mapping[str, Any]) -> Chart:
    """The chart of {title, x_label, y_label, series: [{label, x, y_by_seed}]}, and optionally
    `value` and `note`, texts that stand above it.

    `x` is a list of numbers, `y_by_seed` one list per seed of the same length; None and non-finite
    values are gaps. The line is the mean over the seeds that have a value, the band goes from the
    least to the greatest. More than 400 points are averaged in bins of neighbours. Raises
    ValueError, with the title, for lists of different lengths.
    """
    legend = []
    for number, series in enumerate(curve["series"]):
        seeds = len(series["y_by_seed"])
        text = f"{series['label']} ({seeds} seeds)" if seeds > 1 else str(series["label"])
        legend.append((number % COLOURS, text))
    names = ("title", "x_label", "y_label", "value", "note")
    texts = {key: str(curve.get(key, "")) for key in names}
    return Chart(**texts, legend=legend, svg=_drawn(_numbers(curve)))


def figure_of(curve: Mapping[str, Any]) -> "Figure":
    """The matplotlib figure of a curve: axes, lines and bands, without any text but the ticks."""
    return _figure(_numbers(curve))


def _numbers(curve: Mapping[str, Any]) -> _Numbers:
    """What is drawn of a curve. Raises ValueError, see `line_chart`."""
    found = []
    for series in curve["series"]:
        for y in series["y_by_seed"]:
            if len(y) != len(series["x"]):
                raise ValueError(
                    f"chart {curve['title']!r}, series {series['label']!r}: {len(series['x'])} x"
                    f" and {len(y)} y values; as many of one as of the other are needed"
                )
        x = tuple(float(value) for value in series["x"])
        found.append((x, tuple(tuple(map(_number, y)) for y in series["y_by_seed"])))
    return tuple(found)


# Of a run's metrics many are the same numbers: 0 at every step, for one.
@functools.lru_cache(maxsize=512)
def _drawn(numbers: _Numbers) -> str:
    return _svg(_figure(numbers))


def _figure(numbers: _Numbers) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))  # one unit of the SVG is 1/72 inch
    axes = figure.add_axes(
        (
            _LEFT / _WIDTH,
            _BOTTOM / _HEIGHT,
            1 - (_LEFT + _RIGHT) / _WIDTH,
            1 - (_TOP + _BOTTOM) / _HEIGHT,
        )
    )
    for number, (x, y_by_seed) in enumerate(numbers):
        x_T = np.array(x, np.float64)
        y_ST = np.array(y_by_seed, np.float64).reshape(len(y_by_seed), len(x_T))  # None: NaN
        _draw(axes, *_thin(x_T, y_ST), colour=_LINES[number % COLOURS])
    _style(axes)
    return figure


def _draw(axes: "Axes", x_T: np.ndarray, y_ST: np.ndarray, colour: str) -> None:
    """One series: a line and, for several seeds, a band for each stretch without a gap."""
    present_T = np.isfinite(y_ST).any(axis=0)
    if not present_T.any():
        return
    for run in np.ma.clump_unmasked(np.ma.masked_array(present_T, mask=~present_T)):
        x, columns = x_T[run], y_ST[:, run]
        if len(y_ST) > 1:
            low, high = np.nanmin(columns, axis=0), np.nanmax(columns, axis=0)
            x_band, y_band = np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])
            axes.fill(x_band, y_band, color=colour, alpha=0.16, lw=0)
        mean = np.nanmean(columns, axis=0)
        width = 1.8
        if len(x) == 1:  # a line of no length, which the round cap draws as a dot
            x, mean, width = np.repeat(x, 2), np.repeat(mean, 2), 5.0
        axes.plot(x, mean, color=colour, lw=width, solid_capstyle="round")


def _style(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.margins(x=0, y=0.06)
    axes.grid(axis="y", color=_GRID, lw=1)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    axes.tick_params(length=0, labelsize=11, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))  # steps
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_tick))
    for artist in axes.findobj():  # nothing lies outside, and a clip path needs an id in the page
        artist.set_clip_on(False)


def _tick(value: float, position: int | None = None) -> str:
    return f"{value:.6g}"


def _svg(figure: "Figure") -> str:
    """The elements of the figure, without ids, fonts and colours of its own."""
    import matplotlib

    drawn = io.StringIO()
    figure.patch.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "path.simplify": False}):
        # No metadata: the page is the same for the same numbers.
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", metadata=nothing)
    text = drawn.getvalue()
    text = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]
    text = re.sub(r' id="[^"]*"', "", text)
    text = re.sub(r' style="font-size[^"]*text-anchor: (\w+)"', r' text-anchor="\1"', text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r'(?<= [dxy]=")[^"]*', _short_numbers, text)
    text = re.sub(r"\s*\n\s*", "", text)
    text = re.sub(r"<g/>", "", text)
    for colour, variable in (
        (_GRID, "--rule"),
        *((line, f"--line-{number}") for number, line in enumerate(_LINES)),
    ):
        text = text.replace(colour, f"var({variable})")
    return text


def _short_numbers(numbers: re.Match[str]) -> str:
    """Numbers with one digit behind the point, on one line."""
    return re.sub(r"(\.\d)\d+", r"\1", " ".join(numbers[0].split()))


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _thin(x_T: np.ndarray, y_ST: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` columns: means over bins of neighbours, for each seed by itself."""
    size = -(-len(x_T) // _MOST_POINTS)
    if size <= 1:
        return x_T, y_ST
    starts: Sequence[int] = range(0, len(x_T), size)
    x_bins = np.array([x_T[i : i + size].mean() for i in starts])
    y_bins = np.full((len(y_ST), len(x_bins)), np.nan)
    for column, i in enumerate(starts):
        part = y_ST[:, i : i + size]
        count = np.isfinite(part).sum(1)
        y_bins[:, column] = np.where(count > 0, np.nansum(part, 1) / np.maximum(count, 1), np.nan)
    return x_bins, y_bins
