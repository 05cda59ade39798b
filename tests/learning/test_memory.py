"""What saves memory: the same numbers (or a stated error) as without, and bytes counted."""

import dataclasses
import functools
import gc
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from support.fixtures import TINY, mesh_of, on_mesh, tiny_params
from support.one_update import (
    GROUP,
    adam_state,
    batch,
    direct_gradient,
    numbers,
    objective,
)
from support.tiny_runs import Tiny

from scope_jax import learning, models, rollout
from scope_jax import train as train_module
from scope_jax.configuration import default_config, train_config
from scope_jax.devices.mesh import assert_sharded, put_rows
from scope_jax.learning.optimizer import matrix_mask, round_at_random
from scope_jax.models import attention, cache
from scope_jax.models.attention import plain
from scope_jax.models.weights import flatten
from scope_jax.run import Checkpoints
from scope_jax.training.actors import Actors
from scope_jax.training.learner import Learner
from scope_jax.types import Owner, Rollout

KINDS = ("float32", "bfloat16", "factored")


def bytes_of(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


# --- moments
# ------------------------------------------------------------------------------------------------


@functools.cache
def regression() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs [256, 24] of uneven size, targets [256, 16] of a matrix, start."""
    stream = np.random.RandomState(0)
    inputs = stream.standard_normal((256, 24)) * np.geomspace(0.1, 3, 24)
    return tuple(
        np.asarray(x, np.float32)
        for x in (inputs, inputs @ stream.standard_normal((24, 16)), np.zeros((24, 16)))
    )  # type: ignore[return-value]


@functools.cache
def losses(kind: str, dtype: str = "float32") -> list[float]:
    """Mean squared error before each of 50 steps of AdamW, and after the last."""
    x, y, start = regression()
    spec = learning.OptimizerSpec(learning_rate=0.05, b2=0.999, clip_norm=None, moments=kind)
    optimizer = learning.make_optimizer(spec)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean((x @ p["w"].astype(jnp.float32) + p["bias"][None] - y) ** 2)
        )(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = {"w": jnp.asarray(start, dtype), "bias": jnp.zeros(16)}
    state, seen = optimizer.init(params), []
    for _ in range(51):
        params, state, loss = step(params, state)
        seen.append(float(loss))
    return seen


def test_fifty_steps_beside_float32_moments():
    """bfloat16 goes the same way; factored is another estimate of the second moment, and on this
    problem a better one."""
    wanted, short, factored = losses("float32"), losses("bfloat16"), losses("factored")
    assert wanted[0] == short[0] == factored[0] and wanted[-1] < 0.12 * wanted[0]
    assert wanted != short
    np.testing.assert_allclose(short, wanted, rtol=0.03)
    assert factored[-1] < wanted[-1] and factored != wanted


def test_factored_moments_by_numpy():
    """Three steps on a stacked matrix and a vector, in float64; the first moment is rounded as
    stored."""
    stream = np.random.RandomState(1)
    params = {"layers": {"up": jnp.ones((2, 3, 5)), "ffn_norm": jnp.ones((2, 5))}}
    spec = learning.OptimizerSpec(
        learning_rate=0.1,
        b1=0.8,
        b2=0.9,
        eps=1e-3,
        weight_decay=0.5,
        clip_norm=None,
        moments="factored",
    )
    optimizer = learning.make_optimizer(spec)
    state, step = optimizer.init(params), jax.jit(optimizer.update)

    def rounded(x):
        return np.asarray(jnp.asarray(x, jnp.float32).astype(jnp.bfloat16), np.float64)

    m, row, column, plain = (np.zeros(shape) for shape in ((2, 3, 5), (2, 3), (2, 5), (2, 5)))
    for number in range(1, 4):
        grads = {
            "up": stream.standard_normal((2, 3, 5)),
            "ffn_norm": stream.standard_normal((2, 5)),
        }
        updates, state = step(
            {"layers": {k: jnp.asarray(g, jnp.float32) for k, g in grads.items()}}, state, params
        )
        g = grads["up"]
        m = 0.8 * m + 0.2 * g
        row = 0.9 * row + 0.1 * (g**2).mean(-1)
        column = 0.9 * column + 0.1 * (g**2).mean(-2)
        plain = 0.9 * plain + 0.1 * grads["ffn_norm"] ** 2
        v = row[:, :, None] * column[:, None, :] / row.mean(-1)[:, None, None]
        direction = (m / (1 - 0.8**number)) / (np.sqrt(v / (1 - 0.9**number)) + 1e-3)
        np.testing.assert_allclose(
            updates["layers"]["up"], -0.1 * (direction + 0.5), rtol=2e-4, atol=2e-6
        )
        m = rounded(m)
    adam = adam_state(state)
    np.testing.assert_allclose(adam.nu["layers"]["up"]["row"], row, rtol=1e-5)
    np.testing.assert_allclose(adam.nu["layers"]["up"]["column"], column, rtol=1e-5)
    np.testing.assert_allclose(adam.nu["layers"]["ffn_norm"], plain, rtol=1e-5)  # no matrix: whole
    # The means over rows and over columns of a matrix of rank 1 give it back.
    rank_1 = np.outer(np.arange(1, 4), np.arange(1, 6)) ** 0.5
    state = optimizer.init({"w": jnp.ones((3, 5))})
    updates, _ = step({"w": jnp.asarray(rank_1, jnp.float32)}, state, {"w": jnp.zeros((3, 5))})
    np.testing.assert_allclose(updates["w"], -0.1 * rank_1 / (rank_1 + 1e-3), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_moves_nothing(kind):
    params = {"w": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    optimizer = learning.make_optimizer(learning.OptimizerSpec(learning_rate=0.1, moments=kind))
    updates, state = jax.jit(optimizer.update)(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    assert all(
        (np.asarray(x) == 0).all() for x in jax.tree.leaves((updates, adam_state(state)[1:]))
    )


def test_a_second_moment_that_falls_and_rises_in_bfloat16():
    """Squares of gradients fall from 1 to 0.01 and rise again: rounded at random, v follows
    float32; rounded to the nearest, which is what a cast does, it stands still on the way down."""
    squares = np.repeat([1.0, 0.01, 0.3], [3000, 2000, 1000]).astype(np.float32)

    def step(carry, given):
        number, square = given
        exact, random, nearest = carry

        def average(v):
            return 0.999 * v.astype(jnp.float32) + 0.001 * square

        carry = (
            average(exact),
            round_at_random(average(random), number, 3),
            average(nearest).astype(jnp.bfloat16),
        )
        return carry, (
            exact[0],
            jnp.mean(random.astype(jnp.float32)),
            nearest[0].astype(jnp.float32),
        )

    start = (jnp.zeros(4000), jnp.zeros(4000, jnp.bfloat16), jnp.zeros(4000, jnp.bfloat16))
    (exact, random, _), seen = jax.lax.scan(step, start, (jnp.arange(6000), jnp.asarray(squares)))
    seen = np.asarray(seen)
    np.testing.assert_allclose(seen[1, 500:], seen[0, 500:], rtol=0.01)  # the mean of 4000 elements
    spread = np.asarray(random, np.float32) / np.asarray(exact)
    assert 0.01 < spread.std() < 0.06
    assert seen[0, 4999] == pytest.approx(0.14, abs=0.02) and seen[2, 4999] == seen[2, 3001] > 0.2


def test_rounding_at_random_by_hand():
    step = jnp.int32(7)
    # Between two neighbours of bfloat16, 1 and 1 + 1/128, a quarter of the way.
    x = jnp.full((300, 200), 1 + 1 / 512, jnp.float32)
    found = np.asarray(round_at_random(x, step, 0), np.float32)
    assert set(np.unique(found)) == {1.0, 1 + 1 / 128}
    assert (found > 1).mean() == pytest.approx(0.25, abs=0.01)
    assert np.abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 0.02
    for other in (round_at_random(x, step + 1, 0), round_at_random(x, step, 1)):
        assert (np.asarray(other, np.float32) != found).mean() == pytest.approx(
            2 * 0.25 * 0.75, abs=0.01
        )
    # What bfloat16 can say stays as it is.
    exact = jnp.array([0.0, 1.0, 3.5, 2.0**-100, jnp.inf], jnp.float32)
    np.testing.assert_array_equal(np.asarray(round_at_random(exact, step, 0), np.float32), exact)


@functools.cache
def updated(kind: str, name: str):
    """(parameters, statistics, state) after two updates; layouts are asserted before and after."""
    spec = learning.OptimizerSpec(
        learning_rate=0.01,
        b1=0.9,
        b2=0.99,
        eps=1e-3,
        weight_decay=0.1,
        clip_norm=0.05,
        moments=kind,
    )
    optimizer = learning.make_optimizer(spec)
    update = learning.make_update(objective(), optimizer, TINY)
    with on_mesh(name) as params:
        state = learning.init_state(params, optimizer)
        layouts = jax.tree.map(lambda x: x.sharding, state)
        for _ in range(2):
            packed = learning.pack(*put_rows(batch()), 2)
            state, stats = update(state, packed, {"teacher_weight": jnp.float32(0.5)})
            assert_sharded(state, layouts)
    return numbers(state.params), numbers(stats), state


@pytest.mark.parametrize("kind", KINDS[1:])
def test_moments_on_a_mesh(kind):
    """2x2x2 against one device; each leaf of the state on the axes of its parameter."""
    wanted, _, _ = updated(kind, "1")
    params, _, state = updated(kind, "2x2x2")
    for name, value in wanted.items():
        # A first moment that is rounded the other way moves its weight by 1/256 of a step of 0.01.
        np.testing.assert_allclose(params[name], value, atol=5e-5, err_msg=name)
    shardings = models.shardings(TINY, mesh_of("2x2x2"))
    adam = adam_state(state.opt_state)
    assert_sharded(adam.mu, shardings)
    assert {x.dtype for x in jax.tree.leaves(adam.mu)} == {jnp.dtype(jnp.bfloat16)}
    if kind == "bfloat16":
        assert_sharded(adam.nu, shardings)
        return

    def spec(x):
        return (x.sharding.spec, x.shape, x.dtype)

    gate, embed = adam.nu["layers"]["gate"], adam.nu["embed"]
    assert spec(gate["row"]) == (P(None, "fsdp"), (2, 32), jnp.float32)
    assert spec(gate["column"]) == (P(None, "tensor"), (2, 64), jnp.float32)
    assert spec(embed["row"]) == (P(("fsdp", "tensor")), (48,), jnp.float32)
    assert embed["column"].shape == (32,) and embed["column"].sharding.is_fully_replicated
    assert spec(adam.nu["layers"]["query_bias"]) == (P(None, "tensor"), (2, 32), jnp.float32)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_checkpoints_of_moments(kind, tmp_path: Path):
    """What is restored has the bits, the dtypes and the layouts that were saved, also on another
    mesh."""
    _, _, state = updated(kind, "2x2x2")
    optimizer = learning.make_optimizer(learning.OptimizerSpec(moments=kind))
    with Checkpoints(tmp_path) as kept:
        kept.save(2, state, {})
        for name in ("2x2x2", "1"):
            with on_mesh(name) as params:
                like = learning.abstract_state(learning.init_state(params, optimizer))
            _, restored, _ = kept.restore(like)
            for one, two, wanted in zip(
                *map(jax.tree.leaves, (state, restored, like)), strict=True
            ):
                assert one.dtype == two.dtype and two.sharding.is_equivalent_to(
                    wanted.sharding, two.ndim
                )
                np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_bytes_of_moments():
    params = tiny_params()
    count = sum(x.size for x in jax.tree.leaves(params))

    def size(kind):
        return (
            bytes_of(learning.make_optimizer(learning.OptimizerSpec(moments=kind)).init(params))
            - 2 * 4
        )  # counters

    matrices = jax.tree.map(
        lambda x, matrix: (x.size / x.shape[-1] + x.size / x.shape[-2]) if matrix else x.size,
        params,
        matrix_mask(params),
    )
    assert size("float32") == 8 * count and size("bfloat16") == 4 * count
    assert size("factored") == 2 * count + 4 * sum(jax.tree.leaves(matrices)) < 2.5 * count


# --- what is recomputed
# ---------------------------------------------------------------------------------------------

DEEP = models.ModelConfig(
    vocab_size=64,
    hidden_size=64,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    ffn_size=256,
    max_positions=256,
)


@functools.cache
def deep_gradient(remat: str) -> tuple[dict[str, np.ndarray], int]:
    """(gradient, bytes of temporaries of its program) of log-probs of 8 rows of 64 slots; layers
    scanned, as on accelerators."""
    tokens = np.random.RandomState(5).randint(0, 64, (8, 64)).astype(np.int32)
    config = dataclasses.replace(DEEP, remat=remat)

    def loss(p):
        return jnp.mean(models.token_logprobs(p, config, tokens)[0])

    params = models.init(DEEP, jax.random.key(0))
    program = jax.jit(jax.grad(loss)).lower(params).compile()
    return numbers(program(params)), program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", ["dots", "layer"])
def test_the_gradient_is_the_same_whatever_is_recomputed(remat):
    wanted, found = deep_gradient("none")[0], deep_gradient(remat)[0]
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
        assert np.abs(value).max() > 1e-5, name


def test_memory_falls_with_what_is_recomputed():
    none, dots, layer = (deep_gradient(remat)[1] for remat in models.REMAT)
    # A layer keeps 8 x 64 x (4 x 64 of projections and 3 x 256 of the feed-forward, and more)
    # floats; `layer` only 8 x 64 x 64.
    assert none > 2 * dots > 4 * layer
    assert none - layer > 8 * (8 * 64 * (4 * 64 + 3 * 256)) * 4


# --- rows of like length
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "buckets", "micro", "together"),
    [
        ("1", 2, 1, True),
        ("1", 4, 2, False),
        ("2x2x2", 2, 2, True),
        pytest.param("8x1x1", 2, 1, True, marks=pytest.mark.long),
        pytest.param("2x2x2", 2, 1, False, marks=pytest.mark.long),
    ],
)
def test_buckets_give_the_same_gradient(name, buckets, micro, together):
    loss, wanted, wanted_stats = direct_gradient()
    update = learning.make_update(objective(), optax.sgd(1.0), TINY, micro)
    rows, arrays = batch()
    with on_mesh(name) as params:
        state = learning.init_state(params, optax.sgd(1.0))
        packed = []
        unit = GROUP if together else 1
        order = learning.length_order(rows, unit, buckets)
        for index in order:
            part = put_rows(
                (
                    jax.tree.map(lambda x, index=index: x[index], rows),
                    {k: x[index] for k, x in arrays.items()},
                )
            )
            packed.append(
                learning.pack(*part, unit, micro, learning.PackSizes((8,), (8, 16, 24, 32)))
            )
        assert len({part["completion"].shape for part in packed}) > 1  # parts of several widths
        assert sum(part["completion"].size for part in packed) < 8 * 32
        state, stats = update(state, packed, {"teacher_weight": jnp.float32(0.5)})
        assert_sharded(state.params, models.shardings(TINY, mesh_of(name)))
    after = numbers(state.params)
    for key, before in numbers(tiny_params()).items():
        np.testing.assert_allclose(before - after[key], wanted[key], atol=1e-5, err_msg=key)
    assert float(stats["loss"]) == pytest.approx(loss, abs=1e-5) and int(state.updates) == 1
    for key, value in wanted_stats.items():
        np.testing.assert_allclose(
            stats[key.strip("[]'")], value, rtol=1e-4, atol=1e-5, err_msg=key
        )


@pytest.mark.parametrize(("buckets", "micro"), [(4, 2), pytest.param(2, 4, marks=pytest.mark.long)])
def test_a_learner_with_buckets_takes_the_same_step(buckets, micro):
    """All that an update computes of its rows: log-probs of the sampler's policy and of the
    reference, then two updates."""
    rows, arrays = batch()

    def step(settings: dict) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        config = default_config()
        config.rollout.prompts, config.rollout.group, config.rollout.new_tokens = 4, GROUP, 28
        config.loss.kl_weight, config.loss.old_logp, config.training.epochs = 0.05, "recompute", 2
        config.optimizer.learning_rate, config.optimizer.eps = 0.01, 1e-3
        config.training.update(settings)
        mesh = mesh_of("1")
        with jax.set_mesh(mesh):
            actors = Actors(TINY, tiny_params(), None, None, None, None)
            learner = Learner(train_config(config), actors, mesh, jax.random.key(0))
            metrics = learner.update(
                put_rows(rows), GROUP, arrays["advantage"], np.ones(8, bool), jax.random.key(1), 0
            )
        return numbers(learner.state.params), metrics

    wanted, metrics = step({})
    params, found = step({"length_buckets": buckets, "micro_batches": micro})
    for name, value in wanted.items():
        np.testing.assert_allclose(params[name], value, atol=1e-5, err_msg=name)
    assert found.keys() == metrics.keys() and found["update/count"] == 2
    for name, value in metrics.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"training.length_buckets": 3},
            "length_buckets = 3 does not divide rollout.prompts / training.mini_batches = 16",
        ),
        (
            {"training.length_buckets": 4, "training.micro_batches": 6},
            "length_buckets = 4 and micro_batches = 6: one must be a mul",
        ),
        ({"training.length_buckets": 0}, "config.training.length_buckets = 0 must be at least 1"),
        (
            {"training.remat": "all"},
            "config.training.remat = 'all' is unknown; one of auto, none, dots, layer",
        ),
        (
            {"optimizer.moments": "int8"},
            ("config.optimizer.moments = 'int8' is unknown; one of float32, bfloat16, factored"),
        ),
    ],
)
def test_bad_settings(settings, message):
    config = default_config()
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=message):
        train_config(config)


# --- attention of long rows
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 37, "traced"])
def test_parts_of_long_rows_are_the_rows(window, monkeypatch):
    """Values and gradients of both kinds of attention, in parts of 8 queries and in one piece; the
    last part is not full."""
    stream = np.random.RandomState(2)
    arrays = [
        jnp.asarray(stream.standard_normal(shape), jnp.float32)
        for shape in ((2, 83, 2, 3, 4), (2, 83, 2, 4), (2, 83, 2, 4))
    ]
    seen = jnp.array([9, 12])

    def run(long: bool):
        monkeypatch.setattr(plain, "LONG", 100 if long else 10**9)
        monkeypatch.setattr(plain, "PART", 8)

        @jax.jit
        def both(q, k, v, traced):
            width = traced if window == "traced" else window

            def f(q, k, v):
                return (
                    attention.causal(q, k, v, window=width, scoring=attention.Scoring(cap=3.0)),
                    attention.shared_prompt(
                        q,
                        k,
                        v,
                        attention.Packed(14, 3, seen),
                        window=width,
                        scoring=attention.Scoring(cap=3.0),
                    ),
                )

            out, back = jax.vjp(f, q, k, v)
            return out, back(jax.tree.map(jnp.sin, out))

        program = both.lower(*arrays, jnp.int32(37)).compile()
        return program(*arrays, jnp.int32(37)), program.as_text()

    (wanted, in_one), (found, looped) = run(False), run(True)
    assert " while(" not in in_one and " while(" in looped
    for one, two in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(two, one, atol=2e-5)


def test_memory_of_long_rows(monkeypatch):
    """2048 slots, 4 heads: the gradient with all blocks side by side keeps the scores of a row and
    more; in parts, far less."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, 2048, 2, 2, 16), (1, 2048, 2, 16), (1, 2048, 2, 16))
    ]

    def size(long: int) -> int:
        monkeypatch.setattr(plain, "LONG", long)
        gradient = jax.jit(
            jax.grad(lambda q, k, v: jnp.sum(attention.causal(q, k, v)), argnums=(0, 1, 2))
        )
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    row = 4 * 2048 * 2048 * 4
    limit = plain.LONG
    assert size(10**9) > 0.9 * row
    assert size(limit) < 0.35 * row


