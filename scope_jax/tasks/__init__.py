"""Problems and their sources, the embedded domain, tokenizers and step segmentation, verifiers.

Importing this room is cheap: transformers, tensorflow-datasets and jax are imported where they are used. The TFDS
builders are in `scope_jax.tasks.arithmetic_tfds` and `scope_jax.tasks.countdown_tfds`.
"""

from scope_jax.tasks.arithmetic import Arithmetic
from scope_jax.tasks.countdown import Countdown
from scope_jax.tasks.domain import Domain, GeneratedDomain, Problem, answers_and_paths, split_steps, verdicts
from scope_jax.tasks.mathematics import Mathematics
from scope_jax.tasks.problems import Problems, batch_indices
from scope_jax.tasks.sources import Source, read_source
from scope_jax.tasks.steps import step_ends, stop_table
from scope_jax.tasks.tokenizers import character_tokenizer, encode_prompts, end_ids, load_tokenizer, save_tokenizer

# `verify_math` is a module and a function; this binds the function, and later imports of the module leave it so.
from scope_jax.tasks.verify_math import MathVerifier, verify_math

__all__ = [
    "Arithmetic",
    "Countdown",
    "Domain",
    "GeneratedDomain",
    "MathVerifier",
    "Mathematics",
    "Problem",
    "Problems",
    "Source",
    "answers_and_paths",
    "batch_indices",
    "character_tokenizer",
    "encode_prompts",
    "end_ids",
    "load_tokenizer",
    "read_source",
    "save_tokenizer",
    "split_steps",
    "step_ends",
    "stop_table",
    "verdicts",
    "verify_math",
]
