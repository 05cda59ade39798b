"""The file of rollouts, a chunk at a time: never more rows in memory than one chunk has."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scope_jax.salvage.fields import Logged, layout_of, read_row
from scope_jax.salvage.settings import Settings
from scope_jax.salvage.traces import flat

# Lines of a chunk for each row that may be corrected in it: right rows do not fill a chunk up.
LINES_PER_ROW = 16
LOOKED_AT = 32  # lines at the start that tell whether the fields are right
MOST_BYTES = 64 << 20  # of a line; a longer one is a bad line, and is not held in memory


@dataclasses.dataclass(frozen=True)
class Place:
    """How far a file is read: bytes and lines."""

    offset: int = 0
    line: int = 0


@dataclasses.dataclass
class Chunk:
    """Some consecutive lines of the file."""

    end: Place
    rows: list[Logged] = dataclasses.field(default_factory=list)  # failed, or to be judged
    right: list[Logged] = dataclasses.field(default_factory=list)
    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list)  # line, reason

    @property
    def read(self) -> int:
        """Rows, good and bad."""
        return len(self.rows) + len(self.right) + len(self.bad)


@dataclasses.dataclass(frozen=True)
class Source:
    """A file whose layout is known."""

    path: Path
    layout: str
    names: Mapping[str, str]
    settings: Settings

    def chunks(self, start: Place) -> Iterator[Chunk]:
        """The chunks from a place on. A chunk ends at `settings.rows` rows that are not known to be
        right, so where chunks end follows from the file alone."""
        lines = _lines(self.path, start)
        most = self.settings.rows
        while True:
            chunk = Chunk(start)
            for place, raw in itertools.islice(lines, LINES_PER_ROW * most):
                chunk.end = place
                self._add(chunk, place.line, raw)
                if len(chunk.rows) == most:
                    break
            if chunk.end == start:
                return
            start = chunk.end
            yield chunk

    def _add(self, chunk: Chunk, line: int, raw: bytes) -> None:
        if not raw.strip():
            return
        try:
            row = self.row(line, raw)
        except ValueError as error:
            chunk.bad.append((line, str(error)))
            return
        known = row.reward is not None and row.reward >= self.settings.right
        (chunk.right if known else chunk.rows).append(row)

    def row(self, line: int, raw: bytes) -> Logged:
        """The rollout of one line. Raises ValueError."""
        row, needs = parse(raw), self.settings.needs_answers
        if self.layout == "traces" and isinstance(row, Mapping):
            row = flat(row)
        return read_row(row, self.names, line, needs_answer=needs)


def open_source(settings: Settings) -> Source:
    """The file with its layout. Raises FileNotFoundError, and ValueError where none of its first
    lines is a rollout: the fields are others, then."""
    path = Path(settings.rollouts)
    if path.is_dir():
        raise FileNotFoundError(
            f"{path}: a folder: expected one file of JSON lines; cat its files into one"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: expected JSON lines, one rollout each")
    with path.open("rb") as file:
        begin = file.read(4)
    for magic, words in _OTHERS.items():
        if begin.startswith(magic):
            raise ValueError(f"{path}: {words}")
    first: str | None = None
    lines = (pair for pair in _lines(path, Place(), halves=True) if pair[1].strip())
    for place, raw in itertools.islice(lines, LOOKED_AT):
        try:
            row = parse(raw)
            if not isinstance(row, Mapping):
                raise ValueError(f"expected an object, found {type(row).__name__}")
            source = Source(path, *layout_of(settings, row), settings)
            source.row(place.line, raw)
        except ValueError as error:
            first = first or f"line {place.line}: {error}"
            continue
        return source
    if first is None:
        raise ValueError(f"{path}: no rollout in it: expected JSON lines")
    raise ValueError(f"{path}: no rollout in its first lines; {first}")


# First bytes of what is often given in place of JSON lines.
_OTHERS = {
    b"PAR1": (
        "a parquet file: expected JSON lines, which pandas.read_parquet(it).to_json(out,"
        " orient='records', lines=True) writes"
    ),
    b"\x1f\x8b": "compressed: expected JSON lines; gunzip it",
}


def parse(raw: bytes) -> Any:
    """The JSON value of a line. Raises ValueError that says what is wrong."""
    if len(raw) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES >> 20} MiB")
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def _lines(path: Path, start: Place, *, halves: bool = False) -> Iterator[tuple[Place, bytes]]:
    """(where it ends, the line) of each line from a place on. Of one that is too long the beginning
    alone. A last line without an end that is no JSON is half of one, which somebody may be writing:
    it is left for another time, unless `halves` are asked for."""
    offset, number = start.offset, start.line
    with path.open("rb") as file:
        file.seek(offset)
        while raw := file.readline(MOST_BYTES + 1):
            last = raw[-1:]
            offset, number = offset + len(raw), number + 1
            while last != b"\n" and len(raw) > MOST_BYTES and (more := file.readline(1 << 20)):
                offset, last = offset + len(more), more[-1:]
            if last != b"\n" and not halves and not _is_json(raw):
                return
            yield Place(offset, number), raw


def _is_json(raw: bytes) -> bool:
    try:
        parse(raw)
    except ValueError:
        return False
    return True
