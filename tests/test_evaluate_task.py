"""Evaluation on the problems of a task: how many rows are decoded for them, on how many devices."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support.fixtures import TINY, make_params

from scope_jax import cli, rollout, tasks
from scope_jax.configuration.supervision import default_config as supervised
from scope_jax.devices.mesh import make_mesh
from scope_jax.evaluate import EvaluateSpec, chunk_size, evaluate
from scope_jax.models.config import config_to_json
from scope_jax.report.by_problem import ByProblem
from scope_jax.text import character_tokenizer


def test_no_more_rows_are_decoded_than_there_are_problems(monkeypatch):
    """Three problems are one chunk of three, whatever `rows_at_once`; the figures are the same."""
    domain = tasks.Arithmetic(start="zero")
    problems = [domain.problem(0, "test", n, 2) for n in range(3)]
    tokenizer = character_tokenizer(domain.characters)
    config = dataclasses.replace(TINY, vocab_size=len(tokenizer), end_ids=(0,))
    params = make_params(config, 3)
    decoded, generate = [], rollout.generate

    def counted(params, config, batch, *more, **settings):
        idle = int(np.sum(batch.finished_B))
        decoded.append((batch.tokens_BT.shape[0], idle))
        return generate(params, config, batch, *more, **settings)

    monkeypatch.setattr("scope_jax.evaluate.rollout.generate", counted)
    found = []
    for at_once in (2, 4, 6, 1024):
        spec = EvaluateSpec(samples=2, new_tokens=8, prompt_tokens=16, rows_at_once=at_once)
        found.append(evaluate(params, config, problems, domain, tokenizer, spec))
    assert decoded == [(2, 0), (2, 0), (2, 0), (4, 0), (4, 2), (6, 0), (6, 0)]
    assert found[0] == found[1] == found[2] == found[3] and found[0]["problems"] == 3
    with jax.set_mesh(make_mesh(8, 1, 1)):  # rows divide evenly over the devices
        assert [chunk_size(n, spec) for n in (1, 3, 5, 600)] == [4, 4, 8, 512]
        for samples in (3, 5, 10, 32):
            chunk = chunk_size(600, EvaluateSpec(samples=samples))
            assert chunk * samples % 8 == 0 and 1000 <= chunk * samples <= 1024


def test_the_largest_model_that_is_named_decides_over_cpu_devices(tmp_path):
    for name, wide in (("small", 32), ("large", 4096)):
        (tmp_path / name).mkdir()
        raw = config_to_json(dataclasses.replace(TINY, vocab_size=wide))
        (tmp_path / name / "config.json").write_text(json.dumps(raw))
    small, large = str(tmp_path / "small"), str(tmp_path / "large")
    models = {"policy": small, "teacher": None, "prm": large}
    counted = [cli.weights_of(one) for one in cli.models_of(ConfigDict({"models": models}))]
    assert max(counted) == cli.weights_of(large) > cli.weights_of(small) > 0
    prm = supervised("prm")  # `start` is None: the trunk is that of the rollouts
    prm.target.rollouts.policy = large
    assert large in cli.models_of(prm)


def test_counts_of_each_problem_and_a_greedy_evaluation(monkeypatch):
    """What is written is chosen here: rates, counts and measures by hand; at temperature 0 one row
    for each problem."""
    domain = tasks.Arithmetic(start="zero")
    problems = [domain.problem(0, "test", n, 2) for n in range(3)]
    tokenizer = character_tokenizer(domain.characters)
    config = dataclasses.replace(TINY, vocab_size=len(tokenizer), end_ids=(0,))
    # Both orders of the two terms are right.
    ways = [
        sorted({domain.demonstration(p, np.random.default_rng(n), "mixed") for n in range(20)})
        for p in problems
    ]
    wrong = "+777"
    # Right samples of the three problems, of six: 4 by two ways, 5 by one, none.
    texts = [
        [ways[0][0]] * 2 + [ways[0][1]] * 2 + [wrong] * 2,
        [ways[1][0]] * 5 + [wrong],
        [wrong] * 6,
    ]
    asked = []

    def written(params, config, batch, key, spec, *, shared_prefix):
        asked.append((spec.temperature, batch.tokens_BT.shape[0]))
        return batch.replace(finished_B=np.ones(batch.tokens_BT.shape[0], bool))

    def completions(ids, tokenizer):
        each = len(ids) // 3
        return [text for own in texts for text in own[:each]]

    monkeypatch.setattr("scope_jax.evaluate.rollout.generate", written)
    monkeypatch.setattr("scope_jax.evaluate.rollout.texts", completions)
    counts = {}
    spec = EvaluateSpec(samples=6, new_tokens=12, prompt_tokens=16)
    sampled = evaluate(
        None, config, problems, domain, tokenizer, spec, desc="eval", by_problem=counts
    )
    greedy = evaluate(
        *(None, config, problems, domain, tokenizer, dataclasses.replace(spec, temperature=0.0)),
        desc="eval_t0",
        by_problem=counts,
    )
    assert asked == [(1.0, 18), (0.0, 3)]
    assert list(counts["eval"].right) == [4, 5, 0] and list(counts["eval"].paths) == [2, 1, 0]
    assert list(counts["eval_t0"].right) == [1, 1, 0] and counts["eval_t0"].paths is None
    assert counts["eval"].problems == counts["eval_t0"].problems
    assert sampled["pass@1"] == pytest.approx((4 + 5) / 18)
    # C(2, 4) = C(1, 4) = 0: with four of six, a right one is always among them.
    assert sampled["pass@4"] == pytest.approx(2 / 3) == sampled["pass@6"]
    assert sampled["pass@2"] == pytest.approx((14 / 15 + 1) / 3)
    assert sampled["diversity/rarefied_paths"] == pytest.approx((2 + 1) / 2)
    assert sampled["diversity/rarefied_problems"] == 2
    assert greedy["pass@1"] == pytest.approx(2 / 3) and "pass@6" not in greedy
    assert not [name for name in greedy if name.startswith("diversity/")]
    again = {
        name: ByProblem.from_json(json.loads(json.dumps(c.to_json()))) for name, c in counts.items()
    }
    assert again == {n: dataclasses.replace(c, right=list(c.right)) for n, c in counts.items()}
