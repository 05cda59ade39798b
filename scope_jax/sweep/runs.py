"""A sweep file: the runs and checkpoints that it lists, and the config of each.

A sweep file has `sweep() -> list[Run]` and may have `prepare() -> list[Checkpoint]`: what
`scope_jax.supervise` must have made before the first run.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scope_jax.configuration import TrainConfig
from scope_jax.configuration.files import load_file, read_config
from scope_jax.configuration.schema import leaves, set_value
from scope_jax.sweep.names import check_directories, check_names


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run."""

    name: str  # unique, a path in its shortest form: the record is `<records>/<name>.json`
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
    names and folders that are not unique or get into each other's way (`sweep.names`)."""
    module = load_file(path)
    if not hasattr(module, "sweep"):
        raise ValueError(f"{path}: no function sweep(); it returns a list of scope_jax.sweep.Run")
    runs = list(module.sweep())
    checkpoints = list(module.prepare()) if hasattr(module, "prepare") else []
    try:
        check_names([run.name for run in runs])
        check_directories([checkpoint.directory for checkpoint in checkpoints])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return runs, checkpoints


def select_runs(runs: Sequence[Run], only: str, shard: str) -> list[Run]:
    """The runs whose name matches the pattern `only`, and of these the ones of shard "I/N". An
    empty pattern asks for no run: checkpoints alone are made then. Raises ValueError for another
    one that no name matches and a shard of another form."""
    names = [run.name for run in runs]
    runs = [run for run in runs if fnmatch.fnmatch(run.name, only)]
    if names and not runs and only:
        near = difflib.get_close_matches(only, names, n=3, cutoff=0.0)
        raise ValueError(
            f"--only={only}: no run of {len(names)} is called so; the nearest are"
            f" {', '.join(near)} (a pattern matches the whole name, so *PART* finds a part)"
        )
    first, _, count = shard.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise ValueError(f"--shard={shard}: expected I/N with I from 0 to N - 1, such as 0/4")
    return runs[int(first) :: int(count)]


def config_of(file: str, overrides: Mapping[str, Any], schema: type = TrainConfig) -> ConfigDict:
    """The config of a file (`FILE.py` or `FILE.py:WORDS`) with `overrides` by dotted name. Raises
    ValueError for an unknown name, with the nearest known one, and for a value of another type."""
    config = read_config(file, "run.py")
    for name, value in overrides.items():
        try:
            set_value(schema, config, name, value)
        except ValueError as error:
            raise ValueError(f"{file}: in an override: {error}") from None
    return config


def run_config(which: str) -> ConfigDict:
    """The config of one run of a sweep; `which` is SWEEP_FILE:RUN. Raises ValueError for another
    form and for an unknown run, with the nearest known name."""
    file, _, name = which.partition(":")
    if not name:
        raise ValueError(
            f"{which or 'nothing'}: expected SWEEP_FILE:RUN, such as"
            " configs/sweeps/ablations.py:arithmetic/ablation_no_tail/seed_0"
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
    return dict(leaves(config.to_dict()))
