"""One process at a time works in a workdir."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scope_jax.devices.hosts import from_main, is_main

NAME = ".lock"
# A run that was asked to stop may be about to end.
PATIENCE = 5.0  # seconds


@contextlib.contextmanager
def locked(workdir: str | os.PathLike, patience: float = PATIENCE) -> Iterator[None]:
    """Keep other processes out of `workdir` (made where it is missing). The system lets the lock
    go when its process ends, however it ends; so a lock of a dead process does not count.

    Process 0 of a run holds it, for all. Raises ValueError in every process, with the holder's
    process, host and start, where another one has it and keeps it for `patience` seconds; and
    where `.lock` is no file. A `.lock` that somebody removes by hand while it is held lets a second
    process in.
    """
    held, refusal = None, None
    if is_main():
        held, refusal = _take(Path(workdir), patience)
    refusal = from_main(refusal)
    if refusal is not None:
        raise ValueError(refusal)
    try:
        yield
    finally:
        if held is not None:
            # Removed while it is held: whoever waits for it sees that and makes a new one.
            (Path(workdir) / NAME).unlink(missing_ok=True)
            os.close(held)


def refuse_busy(workdir: str | os.PathLike, patience: float = PATIENCE) -> None:
    """Raise ValueError where another process works in `workdir`, and still does after `patience`
    seconds; makes nothing. For a look before models are read: who may work there is decided by
    `locked`."""
    refusal = _busy(Path(workdir), patience) if is_main() else None
    refusal = from_main(refusal)
    if refusal is not None:
        raise ValueError(refusal)


def _busy(workdir: Path, patience: float) -> str | None:
    """Why nobody else may work there, if somebody does."""
    deadline = time.monotonic() + patience
    while True:
        try:
            file = os.open(workdir / NAME, os.O_RDWR | os.O_NONBLOCK)
        except OSError:  # nobody is there, or it is no file, which `locked` says
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            refusal = _refusal(workdir, file)
        finally:
            os.close(file)
        if time.monotonic() > deadline:
            return refusal
        time.sleep(0.2)


def _refusal(workdir: Path, file: int) -> str:
    return f"{workdir}: {_holder(file)} works in it; wait for it, or use another workdir"


def _take(workdir: Path, patience: float) -> tuple[int | None, str | None]:
    """(the open lock file, or None where the file system knows no locks; why it is refused)."""
    workdir.mkdir(parents=True, exist_ok=True)
    path, deadline = workdir / NAME, time.monotonic() + patience
    while True:
        if (stopped := _no_file(path)) is not None:
            return None, stopped
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            refusal = _refusal(workdir, file)
            os.close(file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return None, None
            if time.monotonic() > deadline:
                return None, refusal
            time.sleep(0.2)
            continue
        if _is_still(path, file):
            break
        os.close(file)
    me = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
    os.truncate(file, 0)
    os.pwrite(file, json.dumps(me).encode(), 0)
    return file, None


def _no_file(path: Path) -> str | None:
    """Why nothing can be locked there: a folder, or what would hold up its reader (a FIFO)."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return None
    except FileNotFoundError:
        if not path.is_symlink():
            return None
    except OSError:  # a link to itself
        pass
    return f"{path}: not a file, and the lock of a run is one; remove it"


def _is_still(path: Path, file: int) -> bool:
    """Whether the open file is the one at `path`: its last holder may have removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _holder(file: int) -> str:
    try:
        said: dict[str, Any] = json.loads(os.pread(file, 4096, 0))
        process, host, since = (_word(said[name]) for name in ("process", "host", "since"))
    except (ValueError, KeyError, TypeError, RecursionError):  # it has just been made, or damaged
        return "another process"
    return f"process {process} on {host}, since {since},"


def _word(value: Any) -> str:
    """A part of one line, whatever somebody wrote into the file."""
    if not isinstance(value, str | int):
        raise TypeError
    text = " ".join(str(value).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:100]
