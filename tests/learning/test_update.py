"""One optimiser step by hand: how a batch is split, what is summed, what a step changes and what it
leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from support.fixtures import TINY, mesh_of, on_mesh, tiny_params
from support.one_update import GROUP, adam_state, batch, numbers, objective

from scope_jax import learning, models
from scope_jax.learning.update import Loss, Update, computing, update_program

# What is trained here: four numbers.
NORM = {"final_norm": models.weight_table(TINY)["final_norm"]}
WEIGHTS = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


def descent(loss: Loss, micro_batches: int = 1, rate: float = 0.5, dtype: Any = None) -> Update:
    return learning.make_update(loss, optax.sgd(rate), TINY, micro_batches, table=NORM, dtype=dtype)


def start() -> learning.TrainState:
    return learning.init_state({"final_norm": jnp.asarray(WEIGHTS)}, optax.sgd(0.5))


def linear(params: models.Params, rows: dict, scalars: dict) -> tuple[jax.Array, dict]:
    """Sum of the weights times sum of `x`."""
    return jnp.sum(params["final_norm"]) * jnp.sum(rows["x"]), {}


def test_a_step_of_descent():
    state, stats = descent(linear)(start(), {"x": jnp.array([0.25, 0.5])}, {})
    # Every entry of the gradient is 0.75.
    np.testing.assert_allclose(state.params["final_norm"], WEIGHTS - 0.375)
    assert float(stats["loss"]) == 7.5 and float(stats["grad_norm"]) == 1.5
    assert int(stats["skipped"]) == 0
    assert [int(x) for x in (state.updates, state.skipped, state.skipped_in_row)] == [1, 0, 0]


def test_scalars_are_the_same_for_all_micro_batches():
    def loss(params, rows, scalars):
        return linear(params, rows, {})[0] * scalars["factor"], {}

    _, stats = descent(loss, 2)(start(), {"x": jnp.ones(4)}, {"factor": jnp.float32(3)})
    assert float(stats["loss"]) == 120


def squares(params: models.Params, rows: dict, scalars: dict) -> tuple[jax.Array, dict]:
    """Not a sum over rows, so that it tells which rows came together."""
    return jnp.sum(params["final_norm"]) * jnp.sum(rows["x"]) ** 2 / 10, {}


@pytest.mark.parametrize(
    ("micro_batches", "value"),
    [(1, 10**2), (2, (1 + 3) ** 2 + (2 + 4) ** 2), (4, 1 + 4 + 9 + 16)],
)
def test_micro_batch_i_holds_every_nth_row_from_i_on(micro_batches, value):
    state, stats = descent(squares, micro_batches)(start(), {"x": jnp.arange(1.0, 5.0)}, {})
    assert float(stats["loss"]) == pytest.approx(value)
    np.testing.assert_allclose(state.params["final_norm"], WEIGHTS - 0.05 * value, rtol=1e-6)


def test_a_prompt_and_its_rows_are_in_one_micro_batch():
    def loss(params, rows, scalars):
        assert (rows["prompt"].shape, rows["x"].shape) == ((2,), (4,))
        share = jnp.sum(rows["prompt"]) * jnp.sum(rows["x"])
        return jnp.sum(params["final_norm"]) * share / 10, {}

    given = {"prompt": jnp.array([1.0, 10, 100, 1000]), "x": jnp.arange(8.0)}
    _, stats = descent(loss, 2)(start(), given, {})
    # Prompts 0 and 2 with rows 0 1 4 5, prompts 1 and 3 with rows 2 3 6 7.
    assert float(stats["loss"]) == 101 * 10 + 1010 * 18


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_batches_of_several_widths_make_one_step(micro_batches):
    parts = [{"x": jnp.ones((2, 3))}, {"x": jnp.full((4, 5), 0.5)}]
    state, stats = descent(linear, micro_batches)(start(), parts, {})
    # 6 + 10 in all.
    assert float(stats["loss"]) == 160 and float(stats["grad_norm"]) == 32
    np.testing.assert_allclose(state.params["final_norm"], WEIGHTS - 8)
    assert int(state.updates) == 1


def test_every_batch_of_several_must_be_divisible():
    parts = [{"x": jnp.ones((4, 3))}, {"x": jnp.ones((3, 5))}]
    with pytest.raises(ValueError, match="3 rows cannot be split into 2 micro-batches"):
        descent(linear, 2)(start(), parts, {})


@pytest.mark.parametrize("several", [False, True])
def test_statistics_add_up_and_maxima_are_kept(several):
    def loss(params, rows, scalars):
        stats = {"count": jnp.float32(len(rows["x"])), "x_max": jnp.max(rows["x"])}
        return linear(params, rows, {})[0], stats

    x = jnp.array([3.0, 1.0, 7.0, 2.0])
    given = [{"x": x}, {"x": x / 2}] if several else {"x": x}
    _, stats = descent(loss, 2)(start(), given, {})
    assert (float(stats["count"]), float(stats["x_max"])) == (8 if several else 4, 7)
    assert stats.keys() == {"count", "x_max", "loss", "grad_norm", "skipped"}


def test_an_update_takes_over_its_state_and_leaves_the_callers_weights():
    given = {"final_norm": jnp.asarray(WEIGHTS)}
    state = learning.init_state(given, optax.sgd(0.5))
    descent(linear)(state, {"x": jnp.ones(2)}, {})
    assert state.params["final_norm"].is_deleted() and not given["final_norm"].is_deleted()
    np.testing.assert_array_equal(given["final_norm"], WEIGHTS)


def test_the_loss_sees_weights_in_the_dtype_in_use():
    seen = []

    def loss(params, rows, scalars):
        seen.append(params["final_norm"].dtype)
        return linear(params, rows, {})[0].astype(jnp.float32), {}

    state, _ = descent(loss, dtype="bfloat16")(start(), {"x": jnp.ones(2)}, {})
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert state.params["final_norm"].dtype == jnp.float32


def test_embedding_and_head_stay_in_the_dtype_they_are_kept_in():
    used = computing(tiny_params(), "bfloat16")
    assert used.keys() == tiny_params().keys() and "head" in used
    kinds = {name: {x.dtype.name for x in jax.tree.leaves(part)} for name, part in used.items()}
    full = {name for name, found in kinds.items() if found == {"float32"}}
    assert full == {"embed", "head"}
    assert all(kinds[name] == {"bfloat16"} for name in kinds.keys() - full)


def test_a_fresh_state_counts_from_0_and_keeps_a_wider_dtype():
    kept = models.in_dtype(tiny_params(), "bfloat16")
    state = learning.init_state(kept, optax.adam(0.1), "float32")
    for tree in (state.params, adam_state(state.opt_state).mu):
        assert {x.dtype.name for x in jax.tree.leaves(tree)} == {"float32"}
    own = learning.init_state(kept, optax.adam(0.1))
    assert {x.dtype.name for x in jax.tree.leaves(own.params)} == {"bfloat16"}
    assert [int(x) for x in (state.updates, state.skipped, state.skipped_in_row)] == [0, 0, 0]
    assert state.updates.dtype == jnp.int32


def test_counters_of_a_state_lie_on_every_device_and_moments_like_their_weights():
    mesh = mesh_of("2x2x2")
    with on_mesh("2x2x2") as params:
        state = learning.init_state(params, optax.adam(0.1))
        adam = adam_state(state.opt_state)
        for x in (state.updates, state.skipped, state.skipped_in_row, adam.count):
            assert isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
            assert x.sharding.is_fully_replicated
        query = models.shardings(TINY, mesh)["layers"]["query"]
        assert not query.is_fully_replicated
        assert adam.mu["layers"]["query"].sharding.is_equivalent_to(query, 3)
        described = learning.abstract_state(state)
    assert jax.tree.structure(described) == jax.tree.structure(state)
    for shape, x in zip(jax.tree.leaves(described), jax.tree.leaves(state), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (shape.shape, shape.dtype, shape.sharding) == (x.shape, x.dtype, x.sharding)


def test_runs_of_one_process_share_updates_that_are_equal():
    spec = learning.UpdateSpec(learning.LossSpec(), learning.OptimizerSpec())
    assert update_program(TINY, spec) is update_program(models.for_device(TINY), spec)
    again = learning.UpdateSpec(learning.LossSpec(), learning.OptimizerSpec(), micro_batches=1)
    assert update_program(TINY, again) is update_program(TINY, spec)
    other = learning.UpdateSpec(learning.LossSpec(), learning.OptimizerSpec(), micro_batches=2)
    assert update_program(TINY, other) is not update_program(TINY, spec)
    assert update_program(TINY, other).micro_batches == 2


def test_rows_that_cannot_be_split_are_refused():
    update = learning.make_update(objective(), optax.sgd(1.0), TINY, 3)
    with pytest.raises(
        ValueError, match="8 rows cannot be split into 3 micro-batches; choose a divisor of 8"
    ):
        update(None, {"tokens": np.zeros((8, 4), np.int32)}, {})
    with pytest.raises(
        ValueError, match="8 rows cannot be split into 3 micro-batches; choose a divisor of 8"
    ):
        learning.pack(*batch(), GROUP, 3)


def test_a_bucket_that_is_not_finite_skips_the_update():
    table = {"final_norm": models.weight_table(TINY)["final_norm"]}

    def loss(p, rows, _):
        return (jnp.sum(p["final_norm"]) * jnp.sum(rows["x"]), {})

    update = learning.make_update(loss, optax.sgd(1.0), TINY, table=table)
    state = learning.init_state({"final_norm": jnp.ones(4)}, optax.sgd(1.0))
    for bad, skipped in ((1.0, 0), (np.inf, 1)):
        before = numbers(state.params)
        state, stats = update(state, [{"x": jnp.ones(4)}, {"x": jnp.array([1.0, bad])}], {})
        assert int(stats["skipped"]) == skipped
        assert (numbers(state.params)["['final_norm']"] == before["['final_norm']"]).all() == bool(
            skipped
        )
    assert [int(x) for x in (state.updates, state.skipped)] == [1, 1]


def test_a_skipped_update_changes_nothing():
    """The same guard, seen from close by: NaN in one row's advantage."""
    from scope_jax import learning

    config = models.ModelConfig(24, 16, 1, 2, 1, 8, 16)
    params = models.init(config, jax.random.key(0))
    spec = learning.LossSpec(max_new_tokens=4)
    optimizer = learning.make_optimizer(learning.OptimizerSpec(learning_rate=0.1))
    update = learning.make_update(
        learning.policy_objective(config, spec, temperature=1.0, entropy=True),
        optimizer,
        config,
    )
    written = {
        "completion": jnp.arange(8, dtype=jnp.int32).reshape(2, 4),
        "on": jnp.full((2, 4), 0.1),
        "off": jnp.zeros((2, 4)),
    }
    prompt = {
        "prompt": jnp.array([[5, 6, 7]], jnp.int32),
        "prompt_length": jnp.array([2], jnp.int32),
    }
    batch = prompt | written | {"advantage": jnp.array([1.0, -1.0])}
    scalars = {"teacher_weight": jnp.float32(0.0)}
    state = learning.init_state(params, optimizer)
    bad, good = {**batch, "advantage": jnp.array([jnp.nan, 1.0])}, batch
    counts = []
    for part in (bad, bad, good, bad):
        before = jax.device_get(state.params)
        state, stats = update(state, part, scalars)
        same = all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(state.params)))
        )
        assert same == (part is bad) and int(stats["skipped"]) == (part is bad)
        counts.append((int(state.updates), int(state.skipped), int(state.skipped_in_row)))
    assert counts == [(0, 1, 1), (0, 2, 2), (1, 2, 0), (1, 3, 1)]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state)))
