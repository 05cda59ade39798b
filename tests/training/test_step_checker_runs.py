"""Whole tiny runs with a step checker and no process reward model."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from support.hand_made import PLAIN
from support.tiny_runs import SEED, Tiny, run_program

from scope_jax import models
from scope_jax.configs import run
from scope_jax.configuration import TrainConfig, train_config
from scope_jax.configuration.schema import set_value
from scope_jax.devices.mesh import make_mesh
from scope_jax.run import read_metrics
from scope_jax.tasks import Algebra
from scope_jax.text import character_tokenizer, save_tokenizer
from scope_jax.train import train
from scope_jax.training import actors

MINE = """
from scope_jax.tasks import Arithmetic, Problem

DOMAIN = Arithmetic(start="zero")

def first_wrong(problem, steps):
    labels = DOMAIN.check_steps(Problem(**problem), steps)
    return None if all(labels) else labels.index(False)
"""
CHECKED = {
    "localiser.kind": "function",
    "localiser.function": "my_checkers_run:first_wrong",
    "localiser.workers": 1,
    "models.prm": None,
    "steps": 2,
    "evaluation.problems": 0,
    "evaluation.ood_problems": 0,
}
ORACLE = {name: value for name, value in CHECKED.items() if name != "localiser.function"} | {
    "localiser.kind": "oracle"
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the checker, which can be imported."""
    folder = tmp_path_factory.mktemp("checkers")
    (folder / "my_checkers_run.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def learned(workdir: Path) -> list[dict]:
    """The metrics of a run that are not the machine's, and not the reasons of a checker."""
    machine = ("time/", "throughput/", "memory/", "compile/", "sampler/", "scope/unscored_")
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows]


def test_a_run_is_the_one_of_the_same_check_in_the_domain(
    checkpoints: Tiny, mine: Path, tmp_path: Path
):
    for name, settings in (("function", CHECKED), ("oracle", ORACLE)):
        train(checkpoints.config("scope", settings), tmp_path / name)
    rows = learned(tmp_path / "function")
    assert rows == learned(tmp_path / "oracle")
    assert all(row["scope/located_share"] == 1 for row in rows)
    assert sum(row["scope/accepted"] for row in rows) > 0
    assert all(row["cost/prm_tokens"] == 0 for row in rows)
    metrics = read_metrics(tmp_path / "function" / "metrics.jsonl")
    assert all(row["scope/unscored_timeout"] == row["scope/unscored"] == 0 for row in metrics)


def test_a_checker_is_looked_for_before_the_first_weight(
    checkpoints: Tiny, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(actors.models, "load", load)
    wrong = CHECKED | {"localiser.function": "my_checkers_run:none"}
    config = train_config(checkpoints.config("scope", wrong))
    with pytest.raises(ValueError, match=r"^config\.localiser\.function = 'my_checkers_run:none'"):
        actors.load_actors(config, make_mesh())
    with pytest.raises(AssertionError, match="a weight was read"):
        actors.load_actors(train_config(checkpoints.config("scope", CHECKED)), make_mesh())

    # The command line: one line, exit code 2, nothing written.
    workdir = tmp_path / "run"
    more = CHECKED | {"localiser.function": "no_such_module:f"}
    done = run_program(checkpoints.program("scope", workdir, more), tmp_path, code=2)
    assert "config.localiser.function = 'no_such_module:f': ModuleNotFoundError" in done.stderr
    assert not (workdir / "metrics.jsonl").exists()


def test_algebra_is_trained_with_its_checker_and_no_prm(tmp_path: Path):
    """A model that knows nothing: every failure with a line is located all the same."""
    tokenizer = character_tokenizer(Algebra.characters)
    tiny = dataclasses.replace(PLAIN, vocab_size=len(tokenizer), max_positions=128)
    models.save(tmp_path / "base", tiny, models.init(tiny, jax.random.key(SEED)))
    save_tokenizer(tokenizer, tmp_path / "base")

    config = run.get_config("scope,algebra")
    for name, value in {
        "steps": 1,
        "task.data": str(tmp_path / "tfds"),
        "task.options": {
            "lengths": (2,),
            "ood_lengths": (2,),
            "kinds": ("linear",),
            "train_size": 8,
            "validation_size": 2,
            "test_size": 2,
            "test_ood_size": 2,
        },
        "models.policy": str(tmp_path / "base"),
        "models.teacher": None,
        "teacher.kind": "program",
        "localiser.workers": 1,
        "localiser.seconds": 60.0,
        "method.select.rule": "all",
        "rollout.prompts": 8,
        "rollout.group": 2,
        "rollout.prompt_tokens": 13,
        "rollout.new_tokens": 20,
        "optimizer.warmup_steps": 0,
        "training.mini_batches": 1,
        "training.micro_batches": 1,
        "evaluation.problems": 0,
        "evaluation.ood_problems": 0,
    }.items():
        set_value(TrainConfig, config, name, value)
    settings = train_config(config)
    assert not settings.uses_prm and settings.models.prm is None
    train(config, tmp_path / "run")
    [row] = read_metrics(tmp_path / "run" / "metrics.jsonl")
    # Not located are rows that ended before their first character.
    assert row["scope/failed_share"] == 1 and 0.5 < row["scope/located_share"] <= 1
    assert row["scope/unscored"] == row["cost/prm_tokens"] == 0
