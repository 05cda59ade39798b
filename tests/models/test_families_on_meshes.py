"""One update of each family whose layers or files are put together in a way of their own: the same
on one device and on meshes that split rows, weights and heads."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import make_params

from scope_jax import learning, models, rollout
from scope_jax.devices.mesh import assert_sharded, make_mesh, put_rows
from scope_jax.models.rope import RopeScaling
from scope_jax.models.weights import flatten

# Four kv heads: up to four devices on the tensor axis.
SHAPE = models.ModelConfig(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_size=8,
    ffn_size=64,
    max_positions=128,
)
WINDOW = {"window": 5, "local_layers": (True, False)}
LONG = RopeScaling(
    "longrope", 4.0, 128, attention_factor=1.1, short_factor=(1, 1.5, 2), long_factor=(1, 2, 4)
)
FAMILIES = {
    "smollm3": dataclasses.replace(SHAPE, model_type="smollm3", unrotated_layers=(False, True)),
    "olmo2": dataclasses.replace(SHAPE, model_type="olmo2"),
    "olmo3": dataclasses.replace(SHAPE, model_type="olmo3", local_rope_theta=100.0, **WINDOW),
    "phi3": dataclasses.replace(
        SHAPE, model_type="phi3", partial_rotary_factor=0.75, rope_scaling=LONG
    ),
    "qwen3_moe": dataclasses.replace(
        SHAPE,
        model_type="qwen3_moe",
        num_experts=4,
        experts_per_token=2,
        expert_size=16,
        norm_expert_weights=True,
    ),
}
# data x fsdp x tensor, and devices that experts are split over
MESHES = {
    "1": (1, 1, 1, 1),
    "8x1x1": (8, 1, 1, 1),
    "1x2x4": (1, 2, 4, 1),
    "2x1x1, 4 for experts": (2, 1, 1, 4),
    "1x2x2, 2 for experts": (1, 2, 2, 2),
}
# A mesh of rows alone splits no weights but those of experts: the same for all other families.
CASES: list[Any] = [(family, "1x2x4") for family in FAMILIES]
CASES += [("qwen3_moe", mesh) for mesh in MESHES if "experts" in mesh or mesh == "8x1x1"]
CASES += [
    pytest.param(family, "8x1x1", marks=pytest.mark.long)
    for family in FAMILIES
    if family != "qwen3_moe"
]
GROUP, SLOTS = 2, 24
PROMPTS = [[5, 6, 7], [11], [1, 2, 3, 4, 5, 6, 7, 8], [40, 41, 42, 43, 44]]
LOSS = learning.LossSpec(max_new_tokens=12)


@functools.cache
def outcome(family: str, mesh_name: str) -> dict[str, np.ndarray]:
    """Tokens drawn, their log-probs, the loss, and every weight after one step of the optimiser;
    layouts are asserted on the way."""
    shape, config = MESHES[mesh_name], FAMILIES[family]
    devices = jax.devices()[: math.prod(shape)]
    mesh = make_mesh(*shape[:3], devices=devices, expert=shape[3])
    with jax.set_mesh(mesh):
        params = jax.device_put(make_params(config, 3), models.shardings(config, mesh))
        rows = rollout.generate(
            params,
            config,
            rollout.from_prompts(PROMPTS, GROUP, SLOTS),
            jax.random.key(7),
            rollout.SampleSpec(temperature=1.0, max_new_tokens=12, end_ids=(0,)),
            shared_prefix=GROUP,
        )
        on, off = learning.token_weights(rows, LOSS)
        optimizer = learning.make_optimizer(
            learning.OptimizerSpec(learning_rate=0.01, b1=0.9, eps=1e-3, clip_norm=None)
        )
        objective = learning.policy_objective(
            dataclasses.replace(config, remat="layer"), LOSS, temperature=1.0, entropy=False
        )
        update = learning.make_update(objective, optimizer, config, 2)
        arrays = {
            "advantage": put_rows(np.linspace(-1, 1, 8, dtype=np.float32)),
            "on": on,
            "off": off,
            "old_logp": rows.logp_BT,
        }
        state = learning.init_state(params, optimizer)
        state, stats = update(
            state, learning.pack(rows, arrays, GROUP, 2), {"teacher_weight": jnp.float32(0)}
        )
        assert_sharded(state.params, models.shardings(config, mesh))
        named = {"tokens": rows.tokens_BT, "logp": rows.logp_BT, "loss": stats["loss"]}
        if config.num_experts:
            named["load"] = stats["expert_load"]
        return {
            name: np.asarray(x) for name, x in jax.device_get(named | flatten(state.params)).items()
        }


@pytest.mark.parametrize(("family", "mesh"), CASES)
def test_one_update_is_the_same(family, mesh):
    wanted, found = outcome(family, "1"), outcome(family, mesh)
    np.testing.assert_array_equal(found["tokens"], wanted["tokens"])
    before = flatten(make_params(FAMILIES[family], 3))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5, rtol=0, err_msg=name)
        if name in before:  # each weight took a step that is far from rounding
            assert np.abs(value - np.asarray(before[name])).max() > 5e-4, name
