"""The rows of a file of problems: JSON lines, JSON and parquet."""

import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scope_jax.data.fields import shortest

# pathlib.Path, or an epath.Path with the same methods.
AnyPath = Any
SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")


def rows(
    path: AnyPath, kind: str = "auto", fields: Sequence[str] | None = None
) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of a file, where a row that cannot be read is a ValueError that says
    why.

    .jsonl: one object a line; .json: a list of objects, one object, or lines; .parquet; the first
    two also with .gz. `kind` ("jsonl", "json", "parquet") overrides the suffix. Of a parquet
    file only the columns that these dotted `fields` lie in are read, None: all. Raises ValueError
    where the file as a whole cannot be read.
    """
    name = path.name.lower()
    kind = (
        kind
        if kind != "auto"
        else next((s.split(".")[1] for s in SUFFIXES if name.endswith(s)), "")
    )
    if kind == "parquet":
        yield from _parquet_rows(path, fields)
    elif kind in ("jsonl", "json"):
        try:
            yield from _jsonl_rows(path) if kind == "jsonl" else _json_rows(path)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from error
    else:
        raise ValueError(f"{path}: unknown kind of file: expected {', '.join(SUFFIXES)}")


def columns(path: AnyPath) -> list[str] | None:
    """The columns of a parquet file; None for other kinds, whose rows may differ."""
    if not path.name.lower().endswith(".parquet"):
        return None
    import pyarrow.parquet

    with path.open("rb") as file, _parquet_errors(path):
        return list(pyarrow.parquet.ParquetFile(file).schema_arrow.names)


@contextlib.contextmanager
def _open(path: AnyPath) -> Iterator[Any]:
    with path.open("rb") as file:
        yield gzip.GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file


def _jsonl_rows(path: AnyPath) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, json.loads(text)
            except json.JSONDecodeError as error:
                yield number, ValueError(f"not JSON: {error.msg} at column {error.colno}")
            except UnicodeDecodeError as error:
                yield number, ValueError(f"not UTF-8 at byte {error.start}")
            except (
                ValueError,
                RecursionError,
            ) as error:  # a number of thousands of digits, a very deep list
                yield number, ValueError(f"not JSON: {error}")


def _json_rows(path: AnyPath) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        raw = file.read()
    try:
        whole = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        yield from _jsonl_rows(
            path
        )  # lines of JSON under the other suffix, or a damaged file: its lines say where
        return
    yield from enumerate(whole if isinstance(whole, list) else [whole], start=1)


def _parquet_rows(path: AnyPath, fields: Sequence[str] | None) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    number = 0
    with path.open("rb") as file:
        with _parquet_errors(path):
            table = pyarrow.parquet.ParquetFile(file)
            wanted = None
            if fields is not None:  # a column with dots in its name, else that of the first part
                there = set(table.schema_arrow.names)
                names = [name if name in there else name.split(".")[0] for name in fields]
                wanted = [name for name in dict.fromkeys(names) if name in there]
            batches = table.iter_batches(batch_size=4096, columns=wanted)
        while True:
            with _parquet_errors(path):
                batch = next(batches, None)
            if batch is None:
                return
            for row in _plain_rows(batch):
                number += 1
                yield number, row


def _plain_rows(batch: Any) -> Iterator[Any]:
    """The rows of a batch as plain Python; one that Python has no value for (a text that is not
    UTF-8, a time past the year 9999) is a ValueError."""
    short = {
        field.name: change for field in batch.schema if (change := _shorten(field.type)) is not None
    }
    try:
        found: list[Any] = batch.to_pylist()
    except MemoryError:
        raise
    except Exception as error:  # of many types
        if len(batch) > 1:
            for start in range(len(batch)):
                yield from _plain_rows(batch.slice(start, 1))
            return
        reason = (str(error).splitlines() or [""])[0][:200]
        found = [ValueError(f"not a value of Python: {type(error).__name__}: {reason}")]
    for row in found:
        if not isinstance(row, Exception):
            row |= {name: change(row[name]) for name, change in short.items()}
        yield row


def _shorten(kind: Any) -> Callable[[Any], Any] | None:
    """What `shortest` makes of the values of a type of Arrow; None where it holds none of them."""
    import numpy
    from pyarrow import types

    def unless_none(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda value: None if value is None else change(value)

    if types.is_float32(kind) or types.is_float16(kind):
        number = numpy.float32 if types.is_float32(kind) else numpy.float16
        return unless_none(lambda value: shortest(number(value)))
    if types.is_dictionary(kind):
        return _shorten(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if (each := _shorten(kind.value_type)) is None:
            return None
        return unless_none(lambda value: [each(item) for item in value])
    if types.is_struct(kind):
        parts = {field.name: change for field in kind if (change := _shorten(field.type))}
        return (
            unless_none(lambda value: value | {name: parts[name](value[name]) for name in parts})
            if parts
            else None
        )
    return None


class _parquet_errors:
    """Turns pyarrow's errors about the file into one line that names it."""

    def __init__(self, path: AnyPath):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        import pyarrow

        known = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
        if isinstance(error, known) and not isinstance(error, MemoryError):
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{self.path}: not a parquet file: {reason}") from error
