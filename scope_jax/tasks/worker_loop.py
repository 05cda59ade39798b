"""The loop of a worker process: requests in, verdicts out, each under an alarm and a memory limit.

Loaded by path by the programs that `worker_pool` starts (the package around it would bring in JAX,
and a child that touched JAX would wait for the accelerator that its parent holds), so it imports
the standard library only. Requests come on stdin and replies leave on stdout, each a 4-byte
big-endian length and that many bytes of JSON:

    child:  {"ready": true}
    parent: {"seconds": float, ...}
    child:  {"verdict": any, "reason": str, "detail": str, "retire": bool}

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
from pathlib import Path
from typing import Any, BinaryIO

# (verdict, reason where it is None), and perhaps more words on the reason
Decision = tuple[Any, ...]


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
    library: str,
) -> None:
    """Answer requests until there are no more. `library`: whose exceptions they are that `decide`
    lets pass. Set the limits before."""
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
    detail: list[str] = []

    def out_of_time(signum: int, frame: object) -> None:
        nonlocal rang
        if armed:
            rang = True
            raise OutOfTime

    signal.signal(signal.SIGALRM, out_of_time)
    try:
        arm(0.9 * seconds, 0.1 * seconds + 5)  # the parent's deadline comes first
        verdict, reason, *detail = decide(request)
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
    # What was stopped may have left its memory behind, where the next item would lack it.
    retire = reason == "out of memory" or (verdict is None and _is_short_of_memory())
    reply = {"verdict": verdict, "reason": reason, "retire": retire}
    return reply | ({"detail": detail[0]} if detail else {})


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


def limit_memory(growth: int) -> None:
    """Let the process take `growth` bytes of address space beyond what it has by now (imports start
    threads by the number of cores, each with space of its own). On a system that does not say how
    much that is, nothing is limited; the deadline holds."""
    _set_limit(resource.RLIMIT_CORE, 0)
    if taken := _address_space():
        _set_limit(resource.RLIMIT_AS, taken + growth)
        _half_taken.append(taken + growth // 2)


def limit_files() -> None:
    """Let the process write no file: no answer has a reason to."""
    _set_limit(resource.RLIMIT_FSIZE, 0)


_half_taken: list[int] = []  # bytes at which half of the growth is used up, once that is limited


def _is_short_of_memory() -> bool:
    return bool(_half_taken) and _address_space() > _half_taken[-1]


def _address_space() -> int:
    """Bytes of address space in use; 0 on a system without /proc."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _set_limit(what: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a system without it; the deadline holds
        resource.setrlimit(what, (most, most))
