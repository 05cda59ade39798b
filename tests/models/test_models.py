"""The decoder against goldens of torch (goldens/make_goldens.py), directories in and out, and what
bad ones say."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.fixtures import (
    CHARACTERS,
    TIED,
    TINY,
    UNTIED,
    make_params,
    mesh_of,
    numpy_weights,
    ragged_tokens,
    tiny_params,
)

from scope_jax import models
from scope_jax.devices.mesh import assert_sharded
from scope_jax.models import heads
from scope_jax.models.attention import plain
from scope_jax.models.weights import flatten

GOLDENS = Path(__file__).parents[1] / "goldens"
PRM = UNTIED.with_head("prm")
forward = jax.jit(models.logits, static_argnums=1)


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / f"{name}.npz", allow_pickle=False))


@pytest.fixture
def directory(tmp_path) -> Path:
    """A saved tiny model, for a test to damage."""
    models.save(tmp_path, TINY, tiny_params())
    return tmp_path


def edit_config(directory: Path, remove: tuple[str, ...] = (), **changes) -> None:
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if key not in remove}))


def edit_tensors(directory: Path, **changes: np.ndarray | None) -> None:
    """Replace, add or (None) remove tensors; "__" in a name stands for "."."""
    tensors = load_file(directory / "model.safetensors")
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, directory / "model.safetensors")


def assert_equal(found: models.Params, wanted: models.Params) -> None:
    assert flatten(found).keys() == flatten(wanted).keys()
    for path, value in flatten(wanted).items():
        assert flatten(found)[path].dtype == value.dtype, path
        np.testing.assert_array_equal(flatten(found)[path], value, err_msg=path)


@pytest.mark.parametrize(("name", "config", "seed"), [("tied", TIED, 1), ("untied", UNTIED, 2)])
def test_logits_are_those_of_torch(name, config, seed):
    wanted = golden(name)
    tokens, length = ragged_tokens(config, seed)
    np.testing.assert_array_equal(wanted["tokens"], tokens)  # else the weights differ too
    found = np.asarray(forward(make_params(config, seed), config, tokens, length))
    assert found.dtype == np.float32 and found.shape == (3, 16, config.vocab_size)
    np.testing.assert_allclose(found, wanted["logits"], atol=1e-4)
    assert (
        np.abs(wanted["logits"][0]).max() > 1 and not found[1, 9:].any() and not found[2, 1:].any()
    )


def test_step_probabilities_are_those_of_torch():
    wanted = golden("prm")
    tokens, length = ragged_tokens(PRM, 4)
    found = np.asarray(
        jax.jit(models.good_step_probability, static_argnums=1)(
            make_params(PRM, 4), PRM, tokens, length
        )
    )
    np.testing.assert_array_equal(wanted["tokens"], tokens)
    np.testing.assert_allclose(found, wanted["probability"], atol=1e-4)
    inside = np.arange(16)[None] < length[:, None]
    assert np.ptp(found[inside]) > 0.3 and not found[~inside].any()


def test_a_model_says_which_head_it_lacks():
    tokens, length = ragged_tokens(TINY, 0)
    with pytest.raises(
        ValueError, match="head 'prm' and no vocabulary logits; an 'lm' head is needed"
    ):
        models.logits({}, PRM, tokens, length)
    with pytest.raises(
        ValueError, match=r"head 'lm'; a PRM needs score.0 and score.2 \(config head 'prm'\)"
    ):
        models.good_step_probability({}, TINY, tokens, length)
    with pytest.raises(ValueError, match="head 'reward' must be lm, prm, value or none"):
        TINY.with_head("reward")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_and_entropy_in_chunks(monkeypatch, temperature):
    """In one piece, in chunks, and from the logits by numpy."""
    tokens, _ = ragged_tokens(TINY, 5)
    logits = (
        np.asarray(forward(tiny_params(), TINY, tokens, np.full(3, 16))).astype(np.float64)
        / temperature
    )
    table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.take_along_axis(table[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    spread = -(np.exp(table) * table).sum(-1)[:, :-1]
    for budget, chunk in ((heads.LOGITS_BUDGET, 16), (3 * 5 * TINY.vocab_size, 4), (1, 1)):
        monkeypatch.setattr(heads, "LOGITS_BUDGET", budget)
        assert heads.chunk_size(3, 16, TINY.vocab_size, 1, budget) == chunk
        assert heads.chunk_size(3, 16, TINY.vocab_size, 4, budget) == (16 if budget > 1 else 1)
        # A function of its own for each budget: the number is read when the program is traced.
        compute = jax.jit(
            lambda p, t: models.token_logprobs(p, TINY, t, temperature=temperature, entropy=True)
        )
        logp, entropy = jax.device_get(compute(tiny_params(), tokens))
        np.testing.assert_allclose(logp[:, 1:], wanted, atol=1e-5)
        np.testing.assert_allclose(entropy[:, 1:], spread, atol=1e-5)
        assert logp[:, 0].tolist() == entropy[:, 0].tolist() == [0, 0, 0]


def test_gradients_do_not_depend_on_remat_or_chunks(monkeypatch):
    tokens, _ = ragged_tokens(TINY, 5)

    def gradient(remat: str):
        config = dataclasses.replace(TINY, remat=remat)

        def loss(p):
            return jnp.sum(jnp.sin(models.token_logprobs(p, config, tokens)[0]))

        return flatten(jax.device_get(jax.jit(jax.grad(loss))(tiny_params())))

    plain = gradient("none")
    assert all(np.abs(g).max() > 1e-4 for g in plain.values())  # every weight takes part
    for path, value in gradient("layer").items():
        np.testing.assert_allclose(value, plain[path], atol=1e-5, err_msg=path)
    monkeypatch.setattr(heads, "LOGITS_BUDGET", 3 * 4 * TINY.vocab_size)
    for path, value in gradient("layer").items():
        np.testing.assert_allclose(value, plain[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunks", [1, 4])
def test_the_gradient_of_log_probs_and_entropy(temperature, cap, tied, chunks):
    """By hand in `heads`, against that of the formulas in float64."""
    B, T, D, V = 2, 8, 5, 11
    config = dataclasses.replace(
        TINY,
        hidden_size=D,
        vocab_size=V,
        tied=tied,
        logit_cap=cap,
        logits_at_once=B * V * T // chunks,
    )
    stream = np.random.RandomState(1)
    with jax.enable_x64(True):
        hidden = jnp.asarray(stream.standard_normal((B, T, D)))
        head = jnp.asarray(stream.standard_normal((V, D) if tied else (D, V)))
        target = jnp.asarray(stream.randint(0, V, (B, T)))
        weights = [jnp.asarray(stream.standard_normal((B, T))) for _ in range(2)]

        def ours(hidden, head):
            params = {"embed" if tied else "head": head}
            out = heads._next_logprobs(params, config, hidden, target, temperature, True)
            return sum(jnp.sum(w * x) for w, x in zip(weights, out, strict=True))

        def formulas(hidden, head):
            logits = hidden @ (head.T if tied else head)
            logits = cap * jnp.tanh(logits / cap) if cap else logits
            logp = jax.nn.log_softmax(logits / temperature)
            chosen = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
            spread = -jnp.sum(jnp.exp(logp) * logp, -1)
            return jnp.sum(weights[0] * chosen) + jnp.sum(weights[1] * spread)

        found, wanted = (
            jax.value_and_grad(f, argnums=(0, 1))(hidden, head) for f in (ours, formulas)
        )
        for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-11)


def test_products_of_the_backward_pass_are_of_the_weights_dtype():
    """In bfloat16 no product takes float32 operands, which are several times slower on every
    accelerator; the head's gradient is summed in float32."""
    B, T, D, V = 2, 8, 5, 11
    config = dataclasses.replace(TINY, hidden_size=D, vocab_size=V, logits_at_once=B * V * T // 4)
    hidden, head = jnp.ones((B, T, D), jnp.bfloat16), jnp.ones((V, D), jnp.float32)
    config = dataclasses.replace(config, tied=True)

    def loss(hidden, head):
        target = jnp.zeros((B, T), jnp.int32)
        out = heads._next_logprobs({"embed": head}, config, hidden, target, 1.0, True)
        return sum(jnp.sum(x) for x in out)

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3  # logits (whose value is not asked for) again, and two gradients
    for line in products:
        operands = line.split(" : (")[1].split(") -> ")[0]
        assert "f32" not in operands.replace("bf16", ""), line


@pytest.mark.parametrize("unrolled", [False, True])
def test_completions_that_share_a_prompt_score_as_whole_rows(unrolled):
    """Three ragged completions behind each of two ragged prompts, against `token_logprobs` of
    every row by itself: values and gradients; more positions than one block of queries holds, so
    blocks are joined."""
    stream = np.random.RandomState(9)
    W, C, M = 80, 144, 3
    assert C > plain.QUERY_BLOCK and W > plain.QUERY_BLOCK
    prompt_length = np.array([80, 66], np.int32)
    length = np.array([144, 1, 30, 65, 64, 100], np.int32)
    prompt = stream.randint(0, TINY.vocab_size, (2, W)).astype(np.int32)
    completion = stream.randint(0, TINY.vocab_size, (6, C)).astype(np.int32)
    weight = np.where(
        np.arange(C)[None] < length[:, None], stream.standard_normal((6, C)), 0
    ).astype(np.float32)
    rows = np.zeros((6, W + C), np.int32)
    weight_rows = np.zeros((6, W + C), np.float32)
    for row in range(6):
        begin = prompt_length[row // M]
        rows[row, :begin] = prompt[row // M, :begin]
        rows[row, begin : begin + C] = completion[row]
        weight_rows[row, begin : begin + C] = weight[row]

    config = dataclasses.replace(TINY, scan_layers=not unrolled)

    def packed(params):
        out = models.completion_logprobs(
            params, config, prompt, prompt_length, completion, temperature=0.8, entropy=True
        )
        return jnp.sum(weight * (out[0] + 0.3 * out[1])), out

    def whole(params):
        out = models.token_logprobs(params, TINY, rows, temperature=0.8, entropy=True)
        return jnp.sum(weight_rows * (out[0] + 0.3 * out[1])), out

    (_, found), found_grads = jax.device_get(
        jax.jit(jax.value_and_grad(packed, has_aux=True))(tiny_params())
    )
    (_, wanted), wanted_grads = jax.device_get(
        jax.jit(jax.value_and_grad(whole, has_aux=True))(tiny_params())
    )
    for row in range(6):
        begin = prompt_length[row // M]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(
                one[row, : length[row]], other[row, begin : begin + length[row]], atol=2e-5
            )
    found_grads, wanted_grads = flatten(found_grads), flatten(wanted_grads)
    for path, value in wanted_grads.items():
        np.testing.assert_allclose(
            found_grads[path], value, atol=2e-5 * max(1, np.abs(value).max()), err_msg=path
        )


@pytest.mark.parametrize(
    "config", [TIED, UNTIED, PRM, UNTIED.with_head("none")], ids=["tied", "untied", "prm", "trunk"]
)
def test_what_is_saved_is_loaded_bit_by_bit(tmp_path, config):
    params = make_params(config, 6)
    models.save(tmp_path / "deep" / "model", config, params)
    found_config, found = models.load(tmp_path / "deep" / "model")
    assert found_config == config
    assert_equal(found, params)


def test_tensors_have_the_names_and_shapes_of_hugging_face(tmp_path):
    models.save(tmp_path, PRM, make_params(PRM, 6))
    tensors = load_file(tmp_path / "model.safetensors")
    flat = numpy_weights(PRM, 6)
    assert tensors["model.layers.2.mlp.down_proj.weight"].shape == (32, 48)
    np.testing.assert_array_equal(
        tensors["model.layers.2.mlp.down_proj.weight"], flat["layers/down"][2].T
    )
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], flat["embed"])
    np.testing.assert_array_equal(tensors["score.2.weight"], flat["prm_output"].T)
    assert len(tensors) == 1 + 3 * 12 + 1 + 4 and "lm_head.weight" not in tensors


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_load_in_another_dtype(tmp_path, dtype):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_params())
    models.save(tmp_path, TINY, half)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_equal(
        models.load(tmp_path, dtype=dtype)[1], jax.tree.map(lambda x: x.astype(dtype), half)
    )


