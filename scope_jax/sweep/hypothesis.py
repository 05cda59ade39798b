"""The tables of a hypothesis that was written down before its runs: SCOPE+ against rivals that
spend as many tokens, by the three margins that SCOPE's paper claims."""

from collections.abc import Sequence

from scope_jax.report.tables import markdown
from scope_jax.sweep.cells import interval, plain, signed
from scope_jax.sweep.figures import (
    BASELINE,
    OURS,
    SCOPE,
    TASKS,
    Groups,
    compare,
    domains_of,
    mean_value,
    methods_of,
    value,
)
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import Estimate, estimate
from scope_jax.sweep.temperatures import RAREFIED

TRIED = OURS[0]
# The hypothesis is over the best of these.
RIVALS = (BASELINE, "scope_off", "dapo_tokens", "sft_grpo_few")
# (title, metric, the paper's margin): of accuracy over the best rival in points, of paths over the
# baseline in percent. The runs' one temperature is 0.6.
MARGINS = (
    ("in distribution", "eval/pass@1", 1.8),
    ("longer problems", "eval_ood/pass@1", 3.2),
)
# From a seed on the runs have another base, and Countdown other problems: a table of their own.
LATER = (
    "arithmetic_long_again",
    "arithmetic_long_early_again",
    "arithmetic_long_late_again",
    "countdown_six",
)
# Where reward is rare, on the first base and on the second.
RARE = ("arithmetic_long", "arithmetic_long_again")
# Added to see whether SCOPE only comes sooner; the hypothesis does not speak of it.
BESIDE = "arithmetic_long_late_again"
HALF = "scope_half"
BREADTH = (f"eval/{RAREFIED}", 13.5)
DISTINCT = "eval/diversity/distinct_4_right"
WIDE = (BREADTH[0], DISTINCT)
# Of a record's tokens, those that the policy and that the teacher wrote.
POLICY = ("rollouts", "tails", "own_tries", "localiser")
TEACHER = ("teacher", "demonstrations")


def hypothesis(records: Sequence[Record]) -> str:
    """The tables of accuracy, a row for each method, in Markdown. Empty where no task has runs of
    ours and of the baseline."""
    tables = [_accuracies(domains) for domains in _parts(records)]
    if not tables:
        return ""
    return (
        f"Pass@1 at temperature 0.6, of the task and of longer problems: of {BASELINE} in percent,"
        " of the others the difference to it in points, on common seeds. Tokens of the whole run,"
        f" by task: of the policy in multiples of {BASELINE}'s, of the teacher in thousands."
        f" Batches are {BASELINE}'s; the others have those that come to as many tokens.\n\n"
        + "\n".join(tables)
    )


def _accuracies(domains: dict[str, Groups]) -> str:
    head = ["method", "seeds", *(f"{TASKS.get(d, d)}: pass@1 / longer" for d in domains)]
    head += ["policy's tokens", "teacher's tokens"]
    rows = []
    for name in _names(domains):
        runs = [str(len(methods.get(name, []))) for methods in domains.values()]
        row = [_title(name), "/".join(runs if len(set(runs)) > 1 else runs[:1])]
        row += [_accuracy(name, methods) for methods in domains.values()]
        row += map(", ".join, zip(*(_costs(name, methods) for methods in domains.values())))
        rows.append(row)
    return markdown(head, rows) + "\n"


def breadth(records: Sequence[Record]) -> str:
    """The tables of breadth beside them."""
    tables = []
    for domains in _parts(records):
        head = ["method", *(f"{TASKS.get(d, d)}: paths / distinct-4" for d in domains)]
        rows = [
            [_title(name), *(_breadth(name, methods) for methods in domains.values())]
            for name in _names(domains)
        ]
        tables.append(markdown(head, rows) + "\n")
    if not tables:
        return ""
    return (
        "Paths among four right samples and distinct-4 of right rows, which accuracy does not move:"
        f" of {BASELINE} the number, of the others the difference in percent.\n\n"
        + "\n".join(tables)
    )


def verdicts(records: Sequence[Record]) -> str:
    """What became of the hypothesis on each task that has SCOPE+, a line each."""
    tasks = {d: m for d, m in _tasks(records).items() if TRIED in m and d != BESIDE}
    lines = [f"* {TASKS.get(d, d)}: {_verdict(methods)}" for d, methods in tasks.items()]
    return "\n".join(lines) + "\n" if lines else ""


def _tasks(records: Sequence[Record]) -> dict[str, Groups]:
    """The methods of each task that has one of ours and the baseline."""
    known = list(TASKS)
    names = sorted(domains_of(records), key=lambda d: known.index(d) if d in known else len(known))
    domains = {domain: methods_of(records, domain) for domain in names}
    return {
        d: methods
        for d, methods in domains.items()
        if BASELINE in methods and any(name in methods for name in OURS)
    }


