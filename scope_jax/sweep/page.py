"""From the records of sweeps to a page: tables with intervals, paired comparisons, learning
curves.

    python -m scope_jax.sweep.page --page=docs/results_appendix.md --table=DIR
        [--temperatures=DIR] [--hypothesis=DIR] [--teacher_end=DIR] [--conditions=DIR]
        [--factorial=DIR] [--ablations=DIR] [--confirmation=DIR] [--controls=DIR] [--tuning=DIR]
        [--summary=docs/results.md]

The page has all tables, the summary one table and a few pictures. Only the part between each page's
markers, `<!-- results: begin -->` and `<!-- results: end -->`, is written; the author's words
around it stay. Pictures go into `images/` beside the page.
"""

import collections
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from scope_jax import cli
from scope_jax.run import write_atomically
from scope_jax.sweep import tables, training_tables
from scope_jax.sweep.axes import axes_table
from scope_jax.sweep.curves import draw_curves
from scope_jax.sweep.factorial import factorial
from scope_jax.sweep.figures import TASKS, Groups, domains_of, methods_of, our_method, shown
from scope_jax.sweep.frontier import draw_frontier
from scope_jax.sweep.hypothesis import breadth, ending, hypothesis, verdicts
from scope_jax.sweep.records import Record, read_records
from scope_jax.sweep.summary import budgets_picture, conditions_picture, paths_picture, summary
from scope_jax.sweep.temperatures import by_temperature

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclasses.dataclass(frozen=True)
class Folders:
    """Folders of records; a part of the page whose folder is None or empty is left out."""

    table: Path  # the main table
    temperatures: Path | None = None  # evaluated at several temperatures, with many samples
    hypothesis: Path | None = None  # SCOPE+ and its rivals at equal tokens
    teacher_end: Path | None = None  # SCOPE that stops cloning the teacher's line after a while
    conditions: Path | None = None  # ours and the baseline, one condition changed at a time
    factorial: Path | None = None  # SCOPE with several switches on and off together
    ablations: Path | None = None  # SCOPE with one switch changed at a time
    confirmation: Path | None = None  # on fresh seeds and problems
    controls: Path | None = None  # on another base
    tuning: Path | None = None  # the search for settings


_RUN = ("method", "domain", "seed")
# The labels that runs of a folder are grouped by.
LABELS = {
    **dict.fromkeys(
        (
            *("table", "temperatures", "hypothesis", "teacher_end"),
            *("conditions", "confirmation", "controls"),
        ),
        _RUN,
    ),
    "factorial": (*_RUN, "switches"),
    "ablations": (*_RUN, "variant"),
    "tuning": ("method", "rate", "switch"),
}


def results(folders: Folders, images: Path) -> str:
    """The generated part of the page, in Markdown; writes the pictures."""
    parts = []
    done, failed = read_records(folders.table, LABELS["table"])
    for domain in domains_of([*done, *failed]):
        methods = methods_of(shown(done), domain)
        lost = collections.Counter(
            record["labels"]["method"]
            for record in shown(failed)
            if record["labels"]["domain"] == domain
        )
        parts.append(f"## {domain.capitalize()}\n")
        parts.append(tables.method_tables(methods, lost))
        parts.append(tables.left_out(done, domain))
        parts += _of_the_run(methods)
        if (ours := our_method(methods)) is not None:
            parts.append(tables.comparisons(methods, ours))
        draw_curves(methods, images / f"results_{domain}.svg")
        parts.append(f"![Learning curves, {domain}](images/results_{domain}.svg)\n")
        parts += _at_temperatures(methods, domain, images, "results_frontier")
    if records := _records(folders, "temperatures"):
        table = shown(done)
        every = {d: methods_of(table, d) for d in domains_of(table)}
        parts += paths_picture(every, images) + budgets_picture(every, images)
        parts.append("## At several temperatures\n")
        for domain in domains_of(records[0]):
            methods = methods_of(shown(records[0]), domain)
            parts.append(f"### {domain.capitalize()}\n")
            parts.append(tables.method_tables(methods, {}))
            parts += _at_temperatures(methods, domain, images, "frontier")
            parts += _of_the_run(methods)
    if records := _records(folders, "hypothesis"):
        parts.append("## SCOPE+ at equal tokens\n")
        tried = shown(records[0])
        parts += [hypothesis(tried), breadth(tried), verdicts(tried)]
        for domain in domains_of(records[0]):
            methods = methods_of(shown(records[0]), domain)
            parts.append(f"### {TASKS.get(domain, domain).capitalize()}, equal tokens\n")
            parts.append(by_temperature(methods))
            parts += _of_the_run(methods)
    if records := _records(folders, "teacher_end"):
        ended = shown(records[0])
        parts += [
            "## The teacher's loss ended early\n",
            hypothesis(ended),
            breadth(ended),
            ending(ended),
        ]
    sources = sources_of(folders)
    if changed := sources.get("conditions"):
        parts.append(axes_table(changed, sources.get("temperatures", ())))
        parts += conditions_picture(sources, images)
    if records := _records(folders, "factorial"):
        parts.append(factorial(records[0]))
    if records := _records(folders, "ablations"):
        parts.append(tables.ablations(records[0], done))
    if records := _records(folders, "confirmation"):
        what = (
            "On seeds and a draw of problems of their own: `scope` has the defaults of today,"
            " `scope_first` those of the table."
        )
        parts.append(tables.confirmation(records[0], "Tried again", what))
        for domain in domains_of(records[0]):
            parts.append(f"### The runs of {domain}\n")
            parts += _of_the_run(methods_of(records[0], domain))
    if records := _records(folders, "controls"):
        what = "On another base, on fresh seeds and another draw of problems."
        parts.append(tables.confirmation(records[0], "Another base", what))
    if records := _records(folders, "tuning"):
        parts.append(tables.search(*map(shown, records)))
    return "\n".join(part for part in parts if part)


