"""Attention by kernels that keep the scores on the chip, forward and backward: cuDNN's on NVIDIA
GPUs, splash on TPUs. `choice.choose` says where they serve.

Packed rows (a prompt and several completions of it) are unpacked for the kernel: each completion
behind a copy of its prompt, without a gap, so that causal attention is all there is. The prompt's
attention is computed again for each completion, and nothing is merged: a kernel hands back its
log-sum-exp without a gradient, and two sources merged by it would train wrong.
"""

import functools

import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import by_device
from scope_jax.models.attention.choice import Kernel
from scope_jax.models.attention.plain import Packed, Scoring

# A TPU's kernel works on blocks of this many positions, at most.
SPLASH_BLOCK = 512
LANES = 128


def causal(
    q: jax.Array, k: jax.Array, v: jax.Array, kernel: Kernel, window: int | None, scoring: Scoring
) -> jax.Array:
    """q [B, T, K, G, H], k, v [B, T, K, H] -> [B, T, N H], as `plain.causal`."""
    attend = functools.partial(
        _cudnn if kernel == "cudnn" else _splash, window=window, scale=scoring.scale_of(q)
    )
    rows, heads = ("batch", None, "kv_heads", None, None), ("batch", None, "kv_heads", None)
    out = by_device(attend, (q, k, v), (rows, heads, heads), rows)
    return out.reshape(*out.shape[:2], -1)


def shared_prompt(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    packed: Packed,
    kernel: Kernel,
    window: int | None,
    scoring: Scoring,
) -> jax.Array:
    """As `plain.shared_prompt`, but that prompt positions which no completion sees come out as
    zeros."""
    how = packed.width, packed.completions, packed.seen_P
    q, k, v = (unpack(x, *how) for x in (q, k, v))
    return repack(causal(q, k, v, kernel, window, scoring), *how)


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None, scale: float
) -> jax.Array:
    B, T, K, G, H = q.shape
    out = jax.nn.dot_product_attention(
        q.reshape(B, T, K * G, H),
        k,
        v,
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return out.reshape(q.shape)


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None, scale: float
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, T, K, G, H = q.shape
    width = -(-T // LANES) * LANES
    # What is added at the end is not seen by what stands before it, and cut off again.
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, width - T), *((0, 0),) * (x.ndim - 2))) for x in (q * scale, k, v)
    )
    shape = (width, width)
    mask = (
        splash.CausalMask(shape)
        if window is None
        else splash.LocalMask(shape, window_size=(window - 1, 0), offset=0)
    )
    size = max(s for s in range(LANES, SPLASH_BLOCK + 1, LANES) if width % s == 0)
    run = splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([mask] * G),
        block_sizes=splash.BlockSizes(
            block_q=size,
            block_kv=size,
            block_kv_compute=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_kv_dkv_compute=size,
            use_fused_bwd_kernel=True,
        ),
    )
    # [B, K, G, T, H] queries over [B, K, T, H]
    out = jax.vmap(jax.vmap(run))(
        jnp.transpose(q, (0, 2, 3, 1, 4)), jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    )
    return jnp.transpose(out, (0, 3, 1, 2, 4))[:, :T].astype(q.dtype)


# ---- packed rows, and each completion behind its prompt


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def unpack(x: jax.Array, prompt_width: int, completions: int, seen_P: jax.Array) -> jax.Array:
    """[P, W + M C, ...] -> [P M, W + C, ...]: the first `seen_P` positions of the prompt, then the
    completion, then zeros.

    A gather, and so is its transpose: left to itself, JAX would scatter.
    """
    return _to_rows(x, prompt_width, completions, seen_P, first_only=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def repack(x: jax.Array, prompt_width: int, completions: int, seen_P: jax.Array) -> jax.Array:
    """The way back: [P M, W + C, ...] -> [P, W + M C, ...], the prompt from the first of its rows,
    zeros in its positions from `seen_P` on."""
    return _to_packed(x, prompt_width, completions, seen_P, first_only=True)


def _unpack_forward(
    x: jax.Array, prompt_width: int, completions: int, seen_P: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return unpack(x, prompt_width, completions, seen_P), seen_P


def _unpack_backward(
    prompt_width: int, completions: int, seen_P: jax.Array, grad: jax.Array
) -> tuple[jax.Array, None]:
    return _to_packed(grad, prompt_width, completions, seen_P, first_only=False), None


def _repack_forward(
    x: jax.Array, prompt_width: int, completions: int, seen_P: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return repack(x, prompt_width, completions, seen_P), seen_P


def _repack_backward(
    prompt_width: int, completions: int, seen_P: jax.Array, grad: jax.Array
) -> tuple[jax.Array, None]:
    return _to_rows(grad, prompt_width, completions, seen_P, first_only=True), None


unpack.defvjp(_unpack_forward, _unpack_backward)
repack.defvjp(_repack_forward, _repack_backward)


def _to_rows(
    x: jax.Array, prompt_width: int, completions: int, seen_P: jax.Array, first_only: bool
) -> jax.Array:
    """`unpack`; `first_only`: the prompt stands in the first of its rows, zeros in the others."""
    P, X, *rest = x.shape
    W, M = prompt_width, completions
    C = (X - W) // M
    T = W + C
    own_PT = jnp.arange(T)[None] - seen_P[:, None]
    prompt = jnp.pad(x[:, None, :W], ((0, 0), (0, 0), (0, C), *((0, 0),) * len(rest)))
    if first_only:
        first = (jnp.arange(M) == 0).reshape(1, M, *(1,) * (1 + len(rest)))
        prompt = jnp.where(first, prompt, 0)
    completion = _along(x[:, W:].reshape(P, M, C, *rest), jnp.clip(own_PT, 0, C - 1))
    own = own_PT.reshape(P, 1, T, *(1,) * len(rest))
    rows = jnp.where(own < 0, prompt, jnp.where(own < C, completion, 0))
    return rows.reshape(P * M, T, *rest)


def _to_packed(
    rows: jax.Array, prompt_width: int, completions: int, seen_P: jax.Array, first_only: bool
) -> jax.Array:
    """`repack`; not `first_only`: the prompt is the sum over its rows."""
    W, M = prompt_width, completions
    P, T, *rest = rows.shape[0] // M, *rows.shape[1:]
    C = T - W
    rows = rows.reshape(P, M, T, *rest)
    prompt = rows[:, 0, :W] if first_only else jnp.sum(rows[:, :, :W], axis=1)
    seen = jnp.arange(W)[None] < seen_P[:, None]
    prompt = jnp.where(seen.reshape(P, W, *(1,) * len(rest)), prompt, 0)
    completion = _along(rows, seen_P[:, None] + jnp.arange(C)[None])
    return jnp.concatenate([prompt, completion.reshape(P, M * C, *rest)], axis=1)


def _along(x: jax.Array, index_PT: jax.Array) -> jax.Array:
    """x [P, M, S, ...] at positions `index_PT` of its third axis, which are all there."""
    index = index_PT.reshape(index_PT.shape[0], 1, -1, *(1,) * (x.ndim - 3))
    return jnp.take_along_axis(x, index, axis=2, mode="promise_in_bounds")
