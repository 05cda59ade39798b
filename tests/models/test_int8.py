"""8-bit weights of frozen models: by hand, against the full weights that they stand for, on meshes,
and what a small trained policy and its process reward model lose."""

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
from support.fixtures import TIED, UNTIED, make_params
from support.prm_fixtures import write_checkpoint as write_prm
from support.tiny_runs import Tiny

from scope_jax import learning, models, rollout
from scope_jax.configuration import default_config, train_config
from scope_jax.devices.mesh import make_mesh, to_host_memory
from scope_jax.fit.programs import plan
from scope_jax.fit.shapes import Models
from scope_jax.models.int8 import full_weights, in_int8, quantise
from scope_jax.models.weights import flatten, weight_table
from scope_jax.prm import ProcessRewardModel

GOLDENS = Path(__file__).parents[1] / "goldens"
MESHES = {"1": (1, 1, 1), "8x1x1": (8, 1, 1), "1x2x4": (1, 2, 4)}
# Four kv heads: up to four devices on the tensor axis.
SPLIT = models.ModelConfig(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_size=8,
    ffn_size=64,
    max_positions=128,
)
PROMPTS = [[5, 6, 7], [11], [1, 2, 3, 4, 5, 6, 7, 8], [40, 41, 42, 43, 44]] * 2
forward = jax.jit(models.logits, static_argnums=1)


def mesh_of(name: str) -> jax.sharding.Mesh:
    shape = MESHES[name]
    return make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])


def same(found: models.Params, wanted: models.Params) -> None:
    one, other = flatten(jax.device_get(found)), flatten(jax.device_get(wanted))
    assert one.keys() == other.keys()
    for path, value in one.items():
        assert value.dtype == other[path].dtype, path
        np.testing.assert_array_equal(value, other[path], err_msg=path)


# ---- numbers


def test_rounding_by_hand():
    rows = np.array([[1.27, -0.005, 0.014, 0.635], [0, 0, 0, 0], [-254, 3, 127, 2.9]], np.float32)
    found, scale = quantise(rows)
    # 1.27 / 127 = 0.01; 0.635 is 63.5 steps, the even neighbour is 64, -0.5 goes to 0.
    assert found.tolist() == [[127, 0, 1, 64], [0, 0, 0, 0], [-127, 2, 64, 1]]
    np.testing.assert_allclose(scale, [0.01, 1, 2], rtol=1e-6)
    assert found.dtype == np.int8 and scale.dtype == np.float32


def test_full_weights_are_of_one_dtype():
    """Norms and biases too, so that the model can be run with them."""
    config, int8 = in_int8(UNTIED, models.in_dtype(make_params(UNTIED, 5), jnp.dtype("bfloat16")))
    assert {w.dtype for w in flatten(full_weights(config, int8, jnp.float32)).values()} == {
        jnp.dtype("float32")
    }


def test_no_weight_is_off_by_more_than_half_a_step():
    params = make_params(UNTIED, 5)
    config, int8 = in_int8(UNTIED, params)
    full, flat = flatten(full_weights(config, int8, jnp.float32)), flatten(int8)
    rounded = {path for path, weight in weight_table(config).items() if weight.dtype == "int8"}
    assert rounded == {
        "head",
        *(f"layers/{name}" for name in ("query", "key", "value", "output", "gate", "up", "down")),
    }
    for path, value in flatten(params).items():
        off = np.abs(np.asarray(full[path]) - np.asarray(value))
        if path in rounded:
            scale = np.expand_dims(np.asarray(flat[f"{path}_scale"]), -2)
            np.testing.assert_allclose(scale[..., 0, :], np.abs(value).max(-2) / 127, rtol=1e-6)
            assert (off <= scale * 0.5001).all() and off.max() > 0.4 * scale.min(), path
        else:
            assert off.max() == 0, path