# --- keys and values in 8 bits
# --------------------------------------------------------------------------------------

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9], [3]]
KEY = jax.random.key(7)


def test_quantised_keys_by_hand():
    x = jnp.array([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [12.7, 0.06, 0.04, -0.14]])
    q, scale = cache.quantise(x)
    assert q.dtype == jnp.int8 and q.tolist() == [[64, -127, 32, 0], [0] * 4, [127, 1, 0, -1]]
    np.testing.assert_allclose(scale, [2 / 127, 0, 0.1], rtol=1e-6)
    many = jnp.asarray(np.random.RandomState(0).standard_normal((200, 64)), jnp.float32)
    q, scale = cache.quantise(many)
    assert (
        float(jnp.max(jnp.abs(q * scale[:, None] - many) / scale[:, None])) <= 0.501
    )  # half a step


@functools.cache
def sampled(kind: str, unrolled: bool = True, temperature: float = 1.0) -> Rollout:
    """Eight rows of 24 new tokens by the tiny model, all decoded together."""
    spec = rollout.SampleSpec(temperature=temperature, max_new_tokens=24, cache=kind)
    config = dataclasses.replace(TINY, scan_layers=not unrolled)
    rows = rollout.from_prompts(PROMPTS, 2, 32)
    return jax.device_get(rollout.generate(tiny_params(), config, rows, KEY, spec, shared_prefix=2))


