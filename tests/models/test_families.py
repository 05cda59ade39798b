"""Every model family against goldens of transformers and torch (goldens/family_goldens.py),
directories in and out, and attention with windows and caps against plain numpy."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.families_fixture import (
    FAMILIES,
    LENGTHS,
    NEW,
    VALUE_HEAD,
    family_tokens,
    load_family,
    shapes_in,
    tensors_of,
    write_checkpoint,
)
from support.fixtures import mesh_of

from scope_jax import models, rollout
from scope_jax.models import attention, hf
from scope_jax.models.rope import RopeScaling, frequencies, read_rope, write_rope
from scope_jax.models.weights import flatten

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = tuple(FAMILIES)
INSIDE = np.arange(16)[None] < LENGTHS[:, None]
forward = jax.jit(models.logits, static_argnums=1)


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / f"family_{name}.npz", allow_pickle=False))


@functools.cache
def loaded(name: str, directory: Path) -> tuple[models.ModelConfig, models.Params]:
    return load_family(name, directory, golden(name))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(params=NAMES)
def family(request, place) -> tuple[str, models.ModelConfig, models.Params]:
    """(name, config, params) of each family's checkpoint, which lies in place / name."""
    return request.param, *loaded(request.param, place / request.param)


def test_logits_are_those_of_transformers(family):
    name, config, params = family
    wanted, tokens = golden(name), family_tokens(name)
    np.testing.assert_array_equal(wanted["tokens"], tokens)  # else the weights differ too
    found = np.asarray(forward(params, config, tokens, LENGTHS))
    np.testing.assert_allclose(found[INSIDE], wanted["logits"], atol=1e-4)
    assert np.abs(wanted["logits"]).max() > 1 and not found[~INSIDE].any()


FORGOTTEN: list[tuple[str, dict]] = [
    ("qwen2", {"window": 6}),
    ("qwen2_yarn", {"rope_scaling": RopeScaling()}),
    ("qwen3_moe", {"norm_expert_weights": False}),
    ("qwen3_moe", {"experts_per_token": 1}),
    ("qwen3_moe_plain", {"norm_expert_weights": True}),
    ("llama", {"rope_scaling": RopeScaling()}),
    ("mistral", {"window": 4}),
    ("gemma2", {"attention_cap": 0.0}),
    ("gemma2", {"query_pre_attn_scalar": 0.0}),
    ("gemma3", {"local_rope_theta": 0.0}),
    ("gemma3", {"rope_scaling": RopeScaling()}),
    ("gemma3", {"local_layers": (True,) * 4}),
    ("gemma3", {"logit_cap": 0.0}),
    ("smollm3", {"unrotated_layers": ()}),
    ("smollm3", {"unrotated_layers": (False, True, True, False)}),
    ("smollm3_window", {"unrotated_layers": ()}),
    ("olmo2", {"norm_eps": 1e-6}),
    ("olmo3", {"rope_scaling": RopeScaling()}),
    ("olmo3", {"local_rope_theta": 0.0}),
    ("olmo3", {"local_layers": (True,) * 5}),
    ("olmo3_bases", {"local_rope_theta": 0.0}),
    ("phi3", {"window": 6}),
    ("phi4_mini", {"rope_scaling": RopeScaling()}),
    ("phi4_mini", {"partial_rotary_factor": 1.0, "rope_scaling": RopeScaling()}),
]


