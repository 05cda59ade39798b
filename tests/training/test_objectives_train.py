"""RLOO, REINFORCE++, CISPO, SAPO, weights of rows against the sampler and on-policy distillation
through the same loop, on the tiny checkpoints."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.tiny_runs import Tiny

from scope_jax import models, rollout
from scope_jax.configuration import TrainConfig, default_config, train_config
from scope_jax.configuration.schema import set_value
from scope_jax.correction import Groups
from scope_jax.devices.mesh import make_mesh
from scope_jax.run import PhaseTimer, read_metrics
from scope_jax.train import train
from scope_jax.training.actors import Actors, load_actors
from scope_jax.training.learner import Learner
from scope_jax.training.logprobs import teacher_logprobs
from scope_jax.training.rollouts import Progress, Step, collect_rollouts
from scope_jax.types import Owner

QUICK = {
    "steps": 2,
    "evaluation.problems": 0,
    "evaluation.ood_problems": 0,
    "training.mini_batches": 2,
}
# Figures that a method adds to those of every step.
METHODS: dict[str, tuple[str, ...]] = {
    "rloo": (),
    "reinforce_pp": (),
    "cispo": (),
    "sapo": (),
    "seq_tis": ("policy/tis_mean", "policy/tis_capped"),
    "seq_mis": ("policy/tis_mean", "policy/masked_share", "policy/masked_rows"),
    "distill": ("policy/reverse_kl", "cost/distill_tokens", "time/distill"),
    "scope_distill": ("policy/reverse_kl", "cost/distill_tokens", "cost/teacher_tokens"),
}


@pytest.fixture(scope="module")
def other(checkpoints: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that is not the policy: the same model, its weights moved a little."""
    folder = tmp_path_factory.mktemp("teacher") / "other"
    shutil.copytree(checkpoints.policy, folder)
    weights, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    moved = {k: v + rng.normal(size=v.shape).astype(v.dtype) * 0.05 for k, v in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


# Each compiles an update of its own: of those that differ by a formula of `learning` alone, one.
ALIKE = ("rloo", "reinforce_pp", "seq_tis")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name for name in METHODS],
)
def test_every_method_trains(checkpoints: Tiny, other: Path, tmp_path: Path, name: str):
    more = QUICK | {"models.teacher": str(other), "models.prm": str(checkpoints.prm)}
    if name == "scope_distill":
        more |= {"localiser.kind": "oracle", "method.select.rule": "all"}
    train(checkpoints.config(name, more), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2 and all(row["grad/skipped"] == 0 for row in rows)
    assert max(row.get("grad/norm", 0) for row in rows) > 0
    for row in rows:
        assert set(METHODS[name]) <= set(row)
        if "distill" in name:
            # Each of eight prompts once, and whatever stands behind the prompts.
            read = row["cost/distill_tokens"] - 8 * 5
            if name == "distill":  # the end tokens of 32 rows are no tokens of their texts
                assert 0 < read - row["cost/rollout_tokens"] <= 8 * 4
            else:
                assert 0 < read <= 8 * 4 * 12
        if name.startswith("seq") and "policy/tis_mean" in row:
            # One program samples and trains.
            assert row["policy/tis_mean"] == pytest.approx(1, abs=1e-3)
            assert row.get("policy/masked_share", 0) == 0


def test_a_teacher_that_is_the_policy_has_nothing_to_teach(checkpoints: Tiny, tmp_path: Path):
    """In the first update on a batch; rewards are not learned from."""
    more = QUICK | {"steps": 1, "training.mini_batches": 1}
    more |= {"models.teacher": str(checkpoints.policy)}
    train(checkpoints.config("distill", more), tmp_path / "run")
    row = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["policy/reverse_kl"] == pytest.approx(0, abs=1e-4)
    assert row["grad/norm"] < 1e-3
    assert 0 < row["reward/mean"] < 1  # there would have been something to learn


# ---- the log-probs of the teacher


def distilling(checkpoints: Tiny, teacher: Path, **changes: Any) -> TrainConfig:
    more = QUICK | {"models.teacher": str(teacher)} | changes
    return train_config(checkpoints.config("distill", more))


def rolled_out(actors: Actors, config: TrainConfig) -> Groups:
    policy = rollout.Generator(actors.params, actors.config)
    step = Step(0, jax.random.key(5), 0, PhaseTimer())
    return collect_rollouts(actors, policy, config, Progress(), step)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training.length_buckets": 2, "training.micro_batches": 2},
        {"mesh.data": 2, "mesh.teacher.data": 1, "mesh.teacher.fsdp": 2, "mesh.teacher.tensor": 1},
        {"placement.teacher": "host"},
    ],
)
def test_they_are_those_of_a_plain_forward_pass(
    checkpoints: Tiny, other: Path, changes: dict[str, Any]
):
    config = distilling(checkpoints, other, **changes)
    devices = jax.devices()[: 2 if "mesh.data" in changes else 1]
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices)
    with jax.set_mesh(mesh):
        actors = load_actors(config, mesh)
        made = rolled_out(actors, config)
        found, metrics = teacher_logprobs(actors.teacher, config, made.rollout, made.group)
        found = np.asarray(found)
    model, params = models.load(str(other))
    tokens, length = np.asarray(made.rollout.tokens_BT), np.asarray(made.rollout.length_B)
    expected = np.asarray(models.token_logprobs(params, model, tokens)[0])
    written = (np.asarray(made.rollout.owner_BT) == Owner.POLICY) & (
        np.arange(tokens.shape[1]) < length[:, None]
    )
    np.testing.assert_allclose(found[written], expected[written], atol=2e-4)
    assert np.abs(found - np.asarray(made.rollout.logp_BT))[written].mean() > 1e-2
    assert (found[~written] == 0).all()
    assert metrics == {"cost/distill_tokens": written.sum() + 8 * 5}


