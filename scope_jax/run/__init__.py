"""Keeping a run: its folder, checkpoints, metrics, signals to stop, and how it ends.

In: metrics, the state of a run, a config. Out: files, written whole or not at all, and what to go
on from. Importing it is cheap: Orbax, TensorBoard and the packages of trackers are imported where
they are first used.
"""

from scope_jax.errors import MachineError, NoRoom, StorageError
from scope_jax.run.checkpoints import Checkpoints
from scope_jax.run.metrics import MetricsWriter, PhaseTimer, progress, read_metrics
from scope_jax.run.stop import STOPPED, Stopped, StopSignal
from scope_jax.run.trackers import Trackers, TrackSpec, check_trackers
from scope_jax.run.workdir import (
    check_beside,
    check_workdir,
    config_changes,
    names_of_run,
    prepare_workdir,
    record_config,
    record_names,
    try_place,
    write_atomically,
)

__all__ = [
    "STOPPED",
    "Checkpoints",
    "MachineError",
    "MetricsWriter",
    "NoRoom",
    "PhaseTimer",
    "StopSignal",
    "Stopped",
    "StorageError",
    "TrackSpec",
    "Trackers",
    "check_beside",
    "check_trackers",
    "check_workdir",
    "config_changes",
    "names_of_run",
    "prepare_workdir",
    "progress",
    "read_metrics",
    "record_config",
    "record_names",
    "try_place",
    "write_atomically",
]
