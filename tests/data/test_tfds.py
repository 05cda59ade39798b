import pathlib
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from scope_jax.data.arithmetic_tfds import SignedTerms, SignedTermsConfig, prepare
from scope_jax.data.sources import read_tfds
from scope_jax.tasks.arithmetic import Arithmetic, Problem

SMALL = SignedTermsConfig(
    train_size=40, validation_size=6, test_size=8, test_ood_size=5, lengths=(2, 3), seed=5
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    tfds.disable_progress_bar()
    return prepare(tmp_path_factory.mktemp("data"), SMALL)


def test_written_and_read_back(directory):
    domain = Arithmetic()
    sizes = {"train": 40, "validation": 6, "test": 8, "test_ood": 5}
    for split, size in sizes.items():
        lengths = (7, 8) if split == "test_ood" else (2, 3)
        problems = read_tfds(directory, split)
        assert list(problems) == [domain.problem(5, split, index, lengths) for index in range(size)]
    assert {len(p.prompt) for p in read_tfds(directory, "test_ood")} <= {18, 20}
    assert problems.take([3, 0]) == [problems[3], problems[0]]


def test_files_are_an_ordinary_tfds_data_set(directory):
    builder = tfds.builder_from_directory(str(directory))
    assert builder.info.file_format.value == "array_record"
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 40,
        "validation": 6,
        "test": 8,
        "test_ood": 5,
    }
    first = builder.as_data_source(split="train")[0]
    expected = Arithmetic().problem(5, "train", 0, (2, 3))
    assert first == {
        "id": b"train-5-0",
        "prompt": expected.prompt.encode(),
        "answer": expected.answer.encode(),
    }


def test_preparing_again_changes_nothing_and_another_config_has_another_directory(directory):
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    root = directory.parent.parent.parent
    assert prepare(root, SMALL) == directory
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before
    other = SignedTermsConfig(
        train_size=40, validation_size=6, test_size=8, test_ood_size=5, lengths=(2, 3), seed=6
    )
    assert SignedTerms(
        data_dir=str(root), config=other, file_format="array_record"
    ).data_dir != str(directory)


def test_marks_are_part_of_the_domain_and_of_the_name():
    plain, marks = SignedTermsConfig(), SignedTermsConfig(marks=True)
    # Written down: files of a data set that was made before are found again.
    assert plain.name == "n32768.512.1024.512-k4.5.6-ood7.8-seed0-mod10.9-random"
    assert marks.name == f"{plain.name}-marks"
    assert not plain.domain().marks and marks.domain().marks
    assert marks.domain().problem(0, "test", 3, 9) == plain.domain().problem(0, "test", 3, 9)


def test_without_tensorflow(directory, tmp_path):
    """Writing and reading work in a process that cannot find TensorFlow, and ask for no jax."""
    code = """
import sys
from importlib.machinery import PathFinder
class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else super().find_spec(name, path, target)
sys.meta_path = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
from scope_jax.data.arithmetic_tfds import SignedTermsConfig, prepare
from scope_jax.data.sources import read_tfds
sizes = {"train_size": 3, "validation_size": 1, "test_size": 1, "test_ood_size": 1}
path = prepare(sys.argv[1], SignedTermsConfig(**sizes))
found = {"tensorflow", "jax"} & set(sys.modules)
print(len(read_tfds(path)), read_tfds(sys.argv[2], "test")[0].id, found)
"""
    command = [sys.executable, "-c", code, str(tmp_path), str(directory)]
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "3 test-5-0 set()"


def test_bad_arguments_are_named(directory, tmp_path):
    with pytest.raises(ValueError, match="no split 'dev': it has"):
        read_tfds(directory, "dev")
    with pytest.raises(ValueError, match="no feature 'question'"):
        read_tfds(directory, fields={"prompt": "question"})
    with pytest.raises(ValueError, match="expected at least one problem"):
        SignedTermsConfig(test_size=0)
    assert read_tfds(directory, fields={"answer": "prompt"})[0] == Problem(
        "train-5-0", *[Arithmetic().problem(5, "train", 0, (2, 3)).prompt] * 2
    )
