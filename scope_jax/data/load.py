"""From the `task` section of a config to a domain and its problems."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Literal, cast

from scope_jax.data import gym_problems
from scope_jax.data.decontaminate import decontaminated
from scope_jax.data.mixture import mix
from scope_jax.data.options import made_of
from scope_jax.data.problems import Problems
from scope_jax.data.sources import read_source, read_tfds, source_of
from scope_jax.tasks.algebra import Algebra
from scope_jax.tasks.arithmetic import Arithmetic
from scope_jax.tasks.countdown import Countdown
from scope_jax.tasks.domain import Domain, GeneratedDomain
from scope_jax.tasks.mathematics import Mathematics
from scope_jax.tasks.word_problems import WordProblems
from scope_jax.types import check_choices, check_kind, imported

# A domain whose problems come from a program: its class, and the module of its data set (`CONFIG`
# and `prepare`), which is imported when data is read. A further one is a line here.
GENERATED: dict[str, tuple[type[GeneratedDomain], str]] = {
    "arithmetic": (Arithmetic, "scope_jax.data.arithmetic_tfds"),
    "countdown": (Countdown, "scope_jax.data.countdown_tfds"),
    "algebra": (Algebra, "scope_jax.data.algebra_tfds"),
    "word_problems": (WordProblems, "scope_jax.data.word_problems_tfds"),
}
NAMES = (*GENERATED, "math", gym_problems.NAME)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A domain with problems to train on and named sets to evaluate on ("test": in distribution,
    "test_ood": out of it).

    contamination: one record for each training source (`decontaminated`); None where it was not
    looked for.
    """

    domain: Domain
    train: Problems
    evaluation: dict[str, Problems]
    contamination: list[dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A domain and where its problems come from: the section `task` of a config (docs/data.md).

    Raises ValueError for what makes no sense; reads no data.
    """

    # A key of GENERATED, math or reasoning_gym; or module:name, a `Domain` of your own, whose
    # problems come from files as those of math do.
    name: str = "arithmetic"
    # Directory of a generated data set, made there first (None: cache/tfds); of files: where
    # relative paths start.
    data: str | None = None
    train_split: str = "train"  # of a generated data set
    # Fields of the data set's settings (`SignedTermsConfig`, ...), of `Mathematics` or your own
    # class, or of `GymOptions` and `ReasoningGym`.
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    # `Source`s by name; of reasoning_gym: generators.
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)  # of both: the same
    decontaminate: Literal["off", "report", "remove"] = "off"
    decontaminate_words: int = 13  # words in a row that make an overlap

    def __post_init__(self) -> None:
        check_choices(self, "config.task")
        _check_task(self)


def load_task(task: TaskSpec, tokenizer: Any = None) -> Task:
    """The domain and the problems of a task. `tokenizer` counts tokens where a source limits them.

    Raises ValueError for an unknown option or key of a source, and what `read_source` raises.
    """
    name, data, options = task.name, task.data, task.options
    domain: Domain
    if name == gym_problems.NAME:
        plan = gym_problems.plan_of(options, task.train, task.evaluation)
        return Task(plan.domain, *gym_problems.gym_task(plan))
    if name in GENERATED:
        domain, parts, sets = _generated(name, data, task.train_split, options)
        weights = {"train": 1.0}
    else:
        domain = _of_files(name, options)
        sources = {
            key: source_of(value, f"config.task.train.{key}", data)
            for key, value in task.train.items()
        }
        parts = {
            key: _named(read_source(source, tokenizer), key) for key, source in sources.items()
        }
        weights = {key: source.weight for key, source in sources.items()}
        sets = {
            key: read_source(source_of(value, f"config.task.evaluation.{key}", data), tokenizer)
            for key, value in sorted(task.evaluation.items())
        }
    records = None
    if task.decontaminate != "off":
        records = []
        for key in sorted(parts):
            parts[key], record = decontaminated(
                parts[key], sets, task.decontaminate_words, remove=task.decontaminate == "remove"
            )
            records.append(record)
    return Task(domain, mix(parts, weights), sets, records)


def _check_task(task: TaskSpec) -> None:
    name, options, train, evaluation = task.name, task.options, task.train, task.evaluation
    check_kind(name, NAMES, "config.task.name")
    if name == gym_problems.NAME:
        gym_problems.check_unused(task.data, task.train_split, task.decontaminate)
        gym_problems.plan_of(options, train, evaluation)
        return
    if name in GENERATED:
        if train or evaluation:
            raise ValueError(
                f"config.task.train and .evaluation name files; the task {name!r} has none: set"
                " task.name = 'math'"
            )
        if task.train_split in ("test", "test_ood"):
            raise ValueError(
                f"config.task.train_split = {task.train_split!r} is what a run is evaluated on;"
                " train on 'train' or 'validation'"
            )
        return
    _of_files(name, options)
    if task.train_split != "train":
        raise ValueError(
            f"config.task.train_split = {task.train_split!r} is of generated data sets; the split"
            " of a source is its own setting, as in {'math': {'path': ..., 'split': 'train'}}"
        )
    if not train:
        raise ValueError(
            "config.task.train is empty; give at least one source, such as {'math': {'path': ...}}"
        )
    if task.decontaminate != "off" and not evaluation:
        raise ValueError(
            f"config.task.decontaminate = {task.decontaminate!r} needs evaluation sets;"
            " config.task.evaluation is empty"
        )
    for section, sources in (("train", train), ("evaluation", evaluation)):
        for key, settings in sources.items():
            where = f"config.task.{section}.{key}"
            if not isinstance(settings, Mapping):
                raise ValueError(
                    f"{where} = {settings!r}: expected the settings of a source, such as {{'path':"
                    " ...}"
                )
            source_of(settings, where, task.data)


def domain_of(task: TaskSpec) -> Domain:
    """The domain of a task; reads no data."""
    if task.name == gym_problems.NAME:
        return gym_problems.plan_of(task.options, task.train, task.evaluation).domain
    if task.name in GENERATED:
        config = importlib.import_module(GENERATED[task.name][1]).CONFIG
        return made_of(config, task.options, config.options()).domain()
    return _of_files(task.name, task.options)


def generated_domain(name: str, options: Mapping[str, Any] | None = None) -> GeneratedDomain:
    """The generated domain called `name`; `options` are the fields of its class. Raises ValueError
    for an unknown name or option and for values that make no sense."""
    if name not in GENERATED:
        raise ValueError(f"config.task.name = {name!r} is unknown; known: {', '.join(GENERATED)}")
    kind, _ = GENERATED[name]
    known = [field.name for field in dataclasses.fields(cast(Any, kind))]
    return made_of(kind, options or {}, known)


def _of_files(name: str, options: Mapping[str, Any]) -> Domain:
    """The domain of problems that come from files: mathematics, or a class called module:name."""
    kind = Mathematics if name == "math" else imported(name, "config.task.name")
    if not (isinstance(kind, type) and issubclass(kind, Domain)):
        raise ValueError(f"config.task.name = {name!r}: not a class that inherits tasks.Domain")
    fields = getattr(kind, "__dataclass_fields__", {})
    try:
        domain = made_of(kind, options, fields.keys())
    except TypeError as error:  # a method is missing
        raise ValueError(f"config.task.name = {name!r}: {error}") from None
    for member in ("name", "separator"):
        value = getattr(domain, member, None)
        if not isinstance(value, str) or not value:
            raise ValueError(
                f"config.task.name = {name!r}: its {member} is {value!r}; a text is expected"
            )
    return domain


def _generated(
    name: str, data: str | None, train_split: str, options: Mapping[str, Any]
) -> tuple[GeneratedDomain, dict[str, Problems], dict[str, Problems]]:
    module = importlib.import_module(GENERATED[name][1])
    config = made_of(module.CONFIG, options, module.CONFIG.options())
    domain = config.domain()  # refuses bad options before anything is written
    directory = module.prepare(data or "cache/tfds", config)
    sets = {split: read_tfds(directory, split) for split in ("test", "test_ood")}
    return domain, {"train": read_tfds(directory, train_split)}, sets


def _named(problems: Problems, name: str) -> Problems:
    return dataclasses.replace(problems, name=name)
