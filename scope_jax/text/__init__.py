"""Text and token ids: tokenizers in and out, prompts encoded, where the steps of a completion end.

In: texts, token ids, a tokenizer. Out: ids, texts, positions of step ends. Knows no model and no
task; importing it is cheap (transformers is imported where a tokenizer is loaded).
"""

from scope_jax.text.boundaries import BLANK_LINE, SENTENCES, divider, split_steps
from scope_jax.text.steps import step_ends, stop_table
from scope_jax.text.tokenizers import (
    character_tokenizer,
    encode_in_place,
    encode_prompts,
    end_ids,
    load_tokenizer,
    save_tokenizer,
)

__all__ = [
    "BLANK_LINE",
    "SENTENCES",
    "character_tokenizer",
    "divider",
    "encode_in_place",
    "encode_prompts",
    "end_ids",
    "load_tokenizer",
    "save_tokenizer",
    "split_steps",
    "step_ends",
    "stop_table",
]
