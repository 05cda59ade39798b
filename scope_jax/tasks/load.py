"""From a name in a config to a domain and its problems."""

import dataclasses
import pathlib
from typing import Any

from scope_jax.tasks.arithmetic import Arithmetic
from scope_jax.tasks.domain import Domain
from scope_jax.tasks.problems import Problems


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A domain with problems to train on and named sets to evaluate on ("test": in distribution, "test_ood": out of it)."""

    domain: Domain
    train: Problems
    evaluation: dict[str, Problems]


def load_task(name: str, data: str | pathlib.Path, *, train_split: str = "train", options: dict[str, Any] | None = None) -> Task:
    """The task called `name`, with its data set under the directory `data` (made there first where the task can make it).

    arithmetic: `options` are fields of `SignedTermsConfig` (sizes, lengths, seed, ...).
    Raises ValueError for an unknown task or option.
    """
    if name != "arithmetic":
        raise ValueError(f"config.task.name = {name!r} is unknown; known: arithmetic")
    from scope_jax.tasks.arithmetic_tfds import SignedTermsConfig, prepare

    known = set(SignedTermsConfig.__annotations__) - {"name"}  # its own fields, not those of every TFDS config
    settings: dict[str, Any] = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise ValueError(f"config.task.options.{key}: unknown; known: {', '.join(sorted(known))}")
        settings[key] = tuple(value) if isinstance(value, list | tuple) else value
    config = SignedTermsConfig(**settings)
    directory = prepare(data or "cache/tfds", config)
    domain = Arithmetic(moduli=config.moduli, start=config.start)
    read = lambda split: Problems.from_tfds(directory, split)
    return Task(domain, read(train_split), {split: read(split) for split in ("test", "test_ood")})
