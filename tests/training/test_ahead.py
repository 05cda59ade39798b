"""A fixed set of programs: after the first steps of a run nothing is compiled any more."""

import jax
import pytest
from support.tiny_runs import Tiny

from scope_jax.run import read_metrics
from scope_jax.train import train

RUNS = {
    "scope": {"steps": 60, "evaluation.every": 20, "checkpoint.every": 15},
    "scope, several tails, appended": {
        "method.tails": 2,
        "method.place": "append",
        "method.rows_at_once": 8,
    },
    "scope, the policy first": {"teacher.first": "self", "teacher.self_tries": 2},
    "scope, several steps": {
        "method.candidates": 2,
        "teacher.temperature": 1.0,
        "method.place": "pair",
        "method.credit": "divergence",
    },
    "scope, monte carlo": {"localiser.kind": "monte_carlo", "localiser.continuations": 2},
    "scope, length buckets": {
        "training.length_buckets": 2,
        "training.mini_batches": 2,
        "training.epochs": 2,
    },
    "scope, resampled": {"method.resample": 2, "method.place": "append", "rollout.group": 2},
    "dapo": {"method.resample": 2},
    "relift": {"method.buffer": 8},
    "vppo": {},
    "sft_grpo": {"sft.steps": 4},
    "grpo": {"loss.kl_weight": 0.1, "training.length_buckets": 2},
}


@pytest.mark.parametrize(
    "run", [run if run == "scope" else pytest.param(run, marks=pytest.mark.long) for run in RUNS]
)
def test_nothing_is_compiled_after_the_first_steps(run: str, checkpoints: Tiny, tmp_path):
    """However many rows fail, however long they are and however many are rescued; with evaluations
    and checkpoints in between. From one process: what other tests compiled is forgotten first."""
    method = run.partition(",")[0]
    models = {"models.teacher": str(checkpoints.policy), "models.prm": str(checkpoints.prm)}
    often = {"steps": 12, "evaluation.every": 5, "checkpoint.every": 4}
    # Hot enough for rows of every length.
    settings = {**often, "rollout.temperature": 2.5, **models, **RUNS[run]}
    jax.clear_caches()
    train(checkpoints.config(method, settings), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    counts = [row["compile/count"] for row in rows]
    assert len(rows) == settings["steps"] and counts[2] > 5
    assert counts[2:] == [counts[2]] * (len(rows) - 2)
    # Steps did differ.
    assert len({row["completion/length_mean"] for row in rows[2:] if "reward/mean" in row}) > 3
    if method == "scope":
        assert len({row["scope/selected"] for row in rows}) > 3
        assert len({row["scope/accepted"] for row in rows}) > 2
