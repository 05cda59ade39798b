"""Forms of attention against one that writes every product down, in float64; which is taken."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import TINY

from scope_jax.models import attention
from scope_jax.models.attention import fused, plain
from scope_jax.models.attention.choice import choose, kernel_of

P, W, M, C, K, G, H = 2, 7, 3, 5, 2, 3, 4
SEEN = np.array([4, 6])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def by_hand(q, k, v, window=None, scale=H**-0.5, cap=0.0):
    """Causal attention of rows [B, T, K, G, H], one product of all with all."""
    T = q.shape[1]
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k) * scale
    scores = cap * jnp.tanh(scores / cap) if cap else scores
    query, key = jnp.arange(T)[:, None], jnp.arange(T)[None]
    seen = key <= query
    if window is not None:
        seen = seen & (query - key < window)
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(*q.shape[:2], -1)


def packed_by_hand(q, k, v, window=None, cap=0.0):
    """Each completion behind its prompt as a row of its own, cut and joined by plain indexing."""
    prompts, completions = [], []
    for p, seen in enumerate(SEEN):
        for m in range(M):
            own = slice(W + m * C, W + (m + 1) * C)
            row = [jnp.concatenate([x[p, :seen], x[p, own]])[None] for x in (q, k, v)]
            out = by_hand(*row, window, cap=cap)[0]
            completions.append(out[seen:])
            if m == 0:
                prompts.append(jnp.pad(out[:seen], ((0, W - seen), (0, 0))))
    return jnp.stack(
        [jnp.concatenate([prompts[p], *completions[p * M : (p + 1) * M]]) for p in range(len(SEEN))]
    )


def draws(*shapes, dtype=jnp.float64):
    stream = np.random.RandomState(3)
    return [jnp.asarray(stream.standard_normal(shape), dtype) for shape in shapes]


def packed_draws():
    X = W + M * C
    return draws((P, X, K, G, H), (P, X, K, H), (P, X, K, H))


def masked(out):
    """Without what no completion sees: prompt positions from `SEEN` on."""
    inside = jnp.arange(out.shape[1])[None] < jnp.asarray(SEEN)[:, None]
    return jnp.where((inside | (jnp.arange(out.shape[1]) >= W)[None])[..., None], out, 0.0)


def unpacked(q, k, v, window=None, cap=0.0):
    """The way of the kernels, with plain products in the place of the kernel."""
    rows = (fused.unpack(x, W, M, jnp.asarray(SEEN)) for x in (q, k, v))
    out = plain.causal(*rows, window=window, scoring=plain.Scoring(cap=cap))
    return fused.repack(out, W, M, jnp.asarray(SEEN))


def merged(q, k, v, window=None, cap=0.0):
    scoring = plain.Scoring(cap=cap)
    packed = attention.Packed(W, M, jnp.asarray(SEEN))
    return plain.shared_prompt(q, k, v, packed, window=window, scoring=scoring)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("form", [merged, unpacked])
def test_a_shared_prompt_and_its_gradient(form, window, cap, float64):
    """Two sources merged by their sums, and rows unpacked, against rows written out; float64, so
    that a wrong term of the gradient shows."""
    arrays = packed_draws()

    def values(f):
        return lambda *x: jnp.sum(jnp.sin(masked(f(*x, window, cap))))

    np.testing.assert_allclose(
        masked(form(*arrays, window, cap)), packed_by_hand(*arrays, window, cap), atol=1e-12
    )
    found = jax.grad(values(form), argnums=(0, 1, 2))(*arrays)
    wanted = jax.grad(values(packed_by_hand), argnums=(0, 1, 2))(*arrays)
    for one, two in zip(found, wanted, strict=True):
        assert float(jnp.max(jnp.abs(two))) > 0.1
        np.testing.assert_allclose(one, two, atol=1e-12)


def test_a_merge_without_the_gradient_of_its_weights_would_be_found(monkeypatch, float64):
    """The trap of merging by a log-sum-exp that has no gradient: the test above sees it."""
    merge = plain._merge

    def trap(one, other):
        stop = jax.lax.stop_gradient
        return merge((one[0], one[1], stop(one[2])), (other[0], other[1], stop(other[2])))

    arrays = packed_draws()
    wanted = jax.grad(lambda q: jnp.sum(jnp.sin(merged(q, *arrays[1:]))))(arrays[0])
    monkeypatch.setattr(plain, "_merge", trap)
    found = jax.grad(lambda q: jnp.sum(jnp.sin(merged(q, *arrays[1:]))))(arrays[0])
    assert float(jnp.max(jnp.abs(found - wanted))) > 1e-3


def test_rows_unpacked_by_hand():
    """One prompt of 3 of which 2 are seen, two completions of 2."""
    x = jnp.array([[1.0, 2.0, 9.0, 3.0, 4.0, 5.0, 6.0]])
    rows = fused.unpack(x, 3, 2, jnp.array([2]))
    assert rows.tolist() == [[1, 2, 3, 4, 0], [1, 2, 5, 6, 0]]
    assert fused.repack(rows, 3, 2, jnp.array([2])).tolist() == [[1, 2, 0, 3, 4, 5, 6]]
    # The prompt is in both rows, and its gradient is the sum; the place that nobody sees has none.
    _, back = jax.vjp(lambda x: fused.unpack(x, 3, 2, jnp.array([2])), x)
    [grad] = back(jnp.arange(10.0).reshape(2, 5))
    assert grad.tolist() == [[0 + 5, 1 + 6, 0, 2, 3, 7, 8]]
    # The way back takes it from the first row alone.
    _, back = jax.vjp(lambda rows: fused.repack(rows, 3, 2, jnp.array([2])), rows)
    [grad] = back(jnp.arange(1.0, 8.0)[None])
    assert grad.tolist() == [[1, 2, 4, 5, 0], [0, 0, 6, 7, 0]]


# --- decoding


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("layer", [None, 1])
def test_blocks_give_what_the_whole_cache_gives(window, cap, layer, float64):
    B, S, size = 8, 24, 4
    length = jnp.array([1, 3, 4, 5, 9, 0, 24, 17])
    q, k, v = draws((B, K, G, H), (B, K, S, H), (B, K, S, H))
    scoring = plain.Scoring(cap=cap)
    layout = ("BKSH", "BKSH", "BKS")
    wanted = attention.cached(
        q, (k, v, None, None), jnp.maximum(length, 1), layout=layout, window=window, scoring=scoring
    )
    kept = (k, v) if layer is None else tuple(jnp.stack([0 * x, x]) for x in (k, v))
    for lanes in (1, 2, 4, 8):
        found = attention.blockwise(
            q,
            (*kept, None, None),
            length,
            attention.Blocks(size, lanes),
            layout=layout,
            layer=None if layer is None else jnp.asarray(layer),
            window=window,
            scoring=scoring,
        )
        on = np.asarray(length) > 0
        np.testing.assert_allclose(found[on], wanted[on], atol=1e-12)
        assert not np.any(np.asarray(found)[~on])  # zeros, not NaN


def test_what_lies_behind_the_rows_is_not_read():
    """Blocks behind the longest row of a lane hold NaN, which any use of them would spread."""
    B, S, size = 8, 32, 4
    length = jnp.array([2, 3, 4, 4, 9, 9, 10, 12])
    q, k, v = draws((B, K, G, H), (B, K, S, H), (B, K, S, H), dtype=jnp.float32)
    behind = jnp.arange(S)[None] >= jnp.array([4, 4, 4, 4, 12, 12, 12, 12])[:, None]
    k, v = (jnp.where(behind[:, None, :, None], jnp.nan, x) for x in (k, v))

    def run(lanes):
        return attention.blockwise(
            q,
            (k, v, None, None),
            length,
            attention.Blocks(size, lanes),
            layout=("BKSH", "BKSH", "BKS"),
        )

    assert np.isfinite(run(2)).all()
    assert not np.isfinite(run(1)).all()  # one lane reads the short rows as far as the long ones


# --- which form


def device(platform, kind, capability=None):
    more = {} if capability is None else {"compute_capability": capability}
    return types.SimpleNamespace(platform=platform, device_kind=kind, **more)


@pytest.mark.parametrize(
    ("found", "kernel"),
    [
        (device("gpu", "NVIDIA H100 80GB HBM3", "9.0"), "cudnn"),
        (device("gpu", "NVIDIA A100-SXM4-80GB", "8.0"), "cudnn"),
        (device("cuda", "NVIDIA H100 80GB HBM3"), "cudnn"),
        (device("gpu", "Tesla T4", "7.5"), "plain"),
        (device("gpu", "NVIDIA V100", "7.0"), "plain"),
        (device("rocm", "AMD Instinct MI300X"), "plain"),
        (device("tpu", "TPU v5 lite"), "splash"),
        (device("cpu", "cpu"), "plain"),
    ],
)
def test_kernels_of_devices(found, kernel):
    assert kernel_of(found) == kernel


GEMMA = dict(attention_cap=50.0)
LOCAL = dict(window=8, local_layers=(True, False))


@pytest.mark.parametrize(
    ("kernel", "dtype", "changes", "taken", "reason"),
    [
        ("cudnn", "bfloat16", dict(head_size=128), "cudnn", ""),
        ("cudnn", "bfloat16", dict(head_size=64), "cudnn", ""),
        ("cudnn", "float16", dict(head_size=64), "cudnn", ""),
        ("cudnn", "float32", dict(head_size=64), "plain", "float32 would be rounded"),
        ("cudnn", "bfloat16", dict(head_size=256), "plain", "heads of 256"),
        ("cudnn", "bfloat16", dict(head_size=20), "plain", "heads of 20"),
        ("cudnn", "bfloat16", dict(head_size=64, **GEMMA), "plain", "bent to 50 tanh"),
        ("cudnn", "bfloat16", dict(head_size=64, **LOCAL), "plain", "with and without a window"),
        ("splash", "bfloat16", dict(head_size=128), "splash", ""),
        ("splash", "bfloat16", dict(head_size=256), "splash", ""),
        ("splash", "bfloat16", dict(head_size=64), "plain", "heads of 64"),
        ("splash", "float32", dict(head_size=128), "plain", "float32 would be rounded"),
        ("plain", "bfloat16", dict(head_size=128), "plain", "plain products"),
        (None, "bfloat16", dict(head_size=128), "plain", "plain products"),
    ],
)
def test_the_table_of_forms(kernel, dtype, changes, taken, reason):
    choice = choose(dataclasses.replace(TINY, attention=kernel, **changes), dtype)
    assert choice.kernel == taken and reason in choice.reason
