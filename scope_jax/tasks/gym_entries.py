"""Entries of reasoning-gym's generators and their scores: what a worker process does.

Imports the standard library alone, and reasoning_gym inside functions: `gym_worker` loads this
file by path, and the checks of a config (`gym_catalogue`) read its tables.

An entry is a pure function of (generator, settings, seed, index): a fresh `seed`ed generator of
`CHUNK` entries, asked for one of them, in a process with a fixed hash seed (some generators go
through sets of words) and with Python's and numpy's global random state set before (some use it).

Some scorers hand a model's answer to `eval`, or to sympy's parser, which uses it. None of them is
called so here: where the scorer expects a Python list, its `eval` is `ast.literal_eval`; where it
expects a formula, an answer that is not made of numbers, operators and known names is wrong.
"""

import ast
import collections
import dataclasses
import importlib
import json
import math
import random
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

# Entries of a generator with one seed. Some make all of them when they are made, and one
# (word_ladder) has no more than 20,000.
CHUNK = 500

# What is done about scorers that evaluate a model's text, by generator.
LISTS = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
ARITHMETIC = ("countdown", "puzzle24")
FORMULAS = ("intermediate_integration", "polynomial_multiplication", "simple_integration")
# Generators that execute programs of their data set: only where the user allows it.
RUNS_CODE = ("codeio",)
# Read by hand: these evaluate what they wrote themselves, or have a parser of their own.
HARMLESS = ("basic_arithmetic", "bitwise_arithmetic", "number_sorting", "propositional_logic")

_ARITHMETIC = re.compile(r"[\d\s+\-*/().]*")
_FUNCTIONS = frozenset(
    ("Abs", "E", "I", "Rational", "abs", "acos", "acosh", "acot", "asin", "asinh", "atan", "atanh")
    + ("cos", "cosh", "cot", "coth", "csc", "erf", "exp", "ln", "log", "pi", "sec", "sin", "sinh")
    + ("sqrt", "tan", "tanh")
)
# Nothing is given back once it has matched: time in proportion to the text.
_FORMULA = re.compile(r"(?:[\s+\-*/()^,!]|\d++(?:\.\d*+)?+|\.\d++|[A-Za-z_]\w*+)*+", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def safe_answer(generator: str, settings: Mapping[str, Any], answer: str) -> bool:
    """Whether this answer may be shown to the generator's scorer, which would evaluate it. In a
    formula, letters, known functions and the symbols of the settings are names."""
    if generator in ARITHMETIC:
        return _ARITHMETIC.fullmatch(answer) is not None
    if generator in FORMULAS:
        symbols = (*settings.get("symbols", ()), *settings.get("variables", ()))
        return _FORMULA.fullmatch(answer) is not None and all(
            len(name) == 1 or name in _FUNCTIONS or name in symbols
            for name in _NAME.findall(answer)
        )
    return True


def config_of(generator: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the generator's config takes them: JSON has lists only, some want tuples."""
    from reasoning_gym.factory import DATASETS

    kind = DATASETS[generator][1]
    hints = typing.get_type_hints(kind)
    return {
        name: tuple(value)
        if isinstance(value, list)
        and tuple in (hints.get(name), typing.get_origin(hints.get(name)))
        else value
        for name, value in settings.items()
    }


@dataclasses.dataclass
class Kept:
    """The last few things that were made, the least used thrown away first."""

    most: int
    found: collections.OrderedDict[str, Any] = dataclasses.field(
        default_factory=collections.OrderedDict
    )

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """What is kept under `key`, else what `make` gives, which is kept."""
        if key not in self.found:
            self.found[key] = make()
            while len(self.found) > self.most:
                self.found.popitem(last=False)
        self.found.move_to_end(key)
        return self.found[key]


class Entries:
    """Generators and their entries, the last few of both kept."""

    def __init__(self) -> None:
        self._generators, self._entries = Kept(6), Kept(256)

    def problem(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The question, the answer (where the generator says one) and, for one generator, the
        solution of an entry, as texts."""
        _, entry = self._entry(request)
        answer, solution = entry["answer"], entry.get("metadata", {}).get("answer_cot")
        return {
            "question": str(entry["question"]),
            "answer": None if answer is None else str(answer),
            "solution": solution if isinstance(solution, str) else None,
        }

    def score(
        self, request: Mapping[str, Any], start: Callable[[], None]
    ) -> tuple[float | None, str]:
        """(score of `request["answer"]`, reason where there is none). `start` is called between
        making the entry and scoring. An answer that makes the scorer raise is wrong."""
        generator, answer = request["generator"], request["answer"]
        dataset, entry = self._entry(request)
        if not safe_answer(generator, request["settings"], answer):
            return 0.0, ""
        start()
        try:
            score = dataset.score_answer(answer, entry)
            score = float(score.item() if hasattr(score, "item") else score)
        except MemoryError:
            raise
        except Exception:
            return 0.0, ""
        if not (math.isfinite(score) and -1e-6 <= score <= 1 + 1e-6):
            return None, f"score outside [0, 1] in {generator}"
        return min(max(score, 0.0), 1.0), ""

    def _entry(self, request: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        generator, settings = request["generator"], request["settings"]
        seed, index = int(request["seed"]), int(request["index"])
        key = json.dumps([generator, settings, seed], sort_keys=True)
        try:
            dataset = self._generators.get(key, lambda: _generator(generator, settings, seed))
            return dataset, self._entries.get(f"{key} {index}", lambda: _made(dataset, seed, index))
        except BaseException:
            # One that failed or was interrupted may not be the same after.
            self._generators.found.pop(key, None)
            raise


def _generator(generator: str, settings: Mapping[str, Any], seed: int) -> Any:
    import reasoning_gym

    _seed_all(seed)
    dataset = reasoning_gym.create_dataset(
        generator, seed=seed, size=CHUNK, **config_of(generator, settings)
    )
    if generator in LISTS:
        # Their module's own name `eval` comes before the builtin one.
        vars(sys.modules[type(dataset).__module__])["eval"] = ast.literal_eval
    return dataset


def _made(dataset: Any, seed: int, index: int) -> dict[str, Any]:
    _seed_all(seed + index)
    return dataset[index]


def _seed_all(seed: int) -> None:
    """Set the global random states, which few generators use, and those by mistake."""
    random.seed(seed)
    importlib.import_module("numpy.random").seed(seed % 2**32)
