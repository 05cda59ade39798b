"""Tables of runs that were evaluated at several temperatures: accuracy, and diversity that accuracy
does not move."""

import math
import re
from collections.abc import Sequence

from scope_jax.report.by_problem import ByProblem, paired_over_problems
from scope_jax.report.tables import markdown
from scope_jax.sweep.cells import interval, signed
from scope_jax.sweep.figures import BASELINE, Groups, by_seed, compare, our_method, value
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import Estimate, estimate

SETS = {"eval": "in distribution", "eval_ood": "longer problems"}
RAREFIED = "diversity/rarefied_paths"


def temperatures_of(record: Record, name: str) -> dict[float, str]:
    """{temperature: beginning of its metrics} of an evaluation set ("eval", "eval_ood")."""
    found = {_main(record): name} if f"{name}/pass@1" in record["final"] else {}
    for metric in record["final"]:
        other = re.fullmatch(rf"{name}_t([0-9.e+-]+)/pass@1", metric)
        if other:
            found[float(other[1])] = metric.removesuffix("/pass@1")
    return dict(sorted(found.items(), reverse=True))


def measured(methods: Groups) -> dict[str, dict[float, str]]:
    """{evaluation set: {temperature: beginning of its metrics}} that some record has; empty where
    no record has more than one temperature nor rarefied paths. Raises ValueError for records of
    different main temperatures: figures of the same name would be of one and of another."""
    records = [record for group in methods.values() for record in group]
    found: dict[str, dict[float, str]] = {}
    for name in SETS:
        mains = {_main(record) for record in records if f"{name}/pass@1" in record["final"]}
        if len(mains) > 1:
            raise ValueError(
                f"{name}/: records with evaluation.temperature"
                f" {', '.join(f'{t:g}' for t in sorted(mains))} in one table; expected one, and the"
                " others in evaluation.more_temperatures"
            )
        every = [temperatures_of(record, name) for record in records]
        known = {t: prefix for each in every for t, prefix in each.items()}
        if len(known) > 1 or any(f"{name}/{RAREFIED}" in record["final"] for record in records):
            found[name] = dict(sorted(known.items(), reverse=True))
    return found


def _main(record: Record) -> float:
    """The temperature whose figures have no temperature in their names."""
    return float(record.get("settings", {}).get("evaluation.temperature", 1.0))


def by_temperature(methods: Groups) -> str:
    """A table for each evaluation set, and the differences of ours to each other method and of each
    to the baseline; empty where nothing of the kind was measured."""
    parts = []
    for name, prefixes in measured(methods).items():
        most = max(_most_samples(methods, prefix) for prefix in prefixes.values())
        columns = (
            ("pass@1", "pass@1", 100),
            (f"pass@{most}", f"pass@{most}", 100),
            ("rarefied paths", RAREFIED, 1),
            ("of problems", "diversity/rarefied_problems", 0),
            ("distinct-4 of right rows", "diversity/distinct_4_right", 1),
            ("distinct paths", "diversity/distinct_paths", 1),
        )
        rows = []
        for method, records in methods.items():
            for temperature, prefix in prefixes.items():
                cells = [
                    _cell([value(r, f"{prefix}/{metric}") for r in records], factor)
                    for _, metric, factor in columns
                ]
                rows.append([method, f"{temperature:g}", str(len(records)), *cells])
        head = [SETS[name], "T", "seeds", *(title for title, _, _ in columns)]
        parts.append(markdown(head, rows) + "\n")
        if differences := _differences(methods, prefixes):
            head = [SETS[name], "T", "seeds", "pass@1", "over problems", "rarefied paths, %"]
            parts.append(markdown([*head, "distinct-4 of right rows, %"], differences) + "\n")
    if not parts:
        return ""
    return (
        "The same problems at each temperature; T = 0 is greedy, one sample. Rarefied paths:"
        " expected number of distinct paths among four right samples, mean over the problems that"
        " have four; accuracy by itself does not move it, nor distinct-4 among four right samples."
        " ± is half of the 95 % interval over seeds; pairs are taken on common seeds (p as above)."
        " Over problems: the same difference of pass@1, ± half of its 95 % interval over problems,"
        " paired problem by problem.\n\n" + "\n".join(parts)
    )


def _differences(methods: Groups, prefixes: dict[float, str]) -> list[list[str]]:
    """Rows of ours - each other one, and of each other one - the baseline."""
    ours = our_method(methods)
    pairs = [(ours, other) for other in methods if ours and other != ours]
    pairs += [(one, BASELINE) for one in methods if one not in (ours, BASELINE)]
    rows = []
    for one, other in pairs:
        if one not in methods or other not in methods:
            continue
        for temperature, prefix in prefixes.items():
            gap = compare(methods[one], methods[other], f"{prefix}/pass@1")
            if not gap.difference.count:
                continue
            cells = [f"{signed(gap.difference, 100)} (p {gap.p:.2g}, {gap.ahead} ahead)"]
            cells.append(_over_problems(methods[one], methods[other], prefix))
            for metric in (RAREFIED, "diversity/distinct_4_right"):
                cells.append(_relative(methods[one], methods[other], f"{prefix}/{metric}"))
            seeds = str(gap.difference.count)
            rows.append([f"{one} - {other}", f"{temperature:g}", seeds, *cells])
    return rows


def _relative(ours: Sequence[Record], theirs: Sequence[Record], metric: str) -> str:
    """Difference on common seeds, over the mean of theirs."""
    pair = compare(ours, theirs, metric)
    common = by_seed(ours).keys() & by_seed(theirs).keys()
    base = estimate([value(r, metric) for r in theirs if r["labels"]["seed"] in common]).mean
    if not pair.difference.count or not base:
        return "-"
    share = Estimate(
        pair.difference.mean / base, pair.difference.half / base, pair.difference.count
    )
    return f"{signed(share, 100)} (p {pair.p:.2g})"


def _over_problems(ours: Sequence[Record], theirs: Sequence[Record], prefix: str) -> str:
    """± of a difference over problems; "-" where the records have no counts, or of other
    problems."""
    mine, others = by_seed(ours), by_seed(theirs)
    common = sorted(mine.keys() & others.keys())
    sides = [
        [
            ByProblem.from_json(counts)
            for s in common
            if (counts := side[s].get("by_problem", {}).get(prefix)) is not None
        ]
        for side in (mine, others)
    ]
    draws = {one.problems for side in sides for one in side}
    if len(draws) != 1 or not all(len(side) == len(common) for side in sides):
        return "-"
    mean, error = paired_over_problems(*sides)
    return f"{100 * mean:+.1f} ± {196 * error:.1f}" if math.isfinite(error) else "-"


def _cell(values: Sequence[float], factor: int) -> str:
    e = estimate(values)
    if not factor:  # a number of problems
        return f"{e.mean:.0f}" if e.count else "-"
    return interval(e, factor)


def _most_samples(methods: Groups, prefix: str) -> int:
    """The greatest k of pass@k in an evaluation."""
    sizes = [
        int(size[1])
        for group in methods.values()
        for record in group
        for name in record["final"]
        if (size := re.fullmatch(rf"{re.escape(prefix)}/pass@(\d+)", name))
    ]
    return max(sizes, default=1)
