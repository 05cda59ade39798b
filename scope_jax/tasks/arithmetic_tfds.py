"""Signed terms as a TensorFlow Datasets data set, written and read without TensorFlow.

`array_record` files need no TensorFlow in either direction: `download_and_prepare` generates them here (nothing is
downloaded), and `as_data_source` or `tfds.builder_from_directory` read them by index.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from scope_jax.tasks.arithmetic import Arithmetic


@dataclasses.dataclass(eq=False)
class SignedTermsConfig(tfds.core.BuilderConfig):
    """What is generated. The name holds every field, so that another config never finds this one's files."""

    name: str = ""
    train_size: int = 32_768
    validation_size: int = 512
    test_size: int = 1_024
    test_ood_size: int = 512
    lengths: tuple[int, ...] = (4, 5, 6)  # terms of a problem in train, validation and test
    ood_lengths: tuple[int, ...] = (7, 8)
    seed: int = 0
    moduli: tuple[int, int] = (10, 9)
    start: str = "random"

    def __post_init__(self):
        sizes = (self.train_size, self.validation_size, self.test_size, self.test_ood_size)
        if min(sizes) < 1:
            raise ValueError(f"signed_terms: sizes {sizes}: expected at least one problem in each split")
        parts = (sizes, self.lengths, self.ood_lengths, (self.seed,), self.moduli)
        numbers = (".".join(str(n) for n in part) for part in parts)
        labels = ("n", "k", "ood", "seed", "mod")
        fields = (label + text for label, text in zip(labels, numbers, strict=True))
        self.name = "-".join((*fields, self.start))


class SignedTerms(tfds.core.GeneratorBasedBuilder):
    """Splits train, validation, test (the same lengths, no problem shared) and test_ood (longer problems)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (read by tfds as a class attribute)
    BUILDER_CONFIGS = [SignedTermsConfig()]  # noqa: RUF012
    # Where tfds looks for this code otherwise needs importlib_resources, which it requires without declaring it.
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sums of signed terms with running totals modulo two numbers; every order of terms is valid.",
            features=tfds.features.FeaturesDict({"id": text, "prompt": text, "answer": text}),
            disable_shuffling=True,  # record i of a split is problem i of the generator
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.train_size, config.lengths),
            "validation": self._generate_examples("validation", config.validation_size, config.lengths),
            "test": self._generate_examples("test", config.test_size, config.lengths),
            "test_ood": self._generate_examples("test_ood", config.test_ood_size, config.ood_lengths),
        }

    def _generate_examples(self, split: str, size: int, lengths: tuple[int, ...]) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        domain = Arithmetic(moduli=config.moduli, start=config.start)
        for index in range(size):
            problem = domain.problem(config.seed, split, index, lengths)
            yield index, {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}


def prepare(data_dir: str | pathlib.Path, config: SignedTermsConfig | None = None) -> pathlib.Path:
    """Generate the data set under `data_dir` unless it is there already; the directory that holds its files.

    That directory is what `Problems.from_tfds` takes. Two processes may make it at once: the first to finish wins.
    """
    config = config or SignedTermsConfig()
    known = SignedTerms.builder_configs.get(config.name, config)  # tfds refuses an equal copy of a config it lists
    builder = SignedTerms(data_dir=str(data_dir), config=known, file_format="array_record")
    try:
        builder.download_and_prepare(file_format="array_record")
    except FileExistsError:
        # Another process finished between our look and our rename; what is there is the same data set.
        if not (pathlib.Path(builder.data_dir) / "dataset_info.json").is_file():
            raise
    return pathlib.Path(builder.data_dir)
