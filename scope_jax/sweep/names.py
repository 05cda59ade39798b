"""Names of the runs of a sweep: paths, and none of them may mean, or hold, what is another's.

A run `a/b` keeps `a/b.json` or `a/b.failed.json` in the records, works in the folder `a/b`, and
holds the lock `locks/a__b.lock`. What differs in case alone is the same on some disks.
"""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

LOCKS = "locks"  # the folder of the locks, beside those of the runs
_LONGEST = 200  # bytes: with what is added around it, a name must stay one of a file


def lock_of(run: str) -> str:
    """The file of a run's lock, below the work folder. Buckets know a run by the same word."""
    return f"{LOCKS}/{run.replace('/', '__')}.lock"


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError, naming them, for a name that is no path in its shortest form or is used by
    the sweep itself, and for two that would share a folder, a record or a lock."""
    for name in names:
        _check_name(name)
    seen: set[str] = set()
    owners: dict[str, str] = {}
    for name in names:
        if name in seen:
            raise ValueError(f"two runs are called {name!r}")
        seen.add(name)
        for place in _places(name):
            if (other := owners.setdefault(_folded(place), name)) != name:
                raise ValueError(
                    f"the runs {other!r} and {name!r} would share {place}; call one of them"
                    " otherwise"
                )
    _check_apart(owners, "run")


def check_directories(directories: Sequence[str | os.PathLike[str]]) -> None:
    """Raise ValueError, naming them, for the folder of a checkpoint that has no name or one that
    cannot be printed, and for two of which one is the other or lies within it."""
    owners: dict[str, str] = {}
    for given in directories:
        directory = os.fspath(given)
        if not directory or not directory.isprintable():
            raise ValueError(f"the folder {directory!r} of a checkpoint: expected a path")
        place = _folded(os.path.realpath(directory))
        if place in owners:
            raise ValueError(f"two checkpoints are made in {owners[place]!r} and {directory!r}")
        owners[place] = directory
    _check_apart(owners, "checkpoint")


def check_work_folders(names: Sequence[str], workdir: Path, kept: Sequence[Path]) -> None:
    """Raise ValueError where a folder of `kept` lies within the work folder of a run, which is
    deleted when the run has its record."""
    inner = {
        _folded(str(place)): folder
        for folder in kept
        for path in [Path(os.path.realpath(folder))]
        for place in (path, *path.parents)
    }
    for name in names:
        if (folder := inner.get(_folded(os.path.realpath(workdir / name)))) is not None:
            raise ValueError(
                f"{folder}: lies in the folder {workdir / name} of the run {name!r}, which is"
                " deleted when that has its record; use another place or name"
            )


def _check_name(name: str) -> None:
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath()
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the name {name!r} is no path inside the records' directory")
    if not name.isprintable():
        raise ValueError(f"the name {name!r} has a character that cannot be printed")
    if str(path) != name:
        raise ValueError(f"the name {name!r} is another spelling of {str(path)!r}; write that")
    if (size := len(name.replace("/", "__").encode())) > _LONGEST:
        raise ValueError(f"the name {name[:40]!r}... has {size} bytes; {_LONGEST} are possible")
    if _folded(path.parts[0]) == LOCKS:
        raise ValueError(f"the name {name!r}: the sweep keeps its own files in {LOCKS!r}")
    if _folded(name).endswith(".failed"):
        raise ValueError(
            f"the name {name!r}: {name}.json is the record of the failure of"
            f" {name[: -len('.failed')]!r}"
        )


def _places(name: str) -> Iterator[str]:
    """The work folder, the records and the lock of a run, below one folder, as if work and
    records shared it."""
    yield name
    yield f"{name}.json"
    yield f"{name}.failed.json"
    yield lock_of(name)


def _check_apart(owners: Mapping[str, str], what: str) -> None:
    """Raise ValueError where a place lies within that of another owner."""
    for place, owner in owners.items():
        for parent in PurePosixPath(place).parents:
            other = owners.get(str(parent), owner)
            if other != owner:
                raise ValueError(
                    f"the {what}s {other!r} and {owner!r}: one lies within the other; call one of"
                    " them otherwise"
                )


def _folded(path: str) -> str:
    """Equal for paths that are one on disks that tell neither case nor kinds of accents apart."""
    return unicodedata.normalize("NFC", path).casefold()
