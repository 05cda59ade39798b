"""Adapters: what they add, what is trained, and the directories of PEFT."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.fixtures import TIED, TINY, make_params, mesh_of, ragged_tokens, tiny_params
from support.tiny_runs import Tiny

from scope_jax import learning, models
from scope_jax.models.weights import flatten
from scope_jax.train import train

SPEC = models.LoraSpec(rank=3, alpha=6.0, targets=("query", "value", "output", "down"))
forward = jax.jit(models.logits, static_argnums=1)


def random_adapters(
    config: models.ModelConfig, spec: models.LoraSpec = SPEC, seed: int = 5
) -> models.Params:
    """Both factors away from 0."""
    stream = np.random.RandomState(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * stream.standard_normal(x.shape), jnp.float32),
        models.init_lora(config, spec, jax.random.key(0)),
    )


def test_merged_weights_are_w_plus_scaled_product_by_numpy():
    params, lora = tiny_params(), random_adapters(TINY)
    merged = flatten(models.merge(TINY, params, lora, SPEC))
    for path, before in flatten(params).items():
        name = path.removeprefix("layers/")
        wanted = np.asarray(before)
        if name in SPEC.targets:
            a, b = (np.asarray(lora["layers"][f"{name}_{part}"], np.float64) for part in "ab")
            wanted = wanted + 2.0 * np.stack([x @ y for x, y in zip(a, b, strict=True)])
            assert np.abs(wanted - before).max() > 0.1
        np.testing.assert_allclose(merged[path], wanted, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("unrolled", [False, True])
def test_attached_and_merged_adapters_are_one_model(unrolled):
    tokens, _ = ragged_tokens(TINY, 1)
    lora = random_adapters(TINY)
    config = dataclasses.replace(TINY, scan_layers=not unrolled)
    score = jax.jit(lambda p: models.token_logprobs(p, config, tokens)[0])
    merged = score(models.merge(TINY, tiny_params(), lora, SPEC))
    np.testing.assert_allclose(score(models.attach(tiny_params(), lora, SPEC)), merged, atol=2e-5)
    assert np.abs(np.asarray(merged - score(tiny_params()))).max() > 0.1
    fresh = models.init_lora(TINY, SPEC, jax.random.key(0))
    np.testing.assert_array_equal(
        score(models.attach(tiny_params(), fresh, SPEC)), score(tiny_params())
    )


def test_the_gradient_is_that_of_the_merged_weights():
    """By the chain rule: dA = scale dW B^T, dB = scale A^T dW, with dW of the full model."""
    tokens, _ = ragged_tokens(TINY, 2)
    lora = random_adapters(TINY)

    def loss(params):
        return jnp.sum(jnp.sin(models.token_logprobs(params, TINY, tokens)[0]))

    found = jax.jit(jax.grad(lambda x: loss(models.attach(tiny_params(), x, SPEC))))(lora)["layers"]
    full = jax.jit(jax.grad(loss))(models.merge(TINY, tiny_params(), lora, SPEC))["layers"]
    for name in SPEC.targets:
        a, b, w = (
            np.asarray(x, np.float64)
            for x in (lora["layers"][f"{name}_a"], lora["layers"][f"{name}_b"], full[name])
        )
        np.testing.assert_allclose(
            found[f"{name}_a"], 2.0 * w @ b.transpose(0, 2, 1), atol=2e-4, err_msg=name
        )
        np.testing.assert_allclose(
            found[f"{name}_b"], 2.0 * a.transpose(0, 2, 1) @ w, atol=2e-4, err_msg=name
        )


def test_the_update_is_the_same_on_a_mesh():
    """One update of adapters over 2x2x2 devices, in two micro-batches, against one device."""
    tokens, length = ragged_tokens(TINY, 3)
    batch = {
        "prompt": np.repeat(tokens[:1, :4], 8, axis=0),
        "prompt_length": np.full(8, 4, np.int32),
        "completion": np.random.RandomState(1).randint(0, TINY.vocab_size, (8, 8)).astype(np.int32),
        "advantage": np.linspace(-1, 1, 8).astype(np.float32),
        "on": np.full((8, 8), 1 / 64, np.float32),
        "off": np.zeros((8, 8), np.float32),
    }
    optimizer = learning.make_optimizer(learning.OptimizerSpec(learning_rate=0.01, eps=1e-3))
    objective = learning.policy_objective(
        dataclasses.replace(TINY, remat="layer"),
        learning.LossSpec(max_new_tokens=8),
        temperature=1.0,
        entropy=False,
        lora=SPEC,
    )

    def updated(name: str, micro_batches: int):
        with jax.set_mesh(mesh_of(name)):
            base = jax.device_put(tiny_params(), models.shardings(TINY, mesh_of(name)))
            state = learning.init_state(random_adapters(TINY), optimizer)
            update = learning.make_update(
                objective, optimizer, TINY, micro_batches, table=models.lora_table(TINY, SPEC)
            )
            state, _ = update(state, batch, {"teacher_weight": jnp.float32(0), "base": base})
        return flatten(jax.device_get(state.params))

    before, wanted = flatten(random_adapters(TINY)), updated("1", 1)
    found = updated("2x2x2", 2)
    assert found.keys() == before.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, atol=1e-5, err_msg=path)
        assert (value != np.asarray(before[path])).any(), path


def test_directories_of_peft(tmp_path: Path):
    lora = random_adapters(TINY)
    models.save_lora(tmp_path, TINY, lora, SPEC, base="checkpoints/policy")
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (
        raw["r"] == 3
        and raw["lora_alpha"] == 6.0
        and raw["target_modules"] == ["q_proj", "v_proj", "o_proj", "down_proj"]
    )
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == TINY.num_layers * 4 * 2
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    np.testing.assert_array_equal(
        tensors[name], np.asarray(lora["layers"]["down_a"][1]).T
    )  # [r, in]
    assert tensors[name.replace("_A", "_B")].shape == (TINY.hidden_size, 3)  # [out, r]
    spec, found = models.load_lora(tmp_path, TINY)
    assert spec == SPEC
    jax.tree.map(np.testing.assert_array_equal, found, lora)

    tensors[name] = tensors[name][:2]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=r"down_proj.lora_A.weight has shape \[2, 64\], should be \[3, 64\]"
    ):
        models.load_lora(tmp_path, TINY)
    del tensors[name]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=r"layers.1.mlp.down_proj.lora_A.weight of shape \[3, 64\] is missing"
    ):
        models.load_lora(tmp_path, TINY)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(raw | {"target_modules": ["q_proj", "router"]})
    )
    with pytest.raises(ValueError, match="target_modules 'router' is not one of q_proj, k_proj"):
        models.load_lora(tmp_path, TINY)
    (tmp_path / "adapter_config.json").write_text(json.dumps(raw | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora True is not supported"):
        models.load_lora(tmp_path, TINY)
    with pytest.raises(FileNotFoundError, match=r"no adapter_config.json"):
        models.load_lora(tmp_path / "none", TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank 0 must be at least 1"),
        ({"targets": ("query", "head")}, r"\['query', 'head'\]: some of query, key"),
    ],
)
def test_bad_specs(change, message):
    with pytest.raises(ValueError, match=message):
        models.LoraSpec(**change)


def test_a_run_trains_adapters_only_and_exports_the_merged_model(checkpoints: Tiny, tmp_path: Path):
    """Through the whole program: the exported model is the base plus the exported adapters; the
    rest did not move."""
    config = checkpoints.config("scope", {"lora.rank": 2, "optimizer.learning_rate": 0.01})
    train(config, tmp_path / "run")
    base_config, base = models.load(config.models.policy)
    spec, lora = models.load_lora(tmp_path / "run" / "adapter", base_config)
    assert spec == models.LoraSpec(rank=2)
    _, exported = models.load(tmp_path / "run" / "model")
    found, before = flatten(exported), flatten(base)
    merged = flatten(models.merge(base_config, base, lora, spec))
    for path, value in found.items():
        np.testing.assert_allclose(value, merged[path], atol=1e-6, err_msg=path)
        moved = (np.asarray(value) != np.asarray(before[path])).any()
        assert moved == (path.removeprefix("layers/") in spec.targets), path
    # The same command again finds nothing to do, and its checkpoint holds adapters, not weights.
    assert train(config, tmp_path / "run")["steps"] == config.steps


def test_tied_models_have_adapters_too():
    tokens, length = ragged_tokens(TIED, 7)
    params, spec = make_params(TIED, 1), models.LoraSpec(rank=2)
    lora = random_adapters(TIED, spec)
    attached = forward(models.attach(params, lora, spec), TIED, tokens, length)
    np.testing.assert_allclose(
        attached, forward(models.merge(TIED, params, lora, spec), TIED, tokens, length), atol=5e-5
    )
