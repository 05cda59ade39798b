"""The supervised trainer: directories that load, summaries, and a finished directory that is left as it is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import POLICY, Tiny, tiny_config

from scope_jax import models, tasks
from scope_jax.supervised import first_error_rates, supervise

pytest_plugins = ("checkpoints_fixture",)


def test_both_directories_load(checkpoints: Tiny):
    config, params = models.load(checkpoints.policy)
    assert (config.head, config.hidden_size, config.num_layers, config.vocab_size) == ("lm", 48, 2, 24)
    assert config.end_ids == (0,)
    tokenizer = tasks.load_tokenizer(checkpoints.policy)
    ids = tokenizer.encode("+7-9=+777\n-987")
    logits = models.logits(params, config, jnp.array([ids]), jnp.array([len(ids)]))
    # Trained: after a prompt comes a sign, and after five lines' worth of characters nothing but a newline or the end.
    assert tokenizer.decode([int(jnp.argmax(logits[0, 4]))]) in "+-"
    assert tokenizer.decode([int(jnp.argmax(logits[0, 8]))], clean_up_tokenization_spaces=False) == "\n"
    assert int(jnp.argmax(logits[0, 13])) == tokenizer.eos_token_id

    prm_config, prm_params = models.load(checkpoints.prm)
    assert prm_config == config.with_head("prm")
    assert prm_params["prm_output"].shape == (48, 2) and "head" not in prm_params
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params["layers"], prm_params["layers"])
    assert changed["gate"] and changed["query"]  # the whole trunk is trained, not the head alone


def test_summaries(checkpoints: Tiny):
    policy, prm = (json.loads((folder / "summary.json").read_text()) for folder in (checkpoints.policy, checkpoints.prm))
    assert policy == checkpoints.summaries["policy"] and prm == checkpoints.summaries["prm"]  # what was printed
    assert (policy["kind"], policy["steps"]) == ("policy", 300)
    assert policy["loss"] < 0.8  # log 24 = 3.2 at the start
    assert (prm["kind"], prm["train_rows"] <= 128, prm["train_rows"] > 100) == ("prm", True, True)
    rates = {name: prm[f"first_error/{name}"] for name in ("exact", "not_later", "later", "none", "clean")}
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert rates["exact"] <= rates["not_later"]
    assert rates["not_later"] + rates["later"] + rates["none"] == pytest.approx(1)
    assert 0 < prm["first_error/wrong_rows"] <= 64 - prm["first_error/right_rows"]


def test_a_finished_directory_is_left_alone(checkpoints: Tiny):
    config = tiny_config("base", POLICY)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in checkpoints.policy.iterdir()}
    assert supervise(config, checkpoints.policy) == checkpoints.summaries["policy"]
    for path, (time, content) in before.items():
        assert path.read_bytes() == content
        assert path.name == "training.json" or path.stat().st_mtime_ns == time
    config.steps += 1
    with pytest.raises(ValueError, match="another config") as caught:
        supervise(config, checkpoints.policy)
    assert "steps: there 300, here 301" in str(caught.value)
    assert (checkpoints.policy / "model.safetensors").read_bytes() == before[checkpoints.policy / "model.safetensors"][1]


def test_settings_that_make_no_sense_write_nothing(tmp_path):
    for settings, message in (
        ({"kind": "reward"}, "config.kind = 'reward' is unknown"),
        ({"steps": 5}, "needs steps > warmup_steps"),
        ({"demonstrations.misconception": 1.5}, "misconception 1.5"),
        ({"task.name": "chess"}, "config.task.name = 'chess' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            supervise(tiny_config("base", settings), tmp_path / "run")
    config = tiny_config("base", {})
    config.optimizer.learning_rat = 1.0
    with pytest.raises(
        ValueError, match=r"config.optimizer.learning_rat: unknown key; the nearest known one is config.optimizer.learning_rate"
    ):
        supervise(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class FixedScores:
    """Stands in for a process reward model: the scores are written down."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, prompts, steps, rows=None):
        J = max(map(len, self.scores))
        score, valid = np.zeros((len(self.scores), J), np.float32), np.zeros((len(self.scores), J), bool)
        for row, values in enumerate(self.scores):
            score[row, : len(values)], valid[row, : len(values)] = values, True
        return score, valid, 0


def test_first_error_rates_literal():
    three = ["a", "b", "c"]
    rows = [
        ("p", three, [True, False, False]),  # found at 1: exact
        ("p", three, [True, False, False]),  # found at 0: not later, not exact
        ("p", three, [True, False, False]),  # found at 2: later
        ("p", three, [True, True, False]),  # not found
        ("p", ["a"], [False]),  # not found, in a row that is shorter than the table
        ("p", three, [True, True, True]),  # left clean
        ("p", ["a"], [True]),  # a false alarm
    ]
    scores = [[0.9, 0.4, 0.9], [0.4, 0.9, 0.9], [0.9, 0.9, 0.4], [0.9, 0.9, 0.9], [0.9], [0.9, 0.9, 0.9], [0.2]]
    assert first_error_rates(FixedScores(scores), rows, 0.5) == {
        "first_error/exact": 0.2,
        "first_error/not_later": 0.4,
        "first_error/later": 0.2,
        "first_error/none": 0.4,
        "first_error/clean": 0.5,
        "first_error/wrong_rows": 5,
        "first_error/right_rows": 2,
    }
