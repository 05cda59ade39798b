"""Runs with each switch of the correction, on the tiny checkpoints: stopped and gone on, the same
numbers to the last bit."""

from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import Tiny

from scope_jax.run import read_metrics
from scope_jax.train import train

QUICK = {"steps": 2, "evaluation.problems": 0, "evaluation.ood_problems": 0}
RUNS: dict[str, dict[str, Any]] = {
    "pair": {
        "method.place": "pair",
        "method.credit": "divergence",
        "method.spare_prefix": True,
        "training.mini_batches": 2,
        "training.length_buckets": 2,
    },
    "all failed": {
        "rollout.group": 2,  # many of which fail altogether
        "method.select.groups": "all_failed",
        "method.select.rule": "top",
        "method.select.per_group": 1,
    },
    "policy first": {"teacher.first": "self", "teacher.self_tries": 2},
    "candidates": {"method.candidates": 2, "teacher.temperature": 1.0, "method.rows_at_once": 8},
}


def run(checkpoints: Tiny, folder: Path, more: dict[str, Any]) -> list[dict[str, float]]:
    train(checkpoints.config("scope", {**QUICK, **more}), folder)
    return read_metrics(folder / "metrics.jsonl")


def apart_from_time(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    measured = ("time/", "throughput/", "memory/", "compile/", "wall")
    return [{k: v for k, v in row.items() if not k.startswith(measured)} for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_the_switch_goes_on_as_if_it_had_not_stopped(
    name: str, checkpoints: Tiny, tmp_path: Path
):
    rows = run(checkpoints, tmp_path / "whole", RUNS[name])
    assert len(rows) == 2 and all(row["grad/skipped"] == 0 for row in rows)
    assert any(row.get("grad/norm", 0) > 0 for row in rows)
    CHECKS[name](rows)
    # One step, then the other one in another process's place: the same numbers to the last bit.
    run(checkpoints, tmp_path / "parts", {**RUNS[name], "steps": 1})
    config = checkpoints.config("scope", {**QUICK, **RUNS[name]})
    train(config, tmp_path / "parts", allow_changed=("steps",))
    parts = read_metrics(tmp_path / "parts" / "metrics.jsonl")
    assert apart_from_time(parts) == apart_from_time(rows)


def check_pairs(rows: list[dict[str, float]]) -> None:
    accepted = sum(row["scope/accepted"] for row in rows)
    assert 0 < sum(row["scope/paired"] for row in rows) <= accepted
    # A pair has two prefixes of five tokens (all problems have two terms), an accepted row alone
    # one, and so has a failure whose error is in its second line.
    for row in rows:
        assert row["scope/spared_tokens"] % 5 == 0
        assert row["scope/spared_tokens"] >= 5 * (row["scope/accepted"] + row["scope/paired"])


def test_credit_from_the_divergence_on_reaches_the_update(checkpoints: Tiny, tmp_path: Path):
    """The same rollouts and rescues in the first step, other weights after it."""
    # With a teacher and cuts that are right, rows are rescued whatever the weights have become.
    right = {"teacher.kind": "program", "models.teacher": None, "localiser.kind": "oracle"}
    pair = {**RUNS["pair"], **right, "models.prm": None, "steps": 1}
    whole = {**pair, "method.credit": "row", "method.spare_prefix": False}
    [one], [other] = (
        run(checkpoints, tmp_path / n, more) for n, more in (("a", pair), ("b", whole))
    )
    same = ("scope/accepted", "scope/selected", "reward/mean")
    assert [one[name] for name in same] == [other[name] for name in same] and one["scope/accepted"]
    ours, theirs = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("a", "b")
    )
    assert ours != theirs


def check_groups(rows: list[dict[str, float]]) -> None:
    for row in rows:
        assert row["scope/selected"] <= row["scope/groups_failed"] <= 8
        assert row["scope/accepted"] == row["scope/groups_repaired"]
    assert sum(row["scope/groups_failed"] for row in rows) > 0


def check_own(rows: list[dict[str, float]]) -> None:
    for row in rows:
        own, taught = row["scope/self_accepted"], row["scope/teacher_accepted"]
        assert row["scope/accepted"] == own + taught
        assert row["scope/teacher_asked"] == row["scope/selected"] - own
        assert row["scope/selected"] <= row["scope/self_tails"] <= 2 * row["scope/selected"]
        assert row["cost/self_tokens"] >= row["scope/self_tails"]
    assert sum(row["scope/self_accepted"] for row in rows) > 0


def check_candidates(rows: list[dict[str, float]]) -> None:
    for row in rows:
        if row["scope/selected"]:
            assert row["scope/accepted"] <= row["scope/candidates_accepted"]
            several = row["scope/candidates_accepted"] - row["scope/accepted"]
            assert row["scope/candidates_several"] == several  # of two
    assert sum(row["scope/accepted"] for row in rows) > 0


CHECKS = {
    "pair": check_pairs,
    "all failed": check_groups,
    "policy first": check_own,
    "candidates": check_candidates,
}
