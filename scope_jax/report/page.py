"""One self-contained HTML page: a table of results, curves, rescued rollouts."""

import html
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.report import charts
from scope_jax.report import gallery as gallery_lib
from scope_jax.run.metrics import read_metrics
from scope_jax.run.workdir import write_atomically

_STYLE = """
:root { color-scheme:light dark; --ink:#1c2430; --soft:#5d6776; --rule:#dfe3e9; --paper:#f7f8fa; --card:#fff;
  --mono:ui-monospace,"SF Mono","Cascadia Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace; }
@media (prefers-color-scheme: dark) { :root { --ink:#e4e8ee; --soft:#9aa4b2; --rule:#343b46; --paper:#14181e;
  --card:#1b2028; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink); line-height:1.5;
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:2rem 1.2rem 4rem; }
h1 { font-size:1.7rem; line-height:1.2; margin:0 0 .6rem; text-wrap:balance; }
h2 { font-size:1.2rem; margin:2.4rem 0 .8rem; }
p { max-width:70ch; margin:.4rem 0; overflow-wrap:anywhere; }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--rule); border-radius:10px; }
table { border-collapse:collapse; width:100%; font-size:.92rem; font-variant-numeric:tabular-nums; }
th, td { padding:.45rem .8rem; text-align:right; border-top:1px solid var(--rule); white-space:nowrap; }
th:first-child, td:first-child { text-align:left; }
thead th { border-top:0; color:var(--soft); font-weight:600; }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr)); gap:1.4rem; }
.charts > figure { background:var(--card); border:1px solid var(--rule); border-radius:10px; padding:.8rem; }
details { margin-top:1.2rem; } summary { cursor:pointer; color:var(--soft); }
pre { font-family:var(--mono); font-size:.8rem; overflow-x:auto; background:var(--card); padding:1rem;
  border:1px solid var(--rule); border-radius:10px; }
"""

# Charts of a run, in this order: title -> names drawn together. Metrics that are not named here go
# below the fold.
_CHARTS: dict[str, tuple[str, ...]] = {
    "Reward of the policy's rollouts": ("reward/mean",),
    "Evaluation": ("eval/pass@1", "eval/pass@8"),
    "Groups without an advantage": (
        "advantage/zero_group_share",
        "advantage/zero_group_share_before",
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
        "time/logprobs",
        "time/update",
    ),
}


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    intro: str | Sequence[str] = (),
    table: Mapping[str, Any] | None = None,
    curves: Sequence[Mapping[str, Any]] = (),
    gallery: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> pathlib.Path:
    """Writes one HTML file that needs no other file, no network and no script, and returns its
    path.

    `intro` is a paragraph or several; `table` is {columns: [name], rows: [[value]]}; `curves` as
    `charts.line_chart` and `gallery` as `gallery.rescue` describe them; `notes` are paragraphs at
    the end. All texts are plain text and are escaped. Floats of the table show three decimals
    (very small and large ones three digits), None shows as a dash. Raises ValueError for a row of
    another length than `columns`, and for malformed curves and steps.
    """
    paragraphs = [intro] if isinstance(intro, str) else list(intro)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(text)}</p>" for text in paragraphs if text),
    ]
    if table and table["rows"]:
        parts.append(f"<h2>Results</h2>{_table(table)}")
    if gallery:
        parts.append(f"<h2>Rescued rollouts</h2>{gallery_lib.galleries(gallery)}")
    shown = [curve for curve in curves if not curve.get("folded")]
    folded = [curve for curve in curves if curve.get("folded")]
    if shown:
        parts.append(f"<h2>Curves</h2>{_charts(shown)}")
    if folded:
        parts.append(
            f"<details><summary>{len(folded)} more curves</summary>{_charts(folded)}</details>"
        )
    if notes:
        parts.append("<h2>Notes</h2>" + "".join(f"<p>{html.escape(text)}</p>" for text in notes))
    # The policy line lets a browser run and fetch nothing, whatever a model wrote into the page.
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src'
        " 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>"
        f"<style>{_STYLE}{charts.STYLE}{gallery_lib.STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def write_run_report(
    workdir: str | os.PathLike, *, title: str = "", most_samples: int = 12
) -> pathlib.Path:
    """Writes `workdir/report.html` from `metrics.jsonl`, `samples/*.json` and `summary.json`;
    returns its path.

    A samples file is a JSON list of gallery items; the newest files (by name) come first, verified
    repairs before the others, `most_samples` in all. `summary.json` is an object: its numbers and
    texts become the table. Files that are not there are left out, a samples file or item that
    cannot be read is named in the notes. Raises FileNotFoundError where there is nothing to report
    on.
    """
    workdir = pathlib.Path(workdir)
    has_metrics, has_summary = (
        (workdir / "metrics.jsonl").exists(),
        (workdir / "summary.json").exists(),
    )
    if not has_metrics and not has_summary:
        raise FileNotFoundError(
            f"{workdir}: neither metrics.jsonl nor summary.json; give the workdir of a run"
        )
    rows = read_metrics(workdir / "metrics.jsonl") if has_metrics else []
    items, notes = _samples(workdir / "samples", most_samples)
    table = None
    if has_summary:
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        table = {
            "columns": ["figure", "value"],
            "rows": [[name, value] for name, value in _flat(summary)],
        }
    last = f" Steps {rows[0]['step']} to {rows[-1]['step']}." if rows else ""
    return write_report(
        workdir / "report.html",
        title=title or f"Run {workdir.resolve().name}",
        intro=(
            "SCOPE (arXiv 2602.24110): failed rollouts are kept up to their first wrong step,"
            f" corrected there by a teacher, and finished by the policy itself.{last}"
        ),
        table=table,
        curves=_run_curves(rows),
        gallery=items,
        notes=notes,
    )


def _table(table: Mapping[str, Any]) -> str:
    columns = table["columns"]
    for number, row in enumerate(table["rows"]):
        if len(row) != len(columns):
            raise ValueError(f"table, row {number}: {len(row)} values for {len(columns)} columns")
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in table["rows"]
    )
    return (
        "<div"
        f' class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.3g}"
    return html.escape(str(value))


def _charts(curves: Sequence[Mapping[str, Any]]) -> str:
    return f'<div class="charts">{"".join(charts.line_chart(curve) for curve in curves)}</div>'


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
                gallery_lib.rescue(item)  # An item that cannot be drawn is noticed here.
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
