"""From the records of sweeps to a page: tables with intervals, paired comparisons, learning
curves.

    python -m scope_jax.sweep.page --page=docs/results.md --table=DIR [--ablations=DIR] [--confirmation=DIR] [--controls=DIR]
        [--tuning=DIR]

Only what stands between the page's markers, `<!-- results: begin -->` and `<!-- results: end -->`,
is written; the words around are the author's. Pictures go into `images/` beside the page.
"""

import argparse
import collections
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scope_jax.run import write_atomically
from scope_jax.sweep.statistics import Estimate, Paired, estimate, paired

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
# Ours by its names, the first that is there; `scope_first` is SCOPE as it was when the first
# tables were made.
OURS, BASELINE = ("scope", "scope_first"), "grpo"
# (column, metric of `final`, factor)
COLUMNS = (
    ("pass@1", "eval/pass@1", 100),
    ("pass@8", "eval/pass@8", 100),
    ("OOD pass@1", "eval_ood/pass@1", 100),
    ("OOD pass@8", "eval_ood/pass@8", 100),
    ("paths", "eval/diversity/distinct_paths", 1),
    ("OOD paths", "eval_ood/diversity/distinct_paths", 1),
    ("distinct-4", "eval/diversity/distinct_4", 1),
    ("1 - self-BLEU", "eval/diversity/one_minus_self_bleu", 1),
    ("answer entropy", "eval/diversity/answer_entropy", 1),
    ("reward over the run", "curve:reward/mean", 100),
)
ACCURACY = (
    ("reward over the run", "curve:reward/mean", 100),
    ("pass@1", "eval/pass@1", 100),
    ("pass@8", "eval/pass@8", 100),
    ("OOD pass@1", "eval_ood/pass@1", 100),
    ("OOD pass@8", "eval_ood/pass@8", 100),
)
# Paths are those of right samples, so they rise with accuracy; per right sample they do not.
DIVERSITY = (
    ("paths", "eval/diversity/distinct_paths", 1),
    ("OOD paths", "eval_ood/diversity/distinct_paths", 1),
    ("paths per right sample", "per_right:eval/diversity/distinct_paths", 1),
    ("distinct-4", "eval/diversity/distinct_4", 1),
    ("1 - self-BLEU", "eval/diversity/one_minus_self_bleu", 1),
    ("answer entropy", "eval/diversity/answer_entropy", 1),
)
GENERATED = ("cost/rollout_tokens", "cost/tail_tokens", "cost/localiser_tokens")
TAUGHT = ("cost/teacher_tokens", "cost/demonstration_tokens")
SMOOTH = 5

Record = dict[str, Any]


