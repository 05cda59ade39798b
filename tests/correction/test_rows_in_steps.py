"""Rows in steps: the texts of the steps are those of the row, whatever the tokenizer."""

import numpy as np
import pytest
from support.tokenizer_fixtures import word_level_bpe, write_sentencepiece

from scope_jax.correction import in_steps
from scope_jax.rollout import completion_texts, from_prompts, splice
from scope_jax.tasks import Problem
from scope_jax.text import SENTENCES, load_tokenizer
from scope_jax.types import Owner


@pytest.mark.parametrize("kind", ["smollm", "qwen", "sentencepiece"])
def test_the_texts_of_the_steps_join_to_the_rows(kind, tmp_path):
    """A tokenizer of sentencepiece's kind leaves the first blank of every text off; only the row's
    own is."""
    if kind == "sentencepiece":
        tokenizer = load_tokenizer(write_sentencepiece(tmp_path))
    else:
        tokenizer = word_level_bpe(kind)
    text = "We add. Then, so we add 12. The answer"
    ids = tokenizer.encode(text, add_special_tokens=False)
    rows = splice(
        from_prompts([[5]], 1, 99),
        np.array([ids], np.int32),
        np.array([len(ids)]),
        Owner.POLICY,
        finished_B=np.array([False]),
    )
    found = in_steps(rows, [Problem("1", "p", "1")], np.array([0]), tokenizer, SENTENCES)
    assert found.steps == [["We add.", " Then, so we add 12.", " The answer"]]
    assert completion_texts(rows, tokenizer) == [text]
    assert found.ends[0][-1] == len(ids) and len(found.ends[0]) == 3
