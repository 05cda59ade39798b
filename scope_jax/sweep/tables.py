"""The sections of the page of all results, in Markdown."""

import collections
import itertools
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from scope_jax.report.tables import markdown
from scope_jax.sweep.cells import interval, plain, signed
from scope_jax.sweep.figures import (
    ACCURACY,
    BASELINE,
    DIVERSITY,
    LEFT_OUT,
    OURS,
    Column,
    Groups,
    compare,
    domains_of,
    mean_cost,
    mean_value,
    methods_of,
    our_method,
    salvage_rate,
    value,
)
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import Paired, estimate, welch

UNCHANGED = "as it was"  # the variant that the ablations are compared with

_OVERVIEW = (
    *ACCURACY[1:],
    *(column for column in DIVERSITY if column.title != "paths per right sample"),
    ACCURACY[0],
)
_ABLATION = tuple(
    column
    for column in (*ACCURACY, *DIVERSITY)
    if column.title in ("pass@1", "OOD pass@1", "paths", "OOD paths")
)
_ZERO = ("advantage/zero_group_share", "advantage/zero_group_share_after")
_GENERATED = (
    "cost/rollout_tokens",
    "cost/tail_tokens",
    "cost/self_tokens",
    "cost/localiser_tokens",
)
TAUGHT = ("cost/teacher_tokens", "cost/demonstration_tokens")
_BOTH = ("eval/pass@1", "eval_ood/pass@1")


def method_tables(methods: Groups, lost: Mapping[str, int]) -> str:
    """What the methods of a domain reach, and what each one costs. `lost`: number of failed runs
    by method."""
    rows = [
        [
            f"**{name}**" if name == our_method(methods) else name,
            _seeds(len(records), lost.get(name, 0)),
            *_cells(records, _OVERVIEW),
        ]
        for name, records in methods.items()
    ]
    text = (
        "Mean over seeds ± half of the 95 % interval (Student's t); pass rates in percent; the"
        " reward is that of the policy's own rollouts, mean of all batches, and left out where some"
        " have none.\n\n"
        + markdown(["method", "seeds", *(column.title for column in _OVERVIEW)], rows)
        + "\n"
    )
    gave_up = [f"{name} ({count})" for name, count in lost.items() if name not in methods]
    if gave_up:
        text += f"\nNo finished run: {', '.join(gave_up)}.\n"
    return text + (
        "\nWhat it took, per rollout batch. Shares of groups without an advantage before and after"
        f" rescue or demonstrations; tokens that the policy generated, relative to {BASELINE};"
        " tokens that the teacher wrote; tokens that the PRM read; seconds are medians, two runs"
        f" at a time on two cores.\n\n{_costs(methods)}\n"
    )


def comparisons(methods: Groups, ours: str) -> str:
    """Ours against each rival, seed by seed."""
    text = (
        "Seed by seed on common seeds: difference ± half of its 95 % interval, p of a two-sided"
        " sign-flip test (not corrected for the number of comparisons; with 5 seeds it cannot be"
        f" below 0.06), and on how many seeds {ours} is ahead. The reward over the run is compared"
        " over the batches that both have: the first ten of sft_grpo are supervised.\n\n"
    )
    for columns in (ACCURACY, DIVERSITY):
        rows = []
        for name, records in methods.items():
            if name == ours:
                continue
            pairs = [compare(methods[ours], records, column.metric) for column in columns]
            cells = [
                f"{signed(pair.difference, column.factor)} (p {pair.p:.2g}, {pair.ahead} ahead)"
                if pair.difference.count
                else "-"
                for pair, column in zip(pairs, columns)
            ]
            rows.append([name, _common_seeds(pairs), *cells])
        head = [f"{ours} minus", "seeds", *(column.title for column in columns)]
        text += markdown(head, rows) + "\n\n"
    return text + _margins(methods, ours)


