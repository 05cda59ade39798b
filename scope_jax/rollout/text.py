"""Rows read on the host: the ids after the prompt, and their text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scope_jax.devices.hosts import by_share
from scope_jax.devices.mesh import to_host
from scope_jax.types import Rollout


def completion_ids(rollout: Rollout) -> list[list[int]]:
    """Per row, the ids after the prompt, without the end token of a finished row."""
    tokens, length, prompt, finished = to_host(
        (rollout.tokens_BT, rollout.length_B, rollout.prompt_length_B, rollout.finished_B)
    )
    stop = length - finished.astype(np.int32)
    return [tokens[b, prompt[b] : stop[b]].tolist() for b in range(len(length))]


def texts(ids: Sequence[Sequence[int]], tokenizer: Any) -> list[str]:
    """The text of each list of ids, spaces as they are, special tokens left out. Each process
    decodes its share of them; all call this with the same lists."""

    def decode(own: Sequence[Sequence[int]]) -> list[str]:
        return tokenizer.batch_decode(
            list(own), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    return by_share(decode, ids)


def completion_texts(rollout: Rollout, tokenizer: Any) -> list[str]:
    """Per row, the text written after the prompt."""
    return texts(completion_ids(rollout), tokenizer)
