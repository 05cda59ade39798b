"""Many runs from one file: on the cores of this machine, on several machines, stopped and gone on
with.

    python -m scope_jax.sweep --sweep=configs/sweeps/miniature_table.py --workdir=runs/table --records=DIR [--jobs=2]

A sweep file has `sweep() -> list[Run]` and may have `prepare() -> list[Checkpoint]`: what
`scope_jax.supervise` must have made before. Each finished run leaves one record,
`DIR/<name>.json`, small enough to be kept with the code; a run whose record exists is not run
again. A run that gave up leaves `DIR/<name>.failed.json` with its reason, and the sweep goes on.
"""

import argparse
import contextlib
import dataclasses
import difflib
import fcntl
import fnmatch
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from scope_jax.config import FREE, check_config, default_config
from scope_jax.run import STOPPED, NoRoom, Stopped, failures, read_metrics, write_atomically

# What a record keeps of a run: figures of the last step by prefix, means over the steps, and
# curves.
FINAL = ("eval/", "eval_ood/")
MEANS = (
    "advantage/",
    "scope/",
    "cost/",
    "demonstrations/",
    "rollout/",
    "update/",
    "time/",
    "process/",
)
CURVES = (
    "reward/mean",
    "policy/entropy",
    "advantage/zero_group_share",
    "advantage/zero_group_share_after",
    "diversity/distinct_paths",
    "scope/accepted_share",
    "eval/pass@1",
    "eval_ood/pass@1",
)
# Longer curves are averaged in bins of neighbouring steps.
MOST_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run. name: unique, like a path. config: a file with `get_config()`. overrides:
    dotted names of its settings. labels: what tables group by (method, domain, seed)."""

    name: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A run of `scope_jax.supervise` that a sweep needs: config file, directory, overrides."""

    config: str
    directory: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load_file(path: str | Path) -> Any:
    """A sweep or config file as a module. Raises FileNotFoundError, and ValueError where it is no
    Python file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Where a dataclass is defined, it is looked up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load_sweep(path: str | Path) -> tuple[list[Run], list[Checkpoint]]:
    """(runs, checkpoints) of a sweep file. Raises ValueError for a file without `sweep()`, and for
    names that are not unique or leave the records' directory."""
    module = load_file(path)
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


