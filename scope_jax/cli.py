"""What the entry points share on the command line: a config file with overrides, a workdir,
one-line errors."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from scope_jax.configuration.files import read_config
from scope_jax.configuration.schema import set_value
from scope_jax.devices import hosts
from scope_jax.devices.mesh import use_cpu_cores
from scope_jax.run import Stopped, failures


def run(
    entry: Callable[[ConfigDict, str | None, Any], str],
    schema: type,
    *,
    file: str,
    workdir: bool = True,
    extra: Callable[[], Any] | None = None,
) -> None:
    """Parse `--config=NAME [--config.key=value ...] --workdir=DIR`, call `entry(config, workdir,
    flag values)` and print what it returns. An error ends the program as the table in
    `scope_jax.run.failures` says.

    `schema`: the dataclass that the config describes. `file`: the shipped config file that NAME is
    looked up in where it is no file itself (`read_config`). `workdir`: whether the flag must be
    given. `extra()` defines further flags. Flags are defined here and not at import, because
    config files import the entry points' modules.
    """
    overrides, arguments = split_overrides(sys.argv)
    config_flag = flags.DEFINE_string(
        "config", None, f"Config: FILE.py, FILE.py:WORDS, or words for configs/{file}."
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
                    "--config is missing; give a config file, or words for a shipped one such as"
                    " --config=scope,arithmetic"
                )
            config = read_config(config_flag.value, file)
            for name, text in overrides:
                set_value(schema, config, name, text)
            if workdir and not workdir_flag.value:
                raise ValueError("--workdir is missing; give the directory to write")
            said = entry(config, workdir_flag.value, flags.FLAGS)
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
        except flags.Error as error:
            print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
            sys.exit(2)

    app.run(main, argv=arguments, flags_parser=parse)


def split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """([(setting, text)] of `--config.setting=text` and `--config.setting text`, the arguments that
    are left). A setting without a text is "true"."""
    overrides: list[tuple[str, str]] = []
    left: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            left.append(word)
        elif match[2] is not None:
            overrides.append((match[1], match[2]))
        elif words and not words[0].startswith("--"):
            overrides.append((match[1], words.pop(0)))
        else:
            overrides.append((match[1], "true"))
    return overrides, left
