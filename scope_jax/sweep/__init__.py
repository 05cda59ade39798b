"""Many runs from one file, their small records, and the page written from them.

In: a sweep file. Out: one JSON record per run, tables with intervals. `python -m scope_jax.sweep`.
"""

from scope_jax.sweep.runs import (
    Checkpoint,
    Run,
    check_records,
    chosen,
    config_of,
    finished,
    load_sweep,
    prepare,
    record_of,
    run_config,
    settings_of,
    work,
    write_failure,
    write_record,
)

__all__ = [
    "Checkpoint",
    "Run",
    "check_records",
    "chosen",
    "config_of",
    "finished",
    "load_sweep",
    "prepare",
    "record_of",
    "run_config",
    "settings_of",
    "work",
    "write_failure",
    "write_record",
]
