"""Model directories that are damaged, cut short or were never a model's: one line with the file's
name, exit code 2."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.fixtures import TINY, UNTIED, make_params, tiny_params
from support.tiny_runs import Tiny

from scope_jax import models, sweep
from scope_jax.models.hf import is_finite
from scope_jax.run import failures
from scope_jax.sweep.runs import Run
from scope_jax.text.tokenizers import end_ids


@pytest.fixture
def directory(tmp_path) -> Path:
    models.save(tmp_path, TINY, tiny_params())
    return tmp_path


def said(directory: Path, read=models.load) -> str:
    """The one line of what `read` raises, without the path of the directory."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read(directory)
    line, code = failures.ending(raised.value)
    assert code == 2 and line is not None and "\n" not in str(raised.value)
    assert str(directory) in line
    assert not failures.says_nothing_of_the_run(raised.value)
    return str(raised.value).replace(str(directory), "DIR")


# ---- files


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, 0.5, 0.99, -1])
def test_a_file_that_was_cut_short(directory, left):
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    assert said(directory).startswith("DIR/model.safetensors: not a whole safetensors file (")


@pytest.mark.parametrize(
    "damaged",
    [b"\xff" * 200, b"<html>404</html>" * 9, (50).to_bytes(8, "little") + b"{" * 50],
)
def test_a_file_that_is_none(directory, damaged):
    (directory / "model.safetensors").write_bytes(damaged)
    assert "model.safetensors: not a whole safetensors file" in said(directory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "weight_map is None, an object of files is needed"),
        ("[1]", "holds a list, an object is needed"),
        ("null", "holds a NoneType, an object is needed"),
        ("", "not JSON"),
        ('{"weight_map": ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"weight_map": []}', "weight_map is [], an object of files is needed"),
        ('{"weight_map": {}}', "weight_map is {}, an object of files is needed"),
        ('{"weight_map": {"a": 1}}', "the name of a file is needed for each tensor"),
        ('{"weight_map": {"a": null, "b": "x"}}', "the name of a file is needed for each tensor"),
        *(
            (json.dumps({"weight_map": {"a": name}}), "is no name of a file beside it")
            for name in (
                *("x" * 5000, "/etc/passwd", "../model.safetensors", "..", ".", "", "a/b", "a\\b"),
                *("a\nb", "a\x00b", "\ud83d", "\u65e5" * 100),
            )
        ),
    ],
)
def test_an_index_that_is_none(directory, text, message):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(text)
    line = said(directory)
    assert line.startswith("DIR/model.safetensors.index.json: ") and message in line


# ---- values of config.json


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 1_000_000_000, "num_hidden_layers is 1000000000, a number from 1 to"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0, a number from 1 to 10000 is needed"),
        ("num_hidden_layers", -1, "num_hidden_layers is -1, a number from 1 to"),
        ("num_hidden_layers", 1e9, "num_hidden_layers is 1000000000.0, a whole number is needed"),
        ("num_hidden_layers", True, "num_hidden_layers is True, a whole number is needed"),
        ("num_attention_heads", 0, "num_attention_heads is 0, a number from 1 to"),
        ("num_attention_heads", [4], "num_attention_heads is [4], a whole number is needed"),
        ("hidden_size", "32", "hidden_size is '32', a whole number is needed"),
        ("hidden_size", None, "hidden_size is None, a whole number is needed"),
        ("vocab_size", 4_000_000_000, "vocab_size is 4000000000, a number from 1 to 2147483647"),
        ("num_key_value_heads", "2", "num_key_value_heads is '2', a whole number"),
        ("num_key_value_heads", -2, "num_key_value_heads is -2, a number from 0 to"),
        ("head_dim", 7.5, "head_dim is 7.5, a whole number"),
        ("max_position_embeddings", None, "max_position_embeddings is None, a whole number"),
        ("max_position_embeddings", {}, "max_position_embeddings is {}, a whole number"),
        ("rms_norm_eps", "small", "rms_norm_eps is 'small', a number from 0 up is needed"),
        ("rms_norm_eps", None, "rms_norm_eps is None, a number from 0 up is needed"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is nan, a number from 0 up is needed"),
        ("rope_theta", float("inf"), "rope_theta is inf, a number from 0 up is needed"),
        ("rope_theta", [1e6], "rope_theta is [1000000.0], a number from 0 up is needed"),
        ("rope_scaling", "yarn", "rope_scaling is 'yarn', an object is needed"),
        ("rope_scaling", {"type": ["yarn"]}, "rotary scaling ['yarn'] is not supported"),
        (
            "rope_scaling",
            {"type": "linear", "factor": "2"},
            "rotary scaling: factor is '2', a number is needed",
        ),
        (
            "rope_scaling",
            {"type": "yarn", "factor": float("nan")},
            "rotary scaling: factor is nan, a number is needed",
        ),
        ("rope_parameters", {"rope_theta": "1e6"}, "rope_theta is '1e6', a number above 0"),
        ("rope_parameters", {"rope_theta": -5}, "rope_theta is -5, a number above 0"),
        ("tie_word_embeddings", "no", "tie_word_embeddings is 'no', true or false is needed"),
        ("use_sliding_window", 1, "use_sliding_window is 1, true or false is needed"),
        ("architectures", "Qwen2ForCausalLM", "architectures is 'Qwen2ForCausalLM', a list of"),
        ("architectures", [7], "architectures is [7], a list of names is needed"),
        ("layer_types", [["full_attention"]] * 2, "a list of names is needed"),
        ("layer_types", 3, "layer_types is 3, a list of names is needed"),
        ("eos_token_id", "0", "eos_token_id is '0', a whole number or several are needed"),
        ("eos_token_id", [0, None], "eos_token_id is [0, None], a whole number or several"),
        ("eos_token_id", {"a": 1}, "eos_token_id is {'a': 1}, a whole number or several"),
        ("bos_token_id", "<s>", "bos_token_id is '<s>', a whole number is needed"),
        ("pad_token_id", [1], "pad_token_id is [1], a whole number is needed"),
        ("model_type", ["qwen2"], "model_type ['qwen2'] is not supported"),
        ("model_type", None, "model_type None is not supported"),
    ],
)
def test_values_of_a_wrong_kind(directory, key, value, message):
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    raw.pop("rope_scaling", None)
    path.write_text(json.dumps(raw | {key: value}))
    line = said(directory)
    assert line.startswith("DIR/config.json: ") and message in line


