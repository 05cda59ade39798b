"""Mixtures of experts: routing, products and load against loops in numpy, files in both forms, what
is refused, and what is counted. (Against transformers: test_families.py; on meshes:
test_families_on_meshes.py.)"""

import contextlib
import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.families_fixture import FAMILIES, LENGTHS, family_tokens, load_family
from support.fixtures import make_params

from scope_jax import learning, models, rollout
from scope_jax.devices.mesh import assert_sharded, make_mesh, partition_spec
from scope_jax.devices.precision import in_float32
from scope_jax.learning.expert_load import expert_metrics
from scope_jax.models import decoder, experts, layers
from scope_jax.models.costs import share_of_experts, token_flops
from scope_jax.models.weights import flatten
from scope_jax.rollout import check_heads

GOLDEN = Path(__file__).parents[1] / "goldens" / "family_qwen3_moe.npz"
E, A, D, F = 4, 2, 16, 8
CONFIG = models.ModelConfig(
    vocab_size=24,
    hidden_size=D,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_size=8,
    ffn_size=48,
    model_type="qwen3_moe",
    num_experts=E,
    experts_per_token=A,
    expert_size=F,
)


def layer_of(config: models.ModelConfig, seed: int = 3) -> dict[str, np.ndarray]:
    """The first layer's router and experts."""
    layers = make_params(config, seed)["layers"]
    return {name: np.asarray(layers[name][0]) for name in experts.WEIGHTS}


def by_loops(x: np.ndarray, layer: dict, norm: bool) -> tuple[np.ndarray, list]:
    """(result, experts of each token), token by token in float64."""
    out, chosen = np.zeros(x.shape), []
    for n, token in enumerate(x.astype(np.float64)):
        scores = np.exp(token @ layer["router"])
        weight = scores / scores.sum()
        best = np.argsort(-weight)[:A]
        share = weight[best] / (weight[best].sum() if norm else 1)
        for e, part in zip(best, share):
            gate, up = token @ layer["expert_gate"][e], token @ layer["expert_up"][e]
            out[n] += part * ((gate / (1 + np.exp(-gate)) * up) @ layer["expert_down"][e])
        chosen.append(set(best.tolist()))
    return out, chosen


def tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((*shape, D)).astype(np.float32)


@pytest.mark.parametrize("norm", [False, True])
def test_the_mixture_is_that_of_loops(norm):
    config = dataclasses.replace(CONFIG, norm_expert_weights=norm)
    layer, x = layer_of(config), tokens(0, 5, 7)
    counted = np.random.RandomState(1).rand(5, 7) < 0.7
    out, load = jax.jit(lambda x, c: experts.mix(x, layer, config, c))(x, jnp.float32(counted))
    wanted, chosen = by_loops(x.reshape(-1, D), layer, norm)
    np.testing.assert_allclose(np.asarray(out).reshape(-1, D), wanted, atol=2e-6)
    kept = [picked for picked, counts in zip(chosen, counted.reshape(-1)) if counts]
    np.testing.assert_array_equal(load, [sum(e in picked for picked in kept) for e in range(E)])
    # As decoding calls it, one token a row: no other changes what comes out for it.
    alone, nothing = experts.mix(x[2, 3:4], layer, config)
    np.testing.assert_allclose(alone[0], out[2, 3], atol=1e-6)
    assert nothing is None


def test_no_token_is_dropped_where_all_go_to_the_same_experts():
    layer, x = layer_of(CONFIG), np.abs(tokens(2, 9))
    layer["router"] = np.zeros((D, E), np.float32)
    layer["router"][:, [1, 3]] = 1.0, 0.5
    out, load = experts.mix(x, layer, CONFIG, jnp.ones(9))
    np.testing.assert_allclose(out, by_loops(x, layer, False)[0], atol=1e-5)
    np.testing.assert_array_equal(load, [0, 9, 0, 9])
    assert expert_metrics(np.stack([load, [4, 4, 5, 5]])) == {
        "experts/load_max": 2.0,
        "experts/load_mean": pytest.approx((2 + 10 / 9) / 2),
        "experts/unused": 0.25,
    }
    assert expert_metrics(np.zeros((2, 4)))["experts/unused"] == 0


