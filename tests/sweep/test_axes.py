"""The lead against one condition at a time, by hand."""

import re
from pathlib import Path

import pytest

from scope_jax.sweep.axes import axes_table, draw_axes, points_of
from scope_jax.sweep.summary import summary
from scope_jax.sweep.svg import picture
from tests.sweep.test_page_tables import a_record


def a_run(method: str, seed: int, level: float, axis: str = "", at: float | None = None) -> dict:
    record = a_record(
        method,
        seed,
        final={"eval_t0.6/pass@1": level + seed / 50, "eval_ood_t0.6/pass@1": level / 2},
        settings={"localiser.noise": at} if axis == "noise" else {},
        mean={"scope/selected": 10.0, "scope/accepted": 4.0} if method == "scope" else {},
    )
    if axis:
        record["labels"] |= {"axis": axis, "level": at}
    return record


USUAL = [a_run(m, s, v) for m, v in (("scope", 0.7), ("grpo", 0.5)) for s in (0, 1, 2)]
CHANGED = [
    *(a_run(m, s, v, "sparsity", 0.6) for m, v in (("scope", 0.8), ("grpo", 0.75)) for s in (0, 1)),
    *(a_run(m, 0, v, "sparsity", 0.97) for m, v in (("scope", 0.4), ("grpo", 0.1))),
    *(a_run("scope", s, 0.55, "noise", 1.0) for s in (0, 1)),
]


def test_points_by_hand():
    sparsity = points_of(CHANGED, USUAL, "sparsity")
    assert [(p.level, p.x) for p in sparsity] == [(0.6, 0.6), (None, 0.9), (0.97, 0.97)]
    assert [p.lead.mean for p in sparsity] == pytest.approx([0.05, 0.2, 0.3])
    assert [p.longer.mean for p in sparsity] == pytest.approx([0.025, 0.1, 0.15])
    # The usual runs of the seeds that the changed ones have: not seed 2.
    assert [p.lead.count for p in sparsity] == [2, 2, 1]
    # A changed cut stands against the baseline as it is.
    noise = points_of(CHANGED, USUAL, "noise")
    assert [(p.level, p.x, round(p.lead.mean, 9)) for p in noise] == [
        (None, 0.0, 0.2),
        (1.0, 1.0, 0.05),
    ]
    assert points_of(CHANGED, USUAL, "teacher") == []
    # Without the usual runs a changed base has its pair still, a changed cut has none.
    assert [p.level for p in points_of(CHANGED, [], "sparsity")] == [0.6, 0.97]
    assert points_of(CHANGED, [], "noise") == []


def test_the_table_and_the_picture(tmp_path: Path):
    rows = [line for line in axes_table(CHANGED, USUAL).splitlines() if line.startswith("|")][2:]
    assert len(rows) == 5
    assert rows[0] == (
        "| share of borrows that the base has wrong | 0.60 | `sparsity_0.6` | 2 | 76.0 ± 12.7"
        " | 81.0 ± 12.7 | +5.0 ± 0.0 | +2.5 ± 0.0 | 0.40 |"
    )
    assert "| as it is | 2 | 51.0 ± 12.7 | 71.0 ± 12.7 | +20.0 ± 0.0 |" in rows[1]
    assert axes_table([], USUAL) == ""
    assert draw_axes(CHANGED, USUAL, tmp_path / "axes.svg")
    said = set(re.findall(r">([^<>]+)</text>", (tmp_path / "axes.svg").read_text()))
    assert {"in distribution", "longer problems", "share of the cuts misplaced on purpose"} <= said
    assert "salvage rate, with teachers that err like the base" not in said
    assert not draw_axes([], USUAL, tmp_path / "none.svg") and not (tmp_path / "none.svg").exists()


def test_the_summary_shows_it_in_place_of_the_conditions_of_other_sweeps(tmp_path: Path):
    table = [a_record(m, s, final={"eval/pass@1": 0.5}) for m in ("scope", "grpo") for s in (0, 1)]
    text = summary({"table": table, "conditions": CHANGED, "temperatures": USUAL}, tmp_path)
    assert "images/results_axes.svg" in text and "results_conditions.svg" not in text
    assert "images/results_conditions.svg" in summary({"table": table}, tmp_path)


def test_a_picture_is_shortened_but_what_is_read_in_it_is_not(tmp_path: Path):
    with picture(tmp_path / "a.svg", 3, 2) as figure:
        axes = figure.subplots()
        axes.plot([0.0251, 0.0753], [0, 1])
        axes.set_xticks([0.025, 0.075])
    drawn = (tmp_path / "a.svg").read_text()
    assert {"0.025", "0.075"} <= set(re.findall(r">([^<>]+)</text>", drawn))
    assert not re.search(r'\sd="[^"]*\.\d{3}', drawn)
