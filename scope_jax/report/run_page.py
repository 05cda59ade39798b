"""The page of a run, from the files in its folder."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from scope_jax.report import run_facts
from scope_jax.report.page import Report, RolloutGroup, Tile, write_report
from scope_jax.report.sample_files import SampleFile, read_sample_file
from scope_jax.report.trouble import Watch
from scope_jax.run.metrics import read_metrics
from scope_jax.run.session import read_summary

Rows = Sequence[Mapping[str, Any]]  # lines of metrics

# The curves that a reader wants first: (title, names drawn together, whether shares are shown in
# percent). Drawn where the run has them.
_MAIN = (
    ("Reward", ("reward/mean",), False),
    ("Salvage rate of chosen failures", ("scope/accepted_share",), True),
    ("Length in tokens", ("completion/length_mean",), False),
    ("Rollouts cut off", ("completion/truncated_share",), True),
    ("Entropy in nats", ("policy/entropy",), False),
)
# Below rescues and samples.
_MORE = (
    (
        "Groups without an advantage",
        ("advantage/zero_group_share", "advantage/zero_group_share_after"),
        True,
    ),
    ("Failures", ("scope/failed_share", "scope/located_share"), True),
    ("Tokens of the teacher", ("scope/teacher_token_share",), True),
    (
        "Diversity",
        ("diversity/distinct_4", "diversity/one_minus_self_bleu", "diversity/div_equ"),
        False,
    ),
    ("Distinct correct paths", ("diversity/distinct_paths",), False),
    (
        "Seconds by phase",
        (
            *("time/rollout", "time/verify", "time/prm", "time/correct", "time/distill"),
            "time/update",
        ),
        False,
    ),
)
_ENDS = 10  # steps at either end of a run that its figures are means of, a third of it at most


def write_run_report(
    workdir: str | PathLike,
    *,
    title: str = "",
    how_to_read: str = "",
    most_samples: int = 12,
    path: str | PathLike | None = None,
) -> pathlib.Path:
    """Write `workdir/report.html` (or `path`) from `config.json`, `metrics.jsonl`, `samples/*.json`
    and `summary.json`; returns its path.

    Of rescues the newest files (by name) come first, verified ones before the others,
    `most_samples` in all; of rollouts those of the newest file, and folded those of the oldest.
    Missing files are left out; one that cannot be read is named in the notes. `how_to_read`: what a
    step of the task says. Raises FileNotFoundError where there is nothing to report on.
    """
    workdir = pathlib.Path(workdir)
    metrics, summary_path = workdir / "metrics.jsonl", workdir / "summary.json"
    if not metrics.exists() and not summary_path.exists():
        raise FileNotFoundError(
            f"{workdir}: neither metrics.jsonl nor summary.json; give the workdir of a run"
        )
    notes: list[str] = []
    rows = read_metrics(metrics) if metrics.exists() else []
    files = _sample_files(workdir / "samples", notes)
    summary: dict[str, Any] = {}
    if summary_path.exists():
        try:
            summary = read_summary(summary_path, {})
        except ValueError as error:
            notes.append(f"{error}.")
    config = _object(workdir / "config.json", notes)
    at_start = _object(workdir / "evaluation_at_start.json", notes)
    points = _points(rows)
    main = (_MAIN[0], ("pass@k in evaluations", _pass_names(points, "eval"), False), *_MAIN[1:])
    named = {name for _, names, _ in (*main, *_MORE) for name in names}
    report = Report(
        title=title or run_facts.title(config) or f"Run {workdir.resolve().name}",
        intro=run_facts.intro(config),
        facts=run_facts.facts(config, summary, rows, workdir.resolve().name),
        warnings=_troubles(rows),
        tiles=_tiles(points, at_start),
        main_curves=_curves(points, main, headline=True),
        gallery=_rescues(files, most_samples),
        how_to_read=how_to_read,
        samples=_rollouts(files),
        curves=_curves(points, _MORE),
        notes=notes,
        folded_curves=_curves(
            points, [(name, (name,), False) for name in sorted(points) if name not in named]
        ),
        figures=_flat(summary),
    )
    return write_report(workdir / "report.html" if path is None else path, report)


def _object(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is none, and a note where the file is no such thing."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        found = type(error).__name__
    if isinstance(found, dict):
        return found
    notes.append(f"{path.name} could not be read.")
    return {}


def _troubles(rows: Rows) -> list[str]:
    watch = Watch()
    return [line for row in rows for line in watch.see(row["step"], row)]


# ---- figures and curves

Points = dict[str, list[tuple[int, float | None]]]


def _points(rows: Rows) -> Points:
    """{name of a metric: (step, value) of each line that has it}."""
    points: Points = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                points.setdefault(name, []).append((row["step"], value))
    return points


def _curves(
    points: Points, wanted: Sequence[tuple[str, Sequence[str], bool]], headline: bool = False
) -> list[dict[str, Any]]:
    """The wanted curves that there are. `headline`: with what the run comes to; curves of a single
    point are left out then."""
    curves = []
    for title, names, percent in wanted:
        present = [name for name in names if name in points]
        if not present or (headline and max(len(points[name]) for name in present) < 2):
            continue
        series = [
            {
                "label": name,
                "x": [step for step, _ in points[name]],
                "y_by_seed": [[value for _, value in points[name]]],
            }
            for name in present
        ]
        curve = {"title": title, "x_label": "step", "y_label": "", "series": series}
        curves.append(curve | (_headline(points[present[0]], percent) if headline else {}))
    return curves


def _headline(points: Sequence[tuple[int, float | None]], percent: bool) -> dict[str, str]:
    """What a figure comes to over the last steps, and what it was over the first ones."""
    values = [v for _, v in points if v is not None and math.isfinite(v)]
    if not values:
        return {}
    size = max(min(_ENDS, len(values) // 3), 1)

    def mean(part: Sequence[float]) -> str:
        value = math.fsum(part) / len(part)
        if percent:
            return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

    over = f"the last {size} values" if size > 1 else "the last value"
    return {"value": mean(values[-size:]), "note": f"{over}; at first {mean(values[:size])}"}


def _pass_names(points: Points, split: str) -> list[str]:
    """Names of pass@1 and of the pass@k with the most samples, of one evaluation set."""
    found = [name.removeprefix(f"{split}/pass@") for name in points if f"{split}/pass@" in name]
    sizes = sorted(int(k) for k in found if k.isdecimal())
    return [f"{split}/pass@{k}" for k in dict.fromkeys([*sizes[:1], *sizes[-1:]])]


def _tiles(points: Points, at_start: Mapping[str, Any]) -> list[Tile]:
    """The last evaluation of each set, with the one before the first step where there was one."""
    splits = {name.split("/")[0] for name in points if name.startswith("eval")}
    tiles = []
    for split in sorted(splits):
        words = {"eval": "", "eval_ood": ", out of distribution"}
        where = words.get(split, f", {split.removeprefix('eval_')}")
        for name in _pass_names(points, split):
            values = [value for _, value in points[name] if value is not None]
            before = at_start.get(name)
            known = isinstance(before, int | float) and not isinstance(before, bool)
            note = f"before training {before:.3f}" if known else ""
            if values:
                tiles.append(Tile(f"{name.split('/')[1]}{where}", f"{values[-1]:.3f}", note))
    return tiles


# ---- samples


def _sample_files(folder: pathlib.Path, notes: list[str]) -> list[SampleFile]:
    """The readable ones, the newest first."""
    files = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            files.append(read_sample_file(path))
        except ValueError as error:
            notes.append(f"samples/{path.name} {error}.")
    return files


def _rescues(files: Sequence[SampleFile], most: int) -> list[Mapping[str, Any]]:
    items: list[Mapping[str, Any]] = []
    for file in files:
        items += sorted(file.rescues, key=lambda item: not item.get("verdict_after"))
    return items[:most]


def _rollouts(files: Sequence[SampleFile]) -> list[RolloutGroup]:
    """Those of the newest step, and folded those of the oldest."""
    there = [file for file in files if file.rollouts]

    def group(file: SampleFile, folded: bool) -> RolloutGroup:
        title = "Rollouts" if file.step is None else f"Step {file.step}"
        return RolloutGroup(title, file.rollouts, folded)

    newest, oldest = there[:1], there[1:][-1:]
    return [group(file, False) for file in newest] + [group(file, True) for file in oldest]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}/") if isinstance(value, Mapping) else [(name, value)]
    return pairs
