"""What learns: what a config asks of it, and its moves, on a model whose log-probs numpy knows."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import mesh_of
from support.hand_made import PLAIN
from support.table_model import (
    GROUP,
    table_logprobs,
    table_params,
    table_rows,
    written_mask,
)

from scope_jax import learning, models
from scope_jax.configuration import TrainConfig, default_config, train_config
from scope_jax.devices.mesh import put_rows
from scope_jax.training.actors import Actors
from scope_jax.training.learner import (
    CLONING,
    Batch,
    Learner,
    _mini_batches,
    buckets_and_passes,
    cloning_spec,
    loss_inputs,
    rows_with_gradient,
    update_spec,
)
from scope_jax.types import Owner

# ---- what a config asks for


def config_of(**settings: Any) -> TrainConfig:
    """Four prompts with two rows each; `__` stands for the dot in a setting's name."""
    config = default_config()
    config.steps, config.optimizer.learning_rate = 10, 0.01
    config.rollout.prompts, config.rollout.group, config.rollout.new_tokens = 4, GROUP, 8
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in settings.items()})
    return train_config(config)


def test_an_update_is_compiled_for_what_the_config_says():
    spec = update_spec(config_of(rollout__temperature=0.7, dtype="bfloat16", lora__rank=2))
    assert (spec.temperature, spec.dtype, spec.entropy, spec.micro_batches) == (
        0.7,
        "bfloat16",
        True,
        1,
    )
    assert spec.lora is not None and spec.lora.rank == 2 and spec.loss.max_new_tokens == 8
    assert update_spec(config_of()).lora is None


def test_a_supervised_step_is_at_temperature_1_and_knows_no_advantage():
    config = config_of(rollout__temperature=0.7, loss__teacher_weight=0.0)
    spec = cloning_spec(config)
    assert (spec.loss, spec.temperature, spec.entropy) == (CLONING, 1.0, False)
    assert spec.optimizer == update_spec(config).optimizer


@pytest.mark.parametrize(
    ("settings", "inputs"),
    [
        ({}, {"old_logp": "sampler"}),
        # One update a batch: the ratio is 1 whatever the old log-probs are.
        ({"loss__old_logp": "recompute"}, {}),
        ({"loss__old_logp": "recompute", "training__epochs": 2}, {"old_logp": "policy"}),
        ({"loss__old_logp": "recompute", "training__mini_batches": 2}, {"old_logp": "policy"}),
        (
            {"loss__kl_weight": 0.1},
            {"old_logp": "sampler", "reference_logp": "reference"},
        ),
        (
            {"loss__old_logp": "recompute", "loss__tis_cap": 2.0},
            {},
        ),
        (
            {"loss__teacher_term": "importance"},
            {"old_logp": "sampler", "teacher_logp": "sampler"},
        ),
    ],
)
def test_log_probs_that_a_loss_needs_beside_the_trained_ones(settings, inputs):
    # The sampler's own are always there: the statistics compare them.
    assert loss_inputs(config_of(**settings)) == {"sampler_logp": "sampler", **inputs}


def test_buckets_and_passes():
    """(groups, rows of a group, buckets asked for, micro-batches asked for) -> (buckets, passes of
    each)."""
    cases = {
        (16, 8, 1, 1): (1, 1),
        (16, 8, 1, 4): (1, 4),
        (16, 8, 4, 8): (4, 2),  # 8 passes in all
        (16, 8, 4, 2): (4, 1),  # a bucket is one pass at least
        (6, 4, 4, 1): (2, 1),  # whole groups only
        (5, 4, 4, 8): (1, 4),  # 20 rows in 8 passes: in 4
        (3, 1, 3, 2): (3, 1),
    }
    assert {case: buckets_and_passes(*case) for case in cases} == cases


