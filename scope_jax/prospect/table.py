"""The figures as a table for the terminal."""

from collections.abc import Sequence

from scope_jax.prospect.figures import PARTS, Figures, Precision
from scope_jax.prospect.opinion import name, percent
from scope_jax.report.wording import why_not

_Row = tuple[str, str, str]


def table(figures: Figures) -> str:
    """What was measured, section by section; a share over nothing is a dash."""
    policy = figures.policy
    batches = f"{figures.batches} batch" + ("es" if figures.batches > 1 else "")
    title = (
        f"SCOPE before training: {policy.problems} problems x {policy.group} rollouts ({batches},"
        f" seed {figures.seed}); nothing was learned"
    )
    sections = [
        by_itself(figures),
        where(figures),
        against_the_check(figures),
        way(figures),
        advantages(figures),
        costs(figures),
    ]
    return "\n\n".join([title, *layout([section for section in sections if section])])


def layout(sections: Sequence[Sequence[_Row]]) -> list[str]:
    """Each section as lines of text, the first one its heading, all columns of all sections aligned
    with each other."""
    width = [max(len(row[n]) for rows in sections for row in rows) for n in range(3)]
    drawn = []
    for rows in sections:
        lines = [
            f"{row[0]:<{width[0]}}  {row[1]:>{width[1]}}  {row[2]:>{width[2]}}".rstrip()
            for row in rows
        ]
        drawn.append("\n".join([lines[0], "-" * (sum(width) + 4), *lines[1:]]))
    return drawn


def by_itself(figures: Figures) -> list[_Row]:
    """Groups, pass rates, failures."""
    policy = figures.policy
    problems, rollouts = policy.problems, policy.problems * policy.group
    rows = [
        ("the policy by itself", "share", "of"),
        _part("groups all failed", policy.all_failed, problems),
        _part("groups mixed", policy.mixed, problems),
        _part("groups all right", policy.all_right, problems),
        ("  pass@1", *_rate(policy.pass_1, policy.pass_1_error)),
        (f"  pass@{policy.group}", *_rate(policy.pass_group, policy.pass_group_error)),
        _part("rollouts failed", policy.failed, rollouts),
    ]
    if policy.not_judged:
        rows.append(
            _part("rollouts not judged, in no rate but as not right", policy.not_judged, rollouts)
        )
    return rows


def where(figures: Figures) -> list[_Row]:
    """The histogram of first errors."""
    found, checked = figures.found, figures.checked
    rows = [
        (
            "where failures first err (those not cut off)",
            f"by {name(figures)}",
            "by the step check" if checked else "",
        )
    ]
    lines = [
        (
            "in the first step: no good one before",
            found.first_step,
            checked.first_step if checked else 0,
        )
    ]
    for n in range(PARTS):
        label = f"after {100 * n // PARTS} to {100 * (n + 1) // PARTS} % of the steps"
        lines.append((label, found.parts[n], checked.parts[n] if checked else 0))
    for label, one, other in lines:
        rows.append(
            (f"  {label}", _share(one, found.rows), _share(other, checked.rows) if checked else "")
        )
    rows.append(("  failures with an error", str(found.rows), str(checked.rows) if checked else ""))
    rows.append(("  failures without one", str(found.none), str(checked.none) if checked else ""))
    return rows


def against_the_check(figures: Figures) -> list[_Row]:
    """How well the localiser finds the first error; where nothing checks it, what it says of right
    rows."""
    who = name(figures)
    if figures.precision is None:
        if not figures.right_asked:
            return []
        return [
            (f"{who} on right rows", "share", "of"),
            _part("an error found", figures.right_flagged, figures.right_asked),
        ]
    found: Precision = figures.precision
    return [
        (f"{who} against the step check, on failures", "share", "of"),
        _part("first error found exactly", found.exact, found.errors),
        _part("too early", found.earlier, found.errors),
        _part("too late: the row keeps its error", found.later, found.errors),
        _part("none found", found.missed, found.errors),
        _part("false alarms, on right rows without a wrong step", found.false_alarms, found.clean),
    ]


