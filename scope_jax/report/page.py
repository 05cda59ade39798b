"""One self-contained HTML page: facts, figures with their curves, rescued rollouts, samples."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import jinja2

from scope_jax.report.charts import line_chart
from scope_jax.report.gallery import rescue_of
from scope_jax.report.rollouts import rollout_of
from scope_jax.run.workdir import write_atomically


class Tile(NamedTuple):
    """A figure in large type."""

    label: str
    value: str
    note: str = ""


class RolloutGroup(NamedTuple):
    """Rollouts under one heading."""

    title: str
    items: Sequence[Mapping[str, Any]]  # as `rollouts.rollout_of` takes them
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """What a page shows, in this order. All texts are plain text; the page escapes them."""

    title: str
    intro: Sequence[str] = ()  # paragraphs
    facts: Sequence[tuple[str, str]] = ()  # (name, value): what was done with what
    warnings: Sequence[str] = ()  # what the reader must know before all else
    highlights: Sequence[str] = ()  # short findings
    tiles: Sequence[Tile] = ()
    # {columns: [name], rows: [[value]]}. Floats show three decimals (very small and large ones
    # three digits), None shows as a dash.
    table: Mapping[str, Any] | None = None
    main_curves: Sequence[Mapping[str, Any]] = ()  # as `charts.line_chart` takes them
    gallery: Sequence[Mapping[str, Any]] = ()  # items as `gallery.rescue_of` takes them
    how_to_read: str = ""  # what a step of the task says (`Domain.how_to_read`)
    samples: Sequence[RolloutGroup] = ()
    curves: Sequence[Mapping[str, Any]] = ()  # further ones
    notes: Sequence[str] = ()  # paragraphs
    # Below the fold, closed: further curves, and (name, value) of everything else there is to know.
    folded_curves: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[tuple[str, Any]] = ()


def write_report(path: str | PathLike, report: Report) -> pathlib.Path:
    """Write one HTML file that needs no other file, no network and no script; returns its path.

    The same report gives the same file. Raises ValueError for a row of another length than the
    table's columns, and for malformed curves and steps.
    """
    page = _template().render(
        report=report,
        rows=_rows(report.table) if report.table else [],
        figures=[(name, cell(value)) for name, value in report.figures],
        gallery=[rescue_of(item) for item in report.gallery],
        samples=[
            (title, folded, [rollout_of(item) for item in items])
            for title, items, folded in report.samples
        ],
        main_charts=[line_chart(curve) for curve in report.main_curves],
        charts=[line_chart(curve) for curve in report.curves],
        folded_charts=[line_chart(curve) for curve in report.folded_curves],
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


@functools.cache
def _template() -> jinja2.Template:
    """The page, `report.html.j2`, which escapes every text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def _rows(table: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a table as texts."""
    columns = table["columns"]
    for number, row in enumerate(table["rows"]):
        if len(row) != len(columns):
            raise ValueError(f"table, row {number}: {len(row)} values for {len(columns)} columns")
    return [[cell(value) for value in row] for row in table["rows"]]


def cell(value: Any) -> str:
    """A value as a reader is shown it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.3g}"
    return str(value)