def shard(directory: Path, **more: dict[str, np.ndarray]) -> None:
    """model.safetensors in two files with an index; `more`: tensors written into file a or b
    besides."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    files = {"a": names[::2], "b": names[1::2]}
    for file, held in files.items():
        save_file(
            {name: tensors[name] for name in held} | more.get(file, {}),
            directory / f"part-{file}.safetensors",
        )
    index = {
        "metadata": {},
        "weight_map": {
            name: f"part-{file}.safetensors" for file, held in files.items() for name in held
        },
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


def test_a_checkpoint_in_several_files(directory):
    shard(directory)
    assert_equal(models.load(directory)[1], tiny_params())
    (directory / "part-b.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"part-b.safetensors: missing; weights must be safetensors"
    ):
        models.load(directory)


def test_a_tensor_may_stand_once(directory):
    shard(
        directory,
        b={
            "model.norm.weight": np.ones(32, np.float32),
            "lm_head.weight": np.ones((48, 32), np.float32),
        },
    )
    with pytest.raises(
        ValueError,
        match=(
            r"part-b.safetensors: tensor '\S+' is also in part-a.safetensors; each tensor may stand"
            r" once"
        ),
    ):
        models.load(directory)


@pytest.mark.parametrize("name", ["1", "8x1x1", "2x2x2"])
def test_a_model_is_loaded_onto_a_mesh(directory, name):
    mesh = mesh_of(name)
    config, params = models.load(directory, mesh=mesh)
    assert_equal(params, tiny_params())
    assert_sharded(params, models.shardings(config, mesh))
    with jax.set_mesh(mesh):
        assert_sharded(models.load(directory)[1], models.shardings(config, mesh))
    # The largest part of a feed-forward matrix that one device holds.
    part = {"1": 2 * 32 * 64, "8x1x1": 2 * 32 * 64, "2x2x2": 2 * 32 * 64 // 4}[name]
    assert {s.data.size for s in params["layers"]["gate"].addressable_shards} == {part}


def test_a_sharded_model_gives_the_same_logits(directory):
    tokens, length = ragged_tokens(TINY, 5)
    wanted = forward(tiny_params(), TINY, tokens, length)
    mesh = mesh_of("2x2x2")
    with jax.set_mesh(mesh):
        _, params = models.load(directory)
        np.testing.assert_allclose(forward(params, TINY, tokens, length), wanted, atol=1e-5)


def test_both_generations_of_config_json(directory):
    edit_config(directory, rope_theta=5000.0)
    assert models.read_config(directory).rope_theta == 5000.0
    edit_config(
        directory,
        remove=("rope_theta",),
        rope_parameters={"rope_theta": 7000.0, "rope_type": "default"},
    )
    assert models.read_config(directory).rope_theta == 7000.0
    # Older files lack these keys.
    edit_config(
        directory,
        remove=("head_dim", "rope_parameters", "use_sliding_window", "tie_word_embeddings"),
    )
    config = models.read_config(directory)
    assert (config.head_size, config.rope_theta, config.tied) == (8, 10000.0, False)


def test_end_tokens_of_both_files(directory):
    edit_config(directory, eos_token_id=5)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 3]}))
    assert models.read_config(directory).end_ids == (7, 3, 5)
    (directory / "generation_config.json").unlink()
    assert models.read_config(directory).end_ids == (5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gpt2"},
            r"config.json: model_type 'gpt2' is not supported; known: qwen2, qwen3, ",
        ),
        (
            {"hidden_act": "gelu"},
            r"config.json: hidden_act 'gelu' is not supported; qwen2 uses silu$",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"config.json: rotary scaling 'dynamic' is not supported; known: ",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            r"config.json: rotary scaling 'longrope' is not supported; known: ",
        ),
        ({"num_key_value_heads": 3}, r"num_heads 4 must be a multiple of num_kv_heads 3$"),
    ],
)
def test_configs_that_are_not_supported(directory, change, message):
    edit_config(directory, **change)
    with pytest.raises(ValueError, match=message) as error:
        models.load(directory)
    assert "\n" not in str(error.value)


def say(directory: Path) -> tuple[type, str]:
    """What `load` raises, its message without the path of the directory."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        models.load(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)
    return error.type, str(error.value).replace(str(directory), "DIR")