@pytest.mark.parametrize(
    ("name", "change"),
    [  # the first of each family; the others in `make long`
        pytest.param(*case, marks=pytest.mark.long) if case[0] in dict(FORGOTTEN[:n]) else case
        for n, case in enumerate(FORGOTTEN)
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_the_goldens_would_notice(name, change, place):
    """The same weights under a config that forgets something are far from the golden."""
    config, params = loaded(name, place / name)
    found = np.asarray(
        forward(params, dataclasses.replace(config, **change), family_tokens(name), LENGTHS)
    )
    assert np.abs(found[INSIDE] - golden(name)["logits"]).max() > 1e-2


def test_logits_on_a_mesh(place):
    name, mesh = "gemma3", mesh_of("2x2x2")
    load_family(name, place / "mesh", golden(name))
    with jax.set_mesh(mesh):
        config, params = models.load(place / "mesh")
        found = np.asarray(forward(params, config, family_tokens(name), LENGTHS))
    np.testing.assert_allclose(found[INSIDE], golden(name)["logits"], atol=1e-4)


# Of a family in two forms, whose logits are compared above, one writes.
FORMS = ("qwen2_yarn", "smollm3_window", "olmo3_bases", "phi4_mini")


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.long) if name in FORMS else name for name in NAMES],
    indirect=True,
)
def test_greedy_rows_are_those_of_transformers(family):
    """Token by token, and the sampler's log-probs are those of teacher forcing, whole rows or
    packed."""
    name, config, params = family
    wanted, tokens = golden(name), family_tokens(name)
    sizes = (3, 9)
    rows = rollout.from_prompts([tokens[0, :size].tolist() for size in sizes], 1, 9 + NEW)
    spec = rollout.SampleSpec(temperature=0.0, max_new_tokens=NEW, end_ids=())
    for scan_layers in (False, True) if name == "gemma3" else (None,):
        written = jax.device_get(
            rollout.generate(
                params,
                dataclasses.replace(config, scan_layers=scan_layers),
                rows,
                jax.random.key(0),
                spec,
            )
        )
        for row, size in enumerate(sizes):
            np.testing.assert_array_equal(
                written.tokens_BT[row, size : size + NEW], wanted["greedy"][row]
            )
    score = jax.jit(lambda p, t: models.token_logprobs(p, config, t)[0])
    forced = np.asarray(score(params, written.tokens_BT))
    unrolled = dataclasses.replace(config, scan_layers=False)
    packed = jax.jit(lambda p, w, n, c: models.completion_logprobs(p, unrolled, w, n, c)[0])
    completion = np.stack(
        [written.tokens_BT[row, size : size + NEW] for row, size in enumerate(sizes)]
    )
    apart = np.asarray(
        packed(params, written.tokens_BT[:, :9], np.array(sizes, np.int32), completion)
    )
    for row, size in enumerate(sizes):
        np.testing.assert_allclose(
            written.logp_BT[row, size : size + NEW], forced[row, size : size + NEW], atol=1e-5
        )
        np.testing.assert_allclose(apart[row], forced[row, size : size + NEW], atol=1e-5)


def test_import_export_import_is_exact(family, place, tmp_path):
    name, config, params = family
    models.save(tmp_path, config, params)
    ours, theirs = (
        load_file(tmp_path / "model.safetensors"),
        load_file(place / name / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
    again, weights = models.load(tmp_path)
    assert again == config
    for path, value in flatten(weights).items():
        np.testing.assert_array_equal(value, flatten(params)[path], err_msg=path)


@pytest.mark.parametrize("name", ["llama", "gemma3", "olmo2"])
def test_fresh_models(name, place):
    """`init` makes what `abstract` says, and its norms scale by 1: hidden states of unit size."""
    config, _ = loaded(name, place / name)
    params = models.init(config, jax.random.key(0))
    same = jax.tree.map(
        lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), params, models.abstract(config)
    )
    assert all(jax.tree.leaves(same))
    hidden = np.asarray(models.hidden_states(params, config, np.arange(8, dtype=np.int32)[None]))
    np.testing.assert_allclose(np.sqrt(np.mean(hidden**2, -1)), 1, atol=1e-2)


def test_what_each_family_is_read_as(place):
    """The fields that a wrong reading of config.json would change, by hand."""
    read = {name: loaded(name, place / name)[0] for name in NAMES}
    local = {name: "".join("gl"[x] for x in config.local_layers) for name, config in read.items()}
    windowed = {"qwen2": "gll", "mistral": "lll", "gemma2": "lgl", "gemma3": "llgl"}
    windowed |= {"smollm3_window": "glgl", "olmo3": "lllgl", "olmo3_bases": "gll", "phi3": "lll"}
    assert {name: kinds for name, kinds in local.items() if kinds} == windowed
    unrotated = {name: config.unrotated_layers for name, config in read.items()}
    assert {name: layers for name, layers in unrotated.items() if layers} == {
        "smollm3": (False, True, False, True),
        "smollm3_window": (False, True, False, True),
    }
    assert {config.window for config in read.values()} == {0, 5}
    assert [read[name].rope(True)[0] for name in ("qwen3", "gemma2", "gemma3")] == [1e6, 1e4, 100.0]
    assert (
        read["gemma3"].rope(False) == (1e6, RopeScaling("linear", 8.0))
        and read["gemma3"].rope(True)[1] == RopeScaling()
    )
    assert (read["gemma2"].attention_cap, read["gemma2"].logit_cap, read["gemma2"].query_scale) == (
        1.5,
        4.0,
        20**-0.5,
    )
    assert read["llama"].attention_bias and read["llama"].mlp_bias and read["qwen3"].attention_bias
    assert (
        read["gemma3"].tied,
        read["gemma3"].bos_id,
        read["gemma3"].pad_id,
        read["llama"].tied,
    ) == (True, 2, 0, False)
    assert len({hash(config) for config in read.values()}) == len(read)


@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_the_value_head_of_skywork(place, tmp_path, prefix):
    """Its directory carries the causal LM's head too, which is skipped with a warning."""
    wanted, tokens = golden("qwen2"), family_tokens("qwen2")
    raw, seed = FAMILIES["qwen2"]
    tensors = tensors_of(raw, shapes_in(wanted), seed) | {
        "lm_head.weight": np.zeros((24, 32), np.float32)
    }
    tensors = {prefix + name: value for name, value in tensors.items()} | tensors_of(
        raw, VALUE_HEAD, seed
    )
    write_checkpoint(tmp_path, raw | {"architectures": ["Qwen2ForPrmModel"]}, tensors)
    with pytest.warns(
        UserWarning, match=r"tensors that this model does not use were skipped: lm_head.weight$"
    ):
        config, params = models.load(tmp_path)
    assert config.head == "value"
    found = np.asarray(models.good_step_probability(params, config, tokens, LENGTHS))
    np.testing.assert_allclose(found[INSIDE], wanted["value"], atol=1e-5)
    assert np.ptp(wanted["value"]) > 0.3 and not found[~INSIDE].any()
    models.save(tmp_path / "again", config, params)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == [
        "Qwen2ForPrmModel"
    ]
    np.testing.assert_array_equal(
        models.load(tmp_path / "again")[1]["value_head"], params["value_head"]
    )
    edited = {name: value for name, value in tensors.items() if name != "v_head.summary.bias"}
    save_file(edited, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"weight v_head.summary.bias of shape \[1\] is missing; .* needs v_head.summary$",
    ):
        models.load(tmp_path)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])  # a head of its own; a tied one with a cap
