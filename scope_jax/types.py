"""Records that cross room boundaries, and the masks derived from them.

Axis letters, used in comments, einsums and name suffixes throughout the project:

    B rows (= P prompts x M samples, prompt-major)   T query positions   S key positions   L layers
    D model   F feed-forward   N query heads   K kv heads   G query heads per kv head (N = K G)
    H head size   V vocabulary   J steps
"""

import enum
import importlib
from typing import Any, Literal, get_args, get_origin, get_type_hints

import flax
import jax
import jax.numpy as jnp


class Owner(enum.IntEnum):
    """Who wrote a token. Every mask of the project is derived from owners and lengths, never from
    token values."""

    PAD = 0
    PROMPT = 1
    POLICY = 2
    TEACHER = 3


class Rollout(flax.struct.PyTreeNode):
    """A batch of rows, each a prompt and what was written after it, aligned at position 0.

    Cutting a row lowers `length_B`; continuing it writes after it. Positions at and past `length_B`
    hold PAD.
    """

    tokens_BT: jax.Array  # int32; 0 where PAD
    owner_BT: jax.Array  # int8, values of Owner
    logp_BT: (
        jax.Array
    )  # float32; log-prob at the time of sampling; 0 on PROMPT and PAD, NaN where unknown
    length_B: jax.Array  # int32; tokens in the row, prompt included
    prompt_length_B: jax.Array  # int32
    finished_B: jax.Array  # bool; an end token was written
    row_id_B: jax.Array  # int32; identity of the row, part of its random key


def owner_mask(rollout: Rollout, owner: Owner) -> jax.Array:
    """bool[B, T]: positions written by `owner`."""
    return rollout.owner_BT == owner


def masked_sum(values: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
    """Sum of `values` where `mask`; what is masked out may be NaN. Numerators and denominators
    both use this."""
    return jnp.sum(jnp.where(mask, values, 0), axis=axis)


def check_choices(spec: Any, section: str) -> None:
    """Raise ValueError where a field of the dataclass `spec` that is annotated as `Literal[...]`
    holds another value: "section.field = 'x' is unknown; one of a, b". For `__post_init__`."""
    for name, kind in get_type_hints(type(spec)).items():
        value = getattr(spec, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            words = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"{section}.{name} = {value!r} is unknown; one of {words}")


def check_kind(kind: str, known: tuple[str, ...], where: str) -> None:
    """Raise ValueError where `kind` is neither one of `known` nor of the form "module:name"."""
    if kind not in known and not all(kind.partition(":")):
        words = ", ".join(known)
        raise ValueError(f"{where} = {kind!r} is unknown; one of {words}, or your own, module:name")


def imported(name: str, where: str) -> Any:
    """What "module:name" means, for a class of your own that the setting `where` names. Raises
    ValueError, in one line, where it cannot be imported."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ValueError(f"{where} = {name!r}: {type(error).__name__}: {error}") from None


def made(name: str, where: str, *given: Any) -> Any:
    """An object of the class "module:name", called with `given`. Raises ValueError, in one line,
    where it cannot be imported or called so."""
    kind = imported(name, where)
    try:
        return kind(*given)
    except TypeError as error:
        raise ValueError(
            f"{where} = {name!r}: cannot be called with its settings alone ({error})"
        ) from None


def check_least(spec: Any, section: str, least: int, *names: str) -> None:
    """`check_choices`, and ValueError where one of these fields is below `least`; None passes."""
    check_choices(spec, f"config.{section}" if section else "config")
    for name in names:
        value = getattr(spec, name)
        if value is not None and value < least:
            where = f"config.{section}.{name}" if section else f"config.{name}"
            bound = f"at least {least}" if least else "0 or more"
            raise ValueError(f"{where} = {value} must be {bound}")