def test_mini_batches_are_whole_groups_in_an_order_of_the_epoch():
    key = jax.random.key(3)
    assert [x.tolist() for x in _mini_batches(4, 1, 3, key, 0)] == [[*range(12)]]
    epochs = [
        [index.tolist() for index in _mini_batches(8, 4, 3, key, epoch)] for epoch in (0, 1, 0)
    ]
    assert epochs[0] == epochs[2] != epochs[1]
    for parts in epochs:
        assert [len(part) for part in parts] == [6] * 4
        groups = [part[n : n + 3] for part in parts for n in (0, 3)]
        assert all(rows == [*range(rows[0], rows[0] + 3)] for rows in groups)
        assert sorted(rows[0] for rows in groups) == [*range(0, 24, 3)]
    assert epochs[0] != [[*range(n, n + 6)] for n in range(0, 24, 6)]


def test_a_batch_of_some_rows():
    batch = Batch(table_rows(), {"advantage": jnp.arange(8.0)}, GROUP)
    part = batch.take([6, 7, 2, 3])
    assert part.group == GROUP and part.rows.row_id_B.tolist() == [6, 7, 2, 3]
    assert part.arrays["advantage"].tolist() == [6, 7, 2, 3]
    assert batch.take([5], 1).group == 1


# ---- the learner

ROWS = table_rows()
WRITTEN = written_mask(ROWS)
# As if the teacher had written all of it.
SHOWN = ROWS.replace(owner_BT=np.where(WRITTEN, Owner.TEACHER, ROWS.owner_BT).astype(np.int8))


def learner_of(**settings: Any) -> Learner:
    mesh = mesh_of("1")
    with jax.set_mesh(mesh):
        params = jax.device_put(table_params(), models.shardings(PLAIN, mesh))
        actors = Actors(PLAIN, params, None, None, None, None)
        made = Learner(config_of(**settings), actors, mesh, jax.random.key(0))
    assert actors.params == {}  # the learner has them now
    return made


def cloned(made: Learner, include: list[bool], parts: int = 1) -> dict[str, float]:
    with jax.set_mesh(made.mesh):
        return made.clone(put_rows(SHOWN), np.array(include), parts)


def updated(made: Learner, advantage: Any = np.ones(8), step: int = 0) -> dict[str, float]:
    with jax.set_mesh(made.mesh):
        logp = table_logprobs(ROWS.tokens_BT).astype(np.float32)
        rows = put_rows(ROWS.replace(logp_BT=np.where(WRITTEN, logp, 0)))
        advantage = np.asarray(advantage, np.float32)
        return made.update(rows, GROUP, advantage, np.ones(8, bool), jax.random.key(1), step)


def test_the_starting_weights_are_kept_where_something_needs_them():
    assert learner_of().start == {}
    for settings in ({"loss__kl_weight": 0.1}, {"lora__rank": 2}):
        start = learner_of(**settings).start
        np.testing.assert_allclose(start["head"], table_params()["head"])
    host = learner_of(loss__kl_weight=0.1, placement__reference="host").start
    assert "pinned_host" in {x.sharding.memory_kind for x in jax.tree.leaves(host)}


def test_with_adapters_nothing_else_is_trained():
    made = learner_of(lora__rank=2)
    assert {name.rpartition("_")[2] for name in made.state.params["layers"]} == {"a", "b"}
    generator = made.publish()
    np.testing.assert_allclose(generator.params["head"], table_params()["head"])


def test_cloning_is_the_mean_over_demonstrated_tokens():
    made = learner_of()
    metrics = cloned(made, [True] * 8)
    mean = -table_logprobs(ROWS.tokens_BT)[WRITTEN].mean()
    assert metrics["loss/total"] == pytest.approx(mean, rel=1e-4)
    assert metrics["loss/teacher"] == pytest.approx(mean, rel=1e-4)
    assert metrics["policy/teacher_logp"] == pytest.approx(-mean, rel=1e-4)
    wanted = {"update/count": 1, "grad/skipped": 0, "grad/skipped_now": 0, "loss/policy": 0}
    assert {name: metrics[name] for name in wanted} == wanted
    assert metrics["optimizer/learning_rate"] == pytest.approx(0.01)
    assert int(made.state.updates) == 1