@pytest.mark.parametrize("form", ["advantage", "loss"])
def test_the_policy_moves_towards_the_teacher(checkpoints: Tiny, other: Path, form: str):
    """Tokens that the teacher finds likelier than the policy become likelier, others less."""
    changes = {"loss.distill_form": form, "training.mini_batches": 1}
    config = distilling(checkpoints, other, **changes)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        actors = load_actors(config, mesh)
        made = rolled_out(actors, config)
        teacher, _ = teacher_logprobs(actors.teacher, config, made.rollout, made.group)
        learner = Learner(config, actors, mesh, jax.random.key(0))
        arguments = (made.rollout, made.group, np.zeros(len(made.reward_B), np.float32))
        more = (made.include_B, jax.random.key(1), 0)
        with pytest.raises(ValueError, match="needs the teacher's log-probs"):
            learner.update(*arguments, *more)
        metrics = learner.update(*arguments, *more, teacher_logp_BT=teacher)
        after = np.asarray(learner._logprobs(learner.state.params, made.rollout, made.group))
    before, owner = np.asarray(made.rollout.logp_BT), np.asarray(made.rollout.owner_BT)
    own = (owner == Owner.POLICY) & (
        np.arange(owner.shape[1]) < np.asarray(made.rollout.length_B)[:, None]
    )
    gap = (np.asarray(teacher) - before)[own]
    assert np.sum(gap * (after - before)[own]) > 0
    assert metrics["policy/reverse_kl"] == pytest.approx(-gap.mean(), rel=1e-3, abs=1e-5)
    assert metrics["update/no_signal"] == 0  # though no row has an advantage


# ---- what cannot go together


def test_a_teacher_with_another_tokenizer_is_refused_before_its_weights(
    checkpoints: Tiny, other: Path, tmp_path: Path
):
    foreign = tmp_path / "foreign"
    shutil.copytree(other, foreign)
    (foreign / "model.safetensors").write_bytes(b"cut short")
    file = foreign / "tokenizer.json"
    text = file.read_text()
    assert '"7"' in text
    file.write_text(text.replace('"7"', '"seven"'))
    config = distilling(checkpoints, foreign)
    # Where a template is shown, the teacher of a correction may have one.
    config = dataclasses.replace(
        config, teacher=dataclasses.replace(config.teacher, template="wrong_step")
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh), pytest.raises(ValueError) as error:
        load_actors(config, mesh)
    assert "another tokenizer than the policy's" in str(error.value)
    assert "loss.distill_weight" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        (
            "grpo",
            {"loss.distill_weight": 1.0, "teacher.kind": "self"},
            "config.loss.distill_weight needs the teacher's log-probs of tokens that it did not"
            " write: teacher.kind 'model', not 'self'",
        ),
        ("scope", {"loss.distill_weight": 1.0, "teacher.kind": "endpoint"}, "not 'endpoint'"),
        ("vppo", {"advantage.batch_std": True}, "config.method 'vppo' has advantages of its own"),
        ("vppo", {"advantage.baseline": "batch"}, "set advantage.baseline to 'group'"),
        ("grpo", {"loss.mask_high": 2.0}, "use 'recompute'"),
        (
            "grpo",
            {
                "loss.distill_weight": 1.0,
                "loss.outcome_weight": 0.0,
                "teacher.kind": "model",
                "advantage.focal": 1.0,
            },
            "loss.outcome_weight = 0 takes away",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_with_a_reason(
    method: str, changes: dict[str, Any], reason: str
):
    config = default_config(method)
    for name, value in changes.items():
        set_value(TrainConfig, config, name, value)
    with pytest.raises(ValueError) as error:
        train_config(config)
    assert reason in str(error.value) and "\n" not in str(error.value)
