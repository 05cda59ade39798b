"""Word problems as a TensorFlow Datasets data set; see `generated_tfds`."""

import dataclasses
import pathlib

import tensorflow_datasets as tfds
from etils import epath

from scope_jax.data import generated_tfds
from scope_jax.tasks.word_problems import WordProblems


@dataclasses.dataclass(eq=False)
class WordProblemsConfig(generated_tfds.GeneratedConfig):
    """Stories of `lengths` events; the other fields as in `WordProblems`."""

    lengths: tuple[int, ...] = (2, 3)
    ood_lengths: tuple[int, ...] = (4,)
    largest_count: int = WordProblems.largest_count
    largest_each: int = WordProblems.largest_each
    largest_amount: int = WordProblems.largest_amount
    largest_total: int = WordProblems.largest_total

    def domain(self) -> WordProblems:
        return WordProblems(
            self.largest_count, self.largest_each, self.largest_amount, self.largest_total
        )

    def domain_parts(self) -> list[str]:
        numbers = (self.largest_count, self.largest_each, self.largest_amount, self.largest_total)
        return [f"to{'.'.join(map(str, numbers))}"]


class WordProblemsBuilder(generated_tfds.GeneratedBuilder):
    """The data set `word_problems`."""

    name = "word_problems"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [WordProblemsConfig()]  # noqa: RUF012 (read by tfds as a class attribute)
    # Where tfds looks for this code otherwise needs importlib_resources, which it requires without
    # declaring it.
    code_path = epath.Path(__file__)
    description = "Stories in English about amounts that grow and shrink, with one number to find."


CONFIG = WordProblemsConfig


def prepare(data_dir: str | pathlib.Path, config: WordProblemsConfig | None = None) -> pathlib.Path:
    """Generate the data set under `data_dir` unless it is there already; the directory that holds
    its files."""
    return generated_tfds.prepare(WordProblemsBuilder, data_dir, config or WordProblemsConfig())
