"""The generated part of the short page of results: one table of all methods on all tasks, three
pictures, and what evaluations at several temperatures say where there are any."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scope_jax.report.tables import markdown
from scope_jax.sweep.axes import draw_axes
from scope_jax.sweep.cells import interval, plain, signed
from scope_jax.sweep.figures import (
    BASELINE,
    OURS,
    SCOPE,
    TASKS,
    Groups,
    domains_of,
    lead,
    mean_cost,
    mean_value,
    methods_of,
    shown,
    value,
)
from scope_jax.sweep.frontier import draw_frontiers
from scope_jax.sweep.hypothesis import RARE, hypothesis
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import Estimate, estimate
from scope_jax.sweep.summary_figures import (
    LONGER,
    PASS,
    Sources,
    draw_accuracy_and_paths,
    draw_budgets,
    draw_conditions,
)
from scope_jax.sweep.tables import TAUGHT
from scope_jax.sweep.temperatures import RAREFIED, measured
from scope_jax.sweep.training_tables import batch_costs

PER_RIGHT = "per_right:eval/diversity/distinct_paths"


def summary(sources: Sources, images: Path) -> str:
    """The generated part, in Markdown; `sources`: the records by the names of the parts of the page
    (`table`, `confirmation`, ...). Writes the pictures into `images`."""
    table = shown(sources.get("table", ()))
    domains = {domain: methods_of(table, domain) for domain in domains_of(table)}
    parts = [
        _table(domains, shown(sources.get("confirmation", ()))),
        # Where there is one against paths that accuracy does not move, it is shown below instead.
        *([] if sources.get("temperatures") else paths_picture(domains, images)),
        *_budgets(domains, shown(sources.get("hypothesis", ())), images),
    ]
    conditions = sources.get("conditions", ()), sources.get("temperatures", ())
    if draw_axes(*conditions, images / "results_axes.svg"):
        parts += [
            f"![Lead over {BASELINE} against conditions](images/results_axes.svg)\n",
            f"*Lead over {BASELINE} at temperature 0.6 on signed terms, one condition changed at a"
            " time, with 95 % intervals over seeds. Squares: the condition as it is.*\n",
        ]
    else:
        parts += conditions_picture(sources, images)
    if tried := hypothesis(shown(sources.get("hypothesis", ()))):
        parts += ["### SCOPE+ at equal tokens\n", tried]
    warm = shown(sources.get("temperatures", ())) or table
    # One table of the kind is enough for a short page; the other page has both.
    return "\n".join([*parts, *_temperatures(warm, images, with_table=not tried)])


def _budgets(domains: Mapping[str, Groups], tried: Sequence[Record], images: Path) -> list[str]:
    """Reward against what was spent: where reward is rare if that was tried, else on all tasks."""
    rare = {domain: methods_of(tried, domain) for domain in RARE}
    rare = {domain: methods for domain, methods in rare.items() if BASELINE in methods}
    if not rare:
        return budgets_picture(domains, images)
    drawn = (SCOPE, "scope_plus", BASELINE, "scope_off", "dapo_tokens")
    more = " Where reward is rare; seconds of two cores that were busy with other work."
    return budgets_picture(rare, images, "results_rare", drawn, more)


def budgets_picture(
    domains: Mapping[str, Groups],
    images: Path,
    name: str = "results_budgets",
    methods: Sequence[str] = (),
    more: str = "",
) -> list[str]:
    """Reward against what was spent, with its caption, to which `more` is added; `methods` as
    `draw_budgets` takes them."""
    draw_budgets(domains, images / f"{name}.svg", methods)
    return [
        f"![Reward against tokens and seconds](images/{name}.svg)\n",
        f"*Reward of the policy's rollouts, at temperature 1, against what was spent; the dotted"
        f" line is {BASELINE}'s whole run. Means of five batches, 95 % bands over seeds.{more}*\n",
    ]


def paths_picture(domains: Mapping[str, Groups], images: Path) -> list[str]:
    """Accuracy against right paths of all methods, with its caption."""
    draw_accuracy_and_paths(domains, images / "results_paths.svg")
    return [
        "![Accuracy against right paths](images/results_paths.svg)\n",
        "*Accuracy against distinct right paths of a problem (8 samples at the evaluation's"
        f" temperature), with 95 % intervals. Small dots: single seeds of {BASELINE}, and the line"
        " through them, along which paths follow from accuracy alone.*\n",
    ]


def conditions_picture(sources: Sources, images: Path) -> list[str]:
    """Leads under conditions that were changed for other reasons, with its caption; nothing where
    there are none."""
    if not draw_conditions(sources, images / "results_conditions.svg"):
        return []
    return [
        f"![Lead over {BASELINE} by condition](images/results_conditions.svg)\n",
        f"*Lead over {BASELINE} in points of pass@1 under changed conditions, with 95 % intervals"
        " and the number of runs. Below the first rows: settings of the table with one change."
        f" Filled: seed by seed. Hollow: few runs against all of {BASELINE}'s.*\n",
    ]


def _table(domains: Mapping[str, Groups], confirmed: Sequence[Record]) -> str:
    """A row for each method, ours and the baseline first."""
    names = list(dict.fromkeys(name for methods in domains.values() for name in methods))
    names.sort(key=lambda name: (name not in OURS, name != BASELINE))
    rows = []
    again = {domain: methods_of(confirmed, domain) for domain in domains}
    note = ""
    if SCOPE not in names and all(SCOPE in m and BASELINE in m for m in again.values()):
        rows.append(_row(SCOPE, again))
        levels = [f"{100 * mean_value(m[BASELINE], PASS):.1f}" for m in again.values()]
        note = (
            f" `{SCOPE}` ran on seeds and problems of its own, beside a {BASELINE} that has"
            f" {' and '.join(levels)} there: its differences may be compared, its levels not."
        )
    rows += [_row(name, domains) for name in names]
    head = ["method", "seeds"]
    for domain in domains:
        task = TASKS.get(domain, domain)
        head += [f"{task}: pass@1", f"over {BASELINE}", "the same, longer", "paths per right, %"]
    head += ["tokens", "seconds", "teacher's tokens"]
    return (
        f"For each task: pass@1 in percent; its difference to {BASELINE} in points, in distribution"
        f" and on longer problems; distinct right paths per right sample against {BASELINE}'s, in"
        " percent. ± is half of the 95 % interval over seeds; differences are taken seed by seed"
        f" where {BASELINE}'s runs all have a partner, else between all runs of both (Welch)."
        f" Tokens of the policy and seconds of a batch: multiples of {BASELINE}'s; tokens that the"
        f" teacher wrote in a batch; all three by task.{note}\n\n{markdown(head, rows)}\n"
    )


def _row(name: str, domains: Mapping[str, Groups]) -> list[str]:
    """A method's cells. Of the baseline, which has no lead, levels alone."""
    runs = [str(len(methods.get(name, []))) for methods in domains.values()]
    cells: list[str] = []
    price: list[list[str]] = [[], [], []]
    for methods in domains.values():
        records, base = methods.get(name, []), methods.get(BASELINE, [])
        if not records:
            cells += ["-"] * 4
            continue
        cells.append(interval(estimate([value(r, PASS) for r in records]), 100))
        if name == BASELINE or not base:
            cells += ["", "", ""]
        else:
            cells += [signed(lead(records, base, m).difference, 100) for m in (PASS, LONGER)]
            cells.append(relative(records, base, PER_RIGHT))
        tokens, seconds = batch_costs({name: records, **({BASELINE: base} if base else {})})
        for column, cost in zip(price, (tokens, seconds)):
            unit = cost.get(BASELINE, 0.0)
            column.append(plain(cost[name] / unit) if unit else "-")
        price[2].append(f"{mean_cost(records, TAUGHT):.0f}")
    shown_name = f"**{name}**" if name in OURS else name
    return [shown_name, "/".join(dict.fromkeys(runs)), *cells, *map(", ".join, price)]


