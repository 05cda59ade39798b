"""Tables and pictures of the results page, by hand: curves with holes, budgets, baselines,
temperatures."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scope_jax.report.by_problem import ByProblem
from scope_jax.sweep import tables
from scope_jax.sweep.figures import compare, salvage_rate, shown, value
from scope_jax.sweep.frontier import draw_frontier, draw_frontiers, points_of
from scope_jax.sweep.statistics import welch
from scope_jax.sweep.temperatures import by_temperature, measured, temperatures_of
from scope_jax.sweep.training_tables import budgets, explained, rollout_diversity


def a_record(method: str, seed: int = 0, **more) -> dict:
    """A record; keywords are put over it."""
    labels = {"domain": "toy", "method": method, "seed": seed}
    usual = {
        "final": {},
        "mean": {},
        "curve": {},
        "steps": 6,
        "updates": 6,
        "seconds_per_step": 1.0,
    }
    return {"name": f"{method}_{seed}", "labels": labels, **usual, **more}


def cells(text: str, name: str) -> list[str]:
    """The cells of the first row of a table that begins with `name`."""
    [row, *_] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_a_curve_with_holes_has_no_mean_and_is_compared_where_both_have_points():
    late = [a_record("sft_grpo", s, curve={"reward/mean": [None, None, 0.5, 0.7]}) for s in (0, 1)]
    whole = [a_record("scope", s, curve={"reward/mean": [0.1, 0.3, 0.6, 0.8]}) for s in (0, 1)]
    metric = "curve:reward/mean"
    assert math.isnan(value(late[0], metric)) and value(whole[0], metric) == pytest.approx(0.45)
    # Over the last two batches: 0.7 - 0.6. The mean of what there is would say 0.45 - 0.6.
    assert compare(whole, late, metric).difference.mean == pytest.approx(0.1)
    assert compare(whole, late, metric).difference.count == 2
    shorter = [a_record("scope", 0, curve={"reward/mean": [0.1, 0.3]})]
    binned = [a_record("scope", 0, curve_every=2, curve={"reward/mean": [0.1, 0.3, 0.6, 0.8]})]
    none = [a_record("sft", 0)]
    for other in (shorter, binned, none):
        assert compare(whole, other, metric).difference.count == 0


def test_welch_is_scipys():
    rng = np.random.default_rng(0)
    for few, many in ((3, 20), (5, 20), (2, 2)):
        ours, theirs = rng.normal(1, 2, few).tolist(), rng.normal(0, 1, many).tolist()
        found = stats.ttest_ind(ours, theirs, equal_var=False)
        interval = found.confidence_interval(0.95)
        gap, p = welch([*ours, math.nan], theirs)
        assert p == pytest.approx(found.pvalue) and gap.count == few
        assert gap.mean - gap.half == pytest.approx(interval.low)
        assert gap.mean + gap.half == pytest.approx(interval.high)
    assert math.isnan(welch([1.0], [1.0, 2.0])[1]) and welch([], [1.0])[0].count == 0
    assert welch([1.0, 1.0], [2.0, 2.0])[1] == 0.0 and welch([1.0] * 2, [1.0] * 2)[1] == 1.0


def test_ablations_stand_against_all_runs_of_the_same_settings():
    def run(method, seed, level, settings, **labels):
        record = a_record(method, seed, settings={"seed": seed, **settings})
        record["labels"] |= labels
        record["final"] = {"eval/pass@1": level, "eval_ood/pass@1": level / 2}
        return record

    same, other = {"advantage.std": True}, {"advantage.std": False}
    records = [run("scope", s, 0.70, same, variant="as it was") for s in (0, 1)]
    records += [run("scope", s, 0.74 + s / 50, other, variant="no std") for s in (0, 1)]
    table = [run("scope_first", s, 0.70 + s / 100, same) for s in range(5)]
    strange = [run("scope", 9, 0.1, other), run("grpo", 9, 0.1, same)]
    text = tables.ablations(records, [*table, *strange])
    assert cells(text, "as it was")[:2] == ["5", "72.0 ± 2.0"]
    # 0.75 - 0.72; by scipy, not paired
    p = stats.ttest_ind([0.74, 0.76], [0.70, 0.71, 0.72, 0.73, 0.74], equal_var=False).pvalue
    gap, shown_p = cells(text, "no std")[7:9]
    assert gap.startswith("+3.0 ± ") and shown_p == f"{p:.2g}"
    alone = tables.ablations(records, strange)
    assert cells(alone, "as it was")[0] == "2" and cells(alone, "no std")[7].startswith("+5.0 ± ")


def test_a_method_that_is_not_shown_says_why():
    mean = {"rollout/batches": 1.5, "advantage/zero_group_share": 0.25}
    mean["advantage/zero_group_share_after"] = 0.0
    runs = [a_record("dapo_equal", s, mean=mean, settings={"rollout.prompts": 8}) for s in (0, 1)]
    text = tables.left_out([*runs, a_record("grpo")], "toy")
    assert "`dapo_equal` (2 runs)" in text
    assert "12.0 prompts a batch, of which 9.0 have an advantage, and trains on 8.0" in text
    assert tables.left_out(runs, "other") == "" and shown([*runs, a_record("grpo")]) == [
        a_record("grpo")
    ]


def test_salvage_of_rows_that_nobody_verified_is_not_a_rate():
    tried = {"scope/selected": 4.0, "scope/accepted": 2.0}
    assert salvage_rate([a_record("scope", mean=tried)]) == 0.5
    for settings in (  # by today's names, and by those of earlier records
        {"method.name": "scope", "method.accept": "unverified"},
        {"correction.enabled": True, "correction.accept": "unverified"},
    ):
        assert math.isnan(salvage_rate([a_record("scope", mean=tried, settings=settings)]))


def curves(reward, paths, entropy=0.2):
    return {
        "reward/mean": reward,
        "diversity/distinct_paths": paths,
        "policy/entropy": [entropy] * len(reward),
    }


def test_diversity_of_the_rollouts_by_hand():
    # The baseline has ten paths times the reward; ours a tenth more at each reward.
    rewards = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.3, 0.4, 0.4, 0.5]])
    grpo = [
        a_record("grpo", s, curve=curves(r.tolist(), (10 * r).tolist()))
        for s, r in enumerate(rewards)
    ]
    more = rewards + 0.1
    ours = [
        a_record("scope", s, curve=curves(r.tolist(), (11 * r).tolist(), 0.1))
        for s, r in enumerate(more)
    ]
    hole = [a_record("luffy", 0, curve=curves([0.1] * 6, [1.0, None, 1.0, 1.0, 1.0, 1.0]))]
    text = rollout_diversity({"scope": ours, "grpo": grpo, "luffy": hole})
    found = cells(text, "scope")
    # Whole run: GRPO's paths are 3.5 in both, ours 1.1 x 4.5 = 4.95.
    assert found[0] == "2" and found[4] == "+41.4 ± 0.0"
    # First third: 1.5 and 2.5 against 1.1 x (2.5 and 3.5): differences 1.25 and 1.35 over 2.
    half = 12.706 * math.sqrt(0.005) / math.sqrt(2) / 2
    assert found[1] == f"+65.0 ± {100 * half:.1f}"
    assert found[5] == "+10.0 ± 0.0" and found[6] == "-50.0 ± 0.0"
    assert "| luffy" not in text and rollout_diversity({"scope": ours}) == ""


def test_the_reward_at_equal_budgets_by_hand():
    def runs(method, tokens, seconds):
        return [
            a_record(
                method,
                s,
                curve={"reward/mean": [i / 20 for i in range(20)]},
                mean={"cost/rollout_tokens": tokens, "cost/tail_tokens": tokens},
                seconds_per_step=seconds,
            )
            for s in (0, 1)
        ]

    text = budgets({"scope": runs("scope", 100.0, 2.0), "grpo": runs("grpo", 50.0, 1.5)})
    # Batches 15 to 19 of 20; half of the batches at twice the tokens: 5 to 9; 15 at 4/3 seconds.
    assert cells(text, "scope") == [
        *("2", "85.0 ± 0.0", "35.0 ± 0.0 (10)", "2.00", "60.0 ± 0.0 (15)", "1.33")
    ]
    assert cells(text, "grpo")[1:] == [
        *("85.0 ± 0.0", "85.0 ± 0.0 (20)", "1.00", "85.0 ± 0.0 (20)", "1.00")
    ]
    # A longer run is read where grpo's budget ends, not its own.
    longer = runs("longer", 50.0, 1.5)
    for record in longer:
        record["curve"]["reward/mean"] += [1.0] * 4
    text = budgets({"longer": longer, "grpo": runs("grpo", 50.0, 1.5)})
    assert cells(text, "longer")[1:4] == ["85.0 ± 0.0", "85.0 ± 0.0 (20)", "1.00"]
    # One point of whose curve is several batches is not read as if it were one.
    binned = runs("binned", 50.0, 1.5)
    for record in binned:
        record["curve_every"] = 2
    assert "| binned |" not in budgets({"binned": binned, "grpo": runs("grpo", 50.0, 1.5)})
    own = runs("scope", 40.0, 2.0)  # 80 and 20 more for tries before the teacher is asked
    for record in own:
        record["mean"]["cost/self_tokens"] = 20.0
    text = budgets({"scope": own, "grpo": runs("grpo", 50.0, 1.5)})
    assert cells(text, "scope")[2:4] == ["85.0 ± 0.0 (20)", "1.00"]
    cheap = budgets({"luffy": runs("luffy", 25.0, 0.5), "grpo": runs("grpo", 50.0, 1.5)})
    assert cells(cheap, "luffy")[2:4] == ["85.0 ± 0.0 (20)", "0.50"]  # at its end
    holes = a_record("sft_grpo", curve={"reward/mean": [None] * 10 + [0.5] * 10})
    assert "sft_grpo" not in budgets({"grpo": runs("grpo", 1.0, 1.0), "sft_grpo": [holes]})
    assert budgets({"scope": runs("scope", 1.0, 1.0)}) == ""


def test_what_accuracy_explains_by_hand():
    """Entropy is 2 - pass@1 in the baseline; ours lies on the line, the other one 10 % above it."""

    def run(method, seed, accuracy, scale=1.0):
        final = {"eval/pass@1": accuracy, "eval/diversity/answer_entropy": scale * (2 - accuracy)}
        return a_record(method, seed, final=final)

    methods = {
        "scope": [run("scope", s, 0.7) for s in range(3)],
        "luffy": [run("luffy", s, 0.5, 1.1) for s in range(3)],
        "sft": [run("sft", 0, 0.95)],
        "grpo": [run("grpo", s, 0.5 + s / 50) for s in range(8)],
    }
    text = explained(methods)
    assert cells(text, "r over grpo's seeds")[1:] == ["-1.00"]
    # grpo's mean: 2 - 0.57 = 1.43.
    assert cells(text, "scope") == ["3", f"{100 * (1.3 / 1.43 - 1):+.1f} → +0.0"]
    assert cells(text, "luffy") == ["3", f"{100 * (1.65 / 1.43 - 1):+.1f} → +10.0"]
    assert "| sft |" not in text  # 0.95 is too far from 0.5 to 0.64
    assert explained(methods | {"grpo": methods["grpo"][:7]}) == ""


def warm(method: str, seed: int, level: float, paths: float) -> dict:
    """A run evaluated at temperatures 1, 0.6 and 0: ten points more accurate at each colder one."""
    final = {}
    for number, name in enumerate(("eval", "eval_t0.6", "eval_t0")):
        final[f"{name}/pass@1"] = level + 0.1 * number
        if name != "eval_t0":
            final |= {
                f"{name}/pass@32": 0.9,
                f"{name}/diversity/rarefied_paths": paths - 0.2 * number,
                f"{name}/diversity/rarefied_problems": 300.0,
                f"{name}/diversity/distinct_4_right": 0.5,
            }
    usual = round(32 * (level - seed / 100))
    right = [usual + seed, usual - seed, 0]
    counts = {"eval": ByProblem(32, "1f", right, [1, 1, 0]).to_json()}
    return a_record(method, seed, final=final, by_problem=counts)


def test_tables_by_temperature_by_hand():
    methods = {
        name: [warm(name, s, level + s / 100, paths) for s in (0, 1, 2)]
        for name, level, paths in (("scope", 0.6, 3.0), ("scope_off", 0.5, 3.3), ("grpo", 0.4, 3.1))
    }
    assert measured(methods) == {"eval": {1.0: "eval", 0.6: "eval_t0.6", 0.0: "eval_t0"}}
    text = by_temperature(methods)
    rows = [line for line in text.splitlines() if line.startswith("| scope |")]
    assert rows[0].startswith("| scope | 1 | 3 | 61.0 ± 2.5 | 90.0 ± 0.0 | 3.00 ± 0.00 | 300 |")
    assert rows[1].startswith("| scope | 0.6 | 3 | 71.0 ± 2.5 | 90.0 ± 0.0 | 2.80 ± 0.00 | 300 |")
    assert rows[2] == "| scope | 0 | 3 | 81.0 ± 2.5 | - | - | - | - | - |"
    pairs = [line for line in text.splitlines() if re.match(r"\| \w+ - \w+ \|", line)]
    assert [line.split("|")[1].strip() for line in pairs[::3]] == [
        *("scope - scope_off", "scope - grpo", "scope_off - grpo")
    ]
    first = [cell.strip() for cell in pairs[3].strip("|").split("|")]
    assert first[1:4] == ["1", "3", "+20.0 ± 0.0 (p 0.25, 3 ahead)"]
    # 19 and 13 of 32 on the first two problems (seeds cancel), 0 on the third.
    gaps = np.array([6 / 32, 6 / 32, 0])
    assert first[4] == f"{100 * gaps.mean():+.1f} ± {196 * gaps.std(ddof=1) / math.sqrt(3):.1f}"
    assert first[5] == f"{100 * (3.0 / 3.1 - 1):+.1f} ± 0.0 (p 0.25)"
    other = warm("scope", 0, 0.6, 3.0)
    other["by_problem"]["eval"]["problems"] = "2f"
    mixed = by_temperature({"scope": [other], "grpo": [warm("grpo", 0, 0.4, 3.0)]})
    assert "| scope - grpo | 1 | 1 | +20.0 (p 1, 1 ahead) | - |" in mixed
    old = a_record("grpo", final={"eval/pass@1": 0.5, "eval/pass@8": 0.9})
    assert by_temperature({"grpo": [old]}) == "" and temperatures_of(old, "eval") == {1.0: "eval"}
    cold = a_record("grpo", settings={"evaluation.temperature": 0.6}, final=old["final"])
    assert temperatures_of(cold, "eval") == {0.6: "eval"}
    assert measured({"grpo": [cold, cold]}) == {}
    for methods in ({"grpo": [old], "scope": [cold]}, {"grpo": [cold, warm("grpo", 0, 0.4, 3.0)]}):
        with pytest.raises(ValueError, match=r"eval/: records with .* 0\.6, 1 in one table"):
            measured(methods)


def test_the_picture_of_accuracy_and_diversity(tmp_path: Path):
    methods = {
        name: [warm(name, s, level + s / 100, paths) for s in (0, 1)]
        for name, level, paths in (("scope", 0.6, 3.0), ("grpo", 0.4, 3.1))
    }
    points = points_of(methods, measured(methods)["eval"])
    assert [(t, round(x, 3), y) for t, x, _, y, _ in points["scope"]] == [
        *((1.0, 0.605, 3.0), (0.6, 0.705, pytest.approx(2.8)))  # greedy has no paths
    ]
    path = tmp_path / "images" / "frontier_toy.svg"
    assert draw_frontier(methods, path)
    drawn = path.read_text()
    assert len(drawn) < 60_000
    words = set(re.findall(r">([^<>]+)</text>", drawn))
    assert {"scope", "grpo", "in distribution", "pass@1 (triangles: greedy)"} <= words
    # The seeds differ in accuracy, which lies to the right, and not in paths: of each of four
    # points a bar that is as high as its point and goes to both sides, and one that is a dot.
    line = r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n" clip-path="[^"]+" style="[^"]+: 0.6"'
    bars = [tuple(map(float, ends)) for ends in re.findall(line, drawn)]
    assert len(bars) == 8 and all(y0 == y1 for _, y0, _, y1 in bars)
    assert sum(x1 - x0 > 1 for x0, _, x1, _ in bars) == 4
    assert draw_frontier(methods, path) and path.read_text() == drawn
    old = {"grpo": [a_record("grpo", final={"eval/pass@1": 0.5})]}
    assert not draw_frontier(old, tmp_path / "none.svg") and not (tmp_path / "none.svg").exists()


def test_a_method_has_one_colour_in_all_panels(tmp_path: Path):
    """Though the methods of two domains come in other orders: the key stands in the first panel."""
    levels = (("scope", 0.6, 3.0), ("grpo", 0.4, 3.1), ("dapo", 0.3, 3.2), ("luffy", 0.2, 3.3))
    made = {name: [warm(name, s, x + s / 100, y) for s in (0, 1)] for name, x, y in levels}
    backwards = dict(reversed(made.items()))
    assert draw_frontiers({"one": made, "two": backwards}, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    panels = [part.split("</g>\n </g>")[0] for part in drawn.split('<g id="axes_')[1:]]
    marker = r'<use xlink:href="#m[^"]+" x="([\d.]+)" y="([\d.]+)" style="fill: (#\w+)'
    colours = []
    for panel in panels:
        found = [(float(y), float(x), colour) for x, y, colour in re.findall(marker, panel)]
        bottom = max(y for y, _, _ in found)
        # The triangles, one of each method, from left to right by accuracy.
        colours.append([colour for y, _, colour in sorted(found) if y == bottom])
    assert len(colours) == 2 and len(set(colours[0])) == len(colours[0]) == 4
    assert colours[0] == colours[1]
