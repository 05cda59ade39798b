"""What a salvage came to: counts that add up, and what a rescued row cost."""

from typing import Any

from scope_jax.salvage.encode import ALONE
from scope_jax.salvage.forms import OWNERS
from scope_jax.salvage.ledger import State
from scope_jax.salvage.play import (
    BAD,
    CUT_OFF,
    NO_ERROR,
    NO_GOOD_STEP,
    NOT_JUDGED,
    RESCUED,
    RIGHT,
    SAME_STEP,
    UNSCORED,
    UNVERIFIED,
)
from scope_jax.salvage.settings import Settings

NOT_TRIED = (UNSCORED, NO_ERROR, NO_GOOD_STEP, CUT_OFF)
OF_TEACHER = ("leak", "incomplete_step", SAME_STEP)


def summary_of(state: State, settings: Settings, layout: str, folder: str) -> dict[str, Any]:
    """The object of `summary.json`. `rows` = right + not judged + bad lines + failed; `failed` =
    not tried + refused + tail failed + rescued + unverified, each by reason."""
    counts = state.counts
    apart = (RIGHT, NOT_JUDGED, BAD)
    failed = {name: n for name, n in counts.items() if name not in apart}
    not_tried = {name: failed.get(name, 0) for name in NOT_TRIED}
    refused = {name: n for name, n in sorted(failed.items()) if _is_of_teacher(name) and n}
    known = {*NOT_TRIED, *refused, RESCUED, UNVERIFIED}
    rescued, unverified = failed.get(RESCUED, 0), failed.get(UNVERIFIED, 0)
    cost = {name: round(value, 3) for name, value in sorted(state.cost.items())}
    usable = rescued + unverified
    return {
        "rollouts": settings.rollouts,
        "out": folder,
        "fields": layout,
        "lines": state.place.line,
        "rows": sum(counts.values()),
        "bad_lines": counts.get(BAD, 0),
        "right": counts.get(RIGHT, 0),
        "not_judged": counts.get(NOT_JUDGED, 0),
        "failed": sum(failed.values()),
        "not_tried": not_tried,
        "refused_by_teacher": refused,
        "tail_failed": {name: n for name, n in sorted(failed.items()) if name not in known and n},
        "rescued": rescued,
        "unverified": unverified,
        "prompts": dict(sorted(state.prompts.items())),
        "verified_by": settings.verify if settings.policy else None,
        "cost": cost,
        "cost_per_usable_row": (
            {name: round(value / usable, 3) for name, value in cost.items()} if usable else None
        ),
        "owners": OWNERS,
        "step_separator": settings.domain.separator,
    }


def _is_of_teacher(outcome: str) -> bool:
    return outcome in OF_TEACHER or outcome.startswith("teacher_")


def said(summary: dict[str, Any]) -> str:
    """The summary in a few lines."""
    rows, failed = summary["rows"], summary["failed"]
    lines = [
        f"{rows} rows: {summary['right']} right, {failed} failed, {summary['not_judged']} not"
        f" judged, {summary['bad_lines']} bad lines (outcomes.jsonl names each)",
        "of the failed: " + _counted(summary["not_tried"]),
        "refused from the teacher: " + _counted(summary["refused_by_teacher"]),
    ]
    if alone := summary["prompts"].get(ALONE):
        lines.insert(
            1,
            f"prompts: {alone} are texts that the chat template does not give, taken as they stand;"
            " give problems, messages or ids where the policy saw others",
        )
    if summary["verified_by"] is None:
        lines.append(
            f"corrected, NOT VERIFIED: {summary['unverified']} (without --policy nothing follows"
            " the step, and nobody knows whether it helps)"
        )
    else:
        lines.append("tail failed: " + _counted(summary["tail_failed"]))
        share = f" ({summary['rescued'] / failed:.0%} of the failed)" if failed else ""
        lines.append(f"rescued, verified by {summary['verified_by']}: {summary['rescued']}{share}")
    lines.append("cost: " + _counted(summary["cost"]))
    if summary["cost_per_usable_row"]:
        lines.append("per usable row: " + _counted(summary["cost_per_usable_row"]))
    return "\n".join([*lines, f"written to {summary['out']}"])


def _counted(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{n:g} {name.replace('_', ' ')}" for name, n in numbers.items()) or "none"