def same_rows(one: Rollout, two: Rollout) -> None:
    """Float32 sums in another order may round a key to its neighbour, which moves a log-prob by
    some 1e-4."""
    np.testing.assert_array_equal(one.tokens_BT, two.tokens_BT)
    np.testing.assert_allclose(one.logp_BT, two.logp_BT, atol=2e-3)


def test_an_int8_cache_changes_log_probs_a_little():
    """Against the trainer's log-probs of the same tokens; most greedy tokens are those of the full
    cache."""
    rows = sampled("int8")
    exact = np.asarray(models.token_logprobs(tiny_params(), TINY, rows.tokens_BT)[0])
    written = rows.owner_BT == Owner.POLICY
    gap = np.abs(rows.logp_BT - exact)[written]
    assert written.sum() > 100 and 1e-4 < gap.mean() < 0.01 and gap.max() < 0.05
    full = np.abs(
        sampled("auto").logp_BT
        - np.asarray(models.token_logprobs(tiny_params(), TINY, sampled("auto").tokens_BT)[0])
    )
    assert full[written].max() < 1e-4
    greedy, wanted = sampled("int8", temperature=0.0), sampled("auto", temperature=0.0)
    assert np.mean((greedy.tokens_BT == wanted.tokens_BT)[written]) > 0.9


