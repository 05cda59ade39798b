"""A model that reads its next-token logits off a table, a row for each last token, and rows of
tokens whose log-probs numpy finds in the same table."""

import functools

import jax.numpy as jnp
import numpy as np

from scope_jax import models
from scope_jax.types import Owner, Rollout
from support.hand_made import PLAIN, V, blank

TABLE = np.random.RandomState(2).standard_normal((V, V)).astype(np.float32)
GROUP = 2  # consecutive rows with the same prompt
# (prompt, completion) of each row; every completion has another length, and one is empty.
ROWS = (
    ([5, 6], [1, 2, 7, 0]),
    ([5, 6], [3]),
    ([7, 8, 9], [4, 4, 4, 11, 2]),
    ([7, 8, 9], []),
    ([10], [6, 0]),
    ([10], [10, 10, 10]),
    ([2, 3, 2, 3], [9, 8, 7, 6, 5, 4]),
    ([2, 3, 2, 3], [2, 0]),
)
SLOTS = 12


@functools.cache
def table_params() -> models.Params:
    """Parameters of `PLAIN`: the layers add nothing, and after the last norm an embedding is
    sqrt(V) long."""
    return blank(PLAIN) | {"head": jnp.asarray(TABLE / np.sqrt(V))}


def table_rows() -> Rollout:
    """`ROWS` as the policy wrote them. Behind each row stand tokens that nobody may read."""
    tokens = np.random.RandomState(3).randint(0, V, (len(ROWS), SLOTS)).astype(np.int32)
    owner = np.full(tokens.shape, Owner.PAD, np.int8)
    for row, (prompt, completion) in enumerate(ROWS):
        end = len(prompt) + len(completion)
        tokens[row, :end] = prompt + completion
        owner[row, : len(prompt)], owner[row, len(prompt) : end] = Owner.PROMPT, Owner.POLICY
    prompt_length = np.array([len(prompt) for prompt, _ in ROWS], np.int32)
    written = np.array([len(completion) for _, completion in ROWS], np.int32)
    return Rollout(
        tokens,
        owner,
        np.zeros(tokens.shape, np.float32),
        prompt_length + written,
        prompt_length,
        np.array([completion[-1:] == [0] for _, completion in ROWS]),
        np.arange(len(ROWS), dtype=np.int32),
    )


def table_logprobs(tokens_BT: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """float64[B, T]: the log-prob of each token after the one before it; 0 for the first."""
    logits = TABLE.astype(np.float64) / temperature
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    out = np.zeros(tokens_BT.shape)
    out[:, 1:] = log[tokens_BT[:, :-1], tokens_BT[:, 1:]]
    return out


def table_entropy(tokens_BT: np.ndarray) -> np.ndarray:
    """float64[B, T]: the entropy, in nats, of the distribution that each token was drawn from; 0
    for the first."""
    share = np.exp(TABLE.astype(np.float64))
    share /= share.sum(axis=1, keepdims=True)
    out = np.zeros(tokens_BT.shape)
    out[:, 1:] = -(share * np.log(share)).sum(axis=1)[tokens_BT[:, :-1]]
    return out


def written_mask(rows: Rollout) -> np.ndarray:
    """bool[B, T]: the tokens of completions, by lengths alone."""
    slot = np.arange(rows.tokens_BT.shape[1])[None]
    return (slot >= rows.prompt_length_B[:, None]) & (slot < rows.length_B[:, None])