def relative(records: Sequence[Record], base: Sequence[Record], metric: str) -> str:
    """The lead over the baseline's mean, in percent."""
    gap, of = lead(records, base, metric).difference, mean_value(base, metric)
    if not gap.count or not of:
        return "-"
    return signed(Estimate(gap.mean / of, gap.half / of, gap.count), 100)


def _temperatures(records: Sequence[Record], images: Path, with_table: bool) -> list[str]:
    """A table of the leads at each temperature, if asked for, and the curves over temperatures;
    nothing where no records are."""
    domains = {domain: methods_of(records, domain) for domain in domains_of(records)}
    domains = {d: methods for d, methods in domains.items() if measured(methods)}
    if not domains:
        return []
    names = list(dict.fromkeys(name for methods in domains.values() for name in methods))
    names.sort(key=lambda name: (name not in OURS, name != BASELINE))
    head = ["method", "seeds"]
    columns: list[tuple[Groups, str, float]] = []
    for domain, methods in domains.items():
        sets, task = measured(methods), TASKS.get(domain, domain)
        for t, prefix in sets.get("eval", {}).items():
            head.append(
                (f"{task}: " if not columns or columns[-1][0] is not methods else "")
                + (f"T = {t:g}" if t else "greedy")
            )
            columns.append((methods, f"{prefix}/pass@1", 100))
        warm = [t for t in sets.get("eval", {}) if t > 0]
        if warm and min(warm) in sets.get("eval_ood", {}):
            head.append(f"longer, T = {min(warm):g}")
            columns.append((methods, f"{sets['eval_ood'][min(warm)]}/pass@1", 100))
        if warm:
            head.append(f"rarefied paths, T = {min(warm):g}, %")
            columns.append((methods, f"{sets['eval'][min(warm)]}/{RAREFIED}", 1))
    rows = []
    for name in names:
        runs = dict.fromkeys(str(len(m.get(name, []))) for m in domains.values())
        shown_name = f"**{name}**" if name in OURS else name
        rows.append([shown_name, "/".join(runs), *(_lead_cell(name, *c) for c in columns)])
    parts = []
    if with_table:
        parts.append("### At several temperatures\n")
        parts.append(
            f"Pass@1 at each temperature (0: greedy): of {BASELINE} in percent, of the others the"
            " difference to it in points. Rarefied paths, the expected number of distinct paths"
            f" among four right samples, which accuracy does not move: of {BASELINE} the number, of"
            " the others the difference in percent.\n\n" + markdown(head, rows) + "\n"
        )
    if draw_frontiers(domains, images / "results_temperatures.svg"):
        parts += [
            "![Accuracy against rarefied paths](images/results_temperatures.svg)\n",
            "*A curve over temperatures for each method: accuracy against paths among four right"
            " samples. Up and to the right is better.*\n",
        ]
    return parts


def _lead_cell(name: str, methods: Groups, metric: str, factor: float) -> str:
    """The baseline's level, or another method's lead over it (factor 1: in percent of it)."""
    records, base = methods.get(name, []), methods.get(BASELINE, [])
    if not records or not base:
        return "-"
    if name == BASELINE:
        return interval(estimate([value(r, metric) for r in records]), factor)
    if factor == 1:
        return relative(records, base, metric)
    return signed(lead(records, base, metric).difference, factor)
