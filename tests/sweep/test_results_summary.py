"""The short page of results: its table, its pictures and its part on temperatures, by hand."""

import json
import math
import re
from pathlib import Path

import pytest
from scipy import stats

from scope_jax.sweep import page
from scope_jax.sweep.figures import lead
from scope_jax.sweep.summary import summary
from scope_jax.sweep.summary_figures import CONDITIONS, conditions

PASS = "eval/pass@1"


def a_run(method: str, seed: int, level: float, paths: float = 2.0, **labels) -> dict:
    """A run of ten batches, whose figures follow from its level."""
    rise = [level * batch / 10 for batch in range(10)]
    final = {PASS: level, "eval/pass@4": 1.0, "eval_ood/pass@1": level / 2}
    return {
        "name": f"{method}_{seed}",
        "labels": {"domain": "toy", "method": method, "seed": seed, **labels},
        "final": final | {"eval/diversity/distinct_paths": paths},
        "mean": {"cost/rollout_tokens": 300.0 if method == "dapo" else 200.0},
        "curve": {"reward/mean": rise},
        "seconds_per_step": 3.0 if method == "scope_first" else 2.0,
    }


def table() -> list[dict]:
    """Four seeds of ours and GRPO, two of DAPO."""
    runs = []
    for seed in range(4):
        runs.append(a_run("scope_first", seed, 0.60 + seed / 50, paths=3.0))
        runs.append(a_run("grpo", seed, 0.50 + seed / 50))
    return [*runs, a_run("dapo", 0, 0.55), a_run("dapo", 1, 0.57)]


def warm(method: str, seed: int, level: float, paths: float) -> dict:
    """Evaluated at temperatures 1, 0.6 and 0 as well: ten points more at each colder one."""
    run = a_run(method, seed, level)
    for number, t in enumerate(("", "_t0.6", "_t0")):
        for name in ("eval", "eval_ood"):
            run["final"][f"{name}{t}/pass@1"] = level + 0.1 * number
            if t != "_t0":
                run["final"][f"{name}{t}/diversity/rarefied_paths"] = paths - 0.5 * number
    return run


def cells(text: str, name: str) -> list[str]:
    [row, *_] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_a_lead_is_paired_where_every_run_of_the_baseline_has_its_partner():
    runs = table()
    ours, grpo, dapo = runs[:8:2], runs[1:8:2], runs[8:]
    assert lead(ours, grpo, PASS).paired
    assert lead(ours, grpo, PASS).difference.mean == pytest.approx(0.1)
    assert lead(ours, grpo, PASS).difference.half == pytest.approx(0)
    few = lead(dapo, grpo, PASS)
    low, high = stats.ttest_ind(
        [0.55, 0.57], [0.50, 0.52, 0.54, 0.56], equal_var=False
    ).confidence_interval(0.95)
    assert not few.paired and few.difference.mean == pytest.approx(0.03)
    assert few.difference.half == pytest.approx((high - low) / 2)


