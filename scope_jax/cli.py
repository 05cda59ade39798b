"""What the entry points share on the command line: a config file with overrides, a workdir,
one-line errors."""

import difflib
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from flax import traverse_util
from ml_collections import ConfigDict, config_flags

from scope_jax.devices import hosts
from scope_jax.devices.mesh import use_cpu_cores
from scope_jax.run import Stopped, failures


def run(
    entry: Callable[[ConfigDict, str | None, Any], str],
    *,
    workdir: bool = True,
    extra: Callable[[], Any] | None = None,
) -> None:
    """Parse `--config=FILE [--config.key=value ...] --workdir=DIR`, call `entry(config, workdir,
    flag values)` and print what it returns. An error ends the program as the table in
    `scope_jax.run.failures` says.

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
        except Exception as error:
            line, code = failures.ending(error, workdir_flag.value or ".")
            if isinstance(error, Stopped):
                hosts.finish()  # all processes have agreed on it
                if hosts.is_main():
                    print(line, file=sys.stderr)
                sys.exit(code)
            if line is None:
                hosts.crashed(error)
                raise
            print(line, file=sys.stderr)
            hosts.fail(line.removeprefix("error: "), code)
            if code == 1:
                failures.leave(code)
            sys.exit(code)

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (AttributeError, flags.Error) as error:
            message = _bad_override(argv) or str(error).splitlines()[0]
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    app.run(main, flags_parser=parse)


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
