"""Countdown as a TensorFlow Datasets data set; see `generated_tfds`."""

import dataclasses
import pathlib

import tensorflow_datasets as tfds
from etils import epath

from scope_jax.data import generated_tfds
from scope_jax.tasks.countdown import Countdown


@dataclasses.dataclass(eq=False)
class CountdownConfig(generated_tfds.GeneratedConfig):
    """Problems of `lengths` numbers; the other fields as in `Countdown`."""

    lengths: tuple[int, ...] = (4,)
    ood_lengths: tuple[int, ...] = (5,)
    operators: str = Countdown.operators
    largest_number: int = Countdown.largest_number
    smallest_target: int = Countdown.smallest_target
    largest: int = Countdown.largest

    def domain(self) -> Countdown:
        return Countdown(self.operators, self.largest_number, self.smallest_target, self.largest)

    def domain_parts(self) -> list[str]:
        # Operators by name: they become part of a directory's name.
        operators = "".join(
            {"+": "p", "-": "m", "*": "t"}.get(operator, "x") for operator in self.operators
        )
        return [
            f"op{operators}",
            f"max{self.largest_number}",
            f"target{self.smallest_target}.{self.largest}",
        ]


class CountdownProblems(generated_tfds.GeneratedBuilder):
    """The data set `countdown`."""

    name = "countdown"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [CountdownConfig()]  # noqa: RUF012 (read by tfds as a class attribute)
    # Where tfds looks for this code otherwise needs importlib_resources, which it requires without
    # declaring it.
    code_path = epath.Path(__file__)
    description = (
        "Numbers and a target to reach from them, one operation a line; every number is used once."
    )


CONFIG = CountdownConfig


def prepare(data_dir: str | pathlib.Path, config: CountdownConfig | None = None) -> pathlib.Path:
    """Generate the data set under `data_dir` unless it is there already; the directory that holds
    its files."""
    return generated_tfds.prepare(CountdownProblems, data_dir, config or CountdownConfig())
