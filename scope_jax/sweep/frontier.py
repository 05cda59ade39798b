"""The picture of accuracy against diversity: one curve over temperatures for each method."""

import io
import re
from pathlib import Path

from scope_jax.run import write_atomically
from scope_jax.sweep.figures import BASELINE, Groups, mean_value, our_method, value
from scope_jax.sweep.statistics import estimate
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
    sets = {
        name: (prefixes, points)
        for name, prefixes in measured(methods).items()
        if (points := points_of(methods, prefixes))
    }
    if not sets:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    ours = our_method(methods)
    order = sorted(methods, key=lambda name: (name != ours, name != BASELINE))
    colours = matplotlib.colormaps["tab10"]
    with matplotlib.rc_context(
        {"svg.hashsalt": "scope_jax", "svg.fonttype": "none", "font.size": 9}
    ):
        figure = Figure(figsize=(4.6 * len(sets), 3.8), layout="constrained")
        for axes, (name, (prefixes, points)) in zip(
            figure.subplots(1, len(sets), squeeze=False).flat, sets.items()
        ):
            for number, method in enumerate(order):
                if method not in points:
                    continue
                colour, width = colours(number % 10), 1.8 if method == ours else 1.0
                heat, x, dx, y, dy = zip(*points[method])
                axes.errorbar(
                    *(x, y, dy, dx),
                    color=colour,
                    lw=width,
                    elinewidth=0.6,
                    marker="o",
                    ms=3,
                    label=method,
                )
                axes.annotate(f" T {heat[0]:g}", (x[0], y[0]), fontsize=6, color=colour)
                if 0.0 in prefixes:
                    greedy = mean_value(methods[method], f"{prefixes[0.0]}/pass@1")
                    axes.plot(
                        [greedy], [0.02], "^", color=colour, transform=axes.get_xaxis_transform()
                    )
            axes.set_title(SETS[name], fontsize=9)
            axes.set_xlabel("pass@1 (triangles: greedy)")
            axes.set_ylabel("right paths among four right samples")
            axes.grid(alpha=0.3)
        figure.axes[0].legend(frameon=False, fontsize=7)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, re.sub(r"(\.\d\d)\d+", r"\1", drawn.getvalue()))
    return True
