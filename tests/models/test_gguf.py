"""A GGUF file written here, read back as a Hugging Face directory."""

import json

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.gguf_files import HEAD, LAYERS, D, weights, write

from scope_jax import models
from scope_jax.models.gguf import convert, halves_from_pairs
from scope_jax.text import load_tokenizer


def test_weights_config_and_tokenizer(tmp_path):
    expected = weights()
    convert(write(tmp_path / "m.gguf", expected), tmp_path / "m")
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value.astype(np.float32), expected[name], err_msg=name)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5 and config["rope_theta"] == 10000.0
    assert config["tie_word_embeddings"] is True and config["head_dim"] == HEAD
    model_config, params = models.load(tmp_path / "m")
    assert model_config.num_layers == LAYERS and model_config.end_ids == (0,)
    tokenizer = load_tokenizer(tmp_path / "m")
    # Digits stand alone, merges are made, the mark of a turn is one token.
    assert tokenizer.encode("ab ab12") == [4, 6, 7, 8]
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert turn == "<|turn|>ab<|end|>" and tokenizer.encode(turn) == [1, 4, 0]
    assert tokenizer.eos_token_id == 0 and tokenizer.bos_token_id == 1


def test_rows_of_a_head_turn_as_before():
    """Rotary positions in GGUF turn neighbours (0, 1), (2, 3); in Hugging Face (0, H/2), ...: the
    scores of queries and keys are the same where both are put into the other order."""
    rng = np.random.default_rng(1)
    pairs_q, pairs_k = rng.normal(size=(2, HEAD, D))
    x, y = rng.normal(size=(2, D))
    angle = 3 * 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
    cos, sin = np.cos(angle), np.sin(angle)

    def turned_pairs(v):
        even, odd = v[0::2], v[1::2]
        return np.stack([even * cos - odd * sin, odd * cos + even * sin], 1).reshape(-1)

    def turned_halves(v):
        first, second = v[: HEAD // 2], v[HEAD // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin])

    q, k = halves_from_pairs(pairs_q, 1), halves_from_pairs(pairs_k, 1)
    expected = turned_pairs(pairs_q @ x) @ (pairs_k @ y)
    assert turned_halves(q @ x) @ (k @ y) == pytest.approx(expected)
    assert turned_halves(pairs_q @ x) @ (pairs_k @ y) != pytest.approx(expected)


def test_weights_in_blocks_of_few_bits(tmp_path):
    expected = weights()
    kind = gguf.GGMLQuantizationType.Q8_0
    convert(write(tmp_path / "m.gguf", expected, kind=kind), tmp_path / "m")
    for name, value in load_file(tmp_path / "m" / "model.safetensors").items():
        error = np.abs(value.astype(np.float32) - expected[name]).max()
        # Half a step of 127 to the largest of a block, and bfloat16's own rounding.
        assert error <= np.abs(expected[name]).max() * (0.5 / 127 + 2**-8), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma"}, "general.architecture is 'gemma'; known: llama"),
        ({"pre": "deepseek-llm"}, "tokenizer.ggml.pre is 'deepseek-llm'; known: smollm, gpt-2"),
    ],
)
def test_another_model_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        convert(write(tmp_path / "m.gguf", weights(), **changes), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_tensor_that_is_not_known_is_named(tmp_path):
    more = weights() | {"rope_freqs.weight": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match="scaled rotary positions"):
        convert(write(tmp_path / "m.gguf", more), tmp_path / "m")
    more = weights() | {"blk.0.ffn_gate_inp.weight": np.ones((2, D), np.float32)}
    with pytest.raises(ValueError, match=r"'blk\.0\.ffn_gate_inp\.weight' is none of Llama's"):
        convert(write(tmp_path / "m.gguf", more), tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_what_is_no_gguf_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert(tmp_path / "m.gguf", tmp_path / "m")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="not a GGUF file, or a damaged one"):
        convert(tmp_path / "m.gguf", tmp_path / "m")
