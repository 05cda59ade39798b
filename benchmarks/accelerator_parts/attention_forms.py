"""One layer's attention, forward and backward: the forms that the library has, and those of
jax.nn as a yardstick where they run."""

import functools
import math
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
        forms = whole_forms() | yardsticks()
        seen = rows * limits.pairs(positions)
        compare(work, f"causal {rows} x {positions}", forms, draws(work, rows, positions), seen)
    W, M, C = size.packed_row
    seen = limits.pairs(W) + M * limits.pairs(C, W)
    arrays = draws(work, 1, W + M * C)
    compare(work, f"shared prompt {W} + {M} x {C}", packed_forms(W, M), arrays, seen)
    decode(work, shape.heads // shape.kv_heads)


def whole_forms() -> dict[str, Form]:
    """Those that the library has on this device. The others are compared with the first, which must
    not fail."""
    forms: dict[str, Form] = {"plain": attention.causal}
    if (kernel := attention.kernel_here()) != "plain":
        forms[kernel] = functools.partial(attention.causal, kernel=kernel)
    return forms


def packed_forms(W: int, M: int) -> dict[str, Form]:
    """The same of packed rows: merged from two sources, or unpacked for the kernel."""
    packed = attention.Packed(W, M, jnp.full((1,), W - 1, jnp.int32))

    def form(kernel: attention.Kernel) -> Form:
        return lambda q, k, v: attention.shared_prompt(q, k, v, packed, kernel=kernel)[:, W:]

    kernels = dict.fromkeys(("plain", attention.kernel_here()))
    return {kernel: form(kernel) for kernel in kernels}


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
    """One query per row over a cache that is full, and one of which rows fill a quarter to a half:
    what the second costs of the first says whether a form reads what is there or all of it."""
    shape, (rows, positions) = work.shape, work.size.decode_step
    K, H, dtype = shape.kv_heads, shape.head_size, jnp.dtype(work.size.dtype)
    keys = jax.random.split(jax.random.key(1), 3)
    q = jax.random.normal(keys[0], (rows, K, group, H), dtype)
    kept = tuple(jax.random.normal(key, (rows, K, positions, H), dtype) for key in keys[1:])
    lengths = {
        "full": jnp.full((rows,), positions, jnp.int32),
        "part": jnp.linspace(positions // 4, positions // 2, rows).astype(jnp.int32),
    }
    for name, (layout, form) in decode_forms(rows).items():
        cache = tuple(jnp.transpose(x, ["BKSH".index(axis) for axis in layout]) for x in kept)
        try:
            run = jax.jit(form)
            compiling, _ = clocked(
                lambda r=run, c=cache: jax.block_until_ready(r(q, *c, lengths["full"]))
            )
            for fill, length in lengths.items():
                seconds = repeated(run, q, *cache, length)
                there = float(jnp.sum(length))
                read = there * limits.position_bytes(shape, work.size.dtype) / shape.layers
                work.add(
                    f"decode step {rows} rows x {positions}, {fill}, {name}",
                    seconds=seconds,
                    compile_seconds=compiling,
                    rate=read / seconds / 1e9,
                    rate_unit="GB/s",
                    share=read / seconds / work.peaks["hbm_rate"],
                    of="memory",
                )
        except Exception as error:
            if name == "plain":
                raise
            work.say(f"decode step, {name}: {one_line(error)}")


def decode_forms(rows: int) -> dict[str, tuple[str, Callable[..., jax.Array]]]:
    """{name: (axes of keys and values, form(q, k, v, length))}; queries are [B, K, G, H]."""
    layout = ("BKSH", "BKSH", "BKS")

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array) -> jax.Array:
        return attention.cached(q, (k, v, None, None), length, layout=layout)

    def blocks(q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array) -> jax.Array:
        lanes = attention.Blocks(min(256, k.shape[2]), math.gcd(rows, 8))
        return attention.blockwise(q, (k, v, None, None), length, lanes, layout=layout)

    def heads_apart(q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array) -> jax.Array:
        """Not the library's: each head a query of its own, as cuDNN is usually called."""
        out = jax.nn.dot_product_attention(
            q.reshape(rows, 1, -1, q.shape[-1]),
            k,
            v,
            key_value_seq_lengths=length,
            implementation="cudnn",
        )
        return out.reshape(q.shape)

    forms: dict[str, tuple[str, Callable[..., jax.Array]]] = {"plain": ("BKSH", plain)}
    if jax.default_backend() != "gpu":  # where each trip of such a loop waits for the host
        forms["blocks"] = ("BKSH", blocks)
    if attention.kernel_here() == "cudnn":
        forms["cudnn"] = ("BSKH", attention.cudnn)
        forms["cudnn, heads apart"] = ("BSKH", heads_apart)
    return forms
