"""Signed terms as a TensorFlow Datasets data set; see `generated_tfds`."""

import dataclasses
import pathlib

import tensorflow_datasets as tfds
from etils import epath

from scope_jax.data import generated_tfds
from scope_jax.tasks.arithmetic import Arithmetic


@dataclasses.dataclass(eq=False)
class SignedTermsConfig(generated_tfds.GeneratedConfig):
    """Problems of `lengths` terms; `moduli`, `start` and `marks` as in `Arithmetic`."""

    lengths: tuple[int, ...] = (4, 5, 6)
    ood_lengths: tuple[int, ...] = (7, 8)
    moduli: tuple[int, int] = (10, 9)
    start: str = "random"
    marks: bool = False

    def domain(self) -> Arithmetic:
        return Arithmetic(moduli=self.moduli, start=self.start, marks=self.marks)

    def domain_parts(self) -> list[str]:
        marks = ["marks"] if self.marks else []
        return ["mod" + ".".join(map(str, self.moduli)), self.start, *marks]


class SignedTerms(generated_tfds.GeneratedBuilder):
    """The data set `signed_terms`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [SignedTermsConfig()]  # noqa: RUF012 (read by tfds as a class attribute)
    # Where tfds looks for this code otherwise needs importlib_resources, which it requires without
    # declaring it.
    code_path = epath.Path(__file__)
    description = (
        "Sums of signed terms with running totals modulo two numbers; every order of terms is"
        " valid."
    )


CONFIG = SignedTermsConfig


def prepare(data_dir: str | pathlib.Path, config: SignedTermsConfig | None = None) -> pathlib.Path:
    """Generate the data set under `data_dir` unless it is there already; the directory that holds
    its files."""
    return generated_tfds.prepare(SignedTerms, data_dir, config or SignedTermsConfig())