def test_the_choice_between_two_tokens(name, place):
    """Math-Shepherd: softmax over two logits, from the golden's."""
    config, params = loaded(name, place / name)
    good, bad = 7, 3
    pair = golden(name)["logits"][:, [good, bad]].astype(np.float64)
    found = np.asarray(
        models.token_choice_probability(params, config, family_tokens(name), LENGTHS, good, bad)
    )
    assert found.dtype == np.float32 and not found[~INSIDE].any()
    np.testing.assert_allclose(found[INSIDE], 1 / (1 + np.exp(pair[:, 1] - pair[:, 0])), atol=1e-4)
    with pytest.raises(ValueError, match="token 24 is not in the vocabulary of 24"):
        models.token_choice_probability(params, config, family_tokens(name), LENGTHS, 24, bad)
    with pytest.raises(ValueError, match="head 'value' and no vocabulary logits"):
        models.token_choice_probability(
            params, config.with_head("value"), family_tokens(name), LENGTHS, good, bad
        )


# --- attention
# ------------------------------------------------------------------------------------------------


def plain_attention(q, k, v, positions, key_positions, visible, window, scale, cap):
    """One row in float64: q [T, K, G, H], k, v [S, K, H], `visible` bool [T, S] -> [T, K G H]."""
    scores = np.einsum("tkgh,skh->kgts", q.astype(np.float64), k.astype(np.float64)) * scale
    if cap:
        scores = cap * np.tanh(scores / cap)
    ahead = positions[:, None] - key_positions[None]
    seen = visible & (ahead >= 0) & (ahead < (window or 10**9))
    weights = np.where(seen[None, None], np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("kgts,skh->tkgh", weights, v.astype(np.float64)).reshape(len(q), -1)


def draw(stream, *shape):
    return stream.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("window", [None, 1, 64, 65, 100, 1000])
@pytest.mark.parametrize("traced", [False, True])
def test_causal_attention_with_a_window(window, traced):
    """Rows longer than a block of queries, windows at the edges of blocks; the window as a number
    or as an array."""
    stream = np.random.RandomState(0)
    T = 150
    q, k, v = draw(stream, 2, T, 2, 3, 4), draw(stream, 2, T, 2, 4), draw(stream, 2, T, 2, 4)
    if traced:
        run = jax.jit(
            lambda w: attention.causal(q, k, v, window=w, scoring=attention.Scoring(0.7, 1.5))
        )
        found = run(jnp.int32(1 << 30 if window is None else window))
    else:
        found = jax.jit(
            lambda q: attention.causal(q, k, v, window=window, scoring=attention.Scoring(0.7, 1.5))
        )(q)
    slots, visible = np.arange(T), np.ones((T, T), bool)
    for row in range(2):
        wanted = plain_attention(q[row], k[row], v[row], slots, slots, visible, window, 0.7, 1.5)
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 40])
def test_shared_prompt_attention_with_a_window(window):
    """Against whole rows: the prompt's real slots, then one completion. Windows within, across and
    past the border."""
    stream = np.random.RandomState(1)
    W, M, C, seen_P = 30, 2, 20, np.array([29, 11])
    X = W + M * C
    q, k, v = draw(stream, 2, X, 2, 1, 4), draw(stream, 2, X, 2, 4), draw(stream, 2, X, 2, 4)
    attend = jax.jit(
        lambda q, seen: attention.shared_prompt(
            q, k, v, attention.Packed(W, M, seen), window=window, scoring=attention.Scoring(cap=2.0)
        )
    )
    found = np.asarray(attend(q, seen_P))
    for prompt in range(2):
        for completion in range(M):
            own = np.arange(W + completion * C, W + (completion + 1) * C)
            slots = np.concatenate([np.arange(seen_P[prompt]), own])
            at, positions = prompt, np.arange(len(slots))
            visible = np.ones((len(slots), len(slots)), bool)
            wanted = plain_attention(
                q[at, slots],
                k[at, slots],
                v[at, slots],
                positions,
                positions,
                visible,
                window,
                0.5,
                2.0,
            )
            np.testing.assert_allclose(found[prompt, own], wanted[seen_P[prompt] :], atol=1e-5)