def test_a_tied_embedding_is_the_head_and_has_a_scale_for_each_token():
    config, int8 = in_int8(TIED, make_params(TIED, 5))
    assert int8["embed"].dtype == jnp.int8 and int8["embed_scale"].shape == (TIED.vocab_size,)
    assert "embed_scale" not in weight_table(dataclasses.replace(UNTIED, weights="int8"))
    assert "embed_scale" not in weight_table(
        dataclasses.replace(TIED.with_head("prm"), weights="int8")
    )
    again = np.asarray(full_weights(config, int8, jnp.float32)["embed"])
    np.testing.assert_array_equal(
        again, np.asarray(int8["embed"], np.float32) * np.asarray(int8["embed_scale"])[:, None]
    )


# ---- the same model as the full weights that they stand for


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", [name for name in FAMILIES if "moe" not in name])  # refused
def test_logits_are_those_of_the_rounded_weights(name, scan, tmp_path):
    golden = dict(np.load(GOLDENS / f"family_{name}.npz", allow_pickle=False))
    plain, params = load_family(name, tmp_path, golden)
    config, int8 = models.load(tmp_path, weights="int8")
    assert config == dataclasses.replace(plain, weights="int8")
    same(int8, in_int8(plain, params)[1])
    config, plain = (dataclasses.replace(c, scan_layers=scan) for c in (config, plain))
    tokens = family_tokens(name)
    wanted = forward(full_weights(config, int8, jnp.float32), plain, tokens, LENGTHS)
    found = forward(int8, config, tokens, LENGTHS)
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=1e-5)
    exact = forward(params, plain, tokens, LENGTHS)
    assert 1e-4 < np.abs(np.asarray(found - exact)).mean() < 0.05 * np.abs(exact).mean()


def test_bfloat16_is_as_near_as_bfloat16_is():
    """Products of bfloat16 and int8 numbers, and a scale in float32: no further from the exact
    result than the product of bfloat16 weights."""
    params = make_params(UNTIED, 5)
    config, int8 = in_int8(UNTIED, params)
    tokens, length = np.arange(32, dtype=np.int32).reshape(2, 16), np.array([16, 16], np.int32)
    exact = forward(full_weights(config, int8, jnp.float32), UNTIED, tokens, length)

    def half(tree: models.Params) -> models.Params:
        return jax.tree.map(lambda w: w.astype(jnp.bfloat16), tree)

    rounded = forward(half(full_weights(config, int8, jnp.float32)), UNTIED, tokens, length)
    kept = weight_table(config)
    small = models.weights.nest(
        {
            path: w if kept[path].dtype else w.astype(jnp.bfloat16)
            for path, w in flatten(int8).items()
        }
    )
    found = forward(small, config, tokens, length)
    off, usual = (float(jnp.abs(x - exact).mean()) for x in (found, rounded))
    assert off < 1.2 * usual < 0.05, (off, usual)


@pytest.mark.parametrize("kind", ["qwen", "math_shepherd", "skywork"])
def test_step_scores_of_every_kind_of_head(kind, tmp_path):
    write_prm(kind, tmp_path)
    full = ProcessRewardModel.load(tmp_path)
    prm = ProcessRewardModel.load(tmp_path, weights="int8")
    rounded = dataclasses.replace(full, params=full_weights(prm.config, prm.params, jnp.float32))
    problems = ["1 + 1", "2 + 3 + 4"]
    steps = [["1 + 1 = 2", "so 2"], ["2 + 3 = 5", "5 + 4 = 8", "8"]]
    exact, found, wanted = (m.score(problems, steps)[0] for m in (full, prm, rounded))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert 0 < np.abs(found - exact).max() < 0.02


# ---- meshes, layouts, memory


