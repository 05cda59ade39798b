"""A process that judges answers; started by `worker_pool` as a script, never imported by it.

It imports math_verify and the standard library only: a child that touched JAX would wait for the
accelerator that its parent holds. Requests come on stdin and verdicts leave on stdout, each a
4-byte big-endian length and that many bytes of JSON:

    child:  {"ready": true}
    parent: {"prediction": str, "gold": str, "seconds": float}
    child:  {"verdict": true | false | null, "reason": str, "retire": bool}

With a function's name ("module:function") and the folders to import from as further arguments, a
request has "problem" (an object) instead of "gold", and the verdict is what that function says,
which may be a number in [0, 1] too.

It ends when stdin does.
"""

import contextlib
import faulthandler
import functools
import importlib
import itertools
import json
import logging
import math
import os
import re
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify


class OutOfTime(BaseException):
    """Raised by the alarm; not an Exception, so that sympy's own handlers let it pass."""


def judge(prediction: str, gold: str) -> tuple[bool | None, str]:
    """(verdict, reason where it is None): does the answer in `prediction` equal `gold`?

    The last boxed answer counts; without one, what math_verify finds in the text. An answer that
    cannot be read is wrong; a gold that cannot be read leaves the verdict open.
    """
    prediction, reference = _JUNK.sub("", prediction), _JUNK.sub("", gold).strip()
    if not reference:
        return None, "gold is empty"
    boxed = boxed_answer(prediction)
    answer = _plain(boxed, prediction)
    if answer and answer == _plain(boxed_answer(reference), reference):
        return True, ""
    golds = _read_gold(reference)
    if not golds:
        return None, "gold cannot be parsed"
    try:
        targets = _read(boxed, prediction)
    except MemoryError:
        return None, "out of memory"
    except Exception:
        return False, ""
    open_question = (
        "gold can only be compared as text" if all(isinstance(g, str) for g in golds) else ""
    )
    for reading, target in itertools.product(golds, targets):
        try:
            if verify(reading, target, timeout_seconds=None, raise_on_error=True):
                return True, ""
        except MemoryError:
            open_question = "out of memory"
        except Exception:
            continue  # these two readings cannot be compared; others may
    return (None, open_question) if open_question and targets else (False, "")


def boxed_answer(text: str) -> str | None:
    r"""The last \boxed{...} (or \fbox) whose braces close, with those joined to it by a comma,
    "and" or "or"."""
    opened: list[
        int | None
    ] = []  # where the box of each open brace starts; None for a brace of another kind
    boxes: list[tuple[int, int, str]] = []
    inside: list[int] = []  # starts of contents
    for match in _BRACES.finditer(text):
        found = match.group()
        if found == "}":
            if opened:
                start, content = opened.pop(), inside.pop()
                if start is not None:
                    while boxes and boxes[-1][0] > start:
                        boxes.pop()  # a box within this one
                    boxes.append((start, match.end(), text[content : match.start()]))
        elif found[-1] == "{" and found != "\\{":
            opened.append(match.start() if len(found) > 1 else None)
            inside.append(match.end())
    if not boxes:
        return None
    first = len(boxes) - 1
    while first > 0 and _JOINED.fullmatch(text[boxes[first - 1][1] : boxes[first][0]]):
        first -= 1
    return " and ".join(f"\\boxed{{{content.strip()}}}" for _, _, content in boxes[first:])


_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_JOINED = re.compile(r"[\s$]*(?:,\s*and|,\s*or|,|and|or)[\s$]*")
_DELIMITED = re.compile(r"(?<!\\)\$|\\\(|\\\[")
_JUNK = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: remains of broken characters
_LATEX = LatexExtractionConfig(boxed_match_priority=0)
_TEXT = (_LATEX, ExprExtractionConfig())


def _plain(boxed: str | None, text: str) -> str:
    """Text for a comparison letter by letter: the content of a single box, or all of the text."""
    if boxed is not None:
        text = boxed if " and \\boxed{" in boxed else boxed[len("\\boxed{") : -1]
    return text.strip()


