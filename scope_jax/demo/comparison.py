"""Runs of several arms over several seeds, compared: a table, claims, curves."""

import itertools
from typing import Any, Literal, NamedTuple

import numpy as np

from scope_jax.demo.settings import ARMS

TARGET = 0.3  # mean reward that "batches to reach" asks for
WINDOW = 5  # batches that a reward or a curve is averaged over

Rows = list[dict[str, Any]]  # the lines of metrics of a run
Runs = dict[str, list[Rows]]  # by arm, one entry for each seed


class Figure(NamedTuple):
    """A line of the comparison."""

    title: str
    metric: str
    # The last value, a mean over the run, over its last ten batches, a sum, a median, or the number
    # of batches to reach the target.
    kind: Literal["final", "run", "late", "sum", "median", "reach"]


FIGURES = (
    Figure("pass@1", "eval/pass@1", "final"),
    Figure("pass@8", "eval/pass@8", "final"),
    Figure("pass@1, temperature 0.6", "eval_t0.6/pass@1", "final"),
    Figure("pass@8, temperature 0.6", "eval_t0.6/pass@8", "final"),
    Figure("pass@1, longer problems", "eval_ood/pass@1", "final"),
    Figure("pass@8, longer problems", "eval_ood/pass@8", "final"),
    Figure("pass@1, longer, temperature 0.6", "eval_ood_t0.6/pass@1", "final"),
    Figure("pass@8, longer, temperature 0.6", "eval_ood_t0.6/pass@8", "final"),
    Figure("distinct solution paths per problem", "eval/diversity/distinct_paths", "final"),
    Figure("distinct paths, longer problems", "eval_ood/diversity/distinct_paths", "final"),
    Figure("entropy of the policy", "policy/entropy", "late"),
    Figure("zero-advantage groups, before rescue", "advantage/zero_group_share", "run"),
    Figure("zero-advantage groups, after rescue", "advantage/zero_group_share_after", "run"),
    Figure("salvage rate", "scope/accepted_share", "run"),
    Figure(f"batches to reach reward {TARGET}", "reward/mean", "reach"),
    Figure("tokens that the policy wrote", "cost/rollout_tokens", "sum"),
    Figure("tokens of rescues' new ends", "cost/tail_tokens", "sum"),
    Figure("tokens of the teacher", "cost/teacher_tokens", "sum"),
    Figure("seconds per batch", "time/total", "median"),
)

# (what SCOPE should have, figure that says so, whether more of it is better)
CLAIMS = (
    ("fewer batches to the target", Figure("", "reward/mean", "reach"), False),
    ("higher pass@1", Figure("", "eval/pass@1", "final"), True),
    ("higher pass@1 at temperature 0.6", Figure("", "eval_t0.6/pass@1", "final"), True),
    ("higher pass@8", Figure("", "eval/pass@8", "final"), True),
    ("more distinct paths", Figure("", "eval/diversity/distinct_paths", "final"), True),
)

_CURVES = (
    ("Reward of the policy's own rollouts", "reward/mean"),
    ("Groups without an advantage, before rescue", "advantage/zero_group_share"),
    ("Groups without an advantage, after rescue", "advantage/zero_group_share_after"),
    ("Entropy of the policy", "policy/entropy"),
    ("Distinct correct paths in a group", "diversity/distinct_paths"),
    ("Salvage rate", "scope/accepted_share"),
)


def reach(rewards: list[float], target: float = TARGET, window: int = WINDOW) -> float:
    """Batches until the mean reward of `window` consecutive batches first reaches `target`; NaN if
    it never does."""
    for end in range(window, len(rewards) + 1):
        if np.mean(rewards[end - window : end]) >= target:
            return float(end)
    return float("nan")


def figure_of(rows: Rows, figure: Figure) -> float:
    """A figure of one run; NaN where the run does not have it."""
    values = [row[figure.metric] for row in rows if row.get(figure.metric) is not None]
    if figure.kind == "reach":
        return reach(values)
    if not values:
        return float("nan")
    if figure.kind == "final":
        return float(values[-1])
    if figure.kind == "median":
        return float(np.median(values))
    if figure.kind == "sum":
        return float(np.sum(values))
    return float(np.mean(values[-10:] if figure.kind == "late" else values))


def spread(values: list[float], absent: str = "-") -> str:
    """ "mean ± standard deviation over seeds", and how many seeds have a value; `absent` where none
    has."""
    known = [v for v in values if not np.isnan(v)]
    if not known:
        return absent
    digits = 0 if max(known) >= 10 else 3
    text = f"{np.mean(known):.{digits}f}"
    if len(known) > 1:
        text += f" ± {np.std(known, ddof=1):.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def table(base: dict[str, float], runs: Runs) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the comparison; a figure that neither the base nor any run has is left
    out. `base`: the evaluation of what the runs started from."""
    rows = []
    for figure in FIGURES:
        has_start = figure.kind == "final" and figure.metric in base
        if not has_start and not any(
            figure.metric in row for lines in runs.values() for run in lines for row in run
        ):
            continue
        absent = "never" if figure.kind == "reach" else "-"
        cells = [
            # Without a correction these are zeros that say nothing.
            absent
            if arm != "scope" and figure.metric.startswith(("scope/", "cost/t"))
            else spread([figure_of(run, figure) for run in lines], absent)
            for arm, lines in runs.items()
        ]
        rows.append([figure.title, f"{base[figure.metric]:.3f}" if has_start else "-", *cells])
    return ["", "base", *(ARMS[arm] for arm in runs)], rows


def wins(runs: Runs) -> list[str]:
    """On how many seeds SCOPE is ahead of each other arm, claim by claim; those for which no run
    has a figure are left out."""
    lines = []
    rivals = [arm for arm in runs if arm != "scope"]
    for (claim, figure, more_is_better), rival in itertools.product(CLAIMS, rivals):
        pairs = [
            (figure_of(scope, figure), figure_of(other, figure))
            for scope, other in zip(runs["scope"], runs[rival], strict=True)
        ]
        if figure.kind == "final" and np.isnan(pairs).all():
            continue
        # A run that never reached the target took more updates than any that did.
        sign = 1.0 if more_is_better else -1.0
        ranked = [tuple(-np.inf if np.isnan(v) else sign * v for v in pair) for pair in pairs]
        ahead = sum(ours > theirs for ours, theirs in ranked)
        lines.append(f"SCOPE {claim} than {ARMS[rival]}: {ahead} of {count(len(pairs), 'seed')}")
    return lines


def curves(runs: Runs) -> list[dict[str, Any]]:
    """Learning curves of both arms, mean and range over seeds; those that no run has are left
    out."""
    shown = []
    for title, metric in _CURVES:
        series = []
        window = WINDOW
        for arm in runs:
            # A batch may lack a figure (of its update, where that was left out): a gap.
            if all(any(row.get(metric) is not None for row in rows) for rows in runs[arm]):
                lines = [np.array([row.get(metric) for row in rows], float) for rows in runs[arm]]
                window = min(WINDOW, *(len(line) for line in lines))
                mean = np.full(window, 1 / window)
                smooth = [np.convolve(line, mean, mode="valid").tolist() for line in lines]
                x = list(range(window, window + len(smooth[0])))
                series.append({"label": ARMS[arm], "x": x, "y_by_seed": smooth})
        if series:
            x_label = f"batches (mean of {window})"
            shown.append({"title": title, "x_label": x_label, "series": series})
    return shown


def count(number: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
