"""How a program ends: one table from what was raised to what is said and the exit code.

In: an exception. Out: the line to print and the exit code; for what a storage raised, one clear
exception.
"""

import contextlib
import errno
import logging as python_logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from absl import logging

from scope_jax.errors import MachineError, NoRoom, StorageError
from scope_jax.run.stop import STOPPED, Stopped

# What a run's exit code means, as docs/resuming.md shows it.
EXIT_CODES = {
    "0": "finished",
    "1": (
        "with one line: a storage, a network or the machine that failed, a full disk. With a"
        " traceback: a crash. Start it again, but not for ever"
    ),
    "2": (
        "bad input, or the run gave up: not finite updates in a row. Starting it again without a"
        " change does not help"
    ),
    "75": "stopped by SIGTERM or Ctrl-C, with a checkpoint: start the same command again",
    "76": "another process of the run failed or was not heard of any more",
    "other": "a signal's number: start it again, but not for ever",
}

_begun = False


def ending(error: BaseException, place: str | os.PathLike = ".") -> tuple[str | None, int]:
    """How `error` ends a program: (the one line to print, or None for the traceback; exit code).
    `place`: what was being written, for a full disk that does not say so itself."""
    said, code = next(
        (said, code)
        for kinds, fits, said, code in _TABLE
        if isinstance(error, kinds) and (fits is None or fits(error))
    )
    if said is None:
        return None, code
    if is_full(error) and not isinstance(error, NoRoom):
        error = NoRoom(place)
    return said + in_words(error), code


def begun() -> None:
    """A run's loop begins, so what it was given is good. From now on a file that cannot be read or
    written is the storage's fault, and starting the command again may help."""
    global _begun
    _begun = True


def run_main(main: Callable[[], str]) -> None:
    """Print what `main` returns. An error ends the program as the table says."""
    try:
        print(main().removesuffix("\n"))
    except Exception as error:
        line, code = ending(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        sys.exit(code)


def leave(code: int) -> NoReturn:
    """End the process at once. After a save that failed, threads of Orbax may wait for minutes for
    the rest of it, and a normal exit waits for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def storage(place: str, trouble: str, *, only_passing: bool = False) -> Iterator[None]:
    """Turn what the layers below raise in the `with` body into NoRoom, or into StorageError with
    the words `place: trouble: ...`. Errors of devices and mistakes in the program stay what they
    are; with `only_passing` so does everything that is not of a storage that fails to answer."""
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise NoRoom(place) from error
        if _is_of_the_program(error) or (only_passing and not is_passing(error)):
            raise
        raise StorageError(f"{place}: {trouble}: {in_short(error)}") from error


def in_words(error: BaseException) -> str:
    """What an error says, in one line; of the system's own errors the file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split())


def in_short(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first_line}"[:200]


# ---- kinds of errors

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the system says of a storage or a network that does not answer.
_PASSING_NAMES = (
    "EIO",
    "EAGAIN",
    "ESTALE",
    "EREMOTEIO",
    "ENOTCONN",
    "ENETDOWN",
    "ENETUNREACH",
    "ENETRESET",
    "EHOSTDOWN",
    "EHOSTUNREACH",
)
_PASSING = {getattr(errno, name) for name in _PASSING_NAMES if hasattr(errno, name)}
# What gRPC and TensorStore say of it.
_PASSING_WORDS = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED): "
)
# Clients of buckets and of a machine's metadata server.
_PASSING_MODULES = (
    "aiohttp.",
    "gcsfs.",
    "google.api_core.",
    "google.auth.",
    "google.cloud.",
    "requests.",
    "urllib3.",
)
# How XLA's own errors begin; between CPUs some of them are a ValueError.
_OF_XLA = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED): "
)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that there was no room to write: a full disk,
    a quota, a file's limit. Orbax and TensorStore have types of their own, which keep only the
    system's words."""
    return any(
        isinstance(one, NoRoom)
        or (isinstance(one, OSError) and one.errno in _FULL)
        or any(os.strerror(number) in str(one) for number in _FULL)
        for one in _chain(error)
    )


def is_passing(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is of a storage or a network that does not answer or
    of a machine that is short of something, and not of what was asked."""
    return any(map(_is_passing, _chain(error)))


def says_nothing_of_the_run(error: BaseException) -> bool:
    """Whether the same run may go well the next time: a device, a storage or a network failed. A
    run that does not fit into memory never will."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in str(error)
    return is_passing(error) or (
        isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    )


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, StorageError | MachineError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    if f"{type(error).__module__}.".startswith(_PASSING_MODULES):
        return True
    system = re.search(r"os_error_code='(\d+)'", str(error))  # as TensorStore writes it
    return bool(_PASSING_WORDS.search(str(error)) or (system and int(system[1]) in _PASSING))


def _is_of_xla(error: BaseException) -> bool:
    return _OF_XLA.match(str(error)) is not None


def _is_of_the_program(error: BaseException) -> bool:
    """Whether a device failed, another process of the run in a collective, or there is a mistake
    in the program: nothing of the storage."""
    ours = (jax.errors.JaxRuntimeError, TypeError, AttributeError, AssertionError)
    return isinstance(error, ours) or "Gloo" in str(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


_ANTICIPATED = (ValueError, OSError, RuntimeError)
# The first row that fits counts: (types, further condition, what stands before the one line or
# None for a traceback, exit code).
_TABLE: tuple[
    tuple[Any, Callable[[BaseException], bool] | None, str | None, int],
    ...,
] = (
    (Stopped, None, "stopped: ", STOPPED),
    (jax.errors.JaxRuntimeError, None, None, 1),
    (Exception, is_full, "error: ", 1),
    (ValueError, _is_of_xla, None, 1),
    (_ANTICIPATED, is_passing, "error: ", 1),
    # A missing file is bad input until the run has begun.
    (OSError, lambda error: _begun, "error: ", 1),
    (_ANTICIPATED, None, "error: ", 2),
    (BaseException, None, None, 1),
)


# ---- threads whose errors are raised again where somebody waits for them


def quiet_threads() -> None:
    """Print no traceback of a background thread for a failure of the storage that is raised again
    in the main thread. TensorBoard's writer keeps its error for the next call, Orbax for the next
    save (and logs it, once per thread); after a save that failed, answers of the file system find
    the event loop of that save closed."""
    logging.get_absl_logger().addFilter(_is_worth_logging)
    python_logging.getLogger("asyncio").addFilter(_is_no_further_write)
    if not isinstance(threading.excepthook, _QuietThreads):
        threading.excepthook = _QuietThreads(threading.excepthook)
        sys.unraisablehook = _QuietLoops(sys.unraisablehook)


def _is_worth_logging(record: python_logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or "orbax" not in record.pathname or _is_of_the_program(error)


def _is_no_further_write(record: python_logging.LogRecord) -> bool:
    """False for a write that found the disk full beside the one whose error was raised: the arrays
    of a checkpoint are written by tasks, and nobody asks the others."""
    return not (record.exc_info and is_full(record.exc_info[1]))


class _QuietThreads:
    def __init__(self, otherwise: Callable[[Any], Any]):
        self._otherwise = otherwise

    def __call__(self, args: Any) -> None:
        of_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and is_full(args.exc_value)):
            self._otherwise(args)


class _QuietLoops(_QuietThreads):
    def __call__(self, args: Any) -> None:
        closed = isinstance(args.exc_value, RuntimeError)
        if not (closed and str(args.exc_value) == "Event loop is closed"):
            self._otherwise(args)
