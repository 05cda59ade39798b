"""Scoring the steps of rollouts with a process reward model that may have a tokenizer of its own."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from scope_jax.mesh import put_rows
from scope_jax.models import ModelConfig, Params, good_step_probability, unroll_layers

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
STEP_MARK = "<extra_0>"


@dataclasses.dataclass(frozen=True, eq=False)
class ProcessRewardModel:
    """A PRM in the format of Qwen2.5-Math-PRM: chat template, steps joined by `<extra_0>`, one after the last step too;
    the two-class softmax at each mark is the probability that the step is right."""

    params: Params
    config: ModelConfig
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.config.head != "prm":
            raise ValueError(f"this checkpoint has head {self.config.head!r}; a PRM has score.0 and score.2 (config head 'prm')")
        if self.mark_id == self.tokenizer.unk_token_id or self.mark_id is None:
            raise ValueError(f"the PRM's tokenizer has no {STEP_MARK!r} token; it marks the end of each step")

    @property
    def mark_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(STEP_MARK)

    def encode(self, prompt: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """(ids, positions of the step marks). Steps are stripped of the separators around them. An empty list of ids
        comes back where the marks cannot be matched to the steps (a step's own text holds a mark)."""
        return self.encode_rows([prompt], [steps])[0]

    def encode_rows(self, prompts: Sequence[str], steps: Sequence[Sequence[str]]) -> list[tuple[list[int], list[int]]]:
        """`encode` of many rows at once, which the tokenizer does several times faster."""
        before, after = _frame(self.tokenizer)
        rows: list[str] = []
        for prompt, row in zip(prompts, steps, strict=True):
            clean = not any(STEP_MARK in text for text in (prompt, *row))
            body = "".join(step.strip() + STEP_MARK for step in row)
            rows.append(before.replace(_USER, prompt) + body + after if clean else "")
        ids = self.tokenizer(rows, add_special_tokens=False)["input_ids"] if rows else []
        mark = self.mark_id
        return [(list(row), [place for place, token in enumerate(row) if token == mark]) for row in ids]

    def score(
        self, prompts: Sequence[str], steps: Sequence[Sequence[str]], rows: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """(score_BJ float32, valid_BJ bool, number of rows that could not be scored: past the PRM's position limit, or
        with a mark in their text). One forward pass over `rows` (default: as many as given) padded rows."""
        encoded = self.encode_rows(prompts, steps)
        limit = self.config.max_positions
        usable = [0 < len(ids) <= limit and len(marks) == len(row) for (ids, marks), row in zip(encoded, steps, strict=True)]
        J = max([len(row) for row in steps], default=0)
        score = np.zeros((len(encoded), J), np.float32)
        valid = np.zeros((len(encoded), J), bool)
        if not any(usable):
            return score, valid, len(encoded)
        longest = max(len(ids) for (ids, _), good in zip(encoded, usable, strict=True) if good)
        tokens = np.zeros((max(rows or 0, len(encoded)), _round_up(longest)), np.int32)
        length = np.ones(len(tokens), np.int32)
        for number, ((ids, _), good) in enumerate(zip(encoded, usable, strict=True)):
            if good:
                tokens[number, : len(ids)] = ids
                length[number] = len(ids)
        probability = np.asarray(_probabilities(self.params, self.config, *put_rows((tokens, length)), unrolled=unroll_layers()))
        for number, ((_, marks), good) in enumerate(zip(encoded, usable, strict=True)):
            if good:
                score[number, : len(marks)] = probability[number, marks]
                valid[number, : len(marks)] = True
        return score, valid, int(np.sum(~np.array(usable)))


_USER = "\x00user\x00"
_ASSISTANT = "\x00assistant\x00"
_probabilities = jax.jit(good_step_probability, static_argnames=("config", "unrolled"))


@functools.lru_cache(maxsize=8)
def _frame(tokenizer: Any) -> tuple[str, str]:
    """The chat template around the steps: text before (with a placeholder for the problem) and after."""
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": _ASSISTANT},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    before, after = text.split(_ASSISTANT)
    return before, after


def _round_up(length: int, step: int = 8) -> int:
    return -(-length // step) * step
