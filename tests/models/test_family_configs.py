"""`config.json` of SmolLM3, OLMo and Phi-3: what is read, written and refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.families_fixture import FAMILIES

from scope_jax import models, rollout
from scope_jax.models.rope import RopeScaling, frequencies


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "smollm3",
            {"no_rope_layers": [1, 1, 0]},
            r"has 3 entries, 1 \(with positions\) or 0 for each of 4 layers is needed$",
        ),
        (
            "smollm3",
            {"no_rope_layers": [1, 2, 1, 0]},
            r"no_rope_layers is \[1, 2, 1, 0\], a list of 0 and 1 is needed$",
        ),
        ("smollm3", {"attention_dropout": 0.1}, r"0.1 is not supported for smollm3; 0 is$"),
        ("smollm3", {"partial_rotary_factor": 0.5}, r"not supported for smollm3; whole heads"),
        ("olmo2", {"clip_qkv": 8.0}, r"clip_qkv 8.0 is not supported for olmo2; null is$"),
        ("olmo3", {"rope_theta": 1e4}, r"rope_theta 10000.0 alone is not supported for olmo3;"),
        ("olmo3", {"sliding_window": None}, r"but no sliding_window is in force$"),
        (
            "olmo3",
            {"rope_parameters": {"rope_theta": 1.0}},
            r"must hold full_attention and sliding_attention$",
        ),
        ("olmo3", {"partial_rotary_factor": 0.5}, r"not supported for olmo3; whole heads"),
        (
            "phi3",
            {"rope_parameters": {"partial_rotary_factor": "all"}},
            r"partial_rotary_factor is 'all', a number is needed$",
        ),
        (
            "phi4_mini",
            {"original_max_position_embeddings": 1},
            r"original_max_position_embeddings is 1, a number from 2 on is needed$",
        ),
        ("phi3", {"lm_head_bias": True}, r"lm_head_bias True is not supported for phi3; false is$"),
        ("phi4_mini", {"full_attn_mod": 2}, r"full_attn_mod 2 is not supported for phi3; 1 is$"),
        (
            "phi3",
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            r"'yarn' is not supported; known: default, longrope$",
        ),
        (
            "phi4_mini",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6}},
            r"'longrope': long_factor has 0 numbers, 6 are needed, one for each two rotated",
        ),
        (
            "phi4_mini",
            {"rope_scaling": {"type": "su", "short_factor": "1.0"}},
            r"short_factor is '1.0', a list of numbers above 0 is needed$",
        ),
        (
            "phi4_mini",
            {"partial_rotary_factor": 0.7},
            r"0.7 of heads of 16 rotates 11 numbers; an even number from 2 up to the head's size",
        ),
        ("phi3", {"sliding_window": 5, "layer_types": ["full_attention"] * 3}, r"for phi3; all"),
    ],
)
def test_configs_that_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message) as error:
        models.config_from_json(FAMILIES[name][0] | change)
    assert "\n" not in str(error.value)


def test_defaults_of_published_files():
    """Keys that a file leaves out have the defaults of transformers."""
    bare = {
        key: 8 for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    } | {"num_attention_heads": 2}
    smol, olmo2, olmo3, phi = (
        models.config_from_json(bare | {"model_type": name})
        for name in ("smollm3", "olmo2", "olmo3", "phi3")
    )
    assert smol.unrotated_layers == (False, False, False, True) * 2 and smol.window == 0
    assert (olmo3.window, olmo3.local_layers) == (4096, (True, True, True, False) * 2)
    assert (olmo2.window, phi.window) == (0, 0)
    assert [c.rope_theta for c in (smol, olmo2, olmo3, phi)] == [2e6, 1e4, 5e5, 1e4]
    assert [c.norm_eps for c in (smol, olmo2, olmo3, phi)] == [1e-6, 1e-5, 1e-5, 1e-5]
    assert [c.tied for c in (smol, olmo2, olmo3, phi)] == [True, False, False, False]


def test_olmo3_in_both_generations():
    raw, _ = FAMILIES["olmo3"]
    old = models.config_from_json(raw)
    assert (old.rope(True), old.rope(False)[1].kind) == ((500000.0, RopeScaling()), "yarn")
    new = {key: value for key, value in raw.items() if not key.startswith("rope")} | {
        "rope_parameters": {
            "full_attention": raw["rope_scaling"] | {"rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        }
    }
    assert models.config_from_json(new) == old


@pytest.mark.parametrize(
    ("scaling", "most"),
    [
        (RopeScaling(), 100),
        (RopeScaling("linear", factor=4.0), 400),
        (RopeScaling("yarn", factor=4.0, original_positions=50), 200),
        (RopeScaling("yarn", factor=4.0, original_positions=25), 100),
        (RopeScaling("llama3", factor=8.0, original_positions=50), 100),  # its config says it all
    ],
)
def test_how_long_rows_may_be(scaling: RopeScaling, most: int):
    raw, _ = FAMILIES["qwen2"]
    config = dataclasses.replace(
        models.config_from_json(raw), max_positions=100, rope_scaling=scaling
    )
    config.check_rows(most, "prompts")
    with pytest.raises(ValueError, match=rf"rows of {most + 1} tokens \(prompts\): .* for {most}"):
        config.check_rows(most + 1, "prompts")


def test_longrope_by_hand():
    """Phi-4-mini: 8 times its first context of 48 positions; what is longer than that is refused,
    and what it is, is written."""
    raw, _ = FAMILIES["phi4_mini"]
    config = models.config_from_json(raw)
    assert (config.max_positions, config.rotary_size, config.window) == (48, 12, 0)
    scaling = config.rope_scaling
    np.testing.assert_allclose(
        scaling.attention_factor, np.sqrt(1 + np.log(8) / np.log(48)), rtol=1e-12
    )
    plain = 1000.0 ** (-np.arange(0, 12, 2) / 12)
    np.testing.assert_allclose(
        frequencies(1000.0, 12, scaling), plain / np.array([1, 1.1, 1.25, 1.5, 2, 3]), rtol=1e-6
    )
    written = models.config.config_to_json(config)
    for key in ("max_position_embeddings", "original_max_position_embeddings", "rope_scaling"):
        assert written[key] == raw[key]
    assert (
        models.config_from_json(raw | {"rope_scaling": raw["rope_scaling"] | {"type": "su"}})
        == config
    )
    params = models.abstract(config)
    message = r"rows of 49 positions: longrope is supported up to original_max_position_.*, 48;"

    def states(width: int) -> jax.ShapeDtypeStruct:
        tokens = jax.ShapeDtypeStruct((1, width), jnp.int32)
        return jax.eval_shape(lambda p, t: models.hidden_states(p, config, t), params, tokens)

    assert states(48).shape == (1, 48, 64)
    with pytest.raises(ValueError, match=message):
        states(49)
    rows = rollout.from_prompts([[1]], 1, 49)
    with pytest.raises(ValueError, match=message):
        rollout.generate(params, config, rows, jax.random.key(0), rollout.SampleSpec())


def test_adapters_of_fused_projections_are_refused():
    config = models.config_from_json(FAMILIES["phi3"][0])
    with pytest.raises(ValueError, match=r"query of phi3 is a part of qkv_proj, .* output, down$"):
        models.lora_table(config, models.LoraSpec())
    table = models.lora_table(config, models.LoraSpec(targets=("output", "down")))
    assert "base_model.model.model.layers.{}.mlp.down_proj.lora_A.weight" in {
        weight.hf for weight in table.values()
    }