@functools.lru_cache(maxsize=256)  # the rollouts of a group share their gold
def _read_gold(gold: str) -> list[Any]:
    boxed = boxed_answer(gold)
    if boxed is None and not _DELIMITED.search(gold):
        boxed = f"\\boxed{{{gold}}}"
    try:
        return _read(boxed, gold)
    except Exception:
        return []


def _read(boxed: str | None, text: str) -> list[Any]:
    """Expressions, then the matched text itself. Timeouts are the caller's: see `_answer`."""
    if boxed is None:
        return parse(text, _TEXT, parsing_timeout=None, raise_on_error=True)
    # What is in a box is the answer as a whole: no number is picked out of a box that cannot be
    # read.
    return parse(
        boxed, (_LATEX,), extraction_mode="first_match", parsing_timeout=None, raise_on_error=True
    )


def ask(
    function: Callable[..., Any], name: str, problem: dict[str, Any], completion: str
) -> tuple[bool | float | None, str]:
    """(verdict of a user's function, reason where it is None). Nothing that it raises or returns
    is an error here."""
    try:
        value = function(problem, completion)
        if hasattr(value, "item"):
            value = value.item()  # a numpy scalar
    except OutOfTime:
        raise
    except BaseException as error:  # SystemExit too
        return None, f"{type(error).__name__} in {name}"
    if value is None:
        return None, f"None from {name}"
    if isinstance(value, bool):
        return value, ""
    if isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 1:
        return float(value), ""
    return None, f"{name} gave no bool, no number in [0, 1] and no None"


def load_function(name: str, search: list[str]) -> Callable[..., Any]:
    """The function called "module:function", imported from the folders `search`."""
    sys.path[:] = search
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is a {type(found).__name__}, no function")
    return found


def _answer(
    request: dict[str, Any], decide: Callable[[dict[str, Any]], tuple[bool | float | None, str]]
) -> dict[str, Any]:
    seconds = float(request["seconds"])
    armed = True

    def out_of_time(signum: int, frame: object) -> None:
        if armed:
            raise OutOfTime

    signal.signal(signal.SIGALRM, out_of_time)
    # Should the alarm find the interpreter inside C code and the parent be gone, this ends the
    # process without needing the interpreter.
    faulthandler.dump_traceback_later(seconds + 5, exit=True, file=sys.stderr)
    try:
        # math_verify's own time limits share this timer and take whole seconds per call: one limit
        # per item instead. It repeats, in case some handler in between swallows the first.
        signal.setitimer(signal.ITIMER_REAL, 0.9 * seconds, 0.1)
        verdict, reason = decide(request)
        armed = False
    except OutOfTime:
        armed = False
        verdict, reason = None, "timeout"
    except MemoryError:
        armed = False
        verdict, reason = None, "out of memory"
    except Exception as error:
        armed = False
        verdict, reason = None, f"{type(error).__name__} in math_verify"
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


def main() -> None:
    # The parent may have blocked or ignored signals (preemption notices); here they must work.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # what the libraries print must not end up among the verdicts
        os.dup2(null, standard)
    if len(sys.argv) > 2:
        name = sys.argv[2]
        function = load_function(name, sys.argv[3:])

        def decide(request: dict[str, Any]) -> tuple[bool | float | None, str]:
            return ask(function, name, request["problem"], request["prediction"])
    else:

        def decide(request: dict[str, Any]) -> tuple[bool | float | None, str]:
            return judge(request["prediction"], request["gold"])

        judge("\\boxed{\\frac{1}{2}}", "0.5")  # so that the first item does not pay for first use
        _limit(int(sys.argv[1]))
    os.dup2(null, 2)  # until here the parent could read why the start failed
    _send(sink, {"ready": True})
    while (request := _receive(source)) is not None:
        _send(sink, _answer(request, decide))


if __name__ == "__main__":
    main()