def config_of(file: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config of a file with `overrides` (dotted names). Raises ValueError for a name that it
    does not have, with the nearest one that it has, and for a value of another type."""
    module = load_file(file)
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
            near = difflib.get_close_matches(name, list(_flat(config)), n=1, cutoff=0.0)
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
    """The config of one run of a sweep: `which` is SWEEP_FILE:RUN. Raises ValueError for another
    form and for a name that the sweep does not have, with the nearest one that it has."""
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


def _flat(config: ConfigDict) -> dict[str, Any]:
    """{dotted name: value}"""
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def record_of(
    run: Run,
    config: ConfigDict,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    seconds: float,
    code: str,
) -> dict[str, Any]:
    """What is kept of a finished run: {name, labels, config, overrides, settings (all that differ
    from the defaults), code, device, steps, updates, skipped, seconds (of the process that
    finished it), seconds_per_step (median), final (the last evaluation), mean (over the steps that
    have the figure; of `cost/` over all steps), curve, curve_every (steps per point)}. Numbers
    have six digits; NaN is None."""
    names = sorted({name for row in rows for name in row})
    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    mean = {
        # A step that asks no teacher costs no teacher.
        name: _number(np.sum(values) / (len(rows) if name.startswith("cost/") else len(values)))
        for name, values in known.items()
        if name.startswith(MEANS) and values
    }
    every = -(-len(rows) // MOST_POINTS)
    return {
        "name": run.name,
        "labels": dict(run.labels),
        "config": run.config,
        "overrides": dict(run.overrides),
        "settings": settings_of(config),
        "code": code,
        "device": summary.get("device", "unknown"),
        "steps": summary["steps"],
        "updates": summary["updates"],
        "skipped": summary["skipped"],
        "seconds": _number(seconds),
        "seconds_per_step": _number(np.median(known["time/total"])),
        "final": {
            name: _number(value) for name, value in rows[-1].items() if name.startswith(FINAL)
        },
        "mean": mean,
        "curve": {
            name: _binned([row.get(name) for row in rows], every)
            for name in CURVES
            if len(known.get(name, ())) > 1
        },
        "curve_every": every,
    }


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """What differs from the defaults of `scope_jax.train`, by dotted name, as JSON gives it back."""
    defaults, settings = _flat(default_config()), _flat(config)
    return json.loads(
        json.dumps(
            {name: v for name, v in settings.items() if name not in defaults or v != defaults[name]}
        )
    )


def check_records(runs: Sequence[Run], records: Path) -> None:
    """Raise ValueError where a record was made with other settings than its run has now: it would
    stand for what did not run."""
    for run in runs:
        path = records / f"{run.name}.json"
        if not path.is_file():
            continue
        then, now = (
            json.loads(path.read_text()).get("settings", {}),
            settings_of(config_of(run.config, run.overrides)),
        )
        changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
        if then and changed:
            raise ValueError(
                f"{path}: made with other settings ({', '.join(changed[:4])}); remove it, or use"
                " another --records"
            )


def _binned(values: Sequence[float | None], every: int) -> list[float | None]:
    bins = (
        [v for v in values[i : i + every] if v is not None] for i in range(0, len(values), every)
    )
    return [_number(np.mean(known)) if known else None for known in bins]


def code_version() -> str:
    """The commit of the working tree ("+" where it has changes), or the package's version outside
    of one. $SCOPE_JAX_CODE overrules it: on a machine that got a copy without the history."""
    from importlib.metadata import PackageNotFoundError, version

    if os.environ.get("SCOPE_JAX_CODE"):
        return os.environ["SCOPE_JAX_CODE"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()
    try:
        return version("scope_jax")
    except PackageNotFoundError:
        return "unknown"


def _number(value: Any) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.6g}")


# ---- one worker


def work(
    runs: Sequence[Run],
    workdir: Path,
    records: Path,
    *,
    keep: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Run, one after another, what has no record yet and nobody else has taken; (done, failed).
    All in this process, so that runs of equal shapes share their compiled programs. A run that
    gave up, does not fit into memory or whose input is bad is recorded as failed; another error of
    the device, and Stopped, end the worker, because they say nothing about the run."""

    from scope_jax.train import train

    # As they are now: a file that is edited while the sweep runs belongs to the next one.
    configs, code = {run.name: config_of(run.config, run.overrides) for run in runs}, code_version()
    done = failed = 0
    begin, before = time.monotonic(), sum(finished(records, run.name) for run in runs)
    for run in runs:
        if finished(records, run.name):
            continue
        with claim(workdir / "locks" / f"{run.name.replace('/', '__')}.lock") as mine:
            if not mine or finished(records, run.name):
                continue
            started = time.monotonic()
            place = workdir / run.name
            try:
                summary = train(configs[run.name].copy_and_resolve_references(), place)
            except (ValueError, OSError, RuntimeError) as error:
                if failures.says_nothing_of_the_run(error):
                    raise
                failed += 1
                reason = " ".join(str(error).split())
                write_failure(records, run, reason)
                outcome = f"FAILED: {reason}"
            else:
                done += 1
                rows = read_metrics(place / "metrics.jsonl")
                record = record_of(
                    run, configs[run.name], rows, summary, time.monotonic() - started, code
                )
                write_record(records, record)
                outcome = "  ".join(
                    f"{k} {v:.3f}"
                    for k, v in record["final"].items()
                    if k in ("eval/pass@1", "eval_ood/pass@1")
                )
            if not keep:
                shutil.rmtree(place, ignore_errors=True)
        there = sum(finished(records, other.name) for other in runs)
        left = (len(runs) - there) * (time.monotonic() - begin) / max(there - before, 1)
        say(
            f"[{there}/{len(runs)}] {run.name}: {outcome}  ({time.monotonic() - started:.0f} s;"
            f" about {left / 60:.0f} min left)"
        )
    return done, failed


def finished(records: Path, name: str) -> bool:
    """Whether a run has a record, of success or of failure."""
    return (records / f"{name}.json").is_file() or (records / f"{name}.failed.json").is_file()


@contextlib.contextmanager
def claim(lock: Path) -> Iterator[bool]:
    """Whether this process may do what `lock` stands for, until the block ends. The system holds
    the lock and lets go of it when the process dies; the file stays, so that nobody removes the
    one that another process has just taken."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_record(records: Path, record: Mapping[str, Any]) -> None:
    """The record of a finished run, whole or not at all."""
    _write(records / f"{record['name']}.json", record)


def write_failure(records: Path, run: Run, reason: str) -> None:
    """What stands for a run that gave up."""
    _write(
        records / f"{run.name}.failed.json",
        {"name": run.name, "labels": dict(run.labels), "reason": reason},
    )


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, separators=(",", ":"), sort_keys=True) + "\n")


# ---- the command


def prepare(checkpoints: Sequence[Checkpoint]) -> None:
    """Make the checkpoints that are missing, in order."""
    from scope_jax.supervise import supervise

    for checkpoint in checkpoints:
        print(f"== checkpoint {checkpoint.directory}", flush=True)
        supervise(config_of(checkpoint.config, checkpoint.overrides), checkpoint.directory)


def pin(number: int, jobs: int) -> None:
    """This process onto its share of the cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= jobs:
            os.sched_setaffinity(0, set(cores[number::jobs]))


def chosen(runs: Sequence[Run], only: str, shard: str) -> list[Run]:
    """The runs whose name matches `only`, of these those of shard "i/n". Raises ValueError for
    another form."""
    runs = [run for run in runs if fnmatch.fnmatch(run.name, only)]
    first, _, count = shard.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise ValueError(f"--shard={shard}: expected I/N with I from 0 to N - 1, such as 0/4")
    return runs[int(first) :: int(count)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scope_jax.sweep",
        description="Run (or go on with) the runs of a sweep file.",
    )
    parser.add_argument("--sweep", required=True, help="Python file with sweep()")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="where runs work; emptied run by run"
    )
    parser.add_argument("--records", type=Path, required=True, help="directory of the records")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes, each on its share of the cores"
    )
    parser.add_argument("--shard", default="0/1", help="I/N: this machine's share of the runs")
    parser.add_argument("--only", default="*", help="pattern of names")
    parser.add_argument("--keep", action="store_true", help="keep the workdirs of finished runs")
    parser.add_argument(
        "--list", action="store_true", help="print names and whether they are done; run nothing"
    )
    parser.add_argument("--stage", default="all", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    try:
        runs, checkpoints = load_sweep(args.sweep)
        runs = chosen(runs, args.only, args.shard)
        if args.jobs < 1:
            raise ValueError(f"--jobs={args.jobs} must be at least 1")
        for run in runs:
            check_config(config_of(run.config, run.overrides))
        check_records(runs, args.records)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if args.list:
        for run in runs:
            print(f"{'done' if finished(args.records, run.name) else '    '}  {run.name}")
        return 0
    if args.stage != "all":
        return _stage(args, runs, checkpoints)
    again = [
        sys.executable,
        "-m",
        "scope_jax.sweep",
        *(arguments if arguments is not None else sys.argv[1:]),
    ]
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    if checkpoints:
        [code] = _wait([[*again, "--stage=prepare"]], {**environment, "TQDM_DISABLE": "0"})
        if code:
            return abs(code)
    if args.jobs > 1:
        environment.setdefault("JAX_NUM_CPU_DEVICES", "1")
    codes = _wait([[*again, f"--stage={number}"] for number in range(args.jobs)], environment)
    there = sum((args.records / f"{run.name}.json").is_file() for run in runs)
    bad = sum((args.records / f"{run.name}.failed.json").is_file() for run in runs)
    print(
        f"{there} of {len(runs)} runs done, {bad} failed, {len(runs) - there - bad} left; records:"
        f" {args.records}"
    )
    if STOPPED in codes:
        return STOPPED
    return 0 if there == len(runs) and not any(codes) else 1


def _wait(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[int]:
    """Run commands side by side; their exit codes. A signal to stop is passed on."""
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


def _stage(args: argparse.Namespace, runs: list[Run], checkpoints: list[Checkpoint]) -> int:
    """A process of the command: the checkpoints, or worker number `args.stage`."""
    import jax
    from absl import logging

    from scope_jax.devices.mesh import use_cpu_cores

    # Ctrl-C reaches every process of a terminal: the one that started this one ends it, without a
    # traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.set_verbosity(logging.ERROR)
    if args.stage != "prepare" and args.jobs > 1:
        pin(int(args.stage), args.jobs)
    use_cpu_cores()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path("cache/xla").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        jax.devices()  # A machine without its accelerator would fail every run.
        if args.stage == "prepare":
            prepare(checkpoints)
            return 0
        return (
            1
            if work(
                runs,
                args.workdir,
                args.records,
                keep=args.keep,
                say=lambda line: print(line, flush=True),
            )[1]
            else 0
        )
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        if isinstance(error, NoRoom):
            failures.leave(2)
        return 2


if __name__ == "__main__":
    sys.exit(main())
