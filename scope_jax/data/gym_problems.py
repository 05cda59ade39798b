"""Problems of reasoning-gym: from the section `task` of a config to a domain, training problems and
evaluation sets (docs/reasoning_gym.md).

Every problem has a number, which says its seed and index (`numbered`). Training takes numbers from
0 on, a million for each `options.seed`; evaluation sets take those from 2,150,000,000 on, whatever
the seed. A training problem whose question is one of an evaluation set, or whose generator raises,
is made again from a spare number, so the problem of a number is always the same one.
"""

import dataclasses
import functools
import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np

from scope_jax.data.mixture import mixture_indices, turns_of
from scope_jax.data.problems import Problems
from scope_jax.tasks.domain import Problem
from scope_jax.tasks.gym_catalogue import check_generator
from scope_jax.tasks.gym_entries import CHUNK
from scope_jax.tasks.gym_pool import Entry, Generator
from scope_jax.tasks.reasoning_gym import ReasoningGym
from scope_jax.types import check_choices

NAME = "reasoning_gym"
# Numbers of problems, all multiples of CHUNK: those of one seed, spare ones, held-out ones.
SEEDS, OF_A_SEED = 64, 1_000_000
SPARE, SPARES = 1_000_000_000, 15
HELD_OUT = 2_150_000_000

_WHERE = "config.task.options"