def test_missing_files(directory):
    assert say(directory / "nowhere") == (
        FileNotFoundError,
        "DIR: no such model directory; give a Hugging Face directory (config.json, *.safetensors),"
        " or a name of the hub such as Qwen/Qwen2.5-0.5B-Instruct",
    )
    (directory / "model.safetensors").unlink()
    missing = (
        FileNotFoundError,
        (
            "DIR/model.safetensors: missing; weights must be safetensors (pickled *.bin files are"
            " never read)"
        ),
    )
    assert say(directory) == missing
    # A pickled file beside it is not opened: this one would fail otherwise.
    (directory / "pytorch_model.bin").write_bytes(b"not to be read")
    assert say(directory) == missing
    (directory / "config.json").unlink()
    assert say(directory) == (
        FileNotFoundError,
        "DIR: no config.json; a model directory holds config.json, *.safetensors and a tokenizer",
    )


def test_missing_weight(directory):
    edit_tensors(directory, model__layers__1__mlp__up_proj__weight=None)
    assert say(directory) == (
        ValueError,
        "DIR: weight model.layers.1.mlp.up_proj.weight of shape [64, 32] is missing",
    )


def test_extra_weight(directory):
    edit_tensors(directory, model__layers__2__mlp__up_proj__weight=np.zeros((64, 32), np.float32))
    assert say(directory) == (
        ValueError,
        "DIR: weight model.layers.2.mlp.up_proj.weight is not part of this qwen2 model (head 'lm')",
    )


