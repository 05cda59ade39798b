"""The output folder: lines are added a chunk at a time, and a killed salvage goes on after the last
whole chunk."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scope_jax.run import write_atomically
from scope_jax.salvage.forms import FILES
from scope_jax.salvage.reading import Place

NAME = "progress.json"
_LOOKED_AT = 4096  # bytes before the place that tell whether the file is still the same


@dataclasses.dataclass
class State:
    """How far a salvage is: its place in the file of rollouts, the sizes of what is written, and
    what was counted."""

    place: Place = dataclasses.field(default_factory=Place)
    before: str = ""  # digest of the bytes before the place
    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(FILES, 0))
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    cost: dict[str, float] = dataclasses.field(default_factory=dict)
    prompts: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(
        self,
        counts: Mapping[str, int],
        cost: Mapping[str, float],
        prompts: Mapping[str, int] | None = None,
    ) -> None:
        """Count a chunk."""
        for total, more in ((self.counts, counts), (self.prompts, prompts or {})):
            for name, number in more.items():
                total[name] = total.get(name, 0) + number
        for name, value in cost.items():
            self.cost[name] = self.cost.get(name, 0.0) + value


class Ledger:
    """The files of an output folder and the state that they are in. What stands in the files past
    the recorded sizes was written by a chunk that was cut short, and is taken off.

    Raises ValueError where files are there of nobody's, are shorter than recorded, or where the
    file of rollouts is another one than before.
    """

    def __init__(self, folder: Path, rollouts: Path):
        self.folder, self.rollouts = folder, rollouts
        path = folder / NAME
        if path.exists():
            self.state = _read(path)
            self._check_rollouts()
        else:
            foreign = [name for name in FILES if (folder / name).exists()]
            if foreign:
                raise ValueError(
                    f"{folder / foreign[0]} is there, without {NAME}: nothing is written over; use"
                    " another --out"
                )
            self.state = State()
            self._save()
        for name in FILES:
            self._cut(folder / name, self.state.sizes[name])

    def add(self, lines: Mapping[str, Iterable[Mapping[str, Any]]], place: Place) -> None:
        """Write the lines of a chunk that ends at `place`; `state` has its counts already."""
        for name in FILES:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[name])
            with open(self.folder / name, "ab") as file:
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
                self.state.sizes[name] = file.tell()
        self.state.place, self.state.before = place, _digest(self.rollouts, place.offset)
        self._save()

    def _save(self) -> None:
        write_atomically(self.folder / NAME, json.dumps(dataclasses.asdict(self.state)) + "\n")

    def _check_rollouts(self) -> None:
        offset = self.state.place.offset
        if offset and _digest(self.rollouts, offset) != self.state.before:
            raise ValueError(
                f"{self.rollouts}: another file than the one that {self.folder} was begun with (or"
                f" changed before byte {offset}); use another --out"
            )

    @staticmethod
    def _cut(path: Path, size: int) -> None:
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            raise ValueError(
                f"{path}: {there} bytes, {size} were written; bring it back, or use another --out"
            )
        with open(path, "ab") as file:
            file.truncate(size)


def _read(path: Path) -> State:
    try:
        kept = json.loads(path.read_text())
        state = State(**{**kept, "place": Place(**kept["place"])})
        if set(state.sizes) != set(FILES):
            raise ValueError("other files")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error}); use another --out") from None
    return state


def _digest(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        start = max(offset - _LOOKED_AT, 0)
        file.seek(start)
        return hashlib.sha256(file.read(offset - start)).hexdigest()
