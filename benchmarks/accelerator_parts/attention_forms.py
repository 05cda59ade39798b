"""One layer's attention, forward and backward: the forms that the library has, and those of
jax.nn as a yardstick where they run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelerator_parts import limits
from accelerator_parts.device import is_cpu, repeated
from accelerator_parts.plan import Part
from accelerator_parts.work import Work, clocked, one_line
from scope_jax.models import attention

# q [B, T, K, G, H], k, v [B, T, K, H] -> [B, T, N H]
Form = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def run(part: Part, work: Work) -> None:
    work.only()
    size, shape = work.size, work.shape
    # Whole scores in float32, forward and backward, of the form that keeps most.
    most = max(rows * limits.pairs(positions) for rows, positions in size.whole_rows)
    work.need_memory(4 * 4 * 2 * most * shape.heads)
    for rows, positions in size.whole_rows:
        forms = WHOLE | yardsticks()
        seen = rows * limits.pairs(positions)
        compare(work, f"causal {rows} x {positions}", forms, draws(work, rows, positions), seen)
    W, M, C = size.packed_row
    seen_P = jnp.full((1,), W, jnp.int32)
    packed = {name: functools.partial(form, W, M, seen_P) for name, form in PACKED.items()}
    seen = limits.pairs(W) + M * limits.pairs(C, W)
    arrays = draws(work, 1, W + M * C)
    compare(work, f"shared prompt {W} + {M} x {C}", packed, arrays, seen)
    decode(work, shape.heads // shape.kv_heads)


def shared(W: int, M: int, seen_P: jax.Array, q: Any, k: Any, v: Any) -> jax.Array:
    return attention.shared_prompt(q, k, v, W, M, seen_P)


# The forms that the library has: of whole rows, and of packed ones. The others are compared with
# the first, which must not fail.
WHOLE: dict[str, Form] = {"library": attention.causal}
PACKED: dict[str, Callable[..., jax.Array]] = {"library": shared}


def draws(work: Work, rows: int, positions: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q, k, v of random numbers, in the dtype of the work."""
    shape = work.shape
    K, G, H = shape.kv_heads, shape.heads // shape.kv_heads, shape.head_size
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = [(rows, positions, K, G, H), *[(rows, positions, K, H)] * 2]
    q, k, v = (
        jax.random.normal(key, size, jnp.dtype(work.size.dtype)) for key, size in zip(keys, sizes)
    )
    return q, k, v


def yardsticks() -> dict[str, Form]:
    """`jax.nn.dot_product_attention` in its forms for this device."""

    def form(name: str) -> Form:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            B, T, K, G, H = q.shape
            out = jax.nn.dot_product_attention(
                q.reshape(B, T, K * G, H), k, v, is_causal=True, implementation=name
            )
            return out.reshape(B, T, K * G * H)

        return attend

    names = ["xla"] if is_cpu() or jax.default_backend() != "gpu" else ["xla", "cudnn"]
    return {f"jax.nn {name}": form(name) for name in names}


def compare(
    work: Work, case: str, forms: dict[str, Form], arrays: tuple[Any, ...], seen: float
) -> None:
    """Each form forward, and forward and backward; how far it is from the first one."""
    first: np.ndarray | None = None
    for name, form in forms.items():
        if work.left < 5:
            work.say(f"{case}, {name}: no time left")
            return

        def loss(*arrays: Any, form: Form = form) -> jax.Array:
            return jnp.sum(form(*arrays).astype(jnp.float32) ** 2)

        try:
            forward, both = jax.jit(form), jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            compiling, out = clocked(
                lambda f=forward, b=both: jax.device_get((f(*arrays), b(*arrays)))[0]
            )
            times = repeated(forward, *arrays), repeated(both, *arrays)
        except Exception as error:
            if first is None:
                raise
            work.say(f"{case}, {name}: {one_line(error)}")
            continue
        out = np.asarray(out, np.float32)
        first = out if first is None else first
        gap = float(np.abs(out - first).max())
        for way, seconds, factor in zip(("forward", "with backward"), times, (1, 3.5)):
            # Of one layer; a backward pass multiplies two and a half times as much, as the scores
            # are computed again.
            flops = factor * limits.attention_flops(work.shape, seen) / work.shape.layers
            work.add(
                f"{case}, {name}, {way}",
                seconds=seconds,
                compile_seconds=compiling,
                rate=flops / seconds / 1e12,
                rate_unit="TFLOP/s",
                share=flops / seconds / work.peaks["flops"],
                of="compute",
                gap=gap,
                note="" if out is first else f"largest difference {gap:.1e}",
            )


def decode(work: Work, group: int) -> None:
    """One query per row over a cache that is full."""
    shape, (rows, positions) = work.shape, work.size.decode_step
    K, H, dtype = shape.kv_heads, shape.head_size, jnp.dtype(work.size.dtype)
    keys = jax.random.split(jax.random.key(1), 3)
    q = jax.random.normal(keys[0], (rows, K, group, H), dtype)
    k, v = (jax.random.normal(key, (rows, K, positions, H), dtype) for key in keys[1:])
    seen = jnp.ones((rows, positions), bool)
    form = jax.jit(attention.cached)
    compiling, _ = clocked(lambda: jax.block_until_ready(form(q, k, v, seen)))
    seconds = repeated(form, q, k, v, seen)
    read = rows * positions * limits.position_bytes(shape, work.size.dtype) / shape.layers
    work.add(
        f"decode step {rows} rows x {positions}, library",
        seconds=seconds,
        compile_seconds=compiling,
        rate=read / seconds / 1e9,
        rate_unit="GB/s",
        share=read / seconds / work.peaks["hbm_rate"],
        of="memory",
    )
