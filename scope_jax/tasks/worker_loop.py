"""The loop of a worker process: requests in, verdicts out, each under an alarm and a memory limit.

Loaded by path by the programs that `worker_pool` starts (the package around it would bring in JAX,
and a child that touched JAX would wait for the accelerator that its parent holds), so it imports
the standard library only. Requests come on stdin and replies leave on stdout, each a 4-byte
big-endian length and that many bytes of JSON:

    child:  {"ready": true}
    parent: {"seconds": float, ...}
    child:  {"verdict": any, "reason": str, "retire": bool}

It ends when stdin does.
"""

import contextlib
import faulthandler
import json
import logging
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

# (verdict, reason where it is None)
Decision = tuple[Any, str]


class OutOfTime(BaseException):
    """Raised by the alarm; not an Exception, so that a library's own handlers let it pass."""


def arm(seconds: float, patience: float = 1.0) -> None:
    """(Re)start the alarm of the item at work. It repeats, in case some handler in between
    swallows the first. Should it find the interpreter inside C code, the process ends `patience`
    seconds later, without needing the interpreter or the parent."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 0.1)
    faulthandler.dump_traceback_later(max(seconds, 0.001) + patience, exit=True, file=sys.stderr)


def quiet() -> tuple[BinaryIO, BinaryIO]:
    """(requests, replies): stdin and stdout under new numbers, with nothing in their old places,
    so that what libraries print does not end up among the replies. Signals that the parent blocks
    or ignores work again."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    return source, sink


def serve(
    decide: Callable[[dict[str, Any]], Decision],
    source: BinaryIO,
    sink: BinaryIO,
    memory_bytes: int,
    library: str,
) -> None:
    """Answer requests until there are no more. `memory_bytes`: address space, 0 for no limit.
    `library`: whose exceptions they are that `decide` lets pass."""
    if memory_bytes:
        _limit(memory_bytes)
    # Until here the parent could read why the start failed.
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    _send(sink, {"ready": True})
    while (request := _receive(source)) is not None:
        _send(sink, _answer(request, decide, library))


def _answer(
    request: dict[str, Any], decide: Callable[[dict[str, Any]], Decision], library: str
) -> dict[str, Any]:
    seconds = float(request["seconds"])
    armed, rang = True, False

    def out_of_time(signum: int, frame: object) -> None:
        nonlocal rang
        if armed:
            rang = True
            raise OutOfTime

    signal.signal(signal.SIGALRM, out_of_time)
    try:
        arm(0.9 * seconds, 0.1 * seconds + 5)  # the parent's deadline comes first
        verdict, reason = decide(request)
        armed = False
        if rang:  # a handler in between took it for an error of its own
            verdict, reason = None, "timeout"
    except OutOfTime:
        armed = False
        verdict, reason = None, "timeout"
    except MemoryError:
        armed = False
        verdict, reason = None, "out of memory"
    except Exception as error:
        armed = False
        verdict, reason = None, f"{type(error).__name__} in {library}"
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return {"verdict": verdict, "reason": reason, "retire": reason == "out of memory"}


def _receive(source: BinaryIO) -> dict[str, Any] | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    body = source.read(size)
    return json.loads(body) if len(body) == size else None


def _send(sink: BinaryIO, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode("ascii")
    sink.write(struct.pack(">I", len(body)) + body)
    sink.flush()


def _limit(memory_bytes: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),  # no answer has a reason to write a file
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(
            ValueError, OSError
        ):  # a system without this limit; the deadline still holds
            resource.setrlimit(what, (most, most))
