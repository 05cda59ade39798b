"""One self-contained HTML page: a table of results, rescued rollouts, curves."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import jinja2

from scope_jax.report.charts import line_chart
from scope_jax.report.gallery import rescue_of
from scope_jax.run.metrics import read_metrics
from scope_jax.run.session import read_summary
from scope_jax.run.workdir import write_atomically

# Charts of a run, in this order: title -> names drawn together. Metrics that are not named here go
# below the fold.
_CHARTS: dict[str, tuple[str, ...]] = {
    "Reward of the policy's rollouts": ("reward/mean",),
    "Evaluation": ("eval/pass@1", "eval/pass@8"),
    "Groups without an advantage": (
        "advantage/zero_group_share",
        "advantage/zero_group_share_after",
    ),
    "What SCOPE does": ("scope/failed_share", "scope/located_share", "scope/accepted_share"),
    "Tokens of the teacher": ("scope/teacher_token_share",),
    "Entropy": ("policy/entropy",),
    "Diversity": (
        "diversity/distinct_4",
        "diversity/one_minus_self_bleu",
        "diversity/div_equ",
    ),
    "Distinct correct paths": ("diversity/distinct_paths",),
    "Length": ("completion/length_mean",),
    "Seconds by phase": (
        "time/rollout",
        "time/verify",
        "time/prm",
        "time/correct",
        "time/update",
    ),
}

# Figures of a summary that stand at the top of a run's page.
_HIGHLIGHTS = {
    "final/eval/pass@1": "pass@1",
    "final/eval/pass@8": "pass@8",
    "final/eval_ood/pass@1": "pass@1, out of distribution",
    "final/eval_ood/pass@8": "pass@8, out of distribution",
    "final/reward/mean": "reward of the last batch",
    "final/scope/accepted_share": "salvage rate of the last batch",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a page shows. All texts are plain text; the page escapes them."""

    title: str
    intro: Sequence[str] = ()  # paragraphs
    highlights: Sequence[str] = ()  # short findings below the introduction
    # {columns: [name], rows: [[value]]}. Floats show three decimals (very small and large ones
    # three digits), None shows as a dash.
    table: Mapping[str, Any] | None = None
    gallery: Sequence[Mapping[str, Any]] = ()  # items as `gallery.rescue_of` takes them
    how_to_read: str = ""  # what a step of the gallery says (`Domain.how_to_read`)
    # As `charts.line_chart` takes them; those with a true `folded` go below the fold.
    curves: Sequence[Mapping[str, Any]] = ()
    # (name, value) of everything else there is to know, below the fold.
    figures: Sequence[tuple[str, Any]] = ()
    notes: Sequence[str] = ()  # paragraphs at the end


def write_report(path: str | PathLike, report: Report) -> pathlib.Path:
    """Write one HTML file that needs no other file, no network and no script; returns its path.

    The same report gives the same file. Raises ValueError for a row of another length than the
    table's columns, and for malformed curves and steps.
    """
    page = _template().render(
        report=report,
        rows=_rows(report.table) if report.table else [],
        figures=[(name, _cell(value)) for name, value in report.figures],
        gallery=[rescue_of(item) for item in report.gallery],
        charts=[line_chart(curve) for curve in report.curves if not curve.get("folded")],
        folded=[line_chart(curve) for curve in report.curves if curve.get("folded")],
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def write_run_report(
    workdir: str | PathLike, *, title: str = "", how_to_read: str = "", most_samples: int = 12
) -> pathlib.Path:
    """Write `workdir/report.html` from `metrics.jsonl`, `samples/*.json` and `summary.json`;
    returns its path.

    A samples file is a JSON list of gallery items; the newest files (by name) come first, verified
    rescues before the others, `most_samples` in all. `summary.json` is an object of figures.
    Missing files are left out; a samples file, item or summary that cannot be read is named in the
    notes. `how_to_read`: what a step of the task says. Raises FileNotFoundError
    where there is nothing to report on.
    """
    workdir = pathlib.Path(workdir)
    metrics, summary = workdir / "metrics.jsonl", workdir / "summary.json"
    if not metrics.exists() and not summary.exists():
        raise FileNotFoundError(
            f"{workdir}: neither metrics.jsonl nor summary.json; give the workdir of a run"
        )
    rows = read_metrics(metrics) if metrics.exists() else []
    items, notes = _samples(workdir / "samples", most_samples)
    figures = []
    if summary.exists():
        try:
            figures = _flat(read_summary(summary, {}))
        except ValueError as error:
            notes.append(f"{error}.")
    steps = f" Steps {rows[0]['step']} to {rows[-1]['step']}." if rows else ""
    report = Report(
        title=title or f"Run {workdir.resolve().name}",
        intro=[
            "SCOPE (arXiv 2602.24110): failed rollouts are kept up to their first wrong step,"
            f" corrected there by a teacher, and finished by the policy itself.{steps}"
        ],
        highlights=[
            f"{_HIGHLIGHTS[name]} {_cell(value)}" for name, value in figures if name in _HIGHLIGHTS
        ],
        gallery=items,
        how_to_read=how_to_read,
        curves=_run_curves(rows),
        figures=figures,
        notes=notes,
    )
    return write_report(workdir / "report.html", report)


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
    return [[_cell(value) for value in row] for row in table["rows"]]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.3g}"
    return str(value)


def _run_curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    points: dict[str, list[tuple[int, Any]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                points.setdefault(name, []).append((row["step"], value))

    def curve(title: str, names: Sequence[str], folded: bool) -> dict[str, Any]:
        series = [
            {"label": n, "x": [s for s, _ in points[n]], "y_by_seed": [[v for _, v in points[n]]]}
            for n in names
        ]
        return {
            "title": title,
            "x_label": "step",
            "y_label": "",
            "series": series,
            "folded": folded,
        }

    curves = [
        curve(title, present, False)
        for title, names in _CHARTS.items()
        if (present := [n for n in names if n in points])
    ]
    named = {name for names in _CHARTS.values() for name in names}
    return curves + [curve(name, [name], True) for name in sorted(points) if name not in named]


def _samples(folder: pathlib.Path, most: int) -> tuple[list[dict[str, Any]], list[str]]:
    items: list[dict[str, Any]] = []
    notes: list[str] = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for item in found:
                rescue_of(item)  # notices an item that cannot be drawn
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            notes.append(
                f"samples/{path.name} could not be read ({type(error).__name__}: {error})."
            )
            continue
        items += sorted(found, key=lambda item: not item.get("verdict_after"))
    return items[:most], notes


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}/") if isinstance(value, Mapping) else [(name, value)]
    return pairs