@dataclasses.dataclass(frozen=True)
class GymOptions:
    """What `task.options` says of the problems; the rest of it are fields of `ReasoningGym`."""

    dataset: str | None = None  # the only generator; None: those of `task.train`
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of `dataset`
    problems: int = 100_000  # to train on, of each generator; then they come again
    test_problems: int = 500  # of the evaluation set `test`, where `task.evaluation` names none
    seed: int = 0  # which problems to train on; evaluation sets do not depend on it
    # No training problem has a question of an evaluation set, or only seeds are kept apart.
    held_out: Literal["problems", "seeds"] = "problems"
    run_code: bool = False  # generators that execute programs of their data set

    def __post_init__(self) -> None:
        check_choices(self, _WHERE)
        for name, least, most in (
            ("problems", 1, OF_A_SEED),
            ("test_problems", 1, OF_A_SEED),
            ("seed", 0, SEEDS - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{_WHERE}.{name} = {value!r}: expected {least} to {most:,}")
        if self.dataset is not None and not isinstance(self.dataset, str):
            raise ValueError(
                f"{_WHERE}.dataset = {self.dataset!r}: expected a name; several, with weights, are"
                " config.task.train = {'chain_sum': {'weight': 2.0}, 'leg_counting': {}}"
            )
        if self.run_code not in (True, False):
            raise ValueError(f"{_WHERE}.run_code = {self.run_code!r}: expected True or False")


@dataclasses.dataclass(frozen=True)
class Part:
    """A generator in a mixture."""

    generator: Generator
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a task trains and is evaluated on. `evaluation`: (parts, number of problems) of each
    set."""

    domain: ReasoningGym
    options: GymOptions
    train: dict[str, Part]
    evaluation: dict[str, tuple[dict[str, Part], int]]


def plan_of(
    options: Mapping[str, Any], train: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> Plan:
    """The plan of a task's `options`, `train` and `evaluation`. Raises ValueError, in one line, for
    what makes no sense; makes no problem."""
    own = {field.name for field in dataclasses.fields(GymOptions)}
    of_domain = {field.name for field in dataclasses.fields(ReasoningGym)} - {"generators"}
    for key in options:
        if key not in own | of_domain:
            raise ValueError(
                f"{_WHERE}.{key}: unknown; known: {', '.join(sorted(own | of_domain))}"
            )
    chosen = GymOptions(**{key: value for key, value in options.items() if key in own})
    parts = _train_parts(chosen, train)
    sets = {
        name: _evaluation_set(chosen, parts, name, value)
        for name, value in sorted((evaluation or {"test": {}}).items())
    }
    generators = {
        part.generator: None
        for group in (parts, *(of_set for of_set, _ in sets.values()))
        for part in group.values()
    }
    domain = ReasoningGym(
        **{key: value for key, value in options.items() if key in of_domain},
        generators=tuple(generators),
    )
    return Plan(domain, chosen, parts, sets)


def check_unused(data: str | None, train_split: str, decontaminate: str) -> None:
    """Raise ValueError where a setting of other tasks is set."""
    if data is not None or train_split != "train":
        raise ValueError(
            f"config.task.data = {data!r}, .train_split = {train_split!r}: of other tasks;"
            " reasoning_gym makes its problems: leave them at None and 'train'"
        )
    if decontaminate != "off":
        raise ValueError(
            f"config.task.decontaminate = {decontaminate!r}: made problems share most of their"
            f" words; {_WHERE}.held_out = 'problems' keeps evaluation problems out of training"
        )


def _train_parts(options: GymOptions, train: Mapping[str, Any]) -> dict[str, Part]:
    if (options.dataset is None) == (not train):
        raise ValueError(
            f"{_WHERE}.dataset and config.task.train: set one of them, such as dataset ="
            " 'chain_sum', or train = {'chain_sum': {'weight': 2.0}, 'leg_counting': {}}"
        )
    if options.dataset is not None:
        return {
            options.dataset: _part(
                options, f"{_WHERE}.dataset", options.dataset, options.settings, 1.0
            )
        }
    if options.settings:
        raise ValueError(
            f"{_WHERE}.settings are those of {_WHERE}.dataset; with config.task.train, settings"
            " stand there"
        )
    parts: dict[str, Part] = {}
    for name, value in sorted(train.items()):
        where = f"config.task.train.{name}"
        keys = _keys(where, value, {"dataset": name, "settings": {}, "weight": 1.0})
        parts[name] = _part(options, where, keys["dataset"], keys["settings"], keys["weight"])
        twin = [other for other in parts if parts[other].generator == parts[name].generator]
        if len(twin) > 1:
            raise ValueError(
                f"{where}: the same generator and settings as config.task.train.{twin[0]}: the same"
                " problems; give it a larger weight instead"
            )
    return parts


def _evaluation_set(
    options: GymOptions, parts: dict[str, Part], name: str, value: Any
) -> tuple[dict[str, Part], int]:
    """A set of its own generator; of that of the training part of its name; else, of all of
    them."""
    where = f"config.task.evaluation.{name}"
    defaults = {"dataset": None, "settings": None, "problems": options.test_problems}
    keys = _keys(where, value, defaults)
    count = keys["problems"]
    if not isinstance(count, int) or not 1 <= count <= OF_A_SEED:
        raise ValueError(f"{where}.problems = {count!r}: expected 1 to {OF_A_SEED:,}")
    if keys["dataset"] is None and keys["settings"] is None:
        return ({name: parts[name]} if name in parts else parts), count
    known = parts[name].generator.name if name in parts else options.dataset
    dataset = keys["dataset"] or known
    if dataset is None:
        raise ValueError(f"{where}.dataset: missing; the settings are for a generator")
    return {name: _part(options, where, dataset, keys["settings"] or {}, 1.0)}, count


def _keys(where: str, value: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} = {value!r}: expected a dictionary of {', '.join(defaults)}")
    for key in value:
        if key not in defaults:
            raise ValueError(f"{where}.{key}: unknown; known: {', '.join(defaults)}")
    return defaults | dict(value)


def _part(options: GymOptions, where: str, name: str, settings: Any, weight: Any) -> Part:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
        raise ValueError(f"{where}.weight = {weight!r}: expected a positive number")
    check_generator(where, name, settings, options.run_code)
    try:
        json.dumps(dict(settings))
    except TypeError as error:
        raise ValueError(
            f"{where}: settings {settings!r}: expected what JSON has ({error})"
        ) from None
    return Part(Generator.of(name, settings), float(weight))


# ---- problems


def entry_of(generator: Generator, number: int) -> Entry:
    """The entry of a number."""
    return Entry(generator, number - number % CHUNK, number % CHUNK)


@dataclasses.dataclass(frozen=True)
class GymProblems(Problems):
    """Problems that are made many at a time. `numbered`: those of these indices."""

    numbered: Callable[[Sequence[int]], list[Problem]] | None = None
    sizes: tuple[int, ...] = ()  # problems of each generator
    turns: tuple[int, ...] = ()  # of each generator in one round of the mixture

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return self.take(range(*index.indices(self.size)))
        return super().__getitem__(index)

    def take(self, indices: Any) -> list[Problem]:
        """The problems at these indices, in this order."""
        assert self.numbered is not None
        chosen = [int(index) for index in indices]
        for index in chosen:
            if not 0 <= index < self.size:
                raise IndexError(f"{self.name}: index {index} of {self.size} problems")
        return self.numbered(chosen)

    def draw(self, seed: int, position: int, count: int) -> list[Problem]:
        """The `count` problems that come after the first `position`."""
        sources, items = mixture_indices(
            seed, position, count, self.sizes, self.turns, order_of=in_a_row
        )
        return self.take(np.cumsum((0, *self.sizes[:-1]))[sources] + items)


@functools.lru_cache(maxsize=16)
def in_a_row(seed: int, epoch: int, size: int, stream: int = 0) -> np.ndarray:
    """int64[size], read-only: the order of an epoch, one after another from a place that depends on
    seed, epoch and stream. Generated problems are alike wherever one begins, and neighbours are
    cheap: some generators make `CHUNK` at once."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch, stream]))
    start = int(bits.random_raw()) % max(size // CHUNK, 1) * CHUNK
    order = (np.arange(size, dtype=np.int64) + start) % size
    order.flags.writeable = False
    return order


def gym_task(plan: Plan) -> tuple[Problems, dict[str, Problems]]:
    """(training problems, evaluation sets) of a plan. Problems are made when they are asked for."""
    sets = {
        name: _held_out(plan.domain, name, parts, count)
        for name, (parts, count) in plan.evaluation.items()
    }

    @functools.cache
    def reserved() -> frozenset[str]:
        if plan.options.held_out == "seeds":
            return frozenset()
        return frozenset(problem.prompt for problems in sets.values() for problem in problems[:])

    names = sorted(plan.train)
    size = plan.options.problems

    def numbered(indices: Sequence[int]) -> list[Problem]:
        wanted = [divmod(index, size) for index in indices]
        generators = [plan.train[names[part]].generator for part, _ in wanted]
        numbers = [plan.options.seed * OF_A_SEED + place for _, place in wanted]
        made = _made(plan.domain, generators, numbers, reserved())
        if len(names) == 1:
            return made
        return [
            dataclasses.replace(problem, id=f"{names[part]}/{problem.id}")
            for problem, (part, _) in zip(made, wanted)
        ]

    turns = turns_of([plan.train[name].weight for name in names])
    return _problems(" + ".join(names), numbered, (size,) * len(names), turns), sets


def _held_out(domain: ReasoningGym, name: str, parts: dict[str, Part], count: int) -> Problems:
    """An evaluation set, kept once it is made; its generators take turns by their weights."""
    names = sorted(parts)
    turns = turns_of([parts[part].weight for part in names])
    sources, items = mixture_indices(
        0, 0, count, (count,) * len(names), turns, order_of=lambda *_, stream: np.arange(count)
    )
    generators = [parts[names[source]].generator for source in sources]
    kept: dict[int, Problem] = {}
    lock = threading.Lock()

    def numbered(indices: Sequence[int]) -> list[Problem]:
        with lock:
            new = sorted({index for index in indices if index not in kept})
            chosen = [generators[index] for index in new]
            numbers = [HELD_OUT + int(items[index]) for index in new]
            kept.update(zip(new, _made(domain, chosen, numbers, frozenset())))
            return [kept[index] for index in indices]

    return _problems(name, numbered, (count,), (1,))


def _problems(
    name: str,
    numbered: Callable[[Sequence[int]], list[Problem]],
    sizes: tuple[int, ...],
    turns: tuple[int, ...],
) -> GymProblems:
    def get(index: int) -> Problem:
        return numbered([index])[0]

    return GymProblems(f"reasoning_gym {name}", sum(sizes), get, 0, numbered, sizes, turns)


def _made(
    domain: ReasoningGym,
    generators: Sequence[Generator],
    numbers: Sequence[int],
    reserved: frozenset[str],
) -> list[Problem]:
    """The problems of these numbers: of spare ones where the question is `reserved` or the
    generator raises. Raises ValueError where no spare one will do."""
    found: list[Problem | None] = [None] * len(numbers)
    failed = ""
    for attempt in range(SPARES + 1):
        left = [place for place, problem in enumerate(found) if problem is None]
        if not left:
            break
        entries = [entry_of(generators[n], _number(numbers[n], attempt)) for n in left]
        for place, (problem, reason) in zip(left, domain.problems(entries)):
            if problem is None:
                failed = f"the last one failed: {reason}"
                warnings.warn(
                    f"reasoning_gym: {generators[place].name} could not make problem"
                    f" {numbers[place]} ({reason}); another one takes its place",
                    stacklevel=2,
                )
            elif problem.prompt not in reserved:
                found[place] = problem
    for place, problem in enumerate(found):
        if problem is None:
            few = "all have questions of an evaluation set: fewer problems there, settings with"
            raise ValueError(
                f"reasoning_gym: {generators[place].name} with settings"
                f" {generators[place].settings}: {SPARES + 1} tries for one problem, and"
                f" {failed or few + ' more different ones, or task.options.held_out = seeds'}"
            )
    return [problem for problem in found if problem is not None]


def _number(number: int, attempt: int) -> int:
    """The number tried at an attempt, from 0: no two problems share one."""
    if attempt == 0:
        return number
    base = SPARE if number < SPARE else HELD_OUT + OF_A_SEED
    return base + (number - (0 if number < SPARE else HELD_OUT)) * SPARES + attempt - 1