def test_each_part_of_the_demonstrations_is_an_update_unless_it_is_left_out():
    made = learner_of()
    metrics = cloned(made, [True, False, False, False, False, False, True, True], parts=4)
    assert metrics["update/count"] == 2 == int(made.state.updates)
    # The two parts: rows 0 and 1, rows 6 and 7. Adam's first step is small beside the losses.
    logp = table_logprobs(ROWS.tokens_BT)
    means = [-logp[part][WRITTEN[part]].mean() for part in (slice(0, 2), slice(6, 8))]
    assert metrics["loss/teacher"] == pytest.approx(np.mean(means), rel=0.1)
    untouched = learner_of()
    assert cloned(untouched, [False] * 8, parts=2) == {
        "grad/skipped": 0,
        "grad/skipped_now": 0,
        "update/count": 0,
    }
    assert int(untouched.state.updates) == 0


def test_cloning_makes_demonstrations_likelier():
    made = learner_of(optimizer__learning_rate=0.1)
    losses = [cloned(made, [True] * 8)["loss/total"] for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.7 * losses[0]


def test_an_update_pushes_up_what_was_better_than_the_group():
    """Before the first update all ratios are 1, so the loss is minus the mean advantage of the
    tokens."""
    made = learner_of(optimizer__learning_rate=0.05)
    advantage = np.array([1, -1, 1, 0, -1, 1, 1, -1], np.float32)
    metrics = updated(made, advantage)
    tokens = WRITTEN.sum(axis=1)
    assert metrics["loss/total"] == pytest.approx(
        -(tokens * advantage).sum() / tokens.sum(), rel=1e-4
    )
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["sampler/logp_gap_max"] < 1e-3 and metrics["grad/norm"] > 0
    assert 0 < metrics["sampler/logp_gap_mean"] <= metrics["sampler/logp_gap_max"]

    with jax.set_mesh(made.mesh):
        run = learning.make_logprobs(PLAIN, temperature=1.0)
        after = np.asarray(run(made.publish().params, ROWS, GROUP))
    before = np.where(WRITTEN, table_logprobs(ROWS.tokens_BT), 0)
    change = (after - before).sum(axis=1)
    assert (change[advantage > 0] > 0).sum() >= 3 and change @ advantage > 0


def test_rows_that_are_left_out_have_no_say():
    made = learner_of()
    with jax.set_mesh(made.mesh):
        include = np.array([True] * 6 + [False] * 2)
        metrics = made.update(
            put_rows(ROWS), GROUP, np.arange(8.0, dtype=np.float32), include, jax.random.key(1), 0
        )
    tokens = WRITTEN.sum(axis=1)[:6]
    # No log-probs were recorded (0 everywhere), so the ratio is the probability itself.
    ratio = np.exp(table_logprobs(ROWS.tokens_BT))
    wanted = -(np.where(WRITTEN, ratio, 0).sum(axis=1) * np.arange(8))[:6].sum() / tokens.sum()
    assert metrics["loss/total"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(("parts", "buckets"), [(1, 1), (2, 1), (1, 2)])
def test_tokens_before_the_credit_begins_have_no_say_and_count(parts: int, buckets: int):
    # Nearly nothing is learned, so that the second of two mini-batches sees the same policy.
    made = learner_of(
        training__mini_batches=parts,
        training__length_buckets=buckets,
        optimizer__learning_rate=1e-9,
    )
    advantage = np.array([1, -1, 2, 0, -1, 1, 3, -2], np.float32)
    begins = np.array([4, 0, 5, 3, 2, 9, 6, 0], np.int32)
    with jax.set_mesh(made.mesh):
        logp = table_logprobs(ROWS.tokens_BT).astype(np.float32)
        rows = put_rows(ROWS.replace(logp_BT=np.where(WRITTEN, logp, 0)))
        everyone, key = np.ones(8, bool), jax.random.key(1)
        metrics = made.update(rows, GROUP, advantage, everyone, key, 0, begins)
    # Rows' written tokens from there on, counted by hand: 2 of 4, 1, 3 of 5, 0, 1 of 2, 0 of 3, 4
    # of 6, 2.
    heard = np.array([2, 1, 3, 0, 1, 0, 4, 2])
    tokens = WRITTEN.sum(axis=1)
    order = np.concatenate([np.asarray(x) for x in _mini_batches(4, parts, GROUP, key, 0)])
    losses = [
        -(heard * advantage)[part].sum() / tokens[part].sum() for part in order.reshape(parts, -1)
    ]
    assert metrics["loss/policy"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics["update/count"] == parts


def test_epochs_and_mini_batches_are_updates_and_the_teachers_weight_follows_the_step():
    made = learner_of(
        training__epochs=2,
        training__mini_batches=2,
        loss__teacher_schedule="linear",
        loss__teacher_weight=1.0,
        loss__teacher_weight_end=0.5,
    )
    metrics = updated(made, step=4)
    assert metrics["update/count"] == 4 == int(made.state.updates)
    assert metrics["loss/teacher_weight"] == pytest.approx(0.8)  # of 10 steps


@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (1, 0.75), (4, 0.0), (9, 0.0)])
def test_the_teachers_weight_may_come_to_its_end_before_the_run(step, weight):
    made = learner_of(loss__teacher_weight=1.0, loss__teacher_steps=4)
    assert updated(made, step=step)["loss/teacher_weight"] == pytest.approx(weight)


TAUGHT = ROWS.replace(owner_BT=np.where(WRITTEN, Owner.TEACHER, ROWS.owner_BT).astype(np.int8))
TAUGHT = TAUGHT.replace(
    owner_BT=np.where(np.arange(8)[:, None] == 5, TAUGHT.owner_BT, ROWS.owner_BT)
)
BROKEN = np.where(np.arange(8)[:, None] == 4, np.nan, np.asarray(ROWS.logp_BT))


@pytest.mark.parametrize(
    ("loss", "rows", "advantage", "found"),
    [
        ({}, ROWS, [0] * 8, []),
        ({}, ROWS, [0, 0, 1, -1, 0, 0, 0, np.nan], [2, 3, 7]),
        # One token of row 4 has an advantage.
        ({}, ROWS, np.arange(8 * ROWS.tokens_BT.shape[1]).reshape(8, -1) == 4 * 12 + 7, [4]),
        # The teacher's tokens of row 5 are cloned whatever the advantage is, unless that weighs 0.
        ({}, TAUGHT, [0] * 8, [5]),
        ({"teacher_weight": 0.0, "teacher_schedule": "constant"}, TAUGHT, [0] * 8, []),
        ({"teacher_term": "shaped"}, TAUGHT, [0] * 8, []),
        ({"teacher_term": "mask"}, TAUGHT, [0] * 8, []),
        ({"kl_weight": 0.01}, ROWS, [0] * 8, [*range(8)]),
        ({"entropy_bonus": 0.01}, ROWS, [0] * 8, [*range(8)]),
        # Row 4 was drawn by a model that is broken: its update has to be found not finite.
        ({}, ROWS.replace(logp_BT=BROKEN), [0] * 8, [4]),
        # What stands behind the end of a row is no token of it.
        ({}, TAUGHT.replace(length_B=TAUGHT.prompt_length_B), [0] * 8, []),
    ],
)
def test_rows_that_have_a_gradient(loss, rows, advantage, found):
    spec = learning.LossSpec(**loss)
    tells = rows_with_gradient(spec, spec.teacher_weight, rows, np.asarray(advantage, np.float32))
    assert np.flatnonzero(tells).tolist() == found


def moved(made: Learner) -> list[np.ndarray]:
    """All that an update changes, copied."""
    return [np.array(x) for x in jax.tree.leaves(made.state)]


def test_an_update_without_a_gradient_changes_nothing_at_all():
    """Neither by Adam's momentum, nor by decay, nor in its counts."""
    made = learner_of(optimizer__weight_decay=0.1)
    first = updated(made, [1, -1] * 4)
    assert (first["update/count"], first["update/no_signal"], made.share_used) == (1, 0, 1.0)
    before = moved(made)
    idle = updated(made, [0] * 8)
    assert (idle["update/count"], idle["update/no_signal"], made.share_used) == (0, 1, 0.0)
    assert idle["grad/skipped_now"] == 0 and "loss/total" not in idle
    assert idle["loss/teacher_weight"] == 1.0
    for a, b in zip(before, moved(made), strict=True):
        np.testing.assert_array_equal(a, b)
    # What follows is what would have followed at once.
    straight = learner_of(optimizer__weight_decay=0.1)
    for learner in (straight, straight, made):
        updated(learner, [1, -1] * 4)
    assert int(made.state.updates) == 2
    for a, b in zip(moved(straight), moved(made), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_optimiser_alone_would_move_the_weights():
    """Why such an update is left out: Adam goes on by its momentum where the gradient is 0."""
    made = learner_of()
    optimizer = learning.make_optimizer(made.spec.optimizer)
    params, state = {"w": jnp.ones(3)}, optimizer.init({"w": jnp.ones(3)})
    _, state = optimizer.update({"w": jnp.ones(3)}, state, params)
    step, _ = optimizer.update({"w": jnp.zeros(3)}, state, params)
    assert float(jnp.abs(step["w"]).min()) > 1e-3


def test_of_several_mini_batches_only_those_with_a_gradient_are_updates():
    settings = {"training__epochs": 2, "training__mini_batches": 4}
    made, alone = learner_of(**settings), learner_of()
    metrics = updated(made, [0, 0, 1, -1, 0, 0, 0, 0])
    assert (metrics["update/count"], metrics["update/no_signal"]) == (2, 6)
    assert made.share_used == 0.25 and int(made.state.updates) == 2
    # The same as two updates on that group alone.
    with jax.set_mesh(alone.mesh):
        logp = table_logprobs(ROWS.tokens_BT).astype(np.float32)
        rows = put_rows(ROWS.replace(logp_BT=np.where(WRITTEN, logp, 0)))
        group = jax.tree.map(lambda x: x[2:4], rows)
        for _ in range(2):
            advantage = np.array([1, -1], np.float32)
            alone.update(group, GROUP, advantage, np.ones(2, bool), jax.random.key(1), 0)
    np.testing.assert_allclose(
        made.state.params["head"], alone.state.params["head"], rtol=1e-6, atol=1e-7
    )


def test_a_kl_term_is_learned_without_an_advantage():
    made = learner_of(loss__kl_weight=0.1)
    metrics = updated(made, [0] * 8)
    assert (metrics["update/count"], metrics["update/no_signal"]) == (1, 0)


def test_a_rehearsal_leaves_nothing_out():
    """Its programs are there to be compiled."""
    made = learner_of()
    with made.rehearsal():
        assert updated(made, [0] * 8)["update/count"] == 1
    assert int(made.state.updates) == 0


def test_an_update_that_is_not_finite_is_counted_and_changes_nothing():
    made = learner_of()
    metrics = updated(made, [np.nan] + [1] * 7)
    assert (metrics["grad/skipped"], metrics["grad/skipped_now"]) == (1, 1)
    np.testing.assert_array_equal(made.state.params["head"], table_params()["head"])
    metrics = updated(made)
    assert (metrics["grad/skipped"], metrics["grad/skipped_now"]) == (1, 0)
    assert (np.asarray(made.state.params["head"]) != np.asarray(table_params()["head"])).any()


def test_a_state_is_taken_up_as_it_is():
    made = learner_of()
    state = dataclasses.replace(made.state, updates=jnp.int32(7))
    made.restore(state)
    assert made.state is state


def test_the_policy_is_written_as_it_is_used(tmp_path: Path):
    """Kept in float32, used and written in bfloat16."""
    made = learner_of(dtype="bfloat16")
    assert made.state.params["head"].dtype == jnp.float32
    with jax.set_mesh(made.mesh):
        made.save(tmp_path)
    config, params = models.load(tmp_path / "model")
    assert (config.hidden_size, config.head) == (PLAIN.hidden_size, "lm")
    rounded = table_params()["head"].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(params["head"], rounded)
    assert not (tmp_path / "adapter").exists()


def test_adapters_are_written_beside_the_merged_policy(tmp_path: Path):
    made = learner_of(lora__rank=2, models__policy="checkpoints/policy")
    with jax.set_mesh(made.mesh):
        made.save(tmp_path)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    spec, adapters = models.load_lora(tmp_path / "adapter", PLAIN)
    assert spec == made.spec.lora
    for one, other in zip(
        jax.tree.leaves(adapters), jax.tree.leaves(made.state.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