def ablations(records: Sequence[Record], table: Sequence[Record] = ()) -> str:
    """One row for each changed setting: its figures, and the difference to the unchanged method
    with as many seeds as there are: those of `table` with the same settings, where they are more.
    """
    parts = [
        "## One switch at a time\n",
        "`scope_first` with one setting changed; the difference is that to all runs of it as it"
        " was, not paired: Welch's interval and p. The salvage rate counts verified rows;"
        " continuations are the localiser's tokens in a batch.\n",
    ]
    for domain in domains_of(records):
        variants = collections.defaultdict(list)
        for record in records:
            if record["labels"]["domain"] == domain:
                variants[str(record["labels"]["variant"])].append(record)
        base = _same_settings(variants.pop(UNCHANGED, []), table)
        rows = []
        for name, group in {UNCHANGED: base, **variants}.items():
            if not group:
                continue
            tokens = mean_cost(group, ("cost/localiser_tokens",))
            differences = [""] * 4
            if name != UNCHANGED and base:
                found = [
                    welch([value(r, metric) for r in group], [value(r, metric) for r in base])
                    for metric in _BOTH
                ]
                differences = [cell for gap, p in found for cell in (signed(gap, 100), f"{p:.2g}")]
            cells = [*_cells(group, _ABLATION), plain(salvage_rate(group))]
            cells.append(f"{tokens:.0f}" if tokens else "-")
            rows.append([name, str(len(group)), *cells, *differences])
        head = [domain, "seeds", *(column.title for column in _ABLATION)]
        head += ["salvage", "continuations"]
        head += ["difference, pass@1", "p", "difference, OOD", "p, OOD"]
        parts.append(markdown(head, rows) + "\n")
    return "\n".join(parts)


def _same_settings(base: list[Record], table: Sequence[Record]) -> list[Record]:
    """The runs of our method in `table` that differ from those of `base` in the seed alone, where
    they are more; else `base`."""
    if not base:
        return base

    def settings(record: Record) -> dict:
        known = {n: v for n, v in record.get("settings", {}).items() if n != "seed"}
        return known | {"domain": record["labels"]["domain"]}

    more = [
        record
        for record in table
        if record["labels"]["method"] in OURS and settings(record) == settings(base[0])
    ]
    return more if len(more) > len(base) else base


def left_out(records: Sequence[Record], domain: str) -> str:
    """A line on each method whose records no table shows."""
    lines = []
    for name in LEFT_OUT:
        runs = [
            r for r in records if r["labels"] | {"method": name, "domain": domain} == r["labels"]
        ]
        prompts = {r.get("settings", {}).get("rollout.prompts") for r in runs} - {None}
        if not runs or len(prompts) != 1:
            continue
        kept = prompts.pop()
        drawn = kept * float(np.mean([r["mean"]["rollout/batches"] for r in runs]))
        telling = drawn * (1 - float(np.mean([r["mean"][_ZERO[0]] for r in runs])))
        used = kept * (1 - float(np.mean([r["mean"][_ZERO[1]] for r in runs])))
        lines.append(
            f"Not shown: `{name}` ({len(runs)} runs). It rolls out {drawn:.1f} prompts a batch, of"
            f" which {telling:.1f} have an advantage, and trains on {used:.1f} of them: the others"
            " are thrown away, and the batch of an update is half of everybody else's. That says"
            " little about dynamic sampling at equal rollouts. Its records stay with the others.\n"
        )
    return "\n".join(lines)


def confirmation(records: Sequence[Record], title: str, what: str) -> str:
    """A smaller table of methods, and pairs of them seed by seed: ours minus each other one, and
    each other one minus the baseline."""
    parts = [f"## {title}\n", f"{what} Below each table, pairs on common seeds (p as above).\n"]
    columns = (*ACCURACY, *DIVERSITY)
    titles = [column.title for column in columns]
    for domain in domains_of(records):
        methods = methods_of(records, domain)
        ours = our_method(methods)
        rows = [[name, str(len(group)), *_cells(group, columns)] for name, group in methods.items()]
        differences = []
        for one, other in itertools.permutations(methods, 2):
            if one == ours or (other == BASELINE and ours != one):
                pairs = [compare(methods[one], methods[other], column.metric) for column in columns]
                cells = [
                    f"{signed(pair.difference, column.factor)} (p {pair.p:.2g})"
                    if pair.difference.count
                    else "-"
                    for pair, column in zip(pairs, columns)
                ]
                differences.append([f"{one} - {other}", _common_seeds(pairs), *cells])
        parts.append(markdown([domain, "seeds", *titles], rows) + "\n")
        parts.append(markdown(["difference", "seeds", *titles], differences) + "\n")
    return "\n".join(parts)


