"""One worker of a sweep: takes runs that have no record, one after another, and records them."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scope_jax.configuration.supervision import SuperviseConfig
from scope_jax.run import failures, read_metrics
from scope_jax.sweep.names import lock_of
from scope_jax.sweep.records import (
    Record,
    check_records,
    code_version,
    is_finished,
    read_by_problem,
    record_of,
    write_failure,
    write_record,
)
from scope_jax.sweep.runs import Checkpoint, Run, config_of
from scope_jax.sweep.weights import weights_of


def work(
    runs: Sequence[Run],
    workdir: Path,
    records: Path,
    *,
    keep: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Run what has no record yet and no other worker has taken; returns (done, failed).

    All runs share this process, so that runs of equal shapes share their compiled programs. A run
    that gave up, does not fit into memory or has bad input is recorded as failed. Any other error
    of a device, a storage or a network, and Stopped, end the worker and leave no record, because
    they say nothing about the run. `keep`: leave the workdirs of finished runs.
    """
    from scope_jax.train import train

    check_records(runs, records)
    # Read once: a file that is edited while the sweep runs belongs to the next sweep.
    configs = {run.name: config_of(run.config, run.overrides) for run in runs}
    code = code_version()
    done = failed = 0
    begin, before = time.monotonic(), sum(is_finished(records, run.name) for run in runs)
    for run in runs:
        if is_finished(records, run.name):
            continue
        with claim(workdir / lock_of(run.name)) as mine:
            if not mine or is_finished(records, run.name):
                continue
            started = time.monotonic()
            place = workdir / run.name
            try:
                weights = weights_of(configs[run.name])
                summary = train(configs[run.name].copy_and_resolve_references(), place)
                rows, seconds = read_metrics(place / "metrics.jsonl"), time.monotonic() - started
                record = record_of(
                    *(run, configs[run.name], rows, summary, seconds, code),
                    weights=weights,
                    by_problem=read_by_problem(place),
                )
            except (ValueError, OSError, RuntimeError) as error:
                if failures.says_nothing_of_the_run(error):
                    raise
                failed += 1
                reason = " ".join(str(error).split())
                write_failure(records, run, reason)
                outcome = f"FAILED: {reason}"
            else:
                done += 1
                write_record(records, record)
                outcome = _figures(record)
            if not keep:
                shutil.rmtree(place, ignore_errors=True)
        finished = sum(is_finished(records, other.name) for other in runs)
        left = (len(runs) - finished) * (time.monotonic() - begin) / max(finished - before, 1)
        say(
            f"[{finished}/{len(runs)}] {run.name}: {outcome}  ({time.monotonic() - started:.0f} s;"
            f" about {left / 60:.0f} min left)"
        )
    return done, failed


def make_checkpoints(checkpoints: Sequence[Checkpoint]) -> None:
    """Make the checkpoints that are missing, in order."""
    from scope_jax.supervise import supervise

    for checkpoint in checkpoints:
        print(f"== checkpoint {checkpoint.directory}", flush=True)
        supervise(
            config_of(checkpoint.config, checkpoint.overrides, SuperviseConfig),
            checkpoint.directory,
        )


def pin(number: int, jobs: int) -> None:
    """Keep this process, number `number` of `jobs`, to its share of the cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= jobs:
            os.sched_setaffinity(0, set(cores[number::jobs]))


@contextlib.contextmanager
def claim(lock: Path) -> Iterator[bool]:
    """Whether this process holds `lock` until the block ends. The system releases the lock when
    the process dies. The file is never removed: another process may have just taken it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _figures(record: Record) -> str:
    shown = ("eval/pass@1", "eval_ood/pass@1")
    return "  ".join(f"{k} {v:.3f}" for k, v in record["final"].items() if k in shown)
