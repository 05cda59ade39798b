"""The picture of accuracy against diversity: one curve over temperatures for each method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scope_jax.sweep.figures import (
    BASELINE,
    OURS,
    TASKS,
    Groups,
    mean_value,
    our_method,
    value,
)
from scope_jax.sweep.statistics import estimate
from scope_jax.sweep.svg import colours, picture
from scope_jax.sweep.temperatures import RAREFIED, SETS, measured


def points_of(methods: Groups, prefixes: dict[float, str]) -> dict[str, list[tuple]]:
    """{method: [(temperature, pass@1, its half interval, rarefied paths, its half interval)]}, hot
    to cold, of temperatures with rarefied paths."""
    found = {}
    for name, records in methods.items():
        points = []
        for temperature, prefix in prefixes.items():
            accuracy = estimate([value(r, f"{prefix}/pass@1") for r in records])
            paths = estimate([value(r, f"{prefix}/{RAREFIED}") for r in records])
            if accuracy.count and paths.count:
                points.append((temperature, accuracy.mean, accuracy.half, paths.mean, paths.half))
        if points:
            found[name] = points
    return found


def draw_frontier(methods: Groups, path: Path) -> bool:
    """Pass@1 against right paths rarefied to four right samples, means over seeds with 95 %
    intervals, a curve over temperatures for each method and a panel for each evaluation set; a
    triangle at the bottom is the greedy accuracy, which has no paths. Up and to the right is
    better. Writes an SVG that is the same for the same records; returns False, and writes nothing,
    where no record has rarefied paths."""
    return _draw([(SETS[name], methods, found) for name, found in measured(methods).items()], path)


def draw_frontiers(domains: Mapping[str, Groups], path: Path) -> bool:
    """The same with a panel for each domain, in distribution."""
    sets = {domain: measured(methods).get("eval", {}) for domain, methods in domains.items()}
    panels = [(TASKS.get(d, d), methods, sets[d]) for d, methods in domains.items()]
    return _draw(panels, path)


def _draw(panels: Sequence[tuple[str, Groups, dict[float, str]]], path: Path) -> bool:
    """Panels of (title, methods, temperatures); those without rarefied paths are left out."""
    panels = [panel for panel in panels if points_of(panel[1], panel[2])]
    if not panels:
        return False
    every = dict.fromkeys(name for _, methods, _ in panels for name in methods)
    ours = next((name for name in OURS if name in every), None)
    # One colour for a method in all panels: the key stands in the first.
    names = sorted(every, key=lambda name: (name != ours, name != BASELINE))
    with picture(path, 4.6 * len(panels), 3.8) as figure:
        for axes, (title, methods, prefixes) in zip(
            figure.subplots(1, len(panels), squeeze=False).flat, panels
        ):
            _panel(axes, methods, prefixes, names)
            axes.set_title(title, fontsize=9)
        figure.axes[0].legend(frameon=False, fontsize=7)
    return True


def _panel(axes: Any, methods: Groups, prefixes: dict[float, str], names: Sequence[str]) -> None:
    """A curve over temperatures for each method, in the colours of their places among `names`."""
    ours = our_method(methods)
    points = points_of(methods, prefixes)
    for number, method in enumerate(names):
        if method not in points:
            continue
        colour, width = colours()(number % 10), 1.8 if method == ours else 1.0
        heat, x, dx, y, dy = zip(*points[method])
        axes.errorbar(
            *(x, y, dy, dx),
            color=colour,
            lw=width,
            ls="-" if number < 10 else ":",
            elinewidth=0.6,
            marker="o",
            ms=3,
            label=method,
        )
        axes.annotate(f" T {heat[0]:g}", (x[0], y[0]), fontsize=6, color=colour)
        if 0.0 in prefixes:
            greedy = mean_value(methods[method], f"{prefixes[0.0]}/pass@1")
            axes.plot([greedy], [0.02], "^", color=colour, transform=axes.get_xaxis_transform())
    axes.set_xlabel("pass@1 (triangles: greedy)")
    axes.set_ylabel("right paths among four right samples")
    axes.grid(alpha=0.3)
