"""Figures of records: single values, means over runs, and comparisons seed by seed."""

import collections
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scope_jax.configuration.renamed import upgraded
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import Estimate, Paired, estimate, paired, welch

# The paper's method, and names of ours, the one that is compared first; `scope_first` is SCOPE with
# the settings of the first tables.
SCOPE = "scope"
OURS = (
    *("scope_plus", SCOPE, "scope_first"),
    *("scope_untaught", "scope_plus_untaught", "scope_pair", "scope_half"),
)
BASELINE = "grpo"

# Methods whose records are kept and that no table shows: how they were run says nothing of them.
LEFT_OUT = ("dapo_equal",)

# What the tasks are called on a page; others by the name of their domain.
TASKS = {
    "arithmetic": "signed terms",
    "arithmetic_long": "long signed terms, 90 batches",
    "arithmetic_long_early": "long signed terms, 45 batches",
    "arithmetic_long_again": "second base, 90 batches",
    "arithmetic_long_early_again": "second base, 45 batches",
    "arithmetic_long_late_again": "second base, 180 batches",
    "countdown": "Countdown",
    "countdown_six": "Countdown with six numbers",
}

Groups = dict[str, list[Record]]  # name of a method or variant -> its records


class Column(NamedTuple):
    """A column of a table."""

    title: str
    metric: str  # as `value` takes it
    factor: float  # 100: shown in percent


ACCURACY = (
    Column("reward over the run", "curve:reward/mean", 100),
    Column("pass@1", "eval/pass@1", 100),
    Column("pass@8", "eval/pass@8", 100),
    Column("OOD pass@1", "eval_ood/pass@1", 100),
    Column("OOD pass@8", "eval_ood/pass@8", 100),
)
DIVERSITY = (
    Column("paths", "eval/diversity/distinct_paths", 1),
    Column("OOD paths", "eval_ood/diversity/distinct_paths", 1),
    # Only right samples have paths, so paths rise with accuracy; per right sample they do not.
    Column("paths per right sample", "per_right:eval/diversity/distinct_paths", 1),
    Column("distinct-4", "eval/diversity/distinct_4", 1),
    Column("1 - self-BLEU", "eval/diversity/one_minus_self_bleu", 1),
    Column("answer entropy", "eval/diversity/answer_entropy", 1),
)


def value(record: Record, metric: str) -> float:
    """A figure of the last evaluation; with "curve:" before its name the mean over the run; with
    "per_right:" the figure for each right sample of a problem. NaN where the run has none, or has
    a curve with holes: the mean of what is left would be that of another part of the run."""
    if metric.startswith("curve:"):
        points = curve_of(record, metric.removeprefix("curve:"))
        return float(np.mean(points)) if points.size else math.nan
    if metric.startswith("per_right:"):
        name = metric.removeprefix("per_right:")
        right = _right_samples(record, name.split("/")[0])
        return value(record, name) / right if right else math.nan
    figure = record["final"].get(metric)
    return math.nan if figure is None else float(figure)


def curve_of(record: Record, name: str) -> np.ndarray:
    """A curve of a run, NaN in its holes; empty where it has none."""
    points = record.get("curve", {}).get(name, ())
    return np.array([math.nan if point is None else point for point in points], np.float64)


def mean_value(records: Sequence[Record], metric: str) -> float:
    """Mean of a figure over runs."""
    return estimate([value(record, metric) for record in records]).mean


def mean_cost(records: Sequence[Record], names: Sequence[str]) -> float:
    """Mean over runs of a sum of step means; a metric that a run lacks counts 0."""
    return float(np.mean([sum(r["mean"].get(name) or 0.0 for name in names) for r in records]))


def salvage_rate(records: Sequence[Record]) -> float:
    """Rows saved of rows tried, over all steps; NaN where nothing is rescued, or nothing
    verified."""
    settings = [upgraded(r.get("settings", {})) for r in records]
    if any(known.get("method.accept") == "unverified" for known in settings):
        return math.nan
    tried = sum(r["mean"].get("scope/selected", 0.0) for r in records)
    return sum(r["mean"].get("scope/accepted", 0.0) for r in records) / tried if tried else math.nan


def compare(ours: Sequence[Record], theirs: Sequence[Record], metric: str) -> Paired:
    """ours - theirs on the seeds that both have; means over the run ("curve:") are taken over the
    batches that both have."""
    mine, others = by_seed(ours), by_seed(theirs)
    seeds = sorted(mine.keys() & others.keys())
    if metric.startswith("curve:"):
        name = metric.removeprefix("curve:")
        pairs = [_common_means(mine[s], others[s], name) for s in seeds]
        return paired([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return paired(
        [value(mine[s], metric) for s in seeds], [value(others[s], metric) for s in seeds]
    )


class Lead(NamedTuple):
    """A method minus the baseline."""

    difference: Estimate
    paired: bool  # seed by seed; else all runs of one against all of the other


def lead(records: Sequence[Record], base: Sequence[Record], metric: str) -> Lead:
    """records - base: seed by seed where every run of `base` has its partner, as in sweeps of equal
    seeds; else, where few seeds stand against many, all runs against all (Welch's interval)."""
    if not by_seed(base).keys() - by_seed(records).keys():
        return Lead(compare(records, base, metric).difference, True)
    sides = [[value(record, metric) for record in side] for side in (records, base)]
    return Lead(welch(*sides)[0], False)


def domains_of(records: Sequence[Record]) -> list[str]:
    """The domains in the order of the records."""
    return list(dict.fromkeys(record["labels"]["domain"] for record in records))


def methods_of(records: Sequence[Record], domain: str) -> Groups:
    """The records of a domain by method: ours first, then by pass@1 in and out of distribution
    together."""
    groups: Groups = collections.defaultdict(list)
    for record in records:
        if record["labels"]["domain"] == domain:
            groups[str(record["labels"]["method"])].append(record)

    def score(name: str) -> float:
        both = [value(r, "eval/pass@1") + value(r, "eval_ood/pass@1") for r in groups[name]]
        return float(np.nanmean(both))

    ours = our_method(groups)
    return {
        name: groups[name] for name in sorted(groups, key=lambda name: (name != ours, -score(name)))
    }


def our_method(methods: Groups) -> str | None:
    """The name of ours among the methods; None where it is not there."""
    return next((name for name in OURS if name in methods), None)


def by_seed(records: Sequence[Record]) -> dict[int, Record]:
    return {record["labels"]["seed"]: record for record in records}


def _common_means(one: Record, other: Record, name: str) -> tuple[float, float]:
    """Means of a curve of two runs over the points that both have; NaN where there is none, or the
    curves are not of the same length."""
    pair = curve_of(one, name), curve_of(other, name)
    every = [record.get("curve_every", 1) for record in (one, other)]
    if pair[0].shape != pair[1].shape or every[0] != every[1]:
        return math.nan, math.nan
    common = ~np.isnan(pair[0] - pair[1])
    if not common.any():
        return math.nan, math.nan
    return float(pair[0][common].mean()), float(pair[1][common].mean())


def shown(records: Sequence[Record]) -> list[Record]:
    """Records of methods that tables show."""
    return [record for record in records if record["labels"]["method"] not in LEFT_OUT]


def _right_samples(record: Record, prefix: str) -> float:
    """Mean number of right samples of a problem in an evaluation."""
    sizes = [re.fullmatch(rf"{prefix}/pass@(\d+)", name) for name in record["final"]]
    samples = max((int(size[1]) for size in sizes if size), default=0)
    return samples * value(record, f"{prefix}/pass@1")
