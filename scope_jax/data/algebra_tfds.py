"""Equations as a TensorFlow Datasets data set; see `generated_tfds`."""

import dataclasses
import pathlib

import tensorflow_datasets as tfds
from etils import epath

from scope_jax.data import generated_tfds
from scope_jax.tasks.algebra import Algebra


@dataclasses.dataclass(eq=False)
class AlgebraConfig(generated_tfds.GeneratedConfig):
    """Equations that take `lengths` lines; the other fields as in `Algebra`."""

    lengths: tuple[int, ...] = (3, 4)
    ood_lengths: tuple[int, ...] = (5,)
    kinds: tuple[str, ...] = Algebra.kinds
    largest: int = Algebra.largest

    def domain(self) -> Algebra:
        return Algebra(self.kinds, self.largest)

    def domain_parts(self) -> list[str]:
        return ["".join(kind[:1] for kind in self.kinds), f"max{self.largest}"]


class AlgebraProblems(generated_tfds.GeneratedBuilder):
    """The data set `algebra`."""

    name = "algebra"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [AlgebraConfig()]  # noqa: RUF012 (read by tfds as a class attribute)
    # Where tfds looks for this code otherwise needs importlib_resources, which it requires without
    # declaring it.
    code_path = epath.Path(__file__)
    description = "Equations in one unknown, to be solved line by line."


CONFIG = AlgebraConfig


def prepare(data_dir: str | pathlib.Path, config: AlgebraConfig | None = None) -> pathlib.Path:
    """Generate the data set under `data_dir` unless it is there already; the directory that holds
    its files."""
    return generated_tfds.prepare(AlgebraProblems, data_dir, config or AlgebraConfig())