def test_packed_rows_train_as_whole_rows_under_windows(place):
    """Gemma 3's mix of local and global layers: gradients of `completion_logprobs` are those of
    `token_logprobs`."""
    config, params = loaded("gemma3", place / "gemma3")
    stream = np.random.RandomState(2)
    W, C, length = 12, 10, np.array([12, 7], np.int32)
    prompt, completion = (
        stream.randint(0, 24, shape).astype(np.int32) for shape in ((2, W), (4, C))
    )
    rows = np.zeros((4, W + C), np.int32)
    weight, weight_rows = draw(stream, 4, C), np.zeros((4, W + C), np.float32)
    for row in range(4):
        begin = length[row // 2]
        rows[row, : begin + C] = np.concatenate([prompt[row // 2, :begin], completion[row]])
        weight_rows[row, begin : begin + C] = weight[row]

    def packed(p, unrolled):
        logp, _ = models.completion_logprobs(
            p,
            dataclasses.replace(config, remat="layer", scan_layers=not unrolled),
            prompt,
            length,
            completion,
        )
        return jnp.sum(weight * logp)

    def whole(p):
        return jnp.sum(weight_rows * models.token_logprobs(p, config, rows)[0])

    def gradient(loss):
        return flatten(jax.device_get(jax.jit(jax.grad(loss))(params)))

    wanted = gradient(whole)
    for unrolled in (False, True):
        found = gradient(functools.partial(packed, unrolled=unrolled))
        for path, value in wanted.items():
            assert np.abs(value).max() > 1e-4, path
            np.testing.assert_allclose(
                found[path], value, atol=2e-5 * max(1, np.abs(value).max()), err_msg=path
            )


# --- config.json
# ------------------------------------------------------------------------------------------------


def test_gemma3_in_both_generations():
    raw, _ = FAMILIES["gemma3"]
    old = models.config_from_json(raw)
    new = {
        key: value
        for key, value in raw.items()
        if not key.startswith("rope") and key != "sliding_window_pattern"
    } | {
        "layer_types": [
            "sliding_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    }
    assert models.config_from_json(new) == old
    # Defaults of published files: every sixth layer is global, heads are tied, rotary bases 1e6
    # and 1e4.
    bare = models.config_from_json(
        {key: value for key, value in raw.items() if not key.startswith("rope")}
        | {"sliding_window_pattern": None, "num_hidden_layers": 7}
    )
    assert bare.local_layers == (True,) * 5 + (False, True) and bare.tied
    assert (bare.rope(False), bare.rope(True)) == ((1e6, RopeScaling()), (1e4, RopeScaling()))


def test_a_cap_that_gemma3_does_not_apply_is_named():
    with pytest.warns(UserWarning, match="attn_logit_softcapping is not applied"):
        assert (
            models.config_from_json(
                FAMILIES["gemma3"][0] | {"attn_logit_softcapping": 50.0}
            ).attention_cap
            == 0
        )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "llama",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            r"'dynamic' is not supported; known: default, linear",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "warp": 1}},
            r"warp is not supported; known: factor$",
        ),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, r"'linear' needs a factor$"),
        (
            "llama",
            {"rope_scaling": None, "rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor is not",
        ),
        (
            "llama",
            {"quantization_config": {"bits": 4}},
            r"quantization_config is not supported; give weights in",
        ),
        (
            "llama",
            {"architectures": ["LlamaForRewardModel"]},
            r"'LlamaForRewardModel' is not supported; known: Llama",
        ),
        ("llama", {"hidden_size": None}, r"hidden_size is None, a whole number is needed$"),
        (
            "qwen3",
            {"layer_types": ["sliding_attention"] * 3},
            r"has sliding_attention, but no sliding_window is in force$",
        ),
        (
            "qwen2",
            {"layer_types": ["full_attention"] * 2},
            r"layer_types must name full_attention or .* each of 3 layers$",
        ),
        (
            "mistral",
            {"layer_types": ["full_attention"] * 3},
            r"not supported for mistral; all its layers are alike$",
        ),
        (
            "gemma3",
            {"use_bidirectional_attention": True},
            r"use_bidirectional_attention is not supported",
        ),
        (
            "gemma3",
            {"hidden_activation": "relu"},
            r"'relu' is not supported; gemma3_text uses gelu_pytorch_tanh$",
        ),
        (
            "gemma3",
            {"rope_parameters": {"rope_theta": 1.0}},
            r"must hold full_attention and sliding_attention$",
        ),
        (
            "qwen3",
            {"rope_parameters": {"full_attention": {}}},
            r"per layer type is not supported for qwen3$",
        ),
    ],
)
def test_configs_that_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message) as error:
        models.config_from_json(FAMILIES[name][0] | change)
    assert "\n" not in str(error.value)