def test_int8_rows_do_not_depend_on_form_place_or_mesh():
    """Stacked and unrolled, refilled and halved, on meshes: one model."""
    wanted, spec = sampled("int8"), rollout.SampleSpec(max_new_tokens=24, cache="int8")
    same_rows(sampled("int8", unrolled=False), wanted)
    rows = rollout.from_prompts(PROMPTS, 2, 32)
    for unrolled in (True, False):
        config = dataclasses.replace(TINY, scan_layers=not unrolled)
        few = dataclasses.replace(spec, seats=3)
        same_rows(jax.device_get(rollout.generate(tiny_params(), config, rows, KEY, few)), wanted)
    with on_mesh("2x2x2") as params:
        rows = rollout.from_prompts(PROMPTS, 2, 32)
        few = dataclasses.replace(spec, seats=4)
        same_rows(
            jax.device_get(rollout.generate(params, TINY, rows, KEY, few, shared_prefix=2)), wanted
        )


def test_bytes_of_the_cache():
    """With heads of 64, int8 with float32 scales takes (1 + 4/64) / 4 of float32 and half of
    bfloat16, in every form."""

    def full(dtype):
        return cache.Cache(*(jnp.zeros((3, 2, 2, 5, 64), dtype) for _ in "kv"))

    for form in cache.FORMS:

        def size(kept, form=form):
            return bytes_of(cache.decode_cache(form, kept, 4, 40))

        found = cache.decode_cache(
            form, cache.stored(full(jnp.float32).k, full(jnp.float32).v, True), 4, 40
        )
        assert bytes_of(found) == 2 * 3 * 8 * 2 * 40 * (64 + 4) and found.positions == 40
        assert bytes_of(found) == pytest.approx(size(full(jnp.float32)) / 4, rel=0.07)
        assert bytes_of(found) == pytest.approx(size(full(jnp.bfloat16)) / 2, rel=0.07)
    with pytest.raises(
        ValueError, match=r"SampleSpec\.cache = 'int4' is unknown; one of auto, int8"
    ):
        rollout.SampleSpec(cache="int4")


