"""The three pictures of the short page of results: accuracy against paths, reward against what was
spent, and the lead over the baseline under changed conditions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scope_jax.sweep.curves import WINDOW, smooth
from scope_jax.sweep.figures import (
    BASELINE,
    TASKS,
    Groups,
    Lead,
    curve_of,
    domains_of,
    lead,
    methods_of,
    our_method,
    shown,
    value,
)
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import estimate
from scope_jax.sweep.svg import colours, picture
from scope_jax.sweep.training_tables import REWARD, batch_costs

PASS, LONGER, PATHS = "eval/pass@1", "eval_ood/pass@1", "eval/diversity/distinct_paths"
FITTED = 8  # seeds of the baseline from which a line through them is drawn
# Methods with a name and a colour in the picture of accuracy against paths; others are grey.
NAMED = (BASELINE, "dapo", "luffy", "luffy_nll", "sft", "prm_reward_oracle", "self_correction")
RIVAL = "dapo"  # drawn beside ours and the baseline where the price counts

# Rows of the picture of conditions: (words, records that it is in, method or variant, metric). A
# method "" is ours of these records.
CONDITIONS = (
    ("settings of the table", "table", "", PASS),
    ("the same, longer problems", "table", "", LONGER),
    ("today's settings, other seeds", "confirmation", "", PASS),
    ("the same, longer problems", "confirmation", "", LONGER),
    ("today's settings, another base", "controls", "", PASS),
    ("a fifth of the cuts misplaced", "ablations", "a fifth of the errors misplaced", PASS),
    ("half of the cuts misplaced", "ablations", "half of the errors misplaced", PASS),
    ("cut by an exact check", "ablations", "localiser oracle", PASS),
    ("cut by Monte Carlo, no PRM", "ablations", "localiser monte_carlo", PASS),
    ("teacher: a program", "ablations", "program teacher", PASS),
    ("teacher: the policy itself", "table", "self_correction", PASS),
    ("tail by the teacher too", "ablations", "tail by the teacher", PASS),
    ("no teacher's term in the loss", "ablations", "no teacher term", PASS),
    ("step alone: no tail, not verified", "ablations", "no tail", PASS),
)

Sources = Mapping[str, Sequence[Record]]  # records by the part of the page that they belong to


def draw_accuracy_and_paths(domains: Mapping[str, Groups], path: Path) -> None:
    """Pass@1 against distinct right paths at the end, with 95 % intervals, a panel for each domain.
    Small dots are the baseline's seeds, with the line through them: how far paths follow from
    accuracy alone."""
    with picture(path, 4.4 * len(domains), 3.7) as figure:
        for axes, (domain, methods) in zip(
            figure.subplots(1, len(domains), squeeze=False).flat, domains.items()
        ):
            _seeds_of_the_baseline(axes, methods.get(BASELINE, []))
            means = []
            named = [name for name in (our_method(methods), *NAMED) if name in methods]
            for name, records in methods.items():
                x, y = (estimate([value(r, metric) for r in records]) for metric in (PASS, PATHS))
                if not x.count or not y.count:
                    continue
                means.append((100 * x.mean, y.mean))
                main = name in named
                colour = colours()(named.index(name)) if main else "0.7"
                axes.errorbar(
                    *(100 * x.mean, y.mean, y.half, 100 * x.half),
                    fmt="o",
                    color=colour,
                    ms=4 if main else 2.5,
                    elinewidth=0.9 if main else 0.5,
                    zorder=4 if main else 2,
                    label=name if main else None,
                )
            _room_for(axes, means)
            axes.set_title(TASKS.get(domain, domain), fontsize=9)
            axes.set_xlabel("pass@1, percent")
            axes.set_ylabel("distinct right paths of a problem")
            axes.grid(alpha=0.3)
        first = figure.axes[0]
        first.plot([], [], ".", color="0.7", label="other methods")
        first.legend(frameon=False, fontsize=7)


def _room_for(axes: Any, means: Sequence[tuple[float, float]]) -> None:
    """Axes that hold every mean; intervals of runs that fell apart may be longer."""
    for values, limit in zip(zip(*means), (axes.set_xlim, axes.set_ylim)):
        room = 0.1 * (max(values) - min(values)) or 1.0
        limit(min(values) - room, max(values) + room)


def _seeds_of_the_baseline(axes: Any, records: Sequence[Record]) -> None:
    """Its runs one by one, and the line through them where they are many."""
    x = np.array([100 * value(r, PASS) for r in records])
    y = np.array([value(r, PATHS) for r in records])
    known = np.isfinite(x + y)
    axes.plot(x[known], y[known], ".", ms=2, color="0.45", zorder=1)
    if known.sum() >= FITTED:
        ends = np.array([x[known].min(), x[known].max()])
        line = np.polyfit(x[known], y[known], 1)
        axes.plot(ends, np.polyval(line, ends), color="0.45", lw=0.8, zorder=1)


def draw_budgets(domains: Mapping[str, Groups], path: Path, names: Sequence[str] = ()) -> None:
    """Reward of the policy's rollouts against the tokens that it wrote and against seconds, in
    units of the baseline's whole run: these methods, by default ours, the baseline and the rival
    that rolls out more; means of five batches with 95 % bands over seeds. A row for each domain."""
    with picture(path, 8, 2.9 * len(domains)) as figure:
        panels = figure.subplots(len(domains), 2, squeeze=False, sharey="row")
        for row, (domain, methods) in zip(panels, domains.items()):
            drawn = names or (our_method(methods), BASELINE, RIVAL)
            drawn = [name for name in drawn if name in methods]
            lines = {n: _rewards({n: methods[n]}) for n in drawn}
            costs = batch_costs({n: methods[n] for n in drawn})
            for axes, cost, what in zip(row, costs, ("tokens of the policy", "seconds")):
                for number, name in enumerate(drawn):
                    mean, half = lines[name]
                    if not len(mean) or BASELINE not in lines:
                        continue
                    whole = cost[BASELINE] * (len(lines[BASELINE][0]) + WINDOW - 1)
                    if not whole:
                        continue
                    x = (np.arange(len(mean)) + WINDOW) * cost[name] / whole
                    colour = colours()(number)
                    axes.plot(x, mean, color=colour, label=name)
                    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
                axes.axvline(1, color="0.4", lw=0.8, ls=":")
                axes.set_xlabel(f"{what} ({BASELINE}'s whole run = 1)")
                axes.grid(alpha=0.3)
            row[0].set_ylabel("reward, percent")
            row[0].set_title(TASKS.get(domain, domain), fontsize=9, loc="left")
        figure.axes[0].legend(frameon=False)


def _rewards(methods: Groups) -> tuple[np.ndarray, np.ndarray]:
    """(mean, half of the interval) over the runs of a method, in percent, of means of WINDOW
    batches; empty where runs have no reward, curves of different lengths, or points that stand for
    several batches."""
    runs = [r for rs in methods.values() for r in rs]
    if any(r.get("curve_every", 1) != 1 for r in runs):
        return np.zeros(0), np.zeros(0)
    lines = [100 * smooth(curve_of(r, REWARD).tolist()) for r in runs]
    if len({len(line) for line in lines}) != 1 or not all(np.isfinite(x).all() for x in lines):
        return np.zeros(0), np.zeros(0)
    points = [estimate(column.tolist()) for column in np.array(lines).T]
    halves = np.nan_to_num([point.half for point in points])
    return np.array([point.mean for point in points]), halves


def conditions(sources: Sources, domain: str) -> list[tuple[str, int, Lead] | None]:
    """Of each row of `CONDITIONS`: (words, runs, lead over the baseline of the same problems and
    base); None where there are no such runs. Variants stand against the baseline of the table."""
    rows: list[tuple[str, int, Lead] | None] = []
    for words, source, name, metric in CONDITIONS:
        records = [r for r in sources.get(source, ()) if r["labels"]["domain"] == domain]
        if source == "ablations":
            base = [r for r in sources.get("table", ()) if r["labels"]["domain"] == domain]
            found = [r for r in records if r["labels"]["variant"] == name]
        else:
            base = records
            methods = methods_of(records, domain)
            found = methods.get(name or our_method(methods) or "", [])
        base = [r for r in base if r["labels"]["method"] == BASELINE]
        rows.append((words, len(found), lead(found, base, metric)) if found and base else None)
    return rows


def draw_conditions(sources: Sources, path: Path) -> bool:
    """The lead of ours over the baseline in points of pass@1, with its 95 % interval, a row for
    each condition and a panel for each domain; hollow where not paired. The number is that of the
    runs. Returns False, and writes nothing, where there is no lead to show."""
    found = {d: conditions(sources, d) for d in domains_of(shown(sources.get("table", ())))}
    rows = [n for n in range(len(CONDITIONS)) if any(every[n] for every in found.values())]
    if not rows:
        return False
    with picture(path, 3.2 + 2.9 * len(found), 0.6 + 0.24 * len(rows)) as figure:
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True).flat
        for axes, (domain, every) in zip(panels, found.items()):
            axes.axvline(0, color="0.3", lw=0.8)
            for place, row in enumerate(rows):
                known = every[row]
                if known is None:
                    continue
                _, runs, (gap, paired) = known
                ours = CONDITIONS[row][1] != "ablations" and not CONDITIONS[row][2]
                axes.errorbar(
                    *(100 * gap.mean, place, None, 100 * gap.half),
                    fmt="o",
                    color=colours()(0 if ours else 7),
                    mfc=None if paired else "white",
                    ms=4,
                    elinewidth=1,
                )
                axes.annotate(
                    f"{runs}",
                    (1.01, place),
                    xycoords=("axes fraction", "data"),
                    fontsize=7,
                    va="center",
                    color="0.4",
                )
            axes.set_title(TASKS.get(domain, domain), fontsize=9)
            axes.set_xlabel(f"ours - {BASELINE}, points of pass@1")
            axes.grid(alpha=0.3, axis="x")
            axes.margins(x=0.12)
        axes = figure.axes[0]
        axes.set_yticks(range(len(rows)), [CONDITIONS[row][0] for row in rows])
        axes.invert_yaxis()
    return True
