"""What the entry points share on the command line: a config file with overrides, a workdir,
one-line errors."""

import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from flax import traverse_util
from ml_collections import ConfigDict, config_flags

from scope_jax.devices import hosts, watch
from scope_jax.devices.mesh import use_cpu_cores
from scope_jax.run import STOPPED, NoRoom, Stopped, is_full
from scope_jax.run.checkpoints import StorageError, is_passing

# How XLA's own errors begin.
_OF_XLA = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED): "
)
_begun = False


def begun() -> None:
    """A run says that its loop begins: what it was given is good. A file that cannot be read or
    written from now on is no bad input, and starting the command again may help."""
    global _begun
    _begun = True


def is_crash(error: Exception) -> bool:
    """Whether an error is one that nobody expected, which ends a program with its traceback: of
    the devices, of another process that went away in a collective (between CPUs a ValueError now
    and then), or a mistake in the program."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    if is_full(error):
        return False
    if isinstance(error, ValueError):
        return _OF_XLA.match(str(error)) is not None
    # OSError: a missing file, and what config_flags raises, over several lines, for a config file
    # that is not there.
    return not isinstance(error, OSError | RuntimeError)


def exit_code(error: BaseException) -> int:
    """Of a program that such an error ends with one line. 2: bad input, or a run that gave up,
    which ends in the same way every time. 1: a storage or a network that failed, a full disk."""
    if (
        isinstance(error, NoRoom)
        or is_full(error)
        or is_passing(error)
        or (_begun and isinstance(error, OSError))
    ):
        return 1
    return 2


def run(
    entry: Callable[[ConfigDict, str | None, Any], str],
    *,
    workdir: bool = True,
    extra: Callable[[], Any] | None = None,
) -> None:
    """Parse `--config=FILE [--config.key=value ...] --workdir=DIR`, call `entry(config, workdir,
    flag values)` and print what it returns. Bad input (ValueError, FileNotFoundError) and a run
    that gave up (RuntimeError) end with one line on standard error and exit code 2; a full disk,
    and a storage or a network that failed, with one line and exit code 1; a run that was asked to
    stop with one line and exit code 75.

    `workdir`: whether the flag must be given. `extra()` defines further flags. Flags are defined
    here and not at import, because config files import the entry points' modules.
    """
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Config file; override with --config.key=value.", lock_config=False
    )
    workdir_flag = flags.DEFINE_string("workdir", None, "Directory that this command writes.")
    distributed_flag = flags.DEFINE_string(
        "distributed",
        "",
        "Join other processes: auto (TPU slices, Slurm), or HOST:PORT/N/I for number I of N"
        " processes.",
    )
    if extra is not None:
        extra()

    def give_up(error: Exception) -> NoReturn:
        if is_full(error) and not isinstance(error, NoRoom):
            error = NoRoom(workdir_flag.value or ".")
        reason, code = " ".join(str(error).split()), exit_code(error)
        print(f"error: {reason}", file=sys.stderr)
        watch.fail(reason, code)
        if isinstance(error, NoRoom | StorageError):
            leave(code)
        sys.exit(code)

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        try:
            use_cpu_cores()  # before `connect`, which asks for the devices
            hosts.connect(distributed_flag.value)
            if config_flag.value is None:
                raise ValueError(
                    "--config is missing; give a config file such as configs/arithmetic/scope.py"
                )
            if workdir and not workdir_flag.value:
                raise ValueError("--workdir is missing; give the directory to write")
            said = entry(config_flag.value, workdir_flag.value, flags.FLAGS)
            hosts.finish()
            if hosts.is_main():
                print(said)
        except Stopped as stopped:
            # All processes have agreed on it.
            hosts.finish()
            if hosts.is_main():
                print(f"stopped: {stopped}", file=sys.stderr)
            sys.exit(STOPPED)
        except Exception as error:
            if not is_crash(error):
                give_up(error)
            watch.crashed(error)
            raise

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (AttributeError, flags.Error) as error:
            message = _bad_override(argv) or str(error).splitlines()[0]
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    app.run(main, flags_parser=parse)


def leave(code: int) -> None:
    """End the process without the usual way out. After a save that failed, some of Orbax's threads
    may wait for minutes for the rest of it, and Python for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _bad_override(argv: list[str]) -> str:
    """What is wrong with the first override of a key that the config file does not have; empty
    where there is none."""
    arguments = [argument.lstrip("-").partition("=") for argument in argv]
    paths = [value for name, _, value in arguments if name == "config" and value]
    config = flags.FLAGS["config"].parser.parse(paths[0]) if paths else None
    known = (
        traverse_util.flatten_dict(config.to_dict(), sep=".")
        if isinstance(config, ConfigDict)
        else {}
    )
    for name, _, _ in arguments:
        if known and name.startswith("config.") and name.removeprefix("config.") not in known:
            near = difflib.get_close_matches(
                name.removeprefix("config."), list(known), n=1, cutoff=0.0
            )
            return f"{name}: unknown key; the nearest known one is config.{near[0]}"
    return ""