def _of_the_run(methods: Groups) -> list[str]:
    """What the runs themselves show: diversity of the rollouts, budgets, what accuracy explains."""
    return [
        training_tables.rollout_diversity(methods),
        training_tables.budgets(methods),
        training_tables.explained(methods),
    ]


def _at_temperatures(methods: Groups, domain: str, images: Path, name: str) -> list[str]:
    """Tables and picture of evaluations at several temperatures; nothing where there are none."""
    parts = [by_temperature(methods)]
    if draw_frontier(methods, images / f"{name}_{domain}.svg"):
        parts.append(f"![Accuracy against diversity, {domain}](images/{name}_{domain}.svg)\n")
    return parts


def sources_of(folders: Folders) -> dict[str, list[Record]]:
    """The finished runs by the name of their folder's field; without those of the search."""
    known = {name: _records(folders, name) for name in vars(folders) if name != "tuning"}
    return {name: records[0] for name, records in known.items() if records}


def with_generated(page: Path, generated: str) -> str:
    """The text of a page with the generated part between its markers. Raises ValueError where they
    are missing."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{page}: expected the lines {BEGIN} and {END}, once each and in this order"
        )
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


FLAGS = (
    cli.Flag("page", "the page to write all tables into", kind=Path, required=True),
    cli.Flag("summary", "a short page: one table and a few pictures", kind=Path),
    cli.Flag("table", "records of the main table", kind=Path, required=True),
    cli.Flag("temperatures", "records of runs evaluated at several temperatures", kind=Path),
    cli.Flag("hypothesis", "records of SCOPE+ and rivals at equal tokens", kind=Path),
    cli.Flag("teacher_end", "records of SCOPE with a teacher's loss that ends early", kind=Path),
    cli.Flag("conditions", "records with one condition changed at a time", kind=Path),
    cli.Flag("factorial", "records of SCOPE with several switches on and off", kind=Path),
    cli.Flag("ablations", "records of SCOPE with one switch changed", kind=Path),
    cli.Flag("confirmation", "records of fresh seeds and problems", kind=Path),
    cli.Flag("controls", "records on another base", kind=Path),
    cli.Flag("tuning", "records of the search", kind=Path),
)


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(cli.parse_or_exit(sys.argv[1:] if arguments is None else arguments, FLAGS))
    page, short = given.pop("page"), given.pop("summary")
    if short is not None and short.resolve() == page.resolve():
        print(f"error: {short} is the page and its summary: two files are needed", file=sys.stderr)
        return 2
    folders = Folders(**given)
    for name, folder in given.items():
        if folder is None or any(folder.rglob("*.json")):
            continue
        if name == "table":
            print(f"error: no records in {folder}: give --table=DIR of a sweep", file=sys.stderr)
            return 2
        print(f"no records in {folder}: the page has no part on --{name}")
    try:
        texts = {page: with_generated(page, results(folders, page.parent / "images"))}
        if short is not None:
            made = summary(sources_of(folders), short.parent / "images")
            texts[short] = with_generated(short, made)
        for path, text in texts.items():
            write_atomically(path, text)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"written: {', '.join(map(str, texts))}")
    return 0


def _records(folders: Folders, name: str) -> tuple[list[Record], list[Record]] | None:
    """(finished, failed) runs of a folder; None where there is nothing."""
    folder = getattr(folders, name)
    if folder is None or not any(folder.rglob("*.json")):
        return None
    return read_records(folder, LABELS[name])


if __name__ == "__main__":
    sys.exit(main())
