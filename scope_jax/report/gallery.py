"""Rescued rollouts side by side, as HTML: what the policy wrote first, and what became of it."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

STATUSES = ("kept", "wrong", "discarded", "corrected", "tail")

STYLE = """
:root { --good:#2f7d54; --good-bg:#e9f5ee; --bad:#c0322b; --bad-bg:#fdebe9; --teach:#6b46c1; --teach-bg:#f0ebfc; }
@media (prefers-color-scheme: dark) { :root { --good:#6fcf9b; --good-bg:#173226; --bad:#ff8078; --bad-bg:#3d1c1b;
  --teach:#b79cf5; --teach-bg:#2b2346; } }
.legend { display:flex; flex-wrap:wrap; gap:.4rem .6rem; margin:.8rem 0 1.2rem; font-size:.85rem; }
.legend .step { padding:.2rem .6rem; margin:0; display:block; width:auto; }
.rescue { border:1px solid var(--rule); border-radius:10px; margin:0 0 1.6rem; background:var(--card);
  overflow:hidden; break-inside:avoid; }
.rescue header { padding:.7rem 1rem; border-bottom:1px solid var(--rule); }
.rescue .prompt { font-family:var(--mono); white-space:pre-wrap; overflow-wrap:anywhere; }
.rescue .answer { color:var(--soft); font-size:.85rem; margin-top:.2rem; overflow-wrap:anywhere; }
.pair { display:grid; grid-template-columns:minmax(0,1fr) minmax(0,1fr); column-gap:1.2rem; padding:.5rem 1rem .8rem; }
.pair h3 { font-size:.75rem; text-transform:uppercase; letter-spacing:.06em; color:var(--soft); margin:.3rem 0 .4rem; }
.pair > * { min-width:0; }
.step { display:grid; grid-template-columns:minmax(0,1fr) auto; gap:.1rem .8rem; align-items:center;
  border-left:4px solid var(--rule); border-radius:4px; padding:.28rem .6rem; margin:0 0 .3rem; }
.step .text { font-family:var(--mono); font-size:.88rem; white-space:pre-wrap; overflow-wrap:anywhere; }
.step .who { grid-column:1 / -1; font-size:.7rem; font-weight:650; letter-spacing:.04em; text-transform:uppercase; }
.kept { border-color:var(--good); }
.after.kept { opacity:.62; }
.wrong { border-color:var(--bad); background:var(--bad-bg); } .wrong .who { color:var(--bad); }
.discarded .text { text-decoration:line-through; color:var(--soft); } .discarded .who { color:var(--soft); }
.discarded { border-left-style:dashed; }
.corrected { border-color:var(--teach); background:var(--teach-bg); } .corrected .who { color:var(--teach); }
.tail { border-color:var(--good); background:var(--good-bg); } .tail .who { color:var(--good); }
.score { display:flex; align-items:center; gap:.4rem; font-size:.76rem; color:var(--soft);
  font-variant-numeric:tabular-nums; }
.score .bar { position:relative; width:64px; height:7px; border-radius:4px; background:var(--rule); }
.score .bar i { position:absolute; inset:0 auto 0 0; border-radius:4px; background:var(--good); }
.wrong .score .bar i { background:var(--bad); } .discarded .score .bar i { background:var(--soft); }
.score .number { min-width:2.2em; text-align:right; } .score .mark { min-width:1em; text-align:center; }
.wrong .score .number { color:var(--bad); font-weight:650; }
.score .bar b { position:absolute; top:-3px; bottom:-3px; width:2px; background:var(--ink); }
.true { color:var(--good); } .false { color:var(--bad); }
.verdict { font-weight:650; margin-top:.35rem; padding-top:.45rem; border-top:1px solid var(--rule); }
.verdict.true { color:var(--good); } .verdict.false { color:var(--bad); } .verdict.none { color:var(--soft); }
.empty { color:var(--soft); font-style:italic; }
@media (max-width:700px) { .pair { grid-template-columns:minmax(0,1fr); } .pair > * { order:2; }
  .pair > .before { order:1; } .pair h3.after-title { order:2; margin-top:1.3rem; } .pair > .gap { display:none; } }
"""

_WHO = {
    "wrong": "first wrong step",
    "discarded": "thrown away",
    "corrected": "teacher",
    "tail": "policy, again",
}


def legend() -> str:
    """What the colours mean, in one row."""
    entries = [
        ("kept", "kept: the policy's good prefix"),
        ("wrong", "first wrong step, found by the process reward model"),
        ("discarded", "the rest of the failed rollout, thrown away"),
        ("corrected", "teacher: one corrected step"),
        ("tail", "policy, again: goes on by itself"),
    ]
    chips = "".join(
        f'<span class="step {name}"><span class="text">{text}</span></span>'
        for name, text in entries
    )
    bar = (
        '<span class="score"><span class="bar"><i style="width:70%"></i><b'
        ' style="left:45%"></b></span>'
    )
    words = "score of the step, with the threshold where known; ✓ ✗ the task's own check"
    return f'<div class="legend">{chips}{bar}{words}</span></div>'


def rescue(item: Mapping[str, Any]) -> str:
    """One `<article>`: the first rollout on the left, the repaired one on the right, kept steps
    level with each other.

    `item`: prompt, answer, steps [{text, score, owner, status, correct}], first_error,
    verdict_before, verdict_after; optionally `threshold` (of the score). `status` is one of kept,
    wrong, discarded (the first rollout), corrected, tail (the repaired one, after the kept steps).
    `score` in [0, 1] or None, `correct` and the verdicts True, False or None. Raises ValueError
    for another status.
    """
    for number, step in enumerate(item["steps"]):
        if step.get("status") not in STATUSES:
            raise ValueError(
                f"step {number}: status {step.get('status')!r}; one of {', '.join(STATUSES)} is"
                " expected"
            )
    by_status = {
        status: [step for step in item["steps"] if step["status"] == status] for status in STATUSES
    }
    kept, threshold = by_status["kept"], item.get("threshold")
    before = by_status["wrong"] + by_status["discarded"]
    after = by_status["corrected"] + by_status["tail"]
    cells = [
        '<h3 class="before">before: the failed rollout</h3>',
        '<h3 class="after-title">after: the repaired one</h3>',
    ]
    for step in kept:
        cells.append(_step(step, "before", threshold))
        cells.append(_step(step, "after", None, scored=False))
    said: set[str] = set()
    for row in range(max(len(before), len(after), 1)):
        for side, steps in (("before", before), ("after", after)):
            if row < len(steps):
                status = steps[row]["status"]
                # The tail of several steps says once who wrote it.
                cells.append(
                    _step(steps[row], side, threshold, label="" if status in said else _WHO[status])
                )
                said.add(status)
            elif row == 0 and side == "after":
                cells.append('<div class="after empty">not repaired</div>')
            else:
                cells.append(f'<div class="{side} gap"></div>')
    cells.append(_verdict(item.get("verdict_before"), "before"))
    cells.append(
        _verdict(item.get("verdict_after"), "after") if after else '<div class="after gap"></div>'
    )
    first = item.get("first_error")
    place = f" · first error at step {int(first) + 1}" if isinstance(first, int) else ""
    return (
        '<article class="rescue"><header><div'
        f' class="prompt">{_text(item.get("prompt", ""))}</div><div class="answer">reference'
        f" answer: {_text(item.get('answer', ''))}{place}</div></header><div"
        f' class="pair">{"".join(cells)}</div></article>'
    )


def galleries(items: Sequence[Mapping[str, Any]]) -> str:
    """The legend and every item."""
    return legend() + "".join(rescue(item) for item in items)


def _step(
    step: Mapping[str, Any], side: str, threshold: Any, label: str = "", scored: bool = True
) -> str:
    who = f'<span class="who">{html.escape(label)}</span>' if label else ""
    score = _score(step.get("score"), threshold) if scored else ""
    mark = _mark(step.get("correct")) if scored else ""
    side_class = f"{side} step {step['status']}"
    return (
        f'<div class="{side_class}">{who}<span'
        f' class="text">{_text(step.get("text", "")).rstrip()}</span><span'
        f' class="score">{score}{mark}</span></div>'
    )


def _score(score: Any, threshold: Any) -> str:
    if not _is_number(score):
        return ""
    width = 100 * min(max(float(score), 0.0), 1.0)
    tick = (
        f'<b style="left:{100 * min(max(float(threshold), 0.0), 1.0):.0f}%"></b>'
        if _is_number(threshold)
        else ""
    )
    bar = f'<span class="bar"><i style="width:{width:.0f}%"></i>{tick}</span>'
    return f'{bar}<span class="number">{float(score):.2f}</span>'


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _mark(correct: Any) -> str:
    if correct is None:
        return '<span class="mark"></span>'
    name, sign, word = ("true", "✓", "right") if correct else ("false", "✗", "wrong")
    return f'<span class="mark {name}" title="{word}, by the task\'s own check">{sign}</span>'


def _verdict(verdict: Any, side: str) -> str:
    name, text = {True: ("true", "✓ verified"), False: ("false", "✗ wrong answer")}.get(
        verdict, ("none", "? not judged")
    )
    return f'<div class="{side} verdict {name}">{text}</div>'


def _text(value: Any) -> str:
    return html.escape("" if value is None else str(value))
