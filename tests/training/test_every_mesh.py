"""Every program on every shape of mesh: sampling, the teacher's step, PRM scores, log-probs, the
update; measured by one device."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from support.fixtures import make_params

from scope_jax import learning, models, rollout
from scope_jax.devices.mesh import (
    assert_sharded,
    make_mesh,
    put_rows,
    reshape_mesh,
    to_device_memory,
    to_host_memory,
    to_mesh,
)
from scope_jax.prm.model import score_program
from scope_jax.types import Owner, Rollout

# Four kv heads: up to four devices on the tensor axis.
MODEL = models.ModelConfig(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_size=8,
    ffn_size=64,
    max_positions=128,
)
PRM = models.ModelConfig(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_size=8,
    ffn_size=64,
    max_positions=128,
    head="prm",
)
MESHES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2), "1x2x4": (1, 2, 4)}
GROUP, SLOTS = 2, 32
PROMPTS = [[5, 6, 7], [11], [1, 2, 3, 4, 5, 6, 7, 8], [40, 41, 42, 43, 44]]
KEY = jax.random.key(7)
# The separator is token 9: a step ends behind it.
STOP = np.where(np.arange(48) == 9, 1, 0)[None].repeat(2, axis=0).astype(np.int32)
LOSS = learning.LossSpec(
    max_new_tokens=16, teacher_term="shaped", teacher_weight=0.5, entropy_bonus=0.01
)


@functools.cache
def weights(config: models.ModelConfig) -> models.Params:
    return make_params(config, 3)


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    return make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])


@functools.cache
def outcome(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """What all programs give on a mesh, one after another as in a training step; layouts are
    asserted on the way."""
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):
        params = jax.device_put(weights(MODEL), models.shardings(MODEL, mesh))
        prm = jax.device_put(weights(PRM), models.shardings(PRM, mesh))
        spec = rollout.SampleSpec(temperature=1.0, max_new_tokens=14, end_ids=(0,))
        rows = rollout.generate(
            params,
            MODEL,
            rollout.from_prompts(PROMPTS, GROUP, SLOTS),
            KEY,
            spec,
            shared_prefix=GROUP,
        )
        step = rollout.generate(
            params,
            MODEL,
            rollout.from_prompts(PROMPTS, GROUP, SLOTS),
            KEY,
            rollout.SampleSpec(temperature=0.7, max_new_tokens=10, end_ids=(0,), stop=STOP),
            owner=Owner.TEACHER,
            stream=1,
        )
        score = score_program(prm, PRM, rows.tokens_BT, rows.length_B, choice=None)
        logp = learning.make_logprobs(MODEL, temperature=1.0, micro_batches=2)(params, rows, GROUP)
        on, off = learning.token_weights(rows, LOSS)
        optimizer = learning.make_optimizer(
            learning.OptimizerSpec(learning_rate=0.01, b1=0.9, eps=1e-3, clip_norm=None)
        )
        objective = learning.policy_objective(
            dataclasses.replace(MODEL, remat="layer"), LOSS, temperature=1.0, entropy=True
        )
        update = learning.make_update(objective, optimizer, MODEL, 2)
        state = learning.init_state(params, optimizer)
        arrays = {
            "advantage": put_rows(np.linspace(-1, 1, 8, dtype=np.float32)),
            "on": on,
            "off": off,
            "old_logp": logp,
        }
        state, stats = update(
            state, learning.pack(rows, arrays, GROUP, 2), {"teacher_weight": jnp.float32(0.5)}
        )
        assert_sharded(state.params, models.shardings(MODEL, mesh))
        moments = (
            state.opt_state[0][0].mu
            if hasattr(state.opt_state[0][0], "mu")
            else first_moments(state.opt_state)
        )
        assert_sharded(moments, models.shardings(MODEL, mesh))
        # Its first moment is a tenth of the gradient.
        gradient = {
            f"gradient {jax.tree_util.keystr(path)}": 10 * x
            for path, x in jax.tree.leaves_with_path(moments)
        }
        named = {
            "tokens": rows.tokens_BT,
            "length": rows.length_B,
            "logp": rows.logp_BT,
            "teacher tokens": step.tokens_BT,
            "teacher length": step.length_B,
            "score": score,
            "trainer logp": logp,
            "loss": stats["loss"],
        }
        return {name: np.asarray(x) for name, x in jax.device_get(named | gradient).items()}


def first_moments(opt_state: Any) -> Any:
    """The first moments, wherever the optimiser keeps them."""
    (found,) = {id(node): node for node in walk(opt_state) if hasattr(node, "mu")}.values()
    return found.mu


def walk(node: Any) -> Iterator[Any]:
    yield node
    if isinstance(node, tuple | list):
        for child in node:
            yield from walk(child)


@pytest.mark.parametrize(
    "name",
    # fsdp is split on the last two as well.
    ["8x1x1", pytest.param("1x8x1", marks=pytest.mark.long), "2x2x2", "1x2x4"],
)
def test_all_programs_give_the_same(name):
    wanted, found = outcome((1, 1, 1)), outcome(MESHES[name])
    assert (wanted["length"] > 8).any() and (wanted["teacher length"] < 11 + 8).any()
    for key in ("tokens", "length", "teacher tokens", "teacher length"):
        np.testing.assert_array_equal(found[key], wanted[key], err_msg=key)
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=1e-5, rtol=0, err_msg=key)
    assert (
        max(np.abs(value).max() for key, value in wanted.items() if key.startswith("gradient"))
        > 0.01
    )


def test_more_tensor_shards_than_kv_heads_are_refused():
    mesh = mesh_of((1, 1, 8))
    with jax.set_mesh(mesh):
        params = jax.device_put(weights(MODEL), models.shardings(MODEL, mesh))
        rows = rollout.from_prompts(PROMPTS, 1, SLOTS)
        with pytest.raises(
            ValueError,
            match=(
                r"mesh.tensor = 8 does not divide the 4 kv heads of a model that writes; use a"
                r" divisor of 4"
            ),
        ):
            rollout.generate(params, MODEL, rows, KEY, rollout.SampleSpec(max_new_tokens=4))


def same_rows(found: Rollout, wanted: Rollout) -> None:
    for field in ("tokens_BT", "owner_BT", "length_B", "finished_B", "row_id_B"):
        np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field), err_msg=field)
    np.testing.assert_allclose(found.logp_BT, wanted.logp_BT, atol=1e-5)


@pytest.mark.parametrize("parked", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_writer_on_a_mesh_of_its_own(parked):
    """The rows come from 8x1x1 and go back there; the writer's weights are split over four devices
    of its own shape."""
    home = mesh_of((8, 1, 1))
    own = reshape_mesh(home, 2, 1, 4)
    spec = rollout.SampleSpec(temperature=1.0, max_new_tokens=14, end_ids=(0,))
    with jax.set_mesh(home):
        rows = rollout.from_prompts(PROMPTS, GROUP, SLOTS)
        params = jax.device_put(weights(MODEL), models.shardings(MODEL, own))
        writer = rollout.Generator(to_host_memory(params) if parked else params, MODEL, own)
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(writer.params)}
        assert kinds == ({"pinned_host"} if parked else {"device"})
        limit = jnp.asarray(np.array([10, 12, 32, 32, 32, 32, 32, 11], np.int32))
        out = writer.extend(rows, KEY, spec, limit_B=limit)
        assert out.tokens_BT.sharding.mesh == home and len(out.tokens_BT.sharding.device_set) == 8
        here = rollout.Generator(weights_on(home), MODEL)
        wanted = here.extend(rows, KEY, spec, limit_B=limit)
        few = writer.extend(rows, KEY, spec, limit_B=limit, at_once=4, shared_prefix=GROUP)
    same_rows(jax.device_get(out), jax.device_get(wanted))
    same_rows(jax.device_get(few), jax.device_get(wanted))


def weights_on(mesh: Mesh) -> models.Params:
    return jax.device_put(weights(MODEL), models.shardings(MODEL, mesh))


def test_parked_arrays_come_back_as_they_were():
    mesh = mesh_of((2, 2, 2))
    params = weights_on(mesh)
    back = to_device_memory(to_host_memory(params))
    assert_sharded(back, models.shardings(MODEL, mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), jax.device_get(params))
    assert to_device_memory(params)["embed"] is params["embed"]


def test_other_shapes_of_a_mesh():
    home = mesh_of((2, 2, 2))
    assert dict(reshape_mesh(home, -1, 1, 4).shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    assert reshape_mesh(home, 1, 8, 1).devices.ravel().tolist() == home.devices.ravel().tolist()
    for shape in ((2, 2, 1), (3, -1, 1), (0, 0, 8), (-1, -1, 1)):
        with pytest.raises(ValueError, match="does not hold the 8 devices of the run"):
            reshape_mesh(home, *shape)
    moved = to_mesh(
        {"rows": put_rows(np.arange(16), home), "one": jnp.float32(3), "name": "x"},
        reshape_mesh(home, 8, 1, 1),
    )
    assert len({str(s.index) for s in moved["rows"].addressable_shards}) == 8
    assert moved["name"] == "x" and np.asarray(moved["rows"]).tolist() == list(range(16))
