"""A process that judges answers; started by `worker_pool` as a script, never imported by it.

It imports math_verify, the folder `rules` and the standard library only: a child that touched JAX
would wait for the accelerator that its parent holds. Requests come on stdin and verdicts leave on
stdout, each a 4-byte big-endian length and that many bytes of JSON:

    child:  {"ready": true}
    parent: {"prediction": str, "gold": str, "seconds": float}
    child:  {"verdict": true | false | null, "reason": str, "retire": bool}

With a function's name ("module:function") and the folders to import from as further arguments, a
request has "problem" (an object) instead of "gold", and the verdict is what that function says,
which may be a number in [0, 1] too.

    reward BYTES module:function FOLDERS...   as above, with "tokens" (a list of ids) beside
        "problem"; the verdict is any number that the function returns, and "detail" in the reply
        says more of the reason
    format BYTES PATTERN                      whether the pattern matches the whole "prediction"

BYTES is the memory that the process may take beyond what its imports took.

It ends when stdin does.
"""

import contextlib
import faulthandler
import functools
import importlib
import importlib.util
import inspect
import json
import logging
import math
import os
import re
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse


def _load_rules(*names: str) -> list[Any]:
    """Modules of the folder `rules` beside this file, without the packages around it: importing
    those would bring in JAX."""
    folder = Path(__file__).with_name("rules")
    spec = importlib.util.spec_from_file_location(
        "rules", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    sys.modules["rules"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return [importlib.import_module(f"rules.{name}") for name in names]


if TYPE_CHECKING:
    from scope_jax.tasks.rules import boxes, readings, symbolic
else:
    boxes, readings, symbolic = _load_rules("boxes", "readings", "symbolic")


class OutOfTime(BaseException):
    """Raised by the alarm; not an Exception, so that sympy's own handlers let it pass."""


def judge(prediction: str, gold: str) -> tuple[bool | None, str]:
    """(verdict, reason where it is None): does the answer in `prediction` equal `gold`?

    The last boxed answer counts; without one, what the text states. An answer that cannot be read
    is wrong; a gold that cannot be read leaves the verdict open, unless the texts are the same.
    """
    prediction, gold = _JUNK.sub("", prediction), _JUNK.sub("", gold).strip()
    if not gold:
        return None, "gold is empty"
    reference = _read_gold(gold)
    boxed = boxes.answer_in_boxes(prediction)
    if boxed is None:
        answers = _stated(prediction)
    else:
        answers = iter(readings.read(boxed, reference=False) if boxed.strip() else ())
    open_question = ""
    for answer in answers:
        try:
            if _equal(reference, answer):
                return True, ""
        except MemoryError:
            open_question = "out of memory"
        except _UnreadableGold:
            open_question = "gold can only be compared as text"
    return (None, open_question) if open_question else (False, "")


class _UnreadableGold(Exception):
    pass


def _equal(reference: "readings.Reading", answer: Any) -> bool:
    """Whether an answer, a reading or a sympy object, equals the reference: by texts and values if
    they tell, else by sympy. Raises _UnreadableGold."""
    if isinstance(answer, readings.Reading):
        told = readings.equal(reference, answer)
        if told is not None:
            return told
    try:
        target = symbolic.parsed(reference.text)
    except MemoryError:
        raise
    except Exception:
        raise _UnreadableGold from None
    try:
        if not isinstance(answer, readings.Reading):
            return symbolic.same(target, symbolic.exact(answer))
        expression = symbolic.parsed(answer.text)
        for number, other in ((reference, expression), (answer, target)):
            if number.decimal and number.value is not None and symbolic.close(number.value, other):
                return True
        return symbolic.same(target, expression)
    except MemoryError:
        raise
    except Exception:
        return False  # an answer that cannot be read, or not be compared with this reference


_DELIMITED = re.compile(r"(?<!\\)\$|\\\(|\\\[")
_FORMULA = re.compile(r"\$[^$]*\$|\\\((?:[^\\]|\\[^)])*\\\)|\\\[(?:[^\\]|\\[^\]])*\\\]")
_PROSE = re.compile(r"[a-zA-Z]{2,} [a-zA-Z]{2,}|[a-zA-Z]{4,}")
_JUNK = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: remains of broken characters
_SPACES = re.compile(r"[^\S\n]+")
_STATED = re.compile(r"answer(?: is)?\s?:?\s?([^\n]{1,200})", re.IGNORECASE)
_SHORT = 200
_TEXT = (
    LatexExtractionConfig(boxed_match_priority=0, normalization_config=symbolic.NORMALIZATION),
    ExprExtractionConfig(),
)


@functools.lru_cache(maxsize=256)  # the rollouts of a group share their gold
def _read_gold(gold: str) -> "readings.Reading":
    """The reading of a reference answer: of its box, of a bare answer as a whole, of the formula
    in a sentence."""
    answer = boxes.answer_in_boxes(gold)
    if answer is None:
        answer = gold
        if _DELIMITED.search(gold) and _PROSE.search(_FORMULA.sub(" ", gold)):
            answer = next((found for found in _found(gold) if isinstance(found, str)), gold)
    return readings.read(answer, reference=True)[0]


def _stated(text: str) -> Iterator[Any]:
    """What a text without a box states: all of it where it is short, what follows the last
    "answer is", and, unless that is a number, what math_verify finds (as its text; as a sympy
    object where the text cannot be read)."""
    text = _SPACES.sub(" ", text).strip()
    if 0 < len(text) <= _SHORT:
        yield from readings.read(text, reference=False)
    statements = _STATED.findall(text)
    if statements:
        stated = readings.read(statements[-1], reference=False)
        yield from stated
        if stated[0].value is not None:
            return
    found = _found(text)
    texts = [answer for answer in found if isinstance(answer, str) and answer.strip()]
    for answer in texts:
        yield from readings.read(answer, reference=False)
    if not any(map(_is_readable, texts)):
        yield from (answer for answer in found if not isinstance(answer, str))


def _found(text: str) -> list[Any]:
    """What math_verify takes for the answer: a sympy object, where it can read one, and the text
    of its last match. Timeouts are the caller's: see `_answer`."""
    try:
        return parse(text, _TEXT, parsing_timeout=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:
        return []


def _is_readable(answer: str) -> bool:
    reading = readings.read(answer, reference=False)[0]
    try:
        return reading.value is not None or symbolic.parsed(reading.text) is not None
    except MemoryError:
        raise
    except Exception:
        return False


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


def reward(
    function: Callable[..., Any], name: str, request: dict[str, Any]
) -> tuple[float | None, str, str]:
    """(number that a user's reward function gives, reason where it gives none, details of that).
    Nothing that it raises or returns is an error here."""
    try:
        value = function(request["problem"], request["prediction"], request["tokens"])
        if hasattr(value, "item"):
            value = value.item()  # a scalar of numpy and its like
    except (OutOfTime, MemoryError):
        raise
    except BaseException as error:  # SystemExit too
        return None, "exception", f"{type(error).__name__} in {name}: {_in_words(str, error)}"
    if value is None:
        return None, "none", f"None from {name}"
    if isinstance(value, (int, float)):
        with contextlib.suppress(OverflowError):  # an integer past every float
            if math.isfinite(value):
                return float(value), "", ""
    return None, "not_a_number", f"{name} gave {_in_words(repr, value)}"


def _in_words(words: Callable[[Any], str], thing: Any) -> str:
    """The first words of what an object says of itself, if it can."""
    try:
        return " ".join(words(thing)[:200].split())
    except (OutOfTime, MemoryError):
        raise
    except BaseException:
        return f"a {type(thing).__name__}"


def check_takes_three(function: Callable[..., Any], name: str) -> None:
    """Raise TypeError unless a reward function can be called with its three arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # built in: the first call will tell
    try:
        signature.bind({}, "", [])
    except TypeError as error:
        raise TypeError(
            f"{name}{signature} cannot be called as (problem, completion, token_ids): {error}"
        ) from None


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
    request: dict[str, Any], decide: Callable[[dict[str, Any]], tuple[Any, ...]]
) -> dict[str, Any]:
    seconds = float(request["seconds"])
    armed = True
    detail: list[str] = []

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
        verdict, reason, *detail = decide(request)
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
    reply = {"verdict": verdict, "reason": reason, "retire": reason == "out of memory"}
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


def _limit_growth(memory_bytes: int) -> None:
    """Let the process take this much more address space than it has. Where the system does not say
    how much that is (no /proc), nothing is limited; the deadline still holds."""
    with contextlib.suppress(ValueError, OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _decider(arguments: list[str]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """What judges a request, as the arguments of the program say; its limits are set."""
    if arguments[0] == "reward":
        memory, name, *search = arguments[1:]
        function = load_function(name, search)
        check_takes_three(function, name)
        _limit_growth(int(memory))
        return lambda request: reward(function, name, request)
    if arguments[0] == "format":
        pattern = re.compile(arguments[2])
        _limit_growth(int(arguments[1]))
        return lambda request: (float(bool(pattern.fullmatch(request["prediction"]))), "")
    if len(arguments) > 1:
        name = arguments[1]
        function = load_function(name, arguments[2:])
        return lambda request: ask(function, name, request["problem"], request["prediction"])
    # So that the first item does not pay for the first use of the reader.
    judge("\\boxed{2\\sqrt{x}}", "\\sqrt{4x}")
    _limit(int(arguments[0]))
    return lambda request: judge(request["prediction"], request["gold"])


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
    decide = _decider(sys.argv[1:])
    os.dup2(null, 2)  # until here the parent could read why the start failed
    _send(sink, {"ready": True})
    while (request := _receive(source)) is not None:
        _send(sink, _answer(request, decide))


if __name__ == "__main__":
    main()
