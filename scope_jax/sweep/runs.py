"""A sweep file: the runs and checkpoints that it lists, and the config of each.

A sweep file has `sweep() -> list[Run]` and may have `prepare() -> list[Checkpoint]`: what
`scope_jax.supervise` must have made before the first run.
"""

import dataclasses
import difflib
import fnmatch
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from scope_jax.config import FREE


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run."""

    name: str  # unique, and written like a path: the record is `<records>/<name>.json`
    config: str  # a file with `get_config()`
    # Settings of that config that differ, by dotted name.
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # What tables group by: method, domain, seed.
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A run of `scope_jax.supervise` that a sweep needs."""

    config: str  # a file with `get_config()`
    directory: str  # where the checkpoint is written
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load_sweep(path: str | Path) -> tuple[list[Run], list[Checkpoint]]:
    """(runs, checkpoints) of a sweep file. Raises ValueError for a file without `sweep()`, and for
    names that are not unique or point outside the directory of records."""
    module = _load_file(path)
    if not hasattr(module, "sweep"):
        raise ValueError(f"{path}: no function sweep(); it returns a list of scope_jax.sweep.Run")
    runs = list(module.sweep())
    seen: set[str] = set()
    for run in runs:
        if run.name in seen:
            raise ValueError(f"{path}: two runs are called {run.name!r}")
        parts = Path(run.name).parts
        if not parts or Path(run.name).is_absolute() or ".." in parts:
            raise ValueError(
                f"{path}: the name {run.name!r} is no path inside the records' directory"
            )
        seen.add(run.name)
    return runs, list(module.prepare()) if hasattr(module, "prepare") else []


def select_runs(runs: Sequence[Run], only: str, shard: str) -> list[Run]:
    """The runs whose name matches the pattern `only`, and of these the ones of shard "I/N". Raises
    ValueError for a shard of another form."""
    runs = [run for run in runs if fnmatch.fnmatch(run.name, only)]
    first, _, count = shard.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise ValueError(f"--shard={shard}: expected I/N with I from 0 to N - 1, such as 0/4")
    return runs[int(first) :: int(count)]


def config_of(file: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config of a file with `overrides` (by dotted name). Raises ValueError for an unknown
    name, with the nearest known one, and for a value of another type."""
    module = _load_file(file)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file}: no function get_config()")
    config = module.get_config()
    for name, value in overrides.items():
        *path, last = name.split(".")
        section = config
        for part in path:
            section = section[part] if isinstance(section, ConfigDict) and part in section else None
        if not isinstance(section, ConfigDict) or (
            last not in section and not name.startswith(FREE)
        ):
            near = difflib.get_close_matches(name, list(flat_settings(config)), n=1, cutoff=0.0)
            raise ValueError(
                f"{file}: config.{name}: unknown key in an override; the nearest known one is"
                f" config.{near[0]}"
            )
        try:
            with section.unlocked():
                section[last] = value
        except TypeError:
            kind = type(section[last]).__name__
            raise ValueError(
                f"{file}: config.{name} = {value!r} in an override: expected a value of type {kind}"
            ) from None
    return config


def run_config(which: str) -> ConfigDict:
    """The config of one run of a sweep; `which` is SWEEP_FILE:RUN. Raises ValueError for another
    form and for an unknown run, with the nearest known name."""
    file, _, name = which.partition(":")
    if not name:
        raise ValueError(
            f"{which or 'nothing'}: expected SWEEP_FILE:RUN, such as"
            " configs/sweeps/tuning.py:arithmetic/scope/seed_0"
        )
    runs = {run.name: run for run in load_sweep(file)[0]}
    if name not in runs:
        near = difflib.get_close_matches(name, list(runs), n=1, cutoff=0.0)
        raise ValueError(
            f"{file}: no run {name!r}; the nearest name is {near[0] if near else 'none'}"
        )
    return config_of(runs[name].config, runs[name].overrides)


def flat_settings(config: ConfigDict) -> dict[str, Any]:
    """{dotted name: value} of a config."""
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def _load_file(path: str | Path) -> Any:
    """A sweep or config file as a module. Raises FileNotFoundError, and ValueError where it is no
    Python file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up by name
    spec.loader.exec_module(module)
    return module