@pytest.mark.parametrize("name", list(MESHES))
def test_every_mesh_loads_the_same_and_says_the_same(name, tmp_path):
    params = make_params(SPLIT, 3)
    models.save(tmp_path, SPLIT, params)
    rows, spec = (
        rollout.from_prompts(PROMPTS, 1, 32),
        rollout.SampleSpec(temperature=0.0, max_new_tokens=14, end_ids=(0,)),
    )
    config, whole = in_int8(SPLIT, params)
    wanted = rollout.generate(whole, config, rows, jax.random.key(1), spec)
    tokens = np.asarray(wanted.tokens_BT)
    logits = forward(whole, config, tokens, wanted.length_B)
    mesh = mesh_of(name)
    with jax.set_mesh(mesh):
        config, int8 = models.load(tmp_path, mesh=mesh, weights="int8")
        same(int8, whole)
        # A scale lies on the devices that its channel lies on.
        for path, w in flatten(int8).items():
            if path.endswith("_scale"):
                channel = flatten(int8)[path.removesuffix("_scale")].sharding.spec[-1]
                assert w.sharding.spec[-1] == channel, path
        laid_out = models.decode_layout(config, int8, mesh)
        for place in (lambda x: x, to_host_memory):
            writer = rollout.Generator(place(laid_out), config, mesh)
            found = writer.extend(rows, jax.random.key(1), spec)
            np.testing.assert_array_equal(found.tokens_BT, tokens)
        np.testing.assert_allclose(
            forward(int8, config, tokens, wanted.length_B), logits, atol=1e-5
        )


def test_the_full_weights_are_never_on_a_device(tmp_path, monkeypatch):
    """Between two blocks of a load, all that lies there are 8-bit weights, scales, norms and the
    embedding."""
    models.save(tmp_path, SPLIT, make_params(SPLIT, 3))
    before = {id(x) for x in jax.live_arrays()}
    put, seen = models.hf._write, []

    def spied(*arguments, **keywords):
        out = put(*arguments, **keywords)
        mine = [x for x in jax.live_arrays() if id(x) not in before and x.dtype == jnp.float32]
        seen.append(sum(x.nbytes for x in mine))
        return out

    monkeypatch.setattr(models.hf, "_write", spied)
    config, int8 = models.load(tmp_path, weights="int8")
    rest = sum(x.nbytes for x in jax.tree.leaves(int8) if x.dtype == jnp.float32)
    assert len(seen) > 10 and max(seen) <= rest + 2 * int8["embed"].nbytes


def bytes_of(config: models.ModelConfig) -> int:
    return sum(
        math.prod(x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(models.abstract(config, jnp.bfloat16))
    )


def test_memory_is_half_of_bfloat16():
    seven = models.ModelConfig(
        vocab_size=152064,
        hidden_size=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_size=128,
        ffn_size=18944,
    )
    full, int8 = bytes_of(seven), bytes_of(dataclasses.replace(seven, weights="int8"))
    embedding = 152064 * 3584 * 2
    # Beside the embedding, which is looked up: half, and 4 bytes for a channel.
    assert (int8 - embedding) / (full - embedding) == pytest.approx(0.5, abs=0.002)
    assert int8 / full == pytest.approx(0.537, abs=0.001)


def test_fit_counts_what_is_loaded(tmp_path):
    config = default_config("scope")
    config.dtype, config.models.policy, config.models.teacher = "bfloat16", "p", "t"
    config.task.name, config.task.data = "math", "data"
    config.task.train = {"some": {"path": "x", "fields": {"prompt": "p"}, "answer_from": "boxed"}}
    config.localiser.kind = "prm"
    config.models.prm = "r"
    found = Models(SPLIT, SPLIT, SPLIT.with_head("prm"))
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 1, 4
    held = {}
    for weights in ("auto", "int8"):
        config.models.teacher_weights = config.models.prm_weights = weights
        held[weights] = plan(train_config(config), found, jax.devices()).held
    models.save(tmp_path, SPLIT, make_params(SPLIT, 3))
    mesh = make_mesh(2, 1, 4)
    with jax.set_mesh(mesh):
        _, int8 = models.load(tmp_path, dtype="bfloat16", mesh=mesh, weights="int8")
    here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(int8))
    assert held["int8"]["teacher"] == here < 0.7 * held["auto"]["teacher"]
    assert held["int8"]["PRM"] < 0.7 * held["auto"]["PRM"]
    assert held["int8"]["weights"] == held["auto"]["weights"]