def test_wrong_shape_names_both_shapes(directory):
    edit_tensors(
        directory, model__layers__0__self_attn__k_proj__weight=np.zeros((32, 16), np.float32)
    )
    assert say(directory) == (
        ValueError,
        (
            "DIR/model.safetensors: weight model.layers.0.self_attn.k_proj.weight has shape [32,"
            " 16], config.json asks for [16, 32]"
        ),
    )


def test_a_prm_without_its_head(directory):
    edit_config(directory, architectures=["Qwen2ForProcessRewardModel"])
    assert say(directory) == (
        ValueError,
        (
            "DIR: weight score.0.weight of shape [32, 32] is missing; a PRM needs its head score.0,"
            " score.2"
        ),
    )


def test_tensors_that_do_no_harm(directory):
    """Rotary tables of old checkpoints, and the copy of the embedding that some tied checkpoints
    carry."""
    edit_tensors(
        directory, model__layers__0__self_attn__rotary_emb__inv_freq=np.zeros(4, np.float32)
    )
    with pytest.warns(
        UserWarning, match=r"were skipped: model.layers.\*.self_attn.rotary_emb.inv_freq$"
    ):
        assert_equal(models.load(directory)[1], tiny_params())
    models.save(directory, TIED, make_params(TIED, 1))
    edit_tensors(directory, lm_head__weight=np.zeros((48, 32), np.float32))
    with pytest.warns(UserWarning, match=r"were skipped: lm_head.weight$"):
        assert_equal(models.load(directory)[1], make_params(TIED, 1))


def test_a_tokenizer_is_saved_beside_the_weights(tmp_path):
    from scope_jax.text.tokenizers import character_tokenizer, load_tokenizer

    tokenizer = character_tokenizer(CHARACTERS)
    models.save(tmp_path, TIED, make_params(TIED, 1), tokenizer)
    text = "12+34=46\n\nabc 7*8"
    again = load_tokenizer(tmp_path)
    assert again.encode(text) == tokenizer.encode(text) and again.decode(again.encode(text)) == text


def test_shapes_without_weights():
    wanted = models.init(UNTIED, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), models.abstract(UNTIED)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    mesh = mesh_of("2x2x2")
    shardings = jax.tree.map(lambda x: x.sharding, models.abstract(UNTIED, jnp.bfloat16, mesh))
    assert shardings == models.shardings(UNTIED, mesh)
