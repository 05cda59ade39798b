"""Line charts as inline SVG: a line of means and a band over seeds, coloured by the page's own
style sheet."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLOURS = 8  # The style sheet defines --line-0 .. --line-7.
_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40
_MOST_POINTS = 400

STYLE = """
:root { --line-0:#2563a8; --line-1:#c2571a; --line-2:#2f855a; --line-3:#8b4fb8; --line-4:#b7791f; --line-5:#0e7c86;
  --line-6:#b83280; --line-7:#6b7280; }
@media (prefers-color-scheme: dark) { :root { --line-0:#6aa9ec; --line-1:#f0955a; --line-2:#68c795; --line-3:#c39ae6;
  --line-4:#e2b659; --line-5:#56c4cf; --line-6:#ee86bd; --line-7:#a3abb8; } }
figure.chart { margin:0; min-width:0; }
figure.chart figcaption { font-weight:600; margin-bottom:.15rem; overflow-wrap:anywhere; }
figure.chart svg { width:100%; height:auto; display:block; }
figure.chart text { fill:var(--soft); font-size:11px; font-family:inherit; font-variant-numeric:tabular-nums; }
figure.chart .grid { stroke:var(--rule); stroke-width:1; }
.legend-lines { display:flex; flex-wrap:wrap; gap:.1rem 1rem; font-size:.82rem; color:var(--soft); min-height:1.3em; }
.legend-lines i { display:inline-block; width:1.1rem; height:3px; border-radius:2px; vertical-align:middle;
  margin-right:.35rem; }
"""


def line_chart(curve: Mapping[str, Any]) -> str:
    """One `<figure>` for {title, x_label, y_label, series: [{label, x, y_by_seed}]}.

    `x` is a list of numbers, `y_by_seed` one list per seed of the same length; None and non-finite
    values are gaps. The line is the mean over the seeds that have a value, the band goes from the
    least to the greatest. More than 400 points are averaged in bins of neighbours. Raises
    ValueError, with the title, for lists of different lengths.
    """
    drawn = []
    for number, series in enumerate(curve["series"]):
        x_T = np.asarray(series["x"], np.float64)
        for y in series["y_by_seed"]:
            if len(y) != len(x_T):
                raise ValueError(
                    f"chart {curve['title']!r}, series {series['label']!r}: {len(x_T)} x and"
                    f" {len(y)} y values; as many of one as of the other are needed"
                )
        y_ST = np.array([[_number(value) for value in y] for y in series["y_by_seed"]], np.float64)
        y_ST = y_ST.reshape(len(series["y_by_seed"]), len(x_T))
        drawn.append((number % COLOURS, str(series["label"]), *_thin(x_T, y_ST)))

    seen_x = [x_T[np.isfinite(y_ST).any(0)] for _, _, x_T, y_ST in drawn]
    seen_y = [y_ST[np.isfinite(y_ST)] for _, _, x_T, y_ST in drawn]
    x_low, x_high = _limits(np.concatenate([np.zeros(0), *seen_x]))
    y_low, y_high = _limits(np.concatenate([np.zeros(0), *seen_y]), margin=0.06)

    def place_x(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def place_y(value: float) -> float:
        return _TOP + (y_high - value) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in _ticks(y_low, y_high):
        y = place_y(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in _ticks(x_low, x_high):
        x = place_x(tick)
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:.6g}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    x_label, y_label, title = (
        html.escape(str(curve.get(key, ""))) for key in ("x_label", "y_label", "title")
    )
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{x_label}</text>')
    parts.append(
        f'<text transform="translate(12 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)"'
        f' text-anchor="middle">{y_label}</text>'
    )
    legend = []
    for colour, label, x_T, y_ST in drawn:
        for run in _runs(np.any(np.isfinite(y_ST), axis=0)):
            columns = y_ST[:, run]
            low, mean, high = np.nanmin(columns, 0), np.nanmean(columns, 0), np.nanmax(columns, 0)
            xs = [place_x(value) for value in x_T[run]]
            if len(y_ST) > 1:
                there = [f"{x:.1f},{place_y(y):.1f}" for x, y in zip(xs, high)]
                back = [f"{x:.1f},{place_y(y):.1f}" for x, y in zip(xs[::-1], low[::-1])]
                band = " ".join(there + back)
                parts.append(
                    f'<polygon points="{band}" fill="var(--line-{colour})" fill-opacity=".16"/>'
                )
            line = " ".join(f"{x:.1f},{place_y(y):.1f}" for x, y in zip(xs, mean))
            # A lone point is a line of no length: the round cap draws it as a dot.
            parts.append(
                f'<polyline points="{line if len(xs) > 1 else f"{line} {line}"}" fill="none"'
                f' stroke-width="1.8" stroke="var(--line-{colour})" stroke-linejoin="round"'
                ' stroke-linecap="round"/>'
            )
        seeds = f" ({len(y_ST)} seeds)" if len(y_ST) > 1 else ""
        legend.append(
            "<span><i"
            f' style="background:var(--line-{colour})"></i>{html.escape(label)}{html.escape(seeds)}</span>'
        )
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption><div'
        f' class="legend-lines">{"".join(legend)}</div><svg viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' role="img" aria-label="{title}">{"".join(parts)}</svg></figure>'
    )


def _number(value: Any) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _thin(x_T: np.ndarray, y_ST: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` columns: means over bins of neighbours, of each seed by itself."""
    size = -(-len(x_T) // _MOST_POINTS)
    if size <= 1:
        return x_T, y_ST
    starts = range(0, len(x_T), size)
    x_bins = np.array([x_T[i : i + size].mean() for i in starts])
    y_bins = np.full((len(y_ST), len(x_bins)), np.nan)
    for column, i in enumerate(starts):
        part = y_ST[:, i : i + size]
        count = np.isfinite(part).sum(1)
        y_bins[:, column] = np.where(count > 0, np.nansum(part, 1) / np.maximum(count, 1), np.nan)
    return x_bins, y_bins


def _limits(values: np.ndarray, margin: float = 0.0) -> tuple[float, float]:
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # A constant: some room around it.
        room = 0.5 * abs(low) or 0.5
        return low - room, high + room
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, about: int = 5) -> Sequence[float]:
    """Round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _runs(present: Any) -> list[slice]:
    """The stretches of True in bool[T] as slices."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], present, [False]]).astype(np.int8)))
    return [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2])]
