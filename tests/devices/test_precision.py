"""Products of float32 arrays ask for float32 on accelerators, read off the lowered programs: of the
trainer's own, for platforms that need not be here."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scope_jax import learning, models, rollout
from scope_jax.devices import precision
from scope_jax.devices.precision import matmul_precision
from scope_jax.devices.programs import Program
from scope_jax.models.decoder import for_device
from scope_jax.models.weights import abstract, init
from scope_jax.prm.model import score_program
from scope_jax.rollout.generate import generate_program, make_request

LM = models.ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    ffn_size=32,
    tied=True,
)
PRM = models.ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    ffn_size=32,
    head="prm",
)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the programs were to run on a GPU."""
    monkeypatch.setattr(precision, "platform", lambda: "gpu")


def products(program: Program, platform: str, *arguments: Any, **static: Any) -> Counter:
    """How often each (dtype of the operands, precision) stands in the program for `platform`; the
    dtype is the narrower of the two."""
    traced = program._jitted().trace(*arguments, **static)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found: Counter = Counter()
    for line in text.splitlines():
        if "stablehlo.dot_general" in line:
            asked = re.search(r"precision = \[(\w+), \w+\]", line)
            types = re.findall(r"tensor<(?:\d+x)*(\w+)>", line.split(" : ")[1].split("->")[0])
            found[min(types), asked[1] if asked else "DEFAULT"] += 1
    return found


def rollout_products(platform: str, dtype: str = "float32") -> Counter:
    rows = rollout.from_prompts([[1, 2, 3], [4, 5]], 2, 16)
    sampling = rollout.SampleSpec(max_new_tokens=8, end_ids=(0,))
    spec = rollout.decode_spec(sampling, rows=4, buffer=16, longest=3, shared_prefix=2)
    request = make_request(rows, jax.random.key(0), sampling)
    weights = abstract(LM, jnp.dtype(dtype))
    return products(generate_program, platform, weights, request, for_device(LM), spec)


def update_products(platform: str, dtype: str = "float32") -> Counter:
    rows = rollout.from_prompts([[1, 2, 3], [4, 5]], 2, 16)
    rows = rows.replace(length_B=rows.length_B + 8)
    arrays = {"advantage": jnp.ones(4)}
    spec = learning.UpdateSpec(
        learning.LossSpec(), learning.OptimizerSpec(learning_rate=1e-3), dtype=dtype
    )
    arrays |= dict(zip(("on", "off"), learning.token_weights(rows, spec.loss), strict=True))
    packed = learning.pack(rows, arrays, 2)
    state = learning.init_state(
        init(LM, jax.random.key(0)), learning.make_optimizer(spec.optimizer)
    )
    update = learning.update_program(LM, spec).whole
    return products(update, platform, state, packed, {"teacher_weight": jnp.float32(1)})


def score_products(platform: str) -> Counter:
    tokens, length = jnp.zeros((2, 8), jnp.int32), jnp.full(2, 8, jnp.int32)
    weights = abstract(PRM, jnp.float32)
    return products(score_program, platform, weights, PRM, tokens, length, choice=None)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_float32_products_ask_for_float32_on_accelerators(platform: str, on_gpu: None):
    counts = rollout_products(platform), update_products(platform), score_products(platform)
    for found in counts:
        assert set(found) == {("f32", "HIGHEST")}, found
    # Forward, and two products of the backward pass for each of it.
    assert counts[1].total() >= 3 * 7
    with matmul_precision("tf32"):
        for found in (rollout_products(platform), update_products(platform)):
            assert set(found) == {("f32", "DEFAULT")}, found
    assert set(score_products(platform)) == {("f32", "HIGHEST")}  # as before


def test_products_with_a_bfloat16_operand_are_as_they_were(on_gpu: None):
    for count in (rollout_products, update_products):
        asked = count("cuda", "bfloat16")
        with matmul_precision("tf32"):
            left = count("cuda", "bfloat16")
        assert asked["bf16", "DEFAULT"] == left["bf16", "DEFAULT"] > 5
        assert ("bf16", "HIGHEST") not in asked and ("f32", "HIGHEST") not in left
        # Those of a float32 and a bfloat16 array are made ones of float32 while lowering.
        assert asked["f32", "DEFAULT"] + asked["f32", "HIGHEST"] == left["f32", "DEFAULT"]


def test_on_cpu_nothing_is_asked():
    assert set(rollout_products("cpu")) == {("f32", "DEFAULT")}
    assert set(update_products("cpu")) == {("f32", "DEFAULT")}


def test_a_precision_that_a_product_names_itself_stays(on_gpu: None):
    named = Program(lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGH))
    assert set(products(named, "cuda", jnp.ones((2, 2)), jnp.ones((2, 2)))) == {("f32", "HIGH")}


def test_the_rewritten_program_computes_the_same(on_gpu: None):
    """Loops, branches, custom gradients, static and named arguments, results as trees."""

    @jax.custom_vjp
    def cube(x: jax.Array) -> jax.Array:
        return x @ x @ x

    cube.defvjp(lambda x: (cube(x), x), lambda x, g: (2 * g @ x,))

    def run(x: jax.Array, times: int, *, scale: tuple, up: bool = True) -> dict[str, Any]:
        body = jax.checkpoint(lambda c, _: (jnp.tanh(c @ c) * scale[0], jnp.sum(c)))
        last, sums = jax.lax.scan(body, x, None, length=times)
        last = jax.lax.cond(sums[0] > 0, lambda a: a @ a.T, lambda a: a, last)
        last = jax.lax.while_loop(lambda a: jnp.sum(a) > 1, lambda a: 0.1 * a @ a, last)
        value, slope = jax.value_and_grad(lambda a: jnp.sum(cube(a)))(x)
        return {"last": last, "sums": (sums, value), "slope": slope if up else None}

    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)), jnp.float32)
    plain = jax.jit(run, static_argnums=1, static_argnames="up")(x, 3, scale=(0.5, 1.0))
    program = Program(run, static_argnums=1, static_argnames="up")
    exact = program(x, 3, scale=(0.5, 1.0))
    assert jax.tree.structure(plain) == jax.tree.structure(exact)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), plain, exact))
    found = products(program, "cuda", x, 3, scale=(0.5, 1.0))
    assert set(found) == {("f32", "HIGHEST")} and found.total() == 6
    assert program(x, 3, scale=(0.5, 1.0), up=False)["slope"] is None
