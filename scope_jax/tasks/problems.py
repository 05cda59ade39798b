"""Where problems come from, and in which order they are used."""

import collections
import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from scope_jax.tasks.domain import Problem

FIELDS = ("id", "prompt", "answer")


@dataclasses.dataclass(frozen=True)
class Problems(Sequence[Problem]):
    """A sequence of problems, read by index when asked for.

    `skipped` counts malformed lines left out when it was read; `name` says where it came from.
    """

    name: str
    size: int
    get: Callable[[int], Problem]
    skipped: int = 0

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.get(i) for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"{self.name}: index {index} of {self.size} problems")
        return self.get(int(index) % self.size)

    def take(self, indices: Iterable[int]) -> list[Problem]:
        """The problems at these indices, in this order."""
        return [self[int(index)] for index in indices]

    @classmethod
    def from_list(cls, problems: Sequence[Problem], name: str = "list", skipped: int = 0) -> "Problems":
        """Problems that are in memory already."""
        return cls(name, len(problems), tuple(problems).__getitem__, skipped)

    @classmethod
    def from_tfds(cls, directory: str | pathlib.Path, split: str = "train", fields: Mapping[str, str] | None = None) -> "Problems":
        """A split of a prepared TFDS data set in array_record format, such as `data_dir/signed_terms/<config>/1.0.0`.

        `fields` names the data set's features for "id", "prompt" and "answer" where they differ; a data set without an
        id gets "split-index". TensorFlow is not used. Raises FileNotFoundError and ValueError.
        """
        path = pathlib.Path(directory)
        if not (path / "dataset_info.json").is_file():
            raise FileNotFoundError(f"{path}: no TFDS data set: expected the directory that holds dataset_info.json")
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(path))
        if split not in builder.info.splits:
            raise ValueError(f"{path}: no split {split!r}: it has {', '.join(builder.info.splits)}")
        names, features = _field_names(fields), builder.info.features
        missing = [names[field] for field in ("prompt", "answer") if names[field] not in features]
        if missing:
            raise ValueError(f"{path}: no feature {missing[0]!r}: it has {', '.join(features)}; set fields")
        source = builder.as_data_source(split=split)

        def get(index: int) -> Problem:
            row = {key: value.decode() if isinstance(value, bytes) else value for key, value in source[index].items()}
            return _problem(row, names, default_id=f"{split}-{index}")

        return cls(f"{path}:{split}", len(source), get)

    @classmethod
    def from_file(
        cls,
        path: str | pathlib.Path,
        *,
        fields: Mapping[str, str] | None = None,
        where: Mapping[str, Collection] | None = None,
        max_malformed: int = 100,
    ) -> "Problems":
        """Problems from a .jsonl file (one object a line) or a .parquet file.

        `fields` as in `from_tfds`; `where` keeps only rows whose column has one of the values, for example
        `{"level": ["Level 3", "Level 4", "Level 5"]}`. A malformed line (no JSON object, a field missing, an empty
        prompt) is skipped with a warning that names file and line; more than `max_malformed` of them raise ValueError.
        Raises FileNotFoundError where there is no file, ValueError where no problem is left.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file: expected a .jsonl or .parquet file of problems")
        rows = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}.get(path.suffix)
        if rows is None:
            raise ValueError(f"{path}: unknown kind of file: expected .jsonl or .parquet")
        names = _field_names(fields)
        problems, skipped = [], 0
        for line, row in rows(path):
            try:
                if isinstance(row, Exception):
                    raise row
                problem = _problem(row, names, default_id=f"{path.stem}-{line}")
                keep = all(row.get(column) in allowed for column, allowed in (where or {}).items())
            except ValueError as error:
                skipped += 1
                if skipped > max_malformed:
                    raise ValueError(
                        f"{path}: line {line}: {error}; more than {max_malformed} malformed lines: is `fields` right?"
                    ) from error
                warnings.warn(f"{path}: line {line}: {error}; skipped", stacklevel=2)
                continue
            if keep:
                problems.append(problem)
        if not problems:
            raise ValueError(f"{path}: no problem in it ({skipped} malformed lines skipped): expected at least one")
        _refuse_repeated_ids(path, problems)
        return cls.from_list(problems, str(path), skipped)


def batch_indices(seed: int, position: int, batch: int, size: int) -> np.ndarray:
    """int64[batch]: which problems come next when `position` problems have been used before.

    Each epoch goes once through all `size` problems in an order that is a pure function of (seed, epoch); a batch may
    lie across the boundary of two epochs. To resume, remember `position` only. The same on every host and for ever.
    """
    if size < 1 or batch < 0 or position < 0:
        raise ValueError(f"batch_indices: position {position}, batch {batch}, size {size}: expected size of at least 1")
    positions = np.arange(position, position + batch, dtype=np.int64)
    epochs, places = np.divmod(positions, size)
    result = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        result[here] = _permutation(seed, int(epoch), size)[places[here]]
    return result


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    # Sorting raw bits, because numpy may change Generator.permutation between releases, but not the bits.
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.argsort(bits.random_raw(size), kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def _field_names(fields: Mapping[str, str] | None) -> dict[str, str]:
    unknown = set(fields or {}) - set(FIELDS)
    if unknown:
        raise ValueError(f"problems: fields names {sorted(unknown)[0]!r}: expected only {', '.join(FIELDS)}")
    return {field: (fields or {}).get(field, field) for field in FIELDS}


def _problem(row: Any, names: Mapping[str, str], default_id: str) -> Problem:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    values = {}
    for field in ("prompt", "answer"):
        value = row.get(names[field])
        if value is None:
            raise ValueError(f"no field {names[field]!r}")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"field {names[field]!r}: expected text, found {type(value).__name__}")
        values[field] = str(value)
        if not values[field].strip():
            raise ValueError(f"field {names[field]!r} is empty")
    identity = row.get(names["id"])
    return Problem(id=default_id if identity is None else str(identity), **values)


def _jsonl_rows(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, json.loads(text)
            except json.JSONDecodeError as error:
                yield number, ValueError(f"not JSON: {error.msg} at column {error.colno}")
            except UnicodeDecodeError as error:
                yield number, ValueError(f"not UTF-8 at byte {error.start}")


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file: {str(error).splitlines()[0]}") from error
    yield from enumerate(table.to_pylist(), start=1)


def _refuse_repeated_ids(path: pathlib.Path, problems: Sequence[Problem]) -> None:
    """Results are kept by id, so two problems with one id would be taken for the same."""
    identity, count = collections.Counter(problem.id for problem in problems).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path}: id {identity!r} occurs {count} times: expected one problem per id")
