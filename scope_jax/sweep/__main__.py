"""Many runs from one file: on the cores of this machine or on several machines, resumable.

    python -m scope_jax.sweep --sweep=FILE --workdir=DIR --records=DIR [--jobs=2]

Each finished run leaves one record, `<records>/<name>.json`, and is not run again. A run that
gave up leaves `<name>.failed.json` with its reason, and the sweep goes on.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scope_jax import cli
from scope_jax.configuration import train_config
from scope_jax.run import STOPPED, NoRoom, Stopped, failures
from scope_jax.sweep.names import check_work_folders
from scope_jax.sweep.records import check_records, is_finished
from scope_jax.sweep.runs import Checkpoint, Run, config_of, load_sweep, select_runs
from scope_jax.sweep.worker import make_checkpoints, pin, work

FLAGS = (
    cli.Flag("sweep", "Python file with sweep()", kind=Path, required=True),
    cli.Flag("workdir", "where runs work; emptied run by run", kind=Path, required=True),
    cli.Flag("records", "directory of the records", kind=Path, required=True),
    cli.Flag("jobs", "processes, each on its share of the cores", 1, int),
    cli.Flag("shard", "I/N: this machine's share of the runs", "0/1"),
    cli.Flag("only", "pattern of names", "*"),
    cli.Flag("keep", "keep the workdirs of finished runs", False, bool),
    cli.Flag("list", "print names and whether they are done; run nothing", False, bool),
    cli.CACHE_FLAG,
    cli.Flag("stage", "of the processes that this program starts itself", "all"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = cli.parse_or_exit(given, FLAGS)
    try:
        runs, checkpoints = load_sweep(args.sweep)
        kept = [args.records, *(Path(checkpoint.directory) for checkpoint in checkpoints)]
        check_work_folders([run.name for run in runs], args.workdir, kept)
        runs = select_runs(runs, args.only, args.shard)
        if args.jobs < 1:
            raise ValueError(f"--jobs={args.jobs} must be at least 1")
        for run in runs:
            train_config(config_of(run.config, run.overrides))
        check_records(runs, args.records)
    except (ValueError, OSError) as error:
        print(f"error: {failures.in_words(error)}", file=sys.stderr)
        return 2
    if args.list:
        for run in runs:
            print(f"{_state(args.records, run.name):6}  {run.name}")
        return 0
    if args.stage != "all":
        return _stage(args, runs, checkpoints)
    # The checkpoints, then the workers: each a process with the same command line and a stage.
    again = [sys.executable, "-m", "scope_jax.sweep", *given]
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    if checkpoints:
        [code] = run_side_by_side(
            [[*again, "--stage=prepare"]], {**environment, "TQDM_DISABLE": "0"}
        )
        if code:
            return abs(code)
    if args.jobs > 1:
        environment.setdefault("JAX_NUM_CPU_DEVICES", "1")
    workers = [[*again, f"--stage={number}"] for number in range(args.jobs)]
    codes = run_side_by_side(workers, environment)
    done = sum((args.records / f"{run.name}.json").is_file() for run in runs)
    failed = sum((args.records / f"{run.name}.failed.json").is_file() for run in runs)
    print(
        f"{done} of {len(runs)} runs done, {failed} failed, {len(runs) - done - failed} left;"
        f" records: {args.records}"
    )
    if STOPPED in codes:
        return STOPPED
    return 0 if done == len(runs) and not any(codes) else 1


def _state(records: Path, name: str) -> str:
    """Of a run in a listing: "done", "failed" or nothing."""
    if (records / f"{name}.failed.json").is_file():
        return "failed"
    return "done" if is_finished(records, name) else ""


def run_side_by_side(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str]
) -> list[int]:
    """Run commands at the same time and return their exit codes. SIGTERM and SIGINT are passed on
    to them."""
    children: list[subprocess.Popen] = []

    def stop(signum: int, frame: Any) -> None:
        for child in children:
            child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for command in commands:
            children.append(subprocess.Popen(command, env=environment))
        return [child.wait() for child in children]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stage(args: Any, runs: list[Run], checkpoints: list[Checkpoint]) -> int:
    """One process of the command: the checkpoints ("prepare"), or worker number `args.stage`."""
    import jax
    from absl import logging

    from scope_jax.devices.mesh import use_cpu_cores
    from scope_jax.run.compile_cache import keep_compiled_programs

    # Ctrl-C reaches every process of a terminal. The parent ends this one, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # models run without PyTorch
    logging.set_verbosity(logging.ERROR)
    if args.stage != "prepare" and args.jobs > 1:
        pin(int(args.stage), args.jobs)
    configs = [config_of(run.config, run.overrides) for run in runs]
    places = {place for config in configs for place in cli.models_of(config) if place}
    use_cpu_cores(max(map(cli.weights_of, places), default=0))
    keep_compiled_programs(args.compilation_cache)
    try:
        jax.devices()  # a machine without its accelerator would fail every run
        if args.stage == "prepare":
            make_checkpoints(checkpoints)
            return 0
        _, failed = work(runs, args.workdir, args.records, keep=args.keep, say=_say)
        return 1 if failed else 0
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError, RuntimeError) as error:
        line, code = failures.ending(error, args.workdir)
        print(line or f"error: {failures.in_words(error)}", file=sys.stderr)
        if isinstance(error, NoRoom):
            failures.leave(code)
        return code


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
