"""What the entry points share on the command line: a config file with overrides, a workdir, one-line errors."""

import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags


def run(
    entry: Callable[[ConfigDict, str | None, Any], str], *, workdir: bool = True, extra: Callable[[], Any] | None = None
) -> None:
    """Parse `--config=FILE [--config.key=value ...] --workdir=DIR`, call `entry(config, workdir, flag values)` and print
    what it returns. Bad input (ValueError, FileNotFoundError) and a run that gave up (RuntimeError) end with one line on
    standard error and exit code 2.

    `workdir`: whether the flag must be given. `extra()` defines further flags. Flags are defined here and not at import,
    because config files import the entry points' modules.
    """
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Config file; override with --config.key=value.", lock_config=False
    )
    workdir_flag = flags.DEFINE_string("workdir", None, "Directory that this command writes.")
    if extra is not None:
        extra()

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        try:
            if config_flag.value is None:
                raise ValueError("--config is missing; give a config file such as configs/arithmetic/scope.py")
            if workdir and not workdir_flag.value:
                raise ValueError("--workdir is missing; give the directory to write")
            print(entry(config_flag.value, workdir_flag.value, flags.FLAGS))
        except jax.errors.JaxRuntimeError:
            raise
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(main)