def test_gemma_s_tables_of_layers(directory):
    raw = json.loads((directory / "config.json").read_text())
    raw |= {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    raw |= {"rope_parameters": {"full_attention": 3}, "hidden_act": None, "rope_scaling": None}
    (directory / "config.json").write_text(json.dumps(raw))
    assert "rope_parameters: an object is needed for each type of layer" in said(directory)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"eos_token_id": "x"}'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_other_contents_of_json_files(directory, name, text):
    if "eos" in text and name == "config.json":
        text = json.dumps(json.loads((directory / name).read_text()) | json.loads(text))
    (directory / name).write_text(text)
    assert said(directory).startswith(f"DIR/{name}: ")


@pytest.mark.parametrize("text", ["", "[1]", "null", "[" * 100_000, '{"eos_token_id": "x"}'])
def test_end_tokens_are_read_from_sound_files(checkpoints: Tiny, tmp_path, text):
    shutil.copytree(checkpoints.policy, tmp_path / "policy")
    (tmp_path / "policy" / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"generation_config\.json: "):
        end_ids(tmp_path / "policy")


# ---- weights that are not finite


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_finite_by_the_bits(dtype):
    largest = ml_dtypes.finfo(dtype).max
    sound = np.array([[0, -0.0, 1, -largest], [largest, 1e-7, -1, 3]], dtype)
    assert is_finite(sound) and is_finite(sound[:, ::2]) and is_finite(sound[:0])
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        for place in ((0, 0), (1, 3)):
            changed = sound.copy()
            changed[place] = bad
            assert not is_finite(changed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"],
)
def test_a_weight_that_is_not_finite_is_named(directory, dtype, bad, name):
    path = directory / "model.safetensors"
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    tensors = {key: value.astype(kind) for key, value in load_file(path).items()}
    save_file(tensors, path)
    models.load(directory)
    tensors[name].reshape(-1)[-1] = bad
    save_file(tensors, path)
    assert said(directory) == (
        f"DIR/model.safetensors: weight {name} holds values that are not finite (NaN or infinity);"
        " get the file again, or take another checkpoint"
    )


def test_a_head_and_adapters_that_are_not_finite(tmp_path):
    prm = UNTIED.with_head("prm")
    params = make_params(prm, 6)
    params["prm_output"] = params["prm_output"].at[3, 1].set(jnp.nan)
    models.save(tmp_path / "prm", prm, params)
    assert "weight score.2.weight holds values" in said(tmp_path / "prm")
    spec = models.LoraSpec(2, 4.0, ("query",))
    lora = models.init_lora(TINY, spec, jnp.array([0, 1], jnp.uint32))
    lora["layers"]["query_b"] = lora["layers"]["query_b"].at[1, 0, 0].set(jnp.inf)
    models.save_lora(tmp_path / "lora", TINY, lora, spec)
    line = said(tmp_path / "lora", lambda directory: models.load_lora(directory, TINY))
    assert "layers.1.self_attn.q_proj.lora_B.weight holds values that are not finite" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": "2"}, "r and lora_alpha must be numbers"),
        ({"lora_alpha": None}, "r and lora_alpha must be numbers"),
        ({"target_modules": "q_proj"}, "target_modules: a list of names is needed"),
        ({"target_modules": [1]}, "target_modules: a list of names is needed"),
    ],
)
def test_adapters_that_are_damaged(tmp_path, change, message):
    spec = models.LoraSpec(2, 4.0, ("query",))
    lora = models.init_lora(TINY, spec, jnp.array([0, 1], jnp.uint32))
    models.save_lora(tmp_path, TINY, lora, spec)
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text())

    def read(directory: Path):
        return models.load_lora(directory, TINY)

    path.write_text(json.dumps(raw | change))
    assert message in said(tmp_path, read)
    path.write_text("[1]")
    assert "adapter_config.json: holds a list" in said(tmp_path, read)
    path.write_text(json.dumps(raw))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    assert "adapter_model.safetensors: not a whole safetensors file" in said(tmp_path, read)


# ---- runs


def test_a_sweep_records_a_damaged_model_and_goes_on(checkpoints: Tiny, tmp_path):
    """A download that broke: the run is recorded as failed, the worker goes on."""
    runs = []
    for name, damage in (
        ("cut", lambda folder: cut(folder / "model.safetensors")),
        ("config", lambda folder: (folder / "config.json").write_text("[1]")),
    ):
        folder = tmp_path / name
        shutil.copytree(checkpoints.policy, folder)
        damage(folder)
        settings = checkpoints.settings("grpo", {"steps": 1, "models.policy": str(folder)})
        settings = {k: v for k, v in settings.items() if not k.startswith("task.options.")}
        runs.append(Run(name, "configs/run.py:grpo,arithmetic", settings, {}))
    records = tmp_path / "records"
    assert sweep.work(runs, tmp_path / "work", records) == (0, 2)
    for name, file in (("cut", "model.safetensors"), ("config", "config.json")):
        reason = json.loads((records / f"{name}.failed.json").read_text())["reason"]
        assert f"{tmp_path / name / file}: " in reason


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
