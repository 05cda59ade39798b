"""Schedules by hand, AdamW against numpy, and which parameters are decayed, clipped or frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scope_jax.learning.optimizer import (
    OptimizerSpec,
    learning_rate,
    make_optimizer,
    matrix_mask,
    schedule_value,
)


def parameters():
    rng = np.random.default_rng(0)
    shapes = {
        "embedding": (5, 4),
        "layers": {"query": (2, 4, 6), "query_bias": (2, 6), "attention_norm": (2, 4)},
        "final_norm": (4,),
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def run(optimizer, params, gradients):
    state = optimizer.init(params)
    update = jax.jit(
        lambda g, s, p: (lambda u, s: (optax.apply_updates(p, u), s))(*optimizer.update(g, s, p))
    )
    for gradient in gradients:
        params, state = update(gradient, state, params)
    return params, state


def test_schedules_by_hand():
    def at(name, step):
        return float(schedule_value(name, 0.4, 0.1, step, 10))

    assert [at("constant", s) for s in (0, 5, 99)] == pytest.approx([0.4] * 3)
    assert [at("linear", s) for s in (-3, 0, 5, 10, 99)] == pytest.approx(
        [0.4, 0.4, 0.25, 0.1, 0.1]
    )
    # cosine: a quarter of the way it has gone (1 - cos 45 deg) / 2 = 0.1464 of the distance
    assert [at("cosine", s) for s in (0, 2.5, 5, 10, 11)] == pytest.approx(
        [0.4, 0.35607, 0.25, 0.1, 0.1], rel=1e-4
    )
    up = jax.jit(lambda step: schedule_value("linear", 0.0, 1.0, step, 4))
    assert [float(up(jnp.int32(s))) for s in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    with pytest.raises(
        ValueError, match="schedule 'step' is unknown; expected one of constant, linear, cosine"
    ):
        schedule_value("step", 1, 0, 0, 1)
    with pytest.raises(ValueError, match="over 0 steps"):
        schedule_value("linear", 1, 0, 0, 0)


def test_learning_rate_by_hand():
    spec = OptimizerSpec(
        learning_rate=0.8, warmup_steps=3, schedule="linear", steps=11, final_share=0.5
    )
    # 8 updates from 0.8 to 0.4 after the warm-up
    want = [0.2, 0.4, 0.6, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.4]
    np.testing.assert_allclose([float(learning_rate(spec, s)) for s in range(13)], want, rtol=1e-6)
    assert float(learning_rate(OptimizerSpec(learning_rate=0.5), 0)) == 0.5


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_matches_adamw_in_numpy(clip_norm):
    spec = OptimizerSpec(
        learning_rate=0.1, warmup_steps=1, schedule="cosine", steps=6, b1=0.8, b2=0.9, eps=1e-3,
        weight_decay=0.2, clip_norm=clip_norm,
    )  # fmt: skip
    params = parameters()
    rng = np.random.default_rng(1)
    gradients = [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        for _ in range(4)
    ]
    got, _ = run(make_optimizer(spec), params, gradients)

    decayed = {"embedding", "query"}
    names = ["embedding", "query", "query_bias", "attention_norm", "final_norm"]

    def flat(tree):
        return {**{k: v for k, v in tree.items() if k != "layers"}, **tree["layers"]}

    p = {k: np.asarray(v, np.float64) for k, v in flat(params).items()}
    m, v = {k: 0.0 * p[k] for k in names}, {k: 0.0 * p[k] for k in names}
    for step, gradient in enumerate(gradients):
        g = {k: np.asarray(x, np.float64) for k, x in flat(gradient).items()}
        norm = sum(float(np.sum(x**2)) for x in g.values()) ** 0.5
        assert norm > 0.5  # so that clipping does something
        scale = 1.0 if clip_norm is None else clip_norm / norm
        rate = [0.05, 0.1, 0.05 * (1 + np.cos(np.pi / 5)), 0.05 * (1 + np.cos(2 * np.pi / 5))][step]
        for k in names:
            m[k] = 0.8 * m[k] + 0.2 * scale * g[k]
            v[k] = 0.9 * v[k] + 0.1 * (scale * g[k]) ** 2
            direction = (m[k] / (1 - 0.8 ** (step + 1))) / (
                np.sqrt(v[k] / (1 - 0.9 ** (step + 1))) + 1e-3
            )
            p[k] = p[k] - rate * (direction + (0.2 * p[k] if k in decayed else 0.0))
    for k in names:
        np.testing.assert_allclose(flat(got)[k], p[k], rtol=1e-4, atol=1e-5, err_msg=k)


def test_matrices_are_told_from_stacked_norms_and_biases():
    def leaf(*shape):
        return jnp.zeros(shape)

    assert matrix_mask(parameters()) == {
        "embedding": True,
        "layers": {"query": True, "query_bias": False, "attention_norm": False},
        "final_norm": False,
    }
    # a flat table of names; a stacked vector of another name; adapters; a two-axis bias
    assert matrix_mask(
        {
            "layers/ffn_norm": leaf(2, 4),
            "layers/sink": leaf(2, 8),
            "layers/query_lora_a": leaf(2, 4, 3),
            "layers/key_bias": leaf(2, 3, 4),
            "prm_output": leaf(4, 2),
        }
    ) == {
        "layers/ffn_norm": False,
        "layers/sink": False,
        "layers/query_lora_a": True,
        "layers/key_bias": False,
        "prm_output": True,
    }


def test_zero_gradient_decays_matrices_only():
    params = parameters()
    zeros = jax.tree.map(jnp.zeros_like, params)
    got, _ = run(
        make_optimizer(OptimizerSpec(learning_rate=0.1, weight_decay=0.5)), params, [zeros]
    )
    np.testing.assert_allclose(got["layers"]["query"], params["layers"]["query"] * 0.95, rtol=1e-6)
    for name in ("query_bias", "attention_norm"):
        np.testing.assert_array_equal(got["layers"][name], params["layers"][name])
    np.testing.assert_array_equal(got["final_norm"], params["final_norm"])


def test_bfloat16_parameters_have_float32_moments():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), parameters())
    gradient = jax.tree.map(jnp.ones_like, params)
    optimizer = make_optimizer(OptimizerSpec(learning_rate=0.1, b2=0.999, clip_norm=None))
    got, state = run(optimizer, params, [gradient] * 3)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert {x.dtype for x in moments} == {jnp.dtype(jnp.float32)}
    nu = optax.tree_utils.tree_get(state, "nu")
    np.testing.assert_allclose(nu["embedding"], np.full((5, 4), 1 - 0.999**3), rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"schedule": "step"},
            "schedule = 'step' is unknown; one of constant, linear, cosine",
        ),
        ({"schedule": "cosine"}, "needs steps > warmup_steps; got steps = None, warmup_steps = 0"),
        ({"schedule": "linear", "steps": 5, "warmup_steps": 5}, "got steps = 5, warmup_steps = 5"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
        ({"b2": 1.0}, "b2 = 1.0; expected a number from 0 to below 1"),
        ({"eps": 0.0}, "eps = 0.0"),
        ({"final_share": 2}, "final_share = 2; expected a share from 0 to 1"),
        ({"clip_norm": 0}, "clip_norm = 0; expected a number above 0, or None"),
        ({"weight_decay": None}, "weight_decay = None"),
    ],
)
def test_bad_specs_are_named_in_one_line(wrong, message):
    with pytest.raises(ValueError) as error:
        OptimizerSpec(**wrong)
    assert message in str(error.value) and "\n" not in str(error.value)
