"""The table of SCOPE+ against rivals at equal tokens, by hand."""

import pytest

from scope_jax.sweep.hypothesis import breadth, ending, hypothesis, verdicts
from scope_jax.sweep.summary import summary
from tests.sweep.test_page_tables import a_record, cells
from tests.sweep.test_results_summary import table, warm

TOKENS = dict.fromkeys(
    ("rollouts", "tails", "own_tries", "localiser", "teacher", "demonstrations"), 0
)


def a_run(method: str, seed: int, level: float, paths: float = 3.0, **tokens: int) -> dict:
    """Level grows by a point a seed in every method: differences have no spread."""
    final = {
        "eval/pass@1": level + (seed - 595) / 100,
        "eval_ood/pass@1": level / 2,
        "eval/diversity/rarefied_paths": paths,
        "eval/diversity/distinct_4_right": paths / 10,
    }
    return a_record(
        method,
        seed,
        final=final,
        tokens=TOKENS | {"rollouts": 1000} | tokens,
        settings={"evaluation.temperature": 0.6},
    )


RUNS = [
    a_run(method, seed, level, **more)
    for seed in (600, 601)
    for method, level, more in (
        ("grpo", 0.50, {}),
        ("dapo", 0.56, {"paths": 3.3}),
        ("scope", 0.60, {"rollouts": 1000, "tails": 50, "teacher": 300}),
        ("scope_plus", 0.66, {"paths": 3.6, "rollouts": 900, "tails": 30, "teacher": 200}),
        ("sft_grpo_few", 0.52, {"demonstrations": 2000}),
    )
]


def test_cells_are_levels_of_the_baseline_and_differences_of_the_others():
    text = hypothesis(RUNS)
    assert cells(text, "grpo") == ["2", "55.5 ± 6.4 / 25.0 ± 0.0", "1.00", "0.0"]
    ours = cells(text, "**scope_plus**")
    assert ours[1] == "+16.0 ± 0.0 / +8.0 ± 0.0"
    assert ours[2:] == ["0.93", "0.2"]  # 900 and 30 of the tails; 200 of the teacher
    assert cells(text, "sft_grpo_few")[2:] == ["1.00", "2.0"]
    assert cells(breadth(RUNS), "grpo") == ["3.00 ± 0.00 / 0.30 ± 0.00"]
    assert cells(breadth(RUNS), "**scope_plus**") == ["+20.0 ± 0.0 / +20.0 ± 0.0"]
    # Ours first, the baseline after them.
    order = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert order[1:4] == ["**scope_plus**", "**scope**", "grpo"]


def test_the_verdict_is_over_the_best_rival_of_each_column_and_scope_is_none():
    [line] = [line for line in verdicts(RUNS).splitlines() if line.startswith("* ")]
    assert "in distribution +10.0 ± 0.0 points over dapo (asked for: +1.8)" in line
    assert "longer problems +5.0 ± 0.0 points over dapo (asked for: +3.2)" in line
    assert "rarefied paths +20.0 ± 0.0 % over grpo (asked for: +13.5)" in line


@pytest.mark.parametrize("missing", [("scope_plus", "scope"), ("grpo",)], ids=str)
def test_without_ours_or_the_baseline_there_is_no_table(missing: tuple, tmp_path):
    rest = [run for run in RUNS if run["labels"]["method"] not in missing]
    assert hypothesis(rest) == breadth(rest) == verdicts(rest) == ""
    assert "SCOPE+ at equal tokens" not in summary({"table": table(), "hypothesis": rest}, tmp_path)


def test_rivals_that_did_not_run_are_named_and_the_best_is_one_of_common_seeds():
    late = a_run("scope_off", 600, 0.95)
    late["labels"]["seed"] = 700  # the best by far, of a seed that SCOPE+ has not
    [line] = [line for line in verdicts([*RUNS, late]).splitlines() if line.startswith("* ")]
    assert "without scope_off, dapo_tokens, which did not run" in line
    assert "in distribution +10.0 ± 0.0 points over dapo" in line


def test_the_verdict_on_a_loss_that_ends_halfway():
    def end(method: str, seed: int, longer: float, level: float = 0.9) -> dict:
        run = a_run(method, seed, level)
        run["final"]["eval_ood/pass@1"] = longer
        return run

    runs = [end("grpo", 620, 0.50, 0.5), end("grpo", 621, 0.60, 0.5)]
    runs += [end("scope", 620, 0.40), end("scope", 621, 0.20)]
    runs += [end("scope_half", 620, 0.58, 0.88), end("scope_half", 621, 0.56, 0.88)]
    text = ending(runs)
    assert "longer problems +2.0 ± " in text and "worst seed, 621, -4.0 (above -30)" in text
    assert "in distribution -2.0 ± 0.0 over scope (above -1)" in text
    assert ending(RUNS) == ""


def test_without_scope_plus_there_is_a_table_and_no_verdict():
    rest = [run for run in RUNS if run["labels"]["method"] != "scope_plus"]
    assert "**scope**" in hypothesis(rest) and verdicts(rest) == ""


def test_the_summary_has_it_in_place_of_the_table_by_temperature(tmp_path):
    runs = [warm(m, s, 0.5, 3.0) for m in ("scope", "grpo") for s in (0, 1)]
    known = {"table": table(), "temperatures": runs}
    alone, both = summary(known, tmp_path), summary(known | {"hypothesis": RUNS}, tmp_path)
    assert "SCOPE+ at equal tokens" in both and "SCOPE+ at equal tokens" not in alone
    assert "| toy: T = 1 |" in alone and "| toy: T = 1 |" not in both
    assert "](images/results_temperatures.svg)" in alone and "temperatures.svg)" in both


def test_runs_of_another_base_have_a_table_of_their_own():
    later = [
        {**run, "labels": {**run["labels"], "domain": "arithmetic_long_again"}}
        for run in RUNS
        if run["labels"]["method"] in ("grpo", "scope")
    ]
    for text in (hypothesis(RUNS + later), breadth(RUNS + later)):
        first, second = (part.split("\n\n")[0] for part in text.split("| method |")[1:])
        assert "toy" in first and "second base" not in first and "**scope_plus**" in first
        assert "second base" in second and "toy" not in second and "**scope_plus**" not in second
    beside = [
        {**run, "labels": {**run["labels"], "domain": "arithmetic_long_late_again"}} for run in RUNS
    ]
    assert "180 batches" in hypothesis(beside) and verdicts(beside) == ""


def test_a_method_that_a_task_lacks_is_a_dash():
    other = [{**run, "labels": {**run["labels"], "domain": "other"}} for run in RUNS]
    some = [run for run in other if run["labels"]["method"] != "dapo"]
    found = cells(hypothesis(RUNS + some), "dapo")
    assert found[0] == "2/0" and found[2:] == ["-", "1.00, -", "0.0, -"]
    assert cells(breadth(RUNS + some), "dapo")[1] == "-"
