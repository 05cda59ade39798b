"""The table of a hypothesis that was written down before its runs: SCOPE+ against rivals that spend
as many tokens, by the three margins that SCOPE's paper claims."""

from collections.abc import Sequence

from scope_jax.report.tables import markdown
from scope_jax.sweep.cells import interval, plain, signed
from scope_jax.sweep.figures import (
    BASELINE,
    OURS,
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
# (title, metric, the paper's margin): of accuracy over the best rival in points, of paths over the
# baseline in percent. The runs' one temperature is 0.6.
MARGINS = (
    ("in distribution", "eval/pass@1", 1.8),
    ("longer problems", "eval_ood/pass@1", 3.2),
)
BREADTH = (f"eval/{RAREFIED}", 13.5)
DISTINCT = "eval/diversity/distinct_4_right"
# Of a record's tokens, those that the policy and that the teacher wrote.
POLICY = ("rollouts", "tails", "own_tries", "localiser")
TEACHER = ("teacher", "demonstrations")


def hypothesis(records: Sequence[Record]) -> str:
    """The table, a row for each method, in Markdown. Empty where no task has runs of SCOPE+ and of
    the baseline."""
    domains = _tasks(records)
    if not domains:
        return ""
    names = list(dict.fromkeys(name for methods in domains.values() for name in methods))
    names.sort(key=lambda name: (name not in OURS, name != BASELINE))
    head = ["method", "seeds"]
    for domain in domains:
        head += [f"{TASKS.get(domain, domain)}: pass@1", "longer", "paths, %", "distinct-4, %"]
    head += ["policy's tokens", "teacher's tokens"]
    rows = []
    for name in names:
        runs = dict.fromkeys(str(len(methods.get(name, []))) for methods in domains.values())
        cells = [cell for methods in domains.values() for cell in _cells(name, methods)]
        cells += map(", ".join, zip(*(_costs(name, methods) for methods in domains.values())))
        rows.append([f"**{name}**" if name in OURS else name, "/".join(runs), *cells])
    return (
        f"Pass@1 at temperature 0.6: of {BASELINE} in percent, of the others the difference to it"
        " in points, on common seeds. Paths among four right samples and distinct-4 of right rows,"
        f" which accuracy does not move: of {BASELINE} the number, of the others the difference in"
        f" percent. Tokens of the whole run, by task: of the policy in multiples of {BASELINE}'s,"
        f" of the teacher in thousands.\n\n{markdown(head, rows)}\n"
    )


def verdicts(records: Sequence[Record]) -> str:
    """What became of the hypothesis on each task, a line each."""
    lines = [f"* {TASKS.get(d, d)}: {_verdict(m)}" for d, m in _tasks(records).items()]
    return "\n".join(lines) + "\n" if lines else ""


def _tasks(records: Sequence[Record]) -> dict[str, Groups]:
    """The methods of each task that has SCOPE+ and the baseline."""
    domains = {domain: methods_of(records, domain) for domain in domains_of(records)}
    return {
        d: methods for d, methods in domains.items() if TRIED in methods and BASELINE in methods
    }


def _cells(name: str, methods: Groups) -> list[str]:
    """A method's cells for one task."""
    records, base = methods.get(name, []), methods[BASELINE]
    if not records:
        return ["-"] * 4
    accuracy = [metric for _, metric, _ in MARGINS]
    breadth = [BREADTH[0], DISTINCT]
    if name == BASELINE:
        return [
            *(interval(_level(records, metric), 100) for metric in accuracy),
            *(interval(_level(records, metric), 1) for metric in breadth),
        ]
    return [
        *(signed(compare(records, base, metric).difference, 100) for metric in accuracy),
        *(signed(_share(records, base, metric), 100) for metric in breadth),
    ]


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
    rivals = [name for name in methods if name not in OURS]
    parts = []
    for title, metric, margin in MARGINS:
        best = max(rivals, key=lambda name: mean_value(methods[name], metric))
        gap = compare(methods[TRIED], methods[best], metric).difference
        parts.append(f"{title} {signed(gap, 100)} points over {best} (asked for: {margin:+})")
    metric, margin = BREADTH
    paths, words = (_share(methods[TRIED], methods[BASELINE], name) for name in (metric, DISTINCT))
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
