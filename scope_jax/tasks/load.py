"""From the `task` section of a config to a domain and its problems."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from scope_jax.tasks.arithmetic import Arithmetic
from scope_jax.tasks.decontaminate import MODES, decontaminated
from scope_jax.tasks.domain import Domain
from scope_jax.tasks.mathematics import Mathematics
from scope_jax.tasks.mixture import mix
from scope_jax.tasks.problems import Problems
from scope_jax.tasks.sources import read_source, source_of

NAMES = ("arithmetic", "math")


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A domain with problems to train on and named sets to evaluate on ("test": in distribution, "test_ood": out of it).

    contamination: one record for each training source (`decontaminated`); None where it was not looked for.
    """

    domain: Domain
    train: Problems
    evaluation: dict[str, Problems]
    contamination: list[dict[str, Any]] | None = None


def load_task(
    name: str,
    data: str | pathlib.Path = "",
    *,
    train_split: str = "train",
    options: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    decontaminate: str = "off",
    decontaminate_words: int = 13,
    tokenizer: Any = None,
) -> Task:
    """The task called `name`; the arguments are the keys of a config's `task` section.

    arithmetic: its data set is under the directory `data` (made there first); `options` are fields of
        `SignedTermsConfig` (sizes, lengths, seed, ...).
    math: `train` and `evaluation` are sources by name (`tasks.Source`), relative paths start at `data`; `options` are
        fields of `Mathematics`. `tokenizer` counts tokens where a source limits them.
    Raises ValueError for an unknown task, option or key of a source, and what `read_source` raises.
    """
    check_task(name, str(data), options, train, evaluation, decontaminate)
    if name == "arithmetic":
        domain, parts, sets = _arithmetic(data, train_split, options or {})
        weights = {"train": 1.0}
    else:
        domain = Mathematics(**(options or {}))
        sources = {key: source_of(value, f"config.task.train.{key}", str(data)) for key, value in (train or {}).items()}
        parts = {key: _named(read_source(source, tokenizer), key) for key, source in sources.items()}
        weights = {key: source.weight for key, source in sources.items()}
        sets = {
            key: read_source(source_of(value, f"config.task.evaluation.{key}", str(data)), tokenizer)
            for key, value in sorted((evaluation or {}).items())
        }
    records = None
    if decontaminate != "off":
        records = []
        for key in sorted(parts):
            parts[key], record = decontaminated(parts[key], sets, decontaminate_words, remove=decontaminate == "remove")
            records.append(record)
    return Task(domain, mix(parts, weights), sets, records)


def check_task(
    name: str,
    data: str,
    options: Mapping[str, Any] | None,
    train: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
    decontaminate: str,
) -> None:
    """Raise ValueError for what is wrong with a `task` section; reads no data."""
    if name not in NAMES:
        raise ValueError(f"config.task.name = {name!r} is unknown; known: {', '.join(NAMES)}")
    if decontaminate not in MODES:
        raise ValueError(f"config.task.decontaminate = {decontaminate!r} is unknown; one of {', '.join(MODES)}")
    if name == "arithmetic":
        if train or evaluation:
            raise ValueError("config.task.train and .evaluation name files; the task 'arithmetic' has none: set task.name = 'math'")
        return
    known = [field.name for field in dataclasses.fields(Mathematics)]
    _check_options(options or {}, known)
    Mathematics(**(options or {}))
    if not train:
        raise ValueError("config.task.train is empty; give at least one source, such as {'math': {'path': ...}}")
    if decontaminate != "off" and not evaluation:
        raise ValueError(f"config.task.decontaminate = {decontaminate!r} needs evaluation sets; config.task.evaluation is empty")
    for section, sources in (("train", train), ("evaluation", evaluation or {})):
        for key, settings in sources.items():
            where = f"config.task.{section}.{key}"
            if not isinstance(settings, Mapping):
                raise ValueError(f"{where} = {settings!r}: expected the settings of a source, such as {{'path': ...}}")
            source_of(settings, where, data)


def _arithmetic(
    data: str | pathlib.Path, train_split: str, options: Mapping[str, Any]
) -> tuple[Domain, dict[str, Problems], dict[str, Problems]]:
    from scope_jax.tasks.arithmetic_tfds import SignedTermsConfig, prepare

    _check_options(options, set(SignedTermsConfig.__annotations__) - {"name"})  # its own fields, not those of every TFDS config
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in options.items()}
    config = SignedTermsConfig(**settings)
    directory = prepare(data or "cache/tfds", config)
    read = lambda split: Problems.from_tfds(directory, split)
    sets = {split: read(split) for split in ("test", "test_ood")}
    return Arithmetic(moduli=config.moduli, start=config.start), {"train": read(train_split)}, sets


def _check_options(options: Mapping[str, Any], known: Any) -> None:
    for key in options:
        if key not in known:
            raise ValueError(f"config.task.options.{key}: unknown; known: {', '.join(sorted(known))}")


def _named(problems: Problems, name: str) -> Problems:
    return dataclasses.replace(problems, name=name)
