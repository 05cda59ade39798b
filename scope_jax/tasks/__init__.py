"""Tasks: problems with checkable answers, solved in steps, and their verifiers.

In: a problem and a text. Out: a verdict, the steps' own check where a domain has one, a reference
solution. Importing it is cheap: sympy and math-verify run in worker processes of their own.
`encode_prompts` and `load_tokenizer` are those of `scope_jax.text`, under the names that notebooks
know them by.
"""

from scope_jax.tasks.algebra import Algebra
from scope_jax.tasks.arithmetic import Arithmetic
from scope_jax.tasks.countdown import Countdown
from scope_jax.tasks.domain import (
    Domain,
    GeneratedDomain,
    Problem,
    answers_and_paths,
    is_right,
    verdicts,
)
from scope_jax.tasks.mathematics import Mathematics
from scope_jax.tasks.verify_math import MathVerifier, verify_math
from scope_jax.tasks.word_problems import WordProblems
from scope_jax.text import encode_prompts, load_tokenizer

__all__ = [
    "Algebra",
    "Arithmetic",
    "Countdown",
    "Domain",
    "GeneratedDomain",
    "MathVerifier",
    "Mathematics",
    "Problem",
    "WordProblems",
    "answers_and_paths",
    "encode_prompts",
    "is_right",
    "load_tokenizer",
    "verdicts",
    "verify_math",
]