def test_gradients_are_those_of_all_experts_weighed():
    """The same function without sorting: every expert of every token, weighed by 0 where it was not
    chosen."""
    layer, x = layer_of(CONFIG), tokens(4, 11)

    def dense(x, layer):
        weight, number = experts.route(x, layer["router"], CONFIG)
        weight_NE = jnp.sum(jax.nn.one_hot(number, E) * weight[..., None], axis=1)
        gate = jnp.einsum("nd,edf->nef", x, layer["expert_gate"])
        up = jnp.einsum("nd,edf->nef", x, layer["expert_up"])
        each = jnp.einsum("nef,efd->ned", jax.nn.silu(gate) * up, layer["expert_down"])
        return jnp.sum(jnp.sin(jnp.sum(each * weight_NE[..., None], axis=1)))

    def sparse(x, layer):
        return jnp.sum(jnp.sin(experts.mix(x, layer, CONFIG)[0]))

    wanted = jax.grad(dense, argnums=(0, 1))(x, layer)
    found = jax.jit(jax.grad(sparse, argnums=(0, 1)))(x, layer)
    for want, have in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        assert np.abs(want).max() > 1e-2
        np.testing.assert_allclose(have, want, atol=2e-5)


# 3: rows that no axis divides are on every device; (8,): a token of each row, as in decoding.
@pytest.mark.parametrize("shape", [(8, 2), (3, 2), (8,)], ids=str)
def test_experts_on_several_devices(shape):
    """Values, gradients and load, where tokens are split over the axis of experts and where not."""
    layer, x = layer_of(CONFIG), tokens(5, *shape)

    def loss(x, layer):
        out, load = experts.mix(x, layer, CONFIG, jnp.ones(shape))
        return jnp.sum(jnp.sin(out)), load

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    wanted = jax.device_get(run(x, layer))
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:8], expert=2)
    with jax.set_mesh(mesh):
        found = jax.device_get(run(x, layer))
    for want, have in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(have, want, atol=2e-5)


def test_remat_and_the_form_of_the_loop_change_nothing():
    params = make_params(CONFIG, 6)
    rows = np.random.RandomState(7).randint(0, 24, (2, 6)).astype(np.int32)

    def gradient(**form):
        config = dataclasses.replace(CONFIG, **form)
        loss = lambda p: jnp.sum(models.token_logprobs(p, config, rows)[0])  # noqa: E731
        return flatten(jax.device_get(jax.jit(jax.grad(loss))(params)))

    wanted = gradient(scan_layers=False)
    for remat, scan in (("dots", False), ("layer", True)):
        found = gradient(remat=remat, scan_layers=scan)
        for path, value in wanted.items():
            np.testing.assert_allclose(found[path], value, atol=1e-4, err_msg=path)


def test_a_prm_of_experts():
    config = CONFIG.with_head("prm")
    rows = np.random.RandomState(8).randint(0, 24, (2, 6)).astype(np.int32)
    length = np.array([6, 4], np.int32)
    found = models.good_step_probability(make_params(config, 9), config, rows, length)
    assert 0 < np.asarray(found)[0].min() < np.asarray(found)[0].max() < 1
    assert models.config_from_json(models.config.config_to_json(config)).head == "prm"


def test_float32_products_of_experts_ask_for_float32():
    """On accelerators (`devices/precision.py`)."""
    run = in_float32(lambda x, layer: experts.mix(x, layer, CONFIG)[0])
    traced = jax.make_jaxpr(run)(tokens(10, 3), layer_of(CONFIG))
    found = [e.params["precision"] for e in traced.eqns if "ragged_dot" in e.primitive.name]
    assert found == [(jax.lax.Precision.HIGHEST,) * 2] * 3


# ---- files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, models.ModelConfig, models.Params]:
    directory = tmp_path_factory.mktemp("experts")
    return directory, *load_family("qwen3_moe", directory, dict(np.load(GOLDEN)))


def joined(tensors: dict[str, np.ndarray], layers: int, count: int) -> dict[str, np.ndarray]:
    """The same with the experts of a layer in two tensors, gate above up."""
    out = {name: value for name, value in tensors.items() if ".experts." not in name}
    for layer in range(layers):
        start = f"model.layers.{layer}.mlp.experts"

        def every(part: str, start: str = start) -> np.ndarray:
            return np.stack([tensors[f"{start}.{n}.{part}.weight"] for n in range(count)])

        out[f"{start}.gate_up_proj"] = np.concatenate(
            [every("gate_proj"), every("up_proj")], axis=1
        )
        out[f"{start}.down_proj"] = every("down_proj")
    return out


