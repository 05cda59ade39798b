"""AdamW with a warm-up and a schedule, built from a small spec; the same schedules serve lambda."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class OptimizerSpec:
    """ValueError (one line) on an unknown schedule or a number that makes no sense."""

    learning_rate: float = 1e-6
    warmup_steps: int = 0  # updates
    schedule: str = "constant"
    steps: int | None = None  # updates of the whole run, warm-up included; `linear` and `cosine` need it
    final_share: float = 0.0  # rate at `steps` as a share of learning_rate
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # of the global gradient norm; None: no clipping

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"OptimizerSpec.schedule = {self.schedule!r} is unknown; expected one of {', '.join(SCHEDULES)}")
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


def make_optimizer(spec: OptimizerSpec, *, trainable: Any | None = None) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW (arXiv 1711.05101) at `learning_rate(spec, count)`.

    Moments are float32 for parameters of any dtype (in bf16 a second moment stops moving: 1 - b2 is below its
    rounding), and so are the updates: `optax.apply_updates` adds before it rounds. Weight decay reaches `matrix_mask`.
    `trainable`: a tree of bool like the parameters, or a function from the parameters to one; where False, the update
    is 0, no moments are kept, and the gradient does not count in the norm.
    """
    steps: list[optax.GradientTransformation] = []
    if spec.clip_norm is not None:
        steps.append(optax.clip_by_global_norm(spec.clip_norm))
    steps.append(
        optax.adamw(
            lambda count: learning_rate(spec, count),
            b1=spec.b1,
            b2=spec.b2,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            mask=matrix_mask,
        )
    )
    optimizer = _in_float32(optax.chain(*steps))
    if trainable is None:
        return optimizer

    def labels(params):
        return jax.tree.map(lambda x: "train" if x else "freeze", trainable(params) if callable(trainable) else trainable)

    return optax.multi_transform({"train": optimizer, "freeze": optax.set_to_zero()}, labels)


def learning_rate(spec: OptimizerSpec, step: jax.Array | int) -> jax.Array:
    """float32[]: the rate of update number `step`, counted from 0.

    The warm-up rises linearly and reaches `spec.learning_rate` with update `warmup_steps`; update 0 already moves.
    """
    step = jnp.asarray(step, jnp.float32)
    length = 1 if spec.steps is None else spec.steps - spec.warmup_steps
    peak = spec.learning_rate
    rate = schedule_value(spec.schedule, peak, peak * spec.final_share, step - spec.warmup_steps, length)
    return rate * jnp.minimum(1.0, (step + 1) / (spec.warmup_steps + 1))


def schedule_value(name: str, start: float, end: float, step: jax.Array | int, steps: int) -> jax.Array:
    """float32[]: `start` at step 0 and before; `end` at `steps` and after (`linear`, `cosine`). `constant`: `start`.

    Raises ValueError on an unknown name, or where `steps` is below 1 and the schedule is not constant.
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

    Names decide first, since stacked layers give a norm scale [L, D] the rank of a matrix: no part of the path may end
    in `norm`, `scale` or `bias`. What is left must have two axes, not counting the stacked one under `layers`.
    """

    def is_matrix(path, leaf):
        names = [name for key in path for name in _key_name(key).split("/")]
        stacked = 1 if "layers" in names else 0
        return not any(name.endswith(("norm", "scale", "bias")) for name in names) and leaf.ndim - stacked >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _key_name(key) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    def cast(tree):
        # A frozen leaf arrives as optax's MaskedNode, which has no leaves: it passes through.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    def update(updates, state, params=None):
        return inner.update(cast(updates), state, None if params is None else cast(params))

    def init(params):
        return inner.init(cast(params))

    return optax.GradientTransformation(init, update)