def test_the_table_and_the_pictures(tmp_path: Path):
    again = [a_run(m, s, v + s / 50) for m, v in (("scope", 0.7), ("grpo", 0.4)) for s in (10, 11)]
    text = summary({"table": table(), "confirmation": again}, tmp_path)
    # 3 paths among 4 x 0.63 right samples against 2 / (4 x 0.53), in each seed of its own.
    gaps = [3.0 / (4 * (0.60 + s / 50)) - 2.0 / (4 * (0.50 + s / 50)) for s in range(4)]
    base = sum(2.0 / (4 * (0.50 + s / 50)) for s in range(4)) / 4
    ours = cells(text, "**scope_first**")
    assert ours[:4] == ["4", "63.0 ± 4.1", "+10.0 ± 0.0", "+5.0 ± 0.0"]
    assert ours[4].startswith(f"{100 * sum(gaps) / 4 / base:+.1f} ± ")
    assert ours[5:] == ["1.00", "1.50", "0"]
    assert cells(text, "grpo")[1:5] == ["53.0 ± 4.1", "", "", ""]
    assert cells(text, "dapo")[5:7] == ["1.50", "1.00"]
    # Beside a GRPO of its own, at 0.4 + 0.21.
    assert cells(text, "**scope**")[:3] == ["2", "91.0 ± 12.7", "+30.0 ± 0.0"]
    assert "beside a grpo that has 61.0 there" in text
    assert "temperatures" not in text
    names = {"results_paths.svg", "results_budgets.svg", "results_conditions.svg"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert set(re.findall(r"\]\(images/([^)]+)\)", text)) == names
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    said = {name: set(re.findall(r">([^<>]+)</text>", svg)) for name, svg in drawn.items()}
    assert {"toy", "scope_first", "grpo", "dapo"} <= said["results_paths.svg"]
    assert {"scope_first", "grpo", "dapo"} <= said["results_budgets.svg"]
    assert {"settings of the table", "other seeds"} & said["results_conditions.svg"]
    assert "half of the cuts misplaced" not in said["results_conditions.svg"]
    summary({"table": table(), "confirmation": again}, tmp_path)  # the same from the same records
    assert drawn == {path.name: path.read_text() for path in tmp_path.iterdir()}


def test_leads_by_condition():
    changed = [a_run("scope_first", s, 0.40 + s / 50, variant="no tail") for s in (0, 1)]
    rows = conditions({"table": table(), "ablations": changed}, "toy")
    found = {row[0]: row for row in rows if row}
    assert len(rows) == len(CONDITIONS) and len(found) == 3
    words, runs, (gap, paired) = found["step alone: no tail, not verified"]
    assert runs == 2 and not paired and gap.mean == pytest.approx(0.41 - 0.53)
    _, runs, (gap, paired) = found["settings of the table"]
    assert runs == 4 and paired and gap.mean == pytest.approx(0.1)
    assert [row for row in conditions({"table": table()}, "other") if row] == []


@pytest.mark.parametrize("place", ["temperatures", "table"])
def test_the_part_on_temperatures(tmp_path: Path, place: str):
    runs = [
        warm(method, s, level + s / 100, paths)
        for s in (0, 1, 2)
        for method, level, paths in (("scope", 0.6, 3.0), ("grpo", 0.4, 2.5), ("luffy", 0.3, 3.5))
    ]
    text = summary({"table": table()} | {place: runs}, tmp_path)
    part = text.split("### At several temperatures")[1]
    assert (
        "| toy: T = 1 | T = 0.6 | greedy | longer, T = 0.6 | rarefied paths, T = 0.6, % |" in part
    )
    # In points; paths 2.5 against 2.0 at the colder temperature.
    assert cells(part, "**scope**") == ["3", *["+20.0 ± 0.0"] * 4, "+25.0 ± 0.0"]
    assert cells(part, "grpo") == [
        *("3", "41.0 ± 2.5", "51.0 ± 2.5", "61.0 ± 2.5", "51.0 ± 2.5", "2.00 ± 0.00")
    ]
    assert cells(part, "luffy")[1:4] == ["-10.0 ± 0.0"] * 3
    assert "](images/results_temperatures.svg)" in part
    drawn = (tmp_path / "results_temperatures.svg").read_text()
    assert {"scope", "grpo", "luffy", "toy"} <= set(re.findall(r">([^<>]+)</text>", drawn))
    assert math.isclose(runs[0]["final"]["eval_t0/pass@1"], 0.8)


def test_the_command_writes_both_pages_or_neither(tmp_path: Path, capsys):
    for run in table():
        path = tmp_path / "records" / f"{run['name']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(run | {"updates": 10, "steps": 10}))
    whole, short = tmp_path / "whole.md", tmp_path / "short.md"
    empty = f"words\n\n{page.BEGIN}\n{page.END}\n"
    whole.write_text(empty)
    short.write_text("no markers\n")
    flags = [f"--page={whole}", f"--table={tmp_path / 'records'}"]
    assert page.main([*flags, f"--summary={short}"]) == 2
    assert "short.md: expected the lines" in capsys.readouterr().err
    assert whole.read_text() == empty
    short.write_text(empty)
    assert page.main([*flags, f"--summary={short}", f"--temperatures={tmp_path / 'none'}"]) == 0
    said = capsys.readouterr().out
    assert f"no records in {tmp_path / 'none'}: the page has no part on --temperatures" in said
    assert "images/results_toy.svg" in whole.read_text() and "seed by seed" in short.read_text()
    assert "images/results_paths.svg" in short.read_text()
    assert page.main([*flags, f"--summary={whole}"]) == 2
    assert "two files are needed" in capsys.readouterr().err
    assert page.main([f"--page={whole}", f"--table={tmp_path / 'none'}"]) == 2
    assert "no records in" in capsys.readouterr().err