def way(figures: Figures) -> list[_Row]:
    """What becomes of the failures."""
    rescues, failed = figures.rescues, figures.policy.failed
    before = "step" if figures.good_steps == 1 else "steps"
    usable = "with a teacher's step that may be used"
    if figures.candidates > 1:
        usable = "the teacher's steps that may be used"
    rows = [
        ("the way of the failures", "share", "of"),
        _part("cut off by length", rescues.cut_off, failed),
        _part("no error found", rescues.not_found, failed),
        _part(
            f"fewer than {figures.good_steps} good {before} before it", rescues.too_early, failed
        ),
        _part("may be rescued", rescues.eligible, failed),
        _part("chosen by method.select", rescues.selected, failed),
        _part(usable, rescues.corrected, rescues.steps),
        _part(
            "rescued: right in the end (salvage rate)",
            rescues.rescued,
            rescues.selected,
        ),
    ]
    if rescues.not_scored:
        row = _part("not scored, among those without an error found", rescues.not_scored, failed)
        rows.insert(3, row)
    if rescues.elsewhere:
        row = _part(
            "in groups that are left alone (method.select.groups)", rescues.elsewhere, failed
        )
        rows.insert(1, row)
    if figures.cost.self_tokens:
        row = _part("of these, by the policy itself", rescues.by_policy, rescues.rescued)
        rows.append(row)
    for reason, count in sorted(rescues.refused.items()):
        rows.append(_part(f"refused: {why_not(reason)}", count, rescues.steps))
    return rows


def advantages(figures: Figures) -> list[_Row]:
    """Dead groups."""
    return [
        ("groups without an advantage", "before", "after the rescue"),
        ("  share", percent(figures.dead_before), percent(figures.dead_after)),
    ]


def costs(figures: Figures) -> list[_Row]:
    """Tokens and seconds of a batch, and of a row."""
    cost, batches, seconds = figures.cost, figures.batches, figures.cost.seconds
    who = name(figures)
    seconds_of_rescue = batches * (seconds["prm"] + seconds["correct"])
    seconds_of_rollouts = batches * seconds["rollout"]
    compiling = " (compiling included)" if cost.compiling else ""

    def tokens(total: int) -> str:
        return f"{total / batches:,.0f}"

    def spent(phase: str) -> str:
        return f"{seconds[phase]:.2f}"

    rows = [
        ("what a batch takes", "tokens", f"seconds{compiling}"),
        ("  the policy's rollouts", tokens(cost.rollout_tokens), spent("rollout")),
        ("  their verdicts, and those of the tails", "", spent("verify")),
    ]
    read = (f"  {who}, read", tokens(cost.prm_tokens), spent("prm"))
    if cost.localiser_tokens:
        read = (f"  {who}, written", tokens(cost.localiser_tokens), spent("prm"))
    rows.append(read)
    if cost.self_tokens:
        rows.append(("  the policy's own tries", tokens(cost.self_tokens), ""))
    rows += [
        ("  the teacher's steps", tokens(cost.teacher_tokens), ""),
        ("  the tails, and seconds of both", tokens(cost.tail_tokens), spent("correct")),
    ]
    rescued, right = figures.rescues.rescued, figures.policy.right
    written = cost.teacher_tokens + cost.tail_tokens + cost.self_tokens + cost.localiser_tokens
    rows.append(("  a rescued row, written", *_per(written, seconds_of_rescue, rescued)))
    if cost.prm_tokens:
        rows.append((f"  a rescued row, read by {who}", _per(cost.prm_tokens, 0, rescued)[0], ""))
    rows.append(
        ("  a right row of the rollouts", *_per(cost.rollout_tokens, seconds_of_rollouts, right))
    )
    return rows


def _per(tokens: int, seconds: float, rows: int) -> tuple[str, str]:
    """(tokens, seconds) of a row, of those of all batches."""
    return (f"{tokens / rows:,.0f}", f"{seconds / rows:.3f}") if rows else ("-", "-")


def _part(label: str, count: int, total: int) -> _Row:
    return f"  {label}", _share(count, total), f"{count} of {total}"


def _share(count: int, total: int) -> str:
    return percent(count / total) if total else "-"


def _rate(value: float, error: float) -> tuple[str, str]:
    return f"{value:.3f}", f"± {error:.3f}" if error == error else ""