def search(records: Sequence[Record], failed: Sequence[Record]) -> str:
    """What each method was tried with, best first."""
    groups = collections.defaultdict(list)
    for record in records:
        groups[_setting(record)].append(record)
    lost = collections.Counter(_setting(record) for record in failed)
    methods = list(dict.fromkeys(setting[0] for setting in (*groups, *lost)))

    def score(setting: tuple[str, float, str]) -> float:
        if setting not in groups:
            return -1.0
        return float(np.mean([mean_value(groups[setting], metric) for metric in _BOTH]))

    def order(setting: tuple[str, float, str]) -> tuple:
        # A setting that lost a seed comes after those that lost none: the mean of the seeds that
        # are left would flatter it.
        return methods.index(setting[0]), lost[setting], -score(setting), setting

    rows = []
    previous = ""
    for setting in sorted({*groups, *lost}, key=order):
        method, rate, switch = setting
        switches = ", ".join(f"`{name} = {value}`" for name, value in json.loads(switch).items())
        group = groups.get(setting, [])
        figures = ["-", "-", "-"]
        if group:
            shown = [*(mean_value(group, metric) for metric in _BOTH), score(setting)]
            figures = [f"{100 * x:.1f}" for x in shown]
            figures[-1] = f"**{figures[-1]}**" if method != previous else figures[-1]
        rows.append([method, f"{rate:g}", switches, _seeds(len(group), lost[setting]), *figures])
        previous = method
    head = ["method", "learning rate", "switch", "seeds", "pass@1", "OOD pass@1", "mean of both"]
    return (
        "## The search\n\nFour settings of each method, two seeds each, on another draw of"
        f" problems; the best is bold.\n\n{markdown(head, rows)}\n"
    )


def _costs(methods: Groups) -> str:
    """What a rollout batch of each method costs."""
    unit = mean_cost(methods[BASELINE], _GENERATED) if methods.get(BASELINE) else math.nan
    rows = []
    for name, records in methods.items():
        zero = [
            mean_cost(records, (key,)) if all(key in r["mean"] for r in records) else math.nan
            for key in _ZERO
        ]
        generated = mean_cost(records, _GENERATED) / unit if unit else math.nan
        updates = np.mean([r["updates"] / r["steps"] for r in records])
        seconds = np.median([r["seconds_per_step"] for r in records])
        cells = [*map(plain, zero), plain(salvage_rate(records)), f"{updates:.1f}"]
        cells += [plain(generated), f"{mean_cost(records, TAUGHT):.0f}"]
        cells += [f"{mean_cost(records, ('cost/prm_tokens',)):.0f}", f"{seconds:.2f}"]
        rows.append([name, *cells])
    head = ["method", "no advantage, before", "after", "salvage rate", "updates per batch"]
    head += ["policy's tokens", "teacher's tokens", "tokens scored", "seconds per batch"]
    return markdown(head, rows)


def _margins(methods: Groups, ours: str) -> str:
    """The margins that the paper reports, beside those found here."""
    rivals = [name for name in methods if name != ours]
    lines = []
    for title, metric, margin in (
        ("pass@1", "eval/pass@1", "+1.8"),
        ("OOD pass@1", "eval_ood/pass@1", "+3.2"),
    ):
        if not rivals:
            break
        best = max(rivals, key=lambda name: np.nanmean([value(r, metric) for r in methods[name]]))
        pair = compare(methods[ours], methods[best], metric)
        lines.append(
            f"* {title}: the best rival is {best}; {ours} {signed(pair.difference, 100)} points"
            f" (the paper's margin: {margin})."
        )
    if BASELINE in methods:
        shares = []
        for column in DIVERSITY:
            mine = mean_value(methods[ours], column.metric)
            other = mean_value(methods[BASELINE], column.metric)
            known = mine / (other or math.nan) > 0
            shares.append(
                f"{column.title} {100 * (mine / other - 1):+.1f} %"
                if known
                else f"{column.title} -"
            )
        lines.append(
            f"* diversity, {ours} against {BASELINE}: {', '.join(shares)} (the paper's diversity"
            " score: +13.5 %; how it is defined is not public)."
        )
    return "\n".join(lines) + "\n"


def _setting(record: Record) -> tuple[str, float, str]:
    labels = record["labels"]
    return labels["method"], labels["rate"], json.dumps(labels["switch"], sort_keys=True)


def _cells(records: Sequence[Record], columns: Sequence[Column]) -> list[str]:
    return [
        interval(estimate([value(r, column.metric) for r in records]), column.factor)
        for column in columns
    ]


def _seeds(count: int, lost: int) -> str:
    return f"{count} ({lost} failed)" if lost else str(count)


def _common_seeds(pairs: Sequence[Paired]) -> str:
    return str(max(pair.difference.count for pair in pairs))
