"""A batch of ragged rows, and the gradient of one update of the tiny model on it, straight by
jax.grad."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from scope_jax import learning, models
from scope_jax.learning.objectives import Loss
from scope_jax.types import Owner, Rollout
from support.fixtures import TINY, tiny_params

SPEC = learning.LossSpec(
    max_new_tokens=16, teacher_term="shaped", teacher_weight=0.5, entropy_bonus=0.01, kl_weight=0.05
)
ROWS, SLOTS, GROUP = 8, 32, 2
PROMPT_LENGTH = np.repeat([4, 7, 5, 6], GROUP).astype(np.int32)
LENGTH = np.array([32, 20, 9, 31, 6, 17, 28, 12], np.int32)


def batch() -> tuple[Rollout, dict[str, np.ndarray]]:
    """Ragged rows, each two with the same prompt, tokens of both owners, advantages of both signs,
    and NaN where nothing is known; and what an update needs beside them."""
    stream = np.random.RandomState(11)
    tokens = stream.randint(0, TINY.vocab_size, (ROWS, SLOTS)).astype(np.int32)
    slots = np.arange(SLOTS)[None]
    prompt = slots < PROMPT_LENGTH[:, None]
    tokens = np.where(prompt, np.repeat(tokens[::GROUP], GROUP, axis=0), tokens)
    written = ~prompt & (slots < LENGTH[:, None])
    teacher = written & (stream.rand(ROWS, SLOTS) < 0.3)
    policy = written & ~teacher
    logp = (-4 + stream.standard_normal((ROWS, SLOTS))).astype(np.float32)
    owner = np.select(
        [prompt, teacher, policy], [Owner.PROMPT, Owner.TEACHER, Owner.POLICY], Owner.PAD
    ).astype(np.int8)
    rollout = Rollout(
        tokens,
        owner,
        logp,
        LENGTH,
        PROMPT_LENGTH,
        np.ones(ROWS, bool),
        np.arange(ROWS, dtype=np.int32),
    )
    return rollout, {
        "advantage": stream.standard_normal(ROWS).astype(np.float32),
        "on": np.where(policy, 1 / 64, 0).astype(np.float32),
        "off": np.where(teacher, 1 / 64, 0).astype(np.float32),
        "old_logp": np.where(policy, logp, np.nan).astype(np.float32),
        "reference_logp": np.where(policy, logp + 0.1, np.nan).astype(np.float32),
    }


def objective() -> Loss:
    return learning.policy_objective(
        dataclasses.replace(TINY, remat="layer"), SPEC, temperature=0.9, entropy=True
    )


def numbers(tree) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(jax.device_get(tree))
    }


def adam_state(opt_state) -> optax.ScaleByAdamState:
    def is_adam(x) -> bool:
        return isinstance(x, optax.ScaleByAdamState)

    (found,) = filter(is_adam, jax.tree.leaves(opt_state, is_leaf=is_adam))
    return found


@functools.cache
def direct_gradient() -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(loss, gradient, statistics) by jax.grad on one device, without make_update and without
    `pack`: every row whole, its prompt included."""
    rollout, arrays = batch()

    def loss(params):
        logp, entropy = models.token_logprobs(
            params, TINY, rollout.tokens_BT, temperature=0.9, entropy=True
        )
        return learning.policy_loss(
            logp,
            arrays["old_logp"],
            arrays["advantage"][:, None],
            arrays["on"],
            arrays["off"],
            SPEC,
            teacher_weight=0.5,
            reference_logp_BT=arrays["reference_logp"],
            entropy_BT=entropy,
        )

    (total, stats), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tiny_params())
    return float(total), numbers(grads), numbers(stats)
