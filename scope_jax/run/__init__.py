"""What surrounds training: the workdir, checkpoints, metrics, diversity, the report.

Importing this room is cheap: Orbax and TensorBoard are imported where they are first used.
"""

from scope_jax.run.checkpoints import Checkpoints
from scope_jax.run.diversity import (
    SampleGroup,
    answer_entropy,
    distinct_n,
    distinct_paths,
    equation_diversity,
    group_metrics,
    mean_and_standard_error,
    pass_at_k,
    self_bleu,
)
from scope_jax.run.metrics import MetricsWriter, PhaseTimer, progress, read_metrics
from scope_jax.run.report import write_report, write_run_report
from scope_jax.run.stop import STOPPED, Stopped, StopSignal
from scope_jax.run.workdir import NoRoom, config_changes, is_full, prepare_workdir, record_config, write_atomically

__all__ = [
    "STOPPED",
    "Checkpoints",
    "MetricsWriter",
    "NoRoom",
    "PhaseTimer",
    "SampleGroup",
    "StopSignal",
    "Stopped",
    "answer_entropy",
    "config_changes",
    "distinct_n",
    "distinct_paths",
    "equation_diversity",
    "group_metrics",
    "is_full",
    "mean_and_standard_error",
    "pass_at_k",
    "prepare_workdir",
    "progress",
    "read_metrics",
    "record_config",
    "self_bleu",
    "write_atomically",
    "write_report",
    "write_run_report",
]
