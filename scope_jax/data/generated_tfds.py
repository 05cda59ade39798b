"""Data sets of generated domains as TensorFlow Datasets, written and read without TensorFlow.

`array_record` files need no TensorFlow in either direction: `download_and_prepare` generates them
here (nothing is downloaded), and `as_data_source` or `tfds.builder_from_directory` read them by
index. A domain adds a config and a builder of its own to these (`arithmetic_tfds`,
`countdown_tfds`).
"""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from scope_jax.data.sources import tfds_errors
from scope_jax.tasks.domain import GeneratedDomain


@dataclasses.dataclass(eq=False)
class GeneratedConfig(tfds.core.BuilderConfig):
    """What is generated. The name holds every field, so that another config never finds this one's
    files."""

    name: str = ""
    train_size: int = 32_768
    validation_size: int = 512
    test_size: int = 1_024
    test_ood_size: int = 512
    lengths: tuple[int, ...] = ()  # sizes of a problem in train, validation and test
    ood_lengths: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        sizes = (self.train_size, self.validation_size, self.test_size, self.test_ood_size)
        if min(sizes) < 1:
            raise ValueError(
                f"{type(self).__name__}: sizes {sizes}: expected at least one problem in each split"
            )
        parts = {"n": sizes, "k": self.lengths, "ood": self.ood_lengths, "seed": (self.seed,)}
        self.name = "-".join(
            [label + ".".join(map(str, part)) for label, part in parts.items()]
            + self.domain_parts()
        )

    def domain(self) -> GeneratedDomain:
        """The domain whose problems are generated."""
        raise NotImplementedError

    def domain_parts(self) -> list[str]:
        """The parts of the name that say which domain it is."""
        raise NotImplementedError

    @classmethod
    def options(cls) -> list[str]:
        """The fields that may be set."""
        inherited = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
        return [field.name for field in dataclasses.fields(cls) if field.name not in inherited]


class GeneratedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Splits train, validation, test (the same sizes of problems, none shared) and test_ood."""

    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (read by tfds as a class attribute)
    description = ""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            features=tfds.features.FeaturesDict({"id": text, "prompt": text, "answer": text}),
            disable_shuffling=True,  # record i of a split is problem i of the generator
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.train_size, config.lengths),
            "validation": self._generate_examples(
                "validation", config.validation_size, config.lengths
            ),
            "test": self._generate_examples("test", config.test_size, config.lengths),
            "test_ood": self._generate_examples(
                "test_ood", config.test_ood_size, config.ood_lengths
            ),
        }

    def _generate_examples(
        self, split: str, size: int, lengths: tuple[int, ...]
    ) -> Iterator[tuple[int, dict]]:
        domain = self.builder_config.domain()
        for index in range(size):
            problem = domain.problem(self.builder_config.seed, split, index, lengths)
            yield index, {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}


def prepare(
    builder_class: type[GeneratedBuilder], data_dir: str | pathlib.Path, config: Any
) -> pathlib.Path:
    """Generate the data set under `data_dir` unless it is there already; the directory that holds
    its files.

    `sources.read_tfds` takes that directory. Two processes may make it at once: the first
    to finish wins.
    """
    known = builder_class.builder_configs.get(
        config.name, config
    )  # tfds refuses an equal copy of a config it lists
    with _quiet_tfds():
        with tfds_errors(data_dir):
            builder = builder_class(
                data_dir=str(data_dir), config=known, file_format="array_record"
            )
        try:
            builder.download_and_prepare(file_format="array_record")
        except FileExistsError:
            # Another process finished between our look and our rename; what is there is the same
            # data set.
            if not (pathlib.Path(builder.data_dir) / "dataset_info.json").is_file():
                raise
    return pathlib.Path(builder.data_dir)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Without the warnings, lines and bars of TFDS: this takes seconds and downloads nothing."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
