"""Where problems come from: files, TFDS, mixtures, evaluation suites, decontamination.

In: paths, field names, a seed and a position. Out: `Problems`, drawn in an order that is a pure
function of seed and position. The TFDS builders are in `arithmetic_tfds` and `countdown_tfds`.
"""

from scope_jax.data.problems import Problems, batch_indices
from scope_jax.data.sources import Source, read_file, read_source, read_tfds

__all__ = [
    "Problems",
    "Source",
    "batch_indices",
    "read_file",
    "read_source",
    "read_tfds",
]