def _parts(records: Sequence[Record]) -> list[dict[str, Groups]]:
    """The tasks of each table."""
    tasks = _tasks(records)
    parts = [{d: m for d, m in tasks.items() if (d in LATER) == later} for later in (False, True)]
    return [part for part in parts if part]


def _names(domains: dict[str, Groups]) -> list[str]:
    """The methods, ours and the baseline first."""
    names = list(dict.fromkeys(name for methods in domains.values() for name in methods))
    return sorted(names, key=lambda name: (name not in OURS, name != BASELINE))


def _title(name: str) -> str:
    return f"**{name}**" if name in OURS else name


def _accuracy(name: str, methods: Groups) -> str:
    """A method's cell for one task."""
    records, base = methods.get(name, []), methods[BASELINE]
    if not records:
        return "-"
    if name == BASELINE:
        cells = [interval(_level(records, metric), 100) for _, metric, _ in MARGINS]
    else:
        cells = [signed(compare(records, base, m).difference, 100) for _, m, _ in MARGINS]
    return " / ".join(cells)


def _breadth(name: str, methods: Groups) -> str:
    records, base = methods.get(name, []), methods[BASELINE]
    if not records:
        return "-"
    if name == BASELINE:
        return " / ".join(interval(_level(records, metric), 1) for metric in WIDE)
    return " / ".join(signed(_share(records, base, metric), 100) for metric in WIDE)


def _costs(name: str, methods: Groups) -> list[str]:
    """Tokens of a method's run on one task: of the policy, of the teacher."""
    records, base = methods.get(name, []), methods[BASELINE]
    if not records:
        return ["-"] * 2
    policy, teacher = (_tokens(records, names) for names in (POLICY, TEACHER))
    return [plain(policy / _tokens(base, POLICY)), f"{teacher / 1000:.1f}"]


def _verdict(methods: Groups) -> str:
    """SCOPE+ less the best rival of each column, and its breadth against the baseline's, each with
    what the hypothesis asks for."""
    ran = {record["labels"]["seed"] for record in methods[TRIED]}
    rivals = {
        name: common
        for name, runs in methods.items()
        if name not in OURS and (common := [r for r in runs if r["labels"]["seed"] in ran])
    }
    missing = [name for name in RIVALS if name not in rivals]
    parts = [f"without {', '.join(missing)}, which did not run"] if missing else []
    for title, metric, margin in MARGINS:
        best = max(rivals, key=lambda name: mean_value(rivals[name], metric))
        gap = compare(methods[TRIED], methods[best], metric).difference
        parts.append(f"{title} {signed(gap, 100)} points over {best} (asked for: {margin:+})")
    margin = BREADTH[1]
    paths, words = (_share(methods[TRIED], methods[BASELINE], name) for name in WIDE)
    parts.append(
        f"rarefied paths {signed(paths, 100)} % over {BASELINE} (asked for: {margin:+}), distinct-4"
        f" of right rows {signed(words, 100)} %"
    )
    return f"{TRIED} " + "; ".join(parts) + "."


def _level(records: Sequence[Record], metric: str) -> Estimate:
    return estimate([value(record, metric) for record in records])


def _share(records: Sequence[Record], base: Sequence[Record], metric: str) -> Estimate:
    """The difference on common seeds, over the mean of the baseline."""
    gap, of = compare(records, base, metric).difference, mean_value(base, metric)
    return Estimate(gap.mean / of, gap.half / of, gap.count)


def _tokens(records: Sequence[Record], names: Sequence[str]) -> float:
    """Tokens of a whole run, mean over the runs."""
    return estimate([sum(record["tokens"][name] for name in names) for record in records]).mean


def ending(records: Sequence[Record]) -> str:
    """What became of the hypothesis about SCOPE whose loss on the teacher's line ends halfway, a
    line for each task: longer problems against the baseline, in the mean and on the worst seed, and
    against SCOPE in distribution."""
    lines = []
    for domain, methods in _tasks(records).items():
        if not {HALF, SCOPE} <= methods.keys():
            continue
        longer = MARGINS[1][1]
        base = {r["labels"]["seed"]: value(r, longer) for r in methods[BASELINE]}
        gaps = {
            seed: value(run, longer) - base[seed]
            for run in methods[HALF]
            if (seed := run["labels"]["seed"]) in base
        }
        worst = min(gaps, key=lambda seed: gaps[seed])
        over = compare(methods[HALF], methods[BASELINE], longer).difference
        beside = compare(methods[HALF], methods[SCOPE], MARGINS[0][1]).difference
        lines.append(
            f"* {TASKS.get(domain, domain)}: {HALF} on longer problems {signed(over, 100)} points"
            f" over {BASELINE} (expected: above -3), on the worst seed, {worst},"
            f" {100 * gaps[worst]:+.1f} (above -30); in distribution {signed(beside, 100)} over"
            f" {SCOPE} (above -1).\n"
        )
    return "".join(lines)
