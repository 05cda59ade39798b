"""Cutting rows, writing after the cut, and moving rows between batches. Token ids are never
decoded and encoded again."""

import jax
import jax.numpy as jnp

from scope_jax.types import Owner, Rollout


def cut(rollout: Rollout, length_B: jax.Array) -> Rollout:
    """Rows shortened to `length_B` tokens (int32[B], prompt included); what stood after becomes
    PAD, and the rows are unfinished. A length past the row's own leaves the row as it is."""
    length = jnp.minimum(length_B, rollout.length_B).astype(jnp.int32)
    kept = jnp.arange(rollout.tokens_BT.shape[1])[None] < length[:, None]
    return rollout.replace(
        tokens_BT=jnp.where(kept, rollout.tokens_BT, 0),
        owner_BT=jnp.where(kept, rollout.owner_BT, jnp.int8(Owner.PAD)),
        logp_BT=jnp.where(kept, rollout.logp_BT, 0.0),
        length_B=length,
        finished_B=rollout.finished_B & (length == rollout.length_B),
    )


def splice(
    rollout: Rollout,
    tokens_BJ: jax.Array,
    count_B: jax.Array,
    owner: Owner = Owner.TEACHER,
    *,
    logp_BJ: jax.Array | None = None,
    finished_B: jax.Array | None = None,
) -> Rollout:
    """Each row with the first `count_B[b]` of `tokens_BJ[b]` (int32[B, J]) written after its end
    as `owner`.

    `logp_BJ`: their log-probs, NaN (unknown) if not given. `finished_B`: rows whose new tokens end
    with an end token. What does not fit into the buffer is left off, and such a row is not
    finished. Rows with count 0 do not change.
    """
    B, T = rollout.tokens_BT.shape
    J = tokens_BJ.shape[1]
    fits = jnp.minimum(count_B, T - rollout.length_B)
    source = jnp.arange(T)[None] - rollout.length_B[:, None]
    new = (source >= 0) & (source < fits[:, None])

    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, jnp.clip(source, 0, J - 1), axis=1)

    logp = jnp.full((B, J), jnp.nan, jnp.float32) if logp_BJ is None else logp_BJ
    ends = jnp.zeros((B,), bool) if finished_B is None else finished_B
    return rollout.replace(
        tokens_BT=jnp.where(new, take(tokens_BJ), rollout.tokens_BT).astype(jnp.int32),
        owner_BT=jnp.where(new, jnp.int8(owner), rollout.owner_BT),
        logp_BT=jnp.where(new, take(logp), rollout.logp_BT),
        length_B=(rollout.length_B + fits).astype(jnp.int32),
        finished_B=rollout.finished_B | (ends & (fits == count_B) & (count_B > 0)),
    )


def take_rows(rollout: Rollout, index_R: jax.Array, valid_R: jax.Array) -> Rollout:
    """Rows `index_R` (int32[R]) as a batch of its own; rows that are not valid come out finished,
    so that nothing is written to them."""
    taken = jax.tree.map(lambda x: x[index_R], rollout)
    return taken.replace(finished_B=taken.finished_B | ~valid_R)


def place_rows(rollout: Rollout, index_R: jax.Array, rows: Rollout, use_R: jax.Array) -> Rollout:
    """`rollout` with row `index_R[r]` replaced by row r of `rows` wherever `use_R[r]`. Row ids
    stay those of the places."""
    B = rollout.length_B.shape[0]
    target = jnp.where(use_R, index_R, B)
    placed = jax.tree.map(
        lambda all_rows, new: all_rows.at[target].set(new, mode="drop"), rollout, rows
    )
    return placed.replace(row_id_B=rollout.row_id_B)