# ---- what a trained model loses


def test_a_small_trained_policy_says_nearly_the_same(checkpoints: Tiny):
    full, exact = models.load(checkpoints.policy)
    config, int8 = models.load(checkpoints.policy, weights="int8")
    draw = np.random.RandomState(1)
    prompts = [draw.randint(1, full.vocab_size, draw.randint(3, 6)).tolist() for _ in range(128)]
    rows = rollout.from_prompts(prompts, 1, 24)
    spec = rollout.SampleSpec(temperature=0.0, max_new_tokens=16, end_ids=full.end_ids)
    one = rollout.generate(exact, full, rows, jax.random.key(0), spec)
    other = rollout.generate(int8, config, rows, jax.random.key(0), spec)
    alike = (np.asarray(one.tokens_BT) == np.asarray(other.tokens_BT)).all(1).mean()
    tokens, length = one.tokens_BT, one.length_B
    p, q = (
        jax.nn.log_softmax(forward(w, c, tokens, length))
        for w, c in ((exact, full), (int8, config))
    )
    inside = np.arange(tokens.shape[1])[None] < np.asarray(length)[:, None]
    divergence = np.asarray(jnp.sum(jnp.exp(p) * (p - q), -1))[inside]
    print(
        f"greedy rows alike {alike:.3f}, KL mean {divergence.mean():.2e} max {divergence.max():.2e}"
    )
    assert alike > 0.85 and divergence.mean() < 0.01


def test_a_small_trained_prm_scores_nearly_the_same(checkpoints: Tiny):
    full = ProcessRewardModel.load(checkpoints.prm)
    prm = ProcessRewardModel.load(checkpoints.prm, weights="int8")
    draw = np.random.RandomState(2)
    problems, steps = [], []
    for _ in range(64):
        a, b = draw.randint(-9, 10, 2)
        said = [0, int(a), int(a + b + draw.randint(0, 2))]
        problems.append(f"{a:+d}{b:+d}")
        steps.append([f"{said[0]}{a:+d}={said[1]}", f"{said[1]}{b:+d}={said[2]}"])
    one, valid, _ = full.score(problems, steps)
    other = prm.score(problems, steps)[0]
    off = np.abs(one - other)[valid]
    print(f"{valid.sum()} scores, off by {off.mean():.2e} in the mean, {off.max():.2e} at most")
    assert valid.any() and off.mean() < 0.01 and off.max() < 0.1


# ---- refusals


def test_what_is_trained_or_written_has_full_weights(tmp_path):
    config = dataclasses.replace(TIED, weights="int8")
    spec = learning.UpdateSpec(learning.LossSpec(), learning.OptimizerSpec())
    for call, what in (
        (lambda: learning.update_program(config, spec), "a model is trained"),
        (lambda: models.lora_table(config, models.LoraSpec()), "adapters are trained"),
        (lambda: models.save(tmp_path, config, {}), "a directory is written"),
        (lambda: models.init(config, jax.random.key(0)), "random weights are made"),
    ):
        with pytest.raises(ValueError, match=f"frozen models .*: {what} with weights 'auto' only"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_run_refuses_it_for_a_teacher_that_is_trained():
    config = default_config("scope")
    config.models.teacher_weights, config.teacher.kind = "int8", "self"
    with pytest.raises(ValueError, match=r"teacher_weights 'int8' .*'model', not 'self'") as error:
        train_config(config)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named(tmp_path):
    golden = dict(np.load(GOLDENS / "family_qwen2.npz", allow_pickle=False))
    load_family("qwen2", tmp_path, golden)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = np.inf
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight holds values that are"):
        models.load(tmp_path, weights="int8")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2"