def read_records(folder: str | Path) -> tuple[list[Record], list[Record]]:
    """(records, records of failed runs) under a folder, by name. Raises FileNotFoundError where
    there is none, and ValueError naming a file that is no record."""
    done: list[Record] = []
    failed: list[Record] = []
    paths = sorted(Path(folder).rglob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no records (*.json)")
    for path in paths:
        try:
            record = json.loads(path.read_text())
            (failed if path.name.endswith(".failed.json") else done).append(record)
            record["labels"]["method"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a record of scope_jax.sweep ({error!r})") from None
    return done, failed


def value(record: Record, metric: str) -> float:
    """A final figure, or with "curve:" before its name the mean over the run, or with "per_right:"
    the figure for each right sample of a problem; NaN where the run has none."""
    if metric.startswith("curve:"):
        points = [
            x for x in record["curve"].get(metric.removeprefix("curve:"), ()) if x is not None
        ]
        return float(np.mean(points)) if points else math.nan
    if metric.startswith("per_right:"):
        name = metric.removeprefix("per_right:")
        prefix = name.split("/")[0]
        samples = max(
            (
                int(key.split("@")[1])
                for key in record["final"]
                if re.fullmatch(rf"{prefix}/pass@\d+", key)
            ),
            default=0,
        )
        right = samples * value(record, f"{prefix}/pass@1")
        return value(record, name) / right if right else math.nan
    found = record["final"].get(metric)
    return math.nan if found is None else float(found)


def by_seed(records: Sequence[Record]) -> dict[int, Record]:
    """Records of one method by seed."""
    return {record["labels"]["seed"]: record for record in records}


def compare(ours: Sequence[Record], theirs: Sequence[Record], metric: str) -> Paired:
    """ours - theirs on the seeds that both have."""
    mine, other = by_seed(ours), by_seed(theirs)
    seeds = sorted(mine.keys() & other.keys())
    return paired([value(mine[s], metric) for s in seeds], [value(other[s], metric) for s in seeds])


def results(
    table: str | Path,
    ablations: str | Path | None,
    tuning: str | Path | None,
    images: Path,
    confirmation: str | Path | None = None,
    controls: str | Path | None = None,
) -> str:
    """The page's generated part, in Markdown; writes the pictures."""
    done, failed = read_records(table)
    parts = []
    domains = list(dict.fromkeys(record["labels"]["domain"] for record in done))
    for domain in domains:
        methods = _grouped([r for r in done if r["labels"]["domain"] == domain], "method")
        lost = collections.Counter(
            r["labels"]["method"] for r in failed if r["labels"]["domain"] == domain
        )
        parts.append(f"## {domain.capitalize()}\n")
        parts.append(_method_table(methods, lost))
        if (ours := _ours(methods)) is not None:
            parts.append(_comparisons(methods, ours))
        curves(methods, images / f"results_{domain}.svg")
        parts.append(f"![Learning curves, {domain}](images/results_{domain}.svg)\n")
    if ablations is not None and any(Path(ablations).rglob("*.json")):
        parts.append(_ablation_tables(read_records(ablations)[0]))
    if confirmation is not None and any(Path(confirmation).rglob("*.json")):
        what = (
            "On seeds and a draw of problems of their own: `scope` has the defaults of today,"
            " `scope_first` those of the table."
        )
        parts.append(_again(read_records(confirmation)[0], "Tried again", what))
    if controls is not None and any(Path(controls).rglob("*.json")):
        what = "On another base, on fresh seeds and another draw of problems."
        parts.append(_again(read_records(controls)[0], "Another base", what))
    if tuning is not None and any(Path(tuning).rglob("*.json")):
        parts.append(_tuning_table(*read_records(tuning)))
    return "\n".join(parts)


def _ours(methods: Mapping[str, list[Record]]) -> str | None:
    return next((name for name in OURS if name in methods), None)


def _grouped(records: Sequence[Record], label: str) -> dict[str, list[Record]]:
    """Records by a label, ours first, then by pass@1 in and out of distribution together."""
    groups: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        groups[str(record["labels"][label])].append(record)
    score = lambda name: np.nanmean(
        [value(r, "eval/pass@1") + value(r, "eval_ood/pass@1") for r in groups[name]]
    )
    return {
        name: groups[name]
        for name in sorted(groups, key=lambda name: (name != _ours(groups), -score(name)))
    }


def _cells(records: Sequence[Record], columns: Sequence[tuple[str, str, float]]) -> list[str]:
    return [
        _text(estimate([value(r, metric) for r in records]), factor)
        for _, metric, factor in columns
    ]


def _text(e: Estimate, factor: float) -> str:
    if e.count == 0:
        return "-"
    digits = 1 if factor == 100 else 2
    half = "" if math.isnan(e.half) else f" ± {e.half * factor:.{digits}f}"
    return f"{e.mean * factor:.{digits}f}{half}"


def _mean(records: Sequence[Record], names: Sequence[str], absent: float = 0.0) -> float:
    """Mean over runs of the sum of step means; a run without the metric counts `absent`."""
    return float(
        np.mean([sum(r["mean"].get(name, absent) or 0.0 for name in names) for r in records])
    )


def _method_table(methods: Mapping[str, list[Record]], lost: Mapping[str, int]) -> str:
    head = ["method", "seeds", *(name for name, _, _ in COLUMNS)]
    lines = [_row(head), _rule(head)]
    for name, records in methods.items():
        seeds = str(len(records)) + (f" ({lost[name]} failed)" if lost.get(name) else "")
        lines.append(
            _row(
                [
                    f"**{name}**" if name == _ours(methods) else name,
                    seeds,
                    *_cells(records, COLUMNS),
                ]
            )
        )
    gave_up = [f"{name} ({count})" for name, count in lost.items() if name not in methods]
    text = (
        "Mean over seeds ± half of the 95 % interval (Student's t); pass rates in percent; the"
        " reward is that of the policy's own rollouts, mean of all batches.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    if gave_up:
        text += f"\nNo finished run: {', '.join(gave_up)}.\n"
    head = [
        "method",
        "no advantage, before",
        "after",
        "salvage rate",
        "updates per batch",
        "policy's tokens",
        "teacher's tokens",
        "tokens scored",
        "seconds per batch",
    ]
    lines = [_row(head), _rule(head)]
    base = methods.get(BASELINE, [])
    unit = _mean(base, GENERATED) if base else math.nan
    for name, records in methods.items():
        zero = [
            _mean(records, (key,)) if all(key in r["mean"] for r in records) else math.nan
            for key in _ZERO
        ]
        relative = _mean(records, GENERATED) / unit if unit else math.nan
        cells = [*(_plain(z) for z in zero), _plain(_salvage(records))]
        cells.append(f"{np.mean([r['updates'] / r['steps'] for r in records]):.1f}")
        cells.append(f"{relative:.2f}" if math.isfinite(relative) else "-")
        cells += [f"{_mean(records, TAUGHT):.0f}", f"{_mean(records, ('cost/prm_tokens',)):.0f}"]
        cells.append(f"{np.median([r['seconds_per_step'] for r in records]):.2f}")
        lines.append(_row([name, *cells]))
    text += (
        "\nWhat it took, per rollout batch. Shares of groups without an advantage before and after"
        f" repair or demonstrations; tokens that the policy generated, relative to {BASELINE};"
        " tokens that the teacher wrote; tokens that the PRM read; seconds are medians, two runs"
        " at a time on two cores.\n\n" + "\n".join(lines) + "\n"
    )
    return text


UNCHANGED = "as it was"  # the ablations' own base
_ZERO = ("advantage/zero_group_share", "advantage/zero_group_share_after")


def _salvage(records: Sequence[Record]) -> float:
    """Rows saved of rows tried, over all steps; NaN where nothing is repaired, or nothing
    verified."""
    if any(r.get("settings", {}).get("correction.accept") == "unverified" for r in records):
        return math.nan
    tried = sum(r["mean"].get("scope/selected", 0.0) for r in records)
    return sum(r["mean"].get("scope/accepted", 0.0) for r in records) / tried if tried else math.nan


def _count(x: float) -> str:
    return f"{x:.0f}" if x else "-"


def _plain(x: float) -> str:
    return f"{x:.2f}" if math.isfinite(x) else "-"


def _comparisons(methods: Mapping[str, list[Record]], ours: str) -> str:
    text = (
        "\nSeed by seed on common seeds: difference ± half of its 95 % interval, p of a two-sided"
        " sign-flip test (not corrected for the number of comparisons; with 5 seeds it cannot be"
        f" below 0.06), and on how many seeds {ours} is ahead.\n\n"
    )
    for columns in (ACCURACY, DIVERSITY):
        head = [f"{ours} minus", "seeds", *(name for name, _, _ in columns)]
        lines = [_row(head), _rule(head)]
        for name, records in methods.items():
            if name == ours:
                continue
            found = [
                (compare(methods[ours], records, metric), factor) for _, metric, factor in columns
            ]
            cells = [
                (
                    f"{_signed(p.difference, factor)} (p {p.p:.2g}, {p.ahead} ahead)"
                    if p.difference.count
                    else "-"
                )
                for p, factor in found
            ]
            lines.append(_row([name, str(max(p.difference.count for p, _ in found)), *cells]))
        text += "\n".join(lines) + "\n\n"
    return text + _verdict(methods, ours)


def _verdict(methods: Mapping[str, list[Record]], ours: str) -> str:
    """The paper's own marks, beside what is found here."""
    rivals = [name for name in methods if name != ours]
    lines = []
    for column, metric, mark in (
        ("pass@1", "eval/pass@1", "+1.8"),
        ("OOD pass@1", "eval_ood/pass@1", "+3.2"),
    ):
        if not rivals:
            break
        best = max(rivals, key=lambda name: np.nanmean([value(r, metric) for r in methods[name]]))
        p = compare(methods[ours], methods[best], metric)
        lines.append(
            f"* {column}: the best rival is {best}; {ours} {_signed(p.difference, 100)} points (the"
            f" paper's margin: {mark})."
        )
    if BASELINE in methods:
        shares = []
        for column, metric, _ in DIVERSITY:
            mine, other = (
                estimate([value(r, metric) for r in methods[name]]).mean
                for name in (ours, BASELINE)
            )
            shares.append(
                f"{column} {100 * (mine / other - 1):+.1f} %"
                if mine / (other or math.nan) > 0
                else f"{column} -"
            )
        lines.append(
            f"* diversity, {ours} against {BASELINE}: {', '.join(shares)} (the paper's diversity"
            " score: +13.5 %; how it is defined is not public)."
        )
    return "\n".join(lines) + "\n"


def _signed(e: Estimate, factor: float) -> str:
    if e.count == 0:
        return "-"
    digits = 1 if factor == 100 else 2
    half = "" if math.isnan(e.half) else f" ± {e.half * factor:.{digits}f}"
    return f"{e.mean * factor:+.{digits}f}{half}"


def _ablation_tables(records: Sequence[Record]) -> str:
    """One row for each switch: its figures, and the difference to SCOPE without a change on common
    seeds."""
    parts = ["## One switch at a time\n"]
    parts.append(
        "`scope_first` with one setting changed; the difference is that to `scope_first` as it was,"
        " on common seeds. The salvage rate counts verified rows; continuations are the localiser's"
        " tokens in a batch.\n"
    )
    domains = list(dict.fromkeys(record["labels"]["domain"] for record in records))
    for domain in domains:
        variants = collections.defaultdict(list)
        for record in records:
            if record["labels"]["domain"] == domain:
                variants[str(record["labels"]["variant"])].append(record)
        base = variants.pop(UNCHANGED, [])
        head = [
            domain,
            "seeds",
            "pass@1",
            "OOD pass@1",
            "paths",
            "OOD paths",
            "salvage",
            "continuations",
            "difference, pass@1",
            "p",
            "difference, OOD",
            "p, OOD",
        ]
        lines = [_row(head), _rule(head)]
        short = [
            c
            for c in (*ACCURACY, *DIVERSITY)
            if c[0] in ("pass@1", "OOD pass@1", "paths", "OOD paths")
        ]
        for name, group in {UNCHANGED: base, **variants}.items():
            if not group:
                continue
            cells = [
                *_cells(group, short),
                _plain(_salvage(group)),
                _count(_mean(group, ("cost/localiser_tokens",))),
            ]
            if name != UNCHANGED and base:
                first, second = (
                    compare(group, base, metric) for metric in ("eval/pass@1", "eval_ood/pass@1")
                )
                cells += [
                    text
                    for pair in (first, second)
                    for text in (_signed(pair.difference, 100), f"{pair.p:.2g}")
                ]
            else:
                cells += ["", "", "", ""]
            lines.append(_row([name, str(len(group)), *cells]))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _again(records: Sequence[Record], title: str, what: str) -> str:
    """A smaller table of methods, and each pair of them seed by seed."""
    parts = [f"## {title}\n", f"{what} Below each table, pairs on common seeds (p as above).\n"]
    for domain in dict.fromkeys(record["labels"]["domain"] for record in records):
        methods = _grouped([r for r in records if r["labels"]["domain"] == domain], "method")
        columns = (*ACCURACY, *DIVERSITY)
        head = [domain, "seeds", *(name for name, _, _ in columns)]
        lines = [_row(head), _rule(head)]
        lines += [
            _row([name, str(len(group)), *_cells(group, columns)])
            for name, group in methods.items()
        ]
        head = ["difference", "seeds", *(name for name, _, _ in columns)]
        lines += ["", _row(head), _rule(head)]
        ours = _ours(methods)
        for one, other in itertools.permutations(methods, 2):
            # Ours minus all others, and the others minus the baseline.
            if one == ours or (other == BASELINE and ours != one):
                found = [
                    (compare(methods[one], methods[other], metric), factor)
                    for _, metric, factor in columns
                ]
                cells = [
                    f"{_signed(p.difference, factor)} (p {p.p:.2g})" if p.difference.count else "-"
                    for p, factor in found
                ]
                lines.append(
                    _row(
                        [f"{one} - {other}", str(max(p.difference.count for p, _ in found)), *cells]
                    )
                )
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _tuning_table(records: Sequence[Record], failed: Sequence[Record]) -> str:
    """What each method was tried with, best first."""
    head = ["method", "learning rate", "switch", "seeds", "pass@1", "OOD pass@1", "mean of both"]
    lines = [_row(head), _rule(head)]
    groups = collections.defaultdict(list)
    for record in records:
        labels = record["labels"]
        groups[
            labels["method"], labels["rate"], json.dumps(labels["switch"], sort_keys=True)
        ].append(record)
    lost = collections.Counter(
        (
            r["labels"]["method"],
            r["labels"]["rate"],
            json.dumps(r["labels"]["switch"], sort_keys=True),
        )
        for r in failed
    )
    both = lambda key: (
        np.mean([_mean_of(groups[key], m) for m in ("eval/pass@1", "eval_ood/pass@1")])
        if key in groups
        else -1.0
    )
    order = {name: n for n, name in enumerate(dict.fromkeys(key[0] for key in (*groups, *lost)))}
    previous = ""
    # A setting that lost a seed stands behind those that lost none: the mean of what is left would
    # flatter it.
    for key in sorted({*groups, *lost}, key=lambda k: (order[k[0]], lost[k], -both(k), k)):
        method, rate, switch = key
        settings = ", ".join(f"`{name} = {value}`" for name, value in json.loads(switch).items())
        columns = ["-", "-", "-"]
        if key in groups:
            found = (
                *(_mean_of(groups[key], m) for m in ("eval/pass@1", "eval_ood/pass@1")),
                both(key),
            )
            columns = [f"{100 * x:.1f}" for x in found]
            columns[-1] = f"**{columns[-1]}**" if method != previous else columns[-1]
        count = len(groups[key]) if key in groups else 0
        seeds = str(count) + (f" ({lost[key]} failed)" if lost[key] else "")
        lines.append(_row([method, f"{rate:g}", settings, seeds, *columns]))
        previous = method
    text = (
        "## The search\n\nFour settings of each method, two seeds each, on another draw of"
        " problems; the best is bold.\n"
    )
    return text + "\n" + "\n".join(lines) + "\n"


def _mean_of(records: Sequence[Record], metric: str) -> float:
    return estimate([value(r, metric) for r in records]).mean


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(head: Sequence[str]) -> str:
    return "|---" * len(head) + "|"


def curves(methods: Mapping[str, list[Record]], path: Path) -> None:
    """Reward of the policy's own rollouts, groups without an advantage, entropy and distinct paths
    over the run: means over seeds, smoothed, with 95 % bands for ours and the two rivals with most
    seeds. An SVG, the same for the same records."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = (
        ("reward of the policy's rollouts", "reward/mean"),
        ("groups without an advantage, in the update", "advantage/zero_group_share_after"),
        ("entropy of the policy (nats)", "policy/entropy"),
        ("distinct right paths in a group", "diversity/distinct_paths"),
    )
    banded = sorted(methods, key=lambda name: (name != _ours(methods), -len(methods[name])))[:3]
    with plt.rc_context({"svg.hashsalt": "scope_jax", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
        colours = plt.get_cmap("tab10")
        for axis, (title, metric) in zip(axes.flat, shown):
            for name, records in methods.items():
                known = [r for r in records if metric in r["curve"]]
                lines = [_smooth(r["curve"][metric]) for r in known]
                if not lines:
                    continue
                length = min(len(line) for line in lines)
                x = (np.arange(length) + SMOOTH) * known[0].get("curve_every", 1)
                columns = np.array([line[:length] for line in lines])
                estimates = [estimate(column.tolist()) for column in columns.T]
                mean = np.array([e.mean for e in estimates])
                main = name in banded
                colour = colours(banded.index(name)) if main else "0.65"
                axis.plot(
                    x,
                    mean,
                    color=colour,
                    lw=1.8 if main else 0.7,
                    label=name if main else None,
                    zorder=3 if main else 1,
                )
                if main and len(lines) > 1:
                    half = np.array([e.half for e in estimates])
                    axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
            axis.set_title(title, fontsize=9)
            axis.grid(alpha=0.3)
            axis.set_xlabel(f"rollout batches (mean of {SMOOTH})")
        if len(methods) > len(banded):
            axes.flat[0].plot([], [], color="0.65", lw=0.7, label="other methods")
        axes.flat[0].legend(frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hundredth of a point is enough: a smaller file.
    write_atomically(path, re.sub(r"(\.\d\d)\d+", r"\1", drawn.getvalue()))


def _smooth(values: Sequence[float | None]) -> np.ndarray:
    """Means of SMOOTH neighbours; none where there are fewer values."""
    line = np.array([math.nan if v is None else v for v in values], np.float64)
    if len(line) < SMOOTH:  # numpy would take the window for the line
        return np.zeros(0)
    return np.convolve(line, np.full(SMOOTH, 1 / SMOOTH), mode="valid")


def write_page(page: Path, generated: str) -> None:
    """Put the generated part between the markers of the page. Raises ValueError where they are
    missing."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{page}: expected the lines {BEGIN} and {END}, once each and in this order"
        )
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_atomically(page, f"{before}{BEGIN}\n{generated}\n{END}{after}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scope_jax.sweep.page", description="Write the tables of sweeps into a page."
    )
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True, help="records of the main table")
    parser.add_argument("--ablations", type=Path, help="records of SCOPE with one switch changed")
    parser.add_argument("--confirmation", type=Path, help="records of fresh seeds and problems")
    parser.add_argument("--controls", type=Path, help="records on another base")
    parser.add_argument("--tuning", type=Path, help="records of the search")
    args = parser.parse_args(arguments)
    try:
        images = args.page.parent / "images"
        write_page(
            args.page,
            results(
                args.table, args.ablations, args.tuning, images, args.confirmation, args.controls
            ),
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"written: {args.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