def test_experts_in_one_tensor_are_the_same_model(checkpoint, tmp_path):
    directory, config, params = checkpoint
    tensors = joined(load_file(directory / "model.safetensors"), 3, 6)
    save_file(tensors, tmp_path / "model.safetensors")
    raw = FAMILIES["qwen3_moe"][0]
    # As transformers 5 names their number.
    renamed = {key: value for key, value in raw.items() if key != "num_experts"}
    (tmp_path / "config.json").write_text(json.dumps(renamed | {"num_local_experts": 6}))
    again, found = models.load(tmp_path)
    assert again == config
    for path, value in flatten(found).items():
        np.testing.assert_array_equal(value, flatten(params)[path], err_msg=path)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    save_file(tensors | {name: tensors[name][:, 1:].copy()}, tmp_path / "model.safetensors")
    message = rf"weight {name} has shape \[6, 39, 32\], config.json asks for \[6, 40, 32\]$"
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path)


def test_an_expert_that_is_missing_is_named(checkpoint, tmp_path):
    directory, _, _ = checkpoint
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.2.mlp.experts.5.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(ValueError, match=rf"weight {name} of shape \[20, 32\] is missing$"):
        models.load(tmp_path)


def test_a_load_onto_an_axis_of_experts(checkpoint):
    """Each device holds whole experts, and the model says the same."""
    directory, config, params = checkpoint
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:8], expert=2)
    with jax.set_mesh(mesh):
        _, found = models.load(directory)
        assert_sharded(found, models.shardings(config, mesh))
        gate = found["layers"]["expert_gate"]
        assert gate.addressable_shards[0].data.shape == (3, 3, 16, 10)
        decoding = models.decode_layout(config, found, mesh)["layers"]
        assert decoding["expert_gate"].addressable_shards[0].data.shape == (3, 3, 32, 10)
        assert decoding["query"].addressable_shards[0].data.shape == (3, 32, 32)
        out = jax.jit(models.logits, static_argnums=1)(
            found, config, family_tokens("qwen3_moe"), LENGTHS
        )
    for path, value in flatten(found).items():
        np.testing.assert_array_equal(value, flatten(params)[path], err_msg=path)
    inside = np.arange(16)[None] < LENGTHS[:, None]
    np.testing.assert_allclose(np.asarray(out)[inside], np.load(GOLDEN)["logits"], atol=1e-4)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_only_layers": [2]}, r"^mlp_only_layers \[2\] is not supported: every layer must"),
        ({"decoder_sparse_step": 2}, r"^decoder_sparse_step 2 is not supported: every layer must"),
        ({"mlp_only_layers": "all"}, r"is 'all', a list of whole numbers is needed$"),
        ({"num_experts": 0}, r"^num_experts is 0, a number from 1 to"),
        ({"num_experts_per_tok": 7}, r"^experts_per_token 7 of num_experts 6 with expert_size 20:"),
        ({"use_sliding_window": True}, r"True is not supported for qwen3_moe; false is$"),
        ({"norm_topk_prob": 1}, r"^norm_topk_prob is 1, true or false is needed$"),
    ],
)
def test_configs_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message) as error:
        models.config_from_json(FAMILIES["qwen3_moe"][0] | change)
    assert "\n" not in str(error.value)


def test_layers_past_the_last_may_be_named_without_experts():
    raw = FAMILIES["qwen3_moe"][0] | {"mlp_only_layers": [3]}
    assert models.config_from_json(raw).num_experts == 6


def test_what_does_not_go_with_experts(checkpoint):
    directory, config, _ = checkpoint
    with pytest.raises(ValueError, match=r"int8 weights .* are not supported for the experts of"):
        models.load(directory, weights="int8")
    with pytest.raises(
        ValueError,
        match=r"gate of qwen3_moe is a part of its experts, .* take some of query, key, value,",
    ):
        models.lora_table(config, models.LoraSpec())
    assert len(models.lora_table(config, models.LoraSpec(targets=("query", "output")))) == 4
    with pytest.raises(ValueError, match=r"num_experts 4 is not part of qwen3$"):
        dataclasses.replace(CONFIG, model_type="qwen3")
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:4], expert=4)
    message = r"^mesh.expert = 4 does not divide the 6 experts of the policy; use a divisor of 6,"
    with pytest.raises(ValueError, match=message):
        check_heads(config, mesh, "the policy")


# ---- what is counted


def test_operations_are_those_of_the_experts_of_a_token():
    attention = 2 * (2 * D * 16 + 2 * D * 8)  # two layers; q and o of 16, k and v of 8
    assert token_flops(CONFIG) == 2 * (attention + 2 * (A * 3 * D * F + D * E))
    assert (share_of_experts(CONFIG, 1), share_of_experts(CONFIG, 9)) == (A / E, 1.0)
    assert share_of_experts(dataclasses.replace(CONFIG, num_experts=400), 3) == 6 / 400


