"""Weights that are kept in float32 and used in bfloat16: what is learned, what is summed, what
waits where."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.fixtures import TINY, mesh_of, on_mesh, tiny_params
from support.one_update import GROUP, batch, direct_gradient, numbers, objective
from support.tiny_runs import Tiny

from scope_jax import learning, models
from scope_jax import train as train_module
from scope_jax.configuration import default_config, train_config
from scope_jax.devices.mesh import assert_sharded, put_rows
from scope_jax.models import layers
from scope_jax.training.actors import Actors
from scope_jax.training.learner import Learner


@functools.cache
def gradient(name: str, micro_batches: int) -> dict[str, np.ndarray]:
    """What one step of plain descent takes off float32 weights that are used in bfloat16."""
    update = learning.make_update(
        objective(), optax.sgd(1.0), TINY, micro_batches, dtype="bfloat16"
    )
    with on_mesh(name) as params:
        state = learning.init_state(params, optax.sgd(1.0), "float32")
        packed = learning.pack(*put_rows(batch()), GROUP, micro_batches)
        state, _ = update(state, packed, {"teacher_weight": jnp.float32(0.5)})
        assert_sharded(state.params, models.shardings(TINY, mesh_of(name)))
    after = numbers(state.params)
    return {key: before - after[key] for key, before in numbers(tiny_params()).items()}


@pytest.mark.parametrize(("name", "micro_batches"), [("1", 1), ("1", 4), ("2x2x2", 2)])
def test_the_gradient_is_the_float32_one_but_for_rounding(name, micro_batches):
    """Against jax.grad in float32: the products are bfloat16, of 8 bits."""
    _, wanted, _ = direct_gradient()
    found = gradient(name, micro_batches)
    for key, want in wanted.items():
        assert found[key].dtype == np.float32
        error = np.linalg.norm(found[key] - want) / np.linalg.norm(want)
        assert error < 0.06, (key, error)


def test_what_many_tokens_add_to_one_row_is_summed_in_float32():
    """The first token adds 256 to its row of the embedding, 5,119 others add 1 each: in bfloat16,
    256 + 1 is 256."""
    params, table = tiny_params(), models.weight_table(TINY)
    tokens = jnp.full((8, 640), 3, jnp.int32)
    share = jnp.ones((8, 640)).at[0, 0].set(256.0)

    def loss(params, rows, _):
        embedded = layers.embed(params, TINY, rows["tokens"])
        assert embedded.dtype == jnp.bfloat16
        return jnp.sum(rows["share"][..., None] * embedded.astype(jnp.float32)), {}

    update = learning.make_update(loss, optax.sgd(1.0), TINY, table=table, dtype="bfloat16")
    state, _ = update(
        learning.init_state(params, optax.sgd(1.0), "float32"),
        {"tokens": tokens, "share": share},
        {},
    )
    np.testing.assert_allclose(
        params["embed"][3] - state.params["embed"][3], 256.0 + 5119, rtol=1e-6
    )


def test_micro_batches_are_summed_in_float32():
    """The same of micro-batches, with weights that are kept in bfloat16, too: 256 and then 64
    times 1."""
    table = {"final_norm": models.weight_table(TINY)["final_norm"]}

    def loss(params, rows, _):
        return (
            jnp.sum(params["final_norm"].astype(jnp.float32)) * jnp.sum(rows["x"]),
            {},
        )

    for kept, used in (("bfloat16", None), ("float32", "bfloat16")):
        update = learning.make_update(loss, optax.identity(), TINY, 65, table=table, dtype=used)
        state = learning.init_state({"final_norm": jnp.zeros(4, kept)}, optax.identity())
        state, stats = update(state, {"x": jnp.ones(65).at[0].set(256.0)}, {})
        assert float(stats["grad_norm"]) == pytest.approx(2 * 320, rel=1e-6)
        assert state.params["final_norm"].dtype == kept


def learner(settings: dict, mesh_name: str = "1") -> Learner:
    config = default_config()
    config.rollout.prompts, config.rollout.group, config.rollout.new_tokens = 4, GROUP, 28
    config.dtype, config.optimizer.learning_rate = "bfloat16", 1e-6
    config.update_from_flattened_dict(settings)
    mesh = mesh_of(mesh_name)
    start = models.in_dtype(tiny_params(), "bfloat16")
    start = jax.device_put(start, models.shardings(TINY, mesh))
    with jax.set_mesh(mesh):
        actors = Actors(TINY, start, None, None, None, None)
        return Learner(train_config(config), actors, mesh, jax.random.key(0))


def test_steps_of_one_millionth_add_up():
    """20 updates at the learning rate of the shipped configs. Kept in bfloat16, the weights near 1
    stand still."""
    moved = {}
    for kept in ("float32", "none"):
        made = learner({"training.master_weights": kept})
        rows, arrays = put_rows(batch())
        before = numbers(made.state.params)
        with jax.set_mesh(made.mesh):
            for step in range(20):
                made.update(
                    rows, GROUP, arrays["advantage"], np.ones(8, bool), jax.random.key(1), step
                )
        after = numbers(made.state.params)
        key = "['final_norm']"
        moved[kept] = np.abs(after[key].astype(np.float64) - before[key].astype(np.float64))
    assert (moved["none"] == 0).mean() > 0.9
    # Adam's steps are about as long as the rate.
    assert 1e-6 < np.median(moved["float32"]) <= 2.1e-5 and (moved["float32"] > 0).all()


@pytest.mark.parametrize("name", ["1", "2x2x2"])
def test_weights_are_cast_for_decoding_and_wait_on_the_host(name):
    made = learner({"placement.optimizer": "host"}, name)

    def kinds(tree):
        return {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}

    with jax.set_mesh(made.mesh):
        at_first = numbers(made.state.params)
        policy = made.publish()
        assert {x.dtype.name for x in jax.tree.leaves(policy.params)} == {"bfloat16"}
        assert kinds(made.state.params) == kinds(made.state.opt_state) == {"pinned_host"}
        assert "pinned_host" not in kinds(policy.params)
        rows, arrays = put_rows(batch())
        made.update(rows, GROUP, arrays["advantage"], np.ones(8, bool), jax.random.key(1), 0)
        assert "pinned_host" not in kinds(made.state)
        assert_sharded(made.state.params, models.shardings(TINY, made.mesh))
    after = numbers(made.state.params)
    assert all(
        after[key].dtype == np.float32 and (after[key] != at_first[key]).any() for key in after
    )


def test_a_run_in_bfloat16_keeps_float32_and_exports_bfloat16(checkpoints: Tiny, tmp_path: Path):
    settings = {
        "dtype": "bfloat16",
        "steps": 1,
        "evaluation.problems": 0,
        "evaluation.ood_problems": 0,
    }
    train_module.train(checkpoints.config("grpo", settings), tmp_path / "run")
    record = json.loads(
        (tmp_path / "run" / "checkpoints" / "1" / "record" / "metadata").read_text()
    )
    weights = [
        leaf["dtype"] for name, leaf in record["leaves"].items() if name.startswith(".params")
    ]
    assert set(weights) == {"float32"} and len(weights) == len(
        models.weight_table(models.read_config(checkpoints.policy))
    )
    assert (
        json.loads((tmp_path / "run" / "model" / "config.json").read_text())["torch_dtype"]
        == "bfloat16"
    )
