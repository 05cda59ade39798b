"""Who writes the rollouts."""

import dataclasses
from typing import Any

from scope_jax.rollout.generator import Generator
from scope_jax.rollout.sampling import SampleSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A model that writes rows, the tokenizer of its ids, and how it samples."""

    generator: Generator
    tokenizer: Any
    sampling: SampleSpec

    @property
    def end_id(self) -> int:
        """The token that ends a solution."""
        return solution_end(self.tokenizer, self.sampling)


def solution_end(tokenizer: Any, sampling: SampleSpec) -> int:
    """The token that ends a solution: the tokenizer's own where sampling knows several."""
    eos, known = tokenizer.eos_token_id, sampling.end_ids
    return eos if eos in known or not known else known[0]
