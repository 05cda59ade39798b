"""Evaluation on the problems of a task: how many rows are decoded for them, on how many devices."""

import dataclasses
import json

import jax
import numpy as np
from ml_collections import ConfigDict
from support.fixtures import TINY, make_params

from scope_jax import cli, rollout, tasks
from scope_jax.configuration.supervision import default_config as supervised
from scope_jax.devices.mesh import make_mesh
from scope_jax.evaluate import EvaluateSpec, chunk_size, evaluate
from scope_jax.models.config import config_to_json
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
