"""Which generators reasoning-gym has, and whether a name and its settings are good: checks of a
config, before anything is loaded. Importing the package takes a few seconds, so that happens where
a generator is checked, and only there.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from scope_jax.tasks import gym_entries

# What the name of a call says of a scorer that may evaluate text as code.
_EVALUATE = (
    "eval",
    "exec",
    "__import__",
    "parse_expr",
    "sympify",
    "system",
    "Popen",
    "check_output",
)
_SET_BY_THE_TASK = ("seed", "size")
# Scorers that accept what is wrong (found with version 0.1.25).
WEAK = {
    "game_of_life_halting": "its scorer gives 1 to any text",
    "puzzle24": "its scorer does not look which numbers are used, so 6*4*1*1 is always right",
}


def generators() -> tuple[str, ...]:
    """The names of all generators. Raises ValueError where the package is missing."""
    return tuple(sorted(set(_registered()) - {"composite"}))


def check_generator(where: str, name: str, settings: Mapping[str, Any], run_code: bool) -> None:
    """Raise ValueError, one line that starts with `where`, for an unknown generator or setting, for
    settings that the generator refuses, and for one that runs code which nobody allowed."""
    known = _registered()
    if name == "composite":
        raise ValueError(f"{where}: 'composite' is a mixture; mix generators in config.task.train")
    if name not in known:
        near = difflib.get_close_matches(str(name), generators(), n=3, cutoff=0.0)
        raise ValueError(
            f"{where}: reasoning-gym has no generator {name!r}; the nearest are {', '.join(near)}"
        )
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where}: settings {settings!r}: expected a dictionary")
    fields = [field.name for field in dataclasses.fields(known[name][1])]
    for key in settings:
        if key in _SET_BY_THE_TASK:
            raise ValueError(
                f"{where}: {name}: {key!r} is set by the task: use config.task.options.seed and"
                " .problems"
            )
        if key not in fields:
            mine = ", ".join(field for field in fields if field not in _SET_BY_THE_TASK)
            raise ValueError(f"{where}: {name} has no setting {key!r}; known: {mine}")
    try:
        config = known[name][1](**gym_entries.config_of(name, settings))
        config.seed, config.size = 0, gym_entries.CHUNK
        config.validate()
    except Exception as error:  # an assertion, a comparison of kinds that do not compare, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: {name} refuses {dict(settings)!r}: {reason}") from None
    if runs_code(name) and not run_code:
        raise ValueError(
            f"{where}: {name} runs code that nobody has read for this project; to run it all the"
            " same, in a process with your rights, set config.task.options.run_code = True"
        )
    if name in WEAK:
        warnings.warn(f"{where}: {name}: {WEAK[name]}; a policy will learn that", stacklevel=2)


@functools.cache
def runs_code(name: str) -> bool:
    """Whether a generator executes programs, or its module may evaluate text and was not read."""
    if name in gym_entries.RUNS_CODE:
        return True
    read = (gym_entries.LISTS, gym_entries.ARITHMETIC, gym_entries.FORMULAS, gym_entries.HARMLESS)
    if any(name in names for names in read):
        return False
    module = sys.modules[_registered()[name][0].__module__]
    return any(isinstance(node, ast.Call) and _evaluates(node) for node in _walk(module))


def _walk(module: Any) -> Any:
    return ast.walk(ast.parse(inspect.getsource(module)))


def _evaluates(call: ast.Call) -> bool:
    called = call.func
    word = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
    return word in _EVALUATE


def _registered() -> dict[str, tuple[type, Any]]:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError(
            "config.task.name = 'reasoning_gym': the package reasoning-gym is not installed;"
            " pip install 'reasoning-gym>=0.1.20' (the extra `gym` of this project; one of its"
            " packages needs a C compiler)"
        )
    importlib.import_module("reasoning_gym")
    return importlib.import_module("reasoning_gym.factory").DATASETS
