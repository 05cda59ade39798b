"""A sweep whose runs take a whole slice each, for launch/sweep_slice.sh: which runs to start, and
the records of those that came back.

    python -m scope_jax.sweep.slices plan --sweep=FILE --records=DIR [--only=PATTERN] [--shard=I/N]
    python -m scope_jax.sweep.slices record --sweep=FILE --records=DIR --name=RUN --workdir=DIR
    python -m scope_jax.sweep.slices failed --sweep=FILE --records=DIR --name=RUN --reason=TEXT

`plan` prints the names of the runs without a record, each followed by a zero byte, as bash's
`mapfile -d ''` reads them; the config of such a run is `configs/sweeps/one.py:FILE:RUN`. No
accelerator is needed. Exit code 2: bad input, also for `record` where the files are not those of a
finished run; 1: a file could not be read or written, which says nothing about the run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from scope_jax import cli
from scope_jax.configuration import train_config
from scope_jax.run import read_metrics
from scope_jax.run.session import read_summary
from scope_jax.sweep.records import (
    check_records,
    code_version,
    is_finished,
    read_by_problem,
    record_of,
    write_failure,
    write_record,
)
from scope_jax.sweep.runs import Run, config_of, load_sweep, select_runs
from scope_jax.sweep.weights import weights_of


def record(run: Run, workdir: Path, records: Path) -> None:
    """Write the record of a run whose `metrics.jsonl` and `summary.json` are in `workdir`, with
    what its evaluation counted where that file is there too. Raises ValueError where they are not
    those of a finished run."""
    for name in ("metrics.jsonl", "summary.json"):
        if not (workdir / name).is_file():
            raise ValueError(f"{workdir / name}: missing; a finished run has it")
    rows = read_metrics(workdir / "metrics.jsonl")
    needed = {"steps": int, "updates": int, "skipped": int}
    summary = read_summary(workdir / "summary.json", needed)
    config = config_of(run.config, run.overrides)
    seconds = sum(row.get("time/total") or 0.0 for row in rows)
    found = record_of(
        *(run, config, rows, summary, seconds, code_version()),
        weights=weights_of(config),
        by_problem=read_by_problem(workdir),
    )
    write_record(records, found)


WHAT = ("plan", "record", "failed")
FLAGS = (
    cli.Flag("sweep", "Python file with sweep()", kind=Path, required=True),
    cli.Flag("records", "directory of the records", kind=Path, required=True),
    cli.Flag("only", "of plan: pattern of names", "*"),
    cli.Flag("shard", "of plan: I/N, this machine's share of the runs", "0/1"),
    cli.Flag("name", "of record and failed: which run", ""),
    cli.Flag("workdir", "of record: where the run's files lie", ".", Path),
    cli.Flag("reason", "of failed: why", ""),
)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    what = words.pop(0) if words else ""
    args = cli.parse_or_exit(words, FLAGS)
    try:
        if what not in WHAT:
            raise ValueError(f"{what!r}: expected one of {', '.join(WHAT)}")
        runs, checkpoints = load_sweep(args.sweep)
        if what == "plan":
            for checkpoint in checkpoints:
                if not (Path(checkpoint.directory) / "config.json").is_file():
                    raise ValueError(
                        f"{checkpoint.directory}: not there; make the sweep's checkpoints first"
                        f" (python -m scope_jax.sweep --sweep={args.sweep} --only= ...) and send"
                        " them along"
                    )
            runs = select_runs(runs, args.only, args.shard)
            for run in runs:
                train_config(config_of(run.config, run.overrides))
            check_records(runs, args.records)
            sys.stdout.write(
                "".join(f"{run.name}\0" for run in runs if not is_finished(args.records, run.name))
            )
            return 0
        named = [run for run in runs if run.name == args.name]
        if not named:
            raise ValueError(f"--name={args.name}: no run of {args.sweep}")
        if what == "record":
            record(named[0], args.workdir, args.records)
        else:
            write_failure(args.records, named[0], args.reason)
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        # A full disk, say, is no bad input. A file that a plan cannot read is: the caller named it.
        return 1 if what != "plan" and isinstance(error, OSError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
