"""AdamW with a warm-up and a schedule, built from a small spec; the same schedules serve lambda."""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from scope_jax.types import check_choices

Schedule = Literal["constant", "linear", "cosine"]
Moments = Literal["float32", "bfloat16", "factored"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
MOMENTS: tuple[str, ...] = get_args(Moments)


@dataclass(frozen=True)
class OptimizerSpec:
    """ValueError (one line) on an unknown word or a number that makes no sense."""

    learning_rate: float = 1e-6
    warmup_steps: int = 0  # updates
    schedule: Schedule = "constant"
    # Updates of the whole run, warm-up included; `linear` and `cosine` need it.
    steps: int | None = None
    final_share: float = 0.0  # rate at `steps` as a share of learning_rate
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # of the global gradient norm; None: no clipping
    # How Adam's two moments are kept: in 8, 4 or 2 bytes a parameter; see `scale_by_moments`.
    moments: Moments = "float32"

    def __post_init__(self) -> None:
        check_choices(self, "OptimizerSpec")
        if self.schedule != "constant" and (self.steps is None or self.steps <= self.warmup_steps):
            raise ValueError(
                f"OptimizerSpec.schedule = {self.schedule!r} needs steps > warmup_steps; "
                f"got steps = {self.steps}, warmup_steps = {self.warmup_steps}"
            )
        for name, good, expected in (
            ("learning_rate", lambda x: x >= 0, "a number of 0 or more"),
            ("warmup_steps", lambda x: x >= 0, "0 or more"),
            ("final_share", lambda x: 0 <= x <= 1, "a share from 0 to 1"),
            ("b1", lambda x: 0 <= x < 1, "a number from 0 to below 1"),
            ("b2", lambda x: 0 <= x < 1, "a number from 0 to below 1"),
            ("eps", lambda x: x > 0, "a number above 0"),
            ("weight_decay", lambda x: x >= 0, "a number of 0 or more"),
            ("clip_norm", lambda x: x > 0, "a number above 0, or None"),
        ):
            value = getattr(self, name)
            if value is None and name == "clip_norm":
                continue
            if not (isinstance(value, int | float) and math.isfinite(value) and good(value)):
                raise ValueError(f"OptimizerSpec.{name} = {value!r}; expected {expected}")


def make_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW (arXiv 1711.05101) at `learning_rate(spec, count)`.

    Moments are kept as `spec.moments` says, whatever the parameters' dtype; updates are float32:
    `optax.apply_updates` adds before it rounds. Weight decay reaches `matrix_mask`.
    """
    steps: list[optax.GradientTransformation] = []
    if spec.clip_norm is not None:
        steps.append(optax.clip_by_global_norm(spec.clip_norm))
    adam = (
        optax.scale_by_adam
        if spec.moments == "float32"
        else functools.partial(scale_by_moments, spec.moments)
    )
    steps.append(
        optax.chain(
            adam(b1=spec.b1, b2=spec.b2, eps=spec.eps),
            optax.add_decayed_weights(spec.weight_decay, matrix_mask),
            optax.scale_by_learning_rate(lambda count: learning_rate(spec, count)),
        )
    )
    return _in_float32(optax.chain(*steps))


def scale_by_moments(
    kind: str, *, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Adam's direction m / (sqrt(v) + eps), both moments bias-corrected, from a smaller state
    (`optax.ScaleByAdamState`).

    The first moment is bfloat16. The second moment, by `kind`:

    - `bfloat16`: rounded up or down at random, in proportion to what is cut off. Rounded to the
      nearest it would stand still: with b2 = 0.999 a step moves v by a thousandth, and neighbouring
      bfloat16 numbers lie 1/128 to 1/256 apart. The random bits are a function of the step's number
      and the element's place, so that a run goes on bit for bit.
    - `factored`: of a matrix (`matrix_mask`) float32 means over columns and over rows,
      {"row": [.., in], "column": [.., out]}, and v = row column / mean(row): Adafactor's (arXiv
      1804.04235, section 3), here with Adam's b2 and eps. Whole for all others.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        def bfloat16() -> Any:
            return jax.tree.map(lambda p: jnp.zeros_like(p, jnp.bfloat16), params)

        def factored() -> Any:
            def zeros(p: jax.Array, split: bool) -> Any:
                return _sides(p) if split else jnp.zeros_like(p)

            return jax.tree.map(zeros, params, matrix_mask(params))

        second = bfloat16() if kind == "bfloat16" else factored()
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), bfloat16(), second)

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        count = state.count + 1
        step = count.astype(jnp.float32)
        free_1, free_2 = 1 - b1**step, 1 - b2**step

        def one(
            number: int, g: jax.Array, m: jax.Array, v: Any
        ) -> tuple[jax.Array, jax.Array, Any]:
            first = b1 * m.astype(jnp.float32) + (1 - b1) * g
            square = jnp.square(g)
            if isinstance(v, dict):
                row = b2 * v["row"] + (1 - b2) * jnp.mean(square, axis=-1)
                column = b2 * v["column"] + (1 - b2) * jnp.mean(square, axis=-2)
                # Where all gradients were 0 so far, 0 and not NaN.
                share = row / jnp.maximum(
                    jnp.mean(row, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny
                )
                second = share[..., None] * column[..., None, :]
                kept: Any = {"row": row, "column": column}
            else:
                second = b2 * v.astype(jnp.float32) + (1 - b2) * square
                kept = second if v.dtype == jnp.float32 else round_at_random(second, count, number)
            return (
                (first / free_1) / (jnp.sqrt(second / free_2) + eps),
                first.astype(jnp.bfloat16),
                kept,
            )

        numbers = jax.tree.unflatten(jax.tree.structure(grads), range(len(jax.tree.leaves(grads))))
        done = jax.tree.map(one, numbers, grads, state.mu, state.nu)

        def part(n: int) -> Any:
            return jax.tree.map(lambda _, results: results[n], grads, done)

        return part(0), optax.ScaleByAdamState(count, part(1), part(2))

    return optax.GradientTransformation(init, update)


def _sides(p: jax.Array) -> dict[str, jax.Array]:
    """Zeros for the factors of [.., in, out]; where `p` is laid out on a mesh, each on the axes of
    its own dimensions."""

    def side(axis: int) -> jax.Array:
        shape = tuple(np.delete(p.shape, axis))
        layout = None if isinstance(p, jax.core.Tracer) else getattr(p, "sharding", None)
        if not isinstance(layout, NamedSharding):
            return jnp.zeros(shape, jnp.float32)
        spec = (*layout.spec, *(None,) * (p.ndim - len(layout.spec)))
        kept = PartitionSpec(*spec[:axis], *spec[axis + 1 or p.ndim :])
        return jnp.zeros(shape, jnp.float32, device=NamedSharding(layout.mesh, kept))

    return {"row": side(-1), "column": side(-2)}


def round_at_random(x: jax.Array, step: jax.Array, stream: int) -> jax.Array:
    """float32 >= 0 as bfloat16, rounded up with a probability equal to the part that is cut off:
    the expectation is `x`. The random bits are a function of `step`, `stream` and the element's
    place, the same on every mesh."""
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        place = place * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(
            jnp.uint32, x.shape, axis
        )
    seed = _mix(_mix(step.astype(jnp.uint32)) + jnp.uint32(stream))
    noise = _mix(_mix(place + seed)) >> 16
    # bfloat16 is the upper half of float32: the sum carries into it with a probability in
    # proportion to the lower half.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rounded = jnp.where(jnp.isfinite(x), bits + noise, bits) >> 16
    return jax.lax.bitcast_convert_type(rounded.astype(jnp.uint16), jnp.bfloat16)


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: uint32 -> uint32, every bit of the input moves half of the
    output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def learning_rate(spec: OptimizerSpec, step: jax.Array | int) -> jax.Array:
    """float32[]: the rate of update number `step`, counted from 0.

    The warm-up rises linearly and reaches `spec.learning_rate` with update `warmup_steps`; update
    0 already moves. By hand, as the schedules of optax round differently (they interpolate from the
    end), and a run must go on bit for bit where an earlier version left it.
    """
    step = jnp.asarray(step, jnp.float32)
    length = 1 if spec.steps is None else spec.steps - spec.warmup_steps
    peak = spec.learning_rate
    rate = schedule_value(
        spec.schedule, peak, peak * spec.final_share, step - spec.warmup_steps, length
    )
    return rate * jnp.minimum(1.0, (step + 1) / (spec.warmup_steps + 1))


def schedule_value(
    name: str, start: float, end: float, step: jax.Array | int, steps: int
) -> jax.Array:
    """float32[]: `start` at step 0 and before; `end` at `steps` and after (`linear`, `cosine`).
    `constant`: `start`.

    Raises ValueError on an unknown name, or where `steps` is below 1 and the schedule is not
    constant.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown; expected one of {', '.join(SCHEDULES)}")
    if name == "constant":
        return jnp.asarray(start, jnp.float32)
    if steps < 1:
        raise ValueError(f"schedule {name!r} over {steps} steps; expected at least 1")
    share = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    if name == "cosine":
        share = 0.5 * (1.0 - jnp.cos(jnp.pi * share))
    return start + (end - start) * share


def matrix_mask(params: Any) -> Any:
    """Tree of bool: which parameters are matrices, by name and rank.

    Names decide first, since stacked layers give a norm scale [L, D] the rank of a matrix: no part
    of the path may end in `norm`, `scale` or `bias`. What is left must have two axes, not counting
    the stacked one under `layers`.
    """

    def is_matrix(path: Any, leaf: Any) -> bool:
        names = [name for key in path for name in _key_name(key).split("/")]
        stacked = 1 if "layers" in names else 0
        return (
            not any(name.endswith(("norm", "scale", "bias")) for name in names)
            and leaf.ndim - stacked >= 2
        )

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _key_name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    def cast(tree: Any) -> Any:
        # A frozen leaf arrives as optax's MaskedNode, which has no leaves: it passes through.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return inner.update(cast(updates), state, None if params is None else cast(params))

    def init(params: Any) -> Any:
        return inner.init(cast(params))

    return optax.GradientTransformation(init, update)
