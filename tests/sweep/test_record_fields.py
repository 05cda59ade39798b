"""What a record holds of weights, tokens, evaluations at several temperatures, single problems."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from scope_jax import sweep
from scope_jax.report.by_problem import BY_PROBLEM, ByProblem
from scope_jax.sweep import weights as weights_module
from scope_jax.sweep.records import read_by_problem
from scope_jax.sweep.weights import weights_hash, weights_of


def test_a_hash_of_weights_by_hand(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two, tmp_path / "none"):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    (one / "model.safetensors").write_bytes(b"weights")
    assert weights_hash(one) == hashlib.sha256(b"weights").hexdigest()
    assert weights_hash(one / "model.safetensors") == weights_hash(one)
    for name in ("b", "a"):
        (two / f"{name}.safetensors").write_bytes(name.encode())
    lines = "".join(f"{n}.safetensors {hashlib.sha256(n.encode()).hexdigest()}\n" for n in "ab")
    assert weights_hash(two) == hashlib.sha256(lines.encode()).hexdigest()
    assert weights_hash(tmp_path / "none") is None and weights_hash(tmp_path / "nowhere") is None
    config = sweep.config_of(
        "configs/run.py:scope,arithmetic", {"models.policy": str(one), "models.prm": "nowhere"}
    )
    config.models.teacher = None
    assert weights_of(config) == {"policy": weights_hash(one), "prm": None}


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path, monkeypatch):
    read = []
    monkeypatch.setattr(
        weights_module.hashlib,
        "file_digest",
        lambda file, kind: read.append(file.name) or hashlib.new(kind, file.read()),
    )
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"first")
    before = weights_hash(tmp_path)
    assert weights_hash(tmp_path) == before and len(read) == 1
    file.write_bytes(b"other")  # as long as before
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 10**9))
    assert weights_hash(tmp_path) != before and len(read) == 2


def test_tokens_temperatures_and_counts_of_a_record(tmp_path: Path):
    rows = [
        {"step": 0, "time/total": 1.5, "cost/rollout_tokens": 100.0, "cost/prm_tokens": 40.0},
        {"step": 1, "time/total": 0.5, "cost/rollout_tokens": 90.0, "cost/tail_tokens": 7.0},
    ]
    rows[-1]["cost/self_tokens"] = 11.0
    rows[-1] |= {"eval_t0/pass@1": 0.5, "eval_ood_t0.6/pass@1": 0.25, "evaluation/x": 1.0}
    rows[-1] |= {"time/evaluate": 9.0}
    for row, paths in zip(rows, (1.0, 2.0)):
        row |= {"diversity/rarefied_paths": paths, "diversity/distinct_4": 0.5}
    counts = ByProblem(32, "1f", [0, 32], [0, 4])
    (tmp_path / BY_PROBLEM).write_text(json.dumps({"eval": counts.to_json()}))
    run = sweep.Run("a/b", "configs/run.py:grpo,arithmetic", {"seed": 7}, {"method": "grpo"})
    config = sweep.config_of(run.config, run.overrides)
    summary = {"steps": 2, "updates": 4, "skipped": 0}
    record = sweep.record_of(
        *(run, config, rows, summary, 20.0, "abc"),
        weights={"policy": "f00"},
        by_problem=read_by_problem(tmp_path),
    )
    assert record["tokens"] == {
        **{"rollouts": 190, "tails": 7, "own_tries": 11, "localiser": 0},
        **{"teacher": 0, "demonstrations": 0, "prm": 40, "distillation": 0},
    }
    assert record["training_seconds"] == 2.0 and record["weights"] == {"policy": "f00"}
    assert record["final"] == {
        "eval_t0/pass@1": 0.5,
        "eval_ood_t0.6/pass@1": 0.25,
        "evaluation/x": 1.0,
    }
    assert record["curve"]["diversity/rarefied_paths"] == [1.0, 2.0]
    assert ByProblem.from_json(record["by_problem"]["eval"]) == counts
    assert read_by_problem(tmp_path / "nowhere") == {}
    for text in ("{", "[]", '{"eval": 3}', '{"eval": {"samples": 1}}'):
        (tmp_path / BY_PROBLEM).write_text(text)
        with pytest.raises(ValueError, match=rf"{BY_PROBLEM}: .") as caught:
            read_by_problem(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_record_with_five_hundred_problems_at_three_temperatures_stays_small():
    """32 samples, two sets: the counts take a character each."""
    full = ByProblem(32, "12345678", [31] * 500, [20] * 500).to_json()
    greedy = ByProblem(1, "12345678", [1] * 500).to_json()
    names = [f"eval{part}{t}" for part in ("", "_ood") for t in ("", "_t0.6")]
    counts = {name: full for name in names} | {"eval_t0": greedy, "eval_ood_t0": greedy}
    assert len(json.dumps(counts, separators=(",", ":"))) < 5600
