"""Layout: which device holds what, and the same update on every mesh and with every split into
micro-batches."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support.fixtures import TINY, mesh_of, on_mesh, tiny_params
from support.one_update import GROUP, adam_state, batch, direct_gradient, numbers, objective

from scope_jax import cli, learning, models
from scope_jax.configuration import default_config
from scope_jax.devices.mesh import assert_sharded, make_mesh, partition_spec, put_rows

# A large eps keeps Adam's step smooth where a gradient is nearly 0, so that rounding is not blown
# up to a whole step.
ADAMW = learning.OptimizerSpec(
    learning_rate=0.01, b1=0.9, b2=0.99, eps=1e-3, weight_decay=0.1, clip_norm=0.05
)


@functools.cache
def one_update(name: str, micro_batches: int):
    """(numbers of the parameters, of the first moments, statistics) after one update; layouts are
    asserted on the way."""
    optimizer = learning.make_optimizer(ADAMW)
    update = learning.make_update(objective(), optimizer, TINY, micro_batches)
    with on_mesh(name) as params:
        wanted = models.shardings(TINY, mesh_of(name))
        state = learning.init_state(params, optimizer)
        for number in range(2):
            adam = adam_state(state.opt_state)
            for tree in (state.params, adam.mu, adam.nu):
                assert_sharded(tree, wanted)
            if number == 0:
                before = numbers(state.params)
                packed = learning.pack(*put_rows(batch()), GROUP, micro_batches)
                state, stats = update(state, packed, {"teacher_weight": jnp.float32(0.5)})
        # What the caller passed is not donated, and the state was a copy.
        assert np.isfinite(np.asarray(params["embed"])).all()
    assert [int(x) for x in (state.updates, state.skipped, state.skipped_in_row)] == [1, 0, 0]
    after = numbers(state.params)
    assert all((after[k] != before[k]).any() for k in after)
    return after, numbers(adam.mu), numbers(stats)


def test_one_update_against_adamw_by_hand():
    loss, grads, stats = direct_gradient()
    after, mu, found = one_update("1", 1)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    assert norm > 2 * ADAMW.clip_norm  # clipping takes part
    assert found["['loss']"] == pytest.approx(loss, abs=1e-5) and found[
        "['grad_norm']"
    ] == pytest.approx(norm, rel=1e-5)
    before = numbers(tiny_params())
    for name, g in grads.items():
        clipped = g * (ADAMW.clip_norm / norm)
        np.testing.assert_allclose(mu[name], 0.1 * clipped, atol=1e-6, err_msg=name)
        # First step: both moments, freed of their bias, are the gradient and its square.
        decay = 0.0 if name.endswith(("norm']", "bias']")) else 0.1
        step = clipped / (np.abs(clipped) + 1e-3) + decay * before[name]
        np.testing.assert_allclose(after[name], before[name] - 0.01 * step, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("name", "micro"),
    [
        ("1", 2),
        ("8x1x1", 1),
        ("2x2x2", 4),
        pytest.param("8x1x1", 4, marks=pytest.mark.long),
        pytest.param("2x2x2", 1, marks=pytest.mark.long),
        pytest.param("2x2x2", 2, marks=pytest.mark.long),
    ],
)
def test_meshes_and_micro_batches_give_the_same_update(name, micro):
    wanted_params, wanted_mu, wanted_stats = one_update("1", 1)
    params, mu, stats = one_update(name, micro)
    _, grads, _ = direct_gradient()
    norm = wanted_stats["['grad_norm']"]
    for key, value in wanted_params.items():
        np.testing.assert_allclose(params[key], value, atol=1e-5, err_msg=key)
        # The gradient: the first moment, its factors taken off.
        np.testing.assert_allclose(
            mu[key] / 0.1 * norm / ADAMW.clip_norm, grads[key], atol=1e-5, err_msg=key
        )
    assert stats.keys() == wanted_stats.keys()
    for key, value in wanted_stats.items():
        np.testing.assert_allclose(stats[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_bad_update_is_skipped_and_counted(where):
    optimizer = learning.make_optimizer(ADAMW)

    def loss(params, part, scalars):
        # sqrt(0): a finite value whose gradient is NaN; or the other way round.
        poison = (
            jnp.sqrt(scalars["poison"] * jnp.sum(params["final_norm"] ** 2))
            if where == "gradient"
            else 0.0
        )
        flat = jnp.where(scalars["poison"] > 0, 0.0, jnp.nan) if where == "loss" else 0.0
        return (
            jnp.sum(part["weight"])
            * jnp.sum(params["final_norm"] * params["layers"]["query"][0, 0, 0])
            + poison
            + flat,
            {},
        )

    update = learning.make_update(loss, optimizer, TINY)
    with on_mesh("2x2x2") as params:
        state = learning.init_state(params, optimizer)
        counters = []
        for poison in (1.0, 0.0, 0.0, 1.0):
            before = numbers((state.params, state.opt_state))
            state, stats = update(
                state, put_rows({"weight": np.ones(8, np.float32)}), {"poison": jnp.float32(poison)}
            )
            after = numbers((state.params, state.opt_state))
            same = [np.array_equal(after[k], before[k]) for k in before]
            assert all(same) if poison == 0 else not all(same)
            assert all(np.isfinite(x).all() for x in after.values())
            assert int(stats["skipped"]) == (poison == 0)
            counters.append([int(x) for x in (state.updates, state.skipped, state.skipped_in_row)])
        assert counters == [[1, 0, 0], [1, 1, 1], [1, 2, 2], [2, 2, 0]]
        assert_sharded(state.params, models.shardings(TINY, mesh_of("2x2x2")))


@pytest.mark.parametrize(
    ("axes", "shape", "sizes", "drop", "wanted"),
    [
        (("batch", None), (8, 5), (2, 2, 2), (), P(("data", "fsdp"), None)),
        (("batch",), (2,), (2, 2, 2), (), P("data")),  # 4 devices do not divide 2 rows, 2 do
        (("batch",), (3,), (2, 2, 2), (), P(None)),
        (("batch",), (6,), (4, 2, 1), (), P("fsdp")),  # data does not divide; fsdp still may
        (("embed", "heads"), (32, 64), (2, 2, 2), (), P("fsdp", "tensor")),
        (("embed", "heads"), (32, 64), (2, 2, 2), ("fsdp",), P(None, "tensor")),
        (("embed", "kv_heads"), (32, 3), (2, 2, 2), (), P("fsdp", None)),
        (("vocab", None), (48, 32), (2, 2, 2), (), P(("fsdp", "tensor"), None)),
        (("vocab", None), (50, 32), (2, 2, 2), (), P("fsdp", None)),  # 4 does not divide 50
        (
            ("batch", None, "vocab"),
            (8, 4, 48),
            (2, 2, 2),
            (),
            P(("data", "fsdp"), None, "tensor"),
        ),  # fsdp is taken
        (
            ("loss_batch", None, "vocab"),
            (8, 4, 48),
            (2, 2, 2),
            (),
            P("data", None, ("fsdp", "tensor")),
        ),
        ((None, "mlp", "embed"), (2, 64, 32), (1, 1, 8), (), P(None, "tensor", "fsdp")),
    ],
)
def test_partition_specs_by_hand(axes, shape, sizes, drop, wanted):
    assert (
        partition_spec(axes, shape, dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), drop)
        == wanted
    )


def test_meshes():
    assert dict(make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    with pytest.raises(
        ValueError, match=r"mesh data x fsdp x tensor = \[2, 2, 1\] needs 4 devices, 8 are here"
    ):
        make_mesh(2, 2, 1)
    with pytest.raises(
        ValueError, match=r"mesh data x fsdp x tensor = \[2, 3, 1\] needs 6 devices, 8 are here"
    ):
        make_mesh(-1, 3, 1)
    with pytest.raises(ValueError, match="at most one of data, fsdp, tensor may be -1"):
        make_mesh(-1, -1, 1)


def test_replicated_weights_are_noticed():
    mesh = mesh_of("2x2x2")
    wanted = models.shardings(TINY, mesh)
    params = jax.device_put(tiny_params(), wanted)
    assert_sharded(params, wanted)
    params["layers"]["gate"] = jax.device_put(params["layers"]["gate"], NamedSharding(mesh, P()))
    with pytest.raises(
        ValueError,
        match=(
            r"\['layers'\]\['gate'\]: laid out as P\w*\(\), should be P\w*\(None, 'fsdp',"
            r" 'tensor'\)"
        ),
    ):
        assert_sharded(params, wanted)


def test_each_device_holds_its_share_of_the_weights():
    """8 devices hold 1/4 of a matrix each (fsdp x tensor), and decoding weights, without fsdp,
    1/2."""
    mesh = mesh_of("2x2x2")
    params = jax.device_put(tiny_params(), models.shardings(TINY, mesh))
    laid = models.decode_layout(TINY, params, mesh)
    for name in ("query", "key", "value", "output", "gate", "up", "down"):
        whole = params["layers"][name].size
        assert {s.data.size for s in params["layers"][name].addressable_shards} == {whole // 4}
        assert {s.data.size for s in laid["layers"][name].addressable_shards} == {whole // 2}
        np.testing.assert_array_equal(laid["layers"][name], tiny_params()["layers"][name])
    assert models.decode_layout(TINY, params, None) is params
    assert models.decode_layout(TINY, params, mesh_of("8x1x1")) is params


def test_initial_weights_do_not_depend_on_the_mesh():
    plain = numbers(models.init(TINY, jax.random.key(0)))
    params = models.init(TINY, jax.random.key(0), mesh=mesh_of("2x2x2"))
    assert_sharded(params, models.shardings(TINY, mesh_of("2x2x2")))
    for key, value in numbers(params).items():
        np.testing.assert_allclose(value, plain[key], atol=1e-6, err_msg=key)
    assert np.std(plain["['layers']['down']"]) == pytest.approx(64**-0.5, rel=0.05)
    assert (plain["['final_norm']"] == 1).all() and (plain["['layers']['key_bias']"] == 0).all()


@pytest.mark.parametrize(
    ("weights", "devices"),
    [(0, "cores"), (8_000_000, "cores"), (8_000_001, 1), (135_000_000, 1)],
)
def test_a_large_model_has_one_cpu_device(weights, devices):
    """In a process of its own: devices are decided before the first is asked for."""
    code = (
        "import jax, os; from scope_jax.devices.mesh import use_cpu_cores\n"
        f"use_cpu_cores({weights}); print(jax.device_count(), len(os.sched_getaffinity(0)))"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    found, cores = map(int, done.stdout.split())
    assert found == (min(cores, 8) if devices == "cores" else devices)


def test_the_weights_of_a_directory_are_counted_by_its_config(tmp_path):
    save_tiny = {"model_type": "qwen2", "hidden_size": 8, "intermediate_size": 16, "vocab_size": 32}
    save_tiny |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    save_tiny |= {"max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(save_tiny | {"rope_theta": 10000.0}))
    # embedding; per layer q, k, v, their biases, o, gate, up, down, two norms; last norm
    layer = 8 * 8 + 2 * 8 * 4 + (8 + 4 + 4) + 8 * 8 + 3 * 8 * 16 + 2 * 8
    assert cli.weights_of(tmp_path) == 32 * 8 + 2 * layer + 8
    assert cli.weights_of(None) == cli.weights_of(tmp_path / "none") == 0


def test_a_mesh_that_names_several_devices_has_them():
    config = default_config()
    assert not cli.divides_devices(config)
    config.mesh.fsdp = 2
    assert cli.divides_devices(config)
