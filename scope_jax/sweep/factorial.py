"""What each of several switches does that were turned on and off together, by least squares over
all runs."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from scope_jax.report.tables import markdown
from scope_jax.sweep.cells import signed
from scope_jax.sweep.figures import TASKS, Column, domains_of, mean_cost, value
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import Estimate, estimate
from scope_jax.sweep.training_tables import WRITTEN

Effects = dict[tuple[str, ...], Estimate]  # by switch, and by pair of switches

_POINTS = (
    Column("pass@1, T = 0.6", "eval_t0.6/pass@1", 100),
    Column("longer problems", "eval_ood_t0.6/pass@1", 100),
    Column("pass@1, T = 1", "eval/pass@1", 100),
)


class _Share(NamedTuple):
    """A column of which the share of its mean is shown."""

    title: str
    metric: str


_SHARES = (
    _Share("rarefied paths, T = 0.6", "eval_t0.6/diversity/rarefied_paths"),
    _Share("longer problems", "eval_ood_t0.6/diversity/rarefied_paths"),
    _Share("distinct-4 of right rows", "eval_t0.6/diversity/distinct_4_right"),
)


def effects(
    switches: Sequence[Mapping[str, bool]], seeds: Sequence[int], values: Sequence[float]
) -> Effects:
    """The mean of runs with a switch on less the mean of those with it off, all else alike, with
    its 95 % interval; and, for each pair of switches, half of what one changes in the effect of the
    other. (The usual main effects and interactions of a two-level design, Box, Hunter and Hunter,
    "Statistics for Experimenters", chapter 5.)

    One switch setting, seed and value per run. Every seed has a level of its own. Runs without a
    value (NaN) are left out. Pairs are not there where the runs cannot tell their effects from
    others, or would have nothing left to estimate the noise by: what pairs do then counts as noise.
    No effect is there where those of single switches cannot be told apart. `half` is NaN where no
    run is left for the noise even so; `count` is the number of runs.
    """
    kept = [n for n, v in enumerate(values) if not math.isnan(v)]
    if not kept:
        return {}
    names = list(switches[kept[0]])
    on = np.array([[switches[n][name] for name in names] for n in kept], np.float64) - 0.5
    levels = sorted({seeds[n] for n in kept})
    blocks = np.array([[seeds[n] == level for level in levels] for n in kept], np.float64)
    y = np.array([values[n] for n in kept], np.float64)
    singles = [(name,) for name in names]
    pairs = list(itertools.combinations(names, 2))
    products = [2 * on[:, names.index(a)] * on[:, names.index(b)] for a, b in pairs]
    for terms, columns in (([*singles, *pairs], [*on.T, *products]), (singles, [*on.T])):
        design = np.column_stack([*columns, blocks])
        apart = np.linalg.matrix_rank(design) == design.shape[1]
        if apart and (len(y) > design.shape[1] or terms is singles):
            return _fitted(terms, design, y)
    return {}


def _fitted(terms: Sequence[tuple[str, ...]], design: np.ndarray, y: np.ndarray) -> Effects:
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ y
    freedom = len(y) - design.shape[1]
    halves = np.full(len(found), math.nan)
    if freedom > 0:
        noise = float(np.sum((y - design @ found) ** 2)) / freedom
        halves = stats.t.ppf(0.975, freedom) * np.sqrt(noise * np.diag(inverse))
    return {
        term: Estimate(float(mean), float(half), len(y))
        for term, mean, half in zip(terms, found, halves)
    }


def factorial(records: Sequence[Record]) -> str:
    """The part of a page on runs with the label `switches`: effects of switches and of pairs of
    them, and every combination by itself."""
    parts = [
        "## Switches on and off together\n",
        "SCOPE with switches on and off together. Mean of the runs with a switch on less the mean"
        " of those with it off, over all combinations and seeds that were run, ± half of the 95 %"
        " interval (least squares, a level for each seed, effects of pairs of switches beside those"
        " of single ones where there are several seeds, and else as noise). Accuracy in points;"
        " paths among four right samples, distinct-4, tokens and seconds in percent of their mean."
        " Every combination by itself is in the last table of a task.\n",
    ]
    for domain in domains_of(records):
        group = [r for r in records if r["labels"]["domain"] == domain]
        parts.append(_effects_table(domain, group))
        parts.append(_pairs_table(group))
        parts.append(_combinations_table(domain, group))
    return "\n".join(part for part in parts if part)


def _effects_of(records: Sequence[Record], values: Sequence[float]) -> Effects:
    labels = [record["labels"] for record in records]
    return effects([one["switches"] for one in labels], [one["seed"] for one in labels], values)


def _measured(records: Sequence[Record]) -> list[tuple[str, Effects, float]]:
    """(title, effects, what they are multiplied by to be shown) of each column."""
    columns = []
    for column in _POINTS:
        values = [value(record, column.metric) for record in records]
        columns.append((column.title, _effects_of(records, values), column.factor))
    rates = [
        *((share.title, [value(r, share.metric) for r in records]) for share in _SHARES),
        ("policy's tokens", [mean_cost([r], WRITTEN) for r in records]),
        ("teacher's tokens", [mean_cost([r], ("cost/teacher_tokens",)) for r in records]),
        ("seconds", [float(r["seconds_per_step"]) for r in records]),
    ]
    for title, values in rates:
        mean = estimate(values).mean
        columns.append((title, _effects_of(records, values), 100 / mean if mean else math.nan))
    return columns


def _effects_table(domain: str, records: Sequence[Record]) -> str:
    columns = _measured(records)
    names = list(records[0]["labels"]["switches"])
    rows = [
        [f"`{name}`", *(_cell(found, (name,), factor) for _, found, factor in columns)]
        for name in names
    ]
    head = [TASKS.get(domain, domain), *(title for title, _, _ in columns)]
    return markdown(head, rows) + "\n"


def _pairs_table(records: Sequence[Record]) -> str:
    """Pairs of switches whose effect on accuracy or paths is resolved."""
    columns = [one for one in _measured(records) if one[0] not in ("seconds",)]
    pairs = list(itertools.combinations(records[0]["labels"]["switches"], 2))
    if not any(pair in found for pair in pairs for _, found, _ in columns):
        return ""
    rows = []
    for pair in pairs:
        cells = [
            _cell(found, pair, factor) if _resolved(found, pair) else ""
            for _, found, factor in columns
        ]
        if any(cells[: len(_POINTS) + len(_SHARES)]):
            rows.append([" and ".join(f"`{name}`" for name in pair), *cells])
    tested = len(pairs) * (len(_POINTS) + len(_SHARES))
    text = (
        f"Pairs whose effect is resolved, of {tested} that were looked at in accuracy, paths and"
        f" distinct-4 ({0.05 * tested:.0f} would be by chance)"
    )
    if not rows:
        return f"{text}: none.\n"
    head = ["both on or both off, less one of them", *(title for title, _, _ in columns)]
    return f"{text}:\n\n{markdown(head, rows)}\n"


def _combinations_table(domain: str, records: Sequence[Record]) -> str:
    combinations: dict[str, list[Record]] = {}
    for record in records:
        on = [f"`{name}`" for name, is_on in record["labels"]["switches"].items() if is_on]
        combinations.setdefault(", ".join(on) or "none", []).append(record)
    unit = mean_cost(combinations.get("none", records), WRITTEN)

    def accuracy(name: str) -> float:
        return estimate([value(r, _POINTS[0].metric) for r in combinations[name]]).mean

    rows = []
    for name in sorted(combinations, key=accuracy, reverse=True):
        group = combinations[name]
        points = [estimate([value(r, c.metric) for r in group]).mean for c in _POINTS]
        shares = [estimate([value(r, s.metric) for r in group]).mean for s in _SHARES]
        cells = [*(f"{100 * x:.1f}" for x in points), *(f"{x:.3f}" for x in shares)]
        cells += [f"{mean_cost(group, WRITTEN) / unit:.2f}" if unit else "-"]
        cells += [f"{mean_cost(group, ('cost/teacher_tokens',)):.0f}"]
        rows.append([name, str(len(group)), *cells])
    titles = [column.title for column in (*_POINTS, *_SHARES)]
    head = [f"{TASKS.get(domain, domain)}: switches on", "seeds", *titles]
    head += ["policy's tokens, none = 1", "teacher's tokens of a batch"]
    return markdown(head, rows) + "\n"


def _resolved(found: Effects, term: tuple[str, ...]) -> bool:
    return term in found and abs(found[term].mean) > found[term].half


def _cell(found: Effects, term: tuple[str, ...], factor: float) -> str:
    if term not in found or math.isnan(factor):
        return "-"
    one = found[term]
    percent = Estimate(one.mean * factor / 100, one.half * factor / 100, one.count)
    return signed(percent, 100)