def test_configs_that_do_not_fit_together():
    make = functools.partial(models.ModelConfig, 24, 16, 1, 2, 1, 8, 16)
    assert make().model_type == "qwen2" and make(model_type="qwen3").family.qk_norm
    for change, message in (
        (
            {"model_type": "gpt2"},
            "'gpt2' is not supported; known: qwen2, qwen3, qwen3_moe, llama, mistral,",
        ),
        ({"attention_bias": True}, "attention_bias is not part of qwen2$"),
        ({"window": 4}, "must both be given, or neither$"),
        ({"unrotated_layers": (True,)}, "unrotated_layers is not part of qwen2$"),
        (
            {"unrotated_layers": (True, False), "model_type": "smollm3"},
            "unrotated_layers names 2 layers, num_layers is 1$",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported for qwen2;"),
        (
            {"window": 4, "local_layers": (True, False)},
            "local_layers names 2 layers, num_layers is 1$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make(**change)


def test_what_config_json_cannot_say_is_not_written(tmp_path):
    config = models.ModelConfig(24, 16, 1, 2, 1, 8, 16, model_type="llama", attention_cap=3.0)
    with pytest.raises(
        ValueError, match=r"attention_cap = 3.0 cannot be written into a config.json of llama$"
    ):
        models.save(tmp_path / "model", config, models.init(config, jax.random.key(0)))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(),
        RopeScaling("linear", 4.0),
        RopeScaling("llama3", 8.0, 64, 1.0, 4.0),
        RopeScaling("yarn", 4.0, 64, attention_factor=1.1),
    ],
)
def test_rope_scalings_are_written_and_read(scaling):
    assert read_rope(write_rope(scaling) or {}, 1000) == scaling


def test_rope_frequencies_by_hand():
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(frequencies(10000.0, 16), plain, rtol=1e-6)
    np.testing.assert_allclose(
        frequencies(10000.0, 16, RopeScaling("linear", 8.0)), plain / 8, rtol=1e-6
    )
    llama = frequencies(10000.0, 16, RopeScaling("llama3", 8.0, 64, 1.0, 4.0))
    # 64 slots are 10.2, 3.2 and 1.02 turns of the first three: kept, nearly kept, nearly slowed;
    # the rest is slowed.
    turns = 64 * plain / (2 * np.pi)
    share = np.clip((turns - 1) / 3, 0, 1)
    np.testing.assert_allclose(llama, plain * (share + (1 - share) / 8), rtol=1e-6)
    assert llama[0] == np.float32(plain[0]) and llama[3] == np.float32(plain[3] / 8)


# --- loading
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints(place, tmp_path, dtype):
    name = "llama"
    config, params = loaded(name, place / name)
    tensors = {
        key: value.astype(jnp.dtype(dtype))
        for key, value in load_file(place / name / "model.safetensors").items()
    }
    write_checkpoint(tmp_path, FAMILIES[name][0], tensors)
    _, found = models.load(tmp_path)
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(
            flatten(found)[path],
            np.asarray(value).astype(jnp.dtype(dtype)).astype(np.float32),
            err_msg=path,
        )
    save_file(
        tensors | {"model.norm.weight": np.zeros(48, np.int8)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(
        ValueError, match=r"weight model.norm.weight is I8, known are F32, BF16, F16$"
    ):
        models.load(tmp_path)


class Recorder:
    """A tensor of a file that remembers what was read of it."""

    def __init__(self, value: np.ndarray):
        self.value, self.read = value, []

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        self.read.append(self.value[index].size)
        return self.value[index]


@pytest.mark.parametrize("transpose", [False, True])
def test_only_the_slices_that_are_held_are_read(monkeypatch, transpose):
    """A quarter of two stacked layers, in blocks that do not divide it."""
    stream = np.random.RandomState(3)
    layers = [Recorder(draw(stream, 12, 20)) for _ in range(2)]
    ours = np.stack([layer.value.T if transpose else layer.value for layer in layers])
    rows, columns = (20, 12) if transpose else (12, 20)
    weight = models.weights.Weight(ours.shape, (None, "embed", "mlp"), "{}", transpose=transpose)
    monkeypatch.setattr(hf, "BLOCK_BYTES", 4 * 40)
    bounds = [(0, 2), (rows // 2, rows), (0, columns // 2)]
    part = hf._load_part(weight, lambda name: layers[int(name)], bounds, jnp.float32, None)
    np.testing.assert_array_equal(part, ours[:, rows // 2 :, : columns // 2])
    # 6 x 10 of 12 x 20, four rows at a time, the second time from row 2.
    assert [layer.read for layer in layers] == [[40, 40], [40, 40]]


MEASURE = """
import sys, threading, warnings
import jax
from pathlib import Path
from scope_jax import models
jax.config.update("jax_platforms", "cpu")

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

warm, directory = sys.argv[1:]
models.load(warm)
before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

thread = threading.Thread(target=watch)
thread.start()
_, params = models.load(directory)
done.set()
thread.join()
held = sum(x.nbytes for x in jax.tree.leaves(params))
print(peak - before, held)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_load_needs_little_beside_the_parameters(tmp_path):
    """Anonymous memory of a process (pages of the mapped file can be dropped and do not count),
    sampled while it loads two layers whose largest tensor is 32 MiB: 64 MiB for each of three
    stacked weights, and again for a copy of one. What XLA needs to compile, some 25 MiB, is in the
    number."""
    sizes = {"small": (16, 16), "large": (512, 16384)}
    largest = 4 * 512 * 16384
    for name, (hidden, ffn) in sizes.items():
        config = models.ModelConfig(64, hidden, 2, 2, 1, 8, ffn)
        tensors = {}
        for weight in models.weight_table(config).values():
            shape = weight.shape[1:] if weight.stacked else weight.shape
            for number in range(2 if weight.stacked else 1):
                tensors[weight.hf.format(number)] = np.ones(
                    shape[::-1] if weight.transpose else shape, np.float32
                )
        write_checkpoint(tmp_path / name, models.config.config_to_json(config), tensors)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    peak, held = (int(x) for x in done.stdout.split())
    assert held > 6 * largest
    assert peak - held < 2 * largest, f"{(peak - held) / 2**20:.0f} MiB beside the parameters"
    assert peak > 0.9 * held  # else the measure is blind
