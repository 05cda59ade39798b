"""The switches of the advantage in runs of the whole program: off they change nothing, on they
change what is learned, and a run that goes on has the same advantages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny_runs import Tiny

from scope_jax.learning import credit
from scope_jax.run import read_metrics
from scope_jax.train import train

QUICK = {"steps": 2, "evaluation.problems": 0, "evaluation.ood_problems": 0}
SWITCHES: dict[str, dict[str, Any]] = {
    "off": {"advantage.pass_k_schedule": "constant"},
    "pass_k": {"advantage.pass_k": 2},
    "focal": {"advantage.focal": 1.0},
    "positive_weight": {"advantage.positive_weight": 0.5},
    "unique": {"advantage.unique": True},
    "smoothing": {"advantage.smoothing": 0.1},
}
# What depends on the clock or on the machine.
ASIDE = ("time/", "throughput/", "compile/", "memory/", "utilisation/", "peak")


def trained(checkpoints: Tiny, folder: Path, method: str, more: dict[str, Any]) -> Any:
    """(metrics of the steps, final weights) of a tiny run."""
    train(checkpoints.config(method, {**QUICK, **more}), folder)
    rows = read_metrics(folder / "metrics.jsonl")
    return rows, load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def plain(checkpoints: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(checkpoints, tmp_path_factory.mktemp("plain") / "run", "scope", {})


# Each compiles nothing of its own but is a run; their formulas: tests/learning/.
ALIKE = ("focal", "positive_weight")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name for name in SWITCHES],
)
def test_a_switch_of_scope(
    name: str, plain: Any, checkpoints: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name == "off":  # the advantages are those that there always were
        monkeypatch.setattr(credit, "diversified", lambda *_, **__: pytest.fail("asked"))
    rows, weights = trained(checkpoints, tmp_path / "run", "scope", SWITCHES[name])
    usual, other = plain
    same = {key: np.array_equal(weights[key], other[key]) for key in other}
    names = {key for key in rows[0] if key.startswith("advantage/")}
    plain_names = {key for key in usual[0] if key.startswith("advantage/")}
    # The first batch of rollouts is the same in any case, and so are its rescues.
    for key in ("reward/mean", "scope/accepted", "diversity/distinct_4"):
        assert rows[0].get(key) == usual[0].get(key), key
    if name == "off":
        assert all(same.values()) and names == plain_names
        compared = {k for k in usual[0] if not k.startswith(ASIDE) and "/" in k}
        assert [{k: row[k] for k in compared & row.keys()} for row in rows] == [
            {k: row[k] for k in compared & row.keys()} for row in usual
        ]
        return
    assert not all(same.values()) and "advantage/positive_share" in names - plain_names
    assert all(row["grad/skipped"] == 0 for row in rows)
    if name == "pass_k":
        assert [row["advantage/pass_k_share"] for row in rows] == [1.0, 0.5]
    if name == "unique":
        before, after = (
            [row[f"advantage/repeated_share{end}"] for row in rows] for end in ("", "_after")
        )
        assert any(a < b for a, b in zip(after, before))
    if name == "smoothing":
        assert rows[0]["advantage/smoothed_rows"] >= 2
        assert rows[0]["advantage/smoothing_unknown"] == 0


@pytest.mark.parametrize(
    "method",
    [
        "grpo",
        "luffy",
        pytest.param("dapo", marks=pytest.mark.long),
        pytest.param("prm_reward", marks=pytest.mark.long),
    ],
)
def test_other_methods_take_them_all_at_once(method: str, checkpoints: Tiny, tmp_path: Path):
    given = {key: value for name in SWITCHES for key, value in SWITCHES[name].items()}
    if method == "dapo":  # which punishes long rows
        del given["advantage.pass_k"]
    given |= {"models.teacher": str(checkpoints.policy), "models.prm": str(checkpoints.prm)}
    rows, _ = trained(checkpoints, tmp_path / "run", method, {**given, "steps": 1})
    assert rows[0]["grad/skipped"] == 0 and np.isfinite(rows[0]["advantage/positive_share"])
    assert ("advantage/pass_k_share" in rows[0]) == (method != "dapo")
    assert {"advantage/smoothed_rows", "advantage/repeated_share"} <= rows[0].keys()
    # Demonstrations, whose log-probs are a teacher's, are not asked for theirs.
    assert rows[0]["advantage/smoothing_unknown"] == 0