# --- what is alive when
# ---------------------------------------------------------------------------------------------


def weight_bytes(config: models.ModelConfig) -> int:
    """Bytes, on each device, of live float arrays over several devices with the shape of a matrix
    of the model."""
    gc.collect()
    shapes = {
        weight.shape
        for weight in models.weight_table(config).values()
        if len(weight.shape) - weight.stacked > 1
    }
    # (On one device only: the parts of arrays that somebody has looked at; they are no memory of
    # their own.)
    alive = [
        x
        for x in jax.live_arrays()
        if x.shape in shapes and x.dtype == jnp.float32 and len(x.sharding.device_set) > 1
    ]
    return sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in alive)


@pytest.mark.long
@pytest.mark.parametrize("method", ["grpo", "scope"])
def test_no_further_copy_of_the_weights_is_alive(
    method: str, checkpoints: Tiny, tmp_path: Path, monkeypatch
):
    """A run on 2x2x2: parameters and moments split over fsdp, beside them the layout for decoding
    while rollouts are made, and nothing else (under SCOPE but the frozen models); before the update
    that layout is gone too."""
    model, seen = models.read_config(checkpoints.policy), []
    update, run = Learner.update, train_module.collect_rollouts
    before = weight_bytes(model)

    def note(name: str) -> None:
        seen.append((name, weight_bytes(model) - before))

    def rollouts(*arguments, **options):
        note("rollouts")
        return run(*arguments, **options)

    def updates(*arguments, **options):
        note("update")
        found = update(*arguments, **options)
        note("updated")
        return found

    monkeypatch.setattr(train_module, "collect_rollouts", rollouts)
    monkeypatch.setattr(Learner, "update", updates)
    mesh = {
        "mesh.data": 2,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "steps": 2,
        "evaluation.problems": 0,
        "evaluation.ood_problems": 0,
    }
    train_module.train(checkpoints.config(method, mesh), tmp_path / "run")

    table, split = models.weight_table(model), flatten(models.shardings(model, mesh_of("2x2x2")))
    whole = flatten(models.shardings(model, mesh_of("2x2x2"), drop=("fsdp",)))

    def size(layouts, path):
        return 4 * math.prod(layouts[path].shard_shape(table[path].shape))

    matrices = [path for path, weight in table.items() if len(weight.shape) - weight.stacked > 1]
    trained, decoding = (
        3 * sum(size(split, path) for path in matrices),
        sum(size(whole, path) for path in matrices),
    )
    assert decoding > 1.9 * trained / 3
    frozen = seen[0][1] - trained - decoding  # teacher and process reward model
    assert (frozen == 0) == (method == "grpo")
    trained += frozen
    assert seen == [("rollouts", trained + decoding), ("update", trained), ("updated", trained)] * 2