def test_where_weights_lie_on_a_mesh_with_experts():
    sizes = {"data": 1, "fsdp": 2, "expert": 4, "tensor": 2}
    spec = jax.sharding.PartitionSpec
    gate, query = ("expert", "embed", "mlp"), ("embed", "heads")
    assert partition_spec(gate, (8, 16, 8), sizes) == spec("expert", "fsdp", "tensor")
    assert partition_spec(query, (16, 8), sizes) == spec(("fsdp", "expert"), "tensor")
    drop = ("fsdp", "expert")
    assert partition_spec(gate, (8, 16, 8), sizes, drop) == spec("expert", None, "tensor")
    assert partition_spec(query, (16, 8), sizes, drop) == spec(None, "tensor")
    assert partition_spec(("batch", None), (8, 3), sizes) == spec(("data", "fsdp", "expert"), None)
    mesh = make_mesh(-1, 1, 2, expert=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "expert": 2, "tensor": 2}
    with pytest.raises(ValueError, match=r"data x fsdp x expert x tensor = \[2, 1, 3, 2\] needs"):
        make_mesh(2, 1, 2, expert=3)


def test_a_loss_counts_the_load_of_its_tokens():
    """Statistics of an update: tokens with a weight, each in as many experts as a token has."""
    params, P, M, C = make_params(CONFIG, 6), 2, 2, 3
    stream = np.random.RandomState(11)
    on = np.zeros((P * M, C), np.float32)
    on[0, :2], on[3, 0] = 0.5, 0.25
    batch = {
        "prompt": stream.randint(0, 24, (P, 4)).astype(np.int32),
        "prompt_length": np.array([4, 2], np.int32),
        "completion": stream.randint(0, 24, (P * M, C)).astype(np.int32),
        "advantage": np.ones(P * M, np.float32),
        "on": on,
        "off": np.zeros_like(on),
    }
    loss = learning.policy_objective(
        CONFIG, learning.LossSpec(max_new_tokens=3), temperature=1.0, entropy=False
    )
    _, stats = jax.jit(loss)(params, batch, {"teacher_weight": jnp.float32(0)})
    load = np.asarray(stats["expert_load"])
    assert load.shape == (2, E)
    np.testing.assert_array_equal(load.sum(axis=1), 3 * A)
    assert math.isclose(expert_metrics(load)["experts/unused"], np.mean(load == 0))


@pytest.mark.parametrize("split", [False, True])
def test_the_experts_of_a_layer_are_found_in_the_stack_of_all(split):
    """As TPUs read them while decoding: the second layer's, on one device and on eight."""
    weights = make_params(CONFIG, 3)["layers"]
    x = tokens(9, 8)
    alone = {name: weights[name][1] for name in experts.WEIGHTS}
    stacked = {name: weights[name] for name in experts.EXPERTS} | {"router": alone["router"]}
    wanted, _ = experts.mix(x, alone, CONFIG)
    eight = make_mesh(1, 2, 2, devices=jax.devices()[:8], expert=2)
    with jax.set_mesh(eight) if split else contextlib.nullcontext():
        run = jax.jit(lambda place: experts.mix(x, stacked, CONFIG, place=place)[0])
        found = run(jnp.int32(1))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_decoding_with_the_experts_in_the_stack_writes_the_same_tokens(monkeypatch):
    params, stacked = make_params(CONFIG, 4), []

    def spy(h, layer, config, counted, place):
        if place is not None:
            stacked.append(layer["expert_gate"].shape)
        return experts.mix(h, layer, config, counted, place)

    monkeypatch.setattr(layers, "mix", spy)

    def write(**form):
        config = dataclasses.replace(CONFIG, scan_layers=True, **form)
        rows = rollout.generate(
            params,
            config,
            rollout.from_prompts([[5, 6, 7], [11]], 2, 16),
            jax.random.key(7),
            rollout.SampleSpec(temperature=1.0, max_new_tokens=8, end_ids=(0,)),
        )
        return np.asarray(rows.tokens_BT), np.asarray(rows.logp_BT)

    wanted, wanted_logp = write()
    assert not stacked
    found, found_logp = write(experts_in_stack=True)
    assert set(stacked) == {(2, E, D, F)}
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(found_logp, wanted_logp, atol=1e-5)


@pytest.mark.parametrize(("device", "in_stack"), [("cpu", False), ("gpu", False), ("tpu", True)])
def test_only_tpus_read_experts_in_the_stack(device, in_stack, monkeypatch):
    monkeypatch.setattr(decoder, "platform", lambda: device)
    assert decoder.with_kernel(CONFIG).experts_in_stack == in_stack
    asked = dataclasses.replace(CONFIG, experts_in_stack=not in_stack)
    assert decoder.with_kernel(asked).experts_in_stack != in_stack
