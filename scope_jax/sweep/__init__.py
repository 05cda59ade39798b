"""Many runs from one file, their small records, and the page written from them.

In: a sweep file. Out: one JSON record per run, tables with intervals. `python -m scope_jax.sweep`.
"""

from scope_jax.sweep.records import (
    check_records,
    is_finished,
    record_of,
    settings_of,
    write_failure,
    write_record,
)
from scope_jax.sweep.runs import (
    Checkpoint,
    Run,
    config_of,
    load_sweep,
    run_config,
    select_runs,
)
from scope_jax.sweep.worker import claim, work

__all__ = [
    "Checkpoint",
    "Run",
    "check_records",
    "claim",
    "config_of",
    "is_finished",
    "load_sweep",
    "record_of",
    "run_config",
    "select_runs",
    "settings_of",
    "work",
    "write_failure",
    "write_record",
]
