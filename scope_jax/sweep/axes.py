"""Where the correction starts to pay: its lead over the baseline against one condition at a time.

Records with the labels `axis` and `level` changed the condition; those of the same seeds without
them, given as `usual`, are the condition as it is.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from scope_jax.report.tables import markdown
from scope_jax.sweep.cells import interval, plain, signed
from scope_jax.sweep.figures import BASELINE, SCOPE, by_seed, compare, salvage_rate, value
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import Estimate, estimate
from scope_jax.sweep.svg import colours, picture

USUAL_BASE = 0.9  # `target.misconception` of the base of signed terms
ACCURACY, LONGER = "eval_t0.6/pass@1", "eval_ood_t0.6/pass@1"


class Axis(NamedTuple):
    """A condition."""

    title: str  # what is measured of it
    measure: Callable[[Sequence[Record], Sequence[Record]], float]  # of ours and the baseline's
    changes_base: bool  # so that the baseline has runs of its own at each level


def _wrong_borrows(ours: Sequence[Record], base: Sequence[Record]) -> float:
    return estimate([float(r["labels"].get("level", USUAL_BASE)) for r in base]).mean


def _first_error(ours: Sequence[Record], base: Sequence[Record]) -> float:
    known = [r["mean"].get("scope/first_error_position", math.nan) for r in ours]
    return estimate(known).mean


def _misplaced(ours: Sequence[Record], base: Sequence[Record]) -> float:
    return estimate([r["settings"].get("localiser.noise", 0.0) for r in ours]).mean


AXES = {
    "sparsity": Axis("share of borrows that the base has wrong", _wrong_borrows, True),
    "lateness": Axis("where first errors lie, share of the lines", _first_error, True),
    "teacher": Axis(
        "salvage rate, with teachers that err like the base", lambda o, b: salvage_rate(o), False
    ),
    "noise": Axis("share of the cuts misplaced on purpose", _misplaced, False),
}


class Point(NamedTuple):
    """A level of a condition; `level` is None for the condition as it is."""

    level: float | None
    x: float  # what `Axis.measure` gives
    ours: list[Record]
    base: list[Record]
    lead: Estimate  # over the baseline, T = 0.6, on common seeds
    longer: Estimate  # the same on longer problems


def points_of(records: Sequence[Record], usual: Sequence[Record], name: str) -> list[Point]:
    """The points of an axis in the order of x, those without a pair of runs left out."""
    axis = AXES[name]
    own = [r for r in records if r["labels"].get("axis") == name]
    seeds = {r["labels"]["seed"] for r in own}
    domains = {r["labels"]["domain"] for r in own}
    same = [
        r
        for r in usual
        if r["labels"]["seed"] in seeds
        and r["labels"]["domain"] in domains
        and "axis" not in r["labels"]
    ]
    points = []
    for level in (None, *sorted({r["labels"]["level"] for r in own})):
        group = same if level is None else [r for r in own if r["labels"]["level"] == level]
        ours = _of_method(group, SCOPE)
        base = _of_method(group if axis.changes_base else same, BASELINE)
        lead, longer = (compare(ours, base, metric).difference for metric in (ACCURACY, LONGER))
        if lead.count:
            points.append(Point(level, axis.measure(ours, base), ours, base, lead, longer))
    return sorted(points, key=lambda point: point.x)


def axes_table(records: Sequence[Record], usual: Sequence[Record]) -> str:
    """The part of a page on conditions; empty where no condition was changed."""
    rows = []
    for name, axis in AXES.items():
        for point in points_of(records, usual, name):
            common = by_seed(point.ours).keys() & by_seed(point.base).keys()
            ours, base = (
                estimate([value(r, ACCURACY) for r in side if r["labels"]["seed"] in common])
                for side in (point.ours, point.base)
            )
            rows.append(
                [
                    axis.title,
                    plain(point.x),
                    f"`{name}_{point.level:g}`" if point.level is not None else "as it is",
                    str(point.lead.count),
                    interval(base, 100),
                    interval(ours, 100),
                    signed(point.lead, 100),
                    signed(point.longer, 100),
                    plain(salvage_rate(point.ours)),
                ]
            )
    if not rows:
        return ""
    head = ["condition", "measured", "runs", "seeds", BASELINE, SCOPE, "difference"]
    head += ["on longer problems", "salvage rate"]
    return (
        "## One condition at a time\n\nPass@1 at T = 0.6 in percent, signed terms; differences seed"
        " by seed. A changed base has runs of its own of both methods; a changed teacher or cut"
        f" stands against the {BASELINE} of the usual base. First errors are where SCOPE's process"
        f" reward model sees them, over the run.\n\n{markdown(head, rows)}\n"
    )


def draw_axes(records: Sequence[Record], usual: Sequence[Record], path: Path) -> bool:
    """The lead over the baseline at T = 0.6 with its 95 % interval, in and out of distribution, a
    panel for each condition; squares are the condition as it is. Returns False, and writes nothing,
    where no condition has two points."""
    found = {name: points_of(records, usual, name) for name in AXES}
    found = {name: points for name, points in found.items() if len(points) > 1}
    if not found:
        return False
    with picture(path, 2.7 * len(found), 2.9) as figure:
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True).flat
        for axes, (name, points) in zip(panels, found.items()):
            axes.axhline(0, color="0.3", lw=0.8)
            for number, (what, label) in enumerate(
                (("lead", "in distribution"), ("longer", "longer problems"))
            ):
                gaps: list[Estimate] = [getattr(point, what) for point in points]
                x = [point.x for point in points]
                y = [100 * gap.mean for gap in gaps]
                halves = [100 * gap.half if math.isfinite(gap.half) else 0.0 for gap in gaps]
                colour = colours()(number)
                axes.errorbar(x, y, halves, color=colour, fmt="o-", ms=3, lw=1, label=label)
                as_it_is = [n for n, point in enumerate(points) if point.level is None]
                axes.plot(
                    [x[n] for n in as_it_is], [y[n] for n in as_it_is], "s", color=colour, ms=6
                )
            axes.set_xlabel(AXES[name].title, fontsize=7)
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel(f"{SCOPE} - {BASELINE}, points of pass@1, T = 0.6", fontsize=7)
        figure.axes[0].legend(frameon=False, fontsize=7)
    return True


def _of_method(records: Sequence[Record], method: str) -> list[Record]:
    return [r for r in records if r["labels"]["method"] == method]
