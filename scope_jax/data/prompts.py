"""What can be known of problems, tokenizer and model together before a weight is read: whether the
prompts can be written in the tokenizer's ids, and whether the model has a row for each of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scope_jax.data.problems import Problems
from scope_jax.tasks.domain import Domain, Problem
from scope_jax.text import encode_prompts

LOOKED_AT = 32  # problems of a set; the rest are looked at only while no prompt fits


def check_vocabulary(tokenizer: Any, vocab_size: int, directory: Any) -> None:
    """Raise ValueError where the vocabulary is larger than the embedding: the tokenizer is another
    model's. Tokens that were added to it (`<image>` and the like) need no row until they are used
    (`check_prompts`)."""
    own = int(tokenizer.vocab_size)  # without added tokens
    if own > vocab_size:
        raise ValueError(
            f"{directory}: its tokenizer has {own} tokens, its embedding {vocab_size} rows: they"
            " are of two models; put the model's own tokenizer beside its weights"
        )


def check_prompts(
    problems: Problems,
    domain: Domain,
    tokenizer: Any,
    *,
    max_tokens: int,
    chat: bool,
    vocab_size: int,
    setting: str = "",
) -> None:
    """Raise ValueError where prompts cannot be given to a model: the chat template is missing or
    fails, the tokenizer lacks a character, an id has no row in an embedding of `vocab_size`. And,
    where `setting` (the name of the limit) is given, where not one of all of them fits into
    `max_tokens`."""
    for start in range(0, len(problems), LOOKED_AT):
        part = problems[start : start + LOOKED_AT]
        ids = _encoded(part, domain, tokenizer, max_tokens, chat, problems.name)
        highest = [max(row) for row in ids]
        check_ids(highest, vocab_size, tokenizer, f"{problems.name}: a prompt")
        if ids or not setting:
            return
    if setting:
        raise ValueError(f"{problems.name}: no prompt fits into {setting} = {max_tokens}; raise it")


def check_ids(ids: Any, vocab_size: int, tokenizer: Any, what: str) -> None:
    """Raise ValueError where an id has no row in an embedding of `vocab_size`; `what` holds it."""
    highest = int(np.max(ids, initial=0))
    if highest >= vocab_size:
        raise ValueError(
            f"{what} holds the token {tokenizer.convert_ids_to_tokens(highest)!r} with id"
            f" {highest}, the embedding has {vocab_size} rows; put the model's own tokenizer beside"
            " its weights"
        )


def _encoded(
    problems: Sequence[Problem],
    domain: Domain,
    tokenizer: Any,
    max_tokens: int,
    chat: bool,
    name: str,
) -> list[list[int]]:
    shown = [domain.policy_prompt(problem) for problem in problems]
    try:
        return encode_prompts(
            tokenizer, shown, max_length=max_tokens, chat=chat, system=domain.system
        )[0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
