"""A process that calls functions of the user; started by `worker_pool` as a script. The protocol
is that of `worker_loop`; the arguments say what is called, and a request is the rest:

    verdict module:function FOLDERS...
        {"problem": {}, "prediction": str}; the verdict is a bool, a number in [0, 1] or null
    reward BYTES module:function FOLDERS...
        as above, with "tokens" (a list of ids); the verdict is any number
    format BYTES PATTERN
        {"prediction": str}: whether the pattern matches the whole of it
    steps BYTES module:function FOLDERS...
        {"problem": {}, "steps": [str]}; the verdict is the index of the first wrong step, -1 where
        there is none

BYTES is the memory that the process may take beyond what its imports took; FOLDERS are where it
imports from.
"""

import contextlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _beside(name: str) -> Any:
    """A module beside this file, without the package around it: importing that brings in JAX."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from scope_jax.tasks import worker_loop
else:
    worker_loop = _beside("worker_loop")


def ask(
    function: Callable[..., Any], name: str, problem: dict[str, Any], completion: str
) -> tuple[bool | float | None, str]:
    """(verdict of a user's function, reason where it is None). Nothing that it raises or returns
    is an error here."""
    try:
        value = function(problem, completion)
        if hasattr(value, "item"):
            value = value.item()  # a numpy scalar
    except worker_loop.OutOfTime:
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
    arguments = request["problem"], request["prediction"], request["tokens"]
    value, reason, detail = _called(function, name, *arguments)
    if reason:
        return None, reason, detail
    if value is None:
        return None, "none", f"None from {name}"
    if isinstance(value, (int, float)):
        with contextlib.suppress(OverflowError):  # an integer past every float
            if math.isfinite(value):
                return float(value), "", ""
    return None, "not_a_number", f"{name} gave {_in_words(repr, value)}"


def first_wrong(
    function: Callable[..., Any], name: str, request: dict[str, Any]
) -> tuple[int | None, str, str]:
    """(index of the first wrong step that a user's step checker names, -1 for none; reason where it
    says neither, details of that). Nothing that it raises or returns is an error here."""
    count = len(request["steps"])
    value, reason, detail = _called(function, name, request["problem"], request["steps"])
    if reason:
        return None, reason, detail
    if value is None:
        return -1, "", ""
    if isinstance(value, bool) or not isinstance(value, int):
        return None, "not_an_index", f"{name} gave {_in_words(repr, value)}, no index and no None"
    if not 0 <= value < count:
        said = f"{name} gave {_in_words(repr, value)} for a row of {count} steps"
        return None, "out_of_range", said
    return value, "", ""


def _called(function: Callable[..., Any], name: str, *arguments: Any) -> tuple[Any, str, str]:
    """(what a user's function gives, reason where it gives nothing, details of that)."""
    try:
        value = function(*arguments)
        return value.item() if hasattr(value, "item") else value, "", ""  # numpy's and its like
    except (worker_loop.OutOfTime, MemoryError):
        raise
    except BaseException as error:  # SystemExit too
        return None, "exception", f"{type(error).__name__} in {name}: {_in_words(str, error)}"


def _in_words(words: Callable[[Any], str], thing: Any) -> str:
    """The first words of what an object says of itself, if it can."""
    try:
        return " ".join(words(thing)[:200].split())
    except (worker_loop.OutOfTime, MemoryError):
        raise
    except BaseException:
        return f"a {type(thing).__name__}"


def check_takes(function: Callable[..., Any], name: str, **arguments: Any) -> None:
    """Raise TypeError unless a function can be called with these arguments, in this order."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # built in: the first call will tell
    try:
        signature.bind(*arguments.values())
    except TypeError as error:
        raise TypeError(
            f"{name}{signature} cannot be called as ({', '.join(arguments)}): {error}"
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


def decider(what: str, *arguments: str) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """What judges a request, as the arguments of the program say; its limits are set."""
    if what == "format":
        memory, text = arguments
        pattern = re.compile(text)
        worker_loop.limit_memory(int(memory))
        return lambda request: (float(bool(pattern.fullmatch(request["prediction"]))), "")
    if what == "reward":
        memory, name, *search = arguments
        function = load_function(name, search)
        check_takes(function, name, problem={}, completion="", token_ids=[])
        worker_loop.limit_memory(int(memory))
        return lambda request: reward(function, name, request)
    if what == "steps":
        memory, name, *search = arguments
        function = load_function(name, search)
        check_takes(function, name, problem={}, steps=[])
        worker_loop.limit_memory(int(memory))
        return lambda request: first_wrong(function, name, request)
    name, *search = arguments
    function = load_function(name, search)
    return lambda request: ask(function, name, request["problem"], request["prediction"])


def main() -> None:
    source, sink = worker_loop.quiet()
    worker_loop.serve(decider(*sys.argv[1:]), source, sink, "the worker")


if __name__ == "__main__":
    main()
