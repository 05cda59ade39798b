"""Effects of switches that are tried together: by hand, and against means of runs."""

import itertools
import math

import numpy as np
import pytest

from scope_jax.sweep.factorial import effects, factorial
from scope_jax.sweep.runs import load_sweep
from tests.sweep.test_page_tables import a_record

TWO = [{"a": a, "b": b} for a in (False, True) for b in (False, True)]


def test_effects_by_hand():
    # off/off 1, b 3, a 2, both 8: a (2 + 8 - 1 - 3) / 2 = 3, b (3 + 8 - 1 - 2) / 2 = 4; a adds 1
    # where b is off and 5 where it is on: half of the difference is 2.
    found = effects(TWO, [0] * 4, [1.0, 3.0, 2.0, 8.0])
    assert {term: round(e.mean, 9) for term, e in found.items()} == {("a",): 3, ("b",): 4}
    # One seed: what both together do is the noise, 1 in each run; t of one degree of freedom.
    assert [e.half for e in found.values()] == pytest.approx([12.7062 * 2, 12.7062 * 2], rel=1e-4)
    alone = effects(TWO[::3], [0] * 2, [1.0, 2.0])  # a and b are always alike
    assert alone == {}
    three = effects(TWO[:3], [0] * 3, [1.0, 3.0, 2.0])
    assert all(math.isnan(e.half) and e.count == 3 for e in three.values()) and len(three) == 2
    # A second seed at another level takes nothing from the effects; without noise no width.
    means = {("a",): 3, ("b",): 4, ("a", "b"): 2}
    found = effects(TWO * 2, [0] * 4 + [1] * 4, [1.0, 3.0, 2.0, 8.0, 11.0, 13.0, 12.0, 18.0])
    assert {t: round(e.mean, 9) for t, e in found.items()} == means
    assert all(e.half == pytest.approx(0, abs=1e-6) for e in found.values())
    # A run without a value is left out: of the second seed, which says nothing by itself then.
    found = effects([*TWO, TWO[0]], [0, 0, 0, 0, 1], [1.0, 3.0, 2.0, 8.0, math.nan])
    assert {t: round(e.mean, 9) for t, e in found.items()} == {("a",): 3, ("b",): 4}
    assert found["a",].count == 4
    assert effects(TWO, [0] * 4, [math.nan] * 4) == {}


def test_effects_are_differences_of_means_and_their_width_that_of_the_noise():
    """The half of 2^5 whose last switch is the product of the others: in a balanced design an
    effect is the difference of the means of the two halves of the runs, its variance 4 s^2 / N."""
    rng = np.random.default_rng(0)
    half = [
        dict(zip("abcde", [*on, sum(on) % 2 == 1]))
        for on in itertools.product((False, True), repeat=4)
    ]
    switches, seeds = half * 3, np.repeat([7, 8, 9], 16)
    y = rng.normal(size=48) + np.array([2.0 * one["c"] for one in switches]) + seeds
    found = effects(switches, seeds.tolist(), y.tolist())
    assert len(found) == 5 + 10
    left = y - np.array([y[seeds == s].mean() for s in seeds])
    for term, effect in found.items():
        high = np.array([sum(one[name] for name in term) % 2 == len(term) % 2 for one in switches])
        assert effect.mean == pytest.approx(y[high].mean() - y[~high].mean())
        left -= np.where(high, 0.5, -0.5) * effect.mean
    noise = math.sqrt(left @ left / (48 - 15 - 3))
    width = 2.0423 * noise * 2 / math.sqrt(48)  # Student's t of 30 degrees of freedom
    assert [e.half for e in found.values()] == pytest.approx([width] * 15, rel=1e-4)


def test_what_cannot_be_told_apart_is_not_there():
    # c = a xor b: the effect of a and b together looks like that of c.
    third = [{**one, "c": one["a"] != one["b"]} for one in TWO]
    assert set(effects(third * 2, [0] * 8, [1.0, 3, 2, 8] * 2)) == {("a",), ("b",), ("c",)}
    same = [{"a": on, "b": on} for on in (False, True)] * 2
    assert effects(same, [0] * 4, [1.0, 2, 1, 2]) == {}


def test_the_part_of_the_page():
    records = []
    for seed, one in itertools.product((0, 1, 2), TWO):
        noise = 0.001 * ((seed * 7 + 3 * one["a"] + one["b"]) % 3)
        final = {
            "eval_t0.6/pass@1": 0.5 + 0.1 * one["a"] + 0.02 * seed + noise,
            "eval_t0.6/diversity/rarefied_paths": 3.0 + 0.3 * one["b"] + noise,
        }
        record = a_record("scope", seed, final=final)
        record["labels"] |= {"switches": one}
        record["mean"] |= {"cost/rollout_tokens": 1000.0 * (1 + one["a"])}
        records.append(record)
    text = factorial(records)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `") or line.startswith("| none")
    ]
    a, b = rows[:2]
    assert a[0] == "`a`" and a[1].startswith("+10.0 ± ") and a[2] == "-"
    assert b[0] == "`b`" and b[4].startswith("+9.5 ± ")  # 0.3 of a mean of 3.15
    assert a[7] == "+66.7 ± 0.0"  # 1,000 of 1,500
    assert {row[0] for row in rows[-4:-2]} == {"`a`", "`a`, `b`"}  # the most accurate first
    assert {row[0]: row[8] for row in rows[-4:]} == {
        "none": "1.00", "`a`": "2.00", "`b`": "1.00", "`a`, `b`": "2.00",
    }  # fmt: skip


def test_the_combinations_that_are_run_tell_all_effects_apart():
    runs, _ = load_sweep("configs/sweeps/factorial.py")
    first = [run for run in runs if run.name.startswith("countdown/") and run.labels["seed"] == 400]
    assert len(first) == 16 and len(runs) == 16 * 2 * 6
    both = [r.labels["switches"] for r in first] * 2
    found = effects(both, [400] * 16 + [401] * 16, list(map(float, range(32))))
    assert len(found) == 15
    overrides = {run.name.split("/")[1]: run.overrides for run in first}
    assert "method.place" not in overrides["scope_plain"]
    everything = overrides["scope_pair_all_failed_resample_smoothing"]
    assert everything["method.place"] == "pair" and everything["method.credit"] == "divergence"
    assert everything["method.select.groups"] == "all_failed"
    assert everything["method.resample"] == 2 and everything["advantage.smoothing"] == 0.05
    assert "teacher.first" not in everything
